//! AdapterFusion: attention over trained adapters, which stay as they are.
//!
//! Pfeiffer, Kamath, Rücklé, Cho, Gurevych, "AdapterFusion: Non-Destructive Task Composition for
//! Transfer Learning", EACL 2021, arXiv 2005.00247, section 3; as AdapterHub has it.
//!
//! In each layer `N` adapters of Pfeiffer's kind ([`crate::adapters::pfeiffer`]) read `z`, what the
//! layer would return, and give `u_1 … u_N`. With `q = z Qᵀ + b_q` and `k_i = u_i Kᵀ + b_k` each
//! token weighs them by `w = softmax_i(q · k_i)`, and `Σ_i w_i u_i Vᵀ` joins the feed-forward's
//! output before the norm. `Q` and `K` start normal with standard deviation 0.02, `V` at the
//! identity, and `0.01 Σ ‖V − I‖²` is added to the loss. The adapters come from directories that
//! `--method pfeiffer` made over the same base; their values are stored with the fusion, which then
//! needs the directories no more. AdapterHub drops scores as the model drops those of attention;
//! here none are dropped.
//!
//! | | |
//! | --- | --- |
//! | trains | `L (3 d² + 2 d)` |
//! | changes | the same, and the adapters |
//! | file | `<module>.adapter_fusion_layer.{query,key}.{weight,bias}`, `.value.weight`; of adapter `i` `<module>.adapters.<i>.{adapter_down,adapter_up}.{weight,bias}` |
//! | merges | no |

use std::path::Path;

use burn::tensor::{Tensor, activation};
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, Role, Sublayer};
use epiphyte_ops::{Weight, linear};
use serde_json::{Value, json};

use crate::MethodError;
use crate::adapters::pfeiffer::PfeifferConfig;
use crate::file::AdapterFile;
use crate::framework::method::{KeyStyle, Method, MethodConfig};
use crate::framework::parameters::{Init, Param, ParameterSet};
use crate::parts::bottleneck::{
    Bottleneck, Branch, InLayers, InitWeights, Placement, Scaling, Variant, modules,
};
use crate::parts::dense::Dense;

crate::settings! {
    /// The settings of AdapterFusion.
    pub struct AdapterFusionConfig {
        /// Directories of the adapters that are fused, each trained by `--method pfeiffer`.
        fusion_adapters: Vec<String> = Vec::new(), unset "must be given";
        /// Factor on the penalty that keeps the values' matrix near the identity.
        fusion_regularization: f64 = 0.01, in NotNegative;
        /// Sizes of the bottlenecks of the adapters, which their directories say.
        fusion_dims: Vec<usize> = Vec::new(), unset "as the adapters have them";
        /// Activation functions of the adapters, which their directories say.
        fusion_activations: Vec<String> = Vec::new(), unset "as the adapters have them";
    }
}

const FUSION: Variant = Variant {
    method: AdapterFusionConfig::NAME,
    default_dim: |_| 1,
};

/// An adapter that is fused.
#[derive(Debug)]
struct Fused {
    dim: usize,
    activation: String,
    /// Its files; none if its values come from the fusion's own.
    file: Option<AdapterFile>,
}

