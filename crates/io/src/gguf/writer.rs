//! Writing a file: version 3, alignment 32.

use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;

use super::{ALIGNMENT, GgufValue, MAGIC, TensorType, VERSION, value_type};
use crate::safetensors_file::write_floats;
use crate::{FileError, PendingFile};

/// A tensor to be written.
pub struct TensorToWrite<'a> {
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
    tensors: Vec<TensorToWrite<'_>>,
) -> Result<PendingFile, FileError> {
    PendingFile::write(path, |file| write(file, metadata, tensors))
}

fn write(
    file: &mut dyn Write,
    metadata: &[(String, GgufValue)],
    tensors: Vec<TensorToWrite<'_>>,
) -> io::Result<()> {
    let mut header = MAGIC.to_vec();
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

fn bytes_of(tensor: &TensorToWrite<'_>) -> usize {
    tensor.shape.iter().product::<usize>() * tensor.dtype.bitsize() / 8
}

/// ggml's number of a type.
fn type_number(dtype: Dtype) -> io::Result<u32> {
    match dtype {
        Dtype::F32 => Ok(TensorType::F32.number()),
        Dtype::F16 => Ok(TensorType::F16.number()),
        Dtype::BF16 => Ok(TensorType::Bf16.number()),
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

fn push_value(bytes: &mut Vec<u8>, value: &GgufValue) {
    let number = |bytes: &mut Vec<u8>, kind: u32, value: &[u8]| {
        bytes.extend(kind.to_le_bytes());
        bytes.extend(value);
    };
    let array = |bytes: &mut Vec<u8>, kind: u32, length: usize| {
        bytes.extend(value_type::ARRAY.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((length as u64).to_le_bytes());
    };
    match value {
        GgufValue::U32(value) => number(bytes, value_type::U32, &value.to_le_bytes()),
        GgufValue::U64(value) => number(bytes, value_type::U64, &value.to_le_bytes()),
        GgufValue::I32(value) => number(bytes, value_type::I32, &value.to_le_bytes()),
        GgufValue::I64(value) => number(bytes, value_type::I64, &value.to_le_bytes()),
        GgufValue::F32(value) => number(bytes, value_type::F32, &value.to_le_bytes()),
        GgufValue::F64(value) => number(bytes, value_type::F64, &value.to_le_bytes()),
        GgufValue::Bool(value) => number(bytes, value_type::BOOL, &[u8::from(*value)]),
        GgufValue::String(text) => {
            bytes.extend(value_type::STRING.to_le_bytes());
            push_text(bytes, text);
        }
        GgufValue::Strings(texts) => {
            array(bytes, value_type::STRING, texts.len());
            texts.iter().for_each(|text| push_text(bytes, text));
        }
        GgufValue::I32s(values) => {
            array(bytes, value_type::I32, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
        GgufValue::F32s(values) => {
            array(bytes, value_type::F32, values.len());
            bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        }
    }
}
