//! Decoders of one stack, as plain values.
//!
//! Llama (Touvron et al. 2023) and its many relatives are the same stack of layers: a norm, grouped
//! attention with rotary positions, a norm, a gated feed-forward. They differ in defaults, in where
//! norms are, in which linear layers are packed into one or have a bias, and in what single layers
//! see. Each relative's file reads its `config.json` into a [`DecoderConfig`] and names its tensors
//! in an `Architecture`; nothing here asks which relative it is.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, FamilyConfig};
use crate::ModelError;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, FeedForwardNames, FeedForwardShape, Layer,
    LayerNames, LayerShape, Norm, NormPlacement, NormShape, Positions, Projections, QueryKeyNorms,
    Stack,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    LARGEST_SIZE, Labels, Rope, RopeDefaults, architectures, dropout, epsilon, hidden_act,
    in_range, num_hidden_layers, refuse_not_causal, size, sliding_layers, special_token, token,
};
use crate::heads::{DecoderHeads, Head, HeadKind, TokenHeads};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;
use crate::rope::RotaryEmbedding;

/// What a decoder is beyond the values of its `config.json`: names, and how it computes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Architecture {
    pub(super) model_type: &'static str,
    /// The class of transformers with a language model's head, and the one for classification.
    pub(super) classes: [&'static str; 2],
    /// The head that classifies tokens, and the one that finds answers, where transformers has one
    /// over the same names of tensors.
    pub(super) token_heads: TokenHeads,
    /// PEFT's default target modules.
    pub(super) targets: DefaultTargets,
    /// What precedes the names of the base model's tensors.
    pub(super) prefix: &'static str,
    /// What precedes them in the class that finds answers.
    pub(super) prefix_of_answers: &'static str,
    /// What precedes a layer's number in its path.
    pub(crate) layers: &'static str,
    pub(crate) layer: LayerNames,
    pub(crate) final_norm: &'static str,
    /// The word embeddings and the language model's head, which may be tied.
    pub(crate) words_and_head: [&'static str; 2],
    /// What checkpoints may hold for models with a language model's head, and for classification.
    pub(super) ignorable: [&'static [&'static str]; 2],
    /// The key of the norms' epsilon.
    pub(super) epsilon: &'static str,
    /// The key of the dropout on what blocks add, and whether it is after the embeddings too.
    pub(super) dropout: Option<(&'static str, bool)>,
    /// Whether norms divide by the root mean square, without centering.
    pub(super) rms: bool,
    /// Added to the stored scales of norms.
    pub(crate) norm_offset: f32,
    pub(super) placement: NormPlacement,
    /// Whether queries and keys are normalized, and if so, head by head.
    pub(crate) normalizes_heads: Option<bool>,
    pub(super) projections: Projections,
    pub(super) gated: bool,
    pub(super) packed: bool,
}

pub(super) const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["q_proj", "v_proj"],
    adalora: &["q_proj", "v_proj"],
    ia3: &["k_proj", "v_proj", "down_proj"],
    ia3_feedforward: &["down_proj"],
};

pub(super) const QWEN_TARGETS: DefaultTargets = DefaultTargets {
    ia3: &["q_proj", "v_proj", "down_proj"],
    ..TARGETS
};

/// Llama's names, which most of its relatives share.
pub(super) const NAMES: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "self_attn.q_proj",
        key: "self_attn.k_proj",
        value: "self_attn.v_proj",
        output: "self_attn.o_proj",
        norms: Some(["self_attn.q_norm", "self_attn.k_norm"]),
    },
    attention_norm: "input_layernorm",
    cross_attention: None,
    feed_forward: FeedForwardNames {
        gate: Some("mlp.gate_proj"),
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
    feed_forward_norm: "post_attention_layernorm",
    output_norms: None,
};

pub(super) const LLAMA: Architecture = Architecture {
    model_type: "llama",
    classes: ["LlamaForCausalLM", "LlamaForSequenceClassification"],
    token_heads: [Some("score"), Some("qa_outputs")],
    targets: TARGETS,
    prefix: "model.",
    prefix_of_answers: "transformer.",
    layers: "model.layers",
    layer: NAMES,
    final_norm: "model.norm",
    words_and_head: ["model.embed_tokens.weight", "lm_head.weight"],
    ignorable: [
        &["rotary_emb.inv_freq", "score.weight"],
        &["rotary_emb.inv_freq", "lm_head.weight"],
    ],
    epsilon: "rms_norm_eps",
    dropout: None,
    rms: true,
    norm_offset: 0.0,
    placement: NormPlacement::Before,
    normalizes_heads: None,
    projections: Projections::Separate,
    gated: true,
    packed: false,
};

