//! BART (Lewis et al. 2020, arXiv 1910.13461) and mBART (Liu et al. 2020, arXiv 2001.08210).
//!
//! Encoder-decoder with layer norms, learned positions that begin at row 2, and a norm over the
//! embeddings. BART's norms come after the residual addition; mBART's before the blocks, with one
//! more after the last layer, and its decoder begins with the label's last token, the language.
//! Tensor names are those of Hugging Face's `BartForConditionalGeneration` and
//! `BartForSequenceClassification`, whose head reads the token that ends a text. The buffer
//! `final_logits_bias`, which no training moves off zero, is passed over.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, EncoderDecoder, FeedForwardNames, FeedForwardShape,
    HalfStack, Layer, LayerNames, LayerShape, Matrix, Norm, NormPlacement, NormShape, Positions,
    Projections,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    Labels, activation, architectures, dropout, epsilon, layer_count, refuse_not_causal, size,
    special_token, token,
};
use crate::heads::{EncoderDecoderHeads, Head, HeadKind, LanguageModelHead};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

fn example(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": 30, "d_model": 16, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 24, "decoder_ffn_dim": 20, "max_position_embeddings": 32,
        "scale_embedding": true, "activation_dropout": 0.1,
    })
}

pub(super) const FAMILY: Family = Family {
    name: "BART",
    model_types: &["bart"],
    examples: || vec![example("bart")],
    parse: |json, _| Ok(Box::new(BartConfig::from_json(json, false)?)),
};

pub(super) const MBART_FAMILY: Family = Family {
    name: "mBART",
    model_types: &["mbart"],
    examples: || vec![example("mbart")],
    parse: |json, _| Ok(Box::new(BartConfig::from_json(json, true)?)),
};

const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["q_proj", "v_proj"],
    adalora: &["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"],
    ia3: &["q_proj", "v_proj", "fc2"],
    ia3_feedforward: &["fc2"],
};

const fn names(decoder: bool) -> LayerNames {
    LayerNames {
        attention: AttentionNames {
            query: "self_attn.q_proj",
            key: "self_attn.k_proj",
            value: "self_attn.v_proj",
            output: "self_attn.out_proj",
            norms: None,
        },
        attention_norm: "self_attn_layer_norm",
        cross_attention: match decoder {
            true => Some((
                AttentionNames {
                    query: "encoder_attn.q_proj",
                    key: "encoder_attn.k_proj",
                    value: "encoder_attn.v_proj",
                    output: "encoder_attn.out_proj",
                    norms: None,
                },
                "encoder_attn_layer_norm",
            )),
            false => None,
        },
        feed_forward: FeedForwardNames {
            gate: None,
            up: "fc1",
            down: "fc2",
        },
        feed_forward_norm: "final_layer_norm",
        output_norms: None,
    }
}

/// The head that classifies tokens: transformers has no class with one.
const TOKEN_HEAD: Option<&str> = None;

const WORDS: &str = "model.shared.weight";
/// The first token's row of the learned positions.
const FIRST_POSITION: usize = 2;

/// The configuration of a BART encoder-decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct BartConfig {
    /// Whether it is mBART.
    pub multilingual: bool,
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the word embeddings; default 50265.
    pub vocab_size: usize,
    /// Size of the hidden states; default 1024.
    pub d_model: usize,
    /// Layers of the encoder and of the decoder; default 12 each.
    pub layers: [usize; 2],
    /// Intermediate sizes of their feed-forward networks; default 4096 each.
    pub ffn_dims: [usize; 2],
    /// Heads of an attention; default 16.
    pub attention_heads: usize,
    /// Activation inside the feed-forward; default `gelu`.
    pub activation_function: Activation,
    /// The longest sequence; default 1024.
    pub max_position_embeddings: usize,
    /// Dropout on each block's output and after the embeddings; default 0.1.
    pub dropout: f64,
    /// Dropout on attention probabilities; default 0.
    pub attention_dropout: f64,
    /// Dropout inside the feed-forward; default 0.
    pub activation_dropout: f64,
    /// Dropout in a classification head; default 0.
    pub classifier_dropout: f64,
    /// Whether word embeddings are multiplied by the root of the hidden size; default false.
    pub scale_embedding: bool,
    /// Standard deviation of newly initialized weights; default 0.02.
    pub init_std: f64,
    /// Whether the language model's head is the word embeddings; default true.
    pub tie_word_embeddings: bool,
    /// The token that starts a text; default 0.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; default 2.
    pub eos_token_ids: Vec<u32>,
    /// The padding token; default 1.
    pub pad_token_id: Option<u32>,
    /// The token with which the decoder begins, except in training of mBART; default 2, mBART none.
    pub decoder_start_token_id: Option<u32>,
    /// The first token that the decoder writes whatever its logits say; default none.
    pub forced_bos_token_id: Option<u32>,
    /// The last token of a text that has reached its longest length; default 2.
    pub forced_eos_token_id: Option<u32>,
    /// The classes of a classification head.
    pub labels: Labels,
}

