//! Multitask prompt tuning: one prompt for several tasks, which a product of low rank fits to each.
//!
//! Wang, Panda, Karlinsky, Feris, Sun, Kim, "Multitask Prompt Tuning Enables Parameter-Efficient
//! Transfer Learning", ICLR 2023, arXiv 2303.02861.
//!
//! The prompt of task `t` is `P_t = P ⊙ (U_t V_t)`, elementwise, with `P: [p, d]` shared and
//! `U_t: [p, k]`, `V_t: [k, d]` of the task, `k = num_ranks`; it stands in front of the input's
//! embeddings as in [`prompt_tuning`](crate::soft_prompts::prompt_tuning). As in HF PEFT `U` and
//! `V` start normal with standard deviation 0.02 and `P` with one, or as a text; and where
//! `num_transformer_submodules` is 2, an encoder-decoder's decoder has a prompt too, the second
//! half of the rows.
//!
//! One run trains one task, `task_id`, and the prompt with it. To go from source tasks to a target,
//! the file of a source training (`prompt_tuning_init_state_dict_path`) gives the start: its `P`
//! (`ONLY_SOURCE_SHARED`), with `U` and `V` of one task (`EXACT_SOURCE_TASK`), or with their mean
//! over tasks (`AVERAGE_SOURCE_TASKS`). The paper's distillation from prompts of single tasks is no
//! part of PEFT's method, nor of this.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `p d + T k (p + d)` with `T` tasks |
//! | file | `prompt_embeddings` `[p, d]`, `prefix_task_cols` `[T, p, k]`, `prefix_task_rows` `[T, k, d]` |
//! | merges | no |

use std::path::PathBuf;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base, Checkpoint, Embedded, ForwardContext, Hook};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::virtual_tokens::{
    self, KEY, PooledToken, PromptSettings, check_ids, not_mergeable, put_in_front, repeated,
};

const COLUMNS: &str = "prefix_task_cols";
const ROWS: &str = "prefix_task_rows";

crate::settings! {
    /// The settings of multitask prompt tuning, under HF PEFT's names.
    pub struct MultitaskPromptTuningConfig {
        /// Initial values: RANDOM, TEXT, AVERAGE_SOURCE_TASKS, EXACT_SOURCE_TASK or
        /// ONLY_SOURCE_SHARED.
        prompt_tuning_init: MultitaskInit = MultitaskInit::Random, as Text;
        /// The text for the initial values of TEXT.
        prompt_tuning_init_text: Option<String> = None;
        /// File of tensors of a source training (adapter_model.safetensors).
        prompt_tuning_init_state_dict_path: Option<PathBuf> = None;
        /// Task of the source training, for EXACT_SOURCE_TASK.
        prompt_tuning_init_task: usize = 0;
        /// Where HF PEFT finds the tokenizer for TEXT; it refuses a file that does not say.
        tokenizer_name_or_path: Option<String> = None, unset "directory of the base model";
        /// Rank of what fits the prompt to a task.
        num_ranks: usize = 1, in Size;
        /// Number of tasks that the file has room for.
        num_tasks: usize = 1, in Size;
        /// The task that is trained and used, from 0.
        task_id: usize = 0;
        /// The tokens of TEXT. Not in the file: once trained, the initial values are of no use.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_tuning_init_token_ids: Option<Vec<u32>> = None, flag "", as Integers;

        ..prompt: PromptSettings = PromptSettings::default();
    }
}

/// How the tensors of multitask prompt tuning start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MultitaskInit {
    /// The embeddings of a text.
    Text,
    /// Normal with standard deviation one.
    Random,
    /// Those of a source training, the mean of its tasks.
    AverageSourceTasks,
    /// Those of a source training, of one of its tasks.
    ExactSourceTask,
    /// The prompt of a source training.
    OnlySourceShared,
}

impl MultitaskInit {
    /// The name in files.
    fn name(self) -> String {
        match json!(self) {
            Value::String(name) => name,
            _ => unreachable!("a choice without fields is a text"),
        }
    }
}

/// Initial values of the prompt, and of the columns and the rows of the tasks.
type Inits = [Init; 3];

