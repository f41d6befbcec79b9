//! What a machine that joins compares with its cluster: the clock, and what must differ from machine to machine.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::Findings;

/// Certificates are good from five minutes before they are made, so that is how far clocks may differ.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(5);

/// How the two ends of a question to the API server see the time.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// What it said.
    pub theirs: Timestamp,
    /// What it was here.
    pub ours: Timestamp,
}

impl Clock {
    /// Of an answer's `Date`, which counts whole seconds.
    pub fn read(date: &str, ours: Timestamp) -> Option<Clock> {
        let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
        Some(Clock { theirs, ours })
    }

    /// What is wrong with the clock here, if they differ by too much.
    pub fn complaint(&self) -> Option<String> {
        let ahead = self.ours.duration_since(self.theirs);
        if ahead.abs() < TOLERANCE {
            return None;
        }
        let (word, why) = if ahead.is_negative() {
            ("behind", "the cluster's certificates would not be valid here yet")
        } else {
            ("ahead of", "the cluster's certificates and tokens would end here too early, and the certificate requests of this machine too")
        };
        let second = |t: Timestamp| t.strftime("%Y-%m-%d %H:%M:%S UTC").to_string();
        Some(format!(
            "this machine's clock is {} {word} the API server's ({} here, {} there): {why}; set it: timedatectl set-ntp true, or start chrony (systemctl enable --now chronyd; chronyc makestep)",
            span(ahead.abs().as_secs()),
            second(self.ours),
            second(self.theirs)
        ))
    }
}

