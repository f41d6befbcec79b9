//! Encryption at rest, as an EncryptionConfiguration says it: the values of some resources are sealed before they reach
//! the store.
//!
//! A sealed value begins with `k8s:enc:PROVIDER:v1:KEYNAME:`, as upstream's does, so that either side reads what the
//! other wrote. The first provider of a resource writes, all of them read.
mod config;
mod key;

use std::borrow::Cow;
use std::collections::HashMap;

use arc_swap::ArcSwap;
use bytes::Bytes;

pub use config::{ConfigError, Encrypted, EncryptionConfig, EncryptionKey, Provider};
use key::Key;

/// What can go wrong with a stored value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the encryption key {0:?} has the wrong length")]
    Key(String),
    #[error("no random numbers to be had")]
    Random,
    #[error("encryption failed")]
    Seal,
    #[error("the stored value cannot be decrypted with any configured key: it was written with another key, or it is damaged")]
    Open,
}

/// What every sealed value begins with.
const SEALED: &[u8] = b"k8s:enc:";

/// Under which key a value is stored: `aesgcm:key1`, or `identity`.
pub fn key_of(stored: &[u8]) -> String {
    let Some(rest) = stored.strip_prefix(SEALED) else { return "identity".into() };
    let mut parts = rest.splitn(4, |b| *b == b':').map(String::from_utf8_lossy);
    let (provider, _version, name) = (parts.next(), parts.next(), parts.next());
    format!("{}:{}", provider.unwrap_or_default(), name.unwrap_or_default())
}

/// Seals and opens values, by keys that may be exchanged meanwhile.
pub struct Transformer {
    keys: ArcSwap<Keys>,
    /// Where keys lie in the store, if not under `/registry`: a sealed value is bound to its whole key.
    prefix: Option<String>,
}

struct Keys {
    /// The ways of each part of the configuration, the one that writes first.
    parts: Vec<Vec<Way>>,
    /// The part of each built-in resource, by its storage prefix.
    builtin: HashMap<String, Option<usize>>,
    config: EncryptionConfig,
}

enum Way {
    Sealed(Key),
    Plain,
}

impl Keys {
    fn new(config: &EncryptionConfig) -> Result<Keys, Error> {
        let mut parts = Vec::new();
        for part in &config.0 {
            let mut ways = Vec::new();
            for provider in &part.providers {
                match provider {
                    Provider::Identity => ways.push(Way::Plain),
                    Provider::AesGcm(keys) => keys.iter().try_for_each(|k| Key::gcm(k).map(|k| ways.push(Way::Sealed(k))))?,
                    Provider::AesCbc(keys) => keys.iter().try_for_each(|k| Key::cbc(k).map(|k| ways.push(Way::Sealed(k))))?,
                    Provider::Secretbox(keys) => keys.iter().try_for_each(|k| Key::secretbox(k).map(|k| ways.push(Way::Sealed(k))))?,
                }
            }
            parts.push(ways);
        }
        let stored = crate::model::all().iter().filter(|r| crate::model::is_stored(r) && crate::model::is_storage_version(r));
        let builtin = stored.map(|r| (r.storage_prefix.to_string(), config.part_of(r.group, r.plural))).collect();
        Ok(Keys { parts, builtin, config: config.clone() })
    }

    /// How the values under a storage key are written and read; nothing: as they are.
    fn ways(&self, storage_key: &[u8]) -> Option<&[Way]> {
        if self.parts.is_empty() {
            return None;
        }
        let key = std::str::from_utf8(storage_key).ok()?;
        let mut slashes = key.match_indices('/').map(|(at, _)| at + 1).skip(2);
        let (short, long) = (slashes.next(), slashes.next());
        let of = |end: Option<usize>| self.builtin.get(&key[..end?]);
        let part = match of(short).or_else(|| of(long)) {
            Some(part) => *part,
            None => {
                // Custom resources lie under /registry/GROUP/PLURAL/.
                let mut names = key.split('/').skip(2);
                self.config.part_of(names.next()?, names.next()?)
            }
        };
        Some(&self.parts[part?])
    }
}

