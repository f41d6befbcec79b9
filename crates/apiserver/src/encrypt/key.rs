//! One key and what it does to a value. After the prefix follow: for `aesgcm` a random nonce of 12 bytes, ciphertext and
//! tag, with the storage key as additional data; for `aescbc` a random vector of 16 bytes and the ciphertext, padded
//! (PKCS #7) and not authenticated; for `secretbox` (XSalsa20 and Poly1305) a random nonce of 24 bytes, tag and ciphertext.
use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockCipher, BlockDecryptMut, BlockEncryptMut, KeyInit, KeyIvInit};
use crypto_secretbox::XSalsa20Poly1305;
use crypto_secretbox::aead::Aead;
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::{EncryptionKey, Error};

/// Bytes of a block of AES, and of its vector.
const BLOCK: usize = 16;
/// Bytes of a nonce of secretbox.
const BOX_NONCE: usize = 24;

pub(super) struct Key {
    prefix: Vec<u8>,
    cipher: Cipher,
}

enum Cipher {
    Gcm(Box<LessSafeKey>),
    Cbc(Vec<u8>),
    Secretbox(Box<XSalsa20Poly1305>),
}

fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).map_err(|_| Error::Random)?;
    Ok(bytes)
}

fn encrypt<C: KeyInit + BlockCipher + BlockEncryptMut + Clone>(key: &[u8], vector: &[u8; BLOCK], plain: &[u8]) -> Option<Vec<u8>>
where
    cbc::Encryptor<C>: KeyIvInit,
{
    Some(cbc::Encryptor::<C>::new_from_slices(key, vector).ok()?.encrypt_padded_vec_mut::<Pkcs7>(plain))
}

fn decrypt<C: KeyInit + BlockCipher + BlockDecryptMut + Clone>(key: &[u8], vector: &[u8; BLOCK], body: &[u8]) -> Option<Vec<u8>>
where
    cbc::Decryptor<C>: KeyIvInit,
{
    cbc::Decryptor::<C>::new_from_slices(key, vector).ok()?.decrypt_padded_vec_mut::<Pkcs7>(body).ok()
}

impl Key {
    fn new(provider: &str, key: &EncryptionKey, cipher: Cipher) -> Key {
        Key { prefix: format!("k8s:enc:{provider}:v1:{}:", key.name).into_bytes(), cipher }
    }

    pub fn gcm(key: &EncryptionKey) -> Result<Key, Error> {
        let algorithm = match key.secret.len() {
            16 => &AES_128_GCM,
            _ => &AES_256_GCM,
        };
        let cipher = UnboundKey::new(algorithm, &key.secret).map_err(|_| Error::Key(key.name.clone()))?;
        Ok(Key::new("aesgcm", key, Cipher::Gcm(Box::new(LessSafeKey::new(cipher)))))
    }

    pub fn cbc(key: &EncryptionKey) -> Result<Key, Error> {
        if !matches!(key.secret.len(), 16 | 24 | 32) {
            return Err(Error::Key(key.name.clone()));
        }
        Ok(Key::new("aescbc", key, Cipher::Cbc(key.secret.clone())))
    }

    pub fn secretbox(key: &EncryptionKey) -> Result<Key, Error> {
        let cipher = XSalsa20Poly1305::new_from_slice(&key.secret).map_err(|_| Error::Key(key.name.clone()))?;
        Ok(Key::new("secretbox", key, Cipher::Secretbox(Box::new(cipher))))
    }

    /// The value as it is stored under `storage_key`.
    pub fn seal(&self, storage_key: &[u8], plain: &[u8]) -> Result<Vec<u8>, Error> {
        let (nonce, body) = match &self.cipher {
            Cipher::Gcm(key) => {
                let nonce = random::<NONCE_LEN>()?;
                let mut body = plain.to_vec();
                key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(storage_key), &mut body).map_err(|_| Error::Seal)?;
                (nonce.to_vec(), body)
            }
            Cipher::Cbc(key) => {
                let vector = random::<BLOCK>()?;
                let body = match key.len() {
                    16 => encrypt::<Aes128>(key, &vector, plain),
                    24 => encrypt::<Aes192>(key, &vector, plain),
                    _ => encrypt::<Aes256>(key, &vector, plain),
                };
                (vector.to_vec(), body.ok_or(Error::Seal)?)
            }
            Cipher::Secretbox(key) => {
                let nonce = random::<BOX_NONCE>()?;
                (nonce.to_vec(), key.encrypt(&nonce.into(), plain).map_err(|_| Error::Seal)?)
            }
        };
        Ok([self.prefix.as_slice(), &nonce, &body].concat())
    }

    /// The plain value, if this key wrote it.
    pub fn open(&self, storage_key: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        let rest = stored.strip_prefix(self.prefix.as_slice())?;
        match &self.cipher {
            Cipher::Gcm(key) => {
                let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>()?;
                let mut body = body.to_vec();
                let plain = key.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(storage_key), &mut body).ok()?.len();
                body.truncate(plain);
                Some(body)
            }
            Cipher::Cbc(key) => {
                let (vector, body) = rest.split_first_chunk::<BLOCK>()?;
                match key.len() {
                    16 => decrypt::<Aes128>(key, vector, body),
                    24 => decrypt::<Aes192>(key, vector, body),
                    _ => decrypt::<Aes256>(key, vector, body),
                }
            }
            Cipher::Secretbox(key) => {
                let (nonce, body) = rest.split_first_chunk::<BOX_NONCE>()?;
                key.decrypt(&(*nonce).into(), body).ok()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Made with openssl: `printf 'top secret' | openssl enc -aes-256-cbc -K 0101… -iv 0202…`, and with PyNaCl's SecretBox.
    #[test]
    fn others_values_are_read() {
        let key = EncryptionKey { name: "k".into(), secret: vec![1; 32] };
        let hex = |text: &str| -> Vec<u8> { (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect() };
        let cbc = [b"k8s:enc:aescbc:v1:k:".as_slice(), &[2; 16], &hex("26d190b5cdbca65e5dcbe88cbcacc609")].concat();
        assert_eq!(Key::cbc(&key).unwrap().open(b"any", &cbc).unwrap(), b"top secret");
        let boxed = [b"k8s:enc:secretbox:v1:k:".as_slice(), &[2; 24], &hex("13a4b432d5f1d39cad7a52df179b6acb890aaedd0d5fb13f0509")].concat();
        assert_eq!(Key::secretbox(&key).unwrap().open(b"any", &boxed).unwrap(), b"top secret");
        let short = EncryptionKey { name: "k".into(), secret: vec![1; 5] };
        assert!(Key::cbc(&short).is_err() && Key::gcm(&short).is_err() && Key::secretbox(&short).is_err());
    }
}
