//! Gets and lists.
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::client::{Connection, Target, Times};
use crate::writes::NAMESPACE;
use crate::{Run, figure, memory, objects};

/// The forms in which a list is asked for.
const FORMS: [(&str, &str); 3] = [
    ("JSON", "application/json"),
    ("protobuf", "application/vnd.kubernetes.protobuf"),
    ("Table", "application/json;as=Table;v=v1;g=meta.k8s.io"),
];
/// Lists of one after the other, and how many connections list at once.
const LISTS: usize = 20;
const AT_ONCE: usize = 16;

/// Requests on these connections until the time is up, each made for (connection, turn): how many a second, and how long they took.
pub async fn hammer<F>(connections: Vec<Connection>, duration: Duration, request: F) -> Result<(f64, Times)>
where
    F: Fn(usize, usize) -> Vec<u8> + Clone + Send + 'static,
{
    let begin = Instant::now();
    let mut tasks = Vec::new();
    for (who, mut connection) in connections.into_iter().enumerate() {
        let request = request.clone();
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            while begin.elapsed() < duration {
                let bytes = request(who, times.len());
                let sent = Instant::now();
                let (code, _) = connection.send(&bytes).await?;
                ensure!(code / 100 == 2, "a request was answered with {code}");
                times.push(sent.elapsed());
            }
            Ok(times)
        }));
    }
    let mut all = Times::default();
    for task in tasks {
        all.0.extend(task.await??);
    }
    Ok((all.0.len() as f64 / begin.elapsed().as_secs_f64(), all))
}

/// A number that looks like chance and is the same every time.
pub fn scattered(who: usize, turn: usize, below: usize) -> usize {
    let mixed = (who as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (turn as u64 + 1).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    (mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93) >> 32) as usize % below
}

/// Pods by name.
pub async fn get(target: &Target, run: &Run) -> Result<()> {
    let (asked, pods) = (target.clone(), run.pods);
    let request = move |who, turn| {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", objects::name(scattered(who, turn, pods)));
        asked.request("GET", &path, &[("accept", "application/json")], b"")
    };
    let connections = target.connections(run.clients).await?;
    let before = memory::processor(&run.pid)?;
    let (rate, mut times) = hammer(connections, run.duration(), request).await?;
    let each = memory::each(&run.pid, before, times.0.len())?;
    figure("get", format!("{rate:.0} /s, p99 {:.1} ms{each}", times.quantile(0.99)));
    Ok(())
}

/// The whole namespace, in three forms, one at a time and many at once.
pub async fn lists(target: &Target, run: &Run) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    for (name, accept) in FORMS.into_iter().filter(|(name, _)| run.wants(&format!("list {name}"))) {
        let request = target.request("GET", &path, &[("accept", accept)], b"");
        let mut connection = target.connect().await?;
        let mut times = Times::default();
        let mut size = 0;
        for _ in 0..LISTS {
            let begin = Instant::now();
            let (code, bytes) = connection.send(&request).await?;
            ensure!(code == 200, "the list was answered with {code}");
            times.0.push(begin.elapsed());
            size = bytes;
        }
        let first = times.0[0].as_secs_f64() * 1e3;
        figure(&format!("list {name}"), format!("{:.1} ms ({:.1} MB; the first {first:.1} ms)", times.quantile(0.5), size as f64 / 1e6));
    }
    if run.wants("lists") {
        let request = target.request("GET", &path, &[("accept", FORMS[0].1)], b"");
        let (rate, _) = hammer(target.connections(AT_ONCE).await?, run.duration(), move |_, _| request.clone()).await?;
        figure("lists at once", format!("{rate:.0} /s"));
    }
    Ok(())
}
