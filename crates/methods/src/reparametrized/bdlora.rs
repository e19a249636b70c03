//! BD-LoRA: LoRA of which one matrix has blocks on its diagonal and zeros elsewhere, so that
//! servers that split the base's layers can split the adapter in the same way.
//!
//! Wang, Kübler, Budhathoki, Wang, Kleindessner, "Block-Diagonal LoRA for Eliminating Communication
//! Overhead in Tensor Parallel LoRA Serving", 2025, arXiv 2510.23346; HF PEFT's `use_bdlora`.
//!
//! As LoRA, with n blocks in `A: [r, in]` or in `B: [out, r]`. A file has the blocks only: those
//! of A as `[r, in / n]`, of which the i-th `r / n` rows see the i-th of n parts of the input, and
//! those of B as `[out, r / n]`.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in / n + out)`, or `Σ r (in + out / n)` |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.lora_A.weight`, `<path>.lora_B.weight`; the configuration says which has blocks |
//! | merges | `W + s B A` |

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Dropout, LowRank};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::delta::Delta;
use crate::reparametrized::lora::LoraConfig;

crate::settings! {
    /// The settings of BD-LoRA: those of LoRA, and where the blocks are.
    pub struct BdLoraConfig {
        /// Blocks: nblocks=N, target_modules_bd_a=NAMES, target_modules_bd_b=NAMES with names
        /// joined by |, match_strict=true or false.
        use_bdlora: Blocks = Blocks::default(), as Table;

        ..lora: LoraConfig = LoraConfig::default();
    }
}

/// Where the blocks are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Blocks {
    /// Parts of the names of modules whose A has blocks.
    #[serde(deserialize_with = "names")]
    pub target_modules_bd_a: Option<Vec<String>>,
    /// Parts of the names of modules whose B has blocks.
    #[serde(deserialize_with = "names")]
    pub target_modules_bd_b: Option<Vec<String>>,
    /// The number of blocks.
    pub nblocks: usize,
    /// Whether each target must have blocks.
    pub match_strict: bool,
}

impl Default for Blocks {
    fn default() -> Self {
        Self {
            target_modules_bd_a: None,
            target_modules_bd_b: None,
            nblocks: 1,
            match_strict: true,
        }
    }
}

/// A list of names, or names joined by `|`.
fn names<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        Joined(String),
    }
    let names = Option::<Names>::deserialize(deserializer)?;
    Ok(names.map(|names| match names {
        Names::List(list) => list,
        Names::Joined(text) => text.split('|').map(|name| name.trim().to_owned()).collect(),
    }))
}

/// Which matrix of a layer has blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
    Neither,
}

impl Blocks {
    /// Which matrix of the module at `path` has blocks.
    fn side(&self, path: &str) -> Result<Side, MethodError> {
        let name = path.rsplit('.').next().unwrap_or(path);
        let is_in = |names: &Option<Vec<String>>| {
            names
                .iter()
                .flatten()
                .any(|part| name.contains(part.as_str()))
        };
        let in_both = [&self.target_modules_bd_a, &self.target_modules_bd_b].map(is_in);
        let problem = match in_both {
            [true, false] => return Ok(Side::A),
            [false, true] => return Ok(Side::B),
            [false, false] if !self.match_strict => return Ok(Side::Neither),
            [false, false] => {
                "is in neither target_modules_bd_a nor target_modules_bd_b; name it in one of \
                 them, or set match_strict to false"
            }
            [true, true] => "is in target_modules_bd_a and in target_modules_bd_b; name it in one",
        };
        Err(MethodError::Configuration {
            method: BdLoraConfig::NAME,
            reason: format!("`use_bdlora`: `{name}` {problem}"),
        })
    }

    /// Which matrix of a linear layer has blocks, once their number divides its sides.
    fn checked_side(&self, linear: &LinearInfo, rank: usize) -> Result<Side, MethodError> {
        let side = self.side(&linear.site.path)?;
        let size = match side {
            Side::A => linear.inputs,
            Side::B => linear.outputs,
            Side::Neither => return Ok(side),
        };
        let blocks = self.nblocks;
        if blocks > 0 && size.is_multiple_of(blocks) && rank.is_multiple_of(blocks) {
            return Ok(side);
        }
        Err(MethodError::Value {
            method: BdLoraConfig::NAME,
            key: "use_bdlora",
            value: format!("nblocks={blocks}"),
            expected: format!(
                "it must divide the rank {rank} and the size {size} of `{}`",
                linear.site.path
            ),
        })
    }
}

