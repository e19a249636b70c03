//! UniPELT: a prefix, LoRA and Pfeiffer's adapter in every layer, each behind a gate.
//!
//! Mao, Mathias, Hou, Almahairi, Ma, Han, Yih, Khabsa, "UniPELT: A Unified Framework for
//! Parameter-Efficient Language Model Tuning", ACL 2022, arXiv 2110.07577, section 3.2, and its
//! code.
//!
//! A gate is one number a sequence: the mean of `σ(h wᵀ + b)` over the rows of its input `h`, with
//! `w: [1, d]` normal with standard deviation 0.02 and `b` zero, so it starts near a half. Per
//! layer:
//!
//! - prefix: `[g_P P_K; K]` and `[g_P P_V; V]`, one gate for both, of the attention's input; `P` as
//!   in Prefix-Tuning, during training through a network of 512 hidden values
//! - LoRA of rank `r` on queries and on values: `y = x Wᵀ + b + g (x Aᵀ) Bᵀ`, a gate each, of `x`;
//!   the gate stands in place of the scaling
//! - Pfeiffer's adapter with `m = d / 16`: `u` is multiplied by a gate of its own input `z`
//!
//! The paper's code takes the mean over padding too, so a gate depends on what else is in the
//! batch. Here no sequence has padding: the mean is over its real rows. Gates read the whole
//! sequence, so a causal language model would see the tokens that it is to predict; there the
//! method is refused.
//!
//! | | |
//! | --- | --- |
//! | trains | per layer `2 p kv + (d + 1)`, `Σ r (in + out) + (d + 1)`, `2 d m + m + d + (d + 1)`; the network as in Prefix-Tuning |
//! | changes | the same without the network |
//! | file | `prompt_embeddings`; `<attention>.prefix_gate`, `<path>.lora_A`, `<path>.lora_B`, `<path>.lora_gate`, `<module>.adapter_down`, `<module>.adapter_up`, `<module>.adapter_gate`, each `.weight`, those but LoRA's also `.bias` |
//! | merges | no: the gates depend on the input |

use std::collections::HashMap;

use burn::tensor::{Tensor, activation};
use epiphyte_models::adapter::AttentionSite;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Role, Site};
use epiphyte_ops::{Prefix, Sequences, Weight, add, expand_rows, fork, linear, mean_rows, rows};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::composition::{BuildMember, Union};
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stored};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::taxonomy::Claims;
use crate::parts::bottleneck::{
    self, Bottleneck, BottleneckConfig, Branch, InLayers, Placement, Slot, modules,
};
use crate::parts::dense::Dense;
use crate::parts::prefix::{Prefixes, Reach};
use crate::reparametrized::lora::LoraConfig;
use crate::soft_prompts::prefix_tuning::{self, PrefixSettings};

crate::settings! {
    /// The settings of UniPELT.
    pub struct UniPeltConfig {
        /// Rank of the update.
        r: usize = 8, flag "rank", in Size;

        ..prefix: PrefixSettings = PrefixSettings {
            num_virtual_tokens: 10,
            prefix_projection: true,
            encoder_hidden_size: Some(512),
            prefix_dropout: None,
        };
        ..bottlenecks: BottleneckConfig = BottleneckConfig::default();
    }
}

const PREFIX: prefix_tuning::Variant = prefix_tuning::Variant {
    method: UniPeltConfig::NAME,
    reach: Reach {
        encoder: true,
        cross: false,
    },
    ..prefix_tuning::PREFIX_TUNING
};

const BOTTLENECKS: bottleneck::Variant = bottleneck::Variant {
    method: UniPeltConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 16).max(1),
};

