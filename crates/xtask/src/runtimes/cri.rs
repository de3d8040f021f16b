//! A pull by way of Kubernetes' Container Runtime Interface, as the kubelet asks for it.
//!
//! curl speaks HTTP/2 over a Unix socket; the one message that is sent and the one that comes back are short enough to
//! write and skip by hand (gRPC over HTTP/2; `k8s.io/cri-api`, `runtime/v1/api.proto`).

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use super::PULL_DEADLINE;
use crate::process::succeed;

/// Fields of the messages that are sent.
const PULL_IMAGE_REQUEST_IMAGE: u8 = 1;
const PULL_IMAGE_REQUEST_AUTH: u8 = 2;
const IMAGE_SPEC_IMAGE: u8 = 1;
const AUTH_CONFIG_USERNAME: u8 = 1;
const AUTH_CONFIG_PASSWORD: u8 = 2;

/// Has the runtime at `socket` pull an image, with the user and the password of a pull secret if there is one.
pub(super) fn pull(socket: &Path, image: &str, secret: Option<(&str, &str)>) -> Result<()> {
    let mut request = field(PULL_IMAGE_REQUEST_IMAGE, &field(IMAGE_SPEC_IMAGE, image.as_bytes())?)?;
    if let Some((user, password)) = secret {
        let auth = [field(AUTH_CONFIG_USERNAME, user.as_bytes())?, field(AUTH_CONFIG_PASSWORD, password.as_bytes())?];
        request.extend(field(PULL_IMAGE_REQUEST_AUTH, &auth.concat())?);
    }
    // Not compressed, and its length.
    let mut message = vec![0];
    message.extend(u32::try_from(request.len())?.to_be_bytes());
    message.extend(request);
    let directory = tempfile::tempdir()?;
    let (sent, head) = (directory.path().join("request"), directory.path().join("head"));
    fs::write(&sent, message)?;
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--http2-prior-knowledge", "--output", "/dev/null"]);
    curl.args(["--header", "content-type: application/grpc", "--header", "te: trailers"]);
    curl.arg("--unix-socket").arg(socket).arg("--dump-header").arg(&head);
    curl.arg("--data-binary").arg(format!("@{}", sent.display()));
    succeed(curl.arg("http://localhost/runtime.v1.ImageService/PullImage"), PULL_DEADLINE)?;
    // The trailers are among the headers.
    outcome(&fs::read_to_string(&head)?).with_context(|| format!("PullImage {image}"))
}

/// A field whose value is text or a message.
fn field(number: u8, value: &[u8]) -> Result<Vec<u8>> {
    // The wire type of what has a length.
    const LENGTH_DELIMITED: u8 = 2;
    // Nothing sent here is longer than a length of two bytes can say.
    ensure!(value.len() < 1 << 14, "{} bytes", value.len());
    let mut bytes = vec![number << 3 | LENGTH_DELIMITED];
    match u8::try_from(value.len()) {
        Ok(length) if length < 0x80 => bytes.push(length),
        _ => bytes.extend([u8::try_from(value.len() & 0x7f)? | 0x80, u8::try_from(value.len() >> 7)?]),
    }
    bytes.extend(value);
    Ok(bytes)
}

fn outcome(head: &str) -> Result<()> {
    let find = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    match find("grpc-status:") {
        Some("0") => Ok(()),
        Some(status) => bail!("gRPC status {status}: {}", find("grpc-message:").unwrap_or_default()),
        None => bail!("no gRPC status in {head:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_form_of_protocol_buffers() -> Result<()> {
        assert_eq!(field(2, b"testing")?, [&[0x12, 0x07][..], b"testing"].concat());
        let long = vec![b'x'; 300];
        assert_eq!(field(1, &long)?[..4], [0x0a, 0xac, 0x02, b'x']);
        assert!(field(1, &vec![0; 1 << 14]).is_err());
        Ok(())
    }

    #[test]
    fn refusals_are_errors() {
        assert!(outcome("HTTP/2 200 \r\n\r\ngrpc-status: 0\r\n").is_ok());
        let error = outcome("HTTP/2 200 \r\ngrpc-status: 2\r\ngrpc-message: not found\r\n").unwrap_err();
        assert!(error.to_string().contains("not found"), "{error}");
        assert!(outcome("HTTP/2 200 \r\n").is_err());
    }
}
