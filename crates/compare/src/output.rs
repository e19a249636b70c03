//! The files of a comparison: `results.json`, `results.csv`, `results.md`, `findings.md` and
//! `report.html`, and in `peft/` a file a run as HF PEFT's `method_comparison` has them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use epiphyte_io::FileError;
use epiphyte_train::report::account::MemoryUse;
use serde::Serialize;
use serde_json::Value;

use crate::budget::{Budget, Choice, markdown as within_budget};
use crate::findings::findings;
use crate::inputs::INPUTS;
use crate::markdown::{prose, text as name};
use crate::published::Published;
use crate::report::{rank, suite_report};
use crate::result::{RESULT_FILE, RunResult};
use crate::run::{RUNS, path_of};
use crate::suite::Suite;
use crate::summary::{Row, Summary, names_of_other_scores};
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
    /// The directories whose results were merged.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    merged: &'a [String],
    /// One object a run.
    runs: &'a [RunResult],
    /// Means over seeds, and comparisons with the baseline.
    summary: &'a Summary,
    /// The limits of `--budget`, and what they come to.
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<Budget>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    choices: &'a [Choice],
    /// Results of others.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    published: &'a [Published],
}

/// What a comparison came to, for its files.
#[derive(Clone, Debug)]
pub struct Compared<'a> {
    /// The suite.
    pub suite: &'a Suite,
    /// The result of each run.
    pub results: &'a [RunResult],
    /// What others have published.
    pub published: &'a [Published],
    /// The limits within which a method is chosen.
    pub budget: Option<Budget>,
    /// Means over seeds, and comparisons with the baseline.
    pub summary: Summary,
    /// What the budget comes to for each task on each model.
    pub choices: Vec<Choice>,
    /// The directories whose results were merged.
    pub merged: Vec<String>,
}

impl<'a> Compared<'a> {
    /// Sums up results, which are those of `directory`.
    pub fn of(
        suite: &'a Suite,
        results: &'a [RunResult],
        published: &'a [Published],
        budget: Option<Budget>,
        directory: &Path,
    ) -> Self {
        let summary = Summary::of(results, &suite.baseline);
        Self {
            suite,
            results,
            published,
            budget,
            choices: budget.map_or(Vec::new(), |budget| budget.choose(&summary)),
            merged: merged_into(directory),
            summary,
        }
    }

    /// Writes the files of a comparison into `directory`.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), CompareError> {
        let json = Results {
            version: env!("CARGO_PKG_VERSION"),
            suite: &self.suite.name,
            title: &self.suite.title,
            baseline: &self.suite.baseline,
            merged: &self.merged,
            runs: self.results,
            summary: &self.summary,
            budget: self.budget,
            choices: &self.choices,
            published: self.published,
        };
        let json = serde_json::to_string_pretty(&json).expect("results are plain values");
        std::fs::create_dir_all(directory).map_err(FileError::at("create", directory))?;
        let texts = [
            json,
            csv(self.results),
            page(self),
            findings(self),
            suite_report(self),
        ];
        for (name, text) in FILES.iter().zip(texts) {
            epiphyte_io::write(&directory.join(name), text.as_bytes())?;
        }
        peft::write(self.results, &directory.join(PEFT))
    }
}

/// The file in the directory of runs that lists the directories whose results were merged, one a
/// line. Directories of models do not begin with a dot.
const MERGED: &str = ".merged";

