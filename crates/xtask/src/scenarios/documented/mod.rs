//! Commands that pages show for one machine, typed as they stand there: every block that is marked with this scenario's name.
//!
//! Answers of the API that pages show after a command have to have the members that are shown.
//!
//! They run in a namespace whose `/etc`, `/usr/local`, `/var/lib` and `/run` are its own. The first page starts a cluster on this
//! machine, which the others ask. What begins with the name of a machine before its prompt stays running.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{OWN_DIRECTORIES, Scene, write_program};
use crate::{
    hub::Hub,
    pages::{Block, Typed, blocks, pages, run_by},
    process::succeed,
    registry::Registry,
    workspace,
};

pub(super) const NAME: &str = "documented-commands";
/// All commands, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(240);
const PRELUDE: &str = include_str!("prelude.sh");

/// The pages in the order in which they are gone through, with what has to be so before their first command.
const PAGES: [(&str, &str); 9] = [
    // A tracker without a key answers everybody.
    ("docs/tracker-api.md", TRACKER),
    ("README.md", "stop tracker"),
    ("docs/dashboard.md", "cp cluster.key proxy.yaml /etc/eagle; mv /etc/eagle/proxy.yaml /etc/eagle/eagle.yaml"),
    ("docs/configuration.md", ""),
    ("docs/metrics.md", ""),
    ("docs/operations.md", ""),
    ("docs/preheat.md", "export EAGLE_CLUSTER__KEY_FILE=/etc/eagle/cluster.key"),
    // The page makes that key, and exchanges it.
    ("docs/membership.md", "unset EAGLE_CLUSTER__KEY_FILE; rm /etc/eagle/cluster.key"),
    ("docs/reliability.md", "eagle config check --cluster-key-file /etc/eagle/cluster.key"),
];

/// A tracker, and the seeder that its page has beside the node that announces itself there.
const TRACKER: &str = r#"
start tracker 'eagle tracker'
curl -s http://tracker:6969/v1/announce -H 'Content-Type: application/json' -d '{
  "node": {
    "id": "12D3KooWEZXjE41uU4EL2gpkAQeDXYok6wghN7wwNVPF5bwkaNfS", "address": "0.0.0.0:61008", "role": "seeder",
    "topology": { "region": "eu", "zone": "eu-b" }
  },
  "full": true,
  "flows": [
    { "from": { "region": "eu", "zone": "eu-a" }, "bytes_per_second": 1000000, "bytes": 5000000 },
    { "from": { "region": "eu", "zone": "eu-b" }, "bytes_per_second": 2000000, "bytes": 5000000 }
  ],
  "blobs": [
    {
      "digest": "sha256:ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
      "geometry": { "size": 10485760, "piece_length": 262144 }, "pieces": "complete", "event": "completed"
    },
    {
      "digest": "sha256:3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d",
      "geometry": { "size": 10485760, "piece_length": 262144 }, "pieces": "complete", "event": "completed"
    }
  ]
}'"#;

pub(super) fn commands(scene: &Scene<'_>) -> Result<()> {
    let store = scene.directory.join("hub-store");
    push_small_images(&scene.directory.join("small"), &store)?;
    let hub = Hub::start(&scene.directory.join("hub"), &store)?;
    let directory = scene.directory.join("walk");
    let programs = directory.join("bin");
    fs::create_dir_all(&programs)?;
    let program = |name: &str, from: &Path| {
        write_program(&programs.join(name), &format!("#!/bin/sh\nexec {} \"$@\"\n", from.display()))
    };
    program("eagle", scene.eagle)?;
    program("xtask", &std::env::current_exe()?)?;
    // Everything is built, and the tests that pages name are running.
    write_program(&programs.join("cargo"), "#!/bin/sh\n[ \"$1\" = xtask ] || exit 64\nshift\nexec xtask \"$@\"\n")?;
    fs::copy(hub.authority(), directory.join("authority.pem"))?;
    let hosts = fs::read_to_string("/etc/hosts")?;
    fs::write(directory.join("hosts"), format!("{hosts}127.0.0.1 tracker seeder\n"))?;

    let answers = directory.join("answers");
    fs::create_dir_all(&answers)?;
    let (commands, shown) = script_of(&pages(&workspace::root())?, &answers)?;
    let script = directory.join("commands.sh");
    fs::write(&script, format!("{OWN_DIRECTORIES}{PRELUDE}{commands}"))?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash"]).arg(&script);
    command.env("WALK", &directory);
    succeed(&mut command, DEADLINE)?;
    ensure!(shown.len() >= 5, "only {} answers of the API were found", shown.len());
    for (file, block) in shown {
        let real: Value = serde_json::from_slice(&fs::read(&file)?)?;
        let lacking = lacking(&serde_json::from_str(&block.text)?, &real);
        ensure!(lacking.is_none(), "{}: {} is not in the answer {real:#}", block.place(), lacking.unwrap_or_default());
    }
    Ok(())
}

