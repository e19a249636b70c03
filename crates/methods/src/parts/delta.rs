//! Methods that change a linear layer's weight: what they share.
//!
//! A [`Delta`] says what one linear layer becomes. Forward pass, merging, targets and counts are
//! written here once over it; a method's own file holds the equation, the parameters and nothing
//! else. Where the change is a matrix that is added to the weight, a [`Change`] says which.

use std::collections::BTreeMap;
use std::fmt::Debug;

use burn::tensor::Tensor;
use epiphyte_models::adapter::Role;
use epiphyte_models::{
    Adapter, Base, BaseTensor, ForwardContext, Hook, LazyLinear, LinearInfo, Site,
};
use epiphyte_ops::{Dropout, FrozenMatrix, Weight, add, linear};

use crate::framework::method::{Stored, StoredTensors, load_stored, stored_parameters};
use crate::{Gradients, Method, MethodError, ParameterSet, StepInfo};

/// The change of one linear layer.
pub trait Delta: Debug + Send + Sync {
    /// What goes into the layer, `[tokens, in]`.
    fn input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        let _ = (site, cx);
        x
    }

    /// What comes out, `[tokens, out]`.
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let _ = (site, cx);
        product.compute()
    }

    /// The weight, `[out, in]`, of the plain linear layer that does the same without dropout.
    fn weight(&self, weight: Tensor<2>) -> Tensor<2>;

    /// Its bias, `[out]`.
    fn bias(&self, bias: Tensor<1>) -> Tensor<1> {
        bias
    }

    /// Whether [`Delta::bias`] does anything.
    const CHANGES_BIAS: bool = false;

    /// How many values of the weight it changes.
    fn changed(&self, linear: &LinearInfo) -> usize {
        linear.inputs * linear.outputs
    }

    /// As [`Method::before_step`]: brings parameters to where they may be.
    fn before_step(&self) {}

    /// As [`Method::after_backward`].
    fn after_backward(&self, _gradients: &mut Gradients) {}

    /// What the file holds of it that is no parameter.
    fn stored(&self) -> Vec<Stored> {
        Vec::new()
    }

    /// Takes back what [`Delta::stored`] gave.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape.
    fn load(&mut self, _file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        Ok(())
    }

    /// The same of this delta, where settings decide.
    fn changes_bias(&self) -> bool {
        Self::CHANGES_BIAS
    }

    /// The method and the reason, where it cannot be folded into the base.
    const NOT_MERGEABLE: Option<(&'static str, &'static str)> = None;

    /// Whether it reads the tokens of a text from its beginning.
    const READS_WHOLE_SEQUENCES: bool = false;

    /// Added to the loss of every step.
    fn penalty(&self) -> Option<Tensor<1>> {
        None
    }
}

/// A [`Delta`] that adds a matrix to the weight: `y = x Wᵀ + b + d(x) ΔWᵀ`, with dropout d.
pub trait Change: Debug + Send + Sync {
    /// `ΔW` as the parameters are now, `[out, in]`.
    fn matrix(&self) -> Tensor<2>;

    /// Probability of dropout on the input of the change.
    fn dropout(&self) -> f64 {
        0.0
    }

    /// The layer's output with `d(x) ΔWᵀ` added, `[tokens, out]`, for those who compute it without
    /// `ΔW`.
    fn add_to(&self, product: LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
        let x = dropped(&product, dropout);
        let change = linear(x, &Weight::Trained(self.matrix()), None);
        add(product.compute(), change)
    }

    /// As [`Delta::changed`].
    fn changed(&self, linear: &LinearInfo) -> usize {
        linear.inputs * linear.outputs
    }

    /// As [`Delta::after_backward`].
    fn after_backward(&self, _gradients: &mut Gradients) {}

    /// As [`Delta::stored`].
    fn stored(&self) -> Vec<Stored> {
        Vec::new()
    }

    /// As [`Delta::load`].
    ///
    /// # Errors
    /// As there.
    fn load(&mut self, _file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        Ok(())
    }
}

/// A layer's input, `[tokens, in]`, under dropout.
pub fn dropped(product: &LazyLinear, dropout: Option<Dropout>) -> Tensor<2> {
    let x = product.input().clone();
    match dropout {
        Some(dropout) => dropout.apply(x),
        None => x,
    }
}

impl<C: Change> Delta for C {
    fn output(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        let dropout = Dropout::new(self.dropout(), !site.id(), cx.rows);
        self.add_to(product, dropout)
    }

    fn weight(&self, weight: Tensor<2>) -> Tensor<2> {
        weight + self.matrix().inner()
    }

