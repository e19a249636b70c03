//! LoRA: a low-rank path beside a frozen linear layer.
//!
//! Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, arXiv 2106.09685,
//! section 4.1; rank-stabilized scaling from Kalajdzievski 2023, arXiv 2312.03732; two learning
//! rates (LoRA+) from Hayou et al. 2024, arXiv 2402.12354.
//!
//! `y = x Wᵀ + b + s · ((dropout(x) Aᵀ) Bᵀ + c)`, with `A: [r, in]`, `B: [out, r]`, `s = α / r`, or
//! `α / √r` with `use_rslora`, and `c: [out]` with `lora_bias`. Word embeddings as a target:
//! `E[id] + s · B A[:, id]`, with `A: [r, vocabulary]` and `B: [hidden, r]`.
//!
//! How `A` and `B` start (`init_lora_weights`):
//!
//! | | |
//! | --- | --- |
//! | `kaiming`, `true` in a file | `A` uniform in `±1/√in` (Kaiming with a = √5), `B` zero |
//! | `gaussian` | `A` normal with standard deviation `1/r`, `B` zero |
//! | `false` | both as PyTorch starts linear layers |
//! | `orthogonal` | both at random with `B A = 0` (r even) |
//! | `pissa` | the largest singular values of W (Meng et al. 2024, arXiv 2404.02948) |
//! | `pissa_niter_N` | the same from N random subspace iterations |
//! | `olora` | Q and R of W (Büyükakyüz 2024, arXiv 2406.01775) |
//! | `mica` | `B` the last left singular vectors, frozen, `A` zero (arXiv 2604.01694) |
//! | `eva` | `A` the first singular vectors of the layer's inputs (Paischer et al. 2024, arXiv 2410.07170), `B` zero |
//! | `corda` | W seen through the covariance of its inputs (Yang et al. 2024, arXiv 2406.05223) |
//! | `lora_ga` | singular vectors of W's gradient (Wang et al. 2024, arXiv 2407.05000) |
//! | `loftq` | the largest singular values of `W - Q`, what quantization to Q has changed (Li et al. 2023, arXiv 2310.08659) |
//!
//! What is not zero at first is taken out of W, as in HF PEFT: `W - s B₀ A₀`. With `pissa` and
//! `olora` the file has `A` and `B`, and who reads it computes `B₀ A₀` from W again, as PEFT does.
//! Where `B₀ A₀` follows from data or random draws, the file is plain LoRA of twice the rank, with
//! `[A; A₀]` and `[B, -B₀]`, PEFT's conversion for sharing such adapters.
//!
//! LoftQ takes nothing out: it gives back a part of what quantization took. It is one iteration of
//! the paper's algorithm, after which the base is quantized as any is; more of them would quantize
//! `W - s B A`, another base for each adapter. Unlike HF PEFT's, `s B₀ A₀` is the approximation,
//! whatever the scaling. Its file is plain LoRA: in PEFT `loftq` would quantize the base again.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ r (in + out)` over the targets, `out` more for `lora_bias`; `Σ r in` for `mica` |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.lora_A.weight` `[r, in]`, `<path>.lora_B.weight` `[out, r]`, `<path>.lora_B.bias` `[out]`; `<words>.lora_embedding_A`, `<words>.lora_embedding_B`; biases and modules that are trained whole |
//! | merges | `W + s B A`, `b + s c`, `E + s (B A)ᵀ` |

mod adapterhub;
mod alpha;
mod data_start;
mod init;
mod layer;
mod variant;

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, LinearInfo, Site, StandIn};
use epiphyte_ops::FrozenMatrix;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

pub(crate) use self::alpha::{alpha, alphas, optional_alpha};
pub use self::init::LoraInit;
use self::init::written_init;
pub(crate) use self::layer::Lora;
use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::method::{
    KeyStyle, Method, MethodConfig, Stored, StoredTensors, load_stored,
};
use crate::framework::parameters::{Init, Param, ParamGroup, ParameterSet};
use crate::framework::settings::LARGEST_SIZE;
use crate::framework::targets::{
    Selection, TableInfo, Targets, check_keys_of, check_rank, first_match,
};
use crate::framework::taxonomy::Claims;
use crate::framework::whole::WholeTensors;
use crate::parts::delta::Deltas;
use crate::parts::low_rank::{LowRankLayers, WordPath};
use crate::parts::low_rank_start::{self as start, CordaConfig, LoraGaConfig, Start, to_vec};
use crate::parts::replace::Replaced;
use crate::parts::svd::Svd;

