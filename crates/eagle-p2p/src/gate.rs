//! The first bytes of every connection between peers of a cluster that has a key.
//!
//! The dialling end begins with a **hint**: 16 random bytes, and the first 16 bytes of their HMAC (SHA-256) under what
//! is derived from one of the cluster keys for that purpose. The listening end looks which of its keys fits. When
//! none does it closes the connection without having sent a byte, so that a stranger does not even learn what listens.
//!
//! A hint admits and proves nothing: whoever has recorded one can send it again. What comes after it does the
//! rest: the private network and TLS of control connections ([`crate::network`]), and on data channels
//! ([`crate::channel`]) TLS or a ticket.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use eagle_cluster::{ClusterKey, ClusterKeys, Membership, Pace, Purpose, WaitingRoom, source_of};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rand::Rng as _;
use sha2::Sha256;
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};

/// Random bytes of a hint: enough that no two are the same by chance.
pub(crate) const NONCE: usize = 16;
/// Bytes of the HMAC in a hint: guessing one takes 2^128 tries at a listener.
const TAG: usize = 16;
/// Length of a hint, bytes.
pub(crate) const HINT: usize = NONCE + TAG;
/// How long the other end may take to send its hint, or to answer one. It does so at once, so this is for a packet lost on
/// a slow network.
pub(crate) const HINT_TIMEOUT: Duration = Duration::from_secs(3);
/// Strangers are logged at most once in this time; all of them are counted.
const LOG_EVERY: Duration = Duration::from_secs(1);

/// Connections of one address in a second, in the long run. Each costs handshakes: 220 a second, of members that were thrown out and came back under
/// another identity, left 43 % of the rate of others (`cargo xtask e2e --only hostile-crowds`, two cores). An address is one node as a rule, which
/// connects once and stays.
const NEWCOMERS: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// Connections of one address at once: 64 nodes behind it, with one for control and one for data each.
const NEWCOMERS_AT_ONCE: NonZeroU32 = NonZeroU32::new(128).expect("not zero");
/// How long a connection of an address that had too many is held back before it is turned away: less than [`HINT_TIMEOUT`], which whoever dialled it
/// waits for an answer.
const HELD: Duration = Duration::from_secs(1);
/// Connections that are held back at a time; the others are turned away at once, so that these do not keep those of other addresses out.
const MAX_HELD: usize = 16;
/// Addresses that are told apart, 8 bytes each.
const ADDRESSES: usize = 1 << 12;

/// Ends when a key is no longer accepted; never when it stays so.
pub(crate) type Revoked = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Tells members from strangers at the beginning of a connection.
pub(crate) struct Gate {
    membership: Membership,
    waiting: WaitingRoom,
    started: Instant,
    strangers: AtomicU64,
    /// Milliseconds from the start to the last line in the log, plus one; 0 before the first.
    logged: AtomicU64,
    newcomers: Pace,
    held: Semaphore,
    crowded_out: AtomicU64,
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("membership", &self.membership).finish_non_exhaustive()
    }
}

impl Gate {
    pub(crate) fn new(membership: Membership) -> Self {
        Self {
            membership,
            waiting: WaitingRoom::default(),
            started: Instant::now(),
            strangers: AtomicU64::new(0),
            logged: AtomicU64::new(0),
            newcomers: Pace::new(NEWCOMERS, NEWCOMERS_AT_ONCE, ADDRESSES),
            held: Semaphore::new(MAX_HELD),
            crowded_out: AtomicU64::new(0),
        }
    }

    /// The key of connections that this node begins now; `None` without one.
    pub(crate) fn own(&self) -> Option<ClusterKey> {
        self.membership.keys().map(|keys| keys.own().clone())
    }

    /// Connections that did not begin as a member's, since the start.
    pub(crate) fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// Connections turned away because too many came from their address, since the start.
    pub(crate) fn crowded_out(&self) -> u64 {
        self.crowded_out.load(Ordering::Relaxed)
    }

