//! Arguments of `eagle top`.

use std::time::Duration;

use clap::Args;

use super::AskTrackersArgs;

/// Bounds of the time between two looks: the tracker looks at the cluster once a second itself, and of something older nobody would
/// say that it is live.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  eagle top                                the tracker on this machine
  eagle top --tracker http://tracker:6969 --cluster-key-file /etc/eagle/cluster.key
  eagle top --config /etc/eagle/eagle.yaml  the trackers of this machine's proxy, taken as one
  eagle top --json | jq '.topology.flows'  once, for a tool

Keys: Tab or arrows to the sides change the view, up and down choose a row, Enter shows who serves whom in a swarm, Esc goes back,
s sorts by something else, r asks at once, q or Ctrl-C leaves. Where the output is no terminal, the cluster is printed once.")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    pub(crate) trackers: AskTrackersArgs,
    /// Time between two looks at the cluster
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = interval)]
    pub(crate) interval: Duration,
    /// Print it once, as on an output that is no terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// Print all that is known once, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let (least, most) = INTERVAL;
    let parsed = eagle_registry::config::duration::parse(text).filter(|interval| (least..=most).contains(interval));
    parsed.ok_or_else(|| "write a time from 500ms to 60s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_times_within_bounds() {
        assert_eq!(interval("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        for bad in ["0s", "61s", "soon", "-1s", ""] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }
}
