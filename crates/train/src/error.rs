//! What can go wrong around a training run, one small enum per concern.
//!
//! The trainer's own error wraps these with `#[from]`; each message names the file, key or row and
//! says what to do next.

use std::path::PathBuf;

use epiphyte_io::FileError;
use thiserror::Error;

/// The JSON Lines log cannot be continued.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JournalError {
    /// The file could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// A line before the last one is not a journal record; only a last line can be torn by a kill.
    #[error(
        "line {line} of `{path}` is not a journal record: repair or remove the file, then run again"
    )]
    InvalidLine {
        /// The journal.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What the JSON parser found.
        source: serde_json::Error,
    },
}

/// A learning-rate schedule is asked for that does not exist.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum ScheduleError {
    /// No schedule has this name.
    #[error(
        "unknown learning-rate schedule `{0}`: use linear, cosine, constant or constant_with_warmup"
    )]
    UnknownKind(String),
    /// The warm-up ratio is not a share of the run.
    #[error("warmup_ratio is {0}, but it is a share of all steps: give a number from 0 to 1")]
    WarmupRatio(f64),
}

/// Predictions and labels that cannot be scored.
#[derive(Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum MetricError {
    /// There is nothing to score.
    #[error("no examples to score: the evaluation data is empty")]
    Empty,
    /// Predictions and labels do not pair up.
    #[error("{predictions} predictions but {labels} labels: one of each is needed per example")]
    Lengths {
        /// How many predictions were given.
        predictions: usize,
        /// How many labels were given.
        labels: usize,
    },
    /// A class index outside `0..classes`.
    #[error(
        "example {example} has class {class}, but the task has {classes} classes, numbered from 0"
    )]
    ClassOutOfRange {
        /// The example's index, from 0.
        example: usize,
        /// The offending class.
        class: usize,
        /// The number of classes of the task.
        classes: usize,
    },
    /// A NaN or infinite prediction or target of a regression.
    #[error(
        "example {example} has the value {value}, which cannot be scored: predictions and targets are finite"
    )]
    NotFinite {
        /// The example's index, from 0.
        example: usize,
        /// The offending value.
        value: f64,
    },
    /// A text without a reference to compare it with.
    #[error("example {example} has no reference: give each text one or several")]
    NoReference {
        /// The example's index, from 0.
        example: usize,
    },
    /// A score of written texts that there is not.
    #[error("there is no metric `{name}` of texts: use one of {available}")]
    UnknownTextMetric {
        /// The name that was given.
        name: String,
        /// The names there are, separated by commas.
        available: String,
    },
    /// METEOR is to be computed without its tables.
    #[error(
        "METEOR compares words by WordNet's synonyms and by a table of paraphrases, which are not \
         part of this program: get them with `pip install pycocoevalcap`, and name its directory \
         `meteor` (--meteor-data .../site-packages/pycocoevalcap/meteor)"
    )]
    NoMeteorTables,
    /// METEOR's tables are named, and METEOR is not to be computed.
    #[error("--meteor-data has the tables of METEOR: add meteor to --metrics")]
    UnusedMeteorTables,
    /// A file of METEOR's tables cannot be used.
    #[error(
        "`{path}`: {problem}; METEOR's tables are a directory with meteor-1.5.jar and \
         data/paraphrase-en.gz, such as `meteor` of PyPI's pycocoevalcap"
    )]
    MeteorTable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The metric to select the best checkpoint by is not measured by this task.
    #[error(
        "metric `{name}` is not among the evaluation's results ({available}): choose one of these"
    )]
    NotMeasured {
        /// The metric asked for.
        name: String,
        /// The names there are, separated by commas.
        available: String,
    },
}

