//! DistilBERT (Sanh et al. 2019, arXiv 1910.01108): BERT's encoder with half the layers and without
//! segments; the head's dense layer, `pre_classifier`, has ReLU. Tensor names are those of Hugging
//! Face's `DistilBertForSequenceClassification`.

use epiphyte_ops::Activation;
use serde_json::json;

use super::Family;
use super::bert::{self, BertConfig, EncoderDefaults, EncoderNames};
use super::encoder::{EncoderConfig, Member};
use crate::base::DefaultTargets;
use crate::blocks::{AttentionNames, FeedForwardNames, LayerNames};
use crate::config::dropout;
use crate::heads::MaskedLmNames;

pub(super) const FAMILY: Family = Family {
    name: "DistilBERT",
    model_types: &["distilbert"],
    examples: || {
        vec![json!({
            "model_type": "distilbert", "vocab_size": 30, "dim": 16, "n_layers": 2, "n_heads": 4,
            "hidden_dim": 24, "max_position_embeddings": 32, "dropout": 0.1,
        })]
    },
    parse: |json, _| {
        let json = &json.with_aliases(&[
            ("dim", "hidden_size"),
            ("n_layers", "num_hidden_layers"),
            ("n_heads", "num_attention_heads"),
            ("hidden_dim", "intermediate_size"),
            ("dropout", "hidden_dropout_prob"),
            ("attention_dropout", "attention_probs_dropout_prob"),
            ("activation", "hidden_act"),
        ]);
        let mut encoder = BertConfig::from_json(json, &DEFAULTS)?;
        (encoder.layer_norm_eps, encoder.type_vocab_size) = (1e-12, 0);
        encoder.classifier_dropout = Some(dropout(json, "seq_classif_dropout", 0.2)?);
        Ok(Box::new(EncoderConfig {
            activation: Activation::Relu,
            token_dropout: encoder.hidden_dropout_prob,
            qa_dropout: Some(dropout(json, "qa_dropout", 0.1)?),
            ..EncoderConfig::new(&DISTILBERT, encoder)
        }))
    },
};

/// The head of masked language models.
static MASKED_LM: MaskedLmNames = MaskedLmNames {
    dense: "vocab_transform",
    norm: "vocab_layer_norm",
    decoder: "vocab_projector",
    bias: "vocab_projector.bias",
    modules: &["vocab_transform", "vocab_layer_norm", "vocab_projector"],
};

static DISTILBERT: Member = Member {
    model_type: "distilbert",
    stem: "DistilBert",
    names: EncoderNames {
        prefix: "distilbert.",
        words: "distilbert.embeddings.word_embeddings.weight",
        embeddings: "distilbert.embeddings",
        layers: "distilbert.transformer.layer",
        layer: LayerNames {
            attention: AttentionNames {
                query: "attention.q_lin",
                key: "attention.k_lin",
                value: "attention.v_lin",
                output: "attention.out_lin",
                norms: None,
            },
            attention_norm: "sa_layer_norm",
            cross_attention: None,
            feed_forward: FeedForwardNames {
                gate: None,
                up: "ffn.lin1",
                down: "ffn.lin2",
            },
            feed_forward_norm: "output_layer_norm",
            output_norms: None,
        },
        has_segments: false,
    },
    // PEFT has no entry for `distilbert`: BERT's layers under these names.
    targets: DefaultTargets {
        lora: &["q_lin", "v_lin"],
        adalora: &["q_lin", "v_lin"],
        ia3: &["k_lin", "v_lin", "lin2"],
        ia3_feedforward: &["lin2"],
    },
    dense: "pre_classifier",
    output: "classifier",
    drops_input: false,
    optional: &["pre_classifier"],
    trains_dense: true,
    ignorable: &[
        "embeddings.position_ids",
        "vocab_transform.",
        "vocab_layer_norm.",
        "vocab_projector.",
    ],
    tied: &[
        "distilbert.embeddings.word_embeddings.weight",
        "vocab_projector.weight",
    ],
    masked_lm: &MASKED_LM,
    masked_activation: None,
    projection: "",
    bias: "",
    keeps_outputs: [true, false],
};

const DEFAULTS: EncoderDefaults = EncoderDefaults {
    num_hidden_layers: 6,
    ..bert::DEFAULTS
};
