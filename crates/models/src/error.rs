//! The crate's one error type.
//!
//! Every variant names the offending thing (file, key, tensor, token) and says what would have been
//! right, so that a front end can print it as it is. Problems that come in numbers — tensors of a
//! checkpoint — are collected and reported together ([`TensorProblems`]): a checkpoint with four
//! missing tensors costs one attempt, not four.

use std::fmt;
use std::path::PathBuf;

use epiphyte_io::{FileError, GgufProblem, HeaderProblem, SafetensorsError};
use epiphyte_ops::Quantization;
use safetensors::Dtype;

use crate::heads::HeadKind;

/// What can go wrong between a Hugging Face directory and hidden states.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The model directory itself is not there.
    #[error(
        "there is no model directory at `{}`: give the path of a directory that holds config.json, \
         model.safetensors and tokenizer.json, or of a GGUF file",
        dir.display()
    )]
    MissingDirectory {
        /// The path that was given.
        dir: PathBuf,
    },

    /// A file that the model needs is not in its directory.
    #[error("`{}` is missing: {advice}", path.display())]
    MissingFile {
        /// Where the file was looked for, which is where it has to be placed.
        path: PathBuf,
        /// How to obtain it, also without network.
        advice: &'static str,
    },

    /// The operating system refused to read or write a file.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `read`, `map` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        #[source]
        source: std::io::Error,
    },

    /// A file is of another kind than its name promises.
    #[error("`{}` cannot be read: {kind}", path.display())]
    OtherKind {
        /// The file.
        path: PathBuf,
        /// What it is, and what to do.
        kind: &'static str,
    },

    /// A directory holds weights in a form that is not supported, and none that is.
    #[error("`{}` has no model.safetensors, but `{found}`: {advice}", dir.display())]
    OtherWeights {
        /// The model's directory.
        dir: PathBuf,
        /// The file that it has.
        found: String,
        /// What to do.
        advice: &'static str,
    },

    /// A JSON file is not text.
    #[error("`{}` is not UTF-8 (byte {offset})", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Offset of the first byte that is not UTF-8.
        offset: usize,
    },

    /// A JSON file cannot be parsed, or its top level is not what it has to be.
    #[error("`{}`, line {line}, column {column}: {problem}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line of the problem, from 1.
        line: usize,
        /// Column of the problem, from 1.
        column: usize,
        /// What the parser says.
        problem: String,
    },

    /// `config.json` describes a model that no family here implements.
    #[error("`{}`: model type `{found}` is not supported (supported: {supported})", path.display())]
    UnknownArchitecture {
        /// The `config.json`.
        path: PathBuf,
        /// Its `model_type`, or its first `architectures` entry where it has none.
        found: String,
        /// The model types that are supported.
        supported: String,
    },

    /// A value in a configuration file has the wrong type or makes no sense.
    #[error("`{}`, key `{key}`: {problem}", path.display())]
    InvalidConfig {
        /// The file.
        path: PathBuf,
        /// The key, dotted where it is nested.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },

    /// The family has no such head.
    #[error(
        "a {model_type} model cannot have {head}{}: take a base of another family for this task",
        class_ending
            .map(|it| format!(", for transformers has no class of it that ends with `{it}`"))
            .unwrap_or_default()
    )]
    NoHead {
        /// The family.
        model_type: String,
        /// The head.
        head: String,
        /// How transformers ends the name of a class with this head.
        class_ending: Option<&'static str>,
    },

    /// A value in a configuration file is meaningful, but not implemented.
    #[error("`{}`, key `{key}`: {found} is not supported (supported: {supported})", path.display())]
    UnsupportedConfig {
        /// The file.
        path: PathBuf,
        /// The key, dotted where it is nested.
        key: String,
        /// Its value.
        found: String,
        /// The values that are supported.
        supported: &'static str,
    },

    /// A weight in 4 or 8 bits that cannot be used.
    #[error("`{}`: quantized tensor `{tensor}`: {problem}", path.display())]
    Quantized {
        /// The model's directory.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// What is wrong, and what to do.
        problem: String,
    },

    /// A base whose files are quantized in another format than the one that was asked for.
    #[error(
        "`{}` is quantized to {found} already, so `quantization` cannot be {asked}: leave it out, or \
         take the model that is not quantized",
        path.display()
    )]
    OtherQuantization {
        /// The model's directory.
        path: PathBuf,
        /// The format that was asked for.
        asked: Quantization,
        /// The format of the files.
        found: Quantization,
    },

    /// The header of a safetensors file cannot be trusted.
    #[error("`{}` is not a usable safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with the header.
        #[source]
        problem: Box<HeaderProblem>,
    },

    /// A GGUF file cannot be trusted, or says what is not supported.
    #[error("`{}` is not a usable GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        problem: Box<GgufProblem>,
    },

    /// `model.safetensors.index.json` names a shard that is not in the directory.
    #[error(
        "`{}` is missing: the index places {tensors} tensors in it, `{example}` among them; \
         download this shard and place it there",
        path.display()
    )]
    MissingShard {
        /// Where the shard has to be.
        path: PathBuf,
        /// How many tensors the index places in it.
        tensors: usize,
        /// One of them.
        example: String,
    },

    /// The index names a shard by something else than a plain file name.
    #[error("`{}`: `{shard}` is not the name of a file in the same directory", path.display())]
    ShardName {
        /// The index.
        path: PathBuf,
        /// The name that it gives.
        shard: String,
    },

    /// The index places a tensor in a shard that does not hold it.
    #[error(
        "`{}` does not hold tensor `{tensor}`, which the index places there; \
         index and shards come from different downloads",
        path.display()
    )]
    NotInShard {
        /// The shard.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// Two shards hold a tensor of the same name, and the index does not choose.
    #[error("tensor `{tensor}` is in `{}` and in `{}`", first.display(), second.display())]
    TensorInTwoShards {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: PathBuf,
        /// The other shard.
        second: PathBuf,
    },

    /// The tensors of a checkpoint are not those that the model needs.
    #[error(transparent)]
    Tensors(#[from] Box<TensorProblems>),

    /// A tensor of the base holds a NaN or an infinity.
    #[error(
        "`{}`: tensor `{tensor}` holds numbers that are not finite: the file is damaged, or its \
         training diverged; take another copy",
        path.display()
    )]
    NotFinite {
        /// The checkpoint.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// A classification head of a shape that no such head has.
    #[error(
        "`{}`: tensor `{tensor}` has shape {found:?}, but a classification head of this model has \
         [classes, {hidden_size}]",
        path.display()
    )]
    HeadShape {
        /// The checkpoint or the adapter's file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape.
        found: Vec<usize>,
        /// The model's hidden size.
        hidden_size: usize,
    },

    /// No tensor has the hidden size of the configuration.
    #[error(
        "`{}`: config.json gives a hidden size of {hidden_size}, but no tensor here has that many rows or \
         columns: config.json and weights belong to different models",
        path.display()
    )]
    HiddenSize {
        /// The checkpoint.
        path: PathBuf,
        /// The hidden size.
        hidden_size: usize,
    },

    /// A sequence is longer than the model's positions.
    #[error(
        "a sequence of {length} tokens exceeds the model's limit of {limit} (max_position_embeddings): \
         shorten it with a smaller maximum length"
    )]
    SequenceTooLong {
        /// Tokens in the sequence.
        length: usize,
        /// What the model can take.
        limit: usize,
    },

    /// A token id has no row in the embedding matrix.
    #[error(
        "token {token} at position {position} is outside the vocabulary of {vocab_size}: \
         tokenizer and model do not belong together"
    )]
    TokenOutOfVocabulary {
        /// The token id.
        token: u32,
        /// Its index in the batch's tokens.
        position: usize,
        /// Rows of the embedding matrix.
        vocab_size: usize,
    },

    /// An input has the wrong shape.
    #[error("{what}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// Which input.
        what: &'static str,
        /// The shape that it has to have.
        expected: Vec<usize>,
        /// The shape that it has.
        found: Vec<usize>,
    },

    /// What the device cannot do.
    #[error(transparent)]
    Device(#[from] epiphyte_ops::OpsError),
}