impl UniPeltConfig {
    /// The linear layers that LoRA acts on.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        self.prefix.count(&PREFIX, base)?;
        let not_applicable = |reason: &str| MethodError::NotApplicable {
            method: Self::NAME,
            model_type: base.dimensions.model_type.clone(),
            reason: reason.to_owned(),
        };
        let causal = base.layer_shapes().iter().any(|it| it.attention.causal);
        if causal && base.task_head.is_none() {
            return Err(not_applicable(
                "its gates read the whole sequence, so a language model would see the tokens that it \
                 is to predict",
            ));
        }
        let is_target = |it: &&LinearInfo| matches!(it.site.role, Role::Query | Role::Value);
        let targets: Vec<&LinearInfo> = base.linears().iter().filter(is_target).collect();
        if targets.is_empty() {
            return Err(not_applicable(
                "queries, keys and values are one linear layer, but its LoRA has a gate for queries and \
                 one for values",
            ));
        }
        Ok(targets)
    }

    fn prefixes(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let prefix = self.prefix.build(&PREFIX, base, parameters)?;
        let gates = modules(base, Role::Query, Self::NAME)?
            .into_iter()
            .map(|module| Gate::declare(base, module, "prefix_gate", parameters));
        Ok(Box::new(GatedPrefix {
            prefix,
            gates: gates.collect(),
        }))
    }

    fn loras(
        &self,
        base: &Base,
        targets: &[&LinearInfo],
        parameters: &mut ParameterSet,
    ) -> Box<dyn Method> {
        let by_path = targets.iter().map(|linear| {
            let path = &linear.site.path;
            let [a, b] = LoraConfig::default().declare(linear, self.r, parameters);
            let gate = Gate::declare(base, path, "lora_gate", parameters);
            (path.clone(), GatedLora { a, b, gate })
        });
        Box::new(GatedLoras {
            by_path: by_path.collect(),
        })
    }

    fn adapters(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let role = Role::FeedForwardOut;
        let declare = |slot: Slot<'_>| GatedBottleneck {
            bottleneck: slot.declare(parameters),
            gate: Gate::declare(base, slot.module, "adapter_gate", parameters),
        };
        let layers = self.bottlenecks.each(&BOTTLENECKS, base, role, declare)?;
        let (placement, count) = (Placement::AroundNorm, self.adapter_count(base)?);
        Ok(Box::new(InLayers::new(
            &BOTTLENECKS,
            placement,
            layers,
            count,
        )))
    }

    fn adapter_count(&self, base: &Base) -> Result<usize, MethodError> {
        let hidden_size = base.dimensions.hidden_size;
        let one =
            self.bottlenecks.count(&BOTTLENECKS, hidden_size)? + Dense::count([1, hidden_size]);
        Ok(self.bottlenecks.layers(&BOTTLENECKS, base)? * one)
    }
}

