//! `epiphyte compare`, `report` and `plan`.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::workplace::{CLASSIFY, Workplace};

const SUITE: &str = r#"
title = "Three methods"
baseline = "bitfit"
seeds = [0, 1]

[settings]
text_columns = ["text"]
max_length = 16
batch_size = 8
max_steps = 6
logging_steps = 1
train_data = "train.jsonl"
eval_data = "dev.jsonl"

[[models]]
name = "bert"
model = "bert"

[[tasks]]
name = "films"
score = "accuracy"

[[methods]]
method = "bitfit"

[[methods]]
method = "lora"
name = "lora, rank 2"
rank = 2

[[methods]]
method = "prefix-tuning"
num_virtual_tokens = 4

[tuning]
learning_rate_factors = [0.5, 2]
seed = 9
"#;

fn suite() -> Workplace {
    let here = Workplace::new();
    here.write("suite.toml", SUITE);
    here
}

/// The suite with the methods' own learning rates.
fn untuned() -> String {
    SUITE.split("[tuning]").next().unwrap().to_owned()
}

/// The runs of `results.json`, without figures of time and memory.
fn runs(here: &Workplace, directory: &str) -> Vec<Value> {
    let results: Value =
        serde_json::from_str(&here.read(&format!("{directory}/results.json"))).unwrap();
    let mut runs = results["runs"].as_array().unwrap().clone();
    for run in &mut runs {
        run.as_object_mut().unwrap().remove("cost");
    }
    runs.sort_by_key(|run| {
        ["name", "point", "seed", "trial"]
            .map(|key| run[key].to_string())
            .join(" ")
    });
    runs
}

