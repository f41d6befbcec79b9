//! A development server: every built-in resource by the generic strategy, in memory, open to holders of the client
//! certificate in the kubeconfig that it writes. `cargo run -p apiserver --example serve -- 127.0.0.1:7443 /tmp/kubeconfig`
use std::sync::Arc;

use apiserver::authz::AlwaysAllow;
use apiserver::{AuthnRequest, Authenticator, Builder, Config, ServingTls, UserInfo};
use pki::{Ca, CertRequest, Credentials, Kubeconfig, Lifetime, Roots, Usage};
use tokio_util::sync::CancellationToken;

struct Certificates(Roots);

#[async_trait::async_trait]
impl Authenticator for Certificates {
    async fn authenticate(&self, request: &AuthnRequest<'_>) -> Result<Option<UserInfo>, String> {
        let Some(peer) = request.peer.filter(|p| !p.certs.is_empty()) else { return Ok(None) };
        let peer = self.0.verify_client(&peer.certs, request.now).map_err(|e| e.to_string())?;
        Ok(Some(UserInfo { name: peer.cn, groups: peer.orgs, ..UserInfo::default() }))
    }
}

type Anything = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:7443".into());
    let kubeconfig = args.next().unwrap_or_else(|| "kubeconfig".into());
    let now = jiff::Timestamp::now();
    let day = Lifetime::from_hours(24);
    let ca = Ca::new("kubernetes", now, day)?;
    let request = |cn: &str, orgs: &[&str], sans: &[&str], usages| CertRequest {
        cn: cn.into(),
        orgs: orgs.iter().map(|o| o.to_string()).collect(),
        sans: sans.iter().map(|s| s.to_string()).collect(),
        usages,
        lifetime: day,
    };
    let serving = ca.issue(&request("kube-apiserver", &[], &["127.0.0.1", "localhost"], vec![Usage::Server]), now)?;
    let admin = ca.issue(&request("kubernetes-admin", &["system:masters"], &[], vec![Usage::Client]), now)?;
    let text = pki::kubeconfig(&Kubeconfig {
        cluster: "dev".into(),
        context: "dev".into(),
        user: "dev".into(),
        server: format!("https://{address}"),
        ca_pem: ca.cert_pem().into(),
        credentials: Credentials::Certificate { cert_pem: admin.cert_pem, key_pem: admin.key_pem },
    })?;
    std::fs::write(&kubeconfig, text)?;

    let mut builder = Builder::new(Config::default(), store::memory::new())?;
    builder.parts.authorizer(Arc::new(AlwaysAllow));
    builder.parts.authenticator(Arc::new(Certificates(Roots::from_pem(ca.cert_pem())?)));
    let server = builder.build()?;
    let cancel = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind(&address).await?;
    let tls = ServingTls::new(&serving.cert_pem, &serving.key_pem)?;
    eprintln!("KUBECONFIG={kubeconfig}");
    tokio::select! {
        () = server.run(cancel.clone()) => {}
        () = server.clone().listen(listener, tls, cancel.clone()) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    Ok(())
}
