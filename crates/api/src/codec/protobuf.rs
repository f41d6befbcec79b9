//! The Kubernetes protobuf form: the `k8s\0` magic, a `runtime.Unknown` envelope and a message
//! whose shape the fact table gives. Output is byte for byte what upstream writes for the same
//! object: fields in number order, zero values of non-pointer fields written, map keys sorted.

use super::wire::{Part, Reader, put_bytes, put_fixed64, put_int, put_nested, put_varint};
use super::{DecodeError, Decoded, EncodeError, Gvk, json};
use crate::facts::{self, Field, Presence, Ty, Type};
use crate::gotime;
use crate::quantity::Quantity;
use crate::schema;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value};

/// The first four bytes of every object.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// A decoded `runtime.Unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    pub content_type: String,
}

/// Takes the magic and the envelope off.
pub fn decode_envelope(bytes: &[u8]) -> Result<Envelope<'_>, DecodeError> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Err(DecodeError::Protobuf(
            "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]".into(),
        ));
    };
    let mut envelope = Envelope::default();
    let mut reader = Reader::new(rest);
    while let Some((number, part)) = reader.next()? {
        match (number, part) {
            (1, Part::Bytes(meta)) => {
                let mut reader = Reader::new(meta);
                while let Some(field) = reader.next()? {
                    match field {
                        (1, Part::Bytes(text)) => envelope.api_version = utf8(text)?,
                        (2, Part::Bytes(text)) => envelope.kind = utf8(text)?,
                        _ => {}
                    }
                }
            }
            (2, Part::Bytes(raw)) => envelope.raw = raw,
            (4, Part::Bytes(text)) => envelope.content_type = utf8(text)?,
            _ => {}
        }
    }
    Ok(envelope)
}

/// Decodes an object that was stored, maybe in a version of before.
pub fn decode_stored(bytes: &[u8]) -> Result<Value, DecodeError> {
    let mut envelope = decode_envelope(bytes)?;
    let (group, version) = crate::resources::split_api_version(&envelope.api_version);
    if let Some(version) = crate::resources::stable_version(group, version, &envelope.kind) {
        envelope.api_version = crate::resources::api_version(group, version);
    }
    of_envelope(envelope).map(|decoded| decoded.value)
}

/// Decodes an object with its envelope.
pub fn decode_object(bytes: &[u8], expect: Option<&Gvk>) -> Result<Decoded, DecodeError> {
    let mut envelope = decode_envelope(bytes)?;
    if let Some(expect) = expect {
        if envelope.kind.is_empty() {
            envelope.kind = expect.kind.clone();
        }
        if envelope.api_version.is_empty() {
            envelope.api_version = expect.api_version();
        }
    }
    of_envelope(envelope)
}

fn of_envelope(envelope: Envelope<'_>) -> Result<Decoded, DecodeError> {
    if envelope.content_type == "application/json" {
        return json::parse(envelope.raw);
    }
    let (group, version) = crate::resources::split_api_version(&envelope.api_version);
    let ty = crate::resources::type_name(group, version, &envelope.kind).and_then(facts::type_by_name);
    let Some(ty) = ty else {
        return Err(DecodeError::UnknownKind { api_version: envelope.api_version, kind: envelope.kind });
    };
    let mut map = decode_message(ty, envelope.raw)?;
    // options are of any version, and of none
    if !envelope.api_version.is_empty() {
        map.insert("apiVersion".into(), envelope.api_version.into());
    }
    map.insert("kind".into(), envelope.kind.into());
    Ok(Decoded { value: Value::Object(map), duplicates: Vec::new() })
}

/// Decodes a bare message into the normal form.
pub fn decode_message(ty: &'static Type, bytes: &[u8]) -> Result<Map<String, Value>, DecodeError> {
    message(ty, bytes, 0)
}

/// Messages in messages, at most: a type that nests in itself could exhaust the stack otherwise. JSON allows no more.
const MAX_DEPTH: usize = 64;

