//! The store of one node, in one file.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;

use crate::{
    disk,
    engine::{Engine, EngineWatch},
    error::{OpenError, StoreError},
    model::{Header, LeaseId, LeasePurpose, Listing, Page, Status, Txn, TxnOutcome},
    store::{Store, Watch},
};

/// A store on disk for a single process. Clones share it; it is closed with the last of them.
///
/// What was acknowledged survives a crash and a power cut. Reads come from memory. Leases get their whole
/// time again when the store is opened; locks and what lies under them do not outlive the process. Watches can
/// not be resumed across an opening: revisions go on, but the changes before are forgotten.
#[derive(Clone)]
pub struct Embedded {
    engine: Arc<Engine>,
    path: Arc<Path>,
}

/// A store that was opened, and what was found.
pub struct Opened {
    /// The store.
    pub store: Embedded,
    /// The file was damaged: it now lies here, for this reason, and the store is empty.
    pub damaged: Option<(PathBuf, String)>,
}

// === impl Embedded ===

impl Embedded {
    /// Opens the file, or makes it (mode 0600; its directory must be there). Blocks the thread.
    ///
    /// # Errors
    /// When another process has it open, a later version wrote it, or the file system refuses.
    pub fn open(path: &Path) -> Result<Opened, OpenError> {
        let loaded = disk::open(path)?;
        let engine = Engine::start("kvstore", loaded.state, loaded.cluster, Box::new(loaded.disk));
        let engine = engine.map_err(|source| OpenError::Io {
            path: path.to_owned(),
            reason: "its thread can't be started",
            source,
        })?;
        let store = Self { engine: Arc::new(engine), path: Arc::from(path) };
        Ok(Opened { store, damaged: loaded.damaged })
    }

    /// Which store it is, and its revision.
    pub fn current(&self) -> Header {
        self.engine.header()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[async_trait]
impl Store for Embedded {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.engine.txn(txn).await
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        self.engine.list_page(prefix, after, limit, revision)
    }

    async fn list_prefix(&self, prefix: &str) -> Result<Listing, StoreError> {
        Ok(self.engine.list(prefix))
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        Ok(Box::new(EngineWatch::new(self.engine.shared(), prefix, from)))
    }

    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        self.engine.grant(ttl, purpose).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.engine.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.engine.revoke(lease).await
    }

    async fn status(&self) -> Status {
        let path = self.path.display();
        self.engine.shared().read(|p| {
            let header = Header { cluster: p.cluster, revision: p.state.revision };
            let (keys, leases) = (p.state.entries.len(), p.state.leases.len());
            let text = match &p.failing {
                None => format!(
                    "Embedded: Ok, {path}, keys={keys}, leases={leases}, revision={}",
                    header.revision
                ),
                Some(reason) => format!("Embedded: can't write {path}: {reason}; known keys stay in use"),
            };
            Status { text, healthy: p.failing.is_none(), header }
        })
    }

    async fn header(&self) -> Result<Header, StoreError> {
        Ok(self.engine.header())
    }
}
