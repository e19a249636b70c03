//! X-LoRA: trained LoRA adapters, mixed for each token by what a first pass makes of the text.
//!
//! Buehler, Buehler, "X-LoRA: Mixture of Low-Rank Adapter Experts", 2024, arXiv 2402.07148; the
//! definition is HF PEFT's code.
//!
//! The model is run twice. The first pass has the experts at one weight (`scaling_pass_value`, 0:
//! the base as it is), and its final states `h: [tokens, hidden]` give scores by a classifier of
//! `xlora_depth` linear layers, `s = softmax(f(h) / temperature): [tokens, N]` over N experts, or
//! with `layerwise_scalings` others for each of the L linear layers that an expert changes,
//! `[tokens, L N]`. In the second pass such a layer is
//!
//! `y = x Wᵀ + b + g Σ_i s_i · α_i / r_i · (dropout_i(x) A_iᵀ) B_iᵀ`
//!
//! with `A_i: [r_i, in]` and `B_i: [out, r_i]` of the experts that have it as a target, and `g`
//! `global_scaling_weight`. With `top_k_lora` only the largest scores of a token remain, as they
//! are or, with `enable_softmax_topk`, after another softmax. No gradient enters the first pass,
//! and no dropout is on there.
//!
//! The experts come from directories that `--method lora` or HF PEFT made over the same base. They
//! stay as they are, unless `use_trainable_adapters`. Their settings and values are stored with the
//! classifier, under the names of HF PEFT's own model: here the directories are needed no more,
//! and PEFT, which makes its layers from them, takes the values of the file. PEFT 0.21.2 itself
//! leaves parts of the classifier out of its file, because their names look like those of experts;
//! such a file is an error here.
//!
//! | | |
//! | --- | --- |
//! | trains | the classifier: `hidden · size + size`, `size² + size` for each further layer, at last `N` or `L N` outputs; at depth 1 `hidden · N + N` |
//! | changes | the same, and the experts |
//! | file | `internal_xlora_classifier.layers.<i>.{weight,bias}`; of expert `n` `lora_model.model.<path>.lora_{A,B}.<n>.weight` |
//! | merges | no: each token has its own mixture |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, activation};
use epiphyte_models::adapter::{FIRST_PASS, name_id};
use epiphyte_models::{
    Adapter, Base, ForwardContext, Hidden, Hook, LazyLinear, LinearInfo, Site, Stream,
};
use epiphyte_ops::{Activation, Sequences, Weight, add, dropout, linear, split_off};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use crate::MethodError;
use crate::file::AdapterFile;
use crate::framework::method::{KeyStyle, Method, MethodConfig, StoredTensors};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::framework::settings::parse;
use crate::parts::dense::Dense;
use crate::reparametrized::lora::LoraConfig;

crate::settings! {
    /// The settings of X-LoRA, under HF PEFT's names.
    pub struct XLoraConfig {
        /// Directories of the LoRA adapters that are mixed.
        adapters: Directories = Directories::default(), as Texts, unset "must be given";
        /// A softmax over the scores of the experts.
        enable_softmax: bool = true, as Boolean;
        /// A softmax over the scores that remain of each token.
        enable_softmax_topk: bool = false;
        /// What scores are divided by before the softmax.
        softmax_temperature: f64 = 1.0, in Positive;
        /// Scores of its own for each linear layer.
        layerwise_scalings: bool = false;
        /// How many experts each token keeps.
        top_k_lora: Option<usize> = None, in AtLeastOne, unset "all";
        /// Linear layers of the classifier that scores the experts.
        xlora_depth: usize = 1, in Size;
        /// Intermediate size of that classifier.
        xlora_size: usize = 2048, in Size;
        /// Dropout between its layers.
        xlora_dropout_p: f64 = 0.2, in Fraction;
        /// Train the experts too.
        use_trainable_adapters: bool = false;
        /// Weight of every expert in the first pass, whose states are scored.
        scaling_pass_value: f64 = 0.0, in SinglePrecision;
        /// What the contribution of every expert is multiplied by.
        global_scaling_weight: f64 = 1.0, in SinglePrecision;
        /// LoRA's settings of each expert, which their directories say.
        xlora_experts: Map<String, Value> = Map::new(), as Table, unset "as their directories say";
    }
}

