//! Task arithmetic: whole models that were trained from one base, combined into one (Ilharco et al.
//! 2023, "Editing models with task arithmetic", arXiv 2212.04089).
//!
//! With `θ` the base's tensors and `θ_k` those of model k, its task vector is `τ_k = θ_k − θ`,
//! and the result `θ + Σ w_k τ_k`. One model with a weight of -1 is its negation: the base
//! unlearns what the model learned. Methods that change entries of the base, such as LT-SFT,
//! compose by the same addition, once each is merged.
//!
//! The sum may be that of TIES, DARE or magnitude pruning in place of the plain one, tensor by
//! tensor, as for adapters ([`Combination`]). What the base lacks, such as a classifier, is the
//! first model's, and so are configuration and tokenizer. A file in place of a model is a delta, a
//! task vector itself.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use epiphyte_io::safetensors_file::{Values, is_finite_as, prepare_values};
use epiphyte_methods::file::combine::Combination;
use epiphyte_models::checkpoint::TensorView;
use epiphyte_models::keys::TensorReader;
use epiphyte_models::{Checkpoint, ModelConfig, ModelError};
use serde::Serialize;

use super::{
    MARK, MergeOptions, WEIGHTS_FILE, WeightType, check_output, config, files, head_of_files,
    is_gguf, stored_values, write_model,
};
use crate::TrainError;
use crate::convert::{DELTA, check_base_of_delta};
use crate::lock::lock_output;

/// What combining models did.
#[derive(Clone, Debug, Serialize)]
pub struct CombinedModels {
    /// Tensors that differ from the base's.
    pub changed_tensors: usize,
    /// Tensors written.
    pub tensors: usize,
    /// Tensors that the base lacks, which are the first model's.
    pub new_tensors: Vec<String>,
    /// The Euclidean norm of each model's task vector.
    pub norms: Vec<f64>,
    /// The cosines between the models' task vectors; tasks of which they are near 0 disturb each
    /// other little.
    pub cosines: Vec<Vec<f64>>,
}

/// One of the models, and where it has which tensor.
struct Member<'c> {
    path: &'c Path,
    checkpoint: &'c Checkpoint,
    reader: TensorReader<'c>,
    is_delta: bool,
}

/// What is learned of the task vectors while they are added.
struct Sums {
    changed: usize,
    /// Inner products of the task vectors.
    products: Vec<Vec<f64>>,
    not_finite: Option<String>,
}

