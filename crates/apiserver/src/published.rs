//! Discovery and OpenAPI documents: made when first asked for, kept compressed, validated by ETag.
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

use api::discovery::{self, GroupEntry, VersionEntry};
use bytes::Bytes;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::body::{self, Body, accepts_gzip};
use crate::negotiate::{self, Endpoint, Format};
use crate::resource::page_not_found;
use crate::server::{Rq, Server};
use crate::types::Status;

/// A document ready to be sent.
#[derive(Clone)]
struct Document {
    content_type: &'static str,
    etag: String,
    gzip: Bytes,
}

/// What is made once and kept.
#[derive(Default)]
pub struct Published {
    built_in: OnceLock<Vec<GroupEntry>>,
    /// All groups, and the generation that they are of.
    groups: Mutex<Option<(u64, Arc<Vec<GroupEntry>>)>>,
    /// Documents by name, each with the generation that it is of.
    documents: Mutex<HashMap<String, (u64, Arc<Document>)>>,
}

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

impl Published {
    /// The document under this name, made by `make` the first time and after what it is of changed.
    fn get(&self, name: &str, generation: u64, content_type: &'static str, make: impl FnOnce() -> Vec<u8>) -> Result<Arc<Document>, Status> {
        if let Some((of, document)) = self.documents.lock().get(name)
            && *of == generation
        {
            return Ok(document.clone());
        }
        let bytes = make();
        let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(&bytes).map_err(api::status::internal)?;
        let gzip = encoder.finish().map_err(api::status::internal)?;
        let etag = api::openapi::hash(&bytes);
        let document = Arc::new(Document { content_type, etag, gzip: gzip.into() });
        let mut documents = self.documents.lock();
        if generation != 0 {
            // those of another generation are never asked for again
            documents.retain(|_, (of, _)| *of == generation || *of == 0);
        }
        documents.insert(name.to_string(), (generation, document.clone()));
        drop(documents);
        Ok(document)
    }
}

impl Document {
    fn respond(&self, headers: &HeaderMap) -> Result<Response<Body>, Status> {
        let etag = format!("\"{}\"", self.etag);
        let known = headers
            .get_all(header::IF_NONE_MATCH)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|t| t.trim().trim_start_matches("W/") == etag || t.trim() == "*");
        let mut response = if known {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response
        } else if accepts_gzip(headers) {
            let mut response = body::response(200, self.content_type, self.gzip.clone());
            response.headers_mut().insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            response
        } else {
            let mut bytes = Vec::new();
            GzDecoder::new(&self.gzip[..]).read_to_end(&mut bytes).map_err(api::status::internal)?;
            body::response(200, self.content_type, bytes)
        };
        let h = response.headers_mut();
        if let Ok(etag) = HeaderValue::from_str(&etag) {
            h.insert(header::ETAG, etag);
        }
        h.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        Ok(response)
    }
}

impl Server {
    /// All groups: the built-in ones, those that were installed, those of definitions.
    pub(crate) fn groups(&self) -> Arc<Vec<GroupEntry>> {
        let (customs, aggregated, generation) = (self.core.customs(), self.core.aggregated(), self.shown());
        let mut kept = self.documents.groups.lock();
        if let Some((of, groups)) = &*kept
            && *of == generation
        {
            return groups.clone();
        }
        let fixed = self.fixed_groups();
        let mut groups = fixed.to_vec();
        customs.discover(&mut groups);
        aggregated.discover(&mut groups, fixed.len());
        let groups = Arc::new(groups);
        *kept = Some((generation, groups.clone()));
        groups
    }

    /// Changes with what discovery and OpenAPI show of definitions and of other servers.
    fn shown(&self) -> u64 {
        self.core.customs().generation ^ self.core.aggregated().generation
    }

    fn fixed_groups(&self) -> &[GroupEntry] {
        self.documents.built_in.get_or_init(|| {
            let mut groups = discovery::built_in();
            self.core.enablement.retain(&mut groups);
            for resources in self.core.parts().served.iter().filter(|r| !r.is_empty()) {
                let version = VersionEntry {
                    version: resources[0].version.to_string(),
                    resources: resources.iter().map(discovery::Entry::from).collect(),
                    stale: false,
                };
                match groups.iter_mut().find(|g| g.name == resources[0].group) {
                    Some(group) => group.versions.push(version),
                    None => groups.push(GroupEntry { name: resources[0].group.to_string(), versions: vec![version] }),
                }
            }
            groups
        })
    }

    /// `/api`, `/apis` and below.
    pub(crate) fn discovery(&self, rq: &Rq, path: &str) -> Result<Response<Body>, Status> {
        let generation = self.shown();
        let groups = &*self.groups();
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        if let [root @ ("api" | "apis")] = parts[..]
            && let Some(version) = aggregated_version(rq.headers())
        {
            let core = root == "api";
            let content_type = match version {
                "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
            };
            let document = self.documents.get(&format!("{root} {version}"), generation, content_type, || {
                let shown = groups.iter().filter(|g| g.name.is_empty() == core);
                crate::object::encode(&discovery::aggregated(version, shown))
            })?;
            return document.respond(rq.headers());
        }
        let value = match parts[..] {
            ["api"] => {
                let host = rq.headers().get(header::HOST).and_then(|v| v.to_str().ok()).unwrap_or_default();
                discovery::api_versions(&self.config.advertise_address.clone().unwrap_or_else(|| host.to_string()))
            }
            ["apis"] => discovery::api_group_list(groups),
            ["apis", group] => match groups.iter().find(|g| !g.name.is_empty() && g.name == group) {
                Some(group) => discovery::api_group(group),
                None => return Ok(page_not_found()),
            },
            ["api", version] => return self.resources(rq, groups, "", version),
            ["apis", group, version] if !group.is_empty() => return self.resources(rq, groups, group, version),
            _ => return Ok(page_not_found()),
        };
        self.negotiated(rq, &value)
    }

