//! What has to be refused, and how.

use std::{
    fs,
    io::Write,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Scene, pulls::pull};
use crate::{
    cluster::{Cluster, Role, Settings},
    http,
    process::finish,
};

/// A request that an ordinary client would not send, and what may come back.
struct Bad {
    method: &'static str,
    target: String,
    range: Option<&'static str>,
    /// Any of these.
    status: &'static [u16],
    /// The code in the OCI error, where only one is right.
    code: Option<&'static str>,
}

fn bad(target: impl Into<String>, status: &'static [u16], code: &'static str) -> Bad {
    let code = (!code.is_empty()).then_some(code);
    Bad { method: "GET", target: target.into(), range: None, status, code }
}

fn table(scene: &Scene<'_>) -> Vec<Bad> {
    let blob = &scene.image.config.digest;
    let unknown = format!("sha256:{}", "5".repeat(64));
    let debian = "/v2/library/debian";
    let mut table = vec![
        bad("/", &[400, 404], ""),
        bad("/v2", &[200, 401, 301, 307, 308, 400, 404], ""),
        bad("/v2/_catalog", &[400, 404, 405], ""),
        bad("/v2/../../etc/passwd", &[400, 404], ""),
        bad("/v2/..%2f..%2fetc/passwd/manifests/x", &[400, 404], ""),
        bad("/v2/library%00/debian/manifests/e2e", &[400, 404], ""),
        bad("/v2/library/debian", &[400, 404], ""),
        bad(format!("{debian}/blobs/"), &[400, 404], ""),
        bad(format!("{debian}/blobs/sha256:abc"), &[400], "DIGEST_INVALID"),
        bad(format!("{debian}/blobs/{}", unknown.to_uppercase()), &[400], "DIGEST_INVALID"),
        bad(format!("{debian}/blobs/md5:d41d8cd98f00b204e9800998ecf8427e"), &[400], "DIGEST_INVALID"),
        bad(format!("{debian}/blobs/sha256:{}", "g".repeat(64)), &[400], "DIGEST_INVALID"),
        bad(format!("{debian}/blobs/{unknown}"), &[404], "BLOB_UNKNOWN"),
        bad(format!("{debian}/manifests/{unknown}"), &[404], "MANIFEST_UNKNOWN"),
        bad(format!("{debian}/manifests/no-such-tag"), &[404], "MANIFEST_UNKNOWN"),
        bad(format!("{debian}/manifests/-tag"), &[400, 404], ""),
        bad(format!("{debian}/manifests/{}", "t".repeat(129)), &[400, 404], ""),
        bad("/v2/Library/Debian/manifests/e2e", &[400], "NAME_INVALID"),
        bad("/v2/library//debian/manifests/e2e", &[400, 404], ""),
        bad(format!("/v2/{}/manifests/e2e", "n".repeat(256)), &[400], "NAME_INVALID"),
        bad("/v2/no/such/image/manifests/e2e", &[404], ""),
        bad(format!("{debian}/manifests/e2e?ns=not%20a%20host"), &[400], ""),
        bad(format!("{debian}/manifests/e2e?ns=http://evil/"), &[400], ""),
        bad(format!("/v2/{}/manifests/e2e", "x/".repeat(40_000)), &[400, 404, 414, 431], ""),
    ];
    for method in ["POST", "PUT", "PATCH", "DELETE"] {
        table.push(Bad { method, ..bad(format!("{debian}/blobs/uploads/"), &[404, 405], "") });
        table.push(Bad { method, ..bad(format!("{debian}/manifests/e2e"), &[405], "UNSUPPORTED") });
    }
    for (range, status) in [
        ("bytes=999999999999-", &[416][..]),
        ("bytes=-0", &[416]),
        // Not valid: RFC 9110 (14.2) lets a server ignore it.
        ("bytes=5-2", &[200, 400, 416]),
        ("bytes=x-y", &[200, 400, 416]),
        ("bytes=99999999999999999999999999-", &[200, 400, 416]),
        ("lines=1-2", &[200, 400, 416]),
        ("bytes=", &[200, 400, 416]),
    ] {
        table.push(Bad { range: Some(range), ..bad(format!("{debian}/blobs/{blob}"), status, "") });
    }
    table
}

