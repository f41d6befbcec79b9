//! Which writes a policy or binding is for, and with which parameters it judges them.

use std::sync::Arc;

use api::resources::{Custom, split_api_version};
use api::selector::Labels;
use apiserver::types::Resource;
use apiserver::{Attributes, Ctx, Operation};
use serde_json::Value;

use crate::util::{CUSTOM_RESOURCE_DEFINITIONS, NAMESPACES, items, text, texts};

/// The resource in whose version a write is judged: that of the request, or one that is equivalent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
}

/// An operation by its name in rules.
pub(super) fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "CREATE",
        Operation::Update => "UPDATE",
        Operation::Delete => "DELETE",
        Operation::Connect => "CONNECT",
    }
}

/// The resource of a write, with the kind that the request carries.
fn target(ctx: &Ctx, resource: &'static Resource) -> Target {
    let own = Target { group: resource.group, version: resource.version, plural: resource.plural, kind: resource.kind };
    match resource.subresource(&ctx.subresource) {
        Some(sub) if !ctx.subresource.is_empty() => Target { kind: sub.kind, ..own },
        _ => own,
    }
}

/// Whether a write is for these constraints (`matchConstraints` or `matchResources`), and in which version.
pub(super) fn matches(attributes: &Attributes<'_>, object: Option<&Value>, constraints: &Value) -> Result<Option<Target>, String> {
    let ctx = attributes.ctx;
    // A selector that cannot be read is an error only for writes that the rules are for.
    let by_namespace = in_namespaces(attributes, object, &constraints["namespaceSelector"]);
    if by_namespace == Ok(false) {
        return Ok(None);
    }
    let by_object = of_objects(attributes, object, &constraints["objectSelector"]);
    if by_object == Ok(false) {
        return Ok(None);
    }
    let equivalent = text(constraints, "/matchPolicy") != "Exact";
    if by_rules(attributes, object, constraints, "/excludeResourceRules", equivalent).is_some() {
        return Ok(None);
    }
    let found = match items(constraints, "/resourceRules").next() {
        None => Some(target(ctx, ctx.resource)),
        Some(_) => by_rules(attributes, object, constraints, "/resourceRules", equivalent),
    };
    let Some(found) = found else { return Ok(None) };
    by_namespace?;
    by_object?;
    Ok(Some(found))
}

fn by_rules(attributes: &Attributes<'_>, object: Option<&Value>, constraints: &Value, rules: &str, equivalent: bool) -> Option<Target> {
    let ctx = attributes.ctx;
    let name = match &ctx.name[..] {
        "" => object.map_or("", |o| text(o, "/metadata/name")),
        name => name,
    };
    let find = |resource: &'static Resource| {
        let fits = |rule: &&Value| {
            let names: Vec<&str> = texts(rule, "/resourceNames").collect();
            fits(rule, attributes, resource) && (names.is_empty() || names.contains(&name))
        };
        items(constraints, rules).find(fits).map(|_| target(ctx, resource))
    };
    find(ctx.resource).or_else(|| {
        if !equivalent || ctx.resource.is_custom() {
            return None;
        }
        api::resources::all().iter().filter(|r| same_storage(r, ctx.resource)).find_map(find)
    })
}

/// Whether two rows of the table are versions of one resource.
fn same_storage(a: &Resource, b: &Resource) -> bool {
    let other = (a.group, a.version) != (b.group, b.version);
    other && a.plural == b.plural && (a.group == b.group || (a.plural == "events" && !a.storage_prefix.is_empty() && a.storage_prefix == b.storage_prefix))
}

fn fits(rule: &Value, attributes: &Attributes<'_>, resource: &Resource) -> bool {
    let ctx = attributes.ctx;
    let any = |list: &str, wanted: &str| texts(rule, list).any(|v| v == "*" || v == wanted);
    let scope = match text(rule, "/scope") {
        "Namespaced" => resource.namespaced && !ctx.namespace.is_empty(),
        "Cluster" => !resource.namespaced || ctx.namespace.is_empty(),
        _ => true,
    };
    let named = texts(rule, "/resources").any(|wanted| {
        let (wanted, sub) = wanted.split_once('/').unwrap_or((wanted, ""));
        (wanted == "*" || wanted == resource.plural) && (sub == "*" || sub == ctx.subresource)
    });
    scope && named && any("/apiGroups", resource.group) && any("/apiVersions", resource.version) && any("/operations", operation(attributes.operation))
}

