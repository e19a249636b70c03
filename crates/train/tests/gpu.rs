//! The same training on a GPU and on the CPU: losses, gradients and trained values agree.
//!
//! The GPU is whatever Burn's `wgpu` backend finds; Mesa's lavapipe, a Vulkan driver that needs no
//! hardware, is enough. Where there is none, the tests say that they skipped, or fail if
//! `EPIPHYTE_REQUIRE_GPU` is 1.

use burn::tensor::{Device, DeviceKind, DeviceType, Tensor, TensorData};
use epiphyte_data::{Batches, Example, Order, Table, Target, Tokenizer, Value as Cell};
use epiphyte_methods::{AdapterModule, Gradients, METHODS, MethodError, by_name};
use epiphyte_models::adapter::name_id;
use epiphyte_models::{HeadKind, Model, ModelConfig, Targets, Tokens, random_model};
use epiphyte_ops::{Activation, Precision, Sequences, random};
use epiphyte_train::observer::Silent;
use epiphyte_train::report::journal::{Record, read};
use epiphyte_train::training::identity::Identity;
use epiphyte_train::{
    EvaluationData, Interrupt, RunConfig, TaskKind, TaskRows, TaskSpec, Trainer, Workload,
    train_runs,
};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How far the two may differ, as a share of the largest value. Both compute in f32, one value in
/// 1.7e7, but sum in different orders, and WGSL grants its `exp` and `tanh` an error of some units
/// in the last place. A value passes through about a hundred operations; they add up to no more
/// than a hundred roundings.
const TOLERANCE: f64 = 100.0 * f32::EPSILON as f64 / 2.0;

/// Optimizer steps of a run.
const STEPS: u64 = 5;

const LEARNING_RATE: f64 = 1e-2;

/// Added to the root of AdamW's second moment, which divides its first. With the usual 1e-8 a
/// gradient that is zero but for rounding (that of the keys' bias, say) would move its tensor as
/// far as any other; so large a value makes a step's error at most the learning rate times the
/// gradient's error over it.
const EPSILON: f64 = 1e-2;

/// The methods of each kind that are tried, if not all are: compiling kernels for Mesa's lavapipe
/// takes minutes of a processor.
const METHODS_OF_A_KIND: usize = 2;

/// How far trained values may be apart at the end: every step's error by the rule above, for
/// gradients that clipping keeps below one.
const DRIFT: f64 = STEPS as f64 * LEARNING_RATE * TOLERANCE / EPSILON;

/// The GPU, or none and a word about it.
#[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
fn gpu() -> Option<Device> {
    if Device::enumerate(DeviceType::Wgpu).is_empty() {
        let required = std::env::var("EPIPHYTE_REQUIRE_GPU").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "EPIPHYTE_REQUIRE_GPU is 1, but wgpu finds no adapter: install a Vulkan driver (Debian: \
             mesa-vulkan-drivers)"
        );
        eprintln!("skipped: wgpu finds no adapter");
        return None;
    }
    Some(Device::wgpu(DeviceKind::DefaultDevice))
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Bert,
    Llama,
}

impl Family {
    fn task(self) -> HeadKind {
        match self {
            Self::Bert => HeadKind::Classification { labels: 3 },
            Self::Llama => HeadKind::LanguageModel,
        }
    }

    /// With dropout where the family has it; Llama's heads share keys and look back four tokens.
    fn config(self) -> ModelConfig {
        let config = match self {
            Self::Bert => json!({
                "model_type": "bert", "vocab_size": 30, "hidden_size": 32, "num_hidden_layers": 2,
                "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
                "initializer_range": 0.2,
            }),
            Self::Llama => json!({
                "model_type": "mistral", "vocab_size": 30, "hidden_size": 32,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "intermediate_size": 48, "max_position_embeddings": 64, "sliding_window": 4,
                "tie_word_embeddings": true, "initializer_range": 0.2,
            }),
        };
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        config.unwrap()
    }

    fn model(self, device: &Device) -> Model {
        random_model(&self.config(), self.task(), device, Precision::F32, 3).unwrap()
    }

