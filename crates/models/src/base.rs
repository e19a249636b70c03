//! The frozen tensors of a model and what a method may know about them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_ops::{FrozenMatrix, Precision, Sequences, Source as Values, Weight};

use crate::ModelError;
use crate::seam::{Adapter, Identity, Place, Product, Role, Site};

/// Where the values of a base come from: a checkpoint, or an initialiser.
pub(crate) trait Source {
    /// What gives the values of tensor `name`, row-major.
    ///
    /// # Errors
    /// If the source has no such tensor, or has it in another shape or type.
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError>;
}

/// One frozen tensor.
#[derive(Clone, Debug)]
pub enum BaseTensor {
    /// A bias, a norm's scale: `[width]`.
    Vector(Tensor<1>),
    /// A linear map `[out, in]`, an embedding table `[rows, width]`.
    Matrix(FrozenMatrix),
}

impl BaseTensor {
    /// The shape.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(vector) => vector.dims().to_vec(),
            Self::Matrix(matrix) => matrix.shape().to_vec(),
        }
    }

    /// How many values there are.
    pub fn count(&self) -> usize {
        self.shape().iter().product()
    }

    /// The values, row-major, in memory.
    pub fn to_vec(&self) -> Vec<f32> {
        let values = self.to_flat().try_into_vec_as::<f32>();
        values.expect("a base is f32 and on a device that can be read")
    }

    /// The values, flat.
    pub fn to_flat(&self) -> Tensor<1> {
        match self {
            Self::Vector(vector) => vector.clone(),
            Self::Matrix(matrix) => {
                let [rows, columns] = matrix.shape();
                matrix.to_tensor().reshape([rows * columns])
            }
        }
    }
}

/// A linear map of the base, as methods see it.
#[derive(Clone, Debug)]
pub struct LinearInfo {
    /// Where it stands.
    pub site: Site,
    /// Inputs.
    pub inputs: usize,
    /// Outputs.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
}

/// The measures of a model that methods need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Hugging Face's `model_type`, such as `bert`.
    pub model_type: String,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// The longest sequence, virtual tokens included.
    pub max_positions: usize,
}

/// Everything frozen: tensors under Hugging Face's names, and where the linear maps are.
#[derive(Clone, Debug)]
pub struct Base {
    /// The measures.
    pub dimensions: Dimensions,
    /// Name of the word embedding table.
    pub word_embeddings: String,
    /// Path of the task's head, trained and saved with every adapter; none for language models.
    pub task_head: Option<String>,
    tensors: BTreeMap<String, BaseTensor>,
    below: BTreeSet<String>,
    linears: Vec<LinearInfo>,
}

impl Base {
    /// All tensors by name.
    pub fn tensors(&self) -> &BTreeMap<String, BaseTensor> {
        &self.tensors
    }

    /// The tensor of a name.
    pub fn tensor(&self, name: &str) -> Option<&BaseTensor> {
        self.tensors.get(name)
    }

    /// All linear maps, in the order in which the model applies them.
    pub fn linears(&self) -> &[LinearInfo] {
        &self.linears
    }

    /// How many values the base holds, the task's head not counted.
    pub fn count(&self) -> usize {
        self.tensors
            .iter()
            .filter(|(name, _)| !self.is_of_head(name))
            .map(|(_, tensor)| tensor.count())
            .sum()
    }

    /// Whether a tensor belongs to the task's head.
    pub fn is_of_head(&self, name: &str) -> bool {
        let Some(head) = &self.task_head else {
            return false;
        };
        name.strip_prefix(head.as_str())
            .is_some_and(|rest| rest.starts_with('.'))
    }

    /// The lowest layer whose result depends on tensor `name`: 0 for embeddings, the number of layers for what
    /// follows the last.
    pub fn first_layer_of(&self, name: &str) -> usize {
        match Self::layer_of(name) {
            Some(layer) => layer,
            None if self.below.contains(name) => 0,
            None => self.dimensions.layers,
        }
    }

    /// The layer that tensor `name` belongs to, from the name's first number.
    pub fn layer_of(name: &str) -> Option<usize> {
        name.split('.').find_map(|part| part.parse().ok())
    }
}