/// The configuration of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    pub(crate) architecture: &'static Architecture,
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the embeddings and of the head.
    pub vocab_size: usize,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// Intermediate size of the feed-forward.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads of a layer.
    pub num_attention_heads: usize,
    /// Key and value heads of a layer, which divide the query heads.
    pub num_key_value_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Activation of the feed-forward.
    pub hidden_act: Activation,
    /// The longest sequence that the model was made for.
    pub max_position_embeddings: usize,
    /// Standard deviation of newly initialized weights.
    pub initializer_range: f64,
    /// Epsilon of the norms.
    pub norm_eps: f64,
    /// Whether the head is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// How queries and keys are turned, one embedding for each kind of layer; empty where positions
    /// are learned.
    pub rope: Vec<RotaryEmbedding>,
    /// For every layer, which of `rope` turns its queries and keys; `None` leaves them.
    pub rope_of_layers: Vec<Option<usize>>,
    /// Rows of learned positions, and the row of the first.
    pub learned_positions: Option<[usize; 2]>,
    /// Whether query, key and value have a bias.
    pub qkv_bias: bool,
    /// Whether the attention's output has a bias.
    pub attention_output_bias: bool,
    /// Whether the feed-forward's layers have biases.
    pub mlp_bias: bool,
    /// What scores are multiplied by.
    pub attention_scale: f64,
    /// Bends scores, and logits.
    pub softcaps: [Option<f64>; 2],
    /// What word embeddings are multiplied by.
    pub embedding_scale: Option<f64>,
    /// Whether self-attention and feed-forward read the same states.
    pub parallel: bool,
    /// Whether there is a norm after the last layer.
    pub has_final_norm: bool,
    /// Whether norms come after the residual addition, where the architecture leaves that to its
    /// configuration.
    pub norms_after: bool,
    /// Dropout on attention probabilities while the base trains.
    pub attention_dropout: f64,
    /// Dropout on what blocks add.
    pub hidden_dropout: f64,
    /// Dropout after the embeddings.
    pub embedding_dropout: f64,
    /// Dropout before a head that classifies tokens; default 0.1.
    pub classifier_dropout: f64,
    /// For every layer, how many tokens a query sees, itself included; `None` is all before it.
    pub sliding_windows: Vec<Option<usize>>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text. See also
    /// [`GenerationConfig`](crate::generation_config::GenerationConfig), which comes before this.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// The classes of a classification head.
    pub labels: Labels,
}

/// What relatives differ in where a key is absent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Defaults {
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) intermediate_size: usize,
    pub(super) num_hidden_layers: usize,
    pub(super) num_attention_heads: usize,
    pub(super) num_key_value_heads: Option<usize>,
    /// Whether `num_key_value_heads` and `head_dim` mean something.
    pub(super) heads_vary: bool,
    /// By default the heads share the hidden size.
    pub(super) head_dim: Option<usize>,
    /// Whether the heads must divide the hidden size even where `head_dim` is stated.
    pub(super) heads_divide: bool,
    pub(super) hidden_act: &'static str,
    pub(super) max_position_embeddings: usize,
    pub(super) norm_eps: f64,
    pub(super) tie_word_embeddings: bool,
    /// None where positions are learned, or differ from layer to layer.
    pub(super) rope_theta: Option<f64>,
    /// The share of a head's dimensions that turns; none where all turn.
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) interleaved: bool,
    pub(super) bos_token_id: Option<u32>,
    pub(super) eos_token_id: Option<u32>,
    pub(super) pad_token_id: Option<u32>,
}

pub(super) const LLAMA_DEFAULTS: Defaults = Defaults {
    vocab_size: 32000,
    hidden_size: 4096,
    intermediate_size: 11008,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    heads_vary: true,
    head_dim: None,
    heads_divide: false,
    hidden_act: "silu",
    max_position_embeddings: 2048,
    norm_eps: 1e-6,
    tie_word_embeddings: false,
    rope_theta: Some(10_000.0),
    partial_rotary_factor: None,
    interleaved: false,
    bos_token_id: Some(1),
    eos_token_id: Some(2),
    pad_token_id: None,
};