/// Directories, in a file by number as HF PEFT demands it: `"0"`, `"1"`, ….
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Directories(Vec<String>);

impl Serialize for Directories {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let numbered = self.0.iter().enumerate();
        serializer.collect_map(numbered.map(|(number, path)| (number.to_string(), path)))
    }
}

impl<'de> Deserialize<'de> for Directories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Given {
            List(Vec<String>),
            ByName(Map<String, Value>),
        }
        let by_name = match Given::deserialize(deserializer)? {
            Given::List(list) => return Ok(Self(list)),
            Given::ByName(by_name) => by_name,
        };
        let paths = numbered(&by_name).and_then(|paths| {
            let paths = paths.into_iter().map(|path| path.as_str());
            paths.collect::<Option<Vec<&str>>>()
        });
        let paths = paths.ok_or_else(|| {
            serde::de::Error::custom(
                "the experts must be texts by the names \"0\", \"1\", …, as HF PEFT demands it",
            )
        })?;
        Ok(Self(paths.into_iter().map(str::to_owned).collect()))
    }
}

/// The values of `"0"`, `"1"`, … in this order, if these are the names.
fn numbered(by_name: &Map<String, Value>) -> Option<Vec<&Value>> {
    let names = 0..by_name.len();
    names.map(|name| by_name.get(&name.to_string())).collect()
}

/// An adapter that is mixed.
#[derive(Debug)]
struct Expert {
    config: LoraConfig,
    /// Its files; none if its values come from the mixture's own.
    file: Option<AdapterFile>,
}

impl Expert {
    fn open(directory: &str) -> Result<Self, MethodError> {
        let refused = |reason: String| MethodError::Value {
            method: XLoraConfig::NAME,
            key: "adapters",
            value: directory.to_owned(),
            expected: reason,
        };
        let file = AdapterFile::open(Path::new(directory))?;
        file.check_files()?;
        let method = file.config().definition().name;
        if method != LoraConfig::NAME {
            let reason = "only plain LoRA is mixed, as in HF PEFT; train it by --method lora";
            return Err(refused(format!("it is an adapter of `{method}`: {reason}")));
        }
        let expert = Self::of(file.config().settings())?;
        expert.config.check_plain_base().map_err(refused)?;
        Ok(Self {
            file: Some(file),
            ..expert
        })
    }

    fn of(settings: Map<String, Value>) -> Result<Self, MethodError> {
        let config = parse(&settings).map_err(|error| MethodError::Configuration {
            method: XLoraConfig::NAME,
            reason: format!("`xlora_experts`: {error}"),
        })?;
        Ok(Self { config, file: None })
    }

    /// Its linear layers, each with rank and scaling.
    fn targets<'b>(
        &self,
        base: &'b Base,
    ) -> Result<Vec<(&'b LinearInfo, usize, f64)>, MethodError> {
        let targets = self.config.targets(XLoraConfig::NAME, base)?;
        if let Some((linear, ..)) = targets.iter().find(|it| it.0.site.layer.is_none()) {
            return Err(MethodError::NotApplicable {
                method: XLoraConfig::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: format!(
                    "an expert changes `{}`, which is outside of the layers: there tokens have no \
                     scores",
                    linear.site.path
                ),
            });
        }
        Ok(targets)
    }

    /// Checks that the expert's file holds nothing that is not mixed, but for the task's head.
    fn check_tensors(&self, base: &Base) -> Result<(), MethodError> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let targets = self.targets(base)?;
        let prefix = LoraConfig::KEYS.head_prefix();
        let own = targets.iter().flat_map(|(linear, ..)| {
            let key = |matrix| format!("{prefix}{}.{matrix}.weight", linear.site.path);
            [key("lora_A"), key("lora_B")]
        });
        let own: Vec<String> = own.collect();
        let is_head = |name: &str| {
            let name = name.strip_prefix(prefix).unwrap_or(name);
            base.is_of_head(name)
        };
        let mut names = file.tensors().names();
        match names.find(|name| !own.iter().any(|it| it == name) && !is_head(name)) {
            None => Ok(()),
            Some(name) => Err(MethodError::Value {
                method: XLoraConfig::NAME,
                key: "adapters",
                value: file.directory().display().to_string(),
                expected: format!(
                    "it holds `{name}`, and only LoRA of linear layers is mixed; train it without \
                     biases, embeddings and modules_to_save"
                ),
            }),
        }
    }

    /// The initial values of one of its matrices.
    fn init(&self, key: &str, shape: [usize; 2]) -> Result<Init, MethodError> {
        let Some(file) = &self.file else {
            return Ok(Init::kaiming(shape[1]));
        };
        let key = format!("{}{key}", LoraConfig::KEYS.prefix(key));
        Ok(Init::Values(file.tensors().to_f32(&key, &shape)?.into()))
    }
}

