//! The files of a comparison: `results.json`, `results.csv`, `results.md`, `findings.md` and
//! `report.html`, and in `peft/` a file a run as HF PEFT's `method_comparison` has them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use epiphyte_io::FileError;
use serde::Serialize;
use serde_json::Value;

use crate::findings::findings;
use crate::inputs::INPUTS;
use crate::published::Published;
use crate::report::suite_report;
use crate::result::{RESULT_FILE, RunResult};
use crate::run::{RUNS, path_of};
use crate::suite::Suite;
use crate::summary::{Row, Summary};
use crate::{CompareError, peft};

const FILES: [&str; 5] = [
    "results.json",
    "results.csv",
    "results.md",
    "findings.md",
    "report.html",
];
const PEFT: &str = "peft";

/// The names of what a comparison has written into its directory, or may write again. None if there
/// are neither runs nor their results: such names are then not those of a comparison.
pub fn names_of_comparison(directory: &Path) -> Vec<&'static str> {
    let has_results = || {
        let results = epiphyte_io::read_regular(&directory.join(FILES[0])).unwrap_or_default();
        let results: Value = serde_json::from_slice(&results).unwrap_or_default();
        results.get("baseline").is_some()
    };
    match directory.join(RUNS).is_dir() || has_results() {
        true => [&FILES[..], &[PEFT, RUNS]].concat(),
        false => Vec::new(),
    }
}

/// What `results.json` holds.
#[derive(Serialize)]
struct Results<'a> {
    /// The version that made the runs.
    version: &'static str,
    suite: &'a str,
    title: &'a str,
    baseline: &'a str,
    /// One object a run.
    runs: &'a [RunResult],
    /// Means over seeds, and comparisons with the baseline.
    summary: &'a Summary,
    /// Results of others.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    published: &'a [Published],
}

/// Writes the files of a comparison into `directory`, with what others have published beside it,
/// and returns its summary.
///
/// # Errors
/// If a file cannot be written.
pub fn write(
    suite: &Suite,
    results: &[RunResult],
    published: &[Published],
    directory: &Path,
) -> Result<Summary, CompareError> {
    let summary = Summary::of(results, &suite.baseline);
    let json = Results {
        version: env!("CARGO_PKG_VERSION"),
        suite: &suite.name,
        title: &suite.title,
        baseline: &suite.baseline,
        runs: results,
        summary: &summary,
        published,
    };
    let json = serde_json::to_string_pretty(&json).expect("results are plain values");
    std::fs::create_dir_all(directory).map_err(FileError::at("create", directory))?;
    let texts = [
        json,
        csv(results),
        markdown(suite, &summary),
        findings(suite, results, &summary),
        suite_report(suite, results, published, &summary),
    ];
    for (name, text) in FILES.iter().zip(texts) {
        epiphyte_io::write(&directory.join(name), text.as_bytes())?;
    }
    peft::write(results, &directory.join(PEFT))?;
    Ok(summary)
}

/// Takes the results of the shards of a comparison into the runs of `output`.
///
/// # Errors
/// If a directory has no results, two have different ones of the same run, or runs of one task read
/// different data or bases.
pub fn merge_shards(shards: &[PathBuf], output: &Path) -> Result<(), CompareError> {
    // What was read, by model and task; trials may be scored on other data.
    let mut inputs: BTreeMap<(String, String, bool), (PathBuf, Option<Value>)> = BTreeMap::new();
    for shard in shards {
        let mut found = Vec::new();
        collect(&shard.join(RUNS), &mut found)?;
        if found.is_empty() {
            return Err(CompareError::Empty {
                path: shard.clone(),
                what: "results of a comparison",
                give: "the output directories of its shards",
            });
        }
        for (path, result) in found {
            let directory = output.join(RUNS).join(path_of(&result));
            let own = result.settings.get(INPUTS).cloned();
            let of_task = (result.model.clone(), result.task.clone(), result.trial);
            let (one, first) = inputs
                .entry(of_task)
                .or_insert_with(|| (path.clone(), own.clone()));
            if *first != own {
                return Err(CompareError::OtherInputs {
                    one: one.clone(),
                    other: path,
                });
            }
            match RunResult::read(&directory)? {
                // Figures of time differ, scores do not.
                Some(other) if other.metrics != result.metrics => {
                    return Err(CompareError::Conflict {
                        one: path,
                        other: directory.join(RESULT_FILE),
                    });
                }
                Some(_) => {}
                None => result.write(&directory)?,
            }
        }
    }
    Ok(())
}

/// All results below a directory.
fn collect(directory: &Path, found: &mut Vec<(PathBuf, RunResult)>) -> Result<(), CompareError> {
    if !directory.is_dir() {
        return Ok(());
    }
    if let Some(result) = RunResult::read(directory)? {
        found.push((directory.join(RESULT_FILE), result));
    }
    let entries = std::fs::read_dir(directory).map_err(FileError::at("read", directory))?;
    for entry in entries {
        let path = entry.map_err(FileError::at("read", directory))?.path();
        if path.is_dir() {
            collect(&path, found)?;
        }
    }
    Ok(())
}

