//! CPT (context-aware prompt tuning): examples in front of the input, whose embeddings move a
//! little.
//!
//! Blau, Kimhi, Belinkov, Bronstein, Baskin, "Context-Aware Prompt Tuning: Advancing In-Context
//! Learning with Adversarial Methods", ACL 2025, arXiv 2410.17222.
//!
//! A language model reads `P = E₀ + Π(D)` in front of its input, where `E₀: [p, d]` are the frozen
//! word embeddings of the context's tokens and `D: [p, d]` is trained from zero. Each token has a
//! type: 0 is not counted, else, by the type modulo 4, it is 1 format of an input, 2 an input, 3
//! format of an output, 0 an output; types grow from example to example (1 2 3 4, 5 6 7 8, …). `Π`
//! shortens each row of `D` that is longer than `ε √(d / 2048)`, with `ε` =
//! `opt_projection_epsilon` for inputs and `opt_projection_format_epsilon` for formats; outputs
//! stay as they are, and their rows get no gradient. The projection replaces `D` before each step.
//!
//! The loss is over the text's own targets and over the outputs in the context, which are
//! predicted as the text is. With `opt_weighted_loss_type` = `decay` the text's loss has weight 1,
//! that of the last output the weight `f` = `opt_loss_decay_factor`, of the one before it `f²`, and
//! so on; the mean is over the number of targets. Scores are of the text's own targets alone.
//!
//! The context is given as HF PEFT has it, token ids and types, or as texts, `cpt_context`: format
//! of an input, input, format of an output, output, in this order for each example.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `p d` |
//! | file | `prompt_embeddings` `[p, d]`: `E₀ + Π(D)` |
//! | merges | no |

use std::collections::BTreeSet;

use burn::tensor::Tensor;
use epiphyte_models::adapter::VirtualTargets;
use epiphyte_models::{Adapter, Base, Embedded, ForwardContext, Hook};
use epiphyte_ops::IGNORED;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StepInfo, Stored, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::virtual_tokens::{self, KEY, check_ids, not_mergeable, put_in_front};

/// Tokens of a context of which nothing is said, as in PEFT.
const NO_CONTEXT: [u32; 1] = [0];

crate::settings! {
    /// The settings of CPT, under HF PEFT's names.
    pub struct CptConfig {
        /// Tokens of the context.
        cpt_token_ids: Option<Vec<u32>> = None, as Integers, unset "those of --cpt-context";
        /// The type of each: 1 format of an input, 2 input, 3 format of an output, 4 output, and 4
        /// more for each further example; 0 for what does not count.
        cpt_tokens_type_mask: Option<Vec<usize>> = None, unset "those of --cpt-context";
        /// One 1 for each token, which HF PEFT writes and does not read.
        cpt_mask: Option<Vec<usize>> = None;
        /// Texts of the context: format of an input, input, format of an output, output, and so on.
        cpt_context: Option<Vec<String>> = None;
        /// Weights of the outputs in the loss: none, or decay.
        opt_weighted_loss_type: WeightedLoss = WeightedLoss::None, as Text;
        /// What an output's weight is multiplied by for each example between it and the text.
        opt_loss_decay_factor: f64 = 1.0, in NotNegative;
        /// Largest change of an input's embedding, for 2048 hidden values.
        opt_projection_epsilon: f64 = 0.1, in NotNegative;
        /// Largest change of a format's embedding, for 2048 hidden values.
        opt_projection_format_epsilon: f64 = 0.1, in NotNegative;
        /// Where HF PEFT finds the tokenizer.
        tokenizer_name_or_path: Option<String> = None, unset "directory of the base model";
    }
}

/// Whether outputs far from the text weigh less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightedLoss {
    /// All targets weigh the same.
    None,
    /// Each output weighs less than the next.
    Decay,
}

/// What a token of the context is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Format,
    Input,
    Output,
    Uncounted,
}

impl Part {
    fn of_type(number: usize) -> Self {
        match number % 4 {
            1 | 3 => Self::Format,
            2 => Self::Input,
            _ if number > 0 => Self::Output,
            _ => Self::Uncounted,
        }
    }
}

impl CptConfig {
    fn ids(&self) -> &[u32] {
        self.cpt_token_ids.as_deref().unwrap_or(&NO_CONTEXT)
    }

    /// The type of each token; 1 where nothing is said, as in PEFT.
    fn types(&self) -> Vec<usize> {
        let ones = || vec![1; self.ids().len()];
        self.cpt_tokens_type_mask.clone().unwrap_or_else(ones)
    }

