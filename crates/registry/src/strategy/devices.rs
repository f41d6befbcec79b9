//! Claims on devices: who may have an administrator's access, who may write which part of a claim's
//! status, and what of it ends with an allocation. Selectors of claims, templates and classes must compile.

use std::collections::BTreeSet;

use api::field::{FieldError, Path};
use apiserver::strategy::{generic_prepare_create, generic_prepare_update};
use apiserver::{AuthzAttributes, Ctx, Decision, Strategy};
use cel::{DEVICE_SELECTOR_LIMIT, DeviceSelector};
use serde_json::Value;

use crate::util::{NAMESPACES, flag, items, object, quote, text, texts};

const ADMIN: &str = "resource.kubernetes.io/admin-access";
const GROUP: &str = "resource.k8s.io";
const LONGEST_EXPRESSION: usize = 10 * 1024;
const NODE_OF_USER: &str = "authentication.kubernetes.io/node-name";

/// Claims themselves.
pub(crate) struct Claims;

impl Strategy for Claims {
    fn validate_create(&self, ctx: &Ctx, claim: &Value) -> Vec<FieldError> {
        let mut errors = admin_in_spec(ctx, claim, "/spec/devices/requests", &["spec", "devices", "requests"]);
        errors.extend(api::validate::create(ctx.resource, claim));
        errors.extend(selectors_of_requests(claim, "/spec/devices/requests", &["spec", "devices", "requests"]));
        errors
    }
}

/// What claims are made from.
pub(crate) struct Templates;

impl Strategy for Templates {
    fn validate_create(&self, ctx: &Ctx, template: &Value) -> Vec<FieldError> {
        let mut errors = admin_in_spec(ctx, template, "/spec/spec/devices/requests", &["spec", "devices", "requests"]);
        errors.extend(api::validate::create(ctx.resource, template));
        errors.extend(selectors_of_requests(template, "/spec/spec/devices/requests", &["spec", "spec", "devices", "requests"]));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        errors.extend(selectors_of_requests(new, "/spec/spec/devices/requests", &["spec", "spec", "devices", "requests"]));
        errors
    }
}

/// Classes of devices.
pub(crate) struct Classes;

impl Strategy for Classes {
    fn validate_create(&self, ctx: &Ctx, class: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::create(ctx.resource, class);
        errors.extend(selectors(class, "/spec", &path(&["spec"])));
        errors
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = api::validate::update_through(ctx.resource, &ctx.subresource, new, old);
        // What was let in once stays.
        if new.pointer("/spec/selectors") != old.pointer("/spec/selectors") {
            errors.extend(selectors(new, "/spec", &path(&["spec"])));
        }
        errors
    }
}

/// What drivers offer. A taint that does not say since when it holds holds since now.
pub(crate) struct Slices;

impl Strategy for Slices {
    fn prepare_create(&self, ctx: &Ctx, slice: &mut Value) {
        date_taints(ctx, slice);
        generic_prepare_create(ctx, slice);
    }

    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        date_taints(ctx, new);
        generic_prepare_update(ctx, new, old);
    }
}

fn date_taints(ctx: &Ctx, slice: &mut Value) {
    let devices = slice.pointer_mut("/spec/devices").and_then(Value::as_array_mut).into_iter().flatten();
    for taint in devices.filter_map(|d| d.get_mut("taints")?.as_array_mut()).flatten().filter_map(Value::as_object_mut) {
        taint.entry("timeAdded").or_insert_with(|| ctx.now_string().into());
    }
}

fn selectors_of_requests(object: &Value, requests: &str, parts: &[&str]) -> Vec<FieldError> {
    let of = |(i, request): (usize, &Value)| {
        let at = path(parts).index(i);
        let alternatives = items(request, "/firstAvailable").enumerate().flat_map(|(i, s)| selectors(s, "", &at.child("firstAvailable").index(i))).collect::<Vec<_>>();
        selectors(request, "/exactly", &at.child("exactly")).into_iter().chain(alternatives).collect::<Vec<_>>()
    };
    items(object, requests).enumerate().flat_map(of).collect()
}