fn message(ty: &'static Type, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, DecodeError> {
    if depth > MAX_DEPTH {
        return Err(DecodeError::Protobuf(format!("proto: messages are nested more than {MAX_DEPTH} deep")));
    }
    let mut map = Map::new();
    fields(ty, bytes, &mut map, depth)?;
    schema::fill(ty, &mut map);
    Ok(map)
}

fn fields(ty: &'static Type, bytes: &[u8], map: &mut Map<String, Value>, depth: usize) -> Result<(), DecodeError> {
    let mut reader = Reader::new(bytes);
    while let Some((number, part)) = reader.next()? {
        let Some(field) = ty.by_number(number) else { continue };
        match (field.ty, part) {
            (Ty::Struct(id), Part::Bytes(nested)) if field.inline => fields(id.get(), nested, map, depth)?,
            (Ty::List(item), part) => {
                let list = entry(map, field.json, Value::Array(Vec::new()));
                let Value::Array(list) = list else { continue };
                match (item, part) {
                    (Ty::Int32 | Ty::Int64 | Ty::Bool, Part::Bytes(packed)) => {
                        let mut packed = Reader::new(packed);
                        while !packed.is_empty() {
                            list.push(value(*item, Part::Varint(packed.varint()?), depth)?);
                        }
                    }
                    _ => list.push(value(*item, part, depth)?),
                }
            }
            (Ty::Map(item), Part::Bytes(pair)) => {
                let (mut key, mut content) = (String::new(), None);
                let mut reader = Reader::new(pair);
                while let Some((number, part)) = reader.next()? {
                    match (number, part) {
                        (1, Part::Bytes(text)) => key = utf8(text)?,
                        (2, part) => content = Some(value(*item, part, depth)?),
                        _ => {}
                    }
                }
                let mut content = content.unwrap_or_else(|| schema::zero(*item));
                if matches!(item, Ty::Quantity) {
                    schema::whole_milli(&mut content);
                }
                if let Value::Object(object) = entry(map, field.json, Value::Object(Map::new())) {
                    object.insert(key, content);
                }
            }
            (inner, part) => {
                let content = value(inner, part, depth)?;
                let empty = match field.presence {
                    Presence::Always => false,
                    Presence::OmitEmpty => schema::is_empty(inner, &content),
                    Presence::OmitZero => content.is_null() || schema::is_empty(inner, &content),
                };
                if field.pointer || !empty {
                    map.insert(field.json.to_owned(), content);
                } else {
                    map.remove(field.json);
                }
            }
        }
    }
    Ok(())
}

fn entry<'m>(map: &'m mut Map<String, Value>, key: &str, empty: Value) -> &'m mut Value {
    map.entry(key).or_insert(empty)
}

fn utf8(bytes: &[u8]) -> Result<String, DecodeError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(_) => Ok(String::from_utf8_lossy(bytes).into_owned()),
    }
}

