//! `epiphyte intrinsic-dimension`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::{RunConfig, RunOptions, SharedBase, check_runs, holds_run, train};
use serde::Serialize;
use serde_json::json;

use crate::failure::UsageError;
use crate::global::Global;
use crate::hub;
use crate::interrupt::{interrupted, on_signals};
use crate::output::{self, Align};
use crate::outputs;
use crate::progress::Progress;
use crate::settings::{self, GivenFlags};

pub(crate) const EXAMPLES: &str = "\
Examples:
  epiphyte intrinsic-dimension --model bert-base-uncased --train-data train.tsv --eval-data dev.tsv \\
      --text-columns sentence --method said --metric-for-best-model accuracy --output search
  epiphyte intrinsic-dimension --config run.toml --method said --intrinsic-said false --from 16

  OUTPUT/full is a run of full fine-tuning, OUTPUT/dimension-N the runs in a random space of N
  dimensions. The same command goes on where it was stopped.

  The intrinsic dimension (d90) is the smallest with 90 % of the score of full fine-tuning
  (Aghajanyan et al. 2021, arXiv 2012.13255).";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// TOML file with the settings of a run
    #[arg(long, value_name = "FILE.toml")]
    config: Option<PathBuf>,
    /// Share of full fine-tuning's score that is to be reached
    #[arg(long, value_name = "X", default_value_t = 0.9)]
    share: f64,
    /// The first dimension; each that does not reach the share is doubled
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u64).range(1..))]
    from: u64,
    /// The largest dimension
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    to: u64,
    /// Further dimensions that are tried between the last that did not reach it and the first that
    /// did
    #[arg(long, value_name = "N", default_value_t = 3)]
    refine: u32,
    /// Learning rate of full fine-tuning [default: the method's own]
    #[arg(long, value_name = "X")]
    full_learning_rate: Option<f64>,
    #[command(flatten)]
    settings: GivenFlags,
}

/// A run of the search.
#[derive(Clone, Debug, Serialize)]
struct Trial {
    /// None of full fine-tuning.
    dimension: Option<u64>,
    score: f64,
    /// The score over that of full fine-tuning.
    share: f64,
    output: PathBuf,
}

