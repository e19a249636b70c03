//! Compacter++: Compacter without the adapters after self-attention.
//!
//! Karimi Mahabadi, Henderson, Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
//! NeurIPS 2021, arXiv 2106.04647, section 4.
//!
//! With `o` the output of the feed-forward after its projection and dropout,
//! `o + f(o W_d + b_d) W_u + b_u` joins the residual stream in its place; all else is as in
//! [`compacter`](crate::adapters::compacter). AdapterHub's `compacter++` reads `o` after the
//! residual connection and the norm instead.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `L (2 r (d + m) + m + d) + n³`, and the norms as Houlsby's adapter |
//! | file | `phm_rule` `[n, n, n]`; `<module>.adapter_{down,up}.{W_left,W_right,b}`; each norm's tensors under their own names |
//! | merges | no |

use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::adapters::compacter::{CompacterSettings, Kind};
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of Compacter++.
    pub struct CompacterPlusPlusConfig {
        ..adapters: CompacterSettings = CompacterSettings::default();
    }
}

const COMPACTER_PLUS_PLUS: Kind = Kind::new(CompacterPlusPlusConfig::NAME, false);

impl MethodConfig for CompacterPlusPlusConfig {
    const NAME: &'static str = "compacter-plus-plus";
    const PEFT_TYPE: &'static str = "COMPACTER_PLUS_PLUS";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "bottlenecks of low-rank Kronecker products after feed-forwards";
    const PAPER: &'static str = "Karimi Mahabadi et al. 2021, arXiv 2106.04647";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "bottleneck_dim": 8 }),
            json!({
                "bottleneck_dim": 4, "phm_dim": 2, "train_layer_norms": false,
                "phm_init_range": 0.5,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.adapters.build(&COMPACTER_PLUS_PLUS, base, parameters)
    }

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        self.adapters.to_adapterhub(&COMPACTER_PLUS_PLUS, base)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let adapters = CompacterSettings::of_adapterhub(config, &COMPACTER_PLUS_PLUS, true)?;
        Some(Self { adapters })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.adapters.count(&COMPACTER_PLUS_PLUS, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            adapters: self.adapters.resolved(&COMPACTER_PLUS_PLUS, base),
        }
    }
}
