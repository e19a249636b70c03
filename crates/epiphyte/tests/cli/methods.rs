//! Every method from training to its file, its scores and its merged model.

use std::collections::BTreeSet;
use std::fs;

use epiphyte::methods::{Definition, METHODS};
use serde_json::{Map, Value};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// A method's last example as flags, tables in a file.
fn flags(here: &Workplace, method: &Definition) -> String {
    let examples = (method.examples)();
    let flag = |key: &String| method.flags.iter().find(|flag| flag.is_called(key));
    // Files may have what the command line computes, such as tokens of a text.
    let has_flags = |it: &&Map<String, Value>| it.keys().all(|key| flag(key).is_some());
    let mut examples = examples.iter().rev().filter_map(Value::as_object);
    let example = examples.find(has_flags);
    let example = example.unwrap_or_else(|| panic!("an example of {}", method.name));
    let flags = example.iter().map(|(key, value)| {
        let flag = flag(key).expect("a flag of the method").flag;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(Value::to_string).collect();
                items.join(",").replace('"', "")
            }
            Value::Object(_) => {
                let file = format!("{}-{key}.toml", method.name);
                let table = toml::Table::from_iter([(key.clone(), toml_value(value))]);
                fs::write(here.path(&file), table.to_string()).unwrap();
                return format!("--config {file}");
            }
            other => other.to_string(),
        };
        format!("--{flag}={text}")
    });
    flags.collect::<Vec<String>>().join(" ")
}

/// The same in TOML.
fn toml_value(value: &Value) -> toml::Value {
    toml::Value::try_from(value).expect("settings of examples have no null")
}

#[test]
fn every_method_goes_all_the_way() {
    let here = Workplace::new();
    for method in METHODS {
        for (task, run, base) in [("classify", CLASSIFY, "bert"), ("speak", SPEAK, "llama")] {
            let name = method.name;
            let adapter = format!("{name}-{task}");
            let flags = flags(&here, method);
            let command = format!("{run} --method {name} {flags} --max-steps 4 --output {adapter}");
            let output = here.run(&format!("{command} --json"));
            let errors = String::from_utf8(output.stderr).unwrap();
            // As of bias tuning on a model without biases.
            if errors.contains(&format!("{name} cannot act on this {base} model")) {
                continue;
            }
            assert!(output.status.success(), "{command}\n{errors}");
            let report: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(report["status"], "finished");
            assert_eq!(report["steps"], 4);

            let inspected = here.json(&format!("inspect {adapter}"));
            assert_eq!(inspected["method"], name);
            for key in [
                "trainable_parameters",
                "changed_parameters",
                "stored_parameters",
                "bytes",
            ] {
                assert!(inspected[key].as_u64().unwrap() > 0, "{key} of {adapter}");
                assert_eq!(inspected[key], report[key], "{key} of {adapter}");
            }

            let eval =
                format!("eval --model {base} --adapter {adapter} --data dev.jsonl --batch-size 16");
            let scores = here.json(&eval);
            // Rows of plain text are packed.
            let examples = if base == "llama" { 13 } else { 32 };
            assert_eq!(scores["examples"], examples, "{adapter}");
            for (metric, value) in report["metrics"].as_object().unwrap() {
                let (trained, loaded) = (value.as_f64().unwrap(), scores[metric].as_f64().unwrap());
                assert!(
                    (trained - loaded).abs() < 1e-9,
                    "{metric} of {adapter}: {trained} and {loaded}"
                );
            }
            merge(&here, base, &adapter);
        }
    }
}

/// The text or the names of the classes go through the base's tokenizer.
#[test]
fn prompts_start_from_a_text_or_from_the_labels() {
    let here = Workplace::new();
    let run = format!("{CLASSIFY} --method prompt-tuning --num-virtual-tokens 3 --max-steps 1");
    let init = |init: &str| format!("{run} --prompt-tuning-init {init} --output {init}");
    here.succeed(&format!("{} --prompt-tuning-init-text good", init("TEXT")));
    here.succeed(&init("LABELS"));
    let table = |name: &str| fs::read(here.path(name).join("adapter_model.safetensors")).unwrap();
    assert_ne!(table("TEXT"), table("LABELS"));
    let without = here.fail(
        1,
        &format!("{run} --prompt-tuning-init TEXT --output without"),
    );
    assert!(without.contains("`prompt_tuning_init_text`"), "{without}");
}

