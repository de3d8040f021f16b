//! Lists of images: in files, or at URLs.

use std::{io::Read, path::Path, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use url::Url;

use crate::schedule::ListLocation;

/// Largest list, bytes: ten thousand names of usual length.
const MAX_LIST: usize = 1 << 20;
/// Deadline from the connection to the last byte of a list.
const DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no list.
#[derive(Debug, thiserror::Error)]
pub enum ImageListError {
    /// It cannot be read.
    #[error("the list cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// It is too long.
    #[error("the list has more than {MAX_LIST} bytes")]
    TooLong,
    /// It is not text.
    #[error("the list is not UTF-8 text")]
    Text,
    /// Its server answered something else.
    #[error("the server of the list answered {0}")]
    Status(StatusCode),
    /// Its server could not be asked.
    #[error("the server of the list: {0}")]
    Server(String),
    /// It took too long.
    #[error("the list did not arrive within {} s", DEADLINE.as_secs())]
    TooSlow,
    /// It names nothing.
    #[error("the list names no image")]
    Empty,
}

/// The images that a list names: one on a line, `#` begins a comment.
pub fn image_list(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// The text of a list, within bounds.
pub(crate) async fn read_list(list: &ListLocation) -> Result<String, ImageListError> {
    let bytes = match list {
        ListLocation::File(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || read_file(&path)).await;
            read.map_err(|error| std::io::Error::other(error.to_string()))??
        }
        ListLocation::Url(url) => match tokio::time::timeout(DEADLINE, fetch(url)).await {
            Ok(bytes) => bytes?.into(),
            Err(_) => return Err(ImageListError::TooSlow),
        },
    };
    if bytes.len() > MAX_LIST {
        return Err(ImageListError::TooLong);
    }
    String::from_utf8(bytes).map_err(|_| ImageListError::Text)
}

fn read_file(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_LIST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Redirects are not followed: a list is where the configuration says.
async fn fetch(url: &Url) -> Result<Bytes, ImageListError> {
    let server = |error: &dyn std::error::Error| {
        let mut reason = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        ImageListError::Server(reason)
    };
    // A client of its own for a list now and then; nothing is kept open until the next time.
    let connector = HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<Bytes>>(connector);
    let request = Request::get(url.as_str()).body(Empty::new()).map_err(|error| server(&error))?;
    let response = client.request(request).await.map_err(|error| server(&error))?;
    if response.status() != StatusCode::OK {
        return Err(ImageListError::Status(response.status()));
    }
    match Limited::new(response.into_body(), MAX_LIST).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ImageListError::TooLong),
        Err(error) => Err(server(&*error)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn comments_and_empty_lines_are_left_out() {
        let text = "# all of them\r\ndebian:12\r\n\n  a.b/c@sha256:0 # why\n#x";
        assert_eq!(image_list(text), ["debian:12", "a.b/c@sha256:0"]);
        assert!(image_list("").is_empty());
    }

    /// A server that answers anything with this.
    async fn server(answer: Vec<u8>) -> ListLocation {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
            }
        });
        format!("http://{address}/list").parse().unwrap()
    }

    #[tokio::test]
    async fn lists_come_from_servers_and_files_within_bounds() {
        let list = server(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ndebian".to_vec()).await;
        assert_eq!(read_list(&list).await.unwrap(), "debian");
        let list =
            server(b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
        assert!(matches!(read_list(&list).await, Err(ImageListError::Status(StatusCode::FOUND))));
        let long = [b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), vec![b'a'; 2 << 20]].concat();
        assert!(matches!(read_list(&server(long).await).await, Err(ImageListError::TooLong)));
        assert!(matches!(read_list(&server(b"no HTTP".to_vec()).await).await, Err(ImageListError::Server(_))));
        assert!(matches!(read_list(&"http://127.0.0.1:1/x".parse().unwrap()).await, Err(ImageListError::Server(_))));

        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("list");
        let list = ListLocation::File(path.clone());
        assert!(matches!(read_list(&list).await, Err(ImageListError::Read(_))));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read_list(&list).await, Err(ImageListError::Text)));
        std::fs::write(&path, vec![b'a'; 2 << 20]).unwrap();
        assert!(matches!(read_list(&list).await, Err(ImageListError::TooLong)));
    }
}
