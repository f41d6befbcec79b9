//! What a user may do to the store's directory, and what the store says.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use store::embedded::{OpenError, Options, open};
use store::{Error, RangeRequest, Store, Txn};

fn refusal(dir: &Path) -> OpenError {
    open(dir, Options::default())
        .err()
        .expect("must be refused")
}

async fn filled(dir: &Path) {
    let store = open(dir, Options::default()).unwrap();
    for i in 0..100 {
        store
            .txn(Txn::put(format!("key-{i}"), vec![i as u8; 1000]))
            .await
            .unwrap();
    }
    store.close().await;
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), Options::default()).unwrap();
    store.txn(Txn::put("a", "1")).await.unwrap();
    let error = refusal(dir.path());
    assert!(
        matches!(&error, OpenError::Locked { holder, .. } if *holder == std::process::id().to_string())
    );
    let text = error.to_string();
    assert!(
        text.contains("in use by process") && text.contains(dir.path().to_str().unwrap()),
        "{text}"
    );
    // The first is none the worse for it.
    store.txn(Txn::put("a", "2")).await.unwrap();
    store.close().await;
    open(dir.path(), Options::default()).unwrap().close().await;
}

#[test]
fn a_foreign_directory_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("letter.txt"), "dear").unwrap();
    let text = refusal(dir.path()).to_string();
    assert!(
        text.contains("letter.txt") && text.contains("choose an empty directory"),
        "{text}"
    );
    let left: Vec<_> = dir
        .path()
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["letter.txt"]);
}

#[test]
fn a_file_in_the_place_of_the_directory_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("store");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(
        refusal(&file),
        OpenError::Io {
            action: "creating the directory",
            ..
        }
    ));
}

#[tokio::test]
async fn another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    std::fs::write(dir.path().join("format"), "knarr store 9\n").unwrap();
    assert!(
        matches!(refusal(dir.path()), OpenError::Format { found, .. } if found == "knarr store 9\n")
    );
}

#[tokio::test]
async fn damage_is_told() {
    // Each file of the database in turn is overwritten.
    let original = tempfile::tempdir().unwrap();
    filled(original.path()).await;
    let list = Command::new("find")
        .arg(original.path().join("db"))
        .args(["-type", "f", "-printf", "%P\n"])
        .output();
    let list = String::from_utf8(list.unwrap().stdout).unwrap();
    for file in list.lines().filter(|file| *file != "lock") {
        let dir = tempfile::tempdir().unwrap();
        let copied = Command::new("cp")
            .args(["-r", "--sparse=always"])
            .args([original.path().join("."), dir.path().join("s")])
            .status();
        assert!(copied.unwrap().success());
        let dir = dir.path().join("s");
        std::fs::write(
            dir.join("db").join(file),
            b"this is not what was here before",
        )
        .unwrap();
        match open(&dir, Options::default()) {
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Corrupt { .. }),
                    "{file}: {error:?}"
                );
                let text = error.to_string();
                assert!(
                    text.contains("is damaged") && text.contains("restore a backup"),
                    "{text}"
                );
            }
            Ok(store) => {
                // What looks like a journal's torn end is cut off, as after a crash. Other files that
                // are accepted are not in use any more.
                let found = store.range(RangeRequest::prefix("key-")).await;
                let whole = found.is_ok_and(|found| found.count == 100);
                assert!(file.ends_with(".jnl") || whole, "{file} was accepted");
                store.close().await;
            }
        }
    }
    std::fs::remove_dir_all(original.path().join("db")).unwrap();
    assert!(matches!(
        refusal(original.path()),
        OpenError::Corrupt { .. }
    ));
}

#[tokio::test]
async fn an_unfinished_creation_is_started_anew() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("db")).unwrap();
    std::fs::write(dir.path().join("db/0.jnl"), "half").unwrap();
    std::fs::write(dir.path().join("creating"), "").unwrap();
    let store = open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.txn(Txn::put("a", "1")).await.unwrap().revision, 2);
    store.close().await;
}

struct Mount(std::path::PathBuf);

impl Mount {
    fn run(&self, program: &str, args: &[&str]) -> bool {
        Command::new(program)
            .args(args)
            .arg(&self.0)
            .output()
            .unwrap()
            .status
            .success()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.run("umount", &["-l"]);
    }
}

