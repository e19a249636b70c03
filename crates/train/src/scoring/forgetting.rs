//! What a base has forgotten of its own task: its score there without an adapter, and with it.
//!
//! The task is that of the head that the base's `config.json` names: language modeling for a
//! language model, its own classes for a classifier. The adapter acts as it does in its own task;
//! the head that was trained with it does not.

use std::path::Path;

use burn::tensor::Device;
use epiphyte_data::{Batches, Order, Table};
use epiphyte_methods::{AdapterModule, MethodError, ParameterSet};
use epiphyte_models::{Adapter, Base, Identity, LoadOptions, ModelConfig};
use serde::{Deserialize, Serialize};

use crate::observer::Silent;
use crate::scoring::evaluate::Evaluation;
use crate::tasks::{TaskKind, TaskModel};
use crate::{RunConfig, TrainError};

/// The score of a base's own task, before and after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Forgetting {
    /// The base's own task.
    pub task: String,
    /// Which score it is.
    pub score: String,
    /// The number of examples.
    pub examples: usize,
    /// The score of the base.
    pub before: f64,
    /// The score of the base with the adapter; none if the method cannot act on this task.
    pub after: Option<f64>,
}

/// A base's own task with its data.
#[derive(Debug)]
pub(crate) struct OwnTask {
    task_model: TaskModel,
    table: Table,
    batches: Batches,
}

impl OwnTask {
    /// Reads the data of a base's own task. `adapter` is what will be on the base.
    ///
    /// # Errors
    /// [`TrainError::Setting`] if the base says of no task that it is its own; as a run's
    /// evaluation data.
    pub(crate) fn open(
        run: &RunConfig,
        data: &Path,
        model: &Path,
        base: &Base,
        device: &Device,
        adapter: &dyn Adapter,
    ) -> Result<Self, TrainError> {
        let config = ModelConfig::open(model)?;
        // Embeddings need no head: a base without one says nothing of how its own were made.
        let own = TaskKind::of_base(&config).filter(|task| *task != TaskKind::embedding());
        let task = own.ok_or_else(|| TrainError::Setting {
            key: "forgetting_data".to_owned(),
            problem: format!(
                "`{}` names no head of a task in `architectures` ({}): only a base with a head of \
                 its own can forget its task",
                model.join("config.json").display(),
                config.facts().architectures.join(", ")
            ),
        })?;
        let mut own = RunConfig {
            train_data: data.to_owned(),
            max_length: run.max_length,
            task,
            ..RunConfig::default()
        };
        // Texts are recognized, a classifier's columns are those of the run.
        if task.has_classes() {
            own.text_columns = run.text_columns.clone();
            own.label_column = run.label_column.clone();
        }
        let table = Table::read(data, &own.reading()?)?;
        let (mut spec, _) = own.task_spec(&table, model)?;
        if run.max_length.is_none() {
            let limit = config.facts().max_position_embeddings;
            spec.max_length = spec.max_length.min(limit.unwrap_or(usize::MAX));
        }
        let table = match run.max_forgetting_rows {
            Some(rows) => table.sample(rows, 0)?,
            None => table,
        };
        let load = LoadOptions {
            precision: run.precision,
            quantization: run.quantization,
            seed: run.seed,
            base_dropout: run.base_dropout,
            new_head: false,
        };
        let mut task_model = TaskModel::beside(base, model, spec, device, &load)?;
        task_model.fit_max_length(adapter);
        let size = run.eval_batch_size.unwrap_or(run.batch_size);
        let batches = task_model.batches(&table, true, size, Order::Sequential)?;
        Ok(Self {
            task_model,
            table,
            batches,
        })
    }

    /// Scores the base without the adapter, and with it.
    ///
    /// # Errors
    /// As [`crate::tasks::Task::evaluate`].
    pub(crate) fn score(
        &self,
        module: &AdapterModule,
        micro_batch_tokens: Option<usize>,
    ) -> Result<Forgetting, TrainError> {
        let task = self.task_model.spec.task;
        let model = &self.task_model.loaded.model;
        let rows = self.task_model.rows(&self.table);
        let scores = |adapter: &dyn Adapter| {
            let evaluation = Evaluation {
                micro_batch_tokens,
                ..Evaluation::new(model, adapter, &self.batches)
            };
            Ok::<_, TrainError>(task.evaluate(&evaluation, &rows, &mut Silent)?.metrics)
        };
        let before = scores(&Identity)?;
        let score = before.leading().to_owned();
        let value =
            |metrics: &crate::scoring::metrics::Metrics| metrics.get(&score).unwrap_or(f64::NAN);
        let device = model.base().word_embedding_table().device();
        // What cannot act on the task, such as gates that read the whole text, says so.
        let built = module
            .config()
            .build(model.base(), &mut ParameterSet::new(device, 0));
        let after = match built {
            Err(MethodError::NotApplicable { .. }) => None,
            _ => Some(value(&scores(module)?)),
        };
        Ok(Forgetting {
            task: task.name().to_owned(),
            examples: self.batches.examples().len(),
            before: value(&before),
            after,
            score,
        })
    }
}
