//! Checkpoints as users have them: with another task's head, without a pooler, with tied weights
//! under one name, damaged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use burn::tensor::Device;
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_models::{
    Checkpoint, HeadKind, Identity, LoadOptions, Loaded, Model, ModelConfig, ModelError, Tokens,
    head_outputs, load, random_model,
};
use epiphyte_ops::{Precision, Sequences};
use serde_json::{Value, json};
use tempfile::TempDir;

const TWO: HeadKind = HeadKind::Classification { labels: 2 };
const THREE: HeadKind = HeadKind::Classification { labels: 3 };

fn bert() -> Value {
    json!({
        "model_type": "bert", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "max_position_embeddings": 16,
        "initializer_range": 0.5,
    })
}

fn roberta() -> Value {
    let mut config = bert();
    config["model_type"] = json!("roberta");
    config["pad_token_id"] = json!(1);
    config
}

fn llama() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 12, "initializer_range": 0.5,
        "tie_word_embeddings": true,
    })
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The values of a tensor of a loaded base.
fn values(loaded: &Loaded, name: &str) -> Vec<f32> {
    loaded.model.base().tensor(name).unwrap().to_vec()
}

/// The tensors of a random model.
fn tensors(config: &Value, head: HeadKind) -> Tensors {
    let model = random(config, head);
    let tensors = model.base().tensors().iter();
    let tensors = tensors.map(|(name, it)| (name.clone(), (it.shape(), it.to_vec())));
    tensors.collect()
}

fn random(config: &Value, head: HeadKind) -> Model {
    let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
    random_model(&config.unwrap(), head, &Device::flex(), Precision::F32, 3).unwrap()
}

fn directory(config: &Value, tensors: &Tensors) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let tensors = tensors.iter();
    let tensors = tensors.map(|(name, (shape, values))| (name, shape.clone(), || values.clone()));
    write_f32(&dir.path().join("model.safetensors"), tensors).unwrap();
    dir
}

fn open(dir: &TempDir, head: HeadKind) -> Result<Loaded, ModelError> {
    load(dir.path(), head, &Device::flex(), &LoadOptions::default())
}

fn logits(model: &Model, ids: &[u32]) -> Vec<f32> {
    let type_ids = vec![0; ids.len()];
    let tokens = Tokens::new(ids, &type_ids, Sequences::new(vec![0, ids.len()]));
    let logits = model.logits(&tokens, &Identity);
    logits.try_into_vec_as::<f32>().unwrap()
}

#[test]
fn a_head_for_other_classes_is_replaced_with_a_note() {
    let all = tensors(&bert(), TWO);
    let dir = directory(&bert(), &all);
    let same = open(&dir, TWO).unwrap();
    assert!(same.has_head && same.notes.is_empty(), "{:?}", same.notes);
    let other = open(&dir, THREE).unwrap();
    assert!(!other.has_head);
    assert!(
        other.notes[0].contains("`classifier.weight`"),
        "{:?}",
        other.notes
    );
    let pooler = |it: &Loaded| values(it, "bert.pooler.dense.weight");
    assert_eq!(pooler(&other), pooler(&same));

    // As many outputs, but other classes.
    let options = LoadOptions {
        new_head: true,
        ..LoadOptions::default()
    };
    let new = load(dir.path(), TWO, &Device::flex(), &options).unwrap();
    let head = |it: &Loaded| values(it, "classifier.weight");
    assert!(!new.has_head && head(&new) != head(&same));

    // RoBERTa's dense layer is for any number of classes.
    let dir = directory(&roberta(), &tensors(&roberta(), TWO));
    let dense = |it: &Loaded| values(it, "classifier.dense.weight");
    let (two, three) = (open(&dir, TWO).unwrap(), open(&dir, THREE).unwrap());
    assert_eq!(dense(&two), dense(&three));
    assert!(two.has_head && !three.has_head);
}

#[test]
fn heads_of_other_tasks_are_left_out_with_a_note() {
    let mut all = tensors(&bert(), TWO);
    all.retain(|name, _| !name.starts_with("classifier."));
    all.insert("qa_outputs.weight".to_owned(), (vec![2, 8], vec![1.0; 16]));
    let loaded = open(&directory(&bert(), &all), TWO).unwrap();
    assert!(!loaded.has_head);
    assert!(
        loaded.notes[0].contains("`qa_outputs.weight`"),
        "{:?}",
        loaded.notes
    );

    // A head for tokens has the names and the shape of one for sequences.
    let mut config = bert();
    config["architectures"] = json!(["BertForTokenClassification"]);
    let loaded = open(&directory(&config, &tensors(&bert(), TWO)), TWO).unwrap();
    assert!(!loaded.has_head && !loaded.notes.is_empty());

    let mut all = tensors(&llama(), TWO);
    all.insert("score.bias".to_owned(), (vec![2], vec![1.0; 2]));
    let loaded = open(&directory(&llama(), &all), TWO).unwrap();
    assert!(loaded.has_head);
    assert!(
        loaded.notes[0].contains("`score.bias`"),
        "{:?}",
        loaded.notes
    );
}

