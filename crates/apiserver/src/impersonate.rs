//! Acting as somebody else: who is wanted, by the `Impersonate-…` headers, and whether the real user may be that.
//!
//! There are five modes, from the narrowest to the widest. Those of constrained impersonation ask twice: whether the
//! user may do what the request does while acting as another (`impersonate-on:<mode>:<verb>` on what is asked for), and
//! whether they may act as this one (`impersonate:<mode>`). The last mode is the original: `impersonate`, for everything
//! that the other may do. What was allowed is asked again at each request, so that rights that are taken away are gone at
//! once (upstream's: after 10 s).
use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use api::field::{FieldError, Path, aggregate, go_quote};
use api::names;
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;

use crate::authz::{Authorizer, AuthzAttributes, Decision, decide};
use crate::ctx::UserInfo;
use crate::filters::{attributes, forbidden};
use crate::metrics::Metrics;
use crate::request::{RequestInfo, percent_decode};
use crate::types::Status;

const GROUP: &str = "authentication.k8s.io";
/// Of what a service account's token says of the node that its pod runs on.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const ASSOCIATED_KEYS: &str = "authentication.kubernetes.io/associated-node-keys";
/// From so many groups or extra values on, it is asked first whether all of them may be taken.
const MANY: usize = 4;
/// Users of whom it is remembered which mode they used last.
const REMEMBERED: usize = 10_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// A service account as the node that its pod runs on.
    AssociatedNode,
    ArbitraryNode,
    ServiceAccount,
    UserInfo,
    Legacy,
}

const MODES: [Mode; 5] = [Mode::AssociatedNode, Mode::ArbitraryNode, Mode::ServiceAccount, Mode::UserInfo, Mode::Legacy];

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Mode::AssociatedNode => "associated-node",
            Mode::ArbitraryNode => "arbitrary-node",
            Mode::ServiceAccount => "serviceaccount",
            Mode::UserInfo => "user-info",
            Mode::Legacy => "legacy",
        }
    }

    fn verb(self) -> String {
        if self == Mode::Legacy { "impersonate".into() } else { format!("impersonate:{}", self.name()) }
    }

    /// Whether it is meant for such a user at all.
    fn covers(self, wanted: &UserInfo, asker: &UserInfo) -> bool {
        let name_alone = wanted.uid.is_empty() && wanted.groups.is_empty() && wanted.extra.is_empty();
        let node = node_name(&wanted.name);
        match self {
            Mode::AssociatedNode => {
                let runs_on = asker.extra.get(NODE_NAME).filter(|names| names.len() == 1).map(|names| names[0].as_str());
                name_alone && node.is_some() && service_account(&asker.name).is_some() && runs_on == node
            }
            Mode::ArbitraryNode => name_alone && node.is_some(),
            Mode::ServiceAccount => name_alone && service_account(&wanted.name).is_some(),
            Mode::UserInfo => node.is_none() && service_account(&wanted.name).is_none(),
            Mode::Legacy => true,
        }
    }
}

/// The node that a user name stands for.
fn node_name(user: &str) -> Option<&str> {
    user.strip_prefix("system:node:").filter(|name| names::dns1123_subdomain(name).is_empty())
}

/// The namespace and name of the service account that a user name stands for.
fn service_account(user: &str) -> Option<(&str, &str)> {
    let (namespace, name) = user.strip_prefix("system:serviceaccount:")?.split_once(':')?;
    (names::dns1123_label(namespace).is_empty() && names::dns1123_subdomain(name).is_empty()).then_some((namespace, name))
}

/// Who the request wants to be, if anybody else.
fn wanted(headers: &HeaderMap) -> Result<Option<UserInfo>, Status> {
    let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let first = |name: &str| headers.get(name).map(text).unwrap_or_default();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in headers {
        if let Some(key) = key.as_str().strip_prefix("impersonate-extra-") {
            extra.entry(percent_decode(key)).or_default().push(text(value));
        }
    }
    let groups = headers.get_all("impersonate-group").iter().map(text).collect();
    let user = UserInfo { name: first("impersonate-user"), uid: first("impersonate-uid"), groups, extra };
    if !user.name.is_empty() {
        return Ok(Some(user));
    }
    if user == UserInfo::default() {
        return Ok(None);
    }
    let list = |all: &[String]| if all.is_empty() { "[]string(nil)".into() } else { format!("[]string{{{}}}", all.iter().map(|g| go_quote(g)).collect::<Vec<_>>().join(", ")) };
    let extra: Vec<String> = user.extra.iter().map(|(key, values)| format!("{}:{}", go_quote(key), list(values))).collect();
    let extra = if extra.is_empty() { "(nil)".into() } else { format!("{{{}}}", extra.join(", ")) };
    Err(api::status::bad_request(format!(
        "requested &user.DefaultInfo{{Name:\"\", UID:{}, Groups:{}, Extra:map[string][]string{extra}}} without impersonating a user name",
        go_quote(&user.uid),
        list(&user.groups),
    )))
}

