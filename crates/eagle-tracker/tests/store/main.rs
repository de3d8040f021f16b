//! The stores of the tracker: the same suite for each, and what only one of them has.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "helpers of tests, which the lint does not recognise as such"
)]

mod memory;
mod redis;
mod redis_reports;
mod redis_server;
mod reports_suite;
mod seeders_suite;
mod suite;
