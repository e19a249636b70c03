//! Conversations in the layouts that public data sets have, as the messages of a chat template.

use serde_json::{Map, Value as Json};

use crate::error::DataError;
use crate::table::{Cell, Table};

/// The messages of a cell: a list of objects, or its spelling as a text, as CSV has it. Messages of
/// ShareGPT's layout (`from`, `value`) become `role` and `content`.
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
    let messages: Result<_, _> = messages.into_iter().map(message).collect();
    messages.map_err(|reason| DataError::Conversation {
        path: table.path().to_owned(),
        row: row + 1,
        column: column.to_owned(),
        reason,
    })
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
    use serde_json::json;

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
