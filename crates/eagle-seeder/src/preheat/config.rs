//! Configuration of preheating.

use eagle_registry::Secret;
use serde::{Deserialize, Serialize};
use url::Url;

use super::rule::Rule;
use crate::{client::check_seeder_url, schedule::Schedule};

/// Settings of preheating, read by seeders.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PreheatConfig {
    /// HTTP APIs of all seeders of the cluster, as the proxies know them: each blob is then fetched by the
    /// seeder that proxies will ask for it. Empty when this seeder is the only one.
    pub seeders: Vec<Url>,
    /// What a request to `/v1/preheat` has to bring as `Authorization: Bearer`; nothing when absent.
    pub token: Option<Secret>,
    /// What a registry has to bring to `/v1/notifications`; none are taken when absent.
    pub notification_secret: Option<Secret>,
    /// Images that are warmed when a registry tells that they were pushed; the first rule that matches counts.
    pub rules: Vec<Rule>,
    /// Lists of images that are warmed at certain times.
    pub schedule: Vec<Schedule>,
}

/// A setting that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("preheat.{}: {problem}", path.join("."))]
pub struct PreheatConfigError {
    /// The keys within the section, the outermost first; a place in a list is its number.
    pub path: Vec<String>,
    /// What is wrong with the value, and what would be right.
    pub problem: String,
}

/// An error about the value at this path.
fn error(path: &[&str], problem: impl Into<String>) -> PreheatConfigError {
    PreheatConfigError { path: path.iter().map(|key| (*key).to_owned()).collect(), problem: problem.into() }
}

impl PreheatConfig {
    /// Checks what the types alone do not.
    ///
    /// # Errors
    /// With the first setting that cannot work.
    pub fn validate(&self) -> Result<(), PreheatConfigError> {
        for (index, seeder) in self.seeders.iter().enumerate() {
            // Without the URL, which may have a secret in it.
            check_seeder_url(seeder).map_err(|problem| error(&["seeders", &index.to_string()], problem))?;
        }
        if self.token.as_ref().is_some_and(|token| token.expose().is_empty()) {
            return Err(error(&["token"], "is empty; give a secret, or null for none"));
        }
        if self.notification_secret.as_ref().is_some_and(|secret| secret.expose().is_empty()) {
            return Err(error(&["notification_secret"], "is empty; give a secret, or null to take no notifications"));
        }
        if self.notification_secret.is_none() && !self.rules.is_empty() {
            return Err(error(&["rules"], "no registry could tell of a push: notification_secret is not set"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_wrong_and_shows_no_secret() {
        for (text, path) in [
            (r#"{"seeders": ["http://a:1", "http://user:sesame@b"]}"#, "seeders.1"),
            (r#"{"seeders": ["ftp://a"]}"#, "seeders.0"),
            (r#"{"token": ""}"#, "token"),
            (r#"{"notification_secret": ""}"#, "notification_secret"),
            (r#"{"rules": [{"images": "docker.io/**"}]}"#, "rules"),
        ] {
            let config: PreheatConfig = serde_json::from_str(text).unwrap();
            let error = config.validate().unwrap_err();
            assert_eq!(error.path.join("."), path);
            assert!(!error.to_string().contains("sesame"), "{error}");
        }
        let config: PreheatConfig = serde_json::from_str(r#"{"token": "sesame"}"#).unwrap();
        config.validate().unwrap();
        assert!(!format!("{config:?}{}", serde_json::to_string(&config).unwrap()).contains("sesame"));
        for bad in [
            r#"{"rule": []}"#,
            r#"{"rules": [{}]}"#,
            r#"{"rules": [{"images": "debian"}]}"#,
            r#"{"schedule": [{"cron": "soon", "list": "/x"}]}"#,
            r#"{"schedule": [{"cron": "@daily"}]}"#,
        ] {
            assert!(serde_json::from_str::<PreheatConfig>(bad).is_err(), "{bad}");
        }
    }
}
