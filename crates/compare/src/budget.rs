//! What to choose with limits on storage, memory and time.

use std::str::FromStr;

use serde::Serialize;

use crate::summary::{Row, Summary};

/// Limits, such as `1MB,4GB,30min`: bytes of an adapter on disk, bytes in use while it is trained,
/// and the time of a run. `-` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
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
            let problem =
                "is not a budget such as 1MB,4GB,30min: storage, memory, time, - for no limit";
            return Err(format!("`{text}` {problem}"));
        };
        let size = |text| limit(text, &SIZES).map(|size| size.map(|size| size as u64));
        Ok(Self {
            stored_bytes: size(stored)?,
            peak_bytes: size(peak)?,
            seconds: limit(time, &TIMES)?,
        })
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
    /// The methods that score more, with what they would need.
    pub beyond: Vec<String>,
}

impl Budget {
    /// The best method within the budget for each task on each model.
    pub fn choose(&self, summary: &Summary) -> Vec<Choice> {
        let places = summary.places().into_iter();
        let choices = places.map(|place| {
            let rows = summary.of_place(place);
            let chosen = rows.iter().position(|row| self.lacks(row).is_empty());
            let better = &rows[..chosen.unwrap_or(rows.len())];
            Choice {
                model: place.0.to_owned(),
                task: place.1.to_owned(),
                name: chosen.map(|at| rows[at].name.clone()),
                score: chosen.map(|at| rows[at].score.mean),
                beyond: better
                    .iter()
                    .map(|row| format!("{} needs {}", row.name, self.lacks(row).join(", ")))
                    .collect(),
            }
        });
        choices.collect()
    }

    /// What a method needs beyond the budget. What was not measured is not within it.
    fn lacks(&self, row: &Row) -> Vec<String> {
        let mut lacks = Vec::new();
        if self
            .stored_bytes
            .is_some_and(|most| row.stored_bytes > most)
        {
            lacks.push(format!("{} bytes of storage", row.stored_bytes));
        }
        if let Some(most) = self.peak_bytes {
            match row.peak_bytes {
                Some(peak) if peak <= most => {}
                Some(peak) => lacks.push(format!("{peak} bytes of memory")),
                None => lacks.push("memory that was not measured".to_owned()),
            }
        }
        if self.seconds.is_some_and(|most| row.seconds > most) {
            lacks.push(format!("{:.1} s", row.seconds));
        }
        lacks
    }
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
        for wrong in ["1MB", "1,2,3", "1MB,4XB,1h", "-1MB,-,-", "1MB,1MB,1GB"] {
            wrong.parse::<Budget>().unwrap_err();
        }
    }
}
