//! `--patches`: files that change the KubeletConfiguration of this machine, named as upstream names them:
//! `kubeletconfiguration[SUFFIX][+TYPE].yaml`. What upstream's other targets are does not exist here.

use std::path::Path;

use serde_json::Value;

use crate::error::{Doing, Result, refused};
use crate::preflight::Findings;

/// The target that is written to a file here.
const KUBELET: &str = "kubeletconfiguration";
/// Upstream's others: static pods, and an add-on that is part of each node's process.
const OTHERS: [&str; 5] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "corednsdeployment"];

/// How a patch is applied.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Strategic,
    Merge,
    Json,
}

/// What a file's name says of it.
#[derive(Debug, PartialEq)]
enum Named {
    Kubelet(Kind),
    Elsewhere(&'static str),
    Ignored(String),
}

/// Patches of the KubeletConfiguration, in the order of their files.
#[derive(Debug, Default)]
pub struct Patches {
    kubelet: Vec<(String, Kind, Value)>,
    /// Files with targets that there are not here.
    elsewhere: Vec<(String, &'static str)>,
}

impl Patches {
    /// Reads a directory; without one there are none.
    pub fn read(dir: &str) -> Result<Patches> {
        let mut all = Patches::default();
        if dir.is_empty() {
            return Ok(all);
        }
        let said = || format!("could not list patch files for path {dir:?}");
        let mut files: Vec<_> = std::fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>).doing(said)?.iter().map(std::fs::DirEntry::path).collect();
        files.sort();
        for path in files.into_iter().filter(|p| !p.is_dir()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            match named(&name)? {
                Named::Ignored(why) => println!("[patches] Ignoring file {name:?}: {why}"),
                Named::Elsewhere(target) => all.elsewhere.push((name, target)),
                Named::Kubelet(kind) => all.add(&path, &name, kind)?,
            }
        }
        let names: Vec<&str> = all.kubelet.iter().map(|(name, ..)| name.as_str()).collect();
        println!("[patches] Found the following patch files: [{}]", names.join(" "));
        Ok(all)
    }

    fn add(&mut self, path: &Path, name: &str, kind: Kind) -> Result<()> {
        let text = crate::files::read(path)?;
        if text.is_empty() {
            println!("[patches] Ignoring empty file: {name:?}");
            return Ok(());
        }
        for part in text.split("\n---").filter(|p| !p.trim().is_empty()) {
            let patch: Value = serde_saphyr::from_str(part.trim_start_matches('-')).doing(|| format!("could not convert patch to JSON: {}", path.display()))?;
            self.kubelet.push((name.into(), kind, patch));
        }
        Ok(())
    }

    /// Tells of files that change nothing.
    pub fn check(&self, findings: &mut Findings) {
        for (file, target) in &self.elsewhere {
            let text = format!(
                "{file}: there is no {target} to patch: the control plane and its add-ons run in the node's own process, not as static pods; \
                 take the file out, and use extraArgs or the settings of knarr server for what it was to change"
            );
            findings.error("Patches", text);
        }
        if !self.kubelet.is_empty() {
            findings.warn("Patches", "patches of kubeletconfiguration change /var/lib/kubelet/config.yaml, which is for another kubelet in the place of knarr's: the node's own process does not read it");
        }
    }