fn value(ty: Ty, part: Part<'_>, depth: usize) -> Result<Value, DecodeError> {
    Ok(match (ty, part) {
        (Ty::String | Ty::Named(_), Part::Bytes(text)) => Value::String(utf8(text)?),
        (Ty::Bool, Part::Varint(v)) => Value::Bool(v != 0),
        (Ty::Int32, Part::Varint(v)) => Value::Number((v as i32).into()),
        (Ty::Int64, Part::Varint(v)) => Value::Number((v as i64).into()),
        (Ty::Float64, Part::Fixed64(v)) => Number::from_f64(f64::from_bits(v)).map_or(Value::Null, Value::Number),
        (Ty::Bytes, Part::Bytes(data)) => Value::String(STANDARD.encode(data)),
        (Ty::Time | Ty::MicroTime, Part::Bytes(data)) => {
            if data.is_empty() {
                return Ok(Value::Null);
            }
            let (seconds, nanos) = (int_field(data, 1)?, i64::from(int_field(data, 2)? as i32));
            let seconds = seconds.saturating_add(nanos.div_euclid(1_000_000_000));
            let nanos = nanos.rem_euclid(1_000_000_000) as u32;
            if !gotime::WRITABLE.contains(&seconds) {
                return Err(DecodeError::Protobuf("proto: the year of a time is outside of [0,9999]".into()));
            }
            match ty {
                Ty::Time if seconds == gotime::ZERO => Value::Null,
                Ty::Time => Value::String(gotime::format(seconds)),
                _ if (seconds, nanos) == (gotime::ZERO, 0) => Value::Null,
                _ => Value::String(gotime::format_micro(seconds, nanos)),
            }
        }
        (Ty::Duration, Part::Bytes(data)) => Value::String(gotime::format_duration(int_field(data, 1)?)),
        (Ty::Quantity, Part::Bytes(data)) => match bytes_field(data, 1)? {
            Some(text) => Value::String(Quantity::parse(&utf8(text)?).map_err(|e| DecodeError::Protobuf(e.to_string()))?.canonical()),
            None => Value::String("0".into()),
        },
        (Ty::IntOrString, Part::Bytes(data)) => {
            if int_field(data, 1)? == 0 {
                Value::Number((int_field(data, 2)? as i32).into())
            } else {
                Value::String(utf8(bytes_field(data, 3)?.unwrap_or_default())?)
            }
        }
        (Ty::RawExtension | Ty::FieldsV1 | Ty::Json, Part::Bytes(data)) => raw(bytes_field(data, 1)?.unwrap_or_default())?,
        (Ty::PropsOrArray, Part::Bytes(data)) => {
            let (one, many) = (bytes_field(data, 1)?, all_bytes(data, 2)?);
            match one {
                Some(one) => props(one, depth)?,
                None if many.is_empty() => Value::Null,
                None => Value::Array(many.into_iter().map(|one| props(one, depth)).collect::<Result<_, _>>()?),
            }
        }
        (Ty::PropsOrBool, Part::Bytes(data)) => match bytes_field(data, 2)? {
            Some(one) => props(one, depth)?,
            None => Value::Bool(int_field(data, 1)? != 0),
        },
        (Ty::PropsOrStrings, Part::Bytes(data)) => match bytes_field(data, 1)? {
            Some(one) => props(one, depth)?,
            None => strings(&all_bytes(data, 2)?)?,
        },
        (Ty::Strings, Part::Bytes(data)) => strings(&all_bytes(data, 1)?)?,
        (Ty::Struct(id), Part::Bytes(data)) => Value::Object(message(id.get(), data, depth + 1)?),
        (ty, part) => {
            return Err(DecodeError::Protobuf(format!("proto: wrong wireType for a {}: {part:?}", ty.go())));
        }
    })
}

fn props(data: &[u8], depth: usize) -> Result<Value, DecodeError> {
    let ty = schema::props_type();
    Ok(Value::Object(message(ty, data, depth + 1)?))
}

fn strings(parts: &[&[u8]]) -> Result<Value, DecodeError> {
    Ok(Value::Array(parts.iter().map(|p| utf8(p).map(Value::String)).collect::<Result<_, _>>()?))
}

/// The bytes of an embedded object: JSON, or an object with its envelope.
fn raw(data: &[u8]) -> Result<Value, DecodeError> {
    if data.is_empty() {
        Ok(Value::Null)
    } else if data.starts_with(MAGIC) {
        Ok(decode_object(data, None)?.value)
    } else {
        Ok(json::parse(data)?.value)
    }
}

fn int_field(data: &[u8], wanted: u32) -> Result<i64, DecodeError> {
    let (mut reader, mut found) = (Reader::new(data), 0);
    while let Some((number, part)) = reader.next()? {
        if let (true, Part::Varint(v)) = (number == wanted, part) {
            found = v as i64;
        }
    }
    Ok(found)
}

fn bytes_field(data: &[u8], wanted: u32) -> Result<Option<&[u8]>, DecodeError> {
    Ok(all_bytes(data, wanted)?.pop())
}