/// Builds a [`Base`] tensor by tensor, from the embeddings up, and hands out the handles that a model keeps.
pub(crate) struct Builder<'a> {
    source: &'a mut dyn Source,
    shared: Option<&'a Base>,
    device: Device,
    precision: Precision,
    tensors: BTreeMap<String, BaseTensor>,
    below: BTreeSet<String>,
    layers_began: bool,
    linears: Vec<LinearInfo>,
    failures: Vec<ModelError>,
}

impl<'a> Builder<'a> {
    /// A builder that reads from `source` and puts tensors on `device`.
    pub(crate) fn new(source: &'a mut dyn Source, device: &Device, precision: Precision) -> Self {
        Self {
            source,
            shared: None,
            device: device.clone().inner(),
            precision,
            tensors: BTreeMap::new(),
            below: BTreeSet::new(),
            layers_began: false,
            linears: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Takes what `shared` has, its task's head aside, instead of reading it.
    pub(crate) fn sharing(self, shared: Option<&'a Base>) -> Self {
        Self { shared, ..self }
    }

    /// A vector of the base.
    pub(crate) fn vector(&mut self, name: &str, width: usize) -> Vector {
        let values = match self.place(name) {
            Some(BaseTensor::Vector(values)) => values.clone(),
            _ => {
                let values = self.open(name, &[width])();
                Tensor::from_data(TensorData::new(values, [width]), &self.device)
            }
        };
        self.tensors
            .insert(name.to_owned(), BaseTensor::Vector(values.clone()));
        Vector {
            name: name.to_owned(),
            values,
        }
    }

    /// A matrix of the base.
    pub(crate) fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Matrix {
        let values = match self.place(name) {
            Some(BaseTensor::Matrix(values)) => values.clone(),
            _ => {
                let source = self.open(name, &shape);
                FrozenMatrix::from_source(source, shape, self.precision, &self.device)
                    .expect("the precision was checked")
            }
        };
        self.tensors
            .insert(name.to_owned(), BaseTensor::Matrix(values.clone()));
        Matrix {
            name: name.to_owned(),
            values,
        }
    }

    /// A linear map of the base: `{path}.weight` and, if it has one, `{path}.bias`.
    pub(crate) fn linear(
        &mut self,
        path: &str,
        layer: Option<usize>,
        role: Role,
        shape: [usize; 2],
        bias: bool,
    ) -> Linear {
        let weight = self.matrix(&format!("{path}.weight"), shape);
        self.linear_over(weight, path, layer, role, bias)
    }

    /// A linear map at `path` over a matrix that exists already: a tied head.
    pub(crate) fn linear_over(
        &mut self,
        weight: Matrix,
        path: &str,
        layer: Option<usize>,
        role: Role,
        bias: bool,
    ) -> Linear {
        let [outputs, inputs] = weight.values.shape();
        let bias = bias.then(|| self.vector(&format!("{path}.bias"), outputs));
        let site = Site {
            path: path.to_owned(),
            layer,
            role,
        };
        self.linears.push(LinearInfo {
            site: site.clone(),
            inputs,
            outputs,
            bias: bias.is_some(),
        });
        Linear { site, weight, bias }
    }

    /// The finished base.
    ///
    /// # Errors
    /// Everything that could not be read, in one error.
    pub(crate) fn finish(
        self,
        dimensions: Dimensions,
        word_embeddings: &str,
        task_head: Option<&str>,
    ) -> Result<Base, ModelError> {
        if !self.failures.is_empty() {
            let loaded = self.tensors.len() - self.failures.len();
            return Err(ModelError::incomplete(
                loaded,
                self.tensors.len(),
                self.failures,
            ));
        }
        Ok(Base {
            dimensions,
            word_embeddings: word_embeddings.to_owned(),
            task_head: task_head.map(str::to_owned),
            tensors: self.tensors,
            below: self.below,
            linears: self.linears,
        })
    }

    /// Takes note of where tensor `name` stands, and returns it if another base shares it.
    fn place(&mut self, name: &str) -> Option<&'a BaseTensor> {
        self.layers_began |= Base::layer_of(name).is_some();
        if !self.layers_began {
            self.below.insert(name.to_owned());
        }
        let shared = self.shared?;
        shared.tensor(name).filter(|_| !shared.is_of_head(name))
    }

    /// Opens a tensor of the source; a failure is noted and zeros stand in, so that all are reported.
    fn open(&mut self, name: &str, shape: &[usize]) -> Arc<Values> {
        self.source.open(name, shape).unwrap_or_else(|failure| {
            self.failures.push(failure);
            let count = shape.iter().product();
            Arc::new(move || vec![0.0; count])
        })
    }
}

/// A vector of the base, for which an adapter may put another.
#[derive(Clone, Debug)]
pub(crate) struct Vector {
    name: String,
    values: Tensor<1>,
}

impl Vector {
    /// The place where an adapter puts another.
    pub(crate) fn place(&self) -> Place<'_> {
        Place::Parameter(&self.name)
    }

