//! The run's log as JSON Lines: one object per line, one line per logged step or evaluation.
//!
//! ```text
//! {"event":"step","step":10,"epoch":0.05,"loss":0.69,"learning_rate":0.001,"gradient_norm":1.2,"tokens_per_second":5100.0,"elapsed":4.1}
//! {"event":"evaluation","step":100,"epoch":0.5,"metrics":{"accuracy":0.81,"loss":0.44},"is_best":true,"elapsed":43.0}
//! ```
//!
//! A line is written in one piece when it is appended, so that a kill loses at most the line it
//! tears. [`Journal::resume`] cuts the file back to the step of the checkpoint from which a run
//! goes on: steps that are trained again are not logged twice. For that the trainer appends
//! everything about a step, its evaluation too, and calls [`Journal::sync`], before it saves the
//! checkpoint of that step.
//!
//! NaN and the infinities, which JSON does not have, are written as `null` and read back as NaN.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use epiphyte_io::FileError;
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::JournalError;
use crate::scoring::metrics::Metrics;

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Record {
    /// An optimizer step, or the mean over those since the last such line.
    Step(StepRecord),
    /// An evaluation.
    Evaluation(EvaluationRecord),
}

/// What is logged about training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Passes over the training data done, with their fraction.
    pub epoch: f64,
    /// The training loss.
    #[serde(deserialize_with = "nan_from_null")]
    pub loss: f64,
    /// The learning rate that this step used.
    pub learning_rate: f64,
    /// The Euclidean norm of all gradients together, before clipping.
    #[serde(deserialize_with = "nan_from_null")]
    pub gradient_norm: f64,
    /// Tokens trained on per second.
    #[serde(deserialize_with = "nan_from_null")]
    pub tokens_per_second: f64,
    /// Seconds of training so far, those before a resume included.
    pub elapsed: f64,
}

/// What is logged about an evaluation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Optimizer steps done before it.
    pub step: u64,
    /// Passes over the training data done, with their fraction.
    pub epoch: f64,
    /// The scores on the evaluation data.
    pub metrics: Metrics,
    /// Whether it is the best one so far.
    pub is_best: bool,
    /// Seconds of training so far, those before a resume included.
    pub elapsed: f64,
}

impl Record {
    /// The optimizer step that the record is about.
    #[must_use]
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(record) => record.step,
            Self::Evaluation(record) => record.step,
        }
    }
}

