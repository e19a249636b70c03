//! A directory with tiny models and data, and commands that run in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use epiphyte::Device;
use epiphyte::io::safetensors_file::write_f32;
use epiphyte::models::{Checkpoint, HeadKind, ModelConfig, random_model};
use epiphyte::ops::Precision;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Words of the tiny vocabulary; texts with one of the first five are positive.
const WORDS: [&str; 20] = [
    "good", "fine", "great", "lovely", "warm", "bad", "poor", "awful", "ugly", "cold", "a", "the",
    "film", "play", "book", "was", "is", "very", "quite", "rather",
];
const SPECIAL: [&str; 6] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<s>", "</s>"];

/// A directory with:
/// - `bert`: a BERT without head; `bert-head`: the same with a head for two classes
/// - `llama`: a language model
/// - `train.jsonl`, `dev.jsonl`: `text` and `label` (`negative`, `positive`)
pub(crate) struct Workplace {
    dir: TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let here = Self { dir };
        let two = HeadKind::Classification { labels: 2 };
        write_model(&here.path("bert"), &bert_config(), two, false);
        write_model(&here.path("bert-head"), &bert_config(), two, true);
        write_model(
            &here.path("llama"),
            &llama_config(),
            HeadKind::LanguageModel,
            true,
        );
        here.write("train.jsonl", rows(0, 96));
        here.write("dev.jsonl", rows(1, 32));
        here
    }

    /// Adds an encoder-decoder, `t5` or `bart`.
    pub(crate) fn add_encoder_decoder(&self, name: &str) {
        let config = match name {
            "t5" => t5_config(),
            _ => bart_config(),
        };
        write_model(&self.path(name), &config, HeadKind::LanguageModel, true);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, contents: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), contents).unwrap();
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Changes one file of JSON.
    pub(crate) fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json: Value = serde_json::from_str(&self.read(name)).unwrap();
        change(&mut json);
        self.write(name, json.to_string());
    }

    /// The command, not yet started; arguments are separated by spaces.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_epiphyte"));
        command
            .current_dir(self.dir.path())
            .args(arguments.split_whitespace());
        command
            .env_remove("RUST_LOG")
            .env_remove("COLUMNS")
            .env("HF_HOME", self.path("hub"))
            .env("HF_HUB_OFFLINE", "1");
        command
    }

    /// Runs the command.
    pub(crate) fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed; returns its standard output.
    pub(crate) fn succeed(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "epiphyte {arguments}\n{errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must succeed and print one JSON object.
    pub(crate) fn json(&self, arguments: &str) -> Value {
        let text = self.succeed(&format!("{arguments} --json"));
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    /// What only our files say about an adapter.
    pub(crate) fn record(&self, adapter: &str) -> Value {
        let path = self.path(adapter).join("adapter_model.safetensors");
        let file = Checkpoint::open_file(&path).unwrap();
        serde_json::from_str(&file.metadata()["epiphyte"]).unwrap()
    }

    /// Makes an adapter what PEFT writes: without what only our files say.
    pub(crate) fn as_of_peft(&self, adapter: &str) {
        self.rewrite(adapter, |_| true);
    }

    /// Takes the classifier out of an adapter's tensors.
    pub(crate) fn without_head(&self, adapter: &str) {
        self.rewrite(adapter, |name| !name.contains(".classifier."));
    }

    /// Writes an adapter's tensors anew, those that `keep` accepts, without metadata of ours.
    fn rewrite(&self, adapter: &str, keep: impl Fn(&str) -> bool) {
        let path = self.path(adapter).join("adapter_model.safetensors");
        let file = Checkpoint::open_file(&path).unwrap();
        let tensors = file.names().filter(|name| keep(name)).map(|name| {
            let tensor = file.tensor(name).unwrap();
            let values = tensor.to_f32().unwrap();
            (name, tensor.shape.to_vec(), || values)
        });
        write_f32(&path, tensors).unwrap();
    }

    /// Runs a command that must fail; returns its standard error.
    pub(crate) fn fail_any(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "epiphyte {arguments}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command that must fail with this exit code; returns its standard error.
    pub(crate) fn fail(&self, code: i32, arguments: &str) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            output.status.code(),
            Some(code),
            "epiphyte {arguments}\n{errors}"
        );
        assert!(
            output.stdout.is_empty(),
            "a failure prints to standard error alone"
        );
        errors
    }
}

/// Whether `EPIPHYTE_LONG_TESTS` asks for all of what is otherwise tried in part.
pub(crate) fn long_tests() -> bool {
    std::env::var_os("EPIPHYTE_LONG_TESTS").is_some()
}

/// Flags of a short classification run.
pub(crate) const CLASSIFY: &str = "train --model bert --train-data train.jsonl --eval-data dev.jsonl \
    --text-columns text --batch-size 16 --max-length 16 --learning-rate 1e-2";

