//! The golden folder as it lies there: bases, their inputs, their cases.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use epiphyte_models::{
    Checkpoint, DecoderTokens, HeadKind, LoadOptions, Model, ModelConfig, Targets, Tokens, load,
};
use epiphyte_ops::Sequences;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// `tests/parity/golden` of the repository.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden")
}

/// The names of the directories in `dir`, sorted.
pub(crate) fn directories(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let entries = entries.map(|entry| entry.expect("a directory that can be read"));
    let directories = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> = directories
        .map(|entry| entry.file_name().into_string().expect("names are UTF-8"))
        .collect();
    names.sort();
    names
}

/// A base model with the batch that all its cases see.
pub(crate) struct Base {
    pub(crate) dir: PathBuf,
    pub(crate) model: Model,
    pub(crate) device: Device,
    inputs: Inputs,
}

/// `inputs.json`.
#[derive(Deserialize)]
struct Inputs {
    input_ids: Vec<Vec<u32>>,
    token_type_ids: Option<Vec<Vec<u32>>>,
    reads: Option<Reads>,
    labels: Labels,
}

/// What a head reads that is for neither sequences nor the next token.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reads {
    Tokens,
    Answers,
    Choices,
    Masked,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Labels {
    Classes(Vec<i64>),
    Values(Vec<f32>),
    Tokens(Vec<Vec<i64>>),
}

impl Inputs {
    /// The head that these labels are for.
    fn head(&self, config: &ModelConfig) -> HeadKind {
        let labels = config.facts().labels.num_labels();
        match (self.reads, &self.labels) {
            (Some(Reads::Tokens), _) => HeadKind::TokenClassification { labels },
            (Some(Reads::Answers), _) => HeadKind::QuestionAnswering,
            (Some(Reads::Choices), _) => HeadKind::MultipleChoice,
            (Some(Reads::Masked), _) => HeadKind::MaskedLm,
            (None, Labels::Classes(_)) => HeadKind::Classification { labels },
            (None, Labels::Values(_)) => HeadKind::Classification { labels: 1 },
            (None, Labels::Tokens(_)) => HeadKind::LanguageModel,
        }
    }
}

/// Sequences end to end, with what they should come to.
pub(crate) struct Batch {
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    sequences: Sequences,
    /// Input of an encoder-decoder's decoder.
    decoder: Option<(Vec<u32>, Sequences)>,
    labels: Labels,
    reads: Option<Reads>,
    /// The first and the last tokens of answers.
    ends: [Vec<i64>; 2],
}

impl Base {
    pub(crate) fn open(name: &str) -> Self {
        let dir = folder().join(name);
        let inputs: Inputs = read_json(&dir.join("inputs.json"));
        let config = ModelConfig::open(&dir.join("base")).expect("a configuration");
        let task = inputs.head(&config);
        let device = Device::default();
        let loaded = load(&dir.join("base"), task, &device, &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(loaded.has_head, "{name}: the head was not read");
        Self {
            dir,
            model: loaded.model,
            device,
            inputs,
        }
    }

    /// All rows in one batch.
    pub(crate) fn batch(&self) -> Batch {
        self.rows(0..self.inputs.input_ids.len())
    }

    /// Each row in a batch of its own.
    pub(crate) fn each_row(&self) -> impl Iterator<Item = Batch> + '_ {
        (0..self.inputs.input_ids.len()).map(|row| self.rows(row..row + 1))
    }

