//! Errors as registries report them (distribution-spec 1.1, "Error Codes").

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde::{Deserialize, Serialize};

/// Code of an error in the answer of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ErrorCode {
    /// The blob is not known to the registry.
    BlobUnknown,
    /// The upload is not known, or over.
    BlobUploadUnknown,
    /// The digest is not one.
    DigestInvalid,
    /// The manifest refers to a blob that is not known.
    ManifestBlobUnknown,
    /// The manifest is not one.
    ManifestInvalid,
    /// The manifest is not known to the repository.
    ManifestUnknown,
    /// The repository name is not one.
    NameInvalid,
    /// The repository is not known to the registry.
    NameUnknown,
    /// The range or length does not fit the blob.
    SizeInvalid,
    /// The range cannot be satisfied.
    RangeInvalid,
    /// Authentication is required.
    Unauthorized,
    /// The caller may not do this.
    Denied,
    /// The registry does not do this.
    Unsupported,
    /// The caller asks too often.
    #[serde(rename = "TOOMANYREQUESTS")]
    TooManyRequests,
    /// The registry, or the way to it, is down for now.
    Unavailable,
    /// Anything else.
    Unknown,
}

impl ErrorCode {
    /// The status that usually goes with the code.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::BlobUnknown
            | Self::BlobUploadUnknown
            | Self::ManifestUnknown
            | Self::NameUnknown
            | Self::ManifestBlobUnknown => StatusCode::NOT_FOUND,
            Self::DigestInvalid | Self::ManifestInvalid | Self::NameInvalid | Self::SizeInvalid => {
                StatusCode::BAD_REQUEST
            }
            Self::RangeInvalid => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Denied => StatusCode::FORBIDDEN,
            Self::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unknown => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// One error in the answer of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OciError {
    /// What kind of error.
    pub code: ErrorCode,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// More, unstructured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    errors: [&'a OciError; 1],
}

impl OciError {
    /// An error without detail.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), detail: None }
    }

    /// The error as the body of an answer: `{"errors":[...]}`.
    pub fn to_body(&self) -> Bytes {
        // Strings and JSON values always serialise.
        serde_json::to_vec(&Envelope { errors: [self] }).unwrap_or_default().into()
    }

    /// The error as an answer with this status.
    pub fn response(&self, status: StatusCode) -> Response<Full<Bytes>> {
        let body = self.to_body();
        let mut response = Response::new(Full::new(Bytes::new()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        *response.body_mut() = Full::new(body);
        response
    }
}

/// An answer with one error in the form of the specification.
pub fn response_json(status: StatusCode, code: ErrorCode, message: impl Into<String>) -> Response<Full<Bytes>> {
    OciError::new(code, message).response(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_the_specification_asks() {
        let body = OciError::new(ErrorCode::TooManyRequests, "slow \"down\"").to_body();
        assert_eq!(body, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow \"down\""}]}"#);
        let response = response_json(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, "no");
        assert_eq!(response.status(), 404);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        assert_eq!(serde_json::to_string(&ErrorCode::BlobUnknown).unwrap(), "\"BLOB_UNKNOWN\"");
    }
}
