//! Which of the built-in groups, versions and resources are served: upstream's `--runtime-config`.

use std::collections::{BTreeMap, BTreeSet};

use api::discovery::GroupEntry;

/// Versions that upstream knows, serves only when told to, and are not there here.
const UNSERVED: &[(&str, &[&str])] = &[
    ("admissionregistration.k8s.io", &["v1alpha1", "v1beta1"]),
    ("certificates.k8s.io", &["v1alpha1", "v1beta1"]),
    ("coordination.k8s.io", &["v1alpha2", "v1beta1"]),
    ("internal.apiserver.k8s.io", &["v1alpha1"]),
    ("networking.k8s.io", &["v1beta1"]),
    ("resource.k8s.io", &["v1alpha3", "v1beta1", "v1beta2"]),
    ("scheduling.k8s.io", &["v1alpha2"]),
    ("storage.k8s.io", &["v1beta1"]),
    ("storagemigration.k8s.io", &["v1beta1"]),
];
/// All versions, those that are stable, and the others, in the order in which they count.
const MATCHERS: [(&str, fn(&str) -> bool); 4] = [("api/all", |_| true), ("api/ga", |v| stage(v) == Some("")), ("api/beta", |v| stage(v) == Some("beta")), ("api/alpha", |v| stage(v) == Some("alpha"))];

/// `v1`: "", `v1beta2`: "beta".
fn stage(version: &str) -> Option<&str> {
    let rest = version.strip_prefix('v')?.trim_start_matches(|c: char| c.is_ascii_digit());
    let word = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    (word.is_empty() == rest.is_empty()).then_some(word)
}

/// What is served, and what is not.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Enablement {
    /// Versions that are not.
    versions: BTreeSet<(String, String)>,
    /// Resources that have been named, which counts before their versions.
    resources: BTreeMap<(String, String, String), bool>,
    /// What was asked for that is not there, for the log.
    pub absent: Vec<String>,
}

impl Enablement {
    /// Reads `key=value` pairs: keys are `api/all`, `api/ga`, `api/beta`, `api/alpha`, `group/version` and
    /// `group/version/resource`. What is wrong is said in upstream's words.
    pub fn from_pairs(pairs: &BTreeMap<String, String>) -> Result<Enablement, String> {
        if pairs.len() == 1 && pairs.get("api/all").is_some_and(|v| v == "false") {
            return Err("invalid key with only api/all=false".into());
        }
        let mut versions: BTreeMap<(String, String), bool> = BTreeMap::new();
        for group in api::resources::groups() {
            versions.extend(group.versions.iter().map(|v| ((group.name.to_owned(), (*v).to_owned()), true)));
        }
        let absent: BTreeSet<(String, String)> = UNSERVED.iter().flat_map(|(group, all)| all.iter().map(|v| ((*group).to_owned(), (*v).to_owned()))).collect();
        versions.extend(absent.iter().cloned().map(|v| (v, false)));
        let mut named = Vec::new();
        let mut unknown = Vec::new();
        for key in pairs.keys().filter(|key| MATCHERS.iter().all(|(name, _)| name != key)) {
            let parts: Vec<&str> = key.split('/').collect();
            let [group, version, resource @ ..] = parts.as_slice() else { return Err(format!("runtime-config invalid key {key}")) };
            if resource.len() > 1 {
                return Err(format!("runtime-config invalid key {key}"));
            }
            if !versions.keys().any(|(known, _)| known == group) {
                unknown.push(*group);
            }
            named.push((key, (group.to_string(), version.to_string()), resource.first().copied()));
        }
        if !unknown.is_empty() {
            return Err(format!("unknown api groups {}", unknown.join(",")));
        }
        for (name, matches) in MATCHERS {
            let on = match pairs.get(name).map(String::as_str) {
                None => continue,
                Some("true") => true,
                Some("false") => false,
                Some(other) => return Err(format!("invalid value {name}={other}")),
            };
            versions.iter_mut().filter(|((_, version), _)| matches(version)).for_each(|(_, is)| *is = on);
        }
        let mut resources = BTreeMap::new();
        for (key, version, resource) in named {
            if !versions.contains_key(&version) {
                return Err(format!("group version {} that has not been registered", api::resources::api_version(&version.0, &version.1)));
            }
            let on = switch(key, &pairs[key])?;
            match resource {
                None => drop(versions.insert(version, on)),
                Some(resource) if resource.to_lowercase() != resource => {
                    return Err(format!("invalid key {key}: group/version/resource and resource is always lowercase plural, not {resource:?}"));
                }
                Some(resource) => drop(resources.insert((version.0, version.1, resource.to_owned()), on)),
            }
        }
        let asked = |v: &(String, String)| versions[v] || resources.iter().any(|((g, version, _), on)| *on && (g, version) == (&v.0, &v.1));
        let missed = absent.iter().filter(|v| asked(v)).map(|(group, version)| api::resources::api_version(group, version)).collect();
        let off = versions.into_iter().filter(|(v, on)| !on && !absent.contains(v)).map(|(v, _)| v).collect();
        Ok(Enablement { versions: off, resources, absent: missed })
    }

