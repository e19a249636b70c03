//! Training, of one run or of several over one base.
//!
//! Runs go step by step side by side. Their passes are joined as long as few tokens come together, so that the
//! products with frozen matrices are shared where a run alone would leave the processor waiting for memory; beyond that
//! nothing is won, and only memory lost.

use std::collections::HashSet;
use std::ops::Range;

use epiphyte_models::Adapter;

use crate::TrainError;
use crate::interrupt::Interrupt;
use crate::pass::{Learned, Member, pass};
use crate::progress::Progress;
use crate::trainer::{Outcome, Step, Trainer};
use crate::trunk::Trunk;

/// Passes of several runs are joined up to so many tokens, or up to those of the largest of them.
const TOKENS_TOGETHER: usize = 512;

/// What runs over one base share.
#[derive(Debug)]
struct Shared {
    /// What enters the lowest layer in which any of them acts, computed once.
    trunk: Option<Trunk>,
    /// Compute layers again on the way back, instead of keeping what they computed.
    checkpointing: bool,
}

impl Shared {
    fn of(trainers: &[Trainer<'_>]) -> Result<Self, TrainError> {
        let Some(first) = trainers.first().map(Trainer::work) else {
            return Ok(Self {
                trunk: None,
                checkpointing: false,
            });
        };
        let dimensions = &first.model.base().dimensions;
        let layers = trainers.iter().map(|trainer| trainer.tuned().first_layer());
        let layer = layers
            .min()
            .unwrap_or(0)
            .min(dimensions.layers.saturating_sub(1));
        let comes_back = |trainer: &Trainer<'_>| trainer.plan().total > trainer.plan().per_epoch;
        let pays = trainers.len() > 1 || trainers.iter().any(comes_back);
        let fixed = layer > 0 && !trainers.iter().any(|trainer| trainer.work().model.drops());
        let examples = trainers
            .iter()
            .flat_map(|trainer| trainer.work().train.examples());
        let texts: HashSet<&[u32]> = examples.map(|example| &example.ids[..]).collect();
        let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
        let run = first.run;
        let trunk = match fixed && pays {
            true => Trunk::new(
                run.activation_cache,
                layer,
                (tokens * dimensions.width * size_of::<f32>()) as u64,
                (run.activation_cache_budget * 1e9) as u64,
                &run.output,
                first.device,
            )?,
            false => None,
        };
        Ok(Self {
            trunk,
            checkpointing: trainers
                .iter()
                .any(|trainer| trainer.work().run.gradient_checkpointing),
        })
    }
}

/// Trains runs over one base to their ends, or until `interrupt` asks to stop; then checkpoints are saved. Their models
/// must share the base ([`epiphyte_models::Loaded::for_task`]). Each run's result is what it would be alone.
///
/// # Errors
/// If a loss or gradient is not finite, a trained parameter gets no gradient, or files cannot be written.
pub fn train_together(
    trainers: &mut [Trainer<'_>],
    interrupt: &Interrupt,
    quiet: bool,
) -> Result<Vec<Outcome>, TrainError> {
    let shared = &mut Shared::of(trainers)?;
    let total = trainers.iter().map(|trainer| trainer.plan().total).sum();
    let done = |trainers: &[Trainer<'_>]| trainers.iter().map(Trainer::step).sum::<u64>();
    let mut progress = Progress::new(total, done(trainers), quiet);
    trainers.iter_mut().for_each(Trainer::begin);
    loop {
        let mut steps: Vec<(usize, Step)> = Vec::new();
        for (run, trainer) in trainers.iter_mut().enumerate() {
            if !trainer.is_over() {
                steps.push((run, trainer.begin_step()?));
            }
        }
        if steps.is_empty() {
            break;
        }
        let passes = steps.iter().map(|(_, step)| step.passes()).max();
        for number in 0..passes.unwrap_or(0) {
            for together in joined(&steps, number) {
                run_pass(trainers, shared, &mut steps[together], number)?;
            }
        }
        for (run, step) in steps {
            if let Some(news) = trainers[run].end_step(step, interrupt)? {
                progress.note(&match total == trainers[run].plan().total {
                    true => news,
                    false => format!("run {}, {news}", run + 1),
                });
            }
        }
        let paces = trainers.iter().map(Trainer::pace);
        let (losses, speeds): (Vec<f64>, Vec<f64>) = paces.unzip();
        let losses: Vec<f64> = losses.into_iter().filter(|loss| loss.is_finite()).collect();
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        progress.update(done(trainers), loss, speeds.iter().sum());
    }
    progress.finish();
    Ok(trainers.iter_mut().map(Trainer::end).collect())
}

/// One pass of some runs' steps.
fn run_pass(
    trainers: &[Trainer<'_>],
    shared: &mut Shared,
    steps: &mut [(usize, Step)],
    number: usize,
) -> Result<(), TrainError> {
    let present = |(_, step): &&mut (usize, Step)| number < step.passes();
    let mut present: Vec<&mut (usize, Step)> = steps.iter_mut().filter(present).collect();
    let learned = present
        .iter_mut()
        .map(|(_, step)| std::mem::take(&mut step.learned));
    let mut learned: Vec<Learned> = learned.collect();
    let members = present
        .iter()
        .map(|(run, step)| trainers[*run].member(step, number));
    let members: Vec<Member<'_>> = members.collect();
    pass(
        &members,
        shared.trunk.as_mut(),
        shared.checkpointing,
        &mut learned,
        |member| trainers[present[member].0].step() + 1,
    )?;
    for ((_, step), learned) in present.into_iter().zip(learned) {
        step.learned = learned;
    }
    Ok(())
}

/// Which steps' passes of a number go together: neighbours, as long as they are small.
fn joined(steps: &[(usize, Step)], number: usize) -> Vec<Range<usize>> {
    let sizes: Vec<usize> = steps.iter().map(|(_, step)| step.tokens(number)).collect();
    let most = sizes
        .iter()
        .copied()
        .max()
        .unwrap_or(0)
        .max(TOKENS_TOGETHER);
    let mut together: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, size) in sizes.into_iter().enumerate() {
        match together.last_mut() {
            Some(last) if tokens + size <= most => last.end = index + 1,
            _ => {
                together.push(index..index + 1);
                tokens = 0;
            }
        }
        tokens += size;
    }
    together
}
