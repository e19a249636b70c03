//! The safetensors format: strict parsing of untrusted headers, and files written as HF PEFT writes
//! them.
//!
//! A file is eight bytes (length of the header, little-endian), the header (JSON: for every tensor
//! its data type, shape and place in the data), and the data. The header is parsed here and not by
//! crate `safetensors` because a file that is refused has to be refused by name: which tensor is
//! listed twice, cut off, or overlaps its neighbour. Tests hold the two parsers against each other.
//!
//! The writer gives the byte layout of PEFT's own files: `__metadata__` first, tensors by data type
//! (the widest first) and then by name, the header padded with spaces to a multiple of eight.
//! Metadata is written in the order given, so equal input means equal bytes; crate `safetensors`
//! takes a `HashMap` there, which does not promise it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::{HeaderProblem, PendingFile, SafetensorsError, mistaken_file};

/// The format's limit on the header's length, in bytes.
pub const MAX_HEADER_LENGTH: u64 = 100_000_000;

/// Bytes before the header, which hold its length.
const LENGTH_BYTES: usize = 8;

/// How many values are converted to bytes for one write to the file.
const WRITTEN_AT_ONCE: usize = 1 << 16;

/// A tensor to be written.
#[derive(Debug, Clone)]
pub struct TensorToWrite<'a> {
    /// Name in the file.
    pub name: &'a str,
    /// Data type of the elements.
    pub dtype: Dtype,
    /// Shape, outermost dimension first.
    pub shape: &'a [usize],
    /// The elements in row-major order, little-endian.
    pub bytes: &'a [u8],
}

/// Writes a safetensors file, whole or not at all.
///
/// `metadata` becomes `__metadata__`, in the order given. HF PEFT writes `[("format", "pt")]`; with
/// that, the file is byte for byte the one that PEFT writes for the same tensors.
///
/// # Errors
/// [`SafetensorsError::Header`] where two tensors have one name or the number of bytes is not what
/// shape and data type need; [`SafetensorsError::File`] where the file system refuses.
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path().join("adapter_model.safetensors");
/// use epiphyte_io::safetensors_file::{Header, TensorToWrite, write_safetensors};
/// use safetensors::Dtype;
///
/// let scale = [1.0f32, 2.0].map(f32::to_le_bytes).concat();
/// let tensor = TensorToWrite { name: "ia3_l", dtype: Dtype::F32, shape: &[2, 1], bytes: &scale };
/// write_safetensors(&path, &[tensor], &[("format", "pt")])?;
/// let file = std::fs::read(&path)?;
/// let header = Header::parse(&file)?;
/// assert_eq!(header.tensors[0].0, "ia3_l");
/// assert_eq!(file[header.data_start..], scale);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_safetensors(
    path: &Path,
    tensors: &[TensorToWrite<'_>],
    metadata: &[(&str, &str)],
) -> Result<(), SafetensorsError> {
    let entry = |tensor: &TensorToWrite<'_>| EntryToWrite {
        name: tensor.name.to_owned(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
        length: tensor.bytes.len(),
    };
    let tensors = tensors.iter().map(|tensor| (entry(tensor), tensor.bytes));
    let pending = write(path, tensors.collect(), metadata, |bytes, file| {
        file.write_all(bytes)
    })?;
    Ok(pending.put_in_place()?)
}

/// Writes f32 tensors as HF PEFT and transformers write theirs: [`write_safetensors`] with `format`
/// = `pt`. Each tensor is a name, a shape and a function that returns its values; the function is
/// called when the tensor is written, so that the values of all tensors are never in memory
/// together.
///
/// # Errors
/// As [`write_safetensors`]; [`SafetensorsError::File`] if there are not as many values as a shape
/// says.
pub fn write_f32<'a, N: AsRef<str>, V: FnOnce() -> Vec<f32> + 'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, Vec<usize>, V)>,
) -> Result<(), SafetensorsError> {
    let tensors = tensors.into_iter();
    let tensors = tensors.map(|(name, shape, values)| (name, shape, Values::F32(Box::new(values))));
    write_values(path, tensors)
}

