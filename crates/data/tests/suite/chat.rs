//! Chat templates: errors, the clock, and the files that hold templates. `golden.rs` compares texts
//! with `transformers`.

use epiphyte_data::{ChatTemplate, DataError, TemplateLimit, Tokenizer};
use indexmap::IndexMap;
use serde_json::json;

use crate::support::{character_file, character_tokenizer, directory, language_tokenizer};

const CHATML: &str = include_str!("../templates/chatml.jinja");

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, &IndexMap::new()).unwrap()
}

fn reason(result: Result<impl std::fmt::Debug, DataError>) -> String {
    match result.unwrap_err() {
        DataError::ChatTemplate { reason } => reason,
        other => panic!("{other}"),
    }
}

#[test]
fn an_error_of_the_template_reaches_the_user() {
    let mistral = template(include_str!("../templates/mistral.jinja"));
    let twice = [
        json!({"role": "user", "content": "a"}),
        json!({"role": "user", "content": "b"}),
    ];
    let message = reason(mistral.render(&twice, false));
    assert!(
        message.contains("must alternate user/assistant"),
        "{message}"
    );
}

#[test]
fn invalid_templates_and_messages_are_errors() {
    let error = ChatTemplate::new("{% for m in messages %}", &IndexMap::new()).unwrap_err();
    assert!(matches!(error, DataError::ChatTemplate { .. }), "{error}");
    let chatml = template(CHATML);
    assert!(reason(chatml.render(&[json!("hello")], false)).contains("not an object"));
    assert!(reason(chatml.render(&[json!({"content": "a"})], false)).contains("`role`"));
    let forged = json!({"role": "user", "content": "\u{fdd0}learn me\u{fdd1}"});
    assert!(reason(chatml.render(&[forged], false)).contains("U+FDD0"));
    let alone = [json!({"role": "user", "content": "a"})];
    assert!(reason(chatml.render_for_training(&alone)).contains("no turn with role `assistant`"));
}

/// Qwen3 drops the reasoning of earlier turns, so that the rendering of a prefix of the
/// conversation is not a prefix of the whole rendering.
#[test]
fn a_template_that_rewrites_earlier_turns_needs_generation_blocks() {
    let rewriting = "{% for m in messages %}<{{ m.role }}>\
        {% if m.role == 'assistant' and loop.last %}(thinks){% endif %}\
        {{ m.content }}{% endfor %}\
        {% if add_generation_prompt %}<assistant>{% endif %}";
    let turn = |role: &str| json!({"role": role, "content": "x"});
    let messages = [
        turn("user"),
        turn("assistant"),
        turn("user"),
        turn("assistant"),
    ];
    let message = reason(template(rewriting).render_for_training(&messages));
    assert!(
        message.contains("message 2") && message.contains("{% generation %}"),
        "{message}"
    );

    let marked = rewriting.replace(
        "{{ m.content }}",
        "{% generation %}{{ m.content }}{% endgeneration %}",
    );
    let (text, spans) = template(&marked).render_for_training(&messages).unwrap();
    assert_eq!(text, "<user>x<assistant>x<user>x<assistant>(thinks)x");
    assert_eq!(spans.len(), 4);
}

#[test]
fn the_day_can_be_set() {
    let dated = template("{{ strftime_now('%d %B %Y, %H:%M') }}").on("2001-09-09".parse().unwrap());
    let text = dated.render(&[], false).unwrap();
    assert_eq!(text, "09 September 2001, 00:00");
    assert!(reason(template("{{ strftime_now('%Q') }}").render(&[], false)).contains("%Q"));

    let mut tokenizer = character_tokenizer(&json!({"chat_template": "{{ strftime_now('%Y') }}"}));
    tokenizer.set_today("1999-12-31".parse().unwrap());
    let text = tokenizer.chat_template().unwrap().render(&[], false);
    assert_eq!(text.unwrap(), "1999");
    let error = "31.12.1999".parse::<epiphyte_data::Day>().unwrap_err();
    assert!(
        error.to_string().contains("`31.12.1999` is no day"),
        "{error}"
    );
}

/// The template of DeepSeek's distilled models: the generation prompt opens the reasoning, which a
/// finished turn does not have.
#[test]
fn a_turn_starts_where_the_generation_prompt_and_the_finished_turn_part() {
    let reasoning = "{% for m in messages %}\
        {% if m.role == 'user' %}<U>{{ m.content }}{% else %}<A>{{ m.content }}<end>{% endif %}\
        {% endfor %}{% if add_generation_prompt %}<A><think>\n{% endif %}";
    let messages = [
        json!({"role": "user", "content": "why"}),
        json!({"role": "assistant", "content": "so"}),
        json!({"role": "user", "content": "how"}),
        json!({"role": "assistant", "content": "thus"}),
    ];
    let (text, spans) = template(reasoning).render_for_training(&messages).unwrap();
    let learned: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
    assert_eq!(learned, ["so<end>", "thus<end>"]);
}

