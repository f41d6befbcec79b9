//! Reads metrics.k8s.io, custom.metrics.k8s.io and external.metrics.k8s.io. What the answers mean is
//! pure; asking is not.

use api::gotime;
use api::quantity::Quantity;
use http::Request;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::Client;
use serde_json::Value;

use super::calculator::{PodMetric, PodMetrics};
use super::plan::{Reading, go};
use super::scale::Targets;
use crate::pods;

/// The window of a custom metric that does not tell its own.
const WINDOW: SignedDuration = SignedDuration::from_secs(60);
const CUSTOM: &str = "custom.metrics.k8s.io";
const EXTERNAL: &str = "external.metrics.k8s.io";

/// Asks for metrics as the controller's account.
#[derive(Clone)]
pub struct Source {
    pub client: Client,
    pub targets: Targets,
}

fn encode(text: &str) -> String {
    let byte = |b: u8| match b {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => (b as char).to_string(),
        b => format!("%{b:02X}"),
    };
    text.bytes().map(byte).collect()
}

/// A selector in the form that a query takes.
fn selector_text(selector: Option<&LabelSelector>) -> Result<String, String> {
    let Some(selector) = selector else { return Ok(String::new()) };
    let value = serde_json::to_value(selector).map_err(|e| e.to_string())?;
    Ok(api::selector::Labels::from_label_selector(&value)?.to_string())
}

fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, at: &str) -> &'a str {
    value.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn milli(value: Option<&Value>) -> Option<i64> {
    Quantity::from_value(value?).ok().map(|q| q.milli_value())
}