    /// Whether a resource is served.
    pub fn serves(&self, group: &str, version: &str, plural: &str) -> bool {
        if self.versions.is_empty() && self.resources.is_empty() {
            return true;
        }
        let key = |text: &str| text.to_owned();
        match self.resources.get(&(key(group), key(version), key(plural))) {
            Some(on) => *on,
            None => !self.versions.contains(&(key(group), key(version))),
        }
    }

    /// Whether nothing of a version is served: `api/v1` or `apis/group/version`.
    pub fn is_off(&self, path: &str) -> bool {
        let named = path.strip_prefix("apis/").and_then(|p| p.split_once('/'));
        let (group, version) = named.unwrap_or(("", path.strip_prefix("api/").unwrap_or(path)));
        let is = |(g, v): (&String, &String)| g == group && v == version;
        self.versions.iter().any(|(g, v)| is((g, v))) && !self.resources.iter().any(|((g, v, _), on)| *on && is((g, v)))
    }

    /// Leaves what is served of the built-in groups.
    pub fn retain(&self, groups: &mut Vec<GroupEntry>) {
        for group in groups.iter_mut() {
            for version in &mut group.versions {
                version.resources.retain(|r| self.serves(&group.name, &version.version, &r.plural));
            }
            group.versions.retain(|v| !v.resources.is_empty());
        }
        groups.retain(|g| !g.versions.is_empty());
    }
}

/// Nothing is yes.
fn switch(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("invalid value of {key}: {other}, err: strconv.ParseBool: parsing {other:?}: invalid syntax")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Enablement, String> {
        Enablement::from_pairs(&text.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(k, v)| (k.into(), v.into())).collect())
    }

    #[test]
    fn the_nearest_word_counts() {
        let all = Enablement::default();
        assert!(all.serves("batch", "v1", "jobs"));
        let some = read("batch/v1=false,batch/v1/jobs=true,apps/v1/daemonsets=false").unwrap();
        let on = |group: &str, plural: &str| some.serves(group, "v1", plural);
        assert!(on("batch", "jobs") && !on("batch", "cronjobs") && !on("apps", "daemonsets") && on("apps", "deployments") && on("", "pods"));
        assert!(!some.is_off("apis/batch/v1") && read("batch/v1=0").unwrap().is_off("apis/batch/v1"));
        let few = read("api/all=false,/v1=true,apps/v1").unwrap();
        assert!(few.serves("", "v1", "pods") && few.serves("apps", "v1", "deployments") && !few.serves("batch", "v1", "jobs"));
        assert!(few.is_off("apis/batch/v1") && !few.is_off("api/v1") && read("api/ga=false").unwrap().is_off("api/v1"));
        assert!(!read("api/ga=false").unwrap().serves("", "v1", "pods") && read("api/beta=false").unwrap().serves("", "v1", "pods"));
        let mut groups = api::discovery::built_in();
        some.retain(&mut groups);
        let plurals = |name: &str| groups.iter().find(|g| g.name == name).unwrap().versions[0].resources.iter().map(|r| r.plural.as_str()).collect::<Vec<_>>();
        assert!(plurals("batch") == ["jobs"] && !plurals("apps").contains(&"daemonsets"));
    }

    #[test]
    fn what_is_not_there_is_told() {
        assert_eq!(read("resource.k8s.io/v1beta1=true,storage.k8s.io/v1beta1/volumeattributesclasses").unwrap().absent, ["resource.k8s.io/v1beta1", "storage.k8s.io/v1beta1"]);
        assert_eq!(read("api/alpha=true").unwrap().absent.len(), 6);
        assert!(read("api/beta=false,batch/v1").unwrap().absent.is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        for (text, why) in [
            ("api/all=false", "invalid key with only api/all=false"),
            ("api/all", "invalid value api/all="),
            ("v1=true", "runtime-config invalid key v1"),
            ("a/b/c/d", "runtime-config invalid key a/b/c/d"),
            ("x.io/v1,y.io/v1", "unknown api groups x.io,y.io"),
            ("batch/v7", "group version batch/v7 that has not been registered"),
            ("batch/v1=maybe", "invalid value of batch/v1: maybe, err: strconv.ParseBool: parsing \"maybe\": invalid syntax"),
            ("batch/v1/Jobs", "invalid key batch/v1/Jobs: group/version/resource and resource is always lowercase plural, not \"Jobs\""),
        ] {
            assert_eq!(read(text).unwrap_err(), why, "{text}");
        }
    }
}
