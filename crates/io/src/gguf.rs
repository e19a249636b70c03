//! GGUF version 3, the format that llama.cpp reads: key-value metadata, then tensors.
//!
//! A file is `GGUF`, the version, the numbers of tensors and of metadata entries; each entry as
//! key, type and value; each tensor's name, shape (innermost dimension first), type and place in
//! the data; and from the next multiple of 32 bytes the data, each tensor padded to such a
//! multiple. All numbers are little-endian.

use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;

use crate::safetensors_file::write_floats;
use crate::{FileError, PendingFile};

/// What each tensor's data is aligned to, in bytes.
const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum GgufValue {
    /// An unsigned number.
    U32(u32),
    /// A number in single precision.
    F32(f32),
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

/// A tensor to be written.
pub struct GgufTensor<'a> {
    /// Its name in the file.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type that its values are rounded to: F32, F16 or BF16.
    pub dtype: Dtype,
    /// Its values, row-major; made when the tensor is written.
    pub values: Box<dyn FnOnce() -> Vec<f32> + 'a>,
}

/// Writes a file, without giving it its name yet.
///
/// # Errors
/// If the file system refuses, a type is none of the three, or there are not as many values as a
/// shape says.
pub fn prepare_gguf(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: Vec<GgufTensor<'_>>,
) -> Result<PendingFile, FileError> {
    PendingFile::write(path, |file| write(file, metadata, tensors))
}

fn write(
    file: &mut dyn Write,
    metadata: &[(String, GgufValue)],
    tensors: Vec<GgufTensor<'_>>,
) -> io::Result<()> {
    let mut header = b"GGUF".to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        push_text(&mut header, key);
        push_value(&mut header, value);
    }
    let mut offset = 0u64;
    for tensor in &tensors {
        push_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for size in tensor.shape.iter().rev() {
            header.extend((*size as u64).to_le_bytes());
        }
        header.extend(type_number(tensor.dtype)?.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += (bytes_of(tensor) as u64).next_multiple_of(ALIGNMENT);
    }
    let start = (header.len() as u64).next_multiple_of(ALIGNMENT);
    header.resize(start as usize, 0);
    file.write_all(&header)?;
    for tensor in tensors {
        let (size, count) = (bytes_of(&tensor), tensor.shape.iter().product::<usize>());
        let values = (tensor.values)();
        if values.len() != count {
            let problem = format!("{} values of `{}` for {count}", values.len(), tensor.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        write_floats(tensor.dtype, &values, file)?;
        let padding = (size as u64).next_multiple_of(ALIGNMENT) - size as u64;
        file.write_all(&vec![0; padding as usize])?;
    }
    Ok(())
}

fn bytes_of(tensor: &GgufTensor<'_>) -> usize {
    tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8
}

/// ggml's number of a type.
fn type_number(dtype: Dtype) -> io::Result<u32> {
    match dtype {
        Dtype::F32 => Ok(0),
        Dtype::F16 => Ok(1),
        Dtype::BF16 => Ok(30),
        other => {
            let problem = format!("{other} is not written to GGUF");
            Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
        }
    }
}

fn push_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Numbers of the types of metadata.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

fn push_value(bytes: &mut Vec<u8>, value: &GgufValue) {
    let head = |bytes: &mut Vec<u8>, kind: u32| bytes.extend(kind.to_le_bytes());
    let array = |bytes: &mut Vec<u8>, kind: u32, length: usize| {
        bytes.extend(ARRAY.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((length as u64).to_le_bytes());
    };
    match value {
        GgufValue::U32(value) => {
            head(bytes, U32);
            bytes.extend(value.to_le_bytes());
        }
        GgufValue::F32(value) => {
            head(bytes, F32);
            bytes.extend(value.to_le_bytes());
        }
        GgufValue::Bool(value) => {
            head(bytes, BOOL);
            bytes.push(u8::from(*value));
        }
        GgufValue::String(text) => {
            head(bytes, STRING);
            push_text(bytes, text);
        }
        GgufValue::Strings(texts) => {
            array(bytes, STRING, texts.len());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        GgufValue::I32s(values) => {
            array(bytes, I32, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        GgufValue::F32s(values) => {
            array(bytes, F32, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}
