//! Who owns whom, and what follows from it. Pure.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ApiResource;

/// Where an object is found.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub resource: ApiResource,
    pub namespace: String,
    pub name: String,
}

/// What the collector knows of one object.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub identity: Identity,
    pub owners: Vec<OwnerReference>,
    pub deleting: bool,
    /// It carries the finalizer `foregroundDeletion`.
    pub foreground: bool,
    /// It carries the finalizer `orphan`.
    pub orphan: bool,
}

impl Item {
    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// What a look at the API server said of an owner that the graph does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absent {
    /// It does not exist (any more).
    Yes,
    /// It exists.
    No,
    /// Its kind is not served; nothing may be concluded.
    Unknown,
}

/// What is to be done about one object.
#[derive(Debug, PartialEq)]
pub enum Action {
    Nothing,
    /// It has lost its owners.
    Delete { identity: Identity, foreground: bool },
    /// Some of its owners are gone, others are not.
    DropOwners { identity: Identity, keep: Vec<OwnerReference> },
    /// It waits for these dependents.
    Visit(Vec<String>),
    /// Its dependents are to be let go (uid, place, owners that stay), then its finalizer.
    Orphan { dependents: Vec<(String, Identity, Vec<OwnerReference>)>, identity: Identity },
    /// Nothing blocks its foreground deletion any more.
    Finish(Identity),
}

/// All objects by uid.
#[derive(Default)]
pub struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, BTreeSet<String>>,
}

