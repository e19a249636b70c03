//! Rotary position embedding (Su et al. 2021). In the layout of Hugging Face's Llama, the first
//! half of a head's rotated dimensions is paired with the second half (`rotate_half`); in that of
//! the paper and of GLM, neighbors are paired.
//!
//! The tables are the caller's: plain, Llama-3 and YaRN scalings differ only in them. The
//! backward pass is the rotation back.
//!
//! ```
//! use epiphyte_kernels::rope::Rope;
//!
//! // A head of two dimensions, a quarter turn at position 1.
//! let (cos, sin) = ([1.0, 0.0], [0.0, 1.0]);
//! let rope = Rope { cos: &cos, sin: &sin, rotary_dim: 2, head_dim: 2, interleaved: false };
//! let mut x = [3.0, 4.0, 3.0, 4.0];
//! rope.forward(&mut x, &[0, 1])?;
//! assert_eq!(x, [3.0, 4.0, -4.0, 3.0]);
//! rope.backward(&mut x, &[0, 1])?;
//! assert_eq!(x, [3.0, 4.0, 3.0, 4.0]);
//! # Ok::<(), epiphyte_kernels::KernelError>(())
//! ```

use crate::simd::{Simd, kernel};
use crate::{KernelError, threads};

/// Elements that one thread takes at a time.
const PART: usize = 16 * 1024;

/// The rotation of every position.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// Cosines of the angles, `[positions, rotary_dim / 2]`.
    pub cos: &'a [f32],
    /// Sines of the angles, `[positions, rotary_dim / 2]`.
    pub sin: &'a [f32],
    /// How many dimensions of a head turn, the first ones; even. The others pass.
    pub rotary_dim: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Pairs dimension `2i` with `2i + 1`, instead of `i` with `i + rotary_dim / 2`.
    pub interleaved: bool,
}

impl Rope<'_> {
    /// Rotates each head of each token of `x` (`[tokens, heads * head_dim]`), in place, by the
    /// angles of the token's position.
    ///
    /// # Errors
    /// [`KernelError::Length`], [`KernelError::Rows`] or [`KernelError::Parameter`] when a shape
    /// does not fit, [`KernelError::Index`] when the tables lack a position.
    pub fn forward(&self, x: &mut [f32], positions: &[u32]) -> Result<(), KernelError> {
        self.turn(x, positions, 1.0)
    }

    /// Changes the gradient `dx` of the output, in place, to that of the input.
    ///
    /// # Errors
    /// As [`Rope::forward`].
    pub fn backward(&self, dx: &mut [f32], positions: &[u32]) -> Result<(), KernelError> {
        self.turn(dx, positions, -1.0)
    }

    fn turn(&self, x: &mut [f32], positions: &[u32], direction: f32) -> Result<(), KernelError> {
        let width = self.check(x, positions)?;
        if width == 0 {
            return Ok(());
        }
        let part = PART.div_ceil(width);
        let parts = x.chunks_mut(part * width).zip(positions.chunks(part));
        threads::for_each(parts, |(x, positions)| {
            turn_tokens(*self, x, positions, direction)
        });
        Ok(())
    }

    /// Elements of a token's row, which may be 0.
    fn check(&self, x: &[f32], positions: &[u32]) -> Result<usize, KernelError> {
        let Self {
            cos,
            sin,
            rotary_dim,
            head_dim,
            ..
        } = *self;
        if rotary_dim % 2 != 0 || rotary_dim > head_dim || rotary_dim == 0 {
            return Err(KernelError::Parameter {
                parameter: "rotary_dim",
                got: rotary_dim.to_string(),
                allowed: "even, at least 2 and at most head_dim",
            });
        }
        let rows = KernelError::count_rows("cos", cos, rotary_dim / 2)?;
        KernelError::check_length("sin", sin, &[rows, rotary_dim / 2])?;
        if let Some(position) = positions.iter().position(|&index| index as usize >= rows) {
            let index = i64::from(positions[position]);
            return Err(KernelError::Index {
                operand: "positions",
                position,
                index,
                limit: rows,
            });
        }
        let heads = KernelError::count_rows("x", x, positions.len() * head_dim)?;
        Ok(heads * head_dim)
    }
}

kernel! {
    fn turn_tokens<S>(rope: Rope<'_>, x: &mut [f32], positions: &[u32], direction: f32) {
        let half = rope.rotary_dim / 2;
        let width = x.len() / positions.len();
        for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
            let cos = &rope.cos[position as usize * half..][..half];
            let sin = &rope.sin[position as usize * half..][..half];
            for head in x.chunks_exact_mut(rope.head_dim) {
                match rope.interleaved {
                    false => turn_head::<S>(head, cos, sin, direction),
                    true => turn_neighbors::<S>(head, cos, sin, direction),
                }
            }
        }
    }
}

#[inline(always)]
fn turn_neighbors<S: Simd>(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (pairs, _) = head.as_chunks_mut::<2>();
    for (([first, second], &cos), &sin) in pairs.iter_mut().zip(cos).zip(sin) {
        let sin = direction * sin;
        let (a, b) = (*first, *second);
        *first = S::mul_add(a, cos, -(b * sin));
        *second = S::mul_add(b, cos, a * sin);
    }
}

#[inline(always)]
fn turn_head<S: Simd>(head: &mut [f32], cos: &[f32], sin: &[f32], direction: f32) {
    let (first, second) = head.split_at_mut(cos.len());
    for (((first, second), &cos), &sin) in first.iter_mut().zip(second).zip(cos).zip(sin) {
        let sin = direction * sin;
        let (a, b) = (*first, *second);
        *first = S::mul_add(a, cos, -(b * sin));
        *second = S::mul_add(b, cos, a * sin);
    }
}
