//! Makes the base model that ships with `epiphyte quickstart`, from nothing but a text:
//!
//! 1. split the text into documents, the last tenth for evaluation;
//! 2. train a byte-level BPE tokenizer on the rest;
//! 3. write a Llama of about a million random weights in Hugging Face's layout;
//! 4. train all of it with the trainer that trains adapters (`full` is a method like any other);
//! 5. fold the result into a plain Hugging Face directory.
//!
//! The text is "tinyshakespeare" (public domain), 1.1 MB, from
//! <https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt>:
//!
//! ```sh
//! cargo run --release -p xtask -- quickstart-base input.txt target/quickstart_base
//! cp target/quickstart_base/base/*.json target/quickstart_base/base/*.safetensors \
//!     crates/epiphyte/assets/quickstart/base/
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use burn::tensor::Device;
use epiphyte_data::Tokenizer;
use epiphyte_io::safetensors_file::write_f32;
use epiphyte_methods::file::AdapterFile;
use epiphyte_models::{HeadKind, LoadOptions, ModelConfig, random_model};
use epiphyte_train::training::schedule::ScheduleKind;
use epiphyte_train::{
    Interrupt, Observer, RunConfig, RunOptions, TaskKind, merge, open_adapter, train,
};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, NormalizerWrapper, PostProcessorWrapper, TokenizerBuilder};

use crate::print;

/// What `sha256sum input.txt` says; another text makes another base.
const TEXT_SHA256: &str = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed";

/// Ends every document; id 0.
const END_OF_TEXT: &str = "<|endoftext|>";

const VOCABULARY: usize = 1024;
const CONTEXT: usize = 128;

/// Makes the base from the text and in the directory that `arguments` name.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [text, work] = arguments else {
        bail!("usage: quickstart-base TEXT WORK_DIRECTORY");
    };
    let (text, work) = (Path::new(text), Path::new(work));
    let start = work.join("start");
    fs::create_dir_all(&start)?;
    let data = Documents::read(text)?.write(work)?;
    train_tokenizer(&data.documents.train, &start)?;
    write_random_model(&start)?;
    let run = pretrain(&start, &data, &work.join("trained"))?;

    let tuning = open_adapter(
        &start,
        Some(AdapterFile::open(&run.output)?),
        None,
        false,
        &Device::default(),
        &LoadOptions::default(),
    )?;
    let merged = merge(&start, &tuning, &work.join("base"))?;
    print(&format!(
        "{} tensors written, logits within {:e}",
        merged.tensors, merged.largest_difference
    ));
    Ok(())
}

/// Speeches: what stands between two empty lines.
struct Documents {
    train: Vec<String>,
    eval: Vec<String>,
}

/// The documents and the files that hold them.
struct Data {
    documents: Documents,
    train: PathBuf,
    eval: PathBuf,
}

impl Documents {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        let digest: String = Sha256::digest(&text)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        ensure!(
            digest == TEXT_SHA256,
            "`{}` is another text: its SHA-256 is {digest}",
            path.display()
        );
        let mut train: Vec<String> = text
            .split("\n\n")
            .map(|speech| speech.trim().to_owned())
            .collect();
        let eval = train.split_off(train.len() * 9 / 10);
        Ok(Self { train, eval })
    }

    fn write(self, work: &Path) -> Result<Data> {
        let write = |name: &str, documents: &[String]| -> Result<PathBuf> {
            let path = work.join(name);
            let lines = documents
                .iter()
                .map(|text| format!("{}\n", json!({ "text": text })));
            fs::write(&path, lines.collect::<String>())?;
            Ok(path)
        };
        let (train, eval) = (
            write("train.jsonl", &self.train)?,
            write("eval.jsonl", &self.eval)?,
        );
        Ok(Data {
            documents: self,
            train,
            eval,
        })
    }
}

/// Byte-level BPE as GPT-2 has it: every text can be written, and comes back as it was.
fn train_tokenizer(documents: &[String], dir: &Path) -> Result<()> {
    let boxed = |error: tokenizers::Error| anyhow::anyhow!(error);
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        ByteLevel,
        PostProcessorWrapper,
        ByteLevel,
    >::default()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(ByteLevel::new(false, true, true)))
    .with_decoder(Some(ByteLevel::default()))
    .build()
    .map_err(boxed)?;
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(VOCABULARY)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(vec![AddedToken::from(END_OF_TEXT, true)])
        .show_progress(false)
        .build();
    tokenizer
        .train(&mut trainer, documents.iter())
        .map_err(boxed)?;
    tokenizer
        .save(dir.join("tokenizer.json"), false)
        .map_err(boxed)?;
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "model_max_length": 2 * CONTEXT,
        }),
    )
}

