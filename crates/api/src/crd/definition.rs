//! Whether a CustomResourceDefinition is well formed, in upstream's words. What was wrong before an update may stay wrong.

use super::conditions::{self, Approval};
use super::path;
use super::schema::{Schema, known_format};
use super::structure::validate_structural;
use super::{Embedded, compare_versions, flag, items, text, texts};
use crate::field::{FieldError, Path};
use crate::names;
use serde_json::{Map, Value};
use std::collections::BTreeSet;

mod props;

type Errors = Vec<FieldError>;

/// What is asked, as far as the old definition allows it.
struct Options {
    review_versions: bool,
    schema: bool,
    structural: bool,
    types: bool,
    pruned_defaults: bool,
    atomic_sets: bool,
    map_keys: bool,
    bad_ca: bool,
}

impl Options {
    const ALL: Options = Options {
        review_versions: true,
        schema: true,
        structural: true,
        types: true,
        pruned_defaults: true,
        atomic_sets: true,
        map_keys: true,
        bad_ca: true,
    };

    fn after(old: &Value) -> Options {
        let schemas: Vec<&Value> = schemas(old).collect();
        let has = |test: &dyn Fn(&Value) -> bool| schemas.iter().any(|s| props::any(s, test));
        let reviews = texts(old, "/spec/conversion/webhook/conversionReviewVersions");
        let bundle = text(old, "/spec/conversion/webhook/clientConfig/caBundle");
        Options {
            review_versions: reviews.is_empty() || reviews.iter().any(|v| REVIEWS.contains(&v.as_str())),
            schema: items(old, "/spec/versions").iter().all(|v| v.pointer("/schema/openAPIV3Schema").is_some()),
            structural: !schemas.iter().any(|s| !validate_structural(&Path::root(), s).is_empty()),
            types: !has(&|s| !text(s, "/type").is_empty() && !props::TYPES.contains(&text(s, "/type"))),
            pruned_defaults: true,
            atomic_sets: !has(&props::is_loose_set),
            map_keys: !has(&|s| {
                let mut errors = Vec::new();
                props::map_keys(s, &Path::root(), &mut errors);
                !errors.is_empty()
            }),
            bad_ca: !conditions::is_true(old, "Established") || !bundle.is_empty() && bad_ca_bundle(bundle),
        }
    }
}

/// The versions of ConversionReview that are understood.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

fn schemas(definition: &Value) -> impl Iterator<Item = &Value> {
    items(definition, "/spec/versions").iter().filter_map(|v| v.pointer("/schema/openAPIV3Schema"))
}

/// What is wrong with a new definition, its metadata apart.
pub fn create(definition: &Value) -> Errors {
    let mut errors = Vec::new();
    let wanted = format!("{}.{}", text(definition, "/spec/names/plural"), text(definition, "/spec/group"));
    let name = text(definition, "/metadata/name");
    if !name.is_empty() && name != wanted {
        let at = Path::new("metadata").child("name");
        errors.push(FieldError::invalid(&at, name, "must be spec.names.plural+\".\"+spec.group"));
    }
    spec(definition, &Options::ALL, &mut errors);
    status(definition, &mut errors);
    stored_versions(definition, &mut errors);
    approval(definition, None, &mut errors);
    preserve(definition, &mut errors);
    errors
}

/// What is wrong with a changed definition, its metadata apart.
pub fn update(new: &Value, old: &Value) -> Errors {
    let mut errors = Vec::new();
    spec(new, &Options::after(old), &mut errors);
    let mut fixed = |pointer: &str, path: Path| {
        if text(new, pointer) != text(old, pointer) {
            errors.push(FieldError::invalid(&path, text(new, pointer), "field is immutable"));
        }
    };
    let names = Path::new("spec").child("names");
    if conditions::is_true(old, "Established") {
        fixed("/spec/scope", Path::new("spec").child("scope"));
        fixed("/spec/names/kind", names.child("kind"));
    }
    fixed("/spec/group", Path::new("spec").child("group"));
    fixed("/spec/names/plural", names.child("plural"));
    status(new, &mut errors);
    stored_versions(new, &mut errors);
    approval(new, Some(old), &mut errors);
    if !old.get("spec").is_some_and(|s| flag(s, "preserveUnknownFields")) {
        preserve(new, &mut errors);
    }
    errors
}

