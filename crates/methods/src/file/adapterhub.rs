//! AdapterHub's files: an adapter of its library `adapters` as one of ours, and one of ours as the
//! library's.
//!
//! Poth et al., "Adapters: A Unified Library for Parameter-Efficient and Modular Transfer
//! Learning", EMNLP 2023, arXiv 2311.11077; files as version 1.3.0 writes them with
//! `use_safetensors`:
//!
//! | | |
//! | --- | --- |
//! | `adapter_config.json` | `config`, what the adapter computes ([`MethodConfig::of_adapterhub`](crate::MethodConfig::of_adapterhub)); `name`; `model_type`, `hidden_size` of the base |
//! | `adapter.safetensors` | bottlenecks: `<site>.adapters.<name>.adapter_{down.0,up}.{weight,bias}`, `<site>.adapters.<name>.scaling`; invertible adapters: `invertible_adapters.<name>.{F,G}.{0,2}.{weight,bias}`; LoRA: `<linear layer>.loras.<name>.lora_{A,B}` |
//!
//! Sites have the library's own names in some families ([`FamilyConfig::adapterhub_site`]). Keys
//! begin with the path of the base in the class that was saved, or without it. A file of before
//! version 1.1.0 means `alpha` = `r` for LoRA, one without a version GELU's tanh form by `gelu`, as
//! the library reads them. Heads are left out: those of the library are other networks.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use epiphyte_io::safetensors_file::{Values, prepare_values};
use epiphyte_io::{PendingFile, read_regular};
use epiphyte_models::families::FamilyConfig;
use epiphyte_models::{Base, Checkpoint, HeadKind, ModelError};
use serde_json::{Map, Value, json};

use super::CONFIG_FILE;
use crate::registry::METHODS;
use crate::{AdapterModule, MethodError};

/// The file with the tensors.
const TENSORS_FILE: &str = "adapter.safetensors";
/// The same as a pickle, which is not read.
const PICKLE: &str = "pytorch_adapter.bin";
/// The version of the library whose files are written.
const VERSION: &str = "adapters.1.3.0";

/// Whether an `adapter_config.json` is AdapterHub's.
pub(super) fn is_written_by(json: &Map<String, Value>) -> bool {
    json.contains_key("config") && json.contains_key("name") && !json.contains_key("peft_type")
}

/// Reads an adapter of AdapterHub's over `base`, whose family is `family`.
///
/// # Errors
/// If a file is missing or malformed; [`MethodError::Malformed`] if the adapter is of another base,
/// if no method here computes its configuration, or if a tensor is missing or unexpected.
pub fn read(
    dir: &Path,
    base: &Base,
    family: &dyn FamilyConfig,
    device: &Device,
) -> Result<AdapterModule, MethodError> {
    let path = dir.join(CONFIG_FILE);
    let malformed = |reason: String| MethodError::Malformed {
        path: path.clone(),
        reason,
    };
    let text = read_regular(&path).map_err(|source| MethodError::File {
        action: "read",
        path: path.clone(),
        source,
    })?;
    let json: Map<String, Value> =
        serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
    check_base(&json, base).map_err(malformed)?;
    let name = json.get("name").and_then(Value::as_str);
    let name = name.ok_or_else(|| malformed("`name` is missing".to_owned()))?;
    let config = config_of(&json).map_err(malformed)?;
    let methods = METHODS.iter();
    let config = methods.filter_map(|method| method.of_adapterhub(&config, base));
    let config = config.into_iter().next().ok_or_else(|| {
        malformed(
            "no method here computes what `config` says: bottlenecks without gates, norms of their \
             own and GLOW, and LoRA on queries, keys or values are read"
                .to_owned(),
        )
    })?;
    let tensors = open_tensors(dir)?;
    let module = AdapterModule::new(config, base, device, 0)?;
    take_tensors(&tensors, name, &module, base, family).map_err(|reason| {
        MethodError::Malformed {
            path: dir.join(TENSORS_FILE),
            reason,
        }
    })?;
    module.parameters().derive(false);
    Ok(module)
}

