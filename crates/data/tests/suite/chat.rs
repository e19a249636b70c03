//! Chat templates: errors, the clock, and the files that hold templates. `golden.rs` compares texts
//! with `transformers`.

use std::time::{Duration, SystemTime};

use epiphyte_data::{ChatTemplate, DataError, Tokenizer};
use indexmap::IndexMap;
use serde_json::json;

use crate::support::{character_file, character_tokenizer, directory};

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
fn the_clock_can_be_stopped() {
    let dated = template("{{ strftime_now('%Y') }}")
        .at(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    assert_eq!(dated.render(&[], false).unwrap(), "2001");
    assert!(reason(template("{{ strftime_now('%Q') }}").render(&[], false)).contains("%Q"));
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
