//! Adapter directories: `adapter_config.json` and `adapter_model.safetensors`, as HF PEFT writes
//! them.
//!
//! Methods that PEFT has are written so that PEFT reads them, and read as PEFT wrote them. The
//! others use the same two files with a `peft_type` of their own. What PEFT's files do not say (the
//! hash of the base, the task's columns and labels) stands in the metadata of the tensors' file,
//! with hashes of both files: of two that do not belong together, none is used.
//!
//! Reading is strict: a key that asks for something unknown, a tensor too many, too few or of the
//! wrong shape is an error that names it. Tensors that are whole tensors of the base stand in for
//! them.

pub mod adapterhub;
pub mod changes;
pub mod combine;
pub mod convert;
mod matcher;
mod record;

use std::cell::RefCell;
use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_io::safetensors_file::prepare_values;
use epiphyte_io::{PendingFile, read_regular};
use epiphyte_models::{Base, Checkpoint, ModelError};
use epiphyte_ops::Quantization;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::matcher::{Place, Prefixed, TensorMatcher, Whole, WholeTensors, whole_tensors};
use self::record::{Record, Tensors};
use crate::framework::method::{KeyStyle, StoredTensors};
use crate::framework::targets::{FAN_IN_FAN_OUT, ends_with};
use crate::registry::{AnyConfig, Definition, by_name, by_peft_config, is_on};
use crate::{AdapterModule, MethodError, ParameterCounts, WholeInFile};

/// The configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The tensors' file.
pub const TENSORS_FILE: &str = "adapter_model.safetensors";

/// Modules that PEFT saves beside every adapter of a model that classifies sequences or tokens.
const HEADS: [&str; 2] = ["classifier", "score"];
/// The same of a model that finds answers.
const ANSWER_HEADS: [&str; 1] = ["qa_outputs"];
/// PEFT's file of tensors before safetensors.
const OLD_TENSORS_FILE: &str = "adapter_model.bin";

/// What only our files say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The version that wrote the file.
    pub version: String,
    /// The method's name, which says more than `peft_type` where several share one.
    pub method: String,
    /// SHA-256 of the base's tensors.
    pub base_sha256: String,
    /// How the base's linear layers were quantized; none if they were not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_quantization: Option<Quantization>,
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
    /// How far the training went that it is of; none in older files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingExtent>,
}

/// How far a training went. Displayed: `18 of 18 steps`, and whether it was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainingExtent {
    /// Optimizer steps done.
    pub steps: u64,
    /// Optimizer steps that the run was to have.
    pub total_steps: u64,
    /// Whether it was stopped from outside and has not gone on.
    pub interrupted: bool,
}

impl Display for TrainingExtent {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let end = if self.interrupted {
            ", interrupted"
        } else {
            ""
        };
        write!(
            formatter,
            "{} of {} steps{end}",
            self.steps, self.total_steps
        )
    }
}

/// What a saved adapter says about itself beside its method.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterMetadata {
    /// Name or path of the base model.
    pub base_model: String,
    /// PEFT's `task_type`, such as `SEQ_CLS`; empty for tasks that PEFT has no type for.
    pub task_type: String,
    /// What only our files say.
    pub provenance: Provenance,
}

/// Writes an adapter into `dir`: neither of its two files before both are on the disk.
///
/// # Errors
/// If a file cannot be written; the directory's old files are then still there.
pub fn save(
    dir: &Path,
    module: &AdapterModule,
    base: &Base,
    metadata: &AdapterMetadata,
) -> Result<(), MethodError> {
    let named = [&*metadata.base_model, &*metadata.task_type];
    save_as(dir, module, base, named, Some(&metadata.provenance))
}

