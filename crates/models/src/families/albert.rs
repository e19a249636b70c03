//! ALBERT (Lan et al. 2020, arXiv 1909.11942).
//!
//! BERT's encoder whose layers share one set of modules, or one for each group of layers, and whose
//! embeddings are projected to the hidden states. A method that acts on a shared module acts in
//! every layer that uses it, and its parameters count once, as in PEFT; what acts between layers
//! (adapters, prefixes) has parameters for each layer. Tensor names are those of Hugging Face's
//! `AlbertForSequenceClassification`.

use serde_json::json;

use super::Family;
use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames};
use super::encoder::{EncoderConfig, Member, SharedLayers};
use crate::ModelError;
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, FeedForwardNames, LayerNames};
use crate::config::{MOST_LAYERS, dropout, hidden_act, in_range, size, special_token};
use crate::heads::MaskedLmNames;
use crate::json::JsonObject;

pub(super) const FAMILY: Family = Family {
    name: "ALBERT",
    model_types: &["albert"],
    // One set of modules for all layers; and two groups, the first of two layers.
    examples: || {
        let example = |layers: usize, groups: usize| {
            json!({
                "model_type": "albert", "vocab_size": 30, "hidden_size": 16, "embedding_size": 8,
                "num_hidden_layers": layers, "num_hidden_groups": groups,
                "num_attention_heads": 4, "intermediate_size": 24, "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            })
        };
        vec![example(2, 1), example(3, 2)]
    },
    parse: |json, _| Ok(Box::new(read(json)?)),
};

fn read(json: &JsonObject) -> Result<EncoderConfig, ModelError> {
    let mut encoder = BertConfig::from_json(json, &DEFAULTS)?;
    encoder.hidden_act = hidden_act(json, "gelu_new")?;
    encoder.hidden_dropout_prob = dropout(json, "hidden_dropout_prob", 0.0)?;
    let key = "attention_probs_dropout_prob";
    encoder.attention_probs_dropout_prob = dropout(json, key, 0.0)?;
    encoder.classifier_dropout = Some(dropout(json, "classifier_dropout_prob", 0.1)?);
    let runs = encoder.num_hidden_layers;
    let count = |key, most| in_range(json, key, json.get(key, 1)?, most);
    let shared = SharedLayers {
        name: "albert_layers",
        groups: count("num_hidden_groups", runs)?,
        inner: count("inner_group_num", MOST_LAYERS / runs)?,
        runs,
    };
    encoder.num_hidden_layers = runs * shared.inner;
    Ok(EncoderConfig {
        embedding_size: Some(size(json, "embedding_size", 128)?),
        shared_layers: Some(shared),
        bos_token_id: special_token(json, "bos_token_id", Some(2), encoder.vocab_size)?,
        eos_token_ids: json.token_ids("eos_token_id", Some(3))?,
        ..EncoderConfig::new(&ALBERT, encoder)
    })
}

/// The head of masked language models.
static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "predictions.dense",
    norm: "predictions.LayerNorm",
    decoder: "predictions.decoder",
    bias: "predictions.bias",
    modules: &["predictions"],
};

static ALBERT: Member = Member {
    model_type: "albert",
    stem: "Albert",
    names: EncoderNames {
        prefix: "albert.",
        words: "albert.embeddings.word_embeddings.weight",
        embeddings: "albert.embeddings",
        layers: "albert.encoder.albert_layer_groups",
        layer: LayerNames {
            attention: AttentionNames {
                query: "attention.query",
                key: "attention.key",
                value: "attention.value",
                output: "attention.dense",
                norms: None,
            },
            attention_norm: "attention.LayerNorm",
            cross_attention: None,
            feed_forward: FeedForwardNames {
                gate: None,
                up: "ffn",
                down: "ffn_output",
            },
            feed_forward_norm: "full_layer_layer_norm",
            output_norms: None,
        },
        has_segments: true,
    },
    // PEFT has no entry for `albert`: BERT's layers under these names.
    targets: DefaultTargets {
        ia3: &["key", "value", "ffn_output"],
        ia3_feedforward: &["ffn_output"],
        ..bert::TARGETS
    },
    dense: "albert.pooler",
    output: "classifier",
    drops_input: false,
    optional: &["albert.pooler"],
    trains_dense: false,
    ignorable: &["embeddings.position_ids", "predictions.", "sop_classifier."],
    tied: &[
        "albert.embeddings.word_embeddings.weight",
        "predictions.decoder.weight",
    ],
    masked_lm: &MASKED_LM,
    masked_activation: None,
    projection: "albert.encoder.embedding_hidden_mapping_in",
    bias: "",
    keeps_outputs: [false, true],
};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    vocab_size: 30_000,
    hidden_size: 4096,
    num_attention_heads: 64,
    intermediate_size: 16_384,
    ..bert::DEFAULTS
};

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_ops::Precision;
    use serde_json::json;

    use super::EncoderConfig;
    use crate::families::ModelConfig;
    use crate::{HeadKind, random_model};

    fn parse(config: &serde_json::Value) -> ModelConfig {
        ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes()).unwrap()
    }

    /// transformers' `AlbertModel` of `albert-base-v2`'s configuration has 11 683 584 parameters.
    #[test]
    fn shared_modules_count_once() {
        let config = parse(&json!({
            "model_type": "albert", "hidden_size": 768, "num_attention_heads": 12,
            "intermediate_size": 3072, "num_hidden_layers": 12,
        }));
        let head = HeadKind::Classification { labels: 2 };
        let model = random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap();
        let base = model.base();
        assert_eq!(base.count(), 11_683_584);
        assert_eq!((model.layers(), base.layer_shapes().len()), (12, 12));
        let mut paths: Vec<&str> = base.linears().iter().map(|it| &*it.site.path).collect();
        // The projection of the embeddings, six modules, the pooler and the classifier.
        assert_eq!(paths.len(), 9);
        paths.dedup();
        assert_eq!(paths.len(), 9);
        let query = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight";
        assert_eq!(base.first_layer_of(query), 0);
    }

    /// As `AlbertTransformer` cuts five runs into two groups: `int(i / (5 / 2))`.
    #[test]
    fn groups_are_runs_of_layers() {
        let config = parse(&json!({
            "model_type": "albert", "num_hidden_layers": 5, "num_hidden_groups": 2,
            "inner_group_num": 2,
        }));
        assert_eq!(config.facts().num_hidden_layers, 10);
        let encoder = config.of_family::<EncoderConfig>().unwrap();
        let shared = encoder.shared_layers.unwrap();
        let paths: Vec<String> = (0..10).map(|layer| shared.path("g", layer)).collect();
        let group = |number: usize| [0, 1].map(|it| format!("g.{number}.albert_layers.{it}"));
        assert_eq!(paths, [0, 0, 0, 1, 1].map(group).concat());
    }

    #[test]
    fn absent_keys_have_the_defaults_of_transformers() {
        let config = parse(&json!({ "model_type": "albert" }));
        let facts = config.facts();
        let sizes = (facts.hidden_size, facts.num_hidden_layers, facts.vocab_size);
        assert_eq!(sizes, (4096, 12, 30_000));
        assert_eq!((facts.bos_token_id, facts.pad_token_id), (Some(2), Some(0)));
        assert_eq!(facts.eos_token_ids, [3]);
        let config = config.of_family::<EncoderConfig>().unwrap();
        let encoder = &config.encoder;
        assert_eq!(config.embedding_size, Some(128));
        assert_eq!(
            (encoder.num_attention_heads, encoder.intermediate_size),
            (64, 16_384)
        );
        assert_eq!(encoder.hidden_act.name(), "gelu_new");
        let dropouts = (encoder.hidden_dropout_prob, encoder.classifier_dropout);
        assert_eq!(dropouts, (0.0, Some(0.1)));
    }
}
