//! Two trackers, each with its own memory: what one of them knows, and what becomes of it when it dies and comes back.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::Value;

use super::Scene;
use crate::{
    chaos::{
        client::{Record, Runtime},
        content::Image,
        members::{Node, mirror},
        network::Network,
        origin::Origin,
        plan::{Member, Plan},
    },
    http,
    process::{succeed, wait_until},
};

const KIB: u64 = 1 << 10;
/// Enough for either tracker to be the first for some of them.
const LAYERS: [u64; 12] = [512 * KIB; 12];
/// The middle of a pull of all layers is half a second away from both its ends.
const RATE: u64 = 6 << 20;
/// What is announced is known within seconds; this is for a machine that has other work.
const DEADLINE: Duration = Duration::from_secs(60);
/// Second byte of the addresses, so that nothing else in this namespace has them.
const SLOT: u8 = 201;
/// Places of the trackers among the members.
const TRACKERS: [usize; 2] = [0, 1];

/// The parts and what they pull.
struct Stage {
    plan: Plan,
    network: Network,
    origin: Origin,
    images: Vec<Image>,
    nodes: Vec<Node>,
    eagle: PathBuf,
}

/// Of every blob that a tracker knows, the number of proxies that have it.
type Known = BTreeMap<String, u64>;

pub(super) fn one_dies_and_comes_back(scene: &Scene<'_>) -> Result<()> {
    let mut stage = Stage::start(scene)?;
    stage.pull(0, || Ok(()))?;
    let before = stage.spread(0)?;
    stage.seen_as_one(&[0], &[])?;

    // Half way through a pull.
    let mut victim = stage.nodes.remove(TRACKERS[0]);
    stage.pull(1, || {
        victim.kill();
        Ok(())
    })?;
    stage.nodes.insert(TRACKERS[0], victim);
    wait_until("the other tracker to know of everything", DEADLINE, || {
        let known = stage.known(TRACKERS[1])?;
        let everywhere = stage.digests(0).chain(stage.digests(1)).all(|digest| stage.is_everywhere(&known, digest));
        Ok(everywhere.then_some(()))
    })?;
    stage.seen_as_one(&[0, 1], &[TRACKERS[0]])?;

    stage.nodes[TRACKERS[0]].start()?;
    stage.nodes[TRACKERS[0]].wait_ready()?;
    wait_until("the tracker to have its swarms back", DEADLINE, || {
        let known = stage.known(TRACKERS[0])?;
        let back = before[0].iter().all(|digest| stage.is_everywhere(&known, digest));
        let newer = stage.digests(1).any(|digest| stage.is_everywhere(&known, digest));
        Ok((back && newer).then_some(()))
    })?;
    stage.pull(2, || Ok(()))?;
    stage.spread(2)?;

    let fetched = stage.origin.fetched();
    for digest in (0..stage.images.len()).flat_map(|image| stage.digests(image)) {
        let times = fetched.get(digest).copied().unwrap_or_default();
        ensure!(times == 1, "{digest} was fetched {times} times from the origin: {fetched:?}");
    }
    Ok(())
}

impl Stage {
    fn start(scene: &Scene<'_>) -> Result<Self> {
        let plan = Plan {
            seed: 1,
            trackers: 2,
            seeders: 1,
            proxies: 3,
            encryption: "none",
            rate: RATE,
            cache_limit: 1 << 30,
            seeder_cache_limit: 1 << 30,
            images: vec![LAYERS.to_vec(); 3],
            pulls: Vec::new(),
            faults: Vec::new(),
        };
        let images: Vec<_> =
            plan.images.iter().enumerate().map(|(number, layers)| Image::make(plan.seed, number, layers)).collect();
        let network = Network::make(false, SLOT, &plan.members())?;
        let origin = Origin::start(SocketAddr::new(network.origin(), 5000), &images)?;
        let mut nodes = Vec::new();
        for member in plan.members() {
            let mut node = Node::prepare(&plan, &network, member, scene.directory, scene.eagle, origin.address())?;
            if matches!(member, Member::Proxy(_)) {
                // However slow the machine is, nobody turns to the registry for what the seeder is to bring.
                node.set("EAGLE_PROXY__STALL_TIMEOUT", "1m");
            }
            node.start()?;
            nodes.push(node);
        }
        for node in &mut nodes {
            node.wait_ready()?;
        }
        Ok(Self { plan, network, origin, images, nodes, eagle: scene.eagle.to_owned() })
    }

    fn digests(&self, image: usize) -> impl Iterator<Item = &str> {
        self.images[image].blobs.iter().map(|blob| blob.digest.as_str())
    }

    /// Whether all proxies have a blob, as a tracker knows it.
    fn is_everywhere(&self, known: &Known, digest: &str) -> bool {
        known.get(digest).is_some_and(|proxies| usize::try_from(*proxies) == Ok(self.plan.proxies))
    }

