//! TensorBoard event files: `tensorboard --logdir OUTPUT` shows a run while it trains.
//!
//! Three formats, one inside the other, all written by hand because the subset is small:
//!
//! - a *record* is TFRecord framing (tensorflow/core/lib/io/record_writer.h): the length as 8
//!   bytes, the masked CRC-32C of these bytes, the data, the masked CRC-32C of the data, all
//!   little-endian;
//! - its data is an `Event` protocol buffer (tensorflow/core/util/event.proto): wall time, step,
//!   and a `Summary`, a file version or a session log;
//! - a `Summary` (tensorflow/core/framework/summary.proto) holds tagged values: scalars as
//!   `simple_value`, text as a string tensor of the `text` plugin under `<tag>/text_summary`, both
//!   as PyTorch's `SummaryWriter` writes them.
//!
//! Every call is one record in one system call, so a kill tears at most the last record, which
//! readers skip. A resumed run begins a file of its own, which first tells TensorBoard to forget
//! the steps after the one it resumes from.
//!
//! ```
//! use epiphyte_train::report::tensorboard::EventWriter;
//!
//! let directory = tempfile::tempdir()?;
//! let mut events = EventWriter::create(directory.path())?;
//! events.text("command", 0, "`epiphyte train --method lora`")?;
//! events.scalars(10, [("train/loss", 0.69), ("train/learning_rate", 1e-3)])?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod protobuf;

use std::env;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::time::{SystemTime, UNIX_EPOCH};

use epiphyte_io::FileError;
use protobuf::Message;

/// Begins the name of every event file; TensorBoard looks for `tfevents`.
const PREFIX: &str = "events.out.tfevents.";

/// Writes one event file, `events.out.tfevents.<seconds>.<host>.<process>`.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Begins an event file in `directory`, creating the directory where needed.
    ///
    /// # Errors
    /// [`FileError`] if the directory or the file cannot be created, or a link is in its place.
    pub fn create(directory: &Path) -> Result<Self, FileError> {
        epiphyte_io::refuse_link(directory)?;
        fs::create_dir_all(directory).map_err(FileError::at("create", directory))?;
        let seconds = next_seconds(directory)?;
        let path = directory.join(format!("{PREFIX}{seconds}.{}.{}", host(), process::id()));
        let file = File::create_new(&path).map_err(FileError::at("create", &path))?;
        let mut writer = Self { path, file };
        writer.write(
            0,
            &Message::default().string(event::FILE_VERSION, "brain.Event:2"),
        )?;
        Ok(writer)
    }

    /// Begins a further event file for a run that goes on after optimizer step `step`: what earlier
    /// files in `directory` say about later steps is no longer shown.
    ///
    /// # Errors
    /// [`FileError`] if the directory or the file cannot be created.
    pub fn resume(directory: &Path, step: u64) -> Result<Self, FileError> {
        const SESSION_LOG_STATUS: u32 = 1;
        const SESSION_LOG_START: u64 = 1;
        let mut writer = Self::create(directory)?;
        let start = Message::default().integer(SESSION_LOG_STATUS, SESSION_LOG_START);
        writer.write(
            step + 1,
            &Message::default().message(event::SESSION_LOG, &start),
        )?;
        Ok(writer)
    }

    /// Writes the scalars of one step, named by tags such as `train/loss`; stored in single
    /// precision.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written.
    pub fn scalars<'a>(
        &mut self,
        step: u64,
        scalars: impl IntoIterator<Item = (&'a str, f64)>,
    ) -> Result<(), FileError> {
        let summary = scalars
            .into_iter()
            .fold(Message::default(), |summary, (tag, value)| {
                summary.message(summary::VALUE, &scalar_value(tag, value as f32))
            });
        self.write(step, &Message::default().message(event::SUMMARY, &summary))
    }

    /// Writes a text in Markdown, shown by TensorBoard's text tab under `tag`.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be written.
    pub fn text(&mut self, tag: &str, step: u64, markdown: &str) -> Result<(), FileError> {
        let summary = Message::default().message(summary::VALUE, &text_value(tag, markdown));
        self.write(step, &Message::default().message(event::SUMMARY, &summary))
    }

    fn write(&mut self, step: u64, content: &Message) -> Result<(), FileError> {
        let wall_time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let record = record(event(wall_time.as_secs_f64(), step, content).as_bytes());
        self.file
            .write_all(&record)
            .map_err(FileError::at("write", &self.path))
    }
}

