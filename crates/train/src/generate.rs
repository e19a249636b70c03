//! Text from a language model, one token at a time.

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Hidden, Tokens, Transformer};
use epiphyte_ops::{Sequences, random, rows};

use crate::TrainError;

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// At most so many new tokens.
    pub max_new_tokens: usize,
    /// 0 takes the most likely token; higher values draw, the more evenly the higher.
    pub temperature: f64,
    /// What draws follow from.
    pub seed: u64,
    /// Tokens that end the text; they are not returned.
    pub stop: Vec<u32>,
    /// The longest text, prompt and virtual tokens included, that the model can read.
    pub max_length: usize,
}

/// Continues `prompt`; returns the new tokens.
///
/// # Errors
/// If the model has no language-model head.
pub fn generate(
    model: &dyn Transformer,
    adapter: &dyn Adapter,
    prompt: &[u32],
    how: &Generation,
) -> Result<Vec<u32>, TrainError> {
    let head = model.language_head().ok_or(TrainError::CannotGenerate)?;
    let mut ids = prompt.to_vec();
    for index in 0..how.max_new_tokens {
        let type_ids = vec![0; ids.len()];
        let sequences = Sequences::new(vec![0, ids.len()]);
        let tokens = Tokens {
            ids: &ids,
            type_ids: &type_ids,
            sequences,
        };
        let Hidden {
            states, sequences, ..
        } = model.hidden(&tokens, adapter);
        if sequences.tokens() + adapter.prefix_length() >= how.max_length {
            break;
        }
        let last: Vec<usize> = sequences.lasts().collect();
        let one = Sequences::new(vec![0, 1]);
        let logits = head.forward(rows(states, &last), adapter, &one);
        let next = choose(logits, how, index);
        if how.stop.contains(&next) {
            break;
        }
        ids.push(next);
    }
    Ok(ids.split_off(prompt.len()))
}

/// The next token from its logits, `[1, vocabulary]`.
fn choose(logits: Tensor<2>, how: &Generation, index: usize) -> u32 {
    let logits = logits
        .inner()
        .try_into_vec_as::<f32>()
        .expect("logits are f32 and can be read");
    if how.temperature <= 0.0 {
        return crate::evaluate::argmax(&logits) as u32;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|&logit| (f64::from(logit - largest) / how.temperature).exp())
        .collect();
    let draw = f64::from(random::uniform(how.seed ^ index as u64, 1, 0.0, 1.0)[0]);
    let mut left = draw * weights.iter().sum::<f64>();
    for (token, weight) in weights.iter().enumerate() {
        left -= weight;
        if left <= 0.0 {
            return token as u32;
        }
    }
    (weights.len() - 1) as u32
}
