//! S4: in groups of layers, each with its own choice among adapters, prefixes, biases and LoRA.
//!
//! Chen, Zhang, Zhang, Shi, Wang, Smola, Yang, "Parameter-Efficient Fine-Tuning Design Spaces",
//! ICLR 2023, arXiv 2301.01821, section 5.
//!
//! The paper searches designs of four parts: how layers are grouped, how many parameters each layer
//! gets, which groups are tuned, and the strategies of each group. What it finds, S4, is the
//! default here: four groups in the shape of a spindle, the same number of parameters for every
//! layer, all groups tuned, and from the first to the last group adapter and LoRA; adapter and
//! prefix; adapter, prefix and biases; prefix, biases and LoRA. Any other design is a setting.
//!
//! Each strategy is that of its own method, in the layers of its groups: `a` Pfeiffer's adapter,
//! `p` a prefix in front of keys and values, `b` all biases, `l` LoRA on the family's default
//! targets with a scaling of 2. Where layers have no biases, as in T5 and Llama, `b` trains
//! nothing.
//!
//! The paper gives shapes and no numbers, and decided here is: a spindle of `L` layers has groups
//! of `L/6`, `L/3`, `L/3`, `L/6`; an encoder-decoder's stacks are grouped alike, each by itself. A
//! layer may spend `s4_budget · |θ| / L` values. Of these its biases are taken off, and the rest is
//! shared equally among the other strategies: ranks, prefix lengths and bottlenecks are the largest
//! that fit, a prefix at most a quarter of the model's positions; what is left goes to the rank,
//! then the prefix, then the bottleneck, while one more fits.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | per layer at most `s4_budget · |θ| / L`: `2 d m + m + d`, `2 l kv`, its biases, `Σ r (in + out)` (LoRA changes `Σ in · out`) |
//! | file | `<module>.adapter_down`, `<module>.adapter_up`; `s4.<layer>.prefix` `[l, 2 kv]`; biases under their own names; `<path>.lora_A.weight`, `<path>.lora_B.weight` |
//! | merges | no: adapters and prefixes cannot |

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_models::adapter::{AttentionKind, AttentionSite};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LinearInfo, Role};
use epiphyte_ops::Prefix;
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::composition::{BuildMember, Union};
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, TargetModules};
use crate::parts::bottleneck::{self, InLayers, InitWeights, Placement, Slot, modules};
use crate::parts::delta::Deltas;
use crate::parts::dense::Dense;
use crate::parts::replace::Replaced;
use crate::reparametrized::lora::{Lora, LoraConfig};

crate::settings! {
    /// The settings of S4.
    pub struct S4Config {
        /// Share of the base's values that are trained at most.
        s4_budget: f64 = 0.005, in Fraction;
        /// Sizes of the groups of layers, from the first layer on.
        s4_groups: Option<Vec<usize>> = None, unset "a spindle of four";
        /// Strategies of each group: letters of a (adapter), p (prefix), b (biases) and l (LoRA).
        s4_strategies: Vec<String> = ["al", "ap", "apb", "pbl"].map(str::to_owned).to_vec(),
            unset "al,ap,apb,pbl";
        /// Activation function: relu, gelu_new, silu, ...
        non_linearity: String = "relu".to_owned();

        ..targets: TargetModules = TargetModules::default();
    }
}

const BOTTLENECKS: bottleneck::Variant = bottleneck::Variant {
    method: S4Config::NAME,
    default_dim: |hidden_size| (hidden_size / 16).max(1),
};

/// The strategies of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Strategies {
    adapter: bool,
    prefix: bool,
    biases: bool,
    lora: bool,
}

impl Strategies {
    fn parse(letters: &str) -> Option<Self> {
        let mut strategies = Self::default();
        for letter in letters.chars() {
            let strategy = match letter.to_ascii_lowercase() {
                'a' => &mut strategies.adapter,
                'p' => &mut strategies.prefix,
                'b' => &mut strategies.biases,
                'l' => &mut strategies.lora,
                _ => return None,
            };
            if std::mem::replace(strategy, true) {
                return None;
            }
        }
        Some(strategies)
    }
}

/// What a layer trains. Sizes are 0 for what it does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Size of the adapter's bottleneck.
    bottleneck: usize,
    /// Length of the prefix.
    prefix: usize,
    /// Rank of LoRA.
    rank: usize,
    biases: bool,
}