    fn resources(&self, rq: &Rq, groups: &[GroupEntry], group: &str, version: &str) -> Result<Response<Body>, Status> {
        let found = groups.iter().find(|g| g.name == group).and_then(|g| g.versions.iter().find(|v| v.version == version));
        let Some(found) = found else { return Ok(page_not_found()) };
        self.negotiated(rq, &discovery::api_resource_list(group, version, &found.resources))
    }

    fn negotiated(&self, rq: &Rq, value: &Value) -> Result<Response<Body>, Status> {
        let accepted = negotiate::negotiate(rq.headers(), rq.param("pretty"), Endpoint::Plain)?;
        Ok(negotiate::respond(rq.headers(), accepted, 200, value))
    }

    /// `/openapi/v2`, `/openapi/v3` and below.
    pub(crate) fn openapi(&self, rq: &Rq, path: &str) -> Result<Response<Body>, Status> {
        let accept = rq.headers().get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let (customs, aggregated, generation) = (self.core.customs(), self.core.aggregated(), self.shown());
        let published = customs.published();
        if path == "/openapi/v2" {
            let kinds = || published.iter().flat_map(|(_, _, customs)| customs.iter().map(|c| c.openapi())).collect::<Vec<_>>();
            let protobuf = accept.contains("proto-openapi.spec.v2.v1.0+protobuf") || accept.contains("proto-openapi.spec.v2@v1.0+protobuf");
            let document = if protobuf {
                self.documents.get("v2 protobuf", generation, V2_PROTOBUF, || api::openapi::v2_protobuf(&kinds(), &aggregated.spoken()))?
            } else {
                self.documents.get("v2", generation, Format::Json.media_type(), || api::openapi::v2(&kinds(), &aggregated.spoken()))?
            };
            return document.respond(rq.headers());
        }
        let mut index = api::openapi::v3_index();
        index.retain(|(path, _)| !self.core.enablement.is_off(path));
        for (path, mark, _) in &published {
            if !index.iter().any(|(p, _)| p == path) {
                index.push((path.clone(), api::openapi::hash(format!("{path} {mark}").as_bytes())));
            }
        }
        for path in aggregated.paths() {
            index.retain(|(p, _)| *p != path);
            let hash = api::openapi::hash(format!("{path} {}", aggregated.generation).as_bytes());
            index.push((path, hash));
        }
        if path == "/openapi/v3" {
            let paths: serde_json::Map<String, Value> = index
                .into_iter()
                .map(|(path, hash)| {
                    let url = format!("/openapi/v3/{path}?hash={hash}");
                    (path, json!({"serverRelativeURL": url}))
                })
                .collect();
            let bytes = json!({"paths": paths}).to_string();
            return Ok(body::response(200, Format::Json.media_type(), bytes));
        }
        let Some(name) = path.strip_prefix("/openapi/v3/") else { return Ok(page_not_found()) };
        let Some((_, hash)) = index.into_iter().find(|(p, _)| p == name) else { return Ok(page_not_found()) };
        let asked = rq.param("hash").unwrap_or_default();
        if !asked.is_empty() && asked != hash {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
            if let Ok(to) = HeaderValue::from_str(&format!("{path}?hash={hash}")) {
                response.headers_mut().insert(header::LOCATION, to);
            }
            return Ok(response);
        }
        if !accept.is_empty() && !accept.contains("application/json") && !accept.contains("*/*") && !accept.contains("application/*") {
            let mut response = Response::new(body::empty());
            *response.status_mut() = StatusCode::NOT_ACCEPTABLE;
            return Ok(response);
        }
        let custom = published.iter().find(|(path, _, _)| path == name);
        let make = || match custom {
            Some((_, _, customs)) => api::openapi::v3_custom(&customs.iter().map(|c| c.openapi()).collect::<Vec<_>>()),
            None => api::openapi::v3(name).unwrap_or_default(),
        };
        let generation = if custom.is_some() { generation } else { 0 };
        let document = self.documents.get(&format!("v3 {name}"), generation, Format::Json.media_type(), make)?;
        let mut response = document.respond(rq.headers())?;
        if !asked.is_empty() {
            // this content belongs to this hash for ever
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }
}

/// The version of aggregated discovery that the client prefers over the legacy documents.
fn aggregated_version(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|v| v.to_str().ok()).collect::<Vec<_>>().join(",");
    for clause in accept.split(',') {
        let mut parts = clause.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let params: Vec<&str> = parts.collect();
        let has = |p: &str| params.contains(&p);
        let listed = has("as=APIGroupDiscoveryList") && has("g=apidiscovery.k8s.io");
        match media {
            "application/json" if listed && has("v=v2") => return Some("v2"),
            "application/json" if listed && has("v=v2beta1") => return Some("v2beta1"),
            "application/json" | "application/*" | "*/*" | "application/yaml" if !listed => return None,
            _ => {}
        }
    }
    None
}