    /// Eight examples of 2 to 9 tokens, two at a time.
    fn batches(self) -> Batches {
        let example = |row: usize| {
            let ids: Vec<u32> = (0..2 + row * 3 % 8)
                .map(|at| (row * 11 + at * 7) as u32 % 30)
                .collect();
            let target = match self {
                Self::Bert => Target::Class(row % 3),
                Self::Llama => Target::Tokens(ids.iter().map(|&id| i64::from(id)).collect()),
            };
            Example {
                type_ids: (0..ids.len() as u32).map(|at| at % 2).collect(),
                ids,
                target,
            }
        };
        Batches::new((0..8).map(example).collect(), 2, Order::Sequential).unwrap()
    }
}

/// A method with settings that fit the small models.
#[derive(Debug)]
struct Case {
    method: &'static str,
    settings: Value,
}

/// The first methods of each kind, or with `EPIPHYTE_LONG_TESTS` every registered method, with the
/// first of its examples of settings; and dropout of methods whose examples have none.
fn cases() -> impl Iterator<Item = Case> {
    let all = std::env::var_os("EPIPHYTE_LONG_TESTS").is_some();
    let is_first = |at: usize| {
        let kind = (METHODS[at].kind)();
        let before = METHODS[..at].iter().filter(|it| (it.kind)() == kind);
        before.count() < METHODS_OF_A_KIND
    };
    let chosen = (0..METHODS.len()).filter(move |&at| all || is_first(at));
    let examples = chosen.map(|at| Case {
        method: METHODS[at].name,
        settings: (METHODS[at].examples)().swap_remove(0),
    });
    examples.chain([
        Case {
            method: "lora",
            settings: json!({ "r": 2, "lora_dropout": 0.2 }),
        },
        Case {
            method: "prefix-tuning",
            settings: json!({
                "num_virtual_tokens": 3, "prefix_projection": true, "encoder_hidden_size": 5,
                "prefix_dropout": 0.2,
            }),
        },
    ])
}

impl Case {
    /// The method at work, each trained tensor moved off its start, so that no zero hides anything;
    /// none where the family has nothing that the method could train.
    fn tune(&self, model: &Model, device: &Device) -> Option<AdapterModule> {
        let settings = self.settings.as_object().unwrap().clone();
        let config = by_name(self.method).unwrap().configure(settings).unwrap();
        let module = match AdapterModule::new(config, model.base(), device, 1) {
            Err(MethodError::NotApplicable { .. }) => return None,
            module => module.unwrap(),
        };
        for param in module.trained() {
            let noise = random::normal(name_id(param.key()), param.count(), 0.1);
            let noise = TensorData::new(noise, [param.count()]);
            param.update(|value| value.clone() + Tensor::from_data(noise, &value.device()));
        }
        Some(module)
    }
}

/// What is compared.
#[derive(Debug)]
struct Numbers {
    /// Names of the trained tensors.
    names: Vec<String>,
    /// The first batch's gradient of each.
    gradients: Vec<Vec<f32>>,
    /// The loss of each step, then the last evaluation's.
    losses: Vec<f64>,
    /// Values before the run, and after it.
    before: Vec<Vec<f32>>,
    after: Vec<Vec<f32>>,
}

/// One gradient, then a run of the trainer's; none as [`Case::tune`].
fn train(family: Family, case: &Case, device: &Device) -> Option<Numbers> {
    let model = family.model(device);
    let module = case.tune(&model, device)?;
    let names = module.trained().map(|param| param.key().to_owned());
    let names = names.collect();
    let gradients = gradients(family, &model, &module);
    let before = values(&module);
    let dir = tempfile::tempdir().unwrap();
    let (losses, after) = run(family, &model, module, device, &dir, None);
    Some(Numbers {
        names,
        gradients,
        losses,
        before,
        after,
    })
}

/// The gradients of all examples' loss, with dropout.
fn gradients(family: Family, model: &Model, module: &AdapterModule) -> Vec<Vec<f32>> {
    let batches = family.batches();
    let (mut ids, mut type_ids, mut boundaries) = (Vec::new(), Vec::new(), vec![0]);
    for example in batches.examples() {
        ids.extend(&example.ids);
        type_ids.extend(&example.type_ids);
        boundaries.push(ids.len());
    }
    let keys = (0..batches.examples().len() as u64).collect();
    let sequences = Sequences::new(boundaries).with_keys(keys);
    let tokens = Tokens::new(&ids, &type_ids, sequences);
    let labels: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let targets = match family {
        Family::Bert => Targets::Classes(&[0, 1, 2, 0, 1, 2, 0, 1]),
        Family::Llama => Targets::Tokens(&labels),
    };
    module.track(true);
    let loss = model.loss(&tokens, targets, 0.1, module).unwrap();
    let mut gradients = Gradients::new();
    module.collect(&mut gradients, &mut loss.mean.backward());
    gradients.pull_back_derived(module.parameters());
    let gradients = module
        .trained()
        .map(|param| {
            let gradient = gradients.take(param);
            assert!(
                gradient.is_some() || module.method().may_lack_gradient(param),
                "{} has no gradient",
                param.key()
            );
            gradient.map_or_else(Vec::new, to_vec)
        })
        .collect();
    module.track(false);
    gradients
}

