//! The AuthorizationConfiguration: who is asked about requests, in which order. What can be wrong with it is said in
//! upstream's words.

use std::path::{Path as File, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use api::field::{FieldError, Path};
use serde_json::Value;

use super::abac::Abac;
use crate::config_file::{self, Shape};
use crate::util::{items, text};

const FIELDS: &[(&str, Shape)] = &[(
    "authorizers",
    Shape::List(&Shape::Object(&[
        ("type", Shape::Text),
        ("name", Shape::Text),
        (
            "webhook",
            Shape::Object(&[
                ("authorizedTTL", Shape::Duration),
                ("cacheAuthorizedRequests", Shape::Flag),
                ("unauthorizedTTL", Shape::Duration),
                ("cacheUnauthorizedRequests", Shape::Flag),
                ("timeout", Shape::Duration),
                ("subjectAccessReviewVersion", Shape::Text),
                ("matchConditionSubjectAccessReviewVersion", Shape::Text),
                ("failurePolicy", Shape::Text),
                ("connectionInfo", Shape::Object(&[("type", Shape::Text), ("kubeConfigFile", Shape::Text)])),
                ("matchConditions", Shape::List(&Shape::Object(&[("expression", Shape::Text)]))),
            ]),
        ),
    ])),
)];
const TYPES: [&str; 6] = ["ABAC", "AlwaysAllow", "AlwaysDeny", "Node", "RBAC", "Webhook"];
/// Most conditions of a webhook.
const MOST: usize = 64;

/// What decides about requests.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthorizationMode {
    Node,
    Rbac,
    AlwaysAllow,
    AlwaysDeny,
    /// Policies of a file.
    Abac(Arc<Abac>),
    Webhook(Box<WebhookSettings>),
}

impl AuthorizationMode {
    /// As upstream calls it.
    pub fn kind(&self) -> &'static str {
        match self {
            AuthorizationMode::Node => "Node",
            AuthorizationMode::Rbac => "RBAC",
            AuthorizationMode::AlwaysAllow => "AlwaysAllow",
            AuthorizationMode::AlwaysDeny => "AlwaysDeny",
            AuthorizationMode::Abac(_) => "ABAC",
            AuthorizationMode::Webhook(_) => "Webhook",
        }
    }

    /// What tells it from others.
    pub fn name(&self) -> String {
        match self {
            AuthorizationMode::Webhook(settings) => settings.name.clone(),
            other => other.kind().to_lowercase(),
        }
    }
}

/// A server that is asked about requests.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookSettings {
    pub name: String,
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// The version of SubjectAccessReviews: `v1` or `v1beta1`.
    pub version: String,
    /// The longest a call may take.
    pub timeout: Duration,
    /// How long it is remembered that something is allowed; not at all, if it is zero.
    pub authorized_ttl: Duration,
    /// How long it is remembered that something is not.
    pub unauthorized_ttl: Duration,
    /// Whether a failure denies; otherwise the next one is asked.
    pub denies_on_failure: bool,
    /// Expressions that must all hold for it to be asked.
    pub conditions: Vec<String>,
}

/// Who is asked about requests.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthorizationConfig(pub Vec<AuthorizationMode>);

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizationError {
    /// Not of its form.
    #[error("failed to load AuthorizationConfiguration from file: {0}")]
    Load(String),
    /// What is wrong with it.
    #[error("{}", api::field::aggregate(.0.iter().map(ToString::to_string)))]
    Invalid(Vec<FieldError>),
    /// What does not go together.
    #[error("{}", api::field::aggregate(.0))]
    Names(Vec<String>),
    /// A webhook that cannot be set up.
    #[error("authorization webhook {0:?}: {1}")]
    Webhook(String, String),
}