/// The directories that were merged into this one.
fn merged_into(directory: &Path) -> Vec<String> {
    let text = epiphyte_io::read_text(&directory.join(RUNS).join(MERGED)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Takes the results of the shards of a suite into the runs of `output`.
///
/// # Errors
/// If a directory has no results of the suite, two have different ones of the same run, or runs of
/// one task read different data or bases.
pub fn merge_shards(suite: &Suite, shards: &[PathBuf], output: &Path) -> Result<(), CompareError> {
    let is_own = |result: &RunResult| {
        suite.groups.iter().any(|group| {
            [&group.model, &group.task, &group.name] == [&result.model, &result.task, &result.name]
        })
    };
    // What was read, by model and task; trials may be scored on other data.
    let mut inputs: BTreeMap<(String, String, bool), (PathBuf, Option<Value>)> = BTreeMap::new();
    let mut of_shards = Vec::new();
    for shard in shards {
        let mut found = Vec::new();
        collect(&shard.join(RUNS), &mut found)?;
        let Some((_, first)) = found.first() else {
            return Err(CompareError::Empty {
                path: shard.clone(),
                what: "results of a comparison",
                give: "the output directories of its shards",
            });
        };
        let RunResult {
            name, task, model, ..
        } = first;
        let described = format!("results of `{name}` for `{task}` on `{model}`");
        found.retain(|(_, result)| is_own(result));
        if found.is_empty() {
            return Err(CompareError::Foreign {
                path: shard.clone(),
                found: described,
                suite: suite.name.clone(),
            });
        }
        of_shards.extend(found);
    }
    for (path, result) in of_shards {
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
    let mut merged = merged_into(output);
    for shard in shards.iter().map(|shard| shard.display().to_string()) {
        if !merged.contains(&shard) {
            merged.push(shard);
        }
    }
    let text = merged.join("\n") + "\n";
    Ok(epiphyte_io::write(
        &output.join(RUNS).join(MERGED),
        text.as_bytes(),
    )?)
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
        "base_bytes",
        "adapter_bytes",
        "gradient_bytes",
        "optimizer_bytes",
        "activation_bytes",
        "other_bytes",
        "peak_bytes",
        "gradient_layers",
        "layers",
        "seconds",
        "tokens_per_second",
        "slowdown",
        "merged_slowdown",
        "own_task_before",
        "own_task_after",
    ]);
    let mut text = header.join(",") + "\n";
    for result in results {
        let mut cells = vec![
            plain(&result.model),
            plain(&result.task),
            plain(&result.name),
            plain(&result.method),
            plain(&result.point),
            result.seed.to_string(),
            result.trial.to_string(),
            status(result).to_owned(),
            plain(result.reason.as_deref().unwrap_or_default()),
            plain(&result.score_name),
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
            optional(
                merged
                    .and_then(|it| it.largest_rank())
                    .map(|it| rank(it, ">=64")),
            ),
            optional(declared.map(|it| it.stored_parameters)),
            optional(declared.map(|it| it.head_parameters)),
            optional(declared.map(|it| it.base_parameters)),
            optional(cost.map(|it| it.stored_bytes)),
        ]);
        cells.extend(parts(cost.and_then(|it| it.memory)));
        cells.extend([
            optional(cost.map(|it| it.gradient_layers)),
            optional(cost.map(|it| it.layers)),
            optional(cost.map(|it| it.seconds)),
            optional(cost.and_then(|it| it.tokens_per_second)),
            optional(cost.and_then(|it| Some(it.inference?.slowdown()))),
            optional(cost.and_then(|it| it.inference?.merged_slowdown())),
            optional(cost.and_then(|it| Some(it.forgetting.as_ref()?.before))),
            optional(cost.and_then(|it| it.forgetting.as_ref()?.after)),
        ]);
        let cells: Vec<String> = cells.iter().map(|cell| quoted(cell)).collect();
        text += &(cells.join(",") + "\n");
    }
    text
}

/// The bytes of each part of memory; empty cells where they were not measured.
fn parts(memory: Option<MemoryUse>) -> [String; 7] {
    match memory {
        Some(memory) => memory.parts().map(|bytes| bytes.to_string()),
        None => std::array::from_fn(|_| String::new()),
    }
}

fn optional(value: Option<impl ToString>) -> String {
    value.map_or(String::new(), |value| value.to_string())
}

/// A text that no spreadsheet takes for a formula: one that begins like one gets an apostrophe
/// (OWASP, CSV injection).
fn plain(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!("'{text}"),
        false => text.to_owned(),
    }
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

