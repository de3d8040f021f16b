//! Which hosts the forward proxy reaches, and how.
//!
//! A host is reached when it is a registry of the configuration or a rule names it. That keeps strangers from using
//! the proxy to get anywhere else, and runtimes from getting past a rule.

use std::sync::Arc;

use eagle_registry::{Registries, RegistryName};
use http::uri::Authority;

use crate::rules::{Action, Rules};

/// Port that a URL with `https` means.
pub(super) const HTTPS_PORT: u16 = 443;
/// Hosts that a client of Docker Hub talks to besides the registry: its token service.
const DOCKER_HUB_COMPANIONS: [&str; 1] = ["auth.docker.io"];

/// Where a client wants to get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    /// Host as the client named it, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The same as the name of a registry.
    pub(super) registry: RegistryName,
}

/// What happens to a connection or request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Bytes go to the host and back unseen.
    Tunnel,
    /// Requests are answered here.
    Intercept,
    Refuse,
}

/// Reads HOST:PORT. A registry on `default_port` is named without it.
pub(super) fn target(authority: &Authority, default_port: Option<u16>) -> Result<Target, String> {
    if authority.as_str().contains('@') {
        return Err("credentials have no place in the target".to_owned());
    }
    let host = authority.host();
    let name = match authority.port_u16() {
        Some(port) if Some(port) != default_port => format!("{host}:{port}"),
        _ => host.to_owned(),
    };
    let registry = name.parse().map_err(|_| "the target is not HOST:PORT of a registry".to_owned())?;
    let port = authority.port_u16().or(default_port).unwrap_or(80);
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    Ok(Target { host, port, registry })
}

/// The policy of a proxy.
#[derive(Debug)]
pub(crate) struct Policy {
    rules: Rules,
    /// The one that short names mean.
    default: RegistryName,
    registries: Arc<Registries>,
}

impl Policy {
    /// Reaches these registries and those that the rules name, as they are at the time.
    pub(crate) const fn new(rules: Rules, default: RegistryName, registries: Arc<Registries>) -> Self {
        Self { rules, default, registries }
    }

    /// Whether a registry is one of the configuration.
    fn is_configured(&self, registry: &RegistryName) -> bool {
        *registry == self.default || self.registries.get_configured(registry).is_some()
    }

    /// Docker Hub, where it is one of them.
    fn docker_hub(&self) -> Option<RegistryName> {
        let mut known = self.registries.configured().into_iter().chain([self.default.clone()]);
        known.find(RegistryName::is_docker_hub)
    }

    /// What happens to a connection to `target`, when requests can or cannot be looked at.
    pub(super) fn verdict(&self, target: &Target, can_intercept: bool) -> Verdict {
        if target.port == HTTPS_PORT
            && DOCKER_HUB_COMPANIONS.contains(&target.host.as_str())
            && let Some(hub) = self.docker_hub()
        {
            return match self.of_registry(&hub, HTTPS_PORT) {
                (None, _) => Verdict::Refuse,
                _ => Verdict::Tunnel,
            };
        }
        match self.of_registry(&target.registry, target.port) {
            (None, _) => Verdict::Refuse,
            (Some(Action::Peers), false) if can_intercept => Verdict::Intercept,
            (Some(Action::Origin), false) => Verdict::Tunnel,
            (Some(Action::Peers), false) => Verdict::Tunnel,
            // A tunnel would lead past the rules that refuse some of the repositories.
            (Some(_), true) if can_intercept => Verdict::Intercept,
            (Some(_), true) | (Some(Action::Refuse), _) => Verdict::Refuse,
        }
    }

    /// What rules say about a registry as a whole, `None` for nothing good; and whether some of its repositories are
    /// refused.
    fn of_registry(&self, registry: &RegistryName, port: u16) -> (Option<Action>, bool) {
        let mut refuses_some = false;
        let mut origin = None;
        for rule in self.rules.of_registry(registry) {
            // A pattern such as * is meant for registries, and not for every service of every host.
            let names_port = rule.registry.is_exact() || rule.registry.as_str().contains(':');
            if rule.action != Action::Refuse && !names_port && !matches!(port, 80 | HTTPS_PORT) {
                continue;
            }
            let whole = rule.repository.as_str() == "**";
            match rule.action {
                Action::Peers => return (Some(Action::Peers), refuses_some),
                Action::Origin if whole => return (Some(Action::Origin), refuses_some),
                Action::Origin => origin = Some(Action::Peers),
                Action::Refuse if whole => return (origin, true),
                Action::Refuse => refuses_some = true,
            }
        }
        let known = self.is_configured(registry).then_some(Action::Peers);
        (known.or(origin), refuses_some)
    }
}

