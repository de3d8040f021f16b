//! Processes under test.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Waits that end well are over in a fraction of this, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The binary, in an environment without settings of the one that runs the tests.
pub(crate) fn eagle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eagle"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("EAGLE_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// A role with its listeners on any free ports of loopback, its data below `data`.
pub(crate) fn anywhere(role: &str, data: &Path) -> Vec<String> {
    let any = "127.0.0.1:0";
    let mut arguments: Vec<String> = [role, "--listen", any, "--admin-listen", any].map(str::to_owned).to_vec();
    if role != "tracker" {
        arguments.extend(["--p2p-listen", any, "--data-listen", any, "--data-dir"].map(str::to_owned));
        arguments.push(data.display().to_string());
    }
    arguments
}

/// Runs a command that is expected to end by itself.
pub(crate) fn output(command: &mut Command) -> Output {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let id = child.id();
    let waiting = thread::spawn(move || child.wait_with_output().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while !waiting.is_finished() {
        if Instant::now() > deadline {
            kill(id, "KILL");
            panic!("{command:?} did not end: {}", stderr(&waiting.join().unwrap()));
        }
        thread::sleep(Duration::from_millis(10));
    }
    waiting.join().unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn kill(id: u32, signal: &str) {
    assert!(Command::new("kill").args(["-s", signal, &id.to_string()]).status().unwrap().success());
}

/// A role that runs until it is told to end, or the test is over.
pub(crate) struct Role {
    child: Child,
    log: Option<JoinHandle<String>>,
    directory: TempDir,
}

impl Role {
    pub(crate) fn start(command: &mut Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        command.arg("--ready-file").arg(directory.path().join("ready.json"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = child.stderr.take().unwrap();
        let log = thread::spawn(move || {
            let mut text = String::new();
            pipe.read_to_string(&mut text).unwrap();
            text
        });
        Self { child, log: Some(log), directory }
    }

    fn ready_file(&self) -> PathBuf {
        self.directory.path().join("ready.json")
    }

    /// The bound addresses, as soon as the role is ready.
    pub(crate) fn ready(&mut self) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(text) = std::fs::read_to_string(self.ready_file()) {
                return serde_json::from_str(&text).unwrap();
            }
            if self.child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                panic!("the role is not ready: {:?}", self.end(Duration::ZERO));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }

    /// Exit code and log, once it has ended.
    pub(crate) fn end(&mut self, within: Duration) -> (Option<i32>, String) {
        let deadline = Instant::now() + within;
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > deadline {
                self.child.kill().unwrap();
                break;
            }
            thread::sleep(Duration::from_millis(5));
        }
        let code = self.child.wait().unwrap().code();
        (code, self.log.take().map(|log| log.join().unwrap()).unwrap_or_default())
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        // Mostly it has ended long ago.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A plain GET: status and body.
pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    ask(address, "GET", path, "")
}

/// Any request: status and body.
pub(crate) fn ask(address: &str, method: &str, path: &str, body: &str) -> (u16, String) {
    let length = body.len();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}");
    write!(stream, "{head}\r\nConnection: close\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
