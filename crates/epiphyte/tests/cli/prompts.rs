//! Trained prompts: what they mean, which are alike, and other prompts that start from them.

use std::process::Output;

use serde_json::Value;

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

#[test]
fn prompts_are_compared_and_start_others() {
    let here = Workplace::new();
    let prompt = |method: &str, flags: &str| {
        format!("{CLASSIFY} --method {method} --num-virtual-tokens 3 --max-steps 1 --quiet {flags}")
    };
    for (name, init) in [("one", "SAMPLE_VOCAB"), ("other", "RANDOM")] {
        let flags = format!("--prompt-tuning-init {init} --output {name} --learning-rate 1e-9");
        here.succeed(&prompt("prompt-tuning", &flags));
    }
    let alike = here.json("prompts similarity one other one");
    assert_eq!(alike["sources"][0]["adapter"], "one");
    let similarity = |at: usize| alike["sources"][at]["similarity"].as_f64().unwrap();
    assert!((similarity(0) - 1.0).abs() < 1e-6 && similarity(1) < 0.9);

    // It started as words, and nearly stayed.
    let nearest = here.json("prompts nearest one --model bert --top-k 2");
    let words = nearest["virtual_tokens"].as_array().unwrap();
    assert_eq!(words.len(), 3);
    for word in words {
        assert!(word[0]["cosine"].as_f64().unwrap() > 0.99, "{word}");
        assert_eq!(word.as_array().unwrap().len(), 2);
    }
    let table = here.succeed("prompts nearest one --top-k 1");
    assert_eq!(table.lines().count(), 3, "{table}");

    let spot = "--source-prompts one,other --target-prompt one --output spot --learning-rate 1e-9";
    here.succeed(&prompt("spot", spot));
    let alike = here.json("prompts similarity spot one");
    assert!((alike["sources"][0]["similarity"].as_f64().unwrap() - 1.0).abs() < 1e-6);

    let flags = "--ipt-stage subspace --source-prompts one,other --intrinsic-dim 4 --output space";
    here.succeed(&prompt("ipt", flags));
    let flags = "--subspace-adapter space --intrinsic-dim 4 --output tuned";
    here.succeed(&prompt("ipt", flags));
    assert_eq!(here.json("inspect tuned")["trainable_parameters"], 4);

    let errors = here.fail_any("prompts nearest space --model bert");
    assert!(errors.contains("no matrix `prompt_embeddings`"), "{errors}");
}

#[test]
fn words_for_classes_are_found_and_stand_for_them() {
    let here = Workplace::new();
    let data = "--model llama --data train.jsonl --prompt-template {text}{mask}";
    let found = format!("prompts words {data} --candidates 6 --top-k 3 --output words.json");
    let found = here.json(&found);
    let sets = found["sets"].as_array().unwrap();
    assert_eq!((sets.len(), &found["examples"]), (3, &Value::from(96)));
    let accuracy = |set: &Value| set["accuracy"].as_f64().unwrap();
    assert!(
        sets.windows(2)
            .all(|pair| accuracy(&pair[0]) >= accuracy(&pair[1]))
    );
    let words: Value = serde_json::from_str(&here.read("words.json")).unwrap();
    assert_eq!(words["negative"], sets[0]["words"][0]);
    assert_eq!(words["positive"], sets[0]["words"][1]);
    // They are as good where they are given.
    let scores = here.json(&format!("eval {data} --task cloze --verbalizer words.json"));
    let scored = scores["accuracy"].as_f64().unwrap();
    assert!((scored - accuracy(&sets[0])).abs() < 1e-9, "{scores}");

    let train = "train --model llama --task cloze --verbalizer words.json --train-data train.jsonl \
                 --prompt-template {text}{mask} --epochs 4 --learning-rate 0.02 --output told";
    here.succeed(train);
    let after = here.json("eval --model llama --adapter told --data train.jsonl");
    assert!(after["accuracy"].as_f64().unwrap() > scored, "{after}");

    let errors = here.fail(2, &format!("prompts words {data} --output train.jsonl"));
    assert!(errors.contains("train.jsonl"), "{errors}");
    let errors = here.fail_any(&format!("prompts words {data} --verbalizer words.json"));
    assert!(errors.contains("leave it out"), "{errors}");
    let behind = "prompts words --model llama --data train.jsonl --prompt-template {mask}{text}";
    assert!(here.fail_any(behind).contains("end it with `{mask}`"));
}