/// The time in seconds, but later than in the name of any event file of `directory`: TensorBoard
/// reads files in the order of their names, and a run may be resumed within a second.
fn next_seconds(directory: &Path) -> Result<u64, FileError> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut seconds = now;
    for entry in fs::read_dir(directory).map_err(FileError::at("read", directory))? {
        let name = entry.map_err(FileError::at("read", directory))?.file_name();
        let taken = name
            .to_str()
            .and_then(|name| name.strip_prefix(PREFIX)?.split('.').next()?.parse().ok());
        seconds = seconds.max(taken.map_or(0, |taken: u64| taken.saturating_add(1)));
    }
    Ok(seconds)
}

/// The machine's name as far as the standard library can find it out, fit for a file name.
fn host() -> String {
    let from_kernel = fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = from_kernel.or_else(|| {
        env::var("HOSTNAME")
            .or_else(|_| env::var("COMPUTERNAME"))
            .ok()
    });
    let name: String = name
        .unwrap_or_default()
        .trim()
        .chars()
        .map(|character| {
            if character.is_ascii_alphanumeric() || character == '.' {
                character
            } else {
                '-'
            }
        })
        .collect();
    if name.is_empty() {
        "localhost".to_owned()
    } else {
        name
    }
}

/// Frames `data` as a TFRecord.
fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), data, &masked_crc(data)].concat()
}