impl Transformer {
    pub fn new(config: &EncryptionConfig) -> Result<Transformer, Error> {
        Ok(Transformer { keys: ArcSwap::from_pointee(Keys::new(config)?), prefix: None })
    }

    /// The same for a store whose keys lie under this prefix ([`store::under`]).
    pub fn under(self, prefix: &str) -> Transformer {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        Transformer { prefix: (prefix != "/registry").then_some(prefix), ..self }
    }

    fn bound<'a>(&self, storage_key: &'a [u8]) -> Cow<'a, [u8]> {
        match (&self.prefix, storage_key.strip_prefix(b"/registry")) {
            (Some(prefix), Some(rest)) => Cow::Owned([prefix.as_bytes(), rest].concat()),
            _ => Cow::Borrowed(storage_key),
        }
    }

    /// The key that writes values of a resource: `aesgcm:key1`, or `identity`.
    pub fn writes(&self, storage_key: &[u8]) -> String {
        self.seal(storage_key, Bytes::new()).map(|sealed| key_of(&sealed)).unwrap_or_default()
    }

    /// Goes on with another configuration.
    pub fn reload(&self, config: &EncryptionConfig) -> Result<(), Error> {
        self.keys.store(std::sync::Arc::new(Keys::new(config)?));
        Ok(())
    }

    /// Whether anything is encrypted at all.
    pub fn is_on(&self) -> bool {
        !self.keys.load().parts.is_empty()
    }

    /// The value as it is stored under `storage_key`.
    pub fn seal(&self, storage_key: &[u8], plain: Bytes) -> Result<Bytes, Error> {
        match self.keys.load().ways(storage_key).and_then(<[Way]>::first) {
            Some(Way::Sealed(key)) => key.seal(&self.bound(storage_key), &plain).map(Bytes::from),
            Some(Way::Plain) | None => Ok(plain),
        }
    }

    /// The plain value.
    pub fn open(&self, storage_key: &[u8], stored: &Bytes) -> Result<Bytes, Error> {
        Ok(self.opened(storage_key, stored)?.0)
    }

    /// Whether a value is not stored as it would be written today.
    pub fn is_stale(&self, storage_key: &[u8], stored: &Bytes) -> Result<bool, Error> {
        Ok(self.opened(storage_key, stored)?.1)
    }

    fn opened(&self, storage_key: &[u8], stored: &Bytes) -> Result<(Bytes, bool), Error> {
        let keys = self.keys.load();
        let bound = self.bound(storage_key);
        let Some(ways) = keys.ways(storage_key) else {
            return if stored.starts_with(SEALED) { Err(Error::Open) } else { Ok((stored.clone(), false)) };
        };
        for (n, way) in ways.iter().enumerate() {
            match way {
                Way::Plain if !stored.starts_with(SEALED) => return Ok((stored.clone(), n > 0)),
                Way::Plain => {}
                Way::Sealed(key) => {
                    if let Some(plain) = key.open(&bound, stored) {
                        return Ok((plain.into(), n > 0));
                    }
                }
            }
        }
        Err(Error::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str, byte: u8) -> EncryptionKey {
        EncryptionKey { name: name.into(), secret: vec![byte; 32] }
    }

    fn transformer(providers: Vec<Provider>) -> Transformer {
        Transformer::new(&EncryptionConfig::of(&["secrets"], providers)).unwrap()
    }

    const A: &[u8] = b"/registry/secrets/a/b";

    #[test]
    fn what_is_sealed_opens_only_under_its_key() {
        let t = transformer(vec![Provider::AesGcm(vec![key("k2", 2), key("k1", 1)]), Provider::Identity]);
        let sealed = t.seal(A, "hunter2".into()).unwrap();
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:k2:"));
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(&t.open(A, &sealed).unwrap()[..], b"hunter2");
        assert!(!t.is_stale(A, &sealed).unwrap());
        assert!(t.open(b"/registry/secrets/a/c", &sealed).is_err(), "it cannot be moved");
        let old = transformer(vec![Provider::AesGcm(vec![key("k1", 1)])]);
        assert!(old.open(A, &sealed).is_err());
        let sealed = old.seal(A, "y".into()).unwrap();
        assert_eq!(&t.open(A, &sealed).unwrap()[..], b"y");
        assert!(t.is_stale(A, &sealed).unwrap(), "today the other key writes");
        let plain = Bytes::from_static(b"{}");
        assert_eq!(&t.open(A, &plain).unwrap()[..], b"{}");
        assert!(t.is_stale(A, &plain).unwrap());
        assert!(old.open(A, &plain).is_err(), "without identity, nothing plain is read");
        let mut bad = sealed.to_vec();
        bad.truncate(20);
        assert!(t.open(A, &bad.into()).is_err());
    }

    #[test]
    fn every_provider_reads_what_it_wrote_and_no_other() {
        let all = [Provider::AesGcm(vec![key("k", 1)]), Provider::AesCbc(vec![key("k", 1)]), Provider::Secretbox(vec![key("k", 1)])];
        for (n, provider) in all.iter().enumerate() {
            let t = transformer(vec![provider.clone()]);
            for text in [&b""[..], b"x", &[7; 16], &[7; 4097]] {
                let sealed = t.seal(A, text.to_vec().into()).unwrap();
                assert_eq!(&t.open(A, &sealed).unwrap()[..], text);
                for (m, other) in all.iter().enumerate() {
                    assert_eq!(transformer(vec![other.clone()]).open(A, &sealed).is_ok(), n == m);
                }
                assert!(transformer(vec![Provider::Identity]).open(A, &sealed).is_err(), "identity reads nothing that is sealed");
            }
        }
    }

    #[test]
    fn the_first_part_that_names_a_resource_counts() {
        let sealed = |t: &Transformer, key: &str| t.seal(key.as_bytes(), "v".into()).unwrap().starts_with(SEALED);
        let gcm = || vec![Provider::AesGcm(vec![key("k", 1)])];
        let mut all = EncryptionConfig::of(&["secrets", "widgets.example.com"], gcm());
        let t = Transformer::new(&all).unwrap();
        for (key, wanted) in [
            ("/registry/secrets/a/b", true), ("/registry/configmaps/a/b", false), ("/registry/services/specs/a/b", false),
            ("/registry/example.com/widgets/a/b", true), ("/registry/example.com/gadgets/a/b", false),
        ] {
            assert_eq!(sealed(&t, key), wanted, "{key}");
        }
        all.0.push(Encrypted { resources: vec!["configmaps".into(), "*.apps".into()], providers: vec![Provider::Identity] });
        all.0.push(Encrypted { resources: vec!["*.".into(), "*.example.com".into()], providers: gcm() });
        t.reload(&all).unwrap();
        for (key, wanted) in [
            ("/registry/configmaps/a/b", false), ("/registry/services/specs/a/b", true), ("/registry/deployments/a/b", false),
            ("/registry/example.com/gadgets/a/b", true), ("/registry/jobs/a/b", false),
        ] {
            assert_eq!(sealed(&t, key), wanted, "{key}");
        }
        t.reload(&EncryptionConfig::of(&["*.*"], gcm())).unwrap();
        assert!(["/registry/jobs/a/b", "/registry/example.com/gadgets/a/b", "/registry/apiregistration.k8s.io/apiservices/x"].iter().all(|k| sealed(&t, k)));
        t.reload(&EncryptionConfig::default()).unwrap();
        assert!(!sealed(&t, "/registry/secrets/a/b"));
    }
}
