//! From logits to the answer of a question, as `utils_qa.py` of transformers' examples decodes
//! them.

use epiphyte_data::Window;

use super::evaluate::softmax;

/// This many of the best first tokens are tried with as many of the best last tokens, and this many
/// answers compete.
const N_BEST: usize = 20;

/// How answers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerRules {
    /// The longest answer in tokens.
    pub(crate) max_answer_length: usize,
    /// Whether a question may have no answer.
    pub(crate) may_be_absent: bool,
}

/// The answer to a question.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FoundAnswer {
    /// Where it is in its text, in characters; none where there is no answer.
    pub(crate) part: Option<(usize, usize)>,
    /// Its probability among those that competed.
    pub(crate) probability: f64,
}

impl FoundAnswer {
    /// Its words, of its text; empty where there is no answer.
    pub(crate) fn text<'c>(&self, context: &'c str) -> &'c str {
        let (start, end) = self.part.unwrap_or((0, 0));
        let bytes = context.char_indices().map(|(byte, _)| byte);
        let mut ends = bytes.chain([context.len()]).skip(start);
        let first = ends.next().unwrap_or(context.len());
        let last = (end > start).then(|| ends.nth(end - start - 1));
        last.map_or("", |last| &context[first..last.unwrap_or(context.len())])
    }
}

/// One that competes: its part of the text, none for no answer, and the sum of its two logits.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    part: Option<(usize, usize)>,
    score: f32,
}

/// The best answer of all windows of a text, each with its logits, `[tokens, 2]`.
pub(crate) fn best_answer(windows: &[(&Window, &[f32])], rules: AnswerRules) -> FoundAnswer {
    let mut candidates = Vec::new();
    let mut absent: Option<f32> = None;
    for (window, logits) in windows {
        let column =
            |side: usize| -> Vec<f32> { logits.chunks(2).map(|logits| logits[side]).collect() };
        let [starts, ends] = [column(0), column(1)];
        // All windows must agree that there is no answer.
        let score = starts[0] + ends[0];
        absent = Some(absent.map_or(score, |least| least.min(score)));
        for &first in &best(&starts) {
            for &last in &best(&ends) {
                let (Some(from), Some(to)) = (window.offsets[first], window.offsets[last]) else {
                    continue;
                };
                if last < first || last - first + 1 > rules.max_answer_length {
                    continue;
                }
                candidates.push(Candidate {
                    part: Some((from.0, to.1)),
                    score: starts[first] + ends[last],
                });
            }
        }
    }
    let absent = Candidate {
        part: None,
        score: absent.unwrap_or(0.0),
    };
    if rules.may_be_absent {
        candidates.push(absent);
    }
    candidates.sort_by(|a, b| b.score.total_cmp(&a.score));
    candidates.truncate(N_BEST);
    let is_empty = |it: &Candidate| it.part.is_none_or(|(start, end)| start >= end);
    if rules.may_be_absent && candidates.iter().all(|it| it.part.is_some()) {
        candidates.push(absent);
    }
    let scores: Vec<f32> = candidates.iter().map(|it| it.score).collect();
    let probabilities = softmax(&scores);
    let mut numbers = 0..candidates.len();
    let best = match rules.may_be_absent {
        true => {
            let best = numbers.clone().find(|&it| !is_empty(&candidates[it]));
            let best = best.filter(|&it| absent.score <= candidates[it].score);
            best.or_else(|| numbers.find(|&it| candidates[it].part.is_none()))
        }
        false => numbers.next(),
    };
    FoundAnswer {
        part: best.and_then(|it| candidates[it].part),
        probability: best.map_or(0.0, |it| probabilities[it]),
    }
}

/// The positions of the largest values, the largest first.
fn best(values: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order.truncate(N_BEST);
    order
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        decoding: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        context: String,
        windows: Vec<GoldenWindow>,
        version_2_with_negative: bool,
        max_answer_length: usize,
        answer: String,
        probability: f64,
    }

    #[derive(Deserialize)]
    struct GoldenWindow {
        offsets: Vec<Option<(usize, usize)>>,
        logits: Vec<[f32; 2]>,
    }

    /// `tests/parity/make_answers.py` computes them.
    #[test]
    fn answers_are_those_of_the_examples_of_transformers() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden_answers.json")).unwrap();
        assert!(golden.decoding.len() >= 20);
        for (number, case) in golden.decoding.into_iter().enumerate() {
            let windows: Vec<(Window, Vec<f32>)> = case
                .windows
                .into_iter()
                .map(|window| {
                    let ids = vec![0; window.offsets.len()];
                    let logits = window.logits.concat();
                    let window = Window {
                        type_ids: ids.clone(),
                        ids,
                        offsets: window.offsets,
                    };
                    (window, logits)
                })
                .collect();
            let windows: Vec<(&Window, &[f32])> =
                windows.iter().map(|(a, b)| (a, b.as_slice())).collect();
            let rules = AnswerRules {
                max_answer_length: case.max_answer_length,
                may_be_absent: case.version_2_with_negative,
            };
            let found = best_answer(&windows, rules);
            let text = found.text(&case.context);
            assert_eq!(text, case.answer, "case {number}");
            let distance = (found.probability - case.probability).abs();
            assert!(
                distance < 1e-5,
                "case {number}: {found:?}, {}",
                case.probability
            );
        }
    }
}
