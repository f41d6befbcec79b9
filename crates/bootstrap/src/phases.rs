//! Phases: which there are, which are left out, and running one alone.

use crate::error::{Result, refused};

/// A phase and its parts.
#[derive(Debug, Clone, Copy)]
pub struct Phase {
    /// Its name.
    pub name: &'static str,
    /// The names of its parts.
    pub parts: &'static [&'static str],
}

/// What to run: phases, and parts of them (the empty part begins a phase).
pub type Steps = Vec<(&'static str, &'static str)>;

/// Everything but what is to be left out: a phase, or a part as `phase/part`.
pub fn all(phases: &[Phase], skipped: &[String]) -> Result<Steps> {
    let known = |name: &str| phases.iter().any(|p| p.name == name || p.parts.iter().any(|part| format!("{}/{part}", p.name) == name));
    if let Some(unknown) = skipped.iter().find(|name| !known(name)) {
        return refused(format!("invalid phase name: {unknown}"));
    }
    let skips = |name: &str| skipped.iter().any(|s| s == name);
    let mut steps = Steps::new();
    for phase in phases.iter().filter(|p| !skips(p.name)) {
        steps.push((phase.name, ""));
        steps.extend(phase.parts.iter().filter(|part| !skips(&format!("{}/{part}", phase.name))).map(|part| (phase.name, *part)));
    }
    Ok(steps)
}

/// One phase: whole (`all`, or no part named), or one part.
pub fn one(phases: &[Phase], command: &str, words: &[String]) -> Result<Steps> {
    let Some(name) = words.first() else {
        let names = phases.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        return refused(format!("name a phase: {names}"));
    };
    let Some(phase) = phases.iter().find(|p| p.name == name) else {
        let names = phases.iter().map(|p| p.name).collect::<Vec<_>>().join(", ");
        return refused(format!("unknown phase {name:?} of {command}: there are {names}"));
    };
    let mut steps = vec![(phase.name, "")];
    match words.get(1).map(String::as_str) {
        None | Some("all") => steps.extend(phase.parts.iter().map(|part| (phase.name, *part))),
        Some(wanted) => match phase.parts.iter().find(|part| **part == wanted) {
            Some(part) => steps.push((phase.name, part)),
            None => return refused(format!("unknown part {wanted:?} of the phase {name}: there are all, {}", phase.parts.join(", "))),
        },
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: &[Phase] = &[Phase { name: "preflight", parts: &[] }, Phase { name: "certs", parts: &["ca", "sa"] }];

    #[test]
    fn left_out_and_alone() {
        let words = |words: &[&str]| words.iter().map(|w| w.to_string()).collect::<Vec<_>>();
        assert_eq!(all(PHASES, &[]).expect("all"), [("preflight", ""), ("certs", ""), ("certs", "ca"), ("certs", "sa")]);
        assert_eq!(all(PHASES, &words(&["certs/ca", "preflight"])).expect("some"), [("certs", ""), ("certs", "sa")]);
        assert_eq!(all(PHASES, &words(&["certs"])).expect("one"), [("preflight", "")]);
        assert!(all(PHASES, &words(&["cert"])).is_err());
        assert_eq!(one(PHASES, "init", &words(&["certs", "sa"])).expect("a part"), [("certs", ""), ("certs", "sa")]);
        assert_eq!(one(PHASES, "init", &words(&["certs", "all"])).expect("all parts").len(), 3);
        for bad in [words(&[]), words(&["x"]), words(&["certs", "x"])] {
            assert!(one(PHASES, "init", &bad).is_err());
        }
    }
}
