//! `convert`: changes of a base as LoRA or as a delta.

use epiphyte::models::Checkpoint;
use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// The scores and predictions of two commands are the same.
fn agree(here: &Workplace, one: &str, other: &str) {
    let task = "--text-columns text --label-column label --data dev.jsonl";
    let [one, other] = [one, other].map(|model| here.json(&format!("eval {model} {task}")));
    for key in ["accuracy", "loss"] {
        let [one, other] = [&one, &other].map(|it| it[key].as_f64().unwrap());
        assert!((one - other).abs() < 1e-4, "{key}: {one} and {other}");
    }
}

#[test]
fn an_adapter_becomes_lora_with_its_head() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --method hra --max-steps 4 --output hra");
    here.succeed(&train);
    let convert = "convert --model bert --adapter hra --to lora --output";
    let report = here.json(&format!("{convert} lora --rank 16"));
    assert!(
        report["relative_error"].as_f64().unwrap() < 1e-5,
        "{report}"
    );
    assert_eq!(here.record("lora")["method"], "lora");
    assert_eq!(
        here.record("lora")["base_sha256"],
        here.record("hra")["base_sha256"]
    );
    let [hra, lora] = ["hra", "lora"].map(|it| format!("--model bert --adapter {it}"));
    agree(&here, &hra, &lora);
    // A share of the change: each layer has its own rank, and less is kept than of all.
    let report = here.json(&format!("{convert} less --rank 0.5"));
    let error = report["relative_error"].as_f64().unwrap();
    assert!(error > 0.0 && error <= 0.5f64.sqrt(), "{error}");
    let ranks = report["layers"].as_array().unwrap().iter();
    assert!(ranks.clone().all(|it| it["rank"].as_u64().unwrap() < 16));
    here.succeed("eval --model bert --adapter less --data dev.jsonl");
    // An adapter that PEFT wrote has no record, and neither has its LoRA.
    here.as_of_peft("hra");
    here.succeed(&format!(
        "{convert} of-peft --rank 16 --labels negative,positive"
    ));
    here.as_of_peft("lora");
    let read = |name: &str| -> Value { serde_json::from_str(&here.read(name)).unwrap() };
    assert_eq!(
        read("of-peft/adapter_config.json"),
        read("lora/adapter_config.json")
    );
}

#[test]
fn biases_that_change_are_those_of_lora() {
    let here = Workplace::new();
    here.succeed(&format!(
        "{CLASSIFY} --method bitfit --max-steps 4 --bitfit-components query,value \
        --output biases"
    ));
    here.succeed("convert --model bert --adapter biases --to lora --rank 1 --output lora");
    let config: Value = serde_json::from_str(&here.read("lora/adapter_config.json")).unwrap();
    assert_eq!(config["lora_bias"], true);
    assert_eq!(
        config["target_modules"],
        json!(["pooler.dense", "query", "value"])
    );
    agree(
        &here,
        "--model bert --adapter biases",
        "--model bert --adapter lora",
    );
}

/// A model that was fine-tuned whole, its delta, LoRA of full rank and the delta's merged model are
/// the same model.
#[test]
fn a_fine_tuned_model_becomes_a_delta_and_lora() {
    let here = Workplace::new();
    let freeze = "--method lora --target-modules q_proj,down_proj";
    here.succeed(&format!("{SPEAK} {freeze} --max-steps 4 --output adapter"));
    here.succeed("merge --model llama --adapter adapter --output tuned");
    let report = here.json("convert --model llama --tuned tuned --to delta --output tuned.delta");
    let delta = Checkpoint::open_file(&here.path("tuned.delta")).unwrap();
    let names: Vec<&str> = delta.names().collect();
    assert_eq!(report["tensors"], 4);
    assert!(
        names
            .iter()
            .all(|name| name.contains("q_proj") || name.contains("down_proj"))
    );
    let of_adapter =
        here.json("convert --model llama --adapter adapter --to delta --output adapter.delta");
    assert_eq!(of_adapter["values"], report["values"]);
    let lora =
        here.json("convert --model llama --delta tuned.delta --to lora --rank 8 --output lora");
    assert!(lora["relative_error"].as_f64().unwrap() < 1e-4, "{lora}");
    let same = here.json("convert --model llama --tuned tuned --to lora --rank 8 --output same");
    assert_eq!(same["layers"].as_array().unwrap().len(), 4);
    here.succeed("merge --model llama --models tuned.delta --output again");
    let task = "--task causal-lm --text-columns text --data dev.jsonl";
    let expected = here.json(&format!("eval --model tuned {task}"))["loss"]
        .as_f64()
        .unwrap();
    let untrained = here.json(&format!("eval --model llama {task}"))["loss"]
        .as_f64()
        .unwrap();
    assert!((expected - untrained).abs() > 1e-2);
    for model in [
        "--model llama --adapter lora",
        "--model llama --adapter same",
        "--model again",
    ] {
        let found = here.json(&format!("eval {model} {task}"))["loss"]
            .as_f64()
            .unwrap();
        assert!(
            (found - expected).abs() < 1e-4,
            "{model}: {found}, {expected}"
        );
    }
    // A delta is of its base, unless another is meant.
    let other = "merge --model tuned --models tuned.delta --output twice";
    let errors = here.fail(1, other);
    assert!(errors.contains("the delta of another base"), "{errors}");
    here.succeed(&format!("{other} --allow-other-base"));
    let errors = here.fail(
        1,
        "convert --model tuned --delta tuned.delta --to lora --rank 2 --output no",
    );
    assert!(errors.contains("the delta of another base"), "{errors}");
    let errors = here.fail(1, "inspect adapter --model tuned --changes");
    assert!(errors.contains("another base"), "{errors}");
    // Half of the change, twice.
    here.succeed(
        "merge --model llama --models tuned.delta,tuned --weights 0.5,0.5 --output halves",
    );
    let found = here.json(&format!("eval --model halves {task}"))["loss"]
        .as_f64()
        .unwrap();
    assert!((found - expected).abs() < 1e-4, "{found}");
}

