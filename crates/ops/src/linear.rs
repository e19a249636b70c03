//! Linear layers `y = x Wᵀ + b`, over a weight that is frozen or trained.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use burn::tensor::{Device, Int, Tensor, TensorData};
use epiphyte_kernels::gemm::{self, Epilogue, Operand, PackedWeight, matmul};
use epiphyte_kernels::memory::uninit_buffer;
use epiphyte_kernels::quantized::QuantizedWeight;
use epiphyte_kernels::{columns, embedding};
use serde::{Deserialize, Serialize};

use crate::fused::{Fused, Gradient, Kept, Wanted, apply, on_processor, uses_fused};
use crate::{OpsError, Quantization};

/// Data type in which a frozen matrix is stored and multiplied: `f32` or `bf16` in files and flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floating point throughout.
    #[default]
    F32,
    /// Frozen matrices in bfloat16 (half the memory, products on bf16 units where the processor has
    /// them); everything else stays f32.
    Bf16,
}

impl FromStr for Precision {
    type Err = OpsError;

    fn from_str(name: &str) -> Result<Self, OpsError> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            _ => Err(OpsError::UnknownPrecision(name.to_owned())),
        }
    }
}

impl Precision {
    /// Checks that frozen matrices can be stored in this format on `device`.
    ///
    /// # Errors
    /// [`OpsError::Bf16OnGpu`].
    pub fn check(self, device: &Device) -> Result<(), OpsError> {
        if self == Self::Bf16 && !on_processor(device) {
            return Err(OpsError::Bf16OnGpu);
        }
        Ok(())
    }
}

/// A matrix `[rows, columns]` of the base model that gets no gradient.
///
/// It is packed when it is first used: one that a method replaces takes no memory. Cloning shares
/// the values.
#[derive(Clone)]
pub struct FrozenMatrix {
    shape: [usize; 2],
    precision: Precision,
    quantization: Option<Quantization>,
    device: Device,
    source: Origin,
    values: Arc<OnceLock<Values>>,
}

/// Where the values of a frozen matrix come from.
#[derive(Clone)]
enum Origin {
    /// They were given, and are in memory.
    Given,
    Values(Arc<Source>),
    Quantized(Arc<QuantizedSource>),
}

/// A function that returns a range of the row-major values of a frozen matrix, whole rows, the same
/// on each call.
pub type Source = dyn Fn(Range<usize>) -> Vec<f32> + Send + Sync;

/// A function that returns a quantized weight, the same on each call. In use its codes are in
/// another order; so nothing keeps what it returns.
pub type QuantizedSource = dyn Fn() -> QuantizedWeight + Send + Sync;

/// On the CPU packed once, for the forward and the backward pass; elsewhere a tensor.
#[derive(Debug)]
enum Values {
    Packed(PackedWeight),
    Dense(Tensor<2>),
}

impl FrozenMatrix {
    /// A frozen matrix from row-major values.
    ///
    /// # Errors
    /// [`OpsError::Shape`] if there are not `rows * columns` values; as [`Precision::check`].
    pub fn new(
        values: Vec<f32>,
        shape: [usize; 2],
        precision: Precision,
        device: &Device,
    ) -> Result<Self, OpsError> {
        if values.len() != shape[0] * shape[1] {
            return Err(OpsError::Shape {
                what: "frozen matrix",
                expected: shape.to_vec(),
                found: vec![values.len()],
            });
        }
        let matrix = Self::from_source(Arc::new(|_| Vec::new()), shape, precision, device)?;
        let ordered = matrix.packed_from(|range| &values[range]);
        Ok(Self {
            source: Origin::Given,
            values: Arc::new(ordered.into()),
            ..matrix
        })
    }

