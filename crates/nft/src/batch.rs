//! From rule sets to the messages of one transaction, each with words for what it is about.

use crate::attributes::Attributes;
use crate::compile::{ANONYMOUS_NAME, Anonymous, address_length, compile, value, verdict};
use crate::{Chain, Elements, Family, HookKind, HookPoint, Key, Result, RuleSet, Set, Type, Verdict};

const NEW_TABLE: u8 = 0;
const DELETE_TABLE: u8 = 2;
const NEW_CHAIN: u8 = 3;
const DELETE_CHAIN: u8 = 5;
const NEW_RULE: u8 = 6;
const DELETE_RULE: u8 = 8;
const NEW_SET: u8 = 9;
const DELETE_SET: u8 = 11;
const NEW_ELEMENT: u8 = 12;
const DELETE_ELEMENT: u8 = 14;

/// Set flags.
const ANONYMOUS: u32 = 1;
const CONSTANT: u32 = 2;
const MAP: u32 = 8;
const TIMEOUT: u32 = 16;
const DYNAMIC: u32 = 32;

/// The data type of maps to verdicts.
const VERDICTS: u32 = 0xffff_ff00;
/// What one message holds of elements, well below an attribute's 64 KiB.
const ELEMENT_BYTES: usize = 32 << 10;

/// One message of a transaction.
pub(crate) struct Message {
    /// What it is about, in words.
    pub(crate) object: String,
    /// Its type.
    pub(crate) kind: u8,
    /// `NLM_F_CREATE` and `NLM_F_APPEND`, where they apply.
    pub(crate) flags: u16,
    /// Its attributes.
    pub(crate) payload: Vec<u8>,
}

struct Batch<'a> {
    rules: &'a RuleSet,
    next_map: u32,
    messages: Vec<Message>,
}

/// The messages that replace the table, if there is one, by this one.
pub(crate) fn replace(rules: &RuleSet) -> Result<Vec<Message>> {
    let mut batch = Batch { rules, next_map: 1, messages: Vec::new() };
    // Making it first lets the deletion succeed when there was none.
    batch.table(NEW_TABLE);
    batch.table(DELETE_TABLE);
    batch.table(NEW_TABLE);
    for (name, chain) in &rules.chains {
        batch.chain(name, chain);
    }
    for (name, set) in &rules.sets {
        batch.set(name, set);
    }
    for (name, set) in &rules.sets {
        batch.elements(NEW_ELEMENT, name, set, |_| true);
    }
    for (name, chain) in &rules.chains {
        batch.rules(name, chain)?;
    }
    Ok(batch.messages)
}

/// The messages that turn one state of a table into another; empty when they are equal. A change of
/// what cannot be changed in place becomes a replacement.
pub(crate) fn update(old: &RuleSet, new: &RuleSet) -> Result<Vec<Message>> {
    let hooks_differ = old.chains.iter().any(|(name, chain)| new.chains.get(name).is_some_and(|c| c.hook != chain.hook));
    let sets_differ = old.sets.iter().any(|(name, set)| new.sets.get(name).is_some_and(|s| !same_shape(s, set)));
    if (old.family, &old.table) != (new.family, &new.table) || hooks_differ || sets_differ {
        return replace(new);
    }
    let mut batch = Batch { rules: new, next_map: 1, messages: Vec::new() };
    for (name, chain) in new.chains.iter().filter(|(name, _)| !old.chains.contains_key(*name)) {
        batch.chain(name, chain);
    }
    let changed = |name: &String, chain: &Chain| old.chains.get(name).is_none_or(|o| o.rules != chain.rules);
    for (name, chain) in &old.chains {
        if !chain.rules.is_empty() && new.chains.get(name).is_none_or(|c| c.rules != chain.rules) {
            batch.flush(name);
        }
    }
    for (name, set) in &old.sets {
        match new.sets.get(name) {
            Some(now) => batch.elements(DELETE_ELEMENT, name, set, |key| !same_element(set, now, key)),
            None => {
                batch.elements(DELETE_ELEMENT, name, set, |_| true);
                batch.delete_set(name);
            }
        }
    }
    for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
        batch.delete_chain(name);
    }
    for (name, set) in &new.sets {
        match old.sets.get(name) {
            Some(before) => batch.elements(NEW_ELEMENT, name, set, |key| !same_element(before, set, key)),
            None => {
                batch.set(name, set);
                batch.elements(NEW_ELEMENT, name, set, |_| true);
            }
        }
    }
    for (name, chain) in new.chains.iter().filter(|(name, chain)| changed(name, chain)) {
        batch.rules(name, chain)?;
    }
    Ok(batch.messages)
}

