//! One pass, there and back: the batches of one or several runs over one base.
//!
//! Each layer has a tape of its own, which starts with the gradient of what the layer gave, so that what the tape held is
//! free, and the gradients it found are taken, before the layer below goes back. With gradient checkpointing (Chen et
//! al. 2016, arXiv 1604.06174) the tape is thrown away on the way there and made again on the way back; what dropout
//! drops follows from seed, epoch and example, so the second computation is the first one.

use std::ops::Range;

use burn::tensor::{Gradients, Tensor};
use epiphyte_methods::Tuned;
use epiphyte_models::{Adapter, Goal, Group, Hidden, Targets, Tokens, Transformer};
use epiphyte_ops::{accumulate, pull_back};

use crate::TrainError;
use crate::evaluate::value;
use crate::trunk::Trunk;

/// What one run brings to a pass.
pub(crate) struct Member<'a> {
    /// The model with the run's own head; all members' models share one base.
    pub(crate) model: &'a dyn Transformer,
    pub(crate) tuned: &'a Tuned,
    pub(crate) tokens: Tokens<'a>,
    /// None where nothing is known.
    pub(crate) targets: Option<Targets<'a>>,
    pub(crate) label_smoothing: f64,
    /// Whether the gradient is that of the sum over targets, not of their mean.
    pub(crate) sums: bool,
}

/// What the passes of a run's step have taught so far.
#[derive(Default)]
pub(crate) struct Learned {
    /// The sum of the losses of all targets.
    pub(crate) loss: f64,
    /// How many targets there were.
    pub(crate) targets: usize,
    /// A gradient for each trained tensor that has one.
    pub(crate) gradients: Vec<Option<Tensor<1>>>,
}

/// Runs the members' batches there and back, with or without gradient checkpointing, and adds to `learned`, one a
/// member. A member whose batch has no target takes no part.
///
/// # Errors
/// If a member's loss is not finite (`step` tells which step that is), or a trunk's file cannot be read.
pub(crate) fn pass(
    members: &[Member<'_>],
    mut trunk: Option<&mut Trunk>,
    checkpointing: bool,
    learned: &mut [Learned],
    step: impl Fn(usize) -> u64,
) -> Result<(), TrainError> {
    let mut entering = Vec::new();
    for (index, member) in members.iter().enumerate() {
        let Some(targets) = member.targets else {
            continue;
        };
        let hidden = match &mut trunk {
            Some(trunk) => trunk.states(member.model, &member.tokens)?,
            None => member.model.embed(&member.tokens, member.tuned),
        };
        let shown = &member.tokens.sequences;
        if let Some(goal) = member.model.goal(targets, shown, &hidden.sequences) {
            entering.push((index, member, hidden, goal));
        }
    }
    if entering.is_empty() {
        return Ok(());
    }
    let first = trunk.map_or(0, |trunk| trunk.layer());
    let joint = Joint::new(members[entering[0].0].model, first, &entering);

    let mut found = |gradients: &mut Gradients| {
        for (index, member, ..) in &entering {
            learned[*index].take(member.tuned, gradients);
        }
    };
    let losses = joint.there_and_back(&entering, checkpointing, &mut found);
    for ((index, member, _, goal), loss) in entering.iter().zip(losses) {
        if !loss.is_finite() {
            return Err(TrainError::NonFinite {
                what: first_non_finite(member.tuned).map_or_else(
                    || "the loss".to_owned(),
                    |name| format!("`{name}`, and with it the loss,"),
                ),
                step: step(*index),
            });
        }
        let learned = &mut learned[*index];
        learned.loss += loss * goal.targets() as f64;
        learned.targets += goal.targets();
    }
    Ok(())
}

impl Learned {
    /// Nothing yet, for a run that trains so many tensors.
    pub(crate) fn nothing(tensors: usize) -> Self {
        Self {
            gradients: vec![None; tensors],
            ..Self::default()
        }
    }

    /// Adds what a tape found for the run's tensors.
    fn take(&mut self, tuned: &Tuned, found: &mut Gradients) {
        for (param, sum) in tuned.trained().zip(&mut self.gradients) {
            if let Some(gradient) = param.flat().grad_remove(found) {
                *sum = Some(match sum.take() {
                    Some(sum) => accumulate(sum, gradient),
                    None => gradient,
                });
            }
        }
    }
}

/// A member that takes part, with what enters the layers and what its loss reads.
type Entering<'a> = (usize, &'a Member<'a>, Hidden, Goal<'a>);

/// The members' rows as those of one pass.
struct Joint<'a> {
    model: &'a dyn Transformer,
    /// The one member's adapter.
    alone: &'a dyn Adapter,
    /// All members', where there are several.
    group: Option<Group<'a>>,
    layers: Range<usize>,
    hidden: Hidden,
    /// The rows that losses read.
    rows: Vec<usize>,
    /// How many sequences each member has.
    counts: Vec<usize>,
}

