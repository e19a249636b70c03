//! A suite: methods, models, tasks and seeds, and the runs that these make together.
//!
//! ```toml
//! title = "Two methods on two tasks"
//! baseline = "lora"
//! seeds = [0, 1, 2]
//!
//! [settings]                  # of every run
//! epochs = 3
//!
//! [[models]]
//! name = "bert"
//! model = "bert-base-uncased"
//!
//! [[tasks]]
//! name = "rte"
//! score = "accuracy"
//! tuning_eval_data = "dev.tsv" # what settings are chosen by; the evaluation data if not said
//! task = "glue/rte"
//! train_data = "glue/RTE"
//!
//! [[methods]]
//! method = "lora"
//! name = "lora, rank 4"
//! rank = 4
//! grid.learning_rate = [1e-4, 1e-3]
//!
//! [[methods]]
//! method = "*"                # every other method that there is
//!
//! use_examples = true         # its first example's settings where its defaults do not fit a model
//!
//! [tuning]                    # the same choice of learning rates for every method
//! learning_rate_factors = [0.3, 1, 3]
//! seed = 100
//! task = "rte"                # choose on one task for all; on each for itself if not said
//! halving = 3                 # successive halving: a third goes on, with three times the steps
//! ```
//!
//! Keys of `[settings]`, models, tasks and methods are those of a run's file; what stands further
//! down in this list overrides what stands before it. Where a method has several points to choose
//! from, each is run once with the seed of `[tuning]`, and the best is run with every seed.
//!
//! Points are every combination of a method's `grid` with the learning rates, or, with
//! `draws = 8`, as many drawn at random: values of the grid, and learning rates between the ends of
//! `learning_rate_factors`, uniform in their logarithm. With `halving`, all points are tried with a
//! part of `max_steps`, and the best of them with more, the last with all (Jamieson and Talwalkar
//! 2016). What each method's search took is in the report.

use std::collections::{BTreeMap, BTreeSet};

use epiphyte_methods::{Definition, METHODS, by_name};
use epiphyte_ops::random;
use epiphyte_train::RunConfig;
use epiphyte_train::training::early_stopping::Selection;
use serde::Deserialize;
use toml::{Table, Value};

use crate::CompareError;
use crate::run::Shard;

/// What turns settings into a run: later tables override earlier ones.
pub type Configure<'a> = dyn Fn(&[Table]) -> Result<RunConfig, String> + 'a;

/// A suite that was read.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Its name: that of its file, or of one that ships.
    pub name: String,
    /// What it compares, in a line.
    pub title: String,
    /// What should be known of it.
    pub about: String,
    /// The name of the method with which the others are compared.
    pub baseline: String,
    /// The seeds of every method's runs.
    pub seeds: Vec<u64>,
    /// The task on which settings are chosen for all of them; each for itself if none.
    pub tuning_task: Option<String>,
    /// The runs of one method for one task on one model each.
    pub groups: Vec<Group>,
    /// The file's text.
    pub text: String,
}

/// The runs of a method for a task on a model.
#[derive(Clone, Debug)]
pub struct Group {
    /// The model's name.
    pub model: String,
    /// The task's name.
    pub task: String,
    /// The method's name in this suite, which may have settings of its own.
    pub name: String,
    /// The method.
    pub method: String,
    /// The score that counts.
    pub score: String,
    /// What is chosen from.
    pub points: Vec<Point>,
    /// Which part of the points goes on from one trial to the next: one in this many.
    pub halving: usize,
}

impl Group {
    /// The number of points in each round of trials.
    pub(crate) fn rounds(&self) -> Vec<usize> {
        let rounds = self.points.first().map_or(0, |point| point.trials.len());
        let points = |round: u32| self.points.len().div_ceil(self.halving.pow(round));
        (0..rounds as u32).map(points).collect()
    }

    /// What the choice of settings takes: runs, and optimizer steps where `max_steps` says them.
    pub fn tuning_budget(&self) -> (usize, Option<u64>) {
        let rounds = self.rounds();
        let steps = rounds.iter().enumerate().map(|(round, &points)| {
            let steps = self.points[0].trials[round].max_steps?;
            Some(steps * points as u64)
        });
        (rounds.iter().sum(), steps.sum())
    }

    /// Whether more of the score is better.
    pub fn greater_is_better(&self) -> bool {
        Selection::by(&self.score).greater_is_better
    }
}

