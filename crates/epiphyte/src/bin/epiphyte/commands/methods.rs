//! `epiphyte methods`.

use std::process::ExitCode;

use anyhow::Result;
use epiphyte::methods::{Definition, METHODS};
use serde::Serialize;

use crate::global::Global;
use crate::output;
use crate::settings::with_default;

/// The result with `--json`.
#[derive(Serialize)]
struct Listing {
    methods: Vec<MethodListing>,
}

/// A method.
#[derive(Serialize)]
struct MethodListing {
    name: &'static str,
    summary: &'static str,
    paper: &'static str,
    peft_type: &'static str,
    in_peft: bool,
    /// The peak learning rate of a run that sets none.
    learning_rate: f64,
    flags: Vec<FlagListing>,
}

/// A flag of a method.
#[derive(Serialize)]
struct FlagListing {
    flag: &'static str,
    key: &'static str,
    help: &'static str,
    default: Option<String>,
}

pub(crate) fn run(global: &Global) -> Result<ExitCode> {
    if global.json {
        output::json(&Listing {
            methods: METHODS.iter().map(listing).collect(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    for (at, method) in METHODS.iter().enumerate() {
        if at > 0 {
            output::print("")?;
        }
        let peft = if method.in_peft {
            " (files are HF PEFT's)"
        } else {
            ""
        };
        output::print(&format!(
            "{}: {}{peft}\n  {}\n  learning rate [default: {}]",
            method.name, method.summary, method.paper, method.learning_rate
        ))?;
        let width = method
            .flags
            .iter()
            .map(|flag| flag.flag.len())
            .max()
            .unwrap_or(0);
        let defaults = (method.defaults)();
        for flag in method.flags {
            let help = with_default(flag, &defaults);
            output::print(&format!("    --{:width$}  {help}", flag.flag))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn listing(method: &Definition) -> MethodListing {
    let defaults = (method.defaults)();
    let flags = method.flags.iter().map(|flag| FlagListing {
        default: flag.default_text(&defaults),
        flag: flag.flag,
        key: flag.key,
        help: flag.help,
    });
    MethodListing {
        name: method.name,
        summary: method.summary,
        paper: method.paper,
        peft_type: method.peft_type,
        in_peft: method.in_peft,
        learning_rate: method.learning_rate,
        flags: flags.collect(),
    }
}
