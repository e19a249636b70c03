//! The report: one HTML file with charts, each with its table, and nothing from elsewhere.

mod chart;
mod page;
mod taxonomy;

use std::fmt::Write as _;
use std::path::PathBuf;

use epiphyte_methods::{Kind, by_name};
use epiphyte_train::report::account::MemoryUse;
use epiphyte_train::report::journal::{self, Record, StepRecord};
use epiphyte_train::scoring::inference::Pass;

use self::chart::{Axis, Curve, Dot, curves, scatter};
pub(crate) use self::page::bytes;
pub(crate) use self::page::rank;
use self::page::{Cell, Section, Table, count, escape, page, percent, prose, short};
pub(crate) use self::taxonomy::{Judgment, claims_of, judge, peak_of_full};
use crate::budget::{Budget, Choice};
use crate::output::Compared;
use crate::published::Published;
use crate::result::{RunResult, Status};
use crate::statistics::UNLIKELY;
use crate::suite::Suite;
use crate::summary::{Row, Summary, names_of_other_scores, signed};
use crate::{CompareError, summary, tuning};

/// Curves that have a color; more could not be told apart.
const COLORED: usize = 14;

/// All points of a chart of at most this many have their names, where there is room.
const FEW: usize = 24;

const KINDS: [Kind; 7] = [
    Kind::Adapters,
    Kind::SoftPrompts,
    Kind::Selective,
    Kind::Reparametrized,
    Kind::Hybrid,
    Kind::SideNetworks,
    Kind::Other,
];

/// The number of a kind's color and shape.
fn style(kind: Kind) -> usize {
    KINDS.iter().position(|other| *other == kind).unwrap_or(0)
}

/// The report of a suite.
pub(crate) fn suite_report(compared: &Compared<'_>) -> String {
    let &Compared {
        suite,
        results,
        published,
        ref summary,
        ..
    } = compared;
    let methods = {
        let mut names: Vec<&str> = summary.rows.iter().map(|row| &row.name[..]).collect();
        names.sort_unstable();
        names.dedup();
        names.len()
    };
    let places = summary.places();
    let runs = results
        .iter()
        .filter(|it| it.status == Status::Finished)
        .count();
    let lead = format!(
        "<p>{}</p>\n<p class=\"quiet\">Suite <code>{}</code>: {methods} methods, {} combinations of model and task, \
         seeds: {}, {runs} finished runs. Baseline: {}.</p>\n",
        prose(suite.about.trim()),
        escape(&suite.name),
        places.len(),
        suite.seeds.len(),
        escape(&suite.baseline)
    );
    let mut sections = Vec::new();
    if !summary.overall.is_empty() {
        sections.push(Section::new("Over all tasks", overall(suite, summary)));
    }
    for &place in &places {
        let title = format!("{} on {}", place.1, place.0);
        sections.push(Section::new(
            title,
            of_place(suite, results, summary, place),
        ));
    }
    if let Some(budget) = &compared.budget {
        let body = within_budget(budget, &compared.choices);
        sections.push(Section::new("Within the budget", body));
    }
    if !places.is_empty() {
        sections.push(Section::new("Claims and measurements", claims(summary)));
        sections.push(Section::new("Parameters", parameters(summary)));
        sections.push(Section::new("Memory by part", memory(summary)));
        sections.push(Section::new("Inference", inference(summary)));
    }
    if summary.rows.iter().any(|row| row.forgetting.is_some()) {
        sections.push(Section::new("Forgetting", forgetting(summary)));
    }
    if places
        .iter()
        .map(|place| place.0)
        .any(|model| model != places[0].0)
    {
        sections.push(Section::new("Size of the base", sizes(summary)));
    }
    if !published.is_empty() {
        let title = "Published results of HF PEFT";
        sections.push(Section::new(title, of_others(published, summary)));
    }
    if !summary.absent.is_empty() {
        sections.push(Section::new("Without a score", absent(summary)));
    }
    sections.push(Section::new("How this was made", made(compared)));
    page(&suite.title, &lead, &sections)
}