impl<'a> Joint<'a> {
    fn new(model: &'a dyn Transformer, first: usize, entering: &[Entering<'a>]) -> Self {
        let counts: Vec<usize> = entering
            .iter()
            .map(|(_, _, hidden, _)| hidden.sequences.count())
            .collect();
        let mut rows = Vec::new();
        let mut start = 0;
        for (_, _, hidden, goal) in entering {
            rows.extend(goal.rows().iter().map(|row| start + row));
            start += hidden.sequences.tokens();
        }
        let hidden: Vec<Hidden> = entering
            .iter()
            .map(|(_, _, hidden, _)| hidden.clone())
            .collect();
        let adapters = entering
            .iter()
            .map(|(_, member, ..)| member.tuned as &dyn Adapter);
        let group = Group::new(adapters.zip(counts.iter().copied()));
        Self {
            model,
            alone: entering[0].1.tuned,
            group: (entering.len() > 1).then_some(group),
            layers: first..model.base().dimensions.layers,
            hidden: Hidden::concat(&hidden),
            rows,
            counts,
        }
    }

    fn adapter(&self) -> &dyn Adapter {
        match &self.group {
            Some(group) => group,
            None => self.alone,
        }
    }

    /// Some layers.
    fn run(&self, layers: Range<usize>, hidden: Hidden) -> Hidden {
        self.model
            .run(layers, hidden, Some(&self.rows), self.adapter())
    }

    /// Each member's loss, and the sum of what each wants to be small. `read` has left the last layer.
    fn objective(&self, read: Hidden, entering: &[Entering<'_>]) -> (Vec<f64>, Tensor<1>) {
        let read = self.model.finish(read, self.adapter());
        let mut start = 0;
        let mut losses = Vec::new();
        let mut total: Option<Tensor<1>> = None;
        for ((_, member, _, goal), count) in entering.iter().zip(&self.counts) {
            let own = match entering.len() {
                1 => read.clone(),
                _ => read.part(start..start + count),
            };
            start += count;
            let loss = member
                .model
                .loss_of(own, goal, member.label_smoothing, member.tuned);
            let mut objective =
                loss.expect("a goal has targets, and the model a head for the task");
            losses.push(f64::from(value(objective.clone())));
            if let Some(penalty) = member.tuned.method().penalty() {
                objective = objective + penalty;
            }
            if member.sums {
                objective = objective * goal.targets() as f64;
            }
            total = Some(match total {
                Some(total) => total + objective,
                None => objective,
            });
        }
        (losses, total.expect("somebody takes part"))
    }

    /// All layers, the losses, and all layers back. What a layer's tape finds is handed to `found` as soon as it is
    /// back.
    fn there_and_back(
        &self,
        entering: &[Entering<'_>],
        checkpointing: bool,
        found: &mut dyn FnMut(&mut Gradients),
    ) -> Vec<f64> {
        let reached = self.hidden.states.is_autodiff();
        let lowest = match reached {
            true => self.layers.start,
            false => self
                .adapter()
                .first_layer()
                .clamp(self.layers.start, self.layers.end),
        };
        let mut hidden = self.hidden.with(plain(&self.hidden));
        hidden = hidden.with(plain(&self.run(self.layers.start..lowest, hidden.clone())));
        let mut steps = Vec::new();
        for index in lowest..self.layers.end {
            let input = match index > lowest || reached {
                true => tracked(&hidden),
                false => hidden,
            };
            let output = match checkpointing {
                true => self.run(index..index + 1, input.with(plain(&input))),
                false => self.run(index..index + 1, input.clone()),
            };
            hidden = output.with(plain(&output));
            steps.push((index, input, (!checkpointing).then_some(output)));
        }
        let leaf = tracked(&hidden);
        let (losses, objective) = self.objective(leaf.clone(), entering);
        let mut gradients = objective.backward();
        found(&mut gradients);
        let mut gradient = leaf.states.grad_remove(&mut gradients);
        while let Some((index, input, output)) = steps.pop() {
            let Some(incoming) = gradient.take() else {
                break;
            };
            let output = output.unwrap_or_else(|| self.run(index..index + 1, input.clone()));
            if !(output.states.is_autodiff() && output.states.is_tracked()) {
                break;
            }
            let mut gradients = pull_back(output.states, incoming).backward();
            found(&mut gradients);
            if input.states.is_autodiff() {
                gradient = input.states.grad_remove(&mut gradients);
            }
        }
        if let (true, Some(incoming)) = (reached, gradient) {
            found(&mut pull_back(self.hidden.states.clone(), incoming).backward());
        }
        losses
    }
}

/// States without a tape.
fn plain(hidden: &Hidden) -> Tensor<2> {
    hidden.states.clone().inner()
}

/// States that begin a tape.
fn tracked(hidden: &Hidden) -> Hidden {
    hidden.with(hidden.states.clone().autodiff().require_grad())
}

/// The first trained tensor that holds a NaN or an infinity.
fn first_non_finite(tuned: &Tuned) -> Option<String> {
    let mut params = tuned.trained();
    let broken = params.find(|param| param.to_vec().iter().any(|value| !value.is_finite()));
    broken.map(|param| param.key().to_owned())
}
