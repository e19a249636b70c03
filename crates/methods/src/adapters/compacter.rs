//! Compacter: Houlsby's adapter with weights that are sums of Kronecker products.
//!
//! Karimi Mahabadi, Henderson, Ruder, "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
//! NeurIPS 2021, arXiv 2106.04647, sections 3 and 4.
//!
//! With `o` the output of self-attention or feed-forward after its projection and dropout,
//! `o + f(o W_d + b_d) W_u + b_u` joins the residual stream in its place. `W_d: [d, m]` and
//! `W_u: [m, d]` are `Σ_i A_i ⊗ s_i t_i` over `n` terms ([`crate::parts::phm`]); the rule, all
//! `A_i`, is one tensor of the whole model. `f` is GELU in its tanh form, `n` is 4, `s_i t_i` has
//! rank 1, `m` is `d / 32`. The rule starts normal with standard deviation 1e-4, so hardly anything
//! changes at first. As in the reference code, which has T5, the norms of the model are trained
//! too; `train_layer_norms` = false keeps them frozen.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `2 L (2 r (d + m) + m + d) + n³`, and the norms as Houlsby's adapter |
//! | file | `phm_rule` `[n, n, n]`; `<module>.adapter_{down,up}.{W_left,W_right,b}`; each norm's tensors under their own names |
//! | merges | no |
//!
//! What [`compacter_plus_plus`](crate::adapters::compacter_plus_plus) and
//! [`phm`](crate::adapters::phm) share with it is here as well.

use epiphyte_models::{Base, Role};
use serde_json::{Map, Value, json};

use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::taxonomy::Claims;
use crate::parts::adapterhub;
use crate::parts::bottleneck::{BottleneckConfig, InLayers, Placement, Slot, Variant};
use crate::parts::phm::PhmConfig;
use crate::parts::replace;
use crate::{MethodError, ParameterSet};

crate::settings! {
    /// The settings of adapters whose weights are sums of Kronecker products, under AdapterHub's
    /// names.
    pub struct CompacterSettings {
        /// Train the model's norms too: true or false.
        train_layer_norms: bool = true, as Boolean;

        ..phm: PhmConfig = PhmConfig {
            phm_rank: Some(1),
            shared_phm_rule: true,
            phm_init_range: 1e-4,
            ..PhmConfig::default()
        };
        ..bottlenecks: BottleneckConfig = BottleneckConfig {
            non_linearity: "gelu_new".to_owned(),
            ..BottleneckConfig::default()
        };
    }
}

/// One of the methods of this kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) variant: Variant,
    /// Whether there is an adapter after self-attention too.
    pub(crate) attention: bool,
}

impl Kind {
    /// The kind of this name, with a bottleneck of a 32nd of the hidden size.
    pub(crate) const fn new(method: &'static str, attention: bool) -> Self {
        Self {
            variant: Variant {
                method,
                default_dim: |hidden_size| (hidden_size / 32).max(1),
            },
            attention,
        }
    }

    /// Where AdapterHub's `config` says that there are adapters.
    fn sites(&self) -> Value {
        json!({ "mh_adapter": self.attention, "output_adapter": true })
    }
}

impl CompacterSettings {
    fn trains(&self, base: &Base, name: &str) -> bool {
        self.train_layer_norms && self.bottlenecks.trains_norm(base, name)
    }

    /// As [`MethodConfig::build`].
    pub(crate) fn build(
        &self,
        kind: &Kind,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let count = self.count(kind, base)?;
        let rule = self.phm.shared_rule(parameters);
        let mut at = |role| {
            let declare = |slot: Slot<'_>| self.phm.bottleneck(&slot, rule.as_ref(), parameters);
            self.bottlenecks.each(&kind.variant, base, role, declare)
        };
        let attention = match kind.attention {
            true => at(Role::AttentionOutput)?,
            false => Vec::new(),
        };
        let feed_forward = at(Role::FeedForwardOut)?;
        let adapters = InLayers::new(&kind.variant, Placement::Sequential, feed_forward, count)
            .with_attention(attention)
            .with_norms(base, parameters, |name| self.trains(base, name));
        Ok(Box::new(adapters))
    }

    /// As [`MethodConfig::count`].
    pub(crate) fn count(&self, kind: &Kind, base: &Base) -> Result<usize, MethodError> {
        let width = base.dimensions.hidden_size;
        let dim = self.bottlenecks.dim(&kind.variant, width)?;
        let in_layer = 1 + usize::from(kind.attention);
        let count = in_layer * self.bottlenecks.layers(&kind.variant, base)?;
        let norms = replace::count(base, |name| self.trains(base, name));
        Ok(self.phm.count(&kind.variant, [width, dim], count)? + norms)
    }

    /// As [`MethodConfig::to_adapterhub`].
    pub(crate) fn to_adapterhub(
        &self,
        kind: &Kind,
        base: &Base,
    ) -> Result<Option<Map<String, Value>>, MethodError> {
        if self.train_layer_norms {
            return Ok(None);
        }
        let own = adapterhub::of_phm(&self.phm, kind.sites());
        adapterhub::of_bottlenecks(&self.bottlenecks, &kind.variant, base, own).map(Some)
    }

