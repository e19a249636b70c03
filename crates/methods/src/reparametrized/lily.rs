//! Lily: low-rank paths whose second matrices are shared by layers and mixed by a router.
//!
//! Zhong et al., "Low-Rank Interconnected Adaptation across Layers", 2024, arXiv 2407.09946, as HF
//! PEFT has it.
//!
//! `h = x Aᵀ`, `p = mean(softmax(h Rᵀ))` over the tokens of a text, `y = x Wᵀ + b + s Σ_e p_e h
//! B_e`, with `A: [r, in]`, the router `R: [num_B, r]` and `B_e: [r, out]`. Targets of one name and
//! shape form a group: they share the `B`s, `stride_A` neighbors share an `A`, each has its own
//! router. `A` and `R` start uniform in `±1/√in` and `±1/√r`, the `B`s at zero, so nothing changes
//! at first.
//!
//! | | |
//! | --- | --- |
//! | trains | for a group of n: `⌈n / stride_A⌉ r in + num_B r out + n num_B r` |
//! | changes | the same, added |
//! | file | `<path>.lily_A.weight`, `.lily_B.weight` `[num_B r, out]`, `.lily_router.weight`, shared ones for each target |
//! | merges | no: the mixture depends on the text |
//!
//! HF PEFT takes the mean over the whole batch with its padding, so that its result depends on the
//! company of a text; here it is that of a batch with the text alone.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Weight, add, expand_rows, linear, mean_rows};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stored, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{ALL_LINEAR, Modules, Selection, Targets, ends_with};

crate::settings! {
    /// The settings of Lily, under HF PEFT's names.
    #[expect(non_snake_case, reason = "HF PEFT's keys")]
    pub struct LilyConfig {
        /// Rank of the update.
        r: usize = 32, flag "rank", in Size;
        /// Number of neighboring layers that share a matrix A.
        stride_A: usize = 1, flag "stride-a", in AtLeastOne;
        /// Number of matrices B that a group of layers shares.
        num_B: usize = 2, flag "num-b", in Size;
        /// Factor on the update.
        scaling: f64 = 1.0, in SinglePrecision;

        ..targets: Targets = Targets::default();
    }
}

/// What targets are grouped by: name, outputs, inputs.
type Group = (String, usize, usize);

impl LilyConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its group.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, Group)>, MethodError> {
        if self.num_B < 2 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "num_B",
                value: self.num_B.to_string(),
                expected: "it must be at least 2, so that there is something to mix".to_owned(),
            });
        }
        let selection = self.selection();
        let modules = selection.targets(base);
        let targets = selection.of(base)?.into_iter();
        Ok(targets
            .map(|linear| {
                let name = group_name(&modules, &linear.site.path).to_owned();
                (linear, (name, linear.outputs, linear.inputs))
            })
            .collect())
    }
}

/// What names a target's group: the longest of the names that choose it, a pattern as a whole, and
/// of all linear layers the last part of the path.
fn group_name<'a>(modules: &'a Modules, path: &'a str) -> &'a str {
    match modules {
        Modules::Pattern(pattern) if pattern != ALL_LINEAR => pattern,
        Modules::Pattern(_) => path.rsplit('.').next().unwrap_or(path),
        Modules::Endings(endings) => {
            let matching = endings.iter().filter(|ending| ends_with(path, ending));
            let longest = matching.max_by_key(|ending| ending.len());
            longest.map_or(path, String::as_str)
        }
    }
}

