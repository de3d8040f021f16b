//! When a request is tried again: after failures that may pass, later each time, and not before the
//! server asks for it.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};

use crate::headers::digits;

/// No try begins later than this after the first: proxies and runtimes wait 20 to 30 s for an answer,
/// and the last try needs some of that.
pub(crate) const WINDOW: Duration = Duration::from_secs(10);
/// Delay before the second try; each later one is three times as long.
const FIRST_DELAY: Duration = Duration::from_millis(100);
/// Longest delay that is believed. Docker Hub's limits are over six hours; asking again earlier costs
/// one refusal.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Whether a status says that the same request may well succeed later.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}

/// The delay before try number `next` (the second is 1), between half and all of its step, so that
/// those who failed together do not come back together.
pub fn backoff(next: u32) -> Duration {
    let step = FIRST_DELAY * 3u32.saturating_pow(next.saturating_sub(1)).min(1000);
    step.mul_f64(rand::random_range(0.5..=1.0))
}

/// The delay that a server asks for with `Retry-After`, in seconds or as a date (RFC 9110, 10.2.3), at
/// most `LONGEST_PAUSE`; none when there is no such header or it makes no sense.
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let delay = match digits(value) {
        Some(seconds) => Duration::from_secs(seconds),
        // More digits than a number has are a long time too.
        None if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) => LONGEST_PAUSE,
        None => {
            let date = httpdate::parse_http_date(value).ok()?;
            date.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(delay.min(LONGEST_PAUSE))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn asked(value: &[u8]) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert(header::RETRY_AFTER, HeaderValue::from_bytes(value).unwrap());
        retry_after(&headers)
    }

    #[test]
    fn reads_what_servers_ask_for() {
        assert_eq!(asked(b"7"), Some(Duration::from_secs(7)));
        assert_eq!(asked(b" 0 "), Some(Duration::ZERO));
        assert_eq!(asked(b"999999"), Some(LONGEST_PAUSE));
        assert_eq!(asked(b"99999999999999999999999999"), Some(LONGEST_PAUSE));
        assert_eq!(asked(b"Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        let asked_for = asked(soon.as_bytes()).unwrap();
        assert!((50..=60).contains(&asked_for.as_secs()), "{asked_for:?}");
        for bad in [&b""[..], b"-1", b"1.5", b"soon", b"+5", b"1e9", b"\xff\xfe", b"Sun, 99 Nov 9999 99:99:99 GMT"] {
            assert_eq!(asked(bad), None, "{bad:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn delays_grow_and_differ() {
        for next in 1..5 {
            let step = FIRST_DELAY * 3u32.pow(next - 1);
            let delays: Vec<Duration> = (0..50).map(|_| backoff(next)).collect();
            assert!(delays.iter().all(|delay| (step / 2..=step).contains(delay)), "{delays:?}");
            assert!(delays.iter().any(|delay| *delay != delays[0]));
        }
        assert!(backoff(u32::MAX) <= FIRST_DELAY * 1000);
    }
}
