//! Rotary position embeddings (Su et al. 2021, arXiv:2104.09864): the tables of cosines and sines.
//!
//! Pair `i` of a head's `d` dimensions is turned by the angle `position * inv_freq[i]`, where
//! `inv_freq[i] = theta^(-2i/d)`. The scaling variants that stretch a model's context change
//! `inv_freq`, and some multiply cosines and sines by one factor. All of it follows transformers'
//! `modeling_rope_utils.py` (5.23), in the same order and in `f32` where PyTorch computes in `f32`;
//! powers, cosines and sines are taken in `f64` and rounded once, so that they are the same on
//! every machine. The goldens in the tests come from transformers itself.

use std::f64::consts::PI;

use epiphyte_ops::{Angles, Sequences};
use serde::Serialize;
use serde_json::{Value, json};

/// How a model turns queries and keys.
#[derive(Debug, Clone, PartialEq)]
pub struct RotaryEmbedding {
    /// Dimensions of a head that turn, the first ones; even.
    pub head_dim: usize,
    /// Whether neighboring dimensions form pairs, as in GLM, instead of the two halves.
    pub interleaved: bool,
    /// The base of the frequencies.
    pub rope_theta: f64,
    /// The model's `max_position_embeddings`, which `dynamic` scaling starts from.
    pub max_position_embeddings: usize,
    /// The variant.
    pub scaling: RopeScaling,
}

/// How frequencies are changed to stretch the context; `rope_type` in `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// `linear`: every frequency is divided by a factor (position interpolation, arXiv:2306.15595).
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// `dynamic`: theta grows with the sequence once it exceeds `max_position_embeddings`
    /// (NTK-aware scaling).
    Dynamic {
        /// How much longer the context may become.
        factor: f64,
    },
    /// `yarn`: high frequencies stay, low ones are interpolated, with a ramp between
    /// (arXiv:2309.00071).
    Yarn {
        /// How much longer the context becomes.
        factor: f64,
        /// The length that the model was pre-trained with.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
        /// Turns within the original length above which a frequency stays as it is.
        beta_fast: f64,
        /// Turns within the original length below which a frequency is interpolated.
        beta_slow: f64,
        /// Whether the ramp starts and ends at whole dimensions.
        truncate: bool,
    },
    /// `longrope`: one divisor per frequency, one set for short and one for long sequences
    /// (arXiv:2402.13753).
    LongRope {
        /// Divisors up to the original length, `head_dim / 2` of them.
        short_factor: Vec<f64>,
        /// Divisors beyond it.
        long_factor: Vec<f64>,
        /// The length that the model was pre-trained with.
        original_max_position_embeddings: usize,
        /// What cosines and sines are multiplied by.
        attention_factor: f64,
    },
    /// `llama3`: as `yarn` keeps high and interpolates low frequencies, by wavelength (Llama 3.1).
    Llama3 {
        /// How much longer the context becomes.
        factor: f64,
        /// Original length divided by the longest wavelength that is not fully interpolated.
        low_freq_factor: f64,
        /// Original length divided by the longest wavelength that stays as it is.
        high_freq_factor: f64,
        /// The length that the model was pre-trained with.
        original_max_position_embeddings: usize,
    },
}

impl RotaryEmbedding {
    /// The values on which angles depend, as JSON.
    pub(crate) fn computation(&self) -> Value {
        let mut values = json!({ "theta": self.rope_theta, "scaling": self.scaling });
        if self.interleaved {
            values["interleaved"] = true.into();
        }
        if let RopeScaling::Dynamic { .. } = self.scaling {
            values["max_position_embeddings"] = self.max_position_embeddings.into();
        }
        values
    }

