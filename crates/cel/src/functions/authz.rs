//! Questions to the authorizer, built up call by call.

use std::sync::Arc;

use super::Res;
use crate::error::Error;
use crate::value::{Opaque, Stage, Value};

/// One more step of a question.
pub(super) fn ask<'a>(a: &[Value<'a>], step: &str) -> Res<'a> {
    let (Some(Value::Opaque(Opaque::Check(check))), Some(Value::String(text))) = (a.first(), a.get(1)) else {
        return Err(Error::no_overload());
    };
    let mut check = (**check).clone();
    let text = text.to_string();
    match (check.stage, step) {
        (Stage::Authorizer, "path") => {
            if text.trim().is_empty() {
                return Err(Error::new("path must not be empty"));
            }
            check.stage = Stage::Path;
            check.request.path = Some(text);
        }
        (Stage::Authorizer, "group") => {
            check.stage = Stage::Group;
            check.request.group = text;
        }
        (Stage::Authorizer, "serviceAccount") => {
            let Some(Value::String(name)) = a.get(2) else { return Err(Error::no_overload()) };
            if !api::names::dns1123_subdomain(name).is_empty() {
                return Err(Error::new("Invalid service account name"));
            }
            if !api::names::dns1123_label(&text).is_empty() {
                return Err(Error::new("Invalid service account namespace"));
            }
            check.request.service_account = Some((text, name.to_string()));
        }
        (Stage::Group, "resource") => {
            if text.trim().is_empty() {
                return Err(Error::new("resource must not be empty"));
            }
            check.stage = Stage::Resource;
            check.request.resource = text;
        }
        (Stage::Resource, "subresource") => check.request.subresource = text,
        (Stage::Resource, "namespace") => check.request.namespace = text,
        (Stage::Resource, "name") => check.request.name = text,
        (Stage::Resource, "fieldSelector") => check.request.field_selector = Some(text),
        (Stage::Resource, "labelSelector") => check.request.label_selector = Some(text),
        _ => return Err(Error::no_overload()),
    }
    Ok(Value::Opaque(Opaque::Check(Arc::new(check))))
}

/// Asks the question for a verb.
pub(super) fn check<'a>(a: &[Value<'a>]) -> Res<'a> {
    let [Value::Opaque(Opaque::Check(check)), Value::String(verb)] = a else { return Err(Error::no_overload()) };
    if !matches!(check.stage, Stage::Path | Stage::Resource) {
        return Err(Error::no_overload());
    }
    let mut request = check.request.clone();
    request.verb = verb.to_string();
    Ok(Value::Opaque(Opaque::Decision(Arc::new(check.authorizer.authorize(&request)))))
}

/// Looks at an answer.
pub(super) fn decision<'a>(a: &[Value<'a>], look: fn(&crate::value::Decision) -> Value<'a>) -> Res<'a> {
    match a {
        [Value::Opaque(Opaque::Decision(decision))] => Ok(look(decision)),
        _ => Err(Error::no_overload()),
    }
}