#[test]
fn what_is_of_the_base_is_not_left_out() {
    for name in [
        "bert.encoder.layer.1.output.dense.bias",
        "encoder.layer.1.x",
        "bert.x",
    ] {
        let mut all = tensors(&bert(), TWO);
        all.insert(name.to_owned(), (vec![8], vec![1.0; 8]));
        let error = open(&directory(&bert(), &all), TWO).unwrap_err();
        assert!(error.to_string().contains(name), "{error}");
    }
    let mut all = tensors(&bert(), TWO);
    all.remove("bert.encoder.layer.0.output.dense.bias");
    let error = open(&directory(&bert(), &all), TWO).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_missing_pooler_starts_from_the_seed_and_belongs_to_the_head() {
    let mut all = tensors(&bert(), TWO);
    all.retain(|name, _| !name.starts_with("bert.pooler.") && !name.starts_with("classifier."));
    let dir = directory(&bert(), &all);
    let loaded = open(&dir, TWO).unwrap();
    assert!(
        loaded.notes[0].contains("`bert.pooler`"),
        "{:?}",
        loaded.notes
    );
    let base = loaded.model.base();
    assert!(base.is_of_head("bert.pooler.dense.bias") && base.is_of_head("classifier.bias"));
    assert!(!base.is_of_head("bert.encoder.layer.0.output.dense.bias"));
    let pooler = |it: &Loaded| values(it, "bert.pooler.dense.weight");
    assert_eq!(pooler(&loaded), pooler(&open(&dir, TWO).unwrap()));
    let options = LoadOptions {
        seed: 1,
        ..LoadOptions::default()
    };
    let other = load(dir.path(), TWO, &Device::flex(), &options).unwrap();
    assert_ne!(pooler(&loaded), pooler(&other));
    // A pooler that is there is the base's.
    let whole = open(&directory(&bert(), &tensors(&bert(), TWO)), TWO).unwrap();
    assert!(!whole.model.base().is_of_head("bert.pooler.dense.bias"));
}

#[test]
fn tied_weights_are_found_under_either_name() {
    let gpt2 = json!({
        "model_type": "gpt2", "vocab_size": 20, "n_embd": 8, "n_layer": 1, "n_head": 2,
        "n_positions": 16, "initializer_range": 0.5,
    });
    let t5 = json!({
        "model_type": "t5", "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12,
        "num_layers": 1, "num_heads": 2,
    });
    for (config, words, others) in [
        (
            llama(),
            "model.embed_tokens.weight",
            &["lm_head.weight"][..],
        ),
        (gpt2, "transformer.wte.weight", &["lm_head.weight"]),
        (
            t5,
            "shared.weight",
            &[
                "decoder.embed_tokens.weight",
                "encoder.embed_tokens.weight",
                "lm_head.weight",
            ],
        ),
    ] {
        let all = tensors(&config, HeadKind::LanguageModel);
        for head in [HeadKind::LanguageModel, TWO] {
            let expected = logits(
                &open(&directory(&config, &all), head).unwrap().model,
                &[3, 4, 5],
            );
            for other in others {
                let mut all = all.clone();
                let table = all.remove(words).unwrap();
                all.insert((*other).to_owned(), table);
                let loaded = open(&directory(&config, &all), head).unwrap();
                assert_eq!(
                    logits(&loaded.model, &[3, 4, 5]),
                    expected,
                    "{other}, {head}"
                );
            }
        }
    }
    let all = tensors(&roberta(), TWO);
    let expected = logits(
        &open(&directory(&roberta(), &all), TWO).unwrap().model,
        &[3, 4, 5],
    );
    let mut all = all;
    let table = all
        .remove("roberta.embeddings.word_embeddings.weight")
        .unwrap();
    all.insert("lm_head.decoder.weight".to_owned(), table);
    let loaded = open(&directory(&roberta(), &all), TWO).unwrap();
    assert_eq!(logits(&loaded.model, &[3, 4, 5]), expected);
    // What is not tied does not stand in.
    let mut config = llama();
    config["tie_word_embeddings"] = json!(false);
    let mut all = tensors(&config, HeadKind::LanguageModel);
    all.remove("model.embed_tokens.weight");
    open(&directory(&config, &all), HeadKind::LanguageModel).unwrap_err();
}

#[test]
fn a_tensor_that_is_not_finite_is_named() {
    for name in [
        "bert.encoder.layer.0.attention.self.key.weight",
        "classifier.bias",
    ] {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut all = tensors(&bert(), TWO);
            *all.get_mut(name).unwrap().1.last_mut().unwrap() = broken;
            let error = open(&directory(&bert(), &all), TWO).unwrap_err();
            let ModelError::NotFinite { tensor, .. } = &error else {
                panic!("{error:?}");
            };
            assert_eq!(tensor, name);
        }
    }
    // A tensor that nothing reads may hold anything.
    let mut all = tensors(&bert(), TWO);
    all.insert("qa_outputs.bias".to_owned(), (vec![1], vec![f32::NAN]));
    open(&directory(&bert(), &all), TWO).unwrap();
}

