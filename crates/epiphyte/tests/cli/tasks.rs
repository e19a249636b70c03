//! Tasks that read something else than one class for a text: tags, answers, choices, sets of
//! classes.

use serde_json::{Value, json};

use crate::workplace::{CLASSIFY, Workplace};

/// Flags of a short run.
const TRAIN: &str = "train --model bert --method full --batch-size 8 --learning-rate 1e-2 \
    --train-data train.data --eval-data dev.data --output out --epochs";

/// Words that stand for something, and others.
const TELLING: [&str; 5] = ["good", "fine", "great", "lovely", "warm"];
const OTHERS: [&str; 6] = ["a", "the", "film", "play", "book", "was"];

/// A sentence with a telling word at a place that depends on the number.
fn sentence(number: usize) -> (Vec<&'static str>, usize) {
    let others = (0..3 + number % 3).map(|at| OTHERS[(number * 7 + at * 5) % OTHERS.len()]);
    let mut words: Vec<&str> = others.collect();
    let place = (number * 5 + number / 3) % words.len();
    words.insert(place, TELLING[number % TELLING.len()]);
    (words, place)
}

fn rows(count: usize, row: impl Fn(usize) -> Value) -> String {
    (0..count)
        .map(|number| format!("{}\n", row(number)))
        .collect()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

/// Trains, and checks that `eval` of the adapter, and of the merged model without a word on its
/// task, give the scores of the run. The merged model is in `merged`.
fn train(here: &Workplace, flags: &str, score: &str) {
    let report = here.json(&format!("{TRAIN} {flags}"));
    let scores = here.json("eval --model bert --adapter out --data dev.data --format jsonl");
    here.succeed("merge --model bert --adapter out --output merged");
    let data = "--data dev.data --format jsonl --max-length 32";
    let merged = here.json(&format!("eval --model merged {data}{}", columns(flags)));
    assert!(number(&scores[score]) > 0.8, "{scores}");
    for name in [score, "loss"] {
        assert_eq!(report["metrics"][name], scores[name], "{name}");
        let difference = number(&merged[name]) - number(&scores[name]);
        assert!(difference.abs() < 1e-5, "{name}: {merged}");
    }
}

/// The flags that name columns, which a merged model does not record.
fn columns(flags: &str) -> String {
    let words: Vec<&str> = flags.split_whitespace().collect();
    let pairs = words.windows(2).filter(|pair| pair[0].contains("-column"));
    pairs
        .map(|pair| format!(" {} {}", pair[0], pair[1]))
        .collect()
}

fn class_of_merged(here: &Workplace) -> Value {
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    config["architectures"][0].clone()
}

#[test]
fn tags_are_trained_scored_and_written() {
    let here = Workplace::new();
    let tagged = |number| {
        let (tokens, place) = sentence(number);
        let tag = |at| if at == place { "B-QUALITY" } else { "O" };
        let tags: Vec<&str> = (0..tokens.len()).map(tag).collect();
        (tokens, tags)
    };
    let row = |number| {
        let (tokens, ner_tags) = tagged(number);
        json!({ "tokens": tokens, "ner_tags": ner_tags })
    };
    here.write("train.data", rows(48, row));
    here.write("dev.data", rows(20, |number| row(number + 60)));
    train(
        &here,
        "8 --task token-classification --format jsonl --max-length 16",
        "f1",
    );
    assert_eq!(class_of_merged(&here), "BertForTokenClassification");
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    assert_eq!(config["id2label"], json!({ "0": "B-QUALITY", "1": "O" }));
    let config: Value = serde_json::from_str(&here.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["task_type"], "TOKEN_CLS");
    let scores = here.json("eval --model bert --adapter out --data dev.data --format jsonl");
    assert_eq!(scores["classes"][0]["label"], "QUALITY");
    assert_eq!(scores["classes"][0]["support"], 20);

    // CoNLL files, and texts that are split at blanks.
    let conll = (0..20).map(|number| {
        let (tokens, tags) = tagged(number + 60);
        let lines = tokens
            .iter()
            .zip(&tags)
            .map(|(token, tag)| format!("{token}\t{tag}\n"));
        lines.collect::<String>() + "\n"
    });
    here.write("dev.conll", conll.collect::<String>());
    let conll = "--text-columns tokens --label-column tags";
    let of_conll = here.json(&format!(
        "eval --model bert --adapter out --data dev.conll {conll}"
    ));
    assert_eq!(of_conll["f1"], scores["f1"]);
    let preview = here.succeed(&format!(
        "data preview --model bert --adapter out --data dev.conll --rows 1 {conll}"
    ));
    assert!(preview.contains("[CLS][["), "{preview}");
    assert!(preview.contains("\"B-QUALITY\""), "{preview}");
    here.write("new.csv", "id,tokens\n1,the film was good\n2,good play\n");
    here.succeed("predict --model bert --adapter out --data new.csv --columns id --output p.jsonl");
    let found = lines(&here.read("p.jsonl"));
    assert_eq!(found[0]["tags"], json!(["O", "O", "O", "B-QUALITY"]));
    assert_eq!(found[1], json!({ "id": "2", "tags": ["B-QUALITY", "O"] }));

    // What is cut off has no tag.
    let output =
        here.run("predict --model bert --adapter out --data new.csv --max-length 4 --output p.csv");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("words without a tag"), "{said}");
    assert!(
        here.read("p.csv").starts_with("tags\nO O _ _\n"),
        "{}",
        here.read("p.csv")
    );

    here.write(
        "bad.jsonl",
        "{\"tokens\": [\"good\", \"film\"], \"ner_tags\": [\"O\"]}\n",
    );
    let error = here.fail(1, "eval --model bert --adapter out --data bad.jsonl");
    assert!(
        error.contains("row 1: 1 tags in column `ner_tags` for 2 words"),
        "{error}"
    );
    here.write(
        "bad.jsonl",
        "{\"tokens\": [\"good\"], \"ner_tags\": [\"I-X\"]}\n",
    );
    let error = here.fail(1, "eval --model bert --adapter out --data bad.jsonl");
    assert!(
        error.contains("`I-X`") && error.contains("`B-QUALITY`, `O`"),
        "{error}"
    );
}

