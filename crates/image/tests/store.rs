//! The store through its public surface: archives in, lower directories out, and a small registry on loopback.
//! Needs root: whiteouts are device nodes, owners are kept.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use image::{Auth, Error, Options, Progress, Store};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct File<'a>(&'a str, tar::EntryType, &'a [u8]);

fn file<'a>(path: &'a str, content: &'a [u8]) -> File<'a> {
    File(path, tar::EntryType::Regular, content)
}

fn dir(path: &str) -> File<'_> {
    File(path, tar::EntryType::Directory, b"")
}

/// Content is the target for links. Paths are written raw, so that bad ones get through.
fn layer(files: &[File]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for File(path, kind, content) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if kind.is_dir() { 0o1777 } else { 0o4755 });
        header.set_uid(1000);
        header.set_gid(1001);
        header.set_mtime(12345);
        let body: &[u8] = if *kind == tar::EntryType::Regular { content } else { b"" };
        if !matches!(kind, tar::EntryType::Regular | tar::EntryType::Directory) {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
        }
        header.set_size(body.len() as u64);
        header.set_cksum();
        archive.append(&header, body).unwrap();
    }
    archive.into_inner().unwrap()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn config(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    serde_json::to_vec(&serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| digest(l)).collect::<Vec<_>>()},
    }))
    .unwrap()
}

const ARCH: &str = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };

fn docker_archive(layers: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let config = config(layers, architecture);
    let name = format!("{}.json", &digest(&config)[7..]);
    let names: Vec<String> = (0..layers.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = serde_json::to_vec(&serde_json::json!([{"Config": name, "RepoTags": ["thing:1"], "Layers": names}])).unwrap();
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, bytes).unwrap();
    };
    add("manifest.json", &manifest);
    add(&name, &config);
    names.iter().zip(layers).for_each(|(n, l)| add(n, l));
    archive.into_inner().unwrap()
}

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("images")).unwrap();
    (dir, store)
}

#[test]
fn an_archive_becomes_lower_directories() {
    let (_dir, store) = store();
    let below = layer(&[
        dir("usr/"),
        dir("usr/bin/"),
        file("usr/bin/x", b"one"),
        File("bin", tar::EntryType::Symlink, b"usr/bin"),
        dir("tmp/"),
        dir("etc/"),
        file("etc/gone", b""),
        file("etc/stays", b""),
        File("etc/hard", tar::EntryType::Link, b"etc/stays"),
    ]);
    let above = layer(&[file("bin/y", b"two"), file("tmp/z", b""), file("etc/.wh.gone", b""), dir("var/"), file("var/.wh..wh..opq", b"")]);
    let images = store.import(docker_archive(&[below, above], ARCH).as_slice(), None).unwrap();
    assert_eq!(images[0].tags, ["docker.io/library/thing:1"]);
    let dirs = store.lower_dirs("thing:1").unwrap();
    let [top, bottom] = dirs.as_slice() else { panic!("{dirs:?}") };

    let x = fs::metadata(bottom.join("usr/bin/x")).unwrap();
    assert_eq!((x.mode() & 0o7777, x.uid(), x.gid(), x.mtime()), (0o4755, 1000, 1001, 12345));
    assert_eq!(fs::metadata(bottom.join("usr")).unwrap().mtime(), 12345);
    assert_eq!(fs::metadata(bottom.join("etc/hard")).unwrap().nlink(), 2);
    assert_eq!(fs::read(top.join("usr/bin/y")).unwrap(), b"two", "through the link of the layer below");
    assert!(!top.join("bin").exists());
    assert_eq!(fs::metadata(top.join("tmp")).unwrap().mode() & 0o7777, 0o1777, "as below");
    let gone = fs::symlink_metadata(top.join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0u8; 8];
    assert_eq!(rustix::fs::lgetxattr(top.join("var"), "trusted.overlay.opaque", &mut value[..]), Ok(1));
    assert_eq!(store.config("thing:1").unwrap().config().as_ref().unwrap().cmd().as_deref(), Some(&["/x".to_string()][..]));
}

#[test]
fn nothing_escapes() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap().to_string();
    let bad: Vec<(Vec<u8>, bool)> = vec![
        (layer(&[file("../../evil", b"x")]), false),
        (layer(&[File("l", tar::EntryType::Symlink, target.as_bytes()), file("l/evil", b"x")]), true),
        (layer(&[File("h", tar::EntryType::Link, b"../../../../etc/passwd")]), false),
        (layer(&[File("l", tar::EntryType::Symlink, b"/etc"), File("h", tar::EntryType::Link, b"l/passwd")]), false),
        (layer(&[File("a", tar::EntryType::Symlink, b"a"), file("a/b", b"")]), false),
        (layer(&[File("a", tar::EntryType::Symlink, b".."), file("a/../../b", b"")]), false),
        (layer(&[file(".wh...", b"")]), false),
    ];
    for (i, (layer, fine)) in bad.into_iter().enumerate() {
        let (_dir, store) = store();
        let result = store.import(docker_archive(&[layer], ARCH).as_slice(), None);
        assert_eq!(result.is_ok(), fine, "{i}: {result:?}");
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none(), "{i}");
        assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0, "{i}: nothing is left");
    }
}

