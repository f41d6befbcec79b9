//! What is wrong with a machine or a request is found, said with what to do, and harms nothing.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use e2e::{Env, Step, begin, eventually, output, run_steps};
use serde_json::{Value, json};

fn main() {
    let env = begin(Env::on_port("bad", 18443));
    clean(&env);
    let mut steps: Vec<Step> = Vec::new();
    for (name, test) in STEPS {
        let env = env.clone();
        steps.push((name, Box::new(move || test(&env))));
    }
    run_steps(steps, &["up"]);
}

/// What an earlier run left, if it was interrupted.
fn clean(env: &Env) {
    let _ = env.knarr(&["down", "--purge"]).output();
    let _ = Command::new("umount").arg(&env.data).output();
    let _ = fs::remove_dir_all(&env.data);
}

type Test = fn(&Env) -> Result<()>;

const STEPS: &[(&str, Test)] = &[
    ("a port in use", port_in_use),
    ("no root", no_root),
    ("a missing kernel feature", no_feature),
    ("an unreadable configuration", bad_config),
    ("a foreign or damaged data directory", foreign),
    ("a full disk at the start", full_at_start),
    ("host IPv6 disabled", without_ipv6),
    ("up", up),
    ("a second server on the same data", second_server),
    ("nobody reads what is printed", no_reader),
    ("malformed bodies", malformed_bodies),
    ("malformed patches", malformed_patches),
    ("malformed queries and paths", malformed_queries),
    ("what is not HTTP", not_http),
    ("after all that it is the same process, and works", unharmed),
    ("a damaged store", damaged_store),
    ("a disk that fills up while it runs", full_while_running),
];

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    }
    Ok(())
}

/// What the command says when it fails; it must not take long over it.
fn fails(command: &mut Command) -> Result<String> {
    let start = Instant::now();
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(!output.status.success(), "it succeeded: {}{text}", String::from_utf8_lossy(&output.stdout));
    ensure!(start.elapsed() < Duration::from_secs(20), "it took {:?}: {text}", start.elapsed());
    Ok(text)
}

/// The start is refused with these words, both ways, and leaves no file.
fn refused(env: &Env, parts: &[&str]) -> Result<()> {
    for command in ["up", "server"] {
        contains(&fails(&mut env.knarr(&[command]))?, parts)?;
        untouched(env)?;
    }
    Ok(())
}

fn untouched(env: &Env) -> Result<()> {
    ensure!(!env.data.exists(), "{} was made", env.data.display());
    ensure!(!env.run.exists(), "{} was made", env.run.display());
    Ok(())
}

fn port_in_use(env: &Env) -> Result<()> {
    for (port, flag) in [(env.port, "--secure-port"), (env.kubelet_port(), "--kubelet-port")] {
        let _taken = TcpListener::bind(("0.0.0.0", port))?;
        refused(env, &[&format!("port {port} is in use"), flag])?;
    }
    Ok(())
}

fn no_root(env: &Env) -> Result<()> {
    // Where anybody can read it.
    let binary = env.home.join("knarr");
    fs::copy(&env.binary, &binary)?;
    for args in [&["up"][..], &["server"], &["down"], &["image", "ls"]] {
        let wanted = env.knarr(args);
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary).args(wanted.get_args());
        contains(&fails(&mut command)?, &["must run as root", "65534", "sudo"])?;
        untouched(env)?;
    }
    fs::remove_file(binary).map_err(Into::into)
}

/// Runs `knarr up` after a shell command, in a mount namespace of its own.
fn up_after(env: &Env, preparation: &str) -> Command {
    let up = env.knarr(&["up"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &format!("{preparation}\nexec \"$@\""), "sh"]).arg(up.get_program()).args(up.get_args());
    command.env("HOME", &env.home);
    command
}

fn no_feature(env: &Env) -> Result<()> {
    let (list, empty) = (env.home.join("filesystems"), env.home.join("empty"));
    fs::write(&list, "nodev\tsysfs\nnodev\ttmpfs\n\text4\n")?;
    fs::write(&empty, "")?;
    let overlay = format!("mount --bind {} /proc/filesystems; if [ -d /lib/modules ]; then mount -t tmpfs none /lib/modules; fi", list.display());
    contains(&fails(&mut up_after(env, &overlay))?, &["no overlay file system", "modprobe overlay", "CONFIG_OVERLAY_FS"])?;
    untouched(env)?;
    let cgroups = format!("mount --bind {} /proc/$$/cgroup", empty.display());
    contains(&fails(&mut up_after(env, &cgroups))?, &["no control groups", "CONFIG_CGROUPS"])?;
    untouched(env)
}

