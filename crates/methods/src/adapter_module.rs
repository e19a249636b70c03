//! A method at work on a base, with the task's head that is trained with it.

use std::collections::BTreeMap;

use burn::tensor::{Device, Gradients as Tape, Tensor};
use epiphyte_models::adapter::{AttentionSite, Block, VirtualTargets};
use epiphyte_models::{
    Adapter, Base, Embedded, ForwardContext, Hidden, Hook, LazyLinear, Site, StandIn, Sublayer,
};
use epiphyte_ops::Prefix;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::framework::calibration::{CalibrationData, Each};
use crate::framework::composition::Chain;
use crate::framework::gradients::Gradients;
use crate::framework::method::{Method, StepInfo, Stored, StoredTensors, load_stored};
use crate::framework::parameters::{Param, ParameterSet};
use crate::parts::replace::Replaced;
use crate::registry::AnyConfig;
use crate::{MethodError, Stage};

/// Everything that a run trains over one base.
#[derive(Debug)]
pub struct AdapterModule {
    config: Box<dyn AnyConfig>,
    method: Box<dyn Method>,
    head: Replaced,
    /// What a finished adapter's file has of the base itself, beside its method.
    whole: Whole,
    parameters: ParameterSet,
    head_parameters: ParameterSet,
}

/// Tensors of the base in an adapter's file that its method does not have itself.
#[derive(Clone, Debug, Default)]
pub struct WholeInFile {
    /// The key of each, without the prefix that all keys share, by the base's name.
    pub names: BTreeMap<String, String>,
    /// Of which tables the file has some rows only, and which these are.
    pub rows: BTreeMap<String, Vec<usize>>,
    /// Keys of copies that a head tied to a table has, each with the base's name of the table.
    pub copies: Vec<(String, String)>,
    /// The settings in the file that say so.
    pub settings: Map<String, Value>,
}

/// The same with their values.
#[derive(Debug, Default)]
struct Whole {
    tensors: Replaced,
    file: WholeInFile,
}

/// Parameter counts of a method; the task's head is reported separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Values that gradients move.
    pub trainable_parameters: usize,
    /// Values of the deployed model that differ from the base's, or are added to it.
    pub changed_parameters: usize,
    /// Values in the adapter's file.
    pub stored_parameters: usize,
    /// Values of the task's head, trained and stored with every method.
    pub head_parameters: usize,
    /// Values of the base.
    pub base_parameters: usize,
}

impl AdapterModule {
    /// Builds the method over `base`. What is initialized at random follows from `seed`.
    ///
    /// # Errors
    /// As [`crate::MethodConfig::check_start`] and [`crate::MethodConfig::build`].
    pub fn new(
        config: Box<dyn AnyConfig>,
        base: &Base,
        device: &Device,
        seed: u64,
    ) -> Result<Self, MethodError> {
        config.check_start(base)?;
        let mut parameters = ParameterSet::new(device, seed);
        let method = config.build(base, &mut parameters)?;
        Ok(Self::with_head(config, method, base, parameters))
    }

    /// Builds a saved adapter over `base`, without the tensors that only training uses, and takes
    /// its tensors from `file`: the method's from the first, the head's from the second, and
    /// `whole`, which stand in for the base's tensors of these names, from the third.
    ///
    /// # Errors
    /// As [`crate::MethodConfig::build`]; if the file cannot be read.
    pub fn load(
        config: &dyn AnyConfig,
        base: &Base,
        device: &Device,
        seed: u64,
        whole: WholeInFile,
        [own, head, rest]: [&mut dyn StoredTensors; 3],
    ) -> Result<Self, MethodError> {
        let mut parameters = ParameterSet::new(device, seed);
        let mut method = config.stored().build(base, &mut parameters)?;
        method.load(&parameters, own)?;
        let config = config.definition().configure(config.settings())?;
        let mut module = Self::with_head(config, method, base, parameters);
        // A method may itself store tensors of the base whole: those are its own.
        let names = whole.names.iter();
        let names = names.filter(|(name, _)| module.method.parameter(name).is_none());
        let names = names.map(|(name, key)| (name.as_str(), key.clone()));
        let mut whole_parameters = ParameterSet::new(device, seed);
        let tensors = Replaced::with_keys(names.collect(), base, &mut whole_parameters);
        tensors.load(rest)?;
        module.whole = Whole {
            tensors,
            file: whole,
        };
        load_stored(&module.head_parameters, head)?;
        module.parameters.derive(false);
        Ok(module)
    }

    fn with_head(
        config: Box<dyn AnyConfig>,
        method: Box<dyn Method>,
        base: &Base,
        parameters: ParameterSet,
    ) -> Self {
        let mut head_parameters = ParameterSet::new(parameters.device(), parameters.seed());
        let head = Replaced::head(base, &mut head_parameters);
        Self {
            config,
            method,
            head,
            whole: Whole::default(),
            parameters,
            head_parameters,
        }
    }

