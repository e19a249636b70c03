//! From the tensor names that a model wants to those that a checkpoint has.
//!
//! The same weights come under several names: `BertModel` saves `encoder.layer.0…`,
//! `BertForSequenceClassification` saves `bert.encoder.layer.0…`, and checkpoints converted from
//! the original TensorFlow release call a norm's weight and bias `gamma` and `beta`. A family asks
//! under one spelling and declares what else a checkpoint may hold ([`KeyRules`]); a
//! [`TensorReader`] finds the tensors, and at the end knows which ones were not asked for.

use std::collections::{BTreeMap, BTreeSet};

use half::bf16;

use crate::ModelError;
use crate::checkpoint::{Checkpoint, TensorView};
use crate::error::TensorProblems;

/// Old spellings of parameter names, still found in checkpoints: (today, then). As in transformers'
/// `conversion_mapping.py`, entry `legacy`.
const LEGACY_SPELLINGS: [(&str, &str); 2] = [
    ("LayerNorm.weight", "LayerNorm.gamma"),
    ("LayerNorm.bias", "LayerNorm.beta"),
];

/// What precedes the base's tensors in the checkpoints of some heads, whatever the family's prefix:
/// those of `LlamaForQuestionAnswering` and `T5ForSequenceClassification`.
const OTHER_PREFIX: &str = "transformer.";

/// How the checkpoints of a family name their tensors.
///
/// # Example
/// ```
/// use epiphyte_models::keys::KeyRules;
/// const BERT: KeyRules = KeyRules {
///     base_prefix: "bert.",
///     ignorable: &["embeddings.position_ids", "cls.predictions.", "cls.seq_relationship."],
/// };
/// assert!(BERT.may_ignore("bert.embeddings.position_ids"));
/// assert!(BERT.may_ignore("cls.predictions.transform.dense.weight"));
/// assert!(!BERT.may_ignore("bert.embeddings.word_embeddings.weight"));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRules {
    /// What precedes the base model's tensors in checkpoints with a head, and is absent in those
    /// without: `bert.` or `model.`.
    pub base_prefix: &'static str,
    /// Tensors that a checkpoint may hold beyond those wanted, without a word. An entry that ends
    /// with a dot is the beginning of names (`cls.predictions.`), any other is the end of names,
    /// cut at a dot (`rotary_emb.inv_freq`).
    pub ignorable: &'static [&'static str],
}

impl KeyRules {
    /// Whether a tensor that is not wanted may be passed over.
    pub fn may_ignore(&self, name: &str) -> bool {
        self.ignorable.iter().any(|&entry| {
            if entry.ends_with('.') {
                name.starts_with(entry)
            } else {
                name.strip_suffix(entry)
                    .is_some_and(|before| before.is_empty() || before.ends_with('.'))
            }
        })
    }

    /// A name of the base's without what precedes it in checkpoints with a head.
    fn bare<'n>(&self, name: &'n str) -> &'n str {
        let mut prefixes = [self.base_prefix, OTHER_PREFIX].into_iter();
        let bare = prefixes.find_map(|prefix| name.strip_prefix(prefix));
        bare.unwrap_or(name)
    }

    /// The names under which a wanted tensor may be stored, the most likely first.
    pub(crate) fn spellings(&self, wanted: &str) -> Vec<String> {
        let bare = self.bare(wanted);
        let mut names = vec![wanted.to_owned()];
        // A head has no prefix of the base's.
        if bare != wanted {
            names.extend([bare.to_owned(), format!("{}{bare}", self.base_prefix)]);
        }
        names.push(format!("{OTHER_PREFIX}{bare}"));
        for (today, then) in LEGACY_SPELLINGS {
            if wanted.ends_with(today) {
                let old: Vec<_> = names.iter().map(|name| name.replace(today, then)).collect();
                names.extend(old);
            }
        }
        names
    }
}

/// Reads a model's tensors from a checkpoint, whatever their prefix and spelling, and keeps account
/// of those that were used.
///
/// # Example
/// ```no_run
/// use epiphyte_models::checkpoint::Checkpoint;
/// use epiphyte_models::keys::{KeyRules, TensorReader};
/// let checkpoint = Checkpoint::open("all-MiniLM-L6-v2".as_ref())?; // saved without `bert.`
/// let rules = KeyRules { base_prefix: "bert.", ignorable: &["embeddings.position_ids"] };
/// let mut reader = TensorReader::new(&checkpoint, rules);
/// let scale = reader.to_f32("bert.embeddings.LayerNorm.weight", &[384])?;
/// // … every other tensor …
/// let left_out = reader.finish(Some("classifier"))?; // heads of other tasks
/// # Ok::<(), epiphyte_models::ModelError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TensorReader<'c> {
    checkpoint: &'c Checkpoint,
    rules: KeyRules,
    used: BTreeSet<String>,
    /// For a wanted tensor that is stored under another's name: that name, by its own bare one.
    stand_ins: BTreeMap<String, String>,
}

impl<'c> TensorReader<'c> {
    /// A reader that has not read anything yet.
    pub fn new(checkpoint: &'c Checkpoint, rules: KeyRules) -> Self {
        Self {
            checkpoint,
            rules,
            used: BTreeSet::new(),
            stand_ins: BTreeMap::new(),
        }
    }

    /// If the checkpoint lacks `wanted`, reads it from the first of `tied` that is there: of tied
    /// weights, some programs store only one, under whichever name comes first.
    pub fn stand_in(&mut self, wanted: &str, tied: &[&str]) {
        if !self.contains(wanted)
            && let Some(stored) = tied.iter().find_map(|name| self.stored_name(name))
        {
            let bare = self.rules.bare(wanted).to_owned();
            self.stand_ins.insert(bare, stored);
        }
    }

