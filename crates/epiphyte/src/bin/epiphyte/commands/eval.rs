//! `epiphyte eval`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::scoring::metrics::{ConfusionMatrix, DetailedScores, Metrics, positive_class};
use serde::Serialize;

use crate::data_arguments::DataArguments;
use crate::global::Global;
use crate::output::{self, Align};
use crate::progress::Progress;
use crate::written::{WritingArguments, WrittenScores};

pub(crate) const EXAMPLES: &str = "\
Examples:
  An adapter written by Epiphyte, which records its task, columns and labels:
    epiphyte eval --model bert-base-uncased --adapter adapter --data test.jsonl

  An adapter written by HF PEFT, which does not:
    epiphyte eval --model bert-base-uncased --adapter peft-adapter --data test.tsv \\
        --text-columns sentence

  What a language model writes, scored as the E2E challenge does:
    epiphyte eval --model gpt2 --adapter adapter --data testset_w_refs.csv --metrics e2e \\
        --num-beams 5 --output texts.jsonl

  A base model with a classification head:
    epiphyte eval --model fine-tuned-bert --task sequence-classification --text-columns text \\
        --data test.jsonl";

#[derive(Args, Debug)]
pub(crate) struct Arguments {
    #[command(flatten)]
    data: DataArguments,
    #[command(flatten)]
    writing: WritingArguments,
}

/// The result with `--json`.
#[derive(Serialize)]
struct Scores<'a> {
    examples: usize,
    #[serde(flatten)]
    metrics: &'a Metrics,
    #[serde(flatten)]
    classes: Option<Classes<'a>>,
}

/// The scores of each class.
#[derive(Serialize)]
struct Classes<'a> {
    /// The class whose F1, precision and recall are among the metrics; of three and more classes
    /// they are means.
    #[serde(skip_serializing_if = "Option::is_none")]
    positive_class: Option<&'a str>,
    classes: Vec<Class<'a>>,
    /// A row for each label with a column for each prediction, in the order of `classes`.
    confusion_matrix: Vec<Vec<u64>>,
}

/// The scores of a class against all others.
#[derive(Serialize)]
struct Class<'a> {
    label: &'a str,
    precision: f64,
    recall: f64,
    f1: f64,
    /// Examples of the class.
    support: u64,
}

/// The largest confusion matrix that is printed; JSON has all of them.
const LARGEST_PRINTED: usize = 12;

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    if arguments.writing.are_asked_for()? {
        let WrittenScores { texts, metrics } = arguments.writing.run(&arguments.data, global)?;
        let scores = Scores {
            examples: texts,
            metrics: &metrics,
            classes: None,
        };
        report(&scores, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let opened = arguments.data.open(true, &[], global)?;
    let evaluation = opened.loaded_adapter.evaluation(&opened.batches);
    let mut progress = Progress::new(global);
    let spec = &opened.loaded_adapter.task_model.spec;
    let DetailedScores { metrics, confusion } =
        (spec.task).evaluate_in_detail(&evaluation, &mut progress)?;
    progress.finish();
    let scores = Scores {
        examples: opened.batches.examples().len(),
        metrics: &metrics,
        classes: confusion.map(|confusion| classes(&confusion, &spec.labels)),
    };
    report(&scores, global)?;
    Ok(ExitCode::SUCCESS)
}

/// Prints scores, as a table or as JSON.
fn report(scores: &Scores<'_>, global: &Global) -> Result<()> {
    match global.json {
        true => output::json(scores),
        false => print(scores),
    }
}

fn classes<'a>(confusion: &ConfusionMatrix, labels: &'a [String]) -> Classes<'a> {
    let ids = 0..confusion.classes();
    let of_class = |id: usize| {
        let scores = confusion.class_scores(id);
        Class {
            label: &labels[id],
            precision: scores.precision,
            recall: scores.recall,
            f1: scores.f1,
            support: confusion.support(id),
        }
    };
    let row = |label: usize| (ids.clone().map(|it| confusion.count(label, it))).collect();
    Classes {
        positive_class: positive_class(confusion.classes()).map(|id| &*labels[id]),
        classes: ids.clone().map(of_class).collect(),
        confusion_matrix: ids.clone().map(row).collect(),
    }
}

fn print(scores: &Scores<'_>) -> Result<()> {
    let mut rows = vec![("examples", output::count(scores.examples as u64))];
    let metrics = scores.metrics.iter();
    rows.extend(metrics.map(|(name, value)| (name, format!("{value:.4}"))));
    output::pairs(&rows)?;
    let Some(Classes {
        positive_class,
        classes,
        confusion_matrix,
    }) = &scores.classes
    else {
        return Ok(());
    };
    match positive_class {
        Some(class) => output::print(&format!("f1, precision and recall are of `{class}`"))?,
        None => output::print("f1, precision and recall are means over the classes")?,
    }
    let text = |text: &str| text.to_owned();
    let mut rows = vec![
        ["class", "precision", "recall", "f1", "support"]
            .map(text)
            .to_vec(),
    ];
    rows.extend(classes.iter().map(|class| {
        let scores = [class.precision, class.recall, class.f1];
        let mut row = vec![text(class.label)];
        row.extend(scores.map(|score| format!("{score:.4}")));
        row.push(output::count(class.support));
        row
    }));
    let align = |columns| [vec![Align::Left], vec![Align::Right; columns]].concat();
    output::print("")?;
    output::table(&rows, &align(4))?;
    if classes.len() > LARGEST_PRINTED {
        return output::print("\nThe confusion matrix is in the output of --json.");
    }
    output::print("\nconfusion matrix, a row for each label with a column for each prediction:")?;
    let names = classes.iter().map(|class| text(class.label));
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    rows.extend(classes.iter().zip(confusion_matrix).map(|(class, counts)| {
        let counts = counts.iter().map(|&count| output::count(count));
        [text(class.label)].into_iter().chain(counts).collect()
    }));
    output::table(&rows, &align(classes.len()))
}
