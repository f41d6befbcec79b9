//! Custom resources as rows of a table: the columns that a definition adds, and their cells.

use super::path::JsonPath;
use super::{items, text};
use crate::gotime;
use crate::table::duration;
use jiff::Timestamp;
use serde_json::{Value, json};

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    kind: String,
    /// `None` where the path cannot be read: its cells stay empty.
    path: JsonPath,
    definition: Value,
}

/// The columns of a version of a definition, after the name. With none, the age.
pub fn columns(version: &Value) -> Vec<Column> {
    let given = items(version, "/additionalPrinterColumns");
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "The time since the object was created."});
    let all = if given.is_empty() { std::slice::from_ref(&age) } else { given };
    let mut columns = Vec::new();
    for column in all {
        let path = text(column, "/jsonPath");
        // one that cannot be read ends the list, as upstream has it
        let Some(parsed) = JsonPath::parse(path) else { break };
        let description = match text(column, "/description") {
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            text => text.to_owned(),
        };
        columns.push(Column {
            kind: text(column, "/type").to_owned(),
            path: parsed,
            definition: json!({
                "name": column["name"],
                "type": column["type"],
                "format": text(column, "/format"),
                "description": description,
                "priority": column.get("priority").and_then(Value::as_i64).unwrap_or(0),
            }),
        });
    }
    columns
}

/// The `columnDefinitions` of a table.
pub fn definitions(columns: &[Column]) -> Value {
    let name = json!({"name": "Name", "type": "string", "format": "name", "priority": 0,
        "description": "The name of the object, unique in its namespace."});
    std::iter::once(name).chain(columns.iter().map(|c| c.definition.clone())).collect()
}

/// The cells of an object's row.
pub fn row(columns: &[Column], object: &Value, now: Timestamp) -> Vec<Value> {
    let name = Value::from(text(object, "/metadata/name"));
    std::iter::once(name).chain(columns.iter().map(|c| c.cell(object, now))).collect()
}

impl Column {
    fn cell(&self, object: &Value, now: Timestamp) -> Value {
        let Some(value) = self.path.find(object).first().copied() else { return Value::Null };
        match (self.kind.as_str(), value) {
            ("string", value) => printed(value),
            ("integer", Value::Number(n)) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)).into(),
            ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => value.clone(),
            ("date", Value::String(text)) => match gotime::parse(text) {
                Some((gotime::ZERO, _)) => "<unknown>".into(),
                Some((seconds, _)) => duration::human(now.as_second() - seconds).into(),
                None => "<invalid>".into(),
            },
            _ => Value::Null,
        }
    }
}

/// A value as kubectl's JSONPath prints it.
fn printed(value: &Value) -> Value {
    match value {
        Value::String(text) => text.as_str().into(),
        Value::Null => Value::Null,
        other => other.to_string().into(),
    }
}
