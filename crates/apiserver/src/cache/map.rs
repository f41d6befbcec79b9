//! A persistent ordered map from text to values: a B+ tree whose nodes are shared between versions.
//!
//! - A clone is one reference count. A change copies the nodes on its path if another version shares them, about
//!   2 KB a level; three levels hold 260,000 entries.
//! - Leaves that get small are joined with a neighbour, so that a map that was large once does not stay thin.
use std::sync::Arc;

/// Most entries of a leaf, and most children of an inner node.
const WIDTH: usize = 64;
/// Neighbours that hold no more than this together become one.
const JOIN: usize = WIDTH / 2;

/// The map. Keys are in byte order.
pub struct Map<V> {
    root: Arc<Node<V>>,
    len: usize,
}

enum Node<V> {
    Leaf(Vec<(Arc<str>, V)>),
    /// Each child with its lowest key at the time it was made: no key in it is lower, none in the one before reaches it.
    Inner(Vec<(Arc<str>, Arc<Node<V>>)>),
}

impl<V> Clone for Map<V> {
    fn clone(&self) -> Self {
        Map { root: self.root.clone(), len: self.len }
    }
}

impl<V: Clone> Clone for Node<V> {
    fn clone(&self) -> Self {
        // room for one more: most copies are made to insert
        fn copy<T: Clone>(all: &[T]) -> Vec<T> {
            let mut copy = Vec::with_capacity(all.len() + 1);
            copy.extend_from_slice(all);
            copy
        }
        match self {
            Node::Leaf(entries) => Node::Leaf(copy(entries)),
            Node::Inner(children) => Node::Inner(copy(children)),
        }
    }
}

impl<V> Default for Map<V> {
    fn default() -> Self {
        Map { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<V: Clone> FromIterator<(Arc<str>, V)> for Map<V> {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, V)>>(entries: I) -> Self {
        let mut map = Map::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<V: Clone> Map<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn get(&self, key: &str) -> Option<&V> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Inner(children) => node = &children[child(children, key)].1,
                Node::Leaf(entries) => return find(entries, key).ok().map(|at| &entries[at].1),
            }
        }
    }

    /// Puts a value in, and returns the one that it replaces.
    pub fn insert(&mut self, key: Arc<str>, value: V) -> Option<V> {
        let (before, split) = Arc::make_mut(&mut self.root).insert(key, value);
        if let Some((first, right)) = split {
            // the first child takes whatever is lower than the second, so its key is the lowest of all
            self.root = Arc::new(Node::Inner(vec![("".into(), self.root.clone()), (first, right)]));
        }
        self.len += before.is_none() as usize;
        before
    }

    /// Takes a value out.
    pub fn remove(&mut self, key: &str) -> Option<V> {
        self.get(key)?;
        let value = Arc::make_mut(&mut self.root).remove(key);
        self.len -= value.is_some() as usize;
        loop {
            match &*self.root {
                Node::Inner(children) if children.len() == 1 => self.root = children[0].1.clone(),
                _ => return value,
            }
        }
    }

    /// All entries from this key on, itself included, in order.
    pub fn from<'a>(&'a self, key: &str) -> Iter<'a, V> {
        let mut iter = Iter { path: Vec::new() };
        let mut node = &*self.root;
        loop {
            match node {
                Node::Inner(children) => {
                    let at = child(children, key);
                    iter.path.push((node, at + 1));
                    node = &children[at].1;
                }
                Node::Leaf(entries) => {
                    let (Ok(at) | Err(at)) = find(entries, key);
                    iter.path.push((node, at));
                    return iter;
                }
            }
        }
    }

    /// All entries in order.
    pub fn iter(&self) -> Iter<'_, V> {
        self.from("")
    }
}

impl<V: Clone> Node<V> {
    fn len(&self) -> usize {
        match self {
            Node::Leaf(entries) => entries.len(),
            Node::Inner(children) => children.len(),
        }
    }

    /// What was there, and the right half with its lowest key if this became too wide.
    #[allow(clippy::type_complexity)]
    fn insert(&mut self, key: Arc<str>, value: V) -> (Option<V>, Option<(Arc<str>, Arc<Node<V>>)>) {
        match self {
            Node::Leaf(entries) => match find(entries, &key) {
                Ok(at) => (Some(std::mem::replace(&mut entries[at].1, value)), None),
                Err(at) => {
                    entries.insert(at, (key, value));
                    // keys often come in order: then the left half would stay half full for ever
                    let cut = if at + 1 == entries.len() { WIDTH } else { entries.len() / 2 };
                    (None, (entries.len() > WIDTH).then(|| (entries[cut].0.clone(), Arc::new(Node::Leaf(entries.split_off(cut))))))
                }
            },
            Node::Inner(children) => {
                let at = child(children, &key);
                let (before, split) = Arc::make_mut(&mut children[at].1).insert(key, value);
                let Some(right) = split else { return (before, None) };
                children.insert(at + 1, right);
                let cut = if at + 2 == children.len() { WIDTH } else { children.len() / 2 };
                (before, (children.len() > WIDTH).then(|| (children[cut].0.clone(), Arc::new(Node::Inner(children.split_off(cut))))))
            }
        }
    }

