//! A certificate and its key that are replaced while they are in use, for servers and clients of rustls.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::{CertKey, Error, Result};

/// What a server or a client shows to its peers: each handshake takes what is there then.
#[derive(Debug)]
pub struct Renewable {
    now: RwLock<Arc<CertifiedKey>>,
    turn: AtomicU64,
}

impl Renewable {
    /// With this certificate (a chain, leaf first) to begin with.
    pub fn new(pair: &CertKey) -> Result<Arc<Renewable>> {
        Ok(Arc::new(Renewable { now: RwLock::new(certified(pair)?), turn: AtomicU64::new(0) }))
    }

    /// Shows another one from now on. On an error the present one stays.
    pub fn replace(&self, pair: &CertKey) -> Result<()> {
        let new = certified(pair)?;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = new;
        self.turn.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Has a client show this. Sessions are not resumed: they would go on with the certificate that they began with.
    pub fn shown_by(self: &Arc<Self>, mut client: ClientConfig) -> ClientConfig {
        client.client_auth_cert_resolver = self.clone();
        client.resumption = Resumption::disabled();
        client
    }

    /// Grows with every replacement: who keeps connections tells by it which were made with an older certificate.
    pub fn turn(&self) -> u64 {
        self.turn.load(Ordering::Acquire)
    }

    fn now(&self) -> Arc<CertifiedKey> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for Renewable {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl ResolvesClientCert for Renewable {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The certificate is not looked into: guides make X.509 v1, and whether it is good is for the peer to say.
fn certified(pair: &CertKey) -> Result<Arc<CertifiedKey>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.cert_pem.as_bytes()).collect::<std::result::Result<_, _>>().map_err(|e| Error::Certificate(e.to_string()))?;
    if chain.is_empty() {
        return Err(Error::Pem("CERTIFICATE"));
    }
    let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).map_err(|e| Error::Key(e.to_string()))?;
    let key = rustls::crypto::ring::default_provider().key_provider.load_private_key(key).map_err(|e| Error::Key(e.to_string()))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::KeyMismatch)) => Err(Error::Key("it is not the certificate's".into())),
        _ => Ok(Arc::new(certified)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, CertRequest, Usage};
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn what_is_shown_is_what_was_put_last() {
        let (now, hour) = (Timestamp::now(), SignedDuration::from_hours(1));
        let ca = Ca::new("ca", now, hour).unwrap();
        let one = |cn: &str| ca.issue(&CertRequest { cn: cn.into(), orgs: Vec::new(), sans: Vec::new(), usages: vec![Usage::Client], lifetime: hour }, now).unwrap();
        let (first, second) = (one("first"), one("second"));
        let own = Renewable::new(&first).unwrap();
        let shown = || crate::Peer::from_der(&own.now().cert[0]).unwrap().cn;
        assert_eq!((shown().as_str(), own.turn()), ("first", 0));
        let mixed = CertKey { cert_pem: second.cert_pem.clone(), key_pem: first.key_pem.clone() };
        assert!(own.replace(&mixed).is_err(), "a key of another certificate");
        assert!(own.replace(&CertKey { cert_pem: String::new(), key_pem: first.key_pem.clone() }).is_err());
        assert_eq!((shown().as_str(), own.turn()), ("first", 0));
        own.replace(&second).unwrap();
        assert_eq!((shown().as_str(), own.turn()), ("second", 1));
    }
}