/// CRC-32C, rotated and shifted by a constant, so that a checksum over data that itself holds
/// checksums stays useful (tensorflow/core/lib/hash/crc32c.h).
fn masked_crc(data: &[u8]) -> [u8; 4] {
    crc32c::crc32c(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

/// Field numbers of `Event`.
mod event {
    pub(super) const WALL_TIME: u32 = 1;
    pub(super) const STEP: u32 = 2;
    pub(super) const FILE_VERSION: u32 = 3;
    pub(super) const SUMMARY: u32 = 5;
    pub(super) const SESSION_LOG: u32 = 7;
}

/// Field numbers of `Summary` and `Summary.Value`.
mod summary {
    pub(super) const VALUE: u32 = 1;
    pub(super) const TAG: u32 = 1;
    pub(super) const SIMPLE_VALUE: u32 = 2;
    pub(super) const TENSOR: u32 = 8;
    pub(super) const METADATA: u32 = 9;
}

/// Field numbers of `SummaryMetadata` and `SummaryMetadata.PluginData`.
mod metadata {
    pub(super) const PLUGIN_DATA: u32 = 1;
    pub(super) const PLUGIN_NAME: u32 = 1;
}

/// Field numbers of `TensorProto`, `TensorShapeProto` and `TensorShapeProto.Dim`.
mod tensor {
    pub(super) const TYPE: u32 = 1;
    pub(super) const TYPE_STRING: u64 = 7;
    pub(super) const SHAPE: u32 = 2;
    pub(super) const SHAPE_DIMENSION: u32 = 2;
    pub(super) const DIMENSION_SIZE: u32 = 1;
    pub(super) const STRING_VALUE: u32 = 8;
}

/// An `Event` around one content field; the wall time is in seconds since 1970.
fn event(wall_time: f64, step: u64, content: &Message) -> Message {
    Message::default()
        .double(event::WALL_TIME, wall_time)
        .integer(event::STEP, step)
        .append(content)
}

fn scalar_value(tag: &str, value: f32) -> Message {
    Message::default()
        .string(summary::TAG, tag)
        .float(summary::SIMPLE_VALUE, value)
}

fn text_value(tag: &str, markdown: &str) -> Message {
    let plugin = Message::default().string(metadata::PLUGIN_NAME, "text");
    let length_one = Message::default().integer(tensor::DIMENSION_SIZE, 1);
    let tensor = Message::default()
        .integer(tensor::TYPE, tensor::TYPE_STRING)
        .message(
            tensor::SHAPE,
            &Message::default().message(tensor::SHAPE_DIMENSION, &length_one),
        )
        .string(tensor::STRING_VALUE, markdown);
    Message::default()
        .string(summary::TAG, &format!("{tag}/text_summary"))
        .message(summary::TENSOR, &tensor)
        .message(
            summary::METADATA,
            &Message::default().message(metadata::PLUGIN_DATA, &plugin),
        )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use proptest::prelude::*;
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    /// CRC-32C bit by bit, as the definition has it (Castagnoli, reflected).
    fn slow_crc(data: &[u8]) -> u32 {
        !data.iter().fold(!0_u32, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
            })
        })
    }

    /// The data of every whole record, each checked against both of its checksums.
    fn read_records(mut file: &[u8]) -> Vec<Vec<u8>> {
        let check = |data: &[u8], stored: &[u8]| {
            let masked = u32::from_le_bytes(stored.try_into().unwrap());
            assert_eq!(
                masked.wrapping_sub(0xa282_ead8).rotate_left(15),
                slow_crc(data)
            );
        };
        let mut records = Vec::new();
        while file.len() >= 12 {
            check(&file[..8], &file[8..12]);
            let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
            let Some(rest) = file.get(12 + length + 4..) else {
                break;
            };
            let data = &file[12..12 + length];
            check(data, &file[12 + length..12 + length + 4]);
            records.push(data.to_vec());
            file = rest;
        }
        records
    }

    /// The fields of a message as (number, payload); an integer's payload is its eight bytes.
    fn read_fields(mut message: &[u8]) -> Vec<(u32, Vec<u8>)> {
        fn varint(message: &mut &[u8]) -> u64 {
            let length = message.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let (bytes, rest) = message.split_at(length);
            *message = rest;
            bytes
                .iter()
                .rev()
                .fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f))
        }
        let mut fields = Vec::new();
        while !message.is_empty() {
            let key = varint(&mut message) as u32;
            let size = match key & 7 {
                0 => {
                    let value = varint(&mut message);
                    fields.push((key >> 3, value.to_le_bytes().to_vec()));
                    continue;
                }
                1 => 8,
                2 => varint(&mut message) as usize,
                5 => 4,
                other => panic!("wire type {other}"),
            };
            let (payload, rest) = message.split_at(size);
            fields.push((key >> 3, payload.to_vec()));
            message = rest;
        }
        fields
    }

    fn event_files(directory: &Path) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        // The catalogues' check value of CRC-32C, and the first example of RFC 3720, section B.4.
        assert_eq!(slow_crc(b"123456789"), 0xe306_9283);
        assert_eq!(slow_crc(&[0; 32]), 0x8a91_36aa);
        let masked = 0xe306_9283_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(masked_crc(b"123456789"), masked.to_le_bytes());
    }

    #[derive(Deserialize)]
    struct Golden {
        wall_time: f64,
        file_version: String,
        session_start: String,
        scalars: String,
        text: String,
    }

    #[test]
    fn records_are_byte_for_byte_those_of_the_tensorboard_package() {
        let golden: Golden =
            serde_json::from_str(include_str!("../../tests/golden_events.json")).unwrap();
        let hex = |step, field, content: &Message| -> String {
            let event = event(
                golden.wall_time,
                step,
                &Message::default().message(field, content),
            );
            record(event.as_bytes())
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect()
        };
        let version = Message::default().bytes(b"brain.Event:2");
        assert_eq!(hex(0, event::FILE_VERSION, &version), golden.file_version);
        assert_eq!(
            hex(301, event::SESSION_LOG, &Message::default().integer(1, 1)),
            golden.session_start
        );
        let scalars = Message::default()
            .message(summary::VALUE, &scalar_value("train/loss", 0.7))
            .message(summary::VALUE, &scalar_value("train/learning_rate", 0.0));
        assert_eq!(hex(300, event::SUMMARY, &scalars), golden.scalars);
        let text = Message::default()
            .message(summary::VALUE, &text_value("command", "`épiphyte` *train*"));
        assert_eq!(hex(1 << 40, event::SUMMARY, &text), golden.text);
    }

    #[test]
    fn a_file_begins_with_its_version_and_has_every_scalar() {
        let directory = tempfile::tempdir().unwrap();
        let mut events = EventWriter::create(directory.path()).unwrap();
        events.scalars(7, [("a", 0.5), ("b", f64::NAN)]).unwrap();
        let files = event_files(directory.path());
        let name = files[0].file_name().unwrap().to_str().unwrap().to_owned();
        assert!(
            name.starts_with(PREFIX) && name.ends_with(&format!(".{}", process::id())),
            "{name}"
        );

        let records = read_records(&fs::read(&files[0]).unwrap());
        assert_eq!(records.len(), 2);
        assert_eq!(read_fields(&records[0])[1], (3, b"brain.Event:2".to_vec()));
        let fields = read_fields(&records[1]);
        assert_eq!(fields[0].0, 1);
        assert_eq!(fields[1], (2, 7_u64.to_le_bytes().to_vec()));
        let values: Vec<_> = read_fields(&fields[2].1)
            .iter()
            .map(|(_, value)| read_fields(value))
            .collect();
        assert_eq!(
            values[0],
            [(1, b"a".to_vec()), (2, 0.5_f32.to_le_bytes().to_vec())]
        );
        assert_eq!(values[1][0], (1, b"b".to_vec()));
    }

    #[test]
    fn files_of_one_second_have_names_in_the_order_of_their_creation() {
        let directory = tempfile::tempdir().unwrap();
        let created: Vec<PathBuf> = (0..3)
            .map(|step| EventWriter::resume(directory.path(), step).unwrap().path)
            .collect();
        assert_eq!(event_files(directory.path()), created);
    }

    /// A run of 5 steps that is killed while it writes the fifth, and resumed from step 3.
    fn write_killed_and_resumed(directory: &Path) {
        let mut events = EventWriter::create(directory).unwrap();
        events.text("command", 0, "épiphyte | train").unwrap();
        for step in 1..=5 {
            events
                .scalars(
                    step,
                    [("train/loss", 1.0 / step as f64), ("first/only", 1.0)],
                )
                .unwrap();
        }
        let length = events.file.metadata().unwrap().len();
        events.file.set_len(length - 9).unwrap();
        let mut events = EventWriter::resume(directory, 3).unwrap();
        for step in 4..=6 {
            events
                .scalars(step, [("train/loss", 10.0 * step as f64)])
                .unwrap();
        }
    }

    #[test]
    fn a_torn_record_costs_nothing_but_itself() {
        let directory = tempfile::tempdir().unwrap();
        write_killed_and_resumed(directory.path());
        let files = event_files(directory.path());
        let counts = files
            .iter()
            .map(|file| read_records(&fs::read(file).unwrap()).len());
        assert_eq!(Vec::from_iter(counts), [6, 5]);
    }

    /// Needs a Python with the packages that `tests/read_events.py` names.
    #[test]
    #[ignore = "needs EPIPHYTE_PYTHON"]
    fn tensorboard_reads_a_killed_and_resumed_run() {
        let python = env::var("EPIPHYTE_PYTHON").expect("a Python that has tensorboard");
        let directory = tempfile::tempdir().unwrap();
        write_killed_and_resumed(directory.path());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/read_events.py");
        let output = Command::new(python)
            .arg(script)
            .arg(directory.path())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let read: Value = serde_json::from_slice(&output.stdout).unwrap();
        let third = f64::from(1.0_f32 / 3.0);
        let expected = json!({
            "scalars": {
                "train/loss": [[1, 1.0], [2, 0.5], [3, third], [4, 40.0], [5, 50.0], [6, 60.0]],
                "first/only": [[1, 1.0], [2, 1.0], [3, 1.0]],
            },
            "texts": { "command/text_summary": [[0, "épiphyte | train"]] },
        });
        assert_eq!(read, expected);
    }

    proptest! {
        #[test]
        fn records_and_fields_are_read_back(data: Vec<u8>, integer in 1_u64.., text: String, field in 1_u32..2000) {
            prop_assert_eq!(read_records(&record(&data)), [data]);
            let message = Message::default().integer(field, integer).string(field, &text);
            let expected = [(field, integer.to_le_bytes().to_vec()), (field, text.into_bytes())];
            prop_assert_eq!(read_fields(message.as_bytes()), expected);
        }
    }
}