/// What is wrong with a definition whose status changed, its metadata apart.
pub fn update_status(new: &Value) -> Errors {
    let mut errors = Vec::new();
    status(new, &mut errors);
    errors
}

/// A warning for each format that means nothing here and was not in `old`.
pub fn warnings(new: &Value, old: Option<&Value>) -> Vec<String> {
    let unknown = |definition: &Value| -> Vec<String> {
        let mut found = Vec::new();
        for schema in schemas(definition) {
            props::each(schema, &mut |s| {
                let format = text(s, "/format");
                if !format.is_empty() && !known_format(text(s, "/type"), format) {
                    found.push(format.to_owned());
                }
            });
        }
        found
    };
    let before = old.map(unknown).unwrap_or_default();
    let all = unknown(new).into_iter().filter(|f| !before.contains(f));
    all.map(|f| format!("unrecognized format {}", crate::field::go_quote(&f))).collect()
}

/// Whether a base64 text is no bundle of certificates.
pub(super) fn bad_ca_bundle(base64: &str) -> bool {
    use base64::Engine as _;
    let Ok(bytes) = base64::engine::general_purpose::STANDARD.decode(base64) else { return true };
    let pem = String::from_utf8_lossy(&bytes);
    if pem.trim().is_empty() {
        return false;
    }
    let mut rest = pem.as_ref();
    let mut found = false;
    while let Some(start) = rest.find("-----BEGIN CERTIFICATE-----") {
        let body = &rest[start + 27..];
        let Some(end) = body.find("-----END CERTIFICATE-----") else { return true };
        let text: String = body[..end].chars().filter(|c| !c.is_whitespace()).collect();
        // a certificate is a DER sequence
        match base64::engine::general_purpose::STANDARD.decode(text) {
            Ok(der) if der.first() == Some(&0x30) => found = true,
            _ => return true,
        }
        rest = &body[end..];
    }
    !found
}

fn joined(errors: Vec<String>) -> Option<String> {
    (!errors.is_empty()).then(|| errors.join(","))
}

fn label(path: &Path, value: &str, prefix: &str, errors: &mut Errors) {
    if let Some(why) = joined(names::dns1035_label(&if prefix.is_empty() { value.to_owned() } else { value.to_lowercase() })) {
        errors.push(FieldError::invalid(path, value, format!("{prefix}{why}")));
    }
}

fn one_of(path: &Path, value: &str, known: &[&str], errors: &mut Errors) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else if !known.contains(&value) {
        errors.push(FieldError::not_supported(path, value, known));
    }
}

