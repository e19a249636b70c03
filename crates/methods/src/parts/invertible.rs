//! Invertible adapters: a reversible change of the embeddings, undone before a language model's
//! output layer.
//!
//! Pfeiffer, Vulić, Gurevych, Ruder, "MAD-X: An Adapter-Based Framework for Multi-Task
//! Cross-Lingual Transfer", EMNLP 2020, arXiv 2005.00052, section 3.4, after NICE (Dinh, Krueger,
//! Bengio 2014, arXiv 1410.8516); places and sizes are AdapterHub's.
//!
//! The states after the embeddings, their norm included, have two halves, `x₁` of ⌊d/2⌋ channels
//! and `x₂` of the others. `y₁ = x₁ + F(x₂)` and `y₂ = x₂ + G(y₁)` stand in for them, and in front
//! of the output layer of a language model `x₂ = y₂ - G(y₁)`, `x₁ = y₁ - F(x₂)` undo it. F and G
//! narrow their input by a factor, apply the bottlenecks' activation and widen it again; matrices
//! start normal with standard deviation 0.02.
//!
//! | | |
//! | --- | --- |
//! | trains | `F` and `G`: with `d₁`, `d₂` the halves and `m₁ = ⌊d₁/r⌋`, `m₂ = ⌊d₂/r⌋`, `(m₁ + m₂)(d + 1) + d` |
//! | file | `invertible_adapter.{F,G}.{0,2}.{weight,bias}` below the base's path |

use burn::tensor::Tensor;
use epiphyte_models::{Base, Role, Site};
use epiphyte_ops::{Activation, add};
use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::dense::Dense;

/// The kind of an invertible adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvAdapter {
    /// Additive couplings (Dinh et al. 2014).
    Nice,
}

crate::settings! {
    /// The settings of an invertible adapter, under AdapterHub's names.
    pub struct InvertibleConfig {
        /// An invertible adapter after the embeddings, undone before a language model's output
        /// layer, as in MAD-X: nice.
        inv_adapter: Option<InvAdapter> = None, as Text, unset "none";
        /// Half of the hidden size divided by the size of the invertible adapter's bottlenecks.
        inv_adapter_reduction_factor: f64 = 2.0, in AtLeastOne;
    }
}

/// An invertible adapter at work.
#[derive(Debug)]
pub(crate) struct Invertible {
    f: [Dense; 2],
    g: [Dense; 2],
    activation: Activation,
    /// Channels of each half.
    halves: [usize; 2],
    /// The path of the language model's output layer, if the base has one.
    output: Option<String>,
}

/// Channels of each half, and the sizes of the bottlenecks that read them.
fn sizes(factor: f64, width: usize) -> ([usize; 2], [usize; 2]) {
    let halves = [width / 2, width - width / 2];
    let narrow = halves.map(|half| ((half as f64 / factor) as usize).max(1));
    (halves, narrow)
}

impl InvertibleConfig {
    /// How many values it trains over this base.
    pub(crate) fn count(&self, base: &Base) -> usize {
        let Some(InvAdapter::Nice) = self.inv_adapter else {
            return 0;
        };
        let width = base.dimensions.hidden_size;
        let ([d1, d2], [m1, m2]) = sizes(self.inv_adapter_reduction_factor, width);
        let net =
            |inner, narrow, outer| Dense::count([narrow, inner]) + Dense::count([outer, narrow]);
        net(d2, m2, d1) + net(d1, m1, d2)
    }

    /// Declares it.
    ///
    /// # Errors
    /// [`MethodError::NotApplicable`] for encoder-decoders and where embeddings have another size
    /// than hidden states.
    pub(crate) fn declare(
        &self,
        method: &'static str,
        base: &Base,
        activation: Activation,
        parameters: &mut ParameterSet,
    ) -> Result<Option<Invertible>, MethodError> {
        let Some(InvAdapter::Nice) = self.inv_adapter else {
            return Ok(None);
        };
        let dimensions = &base.dimensions;
        let width = dimensions.hidden_size;
        if dimensions.encoder_layers > 0 || base.embedding_size() != width {
            return Err(MethodError::NotApplicable {
                method,
                model_type: dimensions.model_type.clone(),
                reason:
                    "an invertible adapter is for models of one stack whose embeddings have the \
                         hidden size: leave inv_adapter out"
                        .to_owned(),
            });
        }
        let ([d1, d2], [m1, m2]) = sizes(self.inv_adapter_reduction_factor, width);
        let mut net = |name: &str, [inner, narrow, outer]: [usize; 3]| {
            let init = || (Init::Normal { std: 0.02 }, Init::Zeros);
            let path = |layer| format!("{}invertible_adapter.{name}.{layer}", base.prefix);
            [
                Dense::declare(parameters, &path(0), [narrow, inner], init()),
                Dense::declare(parameters, &path(2), [outer, narrow], init()),
            ]
        };
        let is_output =
            |site: &Site, outputs| site.role == Role::Head && outputs == dimensions.vocabulary;
        let mut linears = base.linears().iter();
        let output = linears.find(|linear| is_output(&linear.site, linear.outputs));
        Ok(Some(Invertible {
            f: net("F", [d2, m2, d1]),
            g: net("G", [d1, m1, d2]),
            activation,
            halves: [d1, d2],
            output: output.map(|linear| linear.site.path.clone()),
        }))
    }
}

