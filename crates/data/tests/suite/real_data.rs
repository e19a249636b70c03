//! Public data sets, read and counted. Counts are those of the data sets' own documentation.

use std::time::Instant;

use epiphyte_data::{
    Batches, EncodeOptions, Examples, Fields, Format, IGNORED, LabelField, LabelSet, Order,
    ReadOptions, Table, Target, Tokenizer, Value,
};

use crate::support::{minilm, shared_data};

fn read(file: &str, options: &ReadOptions) -> Table {
    Table::read(shared_data(file), options).unwrap()
}

/// Reads with the defaults, checks the number of rows and that the columns hold text.
fn check(file: &str, rows: usize, columns: &[&str]) {
    let table = read(file, &ReadOptions::default());
    assert_eq!(table.len(), rows, "{file}");
    for column in columns {
        let texts = table.texts(column).unwrap();
        assert!(
            texts.iter().any(|text| !text.is_empty()),
            "{file}: {column}"
        );
    }
}

#[test]
#[ignore = "needs ../shared/data"]
fn tagged_sentences() {
    for (file, sentences, words, tags) in [
        ("wnut17/wnut17train.conll", 3_394, 62_730, 13),
        ("wnut17/emerging.dev.conll", 1_009, 15_733, 13),
        ("wnut17/emerging.test.annotated", 1_287, 23_394, 13),
        // Less 145 lines between documents, which its documentation counts.
        ("wikigold/wikigold.conll.txt", 1_696, 39_007, 5),
        ("weibo_ner_zh/weiboNER_2nd_conll.train", 1_350, 73_778, 17),
    ] {
        let options = ReadOptions {
            format: Some(Format::Conll),
            ..ReadOptions::default()
        };
        let table = read(file, &options);
        assert_eq!(table.len(), sentences, "{file}");
        let items = |row| table.items("tokens", row).unwrap().len();
        assert_eq!((0..sentences).map(items).sum::<usize>(), words, "{file}");
        let labels = LabelSet::from_lists(&table, "tags").unwrap();
        assert_eq!(labels.len(), tags, "{file}: {:?}", labels.names());
    }
}

#[test]
#[ignore = "needs ../shared/data and EPIPHYTE_MINILM"]
fn questions_with_answers_in_their_texts() {
    let tokenizer = Tokenizer::load(minilm()).unwrap();
    let fields = Fields::Questions {
        question: "question".to_owned(),
        context: "context".to_owned(),
        answers: Some("answers".to_owned()),
    };
    for (file, questions) in [
        ("xquad/xquad.en.json", 1_190),
        ("xquad/xquad.zh.json", 1_190),
        ("xquad/xquad.de.json", 1_190),
        ("cmrc2018/cmrc2018_dev.json", 3_219),
    ] {
        let table = read(file, &ReadOptions::default());
        assert_eq!(table.len(), questions, "{file}");
        let options = EncodeOptions::new(384);
        let examples = Examples::encode(&table, &fields, &tokenizer, &options).unwrap();
        assert!(examples.len() >= questions, "{file}");
        // Most answers are in the first window of their text.
        let found = examples
            .iter()
            .filter(|it| it.target != Target::Span([0, 0]));
        assert!(found.count() > questions * 9 / 10, "{file}");
    }
}

#[test]
#[ignore = "needs ../shared/data"]
fn glue() {
    check("glue_sst2/train.tsv", 67_349, &["sentence", "label"]);
    check("glue_sst2/dev.tsv", 872, &["sentence", "label"]);
    check("glue_sst2/test.tsv", 1_821, &["sentence"]);
    check(
        "glue_mrpc/train.tsv",
        3_668,
        &["#1 String", "#2 String", "Quality"],
    );
    check(
        "glue_mrpc/dev.tsv",
        408,
        &["#1 String", "#2 String", "Quality"],
    );
    check("glue_mrpc/test.tsv", 1_725, &["#1 String", "#2 String"]);
    check(
        "glue_rte/train.tsv",
        2_490,
        &["sentence1", "sentence2", "label"],
    );
    check(
        "glue_rte/dev.tsv",
        277,
        &["sentence1", "sentence2", "label"],
    );
    check(
        "glue_stsb/train.tsv",
        5_749,
        &["sentence1", "sentence2", "score"],
    );
    check(
        "glue_stsb/dev.tsv",
        1_500,
        &["sentence1", "sentence2", "score"],
    );
    check(
        "glue_qnli/dev.tsv",
        5_463,
        &["question", "sentence", "label"],
    );
    check(
        "glue_wnli/train.tsv",
        635,
        &["sentence1", "sentence2", "label"],
    );
}

