//! Clients that mean harm, beside ones that work: what is left of the rate of the latter, and what it costs in memory.
//!
//! All share this machine's processors, so an attack that makes work takes its part of them too. The figures are printed; what has to
//! hold is far less than what is measured on a quiet machine, so that a busy one does not fail.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sha2::{Digest, Sha256};

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
};

/// Connections that say nothing, at each port.
const IDLE: usize = 10_000;
/// Files of this process besides the connections of crowds.
const OTHER_FILES: usize = 200;
/// Connections of clients that do something slowly.
const SLOW: usize = 500;
/// How long one rate is measured.
const MEASURE: Duration = Duration::from_millis(700);
/// Longest time for opening the connections of one attack; on a quiet machine it takes half a second.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);
/// What has to be left of a rate: that others are served at all. How well is printed, and depends on what else the machine does.
const LEAST_LEFT: f64 = 0.05;
/// How much a role may grow under all of it, MiB: two buffers of 8 KiB for each connection are 160.
const MOST_GROWTH: u64 = 400;
/// How long a pull by a new node may take while its ports are crowded.
const PULL_DEADLINE: Duration = Duration::from_secs(120);

/// Something that a client does again and again: how much of it at one time.
type Work<'a> = &'a (dyn Fn() -> Result<u64> + Sync);
/// Something that does harm until it is told that this is enough.
type Attack<'a> = &'a (dyn Fn(&AtomicBool) -> Result<()> + Sync);

pub(super) fn crowds(scene: &Scene<'_>) -> Result<()> {
    let limit = raise_limit()?;
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { keyed: false, ..Settings::default() })?;
    pull(cluster.proxy(0), scene.image)?;
    let (proxy, seeder, tracker) =
        (cluster.nodes[0].ready.clone(), cluster.seeder.ready.clone(), cluster.tracker.ready.clone());
    let before = memory(&cluster)?;
    let digest = &scene.image.largest().digest;
    let at_proxy = format!("/v2/library/debian/blobs/{digest}");
    let at_seeder = format!("/v1/blobs/{digest}?registry=docker.io&repository=library/debian");
    let from_proxy = || part(proxy.listen, &at_proxy);
    let from_seeder = || part(seeder.listen, &at_seeder);
    let asks_tracker = || part(tracker.listen, "/v1/swarms");
    let probes = || part(proxy.admin, "/healthz");

    let idle: [(&str, SocketAddr, Work<'_>); 6] = [
        ("the proxy", proxy.listen, &from_proxy),
        ("the seeder", seeder.listen, &from_seeder),
        ("the tracker", tracker.listen, &asks_tracker),
        ("the admin address", proxy.admin, &probes),
        ("the proxy's port for peers", proxy.p2p.context("no port")?, &from_proxy),
        ("the proxy's data port", proxy.data.context("no port")?, &from_proxy),
    ];
    for (name, address, work) in idle {
        let before = rate(work)?;
        let crowd = open(address, IDLE)?;
        let during = rate(work)?;
        let count = crowd.len();
        drop(crowd);
        let left = during / f64::midpoint(before, recovered(work)?);
        println!("  {count} idle connections at {name}: {:.0} % of the rate is left", left * 100.0);
        ensure!(left >= LEAST_LEFT, "{left:.2} of the rate is left with {count} idle connections at {name}");
    }

    let flood = announce(&proxy.p2p.context("no port")?.to_string());
    let attacks: [(&str, Work<'_>, Attack<'_>); 6] = [
        ("requests that come a byte at a time", &from_proxy, &|done| trickle(proxy.listen, done)),
        ("readers that take nothing from the proxy", &from_proxy, &|done| unread(proxy.listen, &at_proxy, done)),
        ("readers that take nothing from the seeder", &from_seeder, &|done| unread(seeder.listen, &at_seeder, done)),
        ("connections that come and go", &from_proxy, &|done| churn(proxy.listen, done)),
        ("heads that are too long", &from_proxy, &|done| long_heads(proxy.listen, done)),
        ("floods of announces", &asks_tracker, &|done| repeat(tracker.listen, &flood, done)),
    ];
    for (name, work, attack) in attacks {
        let before = rate(work)?;
        let done = AtomicBool::new(false);
        let during = thread::scope(|scope| {
            let attacker = scope.spawn(|| attack(&done));
            thread::sleep(MEASURE / 2);
            let during = rate(work);
            done.store(true, Ordering::SeqCst);
            attacker.join().map_err(|_| anyhow::anyhow!("the attack panicked"))??;
            during
        })?;
        let left = during / f64::midpoint(before, recovered(work)?);
        println!("  {name}: {:.0} % of the rate is left", left * 100.0);
        ensure!(left >= LEAST_LEFT, "{left:.2} of the rate is left with {name}");
    }
    newcomer(scene, &mut cluster, IDLE.min(limit / 4))?;

    for ((role, before), (_, after)) in before.iter().zip(memory(&cluster)?) {
        println!("  {role}: {before} MiB before, {after} MiB at most");
        ensure!(after <= before + MOST_GROWTH, "{role} grew from {before} to {after} MiB");
    }
    for role in cluster.nodes.iter_mut().chain([&mut cluster.seeder, &mut cluster.tracker]) {
        role.check_running()?;
    }
    Ok(())
}