/// A run, an evaluation or a prediction cannot go on.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The configuration is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// A setting's value is of the wrong type, or not among those that there are.
    #[error("configuration: `{key}`: {problem}")]
    Setting {
        /// The key.
        key: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// Neither the method nor a head of the task has a parameter to train.
    #[error(
        "{method} trains nothing with these settings, and the task has no head of its own to train; \
         choose what is trained with the method's settings"
    )]
    NothingToTrain {
        /// The method.
        method: &'static str,
    },
    /// Which class is which output of the head is not known, or said in two ways.
    #[error("{0}")]
    ClassOrder(String),
    /// A task that does not exist.
    #[error("unknown task `{name}`; known are {known}")]
    UnknownTask {
        /// The name as given.
        name: String,
        /// The names of all tasks, quoted and separated by commas.
        known: String,
    },
    /// The configured columns do not fit the task.
    #[error("{task}: {source}")]
    Columns {
        /// The task.
        task: crate::TaskKind,
        /// What is wrong with them.
        source: epiphyte_data::DataError,
    },
    /// The base model was not found.
    #[error(transparent)]
    Hub(#[from] epiphyte_hub::HubError),
    /// Data cannot be used.
    #[error(transparent)]
    Data(#[from] epiphyte_data::DataError),
    /// The base model cannot be used.
    #[error(transparent)]
    Model(#[from] epiphyte_models::ModelError),
    /// The method or an adapter's files cannot be used.
    #[error(transparent)]
    Method(#[from] epiphyte_methods::MethodError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// The log cannot be read or written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The schedule is wrong.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    /// There is nothing to score.
    #[error(transparent)]
    Metric(#[from] MetricError),
    /// A checkpoint's state is malformed.
    #[error("`{}` is damaged: {reason}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A model or a delta was not trained from the base that is given.
    #[error("`{}` does not fit the base: {reason}", path.display())]
    OfOtherBase {
        /// The directory or file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// llama.cpp would compute something else than the model.
    #[error("the model cannot be exported to GGUF: {reason}")]
    NotGguf {
        /// What llama.cpp does not have.
        reason: String,
    },
    /// A file is no patch of a merged model.
    #[error("`{}` is no patch: pass the file that `epiphyte merge --patch` wrote", path.display())]
    NoPatch {
        /// The file.
        path: PathBuf,
    },
    /// A patch was written with another merged model.
    #[error(
        "`{}` is not the model that the patch `{}` was written with, or was changed since: pass that \
         model and its own patch",
        path.display(),
        patch.display()
    )]
    OtherMerged {
        /// The model's directory.
        path: PathBuf,
        /// The patch.
        patch: PathBuf,
    },
    /// The output directory holds another run.
    #[error(
        "`{}` belongs to another run: {}; give it what it had, or choose another --output",
        path.display(),
        differences.join("; ")
    )]
    OtherRun {
        /// The checkpoint.
        path: PathBuf,
        /// What differs, each as a phrase.
        differences: Vec<String>,
    },
    /// A directory with the name of a checkpoint to come is none of ours.
    #[error(
        "`{}` is not a checkpoint of this program, and the run would save one there: move it, or choose \
         another --output",
        path.display()
    )]
    CheckpointForeign {
        /// The directory.
        path: PathBuf,
    },
    /// Another process writes to the output directory.
    #[error(
        "another process writes to `{}`: wait for it, or choose another --output",
        path.display()
    )]
    OutputInUse {
        /// The directory.
        path: PathBuf,
    },
    /// What is to become a directory is something else.
    #[error("`{}` {is}: choose a directory as --output", path.display())]
    OutputNoDirectory {
        /// The path.
        path: PathBuf,
        /// What it is: "is a file".
        is: &'static str,
    },
    /// A run's file or directory is a link.
    #[error(
        "`{}` is a link, and what it points to would be changed: remove it, or choose another --output",
        path.display()
    )]
    OutputLink {
        /// The link.
        path: PathBuf,
    },
    /// A run is to be resumed that left no checkpoint.
    #[error(
        "`{}` holds an adapter but no checkpoint to go on from; pass --overwrite to train it anew, or \
         choose another --output",
        path.display()
    )]
    NothingToResume {
        /// The directory.
        path: PathBuf,
    },
    /// The output directory is taken.
    #[error(
        "`{}` already holds a run; pass --resume to go on with it, --overwrite to begin anew, or choose \
         another --output",
        path.display()
    )]
    OutputTaken {
        /// The directory.
        path: PathBuf,
    },
    /// The output directory holds files that no run of ours wrote.
    #[error(
        "`{}` holds `{entry}`, which is not a run's: choose an empty directory for --output, so that \
         nothing of yours is replaced",
        path.display()
    )]
    OutputForeign {
        /// The directory.
        path: PathBuf,
        /// One of its files.
        entry: String,
    },
    /// The output directory of a merge has an earlier merged model.
    #[error(
        "`{}` holds a merged model: pass --overwrite to replace it, or choose another --output",
        path.display()
    )]
    OutputMerged {
        /// The directory.
        path: PathBuf,
    },
    /// The output directory of a merge has files that no merge wrote.
    #[error(
        "`{}` holds `{entry}`, which is not a merged model's: choose an empty directory for --output, \
         so that nothing of yours is replaced",
        path.display()
    )]
    OutputNotMerged {
        /// The directory.
        path: PathBuf,
        /// One of its files.
        entry: String,
    },
    /// A file of the base that a merged model needs is not a plain file of the base's own.
    #[error("`{}` {reason}: put the file itself there, or remove it", path.display())]
    NotCopied {
        /// The file.
        path: PathBuf,
        /// What it is.
        reason: &'static str,
    },
    /// A token is not in the model's vocabulary.
    #[error(
        "token {id} is not in the model's vocabulary of {vocabulary}: tokenizer.json belongs to another model"
    )]
    Vocabulary {
        /// The token.
        id: u32,
        /// The vocabulary's size.
        vocabulary: usize,
    },
    /// An example and what the method adds to it are longer than the model's positions.
    #[error(
        "an example has {length} tokens and the method adds {added}, but the model has {limit} positions: \
         set max_length (--max-length) to {} or less",
        limit.saturating_sub(*added)
    )]
    ExampleTooLong {
        /// Tokens of the longest example.
        length: usize,
        /// Virtual tokens, or positions that a prefix takes.
        added: usize,
        /// The model's positions.
        limit: usize,
    },
    /// The tokenizer marks segments that the model has no embedding for.
    #[error(
        "the tokenizer marks tokens with segment {segment}, but the model has {segments} (`type_vocab_size` in \
         config.json): give one text column instead of a pair, or take a base that was made for pairs"
    )]
    NoSuchSegment {
        /// The largest segment in the data, from 0.
        segment: u32,
        /// The number of segments of the model.
        segments: usize,
    },
    /// A template has soft tokens that the adapter has no vectors for, or not as many.
    #[error(
        "the prompt template has {template} soft tokens, and the adapter vectors for {adapter}: use \
         `prompt-tuning`, `p-tuning` or `spot` with num_virtual_tokens {template}"
    )]
    SoftTokens {
        /// Soft tokens of the template.
        template: usize,
        /// Vectors of the adapter.
        adapter: usize,
    },
    /// A file of sentence-transformers' layout cannot be used.
    #[error("`{}` {reason}", path.display())]
    SentenceTransformers {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// Examples have target texts, but the model has one stack.
    #[error(
        "a target text for each source text needs an encoder-decoder such as T5, and this model is none: use \
         the task causal-lm"
    )]
    NoDecoder,
    /// The model is an encoder-decoder, but examples have no target texts.
    #[error(
        "this model is an encoder-decoder, which learns a target text for each source text: use the task seq2seq"
    )]
    NoTargetText,
    /// A batch has no target.
    #[error("step {step} has no target to learn from: every label is ignored")]
    NothingToLearn {
        /// The step.
        step: u64,
    },
    /// Trained parameters do not reach the loss.
    #[error("no gradient reaches {}: the method trains what the loss does not depend on", names.join(", "))]
    NoGradient {
        /// The parameters' keys.
        names: Vec<String>,
    },
    /// A method's own account of itself is not true.
    #[error(
        "the method `{method}` declares {declaration}, but {found}: its account is wrong, which is an error \
         of the method and not of the run; the adapter is saved"
    )]
    Account {
        /// The method.
        method: String,
        /// What it declares.
        declaration: String,
        /// What was measured.
        found: String,
    },
    /// A number is NaN or infinite.
    #[error(
        "step {step}: {what} is not finite; begin anew (--overwrite) with a lower learning rate or a longer \
         warm-up"
    )]
    NonFinite {
        /// The tensor.
        what: String,
        /// The step.
        step: u64,
    },
    /// What a model computes, or a merged tensor, is NaN or infinite.
    #[error(
        "{what} is not finite: a tensor of the base or of the adapter is NaN, infinite or too large; if \
         training made it so, lower the learning rate"
    )]
    NotFinite {
        /// The logits, the loss or the tensor.
        what: String,
    },
    /// A classifier of a model that has no classes.
    #[error(
        "the model's task is {task}, which has not one class for a text: open an adapter for sequence classification"
    )]
    NoClasses {
        /// The task.
        task: crate::TaskKind,
    },
    /// Predictions of a task that predicts text.
    #[error(
        "a language model has no labels to predict: `epiphyte generate` writes text, `epiphyte \
         eval` measures loss and perplexity"
    )]
    NoPredictions,
    /// Predictions of a masked language model, which hides tokens itself.
    #[error(
        "masked-lm has nothing to predict for a row: `epiphyte eval` measures loss and perplexity, and \
         the task cloze tells classes by the word that fits"
    )]
    NothingHidden,
    /// A verbalizer's file cannot be used.
    #[error(
        "`{}` {reason}: write it as {{\"good\": [\"great\", \"fine\"], \"bad\": \"terrible\"}}",
        path.display()
    )]
    Verbalizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Embeddings of a model whose task is another.
    #[error(
        "the model's task is {task}, which makes no embeddings: open an adapter for these, or none"
    )]
    NoEmbeddings {
        /// The task.
        task: crate::TaskKind,
    },
    /// A classifier of a model whose head is not trained.
    #[error("the base has no head for {task}: open an adapter with it, or train one")]
    NoHead {
        /// The task.
        task: crate::TaskKind,
    },
    /// A text without tokens.
    #[error("text {number} of those to classify has no token: leave it out")]
    EmptyText {
        /// Its number, from 1.
        number: usize,
    },
    /// The model cannot generate.
    #[error("this model has no language-model head, so it cannot generate")]
    CannotGenerate,
    /// An encoder-decoder whose text begins with an unknown token.
    #[error(
        "the model's files do not say with which token the text of its decoder begins: write \
         `decoder_start_token_id` into its generation_config.json; mBART begins with the language"
    )]
    NoDecoderStart,
    /// A text without tokens for an encoder.
    #[error("the prompt has no token for the encoder to read: write one")]
    EmptyPrompt,
    /// The prompt leaves no room for a new token.
    #[error("the prompt has {length} tokens, but the model reads no more than {limit}: shorten it")]
    PromptTooLong {
        /// Tokens of the prompt, virtual ones included.
        length: usize,
        /// The longest text that the model can read.
        limit: usize,
    },
    /// Texts were asked for of a model that writes none.
    #[error("metrics score written texts, and {task} writes none: leave out `metrics` (--metrics)")]
    WritesNoText {
        /// The task.
        task: crate::TaskKind,
    },
    /// A prompt of the data has no text to compare with.
    #[error(
        "row {row} of `{}` has no text that would be right, with which `metrics` (--metrics) compares: name its \
         column, as --completion-column, --target-column or --messages-column, or for `epiphyte eval` as \
         --references",
        path.display()
    )]
    NoReference {
        /// The file.
        path: PathBuf,
        /// The row, from 1.
        row: usize,
    },
    /// One of several prompts cannot be continued.
    #[error("prompt {number}: {source}")]
    OfPrompt {
        /// Its number, from 1.
        number: usize,
        /// Why.
        source: Box<TrainError>,
    },
}

impl TrainError {
    /// An error of data; if it is one of the columns, with the task that needs them.
    pub fn of_columns(task: crate::TaskKind, source: epiphyte_data::DataError) -> Self {
        use epiphyte_data::DataError::{Columns, MissingColumn};
        match source {
            Columns { .. } | MissingColumn { .. } => Self::Columns { task, source },
            other => Self::Data(other),
        }
    }
}