    /// The names of the base's tensors that the adapter replaces whole, beside its method and the
    /// task's head.
    pub fn whole(&self) -> impl Iterator<Item = &str> {
        self.whole.tensors.names()
    }

    /// What the adapter's file holds of these tensors, and the settings that say so.
    pub fn stored_whole(&self) -> (Vec<Stored>, &Map<String, Value>) {
        let stored = self.whole.tensors.by_name().map(|(name, param)| {
            let Some(rows) = self.whole.file.rows.get(name) else {
                return Stored::of(param);
            };
            let (columns, values) = (param.shape()[1], param.to_vec());
            let rows_of = |row: &usize| values[row * columns..(row + 1) * columns].to_vec();
            let changed = rows.iter().flat_map(rows_of).collect();
            Stored::f32(param.key(), &[rows.len(), columns], changed)
        });
        let copies = self.whole.file.copies.iter().filter_map(|(key, table)| {
            let mut tensors = self.whole.tensors.by_name();
            let (_, param) = tensors.find(|(name, _)| name == table)?;
            Some(Stored::f32(key, param.shape(), param.to_vec()))
        });
        (stored.chain(copies).collect(), &self.whole.file.settings)
    }

    /// This module with the method of another one over the same base in place of its own.
    #[must_use]
    pub fn with_method_of(self, other: Self) -> Self {
        Self {
            config: other.config,
            method: other.method,
            parameters: other.parameters,
            ..self
        }
    }

    /// The configuration.
    pub fn config(&self) -> &dyn AnyConfig {
        &*self.config
    }

    /// The settings as they are now, where training decides some of them.
    pub fn saved_settings(&self, base: &Base) -> Map<String, Value> {
        self.method.saved_settings(self.config.resolved(base))
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        &*self.method
    }

    /// The method's own parameters.
    pub fn parameters(&self) -> &ParameterSet {
        &self.parameters
    }

    /// The task's head's parameters.
    pub fn head_parameters(&self) -> &ParameterSet {
        &self.head_parameters
    }

    /// All trained tensors, the method's first.
    pub fn trained(&self) -> impl Iterator<Item = &Param> {
        self.parameters
            .trained()
            .chain(self.head_parameters.trained())
    }

    /// Turns gradients on or off, and computes derived parameters from the values as they are now.
    pub fn track(&self, tracked: bool) {
        self.parameters.track(tracked);
        self.head_parameters.track(tracked);
    }

    /// Checks that the method's settings fit a run of `steps` optimizer steps.
    ///
    /// # Errors
    /// As [`Method::check_steps`].
    pub fn check_steps(&self, steps: u64) -> Result<(), MethodError> {
        self.method.check_steps(steps)
    }

    /// The stages of a run of `steps` optimizer steps.
    pub fn stages(&self, steps: u64) -> Vec<Stage> {
        self.method.stages(steps)
    }

    /// Begins a stage, as [`Method::begin_stage`].
    ///
    /// # Errors
    /// As there.
    pub fn begin_stage(
        &mut self,
        stage: usize,
        data: &mut dyn CalibrationData,
    ) -> Result<(), MethodError> {
        let mut data = WithHead {
            head: &self.head,
            data,
        };
        let head = &self.head_parameters;
        self.method.begin_stage(stage, head, &mut data)?;
        self.parameters.derive(false);
        Ok(())
    }

    /// Prepares a step: derived parameters are computed with their graph.
    pub fn before_step(&mut self, info: StepInfo) {
        self.method.before_step(info);
        self.parameters.derive(true);
    }

    /// Adds what a backward pass found for the module's parameters to the step's gradients.
    pub fn collect(&self, gradients: &mut Gradients, tape: &mut Tape) {
        gradients.collect(self.trained().chain(self.parameters.derived_params()), tape);
    }

    /// Completes the gradients of a step and lets the method change them.
    pub fn after_backward(&mut self, gradients: &mut Gradients, info: StepInfo) {
        gradients.pull_back_derived(&self.parameters);
        self.method.after_backward(gradients, info);
    }

    /// Tells the method that the optimizer has moved the parameters.
    pub fn after_step(&mut self, gradients: &Gradients, info: StepInfo) {
        self.method.after_step(gradients, info);
    }

    /// What the adapter's file holds of the method.
    pub fn stored(&self) -> Vec<Stored> {
        self.method.stored(&self.parameters)
    }

    /// What the adapter's file holds of the task's head.
    pub fn stored_head(&self) -> Vec<Stored> {
        self.head_parameters.stored().map(Stored::of).collect()
    }

    /// What a checkpoint holds of the method beside its parameters.
    pub fn state(&self) -> Vec<Stored> {
        self.method.state()
    }

    /// Takes back what [`AdapterModule::state`] gave.
    ///
    /// # Errors
    /// As [`Method::restore_state`].
    pub fn restore_state(&mut self, state: &mut dyn StoredTensors) -> Result<(), MethodError> {
        self.method.restore_state(state)?;
        self.parameters.derive(false);
        Ok(())
    }

