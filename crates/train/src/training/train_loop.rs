//! The training loop, of one run or of several over one base.
//!
//! Runs go step by step together. Their micro-batches are joined while they hold few tokens, so
//! that the products with frozen matrices are shared where a run alone would leave the processor
//! waiting for memory; beyond that nothing is gained, and memory is lost.

use std::collections::HashSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use epiphyte_models::Adapter;
use epiphyte_ops::allocator;

use crate::TrainError;
use crate::interrupt::Interrupt;
use crate::observer::{Observer, TrainingProgress};
use crate::training::activation_cache::{ActivationCache, ActivationCacheKind};
use crate::training::micro_batch::forward_backward;
use crate::training::trainer::{Outcome, Trainer};

/// Micro-batches of several runs are joined up to this many tokens, or up to those of the largest.
const JOINED_TOKENS: usize = 512;

/// Trains runs over one base to their ends, or until `interrupt` asks to stop; then checkpoints are
/// saved. Their models must share the base ([`epiphyte_models::load_sharing`]). Each run's
/// result is what it would be alone.
///
/// # Errors
/// If a loss or gradient is not finite, a trained parameter gets no gradient, or files cannot be
/// written.
pub fn train_runs(
    trainers: &mut [Trainer<'_>],
    interrupt: &Interrupt,
    observer: &mut dyn Observer,
) -> Result<Vec<Outcome>, TrainError> {
    let mut shared = Shared::new(trainers)?;
    let mut progress = Progress::new(trainers);
    let several = trainers.len() > 1;
    for (number, run) in trainers.iter_mut().enumerate() {
        run.begin(several.then_some(number))?;
    }
    loop {
        let mut active: Vec<&mut Trainer<'_>> =
            trainers.iter_mut().filter(|run| !run.is_over()).collect();
        if active.is_empty() {
            break;
        }
        for run in &mut active {
            run.begin_stage_if_due(observer)?;
        }
        let started = Instant::now();
        allocator::mark();
        let before = allocator::live_bytes();
        for run in &mut active {
            run.zero_gradients();
            run.draw_batch()?;
        }
        for index in 0..micro_batches(&active) {
            for joined in join(&active, index) {
                shared.forward_backward(&mut active[joined], index)?;
            }
        }
        for run in &mut active {
            run.complete_gradients()?;
            run.clip_gradients()?;
            run.optimizer_step();
        }
        if let ([run], Some(before)) = (&mut active[..], before.filter(|_| !several)) {
            run.note_memory(before, allocator::peak_bytes_since_mark().unwrap_or(before));
        }
        // Every run waits for all of them, so the time of the step is the time of each.
        let time = started.elapsed();
        observer.step(&progress.after_step(&active, time));
        for run in active {
            run.log(time)?;
            run.evaluate(observer)?;
            run.save(interrupt)?;
        }
    }
    Ok(trainers.iter_mut().map(Trainer::end).collect())
}

/// What runs over one base share.
#[derive(Debug)]
struct Shared {
    /// The input of the lowest layer in which any run acts, computed once for each example.
    cache: Option<ActivationCache>,
    /// Recompute layers in backward instead of keeping what they computed.
    checkpointing: bool,
}

impl Shared {
    fn new(trainers: &[Trainer<'_>]) -> Result<Self, TrainError> {
        let checkpointing = trainers
            .iter()
            .any(|trainer| trainer.work().run.gradient_checkpointing);
        let obstacle = Self::cache_obstacle(trainers);
        let cache = match trainers.first() {
            Some(first) if obstacle.is_none() => {
                let data = trainers
                    .iter()
                    .map(|trainer| trainer.work().train.examples());
                let texts = data.flat_map(|data| (0..).map_while(|position| data.ids(position)));
                let texts: HashSet<&[u32]> = texts.collect();
                let tokens: usize = texts.iter().map(|ids| ids.len()).sum();
                let (work, dimensions) = (first.work(), &first.work().model.base().dimensions);
                ActivationCache::new(
                    work.run.activation_cache,
                    Self::first_layer(trainers),
                    (tokens * dimensions.hidden_size * size_of::<f32>()) as u64,
                    (work.run.activation_cache_budget * 1e9) as u64,
                    &work.run.output,
                    work.device,
                )?
            }
            _ => None,
        };
        let asked = [ActivationCacheKind::Memory, ActivationCacheKind::Disk];
        let asked = |trainer: &Trainer<'_>| asked.contains(&trainer.work().run.activation_cache);
        if let Some(obstacle) = obstacle
            && trainers.iter().any(asked)
        {
            tracing::warn!("the activation cache is not used: {obstacle}");
        }
        Ok(Self {
            cache,
            checkpointing,
        })
    }

    /// The lowest layer in which any run acts.
    fn first_layer(trainers: &[Trainer<'_>]) -> usize {
        let layers = trainers.iter().map(|trainer| {
            let last = trainer.work().model.layers().saturating_sub(1);
            trainer.module().first_layer().min(last)
        });
        layers.min().unwrap_or(0)
    }

    /// Why the states below that layer cannot be kept, or would not be needed again; none if they
    /// can and would.
    fn cache_obstacle(trainers: &[Trainer<'_>]) -> Option<&'static str> {
        fn model<'a>(trainer: &Trainer<'a>) -> &'a epiphyte_models::Model {
            trainer.work().model
        }
        let comes_back = |trainer: &Trainer<'_>| trainer.plan().total > trainer.plan().per_epoch;
        if Self::first_layer(trainers) == 0 {
            return Some(
                "something is trained in the first layer, so no states below it are constant",
            );
        }
        if trainers.iter().any(|it| model(it).has_dropout()) {
            return Some(
                "the base has dropout, which changes the states in every epoch (--base-dropout 0)",
            );
        }
        if trainers.iter().any(|it| it.work().train.is_masked()) {
            return Some("other tokens are hidden in each epoch");
        }
        let encodes = |it: &Trainer<'_>| model(it).base().dimensions.encoder_layers > 0;
        if trainers.iter().any(encodes) {
            return Some("the base is an encoder-decoder");
        }
        let is_needed = trainers.len() > 1 || trainers.iter().any(comes_back);
        (!is_needed).then_some("no text is seen twice in a single epoch")
    }

    /// Runs micro-batch `index` of these runs forward and backward, as one batch.
    fn forward_backward(
        &mut self,
        runs: &mut [&mut Trainer<'_>],
        index: usize,
    ) -> Result<(), TrainError> {
        let runs = runs.iter_mut().filter_map(|run| run.micro_batch(index));
        let (inputs, mut accumulators): (Vec<_>, Vec<_>) = runs.unzip();
        let tokens: Vec<_> = inputs.iter().map(|input| input.tokens()).collect();
        let batches = inputs.iter().zip(&tokens);
        let batches: Vec<_> = batches.map(|(input, tokens)| input.with(tokens)).collect();
        forward_backward(
            &batches,
            self.cache.as_mut(),
            self.checkpointing,
            &mut accumulators,
        )
    }
}

/// The largest number of micro-batches in the step of any run.
fn micro_batches(active: &[&mut Trainer<'_>]) -> usize {
    let counts = active.iter().map(|run| run.micro_batches());
    counts.max().unwrap_or(0)
}

/// Which runs' micro-batches of a number are joined: neighbors, while they are small, whose models
/// have the same names for the base's tensors.
fn join(active: &[&mut Trainer<'_>], index: usize) -> Vec<Range<usize>> {
    let sizes: Vec<usize> = active.iter().map(|run| run.tokens(index)).collect();
    let most = sizes.iter().copied().max().unwrap_or(0).max(JOINED_TOKENS);
    let prefix = |run: usize| active[run].work().model.base().prefix;
    let mut joined: Vec<Range<usize>> = Vec::new();
    let mut tokens = 0;
    for (index, size) in sizes.into_iter().enumerate() {
        match joined.last_mut() {
            Some(last) if tokens + size <= most && prefix(last.start) == prefix(index) => {
                last.end = index + 1;
            }
            _ => {
                joined.push(index..index + 1);
                tokens = 0;
            }
        }
        tokens += size;
    }
    joined
}

/// What the observer is told after each step.
struct Progress {
    total: u64,
    first: u64,
    began: Instant,
    training: Duration,
    tokens: usize,
    done: u64,
}

impl Progress {
    fn new(trainers: &[Trainer<'_>]) -> Self {
        let done: u64 = trainers.iter().map(Trainer::step).sum();
        Self {
            total: trainers.iter().map(|trainer| trainer.plan().total).sum(),
            first: done,
            began: Instant::now(),
            training: Duration::ZERO,
            tokens: 0,
            done,
        }
    }

    /// After a step of the `active` runs that took `time`.
    fn after_step(&mut self, active: &[&mut Trainer<'_>], time: Duration) -> TrainingProgress {
        self.training += time;
        self.tokens += active.iter().map(|run| run.step_tokens()).sum::<usize>();
        self.done += active.len() as u64;
        let losses = active.iter().map(|run| run.recent_loss());
        TrainingProgress {
            step: self.done,
            total: self.total,
            first: self.first,
            loss: losses.sum::<f64>() / active.len() as f64,
            tokens_per_second: self.tokens as f64 / self.training.as_secs_f64().max(1e-9),
            elapsed: self.began.elapsed(),
        }
    }
}
