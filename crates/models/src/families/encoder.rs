//! Encoders whose layers are BERT's, as plain values.
//!
//! ELECTRA, DistilBERT and MPNet differ from BERT in names, in the keys of their `config.json`, in
//! what is added to embeddings and scores, and in the classification head. Each has a file that
//! reads its keys and says the rest in a `Member`.

use epiphyte_ops::Activation;
use serde_json::{Value, json};

use super::bert::{BertConfig, EncoderNames, EncoderOptions};
use super::{ConfigFacts, FamilyConfig};
use crate::ModelError;
use crate::adapter::Role;
use crate::base::{DefaultTargets, Depth};
use crate::blocks::{
    DisentangledShape, Norm, NormShape, RelativeBias, RelativeBuckets, RelativeEmbeddings,
};
use crate::builder::{Builder, Summary};
use crate::heads::{ClassificationHead, Head, HeadKind, Pooling};
use crate::json::JsonObject;
use crate::keys::KeyRules;
use crate::model::Model;

/// What an encoder is beyond the values of its `config.json`.
#[derive(Debug, PartialEq)]
pub(super) struct Member {
    pub(super) model_type: &'static str,
    /// The class of transformers with a classification head.
    pub(super) class: &'static str,
    pub(super) names: EncoderNames,
    pub(super) targets: DefaultTargets,
    /// The dense layer of the classification head, and the output layer.
    pub(super) dense: &'static str,
    pub(super) output: &'static str,
    /// Whether the dense layer's input is dropped too.
    pub(super) drops_input: bool,
    /// Whether the dense layer stands beside the module that a task trains, `classifier`, and is a
    /// part of it only where the checkpoint lacks it.
    pub(super) optional: &'static [&'static str],
    /// Whether a task trains that layer in any case: PEFT takes every module whose name ends with
    /// `classifier` for a part of the head.
    pub(super) trains_dense: bool,
    /// What checkpoints may hold beyond the model.
    pub(super) ignorable: &'static [&'static str],
    /// The word embeddings and a pretraining head that is tied to them.
    pub(super) tied: &'static [&'static str],
    /// The layer from the size of the embeddings to the hidden size.
    pub(super) projection: &'static str,
    /// The table of the relative position bias.
    pub(super) bias: &'static str,
    /// Whether self-attention, and the feed-forward, add their output without dropout.
    pub(super) keeps_outputs: [bool; 2],
}

/// Embeddings of relative positions, which scores read: DeBERTa's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RelativePositions {
    /// Which products scores have.
    pub scores: DisentangledShape,
    /// `position_buckets`; without, each distance has a row.
    pub buckets: Option<usize>,
    /// `max_relative_positions`.
    pub max_position: usize,
    /// Whether the embeddings are normalized: `norm_rel_ebd`.
    pub normalized: bool,
    /// Whether tokens have learned positions too: `position_biased_input`.
    pub position_biased_input: bool,
}

/// Layers that share their modules: ALBERT's.
///
/// The layers are cut into `groups` runs. A group has the modules of `inner` layers, which are
/// repeated to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedLayers {
    /// What precedes the number of a layer's modules in their group.
    pub name: &'static str,
    /// `num_hidden_groups`.
    pub groups: usize,
    /// `inner_group_num`.
    pub inner: usize,
    /// How often a group's layers are run, over all groups: `num_hidden_layers`.
    pub runs: usize,
}

impl SharedLayers {
    /// The path of a layer's modules, below that of the groups.
    pub(super) fn path(self, groups: &str, layer: usize) -> String {
        let (run, number) = (layer / self.inner, layer % self.inner);
        let group = run * self.groups / self.runs;
        format!("{groups}.{group}.{}.{number}", self.name)
    }
}

/// The configuration of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub(super) member: &'static Member,
    /// Its sizes, under BERT's keys.
    pub encoder: BertConfig,
    /// Size of the embeddings, where a linear layer leads from these to the hidden states.
    pub embedding_size: Option<usize>,
    /// Layers that share their modules.
    pub shared_layers: Option<SharedLayers>,
    /// What follows the dense layer of the classification head.
    pub activation: Activation,
    /// Dropout before that layer, where it is not that after it.
    pub pooler_dropout: Option<f64>,
    /// Embeddings of relative positions.
    pub positions: Option<RelativePositions>,
    /// The padding token behind whose position the first token's is; none where positions begin at
    /// row 0.
    pub position_padding: Option<u32>,
    /// The buckets of a relative position bias.
    pub relative_attention_num_buckets: Option<usize>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a text.
    pub eos_token_ids: Vec<u32>,
    /// Whether a language model's head is the word embeddings.
    pub tie_word_embeddings: bool,
}