/// Compares what the file says of its base.
fn check_base(json: &Map<String, Value>, base: &Base) -> Result<(), String> {
    let dimensions = &base.dimensions;
    let own = [
        ("model_type", json!(dimensions.model_type)),
        ("hidden_size", json!(dimensions.hidden_size)),
    ];
    for (key, own) in own {
        match json.get(key) {
            Some(said) if !said.is_null() && *said != own => {
                return Err(format!("`{key}` is {said}, but the base's is {own}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The file's `config`, as the library reads it.
fn config_of(json: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut config = match json.get("config") {
        Some(Value::Object(config)) => config.clone(),
        _ => {
            return Err(
                "`config` is no object: load the adapter with `adapters` and save it again"
                    .to_owned(),
            );
        }
    };
    let version = json.get("version").and_then(Value::as_str);
    if version.is_none() {
        let meant = match config.get("non_linearity").and_then(Value::as_str) {
            Some("gelu") => Some("gelu_new"),
            Some("gelu_orig") => Some("gelu"),
            _ => None,
        };
        if let Some(meant) = meant {
            config.insert("non_linearity".to_owned(), json!(meant));
        }
    }
    let number = version.and_then(|version| version.strip_prefix("adapters."));
    let number = number.map(|number| {
        let parts = number
            .split('.')
            .map(|part| part.parse::<u64>().unwrap_or(0));
        parts.collect::<Vec<u64>>()
    });
    let is_old = number.is_some_and(|number| number < vec![1, 1]);
    if is_old && config.get("architecture").is_some_and(|it| it == "lora") {
        let rank = config.get("r").cloned().unwrap_or(json!(8));
        config.insert("alpha".to_owned(), rank);
    }
    if config.get("architecture").is_some_and(Value::is_null) {
        config.remove("architecture");
    }
    Ok(config)
}

fn open_tensors(dir: &Path) -> Result<Checkpoint, MethodError> {
    let path = dir.join(TENSORS_FILE);
    if !path.exists() && dir.join(PICKLE).exists() {
        return Err(MethodError::Malformed {
            path: dir.join(PICKLE),
            reason: "it is a pickle, which may run code and is not read: load the adapter with \
                     `adapters` and save it with use_safetensors=True"
                .to_owned(),
        });
    }
    Ok(Checkpoint::open_file(&path)?)
}

/// Gives the module's parameters the values that the file has for them.
fn take_tensors(
    tensors: &Checkpoint,
    name: &str,
    module: &AdapterModule,
    base: &Base,
    family: &dyn FamilyConfig,
) -> Result<(), String> {
    let mut left: Vec<&str> = tensors.names().collect();
    for param in module.parameters().stored() {
        let key = hub_key(param.key(), name, base, family);
        let key = key.ok_or_else(|| no_site(base))?;
        let below_base = key.strip_prefix(base.prefix).unwrap_or(&key);
        let is_it = |found: &&str| {
            let before = found.strip_suffix(below_base);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        let at = left.iter().position(is_it);
        let found = left.swap_remove(at.ok_or_else(|| format!("`{key}` is missing"))?);
        let values = tensors.to_f32(found, param.shape());
        let values = values.map_err(|error| error.to_string())?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(format!("`{found}` has a value that is not finite"));
        }
        param.set_values(values);
    }
    match left.first() {
        Some(other) => Err(format!("`{other}` has no place in the adapter")),
        None => Ok(()),
    }
}

fn no_site(base: &Base) -> String {
    let model_type = &base.dimensions.model_type;
    format!("the names of AdapterHub's modules in {model_type} are not known")
}

/// Writes an adapter of ours as AdapterHub's, without its head, to `dir`.
///
/// # Errors
/// [`MethodError::Configuration`] if AdapterHub does not have the method with these settings, or
/// does not have the family; if a file cannot be written.
pub fn write(
    dir: &Path,
    name: &str,
    module: &AdapterModule,
    base: &Base,
    family: &dyn FamilyConfig,
) -> Result<(), MethodError> {
    let method = module.config().definition().name;
    let refused = |reason: String| MethodError::Configuration { method, reason };
    let config = module.config().to_adapterhub(base)?;
    let config = config.ok_or_else(|| {
        refused("AdapterHub does not have the method with these settings".to_owned())
    })?;
    let tensors = module.parameters().stored().map(|param| {
        let key = hub_key(param.key(), name, base, family);
        let key = key.ok_or_else(|| refused(no_site(base)))?;
        let values = param.to_vec();
        let values = Values::F32(Box::new(move || values));
        Ok((key, param.shape().to_vec(), values))
    });
    let tensors = tensors.collect::<Result<Vec<_>, MethodError>>()?;
    let class = family.class_name(HeadKind::Classification { labels: 2 });
    let json = json!({
        "config": config,
        "hidden_size": base.dimensions.hidden_size,
        "model_class": class,
        "model_name": "",
        "model_type": base.dimensions.model_type,
        "name": name,
        "version": VERSION,
    });
    let text = serde_json::to_string_pretty(&json).expect("JSON values print");
    fs::create_dir_all(dir).map_err(|source| MethodError::File {
        action: "create",
        path: dir.to_owned(),
        source,
    })?;
    let pending = prepare_values(&dir.join(TENSORS_FILE), tensors, &[("format", "pt")]);
    let pending = pending.map_err(ModelError::from)?;
    let write = |file: &mut dyn std::io::Write| file.write_all(text.as_bytes());
    let config = PendingFile::write(&dir.join(CONFIG_FILE), write).map_err(ModelError::from)?;
    pending.put_in_place().map_err(ModelError::from)?;
    config.put_in_place().map_err(ModelError::from)?;
    Ok(())
}

/// AdapterHub's key of a parameter, for an adapter of this name; none if the library has no place
/// for it.
fn hub_key(key: &str, name: &str, base: &Base, family: &dyn FamilyConfig) -> Option<String> {
    let parts = [".adapter_down.", ".adapter_up.", ".scaling"];
    if let Some(at) = parts.iter().find_map(|part| key.find(part)) {
        let (module, part) = (&key[..at], &key[at + 1..]);
        let site = family.adapterhub_site(module)?;
        let part = part.replacen("adapter_down.", "adapter_down.0.", 1);
        return Some(format!("{site}.adapters.{name}.{part}"));
    }
    if let Some((linear, matrix)) = key.split_once(".lora_") {
        let matrix = matrix.strip_suffix(".weight")?;
        return Some(format!("{linear}.loras.{name}.lora_{matrix}"));
    }
    if let Some((before, net)) = key.split_once("invertible_adapter.") {
        return Some(format!("{before}invertible_adapters.{name}.{net}"));
    }
    let shared = || format!("{}shared_parameters.{name}.{key}", base.prefix);
    (key == "phm_rule").then(shared)
}
