//! What nodes report, on its way from tracker to tracker: a stream in Redis, to which each tracker adds what it was told, and from which it
//! reads what the others were told.
//!
//! An entry has the tracker that wrote it, and pairs of an age and a report: milliseconds from when the report came to when it was
//! written, and an announce without blobs in protobuf. With the time of the entry, which is that of Redis' clock, a reader knows when each came,
//! whatever the clocks of trackers say.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::{Pipeline, RedisError, Value, aio::ConnectionManager};

use super::{connection, malformed};
use crate::store::location::RedisLocation;

/// Entries that Redis keeps: those of half a minute where three trackers write two a second. The oldest go first.
const MOST_ENTRIES: usize = 200;
/// How long Redis keeps them when nobody writes.
const KEPT: Duration = Duration::from_secs(60);
/// Entries read at a time: more than trackers write between two looks. What is left is read with the next look.
const READ: usize = 32;

/// A report and how long ago it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::store) struct Aged {
    pub(in crate::store) age: Duration,
    pub(in crate::store) report: Vec<u8>,
}

/// A place in the stream: milliseconds of Redis' clock, and a number among those of the same.
type Place = (u64, u64);

/// The stream. Every call fails when Redis does not answer.
pub(in crate::store) struct RedisReports {
    connection: ConnectionManager,
    key: String,
    /// Tells the entries of this tracker from those of others.
    own: String,
    /// What was read last; `None` before the first look.
    read: Mutex<Option<Place>>,
}

impl std::fmt::Debug for RedisReports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisReports").field("key", &self.key).finish_non_exhaustive()
    }
}

impl RedisReports {
    /// Prepares the connection; nothing is asked of Redis yet.
    ///
    /// # Errors
    /// When the certificates of the location cannot be used.
    pub(in crate::store) fn new(location: &RedisLocation) -> Result<Self, RedisError> {
        Ok(Self {
            connection: connection::open(location)?,
            key: format!("{}reports", location.prefix()),
            own: format!("{:032x}", rand::random::<u128>()),
            read: Mutex::default(),
        })
    }

    /// Adds an entry for each of the lists of reports, and gives what other trackers have added since the last call, in one exchange.
    /// The first call, so long after the start of this tracker, gives nothing, and the second one what was added since the start.
    pub(in crate::store) async fn exchange(
        &self,
        since_start: Duration,
        entries: &[Vec<Aged>],
    ) -> Result<Vec<Aged>, RedisError> {
        let read = *self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let mut pipe = redis::pipe();
        pipe.cmd("TIME");
        for entry in entries {
            self.add(&mut pipe, entry);
        }
        if let Some((milliseconds, number)) = read {
            let after = format!("{milliseconds}-{number}");
            pipe.cmd("XREAD").arg("COUNT").arg(READ).arg("STREAMS").arg(&self.key).arg(after);
        }
        if !entries.is_empty() {
            pipe.cmd("PEXPIRE").arg(&self.key).arg(millis(KEPT)).ignore();
        }
        let answers: Vec<Value> = pipe.query_async(&mut self.connection.clone()).await?;
        let mut answers = answers.into_iter();
        let now = answers.next().and_then(time).ok_or_else(|| malformed("the time"))?;
        // The places of the entries that were written.
        let written: Vec<Place> = answers.by_ref().take(entries.len()).filter_map(|id| place(&bytes(id)?)).collect();
        let Some(mut last) = read else {
            *self.read.lock().unwrap_or_else(PoisonError::into_inner) =
                Some((now.saturating_sub(millis(since_start)), 0));
            return Ok(Vec::new());
        };
        let mut reports = Vec::new();
        for (place, fields) in answers.next().map(stream).unwrap_or_default() {
            last = last.max(place);
            self.take(Duration::from_millis(now.saturating_sub(place.0)), fields, &mut reports);
        }
        // A place before what was read: Redis lost the stream, and all of this one is new.
        if written.iter().any(|place| *place < last) {
            last = (0, 0);
        }
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        Ok(reports)
    }

    fn add(&self, pipe: &mut Pipeline, entry: &[Aged]) {
        let command = pipe.cmd("XADD").arg(&self.key).arg("MAXLEN").arg(MOST_ENTRIES).arg("*").arg("by").arg(&self.own);
        for Aged { age, report } in entry {
            command.arg(millis(*age)).arg(report.as_slice());
        }
    }

    /// Takes the reports of an entry that was written so long ago by another tracker. What makes no sense is left out.
    fn take(&self, ago: Duration, fields: Vec<Vec<u8>>, reports: &mut Vec<Aged>) {
        let mut fields = fields.into_iter();
        if fields.next().as_deref() != Some(b"by") || fields.next().is_none_or(|by| by == self.own.as_bytes()) {
            return;
        }
        while let (Some(age), Some(report)) = (fields.next(), fields.next()) {
            if let Some(age) = number(&age) {
                reports.push(Aged { age: ago.saturating_add(Duration::from_millis(age)), report });
            }
        }
    }
}

/// The entries of an answer to `XREAD` of one stream.
fn stream(answer: Value) -> Vec<(Place, Vec<Vec<u8>>)> {
    let Some([_, entries]) = array(answer).into_iter().next().and_then(pair) else { return Vec::new() };
    let entries = array(entries).into_iter().filter_map(|entry| {
        let [id, fields] = pair(entry)?;
        Some((place(&bytes(id)?)?, array(fields).into_iter().filter_map(bytes).collect()))
    });
    entries.collect()
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

fn pair(value: Value) -> Option<[Value; 2]> {
    array(value).try_into().ok()
}

fn bytes(value: Value) -> Option<Vec<u8>> {
    match value {
        Value::BulkString(bytes) => Some(bytes),
        _ => None,
    }
}

/// Milliseconds of an answer to `TIME`, which has seconds and microseconds.
fn time(answer: Value) -> Option<u64> {
    let [seconds, micros] = pair(answer)?;
    let (seconds, micros) = (number(&bytes(seconds)?)?, number(&bytes(micros)?)?);
    Some(seconds.saturating_mul(1_000).saturating_add(micros / 1_000))
}

fn place(id: &[u8]) -> Option<Place> {
    let (milliseconds, rest) = id.split_at_checked(id.iter().position(|byte| *byte == b'-')?)?;
    Some((number(milliseconds)?, number(&rest[1..])?))
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn what_redis_answers_is_read_and_garbage_left_out() {
        let fields = ["by", "a", "7", "report"].map(text).to_vec();
        let good = Value::Array(vec![text("12-3"), Value::Array(fields)]);
        for bad in [
            Value::Nil,
            text("12-3"),
            Value::Array(vec![text("12-3")]),
            Value::Array(vec![text("nonsense"), Value::Array(Vec::new())]),
            Value::Array(vec![Value::Int(3), Value::Array(Vec::new())]),
        ] {
            let entries = Value::Array(vec![bad, good.clone()]);
            let read = stream(Value::Array(vec![Value::Array(vec![text("key"), entries])]));
            assert_eq!(read.len(), 1);
            assert_eq!((read[0].0, read[0].1.len()), ((12, 3), 4));
        }
        for none in [Value::Nil, Value::Okay, Value::Array(Vec::new()), Value::Array(vec![text("key")])] {
            assert_eq!(stream(none), []);
        }
        assert_eq!(time(Value::Array(vec![text("12"), text("345678")])), Some(12_345));
        for bad in [Value::Nil, Value::Array(vec![text("12")]), Value::Array(vec![text("-1"), text("1")])] {
            assert_eq!(time(bad), None);
        }
    }
}
