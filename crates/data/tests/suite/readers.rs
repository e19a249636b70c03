//! Readers: what is read from a file, and the errors of invalid files.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use epiphyte_data::{DataError, Format, ReadOptions, Table, Value};
use proptest::prelude::*;
use serde_json::Value as Json;
use tempfile::TempDir;

fn file(name: &str, content: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    (directory, path)
}

fn read(name: &str, content: impl AsRef<[u8]>, options: &ReadOptions) -> Result<Table, DataError> {
    let (_directory, path) = file(name, content);
    Table::read(path, options)
}

fn read_default(name: &str, content: impl AsRef<[u8]>) -> Result<Table, DataError> {
    read(name, content, &ReadOptions::default())
}

#[test]
fn csv_takes_quotes_byte_order_mark_and_newlines_in_fields() {
    let content = "\u{feff}text,label\r\n\"a, \"\"b\"\"\r\nc\",1\r\n\r\nplain 5\" pipe,0\r\n";
    let table = read_default("a.csv", content).unwrap();
    assert_eq!(table.column_names().collect::<Vec<_>>(), ["text", "label"]);
    assert_eq!(
        table.texts("text").unwrap(),
        ["a, \"b\"\r\nc", "plain 5\" pipe"]
    );
    assert_eq!(table.texts("label").unwrap(), ["1", "0"]);
}

#[test]
fn quotes_in_tsv_are_literal_by_default() {
    let content = "s1\ts2\n\"He said\tso.\"\n";
    let table = read_default("a.tsv", content).unwrap();
    assert_eq!(table.texts("s1").unwrap(), ["\"He said"]);
    let quoting = ReadOptions {
        quoting: Some(true),
        ..ReadOptions::default()
    };
    let error = read("a.tsv", content, &quoting).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::RaggedRow {
                line: 2,
                expected: 2,
                found: 1,
                ..
            }
        ),
        "{error}"
    );
    let table = read("a.tsv", "s1\ts2\n\"a\tb\"\tc\n", &quoting).unwrap();
    assert_eq!(table.texts("s1").unwrap(), ["a\tb"]);
}

#[test]
fn a_file_without_header_numbers_its_columns() {
    let options = ReadOptions {
        header: false,
        limit: Some(2),
        ..ReadOptions::default()
    };
    let table = read("a.tsv", "a\tb\nc\td\ne\tf", &options).unwrap();
    assert_eq!(table.texts("0").unwrap(), ["a", "c"]);
    assert_eq!(table.texts("1").unwrap(), ["b", "d"]);
}

#[test]
fn json_comes_by_line_and_as_an_array() {
    let lines = "{\"text\": \"a\\u00e9\\n\", \"label\": 1}\n\n{\"label\": -2.5, \"more\": [1]}\n";
    let array = "  [{\"text\": \"a\\u00e9\\n\", \"label\": 1},\n {\"label\": -2.5, \"more\": [1]}]";
    for (name, content) in [
        ("a.jsonl", lines),
        ("a.json", lines),
        ("a.json", array),
        ("a.ndjson", array),
    ] {
        let table = read_default(name, content).unwrap();
        assert_eq!(
            table.column("text").unwrap(),
            [Value::Text("aé\n".into()), Value::Null]
        );
        assert_eq!(
            table.column("label").unwrap(),
            [Value::Integer(1), Value::Float(-2.5)]
        );
        assert_eq!(
            table.column("more").unwrap(),
            [Value::Null, Value::Json(serde_json::json!([1]))]
        );
        let first = read(
            name,
            content,
            &ReadOptions {
                limit: Some(1),
                ..ReadOptions::default()
            },
        )
        .unwrap();
        assert_eq!(first.len(), 1);
    }
}

#[test]
fn text_is_one_row() {
    let table = read_default("a.txt", "\u{feff}line\nline\n").unwrap();
    assert_eq!(table.texts("text").unwrap(), ["line\nline\n"]);
}

#[test]
fn text_is_a_row_for_each_line_where_a_task_reads_rows() {
    let lines = ReadOptions {
        lines: true,
        text_column: "sentence".to_owned(),
        ..ReadOptions::default()
    };
    let table = read("a.txt", "\u{feff}one\r\n\n  \ntwo", &lines).unwrap();
    assert_eq!(table.texts("sentence").unwrap(), ["one", "two"]);
    assert_eq!(table.sample(1, 0).unwrap().len(), 1);
    let first = ReadOptions {
        limit: Some(1),
        ..lines.clone()
    };
    let table = read("a.txt", "one\ntwo\n", &first).unwrap();
    assert_eq!(table.texts("sentence").unwrap(), ["one"]);
    let error = read("a.txt", " \n\n", &lines).unwrap_err();
    assert!(matches!(error, DataError::EmptyFile { .. }), "{error}");
}

