//! Intrinsic prompt tuning: a prompt out of a few numbers, decoded in a subspace that many tasks
//! share.
//!
//! Qin, Wang, Su, Lin, Ding, Yi, Chen, Liu, Li, Hou, Li, Sun, Zhou, "Exploring Universal Intrinsic
//! Task Subspace via Prompt Tuning", 2021, arXiv 2110.07867.
//!
//! ```text
//! z = P W_eᵀ + b_e,    P̂ = tanh(z W₁ᵀ + b₁) W₂ᵀ + b₂
//! ```
//!
//! with a prompt `P: [1, p d]` of all its virtual tokens, `W_e: [k, p d]`, `W₁: [h, k]`,
//! `W₂: [p d, h]`, `k = intrinsic_dim`. The prompt `P̂` stands in front of the input's embeddings
//! as in [`prompt_tuning`](crate::soft_prompts::prompt_tuning). There are two runs:
//!
//! - `subspace` finds the subspace. It trains the auto-encoder so that each of the
//!   `source_prompts`, adapters of prompt tuning over the same base, comes back: the loss is that
//!   of the run's task with the reconstruction of the first of them, plus `reconstruction_weight`
//!   times the mean of `(P̂_t - P_t)²` over all. The paper adds the losses of all tasks, for which
//!   one run has no data.
//! - `tuning` learns a task in it: `z` alone is trained, from a normal start with standard
//!   deviation 0.02, under the frozen decoder of the first run (`subspace_adapter`), or one drawn
//!   at random.
//!
//! | | |
//! | --- | --- |
//! | trains | `subspace` `(p d k + k) + (k h + h) + (h p d + p d)`; `tuning` `k` |
//! | changes | `p d` |
//! | file | `intrinsic_prompt` `[1, k]`, with `subspace` `projection.weight`, `.bias`, `decoder.0.…`, `decoder.2.…`, with `tuning` `prompt_embeddings` `[p, d]`: `P̂` |
//! | merges | no |

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base, Checkpoint, Embedded, ForwardContext, Hook};
use epiphyte_ops::{Activation, fork};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::MethodError;
use crate::file::TENSORS_FILE;
use crate::framework::method::{KeyStyle, Method, MethodConfig, Stored};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::dense::Dense;
use crate::parts::prompt_library::TrainedPrompt;
use crate::parts::virtual_tokens::{self, KEY, not_mergeable, put_in_front};

const INTRINSIC: &str = "intrinsic_prompt";

crate::settings! {
    /// The settings of intrinsic prompt tuning.
    pub struct IptConfig {
        /// Number of virtual tokens.
        num_virtual_tokens: usize = 20, in Size;
        /// What is trained: subspace, or tuning in it.
        ipt_stage: Option<IptStage> = Some(IptStage::Tuning), as Text;
        /// Numbers that a prompt is made of.
        intrinsic_dim: usize = 100, in Size;
        /// Hidden size of the decoder.
        ipt_hidden_size: Option<usize> = None, in Size, unset "the size of embeddings";
        /// Directories of the adapters whose prompts span the subspace, that of this task first.
        source_prompts: Option<Vec<String>> = None, as Texts;
        /// What the error of the reconstructed prompts is multiplied by.
        reconstruction_weight: f64 = 200.0, in NotNegative;
        /// Directory of the adapter that found the subspace.
        subspace_adapter: Option<String> = None, unset "a random decoder";
    }
}

/// What a run of intrinsic prompt tuning trains.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IptStage {
    /// The auto-encoder.
    Subspace,
    /// The numbers of a task.
    Tuning,
}

/// Sizes of the auto-encoder.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    /// Virtual tokens.
    length: usize,
    /// Size of each.
    width: usize,
    intrinsic: usize,
    hidden: usize,
}

impl Sizes {
    /// Values of a prompt.
    fn prompt(self) -> usize {
        self.length * self.width
    }

    /// The decoder's layers, outputs and inputs.
    fn decoder(self) -> [(&'static str, [usize; 2]); 2] {
        [
            ("decoder.0", [self.hidden, self.intrinsic]),
            ("decoder.2", [self.prompt(), self.hidden]),
        ]
    }

    /// The projection, outputs and inputs.
    fn projection(self) -> [usize; 2] {
        [self.intrinsic, self.prompt()]
    }
}

impl IptConfig {
    fn sizes(&self, base: &Base) -> Result<Sizes, MethodError> {
        virtual_tokens::check(Self::NAME, self.num_virtual_tokens, base)?;
        let width = base.embedding_size();
        Ok(Sizes {
            length: self.num_virtual_tokens,
            width,
            intrinsic: self.intrinsic_dim,
            hidden: self.ipt_hidden_size.unwrap_or(width),
        })
    }

