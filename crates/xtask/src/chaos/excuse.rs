//! Which requests may fail, and why: what nobody could have served at that moment.

use std::time::{Duration, Instant};

use super::{
    client::Request,
    content::Image,
    judge::Disturbance,
    origin::Origin,
    plan::{Fault, Member, OriginFault, Plan},
    watch::Measured,
};

/// How long after the end of a fault what it befell may still suffer: TCP finds out that a link works again with pauses that
/// double from 0.2 s, so 3.2 s after a cut of 3 s at the latest. The pulls that nothing excuses begin after it.
pub(crate) const AFTERMATH: Duration = Duration::from_millis(3_500);
/// How much later than it happened the look at a disk finds a file, at most, on a busy machine.
const LOOK: Duration = Duration::from_secs(1);

/// Why a request may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Excuse {
    /// The proxy that was asked was killed or frozen, or its clocks jumped.
    OwnProcess,
    /// The proxy that was asked had no link, and did not have by itself what was asked for.
    OwnLink,
    /// The registry turned the caller away.
    Refused,
    /// The registry failed, and nobody within reach who could vouch for it had what was asked for.
    Registry,
    /// It may have joined a transfer that began with wrong bytes of the registry: that is found out at its end, and the runtime's next try begins anew.
    BeganWrong,
}

impl Excuse {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OwnProcess => "the own proxy was down",
            Self::OwnLink => "the own link was",
            Self::Refused => "the registry refused",
            Self::Registry => "the registry failed, nobody else had it",
            Self::BeganWrong => "the registry sent wrong bytes",
        }
    }
}

/// What the judgement goes by.
pub(crate) struct Seen<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) images: &'a [Image],
    pub(crate) origin: &'a Origin,
    pub(crate) requests: &'a [Request],
    pub(crate) measured: &'a Measured,
    pub(crate) disturbances: &'a [Disturbance],
    /// Blobs that were changed on disk.
    pub(crate) corrupted: &'a [(Member, String)],
    pub(crate) start: Instant,
}