impl DecoderConfig {
    /// Reads the keys that most relatives share: no bias, no window, one rotary embedding for all
    /// layers. A relative's file changes what it has otherwise.
    pub(super) fn read(
        json: &JsonObject,
        architecture: &'static Architecture,
        defaults: &Defaults,
    ) -> Result<Self, ModelError> {
        refuse_not_causal(json)?;
        let vocab_size = size(json, "vocab_size", defaults.vocab_size)?;
        let hidden_size = size(json, "hidden_size", defaults.hidden_size)?;
        let num_hidden_layers = num_hidden_layers(json, defaults.num_hidden_layers)?;
        let num_attention_heads = size(json, "num_attention_heads", defaults.num_attention_heads)?;
        let num_key_value_heads = match defaults.heads_vary {
            true => json.get("num_key_value_heads", defaults.num_key_value_heads)?,
            false => None,
        };
        let num_key_value_heads = num_key_value_heads.unwrap_or(num_attention_heads);
        if num_key_value_heads == 0 || !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(json.invalid(
                "num_key_value_heads",
                format!("{num_key_value_heads} does not divide {num_attention_heads} query heads"),
            ));
        }
        let head_dim = head_dim(json, defaults, hidden_size, num_attention_heads)?;
        let max_position_embeddings = size(
            json,
            "max_position_embeddings",
            defaults.max_position_embeddings,
        )?;
        // Kinds of layers that no relative has are refused, also where windows are not read.
        sliding_layers(json, num_hidden_layers, |_| false)?;
        // Special tokens by default, where the vocabulary has them.
        let of_vocabulary = |id: Option<u32>| id.filter(|&id| (id as usize) < vocab_size);
        let mut config = Self {
            architecture,
            architectures: architectures(json)?,
            vocab_size,
            hidden_size,
            intermediate_size: size(json, "intermediate_size", defaults.intermediate_size)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            hidden_act: hidden_act(json, defaults.hidden_act)?,
            max_position_embeddings,
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            norm_eps: epsilon(json, architecture.epsilon, defaults.norm_eps)?,
            tie_word_embeddings: json.get("tie_word_embeddings", defaults.tie_word_embeddings)?,
            rope: Vec::new(),
            rope_of_layers: vec![None; num_hidden_layers],
            learned_positions: None,
            qkv_bias: false,
            attention_output_bias: false,
            mlp_bias: false,
            attention_scale: (head_dim as f64).powf(-0.5),
            softcaps: [None; 2],
            embedding_scale: None,
            parallel: false,
            has_final_norm: true,
            norms_after: false,
            attention_dropout: dropout(json, "attention_dropout", 0.0)?,
            hidden_dropout: 0.0,
            embedding_dropout: 0.0,
            classifier_dropout: dropout(json, "classifier_dropout", 0.1)?,
            sliding_windows: vec![None; num_hidden_layers],
            bos_token_id: special_token(json, "bos_token_id", defaults.bos_token_id, vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", of_vocabulary(defaults.eos_token_id))?,
            pad_token_id: token(
                json,
                "pad_token_id",
                of_vocabulary(defaults.pad_token_id),
                vocab_size,
            )?,
            labels: Labels::from_json(json)?,
        };
        if let Some(theta) = defaults.rope_theta {
            let rope = Rope::new(json, config.rope_defaults(defaults, theta)).whole()?;
            config.rope = vec![rope];
            config.rope_of_layers = vec![Some(0); num_hidden_layers];
        }
        Ok(config)
    }

    /// What a rotary embedding of this model is where the keys are absent.
    pub(super) fn rope_defaults(&self, defaults: &Defaults, rope_theta: f64) -> RopeDefaults {
        RopeDefaults {
            head_dim: self.head_dim,
            max_position_embeddings: self.max_position_embeddings,
            rope_theta,
            partial_rotary_factor: defaults.partial_rotary_factor,
            interleaved: defaults.interleaved,
        }
    }

    /// `llama`, `mistral`, `qwen2` and so on.
    pub fn model_type(&self) -> &'static str {
        self.architecture.model_type
    }

    /// How many tokens a query of this layer sees, itself included; `None` is all before it.
    pub fn window_of_layer(&self, layer: usize) -> Option<usize> {
        self.sliding_windows.get(layer).copied().flatten()
    }

    /// Gives every layer the window of `sliding_window`, unless that is `null`.
    pub(super) fn slide_everywhere(
        &mut self,
        json: &JsonObject,
        default: Option<usize>,
    ) -> Result<(), ModelError> {
        let all = vec![true; self.num_hidden_layers];
        self.slide(json, default, &all)
    }

    /// Gives some layers the window of `sliding_window`, unless that is `null`.
    pub(super) fn slide(
        &mut self,
        json: &JsonObject,
        default: Option<usize>,
        layers: &[bool],
    ) -> Result<(), ModelError> {
        let window: Option<usize> = json.get("sliding_window", default)?;
        let Some(window) = window else {
            return Ok(());
        };
        in_range(json, "sliding_window", window, LARGEST_SIZE)?;
        let windows = layers.iter().map(|&slides| slides.then_some(window));
        self.sliding_windows = windows.collect();
        Ok(())
    }
}