/// Somebody who may be acted as.
pub(crate) struct Impersonated {
    pub user: UserInfo,
    /// The verb of the mode that allowed it; nothing for the original one.
    pub constraint: Option<String>,
}

/// Lets requests be made as somebody else.
#[derive(Default)]
pub(crate) struct Impersonator {
    /// By name: the mode that was good last, which is tried first.
    last: Mutex<HashMap<String, Mode>>,
}

impl Impersonator {
    /// As whom the request is made, where its headers name somebody and the real user may.
    pub async fn act(
        &self,
        authorizer: &dyn Authorizer,
        metrics: &Metrics,
        headers: &HeaderMap,
        info: &RequestInfo,
        asker: &UserInfo,
    ) -> Result<Option<Impersonated>, Status> {
        let Some(wanted) = wanted(headers)? else { return Ok(None) };
        let began = Instant::now();
        let asked = Asked { authorizer, metrics, wanted: &wanted, request: attributes(info, asker) };
        let last = self.last.lock().get(&asker.name).copied();
        let mut refused = None;
        for mode in last.into_iter().chain(MODES.into_iter().filter(|m| Some(*m) != last)) {
            if !mode.covers(&wanted, asker) {
                continue;
            }
            match asked.by(mode).await {
                Ok(user) => {
                    if last != Some(mode) {
                        self.remember(&asker.name, mode);
                    }
                    metrics.impersonation(mode.name(), true, began.elapsed());
                    return Ok(Some(Impersonated { user, constraint: (mode != Mode::Legacy).then(|| mode.verb()) }));
                }
                Err(status) => drop(refused.get_or_insert(status)),
            }
        }
        metrics.impersonation("", false, began.elapsed());
        Err(refused.unwrap_or_else(|| api::status::internal("all impersonation modes failed")))
    }

    fn remember(&self, name: &str, mode: Mode) {
        let mut last = self.last.lock();
        if last.len() >= REMEMBERED && !last.contains_key(name) {
            last.clear();
        }
        last.insert(name.into(), mode);
    }
}

/// One request's questions.
struct Asked<'a> {
    authorizer: &'a dyn Authorizer,
    metrics: &'a Metrics,
    wanted: &'a UserInfo,
    /// What it is about, and who really asks.
    request: AuthzAttributes,
}

