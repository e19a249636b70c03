//! Where gradients go.

use std::collections::BTreeSet;

use epiphyte_methods::MethodError;
use serde_json::json;

use crate::support::{Family, case, everywhere, perturb, to_vec};

#[test]
fn gradients_reach_exactly_the_declared_parameters() {
    everywhere(|name, _, family, model, tuned| {
        perturb(&tuned);
        tuned.track(true);
        let gradients = family.loss(model, &tuned).backward();
        let mut without = BTreeSet::new();
        for param in tuned.trained() {
            let gradient = param.flat().grad(&gradients).map(to_vec);
            // Adding the same to all keys moves all scores alike: BERT's key biases have no
            // gradient but rounding noise, which may be exactly zero.
            let is_noise = family == Family::Bert && param.key().ends_with("self.key.bias");
            match gradient {
                Some(values) if is_noise || values.iter().any(|&value| value != 0.0) => {
                    assert_eq!(values.len(), param.count());
                    assert!(
                        values.iter().all(|value| value.is_finite()),
                        "{name}: {}",
                        param.key()
                    );
                }
                _ => {
                    without.insert(param.key().to_owned());
                }
            }
        }
        assert_eq!(without, BTreeSet::new(), "{name}: no gradient");
        for (tensor, values) in model.base().tensors() {
            assert!(
                !values.to_flat().is_autodiff(),
                "{name}: `{tensor}` of the base is tracked"
            );
        }
        assert_eq!(
            tuned.head_parameters().iter().count() > 0,
            family.task().outputs().is_some()
        );
    });
}

#[test]
fn every_virtual_token_of_every_layer_gets_a_gradient() {
    for family in [Family::Bert, Family::Llama] {
        for method in ["prompt-tuning", "prefix-tuning"] {
            let model = family.model();
            let tuned = case(method, json!({ "num_virtual_tokens": 3 }))
                .tune(&*model)
                .unwrap();
            tuned.track(true);
            let gradients = family.loss(&*model, &tuned).backward();
            let param = tuned.parameters().get("prompt_embeddings").unwrap();
            let values = to_vec(param.flat().grad(&gradients).unwrap());
            let head = model.base().dimensions.head_dim;
            for (index, block) in values.chunks(head).enumerate() {
                assert!(
                    block.iter().any(|&value| value != 0.0),
                    "{method} on {family:?}: block {index}"
                );
            }
        }
    }
}

#[test]
fn bitfit_says_that_llama_has_no_biases() {
    let error = case("bitfit", json!({}))
        .tune(&*Family::Llama.model())
        .unwrap_err();
    assert!(
        matches!(
            error,
            MethodError::NotApplicable {
                method: "bitfit",
                ..
            }
        ),
        "{error}"
    );
}
