//! BOFT: the input of a linear layer is rotated by a product of sparse rotations, and its output
//! rescaled.
//!
//! Liu, Qiu, Feng, Xiu, Xue, Yu, Feng, Liu, Heo, Peng, Wen, Black, Weller, Schölkopf,
//! "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", ICLR 2024, arXiv
//! 2311.06243, section 4.
//!
//! `y = s ⊙ (x M Wᵀ) + b` with `M = M_{m-1} ⋯ M₀`, `Mᵢ = Pᵢ Rᵢ Pᵢᵀ`: `Rᵢ` is block-diagonal of `in
//! / b` rotations `[b, b]`, and the permutation `Pᵢ` brings together columns that are `2ⁱ` blocks
//! apart. A rotation is `(I - S)(I + S)⁻¹` with the skew-symmetric half of a trained matrix A, `S =
//! (A - Aᵀ) / 2`. A starts at zero and the scales `s: [out]` at one, so nothing changes at first.
//! With dropout some blocks of one factor are the identity for a sequence.
//!
//! HF PEFT computes several factors (`m > 1`) only where its CUDA extension is, and takes one
//! elsewhere.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ m · in · b + out` over the targets |
//! | changes | `Σ in · out` |
//! | file | `<path>.boft_R` `[m, in / b, b, b]`, `<path>.boft_s` `[out, 1]` |
//! | merges | `diag(s) W Mᵀ` |

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Sequences, random, scale_columns};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{Selection, Targets};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::rotation::{cayley, multiply_blocks, rotated_weight};
use crate::parts::start::{Start, normal_around};

crate::settings! {
    /// The settings of BOFT, under HF PEFT's names.
    pub struct BoftConfig {
        /// Columns of a block; 0 if the number of blocks is given.
        boft_block_size: usize = 4;
        /// Number of blocks, in place of the block size; 0 for those of the block size.
        boft_block_num: usize = 0;
        /// Number of rotations that are multiplied.
        boft_n_butterfly_factor: usize = 1, in AtLeastOne;
        /// Share of the blocks of one rotation that are the identity for a sequence.
        boft_dropout: f64 = 0.0, in Fraction;
        /// Start: identity, or random.
        init_weights: Start = Start::Identity, as Text, unset "identity";

        ..targets: Targets = Targets::default();
    }
}

impl BoftConfig {
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
            let (blocks, size) = self.blocks(linear)?;
            Ok((linear, blocks, size))
        });
        targets.collect()
    }

    fn blocks(&self, linear: &LinearInfo) -> Result<(usize, usize), MethodError> {
        let inputs = linear.inputs;
        let wrong = |key, value: usize, expected: String| MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected,
        };
        let (key, given) = match (self.boft_block_size, self.boft_block_num) {
            (size, 0) if size > 0 => ("boft_block_size", size),
            (0, blocks) if blocks > 0 => ("boft_block_num", blocks),
            (size, blocks) => {
                let expected = format!(
                    "`boft_block_num` is {blocks}: one of the two is given and the other is 0, as \
                     their product is the layer's number of inputs"
                );
                return Err(wrong("boft_block_size", size, expected));
            }
        };
        if !inputs.is_multiple_of(given) {
            let path = &linear.site.path;
            let expected = format!("it must divide {inputs}, the number of inputs of `{path}`");
            return Err(wrong(key, given, expected));
        }
        let (blocks, size) = match key {
            "boft_block_size" => (inputs / given, given),
            _ => (given, inputs / given),
        };
        let factors = self.boft_n_butterfly_factor;
        let groups = u32::try_from(factors - 1)
            .ok()
            .and_then(|it| 1usize.checked_shl(it));
        let fits = groups.is_some_and(|groups| blocks.is_multiple_of(groups));
        if factors > 1 && !(fits && size.is_multiple_of(2)) {
            let expected = format!(
                "with {blocks} blocks of {size} columns, as `{}` has, the size must be even and the \
                 number of blocks a multiple of 2 to the power of factors - 1",
                linear.site.path
            );
            return Err(wrong("boft_n_butterfly_factor", factors, expected));
        }
        Ok((blocks, size))
    }
}