/// Writes the base in `model_dir` with the weighted task vectors of `models` to `output`.
///
/// # Errors
/// If the combination is not one of models; if a model is quantized, or lacks a tensor that the
/// others have, or has it in another shape; [`TrainError::NotFinite`] for a result that is not;
/// [`TrainError::OutputNotMerged`] if `output` has anything in it that is not an earlier model that
/// this program wrote.
pub fn combine_models(
    model_dir: &Path,
    models: &[(PathBuf, f64)],
    how: &Combination,
    output: &Path,
    options: &MergeOptions,
) -> Result<CombinedModels, TrainError> {
    how.check_models()?;
    let first = models.iter().position(|(path, _)| !is_delta(path));
    let first_dir = first.map_or(model_dir, |first| &models[first].0);
    let _lock = lock_output(output)?;
    let copied = files::files_of(first_dir)?;
    let written = [config::FILE, WEIGHTS_FILE].map(Path::new).into_iter();
    let written = written.chain(copied.iter().map(|file| &**file));
    check_output(output, written, options.overwrite)?;
    let model_config = ModelConfig::open(first_dir)?;
    let rules = model_config
        .family()
        .key_rules(head_of_files(first_dir, &model_config)?);
    let of_base = ModelConfig::open(model_dir)?;
    for (path, _) in models.iter().filter(|(path, _)| !is_delta(path)) {
        let config = ModelConfig::open(path)?;
        if let Some(difference) = difference(&config, &of_base, &model_config) {
            return Err(TrainError::OfOtherBase {
                path: path.clone(),
                reason: format!("{difference}; combine models that were trained from one base"),
            });
        }
    }
    let open = |dir: &Path| -> Result<Checkpoint, TrainError> {
        let checkpoint = match is_delta(dir) {
            true => open_delta(dir)?,
            false => Checkpoint::open(dir)?,
        };
        match checkpoint.is_quantized() {
            true => Err(TrainError::Config(format!(
                "`{}` is quantized: combine the models in full precision",
                dir.display()
            ))),
            false => Ok(checkpoint),
        }
    };
    let base = open(model_dir)?;
    let checkpoints = models.iter().map(|(dir, _)| open(dir));
    let checkpoints: Vec<Checkpoint> = checkpoints.collect::<Result<_, _>>()?;
    let base = Member {
        path: model_dir,
        checkpoint: &base,
        reader: TensorReader::new(&base, rules),
        is_delta: false,
    };
    let members = models.iter().zip(&checkpoints);
    let members = members.map(|((path, _), checkpoint)| Member {
        path,
        checkpoint,
        reader: TensorReader::new(checkpoint, rules),
        is_delta: is_delta(path),
    });
    let members: Vec<Member<'_>> = members.collect();
    let first = first.map_or(base.checkpoint, |first| &checkpoints[first]);
    for member in members.iter().filter(|member| member.is_delta) {
        member.check_delta(&base)?;
        if !options.allow_other_base {
            let base_sha256 = base.checkpoint.content_hash();
            check_base_of_delta(member.checkpoint, member.path, base_sha256)?;
        }
    }
    let weights: Vec<f64> = models.iter().map(|(_, weight)| *weight).collect();
    let sums = RefCell::new(Sums {
        changed: 0,
        products: vec![vec![0.0; models.len()]; models.len()],
        not_finite: None,
    });
    let dtype = options.dtype.map(WeightType::of_file);
    let mut tensors = Vec::new();
    let mut new_tensors = Vec::new();
    for name in first.names() {
        let own = first.tensor(name).expect("the checkpoint lists it");
        let of_base = base.tensor(name);
        if of_base.is_some_and(|of_base| of_base.is_float() != own.is_float()) {
            return Err(TrainError::OfOtherBase {
                path: first_dir.to_owned(),
                reason: format!(
                    "`{name}` is of type {}; combine models that were trained from one base",
                    own.dtype
                ),
            });
        }
        let values = match of_base.filter(|_| own.is_float()) {
            None => {
                if of_base.is_none() {
                    new_tensors.push(name.to_owned());
                }
                match dtype.filter(|dtype| own.is_float() && *dtype != own.dtype) {
                    Some(dtype) => Values::Rounded(dtype, Box::new(move || to_f32(&own))),
                    None => stored_values(own),
                }
            }
            Some(of_base) => {
                base.fitting(name, &own)?;
                let views = members.iter().map(|member| member.fitting(name, &own));
                let views: Vec<Option<TensorView<'_>>> = views.collect::<Result<_, _>>()?;
                let (sums, weights, members) = (&sums, &weights, &members);
                let dtype = dtype.unwrap_or(own.dtype);
                let sum = move || {
                    let base = to_f32(&of_base);
                    let vector = |(member, view): (&Member<'_>, &Option<TensorView<'_>>)| {
                        let Some(view) = view else {
                            return vec![0.0; base.len()];
                        };
                        let values = to_f32(view);
                        match member.is_delta {
                            true => values,
                            false => values.iter().zip(&base).map(|(a, b)| a - b).collect(),
                        }
                    };
                    let vectors: Vec<Vec<f32>> = members.iter().zip(&views).map(vector).collect();
                    sums.borrow_mut().see(&vectors);
                    let change = how.sum_of_vectors(name, vectors, weights);
                    let sum = base.iter().zip(&change).map(|(a, b)| a + b);
                    let sum: Vec<f32> = sum.collect();
                    if sum.iter().any(|value| !is_finite_as(*value, dtype)) {
                        sums.borrow_mut().not_finite.get_or_insert(name.to_owned());
                    }
                    sum
                };
                Values::Rounded(dtype, Box::new(sum))
            }
        };
        tensors.push((name.to_owned(), own.shape.to_vec(), values));
    }
    let count = tensors.len();
    write_model(output, |directory| {
        let weights = directory.join(WEIGHTS_FILE);
        let pending = prepare_values(&weights, tensors, &[MARK]).map_err(ModelError::from)?;
        if let Some(name) = &sums.borrow().not_finite {
            return Err(TrainError::NotFinite {
                what: format!("`{name}` of the combined model"),
            });
        }
        pending.put_in_place()?;
        for file in &copied {
            files::copy(first_dir, file, directory)?;
        }
        let mut json = config::read(first_dir)?;
        if let Some(dtype) = options.dtype {
            config::set_type(&mut json, dtype);
        }
        let json = serde_json::to_string_pretty(&json).expect("JSON values print");
        Ok(epiphyte_io::write(
            &directory.join(config::FILE),
            json.as_bytes(),
        )?)
    })?;
    let Sums {
        changed, products, ..
    } = sums.into_inner();
    let norms: Vec<f64> = (0..models.len())
        .map(|at| products[at][at].sqrt())
        .collect();
    let cosine = |a: usize, b: usize| match norms[a] * norms[b] {
        0.0 => 0.0,
        product => products[a][b] / product,
    };
    let all = || 0..models.len();
    let cosines = all()
        .map(|a| all().map(|b| cosine(a, b)).collect())
        .collect();
    Ok(CombinedModels {
        changed_tensors: changed,
        tensors: count,
        new_tensors,
        norms,
        cosines,
    })
}

