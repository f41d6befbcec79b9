//! `apiserver_flowcontrol_*` for /metrics.
use std::fmt::Write;

use super::stats::{Refusal, SchemaStats};
use super::{Flow, Sharing};
use crate::histogram::Histogram;

/// What is told of one level.
struct Seen {
    name: String,
    stats: Vec<SchemaStats>,
    r: [f64; 3],
    bounds: super::share::Bounds,
    sharing: Sharing,
}

impl Flow {
    /// Appends everything in Prometheus' text format.
    pub fn render(&self, out: &mut String) {
        let now = self.clock();
        let seen: Vec<Seen> = self
            .now
            .load()
            .levels
            .values()
            .map(|state| {
                let mut set = state.level.set.lock();
                set.advance(now);
                let r = [set.r(), set.latest.0, set.latest.1];
                let stats = set.stats().to_vec();
                self.after(set);
                let sharing = *state.level.sharing.lock();
                Seen { name: state.plan.spec.name.clone(), stats, r, bounds: state.plan.bounds, sharing }
            })
            .collect();
        let mut page = Page { out, seen: &seen };
        type Gauge = fn(&SchemaStats) -> f64;
        let by_schema: [(&str, &str, &str, Gauge); 8] = [
            ("dispatched_requests_total", "counter", "Number of requests executed by API Priority and Fairness subsystem", |s| s.dispatched as f64),
            ("current_inqueue_requests", "gauge", "Number of requests currently pending in queues of the API Priority and Fairness subsystem", |s| s.waiting as f64),
            ("current_inqueue_seats", "gauge", "Number of seats currently pending in queues of the API Priority and Fairness subsystem", |s| s.waiting_seats as f64),
            ("current_executing_requests", "gauge", "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem", |s| s.executing as f64),
            ("current_executing_seats", "gauge", "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", |s| s.executing_seats as f64),
            ("request_concurrency_in_use", "gauge", "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem", |s| s.executing_seats as f64),
            ("request_dispatch_no_accommodation_total", "counter", "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats", |s| s.no_accommodation as f64),
            ("rejected_requests_total", "counter", "Number of requests rejected by API Priority and Fairness subsystem", |_| 0.0),
        ];
        for (name, kind, help, of) in by_schema {
            page.head(name, kind, help);
            let rejections = name == "rejected_requests_total";
            for level in page.seen {
                for stats in &level.stats {
                    let labels = labels(level, stats);
                    if rejections {
                        for ((_, reason), count) in Refusal::ALL.iter().zip(stats.rejected).filter(|(_, count)| *count > 0) {
                            page.line(name, &format!("{labels},reason=\"{reason}\""), count as f64);
                        }
                    } else {
                        page.line(name, &labels, of(stats));
                    }
                }
            }
        }
        page.histogram("request_wait_duration_seconds", "Length of time a request spent waiting in its queue", |s| {
            vec![(",execute=\"false\"", &s.waited[0]), (",execute=\"true\"", &s.waited[1])]
        });
        page.histogram(
            "request_execution_seconds",
            "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
            |s| vec![(",type=\"regular\"", &s.served[0]), (",type=\"watch\"", &s.served[1])],
        );
        page.histogram(
            "request_queue_length_after_enqueue",
            "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued",
            |s| vec![("", &s.lengths)],
        );
        page.histogram(
            "work_estimated_seats",
            "Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness",
            |s| vec![("", &s.seats)],
        );
        page.histogram("watch_count_samples", "count of watchers for mutating requests in API Priority and Fairness", |s| vec![("", &s.watches)]);
        type OfLevel = fn(&Seen) -> f64;
        let by_level: [(&str, &str, OfLevel); 13] = [
            ("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", |l| l.bounds.nominal as f64),
            ("request_concurrency_limit", "Nominal number of execution seats configured for each priority level", |l| l.bounds.nominal as f64),
            ("lower_limit_seats", "Configured lower bound on number of execution seats available to each priority level", |l| l.bounds.min as f64),
            ("upper_limit_seats", "Configured upper bound on number of execution seats available to each priority level", |l| l.bounds.max as f64),
            ("current_limit_seats", "current derived number of execution seats available to each priority level", |l| l.sharing.current as f64),
            ("target_seats", "Seat allocation targets", |l| l.sharing.target),
            ("demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats", |l| l.sharing.demand.high as f64),
            ("demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats", |l| l.sharing.demand.average),
            ("demand_seats_stdev", "Time-weighted standard deviation, over last adjustment period, of demand_seats", |l| l.sharing.demand.deviation),
            ("demand_seats_smoothed", "Smoothed seat demands", |l| l.sharing.demand.smoothed),
            ("current_r", "R(time of last change)", |l| l.r[0]),
            ("dispatch_r", "R(time of last dispatch)", |l| l.r[1]),
            ("latest_s", "S(most recently dispatched request)", |l| l.r[2]),
        ];
        for (name, help, of) in by_level {
            page.head(name, "gauge", help);
            for level in page.seen {
                page.line(name, &format!("priority_level=\"{}\"", level.name), of(level));
            }
        }
        page.head("seat_fair_frac", "gauge", "Fair fraction of server's concurrency to allocate to each priority level that can use it");
        let _ = writeln!(page.out, "apiserver_flowcontrol_seat_fair_frac {}", *self.fair.lock());
    }
}

fn labels(level: &Seen, stats: &SchemaStats) -> String {
    format!("flow_schema=\"{}\",priority_level=\"{}\"", stats.schema, level.name)
}

struct Page<'a> {
    out: &'a mut String,
    seen: &'a [Seen],
}

impl Page<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.out, "# HELP apiserver_flowcontrol_{name} {help}\n# TYPE apiserver_flowcontrol_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: f64) {
        let _ = writeln!(self.out, "apiserver_flowcontrol_{name}{{{labels}}} {value}");
    }

    fn histogram(&mut self, name: &str, help: &str, of: fn(&SchemaStats) -> Vec<(&'static str, &Histogram)>) {
        self.head(name, "histogram", help);
        for level in self.seen {
            for stats in &level.stats {
                for (more, histogram) in of(stats) {
                    if histogram.total() > 0 {
                        let labels = format!("{}{more}", labels(level, stats));
                        histogram.render(&format!("apiserver_flowcontrol_{name}"), &labels, self.out);
                    }
                }
            }
        }
    }
}
