//! `eagle status` with real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    thread,
    time::{Duration, Instant},
};

use common::{Role, eagle, output, stderr};
use serde_json::Value;

#[test]
fn a_tracker_says_who_is_there_to_members_and_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let key = directory.path().join("cluster.key");
    assert!(output(eagle().args(["cluster-key", "--file"]).arg(&key)).status.success());
    let anywhere = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    let mut tracker = Role::start(eagle().arg("tracker").args(anywhere).arg("--cluster-key-file").arg(&key));
    let address = tracker.ready()["listen"].as_str().unwrap().to_owned();
    let mut proxy = Role::start(
        eagle()
            .arg("proxy")
            .args(anywhere)
            .args(["--p2p-listen", "127.0.0.1:0", "--data-listen", "127.0.0.1:0"])
            .args(["--tracker", &format!("http://{address}"), "--data-dir"])
            .arg(directory.path().join("data"))
            .arg("--cluster-key-file")
            .arg(&key),
    );
    proxy.ready();

    let mut ask = eagle();
    ask.args(["status", "--tracker", &address]);
    let refused = output(&mut ask);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("serves members of its cluster"), "{}", stderr(&refused));
    ask.arg("--cluster-key-file").arg(&key);
    let deadline = Instant::now() + Duration::from_secs(20);
    let listed = loop {
        let answer = output(eagle().args(["status", "--json", "--tracker", &address, "--cluster-key-file"]).arg(&key));
        assert!(answer.status.success(), "{}", stderr(&answer));
        let known: Value = serde_json::from_slice(&answer.stdout).unwrap();
        assert_eq!(known["swarms"].as_array().unwrap().len(), 0);
        if let Some(peer) = known["peers"].as_array().unwrap().first() {
            break peer.clone();
        }
        assert!(Instant::now() < deadline, "the proxy announces itself to nobody");
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(listed["role"], "proxy");
    let page = String::from_utf8(output(&mut ask).stdout).unwrap();
    assert!(page.starts_with("1 nodes (0 seeders), 0 blobs, "), "{page}");
    assert!(page.contains(" PEER ") && page.contains(listed["id"].as_str().unwrap()), "{page}");

    // Beside one that nobody is at, which is named; alone, that one is an error.
    let nobody = "127.0.0.1:9";
    ask.args(["--tracker", nobody, "--json"]);
    let answer = output(&mut ask);
    assert!(answer.status.success(), "{}", stderr(&answer));
    let known: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let trackers = known["trackers"].as_array().unwrap();
    assert!(trackers[0]["address"] == *address && trackers[0]["problem"].is_null(), "{trackers:?}");
    assert!(trackers[1]["address"] == nobody && trackers[1]["problem"].is_string(), "{trackers:?}");
    assert_eq!((&known["peers"][0]["id"], &known["overview"]["peers"]), (&listed["id"], &Value::from(1)));
    let answer = output(eagle().args(["status", "--tracker", nobody, "--tracker", "127.0.0.1:1"]));
    assert_eq!(answer.status.code(), Some(1));
    assert!(stderr(&answer).contains(nobody) && stderr(&answer).contains("127.0.0.1:1"), "{}", stderr(&answer));
    let both = output(eagle().args(["status", "--tracker", nobody, "--admin", nobody]));
    assert_eq!(both.status.code(), Some(64), "{}", stderr(&both));
}
