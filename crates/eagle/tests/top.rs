//! `eagle top` with real processes, on a pseudo-terminal and without one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{Read as _, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
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

/// It on a terminal of 80 columns and 24 rows, which becomes smaller once there is the file `smaller`.
struct OnTerminal {
    child: Child,
    typed: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    reader: JoinHandle<()>,
    deadline: Instant,
}

impl OnTerminal {
    fn start(address: &str, smaller: &Path) -> Self {
        // What waits for the file ends with the program, which has the process id of the shell.
        let inner = format!(
            "stty cols 80 rows 24; (until [ -e '{}' ]; do kill -0 $$ || exit; sleep 0.05; done; stty cols 60 rows 15 </dev/tty) & exec {} top --tracker {address}",
            smaller.display(),
            env!("CARGO_BIN_EXE_eagle")
        );
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
        let typed = child.stdin.take().unwrap();
        let mut terminal = Self { child, typed, seen, reader, deadline: Instant::now() + PATIENCE };
        terminal.until(0, "announced.");
        terminal
    }

    /// What the terminal got after so many bytes.
    fn text(&self, after: usize) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()[after..]).into_owned()
    }

    /// Waits until the terminal got something, after so many bytes.
    fn until(&mut self, after: usize, text: &str) {
        while !self.text(after).contains(text) {
            let runs = self.child.try_wait().unwrap().is_none();
            assert!(Instant::now() < self.deadline && runs, "no {text:?} is shown: {:?}", self.text(0));
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Types what ends it, and gives all that the terminal got.
    fn end(mut self, keys: &[u8]) -> String {
        self.typed.write_all(keys).unwrap();
        self.typed.flush().unwrap();
        while self.child.try_wait().unwrap().is_none() {
            if Instant::now() > self.deadline {
                self.child.kill().unwrap();
                panic!("it does not end: {:?}", self.text(0));
            }
            thread::sleep(Duration::from_millis(20));
        }
        assert!(self.child.wait().unwrap().success(), "{:?}", self.text(0));
        let seen = Arc::clone(&self.seen);
        self.reader.join().unwrap();
        String::from_utf8_lossy(&seen.lock().unwrap()).into_owned()
    }
}

/// The last column and row that something is written to by these commands, as far as they place the cursor themselves (ECMA-48, CUP).
fn extent(commands: &str) -> (usize, usize) {
    let (mut widest, mut lowest) = (0, 0);
    for part in commands.split("\u{1b}[").skip(1) {
        let Some((place, written)) = part.split_once('H') else { continue };
        let Some((row, column)) = place.split_once(';') else { continue };
        let (Ok(row), Ok(column)) = (row.parse::<usize>(), column.parse::<usize>()) else { continue };
        widest = widest.max(column + written.chars().count().max(1) - 1);
        lowest = lowest.max(row);
    }
    (widest, lowest)
}

#[test]
fn a_terminal_is_left_as_it_was() {
    let (_tracker, address) = tracker();
    // A change of view and then the key to leave; and Ctrl-C.
    for keys in [&b"\tq"[..], &b"\x03"[..]] {
        let text = OnTerminal::start(&address, Path::new("/nonexistent/smaller")).end(keys);
        let (entered, left) = (text.find(ENTER), text.rfind(LEAVE));
        assert!(entered.is_some() && entered < left, "{text:?}");
        assert!(text.contains("eagle top") && text.contains("1 Swarms"), "{text:?}");
    }
}

#[test]
fn a_terminal_that_becomes_smaller_is_drawn_anew() {
    let (_tracker, address) = tracker();
    let directory = tempfile::tempdir().unwrap();
    let smaller = directory.path().join("smaller");
    let mut terminal = OnTerminal::start(&address, &smaller);
    terminal.until(0, "\u{1b}[24;1H");
    let before = terminal.seen.lock().unwrap().len();
    std::fs::write(&smaller, "").unwrap();
    // All of it, and the last row in its new place.
    terminal.until(before, "eagle top");
    terminal.until(before, "\u{1b}[15;1H");
    let shown = terminal.text(before);
    terminal.end(b"q");
    // Columns and rows change one after the other; of the last picture nothing is outside.
    let (widest, lowest) = extent(&shown[shown.rfind("eagle top").unwrap()..]);
    assert!(widest <= 60 && lowest == 15, "{widest} columns, {lowest} rows: {shown:?}");
}