    /// What the base's tensor `name` becomes in a merged model; none if it stays.
    ///
    /// # Errors
    /// [`MethodError::NotMergeable`].
    pub fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        if let Some(replaced) = self.head.merged(name, base)? {
            return Ok(Some(replaced));
        }
        match self.whole.tensors.merged(name, base)? {
            Some(whole) => {
                let base = base.with_values(name, whole.clone());
                Ok(Some(self.method.merged(name, &base)?.unwrap_or(whole)))
            }
            None => self.method.merged(name, base),
        }
    }

    /// The parameter counts, which mean different things.
    pub fn counts(&self, base: &Base) -> ParameterCounts {
        let stored = self.stored();
        ParameterCounts {
            trainable_parameters: self.method.trainable(&self.parameters),
            changed_parameters: self.method.changed() + self.whole.tensors.changed(),
            stored_parameters: stored
                .iter()
                .map(|stored| stored.values.len())
                .sum::<usize>()
                + self.whole.tensors.changed(),
            head_parameters: self.head_parameters.count(),
            base_parameters: base.count(),
        }
    }

    /// The head, whole tensors and the method as one adapter.
    fn with_chain<T>(&self, act: impl FnOnce(Chain<[&dyn Adapter; 3]>) -> T) -> T {
        act(Chain([&self.head, &self.whole.tensors, &*self.method]))
    }
}

/// Calibration data that runs every adapter under the task's head.
struct WithHead<'a> {
    head: &'a Replaced,
    data: &'a mut dyn CalibrationData,
}

impl CalibrationData for WithHead<'_> {
    fn examples(&self) -> usize {
        self.data.examples()
    }

    fn forward(&mut self, examples: usize, adapter: &dyn Adapter) -> Result<(), MethodError> {
        self.data.forward(examples, &Chain([self.head, adapter]))
    }

    fn forward_text(&mut self, ids: &[u32], adapter: &dyn Adapter) -> Result<(), MethodError> {
        self.data.forward_text(ids, &Chain([self.head, adapter]))
    }

    fn gradients(
        &mut self,
        examples: usize,
        each: Each,
        params: &[Param],
        adapter: &dyn Adapter,
        see: &mut dyn FnMut(&Gradients),
    ) -> Result<(), MethodError> {
        let adapter = Chain([self.head, adapter]);
        self.data.gradients(examples, each, params, &adapter, see)
    }
}

impl Adapter for AdapterModule {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        self.with_chain(|chain| chain.parameter(name))
    }

    fn lookup(
        &self,
        table: &str,
        ids: &[u32],
        rows: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.method.lookup(table, ids, rows, cx)
    }

    fn embeddings(&self, embedded: Embedded, cx: &ForwardContext<'_>) -> Embedded {
        self.method.embeddings(embedded, cx)
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.method.linear_input(site, x, cx)
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.method.linear(site, product, cx)
    }

    fn attention(
        &self,
        at: AttentionSite,
        qkv: [Tensor<2>; 3],
        cx: &ForwardContext<'_>,
    ) -> [Tensor<2>; 3] {
        self.method.attention(at, qkv, cx)
    }

    fn prefix_length(&self, decoder: bool) -> usize {
        self.method.prefix_length(decoder)
    }

    fn virtual_tokens(&self) -> usize {
        self.method.virtual_tokens()
    }

    fn soft_tokens(&self) -> usize {
        self.method.soft_tokens()
    }

    fn pools_text(&self) -> bool {
        self.method.pools_text()
    }

    fn virtual_targets(&self) -> Option<VirtualTargets<'_>> {
        self.method.virtual_targets()
    }

    fn prefix(&self, at: AttentionSite, x: &Tensor<2>, cx: &ForwardContext<'_>) -> Option<Prefix> {
        self.method.prefix(at, x, cx)
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.method.sublayer(sublayer, output, cx)
    }

    fn after_block(
        &self,
        layer: usize,
        block: Block,
        states: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.method.after_block(layer, block, states, cx)
    }

    fn hidden(&self, layer: usize, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.method.hidden(layer, hidden, cx)
    }

    fn encoded(&self, hidden: Hidden, cx: &ForwardContext<'_>) -> Hidden {
        self.method.encoded(hidden, cx)
    }

    fn final_norm(
        &self,
        states: Tensor<2>,
        norm: &dyn Fn(Tensor<2>) -> Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.method.final_norm(states, norm, cx)
    }

    fn first_layer(&self) -> usize {
        self.with_chain(|chain| chain.first_layer())
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.with_chain(|chain| chain.uses(hook))
    }

    fn mixes_rows(&self, layer: usize) -> bool {
        self.method.mixes_rows(layer)
    }

    fn reads_whole_sequences(&self) -> bool {
        self.method.reads_whole_sequences()
    }

    fn adapts_language_head(&self) -> bool {
        self.method.adapts_language_head()
    }

    fn first_pass(&self) -> Option<&dyn Adapter> {
        self.method.first_pass()
    }
}