#[test]
fn images_go_with_their_layers_and_holders_keep_them() {
    let (_dir, store) = store();
    let shared = layer(&[file("shared", b"12345")]);
    let first = docker_archive(&[shared.clone(), layer(&[file("a", b"1")])], ARCH);
    store.import(first.as_slice(), None).unwrap();
    store.tag("thing:1", "other:2").unwrap();
    store.import(docker_archive(&[shared, layer(&[file("b", b"2")])], ARCH).as_slice(), None).unwrap();
    assert_eq!(store.get("other:2").unwrap().unwrap().size, 6);
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 3);
    let held = store.hold("container", "other:2").unwrap();
    store.tag("other:2", "third:3").unwrap();
    assert_eq!(store.remove("other:2").unwrap().unwrap(), ["docker.io/library/other:2", "docker.io/library/third:3"]);
    assert_eq!(store.remove("other:2").unwrap(), None);
    assert!(held.iter().all(|d| d.exists()));
    drop(store.clone());
    let again = Store::open(store.root()).unwrap();
    assert!(held.iter().all(|d| d.exists()), "over a restart");
    again.release("container").unwrap();
    assert_eq!(again.collect_garbage().unwrap(), 1);
    assert!(store.remove("thing:1").unwrap().is_some());
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn damage_is_told() {
    let (_dir, store) = store();
    let good = layer(&[file("a", b"1")]);
    let other = docker_archive(std::slice::from_ref(&good), if ARCH == "amd64" { "arm64" } else { "amd64" });
    let error = store.import(other.as_slice(), None).unwrap_err();
    assert!(error.to_string().starts_with("no match for platform in manifest"), "{error}");
    // The configuration names another layer than the archive holds.
    let mut swapped = docker_archive(&[good], ARCH);
    let at = swapped.windows(6).rposition(|w| w == b"12345\0").unwrap_or(0);
    assert_eq!(at, 0);
    let body = swapped.iter().rposition(|b| *b == b'1').unwrap();
    swapped[body] = b'2';
    let error = store.import(swapped.as_slice(), None).unwrap_err();
    assert!(matches!(error, Error::Digest { .. } | Error::CorruptLayer { .. }), "{error}");
    let error = store.import(&b"hello"[..], None).unwrap_err();
    assert!(matches!(error, Error::InvalidImage { .. }), "{error}");
    assert!(matches!(store.lower_dirs("nothing"), Err(Error::NotFound { .. })));
}

#[test]
fn the_builtin_image_is_made_once() {
    let (dir, store) = store();
    let exe = dir.path().join("exe");
    fs::write(&exe, b"program").unwrap();
    fs::set_permissions(&exe, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let first = store.ensure_builtin(&exe).unwrap();
    assert_eq!(store.ensure_builtin(&exe).unwrap().id, first.id);
    assert_eq!(store.get("knarr.local/echo").unwrap().unwrap().id, first.id);
    assert_eq!(store.get("knarr.local/echo:v2").unwrap().unwrap().id, first.id);
    assert_eq!(fs::read(store.lower_dirs("knarr.local/echo").unwrap()[0].join("knarr")).unwrap(), b"program");
    let newer = dir.path().join("newer");
    fs::write(&newer, b"program 2").unwrap();
    let second = store.ensure_builtin(&newer).unwrap();
    assert_ne!(second.id, first.id);
    assert_eq!(store.list().unwrap().len(), 1);
}

/// Serves `GET` of what it knows, and wants a password when it has one.
async fn registry(files: HashMap<String, Vec<u8>>, password: Option<&'static str>) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let files = Arc::new(files);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let files = files.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await?);
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let allowed = password.is_none_or(|p| text.contains(p));
                let (status, body) = match files.get(path) {
                    _ if !allowed => ("401 Unauthorized", Vec::new()),
                    Some(body) => ("200 OK", body.clone()),
                    None if path == "/v2/" => ("200 OK", b"{}".to_vec()),
                    None => ("404 Not Found", br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#.to_vec()),
                };
                let kind = if path.contains("/manifests/") { "application/vnd.oci.image.manifest.v1+json" } else { "application/octet-stream" };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: {kind}\r\nWWW-Authenticate: Basic realm=\"test\"\r\nConnection: close\r\n\r\n",
                    body.len()
                );
                stream.write_all(head.as_bytes()).await?;
                stream.write_all(&body).await
            });
        }
    });
    address
}

