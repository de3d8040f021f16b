//! Prints what choosing the peers of one answer costs a tracker, by the number of candidates it looks at:
//! `cargo run --release -p eagle-sim --example answers`.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use eagle_core::{
    NodeRole, Place, Topology,
    tracker::{Asker, Candidate, DefaultPolicy, Flows, NodeLoad, Ownership, PeerPolicy as _},
};

/// Peers in an answer, the tracker's default.
const ANSWER: usize = 40;
/// Answers for one figure.
const ANSWERS: u64 = 2_000;

/// A node of one of 4 zones of 10 racks, with more or less of the blob.
fn candidate(number: usize) -> Result<Candidate, Box<dyn Error>> {
    let topology = Topology::new(
        Some("region".to_owned()),
        Some(format!("zone{}", number % 4)),
        Some(format!("rack{}", number / 4 % 10)),
    )?;
    Ok(Candidate {
        role: NodeRole::Proxy,
        place: Place::from(&topology),
        pieces: Ownership::Prefix(u32::try_from(number % 7)?),
        load: Some(NodeLoad { requests: u16::try_from(number % 5)?, free_slots: 1 }),
        age: Duration::from_secs(5),
    })
}

fn main() -> Result<(), Box<dyn Error>> {
    for nodes in [50, 1_000, 10_000] {
        let swarm = (0..nodes).map(candidate).collect::<Result<Vec<_>, _>>()?;
        let asker = candidate(nodes)?;
        let asked = Asker { place: asker.place, pieces: &asker.pieces };
        let (mut took, mut named) = (Duration::ZERO, 0);
        for seed in 0..ANSWERS {
            let start = Instant::now();
            named += DefaultPolicy.select(asked, &swarm, &Flows::default(), ANSWER, seed).len();
            took += start.elapsed();
        }
        let micros = took.as_secs_f64() * 1e6 / ANSWERS as f64;
        println!("{nodes:6} candidates: {micros:7.1} us for an answer of {}", named as u64 / ANSWERS);
    }
    Ok(())
}
