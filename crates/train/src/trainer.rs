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
use epiphyte_models::seam::name_id;
use epiphyte_models::{Tokens, Transformer};
use epiphyte_ops::{AdamW, Moments, Sequences, on_processor, scale, square_sum};
use serde::{Deserialize, Serialize};

use crate::TrainError;
use crate::checkpoints::Checkpoints;
use crate::config::RunConfig;
use crate::early_stopping::EarlyStopping;
use crate::evaluate::{self, OwnedTargets};
use crate::interrupt::Interrupt;
use crate::journal::{EvaluationRecord, Journal, Record, StepRecord};
use crate::metrics::Metrics;
use crate::pass::{Learned, Member};
use crate::schedule::Schedule;
use crate::state::RunState;
use crate::tensorboard::EventWriter;

/// About how many tokens of a batch go through the model at once on a processor, if a run does not say. Products are as
/// fast with so many rows as with more, and what is kept for the way back is in proportion to them.
const TOKENS_PER_PASS: usize = 512;

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
    tuned: Tuned,
    plan: Plan,
    schedule: Schedule,
    optimizer: AdamW,
    state: RunState,
    moments: Vec<Moments>,
    checkpoints: Checkpoints,
    journal: Journal,
    events: EventWriter,
    clock: Clock,
    recent: Recent,
    last_loss: f64,
    metrics: Option<Metrics>,
    end: End,
}

/// An optimiser step under way: what each of its passes sees, and what they have taught so far.
pub(crate) struct Step {
    moment: Moment,
    batches: Vec<Batch>,
    tokens: Vec<Sequences>,
    classes: Vec<OwnedTargets>,
    pub(crate) learned: Learned,
}

impl Step {
    /// How many passes the step takes.
    pub(crate) fn passes(&self) -> usize {
        self.batches.len()
    }

    /// Tokens of a pass.
    pub(crate) fn tokens(&self, pass: usize) -> usize {
        self.batches.get(pass).map_or(0, Batch::tokens)
    }
}

