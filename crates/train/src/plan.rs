//! What a run will take, before it begins: counts, bytes, memory by part, time.
//!
//! Memory and time are measured and not modeled: the run is begun in a temporary directory and
//! stopped after a few optimizer steps.

use std::path::Path;
use std::time::{Duration, Instant};

use epiphyte_io::FileError;
use epiphyte_methods::by_name;
use epiphyte_ops::{Precision, Quantization};
use serde::Serialize;

use crate::TrainError;
use crate::dry_run::{DryRun, dry_run};
use crate::interrupt::Interrupt;
use crate::observer::{EvaluationProgress, Observer, TrainingProgress};
use crate::report::account::MemoryUse;
use crate::run::{Report, RunOptions, train};
use crate::scoring::model_input::MICRO_BATCH_TOKENS;
use crate::training::config::RunConfig;

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct RunPlan {
    /// Settings, data, steps and parameters.
    #[serde(flatten)]
    pub dry_run: DryRun,
    /// Bytes of the adapter's tensors on disk.
    pub stored_bytes: u64,
    /// Bytes in use at the peak of a step, by what needs them; none if the program does not count
    /// them.
    pub memory: Option<MemoryUse>,
    /// The most memory that this process held meanwhile: with the program, and with pages of mapped
    /// files, which the system takes back where it needs them.
    pub resident_bytes: Option<u64>,
    /// Optimizer steps that were timed, after one that was not.
    pub timed_steps: usize,
    /// Seconds of an optimizer step.
    pub seconds_per_step: f64,
    /// Seconds until the first step is done: what the method computes before training, and reading
    /// the base.
    pub first_step_seconds: f64,
    /// Seconds of an epoch's optimizer steps.
    pub seconds_per_epoch: f64,
    /// Seconds of all evaluations.
    pub evaluation_seconds: f64,
    /// Seconds of the whole run.
    pub seconds: f64,
    /// The most memory that was asked for, in bytes, and what would fit into it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limit>,
}

/// Whether a run fits into memory, and what else would.
#[derive(Clone, Debug, Serialize)]
pub struct Limit {
    /// The bytes that there are.
    pub bytes: u64,
    /// Whether the run fits.
    pub fits: bool,
    /// Other settings, each with the peak that was measured with it; none are tried if it fits.
    pub remedies: Vec<Remedy>,
}

/// Settings that take less memory.
#[derive(Clone, Debug, Serialize)]
pub struct Remedy {
    /// The flags.
    pub flags: String,
    /// The measured peak in bytes.
    pub peak: u64,
    /// Whether it fits.
    pub fits: bool,
    /// Seconds of an optimizer step.
    pub seconds_per_step: f64,
}

/// What a few steps of a run took.
struct Probe {
    report: Report,
    seconds_per_step: f64,
    first_step_seconds: f64,
    timed: usize,
}

/// Plans a run from `steps` timed optimizer steps. With a `limit` in bytes, settings that take less
/// memory are tried where the run does not fit.
///
/// # Errors
/// As [`train`].
pub fn plan(
    run: &RunConfig,
    options: &RunOptions,
    steps: usize,
    limit: Option<u64>,
) -> Result<RunPlan, TrainError> {
    // Nothing is written to the run's directory, whatever it holds.
    let looking = RunOptions {
        resume: false,
        overwrite: true,
        ..options.clone()
    };
    let dry_run = dry_run(std::slice::from_ref(run), &looking)?.remove(0);
    let failed = FileError::at("create", Path::new("a temporary directory"));
    let directory = tempfile::tempdir().map_err(failed)?;
    let probe = |run: &RunConfig| probe(run, options, steps, directory.path());
    let Probe {
        report,
        seconds_per_step,
        first_step_seconds,
        timed,
    } = probe(run)?;
    let seconds_per_epoch = seconds_per_step * dry_run.steps_per_epoch as f64;
    let evaluation_seconds = evaluation_seconds(run, &dry_run, &report);
    let memory = report.cost.memory;
    let limit = limit.zip(memory).map(|(bytes, memory)| {
        let fits = memory.peak <= bytes;
        let tried = if fits { Vec::new() } else { remedies(run) };
        let measured = tried.into_iter().filter_map(|(flags, run)| {
            // What cannot be set here is no remedy.
            let probe = probe(&run).ok()?;
            let peak = probe.report.cost.memory?.peak;
            Some(Remedy {
                flags,
                peak,
                fits: peak <= bytes,
                seconds_per_step: probe.seconds_per_step,
            })
        });
        Limit {
            bytes,
            fits,
            remedies: measured
                .filter(|remedy| remedy.peak < memory.peak)
                .collect(),
        }
    });
    Ok(RunPlan {
        seconds: first_step_seconds
            + seconds_per_step * dry_run.steps.saturating_sub(1) as f64
            + evaluation_seconds,
        stored_bytes: report.bytes,
        memory,
        resident_bytes: report.peak_memory_bytes,
        timed_steps: timed,
        seconds_per_step,
        first_step_seconds,
        seconds_per_epoch,
        evaluation_seconds,
        limit,
        dry_run,
    })
}

/// Rows of the evaluation data on which a probe evaluates.
const PROBED_ROWS: usize = 16;

