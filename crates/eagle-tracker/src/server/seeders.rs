//! What seeders say and ask: that they are alive, and whether it is their turn to fetch a blob.

use std::{net::IpAddr, sync::Arc};

use eagle_core::{
    Digest, NodeId, NodeRole, Timestamp,
    tracker::{
        leases::Claimed,
        seeders::{SeederInfo, version},
    },
};
use http::Request;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use url::{Host, Url};

use super::{
    Shared,
    reply::{Reply, RequestError, json},
};
use crate::{
    api::seeders::{
        ClaimRequest, ClaimResponse, HEARTBEAT, HeartbeatRequest, HeartbeatResponse, LIFETIME, MAX_LEASES_PER_SEEDER,
        MAX_TEXT, MAX_WITHOUT, ReleaseRequest, SeederSummary, SeedersResponse,
    },
    encoding::Encoding,
};

/// `POST /v1/seeders`
pub(super) async fn heartbeat(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    source: IpAddr,
) -> Result<Reply, RequestError> {
    answer_heartbeat(shared, read(shared, request, source).await?, source).await
}

/// Takes a heartbeat that came from `source`.
pub(super) async fn answer_heartbeat(
    shared: &Shared,
    beat: HeartbeatRequest,
    source: IpAddr,
) -> Result<Reply, RequestError> {
    let beat = checked_heartbeat(beat, source)?;
    let (now, url) = (shared.now(), beat.seeder.url.clone());
    let lost = if beat.stopped {
        shared.seeders.leave(&beat.seeder.id, now).await;
        Vec::new()
    } else {
        heard(shared, beat.seeder, &beat.leases, now).await?
    };
    let version = shared.seeders.version(now).await.unwrap_or_else(|| version(std::iter::empty()));
    Ok(json(&HeartbeatResponse { interval_seconds: HEARTBEAT.as_secs_f64(), url, version, lost }))
}

/// `GET /v1/seeders`
pub(super) async fn list(shared: &Shared) -> Reply {
    let now = shared.now();
    let seeders: Vec<SeederSummary> = shared
        .seeders
        .seeders(now)
        .await
        .into_iter()
        .map(|(known, leases)| SeederSummary {
            leases,
            age_seconds: (now - known.first).as_secs_f64(),
            last_heartbeat_seconds: (now - known.last).as_secs_f64(),
            info: known.info,
        })
        .collect();
    // Of this very list, whatever changed since.
    let version = version(seeders.iter().map(|seeder| &seeder.info));
    json(&SeedersResponse { version, seeders })
}

/// `POST /v1/leases`
pub(super) async fn claim(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    source: IpAddr,
) -> Result<Reply, RequestError> {
    answer_claim(shared, read(shared, request, source).await?, source).await
}

/// Decides on a claim that came from `source`.
pub(super) async fn answer_claim(shared: &Shared, claim: ClaimRequest, source: IpAddr) -> Result<Reply, RequestError> {
    let ClaimRequest { digest, seeder, without } = checked_claim(claim, source)?;
    let (now, id) = (shared.now(), seeder.id.clone());
    heard(shared, seeder, &[], now).await?;
    let (outcome, response) = match shared.owner(digest, &id, &without, now).await {
        Some(holder) => ("owned", ClaimResponse::Held { holder }),
        None => match shared.seeders.claim(digest, &id, now).await {
            Claimed::Granted { token } => {
                ("granted", ClaimResponse::Granted { token, lifetime_seconds: LIFETIME.as_secs_f64() })
            }
            Claimed::Held(holder) => {
                // One that is not heard of any more loses its leases in a moment.
                let unknown = SeederInfo {
                    id: holder.clone(),
                    url: String::new(),
                    storage: String::new(),
                    capacity: 0,
                    state: eagle_core::tracker::seeders::SeederState::Draining,
                };
                let holder = shared.seeders.seeder(&holder, now).await.unwrap_or(unknown);
                ("held", ClaimResponse::Held { holder })
            }
            Claimed::Full => {
                shared.metrics.lease_claim("full");
                let problem = "the tracker has given out all leases that it keeps; fetch without one";
                return Err(RequestError::Overloaded(problem.to_owned()));
            }
        },
    };
    shared.metrics.lease_claim(outcome);
    Ok(json(&response))
}

/// `POST /v1/leases/release`
pub(super) async fn release(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    source: IpAddr,
) -> Result<Reply, RequestError> {
    Ok(answer_release(shared, read(shared, request, source).await?).await)
}

/// Takes a lease back.
pub(super) async fn answer_release(shared: &Shared, release: ReleaseRequest) -> Reply {
    let ReleaseRequest { digest, token } = release;
    shared.seeders.release(digest, token, shared.now()).await;
    json(&serde_json::json!({}))
}

async fn heard(
    shared: &Shared,
    seeder: SeederInfo,
    leases: &[crate::api::seeders::LeaseRenewal],
    now: Timestamp,
) -> Result<Vec<Digest>, RequestError> {
    let heard = shared.seeders.heartbeat(seeder, leases, now).await;
    heard.map_err(|error| RequestError::Overloaded(error.to_string()))
}

