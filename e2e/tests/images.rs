//! Images from real registries and from archives, and what becomes of pods whose image is bad.

use std::fs;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use e2e::images::{ELSEWHERE, Image, busybox_image, nginx_image};
use e2e::registry::{Certificates, Registry, certificates};
use e2e::{Client, Env, Step, begin, curl, eventually, output, run_steps};
use serde_json::json;

const USER: (&str, &str) = ("puller", "open sesame");

fn main() {
    let env = begin(Env::on_port("images", 17443));
    // What an earlier run left, if it was interrupted.
    let _ = env.knarr(&["down", "--purge"]).output();
    // Shared by the steps, which run one after another; the registries end with it.
    let world = match World::new(&env) {
        Ok(world) => Rc::new(world),
        Err(error) => {
            println!("setting up the registries: {error:?}");
            std::process::exit(1);
        }
    };
    let mut steps: Vec<Step> = Vec::new();
    for (name, test) in STEPS {
        let world = world.clone();
        steps.push((name, Box::new(move || test(&world))));
    }
    // The last step lets go of the registries: run_steps never returns.
    steps.push(("down", Box::new(move || output(&mut world.env.knarr(&["down", "--purge"])).map(|_| drop(world)))));
    run_steps(steps, &["up"]);
}

struct World {
    env: Env,
    kubectl: Client,
    certificates: Certificates,
    plain: Registry,
    tls: Registry,
    private: Registry,
    busybox: Image,
}

impl World {
    fn new(env: &Env) -> Result<World> {
        let certificates = certificates(&env.home.join("certificates"))?;
        let registry = |name: &str, port, tls, user| Registry::start(&env.home.join(name), port, tls, user);
        Ok(World {
            kubectl: env.client("kubectl"),
            plain: registry("plain", 15101, None, None)?,
            tls: registry("tls", 15102, Some(&certificates), None)?,
            private: registry("private", 15103, Some(&certificates), Some(USER))?,
            busybox: busybox_image()?,
            certificates,
            env: env.clone(),
        })
    }

    fn image(&self, args: &[&str]) -> Result<String> {
        output(&mut self.env.knarr(&[&["image"], args].concat()))
    }