/// A run with accumulation, clipping, weight decay and an evaluation at its end; the losses of its
/// steps and of that, and the trained values. A run that is to `stop` does so after one step, and
/// goes on where the last one stopped.
fn run(
    family: Family,
    model: &Model,
    module: AdapterModule,
    device: &Device,
    dir: &TempDir,
    stop: Option<&Interrupt>,
) -> (Vec<f64>, Vec<Vec<f32>>) {
    let run = RunConfig {
        output: dir.path().to_owned(),
        task: match family {
            Family::Bert => TaskKind::default(),
            Family::Llama => TaskKind::text(),
        },
        max_steps: Some(STEPS),
        batch_size: 2,
        gradient_accumulation_steps: 2,
        learning_rate: Some(LEARNING_RATE),
        weight_decay: 0.1,
        adam_epsilon: EPSILON,
        max_grad_norm: 1.0,
        label_smoothing: 0.1,
        eval_steps: Some(STEPS),
        logging_steps: 1,
        ..RunConfig::default()
    };
    let batches = family.batches();
    let (table, tokenizer) = no_rows();
    let spec = TaskSpec {
        labels: ["a", "b", "c"].map(str::to_owned).to_vec(),
        ..TaskSpec::new(run.task, 8)
    };
    let rows = TaskRows {
        table: &table,
        tokenizer: &tokenizer,
        spec: &spec,
    };
    let work = Workload {
        run: &run,
        model,
        train: &batches,
        eval: Some(EvaluationData {
            batches: &batches,
            rows,
            texts: None,
        }),
        device,
        identity: Identity::default(),
    };
    let mut trainer = [Trainer::new(work, module, stop.is_some()).unwrap()];
    let interrupt = stop.cloned().unwrap_or_default();
    let outcome = train_runs(&mut trainer, &interrupt, &mut Silent)
        .unwrap()
        .remove(0);
    let records = read(&dir.path().join("log.jsonl")).unwrap();
    let steps = records.iter().filter_map(|record| match record {
        Record::Step(step) => Some(step.loss),
        Record::Evaluation(_) => None,
    });
    let evaluation = outcome.metrics.and_then(|metrics| metrics.get("loss"));
    (
        steps.chain(evaluation).collect(),
        values(trainer[0].module()),
    )
}

/// Rows and a tokenizer that nothing reads: the examples are ids already.
fn no_rows() -> (Table, Tokenizer) {
    let model = json!({ "type": "WordLevel", "vocab": { "a": 0 }, "unk_token": "a" });
    let tokenizer = json!({ "version": "1.0", "added_tokens": [], "model": model });
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let rows = [("text".to_owned(), vec![Cell::Text("a".to_owned())])];
    let table = Table::from_columns(&dir.path().join("rows.jsonl"), rows).unwrap();
    (table, Tokenizer::load(dir.path()).unwrap())
}

fn values(module: &AdapterModule) -> Vec<Vec<f32>> {
    module.trained().map(|param| param.to_vec()).collect()
}