impl Fused {
    fn open(directory: &str) -> Result<Self, MethodError> {
        let file = AdapterFile::open(Path::new(directory))?;
        let refused = |reason: String| MethodError::Value {
            method: AdapterFusionConfig::NAME,
            key: "fusion_adapters",
            value: directory.to_owned(),
            expected: reason,
        };
        let method = file.config().definition().name;
        if method != PfeifferConfig::NAME {
            return Err(refused(format!(
                "it is an adapter of `{method}`; train it by --method {}",
                PfeifferConfig::NAME
            )));
        }
        let settings = file.config().settings();
        let dim = settings["bottleneck_dim"].as_u64();
        let left_out = settings["leave_out"]
            .as_array()
            .is_some_and(|it| !it.is_empty());
        let (Some(dim), false) = (dim, left_out) else {
            return Err(refused(
                "it must have bottlenecks of one size in all layers".to_owned(),
            ));
        };
        Ok(Self {
            dim: usize::try_from(dim).unwrap_or(usize::MAX),
            activation: settings["non_linearity"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            file: Some(file),
        })
    }

    /// The initial values of a tensor of the adapter, whose key there is `own`.
    fn init(&self, own: &str, shape: &[usize]) -> Result<Init, MethodError> {
        let Some(file) = &self.file else {
            let [(weight, bias), _] = InitWeights::Bert.inits(1);
            return Ok(if shape.len() == 1 { bias } else { weight });
        };
        let key = format!("{}{own}", PfeifferConfig::KEYS.prefix(own));
        let values = file.tensors().to_f32(&key, shape)?;
        Ok(Init::Values(values.into()))
    }

    fn declare(
        &self,
        module: &str,
        number: usize,
        width: usize,
        parameters: &mut ParameterSet,
    ) -> Result<Bottleneck, MethodError> {
        let mut map = |name: &str, [outputs, inputs]: [usize; 2]| {
            let mut tensor = |part: &str, shape: &[usize]| {
                let init = self.init(&format!("{module}.{name}.{part}"), shape)?;
                let key = format!("{module}.adapters.{number}.{name}.{part}");
                Ok::<Param, MethodError>(parameters.constant(key, shape, init))
            };
            let weight = tensor("weight", &[outputs, inputs])?;
            Ok::<Dense, MethodError>(Dense::of(weight, tensor("bias", &[outputs])?))
        };
        Ok(Bottleneck {
            down: map("adapter_down", [self.dim, width])?,
            up: map("adapter_up", [width, self.dim])?,
            activation: self
                .activation
                .parse()
                .map_err(|error| MethodError::Configuration {
                    method: AdapterFusionConfig::NAME,
                    reason: format!("`fusion_activations`: {error}"),
                })?,
            scaling: Scaling::One,
        })
    }
}

impl AdapterFusionConfig {
    /// The adapters: those of a saved fusion, or those in the directories.
    fn adapters(&self) -> Result<Vec<Fused>, MethodError> {
        let wrong = |reason: &str| MethodError::Configuration {
            method: Self::NAME,
            reason: reason.to_owned(),
        };
        if self.fusion_dims.len() != self.fusion_activations.len() {
            return Err(wrong(
                "`fusion_dims` and `fusion_activations` must be as many",
            ));
        }
        if self.fusion_dims.is_empty() {
            if self.fusion_adapters.is_empty() {
                return Err(wrong(
                    "name the directories of the trained adapters: --fusion-adapters A,B",
                ));
            }
            let directories = self.fusion_adapters.iter();
            return directories
                .map(|directory| Fused::open(directory))
                .collect();
        }
        let saved = self.fusion_dims.iter().zip(&self.fusion_activations);
        let saved = saved.map(|(&dim, activation)| Fused {
            dim,
            activation: activation.clone(),
            file: None,
        });
        Ok(saved.collect())
    }
}

impl MethodConfig for AdapterFusionConfig {
    const NAME: &'static str = "adapter-fusion";
    const PEFT_TYPE: &'static str = "ADAPTER_FUSION";
    const IN_PEFT: bool = false;
    const SUMMARY: &'static str = "attention over trained adapters of Pfeiffer's kind";
    const PAPER: &'static str = "Pfeiffer et al. 2021, arXiv 2005.00247";
    const CLAIMS: Option<crate::Claims> = Some(crate::Claims::paper(
        "Rücklé et al. 2021, arXiv 2010.11918",
        "slower: all adapters run",
    ));
    const KEYS: KeyStyle = KeyStyle::WeightSpace;
    const MERGES: bool = false;

    fn starts_as_identity(&self) -> bool {
        false
    }

    fn examples() -> Vec<Value> {
        vec![
            json!({ "fusion_dims": [6, 3], "fusion_activations": ["gelu", "silu"] }),
            json!({
                "fusion_dims": [4, 4, 5], "fusion_activations": ["silu", "gelu", "tanh"],
                "fusion_regularization": 0.0,
            }),
        ]
    }

