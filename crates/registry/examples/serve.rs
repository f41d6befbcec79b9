//! A development server: the whole API server with the registry, and nothing that acts on what is in it. In memory, or
//! durably in a directory; its holder of rights is the client certificate in the kubeconfig that it writes.
//! `cargo run -p registry --example serve -- 127.0.0.1:7443 /tmp/kubeconfig [DIRECTORY]`
use std::sync::Arc;

use apiserver::{Builder, Config, ServingTls};
use pki::{Ca, CertRequest, Credentials, Kubeconfig, Lifetime, Usage};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Anything = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Anything> {
    let mut args = std::env::args().skip(1);
    let address: std::net::SocketAddr = args.next().unwrap_or_else(|| "127.0.0.1:7443".into()).parse()?;
    let kubeconfig = args.next().unwrap_or_else(|| "kubeconfig".into());
    let store = match args.next() {
        Some(directory) => store::embedded::open(directory, store::embedded::Options::default())?,
        None => store::memory::new(),
    };
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
    let host = address.ip().to_string();
    let serving = ca.issue(&request("kube-apiserver", &[], &[&host, "localhost"], vec![Usage::Server]), now)?;
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

    let mut builder = Builder::new(Config::default(), store)?;
    registry::install(&mut builder, registry::Config {
        secure_port: address.port(),
        ..registry::Config::new(ca.cert_pem(), Arc::new(pki::jwt::Signer::from_pem(&pki::jwt::new_key_pem()?)?), "192.0.2.1".parse()?)
    })?;
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
