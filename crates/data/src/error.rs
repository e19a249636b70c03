//! Errors between a data file and a batch.
//!
//! Every message names the file, the line or row, the column or the label at fault, and ends with
//! what to do. Lines count from 1 as in an editor; rows count from 1 without the header.

use std::path::PathBuf;

/// Data, a tokenizer or a chat template that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// The extension names no format that can be read.
    #[error(
        "`{}` has no known extension (.jsonl, .json, .csv, .tsv, .parquet, .txt): \
         rename it or name its format",
        path.display()
    )]
    UnknownExtension {
        /// The file.
        path: PathBuf,
    },

    /// A format, given by name, that does not exist.
    #[error("unknown data format `{name}`: use json, csv, tsv, parquet or text")]
    UnknownFormat {
        /// The name as given.
        name: String,
    },

    /// The file holds no rows.
    #[error("`{}` holds no rows: give a file with at least one example", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },

    /// The bytes are not UTF-8.
    #[error(
        "`{}` is not UTF-8 at line {line} (byte {offset}): \
         convert it, for example with `iconv -t UTF-8`",
        path.display()
    )]
    InvalidUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first bad byte, from 1.
        line: usize,
        /// Offset of the first bad byte in the file, from 0.
        offset: usize,
    },

    /// A CSV or TSV record with too many or too few fields.
    #[error(
        "`{}`, line {line}: {found} fields where the first record has {expected}: \
         check separators and quotes on that line{}",
        path.display(),
        if *quoting {
            ""
        } else {
            " (quotes are literal here; turn quoting on if fields are quoted)"
        }
    )]
    RaggedRow {
        /// The file.
        path: PathBuf,
        /// Line on which the record starts, from 1.
        line: usize,
        /// Fields in the first record.
        expected: usize,
        /// Fields in this record.
        found: usize,
        /// Whether quotes were read as quotes.
        quoting: bool,
    },

    /// A quoted CSV field without a closing quote.
    #[error(
        "`{}`, line {line}: a quoted field that starts in this record is never closed: \
         close it, or turn quoting off if quotes are literal",
        path.display()
    )]
    UnclosedQuote {
        /// The file.
        path: PathBuf,
        /// Line on which the record starts, from 1.
        line: usize,
    },

    /// Two columns with the same name.
    #[error("`{}` has two columns named `{column}`: rename one", path.display())]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },

    /// A line, or the array, is not the expected JSON.
    #[error("`{}`, line {line}: {reason}: each row must be one JSON object", path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },

    /// The file is not valid Parquet.
    #[error(
        "cannot read `{}` as Parquet: {source}: write it again, or name its true format",
        path.display()
    )]
    Parquet {
        /// The file.
        path: PathBuf,
        /// The reader's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A column that the table does not have.
    #[error(
        "`{}` has no column `{column}`: it has {}{}",
        path.display(),
        quoted_list(available),
        nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
    )]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The requested column.
        column: String,
        /// The table's columns.
        available: Vec<String>,
        /// The column with the most similar name, if one is similar enough.
        nearest: Option<String>,
    },

    /// A cell of the wrong type.
    #[error(
        "`{}`, row {row}, column `{column}`: {found} where {expected} is needed",
        path.display()
    )]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column.
        column: String,
        /// The type that is needed.
        expected: &'static str,
        /// The cell's value or type.
        found: String,
    },

    /// The configured columns do not describe an example of the requested kind.
    #[error("columns: {reason}")]
    Columns {
        /// What is wrong and what to give instead.
        reason: String,
    },

    /// A label outside the label set.
    #[error(
        "`{}`, row {row}, column `{column}`: label `{label}` is not one of {}: {}",
        path.display(),
        quoted_list(known),
        advice(label, known)
    )]
    UnknownLabel {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column.
        column: String,
        /// The label found.
        label: String,
        /// The label set.
        known: Vec<String>,
    },

    /// A label set that is empty or has a label twice.
    #[error("label set: {reason}: give each class one name")]
    LabelSet {
        /// What is wrong with it.
        reason: String,
    },

    /// A file of the tokenizer does not exist.
    #[error(
        "`{}` has no `{file}`: copy `{file}` of the base model into that directory{}",
        directory.display(),
        if *file == "tokenizer.json" {
            " (if the model has only older files, \
             `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes it)"
        } else {
            ""
        }
    )]
    TokenizerMissing {
        /// The model directory.
        directory: PathBuf,
        /// The file that does not exist.
        file: &'static str,
    },

    /// A file of the tokenizer that cannot be parsed.
    #[error("cannot use `{}`: {reason}: fetch the file again from the base model", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A special token that is needed and that the tokenizer does not have.
    #[error(
        "the tokenizer in `{}` names no `{token}`: add it to tokenizer_config.json there",
        directory.display()
    )]
    SpecialTokenMissing {
        /// The model directory.
        directory: PathBuf,
        /// The token's name, such as `eos_token`.
        token: &'static str,
    },

    /// The tokenizer failed on a text.
    #[error("the tokenizer fails: {reason}: check that tokenizer.json belongs to the base model")]
    Tokenize {
        /// Its message.
        reason: String,
    },

    /// Sequences longer than the model's limit.
    #[error(
        "max_length {max_length} is over the model's limit of {limit} positions: \
         use at most {limit}"
    )]
    MaxLengthOverLimit {
        /// The requested length, in tokens.
        max_length: usize,
        /// The model's limit, in tokens.
        limit: usize,
    },

    /// Sequences too short for any text.
    #[error("max_length {max_length} leaves no room for text: use at least {least}")]
    MaxLengthTooShort {
        /// The requested length, in tokens.
        max_length: usize,
        /// The least useful length: the special tokens and one more.
        least: usize,
    },

    /// A model directory without a chat template.
    #[error(
        "`{}` has no chat template: put `chat_template.jinja` there, or use a base model made for \
         chat",
        directory.display()
    )]
    ChatTemplateMissing {
        /// The model directory.
        directory: PathBuf,
    },

    /// A chat template that does not parse, or that rejects the messages.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// The template engine's message.
        reason: String,
    },

    /// A conversation that cannot become an example.
    #[error("`{}`, row {row}, column `{column}`: {reason}", path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column.
        column: String,
        /// What is wrong with the messages.
        reason: String,
    },

    /// A text that becomes no token.
    #[error("`{}`, row {row}: the text is empty: remove the row or fill it", path.display())]
    EmptyText {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
    },

    /// A file of which no example has a token to predict.
    #[error(
        "`{}` gives no example with a token to predict: texts are empty, or max_length \
         {max_length} cuts every target off",
        path.display()
    )]
    NothingToLearn {
        /// The file.
        path: PathBuf,
        /// The length to which examples were truncated, in tokens.
        max_length: usize,
    },

    /// Targets of different kinds in one data set or batch.
    #[error(
        "targets of different kinds cannot share a batch: that of example {index} is of another \
         kind than the first"
    )]
    MixedTargets {
        /// Position of the first example that differs, from 0.
        index: usize,
    },

    /// A batch size of zero.
    #[error("batch_size is 0: use at least 1")]
    ZeroBatchSize,

    /// A batch outside the epoch.
    #[error("batch {index} does not exist: the epoch has {count}")]
    NoSuchBatch {
        /// The requested batch, from 0.
        index: usize,
        /// Batches in the epoch.
        count: usize,
    },
}

/// "`a`, `b` and 3 more": a list short enough for one line of an error message.
fn quoted_list(names: &[String]) -> String {
    const SHOWN: usize = 20;
    if names.is_empty() {
        return "none".to_owned();
    }
    let shown: Vec<String> = names
        .iter()
        .take(SHOWN)
        .map(|name| format!("`{name}`"))
        .collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What to do about a label outside the label set.
fn advice(label: &str, known: &[String]) -> &'static str {
    let is_placeholder = |name: &String| name.starts_with("LABEL_");
    if label.parse::<usize>().is_ok_and(|id| id < known.len()) {
        "if it is the id of a class, name the classes in the order of their ids with --labels"
    } else if known.iter().all(is_placeholder) {
        "nothing names the classes of this model: name them in the order of their ids with --labels"
    } else {
        "correct the row, or train on data that has this label"
    }
}