    /// The KubeletConfiguration (YAML) with the patches in it.
    pub fn apply(&self, yaml: &str) -> Result<String> {
        if self.kubelet.is_empty() {
            return Ok(yaml.into());
        }
        let mut all: Value = serde_saphyr::from_str(yaml).doing(|| "the KubeletConfiguration is no YAML".into())?;
        for (file, kind, patch) in &self.kubelet {
            all = applied(&all, *kind, patch).doing(|| format!("could not apply patches to the KubeletConfiguration: {file}"))?;
            let word = match kind {
                Kind::Strategic => "application/strategic-merge-patch+json",
                Kind::Merge => "application/merge-patch+json",
                Kind::Json => "application/json-patch+json",
            };
            println!("[patches] Applied patch of type {word:?} to target {KUBELET:?}");
        }
        serde_saphyr::to_string(&all).doing(|| "writing the KubeletConfiguration".into())
    }
}

/// No list of a KubeletConfiguration is merged by a key, so that a strategic patch without directives is a merge patch.
fn applied(all: &Value, kind: Kind, patch: &Value) -> Result<Value> {
    let result = match kind {
        Kind::Json => api::patch::json_patch(all, patch),
        Kind::Strategic if directive(patch) => return refused("directives ($patch, $deleteFromPrimitiveList, …) are not known here: use +merge or +json"),
        Kind::Strategic | Kind::Merge => api::patch::merge_patch(all, patch),
    };
    match result {
        Ok(value) if value["kind"] == "KubeletConfiguration" => Ok(value),
        Ok(_) => refused("it would no longer be a KubeletConfiguration"),
        Err(status) => refused(status.message),
    }
}

fn directive(patch: &Value) -> bool {
    match patch {
        Value::Object(map) => map.iter().any(|(key, value)| key.starts_with('$') || directive(value)),
        Value::Array(all) => all.iter().any(directive),
        _ => false,
    }
}

/// Reads a file's name.
fn named(name: &str) -> Result<Named> {
    let Some(base) = [".json", ".yaml"].iter().find_map(|end| name.strip_suffix(end)).filter(|base| !base.is_empty()) else {
        return Ok(Named::Ignored("the file extension must be one of [json yaml]".into()));
    };
    let Some(target) = OTHERS.into_iter().chain([KUBELET]).find(|target| base.starts_with(target)) else {
        return Ok(Named::Ignored(format!("unknown target, must be one of [{} {KUBELET}]", OTHERS.join(" "))));
    };
    let kind = match base.split_once('+').map(|(_, kind)| kind) {
        None => Kind::Strategic,
        Some(kind) if kind.starts_with("strategic") => Kind::Strategic,
        Some(kind) if kind.starts_with("merge") => Kind::Merge,
        Some(kind) if kind.starts_with("json") => Kind::Json,
        Some(_) => return refused(format!("{name}: unknown or missing patch type after '+', must be one of [json merge strategic]")),
    };
    Ok(if target == KUBELET { Named::Kubelet(kind) } else { Named::Elsewhere(target) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_target_and_type() {
        assert_eq!(named("kubeletconfiguration.yaml").expect("good"), Named::Kubelet(Kind::Strategic));
        assert_eq!(named("kubeletconfiguration0+merge.json").expect("good"), Named::Kubelet(Kind::Merge));
        assert_eq!(named("kubeletconfiguration-a+json.yaml").expect("good"), Named::Kubelet(Kind::Json));
        assert_eq!(named("kube-apiserver0+merge.yaml").expect("good"), Named::Elsewhere("kube-apiserver"));
        for ignored in ["README.md", ".yaml", "kubelet.yaml"] {
            assert!(matches!(named(ignored), Ok(Named::Ignored(_))), "{ignored}");
        }
        assert!(named("etcd+xml.yaml").expect_err("bad").to_string().contains("must be one of [json merge strategic]"));
    }

    #[test]
    fn patches_are_applied_in_order() {
        let dir = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("kubeletconfiguration0.yaml", "maxPods: 50\n---\nclusterDNS: [10.0.0.10]\n");
        write("kubeletconfiguration1+json.json", r#"[{"op": "replace", "path": "/maxPods", "value": 60}]"#);
        write("kube-scheduler+merge.yaml", "a: 1");
        write("notes.txt", "x");
        let patches = Patches::read(&dir.path().display().to_string()).expect("read");
        let after: Value = serde_saphyr::from_str(&patches.apply("kind: KubeletConfiguration\nmaxPods: 110\nclusterDNS: [10.96.0.10]\n").expect("applied")).expect("YAML");
        assert_eq!((&after["maxPods"], &after["clusterDNS"]), (&60.into(), &serde_json::json!(["10.0.0.10"])));
        let mut findings = Findings::default();
        patches.check(&mut findings);
        assert_eq!(findings.0.iter().map(|f| f.warning).collect::<Vec<_>>(), [false, true]);
        assert!(findings.0[0].text.contains("there is no kube-scheduler to patch"));
        write("kubeletconfiguration2.yaml", "registerWithTaints: [{$patch: replace}]");
        let error = Patches::read(&dir.path().display().to_string()).expect("read").apply("kind: KubeletConfiguration").expect_err("a directive").chain();
        assert!(error.contains("directives"), "{error}");
        assert!(Patches::read("/nowhere").expect_err("no directory").chain().contains("could not list patch files for path \"/nowhere\""));
        assert_eq!(Patches::read("").expect("none").apply("a: 1\n").expect("the same"), "a: 1\n");
    }
}
