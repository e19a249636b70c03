//! Conversations in the layouts that public data sets have, as the messages of a chat template.

use serde_json::{Map, Value as Json, json};

use crate::error::DataError;
use crate::table::{Cell, Table};

/// The column that ShareGPT's layout may have beside the conversation.
pub(crate) const SYSTEM: &str = "system";

/// The messages of a cell: a list of objects, or its spelling as a text, as CSV has it. Messages of
/// ShareGPT's layout (`from`, `value`) become `role` and `content`, after the text of the column
/// `system`, if there is one.
///
/// # Errors
/// [`DataError::WrongType`]; [`DataError::Conversation`] for a message of an unknown speaker.
pub(crate) fn messages(table: &Table, column: &str, row: usize) -> Result<Vec<Json>, DataError> {
    let wrong_type = || table.wrong_type(row, column, "a list of messages");
    let text = match table.cells(column)?.cell(row) {
        Cell::Json(text) | Cell::Text(text) => text,
        _ => return Err(wrong_type()),
    };
    let Ok(Json::Array(messages)) = serde_json::from_str(text) else {
        return Err(wrong_type());
    };
    let is_shared = messages.iter().any(|message| message.get("from").is_some());
    let messages: Result<Vec<Json>, _> = messages.into_iter().map(message).collect();
    let mut messages = messages.map_err(|reason| table.conversation(row, column, reason))?;
    if is_shared
        && let Some(system) = system(table, row)
        && messages
            .first()
            .is_none_or(|first| first["role"] != "system")
    {
        messages.insert(0, json!({ "role": "system", "content": system }));
    }
    Ok(messages)
}

/// The text of ShareGPT's column of the system message; none where there is none or it is empty.
fn system(table: &Table, row: usize) -> Option<&str> {
    let cells = table.has_column(SYSTEM).then(|| table.cells(SYSTEM).ok());
    match cells??.cell(row) {
        Cell::Text(text) => Some(text).filter(|text| !text.trim().is_empty()),
        _ => None,
    }
}

/// A message with `role` and `content`; what is in no known layout stays as it is.
fn message(message: Json) -> Result<Json, String> {
    let Json::Object(mut members) = message else {
        return Ok(message);
    };
    let (Some(Json::String(from)), true) = (members.get("from"), members.contains_key("value"))
    else {
        return Ok(Json::Object(members));
    };
    if members.contains_key("role") {
        return Ok(Json::Object(members));
    }
    let role = role(from).ok_or_else(|| {
        format!(
            "a message is from `{from}`: known are `human`, `user`, `gpt`, `assistant`, `model`, \
             `system`, `tool`, `function` and `observation`"
        )
    })?;
    let content = members.shift_remove("value").unwrap_or_default();
    members.shift_remove("from");
    let mut renamed = Map::new();
    renamed.insert("role".to_owned(), role.into());
    renamed.insert("content".to_owned(), content);
    renamed.extend(members);
    Ok(Json::Object(renamed))
}

/// The role of a speaker of ShareGPT's.
fn role(from: &str) -> Option<&'static str> {
    Some(match from.to_ascii_lowercase().as_str() {
        "human" | "user" | "prompter" => "user",
        "gpt" | "chatgpt" | "bard" | "bing" | "claude" | "assistant" | "model" | "bot" => {
            "assistant"
        }
        "system" => "system",
        "tool" | "function" | "observation" | "function_response" => "tool",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Value;

    fn read(cell: Value) -> Result<Json, DataError> {
        let columns = [("messages".to_owned(), vec![cell])];
        let table = Table::from_columns("chat.jsonl", columns).unwrap();
        Ok(Json::Array(messages(&table, "messages", 0)?))
    }

    #[test]
    fn layouts_become_role_and_content() {
        let openai = json!([{"role": "user", "content": "hi"}, {"role": "model", "content": "x"}]);
        let spelled = Value::Text(openai.to_string());
        for cell in [Value::Json(openai.clone()), spelled] {
            assert_eq!(read(cell).unwrap(), openai);
        }
        let shared = json!([
            {"from": "human", "value": "hi", "weight": 0}, {"from": "gpt", "value": "x"},
        ]);
        assert_eq!(
            read(Value::Json(shared)).unwrap(),
            json!([
                {"role": "user", "content": "hi", "weight": 0},
                {"role": "assistant", "content": "x"},
            ])
        );
    }

    #[test]
    fn a_system_column_of_sharegpt_is_the_first_message() {
        let shared = json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]);
        let own = json!([{"from": "system", "value": "own"}, {"from": "human", "value": "hi"}]);
        let openai = json!([{"role": "user", "content": "hi"}]);
        let read = |conversation: &Json, system: Value| {
            let columns = [
                (
                    "conversations".to_owned(),
                    vec![Value::Json(conversation.clone())],
                ),
                ("system".to_owned(), vec![system]),
            ];
            let table = Table::from_columns("chat.jsonl", columns).unwrap();
            messages(&table, "conversations", 0).unwrap()
        };
        let told = read(&shared, Value::Text("Be brief.".into()));
        assert_eq!(told[0], json!({"role": "system", "content": "Be brief."}));
        assert_eq!(told.len(), 3);
        for nothing in [Value::Null, Value::Text(" ".into())] {
            assert_eq!(read(&shared, nothing).len(), 2);
        }
        let own = read(&own, Value::Text("other".into()));
        assert_eq!((own.len(), &own[0]["content"]), (2, &json!("own")));
        assert_eq!(read(&openai, Value::Text("other".into())).len(), 1);
    }

    #[test]
    fn what_is_no_conversation_is_named() {
        let of_stranger = json!([{"from": "narrator", "value": "hi"}]);
        for (cell, word) in [
            (Value::Json(of_stranger), "`narrator`"),
            (Value::Json(json!({})), "an object where a list of messages"),
            (Value::Text("[{]".into()), "the text `[{]` where a list"),
            (Value::Null, "null where a list"),
        ] {
            let error = read(cell).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
            assert!(error.contains("row 1, column `messages`"), "{error}");
        }
    }
}
