//! Files that are damaged at random, for every reader: an error or a result, never a panic.
//!
//! Each test changes one file that the program reads, a few edits at a time, and reads it in this
//! process. Some dozens of changes are tried, the same ones each time; more, and others, with
//!
//! ```sh
//! PROPTEST_CASES=20000 cargo test --workspace --test cli -- mutated
//! ```

use std::fs;
use std::path::{Path, PathBuf};

use epiphyte::Device;
use epiphyte::data::{ReadOptions, Table, Tokenizer};
use epiphyte::io::safetensors_file::Header;
use epiphyte::methods::file::AdapterFile;
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::models::{HeadKind, LoadOptions, ModelConfig, load};
use epiphyte::train::observer::Silent;
use epiphyte::train::report::journal;
use epiphyte::train::training::checkpoints::Checkpoints;
use epiphyte::train::{Interrupt, RunConfig, RunOptions, open_adapter, train};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{RngAlgorithm, TestCaseError, TestRng, TestRunner};
use serde_json::json;

use crate::workplace::{CLASSIFY, Workplace};

/// The changes that are tried if nothing else is said.
const CASES: u32 = 48;

/// Texts that readers have to expect in any place.
static PHRASES: [&str; 32] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "NaN",
    "null",
    "true",
    "\"\"",
    "\"a\"",
    "[]",
    "{}",
    "[[[[[[[[",
    "{\"a\":",
    "18446744073709551615",
    "9223372036854775808",
    "4294967296",
    "1e18",
    "0.5",
    "\"",
    "'",
    ",",
    ":",
    "\\ud800",
    "\\u0000",
    "\n",
    "\r\n",
    "\t",
    "\u{feff}",
    "\0",
    "{% for a in b %}",
    "{{ 1/0 }}",
    "..",
];

