//! GPT-2 (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners").
//!
//! Decoder with layer norms before the blocks and learned positions: `x₁ = x + Attn(LN(x))`, `x₂ =
//! x₁ + FF(LN(x₁))`. Queries, keys and values come from one linear layer, and the weights of all
//! linear layers are stored as `[in, out]` (`Conv1D`). Tensor names are those of Hugging Face's
//! `GPT2LMHeadModel` and `GPT2ForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::base::{DefaultTargets, Depth, Dimensions};
use crate::blocks::{
    AttentionNames, AttentionShape, Embeddings, FeedForwardNames, FeedForwardShape, Layer,
    LayerNames, LayerShape, Norm, NormPlacement, NormShape, Positions, Projections, Stack,
};
use crate::builder::{Builder, Summary};
use crate::config::{
    LARGEST_SIZE, Labels, activation, architectures, dropout, epsilon, in_range, layer_count,
    refuse_not_causal, size, special_token, token,
};
use crate::heads::{DecoderHeads, Head, HeadKind, TokenHeads};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

pub(super) const FAMILY: Family = Family {
    name: "GPT-2",
    model_types: &["gpt2"],
    examples: || {
        vec![json!({
            "model_type": "gpt2", "vocab_size": 30, "n_embd": 16, "n_layer": 2, "n_head": 4,
            "n_inner": 24, "n_positions": 32, "scale_attn_by_inverse_layer_idx": true,
            "bos_token_id": 29, "eos_token_id": 29,
        })]
    },
    parse: |json, _| Ok(Box::new(Gpt2Config::from_json(json)?)),
};

const TARGETS: DefaultTargets = DefaultTargets {
    lora: &["c_attn"],
    adalora: &["c_attn"],
    ia3: &["c_attn", "mlp.c_proj"],
    ia3_feedforward: &["mlp.c_proj"],
};

const NAMES: LayerNames = LayerNames {
    attention: AttentionNames {
        query: "attn.c_attn",
        key: "attn.c_attn",
        value: "attn.c_attn",
        output: "attn.c_proj",
        norms: None,
    },
    attention_norm: "ln_1",
    cross_attention: None,
    feed_forward: FeedForwardNames {
        gate: None,
        up: "mlp.c_fc",
        down: "mlp.c_proj",
    },
    feed_forward_norm: "ln_2",
    output_norms: None,
};

const WORDS: &str = "transformer.wte.weight";

/// The head that classifies tokens, and the one that finds answers.
const TOKEN_HEADS: TokenHeads = [Some("classifier"), Some("qa_outputs")];

/// The configuration of a GPT-2 decoder, under its own keys.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpt2Config {
    /// The transformers classes that saved the model.
    pub architectures: Vec<String>,
    /// Rows of the embeddings and of the head; default 50257.
    pub vocab_size: usize,
    /// Rows of the position embeddings: the longest sequence; default 1024.
    pub n_positions: usize,
    /// Hidden size; default 768.
    pub n_embd: usize,
    /// Number of layers; default 12.
    pub n_layer: usize,
    /// Heads of a layer, which divide the hidden size; default 12.
    pub n_head: usize,
    /// Intermediate size of the feed-forward; default four times the hidden size.
    pub n_inner: usize,
    /// Activation inside the feed-forward; default `gelu_new`.
    pub activation_function: Activation,
    /// Dropout on each block's output; default 0.1.
    pub resid_pdrop: f64,
    /// Dropout after the embeddings; default 0.1.
    pub embd_pdrop: f64,
    /// Dropout on attention probabilities; default 0.1.
    pub attn_pdrop: f64,
    /// Dropout before a head that classifies tokens; default 0.1.
    pub classifier_dropout: f64,
    /// Epsilon of the layer norms; default 1e-5.
    pub layer_norm_epsilon: f64,
    /// Standard deviation of newly initialized weights; default 0.02.
    pub initializer_range: f64,
    /// Whether scores are divided by the root of a head's size; default true.
    pub scale_attn_weights: bool,
    /// Whether scores are divided by the layer's number, from 1; default false.
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the head is the embedding matrix; default true.
    pub tie_word_embeddings: bool,
    /// The token that starts a text; default 50256, none where the vocabulary is smaller.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; default 50256, none where the vocabulary is smaller.
    pub eos_token_ids: Vec<u32>,
    /// The padding token; default none.
    pub pad_token_id: Option<u32>,
    /// The classes of a classification head.
    pub labels: Labels,
}

