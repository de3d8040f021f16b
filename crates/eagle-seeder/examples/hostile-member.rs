//! Members of a cluster that mean harm, for the scenario `hostile-crowds` of `cargo xtask e2e`: they hold the cluster key.
//!
//! `hostile-member KEY_FILE control NODE ADDRESS DIGEST SIZE` floods a node with control messages: bitfields that lie, pieces that
//! nobody has of blobs that nobody knows, requests for tickets. `hostile-member KEY_FILE announce URL` floods a tracker with announces.
//! Each says `begun` when it has, and goes on until its input ends.

use std::{error::Error, io::Read as _, net::SocketAddr, path::Path, sync::Once, time::Duration};

use bytes::Bytes;
use eagle_cluster::{ClusterKeys, MemberClient, MemberTls, Membership};
use eagle_core::{
    Digest, Geometry, NodeId, NodeRole, PeerInfo, PieceSet, Topology,
    wire::control::{BlobMessage, ControlMessage, Encryption, HostRate, Load, MAX_HAVE, Version},
};
use eagle_p2p::{
    identity,
    network::{Network, NetworkConfig, NetworkEvent},
};
use eagle_tracker::{AnnounceRequest, BlobAnnounce, Event};
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Members that flood at a time.
const MEMBERS: usize = 8;
/// Pause after each burst of messages, so that what is sent does not fill the sender's own queue, which would end the connection.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a member waits to be let in.
const PATIENCE: Duration = Duration::from_secs(5);
/// Blobs of an announce.
const BLOBS: u32 = 500;

type Failure = Box<dyn Error + Send + Sync>;

fn begun() {
    static SAID: Once = Once::new();
    SAID.call_once(|| println!("begun"));
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [key_file, what, to @ ..] = arguments.as_slice() else { return Err("what is to be done?".into()) };
    let keys: ClusterKeys = std::fs::read_to_string(Path::new(key_file))?.parse()?;
    let (_keys, receiver) = watch::channel(keys);
    let membership = Membership::Keyed(receiver);
    let flood = async {
        match (*what, to) {
            ("control", [node, address, digest, size]) => {
                let messages = lies(digest.parse()?, size.parse()?)?;
                let (node, address) = (node.parse()?, address.parse()?);
                let members = (0..MEMBERS).map(|_| control(&membership, &node, address, &messages));
                futures::future::try_join_all(members).await.map(drop)
            }
            ("announce", [url]) => announce(&MemberTls::new(&membership)?, url).await,
            _ => Err("what is to be done?".into()),
        }
    };
    let end = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
    tokio::select! {
        flooded = flood => flooded,
        _ = end => Ok(()),
    }
}

/// What a member should never say.
fn lies(digest: Digest, size: u64) -> Result<Vec<ControlMessage>, Failure> {
    let (load, rate) = (Load::default(), HostRate::default());
    let all = |geometry: Geometry| vec![0xff; geometry.pieces().div_ceil(8) as usize];
    let (own, other) = (Geometry::auto(size)?, Geometry::auto(1 << 40)?);
    let about = |number: u32| Digest::of(&number.to_le_bytes());
    let mut said = vec![
        // It owns all of what it has nothing of, in a blob that is there and in one of another size.
        BlobMessage::Handshake { geometry: own, bitfield: all(own), load, rate },
        BlobMessage::Handshake { geometry: other, bitfield: all(other), load, rate },
        // A bitfield of another length than the blob's.
        BlobMessage::Handshake { geometry: own, bitfield: vec![0xff; 4096], load, rate },
        BlobMessage::Have { pieces: (0..u32::try_from(MAX_HAVE)?).map(|piece| u32::MAX - piece).collect(), load },
    ];
    said.extend([BlobMessage::Interested, BlobMessage::NotInterested, BlobMessage::Choke, BlobMessage::Unchoke]);
    let mut messages: Vec<_> = said.into_iter().map(|message| ControlMessage::Blob(digest, message)).collect();
    messages.push(ControlMessage::TicketRequest);
    let unknown = |number| BlobMessage::Handshake {
        geometry: own,
        bitfield: all(own),
        load: Load { requests: number, ..load },
        rate,
    };
    messages.extend((0..32u16).map(|number| ControlMessage::Blob(about(number.into()), unknown(number))));
    Ok(messages)
}

/// Floods a node as one member after another: when it is thrown out, the next one comes.
async fn control(
    membership: &Membership,
    node: &NodeId,
    address: SocketAddr,
    messages: &[ControlMessage],
) -> Result<(), Failure> {
    let peer = identity::peer_id(node).ok_or("no name of a node")?;
    loop {
        let stop = CancellationToken::new();
        let config = NetworkConfig {
            keypair: identity::ephemeral(),
            membership: membership.clone(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_port: 1,
            encryption: Encryption::Tls,
            topology: Topology::default(),
            max_peers: 2,
            version: Version::Three,
        };
        let (network, mut events) = Network::start(config, stop.clone()).await?;
        network.connect(peer, address);
        let connected = timeout(PATIENCE, async {
            loop {
                match events.recv().await {
                    Some(NetworkEvent::Connected { .. }) => return true,
                    Some(NetworkEvent::Unreachable { .. }) | None => return false,
                    Some(_) => {}
                }
            }
        });
        if connected.await == Ok(true) {
            begun();
            let read = tokio::spawn(async move { while events.recv().await.is_some() {} });
            while messages.iter().all(|message| network.send(peer, message)) {
                sleep(PAUSE).await;
            }
            read.abort();
        }
        stop.cancel();
        network.stopped().await;
    }
}

async fn announce(members: &MemberTls, url: &str) -> Result<(), Failure> {
    let client: MemberClient<Full<Bytes>> =
        MemberClient::new(members, HttpConnector::new(), Client::builder(TokioExecutor::new()));
    let geometry = Geometry::auto(1 << 20)?;
    let blob = |number: u32| BlobAnnounce {
        digest: Digest::of(&number.to_le_bytes()),
        geometry,
        pieces: PieceSet::Complete,
        event: Event::Started,
        want_peers: true,
    };
    let node = PeerInfo {
        id: identity::node_id(&identity::ephemeral().public().to_peer_id())?,
        address: "127.0.0.1:1".parse()?,
        role: NodeRole::Proxy,
        ..PeerInfo::example()
    };
    let request = AnnounceRequest { full: true, blobs: (0..BLOBS).map(blob).collect(), ..AnnounceRequest::of(node) };
    let body = serde_json::to_vec(&request)?;
    loop {
        let request = Request::post(format!("{}/v1/announce", url.trim_end_matches('/')));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let answer = client.request(request.body(Full::from(body.clone()))?).await?;
        if !answer.status().is_success() {
            return Err(format!("the tracker answered {}", answer.status()).into());
        }
        answer.into_body().collect().await?;
        begun();
    }
}
