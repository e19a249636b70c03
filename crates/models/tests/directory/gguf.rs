//! Models in GGUF files: `make_gguf_golden.py` wrote them with PyPI's `gguf`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::sha256;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::{
    AdapterBatch, Checkpoint, HeadKind, Identity, LoadOptions, Loaded, ModelConfig, ModelError,
    Tokens, load,
};
use epiphyte_ops::{Quantization, Sequences};
use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;

const CASES: [&str; 9] = [
    "blocks",
    "llama",
    "llama-factors",
    "llama-linear",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3",
];

#[derive(Deserialize)]
struct Golden {
    config: Value,
    tokens: Vec<u32>,
    logits: Vec<f32>,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Tensor {
    r#type: String,
    shape: Vec<usize>,
    sha256: String,
    first: Vec<f32>,
}

fn path(case: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf");
    folder.join(format!("{case}.gguf"))
}

fn golden(case: &str) -> Golden {
    let bytes = fs::read(path(case).with_extension("json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn open(model: &Path, options: &LoadOptions) -> Result<Loaded, ModelError> {
    load(model, HeadKind::LanguageModel, &Device::default(), options)
}

/// The logits of all tokens of a text, row-major.
fn logits(loaded: &Loaded, tokens: &[u32]) -> Vec<f32> {
    let type_ids = vec![0; tokens.len()];
    let tokens = Tokens::new(tokens, &type_ids, Sequences::new(vec![0, tokens.len()]));
    let hidden = loaded.model.hidden(&tokens, &Identity);
    let batch = AdapterBatch::single(&Identity, &tokens);
    let head = loaded.model.language_head().unwrap();
    let logits = head.forward(hidden.states, &hidden.rows, &batch);
    logits.inner().try_into_vec_as::<f32>().unwrap()
}

/// Bit for bit those of `gguf.quants.dequantize`, of each type that is read, in the order of
/// Hugging Face's rows. Only Gemma's norms are rounded: 1 was added to them, and is subtracted.
#[test]
fn values_are_those_of_gguf() {
    for case in CASES {
        let checkpoint = Checkpoint::open(&path(case)).unwrap();
        let golden = golden(case);
        let names: Vec<&str> = checkpoint.names().collect();
        assert_eq!(names, golden.tensors.keys().collect::<Vec<_>>(), "{case}");
        for (name, expected) in &golden.tensors {
            let kind = &expected.r#type;
            let values = checkpoint.to_f32(name, &expected.shape).unwrap();
            assert_eq!(values[..4], expected.first, "{case}: {name}, {kind}");
            let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
            assert_eq!(sha256(&bytes), expected.sha256, "{case}: {name}, {kind}");
            let view = checkpoint.tensor(name).unwrap();
            assert!(view.is_finite(), "{case}: {name}, {kind}");
            // What safetensors would have: half floats stay what they are.
            let kept = match kind.as_str() {
                "F16" | "BF16" => kind.as_str(),
                _ => "F32",
            };
            assert_eq!(view.dtype.to_string(), kept, "{case}: {name}, {kind}");
            if kept == "F32" {
                assert_eq!(*view.bytes(), bytes, "{case}: {name}, {kind}");
            }
        }
    }
}

#[test]
fn configurations_are_those_of_transformers() {
    for case in CASES {
        let golden = golden(case);
        let json = golden.config.to_string();
        let expected = ModelConfig::parse(Path::new("config.json"), json.as_bytes()).unwrap();
        let found = ModelConfig::open(&path(case)).unwrap();
        let (a, b) = (found.facts(), expected.facts());
        assert_eq!(a.model_type, b.model_type, "{case}");
        assert_eq!(a.num_hidden_layers, b.num_hidden_layers, "{case}");
        assert_eq!(a.max_position_embeddings, b.max_position_embeddings);
        assert_eq!(a.bos_token_id, b.bos_token_id, "{case}");
        assert_eq!(a.eos_token_ids, b.eos_token_ids, "{case}");
        assert_eq!(a.pad_token_id, b.pad_token_id, "{case}");
        let (mut found, mut expected) = (found.computation(), expected.computation());
        if case == "llama-factors" {
            // Factors of which no `config.json` is known state themselves.
            found.remove("rope");
            expected.remove("rope");
        }
        assert_eq!(found, expected, "{case}");
    }
}

/// Logits are those of transformers' model with the same values, also in a directory with the file.
#[test]
fn logits_are_those_of_transformers() {
    for case in CASES {
        let golden = golden(case);
        let directory = TempDir::new().unwrap();
        fs::copy(path(case), directory.path().join("model.Q4_K_M.gguf")).unwrap();
        for model in [path(case), directory.path().to_owned()] {
            let loaded = open(&model, &LoadOptions::default()).unwrap();
            assert!(loaded.notes.is_empty(), "{case}: {:?}", loaded.notes);
            let found = logits(&loaded, &golden.tokens);
            assert_eq!(found.len(), golden.logits.len());
            let largest = found.iter().zip(&golden.logits).map(|(a, b)| (a - b).abs());
            let largest = largest.fold(0.0, f32::max);
            let size = golden.logits.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            assert!(
                largest < 2e-5 * size.max(1.0),
                "{case}: {largest} of {size}"
            );
            // Nothing is random, or read from another file.
            let special = GenerationConfig::open(&model, &loaded.config).unwrap();
            assert_eq!(special.eos_token_ids, [2]);
        }
    }
}

/// Blocks stay in few bits where a kernel has the same values, and become values elsewhere.
#[test]
fn blocks_stay_in_few_bits_where_values_are_the_same() {
    let golden = golden("blocks");
    let checkpoint = Checkpoint::open(&path("blocks")).unwrap();
    let loaded = open(&path("blocks"), &LoadOptions::default()).unwrap();
    let mut kept = BTreeMap::new();
    for (name, tensor) in loaded.model.base().tensors() {
        let expected = &golden.tensors[name];
        let format = tensor.quantization();
        kept.insert(expected.r#type.as_str(), format);
        // Tables and vectors are values in any type.
        if format.is_some() {
            let expected = checkpoint.to_f32(name, &expected.shape).unwrap();
            // Without the sign of zeros.
            let [expected, found] =
                [expected, tensor.to_vec()].map(|it| it.into_iter().map(|value| value + 0.0));
            assert!(found.eq(expected), "{name}");
        }
    }
    for (kind, format) in [
        ("Q4_0", Some(Quantization::Int4)),
        ("Q8_0", Some(Quantization::Int8)),
        ("Q5_0", Some(Quantization::Int8)),
        ("Q6_K", Some(Quantization::Int8)),
        ("Q3_K", Some(Quantization::Int8)),
        ("Q4_K", None),
        ("Q5_K", None),
        ("Q2_K", None),
        ("Q4_1", None),
        ("Q5_1", None),
        ("F16", None),
    ] {
        assert_eq!(kept[kind], format, "{kind}");
    }
    // A format that is asked for holds for all layers.
    let options = LoadOptions {
        quantization: Some(Quantization::Nf4),
        ..LoadOptions::default()
    };
    let loaded = open(&path("blocks"), &options).unwrap();
    let tensors = loaded.model.base().tensors();
    let of_layers = tensors.iter().filter(|(name, _)| name.contains("_proj"));
    let formats: Vec<_> = of_layers.map(|(_, it)| it.quantization()).collect();
    assert!(formats.len() == 14 && formats.iter().all(|it| *it == Some(Quantization::Nf4)));
}

/// The hash follows the values and not the file: another order of tensors, another metadata.
#[test]
fn a_hash_is_of_the_tensors() {
    let hashes = CASES.map(|case| {
        let checkpoint = Checkpoint::open(&path(case)).unwrap();
        assert!(checkpoint.non_finite().is_empty());
        assert_eq!(checkpoint.is_quantized(), case == "blocks");
        checkpoint.content_hash().to_owned()
    });
    let distinct: std::collections::BTreeSet<&String> = hashes.iter().collect();
    assert_eq!(distinct.len(), CASES.len());
    // A block's scale that is no number is noticed.
    let directory = TempDir::new().unwrap();
    let broken = directory.path().join("model.gguf");
    let mut bytes = fs::read(path("blocks")).unwrap();
    let end = bytes.len();
    // The last matrix is Q8_0 or F16: the first bytes of its last row are scales or values.
    bytes[end - 96..].fill(0xff);
    fs::write(&broken, bytes).unwrap();
    let checkpoint = Checkpoint::open(&broken).unwrap();
    assert_eq!(checkpoint.non_finite().len(), 1);
    let error = open(&broken, &LoadOptions::default()).unwrap_err();
    assert!(matches!(error, ModelError::NotFinite { .. }), "{error:?}");
}

/// The bytes of a case's file with `new` in the place of the first `old`, which is as long.
fn changed(case: &str, old: &str, new: &str) -> TempDir {
    assert_eq!(old.len(), new.len());
    let directory = TempDir::new().unwrap();
    let mut bytes = fs::read(path(case)).unwrap();
    let old = old.as_bytes();
    let at = bytes.windows(old.len()).position(|it| it == old).unwrap();
    bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
    fs::write(directory.path().join("model.gguf"), bytes).unwrap();
    directory
}

#[test]
fn what_cannot_be_read_is_named() {
    let error = |model: &Path| {
        let error = open(model, &LoadOptions::default()).unwrap_err();
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {}", source.unwrap_or_default())
    };
    for (old, new, words) in [
        (
            "\u{5}\0\0\0\0\0\0\0llama",
            "\u{5}\0\0\0\0\0\0\0grok1",
            "`grok1`",
        ),
        (
            "llama.block_count",
            "llama.block_cound",
            "`llama.block_count` is missing",
        ),
        (
            "llama.embedding_length",
            "llama.embedding_lengtx",
            "`llama.embedding_length` is missing",
        ),
        (
            "blk.0.attn_q.weight",
            "blk.0.attn_x.weight",
            "`blk.0.attn_x.weight`",
        ),
        (
            "token_embd.weight",
            "token_embx.weight",
            "`llama.vocab_size` is missing",
        ),
        (
            "blk.1.ffn_norm.weight",
            "blk.7.ffn_norm.weight",
            "`blk.7.ffn_norm.weight`",
        ),
    ] {
        let directory = changed("llama", old, new);
        let error = error(directory.path());
        assert!(error.contains(words), "{error}");
        assert!(error.contains("model.gguf"), "{error}");
    }
    // Without a name of its tensor, a file lacks it.
    let directory = changed("llama-linear", "linear", "longro");
    let text = error(directory.path());
    assert!(
        text.contains("`llama.rope.scaling.type`: `longro` is not read"),
        "{text}"
    );
    // Several files: which one is meant is not known.
    let directory = changed("qwen2", "qwen2", "qwen2");
    fs::copy(path("qwen3"), directory.path().join("other.gguf")).unwrap();
    let text = error(directory.path());
    assert!(text.contains("config.json"), "{text}");
    let error = Checkpoint::open(directory.path()).unwrap_err().to_string();
    assert!(error.contains("pass its path"), "{error}");
}
