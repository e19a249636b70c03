//! Cells of a file of predictions.

use epiphyte_data::{OutputColumn, OutputFormat, Value};
use serde_json::{Map, Value as Json};

use super::evaluate::{argmax, softmax};

/// A number in the shortest decimal form of its single precision: 0.1, not 0.10000000149011612.
pub(crate) fn number(value: f32) -> Value {
    Value::Float(rounded(value))
}

/// Each row's numbers, as a list.
pub(crate) fn lists(rows: &[Vec<f32>]) -> Vec<Value> {
    let lists = rows.iter().map(|row| {
        let numbers = row.iter().map(|&value| Json::from(rounded(value)));
        Value::Json(numbers.collect())
    });
    lists.collect()
}

/// A number for each of `names` in each row: one column of objects where the format nests them,
/// else one column for each name, with `prefix` and `_` in front.
pub(crate) fn by_name(
    (prefix, plural): (&str, &str),
    names: &[String],
    rows: &[Vec<f64>],
    format: OutputFormat,
) -> Vec<OutputColumn> {
    if format.nests() {
        let of_each = |row: &Vec<f64>| {
            let named = names.iter().zip(row);
            let named = named.map(|(name, &it)| (name.clone(), rounded(it as f32).into()));
            Value::Json(Json::Object(named.collect::<Map<String, Json>>()))
        };
        return vec![(plural.to_owned(), rows.iter().map(of_each).collect())];
    }
    let columns = names.iter().enumerate().map(|(class, name)| {
        let values = rows.iter().map(|row| number(row[class] as f32));
        (format!("{prefix}_{name}"), values.collect())
    });
    columns.collect()
}

/// The most likely of `names` in each row of logits with its probability, those of all, and where
/// the format nests them the logits.
pub(crate) fn classes(
    logits: &[Vec<f32>],
    names: &[String],
    format: OutputFormat,
) -> Vec<OutputColumn> {
    let probabilities: Vec<Vec<f64>> = logits.iter().map(|row| softmax(row)).collect();
    let best: Vec<usize> = logits.iter().map(|row| argmax(row)).collect();
    let rows = || probabilities.iter().zip(&best);
    let label = best.iter().map(|&class| Value::Text(names[class].clone()));
    let probability = rows().map(|(row, &class)| number(row[class] as f32));
    let mut columns = vec![
        ("label".to_owned(), label.collect()),
        ("probability".to_owned(), probability.collect()),
    ];
    let prefixes = ("probability", "probabilities");
    columns.extend(by_name(prefixes, names, &probabilities, format));
    if format.nests() {
        columns.push(("logits".to_owned(), lists(logits)));
    }
    columns
}

fn rounded(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}
