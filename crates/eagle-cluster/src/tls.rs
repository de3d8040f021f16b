//! What members prove their membership with in TLS, and how it changes while a node runs.
//!
//! TLS 1.3 both ways. With cluster keys, every process makes itself a certificate under the authority of each accepted
//! key ([`crate::authority`]) and takes those of others under the same authorities. With files it is the usual mutual TLS:
//! a certificate with the host's name, under an authority that all members trust.
//!
//! All of it is a **generation**: the settings of both ends, and for each authority a token that is cancelled when it is no
//! longer trusted. Every connection waits for the token of the authority that its other end proved itself by, so the
//! connections under a key that was taken away end in that moment. New generations come with nothing to resume the sessions
//! of earlier ones with.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{Ticketer, default_provider},
    },
    pki_types::{CertificateDer, ServerName},
    server::{VerifierBuilderError, WebPkiClientVerifier},
};
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    acceptor::MemberAcceptor,
    authority::{Authority, MEMBER_NAME},
    connector::MemberConnector,
    files::{self, FilesError, TlsFiles},
    key::ClusterKey,
    keys::{ClusterKeys, Membership},
    verify::{AnyMember, Leaves},
};

/// Why certificates could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate could not be made.
    #[error("a certificate cannot be made from the cluster key: {0}")]
    Certificate(#[from] rcgen::Error),
    /// A certificate or private key cannot be used.
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
    /// The authorities cannot be used.
    #[error("the certificate authorities cannot be used: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// One of the configured files.
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// How members of a cluster connect over HTTP: in clear when there is no key, else by TLS that both ends prove their
/// membership in. Clones share everything.
#[derive(Clone)]
pub struct MemberTls(Option<Arc<Inner>>);

/// What clones share.
pub(crate) struct Inner {
    state: Mutex<State>,
    /// Notices changes also while nobody connects.
    watcher: Mutex<Option<AbortOnDropHandle<()>>>,
}

struct State {
    source: Source,
    current: Arc<Generation>,
}

enum Source {
    Keys { keys: watch::Receiver<ClusterKeys>, authorities: Vec<Authority> },
    Files,
}

/// What is presented and accepted at a time.
pub(crate) struct Generation {
    /// Counts from 1.
    pub(crate) number: u64,
    pub(crate) server: Arc<ServerConfig>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) trust: Trust,
}

/// By which authority another end can have proved itself, and what says when that one no longer counts.
pub(crate) enum Trust {
    /// Those of the cluster keys.
    Keys(Vec<Authority>),
    /// All those of the file, together.
    Files {
        /// The file's content, to tell whether it has changed.
        authorities: Vec<CertificateDer<'static>>,
        gone: CancellationToken,
    },
}

impl Trust {
    /// The token of the authority that issued a certificate which was verified.
    pub(crate) fn gone(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<CancellationToken> {
        let leaf = chain?.first()?;
        match self {
            Self::Files { gone, .. } => Some(gone.clone()),
            Self::Keys(authorities) => {
                let leaf = webpki::EndEntityCert::try_from(leaf).ok()?;
                authorities.iter().find(|authority| authority.issuer == leaf.issuer()).map(|found| found.gone.clone())
            }
        }
    }

    /// Whether both are those of the same file content.
    pub(crate) fn has_authorities_of(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Files { authorities: these, .. }, Self::Files { authorities: those, .. }) if these == those)
    }

    /// The own key's name; `None` with files.
    pub(crate) fn key_id(&self) -> Option<String> {
        match self {
            Self::Keys(authorities) => authorities.first().map(|authority| authority.key.id()),
            Self::Files { .. } => None,
        }
    }
}

impl MemberTls {
    /// No TLS and no difference between members and strangers.
    pub const fn open() -> Self {
        Self(None)
    }

    /// TLS by the cluster keys of the moment, whatever they change to; [`MemberTls::open`] without any.
    ///
    /// Must be called within a tokio runtime, where a task waits for changes as long as a clone exists.
    ///
    /// # Errors
    /// When certificates cannot be made.
    pub fn new(membership: &Membership) -> Result<Self, TlsError> {
        let Membership::Keyed(keys) = membership else { return Ok(Self::open()) };
        let mut keys = keys.clone();
        let accepted = keys.borrow_and_update().clone();
        let authorities = authorities(&accepted, &[])?;
        let current = Arc::new(by_keys(1, &authorities)?);
        let mut changes = keys.clone();
        let inner = Inner::new(Source::Keys { keys, authorities }, current);
        let weak = Arc::downgrade(&inner);
        inner.watch(async move {
            while changes.changed().await.is_ok() {
                let Some(inner) = weak.upgrade() else { return };
                inner.current();
            }
        });
        Ok(Self(Some(inner)))
    }

