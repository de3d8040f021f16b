//! `eagle-bench serve`: a proxy that serves blobs from its cache, beside nginx with the same files.

mod load;
mod nginx;
mod result;

use std::{collections::BTreeMap, net::Ipv4Addr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use eagle_core::units::{Rate, Size};

use self::{
    load::{Load, Target},
    nginx::{Nginx, Served},
    result::{Case, Round, ServeReport},
};
use crate::{
    cli::{ClusterArgs, Encryption, PieceLength, ServeArgs},
    client::{Mirror, Progress, Route},
    cluster::{Cluster, Images, find_eagle},
    host::{Host, ProcessUse},
    process::Process,
    report::Circumstances,
};

/// Names of the files at nginx.
const LARGE: &str = "/large";
const SMALL: &str = "/small";

/// Runs the benchmark, prints what came of it and writes it.
///
/// # Errors
/// When a server does not start or does not send a blob whole.
pub(crate) async fn run(args: ServeArgs) -> Result<()> {
    let eagle = find_eagle(args.eagle.as_deref())?;
    let program = nginx::find(args.nginx.as_deref())?;
    let circumstances = Circumstances::now("serve", Some(&eagle));
    eprintln!("Starting a proxy and filling its cache ...");
    let images = Images { layers: &[args.large.0], config_size: args.small.0, count: 1 };
    let mut cluster = Cluster::with_images(&cluster_args(&args), &images, Ipv4Addr::LOCALHOST.into())
        .await
        .context("no proxy to measure")?;
    let (large, small) = (*cluster.layers().first().context("the image has no layer")?, cluster.config());
    ensure!(small.size == args.small.0, "the small blob has {} bytes instead of {}", small.size, args.small.0);
    let proxy = cluster.proxies.first().context("there is no proxy")?.ready.listen;
    let image = cluster.image()?;
    let route = Route::Mirror(Box::new(Mirror::new(format!("http://{proxy}").parse()?)));
    route.resolve(&image).await?;
    for blob in [large, small] {
        // Checks the digest too; the clients that measure look at nothing but lengths.
        route.blob(&image, blob.digest, blob.size, &Progress::start()).await?;
    }

    let files = [large, small].map(|blob| cluster.blob_file(blob.digest));
    let nginx = match &program {
        Some(program) => {
            let served = [Served { path: LARGE, file: &files[0] }, Served { path: SMALL, file: &files[1] }];
            Some(Nginx::start(program, Host::this().cores, &served, cluster.directory()).await?)
        }
        None => {
            eprintln!("There is no nginx on this machine: the proxy is measured alone.");
            None
        }
    };
    let path = |digest| format!("/v2/{}/blobs/{digest}?ns={}", image.repository, image.registry);
    let mut cases = Vec::new();
    for (blob, name) in [(large, LARGE), (small, SMALL)] {
        for &clients in &args.clients {
            let eagle = Target { addresses: vec![proxy], path: path(blob.digest), size: blob.size };
            let nginx = nginx.as_ref().map(|nginx| Target {
                addresses: nginx.addresses.clone(),
                path: name.to_owned(),
                size: blob.size,
            });
            cases.push(Case {
                clients,
                size: blob.size,
                eagle,
                nginx,
                eagle_rounds: Vec::new(),
                nginx_rounds: Vec::new(),
            });
        }
    }
    measure(&args, &mut cluster, nginx.as_ref(), &mut cases).await?;
    let report = ServeReport::new(circumstances, &args, nginx.map(|nginx| nginx.version), &cases)?;
    cluster.stop().await;
    args.output.write(&report)?;
    println!("{report}");
    Ok(())
}

/// One proxy without limits; the seeder and the tracker only help to fill its cache.
fn cluster_args(args: &ServeArgs) -> ClusterArgs {
    ClusterArgs {
        nodes: 1,
        size: Size(args.large.0.saturating_add(args.small.0)),
        rate: Rate::Unlimited,
        seeder_rate: None,
        encryption: Encryption::None,
        piece_length: PieceLength::Auto,
        eagle: args.eagle.clone(),
        keep_logs: args.keep_logs.clone(),
        log_level: "info".to_owned(),
    }
}

async fn measure(args: &ServeArgs, cluster: &mut Cluster, nginx: Option<&Nginx>, cases: &mut [Case]) -> Result<()> {
    let time = Duration::from_secs_f64(args.seconds);
    for round in 1..=args.rounds {
        eprintln!("Round {round} of {} ...", args.rounds);
        for case in &mut *cases {
            cluster.check_running()?;
            let proxy = &cluster.proxies.first().context("there is no proxy")?.process;
            let figures = one(case.eagle.clone(), case.clients, time, &[proxy]).await.context("the proxy")?;
            case.eagle_rounds.push(figures);
            if let (Some(nginx), Some(target)) = (nginx, &case.nginx) {
                let processes: Vec<&Process> = nginx.processes.iter().collect();
                case.nginx_rounds.push(one(target.clone(), case.clients, time, &processes).await.context("nginx")?);
            }
        }
    }
    Ok(())
}

/// One measurement, and the processor's time that the servers and the clients needed.
async fn one(target: Target, clients: u32, time: Duration, servers: &[&Process]) -> Result<Round> {
    let usage = || servers.iter().map(|server| server.usage().map(|usage| usage.cpu_seconds)).sum::<Result<f64>>();
    let (before, own) = (usage()?, ProcessUse::of("self")?.cpu_seconds);
    let load = tokio::task::spawn_blocking(move || load::run(&target, clients, time)).await??;
    let (after, own_after) = (usage()?, ProcessUse::of("self")?.cpu_seconds);
    let Load { seconds, bytes, requests, latency, first_byte } = load;
    let quantiles = |histogram: &hdrhistogram::Histogram<u64>| {
        let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / 1e9;
        (!histogram.is_empty()).then(|| BTreeMap::from([("p50", at(0.5)), ("p99", at(0.99))]))
    };
    let gigabytes = bytes as f64 / 1e9;
    Ok(Round {
        bytes_per_second: bytes as f64 / seconds,
        requests_per_second: requests as f64 / seconds,
        latency_seconds: quantiles(&latency),
        first_byte_seconds: quantiles(&first_byte),
        cpu_seconds_per_gb: (after - before) / gigabytes,
        client_cpu_seconds_per_gb: (own_after - own) / gigabytes,
    })
}
