//! Token ids of words, kept: most words of a text occurred before.
//!
//! Where a text's ids are those of its words in a row, as [`Division`] tells, the ids of a word are
//! looked up, which takes a tenth of the time of computing them.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, PoisonError};

use tokenizers::{Encoding, Tokenizer};

use super::division::Division;

/// Threads that look up different words rarely wait for each other with this many tables.
const TABLES: usize = 64;
/// Words in a table. A word and its ids take about 100 bytes.
const WORDS: usize = 4096;
/// Longer words are not worth keeping.
const WORD_BYTES: usize = 32;

/// The ids of words.
type Table = HashMap<Box<str>, Box<[u32]>>;

/// The words of a tokenizer, and what its post-processor puts around texts.
#[derive(Debug)]
pub(super) struct Words {
    division: Division,
    tables: Vec<Mutex<Table>>,
    hasher: RandomState,
    single: Frame,
    pair: Frame,
}

/// The ids around one or two texts, with their segments.
#[derive(Debug)]
struct Frame {
    /// In front of each text, and behind the last.
    around: Vec<(Vec<u32>, Vec<u32>)>,
    /// The segment of each text.
    segments: Vec<u32>,
}

impl Words {
    /// The words of a tokenizer whose texts are their words in a row; none for others.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        Some(Self {
            division: Division::of(tokenizer)?,
            tables: (0..TABLES).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            single: Frame::of(tokenizer, &["a"])?,
            pair: Frame::of(tokenizer, &["a", "b"])?,
        })
    }

    /// Ids and segments of a text or a pair, with special tokens.
    pub(super) fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
        pair: Option<&str>,
    ) -> tokenizers::Result<(Vec<u32>, Vec<u32>)> {
        let frame = match pair {
            Some(_) => &self.pair,
            None => &self.single,
        };
        let (mut ids, mut segments) = (Vec::new(), Vec::new());
        let (last, before) = frame.around.split_last().expect("a frame has an end");
        let texts = [Some(text), pair].into_iter().flatten();
        for ((around, text), segment) in before.iter().zip(texts).zip(&frame.segments) {
            ids.extend(&around.0);
            segments.extend(&around.1);
            for word in self.division.parts(text) {
                self.append(tokenizer, word, &mut ids)?;
            }
            segments.resize(ids.len(), *segment);
        }
        ids.extend(&last.0);
        segments.extend(&last.1);
        Ok((ids, segments))
    }

    /// Removes the end of a single text's ids, of which `room` stay.
    pub(super) fn truncate(&self, ids: &mut Vec<u32>, segments: &mut Vec<u32>, room: usize) {
        let [before, behind] = self.single.around.as_slice() else {
            unreachable!("a single text has two ends");
        };
        let removed = before.0.len() + room..ids.len() - behind.0.len();
        ids.drain(removed.clone());
        segments.drain(removed);
    }

    /// Appends the ids of a word.
    fn append(
        &self,
        tokenizer: &Tokenizer,
        word: &str,
        ids: &mut Vec<u32>,
    ) -> tokenizers::Result<()> {
        let table = self.hasher.hash_one(word) as usize % TABLES;
        let lock = || {
            self.tables[table]
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(known) = lock().get(word) {
            ids.extend(known);
            return Ok(());
        }
        let encoding = tokenizer.encode_fast(word, false)?;
        ids.extend(encoding.get_ids());
        let mut table = lock();
        if table.len() < WORDS && word.len() <= WORD_BYTES {
            table.insert(word.into(), encoding.get_ids().into());
        }
        Ok(())
    }
}

