//! A small registry in the process: for `eagle demo`, for benchmarks and for tests.
//!
//! It serves generated images over the reading half of the distribution API, with two artefacts that refer to each, and tags in pages. Layers are made on the
//! fly from a seed, so that an image of many GiB needs no memory and no disk; they are real tar files,
//! and docker, containerd and podman can pull the images. It counts what it serves, and on demand it
//! misbehaves ([`FaultRule`]), asks for credentials ([`Access`]), or is slow.

mod access;
mod artifact;
mod content;
mod fault;
mod image;
mod lists;
mod serve;
mod server;
mod stats;

use std::{io, net::SocketAddr, sync::Arc};

use eagle_core::units::Rate;
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

pub use self::{
    access::{Access, User},
    artifact::PublishedArtifact,
    fault::{Fault, FaultRule, FaultTarget},
    image::{GeneratedImage, MIN_LAYER_SIZE, PublishedImage, layer_size},
    stats::{BlobStats, RegistryStats},
};
use crate::{config::RegistryConfig, name::RegistryName};

/// What an [`EmbeddedRegistry`] serves and how.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// The images to generate.
    pub images: Vec<GeneratedImage>,
    /// Who may read them.
    pub access: Access,
    /// Bytes of blobs a second, all connections together.
    pub rate: Rate,
    /// Certificate and key for https; plain http without.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

impl EmbeddedConfig {
    /// An open registry over http without a limit.
    pub const fn new(listen: SocketAddr, images: Vec<GeneratedImage>) -> Self {
        Self { listen, images, access: Access::Open, rate: Rate::Unlimited, tls: None }
    }
}

/// Why an embedded registry did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address cannot be listened on.
    #[error("the embedded registry cannot listen on {address}: {source}; is the port taken?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// An image cannot be made.
    #[error("the image {image} cannot be generated: {problem}")]
    Image {
        /// Repository and tag.
        image: String,
        /// Why not.
        problem: String,
    },
}

/// A registry that runs in this process until it is shut down or dropped.
#[derive(Debug)]
pub struct EmbeddedRegistry {
    shared: Arc<server::Shared>,
    images: Vec<PublishedImage>,
    address: SocketAddr,
    secure: bool,
    cancel: CancellationToken,
    tasks: TaskTracker,
}

impl EmbeddedRegistry {
    /// Generates the images, hashes them on all cores (about a second per 1.5 GB and core) and listens.
    ///
    /// # Errors
    /// When the address is taken, or an image cannot be.
    pub async fn start(config: EmbeddedConfig) -> Result<Self, StartError> {
        let listen_error = |source| StartError::Listen { address: config.listen, source };
        // Taken first: a wrong address should not cost the hashing.
        let listener = TcpListener::bind(config.listen).await.map_err(listen_error)?;
        let address = listener.local_addr().map_err(listen_error)?;
        let mut images = Vec::new();
        let mut shared = server::Shared::new(config.access, config.rate);
        for image in &config.images {
            images.push(shared.publish(image).await?);
        }
        let shared = Arc::new(shared);
        let (cancel, tasks) = (CancellationToken::new(), TaskTracker::new());
        let secure = config.tls.is_some();
        tasks.spawn(server::listen(listener, Arc::clone(&shared), config.tls, cancel.clone(), tasks.clone()));
        Ok(Self { shared, images, address, secure, cancel, tasks })
    }

    /// Where it listens.
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// The address that clients on this machine can use: loopback when it listens on every address.
    fn reachable(&self) -> SocketAddr {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(if address.is_ipv4() {
                std::net::Ipv4Addr::LOCALHOST.into()
            } else {
                std::net::Ipv6Addr::LOCALHOST.into()
            });
        }
        address
    }

    /// Its URL, for clients on this machine.
    pub fn url(&self) -> Url {
        let scheme = if self.secure { "https" } else { "http" };
        Url::parse(&format!("{scheme}://{}/", self.reachable())).expect("a socket address makes a URL")
    }

    /// Its name in image references, for clients on this machine.
    pub fn name(&self) -> RegistryName {
        self.reachable().to_string().parse().expect("a socket address is a registry name")
    }

    /// The configuration with which a client on this machine reaches it, without credentials.
    pub fn client_config(&self) -> RegistryConfig {
        RegistryConfig { url: Some(self.url()), ..RegistryConfig::new(self.name()) }
    }

    /// The images, in the order of the configuration.
    pub fn images(&self) -> &[PublishedImage] {
        &self.images
    }

    /// What it has served so far.
    pub fn stats(&self) -> RegistryStats {
        self.shared.stats()
    }

    /// Sets all counters to zero.
    pub fn reset_stats(&self) {
        self.shared.reset_stats();
    }

    /// Replaces the rules by which it misbehaves; none make it behave again.
    pub fn set_faults(&self, rules: Vec<FaultRule>) {
        self.shared.set_faults(rules);
    }

    /// Changes the limit of bytes of blobs a second.
    pub fn set_rate(&self, rate: Rate) {
        self.shared.set_rate(rate);
    }

    /// Makes every token given out so far worthless, as a token service that restarts would.
    pub fn revoke_tokens(&self) {
        self.shared.revoke_tokens();
    }

    /// Closes the socket and every connection, and waits for the tasks to end.
    pub async fn shutdown(self) {
        self.cancel.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Drop for EmbeddedRegistry {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