/// Runs the first steps in a temporary directory, with an evaluation of a few rows after every
/// second: what evaluations leave in memory is there in the steps that follow.
fn probe(
    run: &RunConfig,
    options: &RunOptions,
    steps: usize,
    directory: &Path,
) -> Result<Probe, TrainError> {
    let evaluates = run.eval_data.is_some();
    let rows = run.max_eval_rows.unwrap_or(PROBED_ROWS).min(PROBED_ROWS);
    let run = RunConfig {
        output: directory.join("run"),
        eval_steps: evaluates.then_some(2),
        max_eval_rows: evaluates.then_some(rows),
        early_stopping_patience: None,
        load_best_model_at_end: false,
        forgetting_data: None,
        max_forgetting_rows: None,
        save_steps: Some(u64::MAX),
        ..run.clone()
    };
    let options = RunOptions {
        resume: false,
        overwrite: true,
        measure_inference: true,
        ..options.clone()
    };
    let interrupt = Interrupt::default();
    let mut clock = StopAfter {
        steps,
        interrupt: interrupt.clone(),
        first: None,
        last: None,
        times: Vec::new(),
    };
    let report = train(&run, &options, &interrupt, &mut clock)?;
    let timed = clock.times.len();
    let seconds: f64 = clock.times.iter().map(Duration::as_secs_f64).sum();
    Ok(Probe {
        seconds_per_step: match timed {
            // A run of one step.
            0 => report.seconds,
            timed => seconds / timed as f64,
        },
        first_step_seconds: clock
            .first
            .map_or(report.seconds, |first| first.as_secs_f64()),
        report,
        timed,
    })
}

/// Times steps, and stops a run after some of them. The first, which reads the base, is not timed,
/// nor is one after an evaluation.
struct StopAfter {
    steps: usize,
    interrupt: Interrupt,
    first: Option<Duration>,
    last: Option<Instant>,
    times: Vec<Duration>,
}

impl Observer for StopAfter {
    fn step(&mut self, progress: &TrainingProgress) {
        let now = Instant::now();
        self.first.get_or_insert(progress.elapsed);
        self.times.extend(self.last.map(|last| now - last));
        self.last = Some(now);
        if self.times.len() >= self.steps {
            self.interrupt.request();
        }
    }

    fn evaluation_progress(&mut self, _progress: &EvaluationProgress) {
        self.last = None;
    }
}

/// Seconds of all evaluations of a run, from the time of a forward pass, and from that of the texts
/// that the probe's last evaluation wrote. A trained model may end its texts earlier.
fn evaluation_seconds(run: &RunConfig, dry_run: &DryRun, report: &Report) -> f64 {
    let Some((data, inference)) = dry_run.evaluation.as_ref().zip(report.cost.inference) else {
        return 0.0;
    };
    let forward = inference.adapter.seconds * data.tokens as f64 / inference.tokens.max(1) as f64;
    let writing = report.cost.writing.zip(dry_run.texts);
    let writing = writing.map_or(0.0, |(probed, texts)| {
        probed.seconds * texts as f64 / probed.texts.max(1) as f64
    });
    let every = run.eval_steps.unwrap_or(dry_run.steps_per_epoch).max(1);
    (forward + writing) * dry_run.steps.div_ceil(every) as f64
}

/// Runs that take less memory, with the flags that make them so: alone, and all together.
fn remedies(run: &RunConfig) -> Vec<(String, RunConfig)> {
    let tokens = (run.micro_batch_tokens.unwrap_or(MICRO_BATCH_TOKENS) / 4).max(1);
    let mut new: Vec<(String, Change)> = vec![
        (
            format!("--micro-batch-tokens {tokens}"),
            Box::new(move |run| run.micro_batch_tokens = Some(tokens)),
        ),
        (
            "--gradient-checkpointing".to_owned(),
            Box::new(|run| run.gradient_checkpointing = true),
        ),
        (
            "--precision bf16".to_owned(),
            Box::new(|run| run.precision = Precision::Bf16),
        ),
        (
            "--quantization nf4".to_owned(),
            Box::new(|run| {
                run.quantization.get_or_insert(Quantization::Nf4);
            }),
        ),
    ];
    if let Some(rank) = rank(run).filter(|rank| *rank > 1) {
        let less = (rank / 4).max(1);
        let change = move |run: &mut RunConfig| {
            run.method_settings.insert(RANK.to_owned(), less.into());
        };
        new.push((format!("--rank {less}"), Box::new(change)));
    }
    let changed = |changes: &[&Change]| {
        let mut run = run.clone();
        changes.iter().for_each(|change| change(&mut run));
        run
    };
    new.retain(|(_, change)| changed(&[change]) != *run);
    let alone = new
        .iter()
        .map(|(flags, change)| (flags.clone(), changed(&[change])));
    let mut tried: Vec<(String, RunConfig)> = alone.collect();
    if new.len() > 1 {
        let flags: Vec<&str> = new.iter().map(|(flags, _)| &flags[..]).collect();
        let changes: Vec<&Change> = new.iter().map(|(_, change)| change).collect();
        tried.push((flags.join(" "), changed(&changes)));
    }
    tried
}

/// Changes a run's settings.
type Change = Box<dyn Fn(&mut RunConfig)>;

/// The key of a method's rank, whose flag is `--rank`.
const RANK: &str = "r";

/// The rank of a method that has one.
fn rank(run: &RunConfig) -> Option<u64> {
    let config = by_name(&run.method).ok()?;
    let config = config.configure(run.method_settings.clone()).ok()?;
    config.settings().get(RANK)?.as_u64()
}
