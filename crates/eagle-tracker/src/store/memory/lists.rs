//! What people see of the store: lists in pages.

use std::{cmp::Reverse, sync::Arc};

use eagle_core::{Digest, NodeId, Timestamp};

use super::{MemoryStore, lock, node::Entry, page::Page, swarm::Swarm};
use crate::api::{PeerAt, PeerBlob, PeerSummary, SwarmMember, SwarmSummary};
#[cfg(doc)]
use crate::store::PeerStore;

impl MemoryStore {
    /// [`PeerStore::swarms`].
    pub(super) async fn list_swarms(&self, after: Option<Digest>, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        let (mut summaries, mut after) = (Vec::new(), after);
        loop {
            let mut page = Page::new(limit - summaries.len());
            for shard in &self.swarms {
                for swarm in lock(shard).iter() {
                    if after.is_none_or(|after| swarm.digest > after) && page.wants(&swarm.digest) {
                        page.insert(swarm.digest, Arc::clone(swarm));
                    }
                }
            }
            let page = page.into_values();
            let Some(last) = page.last() else { return summaries };
            after = Some(last.digest);
            summaries.append(&mut self.summaries(&page, now).await);
            if summaries.len() >= limit {
                return summaries;
            }
        }
    }

    /// [`PeerStore::swarm`].
    pub(super) fn list_members(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(SwarmSummary, Vec<SwarmMember>)> {
        let swarm = self.find_swarm(&digest)?;
        let summary = swarm.summary(now, self.limits.ttl);
        if summary.peers == 0 {
            return None;
        }
        let mut page = Page::new(limit);
        for node in swarm.roll().iter().filter(|node| node.is_alive(now, self.limits.ttl)) {
            if after.is_none_or(|after| node.id().as_str() > after) && page.wants(node.id()) {
                page.insert(node.id().clone(), Arc::clone(node));
            }
        }
        let pieces = swarm.geometry.pieces();
        let members = page.into_values().into_iter().filter_map(|node| {
            let membership = node.membership();
            let entry = membership.of(&swarm)?;
            Some(SwarmMember {
                peer: PeerAt::from(node.record().info()),
                pieces: entry.pieces.count(pieces),
                complete: entry.pieces.is_complete(),
                owned: Some(entry.pieces.to_piece_set()),
                age_seconds: (now - entry.joined).as_secs_f64(),
                last_announce_seconds: (now - node.last_announce()).as_secs_f64(),
                senders: Vec::new(),
            })
        });
        Some((summary, members.collect()))
    }

    /// [`PeerStore::active`].
    pub(super) async fn list_active(&self, limit: usize, now: Timestamp) -> Vec<SwarmSummary> {
        let mut page = Page::new(limit);
        for shard in &self.swarms {
            for swarm in lock(shard).iter() {
                // The digest only tells apart what changed at the same moment.
                let place = (Reverse(swarm.changed()), swarm.digest);
                if page.wants(&place) {
                    page.insert(place, Arc::clone(swarm));
                }
            }
        }
        self.summaries(&page.into_values(), now).await
    }

    /// [`PeerStore::node`].
    pub(super) fn list_blobs(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Option<(PeerSummary, Vec<PeerBlob>)> {
        let node = self.find_node(node)?;
        if !node.is_alive(now, self.limits.ttl) {
            return None;
        }
        let mut page = Page::new(limit);
        for Entry { swarm, pieces, .. } in node.membership().iter().filter(|entry| !entry.swarm.is_over()) {
            if after.is_none_or(|after| swarm.digest > after) && page.wants(&swarm.digest) {
                let (size, all) = (swarm.geometry.size(), swarm.geometry.pieces());
                let blob = PeerBlob { digest: swarm.digest, size, pieces: all, owned: pieces.count(all) };
                page.insert(swarm.digest, blob);
            }
        }
        Some((node.summary(now), page.into_values()))
    }

    /// [`PeerStore::nodes`].
    pub(super) fn list_nodes(&self, after: Option<&str>, limit: usize, now: Timestamp) -> Vec<PeerSummary> {
        let mut page = Page::new(limit);
        for shard in &self.nodes {
            for (id, node) in lock(shard).iter() {
                let asked_for = after.is_none_or(|after| id.as_str() > after) && page.wants(id);
                if asked_for && node.is_alive(now, self.limits.ttl) {
                    page.insert(id.clone(), Arc::clone(node));
                }
            }
        }
        page.into_values().iter().map(|node| node.summary(now)).collect()
    }

    /// Those of the swarms that have a live member.
    async fn summaries(&self, swarms: &[Arc<Swarm>], now: Timestamp) -> Vec<SwarmSummary> {
        let mut summaries = Vec::with_capacity(swarms.len());
        for swarm in swarms {
            let summary = swarm.summary(now, self.limits.ttl);
            if summary.peers > 0 {
                summaries.push(summary);
            }
            // A large swarm takes a millisecond; answers go in between.
            tokio::task::yield_now().await;
        }
        summaries
    }
}
