//! Orthogonal matrices: what OFT, BOFT, HRA and PSOFT share.
//!
//! A skew-symmetric matrix S gives an orthogonal one, `(I - S)(I + S)⁻¹` (Cayley 1846). The inverse
//! is computed on the processor in f64 and counts as a constant X there; one step of Newton's
//! iteration, `X (2 I - A X)`, is again the inverse, and has its gradient.

use burn::tensor::{Int, Tensor, TensorData};

/// Skew-symmetric matrices from what stands above their diagonals, row by row.
///
/// # Shapes
/// - `upper`: `[blocks, size (size - 1) / 2]`
/// - result: `[blocks, size, size]`
pub(crate) fn skew_symmetric(upper: Tensor<2>, size: usize) -> Tensor<3> {
    let [blocks, count] = upper.dims();
    let device = upper.device().inner();
    // Where each entry comes from, and its sign; the diagonal from a column of zeros at the end.
    let mut places = vec![count as i32; size * size];
    let mut signs = vec![0.0f32; size * size];
    let pairs = (0..size).flat_map(|row| (row + 1..size).map(move |column| (row, column)));
    for (place, (row, column)) in (0..).zip(pairs) {
        (places[row * size + column], places[column * size + row]) = (place, place);
        (signs[row * size + column], signs[column * size + row]) = (1.0, -1.0);
    }
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [size * size]), &device);
    let signs = Tensor::<2>::from_data(TensorData::new(signs, [1, size * size]), &device);
    let zeros = Tensor::zeros([blocks, 1], &device);
    let entries = Tensor::cat(vec![upper, zeros], 1).select(1, places) * signs;
    entries.reshape([blocks, size, size])
}

/// The orthogonal matrices `(I - S)(I + S)⁻¹` of skew-symmetric ones, `[blocks, size, size]`.
pub(crate) fn cayley(skew: Tensor<3>) -> Tensor<3> {
    let one = identity_like(&skew);
    (one.clone() - skew.clone()).matmul(inverse(one + skew))
}

/// The first `terms` of a series for `(I + S)(I - S)⁻¹`, as HF PEFT cuts it: the last power counts
/// once, the others twice, and there are no fewer than four of more than two.
pub(crate) fn cayley_series(skew: Tensor<3>, terms: usize) -> Tensor<3> {
    let one = identity_like(&skew);
    if terms == 1 {
        return skew * 0.0 + one;
    }
    let mut sum = one + skew.clone() * 2.0;
    if terms == 2 {
        return sum;
    }
    let mut power = skew.clone().matmul(skew.clone());
    sum = sum + power.clone() * 2.0;
    for _ in 4..terms {
        power = power.matmul(skew.clone());
        sum = sum + power.clone() * 2.0;
    }
    sum + power.matmul(skew)
}

/// The inverses of matrices, `[blocks, size, size]`, that have one.
pub(crate) fn inverse(matrices: Tensor<3>) -> Tensor<3> {
    let constant = numeric_inverse(&matrices);
    let twice = identity_like(&matrices) * 2.0;
    constant.clone().matmul(twice - matrices.matmul(constant))
}

/// As many identity matrices as there are `matrices`.
pub(crate) fn identity_like(matrices: &Tensor<3>) -> Tensor<3> {
    let [blocks, size, _] = matrices.dims();
    let one = Tensor::<2>::eye(size, &matrices.device().inner());
    one.unsqueeze::<3>().repeat_dim(0, blocks)
}

/// The inverses without their gradient, by Gauss and Jordan's elimination with pivots.
fn numeric_inverse(matrices: &Tensor<3>) -> Tensor<3> {
    let [blocks, size, _] = matrices.dims();
    let device = matrices.device().inner();
    let values = matrices.clone().inner().try_into_vec_as::<f32>();
    let values = values.expect("parameters are f32 and on a device that can be read");
    let mut inverses = Vec::with_capacity(values.len());
    for block in values.chunks_exact(size * size) {
        let mut rows: Vec<Vec<f64>> = (0..size)
            .map(|row| {
                let left = block[row * size..][..size].iter().map(|it| f64::from(*it));
                let right = (0..size).map(|column| f64::from(u8::from(column == row)));
                left.chain(right).collect()
            })
            .collect();
        for column in 0..size {
            let largest = |a: &usize, b: &usize| {
                let of = |row: usize| rows[row][column].abs();
                of(*a).total_cmp(&of(*b))
            };
            let pivot = (column..size).max_by(largest).expect("a row is left");
            rows.swap(column, pivot);
            let mut pivot = std::mem::take(&mut rows[column]);
            let factor = pivot[column].recip();
            pivot.iter_mut().for_each(|it| *it *= factor);
            for row in rows.iter_mut().filter(|row| !row.is_empty()) {
                let factor = row[column];
                row.iter_mut()
                    .zip(&pivot)
                    .for_each(|(it, by)| *it -= factor * by);
            }
            rows[column] = pivot;
        }
        inverses.extend(
            rows.iter()
                .flat_map(|row| row[size..].iter().map(|it| *it as f32)),
        );
    }
    Tensor::from_data(TensorData::new(inverses, [blocks, size, size]), &device)
}

