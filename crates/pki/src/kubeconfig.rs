//! kubeconfig files: writing one, merging a context into an existing one, taking it out again.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// How a kubeconfig's user proves who it is.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A client certificate and its key, PEM, embedded.
    Certificate {
        /// The certificate.
        cert_pem: String,
        /// The key.
        key_pem: String,
    },
    /// A client certificate and its key, by file name (a kubelet whose certificate rotates).
    CertificateFiles {
        /// Path of the certificate.
        cert: String,
        /// Path of the key.
        key: String,
    },
    /// A bearer token.
    Token(String),
}

/// One cluster, one user and the context that joins them.
#[derive(Debug, Clone)]
pub struct Kubeconfig {
    /// Name of the context.
    pub context: String,
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the user.
    pub user: String,
    /// The API server: `https://10.0.0.1:6443`.
    pub server: String,
    /// The cluster's CA certificate (PEM).
    pub ca_pem: String,
    /// The user's credentials.
    pub credentials: Credentials,
}

impl Kubeconfig {
    fn entries(&self) -> [(&'static str, Value); 3] {
        let b64 = |s: &str| STANDARD.encode(s);
        let user = match &self.credentials {
            Credentials::Certificate { cert_pem, key_pem } => {
                json!({"client-certificate-data": b64(cert_pem), "client-key-data": b64(key_pem)})
            }
            Credentials::CertificateFiles { cert, key } => json!({"client-certificate": cert, "client-key": key}),
            Credentials::Token(token) => json!({"token": token}),
        };
        [
            ("clusters", json!({"name": self.cluster, "cluster": {"certificate-authority-data": b64(&self.ca_pem), "server": self.server}})),
            ("contexts", json!({"name": self.context, "context": {"cluster": self.cluster, "user": self.user}})),
            ("users", json!({"name": self.user, "user": user})),
        ]
    }
}

/// A kubeconfig file with just this entry, which is the current context.
pub fn kubeconfig(entry: &Kubeconfig) -> Result<String> {
    merge_kubeconfig("", entry, true)
}

/// Puts the entry into an existing kubeconfig (`existing` may be empty). Entries of the same
/// names are replaced, all others and unknown fields stay. `make_current` says whether the
/// current context changes; it is set anyway when there was none.
pub fn merge_kubeconfig(existing: &str, entry: &Kubeconfig, make_current: bool) -> Result<String> {
    let mut root = parse(existing)?;
    root.entry("apiVersion").or_insert("v1".into());
    root.entry("kind").or_insert("Config".into());
    root.entry("preferences").or_insert(json!({}));
    for (list, item) in entry.entries() {
        let items = list_of(&mut root, list)?;
        match items.iter_mut().find(|i| i["name"] == item["name"]) {
            // A namespace the user has chosen for the context stays.
            Some(old) if list == "contexts" => {
                let namespace = old["context"]["namespace"].clone();
                *old = item;
                if !namespace.is_null() {
                    old["context"]["namespace"] = namespace;
                }
            }
            Some(old) => *old = item,
            None => items.push(item),
        }
    }
    let none = root.get("current-context").and_then(Value::as_str).unwrap_or("").is_empty();
    if make_current || none {
        root.insert("current-context".into(), entry.context.clone().into());
    }
    write(root)
}

/// Takes the context out again, with its cluster and user unless another context uses them.
/// `None` if there was no such context.
pub fn remove_from_kubeconfig(existing: &str, context: &str) -> Result<Option<String>> {
    let mut root = parse(existing)?;
    let contexts = list_of(&mut root, "contexts")?;
    let Some(at) = contexts.iter().position(|c| c["name"] == context) else { return Ok(None) };
    let gone = contexts.remove(at);
    let left = contexts.clone();
    for (list, key) in [("clusters", "cluster"), ("users", "user")] {
        if !left.iter().any(|c| c["context"][key] == gone["context"][key]) {
            list_of(&mut root, list)?.retain(|e| e["name"] != gone["context"][key]);
        }
    }
    if root.get("current-context").is_some_and(|c| c == context) {
        let next = left.first().map_or(Value::from(""), |c| c["name"].clone());
        root.insert("current-context".into(), next);
    }
    write(root).map(Some)
}

fn parse(text: &str) -> Result<Map<String, Value>> {
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_saphyr::from_str::<Value>(text).map_err(|e| Error::Kubeconfig(e.to_string()))? {
        Value::Object(root) => Ok(root),
        Value::Null => Ok(Map::new()),
        _ => Err(Error::Kubeconfig("not a mapping".into())),
    }
}

fn list_of<'a>(root: &'a mut Map<String, Value>, key: &str) -> Result<&'a mut Vec<Value>> {
    let list = root.entry(key).or_insert_with(|| json!([]));
    if list.is_null() {
        *list = json!([]);
    }
    list.as_array_mut().ok_or_else(|| Error::Kubeconfig(format!("{key} is not a list")))
}

fn write(root: Map<String, Value>) -> Result<String> {
    serde_saphyr::to_string(&Value::Object(root)).map_err(|e| Error::Kubeconfig(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(server: &str) -> Kubeconfig {
        Kubeconfig {
            context: "knarr".into(),
            cluster: "knarr".into(),
            user: "knarr-admin".into(),
            server: server.into(),
            ca_pem: "CA".into(),
            credentials: Credentials::Token("t: \"x\"".into()),
        }
    }

    #[test]
    fn merge_keeps_the_rest() {
        let existing = "apiVersion: v1\nkind: Config\ncurrent-context: work\nclusters:\n- name: work\n  cluster:\n    server: https://w:6443\n    proxy-url: http://p\ncontexts:\n- name: work\n  context: {cluster: work, user: me, namespace: team}\nusers:\n- name: me\n  user:\n    exec: {command: login, args: ['a', '1']}\n";
        let once = merge_kubeconfig(existing, &entry("https://a"), false).unwrap();
        let twice = merge_kubeconfig(&once, &entry("https://b"), true).unwrap();
        let v: Value = serde_saphyr::from_str(&twice).unwrap();
        assert_eq!(v["clusters"].as_array().unwrap().len(), 2);
        assert_eq!(v["clusters"][0]["cluster"]["proxy-url"], "http://p");
        assert_eq!(v["users"][0]["user"]["exec"]["args"], json!(["a", "1"]));
        assert_eq!(v["users"][1]["user"]["token"], "t: \"x\"");
        assert_eq!(v["clusters"][1]["cluster"]["server"], "https://b");
        assert_eq!(v["current-context"], "knarr");
        let gone = remove_from_kubeconfig(&twice, "knarr").unwrap().unwrap();
        let v: Value = serde_saphyr::from_str(&gone).unwrap();
        assert_eq!(v["clusters"].as_array().unwrap().len(), 1);
        assert_eq!(v["users"].as_array().unwrap().len(), 1);
        assert_eq!(v["current-context"], "work");
        assert!(remove_from_kubeconfig(&gone, "knarr").unwrap().is_none());
        assert!(merge_kubeconfig("- 1", &entry("x"), false).is_err());
    }
}
