//! Traces of pulls through real processes, sent to a collector of the test's own.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use common::{Role, eagle, get};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value},
};
use prost::Message as _;
use sha2::{Digest as _, Sha256};

const PATIENCE: Duration = Duration::from_secs(20);
const CONTENT: &[u8] = b"the content of a blob";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

/// A request as it came: its path, its `traceparent`, its body.
#[derive(Debug, Clone)]
struct Seen {
    path: String,
    parent: Option<String>,
    body: Vec<u8>,
}

/// A server that keeps what it is asked; its address, and that.
fn server(content: &'static [u8]) -> (String, Arc<Mutex<Vec<Seen>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&seen);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (stream, kept) = (stream.unwrap(), Arc::clone(&kept));
            thread::spawn(move || while answer(&stream, content, &kept).is_some() {});
        }
    });
    (address, seen)
}

/// Answers one request; `None` when there is no more.
fn answer(mut stream: &TcpStream, content: &[u8], kept: &Mutex<Vec<Seen>>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|length| *length > 0)?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut parent, mut length) = (None, 0);
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "traceparent" => parent = Some(value.to_owned()),
            "content-length" => length = value.parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    kept.lock().unwrap().push(Seen { path, parent, body });
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len()).ok()?;
    if method != "HEAD" {
        stream.write_all(content).ok()?;
    }
    Some(())
}

#[derive(Debug, Clone)]
struct Span {
    service: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: Vec<KeyValue>,
}

impl Span {
    fn attribute(&self, key: &str) -> String {
        text(&self.attributes, key)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn spans(collected: &[Seen]) -> Vec<Span> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut spans = Vec::new();
    for request in collected {
        assert_eq!(request.path, "/v1/traces");
        for resource in ExportTraceServiceRequest::decode(&*request.body).unwrap().resource_spans {
            let service = text(&resource.resource.unwrap().attributes, "service.name");
            for span in resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: span.attributes,
                });
            }
        }
    }
    spans
}

fn node<'a>(command: &'a mut Command, role: &str, directory: &std::path::Path, registry: &str) -> &'a mut Command {
    let anywhere = ["--listen", "--admin-listen", "--p2p-listen", "--data-listen"];
    command.arg(role).args(anywhere.iter().flat_map(|flag| [*flag, "127.0.0.1:0"]));
    command.arg("--data-dir").arg(directory.join(role)).arg("--registry").arg(format!("r.test=http://{registry}"));
    command.env("EAGLE_PROXY__MIN_FREE", "1MiB").env("EAGLE_SEEDER__MIN_FREE", "1MiB");
    command.env("OTEL_BSP_SCHEDULE_DELAY", "20");
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_SERVICE_NAME"] {
        command.env_remove(name);
    }
    command
}

fn blob() -> String {
    let digest: String = Sha256::digest(CONTENT).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/v2/team/app/blobs/sha256:{digest}?ns=r.test")
}

