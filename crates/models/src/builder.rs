//! Builds the frozen base tensor by tensor, and hands out the handles that a model keeps.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_ops::{FrozenMatrix, Precision, Quantization, Source as Values};

use crate::ModelError;
use crate::adapter::{Role, Site};
use crate::base::{Base, BaseTensor, BaseValues, DefaultTargets, Depth, Dimensions, LinearInfo};
use crate::blocks::{LayerNames, LayerShape, Linear, Matrix, RelativeBiasShape, Vector};
use crate::keys::KeyRules;
use crate::quantized::Stored;
use crate::rope::RotaryEmbedding;

/// Where the values of a base come from: a checkpoint, or an initializer.
pub trait Source {
    /// What gives the values of tensor `name`, row-major, in Hugging Face's shape.
    ///
    /// # Errors
    /// If the source has no such tensor, or has it in another shape or type.
    fn open(&mut self, name: &str, shape: &[usize]) -> Result<Arc<Values>, ModelError>;

    /// The weight `[out, in]` of a linear layer, if the source has it in fewer bits.
    ///
    /// # Errors
    /// If parts of it are missing or do not fit.
    fn quantized(&mut self, _name: &str, _shape: [usize; 2]) -> Result<Option<Stored>, ModelError> {
        Ok(None)
    }

    /// Whether the source has the tensor; an initializer has every one.
    fn contains(&self, _name: &str) -> bool {
        true
    }
}

/// What a matrix of the base is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum MatrixKind {
    /// An embedding table.
    Table,
    /// The weight of a linear layer.
    Linear,
    /// The same, which Hugging Face stores as `[in, out]`.
    Conv1d,
}

/// What a [`Base`] says about itself beside its tensors.
pub(crate) struct Summary<'a> {
    pub(crate) dimensions: Dimensions,
    pub(crate) default_targets: DefaultTargets,
    pub(crate) word_embeddings: &'a str,
    pub(crate) prefix: &'static str,
    pub(crate) task_head: Option<&'a str>,
    /// Modules besides the head that the source lacks and that start at random.
    pub(crate) new_modules: Vec<&'a str>,
}

/// Builds a [`Base`], from the embeddings up.
///
/// A tensor whose name was built before is the same tensor, at the depth of its first use, and a
/// linear layer at the same path is listed once: layers may share their modules.
pub struct Builder<'a> {
    source: &'a mut dyn Source,
    shared: Option<&'a Base>,
    rules: KeyRules,
    device: Device,
    precision: Precision,
    quantization: Option<Quantization>,
    depth: Depth,
    tensors: BTreeMap<String, BaseTensor>,
    linears: Vec<LinearInfo>,
    /// How often each linear layer is used, by path.
    passes: BTreeMap<String, usize>,
    layer_shapes: Vec<LayerShape>,
    layer_names: Vec<(String, LayerNames)>,
    rotary: Option<RotaryEmbedding>,
    relative_biases: Vec<RelativeBiasShape>,
    failures: Vec<ModelError>,
}

impl<'a> Builder<'a> {
    /// A builder that reads from `source` and puts tensors on `device`.
    pub fn new(source: &'a mut dyn Source, device: &Device, precision: Precision) -> Self {
        Self {
            source,
            shared: None,
            rules: KeyRules {
                base_prefix: "",
                ignorable: &[],
            },
            device: device.clone().inner(),
            precision,
            quantization: None,
            depth: Depth::Embeddings,
            tensors: BTreeMap::new(),
            linears: Vec::new(),
            passes: BTreeMap::new(),
            layer_shapes: Vec::new(),
            layer_names: Vec::new(),
            rotary: None,
            relative_biases: Vec::new(),
            failures: Vec::new(),
        }
    }

    /// Quantizes the weights of linear layers, without those after the last layer: embeddings,
    /// heads and norms stay in the precision.
    pub(crate) fn quantized(self, quantization: Option<Quantization>) -> Self {
        Self {
            quantization,
            ..self
        }
    }

    /// Takes the tensors of `shared`, except its task's head, instead of reading them. Models with
    /// different heads may have or lack a prefix before the names of the same tensors.
    pub(crate) fn sharing(self, shared: Option<&'a Base>, rules: KeyRules) -> Self {
        Self {
            shared,
            rules,
            ..self
        }
    }

    /// Where in the model the tensors that follow are used.
    pub fn at(&mut self, depth: Depth) -> &mut Self {
        self.depth = depth;
        self
    }

    /// The layer that is being built.
    pub(crate) fn layer(&self) -> Option<usize> {
        match self.depth {
            Depth::Layer(layer) => Some(layer),
            Depth::Embeddings | Depth::Head => None,
        }
    }

    /// Notes the shape of the layer that is being built.
    pub(crate) fn layer_shape(&mut self, shape: LayerShape) {
        self.layer_shapes.push(shape);
    }