fn overall(suite: &Suite, summary: &Summary) -> String {
    let mut html = format!(
        "<p>The mean over tasks of the mean over seeds, for methods that finished every task. The difference from {} \
         is over all pairs of task and seed, with Wilcoxon's signed-rank test, corrected after Holm.</p>\n",
        escape(&suite.baseline)
    );
    let mut table = Table::new(
        "Scores over all tasks",
        &[
            ("method", false),
            ("model", false),
            ("mean score", true),
            ("difference", true),
            ("p", true),
            ("p, corrected", true),
        ],
    );
    for row in &summary.overall {
        let comparison = row.comparison;
        table.row([
            Cell::from(row.name.clone()),
            row.model.clone().into(),
            format!("{:.4}", row.score).into(),
            comparison.map_or(String::new(), |it| it.signed()).into(),
            probability(comparison.and_then(|it| it.probability), false),
            probability(comparison.and_then(|it| it.corrected), true),
        ]);
    }
    html += &table.html();
    html
}

/// A probability, marked if it is small and decides.
fn probability(value: Option<f64>, decides: bool) -> Cell {
    match value {
        None => "".into(),
        Some(value) if decides && value < UNLIKELY => {
            Cell::of_class(format!("{} *", summary::probability(value)), "differs")
        }
        Some(value) => summary::probability(value).into(),
    }
}

fn of_place(
    suite: &Suite,
    results: &[RunResult],
    summary: &Summary,
    place: (&str, &str),
) -> String {
    let rows = summary.of_place(place);
    let first = rows[0];
    let (score, smaller) = (&first.score_name, !first.greater_is_better());
    let dots = |x: &dyn Fn(&Row) -> Option<f64>| -> Vec<Dot> {
        let dots = rows.iter().filter_map(|row| {
            Some(Dot {
                name: row.name.clone(),
                x: x(row)?,
                y: row.score.mean,
                style: style(row.kind),
                is_marked: rows.len() <= FEW || row.name == suite.baseline,
            })
        });
        dots.collect()
    };
    let styles: Vec<(usize, &str)> = KINDS
        .iter()
        .map(|kind| (style(*kind), kind.name()))
        .collect();
    let place_name = format!("{} on {}", place.1, place.0);
    let mut html = "<div class=\"charts\">\n".to_owned();
    let y = Axis::linear(format!(
        "{score} ({} is better)",
        if smaller { "less" } else { "more" }
    ));
    let mut add = |what: &str, unit: &str, x: &dyn Fn(&Row) -> Option<f64>| {
        let dots = dots(x);
        if !dots.is_empty() {
            let x = Axis::logarithmic(format!("{what}{unit}"));
            let caption = format!("{score} against {what}, {place_name}");
            html += &scatter(&caption, [&x, &y], &dots, &styles, smaller);
        }
    };
    let value = |number: usize| Some(number as f64);
    add("trainable parameters", ", the head not counted", &|row| {
        value(row.declared.trainable_parameters)
    });
    add("peak memory of training", " (bytes)", &|row| {
        row.peak_bytes.map(|it| it as f64)
    });
    add("seconds of a run", "", &|row| Some(row.seconds));
    let (losses, scores) = learning(results, &rows);
    let step = Axis::linear("optimizer step");
    let caption = format!("Training loss, first seed, {place_name}");
    html += &curves(
        &caption,
        [&step, &Axis::logarithmic("training loss")],
        &losses,
    );
    if scores.iter().any(|curve| curve.points.len() > 1) {
        let caption = format!("{score} during training, first seed, {place_name}");
        html += &curves(&caption, [&step, &y], &scores);
    }
    html += "</div>\n";
    html += &scores_table(suite, &rows).html();
    html += &other_scores_table(&rows);
    html
}

