//! What is compared: pulls from the registry itself, and through proxies.

use std::{fmt, sync::Arc};

use anyhow::{Result, bail, ensure};
use eagle_registry::{ImageReference, Registries, Registry, RegistryConfig};
use serde::{Deserialize, Serialize};
use url::Url;

use super::runtime::{Client, Runtime};
use crate::client::{Mirror, Progress, Route};

/// The most proxies of a plan: a large cluster, and what a line of it holds.
const MAX_PROXIES: usize = 10_000;

/// Which of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SeriesName {
    /// From the registry itself.
    Direct,
    /// Through proxies.
    Eagle,
}

impl fmt::Display for SeriesName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Eagle => "eagle",
        })
    }
}

/// What a benchmark pulls and from where, for whoever pulls: this program, or an agent of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Plan {
    /// The image of the warm-up, and of all pulls unless each iteration has one of its own.
    pub(crate) image: ImageReference,
    /// Whether to pull from the registry itself; done anyway without proxies.
    pub(crate) direct: bool,
    /// Where the registry is, if not at `https://NAME`.
    pub(crate) registry: Option<Url>,
    /// Proxies to pull through, used in turn.
    pub(crate) proxies: Vec<Url>,
    /// Who pulls, if not this program.
    pub(crate) runtime: Option<Runtime>,
    /// What proxies know the registry as besides its name, which a runtime cannot say if it has a port.
    pub(crate) alias: Option<String>,
}

impl Plan {
    /// The series in the order in which they are measured: the registry itself if asked for or if there is nothing else,
    /// and the proxies.
    ///
    /// # Errors
    /// When the registry cannot be used as configured, or there are too many proxies.
    pub(crate) fn series(&self) -> Result<Vec<Series>> {
        ensure!(self.proxies.len() <= MAX_PROXIES, "there are more than {MAX_PROXIES} proxies");
        let mut series = Vec::new();
        if self.direct || self.proxies.is_empty() {
            let name = &self.image.registry;
            let shown = self.registry.clone().map_or_else(|| format!("https://{name}").parse(), Ok)?;
            let config = RegistryConfig { url: self.registry.clone(), ..RegistryConfig::new(name.clone()) };
            let registry = Registries::new(vec![config])?.get(name);
            let way = self.by_runtime(Way::Direct(registry, shown))?;
            series.push(Series { name: SeriesName::Direct, ways: vec![way] });
        }
        if !self.proxies.is_empty() {
            let ways = self.proxies.iter().map(|proxy| self.by_runtime(Way::Through(proxy.clone())));
            series.push(Series { name: SeriesName::Eagle, ways: ways.collect::<Result<_>>()? });
        }
        Ok(series)
    }

    /// The same way, by a runtime if one is to pull.
    fn by_runtime(&self, way: Way) -> Result<Way> {
        let Some(runtime) = self.runtime else { return Ok(way) };
        let (from, through) = match &way {
            Way::Through(proxy) => (proxy.clone(), true),
            Way::Direct(_, url) => (url.clone(), false),
            Way::Runtime(..) => bail!("a runtime cannot pull by another ({})", self.image),
        };
        let client = Client::new(runtime, from, through, self.alias.clone());
        Ok(Way::Runtime(Arc::new(client), Box::new(way)))
    }
}

/// Pulls that are compared with others.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) name: SeriesName,
    pub(crate) ways: Vec<Way>,
}

/// How one pull goes.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    /// From the registry, at this URL.
    Direct(Arc<Registry>, Url),
    Through(Url),
    /// By a container runtime; the other way is where it pulls from.
    Runtime(Arc<Client>, Box<Self>),
}

impl Way {
    fn route(&self) -> Route {
        match self {
            Self::Direct(registry, _) => Route::Registry(Arc::clone(registry)),
            // Connections of its own, as another runtime would have.
            Self::Through(proxy) => Route::Mirror(Box::new(Mirror::new(proxy.clone()))),
            Self::Runtime(_, from) => from.route(),
        }
    }

    /// Removes what an earlier pull left; takes no part in the time of the next.
    ///
    /// # Errors
    /// When the runtime does not.
    pub(crate) async fn clean(&self, image: &ImageReference) -> Result<()> {
        match self {
            Self::Direct(..) | Self::Through(_) => Ok(()),
            Self::Runtime(client, _) => client.clean(image).await,
        }
    }

    /// Pulls the image.
    ///
    /// # Errors
    /// What failed, and of which manifest or blob.
    pub(crate) async fn pull(&self, image: &ImageReference, progress: &Progress) -> Result<()> {
        match self {
            Self::Direct(..) | Self::Through(_) => self.route().pull(image, progress).await,
            Self::Runtime(client, _) => client.pull(image).await,
        }
    }

    /// Bytes of the image's blobs, where the pull itself does not say how many came.
    ///
    /// # Errors
    /// When the manifest cannot be had.
    pub(crate) async fn size(&self, image: &ImageReference) -> Result<Option<u64>> {
        let Self::Runtime(_, from) = self else { return Ok(None) };
        let manifest = from.route().resolve(image).await?;
        Ok(Some(manifest.blobs.iter().map(|blob| blob.size).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_as_asked_for() {
        let proxy: Url = "http://127.0.0.1:43002".parse().unwrap();
        let plan = |direct, proxies| Plan {
            image: "debian:12".parse().unwrap(),
            direct,
            registry: None,
            proxies,
            runtime: None,
            alias: None,
        };
        let names = |direct, proxies| {
            plan(direct, proxies).series().unwrap().iter().map(|series| series.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(false, vec![]), ["direct"]);
        assert_eq!(names(false, vec![proxy.clone()]), ["eagle"]);
        assert_eq!(names(true, vec![proxy.clone()]), ["direct", "eagle"]);
        let error = plan(false, vec![proxy; MAX_PROXIES + 1]).series().unwrap_err().to_string();
        assert!(error.contains("10000 proxies"), "{error}");
    }
}
