//! LoRA as AdapterHub's `LoRAConfig` has it: on queries, keys or values, in all layers but some.

use std::collections::{BTreeMap, BTreeSet};

use epiphyte_models::adapter::Role;
use epiphyte_models::{Base, LinearInfo};
use serde_json::{Map, Value, json};

use super::{LoraConfig, LoraInit};
use crate::MethodError;
use crate::framework::targets::{Modules, Targets};
use crate::framework::whole::WholeTensors;

/// The matrices that `attn_matrices` names, with what they do here.
const MATRICES: [(&str, [Role; 2]); 3] = [
    ("q", [Role::Query, Role::CrossQuery]),
    ("k", [Role::Key, Role::CrossKey]),
    ("v", [Role::Value, Role::CrossValue]),
];

/// The name of a linear layer's matrix in `attn_matrices`.
fn matrix(linear: &LinearInfo) -> Option<&'static str> {
    let is_of = |(_, roles): &&(&str, [Role; 2])| roles.contains(&linear.site.role);
    MATRICES.iter().find(is_of).map(|(name, _)| *name)
}

/// The keys with the values that they have where a file does not say them.
fn defaults() -> Map<String, Value> {
    let defaults = json!({
        "architecture": "lora",
        "selfattn_lora": true, "intermediate_lora": false, "output_lora": false,
        "leave_out": [], "r": 8, "alpha": 8, "dropout": 0.0, "attn_matrices": ["q", "v"],
        "composition_mode": "add", "init_weights": "lora", "init_weights_seed": null,
        "use_gating": false, "use_dora": false, "vera_d": null, "vera_b": null, "dtype": null,
    });
    match defaults {
        Value::Object(defaults) => defaults,
        _ => unreachable!("it is written as an object"),
    }
}

/// Keys whose values are settings of ours, or mean nothing to a trained adapter.
const FREE: [&str; 8] = [
    "leave_out",
    "r",
    "alpha",
    "dropout",
    "attn_matrices",
    "init_weights",
    "init_weights_seed",
    "dtype",
];

/// As [`MethodConfig::to_adapterhub`](crate::MethodConfig::to_adapterhub).
pub(super) fn to_adapterhub(
    lora: &LoraConfig,
    base: &Base,
) -> Result<Option<Map<String, Value>>, MethodError> {
    let (targets, words) = lora.anywhere(base)?;
    let keeps_base = matches!(
        lora.init_lora_weights,
        LoraInit::Kaiming | LoraInit::Gaussian | LoraInit::Random
    );
    let is_plain =
        keeps_base && !lora.lora_bias && words.is_none() && lora.whole == WholeTensors::default();
    let Some(&(_, rank, scaling)) = targets.first().filter(|_| is_plain) else {
        return Ok(None);
    };
    let mut layers_of = BTreeMap::<&str, BTreeSet<Option<usize>>>::new();
    for (linear, own_rank, own_scaling) in &targets {
        let Some(matrix) = matrix(linear) else {
            return Ok(None);
        };
        if (*own_rank, *own_scaling) != (rank, scaling) {
            return Ok(None);
        }
        layers_of
            .entry(matrix)
            .or_default()
            .insert(linear.site.layer);
    }
    let layers = layers_of.values().next().cloned().unwrap_or_default();
    // In each of the layers all linear layers of these matrices are adapted, and no others.
    let is_meant = |linear: &&LinearInfo| {
        matrix(linear).is_some_and(|it| layers_of.contains_key(it))
            && layers.contains(&linear.site.layer)
    };
    if base.linears().iter().filter(is_meant).count() != targets.len() {
        return Ok(None);
    }
    let left_out = (0..base.dimensions.layers).filter(|&layer| !layers.contains(&Some(layer)));
    let mut config = defaults();
    config.insert("r".to_owned(), json!(rank));
    config.insert("alpha".to_owned(), json!(scaling * rank as f64));
    config.insert("dropout".to_owned(), json!(lora.lora_dropout));
    config.insert("leave_out".to_owned(), left_out.collect());
    let matrices = layers_of.into_keys().collect::<Vec<_>>();
    config.insert("attn_matrices".to_owned(), json!(matrices));
    Ok(Some(config))
}

/// As [`MethodConfig::of_adapterhub`](crate::MethodConfig::of_adapterhub).
pub(super) fn of_adapterhub(config: &Map<String, Value>, base: &Base) -> Option<LoraConfig> {
    let defaults = defaults();
    if config.get("architecture")? != "lora" || config.keys().any(|key| !defaults.contains_key(key))
    {
        return None;
    }
    let value = |key: &str| config.get(key).unwrap_or(&defaults[key]).clone();
    let is_default =
        |(key, default): (&String, &Value)| FREE.contains(&&**key) || value(key) == *default;
    if !defaults.iter().all(is_default) {
        return None;
    }
    let matrices: Vec<String> = serde_json::from_value(value("attn_matrices")).ok()?;
    let left_out: Vec<usize> = serde_json::from_value(value("leave_out")).ok()?;
    let is_target = |linear: &&LinearInfo| {
        let is_kept = linear
            .site
            .layer
            .is_some_and(|layer| !left_out.contains(&layer));
        is_kept && matrix(linear).is_some_and(|name| matrices.iter().any(|it| it == name))
    };
    let targets = base.linears().iter().filter(is_target);
    let paths: Vec<String> = targets.map(|linear| linear.site.path.clone()).collect();
    let is_complete = matrices
        .iter()
        .all(|matrix| MATRICES.iter().any(|(name, _)| name == matrix));
    (is_complete && !paths.is_empty()).then_some(())?;
    Some(LoraConfig {
        r: value("r").as_u64()? as usize,
        lora_alpha: value("alpha").as_f64()?,
        lora_dropout: value("dropout").as_f64()?,
        targets: Targets::default().resolved(Modules::Endings(paths)),
        ..LoraConfig::default()
    })
}
