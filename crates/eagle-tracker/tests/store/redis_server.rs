//! A real redis-server on a free port, with a password where asked for, that ends with its test.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use eagle_tracker::{
    TrackerConfig,
    store::{StoreLimits, StoreLocation},
};

/// Longest wait for a server to answer, on a machine with other work.
const DEADLINE: Duration = Duration::from_secs(30);

/// A running server.
pub(crate) struct RedisServer {
    process: Child,
    directory: tempfile::TempDir,
    pub(crate) port: u16,
    arguments: Vec<String>,
}

/// Whether there is a redis-server to test with. In CI there has to be.
pub(crate) fn is_installed() -> bool {
    let found = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    let in_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(found || !in_ci, "redis-server is not installed (Debian: redis-server)");
    if !found {
        println!("skipped: redis-server is not installed (Debian: redis-server)");
    }
    found
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments of the program.
    pub(crate) fn with(arguments: &[&str]) -> Self {
        Self::on(free_port(), arguments)
    }

    /// `port` is for plain TCP unless the arguments say otherwise.
    pub(crate) fn on(port: u16, arguments: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let process = spawn(port, directory.path(), &arguments);
        let server = Self { process, directory, port, arguments };
        server.wait();
        server
    }

    fn wait(&self) {
        let start = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            assert!(start.elapsed() < DEADLINE, "redis-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends the server at once; what it held is lost.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self) {
        self.process = spawn(self.port, self.directory.path(), &self.arguments);
        self.wait();
    }

    /// Stops the process as it is, or lets it go on.
    pub(crate) fn freeze(&self, freeze: bool) {
        let signal = if freeze { "-STOP" } else { "-CONT" };
        assert!(Command::new("kill").args([signal, &self.process.id().to_string()]).status().unwrap().success());
    }

    /// Sends a command as it is typed, and gives what came back first.
    pub(crate) fn command(&self, line: &str) -> String {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(format!("{line}\r\n").as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let length = stream.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    /// A tracker's configuration with this server, and a cluster of its own.
    pub(crate) fn config(&self, limits: &StoreLimits) -> TrackerConfig {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        TrackerConfig {
            store_name: format!("test-{}", CLUSTERS.fetch_add(1, Ordering::Relaxed)),
            store: format!("redis://127.0.0.1:{}", self.port).parse::<StoreLocation>().unwrap(),
            peer_ttl: limits.ttl,
            max_peers: limits.peers,
            max_blobs: limits.blobs,
            max_peers_per_blob: limits.peers_per_blob,
            max_blobs_per_peer: limits.blobs_per_peer,
            ..TrackerConfig::default()
        }
    }
}

fn spawn(port: u16, directory: &Path, arguments: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"])
        .arg(directory)
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