/// Whole numbers keep each digit: those of 64 bits as numbers, longer ones as texts.
#[test]
fn whole_numbers_of_any_size_keep_their_digits() {
    let numbers = [
        "9223372036854775807",
        "-9223372036854775808",
        "12345678901234567890",
        "18446744073709551615",
    ];
    let long = [
        "18446744073709551616",
        "-9223372036854775809",
        "123456789012345678901234567890",
    ];
    for (number, is_long) in
        (numbers.iter().map(|it| (it, false))).chain(long.iter().map(|it| (it, true)))
    {
        let object = format!("{{\"a\": {number}, \"b\": [{number}], \"c\": \"{number}\"}}");
        for (name, content) in [
            ("a.jsonl", format!("{object}\n{object}\n")),
            ("a.json", format!("[{object}]")),
            (
                "a.json",
                format!("{{\n\"a\": {number}, \"c\": \"{number}\"}}\n{object}"),
            ),
            ("a.csv", format!("a,c\n{number},{number}\n")),
        ] {
            let table = read_default(name, &content).unwrap();
            let found = table.column("a").unwrap().remove(0);
            let digits = match &found {
                Value::Integer(found) => found.to_string(),
                Value::Text(found) => found.clone(),
                other => panic!("{other:?} is rounded"),
            };
            assert_eq!(digits, *number, "{content}");
            let is_text = is_long || name == "a.csv";
            assert_eq!(matches!(found, Value::Text(_)), is_text, "{content}");
            assert_eq!(table.texts("c").unwrap()[0], *number);
            if name == "a.jsonl" {
                assert_eq!(table.items("b", 0).unwrap(), [*number]);
            }
            let encoded = epiphyte_data::OutputFormat::JsonLines
                .encode(&[("a".to_owned(), vec![found])])
                .unwrap();
            let expected = match is_text {
                true => format!("{{\"a\":\"{number}\"}}\n"),
                false => format!("{{\"a\":{number}}}\n"),
            };
            assert_eq!(String::from_utf8(encoded).unwrap(), expected);
        }
    }
    // What is no whole number stays one with a fraction.
    let table = read_default(
        "a.jsonl",
        "{\"a\": 0.12345678901234567890123}\n{\"a\": 1e30}\n",
    );
    let expected = [Value::Float(0.123_456_789_012_345_68), Value::Float(1e30)];
    assert_eq!(table.unwrap().column("a").unwrap(), expected);
}

#[test]
fn a_directory_says_which_file_lacks_a_column() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    write("a.jsonl", "{\"text\": \"a\", \"label\": \"x\"}\n");
    write("b.jsonl", "{\"sentence\": \"b\", \"labels\": \"y\"}\n");
    let table = Table::read(directory.path(), &ReadOptions::default()).unwrap();
    let errors = [
        epiphyte_data::LabelSet::from_column(&table, "label").unwrap_err(),
        table.texts("text").unwrap_err(),
    ];
    for (error, column) in errors.iter().zip(["label", "text"]) {
        let DataError::MissingColumn {
            path,
            column: found,
            available,
            ..
        } = error
        else {
            panic!("{error}");
        };
        assert!(path.ends_with("b.jsonl"), "{error}");
        assert_eq!((&**found, available.len()), (column, 2), "{error}");
    }
    // A cell that is empty where the file has the column is another matter.
    write("b.jsonl", "{\"text\": \"b\", \"label\": null}\n");
    let table = Table::read(directory.path(), &ReadOptions::default()).unwrap();
    let error = epiphyte_data::LabelSet::from_column(&table, "label").unwrap_err();
    assert!(
        matches!(error, DataError::MissingLabel { row: 1, .. }),
        "{error}"
    );
}

#[test]
fn the_format_can_be_named() {
    let options = ReadOptions {
        format: Some(Format::Tsv),
        ..ReadOptions::default()
    };
    let table = read("msr_paraphrase_train.txt", "a\tb\n1\t2\n", &options).unwrap();
    assert_eq!(table.texts("b").unwrap(), ["2"]);
    assert_eq!("jsonl".parse::<Format>().unwrap(), Format::Json);
    assert!(matches!(
        "xml".parse::<Format>(),
        Err(DataError::UnknownFormat { .. })
    ));
    for name in ["data", "data.xml", "data.gz"] {
        let error = read_default(name, "a").unwrap_err();
        assert!(
            matches!(error, DataError::UnknownExtension { .. }),
            "{error}"
        );
    }
}