    fn changed(&self, linear: &LinearInfo) -> usize {
        Change::changed(self, linear)
    }

    fn after_backward(&self, gradients: &mut Gradients) {
        Change::after_backward(self, gradients);
    }

    fn stored(&self) -> Vec<Stored> {
        Change::stored(self)
    }

    fn load(&mut self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        Change::load(self, file)
    }
}

/// The base's own weight of a linear layer, `[out, in]`, for changes that are computed from it.
pub fn frozen_weight(base: &Base, linear: &LinearInfo) -> FrozenMatrix {
    let weight = base.tensor(&format!("{}.weight", linear.site.path));
    let matrix = weight.and_then(BaseTensor::matrix);
    matrix.expect("a linear layer has a matrix").clone()
}

/// A [`Delta`] for each of the chosen linear layers.
#[derive(Debug)]
pub struct Deltas<D> {
    by_path: BTreeMap<String, D>,
    first_layer: usize,
    changed: usize,
    adapts_language_head: bool,
}

impl<D: Delta> Deltas<D> {
    /// The targets, each with its delta.
    pub fn new<'a>(base: &Base, targets: impl IntoIterator<Item = (&'a LinearInfo, D)>) -> Self {
        let (mut changed, mut first_layer) = (0, usize::MAX);
        let mut adapts_language_head = false;
        let by_path = targets
            .into_iter()
            .map(|(linear, delta)| {
                changed += delta.changed(linear);
                adapts_language_head |= linear.site.role == Role::Head;
                let weight = format!("{}.weight", linear.site.path);
                first_layer = first_layer.min(base.first_layer_of(&weight));
                if delta.changes_bias() && linear.bias {
                    changed += linear.outputs;
                }
                (linear.site.path.clone(), delta)
            })
            .collect();
        Self {
            by_path,
            first_layer,
            changed,
            adapts_language_head,
        }
    }

    /// The delta of the linear layer at `path`.
    pub fn get(&self, path: &str) -> Option<&D> {
        self.by_path.get(path)
    }

    /// The paths of the linear layers.
    pub fn paths(&self) -> impl Iterator<Item = &str> {
        self.by_path.keys().map(String::as_str)
    }
}

impl<D: Delta> Adapter for Deltas<D> {
    fn linear_input(&self, site: &Site, x: Tensor<2>, cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.by_path.get(&site.path) {
            Some(delta) => delta.input(site, x, cx),
            None => x,
        }
    }

    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        match self.by_path.get(&site.path) {
            Some(delta) => delta.output(site, product, cx),
            None => product.compute(),
        }
    }

    fn first_layer(&self) -> usize {
        self.first_layer
    }

    fn adapts_language_head(&self) -> bool {
        self.adapts_language_head
    }

    fn reads_whole_sequences(&self) -> bool {
        D::READS_WHOLE_SEQUENCES
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Linear(site) if self.by_path.contains_key(&site.path))
    }
}

impl<D: Delta> Method for Deltas<D> {
    fn before_step(&mut self, _info: StepInfo) {
        self.by_path.values().for_each(D::before_step);
    }

    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let deltas = self.by_path.values().flat_map(D::stored);
        stored_parameters(parameters).chain(deltas).collect()
    }

    fn load(
        &mut self,
        parameters: &ParameterSet,
        file: &mut dyn StoredTensors,
    ) -> Result<(), MethodError> {
        load_stored(parameters, file)?;
        let mut deltas = self.by_path.values_mut();
        deltas.try_for_each(|delta| delta.load(file))
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        let Some((path, parameter)) = name.rsplit_once('.') else {
            return Ok(None);
        };
        let (Some(delta), Some(tensor)) = (self.by_path.get(path), base.tensor(name)) else {
            return Ok(None);
        };
        if let Some((method, reason)) = D::NOT_MERGEABLE {
            return Err(MethodError::NotMergeable { method, reason });
        }
        Ok(match (parameter, tensor.to_matrix()) {
            ("weight", Some(matrix)) => Some(tensor.flatten(delta.weight(matrix))),
            ("bias", None) if delta.changes_bias() => Some(delta.bias(tensor.to_flat())),
            _ => None,
        })
    }

    fn changed(&self) -> usize {
        self.changed
    }

    fn after_backward(&mut self, gradients: &mut Gradients, _info: StepInfo) {
        for delta in self.by_path.values() {
            delta.after_backward(gradients);
        }
    }

    fn penalty(&self) -> Option<Tensor<1>> {
        let penalties = self.by_path.values().filter_map(Delta::penalty);
        penalties.reduce(|sum, penalty| sum + penalty)
    }
}
