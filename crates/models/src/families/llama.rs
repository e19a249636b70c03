//! The Llama family: Llama, Mistral and Qwen2.
//!
//! Decoder with norms before the blocks (Touvron et al. 2023): `x₁ = x + Attn(N(x))`, `x₂ = x₁ +
//! FF(N(x₁))` with RMS norms, rotary positions, grouped heads and a gated feed-forward. Tensor
//! names are those of Hugging Face's `LlamaForCausalLM` and `LlamaForSequenceClassification`.
//!
//! The members differ in defaults, in which linear layers have a bias and in which layers have a
//! sliding window (transformers' `models/{llama,mistral,qwen2}/configuration_*.py`). They are read
//! into one form, in which those differences are plain values: model code never asks which of the
//! three it is.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, FeedForwardNames, FeedForwardShape, Layer,
    LayerNames, LayerShape, Norm, NormPlacement, NormShape, Projections, Stack,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    LARGEST_SIZE, Labels, architectures, dropout, epsilon, hidden_act, in_range, num_hidden_layers,
    rope_from_json, size, special_token, token,
};
use crate::heads::{Head, HeadKind};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;
use crate::rope::RotaryEmbedding;

pub(super) const FAMILY: Family = Family {
    name: "Llama, Mistral, Qwen2",
    model_types: &["llama", "mistral", "qwen2"],
    // Heads of 6 make the queries' size 24, unlike the hidden size; two of them share keys.
    examples: || {
        vec![json!({
            "model_type": "llama", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
            "intermediate_size": 24, "max_position_embeddings": 64, "tie_word_embeddings": false,
        })]
    },
    parse: |json, model_type| {
        let kind = match model_type {
            "mistral" => LlamaKind::Mistral,
            "qwen2" => LlamaKind::Qwen2,
            _ => LlamaKind::Llama,
        };
        Ok(Box::new(LlamaConfig::from_json(json, kind)?))
    },
};

const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["q_proj", "v_proj"],
    adalora: &["q_proj", "v_proj"],
    ia3: &["k_proj", "v_proj", "down_proj"],
    ia3_feedforward: &["down_proj"],
};

const NAMES: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
    },
    attention_norm: "input_layernorm",
    cross_attention: None,
    feed_forward: FeedForwardNames {
        gate: Some("mlp.gate_proj"),
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
    feed_forward_norm: "post_attention_layernorm",
};

/// The members of the family, which differ in their defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LlamaKind {
    /// `llama` (Touvron et al. 2023, arXiv:2302.13971).
    Llama,
    /// `mistral` (Jiang et al. 2023, arXiv:2310.06825).
    Mistral,
    /// `qwen2` (Yang et al. 2024, arXiv:2407.10671).
    Qwen2,
}

/// The configuration of a decoder of the Llama family.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// `llama`, `mistral` or `qwen2`.
    pub model_type: String,
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the embeddings and of the head; default 32000, Qwen2 151936.
    pub vocab_size: usize,
    /// Width of the hidden states; default 4096.
    pub hidden_size: usize,
    /// Width inside the feed-forward block; default 11008, Mistral 14336, Qwen2 22016.
    pub intermediate_size: usize,
    /// Number of layers; default 32.
    pub num_hidden_layers: usize,
    /// Query heads of a layer; default 32.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer, which divide the query heads; by default as many, Mistral 8,
    /// Qwen2 32.
    pub num_key_value_heads: usize,
    /// Dimensions of a head; by default `hidden_size / num_attention_heads`.
    pub head_dim: usize,
    /// Activation of the gate; default `silu`.
    pub hidden_act: Activation,
    /// The longest sequence that the model was made for; default 2048, Mistral 131072, Qwen2 32768.
    pub max_position_embeddings: usize,
    /// Standard deviation of newly initialized weights; default 0.02.
    pub initializer_range: f64,
    /// Epsilon of the norms; default 1e-6.
    pub rms_norm_eps: f64,
    /// Whether the head is the embedding matrix; default false.
    pub tie_word_embeddings: bool,
    /// How queries and keys are turned: `rope_parameters`, or `rope_theta` and `rope_scaling`.
    pub rope: RotaryEmbedding,
    /// Whether query, key and value have a bias: `attention_bias`, and always for Qwen2.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias: `attention_bias`, never for Qwen2.
    pub attention_output_bias: bool,
    /// Whether the three maps of the feed-forward block have a bias; default false.
    pub mlp_bias: bool,
    /// Dropout on attention probabilities; default 0.
    pub attention_dropout: f64,
    /// For every layer, how many tokens a query sees, itself included; `None` is all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// The token that starts a text; default 1, Qwen2 none.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; default 2, Qwen2 none. See also
    /// [`GenerationConfig`](crate::generation_config::GenerationConfig), which comes before this.
    pub eos_token_ids: Vec<u32>,
    /// The padding token; default none.
    pub pad_token_id: Option<u32>,
    /// The classes of a classification head.
    pub labels: Labels,
}

/// What differs between the members of the family where a key is absent.
struct Defaults {
    vocab_size: usize,
    intermediate_size: usize,
    num_key_value_heads: Option<usize>,
    max_position_embeddings: usize,
    bos_token_id: Option<u32>,
    eos_token_id: Option<u32>,
}

