//! What a run is told: flags, a file, both.

use std::fs;

use serde_json::Value;

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

#[test]
fn a_file_says_what_flags_say() {
    let here = Workplace::new();
    here.write(
        "run.toml",
        r#"
        model = "bert"
        train_data = "train.jsonl"
        text_columns = ["text"]
        batch_size = 16
        max_length = 16
        max_steps = 3
        learning_rate = 0.01
        method = "lora"
        rank = 2
        target-modules = "query,key"
        rank_pattern = { "layer.1.attention.self.query" = 3 }
        "#,
    );
    here.json("train --config run.toml --output from-file");
    let flags = "--model bert --train-data train.jsonl --text-columns text --batch-size 16 --max-length 16 \
        --max-steps 3 --learning-rate 1e-2 --method lora --rank 2 --target-modules query,key \
        --rank-pattern layer.1.attention.self.query=3";
    here.json(&format!("train {flags} --output from-flags"));
    for file in ["adapter_model.safetensors", "adapter_config.json"] {
        let [one, other] = ["from-file", "from-flags"]
            .map(|dir| std::fs::read(here.path(dir).join(file)).unwrap());
        assert!(one == other, "{file}");
    }
    here.json("train --config run.toml --rank 4 --output flags-first");
    let settings = &here.json("inspect flags-first")["settings"];
    assert_eq!(settings["r"], 4);
    assert_eq!(
        settings["target_modules"],
        serde_json::json!(["query", "key"])
    );
}

#[test]
fn several_runs_of_a_file_are_what_each_is_alone() {
    let here = Workplace::new();
    let common = r#"
        model = "bert"
        train_data = "train.jsonl"
        text_columns = ["text"]
        max_length = 16
        max_steps = 4
        "#;
    let runs = [
        "rank = 2\nbatch_size = 4",
        "method = \"ia3\"\nseed = 3\nbatch_size = 2",
        "task = \"regression\"\nlabel_column = \"number\"\nmethod = \"bitfit\"\nbatch_size = 3",
    ];
    here.write(
        "train.jsonl",
        here.read("train.jsonl")
            .replace("\"label\"", "\"number\": 0.5, \"label\""),
    );
    let tables = runs.iter().enumerate();
    let tables = tables.map(|(index, run)| format!("[[runs]]\noutput = \"run-{index}\"\n{run}\n"));
    here.write(
        "runs.toml",
        format!("{common}\n{}", tables.collect::<String>()),
    );
    let reports = here.json("train --config runs.toml");
    assert_eq!(reports["runs"].as_array().map(Vec::len), Some(runs.len()));
    for (index, run) in runs.iter().enumerate() {
        assert_eq!(reports["runs"][index]["output"], format!("run-{index}"));
        here.write("alone.toml", format!("{common}\n{run}"));
        here.json(&format!("train --config alone.toml --output alone-{index}"));
        let [together, alone] = [format!("run-{index}"), format!("alone-{index}")]
            .map(|dir| std::fs::read(here.path(&dir).join("adapter_model.safetensors")).unwrap());
        assert!(together == alone, "{run}");
    }
    for (runs, message) in [
        (
            "[[runs]]\noutput = \"x\"\n[[runs]]\noutput = \"x\"",
            "two runs write to `x`",
        ),
        (
            "[[runs]]\noutput = \"x\"\n[[runs]]\noutput = \"y\"\nprecision = \"bf16\"",
            "`precision` differs between runs",
        ),
        ("runs = 3", "each run is a table under `[[runs]]`"),
    ] {
        here.write("runs.toml", format!("{common}\n{runs}"));
        let errors = here.fail(2, "train --config runs.toml");
        assert!(errors.contains(message), "{errors}");
    }
}

#[test]
fn former_flags_and_names_stay_valid() {
    let here = Workplace::new();
    let speak = |flags: &str| {
        let task = SPEAK.replace("--task causal-lm", "");
        let flags = format!("{task} --method prefix-tuning --num-virtual-tokens 3 {flags}");
        here.succeed(&format!(
            "{flags} --max-steps 2 --overwrite --output run --quiet"
        ));
        fs::read(here.path("run/adapter_model.safetensors")).unwrap()
    };
    let now = speak(
        "--task causal-lm --micro-batch-tokens 64 --activation-cache off --activation-cache-budget 1 \
         --prefix-init zero",
    );
    let before = speak(
        "--task causal-language-modelling --tokens-per-pass 64 --trunk-cache off \
         --trunk-cache-budget 1 --init-weights zero",
    );
    assert!(now == before);
    let help = here.succeed("train --help");
    for former in [
        "tokens-per-pass",
        "trunk-cache",
        "causal-language-modelling",
    ] {
        assert!(!help.contains(former), "{former}");
    }
}

