//! What can go wrong between a data file and a batch.
//!
//! Every message names the offending thing (file, line or row, column, label) and ends with what to do.
//! Lines count from 1 as an editor counts them; rows count from 1 and leave the header out.

use std::path::PathBuf;

/// Everything that this crate can refuse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// The file cannot be opened or read.
    #[error("cannot read `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },

    /// The extension names no format that can be read.
    #[error(
        "`{}` has no known extension (.jsonl, .json, .csv, .tsv, .parquet, .txt): rename it or name its format",
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
        "`{}` is not UTF-8 at line {line} (byte {offset}): convert it, for example with `iconv -t UTF-8`",
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
        if *quoting { "" } else { " (quotes are literal here; turn quoting on if fields are quoted)" }
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

    /// A quoted CSV field that never ends.
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

    /// Two columns of one name.
    #[error("`{}` has two columns named `{column}`: rename one", path.display())]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },

    /// A line, or the array, is not the JSON that was expected.
    #[error("`{}`, line {line}: {reason}: each row must be one JSON object", path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// Line of the fault, from 1.
        line: usize,
        /// What the parser found.
        reason: String,
    },

    /// The Parquet reader refuses the file.
    #[error("cannot read `{}` as Parquet: {source}: write it again, or name its true format", path.display())]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the reader says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A column that the table lacks.
    #[error(
        "`{}` has no column `{column}`: it has {}{}",
        path.display(),
        quoted_list(available),
        nearest.as_ref().map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
    )]
    MissingColumn {
        /// The file.
        path: PathBuf,
        /// The column asked for.
        column: String,
        /// The columns that there are.
        available: Vec<String>,
        /// The column that resembles the one asked for, where one does.
        nearest: Option<String>,
    },

    /// A cell of the wrong type.
    #[error("`{}`, row {row}, column `{column}`: {found} where {expected} is needed", path.display())]
    WrongType {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column.
        column: String,
        /// What the task needs.
        expected: &'static str,
        /// What the cell holds.
        found: String,
    },

    /// A task that does not exist.
    #[error("unknown task `{name}`: use sequence-classification, regression or causal-lm")]
    UnknownTask {
        /// The name as given.
        name: String,
    },

    /// The columns configured do not describe an example of the task.
    #[error("columns for {task}: {problem}")]
    Columns {
        /// The task.
        task: &'static str,
        /// What is wrong and what to give instead.
        problem: &'static str,
    },

    /// A label outside the label set.
    #[error(
        "`{}`, row {row}, column `{column}`: label `{label}` is not one of {}: \
         correct the row, or train on data that has this label",
        path.display(),
        quoted_list(known)
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

    /// A label set that cannot be used.
    #[error("label set: {reason}: correct `id2label` in the model's config.json")]
    LabelSet {
        /// What is wrong with it.
        reason: String,
    },

    /// A file of the tokenizer is not there.
    #[error(
        "`{}` has no `{file}`: copy `{file}` of the base model into that directory{}",
        directory.display(),
        if *file == "tokenizer.json" {
            " (where the model has only older files, `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` writes it)"
        } else {
            ""
        }
    )]
    TokenizerMissing {
        /// The model directory.
        directory: PathBuf,
        /// The file that is not there.
        file: &'static str,
    },

    /// A file of the tokenizer that cannot be understood.
    #[error("cannot use `{}`: {reason}: fetch the file again from the base model", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A special token that the task needs and the tokenizer lacks.
    #[error("the tokenizer in `{}` names no `{token}`: add it to tokenizer_config.json there", directory.display())]
    SpecialTokenMissing {
        /// The model directory.
        directory: PathBuf,
        /// The token's name, such as `eos_token`.
        token: &'static str,
    },

    /// The tokenizer fails on a text.
    #[error("the tokenizer fails: {reason}: check that tokenizer.json belongs to the base model")]
    Tokenize {
        /// What it says.
        reason: String,
    },

    /// Sequences longer than the model can take.
    #[error(
        "max_length {max_length} is over the model's limit of {limit} positions: use at most {limit}"
    )]
    MaxLengthOverLimit {
        /// The length asked for, in tokens.
        max_length: usize,
        /// The model's own maximum, in tokens.
        limit: usize,
    },

    /// Sequences too short to hold anything.
    #[error("max_length {max_length} leaves no room for text: use at least {least}")]
    MaxLengthTooShort {
        /// The length asked for, in tokens.
        max_length: usize,
        /// The least useful length: special tokens and one more.
        least: usize,
    },

    /// A model directory without a chat template.
    #[error(
        "`{}` has no chat template: put `chat_template.jinja` there, or use a base model made for chat",
        directory.display()
    )]
    ChatTemplateMissing {
        /// The model directory.
        directory: PathBuf,
    },

    /// A chat template that does not parse, or refuses the messages.
    #[error("chat template: {reason}")]
    ChatTemplate {
        /// What the template engine says.
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

    /// A text that becomes no token at all.
    #[error("`{}`, row {row}: the text is empty: remove the row or fill it", path.display())]
    EmptyText {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
    },

    /// A file from which no example with something to learn remains.
    #[error(
        "`{}` gives no example with a token to predict: texts are empty, or max_length {max_length} cuts every target off",
        path.display()
    )]
    NothingToLearn {
        /// The file.
        path: PathBuf,
        /// The length at which examples were cut, in tokens.
        max_length: usize,
    },

    /// Examples of different tasks in one data set or batch.
    #[error(
        "examples of different tasks cannot share a batch: example {index} differs from the first"
    )]
    MixedTargets {
        /// Position of the first example that differs, from 0.
        index: usize,
    },

    /// A batch size of zero.
    #[error("batch_size is 0: use at least 1")]
    ZeroBatchSize,

    /// A batch that the epoch does not have.
    #[error("batch {index} does not exist: the epoch has {count}")]
    NoSuchBatch {
        /// The batch asked for, from 0.
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