#[tokio::test]
async fn a_full_disk_stops_writes_until_there_is_space() {
    let dir = tempfile::tempdir().unwrap();
    let mount = Mount(dir.path().to_owned());
    assert!(
        mount.run("mount", &["-t", "tmpfs", "-o", "size=12m", "none"]),
        "this test needs root"
    );
    let store = open(dir.path(), Options::default()).unwrap();
    let mut acknowledged = Vec::new();
    let error = loop {
        let key = format!("key-{:05}", acknowledged.len());
        // Random, so that it cannot be compressed.
        let value: Vec<u8> = (0..50_000).map(|_| rand::random()).collect();
        match store.txn(Txn::put(key, value)).await {
            Ok(response) => acknowledged.push(response.revision),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 1000, "the disk should be full");
    };
    assert!(!acknowledged.is_empty());
    // A write in the background may have failed before this one.
    assert!(
        matches!(error, Error::NoSpace { .. } | Error::Io { .. } | Error::Unavailable { .. }),
        "{error:?}"
    );
    assert!(
        error.to_string().contains(dir.path().to_str().unwrap()),
        "{error}"
    );
    assert!(store.status().await.unwrap().error.is_some());

    assert!(mount.run("mount", &["-o", "remount,size=200m", "none"]));
    let written = async {
        loop {
            match store.txn(Txn::put("after", "1")).await {
                Ok(_) => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), written)
        .await
        .expect("the store resumes");
    assert!(store.status().await.unwrap().error.is_none());
    let kept = store.range(RangeRequest::prefix("key-")).await.unwrap().kvs;
    let kept: Vec<i64> = kept.iter().map(|kv| kv.mod_revision).collect();
    assert!(
        acknowledged.iter().all(|revision| kept.contains(revision)),
        "{acknowledged:?} {kept:?}"
    );
    store.close().await;
}

/// A file system of its own on a file.
fn disk(dir: &Path) -> Mount {
    let (image, at) = (dir.join("image"), dir.join("at"));
    std::fs::create_dir(&at).unwrap();
    std::fs::File::create(&image).unwrap().set_len(256 << 20).unwrap();
    assert!(Command::new("mkfs.ext4").arg("-q").arg(&image).status().unwrap().success());
    let mount = Mount(at);
    assert!(mount.run("mount", &["-o", "loop", image.to_str().unwrap()]), "this test needs root and a loop device");
    mount
}

#[tokio::test]
async fn a_file_system_that_gives_up_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let mount = disk(dir.path());
    let store = open(mount.0.join("store"), Options::default()).unwrap();
    store.txn(Txn::put("a", "1")).await.unwrap();
    // As the kernel does after an error of the disk: files that are open are no exception.
    assert!(mount.run("mount", &["-o", "remount,abort"]) , "ext4 can be told to give up");
    let error = store.txn(Txn::put("b", "1")).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. } | Error::Unavailable { .. }), "{error:?}");
    assert!(store.status().await.unwrap().error.is_some());
    store.close().await;
}

struct Frozen(std::path::PathBuf);

impl Frozen {
    fn thaw(&self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.0).output();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
    }
}