    /// Waits, before the costly handshakes, until one more connection may come from the address of this one. One that says nothing counts for
    /// nothing: it costs a socket until whoever calls gives up on it.
    ///
    /// # Errors
    /// When too many came from there, or the connection breaks.
    pub(crate) async fn turn(&self, stream: &TcpStream) -> io::Result<()> {
        if stream.peek(&mut [0]).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let from = stream.peer_addr()?;
        let source = source_of(from.ip());
        if self.newcomers.take(&source) {
            return Ok(());
        }
        if let Ok(_place) = self.held.try_acquire()
            && self.newcomers.turn(&source, HELD).await.is_ok()
        {
            return Ok(());
        }
        self.crowded_out.fetch_add(1, Ordering::Relaxed);
        let problem = format!("more than {NEWCOMERS} connections a second come from {}", from.ip());
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, problem))
    }

    /// Begins a connection that this node has dialled; the key that it is under.
    ///
    /// # Errors
    /// When the connection breaks.
    pub(crate) async fn knock(&self, stream: &mut TcpStream) -> io::Result<Option<ClusterKey>> {
        let Some(key) = self.own() else { return Ok(None) };
        stream.write_all(&hint(&key)).await?;
        Ok(Some(key))
    }

    /// Most connections from outside that wait for a hint at a time; those that have waited longest give way. None do
    /// without a key.
    pub(crate) fn waiting_places(&self) -> usize {
        if matches!(self.membership, Membership::Open) { 0 } else { WaitingRoom::PLACES }
    }

    /// Reads the beginning of a connection from outside; the key that it is under.
    ///
    /// # Errors
    /// When it does not begin with the hint of a member. Nothing has been sent then.
    pub(crate) async fn admit(&self, stream: &mut TcpStream) -> io::Result<Option<ClusterKey>> {
        if matches!(self.membership, Membership::Open) {
            return Ok(None);
        }
        let mut hint = [0; HINT];
        let place = self.waiting.enter();
        let given_away = place.given_away();
        let read = tokio::select! {
            read = timeout(HINT_TIMEOUT, stream.read_exact(&mut hint)) => Some(read),
            () = given_away.cancelled() => None,
        };
        drop(place);
        let problem = match read {
            Some(Ok(Ok(_))) => match self.key_of(&hint) {
                Some(key) => return Ok(Some(key)),
                None => "it does not hold the cluster key",
            },
            Some(Ok(Err(_))) => "it left without a word",
            Some(Err(_)) => "it said nothing",
            None => "it said nothing while many others came",
        };
        self.turned_away(stream.peer_addr().ok(), problem);
        Err(io::Error::new(io::ErrorKind::PermissionDenied, problem))
    }

    /// Ends when `key` is no longer accepted.
    pub(crate) fn revoked(&self, key: ClusterKey) -> Revoked {
        match &self.membership {
            Membership::Open => Box::pin(std::future::pending()),
            Membership::Keyed(keys) => {
                let mut keys = keys.clone();
                Box::pin(async move {
                    if keys.wait_for(|keys| !keys.accepted().contains(&key)).await.is_err() {
                        // Whoever could change the keys is gone.
                        std::future::pending::<()>().await;
                    }
                })
            }
        }
    }

    fn key_of(&self, hint: &[u8; HINT]) -> Option<ClusterKey> {
        key_of(&self.membership.keys()?, hint)
    }

    fn turned_away(&self, from: Option<SocketAddr>, problem: &str) {
        let strangers = self.strangers.fetch_add(1, Ordering::Relaxed) + 1;
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).saturating_add(1);
        let last = self.logged.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= u64::try_from(LOG_EVERY.as_millis()).unwrap_or(u64::MAX);
        // Of several that come at once, one gets through.
        if due && self.logged.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let from = from.map(tracing::field::display);
            tracing::debug!(from, problem, so_far = strangers, "turned away a stranger");
        }
    }
}

/// The accepted key that a hint is made with. Takes the same time whichever it is.
pub(crate) fn key_of(keys: &ClusterKeys, hint: &[u8; HINT]) -> Option<ClusterKey> {
    let (nonce, told) = hint.split_at(NONCE);
    // One more than the place of the key, 0 for none.
    let mut found = 0_u8;
    for (place, key) in (1_u8..).zip(keys.accepted()) {
        found.conditional_assign(&place, tag(key, nonce).ct_eq(told));
    }
    keys.accepted().get(usize::from(found).checked_sub(1)?).cloned()
}

fn hint(key: &ClusterKey) -> [u8; HINT] {
    let mut nonce = [0; NONCE];
    rand::rng().fill_bytes(&mut nonce);
    hint_of(key, nonce)
}

/// The hint with these random bytes.
pub(crate) fn hint_of(key: &ClusterKey, nonce: [u8; NONCE]) -> [u8; HINT] {
    let mut hint = [0; HINT];
    let (first, rest) = hint.split_at_mut(NONCE);
    first.copy_from_slice(&nonce);
    rest.copy_from_slice(&tag(key, &nonce));
    hint
}

