//! Chat templates: a conversation to the text format that the model was trained on.
//!
//! A template is Jinja, rendered as `transformers` renders it: `trim_blocks` and `lstrip_blocks`,
//! Python's string and dictionary methods, `raise_exception`, `strftime_now`, and a `tojson` that
//! does not escape `<`, `>` and `&`.
//!
//! Training needs the byte ranges that the assistant wrote. A template can mark them with
//! `{% generation %} … {% endgeneration %}`. Without such marks, prefixes of the conversation are
//! rendered: the text that an assistant's turn adds to the rendering of the turns before it
//! (generation prompt included) is the text that the model would have to write. Where a template
//! writes a finished turn in another way than it opens one, as those of reasoning models do, the
//! turn starts where both renderings part.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::LazyLock;

use indexmap::IndexMap;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, ErrorKind, Value, machinery};
use regex::Regex;
use serde::Serialize;
use serde_json::Value as Json;

use super::day::Day;
use super::limits::{self, TemplateLimit};
use crate::error::DataError;

/// Enclose the text of a `{% generation %}` block during rendering; removed once its byte range is
/// known. Unicode reserves both code points for internal use; a conversation that contains one is
/// rejected.
const GENERATION_START: char = '\u{fdd0}';
const GENERATION_END: char = '\u{fdd1}';

/// The name under which the template is registered.
const NAME: &str = "chat_template";

/// A parsed chat template with the special tokens that it may write.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: IndexMap<String, String>,
    marks_generation: bool,
}

