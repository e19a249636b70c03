//! Adapters whose files were changed: what PEFT allows is read, what does not belong together or
//! has no meaning is refused by name.

use std::fs;
use std::path::Path;

use burn::tensor::{Device, Tensor};
use epiphyte_io::safetensors_file::{Header, Values, prepare_values, write_values};
use epiphyte_methods::file::{
    AdapterFile, AdapterMetadata, CONFIG_FILE, Provenance, TENSORS_FILE, save,
};
use epiphyte_methods::{AdapterModule, MethodError, by_name};
use epiphyte_models::{Adapter, Checkpoint, HeadKind, Identity, LoadOptions, Model, Tokens, load};
use epiphyte_ops::Sequences;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

/// A golden adapter of PEFT's in a directory of its own, over its base.
struct Golden {
    dir: TempDir,
    model: Model,
}

impl Golden {
    fn new(family: &str, adapter: &str) -> Self {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden");
        let (base, adapter) = (
            golden.join(family).join("base"),
            golden.join(family).join(adapter),
        );
        let dir = tempfile::tempdir().unwrap();
        for name in [CONFIG_FILE, TENSORS_FILE] {
            fs::copy(adapter.join(name), dir.path().join(name)).unwrap();
        }
        let head = match json_of(dir.path())["task_type"].as_str() {
            Some("SEQ_CLS") => HeadKind::Classification { labels: 3 },
            _ => HeadKind::LanguageModel,
        };
        let loaded = load(&base, head, &Device::flex(), &LoadOptions::default()).unwrap();
        let model = loaded.model;
        Self { dir, model }
    }

    /// With other values for keys of its configuration.
    fn with(self, keys: Value) -> Self {
        let mut config = json_of(self.dir.path());
        config.extend(keys.as_object().unwrap().clone());
        let text = serde_json::to_string(&config).unwrap();
        fs::write(self.dir.path().join(CONFIG_FILE), text).unwrap();
        self
    }

