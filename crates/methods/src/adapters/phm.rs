//! PHM adapter: Houlsby's adapter with weights that are sums of Kronecker products of full rank.
//!
//! Karimi Mahabadi, Henderson, Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
//! NeurIPS 2021, arXiv 2106.04647, section 5, where it is a baseline; layers of Zhang et al. 2021,
//! arXiv 2102.08597.
//!
//! As [`compacter`](crate::adapters::compacter) with `W = Σ_i A_i ⊗ B_i`, `B_i: [in / n, out / n]`
//! of full rank, and a rule of its own for every linear layer, which starts normal with standard
//! deviation 0.01. `n` is 12 and `m` is `d / 32`, where the paper has 768 and 24: both must be
//! multiples of `n`.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `2 L (2 d m / n + 2 n³ + m + d)`, and the norms as Houlsby's adapter |
//! | file | `<module>.adapter_{down,up}.{phm_rule,W,b}`; each norm's tensors under their own names |
//! | merges | no |

use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::adapters::compacter::{CompacterSettings, Kind};
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::phm::PhmConfig;
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of the PHM adapter.
    pub struct PhmAdapterConfig {
        ..adapters: CompacterSettings = CompacterSettings {
            phm: PhmConfig {
                phm_dim: 12,
                ..PhmConfig::default()
            },
            ..CompacterSettings::default()
        };
    }
}

const PHM: Kind = Kind::new(PhmAdapterConfig::NAME, true);

impl MethodConfig for PhmAdapterConfig {
    const NAME: &'static str = "phm";
    const PEFT_TYPE: &'static str = "PHM";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks of full-rank Kronecker products after attention and feed-forward";
    const PAPER: &'static str = "Karimi Mahabadi et al. 2021, arXiv 2106.04647";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "bottleneck_dim": 4, "phm_dim": 4 }),
            json!({ "bottleneck_dim": 6, "phm_dim": 2, "train_layer_norms": false }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.adapters.build(&PHM, base, parameters)
    }

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        self.adapters.to_adapterhub(&PHM, base)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let adapters = CompacterSettings::of_adapterhub(config, &PHM, false)?;
        Some(Self { adapters })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.adapters.count(&PHM, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            adapters: self.adapters.resolved(&PHM, base),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, distance, logits, module, set_random, values};

    /// With one term and a rule of one, the layers are ordinary linear layers.
    #[test]
    fn one_term_is_houlsbys_adapter() {
        let model = bert();
        let settings = json!({ "bottleneck_dim": 3, "phm_dim": 1, "train_layer_norms": false });
        let phm = module(&model, "phm", settings);
        let settings = json!({ "bottleneck_dim": 3, "train_layer_norms": false });
        let houlsby = module(&model, "houlsby", settings);
        for param in phm.parameters().trained() {
            let key = param.key();
            match key.rsplit_once('.').unwrap() {
                (_, "phm_rule") => param.set_values(vec![1.0]),
                (_, "W") => {
                    set_random(&phm, key);
                }
                (path, _) => {
                    let drawn = set_random(&phm, key);
                    let bias = houlsby.parameters().get(&format!("{path}.bias")).unwrap();
                    bias.set_values(drawn);
                }
            }
        }
        phm.parameters().derive(false);
        for param in houlsby.parameters().trained() {
            if param.key().ends_with("weight") {
                param.set_values(values(&phm, param.key()));
            }
        }
        let (phm, houlsby) = (logits(&model, &phm), logits(&model, &houlsby));
        assert!(distance(&phm, &houlsby) < 1e-6);
        assert!(distance(&phm, &logits(&model, &epiphyte_models::Identity)) > 1e-3);
    }
}
