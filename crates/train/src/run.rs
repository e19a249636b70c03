//! A run from its files to its adapter.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use burn::tensor::{Device, Tensor};
use epiphyte_data::{Batches, Day, Order, ReadOptions, Table};
use epiphyte_hub::Hub;
use epiphyte_methods::file::{self, AdapterFile, AdapterMetadata, Provenance, TrainingExtent};
use epiphyte_methods::{AdapterModule, ParameterCounts, StoredValues, by_name};
use epiphyte_models::{Base, LoadOptions, ModelConfig};
use epiphyte_ops::{Precision, Quantization, allocator, scratch_bytes};
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::merge::files::copy_tokenizer;
use crate::observer::Observer;
use crate::report::account::{Change, Cost, RunAccount};
use crate::report::model_card::ModelCard;
use crate::report::run_card::card;
use crate::report::settings::resolved_settings;
use crate::run_directory::{CARD_FILE, RunDirectory, Start};
use crate::scoring::evaluate::Evaluation;
use crate::scoring::forgetting::OwnTask;
use crate::scoring::inference::Inference;
use crate::scoring::majority::Majority;
use crate::scoring::metrics::Metrics;
use crate::scoring::written_texts::TextEvaluation;
use crate::tasks::{TaskModel, TaskSpec};
use crate::training::checkpoints::Checkpoints;
use crate::training::config::RunConfig;
use crate::training::identity::Identity;
use crate::training::state::RunState;
use crate::training::train_loop::train_runs;
use crate::training::trainer::{End, EvaluationData, Outcome, Trainer, Workload};
use crate::{TrainError, memory};

/// How a run is carried out, beside what it is.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// Go on with the newest checkpoint in the output directory, if there is one.
    pub resume: bool,
    /// Begin anew in an output directory that holds a run.
    pub overwrite: bool,
    /// The command, for the model card.
    pub command: Vec<String>,
    /// Where the base model lies, if it has been found already; else the runs' `model`, a directory
    /// or a name on the hub, is resolved.
    pub model_dir: Option<PathBuf>,
    /// Where tensors live; if not said, Burn's default device: a GPU in a build with a GPU backend.
    pub device: Device,
    /// Keeps the base in memory for the runs that follow with clones of these options.
    pub shared_base: Option<SharedBase>,
    /// Measure what a forward pass with the trained adapter costs more than one without.
    pub measure_inference: bool,
}

/// A base that is read from its files once for several runs. Each puts its matrices in order as a
/// run alone does, so that its time and memory are its own. Runs with another base, precision,
/// quantization or dropout read their own, which then takes its place.
#[derive(Clone, Debug, Default)]
pub struct SharedBase(Arc<Mutex<Shared>>);

#[derive(Debug, Default)]
struct Shared {
    base: Option<KeptBase>,
    /// Bytes in use before the first run.
    held: Option<u64>,
}

/// A base with what it was read from.
#[derive(Debug)]
struct KeptBase {
    directory: PathBuf,
    precision: Precision,
    quantization: Option<Quantization>,
    dropout: Option<f64>,
    base: Base,
}

impl KeptBase {
    /// Whether it is that of `directory` as `load` asks for it.
    fn is(&self, directory: &Path, load: &LoadOptions) -> bool {
        self.directory == directory
            && self.precision == load.precision
            && self.quantization == load.quantization
            && self.dropout == load.base_dropout
    }
}

impl SharedBase {
    /// The base, if it is that of `directory` as `load` asks for it.
    fn of(&self, directory: &Path, load: &LoadOptions) -> Option<Base> {
        let shared = self.0.lock().expect("no holder of the lock panics");
        let kept = shared.base.as_ref();
        Some(kept.filter(|kept| kept.is(directory, load))?.base.unread())
    }

    fn keep(&self, directory: &Path, load: &LoadOptions, base: &Base) {
        let mut shared = self.0.lock().expect("no holder of the lock panics");
        shared.base = Some(KeptBase {
            directory: directory.to_owned(),
            precision: load.precision,
            quantization: load.quantization,
            dropout: load.base_dropout,
            base: base.without_head().unread(),
        });
    }

