//! What can go wrong with a file. Each message names the file.

use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use thiserror::Error;

/// A file or directory could not be read, written or moved.
#[derive(Debug, Error)]
pub enum FileError {
    /// The disk, or the user's quota, is full. What stood at `path` before is untouched.
    #[error("no space left to write `{path}`; whatever stood there before is unchanged")]
    StorageFull {
        /// The file that was to be written.
        path: PathBuf,
        /// The system's report.
        source: io::Error,
    },
    /// Any other failure of the file system.
    #[error("could not {action} `{path}`")]
    Io {
        /// What was tried, as a verb: "read", "write", "rename".
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's report.
        source: io::Error,
    },
}

impl FileError {
    /// Names the file in an [`io::Error`]; a full disk or quota becomes [`FileError::StorageFull`].
    ///
    /// ```
    /// use std::io;
    /// use std::path::Path;
    /// use epiphyte_io::FileError;
    ///
    /// let full = io::Error::from(io::ErrorKind::StorageFull);
    /// let error = FileError::new("write", Path::new("out/adapter_model.safetensors"), full);
    /// assert!(matches!(error, FileError::StorageFull { .. }));
    /// ```
    #[must_use]
    pub fn new(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::StorageFull { path, source }
            }
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// The adapter for `map_err`: `fs::read(path).map_err(FileError::at("read", path))`.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::new(action, path, source)
    }
}

/// A safetensors file could not be written, or its header is wrong.
#[derive(Debug, Error)]
pub enum SafetensorsError {
    /// The header of the file cannot be trusted, or no valid one can be written.
    #[error("`{}` is not a usable safetensors file", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// What is wrong with the header.
        #[source]
        problem: Box<HeaderProblem>,
    },
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with the header of a safetensors file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// The file ends before the eight bytes that give the header's length.
    #[error(
        "it has {length} bytes, less than the 8 that give the header's length (an empty or cut-off download?)"
    )]
    TooShort {
        /// Length of the file.
        length: u64,
    },
    /// The file is of another kind than its name promises.
    #[error("{kind}")]
    OtherKind {
        /// What it is, and what to do.
        kind: &'static str,
    },
    /// The header's stated length is over the format's limit.
    #[error("its header claims {declared} bytes, over the limit of {limit}")]
    TooLarge {
        /// Stated length of the header.
        declared: u64,
        /// The format's limit.
        limit: u64,
    },
    /// The header's stated length is over the file's length.
    #[error("its header claims {declared} bytes, the file has {length} (a cut-off download?)")]
    PastEnd {
        /// Stated length of the header.
        declared: u64,
        /// Length of the file.
        length: u64,
    },
    /// The header is not text.
    #[error("its header is not UTF-8 (byte {offset})")]
    NotUtf8 {
        /// Offset in the header of the first byte that is not UTF-8.
        offset: usize,
    },
    /// The header is not JSON of the right form.
    #[error("its header cannot be parsed: {problem}")]
    Json {
        /// What the parser says.
        problem: String,
    },
    /// Two entries have the same name.
    #[error("tensor `{tensor}` is listed twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A data type that the format does not have.
    #[error("tensor `{tensor}` has the unknown data type `{dtype}`")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The data type's name.
        dtype: String,
    },
    /// Offsets that leave the file: the data is cut off.
    #[error(
        "tensor `{tensor}` ends at byte {end} of the data, which has {available} (a cut-off download?)"
    )]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Where it ends.
        end: usize,
        /// Bytes of data in the file.
        available: usize,
    },
    /// Offsets that overlap another tensor, leave a hole, or run backwards.
    #[error(
        "tensor `{tensor}` lies at bytes {start}..{end} of the data, but the tensor before it ends at {expected}"
    )]
    Offsets {
        /// The tensor.
        tensor: String,
        /// Where it starts.
        start: usize,
        /// Where it ends.
        end: usize,
        /// Where it has to start.
        expected: usize,
    },
    /// The number of bytes is not what shape and data type need.
    #[error("tensor `{tensor}`, {dtype} {shape:?}, has {bytes} bytes")]
    Size {
        /// The tensor.
        tensor: String,
        /// Its data type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// The bytes between its offsets.
        bytes: usize,
    },
    /// Data that belongs to no tensor.
    #[error("{bytes} bytes after the last tensor belong to none")]
    Trailing {
        /// How many bytes.
        bytes: usize,
    },
}

