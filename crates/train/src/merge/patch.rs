//! The patch of a merged model: what restores its base to the bit.
//!
//! A merged weight is rounded, so that subtracting the change again does not give the base back.
//! The patch holds the base's own bytes where they differ from the merged model's:
//!
//! | tensor of the file | holds |
//! | --- | --- |
//! | `tensor.<name>` | a tensor of the base, whole |
//! | `indices.<name>`, `values.<name>` | the entries of a tensor that differ, where they are few: positions (u32, row-major) and the base's values |
//! | `file.<path>` | the bytes of a file of the base, such as `config.json`, that differs or is missing |
//! | `header.<path>` | the header of a file of the base's weights, so that the file is the same again |
//!
//! The metadata says which tensors of the merged model the others are, which files the base had
//! with their hashes, and the hashes of both models' tensors: a patch is applied to the model that
//! it was written with, and what comes out has the base's hashes, or nothing is written.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path};

use epiphyte_io::safetensors_file::{Values, prepare_values};
use epiphyte_io::{FileError, read_regular};
use epiphyte_models::checkpoint::{INDEX_FILE, TensorView};
use epiphyte_models::{Checkpoint, ModelError};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    MARK, WEIGHTS_FILE, check_output_of, config, files, is_gguf, is_marked, stored_values,
    write_model,
};
use crate::TrainError;
use crate::lock::lock_output;

/// Begins the names of tensors that hold headers.
const HEADER: &str = "header.";
/// The key of a header that is no tensor.
const METADATA: &str = "__metadata__";
/// The key of the metadata.
const KEY: &str = "epiphyte_patch";

/// What the metadata of a patch says.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Hash of the base's tensors.
    base_sha256: String,
    /// Hash of the merged model's tensors.
    merged_sha256: String,
    /// Tensors of the base that the merged model has, but for the entries in the patch, each with
    /// its name there.
    kept: BTreeMap<String, String>,
    /// Files of the base, each with its SHA-256.
    files: BTreeMap<String, String>,
}

/// What a patch holds.
#[derive(Clone, Debug, Serialize)]
pub struct Patch {
    /// Tensors of the base that the merged model does not have as they are.
    pub changed_tensors: usize,
    /// Bytes of the patch's tensors.
    pub bytes: usize,
}

/// What restoring a base did.
#[derive(Clone, Debug, Serialize)]
pub struct Unmerged {
    /// Tensors that the patch restored.
    pub restored_tensors: usize,
    /// Tensors written.
    pub tensors: usize,
    /// SHA-256 of the tensors, which is the base's.
    pub sha256: String,
}

