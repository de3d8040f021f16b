//! Whom this machine has to reach: trackers, seeders, peers, registries; and whether its clock is theirs.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use eagle_cluster::{MemberClient, with_sources};
use eagle_registry::{Registries, RegistryName};
use eagle_tracker::api::{PEERS_PATH, PeersPage};
use futures::{StreamExt as _, future::join_all, stream};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpStream, time::timeout};
use url::Url;

use super::Finding;
use crate::{cluster::Cluster, config::Loaded};

/// How long each of them may take. A cold registry with a token service takes seconds.
const DEADLINE: Duration = Duration::from_secs(10);
/// Peers that are tried: enough to tell a firewall from a node that is off.
const PEERS: usize = 8;
/// Longest answer that is read, bytes: a page of peers.
const MAX_ANSWER: usize = 8 << 20;
/// By how much clocks may differ, seconds. `Date` counts whole seconds and answers take some; certificates and tokens of the cluster bear
/// minutes.
const CLOCK: u64 = 30;

/// What somebody says the time is, in seconds since 1970, beside what it is here.
#[derive(Debug, Clone)]
struct Times {
    who: String,
    there: u64,
    here: u64,
}

/// One look, and the time that came with it.
type Looked = (Vec<Finding>, Option<Times>);

/// Asks everybody at once.
pub(super) async fn look(loaded: &Loaded, cluster: &Cluster, roles: &[&str]) -> Vec<Finding> {
    let settings = &loaded.settings;
    let (mut trackers, mut seeders) = (Vec::new(), Vec::new());
    if roles.contains(&"seeder") {
        trackers.extend(settings.seeder.role.trackers.clone());
    }
    if roles.contains(&"proxy") {
        trackers.extend(settings.proxy.role.trackers.clone());
        seeders.extend(settings.proxy.role.seeders.clone());
    }
    let mut findings = Vec::new();
    // In one process the roles have each other.
    if roles == ["proxy"] {
        if trackers.is_empty() {
            let advice = "without one the proxy knows no peers; set proxy.trackers (--tracker)";
            findings.push(Finding::note("tracker", "none is configured", advice));
        }
        if seeders.is_empty() {
            let advice = "without one every blob comes from the registry itself; set proxy.seeders (--seeder)";
            findings.push(Finding::note("seeder", "none is configured", advice));
        }
    }
    trackers.dedup();
    let client = MemberClient::new(cluster.members(), HttpConnector::new(), Client::builder(TokioExecutor::new()));
    let asked = async {
        let trackers = join_all(trackers.iter().map(|url| tracker(&client, url)));
        let seeders = join_all(seeders.iter().map(|url| seeder(&client, url)));
        let registries = async { if roles == ["tracker"] { Vec::new() } else { registries(loaded).await } };
        let (trackers, seeders, registries) = tokio::join!(trackers, seeders, registries);
        [trackers, seeders, registries].concat()
    };
    let (found, times): (Vec<_>, Vec<_>) = asked.await.into_iter().unzip();
    findings.extend(found.into_iter().flatten());
    findings.extend(clock(&times.into_iter().flatten().collect::<Vec<_>>()));
    findings
}

/// The answer to a GET, as a member of the cluster.
async fn get(
    client: &MemberClient<Full<Bytes>>,
    url: &Url,
    path: &str,
) -> Result<(Response<Incoming>, Option<Times>), String> {
    let target = url.join(path).map_err(|error| error.to_string())?;
    let request = Request::get(target.as_str()).body(Full::default()).map_err(|error| error.to_string())?;
    match timeout(DEADLINE, client.request(request)).await {
        Ok(Ok(response)) => {
            let times = times(url.as_str(), response.headers());
            Ok((response, times))
        }
        Ok(Err(error)) => Err(with_sources(&error)),
        Err(_) => Err(format!("no answer within {} s", DEADLINE.as_secs())),
    }
}