impl ChatTemplate {
    /// Parses a template. `special_tokens` are the variables `bos_token`, `eos_token` and so on.
    /// `strftime_now` returns the day of this call; see [`ChatTemplate::on`].
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] with the line of the error; [`DataError::ChatTemplateLimit`].
    pub fn new(source: &str, special_tokens: &IndexMap<String, String>) -> Result<Self, DataError> {
        let (source, marks_generation) = name_generation_blocks(source);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        let syntax = syntax.map_err(template_error)?;
        limits::check_source(&source, &syntax).map_err(DataError::ChatTemplateLimit)?;
        environment.set_syntax(syntax);
        limits::limit(&mut environment);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<Value, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_filter("tojson", tojson);
        environment.add_filter("generation", |text: String| {
            format!("{GENERATION_START}{text}{GENERATION_END}")
        });
        let source = source.into_owned();
        limits::with_parser_stack(|| environment.add_template_owned(NAME, source))
            .map_err(|error| rejected(&error.to_string()))?
            .map_err(template_error)?;
        let template = Self {
            environment,
            special_tokens: special_tokens.clone(),
            marks_generation,
        };
        Ok(template.on(Day::today()))
    }

    /// The same template with `strftime_now` fixed at midnight of `day`, so that a run that is
    /// resumed another day sees the same text.
    #[must_use]
    pub fn on(mut self, day: Day) -> Self {
        self.environment
            .add_function("strftime_now", move |format: String| {
                let mut text = String::new();
                match write!(text, "{}", day.midnight().format(&format)) {
                    Ok(()) => Ok(text),
                    Err(_) => {
                        let reason = format!("strftime_now does not know the format `{format}`");
                        Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
                    }
                }
            });
        self
    }

    /// The text of a conversation: a list of objects with `role` and `content` (and any other
    /// member that the template reads). `add_generation_prompt` ends it with the opening of the
    /// assistant's next turn.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] if a message is not such an object, or the template rejects it.
    pub fn render(
        &self,
        messages: &[Json],
        add_generation_prompt: bool,
    ) -> Result<String, DataError> {
        Ok(self.render_marked(messages, add_generation_prompt)?.0)
    }

    /// The text of a conversation and the byte ranges of it that the assistant wrote, in order; the
    /// model learns these.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`]: as [`ChatTemplate::render`]; no turn of the assistant; or a
    /// template without `{% generation %}` that renders an earlier turn differently once a later
    /// one follows.
    pub fn render_for_training(
        &self,
        messages: &[Json],
    ) -> Result<(String, Vec<Range<usize>>), DataError> {
        let (text, mut spans) = self.render_marked(messages, false)?;
        if !self.marks_generation {
            for (turn, message) in messages.iter().enumerate() {
                if message["role"] == "assistant" {
                    spans.push(self.span_of_turn(messages, turn, &text)?);
                }
            }
        }
        if spans.iter().all(Range::is_empty) {
            return Err(rejected(
                "the conversation has no turn with role `assistant` to learn from",
            ));
        }
        Ok((text, spans))
    }

    /// The part of `text` that the assistant wrote in turn `turn`.
    fn span_of_turn(
        &self,
        messages: &[Json],
        turn: usize,
        text: &str,
    ) -> Result<Range<usize>, DataError> {
        let number = turn + 1;
        let marks = "enclose what the assistant writes in `{% generation %}` … \
                     `{% endgeneration %}` in the template";
        let through = self.render(&messages[..=turn], false)?;
        if !text.starts_with(&through) {
            return Err(rejected(&format!(
                "message {number} is rendered differently once other messages follow, so its \
                 place in the text is unknown: {marks}"
            )));
        }
        let before = match turn {
            0 => String::new(),
            _ => self.render(&messages[..turn], true)?,
        };
        if through.starts_with(&before) {
            return Ok(before.len()..through.len());
        }
        // The generation prompt is no beginning of the finished turn.
        if through.starts_with(&self.render(&messages[..turn], false)?) {
            return Ok(common_beginning(&before, &through)..through.len());
        }
        // The messages before are rendered differently, too. What stays the same with other content
        // stands before the content.
        let mut other = messages[..=turn].to_vec();
        let content = other[turn]["content"].as_str().unwrap_or_default();
        let first = content.trim_start().chars().next();
        let Some(first) = first else {
            return Err(rejected(&format!(
                "message {number} has no text, and the messages before it are rendered \
                 differently once it follows, so its place in the text is unknown: {marks}"
            )));
        };
        let differs = if first == 'a' { 'b' } else { 'a' };
        other[turn]["content"] = Json::from(content.replacen(first, &differs.to_string(), 1));
        let start = common_beginning(&self.render(&other, false)?, &through);
        if start == through.len() {
            return Err(rejected(&format!(
                "the content of message {number} is not in the text that the template makes: \
                 {marks}"
            )));
        }
        Ok(start..through.len())
    }

    /// The text that the template writes after an assistant's answer.
    ///
    /// # Errors
    /// [`DataError::ChatTemplate`] if the template rejects a conversation of two turns.
    pub fn after_answer(&self) -> Result<String, DataError> {
        const ANSWER: &str = "An answer.";
        let text = self.render(
            &[
                serde_json::json!({ "role": "user", "content": "A question?" }),
                serde_json::json!({ "role": "assistant", "content": ANSWER }),
            ],
            false,
        )?;
        let after = text.rsplit_once(ANSWER).map_or("", |(_, after)| after);
        Ok(after.to_owned())
    }

    /// Renders, and replaces the marks of `{% generation %}` by byte ranges.
    fn render_marked(
        &self,
        messages: &[Json],
        add_generation_prompt: bool,
    ) -> Result<(String, Vec<Range<usize>>), DataError> {
        let messages: Vec<Json> = messages
            .iter()
            .map(checked_message)
            .collect::<Result<_, _>>()?;
        let template = self
            .environment
            .get_template(NAME)
            .map_err(template_error)?;
        let special_tokens = self
            .special_tokens
            .iter()
            .map(|(name, token)| (name.as_str(), Value::from(token)));
        let variables = [
            ("messages", Value::from(Serde(&messages))),
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
        ];
        let context = Value::from_pairs(special_tokens.chain(variables));
        let compiled = machinery::get_compiled_template(&template);
        let marked =
            limits::render(&self.environment, compiled, context).map_err(template_error)?;

        let mut text = String::with_capacity(marked.len());
        let mut spans = Vec::new();
        let mut start = 0;
        for character in marked.chars() {
            match character {
                GENERATION_START => start = text.len(),
                GENERATION_END => spans.push(start..text.len()),
                _ => text.push(character),
            }
        }
        Ok((text, spans))
    }
}

/// Rewrites `{% generation %}` blocks as blocks of the filter of that name; returns whether there
/// are any.
fn name_generation_blocks(source: &str) -> (Cow<'_, str>, bool) {
    static TAG: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}").expect("the pattern is constant")
    });
    let replaced = TAG.replace_all(source, |tag: &regex::Captures<'_>| {
        let block = if tag.get(2).is_some() {
            "endfilter"
        } else {
            "filter generation"
        };
        format!("{{%{} {block} {}%}}", &tag[1], &tag[3])
    });
    let any = matches!(replaced, Cow::Owned(_));
    (replaced, any)
}

