//! Data sets of the field as they come: their files, columns, classes and score.
//!
//! `--task glue/rte --train-data DIR` stands for the settings of its entry. The order of classes is
//! that of Hugging Face's `datasets`, which the field's checkpoints have.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A data set that a task is trained and scored on.
#[derive(Debug)]
pub struct Preset {
    /// Its name, `benchmark/task`.
    pub name: &'static str,
    /// The task.
    pub task: &'static str,
    /// The column of the text, or two.
    pub text_columns: &'static [&'static str],
    /// The columns of the choices, where the right one is asked for.
    pub choice_columns: &'static [&'static str],
    /// The column of the class or the number.
    pub label_column: &'static str,
    /// The names of the classes as files have them, in the order of their ids.
    pub labels: &'static [&'static str],
    /// Whether files have no header.
    pub no_header: bool,
    /// The score by which the best checkpoint is chosen, the benchmark's own.
    pub metric: &'static str,
    /// Names that the file of training examples has.
    pub train: &'static [&'static str],
    /// Names that the file of examples for evaluation has.
    pub eval: &'static [&'static str],
}

const CLASSES: &str = "sequence-classification";
const TSV: Preset = Preset {
    name: "",
    task: CLASSES,
    text_columns: &["sentence1", "sentence2"],
    choice_columns: &[],
    label_column: "label",
    labels: &["0", "1"],
    no_header: false,
    metric: "accuracy",
    train: &["train.tsv"],
    eval: &["dev.tsv"],
};
const JSONL: Preset = Preset {
    train: &["train.jsonl"],
    eval: &["val.jsonl"],
    ..TSV
};
const FEWCLUE: Preset = Preset {
    train: &["train_few_all.json"],
    eval: &["dev_few_all.json"],
    ..TSV
};

/// Every preset.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "glue/cola",
        text_columns: &["3"],
        label_column: "1",
        no_header: true,
        metric: "matthews",
        ..TSV
    },
    Preset {
        name: "glue/sst2",
        text_columns: &["sentence"],
        ..TSV
    },
    Preset {
        name: "glue/mrpc",
        text_columns: &["#1 String", "#2 String"],
        label_column: "Quality",
        metric: "f1",
        train: &["train.tsv", "msr_paraphrase_train.txt"],
        ..TSV
    },
    Preset {
        name: "glue/stsb",
        task: "regression",
        label_column: "score",
        labels: &[],
        metric: "spearman",
        ..TSV
    },
    Preset {
        name: "glue/qnli",
        text_columns: &["question", "sentence"],
        labels: &["entailment", "not_entailment"],
        ..TSV
    },
    Preset {
        name: "glue/rte",
        labels: &["entailment", "not_entailment"],
        ..TSV
    },
    Preset {
        name: "glue/wnli",
        ..TSV
    },
    Preset {
        name: "superglue/boolq",
        text_columns: &["question", "passage"],
        labels: &["false", "true"],
        ..JSONL
    },
    Preset {
        name: "superglue/cb",
        text_columns: &["premise", "hypothesis"],
        labels: &["entailment", "contradiction", "neutral"],
        metric: "f1",
        ..JSONL
    },
    Preset {
        name: "superglue/rte",
        text_columns: &["premise", "hypothesis"],
        labels: &["entailment", "not_entailment"],
        ..JSONL
    },
    Preset {
        name: "superglue/copa",
        task: "multiple-choice",
        text_columns: &["premise", "question"],
        choice_columns: &["choice1", "choice2"],
        labels: &[],
        ..JSONL
    },
    Preset {
        name: "fewclue/bustm",
        ..FEWCLUE
    },
    Preset {
        name: "fewclue/eprstmt",
        text_columns: &["sentence"],
        labels: &["Negative", "Positive"],
        ..FEWCLUE
    },
    Preset {
        name: "chnsenticorp",
        text_columns: &["text_a"],
        ..TSV
    },
];

