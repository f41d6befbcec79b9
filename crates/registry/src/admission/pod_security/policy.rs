//! Which standards a namespace asks for: levels and versions, from its labels or by default.

use std::fmt;

use api::field::{FieldError, Path};
use serde_json::Value;

/// How much a pod may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub fn parse(text: &str) -> Result<Level, &'static str> {
        match text {
            "privileged" => Ok(Level::Privileged),
            "baseline" => Ok(Level::Baseline),
            "restricted" => Ok(Level::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

/// The standards of Kubernetes `1.MINOR`, or the newest there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

pub const LATEST: Version = Version(u32::MAX);

impl Version {
    pub fn parse(text: &str) -> Result<Version, &'static str> {
        const WRONG: &str = "must be \"latest\" or \"v1.x\"";
        if text == "latest" {
            return Ok(LATEST);
        }
        let minor = text.strip_prefix("v1.").filter(|m| m.bytes().all(|b| b.is_ascii_digit()) && (*m == "0" || !m.starts_with('0')));
        minor.and_then(|m| m.parse().ok()).filter(|m| *m < u32::MAX).map(Version).ok_or(WRONG)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

impl Standard {
    pub const PRIVILEGED: Standard = Standard { level: Level::Privileged, version: LATEST };

    /// Whether they come to the same.
    fn is_like(self, other: Standard) -> bool {
        self == other || self.level == Level::Privileged && other.level == Level::Privileged
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            LATEST => write!(f, "{level}:latest"),
            Version(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

/// What is refused, what the audit log is told, and what is warned about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl Policy {
    pub const PRIVILEGED: Policy = Policy { enforce: Standard::PRIVILEGED, audit: Standard::PRIVILEGED, warn: Standard::PRIVILEGED };

    /// That of a namespace with these labels, and what is wrong with them: a level that is none is taken strictly where it
    /// is enforced, and asks for nothing elsewhere.
    pub fn of(labels: &Value, defaults: Policy) -> (Policy, Vec<FieldError>) {
        let (mut policy, mut errors) = (defaults, Vec::new());
        let label = |key: &str| labels.get(format!("{PREFIX}{key}")).and_then(Value::as_str);
        let mut note = |key: &str, value: &str, why: &'static str| {
            errors.push(FieldError::invalid(&Path::new("metadata").child("labels").key(&format!("{PREFIX}{key}")), value, why));
        };
        let mut enforced = false;
        for (mode, otherwise) in [("enforce", Level::Restricted), ("audit", Level::Privileged), ("warn", Level::Privileged)] {
            let standard = match mode {
                "enforce" => &mut policy.enforce,
                "audit" => &mut policy.audit,
                _ => &mut policy.warn,
            };
            if let Some(text) = label(mode) {
                let level = Level::parse(text);
                enforced |= mode == "enforce" && level.is_ok();
                standard.level = level.unwrap_or_else(|why| {
                    note(mode, text, why);
                    otherwise
                });
            }
            let key = format!("{mode}-version");
            if let Some(text) = label(&key) {
                standard.version = Version::parse(text).unwrap_or_else(|why| {
                    note(&key, text, why);
                    LATEST
                });
            }
        }
        // what is refused is also worth a warning, where only templates are written
        if label("warn").is_none() && enforced && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label("warn-version").is_none() {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|s| s.level == Level::Privileged)
    }

    /// What is said of a namespace that asks for this policy and is exempt.
    pub fn ignored(&self, namespace: &str, labels: &Value, defaults: &Policy) -> Option<String> {
        let same = self.enforce.is_like(defaults.enforce) && self.audit.is_like(defaults.audit) && self.warn.is_like(defaults.warn);
        if self.is_privileged() || same {
            return None;
        }
        let asked = |mode: &str| [mode.to_string(), format!("{mode}-version")].iter().any(|key| labels.get(format!("{PREFIX}{key}")).is_some());
        let modes = [("enforce", self.enforce), ("audit", self.audit), ("warn", self.warn)];
        let told: Vec<String> =
            modes.iter().filter(|(mode, s)| s.level != Level::Privileged && asked(mode)).map(|(mode, s)| format!("{mode}={s}")).collect();
        Some(format!("namespace {namespace:?} is exempt from Pod Security, and the policy ({}) will be ignored", told.join(", ")))
    }
}

pub const PREFIX: &str = "pod-security.kubernetes.io/";

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn labels_make_a_policy() {
        let of = |labels: Value| {
            let (policy, errors) = Policy::of(&labels, Policy::PRIVILEGED);
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            (format!("{} {} {}", policy.enforce, policy.audit, policy.warn), errors.join("; "))
        };
        assert_eq!(of(Value::Null).0, "privileged:latest privileged:latest privileged:latest");
        // a warning comes with what is enforced
        let enforced = json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/enforce-version": "v1.24"});
        assert_eq!(of(enforced).0, "baseline:v1.24 privileged:latest baseline:v1.24");
        let lenient = json!({"pod-security.kubernetes.io/enforce": "restricted", "pod-security.kubernetes.io/warn": "privileged"});
        assert_eq!(of(lenient).0, "restricted:latest privileged:latest privileged:latest");
        let wrong = json!({"pod-security.kubernetes.io/enforce": "strict", "pod-security.kubernetes.io/audit": "strict", "pod-security.kubernetes.io/warn-version": "v1.01"});
        let (policy, errors) = of(wrong);
        assert_eq!(policy, "restricted:latest privileged:latest privileged:latest");
        assert_eq!(
            errors,
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": must be one of privileged, baseline, restricted; \
             metadata.labels[pod-security.kubernetes.io/audit]: Invalid value: \"strict\": must be one of privileged, baseline, restricted; \
             metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\""
        );
        assert_eq!(Version::parse("v1.0"), Ok(Version(0)));
        for wrong in ["v1.", "v2.3", "1.3", "v1.+3", "v1.99999999999"] {
            assert!(Version::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_exempt_namespace_is_told_that_its_labels_do_nothing() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline"});
        let policy = Policy::of(&labels, Policy::PRIVILEGED).0;
        assert_eq!(
            policy.ignored("a", &labels, &Policy::PRIVILEGED).unwrap(),
            "namespace \"a\" is exempt from Pod Security, and the policy (enforce=baseline:latest) will be ignored"
        );
        assert_eq!(policy.ignored("a", &labels, &policy), None);
    }
}
