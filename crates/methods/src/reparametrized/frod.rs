//! FRoD: a weight in coordinates that its kind shares, with a trained diagonal and a few more
//! entries.
//!
//! Wan et al., "FRoD: Full-Rank Efficient Fine-Tuning with Rotational Degrees for Fast
//! Convergence", AAAI 2026, arXiv 2512.23485; the definition is HF PEFT's code.
//!
//! `W = U diag(l₀) Vᵀ` becomes `W' = U (S + diag(l)) Vᵀ`, with `V: [in, in]` shared by the layers'
//! weights of one kind (`self_query`), `l₀` the lengths of the columns of `W V⁻ᵀ` and `U` these
//! columns at length one. The trained `l: [in]` starts as `l₀`; `S: [in, in]` is sparse, its
//! trained values at `max(1, ⌊in² · sparse_rate⌋)` random places beside the diagonal start at zero;
//! so nothing changes at first but rounding. With the weights of a kind stacked, `[M out, in] = Q
//! R`, and `Q_i` the layers' slices of Q, `V = Rᵀ E`, with E the eigenvectors of the mean of `(Q_iᵀ
//! Q_i + α)⁻¹`; where there are fewer rows than columns `V` are the right singular vectors.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ in + ⌊in² · sparse_rate⌋` over the targets |
//! | changes | `Σ in · out` |
//! | file | `<path>.frod_lambda_l`, `.frod_lambda_s_values`; for each kind `frod_V.<kind>`, `frod_s_indices.<kind>` `[2, n]`, `frod_s_size.<kind>` |
//! | merges | `W'` |
//!
//! The signs of eigenvectors differ between libraries, so `V` is always stored here, and a file
//! without it (`save_projection` = false) is refused. `U` follows from the file's `V`.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use epiphyte_models::{Base, LinearInfo};
use epiphyte_ops::FrozenMatrix;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{
    IntegerType, KeyStyle, Method, MethodConfig, Stored, StoredTensors,
};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::svd::{eigenvectors, qr, solution};
use crate::parts::torch_generator::TorchGenerator;

crate::settings! {
    /// The settings of FRoD, under HF PEFT's names.
    pub struct FrodConfig {
        /// Share of the entries beside the diagonal that are trained.
        sparse_rate: f64 = 0.01, in Fraction;
        /// What is added to the diagonal before an inverse when the shared coordinates are found.
        regularization_alpha: f64 = 1e-3, in Positive;
        /// Seed of the places beside the diagonal, apart from the run's.
        projection_prng_key: u64 = 0;
        /// Store the shared coordinates; they must be.
        save_projection: bool = true, as Boolean;
        /// Dropout on the input of the change.
        frod_dropout: f64 = 0.0, in Fraction;

        ..targets: LayerTargets = LayerTargets::default();
    }
}

impl FrodConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets by kind; those of one kind have as many inputs.
    fn kinds<'b>(
        &self,
        base: &'b Base,
    ) -> Result<BTreeMap<String, Vec<&'b LinearInfo>>, MethodError> {
        if !self.save_projection {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "save_projection",
                value: "false".to_owned(),
                expected: "the shared coordinates have the signs of eigenvectors, which differ \
                           between libraries, so they must be stored"
                    .to_owned(),
            });
        }
        let mut kinds: BTreeMap<String, Vec<&LinearInfo>> = BTreeMap::new();
        for linear in self.selection().of(base)? {
            kinds
                .entry(kind(&linear.site.path))
                .or_default()
                .push(linear);
        }
        for (kind, targets) in &kinds {
            let first = targets[0];
            let other = targets.iter().find(|linear| linear.inputs != first.inputs);
            if let Some(other) = other {
                return Err(MethodError::Configuration {
                    method: Self::NAME,
                    reason: format!(
                        "`target_modules` takes `{}` and `{}`, which would share `{kind}` and have \
                         other sizes",
                        first.site.path, other.site.path
                    ),
                });
            }
        }
        Ok(kinds)
    }

    /// The number of trained entries beside the diagonal of a matrix of this size.
    fn entries(&self, size: usize) -> usize {
        if self.sparse_rate == 0.0 || size < 2 {
            return 0;
        }
        let entries = ((size * size) as f64 * self.sparse_rate) as usize;
        entries.clamp(1, size * size - size)
    }
}

/// What kind of weight a path is of: its last two parts, or the last one behind a number.
fn kind(path: &str) -> String {
    let parts: Vec<&str> = path.split('.').collect();
    match parts[..] {
        [.., "attention", "output", "dense"] => "attention_output".to_owned(),
        [.., before, last] if before.parse::<u64>().is_err() => format!("{before}_{last}"),
        [.., last] => last.to_owned(),
        [] => String::new(),
    }
}

