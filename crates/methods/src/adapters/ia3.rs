//! (IA)³: learned vectors that rescale keys, values and intermediate states.
//!
//! Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
//! Learning", NeurIPS 2022, arXiv 2205.05638, section 3.3.
//!
//! On keys and values `y = l ⊙ (x Wᵀ + b)`, on the linear layer out of the feed-forward
//! `y = (l ⊙ x) Wᵀ + b`; every `l` starts at one, so nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ out` over rescaled outputs, `Σ in` over rescaled inputs |
//! | changes | `Σ in · out`, and the biases of rescaled outputs |
//! | file | `<path>.ia3_l` `[out, 1]`, for feed-forward targets `[1, in]` |
//! | merges | `diag(l) W` and `l ⊙ b`; `W diag(l)` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::scale_columns;
use serde_json::{Map, Value};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Modules, Selection, TargetModules};
use crate::framework::taxonomy::Claims;
use crate::parts::delta::{Delta, Deltas};

crate::settings! {
    /// The settings of (IA)³, under HF PEFT's names.
    pub struct Ia3Config {
        /// Targets that are rescaled at their input.
        feedforward_modules: Option<Modules> = None, unset "the last linear layer of the feed-forward";

        ..targets: TargetModules = TargetModules::default();
    }
}

impl Ia3Config {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.ia3)
    }

    /// Which targets are rescaled at their input.
    fn feed_forward(&self, base: &Base) -> Modules {
        self.feedforward_modules
            .clone()
            .unwrap_or_else(|| Modules::endings(base.default_targets.ia3_feedforward))
    }

    /// The targets, each with whether its input is rescaled.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, bool)>, MethodError> {
        let feed_forward = self.feed_forward(base);
        let targets = self.selection().of(base)?;
        targets
            .into_iter()
            .map(|linear| match feed_forward.matches(&linear.site.path) {
                Ok(at_input) => Ok((linear, at_input)),
                Err(error) => Err(MethodError::Configuration {
                    method: Self::NAME,
                    reason: format!("`feedforward_modules` cannot be used: {error}"),
                }),
            })
            .collect()
    }
}

impl MethodConfig for Ia3Config {
    const NAME: &'static str = "ia3";
    const PEFT_TYPE: &'static str = "IA3";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "vectors that rescale keys, values and intermediate states";
    const PAPER: &'static str = "Liu et al. 2022, arXiv 2205.05638";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra gating"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let deltas = targets.map(|(linear, at_input)| {
            let shape = if at_input {
                [1, linear.inputs]
            } else {
                [linear.outputs, 1]
            };
            let key = format!("{}.ia3_l", linear.site.path);
            let l = parameters.declare(key, &shape, Init::Ones);
            (linear, Ia3 { l, at_input })
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let width = |(linear, at_input): &(&LinearInfo, bool)| {
            if *at_input {
                linear.inputs
            } else {
                linear.outputs
            }
        };
        Ok(self.targets(base)?.iter().map(width).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            feedforward_modules: Some(self.feed_forward(base)),
            targets: self.targets.resolved(self.selection().targets(base)),
        }
    }

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_ia3_weights".to_owned(), Value::Bool(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// (IA)³ on one linear layer.
#[derive(Debug)]
struct Ia3 {
    l: Param,
    at_input: bool,
}

impl Ia3 {
    /// `[1, width]`
    fn row(&self) -> Tensor<2> {
        self.l.flat().unsqueeze()
    }
}

impl Delta for Ia3 {
    const CHANGES_BIAS: bool = true;

    fn input(&self, _site: &Site, x: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        if self.at_input {
            scale_columns(x, self.l.flat())
        } else {
            x
        }
    }

    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let y = product.compute();
        if self.at_input {
            y
        } else {
            scale_columns(y, self.l.flat())
        }
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let l = self.row().inner();
        if self.at_input {
            weight * l
        } else {
            weight * l.transpose()
        }
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        if self.at_input {
            bias
        } else {
            bias * self.l.flat().inner()
        }
    }
}