#[test]
#[ignore = "needs ../shared/data"]
fn cola_has_no_header() {
    let options = ReadOptions {
        header: false,
        ..ReadOptions::default()
    };
    for (file, rows) in [("glue_cola/train.tsv", 8_551), ("glue_cola/dev.tsv", 1_043)] {
        let table = read(file, &options);
        assert_eq!(table.len(), rows);
        assert_eq!(
            LabelSet::from_column(&table, "1").unwrap().names(),
            ["0", "1"]
        );
        assert_eq!(
            table.column_names().collect::<Vec<_>>(),
            ["0", "1", "2", "3"]
        );
    }
}

#[test]
#[ignore = "needs ../shared/data"]
fn a_format_can_be_forced_on_a_txt_file() {
    let options = ReadOptions {
        format: Some(Format::Tsv),
        ..ReadOptions::default()
    };
    let table = read("glue_mrpc/msr_paraphrase_test.txt", &options);
    assert_eq!(table.len(), 1_725);
    assert_eq!(
        LabelSet::from_column(&table, "Quality").unwrap().names(),
        ["0", "1"]
    );
}

#[test]
#[ignore = "needs ../shared/data"]
fn stsb_scores_are_numbers_from_0_to_5() {
    let table = read("glue_stsb/train.tsv", &ReadOptions::default());
    let scores = table.numbers("score").unwrap();
    assert!(scores.iter().all(|score| (0.0..=5.0).contains(score)));
    let mean = scores.iter().map(|&score| f64::from(score)).sum::<f64>() / scores.len() as f64;
    assert!((mean - 2.701).abs() < 1e-3, "{mean}");
}

#[test]
#[ignore = "needs ../shared/data"]
fn comma_separated_files() {
    check("e2e_nlg/trainset.csv", 42_061, &["mr", "ref"]);
    check("e2e_nlg/devset.csv", 4_672, &["mr", "ref"]);
    check("e2e_nlg/testset_w_refs.csv", 4_693, &["mr", "ref"]);
    check(
        "superglue_cb/train.csv",
        250,
        &["premise", "hypothesis", "label"],
    );
}

#[test]
#[ignore = "needs ../shared/data"]
fn json_of_both_kinds() {
    check(
        "alpaca_subset/random_9k.json",
        9_229,
        &["instruction", "input", "output"],
    );
    check(
        "alpaca_subset/claude_t45.json",
        5_305,
        &["instruction", "input", "output"],
    );
    check(
        "alpaca_subset/alpaca_en_demo.json",
        999,
        &["instruction", "output"],
    );
    check(
        "dolly_3k/dolly_3k.json",
        2_996,
        &["instruction", "input", "output", "category"],
    );
    check("gsm8k/train.jsonl", 7_473, &["question", "answer"]);
    check(
        "ocnli/train.3k.json",
        3_000,
        &["sentence1", "sentence2", "label"],
    );
    check("superglue_boolq/val.jsonl", 3_270, &["passage", "question"]);
    check("tinyshakespeare/input.txt", 1, &["text"]);
    check("chnsenticorp/train.tsv", 9_600, &["text_a", "label"]);
    let table = read("superglue_boolq/val.jsonl", &ReadOptions::default());
    assert!(matches!(table.column("label").unwrap()[0], Value::Bool(_)));
    assert_eq!(
        LabelSet::from_column(&table, "label").unwrap().names(),
        ["false", "true"]
    );
}

