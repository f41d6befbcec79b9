//! Node ports: bits of one object in the store, in upstream's form and place.

use std::ops::RangeInclusive;
use std::sync::Arc;

use api::field::{FieldError, Path};
use api::status;
use apiserver::Backend;
use apiserver::types::Status;
use base64::{Engine, engine::general_purpose::STANDARD};
use rand::RngExt;
use serde_json::{Value, json};

use super::metrics::{Metrics, Scope};
use super::ports_of;
use crate::util::{SERVICES, items, number, object, text};

/// Where the object is.
const KEY: &str = "/registry/ranges/servicenodeports";
/// How often a change is tried anew when other servers write in between.
const ATTEMPTS: usize = 32;

/// Why a node port cannot be had.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum Error {
    #[error("provided port is not in the valid range. The range of valid ports is {0}")]
    Outside(String),
    #[error("provided port is already allocated")]
    Taken,
    #[error("range is full")]
    Full,
}

/// Which ports of a range are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ports {
    range: RangeInclusive<u16>,
    given: Vec<bool>,
    /// Whether ports outside of the range count as free: upstream's dry runs look only at what is given.
    anywhere: bool,
}

impl Ports {
    /// All of them free.
    pub fn new(range: RangeInclusive<u16>) -> Self {
        let len = usize::from(range.end() - range.start()) + 1;
        Self { range, given: vec![false; len], anywhere: false }
    }

    /// As flags and upstream write the range.
    pub fn spec(&self) -> String {
        format!("{}-{}", self.range.start(), self.range.end())
    }

    fn index(&self, port: u16) -> Option<usize> {
        self.range.contains(&port).then(|| usize::from(port - self.range.start()))
    }

    pub fn has(&self, port: u16) -> bool {
        self.index(port).is_some_and(|i| self.given[i])
    }

    /// Takes this one.
    pub fn take(&mut self, port: u16) -> Result<(), Error> {
        match self.index(port) {
            Some(i) if self.given[i] => return Err(Error::Taken),
            Some(i) => self.given[i] = true,
            None if self.anywhere => {}
            None => return Err(Error::Outside(self.spec())),
        }
        Ok(())
    }

    pub fn free(&mut self, port: u16) {
        if let Some(i) = self.index(port) {
            self.given[i] = false;
        }
    }

    /// Takes one by chance, from those above a band that is left to people's choice while there are others.
    fn next(&mut self) -> Result<u16, Error> {
        let size = self.given.len();
        let band = if size <= 16 { 0 } else { (size / 32).clamp(16, 128) };
        for part in [band..size, 0..band] {
            let free: Vec<usize> = part.filter(|i| !self.given[*i]).collect();
            if !free.is_empty() {
                let i = free[rand::rng().random_range(0..free.len())];
                self.given[i] = true;
                return Ok(self.range.start() + i as u16);
            }
        }
        Err(Error::Full)
    }

    /// Those that are given.
    pub fn all(&self) -> impl Iterator<Item = u16> + '_ {
        self.given.iter().zip(self.range.clone()).filter(|(given, _)| **given).map(|(_, port)| port)
    }

    /// Upstream's RangeAllocation: the bits of a big number, the first port in the lowest.
    fn to_object(&self) -> Value {
        let mut bytes = vec![0u8; self.given.len().div_ceil(8)];
        for (i, _) in self.given.iter().enumerate().filter(|(_, given)| **given) {
            bytes[i / 8] |= 1 << (i % 8);
        }
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        bytes.reverse();
        json!({"kind": "RangeAllocation", "apiVersion": "v1", "metadata": {}, "range": self.spec(), "data": STANDARD.encode(bytes)})
    }

    /// What an object says, as far as it is about ports of this range: the range may have been another.
    fn from_object(object: &Value, range: RangeInclusive<u16>) -> Self {
        let mut ports = Self::new(range);
        let bytes = STANDARD.decode(text(object, "/data")).unwrap_or_default();
        let start: usize = text(object, "/range").split('-').next().and_then(|s| s.parse().ok()).unwrap_or(0);
        for (at, byte) in bytes.iter().rev().enumerate() {
            for bit in (0..8).filter(|bit| byte & (1 << bit) != 0) {
                if let Ok(port) = u16::try_from(start + at * 8 + bit) {
                    let _ = ports.take(port);
                }
            }
        }
        ports
    }
}