pub(super) fn requests(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings::default())?;
    let proxy = cluster.proxy(0);
    let mut wrong = Vec::new();
    // Twice: before anything is cached, and after a good pull.
    for round in ["cold", "warm"] {
        for bad in table(scene) {
            if let Err(error) = check(proxy, &bad) {
                let target: String = bad.target.chars().take(120).collect();
                wrong.push(format!("{round}: {} {target} {}: {error:#}", bad.method, bad.range.unwrap_or_default()));
            }
        }
        cluster.nodes[0].check_running()?;
        pull(proxy, scene.image).context("a good pull after the bad requests")?;
    }
    ranges(proxy, scene)?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn check(proxy: SocketAddr, bad: &Bad) -> Result<()> {
    let headers: Vec<_> = bad.range.map(|range| ("Range", range)).into_iter().collect();
    let response = http::request(proxy, bad.method, &bad.target, &headers)?;
    let status = response.status;
    let body = response.bytes()?;
    let shown: String = String::from_utf8_lossy(&body).chars().take(300).collect();
    ensure!(bad.status.contains(&status), "{status} instead of {:?}: {shown}", bad.status);
    // A head too long for the server is refused below the level where errors have a form.
    if status < 400 || matches!(status, 414 | 431) {
        return Ok(());
    }
    let document: Value = serde_json::from_slice(&body).with_context(|| format!("{status}, not JSON: {shown}"))?;
    let code = document["errors"][0]["code"].as_str().with_context(|| format!("{status}, no code: {shown}"))?;
    if let Some(wanted) = bad.code {
        ensure!(code == wanted, "{status}, code {code} instead of {wanted}");
    }
    Ok(())
}

/// The ranges that are right, on a blob that is cached.
fn ranges(proxy: SocketAddr, scene: &Scene<'_>) -> Result<()> {
    let blob = &scene.image.config;
    let whole = fs::read(scene.image.layout().join("blobs/sha256").join(blob.digest.trim_start_matches("sha256:")))?;
    let size = whole.len();
    let target = format!("/v2/library/debian/blobs/{}?ns=docker.io", blob.digest);
    for (range, start, end) in [
        ("bytes=0-".to_owned(), 0, size),
        ("bytes=10-19".to_owned(), 10, 20),
        ("bytes=-5".to_owned(), size - 5, size),
        (format!("bytes=7-{}", size + 100), 7, size),
    ] {
        let response = http::request(proxy, "GET", &target, &[("Range", &range)])?;
        ensure!(response.status == 206, "{range}: {}", response.status);
        let wanted = format!("bytes {start}-{}/{size}", end - 1);
        let content_range = response.header("content-range").map(str::to_owned);
        ensure!(content_range.as_deref() == Some(&wanted), "{range}: Content-Range {content_range:?}, not {wanted}");
        ensure!(response.bytes()? == whole[start..end], "{range}: other bytes");
    }
    Ok(())
}

pub(super) fn garbage(scene: &Scene<'_>) -> Result<()> {
    let registry = scene.registry()?;
    let mut cluster = Cluster::start(scene, registry.address(), Settings { nodes: 2, ..Settings::default() })?;
    let ports: Vec<SocketAddr> =
        [&cluster.tracker, &cluster.seeder, &cluster.nodes[0], &cluster.nodes[1]].into_iter().flat_map(ports).collect();
    ensure!(ports.len() == 2 + 3 * 4, "HTTP and admin of the tracker, p2p and data too of the others: {ports:?}");
    // Connections that say nothing, or half of something, stay open during the pull.
    let mut held = Vec::new();
    for &port in &ports {
        for (number, bytes) in payloads().iter().enumerate() {
            http::raw(port, bytes, Duration::from_millis(50)).with_context(|| format!("payload {number} at {port}"))?;
        }
        for _ in 0..20 {
            let mut stream = TcpStream::connect(port)?;
            let _ = stream.write_all(b"GET /v2/ HT");
            held.push(stream);
        }
    }
    let Cluster { tracker, seeder, nodes, .. } = &mut cluster;
    for role in [tracker, seeder].into_iter().chain(nodes) {
        role.check_running().context("after garbage on its ports")?;
    }
    for node in 0..2 {
        pull(cluster.proxy(node), scene.image).with_context(|| format!("a good pull at node {node} after garbage"))?;
    }
    registry.expect_each_once(scene.image.blobs())
}

fn ports(role: &Role) -> Vec<SocketAddr> {
    let ready = &role.ready;
    [Some(ready.listen), Some(ready.admin), ready.p2p, ready.data].into_iter().flatten().collect()
}