fn spec(definition: &Value, options: &Options, errors: &mut Errors) {
    let at = Path::new("spec");
    let group = text(definition, "/spec/group");
    if group.is_empty() {
        errors.push(FieldError::required(&at.child("group"), ""));
    } else if let Some(why) = joined(names::dns1123_subdomain(group)) {
        errors.push(FieldError::invalid(&at.child("group"), group, why));
    } else if !group.contains('.') {
        errors.push(FieldError::invalid(&at.child("group"), group, "should be a domain with at least one dot"));
    }
    one_of(&at.child("scope"), text(definition, "/spec/scope"), &["Cluster", "Namespaced"], errors);
    let preserve = definition.get("spec").is_some_and(|s| flag(s, "preserveUnknownFields"));
    let versions = items(definition, "/spec/versions");
    for (i, version) in versions.iter().enumerate() {
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            let at = at.child("versions").index(i).child("schema").child("openAPIV3Schema");
            if options.schema {
                errors.push(FieldError::required(&at, ""));
            } else if !preserve && flag(version, "served") {
                errors.push(FieldError::required(&at, "because otherwise all fields are pruned"));
            }
        }
    }
    let has = |test: &dyn Fn(&Value) -> bool| schemas(definition).any(|s| props::any(s, test));
    let defaults = has(&|s| s.get("default").is_some_and(|d| !d.is_null()));
    if defaults && preserve {
        errors.push(FieldError::invalid(&at.child("preserveUnknownFields"), true, "must be false in order to use defaults in the schema"));
    }
    let structural = options.structural || !preserve || defaults || has(&props::has_extensions);
    let (mut stored, mut seen, mut unique) = (0, BTreeSet::new(), true);
    for (i, version) in versions.iter().enumerate() {
        stored += usize::from(flag(version, "storage"));
        let name = text(version, "/name");
        unique &= seen.insert(name);
        let at = at.child("versions").index(i);
        label(&at.child("name"), name, "", errors);
        self::version(version, &at, structural, options, errors);
    }
    let all = || definition.pointer("/spec/versions").cloned().unwrap_or_default();
    if !unique {
        errors.push(FieldError::invalid(&at.child("versions"), all(), "must contain unique version names"));
    }
    if stored != 1 {
        errors.push(FieldError::invalid(&at.child("versions"), all(), "must have exactly one version marked as storage version"));
    }
    // the first one is also that of old definitions, which had one
    if let Some(first) = versions.first().map(|v| text(v, "/name")).filter(|n| !n.is_empty()) {
        label(&at.child("version"), first, "", errors);
    }
    let empty = Value::Null;
    let names = definition.pointer("/spec/names").unwrap_or(&empty);
    for key in ["plural", "singular", "kind", "listKind"] {
        if text(names, &format!("/{key}")).is_empty() {
            errors.push(FieldError::required(&at.child("names").child(key), ""));
        }
    }
    check_names(names, &at.child("names"), errors);
    let conversion = definition.pointer("/spec/conversion").unwrap_or(&empty);
    let strategy = text(conversion, "/strategy");
    if strategy == "Webhook" && preserve {
        let at = at.child("conversion").child("strategy");
        errors.push(FieldError::invalid(&at, strategy, "must be None if spec.preserveUnknownFields is true"));
    }
    if !conversion.is_null() {
        self::conversion(conversion, &at.child("conversion"), options, errors);
    }
}

fn check_names(names: &Value, at: &Path, errors: &mut Errors) {
    const MIXED: &str = "may have mixed case, but should otherwise match: ";
    for (key, prefix) in [("plural", ""), ("singular", ""), ("kind", MIXED), ("listKind", MIXED)] {
        let name = text(names, &format!("/{key}"));
        if !name.is_empty() {
            label(&at.child(key), name, prefix, errors);
        }
    }
    for (i, name) in texts(names, "/shortNames").iter().enumerate() {
        label(&at.child("shortNames").index(i), name, "", errors);
    }
    let (kind, list) = (text(names, "/kind"), text(names, "/listKind"));
    if !kind.is_empty() && kind == list {
        errors.push(FieldError::invalid(&at.child("listKind"), list, "kind and listKind may not be the same"));
    }
    for (i, name) in texts(names, "/categories").iter().enumerate() {
        label(&at.child("categories").index(i), name, "", errors);
    }
}