/// Why a Service cannot have the node ports it asks for.
#[derive(Debug)]
pub(crate) enum Refusal {
    Field(FieldError),
    Internal(String),
}

impl Refusal {
    /// As clients see it.
    pub fn status(self, service: &str) -> Status {
        match self {
            Refusal::Field(error) => status::invalid("", "Service", service, &[error]),
            Refusal::Internal(why) => status::internal(why),
        }
    }
}

/// What a Service asks for, beside what it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wish {
    /// Whether its ports are node ports.
    pub public: bool,
    /// Whether those without a node port get one.
    pub automatic: bool,
    /// Whether it needs a port for health checks.
    pub health: bool,
}

/// Gives a Service the node ports it lacks; answers those it took, each with whether it was chosen.
fn assign(service: &mut Value, old: Option<&Value>, wish: Wish, ports: &mut Ports) -> Result<Vec<(u16, Scope)>, (Scope, Refusal)> {
    let had = old.map(ports_of).unwrap_or_default();
    let mut taken: Vec<(u16, Scope)> = Vec::new();
    if wish.public {
        let listed: Vec<(i64, u16)> = items(service, "/spec/ports").map(|p| (number(p, "/port").unwrap_or(0), node_port(p))).collect();
        // The TCP and the UDP side of one port share a node port, when a Service is made.
        let mut shared: Vec<(i64, u16)> = Vec::new();
        for (i, (port, given)) in listed.iter().enumerate() {
            let path = Path::new("spec.ports").index(i).child("nodePort");
            let mut wanted = *given;
            if wanted == 0 && !wish.automatic {
                continue;
            }
            if old.is_none() {
                let known = shared.iter().find(|(p, _)| p == port).map(|(_, n)| *n);
                let asked = || listed.iter().find(|(p, n)| p == port && *n != 0).map(|(_, n)| *n);
                match (known, wanted) {
                    (Some(known), 0) => wanted = known,
                    (None, 0) => wanted = asked().unwrap_or(0),
                    _ => {}
                }
                if known == Some(wanted) {
                    set_port(service, i, wanted);
                    continue;
                }
            } else if wanted != 0 && (had.contains(&wanted) || taken.iter().any(|(t, _)| *t == wanted)) {
                continue;
            }
            let number = match wanted {
                0 => {
                    let next = ports.next().map_err(|e| (Scope::Dynamic, Refusal::Internal(format!("failed to allocate a nodePort: {e}"))))?;
                    taken.push((next, Scope::Dynamic));
                    next
                }
                wanted => {
                    ports.take(wanted).map_err(|e| (Scope::Static, Refusal::Field(FieldError::invalid(&path, wanted, e.to_string()))))?;
                    taken.push((wanted, Scope::Static));
                    wanted
                }
            };
            shared.push((*port, number));
            set_port(service, i, number);
        }
    }
    if wish.health {
        // what can be no port is for validation to refuse
        let Ok(wanted) = u16::try_from(number(service, "/spec/healthCheckNodePort").unwrap_or(0)) else { return Ok(taken) };
        if wanted == 0 {
            let refused = |e: Error| (Scope::Dynamic, Refusal::Internal(format!("failed to allocate a HealthCheck NodePort 0: {e}")));
            let next = ports.next().map_err(refused)?;
            taken.push((next, Scope::Dynamic));
            object(service, "spec").insert("healthCheckNodePort".into(), next.into());
        } else if !had.contains(&wanted) {
            let refused = |e: Error| (Scope::Static, Refusal::Internal(format!("failed to allocate requested HealthCheck NodePort {wanted}: {e}")));
            ports.take(wanted).map_err(refused)?;
            taken.push((wanted, Scope::Static));
        }
    }
    Ok(taken)
}

fn node_port(port: &Value) -> u16 {
    number(port, "/nodePort").and_then(|n| u16::try_from(n).ok()).unwrap_or(0)
}

fn set_port(service: &mut Value, i: usize, number: u16) {
    service["spec"]["ports"][i]["nodePort"] = number.into();
}