impl Asked<'_> {
    /// The user, complete, if this mode allows it.
    async fn by(&self, mode: Mode) -> Result<UserInfo, Status> {
        if mode != Mode::Legacy {
            let verb = format!("impersonate-on:{}:{}", mode.name(), self.request.verb);
            self.allowed(mode, AuthzAttributes { verb, ..self.request.clone() }).await?;
        }
        let mut user = self.wanted.clone();
        self.name(mode, &mut user).await?;
        if !user.uid.is_empty() {
            self.allowed(mode, self.identity(mode, GROUP, "uids", &user.uid)).await?;
        }
        self.groups(mode).await?;
        self.extra(mode).await?;
        let has = |user: &UserInfo, group: &str| user.groups.iter().any(|g| g == group);
        let also = match user.name.as_str() {
            "system:anonymous" => Some("system:unauthenticated"),
            _ if has(&user, "system:unauthenticated") => None,
            _ => Some("system:authenticated"),
        };
        if let Some(group) = also.filter(|group| !has(&user, group)) {
            user.groups.push(group.into());
        }
        Ok(user)
    }

    /// What is asked about a part of an identity.
    fn identity(&self, mode: Mode, group: &str, resource: &str, name: &str) -> AuthzAttributes {
        AuthzAttributes {
            user: self.request.user.clone(),
            verb: mode.verb(),
            resource_request: true,
            api_group: group.into(),
            api_version: "v1".into(),
            resource: resource.into(),
            name: name.into(),
            ..AuthzAttributes::default()
        }
    }

    async fn allowed(&self, mode: Mode, mut question: AuthzAttributes) -> Result<(), Status> {
        if mode == Mode::AssociatedNode {
            // that it is their own node is known; whoever may do this may do it on each node
            let keys = question.user.extra.keys().cloned().collect();
            question.user.extra = BTreeMap::from([(ASSOCIATED_KEYS.into(), keys)]);
            if question.verb == mode.verb() {
                question.name = "*".into();
            }
        }
        let began = Instant::now();
        let (decision, why) = decide(self.authorizer, &question).await;
        self.metrics.impersonation_check(mode.name(), decision == Decision::Allow, began.elapsed());
        if decision == Decision::Allow { Ok(()) } else { Err(forbidden(&question, &why)) }
    }

    async fn name(&self, mode: Mode, user: &mut UserInfo) -> Result<(), Status> {
        let mut question = self.identity(mode, if mode == Mode::Legacy { "" } else { GROUP }, "users", &user.name);
        if let Some(node) = node_name(&self.wanted.name).filter(|_| mode != Mode::Legacy) {
            (question.resource, question.name) = ("nodes".into(), node.into());
            user.groups = vec!["system:nodes".into()];
        }
        if let Some((namespace, account)) = service_account(&self.wanted.name) {
            (question.resource, question.namespace, question.name) = ("serviceaccounts".into(), namespace.into(), account.into());
            if user.groups.is_empty() {
                user.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
            }
        }
        self.allowed(mode, question).await
    }

    async fn groups(&self, mode: Mode) -> Result<(), Status> {
        let groups = &self.wanted.groups;
        let question = |name: &str| self.identity(mode, if mode == Mode::Legacy { "" } else { GROUP }, "groups", name);
        if mode != Mode::Legacy {
            if groups.iter().any(String::is_empty) {
                return Err(forbidden(&question(""), "impersonating the empty string group is not allowed"));
            }
            if groups.iter().any(|g| g == "system:masters") {
                return Err(forbidden(&question("system:masters"), "impersonating the system:masters group is not allowed"));
            }
            if groups.len() >= MANY && self.allowed(mode, question("*")).await.is_ok() {
                return Ok(());
            }
        }
        for group in groups {
            self.allowed(mode, question(group)).await?;
        }
        Ok(())
    }

    async fn extra(&self, mode: Mode) -> Result<(), Status> {
        let extra = &self.wanted.extra;
        let question = |key: &str, value: &str| AuthzAttributes { subresource: key.into(), ..self.identity(mode, GROUP, "userextras", value) };
        if mode != Mode::Legacy {
            extra_is_valid(extra).map_err(|why| forbidden(&question("", ""), &why))?;
            let many = extra.len() >= MANY || extra.values().map(Vec::len).sum::<usize>() >= MANY;
            if many && self.allowed(mode, question("*", "*")).await.is_ok() {
                return Ok(());
            }
        }
        for (key, values) in extra {
            for value in values {
                self.allowed(mode, question(key, value)).await?;
            }
        }
        Ok(())
    }
}

