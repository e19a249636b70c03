//! One run: its state, and each part of an optimizer step.
//!
//! The order of the parts is in [`train_loop`](crate::training::train_loop). A step is a function
//! of the run's configuration and its number: which examples it sees follows from seed and epoch,
//! what dropout drops from seed, epoch and the example. So a run that was stopped and resumed ends
//! with the same bytes as one that was not.

use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use burn::tensor::Device;
use epiphyte_data::{Batch, Batches, Epochs};
use epiphyte_methods::{AdapterModule, OptimizerState, Param, Stage, StepInfo};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Mode, Model, Tokens};
use epiphyte_ops::square_sum;

use crate::TrainError;
use crate::interrupt::Interrupt;
use crate::observer::Observer;
use crate::report::account::MemoryUse;
use crate::report::journal::{EvaluationRecord, Record, StepRecord};
use crate::report::run_log::RunLog;
use crate::scoring::evaluate::Evaluation;
use crate::scoring::metrics::Metrics;
use crate::scoring::model_input::{ModelInput, check_examples, micro_batch_tokens, targets};
use crate::scoring::written_texts::{TextEvaluation, WritingCost};
use crate::tasks::TaskRows;
use crate::training::calibration::TrainingExamples;
use crate::training::checkpoints::{Checkpoint, Checkpoints};
use crate::training::config::RunConfig;
use crate::training::early_stopping::{EarlyStopping, Verdict};
use crate::training::identity::Identity;
use crate::training::micro_batch::{GradientAccumulator, RunBatch};
use crate::training::optimizer::Optimizer;
use crate::training::resume::{continues, newest_state};
use crate::training::schedule::Schedule;
use crate::training::state::RunState;

/// What a trainer works on.
#[derive(Debug)]
pub struct Workload<'a> {
    /// The run.
    pub run: &'a RunConfig,
    /// The model.
    pub model: &'a Model,
    /// Training batches.
    pub train: &'a Batches,
    /// What it is evaluated on.
    pub eval: Option<EvaluationData<'a>>,
    /// Where tensors are.
    pub device: &'a Device,
    /// What the run is, by which its checkpoints are recognized.
    pub identity: Identity,
}

/// A data set for evaluation.
#[derive(Clone, Copy, Debug)]
pub struct EvaluationData<'a> {
    /// The examples.
    pub batches: &'a Batches,
    /// The rows that they were made of.
    pub rows: TaskRows<'a>,
    /// What the model writes about the rows, if its texts are scored.
    pub texts: Option<&'a TextEvaluation>,
}

impl EvaluationData<'_> {
    /// The scores of a model with an adapter: those of the task and those of the texts that it
    /// writes, with what the writing took.
    ///
    /// # Errors
    /// As [`Task::evaluate`](crate::Task::evaluate) and [`TextEvaluation::write`].
    pub(crate) fn scores(
        &self,
        run: &RunConfig,
        model: &Model,
        adapter: &AdapterModule,
        observer: &mut dyn Observer,
    ) -> Result<(Metrics, Option<WritingCost>), TrainError> {
        let evaluation = Evaluation {
            micro_batch_tokens: run.micro_batch_tokens,
            ..Evaluation::new(model, adapter, self.batches)
        };
        let scores = run.task.evaluate(&evaluation, &self.rows, observer)?;
        let mut metrics = scores.metrics;
        let Some(texts) = self.texts else {
            return Ok((metrics, None));
        };
        let at_once = run.eval_batch_size.unwrap_or(run.batch_size);
        let tokenizer = self.rows.tokenizer;
        let (written, cost) = texts.evaluate(model, adapter, tokenizer, at_once, observer)?;
        metrics.extend(written);
        Ok((metrics, Some(cost)))
    }
}

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Optimizer steps done.
    pub steps: u64,
    /// Why it ended.
    pub end: End,
    /// Mean training loss of the last steps that were logged.
    pub loss: f64,
    /// The last evaluation.
    pub metrics: Option<Metrics>,
    /// What the writing of its texts took, if there are any.
    pub writing: Option<WritingCost>,
    /// Seconds spent, those before a resume included.
    pub seconds: f64,
    /// Training tokens a second, in this process; time spent evaluating and saving does not count.
    /// None if this process did no step.
    pub tokens_per_second: Option<f64>,
    /// Training tokens in this process.
    pub tokens: u64,
    /// The most layers of the base through which gradients went on to what is below them.
    pub gradient_layers: usize,
    /// Bytes in use during the steps of this process, if it counts them and trained one run.
    pub memory: Option<MemoryUse>,
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// Evaluations no longer improved.
    StoppedEarly,
    /// An interrupt was requested.
    Interrupted,
}

