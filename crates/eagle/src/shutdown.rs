//! Signals: the first asks for a clean end, the second ends at once.

use std::{io, time::Duration};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a role may drain. The roles keep to shorter deadlines of their own (a proxy to 25 s); Kubernetes kills 30 s
/// after it has asked.
pub(crate) const DRAIN: Duration = Duration::from_secs(28);

/// The two signals that ask a process to end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Takes over both signals; from here on they no longer kill the process by themselves.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Waits for the next signal and gives its number.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
        }
    }
}

/// Waits for a signal that asks the process to end.
///
/// # Errors
/// When signals cannot be received.
pub(crate) async fn asked_for() -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("signals cannot be received")?;
    signals.next().await;
    Ok(())
}

/// Cancels `shutdown` at the first signal and ends the process at the second. Runs until the process ends.
pub(crate) async fn watch(mut signals: Signals, shutdown: CancellationToken) {
    let number = signals.next().await;
    tracing::info!(signal = number, "asked to end; draining, a second signal ends at once");
    shutdown.cancel();
    let number = signals.next().await;
    std::process::exit(128 + number);
}