impl Gpt2Config {
    fn from_json(json: &JsonObject) -> Result<Self, ModelError> {
        refuse_not_causal(json)?;
        if json.flag("add_cross_attention", false)? {
            let supported = "false: a decoder without encoder";
            return Err(json.unsupported("add_cross_attention", "true", supported));
        }
        if json.object("pruned_heads")?.is_some() {
            return Err(json.unsupported("pruned_heads", "a list of heads", "no pruned heads"));
        }
        let vocab_size = size(json, "vocab_size", 50257)?;
        // The default, where the vocabulary has it.
        let end_of_text = Some(50256).filter(|&id| (id as usize) < vocab_size);
        let n_embd = size(json, either(json, "n_embd", "hidden_size"), 768)?;
        let n_head = size(json, either(json, "n_head", "num_attention_heads"), 12)?;
        if !n_embd.is_multiple_of(n_head) {
            let problem = format!("{n_head} heads do not divide n_embd {n_embd}");
            return Err(json.invalid("n_head", problem));
        }
        let n_inner = json.get("n_inner", None)?.unwrap_or(4 * n_embd);
        let positions = either(json, "n_positions", "max_position_embeddings");
        Ok(Self {
            architectures: architectures(json)?,
            vocab_size,
            n_positions: size(json, positions, 1024)?,
            n_embd,
            n_layer: layer_count(json, either(json, "n_layer", "num_hidden_layers"), 12)?,
            n_head,
            n_inner: in_range(json, "n_inner", n_inner, LARGEST_SIZE)?,
            activation_function: activation(json, "activation_function", "gelu_new")?,
            resid_pdrop: dropout(json, "resid_pdrop", 0.1)?,
            embd_pdrop: dropout(json, "embd_pdrop", 0.1)?,
            attn_pdrop: dropout(json, "attn_pdrop", 0.1)?,
            classifier_dropout: dropout(json, "classifier_dropout", 0.1)?,
            layer_norm_epsilon: epsilon(json, "layer_norm_epsilon", 1e-5)?,
            initializer_range: epsilon(json, "initializer_range", 0.02)?,
            scale_attn_weights: json.get("scale_attn_weights", true)?,
            scale_attn_by_inverse_layer_idx: json.get("scale_attn_by_inverse_layer_idx", false)?,
            tie_word_embeddings: json.get("tie_word_embeddings", true)?,
            bos_token_id: special_token(json, "bos_token_id", end_of_text, vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", end_of_text)?,
            pad_token_id: token(json, "pad_token_id", None, vocab_size)?,
            labels: Labels::from_json(json)?,
        })
    }

    /// Dimensions of a head.
    pub fn head_dim(&self) -> usize {
        self.n_embd / self.n_head
    }

    /// What the scores of a layer are multiplied by.
    fn score_scale(&self, layer: usize) -> f32 {
        let by_head = match self.scale_attn_weights {
            true => 1.0 / (self.head_dim() as f64).sqrt(),
            false => 1.0,
        };
        let by_layer = match self.scale_attn_by_inverse_layer_idx {
            true => 1.0 / (layer + 1) as f64,
            false => 1.0,
        };
        (by_head * by_layer) as f32
    }
}

/// GPT-2's own key, or the common one where only that is there (transformers' `attribute_map`).
fn either(json: &JsonObject, own: &'static str, common: &'static str) -> &'static str {
    match json.has(common) && !json.has(own) {
        true => common,
        false => own,
    }
}

