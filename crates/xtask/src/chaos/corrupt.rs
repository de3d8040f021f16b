//! Bits that change on a disk.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path};

use anyhow::Result;

use super::watch::files;

/// Changes a bit in the middle of so many complete blobs below a data directory, chosen by the seed; their digests.
pub(crate) fn blobs(data: &Path, seed: u64, count: u32) -> Result<Vec<String>> {
    let mut complete: Vec<_> = files(&data.join("blobs")).into_iter().filter(|file| file.ends_with("data")).collect();
    complete.sort();
    let mut changed = Vec::new();
    for turn in 0..u64::from(count) {
        if complete.is_empty() {
            break;
        }
        let length = u64::try_from(complete.len())?;
        let file = complete.remove(usize::try_from(seed.wrapping_add(turn) % length)?);
        // A blob may be evicted at any moment; then another time.
        let Ok(open) = File::options().read(true).write(true).open(&file) else { continue };
        let size = open.metadata()?.len();
        let mut byte = [0];
        if size == 0 || open.read_exact_at(&mut byte, size / 2).is_err() {
            continue;
        }
        byte[0] ^= 0x04;
        open.write_all_at(&byte, size / 2)?;
        if let Some(digest) = file.parent().and_then(Path::file_name) {
            changed.push(format!("sha256:{}", digest.to_string_lossy()));
        }
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_bit_of_each_chosen_blob_changes() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["aa", "bb", "cc"] {
            let blob = directory.path().join("blobs/blobs/sha256").join(name).join(name);
            fs::create_dir_all(&blob).unwrap();
            fs::write(blob.join("data"), [7; 101]).unwrap();
            fs::write(blob.join("metainfo"), [7; 101]).unwrap();
        }
        let changed = blobs(directory.path(), 4, 2).unwrap();
        assert_eq!(changed.len(), 2);
        assert_ne!(changed[0], changed[1]);
        let bits = |name: &str| {
            let all = files(directory.path()).into_iter().filter(|file| file.ends_with(name));
            all.flat_map(|file| fs::read(file).unwrap()).map(|byte| (byte ^ 7).count_ones()).sum::<u32>()
        };
        assert_eq!((bits("data"), bits("metainfo")), (2, 0));
        assert_eq!(blobs(directory.path(), 4, 9).unwrap().len(), 3);
    }
}
