//! OFT: the input of a linear layer is rotated, in blocks of its columns.
//!
//! Qiu, Liu, Feng, Xue, Feng, Liu, Zhang, Weller, Schölkopf, "Controlling Text-to-Image Diffusion
//! by Orthogonal Finetuning", NeurIPS 2023, arXiv 2306.07280; the form on the input from Qiu, Liu,
//! Weller, Schölkopf, "Orthogonal Finetuning Made Scalable", EMNLP 2025, arXiv 2506.19847.
//!
//! `y = (x R) Wᵀ + b`, with R block-diagonal of `in / b` rotations `[b, b]`, or one for all blocks
//! (`block_share`). A block comes from a skew-symmetric `S` whose `b (b - 1) / 2` entries above the
//! diagonal are trained: `R = I + 2 S + 2 S² + 2 S³ + S⁴` with `use_cayley_neumann`, else `R = (I -
//! S)(I + S)⁻¹`. To first order these two are inverses of each other, so that the setting belongs
//! to a trained adapter. S starts at zero, so nothing changes at first. With `coft` each block of S
//! is scaled down to the length `eps / √blocks` before each step. A block size that does not divide
//! `in` is replaced by the nearest that does.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ (in / b) b (b - 1) / 2` over the targets; a block's only with `block_share` |
//! | changes | `Σ in · out` |
//! | file | `<path>.oft_R.weight` `[blocks, b (b - 1) / 2]` |
//! | merges | `W Rᵀ` |
//!
//! HF PEFT's `module_dropout` has no effect in its linear layers, and none here.

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LinearInfo, Site};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::rotation::{
    cayley, cayley_series, multiply_blocks, rotated_weight, skew_symmetric,
};
use crate::parts::start::Start;

crate::settings! {
    /// The settings of OFT, under HF PEFT's names.
    pub struct OftConfig {
        /// Number of blocks, in place of the block size; 0 for those of the block size.
        r: usize = 0, flag "oft-blocks";
        /// Columns of a block; 0 if the number of blocks is given.
        oft_block_size: usize = 32;
        /// Constrain the rotation to a small ball around the identity.
        coft: bool = false;
        /// Size of that ball.
        eps: f64 = 6e-5, flag "coft-eps", in Positive;
        /// One rotation for all blocks of a layer.
        block_share: bool = false;
        /// Compute rotations by a series in place of an inverse.
        use_cayley_neumann: bool = true, as Boolean;
        /// Terms of that series.
        num_cayley_neumann_terms: usize = 5, in AtLeastOne;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

impl OftConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// The targets, each with its number of blocks and their size.
    fn targets<'b>(
        &self,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, usize)>, MethodError> {
        let targets = self.selection().of(base)?;
        let targets = targets.into_iter().map(|linear| {
            let size = self.block_size(linear)?;
            Ok((linear, linear.inputs / size, size))
        });
        targets.collect()
    }

    fn block_size(&self, linear: &LinearInfo) -> Result<usize, MethodError> {
        let inputs = linear.inputs;
        let size = match (self.r, self.oft_block_size) {
            (0, size) if size > 0 => nearest_divisor(inputs, size),
            (blocks, 0) if blocks > 0 => inputs / nearest_divisor(inputs, blocks),
            (blocks, size) => {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "r",
                    value: blocks.to_string(),
                    expected: format!(
                        "`oft_block_size` is {size}: one of the two is given and the other is 0, as \
                         their product is the layer's number of inputs"
                    ),
                });
            }
        };
        match size {
            1 => Err(MethodError::Value {
                method: Self::NAME,
                key: "oft_block_size",
                value: self.oft_block_size.to_string(),
                expected: format!(
                    "of the {inputs} inputs of `{}` that leaves blocks of one column, which cannot \
                     rotate",
                    linear.site.path
                ),
            }),
            size => Ok(size),
        }
    }
}

/// The divisor of `size` that is nearest to `wanted`, the smaller of two that are as near.
fn nearest_divisor(size: usize, wanted: usize) -> usize {
    let divisors = (1..=size).filter(|it| size.is_multiple_of(*it));
    let nearest = divisors.min_by_key(|it| it.abs_diff(wanted));
    nearest.unwrap_or(size)
}

