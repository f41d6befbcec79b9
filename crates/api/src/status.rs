//! `metav1.Status`: the answer to a request that did not succeed (or has no
//! other answer), with the reasons, codes and sentences that clients know.
//!
//! One builder a reason. Resources are named by group and plural, kinds by
//! group and kind, as in upstream's `errors` package.

use crate::field::{FieldError, aggregate, go_quote};
use serde_json::{Map, Value, json};

/// A `metav1.Status`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason; empty when there is none.
    pub reason: String,
    /// Sentence for people.
    pub message: String,
    /// What the message is about.
    pub details: Option<Box<Details>>,
}

/// A `metav1.StatusDetails`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// API group.
    pub group: String,
    /// Plural of the resource, or kind for `invalid`.
    pub kind: String,
    /// UID of the object.
    pub uid: String,
    /// One a mistake.
    pub causes: Vec<Cause>,
    /// Seconds until another try makes sense; 0 = not said.
    pub retry_after_seconds: u32,
}

/// A `metav1.StatusCause`.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Cause {
    /// Machine-readable type (`FieldValueInvalid`, `FieldManagerConflict`, …).
    pub reason: String,
    /// Sentence for people.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

impl Status {
    fn new(code: u16, reason: &str, message: impl Into<String>, details: Option<Details>) -> Status {
        Status { code, reason: reason.to_owned(), message: message.into(), details: details.map(Box::new) }
    }

    /// The JSON object that goes over the wire.
    pub fn to_value(&self) -> Value {
        let mut v = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": if self.code >= 400 || self.code == 0 { "Failure" } else { "Success" },
        });
        let m = v.as_object_mut().expect("an object literal");
        put(m, "message", &self.message);
        put(m, "reason", &self.reason);
        if let Some(d) = &self.details {
            let mut o = Map::new();
            put(&mut o, "name", &d.name);
            put(&mut o, "group", &d.group);
            put(&mut o, "kind", &d.kind);
            put(&mut o, "uid", &d.uid);
            if !d.causes.is_empty() {
                let causes = d.causes.iter().map(|c| {
                    let mut o = Map::new();
                    put(&mut o, "reason", &c.reason);
                    put(&mut o, "message", &c.message);
                    put(&mut o, "field", &c.field);
                    Value::Object(o)
                });
                o.insert("causes".into(), causes.collect());
            }
            if d.retry_after_seconds > 0 {
                o.insert("retryAfterSeconds".into(), d.retry_after_seconds.into());
            }
            m.insert("details".into(), Value::Object(o));
        }
        if self.code != 0 {
            m.insert("code".into(), self.code.into());
        }
        v
    }

    /// Reads a `Status` object, for example one that a webhook answered.
    pub fn from_value(v: &Value) -> Status {
        let text = |v: &Value, k: &str| v.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
        let details = v.get("details").filter(|d| d.is_object()).map(|d| Details {
            name: text(d, "name"),
            group: text(d, "group"),
            kind: text(d, "kind"),
            uid: text(d, "uid"),
            causes: d
                .get("causes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .map(|c| Cause { reason: text(c, "reason"), message: text(c, "message"), field: text(c, "field") })
                .collect(),
            retry_after_seconds: d.get("retryAfterSeconds").and_then(Value::as_u64).unwrap_or(0) as u32,
        });
        Status {
            code: v.get("code").and_then(Value::as_u64).unwrap_or(0) as u16,
            reason: text(v, "reason"),
            message: text(v, "message"),
            details: details.map(Box::new),
        }
    }

    /// Adds a hint for when to try again, in seconds.
    pub fn retry_after(mut self, seconds: u32) -> Status {
        self.details.get_or_insert_default().retry_after_seconds = seconds;
        self
    }

    /// Adds a cause.
    pub fn with_cause(mut self, cause: Cause) -> Status {
        self.details.get_or_insert_default().causes.push(cause);
        self
    }
}

fn put(m: &mut Map<String, Value>, key: &str, value: &str) {
    if !value.is_empty() {
        m.insert(key.to_owned(), value.into());
    }
}