/// The message without its null members, which templates treat as absent.
fn checked_message(message: &Json) -> Result<Json, DataError> {
    let members = message
        .as_object()
        .ok_or_else(|| rejected("a message is not an object"))?;
    if !members.get("role").is_some_and(Json::is_string) {
        return Err(rejected(
            "a message has no text `role`: give it `user`, `assistant` or `system`",
        ));
    }
    if message
        .to_string()
        .contains([GENERATION_START, GENERATION_END])
    {
        return Err(rejected(
            "a message contains U+FDD0 or U+FDD1, which are reserved: remove them",
        ));
    }
    let present = members.iter().filter(|(_, value)| !value.is_null());
    let mut message: serde_json::Map<String, Json> = present
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if let Some(content) = message.get_mut("content") {
        *content = Json::String(content_text(content)?);
    }
    Ok(Json::Object(message))
}

/// The text of a message's content: a text, or a list of parts with a text each, joined.
fn content_text(content: &Json) -> Result<String, DataError> {
    let part_text = |part: &Json| match (part, part.get("text")) {
        (Json::String(text), _) => Ok(text.clone()),
        (_, Some(Json::String(text))) => Ok(text.clone()),
        _ => {
            let kind = part["type"].as_str().unwrap_or("without a type");
            Err(rejected(&format!(
                "the content of a message has a part `{kind}`, which is no text: remove it"
            )))
        }
    };
    match content {
        Json::String(text) => Ok(text.clone()),
        Json::Array(parts) => parts.iter().map(part_text).collect(),
        other => {
            let start: String = other.to_string().chars().take(40).collect();
            Err(rejected(&format!(
                "the `content` of a message is `{start}`: give a text, or a list of parts with a \
                 text each"
            )))
        }
    }
}

/// The bytes that two texts have in common from their beginning, in whole characters.
fn common_beginning(one: &str, other: &str) -> usize {
    let pairs = one.chars().zip(other.chars());
    pairs
        .take_while(|(one, other)| one == other)
        .map(|(character, _)| character.len_utf8())
        .sum()
}

/// Python's `json.dumps(value, ensure_ascii=False)`, as `transformers` defines the filter; that of
/// Jinja escapes HTML.
fn tojson(value: Value, kwargs: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;
    let failed = |error: serde_json::Error| match error.is_io() {
        // The text is longer than a value may be.
        true => TemplateLimit::Value.into(),
        false => minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()),
    };
    let mut json = serde_json::to_value(&value).map_err(failed)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    limits::check_width(indent.unwrap_or(0))?;
    let indent = indent.map(|width| " ".repeat(width));
    let mut bytes = limits::BoundedText::default();
    match &indent {
        Some(indent) => {
            let pretty = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            json.serialize(&mut serde_json::Serializer::with_formatter(
                &mut bytes, pretty,
            ))
        }
        None => json.serialize(&mut serde_json::Serializer::with_formatter(
            &mut bytes,
            PythonSeparators,
        )),
    }
    .map_err(failed)?;
    let mut text = String::from_utf8(bytes.0)
        .map_err(|error| minijinja::Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    if ensure_ascii == Some(true) {
        text = ascii_escaped(&text);
    }
    Ok(Value::from_safe_string(text))
}

/// Replaces each non-ASCII character of a JSON text by its escape; only strings contain any.
fn ascii_escaped(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        if character.is_ascii() {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

/// What stands between two values of an array or an object.
fn separate(writer: &mut (impl ?Sized + std::io::Write), first: bool) -> std::io::Result<()> {
    match first {
        true => Ok(()),
        false => writer.write_all(b", "),
    }
}

/// `", "` and `": "`, where serde_json writes no spaces.
struct PythonSeparators;

impl serde_json::ser::Formatter for PythonSeparators {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        separate(writer, first)
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn rejected(reason: &str) -> DataError {
    DataError::ChatTemplate {
        reason: reason.to_owned(),
    }
}

fn template_error(error: minijinja::Error) -> DataError {
    match TemplateLimit::of(&error) {
        Some(limit) => DataError::ChatTemplateLimit(limit),
        None => DataError::ChatTemplate {
            reason: error.to_string(),
        },
    }
}