/// One script of all blocks, and the answers that pages show of commands: the file that the real one goes to, and what is shown.
fn script_of(pages: &BTreeMap<String, String>, answers: &Path) -> Result<(String, Vec<(PathBuf, Block)>)> {
    let (mut script, mut shown) = (String::new(), Vec::new());
    for (page, before) in PAGES {
        script += &format!("at='before {page}'\n{before}\n");
        let blocks = blocks(page, pages.get(page).with_context(|| format!("no page {page}"))?);
        for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.mark("run") == Some(NAME)) {
            script += &format!("at='{}'\n", block.place());
            if block.language == "console" {
                script.extend(block.typed().into_iter().map(line_of));
                continue;
            }
            script += &format!("{{\n{}}}", block.text);
            if let Some(answer) =
                blocks.get(index + 1).filter(|next| next.language == "json" && block.text.starts_with("curl "))
            {
                let file = answers.join(format!("{}.json", shown.len()));
                script += &format!(" >'{}'", file.display());
                shown.push((file, answer.clone()));
            }
            script.push('\n');
        }
    }
    let marked = run_by(&workspace::root(), NAME)?;
    let elsewhere = marked.iter().find(|block| PAGES.iter().all(|(page, _)| *page != block.page));
    ensure!(elsewhere.is_none(), "nothing is prepared for {}", elsewhere.map(Block::place).unwrap_or_default());
    Ok((script, shown))
}

/// A line of a script. What is typed on a machine stays running there.
fn line_of(typed: Typed<'_>) -> String {
    match typed.machine {
        // A list that begins with a failure does not end a script by itself.
        "" => format!("{{ {}\n}} || exit 1\n", typed.text),
        machine => format!("start {machine} '{}'\n", typed.text),
    }
}

/// Which member that a page shows is not in the real answer. Of lists that are not empty the first entries are compared.
fn lacking(shown: &Value, real: &Value) -> Option<String> {
    match (shown, real) {
        (Value::Object(shown), Value::Object(real)) => shown.iter().find_map(|(name, value)| match real.get(name) {
            Some(real) => lacking(value, real).map(|path| format!("{name}.{path}")),
            None => Some(name.clone()),
        }),
        (Value::Array(shown), Value::Array(real)) => {
            let (shown, real) = (shown.first()?, real.first());
            real.map_or_else(|| Some("0".to_owned()), |real| lacking(shown, real).map(|path| format!("0.{path}")))
        }
        _ => None,
    }
}

/// Images of one small file, under the names that pages have.
fn push_small_images(directory: &Path, store: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    fs::write(directory.join("hello"), "from an image\n")?;
    let tar = directory.join("layer.tar");
    succeed(Command::new("tar").arg("-cf").arg(&tar).arg("-C").arg(directory).arg("hello"), DEADLINE)?;
    let registry = Registry::start(&directory.join("pushing"), store)?;
    for image in ["library/debian:12", "org/app:1.4"] {
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
        copy.arg(format!("tarball:{}", tar.display())).arg(format!("docker://{}/{image}", registry.address()));
        succeed(&mut copy, DEADLINE)?;
    }
    Ok(())
}