    /// The source prompts, one in a row, `[sources, p d]`.
    fn sources(
        &self,
        paths: &[String],
        sizes: Sizes,
        parameters: &ParameterSet,
    ) -> Result<Tensor<2>, MethodError> {
        let mut values = Vec::new();
        for path in paths {
            let prompt = TrainedPrompt::read(Path::new(path))?;
            let expected = [sizes.length, sizes.width];
            if prompt.shape != expected {
                return Err(MethodError::Value {
                    method: Self::NAME,
                    key: "source_prompts",
                    value: path.clone(),
                    expected: format!(
                        "a prompt of this run is {expected:?}, and this one {:?}: sources have the \
                         same base and `num_virtual_tokens`",
                        prompt.shape
                    ),
                });
            }
            values.extend(prompt.values);
        }
        let all = Tensor::<1>::from_floats(values.as_slice(), parameters.device());
        Ok(all.reshape([paths.len(), sizes.prompt()]))
    }

    /// Initial values of the decoder that another run trained, weight and bias of each layer.
    fn trained_decoder(path: &str, sizes: Sizes) -> Result<Vec<(Init, Init)>, MethodError> {
        let file = Checkpoint::open_file(&Path::new(path).join(TENSORS_FILE))?;
        let read = |key: String, shape: &[usize]| -> Result<Init, MethodError> {
            let found = file.tensor(&key).map(|found| found.shape.to_vec());
            if found.as_deref() != Some(shape) {
                return Err(MethodError::Malformed {
                    path: file.path().to_owned(),
                    reason: match found {
                        Some(found) => format!(
                            "`{key}` has shape {found:?}, and this run needs {shape:?}: \
                             `num_virtual_tokens`, `intrinsic_dim`, `ipt_hidden_size` and the base \
                             are those of the run that found the subspace"
                        ),
                        None => {
                            format!("there is no `{key}`: give the adapter of `ipt_stage` subspace")
                        }
                    },
                });
            }
            Ok(Init::Values(file.to_f32(&key, shape)?.into()))
        };
        let layers = sizes.decoder().into_iter();
        layers
            .map(|(layer, shape)| {
                let weight = read(format!("{layer}.weight"), &shape)?;
                Ok((weight, read(format!("{layer}.bias"), &shape[..1])?))
            })
            .collect()
    }
}

/// A layer's start in PyTorch.
fn plain(inputs: usize) -> (Init, Init) {
    let bound = 1.0 / (inputs as f64).sqrt();
    (Init::Uniform { bound }, Init::Uniform { bound })
}

/// A prompt out of its numbers.
#[derive(Debug)]
struct Decoder {
    layers: [Dense; 2],
}

impl Decoder {
    /// # Shapes
    /// - `z`: `[prompts, k]`
    /// - result: `[prompts, p d]`
    fn forward(&self, z: Tensor<2>) -> Tensor<2> {
        let [first, second] = &self.layers;
        second.forward(Activation::Tanh.apply(first.forward(z)))
    }
}

impl MethodConfig for IptConfig {
    const NAME: &'static str = "ipt";
    const PEFT_TYPE: &'static str = "IPT";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "a prompt out of a few numbers, in a subspace that tasks share";
    const PAPER: &'static str = "Qin et al. 2021, arXiv 2110.07867";
    const CLAIMS: Option<crate::Claims> =
        Some(crate::Claims::survey("extra feed-forward and input"));
    const KEYS: KeyStyle = KeyStyle::PromptLearning;
    const LEARNING_RATE: f64 = 1e-2;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    /// Without the files that other runs write.
    fn examples() -> Vec<Value> {
        vec![
            json!({ "num_virtual_tokens": 3, "intrinsic_dim": 5 }),
            json!({ "num_virtual_tokens": 2, "intrinsic_dim": 4, "ipt_hidden_size": 6 }),
        ]
    }