impl MethodConfig for OftConfig {
    const NAME: &'static str = "oft";
    const PEFT_TYPE: &'static str = "OFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "rotations of the inputs of chosen linear layers, in blocks";
    const PAPER: &'static str = "Qiu et al. 2023, arXiv 2306.07280";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "oft_block_size": 4 }),
            json!({
                "oft_blocks": 2, "oft_block_size": 0, "use_cayley_neumann": false,
                "target_modules": "all-linear",
            }),
            json!({ "oft_block_size": 8, "block_share": true, "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let deltas = self
            .targets(base)?
            .into_iter()
            .map(|(linear, blocks, size)| {
                let blocks = if self.block_share { 1 } else { blocks };
                let key = |name: &str| format!("{}.{name}", linear.site.path);
                let init = self.init_weights;
                let init = init.choose(Init::Zeros, Init::Normal { std: 0.1 });
                let count = size * (size - 1) / 2;
                let upper = parameters.declare(key("oft_R.weight"), &[blocks, count], init);
                let radius = self.coft.then(|| self.eps / (blocks as f64).sqrt());
                let rotation = {
                    let (upper, terms) = (upper.clone(), self.num_cayley_neumann_terms);
                    let is_series = self.use_cayley_neumann;
                    parameters.derived(key("rotation"), &[blocks, size, size], move || {
                        let skew = skew_symmetric(constrained(upper.get(), radius), size);
                        let rotation = match is_series {
                            true => cayley_series(skew, terms),
                            false => cayley(skew),
                        };
                        rotation.reshape([blocks * size * size])
                    })
                };
                let oft = Oft {
                    upper,
                    rotation,
                    radius,
                };
                (linear, oft)
            });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        if self.use_cayley_neumann && self.num_cayley_neumann_terms < 2 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "num_cayley_neumann_terms",
                value: self.num_cayley_neumann_terms.to_string(),
                expected: "training needs at least 2: the first term is the identity".to_owned(),
            });
        }
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let counts = self.targets(base)?.into_iter().map(|(_, blocks, size)| {
            let blocks = if self.block_share { 1 } else { blocks };
            blocks * size * (size - 1) / 2
        });
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const IGNORED: &'static [&'static str] = &["module_dropout"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("bias".to_owned(), json!("none")),
            ("module_dropout".to_owned(), json!(0.0)),
            ("modules_to_save".to_owned(), Value::Null),
        ])
    }
}

/// Blocks whose skew-symmetric matrices are no longer than `radius`, `[blocks, entries]`. To the
/// gradient these are the trained values.
fn constrained(upper: Tensor<2>, radius: Option<f64>) -> Tensor<2> {
    let Some(radius) = radius else {
        return upper;
    };
    let plain = upper.clone().inner();
    // Each entry stands twice in the matrix.
    let lengths = (plain.clone() * plain.clone()).sum_dim(1).sqrt() * 2.0f64.sqrt();
    let factors = lengths.recip().mul_scalar(radius).clamp_max(1.0);
    let moved = plain.clone() * factors - plain;
    upper + moved
}

/// OFT on one linear layer.
#[derive(Debug)]
struct Oft {
    upper: Param,
    /// `[blocks, b, b]`
    rotation: Param,
    /// The largest length of a block of S.
    radius: Option<f64>,
}

impl Delta for Oft {
    fn input(&self, _site: &Site, x: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        multiply_blocks(x, self.rotation.get())
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        rotated_weight(weight, |one| multiply_blocks(one, self.rotation.get()))
    }

    fn before_step(&self) {
        if self.radius.is_some() {
            let shape: [usize; 2] = [self.upper.shape()[0], self.upper.shape()[1]];
            self.upper.update(|upper| {
                let count = shape[0] * shape[1];
                constrained(upper.reshape(shape), self.radius).reshape([count])
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::nearest_divisor;
    use crate::small_bert::{bert, bert_base_count, module, set_random, values};

    /// Written by `adjust_oft_parameters` of peft 0.21.2.
    #[test]
    fn sizes_that_do_not_divide_are_replaced_as_in_peft() {
        for (size, wanted, expected) in [
            (768, 32, 32),
            (768, 50, 48),
            (768, 1000, 768),
            (16, 32, 16),
            (12, 5, 4),
            (100, 15, 10),
        ] {
            assert_eq!(
                nearest_divisor(size, wanted),
                expected,
                "{wanted} of {size}"
            );
        }
    }

    #[test]
    fn counts_are_those_above_the_diagonals() {
        assert_eq!(bert_base_count("oft", json!({}), 0), 24 * 24 * 32 * 31 / 2);
        let shared = json!({ "block_share": true });
        assert_eq!(bert_base_count("oft", shared, 0), 24 * 32 * 31 / 2);
    }

    #[test]
    fn constrained_blocks_stay_in_their_ball() {
        let model = bert();
        let settings = json!({ "oft_block_size": 4, "coft": true, "coft_eps": 0.01 });
        let mut module = module(&model, "oft", settings);
        let key = "bert.encoder.layer.0.attention.self.query.oft_R.weight";
        set_random(&module, key);
        module.before_step(crate::StepInfo {
            step: 0,
            total: 1,
            stage: 0,
            stage_step: 0,
            stage_total: 1,
        });
        for block in values(&module, key).chunks(6) {
            let length = (2.0 * block.iter().map(|it| it * it).sum::<f32>()).sqrt();
            assert!((length - 0.01 / 2.0f32.sqrt()).abs() < 1e-6, "{length}");
        }
    }
}