impl FamilyConfig for Gpt2Config {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: "gpt2".to_owned(),
            architectures: self.architectures.clone(),
            labels: self.labels.clone(),
            hidden_size: self.n_embd,
            num_hidden_layers: self.n_layer,
            vocab_size: self.vocab_size,
            max_position_embeddings: Some(self.n_positions),
            initializer_range: self.initializer_range,
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
            pad_token_id: self.pad_token_id,
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            resid_pdrop: p,
            embd_pdrop: p,
            attn_pdrop: p,
            classifier_dropout: p,
            ..self.clone()
        })
    }

    fn key_rules(&self, head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: "transformer.",
            // The causal mask and its value, which older releases saved.
            ignorable: match head {
                HeadKind::LanguageModel => &["attn.bias", "attn.masked_bias", "score.weight"],
                _ => &["attn.bias", "attn.masked_bias", "lm_head.weight"],
            },
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        let class = match head {
            HeadKind::Classification { .. } => "GPT2ForSequenceClassification",
            HeadKind::LanguageModel => "GPT2LMHeadModel",
            HeadKind::Embedding(_) => "GPT2Model",
            _ => {
                head.path_in_decoder(TOKEN_HEADS)?;
                return head.class_of("GPT2");
            }
        };
        Some(class.to_owned())
    }

    fn adapterhub_site(&self, module: &str) -> Option<String> {
        let (layer, sublayer) = module.rsplit_once('.')?;
        match sublayer {
            "attn" => Some(format!("{layer}.attention_adapters")),
            "mlp" => Some(format!("{layer}.output_adapters")),
            _ => None,
        }
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path_in_decoder(TOKEN_HEADS)
    }

    fn tied(&self) -> Option<[&'static str; 2]> {
        self.tie_word_embeddings
            .then_some(["lm_head.weight", WORDS])
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => &[WORDS, "lm_head.weight"],
            false => &[],
        }
    }

    fn computation(&self) -> Value {
        json!({
            "n_head": self.n_head,
            "activation_function": self.activation_function.name(),
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "scale_attn_weights": self.scale_attn_weights,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
        })
    }

    fn dropouts(&self) -> Value {
        json!({
            "resid_pdrop": self.resid_pdrop,
            "embd_pdrop": self.embd_pdrop,
            "attn_pdrop": self.attn_pdrop,
        })
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let size = self.n_embd;
        let b = &mut builder;
        let embeddings = Embeddings {
            words: b.matrix(WORDS, [self.vocab_size, size]),
            scale: None,
            positions: Some(Positions {
                table: b.matrix("transformer.wpe.weight", [self.n_positions, size]),
                first: 0,
                padding: None,
            }),
            segments: None,
            norm: None,
            dropout: self.embd_pdrop,
            projection: None,
            path: "transformer.drop",
        };
        let mut layers = Vec::new();
        for index in 0..self.n_layer {
            let path = format!("transformer.h.{index}");
            let shape = self.layer_shape(index)?;
            layers.push(Layer::build(
                b.at(Depth::Layer(index)),
                &path,
                &NAMES,
                &shape,
            ));
        }
        b.at(Depth::Head);
        let final_norm = Norm::build(b, "transformer.ln_f", size, self.norm());
        let task_head = self.task_head(head);
        let tied = tied && self.tie_word_embeddings;
        let names = DecoderHeads {
            model_type: "gpt2",
            language_model: "lm_head",
            task: task_head,
            padding: self.pad_token_id,
            dropout: self.classifier_dropout,
        };
        let head = Head::of_decoder(b, head, &names, &embeddings.words, tied)?;
        let base = builder.finish(Summary {
            dimensions: Dimensions {
                model_type: "gpt2".to_owned(),
                layers: self.n_layer,
                encoder_layers: 0,
                hidden_size: size,
                heads: self.n_head,
                kv_heads: self.n_head,
                head_dim: self.head_dim(),
                vocabulary: self.vocab_size,
                type_vocabulary: 0,
                max_positions: Some(self.n_positions),
            },
            default_targets: TARGETS,
            word_embeddings: WORDS,
            prefix: "transformer.",
            task_head,
            new_modules: Vec::new(),
        })?;
        let dropouts = [self.resid_pdrop, self.embd_pdrop, self.attn_pdrop];
        let stack = Stack {
            embeddings,
            layers,
            bias: None,
            positions: None,
            final_norm: Some(final_norm),
            final_dropout: 0.0,
            rotary: Vec::new(),
            has_dropout: dropouts.iter().any(|&p| p > 0.0),
        };
        Ok(Model::new(base, Box::new(stack), head))
    }
}

