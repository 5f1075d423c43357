//! etcd (3.4 and later) as a store that many nodes share.
//!
//! One member is asked at a time; when it does not answer the next is. Reads and writes are linearizable, every
//! request wants a leader, watches are told when there is none. A write that fails on the way may have taken
//! place: it is not repeated here.

mod channel;
mod connection;
mod convert;
mod file;
mod options;
mod watch;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use etcd_client::{Client, GetOptions};

pub use options::{EtcdOptions, EtcdTls, OptionsError};

use crate::{
    error::StoreError,
    figures::{Figures, Operation},
    guard::Guard,
    model::{Header, LeaseId, LeasePurpose, Page, Status, Txn, TxnOutcome},
    store::{PAGE, Store, Watch},
};
use connection::{Connection, Whom};
use watch::EtcdWatch;

/// A cluster of etcd. Clones share its connections.
#[derive(Clone)]
pub struct Etcd(Arc<Inner>);

struct Inner {
    connection: Connection,
    /// Leases granted and not revoked: for entries, for locks.
    leases: Mutex<Vec<(LeaseId, LeasePurpose)>>,
    /// Checks of the quorum that failed one after another.
    quorum_errors: AtomicU32,
    last: Mutex<Header>,
}

// === impl Etcd ===

impl Etcd {
    /// Describes the cluster; nothing is asked yet, and members that are away are no error.
    ///
    /// # Errors
    /// Options that cannot be used: addresses, certificates that cannot be read.
    pub fn new(options: EtcdOptions) -> Result<Self, OptionsError> {
        connection::check_files(&options)?;
        Self::patient(options)
    }

    /// As [`Etcd::new`], but certificates that cannot be read yet are waited for: until then the store is not there.
    ///
    /// # Errors
    /// Addresses that cannot be used.
    pub fn patient(options: EtcdOptions) -> Result<Self, OptionsError> {
        Self::with(options, None)
    }

    /// As [`Etcd::patient`], but nothing is asked and nothing written over a connection before the guard has let it pass.
    ///
    /// # Errors
    /// Addresses that cannot be used.
    pub fn guarded(options: EtcdOptions, guard: Arc<Guard>) -> Result<Self, OptionsError> {
        Self::with(options, Some(guard))
    }

    fn with(options: EtcdOptions, guard: Option<Arc<Guard>>) -> Result<Self, OptionsError> {
        Ok(Self(Arc::new(Inner {
            connection: Connection::new(options, guard)?,
            leases: Mutex::default(),
            quorum_errors: AtomicU32::new(0),
            last: Mutex::new(Header { cluster: 0, revision: 0 }),
        })))
    }

    /// From now on the steady rate (`etcd.qps`) counts instead of the one for the start (`etcd.bootstrapQps`).
    pub fn started(&self) {
        self.0.connection.started();
    }

    /// Checks of the quorum that failed one after another; 0 while it is proven.
    pub fn quorum_errors(&self) -> u32 {
        self.0.quorum_errors.load(Ordering::Relaxed)
    }

    /// Waits until a request fails, of whoever asks; one that failed since this was last waited for counts.
    pub async fn trouble(&self) {
        self.0.connection.trouble().await;
    }

    /// Asks the store again which cluster it is of, now, over the connections that there are.
    ///
    /// # Errors
    /// The store is not there, or it is another cluster's.
    pub async fn check(&self) -> Result<(), StoreError> {
        self.0.connection.admit_anew().await
    }

    /// How long requests took, and how long events waited.
    pub fn figures(&self) -> &Figures {
        self.0.connection.figures()
    }

    fn note(&self, header: Header) -> Header {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = header;
        header
    }

    async fn header_of(&self, whom: Whom) -> Result<Header, StoreError> {
        let asked = |mut client: Client| async move {
            client.get(convert::PROBE, Some(GetOptions::new().with_count_only())).await
        };
        let response =
            self.0.connection.read_of(whom, Operation::read("header", convert::PROBE), asked).await?;
        convert::header(response.header())
    }

    fn count(&self, purpose: LeasePurpose) -> usize {
        let leases = self.0.leases.lock().unwrap_or_else(PoisonError::into_inner);
        leases.iter().filter(|(_, p)| *p == purpose).count()
    }

    fn forget(&self, lease: LeaseId) {
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner).retain(|(id, _)| *id != lease);
    }
}

