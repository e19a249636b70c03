//! What an adapter's tensors file records under `epiphyte` in its metadata, which HF PEFT passes
//! over: what PEFT's files cannot say, and hashes that tell whether the two files belong together.
//!
//! Files of earlier versions have the same under a key of `adapter_config.json`, without hashes.

use std::collections::BTreeMap;
use std::path::Path;

use epiphyte_io::safetensors_file::Values;
use epiphyte_models::Checkpoint;
use epiphyte_models::checkpoint::{ContentHash, TensorView};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Provenance;
use crate::MethodError;
use crate::framework::method::StoredValues;

/// The key of the metadata, and of earlier versions' configurations.
pub(super) const KEY: &str = "epiphyte";

/// Keys of `adapter_config.json` that say nothing about what the adapter computes, so that they may
/// be edited: where the base lies, and what wrote the file.
const FREE_KEYS: [&str; 6] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
];

/// The record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    pub(super) provenance: Provenance,
    /// SHA-256 of the settings in `adapter_config.json`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) settings_sha256: Option<String>,
    /// SHA-256 of the tensors ([`Checkpoint::content_hash`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tensors_sha256: Option<String>,
    /// SHA-256 of the record itself, without this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) record_sha256: Option<String>,
}

impl Record {
    /// That of an adapter that is written with these settings and tensors.
    pub(super) fn new(
        provenance: &Provenance,
        config: &Map<String, Value>,
        tensors: &Tensors,
    ) -> Self {
        let mut record = Self {
            provenance: provenance.clone(),
            settings_sha256: Some(settings_sha256(config)),
            tensors_sha256: Some(tensors_sha256(tensors)),
            record_sha256: None,
        };
        record.record_sha256 = Some(sha256_of(&record.to_text()));
        record
    }

    /// The value of the metadata.
    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).expect("a record is plain values")
    }

    /// Whether the record in the tensors' metadata is as it was written, if it says so.
    pub(super) fn is_as_written(&self, tensors: &Checkpoint) -> bool {
        let (Some(recorded), Some(text)) = (&self.record_sha256, tensors.metadata().get(KEY))
        else {
            return true;
        };
        *recorded == sha256_of(text)
    }

    /// The record of an adapter: in its tensors' metadata, or in the configuration of an earlier
    /// version; none in PEFT's own files.
    pub(super) fn read(
        config: &Map<String, Value>,
        config_path: &Path,
        tensors: &Checkpoint,
    ) -> Result<Option<Self>, MethodError> {
        let malformed = |path: &Path, error: serde_json::Error| MethodError::Malformed {
            path: path.to_owned(),
            reason: format!("`{KEY}`: {error}"),
        };
        if let Some(text) = tensors.metadata().get(KEY) {
            let record = serde_json::from_str(text);
            return Ok(Some(
                record.map_err(|error| malformed(tensors.path(), error))?,
            ));
        }
        let record = config.get(KEY).map(Self::deserialize).transpose();
        record.map_err(|error| malformed(config_path, error))
    }
}

/// SHA-256 of a record, whatever the order of its keys, without its own hash.
fn sha256_of(text: &str) -> String {
    let mut record: Map<String, Value> = serde_json::from_str(text).unwrap_or_default();
    record.remove("record_sha256");
    let text = sorted(&Value::Object(record)).to_string();
    epiphyte_io::sha256(text.as_bytes())
}

/// SHA-256 of a configuration's settings, whatever the order of its keys.
pub(super) fn settings_sha256(config: &Map<String, Value>) -> String {
    let settings = config.iter();
    let settings = settings.filter(|(key, _)| !FREE_KEYS.contains(&key.as_str()));
    let settings: BTreeMap<&String, Value> =
        settings.map(|(key, value)| (key, sorted(value))).collect();
    let text = serde_json::to_string(&settings).expect("JSON values print");
    epiphyte_io::sha256(text.as_bytes())
}

/// A value with the keys of its objects sorted.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(sorted).collect(),
        Value::Object(items) => {
            let items: BTreeMap<String, Value> = items
                .iter()
                .map(|(key, value)| (key.clone(), sorted(value)))
                .collect();
            items.into_iter().collect()
        }
        plain => plain.clone(),
    }
}

/// The tensors of an adapter that is to be written: name, shape and values of each.
pub(super) type Tensors = Vec<(String, Vec<usize>, StoredValues)>;

/// [`Checkpoint::content_hash`] of tensors that are in no file yet.
pub(super) fn tensors_sha256(tensors: &Tensors) -> String {
    let mut sorted: Vec<_> = tensors.iter().collect();
    sorted.sort_by(|a, b| a.0.cmp(&b.0));
    let mut hash = ContentHash::default();
    for (name, shape, values) in sorted {
        let (dtype, bytes): (Dtype, Vec<u8>) = match values {
            StoredValues::F32(values) => (
                Dtype::F32,
                values.iter().flat_map(|it| it.to_le_bytes()).collect(),
            ),
            StoredValues::Integers(kind, values) => kind.bytes(values),
        };
        hash.add(name, &TensorView::new(dtype, shape, &bytes));
    }
    hash.finish()
}

/// The same tensors for the writer.
pub(super) fn to_write(
    tensors: Tensors,
) -> impl Iterator<Item = (String, Vec<usize>, Values<'static>)> {
    tensors.into_iter().map(|(name, shape, values)| {
        let values = match values {
            StoredValues::F32(values) => Values::F32(Box::new(|| values)),
            StoredValues::Integers(kind, values) => {
                let (dtype, bytes) = kind.bytes(&values);
                Values::Bytes(dtype, bytes.into())
            }
        };
        (name, shape, values)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::settings_sha256;

    fn hash(config: Value) -> String {
        settings_sha256(config.as_object().expect("an object"))
    }

    #[test]
    fn only_what_the_adapter_computes_is_hashed() {
        let config = json!({ "r": 8, "rank_pattern": { "a": 1, "b": 2 }, "revision": null });
        let same = json!({
            "base_model_name_or_path": "moved", "rank_pattern": { "b": 2, "a": 1 }, "r": 8,
        });
        let other = json!({ "r": 4, "rank_pattern": { "a": 1, "b": 2 }, "revision": null });
        assert_eq!(hash(config.clone()), hash(same));
        assert_ne!(hash(config), hash(other));
    }
}