impl BartConfig {
    fn from_json(json: &JsonObject, multilingual: bool) -> Result<Self, ModelError> {
        refuse_not_causal(json)?;
        let vocab_size = size(json, "vocab_size", 50265)?;
        let d_model = size(json, "d_model", 1024)?;
        let heads = ["encoder_attention_heads", "decoder_attention_heads"];
        let [attention_heads, others] = [size(json, heads[0], 16)?, size(json, heads[1], 16)?];
        if others != attention_heads {
            let supported = "the same number as in the encoder";
            return Err(json.unsupported(heads[1], others.to_string(), supported));
        }
        if !d_model.is_multiple_of(attention_heads) {
            let problem = format!("{attention_heads} heads do not divide d_model {d_model}");
            return Err(json.invalid(heads[0], problem));
        }
        let start = match multilingual {
            true => None,
            false => Some(2),
        };
        Ok(Self {
            multilingual,
            architectures: architectures(json)?,
            vocab_size,
            d_model,
            layers: [
                layer_count(json, "encoder_layers", 12)?,
                layer_count(json, "decoder_layers", 12)?,
            ],
            ffn_dims: [
                size(json, "encoder_ffn_dim", 4096)?,
                size(json, "decoder_ffn_dim", 4096)?,
            ],
            attention_heads,
            activation_function: activation(json, "activation_function", "gelu")?,
            max_position_embeddings: size(json, "max_position_embeddings", 1024)?,
            dropout: dropout(json, "dropout", 0.1)?,
            attention_dropout: dropout(json, "attention_dropout", 0.0)?,
            activation_dropout: dropout(json, "activation_dropout", 0.0)?,
            classifier_dropout: dropout(json, "classifier_dropout", 0.0)?,
            scale_embedding: json.flag("scale_embedding", false)?,
            init_std: epsilon(json, "init_std", 0.02)?,
            tie_word_embeddings: json.flag("tie_word_embeddings", true)?,
            bos_token_id: special_token(json, "bos_token_id", Some(0), vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", Some(2))?,
            pad_token_id: token(json, "pad_token_id", Some(1), vocab_size)?,
            decoder_start_token_id: token(json, "decoder_start_token_id", start, vocab_size)?,
            forced_bos_token_id: special_token(json, "forced_bos_token_id", None, vocab_size)?,
            forced_eos_token_id: special_token(json, "forced_eos_token_id", Some(2), vocab_size)?,
            labels: Labels::from_json(json)?,
        })
    }

    fn model_type(&self) -> &'static str {
        match self.multilingual {
            true => "mbart",
            false => "bart",
        }
    }

    fn head_dim(&self) -> usize {
        self.d_model / self.attention_heads
    }
}

impl FamilyConfig for BartConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.model_type().to_owned(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            hidden_size: self.d_model,
            num_hidden_layers: self.layers.iter().sum(),
            vocab_size: self.vocab_size,
            max_position_embeddings: Some(self.max_position_embeddings),
            initializer_range: self.init_std,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
            pad_token_id: self.pad_token_id,
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            dropout: p,
            attention_dropout: p,
            activation_dropout: p,
            classifier_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: "model.",
            ignorable: match head {
                HeadKind::LanguageModel => &["final_logits_bias", "classification_head."],
                _ => &["final_logits_bias", "lm_head.weight"],
            },
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        let stem = if self.multilingual { "MBart" } else { "Bart" };
        head.class_of_encoder_decoder(stem, TOKEN_HEAD)
    }

    fn adapterhub_site(&self, module: &str) -> Option<String> {
        match module.rsplit_once('.')? {
            (layer, "self_attn") => Some(format!("{layer}.attention_adapters")),
            (layer, "encoder_attn") => Some(format!("{layer}.cross_attention_adapters")),
            _ => Some(format!("{module}.output_adapters")),
        }
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path_in_encoder_decoder(TOKEN_HEAD)
    }

    fn tied(&self) -> Option<[&'static str; 2]> {
        self.tie_word_embeddings
            .then_some(["lm_head.weight", WORDS])
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &[
                WORDS,
                "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
                "lm_head.weight",
            ],
            false => &[
                WORDS,
                "model.encoder.embed_tokens.weight",
                "model.decoder.embed_tokens.weight",
            ],
        }
    }

    fn forced_tokens(&self) -> [Option<u32>; 2] {
        [self.forced_bos_token_id, self.forced_eos_token_id]
    }

    fn computation(&self) -> Value {
        json!({
            "attention_heads": self.attention_heads,
            "activation_function": self.activation_function.name(),
            "scale_embedding": self.scale_embedding,
            // In training, mBART's decoder begins with the language instead.
            "decoder_start_token_id": self.decoder_start_token_id.filter(|_| !self.multilingual),
        })
    }

    fn dropouts(&self) -> Value {
        json!({
            "dropout": self.dropout,
            "attention_dropout": self.attention_dropout,
            "activation_dropout": self.activation_dropout,
            "classifier_dropout": self.classifier_dropout,
        })
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let size = self.d_model;
        let b = &mut builder;
        let words = b.matrix(WORDS, [self.vocab_size, size]);
        let encoder = self.stack(b, false, &words);
        let decoder = self.stack(b, true, &words);
        b.at(Depth::Head);
        let task_head = self.task_head(head);
        let names = EncoderDecoderHeads {
            model_type: self.model_type(),
            task: task_head,
            hidden_size: size,
            dropout: self.classifier_dropout,
        };
        let tied = tied && self.tie_word_embeddings;
        let head = Head::of_encoder_decoder(b, head, &names, |b| {
            LanguageModelHead::build(b, "lm_head", &words, tied, None)
        })?;
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: self.model_type().to_owned(),
                layers: self.layers.iter().sum(),
                encoder_layers: self.layers[0],
                hidden_size: size,
                heads: self.attention_heads,
                kv_heads: self.attention_heads,
                head_dim: self.head_dim(),
                vocabulary: self.vocab_size,
                type_vocabulary: 0,
                max_positions: Some(self.max_position_embeddings),
            },
            default_targets: TARGETS,
            word_embeddings: WORDS,
            prefix: "model.",
            task_head,
            new_modules: Vec::new(),
        })?;
        let dropouts = [
            self.dropout,
            self.attention_dropout,
            self.activation_dropout,
        ];
        let start = self.decoder_start_token_id.filter(|_| !self.multilingual);
        let padding = self.pad_token_id.or(start);
        let stacks = EncoderDecoder {
            encoder,
            decoder,
            decoder_start_token: self.decoder_start_token_id,
            begins_with_last: self.multilingual,
            pad_token: padding.unwrap_or(0),
            has_dropout: dropouts.iter().any(|&p| p > 0.0),
        };
        Ok(Model::new(base, Box::new(stacks), head))
    }
}