    /// TLS by certificates from files, which are read again when they change.
    ///
    /// Must be called within a tokio runtime, where a task looks at the files as long as a clone exists.
    ///
    /// # Errors
    /// When a file cannot be read, or what is in it cannot be used.
    pub async fn from_files(files: TlsFiles) -> Result<Self, TlsError> {
        let contents = files.read().await?;
        let current = Arc::new(contents.generation(1, None)?);
        let inner = Inner::new(Source::Files, current);
        inner.watch(files::watch(Arc::downgrade(&inner), files, contents));
        Ok(Self(Some(inner)))
    }

    /// Whether there is nothing that tells members from strangers.
    pub const fn is_open(&self) -> bool {
        self.0.is_none()
    }

    /// Connects as a member, with the settings of `http` for the connection below.
    pub fn connector(&self, http: HttpConnector) -> MemberConnector {
        MemberConnector::new(self.clone(), http)
    }

    /// Tells members from strangers among those who connect.
    pub fn acceptor(&self) -> MemberAcceptor {
        MemberAcceptor::new(self.clone())
    }

    /// What counts now; `None` without TLS.
    pub(crate) fn current(&self) -> Option<Arc<Generation>> {
        self.0.as_ref().map(|inner| inner.current())
    }
}

impl fmt::Debug for MemberTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("MemberTls");
        match self.current() {
            None => shown.field("open", &true),
            Some(generation) => shown.field("key", &generation.trust.key_id()),
        };
        shown.finish_non_exhaustive()
    }
}

impl Inner {
    fn new(source: Source, current: Arc<Generation>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { source, current }), watcher: Mutex::default() })
    }

    fn watch(&self, changes: impl Future<Output = ()> + Send + 'static) {
        let task = AbortOnDropHandle::new(tokio::spawn(changes));
        *self.watcher.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
    }

    /// What counts now.
    pub(crate) fn current(&self) -> Arc<Generation> {
        let mut state = self.lock();
        state.follow_keys();
        Arc::clone(&state.current)
    }

    /// Puts a generation in the place of the one in use.
    pub(crate) fn replace(&self, generation: Generation) {
        self.lock().current = Arc::new(generation);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is replaced as a whole, so a panic elsewhere leaves it usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes a new generation when the keys have changed since this one.
    fn follow_keys(&mut self) {
        let Source::Keys { keys, authorities: known } = &mut self.source else { return };
        // Closed channels never change again, but may have before.
        if keys.has_changed().is_ok_and(|changed| !changed) {
            return;
        }
        let accepted = keys.borrow_and_update().clone();
        if accepted.accepted().iter().eq(known.iter().map(|authority| &authority.key)) {
            return;
        }
        // First of all: whatever comes of the rest, these are over.
        for authority in known.iter().filter(|authority| !accepted.accepted().contains(&authority.key)) {
            tracing::debug!(key = authority.key.id(), "the cluster key is no longer accepted");
            authority.gone.cancel();
        }
        let next = authorities(&accepted, known)
            .and_then(|authorities| Ok((by_keys(self.current.number + 1, &authorities)?, authorities)));
        match next {
            Ok((generation, authorities)) => {
                let accepted: Vec<String> = accepted.accepted().iter().map(ClusterKey::id).collect();
                tracing::debug!(?accepted, "the cluster keys have changed");
                *known = authorities;
                self.current = Arc::new(generation);
            }
            Err(error) => tracing::error!(%error, "the changed cluster keys cannot be used"),
        }
    }
}

/// The authorities of these keys; those that are known already stay as they are.
fn authorities(keys: &ClusterKeys, known: &[Authority]) -> Result<Vec<Authority>, TlsError> {
    let provider = default_provider();
    let authority = |key: &ClusterKey| {
        // One that was taken away and comes back begins anew: its connections have been ended.
        let known = known.iter().find(|authority| authority.key == *key && !authority.gone.is_cancelled());
        known.map_or_else(|| Authority::new(key, &provider), |known| Ok(known.clone()))
    };
    keys.accepted().iter().map(authority).collect()
}

fn by_keys(number: u64, authorities: &[Authority]) -> Result<Generation, TlsError> {
    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.certificate.clone())?;
    }
    let roots = Arc::new(roots);
    let leaves = Arc::new(Leaves(authorities.to_vec()));
    let members = WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
    let name = ServerName::try_from(MEMBER_NAME).map_err(|error| rustls::Error::General(error.to_string()))?;
    let verifier = AnyMember { members, name, authorities: roots.subjects() };
    let mut client = client_config(&provider, Arc::new(verifier))?.with_client_cert_resolver(Arc::clone(&leaves) as _);
    // The name in certificates is always the same; the one that this node uses is nobody's business.
    client.enable_sni = false;
    let mut server = server_builder(&provider, roots)?.with_cert_resolver(leaves);
    server.ticketer = Ticketer::new()?;
    let trust = Trust::Keys(authorities.to_vec());
    Ok(Generation { number, server: Arc::new(server), client: Arc::new(client), trust })
}

