//! Images for containers: pull policy, credentials, back-off, and the events about them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use cri::v1::{AuthConfig, Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest};
use k8s_openapi::api::core::v1::{Container, Pod, Secret};
use parking_lot::Mutex;
use reconcile::{EventType, Recorder, Reference};

use crate::backoff::Backoff;
use crate::pod::{go_duration, go_quote, uid};

/// Why a container has no image: reason and message of its waiting state.
pub type Refusal = (String, String);

/// Gets images.
pub struct Images {
    service: Arc<dyn cri::ImageService>,
    recorder: Recorder,
    backoff: Mutex<Backoff>,
    last_error: Mutex<HashMap<String, String>>,
}

/// `Always` for the tag `latest` or none, else `IfNotPresent`, unless the pod says.
fn policy(container: &Container) -> &str {
    let image = container.image.as_deref().unwrap_or_default();
    container.image_pull_policy.as_deref().unwrap_or_else(|| if parse(image).is_ok_and(|n| n.tag == "latest") { "Always" } else { "IfNotPresent" })
}

/// An image's name, as far as the kubelet has to understand it.
#[derive(Debug, PartialEq, Eq)]
pub struct Name {
    /// `docker.io` when none is given.
    pub registry: String,
    /// Without the registry; `library/` is added where Docker does.
    pub path: String,
    /// Empty when there is a digest.
    pub tag: String,
    pub digest: String,
}

/// Parses an image's name.
pub fn parse(image: &str) -> Result<Name, String> {
    let bad = || Err(format!("couldn't parse image name {}: invalid reference format", go_quote(image)));
    let (rest, digest) = image.split_once('@').unwrap_or((image, ""));
    if image.contains('@') && !digest.split_once(':').is_some_and(|(kind, hex)| !kind.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())) {
        return bad();
    }
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, tag),
        _ => (rest, ""),
    };
    if rest.ends_with(':') || tag.len() > 128 || !tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return bad();
    }
    let (registry, path) = match path.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) => (first, rest.to_string()),
        _ if path.contains('/') => ("docker.io", path.to_string()),
        _ => ("docker.io", format!("library/{path}")),
    };
    let component = |c: &str| {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        edge(c.bytes().next()) && edge(c.bytes().last()) && c.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
    };
    let host = |h: &str| !h.is_empty() && h.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:[]_".contains(&b));
    if !host(registry) || path.len() > 255 || !path.split('/').all(component) {
        return bad();
    }
    let tag = if tag.is_empty() && digest.is_empty() { "latest" } else { tag };
    Ok(Name { registry: registry.into(), path, tag: tag.into(), digest: digest.into() })
}

/// The name with `:latest` when it has neither tag nor digest.
fn with_tag(image: &str, name: &Name) -> String {
    let bare = name.digest.is_empty() && !image.ends_with(&format!(":{}", name.tag));
    if bare { format!("{image}:latest") } else { image.to_string() }
}

impl Images {
    pub fn new(service: Arc<dyn cri::ImageService>, recorder: Recorder) -> Images {
        Images { service, recorder, backoff: Mutex::new(Backoff::default()), last_error: Mutex::default() }
    }

