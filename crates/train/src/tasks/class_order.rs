//! Which class is which output of a head.
//!
//! Names are sorted only for a head that starts at random, whose order is then stored with the
//! adapter. Where a head was trained before, its order is what a file or the user says: the
//! adapter's record, the base's `id2label`, or `--labels`. It is never guessed from data.

use std::collections::BTreeMap;
use std::path::Path;

use epiphyte_models::config::{Labels, ProblemType};
use epiphyte_models::{Checkpoint, ModelConfig, ModelError, head_outputs};

use super::{TaskKind, TaskSpec};
use crate::TrainError;

/// The classes of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClassOrder {
    /// Their names, in the order of the outputs.
    pub names: Vec<String>,
    /// As [`TaskSpec::labels_by_id`].
    pub by_id: bool,
    /// Whether the base's own head is for other classes, so that a new one has to start.
    pub new_head: bool,
}

/// What a base says of the classes of its head.
#[derive(Clone, Debug)]
pub struct BaseClasses {
    /// `id2label` and `problem_type`.
    pub labels: Labels,
    /// The outputs of the head in the checkpoint; none if it has no head that classifies sequences.
    pub outputs: Option<usize>,
}

impl BaseClasses {
    /// Reads what a model's directory, whose `config.json` has been read, says of a task's classes.
    ///
    /// # Errors
    /// If the checkpoint cannot be opened.
    pub fn open(model: &Path, config: &ModelConfig, task: TaskKind) -> Result<Self, ModelError> {
        let head = task.head(config.facts().labels.num_labels());
        let of_checkpoint = match config.is_for_another_task(head) {
            true => Ok(None),
            false => head_outputs(&Checkpoint::open(model)?, config, head),
        };
        let mut labels = config.facts().labels.clone();
        // It contradicts a task of one class for a text alone.
        let of_one_class = Some(ProblemType::SingleLabelClassification);
        let problem_type = labels.problem_type;
        labels.problem_type = problem_type.filter(|_| task.problem_type() == of_one_class);
        Ok(Self {
            labels,
            outputs: match of_checkpoint {
                // Another kind of head, which is replaced.
                Err(ModelError::HeadShape { .. }) => None,
                outputs => outputs?,
            },
        })
    }

    /// Whether the head has an output for each class, of which any number may be right.
    pub fn is_multi_label(&self) -> bool {
        self.labels.problem_type == Some(ProblemType::MultiLabelClassification)
    }
}

/// The classes for training on data with the labels `found`, sorted, where the user gives `given`
/// or nothing.
///
/// # Errors
/// [`TrainError::ClassOrder`] if `given` contradicts the base, whose head it would turn around.
pub fn for_training(
    given: &[String],
    found: &[String],
    base: &BaseClasses,
) -> Result<ClassOrder, TrainError> {
    let (labels, known) = (&base.labels, base.labels.names());
    let has_head_for = |count: usize| base.outputs == Some(count);
    check_named(given)?;
    if !given.is_empty() {
        if has_head_for(given.len()) && labels.are_named() {
            check_against("the base model's id2label", known, given)?;
        }
        return Ok(ClassOrder {
            names: given.to_vec(),
            by_id: true,
            new_head: false,
        });
    }
    let are_known = found.iter().all(|name| known.contains(name));
    if are_known && (has_head_for(known.len()) || known.len() == found.len()) {
        check_twice(known)?;
        return Ok(ClassOrder {
            names: known.to_vec(),
            by_id: true,
            new_head: false,
        });
    }
    // Ids mean the same classes as those of the base only if they are all there.
    if has_head_for(known.len()) && are_all_ids(found, known.len()) {
        let names = match labels.are_named() {
            true => known,
            false => found,
        };
        check_twice(names)?;
        warn_of_ids("the base model", names, found);
        return Ok(ClassOrder {
            names: names.to_vec(),
            by_id: true,
            new_head: false,
        });
    }
    Ok(ClassOrder {
        names: found.to_vec(),
        by_id: false,
        new_head: base.outputs.is_some(),
    })
}

/// The classes of a head that predicts: that of an adapter, or the base's own.
#[derive(Clone, Debug)]
pub struct TrainedHead<'a> {
    /// The task that the adapter records; none for an adapter of PEFT, or without an adapter.
    pub recorded: Option<&'a TaskSpec>,
    /// Whether there is an adapter, whose head then takes the place of the base's.
    pub has_adapter: bool,
    /// The outputs of the head; none if no file has one.
    pub outputs: Option<usize>,
    /// What the base says.
    pub base: &'a BaseClasses,
}