/// One line a run.
fn csv(results: &[RunResult]) -> String {
    let mut names: BTreeMap<&str, ()> = BTreeMap::new();
    names.extend(
        results
            .iter()
            .flat_map(|it| it.metrics.iter())
            .map(|(name, _)| (name, ())),
    );
    let mut header = vec![
        "model",
        "task",
        "name",
        "method",
        "point",
        "seed",
        "trial",
        "status",
        "reason",
        "score_name",
        "score",
    ];
    header.extend(names.keys());
    header.extend([
        "trainable_parameters",
        "changed_parameters",
        "measured_changed_parameters",
        "largest_rank",
        "stored_parameters",
        "head_parameters",
        "base_parameters",
        "stored_bytes",
        "peak_bytes",
        "gradient_layers",
        "layers",
        "seconds",
        "tokens_per_second",
        "slowdown",
        "own_task_before",
        "own_task_after",
    ]);
    let mut text = header.join(",") + "\n";
    for result in results {
        let mut cells = vec![
            result.model.clone(),
            result.task.clone(),
            result.name.clone(),
            result.method.clone(),
            result.point.clone(),
            result.seed.to_string(),
            result.trial.to_string(),
            status(result).to_owned(),
            result.reason.clone().unwrap_or_default(),
            result.score_name.clone(),
            optional(result.score),
        ];
        cells.extend(names.keys().map(|name| optional(result.metrics.get(name))));
        let declared = result.declared.as_ref();
        let merged = result
            .change
            .as_ref()
            .and_then(|change| change.merged.as_ref());
        let cost = result.cost.as_ref();
        cells.extend([
            optional(declared.map(|it| it.trainable_parameters)),
            optional(declared.map(|it| it.changed_parameters)),
            optional(merged.map(|it| it.changed_parameters)),
            optional(merged.and_then(|it| it.largest_rank())),
            optional(declared.map(|it| it.stored_parameters)),
            optional(declared.map(|it| it.head_parameters)),
            optional(declared.map(|it| it.base_parameters)),
            optional(cost.map(|it| it.stored_bytes)),
            optional(result.peak_bytes()),
            optional(cost.map(|it| it.gradient_layers)),
            optional(cost.map(|it| it.layers)),
            optional(cost.map(|it| it.seconds)),
            optional(cost.and_then(|it| it.tokens_per_second)),
            optional(cost.and_then(|it| Some(it.inference?.slowdown()))),
            optional(cost.and_then(|it| Some(it.forgetting.as_ref()?.before))),
            optional(cost.and_then(|it| it.forgetting.as_ref()?.after)),
        ]);
        let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
        text += &(cells.join(",") + "\n");
    }
    text
}

fn optional(value: Option<impl ToString>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// A cell, in quotes where it must be.
fn quoted(cell: &str) -> String {
    match cell.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", cell.replace('"', "\"\"")),
        false => cell.to_owned(),
    }
}

fn status(result: &RunResult) -> &'static str {
    match result.status {
        crate::Status::Finished => "finished",
        crate::Status::NotApplicable => "not_applicable",
        crate::Status::BeyondBudget => "beyond_budget",
        crate::Status::Failed => "failed",
    }
}

/// The tables of the summary.
fn markdown(suite: &Suite, summary: &Summary) -> String {
    let mut text = format!("# {}\n\n{}\n", suite.title, suite.about.trim());
    for place in summary.places() {
        let rows = summary.of_place(place);
        let score = &rows[0].score_name;
        let _ = write!(
            text,
            "\n## {} on {}\n\n| method | {score} | difference from {} | p (Holm) | trainable | % of base | changed | \
             rank | stored bytes | peak bytes | seconds |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
            place.1, place.0, suite.baseline
        );
        rows.iter().for_each(|row| text += &line(row));
    }
    if !summary.absent.is_empty() {
        text +=
            "\n## Without a score\n\n| model | task | method | why |\n| --- | --- | --- | --- |\n";
        for it in &summary.absent {
            let reason = it.reason.replace('|', "\\|").replace('\n', " ");
            let _ = writeln!(
                text,
                "| {} | {} | {} | {reason} |",
                it.model, it.task, it.name
            );
        }
    }
    text
}

fn line(row: &Row) -> String {
    let interval = row.score.interval.map_or(String::new(), |[low, high]| {
        format!(" ± {:.4}", (high - low) / 2.0)
    });
    let comparison = row.comparison;
    let share = row.declared.trainable_parameters as f64 / row.declared.base_parameters as f64;
    format!(
        "| {} | {:.4}{interval} | {} | {} | {} | {:.3} | {} | {} | {} | {} | {:.1} |\n",
        row.name,
        row.score.mean,
        optional(comparison.map(|it| format!("{:+.4}", it.difference))),
        optional(
            comparison
                .and_then(|it| it.corrected)
                .map(|p| format!("{p:.3}"))
        ),
        row.declared.trainable_parameters,
        100.0 * share,
        row.declared.changed_parameters,
        optional(row.largest_rank),
        row.stored_bytes,
        optional(row.peak_bytes),
        row.seconds,
    )
}