    /// With more tensors in its file.
    fn and(self, tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Self {
        self.rewritten(&[], tensors)
    }

    /// Without the tensors whose names contain one of these.
    fn without(self, parts: &[&str]) -> Self {
        self.rewritten(parts, &[])
    }

    fn rewritten(self, without: &[&str], tensors: &[(&str, Vec<usize>, Vec<f32>)]) -> Self {
        let path = self.dir.path().join(TENSORS_FILE);
        let old = Checkpoint::open_file(&path).unwrap();
        let names = old.names();
        let names = names.filter(|name| !without.iter().any(|part| name.contains(part)));
        let old = names.map(|name| {
            let view = old.tensor(name).unwrap();
            (name.to_owned(), view.shape.to_vec(), view.to_f32().unwrap())
        });
        let new = tensors
            .iter()
            .map(|(name, shape, values)| ((*name).to_owned(), shape.clone(), values.clone()));
        let all: Vec<_> = old.chain(new).collect();
        let all = all
            .into_iter()
            .map(|(name, shape, values)| (name, shape, Values::F32(Box::new(|| values))));
        write_values(&path, all).unwrap();
        self
    }

    fn load(&self) -> Result<AdapterModule, MethodError> {
        AdapterFile::open(self.dir.path())?.load(self.model.base(), &Device::flex())
    }

    fn output(&self, adapter: &dyn Adapter) -> Vec<f32> {
        let ids = [1, 2, 5, 3];
        let tokens = Tokens::new(&ids, &[0; 4], Sequences::new(vec![0, 4]));
        let logits = self.model.logits(&tokens, adapter);
        logits.try_into_vec_as::<f32>().unwrap()
    }

    fn problem(&self) -> String {
        self.load().unwrap_err().to_string()
    }
}

fn json_of(dir: &Path) -> Map<String, Value> {
    let text = fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_only_the_start_of_training_obeys_is_passed_over() {
    let plain = Golden::new("bert", "lora");
    let expected = plain.output(&plain.load().unwrap());
    for keys in [
        json!({ "init_lora_weights": false }),
        json!({ "init_lora_weights": "orthogonal" }),
        json!({ "init_lora_weights": "eva", "eva_config": { "rho": 2.0 } }),
        json!({ "lora_dropout": 1.0 }),
        json!({ "fan_in_fan_out": true }),
        json!({ "target_modules": ["query", "value", "q_proj"] }),
        json!({ "exclude_modules": ["lm_head"] }),
        json!({ "layers_to_transform": [0, 1, 7] }),
        json!({ "layers_to_transform": [0, 1], "layers_pattern": "layer" }),
        json!({ "layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layer"] }),
        json!({ "target_modules": "^(?!.*pooler).*(query|value)$" }),
        json!({ "rank_pattern": { "no_such_module": 3 } }),
    ] {
        let adapter = Golden::new("bert", "lora").with(keys.clone());
        let module = adapter
            .load()
            .unwrap_or_else(|error| panic!("{keys}: {error}"));
        assert_eq!(adapter.output(&module), expected, "{keys}");
    }
}

/// As HF PEFT's trainable tokens: it trains no head with them, so a classifier has the base's.
#[test]
fn a_file_that_names_no_head_leaves_that_of_the_base() {
    let nameless = || {
        let adapter = Golden::new("bert", "lora").without(&["classifier"]);
        adapter.with(json!({ "modules_to_save": null }))
    };
    let adapter = nameless();
    let module = adapter.load().unwrap();
    assert_eq!(module.head_parameters().count(), 0);
    let head = ["classifier.bias", "classifier.weight"].map(|name| {
        let tensor = adapter.model.base().tensor(name).unwrap();
        let shape = match name {
            "classifier.bias" => vec![3],
            _ => vec![3, tensor.count() / 3],
        };
        (format!("base_model.model.{name}"), shape, tensor.to_vec())
    });
    let head = head.each_ref();
    let named = nameless().and(&head.map(|(name, shape, it)| (&**name, shape.clone(), it.clone())));
    let expected = named.output(&named.load().unwrap());
    assert_eq!(adapter.output(&module), expected);
    let again = tempfile::tempdir().unwrap();
    save(
        again.path(),
        &module,
        adapter.model.base(),
        &metadata("lora"),
    )
    .unwrap();
    assert!(json_of(again.path())["modules_to_save"].is_null());
    // One that it names must be there.
    let absent = Golden::new("bert", "lora").without(&["classifier"]);
    assert!(absent.problem().contains("classifier.bias"));
}

#[test]
fn one_layer_is_a_list_of_one() {
    let adapter = Golden::new("bert", "lora").with(json!({ "layers_to_transform": 1 }));
    let problem = adapter.problem();
    assert!(problem.contains("unexpected tensors"), "{problem}");
    assert!(
        problem.contains("layer.0.") && !problem.contains("layer.1."),
        "{problem}"
    );
    assert!(!problem.ends_with(';'), "{problem}");
}

#[test]
fn wrong_values_name_the_file_and_the_key_in_plain_words() {
    for (keys, words) in [
        (json!({ "r": "8" }), "`r`: \"8\" is not a whole number"),
        (json!({ "r": 8.5 }), "`r`: 8.5 is not a whole number"),
        (
            json!({ "lora_alpha": "x" }),
            "`lora_alpha`: \"x\" is not a number",
        ),
        (
            json!({ "use_rslora": 1 }),
            "`use_rslora`: 1 is not true or false",
        ),
        (
            json!({ "layers_to_transform": "all" }),
            "`layers_to_transform`: \"all\" is not a list of whole numbers",
        ),
        (
            json!({ "target_modules": 3 }),
            "`target_modules`: 3 is not a list of texts",
        ),
        (
            json!({ "init_lora_weights": "loftq" }),
            "quantizes the base by itself",
        ),
        (
            json!({ "layer_replication": [[0, 2], [1, 2]] }),
            "it adds copies of layers to the base",
        ),
        (json!({ "r": 0 }), "`r` is 0, but it must be at least 1"),
        (
            json!({ "rank_pattern": [1] }),
            "`rank_pattern`: [1] is not a table of numbers",
        ),
    ] {
        let problem = Golden::new("bert", "lora").with(keys.clone()).problem();
        assert!(problem.contains(CONFIG_FILE), "{keys}: {problem}");
        assert!(problem.contains(words), "{keys}: {problem}");
    }
}

/// Embeddings, a head and biases that PEFT saved whole stand in for the base's.
#[test]
fn whole_tensors_stand_in_for_the_bases() {
    let plain = Golden::new("bert", "lora");
    let table = plain.model.base().word_embedding_table().shape();
    let [rows, width] = table;
    let words = vec![0.25; rows * width];
    let bias = vec![0.5; 32];
    let adapter = Golden::new("bert", "lora")
        .with(json!({
            "modules_to_save": ["word_embeddings", "classifier"], "bias": "lora_only",
            "target_modules": r".*layer\.0\.attention\.self\.query",
        }))
        .without(&["layer.1.", "value"])
        .and(&[
            (
                "base_model.model.bert.embeddings.word_embeddings.weight",
                vec![rows, width],
                words.clone(),
            ),
            (
                "base_model.model.bert.encoder.layer.0.attention.self.query.base_layer.bias",
                vec![32],
                bias.clone(),
            ),
        ]);
    let module = adapter.load().unwrap();
    let names = [
        "bert.embeddings.word_embeddings.weight",
        "bert.encoder.layer.0.attention.self.query.bias",
    ];
    let base = adapter.model.base();
    for (name, values) in names.iter().zip([words, bias]) {
        let merged = module.merged(name, base).unwrap().unwrap();
        assert_eq!(merged.try_into_vec_as::<f32>().unwrap(), values, "{name}");
    }
    assert_ne!(
        adapter.output(&module),
        plain.output(&plain.load().unwrap())
    );
    let absent = Golden::new("bert", "lora").with(json!({ "modules_to_save": ["LayerNorm"] }));
    let problem = absent.problem();
    assert!(
        problem.contains("missing tensors: `LayerNorm (modules_to_save)`"),
        "{problem}"
    );
}

#[test]
fn trained_tokens_replace_rows_of_the_table() {
    let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let plain = Golden::new("llama", "lora");
    let [_, width] = plain.model.base().word_embedding_table().shape();
    for indices in [json!([5, 2]), json!({ "embed_tokens": [5, 2] })] {
        let adapter = Golden::new("llama", "lora")
            .with(json!({ "trainable_token_indices": indices }))
            .and(&[(name, vec![2, width], vec![0.5; 2 * width])]);
        let module = adapter.load().unwrap();
        let merged = module.merged("model.embed_tokens.weight", adapter.model.base());
        let merged: Tensor<1> = merged.unwrap().unwrap();
        let merged = merged.try_into_vec_as::<f32>().unwrap();
        let row = |row: usize| &merged[row * width..(row + 1) * width];
        assert!(row(5).iter().chain(row(2)).all(|value| *value == 0.5));
        assert!(row(4).iter().any(|value| *value != 0.5));
    }
    let beyond = Golden::new("llama", "lora")
        .with(json!({ "trainable_token_indices": [9_999_999] }))
        .and(&[(name, vec![1, width], vec![0.5; width])]);
    assert!(
        beyond
            .problem()
            .contains("`trainable_token_indices` has 9999999")
    );
    let without = Golden::new("llama", "lora").with(json!({ "trainable_token_indices": [1] }));
    assert!(without.problem().contains("trainable_token_indices"));
}

#[test]
fn a_vocabulary_that_grew_is_said_with_both_sizes() {
    let name = "base_model.model.model.embed_tokens.weight";
    let plain = Golden::new("llama", "lora");
    let [rows, width] = plain.model.base().word_embedding_table().shape();
    let grown = rows + 2;
    let adapter =
        Golden::new("llama", "lora").and(&[(name, vec![grown, width], vec![0.5; grown * width])]);
    let problem = adapter.problem();
    for words in [
        format!("has {grown} rows"),
        format!("has {rows}:"),
        format!("resize_token_embeddings({grown})"),
    ] {
        assert!(problem.contains(&words), "{problem}");
    }
}

#[test]
fn a_tied_head_is_a_copy_or_refused() {
    let name = "base_model.model.lm_head.weight";
    let plain = Golden::new("llama_tied", "lora");
    let table = plain.model.base().word_embedding_table().shape();
    let words = plain.model.base().tensor("model.embed_tokens.weight");
    let words = words.unwrap().to_vec();
    let copy = Golden::new("llama_tied", "lora").and(&[(name, table.to_vec(), words.clone())]);
    copy.load().unwrap();
    let other: Vec<f32> = words.iter().map(|value| value + 1.0).collect();
    let other = Golden::new("llama_tied", "lora").and(&[(name, table.to_vec(), other)]);
    assert!(other.problem().contains("the base ties the two"));
}

#[test]
fn values_that_are_no_numbers_are_refused_by_name() {
    let adapter = Golden::new("bert", "lora").and(&[(
        "base_model.model.bert.pooler.dense.bias",
        vec![32],
        vec![f32::NAN; 32],
    )]);
    let problem = adapter.problem();
    assert!(
        problem.contains("`base_model.model.bert.pooler.dense.bias`"),
        "{problem}"
    );
}

#[test]
fn an_adapter_without_safetensors_is_told_how_to_be_converted() {
    let adapter = Golden::new("bert", "lora");
    let at = |name: &str| adapter.dir.path().join(name);
    fs::rename(at(TENSORS_FILE), at("adapter_model.bin")).unwrap();
    let problem = adapter.problem();
    assert!(
        problem.contains("adapter_model.bin") && problem.contains("PeftModel.from_pretrained"),
        "{problem}"
    );
    fs::remove_file(at("adapter_model.bin")).unwrap();
    assert!(
        adapter
            .problem()
            .contains("the adapter's tensors are missing")
    );
}

fn metadata(method: &str) -> AdapterMetadata {
    AdapterMetadata {
        base_model: "base".to_owned(),
        task_type: "SEQ_CLS".to_owned(),
        provenance: Provenance {
            version: "0".to_owned(),
            method: method.to_owned(),
            base_sha256: String::new(),
            base_quantization: None,
            base_config: None,
            tokenizer_sha256: String::new(),
            task: Value::Null,
            account: None,
            training: None,
        },
    }
}

/// Two adapters as this library writes them, of other ranks, each in its directory.
fn own() -> (Model, [TempDir; 2]) {
    let golden = Golden::new("bert", "lora");
    let dirs = [2, 4].map(|rank| {
        let settings = Map::from_iter([("r".to_owned(), json!(rank))]);
        let config = by_name("lora").unwrap().configure(settings).unwrap();
        let base = golden.model.base();
        let module = AdapterModule::new(config, base, &Device::flex(), 0).unwrap();
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), &module, base, &metadata("lora")).unwrap();
        dir
    });
    (golden.model, dirs)
}