/// How a model computes otherwise than the base, or has the first model's classes in another order.
fn difference(config: &ModelConfig, base: &ModelConfig, first: &ModelConfig) -> Option<String> {
    let (own, of_base, of_first) = (config.facts(), base.facts(), first.facts());
    if own.model_type != of_base.model_type {
        let (own, base) = (&own.model_type, &of_base.model_type);
        return Some(format!("it is a {own}, and the base a {base}"));
    }
    let [own_values, base_values] = [config, base].map(ModelConfig::computation);
    for (key, value) in &own_values {
        if base_values.get(key).is_some_and(|base| base != value) {
            let base = &base_values[key];
            return Some(format!("its `{key}` is {value}, and the base's {base}"));
        }
    }
    let [own, first] = [&own.labels, &of_first.labels].map(|labels| labels.names().to_vec());
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names
    };
    let exchanged = own != first && sorted(&own) == sorted(&first);
    exchanged.then(|| {
        let [own, first] = [own, first].map(|names| names.join(", "));
        format!("its classes are {own}, and the first model's {first}")
    })
}

impl Sums {
    fn see(&mut self, vectors: &[Vec<f32>]) {
        let is_zero = |vector: &Vec<f32>| vector.iter().all(|value| *value == 0.0);
        self.changed += usize::from(!vectors.iter().all(is_zero));
        for (row, a) in self.products.iter_mut().zip(vectors) {
            for (product, b) in row.iter_mut().zip(vectors) {
                let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
                *product += products.sum::<f64>();
            }
        }
    }
}

impl Member<'_> {
    /// The tensor that the first model calls `name`.
    fn tensor(&self, name: &str) -> Option<TensorView<'_>> {
        let stored = self.reader.stored_name(name)?;
        self.checkpoint.tensor(&stored)
    }

    /// The same, with the first model's shape; none if a delta does not have it.
    fn fitting(
        &self,
        name: &str,
        own: &TensorView<'_>,
    ) -> Result<Option<TensorView<'_>>, TrainError> {
        let problem = match self.tensor(name) {
            None if self.is_delta => return Ok(None),
            None => "is not there".to_owned(),
            Some(view) if view.shape != own.shape => format!(
                "has the shape {:?}, and the first model's {:?}",
                view.shape, own.shape
            ),
            Some(view) if !view.is_float() => format!("is of type {}", view.dtype),
            Some(view) => return Ok(Some(view)),
        };
        Err(TrainError::OfOtherBase {
            path: self.path.to_owned(),
            reason: format!("`{name}` {problem}; combine models that were trained from one base"),
        })
    }

    /// Checks that a delta changes tensors of the base alone.
    fn check_delta(&self, base: &Member<'_>) -> Result<(), TrainError> {
        match self
            .checkpoint
            .names()
            .find(|name| base.tensor(name).is_none())
        {
            None => Ok(()),
            Some(name) => Err(TrainError::OfOtherBase {
                path: self.path.to_owned(),
                reason: format!("the base has no tensor `{name}`; pass a delta of this base"),
            }),
        }
    }
}

/// Opens a delta.
fn open_delta(path: &Path) -> Result<Checkpoint, TrainError> {
    let delta = Checkpoint::open_file(path)?;
    let mark = delta.metadata().get(DELTA.0);
    match mark.is_some_and(|mark| mark == DELTA.1) {
        true => Ok(delta),
        false => Err(TrainError::Config(format!(
            "`{}` is no delta: pass a model's directory, or what `epiphyte convert --to delta` wrote",
            path.display()
        ))),
    }
}

/// Values of a tensor whose type was checked.
/// Whether a path is that of a delta: a file that is no model by itself.
fn is_delta(path: &Path) -> bool {
    path.is_file() && !is_gguf(path).is_ok_and(|it| it)
}

fn to_f32(view: &TensorView<'_>) -> Vec<f32> {
    view.to_f32().expect("the type was checked")
}
