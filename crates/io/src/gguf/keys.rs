//! Keys of the metadata that several crates read or write.

/// The name of the architecture, which is the first part of the keys of its sizes.
pub const ARCHITECTURE: &str = "general.architecture";
/// Of how many files the model is; none for one.
pub const SPLIT_COUNT: &str = "split.count";

/// Which kind of tokenizer: `llama` is SentencePiece's byte pairs, `gpt2` those over bytes.
pub const TOKENIZER_MODEL: &str = "tokenizer.ggml.model";
/// The name of the rule that splits texts before byte pairs are joined.
pub const TOKENIZER_PRE: &str = "tokenizer.ggml.pre";
/// The tokens by id.
pub const TOKENS: &str = "tokenizer.ggml.tokens";
/// The kind of each token.
pub const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";
/// The score of each token.
pub const SCORES: &str = "tokenizer.ggml.scores";
/// Pairs that are joined, the first first, with a space between the two parts.
pub const MERGES: &str = "tokenizer.ggml.merges";
/// Whether a space is put in front of a text.
pub const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
/// Whether the token that begins a text is put in front of it.
pub const ADD_BOS_TOKEN: &str = "tokenizer.ggml.add_bos_token";
/// Whether the token that ends a text is put behind it.
pub const ADD_EOS_TOKEN: &str = "tokenizer.ggml.add_eos_token";
/// The token that begins a text.
pub const BOS_TOKEN_ID: &str = "tokenizer.ggml.bos_token_id";
/// The token that ends a text.
pub const EOS_TOKEN_ID: &str = "tokenizer.ggml.eos_token_id";
/// The token that ends a turn of a chat, where it is another one.
pub const EOT_TOKEN_ID: &str = "tokenizer.ggml.eot_token_id";
/// The token of what the vocabulary does not have.
pub const UNKNOWN_TOKEN_ID: &str = "tokenizer.ggml.unknown_token_id";
/// The padding token.
pub const PADDING_TOKEN_ID: &str = "tokenizer.ggml.padding_token_id";
/// The chat template.
pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
