//! What the types cannot see: addresses that collide, URLs that are none of a role, files that cannot be read.

use std::{fs::File, net::SocketAddr, path::Path};

use eagle_proxy::forward::authority::Certificates;

use super::{ConfigErrors, Loaded, read::ConfigError};
use crate::cli::RoleArg;

/// Names of the roles that a configuration is read for.
pub(crate) const fn roles(role: RoleArg) -> &'static [&'static str] {
    match role {
        RoleArg::Tracker => &["tracker"],
        RoleArg::Seeder => &["seeder"],
        RoleArg::Proxy => &["proxy"],
        RoleArg::Standalone | RoleArg::All => &["tracker", "seeder", "proxy"],
    }
}

type Listener = ([&'static str; 2], SocketAddr);

/// Checks what this role would use. `All` checks every role as if it ran alone, `Standalone` all in one process.
///
/// # Errors
/// Every problem that was found.
pub(crate) fn check(loaded: &Loaded, role: RoleArg) -> Result<(), ConfigErrors> {
    let mut errors = Vec::new();
    let settings = &loaded.settings;
    let tracker = matches!(role, RoleArg::Tracker | RoleArg::Standalone | RoleArg::All);
    let seeder = matches!(role, RoleArg::Seeder | RoleArg::Standalone | RoleArg::All);
    let proxy = matches!(role, RoleArg::Proxy | RoleArg::Standalone | RoleArg::All);

    let roles = roles(role);
    cluster(loaded, &mut errors);
    errors.extend(loaded.exposed(roles));
    let listeners = listeners(loaded);
    if role == RoleArg::Standalone {
        collisions(loaded, &listeners, &mut errors);
    } else {
        for role in roles {
            let own: Vec<Listener> = listeners.iter().filter(|(path, _)| path[0] == *role).copied().collect();
            collisions(loaded, &own, &mut errors);
        }
    }
    if role == RoleArg::Standalone && settings.seeder.role.data_dir == settings.proxy.role.data_dir {
        errors.push(loaded.error(&["proxy", "data_dir"], "is the seeder's directory too; each needs its own"));
    }
    if tracker && let Err(error) = settings.tracker.role.validate() {
        errors.push(loaded.error(&["tracker", error.key], error.problem));
    }
    if seeder && let Err(error) = settings.seeder.role.validate() {
        errors.push(loaded.error(&["seeder", error.key], error.problem));
    }
    if seeder && let Err(error) = settings.preheat.validate() {
        let path: Vec<&str> = std::iter::once("preheat").chain(error.path.iter().map(String::as_str)).collect();
        errors.push(loaded.error(&path, error.problem));
    }
    if proxy && let Err(error) = settings.proxy.role.validate() {
        errors.push(loaded.error(&["proxy", error.key], error.problem));
    } else if proxy
        && let Some(directory) = &settings.proxy.role.forward.ca_dir
        && let Err(problem) = Certificates::load(directory)
    {
        errors.push(loaded.error(&["proxy", "forward", "ca_dir"], problem));
    }
    registries(loaded, &mut errors);
    if errors.is_empty() { Ok(()) } else { Err(ConfigErrors(errors)) }
}

fn cluster(loaded: &Loaded, errors: &mut Vec<ConfigError>) {
    let cluster = &loaded.settings.cluster;
    if cluster.key_file.is_some() && cluster.key.is_some() {
        errors.push(loaded.error(&["cluster", "key"], "is given beside cluster.key_file; give one of them"));
    } else if let Err(error) = cluster.keys() {
        errors.push(loaded.error(&["cluster", error.key()], &error));
    }
    match cluster.tls.files() {
        Err(missing) => {
            let problem = "is missing; certificate, key and ca are given together";
            errors.push(loaded.error(&["cluster", "tls", missing], problem));
        }
        Ok(None) => {}
        Ok(Some(files)) => {
            for (key, file) in [("certificate", &files.certificate), ("key", &files.key), ("ca", &files.ca)] {
                if let Err(problem) = readable(file) {
                    let problem = format_args!("{}: {problem}", file.display());
                    errors.push(loaded.error(&["cluster", "tls", key], problem));
                }
            }
        }
    }
}

fn listeners(loaded: &Loaded) -> Vec<Listener> {
    let settings = &loaded.settings;
    let (tracker, seeder, proxy) = (&settings.tracker, &settings.seeder, &settings.proxy);
    vec![
        (["tracker", "listen"], tracker.role.listen),
        (["tracker", "admin"], tracker.admin),
        (["seeder", "listen"], seeder.role.listen),
        (["seeder", "admin"], seeder.admin),
        (["seeder", "p2p_listen"], seeder.role.p2p_listen),
        (["seeder", "data_listen"], seeder.role.data_listen),
        (["proxy", "listen"], proxy.role.listen),
        (["proxy", "admin"], proxy.admin),
        (["proxy", "p2p_listen"], proxy.role.p2p_listen),
        (["proxy", "data_listen"], proxy.role.data_listen),
    ]
}

fn collisions(loaded: &Loaded, listeners: &[Listener], errors: &mut Vec<ConfigError>) {
    for (index, (path, address)) in listeners.iter().enumerate() {
        let earlier = listeners[..index].iter().find(|(_, other)| {
            let same_host = other.ip() == address.ip() || other.ip().is_unspecified() || address.ip().is_unspecified();
            address.port() != 0 && other.port() == address.port() && same_host
        });
        if let Some((other, _)) = earlier {
            errors.push(loaded.error(path, format_args!("{address} is the address of {} too", other.join("."))));
        }
    }
}

fn registries(loaded: &Loaded, errors: &mut Vec<ConfigError>) {
    let registries = &loaded.settings.registries;
    for (index, registry) in registries.iter().enumerate() {
        let index = index.to_string();
        if let Err(problem) = registry.check() {
            errors.push(loaded.error(&["registries", &index], problem));
        }
        let files = [
            ("ca_file", &registry.ca_file),
            ("client_cert_file", &registry.client_cert_file),
            ("client_key_file", &registry.client_key_file),
        ];
        for (key, file) in files {
            if let Some(file) = file
                && let Err(problem) = readable(file)
            {
                let problem = format_args!("{}: {problem}", file.display());
                errors.push(loaded.error(&["registries", &index, key], problem));
            }
        }
    }
    let credentials = &loaded.settings.credentials;
    for (index, file) in credentials.docker_configs.iter().enumerate() {
        if let Err(problem) = readable(file) {
            let problem = format_args!("{}: {problem}", file.display());
            errors.push(loaded.error(&["credentials", "docker_configs", &index.to_string()], problem));
        }
    }
    if errors.is_empty()
        && let Err(problem) = eagle_registry::Registries::with_credentials(registries.clone(), credentials)
    {
        errors.push(loaded.error(&["registries"], problem));
    }
}

fn readable(file: &Path) -> std::io::Result<()> {
    let metadata = File::open(file)?.metadata()?;
    if metadata.is_file() { Ok(()) } else { Err(std::io::Error::other("is not a file")) }
}
