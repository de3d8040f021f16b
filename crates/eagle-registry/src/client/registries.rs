//! All registries by name.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use eagle_core::units::Rate;
use lru::LruCache;

use super::{
    Registry,
    buffers::ReceiveBuffers,
    egress::Egress,
    hosts::Hosts,
    tls,
    transport::{Transport, TransportConfig},
};
use crate::{
    config::{CONNECT_TIMEOUT, ConfigError, CredentialsConfig, RESPONSE_TIMEOUT, RegistryConfig},
    credentials::DockerConfigs,
    name::RegistryName,
};

/// Registries kept that are not configured. Runtimes name them, so their number must have a bound.
const MAX_UNCONFIGURED: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// All registries: those of the configuration, and any other with the defaults.
pub struct Registries {
    configured: BTreeMap<RegistryName, Arc<Registry>>,
    others: Mutex<LruCache<RegistryName, Arc<Registry>>>,
    transport: Transport,
    files: Arc<DockerConfigs>,
    buffers: ReceiveBuffers,
}

impl Registries {
    /// Sets up the client with no credentials but those of the entries.
    ///
    /// # Errors
    /// As [`Registries::with_credentials`].
    pub fn new(configs: Vec<RegistryConfig>) -> Result<Self, ConfigError> {
        Self::with_credentials(configs, &CredentialsConfig::default())
    }

    /// Sets up the client. Reads certificates, keys and docker configurations, so it belongs to the start
    /// of a process.
    ///
    /// # Errors
    /// When an entry is not valid, or a file cannot be used.
    pub fn with_credentials(
        configs: Vec<RegistryConfig>,
        credentials: &CredentialsConfig,
    ) -> Result<Self, ConfigError> {
        let system = tls::system_roots();
        let files = Arc::new(DockerConfigs::open(credentials)?);
        let buffers = ReceiveBuffers::default();
        let mut configured = BTreeMap::new();
        for config in configs {
            config.check()?;
            let identity = tls::identity(&config)?;
            let transport = transport(TransportConfig {
                roots: tls::roots(&system, &config)?,
                identity: identity.as_ref().map(|identity| (identity, Hosts::origins(&config))),
                egress: Egress::new(config.egress_proxy.as_ref()),
                buffers: buffers.clone(),
                download_rate: config.download_rate,
                connect_timeout: config.connect_timeout,
                response_timeout: config.response_timeout,
            })?;
            let registry = Registry::new(&config, transport, &files);
            if configured.insert(config.name.clone(), Arc::new(registry)).is_some() {
                return Err(ConfigError::Duplicate(config.name));
            }
        }
        let transport = transport(TransportConfig {
            roots: system,
            identity: None,
            egress: Egress::new(None),
            buffers: buffers.clone(),
            download_rate: Rate::Unlimited,
            connect_timeout: CONNECT_TIMEOUT,
            response_timeout: RESPONSE_TIMEOUT,
        })?;
        Ok(Self { configured, others: Mutex::new(LruCache::new(MAX_UNCONFIGURED)), transport, files, buffers })
    }

    /// Content is read at this rate at most, all connections together. New connections have the kernel hold no more of it than
    /// goes with that.
    pub fn paced_by(&self, rate: impl Fn() -> Rate + Send + Sync + 'static) {
        self.buffers.paced_by(rate);
    }

    /// The registry of this name, with the defaults when it is not configured.
    pub fn get(&self, name: &RegistryName) -> Arc<Registry> {
        if let Some(registry) = self.configured.get(name) {
            return Arc::clone(registry);
        }
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = others.get_or_insert(name.clone(), || {
            Arc::new(Registry::new(&RegistryConfig::new(name.clone()), self.transport.clone(), &self.files))
        });
        Arc::clone(registry)
    }

    /// The registry of this name, when it is configured.
    pub fn get_configured(&self, name: &RegistryName) -> Option<Arc<Registry>> {
        self.configured.get(name).cloned()
    }

    /// Names of the configured registries.
    pub fn configured(&self) -> Vec<RegistryName> {
        self.configured.keys().cloned().collect()
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registries").field(&self.configured.keys()).finish()
    }
}

fn transport(config: TransportConfig<'_>) -> Result<Transport, ConfigError> {
    Transport::new(config).map_err(|error| ConfigError::Tls(error.to_string()))
}
