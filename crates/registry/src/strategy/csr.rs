//! Certificate signing requests: who asked is recorded by the server; approval and the signed
//! certificate come through subresources of their own.

use apiserver::strategy::generic_prepare_create;
use apiserver::{Ctx, Strategy};
use serde_json::{Value, json};

use crate::util::{items, list, object};

/// The resource itself: nothing changes after creation.
pub(crate) struct SigningRequests;

impl Strategy for SigningRequests {
    fn prepare_create(&self, ctx: &Ctx, request: &mut Value) {
        generic_prepare_create(ctx, request);
        if let Some(request) = request.as_object_mut() {
            request.remove("status");
        }
        let spec = object(request, "spec");
        for key in ["username", "uid", "groups", "extra"] {
            spec.remove(key);
        }
        spec.insert("username".into(), ctx.user.name.clone().into());
        if !ctx.user.uid.is_empty() {
            spec.insert("uid".into(), ctx.user.uid.clone().into());
        }
        if !ctx.user.groups.is_empty() {
            spec.insert("groups".into(), json!(ctx.user.groups));
        }
        if !ctx.user.extra.is_empty() {
            spec.insert("extra".into(), json!(ctx.user.extra));
        }
    }

    fn prepare_update(&self, _ctx: &Ctx, new: &mut Value, old: &Value) {
        restore(new, old, &["spec", "status"]);
    }
}

/// `approval`: the conditions.
pub(crate) struct Approval;

impl Strategy for Approval {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        let conditions: Vec<Value> = items(new, "/status/conditions").cloned().collect();
        restore(new, old, &["spec", "status"]);
        set_conditions(new, old, conditions, &ctx.now_string());
    }
}

/// `status`: the certificate, and conditions other than the approval.
pub(crate) struct RequestStatus;

impl Strategy for RequestStatus {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        restore(new, old, &["spec"]);
        let mut conditions: Vec<Value> = items(new, "/status/conditions").cloned().collect();
        // what was decided stays; adding and removing is for validation to refuse
        for decision in ["Approved", "Denied"] {
            let before: Vec<&Value> = items(old, "/status/conditions").filter(|c| c["type"] == decision).collect();
            let now: Vec<&mut Value> = conditions.iter_mut().filter(|c| c["type"] == decision).collect();
            if before.len() == now.len() {
                now.into_iter().zip(before).for_each(|(now, before)| now.clone_from(before));
            }
        }
        set_conditions(new, old, conditions, &ctx.now_string());
    }
}

fn restore(new: &mut Value, old: &Value, keys: &[&str]) {
    for key in keys {
        match old.get(key) {
            Some(value) => new[*key] = value.clone(),
            None => drop(new.as_object_mut().map(|n| n.remove(*key))),
        }
    }
}

fn set_conditions(new: &mut Value, old: &Value, mut conditions: Vec<Value>, now: &str) {
    for condition in &mut conditions {
        let before = items(old, "/status/conditions").find(|c| c["type"] == condition["type"] && c["status"] == condition["status"]);
        let unset = |v: &Value| v.is_null() || v == "";
        if unset(&condition["lastUpdateTime"]) {
            condition["lastUpdateTime"] = now.into();
        }
        if unset(&condition["lastTransitionTime"]) {
            condition["lastTransitionTime"] = before.map_or(now.into(), |b| b["lastTransitionTime"].clone());
        }
    }
    if conditions.is_empty() {
        if let Some(status) = new.get_mut("status").and_then(Value::as_object_mut) {
            status.remove("conditions");
        }
    } else {
        *list(object(new, "status"), "conditions") = conditions;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Objects;
    use apiserver::UserInfo;

    #[test]
    fn who_asks_is_recorded_and_approval_is_apart() {
        let resource = api::resources::find("certificates.k8s.io", "v1", "certificatesigningrequests").unwrap();
        let ctx = Objects::new().ctx(resource, "", "r", UserInfo::new("bob", &["g"]));
        let mut request = json!({"metadata": {"name": "r"}, "spec": {"username": "root", "request": "x"}});
        SigningRequests.prepare_create(&ctx, &mut request);
        assert_eq!(request["spec"], json!({"username": "bob", "groups": ["g"], "request": "x"}));
        let mut approved = request.clone();
        approved["status"] = json!({"certificate": "forged", "conditions": [{"type": "Approved", "status": "True"}]});
        Approval.prepare_update(&ctx, &mut approved, &request);
        assert!(approved["status"].get("certificate").is_none());
        assert_eq!(approved["status"]["conditions"][0]["lastUpdateTime"], "2026-05-01T10:00:00Z");
        let mut signed = approved.clone();
        signed["status"] = json!({"certificate": "good", "conditions": [{"type": "Approved", "status": "True", "reason": "Forged"}]});
        RequestStatus.prepare_update(&ctx, &mut signed, &approved);
        assert_eq!(signed["status"]["conditions"], approved["status"]["conditions"]);
        assert_eq!(signed["status"]["certificate"], "good");
        signed["status"] = json!({"conditions": []});
        RequestStatus.prepare_update(&ctx, &mut signed, &approved);
        let errors = api::validate::update_through(resource, "status", &signed, &approved);
        assert!(errors.iter().any(|e| e.to_string() == "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""), "{errors:?}");
    }
}
