//! Where a node without a cluster key may listen: on this machine, unless it is told otherwise.
//!
//! Addresses that the configuration leaves open are those of this machine alone as long as there is nothing that tells
//! members from strangers. An address that somebody has written and that others reach is an error then: the node would
//! not do what was asked for, or let anybody in.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{
    Loaded, Settings,
    read::ConfigError,
    tree::{Node, Value},
};
use crate::cluster::ClusterConfig;

/// What to do about it.
const REMEDY: &str = "set cluster.key_file (eagle cluster-key makes a key)";

/// An address for peers, or for the APIs that nodes use among each other.
type Guarded = [&'static str; 2];

/// All of them.
const GUARDED: [Guarded; 6] = [
    ["tracker", "listen"],
    ["seeder", "listen"],
    ["seeder", "p2p_listen"],
    ["seeder", "data_listen"],
    ["proxy", "p2p_listen"],
    ["proxy", "data_listen"],
];

fn address<'a>(settings: &'a mut Settings, path: &Guarded) -> Option<&'a mut SocketAddr> {
    Some(match path {
        ["tracker", "listen"] => &mut settings.tracker.role.listen,
        ["seeder", "listen"] => &mut settings.seeder.role.listen,
        ["seeder", "p2p_listen"] => &mut settings.seeder.role.p2p_listen,
        ["seeder", "data_listen"] => &mut settings.seeder.role.data_listen,
        ["proxy", "p2p_listen"] => &mut settings.proxy.role.p2p_listen,
        ["proxy", "data_listen"] => &mut settings.proxy.role.data_listen,
        _ => return None,
    })
}

/// Whether others than this machine may connect. Certificates keep strangers away from APIs, and from nothing else.
fn is_protected(cluster: &ClusterConfig, [_, key]: &Guarded) -> bool {
    cluster.has_key() || cluster.insecure || (cluster.has_tls() && *key == "listen")
}

fn is_written(tree: &Node, [section, key]: &Guarded) -> bool {
    tree.get(section).is_some_and(|section| section.get(key).is_some())
}

/// Takes out addresses that are written as null, which is how a file leaves them open.
pub(super) fn leave_open(tree: &mut Node) {
    let Value::Map(sections) = &mut tree.value else { return };
    for (section, node) in sections {
        for [_, key] in GUARDED.iter().filter(|[name, _]| section.name == *name) {
            if matches!(node.get(key).map(|node| &node.value), Some(Value::Null)) {
                node.take(key);
            }
        }
    }
}

/// Keeps to this machine what the configuration leaves open and nothing protects.
pub(super) fn apply(settings: &mut Settings, tree: &Node) {
    let cluster = settings.cluster.clone();
    for path in GUARDED.iter().filter(|path| !is_written(tree, path) && !is_protected(&cluster, path)) {
        if let Some(address) = address(settings, path) {
            address.set_ip(match address.ip() {
                IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
            });
        }
    }
}

impl Loaded {
    /// Addresses of these roles that somebody has written, that others reach, and that nothing protects.
    pub(super) fn exposed(&self, roles: &[&str]) -> Vec<ConfigError> {
        let mut settings = self.settings.clone();
        let mut errors = Vec::new();
        let unprotected = |path: &&Guarded| !is_protected(&self.settings.cluster, path);
        for path in GUARDED.iter().filter(|[role, _]| roles.contains(role)).filter(unprotected) {
            match address(&mut settings, path) {
                Some(address) if !address.ip().to_canonical().is_loopback() => {
                    let problem = format_args!(
                        "{address} is for other machines too, and there is no cluster key to keep strangers out; \
                         {REMEDY}, listen on 127.0.0.1, or allow it with cluster.insecure: true"
                    );
                    errors.push(self.error(path, problem));
                }
                _ => {}
            }
        }
        errors
    }

