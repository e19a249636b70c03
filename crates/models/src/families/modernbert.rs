//! ModernBERT (Warner et al. 2024, arXiv 2412.13663).
//!
//! An encoder with rotary positions and norms before blocks, `x₁ = x + Attn(N₁(x))`, `x₂ = x₁ +
//! FF(N₂(x₁))`; the first layer reads the normalized embeddings without another norm. Queries, keys
//! and values are one linear layer, as are the two inputs of the gated feed-forward. Most layers
//! see a window to both sides, with a rotary embedding of their own. The classification head reads
//! the first token, the mean of all or each: `classifier(dropout(norm(f(dense(x)))))`. Tensor names
//! are those of Hugging Face's `ModernBertForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::adapter::Role;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, FeedForwardNames, FeedForwardShape, Layer,
    LayerNames, LayerShape, Matrix, Norm, NormPlacement, NormShape, Projections, Stack,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    LARGEST_SIZE, Labels, MOST_LAYERS, Rope, RopeDefaults, activation, architectures, dropout,
    epsilon, in_range, num_hidden_layers, size, sliding_layers, special_token, token,
};
use crate::heads::{
    ClassificationHead, Head, HeadKind, MaskedLmNames, MaskedLmShape, NewHead, Pooling,
};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;
use crate::rope::RotaryEmbedding;

pub(super) const FAMILY: Family = Family {
    name: "ModernBERT",
    model_types: &["modernbert"],
    // Two layers with a window and one without; the second head reads the mean of all tokens.
    examples: || {
        let example = |pooling: &str| {
            json!({
                "model_type": "modernbert", "vocab_size": 30, "hidden_size": 16,
                "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24,
                "max_position_embeddings": 64, "local_attention": 6, "pad_token_id": 0,
                "classifier_pooling": pooling, "attention_dropout": 0.1,
                "embedding_dropout": 0.1, "mlp_dropout": 0.1, "classifier_dropout": 0.1,
            })
        };
        vec![example("cls"), example("mean")]
    },
    parse: |json, _| Ok(Box::new(ModernBertConfig::from_json(json)?)),
};

// PEFT has no entry for `modernbert`: its packed queries, keys and values.
const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["Wqkv"],
    adalora: &["Wqkv"],
    ia3: &["Wqkv", "mlp.Wo"],
    ia3_feedforward: &["mlp.Wo"],
};

const NAMES: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "attn.Wqkv",
        key: "attn.Wqkv",
        value: "attn.Wqkv",
        output: "attn.Wo",
        norms: None,
    },
    attention_norm: "attn_norm",
    cross_attention: None,
    feed_forward: FeedForwardNames {
        gate: None,
        up: "mlp.Wi",
        down: "mlp.Wo",
    },
    feed_forward_norm: "mlp_norm",
    output_norms: None,
};

const PREFIX: &str = "model.";
const EMBEDDINGS: &str = "model.embeddings";
const WORDS: &str = "model.embeddings.tok_embeddings.weight";
/// The dense layer and the norm before the classifier, which bare models lack.
const PREDICTION_HEAD: &str = "head";

/// The head of masked language models.
static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "head.dense",
    norm: "head.norm",
    decoder: "decoder",
    bias: "decoder.bias",
    modules: &[PREDICTION_HEAD, "decoder"],
};

/// The configuration of a ModernBERT encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModernBertConfig {
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the word embeddings; default 50368.
    pub vocab_size: usize,
    /// Size of the hidden states; default 768.
    pub hidden_size: usize,
    /// Intermediate size of the feed-forward; default 1152.
    pub intermediate_size: usize,
    /// Number of layers; default 22.
    pub num_hidden_layers: usize,
    /// Heads of a layer, which divide the hidden size; default 12.
    pub num_attention_heads: usize,
    /// Activation of the feed-forward; default `gelu`.
    pub hidden_activation: Activation,
    /// The longest sequence; default 8192.
    pub max_position_embeddings: usize,
    /// Standard deviation of newly initialized weights; default 0.02.
    pub initializer_range: f64,
    /// Epsilon of the norms; default 1e-5.
    pub norm_eps: f64,
    /// Whether norms have a shift; default false.
    pub norm_bias: bool,
    /// Whether the attention's linear layers have biases; default false.
    pub attention_bias: bool,
    /// Whether the feed-forward's linear layers have biases; default false.
    pub mlp_bias: bool,
    /// Whether the head's dense layer has a bias; default false.
    pub classifier_bias: bool,
    /// Whether a masked language model's decoder has a bias; default true.
    pub decoder_bias: bool,
    /// What the classification head reads; default the first token.
    pub classifier_pooling: Pooling,
    /// What follows the head's dense layer; default `gelu`.
    pub classifier_activation: Activation,
    /// Which layers see a window only.
    pub sliding: Vec<bool>,
    /// How many tokens such a layer sees to one side, without itself; default 64.
    pub half_window: usize,
    /// The rotary embedding of the other layers, and that of layers with a window.
    pub rope: [RotaryEmbedding; 2],
    /// Dropout on attention probabilities and on the attention's output; default 0.
    pub attention_dropout: f64,
    /// Dropout after the embeddings; default 0.
    pub embedding_dropout: f64,
    /// Dropout inside the feed-forward; default 0.
    pub mlp_dropout: f64,
    /// Dropout before the classifier; default 0.
    pub classifier_dropout: f64,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// The padding token.
    pub pad_token_id: Option<u32>,
    /// Whether a language model's head is the word embeddings; default true.
    pub tie_word_embeddings: bool,
    /// The classes of a classification head.
    pub labels: Labels,
}