impl BartConfig {
    fn norm(&self) -> NormShape {
        NormShape {
            rms: false,
            shift: true,
            epsilon: 1e-5,
            offset: 0.0,
        }
    }

    /// The encoder, or the decoder, whose layers are numbered after the encoder's.
    fn stack(&self, b: &mut Builder<'_>, decoder: bool, words: &Matrix) -> HalfStack {
        let (path, first) = match decoder {
            false => ("model.encoder", 0),
            true => ("model.decoder", self.layers[0]),
        };
        let size = self.d_model;
        b.at(Depth::Embeddings);
        let rows = self.max_position_embeddings + FIRST_POSITION;
        let embeddings = Embeddings {
            words: words.clone(),
            scale: self.scale_embedding.then(|| (size as f64).sqrt()),
            positions: Some(Positions {
                table: b.matrix(&format!("{path}.embed_positions.weight"), [rows, size]),
                first: FIRST_POSITION,
                padding: None,
            }),
            segments: None,
            norm: Some(Norm::build(
                b,
                &format!("{path}.layernorm_embedding"),
                size,
                self.norm(),
            )),
            dropout: self.dropout,
            projection: None,
            path,
        };
        let (names, shape) = (names(decoder), self.layer_shape(decoder));
        let layers = (0..self.layers[usize::from(decoder)]).map(|index| {
            let builder = b.at(Depth::Layer(first + index));
            Layer::build(builder, &format!("{path}.layers.{index}"), &names, &shape)
        });
        let layers = layers.collect();
        let last = first + self.layers[usize::from(decoder)] - 1;
        let depth = match decoder {
            true => Depth::Head,
            false => Depth::Layer(last),
        };
        let final_norm = self.multilingual.then(|| {
            let name = format!("{path}.layer_norm");
            Norm::build(b.at(depth), &name, size, self.norm())
        });
        HalfStack {
            embeddings,
            layers,
            bias: None,
            final_norm,
            final_dropout: 0.0,
            path,
        }
    }

    fn layer_shape(&self, decoder: bool) -> LayerShape {
        let attention = |causal| AttentionShape {
            heads: self.attention_heads,
            kv_heads: self.attention_heads,
            head_dim: self.head_dim(),
            scale: (1.0 / (self.head_dim() as f64).sqrt()) as f32,
            softcap: None,
            causal,
            window: None,
            dropout: self.attention_dropout,
            projections: Projections::Separate,
            qkv_bias: true,
            output_bias: true,
            rotary: false,
            rotary_set: 0,
            disentangled: None,
            norms: None,
        };
        LayerShape {
            hidden_size: self.d_model,
            norm: self.norm(),
            placement: match self.multilingual {
                true => NormPlacement::Before,
                false => NormPlacement::After,
            },
            parallel: false,
            attention: attention(decoder),
            cross_attention: decoder.then(|| attention(false)),
            feed_forward: FeedForwardShape {
                intermediate_size: self.ffn_dims[usize::from(decoder)],
                activation: self.activation_function,
                gated: false,
                packed: false,
                bias: true,
                conv1d: false,
                dropout: self.activation_dropout,
            },
            dropout: self.dropout,
            attention_output_dropout: self.dropout,
            attention_norm: true,
        }
    }
}
