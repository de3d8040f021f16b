//! What clients of the tracker's lists send, as functions of it alone: for the fuzz targets (`eagle-fuzz`), which have no connection
//! to receive it on.

use crate::server;

/// After which entry a page begins and how many it has at most, by the query of a request.
///
/// # Errors
/// Where it asks for no page.
pub fn page(query: &str) -> Result<(Option<String>, usize), String> {
    server::page(query)
}
