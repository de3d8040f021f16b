//! One broken example for each check.

use std::{ffi::OsString, net::TcpListener, path::Path};

use eagle_registry::{
    EmbeddedRegistry,
    embedded::{Access, EmbeddedConfig, GeneratedImage, User},
};

use super::*;
use crate::{
    cli::RoleArg,
    config::{Flags, Sources},
};

/// A proxy on any ports in this directory, with more settings as environment variables have them.
fn proxy(directory: &Path, more: &[(&str, String)]) -> Loaded {
    let data = directory.join("data").display().to_string();
    let any = || "127.0.0.1:0".to_owned();
    let mut environment = vec![
        ("EAGLE_PROXY__LISTEN", any()),
        ("EAGLE_PROXY__ADMIN", any()),
        ("EAGLE_PROXY__P2P_LISTEN", any()),
        ("EAGLE_PROXY__DATA_LISTEN", any()),
        ("EAGLE_PROXY__DATA_DIR", data),
        ("EAGLE_PROXY__MIN_FREE", "1".to_owned()),
        // Nothing of these tests leaves the machine, and nobody listens there.
        ("EAGLE_PROXY__DEFAULT_REGISTRY", "127.0.0.1:1".to_owned()),
    ];
    environment.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
    environment.extend(more.iter().cloned());
    let environment = environment.into_iter().map(|(name, value)| (OsString::from(name), value.into())).collect();
    load_from(Sources { file: None, environment, flags: Flags::default() }, RoleArg::Proxy).unwrap()
}

async fn findings(loaded: &Loaded, root: &Path) -> Vec<Finding> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    look(loaded, &["proxy"], root).await
}

/// The finding of a check that has this text.
fn of<'a>(findings: &'a [Finding], check: &str, text: &str) -> &'a Finding {
    let found = findings.iter().find(|finding| finding.check == check && finding.message.contains(text));
    found.unwrap_or_else(|| panic!("no finding of {check} with {text:?}: {findings:#?}"))
}

#[tokio::test]
async fn ports_and_disk_and_who_cannot_be_reached() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let in_use = other.local_addr().unwrap().to_string();
    std::fs::write(directory.path().join("file"), "x").unwrap();
    let loaded = proxy(
        directory.path(),
        &[
            ("EAGLE_PROXY__LISTEN", in_use.clone()),
            // An address for documentation, RFC 5737.
            ("EAGLE_PROXY__ADMIN", "192.0.2.1:43003".to_owned()),
            ("EAGLE_PROXY__DATA_DIR", directory.path().join("file").display().to_string()),
            // Free again since the listener is gone.
            ("EAGLE_PROXY__TRACKERS", format!("http://{taken}")),
            ("EAGLE_PROXY__SEEDERS", format!("http://{taken}")),
        ],
    );
    let findings = findings(&loaded, directory.path()).await;
    let ports = of(&findings, "ports", &in_use);
    assert!(ports.level == Level::Problem && ports.advice.as_ref().unwrap().contains("ss -ltnp"), "{ports:?}");
    assert!(of(&findings, "ports", "192.0.2.1").advice.as_ref().unwrap().contains("ip address"));
    assert_eq!(of(&findings, "disk", "is no directory").level, Level::Problem);
    for check in ["tracker", "seeder"] {
        let finding = of(&findings, check, "cannot be reached");
        assert!(
            finding.level == Level::Problem && finding.advice.as_ref().unwrap().contains("firewall"),
            "{finding:?}"
        );
    }
    assert_eq!(of(&findings, "registry", "127.0.0.1:1").level, Level::Problem);
    assert_eq!(of(&findings, "runtime", "no runtime").level, Level::Note);
    assert!(page(&findings).contains("PROBLEM") && page(&findings).ends_with(" problems.\n"), "{}", page(&findings));
}

