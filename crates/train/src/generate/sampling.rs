//! The choice of the next token from its logits, as Hugging Face's `LogitsProcessor`s have it.

use std::cmp::Ordering;

use epiphyte_ops::random;

/// How the next token is chosen. The repetition penalty comes first, then the temperature, then
/// what limits the choice, in the order of the fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most likely token; higher values draw, the more evenly the higher.
    pub temperature: f64,
    /// Draw from the most likely tokens, this number of them (Fan et al. 2018, arXiv:1805.04833).
    pub top_k: Option<usize>,
    /// Draw from the fewest tokens whose probabilities add up to this (Holtzman et al. 2020,
    /// arXiv:1904.09751).
    pub top_p: Option<f64>,
    /// Draw from tokens with at least this share of the most likely token's probability (Nguyen et
    /// al. 2024, arXiv:2407.01082).
    pub min_p: Option<f64>,
    /// Divides the positive logits of tokens that the text has already, and multiplies the negative
    /// ones (Keskar et al. 2019, arXiv:1909.05858).
    pub repetition_penalty: f64,
}

impl Default for Sampling {
    /// The most likely token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: None,
            top_p: None,
            min_p: None,
            repetition_penalty: 1.0,
        }
    }
}

impl Sampling {
    /// The token that follows `text`, from its logits, which are changed; `draw`, uniform in
    /// `[0, 1)`, decides between tokens.
    pub(super) fn choose(&self, logits: &mut [f32], text: &[u32], draw: f64) -> u32 {
        self.penalize_repetition(logits, text);
        if self.temperature <= 0.0 {
            return crate::scoring::evaluate::argmax(logits) as u32;
        }
        self.limit(logits);
        drawn(logits, draw)
    }

    /// Makes tokens of `text` less likely.
    pub(super) fn penalize_repetition(&self, logits: &mut [f32], text: &[u32]) {
        if self.repetition_penalty == 1.0 {
            return;
        }
        let penalty = self.repetition_penalty as f32;
        let mut seen = text.to_vec();
        seen.sort_unstable();
        seen.dedup();
        for id in seen {
            let logit = &mut logits[id as usize];
            match *logit < 0.0 {
                true => *logit *= penalty,
                false => *logit /= penalty,
            }
        }
    }

    /// Applies the temperature, and makes tokens that may not be drawn impossible. The most likely
    /// token stays.
    fn limit(&self, logits: &mut [f32]) {
        for logit in logits.iter_mut() {
            *logit = (f64::from(*logit) / self.temperature) as f32;
        }
        if let Some(count) = self.top_k.filter(|&count| count < logits.len()) {
            let mut sorted = logits.to_vec();
            let (_, &mut smallest, _) = sorted.select_nth_unstable_by(count.max(1) - 1, descending);
            forbid(logits, |logit| logit < smallest);
        }
        if let Some(share) = self.top_p {
            let weights = likelihoods(logits);
            let total: f64 = weights.iter().sum();
            // All tokens that are less likely than this have no more than what may be left out.
            let bound = (1.0 - share) * total / logits.len() as f64;
            let likely = logits.iter().zip(&weights);
            let likely = likely.filter(|&(_, &weight)| weight >= bound);
            let mut sorted: Vec<f32> = likely.map(|(&logit, _)| logit).collect();
            sorted.sort_unstable_by(descending);
            let weights = likelihoods(&sorted);
            let mut before = 0.0;
            // A token may be drawn as long as those before it are less likely together than asked.
            let kept = weights.iter().take_while(|&&weight| {
                let kept = before < share * total;
                before += weight;
                kept
            });
            let smallest = sorted[kept.count().max(1) - 1];
            forbid(logits, |logit| logit < smallest);
        }
        if let Some(share) = self.min_p {
            let largest = largest(logits);
            let smallest = f64::from(largest) + share.ln();
            forbid(logits, |logit| {
                logit < largest && f64::from(logit) < smallest
            });
        }
    }
}