/// Everything that is wrong with the tensors of one checkpoint, at once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TensorProblems {
    /// The checkpoint: a directory or a file.
    pub path: PathBuf,
    /// Tensors that could be used.
    pub loaded: usize,
    /// Tensors that the model asked for.
    pub wanted: usize,
    /// Tensors that the model needs and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Tensors of another shape than the configuration implies.
    pub wrong_shape: Vec<WrongShape>,
    /// Tensors whose data type cannot be read as numbers of a model.
    pub wrong_dtype: Vec<WrongDtype>,
    /// Tensors that the model has no place for.
    pub extra: Vec<String>,
}

/// A tensor whose shape is not the one that the configuration implies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongShape {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// The shape that the configuration implies.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// A tensor whose data type is none of F64, F32, F16 and BF16.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongDtype {
    /// The tensor's name in the checkpoint.
    pub tensor: String,
    /// The data type in the file.
    pub found: Dtype,
}

impl ModelError {
    /// A family has no such head.
    pub(crate) fn no_head(model_type: &str, head: HeadKind) -> Self {
        let is_task = head.outputs().is_some();
        Self::NoHead {
            model_type: model_type.to_owned(),
            head: head.to_string(),
            class_ending: head.class_ending().filter(|_| is_task),
        }
    }

