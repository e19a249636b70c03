//! Prompt tuning: trained vectors in front of the input's embeddings.
//!
//! Lester, Al-Rfou, Constant, "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP
//! 2021, arXiv 2104.08691.
//!
//! `E' = [P; E(x)]` with `P: [p, d]`: the layers see `p` tokens more. They take the first positions
//! and segment 0, as in HF PEFT, so the text's own tokens move `p` positions on, and BERT's pooler
//! reads the first virtual token, or with `pooled_token` `text` the text's own `[CLS]`. Language
//! models have no loss on them; the last one predicts the text's first token. An encoder-decoder
//! has them in front of the encoder's input only, as in the paper and, with
//! `num_transformer_submodules` 1, in PEFT.
//!
//! `P` starts normal with standard deviation one (`RANDOM`, far from real embeddings and slow to
//! train), as rows of the word embeddings drawn with replacement (`SAMPLE_VOCAB`), as those of a
//! text, repeated or cut to length (`TEXT`), or, section 3.2 of the paper, with a row for each
//! class label, the mean of the label's tokens, and the rest drawn (`LABELS`). A base knows no
//! tokenizer: who has one is told the `texts` and says their tokens.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `p d` |
//! | file | `prompt_embeddings` `[p, d]` |
//! | merges | no |

use burn::tensor::Tensor;
use epiphyte_models::Base;
use epiphyte_models::adapter::name_id;
use epiphyte_ops::{FrozenMatrix, random};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::virtual_tokens::{self, KEY, Prompt, PromptSettings, check_ids, repeated};

crate::settings! {
    /// The settings of prompt tuning, under HF PEFT's names.
    pub struct PromptTuningConfig {
        /// Initial values: RANDOM, SAMPLE_VOCAB, TEXT or LABELS.
        prompt_tuning_init: PromptTuningInit = PromptTuningInit::Random, as Text;
        /// The text for the initial values of TEXT.
        prompt_tuning_init_text: Option<String> = None;
        /// Where HF PEFT finds the tokenizer for TEXT; it refuses a file that does not say.
        tokenizer_name_or_path: Option<String> = None, unset "directory of the base model";
        /// The tokens of TEXT. Not in the file: once trained, the initial values are of no use.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_tuning_init_token_ids: Option<Vec<u32>> = None, flag "", as Integers;
        /// The tokens of each label, for LABELS. Not in the file.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_tuning_init_label_token_ids: Option<Vec<Vec<u32>>> = None, flag "", as Integers;

        ..prompt: PromptSettings = PromptSettings::default();
    }
}

/// How the vectors of prompt tuning start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum PromptTuningInit {
    /// Normal with standard deviation one.
    Random,
    /// Rows of the word embeddings, drawn with replacement.
    SampleVocab,
    /// The embeddings of a text.
    Text,
    /// The mean embedding of each label, then as [`PromptTuningInit::SampleVocab`].
    Labels,
}

impl PromptTuningConfig {
    fn init(&self, base: &Base, seed: u64) -> Result<Init, MethodError> {
        let table = base.word_embedding_table();
        let count = self.prompt.rows();
        let start = match self.prompt_tuning_init {
            PromptTuningInit::Random => return Ok(Init::Normal { std: 1.0 }),
            PromptTuningInit::SampleVocab => table.gather(&sampled(table, count, seed)),
            PromptTuningInit::Text => {
                let Some(ids) = &self.prompt_tuning_init_token_ids else {
                    return Err(MethodError::Value {
                        method: Self::NAME,
                        key: "prompt_tuning_init",
                        value: "TEXT".to_owned(),
                        expected: "it needs `prompt_tuning_init_text`".to_owned(),
                    });
                };
                check_ids(
                    Self::NAME,
                    "prompt_tuning_init_token_ids",
                    "prompt_tuning_init_text",
                    ids,
                    table,
                )?;
                repeated(ids, count, table)
            }
            PromptTuningInit::Labels => {
                let labels = self
                    .prompt_tuning_init_label_token_ids
                    .as_deref()
                    .unwrap_or_default();
                if labels.is_empty() || labels.len() > count {
                    return Err(MethodError::Value {
                        method: Self::NAME,
                        key: "prompt_tuning_init",
                        value: "LABELS".to_owned(),
                        expected: format!(
                            "{count} virtual tokens cannot start as {} labels",
                            labels.len()
                        ),
                    });
                }
                let mut start = Vec::new();
                for ids in labels {
                    check_ids(
                        Self::NAME,
                        "prompt_tuning_init_label_token_ids",
                        "every label",
                        ids,
                        table,
                    )?;
                    start.push(table.gather(ids).mean_dim(0));
                }
                if labels.len() < count {
                    start.push(table.gather(&sampled(table, count - labels.len(), seed)));
                }
                Tensor::cat(start, 0)
            }
        };
        Ok(virtual_tokens::start(start))
    }
}