impl MethodConfig for UniPeltConfig {
    const NAME: &'static str = "unipelt";
    const PEFT_TYPE: &'static str = "UNIPELT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a prefix, LoRA and Pfeiffer's adapter, each behind a gate";
    const PAPER: &'static str = "Mao et al. 2022, arXiv 2110.07577";
    const CLAIMS: Option<Claims> = Some(Claims::survey("extra feed-forward and input"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        // Smooth functions: differences of the loss mean nothing where a step crosses a bend of
        // ReLU.
        vec![
            json!({
                "num_virtual_tokens": 4, "encoder_hidden_size": 5, "r": 4, "bottleneck_dim": 6,
                "non_linearity": "gelu_new",
            }),
            json!({
                "num_virtual_tokens": 3, "prefix_projection": false, "r": 2,
                "reduction_factor": 4, "non_linearity": "silu", "init_weights": "mam_adapter",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.targets(base)?;
        let prefixes = |own: &mut ParameterSet| self.prefixes(base, own);
        let loras = |own: &mut ParameterSet| Ok(self.loras(base, &targets, own));
        let adapters = |own: &mut ParameterSet| self.adapters(base, own);
        let members: [BuildMember<'_>; 3] = [&prefixes, &loras, &adapters];
        let union = Union::build(Self::NAME, base, parameters, &members)?;
        Ok(Box::new(union))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?;
        let (layers, hidden_size) = (base.dimensions.layers, base.dimensions.hidden_size);
        let gate = Dense::count([1, hidden_size]);
        let lora = |it: &&LinearInfo| self.r * (it.inputs + it.outputs) + gate;
        let loras: usize = targets.iter().map(lora).sum();
        let adapters = self.adapter_count(base)?;
        Ok(self.prefix.count(&PREFIX, base)? + layers * gate + loras + adapters)
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            prefix: self.prefix.resolved(&PREFIX, base),
            bottlenecks: self.bottlenecks.resolved(&BOTTLENECKS, hidden_size),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            prefix: self.prefix.flat(),
            ..self.clone()
        }
    }
}

/// One number in (0, 1) for each sequence.
#[derive(Debug)]
struct Gate {
    linear: Dense,
    /// How many values it holds.
    count: usize,
}

impl Gate {
    /// Declares `{module}.{name}.weight` `[1, hidden]` and `{module}.{name}.bias` `[1]`.
    fn declare(base: &Base, module: &str, name: &str, parameters: &mut ParameterSet) -> Self {
        let shape = [1, base.dimensions.hidden_size];
        let init = (Init::Normal { std: 0.02 }, Init::Zeros);
        Self {
            linear: Dense::declare(parameters, &format!("{module}.{name}"), shape, init),
            count: Dense::count(shape),
        }
    }

    /// The mean of `σ(x wᵀ + b)` over each sequence's rows, `[sequences, 1]`.
    fn of_sequences(&self, x: Tensor<2>, rows: &Sequences) -> Tensor<2> {
        mean_rows(activation::sigmoid(self.linear.forward(x)), rows)
    }

    /// The same for each token of the sequence, `[tokens, 1]`.
    fn of_tokens(&self, x: Tensor<2>, rows: &Sequences) -> Tensor<2> {
        expand_rows(self.of_sequences(x, rows), rows)
    }
}

/// Why UniPELT does not merge.
fn not_mergeable() -> MethodError {
    MethodError::NotMergeable {
        method: UniPeltConfig::NAME,
        reason: "its gates depend on the input",
    }
}

/// Prefixes, with a gate for each layer.
#[derive(Debug)]
struct GatedPrefix {
    prefix: Prefixes,
    gates: Vec<Gate>,
}

impl Adapter for GatedPrefix {
    fn prefix_length(&self, decoder: bool) -> usize {
        self.prefix.prefix_length(decoder)
    }

    fn prefix(&self, at: AttentionSite, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        let prefix = self.prefix.prefix(at, x, cx)?;
        let (length, count) = (prefix.length(), cx.rows.count());
        let [keys, values] = match prefix {
            Prefix::Shared { keys, values } => {
                let repeated: Vec<usize> = (0..count).flat_map(|_| 0..length).collect();
                [rows(keys, &repeated), rows(values, &repeated)]
            }
            Prefix::PerSequence { keys, values, .. } => [keys, values],
        };
        let gates = self.gates[at.layer].of_sequences(x.clone(), cx.rows);
        let boundaries = (0..=count).map(|sequence| sequence * length);
        let gates = expand_rows(gates, &Sequences::new(boundaries.collect()));
        Some(Prefix::PerSequence {
            length,
            keys: keys * gates.clone(),
            values: values * gates,
        })
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.prefix.uses(hook)
    }

    /// The gate is the mean of those of a sequence's rows.
    fn reads_whole_sequences(&self) -> bool {
        true
    }
}

impl Method for GatedPrefix {
    /// The prefix itself in place of the network that computes it.
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let gates = parameters
            .stored()
            .filter(|it| it.key().contains(".prefix_gate."));
        let gates = gates.map(Stored::of);
        self.prefix
            .stored(parameters)
            .into_iter()
            .chain(gates)
            .collect()
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable())
    }

    fn changed(&self) -> usize {
        self.prefix.changed() + self.gates.iter().map(|gate| gate.count).sum::<usize>()
    }
}

/// LoRA on one linear layer, with a gate in place of the scaling.
#[derive(Debug)]
struct GatedLora {
    a: Param,
    b: Param,
    gate: Gate,
}

/// LoRA on the targets.
#[derive(Debug)]
struct GatedLoras {
    by_path: HashMap<String, GatedLora>,
}

impl Adapter for GatedLoras {
    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let Some(GatedLora { a, b, gate }) = self.by_path.get(&site.path) else {
            return product.compute();
        };
        // With the product three read the input; behind a fork, two of them have one gradient, so
        // that the order in which gradients are added is fixed.
        let [x, _] = fork(product.input().clone());
        let gate = gate.of_tokens(x.clone(), cx.rows);
        let low = linear(x, &Weight::Trained(a.get()), None) * gate;
        add(
            product.compute(),
            linear(low, &Weight::Trained(b.get()), None),
        )
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Linear(site) if self.by_path.contains_key(&site.path))
    }