fn nan_from_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// A journal that is being written.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Begins a new journal, in the place of any that stands at `path`.
    ///
    /// # Errors
    /// [`FileError`] if the file cannot be created, or a link is in its place.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        epiphyte_io::refuse_link(path)?;
        let file = File::create(path).map_err(FileError::at("create", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Goes on with the journal at `path` as it was after optimizer step `step`: later records and
    /// a last line torn by a kill are cut off. Begins a new one if there is none.
    ///
    /// # Errors
    /// [`JournalError::InvalidLine`] if a line other than a torn last one is no record, or
    /// [`JournalError::File`].
    pub fn resume(path: &Path, step: u64) -> Result<Self, JournalError> {
        epiphyte_io::refuse_link(path)?;
        let mut length = 0;
        if path.exists() {
            for line in Lines::of(&read_text(path)?, path) {
                let (end, record) = line?;
                if record.step() > step {
                    break;
                }
                length = end;
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(FileError::at("open", path))?;
        file.set_len(length as u64)
            .map_err(FileError::at("shorten", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
        })
    }

    /// Appends a line, at once and in one piece.
    ///
    /// # Errors
    /// [`FileError`] if the line cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<(), FileError> {
        let mut line = serde_json::to_vec(record)
            .map_err(|error| FileError::new("write", &self.path, error.into()))?;
        line.push(b'\n');
        self.file
            .write_all(&line)
            .map_err(FileError::at("write", &self.path))
    }

    /// Forces what was appended to the disk, so that a checkpoint never outlives its log in a power
    /// cut.
    ///
    /// # Errors
    /// [`FileError`] if the system reports that it could not.
    pub fn sync(&self) -> Result<(), FileError> {
        self.file
            .sync_all()
            .map_err(FileError::at("write", &self.path))
    }
}

/// The records of the journal at `path`, without a last line that is torn.
///
/// # Errors
/// [`JournalError::InvalidLine`] if another line is no record, or [`JournalError::File`].
pub fn read(path: &Path) -> Result<Vec<Record>, JournalError> {
    Lines::of(&read_text(path)?, path)
        .map(|line| Ok(line?.1))
        .collect()
}

fn read_text(path: &Path) -> Result<Vec<u8>, FileError> {
    epiphyte_io::read_regular(path).map_err(FileError::at("read", path))
}

/// Walks the complete lines of a journal: for each, the offset of its end and its record.
struct Lines<'a> {
    text: &'a [u8],
    path: &'a Path,
    position: usize,
    line: usize,
}

impl<'a> Lines<'a> {
    fn of(text: &'a [u8], path: &'a Path) -> Self {
        Self {
            text,
            path,
            position: 0,
            line: 0,
        }
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<(usize, Record), JournalError>;

    fn next(&mut self) -> Option<Self::Item> {
        // A line without its end was torn by a kill, and is never followed by another.
        let rest = &self.text[self.position..];
        let length = rest.iter().position(|&byte| byte == b'\n')?;
        self.position += length + 1;
        self.line += 1;
        let record =
            serde_json::from_slice(&rest[..length]).map_err(|source| JournalError::InvalidLine {
                path: self.path.to_path_buf(),
                line: self.line,
                source,
            });
        Some(record.map(|record| (self.position, record)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn step(step: u64) -> Record {
        Record::Step(StepRecord {
            step,
            epoch: step as f64 / 7.0,
            loss: 1.0 / (step as f64 + 0.3),
            learning_rate: 1e-3,
            gradient_norm: 0.5,
            tokens_per_second: 5100.25,
            elapsed: step as f64 * 0.1,
        })
    }

    fn evaluation(step: u64) -> Record {
        let metrics = Metrics::from_iter([("accuracy", 0.8), ("loss", 0.1 * step as f64)]);
        let epoch = step as f64 / 7.0;
        Record::Evaluation(EvaluationRecord {
            step,
            epoch,
            metrics,
            is_best: true,
            elapsed: 2.5,
        })
    }

    fn append_all(journal: &mut Journal, records: &[Record]) {
        for record in records {
            journal.append(record).unwrap();
        }
    }

    #[test]
    fn a_line_is_one_flat_object() {
        let line = serde_json::to_value(step(1)).unwrap();
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            [
                "event",
                "step",
                "epoch",
                "loss",
                "learning_rate",
                "gradient_norm",
                "tokens_per_second",
                "elapsed"
            ]
        );
        assert_eq!(line["event"], "step");
        assert_eq!(
            serde_json::to_value(evaluation(1)).unwrap()["metrics"]["accuracy"],
            0.8
        );
    }

    #[test]
    fn a_step_without_a_number_is_written_and_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        let Record::Step(mut record) = step(1) else {
            unreachable!()
        };
        record.loss = f64::NAN;
        Journal::create(&path)
            .unwrap()
            .append(&Record::Step(record))
            .unwrap();
        let records = read(&path).unwrap();
        assert!(matches!(&records[..], [Record::Step(record)] if record.loss.is_nan()));
    }

    #[test]
    fn a_bad_line_that_is_not_the_last_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        append_all(&mut Journal::create(&path).unwrap(), &[step(1)]);
        let good = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{good}{{\"event\":\"st\n{good}")).unwrap();
        for error in [
            read(&path).unwrap_err(),
            Journal::resume(&path, 5).unwrap_err(),
        ] {
            assert!(
                matches!(error, JournalError::InvalidLine { line: 2, .. }),
                "{error:?}"
            );
        }
    }

    #[test]
    fn a_missing_journal_is_begun_by_resume_and_refused_by_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log.jsonl");
        assert!(matches!(
            read(&path),
            Err(JournalError::File(FileError::Io { action: "read", .. }))
        ));
        append_all(&mut Journal::resume(&path, 3).unwrap(), &[step(4)]);
        assert_eq!(read(&path).unwrap(), [step(4)]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// A run of `total` steps with an evaluation every third, killed with `logged` steps and a
        /// part of the next line in the log, resumed from the checkpoint of step `saved`.
        #[test]
        fn a_killed_and_resumed_journal_equals_an_uninterrupted_one(
            total in 1_u64..20,
            logged in 0_u64..20,
            saved in 0_u64..20,
            torn in 0_usize..200,
        ) {
            let logged = logged.min(total);
            let saved = saved.min(logged);
            let records = |steps: std::ops::RangeInclusive<u64>| -> Vec<Record> {
                steps.flat_map(|number| {
                    let evaluation = (number % 3 == 0).then(|| evaluation(number));
                    [step(number)].into_iter().chain(evaluation)
                }).collect()
            };
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log.jsonl");
            append_all(&mut Journal::create(&path).unwrap(), &records(1..=logged));
            let next = serde_json::to_vec(&step(logged + 1)).unwrap();
            let mut file = OpenOptions::new().append(true).open(&path).unwrap();
            file.write_all(&next[..torn.min(next.len())]).unwrap();
            prop_assert_eq!(read(&path).unwrap(), records(1..=logged));

            let mut journal = Journal::resume(&path, saved).unwrap();
            append_all(&mut journal, &records(saved + 1..=total));
            journal.sync().unwrap();
            prop_assert_eq!(read(&path).unwrap(), records(1..=total));
        }
    }
}
