//! The layer of environment variables: `EAGLE_SECTION__KEY`.

use std::ffi::OsString;

use super::{
    read::ConfigError,
    tree::{Node, Origin},
    yaml,
};

const PREFIX: &str = "EAGLE_";
/// The cluster key by the name that people give it, the same as `EAGLE_CLUSTER__KEY`.
const CLUSTER_KEY: &str = "EAGLE_CLUSTER_KEY";

/// Lays the variables that begin with `EAGLE_` on the tree. An empty variable counts as not given, as a pod template
/// writes it for an optional value.
///
/// # Errors
/// When a value is not UTF-8 or starts like a YAML list and is none. Whether the key exists is seen when the tree is read.
pub(crate) fn lay_on(
    tree: &mut Node,
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), ConfigError> {
    let mut ours: Vec<(String, OsString)> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, value)| name.starts_with(PREFIX) && !is_foreign(name) && !value.is_empty())
        .collect();
    // The order of the environment is nobody's wish: EAGLE_REGISTRIES must come before EAGLE_REGISTRIES__0__PASSWORD.
    ours.sort();
    for (name, value) in ours {
        let origin = Origin::Env(name.as_str().into());
        let value = value.into_string().map_err(|_| ConfigError::new(origin, &[], "the value is not UTF-8"))?;
        if name == CLUSTER_KEY {
            tree.set(&["cluster".to_owned(), "key".to_owned()], yaml::parse_variable(&value, &name)?);
            continue;
        }
        let path: Vec<String> = name[PREFIX.len()..].split("__").map(str::to_ascii_lowercase).collect();
        tree.set(&path, yaml::parse_variable(&value, &name)?);
    }
    Ok(())
}

/// Variables with our prefix that are no keys: the file's own path, those of tests, and what Kubernetes puts into every
/// container for a Service called `eagle` or `eagle-something` (`EAGLE_TRACKER_SERVICE_HOST`, `EAGLE_PORT_6969_TCP`).
fn is_foreign(name: &str) -> bool {
    if name == "EAGLE_CONFIG" || name.starts_with("EAGLE_TEST_") {
        return true;
    }
    if name.contains("__") {
        return false;
    }
    let words: Vec<&str> = name.split('_').collect();
    let service = words.windows(2).any(|pair| matches!(pair, ["SERVICE", "HOST" | "PORT"]));
    let port = words.windows(3).any(
        |three| matches!(three, ["PORT", number, "TCP" | "UDP" | "SCTP"] if number.bytes().all(|b| b.is_ascii_digit())),
    );
    service || port || words.last() == Some(&"PORT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_injects_is_no_configuration() {
        for foreign in [
            "EAGLE_CONFIG",
            "EAGLE_TEST_ANYTHING",
            "EAGLE_TRACKER_SERVICE_HOST",
            "EAGLE_TRACKER_SERVICE_PORT_HTTP",
            "EAGLE_TRACKER_PORT",
            "EAGLE_TRACKER_PORT_6969_TCP_ADDR",
            "EAGLE_SERVICE_PORT",
        ] {
            assert!(is_foreign(foreign), "{foreign}");
        }
        for ours in ["EAGLE_FOO", "EAGLE_PROXY__LISTEN", "EAGLE_REGISTRIES", "EAGLE_PROXY__SERVICE_PORT"] {
            assert!(!is_foreign(ours), "{ours}");
        }
    }
}