impl LlamaKind {
    fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
        }
    }

    fn defaults(self) -> Defaults {
        let llama = Defaults {
            vocab_size: 32000,
            intermediate_size: 11008,
            num_key_value_heads: None,
            max_position_embeddings: 2048,
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        match self {
            Self::Llama => llama,
            Self::Mistral => Defaults {
                intermediate_size: 14336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 4096 * 32,
                ..llama
            },
            Self::Qwen2 => Defaults {
                vocab_size: 151936,
                intermediate_size: 22016,
                num_key_value_heads: Some(32),
                max_position_embeddings: 32768,
                bos_token_id: None,
                eos_token_id: None,
            },
        }
    }
}

impl LlamaConfig {
    fn from_json(json: &JsonObject, kind: LlamaKind) -> Result<Self, ModelError> {
        let defaults = kind.defaults();
        let vocab_size = size(json, "vocab_size", defaults.vocab_size)?;
        let hidden_size = size(json, "hidden_size", 4096)?;
        let num_hidden_layers = num_hidden_layers(json, 32)?;
        let num_attention_heads = size(json, "num_attention_heads", 32)?;
        let num_key_value_heads = json
            .get("num_key_value_heads", defaults.num_key_value_heads)?
            .unwrap_or(num_attention_heads);
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(json.invalid(
                "num_key_value_heads",
                format!("{num_key_value_heads} does not divide {num_attention_heads} query heads"),
            ));
        }
        let max_position_embeddings = size(
            json,
            "max_position_embeddings",
            defaults.max_position_embeddings,
        )?;
        let head_dim = head_dim(json, kind, hidden_size, num_attention_heads)?;
        let attention_bias = kind != LlamaKind::Mistral && json.get("attention_bias", false)?;
        Ok(Self {
            model_type: kind.model_type().to_owned(),
            architectures: architectures(json)?,
            vocab_size,
            hidden_size,
            intermediate_size: size(json, "intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            hidden_act: hidden_act(json, "silu")?,
            max_position_embeddings,
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            rms_norm_eps: epsilon(json, "rms_norm_eps", 1e-6)?,
            tie_word_embeddings: json.get("tie_word_embeddings", false)?,
            rope: rope_from_json(json, head_dim, max_position_embeddings)?,
            qkv_bias: attention_bias || kind == LlamaKind::Qwen2,
            attention_output_bias: attention_bias && kind == LlamaKind::Llama,
            mlp_bias: kind == LlamaKind::Llama && json.get("mlp_bias", false)?,
            attention_dropout: dropout(json, "attention_dropout", 0.0)?,
            sliding_windows: sliding_windows(json, kind, num_hidden_layers)?,
            bos_token_id: special_token(json, "bos_token_id", defaults.bos_token_id, vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", defaults.eos_token_id)?,
            pad_token_id: token(json, "pad_token_id", None, vocab_size)?,
            labels: Labels::from_json(json)?,
        })
    }

    /// How many tokens a query of this layer sees, itself included; `None` is all before it.
    pub fn window_of_layer(&self, layer: usize) -> Option<usize> {
        self.sliding_windows.get(layer).copied().flatten()
    }
}

fn head_dim(
    json: &JsonObject,
    kind: LlamaKind,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize, ModelError> {
    let stated: Option<usize> = json.get("head_dim", None)?;
    let divides = hidden_size.is_multiple_of(num_attention_heads);
    if !divides && (stated.is_none() || kind == LlamaKind::Llama) {
        return Err(json.invalid(
            "num_attention_heads",
            format!("{num_attention_heads} heads do not divide hidden_size {hidden_size}"),
        ));
    }
    let head_dim = stated.unwrap_or(hidden_size / num_attention_heads);
    in_range(json, "head_dim", head_dim, LARGEST_SIZE)?;
    if head_dim.is_multiple_of(2) {
        Ok(head_dim)
    } else {
        Err(json.invalid(
            "head_dim",
            format!("{head_dim} is odd; rotary positions turn pairs of dimensions"),
        ))
    }
}

/// The window of every layer: Mistral has one for all, Qwen2 where `layer_types` says so or,
/// without that, from layer `max_window_layers` on, and only with `use_sliding_window`.
fn sliding_windows(
    json: &JsonObject,
    kind: LlamaKind,
    layers: usize,
) -> Result<Vec<Option<usize>>, ModelError> {
    let windowed = match kind {
        LlamaKind::Llama => false,
        LlamaKind::Mistral => true,
        LlamaKind::Qwen2 => json.get("use_sliding_window", false)?,
    };
    let window: Option<usize> = json.get("sliding_window", Some(4096))?;
    let Some(window) = window.filter(|_| windowed) else {
        return Ok(vec![None; layers]);
    };
    in_range(json, "sliding_window", window, LARGEST_SIZE)?;
    if kind == LlamaKind::Mistral {
        return Ok(vec![Some(window); layers]);
    }
    let Some(types) = json.get::<Option<Vec<String>>>("layer_types", None)? else {
        let full: usize = json.get("max_window_layers", 28)?;
        return Ok((0..layers)
            .map(|layer| (layer >= full).then_some(window))
            .collect());
    };
    if types.len() != layers {
        let problem = format!("{} types for {layers} layers", types.len());
        return Err(json.invalid("layer_types", problem));
    }
    types
        .iter()
        .map(|it| match it.as_str() {
            "full_attention" => Ok(None),
            "sliding_attention" => Ok(Some(window)),
            _ => Err(json.unsupported(
                "layer_types",
                format!("`{it}`"),
                "full_attention, sliding_attention",
            )),
        })
        .collect()
}

impl FamilyConfig for LlamaConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.model_type.clone(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            vocab_size: self.vocab_size,
            max_position_embeddings: Some(self.max_position_embeddings),
            initializer_range: self.initializer_range,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
            pad_token_id: self.pad_token_id,
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            attention_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: "model.",
            ignorable: match head {
                HeadKind::Classification { .. } => &["rotary_emb.inv_freq", "lm_head.weight"],
                HeadKind::LanguageModel => &["rotary_emb.inv_freq", "score.weight"],
            },
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<&'static str> {
        Some(match (self.model_type.as_str(), head) {
            ("mistral", HeadKind::Classification { .. }) => "MistralForSequenceClassification",
            ("mistral", HeadKind::LanguageModel) => "MistralForCausalLM",
            ("qwen2", HeadKind::Classification { .. }) => "Qwen2ForSequenceClassification",
            ("qwen2", HeadKind::LanguageModel) => "Qwen2ForCausalLM",
            (_, HeadKind::Classification { .. }) => "LlamaForSequenceClassification",
            (_, HeadKind::LanguageModel) => "LlamaForCausalLM",
        })
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.labels().map(|_| "score")
    }

    fn tied(&self) -> Option<[&'static str; 2]> {
        let names = ["lm_head.weight", "model.embed_tokens.weight"];
        self.tie_word_embeddings.then_some(names)
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &["model.embed_tokens.weight", "lm_head.weight"],
            false => &[],
        }
    }

