//! What a proxy pulls, from whom, how fast, and what holds that up, in words.

use serde_json::Value;

use crate::text::{bytes, clean, percent, rate, short};

/// Most levels between a status and its downloads: a proxy by itself has one, one among other roles two.
const DEEP: usize = 4;

/// A paragraph about what is being pulled; nothing where that is nothing.
pub(super) fn pulls(status: &Value) -> String {
    let Some(downloads) = downloads(status, DEEP).filter(|downloads| !downloads.is_empty()) else {
        return String::new();
    };
    let mut text = String::from("pulls\n");
    for download in downloads {
        text.push_str(&pull(download));
    }
    text.push('\n');
    text
}

/// The list of downloads, wherever it is.
fn downloads(status: &Value, deep: usize) -> Option<&Vec<Value>> {
    let map = status.as_object()?;
    if let Some(found) = map.get("downloads").and_then(Value::as_array) {
        return Some(found);
    }
    if deep == 0 { None } else { map.values().find_map(|value| downloads(value, deep - 1)) }
}

fn pull(download: &Value) -> String {
    let number = |name: &str| download[name].as_u64().unwrap_or_default();
    let digest = short(download["digest"].as_str().unwrap_or_default());
    let size = download["size"].as_u64().map_or_else(|| "size not known".to_owned(), bytes);
    let state = match (download["pieces_owned"].as_u64(), download["pieces"].as_u64()) {
        (Some(owned), Some(pieces)) => format!("{} of {size}", percent(owned as f64 / pieces.max(1) as f64)),
        _ => format!("{}, {size}", clean(download["state"].as_str().unwrap_or("-"))),
    };
    let pace = &download["pace"];
    let speed = rate(pace["bytes_per_second"].as_u64().unwrap_or_default());
    let mut text = format!("  {digest}  {state}, {speed}");
    if let Some(limit) = pace["limited_by"].as_str() {
        let share = percent(pace["limited_share"].as_f64().unwrap_or_default());
        text.push_str(&format!("; limited by {} ({share} of the time)", words(limit)));
    }
    text.push('\n');
    let senders = pace["senders"].as_array().into_iter().flatten().map(|sender| {
        let speed = rate(sender["bytes_per_second"].as_u64().unwrap_or_default());
        format!("{} {speed}", short(sender["id"].as_str().unwrap_or_default()))
    });
    let senders: Vec<String> = senders.collect();
    if !senders.is_empty() {
        text.push_str(&format!("    now from {}\n", senders.join(", ")));
    }
    let sources = [
        ("peers", number("bytes_from_peers")),
        ("seeders", number("bytes_from_seeders").saturating_add(number("bytes_from_seeders_http"))),
        ("the registry", number("bytes_from_origin")),
    ];
    let sources: Vec<String> = sources
        .into_iter()
        .filter(|(_, sum)| *sum > 0)
        .map(|(name, sum)| format!("{} from {name}", bytes(sum)))
        .collect();
    if !sources.is_empty() {
        text.push_str(&format!("    so far {}\n", sources.join(", ")));
    }
    text
}

/// What is meant, and where to look.
fn words(limit: &str) -> String {
    match limit {
        "runtime" => "the runtime, which takes no more".to_owned(),
        "host_limit" => "the download limit of this host (`proxy.download_rate`)".to_owned(),
        "disk" => "the disk or processor of this host".to_owned(),
        "origin" => "the registry".to_owned(),
        "seeder" => "the seeders".to_owned(),
        "peers" => "the other nodes".to_owned(),
        other => clean(other),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn says_what_comes_from_where_and_what_holds_it_up() {
        let download = json!({
            "digest": "sha256:0123456789abcdef", "state": "running", "size": 1_200_000_000_u64, "pieces": 100,
            "pieces_owned": 41, "bytes_from_peers": 400_000_000, "bytes_from_seeders": 90_000_000,
            "bytes_from_seeders_http": 2_000_000, "bytes_from_origin": 0,
            "pace": {
                "bytes_per_second": 52_428_800, "limited_by": "host_limit", "limited_share": 0.98,
                "senders": [{"id": "node1", "bytes_per_second": 20_000_000}],
            },
        });
        let expected = "pulls\n  0123456789ab  41 % of 1.2 GB, 52.4 MB/s; limited by the download limit of this host (`proxy.download_rate`) \
            (98 % of the time)\n    now from node1 20.0 MB/s\n    so far 400.0 MB from peers, 92.0 MB from seeders\n\n";
        assert_eq!(pulls(&json!({ "role": "proxy", "status": { "downloads": [download.clone()] } })), expected);
        assert_eq!(pulls(&json!({ "status": { "proxy": { "downloads": [download] } } })), expected);
        for none in [json!({}), json!(null), json!({ "status": { "downloads": [] } }), json!({ "downloads": 3 })] {
            assert_eq!(pulls(&none), "");
        }
    }

    #[test]
    fn anything_else_is_no_harm() {
        let odd = json!({ "downloads": [7, { "digest": "\u{1b}[2J", "state": "st\u{7}", "pace": { "limited_by": "\u{1b}" } }] });
        let text = pulls(&odd);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
    }
}
