//! Running the training data before or between the stages of training.

use epiphyte_models::Adapter;

use crate::MethodError;
use crate::framework::gradients::Gradients;
use crate::framework::parameters::Param;

/// Training examples that a method may run before a stage begins: for Fisher information,
/// activation statistics, gradients at initialization.
///
/// Declared here and implemented by the trainer. Examples are drawn from the training data in an
/// order that follows from the run's seed; dropout is off.
pub trait CalibrationData {
    /// The number of training examples.
    fn examples(&self) -> usize;

    /// Runs the first `examples` of them forward through the base with `adapter`.
    ///
    /// # Errors
    /// If a batch cannot be made.
    fn forward(&mut self, examples: usize, adapter: &dyn Adapter) -> Result<(), MethodError>;

    /// Runs a text through the base with `adapter`, given as token ids.
    ///
    /// # Errors
    /// If the model cannot read it.
    fn forward_text(&mut self, ids: &[u32], adapter: &dyn Adapter) -> Result<(), MethodError>;

    /// Runs the first `examples` of them forward and backward and calls `see` with the gradients of
    /// `params`: once for each example, of its loss; or once for each batch, of its mean loss.
    ///
    /// # Errors
    /// If a batch cannot be made, or a loss is not finite.
    fn gradients(
        &mut self,
        examples: usize,
        each: Each,
        params: &[Param],
        adapter: &dyn Adapter,
        see: &mut dyn FnMut(&Gradients),
    ) -> Result<(), MethodError>;
}

/// What one gradient is taken of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Each {
    /// The loss of one example.
    Example,
    /// The mean loss of a batch.
    Batch,
}
