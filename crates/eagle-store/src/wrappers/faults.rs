//! A storage that fails when told to.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use async_trait::async_trait;

use super::{Call, Policy};
use crate::error::StorageError;

/// Calls that are to fail, each kind by itself.
#[derive(Debug, Default)]
pub struct Faults {
    planned: Mutex<HashMap<Call, Plan>>,
}

#[derive(Debug, Clone, Copy)]
struct Plan {
    /// Calls that still go through.
    pass: u32,
    /// Calls after them that fail.
    fail: u32,
    kind: io::ErrorKind,
}

impl Faults {
    /// The next `fail` calls of this kind, after `pass` that go through, fail like the operating system does with `kind`
    /// ([`io::ErrorKind::StorageFull`] becomes [`StorageError::OutOfSpace`]). Takes the place of what was planned for
    /// the kind before.
    pub fn plan(&self, call: Call, pass: u32, fail: u32, kind: io::ErrorKind) {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        planned.insert(call, Plan { pass, fail, kind });
    }
}

#[async_trait]
impl Policy for Faults {
    async fn before(&self, call: Call, _bytes: u64) -> Result<(), StorageError> {
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(plan) = planned.get_mut(&call) else { return Ok(()) };
        if plan.pass > 0 {
            plan.pass -= 1;
            return Ok(());
        }
        let kind = plan.kind;
        plan.fail = plan.fail.saturating_sub(1);
        if plan.fail == 0 {
            planned.remove(&call);
        }
        Err(StorageError::io("use", Path::new("a storage with planned faults"), kind.into()))
    }
}