#[test]
fn answers_are_trained_scored_and_written() {
    let here = Workplace::new();
    let row = |number| {
        let (words, place) = sentence(number);
        let context = words.join(" ");
        let start = words[..place]
            .iter()
            .map(|word| word.len() + 1)
            .sum::<usize>();
        let answers = match number % 4 {
            3 => json!([]),
            _ => json!([{ "text": words[place], "answer_start": start }]),
        };
        let context = match number % 4 {
            3 => context.replace(words[place], "bad"),
            _ => context,
        };
        json!({ "id": number, "question": "very rather", "context": context, "answers": answers })
    };
    here.write("train.data", rows(64, row));
    here.write("dev.data", rows(20, |number| row(number + 80)));
    train(
        &here,
        "12 --task question-answering --format jsonl --max-length 16",
        "f1",
    );
    assert_eq!(class_of_merged(&here), "BertForQuestionAnswering");
    let config: Value = serde_json::from_str(&here.read("out/adapter_config.json")).unwrap();
    assert_eq!(config["task_type"], "QUESTION_ANS");
    assert_eq!(here.record("out")["task"]["version_2_with_negative"], true);

    // The same questions as a file of SQuAD, in windows.
    let paragraphs = (0..20).map(|number| {
        let row = row(number + 80);
        json!({ "context": row["context"], "qas": [
            { "id": row["id"], "question": row["question"], "answers": row["answers"] }] })
    });
    let squad =
        json!({ "version": "2.0", "data": [{ "paragraphs": paragraphs.collect::<Vec<_>>() }] });
    here.write("dev.json", squad.to_string());
    let scores = here.json("eval --model bert --adapter out --data dev.data --format jsonl");
    let of_squad = here.json("eval --model bert --adapter out --data dev.json");
    assert_eq!(of_squad["f1"], scores["f1"]);
    let preview = here.json("data preview --model bert --adapter out --data dev.json --rows 1");
    let answer = preview["preview"][0]["parts"].as_array().unwrap();
    let answer = answer.iter().find(|part| part["has_loss"] == true).unwrap();
    assert!(
        TELLING.contains(&answer["text"].as_str().unwrap()),
        "{answer}"
    );
    let windows = "--data dev.json --max-length 9 --doc-stride 2";
    let of_windows = here.json(&format!("eval --model bert --adapter out {windows}"));
    assert!(number(&of_windows["examples"]) > 20.0, "{of_windows}");

    here.write(
        "new.jsonl",
        rows(2, |number| {
            let word = if number == 0 { "good" } else { "bad" };
            json!({ "question": "very rather", "context": format!("the film was {word}") })
        }),
    );
    here.succeed("predict --model bert --adapter out --data new.jsonl --output p.jsonl");
    let found = lines(&here.read("p.jsonl"));
    assert_eq!(
        (&found[0]["answer"], &found[0]["answer_start"]),
        (&json!("good"), &json!(13))
    );
    assert_eq!(
        (&found[1]["answer"], &found[1]["answer_start"]),
        (&json!(""), &Value::Null)
    );

    let bad = json!({ "question": "very", "context": "the film", "answers": [{ "text": "play", "answer_start": 4 }] });
    here.write("bad.jsonl", format!("{bad}\n"));
    let error = here.fail(1, "eval --model bert --adapter out --data bad.jsonl");
    assert!(
        error.contains("row 1: the text has no `play` (answer_start 4)"),
        "{error}"
    );
    let error = here.fail(
        1,
        "eval --model bert --adapter out --data dev.json --max-length 5",
    );
    assert!(
        error.contains("row 1: the question has 2 tokens"),
        "{error}"
    );
}

