//! Several adapters of LoRA as one: HF PEFT's `add_weighted_adapter`.
//!
//! With `A_k`, `B_k`, scaling `s_k` and weight `w_k` of adapter k, the changes are `D_k = s_k B_k
//! A_k`. A new adapter of scaling 1 approximates `Σ w_k D_k`:
//!
//! | | |
//! | --- | --- |
//! | `cat` | exactly: `[w_k s_k A_k]` below each other, `[B_k]` next to each other |
//! | `linear` | `Σ ±√(|w_k| s_k) A_k` and `Σ √(|w_k| s_k) B_k`, as PEFT does, with products of different adapters |
//! | `svd` | the first singular values of `Σ w_k D_k` |
//! | `ties` | as `linear`, of the largest values, of those that have the sign of the sum (Yadav et al. 2023, arXiv 2306.01708) |
//! | `dare_linear`, `dare_ties` | of values drawn at random and scaled up (Yu et al. 2024, arXiv 2311.03099) |
//! | `magnitude_prune` | of the largest values |
//! | `ties_svd`, … | the same of the `D_k`, then as `svd` |
//!
//! A weight of -1 takes an adapter back: `cat` of one adapter with it is the negation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_io::PendingFile;
use epiphyte_io::safetensors_file::prepare_values;
use epiphyte_models::ModelError;
use epiphyte_models::adapter::name_id;
use epiphyte_ops::random;
use serde_json::{Map, Value, json};

use super::record::{self, Record, Tensors};
use super::{AdapterFile, CONFIG_FILE, TENSORS_FILE};
use crate::MethodError;
use crate::framework::method::{MethodConfig, StoredValues};
use crate::framework::settings;
use crate::parts::low_rank_start::to_vec;
use crate::parts::svd::Svd;
use crate::reparametrized::lora::LoraConfig;

/// The prefix of LoRA's keys.
const PREFIX: &str = "base_model.model.";
/// How the keys of the two matrices end, of a linear layer and of a table.
const ENDINGS: [[&str; 2]; 2] = [
    [".lora_A.weight", ".lora_B.weight"],
    [".lora_embedding_A", ".lora_embedding_B"],
];

/// How adapters are combined.
#[derive(Clone, Debug)]
pub struct Combination {
    /// HF PEFT's `combination_type`.
    pub kind: String,
    /// The rank of the result, for kinds that decompose; the largest of the adapters' if none is
    /// set.
    pub rank: Option<usize>,
    /// The share of values that is kept, for kinds that prune.
    pub density: f64,
    /// Whether an entry's sign is elected by the number of values instead of their sum.
    pub by_frequency: bool,
    /// What random draws follow from.
    pub seed: u64,
}

/// The kinds of [`Combination`].
pub const KINDS: [&str; 11] = [
    "linear",
    "cat",
    "svd",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
    "ties_svd",
    "dare_linear_svd",
    "dare_ties_svd",
    "magnitude_prune_svd",
];

/// Those that combine whole models.
pub const MODEL_KINDS: [&str; 5] = [
    "linear",
    "ties",
    "dare_linear",
    "dare_ties",
    "magnitude_prune",
];

/// The two matrices of a module in one adapter.
struct Part {
    a: Tensor<2>,
    b: Tensor<2>,
    scaling: f64,
    weight: f64,
}

/// Writes the combination of adapters with these weights into `dir`.
///
/// # Errors
/// If an adapter is not plain LoRA, or holds more than that; if ranks differ where they must not;
/// if the adapters were trained over different bases; if a file cannot be read or written.
pub fn combine(
    adapters: &[(AdapterFile, f64)],
    how: &Combination,
    dir: &Path,
) -> Result<(), MethodError> {
    how.check()?;
    let Some((first, _)) = adapters.first() else {
        let expected = "there must be an adapter".to_owned();
        return Err(wrong("adapters", "empty".to_owned(), expected));
    };
    let mut parts: BTreeMap<(String, usize), Vec<Part>> = BTreeMap::new();
    let mut targets = BTreeSet::new();
    for (file, weight) in adapters {
        check_same_base(first, file)?;
        read(file, *weight, &mut parts, &mut targets)?;
    }
    let mut tensors = Tensors::new();
    let mut rank = 0;
    let largest = parts.values().flatten().map(|part| part.a.dims()[0]).max();
    let to_rank = how.rank.or(largest).unwrap_or(1);
    for ((path, ending), own) in &parts {
        let [a, b] = how.combined(path, own, to_rank)?;
        rank = rank.max(a.dims()[0]);
        for (matrix, end) in [a, b].into_iter().zip(ENDINGS[*ending]) {
            let shape = matrix.dims().to_vec();
            tensors.push((
                format!("{path}{end}"),
                shape,
                StoredValues::F32(to_vec(matrix)),
            ));
        }
    }
    // One rank for all: rows and columns of zeros change nothing.
    for (name, shape, values) in &mut tensors {
        let StoredValues::F32(values) = values else {
            continue;
        };
        let is_a = ENDINGS.iter().any(|[a, _]| name.ends_with(a));
        if is_a {
            values.resize(rank * shape[1], 0.0);
            shape[0] = rank;
        } else {
            let rows = values.chunks(shape[1]).map(|row| {
                let mut row = row.to_vec();
                row.resize(rank, 0.0);
                row
            });
            *values = rows.collect::<Vec<_>>().concat();
            shape[1] = rank;
        }
    }
    write(first, rank, &targets, tensors, dir)
}

