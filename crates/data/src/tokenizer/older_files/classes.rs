//! The tokenizer classes of `transformers` (`models/*/tokenization_*.py`, 5.23): the files that
//! each reads, its special tokens, and the steps around its model.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value as Json, json};

use super::added_tokens::{AddedTokens, Named};
use super::pipeline::{
    Pipeline, byte_level, bytes_and_spaces, decoders, metaspace, normalizers, pre_tokenizers,
    precompiled, replace, replace_matches, template,
};
use super::sentence_piece::{Algorithm, SentencePieces, read_model};
use super::settings::Settings;
use super::{Vocabulary, byte_pairs, word_pieces};
use crate::error::DataError;

/// A tokenizer class.
pub(super) struct Class {
    /// Its names in `tokenizer_config.json`, without `Fast`.
    pub(super) names: &'static [&'static str],
    /// Types of models that use it if no file names a class.
    pub(super) model_types: &'static [&'static str],
    /// Its files.
    pub(super) files: &'static [&'static str],
    /// Its special tokens, unless files name others.
    pub(super) special_tokens: &'static [(&'static str, &'static str)],
    /// Whether spaces in front of its mask token belong to the token.
    pub(super) mask_takes_spaces: bool,
    /// Reads its vocabulary.
    pub(super) vocabulary: fn(&Path, &Named, &Settings<'_>) -> Result<Vocabulary, DataError>,
    /// Its steps around the model.
    pub(super) pipeline:
        fn(&Vocabulary, &AddedTokens, &Settings<'_>) -> Result<Pipeline, DataError>,
}

/// Every class.
pub(super) const CLASSES: &[Class] = &[
    Class {
        names: &["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"],
        model_types: &["bert", "distilbert", "electra"],
        files: &["vocab.txt"],
        special_tokens: BRACKETED,
        mask_takes_spaces: false,
        vocabulary: word_pieces,
        pipeline: bert,
    },
    Class {
        names: &["MPNetTokenizer"],
        model_types: &["mpnet"],
        files: &["vocab.txt"],
        special_tokens: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("sep_token", "</s>"),
            ("cls_token", "<s>"),
            ("unk_token", "[UNK]"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        mask_takes_spaces: true,
        vocabulary: word_pieces,
        pipeline: mpnet,
    },
    Class {
        names: &["GPT2Tokenizer"],
        model_types: &["gpt2", "opt"],
        files: &["vocab.json", "merges.txt"],
        special_tokens: &[
            ("unk_token", "<|endoftext|>"),
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
        ],
        mask_takes_spaces: false,
        vocabulary: byte_pairs,
        pipeline: gpt2,
    },
    Class {
        names: &["RobertaTokenizer", "BartTokenizer"],
        model_types: &["roberta", "bart"],
        files: &["vocab.json", "merges.txt"],
        special_tokens: ANGLED,
        mask_takes_spaces: false,
        vocabulary: byte_pairs,
        pipeline: roberta,
    },
    Class {
        names: &["Qwen2Tokenizer"],
        model_types: &["qwen2", "qwen3"],
        files: &["vocab.json", "merges.txt"],
        special_tokens: &[
            ("unk_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|endoftext|>"),
        ],
        mask_takes_spaces: false,
        vocabulary: byte_pairs,
        pipeline: qwen2,
    },
    Class {
        names: &["GPTNeoXTokenizer"],
        model_types: &["gpt_neox"],
        files: &["vocab.json", "merges.txt"],
        special_tokens: &[
            ("unk_token", "<|endoftext|>"),
            ("bos_token", "<|endoftext|>"),
            ("eos_token", "<|endoftext|>"),
            ("pad_token", "<|padding|>"),
        ],
        mask_takes_spaces: false,
        vocabulary: byte_pairs,
        pipeline: gpt_neox,
    },
    Class {
        names: &["AlbertTokenizer"],
        model_types: &["albert"],
        files: &["spiece.model"],
        special_tokens: &[
            ("bos_token", "[CLS]"),
            ("eos_token", "[SEP]"),
            ("unk_token", "<unk>"),
            ("sep_token", "[SEP]"),
            ("pad_token", "<pad>"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        mask_takes_spaces: false,
        vocabulary: |directory, _, _| {
            let model = read_model(directory, "spiece.model", Algorithm::Unigram)?;
            Ok(unigram(model.pieces.clone(), 1, model))
        },
        pipeline: albert,
    },
    Class {
        names: &["T5Tokenizer"],
        model_types: &["t5", "mt5"],
        files: &["spiece.model"],
        special_tokens: &[
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
        ],
        mask_takes_spaces: false,
        vocabulary: t5_vocabulary,
        pipeline: t5,
    },
    Class {
        names: &["XLMRobertaTokenizer"],
        model_types: &["xlm-roberta"],
        files: &["sentencepiece.bpe.model"],
        special_tokens: ANGLED,
        mask_takes_spaces: false,
        vocabulary: |directory, named, _| {
            let model = read_model(directory, "sentencepiece.bpe.model", Algorithm::Unigram)?;
            Ok(fairseq(model, named, &[]))
        },
        pipeline: xlm_roberta,
    },
    Class {
        names: &["CamembertTokenizer"],
        model_types: &["camembert"],
        files: &["sentencepiece.bpe.model"],
        special_tokens: ANGLED,
        mask_takes_spaces: true,
        vocabulary: camembert_vocabulary,
        pipeline: xlm_roberta,
    },
    Class {
        names: &["MBartTokenizer"],
        model_types: &["mbart"],
        files: &["sentencepiece.bpe.model"],
        special_tokens: ANGLED,
        mask_takes_spaces: true,
        vocabulary: |directory, named, _| {
            let model = read_model(directory, "sentencepiece.bpe.model", Algorithm::Unigram)?;
            Ok(fairseq(model, named, MBART_LANGUAGES))
        },
        pipeline: mbart,
    },
    Class {
        names: &["MBart50Tokenizer"],
        model_types: &[],
        files: &["sentencepiece.bpe.model"],
        special_tokens: &[
            ("eos_token", "</s>"),
            ("sep_token", "</s>"),
            ("cls_token", "<s>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        mask_takes_spaces: true,
        vocabulary: |directory, named, _| {
            let model = read_model(directory, "sentencepiece.bpe.model", Algorithm::Unigram)?;
            Ok(fairseq(
                model,
                named,
                &[MBART_LANGUAGES, MBART_50_LANGUAGES].concat(),
            ))
        },
        pipeline: mbart_50,
    },
    Class {
        names: &["DebertaV2Tokenizer"],
        model_types: &["deberta-v2"],
        files: &["spm.model"],
        special_tokens: &[
            ("bos_token", "[CLS]"),
            ("eos_token", "[SEP]"),
            ("unk_token", "[UNK]"),
            ("sep_token", "[SEP]"),
            ("pad_token", "[PAD]"),
            ("cls_token", "[CLS]"),
            ("mask_token", "[MASK]"),
        ],
        mask_takes_spaces: false,
        vocabulary: deberta_v2_vocabulary,
        pipeline: deberta_v2,
    },
    Class {
        names: &["LlamaTokenizer"],
        model_types: &["llama", "mistral"],
        files: &["tokenizer.model"],
        special_tokens: &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
        ],
        mask_takes_spaces: false,
        vocabulary: sentence_piece_pairs,
        pipeline: llama,
    },
    Class {
        names: &["GemmaTokenizer"],
        model_types: &["gemma", "gemma2", "gemma3_text"],
        files: &["tokenizer.model"],
        special_tokens: &[
            ("bos_token", "<bos>"),
            ("eos_token", "<eos>"),
            ("unk_token", "<unk>"),
            ("pad_token", "<pad>"),
            ("mask_token", "<mask>"),
        ],
        mask_takes_spaces: false,
        vocabulary: sentence_piece_pairs,
        pipeline: gemma,
    },
];

/// BERT's special tokens.
const BRACKETED: &[(&str, &str)] = &[
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// RoBERTa's special tokens.
const ANGLED: &[(&str, &str)] = &[
    ("bos_token", "<s>"),
    ("eos_token", "</s>"),
    ("sep_token", "</s>"),
    ("cls_token", "<s>"),
    ("unk_token", "<unk>"),
    ("pad_token", "<pad>"),
    ("mask_token", "<mask>"),
];

/// mBART's languages, whose codes are tokens behind those of the SentencePiece model.
const MBART_LANGUAGES: &[&str] = &[
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN",
    "it_IT", "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO",
    "ru_RU", "si_LK", "tr_TR", "vi_VN", "zh_CN",
];

/// The languages that mBART-50 has further.
const MBART_50_LANGUAGES: &[&str] = &[
    "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE", "km_KH", "mk_MK",
    "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN", "te_IN",
    "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
];

/// What Qwen2 takes as a word.
const QWEN2_WORDS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| \
    ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/// The text of a special token; empty if it was taken away.
fn text<'a>(named: &'a Named, name: &str) -> &'a str {
    named.get(name).map_or("", |token| &token.content)
}

// Vocabularies.

fn word_pieces(directory: &Path, named: &Named, _: &Settings<'_>) -> Result<Vocabulary, DataError> {
    word_pieces::read(directory, text(named, "unk_token"))
}

fn byte_pairs(directory: &Path, _: &Named, _: &Settings<'_>) -> Result<Vocabulary, DataError> {
    byte_pairs::read_pair(directory)
}

/// A unigram model over `pieces`.
fn unigram(pieces: Vec<(String, f32)>, unknown: usize, model: SentencePieces) -> Vocabulary {
    let ids = pieces
        .iter()
        .zip(0..)
        .map(|((piece, _), id)| (piece.clone(), id));
    let scored = pieces
        .iter()
        .map(|(piece, score)| json!([piece, f64::from(*score)]));
    Vocabulary {
        path: model.path,
        ids: ids.collect(),
        size: pieces.len(),
        model: json!({
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": scored.collect::<Vec<_>>(),
            "byte_fallback": false,
        }),
        symbols: model.symbols,
        replacements: model.replacements,
    }
}

/// T5's pieces and its sentinels, `<extra_id_0>` last.
fn t5_vocabulary(
    directory: &Path,
    _: &Named,
    settings: &Settings<'_>,
) -> Result<Vocabulary, DataError> {
    let model = read_model(directory, "spiece.model", Algorithm::Unigram)?;
    let extra = settings.count("extra_ids", 100)?;
    let sentinels = (0..extra)
        .rev()
        .map(|number| (format!("<extra_id_{number}>"), 0.0));
    let pieces = model
        .pieces
        .iter()
        .cloned()
        .chain(sentinels.clone())
        .collect();
    let mut vocabulary = unigram(pieces, 2, model);
    let token = |(content, _)| tokenizers::AddedToken::from(content, true);
    vocabulary.symbols.extend(sentinels.map(token));
    Ok(vocabulary)
}

/// The pieces behind the first three, with fairseq's four special tokens in front, the codes of
/// languages and the mask behind.
fn fairseq(model: SentencePieces, named: &Named, languages: &[&str]) -> Vocabulary {
    let first = match named.contains_key("bos_token") {
        true => "bos_token",
        false => "cls_token",
    };
    let front = [first, "pad_token", "eos_token", "unk_token"].map(|name| text(named, name));
    let behind = languages.iter().copied().chain([text(named, "mask_token")]);
    let token = |token: &str| (token.to_owned(), 0.0);
    let pieces = front.into_iter().map(token);
    let pieces = pieces.chain(model.pieces[3..].iter().cloned());
    let pieces = pieces.chain(behind.map(token)).collect();
    let mut vocabulary = unigram(pieces, 3, model);
    let code = |&code: &&str| tokenizers::AddedToken::from(code, true);
    vocabulary.symbols.extend(languages.iter().map(code));
    vocabulary
}

/// CamemBERT's pieces: all but the unknown one behind five special tokens, then the mask.
fn camembert_vocabulary(
    directory: &Path,
    named: &Named,
    _: &Settings<'_>,
) -> Result<Vocabulary, DataError> {
    let model = read_model(directory, "sentencepiece.bpe.model", Algorithm::Unigram)?;
    let mut pieces = vec![
        ("<s>NOTUSED".to_owned(), 0.0),
        (text(named, "pad_token").to_owned(), 0.0),
        ("</s>NOTUSED".to_owned(), 0.0),
        (text(named, "unk_token").to_owned(), 0.0),
        ("<unk>NOTUSED".to_owned(), -100.0),
    ];
    pieces.extend(model.pieces[1..].iter().cloned());
    pieces.push((text(named, "mask_token").to_owned(), 0.0));
    Ok(unigram(pieces, 3, model))
}

fn deberta_v2_vocabulary(
    directory: &Path,
    named: &Named,
    _: &Settings<'_>,
) -> Result<Vocabulary, DataError> {
    let model = read_model(directory, "spm.model", Algorithm::Unigram)?;
    let unknown = text(named, "unk_token");
    let of = |(piece, score): &(String, f32)| piece == unknown && *score == 0.0;
    let unknown = model.pieces.iter().position(of).unwrap_or(model.unknown);
    Ok(unigram(model.pieces.clone(), unknown, model))
}

/// Byte pairs of a SentencePiece model.
fn sentence_piece_pairs(
    directory: &Path,
    named: &Named,
    _: &Settings<'_>,
) -> Result<Vocabulary, DataError> {
    let model = read_model(directory, "tokenizer.model", Algorithm::BytePairs)?;
    let pieces = model.pieces.iter().zip(0..);
    let ids: IndexMap<String, u32> = pieces.map(|((piece, _), id)| (piece.clone(), id)).collect();
    let pieces = model.pieces.iter().map(|(piece, score)| (&**piece, *score));
    let merges = byte_pairs::merges_by_score(pieces, &ids);
    let unknown = Some(text(named, "unk_token"));
    Ok(Vocabulary {
        path: model.path,
        size: ids.len(),
        model: byte_pairs::of_pieces(&ids, &merges, unknown, true),
        ids,
        symbols: model.symbols,
        replacements: model.replacements,
    })
}

// Steps around the model.

/// `[CLS] A [SEP]` and `[CLS] A [SEP] B [SEP]`, the second text with type id 1.
fn cls_and_sep(added: &AddedTokens, settings: &Settings<'_>) -> Result<Json, DataError> {
    let cls = added.text("cls_token").unwrap_or_default();
    let sep = added.text("sep_token").unwrap_or_default();
    template(
        added,
        settings,
        &[(cls, 0), ("$A", 0), (sep, 0)],
        &[(cls, 0), ("$A", 0), (sep, 0), ("$B", 1), (sep, 1)],
    )
}

/// RoBERTa's `<s> A </s>` and `<s> A </s> </s> B </s>`.
fn roberta_processing(
    added: &AddedTokens,
    settings: &Settings<'_>,
    trim_offsets: bool,
    add_prefix_space: bool,
) -> Result<Json, DataError> {
    let token = |name: &'static str| {
        let token = added.text(name).unwrap_or_default();
        let id = added
            .id(token)
            .ok_or_else(|| settings.unknown(name, token))?;
        Ok::<_, DataError>(json!([token, id]))
    };
    Ok(json!({
        "type": "RobertaProcessing",
        "sep": token("sep_token")?,
        "cls": token("cls_token")?,
        "trim_offsets": trim_offsets,
        "add_prefix_space": add_prefix_space,
    }))
}

/// `bos_token` in front of each text if `add_bos_token` says so, `eos_token` behind it if
/// `add_eos_token` does.
fn bos_and_eos(added: &AddedTokens, settings: &Settings<'_>) -> Result<Json, DataError> {
    let token = |flag, name| {
        let added = settings.flag(flag, false)?.then(|| added.text(name));
        Ok::<_, DataError>(added.flatten())
    };
    let bos = token("add_bos_token", "bos_token")?;
    let eos = token("add_eos_token", "eos_token")?;
    let around = |text, type_id| {
        let parts = bos.into_iter().chain([text]).chain(eos);
        parts.map(move |part| (part, type_id)).collect::<Vec<_>>()
    };
    let single = around("$A", 0);
    let pair = [single.clone(), around("$B", 1)].concat();
    template(added, settings, &single, &pair)
}

/// BERT's words: text without control characters and with spaces around Chinese characters, split
/// at spaces and punctuation.
fn bert_words(settings: &Settings<'_>, post_processor: Json) -> Result<Pipeline, DataError> {
    Ok(Pipeline {
        normalizer: json!({
            "type": "BertNormalizer",
            "clean_text": true,
            "handle_chinese_chars": settings.flag("tokenize_chinese_chars", true)?,
            "strip_accents": settings.optional_flag("strip_accents")?,
            "lowercase": settings.flag("do_lower_case", true)?,
        }),
        pre_tokenizer: json!({"type": "BertPreTokenizer"}),
        post_processor,
        decoder: json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
    })
}

fn bert(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    bert_words(settings, cls_and_sep(added, settings)?)
}

fn mpnet(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    bert_words(settings, roberta_processing(added, settings, true, false)?)
}

/// Byte pairs over GPT-2's words.
fn gpt2_words(
    settings: &Settings<'_>,
    normalizer: Json,
    post_processor: Json,
) -> Result<Pipeline, DataError> {
    let add_prefix_space = settings.flag("add_prefix_space", false)?;
    Ok(Pipeline {
        normalizer,
        pre_tokenizer: byte_level(add_prefix_space, true, true),
        post_processor,
        decoder: byte_level(true, true, true),
    })
}

fn gpt2(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    gpt2_words(settings, Json::Null, bos_and_eos(added, settings)?)
}

fn gpt_neox(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    gpt2_words(
        settings,
        json!({"type": "NFC"}),
        bos_and_eos(added, settings)?,
    )
}

fn roberta(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let trim_offsets = settings.flag("trim_offsets", true)?;
    let add_prefix_space = settings.flag("add_prefix_space", false)?;
    let processing = roberta_processing(added, settings, trim_offsets, add_prefix_space)?;
    gpt2_words(settings, Json::Null, processing)
}

fn qwen2(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let add_prefix_space = settings.flag("add_prefix_space", false)?;
    Ok(Pipeline {
        normalizer: json!({"type": "NFC"}),
        pre_tokenizer: pre_tokenizers(vec![
            json!({
                "type": "Split",
                "pattern": {"Regex": QWEN2_WORDS},
                "behavior": "Isolated",
                "invert": false,
            }),
            byte_level(add_prefix_space, true, false),
        ]),
        post_processor: bos_and_eos(added, settings)?,
        decoder: byte_level(true, true, true),
    })
}

/// Words at spaces, with `▁` in front of each.
fn spaced_words(normalizer: Json, prepend_scheme: &str, post_processor: Json) -> Pipeline {
    Pipeline {
        normalizer,
        pre_tokenizer: pre_tokenizers(vec![
            json!({"type": "WhitespaceSplit"}),
            metaspace(prepend_scheme, true),
        ]),
        post_processor,
        decoder: metaspace(prepend_scheme, true),
    }
}

/// Whether every word gets a `▁` in front, as `add_prefix_space` says.
fn prepend_scheme(settings: &Settings<'_>) -> Result<&'static str, DataError> {
    Ok(match settings.flag("add_prefix_space", true)? {
        true => "always",
        false => "never",
    })
}

fn albert(
    vocabulary: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let mut steps = vec![replace("``", "\""), replace("''", "\"")];
    if !settings.flag("keep_accents", false)? {
        steps.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
    }
    if settings.flag("do_lower_case", true)? {
        steps.push(json!({"type": "Lowercase"}));
    }
    steps.extend(precompiled(&vocabulary.replacements));
    let scheme = prepend_scheme(settings)?;
    Ok(spaced_words(
        normalizers(steps),
        scheme,
        cls_and_sep(added, settings)?,
    ))
}

fn t5(
    vocabulary: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let eos = added.text("eos_token").unwrap_or_default();
    let ends = template(
        added,
        settings,
        &[("$A", 0), (eos, 0)],
        &[("$A", 0), (eos, 0), ("$B", 0), (eos, 0)],
    )?;
    let normalizer = precompiled(&vocabulary.replacements).unwrap_or(Json::Null);
    Ok(spaced_words(normalizer, "always", ends))
}

fn xlm_roberta(
    vocabulary: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let bos = added.text("bos_token").unwrap_or_default();
    let eos = added.text("eos_token").unwrap_or_default();
    let around = template(
        added,
        settings,
        &[(bos, 0), ("$A", 0), (eos, 0)],
        &[(bos, 0), ("$A", 0), (eos, 0), (eos, 0), ("$B", 0), (eos, 0)],
    )?;
    let normalizer = precompiled(&vocabulary.replacements).unwrap_or(Json::Null);
    Ok(spaced_words(normalizer, prepend_scheme(settings)?, around))
}

/// mBART's texts are those of its source language, `src_lang`: `A </s> en_XX`.
fn mbart(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let eos = added.text("eos_token").unwrap_or_default();
    let language = source_language(added, settings)?;
    let ends = template(
        added,
        settings,
        &[("$A", 0), (eos, 0), (language, 0)],
        &[("$A", 0), ("$B", 0), (eos, 0), (language, 0)],
    )?;
    Ok(spaced_words(Json::Null, "always", ends))
}

/// `en_XX A </s>`.
fn mbart_50(
    vocabulary: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let eos = added.text("eos_token").unwrap_or_default();
    let language = source_language(added, settings)?;
    let around = template(
        added,
        settings,
        &[(language, 0), ("$A", 0), (eos, 0)],
        &[(language, 0), ("$A", 0), ("$B", 0), (eos, 0)],
    )?;
    let mut steps: Vec<Json> = precompiled(&vocabulary.replacements).into_iter().collect();
    steps.push(replace_matches(" {2,}", " "));
    Ok(Pipeline {
        normalizer: normalizers(steps),
        pre_tokenizer: metaspace("always", true),
        post_processor: around,
        decoder: metaspace("always", true),
    })
}

/// The code of the source language.
fn source_language<'a>(added: &AddedTokens, settings: &Settings<'a>) -> Result<&'a str, DataError> {
    let language = settings.text("src_lang", "en_XX")?;
    match added.id(language) {
        Some(_) => Ok(language),
        None => Err(settings.unknown("src_lang", language)),
    }
}

fn deberta_v2(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let mut steps = Vec::new();
    if settings.flag("do_lower_case", false)? {
        steps.push(json!({"type": "Lowercase"}));
    }
    steps.extend([
        replace_matches("\\s{2,}|[\\n\\r\\t]", " "),
        json!({"type": "NFC"}),
        json!({"type": "Strip", "strip_left": false, "strip_right": true}),
    ]);
    let mut splits = Vec::new();
    if settings.flag("split_by_punct", false)? {
        splits.push(json!({"type": "Punctuation", "behavior": "Isolated"}));
    }
    let scheme = match settings.flag("add_prefix_space", true)? {
        true => "always",
        false => "first",
    };
    splits.push(metaspace(scheme, true));
    Ok(Pipeline {
        normalizer: normalizers(steps),
        pre_tokenizer: pre_tokenizers(splits),
        post_processor: cls_and_sep(added, settings)?,
        decoder: metaspace(scheme, true),
    })
}

/// Llama's, as `LlamaConverter` of `convert_slow_tokenizer.py` has it: SentencePiece sets a space
/// in front of every text, and `legacy` also behind every special token.
fn llama(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    let add_prefix_space = settings.flag("add_prefix_space", true)?;
    let (normalizer, pre_tokenizer) = match settings.flag("legacy", true)? {
        true => {
            let prepended = json!({"type": "Prepend", "prepend": "▁"});
            let steps = add_prefix_space.then_some(prepended).into_iter();
            (
                normalizers(steps.chain([replace(" ", "▁")]).collect()),
                Json::Null,
            )
        }
        false => {
            let scheme = match add_prefix_space {
                true => "first",
                false => "never",
            };
            (Json::Null, metaspace(scheme, false))
        }
    };
    let mut decoded = bytes_and_spaces();
    if add_prefix_space {
        decoded.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    Ok(Pipeline {
        normalizer,
        pre_tokenizer,
        post_processor: bos_and_eos(added, settings)?,
        decoder: decoders(decoded),
    })
}

fn gemma(
    _: &Vocabulary,
    added: &AddedTokens,
    settings: &Settings<'_>,
) -> Result<Pipeline, DataError> {
    Ok(Pipeline {
        normalizer: replace(" ", "▁"),
        pre_tokenizer: json!({
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": false,
        }),
        post_processor: bos_and_eos(added, settings)?,
        decoder: decoders(bytes_and_spaces()),
    })
}
