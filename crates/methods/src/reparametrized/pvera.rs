//! PVeRA: VeRA whose low-rank states are drawn at random in training.
//!
//! Fillioux, Vakalopoulou, Cournède, Christodoulidis, "PVeRA: Probabilistic Vector-Based Random
//! Matrix Adaptation", 2025, arXiv 2512.07703; the definition is HF PEFT's code.
//!
//! `A: [2 r, max in]` and `B: [max out, r]` are frozen, random and shared as in VeRA. `z = λ_d ⊙
//! (dropout(x) Aᵀ)` holds means μ and logarithms v of variances, r each, and `y = x Wᵀ + b + λ_b ⊙
//! ((μ + ε exp(v / 2)) Bᵀ)` with normal ε in training, where each token of each layer has its own,
//! and zero else. `λ_d: [2 r]` starts at `d_initial`, `λ_b: [out]` at zero, so nothing changes at
//! first.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ (2 r + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.pvera_lambda_d` `[2 r]`, `<path>.pvera_lambda_b` `[out]`, once `pvera_A`, `pvera_B` |
//! | merges | `W + diag(λ_b) B diag(λ_d[:r]) A[:r]`: the mean |

use burn::tensor::{Tensor, TensorData};
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Sequences, Weight, add, dropout, exp, linear, random, scale_columns};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::start::Start;
use crate::reparametrized::vera::{Projections, initial_vectors};

crate::settings! {
    /// The settings of PVeRA, under HF PEFT's names.
    pub struct PveraConfig {
        /// Rank of the update.
        r: usize = 256, flag "rank", in Size;
        /// Dropout on the input of the low-rank path.
        pvera_dropout: f64 = 0.0, in Fraction;
        /// Initial value of the vectors between the two matrices.
        d_initial: f64 = 0.1, in SinglePrecision;
        /// Seed of the two matrices, apart from the run's.
        projection_prng_key: u64 = 0;
        /// Store the two matrices, which follow from their seed.
        save_projection: bool = true, as Boolean;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: LayerTargets = LayerTargets::default();
    }
}

impl PveraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }
}

impl MethodConfig for PveraConfig {
    const NAME: &'static str = "pvera";
    const PEFT_TYPE: &'static str = "PVERA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "VeRA whose low-rank states are drawn at random in training";
    const PAPER: &'static str = "Fillioux et al. 2025, arXiv 2512.07703";
    const CLAIMS: Option<crate::Claims> =
        Some(crate::Claims::paper("HF PEFT's documentation", "not said"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 5 }),
            json!({ "r": 4, "target_modules": "all-linear", "save_projection": false }),
            json!({ "r": 3, "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?;
        let (rank, how) = (self.r, (self.projection_prng_key, self.save_projection));
        let names = ["pvera_A", "pvera_B"];
        let projections = Projections::declare(names, [2 * rank, rank], how, &targets, parameters);
        let deltas = targets.into_iter().map(|linear| {
            let key = |name| format!("{}.{name}", linear.site.path);
            let [lambda_d, lambda_b] = initial_vectors(self.init_weights, self.d_initial);
            let lambda_d = parameters.declare(key("pvera_lambda_d"), &[2 * rank], lambda_d);
            let lambda_b = parameters.declare(key("pvera_lambda_b"), &[linear.outputs], lambda_b);
            let pvera = Pvera {
                projections: projections.clone(),
                lambda_d,
                lambda_b,
                rank,
                inputs: linear.inputs,
                outputs: linear.outputs,
                dropout: self.pvera_dropout,
            };
            (linear, pvera)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?;
        let count = |linear: &&LinearInfo| 2 * self.r + linear.outputs;
        Ok(targets.iter().map(count).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const REFUSED: &'static [(&'static str, &'static str)] = &[(
        "sample_at_inference",
        "predictions would be drawn at random, and depend on the texts before and beside them; \
         leave it out to predict from the means",
    )];

    const TRAINING_ONLY: &'static [&'static str] = &["pvera_dropout", "d_initial"];

    /// The seed of the noise, which here follows from the run's.
    const IGNORED: &'static [&'static str] = &["generator_seed"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        let mut defaults = Selection::peft_defaults();
        defaults.insert("generator_seed".to_owned(), Value::Null);
        defaults.insert("sample_at_inference".to_owned(), json!(false));
        defaults
    }
}

/// PVeRA on one linear layer.
#[derive(Debug)]
struct Pvera {
    projections: Projections,
    lambda_d: Param,
    lambda_b: Param,
    rank: usize,
    inputs: usize,
    outputs: usize,
    dropout: f64,
}

impl Delta for Pvera {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let x = dropout(product.input().clone(), self.dropout, !site.id(), cx.rows);
        let a = Weight::Trained(self.projections.a(self.inputs));
        let states = scale_columns(linear(x, &a, None), self.lambda_d.get());
        let mean = states.clone().narrow(1, 0, self.rank);
        let low = match noise(self.rank, site.id(), cx.rows) {
            Some(noise) => {
                let noise = Tensor::<2>::from_data(noise, &mean.device().inner());
                let deviation = exp(states.narrow(1, self.rank, self.rank) * 0.5);
                mean + deviation * noise
            }
            None => mean,
        };
        let b = Weight::Trained(self.projections.b(self.outputs));
        let path = linear(low, &b, None);
        add(product.compute(), scale_columns(path, self.lambda_b.get()))
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let a = self.projections.a(self.inputs).narrow(0, 0, self.rank);
        let mean = self.lambda_d.flat().inner().narrow(0, 0, self.rank);
        let column = |values: Tensor<1>| values.unsqueeze_dim::<2>(1);
        let b = self.projections.b(self.outputs) * column(self.lambda_b.flat().inner());
        weight + b.matmul(a * column(mean))
    }
}

