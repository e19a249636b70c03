//! What to choose with limits on storage, memory and time.

use std::fmt;
use std::str::FromStr;

use epiphyte_train::RunPlan;
use serde::Serialize;

use crate::markdown::{code, text};
use crate::report::bytes;
use crate::result::Status;
use crate::statistics::UNLIKELY;
use crate::summary::{Row, Summary, probability as shown};

/// Limits, such as `1MB,4GB,30min`: bytes of an adapter on disk, bytes in use while it is trained,
/// and the time of a run. `-` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Budget {
    /// Bytes of an adapter.
    pub stored_bytes: Option<u64>,
    /// Bytes in use during training.
    pub peak_bytes: Option<u64>,
    /// Seconds of a run.
    pub seconds: Option<f64>,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').map(str::trim).collect();
        let [stored, peak, time] = parts[..] else {
            return Err(format!(
                "`{text}` is not a budget: give the limits on storage, memory and time, - where there is none, as in \
                 1MB,4GB,30min; for one limit alone `1MB,-,-`, `-,4GB,-` or `-,-,30min`"
            ));
        };
        let size = |text| limit(text, &SIZES).map(|size| size.map(|size| size as u64));
        Ok(Self {
            stored_bytes: size(stored)?,
            peak_bytes: size(peak)?,
            seconds: limit(time, &TIMES)?,
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = [
            self.stored_bytes
                .map(|it| format!("{} of storage", bytes(it))),
            self.peak_bytes.map(|it| format!("{} of memory", bytes(it))),
            self.seconds.map(|it| format!("{it:.1} s a run")),
        ];
        let limits: Vec<String> = limits.into_iter().flatten().collect();
        match limits.is_empty() {
            true => f.write_str("no limit"),
            false => write!(f, "at most {}", limits.join(", ")),
        }
    }
}

const SIZES: [(&str, f64); 4] = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)];
const TIMES: [(&str, f64); 3] = [("min", 60.0), ("h", 3600.0), ("s", 1.0)];

/// A number with one of these units; none for `-`.
fn limit(text: &str, units: &[(&str, f64)]) -> Result<Option<f64>, String> {
    if text == "-" {
        return Ok(None);
    }
    let read = units.iter().find_map(|(unit, size)| {
        let number = text.strip_suffix(unit)?.trim().parse::<f64>().ok()?;
        Some(number * size)
    });
    match read.filter(|number| *number > 0.0 && number.is_finite()) {
        Some(number) => Ok(Some(number)),
        None => {
            let units: Vec<&str> = units.iter().map(|(unit, _)| *unit).collect();
            Err(format!(
                "`{text}` is not a number with one of {}",
                units.join(", ")
            ))
        }
    }
}

/// What a budget comes to for a task on a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The model's name.
    pub model: String,
    /// The task's name.
    pub task: String,
    /// The best method within the budget; none if there is none.
    pub name: Option<String>,
    /// Its score.
    pub score: Option<f64>,
    /// Why it is chosen: how many were within the budget, what it needs, what comes next.
    pub why: Vec<String>,
    /// The methods that score more, with what they would need, and those that were not run because
    /// they would need too much.
    pub beyond: Vec<String>,
}

impl Choice {
    /// The place and what is chosen there, in Markdown: `RTE on base: lora, 0.7000`.
    fn sentence(&self) -> String {
        let place = text(&format!("{} on {}", self.task, self.model));
        match (&self.name, self.score) {
            (Some(name), Some(score)) => format!("{place}: {}, {score:.4}", code(name)),
            _ => format!("{place}: no method"),
        }
    }
}

/// What a budget comes to, as a section of a page in Markdown.
pub(crate) fn markdown(budget: &Budget, choices: &[Choice]) -> String {
    let mut page = format!("\n## Within the budget\n\nThe budget: {budget}.\n\n");
    for choice in choices {
        page += &format!("- {}\n", choice.sentence());
        for line in choice.why.iter().chain(&choice.beyond) {
            page += &format!("  - {}\n", text(line));
        }
    }
    page
}

/// Plans are true to this share: what may be within the budget is run.
const PLANNED: f64 = 1.2;

