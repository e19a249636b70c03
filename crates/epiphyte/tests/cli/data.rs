//! Data as people have them: what is read, what is refused, and which words say so.

use std::fs::File;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, SPEAK, Workplace};

/// The task that an adapter records.
fn task(here: &Workplace) -> Value {
    here.record("adapter")["task"].clone()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| format!("{row}\n")).collect()
}

#[test]
fn data_that_teach_no_classifier_are_refused() {
    let here = Workplace::new();
    let train = format!("{CLASSIFY} --max-steps 1 --output adapter --train-data");
    let one = json!({"text": "good film", "label": "positive"});
    here.write("one.jsonl", lines(&[one.clone(), one.clone()]));
    let errors = here.fail(1, &format!("{train} one.jsonl"));
    assert!(
        errors.contains("all 2 rows have the label `positive`"),
        "{errors}"
    );

    here.write("nan.csv", "text,label\ngood film,1.0\nbad play,NaN\n");
    let errors = here.fail(1, &format!("{train} nan.csv"));
    assert!(
        errors.contains("`nan.csv`, row 2, column `label`: the label is missing (`NaN`)"),
        "{errors}"
    );

    let swapped: Vec<Value> = (0..40)
        .map(|row| {
            let text = if row % 2 == 0 { "good" } else { "bad" };
            json!({"label": format!("the film {row}"), "text": text})
        })
        .collect();
    here.write("swapped.jsonl", lines(&swapped));
    let errors = here.fail(1, &format!("{train} swapped.jsonl"));
    assert!(
        errors.contains("40 different values in 40 rows"),
        "{errors}"
    );
    assert!(errors.contains("exchange the two columns"), "{errors}");
}

/// Data sorted by label, of which the first rows have one class.
#[test]
fn a_part_of_the_rows_is_a_sample() {
    let here = Workplace::new();
    let (text, dev) = (here.read("train.jsonl"), here.read("dev.jsonl"));
    let mut rows: Vec<&str> = text.lines().chain(dev.lines()).collect();
    rows.sort_by_key(|row| row.contains("positive"));
    here.write("sorted.jsonl", rows.join("\n"));
    let train = format!(
        "{CLASSIFY} --train-data sorted.jsonl --eval-data sorted.jsonl --max-train-rows 16 \
         --max-eval-rows 16 --max-steps 2"
    );
    here.succeed(&format!("{train} --output adapter"));
    here.succeed(&format!("{train} --output again"));
    let tensors = |dir: &str| std::fs::read(here.path(dir).join("adapter_model.safetensors"));
    assert_eq!(tensors("adapter").unwrap(), tensors("again").unwrap());
    let scores = |rows: &str| {
        let eval = "eval --model bert --adapter adapter --data sorted.jsonl";
        here.json(&format!("{eval} {rows}"))
    };
    assert_eq!(scores("--max-rows 16"), scores("--max-rows 16"));
    let (sample, all) = (scores("--max-rows 64"), scores(""));
    assert_eq!(
        (&sample["examples"], &all["examples"]),
        (&json!(64), &json!(128))
    );
    here.succeed(
        "predict --model bert --adapter adapter --data sorted.jsonl --max-rows 3 --output first.jsonl",
    );
    assert_eq!(here.read("first.jsonl").lines().count(), 3);
    let errors = here.fail(2, &format!("{train} --max-train-rows 0 --output none"));
    assert!(errors.contains("max_train_rows"), "{errors}");
}

