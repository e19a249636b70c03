//! The bridge between a slice kernel and Burn's autodiff.
//!
//! An operation implements its forward and backward pass over plain slices ([`Fused`]); only this
//! file deals with Burn's CPU tensors, recorded backward steps and tracked operands. An operand
//! that does not depend on a trained tensor gets no gradient, and nothing is saved for it.

use std::cell::Cell;
use std::fmt::Debug;
use std::ops::Deref;

use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, DispatchDevice, Flex};
use burn::tensor::{DType, Device, Shape, Tensor, TensorData};

type Tracked = FloatTensor<Autodiff<Flex>>;

/// Which of `N` things are wanted.
pub(crate) type Wanted<const N: usize> = [bool; N];

/// An operation on `N` dense f32 operands with one result, and its gradient.
pub(crate) trait Fused<const N: usize>: Clone + Debug + Send + 'static {
    /// What the forward pass computes in addition to its result, for the backward pass.
    type Saved: Clone + Debug + Send + 'static;

    /// The result (row-major, of shape [`Fused::shape`]) and what the backward pass reads.
    fn forward(&self, inputs: [&[f32]; N]) -> (Vec<f32>, Self::Saved);

    /// The shape of the result.
    fn shape(&self) -> Vec<usize>;

    /// Which operands, and whether the result itself, are saved for the backward pass, given which
    /// operands are tracked. By default every operand and not the result.
    fn saved_operands(&self, _tracked: Wanted<N>, _saved: &Self::Saved) -> (Wanted<N>, bool) {
        ([true; N], false)
    }

    /// Gradients of the wanted operands, given that of the result. Operands and result that
    /// [`Fused::saved_operands`] does not name are empty slices.
    fn backward(
        &self,
        kept: Kept<'_, N, Self::Saved>,
        gradient: Gradient,
        wanted: Wanted<N>,
    ) -> [Option<Gradient>; N];
}

/// The saved values that the backward pass may read.
pub(crate) struct Kept<'a, const N: usize, Saved> {
    pub(crate) inputs: [&'a [f32]; N],
    pub(crate) output: &'a [f32],
    pub(crate) saved: &'a Saved,
}

/// A gradient. It is changed in place if it is not shared; clones share it, so that an operation
/// can pass on the gradient of its result without a copy.
#[derive(Clone, Debug)]
pub(crate) struct Gradient(FlexTensor);

impl Gradient {
    /// The values, mutable; copied first if another gradient shares them.
    pub(crate) fn values_mut(&mut self) -> &mut [f32] {
        self.0.storage_mut()
    }
}

impl Deref for Gradient {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        slice(&self.0)
    }
}

impl From<Vec<f32>> for Gradient {
    fn from(values: Vec<f32>) -> Self {
        let length = values.len();
        Self(flex(values, vec![length]))
    }
}

