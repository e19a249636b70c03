//! Adapters that HF PEFT itself saved: those that are supported are read, fit a base of their shape
//! and are written again byte for byte; all others are refused by name.
//!
//! Some are the golden ones of the project. The others, one folder for each method and variant that
//! PEFT has, are in `../shared/data`.
#![expect(clippy::print_stdout, reason = "a test says what it covered")]

mod combined;
mod converted;
mod edited;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::safetensors_file::Header;
use epiphyte_methods::file::{
    AdapterFile, AdapterMetadata, CONFIG_FILE, Provenance, TENSORS_FILE, save,
};
use epiphyte_methods::{METHODS, MethodError};
use epiphyte_models::{Checkpoint, HeadKind, LoadOptions, Model, ModelConfig, load, random_model};
use epiphyte_ops::Precision;
use serde_json::{Value, json};

/// What a folder should come to.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// It loads over this base and is written again as it was.
    Loads(Architecture),
    /// The same, but for copies of the head that PEFT leaks into the file.
    Leaks(Architecture),
    /// Its configuration reads, but it does not fit this base: what the message must name.
    Refused(Architecture, &'static str),
}

/// A base of the folders, as their PROVENANCE.md describes them: model type and key heads.
type Architecture = (&'static str, usize);

const BERT: Architecture = ("bert", 4);
const GPT2: Architecture = ("gpt2", 4);
const LLAMA: Architecture = ("llama", 2);
const T5: Architecture = ("t5", 4);

use Expect::{Leaks, Loads, Refused};

/// Every folder whose `peft_type` is supported, each looked up by hand in its adapter_config.json.
const EXPECTED: &[(&str, Expect)] = &[
    ("bert_adalora", Loads(BERT)),
    ("bert_adalora_pruned", Loads(BERT)),
    ("bert_boft", Loads(BERT)),
    ("bert_dora", Loads(BERT)),
    ("bert_fourier", Loads(BERT)),
    ("bert_hra", Loads(BERT)),
    ("bert_ia3", Loads(BERT)),
    ("bert_loha", Loads(BERT)),
    ("bert_lokr", Loads(BERT)),
    ("bert_lokr_both", Loads(BERT)),
    ("bert_lora", Loads(BERT)),
    ("bert_lora_biasall", Leaks(BERT)),
    ("bert_lora_emb_mts", Loads(BERT)),
    // Saved from a model without head, so the classifier that every task here has is missing.
    (
        "bert_lora_fe",
        Refused(BERT, "missing tensors: `base_model.model.classifier.bias`"),
    ),
    ("bert_poly", Refused(BERT, "`n_tasks` is 2")),
    ("bert_miss", Loads(BERT)),
    ("bert_miss_bat", Loads(BERT)),
    ("bert_miss_mini", Loads(BERT)),
    ("bert_oft", Loads(BERT)),
    ("bert_prefix", Loads(BERT)),
    ("bert_prefixproj", Loads(BERT)),
    ("bert_prompt", Loads(BERT)),
    ("bert_ptuning", Loads(BERT)),
    ("bert_vblora", Loads(BERT)),
    ("bert_vblora_topk", Loads(BERT)),
    ("bert_vera", Loads(BERT)),
    ("bert_vera_nosave", Loads(BERT)),
    ("gpt2_ia3", Loads(GPT2)),
    ("gpt2_ln", Loads(GPT2)),
    ("gpt2_lora", Loads(GPT2)),
    ("gpt2_lora_bias", Loads(GPT2)),
    ("gpt2_lora_emb_lmhead", Loads(GPT2)),
    ("gpt2_lora_notask", Loads(GPT2)),
    ("gpt2_prefix", Loads(GPT2)),
    ("gpt2_prefixproj", Loads(GPT2)),
    ("gpt2_prompt", Loads(GPT2)),
    ("gpt2_ptuning", Loads(GPT2)),
    // Groups follow from the base's weight, and that of the folder is not known.
    ("llama_adamss", Refused(LLAMA, "wrong shapes")),
    ("llama_adaption", Loads(LLAMA)),
    ("llama_beft", Loads(LLAMA)),
    ("llama_cartridge", Loads(LLAMA)),
    ("llama_cpt", Loads(LLAMA)),
    ("llama_deft", Loads(LLAMA)),
    ("llama_frod", Loads(LLAMA)),
    ("llama_glora", Loads(LLAMA)),
    ("llama_gralora", Loads(LLAMA)),
    ("llama_hira", Loads(LLAMA)),
    ("llama_lily", Loads(LLAMA)),
    ("llama_c3a", Loads(LLAMA)),
    ("llama_delora", Loads(LLAMA)),
    ("llama_lora_alllinear", Loads(LLAMA)),
    ("llama_lora_embtarget", Loads(LLAMA)),
    ("llama_lora_mts", Loads(LLAMA)),
    ("llama_lora_tti", Loads(LLAMA)),
    ("llama_lora_two", Loads(LLAMA)),
    ("llama_lora_two/second", Loads(LLAMA)),
    ("llama_osf", Loads(LLAMA)),
    ("llama_peanut", Loads(LLAMA)),
    ("llama_prefix", Loads(LLAMA)),
    ("llama_pvera", Loads(LLAMA)),
    ("llama_prefixproj", Loads(LLAMA)),
    ("llama_prompt", Loads(LLAMA)),
    ("llama_ptuning", Loads(LLAMA)),
    ("llama_supertuning", Loads(LLAMA)),
    ("llama_tinylora", Loads(LLAMA)),
    ("llama_tt", Loads(LLAMA)),
    ("llama_unilora", Loads(LLAMA)),
    ("llama_psoft", Refused(LLAMA, "signs of singular vectors")),
    ("llama_randlora", Loads(LLAMA)),
    ("llama_road", Loads(LLAMA)),
    ("llama_shira", Loads(LLAMA)),
    ("llama_waveft", Loads(LLAMA)),
    (
        "t5_lora",
        Refused(LLAMA, "target modules `v,q` match nothing"),
    ),
    ("t5_prefix", Loads(T5)),
    ("t5_prefixproj", Loads(T5)),
    ("t5_mpt", Loads(T5)),
    ("t5_prompt", Loads(T5)),
    ("t5_ptuning", Loads(T5)),
];

/// Keys of the file that differ by right: the version, what [`AdapterMetadata`] says, the Python
/// class that PEFT names where there is no task, and a setting that PEFT lacks.
const ASIDE: [&str; 4] = [
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "prefix_dropout",
];

/// A file that leaves a setting out means PEFT's default (`make_defaults.py`).
#[test]
fn what_a_file_leaves_out_is_as_in_peft() {
    let golden = include_str!("../../../../tests/parity/golden/peft_defaults.json");
    let golden: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_str(golden).unwrap();
    let mut compared = 0;
    for method in METHODS.iter().filter(|method| method.in_peft) {
        let mut ours = (method.defaults)();
        ours.extend((method.file_defaults)());
        for (key, default) in &golden[method.peft_type] {
            let Some(own) = ours.get(key) else { continue };
            let same = match (own.as_f64(), default.as_f64()) {
                (Some(own), Some(default)) => own == default,
                _ => own == default,
            };
            assert!(
                same,
                "{}: `{key}` is {own}, PEFT has {default}",
                method.name
            );
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[test]
#[ignore = "needs ../shared/data"]
fn every_folder_is_read_as_it_should_be() {
    let folder = folder();
    let expected: BTreeMap<&str, Expect> = EXPECTED.iter().copied().collect();
    let (mut loaded, mut refused, mut unknown) = (0, 0, 0);
    for name in adapters(&folder) {
        let dir = folder.join(&name);
        let json = read_json(&dir);
        let peft_type = json["peft_type"].as_str().expect("PEFT writes its type");
        let mut methods = METHODS.iter().filter(|method| method.in_peft);
        let supported = methods.any(|method| method.peft_type == peft_type);
        match expected.get(name.as_str()) {
            Some(_) if !supported => panic!("{name} is listed, but its type is {peft_type}"),
            None if supported => panic!("{name} ({peft_type}) is not listed"),
            None => {
                assert_unsupported(&dir, "peft_type", &format!("\"{peft_type}\""));
                unknown += 1;
            }
            Some(&Loads(architecture)) => {
                assert_same_when_written_again(&dir, &json, &small_model(architecture, &dir));
                loaded += 1;
            }
            Some(&Leaks(architecture)) => {
                let written = written_again(&dir, &small_model(architecture, &dir));
                let is_leaked = |name: &String| {
                    name.contains(".modules_to_save.") || name.contains(".original_module.")
                };
                let mut expected = names(&dir);
                expected.retain(|name| !is_leaked(name));
                assert_eq!(names(written.path()), expected, "{name}");
                loaded += 1;
            }
            Some(&Refused(architecture, words)) => {
                assert_refused(&dir, &small_model(architecture, &dir), words);
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
        let labels = config.facts().labels.num_labels();
        let heads = [
            HeadKind::Classification { labels },
            HeadKind::TokenClassification { labels },
            HeadKind::QuestionAnswering,
            HeadKind::MultipleChoice,
            HeadKind::LanguageModel,
            HeadKind::MaskedLm,
        ];
        let task = heads
            .into_iter()
            .find(|head| config.is_saved_with(*head))
            .expect("a head of a family");
        let loaded = load(&base, task, &Device::default(), &LoadOptions::default());
        let loaded = loaded.unwrap_or_else(|error| panic!("{error}"));
        assert_same_when_written_again(&dir, &json, &loaded.model);
    }
    assert!(adapters.len() >= 25, "{adapters:?}");
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

fn assert_refused(dir: &Path, model: &Model, words: &str) {
    let file = AdapterFile::open(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
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
    let written = written_again(dir, model);
    assert!(
        tensors(written.path()) == tensors(dir),
        "{name}: the tensors' file differs"
    );
    assert_eq!(
        comparable(&read_json(written.path())),
        comparable(json),
        "{name}"
    );
}

/// The adapter of `dir`, loaded over `model` and saved.
fn written_again(dir: &Path, model: &Model) -> tempfile::TempDir {
    let name = dir.display();
    let file = AdapterFile::open(dir).unwrap_or_else(|error| panic!("{name}: {error}"));
    let module = file
        .load(model.base(), &Device::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    let written = tempfile::tempdir().expect("a temporary directory");
    let metadata = AdapterMetadata {
        base_model: String::new(),
        task_type: file.task_type().unwrap_or_default().to_owned(),
        provenance: Provenance {
            version: String::new(),
            method: file.config().definition().name.to_owned(),
            base_sha256: String::new(),
            base_quantization: None,
            base_config: None,
            tokenizer_sha256: String::new(),
            task: Value::Null,
            account: None,
            training: None,
        },
    };
    save(written.path(), &module, model.base(), &metadata)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    written
}

/// The names of a file's tensors, sorted.
fn names(dir: &Path) -> Vec<String> {
    let file = Checkpoint::open_file(&dir.join(TENSORS_FILE)).expect("a file of tensors");
    let mut names: Vec<String> = file.names().map(str::to_owned).collect();
    names.sort();
    names
}

/// The tensors of a file with their places and bytes, and its metadata without what only ours has.
fn tensors(dir: &Path) -> (Vec<String>, Vec<u8>, BTreeMap<String, String>) {
    let bytes = fs::read(dir.join(TENSORS_FILE)).expect("a file of tensors");
    let mut header = Header::parse(&bytes).expect("a header");
    header.metadata.remove("epiphyte");
    let tensors = header.tensors.iter().map(|tensor| format!("{tensor:?}"));
    let data = bytes[header.data_start..].to_vec();
    (tensors.collect(), data, header.metadata)
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
            // An adapter without a task is written again with an empty one.
            None if key == "task_type" && value.is_null() => json!(""),
            None => value.clone(),
        };
        (key.clone(), value)
    })
    .collect()
}

/// A base of this architecture, with the head of the adapter's task and as many layers as the
/// adapter speaks of; two, if of none.
fn small_model((model_type, key_heads): Architecture, dir: &Path) -> Model {
    let adapter = read_json(dir);
    // The layer in a path such as `model.layers.2.self_attn`.
    let number = |name: &String| {
        let parts: Vec<&str> = name.split('.').collect();
        let mut pairs = parts.windows(2);
        let pair = pairs.find(|pair| ["layer", "layers", "h", "block"].contains(&pair[0]))?;
        pair[1].parse().ok()
    };
    let last: Option<usize> = names(dir).iter().filter_map(number).max();
    let mut config = json!({ "model_type": model_type });
    for (key, size) in [
        ("vocab_size", 99),
        ("hidden_size", 32),
        ("num_hidden_layers", last.map_or(2, |last| last + 1)),
        ("num_attention_heads", 4),
        ("num_key_value_heads", key_heads),
        ("intermediate_size", 64),
        ("max_position_embeddings", 64),
        // T5's names.
        ("d_model", 32),
        ("d_kv", 8),
        ("d_ff", 64),
        ("num_layers", 2),
        ("num_heads", 4),
    ] {
        config[key] = size.into();
    }
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
    let config = config.expect("a small configuration");
    let classes = HeadKind::Classification { labels: 3 };
    let head = match adapter["task_type"].as_str() {
        Some("SEQ_CLS") => classes,
        Some("TOKEN_CLS") => HeadKind::TokenClassification { labels: 3 },
        Some("QUESTION_ANS") => HeadKind::QuestionAnswering,
        _ => config
            .family()
            .class_name(HeadKind::LanguageModel)
            .map_or(classes, |_| HeadKind::LanguageModel),
    };
    random_model(&config, head, &Device::default(), Precision::F32, 0).expect("a small model")
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
