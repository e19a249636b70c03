//! T5 and mT5: encoder-decoders with relative positions (Raffel et al. 2020, arXiv 1910.10683; Xue
//! et al. 2021, arXiv 2010.11934).
//!
//! Norms come before the blocks and are RMS norms; no linear layer has a bias. Attention scores are
//! not scaled but biased by the distance of query and key: each stack has one table of biases,
//! stored with its first layer and used in all. Cross-attention has no such bias.
//!
//! | | T5 1.0 | T5 1.1, Flan-T5 | mT5 |
//! | --- | --- | --- | --- |
//! | feed-forward | ReLU | gated GELU | gated GELU |
//! | language model's head | the word embeddings, over states scaled by 1/√hidden | own | own |
//!
//! Tensor names are those of Hugging Face's `T5ForConditionalGeneration` and, below `transformer.`,
//! `T5ForSequenceClassification`. The latter reads the input text in its decoder too and classifies
//! by the state of its last token, which is `</s>`; `T5ForQuestionAnswering` reads each of the
//! decoder's states, and `T5ForTokenClassification`, below `transformer.`, those of the encoder,
//! without a decoder.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::backbone::Backbone;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, EncoderDecoder, FeedForwardNames, FeedForwardShape,
    HalfStack, Layer, LayerNames, LayerShape, Norm, NormPlacement, NormShape, Projections,
    RelativeBias, RelativeBuckets,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    self, Labels, MOST_LAYERS, architectures, dropout, epsilon, in_range, refuse_not_causal, size,
    token,
};
use crate::heads::{EncoderDecoderHeads, Head, HeadKind, LanguageModelHead};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

pub(super) const FAMILY: Family = Family {
    name: "T5, Flan-T5, mT5",
    model_types: &["t5", "mt5"],
    // Heads of 3 make the queries' size 12, unlike the hidden size; the stacks differ in depth, and
    // the encoder, alone under one head, has as many layers as a method's example names. GELU,
    // since finite differences, with which gradients are tested, stumble over ReLU's corner.
    examples: || {
        let small = json!({
            "model_type": "t5", "vocab_size": 30, "d_model": 16, "d_kv": 3, "d_ff": 24,
            "num_layers": 2, "num_decoder_layers": 1, "num_heads": 4,
            "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
            "decoder_start_token_id": 0, "dropout_rate": 0.1, "classifier_dropout": 0.1,
            "feed_forward_proj": "gelu",
        });
        let mut gated = small.clone();
        gated["feed_forward_proj"] = json!("gated-gelu");
        gated["tie_word_embeddings"] = json!(false);
        vec![small, gated]
    },
    parse: |json, model_type| Ok(Box::new(T5Config::from_json(json, model_type)?)),
};

const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["q", "v"],
    adalora: &["q", "k", "v", "o", "wi", "wo"],
    ia3: &["k", "v", "wo"],
    ia3_feedforward: &["wo"],
};

const MT5_TARGETS: DefaultTargets = DefaultTargets {
    lora: &["q", "v"],
    adalora: &["q", "k", "v", "o", "wi_0", "wi_1", "wo"],
    ia3: &["k", "v", "wi_1"],
    ia3_feedforward: &[],
};

/// The head that classifies tokens, over the encoder alone.
const TOKEN_HEAD: Option<&str> = Some("classifier");