#[test]
fn a_suite_makes_a_report_of_every_run() {
    let here = suite();
    let summary = here.json("compare suite.toml --output out");
    let rows = summary["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 3, "{summary}");
    let all = runs(&here, "out");
    // Two trials and two seeds of each method.
    assert_eq!(all.len(), 3 * (2 + 2));
    for run in &all {
        assert_eq!(run["status"], "finished", "{run}");
        assert!(
            run["score"].as_f64().is_some() && run["trainable_parameters"].is_u64(),
            "{run}"
        );
        assert_eq!(run["losses"].as_array().unwrap().len(), 6);
    }
    for row in rows {
        assert_eq!(row["score"]["count"], 2);
        assert_eq!(row["tried"], 2);
        assert_eq!(
            row["comparison"].is_null(),
            row["name"] == "bitfit",
            "{row}"
        );
        assert!(row["peak_bytes"].as_u64().unwrap() > 0, "{row}");
        assert!(row["slowdown"].as_f64().unwrap() > 0.0, "{row}");
        let memory = row["memory"].as_object().unwrap();
        let parts = memory.iter().filter(|(name, _)| *name != "peak");
        let parts: u64 = parts.map(|(_, bytes)| bytes.as_u64().unwrap()).sum();
        assert!(parts <= memory["peak"].as_u64().unwrap(), "{row}");
    }
    let lora = rows
        .iter()
        .find(|row| row["name"] == "lora, rank 2")
        .unwrap();
    assert_eq!(
        (&lora["largest_rank"], &lora["method"]),
        (&Value::from(2), &Value::from("lora"))
    );
    // What HF PEFT's `method_comparison` reads of a run.
    let peft = files(&here.path("out/peft"));
    assert_eq!(peft.len(), 6, "{peft:?}");
    let record: Value = serde_json::from_str(&std::fs::read_to_string(&peft[0]).unwrap()).unwrap();
    for (part, keys) in [
        (
            "run_info",
            &[
                "created_at",
                "total_time",
                "experiment_name",
                "peft_branch",
                "train_config",
                "peft_config",
            ][..],
        ),
        (
            "train_info",
            &[
                "accelerator_memory_max",
                "train_time",
                "file_size",
                "status",
                "metrics",
            ],
        ),
        ("meta_info", &["package_info", "system_info"]),
    ] {
        let has = |key: &&&str| record[part].get(**key).is_some();
        assert_eq!(keys.iter().filter(has).count(), keys.len(), "{record}");
    }
    assert!(
        record["train_info"]["metrics"][0]["test accuracy"].is_f64(),
        "{record}"
    );
    let csv = here.read("out/results.csv");
    assert_eq!(csv.lines().count(), 1 + all.len());
    assert!(csv.contains("\"lora, rank 2\""));
    assert!(csv.contains(",optimizer_bytes,activation_bytes,"));
    let tables = here.read("out/results.md");
    for words in ["| lora, rank 2 |", "| settings | tried |", "Memory by part"] {
        assert!(tables.contains(words), "{words}: {tables}");
    }
    let config = &record["run_info"]["peft_config"];
    assert!(config["target_modules"].is_array() || config["peft_type"] != "LORA");
    assert_eq!(record["run_info"]["train_config"]["dtype"], "float32");
    check_report(
        &here.read("out/report.html"),
        &[
            "lora, rank 2",
            "bitfit",
            "prefix-tuning",
            "2 trials of 12 optimizer steps",
            "Memory by part",
            "Runs were made one after another",
        ],
    );
    let findings = here.read("out/findings.md");
    for words in [
        "from 12 finished runs",
        "has the best accuracy of 3 methods: 0.",
        "claims that could be checked held",
        "2 trials of 12 optimizer steps together",
        "- Seeds: 2.",
    ] {
        assert!(findings.contains(words), "{words}: {findings}");
    }
    // Adapters and checkpoints are not kept, logs are.
    let files = files(&here.path("out/runs"));
    assert!(
        files.iter().all(|file| !file.ends_with("safetensors")),
        "{files:?}"
    );
    assert_eq!(
        files
            .iter()
            .filter(|file| file.ends_with("log.jsonl"))
            .count(),
        all.len()
    );

    // Nothing is run a second time, and the results are the same.
    let again = here.run("compare suite.toml --output out");
    let notes = String::from_utf8_lossy(&again.stderr);
    assert!(again.status.success() && !notes.contains("[1/"), "{notes}");
    assert_eq!(runs(&here, "out"), all);

    // The best within a budget, and what the better ones would need.
    let bytes = |row: &Value| row["stored_bytes"].as_u64().unwrap();
    let least = rows.iter().min_by_key(|row| bytes(row)).unwrap();
    let choices = here.json(&format!(
        "compare suite.toml --output out --budget {}B,-,1h",
        bytes(least)
    ));
    assert_eq!(choices["choices"][0]["name"], least["name"], "{choices}");
    // The choice and its reasons are in every file.
    let results: Value = serde_json::from_str(&here.read("out/results.json")).unwrap();
    assert_eq!(results["choices"], choices["choices"]);
    assert_eq!(results["budget"]["seconds"], 3600.0);
    for file in ["report.html", "findings.md", "results.md"] {
        let text = here.read(&format!("out/{file}"));
        for words in ["Within the budget", "s a run", "within the budget"] {
            assert!(text.contains(words), "{file}: {words}");
        }
    }
    let text = here.succeed("compare suite.toml --output out --budget 1B,-,-");
    assert!(
        text.contains("no method") && text.contains("of storage"),
        "{text}"
    );

    // Over other data or another base they would be other runs.
    for (file, change) in [
        ("dev.jsonl", ("eval_data", "film", "play")),
        ("bert/config.json", ("model", "0.2", "0.3")),
    ] {
        let (name, old, new) = change;
        let before = here.read(file);
        assert!(before.contains(old), "{before}");
        here.write(file, before.replace(old, new));
        let error = here.fail(2, "compare suite.toml --output out");
        assert!(
            error.contains(&format!("the files that `{name}` names have changed")),
            "{error}"
        );
        here.write(file, before);
    }

    // With other settings they would be other runs.
    here.write(
        "suite.toml",
        SUITE.replace("max_steps = 6", "max_steps = 5"),
    );
    let error = here.fail(2, "compare suite.toml --output out");
    assert!(
        error.contains("`max_steps` was 6 and is 5") && error.contains("--overwrite"),
        "{error}"
    );
}

/// Names of files below a directory.
fn files(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files = entries.flat_map(|path| match path.is_dir() {
        true => files(&path),
        false => vec![path.display().to_string()],
    });
    files.collect()
}

/// A report needs nothing from elsewhere, and each of its charts has data and a table.
fn check_report(html: &str, names: &[&str]) {
    for name in names {
        assert!(html.contains(name), "{name}");
    }
    for wrong in ["http://", "https://", "<script", "NaN", "url("] {
        assert!(!html.contains(wrong), "{wrong}");
    }
    let figures: Vec<&str> = html.split("<figure").skip(1).collect();
    assert!(!figures.is_empty());
    for figure in figures {
        let (figure, _) = figure.split_once("</figure>").unwrap();
        let has_data = ["class=\"dot", "class=\"line", "class=\"rest"];
        assert!(has_data.iter().any(|it| figure.contains(it)), "{figure}");
        assert!(
            figure.contains("<table>") && figure.contains("aria-label"),
            "{figure}"
        );
    }
    for tag in [
        "table", "tr", "figure", "section", "details", "svg", "ul", "li", "div", "g",
    ] {
        let opened =
            html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(
            opened,
            html.matches(&format!("</{tag}>")).count(),
            "<{tag}>"
        );
    }
}

#[test]
fn a_suite_that_is_killed_or_divided_gives_the_same_results() {
    let here = suite();
    // Four learning rates drawn at random, the better half of them again with all steps.
    here.write("suite.toml", SUITE.to_owned() + "draws = 4\nhalving = 2\n");
    here.succeed("compare suite.toml --output whole");
    let whole = runs(&here, "whole");
    for method in ["bitfit", "lora, rank 2", "prefix-tuning"] {
        let own = whole.iter().filter(|run| run["name"] == method);
        let steps = own.map(|run| (run["trial"] == true, run["trial_steps"].as_u64()));
        let mut steps: Vec<_> = steps.collect();
        steps.sort();
        let [seed, half, all] = [(false, None), (true, Some(3)), (true, None)];
        assert_eq!(
            steps,
            [seed, seed, all, all, half, half, half, half],
            "{method}"
        );
    }

    let mut killed = here.command("compare suite.toml --output killed");
    let mut killed = killed
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let results = || {
        let directory = here.path("killed/runs");
        let all = if directory.is_dir() {
            files(&directory)
        } else {
            Vec::new()
        };
        all.iter()
            .filter(|file| file.ends_with("result.json"))
            .count()
    };
    while results() < 2 && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(
        (2..whole.len()).contains(&results()),
        "{} results",
        results()
    );
    here.succeed("compare suite.toml --output killed");
    assert_eq!(runs(&here, "killed"), whole);

    for shard in [1, 2] {
        here.succeed(&format!(
            "compare suite.toml --shard {shard}/2 --output part-{shard}"
        ));
        assert!(runs(&here, &format!("part-{shard}")).len() < whole.len());
    }
    let merged = here.run("compare suite.toml --merge part-1,part-2 --output merged");
    let notes = String::from_utf8_lossy(&merged.stderr);
    assert!(merged.status.success() && !notes.contains("[1/"), "{notes}");
    assert_eq!(runs(&here, "merged"), whole);
    for file in ["report.html", "findings.md"] {
        let text = here.read(&format!("merged/{file}"));
        assert!(text.contains("Results were merged from "), "{text}");
        assert!(!text.contains("different tuning budgets"), "{text}");
    }
    // What no shard has is not made, unless it is asked for.
    let error = here.fail(2, "compare suite.toml --merge part-1 --output half");
    assert!(
        error.contains("no results of `lora, rank 2`:") && error.contains("without --merge"),
        "{error}"
    );
    let made = files(&here.path("half/runs")).into_iter();
    assert_eq!(made.filter(|file| file.ends_with("log.jsonl")).count(), 0);
    let half = here.run("compare suite.toml --output half");
    let notes = String::from_utf8_lossy(&half.stderr);
    assert!(
        half.status.success() && notes.contains("lora, rank 2"),
        "{notes}"
    );
    assert_eq!(runs(&here, "half"), whole);
    let other = SUITE.replace("\"films\"", "\"other\"");
    here.write("other.toml", other);
    let error = here.fail(2, "compare other.toml --merge part-1,part-2 --output o");
    assert!(error.contains("nothing of the suite `other`"), "{error}");
    here.write("dev.jsonl", here.read("dev.jsonl").replace("film", "play"));
    here.succeed("compare suite.toml --shard 2/2 --output part-3");
    let error = here.fail(2, "compare suite.toml --merge part-1,part-3 --output other");
    assert!(error.contains("read other data or another base"), "{error}");
    let error = here.fail(2, "compare suite.toml --merge bert --output merged");
    assert!(error.contains("holds no results"), "{error}");
}

#[test]
fn published_results_are_shown_and_what_the_base_forgets_is_scored() {
    let here = Workplace::new();
    let record = |experiment: &str, peft_type: &str, accuracy: f64| {
        serde_json::json!({
            "run_info": {
                "experiment_name": experiment,
                "train_config": { "model_id": "some/base" },
                "peft_config": { "peft_type": peft_type },
            },
            "train_info": {
                "status": "success", "accelerator_memory_max": 22_292_725_760_u64,
                "train_time": 941.9, "file_size": 36_715_216, "num_trainable_params": 9_175_040,
                "num_total_params": 3_221_924_864_u64,
                "metrics": [{ "step": 5000, "test accuracy": accuracy, "forgetting": 0.05 }],
            },
        })
    };
    std::fs::create_dir(here.path("published")).unwrap();
    here.write(
        "published/a.json",
        record("lora/rank32", "LORA", 0.478).to_string(),
    );
    here.write(
        "published/b.json",
        record("new/one", "NEW", 0.5).to_string(),
    );
    let compare = "compare smoke --methods prompt-tuning,unipelt --output out";
    let summary = here.json(&format!("{compare} --published published"));
    let report = here.read("out/report.html");
    check_report(
        &report,
        &["lora/rank32", "new/one", "Published results of HF PEFT"],
    );
    assert!(report.contains("lora, messages on quickstart: accuracy"));
    let results: Value = serde_json::from_str(&here.read("out/results.json")).unwrap();
    assert_eq!(results["published"][1]["method"], Value::Null);
    here.write("published/c.json", "{}");
    let error = here.fail(1, &format!("{compare} --published published"));
    assert!(
        error.contains("c.json") && error.contains("`run_info`"),
        "{error}"
    );

    // The base's own task is the language modeling of the log; the gates of UniPELT cannot act
    // there, wherever they were trained.
    let rows = summary["rows"].as_array().unwrap();
    let own = |name: &str, task: &str| {
        let row = rows
            .iter()
            .find(|row| row["name"] == name && row["task"] == task);
        row.unwrap_or_else(|| panic!("{name} {task}: {summary}"))["forgetting"].clone()
    };
    let (messages, log) = (own("lora", "messages"), own("lora", "log"));
    assert_eq!(
        (&messages["task"], &messages["score"]),
        (&"causal-lm".into(), &"loss".into())
    );
    assert!(
        messages["after"].is_f64() && messages["after"] != messages["before"],
        "{messages}"
    );
    assert!(
        log["after"].as_f64().unwrap() < log["before"].as_f64().unwrap(),
        "{log}"
    );
    assert!(own("prompt-tuning", "log")["after"].is_f64());
    assert!(own("unipelt", "messages")["after"].is_null());
    // With the base, and with the adapter, as `eval` scores them.
    let base = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/quickstart");
    let log = format!(
        "--task causal-lm --text-columns text --max-length 64 --batch-size 8 --data {base}/eval.jsonl"
    );
    let data = format!("--eval-data {base}/eval.jsonl --forgetting-data {base}/eval.jsonl");
    here.succeed(&format!(
        "train --model {base}/base --task causal-lm --text-columns text --train-data \
         {base}/train.jsonl {data} --max-length 64 --method lora --max-steps 2 --batch-size 8 \
         --output adapter"
    ));
    let account: Value = serde_json::from_str(&here.read("adapter/account.json")).unwrap();
    let forgetting = &account["cost"]["forgetting"];
    for (key, adapter) in [("before", ""), ("after", "--adapter adapter")] {
        let scores = here.json(&format!("eval --model {base}/base {adapter} {log}"));
        assert_eq!(
            scores["loss"], forgetting[key],
            "{key}: {scores} {forgetting}"
        );
    }
    here.edit("bert/config.json", |config| {
        config["architectures"] = serde_json::json!(["BertModel"]);
    });
    let error = here.fail(
        2,
        &format!("{CLASSIFY} --forgetting-data dev.jsonl --output x"),
    );
    assert!(
        error.contains("`forgetting_data`") && error.contains("`architectures`"),
        "{error}"
    );
}

#[test]
fn what_is_beyond_a_budget_is_not_run() {
    let here = suite();
    let compare = "compare suite.toml --methods prefix-tuning --output out";
    let text = here.succeed(&format!("{compare} --budget 1B,-,-"));
    assert!(text.contains("no method"), "{text}");
    assert!(
        text.contains("not run: prefix-tuning is planned to need"),
        "{text}"
    );
    let all = runs(&here, "out");
    assert_eq!(all.len(), 4);
    assert!(
        all.iter().all(|run| run["status"] == "beyond_budget"),
        "{all:?}"
    );
    assert!(!here.path("out/runs").exists());
    // With more, what fits is run and chosen.
    let summary = here.json(&format!("{compare} --budget 1MB,1GB,1h"));
    let choice = &summary["choices"][0];
    assert_eq!(choice["beyond"], Value::Array(Vec::new()), "{choice}");
    let why = choice["why"].to_string();
    for words in [
        "the best accuracy of 2 within the budget",
        "of memory",
        "next is",
        "p = ",
    ] {
        assert!(why.contains(words), "{words}: {why}");
    }
}

#[test]
fn budgets_are_written_as_the_command_line_has_them() {
    let here = suite();
    let compare = "compare suite.toml --methods bitfit --output out --budget";
    let text = here.succeed(&format!("{compare} -,50MB,-"));
    assert!(
        text.contains("Within the budget, films on bert: bitfit"),
        "{text}"
    );
    let error = here.fail(2, &format!("{compare} 50MB"));
    assert!(
        error.contains("for one limit alone") && error.contains("-,4GB,-"),
        "{error}"
    );
}

#[test]
fn what_is_wrong_with_the_data_is_said_before_the_first_run() {
    let here = suite();
    let other = "[[tasks]]\nname = \"other\"\nscore = \"accuracy\"\n";
    let with = |settings: &str| {
        SUITE.replace(
            "[[methods]]\nmethod = \"bitfit\"",
            &format!("{other}{settings}\n[[methods]]\nmethod = \"bitfit\""),
        )
    };
    for (text, words) in [
        (with("eval_data = \"nope.jsonl\""), "nope.jsonl"),
        (with("tuning_eval_data = \"nope.jsonl\""), "nope.jsonl"),
        (with("text_columns = [\"txt\"]"), "`txt`"),
        (
            with("").replace(
                "\"other\"\nscore = \"accuracy\"",
                "\"other\"\nscore = \"bleu\"",
            ),
            "`score` is `bleu`, which is not measured for sequence-classification",
        ),
    ] {
        here.write("suite.toml", text);
        let output = here.run("compare suite.toml --output out");
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.contains("task `other` on model `bert`") && error.contains(words),
            "{error}"
        );
        assert!(
            !error.contains("[1/") && !here.path("out/runs").exists(),
            "{error}"
        );
    }
    let error = here.fail(2, "compare glue-mini --data . --model bert --output glue");
    assert!(
        error.contains("task `SST-2`") && error.contains("`./glue_sst2`"),
        "{error}"
    );
}