#[test]
fn each_prediction_belongs_to_a_line() {
    let here = Workplace::new();
    here.succeed(&format!("{CLASSIFY} --max-steps 1 --output adapter"));
    for (name, content, rows) in [
        ("one.csv", "text\ngood\n\nbad\n\n", 4),
        ("nul.csv", "text\ngood\n\0end\nbad\n", 3),
        ("blank.csv", "text,id\ngood,1\n\nbad,2\n\n", 2),
    ] {
        here.write(name, content);
        here.succeed(&format!(
            "predict --model bert --adapter adapter --data {name} --output out.jsonl --overwrite"
        ));
        assert_eq!(here.read("out.jsonl").lines().count(), rows, "{name}");
    }
    here.write("short.jsonl", "{\"text\": \"good\"}\n{}\n");
    let errors = here.fail(
        1,
        "predict --model bert --adapter adapter --data short.jsonl --output short-out.jsonl",
    );
    assert!(
        errors.contains("`short.jsonl`, row 2, column `text`"),
        "{errors}"
    );
}

#[test]
fn data_come_from_standard_input() {
    let here = Workplace::new();
    let command = |flags: &str| {
        let mut command = here.command(&format!(
            "{CLASSIFY} --max-steps 1 --output adapter {flags}"
        ));
        let data = File::open(here.path("train.jsonl")).unwrap();
        command.stdin(Stdio::from(data)).output().unwrap()
    };
    let output = command("--train-data -");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(
        errors.contains("standard input") && errors.contains("--format"),
        "{errors}"
    );
    let output = command("--train-data - --format jsonl");
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
}

#[test]
fn separated_values_have_any_delimiter() {
    let here = Workplace::new();
    let data = |delimiter: &str| {
        let row = |text: &str, label: &str| format!("{text}{delimiter}{label}\n");
        row("text", "label") + &row("good, fine", "positive") + &row("bad, poor", "negative")
    };
    let train = format!("{CLASSIFY} --max-steps 1 --overwrite --output adapter --train-data");
    here.write("semicolons.csv", data(";"));
    here.succeed(&format!("{train} semicolons.csv"));
    here.write("bars.csv", data("|"));
    let errors = here.fail(1, &format!("{train} bars.csv"));
    assert!(
        errors.contains("hint: ") && errors.contains("--delimiter"),
        "{errors}"
    );
    here.succeed(&format!("{train} bars.csv --delimiter |"));
    // An adapter knows how its data are written, and other formats do not mind.
    assert_eq!(task(&here)["delimiter"], "|");
    for name in ["bars.csv", "dev.jsonl"] {
        here.succeed(&format!(
            "eval --model bert --adapter adapter --data {name}"
        ));
    }
    here.write("tabs.txt", data("\t"));
    let errors = here.fail(1, &format!("{train} tabs.txt"));
    assert!(errors.contains("--format tsv"), "{errors}");
    here.succeed(&format!(
        "{train} tabs.txt --eval-data tabs.txt --format tsv"
    ));
    let errors = here.fail(2, &format!("{train} bars.csv --delimiter ab"));
    assert!(errors.contains("ASCII"), "{errors}");
}

/// Flags of a run of a language model whose columns are not named.
fn speak(data: &str) -> String {
    let named = SPEAK.replace("--text-columns text", "");
    let named = named.replace("--eval-data dev.jsonl", "");
    format!("{named} --train-data {data} --max-steps 1 --overwrite --output adapter")
}