/// A disk that does not finish a write: requests end in their time, nothing that was refused is done later, and all is
/// well when the disk is.
#[tokio::test]
async fn a_disk_that_stands_still() {
    let dir = tempfile::tempdir().unwrap();
    let mount = disk(dir.path());
    let at = mount.0.clone();
    let options = Options { patience: Duration::from_secs(1), ..Options::default() };
    let store = open(at.join("store"), options).unwrap();
    store.txn(Txn::put("a", "1")).await.unwrap();
    let frozen = Frozen(at.clone());
    assert!(Command::new("fsfreeze").arg("-f").arg(&at).status().unwrap().success());
    let start = std::time::Instant::now();
    let first = store.txn(Txn::put("b", "1")).await.unwrap_err();
    assert!(matches!(&first, Error::Timeout { message, .. } if message.contains("too slow")), "{first}");
    for _ in 0..3 {
        let error = store.txn(Txn::put("never", "1")).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert_eq!(store.range(RangeRequest::key("a")).await.unwrap().count, 1, "reads go on");
    let status = store.status().await.unwrap();
    assert!(status.error.as_deref().is_some_and(|e| e.contains("has not finished a write")) && !status.full, "{status:?}");
    frozen.thaw();
    let written = async {
        while store.txn(Txn::put("after", "1")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), written).await.expect("the store resumes");
    assert!(store.status().await.unwrap().error.is_none());
    assert_eq!(store.range(RangeRequest::key("never")).await.unwrap().count, 0);
    assert_eq!(store.range(RangeRequest::prefix("a")).await.unwrap().count, 2);
    store.close().await;
}

/// A store that is made of another one keeps revisions, and knows nothing of before.
#[tokio::test]
async fn an_import() {
    let dir = tempfile::tempdir().unwrap();
    let kv = |n: i64| store::KeyValue { key: format!("k{n:05}").into_bytes(), value: vec![7; 3000].into(), create_revision: n, mod_revision: n + 5, version: 3 };
    let begun = || store::embedded::Import::begin(dir.path());
    let mut import = begun().unwrap();
    let keys = |all: &[i64]| all.iter().map(|n| Ok::<_, Error>((kv(*n), (*n == 10).then_some(Duration::from_secs(1))))).collect::<Vec<_>>();
    import.fill(keys(&[1])).unwrap();
    drop(import);
    for disorder in [[2, 1], [1, 1]] {
        assert!(matches!(begun().unwrap().fill(keys(&disorder)), Err(Error::Invalid(_))));
    }
    // Cut short, it is no store; the next one begins anew.
    let mut import = begun().unwrap();
    import.fill(keys(&(10..2010).collect::<Vec<_>>())).unwrap();
    import.finish(100_000).unwrap();
    assert!(matches!(begun().err().unwrap(), OpenError::Exists { .. }));
    let store = open(dir.path(), Options::default()).unwrap();
    let found = store.range(RangeRequest::prefix("k")).await.unwrap();
    assert_eq!((found.revision, found.kvs.len()), (100_000, 2000));
    assert_eq!(found.kvs[1000], kv(1010));
    assert!(matches!(store.watch(b"", 100_000).await.err(), Some(Error::Compacted { .. })));
    assert!(matches!(store.range(RangeRequest::key("k00011").at(99_999)).await, Err(Error::Compacted { .. })));
    let mut watch = store.watch(b"", 100_001).await.unwrap();
    let changed = store.txn(Txn::put("k00011", "new").when("k00011", 16)).await.unwrap();
    assert!(changed.succeeded && changed.previous[0].as_ref() == Some(&kv(11)));
    let mut expired = false;
    while !expired {
        let event = tokio::time::timeout(Duration::from_secs(10), watch.next()).await.expect("an event").unwrap().unwrap();
        if let store::WatchEvent::Events { events, .. } = event {
            expired = events.iter().any(|e| matches!(e, store::Event::Delete { key, .. } if key == b"k00010"));
        }
    }
    store.compact(changed.revision).await.unwrap();
    let page = store.range(RangeRequest::page("k", "l", 100)).await.unwrap();
    assert!(page.kvs.len() == 100 && page.more && page.kvs[0].key == b"k00011");
    store.close().await;
    let store = open(dir.path(), Options::default()).unwrap();
    assert_eq!(store.range(RangeRequest::prefix("k")).await.unwrap().kvs.len(), 1999);
    store.close().await;
}

/// Rewriting the same keys for long must not take ever more space.
#[tokio::test]
async fn the_size_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        keep_revisions: 500,
        ..Options::default()
    };
    let store = open(dir.path(), options).unwrap();
    let value: Vec<u8> = (0..40_000).map(|_| rand::random()).collect();
    for round in 0..40 {
        let writes = (0..100).map(|i| {
            let (store, value): (std::sync::Arc<dyn Store>, _) = (store.clone(), value.clone());
            tokio::spawn(async move {
                store
                    .txn(Txn::put(format!("key-{}", (round + i) % 50), value))
                    .await
                    .unwrap()
            })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
    }
    let status = store.status().await.unwrap();
    assert_eq!(status.revision, 4001);
    assert!(status.compacted >= 3000, "{status:?}");
    // 160 MB were written; live are 2 MB, kept for watches 20 to 40 MB; the journals take up to 128 MB.
    assert!(status.size_bytes < 200 << 20, "{status:?}");
    store.close().await;
}
