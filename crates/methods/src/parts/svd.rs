//! Eigenvalues of symmetric matrices and singular values of any, in f64: what initial values and
//! conversions of low-rank methods are made of.
//!
//! The symmetric matrix is reduced to tridiagonal form by Householder reflections and solved by
//! implicit QL steps (Bowdler, Martin, Reinsch, Wilkinson 1968, as in EISPACK's `tred2` and
//! `tql2`), `O(n³)` for n the smaller side. Singular vectors of the larger side follow from the
//! matrix, so those of singular values below about 1e-7 of the largest are not to be relied on.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};

/// `A = U diag(σ) Vᵀ` with `k = min(rows, columns)` singular values, largest first.
#[derive(Clone, Debug)]
pub struct Svd {
    device: Device,
    /// The singular values.
    pub values: Vec<f64>,
    /// Columns of `U`.
    left: Vec<Vec<f64>>,
    /// Columns of `V`.
    right: Vec<Vec<f64>>,
}

impl Svd {
    /// Decomposes a matrix `[rows, columns]`.
    pub fn new(matrix: Tensor<2>) -> Self {
        let device = matrix.device().inner();
        let matrix = matrix.inner();
        let [rows, columns] = matrix.dims();
        if rows < columns {
            let Self {
                values,
                left,
                right,
                ..
            } = Self::new(matrix.transpose());
            return Self {
                device,
                values,
                left: right,
                right: left,
            };
        }
        let matrix = to_rows(matrix);
        let mut gram = vec![vec![0.0; columns]; columns];
        for row in &matrix {
            for (sums, a) in gram.iter_mut().zip(row) {
                for (sum, b) in sums.iter_mut().zip(row) {
                    *sum += a * b;
                }
            }
        }
        let (squares, right) = eigenvectors(gram);
        let values: Vec<f64> = squares.into_iter().map(|it| it.max(0.0).sqrt()).collect();
        let left = values.iter().zip(&right).map(|(value, vector)| {
            let scale = if *value > 0.0 { value.recip() } else { 0.0 };
            matrix.iter().map(|row| dot(row, vector) * scale).collect()
        });
        Self {
            left: left.collect(),
            device,
            values,
            right,
        }
    }

    /// Some of the left singular vectors times powers of their singular values: `U σ^power`,
    /// `[rows, range]`.
    pub fn left(&self, range: Range<usize>, power: f64) -> Tensor<2> {
        self.vectors(&self.left, range, power).transpose()
    }

    /// Some of the right singular vectors times powers of their singular values: `σ^power Vᵀ`,
    /// `[range, columns]`.
    pub fn right(&self, range: Range<usize>, power: f64) -> Tensor<2> {
        self.vectors(&self.right, range, power)
    }

    /// Left singular vectors, by number, times their singular values.
    pub(crate) fn left_of(&self, numbers: &[usize]) -> Tensor<2> {
        let columns = numbers.iter().map(|&at| self.left(at..at + 1, 1.0));
        Tensor::cat(columns.collect(), 1)
    }

    /// Right singular vectors, by number.
    pub(crate) fn right_of(&self, numbers: &[usize]) -> Tensor<2> {
        let rows = numbers.iter().map(|&at| self.right(at..at + 1, 0.0));
        Tensor::cat(rows.collect(), 0)
    }

    /// The inverse of a symmetric matrix without negative eigenvalues, plus `shift` times the
    /// identity.
    pub(crate) fn inverse_shifted(&self, shift: f64) -> Tensor<2> {
        let inverse = self.values.iter().map(|value| (value + shift).recip());
        let scaled = Self {
            device: self.device.clone(),
            values: inverse.collect(),
            left: self.right.clone(),
            right: self.right.clone(),
        };
        let all = 0..scaled.values.len();
        scaled.left(all.clone(), 1.0).matmul(scaled.right(all, 0.0))
    }

    /// The decomposition of `Q A`, for that of A and a matrix Q with orthonormal columns.
    pub(crate) fn times(self, q: &Tensor<2>) -> Self {
        let all = 0..self.values.len();
        let left = q.clone().matmul(self.left(all, 0.0)).transpose();
        Self {
            left: to_rows(left),
            ..self
        }
    }

