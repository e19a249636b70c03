//! Adapter directories: `adapter_config.json` and `adapter_model.safetensors`, as HF PEFT writes
//! them.
//!
//! Methods that PEFT has are written so that PEFT reads them, and read as PEFT wrote them. The
//! others use the same two files with a `peft_type` of their own. What PEFT's files do not say (the
//! hash of the base, the task's columns and labels) stands under the key `epiphyte`, which PEFT
//! passes over.
//!
//! Reading is strict: a key that asks for something unknown, a tensor too many, too few or of the
//! wrong shape is an error that names it.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::safetensors_file::{Values, write_values};
use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::{Base, Checkpoint, ModelError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::framework::method::{StoredTensors, StoredValues};
use crate::registry::{AnyConfig, Definition, by_name, by_peft_config};
use crate::{AdapterModule, MethodError, ParameterCounts};

/// The configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// Modules that PEFT saves beside every adapter of a sequence classification model.
const HEADS: [&str; 2] = ["classifier", "score"];
/// Modules that PEFT must be told of: a head, and the pooler that a base may lack.
const OTHER_HEADS: [&str; 2] = ["classification_head", "pooler"];

/// What only our files say, under the key `epiphyte`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version that wrote the file.
    pub version: String,
    /// The method's name, which says more than `peft_type` where several share one.
    pub method: String,
    /// SHA-256 of the base's tensors.
    pub base_sha256: String,
    /// The values of the base's `config.json` on which results depend; none in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_config: Option<Map<String, Value>>,
    /// SHA-256 of the base's `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// The task, its columns and labels, as the trainer describes them.
    pub task: Value,
    /// The method's account, so that it can be told without the base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<ParameterCounts>,
}

/// What a saved adapter says about itself beside its method.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterMetadata {
    /// Name or path of the base model.
    pub base_model: String,
    /// PEFT's `task_type`, such as `SEQ_CLS`.
    pub task_type: String,
    /// What only our files say.
    pub provenance: Provenance,
}

/// Writes an adapter into `dir`, each file whole or not at all, the configuration last.
///
/// # Errors
/// If a file cannot be written; the directory's old files are then still there.
pub fn save(
    dir: &Path,
    module: &AdapterModule,
    base: &Base,
    metadata: &AdapterMetadata,
) -> Result<(), MethodError> {
    fs::create_dir_all(dir).map_err(|source| MethodError::File {
        action: "create",
        path: dir.to_owned(),
        source,
    })?;
    let keys = module.config().definition().keys;
    let method = module
        .stored()
        .into_iter()
        .map(|stored| (keys.prefix(&stored.key), stored));
    let head = module
        .stored_head()
        .into_iter()
        .map(|stored| (keys.head_prefix(), stored));
    let tensors = method.chain(head).map(|(prefix, stored)| {
        let values = match stored.values {
            StoredValues::F32(values) => Values::F32(Box::new(|| values)),
            StoredValues::I32(values) => Values::I32(values),
        };
        (format!("{prefix}{}", stored.key), stored.shape, values)
    });
    write_values(&dir.join(TENSORS_FILE), tensors).map_err(ModelError::from)?;
    let text = serde_json::to_string_pretty(&config_json(module, base, metadata))
        .expect("JSON values print");
    epiphyte_io::write(&dir.join(CONFIG_FILE), text.as_bytes()).map_err(ModelError::from)?;
    Ok(())
}

/// `adapter_config.json`: PEFT's keys, sorted, then ours.
fn config_json(module: &AdapterModule, base: &Base, metadata: &AdapterMetadata) -> Value {
    let config = module.config();
    let definition = config.definition();
    let mut all = (definition.peft_defaults)();
    all.extend(module.saved_settings(base));
    all.extend(config.computed(base));
    let common = json!({
        "auto_mapping": null,
        "base_model_name_or_path": metadata.base_model,
        "inference_mode": true,
        "modules_to_save": base.task_head.as_deref().map(|head| saved_modules(head, base)),
        "peft_type": definition.peft_type,
        "peft_version": "0.21.2",
        "revision": null,
        "task_type": metadata.task_type,
        "epiphyte": metadata.provenance,
    });
    if let Value::Object(common) = common {
        all.extend(common);
    }
    let mut sorted: Vec<(String, Value)> = all.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    Value::Object(sorted.into_iter().collect())
}

