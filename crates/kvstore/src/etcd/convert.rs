//! etcd's messages as ours, and the other way round.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use etcd_client::{
    self as etcd,
    proto::{PbKeyValue, PbTxnOpResponse},
};

use crate::{
    error::StoreError,
    model::{Answer, Compare, Entry, Header, LeaseId, Op, Page, Txn, TxnOutcome},
};

/// What a message that is larger than may be taken is refused with.
const TOO_LARGE: &str = "message length too large";
/// Read to learn the header; it need not be there.
pub(super) const PROBE: &str = "cilium/.heartbeat";

/// Whether an answer was refused because it was larger than may be taken.
pub(super) fn is_too_large(reason: &str) -> bool {
    reason.contains(TOO_LARGE)
}

/// The range of the keys that begin with `prefix` and come after `after`: first key, key behind the last.
pub(super) fn range(prefix: &str, after: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let from = match after {
        Some(after) => [after.as_bytes(), b"\0"].concat(),
        // etcd takes no empty key; the least one stands for it.
        None if prefix.is_empty() => vec![0],
        None => prefix.as_bytes().to_vec(),
    };
    (from, behind(prefix))
}

/// The first key behind all that begin with `prefix`; etcd reads a zero byte as the end of all keys.
fn behind(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

pub(super) fn txn(txn: &Txn) -> etcd::Txn {
    etcd::Txn::new()
        .when(txn.compare.iter().map(compare).collect::<Vec<_>>())
        .and_then(txn.then.iter().map(op).collect::<Vec<_>>())
        .or_else(txn.otherwise.iter().map(op).collect::<Vec<_>>())
}

fn compare(compare: &Compare) -> etcd::Compare {
    let revision = |revision: u64| i64::try_from(revision).unwrap_or(i64::MAX);
    match compare {
        // A key that is not there has revision 0 in etcd; here it has none.
        Compare::ModRevision(key, 0) | Compare::CreateRevision(key, 0) => {
            etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Less, 0)
        }
        Compare::Absent(key) => etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Equal, 0),
        Compare::Present(key) => etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Greater, 0),
        Compare::ModRevision(key, at) => {
            etcd::Compare::mod_revision(key.as_str(), etcd::CompareOp::Equal, revision(*at))
        }
        Compare::CreateRevision(key, at) => {
            etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Equal, revision(*at))
        }
        Compare::Value(key, value) => {
            etcd::Compare::value(key.as_str(), etcd::CompareOp::Equal, value.to_vec())
        }
        // Of a range the condition must hold for every key; where there is none, for revision 0.
        Compare::NoneBelow(prefix) => {
            let (from, end) = range(prefix, None);
            etcd::Compare::create_revision(from, etcd::CompareOp::Equal, 0).with_range(end)
        }
    }
}

fn op(op: &Op) -> etcd::TxnOp {
    match op {
        Op::Get(key) => etcd::TxnOp::get(key.as_str(), None),
        Op::List { prefix, limit } => {
            let (from, end) = range(prefix, None);
            let limit = i64::try_from(*limit).unwrap_or(i64::MAX);
            etcd::TxnOp::get(from, Some(etcd::GetOptions::new().with_range(end).with_limit(limit)))
        }
        Op::Put { key, value, lease } => {
            let options = lease.map(|lease| etcd::PutOptions::new().with_lease(lease.0.cast_signed()));
            etcd::TxnOp::put(key.as_str(), value.to_vec(), options)
        }
        Op::Delete(key) => etcd::TxnOp::delete(key.as_str(), None),
        Op::DeletePrefix(prefix) => {
            let (from, end) = range(prefix, None);
            etcd::TxnOp::delete(from, Some(etcd::DeleteOptions::new().with_range(end)))
        }
    }
}

/// The lease that a refused transaction speaks of, the first of several.
pub(super) fn lease_of(txn: &Txn) -> LeaseId {
    let ops = txn.then.iter().chain(&txn.otherwise);
    let mut leases = ops.filter_map(|op| if let Op::Put { lease, .. } = op { *lease } else { None });
    leases.next().unwrap_or(LeaseId(0))
}

/// What a transaction that asked for so much came to.
pub(super) fn outcome(asked: &Txn, response: etcd::TxnResponse) -> Result<(Header, TxnOutcome), StoreError> {
    let header = header(response.header())?;
    let held = response.succeeded();
    let ops = if held { &asked.then } else { &asked.otherwise };
    if ops.len() != response.0.responses.len() {
        return Err(odd("another number of answers than of questions"));
    }
    let answers = ops.iter().zip(response.0.responses).map(|(op, answer)| {
        Ok(match answer.response {
            Some(PbTxnOpResponse::ResponseRange(got)) if matches!(op, Op::List { .. }) => {
                let entries = got.kvs.into_iter().map(entry_of).collect::<Result<_, _>>()?;
                Answer::Listed { entries, more: got.more }
            }
            Some(PbTxnOpResponse::ResponseRange(got)) => {
                Answer::Got(got.kvs.into_iter().next().map(entry_of).transpose()?)
            }
            Some(PbTxnOpResponse::ResponsePut(_)) => Answer::Put,
            Some(PbTxnOpResponse::ResponseDeleteRange(gone)) => Answer::Deleted(number(gone.deleted)),
            Some(PbTxnOpResponse::ResponseTxn(_)) | None => return Err(odd("an answer to no question")),
        })
    });
    let answers = answers.collect::<Result<_, _>>()?;
    Ok((header, TxnOutcome { held, revision: header.revision, answers }))
}

pub(super) fn page(response: etcd::GetResponse) -> Result<Page, StoreError> {
    let header = header(response.header())?;
    let more = response.more();
    // One block of memory for the values of a page: whoever reads a list keeps keys and lets the values go.
    let mut values = BytesMut::with_capacity(response.0.kvs.iter().map(|kv| kv.value.len()).sum());
    let entry = |mut kv: PbKeyValue| {
        values.extend_from_slice(&std::mem::take(&mut kv.value));
        let mut entry = entry_of(kv)?;
        entry.value = values.split().freeze();
        Ok(entry)
    };
    let entries = response.0.kvs.into_iter().map(entry).collect::<Result<_, StoreError>>()?;
    Ok(Page { entries, more, header })
}

pub(super) fn header(header: Option<&etcd::ResponseHeader>) -> Result<Header, StoreError> {
    let header = header.ok_or_else(|| odd("an answer without a header"))?;
    Ok(Header { cluster: header.cluster_id(), revision: number(header.revision()) })
}

/// The value's bytes are taken over, not copied.
///
/// # Errors
/// A key that is not text. Nobody who shares the layout writes such keys.
pub(super) fn entry_of(kv: PbKeyValue) -> Result<Entry, StoreError> {
    Ok(Entry {
        key: key_of(kv.key)?,
        value: Bytes::from(kv.value),
        create_revision: number(kv.create_revision),
        mod_revision: number(kv.mod_revision),
        version: number(kv.version),
        lease: (kv.lease != 0).then(|| LeaseId(kv.lease.cast_unsigned())),
    })
}

/// etcd's numbers are signed and never negative.
pub(super) fn number(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(super) fn key_of(key: Vec<u8>) -> Result<Arc<str>, StoreError> {
    String::from_utf8(key).map(Arc::from).map_err(|error| StoreError::BadKey {
        key: String::from_utf8_lossy(error.as_bytes()).chars().take(80).collect(),
        reason: "it is not UTF-8; delete it, it stops its prefix from being read",
    })
}

pub(super) fn odd(what: &str) -> StoreError {
    StoreError::Unavailable { what: "answer", reason: format!("the server sent {what}") }
}