async fn tracker(client: &MemberClient<Full<Bytes>>, url: &Url) -> Looked {
    let (response, times) = match get(client, url, &format!("{PEERS_PATH}?limit=1000")).await {
        Ok(answered) => answered,
        Err(problem) => return (vec![unreachable("tracker", url, &problem)], None),
    };
    if let Some(finding) = refused("tracker", url, response.status()) {
        return (vec![finding], times);
    }
    let body = timeout(DEADLINE, Limited::new(response.into_body(), MAX_ANSWER).collect()).await;
    let page = match body {
        Ok(Ok(body)) => serde_json::from_slice::<PeersPage>(&body.to_bytes()).ok(),
        _ => None,
    };
    let Some(page) = page else {
        let advice = "is it the address of a tracker's HTTP API, tracker.listen there?";
        return (
            vec![Finding::problem("tracker", format!("{url} answers something else than a tracker would"), advice)],
            times,
        );
    };
    let mut findings = vec![Finding::fine("tracker", format!("{url} answers and knows {} nodes", page.peers.len()))];
    let addresses = page.peers.iter().map(|summary| summary.peer.address).take(PEERS).collect::<Vec<_>>();
    findings.extend(peers(&addresses).await);
    (findings, times)
}

async fn peers(addresses: &[SocketAddr]) -> Option<Finding> {
    let tried = stream::iter(addresses.iter().copied()).map(async |address| {
        let connected = timeout(DEADLINE / 3, TcpStream::connect(address)).await;
        (address, matches!(connected, Ok(Ok(_))))
    });
    let tried: Vec<(SocketAddr, bool)> = tried.buffered(PEERS).collect().await;
    let away: Vec<String> = tried.iter().filter(|(_, here)| !here).map(|(address, _)| address.to_string()).collect();
    match (tried.len(), away.len()) {
        (0, _) => None,
        (all, 0) => Some(Finding::fine("peers", format!("{all} of {all} tried accept connections"))),
        (all, away_too) => {
            let message = format!("{away_too} of {all} tried do not accept connections: {}", away.join(", "));
            let advice = "if these nodes are up, a firewall is between: TCP 61007 and 61017 of proxies, 61008 and 61018 of seeders; or they advertise an address that is not reached from here (advertise)";
            // Some nodes are always off; all of them are not.
            Some(if away_too == all {
                Finding::problem("peers", message, advice)
            } else {
                Finding::note("peers", message, advice)
            })
        }
    }
}

async fn seeder(client: &MemberClient<Full<Bytes>>, url: &Url) -> Looked {
    match get(client, url, "/v1/blobs").await {
        Ok((response, times)) => {
            let finding = refused("seeder", url, response.status());
            (vec![finding.unwrap_or_else(|| Finding::fine("seeder", format!("{url} answers")))], times)
        }
        Err(problem) => (vec![unreachable("seeder", url, &problem)], None),
    }
}

fn unreachable(check: &'static str, url: &Url, problem: &str) -> Finding {
    // What the member's own checks say, and what TLS says where one of the two has no key at all.
    let of_key = ["cluster key", "certificate", "tls", "handshake"].iter().any(|word| problem.contains(word));
    let advice = if of_key {
        format!(
            "this node and the {check} must have the same cluster key: compare the `key` of `eagle status` on both (docs/membership.md)"
        )
    } else {
        format!(
            "does the {check} run there, and does a firewall let this machine reach it? On that machine: eagle status --admin ..."
        )
    };
    Finding::problem(check, format!("{url} cannot be reached: {problem}"), advice)
}

fn refused(check: &'static str, url: &Url, status: StatusCode) -> Option<Finding> {
    let advice = match status {
        StatusCode::FORBIDDEN => {
            "it serves members of its cluster alone: give this node the cluster key (cluster.key_file)".to_owned()
        }
        _ => format!("is it the address of a {check}'s HTTP API, {check}.listen there?"),
    };
    (!status.is_success()).then(|| Finding::problem(check, format!("{url} answered {status}"), advice))
}

async fn registries(loaded: &Loaded) -> Vec<Looked> {
    let settings = &loaded.settings;
    let registries = match Registries::with_credentials(settings.registries.clone(), &settings.credentials) {
        Ok(registries) => registries,
        Err(error) => {
            let advice = "correct the entry, or the file that it names";
            return vec![(vec![Finding::problem("registry", error.to_string(), advice)], None)];
        }
    };
    let mut names = registries.configured();
    if names.is_empty() {
        names.push(settings.proxy.role.default_registry.clone());
    }
    join_all(names.iter().map(|name| registry(&registries, name))).await
}

