//! Errors as people read them.

use std::error::Error;

/// An error and all that caused it, on one line: the text of many libraries' errors alone says little more than "client error".
pub fn with_sources(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