/// The classes of a head that predicts, where the user gives `given` or nothing, for data with the
/// labels `found`, if it has labels.
///
/// # Errors
/// [`TrainError::ClassOrder`] if no file says the order of named classes, or if `given` contradicts
/// it.
pub fn for_prediction(
    head: &TrainedHead<'_>,
    given: &[String],
    found: Option<&[String]>,
) -> Result<ClassOrder, TrainError> {
    let order = |names: &[String], by_id| ClassOrder {
        names: names.to_vec(),
        by_id,
        new_head: false,
    };
    let found = found.unwrap_or_default();
    check_named(given)?;
    if let Some(recorded) = head.recorded.filter(|spec| !spec.labels.is_empty()) {
        let stored = &recorded.labels;
        if given.is_empty() && recorded.labels_by_id {
            check_numbers(stored, found)?;
            warn_of_ids("the adapter", stored, found);
        }
        if !given.is_empty() && given != stored {
            return Err(TrainError::ClassOrder(format!(
                "the adapter was trained with the classes {}, but --labels says {}: leave it out",
                stored.join(","),
                given.join(",")
            )));
        }
        return Ok(order(stored, recorded.labels_by_id || !given.is_empty()));
    }
    if head.base.is_multi_label() {
        return Err(TrainError::ClassOrder(
            "config.json says multi_label_classification, any number of classes for a text, but \
             this task is one class for a text: its predictions and scores would be wrong; pass \
             --task multi-label-classification"
                .to_owned(),
        ));
    }
    let known = head.base.labels.names();
    let outputs = head.outputs.unwrap_or(known.len());
    if !given.is_empty() {
        if given.len() != outputs {
            return Err(TrainError::ClassOrder(format!(
                "--labels names {} classes, but the head has {outputs} outputs: name each of them",
                given.len()
            )));
        }
        if !head.has_adapter && head.base.labels.are_named() {
            check_against("the base model's id2label", known, given)?;
        }
        return Ok(order(given, true));
    }
    let unnamed = Labels::unnamed(outputs);
    let names = match known.len() == outputs {
        true => known,
        false => unnamed.names(),
    };
    let is_id = |name: &String| name.parse().is_ok_and(|id: usize| id < outputs);
    let are_known = found.iter().all(|name| names.contains(name));
    if are_known || found.iter().all(is_id) {
        check_numbers(names, found)?;
        check_twice(names)?;
        warn_of_ids("the base model", names, found);
        return Ok(order(names, true));
    }
    let (whose, have) = match (head.has_adapter, names == unnamed.names()) {
        (true, _) => ("the adapter's head", "no file names its classes"),
        (false, true) => (
            "the base model's head",
            "its config.json does not name its classes",
        ),
        // The row that has an unknown label is named where the labels are read.
        (false, false) => {
            check_twice(names)?;
            return Ok(order(names, true));
        }
    };
    Err(TrainError::ClassOrder(format!(
        "{whose} has {outputs} outputs, and {have}, while the data has {}: pass --labels with the \
         names in the order of the outputs, as in training; another order would give wrong scores",
        shown(found)
    )))
}

/// Refuses numbers that are no names of classes and may be ids or count from 1.
fn check_numbers(names: &[String], found: &[String]) -> Result<(), TrainError> {
    let are_numbers = found.iter().all(|name| name.parse::<usize>().is_ok());
    let are_names = found.iter().any(|name| names.contains(name));
    if found.is_empty() || !are_numbers || are_names || found.iter().any(|name| name == "0") {
        return Ok(());
    }
    let count = names.len();
    let from = |first: usize| {
        let numbers = (first..first + count).map(|number| number.to_string());
        numbers.collect::<Vec<_>>().join(",")
    };
    let named = match names == Labels::unnamed(count).names() {
        true => from(0),
        false => names.join(","),
    };
    Err(TrainError::ClassOrder(format!(
        "the data has the labels {} and no 0, so they may be ids from 0 or count from 1, and the \
         head has {count} outputs: pass --labels {named} if they are ids, or --labels {} if they \
         count from 1",
        shown(found),
        from(1)
    )))
}

/// Warns if labels of the data, none of which is a name, are read as ids of named classes.
fn warn_of_ids(whose: &str, names: &[String], found: &[String]) {
    if let Some(read_as) = read_as_ids(whose, names, found) {
        tracing::warn!("{read_as}");
    }
}