/// The curves of each method's first run, the best scores in color.
fn learning(results: &[RunResult], rows: &[&Row]) -> (Vec<Curve>, Vec<Curve>) {
    let curves = rows.iter().enumerate().filter_map(|(at, row)| {
        let is_own = |it: &&RunResult| {
            !it.trial
                && it.status == Status::Finished
                && it.model == row.model
                && it.task == row.task
                && it.name == row.name
        };
        let run = results.iter().find(is_own)?;
        let curve = |points: &[(u64, f64)]| Curve {
            name: row.name.clone(),
            points: points
                .iter()
                .map(|&(step, value)| (step as f64, value))
                .collect(),
            style: (at < COLORED).then_some(at),
        };
        Some((curve(&run.losses), curve(&run.scores)))
    });
    curves.unzip()
}

fn scores_table(suite: &Suite, rows: &[&Row]) -> Table {
    let score = &rows[0].score_name;
    let mut table = Table::new(
        format!(
            "{} on {}: mean {score} over seeds with its 95 % interval; difference from {} (more is better) with the paired \
             t-test, corrected after Holm",
            rows[0].task, rows[0].model, suite.baseline
        ),
        &[
            ("method", false),
            ("score", true),
            ("interval", true),
            ("seeds", true),
            ("difference", true),
            ("p, corrected", true),
            ("trainable", true),
            ("peak memory", true),
            ("seconds", true),
            ("tokens/s", true),
            ("settings", false),
            ("tried", true),
        ],
    );
    for row in rows {
        let interval = row.score.interval;
        let interval = interval.map(|[low, high]| format!("{low:.4} to {high:.4}"));
        let comparison = row.comparison;
        let difference = comparison.map(|it| it.signed());
        table.row([
            Cell::from(row.name.clone()),
            format!("{:.4}", row.score.mean).into(),
            interval.unwrap_or_default().into(),
            row.score.count.to_string().into(),
            difference.unwrap_or_default().into(),
            probability(comparison.and_then(|it| it.corrected), true),
            count(row.declared.trainable_parameters).into(),
            row.peak_bytes.map_or(String::new(), bytes).into(),
            format!("{:.1}", row.seconds).into(),
            row.tokens_per_second.map_or(String::new(), short).into(),
            row.point.clone().into(),
            row.tried.to_string().into(),
        ]);
    }
    table
}

/// The means of the scores that do not count; empty if there are none.
fn other_scores_table(rows: &[&Row]) -> String {
    let names = names_of_other_scores(rows);
    if names.is_empty() {
        return String::new();
    }
    let columns = names.iter().map(|&name| (name, true));
    let columns: Vec<(&str, bool)> = [("method", false)].into_iter().chain(columns).collect();
    let caption = format!(
        "{} on {}: means of the other scores over seeds",
        rows[0].task, rows[0].model
    );
    let mut table = Table::new(caption, &columns);
    for row in rows {
        let scores = names.iter().map(|name| row.other_scores.get(name));
        let scores = scores.map(|it| it.map_or(String::new(), |it| format!("{it:.4}")));
        table.row([row.name.clone()].into_iter().chain(scores));
    }
    table.html()
}

fn claims(summary: &Summary) -> String {
    let mut html = "<p>What surveys and papers say of a method, beside what was measured here: ✓ where they agree, ✗ \
                    where they do not. Storage is small below half of the base's bytes. Memory is the peak of a \
                    training step. A method that can be merged costs nothing at inference once it is. On a small base, \
                    overheads that do not grow with it weigh more.</p>\n"
        .to_owned();
    for place in summary.places() {
        html += &taxonomy::table(summary, place).html();
    }
    html
}

