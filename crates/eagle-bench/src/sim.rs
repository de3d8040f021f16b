//! `eagle-bench sim`: swarms of any size on virtual time.
//!
//! The nodes run the swarm state machine and the tracker's choice of peers that the real programs run
//! (`eagle-core`); the network between them is a model (`eagle-sim`).

mod picture;
mod plan_file;
mod result;

use std::time::Instant;

use anyhow::{Context as _, Result};
use eagle_sim::Plan;

use self::{
    plan_file::PlanFile,
    result::{Outcome, SimReport},
};
use crate::{
    cli::{SimArgs, SimPolicy},
    host::ProcessUse,
    report::Circumstances,
};

/// Simulates a plan, prints what came of it and writes it.
///
/// # Errors
/// When the plan is not one, or a file cannot be written.
pub(crate) fn run(args: &SimArgs) -> Result<()> {
    let circumstances = Circumstances::now("sim", None);
    let file = PlanFile::read(&args.plan)?;
    let seed = args.seed.unwrap_or(file.seed);
    let plan = file.scaled(args.scale).plan(seed).with_context(|| format!("{} cannot be run", args.plan.display()))?;
    let name = args.plan.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let start = Instant::now();
    let policy = args.policy.unwrap_or(match file.targets.blind_ratio {
        Some(_) => SimPolicy::Both,
        None => SimPolicy::Topology,
    });
    let blind = || eagle_sim::run(&Plan { labels: false, ..plan.clone() });
    let (simulated, twin) = match policy {
        SimPolicy::Topology => (eagle_sim::run(&plan), None),
        SimPolicy::Blind => (blind(), None),
        SimPolicy::Both => (eagle_sim::run(&plan), Some(blind())),
    };
    let wall = start.elapsed();
    let memory = ProcessUse::of("self")?.max_rss_bytes;
    if let Some(path) = &args.svg {
        let picture = picture::draw(&name, &file.description, &simulated);
        std::fs::write(path, picture).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    let knows_places = policy != SimPolicy::Blind;
    let outcome = Outcome { simulated: &simulated, knows_places, twin: twin.as_ref(), wall, memory };
    let report = SimReport::new(circumstances, &name, &file, &plan, &outcome);
    print!("{report}");
    args.output.write(&report)?;
    Ok(())
}