/// Settings that a method is tried with.
#[derive(Clone, Debug)]
pub struct Point {
    /// What tells it apart, such as `learning_rate 0.001`; empty if there is no choice.
    pub name: String,
    /// The run of each seed, without its output directory.
    pub runs: BTreeMap<u64, RunConfig>,
    /// The run of each seed with the settings of the method's example, which takes the place of
    /// one whose defaults do not fit the model; none if the suite does not ask for it.
    pub examples: BTreeMap<u64, RunConfig>,
    /// The runs by which it is chosen, the last with all steps; none if there is no choice.
    pub trials: Vec<RunConfig>,
}

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    title: String,
    #[serde(default)]
    about: String,
    baseline: Option<String>,
    seeds: Vec<u64>,
    #[serde(default)]
    settings: Table,
    models: Vec<Model>,
    tasks: Vec<Task>,
    methods: Vec<Method>,
    tuning: Option<Tuning>,
}

#[derive(Deserialize)]
struct Model {
    name: String,
    #[serde(flatten)]
    settings: Table,
}

#[derive(Deserialize)]
struct Task {
    name: String,
    score: String,
    /// The models that it is for; all if none is named.
    #[serde(default)]
    models: Vec<String>,
    /// What settings are chosen by, in the place of the evaluation data.
    tuning_eval_data: Option<String>,
    #[serde(flatten)]
    settings: Table,
}

