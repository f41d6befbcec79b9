//! Requests for resources: from the parsed path to the verb, and from its result to the response.
use std::sync::Arc;

use futures::StreamExt;
use http::{Method, Response};
use http_body_util::BodyExt;
use serde_json::{Value, json};

use crate::body::{self, Body};
use crate::core::Object;
use crate::ctx::Ctx;
use crate::decode::{self, Expect};
use crate::filters;
use crate::model;
use crate::negotiate::{self, Accepted, Endpoint};
use crate::object;
use crate::present::{Include, Presenter};
use crate::profile;
use crate::request::RequestInfo;
use crate::select::Selection;
use crate::server::{Rq, Server};
use crate::types::Status;
use crate::verbs::list::Page;
use crate::verbs::patch::{Patch, PatchType};
use crate::verbs::{DeleteOptions, ListOptions, Op, WriteOptions, scale};

/// Upstream's answer to a path that leads nowhere.
pub(crate) fn page_not_found() -> Response<Body> {
    let mut response = body::response(404, "text/plain; charset=utf-8", "404 page not found\n");
    response.headers_mut().insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}

impl Server {
    pub(crate) async fn resource(self: &Arc<Server>, rq: Rq) -> Result<Response<Body>, Status> {
        let info = &rq.info;
        let installed = || self.core.parts().served(&info.group, &info.version, &info.resource);
        let mut custom = None;
        let built_in = model::find(&info.group, &info.version, &info.resource).filter(|r| self.core.enablement.serves(r.group, r.version, r.plural));
        let found = built_in.or_else(installed).or_else(|| {
            custom = self.core.customs().find(&info.group, &info.version, &info.resource).cloned();
            custom.as_ref().map(crate::custom::Custom::resource)
        });
        let Some(resource) = found else { return Ok(page_not_found()) };
        let named = !info.path_name().is_empty();
        let a_namespace = resource.plural == "namespaces" && resource.group.is_empty();
        let scoped = !info.namespace.is_empty() && !a_namespace;
        if scoped && !resource.namespaced || named && resource.namespaced && !scoped {
            return Ok(page_not_found());
        }
        if resource.is_custom() && resource.namespaced && !scoped && info.verb == "create" {
            return Ok(page_not_found());
        }
        if !info.rest.is_empty() && info.subresource != "proxy" && info.rest != "/" {
            return Ok(page_not_found());
        }
        let namespace = if resource.namespaced { info.namespace.clone() } else { String::new() };
        let mut ctx = Ctx::new(resource, &namespace, info.path_name(), rq.user.clone(), rq.now, self.backend());
        ctx.subresource = info.subresource.clone();
        if let Some(text) = custom.as_ref().and_then(|c| c.version.deprecation.clone()) {
            ctx.warn(text);
        }
        ctx.custom = custom;
        ctx.audit = rq.audit.clone();
        if let Some(text) = model::deprecation(resource) {
            ctx.warn(text);
            ctx.audit("k8s.io/deprecated", || "true".into());
        }
        // what reads is there for GET alone; custom resources do not look at the method
        let reads = matches!(info.verb.as_str(), "get" | "list" | "watch");
        if reads && *rq.request.method() != Method::GET && ctx.custom.is_none() && info.subresource != "proxy" {
            return Err(unsupported());
        }
        let warnings = ctx.warned();
        let result = if info.subresource.is_empty() { self.main(rq, ctx).await } else { self.subresource(rq, ctx).await };
        let mut response = match result {
            Ok(response) => response,
            Err(Failure { status, headers }) => negotiate::respond_status(&headers, &status),
        };
        let all = std::mem::take(&mut *warnings.lock());
        for text in all.sent() {
            if let Some(value) = filters::warning_header(&text) {
                response.headers_mut().append(http::header::WARNING, value);
            }
        }
        Ok(response)
    }

    fn op(&self, rq: &Rq, ctx: Ctx) -> Op {
        let agent = rq.headers().get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Op {
            core: self.core.clone(),
            strategy: self.core.strategy_of(&ctx, &ctx.subresource),
            admission: self.core.parts().admission.clone(),
            user_agent: agent.to_string(),
            brings_version: false,
            ctx,
        }
    }