/// Whether a changed Service has all it asks for already.
fn is_served(service: &Value, old: &Value, wish: Wish) -> bool {
    let had = ports_of(old);
    let has = |n: u16| if n == 0 { !wish.automatic } else { had.contains(&n) };
    let health = || number(service, "/spec/healthCheckNodePort").and_then(|n| u16::try_from(n).ok()).is_some_and(|n| had.contains(&n));
    (!wish.public || items(service, "/spec/ports").all(|p| has(node_port(p)))) && (!wish.health || health())
}

/// The node ports of one cluster.
pub(crate) struct NodePorts {
    range: RangeInclusive<u16>,
    pub metrics: Arc<Metrics>,
}

impl NodePorts {
    pub fn new(range: RangeInclusive<u16>, metrics: Arc<Metrics>) -> Self {
        Self { range, metrics }
    }

    /// The ports as they are stored, with the revision; those of the Services where nothing is stored yet.
    pub async fn load(&self, backend: &Backend) -> Result<(Ports, u64), Status> {
        if let Some((object, revision)) = backend.unserved.get(KEY).await? {
            return Ok((Ports::from_object(&object, self.range.clone()), revision));
        }
        let mut ports = self.none();
        for port in backend.reader.list(&SERVICES, None).iter().flat_map(|s| ports_of(s)) {
            let _ = ports.take(port);
        }
        Ok((ports, 0))
    }

    /// Stores them, if nobody did meanwhile.
    pub async fn save(&self, backend: &Backend, ports: &Ports, revision: u64) -> Result<bool, Status> {
        let saved = backend.unserved.put(KEY, &ports.to_object(), revision, None).await?;
        if saved {
            self.tell(ports);
        }
        Ok(saved)
    }

    /// The metrics are to say this.
    pub fn tell(&self, ports: &Ports) {
        let given = ports.all().count();
        self.metrics.ports_are(given, ports.given.len() - given);
    }

    /// All of them free.
    pub fn none(&self) -> Ports {
        Ports::new(self.range.clone())
    }

    /// Gives a Service the node ports it lacks; answers those it took.
    pub async fn give(&self, backend: &Backend, service: &mut Value, old: Option<&Value>, wish: Wish, dry_run: bool) -> Result<Vec<u16>, Refusal> {
        if !wish.public && !wish.health || old.is_some_and(|old| is_served(service, old, wish)) {
            return Ok(Vec::new());
        }
        let failed = |status: Status| Refusal::Internal(status.message);
        for _ in 0..ATTEMPTS {
            let (mut ports, revision) = self.load(backend).await.map_err(failed)?;
            ports.anywhere = dry_run;
            let mut candidate = service.clone();
            let taken = assign(&mut candidate, old, wish, &mut ports).map_err(|(scope, refusal)| {
                self.metrics.port(scope, false);
                refusal
            })?;
            if taken.is_empty() || dry_run {
                *service = candidate;
                return Ok(Vec::new());
            }
            if self.save(backend, &ports, revision).await.map_err(failed)? {
                taken.iter().for_each(|(_, scope)| self.metrics.port(*scope, true));
                *service = candidate;
                return Ok(taken.into_iter().map(|(port, _)| port).collect());
            }
        }
        Err(Refusal::Internal("the node ports are being changed by others all the time".into()))
    }

