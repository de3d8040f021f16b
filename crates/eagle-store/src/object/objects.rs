//! Single objects: small ones whole, with bounds, deadlines and errors that name them.

use std::{sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use eagle_core::Digest;
use futures::StreamExt as _;
use object_store::{
    Error, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload,
    multipart::MultipartStore, path::Path,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use super::{Owner, names::Names};
use crate::{
    envelope::{self, Magic},
    error::StorageError,
};

/// Uploads at once: each holds [`super::upload::IN_FLIGHT`] bytes, and more would only share the link.
const MAX_UPLOADS: usize = 4;

/// Deadline of a request about a small object, further tries included: somebody waits for a blob meanwhile, which
/// can be had elsewhere.
const SMALL_DEADLINE: Duration = Duration::from_secs(4);

/// What a store has to be able to do.
pub(super) trait Store: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Store for T {}

/// The objects below one prefix of a bucket.
#[derive(Debug)]
pub(super) struct Objects {
    pub(super) store: Arc<dyn Store>,
    pub(super) names: Names,
    pub(super) owner: Owner,
    /// What renews records and cleans up after uploads: one for each lease and upload, and the sweep.
    pub(super) tasks: TaskTracker,
    pub(super) uploads: Semaphore,
}

impl Objects {
    pub(super) fn new(store: Arc<dyn Store>, names: Names, owner: String) -> Self {
        let owner = Owner { name: owner, process: rand::random() };
        Self { store, names, owner, tasks: TaskTracker::new(), uploads: Semaphore::new(MAX_UPLOADS) }
    }

    pub(super) fn failed(&self, action: &'static str, path: &Path, error: &Error) -> StorageError {
        let reason = without_queries(&error.to_string());
        StorageError::Remote { action, object: self.names.show(path), reason }
    }

    pub(super) fn damaged(&self, path: &Path, reason: impl Into<String>) -> StorageError {
        StorageError::Damaged { object: self.names.show(path), reason: reason.into() }
    }

    /// Gives up on a small request that takes too long.
    async fn soon<T>(
        &self,
        action: &'static str,
        path: &Path,
        request: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        tokio::time::timeout(SMALL_DEADLINE, request).await.unwrap_or_else(|_| {
            let reason = format!("no answer within {SMALL_DEADLINE:?}");
            Err(StorageError::Remote { action, object: self.names.show(path), reason })
        })
    }

    /// Size and version of an object; `None` when there is none.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<ObjectMeta>, StorageError> {
        let request = async {
            match self.store.head(path).await {
                Ok(meta) => Ok(Some(meta)),
                Err(Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(self.failed("examine", path, &error)),
            }
        };
        self.soon("examine", path, request).await
    }

    /// A range of an object whose whole size is known. The store is not believed about either.
    pub(super) async fn range(
        &self,
        path: &Path,
        size: u64,
        range: std::ops::Range<u64>,
    ) -> Result<Bytes, StorageError> {
        let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let other_size = |actual| self.damaged(path, format!("it has {actual} bytes, and {size} are expected"));
        let found = match self.store.get_opts(path, options).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Err(self.damaged(path, "it is gone")),
            // A range past the end of what is there is refused, in words that differ from store to store.
            Err(error) => match self.head(path).await {
                Ok(Some(meta)) if meta.size != size => return Err(other_size(meta.size)),
                _ => return Err(self.failed("read", path, &error)),
            },
        };
        if found.meta.size != size {
            return Err(other_size(found.meta.size));
        }
        if found.range != range {
            return Err(self.damaged(path, format!("bytes {:?} came instead of {range:?}", found.range)));
        }
        // No more than a piece or a part of an upload, by the callers.
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let bytes = self.collect(path, found, length).await?;
        if bytes.len() < length {
            return Err(self.damaged(path, format!("it ended after {} of {length} bytes", bytes.len())));
        }
        Ok(bytes)
    }

    /// Body of an answer, which may have at most `limit` bytes whatever its headers said.
    async fn collect(&self, path: &Path, found: object_store::GetResult, limit: usize) -> Result<Bytes, StorageError> {
        let mut body = found.into_stream();
        let Some(first) = body.next().await else { return Ok(Bytes::new()) };
        let first = first.map_err(|error| self.failed("read", path, &error))?;
        let mut bytes: Option<BytesMut> = None;
        let mut length = first.len();
        while let Some(next) = body.next().await {
            let next = next.map_err(|error| self.failed("read", path, &error))?;
            length += next.len();
            if length > limit {
                break;
            }
            let bytes = bytes.get_or_insert_with(|| {
                let mut joined = BytesMut::with_capacity(limit);
                joined.extend_from_slice(&first);
                joined
            });
            bytes.extend_from_slice(&next);
        }
        if length > limit {
            return Err(self.damaged(path, format!("more than {limit} bytes came")));
        }
        Ok(bytes.map_or(first, BytesMut::freeze))
    }

    /// A small object of ours; `None` when there is none.
    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        path: &Path,
        magic: Magic,
        limit: u64,
    ) -> Result<Option<T>, StorageError> {
        let request = async {
            let found = match self.store.get(path).await {
                Ok(found) => found,
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(self.failed("read", path, &error)),
            };
            let size = found.meta.size;
            if size > limit {
                return Err(self.damaged(path, format!("it has {size} bytes, and at most {limit} make sense")));
            }
            // The buffer has the size of the object, which is within the limit.
            self.collect(path, found, usize::try_from(size).unwrap_or(usize::MAX)).await.map(Some)
        };
        let Some(bytes) = self.soon("read", path, request).await? else { return Ok(None) };
        let value = envelope::decode(magic, &bytes);
        value.map(Some).ok_or_else(|| self.damaged(path, "it is damaged, or of another version of Eagle"))
    }

    /// Writes a small object of ours; with [`PutMode::Create`] says whether there was none.
    pub(super) async fn put<T: Serialize>(
        &self,
        path: &Path,
        magic: Magic,
        value: &T,
        mode: PutMode,
    ) -> Result<bool, StorageError> {
        let bytes = envelope::encode(magic, value).ok_or_else(|| self.damaged(path, "it cannot be encoded"))?;
        self.soon("write", path, self.put_bytes(path, bytes.into(), mode)).await
    }

    pub(super) async fn put_bytes(&self, path: &Path, bytes: Bytes, mode: PutMode) -> Result<bool, StorageError> {
        let options = PutOptions::from(mode);
        match self.store.put_opts(path, PutPayload::from(bytes), options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(false),
            Err(error) => Err(self.failed("write", path, &error)),
        }
    }

    /// Removes an object; it is no error when there is none.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), StorageError> {
        let request = async {
            match self.store.delete(path).await {
                Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.failed("remove", path, &error)),
            }
        };
        self.soon("remove", path, request).await
    }

    /// The objects below a prefix, at most `limit` of them.
    pub(super) async fn list(&self, prefix: &Path, limit: usize) -> Result<Vec<ObjectMeta>, StorageError> {
        let request = async {
            let mut objects = self.store.list(Some(prefix)).take(limit);
            let mut found = Vec::new();
            while let Some(object) = objects.next().await {
                found.push(object.map_err(|error| self.failed("list", prefix, &error))?);
            }
            Ok(found)
        };
        self.soon("list", prefix, request).await
    }

    /// Whether a blob is marked as complete.
    pub(super) async fn is_complete(&self, digest: Digest) -> Result<bool, StorageError> {
        Ok(self.head(&self.names.complete(digest)).await?.is_some())
    }
}

/// The text with the queries of URLs cut out.
fn without_queries(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, query)) = rest.split_once('?') {
        shown.push_str(before);
        let end = query.find(|c: char| c.is_whitespace() || matches!(c, ')' | '"' | '\'' | '>')).unwrap_or(query.len());
        rest = &query[end..];
    }
    shown.push_str(rest);
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_no_queries() {
        let text =
            "error sending request for url (https://a.example/c/o?sv=1&sig=secret): refused, GET \"/x?y=secret\" ";
        let shown = without_queries(text);
        assert_eq!(shown, "error sending request for url (https://a.example/c/o): refused, GET \"/x\" ");
        assert_eq!(without_queries("a? b"), "a b");
        assert_eq!(without_queries(""), "");
    }
}
