//! What must give the same result: a start that changes nothing, a merged model, dropout that is
//! off, what the file holds.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use epiphyte_methods::file::{AdapterFile, AdapterMetadata, CONFIG_FILE, Provenance, save};
use epiphyte_methods::{AdapterModule, METHODS, MethodError, StepInfo};
use epiphyte_models::adapter::{AttentionSite, Block};
use epiphyte_models::{
    Adapter, Embedded, ForwardContext, Hidden, Hook, Identity, LazyLinear, Site, StandIn, Sublayer,
};
use epiphyte_ops::Prefix;
use serde_json::{Value, json};

use crate::support::{TestModel, bert, case, distance, everywhere, llama, perturb};

#[test]
fn nothing_changes_at_first_where_that_is_promised() {
    everywhere(|name, _, on, module| {
        let promised = module.config().starts_as_identity();
        // Prompts add rows to the states.
        let same = on.output(&Identity, None) == on.output(&module, None);
        assert_eq!(same, promised, "{name}");
    });
}

#[test]
fn houlsby_starts_near_the_base() {
    for on in [bert(), llama()] {
        let module = case("houlsby", json!({})).tune(&on).unwrap();
        let moved = distance(&on.output(&Identity, None), &on.output(&module, None));
        assert!(moved > 0.0 && moved < 1e-2, "{moved}");
    }
}

/// The base with other tensors in place, and nothing else.
struct Merged(BTreeMap<String, Tensor<1>>);

impl Adapter for Merged {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.0.get(name).cloned().map(StandIn::Tensor)
    }
}

#[test]
fn merged_is_unmerged() {
    everywhere(|name, case, on, module| {
        perturb(&module);
        let base = on.model.base();
        let merges = module.config().definition().merges;
        let mut tensors = BTreeMap::new();
        for tensor in base.tensors().keys() {
            match module.merged(tensor, base) {
                Ok(Some(values)) => {
                    tensors.insert(tensor.clone(), values);
                }
                Ok(None) => {}
                Err(MethodError::NotMergeable { method, reason }) => {
                    assert_eq!(method, case.method, "{name}");
                    // What a method that merges changes must be there.
                    let lacks_biases = base.linears().iter().any(|linear| !linear.bias);
                    let excused = reason.contains("no bias") && lacks_biases;
                    assert!(!merges || excused, "{name}: {reason}");
                    return;
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert!(merges, "{name} said nothing");
        let unmerged = on.output(&module, None);
        let merged = on.output(&Merged(tensors), None);
        assert!(
            distance(&unmerged, &on.output(&Identity, None)) > 1e-2,
            "{name} does nothing"
        );
        let difference = distance(&unmerged, &merged);
        assert!(difference < 1e-5, "{name}: {difference}");
    });
}

#[test]
fn a_saved_adapter_gives_the_same_outputs_when_it_is_loaded() {
    everywhere(|name, case, on, module| {
        perturb(&module);
        let base = on.model.base();
        let dir = tempfile::tempdir().unwrap();
        let metadata = AdapterMetadata {
            base_model: "tiny".to_owned(),
            task_type: "SEQ_CLS".to_owned(),
            provenance: Provenance {
                version: "0".to_owned(),
                method: case.method.to_owned(),
                base_sha256: "0".repeat(64),
                base_quantization: None,
                base_config: None,
                tokenizer_sha256: "0".repeat(64),
                task: Value::Null,
                account: None,
                training: None,
            },
        };
        save(dir.path(), &module, base, &metadata).unwrap();
        let text = std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        // In every family, all linear layers of the body are stored transposed, or none is.
        let transposed = base.linears().iter().any(|linear| linear.transposed);
        let said = config.get("fan_in_fan_out");
        assert!(said.is_none_or(|said| *said == transposed), "{name}");
        let file = AdapterFile::open(dir.path()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let loaded = file.load(base, &Device::default());
        let loaded = loaded.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(on.output(&module, None), on.output(&loaded, None), "{name}");
        let counts = module.counts(base);
        assert_eq!(
            counts.stored_parameters,
            loaded.counts(base).stored_parameters,
            "{name}"
        );
    });
}

/// An adapter whose promises are forced off: it says that it acts everywhere, from the first layer
/// on, and reads all rows.
struct NoPromises<'a>(&'a AdapterModule);

impl Adapter for NoPromises<'_> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.0.parameter(name)
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.lookup(table, ids, rows, cx)
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        self.0.embeddings(embedded, cx)
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.0.linear_input(site, x, cx)
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.0.linear(site, product, cx)
    }

    fn attention(
        &self,
        at: AttentionSite,
        qkv: [Tensor<2>; 3],
        cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        self.0.attention(at, qkv, cx)
    }

    fn prefix_length(&self, decoder: bool) -> usize {
        self.0.prefix_length(decoder)
    }

    fn soft_tokens(&self) -> usize {
        self.0.soft_tokens()
    }

    fn pools_text(&self) -> bool {
        self.0.pools_text()
    }

    fn virtual_tokens(&self) -> usize {
        self.0.virtual_tokens()
    }

    fn prefix(&self, at: AttentionSite, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        self.0.prefix(at, x, cx)
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.sublayer(sublayer, output, cx)
    }

    fn after_block(
        &self,
        layer: usize,
        block: Block,
        states: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.after_block(layer, block, states, cx)
    }

    fn hidden(&self, layer: usize, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.0.hidden(layer, hidden, cx)
    }

    fn encoded(&self, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.0.encoded(hidden, cx)
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.final_norm(states, norm, cx)
    }

    fn first_pass(&self) -> Option<&dyn Adapter> {
        self.0.first_pass()
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        true
    }

    fn mixes_rows(&self, _layer: usize) -> bool {
        true
    }
}

#[test]
fn a_hooks_promises_save_work_and_change_no_byte() {
    everywhere(|name, _, on, module| {
        perturb(&module);
        let expected = on.output(&module, Some(vec![1, 2, 3]));
        let found = on.output(&NoPromises(&module), Some(vec![1, 2, 3]));
        assert_eq!(expected, found, "{name}");
    });
}

#[test]
fn dropout_acts_in_steps_only() {
    let mut pairs = Vec::new();
    for method in METHODS {
        let key = method.flags.iter().map(|flag| flag.key);
        for key in key.filter(|key| key.ends_with("dropout")) {
            let with = |p: f64| {
                let mut settings = (method.examples)().remove(0);
                settings[key] = json!(p);
                case(method.name, settings)
            };
            pairs.push((with(0.5), with(0.0)));
        }
    }
    assert!(pairs.len() >= 3);
    // A step, and the keys of its sequences: what is computed once a step draws by step.
    let in_step = |on: &TestModel, module: &mut AdapterModule, step: u64| {
        module.before_step(StepInfo {
            step,
            total: 9,
            stage: 0,
            stage_step: step,
            stage_total: 9,
        });
        let keys = (0..3).map(|sequence| 10 * step + sequence);
        on.output(module, Some(keys.collect()))
    };
    for on in [bert(), llama()] {
        for (with, without) in &pairs {
            let (with, without) = (with.tune(&on), without.tune(&on));
            if let Err(MethodError::NotApplicable { .. }) = &with {
                continue;
            }
            let (mut with, mut without) = (with.unwrap(), without.unwrap());
            perturb(&with);
            perturb(&without);
            assert_eq!(on.output(&with, None), on.output(&without, None));
            let first = in_step(&on, &mut with, 1);
            assert_ne!(first, in_step(&on, &mut without, 1));
            assert_ne!(first, in_step(&on, &mut with, 2));
            assert_eq!(first, in_step(&on, &mut with, 1));
        }
    }
}