    fn computation(&self) -> Value {
        json!({
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "hidden_act": self.hidden_act.name(),
            "rms_norm_eps": self.rms_norm_eps,
            "rope": self.rope.computation(),
            "sliding_windows": self.sliding_windows,
        })
    }

    fn dropouts(&self) -> Value {
        json!({ "attention_dropout": self.attention_dropout })
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let size = self.hidden_size;
        let b = &mut builder;
        let words = "model.embed_tokens.weight";
        let embeddings = Embeddings {
            words: b.matrix(words, [self.vocab_size, size]),
            scale: None,
            positions: None,
            segments: None,
            norm: None,
            dropout: 0.0,
            path: "model.embed_tokens",
        };
        let mut layers = Vec::new();
        for index in 0..self.num_hidden_layers {
            let path = format!("model.layers.{index}");
            let shape = self.layer_shape(index)?;
            let builder = b.at(Depth::Layer(index));
            layers.push(Layer::build(builder, &path, &NAMES, &shape));
        }
        b.rotary(&self.rope);
        b.at(Depth::Head);
        let final_norm = Norm::build(b, "model.norm", size, self.norm());
        let task_head = self.task_head(head);
        let tied = tied && self.tie_word_embeddings;
        let head = Head::of_decoder(b, head, &embeddings.words, tied, self.pad_token_id);
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: self.model_type.clone(),
                layers: self.num_hidden_layers,
                encoder_layers: 0,
                hidden_size: size,
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                vocabulary: self.vocab_size,
                type_vocabulary: 0,
                max_positions: Some(self.max_position_embeddings),
            },
            default_targets: TARGETS,
            word_embeddings: words,
            prefix: "model.",
            task_head,
            new_module: None,
        })?;
        let stack = Stack {
            embeddings,
            layers,
            final_norm: Some(final_norm),
            rotary: Some(self.rope.clone()),
            has_dropout: self.attention_dropout > 0.0,
        };
        Ok(Model::new(base, Box::new(stack), head))
    }
}

impl LlamaConfig {
    fn norm(&self) -> NormShape {
        NormShape {
            rms: true,
            epsilon: self.rms_norm_eps,
        }
    }

    fn layer_shape(&self, index: usize) -> Result<LayerShape, ModelError> {
        Ok(LayerShape {
            hidden_size: self.hidden_size,
            norm: self.norm(),
            placement: NormPlacement::Before,
            attention: AttentionShape {
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                scale: (1.0 / (self.head_dim as f64).sqrt()) as f32,
                causal: true,
                window: self.window_of_layer(index),
                dropout: self.attention_dropout,
                projections: Projections::Separate,
                qkv_bias: self.qkv_bias,
                output_bias: self.attention_output_bias,
                rotary: true,
            },
            cross_attention: None,
            feed_forward: FeedForwardShape {
                intermediate_size: self.intermediate_size,
                activation: self.hidden_act,
                gated: true,
                bias: self.mlp_bias,
                conv1d: false,
                dropout: 0.0,
            },
            dropout: 0.0,
        })
    }
}
