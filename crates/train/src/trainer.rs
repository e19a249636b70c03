//! The training loop.
//!
//! A step is a function of the run's configuration and its number: which examples it sees follows from
//! seed and epoch, what dropout drops from seed, epoch and the example. So a run that was stopped and
//! resumed ends with the same bytes as one that was not.

use std::num::NonZeroUsize;
use std::time::Instant;

use burn::tensor::{Device, Tensor};
use epiphyte_data::{Batch, Batches};
use epiphyte_methods::{Moment, Param, Tuned};
use epiphyte_models::Transformer;
use epiphyte_models::seam::name_id;
use epiphyte_ops::{AdamW, Moments, Sequences};

use crate::TrainError;
use crate::checkpoints::Checkpoints;
use crate::config::RunConfig;
use crate::early_stopping::EarlyStopping;
use crate::evaluate::{self, OwnedTargets};
use crate::interrupt::Interrupt;
use crate::journal::{EvaluationRecord, Journal, Record, StepRecord};
use crate::metrics::Metrics;
use crate::progress::Progress;
use crate::schedule::Schedule;
use crate::state::RunState;
use crate::tensorboard::EventWriter;

/// What a trainer works on.
#[derive(Debug)]
pub struct Workload<'a> {
    /// The run.
    pub run: &'a RunConfig,
    /// The model.
    pub model: &'a dyn Transformer,
    /// Training batches.
    pub train: &'a Batches,
    /// Evaluation batches.
    pub eval: Option<&'a Batches>,
    /// Where tensors live.
    pub device: &'a Device,
}

/// How training ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Optimiser steps done.
    pub steps: u64,
    /// Why it ended.
    pub end: End,
    /// Mean training loss of the last steps that were logged.
    pub loss: f64,
    /// The last evaluation.
    pub metrics: Option<Metrics>,
    /// Seconds spent, those before a resume included.
    pub seconds: f64,
    /// Training tokens a second, in this process.
    pub tokens_per_second: f64,
}

/// Why training ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// Evaluations no longer improved.
    StoppedEarly,
    /// Somebody asked.
    Interrupted,
}

/// The steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Optimiser steps in an epoch.
    pub per_epoch: u64,
    /// Optimiser steps in all.
    pub total: u64,
}

impl Plan {
    /// The steps of `run` over so many batches an epoch.
    pub fn new(run: &RunConfig, batches_per_epoch: usize) -> Self {
        let per_epoch = batches_per_epoch.div_ceil(run.gradient_accumulation_steps) as u64;
        let all = (per_epoch as f64 * run.epochs).ceil() as u64;
        Self {
            per_epoch,
            total: run.max_steps.unwrap_or(all),
        }
    }
}

/// A run under way.
#[derive(Debug)]
pub struct Trainer<'a> {
    work: Workload<'a>,
    plan: Plan,
    schedule: Schedule,
    optimizer: AdamW,
    state: RunState,
    moments: Vec<Moments>,
    checkpoints: Checkpoints,
    journal: Journal,
    events: EventWriter,
}

impl<'a> Trainer<'a> {
    /// Begins a run, or goes on with the newest checkpoint in the output directory if `resume` is true
    /// and there is one.
    ///
    /// # Errors
    /// If files cannot be read or written, or the checkpoint belongs to another run.
    pub fn new(work: Workload<'a>, tuned: &Tuned, resume: bool) -> Result<Self, TrainError> {
        let run = work.run;
        let plan = Plan::new(run, work.train.per_epoch());
        let checkpoints = Checkpoints::open(&run.output)?;
        let latest = if resume { checkpoints.latest()? } else { None };
        let journal_path = run.output.join("log.jsonl");
        let events_dir = run.output.join("runs");
        let (state, moments, journal, events) = match latest {
            Some(checkpoint) => {
                let (state, moments) = RunState::load(&checkpoint.path, tuned, work.device)?;
                if state.run != *run {
                    return Err(TrainError::OtherRun {
                        path: checkpoint.path,
                    });
                }
                let journal = Journal::resume(&journal_path, state.step)?;
                let events = EventWriter::resume(&events_dir, state.step)?;
                (state, moments, journal, events)
            }
            None => {
                let state = RunState {
                    run: run.clone(),
                    step: 0,
                    elapsed: 0.0,
                    early_stopping: EarlyStopping::new(run.selection()),
                    finished: false,
                };
                let moments = tuned
                    .trained()
                    .map(|param| Moments::zeros(&param.flat()))
                    .collect();
                (
                    state,
                    moments,
                    Journal::create(&journal_path)?,
                    EventWriter::create(&events_dir)?,
                )
            }
        };
        let warmup_steps = run.warmup().steps(plan.total)?;
        Ok(Self {
            schedule: Schedule {
                kind: run.lr_scheduler_type,
                warmup_steps,
                total_steps: plan.total,
            },
            optimizer: AdamW {
                beta1: run.adam_beta1,
                beta2: run.adam_beta2,
                epsilon: run.adam_epsilon,
                weight_decay: run.weight_decay,
            },
            work,
            plan,
            state,
            moments,
            checkpoints,
            journal,
            events,
        })
    }