#[test]
fn layouts_of_instructions_and_chats_are_recognized() {
    let here = Workplace::new();
    here.edit("llama/tokenizer_config.json", |config| {
        config["chat_template"] = "{% for message in messages %}\
            {{ {'user': 'a', 'assistant': 'the'}[message.role] }} {{ message.content }} {% endfor %}"
            .into();
    });
    let alpaca = [
        json!({"id": 1, "instruction": "good film", "input": "the play", "output": "was fine"}),
        json!({"instruction": "bad book", "input": null, "output": "is poor"}),
    ];
    here.write("alpaca.jsonl", lines(&alpaca));
    let output = here.run(&format!("{} --max-length 64", speak("alpaca.jsonl")));
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{errors}");
    assert!(
        errors.contains("Alpaca") && errors.contains("--prompt-template alpaca"),
        "{errors}"
    );
    assert!(errors.contains("unused_columns=[\"id\"]"), "{errors}");
    assert_eq!(task(&here)["prompt_template"], "alpaca");
    here.succeed("eval --model llama --adapter adapter --data alpaca.jsonl");

    let chat =
        json!([{"from": "human", "value": "good film"}, {"from": "gpt", "value": "was fine"}]);
    here.write("shared.jsonl", lines(&[json!({ "conversations": chat })]));
    let messages = json!([
        {"role": "user", "content": "good film"}, {"role": "assistant", "content": "was fine"},
    ]);
    here.write(
        "text.jsonl",
        lines(&[json!({ "messages": messages.to_string() })]),
    );
    let mut losses = Vec::new();
    for (name, column) in [
        ("shared.jsonl", "conversations"),
        ("text.jsonl", "messages"),
    ] {
        here.succeed(&speak(name));
        assert_eq!(task(&here)["messages_column"], column);
        let eval = "eval --model llama --task causal-lm --max-length 16 --data";
        losses.push(here.json(&format!("{eval} {name}"))["loss"].clone());
    }
    assert_eq!(losses[0], losses[1]);

    here.write(
        "questions.jsonl",
        lines(&[json!({"question": "good", "answer": "bad"})]),
    );
    let errors = here.fail(1, &speak("questions.jsonl"));
    for flag in [
        "--prompt-column",
        "--completion-column",
        "--messages-column",
    ] {
        assert!(errors.contains(flag), "{errors}");
    }
    let both = json!({"text": "good", "instruction": "bad", "output": "poor"});
    here.write("both.jsonl", lines(&[both]));
    let errors = here.fail(1, &speak("both.jsonl"));
    assert!(errors.contains("may be read in several ways"), "{errors}");
    here.succeed(&format!("{} --text-columns text", speak("both.jsonl")));
}

/// Columns that are joined, and templates, give the same tokens as the text written out.
#[test]
fn prompts_have_several_columns_and_templates() {
    let here = Workplace::new();
    let row = json!({"a": "good film", "b": "the play", "c": "was fine"});
    here.write("columns.jsonl", lines(&[row]));
    let written = json!({"prompt": "good film is the play quite ", "completion": "was fine"});
    here.write("written.jsonl", lines(&[written]));
    let loss = |data: &str, flags: &[&str]| {
        let eval = "eval --model llama --task causal-lm --max-length 32 --json --data";
        let mut command = here.command(&format!("{eval} {data}"));
        let output = command.args(flags).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["loss"].clone()
    };
    let completion = "--completion-column=c";
    assert_eq!(
        loss("written.jsonl", &[]),
        loss(
            "columns.jsonl",
            &["--prompt-template={a} is\\n{b} quite ", completion]
        )
    );
    // A blank line is no token of this tokenizer.
    assert_eq!(
        loss("columns.jsonl", &["--prompt-column=a,b", completion]),
        loss("columns.jsonl", &["--prompt-template={a} {b}", completion])
    );
    let train = speak("columns.jsonl");
    here.succeed(&format!(
        "{train} --prompt-column a,b --completion-column c"
    ));
    assert_eq!(task(&here)["prompt_column"], json!(["a", "b"]));
    let errors = here.fail(
        1,
        &format!("{train} --prompt-column a --prompt-template {{b}} --completion-column c"),
    );
    assert!(errors.contains("leave `prompt_column` out"), "{errors}");
}

