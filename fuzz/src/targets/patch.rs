//! Patches: an object, and a patch.

use api::{patch, topology};
use serde_json::{Value, json};

use super::{Parts, resource_of};

fn copies(patch: &Value) -> usize {
    patch.as_array().into_iter().flatten().filter(|o| o["op"] == "copy").count()
}

/// RFC 6902.
pub fn json_patch(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (Some(object), Some(change)) = (parts.tree(), parts.tree()) else { return };
    // The server counts what copies add; twenty of them would be a million times the object.
    if copies(&change) > 6 {
        return;
    }
    if let Ok(new) = patch::try_json_patch(&object, &change) {
        let test = json!([{"op": "test", "path": "", "value": new}]);
        assert_eq!(patch::json_patch(&new, &test).expect("the test holds"), new);
    }
    assert_eq!(patch::json_patch(&object, &json!([])).expect("nothing to do"), object);
}

/// RFC 7386.
pub fn merge_patch(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (Some(object), Some(change)) = (parts.tree(), parts.tree()) else { return };
    let Ok(new) = patch::merge_patch(&object, &change) else { return };
    assert_eq!(patch::merge_patch(&new, &change).expect("it was taken before"), new, "a second time");
}

/// Kubernetes' own, of a built-in kind.
pub fn strategic_patch(input: &[u8]) {
    let mut parts = Parts::of(input);
    let (Some(mut object), Some(change)) = (parts.tree(), parts.tree()) else { return };
    let Some(resource) = resource_of(&mut object) else { return };
    let node = topology::builtin(resource.type_name);
    if let Ok(new) = patch::strategic_merge(node, &object, &change) {
        let _ = patch::strategic_merge(node, &new, &change);
    }
    assert_eq!(patch::strategic_merge(node, &object, &json!({})).expect("nothing to do"), object);
}
