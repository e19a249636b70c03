//! What a comparison found, in sentences: `findings.md`. Every number in it follows from the runs.

use std::fmt::Write as _;

use epiphyte_train::scoring::metrics::regression;

use crate::budget::markdown as within_budget;
use crate::markdown::{code, prose, text as escaped};
use crate::output::Compared;
use crate::report::{Judgment, bytes, claims_of, judge, peak_of_full};
use crate::result::Status;
use crate::statistics::UNLIKELY;
use crate::suite::Suite;
use crate::summary::{Comparison, Row, Summary, signed};
use crate::tuning;

/// The page of findings.
pub(crate) fn findings(compared: &Compared<'_>) -> String {
    let (suite, summary) = (compared.suite, &compared.summary);
    let finished = compared
        .results
        .iter()
        .filter(|it| it.status == Status::Finished);
    let mut text = format!(
        "# Findings: {}\n\n{}\n\nWritten by `epiphyte compare {}` from {} finished runs; the figures are in \
         `results.json`, charts and tables in `report.html`. The baseline is {}. A difference is called one if its \
         probability by chance, corrected for the number of methods, is below {UNLIKELY}.\n",
        escaped(&suite.title),
        prose(&suite.about),
        suite.name,
        finished.count(),
        code(&suite.baseline)
    );
    for place in summary.places() {
        let rows = summary.of_place(place);
        let (task, model) = (escaped(place.1), escaped(place.0));
        let _ = writeln!(text, "\n## {task} on {model}\n");
        let best = rows[0].score.mean;
        if rows.len() > 1 && rows.iter().all(|row| row.score.mean == best) {
            let _ = writeln!(
                text,
                "- All {} methods have the same {}: {best:.4}.",
                rows.len(),
                rows[0].score_name
            );
        } else {
            scores(&rows, suite, &mut text);
            sizes(&rows, &mut text);
        }
        costs(&rows, &mut text);
        forgetting(&rows, &mut text);
    }
    if !summary.overall.is_empty() {
        text += "\n## Over all tasks\n\n";
        overall(summary, &mut text);
    }
    if let Some(budget) = &compared.budget {
        text += &within_budget(budget, &compared.choices);
    }
    text += "\n## Claims\n\n";
    claims(summary, &mut text);
    text += "\n## What this does not show\n\n";
    limits(compared, &mut text);
    text
}

/// Names as code, separated by commas.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names = names.map(code);
    names.collect::<Vec<String>>().join(", ")
}

fn scores(rows: &[&Row], suite: &Suite, text: &mut String) {
    let best = rows[0];
    let interval = best.score.interval.map_or(String::new(), |[low, high]| {
        format!(" (95 % interval {low:.4} to {high:.4})")
    });
    let _ = writeln!(
        text,
        "- {} has the best {} of {} methods: {:.4}{interval}, with {} trainable parameters.",
        code(&best.name),
        best.score_name,
        rows.len(),
        best.score.mean,
        best.declared.trainable_parameters
    );
    let differs = |sign: f64| {
        let is_so = move |row: &&&Row| row.comparison.is_some_and(|it| is_found(&it, sign));
        listed(rows.iter().filter(is_so).map(|row| &row.name[..]))
    };
    let tested = rows
        .iter()
        .filter_map(|row| row.comparison?.corrected)
        .count();
    if tested == 0 {
        *text += match suite.seeds.len() {
            1 => "- With one seed, no difference can be told from chance.\n",
            _ => {
                "- No difference could be tested: no method differs from the baseline by more in one seed than in \
                 another.\n"
            }
        };
        return;
    }
    for (sign, word) in [(1.0, "better"), (-1.0, "worse")] {
        let names = differs(sign);
        let _ = match names.is_empty() {
            true => writeln!(
                text,
                "- No method is {word} than {} beyond chance.",
                code(&suite.baseline)
            ),
            false => writeln!(
                text,
                "- Methods {word} than {} beyond chance: {names}.",
                code(&suite.baseline)
            ),
        };
    }
}