    /// Optimiser steps done.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Trains to the end, or until `interrupt` asks to stop; then a checkpoint is saved.
    ///
    /// # Errors
    /// If a loss or gradient is not finite, a trained parameter gets no gradient, or files cannot be
    /// written.
    pub fn train(
        &mut self,
        tuned: &mut Tuned,
        interrupt: &Interrupt,
        quiet: bool,
    ) -> Result<Outcome, TrainError> {
        let mut progress = Progress::new(self.plan.total, self.state.step, quiet);
        let mut clock = Clock::new(self.state.elapsed);
        let mut recent = Recent::default();
        let mut last_loss = f64::NAN;
        let mut metrics = None;
        // A run that goes on after its end ends as it did.
        let stopped = self.state.finished && self.state.step < self.plan.total;
        let mut end = if stopped {
            End::StoppedEarly
        } else {
            End::Finished
        };
        tuned.track(true);
        while self.state.step < self.plan.total && !self.state.finished {
            let done = self.optimizer_step(tuned)?;
            self.state.step += 1;
            clock.tokens += done.tokens;
            recent.add(&done);
            progress.update(self.state.step, recent.loss(), clock.tokens_per_second());
            let last = self.state.step == self.plan.total;
            if self.state.step.is_multiple_of(self.work.run.logging_steps) || last {
                last_loss = recent.loss();
                self.log(std::mem::take(&mut recent), &clock)?;
            }
            let epoch_ends = self.state.step.is_multiple_of(self.plan.per_epoch) || last;
            let due = |every: Option<u64>| match every {
                Some(every) => self.state.step.is_multiple_of(every) || last,
                None => epoch_ends,
            };
            let (evaluate, mut save) =
                (due(self.work.run.eval_steps), due(self.work.run.save_steps));
            if let (true, Some(eval)) = (evaluate, self.work.eval) {
                tuned.track(false);
                let task = self.work.run.task;
                let scores = evaluate::evaluate(self.work.model, tuned, eval, task)?;
                tuned.track(true);
                let verdict = self
                    .state
                    .early_stopping
                    .observe(self.state.step, &scores)?;
                save |= verdict.is_best || verdict.stop;
                progress.note(&format!("step {}: {}", self.state.step, summary(&scores)));
                self.log_evaluation(&scores, verdict.is_best, &clock)?;
                metrics = Some(scores);
                if verdict.stop {
                    self.state.finished = true;
                    end = End::StoppedEarly;
                }
            }
            if interrupt.is_requested() && !last && !self.state.finished {
                end = End::Interrupted;
            }
            if save || last || end != End::Finished {
                self.state.finished |= last;
                self.save(tuned, &clock)?;
            }
            if end != End::Finished {
                break;
            }
        }
        tuned.track(false);
        progress.finish();
        Ok(Outcome {
            steps: self.state.step,
            end,
            loss: last_loss,
            metrics,
            seconds: clock.elapsed(),
            tokens_per_second: clock.tokens_per_second(),
        })
    }

    /// Puts the parameters of the best evaluation's checkpoint back.
    ///
    /// # Errors
    /// If the checkpoint cannot be read.
    pub fn load_best(&self, tuned: &Tuned) -> Result<(), TrainError> {
        if let Some(best) = self.state.early_stopping.best() {
            RunState::load(&self.checkpoints.path(best.step), tuned, self.work.device)?;
        }
        Ok(())
    }

