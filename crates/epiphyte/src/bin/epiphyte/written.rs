//! Texts that a model writes about the rows of a file, and their scores: `eval --metrics`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use epiphyte::data::{OutputColumn, OutputFormat, Value, WritingPrompt};
use epiphyte::models::generation_config::GenerationConfig;
use epiphyte::train::scoring::metrics::texts::TextMetric;
use epiphyte::train::scoring::metrics::{MeteorTables, Metrics};
use epiphyte::train::scoring::written_texts::{TextEvaluation, WrittenText};
use epiphyte::train::{Generation, GenerationEnd, TaskModel};
use serde_json::Value as Json;

use crate::data_arguments::{DataArguments, Unencoded};
use crate::decoding_arguments::DecodingArguments;
use crate::failure::UsageError;
use crate::global::Global;
use crate::output;
use crate::outputs::{self, Input};
use crate::progress::Progress;

/// The flags of texts that are written for their scores.
#[derive(Args, Debug)]
#[command(next_help_heading = "Written texts")]
pub(crate) struct WritingArguments {
    #[arg(long, value_name = "A,B,..", value_delimiter = ',', help = help_of_metrics())]
    metrics: Vec<TextMetric>,
    /// Column of the texts that would be right; rows with the same prompt are written about once,
    /// and each of their texts counts [default: the column that the model learns to write]
    #[arg(long, value_name = "COLUMN", requires = "metrics")]
    references: Option<String>,
    /// Directory of METEOR's tables, meteor-1.5.jar and data/paraphrase-en.gz, which are not part
    /// of epiphyte: `pip install pycocoevalcap` has them in its directory `meteor`
    #[arg(long, value_name = "DIR", requires = "metrics")]
    meteor_data: Option<PathBuf>,
    /// File for the written texts: .jsonl, .csv, .tsv or .parquet; - is standard output
    #[arg(long, value_name = "FILE", requires = "metrics")]
    output: Option<PathBuf>,
    /// Replace the output if it exists
    #[arg(long, requires = "output")]
    overwrite: bool,
    #[command(flatten)]
    decoding: DecodingArguments,
}

/// What `--metrics` takes.
fn help_of_metrics() -> String {
    let all = TextMetric::all().iter();
    let all = all.map(|metric| format!("{} ({})", metric.name(), metric.summary()));
    format!(
        "Have the model write a text for each prompt, and score the texts: {}",
        all.collect::<Vec<_>>().join(", ")
    )
}

/// The scores of what a model wrote.
pub(crate) struct WrittenScores {
    /// The number of texts.
    pub(crate) texts: usize,
    /// Their scores.
    pub(crate) metrics: Metrics,
}

impl WritingArguments {
    /// Whether texts are to be written.
    ///
    /// # Errors
    /// If a flag would do nothing.
    pub(crate) fn are_asked_for(&self) -> Result<bool> {
        if self.metrics.is_empty()
            && let Some(flag) = self.decoding.given()
        {
            let problem =
                format!("{flag} says how texts are written, and none are: pass --metrics");
            return Err(UsageError::Other(problem).into());
        }
        Ok(!self.metrics.is_empty())
    }

    /// Has the model write, writes the texts to the output, and scores them.
    pub(crate) fn run(&self, data: &DataArguments, global: &Global) -> Result<WrittenScores> {
        let model_dir = data.model_dir()?;
        let files = data.files()?;
        let tables = self.meteor_tables()?;
        let mut inputs = data.inputs(&model_dir, &files);
        let meteor = self.meteor_data.iter();
        inputs.extend(meteor.map(|directory| Input::new("METEOR's tables", directory)));
        let destination = self.output.as_deref().map(|path| {
            let destination = outputs::check_file(path, &inputs, self.overwrite)?;
            Ok::<_, anyhow::Error>((path, destination, output_format(path)?))
        });
        let destination = destination.transpose()?;
        let columns: Vec<String> = self.references.clone().into_iter().collect();
        let Unencoded {
            loaded_adapter,
            table,
        } = data.open_unencoded(true, &columns, global)?;
        let TaskModel {
            loaded,
            tokenizer,
            spec,
        } = &loaded_adapter.task_model;
        let special = GenerationConfig::open(&model_dir, &loaded.config)?;
        let chat = spec.columns.messages_column.is_some();
        let own = Generation::of_model(&special, &loaded.config, tokenizer, chat)?;
        let generation = self.decoding.how(&special, own)?;
        let max_new_tokens = generation.max_new_tokens;
        let evaluation = TextEvaluation::new(
            &loaded_adapter.task_model.rows(&table),
            self.references.as_deref(),
            generation,
            self.decoding.stop.clone(),
            self.metrics.clone(),
            tables,
        )?;
        if !global.quiet {
            self.decoding.say_defaults(&special);
        }
        let mut progress = Progress::new(global);
        let (model, adapter) = (&loaded.model, loaded_adapter.adapter());
        let at_once = data.batch_size();
        let written = evaluation.write(model, adapter, tokenizer, at_once, &mut progress)?;
        progress.finish();
        if let Some((path, destination, format)) = destination {
            let columns = columns_of(evaluation.prompts(), &written, format);
            outputs::write(destination, path, &format.encode(&columns)?, self.overwrite)?;
        }
        if !global.quiet {
            say_unfinished(&written, max_new_tokens);
        }
        Ok(WrittenScores {
            texts: written.len(),
            metrics: evaluation.scores(&written)?,
        })
    }

    /// METEOR's tables, if one of the metrics needs them.
    fn meteor_tables(&self) -> Result<Option<MeteorTables>> {
        let directory = self.meteor_data.as_deref();
        TextMetric::check_meteor_data(&self.metrics, directory)
            .map_err(|error| UsageError::Other(error.to_string()))?;
        Ok(directory.map(MeteorTables::open).transpose()?)
    }
}

/// The format of a file of texts.
fn output_format(path: &std::path::Path) -> Result<OutputFormat> {
    match (OutputFormat::of(path), path.extension()) {
        (Some(format), _) => Ok(format),
        (None, None) => Ok(OutputFormat::JsonLines),
        (None, Some(_)) => {
            let problem = format!(
                "--output `{}` has another extension than .jsonl, .csv, .tsv and .parquet",
                path.display()
            );
            Err(UsageError::Other(problem).into())
        }
    }
}

/// The prompts with what was written and what would be right.
fn columns_of(
    prompts: &[WritingPrompt],
    written: &[WrittenText],
    format: OutputFormat,
) -> Vec<OutputColumn> {
    let text = |text: &String| Value::Text(text.clone());
    let references = prompts.iter().map(|prompt| match format.nests() {
        true => Value::Json(
            prompt
                .references
                .iter()
                .cloned()
                .map(Json::String)
                .collect(),
        ),
        false => Value::Text(Json::from(prompt.references.clone()).to_string()),
    });
    vec![
        (
            "prompt".to_owned(),
            prompts.iter().map(|it| text(&it.text)).collect(),
        ),
        (
            "text".to_owned(),
            written.iter().map(|it| text(&it.text)).collect(),
        ),
        ("references".to_owned(), references.collect()),
    ]
}

/// Says how many texts have no end of their own.
fn say_unfinished(written: &[WrittenText], max_new_tokens: usize) {
    let is_cut = |it: &&WrittenText| it.end != GenerationEnd::Stop;
    let cut = written.iter().filter(is_cut).count();
    if cut > 0 {
        output::note(&format!(
            "note: {cut} of {} texts end at --max-new-tokens {max_new_tokens} or where the model \
             reads no more, without an end of their own",
            written.len()
        ));
    }
}
