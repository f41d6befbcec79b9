//! `knarr image`: the images of this node, whether a server runs or not.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use crate::layout::Layout;

/// What to do with images.
#[derive(Subcommand)]
pub enum ImageCommand {
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Load images from an archive, as `docker save` or an OCI layout in a tar; - is standard input
    Import(ImportArgs),
    /// List images
    Ls(Where),
    /// Remove images, or names of them
    Rm(RmArgs),
}

#[derive(Args)]
pub struct Where {
    /// Directory for everything that lasts
    #[arg(long, value_name = "DIR", default_value = "/var/lib/knarr")]
    data_dir: PathBuf,
}

#[derive(Args)]
pub struct PullArgs {
    /// Name, as nginx or registry.example:5000/team/app:1.2
    name: String,
    #[command(flatten)]
    place: Where,
    /// User and password for the registry, with a colon between them
    #[arg(long, value_name = "USER:PASSWORD")]
    creds: Option<String>,
    /// The registry is reached without TLS
    #[arg(long)]
    plain_http: bool,
    /// CA bundle in PEM that the registry may be signed by
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
}

#[derive(Args)]
pub struct ImportArgs {
    /// The archive
    file: PathBuf,
    /// Name for an archive that has none
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    place: Where,
}

#[derive(Args)]
pub struct RmArgs {
    /// Names or identifiers
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    place: Where,
}

fn open(place: &Where) -> Result<image::Store> {
    crate::preflight::root()?;
    crate::preflight::data_dir(&place.data_dir)?;
    let layout = Layout::new(&place.data_dir, Path::new("/run/knarr"));
    crate::files::public_dir(&layout.data)?;
    crate::preflight::mark(&layout)?;
    Ok(image::Store::open(layout.images())?)
}

/// Does it.
pub fn run(command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Pull(args) => pull(&args),
        ImageCommand::Import(args) => {
            let store = open(&args.place)?;
            let input: Box<dyn Read + Send> = if args.file.as_os_str() == "-" {
                Box::new(std::io::stdin())
            } else {
                Box::new(File::open(&args.file).with_context(|| format!("cannot open {}", args.file.display()))?)
            };
            let images = store.import(input, args.name.as_deref()).with_context(|| format!("importing {}", args.file.display()))?;
            for image in images {
                println!("imported {} ({})", names(&image.tags, &image.id), size(image.size));
            }
            Ok(())
        }
        ImageCommand::Ls(place) => {
            let store = open(&place)?;
            println!("{:<60} {:<20} {:>10}", "IMAGE", "ID", "SIZE");
            for image in store.list()? {
                let id = image.id.trim_start_matches("sha256:");
                let id = &id[..id.len().min(12)];
                let names = if image.tags.is_empty() { vec!["<none>".to_string()] } else { image.tags.clone() };
                for name in names {
                    println!("{name:<60} {id:<20} {:>10}", size(image.size));
                }
            }
            Ok(())
        }
        ImageCommand::Rm(args) => {
            let store = open(&args.place)?;
            for name in &args.names {
                let Some(tags) = store.remove(name)? else { bail!("there is no image {name:?}: knarr image ls lists them") };
                println!("removed {}", names(&tags, name));
            }
            Ok(())
        }
    }
}

/// An image's names, or whatever it is known by.
fn names(tags: &[String], otherwise: &str) -> String {
    if tags.is_empty() { otherwise.to_string() } else { tags.join(", ") }
}

fn pull(args: &PullArgs) -> Result<()> {
    let store = open(&args.place)?;
    let name = image::normalize(&args.name)?;
    let auth = match &args.creds {
        None => image::Auth::Anonymous,
        Some(creds) => {
            let (user, password) = creds.split_once(':').context("--creds is USER:PASSWORD, with a colon between them")?;
            image::Auth::Basic { user: user.into(), password: password.into() }
        }
    };
    let mut options = image::Options::default();
    if args.plain_http {
        // The part before the first slash of a normalised name is the registry.
        options.plain_http.extend(name.split('/').next().map(str::to_string));
    }
    if let Some(ca) = &args.ca {
        options.extra_ca_pem.push(std::fs::read(ca).with_context(|| format!("cannot read {}", ca.display()))?);
    }
    install_crypto();
    let spinner = crate::progress::spinner(&format!("pulling {}", args.name));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let image = runtime.block_on(store.pull(&args.name, &auth, &options, |_| {}))?;
    if let Some(bar) = spinner {
        bar.finish_and_clear();
    }
    println!("pulled {} ({})", args.name, size(image.size));
    Ok(())
}

/// Names the one crypto provider of this process, for libraries that ask for it.
pub fn install_crypto() {
    // It fails only when it was named before, and then it is the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
