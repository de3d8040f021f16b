//! Nodes that vanish or become slow.

use rand::seq::SliceRandom as _;

use crate::{ChurnKind, event::Event, network::nanos, world::World};

impl World<'_> {
    pub(crate) fn churn(&mut self, number: usize) {
        let churn = &self.plan.churn[number];
        let mut there: Vec<u32> = (0u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.group.is_some() && !node.gone && node.started.is_some() && node.slowed.is_none())
            .map(|(number, _)| number)
            .collect();
        there.shuffle(&mut self.rng);
        // A share of a number of nodes is a number of nodes.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = (there.len() as f64 * churn.fraction).round() as usize;
        for node in there.into_iter().take(count) {
            match churn.kind {
                ChurnKind::Vanish(noticed) => {
                    self.vanish(node);
                    self.after(nanos(noticed), Event::Lost(node));
                }
                ChurnKind::Slow(factor) => {
                    let state = &mut self.nodes[node as usize];
                    state.slowed = Some((self.now, state.down.rate));
                    state.down.rate *= factor;
                    state.up.rate *= factor;
                }
            }
        }
    }

    /// A node is no more; nobody knows yet.
    pub(crate) fn vanish(&mut self, node: u32) {
        let state = &mut self.nodes[node as usize];
        if !state.gone && !state.is_done() {
            self.unfinished -= 1;
        }
        state.gone = true;
    }
}
