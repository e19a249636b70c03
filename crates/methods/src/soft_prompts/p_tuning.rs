//! P-Tuning: virtual tokens that a small network computes while it trains.
//!
//! Liu, Zheng, Du, Ding, Qian, Yang, Tang, "GPT Understands, Too", 2021, arXiv 2103.10385.
//!
//! `P = MLP(E)` or `P = MLP(LSTM(E))` with `E: [p, d]`, and `P: [p, d]` stands in front of the
//! input's embeddings as in [`prompt_tuning`](crate::soft_prompts::prompt_tuning). The networks are
//! HF PEFT's, with the encoder's hidden size `h`:
//!
//! - `MLP`: `ReLU(ReLU(E W₁ᵀ + b₁) W₂ᵀ + b₂) W₃ᵀ + b₃`, `W₁: [h, d]`, `W₂: [h, h]`, `W₃: [d, h]`
//! - `LSTM`: a bidirectional LSTM of `n` layers over the virtual tokens as steps, whose states
//!   `[p, 2 h]` go through `ReLU(S W₁ᵀ + b₁) W₂ᵀ + b₂`, `W₁: [2 h, 2 h]`, `W₂: [d, 2 h]`
//!
//! `E` starts normal with standard deviation one, the networks as PyTorch starts them. `P` is
//! computed once a step; the file holds it, and no network. `encoder_dropout` drops between the
//! layers of the LSTM while training.
//!
//! The paper puts virtual tokens at places of a template; as in PEFT, here they stand in front.
//!
//! | | |
//! | --- | --- |
//! | trains | `p d` and the network: `MLP` `(d h + h) + (h h + h) + (h d + d)`, `LSTM` `8 h (d + h + 2) + (n - 1) 8 h (3 h + 2) + (4 h² + 2 h) + (2 h d + d)` |
//! | changes | `p d` |
//! | file | `prompt_embeddings` `[p, d]` |
//! | merges | no |

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::Tensor;
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, Embedded, ForwardContext, Hook};
use epiphyte_ops::{Activation, Sequences, dropout, random};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::gradients::Gradients;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StepInfo, Stored};
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::dense::Dense;
use crate::parts::lstm::Lstm;
use crate::parts::virtual_tokens::{self, KEY, Prompt, PromptSettings};

crate::settings! {
    /// The settings of P-Tuning, under HF PEFT's names.
    pub struct PTuningConfig {
        /// Network that computes the virtual tokens: MLP or LSTM.
        encoder_reparameterization_type: Option<PromptEncoder> = Some(PromptEncoder::Mlp), as Text;
        /// Hidden size of that network.
        encoder_hidden_size: Option<usize> = None, in Size, unset "p-tuning the size of embeddings";
        /// Layers of the LSTM; the MLP has three.
        encoder_num_layers: usize = 2, in Size;
        /// Dropout between the layers of the LSTM.
        encoder_dropout: f64 = 0.0, in Fraction;

        ..prompt: PromptSettings = PromptSettings::default();
    }
}

/// The network that computes the virtual tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PromptEncoder {
    /// Three linear layers with ReLU between them.
    Mlp,
    /// A bidirectional LSTM, and two linear layers with ReLU between them.
    Lstm,
}

impl PTuningConfig {
    fn hidden_size(&self, base: &Base) -> usize {
        self.encoder_hidden_size
            .unwrap_or_else(|| base.embedding_size())
    }
}