#[test]
fn two_files_of_different_adapters_are_refused() {
    let (model, [first, second]) = own();
    let config = json_of(first.path());
    assert!(
        !config.contains_key("epiphyte"),
        "PEFT warns of keys that it does not know"
    );
    for name in [CONFIG_FILE, TENSORS_FILE] {
        let mixed = tempfile::tempdir().unwrap();
        for file in [CONFIG_FILE, TENSORS_FILE] {
            let from = if file == name { &second } else { &first };
            fs::copy(from.path().join(file), mixed.path().join(file)).unwrap();
        }
        let error = AdapterFile::open(mixed.path()).unwrap_err();
        assert!(
            matches!(error, MethodError::NotOneAdapter { .. }),
            "{error}"
        );
        let problem = error.to_string();
        assert!(
            problem.contains(CONFIG_FILE) && problem.contains("--allow-edited-adapter"),
            "{problem}"
        );
    }
    let whole = AdapterFile::open(first.path()).unwrap();
    whole.load(model.base(), &Device::flex()).unwrap();
}

#[test]
fn edits_are_noticed_and_can_be_allowed() {
    let (model, [dir, _]) = own();
    let path = dir.path().join(CONFIG_FILE);
    let mut config = json_of(dir.path());
    let write = |config: &Map<String, Value>| {
        fs::write(&path, serde_json::to_string(config).unwrap()).unwrap();
    };
    // Where the base lies is free, and so is the order of the keys.
    config.insert("base_model_name_or_path".to_owned(), json!("moved"));
    config.sort_keys();
    write(&config);
    AdapterFile::open(dir.path()).unwrap();

    config.insert("lora_alpha".to_owned(), json!(64));
    write(&config);
    let error = AdapterFile::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, MethodError::NotOneAdapter { .. }),
        "{error}"
    );
    let edited = AdapterFile::open_edited(dir.path()).unwrap();
    assert_eq!(edited.config().settings()["lora_alpha"], json!(64));
    edited.load(model.base(), &Device::flex()).unwrap();
}

