//! Write a fine-tuning method in a crate of your own, and train it.
//!
//! ```sh
//! cargo run --release --example write_a_method
//! ```
//!
//! The method here is as small as one can be: a vector that is added to what chosen linear layers
//! compute, `y = x Wᵀ + b + s`. CONTRIBUTING.md says which hook serves which kind of method.

#![expect(clippy::print_stdout, reason = "an example shows what it did")]

use std::path::Path;

use epiphyte::methods::framework::method::KeyStyle;
use epiphyte::methods::framework::targets::{Selection, TargetModules};
use epiphyte::methods::parts::delta::{Delta, Deltas};
use epiphyte::methods::{
    AdapterModule, Init, Method, MethodConfig, MethodError, Param, ParameterSet, settings,
};
use epiphyte::models::{
    Adapter, Base, ForwardContext, Identity, LazyLinear, LinearInfo, LoadOptions, Site,
};
use epiphyte::train::observer::Silent;
use epiphyte::train::training::identity::Identity as RunIdentity;
use epiphyte::train::{
    Evaluation, Interrupt, RunConfig, TaskKind, TaskModel, Trainer, Workload, train_runs,
};
use epiphyte::{Device, Tensor};

// The settings. The macro makes their defaults, checks and flags; the doc comments are the help.
settings! {
    /// The settings of the shift.
    pub struct ShiftConfig {
        ..targets: TargetModules = TargetModules::default();
    }
}

impl ShiftConfig {
    fn selection(&self) -> Selection<'_> {
        self.targets
            .selection(Self::NAME, |_| &["o_proj", "down_proj"])
    }

    /// The targets that have a bias: where there is none, a merged model could not hold the shift.
    fn shifted<'b>(&self, base: &'b Base) -> Result<Vec<&'b LinearInfo>, MethodError> {
        let targets = self.selection().of(base)?.into_iter();
        Ok(targets.filter(|linear| linear.bias).collect())
    }
}

// What the program must know of the method. `build` declares the trained tensors: key, shape,
// initial value.
impl MethodConfig for ShiftConfig {
    const NAME: &'static str = "shift";
    const PEFT_TYPE: &'static str = "SHIFT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a vector added to the output of chosen linear layers";
    const PAPER: &'static str = "this file";
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = true;

    fn starts_as_identity(&self) -> bool {
        true
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shifts = self.shifted(base)?.into_iter().map(|linear| {
            let key = format!("{}.shift", linear.site.path);
            let s = parameters.declare(key, &[linear.outputs], Init::Zeros);
            (linear, Shift { s })
        });
        Ok(Box::new(Deltas::new(base, shifts)))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        Ok(self.shifted(base)?.iter().map(|it| it.outputs).sum())
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            targets: self.targets.resolved(self.selection().targets(base)),
        }
    }
}

/// The equation, on one linear layer. `Deltas` finds the layer in the forward pass, and the tensors
/// in a merge.
#[derive(Debug)]
struct Shift {
    s: Param,
}

impl Delta for Shift {
    fn output(&self, _site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        product.compute() + self.s.flat().unsqueeze()
    }

    const CHANGES_BIAS: bool = true;

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        weight
    }

    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        bias + self.s.flat().inner()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/quickstart");
    let directory = tempfile::tempdir()?;
    let device = Device::flex();
    let run = RunConfig {
        model: quickstart.join("base"),
        train_data: quickstart.join("train.jsonl"),
        task: TaskKind::text(),
        text_columns: vec!["text".to_owned()],
        max_length: Some(64),
        max_steps: Some(20),
        batch_size: 8,
        learning_rate: Some(3e-2),
        output: directory.path().join("shift"),
        ..RunConfig::default()
    };

    // The parts that `epiphyte::train::train` would put together for a method of its own.
    let reading = run.reading()?;
    let table = epiphyte::data::Table::read(&run.train_data, &reading)?;
    let (task, _) = run.task_spec(&table, &run.model)?;
    let task_model = TaskModel::open(&run.model, task, &device, &LoadOptions::default())?;
    let batches = task_model.batches(&table, true, run.batch_size, run.order())?;
    let model = &task_model.loaded.model;
    let config = Box::new(ShiftConfig::default());
    let module = AdapterModule::new(config, model.base(), &device, run.seed)?;

    // A vector of the hidden size on two linear layers in each of four layers.
    let counts = module.counts(model.base());
    assert_eq!(counts.trainable_parameters, 2 * 4 * 128);

    // All zero, it changes nothing; trained, it makes the data more likely.
    let loss = |adapter: &dyn Adapter| -> Result<f64, Box<dyn std::error::Error>> {
        let evaluation = Evaluation::new(model, adapter, &batches);
        let rows = task_model.rows(&table);
        let scores = run.task.evaluate(&evaluation, &rows, &mut Silent)?;
        Ok(scores.metrics.get("loss").ok_or("there is no loss")?)
    };
    let before = loss(&Identity)?;
    assert_eq!(loss(&module)?, before);
    let work = Workload {
        run: &run,
        model,
        train: &batches,
        eval: None,
        device: &device,
        identity: RunIdentity::new(&run, &module, &task_model, &batches, None),
    };
    let mut trainers = [Trainer::new(work, module, false)?];
    train_runs(&mut trainers, &Interrupt::default(), &mut Silent)?;
    let after = loss(trainers[0].module())?;
    println!("loss {before:.3} before, {after:.3} after 20 steps");
    assert!(after < before - 0.2);
    Ok(())
}