/// An adapter names the base that was asked for, not the place of a copy on this machine.
#[test]
fn a_model_by_name_is_recorded_by_its_name() {
    let here = Workplace::new();
    let repository = here.path("hub/hub/models--org--tiny");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fs::create_dir_all(repository.join("snapshots")).unwrap();
    fs::write(repository.join("refs/main"), "1234").unwrap();
    fs::rename(here.path("bert"), repository.join("snapshots/1234")).unwrap();
    let flags = CLASSIFY.replace("--model bert", "--model org/tiny");
    here.succeed(&format!("{flags} --max-steps 2 --output named --quiet"));
    let config: Value = serde_json::from_str(&here.read("named/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/tiny");
    let card = here.read("named/README.md");
    assert!(
        card.contains("org/tiny") && !card.contains("snapshots"),
        "{card}"
    );
    here.succeed("eval --model org/tiny --adapter named --data dev.jsonl --quiet");
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let here = Workplace::new();
    for (flags, message) in [
        ("--method bitfit --rank 8", "`--rank` is of lora"),
        ("--rank eight", "`--rank`: `eight` is not a whole number"),
        (
            "--seed 99999999999999999999",
            "`--seed`: `99999999999999999999` is too large",
        ),
        ("--alpha 1e39", "`--alpha`: "),
        (
            "--alpha-pattern query=inf",
            "`--alpha-pattern`: `inf` is not finite",
        ),
        (
            "--quoting perhaps",
            "`--quoting`: `perhaps` is neither true nor false",
        ),
        (
            "--rank-pattern query",
            "`query` is not of the form name=number",
        ),
        ("--epochs 0", "`epochs` is 0, but it must be greater than 0"),
        (
            "--task translation",
            "`--task`: unknown task `translation`; known are",
        ),
        (
            "--precision f31",
            "`--precision`: unknown variant `f31`, expected `f32` or `bf16`",
        ),
        (
            "--lr-scheduler-type linera",
            "`--lr-scheduler-type`: unknown variant `linera`, expected one of `linear`, `cosine`, \
             `constant`, `constant_with_warmup`",
        ),
        ("--seed -1", "`--seed`: -1 is not a whole number, 0 or more"),
        (
            "--method bitfit --bitfit-components queries",
            "`--bitfit-components`: unknown variant `queries`, expected one of `all`",
        ),
        (
            "--format xml",
            "`format`: unknown data format `xml`: use json, csv, tsv, parquet, conll or text",
        ),
        (
            "--metric-for-best-model acuracy",
            "`metric_for_best_model`: `acuracy` is not measured for sequence-classification, but accuracy, ",
        ),
        ("--method lota", "unknown method `lota`; known are full, "),
        ("--rnak 8", "a similar argument exists: '--rank'"),
        (
            "--device tpu",
            "no device is called `tpu`; this build has cpu",
        ),
        (
            "--device gpu",
            "--device gpu: this build has cpu; build it with `--features wgpu`",
        ),
        (
            "--device rocm:1",
            "--device rocm:1: this build has cpu; build it with `--features rocm`",
        ),
        ("--resume --overwrite", "cannot be used with"),
        (
            "--num-train-epochs 3",
            "there is no flag `--num-train-epochs`; here it is called `--epochs`",
        ),
        (
            "--packing",
            "`--packing`: packing joins the texts of a language model",
        ),
        ("--alpha -3", "`lora_alpha`: it is -3"),
        ("--activation-cache-budget 0", "pass --activation-cache off"),
    ] {
        let errors = here.fail(2, &format!("{CLASSIFY} --output adapter {flags}"));
        assert!(errors.contains(message), "{flags}: {errors}");
    }
    for (text, message) in [
        (
            "rnak = 8",
            "key `rnak` in `run.toml`: there is no such key; did you mean `rank`?",
        ),
        (
            "num_train_epochs = 3",
            "key `num_train_epochs` in `run.toml`: there is no such key; here it is called `epochs`",
        ),
        (
            "overwrite_output_dir = true",
            "key `overwrite_output_dir` in `run.toml`: there is no such key; pass --overwrite",
        ),
        (
            "zzz = 8",
            "key `zzz` in `run.toml`: there is no such key; `epiphyte train --help` and `epiphyte methods NAME` list all",
        ),
        (
            "lr_scheduler_type = \"linera\"",
            "key `lr_scheduler_type` in `run.toml`: unknown variant `linera`, expected one of `linear`, ",
        ),
        (
            "precision = \"f31\"",
            "key `precision` in `run.toml`: unknown variant `f31`, expected `f32` or `bf16`",
        ),
        (
            "method = \"prefix-tuning\"\nprefix_projection = \"maybe\"",
            "key `prefix_projection` in `run.toml`: `maybe` is neither true nor false",
        ),
        (
            "[method]\nname = \"lora\"",
            "key `method` in `run.toml`: is a table, but the file has none",
        ),
        (
            "[lora]\nrank = 8",
            "key `lora` in `run.toml`: is a table, but the file has none",
        ),
        (
            "rank = \"eight\"",
            "key `rank` in `run.toml`: `eight` is not a whole number",
        ),
        (
            "rank = 1.5",
            "key `rank` in `run.toml`: 1.5 is not a whole number",
        ),
        (
            "epochs = nan",
            "key `epochs` in `run.toml`: `NaN` is not finite",
        ),
        (
            "alpha_pattern = { query = inf }",
            "key `alpha_pattern` in `run.toml`: `inf` is not finite",
        ),
        (
            "seed = 99999999999999999999",
            "`run.toml`: TOML parse error",
        ),
        ("rank 8", "`run.toml`: TOML parse error at line 1"),
        (
            "method = \"bitfit\"\nrank = 8",
            "key `rank` in `run.toml` is of lora",
        ),
    ] {
        here.write("run.toml", text);
        let errors = here.fail(2, &format!("{CLASSIFY} --output adapter --config run.toml"));
        assert!(errors.contains(message), "{text}: {errors}");
    }
    let pattern = "--alpha-pattern query=1e39";
    let errors = here.fail(1, &format!("{CLASSIFY} --output adapter {pattern}"));
    assert!(errors.contains("`alpha_pattern` is 1e39"), "{errors}");
    let errors = here.fail(2, "train --model bert --output adapter");
    assert!(
        errors.contains("`train_data` is missing: pass --train-data"),
        "{errors}"
    );
    let patience =
        "train --model bert --train-data train.jsonl --output adapter --early-stopping-patience 2";
    let errors = here.fail(2, patience);
    assert!(
        errors.contains("`early_stopping_patience` needs evaluations: pass --eval-data"),
        "{errors}"
    );
}

#[test]
fn settings_that_do_nothing_are_said() {
    let here = Workplace::new();
    for (flags, message) in [
        ("--warmup-steps 500", "never reaches its peak"),
        (
            "--activation-cache memory --epochs 2",
            "the activation cache is not used: something is trained in the first layer",
        ),
        (
            "--activation-cache disk --epochs 1 --layers-to-transform 1 --base-dropout 0",
            "the activation cache is not used: no text is seen twice",
        ),
    ] {
        let output = here.run(&format!("{CLASSIFY} {flags} --overwrite --output adapter"));
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{errors}");
        assert!(errors.contains(message), "{flags}: {errors}");
    }
}

#[test]
fn help_says_everything() {
    let here = Workplace::new();
    let mut all = String::new();
    for command in [
        "",
        "train",
        "eval",
        "predict",
        "generate",
        "methods",
        "inspect",
        "merge",
        "doctor",
        "completions",
        "man",
    ] {
        let command = format!("{command} --help");
        let mut help = here.succeed(&command);
        assert!(help.contains("Examples:"), "{command}");
        // The method's own; they are shown by `epiphyte methods`, too.
        if let Some(own) = help.find("Settings of the method:") {
            let end = own + help[own..].find("Everywhere:").unwrap();
            help.replace_range(own..end, "");
        }
        all += &format!("$ epiphyte {}\n{help}\n", command.trim());
    }
    insta::assert_snapshot!("help", all);
}

/// A flag of another task, and names that other programs use.
#[test]
fn what_belongs_elsewhere_is_said() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --output adapter --max-steps 1");
    for flag in ["--doc-stride 4", "--max-answer-length 4"] {
        let errors = here.fail(2, &format!("{train} {flag}"));
        assert!(
            errors.contains("no use for sequence-classification"),
            "{errors}"
        );
        let name = flag.split(' ').next().unwrap();
        let errors = here.fail(
            2,
            &format!(
                "eval --model bert-head --task sequence-classification --text-columns text --data \
                 dev.jsonl {flag}"
            ),
        );
        assert!(
            errors.contains(&format!("{name} has no use for")),
            "{errors}"
        );
    }
    here.write(
        "numbers.jsonl",
        here.read("train.jsonl")
            .replace("\"positive\"", "1.5")
            .replace("\"negative\"", "0.5"),
    );
    let regression = train
        .replace("train.jsonl", "numbers.jsonl")
        .replace("dev.jsonl", "numbers.jsonl");
    let regression = format!("{regression} --task regression");
    let errors = here.fail(2, &format!("{regression} --label-smoothing 0.1"));
    assert!(errors.contains("no use for regression"), "{errors}");
    let plan = here.succeed(&format!("{regression} --optimizer adafactor --dry-run"));
    assert!(
        !plan.contains("smoothing") && !plan.contains("adam_beta1"),
        "{plan}"
    );
    let errors = here.fail(
        2,
        &format!("{train} --optimizer adafactor --adam-beta1 0.5"),
    );
    assert!(errors.contains("adafactor does not have it"), "{errors}");
    let plan = here.succeed(&format!("{train} --dry-run"));
    for unused in [
        "galore",
        "lisa",
        "doc_stride",
        "doc-stride",
        "answer_length",
        "answer-length",
    ] {
        assert!(!plan.contains(unused), "{unused}: {plan}");
    }
    let plan = here.succeed(&format!(
        "{train} --dry-run --method full --optimizer galore"
    ));
    assert!(plan.contains("galore"), "{plan}");
    for name in ["galore", "adamw", "lisa"] {
        let errors = here.fail(2, &format!("{train} --method {name}"));
        assert!(
            errors.contains(&format!("pass --optimizer {name}")),
            "{errors}"
        );
    }
    let errors = here.fail(2, &format!("{train} --metric-for-best-model eval_accuracy"));
    assert!(errors.contains("here it is called `accuracy`"), "{errors}");
}