fn tag(key: &ClusterKey, nonce: &[u8]) -> [u8; TAG] {
    let mut tag = [0; TAG];
    // HMAC takes keys of any length.
    if let Ok(mac) = Hmac::<Sha256>::new_from_slice(key.derive(Purpose::NetworkHint).as_ref()) {
        tag.copy_from_slice(&mac.chain_update(nonce).finalize().into_bytes()[..TAG]);
    }
    tag
}

#[cfg(test)]
mod tests {
    use futures::future::join_all;
    use tokio::{net::TcpListener, sync::watch};

    use super::*;

    fn key() -> ClusterKey {
        ClusterKey::generate().unwrap()
    }

    fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
        keys.iter().map(|key| format!("{}\n", *key.expose())).collect::<String>().parse().unwrap()
    }

    #[test]
    fn a_hint_tells_which_of_the_keys_it_is() {
        let (first, second, other) = (key(), key(), key());
        let (_sender, receiver) = watch::channel(keys(&[&first, &second]));
        let gate = Gate::new(Membership::Keyed(receiver));
        for accepted in [&first, &second] {
            assert_eq!(gate.key_of(&hint(accepted)).as_ref(), Some(accepted));
        }
        assert_eq!(gate.key_of(&hint(&other)), None);
        assert_eq!(gate.key_of(&[0; HINT]), None);
        // Not one bit may differ, in either part.
        let good = hint(&first);
        for bit in 0..HINT * 8 {
            let mut changed = good;
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(gate.key_of(&changed), None, "bit {bit}");
        }
        assert_ne!(hint(&first), good, "each has its own random bytes");
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_is_revoked_when_it_leaves_the_list() {
        let (first, second) = (key(), key());
        let (sender, receiver) = watch::channel(keys(&[&first]));
        let gate = Gate::new(Membership::Keyed(receiver));
        assert_eq!(gate.own().as_ref(), Some(&first));
        let mut revoked = gate.revoked(first.clone());
        sender.send_replace(keys(&[&first, &second]));
        sender.send_replace(keys(&[&second, &first]));
        assert_eq!(gate.own().as_ref(), Some(&second));
        assert!(timeout(Duration::from_secs(60), &mut revoked).await.is_err(), "it is still the second");
        sender.send_replace(keys(&[&second]));
        revoked.await;
        // Keys that nobody can change any more stay as they are.
        let revoked = gate.revoked(second);
        drop(sender);
        assert!(timeout(Duration::from_secs(60), revoked).await.is_err());
    }

    /// A connection that came to `listener`, with its other end.
    async fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let (ours, theirs) = tokio::join!(listener.accept(), TcpStream::connect(listener.local_addr().unwrap()));
        (ours.unwrap().0, theirs.unwrap())
    }

    #[tokio::test]
    async fn an_address_has_so_many_connections_at_once() {
        let gate = Gate::new(Membership::Open);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (silent, _silent) = connection(&listener).await;
        let began = Instant::now();
        for number in 0..NEWCOMERS_AT_ONCE.get() {
            let (ours, mut theirs) = connection(&listener).await;
            theirs.write_all(b"x").await.unwrap();
            assert!(gate.turn(&ours).await.is_ok(), "{number}");
        }
        // Those that say nothing wait, and count for nothing.
        let silent = timeout(Duration::from_millis(20), gate.turn(&silent)).await;
        assert!(silent.is_err(), "{silent:?}");
        // A slow machine takes so long for these that others are due meanwhile.
        let due = u32::try_from(began.elapsed().as_millis()).unwrap() * NEWCOMERS.get() / 1_000;
        let more = 10 * u32::try_from(MAX_HELD).unwrap() + due;
        let mut ends = Vec::new();
        for _ in 0..more {
            let (ours, mut theirs) = connection(&listener).await;
            theirs.write_all(b"x").await.unwrap();
            ours.peek(&mut [0]).await.unwrap();
            ends.push((ours, theirs));
        }
        let turns = join_all(ends.iter().map(|(ours, _)| gate.turn(ours))).await;
        let refused = turns.into_iter().filter_map(Result::err).collect::<Vec<_>>();
        // Some of those that were held came in: at 20 a second the last of sixteen is due after 0.8 s.
        assert!((1..ends.len()).contains(&refused.len()), "{} of {more}", refused.len());
        assert_eq!(gate.crowded_out(), refused.len() as u64);
        assert!(refused[0].to_string().contains("127.0.0.1"), "{}", refused[0]);
    }
}