fn bad_config(env: &Env) -> Result<()> {
    let file = env.home.join("config.yaml");
    let path = file.to_string_lossy().into_owned();
    let with = |parts: &[&str]| -> Result<()> {
        contains(&fails(env.knarr(&["up"]).args(["--config", &path]))?, parts)?;
        untouched(env)
    };
    with(&["cannot read the configuration", &path, "No such file"])?;
    fs::create_dir(&file)?;
    with(&["cannot read the configuration", &path, "directory"])?;
    fs::remove_dir(&file)?;
    let cases: [(&[u8], &str); 6] = [
        (b"secure-port: [", "cannot be used"),
        (b"secure-port: many", "secure-port"),
        (b"secure-prt: 1", "secure-prt"),
        (b"\xff\xfe\x00", "cannot read the configuration"),
        (b"node-name: My_Node", "lower case"),
        (b"cluster-cidr: 10.96.0.0/16", "overlap"),
    ];
    for (text, word) in cases {
        fs::write(&file, text)?;
        let mut command = env.knarr(&["up"]);
        // The file's name for the node is to be used.
        let args: Vec<_> = command.get_args().filter(|a| *a != "--node-name" && *a != "one").map(|a| a.to_os_string()).collect();
        command = Command::new(&env.binary);
        contains(&fails(command.args(args).args(["--config", &path]))?, &[word])?;
        untouched(env)?;
    }
    fs::remove_file(&file).map_err(Into::into)
}

fn foreign(env: &Env) -> Result<()> {
    let each = |parts: &[&str]| -> Result<()> {
        for command in ["up", "server"] {
            contains(&fails(&mut env.knarr(&[command]))?, parts)?;
        }
        Ok(())
    };
    fs::write(&env.data, "a file")?;
    each(&["is not a directory"])?;
    fs::remove_file(&env.data)?;

    fs::create_dir(&env.data)?;
    fs::write(env.data.join("thesis.tex"), "important")?;
    each(&["not knarr's", "thesis.tex", "empty directory"])?;
    contains(&fails(&mut env.knarr(&["down", "--purge"]))?, &["not knarr's"])?;
    contains(&fails(&mut env.knarr(&["image", "ls"]))?, &["not knarr's"])?;
    let names: Vec<_> = fs::read_dir(&env.data)?.flatten().map(|e| e.file_name()).collect();
    ensure!(names == ["thesis.tex"], "there is now {names:?}");
    fs::remove_file(env.data.join("thesis.tex"))?;

    for (marker, word) in [("{\"format\": 99}", "another version"), ("garbage", "is damaged")] {
        fs::write(env.data.join("knarr.json"), marker)?;
        each(&[word, &env.data.to_string_lossy()])?;
    }
    output(&mut env.knarr(&["down", "--purge"]))?;
    untouched(env)
}

/// A data directory on a small file system.
struct Small<'a>(&'a Path);

impl Small<'_> {
    fn mount(env: &Env, megabytes: u32) -> Result<Small<'_>> {
        fs::create_dir_all(&env.data)?;
        output(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=755"), "none"]).arg(&env.data))?;
        Ok(Small(&env.data))
    }
}

impl Drop for Small<'_> {
    fn drop(&mut self) {
        // Lazily: whatever still holds it must not keep the next test from its directory.
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
        let _ = fs::remove_dir(self.0);
    }
}

fn full_at_start(env: &Env) -> Result<()> {
    let _small = Small::mount(env, 32)?;
    for command in ["up", "server"] {
        contains(&fails(&mut env.knarr(&[command]))?, &["is full", "MiB", "make room"])?;
    }
    ensure!(fs::read_dir(&env.data)?.next().is_none(), "something was written");
    Ok(())
}

