//! BERT and models of its architecture, such as MiniLM (Devlin et al. 2019, arXiv 1810.04805).
//!
//! Encoder with the norm after the residual addition: `x₁ = LN(x + Attn(x))`, `x₂ = LN(x₁ +
//! FF(x₁))`. Tensor names are those of Hugging Face's `BertForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::encoder::SharedLayers;
use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::adapter::Role;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, DisentangledShape, Embeddings, FeedForwardNames,
    FeedForwardShape, Layer, LayerNames, LayerShape, Matrix, Norm, NormPlacement, NormShape,
    Positions, Projections, RelativeBias, RelativeEmbeddings, Stack,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    Labels, architectures, dropout, epsilon, hidden_act, num_hidden_layers, size, token,
};
use crate::heads::{ClassificationHead, Head, HeadKind, MaskedLmNames, MaskedLmShape, NewHead};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

pub(super) const FAMILY: Family = Family {
    name: "BERT, MiniLM",
    model_types: &["bert"],
    examples: || {
        vec![json!({
            "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        })]
    },
    parse: |json, _| {
        let config = BertConfig::from_json(json, &DEFAULTS)?;
        Ok(Box::new(config))
    },
};

pub(super) const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["query", "value"],
    adalora: &["query", "value"],
    ia3: &["key", "value", "output.dense"],
    ia3_feedforward: &["output.dense"],
};

pub(super) const NAMES: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "attention.self.query",
        key: "attention.self.key",
        value: "attention.self.value",
        output: "attention.output.dense",
        norms: None,
    },
    attention_norm: "attention.output.LayerNorm",
    cross_attention: None,
    feed_forward: FeedForwardNames {
        gate: None,
        up: "intermediate.dense",
        down: "output.dense",
    },
    feed_forward_norm: "output.LayerNorm",
    output_norms: None,
};

/// The head of masked language models.
pub(super) static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "cls.predictions.transform.dense",
    norm: "cls.predictions.transform.LayerNorm",
    decoder: "cls.predictions.decoder",
    bias: "cls.predictions.bias",
    modules: &["cls.predictions"],
};

/// The configuration of a BERT encoder (Devlin et al. 2018, arXiv:1810.04805).
#[derive(Debug, Clone, PartialEq)]
pub struct BertConfig {
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the word embeddings; default 30522.
    pub vocab_size: usize,
    /// Width of the hidden states; default 768.
    pub hidden_size: usize,
    /// Number of layers; default 12.
    pub num_hidden_layers: usize,
    /// Heads of a layer, which divide the width; default 12.
    pub num_attention_heads: usize,
    /// Width inside the feed-forward block; default 3072.
    pub intermediate_size: usize,
    /// Activation inside the feed-forward block; default `gelu`.
    pub hidden_act: Activation,
    /// Dropout after the embeddings and after each sub-layer; default 0.1.
    pub hidden_dropout_prob: f64,
    /// Dropout on attention probabilities; default 0.1.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position embeddings: the longest sequence; default 512.
    pub max_position_embeddings: usize,
    /// Rows of the token type embeddings; default 2.
    pub type_vocab_size: usize,
    /// Standard deviation of newly initialized weights; default 0.02.
    pub initializer_range: f64,
    /// Epsilon of the layer norms; default 1e-12.
    pub layer_norm_eps: f64,
    /// The padding token; default 0.
    pub pad_token_id: Option<u32>,
    /// Dropout before a classification head; where absent, `hidden_dropout_prob` is used.
    pub classifier_dropout: Option<f64>,
    /// Whether a masked language model's decoder is the word embeddings; default true.
    pub tie_word_embeddings: bool,
    /// The classes of a classification head.
    pub labels: Labels,
}

/// What families of this architecture differ in where a key is absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct EncoderDefaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) intermediate_size: usize,
    pub(super) pad_token_id: Option<u32>,
    /// 0 where tokens have no segments unless the configuration says so.
    pub(super) type_vocab_size: usize,
    pub(super) layer_norm_eps: f64,
}

/// BERT's own.
pub(super) const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab_size: 30522,
    hidden_size: 768,
    num_hidden_layers: 12,
    num_attention_heads: 12,
    intermediate_size: 3072,
    pad_token_id: Some(0),
    type_vocab_size: 2,
    layer_norm_eps: 1e-12,
};