fn conversion(conversion: &Value, at: &Path, options: &Options, errors: &mut Errors) {
    let strategy = text(conversion, "/strategy");
    one_of(&at.child("strategy"), strategy, &["None", "Webhook"], errors);
    let client = conversion.pointer("/webhook/clientConfig");
    let reviews = texts(conversion, "/webhook/conversionReviewVersions");
    let config = at.child("webhookClientConfig");
    if strategy != "Webhook" {
        if client.is_some() {
            errors.push(FieldError::forbidden(&config, "should not be set when strategy is not set to Webhook"));
        }
        if !reviews.is_empty() {
            let at = at.child("conversionReviewVersions");
            errors.push(FieldError::forbidden(&at, "should not be set when strategy is not set to Webhook"));
        }
        return;
    }
    match client {
        None => errors.push(FieldError::required(&config, "required when strategy is set to Webhook")),
        Some(client) => client_config(client, &config, !options.bad_ca, errors),
    }
    let at = at.child("conversionReviewVersions");
    if reviews.is_empty() {
        errors.push(FieldError::required(&at, ""));
        return;
    }
    let mut seen = BTreeSet::new();
    for (i, version) in reviews.iter().enumerate() {
        if !seen.insert(version) {
            errors.push(FieldError::invalid(&at.index(i), version.as_str(), "duplicate version"));
            continue;
        }
        for why in names::dns1035_label(version) {
            errors.push(FieldError::invalid(&at.index(i), version.as_str(), why));
        }
    }
    if options.review_versions && !reviews.iter().any(|v| REVIEWS.contains(&v.as_str())) {
        errors.push(FieldError::invalid(&at, reviews, format!("must include at least one of {}", REVIEWS.join(", "))));
    }
}

/// A webhook's client configuration: of conversion here, and of admission.
pub fn client_config(client: &Value, at: &Path, check_ca: bool, errors: &mut Vec<FieldError>) {
    let url = client.get("url").and_then(Value::as_str);
    let service = client.get("service").filter(|s| s.is_object());
    match (url, service) {
        (Some(_), Some(_)) | (None, None) => {
            errors.push(FieldError::required(at, "exactly one of url or service is required"));
        }
        (Some(url), None) => webhook_url(url, &at.child("url"), errors),
        (None, Some(service)) => {
            let at = at.child("service");
            if text(service, "/name").is_empty() {
                errors.push(FieldError::required(&at.child("name"), ""));
            }
            if text(service, "/namespace").is_empty() {
                errors.push(FieldError::required(&at.child("namespace"), ""));
            }
            let port = service.get("port").and_then(Value::as_i64).unwrap_or(443);
            for why in names::port_number(port) {
                errors.push(FieldError::invalid(&at.child("port"), port, format!("port is not valid: {why}")));
            }
            let path = text(service, "/path");
            if !path.is_empty() {
                service_path(path, &at.child("path"), errors);
            }
        }
    }
    let bundle = text(client, "/caBundle");
    if check_ca && !bundle.is_empty() && bad_ca_bundle(bundle) {
        let at = at.child("caBundle");
        errors.push(FieldError::invalid(&at, bundle, "unable to load root certificates: unable to parse bytes as PEM block"));
    }
}

fn webhook_url(url: &str, at: &Path, errors: &mut Errors) {
    const FORM: &str = "; desired format: https://host[/path]";
    let is_scheme = |s: &str| s.starts_with(|c: char| c.is_ascii_alphabetic()) && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
    let (scheme, rest) = match url.split_once(':') {
        Some(("", _)) => {
            let why = format!("url must be a valid URL: parse {}: missing protocol scheme{FORM}", crate::field::go_quote(url));
            return errors.push(FieldError::required(at, why));
        }
        Some((scheme, rest)) if is_scheme(scheme) => (scheme.to_lowercase(), rest),
        _ => (String::new(), url),
    };
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.strip_prefix("//").map_or("", |r| r.split('/').next().unwrap_or_default());
    let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
    if scheme != "https" {
        errors.push(FieldError::invalid(at, scheme, format!("'https' is the only allowed URL scheme{FORM}")));
    }
    if host.is_empty() {
        errors.push(FieldError::invalid(at, host, format!("host must be specified{FORM}")));
    }
    if let Some(user) = user {
        errors.push(FieldError::invalid(at, user, "user information is not permitted in the URL"));
    }
    if !fragment.is_empty() {
        errors.push(FieldError::invalid(at, fragment, "fragments are not permitted in the URL"));
    }
    if !query.is_empty() {
        errors.push(FieldError::invalid(at, query, "query parameters are not permitted in the URL"));
    }
}

