//! `eagle top` with real processes, on a pseudo-terminal and without one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::{Role, eagle, output, stderr};
use serde_json::Value;

/// As in `common`: far longer than what goes well takes.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a terminal is told to show another screen, and the first one again.
const ENTER: &str = "\u{1b}[?1049h";
const LEAVE: &str = "\u{1b}[?1049l";

fn tracker() -> (Role, String) {
    let mut tracker =
        Role::start(eagle().args(["tracker", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]));
    let address = tracker.ready()["admin"].as_str().unwrap().to_owned();
    (tracker, address)
}

#[test]
fn without_a_terminal_it_is_printed_once() {
    let (_tracker, address) = tracker();
    let printed = output(eagle().args(["top", "--tracker", &address]));
    let text = String::from_utf8(printed.stdout).unwrap();
    assert!(text.starts_with("0 nodes (0 seeders), 0 blobs") && text.contains("No blob is announced."), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let printed = output(eagle().args(["top", "--json", "--tracker", &address]));
    let all: Value = serde_json::from_slice(&printed.stdout).unwrap();
    assert_eq!((&all["overview"]["peers"], &all["nodes"]), (&Value::from(0), &Value::Array(Vec::new())));
    let nobody = output(eagle().args(["top", "--tracker", "127.0.0.1:9"]));
    assert!(nobody.status.code() == Some(1) && stderr(&nobody).contains("--tracker"), "{}", stderr(&nobody));
}

/// Starts it on a terminal of 80 columns, types `keys` once it shows something, and gives what the terminal got.
fn on_a_terminal(address: &str, keys: &[u8]) -> String {
    let inner = format!("stty cols 80 rows 24; exec {} top --tracker {address}", env!("CARGO_BIN_EXE_eagle"));
    let mut command = Command::new("script");
    command.args(["-qefc", &inner, "/dev/null"]).env("TERM", "xterm").env("SHELL", "/bin/sh");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut screen, sink) = (child.stdout.take().unwrap(), Arc::clone(&seen));
    let reader = thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = screen.read(&mut part) {
            sink.lock().unwrap().extend_from_slice(&part[..read]);
        }
    });
    let text = || String::from_utf8_lossy(&seen.lock().unwrap()).into_owned();
    let deadline = Instant::now() + PATIENCE;
    while !text().contains("announced.") {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "nothing is shown: {:?}", text());
        thread::sleep(Duration::from_millis(20));
    }
    let mut typed = child.stdin.take().unwrap();
    typed.write_all(keys).unwrap();
    typed.flush().unwrap();
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it does not end: {:?}", text());
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(child.wait().unwrap().success(), "{:?}", text());
    reader.join().unwrap();
    text()
}

#[test]
fn a_terminal_is_left_as_it_was() {
    let (_tracker, address) = tracker();
    // A change of view and then the key to leave; and Ctrl-C.
    for keys in [&b"\tq"[..], &b"\x03"[..]] {
        let text = on_a_terminal(&address, keys);
        let (entered, left) = (text.find(ENTER), text.rfind(LEAVE));
        assert!(entered.is_some() && entered < left, "{text:?}");
        assert!(text.contains("eagle top") && text.contains("1 Swarms"), "{text:?}");
    }
}