thread_local! {
    static COMPOSED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `body` with every operation of this thread composed of Burn's own, as on a device without
/// fused operations. Tests compare the two.
pub fn composed<T>(body: impl FnOnce() -> T) -> T {
    let before = COMPOSED.replace(true);
    let result = body();
    COMPOSED.set(before);
    result
}

/// Whether operations on `tensor` are fused: it is in CPU memory, as f32.
pub(crate) fn uses_fused<const D: usize>(tensor: &Tensor<D>) -> bool {
    !COMPOSED.get() && tensor.dtype() == DType::F32 && is_cpu(tensor.device().as_dispatch())
}

/// Whether `device` is the CPU (Burn's flex backend).
pub fn on_processor(device: &Device) -> bool {
    is_cpu(device.as_dispatch())
}

/// [`on_processor`], for Burn's own device type.
pub(crate) fn is_cpu(device: &DispatchDevice) -> bool {
    match device {
        DispatchDevice::Autodiff(device) => is_cpu(device),
        device => matches!(device, DispatchDevice::Flex(_)),
    }
}

/// An operand, as Burn's backends store it.
pub(crate) enum Operand {
    /// On an autodiff device: it may be tracked.
    Autodiff(Tracked),
    /// A constant.
    Plain(FlexTensor),
}

impl Operand {
    fn primitive(&self) -> &FlexTensor {
        match self {
            Self::Autodiff(tensor) => tensor.primitive(),
            Self::Plain(tensor) => tensor,
        }
    }
}

impl<const D: usize> From<Tensor<D>> for Operand {
    fn from(tensor: Tensor<D>) -> Self {
        if tensor.is_autodiff() {
            let tracked = tensor.try_into_primitive::<Autodiff<Flex>>();
            Self::Autodiff(tracked.expect("the caller checked `uses_fused`"))
        } else {
            let plain = tensor.try_into_primitive::<Flex>();
            Self::Plain(plain.expect("the caller checked `uses_fused`"))
        }
    }
}

/// Runs `op` and records its backward step if an operand is tracked.
///
/// Every operand must satisfy [`uses_fused`]; `D` is the rank of the result.
pub(crate) fn apply<const N: usize, const D: usize, Op: Fused<N>>(
    op: Op,
    operands: [Operand; N],
) -> Tensor<D> {
    let dense: [FlexTensor; N] =
        std::array::from_fn(|index| operands[index].primitive().to_contiguous());
    let shapes = dense
        .each_ref()
        .map(|tensor| tensor.layout().shape().to_vec());
    let (values, saved) = op.forward(dense.each_ref().map(slice));
    let output = flex(values, op.shape());

    if operands
        .iter()
        .all(|operand| matches!(operand, Operand::Plain(_)))
    {
        return Tensor::from_primitive::<Flex>(output);
    }
    let operands = operands.map(|operand| match operand {
        Operand::Autodiff(tensor) => tensor,
        Operand::Plain(tensor) => Tracked::new(tensor),
    });
    let tracked = operands.each_ref().map(Tracked::is_tracked);
    let nodes = operands.map(|operand| operand.into_parts().1);
    let output = match (Step { op: op.clone() })
        .prepare::<NoCheckpointing>(nodes)
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(step) => step.finish(output),
        OpsKind::Tracked(step) => {
            let (inputs, keep_output) = op.saved_operands(tracked, &saved);
            let mut kept = dense.map(Some);
            for (tensor, keep) in kept.iter_mut().zip(inputs) {
                if !keep {
                    *tensor = None;
                }
            }
            let state = State {
                inputs: kept,
                output: keep_output.then(|| output.clone()),
                shapes,
                saved,
            };
            step.finish(state, output)
        }
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// The same tensor for several consumers, whose gradients are added in a fixed order: pair by pair
/// from the last to the first. Burn's autodiff adds the gradients of several consumers of one
/// tensor in an order that depends on the whole graph; with more than two, the last bits of a run
/// would depend on the rest of the graph.
///
/// ```
/// use burn::tensor::{Device, Tensor};
///
/// let x = Tensor::<2>::ones([1, 2], &Device::default()).autodiff().require_grad();
/// let [a, b, c] = epiphyte_ops::fork(x.clone());
/// let gradients = (a + b * 2.0 + c * 3.0).sum().backward();
/// assert_eq!(x.grad(&gradients).unwrap().to_data().to_vec::<f32>().unwrap(), [6.0, 6.0]);
/// ```
pub fn fork<const N: usize, const D: usize>(x: Tensor<D>) -> [Tensor<D>; N] {
    let mut rest = x;
    std::array::from_fn(|index| match index + 1 == N {
        true => rest.clone(),
        false => split_off(&mut rest),
    })
}

/// The tensor for one more consumer of several whose number is known when the program runs, as
/// [`fork`] hands them out; `rest` is what is left for the others.
pub fn split_off<const D: usize>(rest: &mut Tensor<D>) -> Tensor<D> {
    let own = alias(rest.clone());
    *rest = alias(rest.clone());
    own
}

/// The same values as a recorded step of its own, which passes its gradient on.
fn alias<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    if !uses_fused(&x) || !x.is_autodiff() {
        return x;
    }
    let (Operand::Plain(values), Operand::Autodiff(tracked)) =
        (Operand::from(x.clone().inner()), Operand::from(x))
    else {
        unreachable!("the inner tensor is plain, and the outer is not")
    };
    let node = tracked.into_parts().1;
    let output = match HandOn
        .prepare::<NoCheckpointing>([node])
        .compute_bound()
        .stateful()
    {
        OpsKind::UnTracked(step) => step.finish(values),
        OpsKind::Tracked(step) => step.finish((), values),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// Scalar whose backward pass delivers `gradient` to `x` (a vector-Jacobian product): `Σ x ⊙
/// gradient`. Its value is unused, so on the CPU it is 0.
pub fn pull_back<const D: usize>(x: Tensor<D>, gradient: Tensor<D>) -> Tensor<1> {
    if !uses_fused(&x) || !uses_fused(&gradient) || gradient.is_autodiff() {
        return (x * gradient).sum();
    }
    let Operand::Plain(gradient) = Operand::from(gradient) else {
        unreachable!("it was asked whether the gradient is on a tape")
    };
    apply(PullBack(Gradient(gradient.to_contiguous())), [x.into()])
}

#[derive(Clone, Debug)]
struct PullBack(Gradient);

impl Fused<1> for PullBack {
    type Saved = ();

    fn forward(&self, _inputs: [&[f32]; 1]) -> (Vec<f32>, ()) {
        (vec![0.0], ())
    }

    fn shape(&self) -> Vec<usize> {
        vec![1]
    }

    fn saved_operands(&self, _tracked: Wanted<1>, _saved: &()) -> (Wanted<1>, bool) {
        ([false], false)
    }

    fn backward(
        &self,
        _kept: Kept<'_, 1, ()>,
        _one: Gradient,
        [wanted]: Wanted<1>,
    ) -> [Option<Gradient>; 1] {
        [wanted.then(|| self.0.clone())]
    }
}

#[derive(Clone, Debug)]
struct HandOn;

impl Backward<Flex, 1> for HandOn {
    type State = ();

    fn backward(
        self,
        ops: Ops<(), 1>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        if let [Some(parent)] = &ops.parents {
            gradients.register::<Flex>(parent.id, gradient);
        }
    }
}

/// The state of a recorded step.
#[derive(Clone, Debug)]
struct State<const N: usize, Saved> {
    inputs: [Option<FlexTensor>; N],
    output: Option<FlexTensor>,
    shapes: [Vec<usize>; N],
    saved: Saved,
}

#[derive(Clone, Debug)]
struct Step<Op> {
    op: Op,
}

impl<const N: usize, Op: Fused<N>> Backward<Flex, N> for Step<Op> {
    type State = State<N, Op::Saved>;

    fn backward(
        self,
        ops: Ops<Self::State, N>,
        gradients: &mut Gradients,
        _checkpointer: &mut Checkpointer,
    ) {
        // Dense and as long as its buffer, so that it can be changed in place.
        let gradient = Gradient(gradients.consume::<Flex>(&ops.node).to_contiguous());
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let kept = Kept {
            inputs: ops
                .state
                .inputs
                .each_ref()
                .map(|input| input.as_ref().map_or(&[][..], slice)),
            output: ops.state.output.as_ref().map_or(&[][..], slice),
            saved: &ops.state.saved,
        };
        let results = self.op.backward(kept, gradient, wanted);
        for ((parent, result), shape) in ops.parents.iter().zip(results).zip(ops.state.shapes) {
            if let (Some(parent), Some(Gradient(values))) = (parent, result) {
                gradients.register::<Flex>(parent.id, values.reshape(Shape::from(shape)));
            }
        }
    }
}

/// The values of a dense tensor.
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .expect("operands are dense f32: `apply` made them so")
}

/// A tensor over `values`, which are not copied.
fn flex(values: Vec<f32>, shape: Vec<usize>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, Shape::from(shape)))
}
