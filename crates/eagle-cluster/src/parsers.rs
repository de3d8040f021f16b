//! What files of certificates say, as functions of their bytes alone: for the fuzz targets (`eagle-fuzz`), which have no disk.

use std::path::PathBuf;

use zeroize::Zeroizing;

use crate::files::{Contents, TlsFiles};

/// Makes of `cluster.tls` what a node does with it: certificate, private key and authorities, each in PEM.
///
/// # Errors
/// Which of the three cannot be used, and why.
pub fn tls_files(certificate: &[u8], key: &[u8], ca: &[u8]) -> Result<(), String> {
    let [certificate_file, key_file, ca_file] = ["certificate", "key", "ca"].map(PathBuf::from);
    let contents = Contents {
        files: TlsFiles { certificate: certificate_file, key: key_file, ca: ca_file },
        certificate: certificate.to_vec(),
        key: Zeroizing::new(key.to_vec()),
        ca: ca.to_vec(),
    };
    contents.generation(1, None).map(drop).map_err(|error| error.to_string())
}
