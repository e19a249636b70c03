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
    DisentangledShape, Matrix, Norm, NormShape, RelativeBias, RelativeBuckets, RelativeEmbeddings,
};
use crate::builder::{Builder, Summary};
use crate::heads::{ClassificationHead, Head, HeadKind, MaskedLmNames, NewHead, Pooling};
use crate::keys::{KeyRules, is_below};
use crate::model::Model;

/// What an encoder is beyond the values of its `config.json`.
#[derive(Debug, PartialEq)]
pub(super) struct Member {
    pub(super) model_type: &'static str,
    /// What the names of its classes of transformers begin with.
    pub(super) stem: &'static str,
    pub(super) names: EncoderNames,
    pub(super) targets: DefaultTargets,
    /// The dense layer of the classification head, and the output layer.
    pub(super) dense: &'static str,
    pub(super) output: &'static str,
    /// Whether the dense layer's input is dropped too.
    pub(super) drops_input: bool,
    /// Modules of dense layers that stand beside the module that a task trains, `classifier`, and
    /// are a part of it only where the checkpoint lacks them.
    pub(super) optional: &'static [&'static str],
    /// Whether a task trains that layer in any case: PEFT takes every module whose name ends with
    /// `classifier` for a part of the head.
    pub(super) trains_dense: bool,
    /// What checkpoints may hold beyond the model.
    pub(super) ignorable: &'static [&'static str],
    /// The word embeddings and a pretraining head that is tied to them.
    pub(super) tied: &'static [&'static str],
    /// The head of its masked language models.
    pub(super) masked_lm: &'static MaskedLmNames,
    /// What follows that head's dense layer, where it is not that of the feed-forward.
    pub(super) masked_activation: Option<Activation>,
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

/// `classifier(dropout(f(dense(x))))`: a head for multiple choice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChoicePooler {
    /// The path of the dense layer.
    pub dense: &'static str,
    /// What follows it.
    pub activation: Activation,
    /// Dropout before the classifier.
    pub dropout: f64,
}

/// The configuration of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderConfig {
    pub(super) member: &'static Member,
    /// The head of a masked language model.
    pub(super) masked_lm: &'static MaskedLmNames,
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
    /// Dropout before the layer that classifies tokens.
    pub token_dropout: f64,
    /// Dropout before the layer that finds answers, where there is one.
    pub qa_dropout: Option<f64>,
    /// The dense layer of the head for multiple choice, where it is not that of the classification
    /// head.
    pub choice_pooler: Option<ChoicePooler>,
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
}

impl EncoderConfig {
    /// An encoder like BERT but for its member. A relative's file changes what it has otherwise.
    pub(super) fn new(member: &'static Member, encoder: BertConfig) -> Self {
        Self {
            member,
            masked_lm: member.masked_lm,
            token_dropout: encoder.head_dropout(),
            encoder,
            embedding_size: None,
            shared_layers: None,
            activation: Activation::Tanh,
            pooler_dropout: None,
            qa_dropout: None,
            choice_pooler: None,
            positions: None,
            position_padding: None,
            relative_attention_num_buckets: None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    /// The longest sequence.
    fn max_positions(&self) -> usize {
        let first = self
            .position_padding
            .map_or(0, |padding| padding as usize + 1);
        self.encoder.max_position_embeddings.saturating_sub(first)
    }
}

impl Member {
    /// The module beside the head that a dense layer is in, if it is in one.
    fn optional_module(&self, dense: &str) -> Option<&'static str> {
        let mut modules = self.optional.iter().copied();
        modules.find(|module| is_below(Some(module), &format!("{dense}.weight")))
    }
}

/// Heads.
impl EncoderConfig {
    /// The path of the dense layer that a head has.
    fn dense(&self, head: HeadKind) -> Option<&'static str> {
        match (head, self.choice_pooler) {
            (HeadKind::TokenClassification { .. } | HeadKind::QuestionAnswering, _) => None,
            (HeadKind::MultipleChoice, Some(pooler)) => Some(pooler.dense),
            _ => Some(self.member.dense),
        }
    }

