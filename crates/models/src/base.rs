//! The frozen tensors of a model and what a method may know about them.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_ops::{FrozenMatrix, Quantization};

use crate::adapter::{Role, Site};
use crate::blocks::{LayerNames, LayerShape, RelativeBiasShape};
use crate::keys::is_below;
use crate::rope::RotaryEmbedding;

/// One frozen tensor.
#[derive(Clone, Debug)]
pub struct BaseTensor {
    pub(crate) values: BaseValues,
    pub(crate) depth: Depth,
    /// Where it is used last; another place than the first where layers share their modules.
    pub(crate) last: Depth,
    pub(crate) is_norm: bool,
}

/// The values of a frozen tensor.
#[derive(Clone, Debug)]
pub(crate) enum BaseValues {
    /// A bias, a norm's scale: `[size]`.
    Vector(Tensor<1>),
    /// A linear layer's weight `[out, in]`, an embedding table `[rows, hidden]`.
    Matrix {
        matrix: FrozenMatrix,
        /// Hugging Face stores it as `[in, out]`: GPT-2's `Conv1D`.
        transposed: bool,
    },
}

/// Where in the model a tensor is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Before the first layer: embeddings.
    Embeddings,
    /// In this layer, from 0, a decoder's after its encoder's.
    Layer(usize),
    /// After the last layer.
    Head,
}

impl BaseTensor {
    /// The shape in which Hugging Face stores it.
    pub fn shape(&self) -> Vec<usize> {
        match &self.values {
            BaseValues::Vector(vector) => vector.dims().to_vec(),
            BaseValues::Matrix { matrix, transposed } => {
                let [rows, columns] = matrix.shape();
                if *transposed {
                    vec![columns, rows]
                } else {
                    vec![rows, columns]
                }
            }
        }
    }

    /// The number of values.
    pub fn count(&self) -> usize {
        self.shape().iter().product()
    }

    /// The values in memory, in the order in which Hugging Face stores them.
    pub fn to_vec(&self) -> Vec<f32> {
        let values = self.to_flat().try_into_vec_as::<f32>();
        values.expect("a base is f32 and on a device that can be read")
    }

    /// The values, flat, in the order in which Hugging Face stores them.
    pub fn to_flat(&self) -> Tensor<1> {
        match &self.values {
            BaseValues::Vector(vector) => vector.clone(),
            BaseValues::Matrix { matrix, .. } => self.flatten(matrix.to_tensor()),
        }
    }

    /// The values as [`BaseTensor::to_flat`] has them, but as they were before they were quantized:
    /// what a copy that is trained starts from.
    pub fn to_unquantized_flat(&self) -> Tensor<1> {
        match &self.values {
            BaseValues::Vector(vector) => vector.clone(),
            BaseValues::Matrix { matrix, .. } => self.flatten(matrix.to_unquantized_tensor()),
        }
    }

    /// A matrix's values as `[out, in]` for a linear layer, `[rows, hidden]` for a table; none for
    /// a vector.
    pub fn to_matrix(&self) -> Option<Tensor<2>> {
        match &self.values {
            BaseValues::Vector(_) => None,
            BaseValues::Matrix { matrix, .. } => Some(matrix.to_tensor()),
        }
    }

    /// Puts a matrix `[out, in]` of this tensor's size in the order in which Hugging Face stores
    /// it.
    pub fn flatten(&self, matrix: Tensor<2>) -> Tensor<1> {
        let count = self.count();
        match &self.values {
            BaseValues::Matrix {
                transposed: true, ..
            } => matrix.transpose().reshape([count]),
            _ => matrix.reshape([count]),
        }
    }

    /// Puts values in the order in which Hugging Face stores them into the form of a matrix, as
    /// [`BaseTensor::to_matrix`] has it; none for a vector.
    pub fn unflatten(&self, values: Tensor<1>) -> Option<Tensor<2>> {
        match &self.values {
            BaseValues::Vector(_) => None,
            BaseValues::Matrix { matrix, transposed } => {
                let [rows, columns] = matrix.shape();
                Some(match transposed {
                    true => values.reshape([columns, rows]).transpose(),
                    false => values.reshape([rows, columns]),
                })
            }
        }
    }

    /// The frozen matrix, if it is one.
    pub fn matrix(&self) -> Option<&FrozenMatrix> {
        match &self.values {
            BaseValues::Vector(_) => None,
            BaseValues::Matrix { matrix, .. } => Some(matrix),
        }
    }

    /// In which format it is quantized, if it is.
    pub fn quantization(&self) -> Option<Quantization> {
        self.matrix()?.quantization()
    }

    /// Bytes of memory that the values take; none of a matrix before it is used.
    pub fn bytes(&self) -> usize {
        match &self.values {
            BaseValues::Vector(vector) => vector.dims()[0] * size_of::<f32>(),
            BaseValues::Matrix { matrix, .. } => matrix.bytes(),
        }
    }

    /// Where in the model it is used first.
    pub fn depth(&self) -> Depth {
        self.depth
    }

    /// Whether it is the scale or shift of a norm.
    pub fn is_norm(&self) -> bool {
        self.is_norm
    }
}