fn parameters(summary: &Summary) -> String {
    let mut html = "<p>Trainable: values that gradients move. Changed: values of the deployed model that differ from \
                    the base, or are added to it; measured where the method can be merged. Rank: the largest of any \
                    matrix's change, up to 64. The task's head is not counted.</p>\n"
        .to_owned();
    for place in summary.places() {
        let mut table = Table::new(
            format!("Parameters: {} on {}", place.1, place.0),
            &[
                ("method", false),
                ("trainable", true),
                ("of the base", true),
                ("changed", true),
                ("of the base", true),
                ("changed, measured", true),
                ("rank", true),
                ("stored", true),
                ("adapter file", true),
                ("base", true),
            ],
        );
        for row in summary.of_place(place) {
            let declared = &row.declared;
            let rank = row.largest_rank.map(|it| rank(it, "64 or more"));
            table.row([
                row.name.clone(),
                count(declared.trainable_parameters),
                percent(declared.trainable_parameters, declared.base_parameters),
                count(declared.changed_parameters),
                percent(declared.changed_parameters, declared.base_parameters),
                row.measured_changed.map_or(String::new(), count),
                rank.unwrap_or_default(),
                count(declared.stored_parameters),
                bytes(row.stored_bytes),
                count(declared.base_parameters),
            ]);
        }
        html += &table.html();
    }
    html
}

fn inference(summary: &Summary) -> String {
    let mut html = "<p>Forward passes over one micro-batch, with the base alone, with the adapter and with the adapter \
                    merged in turn; the shortest of at least five counts. Memory is what a pass needs beyond the \
                    weights. Unmerged, full fine-tuning computes with weights in 32 bits, whatever the base's format; \
                    merged, with weights in the base's.</p>\n"
        .to_owned();
    for place in summary.places() {
        let mut table = Table::new(
            format!("Inference: {} on {}", place.1, place.0),
            &[
                ("method", false),
                ("tokens", true),
                ("base, ms", true),
                ("with adapter, ms", true),
                ("times", true),
                ("base, memory", true),
                ("with adapter, memory", true),
                ("merged, ms", true),
                ("times", true),
            ],
        );
        for row in summary.of_place(place) {
            let Some(it) = row.inference else {
                continue;
            };
            let memory = |pass: Pass| pass.bytes.map_or(String::new(), bytes);
            table.row([
                row.name.clone(),
                count(it.tokens),
                format!("{:.2}", 1e3 * it.base.seconds),
                format!("{:.2}", 1e3 * it.adapter.seconds),
                format!("{:.2}", it.slowdown()),
                memory(it.base),
                memory(it.adapter),
                match (it.merged, row.measured_changed) {
                    (Some(merged), _) => format!("{:.2}", 1e3 * merged.seconds),
                    (None, Some(_)) => "not measured".to_owned(),
                    (None, None) => "cannot be".to_owned(),
                },
                (it.merged_slowdown()).map_or(String::new(), |times| format!("{times:.2}")),
            ]);
        }
        html += &table.html();
    }
    html
}

/// Scores of the base's own task, before and after.
fn forgetting(summary: &Summary) -> String {
    let mut html = "<p>The score of the task whose head the base has, such as language modeling, on the suite's \
                    <code>forgetting_data</code>: without the adapter, and with it. The head that was trained for the \
                    suite's task takes no part.</p>\n"
        .to_owned();
    for place in summary.places() {
        let rows = summary.of_place(place).into_iter();
        let rows: Vec<_> = rows
            .filter_map(|row| Some((row, row.forgetting.as_ref()?)))
            .collect();
        let Some((_, first)) = rows.first() else {
            continue;
        };
        let mut table = Table::new(
            format!(
                "{} of {} before and after: {} on {}",
                first.score, first.task, place.1, place.0
            ),
            &[
                ("method", false),
                ("before", true),
                ("after", true),
                ("difference", true),
            ],
        );
        for (row, it) in rows {
            table.row([
                row.name.clone(),
                format!("{:.4}", it.before),
                it.after
                    .map_or("cannot act".to_owned(), |after| format!("{after:.4}")),
                it.after
                    .map_or(String::new(), |after| signed(after - it.before)),
            ]);
        }
        html += &table.html();
    }
    html
}

