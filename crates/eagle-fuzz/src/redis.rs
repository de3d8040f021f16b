//! What a store that trackers share is named by, and what comes out of it: others may have written there.

use eagle_core::PeerInfo;
use eagle_tracker::{
    parsers,
    store::{StoreLocation, StoreLocationError},
};

/// The address of the store on the first line; on the next two the size and the piece length of a swarm; then the record of a member, or what a
/// node says of itself.
pub(crate) fn run(bytes: &[u8]) {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (address, size, length, value) = (part(), part(), part(), part());
    if let Ok(text) = std::str::from_utf8(address) {
        location(text);
    }
    if let Some((geometry, count, written)) = parsers::redis_member(size, length, value) {
        assert!(count <= geometry.pieces());
        assert_eq!(parsers::redis_member(size, length, &written), Some((geometry, count, written)));
    }
    if let Ok(info) = serde_json::from_slice::<PeerInfo>(value) {
        let written = serde_json::to_vec(&info).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<PeerInfo>(&written).ok(), Some(info));
    }
}

fn location(text: &str) {
    match text.parse::<StoreLocation>() {
        Ok(location) => {
            let shown = location.to_string();
            assert_eq!(shown.parse::<StoreLocation>().as_ref(), Ok(&location), "{text:?} is shown as {shown:?}");
            assert!(!shown.contains(char::is_control), "{shown:?}");
        }
        // Passwords are among what is refused, so nothing of the text is shown.
        Err(problem) => {
            let known = [StoreLocationError::Scheme, StoreLocationError::Password, StoreLocationError::Form];
            assert!(known.iter().any(|known| known.to_string() == problem.to_string()), "{problem}");
        }
    }
}
