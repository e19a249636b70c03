//! `train --dry-run` says what the run then does.

use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

fn setting<'a>(plan: &'a Value, key: &str) -> &'a Value {
    let settings = plan["settings"].as_array().unwrap();
    let found = settings.iter().find(|setting| setting["key"] == key);
    found.unwrap_or_else(|| panic!("no `{key}` in {plan}"))
}

#[test]
fn the_plan_is_that_of_the_run() {
    let here = Workplace::new();
    here.write("run.toml", "rank = 4\n");
    let run = format!("{CLASSIFY} --config run.toml --max-length 5 --epochs 2 --output adapter");
    let plan = here.json(&format!("{run} --dry-run"));
    assert!(!here.path("adapter").exists(), "a dry run writes nothing");

    assert_eq!(plan["steps_per_epoch"], 6);
    assert_eq!(plan["steps"], 12);
    assert_eq!(plan["labels"], json!(["negative", "positive"]));
    let data = &plan["training"];
    assert_eq!((&data["rows"], &data["examples"]), (&json!(96), &json!(96)));
    let sum = |counts: &Value, key: &str| -> u64 {
        let counts = counts.as_array().unwrap().iter();
        counts.map(|it| it[key].as_u64().unwrap()).sum()
    };
    assert_eq!(sum(&data["lengths"], "examples"), 96);
    let classes = data["classes"].as_array().unwrap();
    assert_eq!(
        classes.iter().map(|it| it.as_u64().unwrap()).sum::<u64>(),
        96
    );
    // Three to six words, [CLS] and [SEP].
    let words = |line: &str| line.matches(' ').count();
    let long = here.read("train.jsonl");
    let long = long.lines().filter(|line| {
        let row: Value = serde_json::from_str(line).unwrap();
        words(row["text"].as_str().unwrap()) + 1 + 2 > 5
    });
    assert_eq!(data["truncated"], long.count());
    assert_eq!(data["longest"], 5);

    // Given, default, and computed from others.
    assert_eq!(
        setting(&plan, "r"),
        &json!({ "key": "r", "name": "rank", "value": 4, "given": true })
    );
    assert_eq!(plan["places"]["r"], "key `rank` in `run.toml`");
    assert_eq!(plan["places"]["epochs"], "`--epochs`");
    assert_eq!(setting(&plan, "lora_alpha")["given"], false);
    assert_eq!(setting(&plan, "eval_steps")["value"], 6);
    assert_eq!(setting(&plan, "label_column")["value"], "label");
    assert_eq!(
        setting(&plan, "target_modules")["value"],
        json!(["query", "value"])
    );

    let report = here.json(&run);
    for key in [
        "steps",
        "trainable_parameters",
        "stored_parameters",
        "base_parameters",
    ] {
        assert_eq!(plan[key], report[key], "{key}");
    }
    let text = here.succeed(&format!("{run} --overwrite --dry-run"));
    for words in [
        "max_length",
        "examples of each class",
        "Nothing was written",
    ] {
        assert!(text.contains(words), "{text}");
    }
    let rank = text.lines().find(|line| line.starts_with("  rank "));
    assert!(
        rank.is_some_and(|line| line.contains("key `rank`")),
        "{text}"
    );
    // What would stop the run stops the plan.
    let errors = here.fail(
        1,
        &format!("{run} --overwrite --dry-run --target-modules quary"),
    );
    assert!(errors.contains("match nothing"), "{errors}");
}

#[test]
fn several_runs_have_several_plans() {
    let here = Workplace::new();
    let runs = "[[runs]]\noutput = \"a\"\n[[runs]]\noutput = \"b\"\nmethod = \"ia3\"";
    here.write("runs.toml", runs);
    let plans = here.json(&format!("{SPEAK} --config runs.toml --dry-run"));
    let plans = plans["runs"].as_array().unwrap();
    assert_eq!(plans.len(), 2);
    assert_eq!(plans[1]["output"], "b");
    assert_eq!(setting(&plans[1], "method")["value"], "ia3");
    assert!(plans[1].get("labels").is_none());
    assert!(!here.path("a").exists() && !here.path("b").exists());

    // The runs themselves end in one table.
    let text = here.succeed(&format!("{SPEAK} --config runs.toml --max-steps 1 --quiet"));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[0].contains("perplexity") && lines[2].contains("ia3"),
        "{text}"
    );
}

/// Packing is a matter of plain text.
#[test]
fn packing_is_shown_where_it_does_something() {
    let here = Workplace::new();
    let plan = |flags: &str| here.json(&format!("{SPEAK} {flags} --dry-run --output adapter"));
    let has_packing = |plan: &Value| {
        let settings = plan["settings"].as_array().unwrap();
        settings.iter().any(|setting| setting["key"] == "packing")
    };
    assert!(has_packing(&plan("")));
    here.write(
        "pairs.jsonl",
        "{\"q\": \"film\", \"a\": \"good\"}\n".repeat(2),
    );
    let pairs = "train --model llama --task causal-lm --train-data pairs.jsonl --prompt-column q \
                 --completion-column a --dry-run --output adapter";
    assert!(!has_packing(&here.json(pairs)));
    let errors = here.fail(2, &format!("{pairs} --packing"));
    assert!(
        errors.contains("`--packing`: packing joins plain texts"),
        "{errors}"
    );
}
