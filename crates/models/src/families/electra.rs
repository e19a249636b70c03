//! ELECTRA (Clark et al. 2020, arXiv 2003.10555): BERT's encoder, in small models over narrower
//! embeddings, with RoBERTa's classification head and GELU in it. Tensor names are those of Hugging
//! Face's `ElectraForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::json;

use super::Family;
use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames};
use super::encoder::{ChoicePooler, EncoderConfig, Member};
use crate::config::{activation, dropout, size};
use crate::heads::MaskedLmNames;

pub(super) const FAMILY: Family = Family {
    name: "ELECTRA",
    model_types: &["electra"],
    examples: || {
        vec![json!({
            "model_type": "electra", "vocab_size": 30, "hidden_size": 16, "embedding_size": 8,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
            "max_position_embeddings": 32,
        })]
    },
    parse: |json, _| {
        let encoder = BertConfig::from_json(json, &DEFAULTS)?;
        let summary: String = json.get("summary_type", "first".to_owned())?;
        if summary != "first" {
            let found = format!("`{summary}`");
            return Err(json.unsupported("summary_type", found, "first"));
        }
        Ok(Box::new(EncoderConfig {
            choice_pooler: Some(ChoicePooler {
                dense: "sequence_summary.summary",
                activation: activation(json, "summary_activation", "gelu")?,
                dropout: dropout(json, "summary_last_dropout", 0.1)?,
            }),
            embedding_size: Some(size(json, "embedding_size", 128)?)
                .filter(|&it| it != encoder.hidden_size),
            activation: Activation::Gelu,
            ..EncoderConfig::new(&ELECTRA, encoder)
        }))
    },
};

/// The head of masked language models.
static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "generator_predictions.dense",
    norm: "generator_predictions.LayerNorm",
    decoder: "generator_lm_head",
    bias: "generator_lm_head.bias",
    modules: &["generator_predictions", "generator_lm_head"],
};

static ELECTRA: Member = Member {
    model_type: "electra",
    stem: "Electra",
    names: EncoderNames {
        prefix: "electra.",
        words: "electra.embeddings.word_embeddings.weight",
        embeddings: "electra.embeddings",
        layers: "electra.encoder.layer",
        layer: bert::NAMES,
        has_segments: true,
    },
    targets: bert::TARGETS,
    dense: "classifier.dense",
    output: "classifier.out_proj",
    drops_input: true,
    optional: &["sequence_summary"],
    trains_dense: false,
    ignorable: &[
        "embeddings.position_ids",
        "discriminator_predictions.",
        "generator_predictions.",
        "generator_lm_head.",
    ],
    tied: &[
        "electra.embeddings.word_embeddings.weight",
        "generator_lm_head.weight",
    ],
    masked_lm: &MASKED_LM,
    masked_activation: Some(Activation::Gelu),
    projection: "electra.embeddings_project",
    bias: "",
    keeps_outputs: [false, false],
};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    hidden_size: 256,
    num_attention_heads: 4,
    intermediate_size: 1024,
    ..bert::DEFAULTS
};
