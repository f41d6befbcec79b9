//! What a machine that is to hold a member has to do, from what it has and from what the cluster says. Pure.

use super::Listed;

/// This machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Own<'a> {
    /// The member's name: the node's.
    pub name: &'a str,
    /// Where other members reach it.
    pub peer_url: &'a str,
    /// Whether there are data of a member here.
    pub data: bool,
    /// The id that the member got when it was added, if that was noted.
    pub id: Option<u64>,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The data are those of a member: the process finds its way.
    Run,
    /// It is expected: the process begins with this list of members.
    Begin {
        /// Its id.
        id: u64,
        /// `name=url,…` of all members, this one's too.
        initial: String,
    },
    /// Ask to be added.
    Add,
    /// Take a member of the past off the list.
    Remove {
        /// Which one.
        id: u64,
        /// What it was.
        why: &'static str,
    },
    /// The cluster knows the member at another address: it has to be told.
    Move {
        /// Its id.
        id: u64,
        /// Where it was.
        from: String,
    },
    /// The data are of a member that was removed: they are worth nothing.
    SetAside,
    /// Somebody else is joining, and one at a time may.
    Wait {
        /// The learner.
        id: u64,
        /// Where it is expected.
        url: String,
        /// Whether it has ever come.
        come: bool,
    },
    /// It cannot be.
    Refuse(String),
}

/// Decides.
pub fn next(own: &Own<'_>, members: &[Listed]) -> Step {
    let has_url = |m: &&Listed| m.peer_urls.iter().any(|url| url == own.peer_url);
    let here = members.iter().find(has_url);
    if own.data {
        let Some(id) = own.id else { return Step::Run };
        return match (members.iter().find(|m| m.id == id), here) {
            (None, _) => Step::SetAside,
            (Some(_), Some(here)) if here.id == id => Step::Run,
            (Some(_), Some(other)) => Step::Refuse(format!(
                "{} is the address of {}, another member of etcd: give this node another address, or remove that member first (knarr etcd remove {})",
                own.peer_url, other.name, other.name
            )),
            (Some(member), None) => Step::Move { id, from: member.peer_urls.join(",") },
        };
    }
    if let Some(here) = here {
        // A member that never started has no name yet.
        if here.name.is_empty() {
            let list = members.iter().flat_map(|m| {
                let name = if m.id == here.id { own.name } else { &m.name };
                m.peer_urls.iter().filter(|_| !name.is_empty()).map(move |url| format!("{name}={url}"))
            });
            return Step::Begin { id: here.id, initial: list.collect::<Vec<_>>().join(",") };
        }
        if here.name != own.name {
            return Step::Refuse(format!(
                "{} is the address of {}, another member of etcd: give this node that name, or remove that member first (knarr etcd remove {})",
                own.peer_url, here.name, here.name
            ));
        }
        return Step::Remove { id: here.id, why: "its data are gone" };
    }
    if let Some(other) = members.iter().find(|m| m.name == own.name) {
        return Step::Refuse(format!(
            "a member of etcd has the name {} already, at {}: give this node another name, or, if that machine is gone for good, remove it first (knarr etcd remove {})",
            own.name,
            other.peer_urls.join(","),
            own.name
        ));
    }
    match members.iter().find(|m| m.is_learner) {
        Some(learner) => Step::Wait { id: learner.id, url: learner.peer_urls.join(","), come: !learner.name.is_empty() },
        None => Step::Add,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u64, name: &str, url: &str, is_learner: bool) -> Listed {
        Listed { id, name: name.into(), peer_urls: vec![url.into()], client_urls: Vec::new(), is_learner }
    }

    fn own(data: bool, id: Option<u64>) -> Own<'static> {
        Own { name: "b", peer_url: "https://b:2380", data, id }
    }

    #[test]
    fn a_machine_joins() {
        let a = member(1, "a", "https://a:2380", false);
        assert_eq!(next(&own(false, None), std::slice::from_ref(&a)), Step::Add);
        let added = [a.clone(), member(2, "", "https://b:2380", true)];
        let begin = Step::Begin { id: 2, initial: "a=https://a:2380,b=https://b:2380".into() };
        assert_eq!(next(&own(false, None), &added), begin);
        assert_eq!(next(&own(false, Some(2)), &added), begin, "a join that was cut short goes on");
        let joined = [a, member(2, "b", "https://b:2380", true)];
        assert_eq!(next(&own(true, Some(2)), &joined), Step::Run);
        assert_eq!(next(&own(true, None), &joined), Step::Run);
    }

    #[test]
    fn one_joins_at_a_time() {
        let a = member(1, "a", "https://a:2380", false);
        let waiting = [a.clone(), member(3, "", "https://c:2380", true)];
        assert_eq!(next(&own(false, None), &waiting), Step::Wait { id: 3, url: "https://c:2380".into(), come: false });
        let learning = [a, member(3, "c", "https://c:2380", true)];
        assert_eq!(next(&own(false, None), &learning), Step::Wait { id: 3, url: "https://c:2380".into(), come: true });
    }

    #[test]
    fn a_machine_that_lost_its_data_is_replaced() {
        let members = [member(1, "a", "https://a:2380", false), member(2, "b", "https://b:2380", false)];
        assert_eq!(next(&own(false, None), &members), Step::Remove { id: 2, why: "its data are gone" });
        assert_eq!(next(&own(true, Some(7)), &members), Step::SetAside, "it was removed, and another came in its place");
        assert_eq!(next(&own(true, Some(2)), &members), Step::Run);
    }

    #[test]
    fn a_machine_moves() {
        let members = [member(1, "a", "https://a:2380", false), member(2, "b", "https://elsewhere:2380", false)];
        assert_eq!(next(&own(true, Some(2)), &members), Step::Move { id: 2, from: "https://elsewhere:2380".into() });
        assert_eq!(next(&own(true, None), &members), Step::Run, "nobody knows which one it is");
        let taken = [member(1, "a", "https://b:2380", false), member(2, "b", "https://elsewhere:2380", false)];
        assert!(matches!(next(&own(true, Some(2)), &taken), Step::Refuse(why) if why.contains("is the address of a")));
    }

    #[test]
    fn names_and_addresses_of_others_are_theirs() {
        let moved = [member(1, "a", "https://a:2380", false), member(2, "b", "https://elsewhere:2380", false)];
        assert!(matches!(next(&own(false, None), &moved), Step::Refuse(why) if why.contains("https://elsewhere:2380") && why.contains("knarr etcd remove b")));
        let taken = [member(1, "a", "https://b:2380", false)];
        assert!(matches!(next(&own(false, None), &taken), Step::Refuse(why) if why.contains("is the address of a")));
    }
}