#[test]
fn choices_are_trained_scored_and_written() {
    let here = Workplace::new();
    let row = |number: usize| {
        let good = TELLING[number % TELLING.len()];
        let bad = ["bad", "poor", "awful", "ugly", "cold"][number / 2 % 5];
        let right = number / 3 % 2;
        let choice = |at| if at == right { good } else { bad };
        json!({
            "premise": format!("the {}", OTHERS[2 + number % 3]), "question": "was",
            "choice1": choice(0), "choice2": format!("{} book", choice(1)), "label": right,
        })
    };
    here.write("train.data", rows(48, row));
    here.write("dev.data", rows(24, |number| row(number + 50)));
    train(
        &here,
        "8 --task multiple-choice --format jsonl --max-length 16",
        "accuracy",
    );
    assert_eq!(class_of_merged(&here), "BertForMultipleChoice");
    here.succeed(
        "predict --model bert --adapter out --data dev.data --format jsonl --columns label \
         --output p.jsonl",
    );
    let found = lines(&here.read("p.jsonl"));
    let right = |row: &&Value| row["label"] == json!(row["data_label"].to_string());
    assert!(found.iter().filter(right).count() > 19);
    assert!(found[0]["probabilities"]["1"].is_f64(), "{}", found[0]);

    here.write(
        "bad.jsonl",
        format!("{}\n", row(0)).replace("\"label\":0", "\"label\":2"),
    );
    let error = here.fail(1, "eval --model bert --adapter out --data bad.jsonl");
    assert!(
        error.contains("row 1") && error.contains("`0`, `1`"),
        "{error}"
    );
    let error = here.fail(
        1,
        "train --model bert --task multiple-choice --train-data train.jsonl --text-columns text \
         --output other",
    );
    assert!(error.contains("--choice-columns"), "{error}");
}