fn span(seconds: i64) -> String {
    match seconds {
        86_400.. => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
        3600.. => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

/// Tells of clocks that differ.
pub fn clock(findings: &mut Findings, clock: Option<Clock>) {
    if let Some(text) = clock.and_then(|c| c.complaint()) {
        findings.error("TimeSkew", text);
    }
}

/// What the kernel knows of this machine and of its neighbours.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// By what the firmware tells machines apart, or else the distribution: `status.nodeInfo.systemUUID`.
    pub uuid: String,
    /// Links and their addresses.
    pub links: Vec<(String, String)>,
    /// `/proc/net/arp`.
    pub neighbours: String,
}

impl Own {
    /// Reads it.
    pub fn read() -> Own {
        let text = |path: &Path| std::fs::read_to_string(path).map(|t| t.trim().to_string()).ok().filter(|t| !t.is_empty());
        let uuid = ["/sys/class/dmi/id/product_uuid", "/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().find_map(|p| text(Path::new(p)));
        let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
        let links = links.filter_map(|link| Some((link.file_name().to_string_lossy().into_owned(), text(&link.path().join("address"))?)));
        Own { uuid: uuid.unwrap_or_default(), links: links.collect(), neighbours: std::fs::read_to_string("/proc/net/arp").unwrap_or_default() }
    }
}

/// Tells of what must be this machine's alone and is another node's too: the identifier of the machine, the address of a
/// link. Of the latter, only neighbours that this machine has talked to are known.
pub fn duplicates(findings: &mut Findings, own: &Own, name: &str, nodes: &[Value]) {
    let others = || nodes.iter().filter(|n| n["metadata"]["name"] != name);
    let same = others().find(|n| !own.uuid.is_empty() && n["status"]["nodeInfo"]["systemUUID"].as_str().is_some_and(|u| u.eq_ignore_ascii_case(&own.uuid)));
    if let Some(node) = same {
        let text = format!(
            "product_uuid {} is also that of the node {}: one of them is a copy of the other's disk or virtual machine, and programs that tell machines apart by it (storage, monitoring) take both for one; \
             give the virtual machine a UUID of its own, or where there is none: rm /etc/machine-id; systemd-machine-id-setup; and reboot",
            own.uuid, node["metadata"]["name"]
        );
        findings.warn("ProductUUID", text);
    }
    for line in own.neighbours.lines().skip(1) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (Some(address), Some(mac)) = (words.first(), words.get(3)) else { continue };
        let unset = mac.chars().all(|c| matches!(c, '0' | ':'));
        let Some((link, _)) = own.links.iter().find(|(link, own)| !unset && link != "lo" && own.eq_ignore_ascii_case(mac)) else { continue };
        let is = |n: &&Value| n["status"]["addresses"].as_array().into_iter().flatten().any(|a| a["address"] == *address);
        let who = others().find(is).map_or_else(|| "a neighbour".to_string(), |n| format!("the node {}", n["metadata"]["name"]));
        let text = format!(
            "the address {mac} of the link {link} is also that of {who} at {address}: switches send what is meant for one to the other; \
             give this machine's link another: ip link set {link} address 02:…, and in the settings of the virtual machine for the next boot"
        );
        findings.error("MACAddress", text);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn clocks_may_differ_by_what_certificates_allow() {
        let at = |date: &str, ours: &str| Clock::read(date, ours.parse().expect("a time")).expect("a date").complaint();
        let date = "Fri, 01 May 2026 10:00:00 GMT";
        assert_eq!(at(date, "2026-05-01T10:04:59Z"), None);
        assert_eq!(at(date, "2026-05-01T09:55:01Z"), None);
        let behind = at(date, "2026-04-29T07:30:00Z").expect("behind");
        for part in ["2 d 2 h behind the API server's", "2026-04-29 07:30:00 UTC here, 2026-05-01 10:00:00 UTC there", "not be valid here yet", "timedatectl set-ntp true", "chrony"] {
            assert!(behind.contains(part), "{part:?} is not in {behind}");
        }
        assert!(at(date, "2026-05-01T11:01:00Z").expect("ahead").contains("1 h 1 min ahead of"));
        assert!(at(date, "2026-05-01T10:06:07Z").expect("ahead").contains("6 min 7 s"));
        assert!(Clock::read("yesterday", Timestamp::UNIX_EPOCH).is_none());
    }

    #[test]
    fn a_copied_machine_is_known_by_its_identifier_and_its_link() {
        let node = |name: &str, uuid: &str, address: &str| json!({"metadata": {"name": name}, "status": {"nodeInfo": {"systemUUID": uuid}, "addresses": [{"type": "InternalIP", "address": address}]}});
        let nodes = [node("n1", "abc-1", "10.0.0.1"), node("n2", "abc-2", "10.0.0.2")];
        let neighbours = "IP address       HW type     Flags       HW address            Mask     Device
10.0.0.1         0x1         0x2         02:00:00:00:00:AA     *        eth0
10.0.0.7         0x1         0x0         00:00:00:00:00:00     *        eth0
10.0.0.9         0x1         0x2         02:00:00:00:00:0c     *        eth0
";
        let links = vec![("lo".to_string(), "00:00:00:00:00:00".to_string()), ("eth0".to_string(), "02:00:00:00:00:aa".to_string()), ("eth1".to_string(), "02:00:00:00:00:0c".to_string())];
        let own = Own { uuid: "ABC-2".into(), links, neighbours: neighbours.into() };
        let mut findings = Findings::default();
        duplicates(&mut findings, &own, "n3", &nodes);
        let texts: Vec<&str> = findings.0.iter().map(|f| f.text.as_str()).collect();
        assert_eq!(findings.0.iter().map(|f| (f.check.as_str(), f.warning)).collect::<Vec<_>>(), [("ProductUUID", true), ("MACAddress", false), ("MACAddress", false)]);
        assert!(texts[0].contains("that of the node \"n2\"") && texts[1].contains("link eth0 is also that of the node \"n1\" at 10.0.0.1") && texts[2].contains("a neighbour at 10.0.0.9"), "{texts:?}");
        // a node that comes back is itself
        let mut findings = Findings::default();
        duplicates(&mut findings, &Own { uuid: "abc-2".into(), ..Own::default() }, "n2", &nodes);
        duplicates(&mut findings, &Own::default(), "n9", &nodes);
        assert!(findings.0.is_empty());
    }
}
