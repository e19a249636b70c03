//! The configuration of a run. Every key is a flag of `epiphyte train`, and every flag is a key.
//!
//! Keys that are not here are settings of the method, which refuses those that it does not know.

use std::path::{Path, PathBuf};

use epiphyte_data::{
    Columns, DataError, DataFile, Fields, Format, Order, ReadOptions, Table, parse_delimiter,
};
use epiphyte_methods::by_name;
use epiphyte_methods::framework::settings::{SettingError, Settings, parse};
use epiphyte_models::ModelConfig;
use epiphyte_models::heads::{EmbeddingLoss, EmbeddingPooling};
use epiphyte_ops::{Precision, Quantization};
use serde_json::{Map, Value};

use crate::TrainError;
use crate::generate::Generation;
use crate::scoring::metrics::texts::TextMetric;
use crate::tasks::class_order::{self, BaseClasses, ClassOrder};
use crate::tasks::{TaskKind, TaskSpec};
use crate::training::activation_cache::ActivationCacheKind;
use crate::training::early_stopping::Selection;
use crate::training::optimizer::OptimizerKind;
use crate::training::schedule::{ScheduleKind, Warmup};

epiphyte_methods::settings! {
    /// A run: model, data, method, optimization, output.
    pub struct RunConfig {
        /// Directory of the base model (config.json, *.safetensors, tokenizer.json), its GGUF file,
        /// or its name on the hub.
        model: PathBuf = PathBuf::new();
        /// Directory for the adapter, the log and the checkpoints.
        output: PathBuf = PathBuf::new();
        /// What is learned; or a data set, such as glue/rte (see `epiphyte data sets`), which says
        /// task, columns, classes and score, and whose directory --train-data takes.
        task: TaskKind = TaskKind::default(), as Text;
        /// Training examples: .jsonl, .json, .csv, .tsv, .parquet, .conll or .txt, the text formats
        /// also with .gz; a directory of such files, a pattern with * and ?, or several, separated
        /// by commas, each with :N behind it if its rows count N times; - for standard input. Each
        /// line of a .txt file is a row; for causal-lm the whole file is one.
        train_data: PathBuf = PathBuf::new();
        /// Evaluation examples.
        eval_data: Option<PathBuf> = None;
        /// Text column, or two for pairs: a,b.
        text_columns: Vec<String> = Vec::new();
        /// Column of the label or number.
        label_column: Option<String> = None, unset "label";
        /// Multi-label classification: a column of 0 and 1 for each class: a,b,...
        label_columns: Vec<String> = Vec::new();
        /// Multiple choice: the columns of the choices: a,b,...
        choice_columns: Vec<String> = Vec::new();
        /// Names of the classes in the order of their ids: a,b,...
        labels: Vec<String> = Vec::new(),
            unset "the base model's, if it knows those of the data; else those of the data, sorted";
        /// Language modeling: column of the prompt, or several, joined by a blank line without the
        /// empty ones. The completion follows with nothing between.
        prompt_column: Vec<String> = Vec::new();
        /// Language modeling: the prompt as a text with {column} in it, and \n for a newline; or
        /// alpaca, for Alpaca's prompt of instruction and input.
        prompt_template: Option<String> = None;
        /// Language modeling: column of the completion; only its tokens have a loss.
        completion_column: Option<String> = None;
        /// Language modeling: column of the chat messages, with role and content or, as in
        /// ShareGPT, from and value.
        messages_column: Option<String> = None;
        /// Sequence to sequence: column of the source text.
        source_column: Option<String> = None;
        /// Sequence to sequence: column of the target text.
        target_column: Option<String> = None;
        /// Sentence embeddings: what is minimized. Of an anchor and its positive
        /// multiple-negatives-ranking or multiple-negatives-symmetric-ranking, of two texts and a
        /// score cosent or cosine-similarity.
        embedding_loss: Option<EmbeddingLoss> = None, as Text,
            unset "multiple-negatives-ranking; cosent with --label-column";
        /// Sentence embeddings: which hidden states make an embedding: mean, cls or lasttoken.
        pooling: Option<EmbeddingPooling> = None, as Text,
            unset "as the base's 1_Pooling says, else mean";
        /// Sentence embeddings: whether they have length 1.
        normalize: Option<bool> = None, as Boolean, unset "whether the base has 2_Normalize";
        /// Cloze: JSON file with the words that stand for each class, such as
        /// {"good": ["great", "fine"], "bad": "terrible"}; stored with the adapter.
        verbalizer: Option<PathBuf> = None;
        /// Format of the data: json, jsonl, csv, tsv, parquet, conll or text.
        format: Option<String> = None, unset "by extension";
        /// CSV and TSV without a header line; columns are called 0, 1, and so on.
        no_header: bool = false;
        /// Whether " quotes fields: true or false.
        quoting: Option<bool> = None, as Boolean, unset "CSV true, TSV false";
        /// CSV and TSV: character between fields, or the word tab.
        delimiter: Option<String> = None, unset "CSV , or what the header has instead, TSV tab";
        /// Use only N training rows: a random sample by --seed, in the order of the file.
        max_train_rows: Option<usize> = None, in Positive;
        /// Use only N evaluation rows: a random sample by --seed, in the order of the file.
        max_eval_rows: Option<usize> = None, in Positive;
        /// Data of the task whose head the base has, such as texts for a language model: it is
        /// scored with the trained adapter and without, so that the account says what the base has
        /// forgotten.
        forgetting_data: Option<PathBuf> = None;
        /// Use only N rows of the forgetting data: a random sample, the same for every run.
        max_forgetting_rows: Option<usize> = None, in Positive;
        /// Plain text: join all rows and cut the result into examples of max-length tokens; false
        /// makes each row an example and cuts its end off.
        packing: bool = true;
        /// File with a chat template (Jinja) in place of the base model's own; stored with the
        /// adapter.
        chat_template: Option<PathBuf> = None;
        /// Maximum length of an example in tokens; longer ones are truncated.
        max_length: Option<usize> = None, in Positive, unset "128, 384 for question answering, 512 for language modeling";
        /// Question answering: how many tokens neighboring windows of a text share.
        doc_stride: Option<usize> = None, unset "128, or half of a window's text if that is less";
        /// Question answering: longest answer in tokens.
        max_answer_length: Option<usize> = None, in Positive, unset "30";
        /// Fine-tuning method, see `epiphyte methods`; --method NAME --help shows its settings.
        method: String = "lora".to_owned();
        /// Epochs: passes over the training data.
        epochs: f64 = 3.0, in Positive;
        /// Stop after N optimizer steps; overrides --epochs.
        max_steps: Option<u64> = None, in Positive;
        /// Sequences in a batch.
        batch_size: usize = 32, in Positive;
        /// Sequences in a batch during evaluation.
        eval_batch_size: Option<usize> = None, in Positive, unset "the batch size";
        /// Batches per optimizer step.
        gradient_accumulation_steps: usize = 1, in Positive;
        /// Peak learning rate. The defaults suit models of up to some hundred million parameters;
        /// larger ones take less, such as 2e-4 for LoRA at a billion.
        learning_rate: Option<f64> = None, in Positive, unset "the method's own";
        /// Learning-rate schedule: linear, cosine, constant or constant_with_warmup.
        lr_scheduler_type: ScheduleKind = ScheduleKind::Linear, as Text;
        /// Linear warm-up as a fraction of all steps.
        warmup_ratio: f64 = 0.06, in Fraction;
        /// Linear warm-up steps; overrides --warmup-ratio.
        warmup_steps: Option<u64> = None;
        /// Optimizer: adamw; adamw-8bit, with its state in 8 bits; adafactor; galore, AdamW in a
        /// subspace of each weight's gradient, and lisa, AdamW on a few layers at a time, both for
        /// --method full.
        optimizer: OptimizerKind = OptimizerKind::AdamW, alias "optim", as Text;
        /// GaLore: dimensions of the subspace.
        galore_rank: usize = 128, in Positive;
        /// GaLore: steps after which the subspace is computed anew.
        galore_update_proj_gap: u64 = 200, in Positive;
        /// GaLore: what a step in the subspace is multiplied by.
        galore_scale: f64 = 0.25, in Positive;
        /// LISA: layers that are trained at a time.
        lisa_activated_layers: usize = 2, in Positive;
        /// LISA: steps after which layers are drawn anew.
        lisa_interval_steps: u64 = 20, in Positive;
        /// Decoupled weight decay; biases and norms are not decayed.
        weight_decay: f64 = 0.0, in NotNegative;
        /// AdamW's beta1: decay of the running mean of gradients.
        adam_beta1: f64 = 0.9, in Fraction;
        /// AdamW's beta2: decay of the running mean of squared gradients.
        adam_beta2: f64 = 0.999, in Fraction;
        /// AdamW's epsilon: added to the denominator.
        adam_epsilon: f64 = 1e-8, in NotNegative;
        /// Gradient clipping: maximum norm of all gradients together; 0 for none.
        max_grad_norm: f64 = 1.0, in NotNegative;
        /// Label smoothing: share of the target probability that is spread over all classes.
        label_smoothing: f64 = 0.0, in Fraction;
        /// Dropout of the base model.
        base_dropout: Option<f64> = None, in Fraction, unset "as its config.json says";
        /// Data type of the frozen base: f32 or bf16.
        precision: Precision = Precision::F32, as Text;
        /// Quantize the linear layers of the frozen base: nf4, fp4, int8 or int4. Products decode
        /// them to --precision. What the method itself trains in their place is f32.
        quantization: Option<Quantization> = None, as Text, unset "none, or as the base's files are";
        /// Approximate number of tokens in a micro-batch; a larger batch is split, and its
        /// gradients are accumulated.
        micro_batch_tokens: Option<usize> = None, alias "tokens-per-pass", in Positive,
            unset "512; the whole batch on a GPU";
        /// Recompute activations during backward: less memory, more time.
        gradient_checkpointing: bool = false;
        /// Cache for hidden states below the lowest trained layer, over epochs: auto, memory, disk
        /// or off.
        activation_cache: ActivationCacheKind = ActivationCacheKind::Auto, alias "trunk-cache", as Text;
        /// Maximum size of the activation cache in gigabytes (10^9 bytes).
        activation_cache_budget: f64 = 4.0, alias "trunk-cache-budget", in NotNegative;
        /// Random seed for initialization, shuffling and dropout.
        seed: u64 = 0;
        /// Group examples of similar length into batches.
        group_by_length: bool = false;
        /// Evaluate every N steps.
        eval_steps: Option<u64> = None, in Positive, unset "every epoch";
        /// Language modeling and sequence to sequence: at each evaluation, have the model write a
        /// text for each prompt of the evaluation data, and score the texts by bleu, bleu-zh,
        /// chrf, rouge, rouge-stemmed, nist, meteor, e2e, exact-match, final-answer or math-answer,
        /// or several: a,b (see `epiphyte eval --help`).
        metrics: Vec<TextMetric> = Vec::new(), as Texts;
        /// With --metrics meteor: directory of METEOR's tables, such as `meteor` of PyPI's
        /// pycocoevalcap.
        meteor_data: Option<PathBuf> = None;
        /// With --metrics: maximum number of new tokens of a text.
        max_new_tokens: usize = Generation::MAX_NEW_TOKENS, in Positive;
        /// With --metrics: beams of the search for the most likely text; 1 takes the most likely
        /// token each time.
        num_beams: usize = 1, alias "generation-num-beams", in Positive;
        /// Save a checkpoint every N steps.
        save_steps: Option<u64> = None, in Positive, unset "at every evaluation or epoch";
        /// Number of checkpoints to keep, not counting the best.
        save_total_limit: usize = 1, in Positive;
        /// Log every N steps.
        logging_steps: u64 = 10, in Positive;
        /// Metric that decides which checkpoint is best.
        metric_for_best_model: Option<String> = None, unset "loss";
        /// Save the adapter of the best evaluation, not that of the last step.
        load_best_model_at_end: bool = false;
        /// Stop after N evaluations without improvement.
        early_stopping_patience: Option<u32> = None;
        /// Smallest change of the metric that counts as an improvement.
        early_stopping_threshold: f64 = 0.0;

        ..method_settings: Map<String, Value> = Map::new();
    }
}

