//! Comparison of fine-tuning methods.
//!
//! A [`Suite`] names methods, models, tasks and seeds. [`RunSuite`] carries out the runs that these
//! make together and can be stopped at any moment; [`Summary`] has means, intervals and paired
//! tests over them; [`Compared`] puts everything into files, with a report that needs nothing but a
//! browser.
//!
//! What a run cost, and what its method says of itself, is measured where runs are made:
//! [`epiphyte_train::report::account`].

mod budget;
mod check;
mod error;
mod findings;
mod inputs;
mod markdown;
mod output;
mod peft;
mod published;
mod report;
mod result;
mod run;
pub mod statistics;
mod suite;
mod summary;
mod tuning;

pub use budget::{Budget, Choice};
pub use error::CompareError;
pub use output::{Compared, merge_shards, names_of_comparison};
pub use published::Published;
pub use report::run_report;
pub use result::{RunResult, Status};
pub use run::{Carried, RunSuite, Shard, SuiteObserver};
pub use suite::{Configure, Group, Point, Suite};
pub use summary::{Absent, Comparison, Overall, Row, Summary};
