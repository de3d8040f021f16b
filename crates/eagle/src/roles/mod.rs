//! Roles as processes: build what a role needs from the configuration, start it, say that it is ready, and drain it
//! when a signal asks.

#[cfg(test)]
mod metrics_page;
mod proxy;
mod seeder;
mod standalone;
mod tracker;

use std::{
    fmt,
    fs::DirBuilder,
    future::Future,
    io::Write as _,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use eagle_p2p::node::StartError as NodeError;
use eagle_registry::Registries;
use futures::future::join_all;
use serde::Serialize;
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    admin::Admin,
    cli::RoleArg,
    cluster::Cluster,
    commands::Launch,
    config::{Loaded, check},
    exit::{Exit, Failure},
    reload::{Handles, Hangup, Reloader},
    shutdown::{self, DRAIN, Signals},
};

/// What a process can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Tracker,
    Seeder,
    Proxy,
    Standalone,
}

impl From<Role> for RoleArg {
    fn from(role: Role) -> Self {
        match role {
            Role::Tracker => Self::Tracker,
            Role::Seeder => Self::Seeder,
            Role::Proxy => Self::Proxy,
            Role::Standalone => Self::Standalone,
        }
    }
}

/// The addresses that a role is bound to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Addresses {
    pub(crate) role: &'static str,
    pub(crate) listen: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) p2p: Option<SocketAddr>,
    pub(crate) data: Option<SocketAddr>,
}

/// A role that is up.
pub(crate) struct Running {
    pub(crate) addresses: Addresses,
    pub(crate) admin: Admin,
    /// What of it can change while it runs.
    pub(crate) handles: Handles,
    /// Ends when the role has drained.
    pub(crate) ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Running").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// A role that its status endpoint looks at until the drain takes it.
struct Slot<R>(Arc<Mutex<Option<R>>>);

impl<R: Send + 'static> Slot<R> {
    fn new(role: R) -> Self {
        Self(Arc::new(Mutex::new(Some(role))))
    }

    fn take(&self) -> Option<R> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What `status` says of the role; null while it drains.
    fn view(&self, status: fn(&R) -> Value) -> impl Fn() -> Value + Send + Sync + 'static {
        let slot = Arc::clone(&self.0);
        move || slot.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(Value::Null, status)
    }
}

/// Runs a role until it is asked to end and has drained.
///
/// # Errors
/// When it cannot start, ends by itself, or does not drain in time.
pub(crate) async fn run(role: Role, launch: Launch) -> Result<()> {
    let begun = Instant::now();
    let mut signals = Signals::listen().context("signals cannot be received")?;
    let hangup = Hangup::listen().context("signals cannot be received")?;
    let shutdown = CancellationToken::new();
    let loaded = &launch.loaded;
    if let Some(notice) = loaded.exposure_notice(check::roles(role.into())) {
        tracing::warn!("{notice}");
    }
    let cluster = Cluster::start(&loaded.settings.cluster)
        .await
        .map_err(|error| Exit::config(loaded.error(&["cluster", error.key()], &error)))?;
    let starting = async {
        Ok::<_, anyhow::Error>(match role {
            Role::Tracker => vec![tracker::start(loaded, &cluster, shutdown.clone()).await?],
            Role::Seeder => vec![seeder::start(loaded, &cluster, shutdown.clone()).await?],
            Role::Proxy => vec![proxy::start(loaded, &cluster, shutdown.clone()).await?],
            Role::Standalone => standalone::start(loaded, &cluster, shutdown.clone()).await?,
        })
    };
    let running = tokio::select! {
        running = starting => running?,
        _ = signals.next() => return Ok(()),
    };
    let elapsed = begun.elapsed();
    for Running { addresses, .. } in &running {
        let Addresses { role, listen, admin, p2p, data } = addresses;
        tracing::info!(
            role,
            listen = %listen,
            admin = %admin,
            p2p = p2p.map(tracing::field::display),
            data = data.map(tracing::field::display),
            start_seconds = elapsed.as_secs_f64(),
            version = env!("CARGO_PKG_VERSION"),
            "ready"
        );
    }
    let ready_file = launch.ready_file.map(|path| ReadyFile::write(path, role, &running)).transpose()?;
    let watcher = tokio::spawn(shutdown::watch(signals, shutdown.clone()));
    let handles = running.iter().map(|running| running.handles.clone()).collect();
    let reloader = Reloader::new(launch.sources, role.into(), loaded, handles);
    let reloader = AbortOnDropHandle::new(tokio::spawn(reloader.run(hangup)));
    let result = drain(running, &shutdown).await;
    watcher.abort();
    drop(reloader);
    drop(ready_file);
    result
}

