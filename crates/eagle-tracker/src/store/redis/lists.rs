//! The lists for people and their tools, read from Redis.

use std::collections::{BTreeMap, HashMap};

use eagle_core::{Digest, NodeId, PeerInfo, Timestamp};
use redis::{AsyncCommands as _, RedisError, Value};

use super::{RedisPeers, field, geometry, malformed, member, number, seconds, ttl_micros, whole};
use crate::{
    api::{NodeActivity, PeerAt, PeerBlob, PeerSummary, SwarmMember, SwarmSummary},
    ownership::Ownership,
    store::progress,
};

/// A member of a swarm that is alive.
struct Living {
    joined: i64,
    last: i64,
    pieces: Ownership,
}

impl RedisPeers {
    pub(in crate::store) async fn swarms(
        &self,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<SwarmSummary>, RedisError> {
        let mut summaries = Vec::new();
        let mut after = after.map(|digest| digest.to_string());
        while summaries.len() < limit {
            let names = self.page("digests", after.as_deref(), limit).await?;
            let Some(last) = names.last().cloned() else { break };
            for name in names {
                let Ok(digest) = name.parse() else { continue };
                if summaries.len() < limit
                    && let Some((summary, _)) = self.members(digest, now).await?
                {
                    summaries.push(summary);
                }
            }
            after = Some(last);
        }
        Ok(summaries)
    }

    pub(in crate::store) async fn swarm(
        &self,
        digest: Digest,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Option<(SwarmSummary, Vec<SwarmMember>)>, RedisError> {
        let Some((summary, members)) = self.members(digest, now).await? else { return Ok(None) };
        let page: Vec<_> =
            members.into_iter().filter(|(id, _)| after.is_none_or(|after| id.as_str() > after)).take(limit).collect();
        if page.is_empty() {
            return Ok(Some((summary, Vec::new())));
        }
        let mut pipe = redis::pipe();
        for (id, _) in &page {
            pipe.hget(self.key("node", id), "info");
        }
        let infos: Vec<Option<String>> = pipe.query_async(&mut self.connection.clone()).await?;
        let members = page.into_iter().zip(infos).filter_map(|((_, member), info)| {
            let info: PeerInfo = serde_json::from_str(&info?).ok()?;
            Some(SwarmMember {
                peer: PeerAt::from(&info),
                pieces: member.pieces.count(summary.pieces),
                complete: member.pieces.is_complete(),
                owned: Some(member.pieces.to_piece_set()),
                age_seconds: seconds(self.shared(now), member.joined),
                last_announce_seconds: seconds(self.shared(now), member.last),
                senders: Vec::new(),
            })
        });
        let members = members.collect();
        Ok(Some((summary, members)))
    }

    /// A swarm and its living members; `None` when there is none.
    async fn members(
        &self,
        digest: Digest,
        now: Timestamp,
    ) -> Result<Option<(SwarmSummary, BTreeMap<String, Living>)>, RedisError> {
        let text = digest.to_string();
        let mut pipe = redis::pipe();
        pipe.hmget(self.key("swarm", &text), &["size", "length", "created"])
            .hgetall(self.key("seeders", &text))
            .hgetall(self.key("proxies", &text));
        type Members = HashMap<String, Vec<u8>>;
        pipe.zscore(self.table("changed"), &text);
        let (swarm, seeders, proxies, changed): (Vec<Option<Vec<u8>>>, Members, Members, Option<f64>) =
            pipe.query_async(&mut self.connection.clone()).await?;
        let [Some(size), Some(length), Some(created)] = swarm.as_slice() else { return Ok(None) };
        let Some(geometry) = geometry(size, length) else { return Err(malformed("a swarm")) };
        let ids: Vec<&String> = seeders.keys().chain(proxies.keys()).collect();
        if ids.is_empty() {
            return Ok(None);
        }
        let last: Vec<Option<f64>> =
            redis::cmd("ZMSCORE").arg(self.table("nodes")).arg(&ids).query_async(&mut self.connection.clone()).await?;
        let at = self.shared(now);
        let mut living = BTreeMap::new();
        let mut summary = SwarmSummary {
            digest,
            geometry,
            pieces: geometry.pieces(),
            peers: 0,
            seeders: 0,
            complete: 0,
            progress: 0.0,
            age_seconds: seconds(at, number(created).unwrap_or(at)),
            changed_seconds: seconds(at, changed.map_or(at, whole)),
            bytes_per_second: 0,
        };
        let mut owned = 0;
        for (id, last) in ids.into_iter().zip(last) {
            let Some(last) = last.map(whole).filter(|last| at.saturating_sub(*last) < ttl_micros(&self.limits)) else {
                continue;
            };
            let is_seeder = seeders.contains_key(id);
            let value = seeders.get(id).or_else(|| proxies.get(id));
            let Some((joined, pieces)) = value.and_then(|value| member(value, geometry)) else { continue };
            summary.peers += 1;
            summary.seeders += usize::from(is_seeder);
            summary.complete += usize::from(pieces.is_complete());
            owned += u64::from(pieces.count(summary.pieces));
            living.insert(id.clone(), Living { joined, last, pieces });
        }
        summary.progress = progress(owned, summary.peers, summary.pieces);
        Ok((summary.peers > 0).then_some((summary, living)))
    }

    pub(in crate::store) async fn active(&self, limit: usize, now: Timestamp) -> Result<Vec<SwarmSummary>, RedisError> {
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.table("changed")).arg(0).arg(limit.saturating_sub(1)).arg("REV");
        let names: Vec<String> = command.query_async(&mut self.connection.clone()).await?;
        let mut summaries = Vec::new();
        for digest in names.iter().filter_map(|name| name.parse().ok()) {
            if let Some((summary, _)) = self.members(digest, now).await? {
                summaries.push(summary);
            }
        }
        Ok(summaries)
    }

    pub(in crate::store) async fn node(
        &self,
        node: &NodeId,
        after: Option<Digest>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Option<(PeerSummary, Vec<PeerBlob>)>, RedisError> {
        let Some(summary) = self.summaries(&[node.to_string()], now).await?.pop() else { return Ok(None) };
        let owned: Vec<String> = self.connection.clone().smembers(self.key("blobs", node.as_str())).await?;
        let mut digests: Vec<Digest> = owned.iter().filter_map(|digest| digest.parse().ok()).collect();
        digests.retain(|digest| after.is_none_or(|after| *digest > after));
        digests.sort_unstable();
        digests.truncate(limit);
        let mut pipe = redis::pipe();
        for digest in &digests {
            let digest = digest.to_string();
            pipe.hmget(self.key("swarm", &digest), &["size", "length"])
                .hget(self.key("seeders", &digest), node.as_str())
                .hget(self.key("proxies", &digest), node.as_str());
        }
        let answer: Vec<Value> =
            if digests.is_empty() { Vec::new() } else { pipe.query_async(&mut self.connection.clone()).await? };
        let mut blobs = Vec::new();
        for (digest, fields) in digests.into_iter().zip(answer.chunks_exact(3)) {
            let swarm: Vec<Option<Vec<u8>>> = field(fields.first().cloned())?;
            let seeder: Option<Vec<u8>> = field(fields.get(1).cloned())?;
            let proxy: Option<Vec<u8>> = field(fields.get(2).cloned())?;
            let [Some(size), Some(length)] = swarm.as_slice() else { continue };
            let Some(geometry) = geometry(size, length) else { continue };
            let Some((_, pieces)) = seeder.or(proxy).and_then(|value| member(&value, geometry)) else { continue };
            let count = geometry.pieces();
            blobs.push(PeerBlob { digest, size: geometry.size(), pieces: count, owned: pieces.count(count) });
        }
        Ok(Some((summary, blobs)))
    }

    pub(in crate::store) async fn nodes(
        &self,
        after: Option<&str>,
        limit: usize,
        now: Timestamp,
    ) -> Result<Vec<PeerSummary>, RedisError> {
        let mut summaries = Vec::new();
        let mut after = after.map(str::to_owned);
        while summaries.len() < limit {
            let ids = self.page("ids", after.as_deref(), limit).await?;
            let Some(last) = ids.last().cloned() else { break };
            summaries.extend(self.summaries(&ids, now).await?);
            after = Some(last);
        }
        summaries.truncate(limit);
        Ok(summaries)
    }

    /// Those of these nodes that are alive.
    async fn summaries(&self, ids: &[String], now: Timestamp) -> Result<Vec<PeerSummary>, RedisError> {
        let at = self.shared(now);
        let mut pipe = redis::pipe();
        for id in ids {
            pipe.zscore(self.table("nodes"), id)
                .hmget(self.key("node", id), &["info", "joined"])
                .scard(self.key("blobs", id));
        }
        let answer: Vec<Value> = pipe.query_async(&mut self.connection.clone()).await?;
        let mut summaries = Vec::new();
        for fields in answer.chunks_exact(3) {
            let last: Option<f64> = field(fields.first().cloned())?;
            let node: Vec<Option<String>> = field(fields.get(1).cloned())?;
            let blobs: usize = field(fields.get(2).cloned())?;
            let alive = last.map(whole).filter(|last| at.saturating_sub(*last) < ttl_micros(&self.limits));
            let (Some(last), [Some(info), Some(joined)]) = (alive, node.as_slice()) else { continue };
            let Ok(info) = serde_json::from_str::<PeerInfo>(info) else { continue };
            summaries.push(PeerSummary {
                peer: PeerAt::from(&info),
                blobs,
                age_seconds: seconds(at, number(joined.as_bytes()).unwrap_or(at)),
                last_announce_seconds: seconds(at, last),
                activity: NodeActivity::default(),
            });
        }
        Ok(summaries)
    }

    /// A page of a table in which all have the same score, and so are in the order of their names.
    async fn page(&self, table: &str, after: Option<&str>, limit: usize) -> Result<Vec<String>, RedisError> {
        let from = after.map_or_else(|| "-".to_owned(), |after| format!("({after}"));
        let mut command = redis::cmd("ZRANGE");
        command.arg(self.table(table)).arg(from).arg("+").arg("BYLEX").arg("LIMIT").arg(0).arg(limit.max(1));
        command.query_async(&mut self.connection.clone()).await
    }
}