impl MethodConfig for LilyConfig {
    const NAME: &'static str = "lily";
    const PEFT_TYPE: &'static str = "LILY";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "low-rank paths with matrices that layers share and a router mixes";
    const PAPER: &'static str = "Zhong et al. 2024, arXiv 2407.09946";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(
        "HF PEFT's documentation",
        "extra routers",
    ));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 3 }),
            json!({
                "r": 2, "stride_A": 2, "num_B": 3, "scaling": 2, "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (r, experts) = (self.r, self.num_B);
        let mut groups: BTreeMap<Group, (usize, Vec<Param>, Param)> = BTreeMap::new();
        let mut layers = BTreeMap::new();
        let mut first_layer = usize::MAX;
        for (linear, group) in self.targets(base)? {
            let path = &linear.site.path;
            let key = |name| format!("{path}.lily_{name}.weight");
            let (seen, of_group, b) = groups.entry(group).or_insert_with(|| {
                let b = parameters.declare(key("B"), &[experts * r, linear.outputs], Init::Zeros);
                (0, Vec::new(), b)
            });
            if (*seen).is_multiple_of(self.stride_A) {
                let init = Init::kaiming(linear.inputs);
                of_group.push(parameters.declare(key("A"), &[r, linear.inputs], init));
            }
            *seen += 1;
            let lily = Layer {
                a: of_group[of_group.len() - 1].clone(),
                b: b.clone(),
                router: parameters.declare(key("router"), &[experts, r], Init::kaiming(r)),
                layer: linear.site.layer,
            };
            first_layer = first_layer.min(base.first_layer_of(&format!("{path}.weight")));
            layers.insert(path.clone(), lily);
        }
        Ok(Box::new(Lily {
            layers,
            scaling: self.scaling,
            first_layer,
            trained: parameters.count(),
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let mut sizes: BTreeMap<Group, usize> = BTreeMap::new();
        for (_, group) in self.targets(base)? {
            *sizes.entry(group).or_default() += 1;
        }
        let (r, experts) = (self.r, self.num_B);
        let counts = sizes.into_iter().map(|((_, outputs, inputs), count)| {
            count.div_ceil(self.stride_A) * r * inputs + experts * r * (outputs + count)
        });
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// Lily on one linear layer.
#[derive(Debug)]
struct Layer {
    a: Param,
    b: Param,
    router: Param,
    layer: Option<usize>,
}

/// Lily on its targets, by path.
#[derive(Debug)]
struct Lily {
    layers: BTreeMap<String, Layer>,
    scaling: f64,
    first_layer: usize,
    trained: usize,
}

impl Lily {
    /// The tensors of a file.
    fn tensors(&self) -> impl Iterator<Item = (String, &Param)> {
        self.layers.iter().flat_map(|(path, layer)| {
            let tensors = [("A", &layer.a), ("B", &layer.b), ("router", &layer.router)];
            tensors.map(|(name, param)| (format!("{path}.lily_{name}.weight"), param))
        })
    }
}

impl Adapter for Lily {
    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let Some(layer) = self.layers.get(&site.path) else {
            return product.compute();
        };
        let x = product.input().clone();
        let h = linear(x, &Weight::Trained(layer.a.get()), None);
        let scores = linear(h.clone(), &Weight::Trained(layer.router.get()), None);
        let shares = expand_rows(mean_rows(softmax(scores, 1), cx.rows), cx.rows);
        let ([tokens, r], [_, experts]) = (h.dims(), shares.dims());
        // `p_e h` for every e, side by side.
        let mixed = shares.unsqueeze_dim::<3>(2) * h.unsqueeze_dim::<3>(1);
        let mixed = mixed.reshape([tokens, experts * r]);
        add(
            product.compute(),
            mixed.matmul(layer.b.get()) * self.scaling,
        )
    }

    fn first_layer(&self) -> usize {
        self.first_layer
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Linear(site) if self.layers.contains_key(&site.path))
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        let mut layers = self.layers.values();
        layers.any(|it| it.layer.is_none_or(|it| it == layer))
    }

    fn reads_whole_sequences(&self) -> bool {
        true
    }
}

impl Method for Lily {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: LilyConfig::NAME,
            reason: "how its matrices are mixed depends on the text",
        })
    }

    /// Each target's matrices, whether they are shared or not, as in HF PEFT.
    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let tensors = self.tensors();
        tensors
            .map(|(key, param)| Stored::f32(key, param.shape(), param.to_vec()))
            .collect()
    }

    /// Of matrices that are shared the last counts, as in HF PEFT.
    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        for (key, param) in self.tensors() {
            if let Some(values) = file.take(&key, param.shape())? {
                param.set_values(values);
            }
        }
        Ok(())
    }

    fn changed(&self) -> usize {
        self.trained
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, distance, logits, logits_of, module, set_random};

    #[test]
    fn neighbors_share_matrices_and_each_has_its_router() {
        let model = bert();
        // Two layers with two targets each, of hidden size 8.
        for (stride, matrices) in [(1, 4), (2, 2)] {
            let settings = json!({ "r": 3, "stride_A": stride, "num_B": 2 });
            let counts = module(&model, "lily", settings).counts(model.base());
            let expected = matrices * 3 * 8 + 2 * 6 * 8 + 4 * 2 * 3;
            assert_eq!(counts.trainable_parameters, expected);
            assert_eq!(counts.stored_parameters, 4 * (3 * 8 + 6 * 8 + 2 * 3));
        }
    }

    #[test]
    fn a_text_does_not_depend_on_its_company() {
        let model = bert();
        let module = module(&model, "lily", json!({ "r": 3 }));
        for name in ["query", "value"] {
            let path = format!("bert.encoder.layer.0.attention.self.{name}");
            set_random(&module, &format!("{path}.lily_B.weight"));
        }
        let together = logits(&model, &module);
        let alone = logits_of(&model, &module, &[&[3, 1, 4, 1, 5]]);
        assert!(distance(&together[..alone.len()], &alone) < 1e-6);
    }
}
