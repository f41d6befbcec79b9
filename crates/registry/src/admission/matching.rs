//! Which writes a webhook, policy or binding is for: rules, and selectors of namespaces and objects.

use api::selector::Labels;
use api::status;
use apiserver::types::{Resource, Status};
use apiserver::{Attributes, Ctx, Operation};
use serde_json::Value;

use super::request::{self, is_namespace, namespace_of, operation};
use crate::util::{items, text, texts};

/// A rule: operations on resources.
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    /// Resource and subresource.
    resources: Vec<(String, String)>,
    /// Only these objects; all when there are none.
    names: Vec<String>,
    scope: Scope,
}

#[derive(Clone, Copy, PartialEq)]
enum Scope {
    All,
    Cluster,
    Namespaced,
}

impl Rule {
    fn read(rule: &Value) -> Rule {
        let list = |pointer: &str| texts(rule, pointer).map(str::to_owned).collect();
        let split = |r: &str| {
            let (plural, sub) = r.split_once('/').unwrap_or((r, ""));
            (plural.to_owned(), sub.to_owned())
        };
        Rule {
            operations: list("/operations"),
            groups: list("/apiGroups"),
            versions: list("/apiVersions"),
            resources: texts(rule, "/resources").map(split).collect(),
            names: list("/resourceNames"),
            scope: match text(rule, "/scope") {
                "Namespaced" => Scope::Namespaced,
                "Cluster" => Scope::Cluster,
                _ => Scope::All,
            },
        }
    }

    /// Whether the write fits, seen as one of this resource.
    fn fits(&self, resource: &Resource, attributes: &Attributes<'_>, name: &str) -> bool {
        let ctx = attributes.ctx;
        let is = |pattern: &str, wanted: &str| pattern == "*" || pattern == wanted;
        let any = |patterns: &[String], wanted: &str| patterns.iter().any(|p| is(p, wanted));
        let scope = if ctx.namespace.is_empty() || is_namespace(ctx) { Scope::Cluster } else { Scope::Namespaced };
        (self.scope == Scope::All || self.scope == scope)
            && any(&self.operations, operation(attributes.operation))
            && any(&self.groups, resource.group)
            && any(&self.versions, resource.version)
            && self.resources.iter().any(|(plural, sub)| is(plural, resource.plural) && is(sub, &ctx.subresource))
            && (self.names.is_empty() || self.names.iter().any(|n| n == name))
    }
}

/// What says which writes are meant, read once.
pub(super) struct Matcher {
    /// Without, all writes fit.
    rules: Option<Vec<Rule>>,
    excluded: Vec<Rule>,
    /// Other versions of the written resource count as well.
    equivalent: bool,
    namespaces: Result<Labels, String>,
    objects: Result<Labels, String>,
}

impl Matcher {
    /// Of a webhook.
    pub fn of_hook(hook: &Value) -> Matcher {
        Matcher::read(hook, Some(rules(hook, "/rules")))
    }

    /// Of `matchConstraints` or `matchResources`.
    pub fn of_resources(resources: &Value) -> Matcher {
        Matcher::read(resources, Some(rules(resources, "/resourceRules")).filter(|r| !r.is_empty()))
    }

    fn read(from: &Value, rules_of: Option<Vec<Rule>>) -> Matcher {
        // A selector that is not there selects everything, as its default does.
        let selector = |key: &str| from.get(key).filter(|s| !s.is_null()).map_or_else(|| Ok(Labels::everything()), Labels::from_label_selector);
        Matcher {
            rules: rules_of,
            excluded: rules(from, "/excludeResourceRules"),
            equivalent: text(from, "/matchPolicy") != "Exact",
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
        }
    }

    /// Whether a write is meant, and as one of which resource.
    pub async fn matches(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<Option<&'static Resource>, Status> {
        let Some(target) = self.target(attributes, object) else { return Ok(None) };
        // A selector that cannot be read or asked is an error only for writes that nothing else rules out.
        let by_object = self.selects_object(attributes, object);
        if matches!(by_object, Ok(false)) || !self.selects_namespace(attributes, object).await? {
            return Ok(None);
        }
        by_object.map(|_| Some(target))
    }

