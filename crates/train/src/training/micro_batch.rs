//! Forward and backward for one micro-batch: the batches of one or several runs over one base.
//!
//! Each layer has its own autodiff graph. Backward begins a layer with the gradient of its output,
//! collects the gradients of the parameters, frees the graph, and goes on to the layer below. With
//! gradient checkpointing (Chen et al. 2016, arXiv 1604.06174) forward drops each graph and
//! backward rebuilds it; dropout follows from seed, epoch and example, so the second computation
//! equals the first.
//!
//! What passes from graph to graph is a bundle: the residual stream and every stream that travels
//! with it. Where nothing below a layer is trained, no graph is recorded: a side network that reads
//! the states of a frozen base leaves the base without graphs.

use std::ops::Range;

use burn::tensor::{Gradients as Tape, Tensor};
use epiphyte_methods::{AdapterModule, Gradients};
use epiphyte_models::adapter::Owner;
use epiphyte_models::{AdapterBatch, Entry, Hidden, LossRows, Mode, Model, Targets, Tokens};
use epiphyte_ops::pull_back;

use crate::TrainError;
use crate::scoring::evaluate::value;
use crate::training::activation_cache::ActivationCache;

/// What one run brings to a micro-batch.
pub(crate) struct RunBatch<'a> {
    /// The model with the run's own head; all runs' models share one base.
    pub(crate) model: &'a Model,
    pub(crate) module: &'a AdapterModule,
    pub(crate) tokens: &'a Tokens<'a>,
    pub(crate) mode: Mode,
    /// The second view of the step, if the method compares two.
    pub(crate) second: Option<(&'a Tokens<'a>, Mode)>,
    /// The labels; none where none are known.
    pub(crate) targets: Option<Targets<'a>>,
    pub(crate) label_smoothing: f64,
    /// Whether the gradient is that of the sum over targets, not of their mean.
    pub(crate) sums: bool,
    /// The optimizer step, from 1, for messages.
    pub(crate) step: u64,
}

impl<'a> RunBatch<'a> {
    /// What goes into the model: the run's tokens, and a second time where two views are compared.
    fn entries(&self) -> impl Iterator<Item = Entry<'a>> {
        let views = std::iter::once((self.tokens, self.mode)).chain(self.second);
        views.map(|(tokens, mode)| Entry {
            adapter: self.module,
            tokens,
            mode,
            streams: &[],
        })
    }
}

/// Loss, target count and gradients accumulated over the micro-batches of one optimizer step.
#[derive(Debug, Default)]
pub(crate) struct GradientAccumulator {
    /// The sum of the losses of all targets.
    pub(crate) loss: f64,
    /// The number of targets.
    pub(crate) targets: usize,
    /// The gradients of the parameters.
    pub(crate) gradients: Gradients,
    /// The most layers of the base through which gradients went on to what is below them.
    pub(crate) gradient_layers: usize,
}

/// Runs the batches forward and backward and adds to the accumulators, one for each run. A run
/// whose batch has no target takes no part.
///
/// # Errors
/// If a run's loss is not finite, or the activation cache's file cannot be read.
pub(crate) fn forward_backward(
    runs: &[RunBatch<'_>],
    mut cache: Option<&mut ActivationCache>,
    checkpointing: bool,
    accumulators: &mut [&mut GradientAccumulator],
) -> Result<(), TrainError> {
    let mut parts = Vec::new();
    for (index, run) in runs.iter().enumerate() {
        let Some(targets) = run.targets else {
            continue;
        };
        for entry in run.entries() {
            let hidden = match &mut cache {
                Some(cache) => {
                    let mut hidden = cache.states(run.model, &entry)?;
                    hidden.carried.extend(run.model.first_pass(&entry));
                    hidden
                }
                None => run.model.embed(&entry),
            };
            let rows = run.model.final_rows(&hidden);
            if let Some(loss_rows) = run.model.loss_rows(targets, run.tokens, &rows, run.module) {
                parts.push(Part {
                    index,
                    run,
                    entry,
                    hidden,
                    loss_rows,
                    final_tokens: rows.tokens(),
                });
            }
        }
    }
    if parts.is_empty() {
        return Ok(());
    }
    let first = cache.map_or(0, |cache| cache.layer());
    let joint = JointBatch::new(first, &parts);
    let (losses, gradient_layers) = joint.forward_backward(checkpointing, &mut |tape| {
        for part in parts.iter().filter(|part| part.is_first()) {
            let gradients = &mut accumulators[part.index].gradients;
            part.run.module.collect(gradients, tape);
        }
    });
    let firsts = parts.iter().filter(|part| part.is_first());
    for (part, loss) in firsts.zip(losses) {
        if !loss.is_finite() {
            return Err(TrainError::NonFinite {
                what: first_non_finite(part.run.module).map_or_else(
                    || "the loss".to_owned(),
                    |name| format!("`{name}`, and with it the loss,"),
                ),
                step: part.run.step,
            });
        }
        let accumulator = &mut accumulators[part.index];
        accumulator.gradient_layers = accumulator.gradient_layers.max(gradient_layers);
        accumulator.loss += loss * part.loss_rows.targets() as f64;
        accumulator.targets += part.loss_rows.targets();
    }
    Ok(())
}

/// A view of a run that takes part, with the input of the first layer and what its loss reads. A
/// second view follows its first.
struct Part<'a> {
    index: usize,
    run: &'a RunBatch<'a>,
    entry: Entry<'a>,
    hidden: Hidden,
    loss_rows: LossRows<'a>,
    /// The rows of its last hidden states, before any are selected.
    final_tokens: usize,
}