    fn check_start(&self, _base: &Base) -> Result<(), MethodError> {
        let sources = self.source_prompts.as_deref().unwrap_or_default();
        let reason = match self.ipt_stage {
            Some(IptStage::Subspace) if sources.is_empty() => {
                "`ipt_stage` subspace needs `source_prompts`: adapters of prompt-tuning on several \
                 tasks"
            }
            Some(IptStage::Tuning) if !sources.is_empty() => {
                "`source_prompts` are for `ipt_stage` subspace; tuning in a subspace takes \
                 `subspace_adapter`"
            }
            _ => return Ok(()),
        };
        Err(MethodError::Configuration {
            method: Self::NAME,
            reason: reason.to_owned(),
        })
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let sizes = self.sizes(base)?;
        let shape = [sizes.length, sizes.width];
        let code = [1, sizes.intrinsic];
        let small = Init::Normal { std: 0.02 };
        let mut find = None;
        let (intrinsic, prompt) = match (self.ipt_stage, self.source_prompts.as_deref()) {
            (None, _) => (
                parameters.declare(INTRINSIC, &code, small),
                parameters.declare(KEY, &shape, Init::Normal { std: 1.0 }),
            ),
            (Some(IptStage::Tuning), _) => {
                let inits = match &self.subspace_adapter {
                    Some(path) => Self::trained_decoder(path, sizes)?,
                    None => sizes.decoder().map(|(_, [_, inputs])| plain(inputs)).into(),
                };
                let mut inits = inits.into_iter();
                let layers = sizes.decoder().map(|(layer, shape)| {
                    let init = inits.next().expect("two layers");
                    Dense::constant(parameters, layer, shape, init)
                });
                let decoder = Decoder { layers };
                let intrinsic = parameters.declare(INTRINSIC, &code, small);
                let z = intrinsic.clone();
                let prompt = parameters.derived(KEY, &shape, move || {
                    decoder.forward(z.get()).reshape([sizes.prompt()])
                });
                (intrinsic, prompt)
            }
            (Some(IptStage::Subspace), paths) => {
                let inputs = sizes.prompt();
                let at = "projection";
                let projection = Dense::declare(parameters, at, sizes.projection(), plain(inputs));
                let layers = sizes.decoder().map(|(layer, shape)| {
                    Dense::declare(parameters, layer, shape, plain(shape[1]))
                });
                let auto_encoder = Arc::new((projection, Decoder { layers }));
                let intrinsic = match paths {
                    Some(paths) => {
                        let sources = self.sources(paths, sizes, parameters)?;
                        let (first, of_first) =
                            (sources.clone().narrow(0, 0, 1), auto_encoder.clone());
                        find = Some(Reconstruction {
                            auto_encoder: auto_encoder.clone(),
                            sources,
                            weight: self.reconstruction_weight,
                        });
                        parameters.derived(INTRINSIC, &code, move || {
                            let z = of_first.0.forward(first.clone());
                            z.reshape([sizes.intrinsic])
                        })
                    }
                    // Of a finished adapter.
                    None => parameters.declare(INTRINSIC, &code, small),
                };
                let z = intrinsic.clone();
                let prompt = parameters.derived(KEY, &shape, move || {
                    auto_encoder.1.forward(z.get()).reshape([sizes.prompt()])
                });
                (intrinsic, prompt)
            }
        };
        Ok(Box::new(IntrinsicPrompt {
            intrinsic,
            prompt,
            subspace: self.ipt_stage == Some(IptStage::Subspace),
            find,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let sizes = self.sizes(base)?;
        let decoder = sizes.decoder().map(|(_, shape)| Dense::count(shape));
        Ok(match self.ipt_stage {
            Some(IptStage::Subspace) => {
                Dense::count(sizes.projection()) + decoder.iter().sum::<usize>()
            }
            _ => sizes.intrinsic,
        })
    }

    fn resolved(&self, base: &Base) -> Self {
        Self {
            ipt_hidden_size: self.sizes(base).map(|sizes| sizes.hidden).ok(),
            source_prompts: None,
            subspace_adapter: None,
            ..self.clone()
        }
    }

    fn stored(&self) -> Self {
        Self {
            ipt_stage: self.ipt_stage.filter(|stage| *stage == IptStage::Subspace),
            source_prompts: None,
            subspace_adapter: None,
            ..self.clone()
        }
    }
}

/// What finds the subspace.
#[derive(Debug)]
struct Reconstruction {
    auto_encoder: Arc<(Dense, Decoder)>,
    /// `[sources, p d]`
    sources: Tensor<2>,
    weight: f64,
}

/// The prompt at work.
#[derive(Debug)]
struct IntrinsicPrompt {
    /// `z`: `[1, k]`
    intrinsic: Param,
    /// `P̂`: `[p, d]`
    prompt: Param,
    /// Whether the auto-encoder is a part of the adapter.
    subspace: bool,
    find: Option<Reconstruction>,
}

impl Adapter for IntrinsicPrompt {
    fn virtual_tokens(&self) -> usize {
        self.prompt.shape()[0]
    }

    fn embeddings(&self, embedded: Embedded, _cx: &ForwardContext<'_>) -> Embedded {
        match embedded.decoder {
            true => embedded,
            false => put_in_front(self.prompt.get(), embedded),
        }
    }

    fn uses(&self, _hook: Hook<'_>) -> bool {
        false
    }
}

impl Method for IntrinsicPrompt {
    fn penalty(&self) -> Option<Tensor<1>> {
        let Reconstruction {
            auto_encoder,
            sources,
            weight,
        } = self.find.as_ref()?;
        let (projection, decoder) = &**auto_encoder;
        let found = decoder.forward(projection.forward(sources.clone()));
        let [error, same] = fork(found - sources.clone());
        Some((error * same).mean() * *weight)
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let own = Stored::of(&self.intrinsic);
        if !self.subspace {
            return vec![own, Stored::of(&self.prompt)];
        }
        let network = parameters
            .trained()
            .filter(|param| param.key() != INTRINSIC);
        network.map(Stored::of).chain([own]).collect()
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(not_mergeable(IptConfig::NAME))
    }

    fn changed(&self) -> usize {
        self.prompt.count()
    }
}

#[cfg(test)]
mod tests {
    use epiphyte_io::safetensors_file::write_f32;
    use serde_json::json;

    use super::INTRINSIC;
    use crate::file::TENSORS_FILE;
    use crate::parts::virtual_tokens::KEY;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module, set_random, values};
    use crate::test_data::StoredList;
    use crate::{AdapterModule, Stored, StoredValues};

    fn write(path: &std::path::Path, stored: Vec<Stored>) {
        let tensors = stored.into_iter().map(|it| {
            let StoredValues::F32(values) = it.values else {
                panic!("`{}` is no float", it.key)
            };
            (it.key, it.shape, move || values)
        });
        write_f32(&path.join(TENSORS_FILE), tensors).unwrap();
    }

    /// The published size of the auto-encoder: 100 tokens of BART-base, 250 numbers.
    #[test]
    fn counts_are_those_of_the_paper() {
        let settings = |stage: &str| json!({ "num_virtual_tokens": 50, "intrinsic_dim": 250, "ipt_stage": stage });
        // Half of the tokens, so that a small table of positions has room.
        let half = 38_400 * 250 + 250 + 250 * 768 + 768 + 768 * 38_400 + 38_400;
        assert_eq!(bert_base_count("ipt", settings("subspace"), half), half);
        assert_eq!(
            2 * (half - 250 - 250 * 768 - 768) + 250 + 250 * 768 + 768,
            78_452_218
        );
        assert_eq!(bert_base_count("ipt", settings("tuning"), 250), 250);
    }

    /// The first run's prompt, its file read again, and the second run with the same numbers.
    #[test]
    fn both_runs_decode_alike() {
        let (model, dir) = (bert(), tempfile::tempdir().unwrap());
        let paths: Vec<String> = ["one", "other"]
            .map(|name| {
                let path = dir.path().join(name);
                std::fs::create_dir(&path).unwrap();
                let prompt = module(&model, "prompt-tuning", json!({ "num_virtual_tokens": 2 }));
                set_random(&prompt, KEY);
                write(&path, prompt.stored());
                path.display().to_string()
            })
            .into();
        let sizes = json!({ "num_virtual_tokens": 2, "intrinsic_dim": 3, "ipt_hidden_size": 4 });
        let with = |more: serde_json::Value| {
            let mut settings = sizes.clone();
            settings
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            settings
        };
        let settings = with(json!({ "ipt_stage": "subspace", "source_prompts": paths }));
        let finder = module(&model, "ipt", settings);
        let penalty = finder.method().penalty().unwrap().into_scalar::<f32>();
        assert!(penalty.is_finite() && penalty > 0.0, "{penalty}");

        let config = finder.config();
        let [own, head, rest] = [finder.stored(), finder.stored_head(), Vec::new()];
        let device = Default::default();
        let again = AdapterModule::load(
            config,
            model.base(),
            &device,
            0,
            Default::default(),
            [
                &mut StoredList(own),
                &mut StoredList(head),
                &mut StoredList(rest),
            ],
        );
        let again = again.unwrap();
        assert_eq!(values(&again, KEY), values(&finder, KEY));

        let found = dir.path().join("found");
        std::fs::create_dir(&found).unwrap();
        write(&found, finder.stored());
        let tuned = module(&model, "ipt", with(json!({ "subspace_adapter": found })));
        let intrinsic = tuned.parameters().get(INTRINSIC).unwrap();
        intrinsic.set_values(values(&finder, INTRINSIC));
        tuned.parameters().derive(false);
        assert!(distance(&values(&tuned, KEY), &values(&finder, KEY)) < 1e-6);
        assert!(distance(&logits(&model, &tuned), &logits(&model, &finder)) < 1e-6);
        assert_eq!(tuned.trained().next().unwrap().key(), INTRINSIC);
        assert_eq!(tuned.parameters().count(), 3);
    }
}