crate::settings! {
    /// The settings of LoRA, under HF PEFT's names.
    pub struct LoraConfig {
        /// Rank of the update.
        r: usize = 8, flag "rank", in Size;
        /// Scale of the update: it is multiplied by alpha / rank.
        #[serde(serialize_with = "alpha")]
        lora_alpha: f64 = 16.0, flag "alpha", in SinglePrecision;
        /// Dropout on the input of the low-rank path.
        lora_dropout: f64 = 0.0, flag "dropout", in Fraction;
        /// Multiply by alpha / sqrt(rank) instead (rank-stabilized LoRA).
        use_rslora: bool = false;
        /// Train a bias with B.
        lora_bias: bool = false;
        /// Other ranks for some modules: name=rank,... where a name is a regular expression for the
        /// end of the path and the first match wins.
        rank_pattern: IndexMap<String, usize> = IndexMap::new();
        /// Other alphas for some modules: name=alpha,...
        #[serde(serialize_with = "alphas")]
        alpha_pattern: IndexMap<String, f64> = IndexMap::new();
        /// How A and B start: kaiming, gaussian, false, orthogonal, pissa, pissa_niter_N, olora,
        /// mica, eva, corda, lora_ga or, over a quantized base, loftq.
        init_lora_weights: LoraInit = LoraInit::Kaiming, as Text, unset "kaiming";
        /// What the learning rate of B is multiplied by (LoRA+).
        loraplus_lr_ratio: f64 = 1.0, in Positive;
        /// Settings of CorDA: corda_method=ipm or kpm.
        corda_config: Option<CordaConfig> = None, as Table;
        /// Settings of LoRA-GA: direction, scale, stable_gamma.
        lora_ga_config: Option<LoraGaConfig> = None, as Table;

        ..targets: Targets = Targets::default();
        ..whole: WholeTensors = WholeTensors::default();
    }
}

/// Linear layers, each with its rank and scaling, and the word embeddings if they are a target.
type Anywhere<'b> = (Vec<(&'b LinearInfo, usize, f64)>, Option<TableInfo<'b>>);

