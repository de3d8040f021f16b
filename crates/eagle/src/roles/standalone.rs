//! `eagle standalone`: tracker, seeder and proxy in one process, over loopback as if they were apart.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use anyhow::Result;
use tokio_util::sync::CancellationToken;
use url::Url;

use super::{Running, proxy, registries, seeder, tracker};
use crate::{cluster::Cluster, config::Loaded};

/// Starts the three, in the order in which they need each other. Seeder and proxy ask the tracker and the seeder of this
/// process unless others are configured.
pub(super) async fn start(loaded: &Loaded, cluster: &Cluster, shutdown: CancellationToken) -> Result<Vec<Running>> {
    let registries = registries(loaded)?;
    let tracker = tracker::start(loaded, cluster, shutdown.clone()).await?;
    let own_tracker = loopback(tracker.addresses.listen)?;

    let mut config = loaded.settings.seeder.role.clone();
    if config.trackers.is_empty() {
        config.trackers.push(own_tracker.clone());
    }
    let mut seeder = seeder::start_with(loaded, cluster, config, Arc::clone(&registries), shutdown.clone()).await?;
    let own_seeder = loopback(seeder.addresses.listen)?;

    let mut config = loaded.settings.proxy.role.clone();
    if config.trackers.is_empty() {
        config.trackers.push(own_tracker.clone());
    }
    if config.seeders.is_empty() {
        config.seeders.push(own_seeder.clone());
    }
    let mut proxy = proxy::start_with(loaded, cluster, config, registries, shutdown).await?;
    // The same counts of lists that are read again.
    for handles in [&mut seeder.handles, &mut proxy.handles] {
        handles.trackers = handles.trackers.take().map(|list| list.or(own_tracker.clone()));
        handles.seeders = handles.seeders.take().map(|list| list.or(own_seeder.clone()));
    }
    Ok(vec![tracker, seeder, proxy])
}

/// URL of a listener of this process.
fn loopback(mut address: SocketAddr) -> Result<Url> {
    if address.ip().is_unspecified() {
        let ip = if address.is_ipv4() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { IpAddr::V6(Ipv6Addr::LOCALHOST) };
        address.set_ip(ip);
    }
    Ok(format!("http://{address}").parse()?)
}
