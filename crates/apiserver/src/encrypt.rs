//! Encryption at rest: some resources' values are sealed with AES-256-GCM before they reach the store.
//!
//! The layout is upstream's aesgcm transformer: the prefix `k8s:enc:aesgcm:v1:KEYNAME:`, a random 12-byte nonce, the
//! ciphertext with its tag; the storage key is the additional data, so a value cannot be moved to another object.
use bytes::Bytes;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

/// A key and its name, as in an EncryptionConfiguration.
#[derive(Clone)]
pub struct EncryptionKey {
    pub name: String,
    pub secret: [u8; 32],
}

/// Which resources are encrypted, with what.
#[derive(Clone, Default)]
pub struct EncryptionConfig {
    /// The first key writes; all read.
    pub keys: Vec<EncryptionKey>,
    /// Resources as `secrets` or `deployments.apps`.
    pub resources: Vec<String>,
}

/// What can go wrong with a stored value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the encryption key has the wrong length")]
    Key,
    #[error("no random numbers to be had")]
    Random,
    #[error("encryption failed")]
    Seal,
    #[error("the stored value cannot be decrypted with any configured key: it was written with another key, or it is damaged")]
    Open,
}

const START: &str = "k8s:enc:aesgcm:v1:";

/// Seals and opens values.
pub struct Transformer {
    keys: Vec<(Vec<u8>, LessSafeKey)>,
}

impl Transformer {
    pub fn new(keys: &[EncryptionKey]) -> Result<Transformer, Error> {
        let keys = keys
            .iter()
            .map(|k| {
                let key = UnboundKey::new(&AES_256_GCM, &k.secret).map_err(|_| Error::Key)?;
                Ok((format!("{START}{}:", k.name).into_bytes(), LessSafeKey::new(key)))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Transformer { keys })
    }

    /// The value as it is stored under `storage_key`.
    pub fn seal(&self, storage_key: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let Some((prefix, key)) = self.keys.first() else {
            return Ok(plain.to_vec());
        };
        let mut nonce = [0; NONCE_LEN];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut nonce).map_err(|_| Error::Random)?;
        let mut body = plain.to_vec();
        key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(storage_key), &mut body)
            .map_err(|_| Error::Seal)?;
        Ok([prefix.as_slice(), &nonce, &body].concat())
    }

    /// The plain value; one that was written before encryption was on is taken as it is.
    pub fn open(&self, storage_key: &[u8], stored: &Bytes) -> Result<Bytes, Error> {
        if !stored.starts_with(b"k8s:enc:") {
            return Ok(stored.clone());
        }
        for (prefix, key) in &self.keys {
            let Some(rest) = stored.strip_prefix(prefix.as_slice()) else { continue };
            let Some((nonce, body)) = rest.split_first_chunk::<NONCE_LEN>() else { continue };
            let mut body = body.to_vec();
            if let Ok(plain) = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(storage_key), &mut body) {
                return Ok(Bytes::copy_from_slice(plain));
            }
        }
        Err(Error::Open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_under_its_key() {
        let key = |name: &str, b| EncryptionKey { name: name.into(), secret: [b; 32] };
        let t = Transformer::new(&[key("k2", 2), key("k1", 1)]).unwrap();
        let sealed = Bytes::from(t.seal(b"/registry/secrets/a/b", b"hunter2").unwrap());
        assert!(sealed.starts_with(b"k8s:enc:aesgcm:v1:k2:"));
        assert!(!sealed.windows(7).any(|w| w == b"hunter2"));
        assert_eq!(&t.open(b"/registry/secrets/a/b", &sealed).unwrap()[..], b"hunter2");
        assert!(t.open(b"/registry/secrets/a/c", &sealed).is_err());
        let old = Transformer::new(&[key("k1", 1)]).unwrap();
        assert!(old.open(b"/registry/secrets/a/b", &sealed).is_err());
        let sealed = Bytes::from(old.seal(b"x", b"y").unwrap());
        assert_eq!(&t.open(b"x", &sealed).unwrap()[..], b"y");
        assert_eq!(&t.open(b"x", &Bytes::from_static(b"{}")).unwrap()[..], b"{}");
        let mut bad = sealed.to_vec();
        bad.truncate(20);
        assert!(t.open(b"x", &bad.into()).is_err());
    }
}
