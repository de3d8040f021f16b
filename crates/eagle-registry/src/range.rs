//! Byte ranges of HTTP (RFC 9110, 14): what runtimes ask for and what origins answer.

use std::{fmt, ops::Range, str::FromStr};

use crate::headers::digits;

/// A `Range` header lies wholly past the end of the content: answer 416.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the range lies outside the content")]
pub struct Unsatisfiable;

/// The part of a content of `size` bytes that a `Range` header asks for.
///
/// `None` means the whole content: the header is absent in effect, as RFC 9110 asks for units other
/// than bytes and for what is not a range; several ranges at once are answered whole too, which the
/// RFC allows and runtimes never send.
///
/// # Errors
/// When no byte of the content is in the range.
pub fn requested(header: &str, size: u64) -> Result<Option<Range<u64>>, Unsatisfiable> {
    let Some((unit, set)) = header.split_once('=') else { return Ok(None) };
    let Some((first, last)) = set.trim().split_once('-') else { return Ok(None) };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ok(None);
    }
    match (first, digits(first), last, digits(last)) {
        // The last bytes.
        ("", _, _, Some(length)) => {
            if length == 0 || size == 0 {
                return Err(Unsatisfiable);
            }
            Ok(Some(size.saturating_sub(length)..size))
        }
        (_, Some(start), "", _) if start < size => Ok(Some(start..size)),
        (_, Some(start), _, Some(last)) if start <= last && start < size => {
            Ok(Some(start..last.saturating_add(1).min(size)))
        }
        (_, Some(_), "", _) => Err(Unsatisfiable),
        (_, Some(start), _, Some(last)) if start <= last => Err(Unsatisfiable),
        _ => Ok(None),
    }
}

/// A `Content-Range` header of an answer 206: which bytes of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRange {
    /// First byte.
    pub start: u64,
    /// One past the last byte; more than `start`.
    pub end: u64,
    /// Size of the whole content; `None` when the server does not know it.
    pub total: Option<u64>,
}

/// A text that is not a `Content-Range` of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a Content-Range of the form \"bytes FIRST-LAST/TOTAL\"")]
pub struct ParseContentRangeError;

impl FromStr for ContentRange {
    type Err = ParseContentRangeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (unit, rest) = text.trim().split_once(' ')?;
            if !unit.eq_ignore_ascii_case("bytes") {
                return None;
            }
            let (range, total) = rest.trim().split_once('/')?;
            let (first, last) = range.split_once('-')?;
            let (start, end) = (digits(first)?, digits(last)?.checked_add(1)?);
            let total = if total == "*" { None } else { Some(digits(total)?) };
            (start < end && total.is_none_or(|total| end <= total)).then_some(Self { start, end, total })
        };
        parse().ok_or(ParseContentRangeError)
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "bytes {}-{}/", self.start, self.end - 1)?;
        match self.total {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_runtimes_send() {
        assert_eq!(requested("bytes=0-", 10), Ok(Some(0..10)));
        assert_eq!(requested("bytes=3-4", 10), Ok(Some(3..5)));
        assert_eq!(requested("bytes=3-400", 10), Ok(Some(3..10)));
        assert_eq!(requested("bytes=-4", 10), Ok(Some(6..10)));
        assert_eq!(requested("bytes=-40", 10), Ok(Some(0..10)));
        for whole in
            ["bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=4-3", "lines=1-2", "bytes=0-1,3-4", "bytes=+1-2"]
        {
            assert_eq!(requested(whole, 10), Ok(None), "{whole}");
        }
        for outside in ["bytes=10-", "bytes=10-11", "bytes=-0"] {
            assert_eq!(requested(outside, 10), Err(Unsatisfiable), "{outside}");
        }
        assert_eq!(requested("bytes=0-", 0), Err(Unsatisfiable));
    }

    #[test]
    fn refuses_content_ranges_that_lie() {
        for bad in [
            "",
            "bytes",
            "bytes */10",
            "bytes 5-4/10",
            "bytes 0-10/10",
            "bytes 0-/10",
            "bytes 0-18446744073709551615/*",
        ] {
            assert!(bad.parse::<ContentRange>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_range_lies_within(header in "(bytes)?=?[0-9]{0,4}-?[0-9]{0,22}", size in 0u64..5000) {
            if let Ok(Some(range)) = requested(&header, size) {
                prop_assert!(range.start < range.end && range.end <= size);
            }
        }

        #[test]
        fn content_ranges_read_what_they_show(start in 0u64..u64::MAX - 1, length in 1u64.., total: Option<u64>) {
            let end = start.saturating_add(length);
            let range = ContentRange { start, end, total: total.map(|total| total.max(end)) };
            prop_assert_eq!(range.to_string().parse(), Ok(range));
        }

        #[test]
        fn never_panics(text in ".{0,80}", size: u64) {
            let _ = (requested(&text, size), text.parse::<ContentRange>());
        }
    }
}