    /// What an operator should know about who can reach these roles; nothing when there is a key.
    pub(crate) fn exposure_notice(&self, roles: &[&str]) -> Option<String> {
        let cluster = &self.settings.cluster;
        if cluster.has_key() {
            return None;
        }
        if cluster.insecure {
            return Some("cluster.insecure: whoever reaches the ports of this node is taken for a member".to_owned());
        }
        let kept = GUARDED
            .iter()
            .any(|path| roles.contains(&path[0]) && !is_written(&self.written, path) && !is_protected(cluster, path));
        kept.then(|| {
            format!(
                "there is no cluster key, so only nodes on this machine can connect; to let others in, {REMEDY}, the same on every node"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::{
        super::{Flags, Sources, check::check},
        *,
    };
    use crate::cli::RoleArg;

    fn load(variables: &[(&str, &str)]) -> Loaded {
        let environment = variables.iter().map(|(name, value)| (name.into(), value.into())).collect();
        Loaded::from(Sources { file: None, environment, flags: Flags::default() }).unwrap()
    }

    fn addresses(loaded: &mut Loaded) -> Vec<String> {
        GUARDED.iter().map(|path| address(&mut loaded.settings, path).unwrap().to_string()).collect()
    }

    const KEY: (&str, &str) = ("EAGLE_CLUSTER_KEY", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");

    #[test]
    fn without_a_key_only_this_machine_is_listened_to() {
        let mut loaded = load(&[]);
        assert!(addresses(&mut loaded).iter().all(|address| address.starts_with("127.0.0.1:")));
        assert_eq!(addresses(&mut loaded)[0], "127.0.0.1:6969");
        check(&loaded, RoleArg::Standalone).unwrap();
        assert!(loaded.exposure_notice(&["proxy"]).unwrap().contains("eagle cluster-key"));
        for open in [KEY, ("EAGLE_CLUSTER__INSECURE", "true")] {
            let mut loaded = load(&[open]);
            assert!(addresses(&mut loaded).iter().all(|address| address.starts_with("0.0.0.0:")), "{open:?}");
            check(&loaded, RoleArg::Standalone).unwrap();
            assert_eq!(loaded.exposure_notice(&["proxy"]).is_some(), open != KEY);
        }
        // Certificates are for APIs.
        let mut loaded = load(&[("EAGLE_CLUSTER__TLS__CERTIFICATE", "/c")]);
        let everywhere: Vec<bool> =
            addresses(&mut loaded).iter().map(|address| address.starts_with("0.0.0.0:")).collect();
        assert_eq!(everywhere, [true, true, false, false, false, false]);
        assert!(loaded.exposure_notice(&["tracker"]).is_none());
    }

    #[test]
    fn an_address_that_others_reach_needs_a_key() {
        for (role, key, address) in [
            (RoleArg::Tracker, "tracker.listen", "0.0.0.0:6969"),
            (RoleArg::Seeder, "seeder.listen", "10.1.2.3:55008"),
            (RoleArg::Seeder, "seeder.p2p_listen", "[::]:61008"),
            (RoleArg::Seeder, "seeder.data_listen", "0.0.0.0:0"),
            (RoleArg::Proxy, "proxy.p2p_listen", "192.168.0.1:61007"),
            (RoleArg::Proxy, "proxy.data_listen", "[::ffff:10.0.0.1]:61017"),
        ] {
            let name = format!("EAGLE_{}", key.to_uppercase().replace('.', "__"));
            let error = check(&load(&[(&name, address)]), role).unwrap_err().to_string();
            assert!(error.starts_with(&format!("environment variable {name}: {key}: {address} ")), "{error}");
            assert!(error.contains("cluster.key_file") && error.contains("cluster.insecure: true"), "{error}");
            for more in [KEY, ("EAGLE_CLUSTER__INSECURE", "true")] {
                check(&load(&[(&name, address), more]), role).unwrap();
            }
            for local in ["127.0.0.1:1", "127.9.9.9:0", "[::1]:7"] {
                check(&load(&[(&name, local)]), role).unwrap();
            }
        }
        // Runtimes talk to the proxy of their machine, and who else may is another question.
        check(&load(&[("EAGLE_PROXY__LISTEN", "0.0.0.0:43002")]), RoleArg::Proxy).unwrap();
        // What another role would do is no concern of this one.
        check(&load(&[("EAGLE_TRACKER__LISTEN", "0.0.0.0:6969")]), RoleArg::Proxy).unwrap();
    }

    #[test]
    fn keys_that_are_none_are_errors_of_the_configuration() {
        for (variables, said) in [
            (vec![("EAGLE_CLUSTER_KEY", "secret!")], "EAGLE_CLUSTER_KEY: cluster.key: line 1 is no cluster key"),
            (vec![("EAGLE_CLUSTER__KEY_FILE", "/nowhere")], "cluster.key_file: /nowhere: No such file"),
            (vec![("EAGLE_CLUSTER__TLS__CA", "/ca.pem")], "cluster.tls.certificate: is missing"),
            (
                vec![
                    ("EAGLE_CLUSTER__TLS__CERTIFICATE", "/nowhere"),
                    ("EAGLE_CLUSTER__TLS__KEY", "/etc/hostname"),
                    ("EAGLE_CLUSTER__TLS__CA", "/etc/hostname"),
                ],
                "cluster.tls.certificate: /nowhere: No such file",
            ),
            (vec![("EAGLE_CLUSTER__KEY_FILE", "/etc/hostname"), KEY], "cluster.key: is given beside cluster.key_file"),
        ] {
            for role in [RoleArg::Tracker, RoleArg::All] {
                let error = check(&load(&variables), role).unwrap_err().to_string();
                assert!(error.contains(said) && !error.contains("secret!") && !error.contains(KEY.1), "{error}");
            }
        }
        let loaded = load(&[KEY]);
        let shown = format!("{}{loaded:?}", loaded.show(&["cluster"]));
        assert!(shown.contains("***") && !shown.contains(KEY.1), "{shown}");
        assert_eq!(loaded.settings.cluster.key_file, None::<PathBuf>);
    }
}
