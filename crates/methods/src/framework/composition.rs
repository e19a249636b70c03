//! Several adapters as one, and several methods as one.

use burn::tensor::Tensor;
use epiphyte_models::adapter::{AttentionSite, Block, VirtualTargets};
use epiphyte_models::{
    Adapter, Base, Embedded, ForwardContext, Hidden, Hook, LazyLinear, Site, StandIn, Sublayer,
};
use epiphyte_ops::Prefix;
use serde_json::{Map, Value};

use crate::MethodError;
use crate::framework::calibration::CalibrationData;
use crate::framework::gradients::Gradients;
use crate::framework::method::{Method, Stage, StepInfo, Stored, StoredTensors};
use crate::framework::parameters::{Param, ParameterSet};

/// Adapters that act one after another at every hook: the second sees what the first returned.
///
/// A tensor of the base is replaced by the first adapter that has one for it, and the first prefix
/// at an attention wins; whoever composes checks that no two want the same.
#[derive(Clone, Copy, Debug)]
pub struct Chain<L>(pub L);

/// What a [`Chain`] is made of.
pub trait Adapters: Send + Sync {
    /// The adapters, in the order in which they act.
    fn adapters(&self) -> impl Iterator<Item = &dyn Adapter>;
}

impl<const N: usize> Adapters for [&dyn Adapter; N] {
    fn adapters(&self) -> impl Iterator<Item = &dyn Adapter> {
        self.iter().copied()
    }
}

/// The last adapter's norm around that of the ones before it.
fn final_norm(
    adapters: &[&dyn Adapter],
    states: Tensor<2>,
    norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
    cx: &ForwardContext<'_>,
) -> Tensor<2> {
    match adapters.split_last() {
        Some((last, before)) => {
            let norm = |states| final_norm(before, states, norm, cx);
            last.final_norm(states, &norm, cx)
        }
        None => norm(states),
    }
}

impl<L: Adapters> Adapter for Chain<L> {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.0
            .adapters()
            .find_map(|adapter| adapter.parameter(name))
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0
            .adapters()
            .fold(rows, |rows, adapter| adapter.lookup(table, ids, rows, cx))
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        self.0.adapters().fold(embedded, |embedded, adapter| {
            adapter.embeddings(embedded, cx)
        })
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.0
            .adapters()
            .fold(x, |x, adapter| adapter.linear_input(site, x, cx))
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let acting = self.0.adapters().filter(|it| it.uses(Hook::Linear(site)));
        let acting: Vec<_> = acting.collect();
        let Some((last, before)) = acting.split_last() else {
            return product.compute();
        };
        let input = product.input().clone();
        let product = before.iter().fold(product, |product, adapter| {
            LazyLinear::done(input.clone(), adapter.linear(site, product, cx))
        });
        last.linear(site, product, cx)
    }

    fn attention(
        &self,
        at: AttentionSite,
        qkv: [Tensor<2>; 3],
        cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        self.0
            .adapters()
            .fold(qkv, |qkv, adapter| adapter.attention(at, qkv, cx))
    }

    fn prefix_length(&self, decoder: bool) -> usize {
        self.0
            .adapters()
            .map(|adapter| adapter.prefix_length(decoder))
            .sum()
    }

    fn virtual_tokens(&self) -> usize {
        self.0
            .adapters()
            .map(|adapter| adapter.virtual_tokens())
            .sum()
    }

    fn soft_tokens(&self) -> usize {
        self.0.adapters().map(|adapter| adapter.soft_tokens()).sum()
    }

    fn pools_text(&self) -> bool {
        self.0.adapters().any(|adapter| adapter.pools_text())
    }

    fn virtual_targets(&self) -> Option<VirtualTargets<'_>> {
        self.0
            .adapters()
            .find_map(|adapter| adapter.virtual_targets())
    }

    fn prefix(&self, at: AttentionSite, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        self.0
            .adapters()
            .find_map(|adapter| adapter.prefix(at, x, cx))
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.adapters().fold(output, |output, adapter| {
            adapter.sublayer(sublayer, output, cx)
        })
    }

    fn after_block(
        &self,
        layer: usize,
        block: Block,
        states: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.0.adapters().fold(states, |states, adapter| {
            adapter.after_block(layer, block, states, cx)
        })
    }

    fn hidden(&self, layer: usize, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.0
            .adapters()
            .fold(hidden, |hidden, adapter| adapter.hidden(layer, hidden, cx))
    }

    fn encoded(&self, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.0
            .adapters()
            .fold(hidden, |hidden, adapter| adapter.encoded(hidden, cx))
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        let adapters: Vec<&dyn Adapter> = self.0.adapters().collect();
        final_norm(&adapters, states, norm, cx)
    }

    fn first_layer(&self) -> usize {
        let layers = self.0.adapters().map(|adapter| adapter.first_layer());
        layers.min().unwrap_or(usize::MAX)
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.0.adapters().any(|adapter| adapter.uses(hook))
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        self.0.adapters().any(|adapter| adapter.mixes_rows(layer))
    }

    fn reads_whole_sequences(&self) -> bool {
        self.0
            .adapters()
            .any(|adapter| adapter.reads_whole_sequences())
    }

    fn adapts_language_head(&self) -> bool {
        self.0
            .adapters()
            .any(|adapter| adapter.adapts_language_head())
    }

    fn first_pass(&self) -> Option<&dyn Adapter> {
        self.0.adapters().find_map(|adapter| adapter.first_pass())
    }
}

