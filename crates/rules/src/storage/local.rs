//! What the local-path provisioner and the kubelets say to each other, in annotations of nodes.

use std::fmt;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;

/// On a node: the directory that holds its volumes. Without it the node takes none.
pub const DIRECTORY: &str = "local-path.knarr/directory";
/// On a node: begins the key under which the end of one volume is dealt with.
const REMOVE: &str = "remove.local-path.knarr/";

/// The name of the volume that is made for a claim.
pub fn volume_name(claim_uid: &str) -> String {
    format!("pvc-{claim_uid}")
}

/// The name of a volume's directory.
pub fn directory_name(volume: &str, namespace: &str, claim: &str) -> String {
    format!("{volume}_{namespace}_{claim}")
}

/// Whether this can be the name of a volume's directory: one component of a path, and one of ours.
pub fn is_directory_name(name: &str) -> bool {
    name.starts_with("pvc-") && name.len() <= 255 && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// How far the removal of a volume's directory is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removal {
    /// The node is to remove the directory of this name.
    Asked(String),
    /// It could not yet; why.
    Failed(String),
    /// It is gone.
    Done,
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Asked(directory) => write!(f, "remove {directory}"),
            Removal::Failed(why) => write!(f, "failed {why}"),
            Removal::Done => f.write_str("removed"),
        }
    }
}

impl Removal {
    /// The key of the annotation for a volume.
    pub fn key(volume: &str) -> String {
        format!("{REMOVE}{volume}")
    }

    fn parse(text: &str) -> Option<Removal> {
        match text.split_once(' ') {
            None if text == "removed" => Some(Removal::Done),
            Some(("remove", directory)) => Some(Removal::Asked(directory.into())),
            Some(("failed", why)) => Some(Removal::Failed(why.into())),
            _ => None,
        }
    }

    /// What a node has about a volume.
    pub fn of(node: &Node, volume: &str) -> Option<Removal> {
        Removal::parse(node.annotations().get(&Removal::key(volume))?)
    }

    /// The volumes that a node has something about.
    pub fn volumes(node: &Node) -> impl Iterator<Item = &str> {
        node.annotations().keys().filter_map(|k| k.strip_prefix(REMOVE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_directories_lead_nowhere_else() {
        assert!(is_directory_name(&directory_name(&volume_name("1-2"), "n", "data-web-0")));
        for bad in ["", ".", "..", "pvc-a/b", "/etc", "pvc-..\\", "etc", "pvc-\0"] {
            assert!(!is_directory_name(bad), "{bad:?}");
        }
    }

    #[test]
    fn each_state_is_read_as_it_is_written() {
        for state in [Removal::Asked("pvc-1_n_a".into()), Removal::Failed("no such luck".into()), Removal::Done] {
            assert_eq!(Removal::parse(&state.to_string()), Some(state));
        }
        assert_eq!(Removal::parse("whatever"), None);
    }

    #[test]
    fn a_node_tells_of_each_volume_under_its_own_key() {
        let annotations = [(Removal::key("v"), "remove pvc-1_n_a"), (Removal::key("w"), "nonsense"), (DIRECTORY.to_string(), "/srv")];
        let annotations: std::collections::BTreeMap<_, _> = annotations.into_iter().map(|(k, v)| (k, v.to_string())).collect();
        let mut node = Node::default();
        node.metadata.annotations = Some(annotations);
        assert_eq!(Removal::key("v"), "remove.local-path.knarr/v");
        assert_eq!(Removal::of(&node, "v"), Some(Removal::Asked("pvc-1_n_a".into())));
        assert_eq!(Removal::of(&node, "w"), None);
        assert_eq!(Removal::of(&node, "other"), None);
        assert_eq!(Removal::volumes(&node).collect::<Vec<_>>(), ["v", "w"]);
    }
}
