//! The weights of a Hugging Face directory or of a GGUF file, memory-mapped.
//!
//! [`Checkpoint::open`] reads headers only; a tensor's bytes are touched when they are asked for,
//! so opening a model of many gigabytes costs milliseconds and no memory. Every header is checked
//! against its file before a single tensor is handed out (see [`epiphyte_io::safetensors_file`]).
//!
//! What a *model* needs of a checkpoint — prefixes, old names, what may be missing — is the
//! business of [`crate::keys`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use epiphyte_io::gguf::GgufFile;
use epiphyte_io::safetensors_file::Header;
use epiphyte_io::{GgufProblem, HeaderProblem, Sha256Hasher, check_regular};
use epiphyte_ops::quantized::QuantizedWeight;
use half::{bf16, f16};
use safetensors::Dtype;

use crate::ModelError;
use crate::error::{TensorProblems, WrongDtype, WrongShape};
use crate::gguf::{self, Encoding};
use crate::json::JsonObject;
use crate::mapped_file::MappedFile;
use crate::quantized::is_beside_weight;

/// The single-file checkpoint's name.
const SINGLE_FILE: &str = "model.safetensors";
/// The name of the list of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

const ADVICE: &str = "place the model's weights there (model.safetensors, or \
    model.safetensors.index.json with all its shards), from the model's page on huggingface.co or a \
    copy of it; a model that only has pytorch_model.bin is converted by loading it in Python with \
    transformers and calling save_pretrained";
const INDEX_ADVICE: &str = "download it again";

/// Hashing this many bytes takes long enough to say so in the log.
const WORTH_A_LOG_LINE: usize = 1 << 30;

/// The named tensors of a model, in one safetensors file or in several shards.
///
/// # Example
/// ```no_run
/// use epiphyte_models::checkpoint::Checkpoint;
/// let checkpoint = Checkpoint::open("bert-base-uncased".as_ref())?;
/// for name in checkpoint.names() {
///     let tensor = checkpoint.tensor(name).unwrap();
///     tracing::info!(name, dtype = %tensor.dtype, shape = ?tensor.shape);
/// }
/// let norm = checkpoint.to_f32("bert.embeddings.LayerNorm.weight", &[768])?;
/// # Ok::<(), epiphyte_models::ModelError>(())
/// ```
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, Location>,
    metadata: BTreeMap<String, String>,
    content: OnceLock<Content>,
}

/// What reading all tensors once shows.
#[derive(Debug)]
struct Content {
    hash: String,
    /// Names of the tensors that hold a NaN or an infinity, sorted.
    non_finite: Vec<String>,
}

/// A mapped file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    map: MappedFile,
}

/// Where a tensor is; the range has been checked against the mapped file.
#[derive(Debug)]
struct Location {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    encoding: Option<Encoding>,
}

/// A tensor of a checkpoint, as it is stored.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    /// Data type of the elements; F32 for those that a GGUF file has in blocks.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: &'a [usize],
    /// As the file has them.
    stored: &'a [u8],
    /// How the elements follow from that; none if they are the elements.
    encoding: Option<Encoding>,
}