    /// A frozen matrix whose `rows * columns` values `source` returns when they are needed, the
    /// same on each call.
    ///
    /// # Errors
    /// As [`Precision::check`].
    pub fn from_source(
        source: Arc<Source>,
        shape: [usize; 2],
        precision: Precision,
        device: &Device,
    ) -> Result<Self, OpsError> {
        precision.check(device)?;
        Ok(Self {
            shape,
            precision,
            quantization: None,
            device: device.clone().inner(),
            source: Origin::Values(source),
            values: Arc::default(),
        })
    }

    /// A frozen matrix of a tensor's values, in f32.
    pub fn of_tensor(tensor: Tensor<2>) -> Self {
        let tensor = tensor.inner();
        let (shape, device) = (tensor.dims(), tensor.device());
        Self::new(read(tensor), shape, Precision::F32, &device).expect("f32 values of this shape")
    }

    /// A frozen matrix of other values, in the number format of this one and not quantized.
    pub fn with_values(&self, values: Tensor<2>) -> Self {
        let shape = values.dims();
        let matrix = Self::new(read(values.inner()), shape, self.precision, &self.device);
        matrix.expect("a format of this device")
    }

    /// A frozen matrix that is quantized already: `source` returns the weight of this shape and
    /// format when it is needed, the same on each call.
    ///
    /// # Errors
    /// As [`Precision::check`] and [`Quantization::check`].
    pub fn from_quantized(
        source: Arc<QuantizedSource>,
        shape: [usize; 2],
        quantization: Quantization,
        precision: Precision,
        device: &Device,
    ) -> Result<Self, OpsError> {
        precision.check(device)?;
        quantization.check(device)?;
        Ok(Self {
            shape,
            precision,
            quantization: Some(quantization),
            device: device.clone().inner(),
            source: Origin::Quantized(source),
            values: Arc::default(),
        })
    }

    /// The matrix, quantized when it is first used; as it is if it is quantized already.
    ///
    /// # Errors
    /// As [`Quantization::check`].
    pub fn quantized(self, quantization: Quantization) -> Result<Self, OpsError> {
        quantization.check(&self.device)?;
        let source = match &self.source {
            Origin::Quantized(_) => return Ok(self),
            Origin::Values(source) => Arc::clone(source),
            Origin::Given => {
                let values = read(self.to_tensor());
                Arc::new(move |range: Range<usize>| values[range].to_vec()) as Arc<Source>
            }
        };
        Ok(Self {
            source: Origin::Values(source),
            quantization: Some(quantization),
            values: Arc::default(),
            ..self
        })
    }

    /// The matrix as it is before it is first used: it takes memory of its own when it is. One of
    /// given values stays as it is.
    #[must_use]
    pub fn unread(&self) -> Self {
        match self.source {
            Origin::Given => self.clone(),
            Origin::Values(_) | Origin::Quantized(_) => Self {
                values: Arc::default(),
                ..self.clone()
            },
        }
    }

    /// Bytes of memory that the values take; none before they are used.
    pub fn bytes(&self) -> usize {
        match self.values.get() {
            None => 0,
            Some(Values::Packed(packed)) => packed.bytes(),
            Some(Values::Dense(dense)) => dense.dims().iter().product::<usize>() * size_of::<f32>(),
        }
    }

    /// In which format the matrix is quantized, if it is.
    pub fn quantization(&self) -> Option<Quantization> {
        self.quantization
    }

    /// Whether it is quantized and its values before that are known.
    pub fn was_quantized_here(&self) -> bool {
        self.quantization.is_some() && matches!(self.source, Origin::Values(_))
    }

    /// The quantized weight, if the matrix is quantized.
    pub fn to_quantized(&self) -> Option<QuantizedWeight> {
        match &self.source {
            Origin::Quantized(source) => Some(source()),
            Origin::Values(source) => {
                let values = |range: Range<usize>| source(range);
                Some(self.quantize(values, self.quantization?))
            }
            Origin::Given => None,
        }
    }