impl BertConfig {
    /// Reads the configuration, with the defaults in which families of this architecture differ.
    pub(super) fn from_json(
        json: &JsonObject,
        defaults: &EncoderDefaults,
    ) -> Result<Self, ModelError> {
        refuse_other_architectures(json)?;
        let vocab_size = size(json, "vocab_size", defaults.vocab_size)?;
        let config = Self {
            architectures: architectures(json)?,
            vocab_size,
            hidden_size: size(json, "hidden_size", defaults.hidden_size)?,
            num_hidden_layers: num_hidden_layers(json, defaults.num_hidden_layers)?,
            num_attention_heads: size(json, "num_attention_heads", defaults.num_attention_heads)?,
            intermediate_size: size(json, "intermediate_size", defaults.intermediate_size)?,
            hidden_act: hidden_act(json, "gelu")?,
            hidden_dropout_prob: dropout(json, "hidden_dropout_prob", 0.1)?,
            attention_probs_dropout_prob: dropout(json, "attention_probs_dropout_prob", 0.1)?,
            max_position_embeddings: size(json, "max_position_embeddings", 512)?,
            type_vocab_size: match defaults.type_vocab_size {
                0 => json.get("type_vocab_size", 0)?,
                default => size(json, "type_vocab_size", default)?,
            },
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            layer_norm_eps: epsilon(json, "layer_norm_eps", defaults.layer_norm_eps)?,
            pad_token_id: token(json, "pad_token_id", defaults.pad_token_id, vocab_size)?,
            classifier_dropout: match json.get("classifier_dropout", None::<f64>)? {
                None => None,
                Some(_) => Some(dropout(json, "classifier_dropout", 0.0)?),
            },
            tie_word_embeddings: json.flag("tie_word_embeddings", true)?,
            labels: Labels::from_json(json)?,
        };
        if !config
            .hidden_size
            .is_multiple_of(config.num_attention_heads)
        {
            return Err(json.invalid(
                "num_attention_heads",
                format!(
                    "{} heads do not divide hidden_size {}",
                    config.num_attention_heads, config.hidden_size
                ),
            ));
        }
        Ok(config)
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }
}

/// Refuses the options with which `model_type` `bert` computes something else.
fn refuse_other_architectures(json: &JsonObject) -> Result<(), ModelError> {
    let positions = json.get("position_embedding_type", Some("absolute".to_owned()))?;
    if let Some(other) = positions.filter(|it| it != "absolute") {
        return Err(json.unsupported("position_embedding_type", format!("`{other}`"), "absolute"));
    }
    for key in ["is_decoder", "add_cross_attention"] {
        if json.flag(key, false)? {
            return Err(json.unsupported(key, "true", "false: an encoder"));
        }
    }
    if json.object("pruned_heads")?.is_some() {
        return Err(json.unsupported("pruned_heads", "a list of heads", "no pruned heads"));
    }
    Ok(())
}

impl FamilyConfig for BertConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: "bert".to_owned(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            vocab_size: self.vocab_size,
            max_position_embeddings: Some(self.max_position_embeddings),
            initializer_range: self.initializer_range,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            pad_token_id: self.pad_token_id,
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(self.dropped(p))
    }

    fn key_rules(&self, _head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: BERT.prefix,
            ignorable: &[
                "embeddings.position_ids",
                "cls.predictions.",
                "cls.seq_relationship.",
            ],
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        head.class_of("Bert")
    }

    fn adapterhub_site(&self, module: &str) -> Option<String> {
        Some(module.to_owned())
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path()
    }

    fn optional_modules(&self) -> &'static [&'static str] {
        &[POOLER]
    }

    fn masked_lm(&self) -> Option<&'static MaskedLmNames> {
        Some(&MASKED_LM)
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &[BERT.words, "cls.predictions.decoder.weight"],
            false => &[],
        }
    }

    fn computation(&self) -> Value {
        self.encoder_computation()
    }

    fn dropouts(&self) -> Value {
        self.encoder_dropouts()
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let b = &mut builder;
        let stack = self.encoder(b, &BERT, EncoderOptions::default())?;
        b.at(Depth::Head);
        let task_head = head.path();
        let (head, new_modules) = self.head(b, head, &stack.embeddings.words, tied)?;
        let base = builder.finish(Summary {
            dimensions: self.dimensions("bert", self.max_position_embeddings),
            default_targets: TARGETS,
            word_embeddings: BERT.words,
            prefix: BERT.prefix,
            task_head,
            new_modules,
        })?;
        Ok(Model::new(base, Box::new(stack), head))
    }
}

