//! What is wrong with the data of a suite's tasks, found before the first run.

use std::collections::BTreeSet;
use std::path::PathBuf;

use epiphyte_train::{RunConfig, RunOptions, SharedBase, TrainError, dry_run};

use crate::CompareError;
use crate::result::RunResult;
use crate::run::{RUNS, RunSuite, path_of};
use crate::suite::Group;

impl RunSuite<'_> {
    /// Reads base and data of every task that has runs to be made, as a run would, and checks that
    /// the task has the score that counts.
    ///
    /// # Errors
    /// [`CompareError::Task`] with the task and the file. What is wrong with one method is in its
    /// runs' results.
    pub(crate) fn check_tasks(&self, groups: &[&Group]) -> Result<(), CompareError> {
        // A base of its own: what runs have in memory is counted from where the first one begins.
        let options = &RunOptions {
            shared_base: Some(SharedBase::default()),
            ..self.options.clone()
        };
        let mut checked = BTreeSet::new();
        for &group in groups {
            if self.has_results(group)? {
                continue;
            }
            let point = &group.points[0];
            for run in point.trials.last().into_iter().chain(point.runs.values()) {
                let files = [&run.eval_data, &run.forgetting_data].map(Clone::clone);
                let data = (&group.model, &group.task, &run.train_data, files);
                if checked.contains(&data) {
                    continue;
                }
                // A method that does not act here says nothing of the data; another one may.
                if !self.check_run(group, run, options)? {
                    break;
                }
                checked.insert(data);
            }
        }
        Ok(())
    }

    /// Checks a run; false if its method does not get as far as the data.
    fn check_run(
        &self,
        group: &Group,
        run: &RunConfig,
        options: &RunOptions,
    ) -> Result<bool, CompareError> {
        let wrong = |problem: String| CompareError::Task {
            task: group.task.clone(),
            model: group.model.clone(),
            problem,
        };
        if run.eval_data.is_none() {
            let data = run.train_data.display();
            return Err(wrong(match run.train_data.exists() {
                true => {
                    "it has no `eval_data`, by which methods are scored: name the file".to_owned()
                }
                false => format!("there is no file or directory `{data}`, its `train_data`"),
            }));
        }
        let run = RunConfig {
            output: self.unused(),
            ..run.clone()
        };
        let found = match dry_run(std::slice::from_ref(&run), options) {
            Ok(found) => found,
            Err(
                error @ (TrainError::Data(_)
                | TrainError::Columns { .. }
                | TrainError::File(_)
                | TrainError::Hub(_)
                | TrainError::Metric(_)
                | TrainError::WritesNoText { .. }
                | TrainError::NoReference { .. }),
            ) => return Err(wrong(error.to_string())),
            Err(_) => return Ok(false),
        };
        let classes = found.first().map(|it| it.labels.len());
        let scores = run.scores(classes.filter(|classes| *classes > 0));
        if !scores.contains(&&group.score[..]) {
            return Err(wrong(format!(
                "`score` is `{}`, which is not measured for {}: choose one of {}{}",
                group.score,
                run.task,
                scores.join(", "),
                run.advice_on_score(&group.score)
            )));
        }
        Ok(true)
    }

    /// Whether every seed of a group has a result.
    fn has_results(&self, group: &Group) -> Result<bool, CompareError> {
        'seeds: for &seed in &self.suite.seeds {
            for point in &group.points {
                let run = RunResult::new(group, &point.name, seed, None);
                let known = RunResult::read(&self.output.join(RUNS).join(path_of(&run)))?;
                if known.is_some_and(|known| self.has_ended(known.status)) {
                    continue 'seeds;
                }
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// A directory that no run has: names of runs do not begin with a dot.
    fn unused(&self) -> PathBuf {
        self.output.join(RUNS).join(".checked")
    }
}