/// What is wrong with the selectors below a field.
fn selectors(object: &Value, pointer: &str, at: &Path) -> Vec<FieldError> {
    let expressions = items(object, &format!("{pointer}/selectors")).enumerate().filter_map(|(i, s)| Some((i, s.pointer("/cel/expression")?.as_str()?)));
    // Longer ones are refused for that alone.
    let short = expressions.filter(|(_, e)| e.len() <= LONGEST_EXPRESSION);
    let wrong = |(i, expression): (usize, &str)| {
        let at = at.child("selectors").index(i).child("cel").child("expression");
        match DeviceSelector::compile(expression) {
            Err(why) => Some(FieldError::invalid(&at, expression, why)),
            Ok(selector) if selector.most_cost > DEVICE_SELECTOR_LIMIT => Some(FieldError::forbidden(&at, "too complex, exceeds cost limit")),
            Ok(_) => None,
        }
    };
    short.filter_map(wrong).collect()
}

fn path(parts: &[&str]) -> Path {
    parts[1..].iter().fold(Path::new(parts[0]), |path, part| path.child(part))
}

fn admin_in_spec(ctx: &Ctx, object: &Value, requests: &str, parts: &[&str]) -> Vec<FieldError> {
    let asked = items(object, requests).position(|r| flag(r, "/exactly/adminAccess"));
    asked.map(|i| path(parts).index(i).child("adminAccess")).and_then(|at| refuse_admin(ctx, &at)).into_iter().collect()
}

/// Administrators' access is for namespaces that are marked for it.
fn refuse_admin(ctx: &Ctx, at: &Path) -> Option<FieldError> {
    let Some(namespace) = ctx.backend.reader.get(&NAMESPACES, "", &ctx.namespace) else {
        return Some(FieldError::internal(at, format!("could not retrieve namespace to verify admin access: namespaces {:?} not found", ctx.namespace)));
    };
    let marked = namespace["metadata"]["labels"][ADMIN] == "true";
    (!marked).then(|| FieldError::forbidden(at, format!("admin access to devices requires the `{ADMIN}: true` label on the containing namespace")))
}

/// `status`: the scheduler's, the claim controller's, and the drivers'.
pub(crate) struct ClaimStatus;

impl Strategy for ClaimStatus {
    fn prepare_update(&self, ctx: &Ctx, new: &mut Value, old: &Value) {
        generic_prepare_update(ctx, new, old);
        // What drivers say of a device ends with its allocation.
        let kept: BTreeSet<String> = allocated(new).collect();
        let gone: BTreeSet<String> = allocated(old).filter(|d| !kept.contains(d)).collect();
        if gone.is_empty() {
            return;
        }
        let status = object(new, "status");
        if let Some(devices) = status.get_mut("devices").and_then(Value::as_array_mut) {
            devices.retain(|d| !gone.contains(&id(d)));
            if devices.is_empty() {
                status.remove("devices");
            }
        }
    }

    fn validate_update(&self, ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
        let granted = |claim: &Value| items(claim, "/status/allocation/devices/results").position(|r| flag(r, "/adminAccess"));
        let results = || path(&["status", "allocation", "devices", "results"]);
        let mut errors: Vec<FieldError> = match (granted(old), granted(new)) {
            (None, Some(i)) => refuse_admin(ctx, &results().index(i).child("adminAccess")).into_iter().collect(),
            _ => Vec::new(),
        };
        errors.extend(may_bind(ctx, new, old));
        if new.pointer("/status/allocation").is_some() {
            errors.extend(may_report(ctx, new, old));
        }
        errors.extend(api::validate::update_through(ctx.resource, &ctx.subresource, new, old));
        errors
    }
}

/// A device by its names, with the share of it.
fn id(device: &Value) -> String {
    ["driver", "pool", "device", "shareID"].map(|part| device[part].as_str().unwrap_or_default()).join("/")
}

fn allocated(claim: &Value) -> impl Iterator<Item = String> + '_ {
    items(claim, "/status/allocation/devices/results").map(id)
}

/// Whether the user has one of these verbs on a part of claims that only permissions know.
fn may(ctx: &Ctx, verbs: &[&str], part: &str, namespace: &str, name: &str) -> bool {
    verbs.iter().any(|verb| {
        let question = AuthzAttributes {
            user: ctx.user.clone(),
            verb: (*verb).into(),
            resource_request: true,
            namespace: namespace.into(),
            api_group: GROUP.into(),
            api_version: "v1".into(),
            resource: "resourceclaims".into(),
            subresource: part.into(),
            name: name.into(),
            ..AuthzAttributes::default()
        };
        ctx.authorize(&question).0 == Decision::Allow
    })
}