/// The template of Mistral 7B Instruct v0.3: the system message stands in the last turn if that is
/// the user's, so that a finished conversation has none.
#[test]
fn a_turn_is_found_though_the_messages_before_it_are_rendered_differently() {
    let moving = "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}\
        {% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}\
        {% for m in rest %}{% if m.role == 'user' %}\
        [I]{% if loop.last and system is defined %}{{ system }}: {% endif %}{{ m.content }}[/I]\
        {% else %} {{ m.content }}</s>{% endif %}{% endfor %}";
    let messages = [
        json!({"role": "system", "content": "be kind"}),
        json!({"role": "user", "content": "why"}),
        json!({"role": "assistant", "content": "so"}),
        json!({"role": "user", "content": "how"}),
        json!({"role": "assistant", "content": "thus"}),
    ];
    let (text, spans) = template(moving).render_for_training(&messages).unwrap();
    assert_eq!(text, "[I]why[/I] so</s>[I]how[/I] thus</s>");
    let learned: Vec<&str> = spans.into_iter().map(|span| &text[span]).collect();
    assert_eq!(learned, ["so</s>", "thus</s>"]);
}

#[test]
fn content_is_a_text_or_parts_with_texts() {
    let chatml = template(CHATML);
    let turn = |content: serde_json::Value| [json!({"role": "user", "content": content})];
    let whole = chatml.render(&turn(json!("one two")), false).unwrap();
    let parts = json!([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]);
    assert_eq!(chatml.render(&turn(parts), false).unwrap(), whole);
    for (content, problem) in [
        (json!([{"type": "image", "url": "x"}]), "a part `image`"),
        (json!(7), "is `7`"),
        (json!({"text": "x"}), "a list of parts"),
    ] {
        let message = reason(chatml.render(&turn(content), false));
        assert!(message.contains(problem), "{message}");
    }
}

#[test]
fn a_turns_end_is_a_special_token() {
    assert_eq!(language_tokenizer().end_of_turn().unwrap(), Some(201));
    let plain = character_tokenizer(&json!({
        "chat_template": "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    }));
    assert_eq!(plain.end_of_turn().unwrap(), None);
}

/// What a stranger's template can cost: each of these hung or ended the program.
#[test]
fn templates_run_within_limits() {
    let twice = |change: &str| {
        format!(
            "{{% set ns = namespace(x='xx', y=[1]) %}}{{% for i in range(1000) %}}\
             {{% set ns.x = {change} %}}{{% endfor %}}{{{{ ns.x }}}}"
        )
    };
    let long = "long text ".repeat(6000);
    let sources = [
        "{{ 'x' * 100000000 }}".into(),
        "{{ [1] * 100000000 }}".into(),
        "{{ (1, 2) * 100000000 }}".into(),
        "{{ 100000000 * [1] }}".into(),
        "{{ ([1] * 100000)|map('replace', '1', 'x' * 100000)|list }}".into(),
        "{{ messages|tojson(indent=100000000000) }}".into(),
        "{{ '%100000000000d'|format(1) }}".into(),
        "{{ '%*d'|format(100000000000, 1) }}".into(),
        "{{ '{:>100000000000}'.format('x') }}".into(),
        "{{ 'a\nb'|indent(100000000000) }}".into(),
        "{{ 'a\nb'|indent(width=100000000000) }}".into(),
        "{{ [1]|batch(100000000000, 0) }}".into(),
        "{{ [1]|slice(100000000000, 0) }}".into(),
        twice("ns.x ~ ns.x"),
        twice("ns.x + ns.x"),
        twice("[ns.x, ns.x]"),
        twice("(ns.x, ns.x)"),
        twice("{'a': ns.x, 'b': ns.x}"),
        twice("dict(a=ns.x, b=ns.x)"),
        twice("ns.x.replace('x', 'xxx')"),
        twice("ns.x|replace('', 'xxx')"),
        twice("ns.x|join(ns.x)"),
        twice("ns.x.join(ns.x)"),
        twice("ns.x|list + ns.x|list"),
        twice("[ns.x]"),
        twice("ns"),
        twice("[ns]"),
        twice("{'a': ns}"),
        format!("{{% for i in range(100000) %}}{long}{{% endfor %}}"),
        format!("{{{{ a{} }}}}", "~a".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ {}a }}}}", "not ".repeat(60_000)),
        format!("{{{{ {}a }}}}", "-".repeat(100_000)),
        format!("{{{{ {} }}}}", "(".repeat(100_000)),
        format!("{{{{ {} }}}}", "[".repeat(100_000)),
        "{% if a %}".repeat(20_000),
        format!("{{% if a %}}{}", "{% elif a %}".repeat(20_000)),
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% include 'chat_template' %}".into(),
        "x".repeat(1_000_000),
    ];
    let messages = [json!({"role": "user", "content": "a"})];
    for source in sources {
        let made = ChatTemplate::new(&source, &IndexMap::new());
        let error = made.and_then(|made| made.render(&messages, false));
        let start: String = source.chars().take(100).collect();
        let error = error.map(|text| text.len()).expect_err(&start);
        let typed = matches!(
            error,
            DataError::ChatTemplateLimit(_) | DataError::ChatTemplate { .. }
        );
        assert!(typed, "{start}: {error}");
    }
    let endless =
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let error = template(endless).render(&messages, false).unwrap_err();
    assert!(
        matches!(error, DataError::ChatTemplateLimit(TemplateLimit::Fuel)),
        "{error}"
    );
    let error = template(&twice("ns.x ~ ns.x")).render(&messages, false);
    assert_eq!(
        error.unwrap_err().to_string(),
        "chat template: it makes a value of more than 16777216 bytes: use the template of a model \
         that you trust"
    );
}