/// A setting of a combination that is out of range.
fn wrong(key: &'static str, value: String, expected: String) -> MethodError {
    MethodError::Value {
        method: LoraConfig::NAME,
        key,
        value,
        expected,
    }
}

/// The change of one module by an adapter of LoRA: `scaling * B A`.
#[derive(Clone, Debug)]
pub struct LowRankChange {
    /// The module's path, as the file has it.
    pub path: String,
    /// Whether it is a table, whose change is the transpose.
    pub is_table: bool,
    /// `[rank, in]`.
    pub a: Tensor<2>,
    /// `[out, rank]`.
    pub b: Tensor<2>,
    /// What the product is multiplied by.
    pub scaling: f64,
}

/// Alpha and the changes of an adapter that is plain LoRA.
///
/// # Errors
/// If it is of another method, or holds more than that.
pub fn low_rank_changes(file: &AdapterFile) -> Result<(f64, Vec<LowRankChange>), MethodError> {
    let mut parts = BTreeMap::new();
    read(file, 1.0, &mut parts, &mut BTreeSet::new())?;
    let changes = parts.into_iter().flat_map(|((path, ending), own)| {
        own.into_iter().map(move |part| LowRankChange {
            path: path.strip_prefix(PREFIX).unwrap_or(&path).to_owned(),
            is_table: ending > 0,
            a: part.a,
            b: part.b,
            scaling: part.scaling,
        })
    });
    let alpha = file
        .config()
        .settings()
        .get("lora_alpha")
        .and_then(Value::as_f64);
    Ok((alpha.unwrap_or(1.0), changes.collect()))
}

/// Checks that two adapters are of one base, if both say of which.
fn check_same_base(first: &AdapterFile, other: &AdapterFile) -> Result<(), MethodError> {
    match (first.provenance(), other.provenance()) {
        (Some(a), Some(b)) if a.base_sha256 != b.base_sha256 => Err(MethodError::OtherBase {
            path: other.directory().to_owned(),
            what: "base",
            expected: b.base_sha256.chars().take(12).collect(),
            found: a.base_sha256.chars().take(12).collect(),
        }),
        _ => Ok(()),
    }
}

/// Adds the matrices of an adapter to those of each module.
fn read(
    file: &AdapterFile,
    weight: f64,
    parts: &mut BTreeMap<(String, usize), Vec<Part>>,
    targets: &mut BTreeSet<String>,
) -> Result<(), MethodError> {
    let malformed = |reason: String| MethodError::Malformed {
        path: file.directory().to_owned(),
        reason,
    };
    let config = file.config();
    if config.definition().name != LoraConfig::NAME {
        return Err(malformed(format!(
            "only adapters of lora have such matrices, and this one is of {}",
            config.definition().name
        )));
    }
    let config: LoraConfig =
        settings::parse(&config.settings()).map_err(|error| malformed(error.to_string()))?;
    config.check_plain_base().map_err(malformed)?;
    file.check_files()?;
    let tensors = file.tensors();
    let mut used = BTreeSet::new();
    for name in tensors.names() {
        let ending = ENDINGS.iter().position(|[a, _]| name.ends_with(a));
        let Some(ending) = ending else { continue };
        let [end_a, end_b] = ENDINGS[ending];
        let path = name.strip_suffix(end_a).unwrap_or(name).to_owned();
        let b = format!("{path}{end_b}");
        let matrix = |name: &str| {
            let view = tensors.tensor(name)?;
            let shape: [usize; 2] = view.shape.try_into().ok()?;
            let data = TensorData::new(view.to_f32()?, shape);
            Some(Tensor::<2>::from_data(data, &Device::flex()))
        };
        let (Some(a), Some(b_matrix)) = (matrix(name), matrix(&b)) else {
            return Err(malformed(format!(
                "`{name}` or `{b}` is no matrix of numbers"
            )));
        };
        let module = path.strip_prefix(PREFIX).unwrap_or(&path).to_owned();
        let (_, scaling) = config.scale(LoraConfig::NAME, &module)?;
        parts.entry((path, ending)).or_default().push(Part {
            a,
            b: b_matrix,
            scaling,
            weight,
        });
        targets.insert(module);
        used.extend([name.to_owned(), b]);
    }
    match tensors.names().find(|name| !used.contains(*name)) {
        Some(other) => Err(malformed(format!(
            "`{other}` is more than a low-rank change, such as a task's head; HF PEFT cannot \
             combine such adapters either"
        ))),
        None => Ok(()),
    }
}

