//! Secrets, with and without a look into a cluster: what the chart makes once and keeps, and what the administrator has to bring.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    RELEASE, Tools,
    manifest::{find, secret},
    server::{ApiServer, Cluster},
    tools::DEADLINE,
};
use crate::process::succeed;

/// Secrets that the chart makes, and the key within each.
const MADE: [(&str, &str); 2] = [("release-eagle-cluster", "cluster.key"), ("release-eagle-redis", "password")];
/// What the API server says that these hold: "the key that is there", in base64.
const THERE: &str = "dGhlIGtleSB0aGF0IGlzIHRoZXJl";
/// The same of Secrets that the administrator was asked for.
const WANTED: [(&str, &[&str]); 5] = [
    ("ours", &["cluster.key"]),
    ("certificates", &["tls.crt", "tls.key", "ca.crt"]),
    ("redis-login", &["password"]),
    ("registry-login", &["password"]),
    ("pull", &[".dockerconfigjson"]),
];
/// Values that ask for them.
const ASKING: &str = "cluster.keySecret.name=ours,cluster.tls.secret=certificates,redis.url=redis://redis,\
    redis.passwordSecret.name=redis-login,dockerConfigSecrets[0]=pull,registries[0].name=a.example,\
    registries[0].username=u,registries[0].passwordSecret.name=registry-login,\
    registries[0].passwordSecret.key=password";

/// Puts the Secrets there.
fn put<'a>(cluster: &mut Cluster, secrets: impl IntoIterator<Item = (&'a str, &'a [&'a str])>) {
    for (name, keys) in secrets {
        let data: Value =
            keys.iter().map(|key| ((*key).to_owned(), Value::from(THERE))).collect::<serde_json::Map<_, _>>().into();
        let metadata = json!({ "name": name });
        cluster.put("secrets", &json!({ "kind": "Secret", "apiVersion": "v1", "metadata": metadata, "data": data }));
    }
}

/// The chart makes a key once: with a look into the cluster the one that is there stays.
pub(super) fn secrets_are_kept(tools: &Tools, chart: &Path) -> Result<()> {
    const ON: &[&str] = &["redis.enabled=true"];
    for (name, key) in MADE {
        let held = |objects: &[Value]| secret(find(objects, "Secret", name)?, key);
        let (first, second) = (held(&tools.objects(chart, None, ON)?)?, held(&tools.objects(chart, None, ON)?)?);
        ensure!(first != second, "{name}: without a look into the cluster two are the same: they are not random");
        let kept = find(&tools.objects(chart, None, ON)?, "Secret", name)?["metadata"]["annotations"].clone();
        ensure!(kept["helm.sh/resource-policy"] == "keep", "{name} goes with the release: {kept}");
        let ours = ["redis.enabled=true", "cluster.keySecret.name=ours,redis.passwordSecret.name=ours"];
        let given = tools.objects(chart, None, &ours)?;
        ensure!(find(&given, "Secret", name).is_err(), "{name} is made although one is given");
    }
    let server = ApiServer::start()?;
    for there in [false, true] {
        if there {
            put(&mut server.cluster(), MADE.iter().map(|(name, key)| (*name, std::slice::from_ref(key))));
        }
        let objects = server.objects(tools, chart, ON)?;
        for (name, key) in MADE {
            let made = secret(find(&objects, "Secret", name)?, key)?;
            ensure!((made == b"the key that is there") == there, "{name}, there: {there}");
        }
    }
    Ok(())
}

/// The notes name each Secret that pods would wait for.
pub(super) fn missing_secrets(tools: &Tools, chart: &Path) -> Result<()> {
    // Only `helm install` prints the notes, and asks the cluster about every object; so there are none.
    let directory = tempfile::tempdir()?;
    succeed(Command::new("cp").arg("-r").arg(chart).arg(directory.path()), DEADLINE)?;
    let notes = directory.path().join("eagle");
    for entry in fs::read_dir(notes.join("templates"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            fs::remove_file(path)?;
        }
    }
    let server = ApiServer::start()?;
    for there in [false, true] {
        if there {
            put(&mut server.cluster(), WANTED);
        }
        let mut install = server.helm(tools, &["install", RELEASE, "--dry-run=server", "--set", ASKING]);
        let printed = succeed(install.arg(&notes), DEADLINE)?;
        for (name, key) in WANTED.iter().flat_map(|(name, keys)| keys.iter().map(move |key| (name, key))) {
            let warning = format!("WARNING: there is no Secret {name} with the key {key} in {}", super::NAMESPACE);
            ensure!(printed.contains(&warning) != there, "{name} {key}, there: {there}:\n{printed}");
        }
        ensure!(printed.contains("WARNING") != there, "{printed}");
    }
    Ok(())
}