fn service_path(path: &str, at: &Path, errors: &mut Errors) {
    if path == "/" {
        return;
    }
    if path.contains(['?', '#']) {
        return errors.push(FieldError::invalid(at, path, "must be a path without query or fragment"));
    }
    if !path.starts_with('/') {
        errors.push(FieldError::invalid(at, path, "must start with a '/'"));
    }
    // whatever the first one is, the rest are looked at
    let rest = path.char_indices().nth(1).map_or("", |(i, _)| &path[i..]);
    let steps: Vec<&str> = rest.split('/').collect();
    for (i, step) in steps.iter().enumerate() {
        if step.is_empty() && i + 1 == steps.len() {
            continue;
        }
        if step.is_empty() {
            errors.push(FieldError::invalid(at, path, format!("segment[{i}] may not be empty")));
        } else if let Some(why) = names::dns1123_subdomain(step).first() {
            errors.push(FieldError::invalid(at, path, format!("segment[{i}]: {why}")));
        }
    }
}

fn version(version: &Value, at: &Path, structural: bool, options: &Options, errors: &mut Errors) {
    if let Some(warning) = version.get("deprecationWarning").and_then(Value::as_str) {
        let mut wrong = |why: String| errors.push(FieldError::invalid(&at.child("deprecationWarning"), warning, why));
        if !flag(version, "deprecated") {
            wrong("can only be set for deprecated versions".into());
        } else {
            if warning.len() > 256 {
                wrong("must be <= 256 characters long".into());
            }
            if warning.is_empty() {
                wrong("must not be an empty string".into());
            }
            if let Some((i, _)) = warning.char_indices().find(|(_, c)| c.is_control()) {
                wrong(format!("must only contain printable UTF-8 characters; non-printable character found at index {i}"));
            }
        }
    }
    let has_status = version.pointer("/subresources/status").is_some();
    let schema = version.pointer("/schema/openAPIV3Schema");
    if let Some(schema) = schema {
        props::check(schema, &at.child("schema").child("openAPIV3Schema"), has_status, structural, options, errors);
    }
    if let Some(scale) = version.pointer("/subresources/scale") {
        self::scale(scale, &at.child("subresources"), errors);
    }
    for (i, column) in items(version, "/additionalPrinterColumns").iter().enumerate() {
        self::column(column, &at.child("additionalPrinterColumns").index(i), errors);
    }
    let selectable = items(version, "/selectableFields");
    if !selectable.is_empty() {
        let at = at.child("selectableFields");
        match schema {
            None => errors.push(FieldError::invalid(&at, "", "may only be set when `version.schema.openAPIV3Schema` is not included")),
            Some(schema) => self::selectable(selectable, schema, &at, errors),
        }
    }
}

fn scale(scale: &Value, at: &Path, errors: &mut Errors) {
    let mut check = |key: &str, required: bool, below: &[&str], what: &str| {
        let (path, at) = (text(scale, &format!("/{key}")), at.child(&format!("scale.{key}")));
        if path.is_empty() {
            if required {
                errors.push(FieldError::required(&at, ""));
            }
        } else if !path.starts_with('.') {
            errors.push(FieldError::invalid(&at, path, "must be a simple json path starting with ."));
        } else if !below.iter().any(|b| path.starts_with(b)) {
            errors.push(FieldError::invalid(&at, path, format!("should be a json path under {what}")));
        }
    };
    check("specReplicasPath", true, &[".spec."], ".spec");
    check("statusReplicasPath", true, &[".status."], ".status");
    check("labelSelectorPath", false, &[".spec.", ".status."], "either .spec or .status");
}

fn column(column: &Value, at: &Path, errors: &mut Errors) {
    const TYPES: &str = "must be one of boolean,date,integer,number,string";
    const FORMATS: &str = "must be one of byte,date,date-time,double,float,int32,int64,password";
    if text(column, "/name").is_empty() {
        errors.push(FieldError::required(&at.child("name"), ""));
    }
    let (kind, format, path) = (text(column, "/type"), text(column, "/format"), text(column, "/jsonPath"));
    if kind.is_empty() {
        errors.push(FieldError::required(&at.child("type"), TYPES));
    } else if !matches!(kind, "boolean" | "date" | "integer" | "number" | "string") {
        errors.push(FieldError::invalid(&at.child("type"), kind, TYPES));
    }
    if !format.is_empty() && !FORMATS[15..].split(',').any(|f| f.trim() == format) {
        errors.push(FieldError::invalid(&at.child("format"), format, FORMATS));
    }
    if path.is_empty() {
        errors.push(FieldError::required(&at.child("JSONPath"), ""));
    } else if !path.starts_with('.') {
        errors.push(FieldError::invalid(&at.child("JSONPath"), path, "must be a simple json path starting with ."));
    }
}

