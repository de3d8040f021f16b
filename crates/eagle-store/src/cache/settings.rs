//! How much a cache may hold, and how it looks after what it has.

use eagle_core::units::{FreeSpace, Percent, Rate};

/// How much a cache may hold, and how it looks after what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSettings {
    /// Bytes that the blobs never exceed, those that are being written included.
    pub limit: u64,
    /// The part of `limit` above which the least recently used blobs go in the background, so that a newcomer rarely waits.
    pub high: Percent,
    /// The part of `limit` that is left then, or a little less, as blobs go whole.
    pub low: Percent,
    /// What is left free on the file system of the blobs.
    pub min_free: FreeSpace,
    /// How fast the blobs are read again to find those that were damaged; `None`: they are not.
    pub scrub_rate: Option<Rate>,
}

impl CacheSettings {
    /// A limit and nothing else: nothing goes before it is reached, no space is kept free, nothing is read again.
    pub const fn limited(limit: u64) -> Self {
        let all = Percent::ALL;
        Self { limit, high: all, low: all, min_free: FreeSpace::Bytes(0), scrub_rate: None }
    }

    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// The configuration key of what cannot work, and why.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.low > self.high {
            return Err(("cache_low", format!("{} is above cache_high, which is {}", self.low, self.high)));
        }
        if self.high.of(100) == 0 {
            return Err(("cache_high", "nothing would be kept; give for instance 95%".to_owned()));
        }
        if self.min_free == FreeSpace::Part(Percent::ALL) {
            return Err(("min_free", "nothing could be kept; give for instance 5%".to_owned()));
        }
        Ok(())
    }
}

/// What proxies and seeders do unless they are told otherwise.
pub mod defaults {
    use super::{FreeSpace, Percent, Rate};

    /// A twentieth of the limit as a reserve: 5 GiB of 100, more than most images.
    pub const HIGH: Percent = Percent::new(95).expect("not above 100");
    /// A tenth is free after a clearing, so that one is rare.
    pub const LOW: Percent = Percent::new(90).expect("not above 100");
    /// File systems become slow when they are fuller, and root's reserve on ext4 is as much.
    pub const MIN_FREE: FreeSpace = FreeSpace::Part(Percent::new(5).expect("not above 100"));
    /// A hundredth of a slow disk's rate and half a percent of a core; 100 GiB in three hours.
    pub const SCRUB_RATE: Rate = Rate::Limited(10 << 20);
}

impl From<u64> for CacheSettings {
    fn from(limit: u64) -> Self {
        Self::limited(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_have_an_order() {
        let percent = |hundredths| Percent::new(hundredths).unwrap();
        let good = CacheSettings { high: percent(95), low: percent(95), ..CacheSettings::limited(1) };
        assert_eq!(good.check(), Ok(()));
        assert_eq!(CacheSettings::from(7).check(), Ok(()));
        for (bad, key) in [
            (CacheSettings { high: percent(50), low: percent(51), ..good }, "cache_low"),
            (CacheSettings { high: percent(0), low: percent(0), ..good }, "cache_high"),
            (CacheSettings { min_free: FreeSpace::Part(Percent::ALL), ..good }, "min_free"),
        ] {
            assert_eq!(bad.check().unwrap_err().0, key);
        }
    }
}