/// The bytes of a tensor in a mapped file, which they keep open.
#[derive(Debug)]
pub(crate) struct SharedBytes {
    checkpoint: Arc<Checkpoint>,
    shard: usize,
    bytes: Range<usize>,
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.checkpoint.shards[self.shard].map[self.bytes.clone()]
    }
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards of `model.safetensors.index.json`, in `dir`; or a
    /// GGUF file, whose tensors get Hugging Face's names.
    ///
    /// # Errors
    /// [`ModelError::MissingDirectory`], [`ModelError::MissingFile`], [`ModelError::MissingShard`],
    /// [`ModelError::Header`], [`ModelError::Gguf`] and the other errors of files, each with the
    /// path of the file.
    pub fn open(dir: &Path) -> Result<Self, ModelError> {
        if let Some(file) = gguf::open(dir)? {
            return Self::open_gguf(dir, &file);
        }
        if !dir.is_dir() {
            return Err(ModelError::MissingDirectory {
                dir: dir.to_owned(),
            });
        }
        let single = dir.join(SINGLE_FILE);
        let index = dir.join(INDEX_FILE);
        if !single.exists()
            && !index.exists()
            && let Some((found, advice)) = other_weights(dir)
        {
            return Err(ModelError::OtherWeights {
                dir: dir.to_owned(),
                found,
                advice,
            });
        }
        let mut checkpoint = if single.exists() || !index.exists() {
            Self::open_file(&single)?
        } else {
            Self::open_shards(dir, &index)?
        };
        checkpoint.path = dir.to_owned();
        Ok(checkpoint)
    }

    /// Opens one safetensors file, for example an adapter's.
    ///
    /// # Errors
    /// [`ModelError::MissingFile`], [`ModelError::Header`] and [`ModelError::Io`].
    pub fn open_file(path: &Path) -> Result<Self, ModelError> {
        let mut checkpoint = Self::empty(path);
        checkpoint.add_shard(path, &|_| None)?;
        Ok(checkpoint)
    }

    fn open_gguf(model: &Path, file: &GgufFile) -> Result<Self, ModelError> {
        let mut checkpoint = Self::empty(model);
        let map = map_file(file.path())?;
        let length = map.len() as u64;
        for (name, tensor, encoding) in gguf::tensors(file)? {
            // The file may have changed since its header was read.
            if map.get(tensor.bytes.clone()).is_none() {
                return Err(ModelError::Gguf {
                    path: file.path().to_owned(),
                    problem: Box::new(GgufProblem::CutOff { length }),
                });
            }
            let location = Location {
                shard: 0,
                dtype: encoding.dtype(),
                shape: tensor.shape.clone(),
                bytes: tensor.bytes.clone(),
                encoding: Some(encoding).filter(|it| !it.is_plain()),
            };
            checkpoint.tensors.insert(name, location);
        }
        checkpoint.shards.push(Shard {
            path: file.path().to_owned(),
            map,
        });
        Ok(checkpoint)
    }

    fn open_shards(dir: &Path, index: &Path) -> Result<Self, ModelError> {
        let weight_map: BTreeMap<String, String> =
            JsonObject::read(index, INDEX_ADVICE)?.require("weight_map")?;
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, shard) in &weight_map {
            shards.entry(shard).or_default().push(tensor);
        }
        let mut checkpoint = Self::empty(dir);
        for (shard, tensors) in shards {
            if !is_file_name(shard) {
                return Err(ModelError::ShardName {
                    path: index.to_owned(),
                    shard: shard.to_owned(),
                });
            }
            let path = dir.join(shard);
            if !path.exists() {
                return Err(ModelError::MissingShard {
                    path,
                    tensors: tensors.len(),
                    example: tensors[0].to_owned(),
                });
            }
            let placed_in = |tensor: &str| weight_map.get(tensor).map(String::as_str);
            checkpoint.add_shard(&path, &|tensor| {
                placed_in(tensor).map(|other| other == shard)
            })?;
            if let Some(tensor) = tensors.iter().find(|&&t| !checkpoint.contains(t)) {
                return Err(ModelError::NotInShard {
                    path,
                    tensor: (*tensor).to_owned(),
                });
            }
        }
        Ok(checkpoint)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
            content: OnceLock::new(),
        }
    }

    /// Maps a file and lists its tensors, except those for which `belongs` says that the index
    /// places them elsewhere. `None` means that the index does not say.
    fn add_shard(
        &mut self,
        path: &Path,
        belongs: &dyn Fn(&str) -> Option<bool>,
    ) -> Result<(), ModelError> {
        let map = map_file(path)?;
        let header = Header::parse(&map).map_err(|problem| header_error(path, problem))?;
        let shard = self.shards.len();
        for (name, info) in header.tensors {
            if belongs(&name) == Some(false) {
                continue;
            }
            let (start, end) = info.data_offsets;
            let location = Location {
                shard,
                dtype: info.dtype,
                shape: info.shape,
                bytes: header.data_start + start..header.data_start + end,
                encoding: None,
            };
            if let Some(other) = self.tensors.get(&name) {
                return Err(ModelError::TensorInTwoShards {
                    first: self.shards[other.shard].path.clone(),
                    second: path.to_owned(),
                    tensor: name,
                });
            }
            self.tensors.insert(name, location);
        }
        self.metadata.extend(header.metadata);
        self.shards.push(Shard {
            path: path.to_owned(),
            map,
        });
        Ok(())
    }

    /// The files, each with its first bytes: the length of the header, and the header. The data of
    /// the tensors follow, in the order of their offsets.
    pub fn headers(&self) -> impl Iterator<Item = (&Path, &[u8])> {
        self.shards.iter().map(|shard| {
            let bytes: &[u8] = &shard.map;
            let length = bytes.first_chunk().map_or(0, |it| u64::from_le_bytes(*it));
            let end = size_of::<u64>().saturating_add(length as usize);
            (&*shard.path, bytes.get(..end).unwrap_or(bytes))
        })
    }

    /// The directory or file that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether there are no tensors at all.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The free text of `__metadata__`, such as `format = pt`; empty where there is none.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The bytes of all tensors together.
    pub fn total_bytes(&self) -> usize {
        self.tensors.values().map(|at| at.bytes.len()).sum()
    }

    /// A tensor as it is stored, without copying it.
    pub fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        Some(self.view(self.tensors.get(name)?))
    }

    /// The bytes of a tensor as they are stored, in the mapped file.
    pub(crate) fn shared_bytes(self: &Arc<Self>, name: &str) -> Option<SharedBytes> {
        let location = self.tensors.get(name)?;
        Some(SharedBytes {
            checkpoint: self.clone(),
            shard: location.shard,
            bytes: location.bytes.clone(),
        })
    }

    fn view<'c>(&'c self, location: &'c Location) -> TensorView<'c> {
        TensorView {
            dtype: location.dtype,
            shape: &location.shape,
            stored: &self.shards[location.shard].map[location.bytes.clone()],
            encoding: location.encoding,
        }
    }

    /// The elements of a tensor of this shape as `f32`, in row-major order.
    ///
    /// # Errors
    /// [`ModelError::Tensors`] where the tensor is missing, has another shape, or is not of type
    /// F64, F32, F16 or BF16.
    pub fn to_f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let view = self.checked(name, shape)?;
        view.to_f32()
            .ok_or_else(|| self.wrong_dtype(name, view.dtype))
    }

    /// The elements of a tensor of this shape as `bf16`, rounded to nearest even, in row-major
    /// order.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`].
    pub fn to_bf16(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, ModelError> {
        let view = self.checked(name, shape)?;
        view.to_bf16()
            .ok_or_else(|| self.wrong_dtype(name, view.dtype))
    }

    /// A range of a tensor's elements as `f32`, in row-major order; none if there is no such range,
    /// or as [`TensorView::to_f32`]. What was read of the file is not kept in memory.
    pub(crate) fn part_as_f32(&self, name: &str, range: Range<usize>) -> Option<Vec<f32>> {
        let location = self.tensors.get(name)?;
        let count = location.shape.iter().product::<usize>();
        let map = &self.shards[location.shard].map;
        if let Some(encoding) = location.encoding {
            if range.start > range.end || range.end > count {
                return None;
            }
            let stored = &map[location.bytes.clone()];
            let values = encoding.values(stored, &location.shape, range);
            map.forget(location.bytes.clone());
            return Some(values);
        }
        let size = location.bytes.len() / count.max(1);
        let start = location.bytes.start;
        let bytes = start + range.start * size..start + range.end * size;
        let stored = map.get(bytes.clone());
        let stored = stored.filter(|_| bytes.end <= location.bytes.end)?;
        let shape = [range.len()];
        let part = TensorView::new(location.dtype, &shape, stored);
        let values = part.to_f32()?;
        map.forget(bytes);
        Some(values)
    }

    /// A weight `[out, in]` of a GGUF file as a kernel keeps it in few bits, if one has its values.
    /// What was read of the file is not kept in memory.
    pub(crate) fn quantized(&self, name: &str, shape: [usize; 2]) -> Option<QuantizedWeight> {
        let location = self.tensors.get(name)?;
        let map = &self.shards[location.shard].map;
        let stored = &map[location.bytes.clone()];
        let weight = location.encoding?.quantized(stored, shape);
        map.forget(location.bytes.clone());
        weight
    }

    /// Whether there is a tensor of this name and shape whose elements are floating-point numbers.
    ///
    /// # Errors
    /// As [`Checkpoint::to_f32`].
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<(), ModelError> {
        let view = self.checked(name, shape)?;
        match view.is_float() {
            true => Ok(()),
            false => Err(self.wrong_dtype(name, view.dtype)),
        }
    }

    fn checked(&self, name: &str, expected: &[usize]) -> Result<TensorView<'_>, ModelError> {
        let Some(view) = self.tensor(name) else {
            return Err(self.one_problem(|it| it.missing.push(name.to_owned())));
        };
        if view.shape != expected {
            return Err(self.one_problem(|it| {
                it.wrong_shape.push(WrongShape {
                    tensor: name.to_owned(),
                    expected: expected.to_owned(),
                    found: view.shape.to_owned(),
                });
            }));
        }
        Ok(view)
    }

    fn wrong_dtype(&self, name: &str, found: Dtype) -> ModelError {
        self.one_problem(|it| {
            it.wrong_dtype.push(WrongDtype {
                tensor: name.to_owned(),
                found,
            });
        })
    }

    fn one_problem(&self, add: impl FnOnce(&mut TensorProblems)) -> ModelError {
        let mut problems = Box::new(TensorProblems {
            path: self.path.clone(),
            wanted: 1,
            ..TensorProblems::default()
        });
        add(&mut problems);
        ModelError::Tensors(problems)
    }

    /// The SHA-256 of the content, as 64 hexadecimal digits: what an adapter remembers of its base.
    ///
    /// It depends on the tensors alone, not on how they are spread over files, on their order in a
    /// file, or on metadata. Hashed are, in this order, the bytes `epiphyte-tensors-v1` and then
    /// for every tensor, sorted by name as bytes:
    ///
    /// | | |
    /// | --- | --- |
    /// | length of the name in bytes, the name | `u64`, UTF-8 |
    /// | length of the data type's name, the name as in the header (`F32`, `BF16`, …) | `u64`, UTF-8 |
    /// | number of dimensions, each dimension | `u64`, `u64`… |
    /// | number of bytes, the bytes as stored | `u64`, bytes |
    ///
    /// with every `u64` little-endian. Of a GGUF file, tensors in blocks have ggml's name of their
    /// type and their blocks, in the order of Hugging Face's rows; others are as safetensors would
    /// have them. The first call reads every tensor, at about a gigabyte per
    /// second and more; the result is kept for the next.
    pub fn content_hash(&self) -> &str {
        &self.content().hash
    }

    /// Whether any weight is quantized.
    pub fn is_quantized(&self) -> bool {
        let mut encodings = self.tensors.values().filter_map(|it| it.encoding);
        self.names().any(is_beside_weight) || encodings.any(Encoding::is_of_blocks)
    }

    /// The names of the tensors that hold a NaN or an infinity, sorted. Found while the content is
    /// hashed.
    pub fn non_finite(&self) -> &[String] {
        &self.content().non_finite
    }

    fn content(&self) -> &Content {
        self.content.get_or_init(|| {
            let total = self.total_bytes();
            if total >= WORTH_A_LOG_LINE {
                tracing::info!(path = %self.path.display(), bytes = total, "hashing the base model");
            }
            let mut hash = ContentHash::default();
            let mut non_finite = Vec::new();
            let (mut done, mut said) = (0, 0);
            for (name, location) in &self.tensors {
                let tensor = self.view(location);
                hash.add(name, &tensor);
                if !tensor.is_finite() {
                    non_finite.push(name.clone());
                }
                self.shards[location.shard].map.forget(location.bytes.clone());
                done += location.bytes.len();
                if done - said >= WORTH_A_LOG_LINE {
                    said = done;
                    tracing::info!(done, bytes = total, "hashing the base model");
                }
            }
            let hash = hash.finish();
            Content { hash, non_finite }
        })
    }
}

