//! The settings of a run: a TOML file overlaid with flags, both checked against the tables of
//! flags.
//!
//! Nothing here knows a single setting. The run's own are in [`RunConfig::FLAGS`], the methods' in
//! [`METHODS`]; a new one becomes a flag and a key of the file by being in its table.

use std::collections::BTreeMap;
use std::num::IntErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Arg, ArgMatches, Command};
use epiphyte::methods::{
    Definition, Flag, FlagKind, METHODS, MethodError, Modules, Settings, by_name,
};
use epiphyte::train::tasks::names as task_names;
use epiphyte::train::tasks::presets::Preset;
use epiphyte::train::{RunConfig, TrainError};
use serde_json::{Map, Value, json};

use crate::failure::UsageError;
use crate::foreign_names;

/// Under which heading `--help` shows a run's flag: from the flag named to the next one named.
const HEADINGS: [(&str, &str); 4] = [
    ("model", "Model, task and data"),
    ("method", "Method"),
    ("epochs", "Training"),
    ("eval-steps", "Evaluation, checkpoints and log"),
];

/// The key of a setting of a run whose default each method declares.
const LEARNING_RATE: &str = "learning_rate";

/// The key of the setting whose values the table of tasks has.
const TASK: &str = "task";

/// What is wrong with `[method]` and its like.
const NO_TABLES: &str = "is a table, but the file has none: a method's settings stand beside \
                         `method = \"lora\"`, as `rank = 8`";

/// The flags of `train` that were given, by name, not yet parsed.
#[derive(Clone, Debug, Default)]
pub(crate) struct GivenFlags(BTreeMap<&'static str, String>);

impl GivenFlags {
    /// The names of the flags.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.keys().copied()
    }

    /// What was given of these flags of a run and of the methods' flags.
    fn of(run: impl Iterator<Item = &'static Flag>, matches: &ArgMatches) -> Self {
        let all = run.chain(method_flags().into_iter().map(|owners| owners[0].1));
        let given =
            all.filter_map(|flag| Some((flag.flag, matches.get_one::<String>(flag.flag)?.clone())));
        Self(given.collect())
    }
}