#[test]
fn damaged_tensors_are_noticed() {
    let (model, [dir, _]) = own();
    let path = dir.path().join(TENSORS_FILE);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, bytes).unwrap();
    let file = AdapterFile::open(dir.path()).unwrap();
    let error = file.load(model.base(), &Device::flex()).unwrap_err();
    assert!(
        matches!(error, MethodError::NotOneAdapter { .. }),
        "{error}"
    );
    assert!(error.to_string().contains(TENSORS_FILE), "{error}");
}

/// Files of earlier versions have the record in the configuration, and no hashes.
#[test]
fn adapters_of_earlier_versions_are_read() {
    let (model, [dir, _]) = own();
    let path = dir.path().join(TENSORS_FILE);
    let bytes = fs::read(&path).unwrap();
    let record = Header::parse(&bytes).unwrap().metadata["epiphyte"].clone();
    let mut record: Map<String, Value> = serde_json::from_str(&record).unwrap();
    record.retain(|key, _| !key.starts_with("settings_") && !key.starts_with("tensors_"));
    let checkpoint = Checkpoint::open_file(&path).unwrap();
    let tensors = checkpoint.names().map(|name| {
        let view = checkpoint.tensor(name).unwrap();
        let values = view.to_f32().unwrap();
        (name, view.shape.to_vec(), Values::F32(Box::new(|| values)))
    });
    let pending = prepare_values(&path, tensors, &[]).unwrap();
    pending.put_in_place().unwrap();
    let mut config = json_of(dir.path());
    config.insert("epiphyte".to_owned(), Value::Object(record));
    fs::write(
        dir.path().join(CONFIG_FILE),
        serde_json::to_string(&config).unwrap(),
    )
    .unwrap();

    let file = AdapterFile::open(dir.path()).unwrap();
    assert_eq!(file.provenance().unwrap().method, "lora");
    file.load(model.base(), &Device::flex()).unwrap();
    let plain = Golden { dir, model };
    assert_ne!(plain.output(&Identity).len(), 0);
}
