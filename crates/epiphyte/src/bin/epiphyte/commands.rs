//! The subcommands, one file each.

pub(crate) mod data;
pub(crate) mod doctor;
mod dry;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod merge;
pub(crate) mod methods;
pub(crate) mod predict;
pub(crate) mod prompts;
pub(crate) mod quantize;
pub(crate) mod quickstart;
mod shape;
pub(crate) mod shell;
pub(crate) mod train;