#[test]
fn the_outputs_of_a_head_are_counted_and_its_shape_checked() {
    let config = |json: &Value| ModelConfig::parse(Path::new("c"), json.to_string().as_bytes());
    for json in [bert(), roberta(), llama()] {
        let dir = directory(&json, &tensors(&json, THREE));
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let outputs = head_outputs(&checkpoint, &config(&json).unwrap(), TWO);
        assert_eq!(outputs.unwrap(), Some(3), "{json}");
    }
    for shape in [&[][..], &[1 << 40, 0], &[0, 8], &[2, 7], &[2, 8, 1]] {
        let mut all = Tensors::new();
        let count = shape.iter().product();
        all.insert(
            "base_model.model.classifier.weight".to_owned(),
            (shape.to_vec(), vec![0.0; count]),
        );
        let dir = directory(&bert(), &all);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        let error = head_outputs(&checkpoint, &config(&bert()).unwrap(), TWO).unwrap_err();
        assert!(matches!(&error, ModelError::HeadShape { .. }), "{error:?}");
    }
}

#[test]
fn what_is_no_safetensors_file_is_recognized() {
    for (contents, words) in [
        (
            &b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"[..],
            "git lfs pull",
        ),
        (b"<!DOCTYPE html><html></html>", "web page"),
        (b"GGUF\x03\0\0\0\0\0", "GGUF"),
    ] {
        for file in ["config.json", "model.safetensors"] {
            let dir = directory(&bert(), &tensors(&bert(), TWO));
            fs::write(dir.path().join(file), contents).unwrap();
            let error = open(&dir, TWO).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            let text = format!("{error}: {}", source.unwrap_or_default());
            assert!(text.contains(words) && text.contains(file), "{text}");
        }
    }
    for (file, words) in [
        ("pytorch_model.bin", "save_pretrained"),
        ("pytorch_model-00001-of-00002.bin", "save_pretrained"),
        ("model.Q4_K_M.gguf", "GGUF"),
        ("consolidated.safetensors", "rename"),
        ("adapter_model.safetensors", "--adapter"),
    ] {
        let dir = directory(&bert(), &Tensors::new());
        let weights = dir.path().join("model.safetensors");
        fs::rename(weights, dir.path().join(file)).unwrap();
        let error = open(&dir, TWO).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(words), "{error}");
    }
}

/// The row that a decoder's head reads: transformers takes the last token that is not padding.
#[test]
fn decoders_are_read_at_the_last_token_that_is_not_padding() {
    let mut config = llama();
    let plain = random(&config, TWO);
    config["pad_token_id"] = json!(9);
    let padded = random(&config, TWO);
    assert_eq!(logits(&padded, &[3, 4, 5, 9]), logits(&plain, &[3, 4, 5]));
    assert_eq!(logits(&padded, &[3, 9, 5]), logits(&plain, &[3, 9, 5]));
    assert_ne!(logits(&plain, &[3, 4, 5, 9]), logits(&plain, &[3, 4, 5]));
    // Nothing but padding: the first.
    assert_eq!(logits(&padded, &[9, 9]), logits(&plain, &[9]));
}

/// transformers' `create_position_ids_from_input_ids`: a padding token in a text has its own row,
/// and the tokens behind it go on as if it were not there.
#[test]
fn robertas_positions_pass_over_padding_tokens() {
    let mut config = roberta();
    config["initializer_range"] = json!(0.0);
    let mut all = tensors(&config, TWO);
    // Nothing but the positions differs from row to row, and the first token sees all of them.
    let rows = |table: &mut Tensors, name: &str, row: &dyn Fn(usize) -> Vec<f32>| {
        let (shape, values) = table.get_mut(name).unwrap();
        *values = (0..shape[0]).flat_map(row).collect();
    };
    let table = "roberta.embeddings.position_embeddings.weight";
    rows(&mut all, table, &|row| {
        (0..8).map(|at| ((row * 8 + at) as f32).sin()).collect()
    });
    let identity = |row: usize| {
        (0..8)
            .map(|at| f32::from(u8::from(at == row % 8)))
            .collect()
    };
    for name in [
        "attention.self.value",
        "attention.output.dense",
        "attention.self.key",
    ] {
        let name = format!("roberta.encoder.layer.0.{name}.weight");
        rows(&mut all, &name, &identity);
    }
    for name in ["classifier.dense.weight", "classifier.out_proj.weight"] {
        rows(&mut all, name, &identity);
    }
    let model = open(&directory(&config, &all), TWO).unwrap().model;
    // All words are alike, so that a text is its positions: 2, 1 (the padding's own) and 3, or 2, 3
    // and 1. The first token sees the mean of all.
    let [one, other] = [[5, 1, 6], [5, 6, 1]].map(|ids| logits(&model, &ids));
    for (one, other) in one.iter().zip(&other) {
        assert!((one - other).abs() < 1e-6, "{one} is not {other}");
    }
    let without = logits(&model, &[5, 6, 6]);
    assert!(one.iter().zip(&without).any(|(a, b)| (a - b).abs() > 1e-3));
}

