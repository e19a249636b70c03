//! What `epiphyte train --dry-run` shows.

use std::collections::BTreeMap;

use anyhow::Result;
use epiphyte::methods::ParameterCounts;
use epiphyte::train::{DataSummary, DryRun};
use serde::Serialize;

use crate::global::Global;
use crate::output::{self, Align};
use crate::settings::GivenRun;

/// A run as it is shown: each setting with the place where it is given.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    plan: DryRun,
    /// Flag, or key and file, of each setting that is given, by key.
    places: BTreeMap<&'static str, String>,
}

/// Prints what runs would do.
pub(crate) fn show(plans: Vec<DryRun>, given: &[GivenRun], global: &Global) -> Result<()> {
    let shown = plans.into_iter().zip(given).map(|(mut plan, given)| {
        for setting in &mut plan.settings {
            setting.given = given.places.contains_key(setting.key);
        }
        let places = given.places.clone();
        Shown { plan, places }
    });
    let shown: Vec<Shown> = shown.collect();
    match (global.json, &shown[..]) {
        (true, [shown]) => output::json(shown),
        (true, shown) => output::json(&serde_json::json!({ "runs": shown })),
        (false, shown) => shown.iter().try_for_each(print),
    }
}

fn print(Shown { plan, places }: &Shown) -> Result<()> {
    output::print("settings:")?;
    let settings = plan.settings.iter().map(|setting| {
        let place = places.get(setting.key).map_or("default", String::as_str);
        let name = format!("  {}", setting.name);
        vec![name, setting.text(), place.to_owned()]
    });
    output::table(&settings.collect::<Vec<_>>(), &[])?;
    print_data("training data", &plan.training, &plan.labels)?;
    if let Some(evaluation) = &plan.evaluation {
        print_data("evaluation data", evaluation, &plan.labels)?;
    }
    if let Some(texts) = plan.texts {
        output::pairs(&[("  texts that the model writes", output::count(texts as u64))])?;
    }
    let count = |number: usize| output::count(number as u64);
    let ParameterCounts {
        base_parameters,
        trainable_parameters,
        changed_parameters,
        stored_parameters,
        head_parameters,
    } = plan.account;
    let share = 100.0 * trainable_parameters as f64 / base_parameters.max(1) as f64;
    output::print("run:")?;
    output::pairs(&[
        ("  steps", output::count(plan.steps)),
        ("  steps in an epoch", output::count(plan.steps_per_epoch)),
        ("  base parameters", count(base_parameters)),
        (
            "  trainable parameters",
            format!("{} ({share:.3}% of the base)", count(trainable_parameters)),
        ),
        ("  changed parameters", count(changed_parameters)),
        ("  stored parameters", count(stored_parameters)),
        ("  head parameters", count(head_parameters)),
    ])?;
    output::print("Nothing was written.")
}

fn print_data(name: &str, data: &DataSummary, labels: &[String]) -> Result<()> {
    let count = |number: usize| output::count(number as u64);
    output::print(&format!("{name}, `{}`:", data.path.display()))?;
    output::pairs(&[
        ("  rows", count(data.rows)),
        ("  examples", count(data.examples)),
        ("  tokens", count(data.tokens)),
        ("  truncated examples", count(data.truncated)),
        ("  rows without an example", count(data.dropped)),
        (
            "  tokens in an example",
            format!(
                "{} to {}, median {}",
                data.shortest, data.longest, data.median
            ),
        ),
    ])?;
    let lengths = data.lengths.iter().map(|range| {
        let tokens = format!("    {} to {}", range.from, range.to);
        vec![tokens, count(range.examples)]
    });
    let align = [Align::Left, Align::Right];
    output::table(&lengths.collect::<Vec<_>>(), &align)?;
    if data.classes.is_empty() {
        return Ok(());
    }
    output::print("  examples of each class:")?;
    let classes = labels.iter().zip(&data.classes);
    let classes = classes.map(|(label, &examples)| vec![format!("    {label}"), count(examples)]);
    output::table(&classes.collect::<Vec<_>>(), &align)
}
