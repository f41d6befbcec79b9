//! Who owns whom. Pure: objects come in and go, and the graph says which of them need a look.
//!
//! It holds metadata alone, and each string of it once: at 150,000 pods that is what counts.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::plan::Standing;
use super::slim::Meta;

/// The uid of an object.
pub type Uid = Arc<str>;

/// A kind whose objects are followed.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub resource: kube::core::ApiResource,
    pub namespaced: bool,
}

/// Where an object is found.
#[derive(Debug, Clone, PartialEq)]
pub struct Identity {
    pub kind: Arc<Kind>,
    /// Empty for cluster-wide kinds.
    pub namespace: Arc<str>,
    pub name: Box<str>,
}

/// What a reference says of an owner beside its uid.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Coordinates {
    pub api_version: Box<str>,
    pub kind: Box<str>,
    pub name: Box<str>,
}

impl Coordinates {
    /// The coordinates in a reference.
    pub fn of(reference: &OwnerReference) -> Coordinates {
        Coordinates {
            api_version: reference.api_version.as_str().into(),
            kind: reference.kind.as_str().into(),
            name: reference.name.as_str().into(),
        }
    }

    /// The API group.
    pub fn group(&self) -> &str {
        self.api_version.split_once('/').map_or("", |(group, _)| group)
    }

