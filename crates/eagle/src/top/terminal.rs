//! The terminal: keys in, pictures out, and as it was before when that is over.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use eagle_core::Digest;
use eagle_tracker::api::SwarmPage;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    render,
    screen::{Screen, Then},
    source::{Cluster, Source},
};

/// Keys that wait; nobody types more while a picture is drawn.
const KEYS: usize = 64;
/// How often the thread that reads keys looks whether it is over.
const LOOK: Duration = Duration::from_millis(100);

/// Puts the terminal back, whatever ends the command.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Reads keys and changes of size on a thread, for reading them waits. The thread ends soon after this is dropped.
struct Keys {
    events: mpsc::Receiver<io::Result<Event>>,
    over: Arc<AtomicBool>,
}

impl Keys {
    fn read() -> Self {
        let (sender, events) = mpsc::channel(KEYS);
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        thread::spawn(move || {
            while !ended.load(Ordering::Relaxed) {
                let event = match event::poll(LOOK) {
                    Ok(true) => event::read(),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                };
                let failed = event.is_err();
                if sender.blocking_send(event).is_err() || failed {
                    return;
                }
            }
        });
        Self { events, over }
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

type Asking = Pin<Box<dyn Future<Output = Result<(Cluster, Option<SwarmPage>)>>>>;

/// Shows the cluster until a key or a signal ends it, and asks anew every `interval`.
///
/// # Errors
/// When the terminal fails.
pub(super) async fn run(source: Source, cluster: Cluster, interval: Duration) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut terminal = ratatui::try_init().context("the terminal cannot be used; try --once")?;
    let _restore = Restore;
    let mut keys = Keys::read();
    let mut screen = Screen::new(cluster);
    let mut due = Instant::now() + interval;
    let mut asking: Option<Asking> = None;
    loop {
        draw(&mut terminal, &mut screen)?;
        tokio::select! {
            event = keys.events.recv() => match event {
                Some(Ok(Event::Key(key))) => match screen.key(key) {
                    Then::Quit => return Ok(()),
                    Then::Ask => {
                        // What is under way is about something else.
                        asking = Some(ask(&source, screen.open.as_ref().map(|(digest, _)| *digest)));
                    }
                    Then::Draw => {}
                },
                // A change of size is seen when it is drawn.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("no keys can be read from the terminal"),
                None => return Ok(()),
            },
            said = resolve(&mut asking) => {
                asking = None;
                due = Instant::now() + interval;
                screen.update(said);
            }
            () = sleep_until(due), if asking.is_none() => {
                asking = Some(ask(&source, screen.open.as_ref().map(|(digest, _)| *digest)));
            }
            _ = hangup.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
        }
    }
}

fn draw(terminal: &mut DefaultTerminal, screen: &mut Screen) -> Result<()> {
    terminal.draw(|frame| render::draw(frame, screen)).context("the terminal takes no more output")?;
    Ok(())
}

fn ask(source: &Source, open: Option<Digest>) -> Asking {
    let source = source.clone();
    Box::pin(async move {
        let swarm = async {
            match open {
                Some(digest) => source.swarm(digest).await.map(Some),
                None => Ok(None),
            }
        };
        tokio::try_join!(source.cluster(), swarm)
    })
}

/// Waits for what is under way, for ever when there is nothing.
async fn resolve(asking: &mut Option<Asking>) -> Result<(Cluster, Option<SwarmPage>)> {
    match asking {
        Some(asking) => asking.await,
        None => std::future::pending().await,
    }
}