/// Whether a difference of this sign was found.
fn is_found(comparison: &Comparison, sign: f64) -> bool {
    let is_unlikely = comparison.corrected.is_some_and(|p| p < UNLIKELY);
    is_unlikely && comparison.difference * sign > 0.0
}

/// Scores against the number of trained parameters.
fn sizes(rows: &[&Row], text: &mut String) {
    let sign = if rows[0].greater_is_better() {
        1.0
    } else {
        -1.0
    };
    let trained: Vec<f64> = rows
        .iter()
        .map(|row| row.declared.trainable_parameters as f64)
        .collect();
    let scores: Vec<f64> = rows.iter().map(|row| sign * row.score.mean).collect();
    let correlation = regression(&scores, &trained).ok();
    let correlation = correlation.and_then(|it| it.get("spearman"));
    if let Some(correlation) = correlation.filter(|it| it.is_finite() && rows.len() > 2) {
        let _ = writeln!(
            text,
            "- Spearman's correlation of score and number of trainable parameters, over {} methods: {correlation:+.2}.",
            rows.len()
        );
    }
    if let Some(rank) = rows.iter().position(|row| row.method == "full") {
        let full = rows[rank];
        let _ = writeln!(
            text,
            "- Full fine-tuning is number {} of {}: {:.4}. {} reaches {:.4} with {:.3} % of the parameters trained.",
            rank + 1,
            rows.len(),
            full.score.mean,
            code(&rows[0].name),
            rows[0].score.mean,
            100.0 * rows[0].declared.trainable_parameters as f64
                / rows[0].declared.base_parameters.max(1) as f64
        );
    }
}

fn costs(rows: &[&Row], text: &mut String) {
    let with_peak = rows.iter().filter_map(|row| Some((*row, row.peak_bytes?)));
    let with_peak: Vec<(&Row, u64)> = with_peak.collect();
    let least = with_peak.iter().min_by_key(|it| it.1);
    let most = with_peak.iter().max_by_key(|it| it.1);
    if let Some(((least, low), (most, high))) = least.zip(most) {
        let _ = writeln!(
            text,
            "- Peak memory of training is between {} ({}) and {} ({}).",
            bytes(*low),
            code(&least.name),
            bytes(*high),
            code(&most.name)
        );
    }
    let slow = rows.iter().filter_map(|row| Some((*row, row.slowdown?)));
    let slowest = slow.max_by(|one, other| one.1.total_cmp(&other.1));
    if let Some((row, slowdown)) = slowest {
        let _ = writeln!(
            text,
            "- A forward pass takes longest, {slowdown:.2} times the base's before merging, with {}.",
            code(&row.name)
        );
    }
}

fn forgetting(rows: &[&Row], text: &mut String) {
    let changes = rows.iter().filter_map(|row| {
        let it = row.forgetting.as_ref()?;
        Some((*row, &it.score, it.after? - it.before))
    });
    let changes: Vec<(&Row, &String, f64)> = changes.collect();
    let by_size = |one: &&(&Row, &String, f64), other: &&(&Row, &String, f64)| {
        one.2.abs().total_cmp(&other.2.abs())
    };
    let least = changes.iter().min_by(by_size);
    let most = changes.iter().max_by(by_size);
    if let Some((least, most)) = least.zip(most) {
        let _ = writeln!(
            text,
            "- The {} of the base's own task moves least with {}, by {}, and most with {}, by {}.",
            least.1,
            code(&least.0.name),
            signed(least.2),
            code(&most.0.name),
            signed(most.2)
        );
    }
}