impl MethodConfig for BoftConfig {
    const NAME: &'static str = "boft";
    const PEFT_TYPE: &'static str = "BOFT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "products of sparse rotations of the inputs of chosen linear layers, and output scales";
    const PAPER: &'static str = "Liu et al. 2024, arXiv 2311.06243";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 1.5e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({
                "boft_block_num": 2, "boft_block_size": 0, "boft_n_butterfly_factor": 2,
                "target_modules": "all-linear", "init_weights": "random",
            }),
            json!({ "boft_block_size": 2, "boft_n_butterfly_factor": 3 }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let factors = self.boft_n_butterfly_factor;
        let deltas = self
            .targets(base)?
            .into_iter()
            .map(|(linear, blocks, size)| {
                let path = &linear.site.path;
                let key = |name: &str| format!("{path}.{name}");
                let shape = [factors, blocks, size, size];
                let init = Init::Normal { std: 0.1 };
                let init = self.init_weights.choose(Init::Zeros, init);
                let matrices = parameters.declare(key("boft_R"), &shape, init);
                let outputs = linear.outputs;
                let init = normal_around(1.0, 0.1, outputs, &key("boft_s"), parameters);
                let init = self.init_weights.choose(Init::Ones, init);
                let scales = parameters.declare(key("boft_s"), &[outputs, 1], init);
                let rotations = parameters.derived(key("rotations"), &shape, move || {
                    let halves = matrices.flat().reshape([factors * blocks, size, size]) * 0.5;
                    let skew = halves.clone() - halves.swap_dims(1, 2);
                    cayley(skew).reshape([factors * blocks * size * size])
                });
                let device = parameters.device();
                let permutations =
                    (0..factors).map(|factor| Permutation::new(factor, blocks, size, device));
                let bias = base.tensor(&format!("{path}.bias")).filter(|_| linear.bias);
                let boft = Boft {
                    rotations,
                    scales,
                    permutations: permutations.collect(),
                    bias: bias.map(|bias| bias.to_flat()),
                    dropout: self.boft_dropout,
                };
                (linear, boft)
            });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.targets(base)?.into_iter();
        let factors = self.boft_n_butterfly_factor;
        let counts =
            targets.map(|(linear, _, size)| factors * linear.inputs * size + linear.outputs);
        Ok(counts.sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["boft_dropout"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// Which column of x each column of `x P` is, and of `x Pᵀ`; none where nothing moves.
#[derive(Clone, Debug)]
struct Permutation(Option<Arc<[Tensor<1, Int>; 2]>>);

impl Permutation {
    /// Factor `factor`'s: of each `2^factor` blocks the even halves come first, then the odd ones.
    fn new(factor: usize, blocks: usize, size: usize, device: &burn::tensor::Device) -> Self {
        let inputs = blocks * size;
        if factor == 0 {
            return Self(None);
        }
        let (half, group) = (size / 2, size << factor);
        let rows = (0..inputs).step_by(group).flat_map(|start| {
            let halves = 0..group / half;
            let evens = halves.clone().step_by(2);
            evens
                .chain(halves.skip(1).step_by(2))
                .flat_map(move |at| (0..half).map(move |it| (start + at * half + it) as i32))
        });
        let rows: Vec<i32> = rows.collect();
        let mut columns = vec![0; inputs];
        for (at, row) in (0..).zip(&rows) {
            columns[*row as usize] = at;
        }
        let tensor = |values: Vec<i32>| {
            Tensor::<1, Int>::from_data(TensorData::new(values, [inputs]), device)
        };
        Self(Some(Arc::new([tensor(columns), tensor(rows)])))
    }

    /// `x P R Pᵀ`, with the blocks of R; columns of `x P` that are `left`, `[tokens, in]`, are not
    /// rotated.
    fn rotate(&self, x: Tensor<2>, blocks: Tensor<3>, left: Option<Tensor<2>>) -> Tensor<2> {
        let x = match &self.0 {
            Some(places) => x.select(1, places[0].clone()),
            None => x,
        };
        let rotated = multiply_blocks(x.clone(), blocks);
        let rotated = match left {
            Some(left) => rotated.clone() + (x - rotated) * left,
            None => rotated,
        };
        match &self.0 {
            Some(places) => rotated.select(1, places[1].clone()),
            None => rotated,
        }
    }
}

/// BOFT on one linear layer.
#[derive(Debug)]
struct Boft {
    /// `[m, blocks, b, b]`
    rotations: Param,
    /// `[out, 1]`
    scales: Param,
    permutations: Vec<Permutation>,
    /// The base's own.
    bias: Option<Tensor<1>>,
    dropout: f64,
}

impl Boft {
    /// `x M`; for each factor, the columns that are left alone.
    fn rotate(&self, x: Tensor<2>, left: Option<Vec<Vec<f32>>>) -> Tensor<2> {
        let rotations = self.rotations.get::<4>();
        let [factors, blocks, size, _] = rotations.dims();
        let (shape, device) = (x.dims(), x.device().inner());
        (0..factors).rev().fold(x, |x, factor| {
            let of_factor = rotations.clone().narrow(0, factor, 1);
            let of_factor = of_factor.reshape([blocks, size, size]);
            let left = left.as_ref().map(|left| {
                let data = TensorData::new(left[factor].clone(), shape);
                Tensor::<2>::from_data(data, &device)
            });
            self.permutations[factor].rotate(x, of_factor, left)
        })
    }

    /// For each factor, 1 for the columns of each row whose blocks dropout leaves alone, else 0:
    /// blocks of one factor, drawn for each sequence. None where nothing can be dropped.
    fn dropped(&self, site: u64, rows: &Sequences) -> Option<Vec<Vec<f32>>> {
        let keys = rows.keys().filter(|_| self.dropout > 0.0)?;
        let [factors, blocks, size] = [0, 1, 2].map(|dim| self.rotations.shape()[dim]);
        let mut left = vec![Vec::with_capacity(rows.tokens() * blocks * size); factors];
        for (key, tokens) in keys.iter().zip(rows.lengths()) {
            let key = random::derive_key(*key, site);
            let draws = random::uniform(key, blocks + 1, 0.0, 1.0);
            let chosen = (draws[blocks] * factors as f32) as usize;
            let mut order: Vec<usize> = (0..blocks).collect();
            order.sort_by(|a, b| draws[*a].total_cmp(&draws[*b]));
            let mut columns = vec![0.0; blocks * size];
            for block in &order[..(self.dropout * blocks as f64) as usize] {
                columns[block * size..][..size].fill(1.0);
            }
            for (factor, left) in left.iter_mut().enumerate() {
                for _ in 0..tokens {
                    match factor == chosen {
                        true => left.extend_from_slice(&columns),
                        false => left.extend(columns.iter().map(|_| 0.0)),
                    }
                }
            }
        }
        Some(left)
    }
}

impl Delta for Boft {
    fn input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let left = self.dropped(site.id(), cx.rows);
        self.rotate(x, left)
    }

    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let scales = self.scales.flat();
        let bias = product.bias().or(self.bias.as_ref()).cloned();
        let y = scale_columns(product.compute(), scales.clone());
        // The product has the bias in it, which is not scaled.
        match bias {
            Some(bias) => y + (bias.clone() - bias * scales).unsqueeze::<2>(),
            None => y,
        }
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        rotated_weight(weight, |one| self.rotate(one, None)) * self.scales.get::<2>().inner()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde_json::json;

    use super::Permutation;
    use crate::small_bert::{bert, bert_base_count, module, set_random};

    /// Written by `block_butterfly_perm(16, 4 // 2**i, 2, 2)` of peft 0.21.2, i = 1, 2.
    #[test]
    fn permutations_are_those_of_peft() {
        for (factor, expected) in [
            (
                1,
                vec![0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15],
            ),
            (
                2,
                vec![0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15],
            ),
        ] {
            let Permutation(Some(places)) = Permutation::new(factor, 4, 4, &Device::default())
            else {
                panic!("a permutation that moves nothing");
            };
            let rows = places[1].clone().try_into_vec_as::<i32>().unwrap();
            assert_eq!(rows, expected);
        }
        assert!(Permutation::new(0, 4, 4, &Device::default()).0.is_none());
    }

    /// Rotations keep the lengths of the weight's rows, which the scales multiply.
    #[test]
    fn rows_of_the_merged_weight_are_as_long_as_their_scales_say() {
        let model = bert();
        let settings = json!({ "boft_block_size": 2, "boft_n_butterfly_factor": 3 });
        let module = module(&model, "boft", settings);
        let path = "bert.encoder.layer.1.attention.self.value";
        set_random(&module, &format!("{path}.boft_R"));
        let scales = set_random(&module, &format!("{path}.boft_s"));
        module.parameters().derive(false);
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let after = module.merged(&name, model.base()).unwrap().unwrap();
        let after = after.try_into_vec_as::<f32>().unwrap();
        let length = |row: &[f32]| row.iter().map(|it| it * it).sum::<f32>().sqrt();
        for ((before, after), scale) in before.chunks(8).zip(after.chunks(8)).zip(scales) {
            assert!((length(after) - scale.abs() * length(before)).abs() < 1e-5);
            // A row of a small scale is short.
            let is_turned = |(a, b): (&f32, &f32)| (a * scale - b).abs() > 1e-4 * scale.abs();
            assert!(before.iter().zip(after).any(is_turned));
        }
    }

    #[test]
    fn counts_hold_whole_matrices_and_scales() {
        let d = 768;
        assert_eq!(bert_base_count("boft", json!({}), 0), 24 * (d * 4 + d));
        let two = json!({ "boft_n_butterfly_factor": 2 });
        assert_eq!(bert_base_count("boft", two, 0), 24 * (2 * d * 4 + d));
    }
}
