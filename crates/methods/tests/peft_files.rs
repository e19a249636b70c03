//! Adapters that HF PEFT itself saved: those that are supported are read, fit a base of their shape and
//! are written again byte for byte; all others are refused by name.
//!
//! Some are the golden ones of the project. The others, one folder for each method and variant that PEFT
//! has, are in `../shared/data`.
#![expect(clippy::print_stdout, reason = "a test says what it covered")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_methods::MethodError;
use epiphyte_methods::file::{About, AdapterFile, CONFIG_FILE, Provenance, TENSORS_FILE, save};
use epiphyte_models::{HeadKind, LoadOptions, Model, ModelConfig, load, random_model};
use epiphyte_ops::Precision;
use serde_json::{Value, json};

/// What a folder should come to.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// It loads over this base and is written again as it was.
    Loads(Architecture),
    /// Its configuration asks for something that is not supported: key and value.
    Unsupported(&'static str, &'static str),
    /// Its configuration reads, but it does not fit this base: what the message must name.
    Refused(Architecture, &'static str),
}

/// The bases of the folders, as their PROVENANCE.md describes them.
#[derive(Clone, Copy, Debug)]
enum Architecture {
    /// A classifier with three classes.
    Bert,
    /// A language model with two key heads.
    Llama,
    /// The shape of the folders' GPT-2, of which a prefix or a prompt sees nothing else: four key heads.
    FourKeyHeads,
}

use Architecture::{Bert, FourKeyHeads, Llama};
use Expect::{Loads, Refused, Unsupported};

/// Every folder whose `peft_type` is supported, each looked up by hand in its adapter_config.json.
const EXPECTED: [(&str, Expect); 30] = [
    ("bert_dora", Unsupported("use_dora", "true")),
    ("bert_ia3", Loads(Bert)),
    ("bert_lora", Loads(Bert)),
    ("bert_lora_biasall", Unsupported("bias", "\"all\"")),
    ("bert_lora_emb_mts", Unsupported("bias", "\"lora_only\"")),
    // Saved from a model without head, so the classifier that every task here has is missing.
    (
        "bert_lora_fe",
        Refused(Bert, "missing tensors: `base_model.model.classifier.bias`"),
    ),
    ("bert_prefix", Loads(Bert)),
    ("bert_prefixproj", Loads(Bert)),
    ("bert_prompt", Loads(Bert)),
    ("gpt2_ia3", Unsupported("fan_in_fan_out", "true")),
    ("gpt2_lora", Unsupported("fan_in_fan_out", "true")),
    ("gpt2_lora_bias", Unsupported("fan_in_fan_out", "true")),
    (
        "gpt2_lora_emb_lmhead",
        Refused(
            FourKeyHeads,
            "`target_modules` is `lm_head,wte`, but `lm_head`",
        ),
    ),
    ("gpt2_lora_notask", Unsupported("fan_in_fan_out", "true")),
    ("gpt2_prefix", Loads(FourKeyHeads)),
    ("gpt2_prefixproj", Loads(FourKeyHeads)),
    ("gpt2_prompt", Loads(FourKeyHeads)),
    ("llama_lora_alllinear", Loads(Llama)),
    (
        "llama_lora_embtarget",
        Refused(
            Llama,
            "`target_modules` is `embed_tokens,q_proj`, but `model.embed_tokens`",
        ),
    ),
    (
        "llama_lora_mts",
        Unsupported("modules_to_save", "\"embed_tokens\""),
    ),
    (
        "llama_lora_tti",
        Unsupported("trainable_token_indices", "[1,2]"),
    ),
    ("llama_lora_two", Loads(Llama)),
    ("llama_lora_two/second", Loads(Llama)),
    ("llama_prefix", Loads(Llama)),
    ("llama_prefixproj", Loads(Llama)),
    ("llama_prompt", Loads(Llama)),
    (
        "t5_lora",
        Refused(Llama, "target modules `v,q` match nothing"),
    ),
    (
        "t5_prefix",
        Refused(FourKeyHeads, "`num_transformer_submodules` is 2"),
    ),
    (
        "t5_prefixproj",
        Refused(FourKeyHeads, "`num_transformer_submodules` is 2"),
    ),
    (
        "t5_prompt",
        Refused(FourKeyHeads, "`num_transformer_submodules` is 2"),
    ),
];

/// Keys of the file that differ by right: ours, the version, and what [`About`] says.
const ASIDE: [&str; 4] = [
    "epiphyte",
    "peft_version",
    "base_model_name_or_path",
    "prefix_dropout",
];

#[test]
#[ignore = "needs ../shared/data"]
fn every_folder_is_read_as_it_should_be() {
    let folder = folder();
    let expected: BTreeMap<&str, Expect> = EXPECTED.into_iter().collect();
    let (mut loaded, mut refused, mut unknown) = (0, 0, 0);
    for name in adapters(&folder) {
        let dir = folder.join(&name);
        let json = read_json(&dir);
        let peft_type = json["peft_type"].as_str().expect("PEFT writes its type");
        let supported = ["LORA", "IA3", "PROMPT_TUNING", "PREFIX_TUNING"].contains(&peft_type);
        match expected.get(name.as_str()) {
            Some(_) if !supported => panic!("{name} is listed, but its type is {peft_type}"),
            None if supported => panic!("{name} ({peft_type}) is not listed"),
            None => {
                assert_unsupported(&dir, "peft_type", &format!("\"{peft_type}\""));
                unknown += 1;
            }
            Some(&Loads(architecture)) => {
                assert_same_when_written_again(&dir, &json, &architecture.model());
                loaded += 1;
            }
            Some(&Unsupported(key, value)) => {
                assert_unsupported(&dir, key, value);
                refused += 1;
            }
            Some(&Refused(architecture, words)) => {
                assert_refused(&dir, architecture, words);
                refused += 1;
            }
        }
    }
    assert_eq!(
        loaded + refused,
        expected.len(),
        "a listed folder is not there"
    );
    println!(
        "{loaded} folders loaded, {refused} refused for a setting or base, {unknown} for their method"
    );
}