/// [`Checkpoint::content_hash`] of tensors that are in no file yet. They are added in the order of
/// their names as bytes.
#[derive(Debug)]
pub struct ContentHash(Sha256Hasher);

impl Default for ContentHash {
    fn default() -> Self {
        let mut hash = Sha256Hasher::default();
        hash.update(b"epiphyte-tensors-v1");
        Self(hash)
    }
}

impl ContentHash {
    /// Adds the next tensor.
    pub fn add(&mut self, name: &str, tensor: &TensorView<'_>) {
        let Self(hash) = self;
        let bytes = match tensor.encoding.filter(|it| it.is_of_blocks()) {
            Some(encoding) => encoding.in_order(tensor.stored, tensor.shape),
            None => tensor.bytes(),
        };
        hash_sized(hash, name.as_bytes());
        hash_sized(hash, tensor.type_name().as_bytes());
        hash.update(&(tensor.shape.len() as u64).to_le_bytes());
        for &size in tensor.shape {
            hash.update(&(size as u64).to_le_bytes());
        }
        hash_sized(hash, &bytes);
    }

    /// The hash, as 64 hexadecimal digits.
    pub fn finish(self) -> String {
        self.0.finish()
    }
}

/// Feeds the number of bytes, then the bytes.
fn hash_sized(hash: &mut Sha256Hasher, bytes: &[u8]) {
    hash.update(&(bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

impl<'a> TensorView<'a> {
    /// A tensor of these elements, in row-major order, little-endian, at any alignment.
    pub fn new(dtype: Dtype, shape: &'a [usize], bytes: &'a [u8]) -> Self {
        Self {
            dtype,
            shape,
            stored: bytes,
            encoding: None,
        }
    }

    /// The elements in row-major order, little-endian, at any alignment.
    pub fn bytes(&self) -> Cow<'a, [u8]> {
        match self.encoding {
            Some(encoding) => encoding.bytes(self.stored, self.shape),
            None => self.stored.into(),
        }
    }

    /// [`TensorView::bytes`], if the file has the elements as they are.
    pub fn plain_bytes(&self) -> Option<&'a [u8]> {
        self.encoding.is_none().then_some(self.stored)
    }

    /// The name of the type in the file: `F32`, or `Q4_K` of what a GGUF file has in blocks.
    pub fn type_name(&self) -> String {
        match self.encoding.filter(|it| it.is_of_blocks()) {
            Some(encoding) => encoding.type_name().to_owned(),
            None => self.dtype.to_string(),
        }
    }

    /// Bytes that the tensor takes in its file.
    pub fn stored_bytes(&self) -> usize {
        self.stored.len()
    }

    /// How a GGUF file has the elements, if not as they are.
    pub(crate) fn encoding(&self) -> Option<Encoding> {
        self.encoding
    }

    /// The elements as `f32`; `None` where the type is not F64, F32, F16 or BF16.
    pub fn to_f32(&self) -> Option<Vec<f32>> {
        if let Some(encoding) = self.encoding {
            let count = self.shape.iter().product();
            return Some(encoding.values(self.stored, self.shape, 0..count));
        }
        let bytes = self.stored;
        Some(match self.dtype {
            Dtype::F32 => elements(bytes, f32::from_le_bytes),
            Dtype::F64 => elements(bytes, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => elements(bytes, |b| f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => elements(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            _ => return None,
        })
    }

    /// The elements as `bf16`, by way of `f32` and rounded to nearest even, as PyTorch does it;
    /// `None` where the type is not F64, F32, F16 or BF16.
    pub fn to_bf16(&self) -> Option<Vec<bf16>> {
        let bytes = &self.bytes();
        Some(match self.dtype {
            Dtype::BF16 => elements(bytes, bf16::from_le_bytes),
            Dtype::F32 => elements(bytes, |b| bf16::from_f32(f32::from_le_bytes(b))),
            Dtype::F64 => elements(bytes, |b| bf16::from_f32(f64::from_le_bytes(b) as f32)),
            Dtype::F16 => elements(bytes, |b| bf16::from_f32(f16::from_le_bytes(b).to_f32())),
            _ => return None,
        })
    }

    /// Whether every element is finite as an `f32`; true where the type is none of
    /// [`TensorView::to_f32`]'s.
    pub fn is_finite(&self) -> bool {
        if let Some(encoding) = self.encoding {
            return encoding.is_finite(self.stored);
        }
        let bytes = self.stored;
        match self.dtype {
            Dtype::F32 => all(bytes, |b| f32::from_le_bytes(b).is_finite()),
            Dtype::F64 => all(bytes, |b| (f64::from_le_bytes(b) as f32).is_finite()),
            Dtype::F16 => all(bytes, |b| f16::from_le_bytes(b).is_finite()),
            Dtype::BF16 => all(bytes, |b| bf16::from_le_bytes(b).is_finite()),
            _ => true,
        }
    }

    /// The elements as 32-bit integers; none for other types.
    pub fn to_i32(&self) -> Option<Vec<i32>> {
        (self.dtype == Dtype::I32).then(|| elements(self.stored, i32::from_le_bytes))
    }

    /// The elements as integers; none for types other than U8, I16, I32 and I64.
    pub fn to_integers(&self) -> Option<Vec<i64>> {
        let bytes = self.stored;
        Some(match self.dtype {
            Dtype::U8 => bytes.iter().map(|&byte| i64::from(byte)).collect(),
            Dtype::I16 => elements(bytes, |b| i64::from(i16::from_le_bytes(b))),
            Dtype::I32 => elements(bytes, |b| i64::from(i32::from_le_bytes(b))),
            Dtype::I64 => elements(bytes, i64::from_le_bytes),
            _ => return None,
        })
    }

    /// Whether [`TensorView::to_f32`] and [`TensorView::to_bf16`] can read this tensor.
    pub fn is_float(&self) -> bool {
        matches!(
            self.dtype,
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::BF16
        )
    }
}

/// Reads elements of `N` bytes each.
fn elements<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (chunks, _) = bytes.as_chunks::<N>();
    chunks.iter().map(|&chunk| read(chunk)).collect()
}

/// Whether `holds` for all elements of `N` bytes each. Blocks are folded without a branch, so that
/// they are compiled to vector instructions.
fn all<const N: usize>(bytes: &[u8], holds: impl Fn([u8; N]) -> bool) -> bool {
    let (chunks, _) = bytes.as_chunks::<N>();
    let mut blocks = chunks.chunks(1024);
    blocks.all(|block| {
        block
            .iter()
            .fold(true, |so_far, &chunk| so_far & holds(chunk))
    })
}

/// A file with weights of another form in a directory that has none of ours, and what to do.
fn other_weights(dir: &Path) -> Option<(String, &'static str)> {
    const CONVERT: &str = "load it in Python with transformers and call save_pretrained, which \
        writes model.safetensors";
    const RENAME: &str = "if these are the whole model's weights, rename the file to \
        model.safetensors; if they are one of several shards, download all of them and \
        model.safetensors.index.json";
    const GGUF: &str = "a GGUF file is a model by itself: pass its path";
    const ADAPTER: &str = "this is the directory of an adapter; pass it as --adapter, and the \
        directory of its base as --model";
    let entries = std::fs::read_dir(dir).ok()?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.collect();
    names.sort_unstable();
    let kinds = [
        ("adapter_model.safetensors", ADAPTER),
        (".bin", CONVERT),
        (".bin.index.json", CONVERT),
        (".pt", CONVERT),
        (".pth", CONVERT),
        (".ckpt", CONVERT),
        (".h5", CONVERT),
        (".msgpack", CONVERT),
        (".safetensors", RENAME),
        (".gguf", GGUF),
    ];
    kinds.into_iter().find_map(|(ending, advice)| {
        let is_other = |name: &&String| name.ends_with(ending) && *name != "training_args.bin";
        let found = names.iter().find(is_other)?;
        Some((found.clone(), advice))
    })
}

/// Maps a file that has at least the eight bytes of a header's length.
fn map_file(path: &Path) -> Result<MappedFile, ModelError> {
    let failed = |action| {
        move |source: std::io::Error| match source.kind() {
            std::io::ErrorKind::NotFound => ModelError::MissingFile {
                path: path.to_owned(),
                advice: ADVICE,
            },
            _ => ModelError::Io {
                action,
                path: path.to_owned(),
                source,
            },
        }
    };
    check_regular(path).map_err(failed("read"))?;
    let file = File::open(path).map_err(failed("read"))?;
    let length = file.metadata().map_err(failed("read"))?.len();
    if length < 8 {
        return Err(header_error(path, HeaderProblem::TooShort { length }));
    }
    MappedFile::new(&file, path).map_err(failed("map"))
}

fn header_error(path: &Path, problem: HeaderProblem) -> ModelError {
    ModelError::Header {
        path: path.to_owned(),
        problem: Box::new(problem),
    }
}

/// Whether a shard's name stays inside the model's directory.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!(components.next(), Some(Component::Normal(part)) if part == name)
        && components.next().is_none()
}
