//! Sizes and rates as people write them: `100GiB`, `50MiB/s`, `unlimited`.

use std::{fmt, str::FromStr};

use bytesize::ByteSize;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes, written with a binary or decimal unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Size(pub u64);

/// Bytes per second, or no limit. A limit is never zero: nothing would ever move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rate {
    /// At most so many bytes a second, at least 1.
    Limited(u64),
    /// As fast as it goes.
    Unlimited,
}

/// A part of something, in whole hundredths of it, at most all of it. Written `95%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u8);

/// How much of a file system is left to others: written as a size, or as a part of the file system such as `5%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FreeSpace {
    /// So many bytes.
    Bytes(u64),
    /// That part of the file system's size.
    Part(Percent),
}

/// A text that is not a size or rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseUnitError {
    /// Not a size.
    #[error("{0:?} is not a size; write for instance 100GiB, 512MB or 4096")]
    Size(String),
    /// Not a rate.
    #[error("{0:?} is not a rate; write for instance 50MiB/s, 10MB/s or unlimited")]
    Rate(String),
    /// Not a part of something.
    #[error("{0:?} is not a part; write for instance 95%, from 0% to 100%")]
    Percent(String),
    /// Not an amount of free space.
    #[error("{0:?} is neither a size nor a part; write for instance 10GiB or 5%")]
    FreeSpace(String),
}

impl FromStr for Size {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // The crate takes signs and exponents of floats that mean nothing here.
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(ParseUnitError::Size(text.to_owned()));
        }
        text.parse::<ByteSize>().map(|size| Self(size.as_u64())).map_err(|_| ParseUnitError::Size(text.to_owned()))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exact where a unit divides it, so that what is shown can be read back.
        for (unit, name) in [
            (1u64 << 40, "TiB"),
            (1 << 30, "GiB"),
            (1 << 20, "MiB"),
            (1 << 10, "KiB"),
            (1_000_000_000, "GB"),
            (1_000_000, "MB"),
            (1_000, "kB"),
        ] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Rate {
    /// Bytes a second; `None` without a limit.
    pub const fn bytes_per_second(self) -> Option<u64> {
        match self {
            Self::Limited(rate) => Some(rate),
            Self::Unlimited => None,
        }
    }
}

impl FromStr for Rate {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::Unlimited);
        }
        let size = text.strip_suffix("/s").unwrap_or(text).trim_end();
        match size.parse::<Size>() {
            Ok(Size(rate)) if rate > 0 => Ok(Self::Limited(rate)),
            _ => Err(ParseUnitError::Rate(text.to_owned())),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limited(rate) => write!(f, "{}/s", Size(*rate)),
            Self::Unlimited => f.write_str("unlimited"),
        }
    }
}

impl Percent {
    /// All of it.
    pub const ALL: Self = Self(100);

    /// So many hundredths; `None` for more than all of it.
    pub const fn new(hundredths: u8) -> Option<Self> {
        if hundredths <= 100 { Some(Self(hundredths)) } else { None }
    }

    /// This part of `whole`, rounded down.
    pub fn of(self, whole: u64) -> u64 {
        let part = u128::from(whole) * u128::from(self.0) / 100;
        // Never more than `whole`.
        u64::try_from(part).unwrap_or(whole)
    }
}

impl FromStr for Percent {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_suffix('%').filter(|number| number.starts_with(|c: char| c.is_ascii_digit()));
        let part = number.and_then(|number| number.parse().ok()).and_then(Self::new);
        part.ok_or_else(|| ParseUnitError::Percent(text.to_owned()))
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

impl FreeSpace {
    /// Bytes of it on a file system of `total` bytes.
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Part(part) => part.of(total),
        }
    }
}

impl FromStr for FreeSpace {
    type Err = ParseUnitError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = |_| ParseUnitError::FreeSpace(text.to_owned());
        if text.ends_with('%') {
            return text.parse().map(Self::Part).map_err(error);
        }
        text.parse().map(|Size(bytes)| Self::Bytes(bytes)).map_err(error)
    }
}

impl fmt::Display for FreeSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => Size(*bytes).fmt(f),
            Self::Part(part) => part.fmt(f),
        }
    }
}

/// What a unit may be written as in a configuration file.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match Written::deserialize(deserializer)? {
                    Written::Number(number) => number.to_string(),
                    Written::Text(text) => text,
                };
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

as_text!(Size);
as_text!(Rate);
as_text!(Percent);
as_text!(FreeSpace);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!("100GiB".parse(), Ok(Size(100 << 30)));
        assert_eq!("10MB".parse(), Ok(Size(10_000_000)));
        assert_eq!("4096".parse(), Ok(Size(4096)));
        assert_eq!("50MiB/s".parse(), Ok(Rate::Limited(50 << 20)));
        assert_eq!("10MB/s".parse(), Ok(Rate::Limited(10_000_000)));
        assert_eq!("unlimited".parse(), Ok(Rate::Unlimited));
        for bad in ["", "0", "-1MB/s", "fast", "NaN", "inf", "1 parsec/s"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn parts_are_of_something() {
        let part = |text: &str| text.parse::<Percent>().unwrap();
        assert_eq!((part("0%").of(u64::MAX), part("100%").of(u64::MAX)), (0, u64::MAX));
        assert_eq!((part("95%").of(200), part("95%").to_string()), (190, "95%".to_owned()));
        assert_eq!("5%".parse::<FreeSpace>().unwrap().bytes(1000), 50);
        assert_eq!("10GiB".parse::<FreeSpace>().unwrap().bytes(1000), 10 << 30);
        assert_eq!("10GiB".parse::<FreeSpace>().unwrap().to_string(), "10GiB");
        for bad in ["", "%", "101%", "-1%", "+5%", "5", "1.5%", "half"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad}");
        }
        for bad in ["", "101%", "lots", "-1"] {
            assert!(bad.parse::<FreeSpace>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn shows_what_it_reads(bytes in 1u64..(1 << 50)) {
            prop_assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
            prop_assert_eq!(Rate::Limited(bytes).to_string().parse(), Ok(Rate::Limited(bytes)));
        }
    }
}