/// PEFT's list of trained modules, by the last part of their paths. It adds the two heads that it
/// knows, whichever the model has.
fn saved_modules<'a>(head: &'a str, base: &'a Base) -> Vec<&'a str> {
    let new_module = base.new_module.as_deref();
    let new_module = new_module.map(|path| path.rsplit('.').next().unwrap_or(path));
    let other = Some(head).filter(|head| !HEADS.contains(head));
    new_module.into_iter().chain(other).chain(HEADS).collect()
}

/// An adapter's directory, its configuration read and its tensors not yet.
#[derive(Debug)]
pub struct AdapterFile {
    dir: PathBuf,
    config: Box<dyn AnyConfig>,
    json: Map<String, Value>,
    provenance: Option<Provenance>,
}

impl AdapterFile {
    /// Reads `adapter_config.json` of `dir`.
    ///
    /// # Errors
    /// If the file is missing or malformed, or asks for something that is not implemented.
    pub fn open(dir: &Path) -> Result<Self, MethodError> {
        let path = dir.join(CONFIG_FILE);
        let text = fs::read_to_string(&path).map_err(|source| MethodError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let malformed = |reason: String| MethodError::Malformed {
            path: path.clone(),
            reason,
        };
        let json: Map<String, Value> =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let provenance: Option<Provenance> = match json.get("epiphyte") {
            Some(ours) => Some(
                serde_json::from_value(ours.clone())
                    .map_err(|error| malformed(format!("`epiphyte`: {error}")))?,
            ),
            None => None,
        };
        let peft_type = json.get("peft_type").and_then(Value::as_str);
        let peft_type = peft_type.ok_or_else(|| malformed("`peft_type` is missing".to_owned()))?;
        let definition = match &provenance {
            Some(provenance) => by_name(&provenance.method)?,
            None => by_peft_config(&json)
                .ok_or_else(|| unsupported(&path, "peft_type", &json["peft_type"]))?,
        };
        if definition.peft_type != peft_type {
            return Err(malformed(format!(
                "`peft_type` is {peft_type}, but the method `{}` writes {}",
                definition.name, definition.peft_type
            )));
        }
        if let Some((key, value)) = definition.peft_variant
            && json.get(key) != Some(&Value::Bool(value))
        {
            return Err(malformed(format!(
                "`{key}` must be {value} for the method `{}`",
                definition.name
            )));
        }
        let config = definition.configure(settings(definition, &json, &path)?)?;
        Ok(Self {
            dir: dir.to_owned(),
            config,
            json,
            provenance,
        })
    }

    /// The method's configuration.
    pub fn config(&self) -> &dyn AnyConfig {
        &*self.config
    }

    /// What only our files say; none in PEFT's own.
    pub fn provenance(&self) -> Option<&Provenance> {
        self.provenance.as_ref()
    }

    /// PEFT's `task_type`, such as `SEQ_CLS`.
    pub fn task_type(&self) -> Option<&str> {
        self.json.get("task_type").and_then(Value::as_str)
    }

    /// The base that the file names.
    pub fn base_model(&self) -> Option<&str> {
        self.json
            .get("base_model_name_or_path")
            .and_then(Value::as_str)
    }

    /// The tensors as they are stored.
    ///
    /// # Errors
    /// If the file is missing or malformed.
    pub fn tensors(&self) -> Result<Checkpoint, MethodError> {
        Ok(Checkpoint::open_file(&self.dir.join(TENSORS_FILE))?)
    }

    /// Checks that the adapter was trained over this base and tokenizer, if it says over which. Of
    /// `base_config`, the keys are compared that both have: later releases may add some.
    ///
    /// # Errors
    /// [`MethodError::OtherBase`] or [`MethodError::OtherConfig`].
    pub fn check_base(
        &self,
        base_sha256: &str,
        base_config: &Map<String, Value>,
        tokenizer_sha256: &str,
    ) -> Result<(), MethodError> {
        let Some(ours) = &self.provenance else {
            return Ok(());
        };
        let pairs = [
            ("base", &ours.base_sha256, base_sha256),
            ("tokenizer", &ours.tokenizer_sha256, tokenizer_sha256),
        ];
        for (what, expected, found) in pairs {
            if expected != found {
                return Err(MethodError::OtherBase {
                    path: self.dir.clone(),
                    what,
                    expected: expected.chars().take(12).collect(),
                    found: found.chars().take(12).collect(),
                });
            }
        }
        for (key, expected) in ours.base_config.iter().flatten() {
            if let Some(found) = base_config.get(key).filter(|found| *found != expected) {
                return Err(MethodError::OtherConfig {
                    path: self.dir.clone(),
                    key: key.clone(),
                    expected: expected.to_string(),
                    found: found.to_string(),
                });
            }
        }
        Ok(())
    }

    /// Puts the adapter to work on `base`.
    ///
    /// # Errors
    /// If the method does not fit the base, or the tensors do not fit the method.
    pub fn load(&self, base: &Base, device: &Device) -> Result<AdapterModule, MethodError> {
        for (key, expected) in self.config.computed(base) {
            if let Some(found) = self.json.get(&key)
                && !found.is_null()
                && *found != expected
            {
                return Err(MethodError::Malformed {
                    path: self.dir.join(CONFIG_FILE),
                    reason: format!("`{key}` is {found}, but this base has {expected}"),
                });
            }
        }
        let checkpoint = self.tensors()?;
        let keys = self.config.definition().keys;
        let matcher = RefCell::new(TensorMatcher {
            checkpoint: &checkpoint,
            base_prefix: base.prefix,
            used: Vec::new(),
            missing: Vec::new(),
            misshapen: Vec::new(),
        });
        let mut own = Prefixed {
            prefix: &|key| keys.prefix(key),
            matcher: &matcher,
        };
        let mut head = Prefixed {
            prefix: &|_| keys.head_prefix(),
            matcher: &matcher,
        };
        let files: [&mut dyn StoredTensors; 2] = [&mut own, &mut head];
        let module = AdapterModule::load(&*self.config, base, device, 0, files)?;
        matcher.into_inner().finish(&self.dir.join(TENSORS_FILE))?;
        Ok(module)
    }
}

/// Matches the tensors of a file with the keys that a method asks for.
struct TensorMatcher<'c> {
    checkpoint: &'c Checkpoint,
    base_prefix: &'static str,
    used: Vec<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
}

