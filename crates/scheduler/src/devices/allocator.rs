//! The search for devices: claim by claim, request by request, device by device, each in its order, going
//! back where it leads nowhere. The first solution is taken. The search is bounded by a number of tries.

use std::collections::HashMap;
use std::sync::Arc;

use api::quantity::Quantity;
use k8s_openapi::api::resource::v1::{DeviceClass, DeviceSelector, DeviceTaint, DeviceToleration, ResourceClaim};
use kube::ResourceExt;

use super::capacity::{self, Amounts};
use super::constraints::Constraint;
use super::pools::{Pool, Slices, State};
use super::selectors::Selectors;
use super::slice::{Device, Slice};
use crate::selector::Labels;

/// Devices that a claim can have.
pub const MOST_DEVICES: usize = 32;
/// Devices and requests of all claims of a pod together, one within the other.
const MOST_DEPTH: usize = 1000;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// This node will not do; others may.
    Node(String),
    /// Something is wrong with the claims or their classes.
    Claims(String),
    /// It took too long.
    Tries,
}

/// What cannot be had any more.
#[derive(Debug, Default)]
pub struct Taken {
    /// Devices that belong to a claim alone, with the number of claims that say so.
    pub devices: HashMap<Arc<str>, usize>,
    /// Shared devices: by how many claims, and how much of their capacity.
    pub shares: HashMap<Arc<str>, (usize, Amounts)>,
}

impl Taken {
    fn has(&self, id: &str) -> bool {
        self.devices.contains_key(id) || self.shares.contains_key(id)
    }
}

/// What devices are chosen from.
#[derive(Clone, Copy)]
pub struct Stock<'a> {
    pub slices: &'a Slices,
    pub taken: &'a Taken,
    pub selectors: &'a dyn Selectors,
    /// How many devices may be looked at.
    pub tries: usize,
}

/// A selector, and where it stands.
#[derive(Debug)]
struct Selector {
    /// `class C: selector #0` or the like.
    place: String,
    expression: Arc<str>,
}

/// A request, or one of the alternatives of one.
#[derive(Debug)]
pub struct Request {
    pub name: String,
    /// The name of the request, with that of the alternative.
    pub full: String,
    pub class: Arc<DeviceClass>,
    selectors: Vec<Selector>,
    all: bool,
    count: usize,
    pub admin: bool,
    pub tolerations: Vec<DeviceToleration>,
    wishes: Amounts,
}

impl Request {
    /// How many devices it wants; `None` means all.
    pub fn wanted(&self) -> Option<usize> {
        (!self.all).then_some(self.count)
    }

    /// Whether the selectors want a device.
    pub fn is_for(&self, selectors: &dyn Selectors, slice: &Slice, device: usize) -> Result<bool, Trouble> {
        for selector in &self.selectors {
            let ask = || selectors.matches(&selector.expression, &slice.driver, &slice.devices[device]);
            match slice.verdict(&selector.expression, device, ask) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(error) => return Err(Trouble::Claims(format!("{}: {error}", selector.place))),
            }
        }
        Ok(true)
    }
}

/// A request's alternatives.
#[derive(Debug)]
pub struct Choice {
    /// The name of the request.
    pub name: String,
    /// Whether it has alternatives at all, or is the only one.
    pub is_open: bool,
    pub requests: Vec<Request>,
}

/// A claim that is to be allocated.
#[derive(Debug)]
struct Wanted {
    name: String,
    choices: Vec<Choice>,
    claim: Arc<ResourceClaim>,
}

/// What is asked for, once for all nodes.
#[derive(Debug)]
pub struct Question {
    wanted: Vec<Wanted>,
}

/// The claim's name as it is logged.
pub fn described(claim: &ResourceClaim) -> String {
    format!("{}/{}", claim.namespace().unwrap_or_default(), claim.name_any())
}

struct Raw<'a> {
    class: &'a str,
    selectors: &'a Option<Vec<DeviceSelector>>,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    tolerations: &'a Option<Vec<DeviceToleration>>,
    capacity: Option<&'a std::collections::BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>>,
}