/// Token numbers drawn with replacement.
fn sampled(table: &FrozenMatrix, count: usize, seed: u64) -> Vec<u32> {
    let [vocabulary, _] = table.shape();
    let draws = random::uniform(
        seed ^ name_id("prompt_tuning.sample_vocab"),
        count,
        0.0,
        vocabulary as f64,
    );
    draws
        .into_iter()
        .map(|draw| (draw as u32).min(vocabulary as u32 - 1))
        .collect()
}

impl MethodConfig for PromptTuningConfig {
    const NAME: &'static str = "prompt-tuning";
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "trained vectors in front of the input's embeddings";
    const PAPER: &'static str = "Lester et al. 2021, arXiv 2104.08691";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = virtual_tokens::COMPUTED;
    const OWN: &'static [&'static str] = &[virtual_tokens::POOLED_TOKEN];

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "num_virtual_tokens": 4, "prompt_tuning_init": "SAMPLE_VOCAB" }),
            json!({ "num_virtual_tokens": 3, "pooled_token": "text" }),
        ]
    }

    /// The text of TEXT as PEFT's tokenizer reads it, special tokens included, or the labels.
    fn texts(&self, labels: &[String]) -> Vec<(String, bool)> {
        match self.prompt_tuning_init {
            PromptTuningInit::Random | PromptTuningInit::SampleVocab => Vec::new(),
            PromptTuningInit::Text => {
                let text = self.prompt_tuning_init_text.iter();
                text.map(|text| (text.clone(), true)).collect()
            }
            PromptTuningInit::Labels => labels.iter().map(|label| (label.clone(), false)).collect(),
        }
    }

    fn set_tokens(&mut self, mut tokens: Vec<Vec<u32>>) {
        match self.prompt_tuning_init {
            PromptTuningInit::Random | PromptTuningInit::SampleVocab => {}
            PromptTuningInit::Text => self.prompt_tuning_init_token_ids = tokens.pop(),
            PromptTuningInit::Labels => self.prompt_tuning_init_label_token_ids = Some(tokens),
        }
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shape = self.prompt.shape(Self::NAME, base)?;
        let init = self.init(base, parameters.seed())?;
        Ok(Box::new(Prompt {
            method: Self::NAME,
            table: parameters.declare(KEY, &shape, init),
            length: self.prompt.num_virtual_tokens,
            pooled: self.prompt.pooled_token,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [rows, width] = self.prompt.shape(Self::NAME, base)?;
        Ok(rows * width)
    }

    fn resolved(&self, _base: &Base) -> Self {
        Self {
            prompt_tuning_init_token_ids: None,
            prompt_tuning_init_label_token_ids: None,
            prompt: self.prompt.resolved(),
            ..self.clone()
        }
    }

    /// The same without asking for the tokens that only a start needs.
    fn stored(&self) -> Self {
        Self {
            prompt: self.prompt.clone(),
            ..Self::default()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        PromptSettings::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("modules_to_save".to_owned(), Value::Null),
            ("tokenizer_kwargs".to_owned(), Value::Null),
        ])
    }
}