/// A linear layer of the base, as methods see it.
#[derive(Clone, Debug)]
pub struct LinearInfo {
    /// Where it stands; of a module that several layers share, where it is used first.
    pub site: Site,
    /// Number of inputs.
    pub inputs: usize,
    /// Number of outputs.
    pub outputs: usize,
    /// Whether it has a bias.
    pub bias: bool,
    /// Whether Hugging Face stores its weight as `[in, out]` (`fan_in_fan_out`).
    pub transposed: bool,
}

/// The sizes of a model that methods need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimensions {
    /// Hugging Face's `model_type`, such as `bert`.
    pub model_type: String,
    /// Layers, those of an encoder and a decoder together.
    pub layers: usize,
    /// How many of them are an encoder's whose output a decoder reads; 0 for models with one stack.
    pub encoder_layers: usize,
    /// Size of the residual stream.
    pub hidden_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Size of a head.
    pub head_dim: usize,
    /// Rows of the word embeddings.
    pub vocabulary: usize,
    /// Segments that the model tells apart; 0 if it has none.
    pub type_vocabulary: usize,
    /// The longest sequence, virtual tokens included; none if positions are relative and unlimited.
    pub max_positions: Option<usize>,
}

/// HF PEFT's default target modules for a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultTargets {
    /// LoRA and its variants (`TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING`).
    pub lora: &'static [&'static str],
    /// AdaLoRA (`TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING`).
    pub adalora: &'static [&'static str],
    /// (IA)³ (`TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING`).
    pub ia3: &'static [&'static str],
    /// Those of (IA)³ that are rescaled at their input.
    pub ia3_feedforward: &'static [&'static str],
}

/// Everything frozen: tensors under Hugging Face's names, and where the linear layers are.
#[derive(Clone, Debug)]
pub struct Base {
    /// The sizes.
    pub dimensions: Dimensions,
    /// PEFT's default target modules.
    pub default_targets: DefaultTargets,
    /// Name of the word embedding table.
    pub word_embeddings: String,
    /// What precedes the names of the base model's tensors, such as `bert.`; PEFT's files leave it
    /// out over a model without head.
    pub prefix: &'static str,
    /// Path of the task's head, trained and saved with every adapter; none for language models.
    pub task_head: Option<String>,
    /// Whether the checkpoint brought the task's head, instead of its starting at random.
    pub has_head: bool,
    /// Paths of modules that the checkpoint lacks, such as BERT's pooler after masked language
    /// modeling. They start at random, and are trained and saved with the head, as a part of it.
    pub new_modules: Vec<String>,
    /// Whether the model is the base model without any head, whose names transformers and PEFT
    /// write without the prefix.
    pub is_bare: bool,
    pub(crate) tensors: BTreeMap<String, BaseTensor>,
    pub(crate) linears: Vec<LinearInfo>,
    pub(crate) layer_shapes: Vec<LayerShape>,
    pub(crate) layer_names: Vec<(String, LayerNames)>,
    pub(crate) rotary: Option<RotaryEmbedding>,
    pub(crate) relative_biases: Vec<RelativeBiasShape>,
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

    /// The word embedding table, `[vocabulary, hidden]`.
    pub fn word_embedding_table(&self) -> &FrozenMatrix {
        let table = self.tensor(&self.word_embeddings);
        let table = table.and_then(BaseTensor::matrix);
        table.expect("families register the table that they name")
    }

    /// Size of the word embeddings; not the hidden size where a layer stands between the two.
    pub fn embedding_size(&self) -> usize {
        self.word_embedding_table().shape()[1]
    }

    /// All linear layers, in the order in which the model applies them first.
    pub fn linears(&self) -> &[LinearInfo] {
        &self.linears
    }

