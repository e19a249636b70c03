//! The tensors that a method trains.

use std::sync::{Arc, RwLock};

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::seam::name_id;
use epiphyte_ops::random;

/// How a parameter starts.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "it lives for one call")]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// The bound.
        bound: f64,
    },
    /// Normal with mean zero.
    Normal {
        /// The standard deviation.
        std: f64,
    },
    /// Normal with mean zero, cut at two standard deviations.
    TruncatedNormal {
        /// The standard deviation before the cut.
        std: f64,
    },
    /// Given values, row-major.
    Values(Vec<f32>),
    /// A tensor of the base, or rows of one, flat; memory is shared until the first step.
    Base(Tensor<1>),
}

/// A trained tensor. Clones are handles to the same tensor, so layers may share one.
///
/// Values are kept flat; [`Param::get`] gives them their shape. While the set that it belongs to is
/// tracked, the tensor is a leaf of autodiff.
#[derive(Clone, Debug)]
pub struct Param(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    key: String,
    shape: Vec<usize>,
    value: RwLock<Tensor<1>>,
}

impl Param {
    /// The key under which files store it, without the prefix that all keys share.
    pub fn key(&self) -> &str {
        &self.0.key
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// The values as they are now, flat.
    pub fn flat(&self) -> Tensor<1> {
        self.0
            .value
            .read()
            .expect("no holder of the lock panics")
            .clone()
    }

    /// The values as they are now, in shape.
    ///
    /// # Panics
    /// If `D` is not the rank.
    pub fn get<const D: usize>(&self) -> Tensor<D> {
        let shape: [usize; D] = self
            .0
            .shape
            .as_slice()
            .try_into()
            .expect("rank of the parameter");
        self.flat().reshape(shape)
    }

    /// Puts other values, flat and without autodiff, in place.
    pub fn set(&self, value: Tensor<1>) {
        self.update(|_| value);
    }

    /// Puts what `change` makes of the values, flat and without autodiff, in place. `change` is their
    /// only holder, so it may work in place.
    pub fn update(&self, change: impl FnOnce(Tensor<1>) -> Tensor<1>) {
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        let tracked = slot.is_autodiff();
        let nothing = Tensor::empty([0], &slot.device().inner());
        let value = change(std::mem::replace(&mut *slot, nothing).inner());
        *slot = if tracked {
            value.autodiff().require_grad()
        } else {
            value
        };
    }

    fn track(&self, tracked: bool) {
        let mut slot = self.0.value.write().expect("no holder of the lock panics");
        let plain = slot.clone().inner();
        *slot = if tracked {
            plain.autodiff().require_grad()
        } else {
            plain
        };
    }

    /// The values as they are now, in memory.
    pub fn to_vec(&self) -> Vec<f32> {
        let values = self.flat().inner().try_into_vec_as::<f32>();
        values.expect("parameters are f32 and on a device that can be read")
    }
}

/// All tensors that a run trains, in the order in which they were declared.
#[derive(Debug)]
pub struct ParameterSet {
    device: Device,
    seed: u64,
    params: Vec<Param>,
}

impl ParameterSet {
    /// An empty set. What a parameter draws at random depends on `seed` and its key alone.
    pub fn new(device: &Device, seed: u64) -> Self {
        Self {
            device: device.clone().inner(),
            seed,
            params: Vec::new(),
        }
    }

    /// Declares a trained tensor.
    ///
    /// # Panics
    /// If given values do not fill the shape, or the key is declared already.
    pub fn declare(&mut self, key: impl Into<String>, shape: &[usize], init: Init) -> Param {
        let key = key.into();
        assert!(self.get(&key).is_none(), "`{key}` is declared twice");
        let count = shape.iter().product();
        let draw = self.seed ^ name_id(&key);
        let tensor = |values: Vec<f32>| {
            let found = values.len();
            assert_eq!(found, count, "`{key}` has shape {shape:?}");
            Tensor::from_data(TensorData::new(values, [count]), &self.device)
        };
        let value = match init {
            Init::Zeros => tensor(vec![0.0; count]),
            Init::Ones => tensor(vec![1.0; count]),
            Init::Uniform { bound } => tensor(random::uniform(draw, count, -bound, bound)),
            Init::Normal { std } => tensor(random::normal(draw, count, std)),
            Init::TruncatedNormal { std } => tensor(random::truncated_normal(draw, count, std)),
            Init::Values(values) => tensor(values),
            Init::Base(values) => values,
        };
        let param = Param(Arc::new(Inner {
            key,
            shape: shape.to_vec(),
            value: RwLock::new(value),
        }));
        self.params.push(param.clone());
        param
    }

    /// Turns gradients of all parameters on or off.
    pub fn track(&self, tracked: bool) {
        for param in &self.params {
            param.track(tracked);
        }
    }

    /// The parameter of a key.
    pub fn get(&self, key: &str) -> Option<&Param> {
        self.params.iter().find(|param| param.key() == key)
    }

    /// All parameters.
    pub fn iter(&self) -> std::slice::Iter<'_, Param> {
        self.params.iter()
    }

    /// How many values all parameters hold together.
    pub fn count(&self) -> usize {
        self.params.iter().map(Param::count).sum()
    }

    /// The seed from which methods draw what is not a parameter.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Where the parameters are.
    pub fn device(&self) -> &Device {
        &self.device
    }
}