#[async_trait]
impl Store for Etcd {
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        crate::engine::check(&txn)?;
        let asked = |mut client: Client| {
            let request = convert::txn(&txn);
            async move { client.txn(request).await }
        };
        let result = self.0.connection.call(Operation::from(&txn), asked).await;
        match result {
            Ok(response) => {
                let (header, outcome) = convert::outcome(&txn, response)?;
                self.note(header);
                Ok(outcome)
            }
            Err(StoreError::LeaseNotFound(_)) => Err(StoreError::LeaseNotFound(convert::lease_of(&txn))),
            Err(error) => Err(error),
        }
    }

    async fn list_page(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        revision: u64,
    ) -> Result<Page, StoreError> {
        let (from, end) = convert::range(prefix, after);
        let limit = limit.min(self.0.connection.page());
        let options =
            GetOptions::new().with_range(end).with_revision(i64::try_from(revision).unwrap_or(i64::MAX));
        let list = async |limit: usize| {
            let options = options.clone().with_limit(i64::try_from(limit).unwrap_or(0));
            let asked = |client: Client| {
                // A page of large values may be larger than what gRPC takes by default.
                let mut kv = client.kv_client().max_decoding_message_size(self.0.connection.max_message());
                let (from, options) = (from.clone(), options.clone());
                async move { kv.get(from, Some(options)).await }
            };
            self.0.connection.read(Operation::read("list", prefix), asked).await
        };
        let answer = match list(limit).await {
            Err(StoreError::Unavailable { reason, .. }) if limit > PAGE && convert::is_too_large(&reason) => {
                list(PAGE).await
            }
            answer => answer,
        };
        let response = match answer {
            Ok(response) => response,
            Err(StoreError::Compacted { .. }) => {
                return Err(StoreError::Compacted { requested: revision, oldest: 0 });
            }
            Err(error) => return Err(error),
        };
        let page = convert::page(response)?;
        self.note(page.header);
        Ok(page)
    }

    async fn watch(&self, prefix: &str, from: u64) -> Result<Box<dyn Watch>, StoreError> {
        let largest = self.0.connection.max_message();
        let asked = |client: Client| async move { watch::open(&client, prefix, from, largest).await };
        let stream = self.0.connection.read(Operation::read("watch", prefix), asked).await?;
        Ok(Box::new(EtcdWatch::new(stream, prefix, from, self.figures())))
    }

    async fn grant(&self, ttl: Duration, purpose: LeasePurpose) -> Result<LeaseId, StoreError> {
        // etcd counts whole seconds.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds.max(1)).unwrap_or(i64::MAX);
        let asked = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let response = self.0.connection.call(Operation::lease("grant", "set"), asked).await?;
        let lease = LeaseId(response.id().cast_unsigned());
        self.0.leases.lock().unwrap_or_else(PoisonError::into_inner).push((lease, purpose));
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), StoreError> {
        let asked = |mut client: Client| async move {
            let (mut keeper, mut answers) = client.lease_keep_alive(lease.0.cast_signed()).await?;
            keeper.keep_alive().await?;
            Ok(answers.message().await?.map_or(-1, |answer| answer.ttl()))
        };
        let left = self.0.connection.read(Operation::lease("keep-alive", "set"), asked).await;
        match left {
            Ok(1..) => Ok(()),
            Ok(0) | Err(StoreError::LeaseNotFound(_)) => {
                self.forget(lease);
                Err(StoreError::LeaseNotFound(lease))
            }
            Ok(_) => Err(StoreError::Unavailable {
                what: "keep-alive",
                reason: "the stream ended without an answer".to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.forget(lease);
        let id = lease.0.cast_signed();
        let asked = |mut client: Client| async move { client.lease_revoke(id).await };
        let revoked = self.0.connection.call(Operation::lease("revoke", "delete"), asked).await;
        match revoked {
            Ok(_) | Err(StoreError::LeaseNotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn status(&self) -> Status {
        let members = self.0.connection.members().await;
        let quorum = self.header_of(Whom::Anyone).await;
        let refusal = self.0.connection.guard().and_then(Guard::refusal);
        if let Ok(header) = &quorum
            && refusal.is_none()
        {
            self.note(*header);
        }
        let errors = match &quorum {
            Ok(_) => {
                self.0.quorum_errors.store(0, Ordering::Relaxed);
                0
            }
            Err(_) => self.0.quorum_errors.fetch_add(1, Ordering::Relaxed) + 1,
        };
        let connected = members.iter().filter(|member| member.connected).count();
        let lines: Vec<String> = members.iter().map(ToString::to_string).collect();
        let trouble = match &quorum {
            Ok(_) => String::new(),
            Err(error) => format!(", consecutive-errors={errors} ({error})"),
        };
        let refused = refusal.as_ref().map(|reason| format!("; {reason}")).unwrap_or_default();
        Status {
            text: format!(
                "etcd: {connected}/{} connected, leases={}, lock leases={}, has-quorum={}{trouble}: {}{refused}",
                members.len(),
                self.count(LeasePurpose::Entries),
                self.count(LeasePurpose::Locks),
                quorum.is_ok(),
                lines.join("; ")
            ),
            healthy: quorum.is_ok() && refusal.is_none(),
            header: *self.0.last.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }

    async fn header(&self) -> Result<Header, StoreError> {
        Ok(self.note(self.header_of(Whom::Ours).await?))
    }
}