/// What labels of the data are read as, if they are ids of named classes.
fn read_as_ids(whose: &str, names: &[String], found: &[String]) -> Option<String> {
    const SHOWN: usize = 8;
    if found.is_empty() || names == Labels::unnamed(names.len()).names() {
        return None;
    }
    let class = |label: &String| {
        let id: usize = label.parse().ok()?;
        let name = names.get(id).filter(|_| !names.contains(label))?;
        Some(format!("{label} = {name}"))
    };
    let read_as = found.iter().map(class).collect::<Option<Vec<_>>>()?;
    let more = if found.len() > SHOWN { ", ..." } else { "" };
    let first = &found[..found.len().min(SHOWN)];
    let read_as = &read_as[..first.len()];
    Some(format!(
        "the labels {}{more} of the data are read as the class ids of {whose}: {}{more}",
        first.join(", "),
        read_as.join(", ")
    ))
}

/// Refuses a class without a name, as in `--labels ''` or `--labels a,,b`, and a name that stands
/// for two.
///
/// # Errors
/// [`TrainError::ClassOrder`].
pub fn check_named(given: &[String]) -> Result<(), TrainError> {
    if let Some(id) = given.iter().position(String::is_empty) {
        return Err(TrainError::ClassOrder(format!(
            "--labels has no name for id {id}: give the name of each class, separated by commas"
        )));
    }
    match repeated(given) {
        Some(id) => Err(TrainError::ClassOrder(format!(
            "--labels has `{}` twice, the second time for id {id}: give each class a name of its own",
            given[id]
        ))),
        None => Ok(()),
    }
}

/// The id of the first name that an id before it has.
fn repeated(names: &[String]) -> Option<usize> {
    (1..names.len()).find(|&id| names[..id].contains(&names[id]))
}

/// Refuses classes of one name, as a base's `id2label` may have them.
fn check_twice(names: &[String]) -> Result<(), TrainError> {
    let Some(id) = repeated(names) else {
        return Ok(());
    };
    Err(TrainError::ClassOrder(format!(
        "the base model's config.json has the name `{}` twice in id2label, the second time for id \
         {id}: pass --labels with a name for each class, in the order of the ids",
        names[id]
    )))
}

/// Refuses names that `known` has at other ids.
fn check_against(source: &str, known: &[String], given: &[String]) -> Result<(), TrainError> {
    for (id, name) in given.iter().enumerate() {
        if let Some(other) = known
            .iter()
            .position(|it| it == name)
            .filter(|&it| it != id)
        {
            return Err(TrainError::ClassOrder(format!(
                "--labels has `{name}` at id {id}, but {source} has it at id {other}: give the \
                 classes as {}, or leave --labels out",
                known.join(",")
            )));
        }
    }
    Ok(())
}

/// Whether names are the numbers from 0 to `count`, all of them.
fn are_all_ids(names: &[String], count: usize) -> bool {
    names.len() == count
        && names
            .iter()
            .zip(0..)
            .all(|(name, id)| *name == id.to_string())
}

