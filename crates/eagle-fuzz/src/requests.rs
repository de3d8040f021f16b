//! What is asked for: targets of requests to proxies, seeders and trackers, hosts in `CONNECT`, limits.

use eagle_proxy::{
    path::{self, ApiPath},
    upstream,
};
use eagle_registry::{
    RegistryName,
    path::{Endpoint, is_plain},
};
use http::{Uri, uri::Authority};

/// The text as path and query of every server, and as the target of `CONNECT`.
pub(crate) fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let (path, query) = text.split_once('?').map_or((text, None), |(path, query)| (path, Some(query)));
    mirror(path, query);
    match eagle_tracker::parsers::page(query.unwrap_or(text)) {
        Ok((_, limit)) => assert!((1..=1000).contains(&limit)),
        Err(problem) => assert!(problem.len() < 200, "{problem}"),
    }
    if let Ok((_, after, limit)) = eagle_tracker::parsers::pieces_page(query.unwrap_or(text)) {
        assert!((1..=1000).contains(&limit) && after.is_none_or(|after| after.len() <= 3 * text.len()));
    }
    let (digest, node) = eagle_tracker::parsers::named(path.rsplit('/').next().unwrap_or_default());
    // Written out it is looked for in stores and logs: nothing that means more than a name there.
    assert!(digest.is_none_or(|digest| path.len() >= digest.hex().len()));
    assert!(node.is_none_or(|node| !node.as_str().contains(char::is_control) && node.as_str().len() <= path.len()));
    if let Ok((download, upload)) = eagle::read_limits(bytes) {
        assert!(download.is_some() || upload.is_some());
    }
    if let Ok(endpoint) = Endpoint::parse(path) {
        assert_eq!(endpoint.repository().is_none(), path.is_empty());
    }
    if is_plain(text) {
        assert!(text.is_ascii() && !path.split('/').any(|part| matches!(part, "." | "..")), "{text:?}");
    }
    if let Ok(uri) = text.parse::<Uri>() {
        match eagle_seeder::parsers::route(&uri) {
            Ok(route) => assert!(route.len() <= 3 * text.len() + 1024),
            Err(problem) => assert!(problem.len() < 1000, "{problem}"),
        }
    }
    if let Ok(authority) = text.parse::<Authority>()
        && let Ok((host, port, registry)) = eagle_proxy::parsers::connect_target(&authority)
    {
        // What is dialled is what was named, and nothing that means something else to a resolver.
        assert!(!host.contains(['/', '@', '\\', ' ', '%', '\0']), "{host:?}");
        assert!(
            registry.is_docker_hub() || registry.as_str().trim_start_matches('[').starts_with(&host),
            "{host} is not {registry}"
        );
        assert_eq!(authority.port_u16().unwrap_or(port), port);
    }
}

fn mirror(path: &str, query: Option<&str>) {
    let Ok(default) = "docker.io".parse::<RegistryName>() else { return };
    let push = path::parse_push(path).map(|(name, resource)| (name, resource.suffix()));
    let pull = match path::parse(path) {
        Ok(ApiPath::Repository { name, resource }) => Ok((name, resource.suffix())),
        Ok(ApiPath::Base) => return,
        Err(error) => Err(error),
    };
    for (name, suffix) in [push, pull].into_iter().flatten() {
        assert!(suffix.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:/".contains(&byte)), "{suffix:?}");
        assert!(!suffix.split('/').any(|part| matches!(part, "." | "..")), "{suffix:?}");
        let Ok(upstream) = upstream::resolve(&name, query, &default) else { continue };
        let written = format!("/v2/{}/{suffix}", upstream.repository);
        assert!(is_plain(written.trim_start_matches('/')), "{written:?}");
        // Written out it means the same again.
        let again =
            path::parse_push(&written).map(|(name, resource)| (name, resource.suffix())).or_else(
                |_| match path::parse(&written) {
                    Ok(ApiPath::Repository { name, resource }) => Ok((name, resource.suffix())),
                    Ok(ApiPath::Base) => Err(path::PathError::Unknown),
                    Err(error) => Err(error),
                },
            );
        assert_eq!(again, Ok((upstream.repository.to_string(), suffix)));
    }
}