impl LoraConfig {
    fn selection(&self, method: &'static str) -> Selection<'_> {
        self.targets
            .selection(method, |base| base.default_targets.lora)
    }

    /// The targets of LoRA itself, which acts outside of the layers too.
    fn anywhere<'b>(&self, base: &'b Base) -> Result<Anywhere<'b>, MethodError> {
        let (linears, words) = self.selection(Self::NAME).anywhere(base)?;
        Ok((self.scaled(Self::NAME, linears)?, words))
    }

    /// Linear layers, each with its rank and scaling.
    fn scaled<'b>(
        &self,
        method: &'static str,
        targets: Vec<&'b LinearInfo>,
    ) -> Result<Vec<(&'b LinearInfo, usize, f64)>, MethodError> {
        let targets = targets.into_iter().map(|linear| {
            let (rank, scaling) = self.scale(method, &linear.site.path)?;
            Ok((linear, rank, scaling))
        });
        targets.collect()
    }

    /// Rank and scaling of the module at `path`.
    pub(crate) fn scale(
        &self,
        method: &'static str,
        path: &str,
    ) -> Result<(usize, f64), MethodError> {
        let rank = first_match(method, &self.rank_pattern, path)?;
        let rank = rank.unwrap_or(self.r);
        let alpha = first_match(method, &self.alpha_pattern, path)?;
        let alpha = alpha.unwrap_or(self.lora_alpha);
        if !(alpha as f32).is_finite() {
            return Err(MethodError::Value {
                method,
                key: "alpha_pattern",
                value: format!("{alpha:e}"),
                expected: "it must be a number that is finite in single precision".to_owned(),
            });
        }
        let divisor = if self.use_rslora {
            (rank as f64).sqrt()
        } else {
            rank as f64
        };
        Ok((rank, alpha / divisor))
    }

    /// Declares `A` and `B` of a target that starts without reading the weight.
    pub(crate) fn declare(
        &self,
        linear: &LinearInfo,
        rank: usize,
        parameters: &mut ParameterSet,
    ) -> [Param; 2] {
        let uniform = |inputs: usize| Init::Uniform {
            bound: 1.0 / (inputs as f64).sqrt(),
        };
        let init = match self.init_lora_weights {
            LoraInit::Gaussian => [
                Init::Normal {
                    std: 1.0 / rank as f64,
                },
                Init::Zeros,
            ],
            LoraInit::Random => [uniform(linear.inputs), uniform(rank)],
            LoraInit::Orthogonal => {
                let (seed, path) = (parameters.seed(), linear.site.path.clone());
                let shape = [linear.outputs, linear.inputs];
                let start = Start::computed(move || start::orthogonal(seed, &path, shape, rank));
                [start.init(0), start.init(1)]
            }
            _ => [uniform(linear.inputs), Init::Zeros],
        };
        self.declare_with(linear, rank, init, parameters)
    }

    /// Declares `A` and `B` of a target with these initial values.
    fn declare_with(
        &self,
        linear: &LinearInfo,
        rank: usize,
        [a, b]: [Init; 2],
        parameters: &mut ParameterSet,
    ) -> [Param; 2] {
        let path = &linear.site.path;
        let a = parameters.declare(format!("{path}.lora_A.weight"), &[rank, linear.inputs], a);
        let key = format!("{path}.lora_B.weight");
        let shape = [linear.outputs, rank];
        let b = match self.init_lora_weights {
            LoraInit::Mica => parameters.constant(key, &shape, b),
            _ => parameters.declare_in(self.group_of_b(), key, &shape, b),
        };
        [a, b]
    }

    /// The optimizer's rules for `B` (LoRA+).
    fn group_of_b(&self) -> ParamGroup {
        ParamGroup {
            learning_rate_scale: self.loraplus_lr_ratio,
            ..ParamGroup::default()
        }
    }

    /// LoRA of one linear layer.
    fn lora(
        &self,
        base: &Base,
        linear: &LinearInfo,
        (rank, scaling): (usize, f64),
        parameters: &mut ParameterSet,
    ) -> Lora {
        let path = &linear.site.path;
        let weight = base.tensor(&weight_name(base, path));
        let weight = weight.and_then(|weight| weight.matrix());
        let weight = weight.expect("a linear layer has a matrix").clone();
        let key = parameters.seed() ^ name_id(path);
        let taken = match self.init_lora_weights {
            LoraInit::Pissa => Some(Start::computed({
                let weight = weight.clone();
                move || start::pissa(&Svd::new(weight.to_tensor()), rank, scaling)
            })),
            LoraInit::PissaIterations(number) => Some(Start::computed({
                let weight = weight.clone();
                move || {
                    let weight = weight.to_tensor();
                    let svd = start::randomized_svd(weight, rank, number, key);
                    start::pissa(&svd, rank, scaling)
                }
            })),
            LoraInit::Olora => Some(Start::computed({
                let weight = weight.clone();
                move || start::olora(&weight, rank)
            })),
            LoraInit::Corda | LoraInit::LoraGa => Some(Start::of_data()),
            _ => None,
        };
        let given = (self.init_lora_weights == LoraInit::Loftq).then(|| {
            let weight = weight.clone();
            Start::computed(move || {
                let lost = weight.to_unquantized_tensor() - weight.to_tensor();
                start::pissa(&Svd::new(lost), rank, scaling)
            })
        });
        let [a, b] = match (taken.as_ref().or(given.as_ref()), self.init_lora_weights) {
            (Some(_), init) if init.reads_data() => {
                self.declare_with(linear, rank, [Init::Zeros, Init::Zeros], parameters)
            }
            (Some(start), _) => {
                self.declare_with(linear, rank, [start.init(0), start.init(1)], parameters)
            }
            (None, LoraInit::Mica) => {
                let start = Start::computed({
                    let weight = weight.clone();
                    move || {
                        let svd = Svd::new(weight.to_tensor());
                        let all = svd.values.len();
                        let b = svd.left(all - rank..all, 0.0);
                        [b.clone(), b]
                    }
                });
                self.declare_with(linear, rank, [Init::Zeros, start.init(1)], parameters)
            }
            _ => self.declare(linear, rank, parameters),
        };
        let bias = self.lora_bias.then(|| {
            let key = format!("{path}.lora_B.bias");
            let init = match self.init_lora_weights {
                LoraInit::Random => Init::Uniform {
                    bound: 1.0 / (rank as f64).sqrt(),
                },
                _ => Init::Zeros,
            };
            parameters.declare_in(self.group_of_b(), key, &[linear.outputs], init)
        });
        Lora {
            a,
            b,
            bias,
            scaling: scaling as f32,
            dropout: self.lora_dropout,
            taken,
        }
    }

    /// LoRA of the word embeddings.
    fn word_path(
        &self,
        base: &Base,
        table: TableInfo<'_>,
        parameters: &mut ParameterSet,
    ) -> Result<WordPath, MethodError> {
        let path = table.path;
        let (rank, scaling) = self.scale(Self::NAME, path)?;
        let normal = |std| Init::Normal { std };
        let [a, b] = match self.init_lora_weights {
            LoraInit::Random => [normal(1.0), normal(1.0)],
            LoraInit::Mica => {
                let words = base.word_embedding_table().clone();
                let start = Start::computed(move || {
                    let svd = Svd::new(words.to_tensor());
                    let all = svd.values.len();
                    let b = svd.right(all - rank..all, 0.0).transpose();
                    [b.clone(), b]
                });
                [Init::Zeros, start.init(1)]
            }
            _ => [Init::Zeros, normal(1.0)],
        };
        let key = format!("{path}.lora_embedding_A");
        let a = parameters.declare(key, &[rank, table.rows], a);
        let (key, shape) = (format!("{path}.lora_embedding_B"), [table.columns, rank]);
        let b = match self.init_lora_weights {
            LoraInit::Mica => parameters.constant(key, &shape, b),
            _ => parameters.declare(key, &shape, b),
        };
        Ok(WordPath {
            table: base.word_embeddings.clone(),
            a,
            b,
            scaling: scaling as f32,
        })
    }

    /// Whether one of these linear layers, or the word embeddings, is at a path.
    fn wraps<'t>(
        targets: &'t [(&LinearInfo, usize, f64)],
        words: Option<TableInfo<'t>>,
    ) -> impl Fn(&str) -> bool + 't {
        move |path| {
            let is_words = words.is_some_and(|table| table.path == path);
            is_words || targets.iter().any(|(linear, ..)| linear.site.path == path)
        }
    }

    /// Checks that each name of a module or a pattern matches something.
    fn check_patterns(
        &self,
        method: &'static str,
        targets: &[&LinearInfo],
        words: Option<TableInfo<'_>>,
        base: &Base,
    ) -> Result<(), MethodError> {
        self.whole.check_start(method, base)?;
        let most = self.rank_pattern.iter().max_by_key(|(_, rank)| **rank);
        if let Some((key, rank)) = most.filter(|(_, rank)| **rank > LARGEST_SIZE) {
            return Err(MethodError::Value {
                method,
                key: "rank_pattern",
                value: format!("{key}={rank}"),
                expected: format!("a rank is at most {LARGEST_SIZE}"),
            });
        }
        let words = words.map(|table| table.path);
        let paths = targets.iter().map(|target| &*target.site.path);
        let paths: Vec<&str> = paths.chain(words).collect();
        check_keys_of(method, "rank_pattern", &self.rank_pattern, &paths)?;
        check_keys_of(method, "alpha_pattern", &self.alpha_pattern, &paths)
    }
}