#[derive(Clone, Deserialize)]
struct Method {
    method: String,
    name: Option<String>,
    #[serde(default)]
    grid: BTreeMap<String, Vec<Value>>,
    #[serde(default)]
    use_examples: bool,
    #[serde(flatten)]
    settings: Table,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tuning {
    #[serde(default)]
    learning_rate_factors: Vec<f64>,
    #[serde(default)]
    seed: u64,
    task: Option<String>,
    draws: Option<usize>,
    halving: Option<usize>,
}

/// The most settings that a method is tried with: far more would fill the memory before the first
/// run.
const MOST_POINTS: usize = 10_000;

/// The most bytes of a name, which becomes the name of a directory.
const MOST_BYTES: usize = 100;

/// The largest seed: TOML has no larger integers.
const MOST_SEED: u64 = i64::MAX as u64;

impl Tuning {
    /// What is wrong with it, if anything is.
    fn problem(&self) -> Option<String> {
        let factors = &self.learning_rate_factors;
        let is_wrong = |factor: &f64| !(*factor > 0.0 && factor.is_finite());
        if factors.iter().any(is_wrong) {
            return Some("`learning_rate_factors` must be greater than 0".to_owned());
        }
        match (self.draws, self.halving) {
            (Some(0), _) => Some("`tuning.draws` must be at least 1".to_owned()),
            (Some(draws), _) if draws > MOST_POINTS => Some(format!(
                "`tuning.draws` is {draws}: give at most {MOST_POINTS}"
            )),
            (_, Some(0 | 1)) => {
                Some("`tuning.halving` must be at least 2: one in two goes on".to_owned())
            }
            _ => first_twice(factors)
                .map(|factor| format!("`learning_rate_factors` has {factor} twice: leave one out")),
        }
    }
}

/// The first of these that is equal to one before it.
fn first_twice<T: PartialEq>(items: &[T]) -> Option<&T> {
    let mut numbered = items.iter().enumerate();
    let twice = numbered.find(|(at, item)| items[..*at].contains(item));
    twice.map(|(_, item)| item)
}

/// What is wrong with the names of `models`, `tasks` or `methods`, if anything is.
fn problem_of_names(what: &str, names: &[String]) -> Option<String> {
    if names.iter().any(|name| name.trim().is_empty()) {
        return Some(format!(
            "one of the {what} has an empty `name`: give it one"
        ));
    }
    if let Some(name) = names.iter().find(|name| name.len() > MOST_BYTES) {
        let (length, start): (usize, String) = (name.len(), name.chars().take(20).collect());
        return Some(format!(
            "a name of the {what} has {length} bytes, but becomes that of a directory: give `{start}...` one of at \
             most {MOST_BYTES}"
        ));
    }
    let twice = first_twice(names)?;
    Some(format!(
        "two {what} are called `{twice}`: give each its own `name`"
    ))
}

impl Suite {
    /// Reads a suite. In texts that begin with `$name`, that is replaced by what `places` says;
    /// `$seed` anywhere in a text is the run's seed.
    ///
    /// # Errors
    /// [`CompareError::Suite`] with what is wrong with the file.
    pub fn parse(
        name: &str,
        text: &str,
        places: &BTreeMap<&str, String>,
        configure: &Configure<'_>,
    ) -> Result<Self, CompareError> {
        let wrong = |problem: String| CompareError::Suite {
            name: name.to_owned(),
            problem,
        };
        let mut file: File = toml::from_str(text).map_err(|error| wrong(error.to_string()))?;
        for (key, length) in [
            ("seeds", file.seeds.len()),
            ("models", file.models.len()),
            ("tasks", file.tasks.len()),
            ("methods", file.methods.len()),
        ] {
            if length == 0 {
                return Err(wrong(format!("`{key}` is empty: name at least one")));
            }
        }
        let tunes = file.tuning.is_some();
        let tuning = file.tuning.take().unwrap_or_default();
        if let Some(problem) = tuning.problem() {
            return Err(wrong(problem));
        }
        file.methods = with_all_others(file.methods);
        let names: Vec<String> = file.methods.iter().map(Method::name).collect();
        let models: Vec<String> = file.models.iter().map(|it| it.name.clone()).collect();
        let tasks: Vec<String> = file.tasks.iter().map(|it| it.name.clone()).collect();
        for (what, names) in [("models", &models), ("tasks", &tasks), ("methods", &names)] {
            if let Some(problem) = problem_of_names(what, names) {
                return Err(wrong(problem));
            }
        }
        if let Some(seed) = first_twice(&file.seeds) {
            return Err(wrong(format!(
                "`seeds` has {seed} twice: leave one out, the same seed gives the same run"
            )));
        }
        let mut seeds = file.seeds.iter().copied().chain([tuning.seed]);
        let too_large = seeds.find(|seed| *seed > MOST_SEED);
        if let Some(seed) = too_large {
            return Err(wrong(format!(
                "the seed {seed} is too large: give one of at most {MOST_SEED}"
            )));
        }
        let baseline = file.baseline.clone().unwrap_or_else(|| names[0].clone());
        if !names.contains(&baseline) {
            let names = names.join(", ");
            let problem = format!("`baseline` is `{baseline}`, which is none of {names}");
            return Err(wrong(problem));
        }
        for task in &file.tasks {
            let is_model = |name: &&String| file.models.iter().any(|model| model.name == **name);
            if let Some(other) = task.models.iter().find(|name| !is_model(name)) {
                let problem = format!("task `{}` names model `{other}`, which is none", task.name);
                return Err(wrong(problem));
            }
        }
        let is_task = |name: &&String| file.tasks.iter().any(|task| task.name == **name);
        if let Some(other) = tuning.task.iter().find(|name| !is_task(name)) {
            return Err(wrong(format!(
                "`tuning.task` is `{other}`, which is none of the tasks"
            )));
        }
        let mut groups = Vec::new();
        for model in &file.models {
            let is_for = |task: &&Task| task.models.is_empty() || task.models.contains(&model.name);
            for task in file.tasks.iter().filter(is_for) {
                for method in &file.methods {
                    let layers = [
                        file.settings.clone(),
                        model.settings.clone(),
                        task.settings.clone(),
                        method.own_settings(),
                    ];
                    let group = Group {
                        model: model.name.clone(),
                        task: task.name.clone(),
                        name: method.name(),
                        method: method.method.clone(),
                        score: task.score.clone(),
                        points: Vec::new(),
                        halving: tuning.halving.unwrap_or(1),
                    };
                    let context = Context {
                        layers: &layers,
                        seeds: &file.seeds,
                        tuning: &tuning,
                        tuning_eval_data: task.tuning_eval_data.as_deref(),
                        places,
                        configure,
                    };
                    let points = method.points(&context).map_err(|problem| {
                        let (model, task, name) = (&group.model, &group.task, &group.name);
                        wrong(format!("{model}, {task}, {name}: {problem}"))
                    })?;
                    groups.push(Group { points, ..group });
                }
            }
        }
        let is_choice = |group: &Group| group.points.len() > 1;
        if tunes && tuning.learning_rate_factors.is_empty() && !groups.iter().any(is_choice) {
            let problem = "`[tuning]` has nothing to choose from: give it `learning_rate_factors`, or a method a \
                           `grid`, or leave it out";
            return Err(wrong(problem.to_owned()));
        }
        Ok(Self {
            name: name.to_owned(),
            title: Some(file.title)
                .filter(|it| !it.is_empty())
                .unwrap_or_else(|| name.to_owned()),
            about: file.about,
            baseline,
            seeds: file.seeds,
            tuning_task: tuning.task,
            groups,
            text: text.to_owned(),
        })
    }