/// The steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Optimizer steps in an epoch.
    pub per_epoch: u64,
    /// Optimizer steps in all.
    pub total: u64,
}

impl Plan {
    /// The steps of `run` with this many batches an epoch.
    pub fn new(run: &RunConfig, batches_per_epoch: usize) -> Self {
        let per_epoch = batches_per_epoch.div_ceil(run.gradient_accumulation_steps) as u64;
        let all = (per_epoch as f64 * run.epochs).ceil() as u64;
        Self {
            per_epoch,
            total: run.max_steps.unwrap_or(all),
        }
    }

    /// The steps of a run of these examples, if they and its method's settings fit together.
    ///
    /// # Errors
    /// If examples or prompts do not fit the model, or settings do not fit the number of steps.
    pub(crate) fn checked(
        run: &RunConfig,
        model: &Model,
        module: &AdapterModule,
        train: &Batches,
        eval: Option<EvaluationData<'_>>,
    ) -> Result<Self, TrainError> {
        let evaluated = eval.map(|eval| eval.batches);
        for batches in [Some(train), evaluated].into_iter().flatten() {
            check_examples(model, module, batches.examples())?;
        }
        if let Some(texts) = eval.and_then(|eval| eval.texts) {
            texts.check(model, module)?;
        }
        let plan = Self::new(run, train.per_epoch());
        run.warmup().steps(plan.total)?;
        module.check_steps(plan.total)?;
        if module.trained().next().is_none() {
            return Err(TrainError::NothingToTrain {
                method: module.config().definition().name,
            });
        }
        Ok(plan)
    }
}

/// A run in progress.
#[derive(Debug)]
pub struct Trainer<'a> {
    work: Workload<'a>,
    epochs: Epochs<'a>,
    module: AdapterModule,
    optimizer: Box<dyn Optimizer>,
    plan: Plan,
    stages: Vec<Stage>,
    state: RunState,
    /// The run's number among several, from 0.
    number: Option<usize>,
    /// The micro-batches of the step, each with its sequences' dropout keys.
    batches: Vec<(Batch, Vec<u64>)>,
    accumulator: GradientAccumulator,
    checkpoints: Checkpoints,
    log: Option<RunLog>,
    clock: Clock,
    last_loss: f64,
    metrics: Option<Metrics>,
    writing: Option<WritingCost>,
    /// Whether the step's evaluation asks for a checkpoint.
    save_due: bool,
    end: End,
    gradient_layers: usize,
    memory: StepMemory,
}

/// Bytes in use during optimizer steps.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StepMemory {
    /// Steps that were measured.
    steps: u64,
    /// The most bytes.
    peak: u64,
    /// The most bytes beyond those before the step.
    beyond: u64,
    /// The most bytes of gradients.
    gradients: u64,
}

/// A run's part of a micro-batch.
pub(crate) struct MicroBatch<'s> {
    input: ModelInput<'s>,
    /// The same with other dropout keys, for the second view if the method compares two.
    second: Option<ModelInput<'s>>,
    batch: &'s Batch,
    model: &'s Model,
    module: &'s AdapterModule,
    /// A random key for the step.
    step_key: u64,
    label_smoothing: f64,
    sums: bool,
    /// The optimizer step, from 1.
    step: u64,
}