/// Values to write.
pub enum Values<'a> {
    /// 32-bit floating point; made when the tensor is written.
    F32(Box<dyn FnOnce() -> Vec<f32> + 'a>),
    /// The same, rounded to this type when written: F32, F16, BF16 or F64.
    Rounded(Dtype, Box<dyn FnOnce() -> Vec<f32> + 'a>),
    /// The bytes as they are, of this type.
    Bytes(Dtype, Cow<'a, [u8]>),
    /// The same, made when the tensor is written.
    Made(Dtype, Box<dyn FnOnce() -> Vec<u8> + 'a>),
}

/// Writes tensors of any of these types, each a name, a shape and its values, as [`write_f32`].
///
/// # Errors
/// As [`write_f32`].
pub fn write_values<'a, N: AsRef<str>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, Vec<usize>, Values<'a>)>,
) -> Result<(), SafetensorsError> {
    Ok(prepare_values(path, tensors, &[])?.put_in_place()?)
}

/// As [`write_values`], with more `metadata` behind `format` = `pt`, and without giving the file
/// its name yet.
///
/// # Errors
/// As [`write_f32`].
pub fn prepare_values<'a, N: AsRef<str>>(
    path: &Path,
    tensors: impl IntoIterator<Item = (N, Vec<usize>, Values<'a>)>,
    metadata: &[(&str, &str)],
) -> Result<PendingFile, SafetensorsError> {
    let tensors = tensors.into_iter().map(|(name, shape, values)| {
        let count: usize = shape.iter().product();
        let entry = EntryToWrite {
            name: name.as_ref().to_owned(),
            dtype: values.dtype(),
            length: match &values {
                Values::Bytes(_, bytes) => bytes.len(),
                values => values.dtype().bitsize() / 8 * count,
            },
            shape,
        };
        (entry, (count, values))
    });
    let metadata: Vec<_> = [("format", "pt")]
        .into_iter()
        .chain(metadata.iter().copied())
        .collect();
    write(
        path,
        tensors.collect(),
        &metadata,
        |(count, values), file| {
            let wrong_count = |found: usize| {
                let problem = format!("{found} values for a shape of {count}");
                Err(io::Error::new(io::ErrorKind::InvalidInput, problem))
            };
            let dtype = values.dtype();
            match values {
                Values::F32(values) | Values::Rounded(_, values) => {
                    let values = values();
                    if values.len() != count {
                        return wrong_count(values.len());
                    }
                    write_floats(dtype, &values, file)
                }
                Values::Bytes(_, bytes) => file.write_all(&bytes),
                Values::Made(_, bytes) => {
                    let bytes = bytes();
                    match bytes.len() == dtype.bitsize() * count / 8 {
                        true => file.write_all(&bytes),
                        false => wrong_count(bytes.len() * 8 / dtype.bitsize()),
                    }
                }
            }
        },
    )
}

impl Values<'_> {
    /// The type that the file gets; what is neither of the types of [`Values::Rounded`] is F32.
    fn dtype(&self) -> Dtype {
        match self {
            Self::Rounded(dtype @ (Dtype::F16 | Dtype::BF16 | Dtype::F64), _) => *dtype,
            Self::F32(_) | Self::Rounded(..) => Dtype::F32,
            Self::Bytes(dtype, _) | Self::Made(dtype, _) => *dtype,
        }
    }
}

/// Writes values, rounded to a type; F32 if it is neither F16, BF16 nor F64.
pub(crate) fn write_floats(dtype: Dtype, values: &[f32], file: &mut dyn Write) -> io::Result<()> {
    match dtype {
        Dtype::F16 => write_elements(values, |value| f16::from_f32(value).to_le_bytes(), file),
        Dtype::BF16 => write_elements(values, |value| bf16::from_f32(value).to_le_bytes(), file),
        Dtype::F64 => write_elements(values, |value| f64::from(value).to_le_bytes(), file),
        _ => write_elements(values, |value| value.to_le_bytes(), file),
    }
}

