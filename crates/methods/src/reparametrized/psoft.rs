//! PSOFT: a rotation inside the space of a weight's largest singular directions.
//!
//! Wu, Hu, Min, Wang, "Efficient Orthogonal Fine-Tuning with Principal Subspace Adaptation", arXiv
//! 2505.11235, as HF PEFT has it.
//!
//! `y = x Wᵀ + b + s · dropout(x) Aᵀ (R - 1)ᵀ Bᵀ`, with `s = α / r`. `A: [r, in]` and `B: [out, r]`
//! are the weight's `r` largest singular directions, `s B A` its best approximation: `A = Vᵀ`, `B =
//! U Σ / s` (`psoft_init`), or both with `√(Σ / s)` (`pissa_init`). `R = diag(v_b) (1 + Q)(1 - Q)⁻¹
//! diag(v_a)` with Q skew-symmetric, of which `weight: [r (r - 1) / 2]` is the part above the
//! diagonal; with `use_cayley_neumann` the inverse is cut after some terms, without `psoft_orth`
//! `weight: [r, r]` is the middle factor itself. It starts as the identity, the vectors at one, so
//! nothing changes at first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (r - 1) / 2 + 2 r` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.psoft_R.weight`, `.psoft_R.vector_a`, `.psoft_R.vector_b`; `<path>.psoft_A`, `.psoft_B` |
//! | merges | `W + s B (R - 1) A` |
//!
//! HF PEFT's files lack `A` and `B`. They follow from the base up to the signs of singular vectors
//! alone, which differ between libraries, and a trained `R` is for one choice of them: such files
//! are refused. Ours hold the two.

use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use epiphyte_models::{Base, LazyLinear, LinearInfo};
use epiphyte_ops::{Dropout, FrozenMatrix, LowRank};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets, check_rank};
use crate::parts::delta::{Change, Deltas, frozen_weight};
use crate::parts::rotation::{cayley, cayley_series, skew_symmetric};
use crate::parts::svd::Svd;

crate::settings! {
    /// The settings of PSOFT, under HF PEFT's names.
    pub struct PsoftConfig {
        /// Number of singular directions.
        r: usize = 32, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        #[serde(serialize_with = "super::lora::alpha")]
        psoft_alpha: f64 = 32.0, in SinglePrecision;
        /// Dropout on the input of the path.
        psoft_dropout: f64 = 0.0, in Fraction;
        /// What holds the singular values: psoft_init (B) or pissa_init (A and B alike).
        ab_svd_init: SvdInit = SvdInit::Psoft, as Text, unset "psoft_init";
        /// Keep R orthogonal; without, it is any matrix.
        psoft_orth: bool = true, as Boolean;
        /// Scale what comes out of R by a vector.
        psoft_mag_b: bool = true, as Boolean;
        /// Scale what goes into R by a vector.
        psoft_mag_a: bool = true, as Boolean;
        /// Approximate the inverse in R by a few terms of its series.
        use_cayley_neumann: bool = false, as Boolean;
        /// Number of these terms.
        num_cayley_neumann_terms: usize = 5, in AtLeastOne;
        /// With these terms, the largest norm of the skew-symmetric matrix.
        cayley_neumann_eps: Option<f64> = None, in Fraction;

        ..targets: Targets = Targets::default();
    }
}

/// Where the singular values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SvdInit {
    /// All in `B`.
    #[serde(rename = "psoft_init")]
    Psoft,
    /// Their roots in `A` and `B`.
    #[serde(rename = "pissa_init")]
    Pissa,
}

impl PsoftConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, which have as many singular values as the rank.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        if self.psoft_orth && self.r < 2 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "r",
                value: self.r.to_string(),
                expected: "a rotation is among 2 directions at least; `psoft_orth` false has one"
                    .to_owned(),
            });
        }
        let targets = self.selection().of(base)?;
        for linear in &targets {
            let sizes = [linear.inputs, linear.outputs];
            check_rank(Self::NAME, "r", self.r, &linear.site.path, sizes)?;
        }
        Ok(targets)
    }

    /// The number of values of `weight`.
    fn of_rotation(&self) -> usize {
        match self.psoft_orth {
            true => self.r * (self.r - 1) / 2,
            false => self.r * self.r,
        }
    }

    /// `A` and `B` of a weight, found when the first of the two is asked for.
    fn factors(&self, weight: FrozenMatrix) -> [Init; 2] {
        let (r, init) = (self.r, self.ab_svd_init);
        let scaling = self.psoft_alpha / r as f64;
        let found: Arc<OnceLock<[Vec<f32>; 2]>> = Arc::default();
        [0, 1].map(|which| {
            let (weight, found) = (weight.clone(), found.clone());
            Init::Computed(Arc::new(move || {
                let factors = found.get_or_init(|| {
                    let svd = Svd::new(weight.to_tensor());
                    let factors = match init {
                        SvdInit::Psoft => [svd.right(0..r, 0.0), svd.left(0..r, 1.0) / scaling],
                        SvdInit::Pissa => [svd.right(0..r, 0.5), svd.left(0..r, 0.5)]
                            .map(|it| it / scaling.sqrt()),
                    };
                    factors.map(|factor| {
                        let values = factor.try_into_vec_as::<f32>();
                        values.expect("a base is f32 and on a device that can be read")
                    })
                });
                factors[which].clone()
            }))
        })
    }
}

