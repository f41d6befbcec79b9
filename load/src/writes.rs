//! What is stored: creates and patches that are durable when they are answered.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use crate::client::{Target, Times};
use crate::reads::{hammer, scattered};
use crate::{Run, figure, memory, objects};

/// Where the pods are that are read.
pub const NAMESPACE: &str = "load";
/// How often as many pods are created elsewhere first.
const ROUNDS: usize = 3;
/// Nodes' names that pods have.
const NODES: usize = 100;

/// A namespace with the account that pods need.
async fn namespace(target: &Target, name: &str) -> Result<()> {
    target.ask("POST", "/api/v1/namespaces", Some(&json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}}))).await?;
    let account = json!({"kind": "ServiceAccount", "apiVersion": "v1", "metadata": {"name": "default"}});
    target.ask("POST", &format!("/api/v1/namespaces/{name}/serviceaccounts"), Some(&account)).await?;
    Ok(())
}

/// Makes what [`create`] needs, and an empty namespace.
pub async fn prepare(target: &Target) -> Result<()> {
    for name in (0..ROUNDS).map(round).chain([NAMESPACE.to_string()]) {
        namespace(target, &name).await?;
        clear(target, &name).await?;
    }
    Ok(())
}

fn round(round: usize) -> String {
    format!("{NAMESPACE}-{round}")
}

async fn clear(target: &Target, namespace: &str) -> Result<()> {
    target.ask("DELETE", &format!("/api/v1/namespaces/{namespace}/pods?gracePeriodSeconds=0"), None).await?;
    Ok(())
}

/// Creates pods by one request each: how many a second, and how long each took.
async fn pods(target: &Target, clients: usize, namespace: &str, count: usize, nodes: usize) -> Result<(f64, Times)> {
    let next = Arc::new(AtomicUsize::new(0));
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let mut tasks = Vec::new();
    let connections = target.connections(clients).await?;
    let begin = Instant::now();
    for mut connection in connections {
        let (next, target, path) = (next.clone(), target.clone(), path.clone());
        tasks.push(tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= count {
                    return Ok(times);
                }
                let pod = objects::pod(&objects::name(i), &format!("node-{}", i % nodes)).to_string();
                let request = target.request("POST", &path, &[("content-type", "application/json"), ("accept", "application/json")], pod.as_bytes());
                let sent = Instant::now();
                let (code, _) = connection.send(&request).await?;
                ensure!(code == 201, "a create was answered with {code}");
                times.push(sent.elapsed());
            }
        }));
    }
    let mut all = Times::default();
    for task in tasks {
        all.0.extend(task.await??);
    }
    Ok((count as f64 / begin.elapsed().as_secs_f64(), all))
}

/// Creates the pods in some namespaces, of which the last is the one that stays.
pub async fn create(target: &Target, run: &Run, fixed: bool) -> Result<()> {
    let (mut rates, mut times) = (Vec::new(), Times::default());
    let rounds = if run.wants("create") { ROUNDS } else { 0 };
    for i in 0..rounds {
        let (rate, some) = pods(target, run.clients, &round(i), run.pods, NODES).await?;
        rates.push(rate);
        times.0.extend(some.0);
        if !fixed {
            clear(target, &round(i)).await?;
        }
    }
    let before = memory::processor(&run.pid)?;
    let (rate, some) = pods(target, run.clients, NAMESPACE, run.pods, NODES).await?;
    let each = memory::each(&run.pid, before, run.pods)?;
    rates.push(rate);
    times.0.extend(some.0);
    rates.sort_by(f64::total_cmp);
    if run.wants("create") {
        figure("create", format!("{:.0} /s, p99 {:.1} ms{each}", rates[rates.len() / 2], times.quantile(0.99)));
    }
    Ok(())
}

/// The request that changes one annotation of a pod.
pub fn patch_request(target: &Target, pod: usize, value: usize) -> Vec<u8> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", objects::name(pod));
    let body = json!({"metadata": {"annotations": {"load": value.to_string()}}}).to_string();
    let headers = [("content-type", "application/merge-patch+json"), ("accept", "application/json")];
    target.request("PATCH", &path, &headers, body.as_bytes())
}

/// Merge patches of single pods.
pub async fn patch(target: &Target, run: &Run) -> Result<()> {
    let (asked, pods) = (target.clone(), run.pods);
    let request = move |who, turn| patch_request(&asked, scattered(who, turn, pods), who * 1_000_000 + turn);
    let connections = target.connections(run.clients).await?;
    let before = memory::processor(&run.pid)?;
    let (rate, mut times) = hammer(connections, run.duration(), request).await?;
    let each = memory::each(&run.pid, before, times.0.len())?;
    figure("patch", format!("{rate:.0} /s, p99 {:.1} ms{each}", times.quantile(0.99)));
    Ok(())
}

/// Stores a large cluster's pods and nodes, and tells the memory as it grows.
pub async fn fill(target: &Target, run: &Run, count: usize, nodes: usize) -> Result<()> {
    let before = memory::of(&run.pid)?;
    for i in 0..nodes {
        target.ask("POST", "/api/v1/nodes", Some(&objects::node(&format!("big-{i}")))).await?;
    }
    let steps = 10;
    for step in 0..steps {
        let name = format!("{NAMESPACE}-big-{step}");
        namespace(target, &name).await?;
        pods(target, run.clients, &name, count / steps, nodes.max(1)).await?;
        if let (Some(before), Some(now)) = (before, memory::of(&run.pid)?) {
            let stored = count / steps * (step + 1);
            figure(&format!("{stored} more pods, {nodes} nodes"), format!("{:.0} MB, {:.1} KB a pod", now as f64 / 1e6, (now as f64 - before as f64) / stored as f64 / 1e3));
        }
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    if let Some(now) = memory::of(&run.pid)? {
        figure("stored", format!("{:.0} MB", now as f64 / 1e6));
    }
    Ok(())
}