#[cfg(test)]
mod tests {
    use eagle_registry::RegistryConfig;

    use super::*;

    fn policy(rules: &str) -> Policy {
        let registries = vec![RegistryConfig::new("mine.example:5000".parse().unwrap())];
        let registries = Arc::new(Registries::new(registries).unwrap());
        Policy::new(Rules::new(serde_json::from_str(rules).unwrap()), "docker.io".parse().unwrap(), registries)
    }

    fn verdict(policy: &Policy, authority: &str, can_intercept: bool) -> Verdict {
        policy.verdict(&target(&authority.parse().unwrap(), Some(HTTPS_PORT)).unwrap(), can_intercept)
    }

    #[test]
    fn only_registries_are_reached() {
        let policy = policy("[]");
        for (authority, intercepted, plain) in [
            ("registry-1.docker.io:443", Verdict::Intercept, Verdict::Tunnel),
            ("auth.docker.io:443", Verdict::Tunnel, Verdict::Tunnel),
            ("mine.example:5000", Verdict::Intercept, Verdict::Tunnel),
            ("mine.example:443", Verdict::Refuse, Verdict::Refuse),
            ("mine.example:22", Verdict::Refuse, Verdict::Refuse),
            ("registry-1.docker.io:22", Verdict::Refuse, Verdict::Refuse),
            ("auth.docker.io:25", Verdict::Refuse, Verdict::Refuse),
            ("evil.example:443", Verdict::Refuse, Verdict::Refuse),
            ("127.0.0.1:22", Verdict::Refuse, Verdict::Refuse),
            ("169.254.169.254:80", Verdict::Refuse, Verdict::Refuse),
            ("[::1]:443", Verdict::Refuse, Verdict::Refuse),
        ] {
            assert_eq!(verdict(&policy, authority, true), intercepted, "{authority}");
            assert_eq!(verdict(&policy, authority, false), plain, "{authority}");
        }
    }

    #[test]
    fn rules_open_and_close() {
        let policy = policy(
            r#"[
                {"registry": "direct.example", "action": "origin"},
                {"registry": "partly.example", "repository": "secret/**", "action": "refuse"},
                {"registry": "partly.example", "action": "peers"},
                {"registry": "straight.example", "repository": "secret/**", "action": "refuse"},
                {"registry": "straight.example", "action": "origin"},
                {"registry": "docker.io", "action": "refuse"},
                {"registry": "*.example", "action": "peers"},
                {"registry": "*.example:8443", "action": "peers"}
            ]"#,
        );
        for (authority, intercepted, plain) in [
            ("direct.example:443", Verdict::Tunnel, Verdict::Tunnel),
            ("partly.example:443", Verdict::Intercept, Verdict::Refuse),
            ("straight.example:443", Verdict::Intercept, Verdict::Refuse),
            ("registry-1.docker.io:443", Verdict::Refuse, Verdict::Refuse),
            ("auth.docker.io:443", Verdict::Refuse, Verdict::Refuse),
            ("any.example:443", Verdict::Intercept, Verdict::Tunnel),
            ("any.example:25", Verdict::Refuse, Verdict::Refuse),
            ("any.example:8443", Verdict::Intercept, Verdict::Tunnel),
            ("other.invalid:443", Verdict::Refuse, Verdict::Refuse),
        ] {
            assert_eq!(verdict(&policy, authority, true), intercepted, "{authority}");
            assert_eq!(verdict(&policy, authority, false), plain, "{authority}");
        }
    }

    #[test]
    fn a_star_is_for_registries_on_their_ports() {
        let policy = policy(r#"[{"registry": "*", "action": "peers"}]"#);
        assert_eq!(verdict(&policy, "anything.example:443", true), Verdict::Intercept);
        for odd in ["anything.example:22", "anything.example:25", "127.0.0.1:6379"] {
            assert_eq!(verdict(&policy, odd, true), Verdict::Refuse, "{odd}");
        }
    }

    #[test]
    fn targets_are_read_strictly() {
        for bad in ["user:pw@mine.example:5000", "a..b:443", "0x7f.1:443", "256.1.1.1:443"] {
            assert!(target(&bad.parse().unwrap(), None).is_err(), "{bad}");
        }
        let v6 = target(&"[::1]:5000".parse().unwrap(), Some(HTTPS_PORT)).unwrap();
        assert_eq!((v6.host.as_str(), v6.port, v6.registry.as_str()), ("::1", 5000, "[::1]:5000"));
        let plain = target(&"Mine.Example".parse().unwrap(), None).unwrap();
        assert_eq!((plain.host.as_str(), plain.port, plain.registry.as_str()), ("mine.example", 80, "mine.example"));
    }
}