/// `deployments.apps`, or `pods` for the core group.
pub fn qualified(group: &str, resource: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn about(group: &str, kind: &str, name: &str) -> Option<Details> {
    Some(Details { group: group.to_owned(), kind: kind.to_owned(), name: name.to_owned(), ..Details::default() })
}

/// The answer to a delete that removed the object at once.
pub fn success(group: &str, plural: &str, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    put(&mut details, "name", name);
    put(&mut details, "group", group);
    put(&mut details, "kind", plural);
    put(&mut details, "uid", uid);
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// 404: no such object.
pub fn not_found(group: &str, plural: &str, name: &str) -> Status {
    let message = format!("{} {} not found", qualified(group, plural), go_quote(name));
    Status::new(404, "NotFound", message, about(group, plural, name))
}

/// 404: no such resource or path.
pub fn page_not_found() -> Status {
    Status::new(404, "NotFound", "the server could not find the requested resource", Some(Details::default()))
}

/// 409: an object of that name exists.
pub fn already_exists(group: &str, plural: &str, name: &str) -> Status {
    let message = format!("{} {} already exists", qualified(group, plural), go_quote(name));
    Status::new(409, "AlreadyExists", message, about(group, plural, name))
}

/// 409: every name made from `generateName` that was tried exists.
pub fn generate_name_conflict(group: &str, plural: &str, name: &str, retry_after: u32) -> Status {
    let message = format!(
        "{} {} already exists, the server was not able to generate a unique name for the object",
        qualified(group, plural),
        go_quote(name)
    );
    Status::new(409, "AlreadyExists", message, about(group, plural, name)).retry_after(retry_after)
}

/// What [`conflict`] says when the given resource version is not the current one.
pub const OPTIMISTIC_LOCK: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// 409: the change cannot be made on the object as it is now.
pub fn conflict(group: &str, plural: &str, name: &str, why: &str) -> Status {
    let message = format!("Operation cannot be fulfilled on {} {}: {why}", qualified(group, plural), go_quote(name));
    Status::new(409, "Conflict", message, about(group, plural, name))
}

/// Why an object is another one, or another version of it, than the client thinks, in the words of upstream's store;
/// `key` is its place there, without the prefix of all.
pub fn failed_precondition(key: &str, what: &str, wanted: &str, actual: &str) -> String {
    format!("StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {actual}")
}

/// 409: a server-side apply would take fields away from other managers.
pub fn apply_conflict(causes: Vec<Cause>, message: impl Into<String>) -> Status {
    Status::new(409, "Conflict", message, Some(Details { causes, ..Details::default() }))
}

/// 422: the object is malformed.
pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Status {
    let causes = errors
        .iter()
        .map(|e| Cause { reason: e.kind.cause().to_owned(), message: e.body(), field: e.path.to_string() })
        .collect();
    let mut message = format!("{} {} is invalid", qualified(group, kind), go_quote(name));
    if !errors.is_empty() {
        message.push_str(": ");
        message.push_str(&aggregate(errors.iter().map(ToString::to_string)));
    }
    let details = about(group, kind, name).map(|d| Details { causes, ..d });
    Status::new(422, "Invalid", message, details)
}

/// 403: not allowed. An empty `plural` is for paths that are not resources.
pub fn forbidden(group: &str, plural: &str, name: &str, why: &str) -> Status {
    let message = if plural.is_empty() && group.is_empty() {
        format!("forbidden: {why}")
    } else if name.is_empty() {
        format!("{} is forbidden: {why}", qualified(group, plural))
    } else {
        format!("{} {} is forbidden: {why}", qualified(group, plural), go_quote(name))
    };
    Status::new(403, "Forbidden", message, about(group, plural, name))
}

/// 401: nobody we know.
pub fn unauthorized() -> Status {
    Status::new(401, "Unauthorized", "Unauthorized", None)
}

/// 400: the request cannot be understood.
pub fn bad_request(message: impl Into<String>) -> Status {
    Status::new(400, "BadRequest", message, None)
}

/// 500: our own failure.
pub fn internal(why: impl std::fmt::Display) -> Status {
    let why = why.to_string();
    let details = Details { causes: vec![Cause { message: why.clone(), ..Cause::default() }], ..Details::default() };
    Status::new(500, "InternalError", format!("Internal error occurred: {why}"), Some(details))
}

/// 410: the resource version (or continue token) is compacted away.
pub fn expired(message: impl Into<String>) -> Status {
    Status::new(410, "Expired", message, None)
}

/// 410 with the sentence for a watch that starts before the kept history.
pub fn too_old_resource_version(wanted: u64, oldest: u64) -> Status {
    expired(format!("too old resource version: {wanted} ({oldest})"))
}

/// 410: gone for good.
pub fn gone(message: impl Into<String>) -> Status {
    Status::new(410, "Gone", message, None)
}

/// 405: the resource does not do that. `action` is a verb such as `patch`.
pub fn method_not_supported(group: &str, plural: &str, action: &str) -> Status {
    let message = format!("{action} is not supported on resources of kind {}", go_quote(&qualified(group, plural)));
    Status::new(405, "MethodNotAllowed", message, about(group, plural, ""))
}

/// 405: the path does not take that HTTP method.
pub fn method_not_allowed() -> Status {
    let message = "the server does not allow this method on the requested resource";
    Status::new(405, "MethodNotAllowed", message, Some(Details::default()))
}

/// 406: none of the media types that the client accepts can be made.
pub fn not_acceptable(supported: &[&str]) -> Status {
    let message = format!("only the following media types are accepted: {}", supported.join(", "));
    Status::new(406, "NotAcceptable", message, None)
}

/// 415: the body is of a media type that is not understood.
pub fn unsupported_media_type(supported: &[&str]) -> Status {
    let message =
        format!("the body of the request was in an unknown format - accepted media types include: {}", supported.join(", "));
    Status::new(415, "UnsupportedMediaType", message, None)
}

/// 413: the body is larger than `limit` bytes.
pub fn too_large(limit: usize) -> Status {
    too_large_because(format!("limit is {limit}"))
}

/// 413 with another reason.
pub fn too_large_because(message: impl std::fmt::Display) -> Status {
    Status::new(413, "RequestEntityTooLarge", format!("Request entity too large: {message}"), None)
}

/// 429 with the caller's message (an eviction that a budget holds back).
pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Status {
    Status::new(429, "TooManyRequests", message, Some(Details::default())).retry_after(retry_after)
}

/// 500 of a part that fails with no status of its own.
pub fn failed(why: impl Into<String>) -> Status {
    Status::new(500, "", why, None)
}

/// 429 for what has used up its rate.
pub fn too_many(why: impl std::fmt::Display) -> Status {
    Status::new(429, "TooManyRequests", format!("Too many requests: {why}"), None)
}

/// 503: a part that is needed is not there.
pub fn unavailable(message: impl Into<String>) -> Status {
    Status::new(503, "ServiceUnavailable", message, None)
}

/// What a server behind us (a kubelet) answered with a code that is none of success, and the text that came with it.
pub fn of_backend(code: u16, text: &str, plural: &str, name: &str) -> Status {
    let (reason, message) = match code {
        400 => return bad_request(text),
        500 => return internal(text),
        401 => ("Unauthorized", "the server has asked for the client to provide credentials".to_owned()),
        403 => ("Forbidden", text.to_owned()),
        404 => ("NotFound", "the server could not find the requested resource".to_owned()),
        406 => ("NotAcceptable", text.to_owned()),
        503 => ("ServiceUnavailable", "the server is currently unable to handle the request".to_owned()),
        501.. => ("InternalError", format!("an error on the server ({}) has prevented the request from succeeding", go_quote(text))),
        _ => ("", format!("the server responded with the status code {code} but did not return more information")),
    };
    Status::new(code, reason, format!("{message} ( {plural} {name})"), about("", plural, name))
}

/// 504: it took too long.
pub fn timeout(message: impl std::fmt::Display, retry_after: u32) -> Status {
    Status::new(504, "Timeout", format!("Timeout: {message}"), Some(Details::default())).retry_after(retry_after)
}

/// 500: the operation could not be finished now and may be tried again.
pub fn server_timeout(group: &str, plural: &str, operation: &str, retry_after: u32) -> Status {
    let message = format!(
        "The {operation} operation against {} could not be completed at this time, please try again.",
        qualified(group, plural)
    );
    Status::new(500, "ServerTimeout", message, about(group, plural, operation)).retry_after(retry_after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::Path;

    #[test]
    fn what_a_kubelet_says_is_told_in_our_words() {
        let said = |code, text: &str| of_backend(code, text, "pods/log", "p");
        assert_eq!(said(400, "no previous container"), bad_request("no previous container"));
        assert_eq!(said(500, "disk"), internal("disk"));
        let gone = said(404, "pod not found");
        assert_eq!((gone.code, &*gone.reason, &*gone.message), (404, "NotFound", "the server could not find the requested resource ( pods/log p)"));
        assert_eq!(said(502, "x").message, "an error on the server (\"x\") has prevented the request from succeeding ( pods/log p)");
    }

    #[test]
    fn wire_form() {
        assert_eq!(
            not_found("apps", "deployments", "x").to_value(),
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound",
                "message": "deployments.apps \"x\" not found", "code": 404,
                "details": {"name": "x", "group": "apps", "kind": "deployments"}})
        );
        let s = invalid(
            "",
            "Pod",
            "p",
            &[FieldError::required(&Path::new("spec"), ""), FieldError::required(&Path::new("a"), "why")],
        );
        assert_eq!(s.message, "Pod \"p\" is invalid: [spec: Required value, a: Required value: why]");
        assert_eq!(
            s.to_value()["details"]["causes"][1],
            json!({"reason": "FieldValueRequired", "message": "Required value: why", "field": "a"})
        );
        assert_eq!(Status::from_value(&s.to_value()), s);
    }
}
