//! AdapterHub's configuration of bottlenecks (`BnConfig` of `adapters` 1.3.0): which `config` says
//! what settings of ours mean, and back.

use epiphyte_models::Base;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::parts::bottleneck::{BottleneckConfig, InitWeights, Variant};
use crate::parts::invertible::InvertibleConfig;
use crate::parts::phm::PhmConfig;

/// The keys of a `config`, with the values that it has where a file does not say them. The first
/// two have none in AdapterHub: files always say them.
fn defaults() -> Map<String, Value> {
    let defaults = json!({
        "mh_adapter": null, "output_adapter": null,
        "cross_adapter": false,
        "original_ln_before": false, "original_ln_after": true,
        "ln_before": false, "ln_after": false,
        "residual_before_ln": true, "adapter_residual_before_ln": false,
        "is_parallel": false, "scaling": 1.0, "use_gating": false,
        "inv_adapter": null, "inv_adapter_reduction_factor": null,
        "phm_layer": false, "phm_dim": 4, "phm_rank": 1, "phm_bias": true,
        "shared_phm_rule": true, "factorized_phm_rule": false,
        "factorized_phm_W": true, "shared_W_phm": false, "learn_phm": true,
        "phm_c_init": "normal", "phm_init_range": 1e-4,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "reduction_factor": 16, "non_linearity": "relu", "leave_out": [],
        "dropout": 0.0, "stochastic_depth": 0.0,
        "init_weights": "bert", "init_weights_seed": null,
    });
    match defaults {
        Value::Object(defaults) => defaults,
        _ => unreachable!("it is written as an object"),
    }
}

/// Keys whose values are settings of ours, or have a meaning at the start and in training only.
const FREE: [&str; 13] = [
    "reduction_factor",
    "non_linearity",
    "leave_out",
    "dropout",
    "stochastic_depth",
    "init_weights",
    "init_weights_seed",
    "inv_adapter_reduction_factor",
    "phm_dim",
    "phm_rank",
    "phm_c_init",
    "phm_init_range",
    "hypercomplex_nonlinearity",
];

/// The value of a key of a `config`, or what it is if the file does not say it.
pub(crate) fn value(config: &Map<String, Value>, key: &str) -> Value {
    let said = config.get(key).cloned();
    said.or_else(|| defaults().remove(key)).unwrap_or_default()
}

/// The `config` of these bottlenecks in a model of this hidden size, which has the values of `own`
/// in place of defaults.
///
/// # Errors
/// As [`BottleneckConfig::dim`].
pub(crate) fn of_bottlenecks(
    settings: &BottleneckConfig,
    variant: &Variant,
    base: &Base,
    own: Value,
) -> Result<Map<String, Value>, MethodError> {
    let width = base.dimensions.hidden_size;
    let dim = settings.dim(variant, width)?;
    // The library rounds `width / reduction_factor` down.
    let factor = match width % dim {
        0 => (width / dim) as f64,
        _ => width as f64 / (dim as f64 + 0.5),
    };
    let mut config = defaults();
    config.insert("reduction_factor".to_owned(), json!(factor));
    config.insert("non_linearity".to_owned(), json!(settings.non_linearity));
    config.insert("leave_out".to_owned(), json!(settings.leave_out));
    let init = match settings.init_weights {
        InitWeights::Bert => "bert",
        InitWeights::MamAdapter => "mam_adapter",
        InitWeights::Houlsby | InitWeights::Truncated => "houlsby",
    };
    config.insert("init_weights".to_owned(), json!(init));
    if let Value::Object(own) = own {
        config.extend(own);
    }
    Ok(config)
}

/// The settings of the bottlenecks of a `config` which, but for settings, has the values of `own`
/// and defaults; none of another.
pub(crate) fn to_bottlenecks(config: &Map<String, Value>, own: &Value) -> Option<BottleneckConfig> {
    let is_known = |key: &str| defaults().contains_key(key);
    if config
        .keys()
        .any(|key| !is_known(key) && key != "architecture")
    {
        return None;
    }
    let fits = |(key, default): (&String, &Value)| {
        FREE.contains(&&**key) || value(config, key) == *own.get(key).unwrap_or(default)
    };
    if !defaults().iter().all(fits) {
        return None;
    }
    Some(BottleneckConfig {
        bottleneck_dim: None,
        reduction_factor: Some(value(config, "reduction_factor").as_f64()?),
        non_linearity: value(config, "non_linearity").as_str()?.to_lowercase(),
        leave_out: serde_json::from_value(value(config, "leave_out")).ok()?,
        ..BottleneckConfig::default()
    })
}

/// What a `config` says of these Kronecker products, besides `own`.
pub(crate) fn of_phm(phm: &PhmConfig, mut own: Value) -> Value {
    own["phm_layer"] = json!(true);
    own["phm_dim"] = json!(phm.phm_dim);
    own["phm_rank"] = json!(phm.phm_rank.unwrap_or(1));
    own["factorized_phm_W"] = json!(phm.phm_rank.is_some());
    own["shared_phm_rule"] = json!(phm.shared_phm_rule);
    own
}

/// The Kronecker products that a `config` says.
pub(crate) fn to_phm(config: &Map<String, Value>) -> Option<PhmConfig> {
    let number = |key| Some(value(config, key).as_u64()? as usize);
    let is_factored = value(config, "factorized_phm_W").as_bool()?;
    Some(PhmConfig {
        phm_dim: number("phm_dim")?,
        phm_rank: match is_factored {
            true => Some(number("phm_rank")?),
            false => None,
        },
        shared_phm_rule: value(config, "shared_phm_rule").as_bool()?,
        ..PhmConfig::default()
    })
}

/// What a `config` says of this invertible adapter, besides `own`.
pub(crate) fn of_invertible(invertible: &InvertibleConfig, mut own: Value) -> Value {
    if invertible.inv_adapter.is_some() {
        own["inv_adapter"] = json!(invertible.inv_adapter);
        let factor = json!(invertible.inv_adapter_reduction_factor);
        own["inv_adapter_reduction_factor"] = factor;
    }
    own
}

/// The invertible adapter that a `config` says; none if it is of a kind that is not here.
pub(crate) fn to_invertible(config: &Map<String, Value>) -> Option<InvertibleConfig> {
    let inv_adapter = serde_json::from_value(value(config, "inv_adapter")).ok()?;
    let default = InvertibleConfig::default();
    let factor = value(config, "inv_adapter_reduction_factor").as_f64();
    Some(InvertibleConfig {
        inv_adapter,
        inv_adapter_reduction_factor: factor.unwrap_or(default.inv_adapter_reduction_factor),
    })
}