impl Part<'_> {
    /// Whether it is the view whose loss is taken.
    fn is_first(&self) -> bool {
        !matches!(self.entry.mode, Mode::Training { view: 1.., .. })
    }
}

/// The rows of all runs as one batch.
struct JointBatch<'a> {
    model: &'a Model,
    parts: &'a [Part<'a>],
    batch: AdapterBatch<'a>,
    layers: Range<usize>,
    hidden: Hidden,
    /// The rows of the last layer that losses read.
    selected: Vec<usize>,
}

/// A layer that was run forward.
struct Forwarded {
    index: usize,
    /// Its input; a leaf of autodiff where it carries a gradient.
    input: Hidden,
    /// Its output with its graph; none if that is to be recomputed.
    output: Option<Hidden>,
}

impl<'a> JointBatch<'a> {
    fn new(first_layer: usize, parts: &'a [Part<'a>]) -> Self {
        let model = parts[0].run.model;
        let mut selected = Vec::new();
        let mut start = 0;
        for part in parts {
            selected.extend(part.loss_rows.rows().iter().map(|row| start + row));
            start += part.final_tokens;
        }
        let hidden = parts.iter().enumerate();
        let hidden: Vec<Hidden> = hidden
            .map(|(number, part)| part.hidden.clone().owned_by(number))
            .collect();
        Self {
            model,
            parts,
            batch: AdapterBatch::new(parts.iter().map(|part| part.entry)),
            layers: first_layer..model.layers(),
            hidden: Hidden::concat(&hidden),
            selected,
        }
    }

    /// Runs all layers forward, computes the losses, and runs all layers backward. Gradients are
    /// handed to `on_gradients` as soon as a layer is done. Returns each run's loss, and the number
    /// of layers whose own input states got a gradient.
    fn forward_backward(
        &self,
        checkpointing: bool,
        on_gradients: &mut dyn FnMut(&mut Tape),
    ) -> (Vec<f64>, usize) {
        let entering = tracked(&self.hidden);
        let lowest = match entering.iter().any(|&tracked| tracked) {
            true => self.layers.start,
            false => self
                .batch
                .first_layer()
                .clamp(self.layers.start, self.layers.end),
        };
        let hidden = self.run(self.layers.start..lowest, detached(&self.hidden));
        let mut input = leaves(&detached(&hidden), &entering);
        let mut forwarded = Vec::new();
        for index in lowest..self.layers.end {
            let output = self.run(index..index + 1, input.clone());
            let next = leaves(&detached(&output), &tracked(&output));
            let output = match checkpointing {
                true => without_graph(&input, output),
                false => Some(output),
            };
            forwarded.push(Forwarded {
                index,
                input,
                output,
            });
            input = next;
        }
        let passed = forwarded.iter().filter(|layer| tracked(&layer.input)[0]);
        let gradient_layers = passed.count();
        let (losses, objective) = self.objective(&input);
        let mut tape = objective.backward();
        on_gradients(&mut tape);
        let mut gradients = take_gradients(&input, &mut tape);
        while let Some(mut layer) = forwarded.pop() {
            let output = layer.output.take().unwrap_or_else(|| {
                layer.input = leaves(&detached(&layer.input), &tracked(&layer.input));
                self.run(layer.index..layer.index + 1, layer.input.clone())
            });
            let Some(mut tape) = backward(&output, gradients) else {
                return (losses, gradient_layers);
            };
            on_gradients(&mut tape);
            gradients = take_gradients(&layer.input, &mut tape);
        }
        if let Some(mut tape) = backward(&self.hidden, gradients) {
            on_gradients(&mut tape);
        }
        (losses, gradient_layers)
    }

    fn run(&self, layers: Range<usize>, hidden: Hidden) -> Hidden {
        self.model
            .run(layers, hidden, Some(&self.selected), &self.batch)
    }

    /// Each run's loss, and the sum of what each minimizes, from the last layer's output.
    fn objective(&self, last: &Hidden) -> (Vec<f64>, Tensor<1>) {
        let read = self.model.finish(last.clone(), &self.batch);
        let mut start = 0;
        let own = self.parts.iter().enumerate().map(|(number, part)| {
            let sequences = start..start + part.entry.tokens.sequences.count();
            start = sequences.end;
            match self.parts.len() {
                1 => read.clone(),
                _ => read.part(sequences, Owner::Adapter(number)),
            }
        });
        let own: Vec<Hidden> = own.collect();
        let mut losses = Vec::new();
        let mut total: Option<Tensor<1>> = None;
        for (number, part) in self.parts.iter().enumerate() {
            if !part.is_first() {
                continue;
            }
            let (
                Part {
                    run,
                    loss_rows,
                    entry,
                    ..
                },
                read,
            ) = (part, own[number].clone());
            let loss = run
                .model
                .loss_of(read.clone(), loss_rows, run.label_smoothing, entry);
            let mut objective = loss.expect("loss rows exist only where the model has the head");
            losses.push(f64::from(value(objective.clone())));
            if let (Some(second), Some(weight)) = (
                self.parts.get(number + 1).filter(|next| !next.is_first()),
                run.module.method().consistency_weight(),
            ) {
                let passes = [(read, entry), (own[number + 1].clone(), &second.entry)];
                if let Some(divergence) = run.model.divergence(passes, loss_rows) {
                    objective = objective + divergence * weight;
                }
            }
            if let Some(penalty) = run.module.method().penalty() {
                objective = objective + penalty;
            }
            if run.sums {
                objective = objective * loss_rows.targets() as f64;
            }
            total = Some(match total {
                Some(total) => total + objective,
                None => objective,
            });
        }
        (losses, total.expect("at least one run takes part"))
    }
}

