//! Limits of chat templates: a template is a program that comes with a stranger's model.
//!
//! The source is bounded before it is parsed. Rendering runs with fuel, a limit on the size and the
//! depth of every value, a limit on the bytes made in all, and a time limit for what fuel does not
//! measure. For this the compiled instructions are rewritten: a check follows each instruction that
//! makes a value, so that every value that another instruction reads is small.

use std::cell::Cell;
use std::time::{Duration, Instant};

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{ObjectRepr, Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat;

/// The longest source. The longest templates of published models have about 30 KiB.
const SOURCE_BYTES: usize = 256 << 10;
/// Tags in a source.
const TAGS: usize = 10_000;
/// Tokens in a tag: a long chain of operators is as deep for the parser as it is long.
const TAG_TOKENS: usize = 2_000;
/// Instructions of one rendering.
const FUEL: u64 = 10_000_000;
/// Macros and recursive loops inside each other.
const RECURSION: usize = 100;
/// Bytes of one value, with everything in it.
const VALUE_BYTES: usize = 16 << 20;
/// Bytes that a number, or an element of a list, counts for.
const ELEMENT_BYTES: usize = 32;
/// Lists inside each other in a value.
const VALUE_DEPTH: usize = 100;
/// Bytes of all values and all output of one rendering.
const TOTAL_BYTES: usize = 256 << 20;
/// Far longer than any conversation takes.
const TIME: Duration = Duration::from_secs(20);

/// Enough for the deepest syntax tree that the limits on a source leave.
const PARSER_STACK: usize = 256 << 20;

/// The names of our checks as filters.
const BOUNDED: &str = "__bounded";
const FACTORS: &str = "__factors";
const STORABLE: &str = "__storable";
const IN_TIME: &str = "__in_time";

/// A limit that a chat template exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateLimit {
    /// A long source.
    #[error("its source has more than {SOURCE_BYTES} bytes")]
    Source,
    /// Many tags.
    #[error("it has more than {TAGS} tags")]
    Tags,
    /// A long tag.
    #[error("a tag in line {line} has more than {TAG_TOKENS} tokens")]
    Tag {
        /// The line where the tag starts, from 1.
        line: usize,
    },
    /// Many instructions.
    #[error("it runs for more than {FUEL} instructions")]
    Fuel,
    /// A large value.
    #[error("it makes a value of more than {VALUE_BYTES} bytes")]
    Value,
    /// A deep value, or one that holds itself.
    #[error("it makes a value with more than {VALUE_DEPTH} lists inside each other")]
    Depth,
    /// Much output.
    #[error("its values and its output have more than {TOTAL_BYTES} bytes together")]
    Total,
    /// Much time.
    #[error("it runs for more than {} seconds", TIME.as_secs())]
    Time,
}

impl TemplateLimit {
    /// The limit that caused an error of the template engine.
    pub(super) fn of(error: &Error) -> Option<Self> {
        if error.kind() == ErrorKind::OutOfFuel {
            return Some(Self::Fuel);
        }
        let mut source = std::error::Error::source(error);
        while let Some(error) = source {
            if let Some(limit) = error.downcast_ref() {
                return Some(*limit);
            }
            source = error.source();
        }
        None
    }
}

impl From<TemplateLimit> for Error {
    fn from(limit: TemplateLimit) -> Self {
        Self::new(ErrorKind::InvalidOperation, "a limit of chat templates").with_source(limit)
    }
}

/// Checks a template's source before anything parses it.
pub(super) fn check_source(source: &str, syntax: &SyntaxConfig) -> Result<(), TemplateLimit> {
    if source.len() > SOURCE_BYTES {
        return Err(TemplateLimit::Source);
    }
    let (mut tags, mut tokens, mut line) = (0, 0, 0);
    // Where the tokens end with an error, the parser will say what is wrong.
    for (token, span) in tokenize(source, false, syntax.clone()).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => {
                (tags, tokens, line) = (tags + 1, 0, usize::from(span.start_line));
            }
            _ => tokens += 1,
        }
        if tags > TAGS {
            return Err(TemplateLimit::Tags);
        }
        if tokens > TAG_TOKENS {
            return Err(TemplateLimit::Tag { line });
        }
    }
    Ok(())
}

