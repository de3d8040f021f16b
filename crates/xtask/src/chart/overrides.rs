//! What an administrator may lay over the chart's own: security contexts, probes, strategies of updates.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{
    Tools,
    manifest::{containers, find, init_containers, kind, list, name, pod, role_config, workloads},
};

const VALUES: &str = "
podSecurityContext:
  seLinuxOptions: { level: 's0:c123,c456' }
  seccompProfile: { type: Localhost, localhostProfile: profiles/eagle.json }
  supplementalGroups: [4000]
  fsGroupChangePolicy: Always
containerSecurityContext:
  readOnlyRootFilesystem: false
  appArmorProfile: { type: RuntimeDefault }
probes:
  startup: { failureThreshold: 300 }
  readiness: { initialDelaySeconds: 2 }
tracker:
  updateStrategy: { type: OnDelete }
seeder:
  updateStrategy: { type: RollingUpdate, rollingUpdate: { partition: 2 } }
proxy:
  updateStrategy: { type: OnDelete }
  config:
    forward: { ca_dir: /etc/eagle-forward }
  data:
    init:
      resources: { limits: { memory: 32Mi } }
redis:
  enabled: true
";
/// Containers that set up a node: what they may is theirs alone.
const SET_UP: [&str; 3] = ["prepare-data", "configure-runtime", "undo"];

pub(super) fn check(tools: &Tools, chart: &Path) -> Result<()> {
    let file = tempfile::Builder::new().suffix(".yaml").tempfile()?;
    fs::write(file.path(), VALUES)?;
    tools.validate(chart, file.path())?;
    let objects = tools.objects(chart, Some(file.path()), &[])?;
    for workload in workloads(&objects) {
        security(workload).with_context(|| format!("{} {}", kind(workload), name(workload)))?;
    }
    let of = |kind: &str, role: &str| find(&objects, kind, &format!("release-eagle-{role}"));
    let (tracker, seeder, proxy) =
        (of("StatefulSet", "tracker")?, of("StatefulSet", "seeder")?, of("DaemonSet", "proxy")?);
    for workload in [tracker, seeder, proxy] {
        let container = &containers(workload)[0];
        // What is not given stays.
        let startup =
            json!({ "httpGet": { "path": "/healthz", "port": "admin" }, "periodSeconds": 1, "failureThreshold": 300 });
        ensure!(container["startupProbe"] == startup, "{}: {}", name(workload), container["startupProbe"]);
        ensure!(container["livenessProbe"]["failureThreshold"] == 6, "{}", container["livenessProbe"]);
        ensure!(container["readinessProbe"]["initialDelaySeconds"] == 2, "{}", container["readinessProbe"]);
    }
    let on_delete = json!({ "type": "OnDelete" });
    ensure!(tracker["spec"]["updateStrategy"] == on_delete, "{}", tracker["spec"]["updateStrategy"]);
    ensure!(proxy["spec"]["updateStrategy"] == on_delete, "{}", proxy["spec"]["updateStrategy"]);
    let partition = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } });
    ensure!(seeder["spec"]["updateStrategy"] == partition, "{}", seeder["spec"]["updateStrategy"]);
    let config: Value = serde_saphyr::from_str(&role_config(&objects, "proxy")?)?;
    let forward = json!({ "ca_dir": "/etc/eagle-forward" });
    ensure!(config["proxy"]["forward"] == forward, "{}", config["proxy"]["forward"]);
    let prepare = list(&pod(proxy)["initContainers"]).first().context("no init container")?;
    ensure!(prepare["resources"]["limits"]["memory"] == "32Mi", "{}", prepare["resources"]);
    ensure!(prepare["resources"]["requests"]["cpu"] == "10m", "{}", prepare["resources"]);
    Ok(())
}

fn security(workload: &Value) -> Result<()> {
    let context = &pod(workload)["securityContext"];
    let wanted = json!({
        "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532,
        "fsGroupChangePolicy": "Always", "supplementalGroups": [4000],
        "seLinuxOptions": { "level": "s0:c123,c456" },
        "seccompProfile": { "type": "Localhost", "localhostProfile": "profiles/eagle.json" },
    });
    ensure!(*context == wanted, "{context}");
    for container in init_containers(workload).iter().chain(containers(workload)) {
        let (shown, context) = (&container["name"], &container["securityContext"]);
        if SET_UP.iter().any(|name| shown == name) {
            ensure!(
                context["readOnlyRootFilesystem"] == true && context["appArmorProfile"].is_null(),
                "{shown}: {context}"
            );
            continue;
        }
        let wanted = json!({
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": false, "capabilities": { "drop": ["ALL"] },
            "appArmorProfile": { "type": "RuntimeDefault" },
        });
        ensure!(*context == wanted, "{shown}: {context}");
    }
    Ok(())
}
