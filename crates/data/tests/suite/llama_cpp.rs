//! Published vocabularies against llama.cpp's token ids: `models/ggml-vocab-*.gguf.{inp,out}` of
//! its repository.

use std::path::Path;

use epiphyte_data::Tokenizer;
use epiphyte_data::gguf::{VocabularyOfModel, metadata};
use epiphyte_io::gguf::{GgufFile, keys, prepare_gguf};
use serde_json::json;
use tempfile::TempDir;

use crate::support::shared_data;

/// Texts with their ids, without special tokens.
fn golden(name: &str) -> Vec<(String, Vec<u32>)> {
    let read = |end: &str| {
        let file = format!("tokenizers/llama_cpp_vocab/ggml-vocab-{name}.gguf.{end}");
        std::fs::read_to_string(shared_data(&file)).unwrap()
    };
    let texts = read("inp");
    let texts = texts.split("\n__ggml_vocab_test__\n").map(str::to_owned);
    let lines = read("out");
    let ids = lines.lines().map(|line| {
        let numbers = line.split_whitespace();
        numbers.map(|number| number.parse().unwrap()).collect()
    });
    // The text behind the last mark is empty.
    let golden: Vec<_> = texts.zip(ids).collect();
    assert!(golden.len() >= 46, "{}", golden.len());
    golden
}

/// A directory with files of the vocabularies, and a tokenizer's class.
fn directory(files: &[(&str, &str)], class: &str) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, source) in files {
        let bytes = std::fs::read(shared_data(&format!("tokenizers/{source}"))).unwrap();
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let config = json!({"tokenizer_class": class});
    let path = directory.path().join("tokenizer_config.json");
    std::fs::write(path, config.to_string()).unwrap();
    directory
}

fn check(name: &str, directory: &Path) {
    let tokenizer = Tokenizer::load(directory).unwrap();
    for (text, ids) in golden(name) {
        let found = tokenizer.align(&text, false).unwrap().ids;
        assert_eq!(found, ids, "{name}: {text:?}");
    }
}

#[test]
#[ignore = "needs ../shared/data"]
fn word_pieces_and_byte_pairs_are_those_of_llama_cpp() {
    let bert = directory(
        &[("vocab.txt", "bert-base-uncased/vocab.txt")],
        "BertTokenizer",
    );
    check("bert-bge", bert.path());
    let bert = "bert-base-uncased/tokenizer.json";
    check(
        "bert-bge",
        directory(&[("tokenizer.json", bert)], "").path(),
    );
    let files = [
        ("vocab.json", "gpt2/encoder.json"),
        ("merges.txt", "gpt2/vocab.bpe"),
    ];
    check("gpt-2", directory(&files, "GPT2Tokenizer").path());
    let gpt2 = "gpt2/tokenizer.json";
    check("gpt-2", directory(&[("tokenizer.json", gpt2)], "").path());
    let files = [
        ("vocab.json", "roberta/vocab.json"),
        ("merges.txt", "roberta/merges.txt"),
    ];
    check("roberta-bpe", directory(&files, "RobertaTokenizer").path());
}

/// The vocabulary of GPT-2 as `epiphyte export` writes it.
#[test]
#[ignore = "needs ../shared/data"]
fn what_is_written_to_gguf_has_the_ids_of_llama_cpp() {
    let gpt2 = "gpt2/tokenizer.json";
    let directory = directory(&[("tokenizer.json", gpt2)], "");
    let tokenizer = Tokenizer::load(directory.path()).unwrap();
    let model = VocabularyOfModel {
        size: 50_257,
        bos_token_id: None,
        eos_token_id: Some(50_256),
        pad_token_id: None,
    };
    let metadata = metadata(&tokenizer, &model).unwrap();
    let path = directory.path().join("vocabulary.gguf");
    let file = prepare_gguf(&path, &metadata, Vec::new()).unwrap();
    file.put_in_place().unwrap();
    check("gpt-2", &path);
}

/// The SentencePiece model of Llama 2, whose pieces are in a GGUF file: read as it is, and as the
/// model that it was made of.
#[test]
#[ignore = "needs ../shared/data"]
fn llamas_sentence_pieces_are_those_of_llama_cpp() {
    let file = shared_data("tokenizers/llama_cpp_vocab/ggml-vocab-llama-spm.gguf");
    check("llama-spm", &file);
    let file = GgufFile::open(&file).unwrap();
    let texts = file.texts(keys::TOKENS).unwrap().unwrap();
    let scores = file.numbers(keys::SCORES).unwrap().unwrap();
    let kinds = file.integers(keys::TOKEN_TYPES).unwrap().unwrap();
    assert_eq!(texts.len(), 32_000);
    let mut model = Vec::new();
    for ((text, score), kind) in texts.iter().zip(scores).zip(kinds) {
        let mut piece = vec![0x0a, u8::try_from(text.len()).unwrap()];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, u8::try_from(*kind).unwrap()]);
        model.extend([0x0a, u8::try_from(piece.len()).unwrap()]);
        model.extend(piece);
    }
    // trainer_spec with model_type bpe, and normalizer_spec.
    model.extend([0x12, 2, 0x18, 2, 0x1a, 0]);
    let directory = directory(&[], "LlamaTokenizer");
    std::fs::write(directory.path().join("tokenizer.model"), model).unwrap();
    check("llama-spm", directory.path());
}