    /// One optimiser step.
    fn optimizer_step(&mut self, tuned: &mut Tuned) -> Result<Done, TrainError> {
        let run = self.work.run;
        let moment = Moment {
            step: self.state.step as usize,
            total: self.plan.total as usize,
        };
        let epoch = self.state.step / self.plan.per_epoch;
        let first =
            (self.state.step % self.plan.per_epoch) as usize * run.gradient_accumulation_steps;
        let batches = self.work.train.epoch(epoch);
        let last = (first + run.gradient_accumulation_steps).min(self.work.train.per_epoch());

        tuned.method_mut().before_step(moment);
        let mut gradients: Vec<Option<Tensor<1>>> = vec![None; self.moments.len()];
        let (mut loss_sum, mut targets, mut tokens) = (0.0, 0, 0);
        for index in first..last {
            let batch = batches.batch(index)?;
            tokens += batch.tokens();
            let Some((loss, count)) =
                self.backward(&batch, epoch, tuned, moment, &mut gradients, last - first)?
            else {
                continue;
            };
            loss_sum += loss * count as f64;
            targets += count;
        }
        if targets == 0 {
            return Err(TrainError::NothingToLearn {
                step: self.state.step + 1,
            });
        }
        if last - first > 1 {
            for gradient in gradients.iter_mut().flatten() {
                *gradient = gradient.clone() / targets as f64;
            }
        }
        let names: Vec<String> = tuned
            .trained()
            .map(|param| param.key().to_owned())
            .collect();
        if self.state.step == 0 {
            let without: Vec<String> = names
                .iter()
                .zip(&gradients)
                .filter(|(_, gradient)| gradient.is_none())
                .map(|(name, _)| name.clone())
                .collect();
            if !without.is_empty() {
                return Err(TrainError::NoGradient { names: without });
            }
        }
        let norm = self.clip(&names, &mut gradients)?;
        let learning_rate = run.learning_rate * self.schedule.factor(self.state.step);
        let step = self.state.step as usize + 1;
        for ((param, gradient), moments) in tuned.trained().zip(gradients).zip(&mut self.moments) {
            let Some(gradient) = gradient else { continue };
            let optimizer = if decays(param) {
                self.optimizer
            } else {
                AdamW {
                    weight_decay: 0.0,
                    ..self.optimizer
                }
            };
            param.update(|value| {
                let (value, moved) =
                    optimizer.step(value, gradient, moments.take(), learning_rate, step);
                *moments = moved;
                value
            });
        }
        tuned.method_mut().after_step(moment);
        Ok(Done {
            loss: loss_sum / targets as f64,
            norm,
            learning_rate,
            tokens,
        })
    }

    /// Forward and backward over one batch; adds to `gradients` and returns loss and target count.
    fn backward(
        &self,
        batch: &Batch,
        epoch: u64,
        tuned: &mut Tuned,
        moment: Moment,
        gradients: &mut [Option<Tensor<1>>],
        of: usize,
    ) -> Result<Option<(f64, usize)>, TrainError> {
        let run = self.work.run;
        let mut tokens = evaluate::tokens(batch);
        tokens.sequences = keyed(&tokens.sequences, run.seed, epoch, &batch.positions);
        let targets = OwnedTargets::of(batch);
        let Some(targets) = targets.get(batch) else {
            return Ok(None);
        };
        let Some(loss) = self
            .work
            .model
            .loss(&tokens, targets, run.label_smoothing, tuned)
        else {
            return Ok(None);
        };
        let value = f64::from(evaluate::value(loss.mean.clone()));
        if !value.is_finite() {
            return Err(TrainError::NonFinite {
                what: first_non_finite(tuned).map_or_else(
                    || "the loss".to_owned(),
                    |name| format!("`{name}`, and with it the loss,"),
                ),
                step: self.state.step + 1,
            });
        }
        let mut objective = loss.mean;
        if let Some(penalty) = tuned.method().penalty() {
            objective = objective + penalty;
        }
        if of > 1 {
            objective = objective * loss.targets as f64;
        }
        let mut found = objective.backward();
        tuned.method_mut().after_backward(&mut found, moment);
        for (param, sum) in tuned.trained().zip(gradients) {
            if let Some(gradient) = param.flat().grad_remove(&mut found) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + gradient,
                    None => gradient,
                });
            }
        }
        Ok(Some((value, loss.targets)))
    }

    /// The gradients' length, all together; longer ones than `max_grad_norm` are scaled down to it.
    fn clip(
        &self,
        names: &[String],
        gradients: &mut [Option<Tensor<1>>],
    ) -> Result<f64, TrainError> {
        let mut sum = 0.0;
        for (name, gradient) in names.iter().zip(gradients.iter()) {
            let Some(gradient) = gradient else { continue };
            let square = f64::from(gradient.clone().square().sum().into_scalar::<f32>());
            if !square.is_finite() {
                return Err(TrainError::NonFinite {
                    what: format!("the gradient of `{name}`"),
                    step: self.state.step + 1,
                });
            }
            sum += square;
        }
        let norm = sum.sqrt();
        let most = self.work.run.max_grad_norm;
        if most > 0.0 && norm > most {
            let scale = most / (norm + 1e-6);
            for gradient in gradients.iter_mut().flatten() {
                *gradient = gradient.clone() * scale;
            }
        }
        Ok(norm)
    }

    fn log(&mut self, recent: Recent, clock: &Clock) -> Result<(), TrainError> {
        let record = StepRecord {
            step: self.state.step,
            epoch: self.epoch(),
            loss: recent.loss(),
            learning_rate: recent.learning_rate,
            gradient_norm: recent.norm,
            tokens_per_second: clock.tokens_per_second(),
            elapsed: clock.elapsed(),
        };
        self.events.scalars(
            self.state.step,
            [
                ("train/loss", record.loss),
                ("train/learning_rate", record.learning_rate),
                ("train/gradient_norm", record.gradient_norm),
                ("train/tokens_per_second", record.tokens_per_second),
            ],
        )?;
        Ok(self.journal.append(&Record::Step(record))?)
    }

    fn log_evaluation(
        &mut self,
        metrics: &Metrics,
        is_best: bool,
        clock: &Clock,
    ) -> Result<(), TrainError> {
        let tags: Vec<(String, f64)> = metrics
            .iter()
            .map(|(name, value)| (format!("eval/{name}"), value))
            .collect();
        let tags = tags.iter().map(|(tag, value)| (tag.as_str(), *value));
        self.events.scalars(self.state.step, tags)?;
        Ok(self.journal.append(&Record::Evaluation(EvaluationRecord {
            step: self.state.step,
            epoch: self.epoch(),
            metrics: metrics.clone(),
            is_best,
            elapsed: clock.elapsed(),
        }))?)
    }

    fn save(&mut self, tuned: &Tuned, clock: &Clock) -> Result<(), TrainError> {
        self.state.elapsed = clock.elapsed();
        self.journal.sync()?;
        let (state, moments) = (&self.state, &self.moments);
        self.checkpoints
            .save(state.step, |dir| state.save(dir, tuned, moments))?;
        let keep = NonZeroUsize::new(self.work.run.save_total_limit).unwrap_or(NonZeroUsize::MIN);
        let best = self.state.early_stopping.best().map(|best| best.step);
        self.checkpoints.rotate(keep, best)?;
        Ok(())
    }

    fn epoch(&self) -> f64 {
        self.state.step as f64 / self.plan.per_epoch as f64
    }
}