impl MicroBatch<'_> {
    /// The model's tokens, and those of the second view.
    pub(crate) fn tokens(&self) -> (Tokens<'_>, Option<Tokens<'_>>) {
        let second = self.second.as_ref().map(ModelInput::tokens);
        (self.input.tokens(), second)
    }

    /// With its tokens, ready to run.
    pub(crate) fn with<'t>(
        &'t self,
        (tokens, second): &'t (Tokens<'t>, Option<Tokens<'t>>),
    ) -> RunBatch<'t> {
        let mode = |view| Mode::Training {
            step: self.step - 1,
            step_key: self.step_key,
            view,
        };
        RunBatch {
            model: self.model,
            module: self.module,
            tokens,
            mode: mode(0),
            second: second.as_ref().map(|tokens| (tokens, mode(1))),
            targets: targets(self.batch),
            label_smoothing: self.label_smoothing,
            sums: self.sums,
            step: self.step,
        }
    }
}

impl<'a> Trainer<'a> {
    /// Prepares a run, or goes on with the newest checkpoint in the output directory if `resume` is
    /// true and there is one. Nothing is written before the run begins.
    ///
    /// # Errors
    /// If examples do not fit the model, settings of the method do not fit the run's steps, files
    /// cannot be read, or the checkpoint belongs to another run.
    pub fn new(
        work: Workload<'a>,
        mut module: AdapterModule,
        resume: bool,
    ) -> Result<Self, TrainError> {
        let run = work.run;
        let plan = Plan::checked(run, work.model, &module, work.train, work.eval)?;
        if let Some(warmup) = run.warmup_steps.filter(|&warmup| warmup >= plan.total) {
            tracing::warn!(
                "warm-up takes {warmup} steps and the run has {}: the learning rate never reaches its \
                 peak; lower --warmup-steps",
                plan.total
            );
        }
        let stages = module.stages(plan.total);
        let base = work.model.base();
        let mut optimizer = run.optimizer.build(run, &module, base)?;
        let checkpoints = Checkpoints::inspect(&run.output);
        let saved = match resume {
            true => newest_state(&checkpoints, &mut |state, path| {
                continues(state, &work.identity, plan.total, &stages, path)?;
                state.restore(path, &mut module, &mut *optimizer, work.device)
            })?,
            false => None,
        };
        let early_stopping = EarlyStopping::new(run.selection());
        let state = match saved {
            Some(mut saved) => {
                // A run that gets more steps after its end is no longer over.
                saved.finished &= saved.total == plan.total;
                saved.total = plan.total;
                saved
            }
            None => RunState::new(work.identity.clone(), plan.total, early_stopping),
        };
        let collides = |other: &Checkpoint| (state.step + 1..=plan.total).contains(&other.step);
        if run.output.is_dir()
            && let Some(other) = checkpoints.foreign()?.into_iter().find(collides)
        {
            return Err(TrainError::CheckpointForeign { path: other.path });
        }
        Ok(Self {
            epochs: work.train.epochs(),
            optimizer,
            clock: Clock::new(state.elapsed),
            // A run that goes on after its end ends as it did.
            end: match state.finished && state.step < plan.total {
                true => End::StoppedEarly,
                false => End::Finished,
            },
            number: None,
            batches: Vec::new(),
            accumulator: GradientAccumulator::default(),
            last_loss: f64::NAN,
            metrics: None,
            writing: None,
            save_due: false,
            gradient_layers: 0,
            memory: StepMemory::default(),
            log: None,
            work,
            module,
            plan,
            stages,
            state,
            checkpoints,
        })
    }

    /// Optimizer steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// What the run trains.
    pub fn module(&self) -> &AdapterModule {
        &self.module
    }

