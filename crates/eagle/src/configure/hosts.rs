//! `hosts.toml`, by which containerd, and docker with the containerd image store, learn of mirrors.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::{Wanted, change::FileChange, root::Root};

/// What a mirror for pulling does.
const CAPABILITIES: [&str; 2] = ["pull", "resolve"];
/// Covers every registry that has no directory of its own.
pub(super) const DEFAULT: &str = "_default";

/// The change of the file for a registry, or for [`DEFAULT`], below `directory`. When the mirror does not answer, the
/// runtime goes on to the registry: no file here says otherwise.
pub(super) fn change(root: &Root, directory: &str, registry: &str, wanted: &Wanted) -> FileChange {
    let path = file(root, directory, registry);
    let url = wanted.url();
    FileChange {
        path,
        added: format!("[host.\"{url}\"] with capabilities = [\"pull\", \"resolve\"]"),
        edit: Box::new(move |text| edit(text, &url)),
        activate: "",
    }
}

/// containerd also takes `host_5000_` for `host:5000`; where somebody has begun with that form, it goes on.
fn file(root: &Root, directory: &str, registry: &str) -> PathBuf {
    let below = |name: &str| Path::new(directory).join(name).join("hosts.toml");
    if let Some((host, port)) = registry.rsplit_once(':') {
        let other = below(&format!("{host}_{port}_"));
        if root.shown(&other).exists() {
            return other;
        }
    }
    below(registry)
}

/// Puts the mirror before every other host; the rest of the file stays as it is written.
pub(super) fn edit(text: Option<&str>, url: &str) -> Result<Option<String>, String> {
    let block = format!("[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
        return Ok(Some(format!("# Written by `eagle configure`, which can undo it.\n{block}")));
    };
    let before = parse(text)?;
    if let Some(host) = before.get("host").and_then(|hosts| hosts.get(url)) {
        return if pulls(host) {
            Ok(None)
        } else {
            Err(format!(
                "has [host.\"{url}\"], but its capabilities are not \"pull\" and \"resolve\"; add those by hand"
            ))
        };
    }
    let at = text.lines().take_while(|line| !line.trim_start().starts_with('[')).map(|line| line.len() + 1).sum();
    let (head, tail) = text.split_at_checked(at).unwrap_or((text, ""));
    let gap = if head.is_empty() || head.ends_with("\n\n") {
        ""
    } else if head.ends_with('\n') {
        "\n"
    } else {
        "\n\n"
    };
    let separator = if tail.is_empty() { "" } else { "\n" };
    let edited = format!("{head}{gap}{block}{separator}{tail}");
    // The place was found by looking at lines; a file of an unusual form would come out as something else.
    let names = |document: &DocumentMut| -> Vec<String> {
        let hosts = document.get("host").and_then(Item::as_table_like);
        hosts.map(|hosts| hosts.iter().map(|(name, _)| name.to_owned()).collect()).unwrap_or_default()
    };
    let after = parse(&edited).map(|document| names(&document));
    if after != Ok([url.to_owned()].into_iter().chain(names(&before)).collect()) {
        return Err(format!("has a form that eagle does not change; add by hand, before the other hosts:\n{block}"));
    }
    Ok(Some(edited))
}

/// Whether a `hosts.toml` sends pulls to this URL.
pub(super) fn has(text: &str, url: &str) -> bool {
    edit(Some(text), url) == Ok(None)
}

fn parse(text: &str) -> Result<DocumentMut, String> {
    text.parse().map_err(|error: toml_edit::TomlError| format!("is not valid TOML: {}", error.message()))
}

/// A host without capabilities has all of them.
fn pulls(host: &Item) -> bool {
    let Some(capabilities) = host.get("capabilities") else { return true };
    let listed: Vec<&str> = capabilities.as_array().into_iter().flatten().filter_map(|value| value.as_str()).collect();
    CAPABILITIES.iter().all(|wanted| listed.contains(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://127.0.0.1:43002";
    const BLOCK: &str = "[host.\"http://127.0.0.1:43002\"]\n  capabilities = [\"pull\", \"resolve\"]\n";

    #[test]
    fn a_new_file_and_one_by_hand() {
        let new = edit(None, URL).unwrap().unwrap();
        assert!(new.ends_with(BLOCK));
        assert_eq!(edit(Some(&new), URL), Ok(None));
        let by_hand =
            "# ours\nserver = \"https://ghcr.io\"\n\n[host.\"https://mirror.example\"]\n  ca = \"/ca.pem\" # keep\n";
        let edited = edit(Some(by_hand), URL).unwrap().unwrap();
        assert_eq!(
            edited,
            format!(
                "# ours\nserver = \"https://ghcr.io\"\n\n{BLOCK}\n[host.\"https://mirror.example\"]\n  ca = \"/ca.pem\" # keep\n"
            )
        );
        assert!(has(&edited, URL) && !has(by_hand, URL));
        let only_server = edit(Some("server = \"https://ghcr.io\""), URL).unwrap().unwrap();
        assert_eq!(only_server, format!("server = \"https://ghcr.io\"\n\n{BLOCK}"));
        assert_eq!(edit(Some("[host.\"http://127.0.0.1:43002\"]\n"), URL), Ok(None), "all capabilities");
    }

    #[test]
    fn what_is_not_understood_is_left_alone() {
        for text in [
            "[host",
            "[host.\"http://127.0.0.1:43002\"]\ncapabilities = [\"push\"]\n",
            // The bracket at the start of the line opens no table.
            "x = [\n[1],\n]\nserver = \"https://ghcr.io\"\n",
        ] {
            assert!(edit(Some(text), URL).is_err(), "{text}");
        }
    }
}
