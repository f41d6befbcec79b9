//! How plug-ins are configured: by flags of their own, and by an AdmissionConfiguration
//! (https://kubernetes.io/docs/reference/config-api/apiserver-config.v1/).

use std::collections::{BTreeMap, BTreeSet};

use api::field::{FieldError, Path};
use serde_json::Value;

use super::event_rate_limit::{Limit, SCOPES, Scope};
use super::pod_security::{Exempt, LATEST, Level, PodSecurity, Policy, Standard, Version};
use crate::config_file::{Shape, read, yaml};
use crate::util::{items, map, number, text, texts};

/// What the plug-ins are told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Seconds for which pods stay on a node that is not ready.
    pub not_ready_seconds: i64,
    /// And on one that cannot be reached.
    pub unreachable_seconds: i64,
    pub(super) pod_security: PodSecurity,
    pub(super) events: Vec<Limit>,
    pub(super) node_selectors: BTreeMap<String, String>,
    pub(super) default_tolerations: Vec<Value>,
    pub(super) allowed_tolerations: Vec<Value>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            not_ready_seconds: 300,
            unreachable_seconds: 300,
            pod_security: PodSecurity::default(),
            events: Vec::new(),
            node_selectors: BTreeMap::new(),
            default_tolerations: Vec::new(),
            allowed_tolerations: Vec::new(),
        }
    }
}

static CONFIGURATION: [(&str, Shape); 1] =
    [("plugins", Shape::List(&Shape::Object(&[("name", Shape::Text), ("path", Shape::Text), ("configuration", Shape::Any)])))];
static POD_SECURITY: [(&str, Shape); 2] = [
    (
        "defaults",
        Shape::Object(&[
            ("enforce", Shape::Text),
            ("enforce-version", Shape::Text),
            ("audit", Shape::Text),
            ("audit-version", Shape::Text),
            ("warn", Shape::Text),
            ("warn-version", Shape::Text),
        ]),
    ),
    (
        "exemptions",
        Shape::Object(&[("usernames", Shape::List(&Shape::Text)), ("namespaces", Shape::List(&Shape::Text)), ("runtimeClasses", Shape::List(&Shape::Text))]),
    ),
];
static EVENTS: [(&str, Shape); 1] =
    [("limits", Shape::List(&Shape::Object(&[("type", Shape::Text), ("qps", Shape::Number), ("burst", Shape::Number), ("cacheSize", Shape::Number)])))];
static TOLERATIONS: [(&str, Shape); 2] = [("default", Shape::List(&Shape::Any)), ("whitelist", Shape::List(&Shape::Any))];

impl Settings {
    /// Takes over what an AdmissionConfiguration says; `file` reads the other files that it names.
    pub fn configure(&mut self, text_of_file: &str, file: &dyn Fn(&str) -> Result<String, String>) -> Result<(), String> {
        let versions = ["apiserver.config.k8s.io/v1", "apiserver.config.k8s.io/v1alpha1", "apiserver.k8s.io/v1alpha1"];
        let configuration = read(yaml(text_of_file)?, &versions, "AdmissionConfiguration", &CONFIGURATION)?;
        for plugin in items(&configuration, "/plugins") {
            let (name, path) = (text(plugin, "/name"), text(plugin, "/path"));
            if !super::is_known(name) {
                return Err(format!("the configuration of plug-in {name:?}: there is no such plug-in"));
            }
            let own = match plugin.get("configuration").filter(|c| !c.is_null()) {
                Some(own) => own.clone(),
                None if path.is_empty() => continue,
                None => yaml(&file(path)?)?,
            };
            self.plugin(name, own).map_err(|why| format!("failed to initialize admission plugin {name:?}: {why}"))?;
        }
        Ok(())
    }