#[test]
fn empty_files_are_errors_in_every_format() {
    for (name, content) in [
        ("a.csv", ""),
        ("a.csv", "text,label\n"),
        ("a.tsv", "\n\n"),
        ("a.jsonl", " \n"),
        ("a.json", "[]"),
        ("a.txt", " \n"),
    ] {
        let error = read_default(name, content).unwrap_err();
        assert!(
            matches!(error, DataError::EmptyFile { .. }),
            "{name}: {error}"
        );
        assert!(error.to_string().contains(name), "{error}");
    }
    let error = read_default("a.parquet", "").unwrap_err();
    assert!(matches!(error, DataError::Parquet { .. }), "{error}");
    assert!(matches!(
        Table::read("no/such/file.csv", &ReadOptions::default()),
        Err(DataError::Io { .. })
    ));
}

#[test]
fn invalid_utf8_names_line_and_byte() {
    for name in ["a.csv", "a.tsv", "a.jsonl", "a.txt"] {
        let error = read_default(name, b"text\nfine\nb\xe9d\n").unwrap_err();
        assert!(
            matches!(
                error,
                DataError::InvalidUtf8 {
                    line: 3,
                    offset: 11,
                    ..
                }
            ),
            "{error}"
        );
    }
}

#[test]
fn ragged_rows_name_their_line() {
    for (content, at, count) in [
        ("a,b\n1,2\n3\n", 3, 1),
        ("a,b\n\"1\n1\",2\n3,4,5\n", 4, 3),
        ("a,b\n\n\n1,2\n\n3,4,5", 6, 3),
    ] {
        let error = read_default("a.csv", content).unwrap_err();
        let DataError::RaggedRow {
            line,
            expected: 2,
            found,
            ..
        } = error
        else {
            panic!("{error}")
        };
        assert_eq!((line, found), (at, count), "{content:?}");
    }
}

#[test]
fn an_unclosed_quote_is_an_error() {
    for content in ["a,b\n1,2\n\"3,4\n5,6\n", "a\n1\n\"", "a,b\n1,2\n3,\"4\n5,6"] {
        let error = read_default("a.csv", content).unwrap_err();
        assert!(
            matches!(error, DataError::UnclosedQuote { line: 3, .. }),
            "{content:?}: {error}"
        );
    }
}

/// Spreadsheets leave empty columns behind, which are not asked for.
#[test]
fn a_duplicate_column_is_an_error_if_it_is_asked_for() {
    let table = read_default("a.csv", "x,y,x,,\n1,2,3,,\n").unwrap();
    assert_eq!(table.texts("y").unwrap(), ["2"]);
    for name in ["x", ""] {
        let error = table.texts(name).unwrap_err();
        assert!(
            matches!(&error, DataError::DuplicateColumn { column, .. } if column == name),
            "{error}"
        );
    }
}

#[test]
fn every_line_of_one_column_is_a_row() {
    for (content, rows) in [
        ("text\na\n\nb\n", vec!["a", "", "b"]),
        ("text\r\na\r\n\r\n\r\nb", vec!["a", "", "", "b"]),
        ("text\n\n\na\n\n", vec!["", "", "a", ""]),
        ("\ntext\na\n\"\"\n", vec!["a", ""]),
        ("text\na\n\0end\nb\n", vec!["a", "\0end", "b"]),
        ("text\na\n\0\n\0end", vec!["a", "\0", "\0end"]),
    ] {
        for name in ["a.csv", "a.tsv"] {
            let quoting = ReadOptions {
                quoting: Some(true),
                ..ReadOptions::default()
            };
            let table = read(name, content, &quoting).unwrap();
            assert_eq!(table.texts("text").unwrap(), rows, "{content:?}");
        }
    }
    let options = ReadOptions {
        header: false,
        limit: Some(3),
        ..ReadOptions::default()
    };
    let table = read("a.csv", "\n\na\n\nb", &options).unwrap();
    assert_eq!(table.texts("0").unwrap(), ["", "", "a"]);
    // Of several columns, a blank line is none.
    let table = read_default("a.csv", "x,y\n\n1,2\n\n").unwrap();
    assert_eq!(table.len(), 1);
    for content in ["{\"a\": 1}\n{}\n", "[{\"a\": 1}, {}]", "{}\n{\"a\": 1}"] {
        assert_eq!(read_default("a.jsonl", content).unwrap().len(), 2);
    }
}

