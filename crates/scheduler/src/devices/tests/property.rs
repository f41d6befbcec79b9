//! The search against a plain one that tries everything: it finds a way whenever there is one, and what it
//! finds holds.

use serde_json::{Value, json};

use super::*;

/// The same numbers every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Clone)]
struct Part {
    model: u64,
    board: u64,
    tainted: bool,
    /// What it takes of the counters that all share.
    units: u64,
}

struct Case {
    parts: Vec<Part>,
    units: u64,
    taken: Vec<usize>,
    /// Of each request: the model that it wants, how many, and whether it tolerates the taint.
    requests: Vec<(Option<u64>, u64, bool)>,
    /// Whether all have the same board, or no two.
    constraint: Option<bool>,
}

impl Case {
    fn new(numbers: &mut Numbers) -> Case {
        let count = 2 + numbers.below(5) as usize;
        let parts = (0..count).map(|_| Part { model: numbers.below(2), board: numbers.below(3), tainted: numbers.below(5) == 0, units: numbers.below(4) });
        let parts = parts.collect();
        let wanted = 1 + numbers.below(3);
        let requests = (0..wanted).map(|_| ((numbers.below(2) == 0).then(|| numbers.below(2)), 1 + numbers.below(2), numbers.below(2) == 0)).collect();
        let taken = (0..count).filter(|_| numbers.below(6) == 0).collect();
        Case { parts, units: 3 + numbers.below(8), taken, requests, constraint: [None, Some(true), Some(false)][numbers.below(3) as usize] }
    }

    fn slices(&self) -> Vec<Value> {
        let device = |(i, p): (usize, &Part)| {
            let mut device = json!({"name": format!("d{i}"), "attributes": {"model": {"string": p.model.to_string()}, "board": {"int": p.board}},
                "consumesCounters": [{"counterSet": "card", "counters": {"units": {"value": p.units.to_string()}}}]});
            if p.tainted {
                device["taints"] = json!([{"key": "k", "effect": "NoSchedule"}]);
            }
            device
        };
        let devices: Vec<Value> = self.parts.iter().enumerate().map(device).collect();
        let pool = json!({"nodeName": "a", "pool": {"resourceSliceCount": 2}});
        let mut parts = slice("parts", json!({"devices": devices}));
        let mut counters = slice("counters", json!({"sharedCounters": [{"name": "card", "counters": {"units": {"value": self.units.to_string()}}}]}));
        merge(&mut parts["spec"], pool.clone());
        merge(&mut counters["spec"], pool);
        vec![parts, counters]
    }

    fn claims(&self) -> Vec<Value> {
        let request = |(i, (model, count, tolerates)): (usize, &(Option<u64>, u64, bool))| {
            let selectors = model.map_or(json!([]), |m| selected(&format!("model={m}")));
            let tolerations = if *tolerates { json!([{"key": "k", "operator": "Exists"}]) } else { json!([]) };
            exactly(&format!("r{i}"), json!({"count": count, "selectors": selectors, "tolerations": tolerations}))
        };
        let requests: Vec<Value> = self.requests.iter().enumerate().map(request).collect();
        let constraints = match self.constraint {
            None => json!([]),
            Some(true) => json!([{"matchAttribute": "d.io/board"}]),
            Some(false) => json!([{"distinctAttribute": "d.io/board"}]),
        };
        let names: Vec<String> = self.taken.iter().map(|i| format!("d{i}")).collect();
        vec![claim("c", json!(requests), json!({"constraints": constraints})), taken(&names.iter().map(String::as_str).collect::<Vec<_>>())]
    }

    /// Whether devices, in the order of the requests, are an answer.
    fn holds(&self, chosen: &[usize]) -> bool {
        let wanted = self.requests.iter().flat_map(|r| std::iter::repeat_n(r, r.1 as usize));
        let each = chosen.iter().zip(wanted).all(|(i, (model, _, tolerates))| {
            let part = &self.parts[*i];
            model.is_none_or(|m| m == part.model) && (*tolerates || !part.tainted) && !self.taken.contains(i)
        });
        let boards: BTreeSet<u64> = chosen.iter().map(|i| self.parts[*i].board).collect();
        let distinct: BTreeSet<&usize> = chosen.iter().collect();
        let units: u64 = chosen.iter().chain(&self.taken).map(|i| self.parts[*i].units).sum();
        let bound = match self.constraint {
            None => true,
            Some(true) => boards.len() <= 1,
            Some(false) => boards.len() == chosen.len(),
        };
        each && bound && units <= self.units && distinct.len() == chosen.len()
    }

    fn has_answer(&self, chosen: &mut Vec<usize>, wanted: usize) -> bool {
        if chosen.len() == wanted {
            return self.holds(chosen);
        }
        (0..self.parts.len()).any(|i| {
            chosen.push(i);
            let found = self.has_answer(chosen, wanted);
            chosen.pop();
            found
        })
    }
}

#[test]
fn the_search_finds_a_way_whenever_there_is_one() {
    let mut numbers = Numbers(7);
    let (mut found, mut refused) = (0, 0);
    for turn in 0..1500 {
        let case = Case::new(&mut numbers);
        let wanted = case.requests.iter().map(|r| r.1 as usize).sum();
        let got = on(&world(&case.slices(), &case.claims()), &pod(&["c"]), "a");
        match got {
            Ok(given) => {
                let results = given.iter().flat_map(|a| a.devices.iter().flat_map(|d| d.results.iter().flatten()));
                let chosen: Vec<usize> = results.map(|r| r.device[1..].parse().expect("a number")).collect();
                assert!(chosen.len() == wanted && case.holds(&chosen), "turn {turn}: {chosen:?}");
                found += 1;
            }
            Err(why) => {
                assert_eq!(why, "cannot allocate all claims", "turn {turn}");
                assert!(!case.has_answer(&mut Vec::new(), wanted), "turn {turn}: there is a way");
                refused += 1;
            }
        }
    }
    assert!(found > 200 && refused > 200, "{found} and {refused}: the cases say little");
}