/// One change of a file.
#[derive(Clone, Debug)]
enum Edit {
    /// One bit is flipped.
    Flip(Index, u8),
    /// Some bytes are removed.
    Cut(Index, usize),
    /// Everything from a byte on is removed.
    Truncate(Index),
    /// Some bytes are written twice.
    Repeat(Index, usize),
    /// Something is inserted.
    Insert(Index, Vec<u8>),
    /// A number, word or quoted text is replaced.
    Replace(Index, &'static str),
    /// Two numbers, words or quoted texts change places.
    Swap(Index, Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        2 => (at(), 0..8u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        1 => (at(), 1..40usize).prop_map(|(at, length)| Edit::Cut(at, length)),
        1 => at().prop_map(Edit::Truncate),
        1 => (at(), 1..200usize).prop_map(|(at, length)| Edit::Repeat(at, length)),
        1 => (at(), vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        2 => (at(), select(&PHRASES[..])).prop_map(|(at, it)| Edit::Insert(at, it.into())),
        6 => (at(), select(&PHRASES[..])).prop_map(|(at, it)| Edit::Replace(at, it)),
        2 => (at(), at()).prop_map(|(one, other)| Edit::Swap(one, other)),
    ]
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let length = bytes.len();
        match self {
            Self::Flip(at, bit) => bytes[at.index(length)] ^= 1 << bit,
            Self::Cut(at, count) => {
                let at = at.index(length);
                bytes.drain(at..length.min(at + count));
            }
            Self::Truncate(at) => bytes.truncate(at.index(length)),
            Self::Repeat(at, count) => {
                let at = at.index(length);
                let part = bytes[at..length.min(at + count)].to_vec();
                bytes.splice(at..at, part);
            }
            Self::Insert(at, new) => {
                let at = at.index(length);
                bytes.splice(at..at, new.iter().copied());
            }
            Self::Replace(at, new) => {
                if let Some(range) = pick(&words(bytes), at) {
                    bytes.splice(range, new.bytes());
                }
            }
            Self::Swap(one, other) => {
                let words = words(bytes);
                if let (Some(one), Some(other)) = (pick(&words, one), pick(&words, other)) {
                    let (first, second) = if one.start <= other.start {
                        (one, other)
                    } else {
                        (other, one)
                    };
                    if first.end <= second.start {
                        let moved = bytes[first.clone()].to_vec();
                        let swapped = bytes[second.clone()].to_vec();
                        bytes.splice(second, moved);
                        bytes.splice(first, swapped);
                    }
                }
            }
        }
    }
}

/// The numbers, words and quoted texts of a file.
fn words(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut words = Vec::new();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+.".contains(&byte);
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        if bytes[at] == b'"' {
            let end = bytes[at + 1..].iter().position(|&byte| byte == b'"');
            at += end.map_or(1, |end| end + 2);
            words.push(start..at);
        } else if is_word(bytes[at]) {
            at += bytes[at..]
                .iter()
                .take_while(|&&byte| is_word(byte))
                .count();
            words.push(start..at);
        } else {
            at += 1;
        }
    }
    words
}

fn pick(words: &[std::ops::Range<usize>], at: &Index) -> Option<std::ops::Range<usize>> {
    (!words.is_empty()).then(|| words[at.index(words.len())].clone())
}

/// Changes the file at `path` and reads it, again and again. A panic of `read` fails the test and
/// shows the smallest edits that cause it.
fn survives(path: &Path, read: impl Fn()) {
    survives_cases(path, CASES, read);
}

/// [`survives`] with another number of changes: for a reader that takes its time.
fn survives_cases(path: &Path, cases: u32, read: impl Fn()) {
    let original = fs::read(path).unwrap();
    // What is not changed can be read, so that the changes reach all of the reader.
    read();
    let mut config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let mut runner = if std::env::var_os("PROPTEST_CASES").is_some() {
        TestRunner::new(config)
    } else {
        config.cases = cases;
        TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
    };
    let result = runner.run(&vec(edit(), 1..5), |edits| {
        let mut bytes = original.clone();
        edits.iter().for_each(|edit| edit.apply(&mut bytes));
        fs::write(path, &bytes).map_err(|error| TestCaseError::fail(error.to_string()))?;
        read();
        Ok(())
    });
    fs::write(path, &original).unwrap();
    result.unwrap_or_else(|failure| panic!("{}: {failure}", path.display()));
}

/// The classes that the tiny classifier has.
const HEAD: HeadKind = HeadKind::Classification { labels: 2 };

fn load_model(dir: &Path) {
    let _ = load(dir, HEAD, &Device::flex(), &LoadOptions::default());
}

#[test]
fn safetensors() {
    let here = Workplace::new();
    let path = here.path("bert-head/model.safetensors");
    survives(&path, || {
        let _ = Header::parse(&fs::read(&path).unwrap());
        load_model(&here.path("bert-head"));
    });
}

#[test]
fn an_index_of_shards() {
    let here = Workplace::new();
    let dir = here.path("bert-head");
    fs::rename(
        dir.join("model.safetensors"),
        dir.join("model-00001-of-00001.safetensors"),
    )
    .unwrap();
    let names = [
        "bert.pooler.dense.weight",
        "classifier.weight",
        "classifier.bias",
    ];
    let map: serde_json::Map<_, _> = names
        .iter()
        .map(|&name| (name.to_owned(), json!("model-00001-of-00001.safetensors")))
        .collect();
    let path = dir.join("model.safetensors.index.json");
    let index = json!({ "metadata": { "total_size": 1000 }, "weight_map": map });
    fs::write(&path, index.to_string()).unwrap();
    survives(&path, || load_model(&dir));
}

#[test]
fn model_config() {
    let here = Workplace::new();
    for (model, head) in [("bert-head", HEAD), ("llama", HeadKind::LanguageModel)] {
        let dir = here.path(model);
        survives(&dir.join("config.json"), || {
            let _ = ModelConfig::open(&dir);
            let _ = load(&dir, head, &Device::flex(), &LoadOptions::default());
        });
    }
}

#[test]
fn generation_config() {
    let here = Workplace::new();
    let dir = here.path("llama");
    let config = ModelConfig::open(&dir).unwrap();
    let path = dir.join("generation_config.json");
    let generation = json!({ "bos_token_id": 4, "eos_token_id": [5, 2], "pad_token_id": 0 });
    fs::write(&path, generation.to_string()).unwrap();
    survives(&path, || drop(GenerationConfig::open(&dir, &config)));
}

/// Loads a tokenizer and uses everything of it.
fn tokenize(dir: &Path) {
    let Ok(tokenizer) = Tokenizer::load(dir) else {
        return;
    };
    let text = "A good film, très [MASK] <s> \u{1f600}\u{0}";
    if let Ok(encoding) = tokenizer.encode(text, Some("fine"), Some(8)) {
        let _ = tokenizer.decode(&encoding.ids, false);
    }
    let _ = tokenizer.align(text, true);
    if let Ok(template) = tokenizer.chat_template() {
        let messages = [
            json!({ "role": "user", "content": "a" }),
            json!({ "role": "assistant", "content": "b" }),
        ];
        let _ = template.render(&messages, true);
        let _ = template.render_for_training(&messages);
    }
}

#[test]
fn tokenizer() {
    let here = Workplace::new();
    let dir = here.path("bert");
    survives(&dir.join("tokenizer.json"), || tokenize(&dir));
}

#[test]
fn chat_template() {
    let here = Workplace::new();
    let dir = here.path("llama");
    let template = "{% for message in messages %}{{ bos_token }}{% if message['role'] == 'user' %}\
        <u>{{ message['content'] | trim }}</u>{% else %}{% generation %}{{ message.content }}\
        {% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}";
    let config = json!({
        "bos_token": "<s>", "eos_token": { "content": "</s>" }, "model_max_length": 64,
        "chat_template": template, "truncation_side": "right",
    });
    let path = dir.join("tokenizer_config.json");
    fs::write(&path, config.to_string()).unwrap();
    survives(&path, || tokenize(&dir));
    let path = dir.join("chat_template.jinja");
    fs::write(&path, template).unwrap();
    survives(&path, || tokenize(&dir));
}

/// Files that PyPI's `gguf` wrote, and one of ours: metadata, tensors in all types, vocabularies.
#[test]
fn gguf() {
    let here = Workplace::new();
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    for file in [
        "models/tests/golden/gguf/blocks.gguf",
        "models/tests/golden/gguf/gemma2.gguf",
        "data/tests/golden/gguf/llama-bpe.gguf",
        "data/tests/golden/gguf/sentence-pieces.gguf",
    ] {
        let path = here.path("model.gguf");
        fs::copy(crates.join(file), &path).unwrap();
        survives(&path, || {
            tokenize(&path);
            let device = Device::flex();
            let options = LoadOptions::default();
            if let Ok(loaded) = load(&path, HeadKind::LanguageModel, &device, &options) {
                let tensors = loaded.model.base().tensors();
                tensors.values().for_each(|tensor| drop(tensor.to_vec()));
            }
        });
    }
}

/// Files of examples, each with every type of value. pyarrow wrote the Parquet file: texts, numbers
/// and nested messages, dictionaries, Snappy.
#[test]
fn examples() {
    let here = Workplace::new();
    let rows = [
        json!({ "text": "a \"good\" film", "label": 1, "tokens": ["a", "b"], "x": { "y": [1, null] } }),
        json!({ "text": "bad\n\u{e9}", "label": -2.5, "tokens": [], "x": null }),
        json!({ "text": "\u{1f600}", "label": true }),
    ];
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    let csv = "text,label,score\n\"a, \"\"good\"\"\nfilm\",1,0.5\nbad,0,\n\u{e9},,1e3\n";
    here.write("a.jsonl", lines.join("\n"));
    here.write("a.json", json!(rows).to_string());
    here.write("b.json", json!({ "version": 1, "data": rows }).to_string());
    here.write("a.csv", csv);
    here.write("a.tsv", csv.replace(',', "\t"));
    here.write("a.txt", "one\n\ntwo\r\nthree");
    here.write("a.parquet", include_bytes!("rows.parquet"));
    for name in [
        "a.jsonl",
        "a.json",
        "b.json",
        "a.csv",
        "a.tsv",
        "a.txt",
        "a.parquet",
    ] {
        let path = here.path(name);
        survives(&path, || drop(Table::read(&path, &ReadOptions::default())));
    }
}

/// A finished run of a few steps, with a checkpoint of each step.
fn finished(here: &Workplace) -> (RunConfig, RunOptions) {
    here.json(&format!(
        "{CLASSIFY} --max-steps 3 --save-steps 1 --logging-steps 1 --eval-steps 1 --rank 2 \
         --save-total-limit 3 --output run"
    ));
    let settings = json!({
        "model": here.path("bert"), "output": here.path("run"), "train_data": here.path("train.jsonl"),
        "eval_data": here.path("dev.jsonl"), "text_columns": ["text"], "batch_size": 16,
        "max_length": 16, "learning_rate": 1e-2, "max_steps": 3, "save_steps": 1, "logging_steps": 1,
        "eval_steps": 1, "r": 2, "save_total_limit": 3,
    });
    let run = RunConfig::parse(settings.as_object().unwrap()).unwrap();
    let options = RunOptions {
        resume: true,
        device: Device::flex(),
        ..RunOptions::default()
    };
    (run, options)
}

#[test]
fn adapter() {
    let here = Workplace::new();
    finished(&here);
    let (model, dir) = (here.path("bert"), here.path("run"));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        survives(&dir.join(name), || {
            let Ok(file) = AdapterFile::open(&dir) else {
                return;
            };
            let options = LoadOptions::default();
            let _ = open_adapter(&model, Some(file), None, true, &Device::flex(), &options);
        });
    }
}

