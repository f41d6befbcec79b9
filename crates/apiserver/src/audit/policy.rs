//! The audit policy: what is recorded of which requests (https://kubernetes.io/docs/tasks/debug/debug-cluster/audit/).
//! Reading the file, and deciding; nothing here knows of events.
use api::field::{FieldError, Path};
use serde_json::{Value, json};

use crate::authz::AuthzAttributes;

/// How much is recorded of a request; each level has what those before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub(super) const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    pub fn as_str(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// How far a request has got when an event is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    /// Of requests that stay open: the head of the answer is out.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    const ALL: [Stage; 4] = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

/// A set of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages(u8);

impl Stages {
    fn of(names: &[String]) -> Stages {
        let with = |set: u8, stage: Stage| if names.iter().any(|n| n == stage.as_str()) { set | 1 << stage as u8 } else { set };
        Stages(Stage::ALL.into_iter().fold(0, with))
    }

    pub fn has(self, stage: Stage) -> bool {
        self.0 & 1 << stage as u8 != 0
    }
}

/// What is recorded of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    /// Stages of which no event is made.
    pub omit_stages: Stages,
    /// Objects are recorded without their managedFields.
    pub omit_managed_fields: bool,
}

/// A policy; the first of its rules that covers a request decides.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    rules: Vec<Rule>,
    omit_stages: Vec<String>,
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default)]
struct Rule {
    level: String,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    urls: Vec<String>,
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
    verdict: Verdict,
}

#[derive(Clone, Debug, Default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// Why a text is no policy.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("failed decoding: {0}")]
    Syntax(String),
    #[error("failed decoding: no kind {kind:?} is registered for version {version:?}")]
    Kind { kind: String, version: String },
    #[error("unknown group version field audit.k8s.io/__internal, Kind=Policy in policy")]
    NoVersion,
    #[error("{}", api::field::aggregate(.0.iter().map(ToString::to_string)))]
    Invalid(Vec<FieldError>),
    #[error("loaded illegal policy with 0 rules")]
    Empty,
}

impl Policy {
    /// Reads a policy, YAML or JSON. What it has that is unknown is warned of, and passed over.
    pub fn from_text(text: &str) -> Result<Policy, PolicyError> {
        let value: Value = serde_saphyr::from_str(text).map_err(|e| PolicyError::Syntax(e.to_string()))?;
        let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_string();
        let (kind, version) = (word("kind"), word("apiVersion"));
        if kind.is_empty() && version.is_empty() {
            return Err(PolicyError::NoVersion);
        }
        if kind != "Policy" || version != "audit.k8s.io/v1" {
            return Err(PolicyError::Kind { kind, version });
        }
        let mut reader = Reader::default();
        let policy = reader.policy(&value)?;
        for field in reader.unknown {
            tracing::warn!(field, "the audit policy has an unknown field, which means nothing");
        }
        let errors = policy.mistakes();
        if !errors.is_empty() {
            return Err(PolicyError::Invalid(errors));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        Ok(policy)
    }

    /// What to record of a request. Where no rule covers it, nothing.
    pub fn judge(&self, request: &AuthzAttributes) -> Verdict {
        match self.rules.iter().find(|r| r.covers(request)) {
            Some(rule) => rule.verdict,
            None => Verdict { level: Level::None, omit_stages: Stages::of(&self.omit_stages), omit_managed_fields: self.omit_managed_fields },
        }
    }

    fn mistakes(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        stages(&self.omit_stages, &Path::new("omitStages"), &mut errors);
        for (i, rule) in self.rules.iter().enumerate() {
            rule.mistakes(&Path::new("rules").index(i), &mut errors);
        }
        errors
    }
}

/// Makes a policy of a tree.
#[derive(Default)]
struct Reader {
    /// Fields that nobody knows, by path.
    unknown: Vec<String>,
}

impl Reader {
    fn policy(&mut self, value: &Value) -> Result<Policy, PolicyError> {
        self.only(value, "", &["kind", "apiVersion", "metadata", "rules", "omitStages", "omitManagedFields"])?;
        let omit_stages = texts(value, "omitStages", "")?;
        let omit_managed_fields = flag(value, "omitManagedFields", "")?.unwrap_or(false);
        let mut rules = Vec::new();
        for (i, rule) in list(value, "rules", "")?.iter().enumerate() {
            let mut rule = self.rule(rule, &format!("rules[{i}]"))?;
            let stages: Vec<String> = omit_stages.iter().chain(&rule.omit_stages).cloned().collect();
            rule.verdict = Verdict {
                level: Level::ALL.into_iter().find(|l| l.as_str() == rule.level).unwrap_or_default(),
                omit_stages: Stages::of(&stages),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(omit_managed_fields),
            };
            rules.push(rule);
        }
        Ok(Policy { rules, omit_stages, omit_managed_fields })
    }