    /// `values`, as [`FrozenMatrix::packed_from`] has them, in `format`.
    fn quantize<V: AsRef<[f32]>>(
        &self,
        values: impl Fn(Range<usize>) -> V + Sync,
        format: Quantization,
    ) -> QuantizedWeight {
        let columns = self.shape[1];
        let of_rows = |rows: Range<usize>| values(rows.start * columns..rows.end * columns);
        QuantizedWeight::quantize(of_rows, self.shape, format.into())
    }

    /// The values as a tensor `[rows, columns]` as they are before they are quantized, if the
    /// source has them: what a copy that is trained starts from.
    pub fn to_unquantized_tensor(&self) -> Tensor<2> {
        match self.source {
            Origin::Values(_) if self.quantization.is_some() => Self {
                quantization: None,
                values: Arc::default(),
                ..self.clone()
            }
            .to_tensor(),
            _ => self.to_tensor(),
        }
    }

    /// Rows and columns; for a linear layer, its outputs and inputs.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Where the matrix is.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The values as a tensor `[rows, columns]`.
    pub fn to_tensor(&self) -> Tensor<2> {
        let tensor = |values: &Values| match values {
            Values::Packed(packed) => {
                Tensor::from_data(TensorData::new(packed.unpack(), self.shape), &self.device)
            }
            Values::Dense(dense) => dense.clone(),
        };
        match self.values.get() {
            Some(values) => tensor(values),
            // As they would be in use, with roundings.
            None => tensor(&self.ordered()),
        }
    }

    /// The values in use.
    fn values(&self) -> &Values {
        self.values.get_or_init(|| self.ordered())
    }

    /// The values in the form in which products read them.
    fn ordered(&self) -> Values {
        match &self.source {
            Origin::Given => unreachable!("values that were given are in memory"),
            Origin::Values(source) => self.packed_from(|range| source(range)),
            Origin::Quantized(source) => {
                let precision = self.precision.into();
                Values::Packed(PackedWeight::quantized(&source(), precision))
            }
        }
    }

    /// [`FrozenMatrix::ordered`], where `values` are those of a range of the row-major ones.
    fn packed_from<V: AsRef<[f32]>>(&self, values: impl Fn(Range<usize>) -> V + Sync) -> Values {
        let [rows, columns] = self.shape;
        if on_processor(&self.device) {
            let precision = self.precision.into();
            return Values::Packed(match self.quantization {
                Some(format) => PackedWeight::quantized(&self.quantize(values, format), precision),
                None => {
                    let of_rows =
                        |rows: Range<usize>| values(rows.start * columns..rows.end * columns);
                    PackedWeight::pack_rows(of_rows, rows, columns, precision)
                }
            });
        }
        let values = values(0..rows * columns);
        Values::Dense(Tensor::from_data(
            TensorData::new(values.as_ref().to_vec(), self.shape),
            &self.device,
        ))
    }

    /// The rows with the given numbers, `[ids, columns]`: an embedding look-up.
    pub fn gather(&self, ids: &[u32]) -> Tensor<2> {
        let columns = self.shape[1];
        match self.values() {
            Values::Packed(packed) => {
                let mut rows = vec![0.0; ids.len() * columns];
                for (&id, row) in ids.iter().zip(rows.chunks_mut(columns.max(1))) {
                    packed
                        .row(id as usize, row)
                        .expect("token ids are below the vocabulary");
                }
                Tensor::from_data(TensorData::new(rows, [ids.len(), columns]), &self.device)
            }
            Values::Dense(dense) => gather(dense.clone(), ids),
        }
    }

    /// The packed weight, where there is one.
    pub(crate) fn packed(&self) -> Option<&PackedWeight> {
        match self.values() {
            Values::Packed(packed) => Some(packed),
            Values::Dense(_) => None,
        }
    }
}

/// The values of a tensor, row-major.
fn read(tensor: Tensor<2>) -> Vec<f32> {
    let values = tensor.try_into_vec_as::<f32>();
    values.expect("an f32 tensor on a device that can be read")
}