impl Frame {
    /// What the post-processor puts around these texts; none if it changes or moves them.
    fn of(tokenizer: &Tokenizer, texts: &[&str]) -> Option<Self> {
        let plain = |text: &&str| tokenizer.encode_fast(*text, false).ok();
        let plain: Vec<Encoding> = texts.iter().map(plain).collect::<Option<_>>()?;
        let mut parts = plain.iter().cloned();
        let framed = tokenizer
            .post_process(parts.next()?, parts.next(), true)
            .ok()?;
        let (ids, types) = (framed.get_ids(), framed.get_type_ids());
        let special = framed.get_special_tokens_mask();
        let mut frame = Self {
            around: Vec::new(),
            segments: Vec::new(),
        };
        let mut end = 0;
        for text in &plain {
            let start = end + special[end..].iter().position(|&special| special == 0)?;
            let own = start..start + text.len();
            let first = *types.get(start)?;
            let changed = ids.get(own.clone())? != text.get_ids();
            if changed || types[own.clone()].iter().any(|&segment| segment != first) {
                return None;
            }
            let around = end..own.start;
            frame
                .around
                .push((ids[around.clone()].to_vec(), types[around].to_vec()));
            frame.segments.push(first);
            end = own.end;
        }
        frame
            .around
            .push((ids[end..].to_vec(), types[end..].to_vec()));
        let rest = special[end..].iter().all(|&special| special == 1);
        rest.then_some(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value as Json, json};
    use tokenizers::TruncationParams;

    use super::*;

    /// Llama 3's and Qwen 2's way to split texts, the latter with digits one by one.
    const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    /// GPT-4o's.
    const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

    fn byte_level(use_regex: bool) -> Json {
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": use_regex})
    }

    fn split(pattern: &str) -> Json {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                "invert": false},
            byte_level(false),
        ]})
    }

    fn metaspace(split: bool, prepend_scheme: &str) -> Json {
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": prepend_scheme,
            "split": split})
    }

    fn space_to_sign() -> Json {
        json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    }

    fn sequence(normalizers: &[Json]) -> Json {
        json!({"type": "Sequence", "normalizers": normalizers})
    }

    fn tokenizer(normalizer: Json, pre_tokenizer: Json, model: Json) -> Tokenizer {
        let added = json!([
            {"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true},
            {"id": 1, "content": "<mask>", "single_word": false, "lstrip": true, "rstrip": true,
                "normalized": false, "special": true},
        ]);
        let json = json!({"version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
            "decoder": null, "model": model,
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                    {"SpecialToken": {"id": "<s>", "type_id": 1}},
                    {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}}});
        Tokenizer::from_bytes(json.to_string()).unwrap()
    }

    /// BPE over an alphabet, with merges and one token for each.
    fn bpe(alphabet: impl IntoIterator<Item = char>, merges: &[(&str, &str)]) -> Json {
        let mut tokens = vec!["<s>".to_owned(), "<mask>".to_owned(), "<unk>".to_owned()];
        tokens.extend(alphabet.into_iter().map(String::from));
        for (one, next) in merges {
            let merged = format!("{one}{next}");
            if !tokens.contains(&merged) {
                tokens.push(merged);
            }
        }
        let vocabulary: serde_json::Map<String, Json> = tokens
            .into_iter()
            .enumerate()
            .map(|(id, token)| (token, id.into()))
            .collect();
        json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true,
            "byte_fallback": false, "vocab": vocabulary, "merges": merges})
    }

    fn bytes() -> Json {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut alphabet: Vec<char> = alphabet.into_iter().collect();
        alphabet.sort_unstable();
        bpe(
            alphabet,
            &[
                ("Ġ", "t"),
                ("h", "e"),
                ("Ġt", "he"),
                ("e", "r"),
                ("Ġ", "Ġ"),
                ("1", "2"),
                ("'", "s"),
                ("Ġ", "'"),
                ("Ġ", "1"),
                ("Ċ", "Ċ"),
                ("!", "!"),
            ],
        )
    }

    /// The alphabet of SentencePiece's texts here, and merges that begin with spaces.
    fn signs(more: &[(&str, &str)]) -> Json {
        let alphabet = "▁theras12'!.,é\n\tIJß<>mk ".chars();
        let merges = [
            ("▁", "t"),
            ("h", "e"),
            ("▁t", "he"),
            ("e", "r"),
            ("▁", "▁"),
            ("1", "2"),
        ];
        bpe(alphabet, &[&merges, more].concat())
    }

    fn unigram() -> Json {
        let pieces = [
            "<s>", "<mask>", "<unk>", "▁", "▁the", "he", "t", "h", "e", "r", "▁▁", "1", "2", "!",
        ];
        let pieces: Vec<(&str, f64)> = pieces
            .iter()
            .enumerate()
            .map(|(id, piece)| (*piece, -1.0 - id as f64 / 7.0))
            .collect();
        json!({"type": "Unigram", "unk_id": 2, "vocab": pieces, "byte_fallback": false})
    }

    /// Tokenizers of the kinds in use, each with whether spaces begin its words.
    fn kinds() -> Vec<(&'static str, Tokenizer)> {
        let null = || Json::Null;
        let prepend = json!({"type": "Prepend", "prepend": "▁"});
        let digits = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true}, byte_level(true)]});
        let xlm = json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"}, metaspace(true, "always")]});
        let gemma = json!({"type": "Split", "pattern": {"String": " "},
            "behavior": "MergedWithPrevious", "invert": false});
        let nfc = json!({"type": "NFC"});
        let nfkc = sequence(&[
            json!({"type": "NFKC"}),
            json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}),
        ]);
        let bert = json!({"type": "BertNormalizer", "clean_text": true,
            "handle_chinese_chars": true, "strip_accents": null, "lowercase": true});
        let with_prefix = sequence(&[prepend, space_to_sign()]);
        vec![
            ("GPT-2", tokenizer(null(), byte_level(true), bytes())),
            ("Llama 3", tokenizer(null(), split(LLAMA_3), bytes())),
            ("Qwen 2", tokenizer(nfc, split(QWEN_2), bytes())),
            ("GPT-4o", tokenizer(null(), split(O200K), bytes())),
            ("SmolLM", tokenizer(null(), digits, bytes())),
            ("Llama 2", tokenizer(with_prefix, null(), signs(&[]))),
            (
                "Mistral",
                tokenizer(null(), metaspace(false, "first"), signs(&[])),
            ),
            ("Gemma", tokenizer(space_to_sign(), gemma, signs(&[]))),
            (
                "T5",
                tokenizer(nfkc.clone(), metaspace(true, "always"), unigram()),
            ),
            ("XLM-R", tokenizer(nfkc, xlm, unigram())),
            (
                "BERT",
                tokenizer(bert, json!({"type": "BertPreTokenizer"}), signs(&[])),
            ),
        ]
    }

    #[test]
    fn kinds_whose_words_depend_on_each_other_are_left_alone() {
        let crossing = split(r"\p{L}+ \p{L}+|[^\s]+|\s+(?!\S)|\s+");
        let around = split(r"\b\p{L}+\b|[^\s]|\s+(?!\S)|\s+");
        let prefixed = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
            "use_regex": true});
        for tokenizer in [
            tokenizer(Json::Null, crossing, bytes()),
            tokenizer(Json::Null, around, bytes()),
            tokenizer(Json::Null, split(r"\p{L}+|\s+"), bytes()),
            tokenizer(Json::Null, prefixed, bytes()),
            tokenizer(Json::Null, byte_level(false), bytes()),
            // A token that goes from a word over into the space behind it.
            tokenizer(space_to_sign(), Json::Null, signs(&[("he", "▁")])),
            tokenizer(Json::Null, metaspace(false, "first"), unigram()),
        ] {
            assert!(Words::of(&tokenizer).is_none());
        }
    }

    #[test]
    fn words_are_cut_at_single_spaces_between_others() {
        let [kept, dropped] = ["GPT-2", "Llama 2"].map(|name| {
            let kinds = kinds().into_iter();
            let (_, tokenizer) = kinds.into_iter().find(|(kind, _)| *kind == name).unwrap();
            Division::of(&tokenizer).unwrap()
        });
        let text = " the  sea 12 é\u{301} \u{308}a\tx y";
        let parts =
            |division: &Division| division.parts(text).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            parts(&kept),
            [" the  sea", " 12", " é\u{301} \u{308}a\tx", " y"]
        );
        assert_eq!(
            parts(&dropped),
            [" the  sea", "12", "é\u{301} \u{308}a\tx", "y"]
        );
        let whole = kept.parts("one <s> two").collect::<Vec<_>>();
        assert_eq!(
            whole,
            ["one <s> two"],
            "an added token may take the spaces around it"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// The ids are those that the tokenizer itself gives.
        #[test]
        fn looked_up_ids_are_the_tokenizers(
            texts in proptest::collection::vec(
                "([ter1 ]|the |er|'s|!!| t|  |\n|\t|12|é|\u{301}|▁|ß|ﷺ|\u{37a}|\u{a0}|\u{200b}|<s>|<mask>|<|中|IJ|½){0,24}",
                1..4,
            ),
        ) {
            for (kind, tokenizer) in kinds() {
                let words = Words::of(&tokenizer).expect(kind);
                for (index, text) in texts.iter().enumerate() {
                    let pair = texts.get(index + 1).map(String::as_str);
                    let expected = match pair {
                        Some(pair) => tokenizer.encode_fast((text.as_str(), pair), true).unwrap(),
                        None => tokenizer.encode_fast(text.as_str(), true).unwrap(),
                    };
                    let (mut ids, mut segments) = words.encode(&tokenizer, text, pair).unwrap();
                    prop_assert_eq!(&ids, expected.get_ids(), "{}: {:?} {:?}", kind, text, pair);
                    prop_assert_eq!(&segments, expected.get_type_ids(), "{}", kind);
                    if pair.is_none() && ids.len() > 4 {
                        let mut shorter = tokenizer.clone();
                        let truncation = TruncationParams { max_length: 4, ..Default::default() };
                        shorter.with_truncation(Some(truncation)).unwrap();
                        let expected = shorter.encode_fast(text.as_str(), true).unwrap();
                        words.truncate(&mut ids, &mut segments, 3);
                        prop_assert_eq!(&ids, expected.get_ids(), "{}: {:?}", kind, text);
                        prop_assert_eq!(&segments, expected.get_type_ids(), "{}", kind);
                    }
                }
            }
        }
    }
}
