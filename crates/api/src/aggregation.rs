//! The places of built-in groups and versions among all, as upstream's aggregator gives them.

/// Priority of each built-in group.
const GROUPS: &[(&str, i64)] = &[
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("resource.k8s.io", 16200),
    ("discovery.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
];

/// `groupPriorityMinimum` and `versionPriority` of a built-in group version; none of the aggregator's own, which is not
/// registered with itself.
pub fn priority(group: &str, version: &str) -> Option<(i64, i64)> {
    let of_group = GROUPS.iter().find(|(name, _)| *name == group).map(|(_, priority)| *priority)?;
    let of_version = match (group, version) {
        ("", "v1") => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io" | "resource.k8s.io", "v1") => 21,
        _ => 15,
    };
    Some((of_group, of_version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(priority("", "v1"), Some((18000, 1)));
        assert_eq!(priority("autoscaling", "v2"), Some((17500, 30)));
        assert_eq!(priority("autoscaling", "v1"), Some((17500, 15)));
        for group in crate::resources::groups() {
            assert_eq!(priority(group.name, "v1").is_none(), group.name == "apiregistration.k8s.io", "{}", group.name);
        }
    }
}
