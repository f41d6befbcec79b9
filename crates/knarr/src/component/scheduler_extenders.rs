//! Extenders as a KubeSchedulerConfiguration has them, and in the terms of our scheduler.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use client::{Web, WebTls};
use serde::{Deserialize, Serialize};

use super::flags::go_duration;

/// How long a call may take when nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A web server that has a say in decisions.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Extender {
    #[serde(rename = "urlPrefix")]
    url_prefix: String,
    filter_verb: String,
    preempt_verb: String,
    prioritize_verb: String,
    weight: i64,
    bind_verb: String,
    #[serde(rename = "enableHTTPS")]
    enable_https: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_config: Option<ExtenderTls>,
    #[serde(rename = "httpTimeout", skip_serializing_if = "Option::is_none")]
    http_timeout: Option<String>,
    node_cache_capable: bool,
    managed_resources: Vec<ManagedResource>,
    ignorable: bool,
}

/// How an extender proves itself and we to it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ExtenderTls {
    insecure: bool,
    server_name: String,
    cert_file: String,
    key_file: String,
    ca_file: String,
    cert_data: String,
    #[serde(skip_serializing)]
    key_data: String,
    ca_data: String,
}

/// A resource that an extender looks after.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ManagedResource {
    name: String,
    ignored_by_scheduler: bool,
}

impl Extender {
    fn timeout(&self) -> Result<Duration> {
        let Some(text) = &self.http_timeout else { return Ok(TIMEOUT) };
        let given = go_duration(text).with_context(|| format!("httpTimeout: time: invalid duration {text:?}"))?;
        Ok(if given.is_zero() { TIMEOUT } else { given })
    }

    /// The certificates and the key, read from files where those are named. Data goes before files.
    fn tls(&self) -> Result<WebTls> {
        let given = self.tls_config.clone().unwrap_or_default();
        let material = |data: &str, file: &str, what: &str| -> Result<Option<String>> {
            if !data.is_empty() {
                let bytes = base64::engine::general_purpose::STANDARD.decode(data.trim()).with_context(|| format!("tlsConfig.{what}Data is no base64"))?;
                return Ok(Some(String::from_utf8(bytes).with_context(|| format!("tlsConfig.{what}Data is no PEM"))?));
            }
            if file.is_empty() {
                return Ok(None);
            }
            Ok(Some(std::fs::read_to_string(file).with_context(|| format!("tlsConfig.{what}File: cannot read {file}"))?))
        };
        let ca = material(&given.ca_data, &given.ca_file, "ca")?;
        ensure!(ca.is_none() || !given.insecure, "specifying a root certificates file with the insecure flag is not allowed");
        let certificate = match (material(&given.cert_data, &given.cert_file, "cert")?, material(&given.key_data, &given.key_file, "key")?) {
            (Some(chain), Some(key)) => Some((chain, key)),
            (None, None) => None,
            _ => bail!("tlsConfig: a certificate and its key must be given both"),
        };
        let insecure = given.insecure || (self.enable_https && ca.is_none());
        if insecure && self.url_prefix.starts_with("https:") {
            tracing::warn!("the certificate of the extender {} is not verified: tlsConfig names no CA", self.url_prefix);
        }
        Ok(WebTls { insecure, server_name: given.server_name, ca, certificate })
    }

    fn scheduler(&self) -> Result<scheduler::Extender> {
        Ok(scheduler::Extender {
            web: Web::new(&self.url_prefix, &self.tls()?, self.timeout()?)?,
            filter_verb: self.filter_verb.clone(),
            prioritize_verb: self.prioritize_verb.clone(),
            weight: self.weight,
            bind_verb: self.bind_verb.clone(),
            preempt_verb: self.preempt_verb.clone(),
            node_cache_capable: self.node_cache_capable,
            managed_resources: self.managed_resources.iter().map(|r| r.name.clone()).collect(),
            ignorable: self.ignorable,
        })
    }
}

