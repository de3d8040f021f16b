//! Freeing what expired nodes take, in parts that are short.
//!
//! A few nodes leave their swarms one by one. When a zone falls silent, thousands go: each step of leaving one swarm then waits for memory that no
//! cache has, 0.8 us for each of millions. So the swarms of all of them are looked through instead, each once, for members who are
//! gone: 0.07 us for each (`benches/store.rs`).

use std::{mem, sync::Arc};

use eagle_core::Timestamp;

use super::{MemoryStore, SHARDS, lock, node::Node, swarm::Swarm};

/// Expired nodes of one shard that leave their swarms one by one; more wait for the end of the round.
const FEW: usize = 8;
/// Swarms that nodes leave one by one in one call.
const LEAVES: usize = 100;
/// Members, or swarms of a node, that are looked at in one call.
const LOOKS: usize = 5_000;
/// Nodes whose memory is freed in one call: each has some tens of kilobytes.
const FREED: usize = 10;

/// How far the round through the store is.
#[derive(Debug, Default)]
pub(super) struct Sweep {
    /// Shard of nodes that is next.
    shard: usize,
    /// Nodes that leave their swarms one by one.
    few: Vec<Arc<Node>>,
    /// Nodes that are looked for in all of their swarms, when the round is over.
    many: Vec<Arc<Node>>,
    /// Of those, how many had their swarms noted.
    noted: usize,
    /// Swarms that some of them are in.
    swarms: Vec<Arc<Swarm>>,
    /// What is left of the end of a round.
    ending: bool,
}

impl Sweep {
    /// Lets go of everything.
    pub(super) fn release(&mut self) {
        for node in mem::take(&mut self.few).into_iter().chain(mem::take(&mut self.many)) {
            drop(mem::take(&mut *node.membership()));
        }
    }
}

impl MemoryStore {
    /// One part; says whether there is more to do at once.
    pub(super) fn sweep_part(&self, now: Timestamp) -> bool {
        let mut sweep = lock(&self.sweep);
        let sweep = &mut *sweep;
        if sweep.few.is_empty() && !sweep.ending {
            self.find_expired(sweep, now);
        }
        if !sweep.few.is_empty() {
            self.leave_one_by_one(&mut sweep.few);
        } else if sweep.ending {
            self.end_round(sweep);
        }
        !sweep.few.is_empty() || sweep.ending
    }

    /// Takes the expired nodes of the next shard out of the table.
    fn find_expired(&self, sweep: &mut Sweep, now: Timestamp) {
        let is_expired = |node: &Node| !node.is_alive(now, self.limits.ttl);
        let expired: Vec<Arc<Node>> =
            lock(&self.nodes[sweep.shard]).values().filter(|node| is_expired(node)).cloned().collect();
        let gone = expired.into_iter().filter(|node| self.remove_node(node, is_expired)).collect::<Vec<_>>();
        if gone.len() <= FEW {
            sweep.few = gone;
        } else {
            gone.iter().for_each(|node| node.set_swept());
            sweep.many.extend(gone);
        }
        sweep.shard = (sweep.shard + 1) % SHARDS;
        sweep.ending = sweep.shard == 0 && !sweep.many.is_empty();
    }

    fn leave_one_by_one(&self, few: &mut Vec<Arc<Node>>) {
        let mut left = 0;
        while let Some(node) = few.last() {
            let entries = node.membership().take_some(LEAVES - left);
            left += entries.len();
            if entries.is_empty() {
                if left >= LEAVES {
                    return;
                }
                few.pop();
                continue;
            }
            entries.iter().for_each(|entry| self.leave_one(node, entry));
        }
    }

    /// Notes the swarms of the nodes that are gone, then looks for the nodes there, then frees what they had.
    fn end_round(&self, sweep: &mut Sweep) {
        let mut looked = 0;
        while let Some(node) = sweep.many.get(sweep.noted) {
            if looked >= LOOKS {
                return;
            }
            let membership = node.membership();
            looked += membership.len();
            sweep
                .swarms
                .extend(membership.iter().filter(|entry| entry.swarm.mark()).map(|entry| Arc::clone(&entry.swarm)));
            sweep.noted += 1;
        }
        while looked < LOOKS
            && let Some(swarm) = sweep.swarms.pop()
        {
            looked += self.purge(&swarm).max(1);
        }
        if !sweep.swarms.is_empty() || looked >= LOOKS {
            return;
        }
        for node in sweep.many.drain(sweep.many.len().saturating_sub(FREED)..) {
            drop(mem::take(&mut *node.membership()));
        }
        // Those that are left are noted.
        sweep.noted = sweep.many.len();
        sweep.ending = !sweep.many.is_empty();
        if !sweep.ending {
            *sweep = Sweep { shard: sweep.shard, ..Sweep::default() };
        }
    }

    /// Takes all nodes that are swept out of a swarm; gives the number of members that were looked at.
    fn purge(&self, swarm: &Arc<Swarm>) -> usize {
        // From here on it may be noted again: for nodes that go while this looks.
        swarm.unmark();
        let mut roll = swarm.roll();
        if swarm.is_over() {
            return 0;
        }
        let looked = roll.len();
        let gone = [roll.seeders.remove_swept(), roll.proxies.remove_swept()].concat();
        self.forget_entries(gone.len());
        let is_over = roll.len() == 0;
        if is_over {
            swarm.set_over();
        }
        // A membership is locked before a roll, never after it.
        drop(roll);
        for member in &gone {
            if let Some(pieces) = member.pieces(swarm) {
                swarm.subtract(&pieces);
            }
        }
        if is_over {
            self.forget(swarm);
        }
        looked
    }
}