impl AuthorizationConfig {
    /// Reads a file's text, YAML or JSON, and looks for the files that it names. Modes of `required` have to be there.
    pub fn from_text(file: &str, required: &[&'static str]) -> Result<AuthorizationConfig, AuthorizationError> {
        // an empty file is an empty configuration
        let value = match file.is_empty() {
            true => Value::Null,
            false => config_file::load(file, "AuthorizationConfiguration", FIELDS).map_err(AuthorizationError::Load)?,
        };
        let errors = mistakes(&value);
        if !errors.is_empty() {
            return Err(AuthorizationError::Invalid(errors));
        }
        let mut modes = Vec::new();
        let mut wrong = Vec::new();
        for authorizer in items(&value, "/authorizers") {
            let (kind, name) = (text(authorizer, "/type"), text(authorizer, "/name"));
            let mode = match kind {
                "Node" => AuthorizationMode::Node,
                "RBAC" => AuthorizationMode::Rbac,
                "AlwaysAllow" => AuthorizationMode::AlwaysAllow,
                "AlwaysDeny" => AuthorizationMode::AlwaysDeny,
                "Webhook" => AuthorizationMode::Webhook(Box::new(settings(name, &authorizer["webhook"]))),
                other => {
                    wrong.push(format!("authorizer type {other} is not supported"));
                    continue;
                }
            };
            if mode.name() != name {
                wrong.push(format!("expected name {} for authorizer {kind} instead of {name}", mode.name()));
            }
            modes.push(mode);
        }
        let mut missing: Vec<&str> = required.iter().copied().filter(|r| *r != "Webhook" && !modes.iter().any(|m| m.kind() == *r)).collect();
        missing.sort_unstable();
        if !missing.is_empty() {
            wrong.push(format!("missing required types: [{}]", missing.join(" ")));
        }
        if wrong.is_empty() { Ok(AuthorizationConfig(modes)) } else { Err(AuthorizationError::Names(wrong)) }
    }
}

/// Nanoseconds of a duration; `unset` where it is missing or zero.
fn nanos(value: &Value, key: &str, unset: i64) -> i64 {
    value.get(key).and_then(Value::as_str).and_then(api::gotime::parse_duration).filter(|d| *d != 0).unwrap_or(unset)
}

const SECOND: i64 = 1_000_000_000;

fn ttls(webhook: &Value) -> [i64; 2] {
    [nanos(webhook, "authorizedTTL", 300 * SECOND), nanos(webhook, "unauthorizedTTL", 30 * SECOND)]
}

fn settings(name: &str, webhook: &Value) -> WebhookSettings {
    let [authorized, unauthorized] = ttls(webhook);
    let positive = |nanos: i64| Duration::from_nanos(u64::try_from(nanos).unwrap_or(0));
    let kept = |flag: &str, nanos: i64| if webhook.get(flag).and_then(Value::as_bool).unwrap_or(true) { positive(nanos) } else { Duration::ZERO };
    WebhookSettings {
        name: name.to_owned(),
        config_file: text(webhook, "/connectionInfo/kubeConfigFile").into(),
        version: text(webhook, "/subjectAccessReviewVersion").to_owned(),
        timeout: positive(nanos(webhook, "timeout", 0)),
        authorized_ttl: kept("cacheAuthorizedRequests", authorized),
        unauthorized_ttl: kept("cacheUnauthorizedRequests", unauthorized),
        denies_on_failure: text(webhook, "/failurePolicy") == "Deny",
        conditions: items(webhook, "/matchConditions").map(|c| text(c, "/expression").to_owned()).collect(),
    }
}

fn mistakes(config: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let root = Path::new("authorizers");
    let all: Vec<&Value> = items(config, "/authorizers").collect();
    if all.is_empty() {
        errors.push(FieldError::required(&root, "at least one authorization mode must be defined"));
    }
    let (mut kinds, mut names) = (Vec::new(), Vec::new());
    for (i, authorizer) in all.into_iter().enumerate() {
        let at = root.index(i);
        let (kind, name) = (text(authorizer, "/type"), text(authorizer, "/name"));
        if kind.is_empty() {
            errors.push(FieldError::required(&at.child("type"), ""));
            continue;
        }
        if !TYPES.contains(&kind) {
            errors.push(FieldError::not_supported(&at.child("type"), kind, &TYPES));
            continue;
        }
        if kind != "Webhook" && kinds.contains(&kind) {
            errors.push(FieldError::duplicate(&at.child("type"), kind));
            continue;
        }
        kinds.push(kind);
        if name.is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        } else if names.contains(&name) {
            errors.push(FieldError::duplicate(&at.child("name"), name));
        } else {
            let why = api::names::dns1123_subdomain(name);
            if !why.is_empty() {
                errors.push(FieldError::invalid(&at.child("name"), name, format!("authorizer name is invalid: {}", why.join(", "))));
            }
        }
        names.push(name);
        match (kind, authorizer.get("webhook").filter(|w| !w.is_null())) {
            ("Webhook", None) => errors.push(FieldError::required(&at.child("webhook"), "required when type=Webhook")),
            // upstream's paths leave the field itself out
            ("Webhook", Some(webhook)) => of_webhook(webhook, &at, &mut errors),
            (_, Some(_)) => errors.push(FieldError::invalid(&at.child("webhook"), "non-null", "may only be specified when type=Webhook")),
            (_, None) => {}
        }
    }
    errors
}

