//! The limits of a host as its admin address shows and changes them.

use eagle_core::units::Rate;
use eagle_p2p::limits::Limiter;
use serde::{Deserialize, Serialize};

/// The limiters of a role, one for each direction.
#[derive(Debug, Clone)]
pub(crate) struct HostLimits {
    pub(crate) download: Limiter,
    pub(crate) upload: Limiter,
}

/// What they let pass, as `GET /limits` answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Limits {
    pub(crate) download: Rate,
    pub(crate) upload: Rate,
}

/// What `PUT /limits` takes: a direction that is not named stays as it is.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Change {
    download: Option<Rate>,
    upload: Option<Rate>,
}

impl Change {
    fn read(body: &[u8]) -> Result<Self, String> {
        let example = r#"write for instance {"download": "50MiB/s", "upload": "unlimited"}"#;
        let change: Self = serde_json::from_slice(body).map_err(|error| format!("{error}; {example}"))?;
        if change.download.is_none() && change.upload.is_none() {
            return Err(format!("neither download nor upload is given; {example}"));
        }
        Ok(change)
    }
}

/// The rates, down and up, that the body of `PUT /limits` asks for.
///
/// # Errors
/// What is wrong with the body, and what would be right.
pub fn read_limits(body: &[u8]) -> Result<(Option<Rate>, Option<Rate>), String> {
    Change::read(body).map(|change| (change.download, change.upload))
}

impl HostLimits {
    /// The present limits.
    pub(crate) fn present(&self) -> Limits {
        Limits { download: self.download.rate(), upload: self.upload.rate() }
    }

    /// Takes these rates, where there is one.
    pub(crate) fn set(&self, download: Option<Rate>, upload: Option<Rate>) {
        for (limiter, rate) in [(&self.download, download), (&self.upload, upload)] {
            if let Some(rate) = rate {
                limiter.set_rate(rate);
            }
        }
    }

    /// Changes the limits as the body of a request says: all of it, or nothing.
    ///
    /// # Errors
    /// What is wrong with the body, and what would be right.
    pub(crate) fn change(&self, body: &[u8]) -> Result<Limits, String> {
        let change = Change::read(body)?;
        self.set(change.download, change.upload);
        let limits = self.present();
        tracing::info!(download = %limits.download, upload = %limits.upload, "limits changed");
        Ok(limits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_whole_or_none() {
        let limits = HostLimits {
            download: Limiter::new(Rate::Limited(50 << 20)),
            upload: Limiter::new(Rate::Limited(50 << 20)),
        };
        let present = limits.present();
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"download": "fast"}"#,
            r#"{"download": 0}"#,
            r#"{"download": "10MB/s", "upload": "-1"}"#,
            r#"{"download": "10MB/s", "uplaod": "1MB/s"}"#,
        ] {
            let error = limits.change(bad.as_bytes()).unwrap_err();
            assert!(error.contains("write for instance"), "{bad}: {error}");
            assert_eq!(limits.present(), present, "{bad}");
        }
        let changed = limits.change(br#"{"upload": "unlimited"}"#).unwrap();
        assert_eq!(changed, Limits { download: Rate::Limited(50 << 20), upload: Rate::Unlimited });
        let changed = limits.change(br#"{"download": "8KiB/s", "upload": 1000}"#).unwrap();
        assert_eq!(changed, Limits { download: Rate::Limited(8192), upload: Rate::Limited(1000) });
        assert_eq!(serde_json::to_string(&changed).unwrap(), r#"{"download":"8KiB/s","upload":"1kB/s"}"#);
    }
}