    /// The groups of a shard, or all. A method's runs on a model are of one shard, because some
    /// choose the settings of others.
    pub fn of_shard(&self, shard: Option<Shard>) -> Vec<&Group> {
        let mut methods: Vec<(&str, &str)> = Vec::new();
        let mut groups: Vec<&Group> = Vec::new();
        for group in &self.groups {
            let method = (&group.model[..], &group.name[..]);
            let at = methods.iter().position(|other| *other == method);
            let at = at.unwrap_or(methods.len());
            if at == methods.len() {
                methods.push(method);
            }
            if shard.is_none_or(|shard| shard.has(at)) {
                groups.push(group);
            }
        }
        groups
    }

    /// The number of runs, if every method applies everywhere.
    pub fn runs(&self) -> usize {
        self.groups.iter().map(|group| self.runs_of(group)).sum()
    }

    /// The number of a group's runs.
    pub fn runs_of(&self, group: &Group) -> usize {
        let trials = match self.is_chosen_at(group) {
            true => group.tuning_budget().0,
            false => 0,
        };
        trials + self.seeds.len()
    }

    /// Whether a group has trials of its own, and not settings that were chosen on another task.
    pub fn is_chosen_at(&self, group: &Group) -> bool {
        let task = self.tuning_task.as_ref();
        task.is_none_or(|task| *task == group.task)
    }

    /// The group whose trials choose the settings of `group`.
    pub(crate) fn chooser<'a>(&'a self, group: &'a Group) -> &'a Group {
        let Some(task) = &self.tuning_task else {
            return group;
        };
        let is_it = |other: &&Group| {
            other.task == *task && other.model == group.model && other.name == group.name
        };
        self.groups.iter().find(is_it).unwrap_or(group)
    }
}

/// The methods, with every registered one that is not named in the place of `*`.
fn with_all_others(methods: Vec<Method>) -> Vec<Method> {
    let named: Vec<String> = methods.iter().map(|method| method.method.clone()).collect();
    let mut all = Vec::new();
    for method in methods {
        match method.method.as_str() {
            "*" => {
                let others = METHODS.iter().map(|other| other.name);
                let others = others.filter(|other| !named.iter().any(|name| name == other));
                all.extend(others.map(|other| Method {
                    method: other.to_owned(),
                    name: None,
                    ..method.clone()
                }));
            }
            _ => all.push(method),
        }
    }
    all
}

/// The first example of a method that a suite's file could have.
fn example(method: &Definition) -> Result<Table, String> {
    let is_flag = |key: &String| method.flags.iter().any(|flag| flag.is_called(key));
    let examples = (method.examples)().into_iter();
    let examples = examples.map(|example| Table::try_from(example).map_err(|it| it.to_string()));
    let examples = examples.collect::<Result<Vec<Table>, String>>()?;
    let mut sayable = examples.into_iter().filter(|it| it.keys().all(is_flag));
    Ok(sayable.next().unwrap_or_default())
}

/// What the runs of a method are made of.
struct Context<'a> {
    /// Settings, from general to special.
    layers: &'a [Table],
    seeds: &'a [u64],
    tuning: &'a Tuning,
    tuning_eval_data: Option<&'a str>,
    places: &'a BTreeMap<&'a str, String>,
    configure: &'a Configure<'a>,
}