/// Most selectable fields of a version.
const MAX_SELECTABLE: usize = 8;

fn selectable(fields: &[Value], schema: &Value, at: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (i, field) in fields.iter().enumerate() {
        let (path, at) = (text(field, "/jsonPath"), at.index(i).child("jsonPath"));
        if path.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let found = match selected(path, schema) {
            Ok(found) => found,
            Err(why) => {
                errors.push(FieldError::invalid(&at, path, format!("is an invalid path: {why}")));
                continue;
            }
        };
        if path.starts_with(".metadata.") || path == ".metadata" {
            errors.push(FieldError::invalid(&at, path, "must not point to fields in metadata"));
        }
        if !matches!(text(found, "/type"), "string" | "boolean" | "integer") {
            let why = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(&at, path, why));
        }
        if !seen.insert(path) {
            errors.push(FieldError::duplicate(&at, path));
        }
    }
    if seen.len() > MAX_SELECTABLE {
        errors.push(FieldError::too_many(at, seen.len(), MAX_SELECTABLE));
    }
}

/// The schema of the field at a path that has no `[…]`.
fn selected<'a>(path: &str, schema: &'a Value) -> Result<&'a Value, String> {
    if path::tokens(path).any(|t| t == "[") {
        return Err("array notation is not allowed".into());
    }
    field_schema(path, schema)
}

/// The schema of the field at a path of `.name` and `['name']`.
fn field_schema<'a>(path: &str, schema: &'a Value) -> Result<&'a Value, String> {
    let mut at = schema;
    let mut tokens = path::tokens(path);
    let end = || "unexpected end of JSON path".to_owned();
    while let Some(token) = tokens.next() {
        let name = match token {
            "." => tokens.next().ok_or_else(end)?.to_owned(),
            "[" => {
                let quoted = tokens.next().ok_or_else(end)?;
                let name = quoted.strip_prefix('\'').and_then(|q| q.strip_suffix('\'')).ok_or_else(|| format!("expected single quoted string but got {quoted}"))?;
                match tokens.next().ok_or_else(end)? {
                    "]" => name.replace("\\'", "'").replace("\\\\", "\\"),
                    other => return Err(format!("expected ] but got {other}")),
                }
            }
            other => return Err(format!("expected [ or . but got: {other}")),
        };
        let found = match at.get("properties") {
            Some(properties) => properties.get(&name),
            None => at.get("additionalProperties").filter(|a| a.is_object()),
        };
        at = found.ok_or_else(|| "does not refer to a valid field".to_owned())?;
    }
    Ok(at)
}

fn status(definition: &Value, errors: &mut Errors) {
    if let Some(names) = definition.pointer("/status/acceptedNames") {
        check_names(names, &Path::new("status").child("acceptedNames"), errors);
    }
}

fn stored_versions(definition: &Value, errors: &mut Errors) {
    let stored = texts(definition, "/status/storedVersions");
    let at = Path::new("status").child("storedVersions");
    if stored.is_empty() {
        return errors.push(FieldError::invalid(&at, Value::Null, "must have at least one stored version"));
    }
    // each counts for one version
    let mut left: Vec<(usize, &String)> = stored.iter().enumerate().collect();
    for version in items(definition, "/spec/versions") {
        let name = text(version, "/name");
        match left.iter().position(|(_, s)| *s == name) {
            Some(at) => drop(left.remove(at)),
            None if flag(version, "storage") => {
                errors.push(FieldError::invalid(&at, stored.clone(), format!("must have the storage version {name}")));
            }
            None => {}
        }
    }
    for (i, name) in left {
        let why = format!(
            "missing from spec.versions; {name} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {name} and removes {name} from status.storedVersions"
        );
        errors.push(FieldError::invalid(&at.index(i), name.as_str(), why));
    }
}