    /// Bytes that earlier runs have left in memory beside the base, which are none of the next
    /// run's.
    fn left_over(&self, device: &Device) -> u64 {
        // A backward pass frees graphs that nothing refers to any more.
        let value = Tensor::<1>::zeros([1], device).autodiff().require_grad();
        let _ = value.backward();
        let mut shared = self.0.lock().expect("no holder of the lock panics");
        let Some(live) = allocator::live_bytes() else {
            return 0;
        };
        // What kernels keep for the next product, they keep for this run too.
        let now = live.saturating_sub(scratch_bytes());
        let held = *shared.held.get_or_insert(now);
        let base = shared.base.as_ref().map_or(0, |kept| kept.base.bytes());
        now.saturating_sub(held + base)
    }
}

impl RunOptions {
    /// What to do with an output directory that holds a run.
    pub(crate) fn start(&self) -> Start {
        match (self.resume, self.overwrite) {
            (true, _) => Start::Resume,
            (false, true) => Start::Overwrite,
            (false, false) => Start::New,
        }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The adapter's directory.
    pub output: PathBuf,
    /// The method.
    pub method: String,
    /// `finished`, `stopped_early` or `interrupted`.
    pub status: &'static str,
    /// Optimizer steps done.
    pub steps: u64,
    /// Optimizer steps that the run was to have.
    pub total_steps: u64,
    /// Mean training loss over the last logged steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Scores of the saved adapter on the evaluation data; none of an interrupted run, unless it
    /// had just been evaluated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    /// Parameters.
    #[serde(flatten)]
    pub account: ParameterCounts,
    /// Bytes of the adapter's tensors on disk.
    pub bytes: u64,
    /// Seconds of training.
    pub seconds: f64,
    /// Training tokens a second; time spent evaluating and saving does not count. Absent for a run
    /// that was over before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_second: Option<f64>,
    /// The most memory that the process held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// What training changed, as the run's account has it; none if the run was interrupted.
    #[serde(skip)]
    pub change: Option<Change>,
    /// What training took, as the run's account has it.
    #[serde(skip)]
    pub cost: Cost,
}

/// Trains, and writes the adapter and its model card. `observer` hears of every step and
/// evaluation.
///
/// # Errors
/// Whatever is wrong with configuration, data, model, method or files; each error names it.
pub fn train(
    run: &RunConfig,
    options: &RunOptions,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Report, TrainError> {
    let mut reports = train_several(std::slice::from_ref(run), options, interrupt, observer)?;
    Ok(reports.remove(0))
}

/// Trains several runs over one base side by side. Tasks, data, methods and settings may differ;
/// each run's adapter is what it would be alone. The base is in memory once.
///
/// # Errors
/// As [`train`]; if the runs do not agree on the base, or two write to one directory.
pub fn train_several(
    runs: &[RunConfig],
    options: &RunOptions,
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Vec<Report>, TrainError> {
    check_runs(runs)?;
    let left_over = options.shared_base.as_ref();
    let left_over = left_over.map_or(0, |shared| shared.left_over(&options.device));
    let claim = |run: &RunConfig| RunDirectory::claim(&run.output, options.start());
    let mut directories = runs.iter().map(claim).collect::<Result<Vec<_>, _>>()?;
    let prepared = Prepared::all(runs, options)?;
    let (prepared, modules): (Vec<_>, Vec<_>) = prepared.into_iter().unzip();
    let trainers = prepared.iter().zip(modules);
    let trainers = trainers.map(|(prepared, module)| prepared.trainer(module, options));
    let mut trainers = trainers.collect::<Result<Vec<_>, _>>()?;
    directories.iter_mut().for_each(RunDirectory::keep);
    interrupt.begin();
    let outcomes = train_runs(&mut trainers, interrupt, observer)?;
    let ends = prepared.iter().zip(&mut trainers).zip(outcomes);
    ends.map(|((prepared, trainer), mut outcome)| {
        if let Some(memory) = &mut outcome.memory {
            memory.peak = memory.peak.saturating_sub(left_over);
        }
        prepared.finish(trainer, outcome, options, observer)
    })
    .collect()
}

/// Checks what can be checked of runs over one base before anything is read: each by itself, that
/// they agree on the base, and that each has an output directory of its own, however it is spelt.
///
/// # Errors
/// [`TrainError::Config`] or [`TrainError::Setting`], which name the key.
pub fn check_runs(runs: &[RunConfig]) -> Result<(), TrainError> {
    let Some((first, others)) = runs.split_first() else {
        return Err(TrainError::Config("there is no run".to_owned()));
    };
    first.check()?;
    for run in others {
        run.check()?;
        let agreements = [
            ("model", run.model == first.model),
            ("precision", run.precision == first.precision),
            ("quantization", run.quantization == first.quantization),
            ("base_dropout", run.base_dropout == first.base_dropout),
        ];
        if let Some((key, _)) = agreements.into_iter().find(|(_, agrees)| !agrees) {
            return Err(TrainError::Config(format!(
                "`{key}` differs between runs, but they share one base: train them apart"
            )));
        }
    }
    let alone = |run: &&RunConfig| by_name(&run.method).is_ok_and(|method| method.trains_alone);
    if let Some(run) = runs.iter().find(alone).filter(|_| runs.len() > 1) {
        return Err(TrainError::Config(format!(
            "a run of `{}` is trained by itself, since beside others it would not have the bytes \
             that it has alone: give it a file of its own",
            run.method
        )));
    }
    for (index, run) in runs.iter().enumerate() {
        let mut others = runs[index + 1..].iter().map(|other| &other.output);
        if let Some(other) = others.find(|other| epiphyte_io::is_same_file(&run.output, other)) {
            let (one, other) = (run.output.display(), other.display());
            let directories = match one.to_string() == other.to_string() {
                true => format!("`{one}`"),
                false => format!("one directory, `{one}` and `{other}`"),
            };
            return Err(TrainError::Config(format!(
                "two runs write to {directories}: give each its own `output`"
            )));
        }
    }
    Ok(())
}

/// A run with everything that it reads.
pub(crate) struct Prepared<'a> {
    pub(crate) run: &'a RunConfig,
    pub(crate) task_model: TaskModel,
    pub(crate) train: Encoded,
    pub(crate) eval: Option<Encoded>,
    /// The rows of the evaluation data, which some scores read.
    eval_table: Option<Table>,
    /// What evaluations write about them.
    texts: Option<TextEvaluation>,
    /// The base's own task.
    own_task: Option<OwnTask>,
}

/// The examples of a file, in batches.
pub(crate) struct Encoded {
    pub(crate) batches: Batches,
    /// Rows of the table that they were made of.
    pub(crate) rows: usize,
}

impl Encoded {
    fn new(
        task_model: &TaskModel,
        table: &Table,
        batch_size: usize,
        order: Order,
    ) -> Result<Self, TrainError> {
        Ok(Self {
            rows: table.len(),
            batches: task_model.batches(table, true, batch_size, order)?,
        })
    }
}

impl<'a> Prepared<'a> {
    /// Reads model and data of several runs over one base, which is in memory once.
    pub(crate) fn all(
        runs: &'a [RunConfig],
        options: &RunOptions,
    ) -> Result<Vec<(Self, AdapterModule)>, TrainError> {
        let mut prepared: Vec<(Self, AdapterModule)> = Vec::new();
        for run in runs {
            let beside = prepared.first();
            let beside = beside.map(|(first, _)| first.task_model.loaded.model.base().clone());
            prepared.push(Self::new(run, options, beside)?);
        }
        let layers = |(it, _): &(Self, AdapterModule)| {
            let dimensions = &it.task_model.loaded.model.base().dimensions;
            (dimensions.layers, dimensions.encoder_layers)
        };
        if let Some((first, others)) = prepared.split_first()
            && let Some((other, _)) = others.iter().find(|it| layers(it) != layers(first))
        {
            return Err(TrainError::Config(format!(
                "{} and {} read other layers of this base, so their runs do not share a pass: train \
                 them apart",
                first.0.run.task, other.run.task
            )));
        }
        Ok(prepared)
    }

    /// Reads model and data, and builds what the run trains.
    fn new(
        run: &'a RunConfig,
        options: &RunOptions,
        beside: Option<Base>,
    ) -> Result<(Self, AdapterModule), TrainError> {
        let mut config = by_name(&run.method)?.configure(run.method_settings.clone())?;
        let model_dir = &match &options.model_dir {
            Some(directory) => directory.clone(),
            None => Hub::from_env().resolve(&run.model)?,
        };
        let reading = run.reading()?;
        let table = Table::read(&run.train_data, &reading)?;
        let (mut spec, new_head) = run.task_spec(&table, model_dir)?;
        let table = sampled(table, run.max_train_rows, run.seed)?;
        run.task.check_training_data(&spec.columns, &table)?;
        if spec.columns.messages_column.is_some() {
            let begun = day_of_run(&run.output).filter(|_| options.resume);
            spec.today = Some(begun.unwrap_or_else(Day::today));
        }
        if run.max_length.is_none() {
            let config = ModelConfig::open(model_dir)?;
            let limit = config.facts().max_position_embeddings;
            spec.max_length = spec.max_length.min(limit.unwrap_or(usize::MAX));
        }
        let load = LoadOptions {
            precision: run.precision,
            quantization: run.quantization,
            seed: run.seed,
            base_dropout: run.base_dropout,
            new_head,
        };
        let device = &options.device;
        let kept = options.shared_base.as_ref();
        let beside = beside.or_else(|| kept?.of(model_dir, &load));
        let mut task_model = match &beside {
            Some(base) => TaskModel::beside(base, model_dir, spec, device, &load)?,
            None => TaskModel::open(model_dir, spec, device, &load)?,
        };
        if let Some(kept) = kept {
            kept.keep(model_dir, &load, task_model.loaded.model.base());
        }
        for note in &task_model.loaded.notes {
            tracing::warn!("{note}");
        }
        let tokens = config.texts(&task_model.spec.labels).into_iter();
        let tokens = tokens.map(|(text, special_tokens)| {
            let aligned = task_model.tokenizer.align(&text, special_tokens)?;
            Ok(aligned.ids)
        });
        config.set_tokens(tokens.collect::<Result<_, TrainError>>()?);
        let base = task_model.loaded.model.base();
        let module = AdapterModule::new(config, base, device, run.seed)?;
        if run.max_length.is_none() {
            task_model.fit_max_length(&module);
        }
        let train = Encoded::new(&task_model, &table, run.batch_size, run.order())?;
        drop(table);
        let (eval, eval_table, texts) = match &run.eval_data {
            Some(path) => {
                let reading = ReadOptions {
                    format: reading.format,
                    ..task_model.spec.reading()?
                };
                let table = Table::read(path, &reading)?;
                let table = sampled(table, run.max_eval_rows, run.seed)?;
                let size = run.eval_batch_size.unwrap_or(run.batch_size);
                let eval = Encoded::new(&task_model, &table, size, Order::Sequential)?;
                let texts = TextEvaluation::of_run(run, &task_model, model_dir, &table)?;
                (Some(eval), Some(table), texts)
            }
            None => (None, None, None),
        };
        let own_task = run.forgetting_data.as_ref().map(|data| {
            let base = task_model.loaded.model.base().without_head();
            OwnTask::open(run, data, model_dir, &base, device, &module)
        });
        let prepared = Self {
            run,
            task_model,
            train,
            eval,
            eval_table,
            texts,
            own_task: own_task.transpose()?,
        };
        Ok((prepared, module))
    }

    /// The evaluation data with its rows.
    pub(crate) fn evaluation_data(&self) -> Option<EvaluationData<'_>> {
        let (eval, table) = self.eval.as_ref().zip(self.eval_table.as_ref())?;
        Some(EvaluationData {
            batches: &eval.batches,
            rows: self.task_model.rows(table),
            texts: self.texts.as_ref(),
        })
    }

    fn trainer<'s>(
        &'s self,
        module: AdapterModule,
        options: &'s RunOptions,
    ) -> Result<Trainer<'s>, TrainError> {
        let work = Workload {
            run: self.run,
            model: &self.task_model.loaded.model,
            train: &self.train.batches,
            eval: self.evaluation_data(),
            device: &options.device,
            identity: Identity::new(
                self.run,
                &module,
                &self.task_model,
                &self.train.batches,
                self.eval.as_ref().map(|eval| &eval.batches),
            ),
        };
        let trainer = Trainer::new(work, module, options.resume)?;
        let output = self.run.output.display();
        match trainer.step() {
            0 if options.resume => {
                tracing::warn!("`{output}` holds no checkpoint: the run begins at step 0");
            }
            0 => {}
            _ if trainer.is_over() => tracing::warn!("{}", over_already(&trainer, self.run)),
            step => tracing::info!("going on after step {step}"),
        }
        Ok(trainer)
    }

    /// What a run says whose classifier is worth no more than one answer to every text.
    fn nothing_learned(&self, majority: Majority) -> String {
        let (run, total) = (self.run, self.train.batches.per_epoch());
        let rate = run.peak_learning_rate().unwrap_or_default();
        let usual = by_name(&run.method).map(|method| method.learning_rate);
        let other = match usual {
            // A higher rate than usual has led nowhere.
            Ok(usual) if rate > usual => format!("{usual:e}"),
            _ => format!("{:.0e}", 3.0 * rate),
        };
        format!(
            "accuracy on `{}` is no better than always answering the most frequent class, `{}` \
             ({:.4}): more steps (--epochs, now {}; --batch-size, now {}, makes {total} batches an \
             epoch) or another --learning-rate (now {rate:e}; try {}) may help",
            run.eval_data.as_deref().unwrap_or(Path::new("")).display(),
            self.task_model.spec.labels[majority.class],
            majority.share,
            run.epochs,
            run.batch_size,
            other,
        )
    }

    /// Writes the adapter and its model card.
    fn finish(
        &self,
        trainer: &mut Trainer<'_>,
        outcome: Outcome,
        options: &RunOptions,
        observer: &mut dyn Observer,
    ) -> Result<Report, TrainError> {
        let (run, task_model) = (self.run, &self.task_model);
        let (mut metrics, mut writing) = (outcome.metrics, outcome.writing);
        if run.load_best_model_at_end && outcome.end != End::Interrupted {
            trainer.load_best()?;
            metrics = None;
        }
        let (model, module) = (&task_model.loaded.model, trainer.module());
        // Who interrupts a run does not wait for an evaluation.
        let unmeasured = metrics.is_none() && outcome.end != End::Interrupted;
        if let (true, Some(eval)) = (unmeasured, self.evaluation_data()) {
            // The run is trained: what it is worth can be measured again, with `epiphyte eval`.
            match eval.scores(run, model, module, observer) {
                Ok((scores, cost)) => (metrics, writing) = (Some(scores), cost),
                Err(error) => tracing::warn!("the adapter is saved without scores: {error}"),
            }
        }
        if let (Some(metrics), Some(eval)) = (&metrics, &self.eval)
            && let Some(majority) = Majority::of(eval.batches.examples())
            && majority.equals(metrics)
        {
            tracing::warn!("{}", self.nothing_learned(majority));
        }
        check_finite(module)?;
        let account = module.counts(model.base());
        let training = TrainingExtent {
            steps: outcome.steps,
            total_steps: trainer.plan().total,
            interrupted: outcome.end == End::Interrupted,
        };
        let metadata = metadata(run, task_model, account, training);
        file::save(&run.output, module, model.base(), &metadata)?;
        if write_files(&run.output, &task_model.spec, model.base())? > 0 {
            // Who opens an adapter by its directory alone looks for the tokenizer there.
            copy_tokenizer(task_model.tokenizer.directory(), &run.output)?;
        }
        let bytes = size(&run.output.join(file::TENSORS_FILE));
        let peak_memory_bytes = memory::peak_resident_bytes();
        let inference = match options.measure_inference {
            true => {
                let batches = self.eval.as_ref().map_or(&self.train, |eval| eval);
                let (batches, device) = (&batches.batches, &options.device);
                // A plan, which is an interrupted run, takes no memory for a second base.
                let merges = outcome.end != End::Interrupted;
                let tokens = run.micro_batch_tokens;
                Inference::measure(model, module, merges, batches, tokens, device)?
            }
            false => None,
        };
        let forgetting = match (&self.own_task, outcome.end) {
            (None, _) | (_, End::Interrupted) => None,
            // The run is trained: what the base has forgotten is no part of its result.
            (Some(own), _) => own
                .score(module, run.micro_batch_tokens)
                .inspect_err(|error| {
                    tracing::warn!("what the base has forgotten is not scored: {error}")
                })
                .ok(),
        };
        let cost = Cost {
            stored_bytes: bytes,
            layers: model.layers(),
            gradient_layers: outcome.gradient_layers,
            memory: outcome.memory,
            peak_resident_bytes: peak_memory_bytes,
            tokens_per_second: outcome.tokens_per_second,
            tokens: outcome.tokens,
            steps: outcome.steps,
            seconds: outcome.seconds,
            inference,
            writing,
            forgetting,
        };
        let change = match outcome.end {
            End::Interrupted => None,
            End::Finished | End::StoppedEarly => Some(Change::measure(module, model.base())),
        };
        if let Some(change) = &change {
            let definition = module.config().definition();
            let account = RunAccount {
                method: run.method.clone(),
                kind: (definition.kind)(),
                declared: account,
                change: change.clone(),
                cost: cost.clone(),
            };
            account.write(&run.output)?;
            change.check(&run.method, &account.declared)?;
        }
        let report = Report {
            output: run.output.clone(),
            method: run.method.clone(),
            status: match outcome.end {
                End::Finished => "finished",
                End::StoppedEarly => "stopped_early",
                End::Interrupted => "interrupted",
            },
            steps: outcome.steps,
            total_steps: training.total_steps,
            train_loss: Some(outcome.loss).filter(|loss| loss.is_finite()),
            metrics,
            account,
            bytes,
            seconds: outcome.seconds,
            tokens_per_second: outcome.tokens_per_second,
            peak_memory_bytes,
            change,
            cost,
        };
        let (train, eval) = (&self.train, self.eval.as_ref());
        let spec = &task_model.spec;
        let settings = resolved_settings(run, spec, trainer.plan(), module, model.base());
        let eval = eval.map(|eval| eval.batches.examples().len());
        let examples = (train.batches.examples().len(), eval);
        let card = card(run, spec, &settings, &options.command, &report, examples);
        write_card(&run.output.join(CARD_FILE), &card)?;
        Ok(report)
    }
}