/// `LlamaForQuestionAnswering` and `T5ForSequenceClassification` keep the base under another name
/// than the family's other models.
#[test]
fn a_base_under_another_prefix_is_the_same_base() {
    let mut t5 = json!({
        "model_type": "t5", "vocab_size": 20, "d_model": 8, "d_kv": 4, "d_ff": 12, "num_layers": 1,
        "num_heads": 2,
    });
    t5["initializer_factor"] = json!(0.5);
    for (config, prefix) in [(llama(), "model."), (t5, "")] {
        let own = tensors(&config, HeadKind::LanguageModel);
        let renamed = own.iter().map(|(name, tensor)| {
            let bare = name.strip_prefix(prefix).unwrap_or(name);
            (format!("transformer.{bare}"), tensor.clone())
        });
        let renamed: Tensors = renamed.collect();
        let [own, renamed] = [own, renamed].map(|tensors| {
            let dir = directory(&config, &tensors);
            open(&dir, HeadKind::LanguageModel).unwrap()
        });
        for name in own.model.base().tensors().keys() {
            assert_eq!(values(&own, name), values(&renamed, name), "{name}");
        }
    }
}

/// The head of `LlamaForQuestionAnswering` over the checkpoint of a language model, whose tied
/// embeddings may be stored as its head alone.
#[test]
fn a_head_that_names_the_base_otherwise_reads_the_same_base() {
    let config = llama();
    let own = tensors(&config, HeadKind::LanguageModel);
    let mut as_head = own.clone();
    let words = as_head.remove("model.embed_tokens.weight").unwrap();
    as_head.insert("lm_head.weight".to_owned(), words);
    let language_model = open(&directory(&config, &own), HeadKind::LanguageModel).unwrap();
    for stored in [own, as_head] {
        let dir = directory(&config, &stored);
        let head = HeadKind::QuestionAnswering;
        let loaded = open(&dir, head).unwrap();
        for name in language_model.model.base().tensors().keys() {
            let bare = name.strip_prefix("model.").unwrap_or(name);
            let renamed = format!("transformer.{bare}");
            assert_eq!(
                values(&language_model, name),
                values(&loaded, &renamed),
                "{name}"
            );
        }
    }
}

#[test]
fn heads_that_transformers_lacks_are_refused_by_name() {
    let bart = json!({
        "model_type": "bart", "vocab_size": 20, "d_model": 8, "encoder_layers": 1,
        "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    });
    let mut gemma = llama();
    gemma["model_type"] = json!("gemma");
    gemma["num_key_value_heads"] = json!(1);
    for (config, head, words) in [
        (
            bart,
            HeadKind::TokenClassification { labels: 2 },
            "`ForTokenClassification`",
        ),
        (gemma, HeadKind::QuestionAnswering, "`ForQuestionAnswering`"),
        (llama(), HeadKind::MultipleChoice, "`ForMultipleChoice`"),
    ] {
        let text = config.to_string();
        let config = ModelConfig::parse("config.json".as_ref(), text.as_bytes()).unwrap();
        let built = random_model(&config, head, &Device::default(), Precision::F32, 0);
        let error = built.unwrap_err().to_string();
        assert!(
            error.contains(words) && config.family().class_name(head).is_none(),
            "{error}"
        );
    }
}

#[test]
fn a_checkpoint_without_a_language_model_head_says_so() {
    let mut config = llama();
    config["tie_word_embeddings"] = json!(false);
    let mut own = tensors(&config, HeadKind::LanguageModel);
    own.remove("lm_head.weight");
    let dir = directory(&config, &own);
    let error = open(&dir, HeadKind::LanguageModel).unwrap_err().to_string();
    assert!(
        error.contains("this checkpoint has no language-model head (`lm_head.weight`)"),
        "{error}"
    );
}
