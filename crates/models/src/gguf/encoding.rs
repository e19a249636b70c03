//! How the values of a tensor under Hugging Face's name follow from its bytes in a GGUF file.

use std::borrow::Cow;
use std::ops::Range;

use epiphyte_io::gguf::TensorType;
use epiphyte_ops::quantized::{Format, QuantizedWeight};
use safetensors::Dtype;

use super::blocks;
use super::{RowOrder, TensorNames};

/// The type of a tensor's blocks, the order of its rows, and what is added to its values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Encoding {
    tensor_type: TensorType,
    rows: RowOrder,
    offset: f32,
}

impl Encoding {
    /// The encoding of a tensor; none if its blocks are not of whole rows.
    pub(super) fn new(tensor_type: TensorType, names: &TensorNames) -> Option<Self> {
        let is_vector = names.shape.len() < 2;
        let fits = !is_vector || names.rows == RowOrder::Same || tensor_type.block_values() == 1;
        fits.then_some(Self {
            tensor_type,
            rows: names.rows,
            offset: names.offset,
        })
    }

    /// The type that the values have in safetensors: the file's own, or F32 where they are
    /// computed.
    pub(crate) fn dtype(self) -> Dtype {
        match self.tensor_type {
            TensorType::F16 if self.offset == 0.0 => Dtype::F16,
            TensorType::Bf16 if self.offset == 0.0 => Dtype::BF16,
            TensorType::F64 if self.offset == 0.0 => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// Whether values are stored in blocks, several in one.
    pub(crate) fn is_of_blocks(self) -> bool {
        self.tensor_type.block_values() > 1
    }

    /// Whether the bytes are those that safetensors would have.
    pub(crate) fn is_plain(self) -> bool {
        !self.is_of_blocks() && self.rows == RowOrder::Same && self.offset == 0.0
    }

    /// In which format a kernel keeps the values as they are, if one does.
    pub(crate) fn format(self) -> Option<Format> {
        blocks::format(self.tensor_type)
    }

    /// ggml's name of the type.
    pub(crate) fn type_name(self) -> &'static str {
        self.tensor_type.name()
    }

    /// Some of the values, row-major.
    pub(crate) fn values(self, stored: &[u8], shape: &[usize], range: Range<usize>) -> Vec<f32> {
        let columns = self.columns(shape);
        let block = self.tensor_type.block_values();
        let mut values = Vec::with_capacity(range.len() + 2 * block);
        let mut at = range.start;
        while at < range.end {
            let (row, first) = (at / columns, at % columns);
            let last = columns.min(first + range.end - at);
            let blocks = first / block..last.div_ceil(block);
            let bytes = self.tensor_type.block_bytes();
            let row = self.row(stored, columns, row);
            let start = values.len();
            let blocks = &row[blocks.start * bytes..blocks.end * bytes];
            blocks::decode(self.tensor_type, blocks, &mut values);
            // A range may begin and end inside of a block.
            values.drain(start..start + first % block);
            values.truncate(start + last - first);
            at += last - first;
        }
        if self.offset != 0.0 {
            values.iter_mut().for_each(|value| *value -= self.offset);
        }
        values
    }

    /// The bytes that safetensors would have, of [`Encoding::dtype`].
    pub(crate) fn bytes<'b>(self, stored: &'b [u8], shape: &[usize]) -> Cow<'b, [u8]> {
        match self.is_of_blocks() || self.offset != 0.0 {
            true => {
                let values = self.values(stored, shape, 0..shape.iter().product());
                values.into_iter().flat_map(f32::to_le_bytes).collect()
            }
            false => self.in_order(stored, shape),
        }
    }

    /// The stored bytes with the rows in Hugging Face's order.
    pub(crate) fn in_order<'b>(self, stored: &'b [u8], shape: &[usize]) -> Cow<'b, [u8]> {
        if self.rows == RowOrder::Same {
            return stored.into();
        }
        let columns = self.columns(shape);
        let rows = 0..shape.iter().product::<usize>() / columns;
        let rows = rows.flat_map(|row| self.row(stored, columns, row));
        rows.copied().collect()
    }

    /// Whether all values are finite.
    pub(crate) fn is_finite(self, stored: &[u8]) -> bool {
        blocks::is_finite(self.tensor_type, stored)
    }

    /// A weight `[out, in]` as a kernel keeps it; none if no kernel has the same values.
    pub(crate) fn quantized(self, stored: &[u8], shape: [usize; 2]) -> Option<QuantizedWeight> {
        let row = |row| self.row(stored, shape[1], row);
        blocks::quantized(self.tensor_type, shape, row)
    }

    /// Values of a row; those of a vector are rows of their own where rows have another order.
    fn columns(self, shape: &[usize]) -> usize {
        match shape {
            [_] if self.rows != RowOrder::Same => 1,
            shape => shape.last().copied().unwrap_or(1).max(1),
        }
    }

    /// The bytes of a row by Hugging Face's order.
    fn row(self, stored: &[u8], columns: usize, row: usize) -> &[u8] {
        let bytes = columns / self.tensor_type.block_values() * self.tensor_type.block_bytes();
        let row = self.rows.in_gguf(row);
        &stored[row * bytes..(row + 1) * bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ranges that begin and end inside of blocks, in rows of another order.
    #[test]
    fn parts_are_those_of_the_whole() {
        let shape = [8, 512];
        for tensor_type in [TensorType::Q4K, TensorType::Q8_0, TensorType::F16] {
            let encoding = Encoding {
                tensor_type,
                rows: RowOrder::HalvesInTurn { head_dim: 4 },
                offset: 1.0,
            };
            let bytes = 8 * 512 / tensor_type.block_values() * tensor_type.block_bytes();
            let stored: Vec<u8> = (0..bytes).map(|at| (at * 37 % 59) as u8).collect();
            let whole = encoding.values(&stored, &shape, 0..8 * 512);
            assert_eq!(whole.len(), 8 * 512);
            for range in [
                0..1,
                5..300,
                255..257,
                500..1600,
                1024..2048,
                4095..4096,
                7..7,
            ] {
                let part = encoding.values(&stored, &shape, range.clone());
                assert_eq!(part, whole[range]);
            }
            // The rows of a head: first, third, second and fourth.
            let plain = Encoding {
                rows: RowOrder::Same,
                ..encoding
            };
            let second = plain.values(&stored, &shape, 2 * 512..3 * 512);
            assert_eq!(whole[512..1024], second);
        }
    }
}
