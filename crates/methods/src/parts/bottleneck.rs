//! Bottleneck adapters: what Houlsby's, Pfeiffer's and their kin share.
//!
//! `u = f(z W_dᵀ + b_d) W_uᵀ + b_u` narrows the states to `m` values, applies `f`, and widens them
//! again. Methods differ in where `z` is taken and where `u` is added ([`Placement`]), in how the
//! two maps are made, and in what `u` is multiplied by ([`Scaling`]).
//!
//! Layers may go without ([`BottleneckConfig::leave_out`]): AdapterDrop (Rücklé, Geigle, Glockner,
//! Beck, Pfeiffer, Reimers, Gurevych, EMNLP 2021, arXiv 2010.11918) leaves out the lowest, so that
//! backward stops above them and their states can be cached.
//!
//! | | |
//! | --- | --- |
//! | one bottleneck trains | `2 d m + m + d` |
//! | file | `<module>.adapter_down.weight` `[m, d]`, `.adapter_down.bias`, `<module>.adapter_up.weight` `[d, m]`, `.adapter_up.bias`, where `<module>` is the one that holds the sub-layer's last linear layer |
//! | merges | no: `f` stands between the two maps |

use std::fmt::Debug;

use burn::tensor::Tensor;
use epiphyte_models::adapter::Block;
use epiphyte_models::{
    Adapter, Base, BaseTensor, ForwardContext, Hidden, Hook, Role, Site, StandIn, Sublayer,
};
use epiphyte_ops::{Activation, add, scale_columns};
use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::framework::method::Method;
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::dense::Dense;
use crate::parts::invertible::Invertible;
use crate::parts::replace::Replaced;

/// How a bottleneck's matrices start; biases start at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitWeights {
    /// Both normal with standard deviation 0.001, cut at twice that (Houlsby et al. 2019): nearly
    /// nothing changes at first.
    #[serde(rename = "houlsby")]
    Houlsby,
    /// The same with 0.01 (Steitz and Roth 2024), AdapterHub's `houlsby`.
    #[serde(rename = "truncated")]
    Truncated,
    /// Both normal with standard deviation 0.02, as BERT starts.
    #[serde(rename = "bert")]
    Bert,
    /// Down uniform in `±1/√d`, up zero (He et al. 2022): nothing changes at first.
    #[serde(rename = "mam_adapter", alias = "zero-up")]
    MamAdapter,
}

impl InitWeights {
    /// How the maps down and up start, weight and bias each.
    pub(crate) fn inits(self, width: usize) -> [(Init, Init); 2] {
        let (down, up) = match self {
            Self::Houlsby => (
                Init::TruncatedNormal { std: 1e-3 },
                Init::TruncatedNormal { std: 1e-3 },
            ),
            Self::Truncated => (
                Init::TruncatedNormal { std: 1e-2 },
                Init::TruncatedNormal { std: 1e-2 },
            ),
            Self::Bert => (Init::Normal { std: 0.02 }, Init::Normal { std: 0.02 }),
            Self::MamAdapter => (
                Init::Uniform {
                    bound: 1.0 / (width as f64).sqrt(),
                },
                Init::Zeros,
            ),
        };
        [(down, Init::Zeros), (up, Init::Zeros)]
    }
}

crate::settings! {
    /// The settings of bottlenecks, under AdapterHub's names.
    pub struct BottleneckConfig {
        /// Size of the bottleneck.
        bottleneck_dim: Option<usize> = None, in Size, unset "a share of the hidden size, by method";
        /// Hidden size divided by the size of the bottleneck; instead of --bottleneck-dim.
        reduction_factor: Option<f64> = None, in AtLeastOne;
        /// Activation function: relu, gelu_new, silu, ...
        non_linearity: String = "relu".to_owned();
        /// Initial values of the matrices: bert, houlsby, truncated, or mam_adapter (up-projection
        /// zero).
        init_weights: InitWeights = InitWeights::Bert, as Text;
        /// Layers without bottlenecks, from 0, an encoder's before its decoder's (AdapterDrop).
        leave_out: Vec<usize> = Vec::new(), unset "none";
    }
}

/// What a method with bottlenecks does where its settings leave it open.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// The method, for messages.
    pub method: &'static str,
    /// The size of the bottleneck where none is set, by hidden size.
    pub default_dim: fn(hidden_size: usize) -> usize,
}

/// One bottleneck that is to be declared.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'b> {
    /// The module that its keys begin with.
    pub module: &'b str,
    /// The hidden size, `d`.
    pub width: usize,
    /// The size of the bottleneck, `m`.
    pub dim: usize,
    /// `f`
    pub activation: Activation,
    /// How matrices start.
    pub init: InitWeights,
}