/// The tensors of a bundle: the residual stream, then each stream.
fn tensors(hidden: &Hidden) -> impl Iterator<Item = &Tensor<2>> {
    std::iter::once(&hidden.states).chain(hidden.carried.iter().map(|stream| &stream.states))
}

/// Changes each tensor of a bundle.
fn map(hidden: &Hidden, mut change: impl FnMut(Tensor<2>) -> Tensor<2>) -> Hidden {
    let mut mapped = hidden.with(change(hidden.states.clone()));
    for stream in &mut mapped.carried {
        stream.states = change(stream.states.clone());
    }
    mapped
}

/// Which tensors of a bundle carry a gradient.
fn tracked(hidden: &Hidden) -> Vec<bool> {
    tensors(hidden)
        .map(|states| states.is_autodiff() && states.is_tracked())
        .collect()
}

/// The bundle without its graph.
fn detached(hidden: &Hidden) -> Hidden {
    map(hidden, Tensor::inner)
}

/// The bundle with the tensors that carry a gradient as leaves of a new graph.
fn leaves(hidden: &Hidden, tracked: &[bool]) -> Hidden {
    let mut tracked = tracked.iter();
    map(hidden, |states| match tracked.next() {
        Some(true) => states.autodiff().require_grad(),
        _ => states,
    })
}