impl MethodConfig for BdLoraConfig {
    const NAME: &'static str = "bdlora";
    const PEFT_TYPE: &'static str = "LORA";
    const PEFT_VARIANT: Option<(&'static str, bool)> = Some(("use_bdlora", true));
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "LoRA with blocks on the diagonal of one of its matrices";
    const PAPER: &'static str = "Wang et al. 2025, arXiv 2510.23346";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(
        Self::PAPER,
        "extra low-rank path, without communication",
    ));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    /// Names of the last parts of paths begin with letters that these hold.
    fn examples() -> Vec<Value> {
        let blocks = |side: &str| json!({ side: ["q", "v", "c", "W", "o"], "nblocks": 2, "match_strict": false });
        vec![
            json!({ "r": 4, "use_bdlora": blocks("target_modules_bd_a") }),
            json!({ "r": 2, "use_bdlora": blocks("target_modules_bd_b") }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        self.lora.check_variant(Self::NAME, &[])?;
        for (linear, rank, _) in self.lora.targets(Self::NAME, base)? {
            self.use_bdlora.checked_side(linear, rank)?;
        }
        let build = |linear: &LinearInfo, (rank, scaling), parameters: &mut ParameterSet| {
            self.bdlora(linear, rank, scaling, parameters)
        };
        Ok(Box::new(self.lora.layers(
            Self::NAME,
            base,
            parameters,
            build,
        )?))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.lora.check_start_as(Self::NAME, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let blocks = self.use_bdlora.nblocks.max(1);
        self.lora.count_of(Self::NAME, base, |linear, rank| {
            let side = self.use_bdlora.side(&linear.site.path);
            rank * match side.unwrap_or(Side::Neither) {
                Side::A => linear.inputs / blocks + linear.outputs,
                Side::B => linear.inputs + linear.outputs / blocks,
                Side::Neither => linear.inputs + linear.outputs,
            }
        })
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            lora: self.lora.resolved_as(Self::NAME, base),
            ..self.clone()
        }
    }

    crate::parts::lora_files::rules!();

    fn peft_defaults() -> Map<String, Value> {
        LoraConfig::peft_defaults()
    }
}

impl BdLoraConfig {
    fn bdlora(
        &self,
        linear: &LinearInfo,
        rank: usize,
        scaling: f64,
        parameters: &mut ParameterSet,
    ) -> BdLora {
        let path = &linear.site.path;
        let side = self.use_bdlora.side(path).unwrap_or(Side::Neither);
        let blocks = match side {
            Side::Neither => 1,
            _ => self.use_bdlora.nblocks,
        };
        let (inputs, in_b) = match side {
            Side::A => (linear.inputs / blocks, rank),
            Side::B => (linear.inputs, rank / blocks),
            Side::Neither => (linear.inputs, rank),
        };
        // PyTorch's Kaiming start without a slope for blocks, and with √5 for a whole matrix.
        let gain = if side == Side::A { 6.0 } else { 1.0 };
        let init = Init::Uniform {
            bound: (gain / inputs as f64).sqrt(),
        };
        let a = parameters.declare(format!("{path}.lora_A.weight"), &[rank, inputs], init);
        let shape = [linear.outputs, in_b];
        let b = parameters.declare(format!("{path}.lora_B.weight"), &shape, Init::Zeros);
        BdLora {
            a,
            b,
            side,
            blocks,
            scaling: scaling as f32,
            dropout: self.lora.lora_dropout,
        }
    }
}

/// BD-LoRA on one linear layer.
#[derive(Debug)]
struct BdLora {
    a: Param,
    b: Param,
    side: Side,
    blocks: usize,
    scaling: f32,
    dropout: f64,
}

impl BdLora {
    /// `A: [r, in]` and `B: [out, r]`, with their zeros.
    fn matrices(&self) -> [Tensor<2>; 2] {
        let (a, b) = (self.a.get(), self.b.get());
        match self.side {
            Side::A => [block_diagonal(&a, self.blocks), b],
            Side::B => [a, block_diagonal(&b, self.blocks)],
            Side::Neither => [a, b],
        }
    }
}

/// A matrix `[rows, columns]` of blocks below each other, with the blocks on a diagonal: `[rows,
/// blocks · columns]`.
fn block_diagonal(stacked: &Tensor<2>, blocks: usize) -> Tensor<2> {
    let [rows, columns] = stacked.dims();
    let height = rows / blocks;
    let zeros = Tensor::<2>::zeros([height, columns], &stacked.device().inner());
    let zeros = match stacked.is_autodiff() {
        true => zeros.autodiff(),
        false => zeros,
    };
    let rows = (0..blocks).map(|row| {
        let block = |column: usize| match column == row {
            true => stacked.clone().narrow(0, row * height, height),
            false => zeros.clone(),
        };
        Tensor::cat((0..blocks).map(block).collect(), 1)
    });
    Tensor::cat(rows.collect(), 0)
}

impl Delta for BdLora {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let [a, b] = self.matrices();
        product.add_low_rank(LowRank {
            a,
            b,
            scale: self.scaling,
            dropout: Dropout::new(self.dropout, !site.id(), cx.rows),
        })
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [a, b] = self.matrices().map(Tensor::inner);
        weight + b.matmul(a) * self.scaling
    }
}