/// Names below `encoder.block.N` or `decoder.block.N`.
const fn names(decoder: bool, gated: bool) -> LayerNames {
    LayerNames {
        attention: AttentionNames {
            query: "layer.0.SelfAttention.q",
            key: "layer.0.SelfAttention.k",
            value: "layer.0.SelfAttention.v",
            output: "layer.0.SelfAttention.o",
            norms: None,
        },
        attention_norm: "layer.0.layer_norm",
        cross_attention: match decoder {
            true => Some((
                AttentionNames {
                    query: "layer.1.EncDecAttention.q",
                    key: "layer.1.EncDecAttention.k",
                    value: "layer.1.EncDecAttention.v",
                    output: "layer.1.EncDecAttention.o",
                    norms: None,
                },
                "layer.1.layer_norm",
            )),
            false => None,
        },
        feed_forward: match (decoder, gated) {
            (true, true) => FeedForwardNames {
                gate: Some("layer.2.DenseReluDense.wi_0"),
                up: "layer.2.DenseReluDense.wi_1",
                down: "layer.2.DenseReluDense.wo",
            },
            (true, false) => FeedForwardNames {
                gate: None,
                up: "layer.2.DenseReluDense.wi",
                down: "layer.2.DenseReluDense.wo",
            },
            (false, true) => FeedForwardNames {
                gate: Some("layer.1.DenseReluDense.wi_0"),
                up: "layer.1.DenseReluDense.wi_1",
                down: "layer.1.DenseReluDense.wo",
            },
            (false, false) => FeedForwardNames {
                gate: None,
                up: "layer.1.DenseReluDense.wi",
                down: "layer.1.DenseReluDense.wo",
            },
        },
        feed_forward_norm: match decoder {
            true => "layer.2.layer_norm",
            false => "layer.1.layer_norm",
        },
        output_norms: None,
    }
}

/// The configuration of an encoder-decoder of the T5 family.
#[derive(Debug, Clone, PartialEq)]
pub struct T5Config {
    /// `t5` or `mt5`.
    pub model_type: String,
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the word embeddings; default 32128, mT5 250112.
    pub vocab_size: usize,
    /// Size of the hidden states; default 512.
    pub d_model: usize,
    /// Size of a head; default 64.
    pub d_kv: usize,
    /// Intermediate size of the feed-forward network; default 2048, mT5 1024.
    pub d_ff: usize,
    /// Layers of the encoder; default 6, mT5 8.
    pub num_layers: usize,
    /// Layers of the decoder; by default as many.
    pub num_decoder_layers: usize,
    /// Heads of a layer; default 8, mT5 6.
    pub num_heads: usize,
    /// Buckets of relative positions; default 32.
    pub relative_attention_num_buckets: usize,
    /// The distance from which on all positions share a bucket; default 128.
    pub relative_attention_max_distance: usize,
    /// Dropout of both stacks; default 0.1.
    pub dropout_rate: f64,
    /// Dropout of a classification head; default 0.
    pub classifier_dropout: f64,
    /// Epsilon of the norms; default 1e-6.
    pub layer_norm_epsilon: f64,
    /// Scale of the standard deviations of new weights; default 1.
    pub initializer_factor: f64,
    /// Activation of the feed-forward network: `dense_act_fn`, or `feed_forward_proj`.
    pub activation: Activation,
    /// Whether the feed-forward network is gated: `is_gated_act`, or `feed_forward_proj`.
    pub gated: bool,
    /// Whether the language model's head is the word embeddings; default true.
    pub tie_word_embeddings: bool,
    /// Whether the language model's head reads states scaled by `1/√d_model`:
    /// `scale_decoder_outputs`, by default where T5's head is tied; never for mT5.
    pub scale_decoder_outputs: bool,
    /// The padding token; default 0.
    pub pad_token_id: Option<u32>,
    /// The tokens that end a text; default 1.
    pub eos_token_ids: Vec<u32>,
    /// The token with which the decoder's input begins; by default the padding token.
    pub decoder_start_token_id: u32,
    /// The classes of a classification head.
    pub labels: Labels,
}

