//! VeRA: two frozen random matrices that all targets share, and two trained vectors for each.
//!
//! Kopiczko, Blankevoort, Asano, "VeRA: Vector-based Random Matrix Adaptation", ICLR 2024, arXiv
//! 2310.11454, section 3.
//!
//! `y = x Wᵀ + b + λ_b ⊙ ((λ_d ⊙ (dropout(x) Aᵀ)) Bᵀ)`, with `A` the first `in` columns
//! of `vera_A: [r, max in]` and `B` the first `out` rows of `vera_B: [max out, r]`, where the
//! maxima are over the targets. There is no scaling. `λ_d: [r]` starts at `d_initial`, `λ_b:
//! [out]` at zero, so nothing changes at first. `A` and `B` are uniform in `±√(6 / fan in)`,
//! drawn as HF PEFT draws them from `projection_prng_key`, so a file without them
//! (`save_projection` false) is complete.
//!
//! | | |
//! | --- | --- |
//! | trains | `Σ (r + out)` over the targets |
//! | changes | `Σ in · out`, by a matrix of rank `≤ r` each |
//! | file | `<path>.vera_lambda_d` `[r]`, `<path>.vera_lambda_b` `[out]`, once `vera_A`, `vera_B` |
//! | merges | `W + diag(λ_b) B diag(λ_d) A` |

use std::sync::Arc;

use burn::tensor::Tensor;
use epiphyte_models::{Base, ForwardContext, LazyLinear, LinearInfo, Site};
use epiphyte_ops::{Weight, add, dropout, linear, scale_columns};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::targets::{LayerTargets, Selection};
use crate::parts::delta::{Delta, Deltas};
use crate::parts::start::Start;
use crate::parts::torch_generator::TorchGenerator;

crate::settings! {
    /// The settings of VeRA, under HF PEFT's names.
    pub struct VeraConfig {
        /// Rank of the update.
        r: usize = 256, flag "rank", in Size;
        /// Dropout on the input of the low-rank path.
        vera_dropout: f64 = 0.0, in Fraction;
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

impl VeraConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |base| base.default_targets.lora)
    }

    /// Declares `A` and `B` for these targets.
    fn projections(&self, targets: &[&LinearInfo], parameters: &mut ParameterSet) -> Projections {
        Projections::declare(
            ["vera_A", "vera_B"],
            [self.r, self.r],
            (self.projection_prng_key, self.save_projection),
            targets,
            parameters,
        )
    }
}

/// Initial values of the vectors between the matrices and behind them.
pub(crate) fn initial_vectors(start: Start, d_initial: f64) -> [Init; 2] {
    match start {
        Start::Identity => [Init::Constant(d_initial as f32), Init::Zeros],
        Start::Random => [Init::Normal { std: 1.0 }, Init::Ones],
    }
}

/// The two frozen matrices that all targets share: those of VeRA and of its relatives.
#[derive(Clone, Debug)]
pub(crate) struct Projections {
    /// `[rows of A, max in]`
    a: Param,
    /// `[max out, columns of B]`
    b: Param,
}

impl Projections {
    /// Declares `A` and `B` under these keys, with this many rows of A and columns of B, drawn as
    /// HF PEFT draws them from the key of `how`, and stored if it says so.
    pub(crate) fn declare(
        names: [&str; 2],
        [rows, columns]: [usize; 2],
        how: (u64, bool),
        targets: &[&LinearInfo],
        parameters: &mut ParameterSet,
    ) -> Self {
        let most = |size: fn(&LinearInfo) -> usize| {
            let sizes = targets.iter().map(|linear| size(linear));
            sizes.max().unwrap_or(0)
        };
        let (inputs, outputs) = (most(|it| it.inputs), most(|it| it.outputs));
        let (key, is_stored) = how;
        let draw = move |generator: &mut TorchGenerator, count, fan_in: usize| {
            generator.uniform(count, (6.0 / fan_in as f64).sqrt())
        };
        let a = move || draw(&mut TorchGenerator::new(key), rows * inputs, inputs);
        let b = move || {
            let mut generator = TorchGenerator::new(key);
            draw(&mut generator, rows * inputs, inputs);
            draw(&mut generator, outputs * columns, columns)
        };
        let (a, b) = (Init::Computed(Arc::new(a)), Init::Computed(Arc::new(b)));
        // What the file does not hold is declared in a set of its own, which is not stored.
        let mut unsaved = ParameterSet::new(parameters.device(), parameters.seed());
        let parameters = match is_stored {
            true => parameters,
            false => &mut unsaved,
        };
        Self {
            a: parameters.constant(names[0], &[rows, inputs], a),
            b: parameters.constant(names[1], &[outputs, columns], b),
        }
    }

