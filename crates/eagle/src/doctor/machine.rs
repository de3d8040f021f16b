//! What this machine has: ports and disk.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use eagle_core::units::FreeSpace;
use http::Method;
use serde_json::Value;

use super::Finding;
use crate::{api_client::ApiClient, config::Loaded};

/// How long a role on this machine may take to say that it is there.
const DEADLINE: Duration = Duration::from_secs(3);
/// Kinds of file systems that blobs do not belong on, by the numbers of statfs(2), and why.
const UNFIT: [(i128, &str, &str); 4] = [
    (0x0102_1994, "tmpfs", "it is gone with the next boot and takes memory"),
    (0x6969, "NFS", "pieces are written and locked as on a local disk; a server that is away stops every pull"),
    (0x794c_7630, "overlayfs", "it is a container's own layer, gone with the container; mount a volume"),
    (0xff53_4d42, "CIFS", "pieces are written and locked as on a local disk; a server that is away stops every pull"),
];

/// Keys and addresses of what a role listens on.
fn listeners(loaded: &Loaded, role: &str) -> Vec<(&'static str, SocketAddr)> {
    let settings = &loaded.settings;
    match role {
        "tracker" => vec![("listen", settings.tracker.role.listen), ("admin", settings.tracker.admin)],
        "seeder" => {
            let (role, admin) = (&settings.seeder.role, settings.seeder.admin);
            vec![
                ("listen", role.listen),
                ("admin", admin),
                ("p2p_listen", role.p2p_listen),
                ("data_listen", role.data_listen),
            ]
        }
        _ => {
            let (role, admin) = (&settings.proxy.role, settings.proxy.admin);
            vec![
                ("listen", role.listen),
                ("admin", admin),
                ("p2p_listen", role.p2p_listen),
                ("data_listen", role.data_listen),
            ]
        }
    }
}

/// Whether the addresses can be listened on, or are by the role itself; and which roles run.
pub(super) async fn ports(loaded: &Loaded, roles: &[&'static str]) -> (Vec<Finding>, Vec<&'static str>) {
    let (mut findings, mut running) = (Vec::new(), Vec::new());
    for role in roles {
        let listeners = listeners(loaded, role);
        let admin = listeners.iter().find(|(key, _)| *key == "admin").map(|(_, address)| *address);
        let runs = match admin {
            Some(admin) => who_answers(admin).await.is_some_and(|name| name == *role),
            None => false,
        };
        if runs {
            running.push(*role);
            findings.push(Finding::fine("ports", format!("the {role} runs")));
            continue;
        }
        for (key, address) in listeners {
            findings.extend(port(role, key, address));
        }
        if !findings.iter().any(|finding| finding.message.starts_with(role)) {
            findings.push(Finding::fine("ports", format!("the {role} does not run, and its ports are free")));
        }
    }
    (findings, running)
}

fn port(role: &str, key: &str, address: SocketAddr) -> Option<Finding> {
    let error = TcpListener::bind(address).err()?;
    let what = format!("{role}.{key} {address}: {error}");
    let advice = match error.kind() {
        ErrorKind::AddrInUse => {
            format!(
                "`ss -ltnp 'sport = :{}'` says which program has it; end that, or take another port",
                address.port()
            )
        }
        ErrorKind::AddrNotAvailable => "the machine has no such address; `ip address` lists those it has".to_owned(),
        ErrorKind::PermissionDenied => {
            "ports below 1024 need the capability CAP_NET_BIND_SERVICE; take a higher one".to_owned()
        }
        _ => format!("take another address for {role}.{key}"),
    };
    Some(Finding::problem("ports", what, advice))
}

/// The role whose admin address this is; `None` when nobody answers, or something else does.
async fn who_answers(mut admin: SocketAddr) -> Option<String> {
    if admin.port() == 0 {
        return None;
    }
    if admin.ip().is_unspecified() {
        admin.set_ip(if admin.is_ipv4() {
            IpAddr::from([127, 0, 0, 1])
        } else {
            IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1])
        });
    }
    let client = ApiClient::new("admin", &admin.to_string(), None, DEADLINE).ok()?;
    let version: Value = client.send(Method::GET, "/version", None::<&()>).await.ok()?;
    (version["name"] == "eagle").then(|| version["role"].as_str().unwrap_or_default().to_owned())
}

