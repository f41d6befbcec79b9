//! Debian's docker-registry on loopback, and a push to it by plain HTTP requests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::images::{Image, Pushed, digest};
use crate::{Background, eventually, output, output_with};

/// A registry that runs as long as this value lives.
pub struct Registry {
    /// As it begins the names of images: `127.0.0.1:15001`.
    pub address: String,
    dir: PathBuf,
    ca: Option<PathBuf>,
    credentials: Option<(&'static str, &'static str)>,
    _process: Background,
}

/// A certificate authority and a certificate for loopback that it has signed.
pub struct Certificates {
    pub ca: PathBuf,
    cert: PathBuf,
    key: PathBuf,
}

/// Makes them with openssl.
pub fn certificates(dir: &Path) -> Result<Certificates> {
    fs::create_dir_all(dir)?;
    let openssl = |args: &str| output(Command::new("openssl").args(args.split(' ')).current_dir(dir));
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 2";
    openssl(&format!("req -x509 {key} -subj /CN=e2e-ca -keyout ca.key -out ca.crt"))?;
    openssl(&format!("req {key} -subj /CN=registry -keyout registry.key -out registry.csr"))?;
    fs::write(dir.join("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")?;
    openssl("x509 -req -in registry.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile names -out registry.crt")?;
    Ok(Certificates { ca: dir.join("ca.crt"), cert: dir.join("registry.crt"), key: dir.join("registry.key") })
}

impl Registry {
    /// Starts one with its files in `dir`, which is emptied.
    pub fn start(dir: &Path, port: u16, tls: Option<&Certificates>, credentials: Option<(&'static str, &'static str)>) -> Result<Registry> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
        let address = format!("127.0.0.1:{port}");
        let mut config = format!("version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {address}\n", dir.join("data").display());
        if let Some(tls) = tls {
            config += &format!("  tls: {{certificate: {}, key: {}}}\n", tls.cert.display(), tls.key.display());
        }
        if let Some((user, password)) = credentials {
            let users = output(Command::new("htpasswd").args(["-Bbn", user, password]))?;
            fs::write(dir.join("users"), users)?;
            config += &format!("auth: {{htpasswd: {{realm: e2e, path: {}}}}}\n", dir.join("users").display());
        }
        fs::write(dir.join("config.yml"), config)?;
        let log = fs::File::create(dir.join("log"))?;
        // It ends with this process, however that ends.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("docker-registry")?;
        let registry = Registry { address, dir: dir.into(), ca: tls.map(|t| t.ca.clone()), credentials, _process: Background(child) };
        eventually("the registry", 10, || registry.request(&["-f"], "/v2/", None).with_context(|| fs::read_to_string(dir.join("log")).unwrap_or_default()))?;
        Ok(registry)
    }

    /// The name of an image here.
    pub fn name(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// By curl; `path` may be a whole URL. Answers head and body.
    fn request(&self, args: &[&str], path: &str, body: Option<&[u8]>) -> Result<String> {
        let scheme = if self.ca.is_some() { "https" } else { "http" };
        let url = if path.contains("://") { path.to_string() } else { format!("{scheme}://{}{path}", self.address) };
        let mut curl = Command::new("curl");
        curl.args(["-sSi", "--max-time", "20", "--noproxy", "*", "-H", "Expect:"]).args(args).arg(url);
        if let Some(ca) = &self.ca {
            curl.arg("--cacert").arg(ca);
        }
        if let Some((user, password)) = self.credentials {
            curl.arg("-u").arg(format!("{user}:{password}"));
        }
        match body {
            None => output(&mut curl),
            Some(bytes) => {
                // curl reads the body whole before it sends any of it.
                let file = self.dir.join("body");
                fs::write(&file, bytes)?;
                curl.arg("--data-binary").arg(format!("@{}", file.display()));
                output_with(&mut curl, "")
            }
        }
    }

    /// Puts an image there. The digest of its manifest.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) -> Result<String> {
        self.put(repository, tag, &image.pushed()?)
    }

    /// Puts there what may not fit together.
    pub fn put(&self, repository: &str, tag: &str, pushed: &Pushed) -> Result<String> {
        for (digest, bytes) in &pushed.blobs {
            let answer = self.request(&["-f", "-X", "POST"], &format!("/v2/{repository}/blobs/uploads/"), Some(b""))?;
            let location = answer.lines().find_map(|l| l.to_ascii_lowercase().starts_with("location:").then(|| l[9..].trim())).context("no Location")?;
            let join = if location.contains('?') { '&' } else { '?' };
            self.request(&["-f", "-X", "PUT", "-H", "Content-Type: application/octet-stream"], &format!("{location}{join}digest={digest}"), Some(bytes))?;
        }
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        self.request(&["-f", "-X", "PUT", "-H", kind], &format!("/v2/{repository}/manifests/{tag}"), Some(&pushed.manifest))?;
        Ok(digest(&pushed.manifest))
    }

    /// Changes one byte of a blob or manifest behind the registry's back; its length stays.
    pub fn damage(&self, digest: &str) -> Result<()> {
        let hex = digest.trim_start_matches("sha256:");
        let path = self.dir.join("data/docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&path).with_context(|| path.display().to_string())?;
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        Ok(fs::write(&path, bytes)?)
    }
}
