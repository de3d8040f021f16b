//! `eagle seeder`.

use std::sync::Arc;

use anyhow::Result;
use eagle_p2p::node::StartError as NodeError;
use eagle_registry::Registries;
use eagle_seeder::{Seeder, SeederConfig, SeederDeps, StartError, StorageLocation};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Addresses, Running, Slot, admin, failed_at, node_failed, prepare_data_dir, registries};
use crate::{
    cluster::Cluster,
    config::Loaded,
    exit::Exit,
    limits::HostLimits,
    reload::{Handles, UrlList},
};

pub(super) async fn start(loaded: &Loaded, cluster: &Cluster, shutdown: CancellationToken) -> Result<Running> {
    let config = loaded.settings.seeder.role.clone();
    start_with(loaded, cluster, config, registries(loaded)?, shutdown).await
}

/// Starts a seeder with this configuration in place of the one that was loaded.
pub(super) async fn start_with(
    loaded: &Loaded,
    cluster: &Cluster,
    config: SeederConfig,
    registries: Arc<Registries>,
    shutdown: CancellationToken,
) -> Result<Running> {
    let config = SeederConfig { preheat: loaded.settings.preheat.clone(), ..config };
    let admin = admin(loaded, "seeder", loaded.settings.seeder.admin, &shutdown).await?;
    if config.storage != StorageLocation::Memory {
        prepare_data_dir(loaded, "seeder", &config.data_dir)?;
    }
    let p2p = &loaded.settings.p2p;
    let deps = SeederDeps {
        registries: Arc::clone(&registries),
        membership: cluster.membership().clone(),
        topology: p2p.topology.clone(),
        encryption: p2p.encryption,
        members: cluster.members().clone(),
    };
    let mut metrics = Registry::default();
    cluster.register("seeder", &mut metrics);
    let seeder = Seeder::start(config, deps, &mut metrics, shutdown.clone()).await.map_err(|error| match error {
        StartError::Config(error) => Exit::config(loaded.error(&["seeder", error.key], error.problem)).into(),
        StartError::Listen { address, source } => {
            failed_at(loaded, &["seeder", "listen"], format_args!("cannot listen on {address}: {source}"))
        }
        StartError::Node(error @ NodeError::Listen { .. }) => node_failed(loaded, "seeder", &error),
        other => other.into(),
    })?;
    let addresses = Addresses {
        role: "seeder",
        listen: seeder.address(),
        admin: admin.address(),
        p2p: Some(seeder.info().address),
        data: Some(seeder.data_address()),
    };
    let (download, upload) = seeder.limiters();
    admin.state().images(seeder.images().clone());
    let limits = HostLimits { download, upload };
    admin.state().limits(limits.clone());
    let handles = Handles {
        role: "seeder",
        limits: Some(limits),
        registries: Some(registries),
        trackers: Some(UrlList::new(seeder.replace_trackers())),
        ..Handles::default()
    };
    let slot = Slot::new(seeder);
    admin.state().membership(cluster.membership().clone());
    admin.state().running(metrics, slot.view(Seeder::status));
    let ended = Box::pin(async move {
        shutdown.cancelled().await;
        if let Some(seeder) = slot.take() {
            seeder.wait().await;
        }
    });
    Ok(Running { addresses, admin, handles, ended })
}
