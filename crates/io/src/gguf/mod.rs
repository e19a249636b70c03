//! GGUF, the format that llama.cpp reads: key-value metadata, then tensors.
//!
//! A file is `GGUF`, the version, the numbers of tensors and of metadata entries; each entry as
//! key, type and value; each tensor's name, shape (innermost dimension first), type and place in
//! the data; and from the next multiple of `general.alignment` bytes (32 where it is absent) the
//! data, each tensor at such a multiple. All numbers are little-endian.
//!
//! [`GgufFile`] reads the header of such a file, and [`prepare_gguf`] writes a file.
//!
//! Source: ggml's `docs/gguf.md`; PyPI's `gguf` 0.19.

pub mod keys;
mod reader;
mod tensor_type;
mod writer;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use self::reader::{GgufFile, GgufTensor};
pub use self::tensor_type::TensorType;
pub use self::writer::{TensorToWrite, prepare_gguf};

/// The first bytes of a file.
const MAGIC: &[u8; 4] = b"GGUF";
/// What each tensor's data is aligned to, in bytes, unless `general.alignment` says otherwise.
const ALIGNMENT: u64 = 32;
/// The version that is written; version 2 differs in nothing that is read.
const VERSION: u32 = 3;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An unsigned number.
    U32(u32),
    /// An unsigned number of 64 bits.
    U64(u64),
    /// A signed number.
    I32(i32),
    /// A signed number of 64 bits.
    I64(i64),
    /// A number in single precision.
    F32(f32),
    /// A number in double precision.
    F64(f64),
    /// Yes or no.
    Bool(bool),
    /// A text.
    String(String),
    /// Texts.
    Strings(Vec<String>),
    /// Signed numbers.
    I32s(Vec<i32>),
    /// Numbers in single precision.
    F32s(Vec<f32>),
}

/// Numbers of the types of metadata.
mod value_type {
    pub(super) const U8: u32 = 0;
    pub(super) const I8: u32 = 1;
    pub(super) const U16: u32 = 2;
    pub(super) const I16: u32 = 3;
    pub(super) const U32: u32 = 4;
    pub(super) const I32: u32 = 5;
    pub(super) const F32: u32 = 6;
    pub(super) const BOOL: u32 = 7;
    pub(super) const STRING: u32 = 8;
    pub(super) const ARRAY: u32 = 9;
    pub(super) const U64: u32 = 10;
    pub(super) const I64: u32 = 11;
    pub(super) const F64: u32 = 12;
}

/// The GGUF file of a model that is given as this file, or as a directory without `config.json` in
/// which it is the only one; none if the model is none of GGUF.
///
/// # Errors
/// If the directory cannot be read.
pub fn model_file(model: &Path) -> io::Result<Option<PathBuf>> {
    let is_gguf = |path: &Path| {
        let ending = path.extension();
        ending.is_some_and(|ending| ending.eq_ignore_ascii_case("gguf")) && path.is_file()
    };
    if !model.is_dir() {
        return Ok(is_gguf(model).then(|| model.to_owned()));
    }
    if model.join("config.json").exists() {
        return Ok(None);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(model)? {
        found.extend(Some(entry?.path()).filter(|path| is_gguf(path)));
    }
    Ok(found.pop().filter(|_| found.is_empty()))
}