/// `x` with each block of its columns multiplied by a matrix of its own.
///
/// # Shapes
/// - `x`, result: `[tokens, blocks · size]`
/// - `matrices`: `[blocks, size, size]`, or one for all blocks, `[1, size, size]`
pub(crate) fn multiply_blocks(x: Tensor<2>, matrices: Tensor<3>) -> Tensor<2> {
    let [tokens, inputs] = x.dims();
    let [blocks, size, _] = matrices.dims();
    if blocks == 1 {
        let rows = x.reshape([tokens * inputs / size, size]);
        let rotated = rows.matmul(matrices.reshape([size, size]));
        return rotated.reshape([tokens, inputs]);
    }
    let by_block = x.reshape([tokens, blocks, size]).swap_dims(0, 1);
    let rotated = by_block.matmul(matrices).swap_dims(0, 1);
    rotated.reshape([tokens, inputs])
}

/// The weight that does to x what `weight`, `[out, in]`, does to `x R`: `W Rᵀ`.
pub(crate) fn rotated_weight(
    weight: Tensor<2>,
    rotate: impl FnOnce(Tensor<2>) -> Tensor<2>,
) -> Tensor<2> {
    let [_, inputs] = weight.dims();
    let rotation = rotate(Tensor::eye(inputs, &weight.device().inner())).inner();
    weight.matmul(rotation.transpose())
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_ops::random;

    use super::{cayley, cayley_series, identity_like, inverse, skew_symmetric};

    fn draw<const D: usize>(shape: [usize; D]) -> Tensor<D> {
        let values = random::normal(5, shape.iter().product(), 1.0);
        Tensor::from_data(TensorData::new(values, shape), &Device::default())
    }

    fn largest<const D: usize>(tensor: Tensor<D>) -> f32 {
        tensor.abs().max().into_scalar::<f32>()
    }

    #[test]
    fn an_inverse_times_its_matrix_is_the_identity() {
        let matrices = draw([3, 6, 6]);
        let product = inverse(matrices.clone()).matmul(matrices.clone());
        assert!(largest(product - identity_like(&matrices)) < 1e-4);
    }

    /// `d(A⁻¹) = -A⁻¹ dA A⁻¹`, so the gradient of the sum of its entries is `-A⁻ᵀ 1 A⁻ᵀ`.
    #[test]
    fn the_gradient_of_an_inverse_is_that_of_the_inverse() {
        let matrices = draw([2, 4, 4]).autodiff().require_grad();
        let tape = inverse(matrices.clone()).sum().backward();
        let gradient = matrices.grad(&tape).unwrap();
        let transposed = inverse(matrices.inner()).swap_dims(1, 2);
        let ones = Tensor::ones_like(&transposed);
        let expected = transposed.clone().matmul(ones).matmul(transposed);
        assert!(largest(gradient + expected.clone()) < 1e-4 * largest(expected));
    }

    #[test]
    fn cayley_matrices_are_orthogonal() {
        let skew = skew_symmetric(draw([3, 10]), 5);
        let transposed = skew.clone().swap_dims(1, 2);
        assert_eq!(largest(skew.clone() + transposed), 0.0);
        let rotation = cayley(skew);
        let product = rotation.clone().matmul(rotation.clone().swap_dims(1, 2));
        assert!(largest(product - identity_like(&rotation)) < 1e-5);
    }

    /// HF PEFT's loop, written out for a number.
    #[test]
    fn the_series_ends_as_in_peft() {
        let q = 0.1_f32;
        for (terms, expected) in [
            (1, 1.0),
            (2, 1.0 + 2.0 * q),
            (3, 1.0 + 2.0 * q + 2.0 * q * q + q * q * q),
            (4, 1.0 + 2.0 * q + 2.0 * q * q + q * q * q),
            (
                5,
                1.0 + 2.0 * q + 2.0 * q * q + 2.0 * q * q * q + q * q * q * q,
            ),
        ] {
            let matrix = TensorData::new(vec![q], [1, 1, 1]);
            let matrix = Tensor::<3>::from_data(matrix, &Default::default());
            let found = cayley_series(matrix, terms).into_scalar::<f32>();
            assert!((found - expected).abs() < 1e-6, "{terms}: {found}");
        }
    }
}