    /// The first columns of `A`, for the inputs of a layer.
    pub(crate) fn a(&self, inputs: usize) -> Tensor<2> {
        first(&self.a, 1, inputs)
    }

    /// The first rows of `B`, for the outputs of a layer.
    pub(crate) fn b(&self, outputs: usize) -> Tensor<2> {
        first(&self.b, 0, outputs)
    }
}

/// The first rows or columns of a matrix.
fn first(param: &Param, dim: usize, size: usize) -> Tensor<2> {
    let whole = param.get::<2>();
    if whole.dims()[dim] == size {
        whole
    } else {
        whole.narrow(dim, 0, size)
    }
}

impl MethodConfig for VeraConfig {
    const NAME: &'static str = "vera";
    const PEFT_TYPE: &'static str = "VERA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str =
        "vectors that scale a frozen random low-rank path, shared by chosen linear layers";
    const PAPER: &'static str = "Kopiczko et al. 2024, arXiv 2310.11454";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims {
        saves_memory: Some(true),
        ..crate::Claims::paper(Self::PAPER, "none")
    });
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const LEARNING_RATE: f64 = 2e-2;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        self.init_weights == Start::Identity
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "r": 6 }),
            json!({ "r": 4, "target_modules": "all-linear", "save_projection": false }),
            json!({ "r": 4, "init_weights": "random" }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let targets = self.selection().of(base)?;
        let projections = self.projections(&targets, parameters);
        let deltas = targets.into_iter().map(|linear| {
            let key = |name| format!("{}.{name}", linear.site.path);
            let [lambda_d, lambda_b] = initial_vectors(self.init_weights, self.d_initial);
            let vera = Vera {
                projections: projections.clone(),
                lambda_d: parameters.declare(key("vera_lambda_d"), &[self.r], lambda_d),
                lambda_b: parameters.declare(key("vera_lambda_b"), &[linear.outputs], lambda_b),
                inputs: linear.inputs,
                outputs: linear.outputs,
                dropout: self.vera_dropout,
            };
            (linear, vera)
        });
        Ok(Box::new(Deltas::new(base, deltas)))
    }

    fn check_start(&self, base: &Base) -> Result<(), MethodError> {
        self.selection().check_start(base)
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let targets = self.selection().of(base)?;
        Ok(targets.iter().map(|linear| self.r + linear.outputs).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
            ..self.clone()
        }
    }

    const SPARES_BIASES: bool = true;

    const TRAINING_ONLY: &'static [&'static str] = &["vera_dropout", "d_initial"];

    const COMPUTED: &'static [&'static str] = Selection::COMPUTED;

    fn computed(&self, base: &Base) -> Map<String, Value> {
        self.selection().computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Selection::peft_defaults()
    }
}

/// VeRA on one linear layer.
#[derive(Debug)]
struct Vera {
    projections: Projections,
    lambda_d: Param,
    lambda_b: Param,
    inputs: usize,
    outputs: usize,
    dropout: f64,
}

impl Vera {
    /// `A` and `B` of this layer, `[r, in]` and `[out, r]`.
    fn matrices(&self) -> [Tensor<2>; 2] {
        let projections = &self.projections;
        [projections.a(self.inputs), projections.b(self.outputs)]
    }
}

