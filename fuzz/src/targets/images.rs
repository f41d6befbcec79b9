//! Names of images, and archives of them.

use std::path::Path;

/// A name: normalised, it stays as it is.
pub fn name(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(full) = image::normalize(text) else { return };
    assert_eq!(image::normalize(&full).expect("a name"), full);
    let name = image::Name::parse(text).expect("a name");
    let _ = (name.registry(), name.repository(), name.digest(), name.tagged());
}

/// An archive, perhaps compressed.
pub fn archive(input: &[u8]) {
    // Nothing of it is to last, so memory is the place.
    let memory = Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory");
    let outside = dir.path().join("outside");
    std::fs::create_dir(&outside).expect("a directory");
    let store = image::Store::open(dir.path().join("store")).expect("a store");
    let _ = store.import(input, Some("a"));
    for image in store.list().expect("the index is whole") {
        let _ = store.config(&image.id);
    }
    let entries = std::fs::read_dir(dir.path()).expect("the directory").count();
    let strangers = std::fs::read_dir(&outside).expect("the directory").count();
    assert_eq!((entries, strangers), (2, 0), "it wrote outside of its directory");
}