/// What limits rewrite still does what it did.
#[test]
fn limits_change_no_text() {
    let source = "{%- macro shout(text, mark='!') -%}{{ text|upper }}{{ mark * 2 }}{%- endmacro -%}\
        {%- set ns = namespace(seen=0, text='') -%}\
        {%- for m in messages if m.role != 'system' -%}\
        {%- if loop.first %}first {% elif loop.last %}last {% endif -%}\
        {%- set ns.seen = ns.seen + 1 -%}{%- set ns.text = ns.text ~ m.content[0] -%}\
        {{ shout(m.content) }}{% if loop.index == 3 %}{% break %}{% endif %}{%- else -%}none\
        {%- endfor -%}{% set block %}<{{ ns.text }}>{% endset %}{{ block }}{{ ns.seen }}\
        {{ [1, 2]|map('string')|join('-') }}{{ messages|map(attribute='role')|join(',') }}\
        {{ 'a\nb'|indent(2) }}{{ ([1] * 3)|length }}{{ 'a' in 'abc' and not false }}\
        {{ '%s-%d'|format('x', 3) }}{{ 'x{}'.format(4) }}{{ {'a': [1]}|tojson }}\
        {{ [1, 2, 3]|batch(2, 0)|list }}{{ 'a,b'.split(',')[-1] }}{{ (1, 2)[0] }}";
    let turn = |role: &str, content: &str| json!({"role": role, "content": content});
    let messages = [
        turn("system", "s"),
        turn("user", "hi"),
        turn("assistant", "ho"),
    ];
    assert_eq!(
        template(source).render(&messages, false).unwrap(),
        "first HI!!last HO!!<hh>21-2system,user,assistanta\n  b3Truex-3x4{\"a\": [1]}\
         [[1, 2], [3, 0]]b1"
    );
}

#[test]
fn null_members_count_as_absent() {
    let source = "{{ 'absent' if messages[0].tool_calls is not defined else 'there' }}";
    let messages = [json!({"role": "assistant", "content": "a", "tool_calls": null})];
    assert_eq!(template(source).render(&messages, false).unwrap(), "absent");
}

#[test]
fn the_template_file_takes_precedence_over_the_configuration() {
    let render = |tokenizer: &Tokenizer| {
        tokenizer
            .chat_template()
            .unwrap()
            .render(&[], false)
            .unwrap()
    };
    let plain =
        character_tokenizer(&json!({"bos_token": "<s>", "chat_template": "{{ bos_token }}config"}));
    assert_eq!(render(&plain), "<s>config");
    let named = character_tokenizer(&json!({"chat_template": [
        {"name": "tool_use", "template": "tools"}, {"name": "default", "template": "default"}
    ]}));
    assert_eq!(render(&named), "default");
    let config = json!({"chat_template": "config"});
    let directory = directory(&[
        ("tokenizer.json", &character_file(&json!(null))),
        ("tokenizer_config.json", &config),
    ]);
    std::fs::write(directory.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(render(&Tokenizer::load(directory.path()).unwrap()), "file");
    let error = character_tokenizer(&json!({})).chat_template().unwrap_err();
    assert!(
        matches!(error, DataError::ChatTemplateMissing { .. }),
        "{error}"
    );
}
