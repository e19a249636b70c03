//! C3A: a weight's change is made of circulant blocks.
//!
//! Chen, Cheng, Liu, Gao, Tsung, Li, Li, "Parameter-Efficient Fine-Tuning via Circular
//! Convolution", ACL Findings 2025, arXiv 2407.19342, section 3.
//!
//! `y = x Wᵀ + b + x ΔWᵀ`, where `ΔW` has `out / b · in / b` blocks `[b, b]`, each with one trained
//! kernel w of b values: entry `(p, q)` of a block is `w[(q - p) mod b] / in`. Kernels start
//! uniform (`xavier_uniform`, `kaiming_uniform`), normal (`gaussian`), or at zero (`zeros`), only
//! the last of which changes nothing at first. `ΔW` is computed once a step; HF PEFT multiplies by
//! Fourier transforms instead.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ in · out / b` over the targets |
//! | changes | `Σ in · out`, by a matrix of any rank each |
//! | file | `<path>.c3a_kernel` `[out / b, in / b, b]` |
//! | merges | `W + ΔW` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, LinearInfo};
use indexmap::IndexMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection, check_keys, first_match};
use crate::parts::delta::{Change, Deltas};

crate::settings! {
    /// The settings of C3A, under HF PEFT's names.
    pub struct C3aConfig {
        /// Side of a block; it divides both sides of the weights.
        block_size: usize = 256, in Size;
        /// Other block sizes for some modules: name=size,... where a name is a regular expression
        /// for the end of the path and the first match wins.
        block_size_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Initial values: xavier_uniform, kaiming_uniform, gaussian, or zeros.
        init_weights: C3aInit = C3aInit::XavierUniform, as Text, unset "xavier_uniform";

        ..targets: LayerTargets = LayerTargets::default();
    }
}

/// How kernels start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum C3aInit {
    /// Uniform in `±√(6 / (in + out))`.
    #[default]
    XavierUniform,
    /// The same: `false` in files.
    Random,
    /// Uniform in `±1/√in`.
    KaimingUniform,
    /// Normal with standard deviation 1.
    Gaussian,
    /// At zero: `true` in files.
    Zeros,
}

impl C3aInit {
    fn values(self, linear: &LinearInfo) -> Init {
        let (inputs, outputs) = (linear.inputs as f64, linear.outputs as f64);
        match self {
            Self::XavierUniform | Self::Random => Init::Uniform {
                bound: (6.0 / (inputs + outputs)).sqrt(),
            },
            Self::KaimingUniform => Init::Uniform {
                bound: 1.0 / inputs.sqrt(),
            },
            Self::Gaussian => Init::Normal { std: 1.0 },
            Self::Zeros => Init::Zeros,
        }
    }
}

impl Serialize for C3aInit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::XavierUniform => serializer.serialize_str("xavier_uniform"),
            Self::Random => serializer.serialize_bool(false),
            Self::KaimingUniform => serializer.serialize_str("kaiming_uniform"),
            Self::Gaussian => serializer.serialize_str("gaussian"),
            Self::Zeros => serializer.serialize_bool(true),
        }
    }
}

impl<'de> Deserialize<'de> for C3aInit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        match (&value, value.as_str()) {
            (_, Some("xavier_uniform")) => Ok(Self::XavierUniform),
            (Value::Bool(false), _) => Ok(Self::Random),
            (_, Some("kaiming_uniform")) => Ok(Self::KaimingUniform),
            (_, Some("gaussian")) => Ok(Self::Gaussian),
            (Value::Bool(true), _) | (_, Some("zeros")) => Ok(Self::Zeros),
            _ => Err(serde::de::Error::custom(format!(
                "{value} is not known; xavier_uniform, kaiming_uniform, gaussian and zeros (true in \
                 a file) are"
            ))),
        }
    }
}

