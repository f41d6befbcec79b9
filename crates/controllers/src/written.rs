//! What a controller has written that its informer may not show yet. A pass over an older object
//! would do again what has been done.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use parking_lot::Mutex;

/// The versions that the last writes made, by the objects' uids. Clones are the same.
#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<HashMap<String, u64>>>);

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_deref()?.parse().ok()
}

impl Written {
    /// The object was written; this is what the API server made of it.
    pub fn wrote(&self, meta: &ObjectMeta) {
        if let (Some(uid), Some(version)) = (&meta.uid, version(meta)) {
            self.0.lock().insert(uid.clone(), version);
        }
    }

    /// Whether this is older than what was written last: then the newer one is still to come.
    pub fn is_stale(&self, meta: &ObjectMeta) -> bool {
        let written = meta.uid.as_ref().and_then(|uid| self.0.lock().get(uid).copied());
        version(meta).is_some_and(|v| written.is_some_and(|w| v < w))
    }

    /// The object is gone, or will not be written again.
    pub fn forget(&self, uid: Option<&str>) {
        if let Some(uid) = uid {
            self.0.lock().remove(uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_objects_are_stale() {
        let written = Written::default();
        let meta = |version: &str| ObjectMeta { uid: Some("u".into()), resource_version: Some(version.into()), ..ObjectMeta::default() };
        assert!(!written.is_stale(&meta("9")));
        written.wrote(&meta("10"));
        assert_eq!([written.is_stale(&meta("9")), written.is_stale(&meta("10")), written.is_stale(&meta("odd"))], [true, false, false]);
        written.forget(Some("u"));
        assert!(!written.is_stale(&meta("9")));
    }
}