/// Scores against the size of the base, a curve for each method.
fn sizes(summary: &Summary) -> String {
    let mut tasks: Vec<&str> = summary.rows.iter().map(|row| &row.task[..]).collect();
    tasks.sort_unstable();
    tasks.dedup();
    let mut html = String::new();
    for task in tasks {
        let of_task: Vec<&Row> = summary.rows.iter().filter(|row| row.task == task).collect();
        let mut names: Vec<&str> = of_task.iter().map(|row| &row.name[..]).collect();
        names.sort_unstable();
        names.dedup();
        let curve = |(at, name): (usize, &&str)| {
            let own = of_task.iter().filter(|row| row.name == **name);
            let points = own.map(|row| (row.declared.base_parameters as f64, row.score.mean));
            let mut points: Vec<(f64, f64)> = points.collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            Curve {
                name: (*name).to_owned(),
                points,
                style: (at < COLORED).then_some(at),
            }
        };
        let lines: Vec<Curve> = names.iter().enumerate().map(curve).collect();
        let axes = [
            &Axis::logarithmic("parameters of the base"),
            &Axis::linear(of_task[0].score_name.clone()),
        ];
        html += &curves(
            &format!("Score against the size of the base, {task}"),
            axes,
            &lines,
        );
    }
    html
}

/// What others have published, with what the same methods came to here.
fn of_others(published: &[Published], summary: &Summary) -> String {
    let mut html = "<p>Runs that the authors of HF PEFT made and published, with their bases and data, and next to each \
                    what the same method came to in this suite. Bases, data and machines differ, so the order of \
                    methods may be compared, figures may not.</p>\n<div class=\"charts\">\n"
        .to_owned();
    let kind = |it: &Published| {
        let method = it.method.and_then(|method| by_name(method).ok());
        method.map_or(Kind::Other, |method| (method.kind)())
    };
    let styles: Vec<(usize, &str)> = KINDS
        .iter()
        .map(|kind| (style(*kind), kind.name()))
        .collect();
    type Figure = fn(&Published) -> u64;
    let figures: [(&str, &str, Figure); 2] = [
        ("trainable parameters", "", |it| it.trainable_parameters),
        ("peak memory of training", " (bytes)", |it| it.peak_bytes),
    ];
    for (what, unit, figure) in figures {
        let dots = published.iter().map(|it| Dot {
            name: it.experiment.clone(),
            x: figure(it).max(1) as f64,
            y: it.score,
            style: style(kind(it)),
            is_marked: published.len() <= FEW,
        });
        let axes = [
            &Axis::logarithmic(format!("{what}{unit}")),
            &Axis::linear("test accuracy (more is better)"),
        ];
        let caption = format!("Test accuracy against {what}, published by HF PEFT");
        html += &scatter(&caption, axes, &dots.collect::<Vec<_>>(), &styles, false);
    }
    html += "</div>\n";
    let mut table = Table::new(
        "Published by HF PEFT, and the same methods here",
        &[
            ("experiment", false),
            ("method", false),
            ("base", false),
            ("test accuracy", true),
            ("forgetting", true),
            ("trainable", true),
            ("adapter file", true),
            ("peak memory", true),
            ("seconds", true),
            ("here", false),
        ],
    );
    let mut sorted: Vec<&Published> = published.iter().collect();
    sorted.sort_by(|one, other| other.score.total_cmp(&one.score));
    for it in sorted {
        let own = summary.rows.iter();
        let own = own.filter(|row| it.method == Some(&row.method[..]));
        let own = own.map(|row| {
            let Row {
                name,
                task,
                model,
                score_name,
                ..
            } = row;
            format!(
                "{name}, {task} on {model}: {score_name} {:.4}",
                row.score.mean
            )
        });
        let own: Vec<String> = own.collect();
        table.row([
            Cell::from(it.experiment.clone()),
            it.method.unwrap_or(&it.peft_type).into(),
            it.model.clone().into(),
            format!("{:.4}", it.score).into(),
            it.forgetting.map_or(String::new(), signed).into(),
            count(it.trainable_parameters as usize).into(),
            bytes(it.stored_bytes).into(),
            bytes(it.peak_bytes).into(),
            format!("{:.1}", it.seconds).into(),
            Cell::of_class(own.join("; "), "wrap"),
        ]);
    }
    html + &table.html()
}

