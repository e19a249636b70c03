//! Virtual tokens: what methods share that put trained vectors in front of the input, or keys and
//! values in front of those of each layer.
//!
//! Their files hold the tensor `prompt_embeddings`, a row for each virtual token, and HF PEFT
//! writes into their configuration what it needs to know of the base.

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base, Embedded, ForwardContext, Hook, SOFT_TOKEN};
use epiphyte_ops::{FrozenMatrix, rows};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{Method, Stored};
use crate::framework::parameters::{Init, Param, ParameterSet};

/// The key of the tensor.
pub(crate) const KEY: &str = "prompt_embeddings";

/// The keys that HF PEFT fills in from the base.
pub(crate) const COMPUTED: &[&str] = &["num_attention_heads", "num_layers", "token_dim"];

/// Their values, for vectors that are `heads` heads side by side and `token_dim` wide.
pub(crate) fn computed(base: &Base, heads: usize, token_dim: usize) -> Map<String, Value> {
    // Of an encoder-decoder PEFT counts the encoder's layers.
    let layers = match base.dimensions.encoder_layers {
        0 => base.dimensions.layers,
        encoder_layers => encoder_layers,
    };
    let values = [json!(heads), json!(layers), json!(token_dim)];
    let keys = COMPUTED.iter().map(|&key| key.to_owned());
    keys.zip(values).collect()
}

crate::settings! {
    /// The settings of a prompt, under HF PEFT's names.
    pub struct PromptSettings {
        /// Number of virtual tokens.
        num_virtual_tokens: usize = 20, in Size;
        /// Prompts: 1, or 2 for an encoder-decoder, whose decoder then has one too in multitask
        /// prompt tuning; in other methods HF PEFT writes a second, which nothing reads.
        num_transformer_submodules: Option<usize> = None, in AtLeastOne, unset "1";
        /// Which token's state the head of a classifier reads, where it reads the first one: that
        /// of the prompt, as in HF PEFT, or the text's own, such as `[CLS]`.
        pooled_token: PooledToken = PooledToken::Prompt, as Text;
    }
}

/// What is the first token to a classifier's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PooledToken {
    /// The first virtual token.
    Prompt,
    /// The text's own first token.
    Text,
}

/// The key of [`PromptSettings::pooled_token`], which HF PEFT does not have.
pub(crate) const POOLED_TOKEN: &str = "pooled_token";

impl PromptSettings {
    /// How many prompts the file holds.
    pub(crate) fn prompts(&self) -> usize {
        self.num_transformer_submodules.unwrap_or(1)
    }

    /// Rows of the table: those of all prompts.
    pub(crate) fn rows(&self) -> usize {
        self.num_virtual_tokens * self.prompts()
    }

    /// Shape of the table over this base.
    ///
    /// # Errors
    /// If the base has no room for the virtual tokens, or no decoder for a second prompt.
    pub(crate) fn shape(
        &self,
        method: &'static str,
        base: &Base,
    ) -> Result<[usize; 2], MethodError> {
        check(method, self.num_virtual_tokens, base)?;
        let most = if base.dimensions.encoder_layers > 0 {
            2
        } else {
            1
        };
        if self.prompts() > most {
            return Err(MethodError::Value {
                method,
                key: "num_transformer_submodules",
                value: self.prompts().to_string(),
                expected: format!("this base can have {most}, one for each of its stacks"),
            });
        }
        Ok([self.rows(), base.embedding_size()])
    }

    /// With what the file says.
    pub(crate) fn resolved(&self) -> Self {
        Self {
            num_transformer_submodules: Some(self.prompts()),
            ..self.clone()
        }
    }

    /// The values of [`COMPUTED`] for a prompt.
    pub(crate) fn computed(base: &Base) -> Map<String, Value> {
        computed(base, base.dimensions.heads, base.dimensions.hidden_size)
    }
}

/// Checks that there is at least one virtual token and room for a real one.
pub(crate) fn check(method: &'static str, count: usize, base: &Base) -> Result<(), MethodError> {
    let most = base.dimensions.max_positions.unwrap_or(usize::MAX);
    let most = most.saturating_sub(1);
    if (1..=most).contains(&count) {
        return Ok(());
    }
    Err(MethodError::Value {
        method,
        key: "num_virtual_tokens",
        value: count.to_string(),
        expected: format!(
            "it must be from 1 to {most}: they take positions in front of the text's own"
        ),
    })
}

/// Puts the rows of `prompt` in front of each sequence, in segment 0.
pub(crate) fn put_in_front(prompt: Tensor<2>, embedded: Embedded) -> Embedded {
    let Embedded {
        states,
        type_ids,
        rows: sequences,
        decoder,
    } = embedded;
    let count = prompt.dims()[0];
    let mut order = Vec::with_capacity(sequences.tokens() + count * sequences.count());
    let mut with_prompt = Vec::with_capacity(order.capacity());
    for pair in sequences.boundaries().windows(2) {
        order.extend(0..count);
        order.extend((pair[0]..pair[1]).map(|row| count + row));
        with_prompt.extend(std::iter::repeat_n(0, count));
        with_prompt.extend_from_slice(&type_ids[pair[0]..pair[1]]);
    }
    Embedded {
        states: rows(Tensor::cat(vec![prompt, states], 0), &order),
        type_ids: with_prompt,
        rows: sequences.prepended(count),
        decoder,
    }
}

/// Puts the rows of `prompt` in the places of each sequence's soft tokens, in their order.
fn put_in_places(prompt: Tensor<2>, ids: &[u32], embedded: Embedded) -> Embedded {
    let count = prompt.dims()[0];
    let mut order = Vec::with_capacity(ids.len());
    for ends in embedded.rows.boundaries().windows(2) {
        let mut next = 0;
        order.extend((ends[0]..ends[1]).map(|row| match ids[row] {
            SOFT_TOKEN => {
                next += 1;
                (next - 1) % count
            }
            _ => count + row,
        }));
    }
    Embedded {
        states: rows(Tensor::cat(vec![prompt, embedded.states], 0), &order),
        ..embedded
    }
}

