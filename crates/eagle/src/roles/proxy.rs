//! `eagle proxy`.

use std::sync::Arc;

use anyhow::Result;
use eagle_p2p::node::StartError as NodeError;
use eagle_proxy::{Proxy, ProxyConfig, ProxyDeps, StartError};
use eagle_registry::Registries;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Addresses, Running, admin, failed_at, node_failed, prepare_data_dir, registries};
use crate::{
    cluster::Cluster,
    config::Loaded,
    exit::Exit,
    limits::HostLimits,
    reload::{Handles, UrlList},
};

pub(super) async fn start(loaded: &Loaded, cluster: &Cluster, shutdown: CancellationToken) -> Result<Running> {
    let config = loaded.settings.proxy.role.clone();
    start_with(loaded, cluster, config, registries(loaded)?, shutdown).await
}

/// Starts a proxy with this configuration in place of the one that was loaded.
pub(super) async fn start_with(
    loaded: &Loaded,
    cluster: &Cluster,
    config: ProxyConfig,
    registries: Arc<Registries>,
    shutdown: CancellationToken,
) -> Result<Running> {
    let admin = admin(loaded, "proxy", loaded.settings.proxy.admin, &shutdown).await?;
    prepare_data_dir(loaded, "proxy", &config.data_dir)?;
    let p2p = &loaded.settings.p2p;
    let deps = ProxyDeps {
        registries: Arc::clone(&registries),
        membership: cluster.membership().clone(),
        topology: p2p.topology.clone(),
        encryption: p2p.encryption,
        members: cluster.members().clone(),
    };
    let mut metrics = Registry::default();
    cluster.register("proxy", &mut metrics);
    let proxy = Proxy::start(config, deps, &mut metrics, shutdown).await.map_err(|error| match error {
        StartError::Config(error) => Exit::config(loaded.error(&["proxy", error.key], error.problem)).into(),
        StartError::Authority(error) => Exit::config(loaded.error(&["proxy", "forward", "ca_dir"], error)).into(),
        StartError::Listen { address, source } => {
            failed_at(loaded, &["proxy", "listen"], format_args!("cannot listen on {address}: {source}"))
        }
        StartError::Node(error @ NodeError::Listen { .. }) => node_failed(loaded, "proxy", &error),
        other => other.into(),
    })?;
    let addresses = Addresses {
        role: "proxy",
        listen: proxy.local_addr(),
        admin: admin.address(),
        p2p: Some(proxy.peer_info().address),
        data: Some(proxy.node().data_address()),
    };
    let (download, upload) = (proxy.node().download_limiter().clone(), proxy.node().upload_limiter().clone());
    admin.state().images(proxy.images().clone());
    let limits = HostLimits { download, upload };
    admin.state().limits(limits.clone());
    let rules = Some(proxy.rules().clone());
    let (announcer, seeders) = (proxy.announcer().clone(), proxy.seeders().clone());
    let handles = Handles {
        role: "proxy",
        limits: Some(limits),
        registries: Some(registries),
        rules,
        trackers: Some(UrlList::new(move |trackers| announcer.replace_trackers(trackers))),
        seeders: Some(UrlList::new(move |urls| seeders.replace(urls))),
    };
    admin.state().membership(cluster.membership().clone());
    admin.state().running(metrics, proxy.status_handle());
    Ok(Running { addresses, admin, handles, ended: Box::pin(proxy.wait()) })
}