/// Runs the parser, which calls itself for each level of a template, where the stack is large.
pub(super) fn with_parser_stack<T: Send>(parse: impl FnOnce() -> T + Send) -> std::io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK);
        let thread = thread.spawn_scoped(scope, parse)?;
        thread
            .join()
            .map_err(|_| std::io::Error::other("the template parser panicked"))
    })
}

/// Sets the limits of rendering, and replaces the filters whose result can be far larger than what
/// they read.
pub(super) fn limit(environment: &mut Environment<'_>) {
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_formatter(
        |output: &mut Output<'_>, state: &mut State<'_, '_>, value| {
            spend(measure(value)?)?;
            minijinja::escape_formatter(output, state, value)
        },
    );
    environment.set_unknown_method_callback(|state, value, method, args| {
        if let Some(text) = value.as_str() {
            match method {
                "replace" => check_replace(text, args)?,
                "join" => {
                    let list = args.first().cloned().unwrap_or_default();
                    check_product(list.len().unwrap_or(0), text.len())?;
                }
                "format" => check_format(text)?,
                _ => {}
            }
        }
        pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.add_filter(BOUNDED, |value: Value| -> Result<Value, Error> {
        spend(measure(&value)?)?;
        Ok(value)
    });
    environment.add_filter(FACTORS, |one: Value, other: Value| {
        for (value, factor) in [(&one, &other), (&other, &one)] {
            if let Some(factor) = size(factor) {
                check_product(measure(value)?, factor)?;
            }
        }
        // `UnpackList` puts the last on the stack first.
        Ok::<_, Error>(Value::from(vec![other, one]))
    });
    environment.add_filter(IN_TIME, |value: Value| -> Result<Value, Error> {
        spend(0)?;
        Ok(value)
    });
    environment.add_filter(STORABLE, |value: Value| match is_namespace(&value) {
        true => Err(Error::from(TemplateLimit::Depth)),
        false => Ok(value),
    });
    // Behind a check of its arguments, each of these is what the engine has.
    environment.add_filter("__join", filters::join);
    environment.add_filter("__replace", filters::replace);
    environment.add_filter("__indent", filters::indent);
    environment.add_filter("__batch", filters::batch);
    environment.add_filter("__slice", filters::slice);
    environment.add_filter("__format", filters::format);
    environment.add_filter("__map", filters::map);
    let checks: [(&'static str, Check); 6] = [
        ("join", |args| {
            let joiner = argument(args, 1, "d");
            let joiner = joiner.as_ref().and_then(Value::as_str).map_or(0, str::len);
            check_product(args[0].len().unwrap_or(0), joiner)
        }),
        ("replace", |args| {
            check_replace(args[0].as_str().unwrap_or(""), &args[1..])
        }),
        ("indent", |args| {
            let width = argument(args, 1, "width").and_then(|width| size(&width));
            let lines = args[0].as_str().map_or(0, |text| text.lines().count());
            check_product(lines + 1, width.unwrap_or(4))
        }),
        ("batch", check_count),
        ("slice", check_count),
        ("format", |args| {
            check_format(args[0].as_str().unwrap_or(""))
        }),
    ];
    for (name, check) in checks {
        environment.add_filter(
            name,
            move |state: &mut State<'_, '_>, value: Value, rest: Rest<ValueOrKwargs>| {
                let args = [vec![value], rest.into_values()].concat();
                check(&args)?;
                state.apply_filter(&format!("__{name}"), &args)
            },
        );
    }
    environment.add_filter("map", map);
    // None of these is a filter of Jinja, and each makes much of little.
    for name in ["chain", "zip", "pprint"] {
        environment.remove_filter(name);
    }
    environment.remove_global("debug");
}

/// A check of a filter's value and arguments.
type Check = fn(&[Value]) -> Result<(), Error>;

/// An argument by position, where the filter's value is at 0, or by name.
fn argument(args: &[Value], position: usize, name: &str) -> Option<Value> {
    let named = args.last().filter(|last| last.is_kwargs());
    let named = named.and_then(|kwargs| kwargs.get_attr(name).ok());
    let named = named.filter(|value| !value.is_undefined());
    let at = args.get(position).filter(|value| !value.is_kwargs());
    at.cloned().or(named)
}

/// `batch` and `slice` fill up to a number of elements.
fn check_count(args: &[Value]) -> Result<(), Error> {
    let count = argument(args, 1, "count").and_then(|count| size(&count));
    check_product(count.unwrap_or(0), ELEMENT_BYTES)
}

/// A value as a size, if it is one.
fn size(value: &Value) -> Option<usize> {
    usize::try_from(value.clone()).ok()
}

/// `map` with the name of a filter, of which each result counts; otherwise the engine's.
fn map(state: &mut State<'_, '_>, value: Value, rest: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    let rest = rest.into_values();
    let Some((name, rest)) = rest
        .split_first()
        .filter(|(name, _)| name.as_str().is_some())
    else {
        return state.apply_filter("__map", &[vec![value], rest].concat());
    };
    let name = name.as_str().unwrap_or_default();
    let mut mapped = Vec::new();
    for item in value.try_iter()? {
        let item = state.apply_filter(name, &[&[item], rest].concat())?;
        spend(measure(&item)?)?;
        mapped.push(item);
    }
    Ok(Value::from(mapped))
}

/// `str.replace(from, to)`.
fn check_replace(text: &str, args: &[Value]) -> Result<(), Error> {
    match (
        args.first().and_then(Value::as_str),
        args.get(1).and_then(Value::as_str),
    ) {
        (Some(from), Some(to)) => check_replaced(text, from, to),
        _ => Ok(()),
    }
}

fn check_replaced(text: &str, from: &str, to: &str) -> Result<(), Error> {
    match to.len() > from.len() {
        true => check_product(text.matches(from).count(), to.len()),
        false => Ok(()),
    }
}

/// Refuses a format text with a width or precision that is larger than a value may be.
fn check_format(text: &str) -> Result<(), Error> {
    let widths = text.split(|character: char| !character.is_ascii_digit());
    let mut sum = 0_usize;
    for width in widths.filter(|width| !width.is_empty()) {
        sum = sum.saturating_add(width.parse().unwrap_or(usize::MAX));
    }
    // A width of `*` is an argument, which may be any number.
    match text.contains('*') {
        true => Err(TemplateLimit::Value.into()),
        false => check_product(sum, 1),
    }
}

fn check_product(one: usize, other: usize) -> Result<(), Error> {
    match one.checked_mul(other) {
        Some(bytes) if bytes <= VALUE_BYTES => Ok(()),
        _ => Err(TemplateLimit::Value.into()),
    }
}

/// What is written may be as long as a value.
#[derive(Debug, Default)]
pub(super) struct BoundedText(pub(super) Vec<u8>);

impl std::io::Write for BoundedText {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > VALUE_BYTES {
            return Err(std::io::Error::other(TemplateLimit::Value));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Refuses a width that no value has room for.
pub(super) fn check_width(width: usize) -> Result<(), Error> {
    check_product(width, 1)
}

/// The bytes of a value with everything in it. What is shared counts each time.
fn measure(value: &Value) -> Result<usize, TemplateLimit> {
    fn add(value: &Value, depth: usize, sum: &mut usize) -> Result<(), TemplateLimit> {
        if depth > VALUE_DEPTH {
            return Err(TemplateLimit::Depth);
        }
        *sum += ELEMENT_BYTES + value.as_str().map_or(0, str::len);
        if *sum > VALUE_BYTES {
            return Err(TemplateLimit::Value);
        }
        let repr = value.as_object().map(|object| object.repr());
        match repr {
            Some(ObjectRepr::Seq | ObjectRepr::Iterable) => {
                for item in value.try_iter().into_iter().flatten() {
                    add(&item, depth + 1, sum)?;
                }
            }
            Some(ObjectRepr::Map) => {
                for key in value.try_iter().into_iter().flatten() {
                    let held = value.get_item(&key).unwrap_or_default();
                    if is_namespace(&held) {
                        return Err(TemplateLimit::Depth);
                    }
                    add(&key, depth + 1, sum)?;
                    add(&held, depth + 1, sum)?;
                }
            }
            _ => {}
        }
        if depth > 0 && is_namespace(value) {
            return Err(TemplateLimit::Depth);
        }
        Ok(())
    }
    let mut sum = 0;
    add(value, 0, &mut sum)?;
    Ok(sum)
}

/// Whether a value can be changed, so that it could come to hold itself.
fn is_namespace(value: &Value) -> bool {
    let name = value.as_object().map(|object| object.type_name());
    value.kind() == ValueKind::Map && name.is_some_and(|name| name.ends_with("::Namespace"))
}

thread_local! {
    /// The bytes left to the rendering on this thread, and when it has to end.
    static LEFT: Cell<(usize, Option<Instant>)> = const { Cell::new((0, None)) };
}

/// Takes bytes from those that the rendering may make.
fn spend(bytes: usize) -> Result<(), TemplateLimit> {
    let (left, end) = LEFT.get();
    let left = left.checked_sub(bytes).ok_or(TemplateLimit::Total)?;
    LEFT.set((left, end));
    match end.is_some_and(|end| Instant::now() > end) {
        true => Err(TemplateLimit::Time),
        false => Ok(()),
    }
}

/// Renders a compiled template within the limits.
pub(super) fn render<'env>(
    environment: &'env Environment<'env>,
    template: &CompiledTemplate<'env>,
    context: Value,
) -> Result<String, Error> {
    LEFT.set((TOTAL_BYTES, Instant::now().checked_add(TIME)));
    let instructions = checked(&template.instructions)?;
    let blocks = template.blocks.iter();
    let blocks = blocks.map(|(name, block)| Ok((*name, checked(block)?)));
    let blocks = blocks.collect::<Result<_, Error>>()?;
    let mut text = String::new();
    let mut output = minijinja::machinery::make_string_output(&mut text);
    minijinja::machinery::eval(
        environment,
        &instructions,
        context,
        &blocks,
        &mut output,
        template.initial_auto_escape.clone(),
    )?;
    drop(output);
    Ok(text)
}

/// The instructions with a check after each that makes a value.
fn checked<'s>(template: &Instructions<'s>) -> Result<Instructions<'s>, Error> {
    let filter = |name, count| Instruction::ApplyFilter(name, Some(count), u8::MAX);
    let mut rewritten = Vec::new();
    let mut places = Vec::new();
    for index in 0.. {
        places.push(rewritten.len() as u32);
        let Some(instruction) = template.get(index) else {
            break;
        };
        let mut push = |instruction| rewritten.push((instruction, index));
        let own = instruction.clone();
        match instruction {
            Instruction::Include(_) | Instruction::LoadBlocks => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    "a chat template cannot include, import or extend another template",
                ));
            }
            Instruction::EmitRaw(text) => {
                push(Instruction::LoadConst(Value::from_safe_string(
                    (*text).to_owned(),
                )));
                push(Instruction::Emit);
            }
            // The loop's item.
            Instruction::Iterate(_) => {
                push(own);
                push(filter(IN_TIME, 1));
            }
            Instruction::SetAttr(_) => {
                // The value lies below the namespace that takes it.
                push(Instruction::Swap);
                push(filter(STORABLE, 1));
                push(Instruction::Swap);
                push(own);
            }
            Instruction::Mul => {
                push(filter(FACTORS, 2));
                push(Instruction::UnpackList(2));
                push(own);
                push(filter(BOUNDED, 1));
            }
            Instruction::Add
            | Instruction::StringConcat
            | Instruction::BuildList(_)
            | Instruction::BuildTuple(_)
            | Instruction::BuildMap(_)
            | Instruction::Slice
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_)
            | Instruction::EndCapture => {
                push(own);
                push(filter(BOUNDED, 1));
            }
            _ => push(own),
        }
    }
    let mut instructions = Instructions::new(template.name(), template.source());
    for (mut instruction, index) in rewritten {
        match &mut instruction {
            Instruction::Iterate(target)
            | Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::BuildMacro(_, target, _) => *target = places[*target as usize],
            _ => {}
        }
        match (template.get_span(index), template.get_line(index)) {
            (Some(span), _) => instructions.add_with_span(instruction, span),
            (None, Some(line)) => instructions.add_with_line(instruction, line as u16),
            (None, None) => instructions.add(instruction),
        };
    }
    Ok(instructions)
}
