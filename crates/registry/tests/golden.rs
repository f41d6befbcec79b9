//! Golden answers: for each kind good and bad manifests, and what upstream's kube-apiserver 1.36 answers to them
//! (`golden/*.txt`; the form is in `golden/README.md`). Every write is a dry run unless it says otherwise.
//!
//! `KNARR_GOLDEN=rewrite` writes the answers of this server into the files, for review by `git diff`.
//! `KNARR_GOLDEN_DIR` names another directory of such files.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use api::field::aggregate;
use common::{Cluster, admin};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn answers() {
    let dir = std::env::var_os("KNARR_GOLDEN_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"), PathBuf::from);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "txt")).collect();
    files.sort();
    assert!(!files.is_empty(), "{dir:?} has no files");
    let running: Vec<_> = files.into_iter().map(|f| tokio::spawn(file(f))).collect();
    let (mut cases, mut wrong) = (0, Vec::new());
    for run in running {
        let (n, differences) = run.await.unwrap();
        cases += n;
        wrong.extend(differences);
    }
    assert!(wrong.is_empty(), "{} of {cases} answers differ:\n{}", wrong.len(), wrong.join("\n"));
    eprintln!("{cases} answers are as expected");
}

/// Runs a file: how many cases it has, and where the answers differ.
async fn file(path: PathBuf) -> (usize, Vec<String>) {
    let text = std::fs::read_to_string(&path).unwrap();
    let mut runner = Runner::new().await;
    let (mut out, mut wrong, mut cases) = (String::new(), Vec::new(), 0);
    let mut lines = text.lines().enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        assert!(!line.starts_with("  "), "{path:?}:{}: an answer without a request", number + 1);
        out.push_str(line);
        out.push('\n');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut expected = Vec::new();
        while let Some((_, answer)) = lines.next_if(|(_, l)| l.starts_with("  ")) {
            expected.push(answer.trim_start().to_owned());
        }
        let Some(got) = runner.request(line).await else { continue };
        cases += 1;
        got.iter().for_each(|l| out.push_str(&format!("  {l}\n")));
        if got != expected {
            let name = path.file_name().unwrap().to_string_lossy();
            wrong.push(format!("{name}:{} {}: {line}\n  expected\n    {}\n  got\n    {}", number + 1, runner.kind, expected.join("\n    "), got.join("\n    ")));
        }
    }
    if std::env::var("KNARR_GOLDEN").is_ok_and(|v| v == "rewrite") {
        std::fs::write(&path, out).unwrap();
        wrong.clear();
    }
    (cases, wrong)
}

/// Where a file has got to: the object whose section it is, and the server that is asked.
struct Runner {
    cluster: Cluster,
    /// Where objects of this kind are created.
    at: String,
    /// What it is called in messages.
    kind: String,
    object: Value,
    /// How what comes back differs from the good object itself; other answers say only what is beside that.
    usual: Vec<String>,
}

impl Runner {
    async fn new() -> Runner {
        let cluster = Cluster::start().await;
        for name in ["a", "b"] {
            cluster.namespace(name).await;
        }
        Runner { cluster, at: String::new(), kind: String::new(), object: Value::Null, usual: Vec::new() }
    }

    fn item(&self) -> String {
        format!("{}/{}", self.at, self.object["metadata"]["name"].as_str().unwrap_or_default())
    }

