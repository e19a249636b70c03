//! Flags with values, by name.

use anyhow::Result;
use epiphyte_ops::Quantization;

/// The arguments of a program.
pub(crate) struct Arguments<'a>(pub(crate) &'a [String]);

impl Arguments<'_> {
    /// What follows a flag.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let at = self.0.iter().position(|argument| argument == name)?;
        self.0.get(at + 1).map(String::as_str)
    }

    /// The number that follows a flag, or the `usual` one.
    ///
    /// # Errors
    /// If it is no number.
    pub(crate) fn number(&self, name: &str, usual: usize) -> Result<usize> {
        Ok(self.value(name).map_or(Ok(usual), str::parse)?)
    }

    /// Whether a flag is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.iter().any(|argument| argument == name)
    }

    /// In which format the base is quantized, by `--quantization`.
    ///
    /// # Errors
    /// If there is no such format.
    pub(crate) fn quantization(&self) -> Result<Option<Quantization>> {
        let name = self.value("--quantization");
        Ok(name.map(str::parse).transpose()?)
    }

    /// Computes with as many threads as `--threads` says.
    ///
    /// # Errors
    /// If it says no number, or the threads run already.
    pub(crate) fn set_threads(&self) -> Result<()> {
        if let Some(threads) = self.value("--threads") {
            epiphyte_ops::set_threads(threads.parse()?)?;
        }
        Ok(())
    }
}