    /// What `knarr image …` says when it fails.
    fn image_fails(&self, args: &[&str]) -> Result<String> {
        let output = self.env.knarr(&[&["image"], args].concat()).output()?;
        ensure!(!output.status.success(), "image {args:?} succeeded");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn pod(&self, name: &str, image: &str, more: serde_json::Value) -> Result<()> {
        let mut spec = json!({
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": image, "imagePullPolicy": "Always", "command": ["sleep", "3600"]}],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            spec[key] = value.clone();
        }
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.kubectl.run_with(&["create", "-f", "-"], &pod.to_string()).map(|_| ())
    }

    fn ready(&self, name: &str) -> Result<()> {
        let waited = self.kubectl.run(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=20s"]);
        waited.map(|_| ()).with_context(|| self.describe(name).unwrap_or_default())
    }

    fn describe(&self, name: &str) -> Result<String> {
        self.kubectl.run(&["describe", "pod", name])
    }

    fn waiting(&self, name: &str) -> Result<(String, String)> {
        let pod = self.kubectl.json(&["get", "pod", name])?;
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        let text = |key: &str| waiting[key].as_str().map(str::to_string);
        Ok((text("reason").with_context(|| format!("it does not wait: {}", pod["status"]))?, text("message").unwrap_or_default()))
    }

    /// The pod waits for one of these reasons, and an event says all of `words`.
    fn told(&self, name: &str, reasons: &[&str], words: &[&str]) -> Result<()> {
        eventually(name, 15, || {
            let (reason, message) = self.waiting(name)?;
            ensure!(reasons.contains(&reason.as_str()), "{name} waits for {reason}: {message}");
            contains(&self.describe(name)?, words)
        })
    }
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

/// Both reasons of a pull that fails again and again; which one shows depends on the moment.
const FAILED: &[&str] = &["ErrImagePull", "ImagePullBackOff"];

type Test = fn(&World) -> Result<()>;

const STEPS: &[(&str, Test)] = &[
    ("images without a server: import, ls, rm", offline),
    ("knarr image pull: plain, TLS, credentials", pull),
    ("up", up),
    ("pods pull over plain HTTP, TLS, and TLS with credentials", registries),
    ("pull secrets of the service account", account_secrets),
    ("no credentials, wrong credentials", refused),
    ("nginx, with a whiteout", nginx),
    ("a pull by digest", by_digest),
    ("a corrupt layer", corrupt),
    ("a wrong digest", wrong_digest),
    ("another architecture", elsewhere),
    ("no such image, no such registry", missing),
    ("a malformed name, and never pull", malformed),
    ("reasons change to back-off", back_off),
    ("an image that appears later is found", later),
];

fn offline(w: &World) -> Result<()> {
    e2e::images::import_busybox(&w.env)?;
    contains(&w.image(&["ls"])?, &["e2e.local/busybox:1"])?;
    let archive = w.env.home.join("oci.tar.gz");
    let mut image = w.busybox.clone();
    image.name = "e2e.local/again:2".into();
    image.oci_archive(&archive)?;
    contains(&w.image(&["import", &archive.to_string_lossy()])?, &["imported e2e.local/"])?;
    contains(&w.image(&["ls"])?, &["e2e.local/busybox:1", "e2e.local/again:2"])?;
    contains(&w.image(&["rm", "e2e.local/busybox:1"])?, &["removed e2e.local/again:2, e2e.local/busybox:1"])?;
    ensure!(!w.image(&["ls"])?.contains("busybox"), "it is still listed");
    contains(&w.image_fails(&["rm", "e2e.local/busybox:1"])?, &["there is no image", "knarr image ls"])?;

    let bad = w.env.home.join("bad.tar");
    let path = bad.to_string_lossy().into_owned();
    fs::write(&bad, "this is not an archive")?;
    contains(&w.image_fails(&["import", &path])?, &["importing", "bad.tar"])?;
    contains(&w.image_fails(&["import", "/nowhere.tar"])?, &["cannot open /nowhere.tar"])?;
    w.busybox.built_for(ELSEWHERE).docker_archive(&bad)?;
    contains(&w.image_fails(&["import", &path])?, &["no match for platform", ELSEWHERE])?;
    w.busybox.docker_archive(&bad)?;
    let mut bytes = fs::read(&bad)?;
    let at = bytes.len() - 500_000;
    bytes[at] ^= 1;
    fs::write(&bad, bytes)?;
    contains(&w.image_fails(&["import", &path])?, &["sha256:"])?;
    ensure!(!w.image(&["ls"])?.contains("busybox"), "a damaged image was taken in");
    fs::write(&bad, &fs::read(&bad)?[..100_000])?;
    w.image_fails(&["import", &path]).map(|_| ())
}

fn pull(w: &World) -> Result<()> {
    for registry in [&w.plain, &w.tls, &w.private] {
        registry.push("team/busybox", "1", &w.busybox)?;
    }
    let (plain, tls, private) = (w.plain.name("team/busybox", "1"), w.tls.name("team/busybox", "1"), w.private.name("team/busybox", "1"));
    let ca = w.certificates.ca.to_string_lossy().into_owned();
    contains(&w.image(&["pull", &plain])?, &["pulled"])?;
    contains(&w.image_fails(&["pull", &tls])?, &["certificate"])?;
    contains(&w.image(&["pull", &tls, "--ca", &ca])?, &["pulled"])?;
    contains(&w.image_fails(&["pull", &private, "--ca", &ca])?, &["failed to authorize"])?;
    contains(&w.image_fails(&["pull", &private, "--ca", &ca, "--creds", "puller:wrong"])?, &["failed to authorize"])?;
    contains(&w.image(&["pull", &private, "--ca", &ca, "--creds", &format!("{}:{}", USER.0, USER.1)])?, &["pulled"])?;
    contains(&w.image(&["ls"])?, &[&plain, &tls, &private])?;
    contains(&w.image_fails(&["pull", "Not A Name"])?, &["Not A Name"])?;
    // They share one configuration, so this removes one image with all its names.
    w.image(&["rm", &plain]).map(|_| ())
}

fn up(w: &World) -> Result<()> {
    output(w.env.knarr(&["up"]).arg("--registry-ca").arg(&w.certificates.ca)).map(|_| ())
}

fn secret(w: &World, name: &str, password: &str) -> Result<()> {
    let args = [format!("--docker-server={}", w.private.address), format!("--docker-username={}", USER.0), format!("--docker-password={password}")];
    w.kubectl.run(&["create", "secret", "docker-registry", name, &args[0], &args[1], &args[2]]).map(|_| ())
}

fn registries(w: &World) -> Result<()> {
    secret(w, "good", USER.1)?;
    w.pod("plain", &w.plain.name("team/busybox", "1"), json!({}))?;
    w.pod("tls", &w.tls.name("team/busybox", "1"), json!({}))?;
    w.pod("private", &w.private.name("team/busybox", "1"), json!({"imagePullSecrets": [{"name": "good"}]}))?;
    for name in ["plain", "tls", "private"] {
        w.ready(name)?;
        contains(&w.describe(name)?, &["Pulling image", "Successfully pulled image"])?;
    }
    let id = w.kubectl.run(&["get", "pod", "plain", "-o", "jsonpath={.status.containerStatuses[0].imageID}"])?;
    ensure!(id.contains("sha256:"), "the image's id is {id:?}");
    contains(&w.kubectl.run(&["exec", "private", "--", "cat", "/etc/passwd"])?, &["www-data"])
}

fn account_secrets(w: &World) -> Result<()> {
    w.kubectl.run(&["create", "serviceaccount", "puller"])?;
    w.kubectl.run(&["patch", "serviceaccount", "puller", "-p", r#"{"imagePullSecrets":[{"name":"good"}]}"#])?;
    w.pod("by-account", &w.private.name("team/busybox", "1"), json!({"serviceAccountName": "puller"}))?;
    w.ready("by-account")
}

fn refused(w: &World) -> Result<()> {
    let image = w.private.name("team/busybox", "1");
    secret(w, "bad", "guess")?;
    w.pod("no-secret", &image, json!({}))?;
    w.pod("bad-secret", &image, json!({"imagePullSecrets": [{"name": "bad"}]}))?;
    w.pod("gone-secret", &image, json!({"imagePullSecrets": [{"name": "gone"}]}))?;
    for name in ["no-secret", "bad-secret", "gone-secret"] {
        w.told(name, FAILED, &["Failed to pull image", "failed to authorize", "Error: ErrImagePull"])?;
    }
    contains(&w.describe("gone-secret")?, &["FailedToRetrieveImagePullSecret", "gone"])
}

fn nginx(w: &World) -> Result<()> {
    w.tls.push("nginx", "1", &nginx_image(&w.env)?)?;
    let container = json!([{"name": "main", "image": w.tls.name("nginx", "1"), "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1}}]);
    w.pod("nginx", "", json!({"containers": container}))?;
    w.ready("nginx")?;
    let ip = w.kubectl.run(&["get", "pod", "nginx", "-o", "jsonpath={.status.podIP}"])?;
    contains(&curl(&[&format!("http://{ip}/")])?, &["Welcome to nginx"])?;
    contains(&w.kubectl.run(&["logs", "nginx"])?, &["GET / HTTP/1.1"])
}

fn by_digest(w: &World) -> Result<()> {
    let digest = w.plain.push("team/busybox", "1", &w.busybox)?;
    w.pod("digest", &format!("{}/team/busybox@{digest}", w.plain.address), json!({}))?;
    w.ready("digest")
}

/// The same image with one more layer, so that nothing of it is on the node yet.
fn other(w: &World, note: &str) -> Result<Image> {
    let mut layer = e2e::images::Tree::new();
    // Long enough, and of varied bytes, that the middle of the compressed layer is data.
    let text: String = (0..2000).map(|i: u32| format!("{note} {}\n", i.wrapping_mul(2_654_435_761))).collect();
    layer.file("note", 0o644, text.as_bytes())?;
    let mut image = w.busybox.clone();
    image.layers.push(layer.finish()?);
    Ok(image)
}

fn corrupt(w: &World) -> Result<()> {
    let image = other(w, "corrupt")?;
    w.plain.push("corrupt", "1", &image)?;
    let pushed = image.pushed()?;
    let layer = pushed.layers.last().context("no layer")?;
    w.plain.damage(layer)?;
    w.pod("corrupt", &w.plain.name("corrupt", "1"), json!({}))?;
    w.told("corrupt", FAILED, &["Failed to pull image", layer, "Error: ErrImagePull"])?;
    let (_, message) = w.waiting("corrupt")?;
    contains(&message, &["digest"])
}

fn wrong_digest(w: &World) -> Result<()> {
    // The registry has another manifest under that digest than the name promises.
    let digest = w.plain.push("swapped", "1", &other(w, "swapped")?)?;
    w.plain.damage(&digest)?;
    w.pod("swapped", &format!("{}/swapped@{digest}", w.plain.address), json!({}))?;
    w.told("swapped", FAILED, &["Failed to pull image", &digest, "Error: ErrImagePull"])?;
    // Nobody has that digest.
    let unknown = format!("{}/team/busybox@sha256:{}", w.plain.address, "0".repeat(64));
    w.pod("unknown-digest", &unknown, json!({}))?;
    w.told("unknown-digest", FAILED, &["Failed to pull image", &unknown, "not found", "Error: ErrImagePull"])?;
    // A layer is not the one that the configuration names.
    w.plain.put("mixed", "1", &other(w, "mixed")?.pushed_as(&other(w, "promised")?)?)?;
    w.pod("mixed", &w.plain.name("mixed", "1"), json!({}))?;
    w.told("mixed", FAILED, &["Failed to pull image", "sha256:", "Error: ErrImagePull"])
}

fn elsewhere(w: &World) -> Result<()> {
    w.plain.push("elsewhere", "1", &w.busybox.built_for(ELSEWHERE))?;
    w.pod("elsewhere", &w.plain.name("elsewhere", "1"), json!({}))?;
    w.told("elsewhere", FAILED, &["Failed to pull image", "no match for platform in manifest", ELSEWHERE, "Error: ErrImagePull"])
}

fn missing(w: &World) -> Result<()> {
    let image = w.plain.name("nothing", "7");
    w.pod("missing", &image, json!({}))?;
    w.pod("no-registry", "127.0.0.1:9/nothing:1", json!({}))?;
    w.told("missing", FAILED, &["Failed to pull image", &image, "not found", "Error: ErrImagePull"])?;
    w.told("no-registry", FAILED, &["Failed to pull image", "127.0.0.1:9", "Connection refused", "Error: ErrImagePull"])
}

fn malformed(w: &World) -> Result<()> {
    for (name, image) in [("upper", "127.0.0.1:15101/UPPER:1"), ("space", "busy box"), ("digits", "busybox@sha256:12")] {
        w.pod(name, image, json!({}))?;
        let quoted = format!("couldn't parse image name \"{image}\": invalid reference format");
        w.told(name, &["InvalidImageName"], &["InspectFailed", "Failed to apply default image tag", &quoted, "Error: InvalidImageName"])?;
    }
    w.pod("never", "", json!({"containers": [{"name": "main", "image": "e2e.local/none:1", "imagePullPolicy": "Never"}]}))?;
    w.told("never", &["ErrImageNeverPull"], &["ErrImageNeverPull", "is not present with pull policy of Never"])
}

fn back_off(w: &World) -> Result<()> {
    eventually("back-off", 15, || {
        let (reason, message) = w.waiting("missing")?;
        ensure!(reason == "ImagePullBackOff", "it waits for {reason}");
        contains(&message, &["Back-off pulling image \"127.0.0.1:15101/nothing:7\"", "ErrImagePull: "])?;
        contains(&w.describe("missing")?, &["BackOff", "Back-off pulling image", "Error: ImagePullBackOff"])
    })
}

fn later(w: &World) -> Result<()> {
    w.plain.push("nothing", "7", &w.busybox)?;
    w.ready("missing")
}