/// Whether the roles' directories can take what they should. One that runs has its directory for itself.
pub(super) fn disk(loaded: &Loaded, roles: &[&'static str], running: &[&'static str]) -> Vec<Finding> {
    let (seeder, proxy) = (&loaded.settings.seeder.role, &loaded.settings.proxy.role);
    let mut findings = Vec::new();
    for role in roles {
        let (directory, limit, min_free) = match *role {
            "seeder" => (&seeder.data_dir, seeder.cache_limit.0, seeder.min_free),
            "proxy" => (&proxy.data_dir, proxy.cache_limit.0, proxy.min_free),
            _ => continue,
        };
        findings.push(directory_of(role, directory, limit, min_free, running.contains(role)));
    }
    findings
}

fn directory_of(role: &str, directory: &Path, limit: u64, min_free: FreeSpace, runs: bool) -> Finding {
    let shown = directory.display();
    let there = nearest(directory);
    let writable = match directory.exists() {
        true if !directory.is_dir() => {
            let advice = format!("take another {role}.data_dir, or move the file away");
            return Finding::problem("disk", format!("{shown} is no directory"), advice);
        }
        // Made in the directory and gone at once: it has no name.
        true => tempfile::tempfile_in(directory).map(drop),
        false => tempfile::tempfile_in(&there).map(drop),
    };
    if let Err(error) = writable {
        let user = rustix::process::geteuid().as_raw();
        let message = format!("{shown}: user {user} cannot write there: {error}");
        return match error.kind() {
            ErrorKind::StorageFull => Finding::problem("disk", message, "the file system is full: make room on it"),
            ErrorKind::ReadOnlyFilesystem => {
                Finding::problem("disk", message, "the file system is mounted read-only; the kernel's log says why")
            }
            // As somebody else than the role, which is no fault of the machine.
            _ if runs => {
                Finding::note("disk", message, format!("the {role} runs as another user; run this as that user"))
            }
            _ => {
                let advice = format!(
                    "as root: eagle prepare-data --user UID --group GID {shown}, with the numbers of the user that the {role} runs as"
                );
                Finding::problem("disk", message, advice)
            }
        };
    }
    let (space, kind) = match (rustix::fs::statvfs(&there), rustix::fs::statfs(&there)) {
        (Ok(space), Ok(kind)) => (space, kind),
        (Err(error), _) | (_, Err(error)) => {
            let message = format!("{shown}: cannot look at its file system: {error}");
            return Finding::problem("disk", message, "look at the kernel's log");
        }
    };
    // 32 bits of a number that is signed on some machines.
    let number = i128::from(kind.f_type) & 0xffff_ffff;
    if let Some((_, name, why)) = UNFIT.iter().find(|(unfit, ..)| *unfit == number) {
        let advice = format!("put {role}.data_dir on a local file system such as ext4 or xfs");
        return Finding::note("disk", format!("{shown} is on {name}: {why}"), advice);
    }
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    let (total, available) = (bytes(space.f_blocks), bytes(space.f_bavail));
    let kept_free = match min_free {
        FreeSpace::Bytes(bytes) => bytes,
        FreeSpace::Part(part) => part.of(total),
    };
    let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
    if available <= kept_free {
        let message = format!(
            "{shown}: {} are free, and {role}.min_free keeps {} free: nothing more can be cached",
            gigabytes(available),
            gigabytes(kept_free)
        );
        return Finding::problem("disk", message, format!("make room on the file system, or lower {role}.min_free"));
    }
    let message = format!("{shown}: {} of {} are free", gigabytes(available), gigabytes(total));
    if !runs && limit > total {
        let advice = format!(
            "{role}.cache_limit of {} is more than the whole file system; min_free bounds the cache instead",
            gigabytes(limit)
        );
        return Finding::note("disk", message, advice);
    }
    Finding::fine("disk", message)
}

/// The directory, or the nearest above it that is there.
fn nearest(directory: &Path) -> PathBuf {
    let ancestors = directory.ancestors();
    let mut there = ancestors.filter(|ancestor| fs::metadata(ancestor).is_ok_and(|metadata| metadata.is_dir()));
    there.next().map_or_else(|| PathBuf::from("."), Path::to_owned)
}