impl Seen<'_> {
    /// Why a request may fail or take longer than others, and how much longer.
    pub(crate) fn excuse(&self, request: &Request) -> Option<(Excuse, Duration)> {
        let own = Member::Proxy(request.node);
        let touching: Vec<_> =
            self.disturbances.iter().filter(|other| other.touches(request.from, request.to)).collect();
        let any = |what: &dyn Fn(Fault) -> bool| touching.iter().any(|other| what(other.fault));
        // All deadlines of a process whose clock jumps are over at once, also those of what it waits for.
        let excuse = if any(&|fault| [Fault::Kill(own), Fault::Freeze(own)].contains(&fault) || jumps(fault, own)) {
            Excuse::OwnProcess
        } else if any(&|fault| fault == Fault::Origin(OriginFault::Status(401))) {
            Excuse::Refused
        } else {
            let unlinked = any(&|fault| [Fault::Cut(own), Fault::Slow(own)].contains(&fault));
            let origin = any(&|fault| matches!(fault, Fault::Origin(_)));
            let limited = any(&|fault| fault == Fault::Origin(OriginFault::Status(429)));
            if unlinked && !self.node_has(request) {
                Excuse::OwnLink
            } else if origin && !self.node_has(request) && (limited || !self.seeders_have(request, &touching)) {
                Excuse::Registry
            } else if request.problem.is_some() && self.origin.lied_about(&request.digest) {
                Excuse::BeganWrong
            } else {
                return None;
            }
        };
        // What stands still for so long, or is not answered.
        let lasted = |other: &&Disturbance| {
            let end = other.over.unwrap_or(request.to).min(request.to);
            end.saturating_duration_since(other.begun.max(request.from))
        };
        Some((excuse, touching.iter().map(lasted).sum::<Duration>() + AFTERMATH))
    }

    /// Since when a member remembers what it was told: it was started, or its clocks jumped and all that it knew was old, or the registry
    /// refused the caller what it had allowed.
    fn remembers_since(&self, member: Member, by: Instant) -> Instant {
        let forgets = |other: &&Disturbance| {
            other.begun < by
                && (other.fault == Fault::Kill(member)
                    || jumps(other.fault, member)
                    || other.fault == Fault::Origin(OriginFault::Status(401)))
        };
        let forgotten = self.disturbances.iter().filter(forgets);
        forgotten.map(|other| other.over.map_or(by, |over| over + AFTERMATH)).max().unwrap_or(self.start)
    }

    /// Whether the proxy that is asked can answer by itself: a manifest that it has answered before, or a blob on its disk
    /// whose manifest it has answered.
    fn node_has(&self, request: &Request) -> bool {
        let own = Member::Proxy(request.node);
        let since = self.remembers_since(own, request.from);
        let answered = |digest: &str, what: Option<&str>| {
            self.requests.iter().any(|other| {
                other.node == request.node
                    && other.problem.is_none()
                    && other.digest == digest
                    && what.is_none_or(|what| other.what == what)
                    && other.from >= since
                    && other.to <= request.from
            })
        };
        if request.is_manifest() {
            return answered(&request.digest, Some(&request.what));
        }
        let manifest = self.images.get(request.image).map(|image| image.manifest.digest.as_str());
        manifest.is_some_and(|manifest| answered(manifest, None)) && self.has_on_disk(own, request).is_some()
    }

    /// Since when a member was seen to have a blob, all the time that the request took.
    fn has_on_disk(&self, member: Member, request: &Request) -> Option<Instant> {
        let size: u64 = self.images.iter().map(Image::size).sum();
        let never_evicts = matches!(member, Member::Seeder(_)) || self.plan.cache_limit > size;
        let whole = !self.corrupted.iter().any(|(other, digest)| *other == member && *digest == request.digest);
        // A disk that fills makes caches give up blobs, between two looks at them.
        let touched =
            |other: &Disturbance| other.fault == Fault::FillDisk(member) && other.touches(request.from, request.to);
        let stays = !self.disturbances.iter().any(touched);
        let since = self.measured.on_disk(member, &request.digest, request.from, request.to)?;
        (never_evicts && whole && stays).then_some(since)
    }

    /// Whether a seeder within reach has what is asked for and remembers that the registry allowed it.
    fn seeders_have(&self, request: &Request, touching: &[&Disturbance]) -> bool {
        let seeders = || (0..self.plan.seeders).map(Member::Seeder);
        let reaches = |seeder: Member, touching: &[&Disturbance]| {
            !touching.iter().any(|other| comes_between(other.fault, seeder, request.node))
        };
        if request.is_manifest() {
            // The first answer since a node's start came from a seeder, if they could be asked. Any of them: all have to be there.
            let since = seeders().map(|seeder| self.remembers_since(seeder, request.to)).max().unwrap_or(self.start);
            let told = self.requests.iter().any(|other| {
                other.what == request.what
                    && other.problem.is_none()
                    && other.from >= since
                    && other.to <= request.from
                    && !self.node_has(other)
                    && !self.disturbances.iter().filter(|fault| fault.touches(other.from, other.to)).any(|fault| {
                        matches!(fault.fault, Fault::Origin(_))
                            || seeders().any(|seeder| comes_between(fault.fault, seeder, other.node))
                    })
            });
            return told && seeders().all(|seeder| reaches(seeder, touching));
        }
        seeders().any(|seeder| {
            let since = self.has_on_disk(seeder, request);
            let remembers = self.remembers_since(seeder, request.to);
            // A file is seen after it was written, and the registry had allowed it before.
            reaches(seeder, touching) && since.is_some_and(|since| remembers == self.start || since >= remembers + LOOK)
        })
    }
}

/// Whether all clocks of a member jump.
fn jumps(fault: Fault, member: Member) -> bool {
    matches!(fault, Fault::Jump(other, _) if other == member)
}