    /// Notes the path of the layer that is being built and the names below it, unless another layer
    /// has its modules too.
    pub(crate) fn layer_names(&mut self, path: &str, names: &LayerNames) {
        if self.layer_names.iter().all(|(other, _)| other != path) {
            self.layer_names.push((path.to_owned(), *names));
        }
    }

    /// Notes how queries and keys are rotated.
    pub(crate) fn rotary(&mut self, rotary: &RotaryEmbedding) {
        self.rotary = Some(rotary.clone());
    }

    /// Notes the bias of attention scores by relative positions, from this layer on.
    pub(crate) fn relative_bias(&mut self, shape: RelativeBiasShape) {
        self.relative_biases.push(shape);
    }

    /// Whether the source has a tensor.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.source.contains(name)
    }

    /// A vector of the base, `[size]`.
    pub(crate) fn vector(&mut self, name: &str, size: usize) -> Vector {
        self.new_vector(name, size, false)
    }

    /// The scale or shift of a norm, `[size]`.
    pub(crate) fn norm_vector(&mut self, name: &str, size: usize) -> Vector {
        self.new_vector(name, size, true)
    }

    /// A vector that is no tensor of the base, `[size]`.
    pub(crate) fn zeros(&self, size: usize) -> Tensor<1> {
        Tensor::zeros([size], &self.device)
    }

    fn new_vector(&mut self, name: &str, size: usize, is_norm: bool) -> Vector {
        let known = self.tensors.get(name).map(|tensor| &tensor.values);
        let values = match known.or_else(|| self.shared_tensor(name)) {
            Some(BaseValues::Vector(values)) => values.clone(),
            _ => {
                let values = self.open(name, &[size])(0..size);
                Tensor::from_data(TensorData::new(values, [size]), &self.device)
            }
        };
        self.insert(name, BaseValues::Vector(values.clone()), is_norm);
        Vector::new(name, values)
    }

    /// A matrix of the base: an embedding table `[rows, hidden]`.
    pub(crate) fn matrix(&mut self, name: &str, shape: [usize; 2]) -> Matrix {
        self.new_matrix(name, shape, MatrixKind::Table)
    }

    fn new_matrix(&mut self, name: &str, shape: [usize; 2], kind: MatrixKind) -> Matrix {
        let transposed = kind == MatrixKind::Conv1d;
        let known = self.tensors.get(name).map(|tensor| &tensor.values);
        let matrix = match known.or_else(|| self.shared_tensor(name)) {
            Some(BaseValues::Matrix { matrix, .. }) => matrix.clone(),
            _ => self.read_matrix(name, shape, kind),
        };
        let values = BaseValues::Matrix {
            matrix: matrix.clone(),
            transposed,
        };
        self.insert(name, values, false);
        Matrix::new(name, matrix, transposed)
    }

    fn read_matrix(&mut self, name: &str, shape: [usize; 2], kind: MatrixKind) -> FrozenMatrix {
        const CHECKED: &str = "precision and quantization were checked";
        let is_linear = kind != MatrixKind::Table;
        let mut unpacked: Option<Arc<Values>> = None;
        if is_linear {
            match self.source.quantized(name, shape) {
                // A GPU has no kernel for codes.
                Ok(Some(Stored::Quantized(format, weight)))
                    if format.check(&self.device).is_err() =>
                {
                    unpacked = Some(Arc::new(move |range: Range<usize>| {
                        let mut values = vec![0.0; range.len()];
                        weight().decode(range.start, &mut values);
                        values
                    }));
                }
                Ok(Some(Stored::Quantized(format, weight))) => {
                    let (precision, device) = (self.precision, &self.device);
                    let matrix =
                        FrozenMatrix::from_quantized(weight, shape, format, precision, device);
                    return matrix.expect(CHECKED);
                }
                Ok(Some(Stored::Values(values))) => unpacked = Some(values),
                Ok(None) => {}
                Err(failure) => {
                    self.failures.push(failure);
                    let nothing: Arc<Values> = Arc::new(|range| vec![0.0; range.len()]);
                    unpacked = Some(nothing);
                }
            }
        }
        let [rows, columns] = shape;
        let source = match (unpacked, kind) {
            (Some(values), _) => values,
            (None, MatrixKind::Conv1d) => {
                let stored = self.open(name, &[columns, rows]);
                Arc::new(move |range| transpose(&*stored, [columns, rows], range)) as Arc<Values>
            }
            (None, MatrixKind::Table | MatrixKind::Linear) => self.open(name, &shape),
        };
        let matrix = FrozenMatrix::from_source(source, shape, self.precision, &self.device);
        match self.quantization {
            Some(quantization) if is_linear && self.depth != Depth::Head => {
                matrix.and_then(|matrix| matrix.quantized(quantization))
            }
            _ => matrix,
        }
        .expect(CHECKED)
    }

    /// A linear layer of the base: `{path}.weight` `[out, in]` and, if it has one, `{path}.bias`.
    pub(crate) fn linear(
        &mut self,
        path: &str,
        role: Role,
        shape: [usize; 2],
        bias: bool,
    ) -> Linear {
        let weight = self.new_matrix(&format!("{path}.weight"), shape, MatrixKind::Linear);
        self.linear_over(weight, path, role, bias)
    }

    /// A linear layer whose weight Hugging Face stores as `[in, out]`; `shape` is `[out, in]`.
    pub(crate) fn conv1d(&mut self, path: &str, role: Role, shape: [usize; 2]) -> Linear {
        let weight = self.new_matrix(&format!("{path}.weight"), shape, MatrixKind::Conv1d);
        self.linear_over(weight, path, role, true)
    }

    /// A linear layer at `path` over a matrix that exists already: a tied head.
    pub(crate) fn linear_over(
        &mut self,
        weight: Matrix,
        path: &str,
        role: Role,
        bias: bool,
    ) -> Linear {
        let bias = bias.then(|| format!("{path}.bias"));
        self.linear_with(weight, path, role, bias.as_deref())
    }

    /// As [`Builder::linear_over`], with the bias of this name.
    pub(crate) fn linear_with(
        &mut self,
        weight: Matrix,
        path: &str,
        role: Role,
        bias: Option<&str>,
    ) -> Linear {
        let [outputs, inputs] = weight.shape();
        let bias = bias.map(|name| self.vector(name, outputs));
        let uses = self.passes.entry(path.to_owned()).or_insert(0);
        let pass = std::mem::replace(uses, *uses + 1);
        let site = Site {
            path: path.to_owned(),
            layer: self.layer(),
            role,
            pass,
        };
        if pass == 0 {
            self.linears.push(LinearInfo {
                site: site.clone(),
                inputs,
                outputs,
                bias: bias.is_some(),
                transposed: weight.is_transposed(),
            });
        }
        Linear::new(site, weight, bias)
    }

    /// The finished base.
    ///
    /// # Errors
    /// Everything that could not be read, in one error.
    pub(crate) fn finish(mut self, summary: Summary<'_>) -> Result<Base, ModelError> {
        self.check()?;
        Ok(Base {
            dimensions: summary.dimensions,
            default_targets: summary.default_targets,
            word_embeddings: summary.word_embeddings.to_owned(),
            prefix: summary.prefix,
            task_head: summary.task_head.map(str::to_owned),
            has_head: false,
            new_modules: summary.new_modules.into_iter().map(str::to_owned).collect(),
            is_bare: false,
            tensors: self.tensors,
            linears: self.linears,
            layer_shapes: self.layer_shapes,
            layer_names: self.layer_names,
            rotary: self.rotary,
            relative_biases: self.relative_biases,
        })
    }

    /// The tensors alone, for layers that are not a model's: those of a side network.
    ///
    /// # Errors
    /// Everything that could not be read, in one error.
    pub fn into_tensors(mut self) -> Result<BTreeMap<String, BaseTensor>, ModelError> {
        self.check()?;
        Ok(self.tensors)
    }

    fn check(&mut self) -> Result<(), ModelError> {
        let (all, failures) = (self.tensors.len(), std::mem::take(&mut self.failures));
        match failures.len() {
            0 => Ok(()),
            failed => Err(ModelError::incomplete(all - failed, all, failures)),
        }
    }

    fn insert(&mut self, name: &str, values: BaseValues, is_norm: bool) {
        let tensor = BaseTensor {
            values,
            depth: self.depth,
            last: self.depth,
            is_norm,
        };
        let tensor = self.tensors.entry(name.to_owned()).or_insert(tensor);
        tensor.last = self.depth;
    }

    /// The tensor of the base whose tensors are shared.
    fn shared_tensor(&self, name: &str) -> Option<&'a BaseValues> {
        let shared = self.shared?;
        let names = self.rules.spellings(name).into_iter();
        let mut found = names.filter_map(|name| Some((shared.tensor(&name)?, name)));
        let (tensor, name) = found.next()?;
        (!shared.is_of_head(&name)).then_some(&tensor.values)
    }

    /// Opens a tensor of the source. A failure is noted and zeros stand in, so that all are
    /// reported.
    fn open(&mut self, name: &str, shape: &[usize]) -> Arc<Values> {
        self.source.open(name, shape).unwrap_or_else(|failure| {
            self.failures.push(failure);
            Arc::new(|range| vec![0.0; range.len()])
        })
    }
}

/// A range of the values of the transpose, whole rows, of a matrix that is stored as `[rows,
/// columns]`.
fn transpose(stored: &Values, [rows, columns]: [usize; 2], range: Range<usize>) -> Vec<f32> {
    let mut transposed = vec![0.0; range.len()];
    let [first, last] = [range.start, range.end].map(|at| at / rows.max(1));
    for row in 0..rows {
        let values = stored(row * columns + first..row * columns + last);
        for (column, value) in values.into_iter().enumerate() {
            transposed[column * rows + row] = value;
        }
    }
    transposed
}
