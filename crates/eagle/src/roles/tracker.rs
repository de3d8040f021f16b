//! `eagle tracker`.

use anyhow::Result;
use eagle_tracker::{StartError, Tracker};
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

use super::{Addresses, Running, Slot, admin, failed_at};
use crate::{cluster::Cluster, config::Loaded, exit::Exit, reload::Handles};

pub(super) async fn start(loaded: &Loaded, cluster: &Cluster, shutdown: CancellationToken) -> Result<Running> {
    let section = &loaded.settings.tracker;
    let admin = admin(loaded, "tracker", section.admin, &shutdown).await?;
    let mut metrics = Registry::default();
    cluster.register("tracker", &mut metrics);
    let tracker = Tracker::start(section.role.clone(), cluster.members(), &mut metrics, shutdown.clone())
        .await
        .map_err(|error| match error {
            StartError::Config(error) => Exit::config(loaded.error(&["tracker", error.key], error.problem)).into(),
            StartError::Bind { address, source } => {
                failed_at(loaded, &["tracker", "listen"], format_args!("cannot listen on {address}: {source}"))
            }
        })?;
    let addresses =
        Addresses { role: "tracker", listen: tracker.local_addr(), admin: admin.address(), p2p: None, data: None };
    admin.state().tracker(tracker.pages());
    let slot = Slot::new(tracker);
    admin.state().membership(cluster.membership().clone());
    admin.state().running(metrics, slot.view(Tracker::status));
    let ended = Box::pin(async move {
        shutdown.cancelled().await;
        if let Some(tracker) = slot.take() {
            tracker.wait().await;
        }
    });
    Ok(Running { addresses, admin, handles: Handles::default(), ended })
}
