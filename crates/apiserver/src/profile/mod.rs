//! `/debug/pprof/`: what the processors and the memory are used for, for those who may read these paths.
//!
//! Time is not sampled but counted, while somebody takes a profile: pieces of work have names, which nest as they run, and
//! each thread's own clock says how long a name had it ([`spent`]). So a profile speaks of requests, users and stages, and
//! needs no symbols. What has no name stands under its thread's. Memory is what the caches hold, and the rest of it.
//!
//! A profile is what `go tool pprof` reads; with `debug=1` it is text.
mod memory;
mod pprof;
mod report;
mod spent;

use std::time::Duration;

use http::Response;

use crate::body::{self, Body};
use crate::resource::page_not_found;
use crate::server::{Rq, Server};
use crate::types::Status;

use report::Report;
pub(crate) use spent::{asked_by, carried, carried_body, is_taken, named, part, requested, streamed};

/// Where all of it is.
pub(crate) const PATH: &str = "/debug/pprof";

/// What a path names below [`PATH`], if it is there.
pub(crate) fn below(path: &str) -> Option<&str> {
    path.strip_prefix(PATH)?.strip_prefix('/')
}

/// How long a profile takes unless told, and at most.
const SECONDS: f64 = 30.0;
const MAX_SECONDS: f64 = 600.0;

const INDEX: &str = "/debug/pprof/\n\nProfiles, for go tool pprof or (with ?debug=1) as text:\n\
    heap     what the caches hold, and the rest of the memory\n\
    profile  what the processors do for ?seconds=30\n\nOthers:\n\
    cmdline  the command line, with zero bytes in between\n";

impl Server {
    /// What is at a path below [`PATH`].
    pub(crate) async fn profile(&self, rq: &Rq, below: &str) -> Result<Response<Body>, Status> {
        if !self.config.profiling {
            return Ok(page_not_found());
        }
        let report = match below {
            "" => return Ok(crate::documents::text(200, INDEX.into())),
            "cmdline" => return Ok(crate::documents::text(200, std::env::args().collect::<Vec<_>>().join("\0"))),
            "profile" => {
                let seconds = seconds(rq.param("seconds"))?;
                tokio::select! {
                    report = spent::take(seconds) => report,
                    () = self.core.closing.cancelled() => return Err(api::status::unavailable("the server is shutting down")),
                }
            }
            "heap" => memory::report(&self.core.cache),
            _ => return Ok(page_not_found()),
        };
        let report = report.map_err(|error| api::status::internal(format!("/proc/self cannot be read: {error}")))?;
        Ok(answer(&report, rq.param("debug").is_some_and(|debug| !matches!(debug, "" | "0"))))
    }
}

fn answer(report: &Report, as_text: bool) -> Response<Body> {
    if as_text {
        return crate::documents::text(200, report.text());
    }
    let mut response = body::response(200, "application/octet-stream", pprof::encode(report));
    let headers = response.headers_mut();
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    let file = format!("attachment; filename=\"{}\"", report.file);
    headers.extend(http::HeaderValue::from_str(&file).ok().map(|v| (http::header::CONTENT_DISPOSITION, v)));
    response
}

fn seconds(text: Option<&str>) -> Result<Duration, Status> {
    let Some(text) = text else { return Ok(Duration::from_secs_f64(SECONDS)) };
    let seconds = text.parse::<f64>().ok().filter(|s| *s > 0.0 && *s <= MAX_SECONDS);
    let wrong = || api::status::bad_request(format!("seconds={text}: must be a number of seconds, more than 0 and at most {MAX_SECONDS}"));
    seconds.map(Duration::from_secs_f64).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_how_long() {
        assert_eq!(seconds(None).unwrap(), Duration::from_secs(30));
        assert_eq!(seconds(Some("0.5")).unwrap(), Duration::from_millis(500));
        for wrong in ["", "0", "-1", "601", "NaN", "inf", "1e999", "ten"] {
            let status = seconds(Some(wrong)).unwrap_err();
            assert_eq!(status.message, format!("seconds={wrong}: must be a number of seconds, more than 0 and at most 600"));
        }
    }
}
