//! Telling the seeders that a tag or manifest is not what it was.

use std::time::Duration;

use eagle_registry::{Caller, Reference, RegistryName, RepositoryName};
use futures::future::join_all;
use http::{HeaderMap, Method};
use tokio::time::timeout;

use super::SeederClient;

/// How long who has pushed waits for a seeder to have heard of it: they answer at once, or not at all.
const DEADLINE: Duration = Duration::from_secs(2);

impl SeederClient {
    /// Has every seeder ask the origin again for what it knows of this manifest: any of them may be asked next. One that
    /// cannot be told keeps what it knows for its `manifest_ttl`.
    pub async fn changed(&self, registry: &RegistryName, repository: &RepositoryName, reference: &Reference) {
        let path = format!("v1/registries/{registry}/v2/{repository}/manifests/{reference}");
        let anyone = Caller::anonymous();
        join_all(self.known().iter().map(async |seeder| {
            let told = self.send(seeder, &Method::DELETE, &path, HeaderMap::new(), &anyone);
            let problem = match timeout(DEADLINE, told).await {
                Ok(Ok(response)) if response.status().is_success() => return,
                Ok(Ok(response)) => format!("it answered {}", response.status()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {DEADLINE:?}"),
            };
            tracing::warn!(%seeder, %registry, %repository, %reference, problem, "a seeder does not know of a push yet");
        }))
        .await;
    }
}
