//! Collects the descriptions of API types and fields for OpenAPI from the doc comments of the
//! k8s-openapi crate, so that they need not be kept here. The result is one compressed text:
//! `=<definition>\t<text>` opens a type, `<field>\t<text>` is a field, newlines are `\x01`.
//! Where the crate's source is not to be found the descriptions are left out.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../../Cargo.lock");
    let mut text = String::new();
    match source() {
        Some(root) => walk(&root.join("src/v1_36"), &mut text),
        None => println!("cargo::warning=the source of k8s-openapi was not found: OpenAPI goes without descriptions"),
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("descriptions.z");
    let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).expect("memory takes any bytes");
    fs::write(out, encoder.finish().expect("memory takes any bytes")).expect("OUT_DIR is writable");
}

/// The crate's directory: in cargo's registry, or wherever `cargo metadata` says.
fn source() -> Option<PathBuf> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let lock = fs::read_to_string(manifest.join("../../Cargo.lock")).ok()?;
    let version = lock.split("name = \"k8s-openapi\"\nversion = \"").nth(1)?.split('"').next()?;
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    if let Some(registries) = home.and_then(|home| fs::read_dir(home.join("registry/src")).ok()) {
        for registry in registries.flatten() {
            let found = registry.path().join(format!("k8s-openapi-{version}"));
            if found.is_dir() {
                return Some(found);
            }
        }
    }
    let output = std::process::Command::new(env::var_os("CARGO")?)
        .args(["metadata", "--offline", "--format-version", "1"])
        .current_dir(&manifest)
        .output()
        .ok()?;
    let json = String::from_utf8_lossy(&output.stdout).into_owned();
    let marker = format!("k8s-openapi-{version}/Cargo.toml\"");
    let end = json.find(&marker)? + marker.len() - "/Cargo.toml\"".len();
    let start = json[..end].rfind('"')? + 1;
    Some(PathBuf::from(&json[start..end]))
}

fn walk(dir: &Path, out: &mut String) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, out);
        } else if let Ok(text) = fs::read_to_string(&path) {
            file(&text, out);
        }
    }
}

fn file(text: &str, out: &mut String) {
    let Some(definition) = text.lines().find_map(|l| l.strip_prefix("// Generated from definition ")) else { return };
    let mut docs: Vec<&str> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        let line = line.trim();
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.strip_prefix(' ').unwrap_or(doc));
        } else if let (false, Some(_)) = (inside, line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub enum "))) {
            out.push_str(&format!("={definition}\t{}\n", plain(&docs)));
            docs.clear();
            if !line.ends_with('{') || line.starts_with("pub enum ") {
                return;
            }
            inside = true;
        } else if let (true, Some(field)) = (inside, line.strip_prefix("pub ")) {
            let name: String = field.trim_start_matches("r#").chars().take_while(|c| *c != ':').filter(char::is_ascii_alphanumeric).collect();
            if !docs.is_empty() {
                out.push_str(&format!("{}\t{}\n", name.to_ascii_lowercase(), plain(&docs)));
            }
            docs.clear();
        } else if inside && line == "}" {
            return;
        } else if !line.starts_with('#') {
            docs.clear();
        }
    }
}

/// Takes rustdoc's escapes back.
fn plain(docs: &[&str]) -> String {
    let mut text = docs.join("\u{1}");
    for (escaped, bare) in [("\\[", "["), ("\\]", "]"), ("\\<", "<"), ("\\>", ">")] {
        text = text.replace(escaped, bare);
    }
    text
}