    fn plugin(&mut self, name: &str, own: Value) -> Result<(), String> {
        match name {
            "PodSecurity" => {
                let group = "pod-security.admission.config.k8s.io";
                let versions = [format!("{group}/v1"), format!("{group}/v1beta1"), format!("{group}/v1alpha1")];
                let versions: Vec<&str> = versions.iter().map(String::as_str).collect();
                self.pod_security = pod_security(&read(own, &versions, "PodSecurityConfiguration", &POD_SECURITY)?)?;
            }
            "EventRateLimit" => self.events = limits(&read(own, &["eventratelimit.admission.k8s.io/v1alpha1"], "Configuration", &EVENTS)?)?,
            "PodTolerationRestriction" => {
                let own = read(own, &["podtolerationrestriction.admission.k8s.io/v1alpha1"], "Configuration", &TOLERATIONS)?;
                self.default_tolerations = items(&own, "/default").cloned().collect();
                self.allowed_tolerations = items(&own, "/whitelist").cloned().collect();
            }
            "PodNodeSelector" => {
                let selectors = map(&own, "/podNodeSelectorPluginConfig").ok_or("podNodeSelectorPluginConfig is missing")?;
                let pair = |(namespace, selector): (&String, &Value)| Some((namespace.clone(), selector.as_str()?.to_owned()));
                self.node_selectors = selectors.iter().filter_map(pair).collect();
            }
            _ => return Err("it takes no configuration here: leave it out".into()),
        }
        Ok(())
    }
}

fn told(errors: Vec<FieldError>) -> Result<(), String> {
    if errors.is_empty() { Ok(()) } else { Err(api::field::aggregate(errors.iter().map(ToString::to_string))) }
}

fn pod_security(own: &Value) -> Result<PodSecurity, String> {
    let mut errors = Vec::new();
    let given = |key: &str, otherwise: &'static str| own["defaults"].get(key).and_then(Value::as_str).filter(|t| !t.is_empty()).unwrap_or(otherwise).to_owned();
    let mut standard = |mode: &str| {
        let mut note = |key: &str, value: &str, why: &'static str| errors.push(FieldError::invalid(&Path::new("defaults").child(key), value, why));
        let level = given(mode, "privileged");
        let level = Level::parse(&level).unwrap_or_else(|why| {
            note(mode, &level, why);
            Level::Restricted
        });
        let key = format!("{mode}-version");
        let version = given(&key, "latest");
        let version = Version::parse(&version).unwrap_or_else(|why| {
            note(&key, &version, why);
            LATEST
        });
        Standard { level, version }
    };
    let defaults = Policy { enforce: standard("enforce"), warn: standard("warn"), audit: standard("audit") };
    let mut exempt = |key: &str, wrong: fn(&str) -> Vec<String>| {
        let (mut seen, mut all) = (BTreeSet::new(), Vec::new());
        for (i, name) in texts(own, &format!("/exemptions/{key}")).enumerate() {
            let at = Path::new("exemptions").child(key).index(i);
            let why = wrong(name);
            if !why.is_empty() {
                errors.push(FieldError::invalid(&at, name, why.join(", ")));
            } else if !seen.insert(name) {
                errors.push(FieldError::duplicate(&at, name));
            }
            all.push(name.to_owned());
        }
        all
    };
    let exempt = Exempt {
        namespaces: exempt("namespaces", api::names::dns1123_label),
        runtime_classes: exempt("runtimeClasses", api::names::dns1123_subdomain),
        users: exempt("usernames", |name| if name.is_empty() { vec!["username must not be empty".into()] } else { Vec::new() }),
    };
    told(errors)?;
    Ok(PodSecurity { defaults, exempt })
}