    fn target(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Option<&'static Resource> {
        let own = attributes.ctx.resource;
        if self.by_rules(&self.excluded, attributes, object).is_some() {
            return None;
        }
        self.rules.as_ref().map_or(Some(own), |rules| self.by_rules(rules, attributes, object))
    }

    fn by_rules(&self, rules: &[Rule], attributes: &Attributes<'_>, object: Option<&Value>) -> Option<&'static Resource> {
        let ctx = attributes.ctx;
        let own = ctx.resource;
        let name = request::name(ctx, object);
        if rules.iter().any(|rule| rule.fits(own, attributes, name)) {
            return Some(own);
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let others = ctx.backend.reader.equivalents(own);
        let others = || others.iter().filter(|r| (r.group, r.version) != (own.group, own.version));
        rules.iter().find_map(|rule| others().find(|r| rule.fits(r, attributes, name)).copied())
    }

    /// Whether the object is meant, as it was or as it will be.
    fn selects_object(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<bool, Status> {
        let labels = self.objects.as_ref().map_err(status::internal)?;
        let one = |o: Option<&Value>| o.is_some_and(|o| !o.is_null() && labels.matches(&o["metadata"]["labels"]));
        // A connection's options are no object with labels.
        Ok(labels.is_empty() || attributes.operation != Operation::Connect && (one(object) || one(attributes.old)))
    }

    /// Whether the namespace is meant. What is in no namespace always is.
    async fn selects_namespace(&self, attributes: &Attributes<'_>, object: Option<&Value>) -> Result<bool, Status> {
        let ctx: &Ctx = attributes.ctx;
        if ctx.namespace.is_empty() && !is_namespace(ctx) {
            return Ok(true);
        }
        let labels = self.namespaces.as_ref().map_err(status::internal)?;
        if labels.is_empty() {
            return Ok(true);
        }
        // A namespace that is being written is judged by what it will be.
        if is_namespace(ctx) && ctx.subresource.is_empty() && matches!(attributes.operation, Operation::Create | Operation::Update) {
            return Ok(labels.matches(object.map_or(&Value::Null, |o| &o["metadata"]["labels"])));
        }
        let found = request::namespace(ctx, namespace_of(ctx)).await?;
        Ok(labels.matches(&found["metadata"]["labels"]))
    }
}

fn rules(from: &Value, pointer: &str) -> Vec<Rule> {
    items(from, pointer).map(Rule::read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use crate::util::PODS;
    use apiserver::UserInfo;
    use serde_json::json;

    #[test]
    fn rules_say_which_writes() {
        let objects = Objects::new();
        let check = |rule: Value, sub: &str, expect: bool| {
            let mut ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
            ctx.subresource = sub.into();
            let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
            let matcher = Matcher::of_hook(&json!({"rules": [rule]}));
            assert_eq!(block_on(matcher.matches(&attributes, None)).unwrap().is_some(), expect, "{rule} {sub}");
        };
        let rule = |resources: &str, scope: &str| json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["*"], "resources": [resources], "scope": scope});
        check(rule("pods", "*"), "", true);
        check(rule("pods", "*"), "status", false);
        check(rule("*/*", "*"), "status", true);
        check(rule("pods/status", "Namespaced"), "status", true);
        check(rule("*", "Cluster"), "", false);
        let mut deletes = rule("*", "*");
        deletes["operations"] = json!(["DELETE"]);
        check(deletes, "", false);
    }

    #[test]
    fn a_hook_without_rules_is_for_nothing_and_constraints_without_are_for_all() {
        let objects = Objects::new();
        let ctx = objects.ctx(&PODS, "a", "p", UserInfo::default());
        let attributes = Attributes { ctx: &ctx, operation: Operation::Create, old: None, options: &Value::Null };
        let matched = |matcher: Matcher| block_on(matcher.matches(&attributes, None)).map(|t| t.is_some()).map_err(|s| s.message);
        assert_eq!(matched(Matcher::of_hook(&json!({}))), Ok(false));
        assert_eq!(matched(Matcher::of_resources(&json!({}))), Ok(true));
        let asked = json!({"namespaceSelector": {"matchLabels": {"x": "y"}}});
        assert_eq!(matched(Matcher::of_resources(&asked)), Err("namespaces \"a\" not found".into()));
        assert_eq!(matched(Matcher::of_hook(&asked)), Ok(false), "rules come before the question for the namespace");
    }
}