impl Combination {
    /// Checks that whole models can be combined so.
    ///
    /// # Errors
    /// [`MethodError::Value`] for kinds that need matrices of low rank, and values out of range.
    pub fn check_models(&self) -> Result<(), MethodError> {
        self.check()?;
        match MODEL_KINDS.contains(&self.kind.as_str()) {
            true => Ok(()),
            false => Err(wrong(
                "combination",
                self.kind.clone(),
                format!("of models it must be one of {}", MODEL_KINDS.join(", ")),
            )),
        }
    }

    /// Checks the values.
    fn check(&self) -> Result<(), MethodError> {
        if !KINDS.contains(&self.kind.as_str()) {
            let expected = format!("it must be one of {}", KINDS.join(", "));
            return Err(wrong("combination", self.kind.clone(), expected));
        }
        if !(0.0..=1.0).contains(&self.density) {
            let expected = "it must be from 0 to 1".to_owned();
            return Err(wrong("density", self.density.to_string(), expected));
        }
        Ok(())
    }

    /// The weighted sum of changes of the tensor `name`, one for each model; of a kind that
    /// [`Combination::check_models`] accepts.
    pub fn sum_of_vectors(&self, name: &str, vectors: Vec<Vec<f32>>, weights: &[f64]) -> Vec<f32> {
        let rows = vectors.into_iter().map(|values| {
            let shape = [1, values.len()];
            Tensor::from_data(TensorData::new(values, shape), &Device::flex())
        });
        to_vec(self.sum(&self.kind, name, rows.collect(), weights))
    }

    /// The two matrices of a module.
    fn combined(
        &self,
        path: &str,
        parts: &[Part],
        to_rank: usize,
    ) -> Result<[Tensor<2>; 2], MethodError> {
        if self.kind == "cat" {
            let a = parts
                .iter()
                .map(|it| it.a.clone() * (it.weight * it.scaling));
            let b = parts.iter().map(|it| it.b.clone());
            return Ok([Tensor::cat(a.collect(), 0), Tensor::cat(b.collect(), 1)]);
        }
        if let Some(kind) = self.kind.strip_suffix("svd") {
            let changes = parts
                .iter()
                .map(|it| it.b.clone().matmul(it.a.clone()) * it.scaling);
            let weights: Vec<f64> = parts.iter().map(|it| it.weight).collect();
            let kind = kind.trim_end_matches('_');
            let sum = self.sum(kind, path, changes.collect(), &weights);
            let svd = Svd::new(sum);
            let rank = to_rank.min(svd.values.len());
            return Ok([svd.right(0..rank, 0.0), svd.left(0..rank, 1.0)]);
        }
        let ranks: BTreeSet<usize> = parts.iter().map(|it| it.a.dims()[0]).collect();
        if ranks.len() > 1 {
            return Err(MethodError::Value {
                method: LoraConfig::NAME,
                key: "combination",
                value: self.kind.clone(),
                expected: format!(
                    "the adapters' ranks of `{path}` differ; cat and svd combine different ranks"
                ),
            });
        }
        // The sign of a weight goes to A alone.
        let root = |it: &Part| (it.weight * it.scaling).abs().sqrt();
        let signed = |it: &Part| root(it).copysign(it.weight * it.scaling);
        let a = parts.iter().map(|it| it.a.clone()).collect();
        let b = parts.iter().map(|it| it.b.clone()).collect();
        let of_a: Vec<f64> = parts.iter().map(signed).collect();
        let of_b: Vec<f64> = parts.iter().map(root).collect();
        Ok([
            self.sum(&self.kind, &format!("{path}.A"), a, &of_a),
            self.sum(&self.kind, &format!("{path}.B"), b, &of_b),
        ])
    }