fn of_webhook(webhook: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let shown = api::gotime::format_duration;
    match nanos(webhook, "timeout", 0) {
        0 => errors.push(FieldError::required(&at.child("timeout"), "")),
        given if !(1..=30 * SECOND).contains(&given) => errors.push(FieldError::invalid(&at.child("timeout"), shown(given), "must be > 0s and <= 30s")),
        _ => {}
    }
    for (name, ttl) in ["authorizedTTL", "unauthorizedTTL"].into_iter().zip(ttls(webhook)) {
        if ttl < 0 {
            errors.push(FieldError::invalid(&at.child(name), shown(ttl), "must be > 0s"));
        }
    }
    let mut one_of = |field: &str, valid: &[&str], missing: Option<&str>| match text(webhook, &format!("/{field}")) {
        "" => errors.extend(missing.map(|why| FieldError::required(&at.child(field), why))),
        given if !valid.contains(&given) => errors.push(FieldError::not_supported(&at.child(field), given, valid)),
        _ => {}
    };
    one_of("subjectAccessReviewVersion", &["v1", "v1beta1"], Some(""));
    let conditions: Vec<&str> = items(webhook, "/matchConditions").map(|c| text(c, "/expression")).collect();
    let wanted = (!conditions.is_empty()).then_some("required if match conditions are specified");
    one_of("matchConditionSubjectAccessReviewVersion", &["v1"], wanted);
    one_of("failurePolicy", &["NoOpinion", "Deny"], Some(""));
    connection(webhook, &at.child("connectionInfo"), errors);
    if conditions.len() > MOST {
        return errors.push(FieldError::too_many(&at.child("matchConditions"), conditions.len(), MOST));
    }
    for (i, expression) in conditions.iter().enumerate() {
        let at = at.child("matchConditions").index(i).child("expression");
        if expression.trim().is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if conditions[..i].contains(expression) {
            errors.push(FieldError::duplicate(&at, *expression));
        } else if let Err(why) = cel::authorization::compile(expression) {
            errors.push(FieldError::invalid(&at, *expression, why));
        }
    }
}