/// Several methods as one, in a [`Chain`].
pub type Union = Chain<Vec<Member>>;

/// A method of a [`Union`], with its own parameters out of those of the union.
#[derive(Debug)]
pub struct Member {
    /// The name of the union, for messages.
    union: &'static str,
    method: Box<dyn Method>,
    parameters: ParameterSet,
}

impl Adapters for Vec<Member> {
    fn adapters(&self) -> impl Iterator<Item = &dyn Adapter> {
        self.iter().map(|member| &*member.method as &dyn Adapter)
    }
}

/// Declares the tensors of one member of a [`Union`] and returns it.
pub type BuildMember<'a> = &'a dyn Fn(&mut ParameterSet) -> Result<Box<dyn Method>, MethodError>;

impl Union {
    /// Builds each member in turn and checks that no two act where only one can.
    ///
    /// # Errors
    /// As the members; [`MethodError::Configuration`] if two have a prefix, two replace the same
    /// tensor of the base, two have stages of their own, or two declare the same key.
    pub fn build(
        name: &'static str,
        base: &Base,
        parameters: &mut ParameterSet,
        members: &[BuildMember<'_>],
    ) -> Result<Self, MethodError> {
        let members = members.iter().map(|build| {
            let mut own = ParameterSet::new(parameters.device(), parameters.seed());
            Ok(Member {
                union: name,
                method: build(&mut own)?,
                parameters: own,
            })
        });
        let mut union = Chain(members.collect::<Result<Vec<Member>, MethodError>>()?);
        let mut conflict = union.conflict(base);
        for member in &mut union.0 {
            let same_key = parameters.take_up(&mut member.parameters).err();
            let reason = same_key.map(|key| format!("two of its parts store `{key}`"));
            conflict = conflict.or(reason);
        }
        match conflict {
            Some(reason) => Err(MethodError::Configuration {
                method: name,
                reason,
            }),
            None => Ok(union),
        }
    }

    /// What two members want alike, if there is such a thing.
    fn conflict(&self, base: &Base) -> Option<String> {
        let several = |wants: &dyn Fn(&dyn Method) -> bool| {
            self.methods().filter(|method| wants(*method)).count() > 1
        };
        if several(&|method| method.prefix_length(false) + method.prefix_length(true) > 0) {
            return Some("two of its parts put a prefix in front of keys and values".to_owned());
        }
        if several(&|method| method.stages(2).len() > 1) {
            return Some("two of its parts train in stages of their own".to_owned());
        }
        let replaced = |name: &&String| several(&|method| method.uses(Hook::Parameter(name)));
        let name = base.tensors().keys().find(replaced)?;
        Some(format!("two of its parts replace `{name}`"))
    }

    fn methods(&self) -> impl Iterator<Item = &dyn Method> {
        self.0.iter().map(|member| &*member.method)
    }

    fn methods_mut(&mut self) -> impl Iterator<Item = &mut Box<dyn Method>> {
        self.0.iter_mut().map(|member| &mut member.method)
    }
}

impl Method for Union {
    fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        self.methods()
            .try_for_each(|method| method.check_steps(steps))
    }

    fn stages(&self, steps: u64) -> Vec<Stage> {
        let stages = self.methods().map(|method| method.stages(steps));
        let longest = stages.max_by_key(Vec::len);
        longest.unwrap_or_default()
    }

    fn begin_stage(
        &mut self,
        stage: usize,
        head: &ParameterSet,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        self.methods_mut()
            .try_for_each(|method| method.begin_stage(stage, head, data))
    }

    fn before_step(&mut self, info: StepInfo) {
        self.methods_mut()
            .for_each(|method| method.before_step(info));
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let penalties = self.methods().filter_map(|method| method.penalty());
        penalties.reduce(|sum, penalty| sum + penalty)
    }

    fn consistency_weight(&self) -> Option<f64> {
        let weights = self.methods().filter_map(|it| it.consistency_weight());
        weights.reduce(f64::max)
    }

    fn after_backward(&mut self, gradients: &mut Gradients, info: StepInfo) {
        self.methods_mut()
            .for_each(|method| method.after_backward(gradients, info));
    }

    fn reads_gradients_after_step(&self) -> bool {
        self.methods()
            .any(|method| method.reads_gradients_after_step())
    }

