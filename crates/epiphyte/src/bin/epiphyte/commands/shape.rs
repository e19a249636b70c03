//! `epiphyte inspect --shape`: what methods would train on a model of this shape.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::Device;
use epiphyte::io::gguf::model_file;
use epiphyte::methods::{AdapterModule, AnyConfig, Definition, METHODS, MethodError};
use epiphyte::models::{Base, HeadKind, ModelConfig, random_model, shapes};
use epiphyte::ops::Precision;
use serde::Serialize;

use crate::failure::UsageError;
use crate::global::Global;
use crate::output;
use crate::settings::{MethodFlags, run_configs};

/// On bases of up to this many parameters methods are built, which says what they change and store;
/// some of them read the base's weights for it.
const LARGEST_BUILT: usize = 500_000_000;

#[derive(Args, Debug)]
pub(crate) struct Shape {
    /// Name of a well-known model, such as llama-7b, or a config.json: show what methods would
    /// train, without any weights
    #[arg(long, value_name = "NAME", conflicts_with_all = ["path", "model"])]
    shape: Option<String>,
    #[command(flatten)]
    method: MethodFlags,
}

impl Shape {
    /// Checks that no flag was given that only `--shape` reads.
    pub(super) fn check_absent(&self) -> Result<()> {
        match self.method.0.names().next() {
            Some(name) => Err(UsageError::Value {
                place: format!("`--{name}`"),
                problem: "is for --shape; an adapter's file has its own settings".to_owned(),
            }
            .into()),
            None => Ok(()),
        }
    }
}

/// The result with `--json`.
#[derive(Serialize)]
struct Summary {
    shape: String,
    base_parameters: usize,
    methods: Vec<MethodSummary>,
}

/// What a method would train, the task's head not counted.
#[derive(Serialize)]
struct MethodSummary {
    method: &'static str,
    trainable_parameters: Option<usize>,
    changed_parameters: Option<usize>,
    stored_parameters: Option<usize>,
    /// Why the method does not work on such a model.
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl MethodSummary {
    fn refused(method: &Definition, reason: String) -> Self {
        Self {
            method: method.name,
            trainable_parameters: None,
            changed_parameters: None,
            stored_parameters: None,
            refused: Some(reason),
        }
    }
}

pub(crate) fn run(arguments: &Shape, global: &Global) -> Result<ExitCode> {
    let shape = arguments.shape.clone().unwrap_or_default();
    let config = config(&shape)?;
    let given = run_configs(None, &arguments.method.0)?.remove(0);
    let device = Device::flex();
    // What a classifier and a language model differ in is counted with neither.
    let of_task = given.config.task.head(2);
    let has = |head: &HeadKind| config.family().class_name(*head).is_some();
    let heads = [HeadKind::LanguageModel, of_task];
    let said = given.places.contains_key("task");
    let head = match said {
        true => of_task,
        false => heads.into_iter().find(has).unwrap_or(of_task),
    };
    let model = random_model(&config, head, &device, Precision::F32, 0)?;
    let base = model.base();
    let methods: Vec<MethodSummary> = match given.places.contains_key("method") {
        true => {
            let method = epiphyte::methods::by_name(&given.config.method)?;
            let configured = method.configure(given.config.method_settings.clone())?;
            vec![summary(method, configured, base, &device)?]
        }
        false => {
            let all = METHODS.iter().map(|method| {
                let configured = method.configure(Default::default())?;
                match summary(method, configured, base, &device) {
                    // Its defaults need not fit every shape.
                    Err(error) => Ok(MethodSummary::refused(method, error.to_string())),
                    summary => summary,
                }
            });
            all.collect::<Result<_>>()?
        }
    };
    let summary = Summary {
        shape,
        base_parameters: base.count(),
        methods,
    };
    match global.json {
        true => output::json(&summary)?,
        false => print(&summary)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// The configuration of a well-known model, or that of a file.
fn config(shape: &str) -> Result<ModelConfig> {
    if let Some(config) = shapes::config(shape) {
        return Ok(config?);
    }
    let path = Path::new(shape);
    if path.is_dir() || model_file(path)?.is_some() {
        return Ok(ModelConfig::open(path)?);
    }
    if path.is_file() {
        return Ok(ModelConfig::parse(
            path,
            &epiphyte::io::read_regular(path)?,
        )?);
    }
    let known = shapes::names().join(", ");
    let problem = format!("`{shape}` is no file, and none of the shapes that are known: {known}");
    Err(UsageError::Value {
        place: "`--shape`".to_owned(),
        problem,
    }
    .into())
}

/// What one method would train.
fn summary(
    method: &Definition,
    config: Box<dyn AnyConfig>,
    base: &Base,
    device: &Device,
) -> Result<MethodSummary> {
    let trainable = match config.count(base) {
        Ok(count) => count,
        Err(MethodError::NotApplicable { reason, .. }) => {
            return Ok(MethodSummary::refused(method, reason));
        }
        Err(error) => return Err(error.into()),
    };
    let mut summary = MethodSummary {
        method: method.name,
        trainable_parameters: Some(trainable),
        changed_parameters: None,
        stored_parameters: None,
        refused: None,
    };
    if base.count() <= LARGEST_BUILT {
        let counts = AdapterModule::new(config, base, device, 0)?.counts(base);
        summary.changed_parameters = Some(counts.changed_parameters);
        summary.stored_parameters = Some(counts.stored_parameters);
    }
    Ok(summary)
}

fn print(summary: &Summary) -> Result<()> {
    output::pairs(&[
        ("shape", summary.shape.clone()),
        (
            "base parameters",
            output::count(summary.base_parameters as u64),
        ),
    ])?;
    let count = |number: Option<usize>| match number {
        Some(number) => output::count(number as u64),
        None => String::new(),
    };
    let share = |number: Option<usize>| match number {
        Some(number) => format!(
            "{:.4} %",
            100.0 * number as f64 / summary.base_parameters as f64
        ),
        None => String::new(),
    };
    let mut rows = vec![
        ["method", "trainable", "of base", "changed", "stored"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for it in &summary.methods {
        rows.push(match &it.refused {
            Some(reason) => vec![it.method.to_owned(), format!("not here: {reason}")],
            None => vec![
                it.method.to_owned(),
                count(it.trainable_parameters),
                share(it.trainable_parameters),
                count(it.changed_parameters),
                count(it.stored_parameters),
            ],
        });
    }
    output::table(&rows, &[])?;
    if summary.base_parameters > LARGEST_BUILT {
        let most = output::count(LARGEST_BUILT as u64);
        output::note(&format!(
            "note: changed and stored parameters are counted for bases of up to {most}"
        ));
    }
    Ok(())
}