impl Invertible {
    fn net(&self, [first, second]: &[Dense; 2], x: Tensor<2>) -> Tensor<2> {
        second.forward(self.activation.apply(first.forward(x)))
    }

    fn split(&self, states: Tensor<2>) -> [Tensor<2>; 2] {
        let [d1, d2] = self.halves;
        [states.clone().narrow(1, 0, d1), states.narrow(1, d1, d2)]
    }

    /// What stands in for the embeddings' states.
    ///
    /// # Shapes
    /// - `states`, result: `[tokens, hidden]`
    pub(crate) fn forward(&self, states: Tensor<2>) -> Tensor<2> {
        let [x1, x2] = self.split(states);
        let y1 = add(x1, self.net(&self.f, x2.clone()));
        let y2 = add(x2, self.net(&self.g, y1.clone()));
        Tensor::cat(vec![y1, y2], 1)
    }

    /// Undoes [`Invertible::forward`].
    pub(crate) fn inverse(&self, states: Tensor<2>) -> Tensor<2> {
        let [y1, y2] = self.split(states);
        let x2 = y2 - self.net(&self.g, y1.clone());
        let x1 = y1 - self.net(&self.f, x2.clone());
        Tensor::cat(vec![x1, x2], 1)
    }

    /// Whether a linear layer is the language model's output layer.
    pub(crate) fn is_before(&self, site: &Site) -> bool {
        self.output
            .as_ref()
            .is_some_and(|output| *output == site.path)
    }

    /// Whether the base has such a layer.
    pub(crate) fn acts_on_output(&self) -> bool {
        self.output.is_some()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};
    use epiphyte_ops::random;
    use serde_json::json;

    use super::*;
    use crate::small_bert::bert;

    #[test]
    fn the_inverse_undoes_the_adapter() {
        let model = bert();
        let config = InvertibleConfig {
            inv_adapter: Some(InvAdapter::Nice),
            ..InvertibleConfig::default()
        };
        let mut parameters = ParameterSet::new(&Device::default(), 5);
        let adapter = config.declare("pfeiffer", model.base(), Activation::Relu, &mut parameters);
        let adapter = adapter.unwrap().unwrap();
        for param in parameters.stored() {
            param.set_values(random::normal(param.count() as u64, param.count(), 0.7));
        }
        assert_eq!(parameters.count(), config.count(model.base()));
        let values = random::normal(9, 24, 1.0);
        let states =
            Tensor::<2>::from_data(TensorData::new(values.clone(), [3, 8]), &Device::default());
        let changed = adapter.forward(states);
        let back = adapter
            .inverse(changed.clone())
            .try_into_vec_as::<f32>()
            .unwrap();
        let distance = |other: &[f32]| {
            let pairs = values.iter().zip(other).map(|(a, b)| (a - b).abs());
            pairs.fold(0.0f32, f32::max)
        };
        assert!(distance(&back) < 1e-5);
        assert!(distance(&changed.try_into_vec_as::<f32>().unwrap()) > 0.1);
    }

    #[test]
    fn the_count_on_bert_base_is_that_of_adapterhub() {
        // 2 (384 · 192 + 192 + 192 · 384 + 384)
        let with =
            |inverse: serde_json::Value| crate::small_bert::bert_base_count("pfeiffer", inverse, 0);
        let both = with(json!({ "inv_adapter": "nice" })) as i64 - with(json!({})) as i64;
        // The helper counts twelve layers; the adapter has one for the model.
        assert_eq!(both / 12, 296_064);
    }
}
