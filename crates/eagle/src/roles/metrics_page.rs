//! `docs/metrics.md` lists every metric that the roles have; this test holds it to that, with roles that run.
//!
//! After a change: `EAGLE_TEST_BLESS=1 cargo test -p eagle metrics_page`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use eagle_cluster::ClusterKey;
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

use super::{Running, standalone};
use crate::{
    cluster::Cluster,
    config::{Flags, Loaded, Sources},
    exposition::Format,
};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
const BEGIN: &str = "<!-- metrics: written by the test of crates/eagle/src/roles/metrics_page.rs -->\n";
const END: &str = "<!-- end of metrics -->\n";
/// Series of one role, most: what a scrape brings stays small, whatever is pulled and by how many.
const MOST_SERIES: usize = 250;

/// What a role tells of one metric.
#[derive(Debug, Default)]
struct Metric {
    help: String,
    kind: String,
    /// Names of labels and all their values.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The metrics in a text in the format of Prometheus, with the number of series.
fn parse(text: &str) -> (BTreeMap<String, Metric>, usize) {
    let mut metrics = BTreeMap::<String, Metric>::new();
    let (mut series, mut last) = (0, String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.') && !help.ends_with(".."), "{line}");
            name.clone_into(&mut last);
            let known = metrics.insert(name.to_owned(), Metric { help: help.to_owned(), ..Metric::default() });
            assert!(known.is_none(), "{name} is there twice");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            kind.clone_into(&mut metrics.get_mut(name).unwrap().kind);
        } else {
            series += 1;
            let Some((name, labels)) = line.split_once('{') else { continue };
            assert!(name.starts_with(&last), "{line} is told below {last}");
            let labels = labels.rsplit_once('}').unwrap().0;
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                let (name, value) = label.split_once("=\"").unwrap();
                let metric = metrics.get_mut(&last).unwrap();
                metric.labels.entry(name.to_owned()).or_default().insert(value.trim_end_matches('"').to_owned());
            }
        }
    }
    (metrics, series)
}

fn labels(metric: &Metric) -> String {
    let told = metric.labels.iter().filter(|(name, _)| *name != "le").map(|(name, values)| match name.as_str() {
        // Every key has its own.
        "id" => "`id`".to_owned(),
        _ => format!("`{name}`: {}", values.iter().cloned().collect::<Vec<_>>().join(", ")),
    });
    told.collect::<Vec<_>>().join("; ")
}

fn table(page: &mut String, title: &str, metrics: &BTreeMap<String, Metric>) {
    write!(page, "\n### {title}\n\n| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n").unwrap();
    for (name, metric) in metrics {
        writeln!(page, "| `{name}` | {} | {} | {} |", metric.kind, labels(metric), metric.help).unwrap();
    }
}

/// The three roles of a process, on any free ports, with a cluster key and a seeder that has everything it can have.
async fn roles(directory: &std::path::Path, shutdown: &CancellationToken) -> Vec<Running> {
    // Two, as while the key is changed.
    let key = || ClusterKey::generate().unwrap().expose().to_string();
    let mut environment = vec![("EAGLE_CLUSTER__KEY".to_owned(), format!("{}\n{}", key(), key()))];
    for (role, keys) in [
        ("TRACKER", &["LISTEN", "ADMIN"][..]),
        ("SEEDER", &["LISTEN", "ADMIN", "P2P_LISTEN", "DATA_LISTEN"]),
        ("PROXY", &["LISTEN", "ADMIN", "P2P_LISTEN", "DATA_LISTEN"]),
    ] {
        environment.extend(keys.iter().map(|key| (format!("EAGLE_{role}__{key}"), "127.0.0.1:0".to_owned())));
        if role != "TRACKER" {
            let data = directory.join(role).display().to_string();
            environment.push((format!("EAGLE_{role}__DATA_DIR"), data));
            environment.push((format!("EAGLE_{role}__MIN_FREE"), "1MiB".to_owned()));
        }
    }
    let environment = environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
    let loaded = Loaded::from(Sources { file: None, environment, flags: Flags::default() }).unwrap();
    let cluster = Cluster::start(&loaded.settings.cluster).await.unwrap();
    standalone::start(&loaded, &cluster, shutdown.clone()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_about_metrics_is_up_to_date() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let directory = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let running = roles(directory.path(), &shutdown).await;
    let mut wanted = String::new();
    let mut of_process = BTreeMap::new();
    for Running { addresses, admin, .. } in running.iter().rev() {
        let body = admin.state().metrics(Format::Prometheus).into_body().collect().await.unwrap().to_bytes();
        let (mut metrics, series) = parse(std::str::from_utf8(&body).unwrap());
        assert!(series <= MOST_SERIES, "a {} has {series} series", addresses.role);
        of_process = metrics.extract_if(.., |name, _| name.starts_with("eagle_process_")).collect();
        let prefix = format!("eagle_{}_", addresses.role);
        assert!(metrics.keys().all(|name| name.starts_with(&prefix)), "{:?}", metrics.keys());
        let title = format!("{}{}", addresses.role[..1].to_uppercase(), &addresses.role[1..]);
        table(&mut wanted, &title, &metrics);
    }
    table(&mut wanted, "Every process", &of_process);
    shutdown.cancel();
    futures::future::join_all(running.into_iter().map(|running| running.ended)).await;

    let page = std::fs::read_to_string(PAGE).unwrap();
    let (head, rest) = page.split_once(BEGIN).expect("the mark where the metrics begin");
    let (_, tail) = rest.split_once(END).expect("the mark where the metrics end");
    let wanted = format!("{head}{BEGIN}{wanted}\n{END}{tail}");
    if std::env::var_os("EAGLE_TEST_BLESS").is_some() {
        std::fs::write(PAGE, &wanted).unwrap();
    } else {
        assert!(page == wanted, "docs/metrics.md is not what the roles have; run with EAGLE_TEST_BLESS=1");
    }
}