    /// Does what a line says; the answer, if it has one.
    async fn request(&mut self, line: &str) -> Option<Vec<String>> {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        match verb {
            "at" => self.at = rest.into(),
            "object" => {
                self.object = serde_json::from_str(rest).unwrap_or_else(|e| panic!("{rest}: {e}"));
                let group = self.object["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or(String::new(), |(g, _)| format!(".{g}"));
                self.kind = format!("{}{group}", self.object["kind"].as_str().unwrap());
                self.usual.clear();
            }
            "create" => {
                let sent = edited(&self.object, rest);
                let answer = self.send("POST", &format!("{}?dryRun=All", self.at), &sent).await;
                return Some(self.shown(&sent, answer, rest.is_empty()));
            }
            "make" => {
                let sent = edited(&self.object, rest);
                let (code, answer, _) = self.send("POST", &self.at, &sent).await;
                assert!(code < 300, "{line}: {answer}");
            }
            "store" => {
                let (_, old, _) = self.send("GET", &self.item(), &Value::Null).await;
                let object = edited(&old, rest);
                self.overwrite(&object).await;
            }
            "put" | "write" => {
                let (sub, edits) = rest.split_once(' ').unwrap_or((rest, ""));
                let (sub, edits) = if sub.starts_with('/') { (sub, edits) } else { ("", rest) };
                let path = format!("{}{sub}", self.item());
                let dry = if verb == "put" { "?dryRun=All" } else { "" };
                // of a namespace's finalizers only the namespace is read
                let whole = if sub == "/finalize" { self.item() } else { path.clone() };
                let (mut code, mut read, _) = self.send("GET", &whole, &Value::Null).await;
                let (sent, answer) = loop {
                    assert_eq!(code, 200, "{line}: {read}");
                    let sent = edited(&read, edits);
                    let answer = self.send("PUT", &format!("{path}{dry}"), &sent).await;
                    if answer.0 != 409 {
                        break (sent, answer);
                    }
                    // the server's own controllers may have written between the two requests
                    let before = std::mem::take(&mut read["metadata"]["resourceVersion"]);
                    (code, read, _) = self.send("GET", &whole, &Value::Null).await;
                    if read["metadata"]["resourceVersion"] == before {
                        break (sent, answer);
                    }
                };
                return Some(self.shown(&sent, answer, false));
            }
            "get" => {
                let answer = self.send("GET", &format!("{}{rest}", self.item()), &Value::Null).await;
                return Some(self.shown(&json!({}), answer, false));
            }
            "post" => {
                let (sub, body) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}: expected a subresource and a body"));
                let sent: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{line}: {e}"));
                let answer = self.send("POST", &format!("{}{sub}?dryRun=All", self.item()), &sent).await;
                return Some(self.shown(&sent, answer, false));
            }
            "delete" => {
                let mut options: Value = serde_json::from_str(rest).unwrap_or_else(|e| panic!("{line}: {e}"));
                options["dryRun"] = json!(["All"]);
                let (_, read, _) = self.send("GET", &self.item(), &Value::Null).await;
                let answer = self.send("DELETE", &self.item(), &options).await;
                return Some(self.shown(&read, answer, false));
            }
            "patch" => {
                let mut words = rest.splitn(3, ' ');
                let (sub, form, body) = (words.next().unwrap_or_default(), words.next().unwrap_or_default(), words.next().unwrap_or_default());
                let body: Value = serde_json::from_str(body).unwrap_or_else(|e| panic!("{line}: {e}"));
                let path = format!("{}{sub}", self.item());
                let (_, read, _) = self.send("GET", &path, &Value::Null).await;
                let media = match form {
                    "json" => "application/json-patch+json",
                    "merge" => "application/merge-patch+json",
                    "strategic" => "application/strategic-merge-patch+json",
                    _ => panic!("{line}: expected json, merge or strategic"),
                };
                let answer = self.cluster.warned_as(&admin(), "PATCH", &format!("{path}?dryRun=All"), media, &body).await;
                return Some(self.shown(&read, answer, false));
            }
            _ => panic!("{line}: expected at, object, create, make, store, put, write, get, post, patch or delete"),
        }
        None
    }