fn without_ipv6(env: &Env) -> Result<()> {
    let script = r#"
for name in all default lo; do
  file=/proc/sys/net/ipv6/conf/$name/disable_ipv6
  if [ -e $file ]; then echo 1 > $file; fi
done
ip link set lo up
ip link add uplink type veth peer name beyond
ip link set beyond up
ip addr add 192.0.2.2/24 dev uplink
ip link set uplink up
ip route add default via 192.0.2.1
"$@"
"$KUBECTL" run pod --image=knarr.local/echo
"$KUBECTL" wait --for=condition=Ready pod/pod --timeout=20s
curl -sS --max-time 5 --noproxy '*' "http://$("$KUBECTL" get pod pod -o 'jsonpath={.status.podIP}'):8080/without-ipv6"
"#;
    let (up, down) = (env.knarr(&["up"]), env.knarr(&["down", "--purge"]));
    let run = |script: &str, command: &Command| {
        let mut shell = Command::new("unshare");
        shell.args(["--net", "sh", "-ec", script, "sh"]).arg(command.get_program()).args(command.get_args());
        shell.env("HOME", &env.home).env("KUBECTL", env.tools.join("kubectl")).env("KUBECONFIG", env.data.join("admin.conf"));
        output(&mut shell)
    };
    // KUBECONFIG names the file that `up` itself writes, so it must not be merged into.
    let started = run(&script.replace("\"$@\"\n", "env -u KUBECONFIG \"$@\"\n"), &up);
    let ended = run("env -u KUBECONFIG \"$@\"", &down);
    contains(&started?, &["node Ready", "real path=/without-ipv6"])?;
    ended?;
    untouched(env)
}

fn up(env: &Env) -> Result<()> {
    output(&mut env.knarr(&["up"])).map(|_| ())
}

fn pid(env: &Env) -> Result<String> {
    Ok(fs::read_to_string(env.data.join("lock"))?.trim().to_string())
}

fn second_server(env: &Env) -> Result<()> {
    let first = pid(env)?;
    // On other ports, so that it is the data that is in the way.
    let mut other = env.clone();
    other.port += 1;
    contains(&fails(&mut other.knarr(&["server"]))?, &["another knarr", &first, "knarr down", "--data-dir"])?;
    contains(&output(&mut other.knarr(&["up"]))?, &["already running", "nothing was changed"])?;
    ensure!(pid(env)? == first, "the first one is gone");
    env.client("kubectl").run(&["get", "nodes"]).map(|_| ())
}

/// A request as the administrator: code and body.
/// As with `| head`: it ends, and says nothing about itself.
fn no_reader(env: &Env) -> Result<()> {
    for args in [&["status"][..], &["certs", "certificate-key"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let output = env.knarr(args).stdout(writer).stderr(Stdio::piped()).spawn()?.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.is_empty() && output.status.code() == Some(141), "{args:?}: {}: {said}", output.status);
    }
    Ok(())
}

fn request(env: &Env, method: &str, path: &str, headers: &[&str], body: Option<&[u8]>) -> Result<(u16, String)> {
    let pki = env.data.join("pki");
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--max-time", "20", "--noproxy", "*", "--http1.1", "--globoff", "--path-as-is", "-H", "Expect:", "-X", method, "-w", "\n%{http_code}"]);
    curl.arg("--cacert").arg(pki.join("ca.crt")).arg("--cert").arg(pki.join("admin.crt")).arg("--key").arg(pki.join("admin.key"));
    for header in headers {
        curl.args(["-H", header]);
    }
    if let Some(bytes) = body {
        let file = env.home.join("body");
        fs::write(&file, bytes)?;
        curl.arg("--data-binary").arg(format!("@{}", file.display()));
    }
    let out = curl.arg(format!("https://127.0.0.1:{}{path}", env.port)).output()?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let (body, code) = text.rsplit_once('\n').with_context(|| format!("{method} {path}: {}", String::from_utf8_lossy(&out.stderr)))?;
    let code: u16 = code.parse()?;
    ensure!(code != 0, "{method} {path}: no answer: {}", String::from_utf8_lossy(&out.stderr));
    Ok((code, body.to_string()))
}

/// The answer is a Status with this code, reason and words.
fn status(answer: (u16, String), code: u16, reason: &str, words: &[&str]) -> Result<()> {
    let (got, body) = answer;
    let value: Value = serde_json::from_str(&body).with_context(|| format!("{got}: {body}"))?;
    ensure!(got == code && value["code"] == code, "{got} instead of {code}: {body}");
    ensure!(value["kind"] == "Status" && value["apiVersion"] == "v1" && value["status"] == "Failure", "no Status: {body}");
    ensure!(value["reason"] == reason, "the reason is not {reason}: {body}");
    contains(value["message"].as_str().unwrap_or_default(), words)
}