fn at(item: &Value) -> Timestamp {
    text(item, "/timestamp").parse().unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The use of a resource by each pod, or by one container of it. A pod that does not tell it of all its
/// containers is left out.
pub fn of_pods(list: &Value, resource: &str, container: &str) -> PodMetrics {
    let of = |item: &Value| {
        let containers = item.get("containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let used = |c: &Value| milli(c.get("usage").and_then(|u| u.get(resource)));
        let value = match container {
            "" if containers.is_empty() => None,
            "" => containers.iter().map(used).sum::<Option<i64>>(),
            name => containers.iter().find(|c| text(c, "/name") == name).and_then(used),
        }?;
        let window = SignedDuration::from_nanos(gotime::parse_duration(text(item, "/window")).unwrap_or(0));
        Some((text(item, "/metadata/name").to_string(), PodMetric { at: at(item), window, value }))
    };
    items(list).iter().filter_map(of).collect()
}

/// A custom metric by pod.
pub fn of_custom(list: &Value) -> PodMetrics {
    let of = |item: &Value| {
        // `windowSeconds` in v1beta2, `window` in v1beta1.
        let window = item.get("windowSeconds").or(item.get("window")).and_then(Value::as_i64);
        let window = window.map_or(WINDOW, SignedDuration::from_secs);
        let metric = PodMetric { at: at(item), window, value: milli(item.get("value")).unwrap_or(0) };
        (text(item, "/describedObject/name").to_string(), metric)
    };
    items(list).iter().map(of).collect()
}

/// The values of a list.
pub fn values(list: &Value) -> Vec<i64> {
    items(list).iter().map(|i| milli(i.get("value")).unwrap_or(0)).collect()
}

impl Source {
    async fn get(&self, path: &str, what: &str) -> Result<Value, String> {
        let request = Request::get(path).body(Vec::new()).map_err(|e| e.to_string())?;
        self.client.request::<Value>(request).await.map_err(|error| match &error {
            // A group that is not served has no Status to answer with.
            kube::Error::Api(status) if status.code == 404 && (status.reason.is_empty() || status.message.starts_with("404 page not found")) => {
                format!("the server could not find the requested resource (get {what})")
            }
            error => pods::text(error),
        })
    }

    /// Reads what one metric of a spec needs; errors are what upstream says of them.
    pub async fn read(&self, namespace: &str, selector: &str, spec: &MetricSpec) -> Result<Reading, String> {
        if let Some(source) = &spec.resource {
            return self.resource(namespace, selector, &source.name, "").await;
        }
        if let Some(source) = &spec.container_resource {
            return self.resource(namespace, selector, &source.name, &source.container).await;
        }
        if let Some(source) = &spec.pods {
            let name = &source.metric.name;
            let labels = selector_text(source.metric.selector.as_ref())?;
            let path = format!("namespaces/{namespace}/pods/*/{}", encode(name));
            let list = self.custom(&path, selector, &labels).await.and_then(|list| match items(&list).is_empty() {
                true => Err("no metrics returned from custom metrics API".to_string()),
                false => Ok(list),
            });
            return list.map(|list| Reading::Pods(of_custom(&list))).map_err(|e| format!("unable to get metric {name}: {e}"));
        }
        if let Some(source) = &spec.object {
            let (name, object) = (&source.metric.name, &source.described_object);
            let labels = selector_text(source.metric.selector.as_ref())?;
            let value = self.object(namespace, object, name, &labels).await;
            return value.map(Reading::Value).map_err(|e| format!("unable to get metric {name}: {e} on {} {namespace}/{}", object.kind, object.name));
        }
        if let Some(source) = &spec.external {
            let (name, labels) = (&source.metric.name, selector_text(source.metric.selector.as_ref())?);
            let path = format!("/apis/{EXTERNAL}/v1beta1/namespaces/{namespace}/{}?labelSelector={}", encode(name), encode(&labels));
            let list = self.get(&path, &format!("{name}.{EXTERNAL}")).await.map_err(|e| format!("unable to fetch metrics from external metrics API: {e}"));
            let found = list.and_then(|list| match values(&list) {
                none if none.is_empty() => Err("no metrics returned from external metrics API".to_string()),
                values => Ok(Reading::Values(values)),
            });
            return found.map_err(|e| format!("unable to get external metric {namespace}/{name}/{}: {e}", go(source.metric.selector.as_ref())));
        }
        Err("the metric has no source".into())
    }

    async fn resource(&self, namespace: &str, selector: &str, resource: &str, container: &str) -> Result<Reading, String> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", encode(selector));
        let wrap = |e: String| format!("unable to get metrics for resource {resource}: {e}");
        let list = self
            .get(&path, "pods.metrics.k8s.io")
            .await
            .map_err(|e| wrap(format!("unable to fetch metrics from resource metrics API: {e}")))?;
        if items(&list).is_empty() {
            return Err(wrap("no metrics returned from resource metrics API".into()));
        }
        Ok(Reading::Pods(of_pods(&list, resource, container)))
    }

    async fn custom(&self, path: &str, selector: &str, metric_selector: &str) -> Result<Value, String> {
        let fetch = |e: String| format!("unable to fetch metrics from custom metrics API: {e}");
        let version = self.targets.preferred(CUSTOM, &["v1beta2", "v1beta1"]).await.map_err(fetch)?;
        let version = version.ok_or_else(|| fetch(format!("no custom metrics API ({CUSTOM}) registered")))?;
        let mut query = Vec::new();
        for (key, value) in [("labelSelector", selector), ("metricLabelSelector", metric_selector)] {
            if !value.is_empty() {
                query.push(format!("{key}={}", encode(value)));
            }
        }
        let what = format!("{}.{CUSTOM}", path.rsplit('/').next().unwrap_or_default());
        self.get(&format!("/apis/{CUSTOM}/{version}/{path}?{}", query.join("&")), &what).await.map_err(fetch)
    }

    async fn object(&self, namespace: &str, object: &CrossVersionObjectReference, metric: &str, labels: &str) -> Result<i64, String> {
        let group = object.api_version.as_deref().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
        let path = if group.is_empty() && object.kind == "Namespace" {
            format!("namespaces/{namespace}/metrics/{}", encode(metric))
        } else {
            let plural = self.targets.plural(group, &object.kind).await.map_err(|e| format!("unable to fetch metrics from custom metrics API: {e}"))?;
            let resource = if group.is_empty() { plural } else { format!("{plural}.{group}") };
            format!("namespaces/{namespace}/{resource}/{}/{}", encode(&object.name), encode(metric))
        };
        let list = self.custom(&path, "", labels).await?;
        let first = items(&list).first().ok_or("unable to fetch metrics from custom metrics API: the custom metrics API server returned no results")?;
        Ok(milli(first.get("value")).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(metrics: &PodMetrics) -> Vec<(&str, i64)> {
        metrics.iter().map(|(name, m)| (name.as_str(), m.value)).collect()
    }

    #[test]
    fn use_is_summed_over_containers_and_unknown_use_leaves_the_pod_out() {
        let container = |name: &str, cpu: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": "1Ki"}});
        let list = json!({"items": [
            {"metadata": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "window": "15.5s", "containers": [container("x", "250m"), container("y", "1500000n")]},
            {"metadata": {"name": "b"}, "containers": [container("x", "1"), {"name": "y", "usage": {}}]},
            {"metadata": {"name": "c"}, "containers": []}]});
        let all = of_pods(&list, "cpu", "");
        assert_eq!(value(&all), [("a", 252)], "thousandths are rounded up, container by container");
        assert_eq!((all["a"].window, all["a"].at), (SignedDuration::from_millis(15_500), "2026-01-01T00:00:00Z".parse().expect("a time")));
        assert_eq!(value(&of_pods(&list, "cpu", "x")), [("a", 250), ("b", 1000)]);
        assert_eq!(value(&of_pods(&list, "memory", "y")), [("a", 1_024_000)]);
        assert_eq!(value(&of_pods(&list, "gpu", "")), []);
    }

    #[test]
    fn both_versions_of_custom_metrics_are_read() {
        let list = json!({"items": [
            {"describedObject": {"name": "a"}, "timestamp": "2026-01-01T00:00:00Z", "value": "15", "windowSeconds": 30},
            {"describedObject": {"name": "b"}, "value": "500m", "window": 10}, {"describedObject": {"name": "c"}, "value": "2k"}]});
        let all = of_custom(&list);
        assert_eq!(value(&all), [("a", 15_000), ("b", 500), ("c", 2_000_000)]);
        assert_eq!(all.values().map(|m| m.window.as_secs()).collect::<Vec<_>>(), [30, 10, 60]);
        assert_eq!(values(&list), [15_000, 500, 2_000_000]);
    }

    #[test]
    fn selectors_become_queries() {
        let selector = serde_json::from_value(json!({"matchLabels": {"a": "b"}, "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}]}));
        assert_eq!(encode(&selector_text(selector.ok().as_ref()).expect("a selector")), "a%3Db%2Cc%20in%20%28d%2Ce%29");
        assert_eq!(selector_text(None), Ok(String::new()));
    }
}
