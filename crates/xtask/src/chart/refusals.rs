//! Values that the schema has to refuse, with a message that names the mistake.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Tools, tools::DEADLINE};
use crate::process::finish;

/// What `--set` is given, and a word that the refusal has to have.
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
    ("p2p.topologyFromPodLabels=zone", "topologyFromPodLabels"),
    ("cluster.key=secret", "key"),
    ("cluster.keySecret.key=", "key"),
    ("proxy.ports.registry=70000", "registry"),
    ("registries[0].url=https://registry.example", "name"),
    ("registries[0].name=a.example,registries[0].username=u", "passwordSecret"),
    ("registries[0].name=a.example,registries[0].password=secret", "password"),
    ("securityContext.runAsUser=0", "runAsUser"),
    ("log.format=xml", "format"),
    ("proxy.configure.runtime=podman", "containerd"),
    ("proxy.configure.registries[0]=https://docker.io", "registries"),
    ("proxy.configure.directory=etc/containerd", "directory"),
    ("proxy.configure.undo.timeoutSeconds=5", "timeoutSeconds"),
    ("proxy.configure.undo.wait=false", "wait"),
    ("proxy.resources.limit.memory=1Gi", "limit"),
    ("proxy.tolerations[0].effects=NoSchedule", "effects"),
    ("tracker.extraEnvFrom[0].secret=a", "secret"),
    ("seeder.extraVolumes[0].emptyDir.medium=Memory", "name"),
    ("seeder.podDisruptionBudget.maxUnavailable=half", "maxUnavailable"),
    ("networkPolicy.from[0].cidr=10.0.0.0/8", "cidr"),
    ("metrics.serviceMonitor.interval=often", "interval"),
    ("metrics.serviceMonitor.enabld=true", "enabld"),
    ("dockerConfigSecrets[0].name=pull", "dockerConfigSecrets"),
    ("extraConfig.proxy.listen=0.0.0.0:1", "'proxy' not allowed"),
    ("proxy.extraConfig.proxy.listen=0.0.0.0:1", "listen"),
    ("proxy.extraConfig.proxi.push=refuse", "proxi"),
    ("tracker.extraConfig.tracker=on", "extraConfig"),
    ("cluster.tls.certificate=a.pem,cluster.tls.name=b", "name"),
    ("redis.url=http://redis:6379", "url"),
    ("redis.url=redis://:secret@redis:6379", "url"),
    ("redis.maxMemory=256Mi", "maxMemory"),
    ("redis.replicas=3", "replicas"),
    ("tracker.config.topology[0].zone=north-1", "cidr"),
    ("tracker.config.topology[0].cidr=10.0.0.0/8", "topology"),
    ("tracker.config.topology[0].cidr=10.0.0.0,tracker.config.topology[0].zone=north-1", "cidr"),
    ("proxy.config.forward.ca_dir=ca", "ca_dir"),
    ("podSecurityContext.runAsUser=1000", "runAsUser"),
    ("podSecurityContext.seccompProfile.type=Default", "seccompProfile"),
    ("containerSecurityContext.privileged=true", "privileged"),
    ("probes.liveness.httpGet.path=/", "httpGet"),
    ("probes.startup.periodSeconds=0", "periodSeconds"),
    ("seeder.updateStrategy.type=Recreate", "type"),
    ("proxy.updateStrategy.type=Recreate", "type"),
];

/// What the templates refuse, since it is in the values together, or missing.
const AT_ODDS: &[(&str, &str)] = &[
    ("image.repository=", "image.repository is not given: Eagle's image is in no public registry; build and push it"),
    ("redis.enabled=true,redis.url=redis://redis", "the chart's own Redis or yours"),
    ("redis.enabled=true,tracker.config.store=memory", "tracker.config.store is given beside redis"),
    ("redis.url=redis://r,tracker.config.store_password_file=/a", "tracker.config.store_password_file is given"),
];

pub(super) fn check(tools: &Tools, chart: &Path) -> Result<()> {
    for (set, word) in REFUSED {
        let mut template = tools.template(chart);
        let finished = finish(template.args(["--set", set]), DEADLINE)?;
        ensure!(!finished.status.success(), "{set} is accepted");
        ensure!(finished.stderr.contains("values don't meet the specifications"), "{set}: {}", finished.stderr);
        ensure!(finished.stderr.contains(word), "the refusal of {set} does not name {word}: {}", finished.stderr);
    }
    for (set, words) in AT_ODDS {
        let finished = finish(tools.template(chart).args(["--set", set]), DEADLINE)?;
        ensure!(!finished.status.success() && finished.stderr.contains(words), "{set}: {}", finished.stderr);
    }
    Ok(())
}