impl MethodConfig for FrodConfig {
    const NAME: &'static str = "frod";
    const PEFT_TYPE: &'static str = "FROD";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a diagonal and sparse entries in coordinates that layers share";
    const PAPER: &'static str = "Wan et al. 2026, arXiv 2512.23485";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_storage: None,
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![json!({ "sparse_rate": 0.1 })]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut generator = TorchGenerator::new(self.projection_prng_key);
        let mut deltas = Vec::new();
        for (kind, targets) in self.kinds(base)? {
            let (size, count) = (targets[0].inputs, self.entries(targets[0].inputs));
            let weights = targets.iter().map(|linear| frozen_weight(base, linear));
            let weights: Vec<FrozenMatrix> = weights.collect();
            let v = {
                let (weights, alpha) = (weights.clone(), self.regularization_alpha);
                Init::Computed(Arc::new(move || values(coordinates(&weights, alpha))))
            };
            let v = parameters.constant(format!("base_model.frod_V.{kind}"), &[size, size], v);
            let beside = generator.permutation(size * size - size, count);
            let places = Arc::new(OnceLock::new());
            for (at, (linear, weight)) in targets.into_iter().zip(weights).enumerate() {
                let key = |name| format!("{}.frod_lambda_{name}", linear.site.path);
                let coordinates = Coordinates {
                    weight,
                    v: v.clone(),
                    found: Arc::default(),
                };
                let lengths = {
                    let coordinates = coordinates.clone();
                    Init::Computed(Arc::new(move || coordinates.found().1.clone()))
                };
                let frod = Frod {
                    l: parameters.declare(key("l"), &[size], lengths),
                    s: parameters.declare(key("s_values"), &[count], Init::Zeros),
                    coordinates,
                    kind: (at == 0).then(|| kind.clone()),
                    drawn: beside.clone(),
                    places: places.clone(),
                    dropout: self.frod_dropout,
                };
                deltas.push((linear, frod));
            }
        }
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let kinds = self.kinds(base)?;
        let sizes = kinds.values().flatten().map(|linear| linear.inputs);
        Ok(sizes.map(|size| size + self.entries(size)).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["frod_dropout"];

    /// What HF PEFT shows, and where it keeps the base's weights.
    const IGNORED: &'static [&'static str] = &["progressbar", "runtime_offload_base_weight"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), json!("none")),
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
            ("progressbar".to_owned(), json!(true)),
            ("runtime_offload_base_weight".to_owned(), json!(false)),
        ])
    }
}

fn values(tensor: Tensor<2>) -> Vec<f32> {
    let values = tensor.inner().try_into_vec_as::<f32>();
    values.expect("a base is f32 and on a device that can be read")
}

/// `V` of the weights of a kind.
fn coordinates(weights: &[FrozenMatrix], alpha: f64) -> Tensor<2> {
    let stacked = weights.iter().map(FrozenMatrix::to_tensor).collect();
    let stacked = Tensor::cat(stacked, 0);
    let ([rows, columns], device) = (stacked.dims(), stacked.device());
    let basis = |gram: Tensor<2>| {
        let gram = values(gram);
        let gram = gram
            .chunks(columns)
            .map(|row| row.iter().copied().map(f64::from).collect());
        let (_, vectors) = eigenvectors(gram.collect());
        let vectors: Vec<f32> = vectors
            .into_iter()
            .flatten()
            .map(|value| value as f32)
            .collect();
        Tensor::<2>::from_data(TensorData::new(vectors, [columns, columns]), &device).transpose()
    };
    if rows < columns {
        return basis(stacked.clone().transpose().matmul(stacked));
    }
    let [q, r] = qr(stacked);
    let (mut start, mut sum) = (0, Tensor::<2>::zeros([columns, columns], &device));
    for weight in weights {
        let [count, _] = weight.shape();
        let slice = q.clone().narrow(0, start, count);
        let one = Tensor::<2>::eye(columns, &device);
        let term = slice.clone().transpose().matmul(slice) + one.clone() * alpha;
        sum = sum + solution(term, one);
        start += count;
    }
    r.transpose().matmul(basis(sum))
}

/// A weight in the coordinates of its kind, found when they are first needed.
#[derive(Clone, Debug)]
struct Coordinates {
    weight: FrozenMatrix,
    v: Param,
    found: Arc<OnceLock<(Tensor<2>, Vec<f32>)>>,
}

impl Coordinates {
    /// `U`, `[out, in]`, and the lengths `l₀`.
    fn found(&self) -> &(Tensor<2>, Vec<f32>) {
        /// Shorter columns count as zero.
        const SHORTEST: f32 = 1e-12;
        self.found.get_or_init(|| {
            let weight = self.weight.to_tensor();
            let v = self.v.get::<2>().inner();
            // `T Vᵀ = W`.
            let t = solution(v, weight.transpose()).transpose();
            let squares = (t.clone() * t.clone()).sum_dim(0);
            let lengths = values(squares.sqrt());
            let scales = lengths.iter().map(|&length| match length > SHORTEST {
                true => length.recip(),
                false => 0.0,
            });
            let scales: Vec<f32> = scales.collect();
            let scales = Tensor::<1>::from_floats(scales.as_slice(), &t.device());
            (t * scales.unsqueeze::<2>(), lengths)
        })
    }
}