fn image_files(layers: &[Vec<u8>], architecture: &str, corrupt: bool) -> HashMap<String, Vec<u8>> {
    let config = config(layers, architecture);
    let blobs: Vec<Vec<u8>> = layers.iter().map(|l| gzip(l)).collect();
    let descriptor = |bytes: &[u8], kind: &str| serde_json::json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2,
        "config": descriptor(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": blobs.iter().map(|b| descriptor(b, "application/vnd.oci.image.layer.v1.tar+gzip")).collect::<Vec<_>>(),
    }))
    .unwrap();
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(b"other"), "size": 5, "platform": {"os": "linux", "architecture": "s390x"}},
            {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&manifest), "size": manifest.len(), "platform": {"os": "linux", "architecture": architecture}},
        ],
    }))
    .unwrap();
    let mut files = HashMap::from([
        ("/v2/app/manifests/v1".to_string(), manifest.clone()),
        (format!("/v2/app/manifests/{}", digest(&manifest)), manifest),
        ("/v2/app/manifests/multi".to_string(), index),
        (format!("/v2/app/blobs/{}", digest(&config)), config),
    ]);
    for mut blob in blobs {
        let path = format!("/v2/app/blobs/{}", digest(&blob));
        if corrupt {
            let last = blob.len() - 1;
            blob[last] ^= 1;
        }
        files.insert(path, blob);
    }
    files
}

#[tokio::test]
async fn pulls_from_a_registry_on_loopback() {
    let (_dir, store) = store();
    let layers = [layer(&[file("a", b"1")]), layer(&[file("b", b"22")])];
    let address = registry(image_files(&layers, ARCH, false), Some("Basic")).await;
    let name = format!("{address}/app:v1");
    let options = Options::default();
    let error = store.pull(&name, &Auth::Anonymous, &options, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let auth = Auth::Basic { user: "u".into(), password: "p".into() };
    let image = store.pull(&name, &auth, &options, |_| {}).await.unwrap();
    assert_eq!(image.tags, std::slice::from_ref(&name));
    assert!(image.digests[0].starts_with(&format!("{address}/app@sha256:")));
    assert_eq!(image.size, 3);
    let missing = parking_lot::Mutex::new(None);
    let again = store
        .pull(&format!("{address}/app:multi"), &auth, &options, |p| {
            if let Progress::Resolved { missing: m, .. } = p {
                *missing.lock() = Some(m);
            }
        })
        .await
        .unwrap();
    assert_eq!((again.id, missing.into_inner()), (image.id, Some(0)));
    let error = store.pull(&format!("{address}/app:none"), &auth, &options, |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn bad_images_of_a_registry_are_told() {
    let (_dir, store) = store();
    let layers = [layer(&[file("a", b"1")])];
    let address = registry(image_files(&layers, ARCH, true), None).await;
    let error = store.pull(&format!("{address}/app:v1"), &Auth::Anonymous, &Options::default(), |_| {}).await.unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let address = registry(image_files(&layers, "riscv64", false), None).await;
    for tag in ["v1", "multi"] {
        let error = store.pull(&format!("{address}/app:{tag}"), &Auth::Anonymous, &Options::default(), |_| {}).await.unwrap_err();
        assert!(error.to_string().starts_with("no match for platform in manifest"), "{error}");
    }
    let error = store.pull("127.0.0.1:1/app", &Auth::Anonymous, &Options::default(), |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(store.list().unwrap().is_empty());
    let mut rest = String::new();
    for dir in ["tmp", "layers", "holds"] {
        for entry in fs::read_dir(store.root().join(dir)).unwrap() {
            rest += &format!("{:?}", entry.unwrap().path());
        }
    }
    assert_eq!(rest, "");
    let _ = std::io::empty().read(&mut [0]);
}

/// A registry that takes connections and says nothing must not keep others from threads.
#[test]
fn pulls_that_wait_hold_no_threads() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).max_blocking_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (_dir, store) = store();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let pulls: Vec<_> = (0..8)
            .map(|n| {
                let (store, name) = (store.clone(), format!("{address}/app:v{}", n / 2));
                tokio::spawn(async move { store.pull(&name, &Auth::Anonymous, &Options::default(), |_| {}).await })
            })
            .collect();
        // All that have a connection of their own wait for an answer.
        let mut silent = Vec::new();
        while silent.len() < 4 {
            silent.push(listener.accept().await.unwrap());
        }
        let other = tokio::time::timeout(std::time::Duration::from_secs(2), tokio::task::spawn_blocking(|| 7));
        assert_eq!(other.await.expect("a thread is free").unwrap(), 7);
        assert!(pulls.iter().all(|p| !p.is_finished()));
        pulls.iter().for_each(|p| p.abort());
    });
}