fn payloads() -> Vec<Vec<u8>> {
    // xorshift with a fixed seed: the same noise in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(8 << 10)
    .flatten()
    .collect();
    vec![
        Vec::new(),
        vec![0; 4096],
        vec![0xff; 4096],
        noise,
        // A length prefix of 4 GiB, and the longest varint.
        [&[0xff, 0xff, 0xff, 0xff][..], &[0; 64]].concat(),
        vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        // The start of a TLS handshake that promises more than comes.
        [&[0x16, 0x03, 0x01, 0x40, 0x00, 0x01, 0x00][..], &[0x41; 200]].concat(),
        // The first words of libp2p, and then nonsense.
        b"\x13/multistream/1.0.0\n\x0a/nonsense\n".to_vec(),
        b"GET / HTTP/9.9\r\n\r\n".to_vec(),
        b"GET /v2/ HTTP/1.1\r\nContent-Length: -5\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n".to_vec(),
        [b"GET /v2/ HTTP/1.1\r\n".to_vec(), b"X: y\r\n".repeat(5_000), b"\r\n".to_vec()].concat(),
        b"POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{\"node\": ".to_vec(),
        b"POST /v1/announce HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n[[[[[[[[".to_vec(),
    ]
}

/// How `eagle` has to end, given this configuration.
struct Misconfigured {
    what: &'static str,
    config: String,
    arguments: Vec<String>,
    environment: Option<(&'static str, &'static str)>,
    codes: &'static [i32],
    /// All of it has to be in what it prints on standard error.
    says: Vec<String>,
}

pub(super) fn configuration(scene: &Scene<'_>) -> Result<()> {
    let taken = TcpListener::bind(("127.0.0.1", 0))?;
    let taken_address = taken.local_addr()?.to_string();
    let file_as_directory = scene.directory.join("a-file");
    fs::write(&file_as_directory, b"not a directory")?;
    let below_file = file_as_directory.join("data").display().to_string();
    let data_dir = scene.directory.join("data").display().to_string();
    let good = format!(
        "proxy:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  p2p_listen: 127.0.0.1:0\n  data_listen: 127.0.0.1:0\n  data_dir: {data_dir}\n  min_free: 16MiB\n"
    );
    let case = |what, config: &str, codes, says: &[&str]| Misconfigured {
        what,
        config: config.to_owned(),
        arguments: Vec::new(),
        environment: None,
        codes,
        says: says.iter().map(|&text| text.to_owned()).collect(),
    };
    const CONFIG: &[i32] = &[78];
    let cases = [
        case("an unknown section", "proxies:\n  listen: x\n", CONFIG, &["proxies", ":1"]),
        case("an unknown key", "proxy:\n  lisen: 127.0.0.1:1\n", CONFIG, &["lisen", ":2"]),
        case("an address that is none", "proxy:\n  listen: nowhere\n", CONFIG, &["proxy.listen", ":2"]),
        case("a size that is none", "proxy:\n  cache_limit: lots\n", CONFIG, &["cache_limit", ":2", "lots"]),
        case(
            "a rate that is none",
            "log:\n  level: info\nproxy:\n  upload_rate: 3 parsecs\n",
            CONFIG,
            &["upload_rate", ":4"],
        ),
        case("a map where a list belongs", "registries:\n  name: docker.io\n", CONFIG, &["registries"]),
        case("no YAML at all", "proxy: [\n", CONFIG, &[":"]),
        Misconfigured {
            environment: Some(("EAGLE_PROXY__LISEN", "127.0.0.1:1")),
            ..case("an unknown variable", &good, CONFIG, &["EAGLE_PROXY__LISEN"])
        },
        Misconfigured {
            arguments: vec!["--no-such-flag".to_owned()],
            ..case("an unknown flag", &good, &[64], &["--no-such-flag"])
        },
        Misconfigured {
            arguments: vec!["--listen".to_owned(), taken_address.clone()],
            ..case("a port in use", &good, &[1, 78], &[&taken_address])
        },
        Misconfigured {
            arguments: vec!["--data-dir".to_owned(), below_file.clone()],
            ..case("a data directory below a file", &good, &[1, 78], &[&below_file])
        },
    ];
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(error) = refuses(scene, case) {
            wrong.push(format!("{}: {error:#}", case.what));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn refuses(scene: &Scene<'_>, case: &Misconfigured) -> Result<()> {
    let file = scene.directory.join("eagle.yaml");
    fs::write(&file, &case.config)?;
    let mut command = Command::new(scene.eagle);
    command.arg("proxy").arg("--config").arg(&file).args(&case.arguments).envs(case.environment);
    let finished = finish(&mut command, Duration::from_secs(20)).context("it runs on instead of ending")?;
    let (code, said) = (finished.status.code(), finished.stderr.trim());
    let Some(code) = code else { bail!("ended by {}: {said}", finished.status) };
    ensure!(case.codes.contains(&code), "exit code {code} instead of {:?}: {said}", case.codes);
    for part in &case.says {
        ensure!(said.contains(part), "should say {part:?}: {said}");
    }
    ensure!(said.lines().count() <= 6, "one clear line is enough: {said}");
    ensure!(!said.contains("panicked"), "{said}");
    Ok(())
}