    fn vectors(&self, vectors: &[Vec<f64>], range: Range<usize>, power: f64) -> Tensor<2> {
        let shape = [range.len(), vectors.first().map_or(0, Vec::len)];
        let scaled = range.flat_map(|at| {
            let scale = self.values[at].powf(power);
            vectors[at].iter().map(move |value| (value * scale) as f32)
        });
        let values: Vec<f32> = scaled.collect();
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }
}

/// `A = Q R` with `k = min(rows, columns)`: `Q: [rows, k]` with orthonormal columns, `R: [k,
/// columns]` with the signs of LAPACK's Householder reflections.
pub fn qr(matrix: Tensor<2>) -> [Tensor<2>; 2] {
    let device = matrix.device().inner();
    let matrix = matrix.inner();
    let [rows, columns] = matrix.dims();
    let k = rows.min(columns);
    // Columns, so that reflections run along memory.
    let mut work = to_rows(matrix.transpose());
    let mut reflections: Vec<Vec<f64>> = Vec::with_capacity(k);
    for step in 0..k {
        let mut reflection = work[step][step..].to_vec();
        // As in LAPACK, what has nothing below the diagonal stays as it is.
        if reflection[1..].iter().all(|below| *below == 0.0) {
            reflection.fill(0.0);
            reflections.push(reflection);
            continue;
        }
        let length = dot(&reflection, &reflection).sqrt();
        reflection[0] += length.copysign(reflection[0]);
        for column in work.iter_mut().skip(step) {
            reflect(&reflection, &mut column[step..]);
        }
        reflections.push(reflection);
    }
    let r = (0..k).flat_map(|row| {
        let columns = work.iter().enumerate();
        columns.map(move |(at, column)| if at < row { 0.0 } else { column[row] as f32 })
    });
    let r: Vec<f32> = r.collect();
    let mut q = Vec::with_capacity(rows * k);
    for step in 0..k {
        let mut column = vec![0.0; rows];
        column[step] = 1.0;
        for (from, reflection) in reflections.iter().enumerate().rev() {
            reflect(reflection, &mut column[from..]);
        }
        q.extend(column.into_iter().map(|value| value as f32));
    }
    [
        Tensor::<2>::from_data(TensorData::new(q, [k, rows]), &device).transpose(),
        Tensor::from_data(TensorData::new(r, [k, columns]), &device),
    ]
}

/// The solution of `A X = B`, `[size, columns]`, by Gauss's elimination with pivots.
///
/// # Shapes
/// - `a`: `[size, size]`
/// - `b`: `[size, columns]`
pub fn solution(a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
    let ([size, columns], device) = (b.dims(), b.device().inner());
    let mut rows = to_rows(a.inner());
    for (row, right) in rows.iter_mut().zip(to_rows(b.inner())) {
        row.extend(right);
    }
    for column in 0..size {
        let largest =
            |&a: &usize, &b: &usize| rows[a][column].abs().total_cmp(&rows[b][column].abs());
        let pivot = (column..size).max_by(largest).expect("a row is left");
        rows.swap(column, pivot);
        let mut pivot = std::mem::take(&mut rows[column]);
        let factor = pivot[column].recip();
        pivot[column..]
            .iter_mut()
            .for_each(|value| *value *= factor);
        for row in rows.iter_mut().filter(|row| !row.is_empty()) {
            let factor = row[column];
            if factor != 0.0 {
                let values = row[column..].iter_mut().zip(&pivot[column..]);
                values.for_each(|(value, by)| *value -= factor * by);
            }
        }
        rows[column] = pivot;
    }
    let values = rows.iter().flat_map(|row| row[size..].iter());
    let values: Vec<f32> = values.map(|value| *value as f32).collect();
    Tensor::from_data(TensorData::new(values, [size, columns]), &device)
}