/// What a metric is called here that other programs call `metric`.
fn own_name<'m>(metric: &str, measured: &[&'m str]) -> Option<&'m str> {
    let plain = metric.to_ascii_lowercase().replace([' ', '-'], "_");
    let plain = plain.strip_prefix("eval_").unwrap_or(&plain);
    let plain = match plain {
        "acc" => "accuracy",
        "ppl" => "perplexity",
        "f1_score" => "f1",
        "mcc" | "matthews_corrcoef" => "matthews_correlation",
        other => other,
    };
    let mut measured = measured.iter().copied();
    measured.find(|name| name.eq_ignore_ascii_case(plain))
}

impl RunConfig {
    /// A run from keys and values of a file and flags.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if a value is of the wrong type.
    pub fn parse(settings: &Map<String, Value>) -> Result<Self, TrainError> {
        parse(settings).map_err(|error| match error {
            SettingError::Type { key, problem } => TrainError::Setting { key, problem },
            other => TrainError::Config(other.to_string()),
        })
    }

    /// Checks what can be checked before anything is read.
    ///
    /// # Errors
    /// [`TrainError::Config`] or [`TrainError::Setting`], which name the key.
    pub fn check(&self) -> Result<(), TrainError> {
        let required = [
            ("model", &self.model),
            ("output", &self.output),
            ("train_data", &self.train_data),
        ];
        for (key, path) in required {
            if path.as_os_str().is_empty() {
                let flag = key.replace('_', "-");
                return Err(TrainError::Config(format!(
                    "`{key}` is missing: pass --{flag} or set it in the file"
                )));
            }
        }
        Settings::check(self).map_err(|error| TrainError::Config(error.to_string()))?;
        self.reading()?;
        if !self.metrics.is_empty() && !self.task.predicts_text() {
            return Err(TrainError::WritesNoText { task: self.task });
        }
        self.check_metric(None)?;
        if self.eval_data.is_none() {
            let evaluated = [
                (
                    "early_stopping_patience",
                    self.early_stopping_patience.is_some(),
                ),
                ("load_best_model_at_end", self.load_best_model_at_end),
                (
                    "metric_for_best_model",
                    self.metric_for_best_model.is_some(),
                ),
                ("eval_steps", self.eval_steps.is_some()),
                ("eval_batch_size", self.eval_batch_size.is_some()),
                ("max_eval_rows", self.max_eval_rows.is_some()),
                ("metrics", !self.metrics.is_empty()),
            ];
            if let Some((key, _)) = evaluated.iter().find(|(_, is_set)| *is_set) {
                return Err(TrainError::Config(format!(
                    "`{key}` needs evaluations: pass --eval-data"
                )));
            }
        }
        if self.forgetting_data.is_none() && self.max_forgetting_rows.is_some() {
            return Err(TrainError::Config(
                "`max_forgetting_rows` needs data: pass --forgetting-data".to_owned(),
            ));
        }
        self.check_use()
    }

