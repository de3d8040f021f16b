//! `eagle-bench origin`: the registry of a local cluster, a process of its own so that its work is not
//! counted as Eagle's nor as the clients'.

use std::{io::Write as _, net::SocketAddr, path::Path};

use anyhow::{Context as _, Result, ensure};
use eagle_core::Digest;
use eagle_registry::{
    EmbeddedRegistry,
    embedded::{EmbeddedConfig, GeneratedImage},
};
use serde::{Deserialize, Serialize};

use crate::cli::OriginArgs;

const REPOSITORY: &str = "bench/image";
/// The same bytes in every run: of the first image, and of each further one the next number.
const SEED: u64 = 1;

/// The tag of an image, counted from 0.
pub(crate) fn tag(image: u32) -> String {
    if image == 0 { "latest".to_owned() } else { format!("image-{image}") }
}

/// What the origin says of itself once it listens.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct OriginReady {
    pub(crate) listen: SocketAddr,
    pub(crate) repository: String,
    /// Of the first image.
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Layer,
}

/// A layer of its image, or its configuration.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Serves a generated image until the process is ended.
///
/// # Errors
/// When it cannot listen, the image cannot be, or the ready file not be written.
pub(crate) async fn run(args: OriginArgs) -> Result<()> {
    let image = |number: u32| -> Result<GeneratedImage> {
        Ok(GeneratedImage {
            repository: REPOSITORY.parse()?,
            tag: tag(number).parse()?,
            layers: args.layers.iter().map(|size| size.0).collect(),
            seed: SEED + u64::from(number),
            config_size: usize::try_from(args.config_size.0)?,
        })
    };
    let images = (0..args.images.max(1)).map(image).collect::<Result<Vec<_>>>()?;
    let any_port = SocketAddr::new(args.address, 0);
    let registry = EmbeddedRegistry::start(EmbeddedConfig::new(any_port, images)).await?;
    let published = registry.images().first().context("the registry has no image")?;
    let layers: Vec<_> =
        published.layers.iter().map(|layer| Layer { digest: layer.digest, size: layer.size }).collect();
    for (layer, wanted) in layers.iter().zip(&args.layers) {
        ensure!(
            layer.size == wanted.0,
            "a layer of {} bytes cannot be made (the nearest has {}): layers are tar files, multiples of 512 bytes",
            wanted.0,
            layer.size
        );
    }
    let ready = OriginReady {
        listen: registry.local_addr(),
        repository: REPOSITORY.to_owned(),
        layers,
        config: Layer { digest: published.config.digest, size: published.config.size },
    };
    write_whole(&args.ready_file, &serde_json::to_vec(&ready)?)
        .with_context(|| format!("{} cannot be written", args.ready_file.display()))?;
    std::future::pending().await
}

/// Writes beside and renames: who waits for the file never reads half of it.
fn write_whole(path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(content)?;
    file.persist(path)?;
    Ok(())
}
