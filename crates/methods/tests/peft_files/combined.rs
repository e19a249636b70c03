//! Combinations of two adapters, beside HF PEFT's (`tests/parity/make_combined.py`).

use std::path::{Path, PathBuf};

use epiphyte_methods::file::combine::{Combination, combine};
use epiphyte_methods::file::{AdapterFile, TENSORS_FILE};
use epiphyte_models::Checkpoint;

/// The weights and the density of the golden files.
const WEIGHTS: [f64; 2] = [1.25, -0.5];
const DENSITY: f64 = 0.4;
const PATH: &str = "base_model.model.model.layers.0.self_attn.q_proj";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peft_files/combined")
}

fn adapters(weights: [f64; 2]) -> Vec<(AdapterFile, f64)> {
    let open = |name: &str| AdapterFile::open(&folder().join(name)).unwrap();
    ["a", "b"].map(open).into_iter().zip(weights).collect()
}

fn combination(kind: &str) -> Combination {
    Combination {
        kind: kind.to_owned(),
        rank: Some(2),
        density: DENSITY,
        by_frequency: false,
        seed: 3,
    }
}

fn values(file: &Checkpoint, name: &str) -> (Vec<usize>, Vec<f64>) {
    let view = file.tensor(name).unwrap_or_else(|| panic!("no `{name}`"));
    let values = view.to_f32().unwrap().into_iter().map(f64::from);
    (view.shape.to_vec(), values.collect())
}

/// `B A`, row-major.
fn product(file: &Checkpoint, a: &str, b: &str) -> Vec<f64> {
    let ((a_shape, a), (b_shape, b)) = (values(file, a), values(file, b));
    let [rank, columns] = [a_shape[0], a_shape[1]];
    assert_eq!(rank, b_shape[1]);
    let entries = (0..b_shape[0]).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let entry = |(row, column)| {
        (0..rank)
            .map(|k| b[row * rank + k] * a[k * columns + column])
            .sum()
    };
    entries.map(entry).collect()
}

/// The change of the adapter that a combination writes.
fn combined(how: &Combination, weights: [f64; 2]) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    combine(&adapters(weights), how, dir.path()).unwrap();
    AdapterFile::open(dir.path()).unwrap();
    let file = Checkpoint::open_file(&dir.path().join(TENSORS_FILE)).unwrap();
    product(
        &file,
        &format!("{PATH}.lora_A.weight"),
        &format!("{PATH}.lora_B.weight"),
    )
}

fn farthest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max)
}

#[test]
fn combinations_are_those_of_peft() {
    let expected = Checkpoint::open_file(&folder().join("expected.safetensors")).unwrap();
    let names: Vec<&str> = expected
        .names()
        .filter_map(|name| name.strip_suffix("/A"))
        .collect();
    assert!(names.len() >= 9, "{names:?}");
    for name in names {
        let how = Combination {
            by_frequency: name.ends_with("_frequency"),
            ..combination(
                name.trim_end_matches("_total")
                    .trim_end_matches("_frequency"),
            )
        };
        let found = combined(&how, WEIGHTS);
        let expected = product(&expected, &format!("{name}/A"), &format!("{name}/B"));
        assert!(expected.iter().any(|value| value.abs() > 1e-3), "{name}");
        let difference = farthest(&found, &expected);
        assert!(difference < 1e-6, "{name}: {difference}");
    }
}

/// Of one adapter at weight -1: its change with the other sign.
#[test]
fn a_weight_of_minus_one_takes_an_adapter_back() {
    let own = combined(&combination("cat"), [1.0, 0.0]);
    let back = combined(&combination("cat"), [-1.0, 0.0]);
    let negated: Vec<f64> = back.iter().map(|value| -value).collect();
    assert!(farthest(&own, &negated) < 1e-9);
    assert!(own.iter().any(|value| value.abs() > 1e-3));
}

/// Drawn values are scaled up, so that the mean over many draws is the sum.
#[test]
fn random_pruning_keeps_the_mean() {
    let whole = combined(
        &Combination {
            rank: Some(32),
            ..combination("svd")
        },
        [1.0, 0.5],
    );
    let draws = 300;
    let mut mean = vec![0.0; whole.len()];
    for seed in 0..draws {
        let how = Combination {
            seed,
            rank: Some(32),
            ..combination("dare_linear_svd")
        };
        for (mean, value) in mean.iter_mut().zip(combined(&how, [1.0, 0.5])) {
            *mean += value / draws as f64;
        }
    }
    // A value v has the variance v² (1 - p) / p around its mean.
    let largest = whole
        .iter()
        .fold(0.0f64, |most, value| most.max(value.abs()));
    let error = largest * ((1.0 - DENSITY) / DENSITY / draws as f64).sqrt();
    assert!(
        farthest(&whole, &mean) < 5.0 * error,
        "{} {error}",
        farthest(&whole, &mean)
    );
    assert!(farthest(&whole, &mean) > 0.0);
}

#[test]
fn what_cannot_be_combined_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let problem = |adapters: &[(AdapterFile, f64)], how: &Combination| {
        combine(adapters, how, dir.path()).unwrap_err().to_string()
    };
    let unknown = problem(&adapters(WEIGHTS), &combination("average"));
    assert!(unknown.contains("`combination` is average"), "{unknown}");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden");
    let open = |name: &str| vec![(AdapterFile::open(&golden.join(name)).unwrap(), 1.0)];
    for (name, words) in [
        ("bert/vera", "only adapters of lora"),
        ("bert/lora", "more than a low-rank change"),
        ("gpt2/lora_pissa", "convert it to plain LoRA first"),
    ] {
        let problem = problem(&open(name), &combination("cat"));
        assert!(problem.contains(words), "{problem}");
    }
}