impl Slot<'_> {
    /// The key of one of its tensors or linear layers.
    pub fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.module)
    }

    /// Declares a bottleneck of two linear layers.
    pub fn declare(&self, parameters: &mut ParameterSet) -> Bottleneck {
        let [down, up] = self.init.inits(self.width);
        let (width, dim) = (self.width, self.dim);
        Bottleneck {
            down: Dense::declare(parameters, &self.key("adapter_down"), [dim, width], down),
            up: Dense::declare(parameters, &self.key("adapter_up"), [width, dim], up),
            activation: self.activation,
            scaling: Scaling::One,
        }
    }
}

impl BottleneckConfig {
    /// The width of the bottleneck in a model of this width.
    ///
    /// # Errors
    /// If the settings contradict each other or leave the range from 1 to `width`.
    pub fn dim(&self, variant: &Variant, width: usize) -> Result<usize, MethodError> {
        let value = |key, value: String, expected: String| MethodError::Value {
            method: variant.method,
            key,
            value,
            expected,
        };
        let dim = match (self.bottleneck_dim, self.reduction_factor) {
            (Some(_), Some(_)) => {
                return Err(MethodError::Configuration {
                    method: variant.method,
                    reason:
                        "`bottleneck_dim` and `reduction_factor` say the same; give one of them"
                            .to_owned(),
                });
            }
            (Some(dim), None) => dim,
            (None, Some(factor)) => ((width as f64 / factor) as usize).max(1),
            (None, None) => (variant.default_dim)(width),
        };
        if dim == 0 || dim > width {
            let expected = format!("it must be from 1 to the model's width, {width}");
            return Err(value("bottleneck_dim", dim.to_string(), expected));
        }
        Ok(dim)
    }

    /// How many values one bottleneck trains in a model of this width: `2 d m + m + d`.
    ///
    /// # Errors
    /// As [`BottleneckConfig::dim`].
    pub fn count(&self, variant: &Variant, width: usize) -> Result<usize, MethodError> {
        let dim = self.dim(variant, width)?;
        Ok(Dense::count([dim, width]) + Dense::count([width, dim]))
    }

    /// How many layers have bottlenecks.
    ///
    /// # Errors
    /// If layers are left out that the model does not have, or all are.
    pub fn layers(&self, variant: &Variant, base: &Base) -> Result<usize, MethodError> {
        let layers = base.dimensions.layers;
        let kept = (0..layers).filter(|layer| !self.leave_out.contains(layer));
        let kept = kept.count();
        let beyond = self.leave_out.iter().find(|&&layer| layer >= layers);
        if kept > 0 && beyond.is_none() {
            return Ok(kept);
        }
        Err(MethodError::Value {
            method: variant.method,
            key: "leave_out",
            value: format!("{:?}", self.leave_out),
            expected: format!(
                "layers are numbered from 0 to {}, and one must stay",
                layers - 1
            ),
        })
    }

