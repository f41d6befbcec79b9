//! Bootstrap tokens: Secrets of kube-system, and the commands that manage them.

use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::certs;
use crate::cluster::{Cluster, collection};
use crate::config::{BootstrapToken, duration};
use crate::error::{Result, refused};

const PATTERN: &str = "\"\\\\A([a-z0-9]{6})\\\\.([a-z0-9]{16})\\\\z\"";
const ID_PATTERN: &str = "\"\\\\A([a-z0-9]{6})\\\\z\"";

/// The Secret of a token.
pub fn secret(token: &BootstrapToken, now: Timestamp) -> Result<Value> {
    let Some((id, text)) = pki::bootstrap_token::parse(&token.token) else {
        return refused(format!("the bootstrap token {:?} was not of the form {PATTERN}", token.token));
    };
    let mut data = json!({"token-id": id, "token-secret": text});
    if !token.description.is_empty() {
        data["description"] = token.description.clone().into();
    }
    let lasting = token.ttl.as_deref().and_then(duration).filter(|d| !d.is_zero()).and_then(|d| SignedDuration::try_from(d).ok());
    let end = token.expires.clone().or_else(|| lasting.map(|d| api::gotime::format((now + d).as_second())));
    if let Some(end) = end {
        data["expiration"] = end.into();
    }
    for usage in &token.usages {
        data[format!("usage-bootstrap-{usage}")] = "true".into();
    }
    if !token.groups.is_empty() {
        data["auth-extra-groups"] = token.groups.join(",").into();
    }
    Ok(json!({"apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"}, "stringData": data}))
}

fn path(id: &str) -> String {
    format!("{}/bootstrap-token-{id}", collection::<Secret>("kube-system"))
}

/// Makes a token that must not be there yet.
pub async fn create(cluster: &Cluster, token: &BootstrapToken) -> Result<()> {
    let secret = secret(token, Timestamp::now())?;
    let id = token.token.split('.').next().unwrap_or_default();
    if cluster.get(&path(id)).await?.is_some() {
        return refused(format!("a token with id {id:?} already exists"));
    }
    cluster.put(&secret).await
}

/// Removes tokens, named whole or by their ids.
pub async fn delete(cluster: &Cluster, named: &[String]) -> Result<()> {
    for name in named {
        let is_id = name.len() == 6 && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let id = match pki::bootstrap_token::parse(name) {
            Some((id, _)) => id,
            None if is_id => name,
            None => return refused(format!("given token didn't match pattern {PATTERN} or {ID_PATTERN}")),
        };
        cluster.delete(&path(id)).await?;
        println!("bootstrap token {id:?} deleted");
    }
    Ok(())
}

/// A token as it is listed.
#[derive(Debug, PartialEq)]
pub struct Listed {
    /// The whole token.
    pub token: String,
    /// When it ends, in seconds since 1970; never when none.
    pub end: Option<i64>,
    usages: String,
    description: String,
    groups: String,
}

/// Reads the Secret of a token.
pub fn listed(secret: &Value) -> Option<Listed> {
    let text = |key: &str| secret["data"][key].as_str().and_then(|t| STANDARD.decode(t).ok()).and_then(|b| String::from_utf8(b).ok());
    let usages: Vec<&str> = ["authentication", "signing"].into_iter().filter(|u| text(&format!("usage-bootstrap-{u}")).as_deref() == Some("true")).collect();
    Some(Listed {
        token: format!("{}.{}", text("token-id")?, text("token-secret")?),
        end: text("expiration").and_then(|t| api::gotime::parse(&t)).map(|(seconds, _)| seconds),
        usages: usages.join(","),
        description: text("description").unwrap_or_default(),
        groups: text("auth-extra-groups").unwrap_or_default(),
    })
}

/// All tokens, as a table or as JSON.
pub async fn list(cluster: &Cluster, json_wanted: bool) -> Result<()> {
    let selector = format!("{}?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken", collection::<Secret>("kube-system"));
    let found = cluster.get(&selector).await?.unwrap_or_default();
    let tokens: Vec<Listed> = found["items"].as_array().into_iter().flatten().filter_map(listed).collect();
    let now = Timestamp::now().as_second();
    for token in &tokens {
        if json_wanted {
            println!("{}", as_json(token));
        }
    }
    if !json_wanted && !tokens.is_empty() {
        print!("{}", table(&tokens, now));
    }
    Ok(())
}

fn as_json(token: &Listed) -> String {
    let words = |text: &str| text.split(',').filter(|w| !w.is_empty()).map(String::from).collect::<Vec<_>>();
    let mut object = json!({"kind": "BootstrapToken", "apiVersion": "output.kubeadm.k8s.io/v1alpha3", "token": token.token,
        "usages": words(&token.usages), "groups": words(&token.groups)});
    if !token.description.is_empty() {
        object["description"] = token.description.clone().into();
    }
    if let Some(end) = token.end {
        object["expires"] = api::gotime::format(end).into();
    }
    serde_json::to_string_pretty(&object).unwrap_or_default()
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "<none>" } else { text }
}

