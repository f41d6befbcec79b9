//! What runs inside pods of the built-in image: an HTTP server that says what it was asked, and a
//! `sleep`. Small: one thread a connection, no runtime.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

const DEFAULT_PORT: u16 = 8080;
/// Request bodies are repeated up to this size.
const MAX_BODY: usize = 1 << 20;
const MAX_HEADERS: usize = 256;

/// `knarr echo [--port N]`: answers any path.
pub fn main(args: &[OsString]) -> ExitCode {
    let mut port = std::env::var("PORT").ok().and_then(|p| p.parse().ok()).unwrap_or(DEFAULT_PORT);
    let mut args = args.iter().filter_map(|a| a.to_str());
    while let Some(arg) = args.next() {
        let value = arg.strip_prefix("--port=").or_else(|| if arg == "--port" { args.next() } else { None });
        match value.and_then(|v| v.parse().ok()) {
            Some(number) => port = number,
            None => {
                eprintln!("usage: knarr echo [--port N]");
                return ExitCode::from(2);
            }
        }
    }
    let listener = match TcpListener::bind(("0.0.0.0", port)) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("cannot listen on port {port}: {error}");
            return ExitCode::FAILURE;
        }
    };
    end_on_signals();
    println!("echo server listening on port {port}");
    for stream in listener.incoming().flatten() {
        std::thread::spawn(move || {
            // A client that goes away in the middle is no news.
            let _ = serve(&stream);
        });
    }
    ExitCode::SUCCESS
}

/// `knarr sleep SECONDS|infinity`.
pub fn sleep(args: &[OsString]) -> ExitCode {
    end_on_signals();
    match args.first().and_then(|a| a.to_str()) {
        None | Some("infinity" | "inf") => loop {
            std::thread::park();
        },
        Some(text) => match text.trim_end_matches('s').parse::<f64>().ok().and_then(|s| Duration::try_from_secs_f64(s).ok()) {
            Some(time) => std::thread::sleep(time),
            None => {
                eprintln!("usage: knarr sleep SECONDS|infinity");
                return ExitCode::from(2);
            }
        },
    }
    ExitCode::SUCCESS
}

/// The first process of a pod gets no default action for signals: without this, a deletion would
/// always take the whole grace period.
fn end_on_signals() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else { return };
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            std::process::exit(0);
        });
    });
}

struct Request {
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

fn serve(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let client = stream.peer_addr()?.ip().to_string();
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = read(&mut reader)? {
        let close = request.version == "HTTP/1.0" || request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
        println!("{client} {} {}", request.method, request.target);
        let body = page(&request, &client);
        let length = body.len();
        let shown = if request.method == "HEAD" { "" } else { &body };
        let connection = if close { "close" } else { "keep-alive" };
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nServer: echoserver\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{shown}")?;
        writer.flush()?;
        if close {
            break;
        }
    }
    Ok(())
}

fn read(reader: &mut impl BufRead) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.take(8192).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut parts = line.split_whitespace();
    let (Some(method), Some(target)) = (parts.next(), parts.next()) else { return Ok(None) };
    let mut request = Request {
        method: method.into(),
        target: target.into(),
        version: parts.next().unwrap_or("HTTP/1.0").into(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    while request.headers.len() < MAX_HEADERS {
        let mut line = String::new();
        if reader.take(65536).read_line(&mut line)? == 0 || line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            request.headers.push((name.trim().to_lowercase(), value.trim().to_string()));
        }
    }
    let length = request.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0usize);
    reader.take(length.min(MAX_BODY) as u64).read_to_end(&mut request.body)?;
    Ok(Some(request))
}

fn page(request: &Request, client: &str) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let info = |name: &str, label: &str| std::env::var(name).map_or(String::new(), |v| format!("\t{label}:\t{v}\n"));
    let pod = [("NODE_NAME", "node name"), ("POD_NAME", "pod name"), ("POD_NAMESPACE", "pod namespace"), ("POD_IP", "pod IP")]
        .map(|(name, label)| info(name, label))
        .concat();
    let pod = if pod.is_empty() { "\t-no pod information available-\n".to_string() } else { pod };
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let mut headers = request.headers.clone();
    headers.sort();
    let headers: String = headers.iter().map(|(n, v)| format!("\t{n}={v}\n")).collect();
    let body = if request.body.is_empty() { "\t-no body in request-\n".into() } else { String::from_utf8_lossy(&request.body) };
    let scheme = request.header("x-forwarded-proto").unwrap_or("http");
    format!(
        "\n\nHostname: {}\n\nPod Information:\n{pod}\nServer values:\n\tserver_version=knarr: {}\n\nRequest Information:\n\tclient_address={client}\n\tmethod={}\n\treal path={}\n\tquery={query}\n\trequest_version={}\n\trequest_scheme=http\n\trequest_uri={scheme}://{}:8080{path}\n\nRequest Headers:\n{headers}\nRequest Body:\n{body}\n",
        host.trim(),
        env!("CARGO_PKG_VERSION"),
        request.method,
        request.target,
        request.version.trim_start_matches("HTTP/"),
        request.header("host").unwrap_or("").split(':').next().unwrap_or(""),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_told_back() {
        let mut input = "POST /some/path?a=b HTTP/1.1\r\nHost: web:80\r\nX-Thing: 1\r\nContent-Length: 5\r\n\r\nhello".as_bytes();
        let request = read(&mut input).expect("read").expect("a request");
        let page = page(&request, "10.0.0.9");
        for expected in ["Hostname: ", "client_address=10.0.0.9", "method=POST", "real path=/some/path?a=b", "query=a=b", "\tx-thing=1\n", "hello"] {
            assert!(page.contains(expected), "{expected} in {page}");
        }
    }
}