fn overall(summary: &Summary, text: &mut String) {
    let mut models: Vec<&str> = Vec::new();
    for row in &summary.overall {
        if !models.contains(&&row.model[..]) {
            models.push(&row.model);
        }
    }
    for model in models {
        let rows = summary.overall.iter().filter(|row| row.model == model);
        let rows: Vec<_> = rows.collect();
        let order = rows
            .iter()
            .map(|row| format!("{} {:.4}", code(&row.name), row.score));
        let _ = writeln!(
            text,
            "- On {}, mean over {} tasks: {}.",
            escaped(model),
            rows[0].tasks,
            order.collect::<Vec<String>>().join(", ")
        );
        for (sign, word) in [(1.0, "better"), (-1.0, "worse")] {
            let is_so =
                |row: &&&crate::Overall| row.comparison.is_some_and(|it| is_found(&it, sign));
            let names = listed(rows.iter().filter(is_so).map(|row| &row.name[..]));
            if !names.is_empty() {
                let _ = writeln!(
                    text,
                    "- Methods {word} than the baseline over all tasks: {names}."
                );
            }
        }
    }
}

/// Which published claims held here and which did not.
fn claims(summary: &Summary, text: &mut String) {
    let (mut held, mut not_held) = (0, Vec::new());
    let mut without: Vec<&str> = Vec::new();
    for place in summary.places() {
        let rows = summary.of_place(place);
        let full = peak_of_full(&rows);
        for row in &rows {
            let Some(claims) = claims_of(row) else {
                if !without.contains(&&row.method[..]) {
                    without.push(&row.method);
                }
                continue;
            };
            for Judgment {
                cost,
                measured,
                claimed,
                agrees,
            } in judge(row, full)
            {
                match (agrees, claimed) {
                    (Some(true), _) => held += 1,
                    (Some(false), Some(claimed)) => not_held.push(format!(
                        "- {cost} of {} ({} on {}): claimed {claimed} ({}), measured {measured}.",
                        code(&row.name),
                        escaped(place.1),
                        escaped(place.0),
                        claims.source
                    )),
                    _ => {}
                }
            }
        }
    }
    let total = held + not_held.len();
    let _ = writeln!(
        text,
        "{held} of {total} claims that could be checked held: storage below half of the base's bytes, peak memory of \
         training against full fine-tuning where that was run, gradients through the base, no overhead at inference."
    );
    if !not_held.is_empty() {
        let _ = writeln!(text, "\nThese did not hold:\n\n{}", not_held.join("\n"));
    }
    if !without.is_empty() {
        let _ = writeln!(
            text,
            "\nNo claim is known of {}.",
            listed(without.into_iter())
        );
    }
}

fn limits(compared: &Compared<'_>, text: &mut String) {
    let (suite, summary) = (compared.suite, &compared.summary);
    let tuning = tuning::sentence(suite);
    let _ = writeln!(text, "- {tuning}");
    let _ = writeln!(
        text,
        "- Seeds: {}. Intervals over seeds say nothing of other data or bases.",
        suite.seeds.len()
    );
    if !compared.merged.is_empty() {
        let _ = writeln!(
            text,
            "- Results were merged from {}. Where their runs were made at the same time on one machine, times are \
             those of a machine that several share.",
            listed(compared.merged.iter().map(String::as_str))
        );
    }
    let steps = suite.groups.iter().flat_map(|group| &group.points);
    let steps = steps.flat_map(|point| point.runs.values().filter_map(|run| run.max_steps));
    if let Some(most) = steps.max() {
        let _ = writeln!(
            text,
            "- Runs end after at most {most} optimizer steps: methods that need more look worse here."
        );
    }
    let largest = summary.rows.iter().map(|row| row.declared.base_parameters);
    if let Some(largest) = largest.max() {
        let _ = writeln!(text, "- The largest base has {largest} parameters.");
    }
    if !summary.absent.is_empty() {
        let mut names: Vec<&str> = summary.absent.iter().map(|it| &it.name[..]).collect();
        names.sort_unstable();
        names.dedup();
        let _ = writeln!(
            text,
            "- Without a score somewhere, for the reasons in the report: {}.",
            listed(names.into_iter())
        );
    }
}