/// The directory of full fine-tuning.
const FULL: &str = "full";
/// What the directory of a dimension begins with.
const DIMENSION: &str = "dimension-";

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    let mut given = settings::run_configs(arguments.config.as_deref(), &arguments.settings)?;
    let usage = |problem: &str| Err(UsageError::Other(problem.to_owned()).into());
    if given.len() > 1 {
        return usage("the file has several runs: search for one at a time");
    }
    let run = given.remove(0).config;
    if run.method != "said" {
        return usage("the runs are those of said: pass --method said");
    }
    if run.eval_data.is_none() {
        return usage("dimensions are compared by a score: pass --eval-data");
    }
    let metric = match &run.metric_for_best_model {
        Some(metric) if metric != "loss" && metric != "perplexity" => metric.clone(),
        _ => return usage("pass --metric-for-best-model: a score of which more is better"),
    };
    if !(arguments.share > 0.0 && arguments.share <= 1.0) {
        return usage("--share is above 0 and at most 1");
    }
    if arguments.to < arguments.from {
        return usage("--to is less than --from");
    }
    outputs::check_own_directory(
        &run.output,
        "a search for the intrinsic dimension",
        |name| name == FULL || name.starts_with(DIMENSION),
    )?;
    run.check()?;
    let mut search = Search {
        options: RunOptions {
            command: crate::arguments::words().collect(),
            model_dir: Some(hub::resolve(&run.model)?),
            device: global.device()?,
            shared_base: Some(SharedBase::default()),
            ..RunOptions::default()
        },
        full_learning_rate: arguments.full_learning_rate,
        run,
        metric,
        trials: Vec::new(),
    };
    let found = search.smallest(&arguments, global)?;
    let Some(found) = found else {
        output::note("stopped; the same command goes on");
        return Ok(interrupted());
    };
    search.trials[1..].sort_by_key(|trial| trial.dimension);
    if global.json {
        output::json(&json!({
            "metric": search.metric,
            "share": arguments.share,
            "intrinsic_dimension": found.dimension,
            "runs": search.trials,
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = vec![
        ["dimension", &search.metric, "share"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(search.trials.iter().map(|trial| {
        let dimension = trial.dimension.map_or("full".to_owned(), output::count);
        let share = format!("{:.1} %", 100.0 * trial.share);
        vec![dimension, format!("{:.4}", trial.score), share]
    }));
    output::table(&rows, &[Align::Right; 3])?;
    let share = 100.0 * arguments.share;
    output::print(&match found.dimension {
        Some(dimension) => format!(
            "intrinsic dimension: {} has {share:.0} % of full fine-tuning's score",
            output::count(dimension)
        ),
        None => format!(
            "no dimension up to {} reaches {share:.0} %",
            output::count(arguments.to)
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// What a search found.
struct Found {
    /// The smallest dimension that reaches the share; none if none does.
    dimension: Option<u64>,
}

/// The runs of a search.
struct Search {
    run: RunConfig,
    options: RunOptions,
    full_learning_rate: Option<f64>,
    metric: String,
    /// Full fine-tuning, then the dimensions as they were tried.
    trials: Vec<Trial>,
}

impl Search {
    /// The smallest dimension with the share of full fine-tuning's score: doubled until one has it,
    /// then between the last two, at equal ratios. None if a run was interrupted.
    fn smallest(&mut self, arguments: &Arguments, global: &Global) -> Result<Option<Found>> {
        if self.trial(None, global)?.is_none() {
            return Ok(None);
        }
        let (mut least, mut most) = (None, None);
        let mut dimension = arguments.from;
        while most.is_none() {
            match self.trial(Some(dimension), global)? {
                None => return Ok(None),
                Some(share) if share >= arguments.share => most = Some(dimension),
                Some(_) if dimension >= arguments.to => return Ok(Some(Found { dimension: None })),
                Some(_) => {
                    least = Some(dimension);
                    dimension = dimension.saturating_mul(2).min(arguments.to);
                }
            }
        }
        for _ in 0..arguments.refine {
            let (Some(below), Some(above)) = (least, most) else {
                break;
            };
            let between = ((below as f64) * (above as f64)).sqrt().round() as u64;
            if between <= below || between >= above {
                break;
            }
            match self.trial(Some(between), global)? {
                None => return Ok(None),
                Some(share) if share >= arguments.share => most = Some(between),
                Some(_) => least = Some(between),
            }
        }
        Ok(Some(Found { dimension: most }))
    }

    /// Trains one run, or goes on with it: its score over that of full fine-tuning. None if it was
    /// interrupted.
    fn trial(&mut self, dimension: Option<u64>, global: &Global) -> Result<Option<f64>> {
        let mut run = self.run.clone();
        let name = match dimension {
            Some(dimension) => {
                let value = json!(dimension);
                run.method_settings
                    .insert("intrinsic_dim".to_owned(), value);
                format!("{DIMENSION}{dimension}")
            }
            None => {
                run.method = "full".to_owned();
                run.method_settings.clear();
                run.learning_rate = self.full_learning_rate;
                FULL.to_owned()
            }
        };
        run.output = self.run.output.join(name);
        check_runs(std::slice::from_ref(&run))?;
        let options = RunOptions {
            resume: holds_run(&run.output),
            ..self.options.clone()
        };
        let interrupt = on_signals(global.quiet)?;
        let mut progress = Progress::new(global);
        let report = train(&run, &options, &interrupt, &mut progress)?;
        progress.finish();
        if report.status == "interrupted" {
            return Ok(None);
        }
        let score = report.metrics.and_then(|metrics| metrics.get(&self.metric));
        let Some(score) = score.filter(|score| score.is_finite()) else {
            let problem = format!(
                "`{}` was not measured in `{}`",
                self.metric,
                run.output.display()
            );
            return Err(UsageError::Other(problem).into());
        };
        let full = self.trials.first().map_or(score, |full| full.score);
        let share = if full > 0.0 { score / full } else { 0.0 };
        self.trials.push(Trial {
            dimension,
            score,
            share,
            output: run.output,
        });
        Ok(Some(share))
    }
}
