//! Trained tensors that stand in for tensors of the base: what full fine-tuning, Freeze, BitFit and
//! every task's head share.

use std::collections::BTreeMap;

use burn::tensor::Tensor;
use epiphyte_models::{Adapter, Base, BaseTensor, Hook, StandIn};

use crate::framework::method::StoredTensors;
use crate::framework::parameters::{Init, Param, ParamGroup, ParameterSet};
use crate::{Method, MethodError};

/// Trained tensors by the name of the base tensor that each replaces; they start as copies.
#[derive(Debug)]
pub struct Replaced {
    by_name: BTreeMap<String, Param>,
    first_layer: usize,
}

impl Replaced {
    /// Replaces the tensors whose names `choose` accepts. The task's head is not offered: it is
    /// trained with every method.
    pub fn new(base: &Base, parameters: &mut ParameterSet, choose: impl Fn(&str) -> bool) -> Self {
        Self::in_group(ParamGroup::default(), base, parameters, choose)
    }

    /// As [`Replaced::new`], with rules of their own for the optimizer.
    pub fn in_group(
        group: ParamGroup,
        base: &Base,
        parameters: &mut ParameterSet,
        choose: impl Fn(&str) -> bool,
    ) -> Self {
        Self::of(chosen(base, choose), group, base, parameters)
    }

    /// As [`Replaced::new`], with the initial values that `init` chooses.
    pub fn starting_at(
        base: &Base,
        parameters: &mut ParameterSet,
        choose: impl Fn(&str) -> bool,
        init: impl Fn(&str, &BaseTensor) -> Init,
    ) -> Self {
        let group = ParamGroup::default();
        let names = chosen(base, choose).into_iter();
        let with_keys = names.map(|name| (name, name.to_owned()));
        Self::declare(with_keys.collect(), group, base, parameters, init)
    }

    /// Replaces the task's head, if the base has one.
    pub fn head(base: &Base, parameters: &mut ParameterSet) -> Self {
        let names = base.tensors().keys().filter(|name| base.is_of_head(name));
        let names = names.map(String::as_str).collect();
        Self::of(names, ParamGroup::default(), base, parameters)
    }

    fn of(names: Vec<&str>, group: ParamGroup, base: &Base, parameters: &mut ParameterSet) -> Self {
        let init = |_: &str, tensor: &BaseTensor| Init::Base(tensor.clone());
        let with_keys = names.into_iter().map(|name| (name, name.to_owned()));
        Self::declare(with_keys.collect(), group, base, parameters, init)
    }

    /// Replaces the tensors of these names, which are the base's.
    pub fn named(names: Vec<&str>, base: &Base, parameters: &mut ParameterSet) -> Self {
        Self::of(names, ParamGroup::default(), base, parameters)
    }

    /// Replaces nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Replaces tensors of the base, each with the key under which files store it.
    pub fn with_keys(
        names: Vec<(&str, String)>,
        base: &Base,
        parameters: &mut ParameterSet,
    ) -> Self {
        let init = |_: &str, tensor: &BaseTensor| Init::Base(tensor.clone());
        Self::declare(names, ParamGroup::default(), base, parameters, init)
    }

    fn declare(
        names: Vec<(&str, String)>,
        group: ParamGroup,
        base: &Base,
        parameters: &mut ParameterSet,
        init: impl Fn(&str, &BaseTensor) -> Init,
    ) -> Self {
        let first_layer = names.iter().map(|(name, _)| base.first_layer_of(name));
        let first_layer = first_layer.min();
        let by_name = names
            .into_iter()
            .map(|(name, key)| {
                let tensor = base.tensor(name).expect("names are the base's own");
                let init = init(name, tensor);
                (
                    name.to_owned(),
                    parameters.declare_in(group, key, &tensor.shape(), init),
                )
            })
            .collect();
        Self {
            by_name,
            first_layer: first_layer.unwrap_or(usize::MAX),
        }
    }

    /// Declares `tensors`, those of layers that the method adds, with the initial values that
    /// `init` chooses.
    pub fn added(
        tensors: &BTreeMap<String, BaseTensor>,
        parameters: &mut ParameterSet,
        init: impl Fn(&str, &BaseTensor) -> Init,
    ) -> Self {
        let by_name = tensors.iter().map(|(name, tensor)| {
            let init = init(name, tensor);
            (
                name.clone(),
                parameters.declare(name, &tensor.shape(), init),
            )
        });
        Self {
            by_name: by_name.collect(),
            first_layer: 0,
        }
    }

    /// The parameters, by the name of the tensor that each replaces.
    pub fn params(&self) -> impl Iterator<Item = &Param> {
        self.by_name.values()
    }

    /// The parameters with the names of the tensors that they replace.
    pub fn by_name(&self) -> impl Iterator<Item = (&str, &Param)> {
        self.by_name
            .iter()
            .map(|(name, param)| (name.as_str(), param))
    }

    /// Takes the values from `file`, where they have the names of the base's tensors.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(&self, file: &mut dyn StoredTensors) -> Result<(), MethodError> {
        for (name, param) in &self.by_name {
            if let Some(values) = file.take(name, param.shape())? {
                param.set_values(values);
            }
        }
        Ok(())
    }

    /// The names of the tensors that are replaced.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Whether nothing is replaced.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// Nothing is replaced.
impl Default for Replaced {
    fn default() -> Self {
        Self {
            by_name: BTreeMap::new(),
            first_layer: usize::MAX,
        }
    }
}

/// Names of the base's tensors that `choose` accepts, without the task's head.
fn chosen(base: &Base, choose: impl Fn(&str) -> bool) -> Vec<&str> {
    let names = base.tensors().keys().map(String::as_str);
    names
        .filter(|name| !base.is_of_head(name) && choose(name))
        .collect()
}

/// How many values the tensors hold that `choose` accepts: the closed count of a replacing method.
pub fn count(base: &Base, choose: impl Fn(&str) -> bool) -> usize {
    let tensors = chosen(base, choose)
        .into_iter()
        .filter_map(|name| base.tensor(name));
    tensors.map(|tensor| tensor.count()).sum()
}

impl Adapter for Replaced {
    fn parameter(&self, name: &str) -> Option<StandIn> {
        let param = self.by_name.get(name)?;
        Some(StandIn::Tensor(param.flat()))
    }

    fn first_layer(&self) -> usize {
        self.first_layer
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        matches!(hook, Hook::Parameter(name) if self.by_name.contains_key(name))
    }
}

impl Method for Replaced {
    fn merged(&self, name: &str, _base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        Ok(self.by_name.get(name).map(|param| param.flat().inner()))
    }

    fn changed(&self) -> usize {
        self.by_name.values().map(Param::count).sum()
    }
}
