//! Known answers, bounded by bytes, the least recently used going first.

use std::{
    mem::size_of,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use eagle_core::Digest;
use http::HeaderMap;
use lru::LruCache;

use super::{Answer, Key};

/// Most bytes of answers: tens of thousands of manifests of common size (1 to 3 KiB).
const MAX_BYTES: usize = 64 << 20;

#[derive(Debug)]
pub(super) struct Answers(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    answers: LruCache<Key, Arc<Answer>>,
    bytes: usize,
}

impl Answers {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Kept { answers: LruCache::unbounded(), bytes: 0 }))
    }

    pub(super) fn get(&self, key: &Key) -> Option<Arc<Answer>> {
        self.lock().answers.get(key).cloned()
    }

    pub(super) fn remove(&self, key: &Key) -> Option<Arc<Answer>> {
        let mut kept = self.lock();
        let answer = kept.answers.pop(key)?;
        kept.bytes -= weight(&answer);
        Some(answer)
    }

    /// Keeps an answer. That to a `HEAD` only confirms a kept body of the same digest.
    pub(super) fn put(&self, key: Key, answer: &Arc<Answer>) {
        let mut kept = self.lock();
        let answer = match kept.answers.peek(&key) {
            Some(known) if answer.body.is_none() && known.body.is_some() && same_content(known, answer) => {
                Arc::new(known.confirmed(answer.received))
            }
            _ => Arc::clone(answer),
        };
        kept.bytes += weight(&answer);
        if let Some(old) = kept.answers.put(key, answer) {
            kept.bytes -= weight(&old);
        }
        while kept.bytes > MAX_BYTES {
            let Some((_, old)) = kept.answers.pop_lru() else { break };
            kept.bytes -= weight(&old);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // A panic between two statements above could only leave the count of bytes off.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same_content(a: &Answer, b: &Answer) -> bool {
    let digest = |answer: &Answer| answer.headers.get(eagle_registry::headers::DOCKER_CONTENT_DIGEST).cloned();
    digest(a).is_some() && digest(a) == digest(b)
}

/// About what an answer takes. One that is kept under two keys counts twice.
fn weight(answer: &Answer) -> usize {
    let headers: usize = answer.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let digests = answer.digests.len() * size_of::<Digest>();
    size_of::<Answer>() + size_of::<HeaderMap>() + headers + digests + answer.body.as_ref().map_or(0, Bytes::len)
}

#[cfg(test)]
mod tests {
    use http::{HeaderValue, StatusCode};
    use tokio::time::Instant;

    use super::*;

    fn answer(body: Option<usize>, digest: &'static str) -> Arc<Answer> {
        let mut headers = HeaderMap::new();
        headers.insert(eagle_registry::headers::DOCKER_CONTENT_DIGEST, HeaderValue::from_static(digest));
        Arc::new(Answer {
            status: StatusCode::OK,
            headers,
            body: body.map(|length| vec![0; length].into()),
            received: Instant::now(),
            digests: Vec::new(),
        })
    }

    #[test]
    fn bytes_are_bounded_and_counted_back() {
        let answers = Answers::new();
        let key = |number: usize| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            key
        };
        for round in 0..3 {
            for number in 0..40 {
                answers.put(key(number), &answer(Some((4 << 20) - round), "sha256:x"));
                assert!(answers.lock().bytes <= MAX_BYTES);
            }
        }
        let kept = answers.lock();
        assert!((14..=16).contains(&kept.answers.len()));
        assert_eq!(kept.bytes, kept.answers.iter().map(|(_, answer)| weight(answer)).sum::<usize>());
    }

    #[test]
    fn a_head_confirms_a_body_of_the_same_digest_only() {
        let answers = Answers::new();
        answers.put([1; 32], &answer(Some(5), "sha256:x"));
        let head = answer(None, "sha256:x");
        answers.put([1; 32], &head);
        let kept = answers.get(&[1; 32]).unwrap();
        assert_eq!((kept.body.as_ref().map(Bytes::len), kept.received), (Some(5), head.received));
        answers.put([1; 32], &answer(None, "sha256:y"));
        assert!(answers.get(&[1; 32]).unwrap().body.is_none());
    }
}