/// Allocations and reservations are for those who may bind claims.
fn may_bind(ctx: &Ctx, new: &Value, old: &Value) -> Option<FieldError> {
    let same = |pointer| new.pointer(pointer) == old.pointer(pointer);
    if same("/status/allocation") && same("/status/reservedFor") {
        return None;
    }
    let allowed = may(ctx, &["update", "patch"], "binding", "", "");
    (!allowed).then(|| {
        let who = quote(&ctx.user.name);
        let why = format!("resourceclaims.resource.k8s.io is forbidden: User {who} cannot update resource \"resourceclaims/binding\" in API group \"{GROUP}\" at the cluster scope");
        FieldError::forbidden(&path(&["status", "allocation"]), format!("changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\", verb=\"update\" permission: {why}"))
    })
}

/// What is said of devices is for their drivers: on the node of the allocation, or anywhere.
fn may_report(ctx: &Ctx, new: &Value, old: &Value) -> Vec<FieldError> {
    let all = |claim| items(claim, "/status/devices").collect::<Vec<_>>();
    let (now, before) = (all(new), all(old));
    let differ = now.iter().filter(|d| !before.contains(d)).chain(before.iter().filter(|d| !now.iter().any(|n| id(n) == id(d))));
    let drivers: BTreeSet<&str> = differ.map(|d| text(d, "/driver")).collect();
    let mut verbs = vec!["arbitrary-node:update", "arbitrary-node:patch"];
    if let Some(node) = node_of(new)
        && ctx.user.name.starts_with("system:serviceaccount:")
        && ctx.user.extra.get(NODE_OF_USER).is_some_and(|names| names.iter().map(String::as_str).eq([node]))
    {
        verbs.extend(["associated-node:update", "associated-node:patch"]);
    }
    let refused = drivers.into_iter().filter(|driver| !may(ctx, &verbs, "driver", &ctx.namespace, driver));
    let who = quote(&ctx.user.name);
    refused
        .map(|driver| {
            let why = format!("resourceclaims.resource.k8s.io {} is forbidden: User {who} cannot {} resource \"resourceclaims/driver\" in API group \"{GROUP}\" in the namespace {}", quote(driver), verbs[0], quote(&ctx.namespace));
            FieldError::forbidden(&path(&["status", "devices"]), format!("changing status.devices requires resource=\"resourceclaims/driver\", verb=\"[{}]\" permission: {why}", verbs[0]))
        })
        .collect()
}