impl ModernBertConfig {
    fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        let json = &json.with_aliases(&[("global_rope_theta", "rope_theta")]);
        if json.object("rope_scaling")?.is_some() {
            let supported = "`rope_parameters` with an object for each type of layer";
            return Err(json.unsupported("rope_scaling", "one for all layers", supported));
        }
        let vocab_size = size(json, "vocab_size", 50_368)?;
        let hidden_size = size(json, "hidden_size", 768)?;
        let heads = size(json, "num_attention_heads", 12)?;
        if !hidden_size.is_multiple_of(heads) {
            let problem = format!("{heads} heads do not divide hidden_size {hidden_size}");
            return Err(json.invalid("num_attention_heads", problem));
        }
        let max_position_embeddings = size(json, "max_position_embeddings", 8192)?;
        let layers = num_hidden_layers(json, 22)?;
        let key = "global_attn_every_n_layers";
        let every = in_range(json, key, json.get(key, 3)?, MOST_LAYERS)?;
        let half_window = match json.get("sliding_window", None)? {
            Some(half) => half,
            None => size(json, "local_attention", 128)? / 2,
        };
        let rope = RopeDefaults {
            head_dim: hidden_size / heads,
            max_position_embeddings,
            rope_theta: 160_000.0,
            partial_rotary_factor: None,
            interleaved: false,
        };
        let pooling: String = json.get("classifier_pooling", "cls".to_owned())?;
        Ok(Self {
            architectures: architectures(json)?,
            vocab_size,
            hidden_size,
            intermediate_size: size(json, "intermediate_size", 1152)?,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            hidden_activation: activation(json, "hidden_activation", "gelu")?,
            max_position_embeddings,
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            norm_eps: epsilon(json, "norm_eps", 1e-5)?,
            norm_bias: json.get("norm_bias", false)?,
            attention_bias: json.get("attention_bias", false)?,
            mlp_bias: json.get("mlp_bias", false)?,
            classifier_bias: json.get("classifier_bias", false)?,
            decoder_bias: json.get("decoder_bias", true)?,
            classifier_pooling: match pooling.as_str() {
                "cls" => Pooling::First,
                "mean" => Pooling::Mean,
                other => {
                    let found = format!("`{other}`");
                    return Err(json.unsupported("classifier_pooling", found, "cls, mean"));
                }
            },
            classifier_activation: activation(json, "classifier_activation", "gelu")?,
            sliding: sliding_layers(json, layers, |layer| !layer.is_multiple_of(every))?,
            half_window: half_window.min(LARGEST_SIZE),
            rope: Rope::new(json, rope).of_layer_types(("local_rope_theta", 10_000.0))?,
            attention_dropout: dropout(json, "attention_dropout", 0.0)?,
            embedding_dropout: dropout(json, "embedding_dropout", 0.0)?,
            mlp_dropout: dropout(json, "mlp_dropout", 0.0)?,
            classifier_dropout: dropout(json, "classifier_dropout", 0.0)?,
            bos_token_id: special_token(json, "bos_token_id", Some(50_281), vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", Some(50_282))?,
            pad_token_id: token(
                json,
                "pad_token_id",
                Some(50_283).filter(|&id| (id as usize) < vocab_size),
                vocab_size,
            )?,
            tie_word_embeddings: json.flag("tie_word_embeddings", true)?,
            labels: Labels::from_json(json)?,
        })
    }

