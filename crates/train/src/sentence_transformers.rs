//! The directory layout of sentence-transformers: `modules.json` and what it names.
//!
//! | file | content |
//! | --- | --- |
//! | `modules.json` | that a `Transformer` is followed by a `Pooling` and perhaps a `Normalize` |
//! | `1_Pooling/config.json` | which hidden states make an embedding |
//! | `sentence_bert_config.json` | the longest text in tokens |
//!
//! Both spellings are read: that of sentence-transformers 6 and that before it, which all of its
//! releases read and which is written. Prompts are not added to texts.

use std::path::{Path, PathBuf};

use epiphyte_models::heads::EmbeddingPooling;
use serde_json::{Map, Value, json};

use crate::TrainError;

/// The list of modules.
const MODULES: &str = "modules.json";
/// The transformer's own settings.
const TRANSFORMER: &str = "sentence_bert_config.json";
/// The folders of the other modules.
const POOLING: &str = "1_Pooling";
const NORMALIZE: &str = "2_Normalize";
/// The keys of `1_Pooling/config.json` before release 6, each with what it is today.
const MODES: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// What follows the transformer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    pub(crate) pooling: EmbeddingPooling,
    pub(crate) normalize: bool,
    /// The longest text in tokens.
    pub(crate) max_seq_length: Option<usize>,
}

impl Modules {
    /// Reads the modules of a model's directory; a mean without normalization, as
    /// sentence-transformers takes it, where there is no `modules.json`.
    ///
    /// # Errors
    /// [`TrainError::SentenceTransformers`] for a file that is malformed, or a module or a setting
    /// that there is not here.
    pub(crate) fn read(directory: &Path) -> Result<Self, TrainError> {
        let mut modules = Self::default();
        let transformer = read_json(&directory.join(TRANSFORMER))?;
        let longest = transformer.as_ref().and_then(|it| it.get("max_seq_length"));
        let longest = longest.and_then(Value::as_u64).filter(|&it| it > 0);
        modules.max_seq_length = longest.map(|it| it as usize);
        let path = directory.join(MODULES);
        let Some(list) = read_json(&path)? else {
            return Ok(modules);
        };
        let invalid = |reason: &str| unusable(&path, reason);
        let list = list.as_array();
        let list = list.ok_or_else(|| invalid("is no list of modules"))?;
        let text = |module: &Value, key: &str| {
            let text = module.get(key).and_then(Value::as_str).map(str::to_owned);
            text.ok_or_else(|| invalid(&format!("has a module without `{key}`")))
        };
        let mut kinds = Vec::new();
        for module in list {
            let (kind, folder) = (text(module, "type")?, text(module, "path")?);
            let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
            match (kind.as_str(), folder.as_str()) {
                ("Transformer", "") | ("Normalize", _) => {}
                ("Transformer", folder) => {
                    let reason = format!(
                        "has the model in `{folder}`, but only one in the directory itself is \
                         read: pass that folder as --model"
                    );
                    return Err(invalid(&reason));
                }
                ("Pooling", folder) => {
                    modules.pooling = pooling(&directory.join(folder).join("config.json"))?;
                }
                (other, _) => {
                    let reason = format!(
                        "has the module `{other}`, but only Transformer, Pooling and Normalize \
                         are known here"
                    );
                    return Err(invalid(&reason));
                }
            }
            kinds.push(kind);
        }
        let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
        modules.normalize = match kinds.as_slice() {
            ["Transformer", "Pooling"] => false,
            ["Transformer", "Pooling", "Normalize"] => true,
            _ => {
                let order = "Transformer, Pooling and, if at all, Normalize";
                return Err(invalid(&format!("has other modules than {order}")));
            }
        };
        Ok(modules)
    }

    /// The files that say this of a model with this hidden size, as paths below its directory.
    pub(crate) fn files(&self, hidden_size: usize) -> Vec<(PathBuf, Value)> {
        let kinds = ["Transformer", "Pooling", "Normalize"];
        let folders = ["", POOLING, NORMALIZE];
        let count = if self.normalize { 3 } else { 2 };
        let modules = kinds.iter().zip(folders).take(count).enumerate();
        let modules = modules.map(|(index, (kind, folder))| {
            json!({
                "idx": index,
                "name": index.to_string(),
                "path": folder,
                "type": format!("sentence_transformers.models.{kind}"),
            })
        });
        let mode = self.pooling.to_string();
        let mut pooling = Map::new();
        pooling.insert("word_embedding_dimension".to_owned(), json!(hidden_size));
        for (key, known) in MODES {
            pooling.insert(key.to_owned(), json!(known == mode));
        }
        pooling.insert("include_prompt".to_owned(), json!(true));
        let transformer = json!({
            "max_seq_length": self.max_seq_length,
            "do_lower_case": false,
        });
        vec![
            (MODULES.into(), modules.collect()),
            (
                Path::new(POOLING).join("config.json"),
                Value::Object(pooling),
            ),
            (TRANSFORMER.into(), transformer),
        ]
    }
}

