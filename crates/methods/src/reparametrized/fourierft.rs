//! FourierFT: a weight's change is the inverse Fourier transform of a few trained coefficients.
//!
//! Gao, Wang, Chen, Liu, Wu, Chen, Li, "Parameter-Efficient Fine-Tuning with Discrete Fourier
//! Transform", ICML 2024, arXiv 2405.03003, section 3.
//!
//! `y = x Wᵀ + b + x ΔWᵀ` with `ΔW = s Re(IDFT(F))`, where the spectrum F: `[out, in]` is zero but
//! for n trained coefficients `c`, whose places `(u, v)` are drawn as HF PEFT draws them from
//! `random_loc_seed`: `ΔW[p, q] = s / (out · in) Σ_k c_k cos(2π (p u_k / out + q v_k / in))`. That
//! is a product of two matrices of cosines and sines, `[out, 2 n]` and `[in, 2 n]`, which layers of
//! one size share; it is computed once a step. Coefficients start normal, or at zero.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ n` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ 2 n` each |
//! | file | `<path>.fourierft_spectrum` `[n]` |
//! | merges | `W + ΔW` |

use std::collections::HashMap;
use std::f64::consts::TAU;

use burn::tensor::{Device, Tensor, TensorData};
use epiphyte_models::{Base, LinearInfo};
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets, check_keys, first_match};
use crate::parts::delta::{Change, Deltas};
use crate::parts::spectrum::{check_count, places};
use crate::parts::start::Start;

crate::settings! {
    /// The settings of FourierFT, under HF PEFT's names.
    pub struct FourierFtConfig {
        /// Trained coefficients of a layer.
        n_frequency: usize = 1000, in AtLeastOne;
        /// Scale of the update.
        scaling: f64 = 150.0, flag "spectrum-scaling", in SinglePrecision;
        /// Seed of the coefficients' places, apart from the run's.
        random_loc_seed: u64 = 777;
        /// Other numbers of coefficients for some modules: name=number,... where a name is a
        /// regular expression for the end of the path and the first match wins.
        n_frequency_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Start: random, or identity.
        init_weights: Start = Start::Random, as Text, unset "random";

        ..targets: Targets = Targets::default();
    }
}

impl FourierFtConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its number of coefficients.
    fn targets<'b>(&self, base: &'b Base) -> Result<Vec<(&'b LinearInfo, usize)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let path = &linear.site.path;
            let count = first_match(Self::NAME, &self.n_frequency_pattern, path)?;
            let count = count.unwrap_or(self.n_frequency);
            check_count(Self::NAME, ("n_frequency", count), count, linear, base)?;
            Ok((linear, count))
        });
        targets.collect()
    }
}

impl MethodConfig for FourierFtConfig {
    const NAME: &'static str = "fourierft";
    const PEFT_TYPE: &'static str = "FOURIERFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "Fourier coefficients of changes of chosen linear layers";
    const PAPER: &'static str = "Gao et al. 2024, arXiv 2405.03003";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 5e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "n_frequency": 20 }),
            json!({
                "n_frequency": 30, "spectrum_scaling": 50, "random_loc_seed": 5,
                "init_weights": "identity", "target_modules": "all-linear",
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let mut waves = HashMap::new();
        let deltas = self.targets(base)?.into_iter().map(|(linear, count)| {
            let key = |name: &str| format!("{}.{name}", linear.site.path);
            let size = [linear.outputs, linear.inputs];
            let init = self.init_weights;
            let init = init.choose(Init::Zeros, Init::Normal { std: 1.0 });
            let spectrum = parameters.declare(key("fourierft_spectrum"), &[count], init);
            let new = || Waves::new(size, count, self.random_loc_seed, parameters.device());
            let waves: Waves = waves.entry((size, count)).or_insert_with(new).clone();
            let scale = self.scaling / (size[0] * size[1]) as f64;
            let change = parameters.derived(key("fourierft_change"), &size, move || {
                let change = waves.sum(spectrum.flat() * scale);
                change.reshape([size[0] * size[1]])
            });
            (linear, FourierFt(change))
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection();
        selection.check_start(base)?;
        let (pattern, targets) = (&self.n_frequency_pattern, selection.of(base)?);
        check_keys(Self::NAME, "n_frequency_pattern", pattern, &targets)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self
            .targets(base)?
            .into_iter()
            .map(|(_, count)| count)
            .sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// The waves of a spectrum's coefficients in a matrix: `cos(a + b) = cos a cos b - sin a sin b`.
#[derive(Clone, Debug)]
struct Waves {
    /// Cosines, then sines, along the rows: `[rows, 2 n]`.
    rows: Tensor<2>,
    /// Cosines, then negative sines, along the columns: `[columns, 2 n]`.
    columns: Tensor<2>,
}

impl Waves {
    fn new(size: [usize; 2], count: usize, seed: u64, device: &Device) -> Self {
        let places = places(size, count, seed);
        let wave = |length: usize, frequency: &dyn Fn(usize) -> usize, sign: f64| {
            let mut values = Vec::with_capacity(length * 2 * count);
            for at in 0..length {
                let angle = |place: &usize| {
                    let turns = at * frequency(*place) % length;
                    TAU * turns as f64 / length as f64
                };
                values.extend(places.iter().map(|place| angle(place).cos() as f32));
                values.extend(
                    places
                        .iter()
                        .map(|place| (sign * angle(place).sin()) as f32),
                );
            }
            Tensor::<2>::from_data(TensorData::new(values, [length, 2 * count]), device)
        };
        Self {
            rows: wave(size[0], &|place| place / size[1], 1.0),
            columns: wave(size[1], &|place| place % size[1], -1.0),
        }
    }

    /// The sum of the waves times their coefficients, `[rows, columns]`.
    fn sum(&self, coefficients: Tensor<1>) -> Tensor<2> {
        let twice = Tensor::cat(vec![coefficients.clone(), coefficients], 0);
        let rows = self.rows.clone() * twice.unsqueeze::<2>();
        rows.matmul(self.columns.clone().transpose())
    }
}

/// `ΔW`, `[out, in]`, of one linear layer.
#[derive(Debug)]
struct FourierFt(Param);

impl Change for FourierFt {
    fn matrix(&self) -> Tensor<2> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::small_bert::bert_base_count;

    /// 24 matrices of the 1000 coefficients of the paper's experiments.
    #[test]
    fn counts_are_the_coefficients() {
        assert_eq!(bert_base_count("fourierft", json!({}), 0), 24_000);
    }
}
