//! The ConfigMap that says since when the use of legacy service account tokens is noted.

use apiserver::Backend;
use apiserver::types::Status;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::util::{CONFIG_MAPS, object, text};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "kube-apiserver-legacy-service-account-token-tracking";

fn is_day(text: &str) -> bool {
    text.len() == 10 && text.parse::<jiff::civil::Date>().is_ok()
}

/// Makes it where it is missing, and corrects what is no day.
pub(crate) async fn keep(backend: &Backend, now: Timestamp) -> Result<(), String> {
    let today = now.strftime("%Y-%m-%d").to_string();
    let result = match backend.reader.get(*CONFIG_MAPS, NAMESPACE, NAME) {
        None => {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME, "namespace": NAMESPACE}, "data": {"since": today}});
            backend.writer.create(*CONFIG_MAPS, map).await
        }
        Some(map) if is_day(text(&map, "/data/since")) => return Ok(()),
        Some(_) => {
            let mut correct = |map: &mut Value| -> Result<(), Status> {
                object(map, "data").insert("since".into(), today.as_str().into());
                Ok(())
            };
            backend.writer.modify(*CONFIG_MAPS, NAMESPACE, NAME, &mut correct).await
        }
    };
    match result {
        // another server was faster
        Err(status) if matches!(status.reason.as_str(), "AlreadyExists" | "NotFound" | "Conflict") => Ok(()),
        other => other.map(drop).map_err(|status| status.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Objects, block_on};
    use apiserver::Reader;

    #[test]
    fn the_first_day_stays() {
        let objects = Objects::new();
        let at = |text: &str| block_on(keep(&objects.backend(), text.parse().unwrap())).unwrap();
        let since = || objects.get(&CONFIG_MAPS, NAMESPACE, NAME).unwrap()["data"]["since"].clone();
        at("2026-05-01T10:00:00Z");
        at("2026-05-02T10:00:00Z");
        assert_eq!(since(), "2026-05-01");
        objects.put(&CONFIG_MAPS, json!({"metadata": {"name": NAME, "namespace": NAMESPACE}, "data": {"since": "lately"}}));
        at("2026-05-03T10:00:00Z");
        assert_eq!(since(), "2026-05-03");
    }
}
