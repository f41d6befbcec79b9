//! Upstream's command lines: a table of flags, and what a command line says of them. Pure; syntax and
//! errors are those of pflag, with which upstream reads its flags.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// One flag of a component.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Flag {
    /// Under which heading the help shows it.
    pub section: &'static str,
    pub name: &'static str,
    /// Its type, as the help shows it.
    pub kind: &'static str,
    pub default: &'static str,
    /// Whether it has a meaning here.
    pub used: bool,
}

/// Reads a table: `[section]`, then lines of name, type and default.
pub fn table(text: &'static str) -> Vec<Flag> {
    let mut section = "";
    let mut flags = Vec::new();
    for line in text.lines().filter(|l| !l.is_empty() && !l.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            continue;
        }
        let mut words = line.splitn(3, ' ');
        let (name, kind, default) = (words.next().unwrap_or(""), words.next().unwrap_or("string"), words.next().unwrap_or(""));
        let used = !name.starts_with('-');
        flags.push(Flag { section, name: name.trim_start_matches('-'), kind, default, used });
    }
    flags
}

/// What a command line says. Every value has been checked against its flag's type.
#[derive(Clone, Debug)]
pub struct Values {
    flags: Vec<Flag>,
    set: BTreeMap<&'static str, Vec<String>>,
}

/// What is wrong with a command line, in upstream's words.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// No such flag. The name has no dashes.
    #[error("unknown flag: --{0}")]
    Unknown(String),
    /// No such letter.
    #[error("unknown shorthand flag: '{0}' in -{1}")]
    Shorthand(char, String),
    /// The command line ends where a value should be.
    #[error("flag needs an argument: {0}")]
    NoValue(String),
    /// Two dashes, and nothing that could be a name.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// The value is not of the flag's type: value, flag, why.
    #[error("invalid argument {0:?} for \"{1}\" flag: {2}")]
    Invalid(String, String, String),
    /// Words that are no flags.
    #[error("{0:?} does not take any arguments, got {1}")]
    Arguments(&'static str, String),
}

/// Reads the arguments of `component`.
pub fn parse(component: &'static str, flags: Vec<Flag>, args: &[String]) -> Result<Values, FlagError> {
    let mut values = Values { flags, set: BTreeMap::new() };
    let mut words = Vec::new();
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        if arg == "--" {
            words.extend(rest.by_ref().cloned());
        } else if let Some(long) = arg.strip_prefix("--") {
            let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v.to_string())));
            if name.is_empty() || name.starts_with('-') {
                return Err(FlagError::Syntax(arg.clone()));
            }
            // Upstream takes both spellings.
            let wanted = name.replace('_', "-");
            let flag = values.find(&wanted).ok_or_else(|| FlagError::Unknown(name.to_string()))?;
            let value = match value {
                Some(value) => value,
                None if flag.is_switch() => "true".into(),
                None => rest.next().cloned().ok_or_else(|| FlagError::NoValue(arg.clone()))?,
            };
            values.put(flag, value, format!("--{}", flag.name))?;
        } else if let Some(short) = arg.strip_prefix('-').filter(|s| !s.is_empty()) {
            let letter = short.chars().next().unwrap_or_default();
            let name = match letter {
                'v' => "v",
                'h' => "help",
                _ => return Err(FlagError::Shorthand(letter, short.to_string())),
            };
            let flag = values.find(name).ok_or_else(|| FlagError::Shorthand(letter, short.to_string()))?;
            let value = match short[1..].strip_prefix('=').or(Some(&short[1..])).filter(|v| !v.is_empty()) {
                Some(value) => value.to_string(),
                None if flag.is_switch() => "true".into(),
                None => rest.next().cloned().ok_or_else(|| FlagError::NoValue(format!("'{letter}' in -{short}")))?,
            };
            values.put(flag, value, format!("-{letter}, --{}", flag.name))?;
        } else {
            words.push(arg.clone());
        }
    }
    if words.iter().any(|w| !w.is_empty()) {
        let words: Vec<String> = words.iter().map(|w| format!("{w:?}")).collect();
        return Err(FlagError::Arguments(component, format!("[{}]", words.join(" "))));
    }
    Ok(values)
}

impl Flag {
    fn is_switch(&self) -> bool {
        matches!(self.kind, "bool" | "version")
    }

    fn is_list(&self) -> bool {
        matches!(self.kind, "strings" | "stringArray" | "int32Slice" | "mapStringBool" | "mapStringString" | "colonSeparatedMultimapStringString" | "stringToString" | "namedCertKey")
    }