/// `x - 2 v (vᵀ x) / (vᵀ v)`, in place.
fn reflect(v: &[f64], x: &mut [f64]) {
    let square = dot(v, v);
    if square > 0.0 {
        let share = 2.0 * dot(v, x) / square;
        for (x, v) in x.iter_mut().zip(v) {
            *x -= share * v;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The rows of a matrix in f64.
fn to_rows(matrix: Tensor<2>) -> Vec<Vec<f64>> {
    let [_, columns] = matrix.dims();
    let values = matrix.try_into_vec_as::<f32>();
    let values = values.expect("a base is f32 and on a device that can be read");
    let rows = values.chunks(columns.max(1));
    rows.map(|row| row.iter().copied().map(f64::from).collect())
        .collect()
}

/// The eigenvalues of a symmetric matrix, largest first, and an orthonormal eigenvector of each.
pub fn eigenvectors(matrix: Vec<Vec<f64>>) -> (Vec<f64>, Vec<Vec<f64>>) {
    let (mut vectors, mut diagonal, mut below) = tridiagonal(matrix);
    solve(&mut diagonal, &mut below, &mut vectors);
    let mut order: Vec<usize> = (0..diagonal.len()).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    let sorted = order.iter().map(|&at| std::mem::take(&mut vectors[at]));
    let sorted = sorted.collect();
    (order.iter().map(|&at| diagonal[at]).collect(), sorted)
}

/// `T = Qᵀ A Q`: the columns of `Q`, the diagonal of `T` and what is next to it.
fn tridiagonal(mut a: Vec<Vec<f64>>) -> (Vec<Vec<f64>>, Vec<f64>, Vec<f64>) {
    let n = a.len();
    let mut below = vec![0.0; n];
    let mut reflections: Vec<Vec<f64>> = Vec::with_capacity(n);
    for step in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = a[step][step + 1..].to_vec();
        let length = dot(&v, &v).sqrt();
        below[step] = -length.copysign(v[0]);
        v[0] += length.copysign(v[0]);
        let square = dot(&v, &v);
        if square > 0.0 {
            // A - v wᵀ - w vᵀ with p = 2 A v / (vᵀ v) and w = p - v (vᵀ p) / (vᵀ v).
            let rows = a[step + 1..].iter();
            let mut w: Vec<f64> = rows
                .map(|row| 2.0 * dot(&row[step + 1..], &v) / square)
                .collect();
            let share = dot(&v, &w) / square;
            for (w, v) in w.iter_mut().zip(&v) {
                *w -= share * v;
            }
            for (at, row) in a[step + 1..].iter_mut().enumerate() {
                let (own_v, own_w) = (v[at], w[at]);
                for (value, (v, w)) in row[step + 1..].iter_mut().zip(v.iter().zip(&w)) {
                    *value -= own_v * w + own_w * v;
                }
            }
        }
        reflections.push(v);
    }
    if n > 1 {
        below[n - 2] = a[n - 1][n - 2];
    }
    let diagonal = (0..n).map(|at| a[at][at]).collect();
    let columns = (0..n).map(|at| {
        let mut column = vec![0.0; n];
        column[at] = 1.0;
        for (from, reflection) in reflections.iter().enumerate().rev() {
            reflect(reflection, &mut column[from + 1..]);
        }
        column
    });
    (columns.collect(), diagonal, below)
}

/// Implicit QL steps on a tridiagonal matrix; rotates the columns of `vectors` along.
fn solve(diagonal: &mut [f64], below: &mut [f64], vectors: &mut [Vec<f64>]) {
    /// Steps for one eigenvalue; two are usual.
    const MOST_STEPS: usize = 60;
    let n = diagonal.len();
    for first in 0..n {
        for _ in 0..MOST_STEPS {
            let is_small = |at: &usize| {
                let size = diagonal[*at].abs() + diagonal[at + 1].abs();
                below[*at].abs() <= f64::EPSILON * size
            };
            let last = (first..n - 1).find(is_small).unwrap_or(n - 1);
            if last == first {
                break;
            }
            // Wilkinson's shift.
            let mut g = (diagonal[first + 1] - diagonal[first]) / (2.0 * below[first]);
            let root = g.hypot(1.0).copysign(g);
            g = diagonal[last] - diagonal[first] + below[first] / (g + root);
            let (mut sine, mut cosine, mut p) = (1.0, 1.0, 0.0);
            let mut deflated = false;
            for at in (first..last).rev() {
                let (f, b) = (sine * below[at], cosine * below[at]);
                let r = f.hypot(g);
                below[at + 1] = r;
                if r == 0.0 {
                    diagonal[at + 1] -= p;
                    below[last] = 0.0;
                    deflated = true;
                    break;
                }
                (sine, cosine) = (f / r, g / r);
                g = diagonal[at + 1] - p;
                let r = (diagonal[at] - g) * sine + 2.0 * cosine * b;
                p = sine * r;
                diagonal[at + 1] = g + p;
                g = cosine * r - b;
                let (head, tail) = vectors.split_at_mut(at + 1);
                for (x, y) in head[at].iter_mut().zip(&mut tail[0]) {
                    (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
                }
            }
            if !deflated {
                diagonal[first] -= p;
                below[first] = g;
                below[last] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use epiphyte_ops::random;

    use super::{Svd, qr, solution};

    fn matrix(shape: [usize; 2]) -> Tensor<2> {
        let values = random::normal(3, shape[0] * shape[1], 1.0);
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    fn largest(difference: Tensor<2>) -> f32 {
        difference.abs().max().into_scalar::<f32>()
    }

    fn identity(size: usize) -> Tensor<2> {
        Tensor::eye(size, &Device::flex())
    }

    #[test]
    fn factors_are_orthonormal_and_give_the_matrix_back() {
        for shape in [[1, 1], [2, 2], [7, 4], [4, 7], [40, 33], [64, 64]] {
            let a = matrix(shape);
            let svd = Svd::new(a.clone());
            let all = 0..svd.values.len();
            assert!(svd.values.windows(2).all(|pair| pair[0] >= pair[1]));
            let (u, v) = (svd.left(all.clone(), 0.0), svd.right(all.clone(), 0.0));
            let product = svd.left(all.clone(), 1.0).matmul(v.clone());
            assert!(largest(product - a.clone()) < 1e-5, "{shape:?}");
            let own = u.clone().transpose().matmul(u);
            assert!(largest(own - identity(all.len())) < 1e-5, "{shape:?}");
            let own = v.clone().matmul(v.transpose());
            assert!(largest(own - identity(all.len())) < 1e-5, "{shape:?}");
            let [q, r] = qr(a.clone());
            let own = q.clone().transpose().matmul(q.clone());
            assert!(largest(own - identity(all.len())) < 1e-5, "{shape:?}");
            assert!(largest(q.matmul(r) - a) < 1e-5, "{shape:?}");
        }
    }

    /// `numpy.linalg.svd` of the same matrix.
    #[test]
    fn singular_values_are_those_of_numpy() {
        let values: Vec<f32> = (0..12)
            .map(|at| ((at * at * 7) % 11) as f32 - 4.0)
            .collect();
        let a = Tensor::from_data(TensorData::new(values, [4, 3]), &Device::flex());
        let svd = Svd::new(a);
        let expected = [10.8903799, 6.3245554, 3.3763332];
        for (found, expected) in svd.values.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "{:?}", svd.values);
        }
    }

    #[test]
    fn solutions_solve() {
        let (a, b) = (matrix([9, 9]), matrix([9, 4]));
        assert!(largest(a.clone().matmul(solution(a, b.clone())) - b) < 1e-4);
    }

    /// A matrix of rank 2 has two singular values, and the best approximation of it is itself.
    #[test]
    fn the_rank_shows() {
        let a = matrix([9, 2]).matmul(matrix([2, 6]));
        let svd = Svd::new(a.clone());
        assert!(svd.values[2] < 1e-6 * svd.values[0], "{:?}", svd.values);
        let product = svd.left(0..2, 0.5).matmul(svd.right(0..2, 0.5));
        assert!(largest(product - a) < 1e-5);
    }
}
