//! The trackers of a cluster as commands ask them: all at once, and what they say taken as one ([`merge`]).

pub(crate) mod merge;

use std::{fmt::Write as _, time::Duration};

use anyhow::{Result, anyhow};
use eagle_tracker::api::Overview;
use futures::future::join_all;
use serde::Serialize;

use crate::{
    api_client::ApiClient,
    cli::{AskTrackersArgs, SourceArgs},
    cluster::{Cluster, ClusterConfig},
    commands::sources,
    config::{Flags, Loaded},
    exit::Exit,
    text::{clean, clean_line, rate},
};

/// How long one tracker may take for all that it is asked for at a time. A list of as many blobs as a tracker keeps by default has a
/// thousand pages, each of which takes it milliseconds; one that takes longer than this is as good as silent.
const DEADLINE: Duration = Duration::from_secs(120);

/// The trackers that a command asks.
#[derive(Debug, Clone)]
pub(crate) struct Trackers(Vec<Tracker>);

#[derive(Debug, Clone)]
struct Tracker {
    address: String,
    client: ApiClient,
}

/// A tracker that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Asked {
    /// Its address, as it was given.
    pub(crate) address: String,
    /// Why it did not answer; absent when it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
}

impl Trackers {
    /// The trackers that the arguments name, or else the `default` one, asked as a member if there is a key. Each may take `deadline`
    /// for one answer.
    ///
    /// # Errors
    /// When the configuration, an address or the key makes no sense, or there is no tracker.
    pub(crate) async fn new(args: &AskTrackersArgs, default: Option<&str>, deadline: Duration) -> Result<Self> {
        let (mut addresses, membership): (Vec<String>, ClusterConfig) = match &args.config {
            Some(file) => {
                let source = SourceArgs { config: Some(file.clone()), cluster_key_file: args.cluster_key_file.clone() };
                let settings = Loaded::from(sources(source, Flags::default())).map_err(Exit::config)?.settings;
                // A file may be for all roles; those of the proxy are what most nodes go by.
                let lists = [settings.proxy.role.trackers, settings.seeder.role.trackers];
                let named = lists.into_iter().find(|list| !list.is_empty()).unwrap_or_default();
                (named.iter().map(ToString::to_string).collect(), settings.cluster)
            }
            None => (args.trackers.clone(), ClusterConfig::of_command(args.cluster_key_file.clone())),
        };
        if let (None, Some(default), true) = (&args.config, default, addresses.is_empty()) {
            addresses.push(default.to_owned());
        }
        if addresses.is_empty() {
            let file = args.config.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default();
            return Err(
                Exit::config(format!("{file}neither proxy.trackers nor seeder.trackers names a tracker")).into()
            );
        }
        let cluster = Cluster::start(&membership).await;
        let cluster = cluster.map_err(|error| Exit::usage(format!("cluster key: {error}")))?;
        let mut trackers: Vec<Tracker> = Vec::new();
        for address in addresses {
            let client = ApiClient::new("--tracker", &address, None, deadline)?.member(cluster.members());
            // One that is named twice would count twice.
            if trackers.iter().all(|other| other.client.base() != client.base()) {
                trackers.push(Tracker { address, client });
            }
        }
        Ok(Self(trackers))
    }

    /// Asks all of them at once. What those said that answered, and who was asked.
    ///
    /// # Errors
    /// When none answers.
    pub(crate) async fn ask<T, F>(&self, ask: impl Fn(ApiClient) -> F) -> Result<(Vec<T>, Vec<Asked>)>
    where
        F: Future<Output = Result<T>>,
    {
        self.ask_within(DEADLINE, ask).await
    }

    async fn ask_within<T, F>(&self, deadline: Duration, ask: impl Fn(ApiClient) -> F) -> Result<(Vec<T>, Vec<Asked>)>
    where
        F: Future<Output = Result<T>>,
    {
        let answers = self.0.iter().map(|tracker| tokio::time::timeout(deadline, ask(tracker.client.clone())));
        let (mut said, mut asked, mut problems) = (Vec::new(), Vec::new(), Vec::new());
        for (tracker, answer) in self.0.iter().zip(join_all(answers).await) {
            let answer = answer.unwrap_or_else(|_| Err(anyhow!("it did not say everything within {deadline:?}")));
            let problem = answer.as_ref().err().map(|error| format!("{error:#}"));
            asked.push(Asked { address: tracker.address.clone(), problem });
            match answer {
                Ok(answer) => said.push(answer),
                Err(error) => problems.push(error),
            }
        }
        if said.is_empty() {
            return Err(match problems.pop() {
                Some(error) if problems.is_empty() => error,
                _ => anyhow!("no tracker answers\n{}", silent(&asked).trim_end()),
            });
        }
        Ok((said, asked))
    }
}