/// Writes elements of `N` bytes each, a piece at a time.
fn write_elements<T: Copy, const N: usize>(
    values: &[T],
    to_bytes: impl Fn(T) -> [u8; N],
    file: &mut dyn Write,
) -> io::Result<()> {
    values.chunks(WRITTEN_AT_ONCE).try_for_each(|values| {
        let bytes: Vec<u8> = values.iter().flat_map(|&value| to_bytes(value)).collect();
        file.write_all(&bytes)
    })
}

/// The header's entry for a tensor to be written.
struct EntryToWrite {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Bytes of data.
    length: usize,
}

/// Writes a file: the header from the entries, then the bytes that `data` writes for each tensor.
fn write<T>(
    path: &Path,
    mut tensors: Vec<(EntryToWrite, T)>,
    metadata: &[(&str, &str)],
    mut data: impl FnMut(T, &mut dyn Write) -> io::Result<()>,
) -> Result<PendingFile, SafetensorsError> {
    tensors.sort_by(|(a, _), (b, _)| b.dtype.cmp(&a.dtype).then(a.name.cmp(&b.name)));
    let entries = tensors.iter().map(|(entry, _)| entry);
    let header =
        header_to_write(entries, metadata).map_err(|problem| SafetensorsError::Header {
            path: path.to_owned(),
            problem: Box::new(problem),
        })?;
    let pending = PendingFile::write(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        tensors
            .into_iter()
            .try_for_each(|(_, tensor)| data(tensor, file))
    })?;
    Ok(pending)
}