impl XLoraConfig {
    /// The experts: those of a saved mixture, or those in the directories.
    fn experts(&self) -> Result<Vec<Expert>, MethodError> {
        let wrong = |reason: String| MethodError::Configuration {
            method: Self::NAME,
            reason,
        };
        let experts: Result<Vec<Expert>, MethodError> = match numbered(&self.xlora_experts) {
            Some(saved) if !saved.is_empty() => {
                let settings = saved.into_iter().map(|it| it.as_object().cloned());
                let experts = settings.map(|it| Expert::of(it.unwrap_or_default()));
                experts.collect()
            }
            Some(_) => self.adapters.0.iter().map(|it| Expert::open(it)).collect(),
            None => Err(wrong(
                "`xlora_experts`: the names must be \"0\", \"1\", …".to_owned(),
            )),
        };
        let experts = experts?;
        if experts.is_empty() {
            return Err(wrong(
                "name the directories of trained LoRA adapters: --adapters A,B".to_owned(),
            ));
        }
        if let Some(most) = self.top_k_lora.filter(|most| *most > experts.len()) {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "top_k_lora",
                value: most.to_string(),
                expected: format!("there are {} experts", experts.len()),
            });
        }
        let some = self.top_k_lora.is_some_and(|most| most < experts.len());
        if some && self.scaling_pass_value != 0.0 {
            return Err(MethodError::Value {
                method: Self::NAME,
                key: "scaling_pass_value",
                value: self.scaling_pass_value.to_string(),
                expected: "with top_k_lora it must be 0: which of several equal experts PyTorch \
                           keeps is not defined"
                    .to_owned(),
            });
        }
        Ok(experts)
    }

    /// The linear layers that experts change, in the order of the model's modules.
    fn layers<'b>(
        &self,
        experts: &[Expert],
        base: &'b Base,
    ) -> Result<Vec<&'b LinearInfo>, MethodError> {
        if base.dimensions.encoder_layers > 0 {
            return Err(MethodError::NotApplicable {
                method: Self::NAME,
                model_type: base.dimensions.model_type.clone(),
                reason: "the tokens of a decoder are not those that the first pass over the \
                         encoder scores, as in HF PEFT"
                    .to_owned(),
            });
        }
        let mut paths = BTreeSet::new();
        for expert in experts {
            expert.check_tensors(base)?;
            let targets = expert.targets(base)?;
            paths.extend(targets.into_iter().map(|(linear, ..)| &*linear.site.path));
        }
        let layers = base.linears().iter();
        let layers = layers.filter(|linear| paths.contains(&*linear.site.path));
        let mut layers: Vec<&LinearInfo> = layers.collect();
        base.in_module_order(&mut layers);
        Ok(layers)
    }

    /// How many scores a token has.
    fn scores(&self, experts: usize, layers: usize) -> usize {
        experts * if self.layerwise_scalings { layers } else { 1 }
    }

    /// The sizes of the classifier's layers, `[out, in]`.
    fn classifier_shapes(&self, base: &Base, scores: usize) -> Vec<[usize; 2]> {
        let inner = std::iter::repeat_n(self.xlora_size, self.xlora_depth - 1);
        let sizes = std::iter::once(base.dimensions.hidden_size).chain(inner);
        let sizes: Vec<usize> = sizes.chain([scores]).collect();
        sizes.windows(2).map(|pair| [pair[1], pair[0]]).collect()
    }

    /// The weight of every expert in the first pass.
    fn first_weight(&self, experts: usize) -> f64 {
        match self.enable_softmax_topk && self.scaling_pass_value != 0.0 {
            true => 1.0 / experts as f64,
            false => self.scaling_pass_value,
        }
    }
}

