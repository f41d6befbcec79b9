//! How auditing is set up: upstream's flags of the same names, their defaults and what may be wrong with them.
use std::path::PathBuf;
use std::time::Duration;

/// Settings of auditing. Without a policy nothing is recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// The file with the policy.
    pub policy_file: Option<PathBuf>,
    pub log: LogConfig,
    pub webhook: WebhookConfig,
}

/// A file that events are written to, one a line.
#[derive(Clone, Debug, PartialEq)]
pub struct LogConfig {
    /// The file; `-` is standard output, the empty one none.
    pub path: String,
    /// `json` or `legacy`.
    pub format: String,
    /// The version that events are written in.
    pub version: String,
    /// Days that old files are kept; 0: for ever.
    pub max_age: i64,
    /// How many old files are kept; 0: all.
    pub max_backups: i64,
    /// Megabytes after which a new file is begun; 0: never.
    pub max_size: i64,
    /// Old files are compressed.
    pub compress: bool,
    /// `batch`, `blocking` or `blocking-strict`.
    pub mode: String,
    pub batch: BatchConfig,
    pub truncate: TruncateConfig,
}

/// A server that events are sent to.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookConfig {
    /// A kubeconfig that says where and as whom.
    pub config_file: Option<PathBuf>,
    /// How long to wait before what failed is tried again; half as long again every time.
    pub initial_backoff: Duration,
    /// The version that events are sent in.
    pub version: String,
    /// `batch`, `blocking` or `blocking-strict`.
    pub mode: String,
    pub batch: BatchConfig,
    pub truncate: TruncateConfig,
}

/// How events are gathered in the mode `batch`.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchConfig {
    /// Events that wait; what comes when so many do is lost, counted and logged.
    pub buffer_size: i64,
    pub max_size: i64,
    /// The longest that the first event of a batch waits for others.
    pub max_wait: Duration,
    /// Whether there is a limit to batches per second.
    pub throttle: bool,
    pub qps: f64,
    pub burst: i64,
}

/// What is done to large events.
#[derive(Clone, Debug, PartialEq)]
pub struct TruncateConfig {
    pub enabled: bool,
    /// In bytes.
    pub max_event_size: i64,
    /// In bytes, of the events of a batch together.
    pub max_batch_size: i64,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            path: String::new(),
            format: "json".into(),
            version: VERSION.into(),
            max_age: 366,
            max_backups: 100,
            max_size: 100,
            compress: false,
            mode: "blocking".into(),
            // Gathering is of no use to a file.
            batch: BatchConfig { max_size: 1, max_wait: Duration::ZERO, throttle: false, qps: 0.0, burst: 0, ..BatchConfig::default() },
            truncate: TruncateConfig::default(),
        }
    }
}

impl Default for WebhookConfig {
    fn default() -> WebhookConfig {
        WebhookConfig {
            config_file: None,
            initial_backoff: Duration::from_secs(10),
            version: VERSION.into(),
            mode: "batch".into(),
            batch: BatchConfig::default(),
            truncate: TruncateConfig::default(),
        }
    }
}

impl Default for BatchConfig {
    fn default() -> BatchConfig {
        BatchConfig { buffer_size: 10_000, max_size: 400, max_wait: Duration::from_secs(30), throttle: true, qps: 10.0, burst: 15 }
    }
}

impl Default for TruncateConfig {
    fn default() -> TruncateConfig {
        TruncateConfig { enabled: false, max_event_size: 100 * 1024, max_batch_size: 10 * 1024 * 1024 }
    }
}

const VERSION: &str = "audit.k8s.io/v1";
const MODES: [&str; 3] = ["batch", "blocking", "blocking-strict"];

impl Config {
    /// Everything that is wrong, in upstream's words. A backend that is not used may be set up as it likes.
    pub fn mistakes(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let log = &self.log;
        if !log.path.is_empty() {
            backend("log", &log.mode, &log.batch, &log.truncate, &log.version, &mut wrong);
            if !matches!(log.format.as_str(), "legacy" | "json") {
                wrong.push(format!("invalid audit log format {}, allowed formats are \"legacy,json\"", log.format));
            }
            for (flag, number) in [("maxage", log.max_age), ("maxbackup", log.max_backups), ("maxsize", log.max_size)] {
                if number < 0 {
                    wrong.push(format!("--audit-log-{flag} {number} can't be a negative number"));
                }
            }
        }
        let webhook = &self.webhook;
        if webhook.config_file.is_some() {
            backend("webhook", &webhook.mode, &webhook.batch, &webhook.truncate, &webhook.version, &mut wrong);
        }
        wrong
    }
}