impl Gpt2Config {
    fn norm(&self) -> NormShape {
        NormShape {
            rms: false,
            shift: true,
            epsilon: self.layer_norm_epsilon,
            offset: 0.0,
        }
    }

    fn layer_shape(&self, index: usize) -> Result<LayerShape, ModelError> {
        Ok(LayerShape {
            hidden_size: self.n_embd,
            norm: self.norm(),
            placement: NormPlacement::Before,
            parallel: false,
            attention: AttentionShape {
                heads: self.n_head,
                kv_heads: self.n_head,
                head_dim: self.head_dim(),
                scale: self.score_scale(index),
                softcap: None,
                causal: true,
                window: None,
                dropout: self.attn_pdrop,
                projections: Projections::FusedConv1d,
                qkv_bias: true,
                output_bias: true,
                rotary: false,
                rotary_set: 0,
                disentangled: None,
                norms: None,
            },
            cross_attention: None,
            feed_forward: FeedForwardShape {
                intermediate_size: self.n_inner,
                activation: self.activation_function,
                gated: false,
                packed: false,
                bias: true,
                conv1d: true,
                dropout: 0.0,
            },
            dropout: self.resid_pdrop,
            attention_output_dropout: self.resid_pdrop,
            attention_norm: true,
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_io::safetensors_file::write_f32;
    use epiphyte_ops::{Activation, Precision, Sequences};
    use serde_json::{Value, json};

    use super::{FAMILY, Gpt2Config, WORDS};
    use crate::families::ModelConfig;
    use crate::{HeadKind, Identity, LoadOptions, Model, ModelError, Tokens, load, random_model};

    fn parse(mut config: Value) -> Result<ModelConfig, ModelError> {
        config["model_type"] = "gpt2".into();
        ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes())
    }

    /// The defaults of transformers' `GPT2Config`.
    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = parse(json!({})).unwrap();
        let facts = config.facts();
        assert_eq!((facts.vocab_size, facts.hidden_size), (50257, 768));
        assert_eq!(facts.max_position_embeddings, Some(1024));
        assert_eq!(facts.eos_token_ids, [50256]);
        let tokens = (facts.bos_token_id, facts.pad_token_id);
        assert_eq!(tokens, (Some(50256), None));
        let config = config.of_family::<Gpt2Config>().unwrap();
        assert_eq!((config.n_layer, config.n_head), (12, 12));
        assert_eq!(config.n_inner, 3072);
        assert_eq!(config.activation_function, Activation::GeluTanh);
        let dropouts = [config.resid_pdrop, config.embd_pdrop, config.attn_pdrop];
        assert_eq!(dropouts, [0.1; 3]);
        assert_eq!(config.layer_norm_epsilon, 1e-5);
        assert!(config.tie_word_embeddings && config.scale_attn_weights);
        assert!(!config.scale_attn_by_inverse_layer_idx);
    }

    #[test]
    fn common_keys_stand_for_its_own() {
        let config = parse(json!({
            "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8, "n_inner": null,
            "max_position_embeddings": 128, "vocab_size": 100,
        }));
        let config = config.unwrap();
        assert_eq!(config.facts().max_position_embeddings, Some(128));
        assert_eq!(config.facts().bos_token_id, None);
        let config = config.of_family::<Gpt2Config>().unwrap();
        let sizes = (config.n_embd, config.n_layer, config.n_head, config.n_inner);
        assert_eq!(sizes, (64, 3, 8, 256));
    }

    #[test]
    fn scores_are_scaled_as_the_keys_say() {
        let scale = |by_head: bool, by_layer: bool| {
            let config = parse(json!({
                "n_embd": 16, "n_head": 4, "scale_attn_weights": by_head,
                "scale_attn_by_inverse_layer_idx": by_layer,
            }));
            config
                .unwrap()
                .of_family::<Gpt2Config>()
                .unwrap()
                .score_scale(3)
        };
        assert_eq!(scale(true, false), 0.5);
        assert_eq!(scale(false, false), 1.0);
        assert_eq!(scale(true, true), 0.125);
    }

    #[test]
    fn what_computes_something_else_is_refused() {
        for (config, key) in [
            (
                json!({ "add_cross_attention": true }),
                "`add_cross_attention`",
            ),
            (json!({ "pruned_heads": { "0": [1] } }), "`pruned_heads`"),
            (
                json!({ "activation_function": "mish" }),
                "`activation_function`",
            ),
            (json!({ "n_head": 7 }), "`n_head`"),
            (json!({ "n_inner": 0 }), "`n_inner`"),
            (json!({ "pad_token_id": 50257 }), "`pad_token_id`"),
        ] {
            let error = parse(config).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn saved_masks_are_passed_over() {
        let config = parse(json!({})).unwrap();
        let rules = config.family().key_rules(HeadKind::LanguageModel);
        for name in ["h.0.attn.bias", "transformer.h.0.attn.masked_bias"] {
            assert!(rules.may_ignore(name), "{name}");
        }
        assert!(!rules.may_ignore("transformer.h.0.attn.c_attn.bias"));
    }

    /// `GPT2Model` saves names without `transformer.`, older releases save masks, `GPT2LMHeadModel`
    /// saves the tied head or leaves it out: all are the same model.
    #[test]
    fn names_with_and_without_prefix_are_the_same_model() {
        let config = (FAMILY.examples)().remove(0);
        let device = Device::default();
        let head = HeadKind::LanguageModel;
        let parsed = parse(config.clone()).unwrap();
        let model = random_model(&parsed, head, &device, Precision::F32, 3).unwrap();
        let tokens = Tokens::new(&[3, 7, 1, 19], &[0; 4], Sequences::new(vec![0, 4]));
        let logits = |model: &Model| model.logits(&tokens, &Identity).to_data();
        for with_prefix in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let mut stored: Vec<(String, Vec<usize>, Vec<f32>)> = Vec::new();
            for (name, tensor) in model.base().tensors() {
                let (shape, values) = (tensor.shape(), tensor.to_vec());
                let bare = name.strip_prefix("transformer.").unwrap();
                let stored_name = if with_prefix { name.as_str() } else { bare };
                stored.push((stored_name.to_owned(), shape.clone(), values.clone()));
                if with_prefix && name == WORDS {
                    stored.push(("lm_head.weight".to_owned(), shape, values));
                }
            }
            if !with_prefix {
                let mask = ("h.0.attn.bias".to_owned(), vec![1, 1, 4, 4], vec![1.0; 16]);
                let masked = ("h.1.attn.masked_bias".to_owned(), vec![1], vec![-1e4]);
                stored.extend([mask, masked]);
            }
            let tensors = stored.iter().map(|(name, shape, values)| {
                let values = values.clone();
                (name, shape.clone(), move || values)
            });
            write_f32(&dir.path().join("model.safetensors"), tensors).unwrap();
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let options = LoadOptions::default();
            let loaded = load(dir.path(), head, &device, &options).unwrap();
            assert_eq!(logits(&loaded.model), logits(&model));
            assert!(loaded.model.base().tensor("lm_head.weight").is_none());
        }
    }
}
