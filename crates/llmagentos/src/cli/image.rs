//! `llmagentos image`: the images on this node.
//!
//! Works on the image store itself, with or without a server: the store's own locks keep both apart.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use runtime::image::{ArchiveSource, ImageStore, SingleBinaryImage, build_single_binary_image};
use runtime::service::{ImageService, RegistryAuth};

use super::output::say;
use crate::boot;
use crate::cli::status::Output;
use crate::config::Config;

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  llmagentos image pull docker.io/library/nginx:1.27\n  llmagentos image list"
)]
pub struct ImageArgs {
    #[command(subcommand)]
    verb: ImageVerb,
}

#[derive(Subcommand, Debug)]
enum ImageVerb {
    /// Load images from an archive that 'docker save' or an OCI tool wrote
    #[command(
        after_help = "Example:\n  docker save my-app:1.0 | llmagentos image load\n  llmagentos image load --input my-app.tar --name registry.example/my-app:1.0"
    )]
    Load {
        /// The archive; standard input if not given
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Name for the image, instead of the names in the archive
        #[arg(long, value_name = "IMAGE")]
        name: Option<String>,
    },
    /// List the images on this node
    #[command(after_help = "Example:\n  llmagentos image list")]
    List {
        /// Form of the answer
        #[arg(short, long, value_enum, default_value_t = Output::Text)]
        output: Output,
    },
    /// Pull an image from its registry
    #[command(after_help = "Example:\n  llmagentos image pull gcr.io/google-samples/hello-app:1.0")]
    Pull {
        image: String,
        /// Name for the registry; the password is read from standard input
        #[arg(long, value_name = "NAME")]
        username: Option<String>,
        /// Print only errors
        #[arg(short, long)]
        quiet: bool,
    },
    /// Give an image another name
    #[command(
        after_help = "Example:\n  llmagentos image tag nginx:1.27 registry.example/web:stable"
    )]
    Tag { image: String, new_name: String },
    /// Remove an image's name, and the image with its last one
    #[command(after_help = "Example:\n  llmagentos image remove nginx:1.27")]
    Remove {
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Make an image of one static program
    #[command(
        after_help = "Example:\n  llmagentos image build --binary target/release/hello-app --expose 8080 localhost/hello-app:1.0"
    )]
    Build {
        /// The program; it becomes the image's entry point
        #[arg(long, value_name = "FILE")]
        binary: PathBuf,
        /// TCP port that it listens on
        #[arg(long, value_name = "PORT")]
        expose: Option<u16>,
        image: String,
    },
}

pub fn run(config_dir: &Path, args: ImageArgs) -> anyhow::Result<ExitCode> {
    let config = Config::load(config_dir)?;
    let store = boot::open_images(&config)?;
    match args.verb {
        ImageVerb::Load { input, name } => load(&store, input, name.as_deref())?,
        ImageVerb::List { output } => list(&store, output)?,
        ImageVerb::Pull {
            image,
            username,
            quiet,
        } => pull(&store, &image, username, quiet)?,
        ImageVerb::Tag { image, new_name } => store.tag(&image, &new_name)?,
        ImageVerb::Remove { images } => {
            for image in images {
                if store.image(&image)?.is_none() {
                    bail!("image {image} is not here; 'llmagentos image list' shows what is");
                }
                store.remove_image(&image)?;
                say!("Removed {image}");
            }
        }
        ImageVerb::Build {
            binary,
            expose,
            image,
        } => build(&store, binary, expose, &image)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn load(store: &ImageStore, input: Option<PathBuf>, name: Option<&str>) -> anyhow::Result<()> {
    let source = match input {
        Some(path) => ArchiveSource::File(path),
        None => ArchiveSource::Reader(Box::new(std::io::stdin())),
    };
    for image in store.load_archive(source, name)? {
        let names = if image.references.is_empty() {
            image.id
        } else {
            image.references.join(", ")
        };
        say!("Loaded {names}");
    }
    Ok(())
}

fn list(store: &ImageStore, output: Output) -> anyhow::Result<()> {
    let images = store.images()?;
    match output {
        Output::Json => {
            let list: Vec<_> = images
                .iter()
                .map(|image| serde_json::json!({"id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests, "sizeBytes": image.size_bytes}))
                .collect();
            say!("{}", serde_json::Value::Array(list));
        }
        Output::Text => {
            say!("{:<60} {:<14} {:>10}", "NAME", "ID", "SIZE");
            for image in images {
                let short_id = image
                    .id
                    .strip_prefix("sha256:")
                    .unwrap_or(&image.id)
                    .chars()
                    .take(12)
                    .collect::<String>();
                let names = if image.repo_tags.is_empty() {
                    image.repo_digests
                } else {
                    image.repo_tags
                };
                let first = names.first().map_or("<none>", String::as_str).to_owned();
                for name in std::iter::once(first).chain(names.into_iter().skip(1)) {
                    say!(
                        "{name:<60} {short_id:<14} {:>7.1} MB",
                        image.size_bytes as f64 / 1e6
                    );
                }
            }
        }
    }
    Ok(())
}

fn pull(
    store: &ImageStore,
    image: &str,
    username: Option<String>,
    quiet: bool,
) -> anyhow::Result<()> {
    let auth = username.map(password_for).transpose()?;
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the async runtime")?;
    let bar = indicatif::ProgressBar::new_spinner().with_message(format!("pulling {image}"));
    if quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    let result = runtime.block_on(store.pull(image, auth));
    bar.finish_and_clear();
    let result = result?;
    for warning in &result.warnings {
        eprintln!("warning: {warning}");
    }
    if !quiet {
        say!(
            "Pulled {image} ({:.1} MB) as {}",
            result.size_bytes as f64 / 1e6,
            result.image_id
        );
    }
    Ok(())
}

fn password_for(username: String) -> anyhow::Result<RegistryAuth> {
    let mut password = String::new();
    std::io::stdin()
        .read_to_string(&mut password)
        .context("read the password from standard input")?;
    Ok(RegistryAuth {
        username,
        password: password.trim_end_matches(['\r', '\n']).to_owned(),
        ..RegistryAuth::default()
    })
}

fn build(
    store: &ImageStore,
    binary: PathBuf,
    exposed_tcp_port: Option<u16>,
    reference: &str,
) -> anyhow::Result<()> {
    let Some(name) = binary.file_name().and_then(|name| name.to_str()) else {
        bail!("--binary {} names no file", binary.display());
    };
    let image = SingleBinaryImage {
        entrypoint: vec![format!("/{name}")],
        binary: binary.clone(),
        reference: reference.to_owned(),
        cmd: Vec::new(),
        env: Vec::new(),
        exposed_tcp_port,
        user: "65532:65532".to_owned(),
    };
    let archive = std::env::temp_dir().join(format!("llmagentos-image-{}.tar", std::process::id()));
    let built = build_single_binary_image(&image, &archive)
        .map_err(anyhow::Error::from)
        .and_then(|_| load(store, Some(archive.clone()), None));
    std::fs::remove_file(&archive).ok();
    built
}
