//! How to point a runtime at a proxy that stays up.

use std::net::SocketAddr;

use super::pull::Target;

/// Instructions for docker, containerd and podman, with the real port and image, and for Prometheus.
pub(super) fn instructions(proxy: SocketAddr, others: &[SocketAddr], admins: &[SocketAddr], target: &Target) -> String {
    let admins = admins.iter().map(|address| format!("\"{address}\"")).collect::<Vec<_>>().join(", ");
    let Target { registry, repository, reference } = target;
    let separator = if reference.contains(':') { "@" } else { ":" };
    let others = others.iter().map(|address| format!("http://{address}")).collect::<Vec<_>>().join(" ");
    format!(
        "
Staying up; Ctrl-C ends it. The first proxy is http://{proxy}{more}

A name without a registry is taken for one of {registry} here.

  docker: /etc/docker/daemon.json, then restart docker
    {{ \"registry-mirrors\": [\"http://{proxy}\"] }}
    docker pull {repository}{separator}{reference}

  containerd: /etc/containerd/certs.d/{registry}/hosts.toml
    [host.\"http://{proxy}\"]
      capabilities = [\"pull\", \"resolve\"]
    ctr image pull --hosts-dir /etc/containerd/certs.d {registry}/{repository}{separator}{reference}

  podman, CRI-O, skopeo: /etc/containers/registries.conf
    [[registry]]
    location = \"{registry}\"
    [[registry.mirror]]
    location = \"{proxy}\"
    insecure = true
    podman pull {registry}/{repository}{separator}{reference}
    skopeo inspect --tls-verify=false docker://{proxy}/{repository}{separator}{reference}

  curl: the manifest
    curl -s 'http://{proxy}/v2/{repository}/manifests/{reference}?ns={registry}'

  Prometheus: prometheus.yml; its dashboard is charts/eagle/files/dashboard.json
    scrape_configs:
    - job_name: eagle
      scrape_interval: 5s
      static_configs:
      - labels: {{ namespace: demo }}
        targets: [{admins}]
",
        more = if others.is_empty() { String::new() } else { format!(", the others {others}") },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_real_port_and_image() {
        let target =
            Target { registry: "127.0.0.1:5000".into(), repository: "demo/app".into(), reference: "v1".into() };
        let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let text = instructions(at(4711), &[], &[at(1), at(2)], &target);
        for expected in [
            "http://127.0.0.1:4711\"]",
            "podman pull 127.0.0.1:5000/demo/app:v1",
            "docker pull demo/app:v1",
            "docker://127.0.0.1:4711/demo/app:v1",
            "targets: [\"127.0.0.1:1\", \"127.0.0.1:2\"]",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }
}