impl C3aConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with the side of its blocks.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let (path, sizes) = (&linear.site.path, [linear.inputs, linear.outputs]);
            let size = first_match(Self::NAME, &self.block_size_pattern, path)?;
            let size = size.unwrap_or(self.block_size);
            match size > 0 && sizes.iter().all(|it| it.is_multiple_of(size)) {
                true => Ok((linear, size)),
                false => Err(MethodError::Value {
                    method: Self::NAME,
                    key: "block_size",
                    value: size.to_string(),
                    expected: format!(
                        "it must divide both sizes of `{path}`, {} inputs and {} outputs",
                        sizes[0], sizes[1]
                    ),
                }),
            }
        });
        targets.collect()
    }
}

impl MethodConfig for C3aConfig {
    const NAME: &'static str = "c3a";
    const PEFT_TYPE: &'static str = "C3A";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "circular convolutions, added to chosen linear layers";
    const PAPER: &'static str = "Chen et al. 2024, arXiv 2407.19342";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-1;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == C3aInit::Zeros
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "block_size": 4, "init_weights": "gaussian" }),
            json!({ "block_size": 2, "init_weights": "zeros", "target_modules": "all-linear" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let deltas = self.targets(base)?.into_iter().map(|(linear, size)| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let (inputs, outputs) = (linear.inputs, linear.outputs);
            let shape = [outputs / size, inputs / size, size];
            let init = self.init_weights.values(linear);
            let kernel = parameters.declare(key("c3a_kernel"), &shape, init);
            let change = parameters.derived(key("c3a_change"), &[outputs, inputs], move || {
                let change = circulant(kernel.get()) / inputs as f32;
                change.reshape([outputs * inputs])
            });
            (linear, C3a(change))
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection();
        selection.check_start(base)?;
        let (pattern, targets) = (&self.block_size_pattern, selection.of(base)?);
        check_keys(Self::NAME, "block_size_pattern", pattern, &targets)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?.into_iter();
        Ok(targets
            .map(|(linear, size)| linear.inputs * linear.outputs / size)
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// The matrix of circulant blocks whose first rows are the kernels.
///
/// # Shapes
/// - `kernels`: `[rows, columns, size]`
/// - result: `[rows · size, columns · size]`
fn circulant(kernels: Tensor<3>) -> Tensor<2> {
    let [rows, columns, size] = kernels.dims();
    let blocks = rows * columns;
    // Each kernel twice in a row, as often as a block has rows; read in rows that are one value
    // shorter, each begins one value further to the left of its kernel.
    let twice = kernels.reshape([blocks, 1, size]).repeat(&[1, size, 2]);
    let flat = twice.reshape([blocks, 2 * size * size]);
    let shifted = flat.narrow(1, 0, size * (2 * size - 1));
    let shifted = shifted
        .reshape([blocks, size, 2 * size - 1])
        .narrow(2, 0, size);
    let shifted = shifted.reshape([rows, columns, size, size]).swap_dims(1, 2);
    shifted.reshape([rows * size, columns * size])
}

/// `ΔW`, `[out, in]`, of one linear layer.
#[derive(Debug)]
struct C3a(Param);

impl Change for C3a {
    fn matrix(&self) -> Tensor<2> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};
    use serde_json::json;

    use super::circulant;
    use crate::small_bert::bert_base_count;

    #[test]
    fn rows_of_a_block_are_shifted_kernels() {
        let kernels: Vec<f32> = (1u8..=12).map(f32::from).collect();
        let kernels = TensorData::new(kernels, [2, 2, 3]);
        let matrix = circulant(Tensor::from_data(kernels, &Device::default()));
        let expected = [
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            [3.0, 1.0, 2.0, 6.0, 4.0, 5.0],
            [2.0, 3.0, 1.0, 5.0, 6.0, 4.0],
            [7.0, 8.0, 9.0, 10.0, 11.0, 12.0],
            [9.0, 7.0, 8.0, 12.0, 10.0, 11.0],
            [8.0, 9.0, 7.0, 11.0, 12.0, 10.0],
        ];
        assert_eq!(matrix.try_into_vec_as::<f32>().unwrap(), expected.concat());
    }

    #[test]
    fn counts_are_the_weights_by_the_block_size() {
        assert_eq!(bert_base_count("c3a", json!({}), 0), 24 * 768 * 3);
    }
}