impl T5Config {
    fn from_json(json: &JsonObject, model_type: &str) -> Result<Self, ModelError> {
        refuse_other_architectures(json)?;
        refuse_not_causal(json)?;
        let is_mt5 = model_type == "mt5";
        let default = |t5: usize, mt5: usize| if is_mt5 { mt5 } else { t5 };
        let layers = |key: &str, default: usize| {
            let layers: Option<usize> = json.get(key, None)?;
            in_range(json, key, layers.unwrap_or(default), MOST_LAYERS)
        };
        let vocab_size = size(json, "vocab_size", default(32128, 250_112))?;
        let num_layers = layers("num_layers", default(6, 8))?;
        let (activation, gated) = feed_forward(json, if is_mt5 { "gated-gelu" } else { "relu" })?;
        let tie_word_embeddings = json.get("tie_word_embeddings", true)?;
        let scales = json.get("scale_decoder_outputs", tie_word_embeddings)?;
        let pad_token_id = token(json, "pad_token_id", Some(0), vocab_size)?;
        let start = "decoder_start_token_id";
        let start = token(json, start, pad_token_id, vocab_size)?
            .ok_or_else(|| json.invalid(start, "is missing, and so is `pad_token_id`"))?;
        let config = Self {
            model_type: model_type.to_owned(),
            architectures: architectures(json)?,
            vocab_size,
            d_model: size(json, "d_model", 512)?,
            d_kv: size(json, "d_kv", 64)?,
            d_ff: size(json, "d_ff", default(2048, 1024))?,
            num_layers,
            num_decoder_layers: layers("num_decoder_layers", num_layers)?,
            num_heads: size(json, "num_heads", default(8, 6))?,
            relative_attention_num_buckets: size(json, "relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: size(json, "relative_attention_max_distance", 128)?,
            dropout_rate: dropout(json, "dropout_rate", 0.1)?,
            classifier_dropout: dropout(json, "classifier_dropout", 0.0)?,
            layer_norm_epsilon: epsilon(json, "layer_norm_epsilon", 1e-6)?,
            initializer_factor: epsilon(json, "initializer_factor", 1.0)?,
            activation,
            gated,
            tie_word_embeddings,
            scale_decoder_outputs: scales && !is_mt5,
            pad_token_id,
            eos_token_ids: json.token_ids("eos_token_id", Some(1))?,
            decoder_start_token_id: start,
            labels: Labels::from_json(json)?,
        };
        // Each direction of the encoder has half of the buckets, half of which hold one distance
        // each.
        if config.relative_attention_num_buckets < 4 {
            let problem = format!("{} is below 4", config.relative_attention_num_buckets);
            return Err(json.invalid("relative_attention_num_buckets", problem));
        }
        Ok(config)
    }
}

/// Activation and gate: `feed_forward_proj` is `relu`, `gated-gelu`, or `gated-` before another
/// activation, and GELU behind a gate is its tanh approximation. `dense_act_fn` and `is_gated_act`,
/// which transformers writes too, override it where the file has them.
fn feed_forward(json: &JsonObject, default: &str) -> Result<(Activation, bool), ModelError> {
    let key = "feed_forward_proj";
    let name: String = json.get(key, default.to_owned())?;
    let (activation, gated) = match name.strip_prefix("gated-") {
        Some("gelu") => ("gelu_new", true),
        Some(activation) => (activation, true),
        None => (&*name, false),
    };
    let gated = json.get("is_gated_act", gated)?;
    if json.has("dense_act_fn") {
        return Ok((config::activation(json, "dense_act_fn", activation)?, gated));
    }
    match activation.parse() {
        Ok(activation) => Ok((activation, gated)),
        Err(_) => Err(json.unsupported(
            key,
            format!("`{name}`"),
            "gelu, gelu_new, relu, silu and tanh, also with `gated-` before them",
        )),
    }
}

/// Refuses encoders and decoders alone, but for an encoder that classifies tokens.
fn refuse_other_architectures(json: &JsonObject) -> Result<(), ModelError> {
    let mut classes = architectures(json)?.into_iter();
    let classifies_tokens = classes.any(|class| class.ends_with("ForTokenClassification"));
    for (key, usual) in [("is_encoder_decoder", true), ("is_decoder", false)] {
        if json.flag(key, usual)? != usual && !(usual && classifies_tokens) {
            let supported = "an encoder-decoder";
            return Err(json.unsupported(key, (!usual).to_string(), supported));
        }
    }
    Ok(())
}

impl FamilyConfig for T5Config {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.model_type.clone(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            hidden_size: self.d_model,
            num_hidden_layers: self.num_layers + self.num_decoder_layers,
            vocab_size: self.vocab_size,
            max_position_embeddings: None,
            // As the classification head starts.
            initializer_range: self.initializer_factor / (self.d_model as f64).sqrt(),
            bos_token_id: None,
            eos_token_ids: self.eos_token_ids.clone(),
            pad_token_id: self.pad_token_id,
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            dropout_rate: p,
            classifier_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: "transformer.",
            ignorable: match head {
                HeadKind::LanguageModel => &[
                    "encoder.embed_tokens.weight",
                    "decoder.embed_tokens.weight",
                    "EncDecAttention.relative_attention_bias.weight",
                    "classification_head.",
                ],
                HeadKind::TokenClassification { .. } => &[
                    "encoder.embed_tokens.weight",
                    "decoder.",
                    "transformer.decoder.",
                    "lm_head.weight",
                ],
                _ => &[
                    "encoder.embed_tokens.weight",
                    "decoder.embed_tokens.weight",
                    "EncDecAttention.relative_attention_bias.weight",
                    "lm_head.weight",
                ],
            },
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        let stem = match self.model_type.as_str() {
            "mt5" => "MT5",
            _ => "T5",
        };
        head.class_of_encoder_decoder(stem, TOKEN_HEAD)
    }