impl Delta for Vera {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let [a, b] = self.matrices();
        let x = dropout(product.input().clone(), self.dropout, !site.id(), cx.rows);
        let low = scale_columns(linear(x, &Weight::Trained(a), None), self.lambda_d.get());
        let path = linear(low, &Weight::Trained(b), None);
        add(product.compute(), scale_columns(path, self.lambda_b.get()))
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        let [a, b] = self.matrices();
        let column = |param: &Param| param.flat().inner().unsqueeze_dim::<2>(1);
        weight + (b * column(&self.lambda_b)).matmul(a * column(&self.lambda_d))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use burn::tensor::Device;
    use epiphyte_models::{Checkpoint, HeadKind, Model, ModelConfig, random_model};
    use epiphyte_ops::Precision;
    use serde_json::{Value, json};

    use crate::small_bert::{bert, values};
    use crate::{AdapterModule, by_name};

    fn module(model: &Model, settings: Value, seed: u64) -> AdapterModule {
        let settings = settings.as_object().unwrap().clone();
        let config = by_name("vera").unwrap().configure(settings).unwrap();
        AdapterModule::new(config, model.base(), &Device::default(), seed).unwrap()
    }

    #[test]
    fn projections_are_stored_once_and_follow_from_their_key_alone() {
        let model = bert();
        let all = json!({ "r": 4, "target_modules": "all-linear" });
        let module_of = |seed| module(&model, all.clone(), seed);
        let (one, other) = (module_of(0), module_of(1));
        for key in ["vera_A", "vera_B"] {
            assert_eq!(values(&one, key), values(&other, key));
        }
        let stored = one.stored();
        let shape = |name: &str| {
            let found: Vec<_> = stored.iter().filter(|it| it.key == name).collect();
            assert_eq!(found.len(), 1);
            found[0].shape.clone()
        };
        // The widest input and the widest output of the targets.
        assert_eq!(
            (shape("vera_A"), shape("vera_B")),
            (vec![4, 12], vec![12, 4])
        );
        let other = json!({ "r": 4, "target_modules": "all-linear", "projection_prng_key": 1 });
        let other = module(&model, other, 0);
        assert_ne!(values(&one, "vera_A"), values(&other, "vera_A"));
    }

    /// The matrices in a file that HF PEFT wrote, drawn from key 0 by PyTorch.
    #[test]
    fn projections_are_those_of_peft() {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/golden/bert");
        let file = Checkpoint::open_file(&golden.join("vera/adapter_model.safetensors")).unwrap();
        let config = ModelConfig::open(&golden.join("base")).unwrap();
        let head = HeadKind::Classification { labels: 3 };
        let model = random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap();
        let module = module(&model, json!({ "r": 4, "target_modules": "all-linear" }), 0);
        for (key, shape) in [("vera_A", [4, 64]), ("vera_B", [64, 4])] {
            let expected = file.to_f32(&format!("base_model.{key}"), &shape).unwrap();
            assert_eq!(values(&module, key), expected, "{key}");
        }
    }

    #[test]
    fn without_projections_the_file_holds_the_vectors_alone() {
        let model = bert();
        let settings = json!({ "r": 4, "save_projection": false });
        let counts = module(&model, settings, 0).counts(model.base());
        assert_eq!(counts.stored_parameters, 2 * 2 * (4 + 8));
        assert_eq!(counts.trainable_parameters, counts.stored_parameters);
        let counts = module(&model, json!({ "r": 4 }), 0).counts(model.base());
        assert_eq!(counts.stored_parameters, 2 * 2 * (4 + 8) + 2 * 4 * 8);
    }

    #[test]
    fn the_change_is_linear_in_the_output_vector() {
        let model = bert();
        let module = module(&model, json!({ "r": 4 }), 0);
        let path = "bert.encoder.layer.0.attention.self.query";
        let name = format!("{path}.weight");
        let before = model.base().tensor(&name).unwrap().to_vec();
        let lambda_b = module.parameters().get(&format!("{path}.vera_lambda_b"));
        let changed = |scale: f32| -> Vec<f32> {
            lambda_b.unwrap().set_values(vec![scale; 8]);
            let merged = module.merged(&name, model.base()).unwrap().unwrap();
            let merged = merged.try_into_vec_as::<f32>().unwrap();
            merged.iter().zip(&before).map(|(a, b)| a - b).collect()
        };
        for (once, twice) in changed(1.0).into_iter().zip(changed(2.0)) {
            assert!((2.0 * once - twice).abs() < 1e-6);
        }
    }
}