/// A node that joins while the ports of all others are crowded gets the image.
fn newcomer(scene: &Scene<'_>, cluster: &mut Cluster, idle: usize) -> Result<()> {
    let mut took = Vec::new();
    for crowded in [false, true] {
        let mut crowds = Vec::new();
        let ports = [&cluster.seeder.ready, &cluster.nodes[0].ready].map(|ready| [ready.p2p, ready.data]);
        for port in ports.into_iter().flatten().flatten().filter(|_| crowded) {
            crowds.push(open(port, idle)?);
        }
        let node = cluster.add_node()?;
        let started = Instant::now();
        pull(cluster.proxy(node), scene.image)?;
        took.push(started.elapsed());
        ensure!(started.elapsed() < PULL_DEADLINE, "a pull took {took:?} with crowded ports");
        drop(crowds);
    }
    let shown: Vec<String> = took.iter().map(|took| format!("{:.1} s", took.as_secs_f64())).collect();
    println!(
        "  a new node pulls in {}, and in {} with {idle} idle connections at every port of its peers",
        shown[0], shown[1]
    );
    Ok(())
}

/// Lets this process open as many files and connections as the system allows, which has to be enough for one crowd.
fn raise_limit() -> Result<usize> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
        .context("cannot raise the limit of open files")?;
    let limit = maximum.map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap_or(usize::MAX));
    ensure!(
        limit > IDLE + OTHER_FILES,
        "the system allows {limit} open files (`ulimit -Hn`), and {IDLE} connections are needed"
    );
    Ok(limit - OTHER_FILES)
}

fn memory(cluster: &Cluster) -> Result<Vec<(&'static str, u64)>> {
    let roles: [(&'static str, &Role); 3] =
        [("proxy", &cluster.nodes[0]), ("seeder", &cluster.seeder), ("tracker", &cluster.tracker)];
    roles.into_iter().map(|(name, role)| Ok((name, role.most_memory()? >> 20))).collect()
}

/// Does one thing again and again; how much of it there was in a second.
fn rate(work: Work<'_>) -> Result<f64> {
    let started = Instant::now();
    let mut done = 0;
    while started.elapsed() < MEASURE {
        done += work()?;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// The rate when an attack is over and what it left behind is cleared away.
fn recovered(work: Work<'_>) -> Result<f64> {
    thread::sleep(MEASURE / 2);
    rate(work)
}

/// Gets something; bytes, and one for the request.
fn part(address: SocketAddr, target: &str) -> Result<u64> {
    let mut response = http::request(address, "GET", target, &[])?;
    ensure!(response.status == 200, "{target} at {address} answered {}", response.status);
    Ok(1 + std::io::copy(&mut response, &mut std::io::sink())?)
}

/// Opens connections, as many as it gets in time.
fn open(address: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let started = Instant::now();
    let mut streams = Vec::with_capacity(count);
    while streams.len() < count && started.elapsed() < OPEN_DEADLINE {
        // A full queue of the listener is the attacker's own problem.
        if let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
            streams.push(stream);
        }
    }
    ensure!(streams.len() > count / 10, "only {} connections could be opened to {address}", streams.len());
    Ok(streams)
}

fn trickle(address: SocketAddr, done: &AtomicBool) -> Result<()> {
    let mut streams = open(address, SLOW)?;
    let head = b"GET /v2/ HTTP/1.1\r\nHost: x\r\nX-Long: ";
    for at in 0usize.. {
        let byte = head.get(at).copied().unwrap_or(b'a');
        // Those that were closed are opened again.
        for stream in &mut streams {
            if stream.write_all(&[byte]).is_err() {
                *stream = TcpStream::connect(address)?;
            }
        }
        if done.load(Ordering::SeqCst) {
            break;
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn unread(address: SocketAddr, target: &str, done: &AtomicBool) -> Result<()> {
    let mut streams = open(address, SLOW)?;
    for stream in &mut streams {
        let _ = stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
    }
    while !done.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn churn(address: SocketAddr, done: &AtomicBool) -> Result<()> {
    let opened = AtomicU64::new(0);
    while !done.load(Ordering::SeqCst) {
        // One at a time, as fast as it goes; a failure to connect is churn too.
        opened.fetch_add(u64::from(TcpStream::connect(address).is_ok()), Ordering::Relaxed);
        thread::sleep(Duration::from_micros(200));
    }
    ensure!(opened.load(Ordering::Relaxed) > 0, "no connection could be opened");
    Ok(())
}

fn long_heads(address: SocketAddr, done: &AtomicBool) -> Result<()> {
    let head = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{}", "X-A: b\r\n".repeat(20_000));
    while !done.load(Ordering::SeqCst) {
        let answer = http::raw(address, head.as_bytes(), Duration::from_secs(5))?;
        let answer = String::from_utf8_lossy(&answer);
        ensure!(!answer.starts_with("HTTP/1.1 2"), "a head of {} bytes was taken: {answer}", head.len());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// An announce of many blobs that nobody has.
fn announce(address: &str) -> Vec<u8> {
    let blob = |number: u32| {
        let digest = hex::encode(Sha256::digest(number.to_le_bytes()));
        format!(
            "{{\"digest\":\"sha256:{digest}\",\"geometry\":{{\"size\":1048576,\"piece_length\":65536}},\"pieces\":\"complete\",\
             \"event\":\"started\",\"want_peers\":true}}"
        )
    };
    let blobs: Vec<String> = (0..500).map(blob).collect();
    let body = format!(
        "{{\"node\":{{\"id\":\"12D3KooWflood\",\"address\":\"{address}\",\"role\":\"proxy\"}},\"blobs\":[{}]}}",
        blobs.join(",")
    );
    let length = body.len();
    format!("POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Sends the same request again and again on one connection.
fn repeat(address: SocketAddr, request: &[u8], done: &AtomicBool) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    let mut answer = vec![0; 1 << 20];
    let mut answered = 0;
    while !done.load(Ordering::SeqCst) {
        stream.write_all(request)?;
        answered += stream.read(&mut answer)?;
    }
    ensure!(answered > 0, "the flood was not answered");
    Ok(())
}
