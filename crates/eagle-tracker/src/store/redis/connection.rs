//! Reaching Redis.

use std::time::Duration;

use eagle_core::Timestamp;
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo as _, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
};

use super::micros;
use crate::store::location::RedisLocation;

/// Longest wait for a connection: Redis is beside the trackers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for an answer. Scripts take milliseconds; a pull waits for peers meanwhile.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Prepares a connection, which is made with the first call, and again whenever it broke. Names are resolved anew each time.
///
/// # Errors
/// When the certificates of the location cannot be used.
pub(super) fn open(location: &RedisLocation) -> Result<ConnectionManager, RedisError> {
    let mut info = if location.tls {
        let certificates = TlsCertificates { client_tls: None, root_cert: location.ca.clone() };
        let url = format!("rediss://{}:{}", bracketed(&location.host), location.port);
        // Takes the certificates into the address.
        Client::build_with_tls(url, certificates)?.get_connection_info().clone()
    } else {
        ConnectionAddr::Tcp(location.host.clone(), location.port).into_connection_info()?
    };
    let mut settings = info.redis_settings().clone().set_db(location.database);
    if let Some(user) = &location.user {
        settings = settings.set_username(user);
    }
    if let Some(password) = &location.password {
        settings = settings.set_password(password.as_str());
    }
    info = info.set_redis_settings(settings);
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        // Whoever finds Redis away uses its own memory; the next look tries again.
        .set_number_of_retries(1);
    ConnectionManager::new_lazy_with_config(Client::open(info)?, config)
}

/// Redis' clock minus this process's, microseconds.
pub(super) async fn clock_offset(connection: &ConnectionManager, now: Timestamp) -> Result<i64, RedisError> {
    let (seconds, microseconds): (i64, i64) = redis::cmd("TIME").query_async(&mut connection.clone()).await?;
    Ok(seconds.saturating_mul(1_000_000).saturating_add(microseconds).saturating_sub(micros(now)))
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
