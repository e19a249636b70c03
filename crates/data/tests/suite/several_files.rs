//! Data in several files: directories, patterns, lists with weights.

use std::path::{Path, PathBuf};

use epiphyte_data::{DataError, DataFile, LabelSet, ReadOptions, Table};
use tempfile::TempDir;

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    directory
}

fn read(directory: &Path, given: &str) -> Result<Table, DataError> {
    let parts = given
        .split(',')
        .map(|part| format!("{}/{part}", directory.display()));
    Table::read(parts.collect::<Vec<_>>().join(","), &ReadOptions::default())
}

fn texts(directory: &Path, given: &str) -> Vec<String> {
    let table = read(directory, given).unwrap();
    let texts = table.texts("text").unwrap();
    texts.into_iter().map(str::to_owned).collect()
}

#[test]
fn directories_patterns_and_lists_are_read_in_order() {
    let here = directory(&[
        ("all/b.jsonl", "{\"text\": \"b1\"}\n{\"text\": \"b2\"}\n"),
        ("all/a.jsonl", "{\"text\": \"a1\", \"label\": \"x\"}\n"),
        ("all/notes.md", "no data"),
        ("all/.hidden.jsonl", "{\"text\": \"no\"}\n"),
        ("more/c1.csv", "text\nc1\n"),
        ("more/c2.csv", "text\nc2\n"),
        ("a,b:2.csv", "text\nodd\n"),
    ]);
    let here = here.path();
    assert_eq!(texts(here, "all"), ["a1", "b1", "b2"]);
    assert_eq!(texts(here, "all/*.jsonl"), ["a1", "b1", "b2"]);
    assert_eq!(texts(here, "m*/c?.csv"), ["c1", "c2"]);
    assert_eq!(texts(here, "more/c1.csv,all/a.jsonl:2"), ["c1", "a1", "a1"]);
    let half = texts(here, "all/b.jsonl:0.5");
    assert_eq!(half.len(), 1);
    assert_eq!(texts(here, "all/b.jsonl:1.5"), ["b1", "b2", &half[0]]);
    let odd = Table::read(here.join("a,b:2.csv"), &ReadOptions::default()).unwrap();
    assert_eq!(odd.texts("text").unwrap(), ["odd"]);
    let first = ReadOptions {
        limit: Some(2),
        ..ReadOptions::default()
    };
    let table = Table::read(here.join("all"), &first).unwrap();
    assert_eq!(table.texts("text").unwrap(), ["a1", "b1"]);
}

#[test]
fn a_row_is_named_by_its_own_file() {
    let here = directory(&[
        ("a.csv", "text,label\na1,x\na2,y\n"),
        ("b.csv", "text,label\nb1,x\nb2,z\n"),
    ]);
    let table = read(here.path(), "a.csv,b.csv:2").unwrap();
    assert_eq!(table.len(), 6);
    let labels = LabelSet::from_names(["x", "y"].map(str::to_owned)).unwrap();
    let error = labels.ids(&table, "label").unwrap_err();
    assert!(
        matches!(&error, DataError::UnknownLabel { path, row: 2, .. } if path.ends_with("b.csv")),
        "{error:?}"
    );
    let sampled = table.sample(3, 1).unwrap();
    for row in 0..3 {
        let (path, number) = sampled.place(row);
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            sampled.texts("text").unwrap()[row],
            format!("{name}{number}")
        );
    }
    // A column that a file lacks is empty there; who needs it hears which file that is.
    let here = directory(&[("a.csv", "text,label\na1,x\n"), ("b.csv", "text\nb1\n")]);
    let table = read(here.path(), "a.csv,b.csv").unwrap();
    let error = LabelSet::from_column(&table, "label").unwrap_err();
    assert!(
        matches!(&error, DataError::MissingColumn { path, .. } if path.ends_with("b.csv")),
        "{error:?}"
    );
}

#[test]
fn what_cannot_be_read_together_says_why() {
    let here = directory(&[
        ("mixed/a.csv", "text\na\n"),
        ("mixed/b.jsonl", "{}"),
        ("splits/train.csv", "text\na\n"),
        ("splits/dev.csv", "text\nb\n"),
        ("empty/notes.md", ""),
        ("a.csv", "text\na\n"),
    ]);
    for (given, expected) in [
        (
            "mixed",
            "files of several formats, such as `a.csv`, `b.jsonl`",
        ),
        (
            "splits",
            "data for several purposes, such as `dev.csv`, `train.csv`: name the file",
        ),
        ("empty", "has no file of data"),
        ("*.jsonl", "no file matches"),
        ("a.csv:0", "the weight 0 is not above 0"),
        (
            "a.csv:1e9",
            "the weight 1000000000 is not above 0, up to 1000",
        ),
    ] {
        let error = read(here.path(), given).unwrap_err();
        assert!(
            matches!(error, DataError::DataFiles { .. }),
            "{given}: {error:?}"
        );
        assert!(error.to_string().contains(expected), "{given}: {error}");
    }
    let missing = PathBuf::from("no/such.csv");
    let files = DataFile::all(&missing, &ReadOptions::default()).unwrap();
    assert_eq!(files[0].path, missing);
}
