//! The text of a unit (systemd.unit(5), systemd.service(5), systemd.exec(5)).

use std::{fmt::Write as _, path::Path};

use anyhow::Result;

use crate::{cli::ServiceRole, exit::Exit, shutdown::DRAIN};

/// Longer than a role takes to drain, seconds.
const STOP_MARGIN: u64 = 5;

/// What a unit is made of.
#[derive(Debug)]
pub(super) struct Unit<'a> {
    pub(super) role: ServiceRole,
    pub(super) program: &'a Path,
    pub(super) config: &'a Path,
    pub(super) user: &'a str,
}

/// What the service may not do. It reads its configuration, writes to its state directory and talks over IP; everything
/// else is closed. netlink is how it notices that an address of the machine has changed.
const HARDENING: &str = "\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProcSubset=pid
PrivateDevices=yes
PrivateTmp=yes
PrivateUsers=yes
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged @resources
SystemCallErrorNumber=EPERM
UMask=0077
";

/// Has the memory of a tracker in large pages, with one arena, since glibc asks for none in the others (glibc manual, "Memory Allocation
/// Tunables"). Millions of entries that are looked up in any order fit the processor's table of large pages, not that of small ones: an announce
/// takes a quarter less time (`docs/benchmarks.md`). A tracker announces little enough for the threads to share the arena.
const TRACKER_MEMORY: &str = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1";

impl Unit<'_> {
    pub(super) fn text(&self) -> Result<String> {
        let role = self.role.name();
        let program = quoted("--program", self.program)?;
        let config = quoted("--config", self.config)?;
        let user = self.user;
        let plain = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
        if user.is_empty() || !user.chars().all(plain) {
            return Err(Exit::usage(format!("--user {user:?} is not the name of a user")).into());
        }
        let mut text = format!(
            "# Written by `eagle install-service`.\n\
             [Unit]\n\
             Description=Eagle {role}: peer-to-peer distribution of container images\n\
             Documentation=https://github.com/duyanghao/eagle\n\
             Wants=network-online.target\n\
             After=network-online.target\n"
        );
        if matches!(self.role, ServiceRole::Proxy | ServiceRole::Standalone) {
            // Runtimes that start first do without it, so this only saves them that.
            text.push_str("Before=docker.service containerd.service crio.service\n");
        }
        let stop = DRAIN.as_secs() + STOP_MARGIN;
        let _ = write!(
            text,
            "\n[Service]\n\
             Type=exec\n\
             ExecStart={program} {role} --config {config}\n\
             ExecReload=kill -HUP $MAINPID\n\
             User={user}\n\
             Group={user}\n\
             Restart=always\n\
             RestartSec=2\n\
             # Bad usage and a bad configuration: another start would end the same way.\n\
             RestartPreventExitStatus=64 78\n\
             TimeoutStopSec={stop}\n\
             LimitNOFILE=1048576\n"
        );
        if self.role == ServiceRole::Tracker {
            let _ = writeln!(text, "Environment={TRACKER_MEMORY}");
        }
        if !self.role.state().is_empty() {
            let _ = write!(text, "StateDirectory={}\nStateDirectoryMode=0700\n", self.role.state().join(" "));
        }
        text.push('\n');
        text.push_str(HARDENING);
        text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        Ok(text)
    }
}

/// A path as one word of `ExecStart`.
fn quoted(flag: &str, path: &Path) -> Result<String> {
    let usable = path.to_str().filter(|text| path.is_absolute() && !text.contains(['"', '\\', '\n']));
    let Some(text) = usable else {
        let shown = path.display();
        return Err(Exit::usage(format!("{flag} {shown}: a unit needs an absolute path without quotes")).into());
    };
    // systemd puts variables and its own names in place of $ and %.
    let text = text.replace('%', "%%").replace('$', "$$");
    Ok(if text.contains(char::is_whitespace) { format!("\"{text}\"") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(role: ServiceRole, program: &str, user: &str) -> Result<String> {
        Unit { role, program: Path::new(program), config: Path::new("/etc/eagle/eagle.yaml"), user }.text()
    }

    #[test]
    fn roles_write_to_their_own_directories_only() {
        let proxy = unit(ServiceRole::Proxy, "/usr/local/bin/eagle", "eagle").unwrap();
        assert!(proxy.contains("\nExecStart=/usr/local/bin/eagle proxy --config /etc/eagle/eagle.yaml\n"), "{proxy}");
        assert!(proxy.contains("\nStateDirectory=eagle/proxy\n"), "{proxy}");
        let standalone = unit(ServiceRole::Standalone, "/usr/local/bin/eagle", "eagle").unwrap();
        assert!(standalone.contains("\nStateDirectory=eagle/seeder eagle/proxy\n"), "{standalone}");
        let tracker = unit(ServiceRole::Tracker, "/usr/local/bin/eagle", "eagle").unwrap();
        assert!(!tracker.contains("StateDirectory") && !tracker.contains("Before="), "{tracker}");
    }

    #[test]
    fn a_tracker_has_its_memory_as_in_the_chart() {
        let chart = include_str!("../../../../charts/eagle/templates/tracker.yaml");
        let (name, value) = TRACKER_MEMORY.split_once('=').unwrap();
        assert!(chart.contains(&format!("- name: {name}\n              value: {value}\n")));
        let has_it =
            |role| unit(role, "/eagle", "eagle").unwrap().contains(&format!("\nEnvironment={TRACKER_MEMORY}\n"));
        assert!(has_it(ServiceRole::Tracker) && !has_it(ServiceRole::Proxy) && !has_it(ServiceRole::Seeder));
    }

    #[test]
    fn names_cannot_break_out_of_their_line() {
        let odd = unit(ServiceRole::Proxy, "/opt/my $tools/100%/eagle", "eagle").unwrap();
        assert!(odd.contains("\nExecStart=\"/opt/my $$tools/100%%/eagle\" proxy "), "{odd}");
        for program in ["eagle", "/a\nUser=root", "/a\"b"] {
            assert!(unit(ServiceRole::Proxy, program, "eagle").is_err(), "{program}");
        }
        for user in ["", "eagle\nUser=root", "a b"] {
            assert!(unit(ServiceRole::Proxy, "/eagle", user).is_err(), "{user}");
        }
    }
}
