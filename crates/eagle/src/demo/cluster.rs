//! The parts of the demonstration, each with real sockets on free ports of this machine.

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, Result};
use eagle_cluster::{MemberTls, Membership};
use eagle_core::{
    Topology,
    units::{FreeSpace, Rate, Size},
    wire::control::Encryption,
};
use eagle_proxy::{Proxy, ProxyConfig, ProxyDeps};
use eagle_registry::{
    EmbeddedRegistry, ImageReference, Registries, RegistryConfig,
    embedded::{EmbeddedConfig, GeneratedImage},
};
use eagle_seeder::{Seeder, SeederConfig, SeederDeps};
use eagle_tracker::{Tracker, TrackerConfig};
use futures::future::{join_all, try_join_all};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::pull::Target;
use crate::{
    admin::Admin,
    cli::{DemoArgs, EncryptionArg},
    exit::Exit,
};

const REPOSITORY: &str = "demo/app";
const TAG: &str = "latest";
/// Share of the first layer in per cent: images are a large base with small layers on top.
const FIRST_LAYER: u64 = 70;
/// Whatever the image, its blobs fit: nothing of the demonstration should depend on eviction.
const CACHE: Size = Size(1 << 40);
/// The demonstration removes what it wrote: a disk that is nearly full for the rest of the time does not stop it.
const MIN_FREE: FreeSpace = FreeSpace::Bytes(16 << 20);

/// A cluster on this machine.
pub(super) struct Cluster {
    pub(super) origin: Option<EmbeddedRegistry>,
    pub(super) target: Target,
    pub(super) proxies: Vec<Proxy>,
    pub(super) seeder: Seeder,
    tracker: Tracker,
    /// Admin addresses of all parts, where somebody may look at them.
    admins: Vec<Admin>,
    shutdown: CancellationToken,
}

/// The metrics of parts, until their admin addresses are there.
struct Metrics {
    wanted: bool,
    admins: Vec<Admin>,
    shutdown: CancellationToken,
}

impl Metrics {
    /// Opens an admin address with these metrics.
    async fn open(&mut self, role: &'static str, metrics: Registry) -> Result<()> {
        if self.wanted {
            let admin = Admin::start(role, any_port(), self.shutdown.clone()).await?;
            admin.state().running(metrics, || serde_json::Value::Null);
            self.admins.push(admin);
        }
        Ok(())
    }
}

const fn any_port() -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0)
}

fn url(address: SocketAddr) -> Result<Url> {
    Ok(format!("http://{address}").parse()?)
}

/// Sizes of the layers: the first far larger than the others, which grow slowly.
fn layer_sizes(total: u64, layers: u64) -> Vec<u64> {
    if layers == 1 {
        return vec![total];
    }
    let first = total * FIRST_LAYER / 100;
    let rest = total - first;
    let weights = (layers - 1) * layers / 2;
    std::iter::once(first).chain((1..layers).map(|weight| rest * weight / weights)).collect()
}

/// Where the image comes from: the embedded registry, or the one that was named.
async fn origin(args: &DemoArgs) -> Result<(Option<EmbeddedRegistry>, RegistryConfig, Target)> {
    let (Some(url), Some(image)) = (&args.origin, &args.image) else {
        let image = GeneratedImage {
            repository: REPOSITORY.parse()?,
            tag: TAG.parse()?,
            layers: layer_sizes(args.size.0, args.layers.into()),
            // Any seed will do; the same one makes every run the same.
            seed: 1,
            config_size: 0,
        };
        let origin = EmbeddedRegistry::start(EmbeddedConfig::new(any_port(), vec![image])).await?;
        let config = origin.client_config();
        let target =
            Target { registry: config.name.to_string(), repository: REPOSITORY.to_owned(), reference: TAG.to_owned() };
        return Ok((Some(origin), config, target));
    };
    let reference = reference(url, image).map_err(|problem| Exit::usage(format_args!("--image {image}: {problem}")))?;
    let config = RegistryConfig { url: Some(url.clone()), ..RegistryConfig::new(reference.registry.clone()) };
    config.check().map_err(|problem| Exit::usage(format_args!("--origin: {problem}")))?;
    let target = Target {
        registry: reference.registry.to_string(),
        repository: reference.repository.to_string(),
        reference: reference.reference.to_string(),
    };
    Ok((None, config, target))
}

/// What `image` means at this registry: short names mean Docker Hub's only there.
fn reference(origin: &Url, image: &str) -> Result<ImageReference, String> {
    let host = origin.host_str().ok_or("--origin has no host")?;
    let image = if host.ends_with("docker.io") {
        image.to_owned()
    } else {
        let name = origin.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        if image.starts_with(&format!("{name}/")) { image.to_owned() } else { format!("{name}/{image}") }
    };
    image.parse::<ImageReference>().map_err(|error| error.to_string())
}