    fn head(
        &self,
        b: &mut Builder<'_>,
        head: HeadKind,
        words: &Matrix,
        tied: bool,
    ) -> Result<NewHead, ModelError> {
        let member = self.member;
        let activation = match member.masked_activation {
            Some(fixed) => fixed,
            None => self.encoder.hidden_act,
        };
        let shape = self.encoder.masked_lm_shape(activation);
        if let Some(head) = head.untrained(b, (self.masked_lm, shape), words, tied) {
            return Ok(head);
        }
        let Some((outputs, path)) = head.outputs().zip(head.path()) else {
            return Err(ModelError::no_head(member.model_type, head));
        };
        let dense = self.dense(head);
        let is_new = |it: &str| member.trains_dense || !b.has(&format!("{it}.weight"));
        let module = dense.and_then(|dense| member.optional_module(dense));
        let new_module = module.filter(|_| dense.is_some_and(is_new));
        let head = self.classification_head(b, head, path, outputs);
        let new_modules = new_module.into_iter().collect();
        Ok((Head::Classification(head), new_modules))
    }

    fn classification_head(
        &self,
        b: &mut Builder<'_>,
        head: HeadKind,
        path: &str,
        outputs: usize,
    ) -> ClassificationHead {
        let (member, size) = (self.member, self.encoder.hidden_size);
        let shape = [outputs, size];
        match (head, self.choice_pooler) {
            (HeadKind::TokenClassification { .. }, _) => {
                ClassificationHead::of_tokens(b, path, shape, self.token_dropout)
            }
            (HeadKind::QuestionAnswering, _) => {
                ClassificationHead::of_tokens(b, path, shape, self.qa_dropout.unwrap_or(0.0))
            }
            (HeadKind::MultipleChoice, Some(pooler)) => ClassificationHead {
                activation: pooler.activation,
                ..ClassificationHead::pooled(b, pooler.dense, shape, pooler.dropout)
            },
            _ => {
                let dropout = self.encoder.head_dropout();
                let role = match member.optional_module(member.dense) {
                    None => Role::Head,
                    Some(_) => Role::Pooler,
                };
                ClassificationHead {
                    pooling: Pooling::First,
                    input_dropout: match member.drops_input {
                        true => self.pooler_dropout.unwrap_or(dropout),
                        false => 0.0,
                    },
                    dense: Some(b.linear(member.dense, role, [size, size], true)),
                    activation: self.activation,
                    norm: None,
                    dropout,
                    output: b.linear(member.output, Role::Head, shape, true),
                }
            }
        }
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
            token_dropout: p,
            qa_dropout: self.qa_dropout.map(|_| p),
            choice_pooler: self
                .choice_pooler
                .map(|it| ChoicePooler { dropout: p, ..it }),
            ..self.clone()
        })
    }

    fn key_rules(&self, _head: HeadKind) -> KeyRules {
        KeyRules {
            base_prefix: self.member.names.prefix,
            ignorable: self.member.ignorable,
        }
    }

    fn class_name(&self, head: HeadKind) -> Option<String> {
        head.class_of(self.member.stem)
    }

    fn task_head(&self, head: HeadKind) -> Option<&'static str> {
        head.path()
    }

    fn tied_embeddings(&self) -> &'static [&'static str] {
        match self.encoder.tie_word_embeddings {
            true => self.member.tied,
            false => &[],
        }
    }

    fn masked_lm(&self) -> Option<&'static MaskedLmNames> {
        Some(self.masked_lm)
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
        if let Some(pooler) = self.choice_pooler {
            values["choice_activation"] = pooler.activation.name().into();
        }
        values
    }

    fn dropouts(&self) -> Value {
        let mut values = self.encoder.encoder_dropouts();
        if let Some(p) = self.qa_dropout {
            values["qa_dropout"] = p.into();
        }
        if let Some(pooler) = self.choice_pooler {
            values["choice_dropout"] = pooler.dropout.into();
        }
        values
    }

    fn build(
        &self,
        head: HeadKind,
        tied: bool,
        mut builder: Builder<'_>,
    ) -> Result<Model, ModelError> {
        let member = self.member;
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
        let task_head = head.path();
        let (head, new_modules) = self.head(b, head, &stack.embeddings.words, tied)?;
        let base = builder.finish(Summary {
            dimensions: self
                .encoder
                .dimensions(member.model_type, self.max_positions()),
            default_targets: member.targets,
            word_embeddings: member.names.words,
            prefix: member.names.prefix,
            task_head,
            new_modules,
        })?;
        Ok(Model::new(base, Box::new(stack), head))
    }
}
