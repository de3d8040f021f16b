//! `eagle-bench pull` with agents, all of them processes on this machine.
//!
//! The first test needs the `eagle` program beside `eagle-bench`, where `cargo test --workspace` and `cargo xtask test`
//! build it.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "../src/report/markup.rs"]
mod markup;

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// All of it takes some seconds; this is for a machine that compiles at the same time.
const PATIENCE: Duration = Duration::from_secs(120);
const TOKEN: &str = "a-token-that-nobody-guesses";

/// The program, with whatever it makes in this directory.
fn bench(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eagle-bench"));
    command.env("TMPDIR", directory).env("EAGLE_CONFIG", "/nowhere").env_remove("EAGLE_BENCH_TOKEN");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A process that does not outlive the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Waits for the end; its code and what it printed as errors.
    fn end(mut self) -> (Option<i32>, String) {
        let mut stderr = self.0.stderr.take().unwrap();
        let reader = thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).unwrap();
            text
        });
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            thread::sleep(Duration::from_millis(10));
        };
        (status.code(), reader.join().unwrap())
    }
}

struct Agent {
    process: Running,
    url: String,
    /// What it says on its standard error.
    says: mpsc::Receiver<String>,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        let token = directory.join("token");
        fs::write(&token, format!("{TOKEN}\n")).unwrap();
        let mut command = bench(directory);
        command.args(["agent", "--listen", "127.0.0.1:0", "--token-file"]).arg(&token);
        let mut process = Running(command.spawn().unwrap());
        let mut first = String::new();
        BufReader::new(process.0.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let url = first.trim().rsplit(' ').next().unwrap().to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{first}");
        let (sender, says) = mpsc::sync_channel(100);
        let lines = BufReader::new(process.0.stderr.take().unwrap()).lines();
        thread::spawn(move || lines.map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        Self { process, url, says }
    }

    fn name(&self) -> &str {
        self.url.trim_start_matches("http://")
    }

    /// Waits until it says something with this in it.
    fn wait_for(&self, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.says.recv_timeout(left).unwrap_or_else(|_| panic!("{} never said: {what}", self.url));
            if line.contains(what) {
                return;
            }
        }
    }

