//! Strict reading of a file's header: every length is compared with the file's before anything of
//! that size is made, and every tensor lies inside the data.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{ALIGNMENT, GgufValue, MAGIC, TensorType, VERSION, value_type};
use crate::error::{FileError, GgufError, GgufProblem};
use crate::{check_regular, mistaken_file};

/// The longest header that is read, in bytes. Those of published models have less than 20 MB.
const LONGEST_HEADER: u64 = 100_000_000;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;
/// How deep arrays of arrays may be nested.
const DEEPEST_ARRAY: usize = 4;

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Its type.
    pub tensor_type: TensorType,
    /// Its bytes in the file.
    pub bytes: Range<usize>,
}

/// The header of a file, checked against the file's length.
///
/// # Example
/// ```
/// use epiphyte_io::gguf::{GgufFile, GgufValue, TensorToWrite, prepare_gguf};
/// use safetensors::Dtype;
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("model.gguf");
/// let metadata = [("general.architecture".to_owned(), GgufValue::String("llama".to_owned()))];
/// let tensor = TensorToWrite {
///     name: "output_norm.weight".to_owned(),
///     shape: vec![2],
///     dtype: Dtype::F32,
///     values: Box::new(|| vec![1.0, 2.0]),
/// };
/// prepare_gguf(&path, &metadata, vec![tensor])?.put_in_place()?;
/// let file = GgufFile::open(&path)?;
/// assert_eq!(file.text("general.architecture")?, Some("llama"));
/// assert_eq!(file.tensors()[0].shape, [2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct GgufFile {
    path: PathBuf,
    metadata: BTreeMap<String, GgufValue>,
    tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Reads the header of a file, and nothing behind it.
    ///
    /// # Errors
    /// [`GgufError::Problem`] with the first thing that is wrong with it; [`GgufError::File`] if it
    /// cannot be read.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        let failed = |source| FileError::new("read", path, source);
        check_regular(path).map_err(failed)?;
        let file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let mut header = Header {
            from: BufReader::new(file),
            length,
            read: 0,
        };
        let parsed = header.parse();
        let (metadata, tensors) = parsed.map_err(|failure| match failure {
            Failure::Io(source) => GgufError::File(failed(source)),
            Failure::Problem(problem) => GgufError::Problem {
                path: path.to_owned(),
                problem: Box::new(problem),
            },
        })?;
        Ok(Self {
            path: path.to_owned(),
            metadata,
            tensors,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors, in the order of their names in the header.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.tensors
    }

    /// The bytes of a tensor.
    ///
    /// # Errors
    /// [`GgufError::File`] if they cannot be read.
    pub fn read(&self, tensor: &GgufTensor) -> Result<Vec<u8>, GgufError> {
        let read = || {
            let mut file = File::open(&self.path)?;
            file.seek(SeekFrom::Start(tensor.bytes.start as u64))?;
            let mut bytes = vec![0; tensor.bytes.len()];
            file.read_exact(&mut bytes)?;
            Ok(bytes)
        };
        Ok(read().map_err(FileError::at("read", &self.path))?)
    }

    /// A text of the metadata; none if there is no such key.
    ///
    /// # Errors
    /// [`GgufProblem::WrongType`] if the value is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.get(key, "a text", |value| match value {
            GgufValue::String(text) => Some(text.as_str()),
            _ => None,
        })
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn count(&self, key: &str) -> Result<Option<usize>, GgufError> {
        self.get(key, "a number", |value| match *value {
            GgufValue::U32(value) => usize::try_from(value).ok(),
            GgufValue::U64(value) => usize::try_from(value).ok(),
            GgufValue::I32(value) => usize::try_from(value).ok(),
            GgufValue::I64(value) => usize::try_from(value).ok(),
            _ => None,
        })
    }

    /// A number.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn number(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.get(key, "a number", |value| match *value {
            GgufValue::F32(value) => Some(shortest(value)),
            GgufValue::F64(value) => Some(value),
            GgufValue::U32(value) => Some(value.into()),
            GgufValue::I32(value) => Some(value.into()),
            _ => None,
        })
    }

    /// True or false.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn flag(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.get(key, "true or false", |value| match value {
            GgufValue::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A list of texts.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.get(key, "a list of texts", |value| match value {
            GgufValue::Strings(texts) => Some(texts.as_slice()),
            _ => None,
        })
    }

    /// A list of signed numbers of 32 bits.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn integers(&self, key: &str) -> Result<Option<&[i32]>, GgufError> {
        self.get(key, "a list of whole numbers", |value| match value {
            GgufValue::I32s(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A list of numbers in single precision.
    ///
    /// # Errors
    /// As [`GgufFile::text`].
    pub fn numbers(&self, key: &str) -> Result<Option<&[f32]>, GgufError> {
        self.get(key, "a list of numbers", |value| match value {
            GgufValue::F32s(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// A value that has to be there.
    ///
    /// # Errors
    /// [`GgufProblem::MissingKey`].
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| {
            let key = key.to_owned();
            self.problem(GgufProblem::MissingKey { key })
        })
    }

    /// The error that the value of a key makes no sense.
    pub fn invalid(&self, key: &str, problem: impl Into<String>) -> GgufError {
        self.problem(GgufProblem::InvalidValue {
            key: key.to_owned(),
            problem: problem.into(),
        })
    }

    /// The error that a tensor does not fit the metadata.
    pub fn invalid_tensor(&self, tensor: &str, problem: impl Into<String>) -> GgufError {
        self.problem(GgufProblem::InvalidTensor {
            tensor: tensor.to_owned(),
            problem: problem.into(),
        })
    }

    fn get<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        let wrong = || GgufProblem::WrongType {
            key: key.to_owned(),
            expected,
        };
        read(value).map(Some).ok_or_else(|| self.problem(wrong()))
    }

    fn problem(&self, problem: GgufProblem) -> GgufError {
        GgufError::Problem {
            path: self.path.clone(),
            problem: Box::new(problem),
        }
    }
}

/// The number of double precision that has the shortest decimal form of those which round to
/// `value`: what a program had that wrote 1e-5 in single precision.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// Why a header could not be read.
enum Failure {
    Io(io::Error),
    Problem(GgufProblem),
}

impl From<GgufProblem> for Failure {
    fn from(problem: GgufProblem) -> Self {
        Self::Problem(problem)
    }
}

/// A header that is being read.
struct Header<R> {
    from: R,
    /// Bytes of the file.
    length: u64,
    /// Bytes that were read.
    read: u64,
}

type Parsed = (BTreeMap<String, GgufValue>, Vec<GgufTensor>);

impl<R: Read> Header<R> {
    fn parse(&mut self) -> Result<Parsed, Failure> {
        self.start()?;
        let tensors = self.number(u64::from_le_bytes)?;
        let entries = self.number(u64::from_le_bytes)?;
        // A name's length, dimensions, type and place; a key's length, a type and a value.
        self.check_left(tensors, 24)?;
        self.check_left(entries, 13)?;
        let mut metadata = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for _ in 0..entries {
            let key = self.text("a key")?;
            let kind = self.number(u32::from_le_bytes)?;
            if !keys.insert(key.clone()) {
                return Err(GgufProblem::DuplicateKey { key }.into());
            }
            if let Some(value) = self.value(&key, kind, 0)? {
                metadata.insert(key, value);
            }
        }
        let alignment = match metadata.get("general.alignment") {
            None => ALIGNMENT,
            Some(&GgufValue::U32(it)) if it.is_power_of_two() => it.into(),
            Some(_) => {
                let key = "general.alignment".to_owned();
                let problem = "it is no power of two".to_owned();
                return Err(GgufProblem::InvalidValue { key, problem }.into());
            }
        };
        let mut infos = Vec::new();
        for _ in 0..tensors {
            infos.push(self.tensor(alignment)?);
        }
        let start = self.read.next_multiple_of(alignment);
        if !infos.is_empty() {
            self.check_left(start - self.read, 1)?;
        }
        let tensors = checked_tensors(infos, start, self.length)?;
        Ok((metadata, tensors))
    }

    /// The magic number and the version.
    fn start(&mut self) -> Result<(), Failure> {
        let mut beginning = [0; 64];
        let have = self.length.min(64) as usize;
        self.fill(&mut beginning[..MAGIC.len().min(have)])?;
        if &beginning[..4] != MAGIC {
            let rest = &mut beginning[MAGIC.len().min(have)..have];
            self.fill(rest)?;
            let kind = mistaken_file(&beginning[..have]);
            return Err(GgufProblem::OtherKind { kind }.into());
        }
        let version = self.number(u32::from_le_bytes)?;
        match version {
            2 | VERSION => Ok(()),
            found if found.swap_bytes() == VERSION => Err(GgufProblem::BigEndian.into()),
            found => Err(GgufProblem::Version { found }.into()),
        }
    }

    /// Reads bytes that the file has to have.
    fn fill(&mut self, to: &mut [u8]) -> Result<(), Failure> {
        self.check_left(to.len() as u64, 1)?;
        self.from.read_exact(to).map_err(Failure::Io)?;
        self.read += to.len() as u64;
        Ok(())
    }

    /// Checks that `count` elements of at least `size` bytes may follow.
    fn check_left(&self, count: u64, size: u64) -> Result<(), Failure> {
        let end = count
            .checked_mul(size)
            .and_then(|it| it.checked_add(self.read));
        match end {
            Some(end) if end <= self.length.min(LONGEST_HEADER) => Ok(()),
            Some(end) if end <= self.length => Err(GgufProblem::TooLarge {
                limit: LONGEST_HEADER,
            }
            .into()),
            _ => Err(GgufProblem::CutOff {
                length: self.length,
            }
            .into()),
        }
    }

    fn number<const N: usize, T>(&mut self, of: fn([u8; N]) -> T) -> Result<T, Failure> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(of(bytes))
    }

    fn text(&mut self, what: &str) -> Result<String, Failure> {
        let length = self.number(u64::from_le_bytes)?;
        self.check_left(length, 1)?;
        let mut bytes = vec![0; length as usize];
        self.fill(&mut bytes)?;
        String::from_utf8(bytes).map_err(|_| {
            let what = what.to_owned();
            GgufProblem::NotUtf8 { what }.into()
        })
    }

    fn numbers<const N: usize, T>(
        &mut self,
        count: u64,
        of: fn([u8; N]) -> T,
    ) -> Result<Vec<T>, Failure> {
        self.check_left(count, N as u64)?;
        (0..count).map(|_| self.number(of)).collect()
    }

    /// A value; none for a list of which nothing is read.
    fn value(&mut self, key: &str, kind: u32, depth: usize) -> Result<Option<GgufValue>, Failure> {
        Ok(Some(match kind {
            value_type::U8 => GgufValue::U32(self.number(u8::from_le_bytes)?.into()),
            value_type::I8 => GgufValue::I32(self.number(i8::from_le_bytes)?.into()),
            value_type::U16 => GgufValue::U32(self.number(u16::from_le_bytes)?.into()),
            value_type::I16 => GgufValue::I32(self.number(i16::from_le_bytes)?.into()),
            value_type::U32 => GgufValue::U32(self.number(u32::from_le_bytes)?),
            value_type::I32 => GgufValue::I32(self.number(i32::from_le_bytes)?),
            value_type::U64 => GgufValue::U64(self.number(u64::from_le_bytes)?),
            value_type::I64 => GgufValue::I64(self.number(i64::from_le_bytes)?),
            value_type::F32 => GgufValue::F32(self.number(f32::from_le_bytes)?),
            value_type::F64 => GgufValue::F64(self.number(f64::from_le_bytes)?),
            value_type::BOOL => GgufValue::Bool(self.number(u8::from_le_bytes)? != 0),
            value_type::STRING => GgufValue::String(self.text(&format!("`{key}`"))?),
            value_type::ARRAY => return self.array(key, depth),
            found => {
                let key = key.to_owned();
                return Err(GgufProblem::ValueType { key, found }.into());
            }
        }))
    }

    fn array(&mut self, key: &str, depth: usize) -> Result<Option<GgufValue>, Failure> {
        let kind = self.number(u32::from_le_bytes)?;
        let count = self.number(u64::from_le_bytes)?;
        match kind {
            value_type::STRING => {
                self.check_left(count, 8)?;
                let what = format!("`{key}`");
                let texts = (0..count).map(|_| self.text(&what));
                Ok(Some(GgufValue::Strings(texts.collect::<Result<_, _>>()?)))
            }
            value_type::I32 => {
                let values = self.numbers(count, i32::from_le_bytes)?;
                Ok(Some(GgufValue::I32s(values)))
            }
            value_type::F32 => {
                let values = self.numbers(count, f32::from_le_bytes)?;
                Ok(Some(GgufValue::F32s(values)))
            }
            value_type::ARRAY if depth == DEEPEST_ARRAY => {
                let problem = "its lists are nested too deeply".to_owned();
                let key = key.to_owned();
                Err(GgufProblem::InvalidValue { key, problem }.into())
            }
            kind => {
                self.check_left(count, 1)?;
                for _ in 0..count {
                    self.value(key, kind, depth + 1)?;
                }
                Ok(None)
            }
        }
    }

    /// A tensor, with the offset of its data in place of its bytes' start.
    fn tensor(&mut self, alignment: u64) -> Result<GgufTensor, Failure> {
        let name = self.text("the name of a tensor")?;
        let dimensions = self.number(u32::from_le_bytes)?;
        if dimensions > MOST_DIMENSIONS {
            let tensor = name;
            return Err(GgufProblem::Dimensions { tensor, dimensions }.into());
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            shape.push(self.number(u64::from_le_bytes)?);
        }
        shape.reverse();
        let number = self.number(u32::from_le_bytes)?;
        let tensor_type = TensorType::of_number(number).map_err(|found| {
            let tensor = name.clone();
            GgufProblem::TensorType { tensor, found }
        })?;
        let offset = self.number(u64::from_le_bytes)?;
        let wrong_size = || GgufProblem::Size {
            tensor: name.clone(),
            tensor_type: tensor_type.name(),
            shape: shape.clone(),
        };
        let columns = shape.last().copied().unwrap_or(1);
        if !columns.is_multiple_of(tensor_type.block_values() as u64) {
            return Err(wrong_size().into());
        }
        let blocks = columns / tensor_type.block_values() as u64;
        let rows = shape.iter().rev().skip(1);
        let bytes = rows
            .chain([&blocks])
            .try_fold(tensor_type.block_bytes() as u64, |bytes, &size| {
                bytes.checked_mul(size)
            });
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        let end = end.and_then(|end| usize::try_from(end).ok());
        let sizes: Result<Vec<usize>, _> = shape.iter().map(|&it| usize::try_from(it)).collect();
        let (Some(end), Ok(sizes)) = (end, sizes) else {
            return Err(wrong_size().into());
        };
        if !offset.is_multiple_of(alignment) {
            let tensor = name;
            return Err(GgufProblem::NotAligned { tensor, offset }.into());
        }
        Ok(GgufTensor {
            name,
            shape: sizes,
            tensor_type,
            bytes: offset as usize..end,
        })
    }
}

/// Moves offsets to where the data starts in the file, and checks that names are unique and that
/// the tensors lie in the file without sharing bytes.
fn checked_tensors(
    mut tensors: Vec<GgufTensor>,
    start: u64,
    length: u64,
) -> Result<Vec<GgufTensor>, GgufProblem> {
    let available = length.saturating_sub(start) as usize;
    let mut names = BTreeSet::new();
    for tensor in &mut tensors {
        let name = tensor.name.clone();
        if !names.insert(name.clone()) {
            return Err(GgufProblem::DuplicateTensor { tensor: name });
        }
        if tensor.bytes.end > available {
            return Err(GgufProblem::OutOfRange {
                tensor: name,
                end: tensor.bytes.end,
                available,
            });
        }
        let place = |at: usize| at + start as usize;
        tensor.bytes = place(tensor.bytes.start)..place(tensor.bytes.end);
    }
    let mut in_order: Vec<&GgufTensor> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    for pair in in_order.windows(2) {
        if pair[1].bytes.start < pair[0].bytes.end {
            let [first, second] = [0, 1].map(|at| pair[at].name.clone());
            return Err(GgufProblem::Overlap { first, second });
        }
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file with two entries and two tensors, one of them of 32 values in blocks.
    fn file() -> Vec<u8> {
        let mut bytes = b"GGUF\x03\0\0\0".to_vec();
        let number = |bytes: &mut Vec<u8>, it: u64| bytes.extend(it.to_le_bytes());
        let text = |bytes: &mut Vec<u8>, it: &str| {
            number(bytes, it.len() as u64);
            bytes.extend(it.as_bytes());
        };
        number(&mut bytes, 2);
        number(&mut bytes, 3);
        text(&mut bytes, "a");
        bytes.extend(value_type::STRING.to_le_bytes());
        text(&mut bytes, "llama");
        text(&mut bytes, "list");
        bytes.extend(
            [value_type::ARRAY, value_type::STRING]
                .map(u32::to_le_bytes)
                .concat(),
        );
        number(&mut bytes, 2);
        text(&mut bytes, "x");
        text(&mut bytes, "yz");
        text(&mut bytes, "flags");
        bytes.extend(
            [value_type::ARRAY, value_type::BOOL]
                .map(u32::to_le_bytes)
                .concat(),
        );
        number(&mut bytes, 3);
        bytes.extend([1, 0, 1]);
        for (name, shape, kind, offset) in [("m", &[32, 2][..], 2u32, 0), ("v", &[3], 0, 64)] {
            text(&mut bytes, name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().for_each(|size| number(&mut bytes, *size));
            bytes.extend(kind.to_le_bytes());
            number(&mut bytes, offset);
        }
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.resize(bytes.len() + 64 + 12, 7);
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Parsed, GgufProblem> {
        let mut header = Header {
            from: bytes,
            length: bytes.len() as u64,
            read: 0,
        };
        header.parse().map_err(|failure| match failure {
            Failure::Io(error) => panic!("{error}"),
            Failure::Problem(problem) => problem,
        })
    }

    /// The file with `new` in the place of the first `old`.
    fn with(old: &[u8], new: &[u8]) -> GgufProblem {
        let mut bytes = file();
        let at = bytes.windows(old.len()).position(|it| it == old).unwrap();
        bytes.splice(at..at + old.len(), new.iter().copied());
        parse(&bytes).unwrap_err()
    }

    #[test]
    fn a_header_is_read() {
        let bytes = file();
        let (metadata, tensors) = parse(&bytes).unwrap();
        assert_eq!(metadata["a"], GgufValue::String("llama".to_owned()));
        let list = GgufValue::Strings(vec!["x".to_owned(), "yz".to_owned()]);
        assert_eq!(metadata["list"], list);
        assert!(!metadata.contains_key("flags"));
        let end = bytes.len();
        assert_eq!(tensors[0].shape, [2, 32]);
        assert_eq!(tensors[0].tensor_type, TensorType::Q4_0);
        assert_eq!(tensors[0].bytes, end - 76..end - 40);
        assert_eq!(tensors[1].bytes, end - 12..end);
        assert!(bytes[tensors[1].bytes.clone()].iter().all(|it| *it == 7));
    }

    #[test]
    fn each_problem_is_named() {
        let text = |problem: GgufProblem| problem.to_string();
        assert!(matches!(
            with(b"GGUF", b"GGML"),
            GgufProblem::OtherKind { kind: None }
        ));
        assert!(text(with(b"GGUF", b"<!do")).contains("web page"));
        assert_eq!(
            with(b"\x03\0\0\0", b"\x01\0\0\0"),
            GgufProblem::Version { found: 1 }
        );
        assert_eq!(with(b"\x03\0\0\0", b"\0\0\0\x03"), GgufProblem::BigEndian);
        let key = "a".to_owned();
        let found = with(b"a\x08\0\0\0", b"a\x63\0\0\0");
        assert_eq!(found, GgufProblem::ValueType { key, found: 99 });
        let key = "a".to_owned();
        let list = b"\x04\0\0\0\0\0\0\0list\x09\0\0\0";
        let again = b"\x01\0\0\0\0\0\0\0a\x09\0\0\0";
        assert_eq!(with(list, again), GgufProblem::DuplicateKey { key });
        assert!(text(with(b"llama", b"\xff\xfflam")).contains("`a` is not UTF-8"));
        // Lengths and counts that the file cannot have.
        let long = [b"a\x08\0\0\0".to_vec(), vec![0xff; 8]].concat();
        let cut = with(b"a\x08\0\0\0\x05\0\0\0\0\0\0\0", &long);
        assert!(matches!(cut, GgufProblem::CutOff { .. }), "{cut}");
        let cut = with(
            b"GGUF\x03\0\0\0\x02\0\0\0\0",
            b"GGUF\x03\0\0\0\x02\0\0\0\x80",
        );
        assert!(matches!(cut, GgufProblem::CutOff { .. }), "{cut}");
        // Tensors.
        let tensor = || "v".to_owned();
        let info = |sizes: u8, size: &[u8; 8], kind: u8, offset: u8| {
            let start = [b"v".as_slice(), &[sizes, 0, 0, 0], size].concat();
            [&start[..], &[kind, 0, 0, 0, offset, 0, 0, 0, 0, 0, 0, 0]].concat()
        };
        let three = 3u64.to_le_bytes();
        let own = info(1, &three, 0, 64);
        let found = with(&own, &info(5, &three, 0, 64));
        assert!(
            matches!(found, GgufProblem::Dimensions { dimensions: 5, .. }),
            "{found}"
        );
        let found = with(&own, &info(1, &three, 23, 64));
        assert!(text(found).contains("IQ4_XS"));
        let found = with(&own, &info(1, &three, 8, 64));
        assert!(matches!(found, GgufProblem::Size { .. }), "{found}");
        let found = with(&own, &info(1, &[0xff; 8], 0, 64));
        assert!(matches!(found, GgufProblem::Size { .. }), "{found}");
        let found = with(&own, &info(1, &three, 0, 65));
        assert_eq!(
            found,
            GgufProblem::NotAligned {
                tensor: tensor(),
                offset: 65
            }
        );
        let found = with(&own, &info(1, &three, 0, 96));
        let (end, available) = (108, 76);
        assert_eq!(
            found,
            GgufProblem::OutOfRange {
                tensor: tensor(),
                end,
                available
            }
        );
        let found = with(&own, &info(1, &three, 0, 32));
        assert!(matches!(found, GgufProblem::Overlap { .. }), "{found}");
        let mut renamed = own.clone();
        renamed[0] = b'm';
        let found = with(&own, &renamed);
        assert!(
            matches!(found, GgufProblem::DuplicateTensor { .. }),
            "{found}"
        );
    }

    #[test]
    fn a_file_is_refused_at_any_length() {
        let bytes = file();
        for length in 0..bytes.len() {
            assert!(parse(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn numbers_are_those_that_were_written() {
        assert_eq!(shortest(1e-5), 1e-5);
        assert_eq!(shortest(10_000.0), 10_000.0);
        assert_eq!(shortest(0.3), 0.3);
    }

    proptest! {
        #[test]
        fn damaged_files_do_not_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            length in any::<prop::sample::Index>(),
        ) {
            let mut bytes = file();
            for (at, byte) in edits {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            let _ = parse(&bytes);
            bytes.truncate(length.index(bytes.len()));
            let _ = parse(&bytes);
        }
    }
}