#[tokio::test]
async fn a_disk_that_is_full_for_eagle() {
    let directory = tempfile::tempdir().unwrap();
    let loaded = proxy(directory.path(), &[("EAGLE_PROXY__MIN_FREE", (1_u64 << 62).to_string())]);
    let finding = &machine::disk(&loaded, &["proxy"], &[])[0];
    let advice = finding.advice.as_deref().unwrap_or_default();
    assert!(finding.level == Level::Problem && advice.contains("lower proxy.min_free"), "{finding:?}");
}

fn origin(access: Access) -> EmbeddedConfig {
    let image = GeneratedImage {
        repository: "demo/app".parse().unwrap(),
        tag: "v1".parse().unwrap(),
        layers: vec![1],
        seed: 1,
        config_size: 0,
    };
    EmbeddedConfig { access, ..EmbeddedConfig::new(([127, 0, 0, 1], 0).into(), vec![image]) }
}

#[tokio::test]
async fn registries_and_their_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let open = EmbeddedRegistry::start(origin(Access::Open)).await.unwrap();
    let closed = EmbeddedRegistry::start(origin(Access::Basic(vec![User::new("ann", "right")]))).await.unwrap();
    let file = directory.path().join("eagle.yaml");
    let load = |password: &str| {
        let login = match password {
            "" => String::new(),
            password => format!(", username: ann, password: {password}"),
        };
        let text = format!(
            "registries:\n- {{name: \"{0}\", url: \"http://{0}\"}}\n- {{name: \"{1}\", url: \"http://{1}\"{login}}}\n",
            open.local_addr(),
            closed.local_addr()
        );
        std::fs::write(&file, text).unwrap();
        let sources = Sources { file: Some(file.clone()), ..Sources::default() };
        load_from(sources, RoleArg::Proxy).unwrap()
    };
    let level = async |password: &str, text: &str| {
        let loaded = load(password);
        let cluster = Cluster::start(&loaded.settings.cluster).await.unwrap();
        let findings = network::look(&loaded, &cluster, &["proxy"]).await;
        assert_eq!(of(&findings, "registry", &open.local_addr().to_string()).level, Level::Fine);
        let finding = of(&findings, "registry", &closed.local_addr().to_string()).clone();
        assert!(finding.message.contains(text) && !finding.message.contains("wrong-password"), "{finding:?}");
        finding.level
    };
    assert_eq!(level("right", "takes the credentials").await, Level::Fine);
    assert_eq!(level("wrong-password", "refuses the credentials").await, Level::Problem);
    assert_eq!(level("", "wants credentials").await, Level::Note);
}

#[tokio::test]
async fn what_runtimes_read() {
    use clap::Parser as _;

    let root = tempfile::tempdir().unwrap();
    let configure = |arguments: &[&str]| {
        let root = root.path().display().to_string();
        let words = [&["eagle", "configure", "docker", "--root", &root], arguments].concat();
        let cli = crate::cli::Cli::try_parse_from(words).unwrap();
        let crate::cli::Command::Configure(args) = cli.command else { panic!("another command") };
        crate::configure::run(&args).unwrap();
    };
    configure(&["--address", "127.0.0.1:43002"]);
    let listen = |address: &str| proxy(root.path(), &[("EAGLE_PROXY__LISTEN", address.to_owned())]);
    let runtimes = |address: &str| runtimes::look(&listen(address), root.path());
    assert!(runtimes("127.0.0.1:43002").iter().any(|finding| finding.message.contains("as Eagle wrote it")));
    assert_eq!(of(&runtimes("127.0.0.1:5000"), "runtime", "does not name the proxy").level, Level::Problem);
    let file = root.path().join("etc/docker/daemon.json");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replace('{', "{ ")).unwrap();
    assert_eq!(of(&runtimes("127.0.0.1:43002"), "runtime", "somebody has changed").level, Level::Note);
    std::fs::remove_file(&file).unwrap();
    let gone = of(&runtimes("127.0.0.1:43002"), "runtime", "is gone").clone();
    assert_eq!((gone.level, gone.advice.as_deref()), (Level::Problem, Some("eagle configure docker")));
}
