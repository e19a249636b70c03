//! Alphas as HF PEFT writes them.

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Value, json};

/// An alpha as HF PEFT writes it: without a point where it is a whole number.
pub(crate) fn alpha<S: serde::Serializer>(alpha: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    written(*alpha).serialize(serializer)
}

/// The same of an alpha that may not be given.
pub(crate) fn optional_alpha<S: serde::Serializer>(
    alpha: &Option<f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    alpha.map(written).serialize(serializer)
}

pub(crate) fn alphas<S: serde::Serializer>(
    alphas: &IndexMap<String, f64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(alphas.iter().map(|(key, alpha)| (key, written(*alpha))))
}

fn written(alpha: f64) -> Value {
    let whole = alpha as i64;
    if whole as f64 == alpha {
        json!(whole)
    } else {
        json!(alpha)
    }
}