/// The windows of Qwen's models: only with `use_sliding_window`, where `layer_types` says so or,
/// without that, from layer `max_window_layers` on.
pub(super) fn qwen_windows(
    json: &JsonObject,
    config: &mut DecoderConfig,
) -> Result<(), ModelError> {
    if json.get("use_sliding_window", false)? {
        let full: usize = json.get("max_window_layers", 28)?;
        let layers = sliding_layers(json, config.num_hidden_layers, |layer| layer >= full)?;
        config.slide(json, Some(4096), &layers)?;
    }
    Ok(())
}

fn head_dim(
    json: &JsonObject,
    defaults: &Defaults,
    hidden_size: usize,
    num_attention_heads: usize,
) -> Result<usize, ModelError> {
    let stated: Option<usize> = match defaults.heads_vary {
        true => json.get("head_dim", defaults.head_dim)?,
        false => None,
    };
    let divides = hidden_size.is_multiple_of(num_attention_heads);
    if !divides && (stated.is_none() || defaults.heads_divide) {
        return Err(json.invalid(
            "num_attention_heads",
            format!("{num_attention_heads} heads do not divide hidden_size {hidden_size}"),
        ));
    }
    let head_dim = stated.unwrap_or(hidden_size / num_attention_heads);
    in_range(json, "head_dim", head_dim, LARGEST_SIZE)
}

impl FamilyConfig for DecoderConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.model_type().to_owned(),
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
        let of = |has: bool| if has { p } else { 0.0 };
        let dropout = self.architecture.dropout;
        Box::new(Self {
            attention_dropout: p,
            hidden_dropout: of(dropout.is_some()),
            embedding_dropout: of(dropout.is_some_and(|(_, embeddings)| embeddings)),
            classifier_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, head: HeadKind) -> KeyRules {
        let [language_model, classification] = self.architecture.ignorable;
        KeyRules {
            base_prefix: self.architecture.prefix,
            ignorable: match head {
                HeadKind::LanguageModel => language_model,
                _ => classification,
            },
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        let [language_model, classification] = self.architecture.classes;
        let class = match head {
            HeadKind::Classification { .. } => classification,
            HeadKind::LanguageModel => language_model,
            HeadKind::Embedding(_) => "AutoModel",
            _ => {
                head.path_in_decoder(self.architecture.token_heads)?;
                return head.class_of(classification.strip_suffix("ForSequenceClassification")?);
            }
        };
        Some(class.to_owned())
    }

    fn adapterhub_site(&self, module: &str) -> Option<String> {
        let (layer, sublayer) = module.rsplit_once('.')?;
        match (self.model_type(), sublayer) {
            ("llama", "self_attn") => Some(format!("{layer}.attention_adapters")),
            ("llama", "mlp") => Some(format!("{layer}.output_adapters")),
            _ => None,
        }
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path_in_decoder(self.architecture.token_heads)
    }

    fn tied(&self) -> Option<[&'static str; 2]> {
        let [words, head] = self.architecture.words_and_head;
        self.tie_word_embeddings.then_some([head, words])
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &self.architecture.words_and_head,
            false => &[],
        }
    }

    fn computation(&self) -> Value {
        let mut values = json!({
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "hidden_act": self.hidden_act.name(),
            "sliding_windows": self.sliding_windows,
            "attention_scale": self.attention_scale,
            "parallel": self.parallel,
        });
        values[self.architecture.epsilon] = self.norm_eps.into();
        if let [first, others @ ..] = &self.rope[..] {
            values["rope"] = first.computation();
            values["rotary_dim"] = first.head_dim.into();
            values["rope_of_layers"] = json!(self.rope_of_layers);
            let others: Vec<Value> = others.iter().map(RotaryEmbedding::computation).collect();
            values["further_rope"] = others.into();
        }
        let [scores, logits] = self.softcaps;
        values["softcaps"] = json!([scores, logits]);
        values
    }

    fn dropouts(&self) -> Value {
        let mut values = json!({ "attention_dropout": self.attention_dropout });
        if let Some((key, _)) = self.architecture.dropout {
            values[key] = self.hidden_dropout.into();
        }
        values
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let (size, architecture) = (self.hidden_size, self.architecture);
        let b = &mut builder;
        let prefix = match head {
            HeadKind::QuestionAnswering => architecture.prefix_of_answers,
            _ => architecture.prefix,
        };
        let named = |name: &str| {
            let bare = name.strip_prefix(architecture.prefix).unwrap_or(name);
            format!("{prefix}{bare}")
        };
        let [words, lm_head] = architecture.words_and_head;
        let path = |weight: &'static str| weight.strip_suffix(".weight").unwrap_or(weight);
        let positions = self.learned_positions.map(|[rows, first]| Positions {
            table: b.matrix(&named(words).replace("tokens", "positions"), [rows, size]),
            first,
            padding: None,
        });
        let embeddings = Embeddings {
            words: b.matrix(&named(words), [self.vocab_size, size]),
            scale: self.embedding_scale,
            positions,
            segments: None,
            norm: None,
            dropout: self.embedding_dropout,
            projection: None,
            path: path(words),
        };
        let mut layers = Vec::new();
        for index in 0..self.num_hidden_layers {
            let path = format!("{}.{index}", named(architecture.layers));
            let builder = b.at(Depth::Layer(index));
            let shape = self.layer_shape(index);
            layers.push(Layer::build(builder, &path, &architecture.layer, &shape));
        }
        if let Some(rope) = self.rope.first() {
            b.rotary(rope);
        }
        b.at(Depth::Head);
        let final_norm = self
            .has_final_norm
            .then(|| Norm::build(b, &named(architecture.final_norm), size, self.norm()));
        let task_head = self.task_head(head);
        let tied = tied && self.tie_word_embeddings;
        let names = DecoderHeads {
            model_type: self.model_type(),
            language_model: path(lm_head),
            task: task_head,
            padding: self.pad_token_id,
            dropout: self.classifier_dropout,
        };
        let mut head = Head::of_decoder(b, head, &names, &embeddings.words, tied)?;
        if let Head::LanguageModel(head) = &mut head {
            [_, head.softcap] = self.softcaps;
        }
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: self.model_type().to_owned(),
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
            default_targets: architecture.targets,
            word_embeddings: &named(words),
            prefix,
            task_head,
            new_modules: Vec::new(),
        })?;
        let dropouts = [
            self.attention_dropout,
            self.hidden_dropout,
            self.embedding_dropout,
        ];
        let stack = Stack {
            embeddings,
            layers,
            bias: None,
            positions: None,
            final_norm,
            final_dropout: 0.0,
            rotary: self.rope.clone(),
            has_dropout: dropouts.iter().any(|&p| p > 0.0),
        };
        Ok(Model::new(base, Box::new(stack), head))
    }
}