impl Budget {
    /// The best method within the budget for each task on each model.
    pub fn choose(&self, summary: &Summary) -> Vec<Choice> {
        let mut places = summary.places();
        for it in &summary.absent {
            let place = (&it.model[..], &it.task[..]);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        let choices = places.into_iter().map(|place| {
            let rows = summary.of_place(place);
            let within = rows.iter().filter(|row| self.lacks(row).is_empty());
            let within: Vec<&Row> = within.copied().collect();
            let chosen = within.first();
            let at = rows.iter().position(|row| Some(row) == chosen);
            let better = &rows[..at.unwrap_or(rows.len())];
            let mut beyond: Vec<String> = better
                .iter()
                .map(|row| format!("better: {} needs {}", row.name, self.lacks(row).join(", ")))
                .collect();
            let not_run = summary.absent.iter().filter(|it| {
                it.status == Status::BeyondBudget && (&it.model[..], &it.task[..]) == place
            });
            beyond.extend(not_run.map(|it| format!("not run: {} {}", it.name, it.reason)));
            Choice {
                model: place.0.to_owned(),
                task: place.1.to_owned(),
                name: chosen.map(|row| row.name.clone()),
                score: chosen.map(|row| row.score.mean),
                why: why(&within),
                beyond,
            }
        });
        choices.collect()
    }

    /// What a method needs beyond the budget.
    fn lacks(&self, row: &Row) -> Vec<String> {
        let needs = Needs {
            stored_bytes: row.stored_bytes,
            peak_bytes: row.peak_bytes,
            seconds: row.seconds,
        };
        self.exceeded(&needs, 1.0)
    }

    /// Why a run of this plan would be beyond the budget, if it would.
    pub(crate) fn excludes(&self, plan: &RunPlan) -> Option<String> {
        let needs = Needs {
            stored_bytes: plan.stored_bytes,
            peak_bytes: plan.memory.map(|memory| memory.peak),
            seconds: plan.seconds,
        };
        let exceeded = self.exceeded(&needs, PLANNED);
        (!exceeded.is_empty()).then(|| format!("is planned to need {}", exceeded.join(", ")))
    }

    /// What is beyond the budget, where figures may be larger than the truth by a factor. What was
    /// not measured is not within it.
    fn exceeded(&self, needs: &Needs, factor: f64) -> Vec<String> {
        let is_beyond = |need: f64, most: f64| need > most * factor;
        let mut exceeded = Vec::new();
        // Storage follows from the settings.
        if self
            .stored_bytes
            .is_some_and(|most| needs.stored_bytes > most)
        {
            exceeded.push(format!("{} of storage", bytes(needs.stored_bytes)));
        }
        if let Some(most) = self.peak_bytes {
            match needs.peak_bytes {
                Some(peak) if !is_beyond(peak as f64, most as f64) => {}
                Some(peak) => exceeded.push(format!("{} of memory", bytes(peak))),
                None => exceeded.push("memory that was not measured".to_owned()),
            }
        }
        if self
            .seconds
            .is_some_and(|most| is_beyond(needs.seconds, most))
        {
            exceeded.push(format!("{:.1} s", needs.seconds));
        }
        exceeded
    }
}

/// What a run takes.
struct Needs {
    stored_bytes: u64,
    peak_bytes: Option<u64>,
    seconds: f64,
}

/// Why the first of these, in the order of their scores, is chosen.
fn why(within: &[&Row]) -> Vec<String> {
    let Some((chosen, others)) = within.split_first() else {
        return Vec::new();
    };
    let needs = |row: &Row| {
        let memory = row
            .peak_bytes
            .map(|peak| format!("{} of memory, ", bytes(peak)));
        format!(
            "{} of storage, {}{:.1} s a run",
            bytes(row.stored_bytes),
            memory.unwrap_or_default(),
            row.seconds
        )
    };
    let mut why = vec![
        format!(
            "the best {} of {} within the budget",
            chosen.score_name,
            within.len()
        ),
        format!("it needs {}", needs(chosen)),
    ];
    let Some(next) = others.first() else {
        return why;
    };
    let mut line = format!("next is {}, {:.4}", next.name, next.score.mean);
    let probability = chosen.probability_of_equality(next);
    if let Some(p) = probability {
        let p = match shown(p) {
            small if small.starts_with('<') => format!("p {small}"),
            other => format!("p = {other}"),
        };
        line += &format!(", {p} (paired t-test over seeds)");
    }
    why.push(line);
    // Without a test, nothing says that a difference is more than chance.
    let as_good = |row: &&&Row| {
        let p = chosen.probability_of_equality(row);
        let is_equal = row.score.mean == chosen.score.mean;
        (is_equal || p.is_some_and(|p| p >= UNLIKELY)) && row.stored_bytes < chosen.stored_bytes
    };
    let smallest = others
        .iter()
        .filter(as_good)
        .min_by_key(|row| row.stored_bytes);
    why.extend(smallest.map(|row| {
        format!(
            "smaller, and no worse beyond chance: {}, {:.4}, {}",
            row.name,
            row.score.mean,
            needs(row)
        )
    }));
    why
}

#[cfg(test)]
mod tests {
    use super::Budget;

    #[test]
    fn budgets_have_units() {
        let budget: Budget = "1MB,4GB,30min".parse().unwrap();
        assert_eq!(
            budget,
            Budget {
                stored_bytes: Some(1_000_000),
                peak_bytes: Some(4_000_000_000),
                seconds: Some(1800.0),
            }
        );
        assert_eq!("-,-,-".parse(), Ok(Budget::default()));
        assert_eq!(
            budget.to_string(),
            "at most 1 MB of storage, 4 GB of memory, 1800.0 s a run"
        );
        let error = "50MB".parse::<Budget>().unwrap_err();
        assert!(error.contains("`1MB,-,-`"), "{error}");
        for wrong in ["1MB", "1,2,3", "1MB,4XB,1h", "-1MB,-,-", "1MB,1MB,1GB"] {
            wrong.parse::<Budget>().unwrap_err();
        }
    }
}