fn backend(plugin: &str, mode: &str, batch: &BatchConfig, truncate: &TruncateConfig, version: &str, wrong: &mut Vec<String>) {
    if !MODES.contains(&mode) {
        wrong.push(format!("invalid audit {plugin} mode {mode}, allowed modes are \"{}\"", MODES.join(",")));
    } else if mode == "batch" {
        let mistake = if batch.buffer_size <= 0 {
            Some(("buffer size", batch.buffer_size.to_string()))
        } else if batch.max_size <= 0 {
            Some(("max batch size", batch.max_size.to_string()))
        } else if batch.throttle && !(batch.qps > 0.0) {
            Some(("throttle QPS", batch.qps.to_string()))
        } else if batch.throttle && batch.burst <= 0 {
            Some(("throttle burst", batch.burst.to_string()))
        } else {
            None
        };
        wrong.extend(mistake.map(|(what, value)| format!("invalid audit batch {plugin} {what} {value}, must be a positive number")));
    }
    let (event, all) = (truncate.max_event_size, truncate.max_batch_size);
    if event <= 0 {
        wrong.push(format!("invalid audit truncate {plugin} max event size {event}, must be a positive number"));
    } else if all < event {
        wrong.push(format!("invalid audit truncate {plugin} max batch size {all}, must be greater than max event size ({event})"));
    }
    if version.split('/').count() > 2 {
        wrong.push(format!("unexpected GroupVersion string: {version}"));
    } else if version != VERSION {
        wrong.push("invalid group version, allowed versions are [\"audit.k8s.io/v1\"]".into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mistakes(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let mut config = Config::default();
        config.log.path = "-".into();
        config.webhook.config_file = Some("/x".into());
        change(&mut config);
        config.mistakes()
    }

    #[test]
    fn mistakes_are_told_in_upstreams_words() {
        assert!(mistakes(|_| ()).is_empty());
        assert_eq!(mistakes(|c| c.log.mode = "fast".into()), ["invalid audit log mode fast, allowed modes are \"batch,blocking,blocking-strict\""]);
        assert_eq!(mistakes(|c| c.webhook.batch.buffer_size = 0), ["invalid audit batch webhook buffer size 0, must be a positive number"]);
        assert_eq!(mistakes(|c| c.webhook.batch.max_size = -1), ["invalid audit batch webhook max batch size -1, must be a positive number"]);
        assert_eq!(mistakes(|c| c.webhook.batch.qps = 0.0), ["invalid audit batch webhook throttle QPS 0, must be a positive number"]);
        assert_eq!(mistakes(|c| c.webhook.batch.burst = 0), ["invalid audit batch webhook throttle burst 0, must be a positive number"]);
        assert!(mistakes(|c| c.log.batch.buffer_size = 0).is_empty(), "a log that blocks gathers nothing");
        assert_eq!(mistakes(|c| c.log.truncate.max_event_size = 0), ["invalid audit truncate log max event size 0, must be a positive number"]);
        assert_eq!(mistakes(|c| c.log.truncate.max_batch_size = 1), ["invalid audit truncate log max batch size 1, must be greater than max event size (102400)"]);
        assert_eq!(mistakes(|c| c.log.version = "audit.k8s.io/v1beta1".into()), ["invalid group version, allowed versions are [\"audit.k8s.io/v1\"]"]);
        assert_eq!(mistakes(|c| c.log.format = "xml".into()), ["invalid audit log format xml, allowed formats are \"legacy,json\""]);
        assert_eq!(
            mistakes(|c| (c.log.max_age, c.log.max_backups, c.log.max_size) = (-1, -2, -3)),
            ["--audit-log-maxage -1 can't be a negative number", "--audit-log-maxbackup -2 can't be a negative number", "--audit-log-maxsize -3 can't be a negative number"]
        );
        let unused = |c: &mut Config| {
            c.log = LogConfig { path: String::new(), mode: "x".into(), ..LogConfig::default() };
            c.webhook = WebhookConfig { config_file: None, mode: "x".into(), ..WebhookConfig::default() };
        };
        assert!(mistakes(unused).is_empty());
    }
}
