//! Bottleneck adapters: what Houlsby's, Pfeiffer's and their kin share.
//!
//! `u = f(z W_dᵀ + b_d) W_uᵀ + b_u` narrows the states to `m` values, applies `f`, and widens them
//! again. Methods differ in where `z` is taken and where `u` is added; that is in their own files.
//!
//! | | |
//! | --- | --- |
//! | one bottleneck trains | `2 d m + m + d` |
//! | file | `<module>.adapter_down.weight` `[m, d]`, `.adapter_down.bias`, `<module>.adapter_up.weight` `[d, m]`, `.adapter_up.bias`, where `<module>` is the one that holds the sub-layer's last linear layer |
//! | merges | no: `f` stands between the two maps |

use burn::tensor::Tensor;
use epiphyte_models::{Base, Role};
use epiphyte_ops::Activation;
use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::dense::Dense;

/// How a bottleneck's matrices start; biases start at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitWeights {
    /// Both normal with standard deviation 0.001, cut at twice that (Houlsby et al. 2019): nearly
    /// nothing changes at first.
    #[serde(rename = "houlsby")]
    Houlsby,
    /// Both normal with standard deviation 0.02, as BERT starts.
    #[serde(rename = "bert")]
    Bert,
    /// Down uniform in `±1/√d`, up zero (He et al. 2022): nothing changes at first.
    #[serde(rename = "mam_adapter", alias = "zero-up")]
    MamAdapter,
}

impl InitWeights {
    /// How the maps down and up start, weight and bias each.
    fn inits(self, width: usize) -> [(Init, Init); 2] {
        let (down, up) = match self {
            Self::Houlsby => (
                Init::TruncatedNormal { std: 1e-3 },
                Init::TruncatedNormal { std: 1e-3 },
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
        bottleneck_dim: Option<usize> = None, in Size,
            unset "houlsby 64, mam half of the hidden size, pfeiffer and unipelt a sixteenth of it";
        /// Hidden size divided by the size of the bottleneck; instead of --bottleneck-dim.
        reduction_factor: Option<f64> = None, in AtLeastOne;
        /// Activation function: relu, gelu_new, silu, ...
        non_linearity: String = "relu".to_owned();
        /// Initial values of the matrices: bert, houlsby or mam_adapter (up-projection zero).
        init_weights: InitWeights = InitWeights::Bert, as Text;
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

    /// Declares a bottleneck in each layer, at the module that holds the linear layer of role `at`.
    ///
    /// # Errors
    /// As [`BottleneckConfig::dim`], and if the activation function is unknown, or layers share
    /// their modules.
    pub fn declare(
        &self,
        variant: &Variant,
        base: &Base,
        at: Role,
        parameters: &mut ParameterSet,
    ) -> Result<Vec<Bottleneck>, MethodError> {
        let width = base.dimensions.hidden_size;
        let dim = self.dim(variant, width)?;
        let activation: Activation =
            self.non_linearity
                .parse()
                .map_err(|error| MethodError::Configuration {
                    method: variant.method,
                    reason: format!("`non_linearity`: {error}"),
                })?;
        Ok(modules(base, at, variant.method)?
            .into_iter()
            .map(|module| {
                let [down, up] = self.init_weights.inits(width);
                let path = |name| format!("{module}.{name}");
                Bottleneck {
                    down: Dense::declare(parameters, &path("adapter_down"), [dim, width], down),
                    up: Dense::declare(parameters, &path("adapter_up"), [width, dim], up),
                    activation,
                }
            })
            .collect())
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

/// One bottleneck: down, activation, up.
#[derive(Debug)]
pub struct Bottleneck {
    down: Dense,
    up: Dense,
    activation: Activation,
}

impl Bottleneck {
    /// `u`, without any residual.
    ///
    /// # Shapes
    /// - `z`, result: `[tokens, width]`
    pub fn forward(&self, z: Tensor<2>) -> Tensor<2> {
        self.up.forward(self.activation.apply(self.down.forward(z)))
    }
}

/// Why no bottleneck adapter merges.
pub(crate) fn not_mergeable(method: &'static str) -> MethodError {
    MethodError::NotMergeable {
        method,
        reason: "an activation function stands between its two linear layers",
    }
}
