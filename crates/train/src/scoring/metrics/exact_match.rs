//! Shares of texts that say the same as a reference.

use super::texts::ScoredText;

/// `exact_match`: texts that equal a reference, spaces around both left out.
pub(super) fn whole_texts(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let equal = |scored: &&ScoredText<'_>| {
        let mut references = scored.references.iter();
        references.any(|reference| reference.trim() == scored.text.trim())
    };
    vec![("exact_match", share(texts, equal))]
}

/// `final_answer`: texts with the same number behind `####` as a reference. A text without one is
/// wrong, whatever the reference has.
pub(super) fn final_answers(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let equal = |scored: &&ScoredText<'_>| {
        let answer = final_answer(scored.text);
        let mut references = scored.references.iter().map(|it| final_answer(it));
        answer.is_some() && references.any(|reference| reference == answer)
    };
    vec![("final_answer", share(texts, equal))]
}

/// `math_answer`: texts with the same answer behind MetaMath's or GSM8K's mark as a reference, as
/// `get_accuracy` of HF PEFT's `method_comparison/MetaMathQA/utils.py` compares them. A text or a
/// reference without a mark is wrong; there, such a reference is an error.
pub(super) fn math_answers(texts: &[ScoredText<'_>]) -> Vec<(&'static str, f64)> {
    let equal = |scored: &&ScoredText<'_>| {
        let answer = math_answer(scored.text);
        let mut references = scored.references.iter().map(|it| math_answer(it));
        answer.is_some() && references.any(|reference| reference == answer)
    };
    vec![("math_answer", share(texts, equal))]
}

/// The share of texts for which something holds.
fn share(texts: &[ScoredText<'_>], holds: impl FnMut(&&ScoredText<'_>) -> bool) -> f64 {
    texts.iter().filter(holds).count() as f64 / texts.len() as f64
}

/// The number behind the first `#### ` that has one, without its commas: GSM8K's
/// `#### (\-?[0-9\.\,]+)`.
fn final_answer(text: &str) -> Option<String> {
    let starts = text
        .match_indices("#### ")
        .map(|(at, mark)| &text[at + mark.len()..]);
    let mut numbers = starts.filter_map(|rest| {
        let (sign, rest) = match rest.strip_prefix('-') {
            Some(rest) => ("-", rest),
            None => ("", rest),
        };
        let is_part = |it: char| it.is_ascii_digit() || matches!(it, '.' | ',');
        let end = rest.find(|it| !is_part(it)).unwrap_or(rest.len());
        (end > 0).then(|| format!("{sign}{}", rest[..end].replace(',', "")))
    });
    numbers.next()
}

/// What stands before a final answer; the first of these that a text has counts, at its last place.
const MARKS: [&str; 5] = [
    "The answer is: ",
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
];

/// A final answer.
#[derive(PartialEq)]
enum Answer<'a> {
    /// A decimal number or a fraction.
    Number(f64),
    /// Anything else.
    Text(&'a str),
}

/// The answer behind the last mark, up to the end of its line.
fn math_answer(text: &str) -> Option<Answer<'_>> {
    let text = text.trim().trim_end_matches(['.', '!', '?']);
    let mark = MARKS.into_iter().find(|mark| text.contains(mark))?;
    let (_, answer) = text.rsplit_once(mark)?;
    let line = answer.trim().split('\n').next()?;
    let answer = line.trim_matches([' ', '.', '!', '?', '$', '%']);
    Some(number(answer).map_or(Answer::Text(answer), Answer::Number))
}

/// A decimal number, or a fraction of two. Python's digits may have underscores between them.
fn number(text: &str) -> Option<f64> {
    let decimal = |text: &str| text.trim().replace('_', "").parse::<f64>().ok();
    match text.split_once('/') {
        None => decimal(text),
        Some((numerator, denominator)) => {
            let denominator = decimal(denominator).filter(|&it| it != 0.0)?;
            Some(decimal(numerator)? / denominator)
        }
    }
}