impl MultitaskPromptTuningConfig {
    fn wrong(&self, key: &'static str, value: String, expected: String) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key,
            value,
            expected,
        }
    }

    fn inits(&self, base: &Base, [rows, width]: [usize; 2]) -> Result<Inits, MethodError> {
        let small = || Init::Normal { std: 0.02 };
        let needs = |key: &str| {
            let value = self.prompt_tuning_init.name();
            self.wrong("prompt_tuning_init", value, format!("it needs `{key}`"))
        };
        match self.prompt_tuning_init {
            MultitaskInit::Random => Ok([Init::Normal { std: 1.0 }, small(), small()]),
            MultitaskInit::Text => {
                let key = "prompt_tuning_init_token_ids";
                let ids = self.prompt_tuning_init_token_ids.as_deref();
                let ids = ids.ok_or_else(|| needs("prompt_tuning_init_text"))?;
                let table = base.word_embedding_table();
                check_ids(Self::NAME, key, "prompt_tuning_init_text", ids, table)?;
                let start = virtual_tokens::start(repeated(ids, rows, table));
                Ok([start, small(), small()])
            }
            _ => {
                let path = self.prompt_tuning_init_state_dict_path.as_ref();
                let path = path.ok_or_else(|| needs("prompt_tuning_init_state_dict_path"))?;
                self.source(&Checkpoint::open_file(path)?, [rows, width])
            }
        }
    }

    /// The initial values that a source training gives.
    fn source(&self, file: &Checkpoint, [rows, width]: [usize; 2]) -> Result<Inits, MethodError> {
        let malformed = |reason: String| MethodError::Malformed {
            path: file.path().to_owned(),
            reason,
        };
        let read = |key: &str, shape: &[usize]| match file.tensor(key) {
            Some(found) if found.shape == shape => Ok(file.to_f32(key, shape)?),
            Some(found) => Err(malformed(format!(
                "`{key}` has shape {:?}, but this prompt needs {shape:?}",
                found.shape
            ))),
            None => Err(malformed(format!(
                "there is no `{key}`: it is not the file of a multitask prompt"
            ))),
        };
        let prompt = Init::Values(read(KEY, &[rows, width])?.into());
        if self.prompt_tuning_init == MultitaskInit::OnlySourceShared {
            let small = Init::Normal { std: 0.02 };
            return Ok([prompt, small.clone(), small]);
        }
        if self.num_tasks != 1 {
            let expected = format!(
                "{} gives the start of one task: set it to 1",
                self.prompt_tuning_init.name()
            );
            return Err(self.wrong("num_tasks", self.num_tasks.to_string(), expected));
        }
        let tasks = file.tensor(COLUMNS).map_or(0, |found| found.shape[0]);
        let of_tasks = |key: &str, shape: [usize; 2]| {
            let values = read(key, &[tasks, shape[0], shape[1]])?;
            let size = shape[0] * shape[1];
            Ok::<_, MethodError>(match self.prompt_tuning_init {
                MultitaskInit::ExactSourceTask => {
                    let start = self.prompt_tuning_init_task * size;
                    let own = values.get(start..start + size);
                    let own = own.ok_or_else(|| {
                        let task = self.prompt_tuning_init_task;
                        let expected = format!("the source training has {tasks} tasks, from 0");
                        self.wrong("prompt_tuning_init_task", task.to_string(), expected)
                    })?;
                    own.to_vec()
                }
                _ => (0..size)
                    .map(|at| {
                        let of_each = values.iter().skip(at).step_by(size);
                        of_each.sum::<f32>() / tasks as f32
                    })
                    .collect(),
            })
        };
        let columns = of_tasks(COLUMNS, [rows, self.num_ranks])?;
        let task_rows = of_tasks(ROWS, [self.num_ranks, width])?;
        Ok([
            prompt,
            Init::Values(columns.into()),
            Init::Values(task_rows.into()),
        ])
    }
}