/// Writes the files that a task has in a model's or an adapter's directory; returns how many.
pub(crate) fn write_files(
    directory: &Path,
    spec: &TaskSpec,
    base: &Base,
) -> Result<usize, TrainError> {
    let files = spec.task.files(spec, base.dimensions.hidden_size);
    let count = files.len();
    for (file, value) in files {
        let path = directory.join(file);
        if let Some(parent) = path.parent() {
            let failed = epiphyte_io::FileError::at("create", parent);
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        let text = serde_json::to_string_pretty(&value).expect("JSON values print");
        epiphyte_io::write(&path, text.as_bytes())?;
    }
    Ok(count)
}

/// At most `rows` rows of a table.
fn sampled(table: Table, rows: Option<usize>, seed: u64) -> Result<Table, TrainError> {
    match rows {
        Some(rows) => Ok(table.sample(rows, seed)?),
        None => Ok(table),
    }
}

/// What a resumed run says that has nothing left to do.
fn over_already(trainer: &Trainer<'_>, run: &RunConfig) -> String {
    let (step, total) = (trainer.step(), trainer.plan().total);
    let why = match step < total {
        true => format!("had stopped early, after step {step} of {total}"),
        false => format!("was complete, with {total} steps"),
    };
    let longer = match run.max_steps {
        Some(steps) => format!("--max-steps (now {steps})"),
        None => format!("--epochs (now {})", run.epochs),
    };
    format!(
        "the run in `{}` {why}: nothing is trained; to train longer, raise {longer}",
        run.output.display()
    )
}

fn metadata(
    run: &RunConfig,
    task_model: &TaskModel,
    account: ParameterCounts,
    training: TrainingExtent,
) -> AdapterMetadata {
    AdapterMetadata {
        base_model: run.model.display().to_string(),
        task_type: task_model.spec.task.peft_task_type().to_owned(),
        provenance: Provenance {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            method: run.method.clone(),
            base_sha256: task_model.loaded.content_hash.clone(),
            base_quantization: task_model.loaded.model.base().quantization(),
            base_config: Some(task_model.loaded.config.computation()),
            tokenizer_sha256: task_model.tokenizer.content_hash().to_owned(),
            task: serde_json::to_value(&task_model.spec).expect("a task is plain values"),
            account: Some(account),
            training: Some(training),
        },
    }
}

/// The day that chat templates read in the run whose checkpoints lie in `output`.
fn day_of_run(output: &Path) -> Option<Day> {
    let newest_first = Checkpoints::inspect(output).list().ok()?.into_iter().rev();
    let states = newest_first.filter_map(|saved| RunState::read(&saved.path, saved.step).ok());
    states.map(|state| state.identity.today).next()?
}

/// Checks that nothing that the adapter's file gets is NaN or infinite.
fn check_finite(module: &AdapterModule) -> Result<(), TrainError> {
    let stored = module.stored().into_iter().chain(module.stored_head());
    let finite = |values: &StoredValues| match values {
        StoredValues::F32(values) => values.iter().all(|value| value.is_finite()),
        StoredValues::Integers(..) => true,
    };
    match stored.into_iter().find(|stored| !finite(&stored.values)) {
        None => Ok(()),
        Some(stored) => Err(TrainError::NotFinite {
            what: format!("`{}`", stored.key),
        }),
    }
}

/// Writes the model card, unless the user has put another text in its place.
fn write_card(path: &Path, card: &ModelCard) -> Result<(), TrainError> {
    let before = std::fs::read_to_string(path);
    let users = match before {
        Ok(text) => !ModelCard::is_ours(&text),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    };
    if users {
        tracing::warn!(
            "`{}` is no model card of this program, or was edited: it stays as it is",
            path.display()
        );
        return Ok(());
    }
    Ok(epiphyte_io::write(path, card.to_file().as_bytes())?)
}

fn size(path: &Path) -> u64 {
    std::fs::metadata(path).map(|file| file.len()).unwrap_or(0)
}

/// A base with an adapter on it, or without.
#[derive(Debug)]
pub struct LoadedAdapter {
    /// The base.
    pub task_model: TaskModel,
    /// The adapter.
    pub module: Option<AdapterModule>,
    /// Other adapters for the same task, which vote with it.
    pub voters: Vec<AdapterModule>,
}

impl LoadedAdapter {
    /// Lets another adapter vote with the one that is loaded.
    ///
    /// # Errors
    /// [`TrainError::Config`] if predictions of the task are no votes, or if the adapter is for
    /// another task or other classes; as [`open_adapter`].
    pub fn add_voter(
        &mut self,
        file: &AdapterFile,
        allow_other_base: bool,
    ) -> Result<(), TrainError> {
        let spec = &self.task_model.spec;
        if !spec.task.is_one_of_several() {
            return Err(TrainError::Config(format!(
                "adapters vote where one of several classes or choices is predicted, and the task is {}",
                spec.task
            )));
        }
        let other = recorded_task(file)?;
        if other.is_none_or(|other| other.task != spec.task || other.labels != spec.labels) {
            return Err(TrainError::Config(format!(
                "the adapter `{}` does not record the same task and classes: it cannot vote",
                file.directory().display()
            )));
        }
        let table = self.task_model.loaded.model.base().word_embedding_table();
        let device = table.device().clone();
        let voter = load_module(file, &self.task_model, allow_other_base, &device)?;
        self.voters.push(voter);
        Ok(())
    }

    /// The adapter, or one that does nothing.
    pub fn adapter(&self) -> &dyn epiphyte_models::Adapter {
        match &self.module {
            Some(module) => module,
            None => &epiphyte_models::Identity,
        }
    }

    /// Shortens the task's `max_length` to the positions that the model has besides those that the
    /// adapter takes, for a length that is a default and not the user's choice.
    pub fn fit_max_length(&mut self) {
        match &self.module {
            Some(module) => self.task_model.fit_max_length(module),
            None => self.task_model.fit_max_length(&epiphyte_models::Identity),
        }
        for voter in &self.voters {
            self.task_model.fit_max_length(voter);
        }
    }

    /// An evaluation on examples of the task.
    pub fn evaluation<'a>(&'a self, batches: &'a Batches) -> Evaluation<'a> {
        Evaluation {
            voters: &self.voters,
            ..Evaluation::new(&self.task_model.loaded.model, self.adapter(), batches)
        }
    }
}

/// The task that an adapter records.
pub(crate) fn recorded_task(file: &AdapterFile) -> Result<Option<TaskSpec>, TrainError> {
    TaskSpec::recorded(file)
        .map_err(|error| TrainError::Config(format!("the adapter's `epiphyte.task`: {error}")))
}

/// Warns of an adapter that was to be trained longer, or that is of another run than the newest in
/// its directory, which was killed.
pub(crate) fn warn_if_interrupted(file: &AdapterFile) {
    let directory = file.directory();
    let Some(training) = file.provenance().and_then(|it| it.training) else {
        return;
    };
    let newest = Checkpoints::inspect(directory).latest().ok().flatten();
    let other = newest.filter(|checkpoint| checkpoint.step != training.steps);
    let problem = match (training.interrupted, other) {
        (true, _) => format!("is not finished, {training}"),
        (false, Some(checkpoint)) => format!(
            "was trained {training}, and another run in its directory stopped after step {}",
            checkpoint.step
        ),
        (false, None) => return,
    };
    tracing::warn!(
        "the adapter `{}` {problem}: the run's command with --resume goes on",
        directory.display()
    );
}

/// Warns of a base that is quantized in another way than the one over which an adapter was trained.
pub(crate) fn warn_if_otherwise_quantized(file: &AdapterFile, base: &Base) {
    let Some(provenance) = file.provenance() else {
        return;
    };
    let (then, now) = (provenance.base_quantization, base.quantization());
    let name = |quantization: Option<Quantization>| match quantization {
        Some(quantization) => format!("a base in {quantization}"),
        None => "a base that is not quantized".to_owned(),
    };
    if then != now {
        tracing::warn!(
            "the adapter `{}` was trained over {}, and is used over {}: its results may differ a \
             little",
            file.directory().display(),
            name(then),
            name(now)
        );
    }
}

/// Opens a base for a task, with an adapter on it if one is given.
///
/// `spec` overrides the task that the adapter's configuration names. It is needed for adapters that
/// PEFT wrote and for a base alone.
///
/// # Errors
/// If files are missing or malformed, the adapter does not fit the base, or no task is given.
pub fn open_adapter(
    model: &Path,
    adapter: Option<AdapterFile>,
    spec: Option<TaskSpec>,
    allow_other_base: bool,
    device: &Device,
    load: &LoadOptions,
) -> Result<LoadedAdapter, TrainError> {
    let recorded = || adapter.as_ref().map_or(Ok(None), recorded_task);
    let spec = match spec {
        Some(spec) => spec,
        None => recorded()?.ok_or_else(|| {
            TrainError::Config(
                "the task is not known: pass --task, --text-columns and --label-column".to_owned(),
            )
        })?,
    };
    let task_model = TaskModel::open(model, spec, device, load)?;
    let load = |file| load_module(&file, &task_model, allow_other_base, device);
    let module = adapter.map(load).transpose()?;
    Ok(LoadedAdapter {
        task_model,
        module,
        voters: Vec::new(),
    })
}

/// Loads an adapter over a base that is loaded.
fn load_module(
    file: &AdapterFile,
    task_model: &TaskModel,
    allow_other_base: bool,
    device: &Device,
) -> Result<AdapterModule, TrainError> {
    warn_if_interrupted(file);
    let loaded = &task_model.loaded;
    if !allow_other_base {
        let tokenizer = task_model.tokenizer.content_hash();
        file.check_base(
            &loaded.content_hash,
            &loaded.config.computation(),
            tokenizer,
        )?;
    }
    warn_if_otherwise_quantized(file, loaded.model.base());
    Ok(file.load(loaded.model.base(), device)?)
}
