//! `eagle status`: what a running role says about itself, or trackers about their cluster.

mod cluster;
mod pulls;

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::Value;
use url::Url;

use crate::{cli::StatusArgs, exit::Exit};

/// The admin address is on this machine or near; one that takes longer is stuck.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest answer that is read, bytes; a status has a few thousand.
const MAX_ANSWER: usize = 8 << 20;

/// Asks for `/status`, or trackers for what they know, and prints the answer.
///
/// # Errors
/// When the address makes no sense, or nobody answers there or only members of the cluster.
pub(crate) async fn run(args: &StatusArgs) -> Result<()> {
    if args.trackers.config.is_some() || !args.trackers.trackers.is_empty() {
        return cluster::run(args).await;
    }
    let base = if args.admin.contains("://") { args.admin.clone() } else { format!("http://{}", args.admin) };
    let url = base.parse::<Url>().ok().filter(|url| url.scheme() == "http" && url.has_host());
    let url = url.ok_or_else(|| Exit::usage(format!("--admin {}: write http://HOST:PORT", args.admin)))?;
    let status = ask(&url.join("/status")?).await.with_context(|| {
        format!("nothing useful at {url}; it is the address under `admin` of the role, 43003 for a proxy, 55009 for a seeder, 6970 for a tracker")
    })?;
    if args.json {
        println!("{status:#}");
    } else {
        print!("{}{}", pulls::pulls(&status), readable(&status));
    }
    Ok(())
}

async fn ask(url: &Url) -> Result<Value> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let answer = async {
        let response = client.get(url.as_str().parse()?).await?;
        anyhow::ensure!(response.status() == StatusCode::OK, "it answered {}", response.status());
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?;
        serde_json::from_slice(&body.to_bytes()).context("the answer is not JSON")
    };
    tokio::time::timeout(DEADLINE, answer).await.context("no answer in time")?
}

/// Indented `key: value` lines; sizes beside their bytes, so that nobody has to count digits.
fn readable(status: &Value) -> String {
    let mut text = String::new();
    write(status, 0, &mut text);
    text
}

fn write(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            let width = map.keys().map(String::len).max().unwrap_or(0);
            for (key, value) in map {
                match value {
                    Value::Object(inner) if inner.is_empty() => {}
                    Value::Array(inner) if inner.is_empty() => text.push_str(&format!("{pad}{key:width$}  none\n")),
                    Value::Object(_) | Value::Array(_) => {
                        text.push_str(&format!("{pad}{key}\n"));
                        write(value, indent + 2, text);
                    }
                    _ => text.push_str(&format!("{pad}{key:width$}  {}\n", scalar(key, value))),
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::Object(map) => {
                        let fields: Vec<String> =
                            map.iter().map(|(key, value)| format!("{key} {}", scalar(key, value))).collect();
                        text.push_str(&format!("{pad}- {}\n", fields.join(", ")));
                    }
                    _ => text.push_str(&format!("{pad}- {}\n", scalar("", item))),
                }
            }
        }
        _ => text.push_str(&format!("{pad}{}\n", scalar("", value))),
    }
}

fn scalar(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().map(|c| if c.is_control() { '·' } else { c }).collect(),
        Value::Null => "-".to_owned(),
        Value::Number(number) => match number.as_u64() {
            Some(bytes) if key.contains("bytes") && bytes >= 1_000_000 => {
                format!("{bytes} ({:.1} MB)", bytes as f64 / 1e6)
            }
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_like_a_page() {
        let status = serde_json::json!({
            "role": "proxy", "status": {"cache": {"bytes": 5_000_000}, "swarms": [], "peers": [{"id": "a", "bytes": 1}]}
        });
        let text = readable(&status);
        assert!(text.contains("role    proxy\n"), "{text}");
        assert!(text.contains("bytes  5000000 (5.0 MB)"), "{text}");
        assert!(text.contains("swarms  none") || text.contains("swarms none"), "{text}");
        assert!(text.contains("- bytes 1, id a"), "{text}");
    }
}
