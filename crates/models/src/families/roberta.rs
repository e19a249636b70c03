//! RoBERTa (Liu et al. 2019, arXiv 1907.11692), XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116)
//! and CamemBERT (Martin et al. 2020, arXiv 1911.03894).
//!
//! BERT's encoder with two differences. Positions begin behind the padding token's: the first
//! token's is `pad_token_id + 1`, so a table of `max_position_embeddings` rows reads as many tokens
//! less `pad_token_id + 1`. The classification head, which a task trains whole, is
//! `out_proj(dropout(tanh(dense(dropout(x₀)))))`, without BERT's pooler. Tensor names are those of
//! Hugging Face's `RobertaForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames, EncoderOptions};
use super::{ConfigFacts, Family, FamilyConfig};
use crate::ModelError;
use crate::adapter::Role;
use crate::base::{DefaultTargets, Depth};
use crate::blocks::Matrix;
use crate::builder::{Builder, Summary};
use crate::config::special_token;
use crate::heads::{ClassificationHead, Head, HeadKind, MaskedLmNames, NewHead, Pooling};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

const TARGETS: DefaultTargets = DefaultTargets {
    adalora: &["query", "key", "value", "dense"],
    ..bert::TARGETS
};

pub(super) const FAMILY: Family = Family {
    name: "RoBERTa, XLM-RoBERTa, CamemBERT",
    model_types: &["roberta", "xlm-roberta", "camembert"],
    // Positions begin at 4 and there is one segment.
    examples: || {
        vec![json!({
            "model_type": "roberta", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 36,
            "type_vocab_size": 1, "pad_token_id": 3, "classifier_dropout": 0.2,
            "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
        })]
    },
    parse: |json, model_type| {
        let kind = match model_type {
            "xlm-roberta" => RobertaKind::XlmRoberta,
            "camembert" => RobertaKind::Camembert,
            _ => RobertaKind::Roberta,
        };
        Ok(Box::new(RobertaConfig::from_json(json, kind)?))
    },
};

/// BERT's pooler, which only the head for multiple choice reads.
const POOLER: &str = "roberta.pooler";

const NAMES: EncoderNames = EncoderNames {
    prefix: "roberta.",
    words: "roberta.embeddings.word_embeddings.weight",
    embeddings: "roberta.embeddings",
    layers: "roberta.encoder.layer",
    layer: bert::NAMES,
    has_segments: true,
};

/// The head of masked language models.
pub(super) static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "lm_head.dense",
    norm: "lm_head.layer_norm",
    decoder: "lm_head.decoder",
    bias: "lm_head.bias",
    modules: &["lm_head"],
};

/// The members of the family, which differ in a default and in the names of their classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RobertaKind {
    /// `roberta`.
    Roberta,
    /// `xlm-roberta`.
    XlmRoberta,
    /// `camembert`.
    Camembert,
}

impl RobertaKind {
    fn model_type(self) -> &'static str {
        match self {
            Self::Roberta => "roberta",
            Self::XlmRoberta => "xlm-roberta",
            Self::Camembert => "camembert",
        }
    }

    fn defaults(self) -> EncoderDefaults {
        EncoderDefaults {
            vocab_size: match self {
                Self::Roberta => 50265,
                Self::XlmRoberta | Self::Camembert => 30522,
            },
            pad_token_id: Some(1),
            ..bert::DEFAULTS
        }
    }
}

/// The configuration of a RoBERTa encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct RobertaConfig {
    /// Which of the family it is.
    pub kind: RobertaKind,
    /// The encoder, whose `max_position_embeddings` are the rows of the table; default vocabulary
    /// 50265, XLM-RoBERTa and CamemBERT 30522; default padding token 1.
    pub encoder: BertConfig,
    /// The padding token, behind whose position the first token's is.
    pub pad_token_id: u32,
    /// The token that starts a text; default 0.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text; default 2.
    pub eos_token_ids: Vec<u32>,
}