/// Writes to `path` what restores the base in `model_dir` from the model in `merged`.
///
/// # Errors
/// If a file cannot be read or written.
pub fn write_patch(model_dir: &Path, merged: &Path, path: &Path) -> Result<Patch, TrainError> {
    if is_gguf(model_dir)? {
        return Err(TrainError::Config(format!(
            "`{}` is a GGUF file, which merging leaves as it is: a patch restores the files of a \
             Hugging Face directory",
            model_dir.display()
        )));
    }
    let base = Checkpoint::open(model_dir)?;
    let other = Checkpoint::open(merged)?;
    let mut record = Record {
        base_sha256: base.content_hash().to_owned(),
        merged_sha256: other.content_hash().to_owned(),
        kept: BTreeMap::new(),
        files: BTreeMap::new(),
    };
    let mut tensors: Vec<(String, Vec<usize>, Values<'_>)> = Vec::new();
    let mut changed_tensors = 0;
    for name in base.names() {
        let view = base.tensor(name).expect("the checkpoint lists it");
        let (changes, kept) = match counterpart(name, &view, &other) {
            None => (Changes::Whole, None),
            Some((kept, merged)) => (Changes::between(&view, &merged), Some(kept)),
        };
        changed_tensors += usize::from(!matches!(changes, Changes::None));
        match changes {
            Changes::Whole => tensors.push((
                format!("tensor.{name}"),
                view.shape.to_vec(),
                stored_values(view),
            )),
            Changes::Few(indices) => {
                let (size, bytes) = (element_size(&view), view.bytes());
                let values = indices
                    .iter()
                    .flat_map(|&at| &bytes[at as usize * size..][..size]);
                let values: Vec<u8> = values.copied().collect();
                let count = vec![indices.len()];
                let positions: Vec<u8> = indices.iter().flat_map(|at| at.to_le_bytes()).collect();
                let positions = Values::Bytes(Dtype::U32, positions.into());
                let values = Values::Bytes(view.dtype, values.into());
                tensors.push((format!("indices.{name}"), count.clone(), positions));
                tensors.push((format!("values.{name}"), count, values));
                record.kept.extend(kept.map(|kept| (name.to_owned(), kept)));
            }
            Changes::None => record.kept.extend(kept.map(|kept| (name.to_owned(), kept))),
        }
    }
    for (name, header) in headers_of(&base) {
        let bytes = Values::Bytes(Dtype::U8, header.into());
        tensors.push((format!("{HEADER}{name}"), vec![header.len()], bytes));
    }
    let mut names = files::files_of(model_dir)?;
    names.push(config::FILE.into());
    if base.headers().count() > 1 {
        names.push(INDEX_FILE.into());
    }
    for name in names {
        let read = |dir: &Path| read_regular(&dir.join(&name));
        let own = read(model_dir).map_err(FileError::at("read", &model_dir.join(&name)))?;
        let name = name.to_string_lossy().into_owned();
        if read_regular(&merged.join(&name)).ok().as_ref() != Some(&own) {
            let bytes = Values::Bytes(Dtype::U8, Cow::Owned(own.clone()));
            tensors.push((format!("file.{name}"), vec![own.len()], bytes));
        }
        record.files.insert(name, epiphyte_io::sha256(&own));
    }
    let bytes = tensors.iter().map(|(_, _, values)| match values {
        Values::Bytes(_, bytes) => bytes.len(),
        _ => 0,
    });
    let patch = Patch {
        changed_tensors,
        bytes: bytes.sum(),
    };
    let record = serde_json::to_string(&record).expect("a record is plain values");
    let pending = prepare_values(path, tensors, &[(KEY, &record)]).map_err(ModelError::from)?;
    pending.put_in_place()?;
    Ok(patch)
}

/// Writes the base of the model in `merged` to `output`, restored by the patch in `path`.
///
/// # Errors
/// [`TrainError::OtherMerged`] if the patch was written with another model, or the model was
/// changed since; [`TrainError::State`] if the patch is damaged; [`TrainError::OutputNotMerged`]
/// if `output` has anything in it that is not an earlier model that this program wrote.
pub fn unmerge(
    merged: &Path,
    path: &Path,
    output: &Path,
    overwrite: bool,
) -> Result<Unmerged, TrainError> {
    let damaged = |reason: String| TrainError::State {
        path: path.to_owned(),
        reason,
    };
    let _lock = lock_output(output)?;
    let patch = Checkpoint::open_file(path)?;
    let Some(record) = patch.metadata().get(KEY) else {
        return Err(TrainError::NoPatch {
            path: path.to_owned(),
        });
    };
    let record: Record =
        serde_json::from_str(record).map_err(|error| damaged(format!("`{KEY}`: {error}")))?;
    // The names come from a file that a stranger may have written.
    let leads_out = |file: &&String| {
        let mut parts = Path::new(file.as_str()).components();
        !parts.all(|part| matches!(part, Component::Normal(_)))
    };
    if let Some(file) = record.files.keys().find(leads_out) {
        return Err(damaged(format!(
            "`{file}` is no name of a file in a model's directory"
        )));
    }
    if !record.files.contains_key(config::FILE) {
        return Err(damaged(format!("it has no `{}` of the base", config::FILE)));
    }
    let headers: BTreeMap<&str, &str> = patch
        .names()
        .filter_map(|tensor| Some((tensor.strip_prefix(HEADER)?, tensor)))
        .collect();
    let is_plain_name = |name: &&str| {
        let mut parts = Path::new(name).components();
        name.ends_with(".safetensors")
            && matches!(
                (parts.next(), parts.next()),
                (Some(Component::Normal(_)), None)
            )
    };
    if let Some(name) = headers.keys().find(|name| !is_plain_name(name)) {
        return Err(damaged(format!("`{name}` is no name of a file of weights")));
    }
    let files = record.files.keys().map(Path::new);
    let weights = headers
        .keys()
        .map(Path::new)
        .chain([Path::new(WEIGHTS_FILE)]);
    // The base itself has no mark of ours, and may be replaced by itself.
    let is_base =
        || Checkpoint::open(output).is_ok_and(|it| it.content_hash() == record.base_sha256);
    let is_ours = || is_marked(output) || is_base();
    check_output_of(output, files.chain(weights), overwrite, is_ours)?;
    let model = Checkpoint::open(merged)?;
    if model.content_hash() != record.merged_sha256 {
        return Err(TrainError::OtherMerged {
            path: merged.to_owned(),
            patch: path.to_owned(),
        });
    }
    let mut tensors = Vec::new();
    let mut restored = BTreeSet::new();
    for (name, kept) in &record.kept {
        let missing = || damaged(format!("the merged model has no tensor `{kept}`"));
        let view = model.tensor(kept).ok_or_else(missing)?;
        let [indices, values] =
            ["indices", "values"].map(|it| patch.tensor(&format!("{it}.{name}")));
        let values = match (indices, values) {
            (Some(indices), Some(values)) => {
                restored.insert(name.as_str());
                let places = places(&indices, &values, &view)
                    .ok_or_else(|| damaged(format!("the entries of `{name}` do not fit it")))?;
                Values::Made(
                    view.dtype,
                    Box::new(move || {
                        let size = element_size(&view);
                        let mut bytes = view.bytes().into_owned();
                        for (value, at) in values.bytes().chunks(size).zip(places) {
                            bytes[at * size..][..size].copy_from_slice(value);
                        }
                        bytes
                    }),
                )
            }
            _ => stored_values(view),
        };
        tensors.push((name.as_str(), view.shape.to_vec(), values));
    }
    for name in patch.names() {
        if let Some(name) = name.strip_prefix("tensor.") {
            restored.insert(name);
            let view = patch.tensor(&format!("tensor.{name}"));
            let view = view.expect("the checkpoint lists it");
            let values = stored_values(view);
            tensors.push((name, view.shape.to_vec(), values));
        }
    }
    let unmerged = Unmerged {
        restored_tensors: restored.len(),
        tensors: tensors.len(),
        sha256: record.base_sha256.clone(),
    };
    write_model(output, |directory| {
        if headers.is_empty() {
            // A patch of an earlier version, or of a base whose files hold more than its tensors.
            let weights = directory.join(WEIGHTS_FILE);
            let pending = prepare_values(&weights, tensors, &[MARK]).map_err(ModelError::from)?;
            pending.put_in_place()?;
        } else {
            let values = tensors.into_iter().map(|(name, _, values)| (name, values));
            let mut values: BTreeMap<&str, Values<'_>> = values.collect();
            for (name, tensor) in &headers {
                let header = patch
                    .tensor(tensor)
                    .expect("the checkpoint lists it")
                    .bytes();
                let names = names_in_order(&header)
                    .ok_or_else(|| damaged(format!("the header of `{name}` is malformed")))?;
                let own = names.iter().map(|name| {
                    let own = values.remove(name.as_str());
                    own.ok_or_else(|| damaged(format!("it has no tensor `{name}` of the base")))
                });
                let own = own.collect::<Result<Vec<_>, _>>()?;
                epiphyte_io::write_atomically(&directory.join(name), |file| {
                    file.write_all(&header)?;
                    own.into_iter().try_for_each(|own| match own {
                        Values::Bytes(_, bytes) => file.write_all(&bytes),
                        Values::Made(_, bytes) => file.write_all(&bytes()),
                        Values::F32(_) | Values::Rounded(..) => unreachable!("restored as bytes"),
                    })
                })?;
            }
        }
        for (file, sha256) in &record.files {
            let target = directory.join(file);
            match patch.tensor(&format!("file.{file}")) {
                Some(view) => {
                    if let Some(parent) = target.parent() {
                        fs::create_dir_all(parent).map_err(FileError::at("create", parent))?;
                    }
                    epiphyte_io::write(&target, &view.bytes())?;
                }
                None => files::copy(merged, Path::new(file), directory)?,
            }
            let restored = read_regular(&target).map_err(FileError::at("read", &target))?;
            if epiphyte_io::sha256(&restored) != *sha256 {
                return Err(damaged(format!(
                    "what it and the merged model have of `{file}` is not the base's file"
                )));
            }
        }
        if Checkpoint::open(directory)?.content_hash() != record.base_sha256 {
            return Err(damaged(
                "it does not restore the base that it names".to_owned(),
            ));
        }
        Ok(())
    })?;
    Ok(unmerged)
}

/// The headers of a base's files by their names; none if a file has a tensor that is not the
/// base's, so that its bytes do not follow from the base's tensors.
fn headers_of(base: &Checkpoint) -> Vec<(String, &[u8])> {
    let mut seen = BTreeSet::new();
    let headers = base.headers().map(|(path, header)| {
        let name = path.file_name()?.to_str()?.to_owned();
        let mut tensors = names_in_order(header)?.into_iter();
        let are_own = tensors.all(|tensor| base.contains(&tensor) && seen.insert(tensor));
        are_own.then_some((name, header))
    });
    headers.collect::<Option<Vec<_>>>().unwrap_or_default()
}

/// The tensors' names in the order of their data, of the first bytes of a file.
fn names_in_order(header: &[u8]) -> Option<Vec<String>> {
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(header.get(size_of::<u64>()..)?).ok()?;
    let tensors = header.into_iter().filter(|(name, _)| name != METADATA);
    let placed = tensors.map(|(name, entry)| {
        let [start, end] = [0, 1].map(|at| entry["data_offsets"][at].as_u64());
        Some((start?, end?, name))
    });
    let mut placed = placed.collect::<Option<Vec<_>>>()?;
    placed.sort();
    Some(placed.into_iter().map(|(_, _, name)| name).collect())
}

/// The tensor of the merged model that may be the base's `name`, with its name: heads give the
/// names of a base another prefix.
fn counterpart<'c>(
    name: &str,
    view: &TensorView<'_>,
    merged: &'c Checkpoint,
) -> Option<(String, TensorView<'c>)> {
    let is_below = |long: &str, short: &str| {
        long.strip_suffix(short)
            .is_some_and(|prefix| prefix.ends_with('.'))
    };
    let same = merged.names().find(|other| *other == name);
    let other = same.or_else(|| {
        merged
            .names()
            .find(|other| is_below(other, name) || is_below(name, other))
    })?;
    let found = merged.tensor(other)?;
    let fits = found.dtype == view.dtype && found.shape == view.shape;
    fits.then(|| (other.to_owned(), found))
}

