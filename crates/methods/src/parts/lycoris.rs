//! What LoHa and LoKr share, which HF PEFT took over from LyCORIS (Yeh et al. 2024, arXiv
//! 2309.14859): rank, scale, and two kinds of dropout.

use burn::tensor::{Tensor, TensorData};
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Sequences, add, random};
use indexmap::IndexMap;

use crate::MethodError;
use crate::framework::settings::LARGEST_SIZE;
use crate::framework::targets::{Selection, Targets, check_keys, first_match};
use crate::reparametrized::lora::{alpha, alphas};

crate::settings! {
    /// The settings that LoHa and LoKr share, under HF PEFT's names.
    pub struct Lycoris {
        /// Rank of the factors.
        r: usize = 8, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        #[serde(serialize_with = "alpha")]
        alpha: f64 = 8.0, flag "lycoris-alpha", in SinglePrecision;
        /// Probability with which an output of the update is dropped.
        rank_dropout: f64 = 0.0, in Fraction;
        /// Probability with which a layer's whole update is dropped.
        module_dropout: f64 = 0.0, in Fraction;
        /// Other ranks for some modules: name=rank,... where a name is a regular expression for the
        /// end of the path and the first match wins.
        rank_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Other alphas for some modules: name=alpha,...
        #[serde(serialize_with = "alphas")]
        alpha_pattern: IndexMap<String, f64> = IndexMap::new();

        ..targets: Targets = Targets::default();
    }
}

impl Lycoris {
    /// Settings that have a meaning in training only.
    pub(crate) const TRAINING_ONLY: &'static [&'static str] = &["rank_dropout", "module_dropout"];

    fn selection(&self, method: &'static str) -> Selection<'_> {
        self.targets
            .selection(method, |base| base.default_targets.lora)
    }

    /// The targets, each with its rank and scale.
    ///
    /// # Errors
    /// If nothing matches, or a rank of the pattern is none.
    pub(crate) fn targets<'b>(
        &self,
        method: &'static str,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, f32)>, MethodError> {
        let targets = self.selection(method).of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let path = &linear.site.path;
            let rank = first_match(method, &self.rank_pattern, path)?.unwrap_or(self.r);
            let alpha = first_match(method, &self.alpha_pattern, path)?.unwrap_or(self.alpha);
            if !(1..=LARGEST_SIZE).contains(&rank) {
                return Err(MethodError::Value {
                    method,
                    key: "rank_pattern",
                    value: rank.to_string(),
                    expected: format!("a rank is from 1 to {LARGEST_SIZE}"),
                });
            }
            Ok((linear, rank, (alpha / rank as f64) as f32))
        });
        targets.collect()
    }

    /// As [`MethodConfig::check_start`](crate::MethodConfig::check_start).
    pub(crate) fn check_start(&self, method: &'static str, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection(method);
        selection.check_start(base)?;
        let targets = selection.of(base)?;
        check_keys(method, "rank_pattern", &self.rank_pattern, &targets)?;
        check_keys(method, "alpha_pattern", &self.alpha_pattern, &targets)
    }

    /// The settings with the target modules that are left to the base, for the file.
    pub(crate) fn resolved(&self, method: &'static str, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection(method).targets(base)),
            ..self.clone()
        }
    }

    /// Its dropout. What is left of the outputs is divided by their share if it is `rescaled`.
    pub(crate) fn dropout(&self, rescaled: bool) -> UpdateDropout {
        UpdateDropout {
            outputs: self.rank_dropout,
            layer: self.module_dropout,
            rescaled,
        }
    }
}

/// Dropout of a layer's update, drawn for each sequence, so that it does not depend on the batch:
/// HF PEFT draws it for a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct UpdateDropout {
    /// Probability of dropping an output.
    outputs: f64,
    /// Probability of dropping all of them.
    layer: f64,
    /// Whether the outputs that are left are divided by their share.
    rescaled: bool,
}

impl UpdateDropout {
    /// The layer's output with `update` of its input added.
    pub(crate) fn add(
        &self,
        site: &Site,
        product: LazyLinear,
        cx: &ForwardContext<'_>,
        update: impl FnOnce(Tensor<2>) -> Tensor<2>,
    ) -> Tensor<2> {
        let change = update(product.input().clone());
        let [_, outputs] = change.dims();
        let change = match self.factors(site.id(), cx.rows, outputs) {
            Some(factors) => {
                let factors = TensorData::new(factors, change.dims());
                let factors = Tensor::<2>::from_data(factors, &change.device().inner());
                change * factors
            }
            None => change,
        };
        add(product.compute(), change)
    }

    /// A factor for each row and output; none where nothing can be dropped.
    fn factors(&self, site: u64, rows: &Sequences, outputs: usize) -> Option<Vec<f32>> {
        let keys = rows.keys()?;
        if self.outputs == 0.0 && self.layer == 0.0 {
            return None;
        }
        let mut factors = Vec::with_capacity(rows.tokens() * outputs);
        for (key, tokens) in keys.iter().zip(rows.lengths()) {
            let of_sequence = self.of_sequence(random::derive_key(*key, site), outputs);
            for _ in 0..tokens {
                factors.extend_from_slice(&of_sequence);
            }
        }
        Some(factors)
    }

    /// A factor for each output of a sequence.
    fn of_sequence(&self, key: u64, outputs: usize) -> Vec<f32> {
        let draws = random::uniform(key, outputs + 1, 0.0, 1.0);
        if f64::from(draws[outputs]) < self.layer {
            return vec![0.0; outputs];
        }
        let kept = |draw: &f32| f64::from(*draw) >= self.outputs;
        let count = draws[..outputs].iter().filter(|draw| kept(draw)).count();
        let factor = match self.rescaled {
            true => outputs as f32 / count.max(1) as f32,
            false => 1.0,
        };
        let factors = draws[..outputs].iter();
        let factors = factors.map(|draw| if kept(draw) { factor } else { 0.0 });
        factors.collect()
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_ops::Sequences;

    use super::UpdateDropout;

    #[test]
    fn a_share_of_the_outputs_is_dropped_and_the_rest_makes_up_for_it() {
        let dropout = UpdateDropout {
            outputs: 0.25,
            layer: 0.0,
            rescaled: true,
        };
        let factors = dropout.of_sequence(3, 4000);
        let dropped = factors.iter().filter(|factor| **factor == 0.0).count();
        assert!((900..1100).contains(&dropped), "{dropped}");
        let mean = factors.iter().sum::<f32>() / 4000.0;
        assert!((mean - 1.0).abs() < 1e-4, "{mean}");
        assert_ne!(dropout.of_sequence(4, 4000), factors);
    }

    #[test]
    fn a_share_of_the_layers_is_dropped_whole_in_training_only() {
        let dropout = UpdateDropout {
            outputs: 0.0,
            layer: 0.25,
            rescaled: true,
        };
        let of = |key| dropout.of_sequence(key, 3);
        let dropped = (0..1000).filter(|key| of(*key) == [0.0; 3]).count();
        assert!((200..300).contains(&dropped), "{dropped}");
        let whole = (0..1000).filter(|key| of(*key) == [1.0; 3]).count();
        assert_eq!(dropped + whole, 1000);
        assert_eq!(dropout.factors(0, &Sequences::new(vec![0, 2]), 3), None);
    }
}