/// The node to which an allocation is bound.
fn node_of(claim: &Value) -> Option<&str> {
    let terms = claim.pointer("/status/allocation/nodeSelector/nodeSelectorTerms")?.as_array()?;
    let [term] = &terms[..] else { return None };
    let fields: Vec<&Value> = items(term, "/matchFields").collect();
    let named = fields.len() == 1 && items(term, "/matchExpressions").next().is_none() && fields[0]["key"] == "metadata.name" && fields[0]["operator"] == "In";
    let mut values = texts(fields.first().filter(|_| named)?, "/values");
    values.next().filter(|_| values.next().is_none())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use apiserver::{Authorizer, UserInfo};
    use serde_json::json;

    use super::*;
    use crate::testing::Objects;

    /// Grants verbs on parts of claims.
    struct Only(&'static [(&'static str, &'static str)]);

    impl Authorizer for Only {
        fn authorize(&self, a: &AuthzAttributes) -> (Decision, String) {
            let granted = self.0.iter().any(|(verb, part)| *verb == a.verb && *part == a.subresource);
            (if granted { Decision::Allow } else { Decision::NoOpinion }, String::new())
        }

        fn rules_for(&self, _: &UserInfo, _: &str) -> apiserver::authz::Rules {
            apiserver::authz::Rules::default()
        }
    }

    fn ctx(rights: &'static [(&'static str, &'static str)], user: UserInfo) -> Ctx {
        let objects = Objects::new();
        objects.put(&NAMESPACES, json!({"metadata": {"name": "plain"}}));
        let resource = api::resources::find(GROUP, "v1", "resourceclaims").expect("claims");
        let mut ctx = objects.ctx(resource, "plain", "c", user);
        ctx.backend.authorizer = Arc::new(Only(rights));
        ctx.subresource = "status".into();
        ctx
    }

    fn claim(status: Value) -> Value {
        json!({"metadata": {"name": "c", "namespace": "plain"}, "spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "x", "allocationMode": "ExactCount", "count": 1}}]}}, "status": status})
    }

    fn given() -> Value {
        json!({"devices": {"results": [{"request": "r", "driver": "d.io", "pool": "p", "device": "1"}]},
            "nodeSelector": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n"]}]}]}})
    }

    fn says(ctx: &Ctx, new: &Value, old: &Value) -> Vec<String> {
        ClaimStatus.validate_update(ctx, new, old).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_allocation_is_for_those_who_may_bind() {
        let (free, taken) = (claim(json!({})), claim(json!({"allocation": given()})));
        let anyone = || UserInfo::new("bob", &[]);
        assert_eq!(says(&ctx(&[("update", "binding")], anyone()), &taken, &free), Vec::<String>::new());
        let refused = says(&ctx(&[], anyone()), &taken, &free);
        assert!(refused.len() == 1 && refused[0].starts_with("status.allocation: Forbidden: changing status.allocation or status.reservedFor requires resource=\"resourceclaims/binding\""), "{refused:?}");
        assert_eq!(says(&ctx(&[], anyone()), &taken, &taken), Vec::<String>::new(), "nothing changes");
    }

    #[test]
    fn a_device_is_reported_on_by_its_driver() {
        let before = claim(json!({"allocation": given()}));
        let after = claim(json!({"allocation": given(), "devices": [{"driver": "d.io", "pool": "p", "device": "1"}]}));
        let on = |node: &str| {
            let mut user = UserInfo::new("system:serviceaccount:a:driver", &[]);
            user.extra.insert(NODE_OF_USER.into(), vec![node.into()]);
            user
        };
        let near: &'static [(&str, &str)] = &[("associated-node:update", "driver")];
        assert_eq!(says(&ctx(near, on("n")), &after, &before), Vec::<String>::new());
        let refused = says(&ctx(near, on("other")), &after, &before);
        assert!(refused.len() == 1 && refused[0].starts_with("status.devices: Forbidden: changing status.devices requires"), "{refused:?}");
        assert_eq!(says(&ctx(&[("arbitrary-node:update", "driver")], UserInfo::new("bob", &[])), &after, &before), Vec::<String>::new());
    }

    #[test]
    fn reports_end_with_the_allocation() {
        let before = claim(json!({"allocation": given(), "devices": [{"driver": "d.io", "pool": "p", "device": "1"}]}));
        let mut after = claim(json!({"devices": [{"driver": "d.io", "pool": "p", "device": "1"}]}));
        ClaimStatus.prepare_update(&ctx(&[], UserInfo::default()), &mut after, &before);
        assert!(after.pointer("/status/devices").is_none(), "{after}");
    }

    #[test]
    fn administrators_access_needs_a_marked_namespace() {
        let mut asking = claim(json!({}));
        asking["spec"]["devices"]["requests"][0]["exactly"]["adminAccess"] = json!(true);
        let objects = Objects::new();
        let resource = api::resources::find(GROUP, "v1", "resourceclaims").expect("claims");
        let says = |labels: Value| {
            objects.put(&NAMESPACES, json!({"metadata": {"name": "plain", "labels": labels}}));
            let ctx = objects.ctx(resource, "plain", "c", UserInfo::default());
            Claims.validate_create(&ctx, &asking).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(says(json!({})), ["spec.devices.requests[0].adminAccess: Forbidden: admin access to devices requires the `resource.kubernetes.io/admin-access: true` label on the containing namespace"]);
        assert_eq!(says(json!({ADMIN: "true"})), Vec::<String>::new());
    }

    #[test]
    fn selectors_must_compile() {
        let objects = Objects::new();
        let resource = api::resources::find(GROUP, "v1", "deviceclasses").expect("classes");
        let ctx = objects.ctx(resource, "", "c", UserInfo::default());
        let class = |expression: &str| json!({"metadata": {"name": "c"}, "spec": {"selectors": [{"cel": {"expression": expression}}]}});
        let says = |expression: &str| Classes.validate_create(&ctx, &class(expression)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(says("device.driver == 'd.io'"), Vec::<String>::new());
        assert_eq!(says("1"), ["spec.selectors[0].cel.expression: Invalid value: \"1\": must evaluate to bool or the unknown type, not int"]);
        let deep = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a + b + c + d != 'x'))))";
        assert_eq!(says(deep), ["spec.selectors[0].cel.expression: Forbidden: too complex, exceeds cost limit"]);
        assert!(Classes.validate_update(&ctx, &class("1"), &class("1")).is_empty(), "it was there before");
        let mut asking = claim(json!({}));
        asking["spec"]["devices"]["requests"][0]["exactly"]["selectors"] = json!([{"cel": {"expression": "?"}}]);
        let refused = selectors_of_requests(&asking, "/spec/devices/requests", &["spec", "devices", "requests"]);
        assert!(refused.len() == 1 && refused[0].to_string().starts_with("spec.devices.requests[0].exactly.selectors[0].cel.expression: Invalid value: \"?\": compilation failed: "), "{refused:?}");
    }
}
