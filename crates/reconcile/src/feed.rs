//! One list and one watch of a collection, kept going: what informers, and whoever else follows a
//! collection, are fed from. Objects stay text here, so that this code exists once and each user
//! decodes what it needs.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, TryFutureExt};
use kube::Client;
use kube::api::{ListParams, Request, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;

/// Takes in what is seen of a collection, in order.
pub trait Sink: Send {
    /// A list begins, also after one that broke off.
    fn begin(&mut self);
    /// Some of its objects.
    fn page(&mut self, objects: &[&RawValue]);
    /// The list is whole: what was not in it is gone.
    fn listed(&mut self);
    /// An object is new or another one.
    fn put(&mut self, object: &RawValue);
    /// An object is gone; this is how it last was.
    fn remove(&mut self, object: &RawValue);
}

/// A collection to follow.
pub struct Feed {
    client: Client,
    path: String,
    fields: Option<String>,
    metadata_only: bool,
}

const PAGE: u32 = 500;
const WATCH_SECONDS: u32 = 290;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// A watch that ends sooner, and without an event, is one that fails.
const VERY_SHORT: Duration = Duration::from_secs(1);
/// How often a watch may fail without an event between before all is listed again.
const MAX_FAILURES: u32 = 10;

impl Feed {
    /// All objects under a path as `/api/v1/pods`.
    pub fn new(client: Client, path: String) -> Feed {
        Feed { client, path, fields: None, metadata_only: false }
    }

    /// Those alone that match a field selector, as `spec.nodeName=a`; empty for all.
    pub fn selected(mut self, fields: &str) -> Feed {
        self.fields = Some(fields.to_string()).filter(|f| !f.is_empty());
        self
    }

    /// Asks for the objects' metadata alone.
    pub fn metadata_only(mut self) -> Feed {
        self.metadata_only = true;
        self
    }

    /// Lists and watches for ever.
    pub async fn follow(&self, sink: &mut dyn Sink) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.once(sink).await {
                Ok(()) => pause = FIRST_PAUSE,
                Err(error) => {
                    tracing::debug!(self.path, "listing again after {pause:?}: {error}");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                }
            }
        }
    }

    /// One list, and watches from there on. Ends with `Ok` when the watch cannot be resumed and a new list is due.
    ///
    /// # Errors
    /// When the list fails, or the watch does so many times in a row.
    pub async fn once(&self, sink: &mut dyn Sink) -> kube::Result<()> {
        let mut version = self.list(sink).await?;
        let mut failures = 0;
        loop {
            match self.watch(&mut version, sink, &mut failures).await {
                Ok(()) => {}
                Err(kube::Error::Api(status)) if status.code == 410 => return Ok(()),
                Err(error) if failures >= MAX_FAILURES => return Err(error),
                Err(error) => {
                    tracing::debug!(self.path, "watching again: {error}");
                    tokio::time::sleep(Duration::from_millis(50 << failures.min(6))).await;
                    failures += 1;
                }
            }
        }
    }

    /// The version that the list is of.
    async fn list(&self, sink: &mut dyn Sink) -> kube::Result<String> {
        let requests = Request::new(&self.path);
        sink.begin();
        let mut params = ListParams { field_selector: self.fields.clone(), ..ListParams::default() }.limit(PAGE);
        loop {
            let request = if self.metadata_only { requests.list_metadata(&params) } else { requests.list(&params) };
            let text = self.client.request_text(request.map_err(kube::Error::BuildRequest)?).await?;
            let page: Page<'_> = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
            sink.page(&page.items.unwrap_or_default());
            match page.metadata.next.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => {
                    sink.listed();
                    return Ok(page.metadata.resource_version.into_owned());
                }
            }
        }
    }

    /// One watch, until the server ends it. `version` is always that of the last event.
    async fn watch(&self, version: &mut String, sink: &mut dyn Sink, failures: &mut u32) -> kube::Result<()> {
        let requests = Request::new(&self.path);
        let params = WatchParams { field_selector: self.fields.clone(), ..WatchParams::default() }.timeout(WATCH_SECONDS);
        let request = if self.metadata_only { requests.watch_metadata(&params, version) } else { requests.watch(&params, version) };
        let mut lines = self.client.request_stream(request.map_err(kube::Error::BuildRequest)?).await?;
        let (began, mut seen) = (Instant::now(), false);
        let mut line = Vec::new();
        loop {
            line.clear();
            lines.read_until(b'\n', &mut line).map_err(kube::Error::ReadEvents).await?;
            if line.last() != Some(&b'\n') {
                // The end, or a line that was cut short.
                return if seen || began.elapsed() >= VERY_SHORT { Ok(()) } else { Err(very_short()) };
            }
            let event: Event<'_> = serde_json::from_slice(&line).map_err(kube::Error::SerdeError)?;
            if event.kind == "ERROR" {
                return Err(serde_json::from_str(event.object.get()).map_or_else(kube::Error::SerdeError, kube::Error::Api));
            }
            let head: Head<'_> = serde_json::from_str(event.object.get()).map_err(kube::Error::SerdeError)?;
            match &*event.kind {
                "ADDED" | "MODIFIED" => sink.put(event.object),
                "DELETED" => sink.remove(event.object),
                // A bookmark: the version alone is new.
                _ => {}
            }
            *version = head.metadata.resource_version.into_owned();
            (seen, *failures) = (true, 0);
        }
    }
}