#[test]
fn what_cannot_be_converted_is_refused() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output adapter"));
    here.write("notes/mine.txt", "mine");
    for (code, flags, words) in [
        (
            2,
            "--to lora --rank 2",
            "--adapter <DIR>|--tuned <DIR>|--delta <FILE>",
        ),
        (2, "--adapter adapter --to lora", "--rank"),
        (
            2,
            "--adapter adapter --to lora --rank 0",
            "whole number for the rank",
        ),
        (
            2,
            "--adapter adapter --to lora --rank 2 --tuned llama",
            "cannot be used with",
        ),
        (
            1,
            "--tuned llama --to lora --rank 2",
            "the base has no tensor",
        ),
        (
            1,
            "--tuned bert-head --to lora --rank 2",
            "the base has no tensor `classifier",
        ),
        (
            1,
            "--adapter adapter --to lora --rank 17",
            "rank 16 at most",
        ),
        (
            1,
            "--tuned bert --to lora --rank 2",
            "no tensor of the base changes",
        ),
    ] {
        let errors = here.fail(code, &format!("convert --model bert {flags} --output out"));
        assert!(errors.contains(words), "{flags}: {errors}");
        assert!(!here.path("out").exists());
    }
    let convert = "convert --model bert --adapter adapter --to";
    let errors = here.fail(2, &format!("{convert} lora --rank 2 --output notes"));
    assert!(errors.contains("is not empty"), "{errors}");
    let errors = here.fail_any(&format!("{convert} delta --output notes"));
    assert!(errors.contains("is a directory"), "{errors}");
    assert_eq!(here.read("notes/mine.txt"), "mine");
    let errors = here.fail(2, &format!("{convert} delta --output out"));
    assert!(errors.contains("is not in the base's files"), "{errors}");
}

/// The head of a classifier that the base has stays; LoRA has no place for another.
#[test]
fn a_base_with_a_head_is_converted_while_its_head_stays() {
    let here = Workplace::new();
    let train = CLASSIFY.replace("--model bert", "--model bert-head");
    here.succeed(&format!("{train} --max-steps 2 --output adapter"));
    here.succeed("merge --model bert-head --adapter adapter --output tuned");
    let convert = "convert --model bert-head --to lora --rank 2 --output lora --tuned";
    let errors = here.fail(2, &format!("{convert} tuned"));
    assert!(errors.contains("which is of the head"), "{errors}");
    let errors = here.fail(1, &format!("{convert} bert-head"));
    assert!(errors.contains("no tensor of the base changes"), "{errors}");
}

#[test]
fn an_adapter_goes_to_adapterhub_and_comes_back() {
    let here = Workplace::new();
    here.succeed(&format!(
        "{SPEAK} --method pfeiffer --max-steps 3 --output ours"
    ));
    let written = here.json("convert --model llama --adapter ours --to adapterhub --output theirs");
    assert_eq!(written["method"], "pfeiffer");
    let data = "--task causal-lm --text-columns text --data dev.jsonl --max-length 16 \
                --packing=false";
    let errors = here.fail_any(&format!("eval --model llama --adapter theirs {data}"));
    assert!(errors.contains("convert --adapterhub"), "{errors}");
    here.succeed("convert --model llama --adapterhub theirs --to adapter --output back");
    let loss = |adapter: &str| {
        here.json(&format!("eval --model llama --adapter {adapter} {data}"))["loss"].clone()
    };
    assert_eq!(loss("ours"), loss("back"));

    here.succeed(&format!(
        "{SPEAK} --max-steps 1 --output prompt --method prompt-tuning"
    ));
    for (arguments, words) in [
        (
            "--adapter prompt --to adapterhub",
            "AdapterHub does not have",
        ),
        ("--adapter ours --to adapter", "is for --adapterhub"),
        ("--adapterhub theirs --to delta", "--to adapter first"),
        ("--adapterhub bert --to adapter", "adapter_config.json"),
    ] {
        let errors = here.fail_any(&format!("convert --model llama {arguments} --output other"));
        assert!(errors.contains(words), "{words}: {errors}");
    }
}