    /// All proxies pull an image at once, without a request that fails; `half_way` is called when half of the requests were answered.
    fn pull(&self, number: usize, half_way: impl FnOnce() -> Result<()>) -> Result<()> {
        let (image, record) = (&self.images[number], Record::default());
        let half = self.plan.proxies * image.blobs.len() / 2;
        thread::scope(|scope| {
            let pulls: Vec<_> = (0..self.plan.proxies)
                .map(|node| {
                    let mirror = mirror(&self.network, node);
                    let runtime = Runtime { node, mirror, origin: &self.origin, record: &record };
                    scope.spawn(move || runtime.pull(number, image))
                })
                .collect();
            wait_until("half of a pull", DEADLINE, || Ok((record.requests().len() >= half).then_some(())))?;
            ensure!(record.pulls().is_empty(), "a pull was over before its middle");
            half_way()?;
            for pull in pulls {
                ensure!(pull.join().map_err(|_| anyhow!("a pull panicked"))?, "{:?}", record.requests());
            }
            let failed = record.requests().into_iter().find(|request| request.problem.is_some());
            failed.map_or(Ok(()), |failed| Err(anyhow!("a request failed: {failed:?}")))
        })
        .with_context(|| format!("image {number}"))
    }

    /// Waits until each blob of an image is known to be everywhere by one tracker, and to be at no proxy by the other. The blobs of each.
    fn spread(&self, image: usize) -> Result<[BTreeSet<String>; 2]> {
        let spread = wait_until("each blob to be at one tracker", DEADLINE, || {
            let known = [self.known(TRACKERS[0])?, self.known(TRACKERS[1])?];
            let mut spread = [BTreeSet::new(), BTreeSet::new()];
            for digest in self.digests(image) {
                for (place, known) in known.iter().enumerate() {
                    if self.is_everywhere(known, digest) {
                        spread[place].insert(digest.to_owned());
                    } else if known.get(digest).is_some_and(|proxies| *proxies > 0) {
                        return Ok(None);
                    }
                }
            }
            Ok((spread[0].len() + spread[1].len() == self.images[image].blobs.len()).then_some(spread))
        })?;
        ensure!(spread.iter().all(|blobs| !blobs.is_empty()), "one tracker has them all: {spread:?}");
        Ok(spread)
    }

    /// What `eagle status` and `eagle top` make of both trackers: every node and every swarm of some images once, and the trackers that are away by name.
    fn seen_as_one(&self, images: &[usize], away: &[usize]) -> Result<()> {
        let addresses = TRACKERS.map(|tracker| self.nodes[tracker].admin.to_string());
        for (command, nodes, swarms) in [("status", "/peers", "/swarms"), ("top", "/nodes", "/overview/active")] {
            let known = ask(&self.eagle, command, &addresses)?;
            let list =
                |path| known.pointer(path).and_then(Value::as_array).with_context(|| format!("no {path}: {known}"));
            let names = |path, key: &str| -> Result<Vec<String>> {
                let names = list(path)?.iter().map(|entry| entry[key].as_str().map(str::to_owned));
                names.collect::<Option<_>>().with_context(|| format!("no {key} in {path}: {known}"))
            };
            let ids = names(nodes, "id")?;
            ensure!(
                BTreeSet::from_iter(&ids).len() == ids.len() && ids.len() == self.plan.proxies + self.plan.seeders,
                "`eagle {command}` lists these nodes: {ids:?}"
            );
            let digests = names(swarms, "digest")?;
            ensure!(BTreeSet::from_iter(&digests).len() == digests.len(), "`eagle {command}` lists {digests:?}");
            let whole = counted(list(swarms)?)?;
            let mut pulled = images.iter().flat_map(|image| self.digests(*image));
            ensure!(pulled.all(|digest| self.is_everywhere(&whole, digest)), "`eagle {command}` lists {whole:?}");
            let silent = list("/trackers")?.iter().enumerate().filter(|(_, tracker)| tracker["problem"].is_string());
            let silent: Vec<usize> = silent.map(|(place, _)| TRACKERS[place]).collect();
            ensure!(silent == away, "`eagle {command}` misses {silent:?}, and {away:?} are away: {known}");
        }
        Ok(())
    }

    fn known(&self, tracker: usize) -> Result<Known> {
        let answer = http::request(self.nodes[tracker].admin, "GET", "/v1/swarms?limit=1000", &[])?;
        let page: Value = serde_json::from_slice(&answer.bytes()?)?;
        counted(page["swarms"].as_array().context("no list of swarms")?)
    }
}

/// What a command says of the cluster of these trackers.
fn ask(eagle: &Path, command: &str, trackers: &[String]) -> Result<Value> {
    let mut asking = Command::new(eagle);
    asking.args([command, "--json"]).args(trackers.iter().flat_map(|address| ["--tracker", address]));
    Ok(serde_json::from_str(&succeed(&mut asking, DEADLINE)?)?)
}

/// The number of proxies in each of some swarms.
fn counted(swarms: &[Value]) -> Result<Known> {
    let proxies = swarms.iter().map(|swarm| {
        let (peers, seeders) = (swarm["peers"].as_u64()?, swarm["seeders"].as_u64()?);
        Some((swarm["digest"].as_str()?.to_owned(), peers.checked_sub(seeders)?))
    });
    proxies.collect::<Option<Known>>().with_context(|| format!("not a list of swarms: {swarms:?}"))
}
