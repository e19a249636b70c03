//! Beam search (Sutskever et al. 2014, arXiv:1409.3215, section 3.2), as `transformers` 5.23 has
//! it with `early_stopping=False`.
//!
//! Each step continues the `num_beams` best texts by every token and keeps the best of all. A text
//! that ends is set aside with its score, `log p / length^length_penalty`, if it was among the best
//! `num_beams` of its step. The search is over once `num_beams` texts have ended and the best of
//! those that go on, taken at its present length, is no better than the worst of them.

use epiphyte_models::{Adapter, Model};

use super::sampling::{largest, likelihoods};
use super::text::{Text, next_logits};
use super::{Generated, Generation, Room};
use crate::TrainError;

/// A continuation by one token.
struct Candidate {
    beam: usize,
    token: u32,
    /// The sum of the log probabilities of its new tokens.
    log_probability: f64,
}

/// The best continuation of `prompt`.
pub(super) fn search(
    model: &Model,
    adapter: &dyn Adapter,
    prompt: &[u32],
    how: &Generation,
    room: Room,
) -> Result<Generated, TrainError> {
    let kept = how.num_beams * (1 + how.stop.len()).max(2);
    let mut beams = vec![Text::new(adapter, prompt, how, room)];
    let mut scores = vec![0.0];
    // The texts that have ended, best first, with their scores.
    let mut ended: Vec<(f64, Generated)> = Vec::new();
    for length in 1..=room.tokens {
        let mut texts: Vec<&mut Text<'_>> = beams.iter_mut().collect();
        let mut logits = next_logits(model, adapter, &mut texts)?;
        let candidates = best(kept, how, &mut logits, &beams, &scores);
        let divisor = (length as f64).powf(how.length_penalty);
        let ends = |it: &Candidate| length == room.tokens || how.stop.contains(&it.token);
        for candidate in candidates.iter().take(how.num_beams) {
            if ends(candidate) {
                let text = &beams[candidate.beam];
                let mut ids = text.new_ids().to_vec();
                let end = text.end_before(candidate.token).unwrap_or_else(|| {
                    ids.push(candidate.token);
                    room.end
                });
                let score = candidate.log_probability / divisor;
                let at = ended.partition_point(|(other, _)| *other >= score);
                ended.insert(at, (score, Generated { ids, end }));
            }
        }
        ended.truncate(how.num_beams);
        let next = candidates.iter().filter(|candidate| !ends(candidate));
        let next: Vec<&Candidate> = next.take(how.num_beams).collect();
        let Some(first) = next.first() else {
            break;
        };
        let possible = first.log_probability / divisor;
        if ended.len() == how.num_beams && possible <= ended[how.num_beams - 1].0 {
            break;
        }
        scores = next.iter().map(|it| it.log_probability).collect();
        let continued = next.iter().map(|it| {
            let mut text = beams[it.beam].clone();
            text.push(it.token);
            text
        });
        beams = continued.collect();
    }
    let nothing = Generated {
        ids: Vec::new(),
        end: room.end,
    };
    let best = ended.into_iter().next();
    Ok(best.map_or(nothing, |(_, text)| text))
}

/// The `count` best continuations by one token, best first.
fn best(
    count: usize,
    how: &Generation,
    logits: &mut [Vec<f32>],
    beams: &[Text<'_>],
    scores: &[f64],
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for (beam, (logits, text)) in logits.iter_mut().zip(beams).enumerate() {
        let total = f64::from(largest(logits)) + likelihoods(logits).iter().sum::<f64>().ln();
        for logit in logits.iter_mut() {
            *logit = (f64::from(*logit) - total) as f32;
        }
        how.sampling.penalize_repetition(logits, text.ids());
        let each = logits.iter().zip(0..);
        candidates.extend(each.map(|(&log_probability, token)| Candidate {
            beam,
            token,
            log_probability: scores[beam] + f64::from(log_probability),
        }));
    }
    let better = |a: &Candidate, b: &Candidate| b.log_probability.total_cmp(&a.log_probability);
    if candidates.len() > count {
        candidates.select_nth_unstable_by(count - 1, better);
        candidates.truncate(count);
    }
    candidates.sort_by(better);
    candidates
}