    fn build(
        &self,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Result<Box<dyn Method>, MethodError> {
        let adapters = self.adapters()?;
        let width = base.dimensions.hidden_size;
        let mut values = Vec::new();
        let mut layers = Vec::new();
        for module in modules(base, Role::FeedForwardOut, Self::NAME)? {
            let numbered = adapters.iter().enumerate();
            let bottlenecks = numbered
                .map(|(number, adapter)| adapter.declare(module, number, width, parameters))
                .collect::<Result<Vec<_>, _>>()?;
            let fusion = FusionLayer::declare(module, width, bottlenecks, parameters);
            values.push(fusion.value.clone());
            layers.push(Some(fusion));
        }
        let stored = parameters.stored().map(Param::count).sum();
        Ok(Box::new(AdapterFusion {
            layers: InLayers::new(&FUSION, Placement::AroundNorm, layers, stored),
            values,
            regularization: self.fusion_regularization,
        }))
    }

    fn count(&self, base: &Base) -> Result<usize, MethodError> {
        modules(base, Role::FeedForwardOut, Self::NAME)?;
        let (layers, d) = (base.dimensions.layers, base.dimensions.hidden_size);
        Ok(layers * (2 * Dense::count([d, d]) + d * d))
    }

    /// The directories' names stay, what they hold is in the file.
    fn resolved(&self, _base: &Base) -> Self {
        let Ok(adapters) = self.adapters() else {
            return self.clone();
        };
        Self {
            fusion_dims: adapters.iter().map(|adapter| adapter.dim).collect(),
            fusion_activations: adapters.into_iter().map(|it| it.activation).collect(),
            ..self.clone()
        }
    }
}

/// The adapters of one layer, and the attention over them.
#[derive(Debug)]
struct FusionLayer {
    adapters: Vec<Bottleneck>,
    query: Dense,
    key: Dense,
    /// `[d, d]`
    value: Param,
}

impl FusionLayer {
    fn declare(
        module: &str,
        width: usize,
        adapters: Vec<Bottleneck>,
        parameters: &mut ParameterSet,
    ) -> Self {
        let path = |name: &str| format!("{module}.adapter_fusion_layer.{name}");
        let shape = [width, width];
        let normal = || (Init::Normal { std: 0.02 }, Init::Zeros);
        let query = Dense::declare(parameters, &path("query"), shape, normal());
        let key = Dense::declare(parameters, &path("key"), shape, normal());
        let identity = move || {
            let entry = |index: usize| f32::from(u8::from(index / width == index % width));
            (0..width * width).map(entry).collect()
        };
        let value = Init::Computed(std::sync::Arc::new(identity));
        Self {
            adapters,
            query,
            key,
            value: parameters.declare(path("value.weight"), &shape, value),
        }
    }
}

impl Branch for FusionLayer {
    fn branch(&self, z: Tensor<2>, _cx: &ForwardContext<'_>) -> Tensor<2> {
        let query = self.query.forward(z.clone());
        let outputs = self
            .adapters
            .iter()
            .map(|adapter| adapter.forward(z.clone()));
        let outputs: Vec<Tensor<2>> = outputs.collect();
        let scores = outputs.iter().map(|u| {
            let key = self.key.forward(u.clone());
            (query.clone() * key).sum_dim(1)
        });
        let weights = activation::softmax(Tensor::cat(scores.collect(), 1), 1);
        let tokens = weights.dims()[0];
        // The values have no bias, so their matrix may come after the sum.
        let weighted = outputs
            .into_iter()
            .enumerate()
            .map(|(number, u)| u * weights.clone().slice([0..tokens, number..number + 1]));
        let sum = weighted.reduce(|sum, more| sum + more);
        let sum = sum.expect("a fusion has adapters");
        linear(sum, &Weight::Trained(self.value.get()), None)
    }
}

/// The layers, and what keeps their values near the identity.
#[derive(Debug)]
struct AdapterFusion {
    layers: InLayers<FusionLayer>,
    values: Vec<Param>,
    regularization: f64,
}

impl Adapter for AdapterFusion {
    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.layers.sublayer(sublayer, output, cx)
    }

    fn first_layer(&self) -> usize {
        self.layers.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.layers.uses(hook)
    }
}

impl Method for AdapterFusion {
    fn penalty(&self) -> Option<Tensor<1>> {
        let distances = self.values.iter().map(|value| {
            let difference = value.flat() - value.initial();
            (difference.clone() * difference).sum()
        });
        let sum = distances.reduce(|sum, more| sum + more)?;
        (self.regularization > 0.0).then(|| sum * self.regularization)
    }