/// The first few names, in backquotes.
fn shown(names: &[String]) -> String {
    let first: Vec<String> = names
        .iter()
        .take(5)
        .map(|name| format!("`{name}`"))
        .collect();
    let more = names.len().saturating_sub(first.len());
    match more {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}

/// Two labels that differ in case and blanks alone.
pub(crate) fn nearly_same(labels: &[String]) -> Option<[&String; 2]> {
    let mut seen = BTreeMap::new();
    labels.iter().find_map(|label| {
        let plain: String = label.split_whitespace().collect();
        let before = seen.insert(plain.to_lowercase(), label);
        before.map(|before| [before, label])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn labels_that_are_read_as_ids_are_told() {
        let classes = names(&["routine", "urgent"]);
        let told = |names: &[String], found: &[&str]| {
            let found = found.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
            read_as_ids("the base model", names, &found)
        };
        assert_eq!(
            told(&classes, &["0", "1"]).unwrap(),
            "the labels 0, 1 of the data are read as the class ids of the base model: 0 = routine, \
             1 = urgent"
        );
        assert_eq!(told(&classes, &["routine", "urgent"]), None);
        assert_eq!(told(&classes, &["0", "2"]), None);
        assert_eq!(told(&names(&["0", "1"]), &["0", "1"]), None);
        assert_eq!(told(Labels::unnamed(2).names(), &["0", "1"]), None);
        assert_eq!(told(&classes, &[]), None);
    }

    #[test]
    fn a_name_stands_for_one_class() {
        let base = base(&["LABEL_0", "LABEL_1"], None);
        for given in [["a", "a"], ["a", ""]] {
            let error = for_training(&names(&given), &names(&["a"]), &base).unwrap_err();
            assert!(matches!(error, TrainError::ClassOrder(_)), "{error}");
            let head = TrainedHead {
                recorded: None,
                has_adapter: true,
                outputs: Some(2),
                base: &base,
            };
            let of_prediction = for_prediction(&head, &names(&given), None).unwrap_err();
            assert_eq!(error.to_string(), of_prediction.to_string());
        }
    }

    #[test]
    fn labels_that_differ_in_case_or_blanks_are_noticed() {
        let found = names(&["bad", "good", "Good "]);
        assert_eq!(nearly_same(&found), Some([&found[1], &found[2]]));
        assert_eq!(nearly_same(&names(&["bad", "good", "so so"])), None);
    }

    fn base(labels: &[&str], outputs: Option<usize>) -> BaseClasses {
        BaseClasses {
            labels: Labels::new(labels.iter().copied()),
            outputs,
        }
    }

    #[test]
    fn classes_without_a_name_are_refused() {
        let base = base(&["0", "1"], Some(2));
        let found = names(&["0", "1"]);
        let head = TrainedHead {
            recorded: None,
            has_adapter: false,
            outputs: Some(2),
            base: &base,
        };
        for (given, id) in [(names(&[""]), "id 0"), (names(&["a", "", "b"]), "id 1")] {
            for order in [
                for_training(&given, &found, &base),
                for_prediction(&head, &given, Some(&found)),
            ] {
                let error = order.unwrap_err().to_string();
                assert!(error.contains(id), "{error}");
            }
        }
    }

    const UNNAMED: [&str; 2] = ["LABEL_0", "LABEL_1"];

    #[test]
    fn training_keeps_the_order_of_a_base_that_knows_the_names() {
        let known = base(&["positive", "negative"], Some(2));
        let found = names(&["negative", "positive"]);
        let order = for_training(&[], &found, &known).unwrap();
        assert_eq!(order.names, ["positive", "negative"]);
        assert!(order.by_id && !order.new_head);
        // The data may have a part of the classes, or their ids.
        let order = for_training(&[], &names(&["negative"]), &known).unwrap();
        assert_eq!(order.names, ["positive", "negative"]);
        let order = for_training(&[], &names(&["0", "1"]), &known).unwrap();
        assert_eq!(order.names, ["positive", "negative"]);
    }

    #[test]
    fn training_sorts_only_for_a_new_head() {
        let found = names(&["neg", "pos"]);
        for (base, new_head) in [
            (base(&["positive", "negative"], Some(2)), true),
            (base(&UNNAMED, Some(2)), true),
            (base(&["a", "b", "c"], Some(3)), true),
            (base(&UNNAMED, None), false),
        ] {
            let order = for_training(&[], &found, &base).unwrap();
            assert_eq!((&order.names, order.by_id), (&found, false), "{base:?}");
            assert_eq!(order.new_head, new_head, "{base:?}");
        }
        // Some of the ids may be those of another data set.
        let three = base(&["a", "b", "c"], Some(3));
        let order = for_training(&[], &names(&["0", "1"]), &three).unwrap();
        assert!(order.new_head && order.names == ["0", "1"]);
        let order = for_training(&[], &names(&["0", "1"]), &base(&UNNAMED, Some(2))).unwrap();
        assert!(!order.new_head && order.names == ["0", "1"]);
    }

    #[test]
    fn given_names_win_but_do_not_turn_a_head_around() {
        let (given, found) = (names(&["b", "a"]), names(&["a", "b"]));
        for base in [base(&UNNAMED, Some(2)), base(&["a", "b"], None)] {
            let order = for_training(&given, &found, &base).unwrap();
            assert_eq!((&order.names, order.by_id), (&given, true));
        }
        let error = for_training(&given, &found, &base(&["a", "b"], Some(2))).unwrap_err();
        assert!(error.to_string().contains("`b` at id 0"), "{error}");
    }

    #[test]
    fn an_order_that_no_file_says_is_asked_for() {
        let unnamed = base(&UNNAMED, None);
        let head = |outputs, has_adapter, base| TrainedHead {
            recorded: None,
            has_adapter,
            outputs: Some(outputs),
            base,
        };
        let found = names(&["contradiction", "entailment", "neutral"]);
        let adapter = head(3, true, &unnamed);
        let error = for_prediction(&adapter, &[], Some(&found)).unwrap_err();
        assert!(error.to_string().contains("--labels"), "{error}");
        let given = names(&["entailment", "neutral", "contradiction"]);
        let order = for_prediction(&adapter, &given, Some(&found)).unwrap();
        assert_eq!((order.names, order.by_id), (given.clone(), true));
        // Ids are the data set's own, in any data; numbers without 0 may not be ids.
        let error = for_prediction(&adapter, &[], Some(&names(&["1", "2"]))).unwrap_err();
        assert!(error.to_string().contains("--labels 1,2,3"), "{error}");
        let confirmed = names(&["0", "1", "2"]);
        let order = for_prediction(&adapter, &confirmed, Some(&names(&["1", "2"]))).unwrap();
        assert_eq!(order.names, confirmed);
        let order = for_prediction(&adapter, &[], Some(&names(&["0", "2"]))).unwrap();
        assert!(order.by_id && order.names == ["LABEL_0", "LABEL_1", "LABEL_2"]);
        let order = for_prediction(&adapter, &[], None).unwrap();
        assert_eq!(order.names.len(), 3);
        for given in [&["a", "b"][..], &["a", "b", "c", "d"]] {
            let error = for_prediction(&adapter, &names(given), Some(&found)).unwrap_err();
            assert!(error.to_string().contains("3 outputs"), "{error}");
        }
        // A base whose names are those of the data says the order; one with other names does not.
        let mnli = base(&["entailment", "neutral", "contradiction"], None);
        let order = for_prediction(&head(3, true, &mnli), &[], Some(&found)).unwrap();
        assert_eq!(order.names, given);
        let other = base(&["a", "b", "c"], None);
        for_prediction(&head(3, true, &other), &[], Some(&found)).unwrap_err();
        let unnamed = base(&["LABEL_0", "LABEL_1", "LABEL_2"], Some(3));
        for_prediction(&head(3, false, &unnamed), &[], Some(&found)).unwrap_err();
    }

    #[test]
    fn a_recorded_order_is_not_changed() {
        let recorded = TaskSpec {
            labels: names(&["a", "b"]),
            ..TaskSpec::new("sequence-classification".parse().unwrap(), 8)
        };
        let base = base(&["b", "a"], Some(2));
        let head = TrainedHead {
            recorded: Some(&recorded),
            has_adapter: true,
            outputs: Some(2),
            base: &base,
        };
        let order = for_prediction(&head, &[], None).unwrap();
        assert_eq!((order.names, order.by_id), (names(&["a", "b"]), false));
        let order = for_prediction(&head, &names(&["a", "b"]), None).unwrap();
        assert!(order.by_id);
        for_prediction(&head, &names(&["b", "a"]), None).unwrap_err();
    }

    #[test]
    fn a_name_that_two_classes_have_is_refused() {
        let base = base(&["a", "b", "a"], Some(3));
        let head = TrainedHead {
            recorded: None,
            has_adapter: false,
            outputs: Some(3),
            base: &base,
        };
        let found = names(&["a", "b"]);
        for error in [
            for_prediction(&head, &[], Some(&found)).unwrap_err(),
            for_training(&[], &found, &base).unwrap_err(),
        ] {
            let error = error.to_string();
            assert!(
                error.contains("config.json") && error.contains("`a` twice"),
                "{error}"
            );
        }
        let given = names(&["a", "b", "c"]);
        assert_eq!(for_training(&given, &found, &base).unwrap().names, given);
    }

    #[test]
    fn numbers_over_named_classes_start_at_0_or_are_asked_about() {
        let recorded = TaskSpec {
            labels: names(&["no", "maybe", "yes"]),
            labels_by_id: true,
            ..TaskSpec::new("sequence-classification".parse().unwrap(), 8)
        };
        let base = base(&UNNAMED, None);
        let head = TrainedHead {
            recorded: Some(&recorded),
            has_adapter: true,
            outputs: Some(3),
            base: &base,
        };
        for_prediction(&head, &[], Some(&names(&["0", "2"]))).unwrap();
        let error = for_prediction(&head, &[], Some(&names(&["1", "2"]))).unwrap_err();
        assert!(
            error.to_string().contains("--labels no,maybe,yes"),
            "{error}"
        );
        let (given, found) = (recorded.labels.clone(), names(&["1", "2"]));
        for_prediction(&head, &given, Some(&found)).unwrap();
    }

    #[test]
    fn a_head_for_several_classes_a_text_is_refused() {
        let mut base = base(&["toxic", "rude"], Some(2));
        base.labels.problem_type = Some(ProblemType::MultiLabelClassification);
        let head = TrainedHead {
            recorded: None,
            has_adapter: false,
            outputs: Some(2),
            base: &base,
        };
        let error = for_prediction(&head, &[], None).unwrap_err();
        assert!(error.to_string().contains("multi_label"), "{error}");
    }
}