/// Flags of a short run of a language model.
pub(crate) const SPEAK: &str = "train --model llama --task causal-lm --train-data train.jsonl \
    --eval-data dev.jsonl --text-columns text --batch-size 16 --max-length 16 --learning-rate 1e-2";

fn bert_config() -> Value {
    json!({
        "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 32, "type_vocab_size": 2,
        "vocab_size": SPECIAL.len() + WORDS.len(), "initializer_range": 0.2, "pad_token_id": 0,
        "id2label": { "0": "negative", "1": "positive" },
    })
}

fn llama_config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32,
        "max_position_embeddings": 64, "vocab_size": SPECIAL.len() + WORDS.len(), "initializer_range": 0.2,
        "bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 0, "tie_word_embeddings": true,
    })
}

fn t5_config() -> Value {
    json!({
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 16, "d_kv": 4, "d_ff": 32,
        "num_layers": 2, "num_heads": 4, "vocab_size": SPECIAL.len() + WORDS.len(), "pad_token_id": 0,
        "eos_token_id": 5, "decoder_start_token_id": 0,
    })
}

fn bart_config() -> Value {
    json!({
        "architectures": ["BartForConditionalGeneration"], "model_type": "bart", "d_model": 16, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32, "max_position_embeddings": 12, "vocab_size": SPECIAL.len() + WORDS.len(),
        "init_std": 0.2, "pad_token_id": 0, "bos_token_id": 4, "eos_token_id": 5, "decoder_start_token_id": 5,
        "forced_eos_token_id": 5,
    })
}

fn write_model(dir: &Path, config: &Value, task: HeadKind, with_head: bool) {
    fs::create_dir_all(dir).unwrap();
    let text = config.to_string();
    fs::write(dir.join("config.json"), &text).unwrap();
    let config = ModelConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap();
    let model = random_model(&config, task, &Device::default(), Precision::F32, 0).unwrap();
    let tensors = model
        .base()
        .tensors()
        .iter()
        .filter(|(name, _)| with_head || !name.starts_with("classifier"));
    let tensors = tensors.map(|(name, tensor)| (name, tensor.shape(), || tensor.to_vec()));
    write_f32(&dir.join("model.safetensors"), tensors).unwrap();
    fs::write(
        dir.join("tokenizer.json"),
        tokenizer(&config.facts().model_type).to_string(),
    )
    .unwrap();
    let special = json!({ "eos_token": "</s>", "bos_token": "<s>", "pad_token": "[PAD]" });
    fs::write(dir.join("tokenizer_config.json"), special.to_string()).unwrap();
}

/// A tokenizer of whole words: `[CLS] a [SEP] b [SEP]` for BERT, `<s> a` for Llama, `a </s>` for
/// encoder-decoders.
fn tokenizer(model_type: &str) -> Value {
    let vocabulary: serde_json::Map<String, Value> = SPECIAL
        .iter()
        .chain(&WORDS)
        .enumerate()
        .map(|(id, word)| ((*word).to_owned(), id.into()))
        .collect();
    let special =
        |token: &str, segment: u32| json!({ "SpecialToken": { "id": token, "type_id": segment } });
    let text = |id: &str, segment: u32| json!({ "Sequence": { "id": id, "type_id": segment } });
    let (single, pair) = match model_type {
        "bert" => (
            json!([special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]),
            json!([
                special("[CLS]", 0),
                text("A", 0),
                special("[SEP]", 0),
                text("B", 1),
                special("[SEP]", 1)
            ]),
        ),
        "t5" | "bart" => (
            json!([text("A", 0), special("</s>", 0)]),
            json!([text("A", 0), text("B", 0), special("</s>", 0)]),
        ),
        _ => (
            json!([special("<s>", 0), text("A", 0)]),
            json!([special("<s>", 0), text("A", 0), text("B", 0)]),
        ),
    };
    let specials: serde_json::Map<String, Value> = ["[CLS]", "[SEP]", "<s>", "</s>"]
        .iter()
        .map(|token| {
            let id = &vocabulary[*token];
            (
                (*token).to_owned(),
                json!({ "id": token, "ids": [id], "tokens": [token] }),
            )
        })
        .collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials,
        },
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]" },
    })
}

/// Rows whose label follows from one word of their text.
fn rows(seed: u64, count: usize) -> String {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut draw = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let mut lines = String::new();
    for _ in 0..count {
        let telling = draw(10);
        let mut words: Vec<&str> = (0..2 + draw(4)).map(|_| WORDS[10 + draw(10)]).collect();
        words.insert(draw(words.len()), WORDS[telling]);
        let label = if telling < 5 { "positive" } else { "negative" };
        lines += &json!({ "text": words.join(" "), "label": label }).to_string();
        lines.push('\n');
    }
    lines
}
