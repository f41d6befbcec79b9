//! The objects that a binding gives to its policy as parameters.

use std::sync::Arc;

use api::resources::{Custom, split_api_version};
use api::selector::Labels;
use apiserver::Ctx;
use apiserver::types::Resource;
use serde_json::Value;

use crate::util::{CUSTOM_RESOURCE_DEFINITIONS, items, text, texts};

/// The parameters that a binding gives to its policy: none, or each that it names or selects.
pub(super) fn params(ctx: &Ctx, kind: Option<&Value>, reference: Option<&Value>) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let api_version = text(kind, "/apiVersion");
    let Some(resource) = resource_of(ctx, kind) else {
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

/// The resource of a `paramKind`.
pub(crate) fn resource_of(ctx: &Ctx, kind: &Value) -> Option<&'static Resource> {
    let (group, version) = split_api_version(text(kind, "/apiVersion"));
    let kind = text(kind, "/kind");
    api::resources::find_kind(group, version, kind).or_else(|| custom(ctx, group, version, kind))
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