    fn remove(&mut self, key: &str) -> Option<V> {
        match self {
            Node::Leaf(entries) => find(entries, key).ok().map(|at| entries.remove(at).1),
            Node::Inner(children) => {
                let at = child(children, key);
                let value = Arc::make_mut(&mut children[at].1).remove(key);
                let left = at.saturating_sub(1);
                let len = |at: usize| children.get(at).map_or(WIDTH, |(_, c)| c.len());
                if len(left) + len(left + 1) <= JOIN || children.len() > 1 && len(at) == 0 {
                    let (_, right) = children.remove(left + 1);
                    Arc::make_mut(&mut children[left].1).join(&right);
                }
                value
            }
        }
    }

    /// Takes over what the neighbour on the right has; both are on the same level.
    fn join(&mut self, right: &Node<V>) {
        match (self, right) {
            (Node::Leaf(mine), Node::Leaf(theirs)) => mine.extend_from_slice(theirs),
            (Node::Inner(mine), Node::Inner(theirs)) => mine.extend_from_slice(theirs),
            _ => unreachable!("nodes of one level are of one kind"),
        }
    }
}

/// Which child has this key, if any has.
fn child<V>(children: &[(Arc<str>, Arc<Node<V>>)], key: &str) -> usize {
    children.partition_point(|(first, _)| &**first <= key).saturating_sub(1)
}

fn find<V>(entries: &[(Arc<str>, V)], key: &str) -> Result<usize, usize> {
    entries.binary_search_by(|(k, _)| (**k).cmp(key))
}

/// Entries in order.
pub struct Iter<'a, V> {
    /// From the root down: a node, and the child or entry that comes next.
    path: Vec<(&'a Node<V>, usize)>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = (&'a Arc<str>, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (node, at) = self.path.last_mut()?;
            match node {
                Node::Leaf(entries) => {
                    if let Some((key, value)) = entries.get(*at) {
                        *at += 1;
                        return Some((key, value));
                    }
                    self.path.pop();
                }
                Node::Inner(children) => match children.get(*at) {
                    Some((_, below)) => {
                        *at += 1;
                        self.path.push((below, 0));
                    }
                    None => drop(self.path.pop()),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Random changes on the map and on the standard one, with older versions kept aside.
    #[test]
    fn like_the_standard_map_in_every_version() {
        let mut seed = 7u64;
        let mut random = move |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        let (mut map, mut model) = (Map::default(), BTreeMap::new());
        let mut versions = Vec::new();
        for step in 0..60_000u64 {
            // grows, then shrinks to nearly nothing
            let grows = if step < 30_000 { 7 } else { 2 };
            let key: Arc<str> = format!("ns-{}/pod-{}", random(9), random(2_000)).into();
            if random(10) < grows {
                assert_eq!(map.insert(key.clone(), step), model.insert(key, step));
            } else {
                assert_eq!(map.remove(&key), model.remove(&key));
            }
            assert_eq!(map.len(), model.len());
            if step % 5_000 == 0 {
                versions.push((map.clone(), model.clone()));
            }
            if step % 500 == 0 {
                let key: Arc<str> = format!("ns-{}/pod-{}", random(9), random(2_000)).into();
                assert!(map.from(&key).eq(model.range(key.clone()..)), "from {key}");
            }
        }
        versions.push((map, model));
        for (map, model) in versions {
            assert!(map.iter().eq(model.iter()));
            assert!(model.iter().all(|(k, v)| map.get(k) == Some(v)));
        }
    }

    #[test]
    fn stays_dense_and_flat() {
        let mut map: Map<usize> = (0..100_000).map(|i| (format!("{i:06}").into(), i)).collect();
        let depth = |map: &Map<usize>| {
            let (mut depth, mut node) = (1, &*map.root);
            while let Node::Inner(children) = node {
                (depth, node) = (depth + 1, &children[0].1);
            }
            depth
        };
        assert_eq!(depth(&map), 3, "keys in order fill the leaves");
        for i in 0..99_990 {
            assert_eq!(map.remove(&format!("{i:06}")), Some(i));
        }
        assert_eq!((map.len(), depth(&map)), (10, 1));
        assert!(map.from("099995").map(|(_, v)| *v).eq(99_995..100_000));
    }
}