impl fmt::Debug for FrozenMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            shape,
            precision,
            quantization,
            ..
        } = self;
        f.debug_struct("FrozenMatrix")
            .field("shape", shape)
            .field("precision", precision)
            .field("quantization", quantization)
            .finish_non_exhaustive()
    }
}

impl From<Precision> for gemm::Precision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// The weight of a linear layer or an embedding table: frozen, or a tensor that may be trained.
#[derive(Clone, Debug)]
pub enum Weight {
    /// A matrix of the base.
    Frozen(FrozenMatrix),
    /// A tensor `[out, in]` in its place.
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
    let bias_fused = bias.as_ref().is_none_or(uses_fused);
    match weight {
        Weight::Frozen(matrix) if matrix.packed().is_some() && uses_fused(&x) && bias_fused => {
            let tokens = x.dims()[0];
            let op = FrozenLinear {
                matrix: matrix.clone(),
                tokens,
            };
            match bias {
                Some(bias) => apply(op, [x.into(), bias.into()]),
                None => apply(op, [x.into()]),
            }
        }
        Weight::Trained(weight) if uses_fused(&x) && uses_fused(weight) && bias_fused => {
            let ([tokens, inputs], [outputs, _]) = (x.dims(), weight.dims());
            let op = TrainedLinear {
                tokens,
                inputs,
                outputs,
            };
            match bias {
                Some(bias) => apply(op, [x.into(), weight.clone().into(), bias.into()]),
                None => apply(op, [x.into(), weight.clone().into()]),
            }
        }
        weight => {
            let y = x.matmul(weight.to_tensor().transpose());
            match bias {
                Some(bias) => y + bias.unsqueeze::<2>(),
                None => y,
            }
        }
    }
}

/// `x Wᵀ`, or with a second operand `x Wᵀ + b`, over a packed weight.
#[derive(Clone, Debug)]
struct FrozenLinear {
    matrix: FrozenMatrix,
    tokens: usize,
}

impl FrozenLinear {
    fn packed(&self) -> &PackedWeight {
        self.matrix
            .packed()
            .expect("`linear` chose this operation for a packed weight")
    }
}

impl<const N: usize> Fused<N> for FrozenLinear {
    type Saved = ();

    fn forward(&self, inputs: [&[f32]; N]) -> (Vec<f32>, ()) {
        let mut y = uninit_buffer(self.tokens * self.matrix.shape[0]);
        let epilogue = Epilogue {
            bias: inputs.get(1).copied(),
            ..Epilogue::default()
        };
        self.packed()
            .forward(inputs[0], epilogue, &mut y)
            .expect(SHAPES);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.tokens, self.matrix.shape[0]]
    }

    fn saved_operands(&self, _tracked: Wanted<N>, _saved: &()) -> (Wanted<N>, bool) {
        ([false; N], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, N, ()>,
        gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        std::array::from_fn(|operand| match operand {
            0 if wanted[0] => {
                let mut dx = uninit_buffer(self.tokens * self.matrix.shape[1]);
                self.packed()
                    .backward_input(&gradient, None, &mut dx, false)
                    .expect(SHAPES);
                Some(dx.into())
            }
            1 if wanted[1] => Some(column_sums(&gradient, self.matrix.shape[0])),
            _ => None,
        })
    }
}

/// `x Wᵀ`, or with a third operand `x Wᵀ + b`, over a weight that is trained.
#[derive(Clone, Debug)]
struct TrainedLinear {
    tokens: usize,
    inputs: usize,
    outputs: usize,
}

impl<const N: usize> Fused<N> for TrainedLinear {
    type Saved = ();

    fn forward(&self, operands: [&[f32]; N]) -> (Vec<f32>, ()) {
        let Self {
            tokens,
            inputs,
            outputs,
        } = *self;
        let [x, w] = [operands[0], operands[1]];
        let mut y = uninit_buffer(tokens * outputs);
        let shape = [tokens, inputs, outputs];
        match operands.get(2) {
            Some(bias) => gemm::affine(shape, x, w, bias, &mut y),
            None => {
                let (x, w) = (Operand::Plain(x), Operand::Transposed(w));
                matmul(shape, 1.0, x, w, 0.0, &mut y)
            }
        }
        .expect(SHAPES);
        (y, ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.tokens, self.outputs]
    }

