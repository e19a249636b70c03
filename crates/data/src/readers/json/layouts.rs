//! A file of one object, which is one row or holds the rows:
//!
//! | layout | example | written by |
//! | --- | --- | --- |
//! | rows under a name | `{"version": 1, "data": [{"text": …}, …]}` | many |
//! | questions under texts | `{"data": [{"paragraphs": [{"context": …, "qas": […]}]}]}` | SQuAD |
//! | columns of lists | `{"text": ["a", "b"], "label": [1, 0]}` | pandas, `orient="list"` |
//! | columns by row | `{"text": {"0": "a", "1": "b"}, "label": {…}}` | pandas, by default |
//! | rows by name | `{"0": {"text": "a"}, "1": {…}}` | pandas, `orient="index"` |

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::rows::Rows;
use crate::error::DataError;
use crate::readers::read::ReadOptions;
use crate::table::{Table, TableBuilder};

/// Where the rows are.
enum Layout {
    /// The object is a row.
    OneRow,
    /// The list of objects under this name.
    Under(String),
    /// Each member is a column: a list, or an object with one member a row.
    Columns,
    /// Each member is a row.
    ByName,
}

/// Reads the rows of an object of `size` bytes.
///
/// # Errors
/// [`DataError::SeveralTables`] if there are several lists of rows; as [`Table::read`].
pub(super) fn read(
    path: &Path,
    size: usize,
    options: &ReadOptions,
    mut object: Map<String, Json>,
) -> Result<Table, DataError> {
    let columns = options.columns.as_deref();
    let layout = layout(&object, columns).map_err(|names| DataError::SeveralTables {
        path: path.to_owned(),
        names,
    })?;
    let say = |layout: &str| tracing::info!(file = %path.display(), "{layout}");
    let mut table = TableBuilder::new(path, options, size);
    let limit = options.limit.unwrap_or(usize::MAX);
    let rows: Vec<Json> = match layout {
        Layout::OneRow => vec![Json::Object(object)],
        Layout::Under(name) => {
            say(&format!(
                "the file is one object; its rows are the list `{name}`"
            ));
            match object.remove(&name) {
                Some(Json::Array(rows)) => rows.into_iter().flat_map(questions).collect(),
                _ => Vec::new(),
            }
        }
        Layout::ByName => {
            say("the file is one object; each of its members is a row");
            object.into_iter().map(|(_, row)| row).collect()
        }
        Layout::Columns => {
            say("the file is one object; each of its members is a column");
            let mut rows = 0;
            for (name, cells) in object {
                let cells: Vec<Json> = match cells {
                    Json::Array(cells) => cells,
                    Json::Object(cells) => cells.into_iter().map(|(_, cell)| cell).collect(),
                    _ => Vec::new(),
                };
                rows = rows.max(cells.len().min(limit));
                if let Some(index) = table.named(&name)?
                    && let Some(column) = table.column(index)
                {
                    let cells = cells.into_iter().take(limit);
                    cells.for_each(|cell| column.push(cell.into()));
                }
            }
            table.end_rows(rows)?;
            return table.finish();
        }
    };
    let mut table = Rows::new(table);
    for (number, row) in rows.into_iter().take(limit).enumerate() {
        let read = table.read_row(row);
        read.map_err(|error| {
            table.error(|| DataError::InvalidJson {
                path: path.to_owned(),
                line: 1,
                reason: format!("row {}: {error}", number + 1),
                advice: "each row must be one JSON object",
                cut: false,
            })
        })?;
    }
    table.finish()
}

/// The questions of an article of SQuAD, each a row with its text and the article's title; another
/// row as it is.
fn questions(row: Json) -> Vec<Json> {
    let Json::Object(mut article) = row else {
        return vec![row];
    };
    let Some(Json::Array(paragraphs)) = article.get_mut("paragraphs").map(Json::take) else {
        return vec![Json::Object(article)];
    };
    let title = article.remove("title");
    let mut rows = Vec::new();
    for mut paragraph in paragraphs {
        let context = paragraph.get_mut("context").map(Json::take);
        let Some(Json::Array(qas)) = paragraph.get_mut("qas").map(Json::take) else {
            continue;
        };
        for question in qas {
            let Json::Object(mut row) = question else {
                continue;
            };
            for (name, value) in [("title", &title), ("context", &context)] {
                if let Some(value) = value {
                    row.insert(name.to_owned(), value.clone());
                }
            }
            rows.push(Json::Object(row));
        }
    }
    rows
}

/// The layout of an object of which these columns are wanted, or all; the names of the lists of
/// rows if there are several.
fn layout(object: &Map<String, Json>, wanted: Option<&[String]>) -> Result<Layout, Vec<String>> {
    let is_wanted = |name: &str| wanted.is_some_and(|it| it.iter().any(|it| it == name));
    let lists: Vec<&Vec<Json>> = object.values().filter_map(Json::as_array).collect();
    let objects: Vec<&Map<String, Json>> = object.values().filter_map(Json::as_object).collect();
    if let [first, ..] = lists.as_slice()
        && lists.len() == object.len()
        && lists.iter().all(|list| list.len() == first.len())
        && lists
            .iter()
            .any(|list| list.iter().any(|it| !it.is_object()))
    {
        return Ok(Layout::Columns);
    }
    if let [first, ..] = objects.as_slice()
        && objects.len() == object.len()
    {
        let has_wanted =
            !object.keys().any(|name| is_wanted(name)) && first.keys().any(|name| is_wanted(name));
        if has_wanted || object.keys().all(|name| is_number(name)) {
            return Ok(Layout::ByName);
        }
        let same_rows = objects.iter().all(|column| column.keys().eq(first.keys()));
        if same_rows && first.keys().all(|name| is_number(name)) && !first.is_empty() {
            return Ok(Layout::Columns);
        }
    }
    // A list of objects may be a cell, such as messages, and then its column is wanted.
    if object.keys().any(|name| is_wanted(name)) {
        return Ok(Layout::OneRow);
    }
    let is_table = |value: &Json| {
        let items = value.as_array();
        items.is_some_and(|items| !items.is_empty() && items.iter().all(Json::is_object))
    };
    let tables = object.iter().filter(|(_, value)| is_table(value));
    let mut tables: Vec<&String> = tables.map(|(name, _)| name).collect();
    if wanted.is_none() {
        tables.retain(|name| *name == "data");
    }
    match tables.as_slice() {
        [] => Ok(Layout::OneRow),
        [name] => Ok(Layout::Under((*name).clone())),
        names => Err(names.iter().map(|name| (*name).clone()).collect()),
    }
}

fn is_number(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit())
}