fn all_bytes(data: &[u8], wanted: u32) -> Result<Vec<&[u8]>, DecodeError> {
    let (mut reader, mut found) = (Reader::new(data), Vec::new());
    while let Some((number, part)) = reader.next()? {
        if let (true, Part::Bytes(v)) = (number == wanted, part) {
            found.push(v);
        }
    }
    Ok(found)
}

/// The type of objects of a kind, if it has a protobuf form.
fn type_of(gvk: &Gvk) -> Result<&'static Type, EncodeError> {
    let ty = crate::resources::type_name(&gvk.group, &gvk.version, &gvk.kind).and_then(facts::type_by_name);
    ty.filter(|ty| ty.fields.iter().any(|f| f.number != 0)).ok_or_else(|| EncodeError::NoProtobuf(gvk.kind.clone()))
}

/// Magic and the envelope's first field: what the object is.
fn begin(gvk: &Gvk, capacity: usize) -> Vec<u8> {
    let mut meta = Vec::with_capacity(64);
    put_bytes(&mut meta, 1, gvk.api_version().as_bytes());
    put_bytes(&mut meta, 2, gvk.kind.as_bytes());
    let mut out = Vec::with_capacity(MAGIC.len() + meta.len() + capacity + 16);
    out.extend_from_slice(MAGIC);
    put_bytes(&mut out, 1, &meta);
    out
}

/// The envelope's last fields: no encoding, no content type.
const END: &[u8] = &[0x1a, 0, 0x22, 0];

/// Encodes an object with magic and envelope. Its type is found by its `apiVersion` and `kind`.
pub fn encode_object(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let gvk = Gvk::of(object);
    let ty = type_of(&gvk)?;
    let empty = Map::new();
    let map = object.as_object().unwrap_or(&empty);
    let mut out = begin(&gvk, 1024);
    put_nested(&mut out, 2, |out| encode_message(ty, map, out))?;
    out.extend_from_slice(END);
    Ok(out)
}

/// An object's message alone, as lists hold it and as [`envelope`] takes it.
pub fn encode_bare(object: &Value) -> Result<Vec<u8>, EncodeError> {
    let ty = type_of(&Gvk::of(object))?;
    let mut out = Vec::with_capacity(1024);
    encode_message(ty, object.as_object().unwrap_or(&Map::new()), &mut out)?;
    out.shrink_to_fit();
    Ok(out)
}

/// An object with magic and envelope, from its message.
pub fn envelope(gvk: &Gvk, message: &[u8]) -> Vec<u8> {
    let mut out = begin(gvk, message.len());
    put_bytes(&mut out, 2, message);
    out.extend_from_slice(END);
    out
}

/// What a list is beside its items, which are written one by one.
pub struct ListFrame {
    /// Everything before the first item.
    pub head: Vec<u8>,
    /// Bytes of the whole list.
    pub size: usize,
    number: u32,
}

impl ListFrame {
    /// Of a list of this kind, with this ListMeta, whose items' messages have these lengths.
    pub fn new(gvk: &Gvk, meta: &Value, lengths: impl Iterator<Item = usize>) -> Result<ListFrame, EncodeError> {
        let ty = type_of(gvk)?;
        let number = ty.field("items").map_or(2, |f| f.number);
        let mut map = Map::new();
        map.insert("metadata".into(), meta.clone());
        let mut raw = Vec::new();
        encode_message(ty, &map, &mut raw)?;
        let mut head_of_one = Vec::new();
        let items: usize = lengths
            .map(|length| {
                head_of_one.clear();
                Self::item_head(number, length, &mut head_of_one);
                head_of_one.len() + length
            })
            .sum();
        let mut head = begin(gvk, raw.len());
        put_varint(&mut head, 2 << 3 | 2);
        put_varint(&mut head, (raw.len() + items) as u64);
        head.extend_from_slice(&raw);
        Ok(ListFrame { size: head.len() + items + END.len(), head, number })
    }