#[test]
fn log() {
    let here = Workplace::new();
    finished(&here);
    let path = here.path("run/log.jsonl");
    survives(&path, || drop(journal::read(&path)));
}

/// The files of `from` and of its directories, in `to`.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}

#[test]
fn state_of_a_run() {
    let here = Workplace::new();
    let (mut run, options) = finished(&here);
    // The run lost its adapter and its last checkpoint, and goes on from the one before.
    let last = Checkpoints::inspect(&run.output).latest().unwrap().unwrap();
    fs::remove_dir_all(last.path).unwrap();
    fs::remove_file(run.output.join("adapter_model.safetensors")).unwrap();
    let whole = here.path("whole");
    fs::rename(&run.output, &whole).unwrap();
    run.output = here.path("run");
    let resume = || {
        let _ = fs::remove_dir_all(&run.output);
        copy(&whole, &run.output);
        train(&run, &options, &Interrupt::default(), &mut Silent)
    };
    resume().unwrap();
    let checkpoint = Checkpoints::inspect(&whole).latest().unwrap().unwrap();
    let entries = fs::read_dir(&checkpoint.path).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|it| it.unwrap().path()).collect();
    files.push(whole.join("log.jsonl"));
    files.sort();
    for path in files {
        survives_cases(&path, CASES / 6, || drop(resume()));
    }
}

/// The configuration file is read by the command alone.
#[test]
fn run_configuration() {
    let here = Workplace::new();
    let path = here.path("run.toml");
    let text = "model = \"./absent\"\ntask = \"sequence-classification\"\ntrain_data = \"train.jsonl\"\n\
        text_columns = [\"text\"]\nlabels = [\"negative\", \"positive\"]\nmethod = \"lora\"\nrank = 4\n\
        alpha = 8.0\ntarget_modules = [\"query\", \"value\"]\nlearning_rate = 1e-3\nmax_steps = 10\n\
        max_length = 16\nbatch_size = 8\nepochs = 1.5\nseed = 1\n[[runs]]\noutput = \"a\"\n[[runs]]\n\
        output = \"b\"\nmethod = \"ia3\"\n";
    fs::write(&path, text).unwrap();
    survives_cases(&path, CASES / 2, || {
        let output = here.run("train --config run.toml --quiet");
        let errors = String::from_utf8_lossy(&output.stderr);
        let code = output.status.code();
        assert!(matches!(code, Some(1 | 2)), "{code:?}\n{errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    });
}