    /// The values to use in this pass.
    pub(crate) fn get(&self, adapter: &dyn Adapter) -> Tensor<1> {
        adapter
            .parameter(&self.name)
            .unwrap_or_else(|| self.values.clone())
    }
}

/// A matrix of the base, for which an adapter may put another.
#[derive(Clone, Debug)]
pub(crate) struct Matrix {
    name: String,
    values: FrozenMatrix,
}

impl Matrix {
    /// The values to use in this pass.
    pub(crate) fn get(&self, adapter: &dyn Adapter) -> Weight {
        match adapter.parameter(&self.name) {
            Some(values) => Weight::Trained(values.reshape(self.values.shape())),
            None => Weight::Frozen(self.values.clone()),
        }
    }
}

/// A linear map of the base with its places for adapters.
#[derive(Clone, Debug)]
pub struct Linear {
    site: Site,
    weight: Matrix,
    bias: Option<Vector>,
}

impl Linear {
    /// Where it stands.
    pub fn site(&self) -> &Site {
        &self.site
    }

    /// The map as the adapter has it.
    ///
    /// # Shapes
    /// - `x`: `[tokens, in]`
    /// - result: `[tokens, out]`
    pub fn forward(&self, x: Tensor<2>, adapter: &dyn Adapter, sequences: &Sequences) -> Tensor<2> {
        if let Some(group) = adapter.group() {
            return match self.places().any(|place| adapter.acts(place)) {
                true => group.linear(self, &x, sequences),
                false => self.frozen(x),
            };
        }
        let x = adapter.linear_input(&self.site, x, sequences);
        adapter.linear(&self.site, self.product(x, adapter), sequences)
    }

    /// The product with the weight and bias that the adapter has here.
    pub(crate) fn product(&self, x: Tensor<2>, adapter: &dyn Adapter) -> Product {
        let bias = self.bias.as_ref().map(|bias| bias.get(adapter));
        Product::pending(x, self.weight.get(adapter), bias)
    }

    /// The base's own map.
    pub(crate) fn frozen(&self, x: Tensor<2>) -> Tensor<2> {
        self.product(x, &Identity).compute()
    }

    /// Whether the adapter has a weight or bias of its own here.
    pub(crate) fn is_replaced(&self, adapter: &dyn Adapter) -> bool {
        let names = [
            Some(&self.weight.name),
            self.bias.as_ref().map(|bias| &bias.name),
        ];
        let mut names = names.into_iter().flatten();
        names.any(|name| adapter.parameter(name).is_some())
    }

    /// Where adapters may act on this map.
    fn places(&self) -> impl Iterator<Item = Place<'_>> {
        let weight = Place::Parameter(&self.weight.name);
        let bias = self.bias.as_ref().map(Vector::place);
        [Some(Place::Linear(&self.site)), Some(weight), bias]
            .into_iter()
            .flatten()
    }

    /// The weight to use in this pass, for a head whose loss is computed in pieces.
    pub fn weight(&self, adapter: &dyn Adapter) -> Weight {
        self.weight.get(adapter)
    }
}
