//! Where gradients go.

use std::collections::BTreeSet;

use epiphyte_methods::{Gradients, MethodError};
use serde_json::json;

use crate::support::{bert, case, everywhere, llama, perturb, to_vec};

#[test]
fn gradients_reach_exactly_the_declared_parameters() {
    everywhere(|name, _, on, module| {
        perturb(&module);
        let gradients = on.gradients(&module);
        let mut without = BTreeSet::new();
        for param in module.trained() {
            match gradients.get(param).cloned().map(to_vec) {
                Some(values) if on.is_noise(param) || values.iter().any(|&value| value != 0.0) => {
                    assert_eq!(values.len(), param.count());
                    let finite = values.iter().all(|value| value.is_finite());
                    assert!(finite, "{name}: {}", param.key());
                }
                _ if module.method().may_lack_gradient(param) => {}
                _ => {
                    without.insert(param.key().to_owned());
                }
            }
        }
        assert_eq!(without, BTreeSet::new(), "{name}: no gradient");
        for (tensor, values) in on.model.base().tensors() {
            let tracked = values.to_flat().is_autodiff();
            assert!(!tracked, "{name}: `{tensor}` of the base is tracked");
        }
        let has_head = module.head_parameters().count() > 0;
        assert_eq!(has_head, on.head.outputs().is_some());
    });
}

#[test]
fn every_virtual_token_of_every_layer_gets_a_gradient() {
    for on in [bert(), llama()] {
        for method in ["prompt-tuning", "prefix-tuning"] {
            let module = case(method, json!({ "num_virtual_tokens": 3 }));
            let module = module.tune(&on).unwrap();
            let gradients: Gradients = on.gradients(&module);
            let param = module.parameters().get("prompt_embeddings").unwrap();
            let values = to_vec(gradients.get(param).unwrap().clone());
            let head = on.model.base().dimensions.head_dim;
            for (index, block) in values.chunks(head).enumerate() {
                let reached = block.iter().any(|&value| value != 0.0);
                assert!(reached, "{method} on {}: block {index}", on.name);
            }
        }
    }
}

#[test]
fn bitfit_says_that_llama_has_no_biases() {
    let error = case("bitfit", json!({})).tune(&llama()).unwrap_err();
    let method = "bitfit";
    assert!(
        matches!(error, MethodError::NotApplicable { method: found, .. } if found == method),
        "{error}"
    );
}