impl MethodConfig for PsoftConfig {
    const NAME: &'static str = "psoft";
    const PEFT_TYPE: &'static str = "PSOFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "rotations among the largest singular directions of weights";
    const PAPER: &'static str = "Wu et al. 2025, arXiv 2505.11235";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "not said")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 4 }),
            json!({
                "r": 3, "target_modules": "all-linear", "ab_svd_init": "pissa_init", "psoft_alpha": 6,
                "use_cayley_neumann": true, "cayley_neumann_eps": 0.5, "psoft_mag_a": false,
            }),
            json!({ "r": 3, "psoft_orth": false, "psoft_mag_b": false }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let r = self.r;
        let targets = self.targets(base)?.into_iter();
        let deltas: Vec<_> = targets
            .map(|linear| {
                let key = |name| format!("{}.psoft_{name}", linear.site.path);
                let [a, b] = self.factors(frozen_weight(base, linear));
                let a = parameters.constant(key("A"), &[r, linear.inputs], a);
                let b = parameters.constant(key("B"), &[linear.outputs, r], b);
                let weight = match self.psoft_orth {
                    true => parameters.declare(key("R.weight"), &[self.of_rotation()], Init::Zeros),
                    false => {
                        let one = (0..r * r).map(|at| if at % (r + 1) == 0 { 1.0 } else { 0.0 });
                        let one = Init::Values(one.collect());
                        parameters.declare(key("R.weight"), &[r, r], one)
                    }
                };
                let mut vector = |is_there: bool, name| {
                    is_there.then(|| parameters.declare(key(name), &[r], Init::Ones))
                };
                let rotation = Rotation {
                    weight,
                    vector_a: vector(self.psoft_mag_a, "R.vector_a"),
                    vector_b: vector(self.psoft_mag_b, "R.vector_b"),
                    rank: r,
                    orthogonal: self.psoft_orth,
                    terms: self
                        .use_cayley_neumann
                        .then_some(self.num_cayley_neumann_terms),
                    largest: self.cayley_neumann_eps,
                };
                let change = parameters.derived(key("change"), &[r, r], move || {
                    let r = rotation.matrix();
                    let one = Tensor::eye(rotation.rank, &r.device());
                    (r - one).reshape([rotation.rank * rotation.rank])
                });
                let psoft = Psoft {
                    a,
                    b,
                    change,
                    scaling: (self.psoft_alpha / r as f64) as f32,
                    dropout: self.psoft_dropout,
                };
                (linear, psoft)
            })
            .collect();
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let vectors = usize::from(self.psoft_mag_a) + usize::from(self.psoft_mag_b);
        Ok(self.targets(base)?.len() * (self.of_rotation() + vectors * self.r))
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const TRAINING_ONLY: &'static [&'static str] = &["psoft_dropout"];

    /// How HF PEFT finds `A` and `B`, which our files hold.
    const IGNORED: &'static [&'static str] =
        &["psoft_svd", "psoft_svd_lowrank_niter", "random_seed"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("init_weights".to_owned(), json!(true)),
            ("modules_to_save".to_owned(), Value::Null),
            ("psoft_svd".to_owned(), json!("full")),
            ("psoft_svd_lowrank_niter".to_owned(), json!(10)),
            ("random_seed".to_owned(), json!(0)),
        ])
    }
}

/// What `R` is made of.
#[derive(Debug)]
struct Rotation {
    weight: Param,
    vector_a: Option<Param>,
    vector_b: Option<Param>,
    rank: usize,
    orthogonal: bool,
    /// Terms of the series in place of the inverse.
    terms: Option<usize>,
    /// The largest norm of Q with these terms.
    largest: Option<f64>,
}