    /// One error for everything that went wrong while `loaded` of `wanted` tensors were read: the
    /// tensors' problems together, or the first failure that is about something else than a tensor.
    pub fn incomplete(loaded: usize, wanted: usize, failures: Vec<Self>) -> Self {
        let mut all = Box::new(TensorProblems {
            loaded,
            wanted,
            ..TensorProblems::default()
        });
        for failure in failures {
            let Self::Tensors(one) = failure else {
                return failure;
            };
            all.path = one.path;
            all.missing.extend(one.missing);
            all.wrong_shape.extend(one.wrong_shape);
            all.wrong_dtype.extend(one.wrong_dtype);
            all.extra.extend(one.extra);
        }
        Self::Tensors(all)
    }
}

impl From<FileError> for ModelError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::StorageFull { path, source } => Self::Io {
                action: "write",
                path,
                source,
            },
            FileError::Io {
                action,
                path,
                source,
            } => Self::Io {
                action,
                path,
                source,
            },
        }
    }
}

impl From<SafetensorsError> for ModelError {
    fn from(error: SafetensorsError) -> Self {
        match error {
            SafetensorsError::Header { path, problem } => Self::Header { path, problem },
            SafetensorsError::File(error) => error.into(),
        }
    }
}

impl std::error::Error for TensorProblems {}

impl fmt::Display for TensorProblems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            path,
            loaded,
            wanted,
            missing,
            wrong_shape,
            wrong_dtype,
            extra,
        } = self;
        let is_head = |name: &String| name.ends_with("lm_head.weight");
        let lacks_head = !missing.is_empty() && missing.iter().all(is_head);
        if lacks_head && wrong_shape.is_empty() && wrong_dtype.is_empty() && extra.is_empty() {
            return write!(
                f,
                "`{}`: this checkpoint has no language-model head (`{}`): take the checkpoint with \
                 its head, or train another task",
                path.display(),
                missing[0]
            );
        }
        write!(
            f,
            "`{}`: loaded {loaded} of {wanted} tensors",
            path.display()
        )?;
        list(f, "missing", missing, |name| format!("`{name}`"))?;
        list(f, "wrong shape", wrong_shape, |it| {
            let WrongShape {
                tensor,
                expected,
                found,
            } = it;
            format!("`{tensor}` (expected {expected:?}, found {found:?})")
        })?;
        list(
            f,
            "unreadable data type (F64, F32, F16 and BF16 can be read)",
            wrong_dtype,
            |it| format!("`{}` ({})", it.tensor, it.found),
        )?;
        list(f, "not part of this model", extra, |name| {
            format!("`{name}`")
        })
    }
}

/// How many names of a kind a message spells out.
const SHOWN: usize = 8;

/// Writes `; title: a, b and 3 more`, or nothing where there are no items.
fn list<T>(
    f: &mut fmt::Formatter<'_>,
    title: &str,
    items: &[T],
    show: impl Fn(&T) -> String,
) -> fmt::Result {
    if items.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = items.iter().take(SHOWN).map(show).collect();
    write!(f, "; {title}: {}", shown.join(", "))?;
    match items.len().saturating_sub(SHOWN) {
        0 => Ok(()),
        more => write!(f, " and {more} more"),
    }
}