/// A line for each tracker that did not answer.
pub(crate) fn silent(asked: &[Asked]) -> String {
    let mut text = String::new();
    for tracker in asked {
        if let Some(problem) = &tracker.problem {
            let _ = writeln!(text, "no answer from {}: {}", clean(&tracker.address), clean_line(problem));
        }
    }
    text
}

/// The cluster in a line.
pub(crate) fn at_a_glance(overview: &Overview) -> String {
    let store = if overview.store.away { format!(", {} away", clean(&overview.store.kind)) } else { String::new() };
    format!(
        "{} nodes ({} seeders), {} blobs, {} moving, {:.1} announces/s{store}",
        overview.peers,
        overview.seeders,
        overview.blobs,
        rate(overview.bytes_per_second),
        overview.announces_per_second,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(trackers: &[&str]) -> AskTrackersArgs {
        AskTrackersArgs {
            trackers: trackers.iter().map(|&text| text.to_owned()).collect(),
            config: None,
            cluster_key_file: None,
        }
    }

    async fn addresses(args: &AskTrackersArgs, default: Option<&str>) -> Result<Vec<String>> {
        let trackers = Trackers::new(args, default, Duration::from_secs(1)).await?;
        Ok(trackers.0.into_iter().map(|tracker| tracker.address).collect())
    }

    #[tokio::test]
    async fn each_tracker_is_asked_once() {
        let named = addresses(&args(&["a:1", "http://b:2", "http://a:1/"]), Some("c:3")).await.unwrap();
        assert_eq!(named, ["a:1", "http://b:2"]);
        assert_eq!(addresses(&args(&[]), Some("c:3")).await.unwrap(), ["c:3"]);
        assert!(addresses(&args(&[]), None).await.is_err());
        assert!(addresses(&args(&["a:1", "ftp://b"]), None).await.is_err());
    }

    #[tokio::test]
    async fn a_configuration_names_them_too() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("eagle.yaml");
        let from = |text: &str| {
            std::fs::write(&file, text).unwrap();
            AskTrackersArgs { config: Some(file.clone()), ..args(&[]) }
        };
        let both = from("proxy: {trackers: ['http://a:1', 'http://b:2']}\nseeder: {trackers: ['http://c:3']}\n");
        assert_eq!(addresses(&both, Some("d:4")).await.unwrap(), ["http://a:1/", "http://b:2/"]);
        let seeder = from("seeder: {trackers: ['http://c:3']}\n");
        assert_eq!(addresses(&seeder, Some("d:4")).await.unwrap(), ["http://c:3/"]);
        let none = addresses(&from("log: {level: info}\n"), Some("d:4")).await.unwrap_err();
        assert!(none.to_string().contains("eagle.yaml: neither proxy.trackers nor"), "{none}");
    }

    #[tokio::test]
    async fn who_does_not_answer_is_named_and_the_others_are_heard() {
        let trackers = Trackers::new(&args(&["a:1", "b:2", "c:3"]), None, Duration::from_secs(1)).await.unwrap();
        let (said, asked) = trackers
            .ask(async |client| match client.base().host_str() {
                Some("b") => Err(anyhow!("gone\u{1b}[2J").context("it")),
                host => Ok(host.map(str::to_owned)),
            })
            .await
            .unwrap();
        assert_eq!(said, [Some("a".to_owned()), Some("c".to_owned())]);
        assert_eq!(silent(&asked), "no answer from b:2: it: gone·[2J\n");
        let nobody = trackers.ask(async |_| Err::<(), _>(anyhow!("gone"))).await.unwrap_err().to_string();
        assert!(["a:1", "b:2", "c:3"].iter().all(|address| nobody.contains(address)), "{nobody}");
    }

    #[tokio::test]
    async fn nobody_waits_for_ever_for_one_of_them() {
        let trackers = Trackers::new(&args(&["a:1", "b:2"]), None, Duration::from_secs(1)).await.unwrap();
        let ask = async |client: ApiClient| match client.base().host_str() {
            Some("b") => std::future::pending().await,
            _ => Ok(()),
        };
        let (said, asked) = trackers.ask_within(Duration::from_millis(50), ask).await.unwrap();
        assert_eq!(said.len(), 1);
        assert!(asked[0].problem.is_none() && asked[1].problem.is_some(), "{asked:?}");
    }
}