impl Rotation {
    /// `R`, `[r, r]`.
    fn matrix(&self) -> Tensor<2> {
        let size = self.rank;
        let mut r = match (self.orthogonal, self.terms) {
            (false, _) => self.weight.get(),
            (true, None) => cayley(-self.skew()).reshape([size, size]),
            (true, Some(terms)) => cayley_series(self.bounded(), terms).reshape([size, size]),
        };
        if let Some(vector) = &self.vector_b {
            r = r * vector.flat().reshape([size, 1]);
        }
        if let Some(vector) = &self.vector_a {
            r = r * vector.flat().reshape([1, size]);
        }
        r
    }

    /// `Q`, `[1, r, r]`.
    fn skew(&self) -> Tensor<3> {
        let weight = self.weight.flat();
        let [count] = weight.dims();
        skew_symmetric(weight.reshape([1, count]), self.rank)
    }

    /// `Q`, scaled down to the largest norm that is allowed.
    fn bounded(&self) -> Tensor<3> {
        let q = self.skew();
        let Some(largest) = self.largest else {
            return q;
        };
        let norm = (q.clone() * q.clone()).sum().sqrt();
        match f64::from(norm.clone().inner().into_scalar::<f32>()) > largest {
            true => q * ((norm + 1e-12).recip() * largest).unsqueeze::<3>(),
            false => q,
        }
    }
}

/// PSOFT on one linear layer.
#[derive(Debug)]
struct Psoft {
    a: Param,
    b: Param,
    /// `R - 1`.
    change: Param,
    scaling: f32,
    dropout: f64,
}

impl Psoft {
    /// `B (R - 1)`, `[out, r]`.
    fn left(&self) -> Tensor<2> {
        self.b.get::<2>().matmul(self.change.get())
    }
}

impl Change for Psoft {
    fn matrix(&self) -> Tensor<2> {
        self.left().matmul(self.a.get()) * self.scaling
    }

    fn dropout(&self) -> f64 {
        self.dropout
    }

    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        product.add_low_rank(LowRank {
            a: self.a.get(),
            b: self.left(),
            scale: self.scaling,
            dropout,
        })
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        match file.shape(self.a.key()) {
            Some(_) => Ok(()),
            None => Err(MethodError::Configuration {
                method: PsoftConfig::NAME,
                reason: format!(
                    "the file has no `{}`: HF PEFT computes it from the base when it loads the \
                     adapter, up to the signs of singular vectors, which differ between libraries \
                     and on which the trained rotation depends; merge the adapter with HF PEFT",
                    self.a.key()
                ),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::{bert, bert_base_count, module, set_random, values};

    #[test]
    fn counts_follow_the_formula() {
        let count = bert_base_count("psoft", json!({ "r": 46 }), 0);
        assert_eq!(count, 24 * (46 * 45 / 2 + 2 * 46));
    }

    /// The sum of the squares of a product with an orthogonal matrix stays as it is.
    #[test]
    fn without_vectors_the_subspace_is_rotated() {
        let (model, path) = (bert(), "bert.encoder.layer.0.attention.self.query");
        let settings = json!({ "r": 4, "psoft_mag_a": false, "psoft_mag_b": false });
        let module = module(&model, "psoft", settings);
        set_random(&module, &format!("{path}.psoft_R.weight"));
        module.parameters().derive(false);
        let change = values(&module, &format!("{path}.psoft_change"));
        let r = |at: usize| change[at] + if at.is_multiple_of(5) { 1.0 } else { 0.0 };
        for (a, b) in (0..4).flat_map(|a| (0..4).map(move |b| (a, b))) {
            let product: f32 = (0..4).map(|k| r(a * 4 + k) * r(b * 4 + k)).sum();
            let expected = if a == b { 1.0 } else { 0.0 };
            assert!((product - expected).abs() < 1e-5);
        }
    }

    #[test]
    fn a_single_direction_is_not_rotated() {
        let count = |settings: serde_json::Value| {
            let config = crate::by_name("psoft").unwrap();
            let config = config.configure(settings.as_object().unwrap().clone());
            config.unwrap().count(bert().base())
        };
        let error = count(json!({ "r": 1 })).unwrap_err();
        assert!(error.to_string().contains("`psoft_orth`"), "{error}");
        assert!(count(json!({ "r": 1, "psoft_orth": false })).is_ok());
    }
}