/// A selector; one that is not there selects everything, as its default does.
fn labels(selector: &Value) -> Result<Labels, String> {
    if selector.is_null() { Ok(Labels::everything()) } else { Labels::from_label_selector(selector) }
}

/// Whether a selector of namespaces lets a write through. What is in no namespace is always meant.
fn in_namespaces(attributes: &Attributes<'_>, object: Option<&Value>, selector: &Value) -> Result<bool, String> {
    let ctx = attributes.ctx;
    let of_namespaces = ctx.resource.plural == "namespaces" && ctx.resource.group.is_empty();
    if ctx.namespace.is_empty() && !of_namespaces {
        return Ok(true);
    }
    let labels = labels(selector)?;
    if labels.is_empty() {
        return Ok(true);
    }
    // A namespace that is being written is judged by what it will be.
    if of_namespaces && ctx.subresource.is_empty() && matches!(attributes.operation, Operation::Create | Operation::Update)
        && let Some(object) = object
    {
        return Ok(labels.matches(&object["metadata"]["labels"]));
    }
    let name = if of_namespaces { &ctx.name } else { &ctx.namespace };
    match ctx.backend.reader.get(&NAMESPACES, "", name) {
        Some(namespace) => Ok(labels.matches(&namespace["metadata"]["labels"])),
        None => Err(format!("namespaces {name:?} not found")),
    }
}

/// Whether a selector of objects means the object as it was or as it will be.
fn of_objects(attributes: &Attributes<'_>, object: Option<&Value>, selector: &Value) -> Result<bool, String> {
    let labels = labels(selector)?;
    if labels.is_empty() {
        return Ok(true);
    }
    let one = |o: Option<&Value>| o.is_some_and(|o| !o.is_null() && labels.matches(&o["metadata"]["labels"]));
    Ok(one(object) || one(attributes.old))
}

/// The parameters that a binding gives to its policy: none, or each that it names or selects.
pub(super) fn params(ctx: &Ctx, kind: Option<&Value>, reference: Option<&Value>) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let api_version = text(kind, "/apiVersion");
    let (group, version) = split_api_version(api_version);
    let resource = api::resources::find_kind(group, version, text(kind, "/kind")).or_else(|| custom(ctx, group, version, text(kind, "/kind")));
    let Some(resource) = resource else {
        return Err(format!("paramKind kind `&ParamKind{{APIVersion:{api_version},Kind:{},}}` not known", text(kind, "/kind")));
    };
    let namespace = match (resource.namespaced, text(reference, "/namespace")) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "") if ctx.namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => &ctx.namespace,
        (true, namespace) => namespace,
    };
    let reader = &ctx.backend.reader;
    let found: Vec<Option<Arc<Value>>> = match (text(reference, "/name"), reference.get("selector")) {
        ("", Some(selector)) => {
            let labels = Labels::from_label_selector(selector)?;
            let list = reader.list(resource, Some(namespace).filter(|_| resource.namespaced));
            list.into_iter().filter(|o| labels.matches(&o["metadata"]["labels"])).map(Some).collect()
        }
        ("", None) => return Err("one of name or selector must be provided".into()),
        (_, Some(_)) => return Err("paramRef.name and paramRef.selector are mutually exclusive".into()),
        (name, None) => reader.get(resource, namespace, name).map(Some).into_iter().collect(),
    };
    if found.is_empty() && text(reference, "/parameterNotFoundAction") == "Deny" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    Ok(found)
}

/// The row of a custom kind, from its definition.
fn custom(ctx: &Ctx, group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    let definitions = ctx.backend.reader.list(&CUSTOM_RESOURCE_DEFINITIONS, None);
    let definition = definitions.iter().find(|d| text(d, "/spec/group") == group && text(d, "/spec/names/kind") == kind)?;
    let served = items(definition, "/spec/versions").find(|v| text(v, "/name") == version)?;
    let list = |at: &str| texts(definition, at).map(str::to_owned).collect();
    let row = Custom {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        list_kind: text(definition, "/spec/names/listKind").to_owned(),
        plural: text(definition, "/spec/names/plural").to_owned(),
        singular: text(definition, "/spec/names/singular").to_owned(),
        short_names: list("/spec/names/shortNames"),
        categories: list("/spec/names/categories"),
        namespaced: text(definition, "/spec/scope") == "Namespaced",
        status: served.pointer("/subresources/status").is_some(),
        scale: served.pointer("/subresources/scale").is_some(),
    };
    Some(row.row())
}