/// The name of a linear layer's weight: of a head that is tied to them, the word embeddings.
fn weight_name(base: &Base, path: &str) -> String {
    let name = format!("{path}.weight");
    match base.tensor(&name) {
        Some(_) => name,
        None => base.word_embeddings.clone(),
    }
}

impl MethodConfig for LoraConfig {
    const NAME: &'static str = "lora";
    const PEFT_TYPE: &'static str = "LORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a low-rank path added to chosen linear layers";
    const PAPER: &'static str = "Hu et al. 2021, arXiv 2106.09685";
    const CLAIMS: Option<Claims> = Some(Claims::survey("none"));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 3e-3;
    const MERGES: bool = true;

    /// Starts that take something out of the base give the same but for rounding.
    fn starts_as_identity(&self) -> bool {
        use LoraInit::{Eva, Gaussian, Kaiming, Mica};
        matches!(self.init_lora_weights, Kaiming | Gaussian | Mica | Eva)
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({}),
            json!({ "target_modules": "all-linear", "r": 4, "alpha": 2, "use_rslora": true }),
            json!({ "r": 2, "bias": "lora_only", "loraplus_lr_ratio": 4 }),
            json!({ "r": 2, "init_lora_weights": "pissa", "bias": "all" }),
            json!({ "r": 2, "init_lora_weights": "mica" }),
            json!({ "r": 2, "init_lora_weights": "corda" }),
            json!({ "r": 2, "init_lora_weights": "lora_ga" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let (targets, words) = self.anywhere(base)?;
        let reads_weight = !matches!(
            self.init_lora_weights,
            LoraInit::Kaiming | LoraInit::Gaussian | LoraInit::Random | LoraInit::Orthogonal
        );
        let room = match self.init_lora_weights {
            LoraInit::LoraGa => 2,
            _ => 1,
        };
        for (linear, rank, _) in targets.iter().filter(|_| reads_weight) {
            let sizes = [linear.inputs, linear.outputs];
            check_rank(Self::NAME, "r", rank * room, &linear.site.path, sizes)?;
        }
        let mut sources = BTreeMap::new();
        let deltas = targets.iter().map(|&(linear, rank, scaling)| {
            let path = &linear.site.path;
            if self.init_lora_weights.reads_data() {
                sources.insert(path.clone(), (rank, scaling));
            }
            (linear, self.lora(base, linear, (rank, scaling), parameters))
        });
        let linears = Deltas::new(base, deltas.collect::<Vec<_>>());
        let names = self.whole.names(base, &Self::wraps(&targets, words));
        let words = words.map(|table| self.word_path(base, table, parameters));
        let layers = LowRankLayers {
            linears,
            words: words.transpose()?,
            whole: Replaced::with_keys(names, base, parameters),
        };
        Ok(Box::new(LoraModel {
            layers,
            config: self.clone(),
            base: (!sources.is_empty()).then(|| base.clone()),
            sources,
            seed: parameters.seed(),
        }))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        let selection = self.selection(Self::NAME);
        selection.check_start_anywhere(base)?;
        let (linears, words) = selection.anywhere(base)?;
        self.check_patterns(Self::NAME, &linears, words, base)?;
        let targets = self.scaled(Self::NAME, linears)?;
        let odd = targets.iter().find(|(_, rank, _)| rank % 2 == 1);
        if self.init_lora_weights == LoraInit::Orthogonal
            && let Some((_, rank, _)) = odd
        {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "r",
                value: rank.to_string(),
                expected: "init_lora_weights = orthogonal needs an even rank".to_owned(),
            });
        }
        if self.init_lora_weights == LoraInit::Loftq {
            let weights = targets.iter().filter_map(|(linear, ..)| {
                base.tensor(&weight_name(base, &linear.site.path))?.matrix()
            });
            if !weights.into_iter().all(FrozenMatrix::was_quantized_here) {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "init_lora_weights",
                    value: written_init(self.init_lora_weights),
                    expected: "it starts from what quantization changes: pass --quantization nf4 \
                               with a base whose files are not quantized"
                        .to_owned(),
                });
            }
        }
        let has_patterns = !self.rank_pattern.is_empty() || !self.alpha_pattern.is_empty();
        if self.init_lora_weights.is_stored_plain() && self.use_rslora && has_patterns {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "init_lora_weights",
                value: written_init(self.init_lora_weights),
                expected: "it is stored as plain LoRA of twice the rank, which use_rslora with \
                           rank or alpha patterns cannot say; leave out one of them"
                    .to_owned(),
            });
        }
        if self.lora_bias && !matches!(self.init_lora_weights, LoraInit::Kaiming | LoraInit::Random)
        {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "lora_bias",
                value: "true".to_owned(),
                expected: "it works with init_lora_weights = kaiming or false, as in HF PEFT"
                    .to_owned(),
            });
        }
        Ok(())
    }

    fn to_adapterhub(&self, base: &Base) -> Result<Option<Map<String, Value>>, MethodError> {
        adapterhub::to_adapterhub(self, base)
    }

    fn of_adapterhub(config: &Map<String, Value>, base: &Base) -> Option<Self> {
        adapterhub::of_adapterhub(config, base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let (targets, words) = self.anywhere(base)?;
        let whole = self.whole.count(base, &Self::wraps(&targets, words));
        let trains_b = usize::from(self.init_lora_weights != LoraInit::Mica);
        let of_linears = targets.iter().map(|(linear, rank, _)| {
            let bias = if self.lora_bias { linear.outputs } else { 0 };
            rank * (linear.inputs + trains_b * linear.outputs) + bias
        });
        let of_words = match words {
            Some(table) => {
                let (rank, _) = self.scale(Self::NAME, table.path)?;
                rank * (table.rows + trains_b * table.columns)
            }
            None => 0,
        };
        Ok(of_linears.sum::<usize>() + of_words + whole)
    }

    fn resolved(&self, base: &Base) -> Self {
        self.resolved_as(Self::NAME, base)
    }

    /// Our alpha is twice the rank unless said otherwise, PEFT's is 8.
    fn file_defaults() -> Map<String, Value> {
        Map::from_iter([("lora_alpha".to_owned(), json!(8))])
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &[
        "lora_dropout",
        "loraplus_lr_ratio",
        "corda_config",
        "lora_ga_config",
    ];

    const OWN: &'static [&'static str] = &["loraplus_lr_ratio"];

    const REFUSED: &'static [(&'static str, &'static str)] = &[
        (
            "target_parameters",
            "it adapts the fused weights of experts, which no family here has",
        ),
        (
            "layer_replication",
            "it adds copies of layers to the base: save the deeper base in Python, \
             model.get_base_model().save_pretrained(...), and name it as the base, with this key \
             set to null",
        ),
        (
            "arrow_config",
            "it routes between adapters of several directories; merge these instead",
        ),
        (
            "ensure_weight_tying",
            "it ties the changes of the embeddings and of the head, which one file of LoRA cannot \
             say; train without it",
        ),
    ];

    const IGNORED: &'static [&'static str] = &[
        // What training began with; a finished adapter has its ranks and scales.
        "eva_config",
        "loftq_config",
        // In HF PEFT it acts on GPTQ's layers alone, and elsewhere is plain LoRA.
        "use_qalora",
        "qalora_group_size",
        // Both change gradients in training only.
        "monteclora_config",
        "velora_config",
    ];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection(Self::NAME).computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        let Value::Object(defaults) = json!({
            "alora_invocation_tokens": null, "arrow_config": null,
            "ensure_weight_tying": false, "eva_config": null,
            "kasa_config": null, "layer_replication": null, "loftq_config": {},
            "megatron_config": null, "megatron_core": "megatron.core",
            "monteclora_config": null, "qalora_group_size": 16, "target_parameters": null,
            "trainable_token_indices": null, "use_bdlora": null, "use_dora": false,
            "use_qalora": false, "velora_config": null,
        }) else {
            unreachable!("the literal is an object");
        };
        defaults
    }
}

