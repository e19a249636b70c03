//! Adapters converted to LoRA, beside HF PEFT's `convert_to_lora`
//! (`tests/parity/make_converted.py`).

use std::collections::BTreeSet;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use epiphyte_methods::file::convert::{adapter_to_lora, change};
use epiphyte_methods::file::{AdapterFile, TENSORS_FILE, save_as};
use epiphyte_models::{Base, Checkpoint, HeadKind, LoadOptions, load};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A base of the golden folders, with an adapter's file.
fn golden(base: &str, method: &str) -> (Base, AdapterFile) {
    let dir = root().join("../../tests/parity/golden").join(base);
    let head = match base {
        "bert" => HeadKind::Classification { labels: 3 },
        _ => HeadKind::LanguageModel,
    };
    let options = LoadOptions::default();
    let model = load(&dir.join("base"), head, &Device::flex(), &options).unwrap();
    let file = AdapterFile::open(&dir.join(method)).unwrap();
    (model.model.base().clone(), file)
}

/// The values of the tensor whose name ends so.
fn tensor(file: &Checkpoint, end: &str) -> Tensor<2> {
    let mut names = file.names();
    let name = names.find(|name| name.ends_with(end)).expect(end);
    let view = file.tensor(name).unwrap();
    let values = Tensor::<1>::from_floats(view.to_f32().unwrap().as_slice(), &Device::flex());
    values.reshape([view.shape[0], view.shape[1]])
}

#[test]
fn conversions_are_those_of_peft() {
    let device = Device::flex();
    let expected = root().join("tests/peft_files/converted.safetensors");
    let expected = Checkpoint::open_file(&expected).unwrap();
    let cases: BTreeSet<[&str; 3]> = expected
        .names()
        .map(|name| {
            let mut parts = name.splitn(4, '/');
            [(); 3].map(|()| parts.next().expect("base, method and rank"))
        })
        .collect();
    assert_eq!(cases.len(), 10);
    for [base_name, method, rank] in cases {
        let (base, file) = golden(base_name, method);
        let module = file.load(&base, &device).unwrap();
        let rule = rank.parse().unwrap();
        let (lora, conversion) = adapter_to_lora(module, &base, &device, rule).unwrap();
        let written = tempfile::tempdir().unwrap();
        save_as(written.path(), &lora, &base, ["", ""], None).unwrap();
        let tensors = Checkpoint::open_file(&written.path().join(TENSORS_FILE)).unwrap();
        let case = format!("{base_name}/{method}/{rank}/");
        let paths = expected.names().filter_map(|name| name.strip_prefix(&case));
        let paths: BTreeSet<&str> = paths.collect();
        let found: BTreeSet<&str> = conversion
            .layers
            .iter()
            .map(|it| it.path.as_str())
            .collect();
        assert_eq!(found, paths, "{case}");
        for path in paths {
            let a = tensor(&tensors, &format!("{path}.lora_A.weight"));
            let b = tensor(&tensors, &format!("{path}.lora_B.weight"));
            let [rank, inputs] = a.dims();
            let x: Vec<f32> = (0..inputs).map(|at| (at as f64).cos() as f32).collect();
            let x = Tensor::<1>::from_floats(x.as_slice(), &device).reshape([inputs, 1]);
            let product = b.matmul(a.matmul(x));
            let product = product.flatten::<1>(0, 1).try_into_vec_as::<f32>().unwrap();
            let golden = expected.tensor(&format!("{case}{path}")).unwrap();
            let golden = golden.to_f32().unwrap();
            assert_eq!(golden[0] as usize, rank, "{case}{path}");
            let size = golden[1..]
                .iter()
                .fold(0.0f32, |most, it| most.max(it.abs()));
            assert!(size > 1e-3, "{case}{path} does nothing");
            for (found, expected) in product.iter().zip(&golden[1..]) {
                assert!((found - expected).abs() < 1e-4 * size, "{case}{path}");
            }
        }
        // What was written is read, and is the change of the module that was written.
        let read = AdapterFile::open(written.path()).unwrap();
        let read = read.load(&base, &device).unwrap();
        for name in base.tensors().keys() {
            let [written, read] = [&lora, &read].map(|it| change(it, &base, name).unwrap());
            assert_eq!(written, read, "{case}{name}");
        }
    }
}

/// At full rank nothing is lost; a smaller one loses what the report says.
#[test]
fn the_error_is_what_is_lost() {
    let device = Device::flex();
    let (base, file) = golden("bert", "loha");
    let load = || file.load(&base, &device).unwrap();
    let whole = load();
    for rank in ["1", "3", "32"] {
        let rule = rank.parse().unwrap();
        let (lora, conversion) = adapter_to_lora(load(), &base, &device, rule).unwrap();
        let (mut lost, mut all) = (0.0, 0.0);
        for name in base.tensors().keys().filter(|name| !base.is_of_head(name)) {
            let Some(before) = change(&whole, &base, name).unwrap() else {
                continue;
            };
            let after = change(&lora, &base, name).unwrap().unwrap();
            for (before, after) in before.iter().zip(&after) {
                lost += f64::from(before - after).powi(2);
                all += f64::from(*before).powi(2);
            }
        }
        let error = (lost / all).sqrt();
        assert!(
            (error - conversion.relative_error).abs() < 1e-5,
            "{rank}: {error}"
        );
        assert_eq!(rank == "32", error < 1e-5, "{rank}: {error}");
    }
}

#[test]
fn what_is_no_change_of_a_linear_layer_is_refused() {
    let device = Device::flex();
    for (method, rank, words) in [
        ("loha", "33", "has rank 32 at most"),
        ("ln_tuning", "1", "LayerNorm"),
        ("prefix_tuning", "1", "cannot be merged"),
    ] {
        let (base, file) = golden("bert", method);
        let module = file.load(&base, &device).unwrap();
        let rule = rank.parse().unwrap();
        let error = adapter_to_lora(module, &base, &device, rule).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    }
}
