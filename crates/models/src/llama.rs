//! The Llama family: Llama, Mistral and Qwen2.
//!
//! Pre-norm decoder (Touvron et al. 2023): `x₁ = x + Attn(N(x))`, `x₂ = x₁ + FF(N(x₁))` with RMS
//! norms, rotary positions, grouped heads and a gated feed-forward. Tensor names are those of Hugging
//! Face's `LlamaForCausalLM` and `LlamaForSequenceClassification`.

use burn::tensor::Tensor;
use epiphyte_ops::{
    Activation, Angles, Attention, Sequences, add, attention, fork, rms_norm, rotate,
};

use crate::base::{Base, Builder, Dimensions, Linear, Matrix, Vector};
use crate::config::{LlamaConfig, activation};
use crate::group::apart;
use crate::model::{Hidden, Tokens, Transformer};
use crate::seam::{Adapter, Embedded, Part, Place, Role, Sublayer};
use crate::{ModelError, Task};

/// A Llama-like decoder with a language-model head or a classification head.
#[derive(Debug)]
pub struct Llama {
    base: Base,
    config: LlamaConfig,
    activation: Activation,
    word_embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Vector,
    head: Linear,
    classifies: bool,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Vector,
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    feed_forward_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Llama {
    /// Builds the model for `task` out of what `builder` reads; a `tied` head is the word embeddings.
    ///
    /// # Errors
    /// If tensors cannot be read, or the configuration asks for something unknown.
    pub(crate) fn build(
        config: &LlamaConfig,
        task: Task,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Self, ModelError> {
        let activation = activation(&config.hidden_act)?;
        let (width, middle) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        );
        let b = &mut builder;
        let word = "model.embed_tokens.weight";
        let word_embeddings = b.matrix(word, [config.vocab_size, width]);
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let path = format!("model.layers.{index}");
                let attention_norm = b.vector(&format!("{path}.input_layernorm.weight"), width);
                let feed_forward_norm =
                    b.vector(&format!("{path}.post_attention_layernorm.weight"), width);
                let mut linear = |name: &str, role, shape, bias| {
                    b.linear(&format!("{path}.{name}"), Some(index), role, shape, bias)
                };
                let (qkv, output) = (config.qkv_bias, config.attention_output_bias);
                Layer {
                    attention_norm,
                    query: linear("self_attn.q_proj", Role::Query, [q_width, width], qkv),
                    key: linear("self_attn.k_proj", Role::Key, [kv_width, width], qkv),
                    value: linear("self_attn.v_proj", Role::Value, [kv_width, width], qkv),
                    attention_output: linear(
                        "self_attn.o_proj",
                        Role::AttentionOutput,
                        [width, q_width],
                        output,
                    ),
                    feed_forward_norm,
                    gate: linear(
                        "mlp.gate_proj",
                        Role::FeedForwardGate,
                        [middle, width],
                        config.mlp_bias,
                    ),
                    up: linear(
                        "mlp.up_proj",
                        Role::FeedForwardIn,
                        [middle, width],
                        config.mlp_bias,
                    ),
                    down: linear(
                        "mlp.down_proj",
                        Role::FeedForwardOut,
                        [width, middle],
                        config.mlp_bias,
                    ),
                }
            })
            .collect();
        let norm = b.vector("model.norm.weight", width);
        let head = match task.outputs() {
            Some(labels) => b.linear("score", None, Role::Head, [labels, width], false),
            None if tied && config.tie_word_embeddings => {
                b.linear_over(word_embeddings.clone(), "lm_head", None, Role::Head, false)
            }
            None => b.linear(
                "lm_head",
                None,
                Role::Head,
                [config.vocab_size, width],
                false,
            ),
        };
        let dimensions = Dimensions {
            model_type: config.model_type.clone(),
            layers: config.num_hidden_layers,
            width,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            vocabulary: config.vocab_size,
            max_positions: config.max_position_embeddings,
        };
        let classifies = task.outputs().is_some();
        Ok(Self {
            base: builder.finish(dimensions, word, classifies.then_some("score"))?,
            config: config.clone(),
            activation,
            word_embeddings,
            layers,
            norm,
            head,
            classifies,
        })
    }

    /// The tokens' rotary angles, their positions counted from `offset`.
    fn angles(&self, sequences: &Sequences, offset: usize) -> Angles {
        let positions: Vec<usize> = sequences.positions().map(|at| at + offset).collect();
        let (cos, sin) = self.config.rope.tables(&positions);
        Angles::new(cos, sin)
    }

    /// An RMS norm of a layer or of the end.
    fn rms_norm(
        &self,
        weight: &Vector,
        x: Tensor<2>,
        adapter: &dyn Adapter,
        sequences: &Sequences,
    ) -> Tensor<2> {
        apart(
            adapter,
            &[weight.place()],
            [x],
            sequences,
            |[x], adapter, _| rms_norm(x, weight.get(adapter), self.config.rms_norm_eps),
        )
    }
}

