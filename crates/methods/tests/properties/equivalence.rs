//! What must give the same result: a start that changes nothing, a merged model, dropout that is off,
//! what the file holds.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use epiphyte_methods::{MethodError, AdapterModule};
use epiphyte_models::{Adapter, Identity};
use serde_json::json;

use crate::support::{Family, case, distance, everywhere, perturb, set};

#[test]
fn nothing_changes_at_first_where_that_is_promised() {
    everywhere(|name, _case, family, model, tuned| {
        let promised = tuned.config().starts_as_identity();
        let before = family.output(model, &Identity, None);
        // Prompts add rows to the states.
        let after = family.output(model, &tuned, None);
        assert_eq!(before == after, promised, "{name}");
    });
}

#[test]
fn houlsby_starts_near_the_base() {
    for family in [Family::Bert, Family::Llama] {
        let model = family.model();
        let tuned = case("houlsby", json!({})).tune(&*model).unwrap();
        let after = family.output(&*model, &tuned, None);
        let moved = distance(&family.output(&*model, &Identity, None), &after);
        assert!(moved > 0.0 && moved < 1e-2, "{moved}");
    }
}

/// The base with other tensors in place, and nothing else.
struct Merged(BTreeMap<String, Tensor<1>>);

impl Adapter for Merged {
    fn parameter(&self, name: &str) -> Option<Tensor<1>> {
        self.0.get(name).cloned()
    }
}

#[test]
fn merged_is_unmerged() {
    everywhere(|name, case, family, model, tuned| {
        perturb(&tuned);
        let base = model.base();
        let merges = tuned.config().definition().merges;
        let mut tensors = BTreeMap::new();
        for tensor in base.tensors().keys() {
            match tuned.merged(tensor, base) {
                Ok(Some(values)) => {
                    tensors.insert(tensor.clone(), values);
                }
                Ok(None) => {}
                Err(MethodError::NotMergeable { method, .. }) => {
                    assert_eq!((merges, method), (false, case.method), "{name}");
                    return;
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
        assert!(merges, "{name} said nothing");
        let unmerged = family.output(model, &tuned, None);
        let merged = family.output(model, &Merged(tensors), None);
        assert!(
            distance(&unmerged, &family.output(model, &Identity, None)) > 1e-2,
            "{name} does nothing"
        );
        assert!(
            distance(&unmerged, &merged) < 1e-5,
            "{name}: {}",
            distance(&unmerged, &merged)
        );
    });
}

#[test]
fn what_the_file_holds_is_the_live_adapter() {
    everywhere(|name, case, family, model, tuned| {
        perturb(&tuned);
        let loaded = AdapterModule::stored_of(tuned.config(), model.base(), &Device::default()).unwrap();
        let held = tuned.stored().into_iter().chain(tuned.stored_head());
        let held: BTreeMap<String, _> = held.map(|stored| (stored.key.clone(), stored)).collect();
        assert_eq!(held.len(), loaded.trained().count(), "{name}");
        for param in loaded.trained() {
            let stored = &held[param.key()];
            assert_eq!(stored.shape, param.shape(), "{name}");
            set(param, stored.values.clone());
        }
        let live = family.output(model, &tuned, None);
        assert_eq!(
            live,
            family.output(model, &loaded, None),
            "{name} {}",
            case.settings
        );
    });
}

#[test]
fn dropout_acts_with_keys_only() {
    let pairs = [
        (
            case("lora", json!({ "lora_dropout": 0.5 })),
            case("lora", json!({ "lora_dropout": 0.0 })),
        ),
        (
            case("prefix-tuning", json!({ "prefix_dropout": 0.5 })),
            case("prefix-tuning", json!({})),
        ),
        (
            case("p-tuning-v2", json!({})),
            case("p-tuning-v2", json!({ "prefix_dropout": 0.0 })),
        ),
    ];
    for family in [Family::Bert, Family::Llama] {
        let model = family.model();
        for (with, without) in &pairs {
            let (with, without) = (with.tune(&*model).unwrap(), without.tune(&*model).unwrap());
            perturb(&with);
            perturb(&without);
            let off = family.output(&*model, &with, None);
            assert_eq!(off, family.output(&*model, &without, None));
            let on = |tuned, keys: [u64; 3]| family.output(&*model, tuned, Some(keys.to_vec()));
            assert_eq!(on(&with, [1, 2, 3]), on(&with, [1, 2, 3]));
            assert_ne!(on(&with, [1, 2, 3]), on(&without, [1, 2, 3]));
            assert_ne!(on(&with, [1, 2, 3]), on(&with, [4, 5, 6]));
        }
    }
}