fn absent(summary: &Summary) -> String {
    let mut table = Table::new(
        "Methods that cannot act on a model or for a task, are beyond a budget, or failed",
        &[
            ("method", false),
            ("task", false),
            ("model", false),
            ("what", false),
            ("why", false),
        ],
    );
    for it in &summary.absent {
        let status = match it.status {
            Status::Failed => Cell::of_class("failed", "differs"),
            Status::BeyondBudget => "beyond the budget".into(),
            _ => "does not apply".into(),
        };
        table.row([
            Cell::from(it.name.clone()),
            it.task.clone().into(),
            it.model.clone().into(),
            status,
            Cell::of_class(it.reason.clone(), "wrap"),
        ]);
    }
    table.html()
}

/// What the budget comes to: the choices with their reasons.
fn within_budget(budget: &Budget, choices: &[Choice]) -> String {
    let mut table = Table::new(
        "The best method within the budget, why, and what more would buy",
        &[
            ("task", false),
            ("model", false),
            ("method", false),
            ("score", true),
            ("why", false),
            ("beyond the budget", false),
        ],
    );
    for choice in choices {
        let score = choice.score.map(|score| format!("{score:.4}"));
        table.row([
            Cell::from(choice.task.clone()),
            choice.model.clone().into(),
            choice.name.clone().unwrap_or("none".to_owned()).into(),
            score.unwrap_or_default().into(),
            Cell::of_class(choice.why.join("; "), "wrap"),
            Cell::of_class(choice.beyond.join("; "), "wrap"),
        ]);
    }
    format!("<p>The budget: {budget}.</p>\n{}", table.html())
}

/// Where memory goes, for each task.
fn memory(summary: &Summary) -> String {
    let mut html =
        "<p>The bytes in use at the peak of an optimizer step, of the seed that needed most.</p>\n"
            .to_owned();
    for place in summary.places() {
        let rows = summary.of_place(place).into_iter();
        html += &memory_table(
            format!("Memory by part: {} on {}", place.1, place.0),
            "method",
            rows.map(|row| (&row.name[..], row.memory)),
        );
    }
    html
}

fn made(compared: &Compared<'_>) -> String {
    let runs = match &compared.merged[..] {
        [] => "Runs were made one after another.".to_owned(),
        merged => format!(
            "Results were merged from {}, each of which made its runs one after another. Where that was at the same \
             time on one machine, times are those of a machine that several share.",
            escape(&merged.join(", "))
        ),
    };
    format!(
        "<p>{runs} Memory counts the bytes that the program has in use during optimizer steps, base included. {} Every \
         figure is in <code>results.json</code> and <code>results.csv</code> beside this file.</p>\n\
         <details><summary>The suite</summary>\n<pre class=\"scroll\" tabindex=\"0\">{}</pre></details>\n",
        prose(&tuning::sentence(compared.suite)),
        escape(compared.suite.text.trim())
    )
}