impl Shared {
    /// A seeder other than these that has announced all of a blob.
    async fn owner(&self, digest: Digest, asker: &NodeId, without: &[NodeId], now: Timestamp) -> Option<SeederInfo> {
        let view = self.store.view(digest, asker, rand::random(), now).await?;
        let pieces = view.geometry.pieces();
        for (candidate, peer) in view.candidates.iter().zip(&view.peers) {
            if candidate.role != NodeRole::Seeder || candidate.pieces.count(pieces) != pieces {
                continue;
            }
            let node = peer.named();
            let id = &node.info().id;
            if id != asker
                && !without.contains(id)
                && let Some(seeder) = self.seeders.seeder(id, now).await
            {
                return Some(seeder);
            }
        }
        None
    }
}

async fn read<T: DeserializeOwned>(
    shared: &Shared,
    request: Request<Incoming>,
    source: IpAddr,
) -> Result<T, RequestError> {
    if Encoding::of_body(request.headers()) != Some(Encoding::Json) {
        return Err(RequestError::Bad("this path takes JSON; give Content-Type: application/json".to_owned()));
    }
    let body = shared.bodies.read(source, request.into_body()).await?;
    serde_json::from_slice(&body.bytes).map_err(|error| RequestError::Bad(format!("the body: {error}")))
}

/// A heartbeat that makes sense, from the address `source`.
fn checked_heartbeat(mut beat: HeartbeatRequest, source: IpAddr) -> Result<HeartbeatRequest, RequestError> {
    if beat.leases.len() > MAX_LEASES_PER_SEEDER {
        return Err(RequestError::Bad(format!("{} leases, more than {MAX_LEASES_PER_SEEDER}", beat.leases.len())));
    }
    check(&mut beat.seeder, source)?;
    Ok(beat)
}

/// A claim that makes sense, from the address `source`.
fn checked_claim(mut claim: ClaimRequest, source: IpAddr) -> Result<ClaimRequest, RequestError> {
    if claim.without.len() > MAX_WITHOUT {
        return Err(RequestError::Bad(format!(
            "{} seeders to leave out, more than {MAX_WITHOUT}",
            claim.without.len()
        )));
    }
    check(&mut claim.seeder, source)?;
    Ok(claim)
}

/// The heartbeat that a body is, from the address `source`.
pub(crate) fn heartbeat_in(body: &[u8], source: IpAddr) -> Result<HeartbeatRequest, String> {
    let beat = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    checked_heartbeat(beat, source).map_err(|error| error.to_string())
}

/// The claim that a body is, from the address `source`.
pub(crate) fn claim_in(body: &[u8], source: IpAddr) -> Result<ClaimRequest, String> {
    let claim = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    checked_claim(claim, source).map_err(|error| error.to_string())
}

/// Refuses what can be no seeder, and puts the address that the tracker sees in place of an unspecified one.
fn check(seeder: &mut SeederInfo, source: IpAddr) -> Result<(), RequestError> {
    let bad = |problem: &str| Err(RequestError::Bad(format!("seeder.{problem}")));
    if seeder.url.len() > MAX_TEXT || seeder.storage.len() > MAX_TEXT {
        return bad("url or storage is too long");
    }
    if seeder.storage.chars().any(char::is_control) {
        return bad("storage has control characters");
    }
    let Ok(mut url) = seeder.url.parse::<Url>() else { return bad("url is no URL; write http://HOST:55008") };
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none_or(str::is_empty) {
        return bad("url is not http://HOST:PORT");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
        return bad("url has a user name, password, query or fragment, which a seeder does not take");
    }
    let ip = match url.host() {
        Some(Host::Ipv4(ip)) => Some(IpAddr::from(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::from(ip)),
        _ => None,
    };
    if ip.is_some_and(|ip| ip.is_unspecified()) && url.set_ip_host(source).is_err() {
        return bad("url cannot have the address that the request comes from");
    }
    seeder.url = url.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeder(url: &str) -> SeederInfo {
        serde_json::from_value(serde_json::json!({ "id": "a", "url": url })).unwrap()
    }

    #[test]
    fn an_unspecified_address_is_the_one_seen() {
        for (said, source, known) in [
            ("http://0.0.0.0:55008", "10.1.2.3", "http://10.1.2.3:55008/"),
            ("http://[::]:55008/eagle", "fd00::1", "http://[fd00::1]:55008/eagle"),
            ("http://seeder-0:55008", "10.1.2.3", "http://seeder-0:55008/"),
            ("https://10.9.9.9:1", "10.1.2.3", "https://10.9.9.9:1/"),
        ] {
            let mut seeder = seeder(said);
            check(&mut seeder, source.parse().unwrap()).unwrap();
            assert_eq!(seeder.url, known);
        }
    }

    #[test]
    fn what_can_be_no_seeder_is_refused() {
        let long = format!("http://{}", "x".repeat(MAX_TEXT));
        for url in ["", "seeder", "ftp://a", "http://u:p@a", "http://a?x=1", "http://a#x", "file:///etc", &long] {
            assert!(check(&mut seeder(url), "10.1.2.3".parse().unwrap()).is_err(), "{url}");
        }
        let mut odd = seeder("http://a");
        odd.storage = "s3://b\n".to_owned();
        assert!(check(&mut odd, "10.1.2.3".parse().unwrap()).is_err());
    }
}