    /// Why a value does not fit, in the words of Go's parsers.
    fn check(&self, value: &str) -> Result<(), String> {
        let syntax = |function: &str| format!("strconv.{function}: parsing {value:?}: invalid syntax");
        match self.kind {
            "bool" => go_bool(value).map(drop).ok_or_else(|| syntax("ParseBool")),
            "int" | "int32" | "Level" => match value.parse::<i128>() {
                Err(_) => Err(syntax("ParseInt")),
                Ok(number) if self.kind != "int" && i32::try_from(number).is_err() => Err(format!("strconv.ParseInt: parsing {value:?}: value out of range")),
                Ok(number) if i64::try_from(number).is_err() => Err(format!("strconv.ParseInt: parsing {value:?}: value out of range")),
                Ok(_) => Ok(()),
            },
            "float" | "float32" => value.parse::<f64>().map(drop).map_err(|_| syntax("ParseFloat")),
            "duration" => go_duration(value).map(drop).ok_or_else(|| format!("time: invalid duration {value:?}")),
            "ip" => value.trim().parse::<IpAddr>().map(drop).map_err(|_| format!("failed to parse IP: {value:?}")),
            "int32Slice" => value.split(',').all(|v| v.parse::<i32>().is_ok()).then_some(()).ok_or_else(|| syntax("Atoi")),
            "mapStringBool" => value.split(',').filter(|p| !p.trim().is_empty()).try_for_each(|pair| {
                let (key, value) = pair.split_once('=').ok_or_else(|| format!("malformed pair, expect string=string, got: {pair}"))?;
                let known = go_bool(value.trim()).map(drop);
                known.ok_or_else(|| format!("invalid value of {}: {}, err: strconv.ParseBool: parsing {:?}: invalid syntax", key.trim(), value.trim(), value.trim()))
            }),
            "stringToString" => value.split(',').try_for_each(|pair| pair.contains('=').then_some(()).ok_or_else(|| format!("{pair} must be formatted as key=value"))),
            _ => Ok(()),
        }
    }
}

impl Values {
    fn find(&self, name: &str) -> Option<Flag> {
        self.flags.iter().find(|f| f.name == name).copied()
    }

    fn put(&mut self, flag: Flag, value: String, shown: String) -> Result<(), FlagError> {
        flag.check(&value).map_err(|why| FlagError::Invalid(value.clone(), shown, why))?;
        let values = self.set.entry(flag.name).or_default();
        if !flag.is_list() {
            values.clear();
        }
        values.push(value);
        Ok(())
    }

    /// Whether the command line has the flag.
    pub fn is_set(&self, name: &str) -> bool {
        self.set.contains_key(name)
    }

    /// All flags with their values, as `/flagz` tells them.
    pub fn shown(&self) -> BTreeMap<String, String> {
        self.flags.iter().map(|flag| (flag.name.to_owned(), self.text(flag.name))).collect()
    }

    /// All flags.
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }

    /// Flags that are set and have no meaning here.
    pub fn without_meaning(&self) -> BTreeSet<&'static str> {
        self.flags.iter().filter(|f| !f.used && self.is_set(f.name)).map(|f| f.name).collect()
    }

    /// A flag's value as it was written.
    pub fn text(&self, name: &str) -> String {
        match self.set.get(name) {
            Some(values) => values.join(","),
            None => self.find(name).map(|f| f.default.to_string()).unwrap_or_default(),
        }
    }

    /// A path or a name; `None` when it is empty.
    pub fn given(&self, name: &str) -> Option<String> {
        Some(self.text(name)).filter(|v| !v.is_empty())
    }

    /// A switch.
    pub fn bool(&self, name: &str) -> bool {
        go_bool(&self.text(name)).unwrap_or(false)
    }

    /// A whole number.
    pub fn int(&self, name: &str) -> i64 {
        self.text(name).parse().unwrap_or(0)
    }

    /// A number.
    pub fn float(&self, name: &str) -> f64 {
        self.text(name).parse().unwrap_or(0.0)
    }

    /// A time; one below zero is none.
    pub fn duration(&self, name: &str) -> Duration {
        go_duration(&self.text(name)).unwrap_or_default()
    }

    /// All values that the command line gives, each as it was written.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.set.get(name).cloned().unwrap_or_default()
    }

    /// The parts of a comma-separated list.
    pub fn list(&self, name: &str) -> Vec<String> {
        self.text(name).split(',').filter(|p| !p.is_empty()).map(|p| p.trim().to_string()).collect()
    }
}

/// What Go's `strconv.ParseBool` takes.
pub fn go_bool(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `300ms`, `0`. Negative ones become zero.
pub fn go_duration(value: &str) -> Option<Duration> {
    let (negative, mut rest) = match value.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, value.strip_prefix('+').unwrap_or(value)),
    };
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[end..];
        nanos += number * unit;
    }
    // Go counts in 64 bits.
    if nanos >= i64::MAX as f64 {
        return None;
    }
    Some(if negative { Duration::ZERO } else { Duration::from_nanos(nanos.round() as u64) })
}

