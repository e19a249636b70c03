//! Linear maps `y = x Wᵀ + b`, over a weight that is frozen or trained.

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor, TensorData};

use crate::OpsError;

/// In which type a frozen matrix is kept and multiplied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floating point throughout.
    #[default]
    F32,
    /// Frozen matrices in bfloat16 (half the memory, products on bf16 units where the processor has
    /// them); everything else stays f32.
    Bf16,
}

/// A matrix `[rows, columns]` of the base model that no gradient is wanted for.
///
/// Cloning shares the values.
#[derive(Clone, Debug)]
pub struct FrozenMatrix {
    rows: usize,
    columns: usize,
    values: Arc<Values>,
}

#[derive(Debug)]
enum Values {
    Dense(Tensor<2>),
}

impl FrozenMatrix {
    /// A frozen matrix from row-major values.
    ///
    /// # Errors
    /// [`OpsError::Shape`] if there are not `rows * columns` values.
    pub fn new(
        values: Vec<f32>,
        [rows, columns]: [usize; 2],
        _precision: Precision,
        device: &Device,
    ) -> Result<Self, OpsError> {
        if values.len() != rows * columns {
            return Err(OpsError::Shape {
                what: "frozen matrix",
                expected: vec![rows, columns],
                found: vec![values.len()],
            });
        }
        let dense = Tensor::from_data(TensorData::new(values, [rows, columns]), &device.clone().inner());
        Ok(Self { rows, columns, values: Arc::new(Values::Dense(dense)) })
    }

    /// Rows and columns; for a linear map, its outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.columns]
    }

    /// The values as a tensor `[rows, columns]`.
    pub fn to_tensor(&self) -> Tensor<2> {
        match &*self.values {
            Values::Dense(dense) => dense.clone(),
        }
    }

    /// The rows with the given numbers, `[ids, columns]`: an embedding look-up.
    pub fn gather(&self, ids: &[u32]) -> Tensor<2> {
        match &*self.values {
            Values::Dense(dense) => gather(dense.clone(), ids),
        }
    }
}

/// The weight of a linear map or an embedding table: frozen, or a tensor that may be trained.
#[derive(Clone, Debug)]
pub enum Weight {
    /// A matrix of the base.
    Frozen(FrozenMatrix),
    /// A tensor `[out, in]` that stands in its place.
    Trained(Tensor<2>),
}

impl Weight {
    /// Outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            Self::Frozen(matrix) => matrix.shape(),
            Self::Trained(tensor) => tensor.dims(),
        }
    }

    /// The values as a tensor `[out, in]`.
    pub fn to_tensor(&self) -> Tensor<2> {
        match self {
            Self::Frozen(matrix) => matrix.to_tensor(),
            Self::Trained(tensor) => tensor.clone(),
        }
    }

    /// The rows with the given numbers, `[ids, in]`; a trained table receives their gradients.
    pub fn gather(&self, ids: &[u32]) -> Tensor<2> {
        match self {
            Self::Frozen(matrix) => matrix.gather(ids),
            Self::Trained(tensor) => gather(tensor.clone(), ids),
        }
    }
}

/// `x Wᵀ + b`.
///
/// # Shapes
/// - `x`: `[tokens, in]`
/// - `weight`: `[out, in]`
/// - `bias`: `[out]`
/// - result: `[tokens, out]`
pub fn linear(x: Tensor<2>, weight: &Weight, bias: Option<Tensor<1>>) -> Tensor<2> {
    let y = x.matmul(weight.to_tensor().transpose());
    match bias {
        Some(bias) => y + bias.unsqueeze::<2>(),
        None => y,
    }
}

/// `y + scale · (x Aᵀ) Bᵀ`: a low-rank path beside a linear map (Hu et al. 2021, section 4.1).
///
/// # Shapes
/// - `y`: `[tokens, out]`
/// - `x`: `[tokens, in]`
/// - `a`: `[rank, in]`
/// - `b`: `[out, rank]`
/// - result: `[tokens, out]`
pub fn add_low_rank(y: Tensor<2>, x: Tensor<2>, a: Tensor<2>, b: Tensor<2>, scale: f32) -> Tensor<2> {
    y + x.matmul(a.transpose()).matmul(b.transpose()) * scale
}

fn gather(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let indices = index(ids.iter().map(|&id| id as usize), ids.len(), &table.device());
    table.select(0, indices)
}

/// A tensor of row numbers.
pub(crate) fn index(rows: impl Iterator<Item = usize>, count: usize, device: &Device) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.map(|row| row as i32).collect();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// The rows of `x` with the given numbers, in that order; gradients flow back to them.
///
/// # Shapes
/// - `x`: `[tokens, width]`
/// - result: `[rows, width]`
pub fn rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let indices = index(rows.iter().copied(), rows.len(), &x.device());
    x.select(0, indices)
}
