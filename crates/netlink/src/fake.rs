//! A [`Netlink`] in memory, for tests of what is planned on top of it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Error, Link, LinkChange, LinkKind, Neighbour, Netlink, NewKind, NewLink, Prefix, Result, Route};

/// The state of one imaginary network namespace.
#[derive(Debug, Default)]
pub struct Fake {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_index: u32,
    links: Vec<Link>,
    /// Both ends of the veth pairs that are whole in here.
    pairs: Vec<(u32, u32)>,
    addresses: Vec<(u32, Prefix)>,
    routes: Vec<Route>,
    neighbours: Vec<Neighbour>,
}

impl Fake {
    /// An empty namespace.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(what: String, errno: i32) -> Error {
    Error::Kernel { what, explanation: None, source: std::io::Error::from_raw_os_error(errno) }
}

impl State {
    fn known(&self, index: u32, what: &str) -> Result<()> {
        if self.links.iter().any(|l| l.index == index) {
            return Ok(());
        }
        Err(refuse(what.to_owned(), libc::ENODEV))
    }

    fn forget(&mut self, index: u32) {
        self.pairs.retain(|(a, b)| *a != index && *b != index);
        self.links.retain(|l| l.index != index);
        self.addresses.retain(|(i, _)| *i != index);
        self.routes.retain(|r| r.index != index);
        self.neighbours.retain(|n| n.index != index);
    }
}

impl Netlink for Fake {
    fn links(&self) -> Result<Vec<Link>> {
        Ok(self.state().links.clone())
    }

    fn link(&self, name: &str) -> Result<Option<Link>> {
        Ok(self.state().links.iter().find(|l| l.name == name).cloned())
    }

    fn create_link(&self, link: &NewLink) -> Result<()> {
        let mut state = self.state();
        let mut names = vec![link.name.clone()];
        let kind = match &link.kind {
            NewKind::Bridge => LinkKind::Bridge,
            NewKind::Dummy => LinkKind::Dummy,
            NewKind::Veth(peer) => {
                if peer.netns.is_none() {
                    names.push(peer.name.clone());
                }
                LinkKind::Veth
            }
            NewKind::Vxlan { vni, port, .. } => LinkKind::Vxlan { vni: *vni, port: *port },
        };
        if state.links.iter().any(|l| names.contains(&l.name)) {
            return Err(refuse(format!("create link {}", link.name), libc::EEXIST));
        }
        if names.len() == 2 {
            let first = state.last_index + 1;
            state.pairs.push((first, first + 1));
        }
        for name in names {
            state.last_index += 1;
            let index = state.last_index;
            let mtu = link.mtu.unwrap_or(1500);
            state.links.push(Link { index, name, kind: kind.clone(), up: true, mtu, mac: link.mac });
        }
        Ok(())
    }

    fn delete_link(&self, name: &str) -> Result<bool> {
        let mut state = self.state();
        let Some(index) = state.links.iter().find(|l| l.name == name).map(|l| l.index) else { return Ok(false) };
        let other = state.pairs.iter().find_map(|&(a, b)| if a == index { Some(b) } else { (b == index).then_some(a) });
        for end in std::iter::once(index).chain(other) {
            state.forget(end);
        }
        Ok(true)
    }

    fn change_link(&self, index: u32, change: &LinkChange) -> Result<()> {
        let mut state = self.state();
        state.known(index, "change link")?;
        if change.netns.is_some() {
            state.forget(index);
            return Ok(());
        }
        for link in state.links.iter_mut().filter(|l| l.index == index) {
            link.up = change.up.unwrap_or(link.up);
            link.mtu = change.mtu.unwrap_or(link.mtu);
            link.mac = change.mac.or(link.mac);
        }
        Ok(())
    }

    fn addresses(&self, index: u32) -> Result<Vec<Prefix>> {
        Ok(self.state().addresses.iter().filter(|(i, _)| *i == index).map(|(_, a)| *a).collect())
    }

    fn add_address(&self, index: u32, address: Prefix) -> Result<()> {
        let mut state = self.state();
        state.known(index, "add address")?;
        if !state.addresses.contains(&(index, address)) {
            state.addresses.push((index, address));
        }
        Ok(())
    }

    fn delete_address(&self, index: u32, address: Prefix) -> Result<bool> {
        let mut state = self.state();
        let before = state.addresses.len();
        state.addresses.retain(|a| *a != (index, address));
        Ok(state.addresses.len() < before)
    }

    fn routes(&self) -> Result<Vec<Route>> {
        Ok(self.state().routes.clone())
    }

    fn add_route(&self, route: &Route) -> Result<()> {
        let mut state = self.state();
        state.known(route.index, "add route")?;
        state.routes.retain(|r| r.destination != route.destination);
        state.routes.push(route.clone());
        Ok(())
    }

    fn delete_route(&self, route: &Route) -> Result<bool> {
        let mut state = self.state();
        let before = state.routes.len();
        state.routes.retain(|r| (r.destination, r.index) != (route.destination, route.index));
        Ok(state.routes.len() < before)
    }

    fn neighbours(&self, index: u32) -> Result<Vec<Neighbour>> {
        Ok(self.state().neighbours.iter().filter(|n| n.index == index).cloned().collect())
    }

    fn add_neighbour(&self, neighbour: &Neighbour) -> Result<()> {
        let mut state = self.state();
        state.known(neighbour.index, "add neighbour")?;
        if !state.neighbours.contains(neighbour) {
            state.neighbours.push(neighbour.clone());
        }
        Ok(())
    }

    fn delete_neighbour(&self, neighbour: &Neighbour) -> Result<bool> {
        let mut state = self.state();
        let before = state.neighbours.len();
        state.neighbours.retain(|n| n != neighbour);
        Ok(state.neighbours.len() < before)
    }
}
