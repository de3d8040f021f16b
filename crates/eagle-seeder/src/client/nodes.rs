//! Telling a seeder that this node is there, and learning what it should warm.

use bytes::Bytes;
use eagle_registry::body::{guard, read_up_to};
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use url::Url;

use super::{RESPONSE_TIMEOUT, STALL_TIMEOUT, SeederClient, SeederError};
use crate::preheat::{NODES_PATH, NodeNews, NodeOrders};

/// Longest answer that is read, bytes: 500 blobs with the longest names have half of that.
const MAX_ORDERS: usize = 1 << 20;

impl SeederClient {
    /// Tells a seeder how the work of this node went, and gets what it still has to do.
    ///
    /// # Errors
    /// When the seeder cannot be reached, refuses, or answers something else.
    pub async fn report(&self, seeder: &Url, news: &NodeNews) -> Result<NodeOrders, SeederError> {
        let uri = format!("{}{NODES_PATH}", seeder.as_str().trim_end_matches('/'));
        let body = serde_json::to_vec(news).map_err(|error| self.protocol(seeder, error.to_string()))?;
        let request = Request::post(uri)
            .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.protocol(seeder, format!("not a URL: {error}")))?;
        let response = match tokio::time::timeout(RESPONSE_TIMEOUT, self.0.client.request(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => return Err(self.unreachable(seeder, &error)),
            Err(_) => return Err(self.timeout(seeder, RESPONSE_TIMEOUT)),
        };
        if response.status() != StatusCode::OK {
            return Err(self.refused(seeder, response).await);
        }
        let body = guard(response.into_body(), None, STALL_TIMEOUT, seeder.as_str());
        let nonsense = |problem: String| SeederError::Protocol { seeder: seeder.clone(), problem };
        let body = read_up_to(body, MAX_ORDERS).await.map_err(|error| nonsense(error.to_string()))?;
        let body = body.ok_or_else(|| nonsense(format!("orders of more than {MAX_ORDERS} bytes")))?;
        serde_json::from_slice(&body).map_err(|error| nonsense(error.to_string()))
    }
}