/// The pooling that a `config.json` of such a module says.
fn pooling(path: &Path) -> Result<EmbeddingPooling, TrainError> {
    let missing = || unusable(path, "is not there, but modules.json names its folder");
    let config = read_json(path)?.ok_or_else(missing)?;
    let is_on = |key: &str| config.get(key).and_then(Value::as_bool) == Some(true);
    let modes = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.as_str()],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).collect(),
        _ => {
            let on = MODES.iter().filter(|(key, _)| is_on(key));
            on.map(|(_, mode)| *mode).collect()
        }
    };
    let known = |mode: &str| serde_json::from_value(json!(mode)).ok();
    let only = match modes.as_slice() {
        [only] => known(only),
        _ => None,
    };
    only.ok_or_else(|| {
        let modes = modes.join(", ");
        let reason =
            format!("asks for the pooling `{modes}`, but there are mean, cls and lasttoken");
        unusable(path, &reason)
    })
}

/// A JSON file; none if it does not exist.
fn read_json(path: &Path) -> Result<Option<Value>, TrainError> {
    match epiphyte_io::read_regular(path) {
        Ok(bytes) => {
            let value = serde_json::from_slice(&bytes);
            value
                .map(Some)
                .map_err(|error| unusable(path, &format!("is no JSON: {error}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &format!("cannot be read: {error}"))),
    }
}

fn unusable(path: &Path, reason: &str) -> TrainError {
    TrainError::SentenceTransformers {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(directory: &Path, files: &[(PathBuf, Value)]) {
        for (path, value) in files {
            let path = directory.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, value.to_string()).unwrap();
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let poolings = [
            EmbeddingPooling::Mean,
            EmbeddingPooling::Cls,
            EmbeddingPooling::LastToken,
        ];
        for (pooling, normalize) in poolings
            .into_iter()
            .flat_map(|it| [(it, true), (it, false)])
        {
            let modules = Modules {
                pooling,
                normalize,
                max_seq_length: Some(256),
            };
            let directory = tempfile::tempdir().unwrap();
            write(directory.path(), &modules.files(384));
            assert_eq!(Modules::read(directory.path()).unwrap(), modules);
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Modules::read(empty.path()).unwrap(), Modules::default());
    }

    /// As sentence-transformers 6.2.0 writes it.
    #[test]
    fn the_newer_spelling_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let module = |path: &str, kind: &str| json!({ "path": path, "type": kind });
        let modules = json!([
            module(
                "",
                "sentence_transformers.base.modules.transformer.Transformer"
            ),
            module(
                "1_Pooling",
                "sentence_transformers.sentence_transformer.modules.pooling.Pooling"
            ),
            module(
                "2_Normalize",
                "sentence_transformers.base.modules.normalize.Normalize"
            ),
        ]);
        let pooling = json!({
            "embedding_dimension": 384, "pooling_mode": "cls", "include_prompt": true,
        });
        let files = [
            (MODULES.into(), modules),
            (Path::new(POOLING).join("config.json"), pooling),
        ];
        write(directory.path(), &files);
        let expected = Modules {
            pooling: EmbeddingPooling::Cls,
            normalize: true,
            max_seq_length: None,
        };
        assert_eq!(Modules::read(directory.path()).unwrap(), expected);
    }

    #[test]
    fn what_there_is_not_here_is_named_with_its_file() {
        let transformer = json!({ "path": "", "type": "m.Transformer" });
        let pooling = json!({ "path": "1_Pooling", "type": "m.Pooling" });
        let dense = json!({ "path": "2_Dense", "type": "m.Dense" });
        let below = json!({ "path": "0_Transformer", "type": "m.Transformer" });
        for (modules, mode, words) in [
            (json!({}), json!("mean"), "modules.json` is no list"),
            (json!([{ "path": "" }]), json!("mean"), "without `type`"),
            (json!([below, pooling]), json!("mean"), "`0_Transformer`"),
            (
                json!([transformer, pooling, dense]),
                json!("mean"),
                "`Dense`",
            ),
            (json!([transformer]), json!("mean"), "other modules than"),
            (json!([transformer, pooling]), json!("max"), "pooling `max`"),
            (
                json!([transformer, pooling]),
                json!(["mean", "cls"]),
                "pooling `mean, cls`",
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let config = json!({ "pooling_mode": mode });
            let files = [
                (MODULES.into(), modules),
                (Path::new(POOLING).join("config.json"), config),
            ];
            write(directory.path(), &files);
            let error = Modules::read(directory.path()).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