/// The padded header for tensors that are already in the order of the file.
fn header_to_write<'a>(
    tensors: impl Iterator<Item = &'a EntryToWrite>,
    metadata: &[(&str, &str)],
) -> Result<Vec<u8>, HeaderProblem> {
    let mut header = Map::new();
    if !metadata.is_empty() {
        let metadata: Map<String, Value> = metadata
            .iter()
            .map(|(key, value)| (key.to_string(), json!(value)))
            .collect();
        header.insert("__metadata__".to_owned(), Value::Object(metadata));
    }
    let mut start = 0;
    for tensor in tensors {
        let EntryToWrite {
            name,
            dtype,
            shape,
            length,
        } = tensor;
        let end = start + length;
        check_size(name, *dtype, shape, *length)?;
        let entry =
            json!({"dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, end]});
        if header.insert(name.clone(), entry).is_some() {
            return Err(HeaderProblem::Duplicate {
                tensor: name.clone(),
            });
        }
        start = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(LENGTH_BYTES), b' ');
    if text.len() as u64 > MAX_HEADER_LENGTH {
        return Err(HeaderProblem::TooLarge {
            declared: text.len() as u64,
            limit: MAX_HEADER_LENGTH,
        });
    }
    Ok(text)
}

/// A header that has been checked against its file: every offset lies inside the data.
#[derive(Debug)]
pub struct Header {
    /// `__metadata__`, empty where the file has none.
    pub metadata: BTreeMap<String, String>,
    /// The tensors in the order of their data.
    pub tensors: Vec<(String, TensorInfo)>,
    /// Where the data starts in the file; `data_offsets` count from here.
    pub data_start: usize,
}

impl Header {
    /// Parses and checks the header of a whole file.
    ///
    /// # Errors
    /// [`HeaderProblem`]: the first thing that is wrong with it, or what the file is instead.
    pub fn parse(file: &[u8]) -> Result<Self, HeaderProblem> {
        Self::parse_strictly(file).map_err(|problem| match mistaken_file(file) {
            Some(kind) => HeaderProblem::OtherKind { kind },
            None => problem,
        })
    }

    fn parse_strictly(file: &[u8]) -> Result<Self, HeaderProblem> {
        let length = file.len() as u64;
        let Some((declared, rest)) = file.split_first_chunk::<LENGTH_BYTES>() else {
            return Err(HeaderProblem::TooShort { length });
        };
        let declared = u64::from_le_bytes(*declared);
        if declared > MAX_HEADER_LENGTH {
            return Err(HeaderProblem::TooLarge {
                declared,
                limit: MAX_HEADER_LENGTH,
            });
        }
        let Some((text, data)) = rest.split_at_checked(declared as usize) else {
            return Err(HeaderProblem::PastEnd { declared, length });
        };
        let text = std::str::from_utf8(text).map_err(|error| HeaderProblem::NotUtf8 {
            offset: error.valid_up_to(),
        })?;
        let entries: Entries = serde_json::from_str(text).map_err(|error| HeaderProblem::Json {
            problem: error.to_string(),
        })?;
        Ok(Self {
            metadata: entries.metadata,
            tensors: checked_tensors(entries.tensors, data.len())?,
            data_start: LENGTH_BYTES + text.len(),
        })
    }
}

/// Sorts entries by their place in the data and checks that together they cover it exactly.
fn checked_tensors(
    entries: Vec<(String, Entry)>,
    available: usize,
) -> Result<Vec<(String, TensorInfo)>, HeaderProblem> {
    let mut names = BTreeSet::new();
    let mut tensors = Vec::with_capacity(entries.len());
    for (tensor, entry) in &entries {
        if !names.insert(tensor) {
            return Err(HeaderProblem::Duplicate {
                tensor: tensor.clone(),
            });
        }
        let dtype = serde_json::from_value(Value::from(entry.dtype.as_str())).map_err(|_| {
            HeaderProblem::UnknownDtype {
                tensor: tensor.clone(),
                dtype: entry.dtype.clone(),
            }
        })?;
        let info = TensorInfo {
            dtype,
            shape: entry.shape.clone(),
            data_offsets: entry.data_offsets,
        };
        tensors.push((tensor.clone(), info));
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);

    let mut expected = 0;
    for (tensor, info) in &tensors {
        let (start, end) = info.data_offsets;
        if end > available {
            return Err(HeaderProblem::OutOfRange {
                tensor: tensor.clone(),
                end,
                available,
            });
        }
        if start != expected || end < start {
            return Err(HeaderProblem::Offsets {
                tensor: tensor.clone(),
                start,
                end,
                expected,
            });
        }
        check_size(tensor, info.dtype, &info.shape, end - start)?;
        expected = end;
    }
    match available - expected {
        0 => Ok(tensors),
        bytes => Err(HeaderProblem::Trailing { bytes }),
    }
}

/// Checks that `bytes` is what `shape` and `dtype` need.
fn check_size(
    tensor: &str,
    dtype: Dtype,
    shape: &[usize],
    bytes: usize,
) -> Result<(), HeaderProblem> {
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |bits, &size| bits.checked_mul(size));
    if bits.is_some() && bits == bytes.checked_mul(8) {
        return Ok(());
    }
    Err(HeaderProblem::Size {
        tensor: tensor.to_owned(),
        dtype,
        shape: shape.to_owned(),
        bytes,
    })
}

/// A header as it stands in the file, in its order and with its duplicates.
struct Entries {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

/// One tensor of a header, unchecked.
#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut metadata = BTreeMap::new();
        let mut tensors = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            if name == "__metadata__" {
                metadata = map.next_value::<Option<_>>()?.unwrap_or_default();
                continue;
            }
            match map.next_value() {
                Ok(entry) => tensors.push((name, entry)),
                Err(error) => return Err(A::Error::custom(format!("tensor `{name}`: {error}"))),
            }
        }
        Ok(Entries { metadata, tensors })
    }
}