impl BertConfig {
    fn head(
        &self,
        b: &mut Builder<'_>,
        head: HeadKind,
        words: &Matrix,
        tied: bool,
    ) -> Result<NewHead, ModelError> {
        let masked_lm = (&MASKED_LM, self.masked_lm_shape(self.hidden_act));
        if let Some(head) = head.untrained(b, masked_lm, words, tied) {
            return Ok(head);
        }
        let Some((outputs, path)) = head.outputs().zip(head.path()) else {
            return Err(ModelError::no_head("bert", head));
        };
        let dense = format!("{POOLER}.dense");
        let has_pooler = b.has(&format!("{dense}.weight"));
        let (shape, dropout) = ([outputs, self.hidden_size], self.head_dropout());
        let head = match head {
            HeadKind::TokenClassification { .. } => {
                ClassificationHead::of_tokens(b, path, shape, dropout)
            }
            HeadKind::QuestionAnswering => ClassificationHead::of_tokens(b, path, shape, 0.0),
            _ => ClassificationHead::pooled(b, &dense, shape, dropout),
        };
        let new_module = (head.dense.is_some() && !has_pooler).then_some(POOLER);
        let new_modules = new_module.into_iter().collect();
        Ok((Head::Classification(head), new_modules))
    }

    /// The shape of a masked language model's head.
    pub(super) fn masked_lm_shape(&self, activation: Activation) -> MaskedLmShape {
        MaskedLmShape {
            hidden_size: self.hidden_size,
            activation,
            norm: self.norm(),
            dense_bias: true,
            decoder_bias: true,
        }
    }

    fn norm(&self) -> NormShape {
        NormShape {
            rms: false,
            shift: true,
            epsilon: self.layer_norm_eps,
            offset: 0.0,
        }
    }
}

/// How a family names the embeddings and layers of a BERT encoder.
#[derive(Debug, PartialEq)]
pub(super) struct EncoderNames {
    /// What all names begin with.
    pub(super) prefix: &'static str,
    /// The word embeddings.
    pub(super) words: &'static str,
    /// The module of the embeddings.
    pub(super) embeddings: &'static str,
    /// What precedes a layer's number in its path.
    pub(super) layers: &'static str,
    /// The names below a layer's path.
    pub(super) layer: LayerNames,
    /// Whether tokens have segments.
    pub(super) has_segments: bool,
}

/// What families add to a BERT encoder.
#[derive(Default)]
pub(super) struct EncoderOptions {
    /// Positions are counted from this token's.
    pub(super) padding: Option<u32>,
    /// The size of the embeddings, where it is not the hidden size, and the path of the layer
    /// between the two.
    pub(super) embedding_size: Option<(usize, &'static str)>,
    /// The relative position bias of self-attention.
    pub(super) bias: Option<RelativeBias>,
    /// The embeddings of relative positions, and how scores read them.
    pub(super) positions: Option<(RelativeEmbeddings, DisentangledShape)>,
    /// Whether there are no learned positions.
    pub(super) without_positions: bool,
    /// Layers that share their modules.
    pub(super) shared_layers: Option<SharedLayers>,
    /// Whether self-attention, and the feed-forward, add their output without dropout.
    pub(super) keeps_outputs: [bool; 2],
}

/// The pooler, which masked language models and models for tokens lack.
const POOLER: &str = "bert.pooler";

const BERT: EncoderNames = EncoderNames {
    prefix: "bert.",
    words: "bert.embeddings.word_embeddings.weight",
    embeddings: "bert.embeddings",
    layers: "bert.encoder.layer",
    layer: NAMES,
    has_segments: true,
};

/// What families of this architecture share.
impl BertConfig {
    /// A copy in which every dropout is `p`.
    pub(super) fn dropped(&self, p: f64) -> Self {
        Self {
            hidden_dropout_prob: p,
            attention_probs_dropout_prob: p,
            classifier_dropout: None,
            ..self.clone()
        }
    }

    /// The values on which the encoder's results depend.
    pub(super) fn encoder_computation(&self) -> Value {
        json!({
            "num_attention_heads": self.num_attention_heads,
            "hidden_act": self.hidden_act.name(),
            "layer_norm_eps": self.layer_norm_eps,
        })
    }

    /// The dropout probabilities.
    pub(super) fn encoder_dropouts(&self) -> Value {
        json!({
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "classifier_dropout": self.head_dropout(),
        })
    }