impl Raw<'_> {
    fn read(self, claim: &str, name: &str, parent: Option<&str>, class: &dyn Fn(&str) -> Option<Arc<DeviceClass>>) -> Result<Request, Trouble> {
        let wrong = |what: String| Trouble::Claims(format!("claim {claim}, request {name}: {what}"));
        let unsupported = |i: usize| wrong(format!("selector #{i}: CEL expression empty (unsupported selector type?)"));
        let read = |selectors: &Option<Vec<DeviceSelector>>, place: &dyn Fn(usize) -> String| -> Result<Vec<Selector>, Trouble> {
            let one = |(i, s): (usize, &DeviceSelector)| match &s.cel {
                Some(cel) => Ok(Selector { place: place(i), expression: cel.expression.as_str().into() }),
                None => Err(unsupported(i)),
            };
            selectors.iter().flatten().enumerate().map(one).collect()
        };
        let own = read(self.selectors, &|i| format!("claim {claim}: selector #{i}"))?;
        if self.class.is_empty() {
            return Err(wrong("missing device class name (unsupported request type?)".into()));
        }
        let not_found = || wrong(format!("could not retrieve device class {0}: deviceclass.resource.k8s.io {0:?} not found", self.class));
        let class = class(self.class).ok_or_else(not_found)?;
        let mut selectors = read(&class.spec.selectors, &|i| format!("class {}: selector #{i}", class.name_any()))?;
        selectors.extend(own);
        let all = match self.mode {
            None | Some("" | "ExactCount") => false,
            Some("All") => true,
            Some(mode) => return Err(wrong(format!("unsupported count mode {mode}"))),
        };
        let wishes = self.capacity.into_iter().flatten().map(|(name, text)| (name.clone(), Quantity::parse(&text.0).unwrap_or_else(|_| Quantity::zero())));
        Ok(Request {
            full: parent.map_or_else(|| name.to_string(), |parent| format!("{parent}/{name}")),
            name: name.to_string(),
            selectors,
            all,
            count: usize::try_from(self.count.unwrap_or(1)).unwrap_or(0),
            admin: self.admin,
            tolerations: self.tolerations.clone().unwrap_or_default(),
            wishes: wishes.collect(),
            class,
        })
    }
}

impl Question {
    /// Reads the claims, which have no allocation yet.
    pub fn new(claims: &[Arc<ResourceClaim>], class: &dyn Fn(&str) -> Option<Arc<DeviceClass>>) -> Result<Question, Trouble> {
        let wanted = claims.iter().map(|claim| {
            let name = described(claim);
            let requests = claim.spec.devices.iter().flat_map(|d| d.requests.iter().flatten());
            let choices = requests.map(|r| {
                let requests = match (&r.exactly, &r.first_available) {
                    (Some(e), _) => {
                        let raw = Raw {
                            class: &e.device_class_name,
                            selectors: &e.selectors,
                            mode: e.allocation_mode.as_deref(),
                            count: e.count,
                            admin: e.admin_access == Some(true),
                            tolerations: &e.tolerations,
                            capacity: e.capacity.as_ref().and_then(|c| c.requests.as_ref()),
                        };
                        vec![raw.read(&name, &r.name, None, class)?]
                    }
                    (None, alternatives) => {
                        let read = |s: &k8s_openapi::api::resource::v1::DeviceSubRequest| {
                            let raw = Raw {
                                class: &s.device_class_name,
                                selectors: &s.selectors,
                                mode: s.allocation_mode.as_deref(),
                                count: s.count,
                                admin: false,
                                tolerations: &s.tolerations,
                                capacity: s.capacity.as_ref().and_then(|c| c.requests.as_ref()),
                            };
                            raw.read(&name, &s.name, Some(&r.name), class)
                        };
                        alternatives.iter().flatten().map(read).collect::<Result<_, _>>()?
                    }
                };
                Ok(Choice { name: r.name.clone(), is_open: r.exactly.is_none(), requests })
            });
            let choices = choices.collect::<Result<_, _>>()?;
            let wanted = Wanted { name, choices, claim: claim.clone() };
            wanted.constraints()?;
            Ok(wanted)
        });
        Ok(Question { wanted: wanted.collect::<Result<_, _>>()? })
    }

    /// All requests and alternatives, with the names of their claims.
    pub fn requests(&self) -> impl Iterator<Item = (&str, &Request)> {
        self.wanted.iter().flat_map(|w| w.choices.iter().flat_map(|c| &c.requests).map(|r| (w.name.as_str(), r)))
    }

