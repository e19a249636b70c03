//! MPNet (Song et al. 2020, arXiv 2004.09297): RoBERTa's encoder without segments, with T5's
//! relative position bias on the scores. Tensor names are those of Hugging Face's
//! `MPNetForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::json;

use super::Family;
use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames};
use super::encoder::{ChoicePooler, EncoderConfig, Member};
use super::roberta;
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, LayerNames};
use crate::config::{size, special_token};

/// The row of the padding token's position, whatever the configuration's padding token is.
const POSITION_PADDING: u32 = 1;

/// The buckets that transformers computes, whatever the configuration says.
const BUCKETS: usize = 32;

pub(super) const FAMILY: Family = Family {
    name: "MPNet",
    model_types: &["mpnet"],
    examples: || {
        vec![json!({
            "model_type": "mpnet", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 34,
        })]
    },
    parse: |json, _| {
        let mut encoder = BertConfig::from_json(json, &DEFAULTS)?;
        encoder.type_vocab_size = 0;
        let rows = encoder.max_position_embeddings;
        if rows <= POSITION_PADDING as usize + 1 {
            let problem = format!("{rows} rows hold no position: the first token's is row 2");
            return Err(json.invalid("max_position_embeddings", problem));
        }
        let key = "relative_attention_num_buckets";
        let buckets = size(json, key, BUCKETS)?;
        if buckets != BUCKETS {
            return Err(json.unsupported(key, buckets.to_string(), "32"));
        }
        Ok(Box::new(EncoderConfig {
            token_dropout: encoder.hidden_dropout_prob,
            choice_pooler: Some(ChoicePooler {
                dense: "mpnet.pooler.dense",
                activation: Activation::Tanh,
                dropout: encoder.hidden_dropout_prob,
            }),
            position_padding: Some(POSITION_PADDING),
            relative_attention_num_buckets: Some(BUCKETS),
            bos_token_id: special_token(json, "bos_token_id", Some(0), encoder.vocab_size)?,
            eos_token_ids: json.token_ids("eos_token_id", Some(2))?,
            ..EncoderConfig::new(&MPNET, encoder)
        }))
    },
};

static MPNET: Member = Member {
    model_type: "mpnet",
    stem: "MPNet",
    names: EncoderNames {
        prefix: "mpnet.",
        words: "mpnet.embeddings.word_embeddings.weight",
        embeddings: "mpnet.embeddings",
        layers: "mpnet.encoder.layer",
        layer: LayerNames {
            attention: AttentionNames {
                query: "attention.attn.q",
                key: "attention.attn.k",
                value: "attention.attn.v",
                output: "attention.attn.o",
                norms: None,
            },
            attention_norm: "attention.LayerNorm",
            ..bert::NAMES
        },
        has_segments: false,
    },
    // PEFT has no entry for `mpnet`: BERT's layers under these names.
    targets: DefaultTargets {
        lora: &["q", "v"],
        adalora: &["q", "v"],
        ia3: &["k", "v", "output.dense"],
        ia3_feedforward: &["output.dense"],
    },
    dense: "classifier.dense",
    output: "classifier.out_proj",
    drops_input: true,
    optional: &["mpnet.pooler"],
    trains_dense: false,
    ignorable: &[
        "embeddings.position_ids",
        "lm_head.",
        "pooler.",
        "mpnet.pooler.",
    ],
    tied: &[
        "mpnet.embeddings.word_embeddings.weight",
        "lm_head.decoder.weight",
    ],
    masked_lm: &roberta::MASKED_LM,
    masked_activation: Some(Activation::Gelu),
    projection: "",
    bias: "mpnet.encoder.relative_attention_bias.weight",
    keeps_outputs: [false, false],
};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab_size: 30527,
    pad_token_id: Some(1),
    ..bert::DEFAULTS
};