    /// Dropout in the classification head.
    pub(super) fn head_dropout(&self) -> f64 {
        self.classifier_dropout.unwrap_or(self.hidden_dropout_prob)
    }

    /// Embeddings and layers.
    pub(super) fn encoder(
        &self,
        b: &mut Builder<'_>,
        names: &EncoderNames,
        options: EncoderOptions,
    ) -> Result<Stack, ModelError> {
        let mut shape = self.layer_shape()?;
        let [keeps_attention, keeps_feed_forward] = options.keeps_outputs;
        if keeps_attention {
            shape.attention_output_dropout = 0.0;
        }
        if keeps_feed_forward {
            shape.dropout = 0.0;
        }
        let (norm, path) = (shape.norm, names.embeddings);
        let size = options
            .embedding_size
            .map_or(self.hidden_size, |(size, _)| size);
        let padding = options.padding;
        let (relative, scores) = options.positions.unzip();
        if let Some(scores) = scores {
            shape.attention.scale = scores.scale(self.head_dim());
            shape.attention.disentangled = Some(scores);
        }
        let table = |name: &str| format!("{path}.{name}_embeddings.weight");
        let words = b.matrix(names.words, [self.vocab_size, size]);
        let has_positions = !options.without_positions;
        let positions = has_positions
            .then(|| b.matrix(&table("position"), [self.max_position_embeddings, size]));
        let embeddings = Embeddings {
            words,
            scale: None,
            positions: positions.map(|table| Positions {
                table,
                first: padding.map_or(0, |padding| padding as usize + 1),
                padding,
            }),
            segments: (names.has_segments && self.type_vocab_size > 0)
                .then(|| b.matrix(&table("token_type"), [self.type_vocab_size, size])),
            norm: Some(Norm::build(b, &format!("{path}.LayerNorm"), size, norm)),
            dropout: self.hidden_dropout_prob,
            projection: options.embedding_size.map(|(size, path)| {
                let role = Role::EmbeddingProjection;
                b.linear(path, role, [self.hidden_size, size], true)
            }),
            path,
        };
        let layers = (0..self.num_hidden_layers).map(|index| {
            let path = match options.shared_layers {
                Some(shared) => shared.path(names.layers, index),
                None => format!("{}.{index}", names.layers),
            };
            Layer::build(b.at(Depth::Layer(index)), &path, &names.layer, &shape)
        });
        Ok(Stack {
            embeddings,
            layers: layers.collect(),
            bias: options.bias,
            positions: relative,
            final_norm: None,
            final_dropout: 0.0,
            rotary: Vec::new(),
            has_dropout: self.hidden_dropout_prob > 0.0 || self.attention_probs_dropout_prob > 0.0,
        })
    }

    /// The sizes of a model of this architecture that reads at most `max_positions` tokens.
    pub(super) fn dimensions(&self, model_type: &str, max_positions: usize) -> Dimensions {
        Dimensions {
            model_type: model_type.to_owned(),
            layers: self.num_hidden_layers,
            encoder_layers: 0,
            hidden_size: self.hidden_size,
            heads: self.num_attention_heads,
            kv_heads: self.num_attention_heads,
            head_dim: self.head_dim(),
            vocabulary: self.vocab_size,
            type_vocabulary: self.type_vocab_size,
            max_positions: Some(max_positions),
        }
    }

    fn layer_shape(&self) -> Result<LayerShape, ModelError> {
        Ok(LayerShape {
            hidden_size: self.hidden_size,
            norm: self.norm(),
            placement: NormPlacement::After,
            parallel: false,
            attention: AttentionShape {
                heads: self.num_attention_heads,
                kv_heads: self.num_attention_heads,
                head_dim: self.head_dim(),
                scale: (1.0 / (self.head_dim() as f64).sqrt()) as f32,
                softcap: None,
                causal: false,
                window: None,
                dropout: self.attention_probs_dropout_prob,
                projections: Projections::Separate,
                qkv_bias: true,
                output_bias: true,
                rotary: false,
                rotary_set: 0,
                disentangled: None,
                norms: None,
            },
            cross_attention: None,
            feed_forward: FeedForwardShape {
                intermediate_size: self.intermediate_size,
                activation: self.hidden_act,
                gated: false,
                packed: false,
                bias: true,
                conv1d: false,
                dropout: 0.0,
            },
            dropout: self.hidden_dropout_prob,
            attention_output_dropout: self.hidden_dropout_prob,
            attention_norm: true,
        })
    }
}