/// Two methods that learn to write, scored by what they write.
const WRITING: &str = r#"
title = "Two methods that write"
seeds = [0, 1]

[settings]
task = "causal-lm"
prompt_column = "mr"
completion_column = "ref"
train_data = "restaurants.csv"
eval_data = "restaurants.csv"
batch_size = 4
max_steps = 30
eval_steps = 10

[[models]]
name = "llama"
model = "llama"

[[tasks]]
name = "restaurants"
score = "chrf"
metrics = ["chrf", "e2e"]
max_new_tokens = 6

[[methods]]
method = "lora"
rank = 2

[[methods]]
method = "full"
learning_rate = 1e-2
"#;

#[test]
fn methods_are_compared_by_what_they_write() {
    let here = Workplace::new();
    here.write(
        "restaurants.csv",
        "mr,ref\nthe film, good film\nthe film, a film\na film, quite good\na play, very bad\n",
    );
    here.write("suite.toml", WRITING);
    let summary = here.json("compare suite.toml --output whole");
    let whole = runs(&here, "whole");
    assert_eq!(whole.len(), 4);
    for run in &whole {
        assert_eq!(
            (&run["status"], &run["score_name"]),
            (&"finished".into(), &"chrf".into())
        );
        assert_eq!(run["score"], run["metrics"]["chrf"], "{run}");
        for key in [
            "cider",
            "e2e_bleu",
            "e2e_rouge_l",
            "nist",
            "loss",
            "perplexity",
        ] {
            assert!(run["metrics"][key].is_f64(), "{key}: {run}");
        }
        assert_eq!(run["scores"].as_array().unwrap().len(), 3);
    }
    let rows = summary["rows"].as_array().unwrap();
    let mean = |name: &str| {
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        row["score"]["mean"].as_f64().unwrap()
    };
    assert!(mean("full") > mean("lora"), "{summary}");
    let findings = here.read("whole/findings.md");
    assert!(findings.contains("`full` has the best chrf"), "{findings}");
    let tables = here.read("whole/results.md");
    let others = "| method | cider | e2e_bleu | e2e_rouge_l | loss | nist | perplexity |";
    assert!(tables.contains(others), "{tables}");
    for score in ["chrf", "cider", "e2e_bleu"] {
        assert!(here.read("whole/report.html").contains(score), "{score}");
    }

    let mut killed = here.command("compare suite.toml --output killed");
    let killed = killed.stdout(Stdio::null()).stderr(Stdio::null());
    let mut killed = killed.spawn().unwrap();
    let (directory, started) = (here.path("killed/runs"), Instant::now());
    let checkpoint = |file: &String| file.contains("checkpoint-10");
    let has_begun = || directory.is_dir() && files(&directory).iter().any(checkpoint);
    while !has_begun() && started.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    here.succeed("compare suite.toml --output killed");
    assert_eq!(runs(&here, "killed"), whole);

    for (from, to, words) in [
        (
            "\"chrf\"\nmetrics",
            "\"rougel\"\nmetrics",
            "; --metrics rouge measures `rougeL`",
        ),
        ("completion_column = \"ref\"\n", "", "`completion"),
        ("causal-lm", "masked-lm", "masked-lm writes none"),
        ("[\"chrf\", \"e2e\"]", "[\"stars\"]", "no metric `stars`"),
        (
            "[\"chrf\", \"e2e\"]",
            "[\"meteor\"]",
            "pip install pycocoevalcap",
        ),
    ] {
        here.write("wrong.toml", WRITING.replace(from, to));
        let error = here.fail(2, "compare wrong.toml --output wrong");
        assert!(error.contains(words), "{to}: {error}");
        assert!(!here.path("wrong/runs").exists(), "{to}");
    }
}

