//! SPoT: prompt tuning that starts from the prompts of other tasks.
//!
//! Vu, Lester, Constant, Al-Rfou, Cer, "SPoT: Better Frozen Model Adaptation through Soft Prompt
//! Transfer", ACL 2022, arXiv 2110.07904.
//!
//! The prompt `P: [p, d]` works as in [`prompt_tuning`](crate::soft_prompts::prompt_tuning). It
//! starts as one of the `source_prompts`, adapters that were trained on other tasks over the same
//! base. Of several, the similarity with `target_prompt`, a prompt that was trained a little on the
//! target task, decides (section 3.3):
//!
//! - `best`: the most similar one. The paper trains from each of the `k` most similar ones and
//!   takes the best run: `source_rank` 1, 2, …, `k`.
//! - `weighted`: `Σ_r a_r P_r` over the `top_k` most similar ones, with `a_r = sim_r / Σ sim`
//!
//! `epiphyte prompts similarity` prints the similarities.
//!
//! | | |
//! | --- | --- |
//! | trains, changes | `p d` |
//! | file | as prompt tuning |
//! | merges | no |

use std::path::Path;

use epiphyte_models::Base;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, ParameterSet};
use crate::parts::prompt_library::{Similarity, TrainedPrompt};
use crate::parts::virtual_tokens::{self, KEY, Prompt, PromptSettings};

crate::settings! {
    /// The settings of SPoT.
    pub struct SpotConfig {
        /// Directories of the adapters from whose prompts the prompt may start.
        source_prompts: Option<Vec<String>> = None, as Texts;
        /// Directory of a prompt that was trained a little on this task, to compare sources with.
        target_prompt: Option<String> = None, unset "only with several source prompts needed";
        /// How prompts are compared: average-token or per-token.
        prompt_similarity: Similarity = Similarity::AverageToken, as Text;
        /// Start: best, or weighted, the mean of several sources by their similarity.
        prompt_transfer: Transfer = Transfer::Best, as Text;
        /// Which source is the start of best, 1 for the most similar.
        source_rank: usize = 1, in AtLeastOne;
        /// How many sources, the most similar ones, weighted takes.
        top_k: usize = 3, flag "source-top-k", in AtLeastOne;

        ..prompt: PromptSettings = PromptSettings::default();
    }
}

/// How the prompt starts from source prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transfer {
    /// One of them.
    Best,
    /// Their mean, weighted by similarity.
    Weighted,
}

impl SpotConfig {
    fn wrong(key: &'static str, value: impl ToString, expected: impl ToString) -> MethodError {
        MethodError::Value {
            method: Self::NAME,
            key,
            value: value.to_string(),
            expected: expected.to_string(),
        }
    }

    fn paths(&self) -> &[String] {
        self.source_prompts.as_deref().unwrap_or_default()
    }

    /// The source prompts with their similarities, the most similar first.
    fn ranked(&self, shape: [usize; 2]) -> Result<Vec<(TrainedPrompt, f64)>, MethodError> {
        let read = |path: &String| TrainedPrompt::read(Path::new(path));
        let mut sources = self
            .paths()
            .iter()
            .map(read)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(other) = sources.iter().find(|source| source.shape != shape) {
            let expected = format!(
                "a prompt of this run is {shape:?}, and this one {:?}: sources have the same base \
                 and `num_virtual_tokens`",
                other.shape
            );
            return Err(Self::wrong(
                "source_prompts",
                other.path.display(),
                expected,
            ));
        }
        let Some(target) = &self.target_prompt else {
            return match sources.len() {
                1 => Ok(vec![(sources.remove(0), 1.0)]),
                count => Err(Self::wrong(
                    "source_prompts",
                    format!("{count} prompts"),
                    "to choose among several, `target_prompt` must say what to compare them with",
                )),
            };
        };
        let target = TrainedPrompt::read(Path::new(target))?;
        let compared = sources.into_iter().map(|source| {
            let similarity = target.similarity(&source, self.prompt_similarity)?;
            Ok((source, similarity))
        });
        let mut ranked = compared.collect::<Result<Vec<_>, MethodError>>()?;
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(ranked)
    }

    /// The start out of the source prompts.
    fn start(&self, shape: [usize; 2]) -> Result<Vec<f32>, MethodError> {
        let mut ranked = self.ranked(shape)?;
        let count = ranked.len();
        let most =
            |key, value: usize| Self::wrong(key, value, format!("there are {count} sources"));
        match self.prompt_transfer {
            Transfer::Best if self.source_rank > count => {
                Err(most("source_rank", self.source_rank))
            }
            Transfer::Best => Ok(ranked.swap_remove(self.source_rank - 1).0.values),
            Transfer::Weighted if self.top_k > count => Err(most("top_k", self.top_k)),
            Transfer::Weighted => {
                ranked.truncate(self.top_k);
                let sum: f64 = ranked.iter().map(|(_, similarity)| similarity).sum();
                if sum <= 0.0 {
                    return Err(Self::wrong(
                        "prompt_transfer",
                        "weighted",
                        format!(
                            "the similarities of the {} nearest sources add up to {sum:.3}, which \
                             gives no weights; take best",
                            self.top_k
                        ),
                    ));
                }
                let mut start = vec![0.0; shape[0] * shape[1]];
                for (source, similarity) in &ranked {
                    let weight = (similarity / sum) as f32;
                    for (value, source) in start.iter_mut().zip(&source.values) {
                        *value += weight * source;
                    }
                }
                Ok(start)
            }
        }
    }
}