impl MethodConfig for PTuningConfig {
    const NAME: &'static str = "p-tuning";
    const PEFT_TYPE: &'static str = "P_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "virtual tokens that a small network computes while it trains";
    const PAPER: &'static str = "Liu et al. 2021, arXiv 2103.10385";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_storage: None,
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = virtual_tokens::COMPUTED;
    const OWN: &'static [&'static str] = &[virtual_tokens::POOLED_TOKEN];
    const TRAINING_ONLY: &'static [&'static str] = &[
        "encoder_dropout",
        "encoder_hidden_size",
        "encoder_num_layers",
    ];

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({
                "num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM",
                "encoder_hidden_size": 5,
            }),
            json!({ "num_virtual_tokens": 4, "encoder_hidden_size": 8 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shape = self.prompt.shape(Self::NAME, base)?;
        let normal = Init::Normal { std: 1.0 };
        let dropout = Arc::new(StepDropout::new(self.encoder_dropout, parameters.seed()));
        let table = match self.encoder_reparameterization_type {
            None => parameters.declare(KEY, &shape, normal),
            Some(kind) => {
                let [rows, width] = shape;
                let hidden = self.hidden_size(base);
                let embedding = parameters.declare("embedding.weight", &shape, normal);
                let encoder = match kind {
                    PromptEncoder::Mlp => Encoder {
                        lstm: None,
                        layers: declare_mlp(parameters, &[width, hidden, hidden, width]),
                    },
                    PromptEncoder::Lstm => {
                        let layers = self.encoder_num_layers;
                        let both = 2 * hidden;
                        Encoder {
                            lstm: Some(Lstm::declare(
                                parameters,
                                "lstm_head",
                                width,
                                hidden,
                                layers,
                            )),
                            layers: declare_mlp(parameters, &[both, both, width]),
                        }
                    }
                };
                let dropout = dropout.clone();
                parameters.derived(KEY, &shape, move || {
                    let table = encoder.forward(embedding.get(), &dropout);
                    table.reshape([rows * width])
                })
            }
        };
        Ok(Box::new(PTuning {
            prompt: Prompt {
                method: Self::NAME,
                table,
                length: self.prompt.num_virtual_tokens,
                pooled: self.prompt.pooled_token,
            },
            dropout,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [rows, width] = self.prompt.shape(Self::NAME, base)?;
        let hidden = self.hidden_size(base);
        let of_mlp = |sizes: &[usize]| -> usize {
            let layers = sizes.windows(2);
            layers.map(|pair| Dense::count([pair[1], pair[0]])).sum()
        };
        let encoder = match self.encoder_reparameterization_type {
            None => 0,
            Some(PromptEncoder::Mlp) => of_mlp(&[width, hidden, hidden, width]),
            Some(PromptEncoder::Lstm) => {
                let both = 2 * hidden;
                Lstm::count(width, hidden, self.encoder_num_layers) + of_mlp(&[both, both, width])
            }
        };
        Ok(rows * width + encoder)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            encoder_hidden_size: Some(self.hidden_size(base)),
            prompt: self.prompt.resolved(),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            encoder_reparameterization_type: None,
            ..self.clone()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        PromptSettings::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}

/// Linear layers `mlp_head.0`, `mlp_head.2`, … from each size to the next, as PyTorch starts them.
fn declare_mlp(parameters: &mut ParameterSet, sizes: &[usize]) -> Vec<Dense> {
    let layers = sizes.windows(2).enumerate();
    layers
        .map(|(at, pair)| {
            let bound = 1.0 / (pair[0] as f64).sqrt();
            let init = (Init::Uniform { bound }, Init::Uniform { bound });
            let path = format!("mlp_head.{}", 2 * at);
            Dense::declare(parameters, &path, [pair[1], pair[0]], init)
        })
        .collect()
}

/// The network that computes the virtual tokens.
#[derive(Debug)]
struct Encoder {
    lstm: Option<Lstm>,
    /// Linear layers with ReLU between them.
    layers: Vec<Dense>,
}

impl Encoder {
    /// The virtual tokens `[p, d]` of `embedding`, `[p, d]`.
    fn forward(&self, embedding: Tensor<2>, dropout: &StepDropout) -> Tensor<2> {
        let states = match &self.lstm {
            Some(lstm) => lstm.forward(embedding, |layer, states| dropout.apply(layer, states)),
            None => embedding,
        };
        let mut layers = self.layers.iter();
        let first = layers.next().expect("there are at least two layers");
        layers.fold(first.forward(states), |states, layer| {
            layer.forward(Activation::Relu.apply(states))
        })
    }
}

/// Dropout in what is computed once a step: each step has its own draw.
#[derive(Debug)]
struct StepDropout {
    p: f64,
    seed: u64,
    /// The step that is computed, from 1; 0 outside of steps, where nothing is dropped.
    step: AtomicU64,
}

impl StepDropout {
    fn new(p: f64, seed: u64) -> Self {
        Self {
            p,
            seed,
            step: AtomicU64::new(0),
        }
    }

    fn set_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn apply(&self, layer: usize, states: Tensor<2>) -> Tensor<2> {
        let rows = Sequences::new(vec![0, states.dims()[0]]);
        let rows = match self.step.load(Ordering::Relaxed) {
            0 => rows,
            step => rows.with_keys(vec![random::derive_key(self.seed, step)]),
        };
        let site = name_id("p_tuning.encoder_dropout") + layer as u64;
        dropout(states, self.p, site, &rows)
    }
}

/// The virtual tokens, and the dropout of the network that computes them.
#[derive(Debug)]
struct PTuning {
    prompt: Prompt,
    dropout: Arc<StepDropout>,
}

impl Adapter for PTuning {
    fn virtual_tokens(&self) -> usize {
        self.prompt.virtual_tokens()
    }

    fn soft_tokens(&self) -> usize {
        self.prompt.soft_tokens()
    }

    fn pools_text(&self) -> bool {
        self.prompt.pools_text()
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        self.prompt.embeddings(embedded, cx)
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.prompt.uses(hook)
    }
}

impl Method for PTuning {
    fn before_step(&mut self, info: StepInfo) {
        self.dropout.set_step(info.step + 1);
    }

    fn after_step(&mut self, _gradients: &Gradients, _info: StepInfo) {
        self.dropout.set_step(0);
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        self.prompt.stored(parameters)
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.prompt.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.prompt.changed()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    /// The counts of PEFT's encoders over bert-base: twenty virtual tokens, hidden size 768.
    #[test]
    fn counts_on_bert_base_are_those_of_peft() {
        let settings = |kind: &str| json!({ "num_virtual_tokens": 20, "encoder_reparameterization_type": kind });
        for (kind, expected) in [("MLP", 1_787_136), ("LSTM", 27_174_144)] {
            assert_eq!(
                bert_base_count("p-tuning", settings(kind), expected),
                expected
            );
        }
    }
}
