//! The targets, by what they are of; and what several of them need.

pub mod apply;
pub mod codec;
pub mod custom;
pub mod expression;
pub mod images;
pub mod objects;
pub mod patch;
pub mod secrets;
pub mod server;
pub mod text;
pub mod url;
pub mod wire;

use api::resources::{self, Resource};
use jiff::Timestamp;
use serde_json::Value;

use crate::mutate;

/// The parts of an input, and empty ones after the last.
pub struct Parts<'a>(std::vec::IntoIter<&'a [u8]>);

impl<'a> Parts<'a> {
    pub fn of(input: &'a [u8]) -> Parts<'a> {
        Parts(mutate::split(input).into_iter())
    }

    pub fn bytes(&mut self) -> &'a [u8] {
        self.0.next().unwrap_or_default()
    }

    /// The next part as text; nothing when it is none.
    pub fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()).ok()
    }

    /// The next part as a tree, read as the server reads bodies.
    pub fn tree(&mut self) -> Option<Value> {
        api::codec::parse_json(self.bytes()).ok().map(|d| d.value)
    }
}

/// The resource that an object says to be of, or any, which the object then is of.
pub fn resource_of(object: &mut Value) -> Option<&'static Resource> {
    let gvk = api::codec::Gvk::of(object);
    if let Some(found) = resources::find_kind(&gvk.group, &gvk.version, &gvk.kind) {
        return Some(found);
    }
    let all = resources::all();
    let number = gvk.kind.bytes().fold(gvk.version.len(), |n, b| n.wrapping_mul(31).wrapping_add(b.into()));
    let any = &all[number % all.len()];
    let map = object.as_object_mut()?;
    map.insert("apiVersion".into(), any.api_version().into());
    map.insert("kind".into(), any.kind.into());
    Some(any)
}

/// The object in its normal form, as everything behind the decoders may expect it.
pub fn normal(resource: &Resource, mut object: Value) -> Option<Value> {
    api::schema::normalize(resource.type_name, &mut object).ok()?;
    Some(object)
}

/// The time in all targets.
pub fn now() -> Timestamp {
    Timestamp::from_second(1_790_000_000).unwrap_or_default()
}