async fn drain(running: Vec<Running>, shutdown: &CancellationToken) -> Result<()> {
    let (admins, ended): (Vec<_>, Vec<_>) = running
        .into_iter()
        .map(|Running { addresses, admin, ended, .. }| {
            let shutdown = shutdown.clone();
            let ended = async move {
                ended.await;
                let early = !shutdown.is_cancelled();
                // The roles of one process need each other.
                shutdown.cancel();
                early.then_some(addresses.role)
            };
            (admin, ended)
        })
        .unzip();
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let early = tokio::select! {
        early = join_all(ended) => early,
        () = late => bail!("not drained after {} s; what was still under way is lost", DRAIN.as_secs()),
    };
    for admin in admins {
        admin.stop().await;
    }
    if let Some(role) = early.into_iter().flatten().next() {
        bail!("the {role} ended though nobody asked it to");
    }
    tracing::info!("drained");
    Ok(())
}

/// The file that tells a parent process where the role listens; gone when the role is.
struct ReadyFile(PathBuf);

impl ReadyFile {
    fn write(path: PathBuf, role: Role, running: &[Running]) -> Result<Self> {
        let mut roles = running.iter().map(|running| json!(running.addresses)).collect::<Vec<Value>>();
        let body = match (role, roles.len()) {
            // As the proxy, which is what a client talks to, and all roles below it.
            (Role::Standalone, 1..) => {
                let mut body = roles.last().cloned().unwrap_or_default();
                body["role"] = json!("standalone");
                body["roles"] = json!(roles);
                body
            }
            _ => roles.pop().unwrap_or_default(),
        };
        // Written beside and renamed: who waits for the file never reads half of it.
        let write = || {
            let directory =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            writeln!(file, "{body}")?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok::<_, std::io::Error>(())
        };
        write().with_context(|| format!("--ready-file {} cannot be written", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        // It may have been taken away already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// An error of starting at the value of a key: one line with the place where it was written.
fn failed_at(loaded: &Loaded, path: &[&str], problem: impl fmt::Display) -> anyhow::Error {
    Exit { failure: Failure::Failed, message: loaded.error(path, problem).to_string() }.into()
}

/// Starts the admin address of a role.
async fn admin(
    loaded: &Loaded,
    role: &'static str,
    address: SocketAddr,
    shutdown: &CancellationToken,
) -> Result<Admin> {
    Admin::start(role, address, shutdown.clone())
        .await
        .map_err(|error| failed_at(loaded, &[role, "admin"], format_args!("cannot listen on {address}: {error}")))
}

/// Makes the data directory and sees that files can be written there, before anything else is started.
fn prepare_data_dir(loaded: &Loaded, role: &'static str, path: &Path) -> Result<()> {
    let prepare = || {
        // One that is there keeps its mode.
        DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        tempfile::tempfile_in(path).map(|_| ())
    };
    prepare().map_err(|error: std::io::Error| {
        failed_at(loaded, &[role, "data_dir"], format_args!("cannot write to {}: {error}", path.display()))
    })
}

/// The client of the registries. Reads certificates and credentials, which was tried when the configuration was checked.
fn registries(loaded: &Loaded) -> Result<Arc<Registries>> {
    let settings = &loaded.settings;
    let registries = Registries::with_credentials(settings.registries.clone(), &settings.credentials);
    Ok(Arc::new(registries.map_err(|error| Exit::config(loaded.error(&["registries"], error)))?))
}

/// An error of the peer network at the key that it is about.
fn node_failed(loaded: &Loaded, role: &str, error: &NodeError) -> anyhow::Error {
    let key = match error {
        NodeError::Listen { what: "peers", .. } => "p2p_listen",
        _ => "data_listen",
    };
    failed_at(loaded, &[role, key], error)
}