    fn item_head(number: u32, length: usize, out: &mut Vec<u8>) {
        put_varint(out, u64::from(number) << 3 | 2);
        put_varint(out, length as u64);
    }

    /// Appends an item.
    pub fn item(&self, message: &[u8], out: &mut Vec<u8>) {
        Self::item_head(self.number, message.len(), out);
        out.extend_from_slice(message);
    }

    /// Appends the end.
    pub fn end(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(END);
    }
}

/// A `metav1.WatchEvent` message around an object; no envelope of its own, as on a watch stream.
pub fn encode_watch_event_protobuf(kind: &str, object: &Value) -> Result<Vec<u8>, EncodeError> {
    Ok(watch_event_protobuf(kind, &encode_object(object)?))
}

/// The same around an object that is encoded already.
pub fn watch_event_protobuf(kind: &str, object: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(object.len() + 32);
    put_bytes(&mut out, 1, kind.as_bytes());
    let _ = put_nested(&mut out, 2, |out| {
        put_bytes(out, 1, object);
        Ok::<(), std::convert::Infallible>(())
    });
    out
}

/// Puts the length in front that separates messages of a watch stream (4 bytes, big endian).
pub fn frame(message: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(message.len() + 4);
    out.extend_from_slice(&(message.len() as u32).to_be_bytes());
    out.extend_from_slice(message);
    out
}

/// Appends the bare message of an object of a type.
pub fn encode_message(ty: &'static Type, map: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    for field in ty.numbered() {
        put_field(field, map, out).map_err(|e| match e {
            EncodeError::Type { path, expected } => EncodeError::Type { path: format!("{}.{path}", field.json), expected },
            other => other,
        })?;
    }
    Ok(())
}

fn put_field(field: &'static Field, map: &Map<String, Value>, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    if let (true, Ty::Struct(id)) = (field.inline, field.ty) {
        return put_nested(out, field.number, |out| encode_message(id.get(), map, out));
    }
    let content = map.get(field.json).filter(|v| !v.is_null());
    match (field.ty, content) {
        (Ty::List(item), Some(Value::Array(list))) => list.iter().try_for_each(|v| put(*item, field.number, v, out)),
        (Ty::Map(item), Some(Value::Object(object))) => {
            let mut keys: Vec<_> = object.iter().collect();
            keys.sort_by_key(|(k, _)| *k);
            keys.into_iter().try_for_each(|(key, v)| {
                put_nested(out, field.number, |out| {
                    put_bytes(out, 1, key.as_bytes());
                    put(*item, 2, v, out)
                })
            })
        }
        (Ty::List(_) | Ty::Map(_), None) => Ok(()),
        (Ty::List(_) | Ty::Map(_), Some(_)) => Err(mismatch(field.ty)),
        (ty, Some(content)) => put(ty, field.number, content, out),
        (_, None) if field.pointer => Ok(()),
        // a nil slice and a nil list message are absent, everything else writes its zero
        (Ty::Bytes, None) => Ok(()),
        (Ty::Strings, None) => Ok(()),
        (ty, None) => put(ty, field.number, &schema::zero(ty), out),
    }
}

fn mismatch(ty: Ty) -> EncodeError {
    EncodeError::Type { path: String::new(), expected: ty.go() }
}