    /// Sees that the container's image is there; answers it. `secrets` are the pod's pull secrets.
    pub async fn ensure(
        &self,
        pod: &Pod,
        container: &Container,
        about: &Reference,
        secrets: impl AsyncFnOnce() -> Vec<Secret>,
        sandbox: &PodSandboxConfig,
    ) -> Result<Image, Refusal> {
        let wanted = container.image.clone().unwrap_or_default();
        let warn = |reason: &str, message: &str| self.recorder.event(about, EventType::Warning, reason, message);
        let name = match parse(&wanted) {
            Ok(name) => name,
            Err(error) => {
                let message = format!("Failed to apply default image tag {}: {error}", go_quote(&wanted));
                warn("InspectFailed", &message);
                return Err(("InvalidImageName".into(), message));
            }
        };
        let full = with_tag(&wanted, &name);
        let policy = policy(container);
        let here = match self.look(&full).await {
            Ok(image) => image,
            Err(error) => {
                let message = format!("Failed to inspect image {}: {error}", go_quote(&full));
                warn("InspectFailed", &message);
                return Err(("ImageInspectError".into(), message));
            }
        };
        match here {
            Some(image) if policy != "Always" => {
                let message = format!("Container image {} already present on machine", go_quote(&wanted));
                self.recorder.event(about, EventType::Normal, "Pulled", message);
                return Ok(image);
            }
            // Made by the node itself: there is no registry to ask.
            Some(image) if image.pinned && image.repo_digests.is_empty() => {
                let message = format!("Container image {} already present on machine", go_quote(&wanted));
                self.recorder.event(about, EventType::Normal, "Pulled", message);
                return Ok(image);
            }
            None if policy == "Never" => {
                let message = format!("Container image {} is not present with pull policy of Never", go_quote(&wanted));
                warn("ErrImageNeverPull", &message);
                return Err(("ErrImageNeverPull".into(), message));
            }
            _ => {}
        }
        let key = format!("{}_{full}", uid(pod));
        if self.backoff.lock().waits(&key, Instant::now()).is_some() {
            let mut message = format!("Back-off pulling image {}", go_quote(&wanted));
            self.recorder.event(about, EventType::Normal, "BackOff", message.clone());
            if let Some(before) = self.last_error.lock().get(&key) {
                message = format!("{message}: {before}");
            }
            return Err(("ImagePullBackOff".into(), message));
        }
        self.recorder.event(about, EventType::Normal, "Pulling", format!("Pulling image {}", go_quote(&wanted)));
        let start = Instant::now();
        let credentials = credentials(&secrets().await, &name);
        let attempts: Vec<Option<AuthConfig>> = if credentials.is_empty() { vec![None] } else { credentials.into_iter().map(Some).collect() };
        let mut failure = String::new();
        for auth in attempts {
            let spec = ImageSpec { image: full.clone(), user_specified_image: wanted.clone(), ..Default::default() };
            let request = PullImageRequest { image: Some(spec), auth, sandbox_config: Some(sandbox.clone()) };
            match self.service.pull_image(request).await {
                Ok(answer) => {
                    let image = match self.look(&answer.image_ref).await {
                        Ok(Some(image)) => image,
                        _ => Image { id: answer.image_ref, ..Default::default() },
                    };
                    let took = go_duration(Duration::from_millis(start.elapsed().as_millis() as u64));
                    let message = format!(
                        "Successfully pulled image {} in {took} ({took} including waiting). Image size: {} bytes.",
                        go_quote(&wanted),
                        image.size
                    );
                    self.recorder.event(about, EventType::Normal, "Pulled", message);
                    self.backoff.lock().forget(&key);
                    self.last_error.lock().remove(&key);
                    return Ok(image);
                }
                Err(error) => failure = error.to_string(),
            }
        }
        warn("Failed", &format!("Failed to pull image {}: {failure}", go_quote(&wanted)));
        self.backoff.lock().failed(&key, Instant::now());
        self.last_error.lock().insert(key, format!("ErrImagePull: {failure}"));
        Err(("ErrImagePull".into(), failure))
    }

    /// When a pod's next pull may be tried.
    pub fn next_try(&self, pod: &Pod, now: Instant) -> Option<Duration> {
        let prefix = format!("{}_", uid(pod));
        self.backoff.lock().next_with(&prefix, now)
    }

    /// The pod is gone.
    pub fn forget(&self, pod_uid: &str) {
        let prefix = format!("{pod_uid}_");
        self.backoff.lock().forget_prefix(&prefix);
        self.last_error.lock().retain(|key, _| !key.starts_with(&prefix));
    }

    async fn look(&self, image: &str) -> Result<Option<Image>, cri::Error> {
        let spec = ImageSpec { image: image.to_string(), ..Default::default() };
        let request = ImageStatusRequest { image: Some(spec), verbose: false };
        Ok(self.service.image_status(request).await?.image)
    }
}