fn limits(own: &Value) -> Result<Vec<Limit>, String> {
    const DEFAULT_CACHE: usize = 4096;
    let (at, mut errors, mut limits) = (Path::new("limits"), Vec::new(), Vec::new());
    for (i, limit) in items(own, "/limits").enumerate() {
        let at = at.index(i);
        let mut positive = |key: &str| {
            let given = number(limit, &format!("/{key}")).unwrap_or(0);
            let good = u32::try_from(given).ok().filter(|n| *n > 0 && *n <= i32::MAX as u32);
            good.unwrap_or_else(|| {
                errors.push(FieldError::invalid(&at.child(key), given, "must be positive"));
                1
            })
        };
        let (burst, qps) = (positive("burst"), positive("qps"));
        let kind = text(limit, "/type");
        let scope = SCOPES.iter().find(|(name, _)| *name == kind).map(|(_, scope)| *scope);
        if scope.is_none() {
            errors.push(FieldError::not_supported(&at.child("type"), kind, &SCOPES.map(|(name, _)| name)));
        }
        let size = number(limit, "/cacheSize").unwrap_or(0);
        if size < 0 && scope != Some(Scope::Server) {
            errors.push(FieldError::invalid(&at.child("cacheSize"), size, "must not be negative"));
        }
        let cache_size = usize::try_from(size).ok().filter(|s| *s > 0).unwrap_or(DEFAULT_CACHE);
        limits.push(Limit { scope: scope.unwrap_or(Scope::Server), qps, burst, cache_size });
    }
    if limits.is_empty() {
        errors.push(FieldError::invalid(&at, Value::Array(Vec::new()), "must not be empty"));
    }
    told(errors)?;
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(plugins: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let file = |path: &str| if path == "limits.yaml" { Ok("{apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration, limits: [{type: Server, qps: 5, burst: 10}]}".into()) } else { Err(format!("no file {path}")) };
        settings.configure(&format!("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n{plugins}"), &file)?;
        Ok(settings)
    }

    #[test]
    fn plugins_are_configured_in_place_and_by_files() {
        let settings = configured(
            "- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    kind: PodSecurityConfiguration\n    \
             defaults: {enforce: baseline, enforce-version: v1.30, warn: restricted}\n    exemptions: {namespaces: [kube-system], usernames: [ann]}\n\
             - name: EventRateLimit\n  path: limits.yaml\n- name: Priority\n\
             - name: PodNodeSelector\n  configuration: {podNodeSelectorPluginConfig: {clusterDefaultNodeSelector: a=b}}\n",
        )
        .unwrap();
        let PodSecurity { defaults, exempt } = settings.pod_security;
        assert_eq!([defaults.enforce, defaults.audit, defaults.warn].map(|s| s.to_string()), ["baseline:v1.30", "privileged:latest", "restricted:latest"]);
        assert_eq!((exempt.namespaces, exempt.users), (vec!["kube-system".to_string()], vec!["ann".to_string()]));
        assert_eq!(settings.events, [Limit { scope: Scope::Server, qps: 5, burst: 10, cache_size: 4096 }]);
        assert_eq!(settings.node_selectors["clusterDefaultNodeSelector"], "a=b");
    }

    #[test]
    fn mistakes_are_told_by_plugin_and_path() {
        let wrong = |plugins: &str| configured(plugins).unwrap_err();
        assert_eq!(wrong("- name: Nonsense"), "the configuration of plug-in \"Nonsense\": there is no such plug-in");
        assert_eq!(wrong("- name: EventRateLimit\n  path: gone.yaml"), "no file gone.yaml");
        assert_eq!(wrong("- name: Priority\n  configuration: {}"), "failed to initialize admission plugin \"Priority\": it takes no configuration here: leave it out");
        assert!(wrong("- name: PodSecurity\n  configuration: {kind: X, apiVersion: v1}").contains("no kind \"X\" is registered for version \"v1\""));
        let security = "- name: PodSecurity\n  configuration:\n    apiVersion: pod-security.admission.config.k8s.io/v1\n    kind: PodSecurityConfiguration\n    ";
        let all = wrong(&format!("{security}defaults: {{enforce: high, warn-version: v2}}\n    exemptions: {{namespaces: [a, a]}}"));
        for part in ["defaults.enforce: Invalid value: \"high\": must be one of privileged, baseline, restricted", "defaults.warn-version: Invalid value: \"v2\"", "exemptions.namespaces[1]: Duplicate value: \"a\""] {
            assert!(all.contains(part), "{part} in {all}");
        }
        let events = wrong("- name: EventRateLimit\n  configuration: {apiVersion: eventratelimit.admission.k8s.io/v1alpha1, kind: Configuration, limits: [{type: All, qps: 0, burst: 1, cacheSize: -1}]}");
        for part in ["limits[0].qps: Invalid value: 0: must be positive", "limits[0].type: Unsupported value: \"All\": supported values: \"Namespace\", \"Server\", \"SourceAndObject\", \"User\"", "limits[0].cacheSize: Invalid value: -1: must not be negative"] {
            assert!(events.contains(part), "{part} in {events}");
        }
        assert!(wrong("- name: PodSecurity\n  colour: red").contains("unknown field \"plugins[0].colour\""));
    }
}