/// What to say of a flag that upstream had and has no more.
pub fn removed(name: &str) -> Option<&'static str> {
    let log = "klog's own flags are gone since 1.26: standard error is where the log goes, --v says how much";
    let policy = "scheduling policies are gone since 1.23: write a KubeSchedulerConfiguration and give it with --config";
    Some(match name.replace('_', "-").as_str() {
        "address" | "insecure-bind-address" => "there is no port without TLS any more: --bind-address",
        "port" | "insecure-port" => "there is no port without TLS any more: --secure-port",
        "pod-eviction-timeout" | "enable-taint-manager" => "gone since 1.27: evictions follow taints; say tolerationSeconds in pods",
        "experimental-cluster-signing-duration" => "--cluster-signing-duration",
        "insecure-experimental-approve-all-kubelet-csrs-for-group" => "gone: bind the group to a ClusterRole for nodeclient requests",
        "horizontal-pod-autoscaler-downscale-delay" => "--horizontal-pod-autoscaler-downscale-stabilization",
        "horizontal-pod-autoscaler-upscale-delay" | "horizontal-pod-autoscaler-use-rest-clients" => "gone: the behavior of a HorizontalPodAutoscaler says it",
        "deployment-controller-sync-period" | "register-retry-count" | "replication-controller-lookup-cache-size" => "gone: it had no effect any more",
        "volume-host-cidr-denylist" | "volume-host-allow-local-loopback" => "gone with the volume plug-ins that it was for",
        "logtostderr" | "alsologtostderr" | "log-dir" | "log-file" | "log-file-max-size" | "one-output" | "skip-headers" | "skip-log-headers"
        | "add-dir-header" | "stderrthreshold" | "log-backtrace-at" => log,
        "policy-config-file" | "policy-configmap" | "policy-configmap-namespace" | "use-legacy-policy-config" | "algorithm-provider" => policy,
        "scheduler-name" | "hard-pod-affinity-symmetric-weight" => "gone: a profile of the KubeSchedulerConfiguration says it",
        "service-account-api-audiences" => "--api-audiences",
        "experimental-encryption-provider-config" => "--encryption-provider-config",
        "experimental-bootstrap-token-auth" => "--enable-bootstrap-token-auth",
        "experimental-keystone-url" | "experimental-keystone-ca-file" => "gone: OpenID Connect took its place",
        "basic-auth-file" => "gone since 1.19: client certificates, or --token-auth-file",
        "kubelet-https" => "gone: kubelets are always reached by TLS",
        "kubelet-port" | "kubelet-read-only-port" => "gone: the node's object says the port",
        "etcd-quorum-read" => "gone: reads are always consistent",
        "enable-swagger-ui" => "gone: /openapi/v3 has the documents",
        "repair-malformed-updates" | "target-ram-mb" | "deserialization-cache-size" => "gone: it had no effect any more",
        "tls-ca-file" => "--client-ca-file for clients; the CA of the serving certificate goes into --tls-cert-file",
        "lock-object-name" => "--leader-elect-resource-name",
        "lock-object-namespace" => "--leader-elect-resource-namespace",
        _ => return None,
    })
}