impl Context<'_> {
    /// The run of these settings, on top of the others, with a seed.
    fn run(&self, own: &Table, seed: u64) -> Result<RunConfig, String> {
        let of_seed = Table::from_iter([("seed".to_owned(), Value::Integer(seed as i64))]);
        let layers = self.layers.iter().chain([own, &of_seed]);
        let layers = layers.map(|table| replaced_in(table, self.places, seed));
        let layers = layers.collect::<Result<Vec<Table>, String>>()?;
        (self.configure)(&layers)
    }

    /// The settings with the learning rate that these have, times a factor.
    fn with_rate(&self, table: &Table, factor: f64) -> Result<Table, String> {
        let run = self.run(table, self.tuning.seed)?;
        let rate = run.peak_learning_rate().expect("the method is registered");
        // As a person would write it.
        let rate = format!("{:.2e}", rate * factor).parse();
        let rate: f64 = rate.expect("a number that was printed");
        let mut table = table.clone();
        table.insert(LEARNING_RATE.to_owned(), Value::Float(rate));
        Ok(table)
    }

    /// The runs by which these settings are chosen among `points`.
    fn trials(&self, own: &Table, points: usize) -> Result<Vec<RunConfig>, String> {
        let mut own = own.clone();
        if let Some(data) = self.tuning_eval_data {
            own.insert("eval_data".to_owned(), Value::String(data.to_owned()));
        }
        let whole = self.run(&own, self.tuning.seed)?;
        let Some(halving) = self.tuning.halving else {
            return Ok(vec![whole]);
        };
        let Some(steps) = whole.max_steps else {
            let problem =
                "`tuning.halving` needs `max_steps`, of which the first trials have a part";
            return Err(problem.to_owned());
        };
        let mut rounds = vec![whole.clone()];
        let mut part = 1;
        while points > halving.pow(rounds.len() as u32) {
            part *= halving as u64;
            rounds.push(RunConfig {
                max_steps: Some((steps / part).max(1)),
                ..whole.clone()
            });
        }
        rounds.reverse();
        Ok(rounds)
    }
}

impl Method {
    /// The name in the suite.
    fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.method.clone())
    }

    /// The settings that make it this method.
    fn own_settings(&self) -> Table {
        let mut settings = self.settings.clone();
        settings.insert("method".to_owned(), Value::String(self.method.clone()));
        settings
    }

    /// What is chosen from.
    fn points(&self, context: &Context<'_>) -> Result<Vec<Point>, String> {
        let method = by_name(&self.method).map_err(|error| error.to_string())?;
        self.check_grid(context.tuning)?;
        let settings = match context.tuning.draws {
            None => self.combinations(context)?,
            Some(draws) => self.draws(draws, context)?,
        };
        let example = match self.use_examples {
            true => example(method)?,
            false => Table::new(),
        };
        let of_seeds = |table: &Table| -> Result<BTreeMap<u64, RunConfig>, String> {
            let seeds = context.seeds.iter();
            seeds
                .map(|&seed| Ok((seed, context.run(table, seed)?)))
                .collect()
        };
        let points = settings.iter().map(|table| {
            let mut with_example = example.clone();
            with_example.extend(table.clone());
            Ok(Point {
                name: point_name(table),
                runs: of_seeds(table)?,
                examples: match example.is_empty() {
                    true => BTreeMap::new(),
                    false => of_seeds(&with_example)?,
                },
                trials: match settings.len() {
                    1 => Vec::new(),
                    points => context.trials(table, points)?,
                },
            })
        });
        points.collect()
    }

    /// Checks that the grid's values are there, differ, and do not make too many combinations.
    fn check_grid(&self, tuning: &Tuning) -> Result<(), String> {
        for (key, values) in &self.grid {
            if values.is_empty() {
                return Err(format!("`grid.{key}` is empty: name its values"));
            }
            if let Some(value) = first_twice(values) {
                return Err(format!("`grid.{key}` has {value} twice: leave one out"));
            }
        }
        let factors = match self.grid.contains_key(LEARNING_RATE) {
            true => 1,
            false => tuning.learning_rate_factors.len().max(1),
        };
        let lengths = self.grid.values().map(Vec::len);
        let combinations = lengths.fold(factors, usize::saturating_mul);
        if tuning.draws.is_none() && combinations > MOST_POINTS {
            return Err(format!(
                "its grid and learning rates have {combinations} combinations: leave some out until there are at \
                 most {MOST_POINTS}, or draw some with `tuning.draws`"
            ));
        }
        Ok(())
    }

    /// Every combination of the grid's values, with every learning rate where the grid says none.
    fn combinations(&self, context: &Context<'_>) -> Result<Vec<Table>, String> {
        let mut settings = vec![Table::new()];
        for (key, values) in &self.grid {
            let with = |table: &Table| {
                let table = table.clone();
                values.iter().map(move |value| {
                    let mut table = table.clone();
                    table.insert(key.clone(), value.clone());
                    table
                })
            };
            settings = settings.iter().flat_map(with).collect();
        }
        let factors = &context.tuning.learning_rate_factors;
        if factors.is_empty() || self.grid.contains_key(LEARNING_RATE) {
            return Ok(settings);
        }
        let mut with_rates = Vec::new();
        for table in &settings {
            for factor in factors {
                with_rates.push(context.with_rate(table, *factor)?);
            }
        }
        let names: Vec<String> = with_rates.iter().map(point_name).collect();
        match first_twice(&names) {
            None => Ok(with_rates),
            Some(name) => Err(format!(
                "two of `learning_rate_factors` give `{name}`, because learning rates have three digits: leave one out"
            )),
        }
    }

    /// Settings drawn at random: each value of the grid, and the learning rate's logarithm, with
    /// equal probability. Every method has the same draws of its learning rate's factor. What is
    /// drawn twice is tried once.
    fn draws(&self, draws: usize, context: &Context<'_>) -> Result<Vec<Table>, String> {
        let factors = &context.tuning.learning_rate_factors;
        let ends = factors.iter().copied().reduce(f64::min);
        let ends = ends.zip(factors.iter().copied().reduce(f64::max));
        let ends = ends.filter(|_| !self.grid.contains_key(LEARNING_RATE));
        // A key of its own for each setting, so that one more does not move the others.
        let uniform = |key: &str| {
            let letters = key.bytes().map(u64::from);
            let key = letters.fold(context.tuning.seed, random::derive_key);
            random::uniform(key, draws, 0.0, 1.0)
        };
        let mut settings = vec![Table::new(); draws];
        for (key, values) in &self.grid {
            for (table, at) in settings.iter_mut().zip(uniform(key)) {
                let at = (at * values.len() as f32) as usize;
                table.insert(key.clone(), values[at.min(values.len() - 1)].clone());
            }
        }
        if let Some((low, high)) = ends {
            let factors = uniform(LEARNING_RATE).into_iter();
            let factors = factors.map(|at| low * (high / low).powf(f64::from(at)));
            for (table, factor) in settings.iter_mut().zip(factors) {
                *table = context.with_rate(table, factor)?;
            }
        }
        let mut names = BTreeSet::new();
        settings.retain(|table| names.insert(point_name(table)));
        Ok(settings)
    }
}