/// Normal noise for each row, `[tokens, columns]`, drawn at its position from its sequence's key;
/// none outside of training.
fn noise(columns: usize, site: u64, rows: &Sequences) -> Option<TensorData> {
    let keys = rows.keys()?;
    let positions: Vec<usize> = rows.positions().collect();
    let mut values = Vec::with_capacity(positions.len() * columns);
    for (key, pair) in keys.iter().zip(rows.boundaries().windows(2)) {
        let key = random::derive_key(*key, site);
        for position in &positions[pair[0]..pair[1]] {
            let places = position * columns..(position + 1) * columns;
            values.extend(random::normal_at(key, places, 1.0));
        }
    }
    Some(TensorData::new(values, [positions.len(), columns]))
}

#[cfg(test)]
mod tests {
    use epiphyte_ops::Sequences;
    use serde_json::json;

    use super::noise;
    use crate::small_bert::bert_base_count;

    #[test]
    fn noise_belongs_to_a_sequence_and_a_position() {
        let sequences = |keys: Option<Vec<u64>>, boundaries| {
            let sequences = Sequences::new(boundaries);
            match keys {
                Some(keys) => sequences.with_keys(keys),
                None => sequences,
            }
        };
        let of = |keys, boundaries| {
            let noise = noise(400, 9, &sequences(keys, boundaries));
            noise.map(|noise| noise.try_to_vec::<f32>().unwrap())
        };
        assert_eq!(of(None, vec![0, 2]), None);
        let both = of(Some(vec![5, 6]), vec![0, 2, 5]).unwrap();
        let second = of(Some(vec![6]), vec![0, 3]).unwrap();
        assert_eq!(both[2 * 400..], second);
        let (mean, square) = both.iter().fold((0.0, 0.0), |(mean, square), it| {
            (mean + it / 2000.0, square + it * it / 2000.0)
        });
        assert!(
            mean.abs() < 0.1 && (square - 1.0).abs() < 0.1,
            "{mean}, {square}"
        );
    }

    #[test]
    fn counts_are_two_ranks_and_the_outputs() {
        assert_eq!(bert_base_count("pvera", json!({}), 0), 24 * (512 + 768));
    }
}