/// The help: usage line and all flags by section, as upstream lays it out.
pub fn usage(component: &str, flags: &[Flag]) -> String {
    use std::fmt::Write;
    let mut text = format!("Usage:\n  {component} [flags]\n");
    let mut section = "";
    let left = |flag: &Flag| {
        let short = match flag.name {
            "v" => "  -v, ",
            "help" => "  -h, ",
            _ => "      ",
        };
        let kind = match flag.kind {
            "bool" => String::new(),
            "version" => " version[=true]".into(),
            kind => format!(" {kind}"),
        };
        format!("{short}--{}{kind}", flag.name)
    };
    let width = flags.iter().map(|f| left(f).len()).max().unwrap_or(0);
    for flag in flags {
        if flag.section != section {
            section = flag.section;
            let (first, rest) = section.split_at(1);
            let _ = write!(text, "\n{}{rest} flags:\n\n", first.to_uppercase());
        }
        let default = match (flag.kind, flag.default) {
            (_, "") | ("bool", "false") | ("version", _) | ("duration", "0s") | ("int" | "int32", "0") => String::new(),
            ("string", value) => format!("(default {value:?})"),
            ("strings" | "stringArray", value) => format!("(default [{value}])"),
            (_, value) => format!("(default {value})"),
        };
        let note = if flag.used { "" } else { "accepted, without effect here" };
        let line = format!("{:width$}   {note}{}{default}", left(flag), if note.is_empty() || default.is_empty() { "" } else { " " });
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "# a comment\n[one]\nport int 10257\nelect bool true\n-old string\nv Level 0\nwait duration 1m0s\n\n[two]\nnames strings *\ngates mapStringBool\nconcurrent-rc-syncs int32 5\nhelp bool false\naddress ip 0.0.0.0\n";

    fn parsed(args: &[&str]) -> Result<Values, FlagError> {
        let args: Vec<String> = args.iter().map(|a| a.to_string()).collect();
        parse("kube-thing", table(TABLE), &args)
    }

    fn error(args: &[&str]) -> String {
        parsed(args).expect_err("it is wrong").to_string()
    }

    #[test]
    fn values_are_taken_in_all_of_pflags_spellings() {
        let v = parsed(&["--port=1", "--elect=false", "-v=4", "--names", "a,-b", "--names=c", "--concurrent_rc_syncs=7", "--wait", "1h1.5s"]).expect("flags");
        assert_eq!((v.int("port"), v.bool("elect"), v.int("v"), v.int("concurrent-rc-syncs")), (1, false, 4, 7));
        assert_eq!(v.list("names"), ["a", "-b", "c"]);
        assert_eq!(v.duration("wait"), Duration::from_millis(3_601_500));
        assert_eq!(parsed(&["-v2"]).expect("flags").int("v"), 2);
        assert_eq!(parsed(&["-v", "3"]).expect("flags").int("v"), 3);
        assert!(parsed(&["-h"]).expect("flags").bool("help"));
        // what is last counts
        assert_eq!(parsed(&["--port=1", "--port=2"]).expect("flags").int("port"), 2);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let v = parsed(&[]).expect("flags");
        assert_eq!((v.int("port"), v.bool("elect"), v.duration("wait")), (10257, true, Duration::from_secs(60)));
        assert_eq!((v.list("names"), v.given("old"), v.is_set("port")), (vec!["*".to_string()], None, false));
    }

    #[test]
    fn errors_have_upstreams_words() {
        assert_eq!(error(&["--foo=1"]), "unknown flag: --foo");
        assert_eq!(error(&["-x"]), "unknown shorthand flag: 'x' in -x");
        assert_eq!(error(&["--port"]), "flag needs an argument: --port");
        assert_eq!(error(&["--="]), "bad flag syntax: --=");
        assert_eq!(error(&["--port=x"]), "invalid argument \"x\" for \"--port\" flag: strconv.ParseInt: parsing \"x\": invalid syntax");
        assert_eq!(error(&["--elect=maybe"]), "invalid argument \"maybe\" for \"--elect\" flag: strconv.ParseBool: parsing \"maybe\": invalid syntax");
        assert_eq!(error(&["--wait=5"]), "invalid argument \"5\" for \"--wait\" flag: time: invalid duration \"5\"");
        assert_eq!(error(&["--address=nowhere"]), "invalid argument \"nowhere\" for \"--address\" flag: failed to parse IP: \"nowhere\"");
        assert_eq!(error(&["--concurrent-rc-syncs=3000000000"]), "invalid argument \"3000000000\" for \"--concurrent-rc-syncs\" flag: strconv.ParseInt: parsing \"3000000000\": value out of range");
        assert_eq!(error(&["--gates=a"]), "invalid argument \"a\" for \"--gates\" flag: malformed pair, expect string=string, got: a");
        assert_eq!(error(&["run", "--port=1"]), "\"kube-thing\" does not take any arguments, got [\"run\"]");
        assert_eq!(error(&["--", "--port"]), "\"kube-thing\" does not take any arguments, got [\"--port\"]");
    }

    #[test]
    fn flags_without_meaning_are_taken_and_told() {
        let v = parsed(&["--old=x", "--port=1"]).expect("flags");
        assert_eq!(v.without_meaning(), BTreeSet::from(["old"]));
    }

    #[test]
    fn durations_are_gos() {
        for (text, millis) in [("0", 0), ("0s", 0), ("300ms", 300), ("1h30m", 5_400_000), ("-5s", 0), ("8760h0m0s", 31_536_000_000), (".5s", 500)] {
            assert_eq!(go_duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1d", "1h2", "-", "9999999999h"] {
            assert_eq!(go_duration(text), None, "{text}");
        }
    }

    #[test]
    fn help_shows_every_flag_under_its_section() {
        let text = usage("kube-thing", &table(TABLE));
        assert!(text.starts_with("Usage:\n  kube-thing [flags]\n\nOne flags:\n\n      --port int"), "{text}");
        assert!(text.contains("\nTwo flags:\n") && text.contains("(default [*])") && text.contains("  -h, --help\n"), "{text}");
        assert!(text.contains("(default 10257)") && text.contains("(default true)") && text.contains("(default 1m0s)"), "{text}");
    }
}
