//! How far each tensor of a base moves, layer by layer.
//!
//! BitFit's figure 1 (Ben Zaken et al. 2022, arXiv 2106.10199) shows `1/n · Σ |b − b₀|` of each
//! kind of bias over the layers; here it is of every tensor that a method changes.

use epiphyte_models::Base;
use serde::Serialize;

use super::convert::change;
use crate::{AdapterModule, MethodError};

/// A tensor of every layer, or of none.
#[derive(Clone, Debug, Serialize)]
pub struct TensorChange {
    /// Its name, with `*` for the number of the layer.
    pub name: String,
    /// The mean magnitude of the change, for each layer that has it, with the layer's number; none
    /// of a tensor that is in no layer.
    pub mean_change: Vec<(Option<usize>, f64)>,
}

/// The tensors of the base that an adapter changes, in the order of the base; the task's head is
/// left out.
///
/// # Errors
/// [`MethodError::NotMergeable`].
pub fn tensor_changes(
    module: &AdapterModule,
    base: &Base,
) -> Result<Vec<TensorChange>, MethodError> {
    let mut found: Vec<TensorChange> = Vec::new();
    for name in base.tensors().keys().filter(|name| !base.is_of_head(name)) {
        let Some(values) = change(module, base, name)? else {
            continue;
        };
        let sum: f64 = values.iter().map(|value| f64::from(value.abs())).sum();
        let mean = sum / values.len().max(1) as f64;
        let layer = base.layer_of(name);
        let parts = name.split('.').map(|part| match part.parse::<usize>() {
            Ok(_) if layer.is_some() => "*",
            _ => part,
        });
        let name = parts.collect::<Vec<_>>().join(".");
        match found.iter_mut().find(|it| it.name == name) {
            Some(change) => change.mean_change.push((layer, mean)),
            None => found.push(TensorChange {
                name,
                mean_change: vec![(layer, mean)],
            }),
        }
    }
    for change in &mut found {
        change.mean_change.sort_by_key(|(layer, _)| *layer);
    }
    Ok(found)
}