#[test]
fn a_dry_run_says_what_would_be_run() {
    let here = suite();
    let dry = here.json("compare suite.toml --dry-run");
    assert_eq!(dry["runs"], 3 * (2 + 2), "{dry}");
    let groups = dry["groups"].as_array().unwrap();
    assert_eq!(groups[1]["name"], "lora, rank 2");
    assert_eq!(
        (&groups[1]["trials"], &groups[1]["seeds"]),
        (&2.into(), &serde_json::json!([0, 1]))
    );
    assert_eq!(groups[1]["points"].as_array().unwrap().len(), 2);
    let text = here.succeed("compare suite.toml --dry-run --shard 1/2 --output out");
    assert!(
        text.contains("prefix-tuning") && text.contains("8 runs"),
        "{text}"
    );
    let named = |flag: &str, name: &str| {
        let mut command = here.command("compare suite.toml --dry-run --json --method bitfit");
        command.args([flag, name]).output().unwrap()
    };
    let dry: Value = serde_json::from_slice(&named("--method", "lora, rank 2").stdout).unwrap();
    let groups = dry["groups"].as_array().unwrap().iter();
    assert!(
        groups.map(|it| &it["name"]).eq(["bitfit", "lora, rank 2"]),
        "{dry}"
    );
    let error = String::from_utf8(named("--methods", "lora, rank 2").stderr).unwrap();
    assert!(
        error.contains("no method `lora`; --method takes a name with a comma"),
        "{error}"
    );
    let smoke = here.succeed("compare smoke --dry-run");
    assert!(smoke.contains("Nothing was run"), "{smoke}");
    assert!(!here.path("out").exists() && !here.path("smoke").exists());
}