/// Checks what upstream checks.
pub fn check(extenders: &[Extender]) -> Result<()> {
    let mut managed = BTreeSet::new();
    for (i, extender) in extenders.iter().enumerate() {
        let weight = extender.weight;
        ensure!(extender.prioritize_verb.is_empty() || weight > 0, "extenders[{i}].weight: Invalid value: {weight}: must have a positive weight applied to it");
        for (j, resource) in extender.managed_resources.iter().enumerate() {
            let name = &resource.name;
            let path = format!("extenders[{i}].managedResources[{j}].name: Invalid value: {name:?}");
            if let Some(wrong) = api::names::qualified_name(name).first() {
                bail!("{path}: {wrong}");
            }
            ensure!(api::names::is_extended_resource(name), "{path}: is an invalid extended resource name");
            ensure!(managed.insert(name), "{path}: duplicate extender managed resource name");
        }
        extender.timeout().with_context(|| format!("extenders[{i}]"))?;
    }
    let binders = extenders.iter().filter(|e| !e.bind_verb.is_empty()).count();
    ensure!(binders <= 1, "extenders: Invalid value: \"found {binders} extenders implementing bind\": only one extender can implement bind");
    Ok(())
}

/// Adds them to what the scheduler is told.
pub fn add(extenders: &[Extender], config: &mut scheduler::Config) -> Result<()> {
    let ignored = extenders.iter().flat_map(|e| &e.managed_resources).filter(|r| r.ignored_by_scheduler).map(|r| r.name.clone()).collect();
    let all = extenders.iter().enumerate().map(|(i, e)| e.scheduler().with_context(|| format!("extenders[{i}]"))).collect::<Result<_>>()?;
    config.extend(all, ignored);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::scheduler_config::File;
    use super::*;

    fn config(extenders: &str) -> Result<scheduler::Config> {
        File::parse(&format!("apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\nextenders:\n{extenders}"))?.scheduler()
    }

    #[test]
    fn extenders_are_taken_the_ignorable_last() {
        let config = config(
            "- urlPrefix: https://127.0.0.1:1/a/\n  filterVerb: filter\n  enableHTTPS: true\n  ignorable: true\n  httpTimeout: 100ms\n- urlPrefix: http://extender/b\n  prioritizeVerb: score\n  weight: 3\n  nodeCacheCapable: true\n  managedResources: [{name: example.com/gpu, ignoredByScheduler: true}, {name: example.com/disk}]\n",
        )
        .expect("a good file");
        let [second, first] = &config.extenders[..] else { panic!("two: {config:?}") };
        assert_eq!((second.web.url(), second.weight, second.node_cache_capable), ("http://extender/b", 3, true));
        assert_eq!((first.web.url(), first.filter_verb.as_str(), first.ignorable), ("https://127.0.0.1:1/a", "filter", true));
        assert_eq!(config.profiles[0].ignored_resources, BTreeSet::from(["example.com/gpu".to_string()]));
        assert_eq!(second.managed_resources.len(), 2);
    }

    #[test]
    fn bad_extenders_are_refused() {
        for (extenders, word) in [
            ("- urlPrefix: http://a\n  prioritizeVerb: p\n", "positive weight"),
            ("- urlPrefix: http://a\n  bindVerb: b\n- urlPrefix: http://b\n  bindVerb: b\n", "only one extender can implement bind"),
            ("- urlPrefix: http://a\n  managedResources: [{name: cpu}]\n", "invalid extended resource name"),
            ("- urlPrefix: http://a\n  managedResources: [{name: e.com/a}, {name: e.com/a}]\n", "duplicate"),
            ("- urlPrefix: http://a\n  httpTimeout: 5\n", "httpTimeout"),
            ("- urlPrefix: http://a\n  httpTimeout: fast\n", "invalid duration"),
            ("- urlPrefix: nowhere\n", "no http or https URL"),
            ("- urlPrefix: http://a\n  filter: x\n", "filter"),
            ("- urlPrefix: https://a\n  tlsConfig: {caData: AAAA, insecure: true}\n", "not allowed"),
            ("- urlPrefix: https://a\n  tlsConfig: {certFile: /nonexistent}\n", "/nonexistent"),
            ("- urlPrefix: https://a\n  tlsConfig: {caData: bm90aGluZw==}\n", "holds no certificate"),
        ] {
            let error = format!("{:#}", config(extenders).expect_err(extenders));
            assert!(error.contains(word), "{extenders}: {error}");
        }
    }
}
