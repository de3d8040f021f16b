//! Writes the seeds that are no text anew, after a change of what is on the wire or on disk:
//! `cargo run -p eagle-fuzz --example seeds`.
#![allow(clippy::unwrap_used, reason = "run by hand")]

use std::{fs, path::Path};

use bytes::BytesMut;
use eagle_cluster::ClusterKeys;
use eagle_core::{
    Bitfield, Geometry, Metainfo, PeerInfo, PieceIndex, Topology,
    digest::Algorithm,
    metainfo::{self, Frame},
    wire::{
        control::{self, BlobMessage, ControlMessage, Encryption, HostRate, Load, PeerAddress, Ticket},
        data::{Answer, Ask, RejectReason},
    },
};
use eagle_p2p::{identity, parsers};
use eagle_tracker::encoding::Encoding;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

fn main() {
    let geometry = Geometry::new(200_000, 1 << 16).unwrap();
    let bytes = vec![7; 200_000];
    let whole = Metainfo::of(Algorithm::Sha256, geometry, &bytes);
    let digest = whole.digest;
    let load = Load { requests: 3, spreading: true };
    let zone = Topology { zone: Some("a".to_owned()), ..Topology::default() };
    let hello = ControlMessage::Hello { data_port: 61017, encryption: Encryption::Tls, topology: zone };
    let handshake = BlobMessage::Handshake { geometry, bitfield: vec![0b1010_0000], load, rate: HostRate(50 << 20) };
    let blob = |message| ControlMessage::Blob(digest, message);
    control("greeting", &[hello, blob(handshake), blob(BlobMessage::Interested), blob(BlobMessage::Unchoke)]);
    control("tickets", &[ControlMessage::TicketRequest, ControlMessage::Ticket(Ticket([9; 32]))]);
    control(
        "news",
        &[
            blob(BlobMessage::Have { pieces: vec![0, 2, 3], load }),
            blob(BlobMessage::Load(load)),
            blob(BlobMessage::NotInterested),
            blob(BlobMessage::Choke),
            ControlMessage::Blob(Algorithm::Sha512.empty(), BlobMessage::Leave),
        ],
    );

    let somebody = PeerAddress { id: PeerInfo::example().id, address: PeerInfo::example().address };
    let exchange = [blob(BlobMessage::PeersRequest), blob(BlobMessage::Peers(vec![somebody; 3]))];
    control("exchange", &[&[ControlMessage::Listening { port: 61007 }], &exchange[..]].concat());

    let mut asks = BytesMut::new();
    for piece in [None, Some(PieceIndex(2))] {
        Ask::Request { id: 1, digest, piece }.encode(&mut asks);
    }
    Ask::Request { id: 2, digest: Algorithm::Sha512.empty(), piece: None }.encode(&mut asks);
    Ask::Cancel { id: 1 }.encode(&mut asks);
    write("data_frames", "asks", &asks);
    let mut answers = BytesMut::new();
    Answer::Piece { id: 1, piece: PieceIndex(2), length: 1 << 16, load }.encode(&mut answers);
    Answer::Reject { id: 2, reason: RejectReason::Choked, load }.encode(&mut answers);
    write("data_frames", "answers", &answers);

    let mut stream = BytesMut::new();
    let header = Frame::Header { digest, geometry, seeder: PeerInfo::example() };
    for frame in [header, Frame::KeepAlive, Frame::Hashes(whole.hashes.clone()), Frame::Complete] {
        metainfo::encode(&frame, &mut stream).unwrap();
    }
    write("metainfo", "whole", &stream);
    let small = Metainfo::of(Algorithm::Sha512, Geometry::new(5, 1 << 16).unwrap(), b"small");
    let mut stream = BytesMut::new();
    let header = Frame::Header { digest: small.digest, geometry: small.geometry, seeder: PeerInfo::example() };
    let content = Frame::Content(bytes::Bytes::from_static(b"small"));
    for frame in [header, content, Frame::Hashes(small.hashes), Frame::Failed("no longer".to_owned())] {
        metainfo::encode(&frame, &mut stream).unwrap();
    }
    write("metainfo", "small", &stream);

    // The kind, and the body of a file of that kind.
    let stored = |name: &str, kind: u8, body: Vec<u8>| write("stored_files", name, &[&[kind][..], &body].concat());
    let mut body = postcard::to_stdvec(&whole).unwrap();
    stored("metainfo", 0, body.clone());
    body.truncate(100);
    stored("metainfo-cut", 2, body);
    let field = Bitfield::full(9).to_bytes();
    stored("pieces", 1, postcard::to_stdvec(&(Geometry::new(9 << 16, 1 << 16).unwrap(), field)).unwrap());
    stored("marker", 3, postcard::to_stdvec(&200_000u64).unwrap());
    stored("record", 4, postcard::to_stdvec(&(("seeder-1", 77u64), 5u64, Some(("p/blobs/x", "id")))).unwrap());
    let hex = digest.hex();
    stored("key", 3, format!("p/blobs/sha256/{}/{hex}/complete", &hex[..2]).into_bytes());
    let name = format!("ghcr.io/a/b@{digest}");
    let entry = format!("{{\"digest\":\"{digest}\",\"used\":\"2026-01-02T03:04:05Z\",\"blobs\":[[\"{digest}\",9]]}}");
    stored("images", 3, format!("{{\"version\":1,\"images\":[[\"{name}\",{entry}]]}}").into_bytes());
    announces();
    certificates();
    cluster_keys();
}

/// The announces in JSON of the other target, in protobuf.
fn announces() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds/announces");
    for name in ["start", "several", "answer"] {
        let text = fs::read(directory.join(name)).unwrap();
        for (place, line) in text.split(|byte| *byte == b'\n').enumerate() {
            let request =
                Encoding::Json.decode_request(line).map(|request| Encoding::Protobuf.encode_request(&request));
            let response =
                Encoding::Json.decode_response(line).map(|answer| Encoding::Protobuf.encode_response(&answer));
            if let Ok(written) = request.or(response) {
                write("announces_protobuf", &format!("{name}-{place}"), &written.unwrap());
            }
        }
    }
}

/// A member's certificate with its key and the authority; the authority alone, as that of the forward proxy. The keys are made here and used
/// nowhere.
fn certificates() {
    let authority_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["node.example".to_owned()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &authority).unwrap();
    let files = [certificate.pem(), key.serialize_pem(), authority.pem()].join("\0");
    write("certificates", "member", files.as_bytes());
    let files = [authority.pem(), authority.key().serialize_pem()].join("\0");
    write("certificates", "authority", files.as_bytes());
    write("certificates", "bundle", [authority.pem(), certificate.pem()].concat().as_bytes());
}

/// A file of one key, and what a connection under it begins with; and the file of an identity in the place of that.
fn cluster_keys() {
    let text = "dpLDrTVAu4A8Ags67mbNiIcSMjTqDG5xQ8Ct1z/0Me0=\n";
    let keys: ClusterKeys = text.parse().unwrap();
    let hint = parsers::hint(keys.own(), [7; parsers::NONCE]);
    write("cluster_keys", "hint", &[text.as_bytes(), &[0], &hint].concat());
    let identity = identity::ephemeral().to_protobuf_encoding().unwrap();
    write("cluster_keys", "identity", &[text.as_bytes(), &[0], &identity].concat());
}

fn control(name: &str, messages: &[ControlMessage]) {
    let mut bytes = BytesMut::new();
    for message in messages {
        control::encode(message, &mut bytes).unwrap();
    }
    write("control_messages", name, &bytes);
}

fn write(target: &str, name: &str, bytes: &[u8]) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join(name), bytes).unwrap();
}