/// What one more of each size costs in a layer.
#[derive(Clone, Copy, Debug)]
struct Costs {
    /// The bottleneck's, and of the adapter without any.
    bottleneck: [usize; 2],
    prefix: usize,
    rank: usize,
    biases: usize,
    /// The longest prefix there may be.
    longest: usize,
}

impl Plan {
    fn cost(&self, costs: &Costs) -> usize {
        let [each, fixed] = costs.bottleneck;
        let adapter = match self.bottleneck {
            0 => 0,
            size => size * each + fixed,
        };
        let biases = if self.biases { costs.biases } else { 0 };
        adapter + self.prefix * costs.prefix + self.rank * costs.rank + biases
    }

    /// The sizes that `budget` leaves; none if it leaves too little.
    fn new(strategies: Strategies, costs: &Costs, budget: usize) -> Option<Self> {
        let mut plan = Self {
            biases: strategies.biases && costs.biases > 0,
            ..Self::default()
        };
        let has = [strategies.adapter, strategies.prefix, strategies.lora];
        let others = has.into_iter().filter(|it| *it).count();
        let rest = budget.checked_sub(plan.cost(costs))?;
        if others == 0 {
            return plan.biases.then_some(plan);
        }
        let quota = rest / others;
        let [each, fixed] = costs.bottleneck;
        if strategies.adapter {
            plan.bottleneck = quota.checked_sub(fixed)? / each;
        }
        if strategies.prefix {
            plan.prefix = (quota / costs.prefix).min(costs.longest);
        }
        if strategies.lora {
            plan.rank = quota / costs.rank;
        }
        let sizes = [plan.bottleneck, plan.prefix, plan.rank];
        if has.iter().zip(sizes).any(|(has, size)| *has && size == 0) {
            return None;
        }
        for grow in [
            (|plan: &mut Self| &mut plan.rank) as fn(&mut Self) -> &mut usize,
            |plan| &mut plan.prefix,
            |plan| &mut plan.bottleneck,
        ] {
            while *grow(&mut plan) > 0 {
                let mut larger = plan;
                *grow(&mut larger) += 1;
                if larger.cost(costs) > budget || larger.prefix > costs.longest {
                    break;
                }
                plan = larger;
            }
        }
        Some(plan)
    }
}

