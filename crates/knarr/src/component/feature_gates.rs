//! `--feature-gates`: upstream's names are known, and nothing here is behind a gate, so none has an
//! effect. A name that upstream does not know is refused, as it refuses it.

/// Checks a comma-separated list of `name=bool`, each maybe behind `kube:`.
pub fn check(list: &str) -> Result<(), String> {
    let known: Vec<&str> = include_str!("feature_gates.txt").lines().collect();
    let mut idle = Vec::new();
    for pair in list.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let name = pair.split('=').next().unwrap_or("").trim();
        let name = name.strip_prefix("kube:").unwrap_or(name);
        if known.binary_search(&name).is_err() {
            return Err(format!("unrecognized feature gate: {name}"));
        }
        idle.push(pair);
    }
    if !idle.is_empty() {
        tracing::info!("feature gates have no effect here: {}", idle.join(","));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_gates_are_taken_and_others_refused() {
        assert_eq!(check(""), Ok(()));
        assert_eq!(check("AllAlpha=false,kube:DynamicResourceAllocation=true"), Ok(()));
        assert_eq!(check("AllBeta=true,Nonsense=true"), Err("unrecognized feature gate: Nonsense".into()));
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(include_str!("feature_gates.txt").lines().collect::<Vec<_>>().is_sorted());
    }
}
