//! The tables of README.md that list methods, families and tasks are those of the registries.
//!
//! `EPIPHYTE_WRITE_DOCUMENTS=1 cargo test --workspace --test documents` writes them.

use std::fmt::Write as _;
use std::path::Path;

use epiphyte::Device;
use epiphyte::methods::{AdapterModule, Definition, METHODS, MethodError};
use epiphyte::models::families::{FAMILIES, Family};
use epiphyte::models::{HeadKind, ModelConfig, random_model};
use epiphyte::ops::Precision;
use epiphyte::train::TASKS;

fn methods() -> String {
    let mut table = "| `--method` | what is trained | HF PEFT |\n| --- | --- | --- |\n".to_owned();
    for method in METHODS {
        let in_peft = if method.in_peft { " yes" } else { "" };
        writeln!(
            table,
            "| `{}` | {} |{in_peft} |",
            method.name, method.summary
        )
        .unwrap();
    }
    table
}

/// Which methods do not work on which families, and why: each method's examples, built over a small
/// model with each head.
fn exceptions() -> String {
    let mut table = "| `--method` | not on | because |\n| --- | --- | --- |\n".to_owned();
    // Methods that share a reason share a row.
    let mut rows: Vec<((String, String), Vec<String>)> = Vec::new();
    for method in METHODS {
        let mut reasons: Vec<(String, Vec<String>)> = Vec::new();
        for family in FAMILIES {
            for (name, reason) in refusals(method, family) {
                match reasons.iter_mut().find(|(known, _)| *known == reason) {
                    Some((_, names)) => names.push(name),
                    None => reasons.push((reason, vec![name])),
                }
            }
        }
        for (reason, names) in reasons {
            let (key, name) = ((names.join(", "), reason), format!("`{}`", method.name));
            match rows.iter_mut().find(|(known, _)| *known == key) {
                Some((_, methods)) => methods.push(name),
                None => rows.push((key, vec![name])),
            }
        }
    }
    for ((families, reason), methods) in rows {
        writeln!(table, "| {} | {families} | {reason} |", methods.join(", ")).unwrap();
    }
    table
}

/// The heads of a family with which a method does not work, each with the reason; one entry where
/// it is all of them.
fn refusals(method: &Definition, family: &Family) -> Vec<(String, String)> {
    let heads = [
        ("classes", HeadKind::Classification { labels: 2 }),
        ("text", HeadKind::LanguageModel),
    ];
    let config = (family.examples)().remove(0);
    let config = ModelConfig::parse(Path::new("config.json"), config.to_string().as_bytes());
    let (config, device) = (config.unwrap(), Device::flex());
    let heads = heads.into_iter();
    let heads = heads.filter(|(_, head)| config.family().class_name(*head).is_some());
    let outcomes: Vec<(&str, Option<String>)> = heads
        .map(|(name, head)| {
            let model = random_model(&config, head, &device, Precision::F32, 0).unwrap();
            let mut refusal: Option<String> = None;
            for settings in (method.examples)() {
                let settings = settings.as_object().unwrap().clone();
                let settings = method.configure(settings).unwrap();
                match AdapterModule::new(settings, model.base(), &device, 0) {
                    Ok(_) => return (name, None),
                    Err(MethodError::NotApplicable { reason, .. }) => {
                        refusal.get_or_insert(reason);
                    }
                    Err(error) => panic!("{} on {}: {error}", method.name, family.name),
                }
            }
            (name, refusal)
        })
        .collect();
    let family = format!("`{}`", family.model_types[0]);
    let first = outcomes[0].1.clone();
    match first {
        Some(reason) if outcomes.iter().all(|(_, it)| it.as_ref() == Some(&reason)) => {
            vec![(family, reason)]
        }
        _ => {
            let refused = outcomes.into_iter();
            let refused = refused.filter_map(|(head, reason)| Some((head, reason?)));
            refused
                .map(|(head, reason)| (format!("{family} ({head})"), reason))
                .collect()
        }
    }
}

/// The library's example stands in two documents; that of the crate is compiled with its
/// documentation.
#[test]
fn the_library_example_of_both_readmes_is_the_same() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [project, library] = ["../../README.md", "README.md"].map(|path| {
        let text = std::fs::read_to_string(here.join(path)).unwrap();
        let (_, example) = text.split_once("```rust,no_run\n").expect("an example");
        example.split_once("```").expect("its end").0.to_owned()
    });
    assert_eq!(project, library);
}

fn families() -> String {
    let mut table = "| family | `model_type` |\n| --- | --- |\n".to_owned();
    for family in FAMILIES {
        let types: Vec<String> = family
            .model_types
            .iter()
            .map(|it| format!("`{it}`"))
            .collect();
        writeln!(table, "| {} | {} |", family.name, types.join(", ")).unwrap();
    }
    table
}

fn tasks() -> String {
    let mut table = "| `--task` | what is predicted |\n| --- | --- |\n".to_owned();
    for task in TASKS {
        writeln!(table, "| `{}` | {} |", task.name(), task.summary()).unwrap();
    }
    table
}

#[test]
fn the_tables_of_the_readme_are_those_of_the_registries() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let mut expected = text.clone();
    for (name, table) in [
        ("methods", methods()),
        ("exceptions", exceptions()),
        ("families", families()),
        ("tasks", tasks()),
    ] {
        let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->"));
        let start = expected.find(&begin).expect("README.md marks its tables") + begin.len();
        let stop = expected.find(&end).expect("README.md marks its tables");
        expected.replace_range(start..stop, &format!("\n{table}\n"));
    }
    if std::env::var_os("EPIPHYTE_WRITE_DOCUMENTS").is_some() {
        std::fs::write(&path, &expected).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == expected,
        "README.md's tables are old: run with EPIPHYTE_WRITE_DOCUMENTS=1"
    );
}