/// The accepting end: TLS 1.3, and nobody without a certificate under `roots`.
pub(crate) fn server_builder(
    provider: &Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
) -> Result<rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>, TlsError> {
    let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider)).build()?;
    Ok(ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients))
}

/// The connecting end: TLS 1.3, and nobody whom `verifier` does not take.
pub(crate) fn client_config(
    provider: &Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier))
}

#[cfg(test)]
mod tests {
    use rustls::HandshakeKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    fn keys(keys: &[&ClusterKey]) -> ClusterKeys {
        let lines: Vec<String> = keys.iter().map(|key| key.expose().to_string()).collect();
        lines.join("\n").parse().unwrap()
    }

    /// How the two ends agree on a connection.
    async fn handshake(client: &MemberTls, server: &MemberTls) -> HandshakeKind {
        let (near, far) = duplex(1 << 16);
        let (client, server) = (client.current().unwrap(), server.current().unwrap());
        let host = ServerName::try_from("10.1.2.3").unwrap();
        let connect = async {
            let mut stream = TlsConnector::from(Arc::clone(&client.client)).connect(host, near).await.unwrap();
            // What the session can be resumed with comes behind the handshake.
            assert_eq!(stream.read_u8().await.unwrap(), 7);
            assert!(client.trust.gone(stream.get_ref().1.peer_certificates()).is_some());
            stream.get_ref().1.handshake_kind().unwrap()
        };
        let accept = async {
            let mut stream = TlsAcceptor::from(Arc::clone(&server.server)).accept(far).await.unwrap();
            stream.write_u8(7).await.unwrap();
            assert!(server.trust.gone(stream.get_ref().1.peer_certificates()).is_some());
            stream
        };
        tokio::join!(connect, accept).0
    }

    #[tokio::test]
    async fn sessions_are_resumed_until_the_keys_change() {
        let (a, b) = (ClusterKey::generate().unwrap(), ClusterKey::generate().unwrap());
        let (sender, receiver) = watch::channel(keys(&[&a]));
        let membership = Membership::Keyed(receiver);
        let (client, server) = (MemberTls::new(&membership).unwrap(), MemberTls::new(&membership).unwrap());
        assert_eq!(handshake(&client, &server).await, HandshakeKind::Full);
        assert_eq!(handshake(&client, &server).await, HandshakeKind::Resumed);
        let under_a = client.current().unwrap().trust.gone_of(&a).unwrap();
        for (step, ended) in [(keys(&[&a, &b]), false), (keys(&[&b, &a]), false), (keys(&[&b]), true)] {
            sender.send_replace(step);
            assert_eq!(handshake(&client, &server).await, HandshakeKind::Full, "of a new generation");
            assert_eq!(handshake(&client, &server).await, HandshakeKind::Resumed);
            assert_eq!(under_a.is_cancelled(), ended);
        }
    }

    /// What could be replayed: a request in the first flight of a session that is resumed (RFC 8446, section 8).
    #[tokio::test]
    async fn nothing_can_be_sent_before_the_handshake_is_over() {
        let (_sender, receiver) = watch::channel(keys(&[&ClusterKey::generate().unwrap()]));
        let membership = Membership::Keyed(receiver);
        let (client, server) = (MemberTls::new(&membership).unwrap(), MemberTls::new(&membership).unwrap());
        assert_eq!(handshake(&client, &server).await, HandshakeKind::Full);
        assert_eq!(handshake(&client, &server).await, HandshakeKind::Resumed);
        // Members do not try; one that would, with the session of these connections, is offered nothing to try with.
        let mut eager = (*client.current().unwrap().client).clone();
        assert!(!eager.enable_early_data);
        eager.enable_early_data = true;
        let host = ServerName::try_from("10.1.2.3").unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::new(eager), host).unwrap();
        assert!(connection.early_data().is_none());
        // And what comes all the same is refused.
        assert_eq!(server.current().unwrap().server.max_early_data_size, 0);
    }

    impl Trust {
        fn gone_of(&self, key: &ClusterKey) -> Option<CancellationToken> {
            let Self::Keys(authorities) = self else { return None };
            authorities.iter().find(|authority| authority.key == *key).map(|found| found.gone.clone())
        }
    }
}
