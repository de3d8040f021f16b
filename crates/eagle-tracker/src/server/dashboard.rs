//! The dashboard: a page, a style sheet and a script, which asks for what it shows. Nothing comes from elsewhere.

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};

use super::reply::{Reply, whole};

/// What the page may do: nothing but use its own files and ask this tracker.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// A file of the dashboard by its path.
pub(super) fn asset(path: &str) -> Option<Reply> {
    let (media_type, content): (_, &'static str) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("dashboard/index.html")),
        "/dashboard/style.css" => ("text/css; charset=utf-8", include_str!("dashboard/style.css")),
        "/dashboard/app.js" => ("text/javascript; charset=utf-8", include_str!("dashboard/app.js")),
        "/dashboard/flows.js" => ("text/javascript; charset=utf-8", include_str!("dashboard/flows.js")),
        "/dashboard/pieces.js" => ("text/javascript; charset=utf-8", include_str!("dashboard/pieces.js")),
        _ => return None,
    };
    let mut reply = whole(StatusCode::OK, HeaderValue::from_static(media_type), Bytes::from_static(content.as_bytes()));
    let headers = reply.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    // A tracker may be upgraded at any time, and the files are small.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Some(reply)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_uses_its_own_files_only() {
        let page = include_str!("dashboard/index.html");
        for attribute in ["src=\"", "href=\""] {
            for link in page.split(attribute).skip(1).filter_map(|rest| rest.split('"').next()) {
                assert!(link.starts_with('#') || asset(link).is_some(), "{link} is not here");
            }
        }
        for content in [page, include_str!("dashboard/style.css"), include_str!("dashboard/app.js")] {
            assert!(!content.contains("//cdn") && !content.contains("https://") && !content.contains("@import"));
        }
        assert!(asset("/dashboard/other.js").is_none() && asset("/index.html").is_none());
    }
}
