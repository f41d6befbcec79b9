//! Scenarios of one level's queues: many clients, a clock of the test's own.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::queues::{Details, Discipline, QueueSet, Queuing, Start, Work};
use super::rules::Distinguisher;
use super::stats::Refusal;
use crate::request::RequestInfo;

const MS: u64 = 1_000_000;

fn details(user: &str) -> Details {
    Details { info: Arc::new(RequestInfo::default()), user: user.into(), distinguisher: Distinguisher::User }
}

fn queued(queues: usize, hand: usize, length: usize, limit: i64) -> QueueSet<u64> {
    let mut set = QueueSet::new(Discipline::Queue(Queuing { queues, hand, length }), limit, 0);
    set.slot("s");
    set
}

fn start(set: &mut QueueSet<u64>, now: u64, user: &str, work: Work, hash: u64) -> Start {
    set.start(now, details(user), work, hash, 0)
}

/// Flows that each keep so many requests of so many seats open, each of which takes so long; served for a while. Answers
/// how much each flow got served, in seat-seconds.
fn run(set: &mut QueueSet<u64>, flows: &[(u64, usize, u32, u64)], until: u64) -> Vec<f64> {
    // what happens next: when, which request (its number), of which flow
    let mut ends: BTreeMap<(u64, u64), (usize, usize)> = BTreeMap::new();
    let (mut waiting, mut served): (BTreeMap<u64, (usize, usize)>, Vec<f64>) = (BTreeMap::new(), vec![0.0; flows.len()]);
    let (mut now, mut number) = (0, 0);
    let mut wanted: Vec<usize> = flows.iter().map(|f| f.1).collect();
    loop {
        for (flow, (hash, _, seats, took)) in flows.iter().enumerate() {
            while wanted[flow] > 0 {
                wanted[flow] -= 1;
                number += 1;
                match start(set, now, "u", Work { initial: *seats, ..Work::ONE }, *hash) {
                    Start::Executing(id) => drop(ends.insert((now + took, number), (flow, id))),
                    Start::Waiting(id) => {
                        set.set_waiter(id, number);
                        waiting.insert(number, (flow, id));
                    }
                    Start::Refused(_) => {}
                }
            }
        }
        for number in set.woken() {
            let (flow, id) = waiting.remove(&number).unwrap();
            ends.insert((now + flows[flow].3, number), (flow, id));
        }
        let Some(((end, _), (flow, id))) = ends.pop_first() else { break };
        if end > until {
            break;
        }
        now = end;
        set.finish(now, id);
        served[flow] += f64::from(flows[flow].2) * flows[flow].3 as f64 / 1e9;
        wanted[flow] += 1;
    }
    served
}

#[test]
fn whoever_finds_seats_is_served() {
    let mut set = queued(8, 2, 5, 3);
    for i in 0..3 {
        assert_eq!(start(&mut set, i, "u", Work::ONE, 1), Start::Executing(i as usize));
    }
    let Start::Waiting(id) = start(&mut set, 10, "u", Work::ONE, 1) else { panic!("the seats are taken") };
    set.set_waiter(id, 7);
    assert_eq!((set.counts(), set.woken()), ((1, 3), vec![]));
    set.finish(20, 0);
    assert_eq!((set.counts(), set.woken()), ((0, 3), vec![7]));
    assert!(!set.cancel(30, id), "its turn has come");
    for id in [1, 2, id] {
        set.finish(40, id);
    }
    assert!(set.is_idle() && set.queues().iter().all(|q| q.seats == 0 && q.executing == 0));
    assert_eq!((set.stats()[0].dispatched, set.stats()[0].executing_seats), (4, 0));
}

#[test]
fn queues_have_an_end() {
    let mut set = queued(1, 1, 2, 1);
    let starts: Vec<Start> = (0..4).map(|i| start(&mut set, i, "u", Work::ONE, 0)).collect();
    assert!(matches!(starts[..], [Start::Executing(_), Start::Waiting(_), Start::Waiting(_), Start::Refused(Refusal::QueueFull)]), "{starts:?}");
    let Start::Waiting(id) = starts[1] else { unreachable!() };
    assert!(set.cancel(9, id), "it has waited too long");
    assert_eq!(set.stats()[0].rejected, [0, 1, 1]);
    assert!(matches!(start(&mut set, 10, "u", Work::ONE, 0), Start::Waiting(_)));
    let mut none = QueueSet::<u64>::new(Discipline::Reject, 1, 0);
    none.slot("s");
    assert!(matches!(start(&mut none, 0, "u", Work::ONE, 0), Start::Executing(_)));
    assert_eq!(start(&mut none, 0, "u", Work::ONE, 0), Start::Refused(Refusal::ConcurrencyLimit));
    let mut exempt = QueueSet::<u64>::new(Discipline::Exempt, 0, 0);
    exempt.slot("s");
    assert!((0..50).all(|_| matches!(start(&mut exempt, 0, "u", Work { initial: 9, ..Work::ONE }, 0), Start::Executing(_))));
}

