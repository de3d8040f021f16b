//! Configuration: defaults, then a YAML file, then environment variables, then flags, the later winning.

pub(crate) mod check;
mod environment;
pub(crate) mod example;
mod exposure;
mod flags;
pub(crate) mod read;
pub(crate) mod show;
mod tree;
mod yaml;

use std::{collections::BTreeMap, ffi::OsString, fmt, net::SocketAddr, path::PathBuf};

use eagle_proxy::ProxyConfig;
use eagle_registry::{CredentialsConfig, RegistryConfig};
use eagle_seeder::{SeederConfig, preheat::PreheatConfig};
use eagle_tracker::TrackerConfig;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub(crate) use flags::Flags;

use self::{
    read::ConfigError,
    tree::{Node, Origin, Value},
};
use crate::{cluster::ClusterConfig, p2p::P2pConfig, telemetry::LogConfig, traces::TracesConfig};

/// Names of the sections, in the order in which they are shown.
pub(crate) const SECTIONS: [&str; 10] =
    ["cluster", "tracker", "seeder", "proxy", "p2p", "registries", "credentials", "preheat", "log", "traces"];
/// Largest configuration file, bytes. A real one has a few thousand; more is a wrong path.
const MAX_FILE: u64 = 4 << 20;

/// A role's section: what the role's crate reads, and the admin address, which the binary serves.
#[derive(Debug, Clone)]
pub(crate) struct Section<C> {
    pub(crate) role: C,
    pub(crate) admin: SocketAddr,
}

/// Everything that can be configured, typed.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) cluster: ClusterConfig,
    pub(crate) tracker: Section<TrackerConfig>,
    pub(crate) seeder: Section<SeederConfig>,
    pub(crate) proxy: Section<ProxyConfig>,
    pub(crate) p2p: P2pConfig,
    pub(crate) registries: Vec<RegistryConfig>,
    pub(crate) preheat: PreheatConfig,
    pub(crate) credentials: CredentialsConfig,
    pub(crate) log: LogConfig,
    pub(crate) traces: TracesConfig,
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), port)
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            cluster: ClusterConfig::default(),
            tracker: Section { role: TrackerConfig::default(), admin: loopback(6970) },
            seeder: Section { role: SeederConfig::default(), admin: loopback(55009) },
            proxy: Section { role: ProxyConfig::default(), admin: loopback(43003) },
            p2p: P2pConfig::default(),
            registries: Vec::new(),
            preheat: PreheatConfig::default(),
            credentials: CredentialsConfig::default(),
            log: LogConfig::default(),
            traces: TracesConfig::default(),
        }
    }
}

/// Everything that is wrong, one line each.
#[derive(Debug)]
pub(crate) struct ConfigErrors(pub(crate) Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// What configuration is made of.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) file: Option<PathBuf>,
    pub(crate) environment: Vec<(OsString, OsString)>,
    pub(crate) flags: Flags,
}

/// The settings in effect and what was written of them, where.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    written: Node,
}

impl Loaded {
    /// Reads the sources and lays them over each other.
    ///
    /// # Errors
    /// Everything that cannot be read, by key and place; at most one problem per section.
    pub(crate) fn from(sources: Sources) -> Result<Self, ConfigErrors> {
        let mut written = sources.read().map_err(|error| ConfigErrors(vec![error]))?;
        exposure::leave_open(&mut written);
        let mut settings = Settings::from_tree(written.clone())?;
        exposure::apply(&mut settings, &written);
        Ok(Self { settings, written })
    }

    /// What is written of these sections, by the dotted path of each value. Some of the values are secrets.
    pub(crate) fn written(&self, sections: &[&str]) -> BTreeMap<String, String> {
        let mut leaves = BTreeMap::new();
        for section in sections {
            if let Some(node) = self.written.get(section) {
                node.leaves(section, &mut leaves);
            }
        }
        leaves
    }

    /// Where the value at this path was written, for an error that only shows later.
    pub(crate) fn origin(&self, path: &[&str]) -> Origin {
        let path: Vec<String> = path.iter().map(|key| (*key).to_owned()).collect();
        self.written.origin_of(&path).clone()
    }

    /// An error about the value at this path.
    pub(crate) fn error(&self, path: &[&str], problem: impl fmt::Display) -> ConfigError {
        ConfigError::new(self.origin(path), path, problem)
    }

    /// The values in effect of these sections, as YAML with sources.
    pub(crate) fn show(&self, sections: &[&str]) -> String {
        show::yaml(&self.settings.to_tree(sections), &self.written)
    }

    /// The same as JSON.
    pub(crate) fn show_json(&self, sections: &[&str]) -> serde_json::Value {
        show::json(&self.settings.to_tree(sections), &self.written)
    }
}

impl Sources {
    fn read(self) -> Result<Node, ConfigError> {
        let mut tree = Node::empty();
        if let Some(path) = &self.file {
            let failed = |error: &dyn fmt::Display| {
                let origin = Origin::Flag("--config".into());
                ConfigError::new(origin, &[], format_args!("{}: {error}", path.display()))
            };
            let length = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
            if length > MAX_FILE {
                return Err(failed(&"is larger than any configuration file"));
            }
            let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
            tree.merge(yaml::parse_file(&text, path)?);
        }
        self.over(tree)
    }