#[test]
fn words_for_triggers_make_the_loss_less() {
    let here = Workplace::new();
    here.write("words.json", r#"{ "negative": "bad", "positive": "good" }"#);
    let run = |arguments: &str, template: &str| {
        let mut command = here.command(&format!("{arguments} --model llama --data train.jsonl"));
        let command = command.args(["--json", "--prompt-template", template]);
        command.output().unwrap()
    };
    let json = |output: Output| -> Value {
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let (words, template) = (
        "--verbalizer words.json",
        "{text} {trigger} {trigger} {mask}",
    );
    let search = format!("prompts triggers {words} --steps 6 --candidates 8");
    let found = json(run(&search, template));
    let loss = |key: &str| found[key].as_f64().unwrap();
    assert!(loss("loss") < loss("loss_before"), "{found}");
    assert_eq!(json(run(&search, template)), found);
    // The template that was found has the loss that was told.
    let template_found = found["prompt_template"].as_str().unwrap();
    let scores = json(run(&format!("eval --task cloze {words}"), template_found));
    assert!(
        (scores["loss"].as_f64().unwrap() - loss("loss")).abs() < 1e-4,
        "{scores}, {found}"
    );

    for (arguments, template, problem) in [
        (&search[..], "{text} {mask}", "no `{trigger}`"),
        ("prompts triggers", template, "--verbalizer is missing"),
        (&search[..], "{text}{trigger}{mask}", "not one token"),
    ] {
        let output = run(arguments, template);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(problem),
            "{problem}: {errors}"
        );
    }
}

#[test]
fn prompts_vote() {
    let here = Workplace::new();
    // Hardly trained, so that they differ.
    let prompt = "--method prompt-tuning --num-virtual-tokens 2 --max-steps 2 --quiet";
    let names = ["one", "two", "three"];
    for (seed, name) in names.iter().enumerate() {
        here.succeed(&format!(
            "{CLASSIFY} {prompt} --seed {seed} --output {name}"
        ));
    }
    let predicted = |flags: &str| -> Vec<Value> {
        let predict = "predict --model bert --data dev.jsonl --output p.jsonl --overwrite";
        here.succeed(&format!("{predict} --adapter {flags}"));
        let lines = here.read("p.jsonl");
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    let label = |row: &Value| row["label"].as_str().unwrap().to_owned();
    let alone = names.map(predicted);
    let together = predicted("one --ensemble two,three");
    let mut disagree = 0;
    for (at, row) in together.iter().enumerate() {
        let agreeing = alone.iter().filter(|rows| label(&rows[at]) == label(row));
        let votes = agreeing.count();
        assert!(votes >= 2, "{row}");
        disagree += usize::from(votes == 2);
    }
    assert!(disagree > 0, "the votes are all alike");
    let eval = "eval --model bert --data dev.jsonl";
    let scores = here.json(&format!("{eval} --adapter one --ensemble two,three"));
    assert!(scores["accuracy"].is_number(), "{scores}");

    here.succeed(&format!("{SPEAK} --max-steps 1 --quiet --output speaks"));
    let of_text = "eval --model llama --data dev.jsonl --adapter speaks --ensemble speaks";
    assert!(here.fail_any(of_text).contains("adapters vote where"));
    let of_others = format!("{eval} --adapter one --ensemble speaks");
    assert!(here.fail_any(&of_others).contains("cannot vote"));
    here.fail(2, &format!("{eval} --ensemble two"));
}