/// A Llama with biases, so that BitFit has something to train.
fn write_random_model(dir: &Path) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2 * CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": true,
        "mlp_bias": true,
        "attention_dropout": 0.0,
        "tie_word_embeddings": true,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    });
    write_json(&dir.join("config.json"), &config)?;
    write_json(
        &dir.join("generation_config.json"),
        &json!({ "bos_token_id": 0, "eos_token_id": 0 }),
    )?;

    let config = ModelConfig::open(dir)?;
    let model = random_model(
        &config,
        HeadKind::LanguageModel,
        &Device::default(),
        Default::default(),
        0,
    )?;
    let tensors = model.base().tensors().iter();
    let tensors = tensors.map(|(name, tensor)| (name, tensor.shape(), || tensor.to_vec()));
    write_f32(&dir.join("model.safetensors"), tensors)?;
    print(&format!("{} random weights", model.base().count()));
    Ok(())
}

/// Prints the scores of each evaluation.
struct Messages;

impl Observer for Messages {
    fn message(&mut self, text: &str) {
        print(text);
    }
}

/// Trains every weight; the best evaluation's are kept.
fn pretrain(start: &Path, data: &Data, output: &Path) -> Result<RunConfig> {
    let run = RunConfig {
        model: start.to_owned(),
        output: output.to_owned(),
        task: TaskKind::text(),
        train_data: data.train.clone(),
        eval_data: Some(data.eval.clone()),
        text_columns: vec!["text".to_owned()],
        max_length: Some(CONTEXT),
        method: "full".to_owned(),
        batch_size: 16,
        epochs: 6.0,
        learning_rate: 3e-3,
        lr_scheduler_type: ScheduleKind::Cosine,
        warmup_ratio: 0.03,
        weight_decay: 0.1,
        adam_beta2: 0.99,
        load_best_model_at_end: true,
        ..RunConfig::default()
    };
    let report = train(
        &run,
        &RunOptions {
            overwrite: true,
            ..RunOptions::default()
        },
        &Interrupt::default(),
        &mut Messages,
    )?;
    let loss = report
        .metrics
        .as_ref()
        .and_then(|metrics| metrics.get("loss"))
        .context("the run was evaluated")?;

    let tokenizer = Tokenizer::load(start)?;
    let train = count(&tokenizer, &data.documents.train)?;
    let eval = count(&tokenizer, &data.documents.eval)?;
    let bytes: usize = data.documents.eval.iter().map(|text| text.len() + 1).sum();
    let per_byte = eval.values().sum::<usize>() as f64 / bytes as f64 / std::f64::consts::LN_2;
    let unigram = unigram_loss(&train, &eval);
    print(&format!("{} steps, {:.0} s", report.steps, report.seconds));
    print(&format!(
        "token frequencies alone: loss {unigram:.3}, {:.2} bits a byte",
        unigram * per_byte
    ));
    print(&format!(
        "the trained model:       loss {loss:.3}, {:.2} bits a byte",
        loss * per_byte
    ));
    Ok(run)
}

/// How often each token occurs; every document ends with one more.
fn count(tokenizer: &Tokenizer, documents: &[String]) -> Result<HashMap<u32, usize>> {
    let mut counts = HashMap::from([(0, documents.len())]);
    for text in documents {
        for id in tokenizer.encode(text, None, None)?.ids {
            *counts.entry(id).or_default() += 1;
        }
    }
    Ok(counts)
}

/// Mean loss in nats on `eval` of a model that knows only how often each token occurs in `train`,
/// one occurrence added to each.
fn unigram_loss(train: &HashMap<u32, usize>, eval: &HashMap<u32, usize>) -> f64 {
    let all = (train.values().sum::<usize>() + VOCABULARY) as f64;
    let nats = |id: &u32| (all / (train.get(id).copied().unwrap_or(0) + 1) as f64).ln();
    let tokens = eval.values().sum::<usize>() as f64;
    eval.iter()
        .map(|(id, &count)| nats(id) * count as f64)
        .sum::<f64>()
        / tokens
}

fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    Ok(fs::write(path, format!("{value:#}\n"))?)
}
