//! `/debug/api_priority_and_fairness/dump_*`: what levels, queues and requests are doing, as upstream prints it.
use std::time::Duration;

use super::Flow;
use super::queues::Request;

/// The paths are these below `/debug/api_priority_and_fairness/`.
const LEVELS: &str = "dump_priority_levels";
const QUEUES: &str = "dump_queues";
const REQUESTS: &str = "dump_requests";

impl Flow {
    /// The document of this name; `details` are of each request's user and target.
    pub fn dump(&self, name: &str, details: bool) -> Option<String> {
        let rows = match name {
            LEVELS => self.dump_levels(),
            QUEUES => self.dump_queues(),
            REQUESTS => self.dump_requests(details),
            _ => return None,
        };
        Some(table(&rows))
    }

    fn dump_levels(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row(&[
            "PriorityLevelName", "ActiveQueues", "IsIdle", "IsQuiescing", "WaitingRequests", "ExecutingRequests",
            "DispatchedRequests", "RejectedRequests", "TimedoutRequests", "CancelledRequests",
        ])];
        for (name, state) in &self.now.load().levels {
            let set = state.level.set.lock();
            let active = set.queues().iter().filter(|q| !q.waiting.is_empty()).count();
            let (waiting, executing) = set.counts();
            let mut row = vec![name.clone(), active.to_string(), set.is_idle().to_string(), state.plan.quiescing.to_string()];
            row.extend([waiting, executing].map(|n| n.to_string()));
            row.extend(set.totals.map(|n| n.to_string()));
            rows.push(row);
        }
        rows
    }

    fn dump_queues(&self) -> Vec<Vec<String>> {
        let mut rows = vec![row(&[
            "PriorityLevelName", "Index", "PendingRequests", "ExecutingRequests", "SeatsInUse", "NextDispatchR", "InitialSeatsSum",
            "MaxSeatsSum", "TotalWorkSum",
        ])];
        for (name, state) in &self.now.load().levels {
            let set = state.level.set.lock();
            for (index, queue) in set.queues().iter().enumerate() {
                let waiting = || queue.waiting.iter().filter_map(|id| set.request(*id));
                let initial: u64 = waiting().map(|r| u64::from(r.work.initial)).sum();
                let seats: u64 = waiting().map(|r| u64::from(r.work.seats())).sum();
                let mut row = vec![name.clone()];
                row.extend([index, queue.waiting.len(), queue.executing].map(|n| n.to_string()));
                row.extend([queue.seats.to_string(), seat_seconds(queue.next_r), initial.to_string(), seats.to_string(), seat_seconds(queue.work)]);
                rows.push(row);
            }
        }
        rows
    }

    fn dump_requests(&self, details: bool) -> Vec<Vec<String>> {
        let mut head = row(&[
            "PriorityLevelName", "FlowSchemaName", "QueueIndex", "RequestIndexInQueue", "FlowDistingsher", "ArriveTime", "InitialSeats",
            "FinalSeats", "AdditionalLatency", "StartTime",
        ]);
        if details {
            head.extend(row(&["UserName", "Verb", "APIPath", "Namespace", "Name", "APIVersion", "Resource", "SubResource"]));
        }
        let mut rows = vec![head];
        for (name, state) in &self.now.load().levels {
            let set = state.level.set.lock();
            let schema = |slot: usize| set.stats().get(slot).map_or("", |s| s.schema.as_str()).to_string();
            for (index, queue) in set.queues().iter().enumerate() {
                let waiting = queue.waiting.iter().filter_map(|id| set.request(*id)).enumerate();
                let waiting = waiting.map(|(at, r)| (at.to_string(), r));
                let served = set.requests().filter(|(q, r)| *q == Some(index) && r.started.is_some()).map(|(_, r)| ("-1".to_string(), r));
                for (at, request) in waiting.chain(served) {
                    rows.push(self.request_row([name.clone(), schema(request.slot), index.to_string(), at], request, details));
                }
            }
            for (_, request) in set.requests().filter(|(queue, _)| queue.is_none()) {
                rows.push(self.request_row([name.clone(), schema(request.slot), "-1".into(), "-1".into()], request, details));
            }
        }
        rows
    }

    fn request_row<W>(&self, place: [String; 4], request: &Request<W>, details: bool) -> Vec<String> {
        let work = &request.work;
        let mut row = place.to_vec();
        row.extend([
            request.details.flow().to_string(),
            self.time(Some(request.arrived)),
            work.initial.to_string(),
            work.last.to_string(),
            go_duration(work.latency),
            self.time(request.started),
        ]);
        if details {
            let info = &request.details.info;
            let version = if info.group.is_empty() { info.version.clone() } else { format!("{}/{}", info.group, info.version) };
            row.push(request.details.user.clone());
            row.extend([&info.verb, &info.path, &info.namespace, &info.name, &version, &info.resource, &info.subresource].map(String::clone));
        }
        row
    }

    /// RFC 3339 with as many digits as there are; Go's zero for what has not been yet.
    fn time(&self, at: Option<u64>) -> String {
        let Some(at) = at else { return "0001-01-01T00:00:00Z".into() };
        self.started.1.checked_add(Duration::from_nanos(at)).map(|t| t.to_string()).unwrap_or_default()
    }
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|c| c.to_string()).collect()
}

/// Columns as Go's tabwriter aligns them: eight wide at least, and a space between.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count() + 2).max().unwrap_or(0).max(8);
    let widths: Vec<usize> = (0..columns.saturating_sub(1)).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            match widths.get(i) {
                Some(width) => out.push_str(&format!("{:width$}", format!("{cell},"))),
                None => out.push_str(cell),
            }
        }
        out.push('\n');
    }
    out
}

fn seat_seconds(x: f64) -> String {
    format!("{:.8}ss", x.max(0.0))
}

/// As Go prints durations that are no longer than seconds.
fn go_duration(d: Duration) -> String {
    match d.as_nanos() {
        0 => "0s".into(),
        n if n < 1_000_000 => format!("{}µs", n as f64 / 1e3),
        n if n < 1_000_000_000 => format!("{}ms", n as f64 / 1e6),
        n => format!("{}s", n as f64 / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns() {
        let rows = [row(&["Name", "A", "Last"]), row(&["a-long-name", "1", "x"])];
        assert_eq!(table(&rows), "Name,        A,      Last\na-long-name, 1,      x\n");
        assert_eq!(go_duration(Duration::from_micros(7500)), "7.5ms");
        assert_eq!(seat_seconds(1.5), "1.50000000ss");
    }
}