fn very_short() -> kube::Error {
    kube::Error::ReadEvents(std::io::Error::other("very short watch: it ended within a second, without an event"))
}

#[derive(Deserialize)]
struct Page<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
    /// Go prints an empty list as `null`.
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: Meta<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'a> {
    #[serde(borrow, default)]
    resource_version: Cow<'a, str>,
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use kube::client::Body;
    use parking_lot::Mutex;

    use super::*;

    /// What was asked for, and what a sink was told.
    type Log = Arc<Mutex<Vec<String>>>;

    struct Told(Log);

    impl Sink for Told {
        fn begin(&mut self) {
            self.0.lock().push("begin".into());
        }

        fn page(&mut self, objects: &[&RawValue]) {
            self.0.lock().push(format!("page of {}", objects.len()));
        }

        fn listed(&mut self) {
            self.0.lock().push("listed".into());
        }

        fn put(&mut self, object: &RawValue) {
            self.0.lock().push(format!("put {object}"));
        }

        fn remove(&mut self, object: &RawValue) {
            self.0.lock().push(format!("remove {object}"));
        }
    }

    /// Follows `/things` once, at a server with these answers: a status and a body. Returns the log and whether it ended well.
    async fn followed(answers: &[(u16, &str)]) -> (Vec<String>, bool) {
        let log = Log::default();
        let mut answers: Vec<(u16, String)> = answers.iter().map(|(status, body)| (*status, body.to_string())).collect();
        answers.reverse();
        let (asked, answers) = (log.clone(), Arc::new(Mutex::new(answers)));
        let client = client::in_process(move |request: Request<Body>| {
            asked.lock().push(request.uri().query().unwrap_or_default().to_string());
            let (status, body) = answers.lock().pop().unwrap_or((500, String::new()));
            async move { Response::builder().status(status).body(Full::new(Bytes::from(body))).expect("a response") }
        });
        let ended = Feed::new(client, "/things".into()).selected("a=b").once(&mut Told(log.clone())).await;
        let log = log.lock().clone();
        (log, ended.is_ok())
    }

    const GONE: &str =
        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old","status":"Failure"}}"#;

    #[tokio::test]
    async fn a_list_is_paged_and_watches_go_on_from_the_last_version() {
        let first = r#"{"metadata":{"resourceVersion":"5","continue":"x"},"items":[{"a":1},{"a":2}]}"#;
        let second = r#"{"metadata":{"resourceVersion":"5"},"items":null}"#;
        // The second event has its object first, the last one is cut short.
        let events = concat!(
            r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"6"}}}"#,
            "\n",
            r#"{"object":{"metadata":{"resourceVersion":"7"}},"type":"DELETED"}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"9"}}}"#,
            "\n",
            r#"{"type":"ADDED","object":{"metadata":{"resour"#,
        );
        let (log, well) = followed(&[(200, first), (200, second), (200, events), (200, &format!("{GONE}\n"))]).await;
        assert!(well);
        let watch =
            |version| format!("&watch=true&timeoutSeconds=290&fieldSelector=a%3Db&allowWatchBookmarks=true&resourceVersion={version}");
        let expected = [
            "begin".to_string(),
            "&fieldSelector=a%3Db&limit=500".into(),
            "page of 2".into(),
            "&fieldSelector=a%3Db&limit=500&continue=x".into(),
            "page of 0".into(),
            "listed".into(),
            watch("5"),
            r#"put {"metadata":{"resourceVersion":"6"}}"#.into(),
            r#"remove {"metadata":{"resourceVersion":"7"}}"#.into(),
            watch("9"),
        ];
        assert_eq!(log, expected);
    }

    #[tokio::test]
    async fn a_watch_that_ends_at_once_is_begun_again_after_a_pause() {
        let list = r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#;
        let began = Instant::now();
        let (log, well) = followed(&[(200, list), (200, ""), (503, ""), (200, &format!("{GONE}\n"))]).await;
        assert!(well);
        assert_eq!(log.iter().filter(|l| l.contains("watch=true&")).count(), 3, "{log:#?}");
        assert!(began.elapsed() >= Duration::from_millis(150), "pauses of 50 and 100 ms");
    }

    #[tokio::test]
    async fn a_revision_that_is_gone_and_a_list_that_fails_end_it() {
        let list = r#"{"metadata":{"resourceVersion":"5"},"items":[]}"#;
        let status =
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","code":410,"reason":"Expired","message":"too old"}"#;
        assert!(followed(&[(200, list), (410, status)]).await.1);
        assert!(!followed(&[(403, r#"{"code":403,"message":"no","reason":"Forbidden","status":"Failure"}"#)]).await.1);
    }
}