    fn after_step(&mut self, gradients: &Gradients, info: StepInfo) {
        self.methods_mut()
            .for_each(|method| method.after_step(gradients, info));
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        self.methods().any(|method| method.may_lack_gradient(param))
    }

    fn state(&self) -> Vec<Stored> {
        self.methods().flat_map(|method| method.state()).collect()
    }

    fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        self.methods_mut()
            .try_for_each(|method| method.restore_state(state))
    }

    fn stored(&self, _parameters: &ParameterSet) -> Vec<Stored> {
        let stored = |member: &Member| member.method.stored(&member.parameters);
        self.0.iter().flat_map(stored).collect()
    }

    fn load(
        &mut self,
        _parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        let load = |member: &mut Member| member.method.load(&member.parameters, file);
        self.0.iter_mut().try_for_each(load)
    }

    fn saved_settings(&self, settings: Map<String, Value>) -> Map<String, Value> {
        self.methods()
            .fold(settings, |settings, method| method.saved_settings(settings))
    }

    /// A tensor that one member changes; members that change the same one cannot be merged.
    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        let mut merged = None;
        for member in &self.0 {
            let found = member.method.merged(name, base)?;
            if found.is_some() && merged.is_some() {
                return Err(MethodError::NotMergeable {
                    method: member.union,
                    reason: "two of its parts change the same tensor",
                });
            }
            merged = merged.or(found);
        }
        Ok(merged)
    }

    fn changed(&self) -> usize {
        self.methods().map(|method| method.changed()).sum()
    }

    fn trainable(&self, _parameters: &ParameterSet) -> usize {
        let trainable = |member: &Member| member.method.trainable(&member.parameters);
        self.0.iter().map(trainable).sum()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_models::{HeadKind, Model, ModelConfig, random_model};
    use epiphyte_ops::Precision;
    use serde_json::json;

    use super::Union;
    use crate::{Method, MethodError, ParameterSet, by_name};

    fn llama() -> Model {
        let config =
            br#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}"#;
        let config = ModelConfig::parse("config.json".as_ref(), config).unwrap();
        let head = HeadKind::Classification { labels: 2 };
        random_model(&config, head, &Device::default(), Precision::F32, 0).unwrap()
    }

    /// The union of two methods, with its parameters.
    fn union(model: &Model, names: [&str; 2]) -> Result<(Union, ParameterSet), MethodError> {
        let configs = names.map(|name| {
            let definition = by_name(name).unwrap();
            let settings = match name {
                "lora" | "pfeiffer" | "houlsby" => json!({}),
                "prefix-tuning" => json!({ "num_virtual_tokens": 2 }),
                _ => json!({ "freeze_trainable_layers": 1 }),
            };
            let settings = settings.as_object().unwrap().clone();
            definition.configure(settings).unwrap()
        });
        let base = model.base();
        let mut parameters = ParameterSet::new(&Device::default(), 0);
        let [first, second] = configs.each_ref().map(|config| {
            |parameters: &mut ParameterSet| -> Result<Box<dyn Method>, MethodError> {
                config.build(base, parameters)
            }
        });
        let union = Union::build("both", base, &mut parameters, &[&first, &second])?;
        Ok((union, parameters))
    }

    #[test]
    fn what_only_one_can_have_is_refused() {
        for (names, words) in [
            (["prefix-tuning", "prefix-tuning"], "put a prefix in front"),
            (
                ["freeze", "freeze"],
                "replace `model.layers.0.mlp.down_proj.weight`",
            ),
            (
                ["lora", "lora"],
                "store `model.layers.0.self_attn.q_proj.lora_A.weight`",
            ),
        ] {
            let error = union(&llama(), names).map(|_| ()).unwrap_err().to_string();
            assert!(error.starts_with("both: two of its parts"), "{error}");
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn members_keep_their_own_tensors_and_counts() {
        let model = llama();
        let (both, parameters) = union(&model, ["lora", "freeze"]).unwrap();
        let keys = |stored: Vec<crate::Stored>| -> Vec<String> {
            stored.into_iter().map(|stored| stored.key).collect()
        };
        let declared: Vec<&str> = parameters.stored().map(|param| param.key()).collect();
        assert_eq!(keys(both.stored(&parameters)), declared);
        // LoRA of rank 8 on queries and values, three matrices of the feed-forward.
        assert_eq!(both.trainable(&parameters), 2 * 8 * 16 + 3 * 64);
        assert_eq!(both.changed(), 2 * 64 + 3 * 64);
        let merged = |name: &str| both.merged(name, model.base()).unwrap().is_some();
        assert!(merged("model.layers.0.self_attn.q_proj.weight"));
        assert!(merged("model.layers.0.mlp.up_proj.weight"));
        assert!(!merged("model.layers.0.self_attn.k_proj.weight"));
    }
}
