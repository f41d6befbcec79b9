//! Query parameters and options objects.
use api::field::{FieldError, Path};
use serde_json::Value;

use crate::types::Status;

type Query = [(String, String)];

fn first<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
}

/// Go's strconv.ParseBool, empty meaning true as the parameter codec has it.
fn boolean(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "false" | "0")
}

fn integer(text: &str) -> Result<i64, Status> {
    api::schema::parse_int(text).map_err(api::status::bad_request)
}

/// What to do about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// CreateOptions, UpdateOptions and PatchOptions.
#[derive(Debug, Clone, Default)]
pub struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    pub force: Option<bool>,
}

impl WriteOptions {
    /// `kind` names the options in errors; `apply` is for apply patches, `patch` for any.
    pub fn parse(query: &Query, kind: &str, patch: bool, apply: bool) -> Result<WriteOptions, Status> {
        let mut errors = Vec::new();
        let field_manager = first(query, "fieldManager").unwrap_or_default().to_string();
        let force = first(query, "force").filter(|_| patch).map(boolean);
        if apply && field_manager.is_empty() {
            errors.push(FieldError::required(&Path::new("fieldManager"), "is required for apply patch"));
        }
        if patch && !apply && force.is_some() {
            errors.push(FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch"));
        }
        if field_manager.len() > 128 {
            errors.push(FieldError::too_long(&Path::new("fieldManager"), 128));
        }
        if let Some((i, c)) = field_manager.char_indices().find(|(_, c)| c.is_control()) {
            let detail = format!("invalid character U+{:04X} (at position {i})", c as u32);
            errors.push(FieldError::invalid(&Path::new("fieldManager"), field_manager.as_str(), detail));
        }
        let dry_run = dry_run(query.iter().filter(|(k, _)| k == "dryRun").map(|(_, v)| v.as_str()), &mut errors);
        let field_validation = match first(query, "fieldValidation").unwrap_or_default() {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                errors.push(FieldError::not_supported(&Path::new("fieldValidation"), other, &["", "Ignore", "Strict", "Warn"]));
                FieldValidation::Warn
            }
        };
        if errors.is_empty() {
            Ok(WriteOptions { dry_run, field_manager, field_validation, force })
        } else {
            Err(api::status::invalid("meta.k8s.io", kind, "", &errors))
        }
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Vec<FieldError>) -> bool {
    let mut any = false;
    for value in values {
        any = true;
        if value != "All" {
            errors.push(FieldError::not_supported(&Path::new("dryRun"), value, &["All"]));
        }
    }
    any
}

/// DeleteOptions, from the body or the query.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    pub grace_period_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan_dependents: Option<bool>,
    pub propagation_policy: Option<String>,
    pub dry_run: bool,
    /// As given, for admission.
    pub raw: Value,
}

impl DeleteOptions {
    /// From a DeleteOptions object.
    pub fn from_value(value: &Value) -> Result<DeleteOptions, Status> {
        let bad = |field: &str, want: &str| {
            api::status::bad_request(format!("json: cannot unmarshal value into Go struct field DeleteOptions.{field} of type {want}"))
        };
        if !value.is_object() && !value.is_null() {
            return Err(bad("", "v1.DeleteOptions"));
        }
        let get = |name: &str| value.get(name).filter(|v| !v.is_null());
        let integer = |name: &str| get(name).map(|v| v.as_i64().ok_or_else(|| bad(name, "int64"))).transpose();
        let boolean = |name: &str| get(name).map(|v| v.as_bool().ok_or_else(|| bad(name, "bool"))).transpose();
        let text = |of: Option<&Value>, name: &str| of.map(|v| v.as_str().map(str::to_string).ok_or_else(|| bad(name, "string"))).transpose();
        let preconditions = get("preconditions");
        let mut errors = Vec::new();
        let runs: Vec<String> = match get("dryRun") {
            None => Vec::new(),
            Some(Value::Array(a)) => {
                a.iter().map(|v| v.as_str().map(str::to_string).ok_or_else(|| bad("dryRun", "string"))).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(bad("dryRun", "[]string")),
        };
        let options = DeleteOptions {
            grace_period_seconds: integer("gracePeriodSeconds")?,
            uid: text(preconditions.and_then(|p| p.get("uid")).filter(|v| !v.is_null()), "preconditions.uid")?,
            resource_version: text(
                preconditions.and_then(|p| p.get("resourceVersion")).filter(|v| !v.is_null()),
                "preconditions.resourceVersion",
            )?,
            orphan_dependents: boolean("orphanDependents")?,
            propagation_policy: text(get("propagationPolicy"), "propagationPolicy")?,
            dry_run: dry_run(runs.iter().map(String::as_str), &mut errors),
            raw: value.clone(),
        };
        options.check(errors)
    }

    /// From query parameters, for deletes without a body.
    pub fn from_query(query: &Query) -> Result<DeleteOptions, Status> {
        let mut errors = Vec::new();
        let options = DeleteOptions {
            grace_period_seconds: first(query, "gracePeriodSeconds").map(integer).transpose()?,
            orphan_dependents: first(query, "orphanDependents").map(boolean),
            propagation_policy: first(query, "propagationPolicy").map(str::to_string),
            dry_run: dry_run(query.iter().filter(|(k, _)| k == "dryRun").map(|(_, v)| v.as_str()), &mut errors),
            ..DeleteOptions::default()
        };
        options.check(errors)
    }

    fn check(mut self, mut errors: Vec<FieldError>) -> Result<DeleteOptions, Status> {
        if let Some(policy) = &self.propagation_policy {
            if self.orphan_dependents.is_some() {
                errors.insert(
                    0,
                    FieldError::invalid(
                        &Path::new("propagationPolicy"),
                        policy.as_str(),
                        "orphanDependents and deletionPropagation cannot be both set",
                    ),
                );
            }
            if !matches!(policy.as_str(), "Foreground" | "Background" | "Orphan") {
                let known = ["Foreground", "Background", "Orphan", "nil"];
                errors.push(FieldError::not_supported(&Path::new("propagationPolicy"), policy.as_str(), &known));
            }
        }
        // upstream takes a negative period for one second
        self.grace_period_seconds = self.grace_period_seconds.map(|s| if s < 0 { 1 } else { s });
        if errors.is_empty() { Ok(self) } else { Err(api::status::invalid("meta.k8s.io", "DeleteOptions", "", &errors)) }
    }
}

/// ListOptions.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    pub label_selector: String,
    pub field_selector: String,
    pub resource_version: String,
    pub resource_version_match: String,
    pub limit: usize,
    pub continue_token: String,
    pub allow_bookmarks: bool,
    pub timeout_seconds: Option<u64>,
    pub send_initial_events: Option<bool>,
}