    fn adapterhub_site(&self, module: &str) -> Option<String> {
        let (layer, _) = module.rsplit_once('.')?;
        Some(layer.to_owned())
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path_in_encoder_decoder(TOKEN_HEAD)
    }

    /// transformers ties the head to the embeddings unless a checkpoint has both, whatever
    /// `tie_word_embeddings` says.
    fn tied(&self) -> Option<[&'static str; 2]> {
        Some(["lm_head.weight", "shared.weight"])
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &[
                "transformer.shared.weight",
                "encoder.embed_tokens.weight",
                "transformer.encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "transformer.decoder.embed_tokens.weight",
                "lm_head.weight",
            ],
            false => &[
                "transformer.shared.weight",
                "encoder.embed_tokens.weight",
                "transformer.encoder.embed_tokens.weight",
                "decoder.embed_tokens.weight",
                "transformer.decoder.embed_tokens.weight",
            ],
        }
    }

    fn computation(&self) -> Value {
        json!({
            "num_heads": self.num_heads,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "activation": self.activation.name(),
            "gated": self.gated,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "scale_decoder_outputs": self.scale_decoder_outputs,
            "decoder_start_token_id": self.decoder_start_token_id,
        })
    }

    fn dropouts(&self) -> Value {
        json!({
            "dropout_rate": self.dropout_rate,
            "classifier_dropout": self.classifier_dropout,
        })
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let prefix = match head {
            HeadKind::LanguageModel | HeadKind::QuestionAnswering => "",
            _ => "transformer.",
        };
        let size = self.d_model;
        let b = &mut builder;
        let words = format!("{prefix}shared.weight");
        let table = b.matrix(&words, [self.vocab_size, size]);
        let embeddings = |path| Embeddings {
            words: table.clone(),
            scale: None,
            positions: None,
            segments: None,
            norm: None,
            dropout: self.dropout_rate,
            projection: None,
            path,
        };
        let encoder = self.stack(b, prefix, false, embeddings("encoder.embed_tokens"));
        let decoder = match head {
            HeadKind::TokenClassification { .. } => None,
            _ => Some(self.stack(b, prefix, true, embeddings("decoder.embed_tokens"))),
        };
        b.at(Depth::Head);
        let task_head = self.task_head(head);
        let names = EncoderDecoderHeads {
            model_type: &self.model_type,
            task: task_head,
            hidden_size: size,
            dropout: self.classifier_dropout,
        };
        let head = Head::of_encoder_decoder(b, head, &names, |b| {
            let tied = tied && (self.tie_word_embeddings || !b.has("lm_head.weight"));
            let scaled = self.scale_decoder_outputs;
            let scale = scaled.then(|| 1.0 / (size as f64).sqrt());
            LanguageModelHead::build(b, "lm_head", &table, tied, scale)
        })?;
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: self.model_type.clone(),
                layers: self.num_layers + decoder.as_ref().map_or(0, |it| it.layers.len()),
                encoder_layers: decoder.as_ref().map_or(0, |_| self.num_layers),
                hidden_size: size,
                heads: self.num_heads,
                kv_heads: self.num_heads,
                head_dim: self.d_kv,
                vocabulary: self.vocab_size,
                type_vocabulary: 0,
                max_positions: None,
            },
            default_targets: match &*self.model_type {
                "mt5" => MT5_TARGETS,
                _ => TARGETS,
            },
            word_embeddings: &words,
            prefix,
            task_head,
            new_modules: Vec::new(),
        })?;
        let has_dropout = self.dropout_rate > 0.0;
        let stacks: Box<dyn Backbone> = match decoder {
            Some(decoder) => Box::new(EncoderDecoder {
                encoder,
                decoder,
                decoder_start_token: Some(self.decoder_start_token_id),
                begins_with_last: false,
                pad_token: self.pad_token_id.unwrap_or(self.decoder_start_token_id),
                has_dropout,
            }),
            None => Box::new(encoder.alone(has_dropout)),
        };
        Ok(Model::new(base, stacks, head))
    }
}

