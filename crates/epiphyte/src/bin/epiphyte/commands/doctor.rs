//! `epiphyte doctor`.

use std::process::ExitCode;

use anyhow::Result;
use epiphyte::hub::Hub;
use epiphyte::kernels::{Isa, threads};
use epiphyte::train::memory;
use serde::Serialize;

use crate::device;
use crate::global::Global;
use crate::output;

/// What a report of a fault needs to say about program and machine.
#[derive(Serialize)]
struct Diagnosis {
    /// With the commit, if it was known when the program was built.
    version: &'static str,
    target: &'static str,
    profile: &'static str,
    compiler: &'static str,
    /// Instruction sets that the processor has and the kernels know, weakest first; the last is
    /// used.
    instruction_sets: Vec<String>,
    /// Processors that the process may use.
    processors: Option<usize>,
    /// Threads that compute.
    threads: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_memory_bytes: Option<u64>,
    /// What `--device` takes in this build.
    devices: Vec<Devices>,
    hub_cache: String,
    hub_cache_exists: bool,
    /// Whether models that are not in the cache are downloaded.
    downloads: bool,
    /// Environment variables that change what the program does, and are set.
    environment: Vec<(&'static str, String)>,
}

/// A name that `--device` takes.
#[derive(Serialize)]
struct Devices {
    name: &'static str,
    /// How many there are on this machine.
    found: usize,
}

/// Variables that change what the program does; the token's value is not shown.
const VARIABLES: [&str; 7] = [
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "RAYON_NUM_THREADS",
    "RUST_LOG",
    "NO_COLOR",
];
const TOKEN: &str = "HF_TOKEN";

pub(crate) fn run(global: &Global) -> Result<ExitCode> {
    let hub = Hub::from_env();
    let set = |name: &'static str| Some((name, std::env::var(name).ok()?));
    let token = std::env::var_os(TOKEN).map(|_| (TOKEN, "set".to_owned()));
    let diagnosis = Diagnosis {
        version: env!("EPIPHYTE_VERSION"),
        target: env!("EPIPHYTE_TARGET"),
        profile: env!("EPIPHYTE_PROFILE"),
        compiler: env!("EPIPHYTE_RUSTC"),
        instruction_sets: (Isa::available().iter())
            .map(|isa| format!("{isa:?}").to_lowercase())
            .collect(),
        processors: std::thread::available_parallelism().ok().map(Into::into),
        threads: threads::threads(),
        memory_bytes: memory::total_bytes(),
        available_memory_bytes: memory::available_bytes(),
        devices: (device::found().into_iter())
            .map(|(name, found)| Devices { name, found })
            .collect(),
        hub_cache: hub.cache.display().to_string(),
        hub_cache_exists: hub.cache.is_dir(),
        downloads: cfg!(feature = "hub"),
        environment: VARIABLES.into_iter().filter_map(set).chain(token).collect(),
    };
    match global.json {
        true => output::json(&diagnosis)?,
        false => print(&diagnosis)?,
    }
    // Whether the device that was asked for is there.
    global.device()?;
    Ok(ExitCode::SUCCESS)
}

fn print(diagnosis: &Diagnosis) -> Result<()> {
    let number = |number: usize| number.to_string();
    let unknown = || "unknown".to_owned();
    let devices = diagnosis.devices.iter();
    let devices = devices.map(|it| match it.name {
        device::DEFAULT => it.name.to_owned(),
        name => format!("{name} ({} found)", it.found),
    });
    let memory = match (diagnosis.memory_bytes, diagnosis.available_memory_bytes) {
        (Some(all), Some(free)) => {
            format!("{}, {} available", output::bytes(all), output::bytes(free))
        }
        _ => unknown(),
    };
    let cache = match diagnosis.hub_cache_exists {
        true => diagnosis.hub_cache.clone(),
        false => format!("{} (does not exist)", diagnosis.hub_cache),
    };
    let downloads = match diagnosis.downloads {
        true => "built in",
        false => "not in this build (feature hub)",
    };
    let mut rows = vec![
        ("version", diagnosis.version.to_owned()),
        ("target", diagnosis.target.to_owned()),
        (
            "build",
            format!("{}, {}", diagnosis.profile, diagnosis.compiler),
        ),
        ("instruction sets", diagnosis.instruction_sets.join(", ")),
        (
            "processors",
            diagnosis.processors.map_or_else(unknown, number),
        ),
        ("threads", number(diagnosis.threads)),
        ("memory", memory),
        ("devices", devices.collect::<Vec<String>>().join(", ")),
        ("hub cache", cache),
        ("downloads", downloads.to_owned()),
    ];
    let variables = diagnosis.environment.iter();
    rows.extend(variables.map(|(name, value)| (*name, value.clone())));
    output::pairs(&rows)
}
