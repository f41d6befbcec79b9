//! A cluster for tests that holds what it is told, and answers what it is told to.

use std::convert::Infallible;

use http::{Request, Response};
use kube::Client;
use kube::client::Body;
use reconcile::{Informer, Informers, Object, Tasks};
use serde_json::{Value, json};

/// A client whose requests `answer` answers by path (a `Status` with its code); else lists of all namespaces hold those of `objects`
/// that belong there, and nothing else is found. Watches stay silent.
pub fn client(objects: Vec<Value>, answer: impl Fn(&str) -> Option<Value> + Clone + Send + Sync + 'static) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let path = request.uri().path().to_string();
        let watch = request.uri().query().is_some_and(|q| q.contains("watch=true"));
        let found = answer(&path).or_else(|| list(&objects, &path));
        async move {
            if watch {
                std::future::pending::<()>().await;
            }
            let missing = || json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found", "metadata": {}});
            let body = found.unwrap_or_else(missing);
            let code = if body["kind"] == "Status" { body["code"].as_u64().and_then(|c| c.try_into().ok()).unwrap_or(500) } else { 200 };
            Ok::<_, Infallible>(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).expect("a response"))
        }
    });
    Client::new(service, "default")
}

/// What is at the path of a collection, as `/apis/apps/v1/replicasets`.
fn list(objects: &[Value], path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/api/").or_else(|| path.strip_prefix("/apis/"))?;
    let (version, plural) = rest.rsplit_once('/')?;
    if version.matches('/').count() != usize::from(path.starts_with("/apis/")) {
        return None;
    }
    let here = |o: &&Value| o["apiVersion"] == version && o["kind"].as_str().is_some_and(|k| format!("{}s", k.to_lowercase()) == plural);
    let items: Vec<&Value> = objects.iter().filter(here).collect();
    Some(json!({"apiVersion": version, "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}))
}

/// Informers of these objects.
pub fn informers(objects: Vec<Value>) -> Informers {
    Informers::new(client(objects, |_| None), Tasks::new())
}

/// An informer that has seen these objects.
pub async fn informer<K: Object>(objects: Vec<Value>) -> Informer<K> {
    let informer = informers(objects).of::<K>();
    informer.synced().await;
    informer
}