/// All steps at the size of SST-2, whose speed matters: reading and tokenizing 67,349 rows.
#[test]
#[ignore = "needs ../shared/data and EPIPHYTE_MINILM"]
#[expect(
    clippy::print_stderr,
    reason = "the test exists to show the time taken"
)]
fn sst2_from_file_to_batches() {
    let path = shared_data("glue_sst2/train.tsv");
    let tokenizer = Tokenizer::load(minilm()).unwrap();
    let start = Instant::now();
    let table = Table::read(path, &ReadOptions::default()).unwrap();
    let read = start.elapsed();
    let fields = Fields::Texts {
        text: "sentence".into(),
        pair: None,
        label: LabelField::Class {
            column: "label".into(),
            labels: LabelSet::from_column(&table, "label").unwrap(),
        },
    };
    let options = EncodeOptions::new(128);
    let examples = Examples::encode(&table, &fields, &tokenizer, &options).unwrap();
    eprintln!(
        "SST-2: read in {read:?}, tokenized after {:?}, {} tokens",
        start.elapsed(),
        examples.tokens()
    );
    assert_eq!(
        (examples.len(), examples.truncated, examples.dropped),
        (67_349, 0, 0)
    );
    let batches = Batches::of(examples, 32, Order::LengthGrouped { seed: 0 }).unwrap();
    assert_eq!(batches.per_epoch(), 2_105);
    assert_eq!(batches.epoch(0).batch(0).unwrap().examples(), 32);
}

/// GPT-2's byte-level tokenizer trims spaces off its offsets. If prompt and completion meet at a
/// token boundary, as they do at a newline, the tokens that do not count are exactly those of the
/// prompt alone, which is how TRL finds them.
#[test]
#[ignore = "needs ../shared/data"]
fn gsm8k_prompts_do_not_count() {
    let data = shared_data("gsm8k/test.jsonl");
    let gpt2 = shared_data("tokenizers/gpt2/tokenizer.json");
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(
        directory.path().join("tokenizer.json"),
        std::fs::read(gpt2).unwrap(),
    )
    .unwrap();
    let config = r#"{"eos_token": "<|endoftext|>"}"#;
    std::fs::write(directory.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::load(directory.path()).unwrap();

    let rows = Table::read(
        data,
        &ReadOptions {
            limit: Some(300),
            ..ReadOptions::default()
        },
    )
    .unwrap();
    let prompts: Vec<String> = rows
        .texts("question")
        .unwrap()
        .iter()
        .map(|text| format!("Question:  {text}  \n\n  "))
        .collect();
    let completions: Vec<String> = rows
        .texts("answer")
        .unwrap()
        .iter()
        .map(|text| format!("\nAnswer:   {text}  "))
        .collect();
    let column = |texts: &[String]| texts.iter().cloned().map(Value::Text).collect();
    let table = Table::from_columns(
        "gsm8k",
        [
            ("prompt".to_owned(), column(&prompts)),
            ("completion".to_owned(), column(&completions)),
        ],
    )
    .unwrap();
    let fields = Fields::PromptCompletion {
        prompt: "prompt".into(),
        completion: "completion".into(),
    };
    let options = EncodeOptions::new(1024);
    let examples = Examples::encode(&table, &fields, &tokenizer, &options).unwrap();
    assert_eq!((examples.len(), examples.truncated), (300, 0));
    let ids = |text: &str| tokenizer.encode(text, None, None).unwrap().ids;
    for (row, example) in examples.iter().enumerate() {
        let Target::Tokens(labels) = &example.target else {
            panic!("no label per token")
        };
        let (ignored, counted): (Vec<_>, Vec<_>) = example
            .ids
            .iter()
            .zip(labels)
            .partition(|(_, label)| **label == IGNORED);
        let of =
            |pairs: Vec<(&u32, &i64)>| pairs.into_iter().map(|(id, _)| *id).collect::<Vec<_>>();
        assert_eq!(of(ignored), ids(&prompts[row]), "row {row}");
        assert_eq!(
            of(counted),
            [ids(&completions[row]), vec![50_256]].concat(),
            "row {row}"
        );
    }
}