impl MethodConfig for XLoraConfig {
    const NAME: &'static str = "x-lora";
    const PEFT_TYPE: &'static str = "XLORA";
    const IN_PEFT: bool = true;
    const SUMMARY: &'static str = "trained LoRA adapters, mixed for each token by a classifier";
    const PAPER: &'static str = "Buehler and Buehler 2024, arXiv 2402.07148";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(
        "HF PEFT's documentation",
        "second forward pass",
    ));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        let experts = json!({
            "0": { "r": 2 },
            "1": { "r": 3, "lora_alpha": 2, "target_modules": "all-linear",
                   "exclude_modules": ["pooler.dense", "dense_pooler"] },
            "2": { "r": 2, "use_rslora": true },
        });
        vec![
            json!({ "xlora_experts": experts, "softmax_temperature": 0.7 }),
            json!({
                "xlora_experts": experts, "xlora_depth": 3, "xlora_size": 5,
                "enable_softmax": false, "enable_softmax_topk": true, "layerwise_scalings": true,
            }),
            json!({
                "xlora_experts": {
                    "0": { "r": 2, "lora_alpha": 1 }, "1": { "r": 2, "lora_alpha": 1 },
                },
                "use_trainable_adapters": true, "global_scaling_weight": 0.5,
            }),
            json!({
                "xlora_experts": { "0": { "r": 2 }, "1": { "r": 2 } },
                "scaling_pass_value": 0.5,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let experts = self.experts()?;
        let layers = self.layers(&experts, base)?;
        let scores = self.scores(experts.len(), layers.len());
        let classifier =
            Classifier::declare(self, self.classifier_shapes(base, scores), parameters);
        let mixtures = layers.iter().enumerate().map(|(number, linear)| {
            let mixture = Mixture {
                members: Vec::new(),
                start: if self.layerwise_scalings {
                    number * experts.len()
                } else {
                    0
                },
                weight: self.global_scaling_weight,
            };
            (linear.site.path.clone(), mixture)
        });
        let mut mixtures: BTreeMap<String, Mixture> = mixtures.collect();
        for (number, expert) in experts.iter().enumerate() {
            for (linear, rank, scaling) in expert.targets(base)? {
                let path = &linear.site.path;
                let mut matrix = |name: &str, shape: [usize; 2]| {
                    let init = expert.init(&format!("{path}.{name}.weight"), shape)?;
                    let key = format!("{EXPERTS}{path}.{name}.{number}.weight");
                    Ok::<Param, MethodError>(match self.use_trainable_adapters {
                        true => parameters.declare(key, &shape, init),
                        false => parameters.constant(key, &shape, init),
                    })
                };
                let member = Member {
                    expert: number,
                    a: matrix("lora_A", [rank, linear.inputs])?,
                    b: matrix("lora_B", [linear.outputs, rank])?,
                    scaling,
                    dropout: expert.config.lora_dropout,
                };
                let mixture = mixtures.get_mut(path).expect("all targets are layers");
                mixture.members.push(member);
            }
        }
        let first_layer = layers.iter().filter_map(|linear| linear.site.layer).min();
        let mixtures = Arc::new(mixtures);
        Ok(Box::new(XLora {
            first: FirstPass {
                mixtures: mixtures.clone(),
                weight: self.first_weight(experts.len()),
            },
            mixtures,
            classifier,
            config: self.clone(),
            experts: experts.len(),
            first_layer: first_layer.unwrap_or(0),
            from_directories: experts.iter().any(|expert| expert.file.is_some()),
            changed: parameters.stored().map(Param::count).sum(),
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        let experts = self.experts()?;
        let scores = self.scores(experts.len(), self.layers(&experts, base)?.len());
        let shapes = self.classifier_shapes(base, scores);
        let mut count = shapes.into_iter().map(Dense::count).sum();
        for expert in experts.iter().filter(|_| self.use_trainable_adapters) {
            let targets = expert.targets(base)?.into_iter();
            let sizes = targets.map(|(linear, rank, _)| rank * (linear.inputs + linear.outputs));
            count += sizes.sum::<usize>();
        }
        Ok(count)
    }

    /// The directories' names stay, for HF PEFT; what they hold is in the file.
    fn resolved(&self, base: &Base) -> Self {
        let Ok(experts) = self.experts() else {
            return self.clone();
        };
        let experts = experts.iter().enumerate().map(|(number, expert)| {
            let number = number.to_string();
            let resolved = json!(expert.config.resolved_as(Self::NAME, base));
            let settings = match self.xlora_experts.get(&number) {
                // What is said already stays as it is said.
                Some(Value::Object(given)) => {
                    let targets =
                        ["target_modules"].map(|key| (key.to_owned(), resolved[key].clone()));
                    let targets = Map::from_iter(targets);
                    Value::Object(targets.into_iter().chain(given.clone()).collect())
                }
                _ => resolved,
            };
            (number, settings)
        });
        Self {
            xlora_experts: experts.collect(),
            ..self.clone()
        }
    }

    const TRAINS_ALONE: bool = true;

    const OWN: &'static [&'static str] = &["xlora_experts"];

    const LISTS_MODULES: bool = false;

    const COMPUTED: &'static [&'static str] = &["hidden_size"];

    fn computed(&self, base: &Base) -> Map<String, Value> {
        Map::from_iter([("hidden_size".to_owned(), json!(base.dimensions.hidden_size))])
    }
}

/// What the keys of the experts' matrices begin with, where HF PEFT has them in its model.
const EXPERTS: &str = "base_model.lora_model.model.";

/// The name of the stream of scores.
const SCORES: &str = "x-lora scores";

/// What scores the experts: linear layers with ReLU and dropout between them.
#[derive(Debug)]
struct Classifier {
    layers: Vec<Dense>,
    dropout: f64,
}

impl Classifier {
    fn declare(
        config: &XLoraConfig,
        shapes: Vec<[usize; 2]>,
        parameters: &mut ParameterSet,
    ) -> Self {
        // HF PEFT counts the modules between them.
        let modules = if config.xlora_dropout_p > 0.0 { 3 } else { 2 };
        let layers = shapes.into_iter().enumerate().map(|(number, shape)| {
            let path = format!(
                "base_model.internal_xlora_classifier.layers.{}",
                number * modules
            );
            let init = || Init::kaiming(shape[1]);
            Dense::declare(parameters, &path, shape, (init(), init()))
        });
        Self {
            layers: layers.collect(),
            dropout: config.xlora_dropout_p,
        }
    }

    /// Scores, `[tokens, scores]`, of states `[tokens, hidden]`.
    fn forward(&self, states: Tensor<2>, rows: &Sequences) -> Tensor<2> {
        let mut states = states;
        for (number, layer) in self.layers.iter().enumerate() {
            states = layer.forward(states);
            if number + 1 < self.layers.len() {
                let site = name_id(SCORES) ^ number as u64;
                states = dropout(Activation::Relu.apply(states), self.dropout, site, rows);
            }
        }
        states
    }
}

/// One expert's path on one linear layer.
#[derive(Debug)]
struct Member {
    expert: usize,
    /// `[r, in]`
    a: Param,
    /// `[out, r]`
    b: Param,
    scaling: f64,
    dropout: f64,
}

/// The experts' paths on one linear layer.
#[derive(Debug)]
struct Mixture {
    members: Vec<Member>,
    /// The column of its first score.
    start: usize,
    /// The factor on all of them.
    weight: f64,
}

impl Mixture {
    /// The layer's output with each token's mixture, by its scores.
    fn mix(
        &self,
        site: &Site,
        product: LazyLinear,
        scores: &Tensor<2>,
        rows: &Sequences,
    ) -> Tensor<2> {
        let mut input = product.input().clone();
        let paths = self.members.iter().map(|member| {
            let key = !site.id() ^ member.expert as u64;
            let x = dropout(split_off(&mut input), member.dropout, key, rows);
            let low = linear(x, &Weight::Trained(member.a.get()), None);
            let score = scores.clone().narrow(1, self.start + member.expert, 1);
            let low = low * score * (member.scaling * self.weight);
            linear(low, &Weight::Trained(member.b.get()), None)
        });
        let paths: Vec<Tensor<2>> = paths.collect();
        paths.into_iter().fold(product.compute(), add)
    }

    /// The layer's output with every expert at this weight, without gradients.
    fn uniform(&self, product: LazyLinear, weight: f64) -> Tensor<2> {
        let input = product.input().clone();
        self.members.iter().fold(product.compute(), |sum, member| {
            let [a, b] = [&member.a, &member.b].map(|it| Weight::Trained(it.get::<2>().inner()));
            let low = linear(input.clone(), &a, None);
            let low = low * (weight * member.scaling * self.weight);
            add(sum, linear(low, &b, None))
        })
    }
}

/// The adapter of the first pass.
#[derive(Debug)]
struct FirstPass {
    mixtures: Arc<BTreeMap<String, Mixture>>,
    weight: f64,
}

impl Adapter for FirstPass {
    fn linear(&self, site: &Site, product: LazyLinear, _cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.mixtures.get(&site.path) {
            Some(mixture) if self.weight != 0.0 => mixture.uniform(product, self.weight),
            _ => product.compute(),
        }
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        let is_target = |site: &Site| self.mixtures.contains_key(&site.path);
        matches!(hook, Hook::Linear(site) if self.weight != 0.0 && is_target(site))
    }
}

/// X-LoRA on a base.
#[derive(Debug)]
struct XLora {
    mixtures: Arc<BTreeMap<String, Mixture>>,
    first: FirstPass,
    classifier: Classifier,
    config: XLoraConfig,
    experts: usize,
    first_layer: usize,
    /// Whether the experts' values are there already, and a file may lack them.
    from_directories: bool,
    changed: usize,
}

impl XLora {
    /// The scores of each token, `[tokens, N]` or `[tokens, L N]`.
    fn scores(&self, states: Tensor<2>, rows: &Sequences) -> Tensor<2> {
        let scores = self.classifier.forward(states, rows);
        let [tokens, columns] = scores.dims();
        let by_expert = [tokens * columns / self.experts, self.experts];
        let mut scores = scores.reshape(by_expert);
        if self.config.enable_softmax {
            scores = activation::softmax(scores / self.config.softmax_temperature, 1);
        }
        if let Some(most) = self.config.top_k_lora {
            let kept = mask(&scores, |row| largest(row, most));
            scores = scores * kept;
        }
        if self.config.enable_softmax_topk {
            let kept = mask(&scores, |row| row.iter().map(|it| *it != 0.0).collect());
            // What is left out has no part in the softmax.
            let shut = (kept.clone() - 1.0) * 1e30;
            scores = activation::softmax(scores + shut, 1) * kept;
        }
        scores.reshape([tokens, columns])
    }
}

/// Ones where `keep` says so of a row, zeros elsewhere.
fn mask(scores: &Tensor<2>, keep: impl Fn(&[f32]) -> Vec<bool>) -> Tensor<2> {
    let [rows, columns] = scores.dims();
    let values = scores.clone().inner().try_into_vec_as::<f32>();
    let values = values.expect("scores are f32 and on a device that can be read");
    let kept = values.chunks(columns).flat_map(keep);
    let kept: Vec<f32> = kept.map(|kept| f32::from(u8::from(kept))).collect();
    let kept = TensorData::new(kept, [rows, columns]);
    Tensor::from_data(kept, &scores.device().inner())
}

/// Which values are among the `most` largest; of equal ones the first.
fn largest(row: &[f32], most: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&one, &other| row[other].total_cmp(&row[one]));
    let mut kept = vec![false; row.len()];
    order[..most].iter().for_each(|&at| kept[at] = true);
    kept
}

impl Adapter for XLora {
    fn first_pass(&self) -> Option<&dyn Adapter> {
        Some(&self.first)
    }

    fn hidden(&self, layer: usize, mut hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        if layer == self.first_layer {
            let first = hidden.take(FIRST_PASS).expect("the model ran it");
            let scores = self.scores(first.states, cx.rows);
            let stream = Stream::of_adapter(SCORES, scores, first.rows);
            hidden.carried.push(stream);
        }
        hidden
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.mixtures.get(&site.path) {
            Some(mixture) => {
                let scores = cx.stream(SCORES);
                let scores = scores.expect("the hook before the first such layer made them");
                mixture.mix(site, product, &scores, cx.rows)
            }
            None => product.compute(),
        }
    }

    fn first_layer(&self) -> usize {
        self.first_layer
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        match hook {
            Hook::Linear(site) => self.mixtures.contains_key(&site.path),
            Hook::Hidden(layer) => layer == self.first_layer,
            _ => false,
        }
    }
}

impl Method for XLora {
    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        for param in parameters.stored() {
            let (key, shape) = (param.key(), param.shape());
            let is_there = self.from_directories && key.starts_with(EXPERTS);
            if is_there && file.shape(key).is_none() {
                continue;
            }
            if let Some(values) = file.take(key, shape)? {
                param.set_values(values);
            }
        }
        Ok(())
    }

    fn merged(&self, _name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Err(MethodError::NotMergeable {
            method: XLoraConfig::NAME,
            reason: "each token has its own mixture of the experts; an expert alone can be merged",
        })
    }

    fn changed(&self) -> usize {
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::Model;
    use serde_json::{Value, json};

    use super::largest;
    use crate::file::AdapterFile;
    use crate::small_bert::{bert, bert_base_count, distance, logits, module, save, set_random};
    use crate::{AdapterModule, MethodError};

    /// Saves a LoRA adapter with random matrices.
    fn expert(model: &Model, settings: Value) -> (tempfile::TempDir, AdapterModule) {
        let adapter = module(model, "lora", settings);
        for param in adapter.parameters().trained() {
            set_random(&adapter, param.key());
        }
        let dir = tempfile::tempdir().unwrap();
        save(model, &adapter, dir.path());
        (dir, adapter)
    }

    fn mixture(model: &Model, directories: &[&tempfile::TempDir], more: Value) -> AdapterModule {
        let paths: Vec<&str> = directories
            .iter()
            .map(|dir| dir.path().to_str().unwrap())
            .collect();
        let mut settings = more;
        settings["adapters"] = json!(paths);
        module(model, "x-lora", settings)
    }

    #[test]
    fn counts_are_those_of_the_classifier() {
        let experts = json!({ "0": { "r": 4 }, "1": { "r": 8 }, "2": {} });
        // Of one layer of bert-base, with two targets.
        let count = |mut settings: Value| {
            settings["xlora_experts"] = experts.clone();
            bert_base_count("x-lora", settings, 0) / 12
        };
        assert_eq!(count(json!({})), 768 * 3 + 3);
        let deep = json!({ "xlora_depth": 3, "xlora_size": 64 });
        assert_eq!(count(deep), 768 * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3);
        let layerwise = json!({ "layerwise_scalings": true });
        assert_eq!(count(layerwise), 768 * 6 + 6);
        let trained = json!({ "use_trainable_adapters": true });
        let ranks = 4 + 8 + 8;
        assert_eq!(count(trained), 768 * 3 + 3 + ranks * 2 * (768 + 768));
    }

    /// A softmax over one expert gives it to every token at full weight.
    #[test]
    fn a_mixture_of_one_expert_is_the_expert() {
        let model = bert();
        let (dir, adapter) = expert(
            &model,
            json!({ "r": 2, "target_modules": ["key", "query"] }),
        );
        let expected = logits(&model, &adapter);
        let base = logits(&model, &epiphyte_models::Identity);
        // What the expert changes.
        let effect = distance(&expected, &base);
        assert!(effect > 0.0);
        for more in [
            json!({}),
            json!({ "layerwise_scalings": true, "scaling_pass_value": 0.5 }),
        ] {
            let mixture = mixture(&model, &[&dir], more);
            assert!(distance(&logits(&model, &mixture), &expected) < 1e-3 * effect);
        }
        // At half of the weight it is the expert at half of its alpha.
        let half = mixture(&model, &[&dir], json!({ "global_scaling_weight": 0.5 }));
        let (_, halved) = expert(
            &model,
            json!({ "r": 2, "lora_alpha": 8, "target_modules": ["key", "query"] }),
        );
        assert!(distance(&logits(&model, &half), &logits(&model, &halved)) < 1e-3 * effect);
    }

    /// Two that are alike add up to one, whatever their scores; of two, one alone is kept.
    #[test]
    fn scores_of_a_token_add_up_to_one() {
        let model = bert();
        let (dir, adapter) = expert(&model, json!({ "r": 2 }));
        let expected = logits(&model, &adapter);
        for more in [
            json!({ "xlora_depth": 2, "xlora_size": 4, "softmax_temperature": 0.1 }),
            json!({ "enable_softmax": false, "enable_softmax_topk": true, "top_k_lora": 1 }),
        ] {
            let twice = mixture(&model, &[&dir, &dir], more);
            assert!(distance(&logits(&model, &twice), &expected) < 1e-5);
        }
        let kept = mixture(&model, &[&dir, &dir], json!({ "top_k_lora": 1 }));
        assert!(distance(&logits(&model, &kept), &expected) > 1e-4);
    }

    /// What the classifier reads depends on how the first pass is made.
    #[test]
    fn the_first_pass_has_experts_at_their_weight() {
        let model = bert();
        let (first, _) = expert(&model, json!({ "r": 2 }));
        let (second, _) = expert(
            &model,
            json!({ "r": 3, "target_modules": "all-linear",
            "exclude_modules": ["pooler.dense"] }),
        );
        let of = |value: f64| {
            let more = json!({ "scaling_pass_value": value });
            logits(&model, &mixture(&model, &[&first, &second], more))
        };
        assert!(distance(&of(0.0), &of(1.0)) > 1e-4);
    }

    /// A saved mixture holds its experts: their directories may be gone.
    #[test]
    fn a_saved_mixture_needs_no_other_directory() {
        let model = bert();
        let (first, _) = expert(&model, json!({ "r": 2 }));
        let (second, _) = expert(&model, json!({ "r": 3, "lora_alpha": 5 }));
        let mixture = mixture(&model, &[&first, &second], json!({}));
        let dir = tempfile::tempdir().unwrap();
        save(&model, &mixture, dir.path());
        drop((first, second));
        let file = AdapterFile::open(dir.path()).unwrap();
        let loaded = file.load(model.base(), &Device::default()).unwrap();
        assert_eq!(logits(&model, &loaded), logits(&model, &mixture));
    }

    #[test]
    fn of_equal_scores_the_first_are_kept() {
        assert_eq!(largest(&[1.0, 3.0, 3.0], 1), [false, true, false]);
        assert_eq!(largest(&[1.0, 3.0, 3.0], 2), [false, true, true]);
        assert_eq!(largest(&[2.0, 2.0, 2.0], 2), [true, true, false]);
    }

    #[test]
    fn what_cannot_be_mixed_is_refused() {
        let model = bert();
        let error = |settings: Value| -> String {
            let definition = crate::by_name("x-lora").unwrap();
            let config = definition.configure(settings.as_object().unwrap().clone());
            let mut parameters = crate::ParameterSet::new(&Device::default(), 0);
            let built: Result<_, MethodError> =
                config.and_then(|config| config.build(model.base(), &mut parameters));
            built.map(|_| ()).unwrap_err().to_string()
        };
        let of = |dir: &tempfile::TempDir, more: Value| {
            let mut settings = more;
            settings["adapters"] = json!([dir.path().to_str().unwrap()]);
            error(settings)
        };
        assert!(error(json!({})).contains("--adapters"));
        assert!(error(json!({ "adapters": { "a": "x" } })).contains("a list of texts"));
        let (plain, _) = expert(&model, json!({ "r": 2 }));
        assert!(of(&plain, json!({ "top_k_lora": 2 })).contains("there are 1 experts"));
        let (biased, _) = expert(&model, json!({ "r": 2, "bias": "all" }));
        assert!(of(&biased, json!({})).contains("only LoRA of linear layers"));
        let pooler = json!({ "r": 2, "target_modules": ["pooler.dense"] });
        let (pooler, _) = expert(&model, pooler);
        assert!(of(&pooler, json!({})).contains("outside of the layers"));
        let vera = module(&model, "vera", json!({ "r": 2 }));
        let dir = tempfile::tempdir().unwrap();
        save(&model, &vera, dir.path());
        assert!(of(&dir, json!({})).contains("an adapter of `vera`"));
        let both = json!({
            "xlora_experts": { "0": {}, "1": {} }, "top_k_lora": 1, "scaling_pass_value": 1.0,
        });
        assert!(error(both).contains("it must be 0"));
    }
}