impl EncoderConfig {
    /// An encoder like BERT but for its member. A relative's file changes what it has otherwise.
    pub(super) fn new(
        member: &'static Member,
        encoder: BertConfig,
        json: &JsonObject,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            member,
            encoder,
            embedding_size: None,
            shared_layers: None,
            activation: Activation::Tanh,
            pooler_dropout: None,
            positions: None,
            position_padding: None,
            relative_attention_num_buckets: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
            tie_word_embeddings: json.flag("tie_word_embeddings", true)?,
        })
    }

    /// The longest sequence.
    fn max_positions(&self) -> usize {
        let first = self
            .position_padding
            .map_or(0, |padding| padding as usize + 1);
        self.encoder.max_position_embeddings.saturating_sub(first)
    }
}

impl FamilyConfig for EncoderConfig {
    fn facts(&self) -> ConfigFacts {
        ConfigFacts {
            model_type: self.member.model_type.to_owned(),
            max_position_embeddings: Some(self.max_positions()),
            bos_token_id: self.bos_token_id,
            eos_token_ids: self.eos_token_ids.clone(),
            ..self.encoder.facts()
        }
    }

    fn with_dropout(&self, p: f64) -> Box<dyn FamilyConfig> {
        Box::new(Self {
            encoder: self.encoder.dropped(p),
            pooler_dropout: self.pooler_dropout.map(|_| p),
            ..self.clone()
        })
    }

    fn key_rules(&self, _head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: self.member.names.prefix,
            ignorable: self.member.ignorable,
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<&'static str> {
        head.labels().map(|_| self.member.class)
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.labels().map(|_| "classifier")
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.tie_word_embeddings {
            true => self.member.tied,
            false => &[],
        }
    }

    fn optional_modules(&self) -> &'static [&'static str] {
        self.member.optional
    }

    fn computation(&self) -> Value {
        let mut values = self.encoder.encoder_computation();
        values["position_padding"] = json!(self.position_padding);
        values["head_activation"] = self.activation.name().into();
        if let Some(shared) = self.shared_layers {
            values["shared_layers"] = format!("{shared:?}").into();
        }
        if let Some(positions) = self.positions {
            values["relative_positions"] = format!("{positions:?}").into();
        }
        values
    }

    fn dropouts(&self) -> Value {
        self.encoder.encoder_dropouts()
    }

    fn build(
        &self,
        head: HeadKind,
        _tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let member = self.member;
        let Some(labels) = head.labels() else {
            return Err(ModelError::no_head(member.model_type, head));
        };
        let has_dense = builder.has(&format!("{}.weight", member.dense));
        let is_new = member.trains_dense || !has_dense;
        let new_module = member.optional.first().copied().filter(|_| is_new);
        let size = self.encoder.hidden_size;
        let b = &mut builder;
        let bias = self.relative_attention_num_buckets.map(|count| {
            let buckets = RelativeBuckets {
                count,
                max_distance: 128,
                bidirectional: true,
            };
            RelativeBias::build(b, member.bias, self.encoder.num_attention_heads, buckets)
        });
        let prefix = member.names.prefix;
        let positions = self.positions.map(|it| {
            let name = format!("{prefix}encoder.rel_embeddings.weight");
            let table = RelativeEmbeddings::build(b, &name, size, it.buckets, it.max_position);
            let table = match it.normalized {
                true => {
                    let shape = NormShape {
                        rms: false,
                        shift: true,
                        epsilon: self.encoder.layer_norm_eps,
                        offset: 0.0,
                    };
                    let path = format!("{prefix}encoder.LayerNorm");
                    table.normalized(Norm::build(b, &path, size, shape))
                }
                false => table,
            };
            (table, it.scores)
        });
        let options = EncoderOptions {
            padding: self.position_padding,
            embedding_size: self.embedding_size.map(|size| (size, member.projection)),
            shared_layers: self.shared_layers,
            bias,
            positions,
            without_positions: self.positions.is_some_and(|it| !it.position_biased_input),
            keeps_outputs: member.keeps_outputs,
        };
        let stack = self.encoder.encoder(b, &member.names, options)?;
        b.at(Depth::Head);
        let dropout = self.encoder.head_dropout();
        let role = match member.optional {
            [] => Role::Head,
            _ => Role::Pooler,
        };
        let head = ClassificationHead {
            pooling: Pooling::First,
            input_dropout: match member.drops_input {
                true => self.pooler_dropout.unwrap_or(dropout),
                false => 0.0,
            },
            dense: Some(b.linear(member.dense, role, [size, size], true)),
            activation: self.activation,
            norm: None,
            dropout,
            output: b.linear(member.output, Role::Head, [labels, size], true),
        };
        let base = builder.finish(Summary {
            dimensions: self
                .encoder
                .dimensions(member.model_type, self.max_positions()),
            default_targets: member.targets,
            word_embeddings: member.names.words,
            prefix: member.names.prefix,
            task_head: Some("classifier"),
            new_module,
        })?;
        Ok(Model::new(
            base,
            Box::new(stack),
            Head::Classification(head),
        ))
    }
}