/// A prompt at work: vectors in front of the input's embeddings, of an encoder-decoder in front of
/// the encoder's; or in the places of a template's soft tokens, where the input has any.
#[derive(Debug)]
pub(crate) struct Prompt {
    /// The method's name.
    pub(crate) method: &'static str,
    /// Trained or derived; the first `length` rows are the prompt: `[rows, width]`.
    pub(crate) table: Param,
    /// Virtual tokens.
    pub(crate) length: usize,
    /// What the head of a classifier reads.
    pub(crate) pooled: PooledToken,
}

impl Adapter for Prompt {
    fn virtual_tokens(&self) -> usize {
        self.length
    }

    fn soft_tokens(&self) -> usize {
        self.length
    }

    fn pools_text(&self) -> bool {
        self.pooled == PooledToken::Text
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        if embedded.decoder {
            return embedded;
        }
        let table = self.table.get::<2>();
        let prompt = match table.dims()[0] == self.length {
            true => table,
            false => table.narrow(0, 0, self.length),
        };
        match cx.tokens.ids.contains(&SOFT_TOKEN) {
            true => put_in_places(prompt, cx.tokens.ids, embedded),
            false => put_in_front(prompt, embedded),
        }
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

impl Method for Prompt {
    /// The vectors themselves, whatever computes them.
    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        vec![Stored::of(&self.table)]
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(self.method))
    }

    fn changed(&self) -> usize {
        self.table.count()
    }
}

/// Why no prompt merges.
pub(crate) fn not_mergeable(method: &'static str) -> MethodError {
    MethodError::NotMergeable {
        method,
        reason: "its vectors are part of the input",
    }
}

/// Checks that `text` has tokens and all of them are in the vocabulary.
pub(crate) fn check_ids(
    method: &'static str,
    key: &'static str,
    text: &'static str,
    ids: &[u32],
    table: &FrozenMatrix,
) -> Result<(), MethodError> {
    let [vocabulary, _] = table.shape();
    let expected = match ids.iter().find(|&&id| id as usize >= vocabulary) {
        Some(id) => format!("token {id} is not in the vocabulary of {vocabulary}"),
        None if ids.is_empty() => format!("{text} must have at least one token"),
        None => return Ok(()),
    };
    Err(MethodError::Value {
        method,
        key,
        value: format!("{ids:?}"),
        expected,
    })
}

/// The embeddings of a text, repeated or cut to `count` rows.
pub(crate) fn repeated(ids: &[u32], count: usize, table: &FrozenMatrix) -> Tensor<2> {
    let repeated: Vec<u32> = ids.iter().copied().cycle().take(count).collect();
    table.gather(&repeated)
}

/// These rows as initial values.
pub(crate) fn start(rows: Tensor<2>) -> Init {
    let count = rows.shape().num_elements();
    let values = rows.reshape::<1, _>([count]).try_into_vec_as::<f32>();
    let values = values.expect("embeddings are f32 and on a device that can be read");
    Init::Values(values.into())
}

#[cfg(test)]
mod tests {
    use epiphyte_models::{Identity, Tokens};
    use epiphyte_ops::Sequences;

    use super::*;
    use crate::small_bert::{bert, module};

    #[test]
    fn a_classifier_reads_the_first_token_of_the_prompt_or_of_the_text() {
        let model = bert();
        let sequences = Sequences::new(vec![0, 2, 5]);
        let tokens = Tokens::new(&[1, 2, 3, 4, 5], &[0; 5], sequences);
        let with_prompt = tokens.sequences.prepended(4);
        for method in [
            "prompt-tuning",
            "p-tuning",
            "multitask-prompt-tuning",
            "spot",
        ] {
            for (pooled, rows) in [("prompt", [0, 6]), ("text", [4, 10])] {
                let settings = json!({ "num_virtual_tokens": 4, POOLED_TOKEN: pooled });
                let module = module(&model, method, settings);
                let read = model.head_rows(&tokens, &with_prompt, &module);
                assert_eq!(read, rows, "{method}, {pooled}");
            }
        }
    }

    /// Vectors that are rows of the word embeddings are the words, wherever a template has them.
    #[test]
    fn soft_tokens_that_are_words_are_those_words() {
        let model = bert();
        let settings = json!({ "num_virtual_tokens": 2, "pooled_token": "text" });
        let module = module(&model, "prompt-tuning", settings);
        let table = model.base().word_embedding_table().gather(&[5, 2]);
        let values = table.reshape::<1, _>([16]).try_into_vec_as::<f32>();
        module
            .parameters()
            .get(KEY)
            .unwrap()
            .set_values(values.unwrap());
        let logits = |ids: &[u32], adapter: &dyn Adapter| {
            let tokens = Tokens::new(ids, &[0; 7], Sequences::new(vec![0, 3, 7]));
            let logits = model.logits(&tokens, adapter);
            logits.inner().try_into_vec_as::<f32>().unwrap()
        };
        let soft = [1, SOFT_TOKEN, SOFT_TOKEN, SOFT_TOKEN, 3, SOFT_TOKEN, 4];
        let found = logits(&soft, &module);
        let expected = logits(&[1, 5, 2, 5, 3, 2, 4], &Identity);
        let pairs = found.iter().zip(&expected).map(|(a, b)| (a - b).abs());
        assert!(
            pairs.fold(0.0f32, f32::max) < 1e-6,
            "{found:?}, {expected:?}"
        );
    }
}
