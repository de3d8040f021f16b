//! Whether the container runtimes of this machine still have what `eagle configure` wrote for them.

use std::path::Path;

use super::Finding;
use crate::{
    config::Loaded,
    configure::{self, WrittenState},
};

pub(super) fn look(loaded: &Loaded, root: &Path) -> Vec<Finding> {
    let listen = loaded.settings.proxy.role.listen;
    let (files, pending) = match configure::written(root, &listen.to_string()) {
        Ok(found) => found,
        Err(error) => {
            let advice = "run this as root, who may read the record below /var/lib/eagle/configure";
            return vec![Finding::note("runtime", format!("{error:#}"), advice)];
        }
    };
    if files.is_empty() && pending.is_empty() {
        let advice = "if one should pull through Eagle: eagle configure containerd (or docker, podman, crio)";
        return vec![Finding::note(
            "runtime",
            "no runtime of this machine was configured by `eagle configure`",
            advice,
        )];
    }
    let mut findings: Vec<Finding> = files
        .iter()
        .map(|file| {
            let (runtime, path) = (file.runtime, file.path.display());
            let again = if runtime == "containers" { "podman (or crio)" } else { runtime };
            match file.state {
                WrittenState::Gone => Finding::problem(
                    "runtime",
                    format!("{runtime}: {path} is gone, so it pulls past Eagle"),
                    format!("eagle configure {again}"),
                ),
                _ if !file.names_address => Finding::problem(
                    "runtime",
                    format!("{runtime}: {path} does not name the proxy at {listen} (proxy.listen)"),
                    format!("eagle configure {again} --address {listen}"),
                ),
                WrittenState::Edited => Finding::note(
                    "runtime",
                    format!("{runtime}: somebody has changed {path} since Eagle wrote it"),
                    format!("eagle configure {again} --check says whether it still has what it needs"),
                ),
                WrittenState::Same => Finding::fine("runtime", format!("{runtime}: {path} is as Eagle wrote it")),
            }
        })
        .collect();
    findings.extend(pending.iter().map(|command| {
        Finding::problem("runtime", "a runtime has not read its new configuration yet", format!("run: {command}"))
    }));
    findings
}
