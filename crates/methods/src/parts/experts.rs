//! Several copies of a trained tensor of which each forward pass of training takes one: what the
//! methods of AdaMix's kind share.
//!
//! Which copy a step takes is drawn for each path, step and view of it, for the whole batch:
//! tensors of one path take the copies of the same number. Evaluation takes their mean, which is
//! also what the file holds, so that a saved adapter is an ordinary one.
//!
//! The reference code goes on to move a copy that got no gradient in a step, by its moments and
//! weight decay, if it ever had one; here it stays where it is.

use burn::tensor::Tensor;
use epiphyte_models::adapter::name_id;
use epiphyte_models::{Adapter, Base, ForwardContext, Hook, LazyLinear, Mode, Site, Sublayer};
use epiphyte_ops::random;

use crate::MethodError;
use crate::framework::method::{Method, Stored};
use crate::framework::parameters::{Init, Param, ParameterSet};

crate::settings! {
    /// The settings of mixtures.
    pub struct MixtureConfig {
        /// Number of copies, of which each step takes one at random; their mean is saved.
        num_experts: usize = 4, in Size;
        /// Weight of the divergence between the predictions of two passes with copies of their own;
        /// 0 for a single pass.
        consistency_weight: f64 = 1.0, in NotNegative;
        /// One down-projection for all copies.
        share_down: bool = false;
        /// One up-projection for all copies: true or false.
        share_up: bool = true, as Boolean;
    }
}

impl MixtureConfig {
    /// The number of copies of down- and up-projections.
    pub(crate) fn copies(&self) -> [usize; 2] {
        [self.share_down, self.share_up].map(|shared| if shared { 1 } else { self.num_experts })
    }

    /// The settings of a saved adapter, which has the mean alone.
    pub(crate) fn averaged(&self) -> Self {
        Self {
            num_experts: 1,
            ..self.clone()
        }
    }
}

/// Copies of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Experts {
    /// Two or more; none if the tensor has no copies.
    copies: Vec<Param>,
    /// Their mean, or the tensor itself.
    mean: Param,
    /// What names the draws.
    site: u64,
}

impl Experts {
    /// Declares `{path}.{name}` or, of several copies, `{path}.experts.{number}.{name}`.
    pub(crate) fn declare(
        parameters: &mut ParameterSet,
        path: &str,
        name: &str,
        shape: &[usize],
        init: &Init,
        copies: usize,
    ) -> Self {
        let (key, site) = (format!("{path}.{name}"), name_id(path));
        if copies == 1 {
            return Self {
                copies: Vec::new(),
                mean: parameters.declare(key, shape, init.clone()),
                site,
            };
        }
        let copy = |number| {
            let key = format!("{path}.experts.{number}.{name}");
            parameters.declare(key, shape, init.clone())
        };
        let copies: Vec<Param> = (0..copies).map(copy).collect();
        let own = copies.clone();
        Self {
            mean: parameters.derived(key, shape, move || average(&own)),
            copies,
            site,
        }
    }

    /// The tensor of this forward pass.
    pub(crate) fn now(&self, cx: &ForwardContext<'_>) -> &Param {
        match cx.mode {
            Mode::Training { step_key, view, .. } if !self.copies.is_empty() => {
                let draw = step_key ^ self.site ^ u64::from(view).rotate_left(32);
                let number = random::uniform(draw, 1, 0.0, self.copies.len() as f64)[0];
                &self.copies[(number as usize).min(self.copies.len() - 1)]
            }
            _ => &self.mean,
        }
    }

    /// What evaluation takes.
    pub(crate) fn mean(&self) -> &Param {
        &self.mean
    }

    fn is_copy(&self, param: &Param) -> bool {
        self.copies.iter().any(|copy| copy.id() == param.id())
    }
}

/// The mean of tensors of the same size, flat.
fn average(copies: &[Param]) -> Tensor<1> {
    let sum = copies
        .iter()
        .map(Param::flat)
        .reduce(|sum, copy| sum + copy);
    sum.expect("there are two or more") / copies.len() as f64
}

/// A method some of whose tensors have copies.
#[derive(Debug)]
pub(crate) struct Mixture<M> {
    method: M,
    experts: Vec<Experts>,
    consistency_weight: f64,
}

impl<M> Mixture<M> {
    /// `method`, whose tensors `experts` are.
    pub(crate) fn new(method: M, experts: Vec<Experts>, config: &MixtureConfig) -> Self {
        Self {
            method,
            experts,
            consistency_weight: config.consistency_weight,
        }
    }

    fn is_copy(&self, param: &Param) -> bool {
        self.experts.iter().any(|experts| experts.is_copy(param))
    }
}

impl<M: Adapter> Adapter for Mixture<M> {
    fn linear(&self, site: &Site, product: LazyLinear, cx: &ForwardContext<'_>) -> Tensor<2> {
        self.method.linear(site, product, cx)
    }

    fn sublayer(
        &self,
        sublayer: &Sublayer<'_>,
        output: Tensor<2>,
        cx: &ForwardContext<'_>,
    ) -> Tensor<2> {
        self.method.sublayer(sublayer, output, cx)
    }

    fn first_layer(&self) -> usize {
        self.method.first_layer()
    }

    fn uses(&self, hook: Hook<'_>) -> bool {
        self.method.uses(hook)
    }
}

impl<M: Method> Method for Mixture<M> {
    fn consistency_weight(&self) -> Option<f64> {
        let has_copies = self
            .experts
            .iter()
            .any(|experts| !experts.copies.is_empty());
        Some(self.consistency_weight).filter(|weight| has_copies && *weight > 0.0)
    }

    fn may_lack_gradient(&self, param: &Param) -> bool {
        self.is_copy(param)
    }

    /// The mean in place of the copies.
    fn stored(&self, parameters: &ParameterSet) -> Vec<Stored> {
        let own = parameters.stored().filter(|param| !self.is_copy(param));
        let mixed = self.experts.iter().filter(|it| !it.copies.is_empty());
        let means = mixed.map(|experts| {
            let mean = average(&experts.copies).inner().try_into_vec_as::<f32>();
            let mean = mean.expect("parameters are f32 and on a device that can be read");
            Stored::f32(experts.mean.key(), experts.mean.shape(), mean)
        });
        own.map(Stored::of).chain(means).collect()
    }

    fn merged(&self, name: &str, base: &Base) -> Result<Option<Tensor<1>>, MethodError> {
        self.method.merged(name, base)
    }

    fn changed(&self) -> usize {
        self.method.changed()
    }
}
