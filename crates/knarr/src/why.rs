//! `knarr why`: asks the cluster of the current context.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use scheduler::why;

/// What to explain, and how.
#[derive(Args)]
pub struct WhyArgs {
    /// pod/NAME or node/NAME
    pub object: String,
    /// Namespace of the pod
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
    /// Kubeconfig [default: that of kubectl]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Forms of the answer.
#[derive(Clone, Copy, ValueEnum)]
pub enum Output {
    Text,
    Json,
    Yaml,
}

/// Answers.
pub fn run(args: &WhyArgs) -> Result<()> {
    let Some((kind, name)) = args.object.split_once('/') else {
        bail!("{:?} names no object: say pod/NAME or node/NAME", args.object);
    };
    let path = args.kubeconfig.clone().unwrap_or_else(crate::up::user_kubeconfig);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let client = client::from_kubeconfig(&path)?;
        let report = match kind {
            "pod" | "pods" | "po" => why::pod(&client, &args.namespace, name).await,
            "node" | "nodes" | "no" => why::node(&client, name).await,
            _ => bail!("{kind:?} cannot be explained yet: say pod/NAME or node/NAME"),
        };
        report.map_err(|error| match error {
            kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
            other => anyhow::Error::new(other),
        })
    });
    let report = report.with_context(|| format!("asking about {}", args.object))?;
    match args.output {
        Output::Text => print!("{}", report.text()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Yaml => print!("{}", serde_saphyr::to_string(&report)?),
    }
    Ok(())
}
