//! Text from a language model, one token at a time.

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, AdapterBatch, Model, Tokens};
use epiphyte_ops::{Sequences, random};

use crate::TrainError;
use crate::scoring::model_input::{added_positions, check_ids};

/// How tokens are chosen and when to stop.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The largest number of new tokens.
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

/// A generated text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Why there are no more.
    pub end: GenerationEnd,
}

/// Why a text ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationEnd {
    /// A token that ends a text came.
    Stop,
    /// There are as many new tokens as were asked for.
    MaxNewTokens,
    /// The model reads no longer text: it has this many positions, of which the adapter's virtual
    /// tokens take some.
    ContextLength {
        /// Positions of the model.
        limit: usize,
        /// Virtual tokens of the adapter.
        virtual_tokens: usize,
    },
}

/// Continues `prompt`; tells `each` new token as soon as it is chosen, and returns all of them.
///
/// # Errors
/// If the model has no language-model head or is an encoder-decoder, the prompt leaves no room for
/// a token or has one that is not in the model's vocabulary, or a logit is NaN.
pub fn generate(
    model: &Model,
    adapter: &dyn Adapter,
    prompt: &[u32],
    how: &Generation,
    mut each: impl FnMut(u32),
) -> Result<Generated, TrainError> {
    let head = model.language_head().ok_or(TrainError::CannotGenerate)?;
    if model.base().dimensions.encoder_layers > 0 {
        return Err(TrainError::CannotDecode);
    }
    let limit = model.base().dimensions.max_positions;
    let limit = limit.unwrap_or(usize::MAX).min(how.max_length);
    let added = added_positions(adapter);
    let length = prompt.len() + added;
    if length >= limit {
        return Err(TrainError::PromptTooLong { length, limit });
    }
    check_ids(model, prompt.iter().copied())?;
    let mut ids = prompt.to_vec();
    let mut draws = Vec::new();
    let mut end = match how.max_new_tokens > limit - length {
        true => GenerationEnd::ContextLength {
            limit,
            virtual_tokens: added,
        },
        false => GenerationEnd::MaxNewTokens,
    };
    for new in 0..how.max_new_tokens.min(limit - length) {
        if new == draws.len() {
            // The first of many draws are the same as those of few.
            draws = random::uniform(how.seed, 2 * new + 64, 0.0, 1.0);
        }
        let type_ids = vec![0; ids.len()];
        let tokens = Tokens::new(&ids, &type_ids, Sequences::new(vec![0, ids.len()]));
        let hidden = model.hidden(&tokens, adapter);
        let last: Vec<usize> = hidden.rows.lasts().collect();
        let last = hidden.select_rows(&last);
        let batch = AdapterBatch::single(adapter, &tokens);
        let logits = head.forward(last.states, &last.rows, &batch);
        if logits.clone().inner().is_nan().any().into_scalar::<bool>() {
            return Err(TrainError::NotFinite {
                what: format!("a logit after {} tokens", ids.len()),
            });
        }
        let next = choose(logits, how.temperature, draws[new]);
        if how.stop.contains(&next) {
            end = GenerationEnd::Stop;
            break;
        }
        ids.push(next);
        each(next);
    }
    let ids = ids.split_off(prompt.len());
    Ok(Generated { ids, end })
}

/// The next token from its logits, `[1, vocabulary]`: the most likely one at temperature 0, else
/// that on which `draw`, uniform in `[0, 1)`, falls.
fn choose(logits: Tensor<2>, temperature: f64, draw: f32) -> u32 {
    let logits = logits
        .inner()
        .try_into_vec_as::<f32>()
        .expect("logits are f32 and can be read");
    if temperature <= 0.0 {
        return crate::scoring::evaluate::argmax(&logits) as u32;
    }
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits
        .iter()
        .map(|&logit| (f64::from(logit - largest) / temperature).exp())
        .collect();
    let mut left = f64::from(draw) * weights.iter().sum::<f64>();
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

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let logits = [0.5f32, -1.0, 2.0, f32::NEG_INFINITY];
        let temperature = 0.7;
        let tensor =
            Tensor::<2>::from_data(TensorData::new(logits.to_vec(), [1, 4]), &Device::default());
        let count = 4000;
        let mut found = [0.0f64; 4];
        for draw in random::uniform(1, count, 0.0, 1.0) {
            found[choose(tensor.clone(), temperature, draw) as usize] += 1.0;
        }
        let weights = logits.map(|logit| (f64::from(logit) / temperature).exp());
        let sum: f64 = weights.iter().sum();
        for (found, weight) in found.into_iter().zip(weights) {
            let (share, expected) = (found / count as f64, weight / sum);
            // Four standard errors of a share.
            let tolerance = 4.0 * (expected * (1.0 - expected) / count as f64).sqrt();
            assert!((share - expected).abs() <= tolerance, "{share} {expected}");
        }
        assert_eq!(choose(tensor.clone(), temperature, 1.0), 2);
        assert_eq!(choose(tensor, 0.0, 0.0), 2);
    }
}
