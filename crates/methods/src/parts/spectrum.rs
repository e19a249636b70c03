//! Changes of a weight that are a linear function of a few trained values: what FourierFT, WaveFT
//! and SHiRA share. Each value stands at a place of the weight's size, drawn as HF PEFT draws it.

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::{Base, LinearInfo};

use crate::MethodError;
use crate::parts::torch_generator::TorchGenerator;

/// The largest matrix whose places are drawn as PyTorch draws them; it draws otherwise in larger
/// ones.
const LARGEST: usize = u32::MAX as usize / 20;

/// Checks that a layer's weight has room for `count` values, which the setting `key` gives as
/// `given`.
pub(crate) fn check_count(
    method: &'static str,
    (key, given): (&'static str, usize),
    count: usize,
    linear: &LinearInfo,
    base: &Base,
) -> Result<(), MethodError> {
    let (path, size) = (&linear.site.path, linear.inputs * linear.outputs);
    if size >= LARGEST {
        return Err(MethodError::NotApplicable {
            method,
            model_type: base.dimensions.model_type.clone(),
            reason: format!(
                "`{path}` has {size} values, and places are drawn among {LARGEST} at most"
            ),
        });
    }
    match (1..=size).contains(&count) {
        true => Ok(()),
        false => Err(MethodError::Value {
            method,
            key,
            value: given.to_string(),
            expected: format!("that is {count} values of the {size} that `{path}` has"),
        }),
    }
}

/// The places of `count` values in a matrix of this size, row-major, drawn from a seed with
/// `torch.randperm`.
pub(crate) fn places(size: [usize; 2], count: usize, seed: u64) -> Vec<usize> {
    TorchGenerator::new(seed).permutation(size[0] * size[1], count)
}

/// A matrix of which each entry is a sum of trained values times constants, most of them without
/// any.
#[derive(Clone, Debug)]
pub(crate) struct SparseMap {
    shape: [usize; 2],
    /// Which value each term has; none where every value has one term, in order.
    values: Option<Tensor<1, Int>>,
    /// Where each term is added.
    places: Tensor<1, Int>,
    /// What each term is multiplied by.
    factors: Option<Tensor<1>>,
}

/// A term of [`SparseMap`]: value, place and factor.
pub(crate) type Term = (usize, usize, f64);

impl SparseMap {
    /// Value by value at these places, which 32 bits can number.
    pub(crate) fn at(shape: [usize; 2], places: Vec<i32>, device: &Device) -> Self {
        let count = places.len();
        let places = Tensor::from_data(TensorData::new(places, [count]), device);
        Self {
            shape,
            values: None,
            places,
            factors: None,
        }
    }

    /// These terms.
    pub(crate) fn of(shape: [usize; 2], terms: &[Term], device: &Device) -> Self {
        let indices = |of: fn(&Term) -> usize| {
            let indices: Vec<i32> = terms.iter().map(|term| of(term) as i32).collect();
            Tensor::from_data(TensorData::new(indices, [terms.len()]), device)
        };
        let factors: Vec<f32> = terms.iter().map(|term| term.2 as f32).collect();
        let factors = Tensor::from_data(TensorData::new(factors, [terms.len()]), device);
        Self {
            shape,
            values: Some(indices(|term| term.0)),
            places: indices(|term| term.1),
            factors: Some(factors),
        }
    }

    /// The matrix, flat.
    pub(crate) fn apply(&self, values: Tensor<1>) -> Tensor<1> {
        let terms = match &self.values {
            Some(which) => values.select(0, which.clone()),
            None => values,
        };
        let terms = match &self.factors {
            Some(factors) => terms * factors.clone(),
            None => terms,
        };
        let [rows, columns] = self.shape;
        let matrix = Tensor::zeros([rows * columns], &self.places.device());
        matrix.select_assign(0, self.places.clone(), terms, IndexingUpdateOp::Add)
    }
}