/// FRoD on one linear layer.
#[derive(Debug)]
struct Frod {
    /// The diagonal.
    l: Param,
    /// The values beside it.
    s: Param,
    coordinates: Coordinates,
    /// The kind of weight, for the first layer of a kind, which stores what all of them share.
    kind: Option<String>,
    /// Which entries beside the diagonal are trained, numbered row by row, if no file says it.
    drawn: Vec<usize>,
    /// The same, as row-major places in the whole matrix.
    places: Arc<OnceLock<Vec<i64>>>,
    dropout: f64,
}

impl Frod {
    fn places(&self) -> &[i64] {
        self.places.get_or_init(|| {
            let size = self.l.count();
            let drawn = self.drawn.iter().map(|at| {
                let (row, column) = (at / (size - 1), at % (size - 1));
                (row * size + column + usize::from(column >= row)) as i64
            });
            drawn.collect()
        })
    }
}

impl Change for Frod {
    fn matrix(&self) -> Tensor<2> {
        let size = self.l.count();
        let (l, s) = (self.l.flat(), self.s.flat());
        let device = l.device();
        let diagonal = (0..size as i64).map(|at| at * (size as i64 + 1));
        let places: Vec<i64> = diagonal.chain(self.places().iter().copied()).collect();
        let count = places.len();
        let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
        let entries = match s.dims()[0] {
            0 => l,
            _ => Tensor::cat(vec![l, s], 0),
        };
        let zeros = Tensor::<1>::zeros([size * size], &device);
        let middle = zeros.select_assign(0, places, entries, IndexingUpdateOp::Add);
        let middle = middle.reshape([size, size]);
        let v = self.coordinates.v.get::<2>();
        let u = self.coordinates.found().0.clone();
        u.matmul(middle).matmul(v.transpose()) - self.coordinates.weight.to_tensor()
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn stored(&self) -> Vec<Stored> {
        let Some(kind) = &self.kind else {
            return Vec::new();
        };
        let size = self.l.count() as i64;
        let rows = self.places().iter().map(|at| at / size);
        let columns = self.places().iter().map(|at| at % size);
        let indices = rows.chain(columns).collect();
        let shape = [2, self.s.count()];
        let key = |name| format!("base_model.frod_s_{name}.{kind}");
        vec![
            Stored::integers(key("indices"), &shape, IntegerType::I64, indices),
            Stored::integers(key("size"), &[2], IntegerType::I64, vec![size, size]),
        ]
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        let Some(kind) = &self.kind else {
            return Ok(());
        };
        let (size, count) = (self.l.count() as i64, self.s.count());
        let key = |name| format!("base_model.frod_s_{name}.{kind}");
        let indices = file.take_integers(&key("indices"), &[2, count])?;
        let sizes = file.take_integers(&key("size"), &[2])?;
        let (Some(indices), Some(sizes)) = (indices, sizes) else {
            return Ok(());
        };
        let outside = indices.iter().find(|at| !(0..size).contains(*at));
        if let Some(outside) = outside.or_else(|| sizes.iter().find(|it| **it != size)) {
            return Err(MethodError::Configuration {
                method: FrodConfig::NAME,
                reason: format!("`{}` has {outside}, but the size is {size}", key("indices")),
            });
        }
        let (rows, columns) = indices.split_at(count);
        let places = rows
            .iter()
            .zip(columns)
            .map(|(row, column)| row * size + column);
        // They are not set yet: the method was just built.
        let _ = self.places.set(places.collect());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::kind;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module};

    #[test]
    fn kinds_are_those_of_peft() {
        for (path, expected) in [
            ("bert.encoder.layer.0.attention.self.query", "self_query"),
            (
                "bert.encoder.layer.0.attention.output.dense",
                "attention_output",
            ),
            ("bert.encoder.layer.0.output.dense", "output_dense"),
            ("model.layers.1.self_attn.q_proj", "self_attn_q_proj"),
            ("decoder.block.2.wo", "wo"),
        ] {
            assert_eq!(kind(path), expected);
        }
    }

    #[test]
    fn counts_follow_the_formula() {
        let count = bert_base_count("frod", json!({}), 0);
        assert_eq!(count, 24 * (768 + 5898));
    }

    #[test]
    fn it_starts_at_the_base_but_for_rounding() {
        let model = bert();
        let plain = logits(&model, &epiphyte_models::Identity);
        let moved = distance(&plain, &logits(&model, &module(&model, "frod", json!({}))));
        assert!(moved < 1e-5, "{moved}");
    }
}