/// Tensors of the method or of the head, whose keys have this prefix in the file.
struct Prefixed<'m, 'c> {
    prefix: &'m dyn Fn(&str) -> &'static str,
    matcher: &'m RefCell<TensorMatcher<'c>>,
}

impl StoredTensors for Prefixed<'_, '_> {
    fn shape(&self, key: &str) -> Option<Vec<usize>> {
        let matcher = self.matcher.borrow();
        let name = matcher.stored_name((self.prefix)(key), key)?;
        let view = matcher.checkpoint.tensor(&name)?;
        Some(view.shape.to_vec())
    }

    fn take(&mut self, key: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        let Some(name) = matcher.find((self.prefix)(key), key) else {
            return Ok(None);
        };
        let found = self.found_shape(&matcher, &name);
        if found != shape {
            let problem = format!("{name} {found:?}, expected {shape:?}");
            matcher.misshapen.push(problem);
            return Ok(None);
        }
        Ok(Some(matcher.checkpoint.to_f32(&name, shape)?))
    }

    fn take_indices(&mut self, key: &str) -> Result<Option<Vec<i32>>, MethodError> {
        let mut matcher = self.matcher.borrow_mut();
        let Some(name) = matcher.find((self.prefix)(key), key) else {
            return Ok(None);
        };
        let view = matcher.checkpoint.tensor(&name);
        let indices = view.as_ref().and_then(TensorView::to_i32);
        if indices.is_none() {
            let problem = format!("{name} is not a vector of 32-bit integers");
            matcher.misshapen.push(problem);
        }
        Ok(indices)
    }
}

