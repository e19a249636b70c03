//! What a model is to write about: prompts, each once, with the texts that would be right.

use epiphyte_data::{DataError, Fields, LabelField, Prompt, Table, Value, WritingPrompt};
use serde_json::json;

use crate::support::{
    character_tokenizer, conversations, ending_tokenizer, language_tokenizer, table,
};

#[test]
fn rows_with_the_same_prompt_are_one_with_several_references() {
    let tokenizer = character_tokenizer(&json!({"eos_token": "</s>"}));
    let rows = table(&[
        ("mr", &["a", "b", "a"]),
        ("ref", &["one", "two", "three"]),
        ("other", &["1", "2", "3"]),
    ]);
    let fields = Fields::PromptCompletion {
        prompt: Prompt::template("{mr}: ").unwrap(),
        completion: "ref".into(),
    };
    let of =
        |references| WritingPrompt::of_table(&rows, &fields, &tokenizer, references, 64).unwrap();
    let prompts = of(None);
    let shown: Vec<_> = prompts
        .iter()
        .map(|prompt| (prompt.text.as_str(), prompt.references.clone(), prompt.row))
        .collect();
    let texts = |texts: &[&str]| {
        texts
            .iter()
            .map(|&text| text.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        shown,
        [
            ("a: ", texts(&["one", "three"]), 0),
            ("b: ", texts(&["two"]), 1)
        ]
    );
    // The blank at the end is of what follows, as in training.
    assert_eq!(prompts[0].ids, [97, 58]);
    assert_eq!(of(Some("other"))[0].references, ["1", "3"]);

    // Data to write about need not have what is right.
    let prompts = table(&[("mr", &["a"])]);
    let prompts = WritingPrompt::of_table(&prompts, &fields, &tokenizer, None, 64).unwrap();
    assert!(prompts[0].references.is_empty());
}

#[test]
fn lists_of_references_are_several_and_other_cells_errors() {
    let tokenizer = character_tokenizer(&json!({"eos_token": "</s>"}));
    let fields = Fields::PlainText {
        text: "text".into(),
    };
    let of = |cell: Value| {
        let columns = [
            ("text".to_owned(), vec![Value::Text("a".into())]),
            ("right".to_owned(), vec![cell]),
        ];
        let table = Table::from_columns("rows.jsonl", columns).unwrap();
        WritingPrompt::of_table(&table, &fields, &tokenizer, Some("right"), 64)
    };
    let several = of(Value::Json(json!(["x", "y"]))).unwrap();
    assert_eq!(several[0].references, ["x", "y"]);
    for cell in [Value::Integer(1), Value::Null, Value::Json(json!(["x", 1]))] {
        let error = of(cell).unwrap_err();
        assert!(
            matches!(&error, DataError::WrongType { row: 1, column, .. } if column == "right"),
            "{error:?}"
        );
    }
}

#[test]
fn a_conversation_ends_where_the_last_answer_begins() {
    let tokenizer = language_tokenizer();
    let turns = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "no"},
    ]);
    let open = json!([{"role": "user", "content": "hi"}]);
    let fields = Fields::Messages {
        messages: "messages".into(),
    };
    let rows = conversations(&[turns, open]);
    let prompts = WritingPrompt::of_table(&rows, &fields, &tokenizer, None, 64).unwrap();
    assert_eq!(prompts[0].references, ["no"]);
    assert!(prompts[0].text.contains("yes") && !prompts[0].text.contains("no"));
    assert!(
        prompts[0].text.ends_with("<|im_start|>assistant\n"),
        "{}",
        prompts[0].text
    );
    assert_eq!(
        prompts[0].ids,
        tokenizer.align(&prompts[0].text, false).unwrap().ids
    );
    assert!(prompts[1].references.is_empty());
}

#[test]
fn sources_are_read_as_in_training() {
    let tokenizer = ending_tokenizer();
    let rows = table(&[("source", &["abcdef"]), ("target", &["x"])]);
    let fields = Fields::SourceTarget {
        source: "source".into(),
        target: "target".into(),
    };
    let prompts = WritingPrompt::of_table(&rows, &fields, &tokenizer, None, 4).unwrap();
    assert_eq!(prompts[0].ids, [97, 98, 99, 203]);
    assert_eq!(prompts[0].references, ["x"]);
    let classes = Fields::Texts {
        text: "source".into(),
        pair: None,
        label: LabelField::Absent,
    };
    let error = WritingPrompt::of_table(&rows, &classes, &tokenizer, None, 4).unwrap_err();
    assert!(matches!(error, DataError::Columns { .. }), "{error:?}");
    let empty = table(&[("text", &[""])]);
    let fields = Fields::PlainText {
        text: "text".into(),
    };
    let tokenizer = character_tokenizer(&json!({}));
    let error = WritingPrompt::of_table(&empty, &fields, &tokenizer, None, 4).unwrap_err();
    assert!(
        matches!(error, DataError::EmptyText { row: 1, .. }),
        "{error:?}"
    );
}