    /// Puts linear layers in the order in which transformers' modules register them, which is not
    /// that in which they are applied where attention begins with the keys (BART, OPT) or Phi-3
    /// with its output projection.
    pub fn in_module_order(&self, linears: &mut [&LinearInfo]) {
        const OTHER_ORDERS: [&[&str]; 2] = [
            &["k_proj", "v_proj", "q_proj", "out_proj"],
            &["o_proj", "qkv_proj"],
        ];
        let split = |linear: &'_ LinearInfo| {
            let path = linear.site.path.rsplit_once('.');
            path.map_or(
                (String::new(), linear.site.path.clone()),
                |(parent, name)| (parent.to_owned(), name.to_owned()),
            )
        };
        for group in linears.chunk_by_mut(|a, b| split(a).0 == split(b).0) {
            let (parent, _) = split(group[0]);
            let siblings = self.linears.iter().map(split);
            let siblings: Vec<String> = siblings
                .filter_map(|(of, name)| (of == parent).then_some(name))
                .collect();
            let order = OTHER_ORDERS.into_iter().find(|order| {
                siblings.len() == order.len()
                    && siblings.iter().all(|name| order.contains(&name.as_str()))
            });
            if let Some(order) = order {
                group.sort_by_key(|linear| order.iter().position(|name| *name == split(linear).1));
            }
        }
    }

    /// The shape of each layer, for methods that build layers like the base's own.
    pub fn layer_shapes(&self) -> &[LayerShape] {
        &self.layer_shapes
    }

    /// The module path of each layer and how its tensors are named below it; fewer than layers for
    /// families whose layers are not of [`blocks::Layer`](crate::blocks::Layer), or share modules.
    pub fn layer_names(&self) -> &[(String, LayerNames)] {
        &self.layer_names
    }

    /// How queries and keys are rotated, for models with rotary positions.
    pub fn rotary(&self) -> Option<&RotaryEmbedding> {
        self.rotary.as_ref()
    }

    /// The biases of attention scores by relative positions, which belong to no layer, in the order
    /// of the layers that read them: of an encoder-decoder one for each stack.
    pub fn relative_biases(&self) -> &[RelativeBiasShape] {
        &self.relative_biases
    }

    /// The number of values in the base, without the task's head.
    pub fn count(&self) -> usize {
        self.tensors
            .iter()
            .filter(|(name, _)| !self.is_of_head(name))
            .map(|(_, tensor)| tensor.count())
            .sum()
    }

    /// In which format its linear layers are quantized, if any is.
    pub fn quantization(&self) -> Option<Quantization> {
        self.tensors.values().find_map(BaseTensor::quantization)
    }

    /// The base without the task's head, for adapters that have none. It shares the tensors.
    #[must_use]
    pub fn without_head(&self) -> Self {
        let mut base = self.clone();
        base.tensors.retain(|name, _| !self.is_of_head(name));
        base.linears
            .retain(|linear| !self.is_of_head(&format!("{}.weight", linear.site.path)));
        (base.task_head, base.new_modules) = (None, Vec::new());
        base.has_head = false;
        base
    }

    /// Bytes of memory that the tensors take: matrices from when they are first used.
    pub fn bytes(&self) -> u64 {
        self.tensors
            .values()
            .map(|tensor| tensor.bytes() as u64)
            .sum()
    }

    /// The base as it is before its matrices are first used: those of one are in memory apart from
    /// those of the other.
    #[must_use]
    pub fn unread(&self) -> Self {
        let mut base = self.clone();
        for tensor in base.tensors.values_mut() {
            if let BaseValues::Matrix { matrix, .. } = &mut tensor.values {
                *matrix = matrix.unread();
            }
        }
        base
    }

    /// The base with other values for one tensor, flat, in the order in which Hugging Face stores
    /// it. The other tensors are shared.
    #[must_use]
    pub fn with_values(&self, name: &str, values: Tensor<1>) -> Self {
        let mut base = self.clone();
        if let Some(tensor) = base.tensors.get_mut(name) {
            tensor.values = match &tensor.values {
                BaseValues::Vector(_) => BaseValues::Vector(values),
                BaseValues::Matrix { matrix, transposed } => {
                    let [rows, columns] = matrix.shape();
                    let values = match transposed {
                        true => values.reshape([columns, rows]).transpose(),
                        false => values.reshape([rows, columns]),
                    };
                    BaseValues::Matrix {
                        matrix: FrozenMatrix::of_tensor(values),
                        transposed: *transposed,
                    }
                }
            };
        }
        base
    }

    /// The weight of a language model's head that is tied to the word embeddings, by its name in a
    /// file that does not tie the two; none if there is no such head.
    pub fn tied_head(&self) -> Option<String> {
        let mut heads = self.linears.iter().filter(|it| it.site.role == Role::Head);
        let name = heads
            .next()
            .map(|head| format!("{}.weight", head.site.path))?;
        self.tensor(&name).is_none().then_some(name)
    }

    /// Whether a tensor belongs to what a task trains beside a method: its head, and modules that
    /// the checkpoint lacks.
    pub fn is_of_head(&self, name: &str) -> bool {
        let mut new_modules = self.new_modules.iter();
        is_below(self.task_head.as_deref(), name)
            || new_modules.any(|module| is_below(Some(module), name))
    }

    /// The lowest layer whose result depends on tensor `name`: 0 for embeddings, the number of
    /// layers for what follows the last.
    pub fn first_layer_of(&self, name: &str) -> usize {
        match self.tensor(name).map(BaseTensor::depth) {
            Some(Depth::Embeddings) => 0,
            Some(Depth::Layer(layer)) => layer,
            Some(Depth::Head) | None => self.dimensions.layers,
        }
    }

    /// A tensor that both layers below `layer` and layers from it on use: a shared module's.
    pub fn shared_across(&self, layer: usize) -> Option<&str> {
        let mut tensors = self.tensors.iter();
        let below = Depth::Layer(0)..Depth::Layer(layer);
        let shared = tensors.find(|(_, it)| below.contains(&it.depth) && it.last >= below.end);
        shared.map(|(name, _)| &**name)
    }

    /// The layer that tensor `name` belongs to; the first of those that share it.
    pub fn layer_of(&self, name: &str) -> Option<usize> {
        match self.tensor(name)?.depth {
            Depth::Layer(layer) => Some(layer),
            Depth::Embeddings | Depth::Head => None,
        }
    }
}