    /// Checks that settings that were given do something.
    fn check_use(&self) -> Result<(), TrainError> {
        let unused = |key: &str, problem: String| TrainError::Setting {
            key: key.to_owned(),
            problem,
        };
        // A finished adapter may have such a value, which subtracts what was learned.
        let alpha = self.method_settings.get("lora_alpha");
        if let Some(alpha) = alpha.and_then(Value::as_f64).filter(|alpha| *alpha <= 0.0) {
            let problem = format!("it is {alpha}, but training needs a number greater than 0");
            return Err(unused("lora_alpha", problem));
        }
        let defaults = Self::default();
        for (kind, key, is_set) in [
            (
                OptimizerKind::Galore,
                "galore_rank",
                self.galore_rank != defaults.galore_rank,
            ),
            (
                OptimizerKind::Galore,
                "galore_update_proj_gap",
                self.galore_update_proj_gap != defaults.galore_update_proj_gap,
            ),
            (
                OptimizerKind::Galore,
                "galore_scale",
                self.galore_scale != defaults.galore_scale,
            ),
            (
                OptimizerKind::Lisa,
                "lisa_activated_layers",
                self.lisa_activated_layers != defaults.lisa_activated_layers,
            ),
            (
                OptimizerKind::Lisa,
                "lisa_interval_steps",
                self.lisa_interval_steps != defaults.lisa_interval_steps,
            ),
        ] {
            if is_set && self.optimizer != kind {
                let problem = format!(
                    "it is for --optimizer {kind}, and this is {}",
                    self.optimizer
                );
                return Err(unused(key, problem));
            }
        }
        let betas = [
            ("adam_beta1", self.adam_beta1 != defaults.adam_beta1),
            ("adam_beta2", self.adam_beta2 != defaults.adam_beta2),
            ("adam_epsilon", self.adam_epsilon != defaults.adam_epsilon),
        ];
        if let Some((key, _)) = betas.iter().find(|(_, is_set)| *is_set)
            && self.optimizer == OptimizerKind::Adafactor
        {
            let problem = format!("--optimizer {} does not have it", self.optimizer);
            return Err(unused(key, problem));
        }
        for (key, is_set) in [
            (
                "max_new_tokens",
                self.max_new_tokens != defaults.max_new_tokens,
            ),
            ("num_beams", self.num_beams != defaults.num_beams),
        ] {
            if is_set && self.metrics.is_empty() {
                let problem = "it says how evaluations write texts, and none are written: pass \
                               --metrics";
                return Err(unused(key, problem.to_owned()));
            }
        }
        TextMetric::check_meteor_data(&self.metrics, self.meteor_data.as_deref())?;
        if self.num_beams > Generation::MOST_BEAMS {
            let problem = format!(
                "it is {}, but must be at most {}",
                self.num_beams,
                Generation::MOST_BEAMS
            );
            return Err(unused("num_beams", problem));
        }
        if self.activation_cache_budget == 0.0 && self.activation_cache != ActivationCacheKind::Off
        {
            let problem = "0 keeps nothing: pass --activation-cache off".to_owned();
            return Err(unused("activation_cache_budget", problem));
        }
        Ok(())
    }

