//! Everything in Eagle that reads bytes from outside, as functions to fuzz.
//!
//! A [`Target`] takes any bytes and gives them to the readers of one kind of input. It panics when a reader does, and when what
//! was read breaks a promise of the reader: that it comes out the same when written and read again, that it is no larger than what came
//! in, that a name leads nowhere else. Memory and time are watched by whoever calls it.
//!
//! The same functions run in two ways: as property tests with this crate's own tests, over seeds and variations of them; and under
//! libFuzzer, by the program of this crate. `cargo xtask fuzz` runs the latter with the seeds of `seeds/` and the words of
//! `dictionaries/`.
#![warn(missing_docs)]

mod announces;
mod claims;
mod configuration;
mod headers;
mod logins;
mod membership;
mod names;
mod networks;
mod redis;
mod requests;
mod runtime_files;
mod seeder;
mod stored;
mod swarm;
mod wire;

use std::fmt;

/// One kind of input.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name, that of its directory of seeds and of its dictionary too.
    pub name: &'static str,
    /// Reads these bytes.
    ///
    /// # Panics
    /// When a reader panics or breaks a promise.
    pub run: fn(&[u8]),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Every target, by name.
pub const TARGETS: [Target; 21] = [
    Target { name: "announces", run: announces::run },
    Target { name: "announces_protobuf", run: announces::protobuf },
    Target { name: "certificates", run: membership::certificates },
    Target { name: "claims", run: claims::run },
    Target { name: "cluster_keys", run: membership::cluster_keys },
    Target { name: "configuration", run: configuration::run },
    Target { name: "control_messages", run: wire::control_messages },
    Target { name: "credentials", run: headers::credentials },
    Target { name: "data_frames", run: wire::data_frames },
    Target { name: "headers", run: headers::run },
    Target { name: "logins", run: logins::run },
    Target { name: "manifests", run: headers::manifests },
    Target { name: "metainfo", run: wire::metainfo },
    Target { name: "names", run: names::run },
    Target { name: "networks", run: networks::run },
    Target { name: "notifications", run: seeder::notifications },
    Target { name: "redis", run: redis::run },
    Target { name: "requests", run: requests::run },
    Target { name: "runtime_files", run: runtime_files::run },
    Target { name: "stored_files", run: stored::run },
    Target { name: "swarm", run: swarm::run },
];

/// Runs one target by its name.
///
/// # Panics
/// When the target does, and when there is none of this name.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    target.map(|target| (target.run)(bytes)).unwrap_or_else(|| panic!("no fuzz target is called {name}"));
}