    /// The weighted sum of matrices, after `kind` has pruned them and elected signs.
    fn sum(&self, kind: &str, path: &str, matrices: Vec<Tensor<2>>, weights: &[f64]) -> Tensor<2> {
        let pruned = matrices.into_iter().enumerate().map(|(number, matrix)| {
            let key = self.seed ^ name_id(&format!("{path}.{number}"));
            match kind {
                "ties" | "magnitude_prune" => self.largest(matrix),
                "dare_linear" | "dare_ties" => self.drawn(matrix, key),
                _ => matrix,
            }
        });
        let pruned: Vec<Tensor<2>> = pruned.collect();
        let weighted = pruned
            .iter()
            .zip(weights)
            .map(|(it, weight)| it.clone() * *weight);
        let added = |all: Vec<Tensor<2>>| all.into_iter().reduce(|sum, it| sum + it);
        let add = |all: Vec<Tensor<2>>| added(all).expect("there is an adapter");
        if !kind.ends_with("ties") {
            return add(weighted.collect());
        }
        let votes = match self.by_frequency {
            true => pruned.iter().map(|it| it.clone().sign()).collect(),
            false => pruned.clone(),
        };
        // As in PEFT, a draw is positive, and zeros agree with no sign.
        let elected = add(votes).greater_equal_elem(0.0).float() * 2.0 - 1.0;
        let agree = pruned.iter().map(|it| {
            (it.clone().sign() * elected.clone())
                .greater_elem(0.0)
                .float()
        });
        let agree: Vec<Tensor<2>> = agree.collect();
        let counted = add(agree.clone()).clamp_min(1.0);
        let kept = weighted.zip(agree).map(|(it, agree)| it * agree);
        add(kept.collect()) / counted
    }

    /// The largest values, the others zero.
    fn largest(&self, matrix: Tensor<2>) -> Tensor<2> {
        if self.density >= 1.0 {
            return matrix;
        }
        let (shape, mut values) = (matrix.dims(), to_vec(matrix));
        let kept = (self.density * values.len() as f64) as usize;
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
        for &at in &order[kept..] {
            values[at] = 0.0;
        }
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// Values drawn at random, scaled up so that the mean stays; the others zero.
    fn drawn(&self, matrix: Tensor<2>, key: u64) -> Tensor<2> {
        if self.density >= 1.0 {
            return matrix;
        }
        let (shape, mut values) = (matrix.dims(), to_vec(matrix));
        let draws = random::uniform(key, values.len(), 0.0, 1.0);
        for (value, draw) in values.iter_mut().zip(draws) {
            let is_kept = f64::from(draw) < self.density;
            *value = if is_kept {
                *value / self.density as f32
            } else {
                0.0
            };
        }
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }
}

/// Writes the adapter with the configuration of the first.
fn write(
    first: &AdapterFile,
    rank: usize,
    targets: &BTreeSet<String>,
    tensors: Tensors,
    dir: &Path,
) -> Result<(), MethodError> {
    let mut config: Map<String, Value> = first.json.clone();
    // Scaling 1, also where PEFT divides by the root of the rank.
    for (key, value) in [
        ("r", json!(rank)),
        ("lora_alpha", json!(rank)),
        ("use_rslora", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("init_lora_weights", json!(true)),
        ("target_modules", json!(targets)),
        ("exclude_modules", Value::Null),
        ("layers_to_transform", Value::Null),
        ("layers_pattern", Value::Null),
    ] {
        config.insert(key.to_owned(), value);
    }
    config.remove(record::KEY);
    let record = first.provenance();
    let record = record.map(|provenance| Record::new(provenance, &config, &tensors).to_text());
    let metadata = record.iter().map(|record| (record::KEY, record.as_str()));
    let metadata: Vec<(&str, &str)> = metadata.collect();
    std::fs::create_dir_all(dir).map_err(|source| MethodError::File {
        action: "create",
        path: dir.to_owned(),
        source,
    })?;
    let path = dir.join(TENSORS_FILE);
    let tensors = prepare_values(&path, record::to_write(tensors), &metadata);
    let tensors = tensors.map_err(ModelError::from)?;
    let text = serde_json::to_string_pretty(&config).expect("JSON values print");
    let fill = |file: &mut dyn std::io::Write| file.write_all(text.as_bytes());
    let config = PendingFile::write(&dir.join(CONFIG_FILE), fill).map_err(ModelError::from)?;
    tensors.put_in_place().map_err(ModelError::from)?;
    config.put_in_place().map_err(ModelError::from)?;
    Ok(())
}
