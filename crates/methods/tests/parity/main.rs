//! The same numbers as transformers and PEFT: every base and every case of `tests/parity/golden`.
//!
//! | what | how near |
//! | --- | --- |
//! | logits, hidden states, losses | 1e-4, absolute |
//! | the gradient of every trained tensor | 1e-3 of the tensor's largest gradient |
//! | every trained tensor after five AdamW steps | 1e-3, absolute |
//!
//! The golden numbers were computed in f64. Where a gradient is zero in theory (`zero_gradient`),
//! it is 1e-3 of the case's largest gradient, and where AdamW takes such a tensor, or a part of a
//! vector (`zero_gradient_parts`), is not compared.
#![expect(clippy::print_stdout, reason = "the tests say how much they covered")]

mod case;
mod forward;
mod golden;

use golden::{Base, directories, folder};

/// How many bases and cases there were when this was written; the folder only grows.
const LEAST_BASES: usize = 35;
const LEAST_CASES: usize = 58;

#[test]
fn bases_alone_give_the_same_states_logits_and_losses() {
    let bases = directories(&folder());
    let mut differences = Vec::new();
    for name in &bases {
        forward::check(&Base::open(name), &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(bases.len() >= LEAST_BASES, "{bases:?}");
    println!("{} bases", bases.len());
}

#[test]
fn every_case_gives_the_same_logits_losses_gradients_and_steps() {
    let (mut differences, mut cases, mut tensors) = (Vec::new(), 0, 0);
    for name in directories(&folder()) {
        let base = Base::open(&name);
        let mut methods = directories(&base.dir);
        methods.retain(|method| method != "base");
        for method in methods {
            tensors += case::check(&base, &method, &mut differences);
            cases += 1;
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert!(cases >= LEAST_CASES, "only {cases} cases");
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