/// A GGUF file could not be read.
#[derive(Debug, Error)]
pub enum GgufError {
    /// The header of the file cannot be trusted, or says what is not supported.
    #[error("`{}` is not a usable GGUF file", path.display())]
    Problem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        problem: Box<GgufProblem>,
    },
    /// The file system refused.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What is wrong with a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GgufProblem {
    /// The file is of another kind than its name promises.
    #[error("{}", kind.unwrap_or("it does not begin with `GGUF`: download it again"))]
    OtherKind {
        /// What it is, and what to do, if its first bytes show it.
        kind: Option<&'static str>,
    },
    /// A version that is not read.
    #[error("it has version {found}, and 2 and 3 are read: convert it anew with llama.cpp")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file is for computers with the other order of bytes.
    #[error("its numbers are big-endian: take the file for little-endian computers")]
    BigEndian,
    /// A length or a count leaves the file.
    #[error("its header needs more than the {length} bytes of the file (a cut-off download?)")]
    CutOff {
        /// Length of the file.
        length: u64,
    },
    /// The header is longer than any that makes sense.
    #[error("its header needs more than {limit} bytes")]
    TooLarge {
        /// The longest header that is read.
        limit: u64,
    },
    /// A key, a text or a name is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotUtf8 {
        /// What.
        what: String,
    },
    /// A value of a type that the format does not have.
    #[error("key `{key}` has a value of the unknown type {found}")]
    ValueType {
        /// The key.
        key: String,
        /// The number of its type.
        found: u32,
    },
    /// Two entries have the same key.
    #[error("key `{key}` is there twice")]
    DuplicateKey {
        /// The key.
        key: String,
    },
    /// A key that is needed is not there.
    #[error("key `{key}` is missing")]
    MissingKey {
        /// The key.
        key: String,
    },
    /// A key has a value of another type.
    #[error("key `{key}` is not {expected}")]
    WrongType {
        /// The key.
        key: String,
        /// What it has to be.
        expected: &'static str,
    },
    /// A value makes no sense or is not supported.
    #[error("key `{key}`: {problem}")]
    InvalidValue {
        /// The key.
        key: String,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// A tensor that does not fit what the metadata say.
    #[error("tensor `{tensor}`: {problem}")]
    InvalidTensor {
        /// The tensor.
        tensor: String,
        /// What does not fit.
        problem: String,
    },
    /// Two tensors have the same name.
    #[error("tensor `{tensor}` is listed twice")]
    DuplicateTensor {
        /// The tensor.
        tensor: String,
    },
    /// A tensor with more dimensions than the format allows.
    #[error("tensor `{tensor}` has {dimensions} dimensions")]
    Dimensions {
        /// The tensor.
        tensor: String,
        /// How many.
        dimensions: u32,
    },
    /// A type of tensors that is not read.
    #[error(
        "tensor `{tensor}` is of type {found}, which is not read (read are {}): take another \
         quantization of the model",
        crate::gguf::TensorType::names().join(", ")
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// The name of its type, or its number.
        found: String,
    },
    /// A shape that its type cannot have.
    #[error(
        "tensor `{tensor}`, {tensor_type} {shape:?}, is no whole number of blocks, or too large"
    )]
    Size {
        /// The tensor.
        tensor: String,
        /// The name of its type.
        tensor_type: &'static str,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// A tensor whose data is not where the alignment allows it.
    #[error("tensor `{tensor}` lies at byte {offset} of the data, which is not aligned")]
    NotAligned {
        /// The tensor.
        tensor: String,
        /// Where it starts.
        offset: u64,
    },
    /// A tensor that leaves the file: the data is cut off.
    #[error(
        "tensor `{tensor}` ends at byte {end} of the data, which has {available} (a cut-off download?)"
    )]
    OutOfRange {
        /// The tensor.
        tensor: String,
        /// Where it ends.
        end: usize,
        /// Bytes of data in the file.
        available: usize,
    },
    /// Two tensors share bytes.
    #[error("tensors `{first}` and `{second}` share bytes")]
    Overlap {
        /// One tensor.
        first: String,
        /// The other.
        second: String,
    },
}
