//! OCI registry client of Eagle, and a small embedded registry for demonstrations and tests.
#![warn(missing_docs)]
