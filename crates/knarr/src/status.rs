//! `knarr status`: what runs, how it is, and how large it is.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::cli::Place;
use crate::files::{self, State};
use crate::layout::Layout;

/// Says it.
pub fn run(place: &Place) -> Result<()> {
    let layout = Layout::new(&place.data_dir, &place.run_dir);
    println!("knarr {} (Kubernetes {})", env!("CARGO_PKG_VERSION"), crate::server::KUBERNETES);
    println!("data       {} ({})", layout.data.display(), size(tree(&layout.data)));
    for (name, dir) in [("store", layout.store()), ("images", layout.images()), ("logs", layout.pod_logs())] {
        println!("  {name:<9}{}", size(tree(&dir)));
    }
    if let Ok(Some(etcd)) = crate::engine::noted(&layout) {
        println!("  objects  in etcd: {}", etcd.etcd_servers.join(","));
    }
    let Some(pid) = files::holder(&layout.lock()) else {
        println!("server     not running: knarr up starts it");
        return Ok(());
    };
    let state = State::read(&layout.state());
    let version = state.as_ref().map_or("", |s| &s.version);
    let role = state.as_ref().map_or("server", |s| &s.role);
    println!("{role:<11}process {pid}, version {version}, memory {}", pss(pid).map_or("unknown".into(), size));
    let shims = shims(&layout);
    println!("shims      {}, private memory {}", shims.len(), size(shims.iter().filter_map(|p| private(*p)).sum()));
    if role != "server" {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(cluster(&layout))
}

async fn cluster(layout: &Layout) -> Result<()> {
    let client = client::from_kubeconfig(&layout.admin())?;
    let request = http::Request::get("/readyz?verbose").body(Vec::new())?;
    match client.request_text(request).await {
        Ok(text) => {
            println!("components");
            text.lines().filter(|l| l.starts_with("[")).for_each(|l| println!("  {l}"));
        }
        Err(error) => println!("components\n  API server does not answer: {error}"),
    }
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("listing nodes")?;
    println!("nodes");
    for node in nodes {
        let status = node.status.clone().unwrap_or_default();
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
        let how = match ready.map(|c| c.status.as_str()) {
            Some("True") => "Ready".to_string(),
            Some(_) => format!("NotReady: {}", ready.and_then(|c| c.message.clone()).unwrap_or_default()),
            None => "has not reported yet".to_string(),
        };
        let address = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP").map_or("", |a| &a.address);
        println!("  {:<24}{address:<16}{how}", node.name_any());
    }
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await.context("listing pods")?;
    let running = pods.iter().filter(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running")).count();
    println!("pods       {running} of {} run", pods.items.len());
    Ok(())
}

/// The shims of this cluster: processes whose command line names its run directory.
fn shims(layout: &Layout) -> Vec<u32> {
    let run = layout.pods_run();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|p| p.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|b| *b == 0);
            words.nth(1) == Some(b"shim") && words.any(|w| w.starts_with(run.as_os_str().as_encoded_bytes()))
        })
        .collect()
}

fn rollup(pid: u32, names: &[&str]) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let value = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    Some(text.lines().filter(|l| names.iter().any(|n| l.starts_with(n))).filter_map(value).sum::<u64>() * 1024)
}

fn pss(pid: u32) -> Option<u64> {
    rollup(pid, &["Pss:"])
}

fn private(pid: u32) -> Option<u64> {
    rollup(pid, &["Private_Clean:", "Private_Dirty:"])
}

fn tree(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    if !meta.is_dir() {
        return meta.len();
    }
    fs::read_dir(path).into_iter().flatten().flatten().map(|e| tree(&e.path())).sum()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_048_576 => format!("{} KiB", bytes >> 10),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", bytes as f64 / 1048576.0),
        _ => format!("{:.1} GiB", bytes as f64 / 1073741824.0),
    }
}