impl RobertaConfig {
    fn from_json(json: &JsonObject, kind: RobertaKind) -> Result<Self, ModelError> {
        let encoder = BertConfig::from_json(json, &kind.defaults())?;
        let Some(pad_token_id) = encoder.pad_token_id else {
            let problem = "there is none, but positions are counted from it";
            return Err(json.invalid("pad_token_id", problem));
        };
        let config = Self {
            kind,
            pad_token_id,
            bos_token_id: special_token(json, "bos_token_id", Some(0), encoder.vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", Some(2))?,
            encoder,
        };
        let rows = config.encoder.max_position_embeddings;
        if rows <= config.first_position() {
            let first = config.first_position();
            let problem = format!("{rows} rows hold no position: the first token's is row {first}");
            return Err(json.invalid("max_position_embeddings", problem));
        }
        Ok(config)
    }

    /// The row of the first token's position.
    fn first_position(&self) -> usize {
        self.pad_token_id as usize + 1
    }

    /// The longest sequence.
    fn max_positions(&self) -> usize {
        self.encoder.max_position_embeddings - self.first_position()
    }
}

impl FamilyConfig for RobertaConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.kind.model_type().to_owned(),
            max_position_embeddings: Some(self.max_positions()),
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
            ..self.encoder.facts()
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            encoder: self.encoder.dropped(p),
            ..self.clone()
        })
    }

    fn key_rules(&self, _head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: NAMES.prefix,
            ignorable: &[
                "embeddings.position_ids",
                "lm_head.",
                "pooler.",
                "roberta.pooler.",
            ],
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        head.class_of(match self.kind {
            RobertaKind::Roberta => "Roberta",
            RobertaKind::XlmRoberta => "XLMRoberta",
            RobertaKind::Camembert => "Camembert",
        })
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
        match self.encoder.tie_word_embeddings {
            true => &[NAMES.words, "lm_head.decoder.weight"],
            false => &[],
        }
    }

    fn computation(&self) -> Value {
        let mut values = self.encoder.encoder_computation();
        values["pad_token_id"] = self.pad_token_id.into();
        values
    }

    fn dropouts(&self) -> Value {
        self.encoder.encoder_dropouts()
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let model_type = self.kind.model_type();
        let b = &mut builder;
        let options = EncoderOptions {
            padding: Some(self.pad_token_id),
            ..EncoderOptions::default()
        };
        let stack = self.encoder.encoder(b, &NAMES, options)?;
        b.at(Depth::Head);
        let task_head = head.path();
        let (head, new_modules) = self.head(b, head, &stack.embeddings.words, tied)?;
        let base = builder.finish(Summary {
            dimensions: self.encoder.dimensions(model_type, self.max_positions()),
            default_targets: TARGETS,
            word_embeddings: NAMES.words,
            prefix: NAMES.prefix,
            task_head,
            new_modules,
        })?;
        Ok(Model::new(base, Box::new(stack), head))
    }
}

impl RobertaConfig {
    fn head(
        &self,
        b: &mut Builder<'_>,
        head: HeadKind,
        words: &Matrix,
        tied: bool,
    ) -> Result<NewHead, ModelError> {
        let masked_lm = (&MASKED_LM, self.encoder.masked_lm_shape(Activation::Gelu));
        if let Some(head) = head.untrained(b, masked_lm, words, tied) {
            return Ok(head);
        }
        let Some((outputs, path)) = head.outputs().zip(head.path()) else {
            return Err(ModelError::no_head(self.kind.model_type(), head));
        };
        let pooler = format!("{POOLER}.dense");
        let has_pooler = b.has(&format!("{pooler}.weight"));
        let reads_pooler = head == HeadKind::MultipleChoice;
        let size = self.encoder.hidden_size;
        let (shape, dropout) = ([outputs, size], self.encoder.head_dropout());
        let head = match head {
            HeadKind::TokenClassification { .. } => {
                ClassificationHead::of_tokens(b, path, shape, dropout)
            }
            HeadKind::QuestionAnswering => ClassificationHead::of_tokens(b, path, shape, 0.0),
            HeadKind::MultipleChoice => {
                let dropout = self.encoder.hidden_dropout_prob;
                ClassificationHead::pooled(b, &pooler, shape, dropout)
            }
            _ => ClassificationHead {
                pooling: Pooling::First,
                input_dropout: dropout,
                dense: Some(b.linear("classifier.dense", Role::Head, [size, size], true)),
                activation: Activation::Tanh,
                norm: None,
                dropout,
                output: b.linear("classifier.out_proj", Role::Head, shape, true),
            },
        };
        let new_module = (reads_pooler && !has_pooler).then_some(POOLER);
        let new_modules = new_module.into_iter().collect();
        Ok((Head::Classification(head), new_modules))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::Precision;
    use serde_json::{Value, json};

    use super::RobertaConfig;
    use crate::families::ModelConfig;
    use crate::{HeadKind, ModelError, random_model};

    fn parse(config: &Value) -> Result<ModelConfig, ModelError> {
        ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes())
    }

