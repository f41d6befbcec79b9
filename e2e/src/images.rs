//! Ordinary images of several layers, made from Debian's packages: busybox and nginx. As archives in
//! both forms that `knarr image import` takes, and as blobs for a registry.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Env, debian, output};

/// The architecture of this machine as images name it.
pub const HERE: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
/// One that this machine is not.
pub const ELSEWHERE: &str = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n";

/// An image as it is built: layers, lowest first, and what its configuration says.
#[derive(Clone)]
pub struct Image {
    pub name: String,
    pub architecture: String,
    /// Uncompressed tar archives.
    pub layers: Vec<Vec<u8>>,
    /// The part `config` of the configuration: `Cmd`, `Env` and so on.
    pub config: Value,
}

/// What a registry serves of an image.
pub struct Pushed {
    pub manifest: Vec<u8>,
    /// By digest: configuration and compressed layers.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// The digests of the layers, lowest first.
    pub layers: Vec<String>,
}

/// The digest of bytes as registries write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl Image {
    /// The same image for another architecture.
    pub fn built_for(&self, architecture: &str) -> Image {
        Image { architecture: architecture.into(), ..self.clone() }
    }

    fn configuration(&self) -> Result<Vec<u8>> {
        Ok(serde_json::to_vec(&json!({
            "architecture": self.architecture, "os": "linux", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.layers.iter().map(|l| digest(l)).collect::<Vec<_>>()},
            "history": self.layers.iter().map(|_| json!({"created_by": "e2e"})).collect::<Vec<_>>(),
        }))?)
    }

    /// As a registry has it, with layers compressed by gzip.
    pub fn pushed(&self) -> Result<Pushed> {
        self.pushed_as(self)
    }

    /// The same with the configuration of another image, which names other layers.
    pub fn pushed_as(&self, other: &Image) -> Result<Pushed> {
        let configuration = other.configuration()?;
        let mut blobs = BTreeMap::new();
        let mut layers = Vec::new();
        let mut described = Vec::new();
        for layer in &self.layers {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(layer)?;
            let bytes = gzip.finish()?;
            described.push(json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&bytes), "size": bytes.len()}));
            layers.push(digest(&bytes));
            blobs.insert(digest(&bytes), bytes);
        }
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&configuration), "size": configuration.len()},
            "layers": described,
        }))?;
        blobs.insert(digest(&configuration), configuration);
        Ok(Pushed { manifest, blobs, layers })
    }

    /// Writes what `docker save` would.
    pub fn docker_archive(&self, path: &Path) -> Result<()> {
        let configuration = self.configuration()?;
        let name = format!("{}.json", digest(&configuration).trim_start_matches("sha256:"));
        let layers: Vec<String> = self.layers.iter().map(|l| format!("{}/layer.tar", digest(l).trim_start_matches("sha256:"))).collect();
        let mut archive = Tree::new();
        archive.file("manifest.json", 0o644, &serde_json::to_vec(&json!([{"Config": name, "RepoTags": [self.name], "Layers": layers}]))?)?;
        archive.file(&name, 0o644, &configuration)?;
        for (name, layer) in layers.iter().zip(&self.layers) {
            archive.file(name, 0o644, layer)?;
        }
        write(path, &archive.finish()?)
    }

    /// Writes an OCI layout, compressed by gzip, named by the annotation that containerd writes.
    pub fn oci_archive(&self, path: &Path) -> Result<()> {
        let pushed = self.pushed()?;
        let mut archive = Tree::new();
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest(&pushed.manifest), "size": pushed.manifest.len(),
            "platform": {"os": "linux", "architecture": self.architecture},
            "annotations": {"io.containerd.image.name": self.name},
        }]});
        archive.file("index.json", 0o644, &serde_json::to_vec(&index)?)?;
        let manifest = (digest(&pushed.manifest), pushed.manifest.clone());
        for (digest, bytes) in pushed.blobs.iter().chain([(&manifest.0, &manifest.1)]) {
            archive.file(&digest.replace("sha256:", "blobs/sha256/"), 0o644, bytes)?;
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&archive.finish()?)?;
        write(path, &gzip.finish()?)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A tar archive in the making; everything in it belongs to root.
pub struct Tree(tar::Builder<Vec<u8>>);

impl Tree {
    #[allow(clippy::new_without_default)]
    pub fn new() -> Tree {
        Tree(tar::Builder::new(Vec::new()))
    }

    fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(size);
        header
    }

    /// A directory; its path ends with a slash, as in every image.
    pub fn dir(&mut self, path: &str, mode: u32) -> Result<()> {
        Ok(self.0.append_data(&mut Self::header(tar::EntryType::Directory, mode, 0), format!("{}/", path.trim_end_matches('/')), std::io::empty())?)
    }

    pub fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> Result<()> {
        Ok(self.0.append_data(&mut Self::header(tar::EntryType::Regular, mode, bytes.len() as u64), path, bytes)?)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<()> {
        Ok(self.0.append_link(&mut Self::header(tar::EntryType::Symlink, 0o777, 0), path, target)?)
    }

    /// Takes away what a lower layer has.
    pub fn whiteout(&mut self, path: &str) -> Result<()> {
        let (dir, name) = path.rsplit_once('/').context("a path with a directory")?;
        self.file(&format!("{dir}/.wh.{name}"), 0o644, b"")
    }

    pub fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

/// The layer that every image here begins with.
fn base() -> Result<Vec<u8>> {
    let mut tree = Tree::new();
    for dir in ["bin", "dev", "etc", "home", "lib", "lib64", "proc", "run", "sys", "usr", "usr/bin", "usr/sbin", "var", "var/log", "var/tmp", "var/www"] {
        tree.dir(dir, if dir == "var/tmp" { 0o1777 } else { 0o755 })?;
    }
    tree.dir("root", 0o700)?;
    tree.dir("tmp", 0o1777)?;
    tree.file("etc/passwd", 0o644, PASSWD.as_bytes())?;
    tree.file("etc/group", 0o644, GROUP.as_bytes())?;
    tree.file("etc/nsswitch.conf", 0o644, b"hosts: files dns\n")?;
    tree.finish()
}

/// `e2e.local/busybox:1`: two layers, from Debian's busybox-static.
pub fn busybox_image() -> Result<Image> {
    let program = "/bin/busybox";
    let bytes = fs::read(program).with_context(|| format!("{program} (package busybox-static)"))?;
    let applets = output(Command::new(program).arg("--list"))?;
    let mut tree = Tree::new();
    tree.file("bin/busybox", 0o755, &bytes)?;
    for applet in applets.lines().filter(|a| *a != "busybox") {
        tree.symlink(&format!("bin/{applet}"), "/bin/busybox")?;
        tree.symlink(&format!("usr/bin/{applet}"), "../../bin/busybox")?;
    }
    ensure!(applets.lines().any(|a| a == "nslookup"), "busybox has no nslookup");
    Ok(Image {
        name: "e2e.local/busybox:1".into(),
        architecture: HERE.into(),
        layers: vec![base()?, tree.finish()?],
        config: json!({"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}),
    })
}

/// The archive of [`busybox_image`], in the form of `docker save`.
pub fn busybox(env: &Env) -> Result<PathBuf> {
    let path = env.home.join("busybox.tar");
    busybox_image()?.docker_archive(&path)?;
    Ok(path)
}

/// Imports it into the cluster's node; the server may run or not.
pub fn import_busybox(env: &Env) -> Result<()> {
    let path = busybox(env)?;
    let text = output(&mut env.knarr(&["image", "import", &path.to_string_lossy()]))?;
    ensure!(text.contains("imported e2e.local/busybox:1"), "the import said: {text}");
    Ok(())
}

/// `e2e.local/nginx:1`: four layers from Debian's packages. The third holds a site that needs IPv6 and
/// the port of the fourth's; the fourth takes it away.
pub fn nginx_image(env: &Env) -> Result<Image> {
    let root = debian::nginx(&env.tools)?;
    let program = root.join("usr/sbin/nginx");
    let mut libraries = Tree::new();
    for library in libraries_of(&program, &root)? {
        let inside = library.strip_prefix(&root).unwrap_or(&library);
        let inside = inside.to_string_lossy().trim_start_matches('/').to_string();
        libraries.file(&inside, 0o755, &fs::read(&library).with_context(|| library.display().to_string())?)?;
    }
    let mut server = Tree::new();
    for dir in ["etc/nginx", "etc/nginx/conf.d", "etc/nginx/sites-enabled", "var/lib/nginx", "var/log/nginx", "usr/share/nginx", "usr/share/nginx/html"] {
        server.dir(dir, 0o755)?;
    }
    server.file("usr/sbin/nginx", 0o755, &fs::read(&program)?)?;
    for file in ["etc/nginx/nginx.conf", "etc/nginx/mime.types", "usr/share/nginx/html/index.html"] {
        server.file(file, 0o644, &fs::read(root.join(file)).with_context(|| file.to_string())?)?;
    }
    server.file("etc/nginx/sites-enabled/default", 0o644, &fs::read(root.join("etc/nginx/sites-available/default"))?)?;
    let mut site = Tree::new();
    site.whiteout("etc/nginx/sites-enabled/default")?;
    let text = "access_log /dev/stdout;\nserver { listen 80 default_server; root /usr/share/nginx/html; }\n";
    site.file("etc/nginx/conf.d/site.conf", 0o644, text.as_bytes())?;
    Ok(Image {
        name: "e2e.local/nginx:1".into(),
        architecture: HERE.into(),
        layers: vec![base()?, libraries.finish()?, server.finish()?, site.finish()?],
        config: json!({
            "Entrypoint": ["/usr/sbin/nginx"], "Cmd": ["-g", "daemon off; error_log /dev/stderr;"],
            "ExposedPorts": {"80/tcp": {}}, "StopSignal": "SIGQUIT",
            "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
        }),
    })
}

/// The shared libraries that a program needs, and its loader.
fn libraries_of(program: &Path, root: &Path) -> Result<Vec<PathBuf>> {
    let text = output(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", debian::libraries(root)))?;
    ensure!(!text.contains("not found"), "{}: {text}", program.display());
    // "name => /path (address)", or for the loader "/path (address)".
    let libraries: Vec<PathBuf> = text.split_whitespace().filter(|w| w.starts_with('/')).map(PathBuf::from).collect();
    ensure!(libraries.len() > 2, "ldd said: {text}");
    Ok(libraries)
}