/// Drops a layer's output with all that its graph keeps, for gradient checkpointing.
///
/// Burn keeps what a graph saved until a backward pass runs in that graph, whether or not a tensor
/// still refers to it. So the shortest one there is runs, from an input of the layer. A layer
/// without an input that carries a gradient, at most the lowest, keeps its output.
fn without_graph(input: &Hidden, output: Hidden) -> Option<Hidden> {
    let leaf = tensors(input)
        .zip(tracked(input))
        .find(|(_, tracked)| *tracked);
    let Some((leaf, _)) = leaf else {
        return Some(output);
    };
    let one = leaf.clone().slice([0..1, 0..1]).sum();
    drop(output);
    one.backward();
    None
}

/// The gradients of a bundle's leaves.
fn take_gradients(leaves: &Hidden, tape: &mut Tape) -> Vec<Option<Tensor<2>>> {
    tensors(leaves)
        .map(|states| {
            states
                .is_autodiff()
                .then(|| states.grad_remove(tape))
                .flatten()
        })
        .collect()
}

/// Runs a graph backward from the gradients of its outputs; none if no gradient enters it.
fn backward(output: &Hidden, gradients: Vec<Option<Tensor<2>>>) -> Option<Tape> {
    let pulled = tensors(output).zip(gradients).zip(tracked(output));
    let pulled = pulled.filter_map(|((states, gradient), tracked)| {
        tracked.then_some(pull_back(states.clone(), gradient?))
    });
    Some(pulled.reduce(|sum, more| sum + more)?.backward())
}