/// The sequences with the keys from which dropout follows: seed, epoch and the example itself.
fn keyed(sequences: &Sequences, seed: u64, epoch: u64, positions: &[usize]) -> Sequences {
    let keys = positions
        .iter()
        .map(|position| name_id(&format!("{seed}/{epoch}/{position}")));
    sequences.clone().with_keys(keys.collect())
}

/// The first trained tensor that holds a NaN or an infinity.
fn first_non_finite(tuned: &Tuned) -> Option<String> {
    let finite = |param: &&Param| param.to_vec().iter().all(|value| value.is_finite());
    tuned
        .trained()
        .find(|param| !finite(param))
        .map(|param| param.key().to_owned())
}

/// Whether weight decay applies: not to biases and scales, as in transformers' `Trainer`.
fn decays(param: &Param) -> bool {
    param.shape().len() > 1
}

/// `accuracy 0.8120, loss 0.4321`, the most telling first.
fn summary(metrics: &Metrics) -> String {
    let scores: Vec<String> = metrics
        .iter()
        .map(|(name, value)| format!("{name} {value:.4}"))
        .collect();
    scores.join(", ")
}

/// What a step did.
struct Done {
    loss: f64,
    norm: f64,
    learning_rate: f64,
    tokens: usize,
}

/// Steps since the last log line.
#[derive(Default)]
struct Recent {
    loss: f64,
    steps: usize,
    norm: f64,
    learning_rate: f64,
}

impl Recent {
    fn add(&mut self, done: &Done) {
        self.loss += done.loss;
        self.steps += 1;
        self.norm = done.norm;
        self.learning_rate = done.learning_rate;
    }

    fn loss(&self) -> f64 {
        self.loss / self.steps as f64
    }
}

/// Time and tokens of this process, on top of what earlier ones spent.
struct Clock {
    started: Instant,
    before: f64,
    tokens: usize,
}

impl Clock {
    fn new(before: f64) -> Self {
        Self {
            started: Instant::now(),
            before,
            tokens: 0,
        }
    }

    fn elapsed(&self) -> f64 {
        self.before + self.started.elapsed().as_secs_f64()
    }

    fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}