/// The credentials in pull secrets that fit an image: the more specific ones first.
pub fn credentials(secrets: &[Secret], name: &Name) -> Vec<AuthConfig> {
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for secret in secrets {
        let data = secret.data.clone().unwrap_or_default();
        let auths: BTreeMap<String, serde_json::Value> = if let Some(text) = data.get(".dockerconfigjson") {
            let config: serde_json::Value = serde_json::from_slice(&text.0).unwrap_or_default();
            serde_json::from_value(config["auths"].clone()).unwrap_or_default()
        } else if let Some(text) = data.get(".dockercfg") {
            serde_json::from_slice(&text.0).unwrap_or_default()
        } else {
            continue;
        };
        for (server, entry) in auths {
            let Some(specific) = fits(&server, name) else { continue };
            let text = |key: &str| entry[key].as_str().unwrap_or_default().to_string();
            let (mut username, mut password) = (text("username"), text("password"));
            if let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(text("auth"))
                && let Ok(decoded) = String::from_utf8(decoded)
                && let Some((user, word)) = decoded.split_once(':')
            {
                (username, password) = (user.to_string(), word.to_string());
            }
            let auth = AuthConfig { username, password, identity_token: text("identitytoken"), registry_token: text("registrytoken"), server_address: server, ..Default::default() };
            found.push((specific, auth));
        }
    }
    found.sort_by_key(|(specific, _)| std::cmp::Reverse(*specific));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// Whether a registry entry is for an image; how specific it is.
fn fits(server: &str, name: &Name) -> Option<usize> {
    let server = server.trim_start_matches("https://").trim_start_matches("http://");
    let server = server.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches("/v2");
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let docker = |h: &str| matches!(h, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let host_fits = if docker(host) {
        docker(&name.registry)
    } else {
        let (a, b): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), name.registry.split('.').collect());
        a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| *a == "*" || a == b)
    };
    let path_fits = path.is_empty() || name.path == path || name.path.starts_with(&format!("{path}/")) || name.path.starts_with(path);
    (host_fits && path_fits).then_some(server.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::pod;

    #[test]
    fn names() {
        let check = |image: &str, expect: &str| {
            let text = parse(image).map_or_else(|e| e, |n| format!("{} {} {}{}", n.registry, n.path, n.tag, if n.digest.is_empty() { "" } else { "@" }));
            assert_eq!(text, expect, "{image}");
        };
        check("nginx", "docker.io library/nginx latest");
        check("localhost:5000/a/b:1", "localhost:5000 a/b 1");
        check("127.0.0.1:5000/a", "127.0.0.1:5000 a latest");
        check("me/x:2", "docker.io me/x 2");
        check(&format!("a.b/x@sha256:{}", "0".repeat(64)), "a.b x @");
        for bad in ["", "A", "x:", "x y", "a//b", "x@sha256:zz", "-x"] {
            check(bad, &format!("couldn't parse image name \"{bad}\": invalid reference format"));
        }
    }

    #[test]
    fn credentials_are_chosen_by_registry() {
        let secret = |json: &str| -> Secret {
            serde_json::from_value(serde_json::json!({"data": {".dockerconfigjson": base64::engine::general_purpose::STANDARD.encode(json)}})).unwrap()
        };
        let auth = base64::engine::general_purpose::STANDARD.encode("u:p:w");
        let all = [secret(&format!(r#"{{"auths": {{"other": {{"username": "no"}}, "localhost:5000": {{"auth": "{auth}"}}, "localhost:5000/a": {{"username": "x", "password": "y"}}}}}}"#))];
        let found = credentials(&all, &parse("localhost:5000/a/b").unwrap());
        let text: Vec<String> = found.iter().map(|a| format!("{}:{}", a.username, a.password)).collect();
        assert_eq!(text, ["x:y", "u:p:w"]);
        assert!(credentials(&all, &parse("nginx").unwrap()).is_empty());
    }

    #[tokio::test]
    async fn pulls_back_off() {
        let fake = Arc::new(cri::Fake::new());
        let images = Images::new(fake.clone(), Recorder::none());
        let pod = pod(serde_json::json!({"containers": [{"name": "a", "image": "x:1"}, {"name": "b", "image": "y:1", "imagePullPolicy": "Never"}, {"name": "c", "image": "BAD"}]}));
        let spec = &pod.spec.as_ref().unwrap().containers;
        let about = Reference::default();
        let get = async |i: usize| images.ensure(&pod, &spec[i], &about, async || Vec::new(), &PodSandboxConfig::default()).await;
        fake.fail("pull_image", cri::Error::unknown("no route"));
        assert_eq!(get(0).await.unwrap_err(), ("ErrImagePull".into(), "rpc error: code = Unknown desc = no route".into()));
        let (reason, message) = get(0).await.unwrap_err();
        assert_eq!(reason, "ImagePullBackOff");
        assert_eq!(message, "Back-off pulling image \"x:1\": ErrImagePull: rpc error: code = Unknown desc = no route");
        assert!(images.next_try(&pod, Instant::now()).is_some());
        assert_eq!(get(1).await.unwrap_err().0, "ErrImageNeverPull");
        assert_eq!(get(2).await.unwrap_err().0, "InvalidImageName");
        images.forget("u");
        assert!(get(0).await.is_ok());
        assert!(get(0).await.is_ok());
        assert_eq!(fake.calls().iter().filter(|c| **c == "pull_image").count(), 2);
    }
}