/// As [`save`], of a base and PEFT's `task_type` with these names; without what only our files say,
/// where that is not known.
///
/// # Errors
/// As [`save`].
pub fn save_as(
    dir: &Path,
    module: &AdapterModule,
    base: &Base,
    named: [&str; 2],
    provenance: Option<&Provenance>,
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
    let (whole, _) = module.stored_whole();
    let whole = whole.into_iter();
    let whole = whole.map(|stored| (keys.head_prefix(), stored));
    let tensors = method.chain(head).chain(whole).map(|(prefix, stored)| {
        let key = match base.is_bare {
            true => stored.key.strip_prefix(base.prefix).unwrap_or(&stored.key),
            false => &stored.key,
        };
        (format!("{prefix}{key}"), stored.shape, stored.values)
    });
    let tensors: Tensors = tensors.collect();
    let config = config_json(module, base, named);
    let record = provenance.map(|provenance| Record::new(provenance, &config, &tensors).to_text());
    let record = record.iter().map(|record| (record::KEY, record.as_str()));
    let tensors = prepare_values(
        &dir.join(TENSORS_FILE),
        record::to_write(tensors),
        &record.collect::<Vec<_>>(),
    );
    let tensors = tensors.map_err(ModelError::from)?;
    let text = serde_json::to_string_pretty(&config).expect("JSON values print");
    let write = |file: &mut dyn std::io::Write| file.write_all(text.as_bytes());
    let config = PendingFile::write(&dir.join(CONFIG_FILE), write).map_err(ModelError::from)?;
    tensors.put_in_place().map_err(ModelError::from)?;
    config.put_in_place().map_err(ModelError::from)?;
    Ok(())
}

/// Whether the adapter in `dir`, whole or not, was written by this library and not by PEFT.
pub fn is_own(dir: &Path) -> bool {
    let tensors = Checkpoint::open_file(&dir.join(TENSORS_FILE));
    let has_record = tensors.is_ok_and(|tensors| tensors.metadata().contains_key(record::KEY));
    let config = read_regular(&dir.join(CONFIG_FILE)).unwrap_or_default();
    let config: Value = serde_json::from_slice(&config).unwrap_or_default();
    has_record || config.get(record::KEY).is_some()
}

