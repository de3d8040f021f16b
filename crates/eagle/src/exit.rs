//! How the process ends: one line on standard error and a code that scripts can tell apart.

use std::{fmt, process::ExitCode};

/// Why a command did not succeed, by exit code. Where a convention exists it is followed: sysexits.h for the first two,
/// 128 plus the signal's number for the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The command line makes no sense (`EX_USAGE`).
    Usage,
    /// The configuration makes no sense (`EX_CONFIG`).
    Config,
    /// It was understood and did not work.
    Failed,
    /// The person at the terminal ended it.
    Interrupted,
}

impl Failure {
    pub(crate) const fn code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 64,
            Self::Config => 78,
            Self::Interrupted => 130,
        }
    }
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        Self::from(failure.code())
    }
}

/// An error with the exit code that it asks for.
#[derive(Debug)]
pub(crate) struct Exit {
    pub(crate) failure: Failure,
    pub(crate) message: String,
}

impl Exit {
    /// An error in the configuration.
    pub(crate) fn config(message: impl fmt::Display) -> Self {
        Self { failure: Failure::Config, message: message.to_string() }
    }

    /// An error in the command line.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self { failure: Failure::Usage, message: message.to_string() }
    }

    /// It was understood and did not work, for these reasons.
    pub(crate) fn failed(message: impl fmt::Display) -> Self {
        Self { failure: Failure::Failed, message: message.to_string() }
    }

    /// Ended by a signal; nothing is wrong, so nothing is said.
    pub(crate) fn interrupted() -> Self {
        Self { failure: Failure::Interrupted, message: String::new() }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Exit {}

/// The code for an error of a command; prints what there is to say.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let failure = error.downcast_ref::<Exit>().map_or(Failure::Failed, |exit| exit.failure);
    // The chain of causes on one line, without those that the error before them already tells.
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    if !message.is_empty() {
        for line in message.lines() {
            eprintln!("eagle: {line}");
        }
    }
    failure.into()
}
