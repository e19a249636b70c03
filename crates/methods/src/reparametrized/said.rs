//! Intrinsic SAID and DID: all of the base is moved within a random space of few dimensions.
//!
//! Aghajanyan, Zettlemoyer, Gupta, "Intrinsic Dimensionality Explains the Effectiveness of Language
//! Model Fine-Tuning", ACL 2021, arXiv 2012.13255, section 3, and its code.
//!
//! For each tensor `i` of the base, `W_i = W⁰_i + λ_i P_i θ`: one trained vector `θ` for all, and
//! `P_i` a Fastfood projection (`parts/fastfood.rs`) of the tensor's own. With `intrinsic_said`
//! the `m` factors `λ_i` are trained too (structure-aware, SAID) and `θ` has `d - m` values, so
//! that `d` are trained in all; without, `λ_i` is 1 and `θ` has `d` values (DID). `θ` starts at
//! zero and `λ_i` at one, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `d` |
//! | changes | every value of the base |
//! | file | `intrinsic_vector` `[d - m]` or `[d]`, `intrinsic_scales` `[m]`; the projections follow from `projection_prng_key` |
//! | merges | `W_i` is put in place |
//!
//! Differences from the code: its backward pass divides the gradient of each Hadamard transform by
//! the square root of its size, so that a tensor's share in the gradient depends on its size; here
//! gradients are the true ones. It has one factor that nothing reads, and reduces `θ` for it.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, BaseTensor, Hook, StandIn};
use epiphyte_ops::random::derive_key;
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::fastfood::Fastfood;

crate::settings! {
    /// The settings of SAID and DID.
    pub struct SaidConfig {
        /// Number of trained values.
        intrinsic_dim: usize = 20_000, in AtLeastOne;
        /// Train a factor for each tensor of the base as well (SAID; without, DID).
        intrinsic_said: bool = true, as Boolean;
        /// Seed of the projections, apart from the run's.
        projection_prng_key: u64 = 0;
    }
}

/// The base's tensors without the task's head.
fn tensors(base: &Base) -> impl Iterator<Item = (&String, &BaseTensor)> {
    let tensors = base.tensors().iter();
    tensors.filter(|(name, _)| !base.is_of_head(name))
}

impl SaidConfig {
    /// How many values `θ` has, and how many factors there are.
    fn sizes(&self, base: &Base) -> Result<[usize; 2], MethodError> {
        let factors = match self.intrinsic_said {
            true => tensors(base).count(),
            false => 0,
        };
        match self.intrinsic_dim.checked_sub(factors) {
            Some(rest) if rest > 0 => Ok([rest, factors]),
            _ => Err(MethodError::Value {
                method: Self::NAME,
                key: "intrinsic_dim",
                value: self.intrinsic_dim.to_string(),
                expected: format!(
                    "it must be more than {factors}, a factor for each tensor of the base; without \
                     these set `intrinsic_said` to false"
                ),
            }),
        }
    }
}

impl MethodConfig for SaidConfig {
    const NAME: &'static str = "said";
    const PEFT_TYPE: &'static str = "SAID";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "all of the base, within a random space of few dimensions";
    const PAPER: &'static str = "Aghajanyan et al. 2021, arXiv 2012.13255";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_storage: Some(false),
        saves_memory: Some(false),
        ..crate::Claims::survey("none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "intrinsic_dim": 300 }),
            json!({ "intrinsic_dim": 40, "intrinsic_said": false, "projection_prng_key": 5 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let [values, factors] = self.sizes(base)?;
        let theta = parameters.declare("intrinsic_vector", &[values], Init::Zeros);
        let scales =
            (factors > 0).then(|| parameters.declare("intrinsic_scales", &[factors], Init::Ones));
        let mut by_name = BTreeMap::new();
        for (index, (name, tensor)) in tensors(base).enumerate() {
            let key = derive_key(self.projection_prng_key, name_id(name));
            let projection = Fastfood::new(key, values, tensor.count(), parameters.device());
            let (theta, scales, tensor) = (theta.clone(), scales.clone(), tensor.clone());
            let shape = tensor.shape();
            let moved = parameters.derived(name, &shape, move || {
                let change = projection.project(theta.flat());
                let change = match &scales {
                    Some(scales) => change * scales.flat().narrow(0, index, 1),
                    None => change,
                };
                change + tensor.to_flat()
            });
            by_name.insert(name.clone(), moved);
        }
        Ok(Box::new(Said { by_name }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.sizes(base)?;
        Ok(self.intrinsic_dim)
    }

    fn resolved(&self, _base: &Base) -> Self {
        self.clone()
    }
}

/// The moved tensors of the base, by name.
#[derive(Debug)]
struct Said {
    by_name: BTreeMap<String, Param>,
}

impl Adapter for Said {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        let moved = self.by_name.get(name)?;
        Some(StandIn::Tensor(moved.flat()))
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Parameter(name) if self.by_name.contains_key(name))
    }
}

impl Method for Said {
    fn merged(&self, name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Ok(self.by_name.get(name).map(|moved| moved.flat().inner()))
    }

    fn changed(&self) -> usize {
        self.by_name.values().map(Param::count).sum()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use crate::small_bert::{bert, distance, logits, module, set_random};
    use crate::{AdapterModule, by_name};

    #[test]
    fn the_number_of_trained_values_is_the_setting() {
        let model = bert();
        let tensors = model.base().tensors().keys();
        let tensors = tensors
            .filter(|name| !model.base().is_of_head(name))
            .count();
        for (said, vector) in [(true, 100 - tensors), (false, 100)] {
            let settings = json!({ "intrinsic_dim": 100, "intrinsic_said": said });
            let module = module(&model, "said", settings);
            let counts = module.counts(model.base());
            assert_eq!(counts.trainable_parameters, 100);
            assert_eq!(counts.stored_parameters, 100);
            assert_eq!(counts.changed_parameters, model.base().count());
            let theta = module.parameters().get("intrinsic_vector").unwrap();
            assert_eq!(theta.count(), vector);
        }
        let config = by_name("said").unwrap();
        let settings = json!({ "intrinsic_dim": tensors });
        let config = config.configure(settings.as_object().unwrap().clone());
        let error = config.unwrap().count(model.base()).unwrap_err();
        assert!(error.to_string().contains("`intrinsic_said`"), "{error}");
    }

    #[test]
    fn the_model_follows_from_the_projections_seed_and_not_from_the_runs() {
        let model = bert();
        let of = |key: u64, seed: u64| {
            let settings = json!({ "intrinsic_dim": 80, "projection_prng_key": key });
            let config = by_name("said").unwrap();
            let config = config.configure(settings.as_object().unwrap().clone());
            let module =
                AdapterModule::new(config.unwrap(), model.base(), &Device::default(), seed);
            let module = module.unwrap();
            set_random(&module, "intrinsic_vector");
            module.parameters().derive(false);
            logits(&model, &module)
        };
        assert_eq!(of(0, 1), of(0, 2));
        assert!(distance(&of(0, 1), &of(1, 1)) > 1e-3);
    }
}
