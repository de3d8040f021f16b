//! The store that trackers share: the chart's own Redis, or the administrator's.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    Tools, defaults,
    manifest::{containers, find, kind, list, named, pod, role_config, strings},
    tools::DEADLINE,
};
use crate::process::wait_until;

/// For the answer of a Redis on this machine.
const ANSWER: Duration = Duration::from_secs(10);
/// Of every character that a password may have to be quoted for.
const PASSWORD: &str = r#"pass"word\' $(id)"#;

pub(super) fn check(tools: &Tools, chart: &Path) -> Result<()> {
    let (_, tracker) = defaults(tools, chart, &[], ("StatefulSet", "tracker"))?;
    ensure!(named(list(&pod(&tracker)["volumes"]), "redis").is_none(), "a password without a store");

    let (objects, tracker) =
        defaults(tools, chart, &["redis.enabled=true,networkPolicy.enabled=true"], ("StatefulSet", "tracker"))?;
    let section = section(&objects)?;
    ensure!(section["store"] == "redis://release-eagle-redis.images.svc:6379", "{section}");
    ensure!(section["store_password_file"] == "/etc/eagle-redis/password", "{section}");
    let redis = find(&objects, "Deployment", "release-eagle-redis")?;
    for (pod, name) in [(pod(&tracker), "redis"), (pod(redis), "password")] {
        let volume = named(list(&pod["volumes"]), name).context("no volume")?;
        ensure!(volume["secret"]["secretName"] == "release-eagle-redis", "{volume}");
    }
    let policy = find(&objects, "NetworkPolicy", "release-eagle-redis")?;
    let from = &policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"];
    ensure!(from["app.kubernetes.io/component"] == "tracker", "others than trackers reach it: {policy}");
    runs(&containers(redis)[0])?;

    let set =
        ["redis.url=rediss://eagle@redis.example:6380/1,redis.passwordSecret.name=login,redis.passwordSecret.key=word"];
    let (objects, tracker) = defaults(tools, chart, &set, ("StatefulSet", "tracker"))?;
    let theirs = self::section(&objects)?;
    ensure!(theirs["store"] == "rediss://eagle@redis.example:6380/1", "{theirs}");
    ensure!(theirs["store_password_file"] == "/etc/eagle-redis/word", "{theirs}");
    let volume = named(list(&pod(&tracker)["volumes"]), "redis").context("no volume")?;
    ensure!(volume["secret"]["secretName"] == "login", "{volume}");
    ensure!(!objects.iter().any(|object| kind(object) == "Deployment"), "a Redis beside the one that is given");
    let (objects, _) = defaults(tools, chart, &["redis.url=redis://redis.example"], ("StatefulSet", "tracker"))?;
    let open = self::section(&objects)?;
    ensure!(open["store_password_file"].is_null(), "{open}");
    Ok(())
}

/// The tracker's section of its configuration.
fn section(objects: &[Value]) -> Result<Value> {
    let config: Value = serde_saphyr::from_str(&role_config(objects, "tracker")?)?;
    Ok(config["tracker"].clone())
}

/// The command of the container starts a Redis that wants the password, shows it to nobody, and ends when it is asked to.
fn runs(container: &Value) -> Result<()> {
    let directory = tempfile::tempdir()?;
    fs::write(directory.path().join("password"), PASSWORD)?;
    let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
    let words = strings(&container["command"]);
    ensure!(words == ["sh", "-c"], "{words:?}");
    let script = strings(&container["args"])[0]
        .replace("/etc/eagle-redis", &directory.path().display().to_string())
        .replace("--port 6379", &format!("--port {port}"));
    let mut redis = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let result = asks_for_password(port, redis.id());
    let asked = Command::new("kill").arg(redis.id().to_string()).status();
    let ended = redis.wait()?;
    result?;
    ensure!(asked?.success() && ended.success(), "redis ended with {ended}");
    Ok(())
}

fn asks_for_password(port: u16, id: u32) -> Result<()> {
    let ask = |request: &str| -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(ANSWER))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = [0; 256];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
    };
    wait_until("redis to answer", DEADLINE, || Ok(ask("PING\r\n").ok().map(drop)))?;
    ensure!(ask("PING\r\n")?.starts_with("-NOAUTH"), "it asks for no password");
    // A command as an array of strings (RESP2), in which nothing has to be quoted.
    let login = format!("*2\r\n$4\r\nAUTH\r\n${}\r\n{PASSWORD}\r\n", PASSWORD.len());
    let answer = ask(&login)?;
    ensure!(answer.starts_with("+OK"), "the password is not taken: {answer}");
    let arguments = fs::read(format!("/proc/{id}/cmdline"))?;
    ensure!(!String::from_utf8_lossy(&arguments).contains("word"), "the password is among the arguments");
    Ok(())
}
