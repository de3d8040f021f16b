//! The number of files and connections that the process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What every role gets along with: the connections of a large cluster, and its files.
const ENOUGH: u64 = 65_536;

/// Raises the limit as far as the system lets this process, up to [`ENOUGH`]: the usual one is 1,024, for the sake of programs that
/// use `select`, and a few hundred nodes that keep connections open would use it up.
pub(crate) fn raise_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let Some(current) = current.filter(|current| *current < ENOUGH) else { return };
    let wanted = maximum.map_or(ENOUGH, |maximum| maximum.min(ENOUGH));
    if wanted > current
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
    {
        tracing::warn!(current, wanted, %error, "the limit of open files and connections cannot be raised");
    }
    if wanted < ENOUGH {
        tracing::info!(
            limit = wanted,
            "open files and connections; a large cluster needs up to {ENOUGH} (`ulimit -Hn`)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_what_is_allowed_or_enough() {
        raise_limit();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert!(current.is_none_or(|current| current >= maximum.unwrap_or(ENOUGH).min(ENOUGH)));
    }
}