    /// The run that this trains.
    pub(crate) fn work(&self) -> &Workload<'a> {
        &self.work
    }

    /// The steps of the run.
    pub fn plan(&self) -> Plan {
        self.plan
    }

    /// Whether there is nothing left to do.
    pub(crate) fn is_over(&self) -> bool {
        self.state.finished || self.state.step >= self.plan.total || self.end != End::Finished
    }

    /// Begins to train: the logs are opened, and gradients are recorded from here on. A run from
    /// step 0 removes the checkpoints of the one whose place it takes. `number` is the run's number
    /// among several.
    ///
    /// # Errors
    /// If files cannot be written or removed.
    pub(crate) fn begin(&mut self, number: Option<usize>) -> Result<(), TrainError> {
        let output = &self.work.run.output;
        self.checkpoints = Checkpoints::open(output)?;
        if self.state.step == 0 {
            self.checkpoints.clear()?;
        }
        self.log = Some(RunLog::open(output, self.state.step)?);
        self.number = number;
        self.clock = Clock::new(self.state.elapsed);
        self.module.track(true);
        Ok(())
    }

    /// The run's logs.
    fn run_log(&mut self) -> &mut RunLog {
        self.log.as_mut().expect("a run that trains has begun")
    }

    /// Ends training and says how it went.
    pub(crate) fn end(&mut self) -> Outcome {
        self.module.track(false);
        Outcome {
            steps: self.state.step,
            end: self.end,
            loss: self.last_loss,
            metrics: self.metrics.take(),
            writing: self.writing,
            seconds: self.clock.elapsed(),
            tokens_per_second: (self.clock.tokens > 0).then(|| self.clock.tokens_per_second()),
            tokens: self.clock.tokens as u64,
            gradient_layers: self.gradient_layers,
            memory: self.memory_use(),
        }
    }

    /// Notes what memory a step took: the bytes in use before it, and the most during it. Called
    /// where no other run takes memory at the same time.
    pub(crate) fn note_memory(&mut self, before: u64, peak: u64) {
        let memory = &mut self.memory;
        memory.steps += 1;
        memory.peak = memory.peak.max(peak);
        // The base's matrices are read during the first step.
        if memory.steps != 2 {
            memory.beyond = memory.beyond.max(peak.saturating_sub(before));
        } else {
            memory.beyond = peak.saturating_sub(before);
        }
    }

    /// What the most memory of a step was for.
    fn memory_use(&self) -> Option<MemoryUse> {
        let StepMemory {
            steps,
            peak,
            beyond,
            gradients,
        } = self.memory;
        let value = size_of::<f32>();
        let base = self.work.model.base();
        let tensors = base.tensors().iter();
        let frozen = tensors.filter(|(name, _)| !base.is_of_head(name));
        let (own, head) = (self.module.parameters(), self.module.head_parameters());
        let own = own
            .stored()
            .chain(own.derived_params())
            .chain(own.detached_params());
        let adapter = own.chain(head.stored()).map(|param| param.count() * value);
        (steps > 0).then(|| MemoryUse {
            base: frozen.map(|(_, tensor)| tensor.bytes() as u64).sum(),
            adapter: adapter.sum::<usize>() as u64,
            gradients,
            optimizer: self.optimizer_bytes(),
            activations: beyond.saturating_sub(gradients),
            peak,
        })
    }

    /// Bytes of the optimizer's state.
    fn optimizer_bytes(&self) -> u64 {
        let trained: Vec<&Param> = self.module.trained().collect();
        self.optimizer.state(&trained).bytes()
    }

    /// The mean loss since the last log record.
    pub(crate) fn recent_loss(&self) -> f64 {
        self.state.recent.mean_loss()
    }

    /// Puts the parameters of the best evaluation's checkpoint back.
    ///
    /// # Errors
    /// If the checkpoint cannot be read.
    pub fn load_best(&mut self) -> Result<(), TrainError> {
        if let Some(best) = self.state.early_stopping.best() {
            let path = self.checkpoints.path(best.step);
            let (module, optimizer) = (&mut self.module, &mut *self.optimizer);
            let state = RunState::read(&path, best.step)?;
            state.restore(&path, module, optimizer, self.work.device)?;
            self.module.track(false);
        }
        Ok(())
    }

    /// Begins an optimizer step without gradients.
    pub(crate) fn zero_gradients(&mut self) {
        self.accumulator = GradientAccumulator::default();
    }

    /// Draws the step's examples and splits them into micro-batches.
    ///
    /// # Errors
    /// If a batch cannot be made.
    pub(crate) fn draw_batch(&mut self) -> Result<(), TrainError> {
        let run = self.work.run;
        let epoch = self.state.step / self.plan.per_epoch;
        let first =
            (self.state.step % self.plan.per_epoch) as usize * run.gradient_accumulation_steps;
        let last = (first + run.gradient_accumulation_steps).min(self.work.train.per_epoch());
        let tokens = match self.work.model.compares_examples() {
            true => usize::MAX,
            false => micro_batch_tokens(run.micro_batch_tokens, self.work.device),
        };
        let epoch_batches = self.epochs.get(epoch);
        self.batches.clear();
        for index in first..last {
            for batch in epoch_batches.batch(index)?.micro_batches(tokens) {
                let keys = dropout_keys(run.seed, epoch, &batch);
                self.batches.push((batch, keys));
            }
        }
        let info = self.info();
        self.module.before_step(info);
        Ok(())
    }

    /// Begins the next stage if the last one is done; a method may run the data first.
    ///
    /// # Errors
    /// If the method cannot begin the stage.
    pub(crate) fn begin_stage_if_due(
        &mut self,
        observer: &mut dyn Observer,
    ) -> Result<(), TrainError> {
        loop {
            let next = match self.state.stage {
                None => 0,
                Some(stage) if self.state.stage_step >= self.stages[stage].steps => stage + 1,
                Some(_) => return Ok(()),
            };
            let mut data = TrainingExamples {
                model: self.work.model,
                batches: self.work.train,
                observer: &mut *observer,
            };
            self.module.begin_stage(next, &mut data)?;
            if self.stages[next].optimizer == OptimizerState::Fresh {
                self.optimizer.reset();
            }
            self.state.stage = Some(next);
            self.state.stage_step = 0;
        }
    }

    /// Whether no stage with steps follows the one in progress.
    fn is_last_stage(&self) -> bool {
        let stage = self.state.stage.unwrap_or(0);
        let later = self.stages.iter().skip(stage + 1);
        later.map(|stage| stage.steps).sum::<u64>() == 0
    }

    /// Where training stands.
    fn info(&self) -> StepInfo {
        let stage = self.state.stage.unwrap_or(0);
        StepInfo {
            step: self.state.step,
            total: self.plan.total,
            stage,
            stage_step: self.state.stage_step,
            stage_total: self.stages[stage].steps,
        }
    }

    /// The number of micro-batches of the step.
    pub(crate) fn micro_batches(&self) -> usize {
        self.batches.len()
    }

    /// Tokens of a micro-batch; 0 if the step has no such.
    pub(crate) fn tokens(&self, index: usize) -> usize {
        let batch = self.batches.get(index);
        batch.map_or(0, |(batch, _)| batch.tokens())
    }

    /// Tokens of the step.
    pub(crate) fn step_tokens(&self) -> usize {
        self.batches.iter().map(|(batch, _)| batch.tokens()).sum()
    }

    /// What the run brings to a micro-batch of its step, and where its gradients go.
    pub(crate) fn micro_batch(
        &mut self,
        index: usize,
    ) -> Option<(MicroBatch<'_>, &mut GradientAccumulator)> {
        let (batch, keys) = self.batches.get(index)?;
        let run = self.work.run;
        let step_key = name_id(&format!("{}/step/{}", run.seed, self.state.step));
        let compares = self.module.method().consistency_weight().is_some();
        let second = compares.then(|| {
            let keys = keys.iter().map(|key| !key).collect();
            ModelInput::with_keys(self.work.model, batch, keys)
        });
        let part = MicroBatch {
            input: ModelInput::with_keys(self.work.model, batch, keys.clone()),
            second,
            batch,
            model: self.work.model,
            module: &self.module,
            step_key,
            label_smoothing: run.label_smoothing,
            sums: self.batches.len() > 1,
            step: self.state.step + 1,
        };
        Some((part, &mut self.accumulator))
    }

    /// Makes the accumulated gradients those of the mean over all targets, and lets the method
    /// change them.
    ///
    /// # Errors
    /// If the step has no target, or a parameter that must have a gradient got none.
    pub(crate) fn complete_gradients(&mut self) -> Result<(), TrainError> {
        let step = self.state.step + 1;
        if self.accumulator.targets == 0 {
            return Err(TrainError::NothingToLearn { step });
        }
        let info = self.info();
        self.gradient_layers = self.gradient_layers.max(self.accumulator.gradient_layers);
        let gradients = &mut self.accumulator.gradients;
        if self.batches.len() > 1 {
            let mean = 1.0 / self.accumulator.targets as f64;
            let derived = self.module.parameters().derived_params();
            for param in self.module.trained().chain(derived) {
                gradients.scale(param, mean);
            }
        }
        self.module.after_backward(gradients, info);
        let sizes = self
            .module
            .trained()
            .filter_map(|param| gradients.get(param));
        let bytes = sizes.map(|gradient| gradient.dims()[0] * size_of::<f32>());
        self.memory.gradients = self.memory.gradients.max(bytes.sum::<usize>() as u64);
        if self.state.step == 0 {
            let lacks = |param: &&Param| {
                gradients.get(param).is_none() && !self.module.method().may_lack_gradient(param)
            };
            let without = self.module.trained().filter(lacks);
            let names: Vec<String> = without.map(|param| param.key().to_owned()).collect();
            if !names.is_empty() {
                return Err(TrainError::NoGradient { names });
            }
        }
        Ok(())
    }

    /// Takes the norm of all gradients together; a norm above `max_grad_norm` is scaled down to it.
    ///
    /// # Errors
    /// If a gradient is not finite.
    pub(crate) fn clip_gradients(&mut self) -> Result<(), TrainError> {
        let gradients = &mut self.accumulator.gradients;
        let trained: Vec<&Param> = self.module.trained().collect();
        self.optimizer.select(gradients, &trained, self.state.step);
        let mut sum = 0.0;
        for param in self.module.trained() {
            let Some(gradient) = gradients.get(param) else {
                continue;
            };
            let square = square_sum(gradient);
            if !square.is_finite() {
                return Err(TrainError::NonFinite {
                    what: format!("the gradient of `{}`", param.key()),
                    step: self.state.step + 1,
                });
            }
            if param.group().clip {
                sum += square;
            }
        }
        let norm = sum.sqrt();
        let most = self.work.run.max_grad_norm;
        if most > 0.0 && norm > most {
            for param in self.module.trained().filter(|param| param.group().clip) {
                gradients.scale(param, most / (norm + 1e-6));
            }
        }
        self.state.recent.norm = norm;
        Ok(())
    }

    /// Moves the parameters along the gradients.
    pub(crate) fn optimizer_step(&mut self) {
        let info = self.info();
        let peak = self.work.run.peak_learning_rate();
        let peak = peak.expect("the method is in the registry, or there would be no module");
        let learning_rate = peak * self.schedule().factor(info.stage_step);
        let gradients = &mut self.accumulator.gradients;
        let keep = self.module.method().reads_gradients_after_step();
        for param in self.module.trained() {
            let gradient = match keep {
                true => gradients.get(param).cloned(),
                false => gradients.take(param),
            };
            if let Some(gradient) = gradient {
                let scale = param.group().learning_rate_scale;
                self.optimizer.step(param, gradient, learning_rate * scale);
            }
        }
        self.module.after_step(gradients, info);
        self.state.step += 1;
        // The last scores were those of the parameters before this step.
        self.metrics = None;
        self.state.stage_step += 1;
        let recent = &mut self.state.recent;
        recent.loss += self.accumulator.loss / self.accumulator.targets as f64;
        recent.steps += 1;
        recent.learning_rate = learning_rate;
        self.clock.tokens += self.step_tokens();
    }

    /// The learning-rate schedule of the stage.
    fn schedule(&self) -> Schedule {
        let total_steps = self.info().stage_total;
        let warmup = self.work.run.warmup().steps(total_steps);
        Schedule {
            kind: self.work.run.lr_scheduler_type,
            warmup_steps: warmup.expect("the ratio was checked when the run began"),
            total_steps,
        }
    }

    /// Writes a log record after a step that took `time`, if one is due.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub(crate) fn log(&mut self, time: Duration) -> Result<(), TrainError> {
        self.clock.training += time;
        if !self.state.step.is_multiple_of(self.work.run.logging_steps) && !self.is_last() {
            return Ok(());
        }
        let recent = std::mem::take(&mut self.state.recent);
        self.last_loss = recent.mean_loss();
        let record = StepRecord {
            step: self.state.step,
            epoch: self.epoch(),
            loss: recent.mean_loss(),
            learning_rate: recent.learning_rate,
            gradient_norm: recent.norm,
            tokens_per_second: self.clock.tokens_per_second(),
            elapsed: self.clock.elapsed(),
        };
        let log = self.run_log();
        log.events.scalars(
            record.step,
            [
                ("train/loss", record.loss),
                ("train/learning_rate", record.learning_rate),
                ("train/gradient_norm", record.gradient_norm),
                ("train/tokens_per_second", record.tokens_per_second),
            ],
        )?;
        Ok(log.journal.append(&Record::Step(record))?)
    }

    /// Evaluates, if an evaluation is due, and stops the run if scores no longer improve.
    ///
    /// # Errors
    /// If an evaluation fails, or the log cannot be written.
    pub(crate) fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<(), TrainError> {
        self.save_due = self.is_due(self.work.run.save_steps);
        let Some(eval) = self.work.eval else {
            return Ok(());
        };
        if !self.is_due(self.work.run.eval_steps) {
            return Ok(());
        }
        self.module.track(false);
        let (run, model) = (self.work.run, self.work.model);
        let (scores, writing) = eval.scores(run, model, &self.module, observer)?;
        self.module.track(true);
        self.writing = writing;
        let verdict = match self.is_last_stage() {
            true => {
                let early_stopping = &mut self.state.early_stopping;
                early_stopping.observe(self.state.step, &scores)?
            }
            // What a stage leaves for the next is not yet the adapter.
            false => Verdict {
                is_best: false,
                stop: false,
            },
        };
        self.save_due |= verdict.is_best || verdict.stop;
        let run = self.number.map(|number| format!("run {}, ", number + 1));
        let run = run.unwrap_or_default();
        observer.message(&format!("{run}step {}: {}", self.step(), summary(&scores)));
        self.log_evaluation(&scores, verdict.is_best)?;
        self.metrics = Some(scores);
        if verdict.stop {
            self.state.finished = true;
            self.end = End::StoppedEarly;
        }
        Ok(())
    }

    /// Saves a checkpoint, if one is due or the run ends here.
    ///
    /// # Errors
    /// If a parameter is not finite, which leaves the last checkpoint as it is, or files cannot be
    /// written.
    pub(crate) fn save(&mut self, interrupt: &Interrupt) -> Result<(), TrainError> {
        let last = self.is_last();
        if interrupt.is_requested() && !last && !self.state.finished {
            self.end = End::Interrupted;
        }
        if !self.save_due && !last && self.end == End::Finished {
            return Ok(());
        }
        self.check_finite()?;
        self.state.finished |= last;
        self.state.elapsed = self.clock.elapsed();
        self.run_log().journal.sync()?;
        let (state, module, optimizer) = (&self.state, &self.module, &*self.optimizer);
        self.checkpoints
            .save(state.step, |dir| state.save(dir, module, optimizer))?;
        let keep = NonZeroUsize::new(self.work.run.save_total_limit).unwrap_or(NonZeroUsize::MIN);
        let best = self.state.early_stopping.best().map(|best| best.step);
        if let Err(error) = self.checkpoints.rotate(state.step, keep, best) {
            // The new one is saved, so nothing is lost but space.
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!("{error}: {}", reason.unwrap_or_default());
        }
        Ok(())
    }

    /// Checks that no trained parameter is NaN or infinite.
    fn check_finite(&self) -> Result<(), TrainError> {
        let finite = |param: &&Param| square_sum(&param.flat().inner()).is_finite();
        match self.module.trained().find(|param| !finite(param)) {
            None => Ok(()),
            Some(param) => Err(TrainError::NonFinite {
                what: format!("`{}` after the optimizer's step", param.key()),
                step: self.state.step,
            }),
        }
    }

    fn log_evaluation(&mut self, metrics: &Metrics, is_best: bool) -> Result<(), TrainError> {
        let tags: Vec<(String, f64)> = metrics
            .iter()
            .map(|(name, value)| (format!("eval/{name}"), value))
            .collect();
        let tags = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        let record = EvaluationRecord {
            step: self.state.step,
            epoch: self.epoch(),
            metrics: metrics.clone(),
            is_best,
            elapsed: self.clock.elapsed(),
        };
        let log = self.run_log();
        log.events.scalars(record.step, tags)?;
        Ok(log.journal.append(&Record::Evaluation(record))?)
    }

    /// Whether the step just done is the run's last.
    fn is_last(&self) -> bool {
        self.state.step == self.plan.total
    }

    /// Whether what happens `every` so often, or at the end of each epoch, is due.
    fn is_due(&self, every: Option<u64>) -> bool {
        let every = every.unwrap_or(self.plan.per_epoch);
        self.state.step.is_multiple_of(every) || self.is_last()
    }

    fn epoch(&self) -> f64 {
        self.state.step as f64 / self.plan.per_epoch as f64
    }
}

