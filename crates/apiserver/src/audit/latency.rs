//! Where the time of a slow request went, as annotations of its last event.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What a request waits for.
#[derive(Debug, Clone, Copy)]
pub enum Layer {
    Authentication,
    Impersonation,
    /// Its turn, by priority and fairness.
    QueueWait,
    Authorization,
    /// Hooks that may change the object are asked one after the other: the sum.
    MutatingWebhook,
    /// The others are asked at the same time: the longest.
    ValidatingWebhook,
    /// The store.
    Storage,
}

const LAYERS: [(Layer, &str); 7] = [
    (Layer::Authentication, "authentication"),
    (Layer::Impersonation, "impersonation"),
    (Layer::QueueWait, "apf-queue-wait"),
    (Layer::Authorization, "authorization"),
    (Layer::MutatingWebhook, "mutating-webhook"),
    (Layer::ValidatingWebhook, "validating-webhook"),
    (Layer::Storage, "etcd"),
];
const PREFIX: &str = "apiserver.latency.k8s.io/";
/// Requests that take no longer than this say nothing.
const SLOW: Duration = Duration::from_millis(500);

/// What each layer took of one request.
#[derive(Debug, Default)]
pub struct Latencies([AtomicU64; LAYERS.len()]);

impl Latencies {
    /// Adds to what a layer took.
    pub fn took(&self, layer: Layer, time: Duration) {
        let (slot, nanos) = (&self.0[layer as usize], time.as_nanos() as u64);
        match layer {
            Layer::ValidatingWebhook => slot.fetch_max(nanos, Ordering::Relaxed),
            _ => slot.fetch_add(nanos, Ordering::Relaxed),
        };
    }

    /// Annotates a request that took so long, if that is long.
    pub fn annotate(&self, total: Duration, annotations: &mut BTreeMap<String, String>) {
        if total <= SLOW {
            return;
        }
        let text = |nanos: u64| api::gotime::format_duration(nanos as i64);
        let taken = LAYERS.map(|(layer, name)| (name, self.0[layer as usize].load(Ordering::Relaxed)));
        for (name, nanos) in taken.into_iter().filter(|(_, nanos)| *nanos > 0) {
            annotations.entry(format!("{PREFIX}{name}")).or_insert_with(|| text(nanos));
        }
        annotations.entry(format!("{PREFIX}total")).or_insert_with(|| text(total.as_nanos() as u64));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_requests_say_where_their_time_went() {
        let all = Latencies::default();
        for (layer, millis) in [(Layer::MutatingWebhook, 200), (Layer::MutatingWebhook, 100), (Layer::ValidatingWebhook, 150), (Layer::ValidatingWebhook, 90)] {
            all.took(layer, Duration::from_millis(millis));
        }
        let mut annotations = BTreeMap::new();
        all.annotate(Duration::from_millis(500), &mut annotations);
        assert!(annotations.is_empty());
        all.annotate(Duration::from_millis(1200), &mut annotations);
        let expected = [("mutating-webhook", "300ms"), ("total", "1.2s"), ("validating-webhook", "150ms")];
        assert_eq!(annotations, BTreeMap::from(expected.map(|(k, v)| (format!("apiserver.latency.k8s.io/{k}"), v.to_string()))));
    }
}