    fn fits(&self, identity: &Identity) -> bool {
        let resource = &identity.kind.resource;
        *self.kind == *resource.kind && self.group() == resource.group && self.name == identity.name
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Owner {
    uid: Uid,
    coordinates: Arc<Coordinates>,
    blocks: bool,
}

#[derive(Debug)]
struct Item {
    identity: Identity,
    owners: Box<[Owner]>,
    deleting: bool,
    foreground: bool,
    orphan: bool,
}

impl Item {
    fn waits_for_dependents(&self) -> bool {
        self.deleting && self.foreground
    }

    /// Whether there is nothing left to do for it but to wait for its end.
    fn leaves(&self) -> bool {
        self.deleting && !self.foreground && !self.orphan
    }
}

#[derive(Default)]
struct Dependents {
    coordinates: Option<Arc<Coordinates>>,
    uids: BTreeSet<Uid>,
}

/// An owner reference to an object of another namespace.
#[derive(Debug, PartialEq)]
pub struct Misplaced {
    pub uid: Uid,
    pub identity: Identity,
    pub owner_uid: Uid,
    pub owner: Arc<Coordinates>,
}

/// What a change of the graph leads to.
#[derive(Debug, Default, PartialEq)]
pub struct Work {
    /// Objects that need a decision.
    pub look: Vec<Uid>,
    /// Mistakes to tell of.
    pub misplaced: Vec<Misplaced>,
}

/// What the graph knows of an object that needs a decision.
#[derive(Debug, PartialEq)]
pub enum State {
    /// It is being deleted, and its dependents are to be let go first.
    Orphaning(Vec<(Uid, Identity)>),
    /// It is being deleted in the foreground, and dependents hold it.
    Blocked,
    /// It is being deleted in the foreground, and nothing holds it any more.
    Unblocked,
    /// Nothing can be done.
    Settled,
    /// It has owners: whether they still exist decides.
    Owned,
}

/// Absent owners that are remembered, so that many dependents ask once.
const REMEMBERED: usize = 500;

type AbsentKey = (Uid, Arc<str>, Coordinates);

/// All objects by uid.
#[derive(Default)]
pub struct Graph {
    items: HashMap<Uid, Item>,
    dependents: HashMap<Uid, Dependents>,
    namespaces: HashSet<Arc<str>>,
    absent: HashSet<AbsentKey>,
    absent_order: VecDeque<AbsentKey>,
}

impl Graph {
    /// Takes in an object.
    pub fn put(&mut self, kind: &Arc<Kind>, meta: &Meta) -> Work {
        let mut work = Work::default();
        let (uid, old) = match self.items.remove_entry(meta.uid.as_str()) {
            Some((uid, old)) => (uid, Some(old)),
            None => (self.shared_uid(&meta.uid), None),
        };
        let namespace = self.shared_namespace(&meta.namespace);
        let owners: Box<[Owner]> = meta.owner_references.iter().map(|r| self.owner(r)).collect();
        let identity = match &old {
            Some(old) => old.identity.clone(),
            None => Identity { kind: kind.clone(), namespace, name: meta.name.as_str().into() },
        };
        let has = |finalizer: &str| meta.finalizers.iter().any(|f| f == finalizer);
        let item = Item { identity, owners, deleting: meta.deletion_timestamp.is_some(), foreground: has("foregroundDeletion"), orphan: has("orphan") };

        let before: &[Owner] = old.as_ref().map_or(&[], |o| &o.owners);
        for owner in item.owners.iter().filter(|o| !before.contains(o)) {
            self.dependents.entry(owner.uid.clone()).or_default().uids.insert(uid.clone());
            match self.items.get(&owner.uid) {
                None => work.look.push(uid.clone()),
                Some(known) if !reachable(known, &item.identity) => {
                    work.look.push(uid.clone());
                    work.misplaced.push(misplaced(&uid, &item.identity, owner));
                }
                Some(known) if !owner.coordinates.fits(&known.identity) || known.waits_for_dependents() => work.look.push(uid.clone()),
                Some(_) => {}
            }
        }
        let started = |now: bool, then: fn(&Item) -> bool| now && !old.as_ref().is_some_and(then);
        if started(item.waits_for_dependents(), Item::waits_for_dependents) {
            work.look.extend(self.dependents.get(&uid).into_iter().flat_map(|d| d.uids.iter().cloned()));
            work.look.push(uid.clone());
        }
        if started(item.deleting && item.orphan, |o| o.deleting && o.orphan) {
            work.look.push(uid.clone());
        }
        if old.is_none() {
            self.check_dependents(&uid, &item, &mut work);
        }
        let lost: Vec<Owner> = before.iter().filter(|o| !item.owners.contains(o)).cloned().collect();
        let kept: HashSet<Uid> = item.owners.iter().map(|o| o.uid.clone()).collect();
        self.items.insert(uid.clone(), item);
        for owner in lost {
            if !kept.contains(&owner.uid) {
                self.unlink(&owner.uid, &uid);
            }
            if self.is_unblocked(&owner.uid) {
                work.look.push(owner.uid);
            }
        }
        work
    }

    /// Dependents that came before their owner may have called it by wrong coordinates.
    fn check_dependents(&self, uid: &Uid, item: &Item, work: &mut Work) {
        for dependent in self.dependents.get(uid).into_iter().flat_map(|d| &d.uids) {
            let Some(child) = self.items.get(dependent) else { continue };
            for owner in child.owners.iter().filter(|o| o.uid == *uid) {
                if !reachable(item, &child.identity) {
                    work.misplaced.push(misplaced(dependent, &child.identity, owner));
                    work.look.push(dependent.clone());
                } else if !owner.coordinates.fits(&item.identity) {
                    work.look.push(dependent.clone());
                }
            }
        }
    }

    /// Forgets an object. Returns the objects that need a decision.
    pub fn remove(&mut self, uid: &str) -> Vec<Uid> {
        let Some((uid, item)) = self.items.remove_entry(uid) else { return Vec::new() };
        let mut look = Vec::new();
        if let Some(dependents) = self.dependents.get(&uid) {
            let waiting = |d: &&Uid| self.items.get(*d).is_some_and(|i| !i.leaves());
            look.extend(dependents.uids.iter().filter(waiting).cloned());
            let resource = &item.identity.kind.resource;
            let coordinates = Coordinates {
                api_version: resource.api_version.as_str().into(),
                kind: resource.kind.as_str().into(),
                name: item.identity.name.clone(),
            };
            self.remember_absent(&uid, &item.identity.namespace, coordinates);
        }
        for owner in &item.owners {
            self.unlink(&owner.uid, &uid);
            if self.is_unblocked(&owner.uid) {
                look.push(owner.uid.clone());
            }
        }
        look
    }

    /// The known objects of a kind that are not among `seen`.
    pub fn others(&self, kind: &Kind, seen: &HashSet<String>) -> Vec<Uid> {
        let of_kind = |i: &Item| {
            let known = &i.identity.kind.resource;
            known.group == kind.resource.group && known.plural == kind.resource.plural
        };
        self.items.iter().filter(|(uid, i)| of_kind(i) && !seen.contains(uid.as_ref())).map(|(uid, _)| uid.clone()).collect()
    }

    /// Where an object is found.
    pub fn identity(&self, uid: &str) -> Option<&Identity> {
        self.items.get(uid).map(|i| &i.identity)
    }

    /// What is to be decided about an object.
    pub fn state(&self, uid: &str) -> State {
        let Some(item) = self.items.get(uid) else { return State::Settled };
        if item.deleting && item.orphan {
            let dependents = self.dependents.get(uid).into_iter().flat_map(|d| &d.uids);
            return State::Orphaning(dependents.filter_map(|d| Some((d.clone(), self.items.get(d)?.identity.clone()))).collect());
        }
        if item.waits_for_dependents() {
            return if self.is_unblocked(uid) { State::Unblocked } else { State::Blocked };
        }
        if item.deleting || item.owners.is_empty() { State::Settled } else { State::Owned }
    }

    /// What the graph can say of an owner; nothing when the API server has to be asked.
    pub fn standing(&self, reference: &OwnerReference, namespace: &str) -> Option<Standing> {
        let coordinates = Coordinates::of(reference);
        if let Some(item) = self.items.get(reference.uid.as_str()) {
            let here = item.identity.namespace.is_empty() || *item.identity.namespace == *namespace;
            if here && coordinates.fits(&item.identity) {
                return Some(if item.waits_for_dependents() { Standing::Waiting } else { Standing::Solid });
            }
        }
        let uid: Uid = reference.uid.as_str().into();
        let known = |namespace: &str| self.absent.contains(&(uid.clone(), namespace.into(), coordinates.clone()));
        (known("") || known(namespace)).then_some(Standing::Absent)
    }

    /// Remembers that no object of this uid is found at these coordinates. `namespace` is empty for
    /// owners of cluster-wide kinds.
    pub fn remember_absent(&mut self, uid: &str, namespace: &str, coordinates: Coordinates) {
        let key: AbsentKey = (uid.into(), namespace.into(), coordinates);
        if self.absent.insert(key.clone()) {
            self.absent_order.push_back(key);
            if self.absent_order.len() > REMEMBERED
                && let Some(oldest) = self.absent_order.pop_front()
            {
                self.absent.remove(&oldest);
            }
        }
    }

    /// Whether an object has dependents, and whether one of them waits for dependents of its own.
    pub fn dependents(&self, uid: &str) -> (bool, bool) {
        let uids = || self.dependents.get(uid).into_iter().flat_map(|d| &d.uids).filter_map(|d| self.items.get(d));
        (uids().next().is_some(), uids().any(Item::waits_for_dependents))
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// True when there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether an object waits for dependents and none blocks it. One that owns itself does not wait for itself.
    fn is_unblocked(&self, uid: &str) -> bool {
        let blocks = |d: &Uid| **d != *uid && self.items.get(d).is_some_and(|i| i.owners.iter().any(|o| *o.uid == *uid && o.blocks));
        self.items.get(uid).is_some_and(Item::waits_for_dependents)
            && !self.dependents.get(uid).is_some_and(|d| d.uids.iter().any(blocks))
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.uids.remove(dependent);
            if dependents.uids.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn shared_uid(&self, uid: &str) -> Uid {
        self.dependents.get_key_value(uid).map_or_else(|| uid.into(), |(known, _)| known.clone())
    }

    fn shared_namespace(&mut self, namespace: &str) -> Arc<str> {
        if let Some(known) = self.namespaces.get(namespace) {
            return known.clone();
        }
        let new: Arc<str> = namespace.into();
        self.namespaces.insert(new.clone());
        new
    }

    fn owner(&mut self, reference: &OwnerReference) -> Owner {
        let uid = match self.items.get_key_value(reference.uid.as_str()) {
            Some((known, _)) => known.clone(),
            None => self.shared_uid(&reference.uid),
        };
        let said = Coordinates::of(reference);
        let entry = self.dependents.entry(uid.clone()).or_default();
        let coordinates = match &entry.coordinates {
            Some(known) if **known == said => known.clone(),
            _ => entry.coordinates.insert(Arc::new(said)).clone(),
        };
        Owner { uid, coordinates, blocks: reference.block_owner_deletion == Some(true) }
    }
}

/// Whether an object may be owned by this one: cluster-wide owners are everybody's.
fn reachable(owner: &Item, dependent: &Identity) -> bool {
    owner.identity.namespace.is_empty() || owner.identity.namespace == dependent.namespace
}

fn misplaced(uid: &Uid, identity: &Identity, owner: &Owner) -> Misplaced {
    Misplaced { uid: uid.clone(), identity: identity.clone(), owner_uid: owner.uid.clone(), owner: owner.coordinates.clone() }
}