/// Whether a value is finite once it is rounded to `dtype`.
pub fn is_finite_as(value: f32, dtype: Dtype) -> bool {
    match dtype {
        Dtype::F16 => half::f16::from_f32(value).is_finite(),
        Dtype::BF16 => half::bf16::from_f32(value).is_finite(),
        _ => value.is_finite(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FileError;
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    /// A file with this header and `data` bytes of data.
    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn problem(header: &str, data: usize) -> HeaderProblem {
        Header::parse(&file(header, data)).unwrap_err()
    }

    const A: &str = r#""a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#;

    #[test]
    fn good_header_is_read_in_the_order_of_the_data() {
        let header = format!(
            r#"{{"z":{{"dtype":"I8","shape":[0,3],"data_offsets":[8,8]}},{A},"__metadata__":{{"format":"pt"}}}}"#
        );
        let parsed = Header::parse(&file(&header, 8)).unwrap();
        let names: Vec<_> = parsed.tensors.iter().map(|(name, _)| &name[..]).collect();
        assert_eq!(names, ["a", "z"]);
        assert_eq!(parsed.metadata["format"], "pt");
        assert_eq!(parsed.data_start, 8 + header.len());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_read() {
        let parse = |bytes: &[u8]| Header::parse(bytes).unwrap_err();
        assert_eq!(parse(b""), HeaderProblem::TooShort { length: 0 });
        assert_eq!(parse(b"1234567"), HeaderProblem::TooShort { length: 7 });
        assert_eq!(
            parse(&[0xff; 8]),
            HeaderProblem::TooLarge {
                declared: u64::MAX,
                limit: MAX_HEADER_LENGTH
            }
        );
        let mut cut = file(&format!("{{{A}}}"), 8);
        cut.truncate(20);
        assert!(matches!(
            parse(&cut),
            HeaderProblem::PastEnd { length: 20, .. }
        ));
    }

    #[test]
    fn text_is_checked() {
        let mut bytes = file(r#"{"a":1}"#, 0);
        bytes[10] = 0xff;
        assert_eq!(
            Header::parse(&bytes).unwrap_err(),
            HeaderProblem::NotUtf8 { offset: 2 }
        );
        for header in ["", "[]", "{", r#"{"a":1}"#, r#"{"__metadata__":{"x":1}}"#] {
            assert!(
                matches!(problem(header, 0), HeaderProblem::Json { .. }),
                "{header}"
            );
        }
        let HeaderProblem::Json { problem } = problem(
            r#"{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}"#,
            4,
        ) else {
            panic!("another problem")
        };
        assert!(problem.contains("tensor `w`"), "{problem}");
    }

    #[test]
    fn tensors_are_named() {
        assert_eq!(
            problem(&format!("{{{A},{A}}}"), 8),
            HeaderProblem::Duplicate { tensor: "a".into() }
        );
        assert_eq!(
            problem(&format!("{{{}}}", A.replace("F32", "F33")), 8),
            HeaderProblem::UnknownDtype {
                tensor: "a".into(),
                dtype: "F33".into()
            }
        );
        assert_eq!(
            problem(&format!("{{{A}}}"), 7),
            HeaderProblem::OutOfRange {
                tensor: "a".into(),
                end: 8,
                available: 7
            }
        );
        assert_eq!(
            problem(&format!("{{{A}}}"), 9),
            HeaderProblem::Trailing { bytes: 1 }
        );
        // A hole, an overlap, and offsets that run backwards.
        for (offsets, data) in [("[9,17]", 17), ("[4,12]", 12), ("[8,0]", 8)] {
            let b = A.replace("\"a\"", "\"b\"").replace("[0,8]", offsets);
            let found = problem(&format!("{{{A},{b}}}"), data);
            assert!(
                matches!(&found, HeaderProblem::Offsets { tensor, expected: 8, .. } if tensor == "b"),
                "{found:?}"
            );
        }
        // Not the size that the shape needs, and shapes whose size overflows.
        for shape in [
            "[3]",
            "[]",
            "[4611686018427387904,4]",
            "[1152921504606846978]",
        ] {
            let found = problem(&format!("{{{}}}", A.replace("[2]", shape)), 8);
            assert!(
                matches!(&found, HeaderProblem::Size { tensor, .. } if tensor == "a"),
                "{shape}: {found:?}"
            );
        }
    }

    #[test]
    fn too_few_values_are_refused_and_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let error = write_f32(&path, [("a", vec![3], || vec![1.0, 2.0])]).unwrap_err();
        assert!(
            matches!(error, SafetensorsError::File(FileError::Io { .. })),
            "{error:?}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn writer_refuses_what_the_reader_would() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensor = TensorToWrite {
            name: "a",
            dtype: Dtype::F32,
            shape: &[2],
            bytes: &[0; 8],
        };
        let twice = [tensor.clone(), tensor.clone()];
        let short = [TensorToWrite {
            bytes: &[0; 7],
            ..tensor
        }];
        for tensors in [&twice[..], &short[..]] {
            let error = write_safetensors(&path, tensors, &[]).unwrap_err();
            assert!(
                matches!(error, SafetensorsError::Header { .. }),
                "{error:?}"
            );
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    /// Headers that are nearly right, so that the later checks are reached too.
    fn header_like() -> impl Strategy<Value = String> {
        let number = prop_oneof![0u64..20, Just(u64::MAX), Just(1 << 62)];
        let entry = (
            prop_oneof![
                Just("a"),
                Just("b"),
                Just("c"),
                Just("é\\n"),
                Just("__metadata__")
            ],
            prop_oneof![Just("F32"), Just("BF16"), Just("F4"), Just("U8"), Just("X")],
            prop::collection::vec(number.clone(), 0..4),
            prop::collection::vec(number, 1..4),
        )
            .prop_map(|(name, dtype, shape, offsets)| {
                format!(
                    r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":{offsets:?}}}"#
                )
            });
        prop::collection::vec(entry, 0..4).prop_map(|entries| format!("{{{}}}", entries.join(",")))
    }

    /// Tensors laid end to end, as a correct file has them.
    fn layout() -> impl Strategy<Value = (String, usize)> {
        let tensor = (0usize..4, prop::collection::vec(0usize..4, 0..3));
        prop::collection::vec(tensor, 0..5).prop_map(|tensors| {
            let mut start = 0;
            let mut entries = Vec::new();
            for (i, (kind, shape)) in tensors.into_iter().enumerate() {
                let (dtype, width) = [("F32", 4), ("BF16", 2), ("I64", 8), ("BOOL", 1)][kind];
                let end = start + width * shape.iter().product::<usize>();
                entries.push(format!(
                    r#""t{i}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#
                ));
                start = end;
            }
            entries.reverse();
            (format!("{{{}}}", entries.join(",")), start)
        })
    }

    /// Crate `safetensors` and this parser accept the same files, but for names listed twice, of
    /// which it silently keeps the last.
    fn agrees(bytes: &[u8]) -> Result<(), TestCaseError> {
        let reference = SafeTensors::read_metadata(bytes);
        match Header::parse(bytes) {
            Err(HeaderProblem::Duplicate { .. }) => {}
            Err(problem) => prop_assert!(reference.is_err(), "{problem} refused here only"),
            Ok(header) => {
                let (length, metadata) = reference.expect("accepted here only");
                prop_assert_eq!(header.data_start, 8 + length);
                prop_assert_eq!(header.tensors.len(), metadata.tensors().len());
                for (name, info) in &header.tensors {
                    let expected = metadata.info(name).unwrap();
                    prop_assert_eq!(info.dtype, expected.dtype);
                    prop_assert_eq!(&info.shape, &expected.shape);
                    prop_assert_eq!(info.data_offsets, expected.data_offsets);
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            agrees(&bytes)?;
        }

        #[test]
        fn random_headers_are_judged_as_crate_safetensors_does(header in header_like(), data in 0usize..24) {
            agrees(&file(&header, data))?;
        }

        #[test]
        fn correct_files_are_accepted((header, data) in layout()) {
            let bytes = file(&header, data);
            prop_assert!(Header::parse(&bytes).is_ok());
            agrees(&bytes)?;
        }

        #[test]
        fn damaged_files_are_judged_as_crate_safetensors_does(
            (header, data) in layout(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut bytes = file(&header, data);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            agrees(&bytes)?;
        }
    }
}
