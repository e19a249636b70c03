//! BEFT: a trained shift of chosen linear layers, of the value projections unless others are named.
//!
//! Huang, Balashankar, Aminifar, "BEFT: Bias-Efficient Fine-Tuning of Language Models in Low-Data
//! Regimes", arXiv 2509.15974, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + s`, with `s: [out]`, which starts at zero, so nothing changes at first. A layer
//! without bias gets a shift too, and can then not be merged.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ out` over the targets |
//! | changes | the same |
//! | file | `<path>.beft_bias` `[1, out]` |
//! | merges | `b + s`, where the targets have biases |

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_models::adapter::Role;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Modules, NamedTargets};

crate::settings! {
    /// The settings of BEFT, under HF PEFT's names.
    pub struct BeftConfig {
        /// Linear layers to adapt: names, a regular expression, or all-linear.
        target_modules: Option<Modules> = None, unset "the value projections";
    }
}

impl BeftConfig {
    /// The targets by name, where the configuration leaves them to the base.
    fn named(&self, base: &Base) -> Result<NamedTargets, MethodError> {
        let values = || {
            let linears = base.linears().iter();
            let values = linears.filter(|linear| linear.site.role == Role::Value);
            let names = values.filter_map(|linear| linear.site.path.rsplit('.').next());
            let mut names: Vec<String> = names.map(str::to_owned).collect();
            names.sort_unstable();
            names.dedup();
            Modules::Endings(names)
        };
        let target_modules = self.target_modules.clone().unwrap_or_else(values);
        if target_modules == Modules::Endings(Vec::new()) {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "its values are projected together with queries and keys; say which \
                         layers to shift, with --target-modules"
                    .to_owned(),
            });
        }
        Ok(NamedTargets {
            target_modules: Some(target_modules),
        })
    }

    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        self.named(base)?.selection(Self::NAME, |_| &[]).of(base)
    }
}

impl MethodConfig for BeftConfig {
    const NAME: &'static str = "beft";
    const PEFT_TYPE: &'static str = "BEFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "shifts of the value projections";
    const PAPER: &'static str = "Huang et al. 2025, arXiv 2509.15974";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![json!({}), json!({ "target_modules": "all-linear" })]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?;
        let depth =
            |linear: &&LinearInfo| base.first_layer_of(&format!("{}.weight", linear.site.path));
        let first_layer = targets.iter().map(depth).min();
        let shifts = targets.into_iter().map(|linear| {
            let path = linear.site.path.clone();
            let key = format!("{path}.beft_bias");
            let shift = parameters.declare(key, &[1, linear.outputs], Init::Zeros);
            (path, (shift, linear.bias))
        });
        Ok(Box::new(Beft {
            shifts: shifts.collect(),
            first_layer: first_layer.unwrap_or(usize::MAX),
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let named = self.named(base)?;
        named.selection(Self::NAME, |_| &[]).check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?;
        Ok(targets.iter().map(|linear| linear.outputs).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        let named = self.named(base).ok();
        Self {
            target_modules: named.and_then(|named| named.target_modules),
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// The shifts by the path of their layer, each with whether the layer has a bias.
#[derive(Debug)]
struct Beft {
    shifts: BTreeMap<String, (Param, bool)>,
    first_layer: usize,
}

impl Adapter for Beft {
    fn linear(&self, site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.shifts.get(&site.path) {
            Some((shift, _)) => product.compute() + shift.get::<2>(),
            None => product.compute(),
        }
    }

    fn first_layer(&self) -> usize {
        self.first_layer
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Linear(site) if self.shifts.contains_key(&site.path))
    }
}

impl Method for Beft {
    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        let shifted = name.rsplit_once('.');
        let shifted = shifted.and_then(|(path, of)| Some((self.shifts.get(path)?, of)));
        match shifted {
            Some(((_, false), _)) => Err(MethodError::NotMergeable {
                method: BeftConfig::NAME,
                reason: "the base has no bias that could take up the shift",
            }),
            Some(((shift, true), "bias")) => {
                let bias = base.tensor(name).map(|bias| bias.to_flat());
                Ok(bias.map(|bias| bias + shift.flat().inner()))
            }
            _ => Ok(None),
        }
    }

    fn changed(&self) -> usize {
        self.shifts.values().map(|(shift, _)| shift.count()).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    /// One bias of the hidden size for each of the twelve layers.
    #[test]
    fn the_value_projections_of_bert_base_have_9216_shifts() {
        assert_eq!(bert_base_count("beft", json!({}), 0), 12 * 768);
    }
}