#[test]
fn only_the_columns_that_are_asked_for_are_read() {
    let options = ReadOptions {
        columns: Some(vec!["text".to_owned(), "label".to_owned()]),
        ..ReadOptions::default()
    };
    for (name, content) in [
        ("a.csv", "id,text,more\n1,a,x\n"),
        ("a.jsonl", "{\"id\": 1, \"text\": \"a\", \"more\": [NaN]}"),
    ] {
        let table = read(name, content, &options).unwrap();
        assert_eq!(table.texts("text").unwrap(), ["a"]);
        assert!(table.column_names().eq(["id", "text", "more"]));
        let error = table.column("more").unwrap_err();
        assert!(matches!(error, DataError::SkippedColumn { .. }), "{error}");
        let error = table.column("label").unwrap_err();
        assert!(matches!(error, DataError::MissingColumn { .. }), "{error}");
    }
}

#[test]
fn rows_times_keys_are_bounded() {
    let content: String = (0..3000)
        .map(|row| format!("{{\"k{row}\": 0}}\n"))
        .collect();
    let error = read_default("a.jsonl", &content).unwrap_err();
    assert!(matches!(error, DataError::TooManyCells { .. }), "{error}");
    let options = ReadOptions {
        columns: Some(vec!["k7".to_owned()]),
        ..ReadOptions::default()
    };
    let table = read("a.jsonl", &content, &options).unwrap();
    assert_eq!(table.column("k7").unwrap()[7], Value::Integer(0));
    assert_eq!(table.len(), 3000);
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn text_may_be_compressed_and_utf_16() {
    let content = "text,label\nun café,1\n";
    let utf16 = |mark: [u8; 2], unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        let units = content.encode_utf16().flat_map(unit);
        mark.into_iter().chain(units).collect()
    };
    let little = utf16([0xff, 0xfe], u16::to_le_bytes);
    for (name, bytes) in [
        ("a.csv.gz", gzip(content.as_bytes())),
        ("a.csv", gzip(content.as_bytes())),
        ("A.CSV.GZ", gzip(&little)),
        ("a.csv", little),
        ("a.csv", utf16([0xfe, 0xff], u16::to_be_bytes)),
    ] {
        let table = read_default(name, bytes).unwrap();
        assert_eq!(table.texts("text").unwrap(), ["un café"]);
    }
    // Two members, as `cat a.gz b.gz` writes them.
    let two = [gzip(b"{\"a\": 1}\n"), gzip(b"{\"a\": 2}\n")].concat();
    assert_eq!(read_default("a.jsonl.gz", two).unwrap().len(), 2);
}