/// A method either says why it cannot be merged, or the merged model says the same as the adapter.
fn merge(here: &Workplace, base: &str, adapter: &str) {
    let command =
        format!("merge --model {base} --adapter {adapter} --output {adapter}-merged --json");
    let output = here.run(&command);
    if !output.status.success() {
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(
            errors.contains("cannot be merged into the base"),
            "{errors}"
        );
        return;
    }
    let merged: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        merged["largest_difference"].as_f64().unwrap() < 1e-4,
        "{adapter}: {merged}"
    );
    assert!(merged["changed_tensors"].as_u64().unwrap() > 0);
    let task = if base == "bert" {
        "sequence-classification"
    } else {
        "causal-lm"
    };
    let flags = format!("--data dev.jsonl --task {task} --text-columns text --max-length 16");
    let alone = here.json(&format!("eval --model {adapter}-merged {flags}"));
    let with_adapter = here.json(&format!(
        "eval --model {base} --adapter {adapter} --data dev.jsonl"
    ));
    let difference = alone["loss"].as_f64().unwrap() - with_adapter["loss"].as_f64().unwrap();
    assert!(
        difference.abs() < 1e-5,
        "{adapter}: {alone} and {with_adapter}"
    );
}

#[test]
fn methods_are_listed_with_their_flags() {
    let here = Workplace::new();
    let listing = here.json("methods");
    let names: Vec<&str> = listing["methods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|method| method["name"].as_str().unwrap())
        .collect();
    let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    assert_eq!(names, known);
    let lines = here.succeed("methods");
    for method in METHODS {
        let line = lines.lines().find(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(method.name)
        });
        assert!(line.expect(method.name).contains(method.summary));
    }
    let all = format!("methods {}", known.join(" "));
    let text = here.succeed(&all);
    for method in METHODS {
        assert!(text.contains(method.summary) && text.contains(method.paper));
    }
    let unknown = here.fail(2, "methods lora loraa");
    assert!(unknown.contains("loraa"), "{unknown}");
}

/// `--help` shows the settings of the method on the command line, with its defaults, and no others.
#[test]
fn help_shows_the_settings_of_the_method() {
    let here = Workplace::new();
    let listed = here.json("methods");
    let listed = listed["methods"].as_array().unwrap();
    let all: BTreeSet<&str> = METHODS
        .iter()
        .flat_map(|method| method.flags.iter().map(|flag| flag.flag))
        .collect();
    for (method, listing) in METHODS.iter().zip(listed) {
        let help = here.succeed(&format!("train --method {} --help", method.name));
        let words: BTreeSet<&str> = help
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("--"))
            .map(|word| word.split(['=', '[', ',']).next().unwrap())
            .collect();
        for flag in &all {
            let own = method.flags.iter().any(|own| own.flag == *flag);
            // Another setting's help may name it.
            assert!(!own || words.contains(flag), "--{flag} of {}", method.name);
            let heads = help.lines().any(|line| {
                let mut words = line.split_whitespace();
                let first = words.next().unwrap_or("");
                first.split(['=', '[']).next() == Some(&format!("--{flag}"))
            });
            assert_eq!(heads, own, "--{flag} in the help of {}", method.name);
        }
        let help = help.split_whitespace().collect::<Vec<&str>>().join(" ");
        for flag in listing["flags"].as_array().unwrap() {
            if let Some(default) = flag["default"].as_str() {
                assert!(help.contains(&format!("[default: {default}]")), "{flag}");
            }
        }
        let rate = format!("[default: {} for {}]", method.learning_rate, method.name);
        assert!(help.contains(&rate), "{rate}");
    }
}

/// The same seed gives the same bytes on any number of threads, in either precision.
#[test]
fn threads_do_not_show_in_the_adapter() {
    let here = Workplace::new();
    for method in METHODS {
        for (run, precision) in [(CLASSIFY, "f32"), (CLASSIFY, "bf16"), (SPEAK, "f32")] {
            let name = method.name;
            let adapter = |threads: u32| {
                let output = format!("{name}-{threads}");
                let command = format!(
                    "{run} --method {name} {} --precision {precision} --max-steps 3 --threads {threads} --overwrite \
                     --output {output}",
                    flags(&here, method)
                );
                let errors = String::from_utf8(here.run(&command).stderr).unwrap();
                let base = if run == SPEAK { "llama" } else { "bert" };
                if errors.contains(&format!("{name} cannot act on this {base} model")) {
                    return None;
                }
                let tensors = here.path(&output).join("adapter_model.safetensors");
                Some(std::fs::read(tensors).unwrap_or_else(|_| panic!("{command}\n{errors}")))
            };
            let one = adapter(1);
            for threads in [2, 8] {
                assert!(
                    adapter(threads) == one,
                    "{name}, {precision}, {threads} threads"
                );
            }
        }
    }
}