fn to_vec(tensor: Tensor<1>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

fn largest(values: impl IntoIterator<Item = f32>) -> f64 {
    values.into_iter().fold(0.0, |largest, value| {
        assert!(value.is_finite());
        largest.max(f64::from(value.abs()))
    })
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    largest(a.iter().zip(b).map(|(a, b)| a - b))
}

/// The two agree about every tensor, to [`TOLERANCE`] times the tensor's largest value, or a tenth
/// of the largest of all where that is more: a tensor may be zero but for the rounding of terms as
/// large as others' (the keys' bias is).
fn agree(names: &[String], cpu: &[Vec<f32>], gpu: &[Vec<f32>], what: &str) {
    let all = largest(cpu.iter().flatten().copied());
    for ((name, cpu), gpu) in names.iter().zip(cpu).zip(gpu) {
        let (off, own) = (difference(cpu, gpu), largest(cpu.iter().copied()));
        assert!(
            off <= TOLERANCE * own.max(all / 10.0),
            "{what}, {name}: {off:e} apart, largest {own:e}"
        );
    }
}

fn the_gpu_trains_as_the_cpu_does(family: Family) {
    let Some(gpu) = gpu() else { return };
    let (mut trained, mut all) = (0, 0);
    for case in cases() {
        let name = format!("{} {} on {family:?}", case.method, case.settings);
        all += 1;
        // The family may lack what the method trains: biases, or attention over an encoder.
        let Some(cpu) = train(family, &case, &Device::flex()) else {
            continue;
        };
        trained += 1;
        let gpu = train(family, &case, &gpu).unwrap();
        let what = format!("{name}: gradients");
        agree(&cpu.names, &cpu.gradients, &gpu.gradients, &what);

        assert_eq!(cpu.losses.len(), STEPS as usize + 1, "{name}");
        assert_eq!(gpu.losses.len(), STEPS as usize + 1, "{name}");
        for (cpu, gpu) in cpu.losses.iter().zip(&gpu.losses) {
            let off = (cpu - gpu).abs();
            assert!(off <= TOLERANCE * cpu, "{name}: losses {cpu} and {gpu}");
        }

        let mut farthest: f64 = 0.0;
        for (at, tensor) in cpu.names.iter().enumerate() {
            let off = difference(&cpu.after[at], &gpu.after[at]);
            assert!(off <= DRIFT, "{name}, {tensor}: {off:e} apart");
            farthest = farthest.max(difference(&cpu.before[at], &cpu.after[at]));
        }
        assert!(farthest > 30.0 * DRIFT, "{name}: nothing moved");
    }
    assert!(10 * trained > 9 * all, "{trained} of {all} on {family:?}");
}

#[test]
fn bert_trains_on_the_gpu_as_on_the_cpu() {
    the_gpu_trains_as_the_cpu_does(Family::Bert);
}

#[test]
fn llama_trains_on_the_gpu_as_on_the_cpu() {
    the_gpu_trains_as_the_cpu_does(Family::Llama);
}

/// The checkpoint brings values and moments back to the GPU, to the last bit.
#[test]
fn a_run_on_the_gpu_resumes() {
    let Some(gpu) = gpu() else { return };
    let case = Case {
        method: "lora",
        settings: json!({ "r": 2, "lora_dropout": 0.2 }),
    };
    let model = Family::Bert.model(&gpu);
    let module = || case.tune(&model, &gpu).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (_, straight) = run(Family::Bert, &model, module(), &gpu, &elsewhere, None);
    let dir = tempfile::tempdir().unwrap();
    let stop = Interrupt::default();
    stop.request();
    let mut pieces = Vec::new();
    for _ in 0..STEPS {
        let (_, after) = run(Family::Bert, &model, module(), &gpu, &dir, Some(&stop));
        pieces.push(after);
    }
    assert!(pieces[0] != pieces[1]);
    assert!(pieces.last() == Some(&straight));
}

/// Values and slopes, of which a model shows only those of its own activation.
#[test]
fn every_activation_has_the_same_curve() {
    let Some(gpu) = gpu() else { return };
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Silu,
        Activation::Tanh,
    ] {
        let curve = |device: &Device| {
            let points: Vec<f32> = (-80..80).map(|at| at as f32 / 10.0 + 0.05).collect();
            let points = TensorData::new(points, [40, 4]);
            let x = Tensor::<2>::from_data(points, &device.clone().autodiff()).require_grad();
            let y = activation.apply(x.clone());
            let slopes = x.grad(&y.clone().sum().backward()).unwrap();
            [to_vec(y.reshape([160])), to_vec(slopes.reshape([160]))]
        };
        let names = ["values", "slopes"].map(str::to_owned);
        let (cpu, gpu) = (curve(&Device::flex()), curve(&gpu));
        agree(&names, &cpu, &gpu, &format!("{activation:?}"));
    }
}

#[test]
fn bf16_is_refused() {
    let Some(gpu) = gpu() else { return };
    let config = Family::Bert.config();
    let model = random_model(&config, Family::Bert.task(), &gpu, Precision::Bf16, 0);
    let error = model.err().map(|error| error.to_string());
    assert_eq!(
        error.as_deref(),
        Some(
            "bf16 is for the CPU: a GPU keeps frozen matrices in f32, so ask for the precision f32"
        )
    );
}