    async fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value, Vec<String>) {
        self.cluster.warned(&admin(), method, path, body).await
    }

    /// Puts an object into the store as it is, whatever is wrong with it.
    async fn overwrite(&self, object: &Value) {
        let (group, version) = self.object["apiVersion"].as_str().and_then(|v| v.split_once('/')).unwrap_or(("", "v1"));
        let plural = self.at.rsplit('/').next().unwrap();
        let resource = api::resources::find(group, version, plural).unwrap();
        let meta = &object["metadata"];
        let name = [meta["namespace"].as_str(), meta["name"].as_str()].into_iter().flatten().collect::<Vec<_>>().join("/");
        let version = meta["resourceVersion"].as_str().unwrap().to_owned();
        let mut stored = object.clone();
        stored["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        let key = format!("{}{name}", resource.storage_prefix);
        self.cluster.overwrite(&key, stored.to_string().into_bytes()).await;
        for _ in 0..2000 {
            let (_, now, _) = self.send("GET", &self.item(), &Value::Null).await;
            if now["metadata"]["resourceVersion"] != version.as_str() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        panic!("{key} does not show what was stored");
    }

    /// An answer as lines: code and reason, causes and warnings, or how the object that came back differs from what was sent.
    fn shown(&mut self, sent: &Value, (code, answer, warnings): (u16, Value, Vec<String>), first: bool) -> Vec<String> {
        let mut lines = vec![code.to_string()];
        if answer["kind"] == "Status" && code >= 300 {
            let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
            let details = &answer["details"];
            lines[0] = format!("{code} {}", text(&answer["reason"]));
            let causes: Vec<(String, String, String)> =
                details["causes"].as_array().into_iter().flatten().map(|c| (text(&c["reason"]), text(&c["field"]), text(&c["message"]))).collect();
            lines.extend(causes.iter().map(|(reason, field, message)| format!("{reason} {field}: {}", one_line(message))));
            let name = text(&sent["metadata"]["name"]);
            let message = text(&answer["message"]);
            let told = aggregate(causes.iter().map(|(_, field, message)| format!("{}: {message}", if field.is_empty() { "<nil>" } else { field })));
            if code != 422 || message != format!("{} {} is invalid: {told}", self.kind, api::field::go_quote(&name)) {
                lines.push(format!("message: {}", one_line(&message)));
            }
            let (kind, group) = self.kind.split_once('.').unwrap_or((&self.kind, ""));
            if code == 422 && (text(&details["kind"]) != kind || text(&details["group"]) != group || text(&details["name"]) != name) {
                lines.push(format!("details: {} {} {}", text(&details["kind"]), text(&details["group"]), text(&details["name"])));
            }
        } else {
            let mut differences = Vec::new();
            difference(&usual_form(sent), &usual_form(&answer), "", &mut differences);
            if first {
                self.usual.clone_from(&differences);
                lines.extend(differences);
            } else {
                let (before, now): (BTreeSet<_>, BTreeSet<_>) = (self.usual.iter().collect(), differences.iter().collect());
                lines.extend(differences.iter().filter(|d| !before.contains(d)).cloned());
                // of an update what the server filled in is there already
                if !sent["metadata"]["uid"].is_string() {
                    lines.extend(self.usual.iter().filter(|d| !now.contains(d)).map(|d| format!("not {d}")));
                }
            }
        }
        lines.extend(warnings.iter().map(|w| format!("warning: {w}")));
        lines
    }
}

/// A message in one line. Structures within it, whose form is that of a programming language, are left out.
fn one_line(message: &str) -> String {
    let (mut out, mut rest) = (String::new(), message);
    // a dump of what changed follows its sentence
    if let Some((sentence, dump)) = rest.split_once('\n')
        && (dump.is_empty() || dump.starts_with("@@ ") || dump.starts_with("- ") || dump.starts_with("+ "))
    {
        rest = sentence;
    }
    while let Some(at) = rest.find(" value: ").map(|at| at + " value: ".len()) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('{') || rest.starts_with("[{") {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<Value>();
            if let Some(Ok(_)) = values.next() {
                out.push_str("{...}");
                rest = &rest[values.byte_offset()..];
            }
        }
    }
    out.push_str(rest);
    // uids within the text
    let starts: Vec<usize> = out.match_indices('-').filter_map(|(i, _)| i.checked_sub(8)).filter(|&i| out.get(i..i + 36).is_some_and(is_uid)).collect();
    starts.into_iter().rev().for_each(|i| out.replace_range(i..i + 36, "UID"));
    out.replace('\\', "\\\\").replace('\n', "\\n")
}

/// An object without what differs from one server to the next.
fn usual_form(object: &Value) -> Value {
    let mut object = unvaried(object);
    let addresses = object["kind"] == "Service";
    if object["kind"] == "TokenRequest" && object["status"]["token"].is_string() {
        object["status"]["token"] = json!("TOKEN");
    }
    let meta = object["metadata"].as_object_mut();
    if let Some(meta) = meta {
        for k in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
            meta.remove(k);
        }
    }
    let spec = object.get_mut("spec").and_then(Value::as_object_mut).filter(|_| addresses);
    if let Some(spec) = spec {
        let given = |v: &Value| v.as_str().is_some_and(|s| s.starts_with("10.96."));
        if let Some(ip) = spec.get_mut("clusterIP").filter(|v| given(v)) {
            *ip = json!("IP");
        }
        if let Some(ip) = spec.get_mut("clusterIPs").and_then(|v| v.get_mut(0)).filter(|v| given(v)) {
            *ip = json!("IP");
        }
        if let Some(port) = spec.get_mut("healthCheckNodePort").filter(|v| v.as_i64().is_some_and(|p| p >= 30000)) {
            *port = json!(30000);
        }
        for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(port) = port.get_mut("nodePort").filter(|p| p.as_i64() != Some(0)) {
                *port = json!(30000);
            }
        }
    }
    object
}