    /// Looks for devices that a node can reach. `None` when there are not enough.
    pub fn allocate<'a>(&'a self, stock: Stock<'a>, node: &'a str, labels: &'a Labels) -> Result<Option<Vec<Solution<'a>>>, Trouble> {
        let pools = stock.slices.pools(node, labels);
        let mut search = Search {
            question: self,
            stock,
            node,
            labels,
            tries: stock.tries,
            depth: 0,
            exclusive: HashMap::new(),
            shares: HashMap::new(),
            consumed: HashMap::new(),
            available: HashMap::new(),
            all: HashMap::new(),
            constraints: self.wanted.iter().map(Wanted::constraints).collect::<Result<_, _>>()?,
            found: self.wanted.iter().map(|_| Vec::new()).collect(),
            picked: self.wanted.iter().map(|w| vec![0; w.choices.len()]).collect(),
            pools,
        };
        search.prepare()?;
        let done = match search.step(Spot::default(), Location::default()) {
            Ok(done) => done,
            Err(Stop::TooMany) => false,
            Err(Stop::Trouble(trouble)) => return Err(trouble),
        };
        if !done {
            if search.pools.iter().any(|p| matches!(p.state, State::Invalid(_))) {
                return Err(Trouble::Node("invalid resource pools were encountered".into()));
            }
            return Ok(None);
        }
        let solutions = search.found.into_iter().zip(search.picked).zip(&self.wanted);
        Ok(Some(solutions.map(|((devices, picked), wanted)| Solution { claim: &wanted.claim, choices: &wanted.choices, devices, picked }).collect()))
    }
}

impl Wanted {
    fn constraints(&self) -> Result<Vec<Constraint>, Trouble> {
        let all = self.claim.spec.devices.iter().flat_map(|d| d.constraints.iter().flatten()).enumerate();
        let unknown = |i| Trouble::Claims(format!("claim {}, constraint #{i}: empty constraint (unsupported constraint type?)", self.name));
        all.map(|(i, raw)| Constraint::of(raw).ok_or_else(|| unknown(i))).collect()
    }
}

/// Devices for one claim.
#[derive(Debug)]
pub struct Solution<'a> {
    pub claim: &'a ResourceClaim,
    pub choices: &'a [Choice],
    pub devices: Vec<Chosen<'a>>,
    /// Which alternative was taken, by request.
    pub picked: Vec<usize>,
}

/// A device that was chosen.
#[derive(Debug)]
pub struct Chosen<'a> {
    pub request: &'a Request,
    pub slice: &'a Arc<Slice>,
    pub device: &'a Device,
    /// What is taken of a shared device.
    pub consumed: Option<Amounts>,
    /// Numbers of the pool and of the request.
    pool: usize,
    choice: usize,
    takes_counters: bool,
}

/// A device by its place in the pools.
#[derive(Debug, Clone, Copy, Default)]
struct Location {
    pool: usize,
    slice: usize,
    device: usize,
}

/// Where the search stands.
#[derive(Debug, Clone, Copy, Default)]
struct Spot {
    claim: usize,
    choice: usize,
    /// The alternative that is being tried.
    alternative: Option<usize>,
    device: usize,
}

enum Stop {
    /// The claim would have more devices than it can.
    TooMany,
    Trouble(Trouble),
}

type Counter<'a> = (usize, &'a str, &'a str);

struct Search<'a> {
    question: &'a Question,
    stock: Stock<'a>,
    node: &'a str,
    labels: &'a Labels,
    tries: usize,
    depth: usize,
    pools: Vec<Pool<'a>>,
    /// Claims that have a device for themselves in this attempt.
    exclusive: HashMap<&'a str, Vec<usize>>,
    /// Shared devices of this attempt.
    shares: HashMap<&'a str, (usize, Amounts)>,
    /// Counters by pool and set: what this attempt takes, and what there is without it.
    consumed: HashMap<Counter<'a>, Quantity>,
    available: HashMap<usize, HashMap<(&'a str, &'a str), Quantity>>,
    /// The devices of requests for all of them, by claim, request and alternative.
    all: HashMap<(usize, usize, usize), Vec<Location>>,
    constraints: Vec<Vec<Constraint>>,
    found: Vec<Vec<Chosen<'a>>>,
    picked: Vec<Vec<usize>>,
}

