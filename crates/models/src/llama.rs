//! The Llama family: Llama, Mistral and Qwen2.
//!
//! Pre-norm decoder (Touvron et al. 2023): `x₁ = x + Attn(N(x))`, `x₂ = x₁ + FF(N(x₁))` with RMS
//! norms, rotary positions, grouped heads and a gated feed-forward. Tensor names are those of Hugging
//! Face's `LlamaForCausalLM` and `LlamaForSequenceClassification`.

use burn::tensor::Tensor;
use epiphyte_ops::{
    Activation, Angles, Attention, Sequences, add, attention, rms_norm, rotate, rows,
};

use crate::base::{Base, Builder, Dimensions, Linear, Matrix, Vector};
use crate::config::LlamaConfig;
use crate::load::activation;
use crate::model::{Hidden, Tokens, Transformer};
use crate::seam::{Adapter, Embedded, Part, Role, Sublayer};
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

    fn layer(
        &self,
        index: usize,
        x: Tensor<2>,
        angles: &Angles,
        adapter: &dyn Adapter,
        sequences: &Sequences,
    ) -> Tensor<2> {
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
        let normed = rms_norm(
            x.clone(),
            layer.attention_norm.get(adapter),
            config.rms_norm_eps,
        );
        let q = layer.query.forward(normed.clone(), adapter, sequences);
        let k = layer.key.forward(normed.clone(), adapter, sequences);
        let v = layer.value.forward(normed.clone(), adapter, sequences);
        let q = rotate(q, angles, config.head_dim);
        let k = rotate(k, angles, config.head_dim);
        let prefix = adapter.prefix(index, &normed, sequences);
        let context = attention(&shape, sequences, q, k, v, prefix, layer.query.site().id());
        let output = layer.attention_output.forward(context, adapter, sequences);
        let x = join(
            index,
            Part::Attention,
            &normed,
            &x,
            output,
            adapter,
            sequences,
        );

        let normed = rms_norm(
            x.clone(),
            layer.feed_forward_norm.get(adapter),
            config.rms_norm_eps,
        );
        let gate = layer.gate.forward(normed.clone(), adapter, sequences);
        let up = layer.up.forward(normed.clone(), adapter, sequences);
        let output = layer
            .down
            .forward(self.activation.gate(gate, up), adapter, sequences);
        join(
            index,
            Part::FeedForward,
            &normed,
            &x,
            output,
            adapter,
            sequences,
        )
    }
}

/// The adapter's place and the residual.
fn join(
    layer: usize,
    part: Part,
    input: &Tensor<2>,
    residual: &Tensor<2>,
    output: Tensor<2>,
    adapter: &dyn Adapter,
    sequences: &Sequences,
) -> Tensor<2> {
    let close = |output: Tensor<2>| add(residual.clone(), output);
    let sublayer = Sublayer {
        layer,
        part,
        input,
        residual,
        close: &close,
        sequences,
    };
    close(adapter.sublayer(&sublayer, output))
}

impl Transformer for Llama {
    fn base(&self) -> &Base {
        &self.base
    }

    fn hidden(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden {
        let embedded = adapter.embeddings(Embedded {
            states: self.word_embeddings.get(adapter).gather(tokens.ids),
            type_ids: tokens.type_ids.to_vec(),
            sequences: tokens.sequences.clone(),
        });
        let Embedded {
            mut states,
            sequences,
            ..
        } = embedded;
        let offset = adapter.prefix_length();
        let positions: Vec<usize> = sequences.positions().map(|at| at + offset).collect();
        let (cos, sin) = self.config.rope.tables(&positions);
        let angles = Angles::new(cos, sin);
        for index in 0..self.layers.len() {
            states = adapter.hidden(index, states, &sequences);
            states = self.layer(index, states, &angles, adapter, &sequences);
        }
        let states = adapter.hidden(self.layers.len(), states, &sequences);
        let states = rms_norm(states, self.norm.get(adapter), self.config.rms_norm_eps);
        Hidden { states, sequences }
    }

    fn classify(&self, hidden: Hidden, adapter: &dyn Adapter) -> Tensor<2> {
        let Hidden { states, sequences } = hidden;
        let lasts: Vec<usize> = sequences.lasts().collect();
        self.head
            .forward(rows(states, &lasts), adapter, &sequences.each_alone())
    }

    fn language_head(&self) -> Option<&Linear> {
        (!self.classifies).then_some(&self.head)
    }
}
