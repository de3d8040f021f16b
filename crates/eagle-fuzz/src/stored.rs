//! What is on disk and in buckets: damage, files of another version, objects that somebody else wrote.

use eagle_core::{Digest, Geometry, Metainfo};
use eagle_store::parsers;

/// The first byte chooses the kind; what follows is a file, and then the body of a file whose hash is right, since no fuzzer
/// finds a hash.
pub(crate) fn run(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else { return };
    read(rest);
    let magic = parsers::MAGICS[usize::from(*kind) % parsers::MAGICS.len()];
    let file = [&magic[..], Digest::of(rest).as_bytes(), rest].concat();
    read(&file);
    if let Ok(key) = std::str::from_utf8(rest)
        && let Some(digest) = parsers::key(key)
    {
        let hex = digest.hex();
        assert!(key.contains(&hex) && key.starts_with("p/blobs/"), "{key} is no part of {digest}");
    }
    if let Ok(key) = std::str::from_utf8(rest)
        && let Some(number) = parsers::lease(key)
    {
        assert!(key.trim_end_matches('/').ends_with(&number.to_string()), "{key} is no lease {number}");
    }
    // Files of lists are plain JSON.
    for written in [eagle_seeder::parsers::images(rest), eagle_seeder::parsers::job(rest)].into_iter().flatten() {
        let again = eagle_seeder::parsers::images(&written).or_else(|| eagle_seeder::parsers::job(&written));
        assert_eq!(again.as_deref(), Some(&written[..]));
    }
}

fn read(file: &[u8]) {
    if let Some(metainfo) = parsers::metainfo(file) {
        assert!(metainfo.hashes.len() <= metainfo.geometry.pieces() as usize);
        for piece in metainfo.geometry.all().take(4) {
            let _ = metainfo.check(piece).map(|check| check.matches(&[0; 64]));
        }
        let _: bool = Metainfo::leads_to_digest(&metainfo);
    }
    for (size, length) in [(0, 1 << 16), (1, 1 << 16), (9 << 16, 1 << 16), (65 << 20, 1 << 20)] {
        let Ok(geometry) = Geometry::new(size, length) else { continue };
        if let Some(pieces) = parsers::pieces(file, geometry) {
            assert_eq!(pieces.len(), geometry.pieces());
            assert_eq!(pieces.iter().count() as u64, u64::from(pieces.count()));
            assert!(pieces.iter().all(|piece| geometry.piece(piece.0).is_some()));
        }
    }
    if let Some(written) = parsers::record(file) {
        assert_eq!(parsers::record(&written).as_ref(), Some(&written));
    }
    let _ = (parsers::marker(file), parsers::scrub_place(file));
}