impl S4Config {
    fn value(key: &'static str, value: String, expected: String) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key,
            value,
            expected,
        }
    }

    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The group of each of a stack's layers.
    fn groups(&self, layers: usize) -> Result<Vec<usize>, MethodError> {
        let sizes = match &self.s4_groups {
            Some(sizes) if sizes.iter().sum::<usize>() == layers => sizes.clone(),
            Some(sizes) => {
                let expected =
                    format!("the sizes must add up to the {layers} layers of each stack");
                return Err(Self::value("s4_groups", format!("{sizes:?}"), expected));
            }
            None => spindle(layers).to_vec(),
        };
        if sizes.len() != self.s4_strategies.len() {
            return Err(Self::value(
                "s4_strategies",
                self.s4_strategies.join(","),
                format!(
                    "it must have the strategies of each of the {} groups",
                    sizes.len()
                ),
            ));
        }
        let groups = sizes.iter().enumerate();
        let groups = groups.flat_map(|(group, &size)| std::iter::repeat_n(group, size));
        Ok(groups.collect())
    }

    /// What each layer trains.
    fn plans(&self, base: &Base) -> Result<Vec<Plan>, MethodError> {
        // Parameters are named after the modules of each layer.
        modules(base, Role::FeedForwardOut, Self::NAME)?;
        let strategies = self.s4_strategies.iter().map(|letters| {
            Strategies::parse(letters).ok_or_else(|| {
                let expected = "it must be letters of a, p, b and l, each once at most".to_owned();
                Self::value("s4_strategies", letters.clone(), expected)
            })
        });
        let strategies: Vec<Strategies> = strategies.collect::<Result<_, _>>()?;
        let (layers, encoder) = (base.dimensions.layers, base.dimensions.encoder_layers);
        let mut groups = match encoder {
            0 => Vec::new(),
            layers => self.groups(layers)?,
        };
        groups.extend(self.groups(layers - encoder)?);
        let budget = (self.s4_budget * base.count() as f64 / layers as f64) as usize;
        let targets = self.selection().of(base)?;
        let mut plans = Vec::new();
        for (layer, group) in groups.into_iter().enumerate() {
            let costs = costs(base, layer, &targets);
            let strategies = strategies[group];
            if strategies.lora && costs.rank == 0 {
                return Err(MethodError::NotApplicable {
                    method: Self::NAME,
                    model_type: base.dimensions.model_type.clone(),
                    reason: format!(
                        "layer {layer} has no target for LoRA; choose strategies without l, or \
                         other target modules"
                    ),
                });
            }
            let wants_some = strategies != Strategies::default();
            let biases_alone = Strategies {
                biases: true,
                ..Strategies::default()
            };
            let nothing = !wants_some || (strategies == biases_alone && costs.biases == 0);
            let plan = match nothing {
                true => Plan::default(),
                false => Plan::new(strategies, &costs, budget).ok_or_else(|| {
                    let expected = format!(
                        "that leaves {budget} values for layer {layer}, too few for its strategies \
                         {}; it must be larger",
                        self.s4_strategies[group]
                    );
                    Self::value("s4_budget", self.s4_budget.to_string(), expected)
                })?,
            };
            plans.push(plan);
        }
        match plans.iter().all(|plan| *plan == Plan::default()) {
            true => Err(Self::value(
                "s4_strategies",
                self.s4_strategies.join(","),
                "with these nothing of this model is trained".to_owned(),
            )),
            false => Ok(plans),
        }
    }

    fn adapters(
        &self,
        base: &Base,
        plans: &[Plan],
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let activation =
            self.non_linearity
                .parse()
                .map_err(|error| MethodError::Configuration {
                    method: Self::NAME,
                    reason: format!("`non_linearity`: {error}"),
                })?;
        let modules = modules(base, Role::FeedForwardOut, Self::NAME)?;
        let layers = modules.into_iter().zip(plans).map(|(module, plan)| {
            let slot = Slot {
                module,
                width: base.dimensions.hidden_size,
                dim: plan.bottleneck,
                activation,
                init: InitWeights::Bert,
            };
            (plan.bottleneck > 0).then(|| slot.declare(parameters))
        });
        let layers = layers.collect();
        let count = parameters.count();
        let adapters = InLayers::new(&BOTTLENECKS, Placement::AroundNorm, layers, count);
        Ok(Box::new(adapters))
    }

    fn loras(
        &self,
        base: &Base,
        plans: &[Plan],
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?.into_iter();
        let chosen = targets.filter_map(|linear| {
            let rank = plans[linear.site.layer?].rank;
            (rank > 0).then_some((linear, rank))
        });
        let deltas = chosen.map(|(linear, rank)| {
            let [a, b] = LoraConfig::default().declare(linear, rank, parameters);
            let lora = Lora {
                a,
                b,
                bias: None,
                scaling: 2.0,
                dropout: 0.0,
                taken: None,
            };
            (linear, lora)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }
}

/// The sizes of a spindle's four groups.
fn spindle(layers: usize) -> [usize; 4] {
    let outer = match layers {
        0..4 => 0,
        _ => (layers / 6).max(1),
    };
    let middle = layers - 2 * outer;
    [outer, middle.div_ceil(2), middle / 2, outer]
}

/// What sizes cost in a layer.
fn costs(base: &Base, layer: usize, targets: &[&LinearInfo]) -> Costs {
    let size = base.dimensions.hidden_size;
    let is_here = |it: &&&LinearInfo| it.site.layer == Some(layer);
    let in_layer = targets.iter().filter(is_here);
    let biases = base
        .tensors()
        .iter()
        .filter(|(name, _)| is_bias(base, name, layer));
    Costs {
        bottleneck: [Dense::count([1, size]) + size, size],
        prefix: 2 * kv_size(base),
        longest: base.dimensions.max_positions.unwrap_or(usize::MAX) / 4,
        rank: in_layer.map(|it| it.inputs + it.outputs).sum(),
        biases: biases.map(|(_, tensor)| tensor.count()).sum(),
    }
}

/// Size of all key heads together, which is also that of all value heads.
fn kv_size(base: &Base) -> usize {
    base.dimensions.kv_heads * base.dimensions.head_dim
}

/// Whether a tensor is a bias of a layer.
fn is_bias(base: &Base, name: &str, layer: usize) -> bool {
    name.ends_with(".bias") && base.layer_of(name) == Some(layer) && !base.is_of_head(name)
}

impl MethodConfig for S4Config {
    const NAME: &'static str = "s4";
    const PEFT_TYPE: &'static str = "S4";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "groups of layers with adapters, prefixes, biases and LoRA as a search has found them";
    const PAPER: &'static str = "Chen et al. 2023, arXiv 2301.01821";
    const CLAIMS: Option<crate::Claims> =
        Some(crate::Claims::survey("extra feed-forward and input"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        // A smooth function, since gradients are compared with slopes.
        vec![
            json!({ "s4_budget": 0.2, "non_linearity": "gelu" }),
            json!({
                "s4_budget": 0.2, "s4_strategies": ["", "abl", "apl", ""],
                "non_linearity": "silu",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let plans = self.plans(base)?;
        let adapters = |own: &mut ParameterSet| self.adapters(base, &plans, own);
        let prefixes = |own: &mut ParameterSet| Ok(Prefixes::declare(base, &plans, own));
        let biases = |own: &mut ParameterSet| -> Result<Box<dyn Method>, MethodError> {
            let layers = plans.iter().enumerate();
            let layers = layers.filter(|(_, plan)| plan.biases);
            let layers: Vec<usize> = layers.map(|(layer, _)| layer).collect();
            let chosen = |name: &str| layers.iter().any(|&layer| is_bias(base, name, layer));
            Ok(Box::new(Replaced::new(base, own, chosen)))
        };
        let loras = |own: &mut ParameterSet| self.loras(base, &plans, own);
        let used = |is_used: fn(&Plan) -> bool| plans.iter().any(is_used);
        let members: [(bool, BuildMember<'_>); 4] = [
            (used(|plan| plan.bottleneck > 0), &adapters),
            (used(|plan| plan.prefix > 0), &prefixes),
            (used(|plan| plan.biases), &biases),
            (used(|plan| plan.rank > 0), &loras),
        ];
        let members = members.into_iter().filter(|(is_used, _)| *is_used);
        let members: Vec<BuildMember<'_>> = members.map(|(_, build)| build).collect();
        Ok(Box::new(Union::build(
            Self::NAME,
            base,
            parameters,
            &members,
        )?))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let (plans, targets) = (self.plans(base)?, self.selection().of(base)?);
        let plans = plans.iter().enumerate();
        Ok(plans
            .map(|(layer, plan)| plan.cost(&costs(base, layer, &targets)))
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> serde_json::Map<String, Value> {
        self.selection().computed(base)
    }
}

/// Prefixes in front of the self-attentions of some layers.
#[derive(Debug)]
struct Prefixes {
    /// Keys and values side by side, `[length, 2 kv]`.
    by_layer: BTreeMap<usize, Param>,
    encoder_layers: usize,
    kv_size: usize,
}

impl Prefixes {
    fn declare(base: &Base, plans: &[Plan], parameters: &mut ParameterSet) -> Box<dyn Method> {
        let kv_size = kv_size(base);
        let layers = plans.iter().enumerate().filter(|(_, plan)| plan.prefix > 0);
        let by_layer = layers.map(|(layer, plan)| {
            let key = format!("s4.{layer}.prefix");
            let init = Init::Normal { std: 1.0 };
            (
                layer,
                parameters.declare(key, &[plan.prefix, 2 * kv_size], init),
            )
        });
        Box::new(Self {
            by_layer: by_layer.collect(),
            encoder_layers: base.dimensions.encoder_layers,
            kv_size,
        })
    }

    /// The prefix of a self-attention.
    fn at(&self, at: AttentionSite) -> Option<&Param> {
        match at.kind {
            AttentionKind::Cross => None,
            AttentionKind::Encoder | AttentionKind::Decoder => self.by_layer.get(&at.layer),
        }
    }
}

impl Adapter for Prefixes {
    /// The positions of the longest, for all layers of a stack.
    fn prefix_length(&self, decoder: bool) -> usize {
        let of_stack = |layer: usize| match self.encoder_layers {
            0 => true,
            encoder => (layer >= encoder) == decoder,
        };
        let layers = self.by_layer.iter().filter(|(layer, _)| of_stack(**layer));
        let lengths = layers.map(|(_, prefix)| prefix.shape()[0]);
        lengths.max().unwrap_or(0)
    }

    fn prefix(
        &self,
        at: AttentionSite,
        _x: &Tensor<2>,
        _cx: &ForwardContext<'_>,
    ) -> Option<Prefix> {
        let both = self.at(at)?.get::<2>();
        Some(Prefix::Shared {
            keys: both.clone().narrow(1, 0, self.kv_size),
            values: both.narrow(1, self.kv_size, self.kv_size),
        })
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Prefix(at) if self.at(at).is_some())
    }
}

impl Method for Prefixes {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: S4Config::NAME,
            reason: "its prefixes depend on no input",
        })
    }

    fn changed(&self) -> usize {
        self.by_layer.values().map(Param::count).sum()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Costs, Plan, S4Config, Strategies, spindle};
    use crate::framework::settings::parse;
    use crate::small_bert::{bert, logits, module, set_random};

    #[test]
    fn spindles_are_thick_in_the_middle_and_hold_every_layer() {
        assert_eq!(spindle(12), [2, 4, 4, 2]);
        assert_eq!(spindle(24), [4, 8, 8, 4]);
        for layers in 0..40 {
            let sizes = spindle(layers);
            assert_eq!(sizes.iter().sum::<usize>(), layers);
            assert!(sizes[1] >= sizes[0] && sizes[2] >= sizes[3]);
        }
    }

    /// A layer of bert-base and 0.5 % of 109,482,240 values for twelve of them.
    #[test]
    fn the_budget_is_spent_and_never_exceeded() {
        let costs = Costs {
            bottleneck: [2 * 768 + 1, 768],
            prefix: 2 * 768,
            rank: 4 * 768,
            biases: 7 * 768 + 3072,
            longest: 128,
        };
        let budget = 547_411 / 12;
        for letters in ["al", "ap", "apb", "pbl", "a", "p", "l", "apbl"] {
            let strategies = Strategies::parse(letters).unwrap();
            let plan = Plan::new(strategies, &costs, budget).unwrap();
            let cost = plan.cost(&costs);
            assert!(cost <= budget, "{letters}: {cost}");
            // One more of the smallest would not fit.
            let smallest = if letters == "l" {
                costs.rank
            } else {
                costs.bottleneck[0]
            };
            assert!(budget - cost < smallest, "{letters}: {cost}");
            assert_eq!(plan.biases, strategies.biases);
            assert_eq!(plan.prefix > 0, strategies.prefix);
        }
        assert_eq!(
            Plan::new(Strategies::parse("al").unwrap(), &costs, 5000),
            None
        );
        assert_eq!(Strategies::parse("aa"), None);
        assert_eq!(Strategies::parse("x"), None);
    }

    #[test]
    fn each_group_trains_what_its_strategies_say() {
        let model = bert();
        let settings = json!({
            "s4_budget": 0.8, "s4_groups": [1, 1], "s4_strategies": ["ab", "pl"],
        });
        let module = module(&model, "s4", settings);
        let keys: Vec<&str> = module.parameters().trained().map(|it| it.key()).collect();
        let count = |layer: usize, part: &str| {
            let path = format!("layer.{layer}.");
            let named = |key: &&&str| key.contains(&path) && key.contains(part);
            keys.iter().filter(named).count()
        };
        assert_eq!([count(0, "adapter_"), count(1, "adapter_")], [4, 0]);
        assert_eq!([count(0, "lora_"), count(1, "lora_")], [0, 4]);
        let biases = keys.iter().filter(|key| !key.contains("adapter_"));
        let biases = biases.filter(|key| key.ends_with(".bias"));
        assert!(biases.clone().count() == 8 && biases.into_iter().all(|it| it.contains("layer.0")));
        assert!(keys.contains(&"s4.1.prefix") && !keys.contains(&"s4.0.prefix"));
        let before = logits(&model, &module);
        set_random(&module, "s4.1.prefix");
        assert_ne!(before, logits(&model, &module));
    }

    #[test]
    fn designs_that_do_not_fit_are_named() {
        let model = bert();
        for (settings, words) in [
            (json!({ "s4_groups": [1, 2] }), "`s4_groups` is [1, 2]"),
            (json!({ "s4_strategies": ["al"] }), "each of the 4 groups"),
            (
                json!({ "s4_strategies": ["al", "ax", "p", "l"] }),
                "`s4_strategies` is ax",
            ),
            (json!({ "s4_budget": 1e-6 }), "`s4_budget` is 0.000001"),
            (
                json!({ "s4_strategies": ["", "", "", ""] }),
                "nothing of this model",
            ),
        ] {
            let config: S4Config = parse(settings.as_object().unwrap()).unwrap();
            let error = config.plans(model.base()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
