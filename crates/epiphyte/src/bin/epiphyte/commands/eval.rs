//! `epiphyte eval`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use epiphyte::train::scoring::metrics::{ClassTable, DetailedScores};
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
    scores: &'a DetailedScores,
}

/// The largest confusion matrix that is printed; JSON has all of them.
const LARGEST_PRINTED: usize = 12;

pub(crate) fn run(arguments: Arguments, global: &Global) -> Result<ExitCode> {
    if arguments.writing.are_asked_for()? {
        let WrittenScores { texts, metrics } = arguments.writing.run(&arguments.data, global)?;
        let scores = Scores {
            examples: texts,
            scores: &metrics.into(),
        };
        report(&scores, global)?;
        return Ok(ExitCode::SUCCESS);
    }
    let opened = arguments.data.open(true, &[], global)?;
    let evaluation = opened.loaded_adapter.evaluation(&opened.batches);
    let mut progress = Progress::new(global);
    let rows = opened.rows();
    let scores = (rows.spec.task).evaluate(&evaluation, &rows, &mut progress)?;
    progress.finish();
    let scores = Scores {
        examples: opened.batches.examples().len(),
        scores: &scores,
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

fn print(scores: &Scores<'_>) -> Result<()> {
    let mut rows = vec![("examples", output::count(scores.examples as u64))];
    let DetailedScores { metrics, classes } = scores.scores;
    rows.extend(
        metrics
            .iter()
            .map(|(name, value)| (name, format!("{value:.4}"))),
    );
    output::pairs(&rows)?;
    let Some(ClassTable {
        averages,
        classes,
        confusion_matrix,
        ..
    }) = classes
    else {
        return Ok(());
    };
    output::print(averages)?;
    let text = |text: &str| text.to_owned();
    let mut rows = vec![
        ["class", "precision", "recall", "f1", "support"]
            .map(text)
            .to_vec(),
    ];
    rows.extend(classes.iter().map(|class| {
        let scores = [class.scores.precision, class.scores.recall, class.scores.f1];
        let mut row = vec![class.label.clone()];
        row.extend(scores.map(|score| format!("{score:.4}")));
        row.push(output::count(class.support));
        row
    }));
    let align = |columns| [vec![Align::Left], vec![Align::Right; columns]].concat();
    output::print("")?;
    output::table(&rows, &align(4))?;
    let Some(confusion_matrix) = confusion_matrix else {
        return Ok(());
    };
    if classes.len() > LARGEST_PRINTED {
        return output::print("\nThe confusion matrix is in the output of --json.");
    }
    output::print("\nconfusion matrix, a row for each label with a column for each prediction:")?;
    let names = classes.iter().map(|class| class.label.clone());
    let mut rows = vec![[String::new()].into_iter().chain(names).collect::<Vec<_>>()];
    rows.extend(classes.iter().zip(confusion_matrix).map(|(class, counts)| {
        let counts = counts.iter().map(|&count| output::count(count));
        [class.label.clone()].into_iter().chain(counts).collect()
    }));
    output::table(&rows, &align(classes.len()))
}
