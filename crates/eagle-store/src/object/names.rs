//! Keys of objects.

use eagle_core::Digest;
use object_store::path::Path;

const BLOBS: &str = "blobs";
const DATA: &str = "data";
const METAINFO: &str = "metainfo";
const COMPLETE: &str = "complete";
const LEASES: &str = "leases";
const UPLOADS: &str = "uploads";

/// Builds and reads the keys below one prefix.
#[derive(Debug)]
pub(crate) struct Names {
    /// For messages: scheme and bucket.
    bucket: String,
    /// Empty, or ends in a slash.
    prefix: String,
}

/// What an object of a blob is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Data,
    Complete,
}

impl Names {
    /// Keys below `prefix`, a path of plain segments, in a bucket that messages call `bucket`.
    pub(crate) fn new(bucket: String, prefix: &str) -> Self {
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self { bucket, prefix }
    }

    /// How messages call an object.
    pub(super) fn show(&self, path: &Path) -> String {
        format!("{}/{path}", self.bucket)
    }

    fn below(&self, rest: std::fmt::Arguments<'_>) -> Path {
        Path::from(format!("{}{rest}", self.prefix))
    }

    fn blob(&self, digest: Digest, part: &str) -> Path {
        let hex = digest.hex();
        // Two characters first, as on disk: some stores spread load by the beginning of keys.
        self.below(format_args!("{BLOBS}/{}/{}/{hex}/{part}", digest.algorithm().name(), &hex[..2]))
    }

    pub(super) fn blobs(&self) -> Path {
        self.below(format_args!("{BLOBS}"))
    }

    pub(super) fn data(&self, digest: Digest) -> Path {
        self.blob(digest, DATA)
    }

    pub(super) fn metainfo(&self, digest: Digest) -> Path {
        self.blob(digest, METAINFO)
    }

    pub(super) fn complete(&self, digest: Digest) -> Path {
        self.blob(digest, COMPLETE)
    }

    /// All leases.
    pub(super) fn all_leases(&self) -> Path {
        self.below(format_args!("{LEASES}"))
    }

    /// The leases of one blob.
    pub(super) fn leases(&self, digest: Digest) -> Path {
        self.below(format_args!("{LEASES}/{}/{}", digest.algorithm().name(), digest.hex()))
    }

    pub(super) fn lease(&self, digest: Digest, number: u64) -> Path {
        self.below(format_args!("{LEASES}/{}/{}/{number}", digest.algorithm().name(), digest.hex()))
    }

    /// All records of uploads under way.
    pub(super) fn uploads(&self) -> Path {
        self.below(format_args!("{UPLOADS}"))
    }

    pub(super) fn upload(&self, digest: Digest, nonce: u64) -> Path {
        self.below(format_args!("{UPLOADS}/{}-{nonce:016x}", digest.hex()))
    }

    /// The blob and the part of it that an object is; `None` for every other key.
    pub(crate) fn parse(&self, path: &Path) -> Option<(Digest, Part)> {
        let rest = path.as_ref().strip_prefix(self.prefix.as_str())?;
        let mut segments = rest.split('/');
        let (Some(BLOBS), Some(algorithm), Some(_), Some(hex), Some(part), None) =
            (segments.next(), segments.next(), segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return None;
        };
        let digest = format!("{algorithm}:{hex}").parse::<Digest>().ok()?;
        let part = match part {
            DATA => Part::Data,
            COMPLETE => Part::Complete,
            _ => return None,
        };
        // A digest in capitals or under other first letters is somebody else's object.
        let own = match part {
            Part::Data => self.data(digest),
            Part::Complete => self.complete(digest),
        };
        (own == *path).then_some((digest, part))
    }
}

/// The number at the end of a lease's key.
pub(crate) fn lease_number(path: &Path) -> Option<u64> {
    path.filename()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_keys_it_makes_and_no_others() {
        for prefix in ["", "a", "/a/b/"] {
            let names = Names::new("s3://bucket".to_owned(), prefix);
            let digest = Digest::of(b"x");
            assert_eq!(names.parse(&names.data(digest)), Some((digest, Part::Data)));
            assert_eq!(names.parse(&names.complete(digest)), Some((digest, Part::Complete)));
            assert_eq!(names.parse(&names.metainfo(digest)), None);
            let (data, hex) = (names.data(digest).to_string(), digest.hex());
            for odd in [
                format!("{data}/more"),
                format!("x/{data}"),
                data.replace(&hex, &hex.to_uppercase()),
                data.replace(&hex, "../../etc/passwd"),
                data.replace(&hex, &hex[1..]),
                data.replace(&format!("/{}/", &hex[..2]), "/zz/"),
                data.replace("sha256", "sha1"),
                String::new(),
            ] {
                assert_eq!(names.parse(&Path::from(odd.as_str())), None, "{odd}");
            }
        }
        assert_eq!(lease_number(&Path::from("leases/sha256/ab/12")), Some(12));
        assert_eq!(lease_number(&Path::from("leases/sha256/ab/twelve")), None);
    }
}