    /// The angle per position of every pair of dimensions, `[head_dim / 2]`.
    ///
    /// `sequence_length` is the sequence's largest position plus one. It matters for
    /// `dynamic` beyond `max_position_embeddings` and for `longrope` beyond the original length. It
    /// is taken afresh each time: transformers' `dynamic` keeps the frequencies of the longest
    /// sequence it has seen until a short one comes, which makes results depend on history.
    pub fn inverse_frequencies(&self, sequence_length: usize) -> Vec<f32> {
        match &self.scaling {
            RopeScaling::Default => invert(self.powers(self.rope_theta)),
            RopeScaling::Linear { factor } => {
                let factor = *factor as f32;
                let plain = invert(self.powers(self.rope_theta));
                plain.into_iter().map(|freq| freq / factor).collect()
            }
            RopeScaling::Dynamic { factor } => {
                let dim = self.head_dim as f64;
                let limit = self.max_position_embeddings as f64;
                let length = limit.max(sequence_length as f64);
                let stretch = (factor * length / limit) - (factor - 1.0);
                invert(self.powers(self.rope_theta * stretch.powf(dim / (dim - 2.0))))
            }
            RopeScaling::Yarn { .. } => self.yarn_frequencies(),
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                ..
            } => {
                let divisors = if sequence_length > *original_max_position_embeddings {
                    long_factor
                } else {
                    short_factor
                };
                let powers = self.powers(self.rope_theta);
                let scaled = divisors.iter().zip(powers);
                invert(scaled.map(|(&divisor, power)| divisor as f32 * power))
            }
            RopeScaling::Llama3 { .. } => self.llama3_frequencies(),
        }
    }

    /// Whether sequences of these two lengths, the shorter first, have the same frequencies.
    pub fn same_frequencies(&self, shorter: usize, longer: usize) -> bool {
        match &self.scaling {
            RopeScaling::Dynamic { .. } => longer <= self.max_position_embeddings,
            RopeScaling::LongRope {
                original_max_position_embeddings: original,
                ..
            } => (shorter > *original) == (longer > *original),
            _ => true,
        }
    }

    /// The same rotation for heads of `head_dim` dimensions, a divisor of this one's: the
    /// frequencies span the same range in larger steps.
    #[must_use]
    pub fn with_head_dim(&self, head_dim: usize) -> Self {
        let step = self.head_dim / head_dim;
        let spread = |factors: &[f64]| factors.iter().copied().step_by(step).collect();
        let scaling = match &self.scaling {
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                original_max_position_embeddings,
                attention_factor,
            } => RopeScaling::LongRope {
                short_factor: spread(short_factor),
                long_factor: spread(long_factor),
                original_max_position_embeddings: *original_max_position_embeddings,
                attention_factor: *attention_factor,
            },
            other => other.clone(),
        };
        Self {
            head_dim,
            scaling,
            ..self.clone()
        }
    }

    /// What cosines and sines are multiplied by: 1 except for `yarn` and `longrope`.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// The rotary angles of these sequences' rows, positions counted from `offset`.
    ///
    /// Each sequence's own length decides where a variant depends on length, so that a text's
    /// result does not depend on the others in its batch.
    pub(crate) fn angles(&self, rows: &Sequences, offset: usize) -> Angles {
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let positions: Vec<usize> = rows.positions().map(|at| at + offset).collect();
        for pair in rows.boundaries().windows(2) {
            let (own_cos, own_sin) = self.tables(&positions[pair[0]..pair[1]]);
            cos.extend(own_cos);
            sin.extend(own_sin);
        }
        let angles = Angles::new(cos, sin);
        match self.interleaved {
            true => angles.interleaved(),
            false => angles,
        }
    }

    /// The cosines and sines of one sequence's tokens, times the attention factor.
    ///
    /// # Shapes
    /// Both are `[positions, head_dim / 2]`, row-major: dimensions `i` and `i + head_dim / 2` of a
    /// head share the entry `i`, which transformers stores twice.
    ///
    /// # Example
    /// ```
    /// use epiphyte_models::rope::{RopeScaling, RotaryEmbedding};
    /// let rope = RotaryEmbedding {
    ///     head_dim: 4,
    ///     interleaved: false,
    ///     rope_theta: 10_000.0,
    ///     max_position_embeddings: 512,
    ///     scaling: RopeScaling::Default,
    /// };
    /// let (cos, sin) = rope.tables(&[0, 1]);
    /// assert_eq!(cos[..2], [1.0, 1.0]); // position 0 is not turned
    /// assert_eq!(sin[2], 1.0f32.sin()); // position 1, first pair: one radian
    /// ```
    pub fn tables(&self, positions: &[usize]) -> (Vec<f32>, Vec<f32>) {
        let sequence_length = positions.iter().max().map_or(0, |last| last + 1);
        let inv_freq = self.inverse_frequencies(sequence_length);
        let factor = self.attention_factor();
        let angles = positions
            .iter()
            .flat_map(|&at| inv_freq.iter().map(move |freq| at as f32 * freq));
        angles
            .map(|angle| {
                let (sin, cos) = f64::from(angle).sin_cos();
                (cos as f32 * factor, sin as f32 * factor)
            })
            .unzip()
    }

    /// `base^(2i / head_dim)` for every pair of dimensions.
    fn powers(&self, base: f64) -> impl Iterator<Item = f32> {
        let dim = self.head_dim as f32;
        let base = f64::from(base as f32);
        (0..self.head_dim / 2).map(move |pair| base.powf(f64::from((2 * pair) as f32 / dim)) as f32)
    }

    /// YaRN's frequencies; plain ones for another variant.
    fn yarn_frequencies(&self) -> Vec<f32> {
        let powers = self.powers(self.rope_theta);
        let RopeScaling::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = self.scaling
        else {
            return invert(powers);
        };
        let dim = self.head_dim as f64;
        let original = original_max_position_embeddings as f64;
        // The dimension with this number of turns within the original length.
        let dimension_of =
            |turns: f64| dim * (original / (turns * 2.0 * PI)).ln() / (2.0 * self.rope_theta.ln());
        let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001; // as transformers does, against a division by zero
        }
        powers
            .enumerate()
            .map(|(pair, power)| {
                let ramp = (pair as f32 - low as f32) / (high - low) as f32;
                let keep = 1.0 - ramp.clamp(0.0, 1.0);
                let extrapolated = 1.0 / power;
                let interpolated = 1.0 / (factor as f32 * power);
                interpolated * (1.0 - keep) + extrapolated * keep
            })
            .collect()
    }

    /// Llama 3.1's frequencies; plain ones for another variant.
    fn llama3_frequencies(&self) -> Vec<f32> {
        let plain = invert(self.powers(self.rope_theta));
        let RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } = self.scaling
        else {
            return plain;
        };
        let original = original_max_position_embeddings as f64;
        let longest_kept = (original / high_freq_factor) as f32;
        let longest_mixed = (original / low_freq_factor) as f32;
        let divisor = factor as f32;
        let band = (high_freq_factor - low_freq_factor) as f32;
        plain
            .into_iter()
            .map(|freq| {
                let wavelength = (2.0 * PI) as f32 / freq;
                if wavelength < longest_kept {
                    freq
                } else if wavelength > longest_mixed {
                    freq / divisor
                } else {
                    let smooth = (original as f32 / wavelength - low_freq_factor as f32) / band;
                    (1.0 - smooth) * freq / divisor + smooth * freq
                }
            })
            .collect()
    }
}

fn invert(powers: impl IntoIterator<Item = f32>) -> Vec<f32> {
    powers.into_iter().map(|power| 1.0 / power).collect()
}