/// The report of training runs by their directories.
///
/// # Errors
/// If a directory has no log, or a file is malformed.
pub fn run_report(directories: &[PathBuf]) -> Result<String, CompareError> {
    let mut runs = Vec::new();
    for directory in directories {
        let result = RunResult::of_directory(directory)?;
        let records = journal::read(&directory.join("log.jsonl"));
        let records = records.map_err(epiphyte_train::TrainError::from)?;
        let steps = records.into_iter().filter_map(|record| match record {
            Record::Step(step) => Some(step),
            Record::Evaluation(_) => None,
        });
        runs.push((result, steps.collect::<Vec<StepRecord>>()));
    }
    let curve = |at: usize, points: Vec<(f64, f64)>| Curve {
        name: runs[at].0.name.clone(),
        points,
        style: (at < COLORED).then_some(at),
    };
    let step = Axis::linear("optimizer step");
    let mut html = "<div class=\"charts\">\n".to_owned();
    type Figure = fn(&StepRecord) -> f64;
    let figures: [(&str, bool, Figure); 4] = [
        ("Training loss", true, |record| record.loss),
        ("Learning rate", false, |record| record.learning_rate),
        ("Gradient norm", true, |record| record.gradient_norm),
        ("Tokens per second", false, |record| {
            record.tokens_per_second
        }),
    ];
    for (name, is_logarithmic, figure) in figures {
        let lines = runs.iter().enumerate().map(|(at, (_, steps))| {
            let points = steps
                .iter()
                .map(|record| (record.step as f64, figure(record)));
            let usable = points.filter(|(_, y)| y.is_finite() && (!is_logarithmic || *y > 0.0));
            curve(at, usable.collect())
        });
        let lines: Vec<Curve> = lines.collect();
        let y = Axis {
            title: name.to_lowercase(),
            is_logarithmic,
        };
        html += &curves(name, [&step, &y], &lines);
    }
    let lines = runs.iter().enumerate().map(|(at, (result, _))| {
        let points = result
            .scores
            .iter()
            .map(|&(step, score)| (step as f64, score));
        let mut line = curve(at, points.collect());
        line.name = format!("{}, {}", line.name, result.score_name);
        line
    });
    let lines: Vec<Curve> = lines.collect();
    if lines.iter().any(|line| !line.points.is_empty()) {
        html += &curves(
            "Scores of evaluations",
            [&step, &Axis::linear("score")],
            &lines,
        );
    }
    html += "</div>\n";
    let results: Vec<&RunResult> = runs.iter().map(|(result, _)| result).collect();
    let memory_of_runs = memory_table(
        "Bytes in use at the peak of an optimizer step, by what needs them".to_owned(),
        "run",
        results.iter().map(|it| {
            let memory = it.cost.as_ref().and_then(|cost| cost.memory);
            (&it.name[..], memory)
        }),
    );
    let sections = [
        Section::new("Training", html),
        Section::new("Results", results_table(&results)),
        Section::new("Memory", memory_of_runs),
    ];
    let title = match &results[..] {
        [one] => format!("Training run {}", one.name),
        several => format!("{} training runs", several.len()),
    };
    Ok(page(&title, "", &sections))
}

fn results_table(results: &[&RunResult]) -> String {
    let mut table = Table::new(
        "Scores and costs",
        &[
            ("run", false),
            ("method", false),
            ("scores", false),
            ("trainable", true),
            ("changed", true),
            ("rank", true),
            ("adapter file", true),
            ("gradients through", false),
            ("seconds", true),
            ("tokens/s", true),
        ],
    );
    for result in results {
        let mut scores = String::new();
        for (name, score) in result.metrics.iter() {
            let _ = write!(scores, "{name} {score:.4}  ");
        }
        let declared = result.declared.as_ref();
        let cost = result.cost.as_ref();
        let merged = result
            .change
            .as_ref()
            .and_then(|change| change.merged.as_ref());
        let rank = merged.and_then(|merged| merged.largest_rank());
        table.row([
            result.name.clone(),
            result.method.clone(),
            scores.trim_end().to_owned(),
            declared.map_or(String::new(), |it| count(it.trainable_parameters)),
            declared.map_or(String::new(), |it| count(it.changed_parameters)),
            rank.map_or(String::new(), |it| self::rank(it, "64 or more")),
            cost.map_or(String::new(), |it| bytes(it.stored_bytes)),
            cost.map_or(String::new(), |it| {
                format!("{} of {} layers", it.gradient_layers, it.layers)
            }),
            cost.map_or(String::new(), |it| format!("{:.1}", it.seconds)),
            cost.and_then(|it| it.tokens_per_second)
                .map_or(String::new(), short),
        ]);
    }
    table.html()
}

fn memory_table<'a>(
    caption: String,
    what: &str,
    rows: impl Iterator<Item = (&'a str, Option<MemoryUse>)>,
) -> String {
    let parts = MemoryUse::PARTS.map(|part| (part, true));
    let mut table = Table::new(caption, &[&[(what, false)], &parts[..]].concat());
    for (name, memory) in rows {
        let cells = memory.map_or(vec!["not measured".to_owned()], |it| {
            it.parts().map(bytes).to_vec()
        });
        table.row([name.to_owned()].into_iter().chain(cells));
    }
    table.html()
}
