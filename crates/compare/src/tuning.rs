//! How the settings of methods were chosen, in a sentence: whether all had the same budget.

use std::collections::BTreeMap;

use crate::markdown;
use crate::suite::{Group, Suite};

/// Trials, and their optimizer steps together where they are known.
type Trials = (usize, Option<u64>);

/// What the search for settings took, in Markdown.
pub(crate) fn sentence(suite: &Suite) -> String {
    // Where settings are chosen on one task for all, the others have no trials.
    let groups = || suite.groups.iter().filter(|it| suite.is_chosen_at(it));
    let mut of_task: BTreeMap<(&str, &str), Vec<Trials>> = BTreeMap::new();
    for group in groups() {
        let task = of_task.entry((&group.model, &group.task)).or_default();
        task.push(group.tuning_budget());
    }
    let is_equal = of_task
        .values()
        .all(|budgets| budgets.iter().all(|budget| *budget == budgets[0]));
    if !is_equal {
        return format!(
            "Methods had different tuning budgets: {}.",
            of_methods(groups())
        );
    }
    let mut budgets: Vec<Trials> = of_task.values().map(|budgets| budgets[0]).collect();
    budgets.sort_unstable();
    budgets.dedup();
    let [least, .., most] = budgets[..] else {
        return match budgets.first() {
            None | Some((0, _)) => NO_TRIALS.to_owned(),
            Some(budget) => format!(
                "The settings of every method were chosen by {}.",
                shown(*budget)
            ),
        };
    };
    let trials = match least.0 == most.0 {
        true => least.0.to_string(),
        false => format!("{} to {}", least.0, most.0),
    };
    format!(
        "The settings of every method were chosen by {trials} trials for each task, which all methods have alike."
    )
}

const NO_TRIALS: &str = "No settings were chosen by trials: every method has those that the suite gives it, mostly its \
                         defaults, and another choice may change the order.";

/// The budgets over all tasks, with the methods that had each.
fn of_methods<'a>(groups: impl Iterator<Item = &'a Group>) -> String {
    let mut of_method: BTreeMap<&str, Trials> = BTreeMap::new();
    for group in groups {
        let (trials, steps) = group.tuning_budget();
        let whole = of_method.entry(&group.name).or_insert((0, Some(0)));
        *whole = (
            whole.0 + trials,
            whole.1.zip(steps).map(|(one, other)| one + other),
        );
    }
    let mut methods: BTreeMap<Trials, Vec<&str>> = BTreeMap::new();
    for (name, budget) in of_method {
        methods.entry(budget).or_default().push(name);
    }
    let parts = methods.into_iter().rev().map(|(budget, names)| {
        let names = names.into_iter().map(markdown::code);
        let names = names.collect::<Vec<String>>().join(", ");
        format!("{} for {names}", shown(budget))
    });
    parts.collect::<Vec<String>>().join("; ")
}

fn shown((trials, steps): Trials) -> String {
    match steps.filter(|_| trials > 0) {
        Some(steps) => format!("{trials} trials of {steps} optimizer steps together"),
        None => format!("{trials} trials"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use epiphyte_train::RunConfig;

    use super::sentence;
    use crate::suite::{Group, Point, Suite};

    /// The groups of methods for tasks, with their numbers of points and their steps.
    fn suite(groups: &[(&str, &str, usize, u64)]) -> Suite {
        let group = |&(task, name, points, max_steps): &(&str, &str, usize, u64)| {
            let trial = RunConfig {
                max_steps: Some(max_steps),
                ..RunConfig::default()
            };
            let point = Point {
                name: String::new(),
                runs: BTreeMap::new(),
                examples: BTreeMap::new(),
                trials: vec![trial; usize::from(points > 1)],
            };
            Group {
                model: "base".to_owned(),
                task: task.to_owned(),
                name: name.to_owned(),
                method: "lora".to_owned(),
                score: "accuracy".to_owned(),
                points: vec![point; points],
                halving: 1,
            }
        };
        Suite {
            name: String::new(),
            title: String::new(),
            about: String::new(),
            baseline: String::new(),
            seeds: vec![0],
            tuning_task: None,
            groups: groups.iter().map(group).collect(),
            text: String::new(),
        }
    }

    #[test]
    fn budgets_that_are_equal_task_by_task_are_equal() {
        let tasks = [("a", "lora", 2, 300), ("a", "ia3", 2, 300)];
        let several = [
            tasks[0],
            tasks[1],
            ("b", "lora", 2, 60),
            ("b", "ia3", 2, 60),
        ];
        for (groups, words) in [
            (
                &tasks[..],
                "chosen by 2 trials of 600 optimizer steps together.",
            ),
            (
                &several,
                "2 trials for each task, which all methods have alike.",
            ),
            (
                &[("a", "lora", 1, 5), ("a", "ia3", 1, 5)],
                "No settings were chosen",
            ),
            (
                &[
                    ("a", "lora", 4, 5),
                    ("a", "ia3", 2, 5),
                    ("b", "lora", 4, 5),
                    ("b", "ia3", 2, 5),
                ],
                "different tuning budgets: 8 trials of 40 optimizer steps together for `lora`; 4 trials of 20 \
                 optimizer steps together for `ia3`.",
            ),
        ] {
            let sentence = sentence(&suite(groups));
            assert!(sentence.contains(words), "{sentence}");
        }
    }

    #[test]
    fn tasks_without_trials_of_their_own_have_no_budget() {
        let mut suite = suite(&[("a", "lora", 2, 300), ("b", "lora", 2, 60)]);
        suite.tuning_task = Some("a".to_owned());
        assert!(sentence(&suite).contains("2 trials of 600 optimizer steps together."));
    }
}
