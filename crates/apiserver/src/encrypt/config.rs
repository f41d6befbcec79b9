//! The EncryptionConfiguration file: which resources are encrypted, and with what.
use api::field::{FieldError, Path};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// A key and its name.
#[derive(Clone, PartialEq)]
pub struct EncryptionKey {
    pub name: String,
    pub secret: Vec<u8>,
}

/// Not the secret.
impl std::fmt::Debug for EncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("EncryptionKey").field(&self.name).finish()
    }
}

/// One way of writing values. Of several keys the first writes, all read.
#[derive(Clone, Debug, PartialEq)]
pub enum Provider {
    /// As they are.
    Identity,
    /// AES-GCM, 16 or 32 bytes.
    AesGcm(Vec<EncryptionKey>),
    /// AES-CBC with PKCS #7 padding, 16, 24 or 32 bytes.
    AesCbc(Vec<EncryptionKey>),
    /// XSalsa20 and Poly1305, 32 bytes.
    Secretbox(Vec<EncryptionKey>),
}

/// Some resources and what is done to them: the first provider writes, all read.
#[derive(Clone, Debug, PartialEq)]
pub struct Encrypted {
    /// Resources as `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*`.
    pub resources: Vec<String>,
    pub providers: Vec<Provider>,
}

/// What is encrypted: for a resource, the first part that names it counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EncryptionConfig(pub Vec<Encrypted>);

/// Why a file is no EncryptionConfiguration that can be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}")]
    Syntax(String),
    #[error("no kind {kind:?} is registered for version {version:?}: apiVersion apiserver.config.k8s.io/v1 and kind EncryptionConfiguration are expected")]
    Kind { kind: String, version: String },
    #[error("unknown field {0:?}")]
    Unknown(String),
    #[error("{}", api::field::aggregate(.0.iter().map(ToString::to_string)))]
    Invalid(Vec<FieldError>),
}

