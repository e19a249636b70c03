//! The types of tensors: what a block of values takes.

use std::fmt;

/// ggml's type of a tensor. Values are stored in blocks of a fixed number of values and bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorType {
    /// Floating point of 32 bits.
    F32,
    /// Floating point of 16 bits.
    F16,
    /// bfloat16.
    Bf16,
    /// Floating point of 64 bits.
    F64,
    /// 32 values in 4 bits, with a scale.
    Q4_0,
    /// 32 values in 4 bits, with a scale and a minimum.
    Q4_1,
    /// 32 values in 5 bits, with a scale.
    Q5_0,
    /// 32 values in 5 bits, with a scale and a minimum.
    Q5_1,
    /// 32 values in 8 bits, with a scale.
    Q8_0,
    /// 256 values in 2 bits, with a scale and a minimum for each 16.
    Q2K,
    /// 256 values in 3 bits, with a scale for each 16.
    Q3K,
    /// 256 values in 4 bits, with a scale and a minimum for each 32.
    Q4K,
    /// 256 values in 5 bits, with a scale and a minimum for each 32.
    Q5K,
    /// 256 values in 6 bits, with a scale for each 16.
    Q6K,
}

/// A type as it is listed: ggml's number and name, the values of a block, and its bytes.
type Entry = (TensorType, u32, &'static str, usize, usize);

/// The types that are read (`GGML_QUANT_SIZES`).
const TYPES: [Entry; 14] = [
    (TensorType::F32, 0, "F32", 1, 4),
    (TensorType::F16, 1, "F16", 1, 2),
    (TensorType::Q4_0, 2, "Q4_0", 32, 18),
    (TensorType::Q4_1, 3, "Q4_1", 32, 20),
    (TensorType::Q5_0, 6, "Q5_0", 32, 22),
    (TensorType::Q5_1, 7, "Q5_1", 32, 24),
    (TensorType::Q8_0, 8, "Q8_0", 32, 34),
    (TensorType::Q2K, 10, "Q2_K", 256, 84),
    (TensorType::Q3K, 11, "Q3_K", 256, 110),
    (TensorType::Q4K, 12, "Q4_K", 256, 144),
    (TensorType::Q5K, 13, "Q5_K", 256, 176),
    (TensorType::Q6K, 14, "Q6_K", 256, 210),
    (TensorType::F64, 28, "F64", 1, 8),
    (TensorType::Bf16, 30, "BF16", 1, 2),
];

/// Names of types that are not read, by ggml's number.
const OTHERS: [(u32, &str); 19] = [
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl TensorType {
    /// The type of a number.
    ///
    /// # Errors
    /// The type's name, if it is not read.
    pub fn of_number(number: u32) -> Result<Self, String> {
        if let Some((found, ..)) = TYPES.iter().find(|(_, of, ..)| *of == number) {
            return Ok(*found);
        }
        let other = OTHERS.iter().find(|(of, _)| *of == number);
        Err(other.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned()))
    }

    /// ggml's number.
    pub fn number(self) -> u32 {
        self.entry().1
    }

    /// ggml's name, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        self.entry().2
    }

    /// Values of a block: 1 where each value stands by itself.
    pub fn block_values(self) -> usize {
        self.entry().3
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.entry().4
    }

    /// Names of all types that are read.
    pub fn names() -> Vec<&'static str> {
        TYPES.iter().map(|(_, _, name, ..)| *name).collect()
    }

    fn entry(self) -> &'static Entry {
        let mut types = TYPES.iter();
        let found = types.find(|(of, ..)| *of == self);
        found.expect("every type is listed")
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
