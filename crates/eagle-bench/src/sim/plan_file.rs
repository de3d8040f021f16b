//! A plan as it is written in a file (TOML).

use std::{collections::BTreeMap, path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use eagle_core::{
    Geometry,
    swarm::SwarmConfig,
    units::{Rate, Size},
};
use eagle_sim::{Churn, ChurnKind, Group, Links, Plan, Seeders, Start, TrackerModel};
use serde::{Deserialize, Deserializer, de};

/// Most nodes of a plan: beyond, a simulation takes more memory than machines have.
const MAX_NODES: u32 = 200_000;
/// Least size of a scaled blob: a few of the smallest pieces.
const LEAST_SIZE: f64 = 4_194_304.0;

/// A plan as it is written. `docs/benchmarks.md` describes the keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFile {
    /// What it is about, one line.
    pub(crate) description: String,
    #[serde(default = "one")]
    pub(crate) seed: u64,
    groups: Vec<GroupFile>,
    seeders: SeedersFile,
    blobs: Vec<BlobFile>,
    #[serde(default)]
    links: LinksFile,
    #[serde(default)]
    tracker: TrackerFile,
    #[serde(default)]
    churn: Vec<ChurnFile>,
    /// Constants of the swarm that differ from those of the programs.
    #[serde(default)]
    swarm: SwarmFile,
    #[serde(default)]
    pub(crate) targets: Targets,
}