/// Pulls the blob as a runtime with a trace of its own.
fn pull_within_a_trace(proxy: &str) {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = format!("GET {} HTTP/1.1\r\nHost: {proxy}\r\nConnection: close", blob());
    write!(stream, "{head}\r\ntraceparent: 00-{TRACE}-{CALLER}-01\r\ntracestate: a=b\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(CONTENT), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_pull_is_one_trace_from_the_runtime_to_the_registry() {
    let directory = tempfile::tempdir().unwrap();
    let (collector, collected) = server(b"");
    let (registry, asked) = server(CONTENT);
    let mut seeder = Role::start(
        node(&mut eagle(), "seeder", directory.path(), &registry)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{collector}")),
    );
    let seeder_address = format!("http://{}", seeder.ready()["listen"].as_str().unwrap());
    let mut proxy = Role::start(
        node(&mut eagle(), "proxy", directory.path(), &registry)
            .args(["--seeder", &seeder_address, "--log-level", "error"])
            .env("EAGLE_TRACES__ENDPOINT", format!("http://{collector}/")),
    );
    let address = proxy.ready()["listen"].as_str().unwrap().to_owned();
    pull_within_a_trace(&address);
    // Again, by a runtime that sends none.
    assert_eq!(get(&address, &blob()).0, 200);
    // The spans that end last.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = spans(&collected.lock().unwrap());
        let count = |name: &str| all.iter().filter(|span| span.name == name).count();
        if count("serve a runtime") == 2 && count("fetch a blob") == 1 {
            break;
        }
        assert!(Instant::now() < deadline, "only {all:#?}");
        thread::sleep(Duration::from_millis(20));
    }
    for role in [&mut proxy, &mut seeder] {
        role.signal("TERM");
        let (code, log) = role.end(PATIENCE);
        assert_eq!(code, Some(0), "{log}");
        assert!(!log.contains("eagle_trace") && !log.contains("ask the"), "spans of traces are in the log: {log}");
    }

    let all = spans(&collected.lock().unwrap());
    let of = |name: &str| {
        let found: Vec<&Span> = all.iter().filter(|span| span.name == name && span.trace == TRACE).collect();
        assert!(!found.is_empty(), "no {name} in {all:#?}");
        found
    };
    let is_below = |name: &str, above: &str, service: &str| {
        for span in of(name) {
            assert_eq!(span.service, service);
            assert!(of(above).iter().any(|above| above.id == span.parent), "{name} is not below {above}: {all:#?}");
        }
    };
    let pull = of("serve a runtime")[0];
    assert_eq!((pull.parent.as_str(), pull.service.as_str()), (CALLER, "eagle-proxy"));
    assert_eq!(
        (pull.attribute("eagle.kind"), pull.attribute("eagle.outcome")),
        ("blob".to_owned(), "complete".to_owned())
    );
    assert_eq!(pull.attribute("eagle.bytes"), CONTENT.len().to_string());
    assert_eq!(pull.attribute("http.response.status_code"), "200");
    is_below("ask the seeder", "serve a runtime", "eagle-proxy");
    is_below("serve a node", "ask the seeder", "eagle-seeder");
    is_below("fetch a blob", "serve a node", "eagle-seeder");
    let asked = asked.lock().unwrap();
    let fetched = of("fetch a blob")[0];
    let names: Vec<String> = of("ask the registry").iter().map(|span| format!("00-{TRACE}-{}-01", span.id)).collect();
    assert!(of("ask the registry").iter().any(|span| span.parent == fetched.id), "{all:#?}");
    for request in asked.iter().filter(|request| request.path.contains("/blobs/")) {
        assert!(names.contains(request.parent.as_ref().unwrap()), "{request:?} {names:?}");
    }

    let others: Vec<&Span> = all.iter().filter(|span| span.trace != TRACE && span.name == "serve a runtime").collect();
    assert_eq!(others.len(), 1, "{all:#?}");
    assert_eq!(others[0].attribute("eagle.from_cache"), CONTENT.len().to_string());
    assert_eq!(others[0].parent, "", "the first of its trace");
}

#[test]
fn a_collector_that_is_down_is_named_once_and_holds_up_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, _) = server(CONTENT);
    let broken = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector = broken.local_addr().unwrap();
    let tries = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&tries);
    // Hangs up on everybody.
    thread::spawn(move || {
        for stream in broken.incoming() {
            drop(stream);
            *counted.lock().unwrap() += 1;
        }
    });
    let mut proxy = Role::start(
        node(&mut eagle(), "proxy", directory.path(), &registry)
            .env("EAGLE_TRACES__ENDPOINT", format!("http://{collector}")),
    );
    let address = proxy.ready()["listen"].as_str().unwrap().to_owned();
    let deadline = Instant::now() + PATIENCE;
    while *tries.lock().unwrap() < 3 {
        assert!(Instant::now() < deadline, "the collector is not asked");
        pull_within_a_trace(&address);
        thread::sleep(Duration::from_millis(20));
    }
    proxy.signal("TERM");
    let (code, log) = proxy.end(PATIENCE);
    assert_eq!(code, Some(0), "{log}");
    let warnings: Vec<&str> = log.lines().filter(|line| line.contains("\"WARN\"") || line.contains("WARN ")).collect();
    assert_eq!(warnings.iter().filter(|line| line.contains("traces cannot be sent")).count(), 1, "{log}");
    assert!(log.contains(&collector.port().to_string()), "{log}");
}

#[test]
fn an_address_that_is_none_is_a_mistake_in_the_configuration() {
    let mut check = eagle();
    check.args(["config", "check", "--role", "proxy"]).env("EAGLE_TRACES__ENDPOINT", "collector:4318");
    let finished = common::output(&mut check);
    assert_eq!(finished.status.code(), Some(78));
    assert!(common::stderr(&finished).contains("traces.endpoint"), "{}", common::stderr(&finished));
}
