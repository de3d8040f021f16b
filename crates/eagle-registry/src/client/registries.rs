//! All registries by name.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError, RwLock},
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
    known: RwLock<Arc<Known>>,
    buffers: ReceiveBuffers,
}

/// Registries as one reading of the configuration has them.
struct Known {
    configured: BTreeMap<RegistryName, Arc<Registry>>,
    others: Mutex<LruCache<RegistryName, Arc<Registry>>>,
    transport: Transport,
    files: Arc<DockerConfigs>,
}

impl Known {
    fn read(
        configs: Vec<RegistryConfig>,
        credentials: &CredentialsConfig,
        buffers: &ReceiveBuffers,
    ) -> Result<Self, ConfigError> {
        let system = tls::system_roots();
        let files = Arc::new(DockerConfigs::open(credentials)?);
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
        Ok(Self { configured, others: Mutex::new(LruCache::new(MAX_UNCONFIGURED)), transport, files })
    }
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
        let buffers = ReceiveBuffers::default();
        let known = Known::read(configs, credentials, &buffers)?;
        Ok(Self { known: RwLock::new(Arc::new(known)), buffers })
    }

    /// Takes these registries and credentials from now on; files are read anew. What is under way ends as it began. Reads files, so it
    /// belongs on no asynchronous task.
    ///
    /// # Errors
    /// As [`Registries::with_credentials`]; all is as it was then.
    pub fn replace(&self, configs: Vec<RegistryConfig>, credentials: &CredentialsConfig) -> Result<(), ConfigError> {
        let known = Known::read(configs, credentials, &self.buffers)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    fn known(&self) -> Arc<Known> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Content is read at this rate at most, all connections together. New connections have the kernel hold no more of it than
    /// goes with that.
    pub fn paced_by(&self, rate: impl Fn() -> Rate + Send + Sync + 'static) {
        self.buffers.paced_by(rate);
    }

    /// The registry of this name, with the defaults when it is not configured.
    pub fn get(&self, name: &RegistryName) -> Arc<Registry> {
        let known = self.known();
        if let Some(registry) = known.configured.get(name) {
            return Arc::clone(registry);
        }
        let mut others = known.others.lock().unwrap_or_else(PoisonError::into_inner);
        let registry = others.get_or_insert(name.clone(), || {
            Arc::new(Registry::new(&RegistryConfig::new(name.clone()), known.transport.clone(), &known.files))
        });
        Arc::clone(registry)
    }

    /// The registry of this name, when it is configured.
    pub fn get_configured(&self, name: &RegistryName) -> Option<Arc<Registry>> {
        self.known().configured.get(name).cloned()
    }

    /// Names of the configured registries.
    pub fn configured(&self) -> Vec<RegistryName> {
        self.known().configured.keys().cloned().collect()
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registries").field(&self.configured()).finish()
    }
}

fn transport(config: TransportConfig<'_>) -> Result<Transport, ConfigError> {
    Transport::new(config).map_err(|error| ConfigError::Tls(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_can_be_replaced_and_a_mistake_changes_nothing() {
        let name = |text: &str| text.parse::<RegistryName>().unwrap();
        let registries = Registries::new(vec![RegistryConfig::new(name("one.example"))]).unwrap();
        let before = registries.get(&name("one.example"));
        let two = RegistryConfig::new(name("two.example"));
        let missing = CredentialsConfig { docker_configs: vec!["/nonexistent".into()] };
        assert!(registries.replace(vec![two.clone()], &missing).is_err());
        assert!(registries.replace(vec![two.clone(), two.clone()], &CredentialsConfig::default()).is_err());
        assert_eq!(registries.configured(), [name("one.example")]);
        assert!(Arc::ptr_eq(&registries.get(&name("one.example")), &before));
        registries.replace(vec![two], &CredentialsConfig::default()).unwrap();
        assert_eq!(registries.configured(), [name("two.example")]);
        assert!(registries.get_configured(&name("one.example")).is_none());
        assert_eq!(before.name(), &name("one.example"), "what is under way has it still");
    }
}