impl<'a> Search<'a> {
    fn count(&self, claim: usize, choice: usize, alternative: usize) -> usize {
        let request = &self.question.wanted[claim].choices[choice].requests[alternative];
        if request.all { self.all.get(&(claim, choice, alternative)).map_or(0, Vec::len) } else { request.count }
    }

    /// Finds out what "all" is, and whether the claims could ever hold that many devices.
    fn prepare(&mut self) -> Result<(), Trouble> {
        for (c, wanted) in self.question.wanted.iter().enumerate() {
            let mut least = 0usize;
            for (r, choice) in wanted.choices.iter().enumerate() {
                for (a, request) in choice.requests.iter().enumerate().filter(|(_, request)| request.all) {
                    let all = self.find_all(wanted, request)?;
                    self.all.insert((c, r, a), all);
                }
                least = least.saturating_add((0..choice.requests.len()).map(|a| self.count(c, r, a)).min().unwrap_or(0));
            }
            if least > MOST_DEVICES {
                return Err(Trouble::Claims(format!("claim {}: number of requested devices {least} exceeds the claim limit of {MOST_DEVICES}", wanted.name)));
            }
        }
        Ok(())
    }

    fn find_all(&mut self, wanted: &Wanted, request: &'a Request) -> Result<Vec<Location>, Trouble> {
        let mut all = Vec::new();
        for pool in 0..self.pools.len() {
            let state = match &self.pools[pool].state {
                State::Ready => None,
                State::Incomplete => Some("being updated"),
                State::Invalid(_) => Some("invalid"),
            };
            if let Some(state) = state {
                let Pool { driver, pool, .. } = &self.pools[pool];
                return Err(Trouble::Claims(format!("claim {}, request {}: asks for all devices, but resource pool {driver}/{pool} is currently {state}", wanted.name, request.name)));
            }
            for slice in 0..self.pools[pool].near.len() {
                for device in 0..self.pools[pool].near[slice].devices.len() {
                    let at = Location { pool, slice, device };
                    if self.is_selectable(request, at)? && self.has_room(request, at) {
                        all.push(at);
                    }
                }
            }
        }
        Ok(all)
    }

    fn at(&self, at: Location) -> (&'a Arc<Slice>, &'a Device) {
        let slice = self.pools[at.pool].near[at.slice];
        (slice, &slice.devices[at.device])
    }

    fn is_selectable(&mut self, request: &Request, at: Location) -> Result<bool, Trouble> {
        self.tries = self.tries.checked_sub(1).ok_or(Trouble::Tries)?;
        let (slice, device) = self.at(at);
        if !request.is_for(self.stock.selectors, slice, at.device)? {
            return Ok(false);
        }
        Ok(!matches!(slice.place, super::slice::Place::ByDevice) || device.place.is_near(self.node, self.labels))
    }

    fn has_room(&self, request: &Request, at: Location) -> bool {
        let (_, device) = self.at(at);
        let amounts = |shares: Option<&'_ (usize, Amounts)>| shares.map(|(_, amounts)| amounts.clone());
        let (there, here) = (amounts(self.stock.taken.shares.get(device.id.as_ref())), amounts(self.shares.get(device.id.as_ref())));
        capacity::has_room(&request.wishes, device, &[there.as_ref(), here.as_ref()])
    }

    /// Whether a request could have a device, as far as other claims are concerned.
    fn is_free(&self, request: &Request, claim: usize, device: &Device) -> bool {
        let here = self.exclusive.get(device.id.as_ref());
        if request.admin {
            return !here.is_some_and(|claims| claims.contains(&claim));
        }
        !self.stock.taken.devices.contains_key(device.id.as_ref()) && here.is_none_or(Vec::is_empty)
    }

    /// Finds everything from this spot on; false when there is no way.
    fn step(&mut self, spot: Spot, from: Location) -> Result<bool, Stop> {
        if self.depth >= MOST_DEPTH {
            return Err(Stop::Trouble(Trouble::Claims(format!("more than {MOST_DEPTH} devices and requests for one pod are not supported"))));
        }
        self.depth += 1;
        let done = self.step_in(spot, from);
        self.depth -= 1;
        done
    }