    /// What `declare` makes for the bottleneck of each layer, at the module that holds its linear
    /// layer of role `at`; none in layers that are left out.
    ///
    /// # Errors
    /// As [`BottleneckConfig::dim`] and [`BottleneckConfig::layers`], and if the activation
    /// function is unknown, or layers share their modules.
    pub fn each<B>(
        &self,
        variant: &Variant,
        base: &Base,
        at: Role,
        mut declare: impl FnMut(Slot<'_>) -> B,
    ) -> Result<Vec<Option<B>>, MethodError> {
        self.layers(variant, base)?;
        let width = base.dimensions.hidden_size;
        let dim = self.dim(variant, width)?;
        let activation = self.activation(variant)?;
        let modules = modules(base, at, variant.method)?.into_iter().enumerate();
        let in_layer = |(layer, module)| {
            let slot = Slot {
                module,
                width,
                dim,
                activation,
                init: self.init_weights,
            };
            (!self.leave_out.contains(&layer)).then(|| declare(slot))
        };
        Ok(modules.map(in_layer).collect())
    }

    /// Declares a bottleneck of two linear layers for each.
    ///
    /// # Errors
    /// As [`BottleneckConfig::each`].
    pub fn declare(
        &self,
        variant: &Variant,
        base: &Base,
        at: Role,
        parameters: &mut ParameterSet,
    ) -> Result<Vec<Option<Bottleneck>>, MethodError> {
        self.each(variant, base, at, |slot| slot.declare(parameters))
    }

    /// Whether the base's tensor `name` is a norm that a method trains with its bottlenecks: one
    /// that does not stand below the lowest of them.
    pub fn trains_norm(&self, base: &Base, name: &str) -> bool {
        let layers = 0..base.dimensions.layers;
        let mut kept = layers.filter(|layer| !self.leave_out.contains(layer));
        let lowest = kept.next().unwrap_or(0);
        base.tensor(name).is_some_and(BaseTensor::is_norm) && base.first_layer_of(name) >= lowest
    }

    /// `f`
    ///
    /// # Errors
    /// If the activation function is unknown.
    pub(crate) fn activation(&self, variant: &Variant) -> Result<Activation, MethodError> {
        let activation = self.non_linearity.parse();
        activation.map_err(|error| MethodError::Configuration {
            method: variant.method,
            reason: format!("`non_linearity`: {error}"),
        })
    }

    /// The same with the size of the bottleneck in a model of this hidden size, for the file.
    pub fn resolved(&self, variant: &Variant, width: usize) -> Self {
        match self.dim(variant, width) {
            Ok(dim) => Self {
                bottleneck_dim: Some(dim),
                reduction_factor: None,
                ..self.clone()
            },
            Err(_) => self.clone(),
        }
    }
}

/// The module of each layer that holds the linear layer of role `at`, for parameters of each layer
/// that are named after it.
///
/// # Errors
/// If layers share their modules.
pub(crate) fn modules<'b>(
    base: &'b Base,
    at: Role,
    method: &'static str,
) -> Result<Vec<&'b str>, MethodError> {
    let linears = base.linears().iter().filter(|it| it.site.role == at);
    let modules = linears.filter_map(|it| Some(it.site.path.rsplit_once('.')?.0));
    let modules: Vec<&str> = modules.collect();
    if modules.len() < base.dimensions.layers {
        return Err(MethodError::NotApplicable {
            method,
            model_type: base.dimensions.model_type.clone(),
            reason:
                "its layers share their modules, but the method's parameters are named after a \
                     module of each layer; LoRA acts on shared modules"
                    .to_owned(),
        });
    }
    Ok(modules)
}

/// What a bottleneck's output is multiplied by.
#[derive(Debug)]
pub enum Scaling {
    /// Nothing.
    One,
    /// A constant.
    Fixed(f64),
    /// One trained number, `[1]`.
    Learned(Param),
    /// A trained number for each channel, `[hidden]`.
    Channels(Param),
}

impl Scaling {
    fn apply(&self, u: Tensor<2>) -> Tensor<2> {
        match self {
            Self::One => u,
            Self::Fixed(factor) => u * *factor,
            Self::Learned(factor) => u * factor.flat().reshape([1, 1]),
            Self::Channels(factors) => scale_columns(u, factors.flat()),
        }
    }
}

/// One bottleneck: down, activation, up.
#[derive(Debug)]
pub struct Bottleneck {
    pub(crate) down: Dense,
    pub(crate) up: Dense,
    pub(crate) activation: Activation,
    pub(crate) scaling: Scaling,
}

impl Bottleneck {
    /// The same with its output multiplied.
    #[must_use]
    pub fn scaled(self, scaling: Scaling) -> Self {
        Self { scaling, ..self }
    }

    /// The matrices of both maps.
    pub(crate) fn weights(&self) -> [&Param; 2] {
        [self.down.weight(), self.up.weight()]
    }

    /// `u`, without any residual.
    ///
    /// # Shapes
    /// - `z`, result: `[tokens, width]`
    pub fn forward(&self, z: Tensor<2>) -> Tensor<2> {
        let u = self.up.forward(self.activation.apply(self.down.forward(z)));
        self.scaling.apply(u)
    }
}

/// A small network that maps states of a layer to what is added to them.
pub trait Branch: Debug + Send + Sync {
    /// `u`, without any residual.
    ///
    /// # Shapes
    /// - `z`, result: `[tokens, hidden]`
    fn branch(&self, z: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2>;

    /// Whether it reads several rows of a sequence at once.
    fn mixes_rows(&self) -> bool {
        false
    }
}

impl Branch for Bottleneck {
    fn branch(&self, z: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        self.forward(z)
    }
}

/// What a branch reads and where its output is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Reads the block's output, and is added to it (Houlsby et al. 2019).
    Sequential,
    /// Reads the residual stream as it would be after the block, and is added to the block's
    /// output, before the norm where the norm comes after (Pfeiffer et al. 2021).
    AroundNorm,
    /// Reads the block's input, normalized where the norm comes first, and is added to the block's
    /// output (He et al. 2022).
    Parallel,
    /// The same, but reads the residual stream where the norm comes first (AdapterHub).
    ParallelResidual,
    /// Reads the residual stream after the block, and is added to it (Steitz and Roth 2024).
    AfterBlock,
}

