//! Published vocabularies against llama.cpp's token ids: `models/ggml-vocab-*.gguf.{inp,out}` of
//! its repository.

use std::path::Path;

use epiphyte_data::Tokenizer;
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

/// The SentencePiece model of Llama 2, whose pieces are in a GGUF file.
#[test]
#[ignore = "needs ../shared/data"]
fn llamas_sentence_pieces_are_those_of_llama_cpp() {
    let file = shared_data("tokenizers/llama_cpp_vocab/ggml-vocab-llama-spm.gguf");
    let bytes = std::fs::read(file).unwrap();
    let vocabulary = Gguf(&bytes).vocabulary();
    assert_eq!(vocabulary.len(), 32_000);
    let mut model = Vec::new();
    for (text, score, kind) in vocabulary {
        let mut piece = vec![0x0a, u8::try_from(text.len()).unwrap()];
        piece.extend(text);
        piece.push(0x15);
        piece.extend(score.to_le_bytes());
        piece.extend([0x18, kind]);
        model.extend([0x0a, u8::try_from(piece.len()).unwrap()]);
        model.extend(piece);
    }
    // trainer_spec with model_type bpe, and normalizer_spec.
    model.extend([0x12, 2, 0x18, 2, 0x1a, 0]);
    let directory = directory(&[], "LlamaTokenizer");
    std::fs::write(directory.path().join("tokenizer.model"), model).unwrap();
    check("llama-spm", directory.path());
}

/// What is left of a GGUF file.
struct Gguf<'a>(&'a [u8]);

impl<'a> Gguf<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> usize {
        u64::from_le_bytes(self.take(8).try_into().unwrap()) as usize
    }

    fn string(&mut self) -> &'a [u8] {
        let length = self.u64();
        self.take(length)
    }

    /// A value of a type as a list of its elements' bytes.
    fn value(&mut self, kind: u32) -> Vec<&'a [u8]> {
        match kind {
            0 | 1 | 7 => vec![self.take(1)],
            2 | 3 => vec![self.take(2)],
            4..=6 => vec![self.take(4)],
            8 => vec![self.string()],
            9 => {
                let (kind, length) = (self.u32(), self.u64());
                (0..length).flat_map(|_| self.value(kind)).collect()
            }
            10..=12 => vec![self.take(8)],
            other => panic!("type {other}"),
        }
    }

    /// Pieces with scores and types.
    fn vocabulary(mut self) -> Vec<(&'a [u8], f32, u8)> {
        assert_eq!(self.take(4), b"GGUF");
        let _version = self.u32();
        let _tensors = self.u64();
        let (mut texts, mut scores, mut kinds) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..self.u64() {
            let key = self.string();
            let kind = self.u32();
            let value = self.value(kind);
            match key {
                b"tokenizer.ggml.tokens" => texts = value,
                b"tokenizer.ggml.scores" => scores = value,
                b"tokenizer.ggml.token_type" => kinds = value,
                _ => {}
            }
        }
        let scores = scores
            .iter()
            .map(|it| f32::from_le_bytes((*it).try_into().unwrap()));
        let kinds = kinds.iter().map(|it| it[0]);
        let pieces = texts.into_iter().zip(scores).zip(kinds);
        pieces
            .map(|((text, score), kind)| (text, score, kind))
            .collect()
    }
}
