//! containerd 1.6 to 2.x: `hosts.toml` files, and `config_path` of the plugin for Kubernetes, which says where they are.

use std::path::{Path, PathBuf};

use anyhow::Result;
use toml_edit::{DocumentMut, Item, Table, TableLike, value};

use super::{
    Wanted,
    change::{FileChange, Plan},
    hosts,
    root::Root,
};

const CONFIG: &str = "/etc/containerd/config.toml";
const CERTS: &str = "/etc/containerd/certs.d";

pub(super) fn plan(root: &Root, wanted: &Wanted) -> Result<Plan> {
    let mut plan = Plan::default();
    let config = root.text(Path::new(CONFIG))?;
    let document = config.as_deref().unwrap_or_default().parse::<DocumentMut>().ok();
    let certs = document.as_ref().and_then(config_path).and_then(first).unwrap_or_else(|| CERTS.to_owned());
    plan.files.push(FileChange {
        path: PathBuf::from(CONFIG),
        added: format!("config_path = \"{CERTS}\" in the registry section of the plugin for Kubernetes"),
        edit: Box::new(edit),
        activate: "systemctl restart containerd",
    });
    if wanted.registries.is_empty() {
        plan.files.push(hosts::change(root, &certs, hosts::DEFAULT, wanted));
        for name in root.names(Path::new(&certs))? {
            let path = Path::new(&certs).join(&name).join("hosts.toml");
            if name != hosts::DEFAULT
                && let Some(text) = root.text(&path)?
                && !hosts::has(&text, &wanted.url())
            {
                plan.notes.push(format!(
                    "{} is for {name} alone and comes before {certs}/_default: `eagle configure containerd --registry \
                     {name}` adds the mirror to it",
                    root.shown(&path).display()
                ));
            }
        }
    }
    for registry in &wanted.registries {
        plan.files.push(hosts::change(root, &certs, registry.as_str(), wanted));
    }
    plan.notes.push(format!("ctr does not read {CONFIG}: give it --hosts-dir {certs}"));
    Ok(plan)
}

/// The name of the plugin that pulls for Kubernetes, by the version of the configuration's form: containerd 2.x writes 3
/// and reads 2 too, 1.x reads 1 and 2.
fn plugin(document: &DocumentMut) -> &'static str {
    match document.get("version").and_then(Item::as_integer) {
        None | Some(1) => "cri",
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(_) => "io.containerd.cri.v1.images",
    }
}

fn registry(document: &DocumentMut) -> Option<&Item> {
    document.get("plugins")?.get(plugin(document))?.get("registry")
}

fn config_path(document: &DocumentMut) -> Option<&str> {
    registry(document)?.get("config_path")?.as_str().filter(|path| !path.is_empty())
}

/// The first of the directories, which is the one that containerd takes when several have the file.
fn first(path: &str) -> Option<String> {
    path.split(':').find(|path| path.starts_with('/')).map(str::to_owned)
}

/// Sets `config_path` unless it is set; everything else stays as it is written.
pub(super) fn edit(text: Option<&str>) -> Result<Option<String>, String> {
    // A new file in the form that every version from 1.3 to 2.x reads.
    let text = text.filter(|text| !text.trim().is_empty()).unwrap_or("version = 2\n");
    let mut document: DocumentMut =
        text.parse().map_err(|error: toml_edit::TomlError| format!("is not valid TOML: {}", error.message()))?;
    if let Some(path) = config_path(&document) {
        return match first(path) {
            Some(_) => Ok(None),
            None => Err(format!("config_path is {path:?}, which is no absolute path")),
        };
    }
    let set = |item: Option<&Item>| item.and_then(Item::as_table_like).is_some_and(|table| !table.is_empty());
    let section = registry(&document);
    if set(section.and_then(|registry| registry.get("mirrors"))) {
        return Err(format!(
            "has registry.mirrors, with which containerd refuses config_path; move each mirror to \
             {CERTS}/REGISTRY/hosts.toml, delete registry.mirrors, and run this again"
        ));
    }
    let configs = section.and_then(|registry| registry.get("configs")).and_then(Item::as_table_like);
    if configs.is_some_and(|configs| configs.iter().any(|(_, config)| set(config.get("tls")))) {
        return Err(format!(
            "has registry.configs with tls, with which containerd refuses config_path; move it to \
             {CERTS}/REGISTRY/hosts.toml, delete it, and run this again"
        ));
    }
    let plugin = plugin(&document);
    let plugins = below(document.as_table_mut(), "plugins")?;
    let registry = below(below(plugins, plugin)?, "registry")?;
    registry.insert("config_path", value(CERTS));
    if let Some(Item::Table(table)) =
        document.get_mut("plugins").and_then(|plugins| plugins.get_mut(plugin)?.get_mut("registry"))
    {
        // With a key of its own it needs a heading of its own.
        table.set_implicit(false);
    }
    Ok(Some(document.to_string()))
}