impl Cluster {
    /// Starts everything. What was started ends when `shutdown` is cancelled.
    ///
    /// # Errors
    /// When a part cannot start, which it names.
    pub(super) async fn start(args: &DemoArgs, directory: &Path, shutdown: CancellationToken) -> Result<Self> {
        let (origin, registry, target) = origin(args).await?;
        let default_registry = registry.name.clone();
        let registries = Arc::new(Registries::new(vec![registry])?);
        let encryption = match args.encryption {
            EncryptionArg::Tls => Encryption::Tls,
            EncryptionArg::None => Encryption::None,
        };
        let tracker = TrackerConfig { listen: any_port(), ..TrackerConfig::default() };
        // Who does not stay has no time to look at metrics.
        let mut admins = Metrics { wanted: args.keep, admins: Vec::new(), shutdown: shutdown.clone() };
        let mut metrics = Registry::default();
        let tracker = Tracker::start(tracker, &MemberTls::open(), &mut metrics, shutdown.clone()).await?;
        admins.open("tracker", metrics).await?;
        let trackers = vec![url(tracker.local_addr())?];

        let seeder_directory = directory.join("seeder");
        tokio::fs::create_dir(&seeder_directory).await?;
        let seeder = SeederConfig {
            listen: any_port(),
            p2p_listen: any_port(),
            data_listen: any_port(),
            data_dir: seeder_directory,
            cache_limit: CACHE,
            min_free: MIN_FREE,
            download_rate: args.rate,
            upload_rate: args.rate,
            trackers: trackers.clone(),
            ..SeederConfig::default()
        };
        let deps = SeederDeps {
            registries: Arc::clone(&registries),
            membership: Membership::Open,
            topology: Topology::default(),
            encryption,
            members: MemberTls::open(),
        };
        let mut metrics = Registry::default();
        let seeder =
            Seeder::start(seeder, deps, &mut metrics, shutdown.clone()).await.context("the seeder does not start")?;
        admins.open("seeder", metrics).await?;
        let seeders = vec![url(seeder.address())?];

        let started = (1..=args.nodes).map(|number| {
            let config = ProxyConfig {
                listen: any_port(),
                p2p_listen: any_port(),
                data_listen: any_port(),
                data_dir: directory.join(format!("proxy-{number}")),
                cache_limit: CACHE,
                min_free: MIN_FREE,
                download_rate: args.rate,
                upload_rate: args.rate,
                trackers: trackers.clone(),
                seeders: seeders.clone(),
                default_registry: default_registry.clone(),
                ..ProxyConfig::default()
            };
            let deps = ProxyDeps {
                registries: Arc::clone(&registries),
                membership: Membership::Open,
                topology: Topology::default(),
                encryption,
                members: MemberTls::open(),
            };
            let shutdown = shutdown.clone();
            async move {
                let mut metrics = Registry::default();
                let proxy = Proxy::start(config, deps, &mut metrics, shutdown).await;
                Ok::<_, anyhow::Error>((proxy.with_context(|| format!("proxy {number} does not start"))?, metrics))
            }
        });
        let mut proxies = Vec::new();
        for (proxy, metrics) in try_join_all(started).await? {
            admins.open("proxy", metrics).await?;
            proxies.push(proxy);
        }
        let Metrics { admins, .. } = admins;
        Ok(Self { origin, target, proxies, seeder, tracker, admins, shutdown })
    }

    /// Where the metrics of the parts are.
    pub(super) fn admins(&self) -> Vec<SocketAddr> {
        self.admins.iter().map(Admin::address).collect()
    }

    /// Ends every part and waits until the last has ended.
    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        join_all(self.admins.into_iter().map(Admin::stop)).await;
        tokio::join!(join_all(self.proxies.into_iter().map(Proxy::wait)), self.seeder.wait(), self.tracker.wait());
        if let Some(origin) = self.origin {
            origin.shutdown().await;
        }
    }
}

/// The rate as the ideal needs it.
pub(super) fn bytes_per_second(rate: Rate) -> Option<f64> {
    rate.bytes_per_second().map(|rate| rate as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_layer_is_far_larger() {
        for layers in [1, 2, 4, 100] {
            let sizes = layer_sizes(256 << 20, layers);
            assert_eq!(sizes.len() as u64, layers);
            assert!((sizes.iter().sum::<u64>()).abs_diff(256 << 20) < layers);
            assert!(sizes[1..].iter().all(|size| *size < sizes[0] / 2 && *size > 0));
        }
    }

    #[test]
    fn short_names_are_those_of_docker_hub_only_there() {
        let hub = "https://registry-1.docker.io".parse().unwrap();
        let reference_of = |origin: &Url, image| reference(origin, image).unwrap().to_string();
        assert_eq!(reference_of(&hub, "debian:12"), "docker.io/library/debian:12");
        let own = "http://127.0.0.1:5000".parse().unwrap();
        assert_eq!(reference_of(&own, "app:v1"), "127.0.0.1:5000/app:v1");
        assert_eq!(reference_of(&own, "127.0.0.1:5000/app:v1"), "127.0.0.1:5000/app:v1");
        assert!(reference(&own, "App").is_err());
    }
}