#[test]
fn sets_of_classes_are_trained_scored_and_written() {
    let here = Workplace::new();
    let words = |number: usize| {
        let all = ["good", "bad", "warm"].into_iter().enumerate();
        let chosen = all.filter(|(at, _)| (number + number / 8) >> at & 1 == 1);
        chosen.map(|(_, word)| word).collect::<Vec<&str>>()
    };
    let row = |number| {
        let chosen = words(number);
        let text = format!("the {} {}", OTHERS[2 + number % 3], chosen.join(" was "));
        json!({ "text": text, "label": chosen })
    };
    here.write("train.data", rows(64, row));
    here.write("dev.data", rows(24, |number| row(number + 64)));
    let flags = "10 --task multi-label-classification --text-columns text --max-length 16";
    train(&here, &format!("{flags} --format jsonl"), "f1");
    assert_eq!(class_of_merged(&here), "BertForSequenceClassification");
    let config: Value = serde_json::from_str(&here.read("merged/config.json")).unwrap();
    assert_eq!(config["problem_type"], "multi_label_classification");
    assert_eq!(config["id2label"]["0"], "bad");

    here.write(
        "new.jsonl",
        "{\"text\": \"the film good was bad\"}\n{\"text\": \"the play\"}\n",
    );
    let predict = "predict --model bert --adapter out --data new.jsonl --output";
    here.succeed(&format!("{predict} p.jsonl"));
    let found = lines(&here.read("p.jsonl"));
    for row in &found {
        let labels = row["labels"].as_array().unwrap();
        for (name, probability) in row["probabilities"].as_object().unwrap() {
            let is_chosen = labels.contains(&json!(name));
            assert_eq!(is_chosen, number(probability) > 0.5, "{row}");
        }
    }
    assert!(
        found[0]["labels"].to_string().contains("\"bad\",\"good\""),
        "{}",
        found[0]
    );
    here.succeed(&format!("{predict} p.csv"));
    let found = here.read("p.csv");
    let header = "labels,probability_bad,probability_good,probability_warm\n\"bad,good";
    assert!(found.starts_with(header), "{found}");

    // One class for a text is another task, which says so.
    let error = here.fail(
        2,
        "predict --model merged --task sequence-classification --text-columns text \
         --data new.jsonl --output q.jsonl",
    );
    assert!(
        error.contains("--task multi-label-classification"),
        "{error}"
    );

    // A column for each class.
    let flags = |number| ["bad", "good", "warm"].map(|word| words(number).contains(&word) as u8);
    let table = (0..24).map(|number| {
        let [bad, good, warm] = flags(number + 64);
        let text = row(number + 64)["text"].as_str().unwrap().to_owned();
        format!("{text},{bad},{good},{warm}\n")
    });
    here.write(
        "dev.csv",
        format!("text,bad,good,warm\n{}", table.collect::<String>()),
    );
    let columns = "--label-columns bad,good,warm";
    let scores = here.json("eval --model bert --adapter out --data dev.data --format jsonl");
    let of_columns = here.json(&format!(
        "eval --model bert --adapter out --data dev.csv {columns}"
    ));
    assert_eq!(of_columns["f1"], scores["f1"]);
    here.write(
        "bad.jsonl",
        "{\"text\": \"the film\", \"label\": [\"ugly\"]}\n",
    );
    let error = here.fail(1, "eval --model bert --adapter out --data bad.jsonl");
    assert!(error.contains("`ugly`"), "{error}");
}

/// Columns that are called as in well-known data sets need no flag, and the log says which were
/// read.
#[test]
fn columns_of_texts_are_recognized() {
    let here = Workplace::new();
    let train = CLASSIFY.replace("--text-columns text", "");
    let output = here.run(&format!("{train} --max-steps 2 --output adapter"));
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert!(
        log.contains("read as plain text (--text-columns text)"),
        "{log}"
    );
    here.succeed(&format!("{CLASSIFY} --max-steps 2 --output named"));
    let weights = |run: &str| std::fs::read(here.path(run).join("adapter_model.safetensors"));
    assert!(weights("adapter").unwrap() == weights("named").unwrap());
    here.write(
        "both.jsonl",
        "{\"text\": \"a\", \"sentence\": \"b\", \"label\": \"x\"}\n",
    );
    let errors = here.fail_any(&format!(
        "{} --output other",
        train.replace("train.jsonl", "both.jsonl")
    ));
    assert!(errors.contains("may be read in several ways"), "{errors}");
    let errors = here.fail_any(&format!("{CLASSIFY} --label-column text --output other"));
    assert!(errors.contains("is a text and the label"), "{errors}");
}