/// LoRA on a base.
#[derive(Debug)]
struct LoraModel {
    layers: LowRankLayers<Lora>,
    config: LoraConfig,
    /// The base, where the training data decides the start.
    base: Option<Base>,
    /// Then rank and scaling of each target, by path.
    sources: BTreeMap<String, (usize, f64)>,
    seed: u64,
}

/// Tensors of HF PEFT's VeLoRA and MonteCLoRA that only training reads.
const TRAINING_TENSORS: [&str; 5] = [
    "lora_velora_embed",
    "lora_monteclora_sampler.std_prior",
    "lora_monteclora_sampler.expert_weights_prior",
    "lora_monteclora_sampler.gaussian_var_prior",
    "lora_monteclora_sampler.expert_weights",
];

impl Adapter for LoraModel {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.layers.parameter(name)
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.layers.lookup(table, ids, rows, cx)
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.layers.linear(site, product, cx)
    }

    fn first_layer(&self) -> usize {
        self.layers.first_layer()
    }

    fn adapts_language_head(&self) -> bool {
        self.layers.adapts_language_head()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.layers.uses(hook)
    }
}

impl Method for LoraModel {
    fn begin_stage(
        &mut self,
        _stage: usize,
        _head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        self.start_from(data)
    }

    fn state(&self) -> Vec<Stored> {
        let paths = self.sources.keys();
        let taken = paths.filter_map(|path| {
            let pair = self.layers.linears.get(path)?.taken()?;
            let stored = |name: &str, matrix: &Tensor<2>| {
                let (shape, values) = (matrix.dims(), to_vec(matrix.clone()));
                Stored::f32(format!("{path}.{name}"), &shape, values)
            };
            Some([stored("start_A", &pair[0]), stored("start_B", &pair[1])])
        });
        taken.flatten().collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        for path in self.sources.keys() {
            let Some(lora) = self.layers.linears.get(path) else {
                continue;
            };
            let Some(taken) = &lora.taken else { continue };
            let device = lora.a.flat().device().inner();
            let mut take = |name: &str, param: &Param| {
                let shape = [param.shape()[0], param.shape()[1]];
                let values = state.take(&format!("{path}.{name}"), &shape)?;
                let data = values.map(|values| TensorData::new(values, shape));
                Ok::<_, MethodError>(data.map(|data| Tensor::<2>::from_data(data, &device)))
            };
            if let (Some(a), Some(b)) = (take("start_A", &lora.a)?, take("start_B", &lora.b)?) {
                taken.set([a, b]);
            }
        }
        Ok(())
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let is_plain = self.config.init_lora_weights.is_stored_plain();
        let stored = parameters.stored().map(|param| {
            let path = param.key().strip_suffix(".weight");
            let path = path.and_then(|path| path.rsplit_once('.'));
            let lora = path.filter(|_| is_plain).and_then(|(path, matrix)| {
                let lora = self.layers.linears.get(path)?;
                Some((lora.joined()?, matrix))
            });
            match lora {
                Some(([a, b], matrix)) => {
                    let matrix = if matrix == "lora_A" { a } else { b };
                    Stored::f32(param.key(), &matrix.dims(), to_vec(matrix))
                }
                None => Stored::of(param),
            }
        });
        stored.collect()
    }

    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let init = self.config.init_lora_weights;
        if init == LoraInit::Loftq {
            return Err(MethodError::Value {
                method: LoraConfig::NAME,
                key: "init_lora_weights",
                value: written_init(init),
                expected: "HF PEFT quantizes the base by itself for it, and the file does not say \
                           to what; train here with loftq over a quantized base"
                    .to_owned(),
            });
        }
        if init.is_stored_plain() {
            return Err(MethodError::Value {
                method: LoraConfig::NAME,
                key: "init_lora_weights",
                value: written_init(init),
                expected: "what such a start took out of the base is not in the file; convert the \
                           adapter to plain LoRA where it was trained, with HF PEFT: \
                           save_pretrained(..., path_initial_model_for_weight_conversion=...)"
                    .to_owned(),
            });
        }
        // Of variants that differ from LoRA in training only; what remains of them is LoRA.
        for linear in self.layers.linears.paths() {
            for name in TRAINING_TENSORS {
                let key = format!("{linear}.{name}");
                if let Some(shape) = file.shape(&key) {
                    file.take(&key, &shape)?;
                }
            }
        }
        load_stored(parameters, file)
    }

    fn saved_settings(&self, mut settings: Map<String, Value>) -> Map<String, Value> {
        if self.config.init_lora_weights == LoraInit::Loftq {
            settings.insert("init_lora_weights".to_owned(), json!(true));
        }
        if !self.config.init_lora_weights.is_stored_plain() {
            return settings;
        }
        let doubled = |value: &Value, factor: f64| match value.as_u64() {
            Some(whole) if factor == 2.0 => json!(2 * whole),
            _ => json!(value.as_f64().unwrap_or_default() * factor),
        };
        // The scaling stays: alpha / r, or alpha / √r.
        let of_alpha = if self.config.use_rslora {
            2f64.sqrt()
        } else {
            2.0
        };
        for (key, factor) in [
            ("r", 2.0),
            ("rank_pattern", 2.0),
            ("lora_alpha", of_alpha),
            ("alpha_pattern", of_alpha),
        ] {
            match settings.get_mut(key) {
                Some(Value::Object(pattern)) => {
                    for value in pattern.values_mut() {
                        *value = doubled(value, factor);
                    }
                }
                Some(value) => *value = doubled(value, factor),
                None => {}
            }
        }
        settings.insert("init_lora_weights".to_owned(), json!(true));
        for key in ["corda_config", "lora_ga_config"] {
            settings.insert(key.to_owned(), Value::Null);
        }
        settings
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        if let Some(path) = name.strip_suffix(".weight")
            && let Some(lora) = self.layers.linears.get(path)
            && lora.bias.is_some()
            && base.tensor(&format!("{path}.bias")).is_none()
        {
            return Err(MethodError::NotMergeable {
                method: LoraConfig::NAME,
                reason: "lora_bias adds a bias where the base's layer has none",
            });
        }
        self.layers.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.layers.changed()
    }
}