impl DecoderConfig {
    fn norm(&self) -> NormShape {
        NormShape {
            rms: self.architecture.rms,
            shift: true,
            epsilon: self.norm_eps,
            offset: self.architecture.norm_offset,
        }
    }

    fn layer_shape(&self, index: usize) -> LayerShape {
        let architecture = self.architecture;
        let rope = self.rope_of_layers.get(index).copied().flatten();
        let [softcap, _] = self.softcaps;
        LayerShape {
            hidden_size: self.hidden_size,
            norm: self.norm(),
            placement: match self.norms_after {
                true => NormPlacement::After,
                false => architecture.placement,
            },
            parallel: self.parallel,
            attention: AttentionShape {
                heads: self.num_attention_heads,
                kv_heads: self.num_key_value_heads,
                head_dim: self.head_dim,
                scale: self.attention_scale as f32,
                softcap: softcap.map(|cap| cap as f32),
                causal: true,
                window: self.window_of_layer(index),
                dropout: self.attention_dropout,
                projections: architecture.projections,
                qkv_bias: self.qkv_bias,
                output_bias: self.attention_output_bias,
                rotary: rope.is_some(),
                rotary_set: rope.unwrap_or(0),
                disentangled: None,
                norms: architecture.normalizes_heads.map(|per_head| QueryKeyNorms {
                    shape: self.norm(),
                    per_head,
                }),
            },
            cross_attention: None,
            feed_forward: FeedForwardShape {
                intermediate_size: self.intermediate_size,
                activation: self.hidden_act,
                gated: architecture.gated,
                packed: architecture.packed,
                bias: self.mlp_bias,
                conv1d: false,
                dropout: 0.0,
            },
            dropout: self.hidden_dropout,
            attention_output_dropout: self.hidden_dropout,
            attention_norm: true,
        }
    }
}