#[test]
fn golden_adapters_are_written_again_as_they_were() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden");
    let adapters = adapters(&golden);
    for name in &adapters {
        let dir = golden.join(name);
        let json = read_json(&dir);
        let base = dir.with_file_name("base");
        let config = ModelConfig::open(&base).unwrap_or_else(|error| panic!("{error}"));
        let task = match json["task_type"].as_str() {
            Some("CAUSAL_LM") => HeadKind::LanguageModel,
            _ => HeadKind::Classification {
                labels: config.facts().labels.num_labels(),
            },
        };
        let loaded = load(&base, task, &Device::default(), &LoadOptions::default());
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_same_when_written_again(&dir, &json, &loaded.model);
    }
    assert_eq!(adapters.len(), 25);
}

fn assert_unsupported(dir: &Path, key: &str, value: &str) {
    let error = AdapterFile::open(dir).expect_err(&dir.display().to_string());
    let MethodError::Unsupported {
        key: found,
        value: said,
        ..
    } = &error
    else {
        panic!("{}: {error}", dir.display());
    };
    assert_eq!(
        (found.as_str(), said.as_str()),
        (key, value),
        "{}",
        dir.display()
    );
}

fn assert_refused(dir: &Path, architecture: Architecture, words: &str) {
    let file = AdapterFile::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let model = architecture.model();
    let error = file
        .load(model.base(), &Device::default())
        .expect_err(&dir.display().to_string());
    assert!(
        error.to_string().contains(words),
        "{}: {error}",
        dir.display()
    );
}

fn assert_same_when_written_again(dir: &Path, json: &Value, model: &Model) {
    let name = dir.display();
    let file = AdapterFile::open(dir).unwrap_or_else(|error| panic!("{name}: {error}"));
    let tuned = file
        .load(model.base(), &Device::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let written = tempfile::tempdir().expect("a temporary directory");
    let about = About {
        base_model: String::new(),
        task_type: file
            .task_type()
            .expect("the loaded ones have a task")
            .to_owned(),
        provenance: Provenance {
            version: String::new(),
            method: file.config().definition().name.to_owned(),
            base_sha256: String::new(),
            tokenizer_sha256: String::new(),
            task: Value::Null,
            account: None,
        },
    };
    save(written.path(), &tuned, model.base(), &about)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let bytes = |dir: &Path| fs::read(dir.join(TENSORS_FILE)).expect("a file of tensors");
    assert!(
        bytes(written.path()) == bytes(dir),
        "{name}: the tensors' file differs"
    );
    assert_eq!(
        comparable(&read_json(written.path())),
        comparable(json),
        "{name}"
    );
}

/// The configuration without what differs by right, its lists as sets.
fn comparable(json: &Value) -> BTreeMap<String, Value> {
    let keys = json
        .as_object()
        .expect("a configuration is an object")
        .iter();
    let kept = keys.filter(|(key, _)| !ASIDE.contains(&key.as_str()));
    kept.map(|(key, value)| {
        let value = match value.as_array() {
            Some(items) => json!(items.iter().map(Value::to_string).collect::<BTreeSet<_>>()),
            None => value.clone(),
        };
        (key.clone(), value)
    })
    .collect()
}

impl Architecture {
    fn model(self) -> Model {
        let (config, task) = match self {
            Bert => (
                json!({ "model_type": "bert" }),
                HeadKind::Classification { labels: 3 },
            ),
            Llama | FourKeyHeads => {
                let heads = if matches!(self, Llama) { 2 } else { 4 };
                let config = json!({ "model_type": "llama", "num_key_value_heads": heads });
                (config, HeadKind::LanguageModel)
            }
        };
        let mut config = config;
        for (key, size) in [
            ("vocab_size", 99),
            ("hidden_size", 32),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 4),
            ("intermediate_size", 64),
            ("max_position_embeddings", 64),
        ] {
            config[key] = size.into();
        }
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        let config = config.expect("a small configuration");
        random_model(&config, task, &Device::default(), Precision::F32, 0).expect("a small model")
    }
}

/// Where the folders are.
fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/checkpoints/peft_saved")
}

/// Every folder with an adapter, those inside of others as `outer/inner`, sorted.
fn adapters(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(dir) = open.pop() {
        if dir.join(CONFIG_FILE).is_file() {
            found.push(
                dir.strip_prefix(folder)
                    .expect("below the folder")
                    .display()
                    .to_string(),
            );
        }
        let entries = fs::read_dir(&dir).expect("a folder that can be read");
        let paths = entries.map(|entry| entry.expect("an entry that can be read").path());
        open.extend(paths.filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

fn read_json(dir: &Path) -> Value {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).expect("a configuration");
    serde_json::from_str(&text).expect("JSON")
}
