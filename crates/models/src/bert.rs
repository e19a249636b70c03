//! BERT and its architectural twins, MiniLM among them (Devlin et al. 2019).
//!
//! Post-norm encoder: `x₁ = LN(x + Attn(x))`, `x₂ = LN(x₁ + FF(x₁))`. Tensor names are those of
//! Hugging Face's `BertForSequenceClassification`.

use burn::tensor::Tensor;
use epiphyte_ops::{
    Activation, Attention, Sequences, add_layer_norm, attention, dropout, fork, layer_norm,
};

use crate::base::{Base, Builder, Dimensions, Linear, Matrix, Vector};
use crate::config::{BertConfig, activation};
use crate::group::apart;
use crate::model::{Hidden, Tokens, Transformer};
use crate::seam::{Adapter, Embedded, Part, Place, Role, Sublayer, name_id};
use crate::{ModelError, Task};

/// A BERT encoder with pooler and, for classification, a head.
#[derive(Debug)]
pub struct Bert {
    base: Base,
    config: BertConfig,
    activation: Activation,
    word_embeddings: Matrix,
    position_embeddings: Matrix,
    token_type_embeddings: Matrix,
    embedding_norm: LayerNorm,
    layers: Vec<Layer>,
    pooler: Linear,
    classifier: Linear,
}

#[derive(Debug)]
struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
}

#[derive(Debug)]
struct LayerNorm {
    weight: Vector,
    bias: Vector,
    epsilon: f64,
}

impl LayerNorm {
    fn build(builder: &mut Builder<'_>, path: &str, config: &BertConfig) -> Self {
        Self {
            weight: builder.vector(&format!("{path}.weight"), config.hidden_size),
            bias: builder.vector(&format!("{path}.bias"), config.hidden_size),
            epsilon: config.layer_norm_eps,
        }
    }

    fn forward(&self, x: Tensor<2>, adapter: &dyn Adapter) -> Tensor<2> {
        layer_norm(
            x,
            self.weight.get(adapter),
            self.bias.get(adapter),
            self.epsilon,
        )
    }

    /// The norm of `x + residual`.
    fn forward_sum(&self, x: Tensor<2>, residual: Tensor<2>, adapter: &dyn Adapter) -> Tensor<2> {
        add_layer_norm(
            x,
            residual,
            self.weight.get(adapter),
            self.bias.get(adapter),
            self.epsilon,
        )
    }

    /// Where adapters may act on this norm.
    fn places(&self) -> [Place<'_>; 2] {
        [self.weight.place(), self.bias.place()]
    }
}

impl Bert {
    /// Builds the model for `task` out of what `builder` reads.
    ///
    /// # Errors
    /// If tensors cannot be read, or the task is not one for an encoder.
    pub(crate) fn build(
        config: &BertConfig,
        task: Task,
        mut builder: Builder<'_>,
    ) -> Result<Self, ModelError> {
        let activation = activation(&config.hidden_act)?;
        let Some(labels) = task.outputs() else {
            return Err(ModelError::TaskNotSupported {
                model_type: "bert",
                task: task.to_string(),
            });
        };
        let (width, middle) = (config.hidden_size, config.intermediate_size);
        let b = &mut builder;
        let word = "bert.embeddings.word_embeddings.weight";
        let word_embeddings = b.matrix(word, [config.vocab_size, width]);
        let position_embeddings = b.matrix(
            "bert.embeddings.position_embeddings.weight",
            [config.max_position_embeddings, width],
        );
        let token_type_embeddings = b.matrix(
            "bert.embeddings.token_type_embeddings.weight",
            [config.type_vocab_size, width],
        );
        let embedding_norm = LayerNorm::build(b, "bert.embeddings.LayerNorm", config);
        let layers = (0..config.num_hidden_layers)
            .map(|index| {
                let path = format!("bert.encoder.layer.{index}");
                let mut linear = |name: &str, role, shape| {
                    b.linear(&format!("{path}.{name}"), Some(index), role, shape, true)
                };
                let query = linear("attention.self.query", Role::Query, [width, width]);
                let key = linear("attention.self.key", Role::Key, [width, width]);
                let value = linear("attention.self.value", Role::Value, [width, width]);
                let attention_output = linear(
                    "attention.output.dense",
                    Role::AttentionOutput,
                    [width, width],
                );
                let intermediate =
                    linear("intermediate.dense", Role::FeedForwardIn, [middle, width]);
                let output = linear("output.dense", Role::FeedForwardOut, [width, middle]);
                let attention_norm =
                    LayerNorm::build(b, &format!("{path}.attention.output.LayerNorm"), config);
                let output_norm = LayerNorm::build(b, &format!("{path}.output.LayerNorm"), config);
                Layer {
                    query,
                    key,
                    value,
                    attention_output,
                    attention_norm,
                    intermediate,
                    output,
                    output_norm,
                }
            })
            .collect();
        let pooler = b.linear(
            "bert.pooler.dense",
            None,
            Role::Pooler,
            [width, width],
            true,
        );
        let classifier = b.linear("classifier", None, Role::Head, [labels, width], true);
        let dimensions = Dimensions {
            model_type: "bert".to_owned(),
            layers: config.num_hidden_layers,
            width,
            heads: config.num_attention_heads,
            kv_heads: config.num_attention_heads,
            head_dim: width / config.num_attention_heads,
            vocabulary: config.vocab_size,
            max_positions: config.max_position_embeddings,
        };
        Ok(Self {
            base: builder.finish(dimensions, word, Some("classifier"))?,
            config: config.clone(),
            activation,
            word_embeddings,
            position_embeddings,
            token_type_embeddings,
            embedding_norm,
            layers,
            pooler,
            classifier,
        })
    }

