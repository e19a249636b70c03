//! AdaMix: adapters after the feed-forward of which each step trains one of several copies.
//!
//! Wang, Agarwal, Mukherjee, Liu, Gao, Awadallah, Gao, "AdaMix: Mixture-of-Adaptations for
//! Parameter-efficient Model Tuning", EMNLP 2022, arXiv 2205.12410; code microsoft/AdaMix.
//!
//! With `o` the output of the feed-forward, `o + GELU(o D_iᵀ + d_i) Uᵀ + u` joins the residual
//! stream in its place. There are `n` = 4 down-projections and one up-projection; in training each
//! layer draws `i` for the whole batch. Each batch runs twice with draws of its own, and to the
//! loss of the first pass `½ (KL(p_2 ‖ p_1) + KL(p_1 ‖ p_2))` is added, the first operand of each
//! constant to the gradient; the predictions `p` are over classes or words, and a task that has
//! none, such as regression, has no such term. In the end down-projections are averaged: the
//! adapter has the size of one. `m` is `d / 16`, matrices start normal with standard deviation
//! 0.02.
//!
//! | | |
//! | --- | --- |
//! | trains | `L (n (d m + m) + m d + d)` |
//! | changes | `L (2 d m + m + d)` |
//! | file | `<module>.adapter_down.{weight,bias}`, `<module>.adapter_up.{weight,bias}` |
//! | merges | no |
//!
//! The code drops values of the adapter's output rather than of its input, and has the term for
//! RoBERTa alone; the paper has it for all models.

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, Role};
use epiphyte_ops::{Activation, Weight, linear};
use serde_json::{Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::bottleneck::{BottleneckConfig, Branch, InLayers, Placement, Slot, Variant};
use crate::parts::experts::{Experts, Mixture, MixtureConfig};

crate::settings! {
    /// The settings of AdaMix.
    pub struct AdaMixConfig {
        ..mixture: MixtureConfig = MixtureConfig::default();
        ..bottlenecks: BottleneckConfig = BottleneckConfig {
            non_linearity: "gelu".to_owned(),
            ..BottleneckConfig::default()
        };
    }
}

const ADAMIX: Variant = Variant {
    method: AdaMixConfig::NAME,
    default_dim: |hidden_size| (hidden_size / 16).max(1),
};

impl MethodConfig for AdaMixConfig {
    const NAME: &'static str = "adamix";
    const PEFT_TYPE: &'static str = "ADAMIX";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str =
        "bottlenecks of which each step trains one of several copies, averaged in the end";
    const PAPER: &'static str = "Wang et al. 2022, arXiv 2205.12410";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra feed-forward"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 9e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "bottleneck_dim": 6 }),
            json!({
                "bottleneck_dim": 3, "num_experts": 3, "share_up": false,
                "consistency_weight": 0.0,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut experts = Vec::new();
        let copies = self.mixture.copies();
        let declare = |slot: Slot<'_>| {
            let bottleneck = MixedBottleneck::declare(&slot, copies, parameters);
            experts.extend(bottleneck.down.iter().chain(&bottleneck.up).cloned());
            bottleneck
        };
        let role = Role::FeedForwardOut;
        let layers = self.bottlenecks.each(&ADAMIX, base, role, declare)?;
        let one = self
            .bottlenecks
            .count(&ADAMIX, base.dimensions.hidden_size)?;
        let changed = self.bottlenecks.layers(&ADAMIX, base)? * one;
        let adapters = InLayers::new(&ADAMIX, Placement::Sequential, layers, changed);
        Ok(Box::new(Mixture::new(adapters, experts, &self.mixture)))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let width = base.dimensions.hidden_size;
        let dim = self.bottlenecks.dim(&ADAMIX, width)?;
        let [down, up] = self.mixture.copies();
        let one = down * (width * dim + dim) + up * (dim * width + width);
        Ok(self.bottlenecks.layers(&ADAMIX, base)? * one)
    }

    fn resolved(&self, base: &Base) -> Self {
        let hidden_size = base.dimensions.hidden_size;
        Self {
            bottlenecks: self.bottlenecks.resolved(&ADAMIX, hidden_size),
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            mixture: self.mixture.averaged(),
            ..self.clone()
        }
    }
}

/// A bottleneck with copies of its maps, weight and bias each.
#[derive(Debug)]
struct MixedBottleneck {
    down: [Experts; 2],
    up: [Experts; 2],
    activation: Activation,
}

impl MixedBottleneck {
    fn declare(slot: &Slot<'_>, [down, up]: [usize; 2], parameters: &mut ParameterSet) -> Self {
        let inits = slot.init.inits(slot.width);
        let mut map = |name, [outputs, inputs]: [usize; 2], init: &(Init, Init), copies| {
            let path = slot.key(name);
            let shape = [outputs, inputs];
            let weight = Experts::declare(parameters, &path, "weight", &shape, &init.0, copies);
            let bias = Experts::declare(parameters, &path, "bias", &[outputs], &init.1, copies);
            [weight, bias]
        };
        Self {
            down: map("adapter_down", [slot.dim, slot.width], &inits[0], down),
            up: map("adapter_up", [slot.width, slot.dim], &inits[1], up),
            activation: slot.activation,
        }
    }
}

impl Branch for MixedBottleneck {
    fn branch(&self, z: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let map = |[weight, bias]: &[Experts; 2], x| {
            let weight = Weight::Trained(weight.now(cx).get());
            linear(x, &weight, Some(bias.now(cx).flat()))
        };
        map(&self.up, self.activation.apply(map(&self.down, z)))
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_models::{AdapterBatch, Entry, Mode, Targets, Tokens};
    use epiphyte_ops::Sequences;
    use serde_json::{Value, json};

    use crate::small_bert::{bert, bert_base_count, distance, logits, module, values};
    use crate::{AdapterModule, Gradients};

    const DOWN: &str = "bert.encoder.layer.0.output.adapter_down";

    fn settings() -> Value {
        json!({ "bottleneck_dim": 4 })
    }

    #[test]
    fn counts_on_bert_base_are_those_of_the_paper() {
        assert_eq!(bert_base_count("adamix", json!({}), 0), 2_223_360);
        assert_eq!(
            bert_base_count("adamix", json!({ "num_experts": 1 }), 0),
            894_528
        );
    }

    #[test]
    fn evaluation_takes_the_mean_of_the_copies_which_is_what_is_stored() {
        let module = module(&bert(), "adamix", settings());
        let copies: Vec<Vec<f32>> = (0..4)
            .map(|number| values(&module, &format!("{DOWN}.experts.{number}.weight")))
            .collect();
        assert!(copies.iter().skip(1).all(|copy| *copy != copies[0]));
        let mean = values(&module, &format!("{DOWN}.weight"));
        for (index, mean) in mean.iter().enumerate() {
            let sum: f64 = copies.iter().map(|copy| f64::from(copy[index])).sum();
            assert!((f64::from(*mean) - sum / 4.0).abs() < 1e-8);
        }
        let stored = module.stored();
        assert!(stored.iter().all(|stored| !stored.key.contains("experts")));
        let weight = stored.iter().find(|it| it.key == format!("{DOWN}.weight"));
        assert_eq!(weight.unwrap().values, crate::StoredValues::F32(mean));
    }

    /// The gradient of each parameter in a training pass.
    fn gradients(module: &AdapterModule, step_key: u64, view: u8) -> Vec<(String, bool)> {
        let model = bert();
        let tokens = Tokens::new(&[3, 1, 4, 1, 5], &[0; 5], Sequences::new(vec![0, 3, 5]));
        module.track(true);
        let entry = Entry {
            adapter: module,
            tokens: &tokens,
            mode: Mode::Training {
                step: 0,
                step_key,
                view,
            },
            streams: &[],
        };
        let batch = AdapterBatch::new([entry]);
        let hidden = model.embed(&entry);
        let loss_rows = model.loss_rows(Targets::Classes(&[1, 0]), &tokens, &hidden.rows, module);
        let loss_rows = loss_rows.unwrap();
        let read = model.run(0..model.layers(), hidden, Some(loss_rows.rows()), &batch);
        let read = model.finish(read, &batch);
        let loss = model.loss_of(read, &loss_rows, 0.0, &entry).unwrap();
        let mut found = Gradients::new();
        module.collect(&mut found, &mut loss.backward());
        found.pull_back_derived(module.parameters());
        module.track(false);
        let trained = module.parameters().trained();
        trained
            .map(|param| (param.key().to_owned(), found.get(param).is_some()))
            .collect()
    }

    #[test]
    fn each_pass_trains_one_copy_of_each_layer() {
        let module = module(&bert(), "adamix", settings());
        let chosen = |step_key, view| -> Vec<usize> {
            let found = gradients(&module, step_key, view);
            let copies = found.iter().filter(|(key, _)| key.contains(".experts."));
            let reached = copies.filter(|(key, has)| *has && key.ends_with("weight"));
            let number = |key: &str| key.rsplit('.').nth(1).unwrap().parse().unwrap();
            let chosen: Vec<usize> = reached.map(|(key, _)| number(key)).collect();
            let biases = found
                .iter()
                .filter(|(key, has)| *has && key.contains(".experts.") && key.ends_with("bias"));
            let biases: Vec<usize> = biases.map(|(key, _)| number(key)).collect();
            assert_eq!(chosen, biases);
            assert_eq!(chosen.len(), 2);
            assert!(
                found
                    .iter()
                    .all(|(key, has)| *has || key.contains(".experts."))
            );
            chosen
        };
        assert_eq!(chosen(7, 0), chosen(7, 0));
        let draws: Vec<Vec<usize>> = (0..40).map(|step| chosen(step, 0)).collect();
        for number in 0..4 {
            for layer in 0..2 {
                assert!(draws.iter().any(|draw| draw[layer] == number));
            }
        }
        assert!(draws.iter().any(|draw| draw[0] != draw[1]));
        let second = |step: u64| chosen(step, 1) != draws[step as usize];
        assert!((0..40).any(second));
    }

    /// With copies that are alike it makes no difference which is taken, and with one copy it is
    /// the adapter that a saved one is.
    #[test]
    fn copies_that_are_alike_are_one() {
        let model = bert();
        let mixed = module(&model, "adamix", settings());
        let single = json!({ "bottleneck_dim": 4, "num_experts": 1 });
        let single = module(&model, "adamix", single);
        for param in mixed.parameters().trained() {
            let key = param.key();
            let own = match key.split_once(".experts.") {
                Some((path, rest)) => format!("{path}.{}", rest.split_once('.').unwrap().1),
                None => key.to_owned(),
            };
            param.set_values(values(&single, &own));
        }
        mixed.parameters().derive(false);
        assert!(distance(&logits(&model, &mixed), &logits(&model, &single)) < 1e-6);
        assert_eq!(single.method().consistency_weight(), None);
        assert_eq!(mixed.method().consistency_weight(), Some(1.0));
    }
}