    fn rule(&mut self, value: &Value, at: &str) -> Result<Rule, PolicyError> {
        let known = ["level", "users", "userGroups", "verbs", "resources", "namespaces", "nonResourceURLs", "omitStages", "omitManagedFields"];
        self.only(value, at, &known)?;
        let mut resources = Vec::new();
        for (i, entry) in list(value, "resources", at)?.iter().enumerate() {
            let at = format!("{at}.resources[{i}]");
            self.only(entry, &at, &["group", "resources", "resourceNames"])?;
            resources.push(Resources {
                group: word(entry, "group", &at)?,
                resources: texts(entry, "resources", &at)?,
                names: texts(entry, "resourceNames", &at)?,
            });
        }
        Ok(Rule {
            level: word(value, "level", at)?,
            users: texts(value, "users", at)?,
            user_groups: texts(value, "userGroups", at)?,
            verbs: texts(value, "verbs", at)?,
            resources,
            namespaces: texts(value, "namespaces", at)?,
            urls: texts(value, "nonResourceURLs", at)?,
            omit_stages: texts(value, "omitStages", at)?,
            omit_managed_fields: flag(value, "omitManagedFields", at)?,
            verdict: Verdict::default(),
        })
    }

    fn only(&mut self, value: &Value, at: &str, known: &[&str]) -> Result<(), PolicyError> {
        let Some(map) = value.as_object() else { return Err(unlike(at, "an object")) };
        let dot = if at.is_empty() { "" } else { "." };
        self.unknown.extend(map.keys().filter(|k| !known.contains(&k.as_str())).map(|k| format!("{at}{dot}{k}")));
        Ok(())
    }
}

fn unlike(at: &str, what: &str) -> PolicyError {
    PolicyError::Syntax(format!("{at} is not {what}"))
}

/// A field, unless it is not there or null, and its path.
fn field<'a>(value: &'a Value, name: &str, at: &str) -> Option<(&'a Value, String)> {
    let found = value.get(name).filter(|v| !v.is_null())?;
    Some((found, if at.is_empty() { name.to_string() } else { format!("{at}.{name}") }))
}

fn list<'a>(value: &'a Value, name: &str, at: &str) -> Result<&'a [Value], PolicyError> {
    match field(value, name, at) {
        None => Ok(&[]),
        Some((found, at)) => found.as_array().map(Vec::as_slice).ok_or_else(|| unlike(&at, "a list")),
    }
}

fn texts(value: &Value, name: &str, at: &str) -> Result<Vec<String>, PolicyError> {
    let text = |v: &Value| v.as_str().map(str::to_string).ok_or_else(|| unlike(&format!("an item of {at}.{name}"), "a string"));
    list(value, name, at)?.iter().map(text).collect()
}

fn word(value: &Value, name: &str, at: &str) -> Result<String, PolicyError> {
    match field(value, name, at) {
        None => Ok(String::new()),
        Some((found, at)) => found.as_str().map(str::to_string).ok_or_else(|| unlike(&at, "a string")),
    }
}

fn flag(value: &Value, name: &str, at: &str) -> Result<Option<bool>, PolicyError> {
    match field(value, name, at) {
        None => Ok(None),
        Some((found, at)) => found.as_bool().map(Some).ok_or_else(|| unlike(&at, "true or false")),
    }
}

fn stages(names: &[String], at: &Path, errors: &mut Vec<FieldError>) {
    for (i, name) in names.iter().enumerate() {
        if !Stage::ALL.iter().any(|s| s.as_str() == name) {
            let all = Stage::ALL.map(Stage::as_str).join(",");
            errors.push(FieldError::invalid(&at.index(i), name.as_str(), format!("allowed stages are {all}")));
        }
    }
}

impl Rule {
    fn mistakes(&self, at: &Path, errors: &mut Vec<FieldError>) {
        let levels = Level::ALL.map(Level::as_str);
        if self.level.is_empty() {
            errors.push(FieldError::required(&at.child("level"), ""));
        } else if !levels.contains(&self.level.as_str()) {
            errors.push(FieldError::not_supported(&at.child("level"), self.level.as_str(), &levels));
        }
        let urls = at.child("nonResourceURLs");
        for (i, url) in self.urls.iter().enumerate().filter(|(_, url)| *url != "*") {
            if !url.starts_with('/') {
                errors.push(FieldError::invalid(&urls.index(i), url.as_str(), "non-resource URL rules must begin with a '/' character"));
            }
            if url.char_indices().any(|(at, c)| c == '*' && at + 1 < url.len()) {
                errors.push(FieldError::invalid(&urls.index(i), url.as_str(), "non-resource URL wildcards '*' must be the final character of the rule"));
            }
        }
        let resources = at.child("resources");
        for entry in &self.resources {
            if !matches!(entry.group.as_str(), "" | "*") {
                let wrong = api::names::dns1123_subdomain(&entry.group);
                if !wrong.is_empty() {
                    errors.push(FieldError::invalid(&resources.child("group"), entry.group.as_str(), wrong.join(",")));
                }
            }
            if !entry.names.is_empty() && entry.resources.is_empty() {
                let why = "using resourceNames requires at least one resource";
                errors.push(FieldError::invalid(&resources.child("resourceNames"), json!(entry.names), why));
            }
        }
        stages(&self.omit_stages, &at.child("omitStages"), errors);
        if !self.urls.is_empty() && !(self.resources.is_empty() && self.namespaces.is_empty()) {
            let why = "rules cannot apply to both regular resources and non-resource URLs";
            errors.push(FieldError::invalid(&urls, json!(self.urls), why));
        }
    }