fn extra_is_valid(extra: &BTreeMap<String, Vec<String>>) -> Result<(), String> {
    let at = Path::new("extra").child("key");
    for (key, values) in extra {
        if key.is_empty() {
            return Err("impersonating the empty string key in extra is not allowed".into());
        }
        let wrong = names::domain_prefixed_path(key);
        if !wrong.is_empty() {
            let wrong = wrong.into_iter().map(|(part, why)| FieldError::invalid(&at, part, why).to_string());
            return Err(format!("impersonating an invalid key in extra is not allowed: {}", aggregate(wrong)));
        }
        if *key != key.to_lowercase() {
            return Err(format!("impersonating a non-lowercase key in extra is not allowed: {}", go_quote(key)));
        }
        if values.iter().any(String::is_empty) {
            return Err("impersonating the empty string value in extra is not allowed".into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Allows what is listed, as `verb group/resource/subresource namespace/name`, and notes what it was asked.
    #[derive(Default)]
    struct Rules {
        allowed: Vec<&'static str>,
        asked: Mutex<Vec<String>>,
    }

    impl Authorizer for Rules {
        fn authorize(&self, a: &AuthzAttributes) -> (Decision, String) {
            let subresource = if a.subresource.is_empty() { String::new() } else { format!("/{}", a.subresource) };
            let text = format!("{} {}/{}{subresource} {}/{}", a.verb, a.api_group, a.resource, a.namespace, a.name);
            let decision = if self.allowed.contains(&text.as_str()) { Decision::Allow } else { Decision::NoOpinion };
            self.asked.lock().push(text);
            (decision, String::new())
        }

        fn rules_for(&self, _: &UserInfo, _: &str) -> crate::authz::Rules {
            crate::authz::Rules::default()
        }
    }

    const LIST: &str = "/api/v1/namespaces/ns/pods";

    struct Case {
        rules: Rules,
        impersonator: Impersonator,
        asker: UserInfo,
    }

    impl Case {
        fn new(allowed: &[&'static str]) -> Case {
            let rules = Rules { allowed: allowed.to_vec(), asked: Mutex::default() };
            Case { rules, impersonator: Impersonator::default(), asker: UserInfo::new("real", &["system:authenticated"]) }
        }

        async fn act(&self, headers: &[(&'static str, &str)]) -> Result<(UserInfo, Option<String>), Status> {
            let mut all = HeaderMap::new();
            for (name, value) in headers {
                all.append(*name, value.parse().unwrap());
            }
            let info = RequestInfo::parse(&http::Method::GET, &LIST.parse().unwrap()).unwrap();
            self.rules.asked.lock().clear();
            let done = self.impersonator.act(&self.rules, &Metrics::default(), &all, &info, &self.asker).await?;
            let done = done.expect("somebody is wanted");
            Ok((done.user, done.constraint))
        }

        fn asked(&self) -> Vec<String> {
            self.rules.asked.lock().clone()
        }
    }

    #[tokio::test]
    async fn the_original_mode_allows_everything_at_once() {
        let case = Case::new(&["impersonate /serviceaccounts ns/sa", "impersonate /users /bob", "impersonate /groups /g", "impersonate authentication.k8s.io/userextras/a /x"]);
        let (user, constraint) = case.act(&[("impersonate-user", "system:serviceaccount:ns:sa")]).await.unwrap();
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]);
        assert_eq!(constraint, None);
        // from now on it is tried first
        let (user, _) = case.act(&[("impersonate-user", "bob"), ("impersonate-group", "g"), ("impersonate-extra-a", "x")]).await.unwrap();
        assert_eq!(user.groups, ["g", "system:authenticated"]);
        assert_eq!(case.asked(), ["impersonate /users /bob", "impersonate /groups /g", "impersonate authentication.k8s.io/userextras/a /x"]);
        // who may not is told of the mode that was good last
        let refused = case.act(&[("impersonate-user", "eve")]).await.unwrap_err();
        assert_eq!(refused.message, "users \"eve\" is forbidden: User \"real\" cannot impersonate resource \"users\" in API group \"\" at the cluster scope");
        let refused = Case::new(&[]).act(&[("impersonate-user", "eve")]).await.unwrap_err();
        assert_eq!(refused.message, "pods is forbidden: User \"real\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" in the namespace \"ns\"");
    }

    #[tokio::test]
    async fn who_is_nobody_is_not_authenticated() {
        let case = Case::new(&["impersonate /users /system:anonymous", "impersonate /users /x", "impersonate /groups /system:unauthenticated"]);
        let (user, _) = case.act(&[("impersonate-user", "system:anonymous")]).await.unwrap();
        assert_eq!(user.groups, ["system:unauthenticated"]);
        let (user, _) = case.act(&[("impersonate-user", "x"), ("impersonate-group", "system:unauthenticated")]).await.unwrap();
        assert_eq!(user.groups, ["system:unauthenticated"]);
    }

    #[tokio::test]
    async fn constrained_modes_need_both_verbs() {
        const ON: &str = "impersonate-on:user-info:list /pods ns/";
        const BOB: &str = "impersonate:user-info authentication.k8s.io/users /bob";
        assert!(Case::new(&[BOB]).act(&[("impersonate-user", "bob")]).await.is_err());
        assert!(Case::new(&[ON]).act(&[("impersonate-user", "bob")]).await.is_err());
        let case = Case::new(&[
            ON,
            BOB,
            "impersonate:user-info authentication.k8s.io/groups /*",
            "impersonate:user-info authentication.k8s.io/uids /7",
            "impersonate:user-info authentication.k8s.io/userextras/acme.io/k /v",
        ]);
        let (user, constraint) = case.act(&[("impersonate-user", "bob"), ("impersonate-uid", "7"), ("impersonate-extra-acme.io%2fk", "v")]).await.unwrap();
        assert_eq!((user.uid.as_str(), user.groups.len(), constraint.as_deref()), ("7", 1, Some("impersonate:user-info")));
        assert_eq!(user.extra, BTreeMap::from([("acme.io/k".to_string(), vec!["v".to_string()])]));
        // all groups at once, where there are many
        let groups = ["a", "b", "c", "d"].map(|g| ("impersonate-group", g));
        assert!(case.act(&[&[("impersonate-user", "bob")], &groups[..]].concat()).await.is_ok());
        assert!(case.act(&[&[("impersonate-user", "bob")], &groups[..3]].concat()).await.is_err());
        // what the original mode takes, and the constrained ones do not
        for (header, value, why) in [
            ("impersonate-group", "system:masters", "impersonating the system:masters group is not allowed"),
            ("impersonate-group", "", "impersonating the empty string group is not allowed"),
            ("impersonate-extra-", "v", "impersonating the empty string key in extra is not allowed"),
            ("impersonate-extra-k", "v", "impersonating an invalid key in extra is not allowed: extra.key: Invalid value: \"k\": must be a domain-prefixed path (such as \"acme.io/foo\")"),
            ("impersonate-extra-acme.io%2f%41", "v", "impersonating a non-lowercase key in extra is not allowed: \"acme.io/A\""),
            ("impersonate-extra-acme.io%2fk", "", "impersonating the empty string value in extra is not allowed"),
        ] {
            let refused = case.act(&[("impersonate-user", "bob"), (header, value)]).await.unwrap_err();
            assert!(refused.message.ends_with(&format!(": {why}")), "{header}: {}", refused.message);
        }
    }

    #[tokio::test]
    async fn nodes_and_accounts_have_modes_of_their_own() {
        let accounts = Case::new(&["impersonate-on:serviceaccount:list /pods ns/", "impersonate:serviceaccount authentication.k8s.io/serviceaccounts a/b"]);
        let (user, constraint) = accounts.act(&[("impersonate-user", "system:serviceaccount:a:b")]).await.unwrap();
        assert_eq!((user.groups.len(), constraint.as_deref()), (3, Some("impersonate:serviceaccount")));
        assert!(accounts.act(&[("impersonate-user", "system:serviceaccount:a:b"), ("impersonate-uid", "1")]).await.is_err(), "nothing but the name");
        let nodes = Case::new(&["impersonate-on:arbitrary-node:list /pods ns/", "impersonate:arbitrary-node authentication.k8s.io/nodes /n"]);
        let (user, _) = nodes.act(&[("impersonate-user", "system:node:n")]).await.unwrap();
        assert_eq!(user.groups, ["system:nodes", "system:authenticated"]);
        // an agent as the node that it runs on, and as no other
        let mut agents = Case::new(&["impersonate-on:associated-node:list /pods ns/", "impersonate:associated-node authentication.k8s.io/nodes /*"]);
        agents.asker.name = "system:serviceaccount:kube-system:agent".into();
        agents.asker.extra.insert(NODE_NAME.into(), vec!["n".into()]);
        let (user, constraint) = agents.act(&[("impersonate-user", "system:node:n")]).await.unwrap();
        assert_eq!((user.name.as_str(), constraint.as_deref()), ("system:node:n", Some("impersonate:associated-node")));
        let refused = agents.act(&[("impersonate-user", "system:node:m")]).await.unwrap_err();
        assert!(refused.message.contains("cannot impersonate-on:arbitrary-node:list"), "{}", refused.message);
    }

    #[tokio::test]
    async fn a_name_is_needed() {
        let refused = Case::new(&[]).act(&[("impersonate-group", "g"), ("impersonate-extra-k", "v")]).await.unwrap_err();
        let expected = "requested &user.DefaultInfo{Name:\"\", UID:\"\", Groups:[]string{\"g\"}, Extra:map[string][]string{\"k\":[]string{\"v\"}}} without impersonating a user name";
        assert_eq!((refused.code, refused.message.as_str()), (400, expected));
    }
}