    /// Dropout, the adapter's place, residual and norm.
    fn join(
        &self,
        join: &Join<'_>,
        [output, x]: [Tensor<2>; 2],
        adapter: &dyn Adapter,
        sequences: &Sequences,
    ) -> Tensor<2> {
        let [weight, bias] = join.norm.places();
        let places = [Place::Sublayer, weight, bias];
        let p = self.config.hidden_dropout_prob;
        apart(
            adapter,
            &places,
            [output, x],
            sequences,
            |[output, x], adapter, sequences| {
                let output = dropout(output, p, join.site, sequences);
                let close = |output: Tensor<2>| join.norm.forward_sum(output, x.clone(), adapter);
                let sublayer = Sublayer {
                    layer: join.layer,
                    part: join.part,
                    input: &x,
                    residual: &x,
                    close: &close,
                    sequences,
                };
                close(adapter.sublayer(&sublayer, output))
            },
        )
    }
}

/// How a half of a layer joins the residual stream.
struct Join<'a> {
    layer: usize,
    part: Part,
    norm: &'a LayerNorm,
    /// Names the place for dropout.
    site: u64,
}

impl Transformer for Bert {
    fn base(&self) -> &Base {
        &self.base
    }

    fn drops(&self) -> bool {
        let config = &self.config;
        config.hidden_dropout_prob > 0.0 || config.attention_probs_dropout_prob > 0.0
    }

    fn embed(&self, tokens: &Tokens<'_>, adapter: &dyn Adapter) -> Hidden {
        let embedded = adapter.embeddings(Embedded {
            states: self.word_embeddings.get(adapter).gather(tokens.ids),
            type_ids: tokens.type_ids.to_vec(),
            sequences: tokens.sequences.clone(),
        });
        let Embedded {
            states,
            type_ids,
            sequences,
        } = embedded;
        let offset = adapter.prefix_length();
        let positions: Vec<u32> = sequences
            .positions()
            .map(|at| (at + offset) as u32)
            .collect();
        let states = states
            + self.token_type_embeddings.get(adapter).gather(&type_ids)
            + self.position_embeddings.get(adapter).gather(&positions);
        let states = self.embedding_norm.forward(states, adapter);
        let p = self.config.hidden_dropout_prob;
        Hidden {
            states: dropout(states, p, name_id("bert.embeddings"), &sequences),
            sequences,
            angles: None,
        }
    }

    fn resume(&self, states: Tensor<2>, sequences: &Sequences) -> Hidden {
        Hidden {
            states,
            sequences: sequences.clone(),
            angles: None,
        }
    }

    fn layer(
        &self,
        index: usize,
        hidden: Hidden,
        picked: Option<&[usize]>,
        adapter: &dyn Adapter,
    ) -> Hidden {
        let layer = &self.layers[index];
        let shape = Attention {
            heads: self.config.num_attention_heads,
            kv_heads: self.config.num_attention_heads,
            head_dim: self.config.hidden_size / self.config.num_attention_heads,
            scale: (1.0 / (self.base.dimensions.head_dim as f64).sqrt()) as f32,
            causal: false,
            window: None,
            dropout: self.config.attention_probs_dropout_prob,
        };
        let sequences = &hidden.sequences;
        let [to_q, to_k, to_v, seen, x] = fork(hidden.states.clone());
        let hidden = hidden.with(x);
        let q = layer.query.forward(to_q, adapter, sequences);
        let k = layer.key.forward(to_k, adapter, sequences);
        let v = layer.value.forward(to_v, adapter, sequences);
        let site = layer.query.site().id();
        let context = apart(
            adapter,
            &[Place::Prefix],
            [q, k, v, seen],
            sequences,
            |[q, k, v, x], adapter, sequences| {
                let prefix = adapter.prefix(index, &x, sequences);
                attention(&shape, sequences, q, k, v, prefix, site)
            },
        );
        let (context, hidden) = match picked {
            Some(rows) => (
                hidden.with(context).picked(rows).states,
                hidden.picked(rows),
            ),
            None => (context, hidden),
        };
        let (x, sequences) = (&hidden.states, &hidden.sequences);
        let output = layer.attention_output.forward(context, adapter, sequences);
        let join = Join {
            layer: index,
            part: Part::Attention,
            norm: &layer.attention_norm,
            site: layer.attention_output.site().id(),
        };
        let x = self.join(&join, [output, x.clone()], adapter, sequences);
        let [to_middle, x] = fork(x);
        let middle = layer.intermediate.forward(to_middle, adapter, sequences);
        let middle = self.activation.apply(middle);
        let output = layer.output.forward(middle, adapter, sequences);
        let join = Join {
            layer: index,
            part: Part::FeedForward,
            norm: &layer.output_norm,
            site: layer.output.site().id(),
        };
        let x = self.join(&join, [output, x], adapter, sequences);
        hidden.with(x)
    }

    fn finish(&self, hidden: Hidden, _adapter: &dyn Adapter) -> Hidden {
        hidden
    }

    fn head_rows(&self, sequences: &Sequences) -> Vec<usize> {
        sequences.firsts().to_vec()
    }

    fn classify(&self, read: Hidden, adapter: &dyn Adapter) -> Tensor<2> {
        let Hidden {
            states, sequences, ..
        } = read;
        let pooled = self.pooler.forward(states, adapter, &sequences).tanh();
        let p = self
            .config
            .classifier_dropout
            .unwrap_or(self.config.hidden_dropout_prob);
        let pooled = dropout(pooled, p, self.classifier.site().id(), &sequences);
        self.classifier.forward(pooled, adapter, &sequences)
    }

    fn language_head(&self) -> Option<&Linear> {
        None
    }
}
