//! Errors between a data file and a batch.
//!
//! Every message names the file, the line or row, the column or the label at fault, and ends with
//! what to do. Lines count from 1 as in an editor; rows count from 1 without the header.

use std::path::PathBuf;

use epiphyte_io::{FileError, GgufError, GgufProblem};

use crate::chat::TemplateLimit;

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

    /// Data that is too large for memory cannot be written to a file.
    #[error(
        "data that is too large for memory cannot be kept in `{}`: {source}; free space there, or \
         set TMPDIR to a directory on a disk with room",
        directory.display()
    )]
    Scratch {
        /// The directory of the file, which has no name.
        directory: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },

    /// The extension names no format that can be read.
    #[error(
        "`{}` has no known extension (.jsonl, .json, .csv, .tsv, .parquet, .conll, .txt, or .gz \
         after one of these): rename it or name its format",
        path.display()
    )]
    UnknownExtension {
        /// The file.
        path: PathBuf,
    },

    /// A format, given by name, that does not exist.
    #[error("unknown data format `{name}`: use json, csv, tsv, parquet, conll or text")]
    UnknownFormat {
        /// The name as given.
        name: String,
    },

    /// Standard input has no extension that could name its format.
    #[error("`-` is standard input, which has no extension: name its format")]
    UnnamedFormat,

    /// A delimiter that cannot be one.
    #[error(
        "delimiter {given:?}: use one ASCII character that is neither a quote nor the end of a \
         line, or the word tab"
    )]
    Delimiter {
        /// The delimiter as given.
        given: String,
    },

    /// A file in another format than text.
    #[error("`{}` is {found}: {advice}", path.display())]
    NotText {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What to do.
        advice: &'static str,
    },

    /// A compressed or Parquet file that becomes too large in memory.
    #[error(
        "`{}` becomes more than {limit} bytes when it is read, the limit for a file of its size: give \
         only the columns and rows that are needed, or the data as JSONL",
        path.display()
    )]
    Expansion {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },

    /// Rows whose keys differ so much that almost every cell is empty.
    #[error(
        "`{}`: {rows} rows with {columns} different keys are over the limit of {limit} cells: \
         give all rows the same keys, or name the columns to be read",
        path.display()
    )]
    TooManyCells {
        /// The file.
        path: PathBuf,
        /// Rows read so far.
        rows: usize,
        /// Columns found so far.
        columns: usize,
        /// The limit: a cell for each byte of the file, or a million.
        limit: usize,
    },

    /// An output format, given by name, that does not exist.
    #[error("unknown output format `{name}`: use jsonl, csv, tsv or parquet")]
    UnknownOutputFormat {
        /// The name as given.
        name: String,
    },

    /// Columns that cannot be written.
    #[error("the output cannot be written in this format: {source}")]
    Write {
        /// The writer's error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The file holds no rows.
    #[error("`{}` holds no rows: give a file with at least one example", path.display())]
    EmptyFile {
        /// The file.
        path: PathBuf,
    },

    /// Some of the rows of plain text, which has one.
    #[error(
        "`{}` is plain text, all of it one row, so there are no rows to choose from: leave out how \
         many, or give the text as JSONL with a row for each document",
        path.display()
    )]
    OneRow {
        /// The file.
        path: PathBuf,
    },

    /// The bytes are not UTF-8.
    #[error(
        "`{}` is not UTF-8 at line {line} (byte {offset}): convert it from its encoding, such as \
         `iconv -f WINDOWS-1252 -t UTF-8 FILE` for Western European text",
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

    /// Several columns with the name that is asked for.
    #[error("`{}` has several columns named `{column}`: rename all but one", path.display())]
    DuplicateColumn {
        /// The file.
        path: PathBuf,
        /// The name.
        column: String,
    },

    /// A column of a type that no task can use.
    #[error(
        "`{}`: column `{column}` has the type {kind}, which is neither text, number, date nor a \
         list of these: convert it",
        path.display()
    )]
    UnreadableColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        kind: String,
    },

    /// A column that is in the file, but that [`crate::ReadOptions::columns`] leaves out.
    #[error("`{}`: column `{column}` was not read: name it among the columns to read", path.display())]
    SkippedColumn {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },

    /// A line, or the array, is not the expected JSON.
    #[error("`{}`, line {line}: {reason}: {advice}", path.display())]
    InvalidJson {
        /// The file.
        path: PathBuf,
        /// Line of the error, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
        /// What to do.
        advice: &'static str,
        /// Whether the text ends before the JSON does.
        cut: bool,
    },

    /// A line of a CoNLL file that is no word with its labels.
    #[error(
        "`{}`, line {line}: {reason}: each line is a word with its labels, separated by tabs or \
         blanks, and each sentence ends with an empty line",
        path.display()
    )]
    InvalidConll {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },

    /// A row with another number of tags than words.
    #[error(
        "`{}`, row {row}: {tags} tags in column `{column}` for {words} words: give each word one tag",
        path.display()
    )]
    TagCount {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column of the tags.
        column: String,
        /// How many tags there are.
        tags: usize,
        /// How many words there are.
        words: usize,
    },

    /// 0 and 1 for more or fewer classes than there are.
    #[error(
        "`{}`, row {row}: {found} values of 0 and 1 in `{column}`, for {} classes ({})",
        path.display(),
        classes.len(),
        quoted_list(classes)
    )]
    ClassCount {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column, or several.
        column: String,
        /// How many values there are.
        found: usize,
        /// The classes.
        classes: Vec<String>,
    },

    /// An answer that its text does not have.
    #[error(
        "`{}`, row {row}: the text has no `{answer}`{}: correct the answer, which is a part of the \
         text, letter by letter, or remove the row",
        path.display(),
        start.map_or_else(String::new, |start| format!(" (answer_start {start})"))
    )]
    SpanMismatch {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The answer.
        answer: String,
        /// Where it is said to begin, in characters.
        start: Option<usize>,
    },

    /// A question that leaves too little room for the text.
    #[error(
        "`{}`, row {row}: the question has {tokens} tokens, and max_length {max_length} leaves no \
         room for a window of the text{}: raise max_length, or shorten the question",
        path.display(),
        doc_stride.map_or_else(String::new, |it| format!(" of more than doc_stride {it} tokens"))
    )]
    QuestionTooLong {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The question's tokens.
        tokens: usize,
        /// The longest example.
        max_length: usize,
        /// The tokens that windows are to share, if given.
        doc_stride: Option<usize>,
    },

    /// One object with several lists of rows.
    #[error(
        "`{}` holds several lists of rows ({}): write the one that is meant to a file of its own",
        path.display(),
        quoted_list(names)
    )]
    SeveralTables {
        /// The file.
        path: PathBuf,
        /// The names of the lists.
        names: Vec<String>,
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

    /// A row without a label.
    #[error(
        "`{}`, row {row}, column `{column}`: the label is missing ({found}): fill it in or remove \
         the row; if it is the name of a class, name all classes",
        path.display()
    )]
    MissingLabel {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The column.
        column: String,
        /// The cell.
        found: String,
    },

    /// Training data of one class.
    #[error(
        "`{}`: all {rows} rows have the label `{label}` in column `{column}`, and a classifier \
         needs at least two classes: give data with the other ones, or another column",
        path.display()
    )]
    OneClass {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
        /// The label.
        label: String,
        /// The number of rows.
        rows: usize,
    },

    /// Columns of text and label that were taken for each other.
    #[error(
        "`{}`: column `{label}`, as label, has {labels} different values in {rows} rows, and \
         column `{text}`, as text, only {texts}: exchange the two columns",
        path.display()
    )]
    SwappedColumns {
        /// The file.
        path: PathBuf,
        /// The label column.
        label: String,
        /// Different labels.
        labels: usize,
        /// The text column.
        text: String,
        /// Different texts.
        texts: usize,
        /// The number of rows.
        rows: usize,
    },

    /// A directory, a pattern or a list of files of which none can be read as data.
    #[error("`{}`: {reason}", given.display())]
    DataFiles {
        /// What was given.
        given: PathBuf,
        /// Why.
        reason: String,
    },

    /// A label set that is empty or has a label twice.
    #[error("label set: {reason}: give each class one name")]
    LabelSet {
        /// What is wrong with it.
        reason: String,
    },

    /// A GGUF file cannot be trusted, or its tokenizer is not supported.
    #[error("`{}` is not a usable GGUF file", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        problem: Box<GgufProblem>,
    },

    /// llama.cpp does not have such a tokenizer.
    #[error("the tokenizer cannot be written to GGUF: {reason}")]
    NotGguf {
        /// What llama.cpp does not have.
        reason: String,
    },

    /// A file of the tokenizer does not exist.
    #[error(
        "`{}` has no `{file}`: copy `{file}` of the base model into that directory{}",
        directory.display(),
        if *file == "tokenizer.json" {
            " (or the older files of its tokenizer: vocab.txt, vocab.json and merges.txt, or a \
             SentencePiece model, with tokenizer_config.json)"
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

    /// A directory without tokenizer.json whose older files are not of a class that is known here.
    #[error(
        "`{}` has no tokenizer.json, and {}: \
         `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` in Python writes tokenizer.json; \
         other files are read for {}",
        directory.display(),
        match class {
            Some(class) => format!("its tokenizer's class is `{class}`"),
            None => "neither tokenizer_config.json nor config.json says its tokenizer's class".into(),
        },
        known.join(", ")
    )]
    TokenizerClass {
        /// The model directory.
        directory: PathBuf,
        /// `tokenizer_class`, if a file names it.
        class: Option<String>,
        /// The classes that are known.
        known: Vec<&'static str>,
    },

    /// A file of the tokenizer that cannot be parsed.
    #[error("cannot use `{}`: {reason}: fetch the file again from the base model", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },

    /// A tokenizer.json on which the tokenizer breaks.
    #[error(
        "`{}` is damaged: {reason}: fetch the file again from the base model",
        path.display()
    )]
    TokenizerDamaged {
        /// The file.
        path: PathBuf,
        /// What broke.
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

    /// A word that is to stand for a class is no single token.
    #[error(
        "the word `{word}` is {pieces} tokens of the model's vocabulary, but what stands at the mask is \
         one: choose a word that is a single token"
    )]
    WordSplits {
        /// The word.
        word: String,
        /// How many tokens it is; 0 where the vocabulary does not have it at all.
        pieces: usize,
    },

    /// A text of a cloze template has the mask token in it.
    #[error(
        "`{}`, row {row}: the mask token stands in a text column too, so that it is not known which word is \
         hidden: remove it there",
        path.display()
    )]
    SeveralMasks {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
    },

    /// A cloze template alone is longer than an example may be.
    #[error(
        "`{}`, row {row}: the prompt template alone is {length} tokens, but an example may have no more than \
         {max_length}: shorten it, or raise --max-length",
        path.display()
    )]
    TemplateTooLong {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
        /// The tokens without any of the columns.
        length: usize,
        /// The longest example.
        max_length: usize,
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
        "`{}` has no chat template: pass --chat-template, put `chat_template.jinja` there, or use \
         a base model made for chat",
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

    /// A chat template that exceeds a limit.
    #[error("chat template: {0}: use the template of a model that you trust")]
    ChatTemplateLimit(#[source] TemplateLimit),

    /// A text that names no day.
    #[error("`{text}` is no day: write it as 2026-11-30")]
    Day {
        /// The text.
        text: String,
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

impl From<GgufError> for DataError {
    fn from(error: GgufError) -> Self {
        match error {
            GgufError::Problem { path, problem } => Self::Gguf { path, problem },
            GgufError::File(error) => error.into(),
        }
    }
}

impl From<FileError> for DataError {
    fn from(error: FileError) -> Self {
        match error {
            FileError::StorageFull { path, source } | FileError::Io { path, source, .. } => {
                Self::Io { path, source }
            }
        }
    }
}