    fn wrong(key: &'static str, value: impl ToString, expected: impl ToString) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }

    /// Number of virtual tokens and size of each.
    fn shape(&self, base: &Base) -> Result<[usize; 2], MethodError> {
        let causal = base.layer_shapes().iter().all(|it| it.attention.causal);
        if !causal || base.task_head.is_some() || base.dimensions.encoder_layers > 0 {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "its loss is over the tokens of its context too, which only a causal \
                         language model of one stack predicts"
                    .to_owned(),
            });
        }
        let count = self.ids().len();
        virtual_tokens::check(Self::NAME, count, base)?;
        let lengths = [
            ("cpt_tokens_type_mask", self.types().len()),
            ("cpt_mask", self.cpt_mask.as_ref().map_or(count, Vec::len)),
        ];
        if let Some((key, length)) = lengths.iter().find(|(_, length)| *length != count) {
            let expected = format!("it must have one for each of the {count} tokens");
            return Err(Self::wrong(key, format!("{length} numbers"), expected));
        }
        let (table, text) = (base.word_embedding_table(), "the context");
        check_ids(Self::NAME, "cpt_token_ids", text, self.ids(), table)?;
        Ok([count, base.embedding_size()])
    }
}

impl MethodConfig for CptConfig {
    const NAME: &'static str = "cpt";
    const PEFT_TYPE: &'static str = "CPT";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "examples in front of the input, whose embeddings move a little";
    const PAPER: &'static str = "Blau et al. 2024, arXiv 2410.17222";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(Self::PAPER, "extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = &[
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "token_dim",
    ];
    const OWN: &'static [&'static str] = &["cpt_context"];

    /// Its tokens are read as any tokens are, so that the text is another.
    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({
                "cpt_token_ids": [3, 1, 4, 1, 5, 9], "cpt_tokens_type_mask": [1, 2, 2, 3, 4, 4],
            }),
            json!({
                "cpt_token_ids": [2, 7, 1, 8, 2, 8, 1, 8, 2],
                "cpt_tokens_type_mask": [0, 1, 2, 3, 4, 5, 6, 7, 8],
                "opt_weighted_loss_type": "decay", "opt_loss_decay_factor": 0.5,
                "opt_projection_epsilon": 30, "opt_projection_format_epsilon": 2,
            }),
        ]
    }

    /// The texts of the context, the first with the special tokens of a text.
    fn texts(&self, _labels: &[String]) -> Vec<(String, bool)> {
        let texts = self.cpt_context.iter().flatten().enumerate();
        texts.map(|(at, text)| (text.clone(), at == 0)).collect()
    }

    fn set_tokens(&mut self, tokens: Vec<Vec<u32>>) {
        if tokens.is_empty() {
            return;
        }
        let types = tokens.iter().enumerate();
        let types = types.flat_map(|(at, ids)| std::iter::repeat_n(at + 1, ids.len()));
        self.cpt_tokens_type_mask = Some(types.collect());
        self.cpt_token_ids = Some(tokens.concat());
    }

    fn check_start(&self, _base: &Base) -> Result<(), MethodError> {
        let configuration = |reason: &str| MethodError::Configuration {
            method: Self::NAME,
            reason: reason.to_owned(),
        };
        if self.cpt_token_ids.is_none() {
            return Err(configuration(
                "it needs a context: give its texts with `cpt_context`, or `cpt_token_ids` and \
                 `cpt_tokens_type_mask`",
            ));
        }
        let last = self.types().into_iter().max().unwrap_or_default();
        if last == 0 || !last.is_multiple_of(4) {
            return Err(configuration(&format!(
                "the context must end with an output: the largest type is {last} and must be a \
                 multiple of 4, or the text behind it has no targets; `cpt_context` has four texts \
                 for each example"
            )));
        }
        Ok(())
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shape @ [count, width] = self.shape(base)?;
        let words = virtual_tokens::start(base.word_embedding_table().gather(self.ids()));
        let embedding = parameters.constant("embedding.weight", &shape, words);
        let delta = parameters.declare("delta_embedding.weight", &shape, Init::Zeros);
        let types = self.types();
        let parts: Vec<Part> = types.iter().map(|&it| Part::of_type(it)).collect();
        let share = (width as f64 / 2048.0).sqrt();
        let limits = parts.iter().map(|part| match part {
            Part::Format => (self.opt_projection_format_epsilon * share) as f32,
            Part::Input => (self.opt_projection_epsilon * share) as f32,
            Part::Output | Part::Uncounted => 0.0,
        });
        let limits: Vec<f32> = limits.collect();
        let limits = Tensor::<1>::from_floats(limits.as_slice(), parameters.device());
        let projection = Projection {
            limits: limits.reshape([count, 1]),
        };
        // As in PEFT, gradients take the projection for a constant.
        let (moved, project) = (delta.clone(), projection.clone());
        let factors = parameters.detached("projection", &[count, 1], move || {
            project.factors(moved.get::<2>().inner()).reshape([count])
        });
        Ok(Box::new(Cpt {
            labels: self.labels(&parts),
            weights: self.weights(&types),
            embedding,
            delta,
            factors,
            projection,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [count, width] = self.shape(base)?;
        Ok(count * width)
    }

    fn resolved(&self, _base: &Base) -> Self {
        Self {
            cpt_token_ids: Some(self.ids().to_vec()),
            cpt_tokens_type_mask: Some(self.types()),
            cpt_mask: Some(
                self.cpt_mask
                    .clone()
                    .unwrap_or_else(|| vec![1; self.ids().len()]),
            ),
            cpt_context: None,
            ..self.clone()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        let (heads, size) = (base.dimensions.heads, base.dimensions.hidden_size);
        let mut all = virtual_tokens::computed(base, heads, size);
        all.insert("num_transformer_submodules".to_owned(), 1.into());
        all.insert("num_virtual_tokens".to_owned(), self.ids().len().into());
        all
    }

    fn peft_defaults() -> Map<String, Value> {
        Map::from_iter([("modules_to_save".to_owned(), Value::Null)])
    }
}

impl CptConfig {
    /// What each token of the context should be predicted as.
    fn labels(&self, parts: &[Part]) -> Vec<i64> {
        let tokens = parts.iter().zip(self.ids());
        let label = |(part, &id): (&Part, &u32)| match part {
            Part::Output => i64::from(id),
            _ => IGNORED,
        };
        tokens.map(label).collect()
    }

    /// What the loss of each token of the context is multiplied by.
    fn weights(&self, types: &[usize]) -> Vec<f32> {
        if self.opt_weighted_loss_type == WeightedLoss::None {
            return vec![1.0; types.len()];
        }
        let is_output = |number: &&usize| Part::of_type(**number) == Part::Output;
        let outputs: BTreeSet<usize> = types.iter().filter(is_output).copied().collect();
        let weight = |number: &usize| {
            let from_here = outputs.range(number..).count();
            self.opt_loss_decay_factor.powi(from_here as i32) as f32
        };
        types.iter().map(weight).collect()
    }
}

/// `Π`: shortens rows to their limits.
#[derive(Clone, Debug)]
struct Projection {
    /// `[tokens, 1]`
    limits: Tensor<2>,
}

impl Projection {
    /// What each row of `delta`, `[tokens, width]`, is multiplied by, `[tokens, 1]`.
    fn factors(&self, delta: Tensor<2>) -> Tensor<2> {
        let norms = delta.square().sum_dim(1).sqrt();
        let longest = norms.max_pair(self.limits.clone());
        self.limits.clone() / longest.clamp_min(f32::MIN_POSITIVE)
    }
}

/// The context at work.
#[derive(Debug)]
struct Cpt {
    /// For each token of the context.
    labels: Vec<i64>,
    weights: Vec<f32>,
    /// `E₀`, of a finished adapter the prompt itself: `[tokens, width]`
    embedding: Param,
    /// `D`: `[tokens, width]`
    delta: Param,
    /// What the projection multiplies each row of `D` by: `[tokens, 1]`
    factors: Param,
    projection: Projection,
}

impl Cpt {
    /// `E₀ + Π(D)`, `[tokens, width]`.
    fn prompt(&self) -> Tensor<2> {
        self.embedding.get::<2>() + self.delta.get::<2>() * self.factors.get::<2>()
    }
}

impl Adapter for Cpt {
    fn virtual_tokens(&self) -> usize {
        self.labels.len()
    }

    fn virtual_targets(&self) -> Option<VirtualTargets<'_>> {
        Some(VirtualTargets {
            labels: &self.labels,
            weights: &self.weights,
        })
    }

    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        put_in_front(self.prompt(), embedded)
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

impl Method for Cpt {
    fn before_step(&mut self, _info: StepInfo) {
        let shape = [self.labels.len(), self.delta.count() / self.labels.len()];
        self.delta.update(|delta| {
            let delta = delta.reshape(shape);
            let factors = self.projection.factors(delta.clone());
            (delta * factors).reshape([shape[0] * shape[1]])
        });
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let prompt = self.prompt().reshape([self.delta.count()]).inner();
        let prompt = prompt.try_into_vec_as::<f32>();
        let prompt = prompt.expect("parameters are f32 and on a device that can be read");
        vec![Stored::f32(KEY, self.delta.shape(), prompt)]
    }

    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        if let Some(prompt) = file.take(KEY, self.delta.shape())? {
            self.embedding.set_values(prompt);
        }
        Ok(())
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(CptConfig::NAME))
    }

    fn changed(&self) -> usize {
        self.delta.count()
    }
}
