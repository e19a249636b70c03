//! Training examples for methods that run the data before a stage of training begins.

use epiphyte_data::{Batch, Batches};
use epiphyte_methods::{CalibrationData, Each, Gradients, MethodError, Param};
use epiphyte_models::{Adapter, Model, Tokens};
use epiphyte_ops::Sequences;

use crate::observer::{EvaluationMeter, Observer};
use crate::scoring::evaluate::value;
use crate::scoring::model_input::{ModelInput, targets};

/// The training data in the order of its first epoch, without dropout.
pub(crate) struct TrainingExamples<'a> {
    pub(crate) model: &'a Model,
    pub(crate) batches: &'a Batches,
    pub(crate) observer: &'a mut dyn Observer,
}

impl TrainingExamples<'_> {
    /// Calls `run` with micro-batches of at most `tokens` tokens until `examples` are used up. The
    /// observer hears of each.
    fn each(
        &mut self,
        examples: usize,
        tokens: usize,
        mut run: impl FnMut(&Batch) -> Result<(), MethodError>,
    ) -> Result<(), MethodError> {
        let mut left = examples.min(self.batches.examples().len());
        let mut meter = EvaluationMeter::calibration(self.observer, left);
        for batch in self.batches.epoch(0).batches_from(0) {
            let batch = batch.map_err(|error| MethodError::Calibration(error.to_string()))?;
            for part in batch.micro_batches(tokens) {
                if left < part.examples() {
                    return Ok(());
                }
                left -= part.examples();
                run(&part)?;
                meter.advance(part.examples(), part.tokens());
            }
        }
        Ok(())
    }
}

/// About how many tokens run at once where one result for all is enough.
const TOKENS: usize = 512;

impl CalibrationData for TrainingExamples<'_> {
    fn examples(&self) -> usize {
        self.batches.examples().len()
    }

    fn forward(&mut self, examples: usize, adapter: &dyn Adapter) -> Result<(), MethodError> {
        let model = self.model;
        self.each(examples, TOKENS, |batch| {
            let input = ModelInput::new(model, batch);
            model.hidden(&input.tokens(), adapter);
            Ok(())
        })
    }

    fn forward_text(&mut self, ids: &[u32], adapter: &dyn Adapter) -> Result<(), MethodError> {
        let type_ids = vec![0; ids.len()];
        let tokens = Tokens::new(ids, &type_ids, Sequences::new(vec![0, ids.len()]));
        self.model.hidden(&tokens, adapter);
        Ok(())
    }

    fn gradients(
        &mut self,
        examples: usize,
        each: Each,
        params: &[Param],
        adapter: &dyn Adapter,
        see: &mut dyn FnMut(&Gradients),
    ) -> Result<(), MethodError> {
        let tokens = match each {
            Each::Example => 1,
            Each::Batch => TOKENS,
        };
        let model = self.model;
        // A loss over a batch cannot be taken apart.
        let tokens = match model.compares_examples() {
            true => usize::MAX,
            false => tokens,
        };
        self.each(examples, tokens, |batch| {
            let input = ModelInput::new(model, batch);
            let loss = targets(batch)
                .and_then(|targets| model.loss(&input.tokens(), targets, 0.0, adapter));
            let Some(loss) = loss else { return Ok(()) };
            if !value(loss.mean.clone()).is_finite() {
                let problem = "the loss of a training example is not finite";
                return Err(MethodError::Calibration(problem.to_owned()));
            }
            let mut gradients = Gradients::new();
            gradients.collect(params.iter(), &mut loss.mean.backward());
            see(&gradients);
            Ok(())
        })
    }
}
