//! The model card of a run: its facts, without anything about the machine that it ran on.

use std::path::Path;

use epiphyte_methods::by_name;

use super::model_card::{Counts, DataSource, ModelCard, Scores, Snippet};
use super::settings::ResolvedSetting;
use crate::run::Report;
use crate::tasks::TaskSpec;
use crate::training::config::RunConfig;

/// Settings that are paths of this machine: the card says what matters of them elsewhere.
const PATHS: [&str; 5] = [
    "model",
    "output",
    "train_data",
    "eval_data",
    "forgetting_data",
];

/// Stands for the directory of the base model.
const BASE: &str = "BASE";

/// The card of a run that wrote `report`.
pub(crate) fn card(
    run: &RunConfig,
    spec: &TaskSpec,
    settings: &[ResolvedSetting],
    command: &[String],
    report: &Report,
    examples: (usize, Option<usize>),
) -> ModelCard {
    let source = |role, path: &Path, examples: usize| DataSource {
        role,
        name: last_component(path),
        examples: examples as u64,
    };
    let mut data = vec![source("training", &run.train_data, examples.0)];
    let eval = run.eval_data.as_ref().zip(examples.1);
    data.extend(eval.map(|(path, count)| source("evaluation", path, count)));
    let base_model = base_name(&run.model);
    let is_local_base = run.model.exists();
    let version = ("epiphyte".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    let settings = settings.iter().filter(|it| !PATHS.contains(&it.key));
    let settings = settings.map(|it| (it.name.clone(), it.text()));
    ModelCard {
        method: run.method.clone(),
        task: run.task.to_string(),
        pipeline_tag: Some(run.task.pipeline_tag(spec).to_owned()),
        unfinished: (report.status == "interrupted").then(|| {
            let (done, total) = (report.steps, report.total_steps);
            format!("{done} of {total} steps")
        }),
        usage: usage(run, spec, if is_local_base { BASE } else { &base_model }),
        counts: Counts {
            base: report.account.base_parameters as u64,
            trainable: report.account.trainable_parameters as u64,
            changed: report.account.changed_parameters as u64,
            stored: report.account.stored_parameters as u64,
            bytes: report.bytes,
        },
        scores: report
            .metrics
            .iter()
            .zip(&run.eval_data)
            .map(|(metrics, path)| Scores {
                data: last_component(path),
                metrics: metrics.clone(),
            })
            .collect(),
        hyperparameters: [version].into_iter().chain(settings).collect(),
        command: portable(command, is_local_base),
        data,
        base_model,
        is_local_base,
    }
}

/// A base model's name: that on the hub, or the last component of its path.
pub(crate) fn base_name(model: &Path) -> String {
    match model.exists() {
        true => last_component(model),
        false => model.display().to_string(),
    }
}

/// The last component of a path, also of `.` and `..`.
fn last_component(path: &Path) -> String {
    let resolved = epiphyte_io::resolve(path).ok();
    let own = path.file_name();
    let name = own.or_else(|| resolved.as_deref()?.file_name());
    name.map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// A command without the path of the program and without absolute paths, for a run from its
/// beginning; a base that is here is [`BASE`].
fn portable(command: &[String], is_local_base: bool) -> Vec<String> {
    let words = command.iter().skip(1).filter(|word| *word != "--resume");
    let mut names_model = false;
    let words = words.map(|word| {
        let (flag, value) = match word.split_once('=') {
            Some((flag, value)) if flag.starts_with("--") => (format!("{flag}="), value),
            _ => (String::new(), word.as_str()),
        };
        let is_model = names_model || flag == "--model=";
        names_model = word == "--model";
        if is_model && is_local_base {
            return format!("{flag}{BASE}");
        }
        match Path::new(value).is_absolute() {
            true => format!("{flag}{}", last_component(Path::new(value))),
            false => word.clone(),
        }
    });
    let program = (!command.is_empty()).then(|| "epiphyte".to_owned());
    program.into_iter().chain(words).collect()
}

/// How the adapter is used, with this program and with HF PEFT.
fn usage(run: &RunConfig, spec: &TaskSpec, base: &str) -> Vec<Snippet> {
    let quoted = |text: &str| crate::display::shell_command(&[text.to_owned()]);
    let apply = match run.task.predicts_text() {
        true if run.messages_column.is_some() => "generate --chat --prompt \"…\"",
        true => "generate --prompt \"…\"",
        false => "predict --data new.jsonl --output predictions.jsonl",
    };
    let (command, flags) = apply.split_once(' ').unwrap_or((apply, ""));
    let mut snippets = vec![Snippet {
        language: "sh",
        code: format!(
            "epiphyte {command} --model {} --adapter ADAPTER {flags}",
            quoted(base)
        ),
    }];
    if by_name(&run.method).is_ok_and(|method| method.in_peft) {
        snippets.push(Snippet {
            language: "python",
            code: peft(run, spec, base),
        });
    }
    snippets
}

/// Python that loads the adapter with HF PEFT.
fn peft(run: &RunConfig, spec: &TaskSpec, base: &str) -> String {
    // JSON's texts and maps of texts are Python's.
    let literal = |text: &str| serde_json::to_string(text).unwrap_or_default();
    let class = run.task.auto_class(spec);
    let arguments = match spec.head().outputs() {
        None => String::new(),
        Some(outputs) if spec.labels.is_empty() => format!(", num_labels={outputs}"),
        Some(outputs) => {
            let labels = spec.labels.iter().enumerate();
            let labels = labels.map(|(id, label)| format!("{id}: {}", literal(label)));
            let labels = labels.collect::<Vec<_>>().join(", ");
            format!(",\n    num_labels={outputs},\n    id2label={{{labels}}},\n")
        }
    };
    let base = literal(base);
    let open = if arguments.contains('\n') {
        "\n    "
    } else {
        ""
    };
    format!(
        "from peft import PeftModel\n\
         from transformers import {class}, AutoTokenizer\n\n\
         tokenizer = AutoTokenizer.from_pretrained({base})\n\
         base = {class}.from_pretrained({open}{base}{arguments})\n\
         model = PeftModel.from_pretrained(base, \"ADAPTER\")"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_says_nothing_about_the_machine() {
        let command = [
            "/home/user/bin/epiphyte",
            "train",
            "--model",
            "/home/user/models/bert",
            "--train-data=/data/train.tsv",
            "--eval-data",
            "data/dev.tsv",
            "--resume",
        ];
        assert_eq!(
            portable(&command.map(str::to_owned), true),
            [
                "epiphyte",
                "train",
                "--model",
                "BASE",
                "--train-data=train.tsv",
                "--eval-data",
                "data/dev.tsv",
            ]
        );
        assert!(portable(&[], true).is_empty());
        let command = ["epiphyte", "train", "--model=org/tiny"].map(str::to_owned);
        assert_eq!(portable(&command, false), command);
        let local = portable(&command, true);
        assert_eq!(local[2], "--model=BASE");
    }

    #[test]
    fn a_base_is_called_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("bert")).unwrap();
        assert_eq!(base_name(&dir.path().join("bert")), "bert");
        assert_eq!(base_name(&dir.path().join("bert/.")), "bert");
        assert_eq!(base_name(&dir.path().join("bert/../bert")), "bert");
        assert_eq!(base_name(Path::new("org/tiny")), "org/tiny");
    }
}