#[test]
fn an_elephant_does_not_starve_a_mouse() {
    // hashes that deal different queues
    let mut set = queued(8, 1, 100, 4);
    let served = run(&mut set, &[(0, 60, 1, 10 * MS), (1, 1, 1, 10 * MS)], 4_000 * MS);
    // each time it comes it waits for one request of the others to end, and is the next
    assert!(served[1] > 1.9, "{served:?}");
    assert!(served[0] > 13.5, "and the elephant has the rest: {served:?}");
    // in a queue together they share as they come
    let mut set = queued(8, 1, 100, 4);
    let served = run(&mut set, &[(0, 60, 1, 10 * MS), (8, 1, 1, 10 * MS)], 4_000 * MS);
    assert!(served[1] < 0.6, "{served:?}");
}

#[test]
fn greedy_flows_get_the_same_whatever_their_requests_are() {
    for other in [(1, 40, 1, 40 * MS), (1, 40, 3, 10 * MS)] {
        let mut set = queued(8, 1, 100, 6);
        let served = run(&mut set, &[(0, 40, 1, 10 * MS), other], 20_000 * MS);
        let part = served[0] / (served[0] + served[1]);
        assert!((0.42..0.58).contains(&part), "{other:?}: {served:?}");
        assert!(served[0] + served[1] > 0.85 * 6.0 * 20.0, "seats are used: {served:?}");
    }
}

#[test]
fn a_wide_request_is_served_alone_in_the_end() {
    let mut set = queued(4, 1, 10, 2);
    let Start::Executing(small) = start(&mut set, 0, "u", Work::ONE, 0) else { panic!() };
    let Start::Waiting(wide) = start(&mut set, 1, "u", Work { initial: 9, ..Work::ONE }, 0) else { panic!() };
    set.set_waiter(wide, 1);
    assert_eq!(set.stats()[0].no_accommodation, 1);
    set.finish(5, small);
    assert_eq!(set.woken(), [1]);
    assert!(matches!(start(&mut set, 6, "u", Work::ONE, 1), Start::Waiting(_)));
}

#[test]
fn seats_outlive_a_write_that_many_watch() {
    let mut set = queued(4, 1, 10, 4);
    let work = Work { initial: 1, last: 4, latency: Duration::from_millis(5) };
    let Start::Executing(write) = start(&mut set, 0, "u", work, 0) else { panic!() };
    let Start::Waiting(next) = start(&mut set, 0, "u", Work::ONE, 0) else { panic!() };
    set.set_waiter(next, 1);
    set.finish(MS, write);
    assert_eq!((set.woken(), set.next_release(), set.stats()[0].executing), (vec![], Some(6 * MS), 0));
    set.advance(5 * MS);
    assert!(set.woken().is_empty());
    set.advance(6 * MS);
    assert_eq!((set.woken(), set.next_release()), (vec![1], None));
    set.finish(7 * MS, next);
    assert_eq!(set.stats()[0].executing_seats, 0);
    let period = set.demand(10 * MS);
    assert_eq!(period.max, 5.0);
    assert!((period.average - (5.0 * 6.0 + 1.0) / 10.0).abs() < 1e-6, "{period:?}");
}

#[test]
fn configured_anew_while_requests_wait() {
    let mut set = queued(8, 2, 10, 1);
    let ids: Vec<Start> = (0..9).map(|i| start(&mut set, i, "u", Work::ONE, i)).collect();
    for (i, id) in ids.iter().enumerate() {
        if let Start::Waiting(id) = id {
            set.set_waiter(*id, i as u64);
        }
    }
    set.configure(10, Discipline::Queue(Queuing { queues: 2, hand: 1, length: 1 }), 3);
    assert_eq!((set.counts(), set.woken().len()), ((6, 3), 2), "more seats let more in at once");
    set.configure(11, Discipline::Reject, 100);
    assert_eq!((set.counts(), set.woken().len()), ((0, 9), 6));
    for id in 0..9 {
        set.finish(20, id);
    }
    assert!(set.is_idle() && set.queues().is_empty());
}