impl MethodConfig for SpotConfig {
    const NAME: &'static str = "spot";
    const PEFT_TYPE: &'static str = "PROMPT_TUNING";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "prompt tuning that starts from the prompts of other tasks";
    const PAPER: &'static str = "Vu et al. 2022, arXiv 2110.07904";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::survey("extra input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 3e-2;
    const MERGES: bool = false;
    const COMPUTED: &'static [&'static str] = virtual_tokens::COMPUTED;
    const OWN: &'static [&'static str] = &[
        virtual_tokens::POOLED_TOKEN,
        "source_prompts",
        "target_prompt",
        "prompt_similarity",
        "prompt_transfer",
        "source_rank",
        "top_k",
    ];

    fn starts_as_identity(&self) -> bool {
        false
    }

    /// Without source prompts, which are files.
    fn examples() -> Vec<Value> {
        vec![json!({ "num_virtual_tokens": 4 })]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let shape = self.prompt.shape(Self::NAME, base)?;
        let init = match self.paths() {
            [] => Init::Normal { std: 1.0 },
            _ => Init::Values(self.start(shape)?.into()),
        };
        Ok(Box::new(Prompt {
            method: Self::NAME,
            table: parameters.declare(KEY, &shape, init),
            length: self.prompt.num_virtual_tokens,
            pooled: self.prompt.pooled_token,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let [rows, width] = self.prompt.shape(Self::NAME, base)?;
        Ok(rows * width)
    }

    fn resolved(&self, _base: &Base) -> Self {
        Self {
            prompt: self.prompt.resolved(),
            ..self.stored()
        }
    }

    /// The same without what only a start needs.
    fn stored(&self) -> Self {
        Self {
            prompt: self.prompt.clone(),
            ..Self::default()
        }
    }

    fn computed(&self, base: &Base) -> Map<String, Value> {
        PromptSettings::computed(base)
    }

    fn peft_defaults() -> Map<String, Value> {
        let off = [
            "modules_to_save",
            "prompt_tuning_init_text",
            "tokenizer_kwargs",
            "tokenizer_name_or_path",
        ];
        let off = off.map(|key| (key.to_owned(), Value::Null));
        let mut all = Map::from_iter(off);
        all.insert("prompt_tuning_init".to_owned(), json!("RANDOM"));
        all
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use epiphyte_io::safetensors_file::write_f32;
    use serde_json::{Value, json};

    use crate::parts::virtual_tokens::KEY;
    use crate::small_bert::{bert, module, values};
    use crate::{MethodError, ParameterSet, by_name};

    /// Prompts of two vectors for a base of hidden size 8, each constant in its first value or in
    /// its second.
    fn write(dir: &Path, name: &str, first: f32, second: f32) -> String {
        let path = dir.join(name);
        let mut vector = [0.0; 8];
        (vector[0], vector[1]) = (first, second);
        let values = vector.repeat(2);
        write_f32(&path, [(KEY, vec![2, 8], move || values)]).unwrap();
        path.display().to_string()
    }

    #[test]
    fn the_start_is_the_nearest_source_or_their_weighted_mean() {
        let dir = tempfile::tempdir().unwrap();
        let near = write(dir.path(), "near", 2.0, 0.0);
        let half = write(dir.path(), "half", 0.6, 0.8);
        let far = write(dir.path(), "far", 0.0, 5.0);
        let target = write(dir.path(), "target", 1.0, 0.0);
        let start = |more: Value| {
            let mut settings = json!({
                "num_virtual_tokens": 2, "source_prompts": [far, half, near],
                "target_prompt": target,
            });
            let more = more.as_object().unwrap().clone();
            settings.as_object_mut().unwrap().extend(more);
            let module = module(&bert(), "spot", settings);
            values(&module, KEY)[..2].to_vec()
        };
        assert_eq!(start(json!({})), [2.0, 0.0]);
        assert_eq!(start(json!({ "source_rank": 2 })), [0.6, 0.8]);
        assert_eq!(
            start(json!({ "source_rank": 3, "prompt_similarity": "per-token" })),
            [0.0, 5.0]
        );
        let one = json!({ "prompt_transfer": "weighted", "top_k": 1 });
        assert_eq!(start(one), [2.0, 0.0]);
        let two = start(json!({ "prompt_transfer": "weighted", "top_k": 2 }));
        let (a, b) = (1.0 / 1.6, 0.6 / 1.6);
        assert!((two[0] - (2.0 * a + 0.6 * b)).abs() < 1e-6 && (two[1] - 0.8 * b).abs() < 1e-6);
    }

    #[test]
    fn sources_that_cannot_be_chosen_among_are_errors_that_name_the_key() {
        let dir = tempfile::tempdir().unwrap();
        let one = write(dir.path(), "one", 1.0, 0.0);
        let other = write(dir.path(), "other", -1.0, 0.0);
        let model = bert();
        let error = |settings: Value| -> MethodError {
            let settings = settings.as_object().unwrap().clone();
            let config = by_name("spot").unwrap().configure(settings).unwrap();
            let mut parameters = ParameterSet::new(&Default::default(), 0);
            config.build(model.base(), &mut parameters).unwrap_err()
        };
        for (settings, words) in [
            (
                json!({ "num_virtual_tokens": 2, "source_prompts": [one, other] }),
                "`target_prompt` must say",
            ),
            (
                json!({ "num_virtual_tokens": 3, "source_prompts": [one] }),
                "`num_virtual_tokens`",
            ),
            (
                json!({ "num_virtual_tokens": 2, "source_prompts": [one], "source_rank": 2 }),
                "`source_rank` is 2",
            ),
            (
                json!({
                    "num_virtual_tokens": 2, "source_prompts": [other], "target_prompt": one,
                    "prompt_transfer": "weighted", "top_k": 1,
                }),
                "`prompt_transfer`",
            ),
        ] {
            let error = error(settings).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
