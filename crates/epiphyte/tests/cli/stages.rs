//! Staged tuning: each stage trains over the merged model of the one before, and leaves its
//! adapter, its merged model and its patch.

use std::fs;

use epiphyte::models::Checkpoint;
use serde_json::Value;

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// Full fine-tuning, then LoRA over its result, then LoRA over the merged LoRA, as in the BELLE
/// comparison (Sun et al. 2023, arXiv 2304.08109). The files of every stage stay as they are, and
/// the patches lead back to the base.
#[test]
fn lora_follows_full_fine_tuning_and_a_merged_lora() {
    let here = Workplace::new();
    let hash = |model: &str| {
        let tensors = Checkpoint::open(&here.path(model)).unwrap();
        tensors.content_hash().to_owned()
    };
    let mut bases = vec!["llama".to_owned()];
    let mut losses = Vec::new();
    for (stage, method) in ["full", "lora", "lora"].into_iter().enumerate() {
        let base = &bases[stage];
        let train = SPEAK.replace("--model llama", &format!("--model {base}"));
        let report = here.json(&format!(
            "{train} --method {method} --max-steps 6 --output adapter-{stage}"
        ));
        losses.push(report["metrics"]["loss"].as_f64().unwrap());
        let merged = here.json(&format!(
            "merge --model {base} --adapter adapter-{stage} --output merged-{stage} \
             --patch patch-{stage}"
        ));
        assert!(
            merged["largest_difference"].as_f64().unwrap() < 1e-4,
            "{merged}"
        );
        bases.push(format!("merged-{stage}"));
    }
    assert!(losses[2] < losses[0], "{losses:?}");
    // Each adapter knows the base that it was trained over, and refuses another.
    let eval = "eval --data dev.jsonl --model";
    for stage in 0..3 {
        let base = &bases[stage];
        assert_eq!(
            here.record(&format!("adapter-{stage}"))["base_sha256"],
            hash(base)
        );
        let scores = here.json(&format!("{eval} {base} --adapter adapter-{stage}"));
        assert!((scores["loss"].as_f64().unwrap() - losses[stage]).abs() < 1e-4);
    }
    let errors = here.fail(1, &format!("{eval} llama --adapter adapter-1"));
    assert!(errors.contains("base"), "{errors}");
    for stage in (0..3).rev() {
        here.succeed(&format!(
            "unmerge merged-{stage} --patch patch-{stage} --output restored-{stage}"
        ));
        assert_eq!(hash(&format!("restored-{stage}")), hash(&bases[stage]));
    }
}

/// The mean change of each kind of bias in each layer.
#[test]
fn what_moves_is_shown_layer_by_layer() {
    let here = Workplace::new();
    here.succeed(&format!(
        "{CLASSIFY} --method bitfit --max-steps 4 --output adapter"
    ));
    let summary = here.json("inspect adapter --model bert --changes");
    let changes = summary["changes"].as_array().unwrap();
    let key = "bert.encoder.layer.*.attention.self.key.bias";
    let query = key.replace("key", "query");
    let of = |name: &str| -> &Value {
        let found = changes.iter().find(|it| it["name"] == name);
        &found.unwrap_or_else(|| panic!("no {name}"))["mean_change"]
    };
    assert!(
        changes
            .iter()
            .all(|it| it["name"].as_str().unwrap().ends_with(".bias"))
    );
    assert_eq!(of(&query).as_array().unwrap().len(), 2);
    let mean = |name: &str, layer: usize| of(name)[layer][1].as_f64().unwrap();
    assert!(mean(&query, 0) > 0.0 && mean(key, 0) >= 0.0);
    let adapter = here.path("adapter/adapter_model.safetensors");
    let [tuned, base] = [&adapter, &here.path("bert/model.safetensors")].map(|path| {
        let file = Checkpoint::open_file(path).unwrap();
        let name = "encoder.layer.1.attention.self.query.bias";
        let found = file
            .names()
            .find(|it| it.ends_with(name))
            .unwrap()
            .to_owned();
        file.tensor(&found).unwrap().to_f32().unwrap()
    });
    let sum: f32 = tuned.iter().zip(&base).map(|(a, b)| (a - b).abs()).sum();
    let expected = f64::from(sum) / tuned.len() as f64;
    assert!((mean(&query, 1) - expected).abs() < 1e-6, "{expected}");
    let table = here.succeed("inspect adapter --model bert --changes");
    assert!(
        table.contains("mean change, by layer:") && table.contains(&query),
        "{table}"
    );
    let named = here.json("inspect adapter --changes");
    assert_eq!(
        named["changes"], summary["changes"],
        "of the base that the adapter names"
    );
    fs::remove_dir_all(here.path("bert")).unwrap();
    let errors = here.fail(1, "inspect adapter --changes");
    assert!(
        errors.contains("the base model `bert`, which") && errors.contains("pass --model"),
        "{errors}"
    );
}

/// The smallest dimension that reaches a share of full fine-tuning's score; the search goes on
/// with the runs that are there.
#[test]
fn the_intrinsic_dimension_is_searched() {
    let here = Workplace::new();
    let train = CLASSIFY.replace("train --model", "intrinsic-dimension --model");
    let search = format!(
        "{train} --method said --intrinsic-said false --max-steps 6 --share 0.5 --from 4 --to 64 \
         --refine 1 --metric-for-best-model accuracy --output search"
    );
    let found = here.json(&search);
    let runs = found["runs"].as_array().unwrap();
    assert_eq!(runs[0]["dimension"], Value::Null);
    assert_eq!(runs[0]["share"], 1.0);
    let reached = runs[1..]
        .iter()
        .find(|run| run["share"].as_f64().unwrap() >= 0.5);
    assert_eq!(found["intrinsic_dimension"], reached.unwrap()["dimension"]);
    assert!(here.path("search/full/adapter_config.json").exists());
    // Nothing is trained again: what was there stays, and the result is the same.
    let adapter = here.path("search/full/adapter_model.safetensors");
    let before = fs::read(&adapter).unwrap();
    let again = here.json(&search);
    assert_eq!(again["runs"], found["runs"]);
    assert!(fs::read(&adapter).unwrap() == before);
    for (flags, words) in [
        ("--method lora", "pass --method said"),
        (
            "--method said --metric-for-best-model loss",
            "more is better",
        ),
        (
            "--method said --metric-for-best-model accuracy --share 2",
            "--share is above 0",
        ),
    ] {
        let errors = here.fail(2, &format!("{train} --max-steps 1 --output other {flags}"));
        assert!(errors.contains(words), "{errors}");
    }
}
