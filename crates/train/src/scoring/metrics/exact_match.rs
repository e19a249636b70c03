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