impl Graph {
    /// Takes in an object. Returns the uids that need a decision.
    pub fn put(&mut self, uid: String, item: Item) -> Vec<String> {
        let mut work = Vec::new();
        if let Some(old) = self.items.get(&uid) {
            for owner in old.owners.clone() {
                self.unlink(&owner.uid, &uid);
                // An owner that waits may have waited for this one.
                if !item.owners.iter().any(|o| o.uid == owner.uid) && self.items.get(&owner.uid).is_some_and(Item::waits_for_dependents) {
                    work.push(owner.uid);
                }
            }
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.clone());
            let known = self.items.get(&owner.uid);
            if known.is_none() || known.is_some_and(Item::waits_for_dependents) {
                work.push(uid.clone());
            }
        }
        if item.deleting && (item.foreground || item.orphan) {
            work.push(uid.clone());
        }
        self.items.insert(uid, item);
        work
    }

    /// Forgets an object. Returns the uids that need a decision.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        let mut work: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        for owner in &item.owners {
            self.unlink(&owner.uid, uid);
            if self.items.get(&owner.uid).is_some_and(Item::waits_for_dependents) {
                work.push(owner.uid.clone());
            }
        }
        work
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(set) = self.dependents.get_mut(owner) {
            set.remove(dependent);
            if set.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    /// The known objects of a kind that are not among `seen`.
    pub fn others(&self, resource: &ApiResource, seen: &[String]) -> Vec<String> {
        let seen: BTreeSet<&String> = seen.iter().collect();
        let of_kind = |i: &Item| i.identity.resource.group == resource.group && i.identity.resource.plural == resource.plural;
        self.items.iter().filter(|(uid, i)| of_kind(i) && !seen.contains(uid)).map(|(uid, _)| uid.clone()).collect()
    }

    /// One object.
    pub fn get(&self, uid: &str) -> Option<&Item> {
        self.items.get(uid)
    }

    /// Owners of an object that the graph does not hold.
    pub fn unknown_owners(&self, uid: &str) -> Vec<OwnerReference> {
        let owners = self.items.get(uid).map(|i| i.owners.as_slice()).unwrap_or_default();
        owners.iter().filter(|o| !self.items.contains_key(&o.uid)).cloned().collect()
    }

    fn blocking(&self, uid: &str) -> Vec<String> {
        let blocks = |d: &&String| self.items.get(*d).is_some_and(|i| i.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)));
        self.dependents.get(uid).into_iter().flatten().filter(blocks).cloned().collect()
    }

    /// Decides about one object. `absent` tells of the owners that the graph does not hold.
    pub fn decide(&self, uid: &str, absent: &[(String, Absent)]) -> Action {
        let Some(item) = self.items.get(uid) else { return Action::Nothing };
        if item.deleting && item.orphan {
            let dependents = self.dependents.get(uid).into_iter().flatten();
            let without = |d: &String| {
                let child = self.items.get(d)?;
                let keep = child.owners.iter().filter(|o| o.uid != uid).cloned().collect();
                Some((d.clone(), child.identity.clone(), keep))
            };
            return Action::Orphan { dependents: dependents.filter_map(without).collect(), identity: item.identity.clone() };
        }
        if item.waits_for_dependents() {
            let blocking = self.blocking(uid);
            if blocking.is_empty() {
                return Action::Finish(item.identity.clone());
            }
            return Action::Visit(blocking.into_iter().filter(|d| self.items.get(d).is_some_and(|i| !i.deleting)).collect());
        }
        if item.deleting || item.owners.is_empty() {
            return Action::Nothing;
        }
        let (mut solid, mut waiting) = (Vec::new(), false);
        for owner in &item.owners {
            match self.items.get(&owner.uid) {
                Some(known) if known.waits_for_dependents() => waiting = true,
                Some(_) => solid.push(owner.clone()),
                None => match absent.iter().find(|(u, _)| *u == owner.uid) {
                    Some((_, Absent::Yes)) => {}
                    Some((_, Absent::No | Absent::Unknown)) | None => solid.push(owner.clone()),
                },
            }
        }
        if solid.len() == item.owners.len() {
            return Action::Nothing;
        }
        if !solid.is_empty() {
            return Action::DropOwners { identity: item.identity.clone(), keep: solid };
        }
        // Under an owner that waits, dependents of dependents must go first too.
        let foreground = item.foreground || (waiting && self.dependents.contains_key(uid));
        Action::Delete { identity: item.identity.clone(), foreground }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::GroupVersionKind;

    fn item(name: &str, owners: &[&str]) -> Item {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
        let owner = |uid: &&str| OwnerReference { uid: uid.to_string(), block_owner_deletion: Some(true), ..OwnerReference::default() };
        Item {
            identity: Identity { resource, namespace: "ns".into(), name: name.into() },
            owners: owners.iter().map(owner).collect(),
            deleting: false,
            foreground: false,
            orphan: false,
        }
    }

    #[test]
    fn dependents_follow_their_last_owner() {
        let mut graph = Graph::default();
        graph.put("a".into(), item("a", &[]));
        graph.put("b".into(), item("b", &[]));
        assert!(graph.put("c".into(), item("c", &["a", "b"])).is_empty());
        assert_eq!(graph.remove("a"), ["c"]);
        let gone = [("a".to_string(), Absent::Yes)];
        assert!(matches!(graph.decide("c", &gone), Action::DropOwners { keep, .. } if keep.len() == 1));
        assert_eq!(graph.remove("b"), ["c"]);
        let gone = [("a".to_string(), Absent::Yes), ("b".to_string(), Absent::Yes)];
        assert!(matches!(graph.decide("c", &gone), Action::Delete { foreground: false, .. }));
        let unsure = [("a".to_string(), Absent::Yes), ("b".to_string(), Absent::Unknown)];
        assert!(matches!(graph.decide("c", &unsure), Action::DropOwners { .. }), "nothing is deleted on a guess");
    }

    #[test]
    fn a_foreground_deletion_waits_for_blocking_dependents() {
        let mut graph = Graph::default();
        graph.put("a".into(), item("a", &[]));
        graph.put("b".into(), item("b", &["a"]));
        let leaving = Item { deleting: true, foreground: true, ..item("a", &[]) };
        assert_eq!(graph.put("a".into(), leaving), ["a"]);
        assert_eq!(graph.decide("a", &[]), Action::Visit(vec!["b".into()]));
        assert!(matches!(graph.decide("b", &[]), Action::Delete { .. }));
        assert_eq!(graph.remove("b"), ["a"]);
        assert!(matches!(graph.decide("a", &[]), Action::Finish(_)));
    }

    #[test]
    fn orphans_lose_that_owner_alone() {
        let mut graph = Graph::default();
        graph.put("a".into(), Item { deleting: true, orphan: true, ..item("a", &[]) });
        graph.put("b".into(), item("b", &["a", "x"]));
        let Action::Orphan { dependents, .. } = graph.decide("a", &[]) else { panic!("it is to be orphaned") };
        assert_eq!(dependents.len(), 1);
        assert_eq!(dependents[0].2.iter().map(|o| o.uid.as_str()).collect::<Vec<_>>(), ["x"]);
    }
}