    /// The status of its answer to a request with these lines after the first.
    fn asked(&self, first: &str, headers: &str) -> String {
        let mut stream = TcpStream::connect(self.name()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(stream, "{first} HTTP/1.1\r\nHost: agent\r\n{headers}Content-Length: 0\r\n\r\n").unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap_or_default().to_owned()
    }
}

/// A controller of these agents, which knows the token.
fn controller(directory: &Path, agents: &[&Agent]) -> Command {
    let mut command = bench(directory);
    command.env("EAGLE_BENCH_TOKEN", TOKEN).arg("pull");
    for agent in agents {
        command.args(["--agent", &agent.url]);
    }
    command
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn left_behind(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn two_agents_pull_as_one() {
    let eagle = Path::new(env!("CARGO_BIN_EXE_eagle-bench")).with_file_name("eagle");
    assert!(eagle.is_file(), "{} is missing; build it first: cargo build -p eagle", eagle.display());
    let (tokens, temporary, results) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let agents = [Agent::start(tokens.path()), Agent::start(tokens.path())];
    let file = |name: &str| results.path().join(name);
    let mut command = controller(temporary.path(), &[&agents[0], &agents[1]]);
    command.args(["--local", "--nodes", "2", "--size", "1MiB", "--unique", "--warm-up", "1"]);
    command.args(["--concurrency", "1,3", "--iterations", "2"]);
    command.arg("--json").arg(file("pulls.json")).arg("--csv").arg(file("pulls.csv"));
    let Output { status, stdout, stderr } = command.arg("--html").arg(file("pulls.html")).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success() && stdout.contains(agents[1].name()), "{stdout}\n{stderr}");

    let report = json(&file("pulls.json"));
    assert!(report["error"].is_null());
    for (reported, agent) in report["agents"].as_array().unwrap().iter().zip(&agents) {
        assert_eq!((&reported["name"], &reported["error"]), (&Value::from(agent.name()), &Value::Null));
        assert_eq!((&reported["version"], &reported["build"]), (&report["version"], &report["build"]));
        assert!(reported["host"]["cores"].as_u64().unwrap() > 0 && reported["round_trip_seconds"].is_f64());
    }
    // A series has 1 + 3 clients with two pulls each; of three clients the first agent has two.
    let pulls = report["pulls"].as_array().unwrap();
    assert_eq!(pulls.len(), 16);
    let by = |agent: &Agent, clients: u32| {
        let own = pulls.iter().filter(|pull| pull["agent"] == agent.name() && pull["concurrency"] == clients);
        own.map(|pull| pull["iteration"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!((by(&agents[0], 1), by(&agents[1], 1)), (vec![1, 2, 1, 2], vec![]));
    assert_eq!((by(&agents[0], 3), by(&agents[1], 3)), (vec![1, 2, 4, 5, 1, 2, 4, 5], vec![3, 6, 3, 6]));
    for step in report["steps"].as_array().unwrap() {
        assert_eq!((&step["success_rate"], &step["asked"]), (&Value::from(1.0), &step["pulls"]));
        let (sent, got) = (step["origin_bytes"].as_u64().unwrap(), step["bytes"].as_u64().unwrap());
        let pulls = step["pulls"].as_u64().unwrap();
        // Two iterations, and both agents pull the image of each.
        let images = if step["series"] == "eagle" { 2 } else { pulls };
        assert_eq!(sent, got / pulls * images, "{step:#}");
        assert!(step["elapsed_seconds"].as_f64().unwrap() >= step["seconds"]["max"].as_f64().unwrap(), "{step:#}");
    }
    let csv = fs::read_to_string(file("pulls.csv")).unwrap();
    assert!(csv.starts_with("iteration,success,seconds,") && csv.lines().count() == 17, "{csv}");
    assert!(csv.lines().last().unwrap().ends_with(&format!(",,{}", agents[1].name())), "{csv}");
    let page = fs::read_to_string(file("pulls.html")).unwrap();
    markup::check(&page).unwrap();
    assert!(page.contains("Pulls of each agent") && page.contains(agents[0].name()), "{page}");
    assert_eq!(left_behind(temporary.path()), [] as [PathBuf; 0]);
}

/// A registry that takes connections and never answers.
struct Silent(TcpListener);

impl Silent {
    fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    fn pull(&self, command: &mut Command) {
        let address = self.0.local_addr().unwrap();
        command.args(["--image", &format!("{address}/a/b:c"), "--direct", &format!("http://{address}")]);
        command.args(["--iterations", "1", "--concurrency"]);
    }

    fn accept(&self) -> TcpStream {
        let (stream, _) = self.0.accept().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }
}

/// Waits until whoever asked is gone.
fn wait_for_end(mut stream: TcpStream) {
    // An error says the same: the connection was reset.
    let mut request = Vec::new();
    if let Err(error) = stream.read_to_end(&mut request) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

#[test]
fn a_lost_agent_fails_the_result_and_a_lost_controller_stops_the_agent() {
    let (directory, results) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let agents = [Agent::start(directory.path()), Agent::start(directory.path())];
    let [first, second] = agents;
    let silent = Silent::new();
    let file = results.path().join("pulls.json");
    let mut command = controller(directory.path(), &[&first, &second]);
    silent.pull(&mut command);
    let running = Running(command.args(["2", "--json"]).arg(&file).spawn().unwrap());
    let asked = [silent.accept(), silent.accept()];

    // Both are busy now.
    let mut command = controller(directory.path(), &[&first]);
    silent.pull(&mut command);
    let (code, text) = Running(command.arg("1").spawn().unwrap()).end();
    assert!(code == Some(1) && text.contains("409") && text.contains("works for another controller"), "{text}");

    let lost = second.name().to_owned();
    drop(second.process);
    let (code, text) = running.end();
    assert!(code == Some(1) && text.contains(&format!("broke off: agent {lost}: ")), "{text}");
    let report = json(&file);
    assert!(report["error"].as_str().unwrap().contains(&lost), "{report:#}");
    assert!(report["agents"][0]["error"].is_null() && report["agents"][1]["error"].is_string(), "{report:#}");
    let step = &report["steps"][0];
    assert_eq!((&step["asked"], &step["pulls"], &step["success_rate"]), (&2.into(), &0.into(), &0.0.into()));
    // The one that is left has stopped its pull, and waits.
    asked.into_iter().for_each(wait_for_end);
    first.wait_for("waiting for the next");

    let mut command = controller(directory.path(), &[&first]);
    silent.pull(&mut command);
    let running = Running(command.arg("1").spawn().unwrap());
    let asked = silent.accept();
    // As a machine that is switched off.
    drop(running);
    wait_for_end(asked);
    first.wait_for("waiting for the next");

    // A pull that fails is no fault of the agent.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = controller(directory.path(), &[&first]);
    command.args(["--image", &format!("{nobody}/a/b:c"), "--direct", &format!("http://{nobody}")]);
    let command = command.args(["--iterations", "1", "--concurrency", "1", "--json"]).arg(&file);
    let (code, text) = Running(command.spawn().unwrap()).end();
    assert!(code == Some(1) && text.contains("1 of 1 pulls failed, the first with: manifest c of a/b"), "{text}");
    assert_eq!(json(&file)["pulls"][0]["agent"], first.name());
}

#[test]
fn strangers_are_refused() {
    let directory = TempDir::new().unwrap();
    let agent = Agent::start(directory.path());
    let version = concat!("eagle-bench-version: ", env!("CARGO_PKG_VERSION"), "\r\n");
    let token = format!("Authorization: Bearer {TOKEN}\r\n");
    let post = "POST /v1/pull";
    assert_eq!(agent.asked(post, version), "401");
    assert_eq!(agent.asked(post, &format!("{version}Authorization: Bearer something-else\r\n")), "401");
    assert_eq!(agent.asked("GET /", &token), "404");
    assert_eq!(agent.asked("GET /v1/pull", &token), "405");
    assert_eq!(agent.asked(post, &token), "400");
    assert_eq!(agent.asked(post, &format!("{token}eagle-bench-version: 0.0.1\r\n")), "400");
    assert_eq!(agent.asked(post, &format!("{token}{version}Origin: http://page.example\r\n")), "403");
    assert_eq!(agent.asked("nonsense", ""), "400");

    let pull = |token: Option<&str>| {
        let mut command = bench(directory.path());
        command.args(["pull", "--image", "127.0.0.1:1/a/b:c", "--agent", &agent.url]);
        if let Some(token) = token {
            command.env("EAGLE_BENCH_TOKEN", token);
        }
        Running(command.spawn().unwrap()).end()
    };
    for token in [None, Some("another-token-than-the-agent's")] {
        let (code, text) = pull(token);
        assert!(code == Some(1) && text.contains("401") && text.contains("the token is missing or another"), "{text}");
    }
    let (code, text) = pull(Some("too short"));
    assert!(code == Some(1) && text.contains("EAGLE_BENCH_TOKEN: a token has"), "{text}");
    let (code, text) = Running(bench(directory.path()).args(["agent", "--listen", "0.0.0.0:0"]).spawn().unwrap()).end();
    assert!(code == Some(1) && text.contains("--token-file"), "{text}");

    // Garbage from one that knows the token ends that session, and the agent goes on.
    let mut stream = TcpStream::connect(agent.name()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let garbage = "{\"step\": [1, 2]}\n";
    write!(
        stream,
        "POST /v1/pull HTTP/1.1\r\nHost: agent\r\n{token}{version}Content-Length: {}\r\n\r\n",
        garbage.len()
    )
    .unwrap();
    stream.write_all(garbage.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("{\"hello\":") && answer.contains("makes no sense"), "{answer}");
    agent.wait_for("waiting for the next");
    assert_eq!(agent.asked(post, ""), "401");
}