impl MethodConfig for MultitaskPromptTuningConfig {
    const NAME: &'static str = "multitask-prompt-tuning";
    const PEFT_TYPE: &'static str = "MULTITASK_PROMPT_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "a prompt of several tasks, fitted to each by a low-rank product";
    const PAPER: &'static str = "Wang et al. 2023, arXiv 2303.02861";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = virtual_tokens::COMPUTED;
    const OWN: &'static [&'static str] = &["task_id", virtual_tokens::POOLED_TOKEN];

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "num_virtual_tokens": 3, "num_tasks": 2, "num_ranks": 2, "task_id": 1 }),
            json!({
                "num_virtual_tokens": 4, "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_token_ids": [3, 1, 4],
            }),
        ]
    }

    /// The text of TEXT as PEFT's tokenizer reads it, special tokens included.
    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        let is_text = self.prompt_tuning_init == MultitaskInit::Text;
        let text = self.prompt_tuning_init_text.iter().filter(|_| is_text);
        text.map(|text| (text.clone(), true)).collect()
    }

    fn set_tokens(&mut self, mut tokens: Vec<Vec<u32>>) {
        if let Some(ids) = tokens.pop() {
            self.prompt_tuning_init_token_ids = Some(ids);
        }
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shape @ [rows, width] = self.prompt.shape(Self::NAME, base)?;
        let (tasks, ranks, task) = (self.num_tasks, self.num_ranks, self.task_id);
        if task >= tasks {
            let expected = format!("there are `num_tasks` = {tasks} tasks, from 0");
            return Err(self.wrong("task_id", task.to_string(), expected));
        }
        let [prompt, columns, task_rows] = self.inits(base, shape)?;
        let prompt = parameters.declare(KEY, &shape, prompt);
        let columns = parameters.declare(COLUMNS, &[tasks, rows, ranks], columns);
        let task_rows = parameters.declare(ROWS, &[tasks, ranks, width], task_rows);
        let count = prompt.count() + columns.count() + task_rows.count();
        let of_task = parameters.derived("task_prompt", &shape, move || {
            let columns = columns.get::<3>().narrow(0, task, 1);
            let task_rows = task_rows.get::<3>().narrow(0, task, 1);
            let product = columns
                .reshape([rows, ranks])
                .matmul(task_rows.reshape([ranks, width]));
            (prompt.get::<2>() * product).reshape([rows * width])
        });
        Ok(Box::new(MultitaskPrompt {
            of_task,
            length: self.prompt.num_virtual_tokens,
            prompts: self.prompt.prompts(),
            pooled: self.prompt.pooled_token,
            count,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [rows, width] = self.prompt.shape(Self::NAME, base)?;
        Ok(rows * width + self.num_tasks * self.num_ranks * (rows + width))
    }

    fn resolved(&self, _base: &Base) -> Self {
        Self {
            prompt_tuning_init_token_ids: None,
            prompt: self.prompt.resolved(),
            ..self.clone()
        }
    }

    /// The same without asking for what only a start needs.
    fn stored(&self) -> Self {
        Self {
            prompt_tuning_init: MultitaskInit::Random,
            ..self.clone()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        PromptSettings::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([
            ("modules_to_save".to_owned(), Value::Null),
            ("tokenizer_kwargs".to_owned(), Value::Null),
        ])
    }
}

/// The prompt of one task.
#[derive(Debug)]
struct MultitaskPrompt {
    /// `[prompts · length, width]`
    of_task: Param,
    /// Virtual tokens of each prompt.
    length: usize,
    /// One, or a second for a decoder.
    prompts: usize,
    /// What the head of a classifier reads.
    pooled: PooledToken,
    /// Values of all tasks.
    count: usize,
}

impl Adapter for MultitaskPrompt {
    fn virtual_tokens(&self) -> usize {
        self.length
    }

    fn pools_text(&self) -> bool {
        self.pooled == PooledToken::Text
    }

    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        let which = usize::from(embedded.decoder);
        if which >= self.prompts {
            return embedded;
        }
        let table = self.of_task.get::<2>();
        let prompt = match self.prompts {
            1 => table,
            _ => table.narrow(0, which * self.length, self.length),
        };
        put_in_front(prompt, embedded)
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

impl Method for MultitaskPrompt {
    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(MultitaskPromptTuningConfig::NAME))
    }

    fn changed(&self) -> usize {
        self.count
    }
}