    fn saved_operands(&self, tracked: Wanted<N>, _saved: &()) -> (Wanted<N>, bool) {
        (
            std::array::from_fn(|operand| operand < 2 && tracked[1 - operand]),
            false,
        )
    }

    fn backward(
        &self,
        kept: Kept<'_, N, ()>,
        gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N] {
        let Self {
            tokens,
            inputs,
            outputs,
        } = *self;
        std::array::from_fn(|operand| match operand {
            0 if wanted[0] => {
                let (g, w) = (Operand::Plain(&gradient), Operand::Plain(kept.inputs[1]));
                Some(product([tokens, outputs, inputs], 1.0, g, w).into())
            }
            1 if wanted[1] => {
                let (g, x) = (
                    Operand::Transposed(&gradient),
                    Operand::Plain(kept.inputs[0]),
                );
                Some(product([outputs, tokens, inputs], 1.0, g, x).into())
            }
            2 if wanted[2] => Some(column_sums(&gradient, outputs)),
            _ => None,
        })
    }
}

/// Operands are checked where tensors are made; a kernel that still refuses one is a bug here.
pub(crate) const SHAPES: &str = "the operation computes its shapes from its operands";

/// `alpha a b` in new memory.
pub(crate) fn product(shape: [usize; 3], alpha: f32, a: Operand<'_>, b: Operand<'_>) -> Vec<f32> {
    let mut c = uninit_buffer(shape[0] * shape[2]);
    matmul(shape, alpha, a, b, 0.0, &mut c).expect(SHAPES);
    c
}

/// The sum of each column of a row-major matrix: the gradient of a bias.
pub(crate) fn column_sums(matrix: &[f32], columns: usize) -> Gradient {
    let mut sums = vec![0.0; columns];
    columns::sums(matrix, None, &mut sums).expect(SHAPES);
    sums.into()
}

fn gather(table: Tensor<2>, ids: &[u32]) -> Tensor<2> {
    if uses_fused(&table) {
        let op = Gather {
            table: table.dims(),
            ids: ids.iter().map(|&id| i64::from(id)).collect(),
        };
        return apply(op, [table.into()]);
    }
    let indices = index(
        ids.iter().map(|&id| id as usize),
        ids.len(),
        &table.device(),
    );
    table.select(0, indices)
}

/// Rows of a table; the gradient goes back to them.
#[derive(Clone, Debug)]
struct Gather {
    table: [usize; 2],
    ids: Vec<i64>,
}

impl Fused<1> for Gather {
    type Saved = ();

    fn forward(&self, [table]: [&[f32]; 1]) -> (Vec<f32>, ()) {
        let width = self.table[1];
        let mut rows = uninit_buffer(self.ids.len() * width);
        embedding::gather(table, width, &self.ids, &mut rows)
            .expect("token ids are below the vocabulary");
        (rows, ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![self.ids.len(), self.table[1]]
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &()) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        gradient: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        let [rows, width] = self.table;
        [wanted.then(|| {
            let mut d_table = vec![0.0; rows * width];
            embedding::scatter_add(&gradient, width, &self.ids, &mut d_table).expect(SHAPES);
            d_table.into()
        })]
    }
}

/// A tensor of row numbers.
pub(crate) fn index(
    rows: impl Iterator<Item = usize>,
    count: usize,
    device: &Device,
) -> Tensor<1, Int> {
    let rows: Vec<i32> = rows.map(|row| row as i32).collect();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// The rows of `x` with the given numbers, in that order; gradients flow back to them.
///
/// # Shapes
/// - `x`: `[tokens, hidden]`
/// - result: `[rows, hidden]`
pub fn rows(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let indices = index(rows.iter().copied(), rows.len(), &x.device());
    x.select(0, indices)
}