const LEARNING_RATE: &str = "learning_rate";

/// `learning_rate 3e-4, rank 8`.
fn point_name(settings: &Table) -> String {
    let parts = settings.iter().map(|(key, value)| match value {
        Value::Float(number) => format!("{key} {number:e}"),
        Value::String(text) => format!("{key} {text}"),
        other => format!("{key} {other}"),
    });
    parts.collect::<Vec<String>>().join(", ")
}

/// A table in whose texts places and the seed are filled in.
fn replaced_in(table: &Table, places: &BTreeMap<&str, String>, seed: u64) -> Result<Table, String> {
    let entries = table.iter().map(|(key, value)| {
        let value = replaced(value, places, seed).map_err(|problem| format!("`{key}`: {problem}"));
        Ok((key.clone(), value?))
    });
    entries.collect()
}

fn replaced(value: &Value, places: &BTreeMap<&str, String>, seed: u64) -> Result<Value, String> {
    Ok(match value {
        Value::String(text) => {
            let text = text.replace("$seed", &seed.to_string());
            let named = text.strip_prefix('$').map(|rest| {
                let end = rest.find('/').unwrap_or(rest.len());
                rest.split_at(end)
            });
            Value::String(match named {
                Some((name, rest)) => match places.get(name) {
                    Some(place) => format!("{place}{rest}"),
                    None => return Err(format!("`${name}` is not known: pass --{name}")),
                },
                None => text,
            })
        }
        Value::Array(items) => {
            let items = items.iter().map(|item| replaced(item, places, seed));
            Value::Array(items.collect::<Result<_, String>>()?)
        }
        other => other.clone(),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use epiphyte_methods::METHODS;
    use epiphyte_train::RunConfig;
    use serde_json::{Map, Value};
    use toml::Table;

    use super::Suite;

    fn configure(layers: &[Table]) -> Result<RunConfig, String> {
        let mut settings = Map::new();
        for (key, value) in layers.iter().flatten() {
            settings.insert(key.clone(), serde_json::to_value(value).unwrap());
        }
        RunConfig::parse(&settings).map_err(|error| error.to_string())
    }

    fn parse(text: &str) -> Result<Suite, String> {
        let places = BTreeMap::from([("data", "/sets".to_owned())]);
        Suite::parse("mine", text, &places, &configure).map_err(|error| error.to_string())
    }

    const SUITE: &str = r#"
        seeds = [5, 7]
        settings.epochs = 2
        [[models]]
        name = "small"
        model = "bert"
        [[tasks]]
        name = "one"
        score = "accuracy"
        train_data = "$data/one-$seed.tsv"
        epochs = 4
        [[tasks]]
        name = "two"
        score = "loss"
        train_data = "two.tsv"
    "#;

    #[test]
    fn every_combination_is_a_group_of_runs() {
        let methods = "[[methods]]\nmethod = \"lora\"\nrank = 2\n[[methods]]\nmethod = \"*\"";
        let suite = parse(&format!("{SUITE}{methods}")).unwrap();
        assert_eq!(suite.baseline, "lora");
        assert_eq!(suite.groups.len(), 2 * METHODS.len());
        assert_eq!(suite.runs(), 4 * METHODS.len());
        let first = &suite.groups[0];
        assert_eq!((&first.name[..], &first.task[..]), ("lora", "one"));
        assert!(first.greater_is_better() && !suite.groups[METHODS.len()].greater_is_better());
        let run = &first.points[0].runs[&7];
        assert_eq!((run.seed, run.epochs), (7, 4.0));
        assert_eq!(run.train_data.to_str(), Some("/sets/one-7.tsv"));
        assert_eq!(run.method_settings["rank"], Value::from(2));
        let named = |name: &str| suite.groups.iter().filter(|it| it.name == name).count();
        assert!(METHODS.iter().all(|method| named(method.name) == 2));
    }

    #[test]
    fn points_are_the_grid_times_the_learning_rates() {
        let tuning = "[tuning]\nlearning_rate_factors = [0.3, 1]\nseed = 9\n";
        let lora = "[[methods]]\nmethod = \"lora\"\n";
        let suite = parse(&format!("{SUITE}{lora}grid.rank = [2, 4]\n{tuning}")).unwrap();
        let points = &suite.groups[0].points;
        let names: Vec<&str> = points.iter().map(|point| &point.name[..]).collect();
        assert_eq!(names.len(), 4);
        // Three tenths of the method's own rate.
        assert_eq!(names[0], "learning_rate 9e-4, rank 2");
        assert_eq!(points[0].runs.keys().collect::<Vec<_>>(), [&5, &7]);
        let [trial] = &points[0].trials[..] else {
            panic!("{points:?}")
        };
        assert_eq!(trial.seed, 9);
        assert!((trial.learning_rate.unwrap() - 9e-4).abs() < 1e-12);
        assert_eq!(suite.runs(), 2 * (4 + 2));
        let own = format!("{SUITE}{lora}grid.learning_rate = [1e-3, 2e-3, 3e-3]\n{tuning}");
        assert_eq!(parse(&own).unwrap().groups[0].points.len(), 3);
    }

    #[test]
    fn draws_are_the_same_for_every_method_and_halved_by_rounds() {
        let tuning = "[tuning]\nlearning_rate_factors = [0.1, 10]\ndraws = 9\nhalving = 3\n";
        let methods = "[[methods]]\nmethod = \"lora\"\ngrid.rank = [2, 4]\n\
                       [[methods]]\nmethod = \"ia3\"\n";
        let text = SUITE.replace("epochs = 2", "max_steps = 90") + methods + tuning;
        let suite = parse(&text).unwrap();
        let [lora, ia3] = [0, 1].map(|at| &suite.groups[at]);
        for group in [lora, ia3] {
            assert_eq!(group.rounds(), [9, 3]);
            assert_eq!(group.tuning_budget(), (12, Some(9 * 30 + 3 * 90)));
        }
        assert_eq!(suite.runs(), 4 * (12 + 2));
        let factors = |group: &super::Group| -> Vec<f64> {
            let default = METHODS.iter().find(|it| it.name == group.method).unwrap();
            let rates = group.points.iter().map(|point| &point.trials[0]);
            let factors = rates.map(|run| run.learning_rate.unwrap() / default.learning_rate);
            factors.collect()
        };
        let (of_lora, of_ia3) = (factors(lora), factors(ia3));
        assert!(of_lora.iter().all(|factor| (0.099..10.1).contains(factor)));
        assert!(of_lora.iter().any(|factor| *factor < 0.8) && of_lora.iter().any(|it| *it > 1.2));
        for (one, other) in of_lora.iter().zip(&of_ia3) {
            assert!((one / other - 1.0).abs() < 0.01, "{one} {other}");
        }
        let ranks = lora
            .points
            .iter()
            .map(|it| &it.trials[0].method_settings["rank"]);
        assert!((1..9).contains(&ranks.filter(|rank| **rank == 2).count()));
        let again = parse(&text).unwrap();
        assert_eq!(again.groups[0].points[3].name, lora.points[3].name);
    }

    #[test]
    fn what_is_drawn_twice_is_tried_once() {
        let lora = "[[methods]]\nmethod = \"lora\"\ngrid.rank = [2, 4]\n";
        let suite = parse(&format!("{SUITE}{lora}[tuning]\ndraws = 9\n")).unwrap();
        assert_eq!(suite.groups[0].points.len(), 2);
        assert_eq!(suite.groups[0].tuning_budget().0, 2);
    }

    #[test]
    fn examples_stand_by_where_defaults_do_not_fit() {
        let method = "[[methods]]\nmethod = \"alora\"\nuse_examples = true\n";
        let suite = parse(&format!("{SUITE}{method}")).unwrap();
        let point = &suite.groups[0].points[0];
        assert!(point.runs[&5].method_settings.is_empty());
        assert!(
            point.examples[&5]
                .method_settings
                .contains_key("alora_invocation_tokens")
        );
    }

    #[test]
    fn what_is_wrong_with_a_suite_is_said() {
        let lora = "[[methods]]\nmethod = \"lora\"\n";
        for (text, words) in [
            (
                format!("{SUITE}{lora}{lora}"),
                "two methods are called `lora`",
            ),
            (
                format!("{SUITE}{lora}[[models]]\nname = \"small\"\nmodel = \"other\""),
                "two models are called `small`",
            ),
            (
                format!("{SUITE}{lora}[[tasks]]\nname = \"two\"\nscore = \"loss\""),
                "two tasks are called `two`",
            ),
            (
                format!("{SUITE}{lora}[[tasks]]\nname = \" \"\nscore = \"loss\""),
                "one of the tasks has an empty `name`",
            ),
            (
                format!("{SUITE}{lora}name = \"{}\"", "é".repeat(51)),
                "a name of the methods has 102 bytes",
            ),
            (
                SUITE.replace("[5, 7]", "[5, 7, 5]") + lora,
                "`seeds` has 5 twice",
            ),
            (
                SUITE.replace("[5, 7]", "[9223372036854775808]") + lora,
                "9223372036854775808",
            ),
            (
                format!("{SUITE}{lora}grid.rank = [2, 4, 2]"),
                "`grid.rank` has 2 twice",
            ),
            (
                format!("{SUITE}{lora}[tuning]\nlearning_rate_factors = [1, 1.0]"),
                "`learning_rate_factors` has 1 twice",
            ),
            (
                format!("{SUITE}{lora}[tuning]\nlearning_rate_factors = [1, 1.0001]"),
                "two of `learning_rate_factors` give `learning_rate 3e-3`",
            ),
            (
                format!("{SUITE}{lora}[tuning]\nseed = 3"),
                "`[tuning]` has nothing to choose from",
            ),
            (
                format!("{SUITE}{lora}[tuning]\ndraws = 9"),
                "`[tuning]` has nothing to choose from",
            ),
            (
                format!("{SUITE}{lora}[tuning]\ndraws = 1_000_000_000"),
                "`tuning.draws` is 1000000000: give at most 10000",
            ),
            (
                format!(
                    "{SUITE}{lora}{}",
                    (0..9).fold(String::new(), |grid, key| {
                        grid + &format!("grid.key{key} = [1, 2, 3, 4, 5]\n")
                    })
                ),
                "1953125 combinations",
            ),
            (
                format!("baseline = \"ia3\"{SUITE}{lora}"),
                "`ia3`, which is none of lora",
            ),
            (format!("{SUITE}[[methods]]\nmethod = \"lro\""), "lro"),
            (
                format!("{SUITE}{lora}grid.rank = []"),
                "`grid.rank` is empty",
            ),
            (
                SUITE.replace("$data", "$sets") + lora,
                "`$sets` is not known: pass --sets",
            ),
            (SUITE.replace("[5, 7]", "[]") + lora, "`seeds` is empty"),
            (
                format!("{SUITE}{lora}[tuning]\nhalving = 1"),
                "`tuning.halving` must be at least 2",
            ),
            (
                format!("{SUITE}{lora}[tuning]\nlearning_rate_factors = [1, 2]\nhalving = 2"),
                "`tuning.halving` needs `max_steps`",
            ),
            (
                format!("{SUITE}models = [\"x\"]\n{lora}"),
                "names model `x`, which is none",
            ),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(
                error.contains("suite `mine`") && error.contains(words),
                "{error}"
            );
        }
    }
}
