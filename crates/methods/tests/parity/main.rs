//! The same numbers as transformers and PEFT: every base and every case of `tests/parity/golden`.
//!
//! | what | how near |
//! | --- | --- |
//! | logits, hidden states, losses | 1e-4, absolute |
//! | the gradient of every trained tensor | 1e-3 of the tensor's largest gradient |
//! | every trained tensor after five AdamW steps | 1e-3, absolute |
//!
//! The golden numbers were computed in f64. Where a gradient is zero in theory (`zero_gradient`), it is
//! 1e-3 of the case's largest gradient, and where AdamW takes such a tensor is not compared.
#![expect(clippy::print_stdout, reason = "the tests say how much they covered")]

mod case;
mod forward;
mod golden;

use golden::{Base, directories, folder};

/// Every base, with the number of its cases.
const BASES: [(&str, usize); 11] = [
    ("bert", 12),
    ("bert_regression", 2),
    ("llama", 9),
    ("llama_classifier", 4),
    ("llama_rope_dynamic", 0),
    ("llama_rope_linear", 0),
    ("llama_rope_llama3", 0),
    ("llama_rope_yarn", 0),
    ("llama_tied", 2),
    ("mistral", 3),
    ("qwen2", 4),
];

#[test]
fn no_base_is_left_out() {
    assert_eq!(directories(&folder()), BASES.map(|(name, _)| name));
}

#[test]
fn bases_alone_give_the_same_states_logits_and_losses() {
    let mut differences = Vec::new();
    for (name, _) in BASES {
        forward::check(&Base::open(name), &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{} bases", BASES.len());
}

#[test]
fn every_case_gives_the_same_logits_losses_gradients_and_steps() {
    let (mut differences, mut cases, mut tensors) = (Vec::new(), 0, 0);
    for (name, count) in BASES {
        let base = Base::open(name);
        let mut methods = directories(&base.dir);
        methods.retain(|method| method != "base");
        assert_eq!(methods.len(), count, "{name}: {methods:?}");
        for method in methods {
            tensors += case::check(&base, &method, &mut differences);
            cases += 1;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    println!("{cases} cases, {tensors} trained tensors");
}

/// Notes where `found` is farther than `tolerance` from `expected`.
fn compare(
    what: &str,
    found: &[f32],
    expected: &[f32],
    tolerance: f32,
    differences: &mut Vec<String>,
) {
    if found.len() != expected.len() {
        differences.push(format!(
            "{what}: {} values, expected {}",
            found.len(),
            expected.len()
        ));
        return;
    }
    let distance = |(a, b): (&f32, &f32)| (a - b).abs();
    let farthest = found.iter().zip(expected).map(distance);
    // By the total order, in which NaN is the largest.
    let farthest = farthest.max_by(f32::total_cmp).unwrap_or(0.0);
    if farthest.is_nan() || farthest > tolerance {
        differences.push(format!(
            "{what}: {farthest:e} apart, tolerance {tolerance:e}"
        ));
    }
}