fn approval(new: &Value, old: Option<&Value>, errors: &mut Errors) {
    let Some((state, why)) = conditions::approval_state(new) else { return };
    if old.and_then(conditions::approval_state).is_some_and(|(before, _)| before == state) {
        return;
    }
    let at = Path::new("metadata").child("annotations").key("api-approved.kubernetes.io");
    let given = new.pointer("/metadata/annotations").and_then(|a| a.get("api-approved.kubernetes.io")).cloned().unwrap_or_default();
    match state {
        Approval::Invalid => errors.push(FieldError::invalid(&at, given, why)),
        Approval::Missing => errors.push(FieldError::required(&at, why)),
        Approval::Approved | Approval::Bypassed => {}
    }
}

fn preserve(definition: &Value, errors: &mut Errors) {
    if definition.get("spec").is_some_and(|s| flag(s, "preserveUnknownFields")) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(FieldError::invalid(&Path::new("spec").child("preserveUnknownFields"), true, why));
    }
}

/// The warning that a deprecated version of a definition comes with.
pub fn deprecation(definition: &Value, version: &Value) -> Option<String> {
    if !flag(version, "deprecated") {
        return None;
    }
    if let Some(own) = version.get("deprecationWarning").and_then(Value::as_str) {
        return Some(own.to_owned());
    }
    let (group, kind, name) = (text(definition, "/spec/group"), text(definition, "/spec/names/kind"), text(version, "/name"));
    let better = items(definition, "/spec/versions")
        .iter()
        .filter(|v| flag(v, "served") && !flag(v, "deprecated"))
        .map(|v| text(v, "/name"))
        .filter(|v| compare_versions(name, v).is_lt())
        .max_by(|a, b| compare_versions(a, b));
    let warning = format!("{group}/{name} {kind} is deprecated");
    Some(match better {
        Some(better) => format!("{warning}; use {group}/{better} {kind}"),
        None => warning,
    })
}

/// What is wrong with the defaults in a schema: they must be what the schema itself asks for.
fn defaults(schema: &Value, at: &Path, root: bool, in_meta: bool, options: &Options, errors: &mut Errors) {
    let embedded = flag(schema, "x-kubernetes-embedded-resource") || root;
    if let Some(default) = schema.get("default").filter(|d| !d.is_null() && !in_meta) {
        let compiled = Schema::new(schema);
        let at = at.child("default");
        let mut pruned = default.clone();
        super::prune(&mut pruned, &compiled, embedded);
        if options.pruned_defaults && pruned != *default {
            errors.push(FieldError::invalid(&at, default.clone(), "must not have unknown fields"));
        }
        if let Err(why) = Embedded::Refuse.settle(&mut default.clone(), &compiled) {
            errors.push(FieldError::invalid(&at, default.clone(), why));
        } else {
            errors.extend(super::validate_default(&at, default, &compiled));
        }
    }
    if let Some(inner) = schema.get("items").filter(|i| i.is_object()) {
        defaults(inner, &at.child("items"), false, in_meta && !embedded, options, errors);
    }
    for (name, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let meta = matches!(name.as_str(), "metadata" | "apiVersion" | "kind");
        let in_meta = if embedded { meta } else { in_meta };
        defaults(property, &at.child("properties").key(name), false, in_meta, options, errors);
    }
}

/// Paths of scale subresources, and of selectable fields.
pub fn simple<'a>(object: &'a Value, at: &str) -> Option<&'a Value> {
    path::get(object, at)
}

/// Keys of a map.
fn keys(value: Option<&Value>) -> impl Iterator<Item = (&String, &Value)> {
    value.and_then(Value::as_object).into_iter().flat_map(Map::iter)
}