/// A dropout key for each sequence: it follows from seed, epoch and the position of the sequence's
/// example in the data, and among several sequences of an example from the number of the sequence.
fn dropout_keys(seed: u64, epoch: u64, batch: &Batch) -> Vec<u64> {
    let sequences = batch.sequences_per_example();
    let of_example = |position| (0..sequences).map(move |number| (position, number));
    let keys = batch.positions.iter().flat_map(of_example);
    let keys = keys.map(|(position, number)| match number {
        0 => format!("{seed}/{epoch}/{position}"),
        number => format!("{seed}/{epoch}/{position}/{number}"),
    });
    keys.map(|key| name_id(&key)).collect()
}

/// `accuracy 0.8120, loss 0.4321`, the most telling first.
fn summary(metrics: &Metrics) -> String {
    let scores: Vec<String> = metrics
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    scores.join(", ")
}

/// Time and training tokens of this process, and the time of the processes before a resume.
#[derive(Debug)]
struct Clock {
    started: Instant,
    /// Seconds before a resume.
    before: f64,
    /// Time of the optimizer steps, without evaluations and checkpoints.
    training: Duration,
    /// Tokens of the optimizer steps.
    tokens: usize,
}

impl Clock {
    fn new(before: f64) -> Self {
        Self {
            started: Instant::now(),
            before,
            training: Duration::ZERO,
            tokens: 0,
        }
    }

    fn elapsed(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.training.as_secs_f64().max(1e-9)
    }
}