impl clap::Args for GivenFlags {
    fn augment_args(mut command: Command) -> Command {
        let defaults = serde_json::to_value(RunConfig::default());
        let defaults = defaults.expect("a run is plain values");
        let defaults = defaults.as_object().expect("a run is an object");
        let mut heading = HEADINGS[0].1;
        for flag in RunConfig::FLAGS {
            if let Some((_, next)) = HEADINGS.iter().find(|(first, _)| *first == flag.flag) {
                heading = next;
            }
            command =
                command.arg(argument(flag, with_default(flag, defaults)).help_heading(heading));
        }
        with_method_flags(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for GivenFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self::of(RunConfig::FLAGS.iter(), matches))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The task, the method and its settings, for commands that need nothing else of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct MethodFlags(pub(crate) GivenFlags);

impl MethodFlags {
    /// The flags of a run that belong to it.
    fn of_run() -> impl Iterator<Item = &'static Flag> {
        let flags = RunConfig::FLAGS.iter();
        flags.filter(|flag| flag.flag == "task" || flag.flag == "method")
    }
}

impl clap::Args for MethodFlags {
    fn augment_args(command: Command) -> Command {
        let command = Self::of_run().fold(command, |command, flag| {
            command.arg(argument(flag, flag.help.to_owned()))
        });
        with_method_flags(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for MethodFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self(GivenFlags::of(Self::of_run(), matches)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// Adds the flags of all methods; help shows those of the method on the command line.
fn with_method_flags(command: Command) -> Command {
    let shown = method_of_help(crate::arguments::words());
    method_flags().into_iter().fold(command, |command, owners| {
        let own = shown.and_then(|shown| owners.iter().find(|(it, _)| it.name == shown.name));
        let (flag, help) = match own {
            Some((method, flag)) => (flag, with_default(flag, &(method.defaults)())),
            None => (
                &owners[0].1,
                format!("{}{}", owners[0].1.help, of_owners(&owners)),
            ),
        };
        let argument = argument(flag, help).help_heading("Settings of the method");
        command.arg(argument.hide(shown.is_some() && own.is_none()))
    })
}

/// A flag of a method's, as the method declares it.
type Owned = (&'static Definition, &'static Flag);

/// All methods' flags in the order of the methods: for each, the methods that have it.
fn method_flags() -> Vec<Vec<Owned>> {
    let mut flags: Vec<Vec<Owned>> = Vec::new();
    let all = METHODS
        .iter()
        .flat_map(|method| method.flags.iter().map(move |flag| (method, flag)));
    for (method, flag) in all {
        match flags
            .iter_mut()
            .find(|owners| owners[0].1.flag == flag.flag)
        {
            Some(owners) => owners.push((method, flag)),
            None => flags.push(vec![(method, flag)]),
        }
    }
    flags
}

/// The method whose settings a help text shows: that of `--method`, else the default. None for what
/// is about all methods, as a manual is.
fn method_of_help(mut arguments: impl Iterator<Item = String>) -> Option<&'static Definition> {
    let (mut named, mut asked) = (RunConfig::default().method, false);
    while let Some(argument) = arguments.next() {
        match argument.split_once('=') {
            Some(("--method", name)) => named = name.to_owned(),
            _ if argument == "--method" => named = arguments.next().unwrap_or_default(),
            _ => asked |= argument == "--help" || argument == "-h" || argument == "help",
        }
    }
    let named = by_name(&named).or_else(|_| by_name(&RunConfig::default().method));
    named.ok().filter(|_| asked)
}

/// The help of a flag with its default.
pub(crate) fn with_default(flag: &Flag, defaults: &Map<String, Value>) -> String {
    let default = match flag.key {
        LEARNING_RATE => Some(learning_rate(method_of_help(crate::arguments::words()))),
        _ => flag.default_text(defaults),
    };
    let help = match flag.key {
        TASK => flag.help.replacen(
            "What is learned",
            &format!("Task: {}", task_names().join(", ")),
            1,
        ),
        _ => flag.help.to_owned(),
    };
    match default {
        Some(default) => format!("{help} [default: {default}]"),
        None => help,
    }
}

/// The learning rate of a run that sets none.
fn learning_rate(method: Option<&Definition>) -> String {
    match method {
        Some(method) => format!("{} for {}", method.learning_rate, method.name),
        None => "the method's, see `epiphyte methods`".to_owned(),
    }
}

/// The defaults of a flag in the methods that have it, and the methods.
fn of_owners(owners: &[Owned]) -> String {
    let names: Vec<&str> = owners.iter().map(|(method, _)| method.name).collect();
    let defaults = owners.iter();
    let defaults = defaults.map(|(method, flag)| flag.default_text(&(method.defaults)()));
    let defaults: Vec<Option<String>> = defaults.collect();
    let default = if defaults.iter().all(|default| *default == defaults[0]) {
        defaults[0].clone()
    } else {
        // A text that names methods itself is about all of them.
        let of_all = defaults.iter().flatten();
        let of_all = of_all.filter(|text| names.iter().any(|name| text.contains(name)));
        match of_all.max_by_key(|text| text.len()) {
            Some(text) => Some(text.clone()),
            None => {
                let pairs = names.iter().zip(&defaults);
                let pairs = pairs
                    .filter_map(|(name, default)| Some(format!("{name} {}", default.as_ref()?)));
                Some(pairs.collect::<Vec<String>>().join(", "))
            }
        }
    };
    let default = default.map(|default| format!(" [default: {default}]"));
    format!("{} [{}]", default.unwrap_or_default(), names.join(", "))
}

fn argument(flag: &'static Flag, help: String) -> Arg {
    let argument = Arg::new(flag.flag)
        .long(flag.flag)
        .aliases(flag.aliases)
        .overrides_with(flag.flag)
        .help(help);
    let argument = argument.value_name(match flag.kind {
        FlagKind::Integer => "N",
        FlagKind::Number => "X",
        FlagKind::Switch | FlagKind::Boolean => "true|false",
        FlagKind::Text => "TEXT",
        FlagKind::Texts => "A,B",
        FlagKind::Modules => "NAMES",
        FlagKind::Integers => "N,N",
        FlagKind::Pattern | FlagKind::Table => "NAME=X,..",
    });
    match flag.kind {
        FlagKind::Switch => argument
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        FlagKind::Number | FlagKind::Integer => argument.allow_negative_numbers(true),
        _ => argument,
    }
}

/// A run's configuration, and where each setting that was given stands: a flag, or a key of a file.
#[derive(Clone, Debug)]
pub(crate) struct GivenRun {
    pub(crate) config: RunConfig,
    /// By key; a setting that is not here has its default.
    pub(crate) places: BTreeMap<&'static str, String>,
}

/// The configurations of all runs: what `file` says of all and of each, then what flags say.
pub(crate) fn run_configs(file: Option<&Path>, given: &GivenFlags) -> Result<Vec<GivenRun>> {
    let File { common, runs } = match file {
        Some(path) => read(path)?,
        None => File::default(),
    };
    let runs = if runs.is_empty() {
        vec![Vec::new()]
    } else {
        runs
    };
    let configs = runs.into_iter().map(|own| {
        let flags = given.0.iter().map(|(flag, text)| Entry {
            place: format!("`--{flag}`"),
            name: (*flag).to_owned(),
            value: Value::String(text.clone()),
        });
        run_config(common.iter().cloned().chain(own).chain(flags).collect())
    });
    configs.collect()
}

/// The configuration of a run of tables of settings; later ones override earlier ones.
pub(crate) fn run_of_tables(tables: &[toml::Table]) -> Result<RunConfig> {
    let entries = tables.iter().flatten().map(|(key, value)| {
        let place = format!("key `{key}`");
        match json(value.clone()) {
            Ok(value) => Ok(Entry {
                place,
                name: key.replace('_', "-"),
                value,
            }),
            Err(problem) => Err(UsageError::Value { place, problem }.into()),
        }
    });
    Ok(run_config(entries.collect::<Result<_>>()?)?.config)
}

/// What a data set stands for that is named in the place of a task, in front of what is said
/// otherwise; the directory that is given as its data becomes its files.
fn with_preset(entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let said = |key: &str| {
        entries
            .iter()
            .rposition(|entry| entry.name.replace('-', "_") == key)
    };
    let text = |at: usize| entries[at].value.as_str();
    let preset = said("task").and_then(|at| Some((at, Preset::named(text(at)?)?)));
    let Some((at, preset)) = preset else {
        return Ok(entries);
    };
    let place = entries[at].place.clone();
    let entry = |name: &str, value: Value| Entry {
        place: place.clone(),
        name: name.replace('_', "-"),
        value,
    };
    let settings = preset.settings().into_iter();
    let mut all: Vec<Entry> = settings.map(|(key, value)| entry(&key, value)).collect();
    let mut has_evaluation = said("eval_data").is_some();
    let directory = said("train_data").and_then(|at| Some((at, PathBuf::from(text(at)?))));
    let directory = directory.filter(|(_, path)| path.is_dir());
    let (mut others, file) = (entries.clone(), |path: PathBuf| json!(path));
    if let Some((at, directory)) = directory {
        let train = preset
            .train_file(&directory)
            .ok_or_else(|| UsageError::Value {
                place: others[at].place.clone(),
                problem: format!(
                    "`{}` has no {}, the training data of {}: name the file",
                    directory.display(),
                    preset.train.join(" or "),
                    preset.name
                ),
            })?;
        others[at].value = file(train);
        if let Some(eval) = preset.eval_file(&directory).filter(|_| !has_evaluation) {
            all.push(entry("eval_data", file(eval)));
            has_evaluation = true;
        }
    }
    if has_evaluation {
        all.push(entry("metric_for_best_model", json!(preset.metric)));
    }
    others.retain(|other| other.name != "task");
    all.extend(others);
    Ok(all)
}

/// The configuration of one run; what is said later overrides what is said earlier.
fn run_config(entries: Vec<Entry>) -> Result<GivenRun> {
    let entries = with_preset(entries)?;
    let said = entries.iter().rev().find(|entry| entry.name == "method");
    let name = said.and_then(|entry| entry.value.as_str().map(str::to_owned));
    let method = by_name(&name.unwrap_or_else(|| RunConfig::default().method))?;

    let (mut settings, mut places) = (Map::new(), BTreeMap::new());
    for Entry { place, name, value } in entries {
        let is_called = |flag: &&Flag| flag.is_called(&name);
        let own = RunConfig::FLAGS.iter().find(is_called);
        let Some(flag) = own.or_else(|| method.flags.iter().find(is_called)) else {
            let owners: Vec<&str> = METHODS
                .iter()
                .filter(|other| other.flags.iter().any(|flag| is_called(&flag)))
                .map(|other| other.name)
                .collect();
            if owners.is_empty() && value.is_object() {
                let problem = NO_TABLES.to_owned();
                return Err(UsageError::Value { place, problem }.into());
            }
            if owners.is_empty() {
                let advice = advice(&name);
                return Err(UsageError::UnknownKey { place, advice }.into());
            }
            let (owners, method) = (owners.join(", "), method.name.to_owned());
            let advice = foreign_names::advice(&name);
            return Err(UsageError::OtherMethod {
                place,
                owners,
                method,
                advice,
            }
            .into());
        };
        match convert(flag.kind, value) {
            Ok(value) => settings.insert(flag.key.to_owned(), value),
            Err(problem) => return Err(UsageError::Value { place, problem }.into()),
        };
        places.insert(flag.key, place);
    }
    let at = |key: &str, problem: String| match places.get(key) {
        Some(place) => UsageError::Value {
            place: place.clone(),
            problem,
        },
        None => UsageError::Other(format!("`{key}`: {problem}")),
    };
    let run = RunConfig::parse(&settings).map_err(|error| match error {
        TrainError::Setting { key, problem } => at(&key, problem).into(),
        other => anyhow::Error::from(other),
    })?;
    let configured = method.configure(run.method_settings.clone());
    configured.map_err(|error| match error {
        MethodError::Setting { key, problem, .. } => at(&key, problem).into(),
        MethodError::Value {
            key,
            value,
            expected,
            ..
        } => at(key, format!("it is {value}, but {expected}")).into(),
        other => anyhow::Error::from(other),
    })?;
    Ok(GivenRun {
        config: run,
        places,
    })
}

/// What to do about a name that no setting has: what another program's name is here, else the most
/// similar name.
fn advice(name: &str) -> String {
    let methods = METHODS.iter().flat_map(|method| method.flags);
    let known = RunConfig::FLAGS.iter().chain(methods).map(|flag| flag.flag);
    let similar = || epiphyte::data::nearest_name(name, known);
    foreign_names::advice(name)
        .or_else(|| Some(format!("did you mean `{}`?", similar()?.replace('-', "_"))))
        .unwrap_or_else(|| {
            "`epiphyte train --help` and `epiphyte methods NAME` list all of them as flags"
                .to_owned()
        })
}

/// What a file says.
#[derive(Debug, Default)]
struct File {
    /// Of all runs.
    common: Vec<Entry>,
    /// Of each run, under `[[runs]]`.
    runs: Vec<Vec<Entry>>,
}

/// One setting as somebody said it.
#[derive(Clone, Debug)]
struct Entry {
    /// Flag, or key and file, for messages.
    place: String,
    /// With dashes, as the flag.
    name: String,
    value: Value,
}

/// The keys of a TOML file.
fn read(path: &Path) -> Result<File> {
    let text = epiphyte::io::read_text(path);
    let text = text.with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut table: toml::Table = toml::from_str(&text).map_err(|error| UsageError::Value {
        place: format!("`{}`", path.display()),
        problem: error.to_string(),
    })?;
    let entries = |table: toml::Table| -> Result<Vec<Entry>> {
        let entries = table.into_iter().map(|(key, value)| {
            let place = format!("key `{key}` in `{}`", path.display());
            match json(value) {
                Ok(value) => Ok(Entry {
                    place,
                    name: key.replace('_', "-"),
                    value,
                }),
                Err(problem) => Err(UsageError::Value { place, problem }.into()),
            }
        });
        entries.collect()
    };
    let runs = match table.remove("runs") {
        Some(runs) => runs
            .try_into::<Vec<toml::Table>>()
            .map_err(|error| UsageError::Value {
                place: format!("`runs` in `{}`", path.display()),
                problem: format!("each run is a table under `[[runs]]`: {error}"),
            })?,
        None => Vec::new(),
    };
    Ok(File {
        common: entries(table)?,
        runs: runs.into_iter().map(entries).collect::<Result<_>>()?,
    })
}

/// A value of TOML as one of JSON, which has no `nan` and no `inf`.
fn json(value: toml::Value) -> Result<Value, String> {
    Ok(match value {
        toml::Value::Float(number) if !number.is_finite() => {
            return Err(format!("`{number}` is not finite"));
        }
        toml::Value::Array(items) => items.into_iter().map(json).collect::<Result<_, _>>()?,
        toml::Value::Table(table) => {
            let members = table
                .into_iter()
                .map(|(key, value)| Ok((key, json(value)?)));
            Value::Object(members.collect::<Result<_, String>>()?)
        }
        plain => serde_json::to_value(plain).expect("TOML values are JSON values"),
    })
}

/// A value as its key takes it. Text is read as a flag's; other values come from a file and must be
/// of the right type already.
fn convert(kind: FlagKind, value: Value) -> Result<Value, String> {
    if let Value::String(text) = &value {
        return parse(kind, text);
    }
    if value.is_object() && !matches!(kind, FlagKind::Pattern | FlagKind::Table) {
        return Err(NO_TABLES.to_owned());
    }
    let (fits, expected) = match kind {
        FlagKind::Integer => (value.is_i64() || value.is_u64(), "a whole number"),
        FlagKind::Number => (value.is_number(), "a number"),
        FlagKind::Switch | FlagKind::Boolean => (value.is_boolean(), "true or false"),
        FlagKind::Text => (!value.is_array() && !value.is_object(), "a text"),
        FlagKind::Texts | FlagKind::Modules => {
            (is_list(&value, Value::is_string), "a list of texts")
        }
        FlagKind::Integers => (is_list(&value, Value::is_u64), "a list of whole numbers"),
        FlagKind::Pattern => (
            value
                .as_object()
                .is_some_and(|pattern| pattern.values().all(Value::is_number)),
            "a table of numbers",
        ),
        FlagKind::Table => (value.is_object(), "a table"),
    };
    if fits {
        Ok(value)
    } else {
        Err(format!("{value} is not {expected}"))
    }
}

fn is_list(value: &Value, of: fn(&Value) -> bool) -> bool {
    value.as_array().is_some_and(|items| items.iter().all(of))
}

/// The value of a flag's text.
fn parse(kind: FlagKind, text: &str) -> Result<Value, String> {
    let items = || text.split(',').map(str::trim);
    match kind {
        FlagKind::Integer => integer(text),
        FlagKind::Number => number(text),
        FlagKind::Switch | FlagKind::Boolean => text
            .parse::<bool>()
            .map(Value::from)
            .map_err(|_| format!("`{text}` is neither true nor false")),
        FlagKind::Text => Ok(Value::from(text)),
        FlagKind::Texts => Ok(items().collect()),
        FlagKind::Modules => {
            Ok(serde_json::to_value(Modules::parse(text)).expect("module names are plain values"))
        }
        FlagKind::Integers => items().map(integer).collect(),
        FlagKind::Pattern | FlagKind::Table => {
            let pairs = items().map(|pair| {
                let (name, value) = pair
                    .rsplit_once('=')
                    .ok_or_else(|| format!("`{pair}` is not of the form name=number"))?;
                let (name, value) = (name.trim().to_owned(), value.trim());
                match (kind, number(value)) {
                    (FlagKind::Table, Err(_)) => Ok((name, Value::from(value))),
                    (_, number) => Ok((name, number?)),
                }
            });
            pairs
                .collect::<Result<Map<_, _>, String>>()
                .map(Value::Object)
        }
    }
}

fn integer(text: &str) -> Result<Value, String> {
    text.parse::<i64>().map(Value::from).map_err(|error| {
        let problem = match error.kind() {
            IntErrorKind::PosOverflow => "is too large",
            IntErrorKind::NegOverflow => "is too small",
            _ => "is not a whole number",
        };
        format!("`{text}` {problem}")
    })
}

fn number(text: &str) -> Result<Value, String> {
    let value: f64 = text
        .parse()
        .map_err(|_| format!("`{text}` is not a number"))?;
    integer(text).or_else(|_| {
        serde_json::Number::from_f64(value)
            .map(Value::Number)
            .ok_or_else(|| format!("`{text}` is not finite"))
    })
}