    fn accepted(&self, rq: &Rq, ctx: &Ctx, endpoint: Endpoint) -> Result<(Accepted, Include), Status> {
        let accepted = match &ctx.custom {
            Some(_) => negotiate::negotiate_custom(rq.headers(), rq.param("pretty"), endpoint)?,
            None => negotiate::negotiate(rq.headers(), rq.param("pretty"), endpoint)?,
        };
        let include = Include::parse(rq.param("includeObject").unwrap_or_default())?;
        Ok((accepted, include))
    }

    fn presenter<'a>(&'a self, rq: &Rq, ctx: &'a Ctx, (accepted, include): (Accepted, Include)) -> Presenter<'a> {
        Presenter { core: &self.core, resource: ctx.resource, custom: ctx.custom.as_ref(), accepted, include, now: rq.now }
    }

    /// The resource itself.
    async fn main(self: &Arc<Server>, mut rq: Rq, ctx: Ctx) -> Result<Response<Body>, Failure> {
        let headers = rq.headers().clone();
        self.main_verb(&mut rq, ctx).await.map_err(|status| Failure { status, headers })
    }

    async fn main_verb(self: &Arc<Server>, rq: &mut Rq, ctx: Ctx) -> Result<Response<Body>, Status> {
        let r = ctx.resource;
        let verb = rq.info.verb.clone();
        let key = (r.group.to_string(), r.plural.to_string(), String::new());
        if let Some(creater) = self.core.parts().creaters.get(&key).cloned() {
            if verb != "create" {
                return Err(unsupported());
            }
            return self.create_virtual(rq, ctx, creater, Expect::new(r.group, r.version, r.kind)).await;
        }
        if let Some(source) = self.core.parts().virtuals.get(&key).cloned() {
            return self.virtual_resource(rq, ctx, source).await;
        }
        // POST, and lists over all namespaces, have no name; the rest has
        let all_namespaces = r.namespaced && ctx.namespace.is_empty();
        if !r.has_verb(&verb) || !model::is_stored(r) || verb == "create" && (all_namespaces || !ctx.name.is_empty()) || verb == "deletecollection" && all_namespaces {
            return Err(unsupported());
        }
        if matches!(verb.as_str(), "update" | "patch") && ctx.name.is_empty() {
            return Err(unsupported());
        }
        match verb.as_str() {
            "get" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                let object = self.get(&ctx, rq.param("resourceVersion").unwrap_or_default()).await?;
                Ok(self.presenter(rq, &ctx, accepted).object(rq.headers(), 200, object))
            }
            "list" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                let options = ListOptions::parse(&rq.query, false)?;
                let selection = Selection::parse(&ctx, "", &options.label_selector, &options.field_selector)?;
                let page = self.core.list(&ctx, &selection, &options).await?;
                Ok(self.presenter(rq, &ctx, accepted).page(rq.headers(), page))
            }
            "watch" => self.watch(rq, &ctx).await,
            "create" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                let options = WriteOptions::parse(&rq.query, "CreateOptions", false, false)?;
                let value = self.read_object(rq, &ctx, &Expect::new(r.group, r.version, r.kind), &options).await?;
                let mut op = self.op(rq, with_dry_run(ctx, options.dry_run));
                let created = op.create(value, &options).await?;
                Ok(self.presenter(rq, &op.ctx, accepted).object(rq.headers(), 201, created))
            }
            "update" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                self.put(rq, ctx, accepted).await
            }
            "patch" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                self.patch(rq, ctx, accepted).await
            }
            "delete" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                let options = self.delete_options(rq).await?;
                let mut op = self.op(rq, with_dry_run(ctx, options.dry_run));
                let deleted = op.delete(&options).await?;
                let presenter = self.presenter(rq, &op.ctx, accepted);
                if deleted.gone && !op.strategy.returns_deleted_object(&op.ctx) {
                    let gone = deleted.object.into_tree();
                    let status = api::status::success(r.group, r.plural, &op.ctx.name, object::meta(&gone, "uid"));
                    return Ok(negotiate::respond(rq.headers(), plain(accepted.0), 200, &status));
                }
                let code = if !deleted.gone && options.orphan_dependents == Some(false) { 202 } else { 200 };
                Ok(presenter.object(rq.headers(), code, deleted.object))
            }
            "deletecollection" => {
                let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
                let list = ListOptions::parse(&rq.query, false)?;
                let options = self.delete_options(rq).await?;
                let selection = Selection::parse(&ctx, "", &list.label_selector, &list.field_selector)?;
                let page = self.core.list(&ctx, &selection, &list).await?;
                let op = self.op(rq, with_dry_run(ctx, options.dry_run));
                let items = op.delete_collection(page.items, &options).await?;
                let page = Page { items, continue_token: String::new(), remaining: None, ..page };
                Ok(self.presenter(rq, &op.ctx, accepted).page(rq.headers(), page))
            }
            _ => Err(unsupported()),
        }
    }

    async fn get(&self, ctx: &Ctx, version: &str) -> Result<Object, Status> {
        let r = ctx.resource;
        match crate::verbs::options::parse_version(version)? {
            // the most recent state
            None => self.core.catch_up().await?,
            Some(0) => {}
            Some(wanted) => {
                if !self.core.cache.wait(wanted, std::time::Duration::from_secs(3)).await {
                    return Err(crate::verbs::list::too_large_version(wanted, self.core.cache.revision()));
                }
            }
        }
        match self.core.entry(r, &ctx.namespace, &ctx.name) {
            Some(entry) => Ok(Object::Cached(self.core.view(r, entry).await?)),
            None => Err(api::status::not_found(r.group, r.plural, &ctx.name)),
        }
    }

    async fn watch(self: &Arc<Server>, rq: &mut Rq, ctx: &Ctx) -> Result<Response<Body>, Status> {
        let (accepted, include) = self.accepted(rq, ctx, Endpoint::Watch)?;
        let options = ListOptions::parse(&rq.query, true)?;
        let name = if rq.info.watch_prefix { ctx.name.as_str() } else { "" };
        let selection = Selection::parse(ctx, name, &options.label_selector, &options.field_selector)?;
        let watch = self.core.watch(ctx, selection, &options, accepted, include).await?;
        let mut response = Response::new(Body::default());
        let content_type = http::HeaderValue::from_static(watch.content_type());
        response.headers_mut().insert(http::header::CONTENT_TYPE, content_type);
        let open = OpenWatch::new(self.clone(), rq.info.clone());
        let stream = futures::StreamExt::map(watch.stream(rq.occupied.take()), move |chunk| {
            let _ = &open;
            chunk
        });
        *response.body_mut() = body::stream(profile::streamed(rq.info.clone(), stream));
        Ok(response)
    }

    async fn read_object(&self, rq: &mut Rq, ctx: &Ctx, expect: &Expect, options: &WriteOptions) -> Result<Value, Status> {
        decode::content_format(rq.headers())?;
        let bytes = rq.body().await?;
        let _part = profile::part("decoding");
        let object = decode::object(rq.headers(), &bytes, expect, options.field_validation, ctx)?;
        if let Some(record) = &rq.audit {
            record.request_object(&object);
        }
        Ok(object)
    }

    async fn delete_options(&self, rq: &mut Rq) -> Result<DeleteOptions, Status> {
        let bytes = rq.body().await?;
        if bytes.is_empty() {
            return DeleteOptions::from_query(&rq.query);
        }
        let format = decode::content_format(rq.headers())?;
        let expect = api::codec::Gvk::new("meta.k8s.io", "v1", "DeleteOptions");
        let (mut value, _) = model::decode(&bytes, format, Some(&expect)).map_err(|why| {
            api::status::bad_request(format!("the object provided is unrecognized (must be of type DeleteOptions): {why}"))
        })?;
        if value.get("kind").and_then(Value::as_str).is_some_and(|k| k != "DeleteOptions") {
            return Err(api::status::bad_request("decoded object cannot be converted to DeleteOptions"));
        }
        model::normalize("meta.k8s.io", "v1", "DeleteOptions", &mut value)
            .map_err(|why| api::status::bad_request(format!("DeleteOptions in version \"v1\" cannot be handled as a DeleteOptions: {why}")))?;
        if let Some(record) = &rq.audit {
            let mut object = value.clone();
            let map = object::map_of(&mut object);
            map.entry("kind").or_insert("DeleteOptions".into());
            map.entry("apiVersion").or_insert("meta.k8s.io/v1".into());
            record.request_object(&object);
        }
        DeleteOptions::from_value(&value)
    }

    async fn put(&self, rq: &mut Rq, ctx: Ctx, accepted: (Accepted, Include)) -> Result<Response<Body>, Status> {
        let r = ctx.resource;
        let options = WriteOptions::parse(&rq.query, "UpdateOptions", false, false)?;
        let value = self.read_object(rq, &ctx, &Expect::new(r.group, r.version, r.kind), &options).await?;
        let mut op = self.op(rq, with_dry_run(ctx, options.dry_run));
        let updated = op.update(value, &options).await?;
        let code = if updated.created { 201 } else { 200 };
        Ok(self.presenter(rq, &op.ctx, accepted).object(rq.headers(), code, updated.object))
    }

    async fn patch(&self, rq: &mut Rq, ctx: Ctx, accepted: (Accepted, Include)) -> Result<Response<Body>, Status> {
        let r = ctx.resource;
        let kind = PatchType::of(rq.headers(), ctx.custom.is_some())?;
        let options = WriteOptions::parse(&rq.query, "PatchOptions", true, kind == PatchType::Apply)?;
        let bytes = rq.body().await?;
        if let Some(record) = &rq.audit {
            record.request_patch(&bytes);
        }
        let patch = Patch::read(kind, &bytes)?;
        let mut op = self.op(rq, with_dry_run(ctx, options.dry_run));
        let updated = op.patch(&patch, &Expect::new(r.group, r.version, r.kind), &options).await?;
        let code = if updated.created { 201 } else { 200 };
        Ok(self.presenter(rq, &op.ctx, accepted).object(rq.headers(), code, updated.object))
    }

    async fn create_virtual(
        &self,
        rq: &mut Rq,
        ctx: Ctx,
        creater: Arc<dyn crate::strategy::Creater>,
        expect: Expect,
    ) -> Result<Response<Body>, Status> {
        // What is not kept has no metadata to show, and no columns.
        let accepted = self.accepted(rq, &ctx, Endpoint::Plain)?;
        let options = WriteOptions::parse(&rq.query, "CreateOptions", false, false)?;
        let mut value = self.read_object(rq, &ctx, &expect, &options).await?;
        // whose name it must have is for who makes something of it to say
        let op = self.op(rq, with_dry_run(ctx, options.dry_run));
        op.settle_namespace(&mut value)?;
        let wire = crate::verbs::options_value("CreateOptions", &options);
        op.admit(crate::Operation::Create, None, &wire, &mut value).await?;
        op.admit_final(crate::Operation::Create, None, &wire, Some(&value)).await?;
        let result = creater.create(&op.ctx, value).await?;
        Ok(negotiate::respond(rq.headers(), plain(accepted.0), 201, &result))
    }

    async fn virtual_resource(&self, rq: &Rq, ctx: Ctx, source: Arc<dyn crate::strategy::Virtual>) -> Result<Response<Body>, Status> {
        let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
        let presenter = self.presenter(rq, &ctx, accepted);
        match rq.info.verb.as_str() {
            "get" => Ok(presenter.value(rq.headers(), 200, source.get(&ctx, &ctx.name).await?)),
            "list" => {
                let options = ListOptions::parse(&rq.query, false)?;
                let selection = Selection::parse(&ctx, "", &options.label_selector, &options.field_selector)?;
                let mut items = source.list(&ctx).await?;
                items.retain(|i| selection.matches_value(i));
                Ok(presenter.values(rq.headers(), items, json!({})))
            }
            _ => Err(unsupported()),
        }
    }

    /// A subresource of a named object.
    async fn subresource(self: &Arc<Server>, mut rq: Rq, ctx: Ctx) -> Result<Response<Body>, Failure> {
        let headers = rq.headers().clone();
        let r = ctx.resource;
        let key = (r.group.to_string(), r.plural.to_string(), ctx.subresource.clone());
        if let Some(locator) = self.core.parts().locators.get(&key).cloned() {
            return self.connect(rq, ctx, locator).await.map_err(|status| Failure { status, headers });
        }
        self.subresource_verb(&mut rq, ctx, key).await.map_err(|status| Failure { status, headers })
    }

    async fn subresource_verb(self: &Arc<Server>, rq: &mut Rq, ctx: Ctx, key: (String, String, String)) -> Result<Response<Body>, Status> {
        let r = ctx.resource;
        let Some(sub) = r.subresource(&ctx.subresource) else {
            if r.is_custom() {
                return Err(api::status::not_found(r.group, r.plural, &ctx.name));
            }
            return Ok(page_not_found());
        };
        let verb = rq.info.verb.clone();
        if let Some(creater) = self.core.parts().creaters.get(&key).cloned() {
            if verb != "create" {
                return Err(unsupported());
            }
            return self.create_virtual(rq, ctx, creater, Expect::new(sub.group, sub.version, sub.kind)).await;
        }
        if !sub.verbs.contains(&verb.as_str()) {
            return Err(unsupported());
        }
        let accepted = self.accepted(rq, &ctx, Endpoint::Resource)?;
        if sub.kind == "Scale" {
            return self.scale(rq, ctx, &verb, accepted.0).await;
        }
        match verb.as_str() {
            "get" => {
                let object = self.get(&ctx, rq.param("resourceVersion").unwrap_or_default()).await?;
                Ok(self.presenter(rq, &ctx, accepted).object(rq.headers(), 200, object))
            }
            "update" => self.put(rq, ctx, accepted).await,
            "patch" => self.patch(rq, ctx, accepted).await,
            _ => Err(unsupported()),
        }
    }

    async fn scale(&self, rq: &mut Rq, ctx: Ctx, verb: &str, accepted: Accepted) -> Result<Response<Body>, Status> {
        let shown = match verb {
            "get" => scale::of(&ctx, &self.get(&ctx, "").await?.into_tree()),
            "update" => {
                let options = WriteOptions::parse(&rq.query, "UpdateOptions", false, false)?;
                let value = self.read_object(rq, &ctx, &scale::expect(), &options).await?;
                self.op(rq, with_dry_run(ctx, options.dry_run)).update_scale(value, &options).await?
            }
            "patch" => {
                let kind = PatchType::of(rq.headers(), ctx.custom.is_some())?;
                let options = WriteOptions::parse(&rq.query, "PatchOptions", true, kind == PatchType::Apply)?;
                let bytes = rq.body().await?;
                if let Some(record) = &rq.audit {
                    record.request_patch(&bytes);
                }
                let patch = Patch::read(kind, &bytes)?;
                self.op(rq, with_dry_run(ctx, options.dry_run)).patch_scale(&patch, &options).await?
            }
            _ => return Err(unsupported()),
        };
        Ok(negotiate::respond(rq.headers(), plain(accepted), 200, &shown))
    }

    /// A subresource that is served elsewhere.
    async fn connect(self: &Arc<Server>, rq: Rq, ctx: Ctx, locator: Arc<dyn crate::Locator>) -> Result<Response<Body>, Status> {
        let subresource = ctx.subresource.clone();
        let known = match subresource.as_str() {
            "log" => *rq.request.method() == Method::GET,
            "exec" | "attach" | "portforward" => matches!(*rq.request.method(), Method::GET | Method::POST),
            _ => true,
        };
        if !known {
            return Err(unsupported());
        }
        if matches!(subresource.as_str(), "exec" | "attach" | "portforward") && *rq.request.method() == Method::GET {
            // WebSockets come as GET; reading rights alone must not run commands
            let mut attributes = filters::attributes(&rq.info, &rq.user);
            attributes.verb = "create".into();
            let (decision, reason) = crate::authz::decide(&*self.backend.authorizer, &attributes).await;
            if decision != crate::Decision::Allow {
                return Err(filters::forbidden(&attributes, &reason));
            }
        }
        let op = self.op(&rq, ctx);
        if subresource != "log" {
            let mut object = connect_options(&op.ctx, &rq);
            op.admit(crate::Operation::Connect, None, &Value::Null, &mut object).await?;
            op.admit_final(crate::Operation::Connect, None, &Value::Null, Some(&object)).await?;
        }
        let request = crate::ConnectRequest {
            method: rq.request.method().clone(),
            path: rq.info.rest.clone(),
            query: rq.request.uri().query().unwrap_or_default().to_string(),
        };
        let location = locator.locate(&op.ctx, &request).await?;
        if subresource == "log" && streaming::server::is_websocket(rq.headers()) {
            return self.log_over_websocket(rq, &location).await;
        }
        if subresource == "log" {
            return self.log(rq, &location).await;
        }
        self.forward(rq, &location).await
    }

    /// The question to the kubelet is our own: it does not judge what the client accepts, and what it refuses is told as a Status.
    async fn log(self: &Arc<Server>, mut rq: Rq, location: &crate::Location) -> Result<Response<Body>, Status> {
        const MOST: usize = 50_000;
        let name = rq.info.name.clone();
        rq.request.headers_mut().clear();
        let mut response = self.forward(rq, location).await?;
        let code = response.status().as_u16();
        if (200..=206).contains(&code) {
            let plain = http::HeaderValue::from_static("text/plain");
            response.headers_mut().insert(http::header::CONTENT_TYPE, plain);
            return Ok(response);
        }
        let text = crate::body::read(response.into_body(), MOST).await?;
        Err(api::status::of_backend(code, &String::from_utf8_lossy(&text), "pods/log", &name))
    }

    /// The backend knows plain answers alone; the client gets this one as messages.
    async fn log_over_websocket(self: &Arc<Server>, mut rq: Rq, location: &crate::Location) -> Result<Response<Body>, Status> {
        let (answer, send) = match streaming::server::reader(&mut rq.request) {
            Ok(agreed) => agreed,
            Err(refusal) => return Ok(refusal.map(crate::body::boxed)),
        };
        let record = rq.audit.clone();
        let response = self.log(rq, location).await?;
        let data = response.into_body().into_data_stream();
        let data = data.take_while(|part| std::future::ready(part.is_ok())).filter_map(|part| std::future::ready(part.ok()));
        self.streams.spawn(async move {
            if let Err(error) = send(data).await {
                tracing::debug!(%error, "a log over a WebSocket ended");
            }
            drop(record);
        });
        Ok(answer.map(crate::body::boxed))
    }
}