/// The tables of the summary, in Markdown.
fn page(compared: &Compared<'_>) -> String {
    let (suite, summary) = (compared.suite, &compared.summary);
    let mut text = format!("# {}\n\n{}\n", name(&suite.title), prose(&suite.about));
    for place in summary.places() {
        let rows = summary.of_place(place);
        let score = &rows[0].score_name;
        let baseline = name(&suite.baseline);
        let _ = write!(
            text,
            "\n## {} on {}\n\n| method | {score} | difference from {baseline} | p (Holm) | trainable | % of base | \
             changed | rank | stored bytes | peak bytes | seconds | settings | tried |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |\n",
            name(place.1),
            name(place.0)
        );
        rows.iter().for_each(|row| text += &line(row));
        other_scores(&rows, &mut text);
        memory(&rows, &mut text);
    }
    if let Some(budget) = &compared.budget {
        text += &within_budget(budget, &compared.choices);
    }
    if !summary.absent.is_empty() {
        text +=
            "\n## Without a score\n\n| model | task | method | why |\n| --- | --- | --- | --- |\n";
        for it in &summary.absent {
            let cells = [&it.model, &it.task, &it.name, &it.reason].map(|cell| name(cell));
            let _ = writeln!(text, "| {} |", cells.join(" | "));
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
        "| {} | {:.4}{interval} | {} | {} | {} | {:.3} | {} | {} | {} | {} | {:.1} | {} | {} |\n",
        name(&row.name),
        row.score.mean,
        optional(comparison.map(|it| it.signed())),
        optional(comparison.and_then(|it| it.shown())),
        row.declared.trainable_parameters,
        100.0 * share,
        row.declared.changed_parameters,
        optional(row.largest_rank.map(|it| rank(it, "64 or more"))),
        row.stored_bytes,
        optional(row.peak_bytes),
        row.seconds,
        name(&row.point),
        row.tried,
    )
}

/// The means over seeds of the scores that do not count, if there are any.
fn other_scores(rows: &[&Row], text: &mut String) {
    let names = names_of_other_scores(rows);
    if names.is_empty() {
        return;
    }
    let columns: Vec<&str> = names.iter().copied().collect();
    let _ = writeln!(
        text,
        "\nMeans of the other scores over seeds:\n\n| method | {} |\n| --- |{}",
        columns.join(" | "),
        " ---: |".repeat(columns.len())
    );
    for row in rows {
        let scores = names.iter().map(|name| row.other_scores.get(name));
        let scores = scores.map(|score| optional(score.map(|score| format!("{score:.4}"))));
        let scores: Vec<String> = scores.collect();
        let _ = writeln!(text, "| {} | {} |", name(&row.name), scores.join(" | "));
    }
}

/// The bytes in use at the peak, by what needs them, where they were measured.
fn memory(rows: &[&Row], text: &mut String) {
    if rows.iter().all(|row| row.memory.is_none()) {
        return;
    }
    let _ = writeln!(
        text,
        "\nMemory by part, in bytes at the peak of training:\n\n| method | {} |\n| --- |{}",
        MemoryUse::PARTS.join(" | "),
        " ---: |".repeat(MemoryUse::PARTS.len())
    );
    for row in rows {
        let cells = parts(row.memory);
        let _ = writeln!(text, "| {} | {} |", name(&row.name), cells.join(" | "));
    }
}

#[cfg(test)]
mod tests {
    use super::{plain, quoted};

    #[test]
    fn names_are_no_formulas() {
        let cells = ["=1+1", "+1", "-1", "@sum", "\tx"].map(plain);
        assert!(cells.iter().all(|cell| cell.starts_with('\'')), "{cells:?}");
        assert_eq!(plain("lora = 2"), "lora = 2");
        assert_eq!(quoted(&plain("=A(\"b\",c)")), "\"'=A(\"\"b\"\",c)\"");
    }
}