#[test]
fn a_method_whose_defaults_do_not_fit_has_its_example() {
    let here = suite();
    let compare = "compare suite.toml --methods vblora --output";
    let text = untuned() + "[[methods]]\nmethod = \"vblora\"\n";
    here.write("suite.toml", &text);
    let summary = here.json(&format!("{compare} without"));
    let absent = summary["absent"].to_string();
    assert!(
        absent.contains("not_applicable") && absent.contains("`vector_length`"),
        "{absent}"
    );
    here.write(
        "suite.toml",
        text.replace("\"vblora\"\n", "\"vblora\"\nuse_examples = true\n"),
    );
    let summary = here.json(&format!("{compare} with"));
    let rows = summary["rows"].as_array().unwrap();
    let vblora = rows.iter().find(|row| row["name"] == "vblora").unwrap();
    assert!(
        vblora["point"]
            .as_str()
            .unwrap()
            .contains("vector_length 4"),
        "{vblora}"
    );
    let all = runs(&here, "with");
    let used = all.iter().filter(|run| run["used_example"] == true);
    assert_eq!(used.count(), 2);
}

#[test]
fn a_run_that_fails_is_told_and_the_others_go_on() {
    let here = suite();
    let lora = "name = \"lora, rank 2\"\n";
    let wrong = format!("{lora}learning_rate = 1e30\n");
    here.write("suite.toml", untuned().replace(lora, &wrong));
    let output = here.run("compare suite.toml --output out");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{notes}");
    assert!(notes.contains("error: 2 runs failed"), "{notes}");
    let all = runs(&here, "out");
    let failed = all.iter().filter(|run| run["status"] == "failed");
    for run in failed {
        assert_eq!(run["name"], "lora, rank 2");
        assert!(
            run["reason"].as_str().unwrap().contains("is not finite"),
            "{run}"
        );
    }
    check_report(
        &here.read("out/report.html"),
        &["Without a score", "is not finite"],
    );
}