    /// Gives ports back.
    pub async fn release(&self, backend: &Backend, gone: &[u16]) {
        if gone.is_empty() {
            return;
        }
        for _ in 0..ATTEMPTS {
            let released = async {
                let (mut ports, revision) = self.load(backend).await?;
                gone.iter().for_each(|port| ports.free(*port));
                self.save(backend, &ports, revision).await
            };
            match released.await {
                Ok(true) => return,
                Ok(false) => {}
                Err(status) => {
                    tracing::warn!(?gone, why = status.message, "node ports could not be given back; the repair will do it");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};

    const PUBLIC: Wish = Wish { public: true, automatic: true, health: false };

    fn service(ports: Value) -> Value {
        json!({"metadata": {"name": "s", "namespace": "n"}, "spec": {"ports": ports}})
    }

    fn numbers(service: &Value) -> Vec<u16> {
        items(service, "/spec/ports").map(node_port).collect()
    }

    fn give(objects: &Arc<Objects>, ports: &NodePorts, service: &mut Value, old: Option<&Value>, wish: Wish) -> Result<Vec<u16>, String> {
        block_on(ports.give(&objects.backend(), service, old, wish, false)).map_err(|refusal| refusal.status("s").message)
    }

    #[test]
    fn ports_are_given_once_and_given_back() {
        let objects = Objects::new();
        let ports = NodePorts::new(30000..=30003, Arc::default());
        let mut chosen = service(json!([{"port": 80, "nodePort": 30001}]));
        assert_eq!(give(&objects, &ports, &mut chosen, None, PUBLIC), Ok(vec![30001]));
        let refused = |n: u16| give(&objects, &ports, &mut service(json!([{"port": 80, "protocol": "UDP", "nodePort": n}])), None, PUBLIC).unwrap_err();
        assert_eq!(refused(30001), "Service \"s\" is invalid: spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated");
        assert!(refused(80).ends_with("provided port is not in the valid range. The range of valid ports is 30000-30003"));
        let mut all: Vec<u16> = (0..3).flat_map(|_| give(&objects, &ports, &mut service(json!([{"port": 80}])), None, PUBLIC).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, [30000, 30002, 30003]);
        let full = give(&objects, &ports, &mut service(json!([{"port": 80}])), None, PUBLIC).unwrap_err();
        assert_eq!(full, "Internal error occurred: failed to allocate a nodePort: range is full");
        block_on(ports.release(&objects.backend(), &[30002]));
        assert_eq!(give(&objects, &ports, &mut service(json!([{"port": 80}])), None, PUBLIC), Ok(vec![30002]));
    }

    #[test]
    fn both_sides_of_a_port_share_one() {
        let objects = Objects::new();
        let ports = NodePorts::new(30000..=32767, Arc::default());
        let mut dns = service(json!([{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP", "nodePort": 30053}, {"port": 9153}]));
        assert_eq!(give(&objects, &ports, &mut dns, None, PUBLIC).unwrap().len(), 2);
        assert_eq!(numbers(&dns)[..2], [30053, 30053]);
        let mut twice = service(json!([{"port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 30080}]));
        assert!(give(&objects, &ports, &mut twice, None, PUBLIC).unwrap_err().contains("spec.ports[1].nodePort: Invalid value: 30080: provided port is already allocated"));
        assert!(!block_on(ports.load(&objects.backend())).unwrap().0.has(30080), "what was refused took nothing");
    }

    #[test]
    fn a_change_takes_what_is_new() {
        let objects = Objects::new();
        let ports = NodePorts::new(30000..=32767, Arc::default());
        let mut old = service(json!([{"port": 80, "nodePort": 30080}]));
        give(&objects, &ports, &mut old, None, PUBLIC).unwrap();
        let mut new = service(json!([{"port": 80, "nodePort": 30080}, {"port": 81, "nodePort": 30081}]));
        assert_eq!(give(&objects, &ports, &mut new, Some(&old), PUBLIC), Ok(vec![30081]));
        let mut health = new.clone();
        let taken = give(&objects, &ports, &mut health, Some(&new), Wish { health: true, ..PUBLIC }).unwrap();
        assert_eq!(health["spec"]["healthCheckNodePort"], taken[0]);
        assert_eq!(give(&objects, &ports, &mut health.clone(), Some(&health), Wish { health: true, ..PUBLIC }), Ok(vec![]));
        let mut none = service(json!([{"port": 82}]));
        assert_eq!(give(&objects, &ports, &mut none, None, Wish { automatic: false, ..PUBLIC }), Ok(vec![]));
    }

    #[test]
    fn upstreams_form() {
        let mut ports = Ports::new(30000..=32767);
        ports.take(30000).unwrap();
        ports.take(30009).unwrap();
        let object = ports.to_object();
        assert_eq!((object["range"].clone(), object["data"].clone()), (json!("30000-32767"), json!("AgE=")));
        assert_eq!(Ports::from_object(&object, 30000..=32767), ports);
        assert_eq!(Ports::from_object(&object, 30005..=30010).all().collect::<Vec<_>>(), [30009], "the range has changed");
    }
}
