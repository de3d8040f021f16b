//! The swarm at moments, for pictures.

/// The swarm at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// When, seconds.
    pub seconds: f64,
    /// Share of everything that the node with least, the one in the middle and the one with most own.
    pub owned: [f64; 3],
    /// Share of the nodes that are done.
    pub done: f64,
    /// Share of the nodes that own the rarest piece, the one in the middle and the commonest.
    pub spread: [f64; 3],
}

/// The least, the middle and the greatest, each over `whole`.
pub(crate) fn three(mut values: Vec<u32>, whole: f64) -> [f64; 3] {
    values.sort_unstable();
    let at = |index: usize| values.get(index).map_or(0.0, |value| f64::from(*value) / whole.max(1.0));
    [at(0), at(values.len() / 2), at(values.len().saturating_sub(1))]
}