fn connection(webhook: &Value, at: &Path, errors: &mut Vec<FieldError>) {
    let file = webhook.pointer("/connectionInfo/kubeConfigFile").and_then(Value::as_str);
    let named = at.child("kubeConfigFile");
    match (text(webhook, "/connectionInfo/type"), file) {
        ("", _) => errors.push(FieldError::required(&at.child("type"), "")),
        ("InClusterConfig", Some(file)) => errors.push(FieldError::invalid(&named, file, "can only be set when type=KubeConfigFile")),
        // It would ask this very server; upstream's does not come up.
        ("InClusterConfig", None) => errors.push(FieldError::invalid(&at.child("type"), "InClusterConfig", "is not for kube-apiserver itself")),
        ("KubeConfigFile", None | Some("")) => errors.push(FieldError::required(&named, "")),
        ("KubeConfigFile", Some(file)) if !File::new(file).is_absolute() => errors.push(FieldError::invalid(&named, file, "must be an absolute path")),
        ("KubeConfigFile", Some(file)) => match std::fs::metadata(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                errors.push(FieldError::invalid(&named, file, format!("error loading file: stat {file}: no such file or directory")));
            }
            Err(error) => errors.push(FieldError::invalid(&named, file, format!("error loading file: {error}"))),
            Ok(found) if !found.is_file() => errors.push(FieldError::invalid(&named, file, "must be a regular file")),
            Ok(_) => {}
        },
        (other, _) => errors.push(FieldError::not_supported(&at.child("type"), other, &["InClusterConfig", "KubeConfigFile"])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(authorizers: &str) -> Result<AuthorizationConfig, AuthorizationError> {
        AuthorizationConfig::from_text(&format!("apiVersion: apiserver.config.k8s.io/v1beta1\nkind: AuthorizationConfiguration\nauthorizers: [{authorizers}]"), &[])
    }

    fn wrong(authorizers: &str) -> Vec<String> {
        match read(authorizers) {
            Err(AuthorizationError::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
            other => vec![format!("{other:?}")],
        }
    }

    /// A webhook that is as it should be, but for this.
    fn hook(kubeconfig: &File, more: &str) -> String {
        format!("{{type: Webhook, name: w, webhook: {{timeout: 3s, subjectAccessReviewVersion: v1, failurePolicy: Deny, connectionInfo: {{type: KubeConfigFile, kubeConfigFile: {}}}, {more}}}}}", kubeconfig.display())
    }

    #[test]
    fn authorizers_are_read_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("kubeconfig");
        std::fs::write(&file, "{}").unwrap();
        let config = read(&format!("{{type: Node, name: node}}, {}, {{type: RBAC, name: rbac}}", hook(&file, "authorizedTTL: 1m, cacheUnauthorizedRequests: false, matchConditionSubjectAccessReviewVersion: v1, matchConditions: [{expression: 'true'}]"))).unwrap();
        let webhook = WebhookSettings {
            name: "w".into(),
            config_file: file.clone(),
            version: "v1".into(),
            timeout: Duration::from_secs(3),
            authorized_ttl: Duration::from_secs(60),
            unauthorized_ttl: Duration::ZERO,
            denies_on_failure: true,
            conditions: vec!["true".into()],
        };
        assert_eq!(config.0, [AuthorizationMode::Node, AuthorizationMode::Webhook(Box::new(webhook)), AuthorizationMode::Rbac]);
        assert_eq!(wrong(""), ["authorizers: Required value: at least one authorization mode must be defined"]);
        assert_eq!(wrong("{}, {type: X}, {type: RBAC, name: rbac}, {type: RBAC, name: r}, {type: Node}, {type: AlwaysDeny, name: rbac, webhook: {}}, {type: Webhook, name: A}"), [
            "authorizers[0].type: Required value",
            "authorizers[1].type: Unsupported value: \"X\": supported values: \"ABAC\", \"AlwaysAllow\", \"AlwaysDeny\", \"Node\", \"RBAC\", \"Webhook\"",
            "authorizers[3].type: Duplicate value: \"RBAC\"",
            "authorizers[4].name: Required value",
            "authorizers[5].name: Duplicate value: \"rbac\"",
            "authorizers[5].webhook: Invalid value: \"non-null\": may only be specified when type=Webhook",
            "authorizers[6].name: Invalid value: \"A\": authorizer name is invalid: a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
            "authorizers[6].webhook: Required value: required when type=Webhook",
        ]);
        assert_eq!(wrong("{type: Webhook, name: w, webhook: {}}"), [
            "authorizers[0].timeout: Required value",
            "authorizers[0].subjectAccessReviewVersion: Required value",
            "authorizers[0].failurePolicy: Required value",
            "authorizers[0].connectionInfo.type: Required value",
        ]);
        let with = |more: &str| wrong(&hook(&file, more));
        assert_eq!(with("unauthorizedTTL: -1s, matchConditions: [{expression: ' '}, {expression: 'true'}, {expression: 'true'}, {expression: request.user}]"), [
            "authorizers[0].unauthorizedTTL: Invalid value: \"-1s\": must be > 0s",
            "authorizers[0].matchConditionSubjectAccessReviewVersion: Required value: required if match conditions are specified",
            "authorizers[0].matchConditions[0].expression: Required value",
            "authorizers[0].matchConditions[2].expression: Duplicate value: \"true\"",
            "authorizers[0].matchConditions[3].expression: Invalid value: \"request.user\": must evaluate to bool but got string",
        ]);
        let long = hook(&file, "").replace("timeout: 3s", "timeout: 31s").replace("v1,", "v2,").replace("Deny", "Allow");
        assert_eq!(wrong(&long), [
            "authorizers[0].timeout: Invalid value: \"31s\": must be > 0s and <= 30s",
            "authorizers[0].subjectAccessReviewVersion: Unsupported value: \"v2\": supported values: \"v1\", \"v1beta1\"",
            "authorizers[0].failurePolicy: Unsupported value: \"Allow\": supported values: \"NoOpinion\", \"Deny\"",
        ]);
        let missing = folder.path().join("none");
        assert_eq!(wrong(&hook(&missing, "")), [format!("authorizers[0].connectionInfo.kubeConfigFile: Invalid value: {missing:?}: error loading file: stat {}: no such file or directory", missing.display())]);
        assert!(wrong(&hook(folder.path(), ""))[0].ends_with("must be a regular file"));
        assert!(wrong(&hook(File::new("x"), ""))[0].ends_with("must be an absolute path"));
        assert_eq!(read("{type: RBAC, name: other}").unwrap_err().to_string(), "expected name rbac for authorizer RBAC instead of other");
        let reread = AuthorizationConfig::from_text("apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: [{type: RBAC, name: rbac}]", &["Node", "RBAC", "Webhook"]);
        assert_eq!(reread.unwrap_err().to_string(), "missing required types: [Node]");
        assert!(read("{type: RBAC, named: rbac}").unwrap_err().to_string().contains("strict decoding error: unknown field \"authorizers[0].named\""));
    }
}