#[test]
fn what_is_no_text_is_named() {
    let without_mark: Vec<u8> = "text".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let cut = &gzip(b"text,label\na,1\n")[..20];
    for (name, bytes, word) in [
        ("a.csv", b"PK\x03\x04rest".as_slice(), "spreadsheet"),
        ("a.csv", b"PAR1rest", "Parquet"),
        ("a.jsonl", b"\x28\xb5\x2f\xfdrest", "zstd -d"),
        ("a.csv", &without_mark, "iconv -f UTF-16LE"),
        ("a.csv", b"\xff\xfea", "damaged UTF-16"),
        ("a.csv.gz", cut, "damaged gzip"),
    ] {
        let error = read_default(name, bytes).unwrap_err();
        assert!(matches!(error, DataError::NotText { .. }), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let error = Table::read(directory.path(), &ReadOptions::default()).unwrap_err();
    assert!(error.to_string().contains("directory"), "{error}");
    let error = Table::read("-", &ReadOptions::default()).unwrap_err();
    assert!(matches!(error, DataError::UnnamedFormat), "{error}");
}

#[test]
fn delimiters_are_given_or_seen_in_the_header() {
    let given = |delimiter: &str| ReadOptions {
        delimiter: Some(epiphyte_data::parse_delimiter(delimiter).unwrap()),
        ..ReadOptions::default()
    };
    for (name, content, options) in [
        ("a.csv", "text;label\na, b;1\n", ReadOptions::default()),
        (
            "a.csv",
            "text\tlabel\n\"a, b\"\t1\n",
            ReadOptions::default(),
        ),
        ("a.csv", "text|label\na, b|1\n", given("|")),
        ("a.csv", "text\tlabel\na, b\t1\n", given("tab")),
        ("a.tsv", "text;label\na, b;1\n", given(";")),
    ] {
        let table = read(name, content, &options).unwrap();
        assert_eq!(table.texts("text").unwrap(), ["a, b"], "{content:?}");
        assert_eq!(table.texts("label").unwrap(), ["1"], "{content:?}");
    }
    // A comma in the header decides.
    let table = read_default("a.csv", "a;b,c\n1;2,3\n").unwrap();
    assert_eq!(table.texts("a;b").unwrap(), ["1;2"]);
    for bad in ["", "ab", "é", "\"", "\n"] {
        assert!(epiphyte_data::parse_delimiter(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn one_object_may_hold_the_rows() {
    let rows = r#"[{"text": "a", "label": 1}, {"text": "b", "label": 0}]"#;
    let wanted = ReadOptions {
        columns: Some(vec!["text".to_owned(), "label".to_owned()]),
        ..ReadOptions::default()
    };
    for content in [
        format!("{{\"version\": \"1\",\n \"data\": {rows}}}"),
        r#"{"text": ["a", "b"], "label": [1, 0]}"#.to_owned(),
        r#"{"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}}"#.to_owned(),
        r#"{"0": {"text": "a", "label": 1}, "1": {"text": "b", "label": 0}}"#.to_owned(),
        "{\n  \"text\": \"a\",\n  \"label\": 1\n}\n{\n  \"text\": \"b\", \"label\": 0}".to_owned(),
        r#"{"text": "a", "label": 1}{"text": "b", "label": 0}"#.to_owned(),
    ] {
        for options in [&wanted, &ReadOptions::default()] {
            let table = read("a.json", &content, options).unwrap();
            assert_eq!(table.texts("text").unwrap(), ["a", "b"], "{content}");
            assert_eq!(table.numbers("label").unwrap(), [1.0, 0.0], "{content}");
        }
    }
    // Names of rows and of their list are told from cells by the columns that are wanted.
    let named = r#"{"id-1": {"text": "a", "label": 1}, "id-2": {"text": "b", "label": 0}}"#;
    let table = read("a.json", named, &wanted).unwrap();
    assert_eq!(table.texts("text").unwrap(), ["a", "b"]);
    let examples = format!("{{\"examples\": {rows}}}");
    assert_eq!(read("a.json", &examples, &wanted).unwrap().len(), 2);
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}"#;
    for options in [
        ReadOptions::default(),
        ReadOptions {
            columns: Some(vec!["messages".to_owned()]),
            ..ReadOptions::default()
        },
    ] {
        let table = read("a.jsonl", chat, &options).unwrap();
        assert!(matches!(
            &table.column("messages").unwrap()[..],
            [Value::Json(_)]
        ));
    }
    let splits = format!("{{\"train\": {rows}, \"test\": {rows}}}");
    let error = read("a.json", splits, &wanted).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("several lists of rows (`train`, `test`)"),
        "{error}"
    );
}

#[test]
fn numbers_that_json_does_not_have_are_null() {
    let lines = "{\"text\": \"NaN\", \"score\": NaN}\n{\"text\": \"-\\\"Infinity\", \"score\": -Infinity}\n";
    let array = format!("[{}]", lines.trim_end().replace('\n', ","));
    for content in [lines, &array] {
        let table = read_default("a.jsonl", content).unwrap();
        assert_eq!(table.texts("text").unwrap(), ["NaN", "-\"Infinity"]);
        assert_eq!(table.column("score").unwrap(), [Value::Null, Value::Null]);
    }
}

#[test]
fn what_is_almost_json_is_named() {
    for (content, line, word) in [
        ("{'text': 'a'}\n{'text': 'b'}\n", 1, "json.dumps"),
        (
            "{\"text\": \"a\"},\n{\"text\": \"b\"}\n",
            1,
            "remove the commas",
        ),
        (
            "[{\"text\": \"a\"}]\n[{\"text\": \"b\"}]\n",
            2,
            "each line is a list",
        ),
        ("{\"text\": \"a\"}\n{\"text\": \"b", 2, "one JSON object"),
        (
            "{\n \"text\": \"a\",\n \"label\" 1\n}\n{\n}\n",
            3,
            "one JSON object",
        ),
    ] {
        let error = read_default("a.jsonl", content).unwrap_err();
        let DataError::InvalidJson { line: at, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(at, line, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }
}

#[test]
fn invalid_json_names_its_line() {
    for (name, content, at) in [
        ("a.jsonl", "{\"a\": 1}\n\n{\"a\": }\n", 3),
        ("a.jsonl", "{\"a\": 1}\n[1]\n", 2),
        ("a.json", "[{\"a\": 1},\n 7]", 2),
        ("a.json", "[{\"a\": 1},\n {\"a\": 2}", 2),
    ] {
        let error = read_default(name, content).unwrap_err();
        let DataError::InvalidJson { line, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(line, at, "{content:?}");
    }
}

/// A file of `golden/parquet`, which `make_parquet.py` writes.
fn golden_parquet(name: &str) -> Vec<u8> {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/parquet");
    std::fs::read(Path::new(golden).join(name)).unwrap()
}

#[test]
fn parquet_is_read_as_pyarrow_wrote_it() {
    let files = golden_parquet("expected.json");
    let files: BTreeMap<String, BTreeMap<String, Vec<Json>>> =
        serde_json::from_slice(&files).unwrap();
    assert_eq!(files.len(), 6);
    for (name, columns) in files {
        let table = read_default("a.parquet", golden_parquet(&format!("{name}.parquet"))).unwrap();
        let mut names: Vec<&str> = table.column_names().collect();
        names.sort_unstable();
        assert!(names.iter().eq(columns.keys()), "{name}: {names:?}");
        for (column, expected) in columns {
            let expected: Vec<Value> = expected.into_iter().map(Value::from).collect();
            assert_eq!(table.column(&column).unwrap(), expected, "{name}: {column}");
        }
    }
}

#[test]
fn parquet_is_read_up_to_the_limit_and_no_further_than_it_is_whole() {
    let whole = golden_parquet("types.parquet");
    let one = ReadOptions {
        limit: Some(1),
        ..ReadOptions::default()
    };
    assert_eq!(read("a.parquet", &whole, &one).unwrap().len(), 1);
    let error = read_default("cut.parquet", &whole[..whole.len() / 2]).unwrap_err();
    assert!(matches!(error, DataError::Parquet { .. }), "{error}");
}

/// Spark, ClickHouse and Impala write text as bytes without a type.
#[test]
fn bytes_in_parquet_that_are_no_text_are_refused() {
    let error = read_default("a.parquet", golden_parquet("latin.parquet")).unwrap_err();
    assert!(
        matches!(&error, DataError::WrongType { row: 2, column, .. } if column == "x"),
        "{error}"
    );
    assert!(error.to_string().contains("not UTF-8"), "{error}");
}

#[test]
fn types_that_no_task_can_use_are_refused_when_they_are_asked_for() {
    let table = read_default("a.parquet", golden_parquet("map.parquet")).unwrap();
    assert!(table.column_names().eq(["text", "x", "inside"]));
    assert_eq!(table.texts("text").unwrap(), ["a"]);
    for column in ["x", "inside"] {
        let error = table.column(column).unwrap_err();
        assert!(
            matches!(error, DataError::UnreadableColumn { .. })
                && error.to_string().contains("MAP"),
            "{error}"
        );
    }
}

proptest! {
    /// Cells with quotes, newlines and separators, written by the `csv` crate, are read unchanged.
    #[test]
    fn csv_round_trips(
        rows in prop::collection::vec(prop::collection::vec("[a-zé,\"\n\r\t' ]{0,8}", 3), 1..20),
        tabs: bool,
    ) {
        let delimiter = if tabs { b'\t' } else { b',' };
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(vec![]);
        writer.write_record(["x", "y", "z"]).unwrap();
        for row in &rows {
            writer.write_record(row).unwrap();
        }
        let content = writer.into_inner().unwrap();
        let options = ReadOptions { quoting: Some(true), ..ReadOptions::default() };
        let table = read(if tabs { "a.tsv" } else { "a.csv" }, content, &options).unwrap();
        for (index, name) in ["x", "y", "z"].into_iter().enumerate() {
            let column: Vec<&str> = rows.iter().map(|row| row[index].as_str()).collect();
            prop_assert_eq!(table.texts(name).unwrap(), column);
        }
    }

    /// No input makes a reader panic.
    #[test]
    fn arbitrary_bytes_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        text in "[\\[\\]{},:\"\n\t a0é]{0,80}",
    ) {
        for name in ["a.csv", "a.tsv", "a.json", "a.txt", "a.parquet"] {
            let _ = read_default(name, &bytes);
            let _ = read_default(name, &text);
        }
    }
}
