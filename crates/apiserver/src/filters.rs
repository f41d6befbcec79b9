//! The filter chain's own decisions: who is it, may they.
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};

use crate::audit::{Level, Record};
use crate::authn::{Authenticator, AuthnRequest, Note, Peer, note};
use crate::authz::{Authorizer, AuthzAttributes, Decision, decide};
use crate::builder::InProcess;
use crate::ctx::UserInfo;
use crate::request::RequestInfo;
use crate::types::Status;

/// The user of requests without credentials.
pub fn anonymous() -> UserInfo {
    UserInfo::new("system:anonymous", &["system:unauthenticated"])
}

/// The bearer token of a request, from either place where it may be.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).unwrap_or_default().trim();
    let words: Vec<&str> = text.splitn(3, ' ').collect();
    match words[..] {
        [scheme, "", _] if scheme.eq_ignore_ascii_case("bearer") => {
            note(Note::Warning("the provided Authorization header contains extra space before the bearer token, and is ignored"));
        }
        [scheme, token, ..] if scheme.eq_ignore_ascii_case("bearer") => return Some(token.to_string()),
        _ => {}
    }
    // browsers cannot set headers on WebSockets
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    protocols
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))
        .find_map(|t| String::from_utf8(URL_SAFE_NO_PAD.decode(t).ok()?).ok())
}

/// Finds out who makes the request; nothing, when it has no credentials. `Err` is a 401.
pub async fn authenticate(
    authenticator: &dyn Authenticator,
    extensions: &http::Extensions,
    headers: &HeaderMap,
    path: &str,
    now: jiff::Timestamp,
) -> Result<Option<UserInfo>, Status> {
    if let Some(InProcess(user)) = extensions.get::<InProcess>() {
        return Ok(Some(authenticated(user.clone())));
    }
    let bearer = bearer(headers);
    let peer = extensions.get::<Peer>();
    let request = AuthnRequest { headers, path, peer, bearer: bearer.as_deref(), audiences: &[], granted: None, now };
    match authenticator.authenticate(&request).await {
        Ok(Some(user)) => Ok(Some(authenticated(user))),
        // a token that nobody knows is no anonymous request
        Ok(None) if bearer.is_some() => Err(api::status::unauthorized()),
        Ok(None) => Ok(None),
        Err(why) => {
            tracing::warn!(path, why, "unable to authenticate the request");
            Err(api::status::unauthorized())
        }
    }
}

fn authenticated(mut user: UserInfo) -> UserInfo {
    if user.name != "system:anonymous" && !user.in_group("system:authenticated") && !user.in_group("system:unauthenticated") {
        user.groups.push("system:authenticated".into());
    }
    user
}

/// All authenticators in order; the first that knows the user wins, errors count only when nobody does.
pub struct Union(pub Vec<std::sync::Arc<dyn Authenticator>>);

#[async_trait::async_trait]
impl Authenticator for Union {
    async fn authenticate(&self, req: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let mut errors = Vec::new();
        for authenticator in &self.0 {
            match authenticator.authenticate(req).await {
                Ok(Some(user)) => return Ok(Some(user)),
                Ok(None) => {}
                Err(why) => errors.push(why),
            }
        }
        if errors.is_empty() { Ok(None) } else { Err(format!("[{}]", errors.join(", "))) }
    }
}

/// What authorizers are asked about this request.
pub fn attributes(info: &RequestInfo, user: &UserInfo) -> AuthzAttributes {
    AuthzAttributes {
        user: user.clone(),
        verb: info.verb.clone(),
        resource_request: info.resource_request,
        namespace: info.namespace.clone(),
        api_group: info.group.clone(),
        api_version: info.version.clone(),
        resource: info.resource.clone(),
        subresource: info.subresource.clone(),
        name: info.name.clone(),
        path: info.path.clone(),
        field_selector: info.field_selector.clone(),
        label_selector: info.label_selector.clone(),
    }
}

/// The 403 of a request that nobody allows.
pub fn forbidden(a: &AuthzAttributes, reason: &str) -> Status {
    let q = api::field::go_quote;
    let user = q(&a.user.name);
    let what = if a.resource_request {
        let resource = if a.subresource.is_empty() { a.resource.clone() } else { format!("{}/{}", a.resource, a.subresource) };
        let place = if a.namespace.is_empty() { "at the cluster scope".to_string() } else { format!("in the namespace {}", q(&a.namespace)) };
        format!("User {user} cannot {} resource {} in API group {} {place}", a.verb, q(&resource), q(&a.api_group))
    } else {
        format!("User {user} cannot {} path {}", a.verb, q(&a.path))
    };
    let what = what.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let why = if reason.is_empty() { what } else { format!("{what}: {reason}") };
    api::status::forbidden(&a.api_group, &a.resource, &a.name, &why)
}

/// Health is nobody's secret: these paths are open before authorizers are asked, as upstream's defaults have it.
pub fn always_allowed(info: &RequestInfo) -> bool {
    !info.resource_request && matches!(info.path.as_str(), "/healthz" | "/livez" | "/readyz")
}

/// Why a request goes no further.
pub(crate) enum Refused {
    Forbidden(Status),
    /// Whoever would know could not be asked.
    Failed(String),
}

/// Asks the authorizers about the request.
pub(crate) async fn authorize(authorizer: &dyn Authorizer, info: &RequestInfo, user: &UserInfo, audit: Option<&Record>) -> Result<(), Refused> {
    let note = |decision: &str, reason: &str| {
        if let Some(record) = audit {
            record.annotate(Level::Metadata, "authorization.k8s.io/decision", || decision.to_string());
            record.annotate(Level::Metadata, "authorization.k8s.io/reason", || reason.to_string());
        }
    };
    if always_allowed(info) {
        note("allow", "");
        return Ok(());
    }
    let attributes = attributes(info, user);
    match decide(authorizer, &attributes).await {
        (Decision::Allow, reason) => {
            note("allow", &reason);
            Ok(())
        }
        (Decision::Failed { .. }, why) => {
            if let Some(record) = audit {
                record.annotate(Level::Metadata, "authorization.k8s.io/reason", || "internal error".to_string());
            }
            Err(Refused::Failed(why))
        }
        (_, reason) => {
            note("forbid", &reason);
            Err(Refused::Forbidden(forbidden(&attributes, &reason)))
        }
    }
}

/// The value of a `Warning` header.
pub fn warning_header(text: &str) -> Option<http::HeaderValue> {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
    http::HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_says_what_upstream_says() {
        let a = AuthzAttributes {
            user: UserInfo::new("bob", &[]),
            verb: "list".into(),
            resource_request: true,
            namespace: "default".into(),
            resource: "pods".into(),
            ..AuthzAttributes::default()
        };
        let status = forbidden(&a, "");
        assert_eq!(
            status.message,
            "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        let a = AuthzAttributes { user: anonymous(), verb: "get".into(), path: "/x".into(), ..AuthzAttributes::default() };
        assert_eq!(forbidden(&a, "").message, "forbidden: User \"system:anonymous\" cannot get path \"/x\"");
    }
}