    /// The defaults of transformers' `RobertaConfig`, `XLMRobertaConfig` and `CamembertConfig`.
    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        for (model_type, vocabulary, class) in [
            ("roberta", 50265, "RobertaForSequenceClassification"),
            ("xlm-roberta", 30522, "XLMRobertaForSequenceClassification"),
            ("camembert", 30522, "CamembertForSequenceClassification"),
        ] {
            let config = parse(&json!({ "model_type": model_type })).unwrap();
            let facts = config.facts();
            assert_eq!(facts.model_type, model_type);
            assert_eq!(facts.vocab_size, vocabulary);
            assert_eq!((facts.hidden_size, facts.num_hidden_layers), (768, 12));
            assert_eq!(facts.max_position_embeddings, Some(510));
            let tokens = (facts.bos_token_id, facts.pad_token_id);
            assert_eq!(tokens, (Some(0), Some(1)));
            assert_eq!(facts.eos_token_ids, [2]);
            let head = HeadKind::Classification { labels: 2 };
            assert_eq!(config.family().class_name(head).as_deref(), Some(class));
            assert_eq!(config.family().class_name(HeadKind::LanguageModel), None);
            let encoder = &config.of_family::<RobertaConfig>().unwrap().encoder;
            assert_eq!(
                (encoder.type_vocab_size, encoder.layer_norm_eps),
                (2, 1e-12)
            );
        }
    }

    #[test]
    fn positions_begin_behind_the_padding_token() {
        let config = |pad: Value, rows: usize| {
            parse(&json!({
                "model_type": "roberta", "pad_token_id": pad, "max_position_embeddings": rows,
            }))
        };
        let longest = |pad, rows| config(pad, rows).unwrap().facts().max_position_embeddings;
        assert_eq!(longest(json!(1), 514), Some(512));
        assert_eq!(longest(json!(5), 514), Some(508));
        for (pad, rows, key) in [
            (json!(null), 514, "`pad_token_id`"),
            (json!(1), 2, "`max_position_embeddings`"),
        ] {
            let error = config(pad, rows).unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }

    /// The adapter for MNLI that LoRA's authors published has 887 811 values: 294 912 of LoRA and a
    /// head of two layers.
    #[test]
    fn the_head_has_the_published_size() {
        let config = json!({ "model_type": "roberta", "vocab_size": 8, "num_hidden_layers": 1 });
        let head = HeadKind::Classification { labels: 3 };
        let config = parse(&config).unwrap();
        let model = random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap();
        let tensors = model.base().tensors().iter();
        let head = tensors.filter(|(name, _)| model.base().is_of_head(name));
        let count: usize = head.map(|(_, tensor)| tensor.count()).sum();
        assert_eq!(count, 887_811 - 294_912);
    }

    #[test]
    fn pretraining_heads_and_poolers_are_passed_over() {
        let config = parse(&json!({ "model_type": "roberta" })).unwrap();
        let rules = config
            .family()
            .key_rules(HeadKind::Classification { labels: 2 });
        for name in [
            "lm_head.dense.weight",
            "roberta.pooler.dense.bias",
            "pooler.dense.weight",
            "roberta.embeddings.position_ids",
        ] {
            assert!(rules.may_ignore(name), "{name}");
        }
        assert!(!rules.may_ignore("roberta.encoder.layer.0.output.dense.weight"));
    }
}
