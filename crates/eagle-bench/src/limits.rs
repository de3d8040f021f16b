//! `eagle-bench limits`: how well the limits of a host hold, are shared, and change.

mod flow;
mod processes;
mod result;
mod windows;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use eagle_core::{units::Rate, wire::control::Encryption as Wire};

use self::{
    flow::{Direction, Flow},
    result::{Beyond, Change, LimitsReport, RateResult},
    windows::{Sample, errors, settled},
};
use crate::{
    cli::{Encryption, LimitsArgs},
    cluster::find_eagle,
    report::Circumstances,
    stats::{percentile, sorted},
};

/// The windows in which a rate has to hold.
const WINDOW: Duration = Duration::from_secs(1);
/// The windows in which a new rate is looked for; shorter, or the change itself would blur it.
const CHANGE_WINDOW: Duration = Duration::from_millis(250);
/// How near a new rate has to be to count as in effect.
const CHANGE_TOLERANCE: f64 = 0.1;
/// How long each rate of a change is kept.
const CHANGE_KEPT: Duration = Duration::from_secs(2);
/// The rates of the change between nodes of this process, bytes per second.
const CHANGES: [u64; 3] = [1 << 20, 16 << 20, 256 << 10];
/// How much more than a rate has to be possible without a limit, so that it is the limit that is seen.
const HEADROOM: f64 = 1.3;
/// Rounds of a comparison with no limit at all.
const ROUNDS: usize = 3;
/// Length of one part of such a comparison.
const COMPARISON: Duration = Duration::from_secs(1);

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When something does not start, or nothing moves.
pub(crate) async fn run(args: LimitsArgs) -> Result<()> {
    let eagle = find_eagle(args.eagle.as_deref())?;
    let circumstances = Circumstances::now("limits", Some(&eagle));
    let encryption = match args.encryption {
        Encryption::Tls => Wire::Tls,
        Encryption::None => Wire::None,
    };
    eprintln!("Without a limit ...");
    let mut unlimited = Vec::new();
    for direction in [Direction::Download, Direction::Upload] {
        unlimited.push((direction, throughput(direction, encryption, Rate::Unlimited).await?));
    }
    let (mut rates, mut beyond) = (Vec::new(), Vec::new());
    for &rate in &args.rates {
        let limit = rate.bytes_per_second().context("--rates: unlimited is no limit to measure")?;
        for &(direction, possible) in &unlimited {
            eprintln!("{rate} {} ...", direction.as_str());
            if possible < limit as f64 * HEADROOM {
                beyond.push(compare(direction, encryption, limit).await?);
            } else {
                rates.push(hold(direction, encryption, limit, args.seconds).await?);
            }
        }
    }
    let mut changes = Vec::new();
    for direction in [Direction::Download, Direction::Upload] {
        eprintln!("Changing the {} limit ...", direction.as_str());
        changes.extend(change(direction, encryption).await?);
    }
    let mut shares = Vec::new();
    if !args.no_processes {
        eprintln!("Four blobs at once, and changes over HTTP, with a proxy and a seeder ...");
        let measured = processes::measure(&args).await?;
        shares = measured.shares;
        changes.extend(measured.changes);
    }
    let report = LimitsReport::new(circumstances, &args, &unlimited, rates, beyond, shares, changes);
    args.output.write(&report)?;
    println!("{report}");
    Ok(())
}

/// A rate, in all windows of a second.
async fn hold(direction: Direction, encryption: Wire, rate: u64, seconds: f64) -> Result<RateResult> {
    let mut flow = Flow::start(direction, encryption, Rate::Limited(rate)).await?;
    let mut samples = Vec::new();
    let sampled = flow.sample(Duration::from_secs_f64(seconds), &mut samples).await;
    flow.stop().await;
    sampled?;
    let errors = errors(&samples, rate as f64, WINDOW).context("the measurement is shorter than a window")?;
    Ok(RateResult { direction, rate_bytes_per_second: rate, errors, samples: samples.len() })
}

/// Bytes per second at a rate, or at most.
async fn throughput(direction: Direction, encryption: Wire, rate: Rate) -> Result<f64> {
    let mut flow = Flow::start(direction, encryption, rate).await?;
    let mut samples = Vec::new();
    // The ramp of the connections is not part of it.
    let warm = flow.sample(COMPARISON / 4, &mut Vec::new()).await;
    let sampled = flow.sample(COMPARISON, &mut samples).await;
    flow.stop().await;
    warm.and(sampled)?;
    let (first, last) = (samples.first().context("no sample")?, samples.last().context("no sample")?);
    ensure!(last.at > first.at, "no time passed");
    Ok((last.bytes - first.bytes) as f64 / (last.at - first.at))
}

/// A rate that this machine does not reach: the limit must not slow it.
async fn compare(direction: Direction, encryption: Wire, rate: u64) -> Result<Beyond> {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        without.push(throughput(direction, encryption, Rate::Unlimited).await?);
        with.push(throughput(direction, encryption, Rate::Limited(rate)).await?);
    }
    let median = |values: Vec<f64>| percentile(&sorted(values), 50).context("no round");
    let (limited, unlimited) = (median(with)?, median(without)?);
    Ok(Beyond {
        direction,
        rate_bytes_per_second: rate,
        bytes_per_second: limited,
        unlimited_bytes_per_second: unlimited,
        // A limit that is below what is possible after all is not what slows it.
        ratio: limited / unlimited.min(rate as f64),
    })
}

/// Changes of a limiter while bytes move.
async fn change(direction: Direction, encryption: Wire) -> Result<Vec<Change>> {
    let [first, others @ ..] = CHANGES;
    let mut flow = Flow::start(direction, encryption, Rate::Limited(first)).await?;
    let mut samples: Vec<Sample> = Vec::new();
    let mut moments = Vec::new();
    let work = async {
        flow.sample(CHANGE_KEPT, &mut samples).await?;
        for rate in others {
            flow.limiter.set_rate(Rate::Limited(rate));
            moments.push(flow.elapsed());
            flow.sample(CHANGE_KEPT, &mut samples).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let worked = work.await;
    flow.stop().await;
    worked?;
    Ok(changes(direction, "limiter", &samples, &moments, &CHANGES))
}

/// How long each change took to be in effect.
fn changes(direction: Direction, by: &'static str, samples: &[Sample], moments: &[f64], rates: &[u64]) -> Vec<Change> {
    let end = samples.last().map_or(0.0, |sample| sample.at);
    let ends = moments.iter().copied().skip(1).chain([end]);
    let pairs = rates.iter().zip(rates.iter().skip(1));
    moments
        .iter()
        .zip(ends)
        .zip(pairs)
        .map(|((&changed, end), (&from, &to))| Change {
            direction,
            by,
            from_bytes_per_second: from,
            to_bytes_per_second: to,
            seconds: settled(samples, (changed, end), to as f64, CHANGE_WINDOW, CHANGE_TOLERANCE),
        })
        .collect()
}
