//! The subcommands, one file each.

pub(crate) mod compare;
pub(crate) mod convert;
pub(crate) mod data;
pub(crate) mod doctor;
mod dry;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod intrinsic_dimension;
pub(crate) mod merge;
pub(crate) mod methods;
pub(crate) mod plan;
pub(crate) mod predict;
pub(crate) mod prompts;
pub(crate) mod quantize;
pub(crate) mod quickstart;
pub(crate) mod report;
mod shape;
pub(crate) mod shell;
pub(crate) mod train;
pub(crate) mod unmerge;