/// The table of this name within another, made when it is not there.
fn below<'a>(table: &'a mut dyn TableLike, name: &str) -> Result<&'a mut dyn TableLike, String> {
    let item = table.entry(name).or_insert_with(|| {
        let mut table = Table::new();
        table.set_implicit(true);
        Item::Table(table)
    });
    item.as_table_like_mut().ok_or_else(|| format!("{name} is not a table"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_configuration() {
        for (text, heading) in [
            ("version = 2\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
            ("version = 3\n", "[plugins.\"io.containerd.cri.v1.images\".registry]"),
            ("disabled_plugins = [\"cri\"]\n", "[plugins.cri.registry]"),
            ("version = 1\n", "[plugins.cri.registry]"),
            (
                "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = ''\n",
                "[plugins.'io.containerd.cri.v1.images'.registry]",
            ),
        ] {
            let edited = edit(Some(text)).unwrap().unwrap();
            assert_eq!(edited.matches(heading).count(), 1, "{edited}");
            let document: DocumentMut = edited.parse().unwrap();
            assert_eq!(config_path(&document), Some(CERTS), "{edited}");
            assert_eq!(edit(Some(&edited)), Ok(None));
        }
        assert!(edit(None).unwrap().unwrap().starts_with("version = 2\n"));
    }

    #[test]
    fn the_rest_stays_as_it_is_written() {
        let text = "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    # ours\n    \
                    sandbox_image = \"pause:3\"   # keep\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      \
                    bin_dir = \"/usr/lib/cni\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/x\"\n";
        let edited = edit(Some(text)).unwrap().unwrap();
        for line in text.lines() {
            assert!(edited.lines().any(|kept| kept == line), "{line:?} in\n{edited}");
        }
        assert_eq!(
            edited.lines().filter(|line| !line.trim().is_empty()).count(),
            text.lines().filter(|line| !line.trim().is_empty()).count() + 2
        );
    }

    #[test]
    fn another_directory_is_respected() {
        let text = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/a/b:/etc/docker/certs.d\"\n";
        assert_eq!(edit(Some(text)), Ok(None));
        assert_eq!(first("/a/b:/etc/docker/certs.d").as_deref(), Some("/a/b"));
    }

    #[test]
    fn what_containerd_would_refuse_is_explained() {
        let mirrors = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://x\"]\n";
        assert!(edit(Some(mirrors)).unwrap_err().contains("registry.mirrors"));
        let tls = "[plugins.cri.registry.configs.\"x:5000\".tls]\ninsecure_skip_verify = true\n";
        assert!(edit(Some(tls)).unwrap_err().contains("with tls"));
        for text in ["version = ", "plugins = 1\n", "version = 2\n[plugins]\n\"io.containerd.grpc.v1.cri\" = 3\n"] {
            assert!(edit(Some(text)).is_err(), "{text}");
        }
        let auth =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"x\".auth]\nusername = \"u\"\n";
        assert!(edit(Some(auth)).unwrap().is_some());
    }
}
