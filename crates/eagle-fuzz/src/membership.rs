//! What says who is a member of a cluster: files of keys, the hint in front of connections, identities, certificates.

use eagle_cluster::ClusterKeys;
use eagle_p2p::parsers::{self, HINT, NONCE};

/// A file of cluster keys; after a zero byte, what a connection begins with, which is read as the file of an identity too.
pub(crate) fn cluster_keys(bytes: &[u8]) {
    let (text, rest) = halves(bytes);
    let _ = parsers::identity(rest);
    let Ok(text) = std::str::from_utf8(text) else { return };
    let keys = match text.parse::<ClusterKeys>() {
        Ok(keys) => keys,
        Err(problem) => return assert!(problem.to_string().len() < 200, "{problem}"),
    };
    assert!((1..=2).contains(&keys.accepted().len()));
    let shown = format!("{keys:?}");
    let secrets: Vec<_> = keys.accepted().iter().map(eagle_cluster::ClusterKey::expose).collect();
    let words = text.split_whitespace().filter(|word| word.len() >= 40);
    assert!(words.chain(secrets.iter().map(|key| key.as_str())).all(|word| !shown.contains(word)), "shown: {shown}");
    let written: String = secrets.iter().map(|key| format!("{}\n", key.as_str())).collect();
    assert_eq!(written.parse::<ClusterKeys>().as_ref(), Ok(&keys));
    hints(&keys, rest);
}

/// A hint lets in by the key that it was made with, and no other.
fn hints(keys: &ClusterKeys, sent: &[u8]) {
    let mut hint = [0; HINT];
    hint.iter_mut().zip(sent).for_each(|(to, byte)| *to = *byte);
    let mut nonce = [0; NONCE];
    nonce.copy_from_slice(&hint[..NONCE]);
    let admitted = parsers::admitted(keys, &hint);
    assert_eq!(admitted.is_some(), keys.accepted().iter().any(|key| parsers::hint(key, nonce) == hint));
    for key in keys.accepted() {
        let mut made = parsers::hint(key, nonce);
        assert_eq!(parsers::admitted(keys, &made).as_ref(), Some(key));
        let changed = usize::from(sent.last().copied().unwrap_or_default());
        made[changed / 8] ^= 1 << (changed % 8);
        assert_eq!(parsers::admitted(keys, &made), None, "bit {changed}");
    }
}

/// Certificates and keys in PEM, with a zero byte between the certificate, the key and the authorities; as `cluster.tls` and as the
/// authority of the forward proxy.
pub(crate) fn certificates(bytes: &[u8]) {
    let (certificate, rest) = halves(bytes);
    let (key, authorities) = halves(rest);
    for (certificate, key, authorities) in [(certificate, key, authorities), (bytes, bytes, bytes)] {
        if let Err(problem) = eagle_cluster::parsers::tls_files(certificate, key, authorities) {
            quotes_no_key(&problem, key);
        }
        if let (Ok(certificate), Ok(key)) = (std::str::from_utf8(certificate), std::str::from_utf8(key))
            && let Err(problem) = eagle_proxy::parsers::authority(certificate, key)
        {
            quotes_no_key(&problem, key.as_bytes());
        }
    }
}

/// An error says nothing of the key that it is about: no line of it, as long as lines of keys are.
fn quotes_no_key(problem: &str, key: &[u8]) {
    let lines = key.split(|byte| byte.is_ascii_whitespace()).filter(|line| line.len() >= 24);
    let mut lines = lines.filter_map(|line| std::str::from_utf8(line).ok()).filter(|line| !line.contains('-'));
    assert!(lines.all(|line| !problem.contains(line)), "a key is quoted: {problem}");
}

/// What is before the first zero byte, and what is after it.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    let place = bytes.iter().position(|byte| *byte == 0);
    place.map_or((bytes, &[]), |place| (&bytes[..place], &bytes[place + 1..]))
}
