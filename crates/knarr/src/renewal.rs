//! A server's certificates are made anew long before they end, and shown from then on, while everything goes on. What
//! somebody else renews on the disk is taken over in the same way.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bootstrap::files::Place;
use bootstrap::renew::Keeper;
use jiff::{SignedDuration, Timestamp};
use pki::{CertKey, Renewable};

use crate::config::Config;
use crate::etcd;
use crate::layout::Layout;
use crate::material::{self, Material};

/// How often certificates are looked at, at most and at least.
const PERIODS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How often to look at certificates that are good for so long.
pub fn period(lifetime: SignedDuration) -> Duration {
    Duration::try_from(lifetime / 20).unwrap_or(PERIODS.0).clamp(PERIODS.0, PERIODS.1)
}

/// What a server shows to its peers, but for what its port shows: that follows its files.
#[derive(Clone)]
pub struct Shown {
    pub kubelet_client: Arc<Renewable>,
    pub front_proxy: Arc<Renewable>,
    pub kubelet_serving: Arc<Renewable>,
}

impl Shown {
    pub fn new(material: &Material) -> Result<Shown> {
        let shown = |pair: &CertKey, whose: &str| Renewable::new(pair).with_context(|| format!("the certificate of {whose} cannot be used"));
        Ok(Shown {
            kubelet_client: shown(&material.kubelet_client, "the API server towards kubelets")?,
            front_proxy: shown(&material.front_proxy, "the front proxy")?,
            kubelet_serving: shown(&material.kubelet_serving, "the kubelet")?,
        })
    }

    fn replace(&self, old: &Material, new: &Material) -> Result<()> {
        let pairs = [
            (&self.kubelet_client, &old.kubelet_client, &new.kubelet_client),
            (&self.front_proxy, &old.front_proxy, &new.front_proxy),
            (&self.kubelet_serving, &old.kubelet_serving, &new.kubelet_serving),
        ];
        for (shown, old, new) in pairs {
            if old.cert_pem != new.cert_pem {
                shown.replace(new)?;
            }
        }
        Ok(())
    }
}

/// Keeps the certificates good for ever.
pub async fn keep(config: Config, layout: Layout, address: Ipv4Addr, mut last: Material, shown: Shown) {
    let every = period(config.certificate_lifetime);
    loop {
        tokio::time::sleep(every).await;
        let (config, layout) = (config.clone(), layout.clone());
        let looked = tokio::task::spawn_blocking(move || look(&config, &layout, address)).await;
        let done = looked.context("looking at the certificates").flatten().and_then(|new| {
            shown.replace(&last, &new)?;
            last = new;
            Ok(())
        });
        if let Err(error) = done {
            tracing::warn!("the certificates stay as they are: {error:#}");
        }
    }
}

fn look(config: &Config, layout: &Layout, address: Ipv4Addr) -> Result<Material> {
    if let Some(certificates) = config.kubeadm.as_ref().and_then(|k| k.pki_dir.as_ref()) {
        let keeper = Keeper { place: &Place::default(), dir: certificates.clone(), lifetime: config.certificate_lifetime };
        for name in keeper.renew_due(Timestamp::now())? {
            tracing::info!(certificate = name, "renewed");
        }
    } else if config.member.is_some() {
        etcd::renew(config, layout, address)?;
    }
    material::prepare(layout, config, address, &mut |bytes| rand::fill(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_ones_are_looked_at_often() {
        let seconds = |lifetime: i64| period(SignedDuration::from_secs(lifetime)).as_secs();
        assert_eq!([1, 60, 600, 365 * 86_400].map(seconds), [1, 3, 30, 60]);
    }
}
