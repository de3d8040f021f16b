//! What can go wrong with an origin.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

/// Why the origin did not give what was asked. Cheap to clone, so that requests that were collapsed
/// into one can share the failure.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OriginError {
    /// The origin answered, and the answer is a refusal.
    #[error("registry {registry} answered {status}{}", excerpt(.body))]
    Status {
        /// The registry.
        registry: String,
        /// Its answer.
        status: StatusCode,
        /// Of its headers those that the runtime needs: `WWW-Authenticate`, `Retry-After`, `Content-Type`.
        headers: Box<HeaderMap>,
        /// Beginning of its body, at most 64 KiB.
        body: Bytes,
    },
    /// No connection, or it broke before there was an answer.
    #[error("registry {registry} cannot be reached: {reason}")]
    Unreachable {
        /// The registry.
        registry: String,
        /// What the connection failed with.
        reason: String,
    },
    /// Nothing came for too long.
    #[error("registry {registry} sent nothing for {after:?} while Eagle waited for {what}")]
    Timeout {
        /// The registry.
        registry: String,
        /// What was awaited.
        what: &'static str,
        /// How long.
        after: Duration,
    },
    /// The body ended early.
    #[error("registry {registry} broke off after {received} bytes{}: {reason}", of(.expected))]
    Truncated {
        /// The registry.
        registry: String,
        /// Bytes of the body that came.
        received: u64,
        /// Bytes that were announced, when they were.
        expected: Option<u64>,
        /// What the connection failed with.
        reason: String,
    },
    /// The answer is not one that the specification allows.
    #[error("registry {registry} answered something that Eagle cannot use: {problem}")]
    Protocol {
        /// The registry.
        registry: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl OriginError {
    /// The status of a refusal.
    pub const fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether another try may well succeed: the origin was not reached, broke off, or is overloaded.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Status { status, .. } => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Truncated { .. } => true,
            Self::Protocol { .. } => false,
        }
    }

    pub(crate) fn protocol(registry: &str, problem: impl Into<String>) -> Self {
        Self::Protocol { registry: registry.to_owned(), problem: problem.into() }
    }
}

/// The beginning of an error body on one line, for people.
fn excerpt(body: &Bytes) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(400)]);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    if text.trim().is_empty() { String::new() } else { format!(": {}", text.trim()) }
}

fn of(expected: &Option<u64>) -> String {
    expected.map_or_else(String::new, |bytes| format!(" of {bytes}"))
}
