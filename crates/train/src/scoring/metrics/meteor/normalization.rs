//! METEOR's own words of a text in English (`-norm`): the tokenizer of Moses, with one kind of
//! quotes and dashes, words with hyphens in parts, and abbreviations without their points.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// Letters of Western Europe, Cyrillic ones, and phonetic ones.
const ALPHA: &str = "A-Za-z\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{17e}\
    \u{400}-\u{527}\u{a640}-\u{a66e}\u{a67e}-\u{a697}\u{1d00}-\u{1d7f}";

/// One of them.
static LETTER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(&format!("[{ALPHA}]")).expect("the class is valid"));

/// What is replaced one after another, wherever it stands.
static RULES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules = [
        // Whatever may not be part of a word.
        (
            format!(r"([^0-9{ALPHA} \t\n\x0b\x0c\r.'`,\-\u{{2018}}\u{{2019}}])"),
            " $1 ",
        ),
        (r"(\.\.+)".to_owned(), " $1 "),
        // Commas, but for those within numbers.
        ("([^0-9]),([^0-9])".to_owned(), "$1 , $2"),
        ("([0-9]),([^0-9])".to_owned(), "$1 , $2"),
        ("([^0-9]),([0-9])".to_owned(), "$1 , $2"),
        // Quotes.
        (r"[`\u{2018}\u{2019}]".to_owned(), "'"),
        (r"[\u{201c}\u{201d}]|''".to_owned(), " \" "),
        // Dashes and hyphens.
        (r"\u{2013}".to_owned(), "-"),
        ("--".to_owned(), "-"),
        (format!("([0-9{ALPHA}.])-([0-9{ALPHA}])"), "$1 $2"),
        // Contractions.
        (format!("([^{ALPHA}])'([^{ALPHA}])"), "$1 ' $2"),
        (format!("([^0-9{ALPHA}])'([{ALPHA}])"), "$1 ' $2"),
        (format!("([{ALPHA}])'([^{ALPHA}])"), "$1 ' $2"),
        (format!("([{ALPHA}])'([{ALPHA}])"), "$1 '$2"),
        ("([0-9])'(s)".to_owned(), "$1 '$2"),
    ];
    let compiled = rules.into_iter().map(|(rule, replacement)| {
        let rule = Regex::new(&rule).expect("the rule is valid");
        (rule, replacement)
    });
    compiled.collect()
});

/// Abbreviations whose point does not end a sentence.
#[derive(Debug)]
pub(super) struct Prefixes {
    /// For each whether it is one only where a number follows.
    only_numeric: HashMap<String, bool>,
}

impl Prefixes {
    /// Reads a list of Moses: a line each, without the point, and comments behind `#`.
    pub(super) fn read(list: &str) -> Self {
        let entries = list.lines().filter_map(|line| {
            let mut words = line.split_ascii_whitespace();
            let prefix = words.next().filter(|word| !word.starts_with('#'))?;
            Some((prefix.to_owned(), words.next() == Some("#NUMERIC_ONLY#")))
        });
        Self {
            only_numeric: entries.collect(),
        }
    }

    /// Whether the point behind a word belongs to it.
    fn keep_point(&self, word: &str, next: Option<&str>) -> bool {
        let first = next.and_then(|next| next.chars().next());
        match self.only_numeric.get(word) {
            Some(false) => true,
            _ if first.is_some_and(|it| it.is_ascii_lowercase()) => true,
            Some(true) => first.is_some_and(|it| it.is_ascii_digit()),
            None => false,
        }
    }
}

/// The words of a text, in lower case.
pub(super) fn words(text: &str, prefixes: &Prefixes) -> Vec<String> {
    let mut text = format!(" {text} ");
    for (rule, replacement) in RULES.iter() {
        text = rule.replace_all(&text, *replacement).into_owned();
    }
    let pieces = text.split([' ', '\t', '\n', '\r', '\x0c']);
    let pieces: Vec<&str> = pieces.filter(|piece| !piece.is_empty()).collect();
    let mut words = Vec::with_capacity(pieces.len());
    for (at, &piece) in pieces.iter().enumerate() {
        let word = piece.strip_suffix('.').filter(|word| !word.is_empty());
        match word {
            // Dots, or no point at all.
            None => words.push(piece.to_owned()),
            Some(word) if word.ends_with('.') => words.push(piece.to_owned()),
            Some(word) if word.contains('.') && LETTER.is_match(word) => {
                words.push(word.replace('.', ""));
            }
            Some(word) if prefixes.keep_point(word, pieces.get(at + 1).copied()) => {
                words.push(piece.to_owned());
            }
            Some(word) => words.extend([word.to_owned(), ".".to_owned()]),
        }
    }
    words.retain(|word| !word.chars().all(is_wide_space));
    words.iter().map(|word| word.to_lowercase()).collect()
}

/// Whether a character is a space of Unicode that stands between words.
fn is_wide_space(character: char) -> bool {
    matches!(
        character,
        '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}'
    )
}