/// PodExecOptions and the like, as admission sees them.
fn connect_options(ctx: &Ctx, rq: &Rq) -> Value {
    let kind = ctx.resource.subresource(&ctx.subresource).map_or("", |s| s.kind);
    let mut object = json!({"kind": kind, "apiVersion": "v1"});
    let map = object::map_of(&mut object);
    for (key, value) in &rq.query {
        let value = match key.as_str() {
            "stdin" | "stdout" | "stderr" | "tty" => json!(matches!(value.as_str(), "true" | "1")),
            "command" => {
                if let Some(Value::Array(all)) = map.get_mut("command") {
                    all.push(value.as_str().into());
                    continue;
                }
                json!([value])
            }
            "container" | "path" => value.as_str().into(),
            _ => continue,
        };
        map.insert(key.clone(), value);
    }
    object
}

fn unsupported() -> Status {
    api::status::method_not_allowed()
}

fn with_dry_run(mut ctx: Ctx, dry_run: bool) -> Ctx {
    ctx.dry_run = dry_run;
    ctx
}

/// The same format without a conversion.
fn plain(mut accepted: Accepted) -> Accepted {
    accepted.convert = negotiate::Convert::None;
    accepted
}

struct Failure {
    status: Status,
    headers: http::HeaderMap,
}

/// Counts a watch while it is open.
struct OpenWatch {
    server: Arc<Server>,
    info: Arc<RequestInfo>,
    known: Option<&'static crate::types::Resource>,
    /// Counts for those who write what it sees.
    _counted: Option<crate::flow::work::OpenWatch>,
}

impl OpenWatch {
    fn new(server: Arc<Server>, info: Arc<RequestInfo>) -> OpenWatch {
        let known = server.known(&info);
        server.metrics.long_running(&info, known, 1);
        let counted = server.flow().and_then(|flow| flow.watches.open(&info));
        OpenWatch { server, info, known, _counted: counted }
    }
}

impl Drop for OpenWatch {
    fn drop(&mut self) {
        self.server.metrics.long_running(&self.info, self.known, -1);
    }
}