    fn step_in(&mut self, spot: Spot, from: Location) -> Result<bool, Stop> {
        let Some(wanted) = self.question.wanted.get(spot.claim) else { return Ok(true) };
        let Some(choice) = wanted.choices.get(spot.choice) else {
            // Another way of filling an earlier claim may leave room for the next one.
            return match self.step(Spot { claim: spot.claim + 1, ..Spot::default() }, Location::default()) {
                Err(Stop::TooMany) => Ok(false),
                other => other,
            };
        };
        let alternative = match spot.alternative {
            Some(alternative) => alternative,
            None if choice.is_open => return self.alternatives(spot, choice),
            None => 0,
        };
        let request = &choice.requests[alternative];
        let count = self.count(spot.claim, spot.choice, alternative);
        if request.all && count == 0 {
            return Ok(false);
        }
        if spot.device >= count {
            return self.step(Spot { claim: spot.claim, choice: spot.choice + 1, ..Spot::default() }, Location::default());
        }
        if self.found[spot.claim].len().saturating_add(count - spot.device) > MOST_DEVICES {
            return Err(Stop::TooMany);
        }
        let next = Spot { device: spot.device + 1, alternative: Some(alternative), ..spot };
        if request.all {
            let at = self.all[&(spot.claim, spot.choice, alternative)][spot.device];
            // They are all needed, so their order does not matter.
            return Ok(self.take(spot, request, at, true)? && self.go_on(next, Location::default())?);
        }
        for pool in from.pool..self.pools.len() {
            if self.pools[pool].state != State::Ready {
                continue;
            }
            let first = if pool == from.pool { from.slice } else { 0 };
            for slice in first..self.pools[pool].near.len() {
                let first = if pool == from.pool && slice == from.slice { from.device } else { 0 };
                for device in first..self.pools[pool].near[slice].devices.len() {
                    let at = Location { pool, slice, device };
                    if !self.is_free(request, spot.claim, self.at(at).1) {
                        self.tries = self.tries.checked_sub(1).ok_or(Stop::Trouble(Trouble::Tries))?;
                        continue;
                    }
                    if !self.is_selectable(request, at).map_err(Stop::Trouble)? || !self.take(spot, request, at, false)? {
                        continue;
                    }
                    // Within a request only devices that come later are tried: their order does not matter.
                    if self.go_on(next, Location { device: device + 1, ..at })? {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }

    fn alternatives(&mut self, spot: Spot, choice: &Choice) -> Result<bool, Stop> {
        let mut only_too_many = true;
        for alternative in 0..choice.requests.len() {
            match self.step(Spot { alternative: Some(alternative), ..spot }, Location::default()) {
                Err(Stop::TooMany) => continue,
                Ok(true) => {
                    self.picked[spot.claim][spot.choice] = alternative;
                    return Ok(true);
                }
                Ok(false) => only_too_many = false,
                Err(stop) => return Err(stop),
            }
        }
        if only_too_many { Err(Stop::TooMany) } else { Ok(false) }
    }

    /// Goes on after a device was taken, and gives it back when that leads nowhere.
    fn go_on(&mut self, next: Spot, from: Location) -> Result<bool, Stop> {
        let done = self.step(next, from);
        if !matches!(done, Ok(true)) {
            self.put_back(next.claim);
        }
        done
    }

    /// Takes a device for a request, if it can be had. With `must` it is the only one that would do.
    fn take(&mut self, spot: Spot, request: &'a Request, at: Location, must: bool) -> Result<bool, Stop> {
        let (slice, device) = self.at(at);
        let id: &'a str = &device.id;
        if (!device.is_shared || !request.admin) && !self.is_free(request, spot.claim, device) {
            return Ok(false);
        }
        if device.taints.iter().any(|t| keeps_away(t) && !request.tolerations.iter().any(|own| tolerates(own, t))) || !self.has_room(request, at) {
            return Ok(false);
        }
        let in_use = device.is_shared && (self.stock.taken.shares.contains_key(id) || self.shares.contains_key(id));
        let takes_counters = !in_use && !device.consumes.is_empty();
        if takes_counters && !self.take_counters(at.pool, device) {
            return Ok(false);
        }
        let name = &self.question.wanted[spot.claim].choices[spot.choice].name;
        let constraints = &mut self.constraints[spot.claim];
        if let Some(refused) = (0..constraints.len()).find(|i| !constraints[*i].add(name, &request.full, &slice.driver, device)) {
            if must {
                let message = format!("claim {}, request {}: cannot add device {id} because a claim constraint would not be satisfied", self.question.wanted[spot.claim].name, request.name);
                return Err(Stop::Trouble(Trouble::Claims(message)));
            }
            constraints[..refused].iter_mut().for_each(|c| c.remove(name, &request.full));
            if takes_counters {
                self.give_counters_back(at.pool, device);
            }
            return Ok(false);
        }
        let consumed = device.is_shared.then(|| capacity::consumed(&request.wishes, device));
        match &consumed {
            None => self.exclusive.entry(id).or_default().push(spot.claim),
            Some(amounts) => {
                let share = self.shares.entry(id).or_default();
                share.0 += 1;
                capacity::add(&mut share.1, amounts);
            }
        }
        self.found[spot.claim].push(Chosen { request, slice, device, consumed, pool: at.pool, choice: spot.choice, takes_counters });
        Ok(true)
    }

    fn put_back(&mut self, claim: usize) {
        let Some(chosen) = self.found[claim].pop() else { return };
        let id: &'a str = &chosen.device.id;
        let name = &self.question.wanted[claim].choices[chosen.choice].name;
        self.constraints[claim].iter_mut().for_each(|c| c.remove(name, &chosen.request.full));
        match (&chosen.consumed, self.shares.get_mut(id)) {
            (Some(_), Some((1, _))) => drop(self.shares.remove(id)),
            (Some(amounts), Some(share)) => {
                share.0 -= 1;
                capacity::subtract(&mut share.1, amounts);
            }
            _ => drop(self.exclusive.get_mut(id).and_then(Vec::pop)),
        }
        if chosen.takes_counters {
            self.give_counters_back(chosen.pool, chosen.device);
        }
    }

    /// What a pool's counters have besides this attempt.
    fn available(&mut self, pool: usize) -> &HashMap<(&'a str, &'a str), Quantity> {
        let (all, taken) = (&self.pools[pool], self.stock.taken);
        self.available.entry(pool).or_insert_with(|| {
            let counters = all.counters.iter().flat_map(|(set, counters)| counters.iter().map(|(name, amount)| ((*set, name.as_ref()), amount.clone())));
            let mut left: HashMap<(&str, &str), Quantity> = counters.collect();
            let slices = all.near.iter().chain(&all.far);
            for (set, counters) in slices.flat_map(|s| &s.devices).filter(|d| taken.has(&d.id)).flat_map(|d| &d.consumes) {
                for (name, amount) in counters {
                    if let Some(left) = left.get_mut(&(set.as_ref(), name.as_ref())) {
                        left.sub(amount);
                    }
                }
            }
            left
        })
    }

    fn take_counters(&mut self, pool: usize, device: &'a Device) -> bool {
        let wanted = || device.consumes.iter().flat_map(|(set, counters)| counters.iter().map(move |(name, amount)| (set.as_ref(), name.as_ref(), amount)));
        for (set, name, amount) in wanted() {
            self.consumed.entry((pool, set, name)).or_insert_with(Quantity::zero).add(amount);
        }
        self.available(pool);
        let available = &self.available[&pool];
        let enough = wanted().all(|(set, name, _)| available.get(&(set, name)).is_some_and(|all| self.consumed[&(pool, set, name)] <= *all));
        if !enough {
            self.give_counters_back(pool, device);
        }
        enough
    }

    fn give_counters_back(&mut self, pool: usize, device: &'a Device) {
        for (set, counters) in &device.consumes {
            for (name, amount) in counters {
                if let Some(consumed) = self.consumed.get_mut(&(pool, set.as_ref(), name.as_ref())) {
                    consumed.sub(amount);
                }
            }
        }
    }
}

/// Whether a taint keeps claims away that do not tolerate it.
pub fn keeps_away(taint: &DeviceTaint) -> bool {
    matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
}

/// Whether a toleration covers a taint.
pub fn tolerates(own: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let is_any = |text: &Option<String>| text.as_deref().is_none_or(str::is_empty);
    (is_any(&own.effect) || own.effect.as_deref() == Some(&taint.effect))
        && (is_any(&own.key) || own.key.as_deref() == Some(&taint.key))
        && match own.operator.as_deref().unwrap_or_default() {
            "" | "Equal" => own.value.as_deref().unwrap_or_default() == taint.value.as_deref().unwrap_or_default(),
            "Exists" => true,
            _ => false,
        }
}
