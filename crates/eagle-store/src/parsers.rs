//! What small files and objects say, as functions of their bytes alone: for the fuzz targets (`eagle-fuzz`), which have neither
//! disk nor bucket.

use eagle_core::{Bitfield, Digest, Geometry, Metainfo};
use object_store::path::Path;

use crate::{
    envelope::{self, Magic},
    fs::layout::{self, PieceRecord},
    object::{
        self, Marker,
        heartbeat::{RECORD_MAGIC, Record},
        names::{Names, lease_number},
    },
    ssi::{ScrubPlace, check_metainfo},
};

/// Kind and version of every small file and object that is read.
pub const MAGICS: [Magic; 6] = [
    layout::METAINFO_MAGIC,
    layout::PIECES_MAGIC,
    layout::SCRUB_MAGIC,
    object::METAINFO_MAGIC,
    object::MARKER_MAGIC,
    RECORD_MAGIC,
];

/// Metainfo, in a file or an object.
pub fn metainfo(bytes: &[u8]) -> Option<Metainfo> {
    let found: Metainfo =
        envelope::decode(layout::METAINFO_MAGIC, bytes).or_else(|| envelope::decode(object::METAINFO_MAGIC, bytes))?;
    check_metainfo(&found).is_ok().then_some(found)
}

/// The durable pieces of a partial blob of this geometry.
pub fn pieces(bytes: &[u8], geometry: Geometry) -> Option<Bitfield> {
    envelope::decode::<PieceRecord>(layout::PIECES_MAGIC, bytes)?.of(geometry)
}

/// Where a scrub is.
pub fn scrub_place(bytes: &[u8]) -> Option<ScrubPlace> {
    envelope::decode(layout::SCRUB_MAGIC, bytes)
}

/// The size in the marker of a complete blob in a bucket.
pub fn marker(bytes: &[u8]) -> Option<u64> {
    envelope::decode::<Marker>(object::MARKER_MAGIC, bytes).map(|marker| marker.size)
}

/// A record of a lease or upload: written again, it is this.
pub fn record(bytes: &[u8]) -> Option<Vec<u8>> {
    envelope::encode(RECORD_MAGIC, &envelope::decode::<Record>(RECORD_MAGIC, bytes)?)
}

/// The number of the lease whose object this is.
pub fn lease(key: &str) -> Option<u64> {
    lease_number(&Path::parse(key).ok()?)
}

/// The blob that an object below the prefix `p` is a part of.
pub fn key(key: &str) -> Option<Digest> {
    let path = Path::parse(key).ok()?;
    Names::new("bucket".to_owned(), "p").parse(&path).map(|(digest, _)| digest)
}