    /// The gate is the mean of those of a sequence's rows.
    fn reads_whole_sequences(&self) -> bool {
        true
    }
}

impl Method for GatedLoras {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable())
    }

    fn changed(&self) -> usize {
        let count = |it: &GatedLora| it.a.count() + it.b.count() + it.gate.count;
        self.by_path.values().map(count).sum()
    }
}

/// Pfeiffer's adapter in one layer, with its gate.
#[derive(Debug)]
struct GatedBottleneck {
    bottleneck: Bottleneck,
    gate: Gate,
}

impl Branch for GatedBottleneck {
    fn branch(&self, z: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let gate = self.gate.of_tokens(z.clone(), cx.rows);
        self.bottleneck.forward(z) * gate
    }

    /// The gate is the mean of those of a sequence's rows.
    fn mixes_rows(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::AdapterModule;
    use crate::small_bert::{
        bert, bert_base_count, distance, gradients, logits, logits_of, module, set_random, values,
    };

    const LAYER: &str = "bert.encoder.layer.0";

    fn settings() -> Value {
        json!({
            "num_virtual_tokens": 3, "prefix_projection": false, "r": 2, "bottleneck_dim": 4,
        })
    }

    /// Sets each gate of this name to a constant: no weight, and a bias far on one side or zero.
    fn set_gates(module: &AdapterModule, name: &str, bias: f32) {
        for param in module.parameters().trained() {
            if param.key().contains(&format!(".{name}.")) {
                let value = if param.key().ends_with("bias") {
                    bias
                } else {
                    0.0
                };
                param.set_values(vec![value; param.count()]);
            }
        }
    }

    fn set_all_random(module: &AdapterModule, name: &str) {
        let keys: Vec<String> = module
            .parameters()
            .trained()
            .map(|param| param.key().to_owned())
            .filter(|key| key.contains(name))
            .collect();
        keys.iter().for_each(|key| {
            set_random(module, key);
        });
    }

    /// Gates of LoRA at one and the others at zero: what is left is LoRA with scaling one, over
    /// zero keys and values in front, which are a prefix that starts at zero.
    #[test]
    fn open_lora_gates_are_lora_with_a_scaling_of_one() {
        let model = bert();
        let gated = module(&model, "unipelt", settings());
        set_all_random(&gated, "lora_B");
        set_gates(&gated, "lora_gate", 200.0);
        set_gates(&gated, "adapter_gate", -200.0);
        set_gates(&gated, "prefix_gate", -200.0);
        let zero = json!({ "num_virtual_tokens": 3, "init_weights": "zero" });
        let prefix = module(&model, "prefix-tuning", zero);
        let lora = module(&model, "lora", json!({ "r": 2, "lora_alpha": 2 }));
        for param in lora.parameters().trained() {
            param.set_values(values(&gated, param.key()));
        }
        let both = crate::Chain([&prefix as &dyn epiphyte_models::Adapter, &lora]);
        let expected = logits(&model, &both);
        assert!(distance(&logits(&model, &gated), &expected) < 1e-6);
        // Closed, they leave the prefix of zeros.
        set_gates(&gated, "lora_gate", -200.0);
        assert_eq!(logits(&model, &gated), logits(&model, &prefix));
    }

    #[test]
    fn an_open_adapter_gate_is_pfeiffers_adapter() {
        let model = bert();
        let gated = module(&model, "unipelt", settings());
        set_gates(&gated, "adapter_gate", 200.0);
        set_gates(&gated, "prefix_gate", -200.0);
        let zero = json!({ "num_virtual_tokens": 3, "init_weights": "zero" });
        let prefix = module(&model, "prefix-tuning", zero);
        let adapter = module(&model, "pfeiffer", json!({ "bottleneck_dim": 4 }));
        let both = crate::Chain([&prefix as &dyn epiphyte_models::Adapter, &adapter]);
        let expected = logits(&model, &both);
        assert!(distance(&logits(&model, &gated), &expected) < 1e-6);
    }

    /// With no weight and no bias every gate is a half: the prefix is half of itself.
    #[test]
    fn gates_without_weights_are_a_half() {
        let model = bert();
        let gated = module(&model, "unipelt", settings());
        for gate in ["lora_gate", "prefix_gate"] {
            set_gates(&gated, gate, 0.0);
        }
        set_gates(&gated, "adapter_gate", -200.0);
        let prefix = json!({ "num_virtual_tokens": 3 });
        let prefix = module(&model, "prefix-tuning", prefix);
        let table = prefix.parameters().get("prompt_embeddings").unwrap();
        let whole = values(&gated, "prompt_embeddings");
        table.set_values(whole.iter().map(|value| 0.5 * value).collect());
        assert!(distance(&logits(&model, &gated), &logits(&model, &prefix)) < 1e-6);
    }

    #[test]
    fn gates_start_near_a_half() {
        let module = module(&bert(), "unipelt", settings());
        for gate in [
            format!("{LAYER}.attention.self.prefix_gate"),
            format!("{LAYER}.attention.self.query.lora_gate"),
            format!("{LAYER}.output.adapter_gate"),
        ] {
            assert_eq!(values(&module, &format!("{gate}.bias")), [0.0]);
            let weight = values(&module, &format!("{gate}.weight"));
            assert_eq!(weight.len(), 8);
            assert!(
                weight
                    .iter()
                    .all(|value| value.abs() < 0.1 && *value != 0.0)
            );
        }
    }

    /// LoRA's `B` is zero at first, so nothing that it is multiplied with gets a gradient.
    #[test]
    fn at_first_loras_gates_get_a_gradient_of_zero_and_the_others_do_not() {
        let model = bert();
        let module = module(&model, "unipelt", settings());
        let gradients_of = |module: &AdapterModule| -> Vec<(String, f32)> {
            let gradients = gradients(&model, module);
            let largest = gradients.into_iter().map(|(key, values)| {
                let largest = values
                    .iter()
                    .fold(0.0f32, |most, value| most.max(value.abs()));
                (key, largest)
            });
            largest.filter(|(key, _)| key.contains("_gate.")).collect()
        };
        let first = gradients_of(&module);
        assert_eq!(first.len(), 2 * 2 * 4);
        for (key, largest) in first {
            assert_eq!(
                largest == 0.0,
                key.contains("lora_gate"),
                "{key}: {largest}"
            );
        }
        set_all_random(&module, "lora_B");
        for (key, largest) in gradients_of(&module) {
            assert!(largest > 0.0, "{key}");
        }
    }

    #[test]
    fn a_sequence_has_the_same_logits_in_any_company() {
        let model = bert();
        let module = module(&model, "unipelt", settings());
        set_all_random(&module, "_gate.");
        set_all_random(&module, "lora_B");
        let (one, other) = (&[3, 1, 4, 1, 5][..], &[2, 6][..]);
        let together = logits_of(&model, &module, &[one, other]);
        let apart = [one, other]
            .map(|ids| logits_of(&model, &module, &[ids]))
            .concat();
        assert!(distance(&together, &apart) < 1e-6);
    }

    #[test]
    fn counts_on_bert_base_are_those_of_adapterhub() {
        let flat = json!({ "prefix_projection": false });
        assert_eq!(bert_base_count("unipelt", flat, 0), 1_410_672);
        let outside = 10 * 768 + 768 * 512 + 512;
        assert_eq!(bert_base_count("unipelt", json!({}), outside), 11_083_376);
    }
}
