//! Labels and selectors in a compact form that can be compared and hashed, so that pods of one
//! workload share them and counts can be kept by them.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Labels, ordered by key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Labels(Vec<(Box<str>, Box<str>)>);

impl Labels {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.binary_search_by(|(k, _)| k.as_ref().cmp(key)).ok().map(|i| self.0[i].1.as_ref())
    }

    /// True when there is no label.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All labels, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_ref(), v.as_ref()))
    }
}

impl<K: Into<Box<str>> + Ord, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(items: I) -> Labels {
        let mut list: Vec<(Box<str>, Box<str>)> = items.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        list.sort();
        Labels(list)
    }
}

/// What a requirement asks of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Gt,
    Lt,
    /// One that the API server would not have let through: matches nothing.
    #[serde(other)]
    Unknown,
}

/// One requirement on a label or field.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
pub struct Requirement {
    pub key: Box<str>,
    pub operator: Operator,
    #[serde(default)]
    pub values: Vec<Box<str>>,
}

impl Requirement {
    /// Whether the requirement holds for a value (nothing when the key is absent).
    pub fn holds(&self, value: Option<&str>) -> bool {
        let listed = || self.values.iter().any(|v| Some(v.as_ref()) == value);
        let compare = |test: fn(i64, i64) -> bool| {
            let bound = self.values.first().and_then(|v| v.parse::<i64>().ok());
            value.and_then(|v| v.parse::<i64>().ok()).zip(bound).is_some_and(|(a, b)| test(a, b))
        };
        match self.operator {
            Operator::In => listed(),
            Operator::NotIn => !listed(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => compare(|a, b| a > b),
            Operator::Lt => compare(|a, b| a < b),
            Operator::Unknown => false,
        }
    }
}

/// A label selector: all requirements hold. The empty one selects everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector(pub Vec<Requirement>);

impl Selector {
    /// Whether labels are selected.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|r| r.holds(labels.get(&r.key)))
    }

    /// True for the selector of everything.
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds `key in (value)` or `key notin (value)`, unless it is there.
    pub fn require(&mut self, key: &str, operator: Operator, value: &str) {
        let requirement = Requirement { key: key.into(), operator, values: vec![value.into()] };
        if !self.0.contains(&requirement) {
            self.0.push(requirement);
        }
    }

    /// Selects labels that have all of these.
    pub fn of<'a>(labels: impl IntoIterator<Item = (&'a String, &'a String)>) -> Selector {
        let mut selector = Selector::default();
        labels.into_iter().for_each(|(k, v)| selector.require(k, Operator::In, v));
        selector
    }
}

/// A label selector as the API writes it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RawSelector {
    match_labels: Option<BTreeMap<String, String>>,
    match_expressions: Option<Vec<Requirement>>,
}

impl From<RawSelector> for Selector {
    fn from(raw: RawSelector) -> Selector {
        let mut selector = Selector::of(raw.match_labels.iter().flatten());
        selector.0.extend(raw.match_expressions.into_iter().flatten());
        selector
    }
}

impl<'de> Deserialize<'de> for Selector {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Selector, D::Error> {
        RawSelector::deserialize(d).map(Selector::from)
    }
}

/// A node selector term: requirements on labels and on `metadata.name`. The empty one selects nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeTerm {
    pub match_expressions: Vec<Requirement>,
    pub match_fields: Vec<Requirement>,
}

impl NodeTerm {
    /// Whether a node is selected.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        !(self.match_expressions.is_empty() && self.match_fields.is_empty())
            && self.match_expressions.iter().all(|r| r.holds(labels.get(&r.key)))
            && self.match_fields.iter().all(|r| r.key.as_ref() == "metadata.name" && r.holds(Some(name)))
    }
}

/// What a pod requires of its node's labels: its node selector and required node affinity.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct NodeRule {
    pub selector: Vec<(Box<str>, Box<str>)>,
    /// One of these must match; `None` asks for nothing.
    pub terms: Option<Vec<NodeTerm>>,
}

impl NodeRule {
    /// Whether a node is allowed.
    pub fn allows(&self, name: &str, labels: &Labels) -> bool {
        self.selector.iter().all(|(k, v)| labels.get(k) == Some(v.as_ref()))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches(name, labels)))
    }

    /// True when it allows every node.
    pub fn is_empty(&self) -> bool {
        self.selector.is_empty() && self.terms.is_none()
    }

    /// The only nodes that it can allow, when each term names some.
    pub fn names(&self) -> Option<Vec<&str>> {
        let terms = self.terms.as_ref().filter(|t| !t.is_empty())?;
        let mut names = Vec::new();
        for term in terms {
            let mut own: Option<Vec<&str>> = None;
            for r in term.match_fields.iter().filter(|r| r.key.as_ref() == "metadata.name" && r.operator == Operator::In) {
                let listed: Vec<&str> = r.values.iter().map(|v| v.as_ref()).collect();
                own = Some(match own {
                    None => listed,
                    Some(before) => before.into_iter().filter(|n| listed.contains(n)).collect(),
                });
            }
            names.extend(own?);
        }
        names.sort_unstable();
        names.dedup();
        Some(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_operator() {
        let labels: Labels = [("zone", "a"), ("cores", "8")].into_iter().collect();
        let cases = [
            (json!([{"key": "zone", "operator": "In", "values": ["a"]}]), true),
            (json!([{"key": "zone", "operator": "NotIn", "values": ["a"]}]), false),
            (json!([{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]), true),
            (json!([{"key": "disk", "operator": "Exists"}]), false),
            (json!([{"key": "disk", "operator": "DoesNotExist"}]), true),
            (json!([{"key": "cores", "operator": "Gt", "values": ["4"]}]), true),
            (json!([{"key": "cores", "operator": "Gt", "values": ["8"]}]), false),
            (json!([{"key": "cores", "operator": "Lt", "values": ["9"]}]), true),
            (json!([{"key": "cores", "operator": "Lt", "values": ["8"]}]), false),
            (json!([{"key": "cores", "operator": "Lt", "values": ["4"]}]), false),
            (json!([{"key": "zone", "operator": "Gt", "values": ["4"]}]), false),
            (json!([{"key": "zone", "operator": "Like", "values": ["a"]}]), false),
        ];
        for (list, expected) in cases {
            let term: NodeTerm = serde_json::from_value(json!({"matchExpressions": list})).expect("a term");
            assert_eq!(term.matches("n", &labels), expected, "{list}");
        }
        assert!(!NodeTerm::default().matches("n", &labels), "an empty term selects nothing");
    }

    #[test]
    fn a_rule_names_nodes_when_each_term_does() {
        let rule = |terms| NodeRule { terms: Some(serde_json::from_value(terms).expect("terms")), ..NodeRule::default() };
        let field = |names: &[&str]| json!({"key": "metadata.name", "operator": "In", "values": names});
        assert_eq!(rule(json!([{"matchFields": [field(&["a", "b"]), field(&["b"])]}, {"matchFields": [field(&["c"])]}])).names(), Some(vec!["b", "c"]));
        assert_eq!(rule(json!([{"matchFields": [field(&["a"])]}, {"matchExpressions": [{"key": "k", "operator": "Exists"}]}])).names(), None);
        assert_eq!(rule(json!([{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["a"]}]}])).names(), None);
        assert!(rule(json!([{"matchFields": [field(&["a"])]}])).allows("a", &Labels::default()));
    }
}