impl T5Config {
    /// The encoder, or the decoder, whose layers are numbered after the encoder's.
    fn stack(
        &self,
        builder: &mut Builder<'_>,
        prefix: &str,
        decoder: bool,
        embeddings: Embeddings,
    ) -> HalfStack {
        let (name, first, count) = match decoder {
            false => ("encoder", 0, self.num_layers),
            true => ("decoder", self.num_layers, self.num_decoder_layers),
        };
        let path = format!("{prefix}{name}");
        let (names, shape) = (names(decoder, self.gated), self.layer_shape(decoder));
        let bias = RelativeBias::build(
            builder.at(Depth::Layer(first)),
            &format!("{path}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
            self.num_heads,
            RelativeBuckets {
                count: self.relative_attention_num_buckets,
                max_distance: self.relative_attention_max_distance,
                bidirectional: !decoder,
            },
        );
        let layers = (0..count).map(|index| {
            let builder = builder.at(Depth::Layer(first + index));
            Layer::build(builder, &format!("{path}.block.{index}"), &names, &shape)
        });
        let layers = layers.collect();
        // The encoder's norm ends its last layer.
        builder.at(match decoder {
            false => Depth::Layer(count - 1),
            true => Depth::Head,
        });
        let norm = format!("{path}.final_layer_norm");
        HalfStack {
            embeddings,
            layers,
            bias: Some(bias),
            final_norm: Some(Norm::build(builder, &norm, self.d_model, shape.norm)),
            final_dropout: self.dropout_rate,
            path: name,
        }
    }

    fn layer_shape(&self, decoder: bool) -> LayerShape {
        let attention = |causal| AttentionShape {
            heads: self.num_heads,
            kv_heads: self.num_heads,
            head_dim: self.d_kv,
            scale: 1.0,
            softcap: None,
            causal,
            window: None,
            dropout: self.dropout_rate,
            projections: Projections::Separate,
            qkv_bias: false,
            output_bias: false,
            rotary: false,
            rotary_set: 0,
            disentangled: None,
            norms: None,
        };
        LayerShape {
            hidden_size: self.d_model,
            norm: NormShape {
                rms: true,
                shift: true,
                epsilon: self.layer_norm_epsilon,
                offset: 0.0,
            },
            placement: NormPlacement::Before,
            parallel: false,
            attention: attention(decoder),
            cross_attention: decoder.then(|| attention(false)),
            feed_forward: FeedForwardShape {
                intermediate_size: self.d_ff,
                activation: self.activation,
                gated: self.gated,
                packed: false,
                bias: false,
                conv1d: false,
                dropout: self.dropout_rate,
            },
            dropout: self.dropout_rate,
            attention_output_dropout: self.dropout_rate,
            attention_norm: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::{Activation, Precision, Sequences};
    use serde_json::{Value, json};

    use super::T5Config;
    use crate::{HeadKind, Identity, Model, ModelConfig, ModelError, Tokens, random_model};

    fn parse(config: &Value) -> Result<T5Config, ModelError> {
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes())?;
        Ok(config.of_family::<T5Config>().expect("T5").clone())
    }

    /// `T5Config()` and `MT5Config()` of transformers.
    #[test]
    fn defaults_are_those_of_transformers() {
        let t5 = parse(&json!({ "model_type": "t5" })).unwrap();
        assert_eq!((t5.vocab_size, t5.d_ff, t5.num_layers), (32128, 2048, 6));
        assert_eq!((t5.num_decoder_layers, t5.num_heads, t5.d_kv), (6, 8, 64));
        assert_eq!((t5.activation, t5.gated), (Activation::Relu, false));
        assert!(t5.scale_decoder_outputs);
        let mt5 = parse(&json!({ "model_type": "mt5" })).unwrap();
        assert_eq!(
            (mt5.vocab_size, mt5.d_ff, mt5.num_layers),
            (250_112, 1024, 8)
        );
        assert_eq!((mt5.num_decoder_layers, mt5.num_heads), (8, 6));
        assert_eq!((mt5.activation, mt5.gated), (Activation::GeluTanh, true));
        assert!(!mt5.scale_decoder_outputs);
    }

    /// T5 1.1 says that its head is its own; transformers 5 writes the consequence too.
    #[test]
    fn only_a_tied_head_scales() {
        for key in ["tie_word_embeddings", "scale_decoder_outputs"] {
            let config = parse(&json!({ "model_type": "t5", key: false })).unwrap();
            assert!(!config.scale_decoder_outputs, "{key}");
        }
    }

    #[test]
    fn what_is_not_an_encoder_decoder_of_t5_is_refused_by_key() {
        for (key, value) in [
            ("is_encoder_decoder", json!(false)),
            ("is_decoder", json!(true)),
            ("feed_forward_proj", json!("gated-swoosh")),
            ("relative_attention_num_buckets", json!(3)),
            ("num_decoder_layers", json!(0)),
            ("decoder_start_token_id", json!(40_000)),
        ] {
            let error = parse(&json!({ "model_type": "t5", key: value })).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    fn model() -> Model {
        let config = json!({
            "model_type": "t5", "vocab_size": 20, "d_model": 8, "d_kv": 3, "d_ff": 12,
            "num_layers": 1, "num_heads": 2, "pad_token_id": 0, "decoder_start_token_id": 2,
        });
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        let head = HeadKind::Classification { labels: 2 };
        let device = Device::default();
        random_model(&config.unwrap(), head, &device, Precision::F32, 0).unwrap()
    }

    #[test]
    fn labels_are_shifted_right_in_each_sequence() {
        let labels = [5, -100, 6, 1, 7, 1];
        let rows = Sequences::new(vec![0, 4, 4, 6]);
        let shifted = model().backbone().decoder_input(&labels, &rows);
        assert_eq!(shifted.unwrap(), [2, 5, 0, 6, 2, 7]);
    }

    /// As in `T5ForSequenceClassification`.
    #[test]
    fn without_tokens_of_its_own_the_decoder_reads_the_text() {
        let model = model();
        let (ids, type_ids) = ([4, 9, 1, 7, 1], [0; 5]);
        let tokens = Tokens::new(&ids, &type_ids, Sequences::new(vec![0, 3, 5]));
        let rows = tokens.sequences.clone();
        let decoder = model.backbone().decoder_input(&[4, 9, 1, 7, 1], &rows);
        let decoder = decoder.unwrap();
        let explicit = Tokens {
            decoder: Some(crate::DecoderTokens {
                ids: &decoder,
                sequences: rows,
            }),
            ..tokens.clone()
        };
        let logits = |tokens| model.logits(tokens, &Identity).to_data();
        assert_eq!(logits(&tokens), logits(&explicit));
    }
}
