//! OCI registry client of Eagle, and a small embedded registry for demonstrations and tests.
//!
//! The client ([`Registries`], [`Registry`]) speaks the OCI distribution specification 1.1 to the
//! origin: it authenticates (Basic, Bearer tokens), follows redirects without leaking credentials,
//! verifies TLS, resumes blobs, and gives every wait a deadline. The vocabulary of the specification
//! (names, ranges, paths, manifests, errors) is shared with the servers of the other crates.
#![warn(missing_docs)]

pub mod body;
pub mod caller;
mod client;
pub mod config;
mod credentials;
pub mod embedded;
pub mod errors;
pub mod headers;
pub mod manifest;
pub mod name;
pub mod origin;
mod pace;
#[doc(hidden)]
pub mod parsers;
pub mod path;
pub mod range;
mod request_id;
pub mod trace;

pub use body::{BlobBody, Body};
pub use caller::Caller;
pub use client::{
    ForwardRequest, ForwardRequestError, HTTP_READ_AHEAD, Ping, Registries, Registry, RelayBody, RelayRequest, backoff,
    receive_buffer, retry_after,
};
pub use config::{ConfigError, CredentialsConfig, EgressProxy, RegistryConfig, Secret};
pub use credentials::IDENTITY_TOKEN_USER;
pub use embedded::EmbeddedRegistry;
pub use errors::{ErrorCode, OciError, response_json};
pub use manifest::{Descriptor, Manifest};
pub use name::{ImageReference, Reference, RegistryName, RepositoryName, Tag};
pub use origin::OriginError;
pub use request_id::{RequestId, X_REQUEST_ID};
pub use trace::TraceContext;