/// The token on which `draw`, uniform in `[0, 1)`, falls.
fn drawn(logits: &[f32], draw: f64) -> u32 {
    let weights = likelihoods(logits);
    let mut left = draw * weights.iter().sum::<f64>();
    let mut chosen = 0;
    for (token, weight) in weights.into_iter().enumerate() {
        // What rounding leaves over goes to the last token that has any weight.
        if weight > 0.0 {
            chosen = token;
        }
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    chosen as u32
}

/// How likely each token is, relative to the most likely one.
pub(super) fn likelihoods(logits: &[f32]) -> Vec<f64> {
    let largest = largest(logits);
    let likelihood = |&logit: &f32| f64::from(logit - largest).exp();
    logits.iter().map(likelihood).collect()
}

/// The largest logit.
pub(super) fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

fn descending(a: &f32, b: &f32) -> Ordering {
    b.total_cmp(a)
}

fn forbid(logits: &mut [f32], forbidden: impl Fn(f32) -> bool) {
    for logit in logits.iter_mut().filter(|logit| forbidden(**logit)) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Uniform draws, one for each token. The first of many are the same as those of few.
#[derive(Debug)]
pub(super) struct Draws {
    seed: u64,
    drawn: Vec<f32>,
    next: usize,
}

impl Draws {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            drawn: Vec::new(),
            next: 0,
        }
    }

    pub(super) fn next(&mut self) -> f64 {
        if self.next == self.drawn.len() {
            self.drawn = random::uniform(self.seed, 2 * self.next + 64, 0.0, 1.0);
        }
        self.next += 1;
        f64::from(self.drawn[self.next - 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let logits = [0.5f32, -1.0, 2.0, f32::NEG_INFINITY];
        let sampling = Sampling {
            temperature: 0.7,
            ..Sampling::default()
        };
        let choose = |draw| sampling.choose(&mut logits.to_vec(), &[], draw) as usize;
        let count = 4000;
        let mut found = [0.0f64; 4];
        let mut draws = Draws::new(1);
        for _ in 0..count {
            found[choose(draws.next())] += 1.0;
        }
        let weights = logits.map(|logit| (f64::from(logit) / 0.7).exp());
        let sum: f64 = weights.iter().sum();
        for (found, weight) in found.into_iter().zip(weights) {
            let (share, expected) = (found / f64::from(count), weight / sum);
            // Four standard errors of a share.
            let tolerance = 4.0 * (expected * (1.0 - expected) / f64::from(count)).sqrt();
            assert!((share - expected).abs() <= tolerance, "{share} {expected}");
        }
        assert_eq!(choose(1.0), 2);
        assert_eq!(
            Sampling::default().choose(&mut logits.to_vec(), &[], 0.0),
            2
        );
    }

    /// The processed logits of the golden cases are those of transformers' processors.
    #[test]
    fn logits_are_processed_as_in_transformers() {
        #[derive(serde::Deserialize)]
        struct Case {
            logits: Vec<f32>,
            text: Vec<u32>,
            temperature: f64,
            top_k: Option<usize>,
            top_p: Option<f64>,
            min_p: Option<f64>,
            repetition_penalty: f64,
            /// None where a token is impossible.
            processed: Vec<Option<f32>>,
        }
        let cases: Vec<Case> =
            serde_json::from_str(include_str!("../../tests/golden_sampling.json")).unwrap();
        assert!(cases.len() > 100);
        for case in cases {
            let sampling = Sampling {
                temperature: case.temperature,
                top_k: case.top_k,
                top_p: case.top_p,
                min_p: case.min_p,
                repetition_penalty: case.repetition_penalty,
            };
            let mut logits = case.logits;
            sampling.penalize_repetition(&mut logits, &case.text);
            sampling.limit(&mut logits);
            for (&found, expected) in logits.iter().zip(case.processed) {
                match expected {
                    None => assert_eq!(found, f32::NEG_INFINITY, "{sampling:?}"),
                    Some(expected) => {
                        let tolerance = 1e-6 * expected.abs().max(1.0);
                        assert!(
                            (found - expected).abs() <= tolerance,
                            "{sampling:?}: {found}"
                        );
                    }
                }
            }
        }
    }
}