    /// A key's bias moves the scores of all adapters alike.
    fn may_lack_gradient(&self, param: &Param) -> bool {
        param.key().ends_with(".key.bias")
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.layers.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.layers.changed()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::Model;
    use serde_json::{Value, json};

    use crate::AdapterModule;
    use crate::file::AdapterFile;
    use crate::small_bert::{
        bert, bert_base_count, distance, logits, module, save, set_random, values,
    };

    /// Saves an adapter of Pfeiffer's with other values than it starts with.
    fn trained(model: &Model, dim: usize, seed: f32) -> (tempfile::TempDir, AdapterModule) {
        let adapter = module(model, "pfeiffer", json!({ "bottleneck_dim": dim }));
        for param in adapter.parameters().trained() {
            let drawn = set_random(&adapter, param.key());
            param.set_values(drawn.iter().map(|value| seed * value).collect());
        }
        let dir = tempfile::tempdir().unwrap();
        save(model, &adapter, dir.path());
        (dir, adapter)
    }

    fn fusion(model: &Model, directories: &[&tempfile::TempDir]) -> AdapterModule {
        let paths: Vec<&str> = directories
            .iter()
            .map(|dir| dir.path().to_str().unwrap())
            .collect();
        module(model, "adapter-fusion", json!({ "fusion_adapters": paths }))
    }

    #[test]
    fn counts_on_bert_base_are_those_of_the_paper() {
        let settings = json!({ "fusion_dims": [48], "fusion_activations": ["relu"] });
        assert_eq!(bert_base_count("adapter-fusion", settings, 0), 21_252_096);
    }

    /// Attention over one adapter is that adapter, and over two that are alike as well.
    #[test]
    fn a_fusion_of_one_adapter_is_the_adapter() {
        let model = bert();
        let (dir, adapter) = trained(&model, 3, 1.0);
        let expected = logits(&model, &adapter);
        let base = logits(&model, &epiphyte_models::Identity);
        assert!(distance(&expected, &base) > 1e-3);
        for directories in [&[&dir][..], &[&dir, &dir]] {
            let fusion = fusion(&model, directories);
            assert!(distance(&logits(&model, &fusion), &expected) < 1e-5);
        }
    }

    /// Without queries every adapter has the same weight: the mean of what they add.
    #[test]
    fn without_queries_adapters_are_averaged() {
        let model = bert();
        let (first, adapter) = trained(&model, 4, 1.0);
        let (second, _) = trained(&model, 4, 0.0);
        let fusion = fusion(&model, &[&first, &second]);
        for param in fusion.parameters().trained() {
            if param.key().contains("query") {
                param.set_values(vec![0.0; param.count()]);
            }
        }
        // The second adds nothing, so the mean is half of the first.
        for param in adapter.parameters().trained() {
            if param.key().contains("adapter_up") {
                let half = values(&adapter, param.key());
                param.set_values(half.iter().map(|value| 0.5 * value).collect());
            }
        }
        let (found, expected) = (logits(&model, &fusion), logits(&model, &adapter));
        assert!(distance(&found, &expected) < 1e-5);
    }

    /// A saved fusion holds its adapters: their directories may be gone.
    #[test]
    fn a_saved_fusion_needs_no_other_directory() {
        let model = bert();
        let (first, _) = trained(&model, 3, 1.0);
        let (second, _) = trained(&model, 2, 0.5);
        let fusion = fusion(&model, &[&first, &second]);
        let dir = tempfile::tempdir().unwrap();
        save(&model, &fusion, dir.path());
        drop((first, second));
        let file = AdapterFile::open(dir.path()).unwrap();
        let loaded = file.load(model.base(), &Device::default()).unwrap();
        assert_eq!(logits(&model, &loaded), logits(&model, &fusion));
    }

    #[test]
    fn the_penalty_is_the_distance_from_the_identity() {
        let model = bert();
        let (dir, _) = trained(&model, 3, 1.0);
        let fusion = fusion(&model, &[&dir]);
        let penalty = || {
            let penalty = fusion.method().penalty().unwrap();
            penalty.try_into_vec_as::<f32>().unwrap()[0]
        };
        assert!(penalty() == 0.0);
        let key = "bert.encoder.layer.1.output.adapter_fusion_layer.value.weight";
        let mut value = values(&fusion, key);
        assert_eq!(value[..3], [1.0, 0.0, 0.0]);
        value[1] += 3.0;
        fusion.parameters().get(key).unwrap().set_values(value);
        assert!((penalty() - 0.09).abs() < 1e-6);
    }

    #[test]
    fn what_cannot_be_fused_is_refused() {
        let model = bert();
        let config = |settings: Value| {
            let definition = crate::by_name("adapter-fusion").unwrap();
            let config = definition.configure(settings.as_object().unwrap().clone());
            let mut parameters = crate::ParameterSet::new(&Device::default(), 0);
            let built = config.unwrap().build(model.base(), &mut parameters);
            built.map(|_| ()).unwrap_err().to_string()
        };
        assert!(config(json!({})).contains("--fusion-adapters"));
        let houlsby = module(&model, "houlsby", json!({ "bottleneck_dim": 2 }));
        let dir = tempfile::tempdir().unwrap();
        save(&model, &houlsby, dir.path());
        let error = config(json!({ "fusion_adapters": [dir.path().to_str().unwrap()] }));
        assert!(error.contains("an adapter of `houlsby`"), "{error}");
    }
}