/// Branches at the blocks of a model's layers, and norms that are trained with them.
#[derive(Debug)]
pub struct InLayers<B> {
    method: &'static str,
    placement: Placement,
    /// The branch of each layer's self-attention; empty if there are none.
    attention: Vec<Option<B>>,
    /// The branch of each layer's feed-forward.
    feed_forward: Vec<Option<B>>,
    norms: Replaced,
    /// What changes the embeddings.
    invertible: Option<Invertible>,
    changed: usize,
}

impl<B: Branch> InLayers<B> {
    /// Branches at feed-forwards, which hold `changed` values.
    pub fn new(
        variant: &Variant,
        placement: Placement,
        feed_forward: Vec<Option<B>>,
        changed: usize,
    ) -> Self {
        Self {
            method: variant.method,
            placement,
            attention: Vec::new(),
            feed_forward,
            norms: Replaced::none(),
            invertible: None,
            changed,
        }
    }

    /// The same with an invertible adapter, counted already.
    #[must_use]
    pub(crate) fn with_invertible(self, invertible: Option<Invertible>) -> Self {
        Self { invertible, ..self }
    }

    /// The same with branches at self-attentions, counted already.
    #[must_use]
    pub fn with_attention(self, attention: Vec<Option<B>>) -> Self {
        Self { attention, ..self }
    }

    /// The same with norms that `trains` chooses, counted already.
    #[must_use]
    pub fn with_norms(
        self,
        base: &Base,
        parameters: &mut ParameterSet,
        trains: impl Fn(&str) -> bool,
    ) -> Self {
        let norms = Replaced::new(base, parameters, trains);
        Self { norms, ..self }
    }

    fn at(&self, layer: usize, block: Block) -> Option<&B> {
        let branches = match block {
            Block::SelfAttention => &self.attention,
            Block::FeedForward => &self.feed_forward,
            Block::CrossAttention => return None,
        };
        branches.get(layer)?.as_ref()
    }
}

impl<B: Branch> Adapter for InLayers<B> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.norms.parameter(name)
    }

    fn hidden(&self, layer: usize, mut hidden: Hidden, _cx: &ForwardContext<'_>) -> Hidden {
        if let (0, Some(invertible)) = (layer, &self.invertible) {
            hidden.states = invertible.forward(hidden.states);
        }
        hidden
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        match &self.invertible {
            Some(invertible) if invertible.is_before(site) => invertible.inverse(x),
            _ => x,
        }
    }

    fn adapts_language_head(&self) -> bool {
        let invertible = self.invertible.as_ref();
        invertible.is_some_and(Invertible::acts_on_output)
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let Some(branch) = self.at(sublayer.layer, sublayer.block) else {
            return output;
        };
        let z = match self.placement {
            Placement::Sequential => output.clone(),
            Placement::AroundNorm => (sublayer.add_residual)(output.clone()),
            Placement::Parallel => sublayer.input.clone(),
            Placement::ParallelResidual => sublayer.residual.clone(),
            Placement::AfterBlock => return output,
        };
        add(output, branch.branch(z, cx))
    }

    fn after_block(
        &self,
        layer: usize,
        block: Block,
        states: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        match self.at(layer, block) {
            Some(branch) if self.placement == Placement::AfterBlock => {
                add(states.clone(), branch.branch(states, cx))
            }
            _ => states,
        }
    }

    fn first_layer(&self) -> usize {
        if self.invertible.is_some() {
            return 0;
        }
        let lowest = |branches: &[Option<B>]| branches.iter().position(Option::is_some);
        let branches = [lowest(&self.attention), lowest(&self.feed_forward)];
        let lowest = branches.into_iter().flatten().min();
        lowest.unwrap_or(usize::MAX).min(self.norms.first_layer())
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        match hook {
            Hook::Sublayer(layer, block) => self.at(layer, block).is_some(),
            Hook::Hidden(0) => self.invertible.is_some(),
            Hook::Linear(site) => {
                let invertible = self.invertible.as_ref();
                invertible.is_some_and(|it| it.is_before(site))
            }
            hook => self.norms.uses(hook),
        }
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        let blocks = [Block::SelfAttention, Block::FeedForward];
        let mut branches = blocks.into_iter().filter_map(|block| self.at(layer, block));
        branches.any(Branch::mixes_rows)
    }

    fn reads_whole_sequences(&self) -> bool {
        (0..self.feed_forward.len()).any(|layer| self.mixes_rows(layer))
    }
}

impl<B: Branch> Method for InLayers<B> {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(self.method))
    }

    fn changed(&self) -> usize {
        self.changed
    }
}

/// Why no bottleneck adapter merges.
pub(crate) fn not_mergeable(method: &'static str) -> MethodError {
    MethodError::NotMergeable {
        method,
        reason: "an activation function stands between its two linear layers",
    }
}
