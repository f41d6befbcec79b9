//! The objects that a binding gives to its policy as parameters.

use std::sync::Arc;

use api::selector::Labels;
use apiserver::Ctx;
use serde_json::Value;

use crate::admission::request::served;
use crate::util::text;

/// The parameters that a binding gives to its policy: none, or each that it names or selects.
pub(super) fn params(ctx: &Ctx, kind: Option<&Value>, reference: Option<&Value>) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let api_version = text(kind, "/apiVersion");
    let Some(resource) = served(ctx, api_version, text(kind, "/kind")) else {
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