const fn one() -> u64 {
    1
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupFile {
    count: u32,
    /// Down and up, unless they are given apart.
    rate: Option<RateRange>,
    down: Option<RateRange>,
    up: Option<RateRange>,
    region: Option<String>,
    zone: Option<String>,
    /// Racks over which its nodes are spread.
    #[serde(default)]
    racks: u16,
    #[serde(default)]
    start: StartFile,
}

/// One rate, or the least and the greatest.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum RateRange {
    One(Rate),
    Range(Rate, Rate),
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum StartFile {
    #[default]
    Together,
    Spread(Time),
    Poisson(Time),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeedersFile {
    #[serde(default = "one_seeder")]
    count: u32,
    rate: Rate,
    zone: Option<String>,
    /// From the origin; the seeders own the blobs when there is none.
    origin_rate: Option<Rate>,
    max_peers: Option<usize>,
}

const fn one_seeder() -> u32 {
    1
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct BlobFile {
    size: Size,
    /// As the seeder chooses it, unless it is given.
    piece_length: Option<Size>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LinksFile {
    latency: Option<Time>,
    zone_latency: Option<Time>,
    region_latency: Option<Time>,
    rack_rate: Option<Rate>,
    zone_rate: Option<Rate>,
    region_rate: Option<Rate>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct TrackerFile {
    peers_per_answer: Option<usize>,
    interval: Option<Time>,
    away: Option<Time>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChurnFile {
    at: Time,
    fraction: f64,
    /// They vanish; their peers lose the connection after this time.
    vanish: Option<Time>,
    /// Their rates are multiplied by this.
    slow: Option<f64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct SwarmFile {
    window: Option<u32>,
    requests_in_flight: Option<usize>,
    requests_per_peer: Option<usize>,
    max_peers: Option<usize>,
    greeted_peers: Option<usize>,
    exchange_below: Option<usize>,
    have_interval: Option<Time>,
    upload_slots: Option<usize>,
}

/// What the plan is to reach; see [`super::result`].
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Targets {
    /// Least efficiency of the worst node.
    pub(crate) efficiency_max: Option<f64>,
    /// Most seconds of the node in the middle.
    pub(crate) seconds_p50: Option<f64>,
    /// Most seconds of the hundredth node from the end.
    pub(crate) seconds_p99: Option<f64>,
    /// Most seconds of the last node.
    pub(crate) seconds_max: Option<f64>,
    /// Most time of a node over its own least time.
    pub(crate) over_bound_max: Option<f64>,
    /// Most bytes across racks over the least that brings everything into every rack.
    pub(crate) cross_rack_ratio: Option<f64>,
    /// The same for zones.
    pub(crate) cross_zone_ratio: Option<f64>,
    /// The same for regions.
    pub(crate) cross_region_ratio: Option<f64>,
    /// Most seconds of the last node over those of the same plan without labels.
    pub(crate) blind_ratio: Option<f64>,
    /// Most seconds that the simulation takes.
    pub(crate) wall_seconds: Option<f64>,
}

/// A duration, as in `500us` or `5s`.
#[derive(Debug, Clone, Copy)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text)
            .map(Self)
            .map_err(|error| de::Error::custom(format!("{text:?} is not a duration such as 5s or 500us: {error}")))
    }
}

impl Time {
    fn scaled(self, by: f64) -> Self {
        Self(self.0.mul_f64(by))
    }
}

impl PlanFile {
    /// Reads a plan.
    ///
    /// # Errors
    /// When the file cannot be read or is not a plan; with the line.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a plan", path.display()))
    }

    /// The plan with this share of its nodes and of its bytes, and with the times that go with the bytes.
    pub(crate) fn scaled(&self, by: f64) -> Self {
        let mut plan = self.clone();
        if by >= 1.0 {
            return plan;
        }
        for group in &mut plan.groups {
            // A share of a number of nodes is a number of nodes.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let count = (f64::from(group.count) * by).ceil() as u32;
            group.count = count.clamp(1, group.count);
        }
        let fastest =
            self.groups.iter().filter_map(|group| group.up.or(group.rate)).map(RateRange::most).max().unwrap_or(1);
        let least_link = fastest;
        let mut shrunk = 1.0;
        for blob in &mut plan.blobs {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            let size = (blob.size.0 as f64 * by).max(LEAST_SIZE) as u64;
            shrunk = size.min(blob.size.0) as f64 / blob.size.0 as f64;
            *blob = BlobFile { size: Size(size.min(blob.size.0)), piece_length: None };
        }
        for group in &mut plan.groups {
            group.start = match group.start {
                StartFile::Together => StartFile::Together,
                StartFile::Spread(over) => StartFile::Spread(over.scaled(shrunk)),
                StartFile::Poisson(over) => StartFile::Poisson(over.scaled(shrunk)),
            };
        }
        if let Some(away) = &mut plan.tracker.away {
            *away = away.scaled(shrunk);
        }
        for churn in &mut plan.churn {
            churn.at = churn.at.scaled(shrunk);
        }
        let links = &mut plan.links;
        // Fewer nodes share them; a link that is thin for one node stays so.
        for rate in [&mut links.rack_rate, &mut links.zone_rate, &mut links.region_rate] {
            if let Some(Rate::Limited(rate)) = rate {
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let scaled = (*rate as f64 * by) as u64;
                *rate = scaled.max(least_link).min(*rate);
            }
        }
        plan
    }

    /// The plan as the simulator takes it.
    ///
    /// # Errors
    /// With what makes no sense.
    pub(crate) fn plan(&self, seed: u64) -> Result<Plan> {
        let (mut zones, mut regions) = (Names::default(), Names::default());
        let groups = self.groups.iter().map(|group| group.group(&mut zones, &mut regions));
        let groups = groups.collect::<Result<Vec<_>>>()?;
        let nodes = groups.iter().try_fold(0u32, |sum, group| sum.checked_add(group.count));
        ensure!(
            nodes.is_some_and(|nodes| (1..=MAX_NODES).contains(&nodes)),
            "groups: there must be 1 to {MAX_NODES} nodes"
        );
        for (group, place) in self.groups.iter().zip(&groups) {
            let elsewhere = groups.iter().any(|other| other.zone == place.zone && other.region != place.region);
            ensure!(!elsewhere, "groups: zone {:?} is in two regions", group.zone.as_deref().unwrap_or(""));
        }
        ensure!(!self.blobs.is_empty() && self.blobs.len() <= 100, "blobs: there must be 1 to 100");
        let blobs = self.blobs.iter().map(BlobFile::geometry).collect::<Result<Vec<_>>>()?;
        ensure!((1..=100).contains(&self.seeders.count), "seeders.count must be from 1 to 100");
        let standard = Plan::cold(1, blobs[0], 1.0);
        let seeders = Seeders {
            count: self.seeders.count,
            up: bytes_per_second(self.seeders.rate),
            zone: self.seeders.zone.as_deref().map(|zone| zones.number(zone)),
            origin_rate: self.seeders.origin_rate.map(bytes_per_second),
            max_peers: self.seeders.max_peers.unwrap_or(standard.seeders.max_peers),
        };
        let latency = self.links.latency.map_or(standard.links.latency, |time| time.0);
        let links = Links {
            latency,
            zone_latency: self.links.zone_latency.map_or(latency, |time| time.0),
            region_latency: self.links.region_latency.or(self.links.zone_latency).map_or(latency, |time| time.0),
            rack_rate: self.links.rack_rate.map(bytes_per_second),
            zone_rate: self.links.zone_rate.map(bytes_per_second),
            region_rate: self.links.region_rate.map(bytes_per_second),
        };
        let tracker = TrackerModel {
            peers_per_answer: self.tracker.peers_per_answer.unwrap_or(standard.tracker.peers_per_answer),
            interval: self.tracker.interval.map_or(standard.tracker.interval, |time| time.0),
            away: self.tracker.away.map(|time| time.0),
            ..standard.tracker
        };
        ensure!(tracker.interval > Duration::ZERO, "tracker.interval must not be 0");
        let churn = self.churn.iter().map(|churn| churn.churn()).collect::<Result<Vec<_>>>()?;
        let config = self.swarm.over(&standard.config);
        let upload_slots = self.swarm.upload_slots.unwrap_or(standard.upload_slots);
        Ok(Plan { groups, seeders, blobs, links, tracker, upload_slots, churn, config, seed, ..standard })
    }
}

/// Zones or regions by name, numbered as they come.
#[derive(Default)]
struct Names(BTreeMap<String, u16>);

impl Names {
    fn number(&mut self, name: &str) -> u16 {
        let next = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        *self.0.entry(name.to_owned()).or_insert(next)
    }
}

impl GroupFile {
    fn group(&self, zones: &mut Names, regions: &mut Names) -> Result<Group> {
        let (Some(down), Some(up)) = (self.down.or(self.rate), self.up.or(self.rate)) else {
            bail!("groups: a group needs `rate`, or both `down` and `up`");
        };
        let start = match self.start {
            StartFile::Together => Start::Together,
            StartFile::Spread(Time(over)) => Start::Spread(over),
            StartFile::Poisson(Time(over)) => Start::Poisson(over),
        };
        let region = regions.number(self.region.as_deref().unwrap_or(""));
        let zone = zones.number(self.zone.as_deref().unwrap_or(""));
        let (down, up) = (down.range()?, up.range()?);
        Ok(Group { count: self.count, down, up, region, zone, racks: self.racks, start })
    }
}

impl RateRange {
    /// The greatest, bytes per second.
    fn most(self) -> u64 {
        let (Self::One(rate) | Self::Range(_, rate)) = self;
        rate.bytes_per_second().unwrap_or(u64::MAX)
    }

    fn range(self) -> Result<(f64, f64)> {
        let (least, most) = match self {
            Self::One(rate) => (rate, rate),
            Self::Range(least, most) => (least, most),
        };
        let range = (bytes_per_second(least), bytes_per_second(most));
        ensure!(range.0 <= range.1, "groups: {least} is not the lesser of {least} and {most}");
        Ok(range)
    }
}

/// A rate in numbers. Without a limit it is one that nothing here reaches, since rates are divided by.
fn bytes_per_second(rate: Rate) -> f64 {
    rate.bytes_per_second().map_or(1e15, |rate| rate as f64)
}

impl BlobFile {
    fn geometry(&self) -> Result<Geometry> {
        ensure!(self.size.0 > 0, "blobs: a size of 0 leaves nothing to do");
        Ok(match self.piece_length {
            Some(length) => Geometry::new(self.size.0, u32::try_from(length.0)?)?,
            None => Geometry::auto(self.size.0)?,
        })
    }
}

impl ChurnFile {
    fn churn(&self) -> Result<Churn> {
        ensure!((0.0..=1.0).contains(&self.fraction), "churn.fraction must be from 0 to 1");
        let kind = match (self.vanish, self.slow) {
            (Some(Time(noticed)), None) => ChurnKind::Vanish(noticed),
            (None, Some(factor)) if factor > 0.0 && factor <= 1.0 => ChurnKind::Slow(factor),
            (None, Some(_)) => bail!("churn.slow must be above 0 and at most 1"),
            _ => bail!("churn: give either `vanish` or `slow`"),
        };
        Ok(Churn { at: self.at.0, fraction: self.fraction, kind })
    }
}

impl SwarmFile {
    fn over(&self, standard: &SwarmConfig) -> SwarmConfig {
        SwarmConfig {
            window: self.window.unwrap_or(standard.window),
            requests_in_flight: self.requests_in_flight.unwrap_or(standard.requests_in_flight),
            requests_per_peer: self.requests_per_peer.unwrap_or(standard.requests_per_peer),
            max_peers: self.max_peers.unwrap_or(standard.max_peers),
            greeted_peers: self.greeted_peers.unwrap_or(standard.greeted_peers),
            exchange_below: self.exchange_below.unwrap_or(standard.exchange_below),
            have_interval: self.have_interval.map_or(standard.have_interval, |time| time.0),
            ..standard.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = r#"
description = "the least"
groups = [{ count = 3, rate = "10MB/s" }]
seeders = { rate = "10MB/s" }
blobs = [{ size = "64MiB" }]
"#;

    fn parse(text: &str) -> Result<Plan, String> {
        let file: PlanFile = toml::from_str(text).map_err(|error| error.to_string())?;
        file.plan(file.seed).map_err(|error| error.to_string())
    }

    #[test]
    fn the_least_plan_is_that_of_the_programs() {
        let plan = parse(LEAST).unwrap();
        assert_eq!((plan.nodes(), plan.size(), plan.seed), (3, 64 << 20, 1));
        assert_eq!(plan.groups[0].down, (10e6, 10e6));
        assert_eq!(plan.blobs[0], Geometry::auto(64 << 20).unwrap());
        assert_eq!(plan.seeders.origin_rate, None);
        assert_eq!(plan.config.window, SwarmConfig::default().window);
    }

    #[test]
    fn every_key_is_read() {
        let plan = parse(
            r#"
description = "everything"
seed = 9
groups = [
    { count = 1, down = ["1MB/s", "2MB/s"], up = "3MB/s", zone = "a", start = { poisson = "4s" } },
    { count = 2, rate = "unlimited", zone = "b", start = "together" },
    { count = 2, rate = "1MB/s", zone = "a", start = { spread = "1s" } },
]
seeders = { count = 2, rate = "5MB/s", zone = "b", origin_rate = "6MB/s", max_peers = 9 }
blobs = [{ size = "1MiB", piece_length = "64KiB" }, { size = "2MiB" }]
links = { latency = "1ms", zone_latency = "2ms", zone_rate = "7MB/s" }
tracker = { peers_per_answer = 8, interval = "3s" }
churn = [{ at = "1s", fraction = 0.5, vanish = "2s" }, { at = "2s", fraction = 0.1, slow = 0.25 }]
swarm = { window = 0, upload_slots = 4, have_interval = "1ms" }
targets = { efficiency_max = 0.9, seconds_p50 = 1.0, wall_seconds = 60.0 }
"#,
        )
        .unwrap();
        assert_eq!(plan.groups.iter().map(|group| group.zone).collect::<Vec<_>>(), [0, 1, 0]);
        assert_eq!(plan.groups[0].down, (1e6, 2e6));
        assert_eq!(plan.groups[0].start, Start::Poisson(Duration::from_secs(4)));
        assert_eq!(plan.seeders.zone, Some(1));
        assert_eq!(plan.links.zone_rate, Some(7e6));
        assert_eq!(plan.churn[0].kind, ChurnKind::Vanish(Duration::from_secs(2)));
        assert_eq!((plan.config.window, plan.upload_slots, plan.tracker.peers_per_answer), (0, 4, 8));
    }

    #[test]
    fn mistakes_are_named_with_their_line() {
        for (text, expected) in [
            (LEAST.replace("count = 3", "counts = 3"), vec!["line 3", "counts"]),
            (LEAST.replace("10MB/s\" }]", "fast\" }]"), vec!["line 3"]),
            (format!("{LEAST}churn = [{{ at = \"soon\", fraction = 0.5 }}]"), vec!["line 6", "soon"]),
            (format!("{LEAST}churn = [{{ at = \"1s\", fraction = 0.5 }}]"), vec!["either `vanish` or `slow`"]),
            (format!("{LEAST}churn = [{{ at = \"1s\", fraction = 2.0, slow = 0.5 }}]"), vec!["from 0 to 1"]),
            (LEAST.replace("rate = \"10MB/s\" }]", "down = \"1MB/s\" }]"), vec!["both `down` and `up`"]),
            (LEAST.replace("count = 3", "count = 0"), vec!["1 to 200000 nodes"]),
            (LEAST.replace("64MiB", "0"), vec!["leaves nothing"]),
            (LEAST.replace("64MiB\"", "64MiB\", piece_length = \"3MiB\""), vec!["power of two"]),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(expected.iter().all(|part| error.contains(part)), "{expected:?} in {error}");
        }
    }
}