/// The adapter's place and the residual.
fn join(
    layer: usize,
    part: Part,
    rows: [Tensor<2>; 3],
    adapter: &dyn Adapter,
    sequences: &Sequences,
) -> Tensor<2> {
    apart(
        adapter,
        &[Place::Sublayer],
        rows,
        sequences,
        |[input, residual, output], adapter, sequences| {
            let close = |output: Tensor<2>| add(residual.clone(), output);
            let sublayer = Sublayer {
                layer,
                part,
                input: &input,
                residual: &residual,
                close: &close,
                sequences,
            };
            close(adapter.sublayer(&sublayer, output))
        },
    )
}

impl Transformer for Llama {
    fn base(&self) -> &Base {
        &self.base
    }

    fn drops(&self) -> bool {
        self.config.attention_dropout > 0.0
    }

    fn embed(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden {
        let embedded = adapter.embeddings(Embedded {
            states: self.word_embeddings.get(adapter).gather(tokens.ids),
            type_ids: tokens.type_ids.to_vec(),
            sequences: tokens.sequences.clone(),
        });
        let Embedded {
            states, sequences, ..
        } = embedded;
        Hidden {
            states,
            angles: Some(self.angles(&sequences, adapter.prefix_length())),
            sequences,
        }
    }

    fn resume(&self, states: Tensor<2>, sequences: &Sequences) -> Hidden {
        Hidden {
            states,
            angles: Some(self.angles(sequences, 0)),
            sequences: sequences.clone(),
        }
    }

    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        picked: Option<&[usize]>,
        adapter: &dyn Adapter,
    ) -> Hidden {
        let (layer, config) = (&self.layers[index], &self.config);
        let shape = Attention {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            scale: (1.0 / (config.head_dim as f64).sqrt()) as f32,
            causal: true,
            window: config.window_of_layer(index),
            dropout: config.attention_dropout,
        };
        let (x, sequences) = (&hidden.states, &hidden.sequences);
        let angles = hidden.angles.as_ref();
        let angles = angles.expect("rows are picked above the last attention only");
        let normed = self.rms_norm(&layer.attention_norm, x.clone(), adapter, sequences);
        let [to_q, to_k, to_v, seen, normed] = fork(normed);
        let q = layer.query.forward(to_q, adapter, sequences);
        let k = layer.key.forward(to_k, adapter, sequences);
        let v = layer.value.forward(to_v, adapter, sequences);
        let q = rotate(q, angles, config.head_dim);
        let k = rotate(k, angles, config.head_dim);
        let site = layer.query.site().id();
        let context = apart(
            adapter,
            &[Place::Prefix],
            [q, k, v, seen],
            sequences,
            |[q, k, v, normed], adapter, sequences| {
                let prefix = adapter.prefix(index, &normed, sequences);
                attention(&shape, sequences, q, k, v, prefix, site)
            },
        );
        let (context, normed, hidden) = match picked {
            Some(rows) => {
                let pick = |states| hidden.with(states).picked(rows).states;
                (pick(context), pick(normed), hidden.picked(rows))
            }
            None => (context, normed, hidden),
        };
        let (x, sequences) = (&hidden.states, &hidden.sequences);
        let output = layer.attention_output.forward(context, adapter, sequences);
        let rows = [normed, x.clone(), output];
        let x = join(index, Part::Attention, rows, adapter, sequences);

        let normed = self.rms_norm(&layer.feed_forward_norm, x.clone(), adapter, sequences);
        let [to_gate, to_up, normed] = fork(normed);
        let gate = layer.gate.forward(to_gate, adapter, sequences);
        let up = layer.up.forward(to_up, adapter, sequences);
        let middle = self.activation.gate(gate, up);
        let output = layer.down.forward(middle, adapter, sequences);
        let rows = [normed, x, output];
        let x = join(index, Part::FeedForward, rows, adapter, sequences);
        hidden.with(x)
    }

    fn finish(&self, hidden: Hidden, adapter: &dyn Adapter) -> Hidden {
        let states = self.rms_norm(
            &self.norm,
            hidden.states.clone(),
            adapter,
            &hidden.sequences,
        );
        hidden.with(states)
    }

    fn head_rows(&self, sequences: &Sequences) -> Vec<usize> {
        sequences.lasts().collect()
    }

    fn classify(&self, read: Hidden, adapter: &dyn Adapter) -> Tensor<2> {
        self.head.forward(read.states, adapter, &read.sequences)
    }

    fn language_head(&self) -> Option<&Linear> {
        (!self.classifies).then_some(&self.head)
    }
}
