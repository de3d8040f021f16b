//! What nodes report of themselves, shared by the trackers of one Redis: each tells the others twice a second what it was told.
//!
//! A report is of use for seconds, and what is missing makes the order of peers a little worse. So nothing is kept for a Redis that is away:
//! meanwhile each tracker shows what it was told itself.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use eagle_core::Timestamp;
use redis::RedisError;
use tracing::{debug, warn};

use super::{
    location::{RedisLocation, RedisUrl},
    redis::{Aged, RedisReports},
};
use crate::{
    api::AnnounceRequest,
    config::{ConfigError, TrackerConfig},
    encoding::Encoding,
};

/// Between two exchanges: as often as a node reports at most.
pub(crate) const EXCHANGE_EVERY: Duration = Duration::from_millis(500);
/// Longest wait for an exchange.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of reports in one entry, about: Redis deals with one at a time, in less than a millisecond.
const ENTRY_BYTES: usize = 512 << 10;
/// Most entries of one exchange: some 10,000 reports a second. A tracker that is told more shares a part.
const ENTRIES: usize = 4;

/// Reports on their way to and from other trackers.
#[derive(Debug)]
pub(crate) struct SharedReports {
    redis: RedisReports,
    waiting: Mutex<Waiting>,
    /// Whether the last exchange failed because of what Redis answered, so that this is logged once.
    refused: AtomicBool,
}

/// Reports for the next exchange.
#[derive(Debug, Default)]
struct Waiting {
    entries: Vec<Vec<(Timestamp, Vec<u8>)>>,
    /// Bytes of the last of the entries.
    bytes: usize,
}

impl Waiting {
    /// Adds a report if there is room for it.
    fn add(&mut self, at: Timestamp, report: Vec<u8>) {
        let fits = !self.entries.is_empty() && self.bytes + report.len() <= ENTRY_BYTES;
        if !fits {
            if self.entries.len() >= ENTRIES {
                return;
            }
            self.entries.push(Vec::new());
            self.bytes = 0;
        }
        self.bytes += report.len();
        if let Some(entry) = self.entries.last_mut() {
            entry.push((at, report));
        }
    }
}

/// A report that another tracker was told, and when.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) at: Timestamp,
    report: Vec<u8>,
}

impl Told {
    /// The report, as an announce without blobs; `None` when it makes no sense.
    pub(crate) fn read(&self) -> Option<AnnounceRequest> {
        let request = Encoding::Protobuf.decode_request(&self.report);
        request.ok().filter(|request| request.blobs.is_empty())
    }
}

impl SharedReports {
    /// At the Redis of a configuration. Nothing is asked of Redis yet: it may come later.
    ///
    /// # Errors
    /// When a file that is needed to reach Redis cannot be used.
    pub(crate) fn new(url: &RedisUrl, config: &TrackerConfig) -> Result<Self, ConfigError> {
        let location = RedisLocation::of(url, config)?;
        let redis =
            RedisReports::new(&location).map_err(|error| ConfigError { key: "store", problem: error.to_string() })?;
        Ok(Self { redis, waiting: Mutex::default(), refused: AtomicBool::new(false) })
    }

    /// Keeps what an announce reports for the next exchange.
    pub(crate) fn add(&self, now: Timestamp, request: &AnnounceRequest) {
        let AnnounceRequest { node, stopped, load, flows, senders, .. } = request;
        let report = AnnounceRequest {
            stopped: *stopped,
            load: *load,
            flows: flows.clone(),
            senders: senders.clone(),
            ..AnnounceRequest::of(node.clone())
        };
        if let Ok(bytes) = Encoding::Protobuf.encode_request(&report) {
            self.waiting.lock().unwrap_or_else(PoisonError::into_inner).add(now, bytes.into());
        }
    }

    /// Tells the other trackers what this one was told since the last exchange, and gives what they were told.
    pub(crate) async fn exchange(&self, now: Timestamp) -> Vec<Told> {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        let aged = |entry: Vec<(Timestamp, Vec<u8>)>| {
            entry.into_iter().map(|(at, report)| Aged { age: now - at, report }).collect::<Vec<_>>()
        };
        let entries: Vec<Vec<Aged>> = waiting.entries.into_iter().map(aged).collect();
        let answer = tokio::time::timeout(CALL_TIMEOUT, self.redis.exchange(now - Timestamp(0), &entries)).await;
        match answer {
            Ok(Ok(reports)) => {
                self.refused.store(false, Ordering::Relaxed);
                // What came before this process started says nothing of now.
                let age = |aged: &Aged| u64::try_from(aged.age.as_nanos()).unwrap_or(u64::MAX);
                let told = |aged: Aged| {
                    now.0.checked_sub(age(&aged)).map(|at| Told { at: Timestamp(at), report: aged.report })
                };
                reports.into_iter().filter_map(told).collect()
            }
            Ok(Err(error)) => {
                self.failed(&error);
                Vec::new()
            }
            Err(_) => {
                debug!("Redis did not take part in an exchange of reports in time");
                Vec::new()
            }
        }
    }

    fn failed(&self, error: &RedisError) {
        // That Redis is away is said of the store.
        let away = error.is_io_error() || error.is_timeout() || error.is_connection_dropped();
        if away || self.refused.swap(true, Ordering::Relaxed) {
            debug!(%error, "reports of nodes are not shared");
        } else {
            warn!(%error, "Redis (tracker.store) does not take what nodes report; this tracker shows what it was told itself");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded() {
        let mut waiting = Waiting::default();
        for _ in 0..2 * ENTRIES * ENTRY_BYTES / 1_000 {
            waiting.add(Timestamp(0), vec![0; 1_000]);
        }
        assert_eq!(waiting.entries.len(), ENTRIES);
        for entry in &waiting.entries {
            let bytes: usize = entry.iter().map(|(_, report)| report.len()).sum();
            assert!(bytes <= ENTRY_BYTES && bytes > ENTRY_BYTES - 1_000);
        }
    }
}