impl Prefixed<'_, '_> {
    fn found_shape(&self, matcher: &TensorMatcher<'_>, name: &str) -> Vec<usize> {
        let view = matcher.checkpoint.tensor(name);
        view.map(|view| view.shape.to_vec()).unwrap_or_default()
    }
}

impl TensorMatcher<'_> {
    /// The name of a tensor, which counts as used; a missing one is noted.
    fn find(&mut self, prefix: &str, key: &str) -> Option<String> {
        let name = self.stored_name(prefix, key);
        match &name {
            Some(name) => self.used.push(name.clone()),
            None => self.missing.push(format!("{prefix}{key}")),
        }
        name
    }

    /// A key as the file spells it: over a base without head, PEFT's paths lack the base's own
    /// prefix.
    fn stored_name(&self, prefix: &str, key: &str) -> Option<String> {
        let full = format!("{prefix}{key}");
        let bare = key.strip_prefix(self.base_prefix);
        let bare = bare.map(|rest| format!("{prefix}{rest}"));
        std::iter::once(full)
            .chain(bare)
            .find(|name| self.checkpoint.contains(name))
    }

    fn finish(self, path: &Path) -> Result<(), MethodError> {
        // PEFT leaks these two beside a saved head when biases are saved as well.
        let leaked =
            |name: &str| name.contains(".original_module.") || name.contains(".modules_to_save.");
        let unexpected: Vec<String> = self
            .checkpoint
            .names()
            .filter(|name| !self.used.iter().any(|used| used == name) && !leaked(name))
            .map(str::to_owned)
            .collect();
        if self.missing.is_empty() && self.misshapen.is_empty() && unexpected.is_empty() {
            return Ok(());
        }
        Err(MethodError::Tensors {
            path: path.to_owned(),
            missing: self.missing,
            unexpected,
            misshapen: self.misshapen,
        })
    }
}

/// The method's settings out of the file; every other key must say "off".
fn settings(
    definition: &Definition,
    json: &Map<String, Value>,
    path: &Path,
) -> Result<Map<String, Value>, MethodError> {
    const COMMON: [&str; 8] = [
        "auto_mapping",
        "base_model_name_or_path",
        "epiphyte",
        "inference_mode",
        "peft_type",
        "peft_version",
        "revision",
        "task_type",
    ];
    let known = definition.configure(Map::new())?.settings();
    let defaults = (definition.peft_defaults)();
    let mut settings = (definition.file_defaults)();
    for (key, value) in json {
        let is_off = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(items) => items.is_empty(),
            _ => false,
        };
        if key == "modules_to_save" {
            let saved = value.as_array().into_iter().flatten();
            if let Some(other) = saved
                .into_iter()
                .find(|name| !HEADS.iter().chain(&OTHER_HEADS).any(|head| **name == *head))
            {
                return Err(unsupported(path, key, other));
            }
        } else if known.contains_key(key) {
            if !value.is_null() {
                settings.insert(key.clone(), value.clone());
            }
        } else if !COMMON.contains(&key.as_str())
            && !definition.computed.contains(&key.as_str())
            && !is_off
            && defaults.get(key) != Some(value)
        {
            return Err(unsupported(path, key, value));
        }
    }
    Ok(settings)
}

fn unsupported(path: &Path, key: &str, value: &Value) -> MethodError {
    MethodError::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
    }
}