    /// Lays environment and flags over what a file says.
    fn over(self, mut tree: Node) -> Result<Node, ConfigError> {
        if !matches!(tree.value, Value::Map(_)) {
            return Err(ConfigError::new(tree.origin, &[], "the file must hold sections such as `proxy:`"));
        }
        environment::lay_on(&mut tree, self.environment)?;
        self.flags.lay_on(&mut tree);
        Ok(tree)
    }
}

/// The settings in effect of a file with this text and these environment variables, as `eagle config show` prints them.
///
/// # Errors
/// What is wrong with them, a line each.
pub fn read_configuration(text: &str, environment: Vec<(OsString, OsString)>) -> Result<String, String> {
    let sources = Sources { file: None, environment, flags: Flags::default() };
    let mut tree = Node::empty();
    let written = yaml::parse_file(text, std::path::Path::new("eagle.yaml")).and_then(|file| {
        tree.merge(file);
        sources.over(tree)
    });
    let written = written.map_err(|error| error.to_string())?;
    let settings = Settings::from_tree(written.clone()).map_err(|errors| errors.to_string())?;
    Ok(Loaded { settings, written }.show(&SECTIONS))
}

/// Takes a section out of the tree and reads it.
fn section<T: DeserializeOwned + Default>(tree: &mut Node, name: &str) -> Result<T, ConfigError> {
    match tree.take(name) {
        Some((_, node)) => T::deserialize(&node).map_err(|error| error.within(name)),
        None => Ok(T::default()),
    }
}

fn role_section<C: DeserializeOwned + Default>(
    tree: &mut Node,
    name: &str,
    admin: SocketAddr,
) -> Result<Section<C>, ConfigError> {
    let Some((_, mut node)) = tree.take(name) else { return Ok(Section { role: C::default(), admin }) };
    let admin = match node.take("admin") {
        Some((_, value)) => {
            SocketAddr::deserialize(&value).map_err(|error| error.at(&value.origin).within("admin").within(name))?
        }
        None => admin,
    };
    let role = C::deserialize(&node).map_err(|error| error.within(name).also_known(&["admin"]))?;
    Ok(Section { role, admin })
}

impl Settings {
    fn from_tree(mut tree: Node) -> Result<Self, ConfigErrors> {
        let defaults = Self::default();
        let mut errors = Vec::new();
        let mut settings = defaults.clone();
        macro_rules! read {
            ($target:expr, $result:expr) => {
                match $result {
                    Ok(value) => $target = value,
                    Err(error) => errors.push(error),
                }
            };
        }
        read!(settings.cluster, section(&mut tree, "cluster"));
        read!(settings.tracker, role_section(&mut tree, "tracker", defaults.tracker.admin));
        read!(settings.seeder, role_section(&mut tree, "seeder", defaults.seeder.admin));
        read!(settings.proxy, role_section(&mut tree, "proxy", defaults.proxy.admin));
        read!(settings.p2p, section(&mut tree, "p2p"));
        read!(settings.registries, section(&mut tree, "registries"));
        read!(settings.preheat, section(&mut tree, "preheat"));
        read!(settings.credentials, section(&mut tree, "credentials"));
        read!(settings.log, section(&mut tree, "log"));
        read!(settings.traces, section(&mut tree, "traces"));
        if let Value::Map(entries) = &tree.value {
            errors.extend(entries.iter().map(|(key, _)| ConfigError::unknown_key(key, &[], &SECTIONS)));
        }
        if errors.is_empty() { Ok(settings) } else { Err(ConfigErrors(errors)) }
    }

    /// These sections as a tree that keeps the order of keys.
    pub(crate) fn to_tree(&self, sections: &[&str]) -> Node {
        let mut tree = Node::empty();
        for name in sections {
            let node = match *name {
                "cluster" => as_tree(&self.cluster),
                "tracker" => with_admin(&self.tracker),
                "seeder" => with_admin(&self.seeder),
                "proxy" => with_admin(&self.proxy),
                "p2p" => as_tree(&self.p2p),
                "registries" => as_tree(&self.registries),
                "preheat" => as_tree(&self.preheat),
                "credentials" => as_tree(&self.credentials),
                "log" => as_tree(&self.log),
                "traces" => as_tree(&self.traces),
                _ => continue,
            };
            if let Value::Map(entries) = &mut tree.value {
                entries.push((tree::Key { name: (*name).to_owned(), origin: Origin::Default }, node));
            }
        }
        tree
    }
}

fn with_admin<C: Serialize>(section: &Section<C>) -> Node {
    let mut node = as_tree(&section.role);
    if let Value::Map(entries) = &mut node.value {
        let key = tree::Key { name: "admin".to_owned(), origin: Origin::Default };
        let text = section.admin.to_string();
        let admin = Node { value: Value::Scalar { text, plain: false }, origin: Origin::Default };
        // Beside the address that it belongs to, where there is one.
        let at = entries.iter().position(|(key, _)| key.name == "listen").map_or(0, |at| at + 1);
        entries.insert(at, (key, admin));
    }
    node
}

/// A value as a tree, by way of JSON, which is YAML and keeps the order of fields.
fn as_tree(value: &impl Serialize) -> Node {
    let tree = serde_json::to_string(value).ok().and_then(|json| yaml::parse_json(&json).ok());
    tree.unwrap_or_else(Node::empty)
}

#[cfg(test)]
mod documentation;
#[cfg(test)]
mod tests;