/// `adapter_config.json`: PEFT's keys, sorted.
fn config_json(
    module: &AdapterModule,
    base: &Base,
    [base_model, task_type]: [&str; 2],
) -> Map<String, Value> {
    let config = module.config();
    let definition = config.definition();
    let mut all = (definition.peft_defaults)();
    all.extend(module.saved_settings(base));
    all.extend(config.computed(base));
    let defaults = (definition.defaults)();
    all.retain(|key, value| {
        let own = definition.own.contains(&key.as_str());
        !own || defaults.get(key) != Some(value)
    });
    let (_, whole) = module.stored_whole();
    for (key, value) in whole {
        all.entry(key.clone()).or_insert(value.clone());
        if (definition.peft_defaults)().get(key) == all.get(key) {
            all.insert(key.clone(), value.clone());
        }
    }
    let own_modules = all.get("modules_to_save").and_then(Value::as_array);
    let own_modules = own_modules.into_iter().flatten().filter_map(Value::as_str);
    let mut modules: Vec<&str> = own_modules.collect();
    if module.head_parameters().trained().next().is_some() {
        for module in saved_modules(base.task_head.as_deref(), base) {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
    }
    let modules = (!modules.is_empty()).then_some(json!(modules));
    let common = json!({
        "auto_mapping": null,
        "base_model_name_or_path": base_model,
        "inference_mode": true,
        "modules_to_save": modules,
        "peft_type": definition.peft_type,
        "peft_version": "0.21.2",
        "revision": null,
        "task_type": Some(task_type).filter(|it| !it.is_empty()),
    });
    if let Value::Object(common) = common {
        all.extend(common);
    }
    if !definition.lists_modules && all["modules_to_save"].is_null() {
        all.remove("modules_to_save");
    }
    let mut sorted: Vec<(String, Value)> = all.into_iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    sorted.into_iter().collect()
}

/// PEFT's list of trained modules, by the last part of their paths. It adds the heads that it knows
/// for the task, whichever the model has, and matches endings, so `pre_classifier` is named
/// already.
fn saved_modules<'a>(head: Option<&'a str>, base: &'a Base) -> Vec<&'a str> {
    let new_modules = base.new_modules.iter();
    let new_modules = new_modules.map(|path| path.rsplit('.').next().unwrap_or(path));
    let known = match head {
        None => &[][..],
        Some(head) if ANSWER_HEADS.contains(&head) => &ANSWER_HEADS[..],
        Some(_) => &HEADS[..],
    };
    let unnamed = |module: &&str| !known.iter().any(|head| module.ends_with(head));
    let others = new_modules.chain(head).filter(unnamed);
    others.chain(known.iter().copied()).collect()
}

/// An adapter's directory, its configuration read and its tensors not yet.
#[derive(Debug)]
pub struct AdapterFile {
    dir: PathBuf,
    config: Box<dyn AnyConfig>,
    json: Map<String, Value>,
    tensors: Checkpoint,
    record: Option<Record>,
    /// Whether the two files must be those that were written together.
    strict: bool,
}

impl AdapterFile {
    /// Reads `adapter_config.json` of `dir` and what precedes the tensors in their file.
    ///
    /// # Errors
    /// If a file is missing or malformed, or asks for something that is not implemented;
    /// [`MethodError::NotOneAdapter`] if the two were not written together.
    pub fn open(dir: &Path) -> Result<Self, MethodError> {
        let mut file = Self::open_edited(dir)?;
        file.check_settings()?;
        file.strict = true;
        Ok(file)
    }

    /// As [`AdapterFile::open`], for files that were changed on purpose since they were written.
    ///
    /// # Errors
    /// As [`AdapterFile::open`], but for the last.
    pub fn open_edited(dir: &Path) -> Result<Self, MethodError> {
        let path = dir.join(CONFIG_FILE);
        let text = read_regular(&path).map_err(|source| MethodError::File {
            action: "read",
            path: path.clone(),
            source,
        })?;
        let malformed = |reason: String| MethodError::Malformed {
            path: path.clone(),
            reason,
        };
        let json: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if adapterhub::is_written_by(&json) {
            return Err(malformed(
                "it is AdapterHub's: `epiphyte convert --adapterhub DIR --to adapter` makes it one \
                 that is read here"
                    .to_owned(),
            ));
        }
        let tensors = open_tensors(dir)?;
        let record = Record::read(&json, &path, &tensors)?;
        let peft_type = json.get("peft_type").and_then(Value::as_str);
        let peft_type = peft_type.ok_or_else(|| malformed("`peft_type` is missing".to_owned()))?;
        let definition = match &record {
            Some(record) => by_name(&record.provenance.method)?,
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
            && is_on(json.get(key)) != value
        {
            let must = if value { "must" } else { "must not" };
            return Err(malformed(format!(
                "`{key}` {must} be set for the method `{}`",
                definition.name
            )));
        }
        let settings = settings(definition, &json, &path)?;
        let config = definition.configure(settings);
        let config = config.map_err(|error| malformed(in_file(error)))?;
        Ok(Self {
            dir: dir.to_owned(),
            config,
            json,
            tensors,
            record,
            strict: false,
        })
    }

    /// Checks that the two files are as they were written together, if they say so.
    ///
    /// # Errors
    /// [`MethodError::NotOneAdapter`].
    pub fn check_files(&self) -> Result<(), MethodError> {
        self.check_settings()?;
        let recorded = self.record.as_ref();
        let recorded = recorded.and_then(|record| record.tensors_sha256.as_deref());
        match recorded.is_none_or(|recorded| recorded == self.tensors.content_hash()) {
            true => Ok(()),
            false => Err(MethodError::NotOneAdapter {
                path: self.dir.join(TENSORS_FILE),
                reason: "its tensors are not those that were written: the file was damaged or edited",
            }),
        }
    }

    fn check_settings(&self) -> Result<(), MethodError> {
        let recorded = self.record.as_ref();
        if recorded.is_some_and(|record| !record.is_as_written(&self.tensors)) {
            return Err(MethodError::NotOneAdapter {
                path: self.dir.join(TENSORS_FILE),
                reason: "what its metadata says of the task and its labels is not what was written: \
                         the file was damaged or edited",
            });
        }
        let recorded = recorded.and_then(|record| record.settings_sha256.as_deref());
        match recorded.is_none_or(|recorded| recorded == record::settings_sha256(&self.json)) {
            true => Ok(()),
            false => Err(MethodError::NotOneAdapter {
                path: self.dir.join(CONFIG_FILE),
                reason: "it is not what was written with adapter_model.safetensors: the two files \
                         are of different adapters, as after a save that was cut off, or it was \
                         edited",
            }),
        }
    }

    /// The method's configuration.
    pub fn config(&self) -> &dyn AnyConfig {
        &*self.config
    }

    /// What only our files say; none in PEFT's own.
    pub fn provenance(&self) -> Option<&Provenance> {
        Some(&self.record.as_ref()?.provenance)
    }

    /// The adapter's directory.
    pub fn directory(&self) -> &Path {
        &self.dir
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
    pub fn tensors(&self) -> &Checkpoint {
        &self.tensors
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
        let Some(ours) = self.provenance() else {
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
        if self.strict {
            self.check_files()?;
        }
        let without_head;
        let base = match self.leaves_head(base) {
            true => {
                without_head = base.without_head();
                &without_head
            }
            false => base,
        };
        for (key, expected) in self.config.computed(base) {
            // As in PEFT, what the base's layers are decides.
            if key != FAN_IN_FAN_OUT
                && let Some(found) = self.json.get(&key)
                && !found.is_null()
                && *found != expected
            {
                return Err(MethodError::Malformed {
                    path: self.dir.join(CONFIG_FILE),
                    reason: format!("`{key}` is {found}, but this base has {expected}"),
                });
            }
        }
        let keys = self.config.definition().keys;
        let tokens = |path: &str| self.trained_tokens(path);
        let whole = whole_tensors(&self.tensors, keys, base, &tokens)?;
        let mut matcher = TensorMatcher::new(&self.tensors, base);
        for copy in &whole.copies {
            matcher.use_up(copy);
        }
        for absent in self.absent_modules(base, whole.names.keys()) {
            matcher.miss(absent);
        }
        let rows = self.json.get("trainable_token_indices");
        let has_rows = |place: &Place| matches!(place, Place::Rows(..));
        if rows.is_some_and(|rows| is_on(Some(rows))) && !whole.names.values().any(has_rows) {
            matcher.miss("trainable_tokens_delta (trainable_token_indices)".to_owned());
        }
        let matcher = RefCell::new(matcher);
        let mut own = Prefixed {
            prefix: &|key| keys.prefix(key),
            matcher: &matcher,
        };
        let mut head = Prefixed {
            prefix: &|_| keys.head_prefix(),
            matcher: &matcher,
        };
        let mut rest = Whole {
            base,
            names: &whole.names,
            matcher: &matcher,
        };
        let in_file = self.whole_in_file(&whole, keys, base);
        let files: [&mut dyn StoredTensors; 3] = [&mut own, &mut head, &mut rest];
        let module = AdapterModule::load(&*self.config, base, device, 0, in_file, files);
        // A setting that cannot be read from a file is told with the file.
        let module = module.map_err(|error| match error {
            MethodError::Value { .. } => MethodError::Malformed {
                path: self.dir.join(CONFIG_FILE),
                reason: error.to_string(),
            },
            error => error,
        })?;
        matcher.into_inner().finish(&self.dir.join(TENSORS_FILE))?;
        Ok(module)
    }

    /// Whether the adapter left the head as the base has it: it names none and holds none.
    fn leaves_head(&self, base: &Base) -> bool {
        let prefix = self.config.definition().keys.head_prefix();
        let of_head = |name: &str| {
            let name = name.strip_prefix(prefix);
            name.is_some_and(|name| base.is_of_head(name))
        };
        base.has_head
            && !is_on(self.json.get("modules_to_save"))
            && !self.tensors.names().any(of_head)
    }

    /// Where the file has whole tensors of the base, and its settings about them.
    fn whole_in_file(&self, found: &WholeTensors, keys: KeyStyle, base: &Base) -> WholeInFile {
        let bare = |name: &str| {
            let bare = name.strip_prefix(keys.head_prefix());
            bare.unwrap_or(name).to_owned()
        };
        let mut whole = WholeInFile::default();
        for (name, place) in &found.names {
            let (Place::All(stored) | Place::Rows(stored, _)) = place;
            whole.names.insert(name.clone(), bare(stored));
            if let Place::Rows(_, rows) = place {
                whole.rows.insert(name.clone(), rows.clone());
            }
        }
        for copy in &found.copies {
            let table = base.word_embeddings.clone();
            whole.copies.push((bare(copy), table));
        }
        for key in ["modules_to_save", "bias", "trainable_token_indices"] {
            if let Some(value) = self.json.get(key).filter(|value| !value.is_null()) {
                whole.settings.insert(key.to_owned(), value.clone());
            }
        }
        whole
    }

    /// The rows of the table at `path` that `trainable_token_indices` lists, for every table or by
    /// name.
    fn trained_tokens(&self, path: &str) -> Option<Vec<usize>> {
        let indices = match self.json.get("trainable_token_indices")? {
            Value::Object(tables) => {
                let mut tables = tables.iter();
                tables.find(|(name, _)| ends_with(path, name))?.1
            }
            indices => indices,
        };
        serde_json::from_value(indices.clone()).ok()
    }

    /// Modules of `modules_to_save` that the base has and of which the file has no tensor.
    fn absent_modules<'a>(
        &'a self,
        base: &Base,
        whole: impl Iterator<Item = &'a String> + Clone,
    ) -> Vec<String> {
        let saved = self.json.get("modules_to_save").and_then(Value::as_array);
        let saved = saved.into_iter().flatten().filter_map(Value::as_str);
        let is_of = |tensor: &str, module: &str| {
            let mut path = tensor;
            while let Some((parent, _)) = path.rsplit_once('.') {
                if ends_with(parent, module) {
                    return true;
                }
                path = parent;
            }
            false
        };
        let absent = saved.filter(|module| {
            let mut of_base = base.tensors().keys();
            let in_base = of_base.any(|name| is_of(name, module) && !base.is_of_head(name));
            in_base && !whole.clone().any(|name| is_of(name, module))
        });
        absent
            .map(|module| format!("{module} (modules_to_save)"))
            .collect()
    }
}

/// Opens an adapter's tensors.
fn open_tensors(dir: &Path) -> Result<Checkpoint, MethodError> {
    let path = dir.join(TENSORS_FILE);
    if path.exists() {
        return Ok(Checkpoint::open_file(&path)?);
    }
    let reason = match dir.join(OLD_TENSORS_FILE).exists() {
        true => format!(
            "there is only {OLD_TENSORS_FILE}, which can hold code and is not read; convert the \
             adapter in Python: PeftModel.from_pretrained(base, \"{}\").save_pretrained(\"converted\") \
             writes it as {TENSORS_FILE}",
            dir.display()
        ),
        false => "the adapter's tensors are missing: copy the whole directory".to_owned(),
    };
    Err(MethodError::Malformed { path, reason })
}

/// What is wrong with a setting, for a message that names the file and not the method.
fn in_file(error: MethodError) -> String {
    match error {
        MethodError::Setting { key, problem, .. } => format!("`{key}`: {problem}"),
        MethodError::Value {
            key,
            value,
            expected,
            ..
        } => format!("`{key}` is {value}, but {expected}"),
        other => other.to_string(),
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
        record::KEY,
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
        let name = key.as_str();
        if known.contains_key(key) {
            let means_nothing = definition.training_only.contains(&name) && {
                let alone = Map::from_iter([(key.clone(), value.clone())]);
                definition.configure(alone).is_err()
            };
            if !value.is_null() && !means_nothing {
                settings.insert(key.clone(), value.clone());
            }
            continue;
        }
        // The tensors say which modules and biases were saved whole.
        let in_tensors = match name {
            "modules_to_save" => is_texts(value),
            "trainable_token_indices" => value.is_array() || value.is_object(),
            // Such as `all` and `lora_only`; PEFT takes every ending in `_only` alike.
            "bias" => {
                let bias = value.as_str();
                let saved = bias.is_some_and(|bias| bias == "all" || bias.ends_with("_only"));
                definition.spares_biases && saved
            }
            _ => false,
        };
        let known = COMMON.contains(&name)
            || definition.computed.contains(&name)
            || definition.ignored.contains(&name);
        if !known && !in_tensors && is_on(Some(value)) && defaults.get(key) != Some(value) {
            let mut refused = definition.refused.iter();
            let reason = refused.find(|(refused, _)| refused == key);
            return Err(MethodError::Unsupported {
                path: path.to_owned(),
                key: key.clone(),
                value: value.to_string(),
                reason: reason.map_or("", |(_, reason)| reason),
            });
        }
    }
    Ok(settings)
}

fn is_texts(value: &Value) -> bool {
    let items = value.as_array();
    items.is_some_and(|items| items.iter().all(Value::is_string))
}

fn unsupported(path: &Path, key: &str, value: &Value) -> MethodError {
    MethodError::Unsupported {
        path: path.to_owned(),
        key: key.to_owned(),
        value: value.to_string(),
        reason: "",
    }
}