    fn covers(&self, request: &AuthzAttributes) -> bool {
        let named = |list: &[String], name: &str| list.is_empty() || list.iter().any(|l| l == name);
        if !named(&self.users, &request.user.name) || !named(&self.verbs, &request.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !request.user.groups.iter().any(|g| self.user_groups.contains(g)) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            // What is in no namespace has the empty one.
            return request.resource_request
                && named(&self.namespaces, &request.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|r| r.cover(request)));
        }
        self.urls.is_empty() || !request.resource_request && self.urls.iter().any(|url| url_covers(url, &request.path))
    }
}

impl Resources {
    fn cover(&self, request: &AuthzAttributes) -> bool {
        if self.group != "*" && self.group != request.api_group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let (resource, sub) = (request.resource.as_str(), request.subresource.as_str());
        (self.names.is_empty() || self.names.contains(&request.name))
            && self.resources.iter().any(|wanted| match wanted.split_once('/') {
                _ if wanted == "*" => true,
                Some(("*", s)) if !sub.is_empty() && s == sub => true,
                Some((r, "*")) => r == resource,
                Some((r, s)) => r == resource && s == sub && !sub.is_empty(),
                None => wanted == resource && sub.is_empty(),
            })
    }
}

fn url_covers(url: &str, path: &str) -> bool {
    url == "*" || url == path || url.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix.trim_end_matches('*')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::UserInfo;

    const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

    fn policy(rules: &str) -> Policy {
        Policy::from_text(&format!("{HEAD}{rules}")).expect("a policy")
    }

    fn wrong(rules: &str) -> String {
        Policy::from_text(&format!("{HEAD}{rules}")).expect_err("a mistake").to_string()
    }

    /// A request of bob's, who is in the group `dev`: `VERB GROUP/RESOURCE[/SUB] NAMESPACE NAME`, or `VERB /path`.
    fn request(text: &str) -> AuthzAttributes {
        let user = UserInfo::new("bob", &["dev", "system:authenticated"]);
        let words: Vec<&str> = text.split(' ').collect();
        let base = AuthzAttributes { user, verb: words[0].into(), ..AuthzAttributes::default() };
        if words[1].starts_with('/') {
            return AuthzAttributes { path: words[1].into(), ..base };
        }
        let (group, resource) = words[1].split_once(':').unwrap_or(("", words[1]));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let place = |i: usize| words.get(i).map_or("", |w| if *w == "-" { "" } else { w }).to_string();
        AuthzAttributes {
            resource_request: true,
            api_group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: place(2),
            name: place(3),
            ..base
        }
    }

    #[test]
    fn rules_cover_what_they_name_and_nothing_else() {
        // Each rule, requests that it covers, and requests that it does not.
        let cases: &[(&str, &[&str], &[&str])] = &[
            ("", &["get pods a p", "get /healthz"], &[]),
            ("users: [bob]", &["get pods a", "get /x"], &[]),
            ("users: [ann]", &[], &["get pods a", "get /x"]),
            ("userGroups: [ops, dev]", &["get pods a"], &[]),
            ("userGroups: [ops]", &[], &["get pods a"]),
            ("verbs: [get, list]", &["get pods a", "list pods a", "get /x"], &["watch pods a", "create pods a"]),
            ("namespaces: [a]", &["get pods a", "create apps:deployments a"], &["get pods b", "get nodes - n", "get /x"]),
            ("namespaces: ['']", &["get nodes - n"], &["get pods a"]),
            ("resources: [{group: ''}]", &["get pods a", "get pods/log a p", "get nodes"], &["get apps:deployments a", "get /x"]),
            ("resources: [{group: '*', resources: [pods]}]", &["get pods a", "get metrics:pods a"], &["get pods/log a p", "get nodes"]),
            ("resources: [{group: '', resources: ['pods/log']}]", &["get pods/log a p"], &["get pods a p", "get pods/exec a p"]),
            ("resources: [{group: '', resources: ['pods/*']}]", &["get pods/log a p", "get pods a p"], &["get nodes/proxy - n"]),
            ("resources: [{group: '', resources: ['*/status']}]", &["update pods/status a p", "update nodes/status - n"], &["get pods a", "update pods/resize a p"]),
            ("resources: [{group: '', resources: ['*']}]", &["get pods a", "get pods/log a p"], &["get apps:deployments a"]),
            ("resources: [{group: '', resources: [configmaps], resourceNames: [one, two]}]", &["get configmaps a one", "get configmaps a two"], &["get configmaps a three", "list configmaps a"]),
            ("resources: [{group: ''}]\n  namespaces: [a]", &["get pods a"], &["get pods b", "get apps:deployments a"]),
            ("nonResourceURLs: [/healthz, '/api*']", &["get /healthz", "get /apis", "get /api/v1"], &["get /healthz/ping", "get /version", "get pods a"]),
            ("nonResourceURLs: ['*']", &["get /anything"], &["get pods a"]),
        ];
        for (rule, covered, others) in cases {
            let rule = if rule.is_empty() { String::new() } else { format!("\n  {rule}") };
            let policy = policy(&format!("rules:\n- level: Request{rule}\n"));
            let level = |text: &&str| policy.judge(&request(text)).level;
            for text in *covered {
                assert_eq!(level(text), Level::Request, "{rule} covers {text}");
            }
            for text in *others {
                assert_eq!(level(text), Level::None, "{rule} does not cover {text}");
            }
        }
    }

    #[test]
    fn the_first_rule_that_covers_decides() {
        let policy = policy(
            "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
             - {level: None, users: [bob], verbs: [watch]}\n\
             - {level: Metadata, resources: [{group: '', resources: [secrets]}], omitStages: [Panic], omitManagedFields: false}\n\
             - level: RequestResponse\n",
        );
        assert_eq!(policy.judge(&request("watch secrets a")).level, Level::None);
        let secrets = policy.judge(&request("get secrets a s"));
        assert_eq!((secrets.level, secrets.omit_managed_fields), (Level::Metadata, false), "a rule's own word counts");
        let omitted = |v: Verdict| Stage::ALL.map(|s| v.omit_stages.has(s));
        assert_eq!(omitted(secrets), [true, false, false, true], "stages are left out by either");
        let pods = policy.judge(&request("get pods a s"));
        assert_eq!((pods.level, pods.omit_managed_fields, omitted(pods)), (Level::RequestResponse, true, [true, false, false, false]));
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        let cases = [
            ("rules: []", "loaded illegal policy with 0 rules"),
            ("rules: [{}]", "rules[0].level: Required value"),
            ("rules: [{level: All}]", "rules[0].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \"RequestResponse\""),
            ("omitStages: [End]\nrules: [{level: None}]", "omitStages[0]: Invalid value: \"End\": allowed stages are RequestReceived,ResponseStarted,ResponseComplete,Panic"),
            ("rules: [{level: None, nonResourceURLs: [healthz]}]", "rules[0].nonResourceURLs[0]: Invalid value: \"healthz\": non-resource URL rules must begin with a '/' character"),
            ("rules: [{level: None, nonResourceURLs: ['/a*b']}]", "rules[0].nonResourceURLs[0]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final character of the rule"),
            ("rules: [{level: None, resources: [{group: '', resourceNames: [x]}]}]", "rules[0].resources.resourceNames: Invalid value: [\"x\"]: using resourceNames requires at least one resource"),
            ("rules: [{level: None, nonResourceURLs: [/x], namespaces: [a]}]", "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: rules cannot apply to both regular resources and non-resource URLs"),
            ("rules: [{level: None, users: bob}]", "failed decoding: rules[0].users is not a list"),
        ];
        for (text, expected) in cases {
            assert_eq!(wrong(text), expected, "{text}");
        }
        let group = wrong("rules: [{level: None, resources: [{group: apps/v1}]}]");
        assert!(group.starts_with("rules[0].resources.group: Invalid value: \"apps/v1\": a lowercase RFC 1123 subdomain"), "{group}");
        let two = wrong("rules: [{}, {level: All}]");
        assert!(two.starts_with("[rules[0].level: Required value, rules[1].level: Unsupported"), "{two}");
        let version = |head: &str| Policy::from_text(&format!("{head}rules: [{{level: None}}]")).map(drop).map_err(|e| e.to_string());
        assert_eq!(version("").unwrap_err(), "unknown group version field audit.k8s.io/__internal, Kind=Policy in policy");
        assert_eq!(version("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\n").unwrap_err(), "failed decoding: no kind \"Policy\" is registered for version \"audit.k8s.io/v1beta1\"");
        assert_eq!(version(&format!("{HEAD}surprise: 1\n")), Ok(()), "what is unknown is passed over");
    }
}
