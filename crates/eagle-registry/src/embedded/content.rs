//! Contents that are made when they are read.

use bytes::Bytes;
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng as _, SeedableRng as _},
};

/// Unit of tar, bytes.
pub(super) const TAR_BLOCK: u64 = 512;
/// Bytes of a tar file besides the content of its one file: a header, and two empty blocks at its end.
pub(super) const TAR_OVERHEAD: u64 = 3 * TAR_BLOCK;
/// Largest size that the octal field of a tar header holds, bytes.
const MAX_OCTAL: u64 = 0o77_777_777_777;

/// A blob or manifest that is served.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// From memory.
    Stored(Bytes),
    /// Made on the fly.
    Layer(Layer),
}

/// A tar file with one file of pseudo-random bytes. Any part of it can be made on its own.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    header: Bytes,
    seed: u64,
    stream: u64,
    /// Bytes of the file; a multiple of [`TAR_BLOCK`].
    data: u64,
}

impl Content {
    pub(super) fn size(&self) -> u64 {
        match self {
            Self::Stored(bytes) => bytes.len() as u64,
            Self::Layer(layer) => layer.size(),
        }
    }

    /// The bytes from `offset`, `length` of them or up to the end.
    pub(super) fn read(&self, offset: u64, length: usize) -> Bytes {
        match self {
            Self::Stored(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                bytes.slice(start..start.saturating_add(length).min(bytes.len()))
            }
            Self::Layer(layer) => layer.read(offset, length),
        }
    }
}

impl Layer {
    /// A layer of `size` bytes, which must be a multiple of [`TAR_BLOCK`] and more than [`TAR_OVERHEAD`].
    pub(super) fn new(seed: u64, index: u64, size: u64) -> Self {
        let data = size - TAR_OVERHEAD;
        let header = tar_header(&format!("layer-{index}.bin"), data);
        Self { header, seed, stream: index, data }
    }

    fn size(&self) -> u64 {
        self.data + TAR_OVERHEAD
    }

    fn read(&self, offset: u64, length: usize) -> Bytes {
        let left = usize::try_from(self.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; length.min(left)];
        let mut at = offset;
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            let data_end = TAR_BLOCK + self.data;
            let part_end = match at {
                ..TAR_BLOCK => TAR_BLOCK,
                _ if at < data_end => data_end,
                _ => self.size(),
            };
            let length = usize::try_from(part_end - at).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(length);
            if at < TAR_BLOCK {
                let start = usize::try_from(at).unwrap_or_default();
                part.copy_from_slice(&self.header[start..start + length]);
            } else if at < data_end {
                self.random(at - TAR_BLOCK, part);
            }
            at += length as u64;
            rest = after;
        }
        bytes.into()
    }

    /// Bytes of the file from `offset`.
    fn random(&self, offset: u64, into: &mut [u8]) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.stream);
        // The generator is addressed in words of four bytes.
        rng.set_word_pos(u128::from(offset / 4));
        let skip = usize::try_from(offset % 4).unwrap_or_default();
        let into = if skip == 0 {
            into
        } else {
            let word = rng.next_u32().to_le_bytes();
            let first = (4 - skip).min(into.len());
            into[..first].copy_from_slice(&word[skip..skip + first]);
            &mut into[first..]
        };
        rng.fill_bytes(into);
    }
}

/// Header of a file in a tar archive (POSIX ustar; sizes of 8 GiB and more in GNU's base-256 form).
fn tar_header(name: &str, size: u64) -> Bytes {
    let mut header = [0u8; 512];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000644\0"); // mode
    put(108, b"0000000\0"); // user
    put(116, b"0000000\0"); // group
    if size <= MAX_OCTAL {
        put(124, format!("{size:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &size.to_be_bytes());
    }
    put(136, b"00000000000\0"); // time: the same bytes on every run
    put(148, b"        "); // the checksum counts as spaces
    put(156, b"0"); // a regular file
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    Bytes::copy_from_slice(&header)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_layer_is_a_tar_file() {
        let layer = Layer::new(7, 3, 8192);
        let bytes = layer.read(0, usize::MAX);
        assert_eq!(bytes.len(), 8192);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("layer.tar");
        std::fs::write(&path, &bytes).unwrap();
        // The tar of the system is the judge, where there is one.
        let Ok(output) = std::process::Command::new("tar").arg("-xOf").arg(&path).output() else { return };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, bytes[512..512 + 8192 - 1536]);
    }

    #[test]
    fn sizes_of_a_tar_header() {
        assert_eq!(&tar_header("a", 8)[124..136], b"00000000010\0");
        let large = tar_header("a", 1 << 40);
        assert_eq!(large[124], 0x80);
        assert_eq!(large[128..136], (1u64 << 40).to_be_bytes());
    }

    #[test]
    fn seeds_and_streams_differ() {
        let read = |seed, index| Layer::new(seed, index, 4096).read(512, 1024);
        assert_eq!(read(1, 1), read(1, 1));
        assert_ne!(read(1, 1), read(2, 1));
        assert_ne!(read(1, 1), read(1, 2));
    }

    proptest! {
        #[test]
        fn any_part_is_part_of_the_whole(offset in 0u64..9000, length in 0usize..9000) {
            let layer = Layer::new(1, 2, 8192);
            let whole = layer.read(0, 8192);
            let start = usize::try_from(offset).unwrap().min(8192);
            let end = (start + length).min(8192);
            prop_assert_eq!(layer.read(offset, length), whole.slice(start..end));
        }
    }
}