    /// The name under which the checkpoint has a wanted tensor.
    pub fn stored_name(&self, wanted: &str) -> Option<String> {
        let mut spellings = self.rules.spellings(wanted).into_iter();
        let stored = spellings.find(|name| self.checkpoint.contains(name));
        stored.or_else(|| self.stand_ins.get(self.rules.bare(wanted)).cloned())
    }

    /// Whether the checkpoint has a wanted tensor, such as a task's head.
    pub fn contains(&self, wanted: &str) -> bool {
        self.stored_name(wanted).is_some()
    }

    /// A wanted tensor as it is stored, without using it.
    pub fn tensor(&self, wanted: &str) -> Option<TensorView<'c>> {
        self.checkpoint.tensor(&self.stored_name(wanted)?)
    }

    /// Takes a wanted tensor of this shape without reading it: the name under which the checkpoint
    /// has it.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] where the tensor is missing, has another shape, or is not of type
    /// F64, F32, F16 or BF16.
    pub fn claim(&mut self, wanted: &str, shape: &[usize]) -> Result<String, ModelError> {
        let stored = self.use_up(wanted);
        self.checkpoint.check(&stored, shape)?;
        Ok(stored)
    }

    /// The elements of a wanted tensor as `f32`, in row-major order.
    ///
    /// # Errors
    /// As [`TensorReader::claim`].
    pub fn to_f32(&mut self, wanted: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let stored = self.use_up(wanted);
        self.checkpoint.to_f32(&stored, shape)
    }

    /// The elements of a wanted tensor as `bf16`, rounded to nearest even, in row-major order.
    ///
    /// # Errors
    /// As [`TensorReader::to_f32`].
    pub fn to_bf16(&mut self, wanted: &str, shape: &[usize]) -> Result<Vec<bf16>, ModelError> {
        let stored = self.use_up(wanted);
        self.checkpoint.to_bf16(&stored, shape)
    }

    /// The stored names of all tensors that were used.
    pub fn used(&self) -> &BTreeSet<String> {
        &self.used
    }

    /// Marks a wanted tensor as used, so that [`TensorReader::finish`] does not report it.
    pub fn skip(&mut self, wanted: &str) {
        self.use_up(wanted);
    }

    /// Marks what the checkpoint has below a module as used: not every head reads it.
    pub(crate) fn pass_over(&mut self, module: &str) {
        let modules = [module, self.rules.bare(module)];
        let below = |name: &&str| modules.iter().any(|it| is_below(Some(it), name));
        let names = self.checkpoint.names().filter(below);
        self.used.extend(names.map(str::to_owned));
    }

    /// Whether `copy` is absent or equal to `original`, bit for bit: `lm_head.weight` beside the
    /// embeddings that it is tied to. If so, `copy` counts as used. If not, the checkpoint's head
    /// is its own, and transformers does not tie it, whatever `tie_word_embeddings` says.
    pub fn is_tied(&mut self, copy: &str, original: &str) -> bool {
        let tied = match self.tensor(copy) {
            None => true,
            stored => stored == self.tensor(original),
        };
        if tied {
            self.skip(copy);
        }
        tied
    }

    /// The stored name of a wanted tensor, from now on used; its own name where it is missing.
    fn use_up(&mut self, wanted: &str) -> String {
        let stored = self.stored_name(wanted).unwrap_or(wanted.to_owned());
        self.used.insert(stored.clone());
        stored
    }

    /// The tensors that were not asked for and that may not be ignored.
    pub fn extra(&self) -> impl Iterator<Item = &'c str> {
        let names = self.checkpoint.names();
        names.filter(|&name| !self.used.contains(name) && !self.rules.may_ignore(name))
    }

    /// Checks that the checkpoint holds nothing of the base that the model has no place for.
    /// Returns the tensors of heads, which may be left out: what is below `head`, or in a module
    /// that the model does not have.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] with every tensor of the base's modules that is left over.
    pub fn finish(self, head: Option<&str>) -> Result<Vec<String>, ModelError> {
        let is_of_base = |name: &&str| !is_below(head, name) && self.is_of_base(name);
        let (extra, left_out): (Vec<&str>, Vec<&str>) = self.extra().partition(is_of_base);
        let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
        if extra.is_empty() {
            return Ok(owned(left_out));
        }
        Err(ModelError::Tensors(Box::new(TensorProblems {
            path: self.checkpoint.path().to_owned(),
            loaded: self.used.len(),
            wanted: self.used.len(),
            extra: owned(extra),
            ..TensorProblems::default()
        })))
    }

    /// Whether a tensor is of the base: it has the base's prefix, or its module, such as `encoder`,
    /// is one that the model reads. A module of another name is a head.
    fn is_of_base(&self, name: &str) -> bool {
        let prefix = self.rules.base_prefix;
        let bare = |name: &str| name.strip_prefix(prefix).map(str::to_owned);
        let module = |name: &str| {
            let name = bare(name).unwrap_or(name.to_owned());
            name.split('.').next().map(str::to_owned)
        };
        bare(name).is_some() || self.used.iter().any(|used| module(used) == module(name))
    }
}

/// Whether a tensor's name is that of something below the module at `path`.
pub(crate) fn is_below(path: Option<&str>, name: &str) -> bool {
    path.and_then(|path| name.strip_prefix(path))
        .is_some_and(|rest| rest.starts_with('.'))
}