fn put(ty: Ty, number: u32, content: &Value, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    let wrong = || mismatch(ty);
    match (ty, content) {
        (Ty::String | Ty::Named(_), Value::String(text)) => put_bytes(out, number, text.as_bytes()),
        (Ty::String | Ty::Named(_), Value::Null) => put_bytes(out, number, b""),
        (Ty::Bool, Value::Bool(v)) => put_int(out, number, i64::from(*v)),
        (Ty::Int32 | Ty::Int64, Value::Number(v)) => put_int(out, number, v.as_i64().ok_or_else(wrong)?),
        (Ty::Float64, Value::Number(v)) => put_fixed64(out, number, v.as_f64().ok_or_else(wrong)?.to_bits()),
        (Ty::Bytes, Value::String(text)) => put_bytes(out, number, &STANDARD.decode(text).map_err(|_| wrong())?),
        (Ty::Bytes, Value::Null) => put_bytes(out, number, b""),
        (Ty::Time | Ty::MicroTime, Value::Null) => put_bytes(out, number, b""),
        (Ty::Time | Ty::MicroTime, Value::String(text)) => {
            let (seconds, nanos) = gotime::parse(text).ok_or_else(wrong)?;
            let nanos = if matches!(ty, Ty::Time) { 0 } else { nanos / 1000 * 1000 };
            put_nested(out, number, |out| {
                put_int(out, 1, seconds);
                put_int(out, 2, i64::from(nanos));
                Ok(())
            })?;
        }
        (Ty::Duration, Value::String(text)) => {
            let nanos = gotime::parse_duration(text).ok_or_else(wrong)?;
            put_nested(out, number, |out| {
                put_int(out, 1, nanos);
                Ok(())
            })?;
        }
        (Ty::Quantity, Value::String(text)) => put_nested(out, number, |out| {
            put_bytes(out, 1, text.as_bytes());
            Ok(())
        })?,
        (Ty::Quantity, Value::Number(v)) => put(ty, number, &Value::String(v.to_string()), out)?,
        (Ty::IntOrString, Value::Number(v)) => {
            let v = v.as_i64().ok_or_else(wrong)?;
            put_int_or_string(out, number, 0, v, "")?;
        }
        (Ty::IntOrString, Value::String(text)) => put_int_or_string(out, number, 1, 0, text)?,
        (Ty::RawExtension | Ty::FieldsV1 | Ty::Json, content) => put_nested(out, number, |out| {
            if !content.is_null() || matches!(ty, Ty::Json) {
                put_bytes(out, 1, &super::to_json(content));
            }
            Ok(())
        })?,
        (Ty::PropsOrArray, Value::Array(list)) => put_nested(out, number, |out| list.iter().try_for_each(|v| put_props(out, 2, v)))?,
        (Ty::PropsOrArray | Ty::PropsOrStrings, Value::Object(_)) => put_nested(out, number, |out| put_props(out, 1, content))?,
        (Ty::PropsOrArray | Ty::Strings, Value::Null) => put_bytes(out, number, b""),
        (Ty::PropsOrBool, Value::Bool(allows)) => put_nested(out, number, |out| {
            put_int(out, 1, i64::from(*allows));
            Ok(())
        })?,
        (Ty::PropsOrBool, Value::Object(_)) => put_nested(out, number, |out| {
            put_int(out, 1, 1);
            put_props(out, 2, content)
        })?,
        (Ty::PropsOrStrings, Value::Array(list)) => put_nested(out, number, |out| list.iter().try_for_each(|v| put(Ty::String, 2, v, out)))?,
        (Ty::Strings, Value::Array(list)) => put_nested(out, number, |out| list.iter().try_for_each(|v| put(Ty::String, 1, v, out)))?,
        (Ty::Struct(id), Value::Object(map)) => put_nested(out, number, |out| encode_message(id.get(), map, out))?,
        (Ty::Struct(id), Value::Null) => put_nested(out, number, |out| encode_message(id.get(), &Map::new(), out))?,
        _ => return Err(wrong()),
    }
    Ok(())
}

fn put_props(out: &mut Vec<u8>, number: u32, content: &Value) -> Result<(), EncodeError> {
    let map = content.as_object().ok_or_else(|| mismatch(Ty::PropsOrArray))?;
    put_nested(out, number, |out| encode_message(schema::props_type(), map, out))
}

fn put_int_or_string(out: &mut Vec<u8>, number: u32, kind: i64, int: i64, text: &str) -> Result<(), EncodeError> {
    put_nested(out, number, |out| {
        put_int(out, 1, kind);
        put_int(out, 2, int);
        put_bytes(out, 3, text.as_bytes());
        Ok(())
    })
}

#[cfg(test)]
#[path = "protobuf_tests.rs"]
mod tests;