#[test]
fn a_data_set_by_name_stands_for_its_settings_and_files() {
    let here = Workplace::new();
    std::fs::create_dir(here.path("RTE")).unwrap();
    let rows = |count: usize| {
        let mut rows = "index\tsentence1\tsentence2\tlabel\n".to_owned();
        for row in 0..count {
            let label = if row % 2 == 0 {
                "not_entailment"
            } else {
                "entailment"
            };
            rows += &format!("{row}\tgood film\tfilm\t{label}\n");
        }
        rows
    };
    here.write("RTE/train.tsv", rows(8));
    here.write("RTE/dev.tsv", rows(4));
    let dry = here.json("train --model bert --task glue/rte --train-data RTE --output o --dry-run");
    let text = dry.to_string();
    for expected in [
        "RTE/train.tsv",
        "RTE/dev.tsv",
        "sentence1",
        "sentence2",
        "accuracy",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    here.succeed(
        "train --model bert --task glue/rte --train-data RTE --output o --max-steps 1 --quiet",
    );
    let record = here.record("o");
    assert_eq!(record["task"]["task"], "sequence-classification");
    assert_eq!(
        record["task"]["labels"],
        serde_json::json!(["entailment", "not_entailment"])
    );
    let scores = here.json("eval --model bert --adapter o --task glue/rte --data RTE");
    assert_eq!(scores["examples"], 4);
    let errors = here.fail(
        2,
        "eval --model bert --adapter o --task superglue/cb --data RTE",
    );
    assert!(errors.contains("`RTE` has no val.jsonl"), "{errors}");
    std::fs::remove_file(here.path("RTE/train.tsv")).unwrap();
    let errors = here.fail(
        2,
        "train --model bert --task glue/rte --train-data RTE --output p",
    );
    assert!(errors.contains("`RTE` has no train.tsv"), "{errors}");
    let sets = here.succeed("data sets");
    assert!(
        sets.contains("glue/cola") && sets.contains("matthews"),
        "{sets}"
    );
    assert!(
        here.json("data sets")["data_sets"]
            .as_array()
            .unwrap()
            .len()
            > 5
    );
}

#[test]
fn a_preview_shows_what_the_model_reads_and_what_has_a_loss() {
    let here = Workplace::new();
    here.write(
        "rows.csv",
        "prompt,completion\nthe film, good\na film is, quite good film\n",
    );
    let ask = "data preview --model llama --task causal-lm --prompt-column prompt \
               --completion-column completion --data rows.csv";
    let shown = here.json(ask);
    assert_eq!((&shown["rows"], &shown["examples"]), (&2.into(), &2.into()));
    assert_eq!(shown["columns"]["completion_column"], "completion");
    let first = &shown["preview"][0];
    let loss = first["loss_tokens"].as_u64().unwrap();
    assert!(
        loss >= 2 && loss < first["tokens"].as_u64().unwrap(),
        "{first}"
    );
    let parts = first["parts"].as_array().unwrap();
    let of = |has_loss: bool| {
        let parts = parts.iter().filter(|part| part["has_loss"] == has_loss);
        parts
            .map(|part| part["text"].as_str().unwrap())
            .collect::<String>()
    };
    assert!(
        of(false).contains("the film") && of(true).contains("good"),
        "{first}"
    );
    let text = here.succeed(&format!("{ask} --rows 1 --max-length 4"));
    assert!(
        text.contains("example 1:") && !text.contains("example 2:"),
        "{text}"
    );
    assert!(text.contains("[[") && text.contains("]]"), "{text}");
    assert!(
        text.contains("2 of more than 4 tokens; 5 tokens are lost"),
        "{text}"
    );
    assert!(!here.path("llama/cache").exists());

    here.write("labels.csv", "text,label\ngood film,yes\nfilm,no\n");
    let shown = here.json(
        "data preview --model bert --task sequence-classification --text-columns text \
         --data labels.csv",
    );
    assert_eq!(shown["labels"], serde_json::json!(["no", "yes"]));
    assert_eq!(shown["preview"][0]["label"], "yes");
    let errors = here.fail_any(
        "data preview --model bert --task sequence-classification --text-columns txt \
         --data labels.csv",
    );
    assert!(errors.contains("txt"), "{errors}");
}

#[test]
fn several_files_are_one_data_set_and_none_is_replaced() {
    let here = Workplace::new();
    here.write("part1.csv", "text,label\ngood film,yes\nfilm,no\n");
    here.write(
        "part2.csv",
        "text,label\na good film,yes\nquite a film,no\n",
    );
    here.succeed(
        "train --model bert --train-data part1.csv,part2.csv:2 --text-columns text --output o \
         --max-steps 1 --quiet",
    );
    let scores = here.json("eval --model bert --adapter o --data part*.csv");
    assert_eq!(scores["examples"], 4);
    let errors = here.fail(
        2,
        "predict --model bert --adapter o --data part*.csv --output part2.csv --overwrite",
    );
    assert!(
        errors.contains("is an input, the data `part2.csv`"),
        "{errors}"
    );
}

#[test]
fn a_base_may_have_the_older_files_of_its_tokenizer() {
    let here = Workplace::new();
    let file: Value = serde_json::from_str(&here.read("bert/tokenizer.json")).unwrap();
    let vocabulary = file["model"]["vocab"].as_object().unwrap();
    let mut pieces: Vec<(u64, &String)> = vocabulary
        .iter()
        .map(|(piece, id)| (id.as_u64().unwrap(), piece))
        .collect();
    pieces.sort_unstable();
    let lines: Vec<&str> = pieces.iter().map(|(_, piece)| piece.as_str()).collect();
    here.write("bert/vocab.txt", lines.join("\n"));
    std::fs::remove_file(here.path("bert/tokenizer.json")).unwrap();
    here.succeed(&format!(
        "{CLASSIFY} --max-steps 1 --output adapter --quiet"
    ));
    // The tokenizer is the same one in each process.
    here.succeed("eval --model bert --adapter adapter --data dev.jsonl");
    here.write(
        "bert/vocab.txt",
        format!("{}\n{}", lines.join("\n"), lines[0]),
    );
    let errors = here.fail(1, "eval --model bert --adapter adapter --data dev.jsonl");
    assert!(
        errors.contains("bert/vocab.txt") && errors.contains("is on line 1"),
        "{errors}"
    );
}

/// The same flags mean the same task in `train`, `data preview` and `eval`, whatever the base was
/// made for.
#[test]
fn a_label_makes_the_task_that_of_train() {
    let here = Workplace::new();
    here.edit("bert/config.json", |config| {
        config["architectures"] = serde_json::json!(["BertModel"]);
    });
    let preview = "data preview --model bert --text-columns text";
    for flags in ["--data dev.jsonl", "--data dev.jsonl --label-column label"] {
        let output = here.run(&format!("{preview} {flags} --json"));
        let errors = String::from_utf8(output.stderr).unwrap();
        let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(shown["task"], "sequence-classification", "{errors}");
        assert!(
            errors.contains("the task is sequence-classification, as in `train`"),
            "{errors}"
        );
    }
    let errors = here.fail_any("eval --model bert --text-columns text --data dev.jsonl");
    assert!(
        errors.contains("has no head for sequence-classification"),
        "{errors}"
    );
    let shown = here.json(&format!("{preview} --data dev.jsonl --task masked-lm"));
    assert_eq!(shown["task"], "masked-lm");
    // Without a label there is nothing to classify.
    here.write("plain.jsonl", "{\"text\": \"a good film\"}\n");
    let shown = here.json("data preview --model llama --data plain.jsonl");
    assert_eq!(shown["task"], "causal-lm");
}

/// The hint is about the columns of the task at hand.
#[test]
fn the_hint_names_the_columns_of_the_task() {
    let here = Workplace::new();
    here.write("other.jsonl", "{\"question\": \"a\", \"reply\": \"b\"}\n");
    here.write("both.jsonl", "{\"text\": \"a\", \"messages\": []}\n");
    for command in [
        "eval --model llama --data",
        "data preview --model llama --data",
        "train --model llama --task causal-lm --output out --train-data",
    ] {
        for data in ["other.jsonl", "both.jsonl"] {
            let errors = here.fail_any(&format!("{command} {data}"));
            assert!(
                errors.contains("hint: name the columns with --text-columns, or --prompt-column"),
                "{command} {data}: {errors}"
            );
        }
    }
}