async fn registry(registries: &Registries, name: &RegistryName) -> Looked {
    let ping = match timeout(DEADLINE, registries.get(name).ping()).await {
        Ok(Ok(ping)) => ping,
        Ok(Err(error)) => {
            let problem = error.to_string();
            let advice = if problem.contains("certificate") {
                "the registry's certificate is not trusted: name its authority by ca_file of this entry of `registries`"
            } else {
                "can this machine reach it (curl -v URL)? Behind a proxy of the company: egress_proxy of the entry, or HTTPS_PROXY of the role"
            };
            return (vec![Finding::problem("registry", format!("{name}: {problem}"), advice)], None);
        }
        Err(_) => {
            let problem = format!("{name}: no answer within {} s", DEADLINE.as_secs());
            let advice = "does a firewall drop what this machine sends to it? Another place is set by url of its entry of `registries`";
            return (vec![Finding::problem("registry", problem, advice)], None);
        }
    };
    let times = times(&ping.url, &ping.headers);
    let (url, status) = (&ping.url, ping.status);
    let finding = match (status, ping.has_credentials) {
        (StatusCode::OK, true) => Finding::fine("registry", format!("{name}: {url} takes the credentials")),
        (StatusCode::OK, false) => Finding::fine("registry", format!("{name}: {url} answers")),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, true) => Finding::problem(
            "registry",
            format!("{name}: {url} refuses the credentials of the configuration ({status})"),
            "are user name and password of the entry, or in the file of credentials.docker_configs, still right?",
        ),
        (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, false) => Finding::note(
            "registry",
            format!("{name}: {url} answers, and wants credentials"),
            "runtimes send their own; preheating, and runtimes without any, need some in the configuration (credentials)",
        ),
        (StatusCode::TOO_MANY_REQUESTS, _) => Finding::note(
            "registry",
            format!("{name}: {url} says that it is asked too often"),
            "credentials mostly have a higher limit",
        ),
        _ => Finding::problem(
            "registry",
            format!("{name}: {url} answered {status}, which is not what a registry answers"),
            "is url of its entry of `registries` that of the registry, without /v2?",
        ),
    };
    (vec![finding], times)
}

fn times(who: &str, headers: &HeaderMap) -> Option<Times> {
    let there = httpdate::parse_http_date(headers.get(header::DATE)?.to_str().ok()?).ok()?;
    let seconds = |time: std::time::SystemTime| time.duration_since(std::time::UNIX_EPOCH).map(|since| since.as_secs());
    Some(Times { who: who.to_owned(), there: seconds(there).ok()?, here: seconds(std::time::SystemTime::now()).ok()? })
}

/// Compares the clock of this machine with those of the others. Where most of them agree with it, one that differs is wrong itself.
fn clock(times: &[Times]) -> Option<Finding> {
    let off: Vec<&Times> = times.iter().filter(|times| times.there.abs_diff(times.here) > CLOCK).collect();
    let worst = off.iter().max_by_key(|times| times.there.abs_diff(times.here));
    let Some(worst) = worst else {
        return (!times.is_empty()).then(|| Finding::fine("clock", format!("agrees with {} others", times.len())));
    };
    let seconds = worst.there.abs_diff(worst.here);
    let direction = if worst.here > worst.there { "ahead of" } else { "behind" };
    let message = format!("this machine is {seconds} s {direction} {}", worst.who);
    if off.len() * 2 > times.len() {
        let advice =
            "certificates and tokens will seem not yet, or no longer, valid: set the clock (timedatectl set-ntp true)";
        return Some(Finding::problem("clock", message, advice));
    }
    Some(Finding::note("clock", message, "others agree with this machine: look at the clock there"))
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn the_majority_says_whose_clock_is_wrong() {
        let times = |offsets: &[i64]| -> Vec<Times> {
            let time = |offset: &i64| Times {
                who: "x".to_owned(),
                there: 1_000_000u64.saturating_add_signed(*offset),
                here: 1_000_000,
            };
            offsets.iter().map(time).collect()
        };
        let level = |offsets: &[i64]| clock(&times(offsets)).map(|finding| finding.level);
        assert_eq!(level(&[]), None);
        assert_eq!(level(&[0, 2, -29]), Some(Level::Fine));
        assert_eq!(level(&[0, 1, 400]), Some(Level::Note));
        assert_eq!(level(&[400]), Some(Level::Problem));
        let finding = clock(&times(&[-400, -399, 0])).unwrap();
        assert!(finding.level == Level::Problem && finding.message.contains("400 s ahead of"), "{finding:?}");
    }
}