#[test]
fn the_quickstart_base_is_compared_without_any_file() {
    let here = Workplace::new();
    let summary = here.json("compare smoke --methods bitfit --output out");
    // The baseline is always there; each on two tasks.
    assert_eq!(summary["rows"].as_array().unwrap().len(), 4, "{summary}");
    let shown = here.succeed("compare smoke --show");
    here.write("mine.toml", shown);
    let error = here.fail(2, "compare mine.toml --methods lro --output mine");
    assert!(error.contains("the suite has no method `lro`"), "{error}");
    for (suite, words) in [
        ("few-shot", "`$model` is not known: pass --model"),
        ("glue-maxi", "the suites that ship are smoke, glue-mini"),
    ] {
        let error = here.fail(2, &format!("compare {suite} --output x"));
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn runs_have_an_account_a_report_and_a_curve() {
    let here = Workplace::new();
    for (method, name) in [("lora", "a"), ("prompt-tuning", "b")] {
        let output = here.run(&format!(
            "{CLASSIFY} --method {method} --logging-steps 1 --output {name}"
        ));
        let notes = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && notes.contains("training loss:"),
            "{notes}"
        );
        assert!(notes.contains('█'), "{notes}");
    }
    let account: Value = serde_json::from_str(&here.read("a/account.json")).unwrap();
    assert_eq!(
        (&account["method"], &account["kind"]),
        (&Value::from("lora"), &Value::from("reparametrized"))
    );
    let trainable = account["declared"]["trainable_parameters"]
        .as_u64()
        .unwrap();
    assert_eq!(account["change"]["moved_parameters"], trainable);
    let memory = &account["cost"]["memory"];
    for part in [
        "base",
        "adapter",
        "gradients",
        "optimizer",
        "activations",
        "peak",
    ] {
        assert!(memory[part].as_u64().unwrap() > 0, "{part}: {memory}");
    }
    assert_eq!(account["cost"]["gradient_layers"], 1, "{account}");
    let written = here.json("report a b --output both.html");
    assert_eq!(written["runs"], 2);
    check_report(
        &here.read("both.html"),
        &["Training loss", "Learning rate", "Gradient norm", "Memory"],
    );
    let error = here.fail_any("report a --output both.html");
    assert!(error.contains("both.html"), "{error}");
    let error = here.fail(2, "report bert --output bert.html");
    assert!(error.contains("holds no log of a run"), "{error}");
}

#[test]
fn a_plan_is_what_the_run_then_takes() {
    let here = Workplace::new();
    // A base that is large enough for its memory to be that of tensors.
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/quickstart");
    let run = format!(
        "--model {assets}/base --task causal-lm --train-data {assets}/train.jsonl --eval-data \
         {assets}/eval.jsonl --text-columns text --max-length 128 --batch-size 16 --method lora \
         --max-steps 10"
    );
    let plan = here.json(&format!("plan {run} --timed-steps 4"));
    here.succeed(&format!("train {run} --output run"));
    let account: Value = serde_json::from_str(&here.read("run/account.json")).unwrap();
    for (key, declared) in account["declared"].as_object().unwrap() {
        assert_eq!(plan[key], *declared, "{key}");
    }
    assert_eq!(plan["steps"], account["cost"]["steps"]);
    assert_eq!(plan["stored_bytes"], account["cost"]["stored_bytes"]);
    let peak = |value: &Value| value["memory"]["peak"].as_f64().unwrap();
    let (planned, measured) = (peak(&plan), peak(&account["cost"]));
    assert!(
        (planned / measured - 1.0).abs() < 0.1,
        "{planned}, but {measured} were measured"
    );
    assert!(!here.path("adapter").exists(), "a plan writes nothing");

    let small = here.json(&format!(
        "plan {run} --method lora --timed-steps 1 --memory 1KB"
    ));
    assert_eq!(small["limit"]["fits"], false);
    let remedies = small["limit"]["remedies"].as_array().unwrap();
    assert!(
        remedies
            .iter()
            .all(|it| it["peak"].as_f64().unwrap() < peak(&small)),
        "{small}"
    );
    let text = here.succeed(&format!("plan {run} --memory 1GB --timed-steps 1"));
    assert!(text.contains("The run fits into"), "{text}");
    let error = here.fail(2, "plan --memory 4XB");
    assert!(error.contains("is not a size"), "{error}");
}

#[test]
fn memory_of_a_run_does_not_depend_on_the_runs_before_it() {
    let here = Workplace::new();
    let shown = here.succeed("compare smoke --show");
    let (settings, rest) = shown.split_once("[[tasks]]").unwrap();
    let (task, _) = rest.split_once("[[tasks]]").unwrap();
    // Diff pruning has tensors as large as the base, some of which a graph keeps until the next
    // backward pass.
    let methods = ["full", "bitfit", "diff-pruning", "bitfit"].into_iter();
    let methods = methods.enumerate().map(|(number, method)| {
        format!("[[methods]]\nmethod = \"{method}\"\nname = \"{number}\"\n")
    });
    let methods: Vec<String> = methods.collect();
    let settings = settings.replace("baseline = \"lora\"\n", "");
    let suite = format!("{settings}[[tasks]]{task}{}", methods.concat());
    here.write("suite.toml", suite);
    let peak = |summary: &Value, name: &str| {
        let rows = summary["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["name"] == name).unwrap();
        row["peak_bytes"].as_f64().unwrap()
    };
    let close = |one: f64, other: f64| {
        assert!((one / other - 1.0).abs() < 0.02, "{one} and {other}");
    };
    let summary = here.json("compare suite.toml --output out");
    close(peak(&summary, "1"), peak(&summary, "3"));
    // Nor on a plan before it: the base is part of both.
    let planned = here.json("compare suite.toml --output planned --budget -,1GB,-");
    for name in ["0", "1", "2", "3"] {
        close(peak(&planned, name), peak(&summary, name));
    }
    let full = &summary["rows"].as_array().unwrap()[0];
    let part = |key: &str| full["memory"][key].as_f64().unwrap();
    let parts = ["base", "adapter", "gradients", "optimizer", "activations"];
    assert!(
        parts.map(part).iter().sum::<f64>() <= part("peak"),
        "{full}"
    );
}