/// Upstream's table of tokens.
fn table(tokens: &[Listed], now: i64) -> String {
    let mut rows = vec![["TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS"].map(String::from)];
    for token in tokens {
        rows.push([
            token.token.clone(),
            format!("{:<9}", token.end.map_or("<forever>".into(), |end| short(end - now))),
            token.end.map_or("<never>".into(), api::gotime::format),
            format!("{:<22}", or_none(&token.usages)),
            format!("{:<56}", or_none(&token.description)),
            or_none(&token.groups).into(),
        ]);
    }
    columns(&rows)
}

/// Columns with three blanks between them, and at least ten wide, as upstream's writer of tables has them.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [10; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count() + 3);
        }
    }
    let mut text = String::new();
    for row in rows {
        for (i, (width, cell)) in widths.iter().zip(row).enumerate() {
            if i + 1 == N {
                text.push_str(cell);
            } else {
                text.push_str(&format!("{cell:<width$}"));
            }
        }
        text.push('\n');
    }
    text
}

/// A time as upstream shortens it: its largest unit alone.
pub fn short(seconds: i64) -> String {
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86400 => format!("{}h", seconds / 3600),
        86400..31_536_000 => format!("{}d", seconds / 86400),
        _ => format!("{}y", seconds / 31_536_000),
    }
}

/// A time as upstream writes it in tables: two units where the first is small.
pub fn human(seconds: i64) -> String {
    let two = |a: i64, unit: &str, b: i64, next: &str| if b == 0 { format!("{a}{unit}") } else { format!("{a}{unit}{b}{next}") };
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        ..-1 => "<invalid>".into(),
        -1..=0 => "0s".into(),
        1..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// The command that a machine joins with, in one line.
pub fn join_command(entry: &client::Entry, token: &str, certificate_key: Option<&str>) -> Result<String> {
    let lines = join_lines(entry, token, certificate_key.map(Some))?;
    Ok(lines.replace("\\\n\t", ""))
}

/// The same over several lines. With a key, or nothing in its place, it is for a control plane.
pub fn join_lines(entry: &client::Entry, token: &str, control_plane: Option<Option<&str>>) -> Result<String> {
    let pins = certs::pin(&entry.ca)?;
    let server = entry.server.trim_start_matches("https://");
    let mut text = format!("kubeadm join {server} --token {token} \\\n\t");
    for pin in pins {
        text.push_str(&format!("--discovery-token-ca-cert-hash {pin} "));
    }
    if let Some(key) = control_plane {
        text.push_str("\\\n\t--control-plane ");
        if let Some(key) = key {
            text.push_str(&format!("--certificate-key {key}"));
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(ttl: &str) -> BootstrapToken {
        BootstrapToken {
            token: "abcdef.0123456789abcdef".into(),
            ttl: Some(ttl.into()),
            usages: vec!["signing".into(), "authentication".into()],
            groups: vec!["system:bootstrappers:kubeadm:default-node-token".into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_token_and_its_secret() {
        let now = "2026-05-01T10:00:00Z".parse().expect("a time");
        let made = secret(&token("2h0m0s"), now).expect("a secret");
        assert_eq!(made["stringData"]["expiration"], "2026-05-01T12:00:00Z");
        assert_eq!(made["metadata"]["name"], "bootstrap-token-abcdef");
        assert!(secret(&token("0s"), now).expect("for ever")["stringData"]["expiration"].is_null());
        let mut stored = made.clone();
        let encoded = made["stringData"].as_object().expect("data").iter().map(|(k, v)| (k.clone(), STANDARD.encode(v.as_str().unwrap_or_default()).into()));
        stored["data"] = Value::Object(encoded.collect());
        let read = listed(&stored).expect("a token");
        assert_eq!((read.token.as_str(), read.usages.as_str()), ("abcdef.0123456789abcdef", "authentication,signing"));
        let text = table(&[read], 1_777_629_600);
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[0].starts_with("TOKEN                     TTL         EXPIRES"), "{text}");
        assert!(rows[1].starts_with("abcdef.0123456789abcdef   2h          2026-05-01T12:00:00Z   authentication,signing "), "{text}");
    }

    #[test]
    fn times_are_shortened() {
        let cases = [(-5, "<invalid>"), (0, "0s"), (59, "59s"), (7199, "1h"), (86_400 * 364, "364d"), (86_400 * 3649, "9y")];
        for (seconds, expected) in cases {
            assert_eq!(short(seconds), expected);
        }
        let cases = [(119, "119s"), (185, "3m5s"), (3600 * 5, "5h"), (86_400 * 3 + 7200, "3d2h"), (86_400 * 365, "365d"), (86_400 * 731, "2y1d"), (86_400 * 3650, "10y")];
        for (seconds, expected) in cases {
            assert_eq!(human(seconds), expected);
        }
    }
}