/// (plural, group), as `ParseGroupResource` cuts it.
fn parse(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

impl EncryptionConfig {
    /// One part.
    pub fn of(resources: &[&str], providers: Vec<Provider>) -> EncryptionConfig {
        EncryptionConfig(vec![Encrypted { resources: resources.iter().map(|r| r.to_string()).collect(), providers }])
    }

    /// The part that counts for a resource.
    pub(super) fn part_of(&self, group: &str, plural: &str) -> Option<usize> {
        let names = |name: &String| {
            let (p, g) = parse(name);
            (p == "*" || p == plural) && (g == "*" || g == group)
        };
        self.0.iter().position(|part| part.resources.iter().any(names))
    }

    /// Reads a file's text, YAML or JSON.
    pub fn from_text(text: &str) -> Result<EncryptionConfig, ConfigError> {
        let value: Value = serde_saphyr::from_str(text).map_err(|e| ConfigError::Syntax(e.to_string()))?;
        let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let (kind, version) = (word("kind"), word("apiVersion"));
        // The form of before 1.13 had another name.
        let known = (kind == "EncryptionConfiguration" && version == "apiserver.config.k8s.io/v1") || (kind == "EncryptionConfig" && version == "v1");
        if !known {
            return Err(ConfigError::Kind { kind, version });
        }
        let root = Path::new("resources");
        only(&value, "", &["kind", "apiVersion", "resources"])?;
        let mut errors = Vec::new();
        let entries = list(&value, "resources");
        if entries.is_empty() {
            errors.push(FieldError::required(&root, "at least one resources is required"));
        }
        let mut parts = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            let path = root.index(i);
            only(entry, &format!("{path}."), &["resources", "providers"])?;
            let names = list(entry, "resources").iter().map(|n| n.as_str().unwrap_or_default().to_string()).collect::<Vec<_>>();
            check_names(&names, &path.child("resources"), &mut errors);
            let at = path.child("providers");
            let providers = list(entry, "providers");
            if providers.is_empty() {
                errors.push(FieldError::required(&at, format!("at least one {at} is required")));
            }
            let mut ways = Vec::new();
            for (j, provider) in providers.iter().enumerate() {
                ways.extend(read_provider(provider, &at.index(j), &mut errors)?);
            }
            parts.push(Encrypted { resources: names, providers: ways });
        }
        if errors.is_empty() { Ok(EncryptionConfig(parts)) } else { Err(ConfigError::Invalid(errors)) }
    }
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn only(value: &Value, prefix: &str, known: &[&str]) -> Result<(), ConfigError> {
    let none = Map::new();
    match value.as_object().unwrap_or(&none).keys().find(|k| !known.contains(&k.as_str())) {
        Some(other) => Err(ConfigError::Unknown(format!("{prefix}{other}"))),
        None => Ok(()),
    }
}

fn check_names(names: &[String], path: &Path, errors: &mut Vec<FieldError>) {
    if names.is_empty() {
        errors.push(FieldError::required(path, format!("at least one {path} is required")));
    }
    let pairs = || names.iter().enumerate().flat_map(|(i, a)| names[i + 1..].iter().map(move |b| (parse(a), parse(b))));
    if pairs().any(|(a, b)| a == b) {
        errors.push(FieldError::invalid(path, names.to_vec(), "the same resource cannot be specified multiple times"));
    }
    let any = ("*", "*");
    let masks = |a: (&str, &str), b: (&str, &str)| a != b && (a == any || b == any || (a.1 == b.1 && (a.0 == "*" || b.0 == "*")));
    if pairs().any(|(a, b)| masks(a, b)) {
        let why = "using overlapping resources such as 'secrets' and '*.' in the same resource list is not allowed as they will be masked";
        errors.push(FieldError::invalid(path, names.to_vec(), why));
    }
    for (i, name) in names.iter().enumerate() {
        let (plural, group) = parse(name);
        let why = if name.chars().any(char::is_uppercase) {
            "resource name should not contain capital letters"
        } else if name == "*" {
            "use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources"
        } else if matches!(name.as_str(), "apiserveripinfo" | "serviceipallocations" | "servicenodeportallocations") {
            "resources which do not have REST API/s cannot be encrypted"
        } else if group == "events.k8s.io" {
            "'*.events.k8s.io' objects are stored using the 'events' API group in etcd. Use 'events' instead in the config file"
        } else if group == "extensions" {
            "'extensions' group has been removed and cannot be used for encryption"
        } else if group == "*" && plural != "*" {
            "encrypting the same resource across groups is not supported"
        } else {
            continue;
        };
        errors.push(FieldError::invalid(&path.index(i), name.as_str(), why));
    }
}

const PROVIDERS: [&str; 5] = ["kms", "aesgcm", "aescbc", "secretbox", "identity"];

fn read_provider(provider: &Value, path: &Path, errors: &mut Vec<FieldError>) -> Result<Option<Provider>, ConfigError> {
    only(provider, &format!("{path}."), &PROVIDERS)?;
    let none = Map::new();
    let mut named = provider.as_object().unwrap_or(&none).iter();
    let (Some((name, settings)), rest) = (named.next(), named.next()) else {
        errors.push(FieldError::invalid(path, "", "provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity"));
        return Ok(None);
    };
    if rest.is_some() {
        errors.push(FieldError::invalid(path, "", "more than one provider specified in a single element, should split into different list elements"));
        return Ok(None);
    }
    let path = path.child(name);
    let mut keys = |sizes: &[usize]| -> Result<Vec<EncryptionKey>, ConfigError> {
        only(settings, &format!("{path}."), &["keys"])?;
        let path = path.child("keys");
        let all = list(settings, "keys");
        if all.is_empty() {
            errors.push(FieldError::required(&path, "at least one keys is required"));
        }
        let mut found = Vec::new();
        for (i, key) in all.iter().enumerate() {
            only(key, &format!("{}.", path.index(i)), &["name", "secret"])?;
            found.extend(read_key(key, &path.index(i), sizes, errors));
        }
        Ok(found)
    };
    Ok(Some(match name.as_str() {
        "identity" => Provider::Identity,
        "aesgcm" => Provider::AesGcm(keys(&[16, 32])?),
        "aescbc" => Provider::AesCbc(keys(&[16, 24, 32])?),
        "secretbox" => Provider::Secretbox(keys(&[32])?),
        _ => {
            errors.push(FieldError::forbidden(&path, "key management services are not supported: name aesgcm, aescbc or secretbox"));
            return Ok(None);
        }
    }))
}

fn read_key(key: &Value, path: &Path, sizes: &[usize], errors: &mut Vec<FieldError>) -> Option<EncryptionKey> {
    let word = |name: &str| key.get(name).and_then(Value::as_str).unwrap_or_default();
    let (name, secret) = (word("name"), word("secret"));
    let before = errors.len();
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name is a mandatory field for a key"));
    }
    let at = path.child("secret");
    if secret.is_empty() {
        errors.push(FieldError::required(&at, "secret is a mandatory field for a key"));
        return None;
    }
    // Keys are never shown.
    let Ok(secret) = STANDARD.decode(secret) else {
        errors.push(FieldError::invalid(&at, "REDACTED", "secrets must be base64 encoded"));
        return None;
    };
    if !sizes.contains(&secret.len()) {
        let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
        let why = format!("secret is not of the expected length, got {}, expected one of [{}]", secret.len(), sizes.join(" "));
        errors.push(FieldError::invalid(&at, "REDACTED", why));
    }
    (errors.len() == before).then(|| EncryptionKey { name: name.into(), secret })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(resources: &str) -> String {
        format!("kind: EncryptionConfiguration\napiVersion: apiserver.config.k8s.io/v1\nresources:\n{resources}")
    }

    fn refusal(resources: &str) -> String {
        EncryptionConfig::from_text(&file(resources)).expect_err("it is refused").to_string()
    }

    const SECRET: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

    #[test]
    fn files_of_today_and_of_old_are_read() {
        let body = format!("- resources: [secrets]\n  providers:\n  - aescbc: {{keys: [{{name: key1, secret: {SECRET}}}]}}\n  - identity: {{}}\n");
        let wanted = EncryptionConfig::of(&["secrets"], vec![Provider::AesCbc(vec![EncryptionKey { name: "key1".into(), secret: vec![0; 32] }]), Provider::Identity]);
        assert_eq!(EncryptionConfig::from_text(&file(&body)).unwrap(), wanted);
        assert_eq!(EncryptionConfig::from_text(&format!("kind: EncryptionConfig\napiVersion: v1\nresources:\n{body}")).unwrap(), wanted);
        assert!(!format!("{wanted:?}").contains("secret:"), "keys are not shown");
        assert!(matches!(EncryptionConfig::from_text("kind: EncryptionConfig\napiVersion: v2"), Err(ConfigError::Kind { .. })));
        assert!(matches!(EncryptionConfig::from_text("a: ["), Err(ConfigError::Syntax(_))));
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        let key = |secret: &str| format!("- resources: [secrets]\n  providers: [{{aesgcm: {{keys: [{{name: k, secret: {secret}}}]}}}}]\n");
        assert_eq!(
            refusal(&key("AAAA")),
            "resources[0].providers[0].aesgcm.keys[0].secret: Invalid value: \"REDACTED\": secret is not of the expected length, got 3, expected one of [16 32]"
        );
        assert!(refusal(&key("x")).ends_with("secrets must be base64 encoded"));
        assert_eq!(refusal("  []"), "resources: Required value: at least one resources is required");
        let named = |names: &str| refusal(&format!("- resources: {names}\n  providers: [{{identity: {{}}}}]\n"));
        assert!(named("[\"*\"]").contains("use '*.' to encrypt all the resources from core API group"));
        assert!(named("[secrets, \"*.\"]").contains("overlapping resources"));
        assert!(named("[secrets, secrets]").contains("the same resource cannot be specified multiple times"));
        assert!(named("[a.events.k8s.io]").contains("Use 'events' instead"));
        assert!(named("[\"pods.*\"]").contains("across groups"));
        assert!(named("[]").contains("resources[0].resources: Required value: at least one resources[0].resources is required"));
        let given = |providers: &str| refusal(&format!("- resources: [secrets]\n  providers: {providers}\n"));
        assert!(given("[{}]").contains("does not contain any of the expected providers"));
        assert!(given("[{identity: {}, kms: {}}]").contains("more than one provider"));
        assert!(given("[{kms: {name: x}}]").contains("not supported"));
        assert_eq!(given("[{rot13: {}}]"), "unknown field \"resources[0].providers[0].rot13\"");
        assert!(given("[]").contains("resources[0].providers: Required value"));
    }
}