impl<'a> Trainer<'a> {
    /// Begins a run, or goes on with the newest checkpoint in the output directory if `resume` is true
    /// and there is one.
    ///
    /// # Errors
    /// If files cannot be read or written, or the checkpoint belongs to another run.
    pub fn new(work: Workload<'a>, tuned: Tuned, resume: bool) -> Result<Self, TrainError> {
        let run = work.run;
        let plan = Plan::new(run, work.train.per_epoch());
        let checkpoints = Checkpoints::open(&run.output)?;
        let latest = if resume { checkpoints.latest()? } else { None };
        let journal_path = run.output.join("log.jsonl");
        let events_dir = run.output.join("runs");
        let (mut state, moments, journal, events) = match latest {
            Some(checkpoint) => {
                let (state, moments) = RunState::load(&checkpoint.path, &tuned, work.device)?;
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
                    recent: Recent::default(),
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
            clock: Clock::new(state.elapsed),
            recent: std::mem::take(&mut state.recent),
            // A run that goes on after its end ends as it did.
            end: match state.finished && state.step < plan.total {
                true => End::StoppedEarly,
                false => End::Finished,
            },
            last_loss: f64::NAN,
            metrics: None,
            work,
            tuned,
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

    /// What the run trains.
    pub fn tuned(&self) -> &Tuned {
        &self.tuned
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

    /// Begins to train: gradients are recorded from here on.
    pub(crate) fn begin(&mut self) {
        self.clock = Clock::new(self.state.elapsed);
        self.tuned.track(true);
    }

    /// Ends training and says how it went.
    pub(crate) fn end(&mut self) -> Outcome {
        self.tuned.track(false);
        Outcome {
            steps: self.state.step,
            end: self.end,
            loss: self.last_loss,
            metrics: self.metrics.take(),
            seconds: self.clock.elapsed(),
            tokens_per_second: self.clock.tokens_per_second(),
        }
    }

    /// The mean loss since the last log line, and training tokens a second, to show.
    pub(crate) fn pace(&self) -> (f64, f64) {
        (self.recent.loss(), self.clock.tokens_per_second())
    }

    /// Puts the parameters of the best evaluation's checkpoint back.
    ///
    /// # Errors
    /// If the checkpoint cannot be read.
    pub fn load_best(&self) -> Result<(), TrainError> {
        if let Some(best) = self.state.early_stopping.best() {
            let path = self.checkpoints.path(best.step);
            RunState::load(&path, &self.tuned, self.work.device)?;
        }
        Ok(())
    }

    /// Begins an optimiser step.
    ///
    /// # Errors
    /// If a batch cannot be made.
    pub(crate) fn begin_step(&mut self) -> Result<Step, TrainError> {
        let run = self.work.run;
        let moment = Moment {
            step: self.state.step as usize,
            total: self.plan.total as usize,
        };
        let epoch = self.state.step / self.plan.per_epoch;
        let first =
            (self.state.step % self.plan.per_epoch) as usize * run.gradient_accumulation_steps;
        let last = (first + run.gradient_accumulation_steps).min(self.work.train.per_epoch());
        let order = self.work.train.epoch(epoch);
        let tokens = self.tokens_per_pass();
        let mut batches = Vec::new();
        for index in first..last {
            batches.extend(order.batch(index)?.parts(tokens));
        }
        self.tuned.method_mut().before_step(moment);
        let keyed = |batch: &Batch| {
            let sequences = Sequences::new(batch.boundaries.clone());
            keyed(sequences, run.seed, epoch, &batch.positions)
        };
        Ok(Step {
            moment,
            tokens: batches.iter().map(keyed).collect(),
            classes: batches.iter().map(OwnedTargets::of).collect(),
            learned: Learned::nothing(self.moments.len()),
            batches,
        })
    }

    /// About how many tokens a pass takes.
    fn tokens_per_pass(&self) -> usize {
        let usual = match on_processor(self.work.device) {
            true => TOKENS_PER_PASS,
            false => usize::MAX,
        };
        self.work.run.micro_batch_tokens.unwrap_or(usual)
    }

    /// What the run brings to a pass of its step.
    pub(crate) fn member<'s>(&'s self, step: &'s Step, pass: usize) -> Member<'s> {
        let batch = &step.batches[pass];
        Member {
            model: self.work.model,
            tuned: &self.tuned,
            tokens: Tokens {
                ids: &batch.ids,
                type_ids: &batch.type_ids,
                sequences: step.tokens[pass].clone(),
            },
            targets: step.classes[pass].get(batch),
            label_smoothing: self.work.run.label_smoothing,
            sums: step.passes() > 1,
        }
    }

    /// Ends an optimiser step: moves the parameters, and logs, evaluates and saves where that is due. What is worth
    /// telling the user comes back.
    ///
    /// # Errors
    /// If a gradient is not finite, a trained parameter gets none, or files cannot be written.
    pub(crate) fn end_step(
        &mut self,
        step: Step,
        interrupt: &Interrupt,
    ) -> Result<Option<String>, TrainError> {
        self.clock.tokens += step.batches.iter().map(Batch::tokens).sum::<usize>();
        let done = self.optimize(step)?;
        self.state.step += 1;
        self.recent.add(&done);
        let last = self.state.step == self.plan.total;
        if self.state.step.is_multiple_of(self.work.run.logging_steps) || last {
            self.last_loss = self.recent.loss();
            let recent = std::mem::take(&mut self.recent);
            self.log(recent)?;
        }
        let epoch_ends = self.state.step.is_multiple_of(self.plan.per_epoch) || last;
        let due = |every: Option<u64>| match every {
            Some(every) => self.state.step.is_multiple_of(every) || last,
            None => epoch_ends,
        };
        let (evaluate, mut save) = (due(self.work.run.eval_steps), due(self.work.run.save_steps));
        let mut news = None;
        if let (true, Some(eval)) = (evaluate, self.work.eval) {
            self.tuned.track(false);
            let task = self.work.run.task;
            let scores = evaluate::evaluate(self.work.model, &self.tuned, eval, task)?;
            self.tuned.track(true);
            let verdict = self
                .state
                .early_stopping
                .observe(self.state.step, &scores)?;
            save |= verdict.is_best || verdict.stop;
            news = Some(format!("step {}: {}", self.state.step, summary(&scores)));
            self.log_evaluation(&scores, verdict.is_best)?;
            self.metrics = Some(scores);
            if verdict.stop {
                self.state.finished = true;
                self.end = End::StoppedEarly;
            }
        }
        if interrupt.is_requested() && !last && !self.state.finished {
            self.end = End::Interrupted;
        }
        if save || last || self.end != End::Finished {
            self.state.finished |= last;
            self.save()?;
        }
        Ok(news)
    }

    /// Moves the parameters along the gradients of a step.
    fn optimize(&mut self, step: Step) -> Result<Done, TrainError> {
        let run = self.work.run;
        let Step {
            moment,
            batches,
            learned,
            ..
        } = step;
        let Learned {
            loss,
            targets,
            mut gradients,
        } = learned;
        if targets == 0 {
            return Err(TrainError::NothingToLearn {
                step: self.state.step + 1,
            });
        }
        if batches.len() > 1 {
            scale_all(&mut gradients, 1.0 / targets as f64);
        }
        let names: Vec<String> = self
            .tuned
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
        self.tuned
            .method_mut()
            .after_backward(&mut gradients, moment);
        let norm = self.clip(&names, &mut gradients)?;
        let learning_rate = run.learning_rate * self.schedule.factor(self.state.step);
        let number = self.state.step as usize + 1;
        for ((param, gradient), moments) in
            self.tuned.trained().zip(gradients).zip(&mut self.moments)
        {
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
                    optimizer.step(value, gradient, moments.take(), learning_rate, number);
                *moments = moved;
                value
            });
        }
        self.tuned.method_mut().after_step(moment);
        Ok(Done {
            loss: loss / targets as f64,
            norm,
            learning_rate,
        })
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
            let square = square_sum(gradient);
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
            scale_all(gradients, most / (norm + 1e-6));
        }
        Ok(norm)
    }

    fn log(&mut self, recent: Recent) -> Result<(), TrainError> {
        let record = StepRecord {
            step: self.state.step,
            epoch: self.epoch(),
            loss: recent.loss(),
            learning_rate: recent.learning_rate,
            gradient_norm: recent.norm,
            tokens_per_second: self.clock.tokens_per_second(),
            elapsed: self.clock.elapsed(),
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

    fn log_evaluation(&mut self, metrics: &Metrics, is_best: bool) -> Result<(), TrainError> {
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
            elapsed: self.clock.elapsed(),
        }))?)
    }

    fn save(&mut self) -> Result<(), TrainError> {
        self.state.elapsed = self.clock.elapsed();
        self.state.recent = self.recent;
        self.journal.sync()?;
        let (state, tuned, moments) = (&self.state, &self.tuned, &self.moments);
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
fn keyed(sequences: Sequences, seed: u64, epoch: u64, positions: &[usize]) -> Sequences {
    let keys = positions
        .iter()
        .map(|position| name_id(&format!("{seed}/{epoch}/{position}")));
    sequences.with_keys(keys.collect())
}

/// Multiplies every gradient by `factor`.
fn scale_all(gradients: &mut [Option<Tensor<1>>], factor: f64) {
    for slot in gradients {
        *slot = slot.take().map(|gradient| scale(gradient, factor));
    }
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
}

/// Steps since the last log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Recent {
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
#[derive(Debug)]
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