const JSON: &str = "Content-Type: application/json";
const YAML: &str = "Content-Type: application/yaml";
const PROTOBUF: &str = "Content-Type: application/vnd.kubernetes.protobuf";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn all(cases: Vec<(&str, Result<()>)>) -> Result<()> {
    let bad: Vec<String> = cases.into_iter().filter_map(|(name, result)| Some(format!("{name}: {:#}", result.err()?))).collect();
    if bad.is_empty() { Ok(()) } else { bail!("{}", bad.join("\n")) }
}

fn malformed_bodies(env: &Env) -> Result<()> {
    let post = |path: &str, kind: &str, body: &[u8]| request(env, "POST", path, &[kind], Some(body));
    let map = |kind: &str, body: &[u8], code: u16, reason: &str, words: &[&str]| post(CONFIG_MAPS, kind, body).and_then(|a| status(a, code, reason, words));
    let bad = |kind: &str, body: &[u8], words: &[&str]| map(kind, body, 400, "BadRequest", words);
    let mut truncated = b"k8s\0\x0a\x10\x0a\x02v1\x12\x0aConfigMap".to_vec();
    truncated.extend(b"\x12\xff\xff\xff\x0f\x0a");
    let huge = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "huge"}, "data": {"a": "x".repeat(4 << 20)}}).to_string();
    let too_big = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "big"}, "data": {"a": "x".repeat((1 << 20) + 1)}}).to_string();
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_field = format!(r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"deep"}},"data":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let mut laughs = String::from("a0: &a0 [x, x]\n");
    for i in 1..40 {
        laughs += &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}, *a{0}]\n", i - 1);
    }
    let object = |more: &str| format!(r#"{{"apiVersion":"v1","kind":"ConfigMap",{more}}}"#).into_bytes();
    all(vec![
        ("nothing", bad(JSON, b"", &[])),
        ("half of it", bad(JSON, br#"{"apiVersion":"v1","kind":"#, &["unexpected end of JSON input"])),
        ("no JSON", bad(JSON, b"hello", &[])),
        ("zeros", bad(JSON, &[0; 64], &[])),
        ("an array", bad(JSON, b"[]", &[])),
        ("a number", bad(JSON, b"1e999999", &[])),
        ("not UTF-8", bad(JSON, b"{\"apiVersion\":\"v1\",\"kind\":\"ConfigMap\",\"metadata\":{\"name\":\"\xff\xfe\"}", &[])),
        ("another kind", bad(JSON, br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"x"}}"#, &["Pod", "ConfigMap"])),
        ("another group", bad(JSON, br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x"}}"#, &["Deployment"])),
        ("an unknown kind", bad(JSON, br#"{"apiVersion":"v1","kind":"Nonsense"}"#, &["Nonsense"])),
        ("a number for a name", bad(JSON, &object(r#""metadata":{"name":1}"#), &["json: cannot unmarshal number into Go struct field ObjectMeta.metadata.name of type string"])),
        ("a list for metadata", bad(JSON, &object(r#""metadata":[]"#), &["cannot unmarshal array into Go struct field"])),
        ("a number in data", bad(JSON, &object(r#""metadata":{"name":"x"},"data":{"a":1}"#), &["cannot unmarshal number", "of type string"])),
        ("binary data that is none", bad(JSON, &object(r#""metadata":{"name":"x"},"binaryData":{"a":"%%%"}"#), &["illegal base64 data"])),
        ("replicas as a string", {
            let body = br#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"x"},"spec":{"replicas":"3"}}"#;
            post("/apis/apps/v1/namespaces/default/deployments", JSON, body)
                .and_then(|a| status(a, 400, "BadRequest", &["json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"]))
        }),
        ("another namespace", bad(JSON, &object(r#""metadata":{"name":"x","namespace":"other"}"#), &["the namespace of the provided object does not match the namespace sent on the request"])),
        ("deep nesting", bad(JSON, deep.as_bytes(), &[])),
        ("deep nesting in a field", bad(JSON, deep_field.as_bytes(), &[])),
        ("deep nesting in YAML", bad(YAML, deep.as_bytes(), &[])),
        ("aliases without end", bad(YAML, laughs.as_bytes(), &[])),
        ("YAML with tabs", bad(YAML, b"a:\n\t- b", &[])),
        ("protobuf without its magic", bad(PROTOBUF, br#"{"apiVersion":"v1"}"#, &[])),
        ("protobuf cut off", bad(PROTOBUF, &truncated, &[])),
        ("protobuf of noise", bad(PROTOBUF, &[b"k8s\0".as_slice(), &[0xff; 200]].concat(), &[])),
        ("a content type nobody has", map("Content-Type: text/plain", b"{}", 415, "UnsupportedMediaType", &["the body of the request was in an unknown format", "application/json"])),
        ("a content type that is none", map("Content-Type: ;;;", b"{}", 415, "UnsupportedMediaType", &[])),
        ("huge", map(JSON, huge.as_bytes(), 413, "RequestEntityTooLarge", &["limit is 3145728"])),
        ("more data than it may have", map(JSON, too_big.as_bytes(), 422, "Invalid", &["Too long: may not be more than 1048576 bytes"])),
        ("no name", map(JSON, &object(r#""metadata":{}"#), 422, "Invalid", &["metadata.name: Required value: name or generateName is required"])),
        ("a bad name", map(JSON, &object(r#""metadata":{"name":"A b"}"#), 422, "Invalid", &["metadata.name: Invalid value: \"A b\": a lowercase RFC 1123 subdomain"])),
        ("an unknown field, strictly", {
            let body = object(r#""metadata":{"name":"x"},"dat":{}"#);
            post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), JSON, &body).and_then(|a| status(a, 400, "BadRequest", &["strict decoding error: unknown field \"dat\""]))
        }),
        ("a field twice, strictly", {
            let body = object(r#""metadata":{"name":"x"},"data":{"a":"1","a":"2"}"#);
            post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), JSON, &body).and_then(|a| status(a, 400, "BadRequest", &["strict decoding error: duplicate field"]))
        }),
    ])
}

fn malformed_patches(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    kubectl.run(&["create", "configmap", "patched", "--from-literal=a=1"])?;
    let path = format!("{CONFIG_MAPS}/patched");
    let patch = |kind: &str, query: &str, body: &[u8], code: u16, reason: &str, words: &[&str]| {
        let kind = format!("Content-Type: application/{kind}");
        request(env, "PATCH", &format!("{path}{query}"), &[&kind], Some(body)).and_then(|a| status(a, code, reason, words))
    };
    all(vec![
        ("no JSON", patch("merge-patch+json", "", b"{", 400, "BadRequest", &[])),
        ("nothing", patch("merge-patch+json", "", b"", 400, "BadRequest", &[])),
        ("wrong type", patch("merge-patch+json", "", br#"{"data":{"a":{"b":1}}}"#, 422, "Invalid", &["cannot unmarshal object"])),
        ("an object as JSON patch", patch("json-patch+json", "", b"{}", 400, "BadRequest", &[])),
        ("an unknown operation", patch("json-patch+json", "", br#"[{"op":"dance","path":"/data/a"}]"#, 422, "Invalid", &[])),
        ("a path that is not there", patch("json-patch+json", "", br#"[{"op":"remove","path":"/data/none"}]"#, 422, "Invalid", &[])),
        ("a test that fails", patch("json-patch+json", "", br#"[{"op":"test","path":"/data/a","value":"2"}]"#, 422, "Invalid", &[])),
        ("strategic no JSON", patch("strategic-merge-patch+json", "", b"[1", 400, "BadRequest", &[])),
        ("apply without manager", patch("apply-patch+yaml", "", b"apiVersion: v1\nkind: ConfigMap\n", 422, "Invalid", &["fieldManager: Required value: is required for apply patch"])),
        ("apply no YAML", patch("apply-patch+yaml", "?fieldManager=e2e", b"a: [", 400, "BadRequest", &[])),
        ("a patch type nobody has", patch("json", "", b"{}", 415, "UnsupportedMediaType", &["application/json-patch+json"])),
        ("the name", patch("merge-patch+json", "", br#"{"metadata":{"name":"other"}}"#, 400, "BadRequest", &["the name of the object (other) does not match the name on the URL (patched)"])),
        ("the uid", patch("merge-patch+json", "", br#"{"metadata":{"uid":"other"}}"#, 422, "Invalid", &["metadata.uid: Invalid value: \"other\": field is immutable"])),
        ("an old version", patch("merge-patch+json", "", br#"{"metadata":{"resourceVersion":"1"},"data":{"a":"2"}}"#, 409, "Conflict", &["the object has been modified"])),
    ])?;
    ensure!(kubectl.run(&["get", "configmap", "patched", "-o", "jsonpath={.data}"])? == r#"{"a":"1"}"#, "it was changed");
    Ok(())
}

fn malformed_queries(env: &Env) -> Result<()> {
    let get = |path: &str, code: u16, reason: &str, words: &[&str]| request(env, "GET", path, &[], None).and_then(|a| status(a, code, reason, words));
    let maps = |query: &str| format!("{CONFIG_MAPS}?{query}");
    all(vec![
        ("label selector", get(&maps("labelSelector=%21%21"), 400, "BadRequest", &["labelSelector"]).or_else(|_| get(&maps("labelSelector=%21%21"), 400, "BadRequest", &["unable to parse"]))),
        ("field selector", get(&maps("fieldSelector=spec.nothing%3D1"), 400, "BadRequest", &["\"spec.nothing\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""])),
        ("limit", get(&maps("limit=many"), 400, "BadRequest", &[])),
        ("continue", get(&maps("limit=1&continue=%2A%2A"), 400, "BadRequest", &["continue key is not valid"])),
        ("resource version", get(&maps("resourceVersion=new"), 400, "BadRequest", &[]).or_else(|_| get(&maps("resourceVersion=new"), 422, "Invalid", &[]))),
        ("an unknown resource", {
            request(env, "GET", "/api/v1/nonsense", &[], None).and_then(|answer| {
                ensure!(answer.0 == 404 && answer.1.contains("404 page not found"), "{answer:?}");
                Ok(())
            })
        }),
        ("a missing object", get(&format!("{CONFIG_MAPS}/none"), 404, "NotFound", &["configmaps \"none\" not found"])),
        ("a method", request(env, "POST", &format!("{CONFIG_MAPS}/patched"), &[JSON], Some(b"{}")).and_then(|a| status(a, 405, "MethodNotAllowed", &["the server does not allow this method on the requested resource"]))),
        ("a path that climbs", {
            request(env, "GET", "/api/v1/namespaces/../../../etc/passwd", &[], None).and_then(|(code, body)| {
                ensure!((400..500).contains(&code) || (300..400).contains(&code), "{code}: {body}");
                Ok(())
            })
        }),
        ("a long query", {
            let long = format!("labelSelector={}", "a,".repeat(20_000));
            request(env, "GET", &maps(&long), &[], None).map(|_| ())
        }),
    ])
}

fn not_http(env: &Env) -> Result<()> {
    for bytes in [&b"\0\0\0\0"[..], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x16\x03\x01\xff\xff\x01\xff\xff\xff", &[0xff; 4096]] {
        for port in [env.port, env.kubelet_port()] {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_millis(200)))?;
            // It may close while this is written, and need not answer.
            let _ = stream.write_all(bytes);
            let _ = stream.read(&mut [0; 64]);
        }
    }
    let (code, _) = request(env, "GET", "/readyz", &[], None)?;
    ensure!(code == 200, "/readyz says {code}");
    Ok(())
}

fn unharmed(env: &Env) -> Result<()> {
    let kubectl = env.client("kubectl");
    let log = fs::read_to_string(env.data.join("server.log"))?;
    ensure!(!log.contains("panicked"), "the log tells of a panic: {log}");
    ensure!(log.matches("ready took=").count() == 1, "it was started again: {log}");
    kubectl.run(&["create", "configmap", "fine", "--from-literal=a=1"])?;
    contains(&kubectl.run(&["get", "configmaps"])?, &["fine", "patched"])?;
    contains(&kubectl.run(&["get", "nodes"])?, &["Ready"])
}

fn files_below(dir: &Path) -> Result<Vec<std::path::PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() { all.extend(files_below(&path)?) } else { all.push(path) }
    }
    Ok(all)
}

fn damaged_store(env: &Env) -> Result<()> {
    output(&mut env.knarr(&["down"]))?;
    let store = env.data.join("store");
    let format = fs::read(store.join("format"))?;
    fs::write(store.join("format"), "knarr store 99\n")?;
    contains(&fails(&mut env.knarr(&["up"]))?, &["knarr store 99", "use the version of knarr that wrote it"])?;
    fs::write(store.join("format"), &format)?;

    let copy = env.home.join("store");
    let _ = fs::remove_dir_all(&copy);
    output(Command::new("cp").arg("-a").arg(&store).arg(&copy))?;
    for path in files_below(&store.join("db"))?.iter().filter(|p| p.metadata().is_ok_and(|m| m.len() > 0)) {
        let mut bytes = fs::read(path)?;
        let end = bytes.len().min(4096);
        bytes[..end].fill(0xa5);
        fs::write(path, bytes)?;
    }
    contains(&fails(&mut env.knarr(&["up"]))?, &["is damaged", &store.to_string_lossy(), "restore a backup"])?;
    fs::rename(store.join("db"), env.home.join("gone"))?;
    contains(&fails(&mut env.knarr(&["up"]))?, &["is damaged", "its database is gone"])?;
    fs::remove_dir_all(env.home.join("gone"))?;

    // The copy is as good as ever.
    fs::remove_dir_all(&store)?;
    output(Command::new("cp").arg("-a").arg(&copy).arg(&store))?;
    fs::remove_dir_all(&copy)?;
    up(env)?;
    env.client("kubectl").run(&["get", "configmap", "fine"])?;
    output(&mut env.knarr(&["down", "--purge"]))?;
    untouched(env)
}

fn full_while_running(env: &Env) -> Result<()> {
    // Room for the executable and the image made of it, and some.
    let executable = fs::metadata(&env.binary)?.len() >> 20;
    let small = Small::mount(env, u32::try_from(2 * executable)? + 160)?;
    let outcome = full(env);
    let purged = env.knarr(&["down", "--purge"]).output()?;
    drop(small);
    outcome?;
    // The mount point itself cannot be removed by anybody while it is one.
    let text = String::from_utf8_lossy(&purged.stderr).into_owned();
    ensure!(purged.status.success() || text.contains("busy"), "{text}");
    let _ = fs::remove_dir_all(&env.run);
    Ok(())
}

fn full(env: &Env) -> Result<()> {
    up(env)?;
    let process = pid(env)?;
    let write = |name: &str| -> Result<u16> {
        let body = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": name.repeat(20_000)}}).to_string();
        Ok(request(env, "POST", CONFIG_MAPS, &[JSON], Some(body.as_bytes()))?.0)
    };
    let mut acknowledged: Vec<String> = Vec::new();
    for i in 0..3 {
        ensure!(write(&format!("before-{i}"))? == 201, "the disk is not full yet");
        acknowledged.push(format!("before-{i}"));
    }
    // Whatever is free goes into one file.
    let filler = env.data.join("containers/filler");
    let mut file = fs::File::create(&filler)?;
    while file.write_all(&[1; 1 << 16]).is_ok() {}
    while file.write_all(&[1; 64]).is_ok() {}
    drop(file);
    // The store may have room set aside; sooner or later it refuses, and says so.
    let mut refused = None;
    for i in 0..400 {
        let name = format!("during-{i}");
        match write(&name)? {
            201 => acknowledged.push(name),
            code => {
                refused = Some(code);
                break;
            }
        }
    }
    let code = refused.context("400 objects of 180 kB were written to a full disk")?;
    ensure!(code >= 500, "a write to a full disk answers {code}");
    let kept = |acknowledged: &[String], when: &str| -> Result<()> {
        for name in acknowledged {
            let (code, body) = request(env, "GET", &format!("{CONFIG_MAPS}/{name}"), &[], None)?;
            ensure!(code == 200 && body.contains(&name.repeat(20_000)), "{when}, {name} is lost: {code}");
        }
        Ok(())
    };
    kept(&acknowledged, "on a full disk")?;
    // As upstream's, its health tells of the store; the rest of it is well.
    let live = request(env, "GET", "/livez?exclude=etcd", &[], None)?;
    ensure!(live.0 == 200, "it is not live: {live:?}");
    ensure!(pid(env)? == process && Path::new("/proc").join(&process).exists(), "it died");
    fs::remove_file(&filler)?;
    eventually("writing with room again", 20, || {
        let code = write("after")?;
        ensure!(code == 201 || code == 409, "{code}");
        Ok(())
    })?;
    acknowledged.push("after".into());
    kept(&acknowledged, "with room again")?;
    // And they were on the disk, not only in memory.
    output(Command::new("kill").args(["-9", &process]))?;
    eventually("the server's end", 10, || {
        let text = output(&mut env.knarr(&["up"]))?;
        ensure!(!text.contains("already running"), "it still runs");
        Ok(())
    })?;
    kept(&acknowledged, "after SIGKILL")
}