    fn rows(&self, rows: std::ops::Range<usize>) -> Batch {
        let ids = &self.inputs.input_ids[rows.clone()];
        let sequences = sequences_of(ids);
        let ids = ids.concat();
        let type_ids = match &self.inputs.token_type_ids {
            Some(type_ids) => type_ids[rows.clone()].concat(),
            None => vec![0; ids.len()],
        };
        let reads = self.inputs.reads;
        let labels = match &self.inputs.labels {
            // One for several rows.
            Labels::Classes(chosen) if matches!(reads, Some(Reads::Choices)) => {
                Labels::Classes(chosen.clone())
            }
            Labels::Classes(classes) => Labels::Classes(classes[rows.clone()].to_vec()),
            Labels::Values(values) => Labels::Values(values[rows.clone()].to_vec()),
            Labels::Tokens(tokens) => Labels::Tokens(vec![tokens[rows.clone()].concat()]),
        };
        let ends = match (reads, &self.inputs.labels) {
            (Some(Reads::Answers), Labels::Tokens(spans)) => {
                [0, 1].map(|end| spans[rows.clone()].iter().map(|span| span[end]).collect())
            }
            _ => Default::default(),
        };
        let backbone = self.model.backbone();
        let decoder = match &self.inputs.labels {
            Labels::Tokens(tokens) if reads.is_none() => {
                let target = sequences_of(&tokens[rows.clone()]);
                let ids = backbone.decoder_input(&tokens[rows].concat(), &target);
                ids.map(|ids| (ids, target))
            }
            _ => {
                let text: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
                let ids = backbone.decoder_input(&text, &sequences);
                ids.map(|ids| (ids, sequences.clone()))
            }
        };
        Batch {
            ids,
            type_ids,
            sequences,
            decoder,
            labels,
            reads,
            ends,
        }
    }
}

/// The sequences that these rows form.
fn sequences_of<T>(rows: &[Vec<T>]) -> Sequences {
    let mut boundaries = vec![0];
    boundaries.extend(rows.iter().scan(0, |end, row| {
        *end += row.len();
        Some(*end)
    }));
    Sequences::new(boundaries)
}

impl Batch {
    pub(crate) fn tokens(&self) -> Tokens<'_> {
        let decoder = self.decoder.as_ref();
        Tokens {
            decoder: decoder.map(|(ids, sequences)| DecoderTokens {
                ids,
                sequences: sequences.clone(),
            }),
            ..Tokens::new(&self.ids, &self.type_ids, self.sequences.clone())
        }
    }

    pub(crate) fn targets(&self) -> Targets<'_> {
        match &self.labels {
            Labels::Tokens(tokens) if matches!(self.reads, Some(Reads::Tokens | Reads::Masked)) => {
                Targets::TokenClasses(&tokens[0])
            }
            Labels::Tokens(_) if matches!(self.reads, Some(Reads::Answers)) => {
                let [starts, ends] = &self.ends;
                Targets::Spans { starts, ends }
            }
            Labels::Classes(chosen) if matches!(self.reads, Some(Reads::Choices)) => {
                Targets::Choices {
                    chosen,
                    choices: self.sequences.count() / chosen.len(),
                }
            }
            Labels::Classes(classes) => Targets::Classes(classes),
            Labels::Values(values) => Targets::Values(values),
            Labels::Tokens(tokens) if self.decoder.is_some() => Targets::DecoderTokens(&tokens[0]),
            Labels::Tokens(tokens) => Targets::Tokens(&tokens[0]),
        }
    }
}

/// `expected.json` of a case.
#[derive(Deserialize)]
pub(crate) struct Facts {
    pub(crate) trainable: BTreeMap<String, Vec<usize>>,
    pub(crate) trainable_parameters: usize,
    pub(crate) zero_gradient: Vec<String>,
    /// Ranges of vectors whose gradient is zero in theory.
    #[serde(default)]
    pub(crate) zero_gradient_parts: BTreeMap<String, Vec<[usize; 2]>>,
    pub(crate) optimizer: Optimizer,
}

/// The optimizer that PyTorch ran.
#[derive(Deserialize)]
pub(crate) struct Optimizer {
    pub(crate) lr: f64,
    pub(crate) betas: (f64, f64),
    pub(crate) eps: f64,
    pub(crate) weight_decay: f64,
    pub(crate) steps: usize,
}

/// A safetensors file with expected values.
pub(crate) struct Expected(Checkpoint);

impl Expected {
    pub(crate) fn open(path: &Path) -> Self {
        Self(Checkpoint::open_file(path).unwrap_or_else(|error| panic!("{error}")))
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }

    pub(crate) fn get(&self, key: &str) -> Vec<f32> {
        let view = self
            .0
            .tensor(key)
            .unwrap_or_else(|| panic!("{} has no `{key}`", self.0.path().display()));
        view.to_f32().expect("golden tensors are f32")
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> T {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