impl ListOptions {
    pub fn parse(query: &Query, watch: bool) -> Result<ListOptions, Status> {
        let text = |name: &str| first(query, name).unwrap_or_default().to_string();
        let number = |name: &str| first(query, name).filter(|v| !v.is_empty()).map(integer).transpose();
        let options = ListOptions {
            label_selector: text("labelSelector"),
            field_selector: text("fieldSelector"),
            resource_version: text("resourceVersion"),
            resource_version_match: text("resourceVersionMatch"),
            limit: number("limit")?.unwrap_or(0).max(0) as usize,
            continue_token: text("continue"),
            allow_bookmarks: first(query, "allowWatchBookmarks").is_some_and(boolean),
            timeout_seconds: number("timeoutSeconds")?.map(|s| s.max(0) as u64).filter(|s| *s > 0),
            send_initial_events: first(query, "sendInitialEvents").map(boolean),
        };
        let errors = if watch { options.watch_errors() } else { options.list_errors() };
        if errors.is_empty() { Ok(options) } else { Err(api::status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
    }

    fn list_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("resourceVersionMatch");
        let wanted = self.resource_version_match.as_str();
        if !wanted.is_empty() {
            if self.resource_version.is_empty() {
                errors.push(FieldError::forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided"));
            }
            if !self.continue_token.is_empty() {
                errors.push(FieldError::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
            }
            if !matches!(wanted, "Exact" | "NotOlderThan") {
                errors.push(FieldError::not_supported(&path, wanted, &["Exact", "NotOlderThan", ""]));
            }
            if wanted == "Exact" && self.resource_version == "0" {
                errors.push(FieldError::forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
            }
        }
        if self.send_initial_events.is_some() {
            errors.push(FieldError::forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list"));
        }
        errors
    }

    fn watch_errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let path = Path::new("resourceVersionMatch");
        let wanted = self.resource_version_match.as_str();
        if self.send_initial_events.is_some() && wanted != "NotOlderThan" {
            errors.push(FieldError::forbidden(&path, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
        }
        if !wanted.is_empty() {
            if self.send_initial_events.is_none() {
                errors.push(FieldError::forbidden(
                    &path,
                    "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
                ));
            }
            if wanted != "NotOlderThan" {
                errors.push(FieldError::not_supported(&path, wanted, &["NotOlderThan"]));
            }
            if !self.continue_token.is_empty() {
                errors.push(FieldError::forbidden(&path, "resourceVersionMatch is forbidden when continue is provided"));
            }
        }
        errors
    }
}

/// A resourceVersion parameter; empty is `None`.
pub fn parse_version(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let error = FieldError::invalid(
            &Path::new("resourceVersion"),
            text,
            format!("strconv.ParseUint: parsing {}: invalid syntax", api::field::go_quote(text)),
        );
        api::status::bad_request(error.to_string())
    })
}