/// The first trained tensor that holds a NaN or an infinity.
fn first_non_finite(module: &AdapterModule) -> Option<String> {
    let mut params = module.trained();
    let broken = params.find(|param| param.to_vec().iter().any(|value| !value.is_finite()));
    broken.map(|param| param.key().to_owned())
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use epiphyte_methods::by_name;
    use epiphyte_models::{HeadKind, ModelConfig, random_model};
    use epiphyte_ops::Sequences;
    use serde_json::{Value, json};

    use super::*;

    const IDS: [u32; 8] = [3, 7, 1, 19, 4, 25, 6, 2];
    const LAYERS: usize = 3;

    fn model() -> Model {
        let config = json!({
            "model_type": "bert", "vocab_size": 30, "hidden_size": 16,
            "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 24,
            "max_position_embeddings": 32, "initializer_range": 0.3,
        });
        let config = ModelConfig::parse("config.json".as_ref(), config.to_string().as_bytes());
        let head = HeadKind::Classification { labels: 2 };
        random_model(
            &config.unwrap(),
            head,
            &Device::default(),
            Default::default(),
            3,
        )
        .unwrap()
    }

    fn module(model: &Model, method: &str, settings: Value) -> AdapterModule {
        let settings = settings.as_object().unwrap().clone();
        let config = by_name(method).unwrap().configure(settings).unwrap();
        AdapterModule::new(config, model.base(), &Device::default(), 1).unwrap()
    }

    fn tokens() -> Tokens<'static> {
        Tokens::new(&IDS, &[0; 8], Sequences::new(vec![0, 5, 8]))
    }

    fn run<'a>(
        model: &'a Model,
        module: &'a AdapterModule,
        tokens: &'a Tokens<'a>,
    ) -> RunBatch<'a> {
        RunBatch {
            model,
            module,
            tokens,
            mode: Mode::Evaluation,
            second: None,
            targets: Some(Targets::Classes(&[0, 1])),
            label_smoothing: 0.0,
            sums: false,
            step: 1,
        }
    }

    /// Which tensors have a graph after each layer: the residual stream first, then each stream.
    fn tracked_after_layers(model: &Model, module: &AdapterModule) -> Vec<Vec<bool>> {
        let tokens = tokens();
        let run = run(model, module, &tokens);
        let entry = run.entries().next().unwrap();
        let hidden = model.embed(&entry);
        let parts = [Part {
            index: 0,
            run: &run,
            entry,
            loss_rows: model
                .loss_rows(Targets::Classes(&[0, 1]), &tokens, &hidden.rows, module)
                .unwrap(),
            final_tokens: hidden.rows.tokens(),
            hidden,
        }];
        let batch = JointBatch::new(0, &parts);
        let mut input = batch.hidden.clone();
        (0..LAYERS)
            .map(|layer| {
                let output = batch.run(layer..layer + 1, input.clone());
                let found = tracked(&output);
                input = leaves(&detached(&output), &found);
                found
            })
            .collect()
    }

    #[test]
    fn a_side_network_leaves_the_base_without_a_graph() {
        let model = model();
        let side = module(
            &model,
            "ladder-side-tuning",
            json!({ "side_reduction_factor": 2 }),
        );
        side.track(true);
        // The base's states have no graph; the last are the side network's.
        let expected = [vec![false, true], vec![false, true], vec![true]];
        assert_eq!(tracked_after_layers(&model, &side), expected);
        let lora = module(&model, "lora", json!({}));
        lora.track(true);
        assert_eq!(
            tracked_after_layers(&model, &lora),
            vec![vec![true]; LAYERS]
        );
    }

    /// Layer by layer, with and without checkpointing, the gradients are those of one graph.
    #[test]
    fn gradients_of_a_side_network_are_those_of_one_graph() {
        let model = model();
        let settings = json!({ "side_reduction_factor": 2, "side_layers": [0, 2] });
        let side = module(&model, "ladder-side-tuning", settings);
        side.track(true);
        let tokens = tokens();
        let loss = model.loss(&tokens, Targets::Classes(&[0, 1]), 0.0, &side);
        let mut whole = Gradients::new();
        side.collect(&mut whole, &mut loss.unwrap().mean.backward());
        for checkpointing in [false, true] {
            let mut found = GradientAccumulator::default();
            let runs = [run(&model, &side, &tokens)];
            forward_backward(&runs, None, checkpointing, &mut [&mut found]).unwrap();
            for param in side.trained() {
                let values = |gradients: &Gradients| {
                    let gradient = gradients.get(param).unwrap().clone();
                    gradient.try_into_vec_as::<f32>().unwrap()
                };
                let (whole, found) = (values(&whole), values(&found.gradients));
                let largest = whole
                    .iter()
                    .fold(0.0f32, |most, value| most.max(value.abs()));
                for (whole, found) in whole.iter().zip(found) {
                    assert!((whole - found).abs() <= 1e-5 * largest, "{}", param.key());
                }
            }
        }
    }

    /// AdaMix compares two views with copies of their own: where copies are alike there is nothing
    /// to add to the gradients, and else there is.
    #[test]
    fn two_views_add_their_divergence() {
        let model = model();
        let settings = |weight: f64| json!({ "bottleneck_dim": 4, "consistency_weight": weight });
        let (two, one) = (
            module(&model, "adamix", settings(1.0)),
            module(&model, "adamix", settings(0.0)),
        );
        let tokens = tokens();
        let mode = |view| Mode::Training {
            step: 0,
            step_key: 3,
            view,
        };
        let gradients = |module: &AdapterModule| -> Vec<f32> {
            module.track(true);
            let compares = module.method().consistency_weight().is_some();
            let runs = [RunBatch {
                mode: mode(0),
                second: compares.then_some((&tokens, mode(1))),
                ..run(&model, module, &tokens)
            }];
            let mut found = GradientAccumulator::default();
            forward_backward(&runs, None, false, &mut [&mut found]).unwrap();
            assert_eq!(found.targets, 2);
            let of = |param: &_| match found.gradients.get(param).cloned() {
                Some(gradient) => gradient.try_into_vec_as::<f32>().unwrap(),
                None => Vec::new(),
            };
            // The head and the up-projections, which all copies share.
            let shared = module.trained().filter(|it| !it.key().contains("experts"));
            shared.flat_map(of).collect()
        };
        let distance = |a: Vec<f32>, b: Vec<f32>| {
            assert_eq!(a.len(), b.len());
            let pairs = a.iter().zip(&b);
            pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
        };
        let apart = distance(gradients(&two), gradients(&one));
        for module in [&two, &one] {
            for param in module.parameters().trained() {
                if let Some((path, rest)) = param.key().split_once(".experts.") {
                    let (_, name) = rest.split_once('.').unwrap();
                    let first = module.parameters().get(&format!("{path}.experts.0.{name}"));
                    param.set_values(first.unwrap().to_vec());
                }
            }
        }
        let alike = distance(gradients(&two), gradients(&one));
        assert!(
            alike < 1e-6 && apart > 10.0 * alike && apart > 1e-7,
            "{alike} {apart}"
        );
    }
}
