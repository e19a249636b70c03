//! DeBERTa-v2 (He et al. 2021, arXiv 2006.03654) and DeBERTa-v3 (He et al. 2023, arXiv 2111.09543).
//!
//! BERT's encoder in which scores read embeddings of relative positions, and tokens have no learned
//! positions. Tensor names are those of Hugging Face's `DebertaV2ForSequenceClassification`. The
//! convolution of the two largest v2 models, and embeddings narrower than the hidden states, are
//! refused. transformers drops elements of the relative embeddings in training; here they stay.

use serde::Deserialize;
use serde_json::json;

use super::Family;
use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames};
use super::encoder::{EncoderConfig, Member, RelativePositions};
use crate::ModelError;
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, DisentangledShape, LayerNames};
use crate::config::{LARGEST_SIZE, activation, dropout, in_range};
use crate::heads::MaskedLmNames;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "DeBERTa-v2, DeBERTa-v3",
    model_types: &["deberta-v2"],
    examples: || {
        vec![json!({
            "model_type": "deberta-v2", "vocab_size": 30, "hidden_size": 16,
            "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
            "max_position_embeddings": 32, "relative_attention": true, "position_buckets": 4,
            "norm_rel_ebd": "layer_norm", "share_att_key": true, "pos_att_type": "p2c|c2p",
            "position_biased_input": false, "pooler_dropout": 0.1,
        })]
    },
    parse: |json, _| Ok(Box::new(read(json)?)),
};

fn read(json: &JsonObject) -> Result<EncoderConfig, ModelError> {
    let mut encoder = BertConfig::from_json(json, &DEFAULTS)?;
    let kernel: usize = json.get("conv_kernel_size", Some(0))?.unwrap_or(0);
    if kernel > 0 {
        let found = kernel.to_string();
        return Err(json.unsupported("conv_kernel_size", found, "0: no convolution"));
    }
    let size = encoder.hidden_size;
    for (key, needed, supported) in [
        ("embedding_size", size, "the hidden size"),
        ("pooler_hidden_size", size, "the hidden size"),
        (
            "attention_head_size",
            encoder.head_dim(),
            "the hidden size by the number of heads",
        ),
    ] {
        let stated: Option<usize> = json.get(key, None)?;
        if let Some(other) = stated.filter(|&stated| stated != needed) {
            return Err(json.unsupported(key, other.to_string(), supported));
        }
    }
    if json.get("cls_dropout", None::<f64>)?.is_some() {
        encoder.classifier_dropout = Some(dropout(json, "cls_dropout", 0.0)?);
    }
    Ok(EncoderConfig {
        masked_lm: match json.get("legacy", true)? {
            true => &bert::MASKED_LM,
            false => &MASKED_LM,
        },
        token_dropout: encoder.hidden_dropout_prob,
        activation: activation(json, "pooler_hidden_act", "gelu")?,
        pooler_dropout: Some(dropout(json, "pooler_dropout", 0.0)?),
        positions: positions(json, &encoder)?,
        ..EncoderConfig::new(&DEBERTA, encoder)
    })
}

/// The relative positions; without `relative_attention` there have to be learned ones.
fn positions(
    json: &JsonObject,
    encoder: &BertConfig,
) -> Result<Option<RelativePositions>, ModelError> {
    let position_biased_input = json.get("position_biased_input", true)?;
    if !json.get("relative_attention", false)? {
        if position_biased_input {
            return Ok(None);
        }
        let supported = "true, where `position_biased_input` is false";
        return Err(json.unsupported("relative_attention", "false", supported));
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Types {
        Joined(String),
        List(Vec<String>),
    }
    let types = match json.get::<Option<Types>>("pos_att_type", None)? {
        None => Vec::new(),
        Some(Types::Joined(joined)) => joined.split('|').map(str::to_owned).collect(),
        Some(Types::List(list)) => list,
    };
    let types: Vec<String> = types.iter().map(|it| it.trim().to_lowercase()).collect();
    let known = |it: &&String| !["c2p", "p2c", "", "none"].contains(&it.as_str());
    if let Some(other) = types.iter().find(known) {
        return Err(json.unsupported("pos_att_type", format!("`{other}`"), "c2p, p2c"));
    }
    let has = |name: &str| types.iter().any(|it| it == name);
    // Below 1 the keys stand for their absence.
    let positive = |key: &str| -> Result<Option<usize>, ModelError> {
        let value: i64 = json.get(key, Some(-1))?.unwrap_or(-1);
        match usize::try_from(value) {
            Ok(value) if value > 0 => in_range(json, key, value, LARGEST_SIZE).map(Some),
            _ => Ok(None),
        }
    };
    let max_position = positive("max_relative_positions")?;
    let max_position = max_position.unwrap_or(encoder.max_position_embeddings);
    let buckets = positive("position_buckets")?;
    if let Some(few) = buckets.filter(|&it| it < 4 || max_position <= it / 2 + 1) {
        let problem = format!("{few} is not between 4 and twice the {max_position} positions");
        return Err(json.invalid("position_buckets", problem));
    }
    let norms: Option<String> = json.get("norm_rel_ebd", None)?;
    let normalized = norms.is_some_and(|it| it.to_lowercase().contains("layer_norm"));
    Ok(Some(RelativePositions {
        scores: DisentangledShape {
            content_to_position: has("c2p"),
            position_to_content: has("p2c"),
            shares_projections: json.get("share_att_key", false)?,
        },
        buckets,
        max_position,
        normalized,
        position_biased_input,
    }))
}

/// The head of masked language models that are not `legacy`: DeBERTa-v3's own.
static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "lm_predictions.lm_head.dense",
    norm: "lm_predictions.lm_head.LayerNorm",
    decoder: "lm_predictions.lm_head.decoder",
    bias: "lm_predictions.lm_head.bias",
    modules: &["lm_predictions.lm_head"],
};

static DEBERTA: Member = Member {
    model_type: "deberta-v2",
    stem: "DebertaV2",
    names: EncoderNames {
        prefix: "deberta.",
        words: "deberta.embeddings.word_embeddings.weight",
        embeddings: "deberta.embeddings",
        layers: "deberta.encoder.layer",
        layer: LayerNames {
            attention: AttentionNames {
                query: "attention.self.query_proj",
                key: "attention.self.key_proj",
                value: "attention.self.value_proj",
                ..bert::NAMES.attention
            },
            ..bert::NAMES
        },
        has_segments: true,
    },
    targets: DefaultTargets {
        lora: &["query_proj", "value_proj"],
        adalora: &["query_proj", "key_proj", "value_proj", "dense"],
        ia3: &["key_proj", "value_proj", "output.dense"],
        ia3_feedforward: &["output.dense"],
    },
    dense: "pooler.dense",
    output: "classifier",
    drops_input: true,
    optional: &["pooler"],
    trains_dense: false,
    ignorable: &[
        "embeddings.position_ids",
        "cls.predictions.",
        "lm_predictions.",
        "mask_predictions.",
    ],
    tied: &[
        "deberta.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.weight",
    ],
    masked_lm: &bert::MASKED_LM,
    masked_activation: None,
    projection: "",
    bias: "",
    keeps_outputs: [false, false],
};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab_size: 128_100,
    hidden_size: 1536,
    num_hidden_layers: 24,
    num_attention_heads: 24,
    intermediate_size: 6144,
    type_vocab_size: 0,
    layer_norm_eps: 1e-7,
    ..bert::DEFAULTS
};