fn same_shape(a: &Set, b: &Set) -> bool {
    let kind = match (&a.elements, &b.elements) {
        (Elements::Dynamic(a), Elements::Dynamic(b)) => a == b,
        (a, b) => std::mem::discriminant(a) == std::mem::discriminant(b),
    };
    kind && a.key == b.key
}

fn same_element(a: &Set, b: &Set, key: &Key) -> bool {
    match (&a.elements, &b.elements) {
        (Elements::Keys(a), Elements::Keys(b)) => a.contains_key(key) && b.contains_key(key),
        (Elements::Verdicts(a), Elements::Verdicts(b)) => a.contains_key(key) && a.get(key) == b.get(key),
        _ => false,
    }
}

/// The message that deletes a table.
pub(crate) fn delete(table: &str) -> Message {
    Message {
        object: format!("table {table}"),
        kind: DELETE_TABLE,
        flags: 0,
        payload: Attributes::new().text(1, table).0,
    }
}

/// A comment as libnftnl stores it: type, length, text with a zero.
fn comment(kind: u8, text: &str) -> Option<Vec<u8>> {
    if text.is_empty() {
        return None;
    }
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![kind, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(&text.as_bytes()[..end]);
    bytes.push(0);
    Some(bytes)
}

/// The data type numbers of `nft`, so that it prints keys well, and lengths.
fn key_type(family: Family, key: &[Type]) -> (u32, u32) {
    key.iter().fold((0, 0), |(kind, length), part| {
        let (id, bytes) = match part {
            Type::Address if family == Family::Ip => (7, 4),
            Type::Address => (8, 16),
            Type::Protocol => (12, 1),
            Type::Port => (13, 2),
            Type::Mark => (19, 4),
            Type::Link => (41, 16),
        };
        // A single part keeps its own length; joined ones fill whole registers.
        let bytes: u32 = if key.len() == 1 { bytes } else { u32::next_multiple_of(bytes, 4) };
        (kind << 6 | id, length + bytes)
    })
}

impl Batch<'_> {
    fn add(&mut self, kind: u8, object: String, attributes: Attributes) {
        let create = u16::try_from(libc::NLM_F_CREATE).unwrap_or(0);
        let append = u16::try_from(libc::NLM_F_APPEND).unwrap_or(0);
        let flags = match kind {
            NEW_RULE => create | append,
            NEW_TABLE | NEW_CHAIN | NEW_SET | NEW_ELEMENT => create,
            _ => 0,
        };
        self.messages.push(Message { object, kind, flags, payload: attributes.0 });
    }

    fn table(&mut self, kind: u8) {
        let name = &self.rules.table;
        let mut attributes = Attributes::new().text(1, name);
        if kind == NEW_TABLE {
            attributes = attributes.u32(2, 0).optional(6, comment(0, &self.rules.comment));
        }
        self.add(kind, format!("table {name}"), attributes);
    }

    fn chain(&mut self, name: &str, chain: &Chain) {
        let mut attributes = Attributes::new().text(1, &self.rules.table).text(3, name);
        if let Some(hook) = chain.hook {
            let point = match hook.point {
                HookPoint::Prerouting => 0,
                HookPoint::Input => 1,
                HookPoint::Forward => 2,
                HookPoint::Output => 3,
                HookPoint::Postrouting => 4,
            };
            let kind = match hook.kind {
                HookKind::Filter => "filter",
                HookKind::Nat => "nat",
            };
            let accept = 1;
            let place = Attributes::new().u32(1, point).bytes(2, &hook.priority.to_be_bytes());
            attributes = attributes.nest(4, place).u32(5, accept).text(7, kind);
        }
        self.add(NEW_CHAIN, format!("chain {name}"), attributes);
    }

    fn flush(&mut self, chain: &str) {
        let attributes = Attributes::new().text(1, &self.rules.table).text(2, chain);
        self.add(DELETE_RULE, format!("rules of chain {chain}"), attributes);
    }

    fn delete_chain(&mut self, name: &str) {
        let attributes = Attributes::new().text(1, &self.rules.table).text(3, name);
        self.add(DELETE_CHAIN, format!("chain {name}"), attributes);
    }

    fn delete_set(&mut self, name: &str) {
        let attributes = Attributes::new().text(1, &self.rules.table).text(2, name);
        self.add(DELETE_SET, format!("set {name}"), attributes);
    }

    fn set(&mut self, name: &str, set: &Set) {
        let (kind, length) = key_type(self.rules.family, &set.key);
        let flags = match set.elements {
            Elements::Keys(_) => 0,
            Elements::Verdicts(_) => MAP,
            Elements::Dynamic(_) => DYNAMIC | TIMEOUT,
        };
        let id = self.next_map;
        self.next_map += 1;
        let mut attributes =
            Attributes::new().text(1, &self.rules.table).text(2, name).u32(3, flags).u32(4, kind).u32(5, length);
        match set.elements {
            Elements::Verdicts(_) => attributes = attributes.u32(6, VERDICTS).u32(7, 16),
            Elements::Dynamic(size) => attributes = attributes.nest(9, Attributes::new().u32(1, size)),
            Elements::Keys(_) => {}
        }
        self.add(NEW_SET, format!("set {name}"), attributes.u32(10, id));
    }

    fn elements(&mut self, kind: u8, name: &str, set: &Set, wanted: impl Fn(&Key) -> bool) {
        let (_, length) = key_type(self.rules.family, &set.key);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let key = |key: &Key| value(&key.0[..length.min(key.0.len())]);
        let elements: Vec<Attributes> = match &set.elements {
            Elements::Keys(keys) => keys
                .iter()
                .filter(|(k, _)| wanted(k))
                .map(|(k, text)| {
                    let text = text.as_deref().and_then(|t| comment(0, t)).filter(|_| kind == NEW_ELEMENT);
                    Attributes::new().nest(1, key(k)).optional(6, text)
                })
                .collect(),
            Elements::Verdicts(verdicts) => verdicts
                .iter()
                .filter(|(k, _)| wanted(k))
                .map(|(k, v)| Attributes::new().nest(1, key(k)).nest(2, verdict(v)))
                .collect(),
            Elements::Dynamic(_) => return,
        };
        self.element_messages(kind, name, None, elements);
    }

    fn element_messages(&mut self, kind: u8, name: &str, id: Option<u32>, elements: Vec<Attributes>) {
        let mut elements = elements.into_iter().peekable();
        while elements.peek().is_some() {
            let mut list = Attributes::new();
            while list.0.len() < ELEMENT_BYTES {
                let Some(element) = elements.next() else { break };
                list = list.nest(1, element);
            }
            let mut attributes = Attributes::new().text(1, &self.rules.table).text(2, name);
            if let Some(id) = id {
                attributes = attributes.u32(4, id);
            }
            self.add(kind, format!("elements of {name}"), attributes.nest(3, list));
        }
    }

    fn rules(&mut self, chain: &str, content: &Chain) -> Result<()> {
        for (number, rule) in content.rules.iter().enumerate() {
            let compiled = compile(self.rules.family, &rule.statements, self.next_map)?;
            let words = match &rule.comment {
                Some(comment) => format!("rule {} of chain {chain} ({comment})", number + 1),
                None => format!("rule {} of chain {chain}", number + 1),
            };
            for (id, map) in compiled.maps {
                self.next_map = self.next_map.max(id + 1);
                self.anonymous(id, &map, &words);
            }
            let text = rule.comment.as_deref().and_then(|c| comment(0, c));
            let attributes = Attributes::new()
                .text(1, &self.rules.table)
                .text(2, chain)
                .nest(4, compiled.expressions)
                .optional(7, text);
            self.add(NEW_RULE, words, attributes);
        }
        Ok(())
    }

    /// A map from a random number, which lives and dies with its rule.
    fn anonymous(&mut self, id: u32, map: &Anonymous, words: &str) {
        let integer = 4;
        let attributes = Attributes::new()
            .text(1, &self.rules.table)
            .text(2, ANONYMOUS_NAME)
            .u32(3, ANONYMOUS | CONSTANT | MAP)
            .u32(4, integer)
            .u32(5, 4);
        let number = |i: usize| value(&u32::try_from(i).unwrap_or(u32::MAX).to_ne_bytes());
        let (attributes, elements) = match map {
            Anonymous::Verdicts(verdicts) => {
                let elements = verdicts.iter().enumerate().map(|(i, v): (usize, &Verdict)| {
                    Attributes::new().nest(1, number(i)).nest(2, verdict(v))
                });
                (attributes.u32(6, VERDICTS).u32(7, 16), elements.collect::<Vec<_>>())
            }
            Anonymous::Targets(targets) => {
                let (kind, length) = key_type(self.rules.family, &[Type::Address, Type::Port]);
                debug_assert_eq!(length as usize, address_length(self.rules.family) + 4);
                let elements = targets.iter().enumerate().map(|(i, target)| {
                    Attributes::new().nest(1, number(i)).nest(2, value(&target.0))
                });
                (attributes.u32(6, kind).u32(7, length), elements.collect())
            }
        };
        let size = Attributes::new().u32(1, u32::try_from(elements.len()).unwrap_or(u32::MAX));
        self.add(NEW_SET, format!("map of {words}"), attributes.nest(9, size).u32(10, id));
        self.element_messages(NEW_ELEMENT, ANONYMOUS_NAME, Some(id), elements);
    }
}
