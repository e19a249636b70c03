//! The tokenizers of BLEU and NIST: that of NIST's script mteval-v13a (`13a`), and sacreBLEU's for
//! Chinese.

use std::sync::LazyLock;

use regex::Regex;

use super::ngrams::is_space;

/// What mteval-v13a sets spaces around: punctuation, and between numbers only what is no decimal
/// point or thousands separator.
static RULES: LazyLock<[(Regex, &str); 4]> = LazyLock::new(|| {
    let rule = |expression, replacement| {
        let expression = Regex::new(expression).expect("the expression is valid");
        (expression, replacement)
    };
    [
        rule(r"([\{-\~\[-\` -\&\(-\+\:-@/])", " $1 "),
        rule(r"([^0-9])([\.,])", "$1 $2 "),
        rule(r"([\.,])([^0-9])", " $1 $2"),
        rule(r"([0-9])(-)", "$1 $2 "),
    ]
});

/// The tokens of a text by the rules for Western languages.
pub(super) fn western(text: &str) -> Vec<String> {
    let text = text.trim_end_matches(is_space);
    let mut text = text
        .replace("<skipped>", "")
        .replace("-\n", "")
        .replace('\n', " ");
    for (name, character) in [
        ("&quot;", "\""),
        ("&amp;", "&"),
        ("&lt;", "<"),
        ("&gt;", ">"),
    ] {
        text = text.replace(name, character);
    }
    split(&format!(" {text} "))
}

/// The same in lower case, as the E2E challenge has it: an empty text has one token, which is
/// empty.
pub(super) fn lowercase(text: &str) -> Vec<String> {
    let tokens = western(text).into_iter();
    let tokens: Vec<String> = tokens.map(|token| token.to_lowercase()).collect();
    match tokens.is_empty() {
        true => vec![String::new()],
        false => tokens,
    }
}

/// The tokens of a text whose Chinese characters are tokens of their own.
pub(super) fn chinese(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for character in text.trim_matches(is_space).chars() {
        match is_chinese(character) {
            true => spaced.extend([' ', character, ' ']),
            false => spaced.push(character),
        }
    }
    split(&spaced)
}

/// Applies the rules.
fn split(text: &str) -> Vec<String> {
    let mut text = text.to_owned();
    for (expression, replacement) in RULES.iter() {
        text = expression.replace_all(&text, *replacement).into_owned();
    }
    let tokens = text.split(is_space).filter(|token| !token.is_empty());
    tokens.map(str::to_owned).collect()
}

/// Whether sacreBLEU takes a character as Chinese. Two of its ranges are of five digits where
/// Python reads four, and so are other ranges than meant.
fn is_chinese(character: char) -> bool {
    matches!(
        u32::from(character),
        0x3400..=0x4db5
            | 0x4e00..=0x9fa5
            | 0x9fa6..=0x9fbb
            | 0xf900..=0xfa2d
            | 0xfa30..=0xfa6a
            | 0xfa70..=0xfad9
            | 0x2001..=0x2a6d
            | 0x2f81..=0x2fa1
            | 0xff00..=0xffef
            | 0x2e80..=0x2eff
            | 0x3000..=0x303f
            | 0x31c0..=0x31ef
            | 0x2f00..=0x2fdf
            | 0x2ff0..=0x2fff
            | 0x3100..=0x312f
            | 0x31a0..=0x31bf
            | 0xfe10..=0xfe1f
            | 0xfe30..=0xfe4f
            | 0x3200..=0x32ff
            | 0x3300..=0x33ff
    )
}
