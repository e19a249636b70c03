//! The one error type of the crate.

use thiserror::Error;

/// Arguments that a kernel rejects.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelError {
    /// A slice does not have as many elements as its shape says.
    #[error(
        "`{operand}` has {got} elements, but its shape {shape:?} needs {}",
        shape.iter().product::<usize>()
    )]
    Length {
        /// The parameter's name.
        operand: &'static str,
        /// Its shape, outermost dimension first.
        shape: Vec<usize>,
        /// How many elements the caller gave.
        got: usize,
    },
    /// A slice is not a whole number of rows of the width that another operand has.
    #[error("`{operand}` has {got} elements, which is not a whole number of rows of width {width}")]
    Rows {
        /// The parameter's name.
        operand: &'static str,
        /// The width of one row.
        width: usize,
        /// How many elements the caller gave.
        got: usize,
    },
    /// The offsets of sequences do not start at 0, decrease, or do not end at the last token.
    #[error(
        "`{operand}` must start with 0, never fall and end with {tokens}, the number of tokens"
    )]
    Boundaries {
        /// The parameter's name.
        operand: &'static str,
        /// How many tokens there are.
        tokens: usize,
    },
    /// An index is out of range.
    #[error("`{operand}[{position}]` is {index}, but only 0 to {limit} (exclusive) exist")]
    Index {
        /// The parameter's name.
        operand: &'static str,
        /// The position in it.
        position: usize,
        /// The index at this position.
        index: i64,
        /// The first index that is too large.
        limit: usize,
    },
    /// A number is outside the kernel's domain.
    #[error("`{parameter}` is {got}, but must be {allowed}")]
    Parameter {
        /// The parameter's name.
        parameter: &'static str,
        /// The value given.
        got: String,
        /// The allowed values.
        allowed: &'static str,
    },
    /// The thread pool runs already and cannot be resized.
    #[error(
        "{running} threads are already running, so {asked} cannot be set: set the number of \
         threads before anything else runs"
    )]
    ThreadsFixed {
        /// Threads in the running pool.
        running: usize,
        /// The number of threads requested.
        asked: usize,
    },
    /// More threads than the pool may have.
    #[error(
        "{asked} threads are more than the {} that may be started: ask for as many as there are \
         cores",
        crate::threads::MAX_THREADS
    )]
    TooManyThreads {
        /// The number of threads requested.
        asked: usize,
    },
}

impl KernelError {
    /// Checks that `slice`, the parameter called `operand`, fills `shape`.
    pub(crate) fn check_length<T>(
        operand: &'static str,
        slice: &[T],
        shape: &[usize],
    ) -> Result<(), Self> {
        match slice.len() == shape.iter().product::<usize>() {
            true => Ok(()),
            false => Err(Self::Length {
                operand,
                shape: shape.to_vec(),
                got: slice.len(),
            }),
        }
    }

    /// Checks that `slice`, the parameter called `operand`, is a whole number of rows of `width`,
    /// and returns that number.
    pub(crate) fn count_rows<T>(
        operand: &'static str,
        slice: &[T],
        width: usize,
    ) -> Result<usize, Self> {
        match (slice.len(), width) {
            (0, _) => Ok(0),
            (got, width) if width > 0 && got % width == 0 => Ok(got / width),
            (got, width) => Err(Self::Rows {
                operand,
                width,
                got,
            }),
        }
    }
}
