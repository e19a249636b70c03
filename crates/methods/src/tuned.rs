//! A method at work on a base, with the task's head that is trained beside it.

use burn::tensor::{Device, Tensor};
use epiphyte_models::{Adapter, Base, Embedded, Place, Product, Site, Sublayer};
use epiphyte_ops::{Prefix, Sequences};
use serde::{Deserialize, Serialize};

use crate::MethodError;
use crate::method::{Method, Stored};
use crate::parameters::ParameterSet;
use crate::registry::AnyConfig;
use crate::replace::Replaced;

/// Everything that a run trains over one base.
#[derive(Debug)]
pub struct Tuned {
    config: Box<dyn AnyConfig>,
    method: Box<dyn Method>,
    head: Replaced,
    parameters: ParameterSet,
    head_parameters: ParameterSet,
}

/// What a method costs in parameters, the task's head not counted but said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Values with a gradient and optimiser state.
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

impl Tuned {
    /// Puts the method to work on `base`. What starts at random follows from `seed`.
    ///
    /// # Errors
    /// As [`crate::MethodConfig::build`].
    pub fn new(
        config: Box<dyn AnyConfig>,
        base: &Base,
        device: &Device,
        seed: u64,
    ) -> Result<Self, MethodError> {
        let mut parameters = ParameterSet::new(device, seed);
        let method = config.build(base, &mut parameters)?;
        Ok(Self::with_head(config, method, base, parameters))
    }

    /// Puts what an adapter's file stores to work on `base`: without the tensors that only training
    /// used, but under the configuration that the file has.
    ///
    /// # Errors
    /// As [`crate::MethodConfig::build`].
    pub fn stored_of(
        config: &dyn AnyConfig,
        base: &Base,
        device: &Device,
    ) -> Result<Self, MethodError> {
        let mut parameters = ParameterSet::new(device, 0);
        let method = config.stored().build(base, &mut parameters)?;
        let config = config.definition().configure(config.settings())?;
        Ok(Self::with_head(config, method, base, parameters))
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
            parameters,
            head_parameters,
        }
    }

    /// The configuration.
    pub fn config(&self) -> &dyn AnyConfig {
        &*self.config
    }

    /// The method.
    pub fn method(&self) -> &dyn Method {
        &*self.method
    }

    /// The method, to tell it of a step.
    pub fn method_mut(&mut self) -> &mut dyn Method {
        &mut *self.method
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
    pub fn trained(&self) -> impl Iterator<Item = &crate::Param> {
        self.parameters.iter().chain(self.head_parameters.iter())
    }

    /// Turns gradients on or off.
    pub fn track(&self, tracked: bool) {
        self.parameters.track(tracked);
        self.head_parameters.track(tracked);
    }

    /// What the adapter's file holds of the method.
    pub fn stored(&self) -> Vec<Stored> {
        self.method.stored(&self.parameters)
    }

    /// What the adapter's file holds of the task's head.
    pub fn stored_head(&self) -> Vec<Stored> {
        self.head_parameters.iter().map(Stored::of).collect()
    }

    /// What the base's tensor `name` becomes in a merged model; none if it stays.
    ///
    /// # Errors
    /// [`MethodError::NotMergeable`].
    pub fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        match self.head.merged(name, base)? {
            Some(head) => Ok(Some(head)),
            None => self.method.merged(name, base),
        }
    }

    /// The three numbers that comparisons need, which mean different things.
    pub fn account(&self, base: &Base) -> Account {
        Account {
            trainable_parameters: self.parameters.count(),
            changed_parameters: self.method.changed(),
            stored_parameters: self.stored().iter().map(|stored| stored.values.len()).sum(),
            head_parameters: self.head_parameters.count(),
            base_parameters: base.count(),
        }
    }
}

impl Adapter for Tuned {
    fn parameter(&self, name: &str) -> Option<Tensor<1>> {
        self.head
            .parameter(name)
            .or_else(|| self.method.parameter(name))
    }

    fn embeddings(&self, embedded: Embedded) -> Embedded {
        self.method.embeddings(embedded)
    }

    fn linear_input(&self, site: &Site, x: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
        self.method.linear_input(site, x, sequences)
    }

    fn linear(&self, site: &Site, product: Product, sequences: &Sequences) -> Tensor<2> {
        self.method.linear(site, product, sequences)
    }

    fn prefix_length(&self) -> usize {
        self.method.prefix_length()
    }

    fn prefix(&self, layer: usize, x: &Tensor<2>, sequences: &Sequences) -> Option<Prefix> {
        self.method.prefix(layer, x, sequences)
    }

    fn sublayer(&self, sublayer: &Sublayer<'_>, output: Tensor<2>) -> Tensor<2> {
        self.method.sublayer(sublayer, output)
    }

    fn hidden(&self, layer: usize, states: Tensor<2>, sequences: &Sequences) -> Tensor<2> {
        self.method.hidden(layer, states, sequences)
    }

    fn first_layer(&self) -> usize {
        self.head.first_layer().min(self.method.first_layer())
    }

    fn acts(&self, place: Place<'_>) -> bool {
        self.head.acts(place) || self.method.acts(place)
    }
}