    fn dropout_values(&self) -> [(&'static str, f64); 4] {
        [
            ("attention_dropout", self.attention_dropout),
            ("embedding_dropout", self.embedding_dropout),
            ("mlp_dropout", self.mlp_dropout),
            ("classifier_dropout", self.classifier_dropout),
        ]
    }

    fn norm(&self) -> NormShape {
        NormShape {
            rms: false,
            shift: self.norm_bias,
            epsilon: self.norm_eps,
            offset: 0.0,
        }
    }

    fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn layer_shape(&self, index: usize) -> LayerShape {
        let slides = self.sliding[index];
        LayerShape {
            hidden_size: self.hidden_size,
            norm: self.norm(),
            placement: NormPlacement::Before,
            attention_norm: index > 0,
            parallel: false,
            attention: AttentionShape {
                heads: self.num_attention_heads,
                kv_heads: self.num_attention_heads,
                head_dim: self.head_dim(),
                scale: (1.0 / (self.head_dim() as f64).sqrt()) as f32,
                softcap: None,
                causal: false,
                window: slides.then_some(self.half_window + 1),
                dropout: self.attention_dropout,
                projections: Projections::Fused,
                qkv_bias: self.attention_bias,
                output_bias: self.attention_bias,
                rotary: true,
                rotary_set: usize::from(slides),
                disentangled: None,
                norms: None,
            },
            cross_attention: None,
            feed_forward: FeedForwardShape {
                intermediate_size: self.intermediate_size,
                activation: self.hidden_activation,
                gated: true,
                packed: true,
                bias: self.mlp_bias,
                conv1d: false,
                dropout: self.mlp_dropout,
            },
            dropout: 0.0,
            attention_output_dropout: self.attention_dropout,
        }
    }

    fn head(
        &self,
        b: &mut Builder<'_>,
        head: HeadKind,
        words: &Matrix,
        tied: bool,
    ) -> Result<NewHead, ModelError> {
        let shape = MaskedLmShape {
            hidden_size: self.hidden_size,
            activation: self.classifier_activation,
            norm: self.norm(),
            dense_bias: self.classifier_bias,
            decoder_bias: self.decoder_bias,
        };
        if let Some(head) = head.untrained(b, (&MASKED_LM, shape), words, tied) {
            return Ok(head);
        }
        let Some(outputs) = head.outputs() else {
            return Err(ModelError::no_head("modernbert", head));
        };
        let has_prediction_head = b.has(&format!("{PREDICTION_HEAD}.dense.weight"));
        let pooling = match head {
            HeadKind::TokenClassification { .. } | HeadKind::QuestionAnswering => {
                Pooling::EachToken
            }
            _ => self.classifier_pooling,
        };
        let head = self.classification_head(b, outputs, pooling);
        let new_module = (!has_prediction_head).then_some(PREDICTION_HEAD);
        let new_modules = new_module.into_iter().collect();
        Ok((Head::Classification(head), new_modules))
    }

    fn classification_head(
        &self,
        b: &mut Builder<'_>,
        outputs: usize,
        pooling: Pooling,
    ) -> ClassificationHead {
        let size = self.hidden_size;
        let dense = format!("{PREDICTION_HEAD}.dense");
        ClassificationHead {
            pooling,
            input_dropout: 0.0,
            dense: Some(b.linear(&dense, Role::Pooler, [size, size], self.classifier_bias)),
            activation: self.classifier_activation,
            norm: Some(Norm::build(
                b,
                &format!("{PREDICTION_HEAD}.norm"),
                size,
                self.norm(),
            )),
            dropout: self.classifier_dropout,
            output: b.linear("classifier", Role::Head, [outputs, size], true),
        }
    }
}

impl FamilyConfig for ModernBertConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: "modernbert".to_owned(),
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
            embedding_dropout: p,
            mlp_dropout: p,
            classifier_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, _head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: PREFIX,
            ignorable: &["decoder.", "rotary_emb."],
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        head.class_of("ModernBert")
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.outputs().map(|_| "classifier")
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &[WORDS, "decoder.weight"],
            false => &[],
        }
    }

    fn masked_lm(&self) -> Option<&'static MaskedLmNames> {
        Some(&MASKED_LM)
    }

    fn optional_modules(&self) -> &'static [&'static str] {
        &[PREDICTION_HEAD]
    }

    fn computation(&self) -> Value {
        let rope = self.rope.iter().map(RotaryEmbedding::computation);
        json!({
            "num_attention_heads": self.num_attention_heads,
            "hidden_activation": self.hidden_activation.name(),
            "norm_eps": self.norm_eps,
            "sliding": self.sliding,
            "half_window": self.half_window,
            "rope": rope.collect::<Vec<_>>(),
            "classifier_pooling": format!("{:?}", self.classifier_pooling),
            "classifier_activation": self.classifier_activation.name(),
        })
    }

    fn dropouts(&self) -> Value {
        let values = self.dropout_values();
        Value::Object(
            values
                .into_iter()
                .map(|(key, p)| (key.to_owned(), p.into()))
                .collect(),
        )
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let size = self.hidden_size;
        let b = &mut builder;
        let embeddings = Embeddings {
            words: b.matrix(WORDS, [self.vocab_size, size]),
            scale: None,
            positions: None,
            segments: None,
            norm: Some(Norm::build(
                b,
                &format!("{EMBEDDINGS}.norm"),
                size,
                self.norm(),
            )),
            dropout: self.embedding_dropout,
            projection: None,
            path: EMBEDDINGS,
        };
        let layers = (0..self.num_hidden_layers).map(|index| {
            let path = format!("{PREFIX}layers.{index}");
            let shape = self.layer_shape(index);
            Layer::build(b.at(Depth::Layer(index)), &path, &NAMES, &shape)
        });
        let layers = layers.collect();
        b.rotary(&self.rope[0]);
        b.at(Depth::Head);
        let final_norm = Norm::build(b, &format!("{PREFIX}final_norm"), size, self.norm());
        let task_head = self.task_head(head);
        let (head, new_modules) = self.head(b, head, &embeddings.words, tied)?;
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: "modernbert".to_owned(),
                layers: self.num_hidden_layers,
                encoder_layers: 0,
                hidden_size: size,
                heads: self.num_attention_heads,
                kv_heads: self.num_attention_heads,
                head_dim: self.head_dim(),
                vocabulary: self.vocab_size,
                type_vocabulary: 0,
                max_positions: Some(self.max_position_embeddings),
            },
            default_targets: TARGETS,
            word_embeddings: WORDS,
            prefix: PREFIX,
            task_head,
            new_modules,
        })?;
        let stack = Stack {
            embeddings,
            layers,
            bias: None,
            positions: None,
            final_norm: Some(final_norm),
            final_dropout: 0.0,
            rotary: self.rope.to_vec(),
            has_dropout: self.dropout_values().iter().any(|&(_, p)| p > 0.0),
        };
        Ok(Model::new(base, Box::new(stack), head))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::Precision;
    use serde_json::{Value, json};

    use super::ModernBertConfig;
    use crate::families::ModelConfig;
    use crate::heads::Pooling;
    use crate::{HeadKind, random_model};

    fn parse(config: Value) -> ModernBertConfig {
        let mut config = config;
        config["model_type"] = "modernbert".into();
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        config
            .unwrap()
            .of_family::<ModernBertConfig>()
            .unwrap()
            .clone()
    }

    /// transformers' `ModernBertModel` with its defaults, which are `ModernBERT-base`, has
    /// 149 014 272 parameters; the head's dense layer and norm have 590 592.
    #[test]
    fn the_base_model_has_its_size() {
        let json = br#"{"model_type": "modernbert"}"#;
        let config = ModelConfig::parse("config.json".as_ref(), json).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        let model = random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap();
        assert_eq!(model.base().count(), 149_014_272 + 590_592);
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = parse(json!({}));
        let sliding = [false, true, true, false, true, true, false];
        assert_eq!(config.sliding[..7], sliding);
        assert_eq!((config.sliding.len(), config.half_window), (22, 64));
        assert_eq!(
            config.rope.clone().map(|it| it.rope_theta),
            [160_000.0, 10_000.0]
        );
        assert_eq!(config.classifier_pooling, Pooling::First);
        assert_eq!(
            (config.bos_token_id, config.pad_token_id),
            (Some(50_281), Some(50_283))
        );
        assert_eq!(config.eos_token_ids, [50_282]);
    }

    /// The keys of transformers 4, which the published files have, and those of 5.
    #[test]
    fn both_dialects_say_the_same() {
        let old = parse(json!({
            "num_hidden_layers": 4, "global_attn_every_n_layers": 2, "global_rope_theta": 5000.0,
            "local_rope_theta": 70.0,
        }));
        let [full, sliding] = ["full_attention", "sliding_attention"];
        let new = parse(json!({
            "num_hidden_layers": 4, "layer_types": [full, sliding, full, sliding],
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 70.0},
            },
        }));
        assert_eq!(old, new);
    }
}
