//! The patches that are not apply: JSON patch (RFC 6902), merge patch
//! (RFC 7386) and strategic merge patch. Each takes the current object and
//! answers the patched one, not yet checked against its type; errors are the
//! `Status` that the client gets.

mod strategic;

use crate::status::{self, Status};
use crate::topology::Node;
use serde_json::Value;

/// Most operations in one JSON patch.
pub const MAX_OPERATIONS: usize = 10_000;

/// Applies a JSON patch, an array of operations.
pub fn json_patch(current: &Value, patch: &Value) -> Result<Value, Status> {
    let len = patch.as_array().map_or(0, Vec::len);
    if len > MAX_OPERATIONS {
        return Err(status::too_large_because(format!(
            "The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {len}"
        )));
    }
    if !patch.is_array() {
        let got = match patch {
            Value::Object(_) => "object",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            _ => "null",
        };
        return Err(status::bad_request(format!(
            "error decoding patch: json: cannot unmarshal {got} into Go value of type []handlers.jsonPatchOp"
        )));
    }
    try_json_patch(current, patch).map_err(|_| rejected())
}

/// Why a JSON patch could not be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// One of its tests failed.
    #[error("a test of the patch failed")]
    Test,
    /// An operation does not apply, or is none.
    #[error("{0}")]
    Other(String),
}

/// Applies a JSON patch, and says what is wrong with one that does not apply.
pub fn try_json_patch(current: &Value, patch: &Value) -> Result<Value, PatchError> {
    const KINDS: [&str; 6] = ["add", "remove", "replace", "move", "copy", "test"];
    let text = |operation: &Value, key: &str| operation.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let all = patch.as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(unknown) = all.iter().map(|o| text(o, "op")).find(|o| !KINDS.contains(&o.as_str())) {
        return Err(PatchError::Other(format!("Unexpected kind: {unknown}")));
    }
    let operations: json_patch::Patch = serde_json::from_value(patch.clone()).map_err(|e| PatchError::Other(e.to_string()))?;
    let mut out = current.clone();
    // nothing need be undone in a copy (nor can everything be: a move to the root takes the rest away)
    let failed = match json_patch::patch_unsafe(&mut out, &operations) {
        Ok(()) => return Ok(out),
        Err(failed) => failed,
    };
    let operation = &all[failed.operation];
    let (kind, path, from) = (text(operation, "op"), text(operation, "path"), text(operation, "from"));
    let missing = |what: String| Err(PatchError::Other(format!("{kind} operation does not apply: doc is missing {what}: missing value")));
    match (failed.kind, kind.as_str()) {
        (json_patch::PatchErrorKind::TestFailed, _) | (_, "test") => Err(PatchError::Test),
        (json_patch::PatchErrorKind::InvalidFromPointer, _) => missing(format!("from path: {from}")),
        (json_patch::PatchErrorKind::InvalidPointer, "replace") => missing(format!("key: {path}")),
        (json_patch::PatchErrorKind::InvalidPointer, _) => missing(format!("path: {}", crate::field::go_quote(&path))),
        (other, _) => Err(PatchError::Other(format!("error in {kind} for path: '{path}': {other}"))),
    }
}

/// 422: an operation of a JSON patch does not apply.
fn rejected() -> Status {
    Status {
        code: 422,
        reason: "Invalid".to_owned(),
        message: "the server rejected our request due to an error in our request".to_owned(),
        details: Some(Box::default()),
    }
}

/// Applies a merge patch, an object in which null removes.
pub fn merge_patch(current: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        return Err(status::bad_request("Invalid JSON Patch"));
    }
    let mut out = current.clone();
    json_patch::merge(&mut out, patch);
    Ok(out)
}

/// Applies a strategic merge patch to an object of a built-in type.
pub fn strategic_merge(node: Node<'_>, current: &Value, patch: &Value) -> Result<Value, Status> {
    if !patch.is_object() {
        let got = match patch {
            Value::Array(_) => "array",
            Value::String(_) => "string",
            Value::Bool(_) => "bool",
            _ => "number",
        };
        return Err(status::bad_request(format!(
            "json: cannot unmarshal {got} into Go value of type map[string]interface {{}}"
        )));
    }
    strategic::merge(node, current, patch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patches() {
        let o = json!({"a": {"b": [1, 2]}});
        let p = json!([{"op": "add", "path": "/a/b/-", "value": 3}, {"op": "test", "path": "/a/b/2", "value": 3},
            {"op": "remove", "path": "/a/b/0"}, {"op": "replace", "path": "/a/b/0", "value": 9}]);
        assert_eq!(json_patch(&o, &p).unwrap(), json!({"a": {"b": [9, 3]}}));
        for bad in [json!([{"op": "remove", "path": "/x"}]), json!([{"op": "test", "path": "/a", "value": 1}]), json!([{"op": "fly"}])] {
            let e = json_patch(&o, &bad).unwrap_err();
            assert_eq!((e.code, e.reason.as_str()), (422, "Invalid"));
        }
        assert_eq!(json_patch(&o, &json!({})).unwrap_err().code, 400);
        // what has taken the root's place cannot be moved back
        let root = json!([{"op": "move", "from": "/a/b", "path": ""}, {"op": "remove", "path": "/x"}]);
        assert_eq!(json_patch(&o, &root).unwrap_err().code, 422);
    }

    #[test]
    fn merge_patches() {
        let o = json!({"a": {"b": 1, "c": 2}, "l": [1]});
        assert_eq!(merge_patch(&o, &json!({"a": {"b": null, "d": {"x": null}}, "l": [2]})).unwrap(), json!({"a": {"c": 2, "d": {}}, "l": [2]}));
        assert_eq!(merge_patch(&o, &json!([])).unwrap_err().message, "Invalid JSON Patch");
    }
}
