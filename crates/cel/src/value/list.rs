//! Lists: of JSON, of JSON with a schema, and made by an expression.

use std::sync::Arc;

use serde_json::Value as Json;

use super::Value;
use crate::error::Error;
use crate::schema::DeclType;

/// A list.
#[derive(Clone, Debug)]
pub enum List<'a> {
    /// Items without a schema.
    Json(&'a [Json]),
    /// Items with the schema of the list.
    Typed(&'a [Json], &'a DeclType),
    /// Items made by an expression; with the schema of the list when it goes on being a set or a map.
    Owned(Arc<Vec<Value<'a>>>, Option<&'a DeclType>),
}

impl<'a> List<'a> {
    /// How many items there are.
    pub fn len(&self) -> usize {
        match self {
            List::Json(items) | List::Typed(items, _) => items.len(),
            List::Owned(items, _) => items.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An item; an error when it does not fit its schema.
    pub fn get(&self, index: usize) -> Option<Result<Value<'a>, Error>> {
        match self {
            List::Json(items) => items.get(index).map(|v| Ok(Value::from_json(v))),
            List::Typed(items, schema) => items.get(index).map(|v| schema.item().value(v)),
            List::Owned(items, _) => items.get(index).cloned().map(Ok),
        }
    }

    /// All items.
    pub fn iter(&self) -> impl Iterator<Item = Result<Value<'a>, Error>> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// All items as values.
    pub(crate) fn to_vec(&self) -> Result<Vec<Value<'a>>, Error> {
        match self {
            List::Owned(items, _) => Ok(items.to_vec()),
            _ => self.iter().collect(),
        }
    }

    /// The schema, where it says more than that there are items.
    pub(crate) fn schema(&self) -> Option<&'a DeclType> {
        match self {
            List::Json(_) => None,
            List::Typed(_, schema) => Some(schema),
            List::Owned(_, schema) => *schema,
        }
    }
}