/// Values with times of now and uids made equal.
fn unvaried(v: &Value) -> Value {
    match v {
        Value::Object(m) => m.iter().map(|(k, v)| (k.clone(), unvaried(v))).collect::<Map<_, _>>().into(),
        Value::Array(l) => l.iter().map(unvaried).collect::<Vec<_>>().into(),
        Value::String(s) if is_uid(s) => json!("UID"),
        Value::String(s) if s.parse::<Timestamp>().is_ok_and(|t| Timestamp::now().duration_since(t).abs() < SignedDuration::from_hours(1)) => json!("NOW"),
        v => v.clone(),
    }
}

fn is_uid(s: &str) -> bool {
    s.len() == 36 && s.bytes().enumerate().all(|(i, b)| if [8, 13, 18, 23].contains(&i) { b == b'-' } else { b.is_ascii_hexdigit() })
}

/// How `b` differs from `a`, a line each.
fn difference(a: &Value, b: &Value, path: &str, out: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            for k in x.keys().chain(y.keys()).collect::<BTreeSet<_>>() {
                let plain = !k.is_empty() && k.bytes().all(|b| b.is_ascii_alphanumeric() || b"_$-".contains(&b));
                let key = if plain { k.clone() } else { json!(k).to_string() };
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                match (x.get(k), y.get(k)) {
                    (Some(x), Some(y)) => difference(x, y, &path, out),
                    (Some(_), None) => out.push(format!("-{path}")),
                    (None, Some(y)) => out.push(format!("{path}={y}")),
                    (None, None) => {}
                }
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            x.iter().zip(y).enumerate().for_each(|(i, (x, y))| difference(x, y, &format!("{path}[{i}]"), out));
        }
        (a, b) if a != b => out.push(format!("{path}={b}")),
        _ => {}
    }
}

/// An object with edits made: `path=value` sets, `-path` removes; with blanks between them.
fn edited(object: &Value, edits: &str) -> Value {
    let mut object = object.clone();
    let mut rest = edits.trim_start();
    while !rest.is_empty() {
        let remove = rest.starts_with('-');
        rest = rest.strip_prefix('-').unwrap_or(rest);
        let (steps, after) = path(rest);
        if remove {
            rest = after;
            put(&mut object, &steps, None);
        } else {
            let value = after.strip_prefix('=').unwrap_or_else(|| panic!("{edits}: expected = before {after}"));
            let mut values = serde_json::Deserializer::from_str(value).into_iter::<Value>();
            let found = values.next().unwrap().unwrap_or_else(|e| panic!("{edits}: {value}: {e}"));
            rest = &value[values.byte_offset()..];
            put(&mut object, &steps, Some(found));
        }
        rest = rest.trim_start();
    }
    object
}

/// Reads a path such as `spec.list[0]."key with=blanks"`; and what follows it.
fn path(text: &str) -> (Vec<Value>, &str) {
    let (mut steps, mut rest) = (Vec::new(), text);
    loop {
        if let Some(inner) = rest.strip_prefix('[') {
            let (index, after) = inner.split_once(']').unwrap();
            steps.push(json!(index.parse::<usize>().unwrap()));
            rest = after;
        } else if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            steps.push(json!(values.next().unwrap().unwrap()));
            rest = &rest[values.byte_offset()..];
        } else {
            let end = rest.find(['.', '[', '=', ' ']).unwrap_or(rest.len());
            steps.push(json!(rest[..end]));
            rest = &rest[end..];
        }
        match rest.strip_prefix('.') {
            Some(after) => rest = after,
            None if rest.starts_with('[') => {}
            None => return (steps, rest),
        }
    }
}

fn put(v: &mut Value, steps: &[Value], value: Option<Value>) {
    let (step, further) = steps.split_first().unwrap();
    if v.is_null() {
        *v = if step.is_string() { json!({}) } else { json!([]) };
    }
    match (v, step.as_str(), step.as_u64()) {
        (Value::Object(m), Some(key), _) => match (further.is_empty(), value) {
            (true, Some(value)) => drop(m.insert(key.into(), value)),
            (true, None) => drop(m.remove(key)),
            (false, value) => put(m.entry(key).or_insert(Value::Null), further, value),
        },
        (Value::Array(l), _, Some(index)) => {
            let index = index as usize;
            if index == l.len() {
                l.push(Value::Null);
            }
            match (further.is_empty(), value) {
                (true, Some(value)) => l[index] = value,
                (true, None) => drop(l.remove(index)),
                (false, value) => put(&mut l[index], further, value),
            }
        }
        (v, ..) => panic!("no {step} in {v}"),
    }
}