impl Preset {
    /// The preset of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PRESETS.iter().find(|preset| preset.name == name)
    }

    /// The settings of a run that it stands for, by their keys, the files apart.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        settings.insert("task".to_owned(), json!(self.task));
        settings.insert("text_columns".to_owned(), json!(self.text_columns));
        settings.insert("label_column".to_owned(), json!(self.label_column));
        if !self.choice_columns.is_empty() {
            settings.insert("choice_columns".to_owned(), json!(self.choice_columns));
        }
        if !self.labels.is_empty() {
            settings.insert("labels".to_owned(), json!(self.labels));
        }
        if self.no_header {
            settings.insert("no_header".to_owned(), json!(true));
        }
        settings
    }

    /// The file of training examples in a directory of the data set.
    pub fn train_file(&self, directory: &Path) -> Option<PathBuf> {
        first(directory, self.train)
    }

    /// The file of examples for evaluation in a directory of the data set.
    pub fn eval_file(&self, directory: &Path) -> Option<PathBuf> {
        first(directory, self.eval)
    }
}

/// The first of these files that a directory has.
fn first(directory: &Path, names: &[&str]) -> Option<PathBuf> {
    let mut paths = names.iter().map(|name| directory.join(name));
    paths.find(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::TaskKind;
    use crate::{RunConfig, tasks};

    #[test]
    fn presets_are_settings_of_a_run() {
        for preset in PRESETS {
            let task: TaskKind = preset.task.parse().unwrap();
            let classes = Some(preset.labels.len()).filter(|_| task.has_classes());
            assert!(
                task.scores(classes).contains(&preset.metric),
                "{}",
                preset.name
            );
            let run = RunConfig::parse(&preset.settings()).unwrap();
            assert_eq!((run.task, run.no_header), (task, preset.no_header));
            assert_eq!(run.labels, preset.labels);
            assert!(!tasks::names().contains(&preset.name));
        }
    }

    /// The files as they come, with the number of examples of each set and the share of each class.
    #[test]
    #[ignore = "needs ../shared/data"]
    fn presets_read_the_published_files() {
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
        let cases = [
            ("glue/cola", "glue_cola", Some(8_551), 1_043),
            ("glue/sst2", "glue_sst2", Some(67_349), 872),
            ("glue/mrpc", "glue_mrpc", Some(3_668), 408),
            ("glue/stsb", "glue_stsb", Some(5_749), 1_500),
            ("glue/qnli", "glue_qnli", None, 5_463),
            ("glue/rte", "glue_rte", Some(2_490), 277),
            ("glue/wnli", "glue_wnli", Some(635), 71),
            ("superglue/boolq", "superglue_boolq", None, 3_270),
            ("superglue/cb", "superglue_cb", Some(250), 56),
            (
                "superglue/rte",
                "superglue_fewglue_32dev/RTE",
                Some(32),
                277,
            ),
            ("superglue/copa", "superglue_copa", Some(400), 100),
            ("fewclue/bustm", "fewclue/bustm", Some(160), 160),
            ("fewclue/eprstmt", "fewclue/eprstmt", Some(160), 160),
            ("chnsenticorp", "chnsenticorp", Some(9_600), 1_200),
        ];
        for (name, folder, train, eval) in cases {
            let preset = Preset::named(name).unwrap();
            let directory = root.join(folder);
            let files = [
                (preset.train_file(&directory), train),
                (preset.eval_file(&directory), Some(eval)),
            ];
            for (file, rows) in files {
                assert_eq!(file.is_some(), rows.is_some(), "{name}");
                let Some((file, rows)) = file.zip(rows) else {
                    continue;
                };
                let run = RunConfig::parse(&preset.settings()).unwrap();
                let table = epiphyte_data::Table::read(&file, &run.reading().unwrap()).unwrap();
                assert_eq!(table.len(), rows, "{}", file.display());
                for column in preset.text_columns.iter().chain(preset.choice_columns) {
                    assert_eq!(table.texts(column).unwrap().len(), rows);
                }
                match preset.labels {
                    [] => assert_eq!(table.numbers(preset.label_column).unwrap().len(), rows),
                    labels => {
                        let names = labels.iter().map(|&label| label.to_owned());
                        let labels = epiphyte_data::LabelSet::from_names(names).unwrap();
                        assert_eq!(labels.ids(&table, preset.label_column).unwrap().len(), rows);
                    }
                }
            }
        }
    }
}