/// Whether a fault keeps a seeder and the proxy of this number from each other.
fn comes_between(fault: Fault, seeder: Member, node: usize) -> bool {
    let own = Member::Proxy(node);
    match fault {
        Fault::Kill(member)
        | Fault::Freeze(member)
        | Fault::Cut(member)
        | Fault::Slow(member)
        | Fault::Jump(member, _) => member == seeder,
        Fault::Part(one, other) | Fault::CorruptWire(one, other, _) => {
            [one, other].contains(&seeder) && [one, other].contains(&own)
        }
        Fault::KillTrackers
        | Fault::FillDisk(_)
        | Fault::CorruptFiles(..)
        | Fault::MoveClock(..)
        | Fault::Origin(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::chaos::{client::Problem, plan::Channel};

    /// A run of 60 s whose story a test tells; all times are seconds since its start.
    struct Story {
        plan: Plan,
        images: Vec<Image>,
        origin: Origin,
        requests: Vec<Request>,
        measured: Measured,
        disturbances: Vec<Disturbance>,
        corrupted: Vec<(Member, String)>,
        start: Instant,
    }

    impl Story {
        fn new() -> Self {
            let images = vec![Image::make(1, 0, &[1_000])];
            let origin = Origin::start("127.0.0.1:0".parse().unwrap(), &images).unwrap();
            let plan = Plan { seeders: 2, cache_limit: u64::MAX, ..Plan::of(1, true) };
            let (requests, disturbances, corrupted) = (Vec::new(), Vec::new(), Vec::new());
            let (measured, start) = (Measured::default(), Instant::now());
            Self { plan, images, origin, requests, measured, disturbances, corrupted, start }
        }

        fn at(&self, second: u64) -> Instant {
            self.start + Duration::from_secs(second)
        }

        fn happens(&mut self, fault: Fault, from: u64, to: u64) {
            let (begun, over) = (self.at(from), Some(self.at(to)));
            let number = self.disturbances.len();
            self.disturbances.push(Disturbance { number, fault, begun, undone: over, over });
        }

        /// From this second on a member has the layer.
        fn stores(&mut self, member: Member, from: u64) {
            let name = self.images[0].blobs[1].digest.replace("sha256:", "");
            let (file, mut before) = ([PathBuf::from(name).join("data")], None);
            for second in from..=60 {
                let at = self.at(second);
                self.measured.look_at_disk(member, &file, before, (at, at));
                before = Some(at);
            }
        }

        fn request(&self, node: usize, manifest: bool, from: u64) -> Request {
            let (kind, document) = match manifest {
                true => ("manifests", &self.images[0].manifest),
                false => ("blobs", &self.images[0].blobs[1]),
            };
            Request {
                node,
                image: 0,
                what: format!("/v2/x/{kind}/{}", document.digest),
                digest: document.digest.clone(),
                from: self.at(from),
                to: self.at(from + 1),
                problem: Some(Problem::Failed("502".into())),
            }
        }

        /// A node is given the manifest.
        fn answers(&mut self, node: usize, from: u64) {
            let request = Request { problem: None, ..self.request(node, true, from) };
            self.requests.push(request);
        }

        fn excuse(&self, request: &Request) -> Option<Excuse> {
            let Self { plan, images, origin, requests, measured, disturbances, corrupted, start } = self;
            let seen = Seen { plan, images, origin, requests, measured, disturbances, corrupted, start: *start };
            seen.excuse(request).map(|(excuse, _)| excuse)
        }
    }

    const FAILS: Fault = Fault::Origin(OriginFault::Reset);

    #[test]
    fn a_seeder_that_has_it_serves_whatever_befell_the_other() {
        let mut story = Story::new();
        let blob = story.request(0, false, 30);
        story.happens(FAILS, 29, 32);
        assert_eq!(story.excuse(&blob), Some(Excuse::Registry));
        // What another node has nobody vouches for.
        story.stores(Member::Proxy(1), 5);
        assert_eq!(story.excuse(&blob), Some(Excuse::Registry));
        story.stores(Member::Seeder(1), 5);
        assert_eq!(story.excuse(&blob), None);
        for fault in [
            Fault::Kill(Member::Seeder(0)),
            Fault::Freeze(Member::Seeder(0)),
            Fault::Part(Member::Seeder(1), Member::Proxy(2)),
            Fault::CorruptWire(Member::Seeder(1), Member::Seeder(0), Channel::Http),
            Fault::MoveClock(Member::Seeder(1), 9),
            Fault::KillTrackers,
        ] {
            story.happens(fault, 28, 31);
            assert_eq!(story.excuse(&blob), None, "{fault}");
        }
        for (fault, from, to) in [
            (Fault::Part(Member::Proxy(0), Member::Seeder(1)), 20, 26),
            (Fault::Freeze(Member::Seeder(1)), 10, 13),
            (Fault::FillDisk(Member::Seeder(1)), 10, 13),
            (Fault::Kill(Member::Seeder(1)), 10, 13),
        ] {
            let before = story.disturbances.clone();
            story.happens(fault, 29, 31);
            assert_eq!(story.excuse(&blob), Some(Excuse::Registry), "{fault}");
            story.disturbances = before.clone();
            story.happens(fault, from, to);
            // A process that was started again does not know whom the registry had allowed what.
            let forgot = matches!(fault, Fault::Kill(_)).then_some(Excuse::Registry);
            assert_eq!(story.excuse(&blob), forgot, "{fault}");
            story.disturbances = before;
        }
        story.corrupted.push((Member::Seeder(1), blob.digest.clone()));
        assert_eq!(story.excuse(&blob), Some(Excuse::Registry));
    }

    #[test]
    fn a_node_that_has_it_needs_nobody() {
        let mut story = Story::new();
        let own = Member::Proxy(0);
        story.happens(Fault::Cut(own), 29, 31);
        story.happens(FAILS, 29, 31);
        let (manifest, blob) = (story.request(0, true, 30), story.request(0, false, 30));
        assert_eq!((story.excuse(&manifest), story.excuse(&blob)), (Some(Excuse::OwnLink), Some(Excuse::OwnLink)));
        story.answers(0, 3);
        assert_eq!((story.excuse(&manifest), story.excuse(&blob)), (None, Some(Excuse::OwnLink)));
        story.stores(own, 5);
        assert_eq!(story.excuse(&blob), None);
        // A new process asks the registry again who may have it.
        story.happens(Fault::Kill(own), 10, 12);
        assert_eq!((story.excuse(&manifest), story.excuse(&blob)), (Some(Excuse::OwnLink), Some(Excuse::OwnLink)));
        story.answers(0, 17);
        assert_eq!((story.excuse(&manifest), story.excuse(&blob)), (None, None));
        story.happens(Fault::Freeze(own), 25, 27);
        assert_eq!(story.excuse(&blob), Some(Excuse::OwnProcess));
    }

    #[test]
    fn a_manifest_that_a_seeder_was_asked_for_is_known_there() {
        let mut story = Story::new();
        story.happens(FAILS, 29, 31);
        let manifest = story.request(0, true, 30);
        assert_eq!(story.excuse(&manifest), Some(Excuse::Registry));
        story.answers(1, 3);
        assert_eq!(story.excuse(&manifest), None);
        story.happens(Fault::Kill(Member::Seeder(0)), 10, 12);
        assert_eq!(story.excuse(&manifest), Some(Excuse::Registry));
        // The node may answer by itself.
        story.answers(1, 20);
        assert_eq!(story.excuse(&manifest), Some(Excuse::Registry));
        story.answers(2, 20);
        assert_eq!(story.excuse(&manifest), None);
        story.happens(Fault::Origin(OriginFault::Status(401)), 22, 23);
        assert_eq!(story.excuse(&manifest), Some(Excuse::Registry));
    }

    #[test]
    fn nothing_is_excused_by_what_is_long_over() {
        let mut story = Story::new();
        for fault in [FAILS, Fault::Kill(Member::Proxy(0)), Fault::Cut(Member::Proxy(0))] {
            story.happens(fault, 20, 26);
        }
        assert_eq!(story.excuse(&story.request(0, false, 30)), None);
        assert_eq!(story.excuse(&story.request(0, false, 29)), Some(Excuse::OwnProcess));
        let seen = story.request(0, false, 25);
        assert_eq!(story.excuse(&seen), Some(Excuse::OwnProcess));
    }
}
