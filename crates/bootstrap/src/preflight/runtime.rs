//! A container runtime that somebody named: knarr's nodes run containers themselves, so it is told what becomes of it.

use std::time::Duration;

use proto::cri::{CgroupDriver, RuntimeConfigRequest, RuntimeConfigResponse};

use super::Findings;
use crate::config::CRI_SOCKET;

/// How long another runtime may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a runtime said of itself.
#[derive(Debug, Clone, PartialEq)]
enum Answer {
    Driver(&'static str),
    Nothing(String),
}

/// Tells what a runtime that is not knarr's means here. `driver` is the kubelets' by the cluster's configuration.
pub async fn check(findings: &mut Findings, socket: &str, driver: &str) {
    if !socket.is_empty() && socket != CRI_SOCKET {
        told(findings, socket, driver, &asked(socket).await);
    }
}

fn told(findings: &mut Findings, socket: &str, driver: &str, answer: &Answer) {
    let text = format!(
        "the container runtime at {socket} is not used: knarr's node runs containers itself, with the cgroup driver cgroupfs; \
         leave --cri-socket (nodeRegistration.criSocket) out, and stop that runtime if nothing else needs it"
    );
    findings.warn("CRI", text);
    match answer {
        Answer::Nothing(why) => findings.warn("ContainerRuntimeVersion", format!("container runtime is not running: {socket}: {why}; another kubelet in the place of knarr's, with the files below /var/lib/kubelet, would need it: start it, or correct the socket's path")),
        Answer::Driver(theirs) if *theirs != driver => {
            let text = format!(
                "the runtime at {socket} makes control groups by {theirs}, and cgroupDriver of the KubeletConfiguration is {driver}: another kubelet in the place of knarr's would not start its pods; \
                 set SystemdCgroup of containerd (cgroup_manager of CRI-O) so that both are the same, or cgroupDriver: {theirs}"
            );
            findings.warn("CgroupDriver", text);
        }
        Answer::Driver(_) => {}
    }
}

async fn asked(socket: &str) -> Answer {
    match tokio::time::timeout(PATIENCE, ask(socket)).await {
        Ok(Ok(driver)) => Answer::Driver(driver),
        Ok(Err(why)) => Answer::Nothing(why),
        Err(_) => Answer::Nothing(format!("no answer within {PATIENCE:?}")),
    }
}

async fn ask(socket: &str) -> Result<&'static str, String> {
    let path = socket.strip_prefix("unix://").unwrap_or(socket);
    let stream = tokio::net::UnixStream::connect(path).await.map_err(|e| e.to_string())?;
    let (channel, connection) = proto::grpc::connect(stream, "http://localhost", proto::grpc::Settings::default()).await.map_err(|e| e.to_string())?;
    let call = channel.unary::<_, RuntimeConfigResponse>("/runtime.v1.RuntimeService/RuntimeConfig", &RuntimeConfigRequest {}, PATIENCE);
    let answer = tokio::select! {
        answer = call => answer.map_err(|e| e.to_string())?,
        () = connection => return Err("it has hung up".into()),
    };
    match CgroupDriver::try_from(answer.linux.unwrap_or_default().cgroup_driver) {
        Ok(CgroupDriver::Cgroupfs) => Ok("cgroupfs"),
        _ => Ok("systemd"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_of_somebody_else_is_told_of() {
        let told = |answer: Answer| {
            let mut findings = Findings::default();
            super::told(&mut findings, "unix:///run/containerd/containerd.sock", "systemd", &answer);
            assert!(findings.0.iter().all(|f| f.warning) && findings.0[0].text.contains("/run/containerd/containerd.sock is not used"));
            findings.0.into_iter().skip(1).map(|f| (f.check, f.text)).collect::<Vec<_>>()
        };
        assert!(told(Answer::Driver("systemd")).is_empty());
        let (check, text) = told(Answer::Driver("cgroupfs")).remove(0);
        assert!(check == "CgroupDriver" && text.contains("by cgroupfs") && text.contains("is systemd"), "{text}");
        let (check, text) = told(Answer::Nothing("No such file or directory".into())).remove(0);
        assert!(check == "ContainerRuntimeVersion" && text.contains("is not running: unix:///run/containerd/containerd.sock: No such file"), "{text}");
    }

    #[tokio::test]
    async fn knarrs_own_is_not_asked() {
        let mut findings = Findings::default();
        check(&mut findings, CRI_SOCKET, "systemd").await;
        check(&mut findings, "", "systemd").await;
        assert!(findings.0.is_empty());
        let dir = tempfile::tempdir().expect("a directory");
        check(&mut findings, &format!("unix://{}/none.sock", dir.path().display()), "systemd").await;
        assert_eq!(findings.0.len(), 2);
    }
}
