//! A linear layer with a low-rank path: `x Wᵀ + b + s · (d(x) Aᵀ) Bᵀ` (Hu et al. 2021, section
//! 4.1), with dropout d on the input of the path.
//!
//! Over a frozen weight it is one operation: the path is added to the product while that is still
//! in a cache, forward and backward, and the backward pass recomputes the dropped x.

use std::borrow::Cow;

use burn::tensor::Tensor;
use epiphyte_kernels::gemm::{self, Epilogue, Operand, PackedWeight};
use epiphyte_kernels::memory::uninit_buffer;
use epiphyte_kernels::vector;

use crate::add;
use crate::dropout::Dropout;
use crate::fused::{Fused, Gradient, Kept, Wanted, apply, uses_fused};
use crate::linear::{FrozenMatrix, SHAPES, Weight, column_sums, linear, product};

/// The path.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// `[rank, in]`
    pub a: Tensor<2>,
    /// `[out, rank]`
    pub b: Tensor<2>,
    /// Factor on the path.
    pub scale: f32,
    /// Dropout on its input.
    pub dropout: Option<Dropout>,
}

/// `x Wᵀ + b + s · (d(x) Aᵀ) Bᵀ`.
///
/// # Shapes
/// - `x`: `[tokens, in]`
/// - `weight`: `[out, in]`
/// - `bias`: `[out]`
/// - result: `[tokens, out]`
pub fn low_rank_linear(
    x: Tensor<2>,
    weight: &Weight,
    bias: Option<Tensor<1>>,
    path: LowRank,
) -> Tensor<2> {
    let here = [&x, &path.a, &path.b].into_iter().all(uses_fused);
    match weight {
        Weight::Frozen(matrix)
            if matrix.packed().is_some() && here && bias.as_ref().is_none_or(uses_fused) =>
        {
            let op = Beside {
                matrix: matrix.clone(),
                tokens: x.dims()[0],
                rank: path.b.dims()[1],
                scale: path.scale,
                dropout: path.dropout,
            };
            let (x, a, b) = (x.into(), path.a.into(), path.b.into());
            match bias {
                Some(bias) => apply(op, [x, a, b, bias.into()]),
                None => apply(op, [x, a, b]),
            }
        }
        weight => add_low_rank(linear(x.clone(), weight, bias), x, path),
    }
}

/// `y + s · (d(x) Aᵀ) Bᵀ`, for a product `y` already computed, with the bytes of
/// [`low_rank_linear`].
///
/// # Shapes
/// - `y`, result: `[tokens, out]`
/// - `x`: `[tokens, in]`
pub fn add_low_rank(y: Tensor<2>, x: Tensor<2>, path: LowRank) -> Tensor<2> {
    let LowRank {
        a,
        b,
        scale,
        dropout,
    } = path;
    let x = match dropout {
        Some(dropout) => dropout.apply(x),
        None => x,
    };
    let low = linear(x, &Weight::Trained(a), None) * scale;
    add(y, linear(low, &Weight::Trained(b), None))
}

/// [`low_rank_linear`] over a packed weight, of x, A, B and perhaps a bias.
#[derive(Clone, Debug)]
struct Beside {
    matrix: FrozenMatrix,
    tokens: usize,
    rank: usize,
    scale: f32,
    dropout: Option<Dropout>,
}

impl Beside {
    fn packed(&self) -> &PackedWeight {
        self.matrix
            .packed()
            .expect("`low_rank_linear` chose this operation for a packed weight")
    }

    /// The input of the path, after dropout.
    fn dropped<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match &self.dropout {
            Some(dropout) => {
                let mut x = x.to_vec();
                dropout.apply_to(&mut x, self.matrix.shape()[1]);
                Cow::Owned(x)
            }
            None => Cow::Borrowed(x),
        }
    }

    /// The gradient of x, given `back = s g B`, that of `d(x) Aᵀ`.
    fn input_gradient(&self, gradient: &[f32], back: &[f32], a: &[f32]) -> Vec<f32> {
        let [_, inputs] = self.matrix.shape();
        let mut dx = uninit_buffer(self.tokens * inputs);
        let low_rank = gemm::LowRank {
            left: back,
            right: a,
        };
        let low_rank = self.dropout.is_none().then_some(low_rank);
        self.packed()
            .backward_input(gradient, low_rank, &mut dx, false)
            .expect(SHAPES);
        if let Some(dropout) = &self.dropout {
            let (back, a) = (Operand::Plain(back), Operand::Plain(a));
            let mut path = product([self.tokens, self.rank, inputs], 1.0, back, a);
            dropout.apply_to(&mut path, inputs);
            vector::accumulate(&path, &mut dx).expect(SHAPES);
        }
        dx
    }
}

impl<const N: usize> Fused<N> for Beside {
    /// `s · d(x) Aᵀ`, `[tokens, rank]`.
    type Saved = Vec<f32>;

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, Vec<f32>) {
        let [x, a, b] = [operands[0], operands[1], operands[2]];
        let [outputs, inputs] = self.matrix.shape();
        let dropped = self.dropped(x);
        let (left, right) = (Operand::Plain(&dropped), Operand::Transposed(a));
        let low = product([self.tokens, inputs, self.rank], self.scale, left, right);
        let b = transposed(b, self.rank);
        let mut y = uninit_buffer(self.tokens * outputs);
        let epilogue = Epilogue {
            bias: operands.get(3).copied(),
            low_rank: Some(gemm::LowRank {
                left: &low,
                right: &b,
            }),
        };
        self.packed().forward(x, epilogue, &mut y).expect(SHAPES);
        (y, low)
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.tokens, self.matrix.shape()[0]]
    }

    fn saved_operands(&self, tracked: Wanted<N>, _saved: &Vec<f32>) -> (Wanted<N>, bool) {
        let [x, a] = [tracked[0], tracked[1]];
        let inputs = [a, x, x || a, false];
        (std::array::from_fn(|operand| inputs[operand]), false)
    }

    fn backward(
        &self,
        kept: Kept<'_, N, Vec<f32>>,
        gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        let [x, a, b] = [kept.inputs[0], kept.inputs[1], kept.inputs[2]];
        let ([outputs, inputs], rank, tokens) = (self.matrix.shape(), self.rank, self.tokens);
        let back = (wanted[0] || wanted[1]).then(|| {
            let (g, b) = (Operand::Plain(&gradient), Operand::Plain(b));
            product([tokens, outputs, rank], self.scale, g, b)
        });
        let back = back.unwrap_or_default();
        std::array::from_fn(|operand| match operand {
            _ if !wanted[operand] => None,
            0 => Some(self.input_gradient(&gradient, &back, a).into()),
            1 => {
                let dropped = self.dropped(x);
                let (left, right) = (Operand::Transposed(&back), Operand::Plain(&dropped));
                Some(product([rank, tokens, inputs], 1.0, left, right).into())
            }
            2 => {
                // Its transpose has few rows, so the product reads the gradient in place.
                let (left, right) = (Operand::Transposed(kept.saved), Operand::Plain(&gradient));
                let d_b = product([rank, tokens, outputs], 1.0, left, right);
                Some(transposed(&d_b, outputs).into())
            }
            _ => Some(column_sums(&gradient, outputs)),
        })
    }
}

/// The transpose of a small matrix with rows of `columns`.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    let rows = matrix.len().checked_div(columns).unwrap_or(0);
    let at = |index: usize| matrix[index % rows * columns + index / rows];
    (0..matrix.len()).map(at).collect()
}