/// How a tensor of the base differs from the merged model's.
enum Changes {
    None,
    /// At these entries.
    Few(Vec<u32>),
    Whole,
}

impl Changes {
    fn between(base: &TensorView<'_>, merged: &TensorView<'_>) -> Self {
        let size = element_size(base);
        let (base, merged) = (base.bytes(), merged.bytes());
        if base == merged {
            return Self::None;
        }
        if size == 0 || base.len() / size > u32::MAX as usize {
            return Self::Whole;
        }
        // An entry takes its own bytes and four of its position.
        let most = base.len() / (size + 4);
        let pairs = base.chunks(size).zip(merged.chunks(size));
        let changed = pairs.enumerate().filter(|(_, (a, b))| a != b);
        let changed: Vec<u32> = changed.map(|(at, _)| at as u32).take(most + 1).collect();
        match changed.len() <= most {
            true => Self::Few(changed),
            false => Self::Whole,
        }
    }
}

/// Bytes of an element; 0 for types of less than a byte.
fn element_size(view: &TensorView<'_>) -> usize {
    match view.dtype.bitsize() {
        bits if bits.is_multiple_of(8) => bits / 8,
        _ => 0,
    }
}

/// Where the values of a patch go; none if they do not fit the tensor.
fn places(
    indices: &TensorView<'_>,
    values: &TensorView<'_>,
    tensor: &TensorView<'_>,
) -> Option<Vec<usize>> {
    let (size, bytes) = (element_size(tensor), indices.bytes());
    let places = bytes.chunks_exact(4);
    let places = places.map(|it| u32::from_le_bytes([it[0], it[1], it[2], it[3]]) as usize);
    let places: Vec<usize> = places.collect();
    let fits = indices.dtype == Dtype::U32
        && values.dtype == tensor.dtype
        && values.bytes().len() == places.len() * size
        && size > 0
        && places.iter().all(|at| at * size < tensor.bytes().len());
    fits.then_some(places)
}
