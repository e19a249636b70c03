//! The tables of README.md that list methods, families and tasks are those of the registries.
//!
//! `EPIPHYTE_WRITE_DOCUMENTS=1 cargo test --workspace --test documents` writes them.

use std::fmt::Write as _;
use std::path::Path;

use epiphyte::methods::METHODS;
use epiphyte::models::families::FAMILIES;
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