    /// As [`MethodConfig::of_adapterhub`], for factors of low rank or not.
    pub(crate) fn of_adapterhub(
        config: &Map<String, Value>,
        kind: &Kind,
        is_low_rank: bool,
    ) -> Option<Self> {
        if adapterhub::value(config, "phm_layer") != true {
            return None;
        }
        let phm = adapterhub::to_phm(config)?;
        let own = adapterhub::of_phm(&phm, kind.sites());
        let bottlenecks = adapterhub::to_bottlenecks(config, &own)?;
        (phm.phm_rank.is_some() == is_low_rank).then_some(Self {
            train_layer_norms: false,
            phm,
            bottlenecks,
        })
    }

    /// As [`MethodConfig::resolved`].
    pub(crate) fn resolved(&self, kind: &Kind, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(&kind.variant, hidden_size),
            ..self.clone()
        }
    }
}

crate::settings! {
    /// The settings of Compacter.
    pub struct CompacterConfig {
        ..adapters: CompacterSettings = CompacterSettings::default();
    }
}

const COMPACTER: Kind = Kind::new(CompacterConfig::NAME, true);

impl MethodConfig for CompacterConfig {
    const NAME: &'static str = "compacter";
    const PEFT_TYPE: &'static str = "COMPACTER";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks of low-rank Kronecker products after attention and feed-forward";
    const PAPER: &'static str = "Karimi Mahabadi et al. 2021, arXiv 2106.04647";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 4e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "bottleneck_dim": 8 }),
            json!({
                "bottleneck_dim": 4, "phm_dim": 2, "phm_rank": 2, "train_layer_norms": false,
                "phm_init_range": 0.5, "leave_out": [0],
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.adapters.build(&COMPACTER, base, parameters)
    }

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        self.adapters.to_adapterhub(&COMPACTER, base)
    }

    fn of_adapterhub(config: &Map<String, Value>, _base: &Base) -> Option<Self> {
        let adapters = CompacterSettings::of_adapterhub(config, &COMPACTER, true)?;
        Some(Self { adapters })
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        self.adapters.count(&COMPACTER, base)
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            adapters: self.adapters.resolved(&COMPACTER, base),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::small_bert::{
        bert, bert_base_count, distance, gradients, logits, module, set_random, values,
    };

    fn settings() -> Value {
        json!({ "bottleneck_dim": 4, "train_layer_norms": false, "phm_init_range": 0.5 })
    }

    /// The paper's T5 and the reference's table for BERT; outside of the layers stand the rule and
    /// the norm of the embeddings.
    #[test]
    fn counts_on_bert_base_are_those_of_the_reference() {
        let frozen = json!({ "train_layer_norms": false });
        for (method, rule, expected) in [
            ("compacter", 64, 57_088),
            ("compacter-plus-plus", 64, 28_576),
            ("phm", 0, 175_680),
        ] {
            let count = |settings, outside| bert_base_count(method, settings, outside);
            assert_eq!(count(frozen.clone(), rule), expected, "{method}");
            let with_norms = count(json!({}), rule + 2 * 768);
            assert_eq!(with_norms, expected + 38_400, "{method}");
        }
    }

    /// A rule of zeros makes every weight zero, and biases start at zero.
    #[test]
    fn a_rule_of_zeros_is_the_base() {
        let model = bert();
        let adapter = module(&model, "compacter", settings());
        let rule = adapter.parameters().get("phm_rule").unwrap();
        let with = logits(&model, &adapter);
        rule.set_values(vec![0.0; 64]);
        adapter.parameters().derive(false);
        let base = logits(&model, &epiphyte_models::Identity);
        assert_eq!(logits(&model, &adapter), base);
        assert!(with != base);
    }

    /// The gradient of the rule that all layers share is the sum of those of rules that each has
    /// for itself, where all are alike.
    #[test]
    fn the_shared_rule_gets_the_gradients_of_all_layers() {
        let model = bert();
        let shared = module(&model, "compacter", settings());
        let mut own = settings();
        own["shared_phm_rule"] = json!(false);
        let own = module(&model, "compacter", own);
        let rule = set_random(&shared, "phm_rule");
        for param in own.parameters().trained() {
            param.set_values(match param.key().ends_with("phm_rule") {
                true => rule.clone(),
                false => values(&shared, param.key()),
            });
        }
        let of_rules = |module: &_| {
            let gradients = gradients(&model, module).into_iter();
            let rules = gradients.filter(|(key, _)| key.ends_with("phm_rule"));
            rules.map(|(_, values)| values).collect::<Vec<_>>()
        };
        for module in [&shared, &own] {
            module.parameters().derive(false);
        }
        let (shared, own) = (of_rules(&shared), of_rules(&own));
        assert_eq!((shared.len(), own.len()), (1, 8));
        let sum: Vec<f32> = (0..64)
            .map(|index| own.iter().map(|values| values[index]).sum())
            .collect();
        let largest = sum.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        assert!(largest > 0.0);
        assert!(distance(&shared[0], &sum) < 1e-4 * largest);
    }

    #[test]
    fn sizes_that_the_rule_does_not_divide_are_refused() {
        let model = bert();
        let settings = json!({ "bottleneck_dim": 6 });
        let config = crate::by_name("compacter").unwrap();
        let config = config.configure(settings.as_object().unwrap().clone());
        let error = config.unwrap().count(model.base()).unwrap_err().to_string();
        assert!(error.contains("`phm_dim` is 4"), "{error}");
    }
}