    /// The data's columns.
    pub fn columns(&self) -> Columns {
        Columns {
            text_columns: self.text_columns.clone(),
            label_column: self.label_column.clone(),
            label_columns: self.label_columns.clone(),
            choice_columns: self.choice_columns.clone(),
            prompt_column: self.prompt_column.clone(),
            prompt_template: self.prompt_template.clone(),
            completion_column: self.completion_column.clone(),
            messages_column: self.messages_column.clone(),
            source_column: self.source_column.clone(),
            target_column: self.target_column.clone(),
        }
    }

    /// The names of the scores that evaluations measure, sorted: those of the task, on data with
    /// this many classes or all there may be, and those of written texts.
    pub fn scores(&self, classes: Option<usize>) -> Vec<&'static str> {
        let written = self.metrics.iter().flat_map(TextMetric::keys);
        let mut scores = self.task.scores(classes);
        scores.extend(written);
        scores.sort_unstable();
        scores.dedup();
        scores
    }

    /// How the score `name`, which evaluations do not measure, would be measured, as the end of a
    /// sentence; empty if it is none of ours.
    pub fn advice_on_score(&self, name: &str) -> String {
        let scores = self.scores(None);
        if let Some(own) = own_name(name, &scores) {
            return format!("; here it is called `{own}`");
        }
        let all = TextMetric::all()
            .iter()
            .filter(|_| self.task.predicts_text());
        let mut found = all.filter_map(|metric| Some((metric, own_name(name, metric.keys())?)));
        found.next().map_or_else(String::new, |(metric, key)| {
            format!("; --metrics {} measures `{key}`", metric.name())
        })
    }

    /// Checks that evaluations measure the metric for the best model, on data with this many
    /// classes.
    fn check_metric(&self, classes: Option<usize>) -> Result<(), TrainError> {
        let measured = self.scores(classes);
        match &self.metric_for_best_model {
            Some(metric) if !measured.contains(&metric.as_str()) => Err(TrainError::Setting {
                key: "metric_for_best_model".to_owned(),
                problem: format!(
                    "`{metric}` is not measured for {}, but {} are{}",
                    self.task,
                    measured.join(", "),
                    self.advice_on_score(metric)
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The task with what turns the run's files into examples, and whether the head starts at
    /// random although the base has one. `train` is the training data, `model` the base's
    /// directory.
    ///
    /// # Errors
    /// If the training data, the chat template's file or the base cannot be read; as
    /// [`class_order::for_training`].
    pub fn task_spec(&self, train: &Table, model: &Path) -> Result<(TaskSpec, bool), TrainError> {
        let of_columns = |error| TrainError::of_columns(self.task, error);
        let columns = self.task.columns(&self.columns(), train);
        let columns = columns.map_err(of_columns)?;
        let found = self.task.classes(&columns, train).map_err(of_columns)?;
        if let Some([one, other]) = class_order::nearly_same(&found) {
            tracing::warn!(
                file = %train.path().display(),
                "the labels `{one}` and `{other}` differ in nothing but case and blanks, and are two \
                 classes: make them one in the data if that is meant"
            );
        }
        let classes = match self.task.has_classes() {
            true => {
                let base = BaseClasses::open(model, &ModelConfig::open(model)?, self.task)?;
                if base.is_multi_label() {
                    tracing::warn!(
                        "the base model predicts any number of classes for a text \
                         (multi_label_classification); this run trains one class for a text"
                    );
                }
                class_order::for_training(&self.labels, &found, &base)?
            }
            false => ClassOrder {
                names: found,
                by_id: false,
                new_head: false,
            },
        };
        self.check_metric(Some(classes.names.len()))?;
        let chat_template = self.chat_template.as_ref().map(|path| {
            epiphyte_io::read_text(path).map_err(|source| DataError::Io {
                path: path.clone(),
                source,
            })
        });
        let mut spec = TaskSpec {
            columns,
            labels: classes.names,
            labels_by_id: classes.by_id,
            chat_template: chat_template.transpose()?,
            no_header: self.no_header,
            quoting: self.quoting,
            delimiter: self.delimiter()?,
            doc_stride: self.doc_stride,
            max_answer_length: self.max_answer_length,
            ..TaskSpec::new(self.task, self.task.default_max_length())
        };
        self.task.of_directory(&mut spec, model)?;
        spec.max_length = self.max_length.unwrap_or(spec.max_length);
        self.task.complete(&mut spec, train).map_err(of_columns)?;
        self.task.configure(&mut spec, self)?;
        self.check_use_in(&spec)?;
        let fields = self.task.fields(&spec, true);
        spec.packing = self.packing && matches!(fields, Ok(Fields::PlainText { .. }));
        Ok((spec, classes.new_head))
    }

    /// Checks that settings of some tasks were given to one of these.
    fn check_use_in(&self, spec: &TaskSpec) -> Result<(), TrainError> {
        let (embeds, has_words) = (spec.embedding.is_some(), !spec.verbalizer.is_empty());
        let has_windows = self.task.reads_windows();
        let unused = [
            ("embedding_loss", self.embedding_loss.is_some() && !embeds),
            ("pooling", self.pooling.is_some() && !embeds),
            ("normalize", self.normalize.is_some() && !embeds),
            ("verbalizer", self.verbalizer.is_some() && !has_words),
            ("doc_stride", self.doc_stride.is_some() && !has_windows),
            (
                "max_answer_length",
                self.max_answer_length.is_some() && !has_windows,
            ),
            (
                "label_smoothing",
                self.label_smoothing > 0.0 && !self.task.smooths_targets(),
            ),
        ];
        match unused.into_iter().find(|(_, unused)| *unused) {
            None => Ok(()),
            Some((key, _)) => Err(TrainError::Setting {
                key: key.to_owned(),
                problem: format!("it has no use for {}: leave it out", self.task),
            }),
        }
    }

    fn columns_to_read(&self) -> Result<Vec<String>, TrainError> {
        let columns = self.task.columns_to_read(&self.columns());
        columns.map_err(|error| TrainError::of_columns(self.task, error))
    }

    fn delimiter(&self) -> Result<Option<char>, TrainError> {
        let delimiter = self.delimiter.as_deref().map(parse_delimiter);
        delimiter.transpose().map_err(|error| TrainError::Setting {
            key: "delimiter".to_owned(),
            problem: error.to_string(),
        })
    }

    /// How data files are read: the columns that the task needs.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the format is unknown, or the delimiter or the prompt template
    /// invalid.
    pub fn reading(&self) -> Result<ReadOptions, TrainError> {
        let format = self.format.as_deref().map(str::parse::<Format>);
        let format = format.transpose().map_err(|error| TrainError::Setting {
            key: "format".to_owned(),
            problem: error.to_string(),
        })?;
        Ok(ReadOptions {
            format,
            header: !self.no_header,
            quoting: self.quoting,
            delimiter: self.delimiter()?,
            columns: Some(self.columns_to_read()?),
            ..self.task.plain_text(&self.columns())
        })
    }

    /// The files of the run's data, under the key of the setting that names them.
    ///
    /// # Errors
    /// As [`RunConfig::reading`] and [`DataFile::all`].
    pub fn data_files(&self) -> Result<Vec<(&'static str, Vec<PathBuf>)>, TrainError> {
        let own = self.reading()?;
        // The base's own task recognizes its data.
        let recognized = ReadOptions::default();
        let data = [
            ("train_data", Some(&self.train_data), &own),
            ("eval_data", self.eval_data.as_ref(), &own),
            (
                "forgetting_data",
                self.forgetting_data.as_ref(),
                &recognized,
            ),
        ];
        let named = data.into_iter();
        let named = named.filter_map(|(key, path, reading)| Some((key, path?, reading)));
        let files = named.map(|(key, path, reading)| {
            let files = DataFile::all(path, reading)?.into_iter();
            Ok((key, files.map(|file| file.path).collect()))
        });
        files.collect()
    }

    /// The peak learning rate: as set, or the method's own; none if there is no such method.
    pub fn peak_learning_rate(&self) -> Option<f64> {
        let of_method = || Some(by_name(&self.method).ok()?.learning_rate);
        self.learning_rate.or_else(of_method)
    }

    /// The order of training examples.
    pub fn order(&self) -> Order {
        if self.group_by_length {
            Order::LengthGrouped { seed: self.seed }
        } else {
            Order::Shuffled { seed: self.seed }
        }
    }

    /// The warm-up.
    pub fn warmup(&self) -> Warmup {
        self.warmup_steps
            .map_or(Warmup::Ratio(self.warmup_ratio), Warmup::Steps)
    }

    /// How the best evaluation is chosen.
    pub fn selection(&self) -> Selection {
        let metric = self.metric_for_best_model.as_deref().unwrap_or("loss");
        Selection {
            patience: self.early_stopping_patience,
            min_delta: self.early_stopping_threshold,
            ..Selection::by(metric)
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_key_is_a_flag() {
        let Ok(Value::Object(keys)) = serde_json::to_value(RunConfig::default()) else {
            panic!("a run is an object");
        };
        let flags = RunConfig::FLAGS.iter();
        assert!(keys.keys().eq(flags.clone().map(|flag| flag.key)));
        for flag in flags {
            assert_eq!(flag.flag.replace('-', "_"), flag.key);
        }
    }

    #[test]
    fn former_names_stay_valid() {
        let settings = json!({
            "tokens_per_pass": 64, "trunk_cache": "disk", "trunk-cache-budget": 2,
            "task": "causal-language-modelling",
        });
        let run: RunConfig = serde_json::from_value(settings).unwrap();
        let expected = RunConfig {
            micro_batch_tokens: Some(64),
            activation_cache: ActivationCacheKind::Disk,
            activation_cache_budget: 2.0,
            task: TaskKind::text(),
            ..RunConfig::default()
        };
        assert_eq!(run, expected);
        assert_eq!(serde_json::to_value(&run).unwrap()["task"], "causal-lm");
    }

    #[test]
    fn keys_of_the_method_are_left_to_it() {
        let Value::Object(settings) = json!({ "rank": 4, "epochs": 2 }) else {
            unreachable!()
        };
        let run = RunConfig::parse(&settings).unwrap();
        assert_eq!(run.epochs, 2.0);
        assert_eq!(run.method_settings["rank"], 4);
    }

    #[test]
    fn values_that_there_are_not_are_named() {
        for (key, value, words) in [
            ("lr_scheduler_type", "linera", "`constant_with_warmup`"),
            ("precision", "f31", "expected `f32` or `bf16`"),
            ("task", "translation", "causal-lm"),
        ] {
            let settings = Map::from_iter([
                ("epochs".to_owned(), 2.into()),
                (key.to_owned(), value.into()),
            ]);
            let error = RunConfig::parse(&settings).unwrap_err();
            assert!(matches!(&error, TrainError::Setting { key: named, .. } if named == key));
            for words in [value, words] {
                assert!(error.to_string().contains(words), "{error}");
            }
        }
    }

    #[test]
    fn what_needs_evaluations_is_refused_without_them() {
        let run = RunConfig {
            model: "m".into(),
            output: "o".into(),
            train_data: "t".into(),
            early_stopping_patience: Some(2),
            ..RunConfig::default()
        };
        let error = run.check().unwrap_err().to_string();
        assert!(error.contains("`early_stopping_patience`"), "{error}");
        let run = RunConfig {
            eval_data: Some("e".into()),
            ..run
        };
        run.check().unwrap();
        let run = RunConfig {
            metric_for_best_model: Some("perplexity".to_owned()),
            ..run
        };
        let error = run.check().unwrap_err().to_string();
        assert!(error.contains("`perplexity` is not measured"), "{error}");
        assert!(!error.contains("is called"), "{error}");
        for (other, own) in [
            ("eval_loss", "loss"),
            ("eval_accuracy", "accuracy"),
            ("acc", "accuracy"),
        ] {
            let run = RunConfig {
                metric_for_best_model: Some(other.to_owned()),
                ..run.clone()
            };
            let error = run.check().unwrap_err().to_string();
            assert!(
                error.contains(&format!("here it is called `{own}`")),
                "{error}"
            );
        }
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused() {
        let run = json!({ "model": "m", "output": "o", "train_data": "t" });
        for (key, value, message) in [
            ("eval_steps", json!(5), "`eval_steps` needs evaluations"),
            (
                "max_eval_rows",
                json!(5),
                "`max_eval_rows` needs evaluations",
            ),
            (
                "activation_cache_budget",
                json!(0),
                "--activation-cache off",
            ),
            ("lora_alpha", json!(-3), "it is -3, but training needs"),
        ] {
            let mut run = run.clone();
            run[key] = value;
            let run: RunConfig = serde_json::from_value(run).unwrap();
            let error = run.check().unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn scores_of_written_texts_are_for_tasks_that_write_and_have_their_names() {
        let run = json!({ "model": "m", "output": "o", "train_data": "t", "eval_data": "e" });
        let checked = |settings: Value| {
            let mut run = run.clone();
            let settings = settings.as_object().unwrap().clone();
            run.as_object_mut().unwrap().extend(settings);
            let run: RunConfig = serde_json::from_value(run).unwrap();
            run.check().map(|()| run)
        };
        let text = "causal-lm";
        let run = checked(json!({
            "task": text, "metrics": ["e2e", "nist"], "metric_for_best_model": "e2e_bleu",
            "generation_num_beams": 3,
        }));
        let run = run.unwrap();
        assert_eq!(
            run.scores(None),
            [
                "cider",
                "e2e_bleu",
                "e2e_rouge_l",
                "loss",
                "nist",
                "perplexity"
            ]
        );
        assert!(run.selection().greater_is_better && run.num_beams == 3);
        for (settings, words) in [
            (
                json!({ "metrics": ["bleu"] }),
                "sequence-classification writes none",
            ),
            (
                json!({ "task": text, "metrics": ["bleu"], "eval_data": null }),
                "`metrics` needs evaluations",
            ),
            (
                json!({ "task": text, "max_new_tokens": 9 }),
                "pass --metrics",
            ),
            (json!({ "task": text, "num_beams": 2 }), "pass --metrics"),
            (
                json!({ "task": text, "metrics": ["bleu"], "num_beams": 257 }),
                "it is 257, but must be at most 256",
            ),
            (
                json!({ "task": text, "metric_for_best_model": "eval_rougel" }),
                "; --metrics rouge measures `rougeL`",
            ),
            (
                json!({ "task": text, "metrics": ["rouge"], "metric_for_best_model": "rougel" }),
                "; here it is called `rougeL`",
            ),
        ] {
            let error = checked(settings).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let metrics = json!({ "metrics": ["stars"] });
        let error = RunConfig::parse(metrics.as_object().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no metric `stars`"), "{error}");
        let meteor =
            |tables: Value| json!({ "task": text, "metrics": ["meteor"], "meteor_data": tables });
        let error = checked(meteor(Value::Null)).unwrap_err().to_string();
        assert!(error.contains("pip install pycocoevalcap"), "{error}");
        checked(meteor(json!("meteor"))).unwrap();
    }

    #[test]
    fn the_help_of_metrics_names_all_of_them() {
        let mut flags = RunConfig::FLAGS.iter();
        let help = flags.find(|flag| flag.key == "metrics").unwrap().help;
        let mut words = help.split([' ', ',']);
        for metric in TextMetric::all() {
            assert!(words.any(|word| word == metric.name()), "{metric:?}");
        }
    }

    #[test]
    fn values_out_of_range_are_named() {
        for (key, value, message) in [
            (
                "batch_size",
                json!(0),
                "is 0, but it must be greater than 0",
            ),
            ("epochs", json!(-1), "is -1, but it must be greater than 0"),
            ("micro_batch_tokens", json!(0), "is 0, but it must be"),
            ("warmup_ratio", json!(1), "is 1, but it must be in [0, 1)"),
            ("weight_decay", json!(-0.5), "is -0.5, but it must be 0 or"),
            (
                "base_dropout",
                json!(0.99999998),
                "is 0.99999998, but it must be in [0, 1)",
            ),
            (
                "learning_rate",
                json!(1e39),
                "is 1000000000000000000000000000000000000000, but it must be below 3.4e38",
            ),
        ] {
            let settings = json!({ "model": "m", "output": "o", "train_data": "t", key: value });
            let run: RunConfig = serde_json::from_value(settings).unwrap();
            let error = run.check().unwrap_err().to_string();
            assert!(error.contains(&format!("`{key}` {message}")), "{error}");
        }
        let run = RunConfig {
            model: "m".into(),
            output: "o".into(),
            train_data: "t".into(),
            learning_rate: Some(f64::NAN),
            ..RunConfig::default()
        };
        let error = run.check().unwrap_err().to_string();
        assert!(error.contains("`learning_rate` is NaN"), "{error}");
    }
}
