//! The embedded store's file: a redb database with one table each for entries, leases and what is known of
//! the file itself.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition,
    WriteTransaction, backends::FileBackend,
};

use crate::{
    engine::{Disk, Lease, State},
    error::OpenError,
    model::{Entry, Event, LeaseId, LeasePurpose},
};

/// Key to create revision, mod revision, version, lease (0: none), 8 bytes little-endian each, and value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Lease to its seconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
/// `format`, `cluster`, `ceiling`.
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// What this version writes.
const FORMAT: u64 = 1;
/// No revision above the stored ceiling was ever given out, so that a store that comes back continues above
/// all of them, those of keys that were never written to disk included.
const CEILING_STEP: u64 = 100_000;
/// Reads come from memory; the database only needs to write.
const CACHE_BYTES: usize = 1 << 20;
const ENTRY_HEADER: usize = 32;

pub(crate) struct RedbDisk {
    path: PathBuf,
    /// `None` after an error, until it is opened again.
    database: Option<Database>,
    cluster: u64,
    ceiling: u64,
}

pub(crate) struct Loaded {
    pub(crate) disk: RedbDisk,
    pub(crate) state: State,
    pub(crate) cluster: u64,
    /// Where the damaged file lies that was found instead, and what was wrong with it.
    pub(crate) damaged: Option<(PathBuf, String)>,
}

/// Opens the file, or a fresh one in the place of a damaged one.
pub(crate) fn open(path: &Path) -> Result<Loaded, OpenError> {
    match load(path) {
        Ok(loaded) => Ok(loaded),
        Err(Failure::Refused(error)) => Err(error),
        Err(Failure::Damaged(reason)) => {
            let aside = set_aside(path)?;
            let mut loaded = load(path).map_err(|failure| match failure {
                Failure::Refused(error) => error,
                Failure::Damaged(reason) => OpenError::Database { path: path.to_owned(), reason },
            })?;
            loaded.damaged = Some((aside, reason));
            Ok(loaded)
        }
    }
}

enum Failure {
    Refused(OpenError),
    Damaged(String),
}

fn load(path: &Path) -> Result<Loaded, Failure> {
    if !path.exists() {
        make(path)?;
    }
    let database = open_database(path)?;
    let (mut state, meta) = read(&database, path)?;
    // A file that was there and empty.
    let fresh = meta.is_none();
    let (cluster, ceiling) = meta.unwrap_or_else(|| (fastrand::u64(1..), 0));
    let mut disk = RedbDisk { path: path.to_owned(), database: Some(database), cluster, ceiling };
    state.revision = ceiling;
    if fresh {
        disk.begin_file().map_err(|reason| refused(path, reason))?;
    }
    Ok(Loaded { disk, state, cluster, damaged: None })
}

/// Makes the file under another name and then gives it its own, so that a crash on the way leaves no half file.
fn make(path: &Path) -> Result<(), Failure> {
    let io = |reason, source| Failure::Refused(OpenError::Io { path: path.to_owned(), reason, source });
    remove_unfinished(path);
    let unfinished = unfinished_name(path, &std::process::id().to_string());
    let outcome = begin(&unfinished).and_then(|()| match fs::hard_link(&unfinished, path) {
        // Another process was quicker; whose file it is, opening it tells.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked.map_err(|error| io("can't be created", error)),
    });
    let removed = fs::remove_file(&unfinished);
    outcome?;
    removed.map_err(|error| io("its first name can't be removed", error))?;
    sync_directory(path).map_err(Failure::Refused)
}

fn begin(unfinished: &Path) -> Result<(), Failure> {
    let database = Some(open_database(unfinished)?);
    let mut disk =
        RedbDisk { path: unfinished.to_owned(), database, cluster: fastrand::u64(1..), ceiling: 0 };
    disk.begin_file().map_err(|reason| refused(unfinished, reason))
}

fn refused(path: &Path, reason: String) -> Failure {
    Failure::Refused(OpenError::Database { path: path.to_owned(), reason })
}

/// The name of a file that process `maker` is making.
fn unfinished_name(path: &Path, maker: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".new-{maker}"));
    name.into()
}

/// Removes what processes left that died while they made the file.
fn remove_unfinished(path: &Path) {
    let all = unfinished_name(path, "");
    let (Some(directory), Some(begin)) = (path.parent(), all.file_name()) else { return };
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = begin.to_str().and_then(|begin| name.to_str()?.strip_prefix(begin)?.parse::<u32>().ok());
        if maker.is_some_and(|maker| !Path::new(&format!("/proc/{maker}")).exists()) {
            // One that stays does no harm.
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn open_database(path: &Path) -> Result<Database, Failure> {
    let io = |reason, source| Failure::Refused(OpenError::Io { path: path.to_owned(), reason, source });
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(|e| io("can't be opened", e))?;
    file.set_permissions(Permissions::from_mode(0o600)).map_err(|e| io("can't be given mode 0600", e))?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    let backend = FileBackend::new(file).map_err(|error| classify(path, error))?;
    builder.create_with_backend(backend).map_err(|error| classify(path, error))
}

fn classify(path: &Path, error: DatabaseError) -> Failure {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            Failure::Refused(OpenError::InUse { path: path.to_owned() })
        }
        DatabaseError::Storage(StorageError::Corrupted(reason)) => Failure::Damaged(reason),
        DatabaseError::RepairAborted => Failure::Damaged("it could not be repaired".to_owned()),
        // redb reports a file that is not one of its own, or one cut short, as one of these.
        DatabaseError::Storage(StorageError::Io(source))
            if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            Failure::Damaged(source.to_string())
        }
        DatabaseError::Storage(StorageError::Io(source)) => {
            Failure::Refused(OpenError::Io { path: path.to_owned(), reason: "can't be read", source })
        }
        other => Failure::Refused(OpenError::Database { path: path.to_owned(), reason: other.to_string() }),
    }
}

type Meta = Option<(u64, u64)>;

fn read(database: &Database, path: &Path) -> Result<(State, Meta), Failure> {
    let damaged = |what: &dyn std::fmt::Display| Failure::Damaged(what.to_string());
    let read = database.begin_read().map_err(|e| damaged(&e))?;
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok((State::default(), None)),
        Err(error) => return Err(damaged(&error)),
    };
    let number = |key: &str| -> Result<u64, Failure> {
        let value = meta.get(key).map_err(|e| damaged(&e))?;
        value.map(|value| value.value()).ok_or_else(|| damaged(&format!("`{key}` is missing")))
    };
    let found = number("format")?;
    if found > FORMAT {
        let path = path.to_owned();
        return Err(Failure::Refused(OpenError::TooNew { path, found, known: FORMAT }));
    }
    let (cluster, ceiling) = (number("cluster")?, number("ceiling")?);
    let mut state = State::default();
    let leases = read.open_table(LEASES).map_err(|e| damaged(&e))?;
    for row in leases.iter().map_err(|e| damaged(&e))? {
        let (id, secs) = row.map_err(|e| damaged(&e))?;
        let lease = Lease { ttl: Duration::from_secs(secs.value()), purpose: LeasePurpose::Entries };
        state.leases.insert(LeaseId(id.value()), lease);
    }
    let entries = read.open_table(ENTRIES).map_err(|e| damaged(&e))?;
    for row in entries.iter().map_err(|e| damaged(&e))? {
        let (key, value) = row.map_err(|e| damaged(&e))?;
        let entry = decode(key.value(), value.value())
            .ok_or_else(|| damaged(&format!("the entry `{}` is too short", key.value())))?;
        state.load(entry);
    }
    Ok((state, Some((cluster, ceiling))))
}

fn encode(entry: &Entry) -> Vec<u8> {
    let lease = entry.lease.map_or(0, |lease| lease.0);
    let mut bytes = Vec::with_capacity(ENTRY_HEADER + entry.value.len());
    for number in [entry.create_revision, entry.mod_revision, entry.version, lease] {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    bytes.extend_from_slice(&entry.value);
    bytes
}

fn decode(key: &str, bytes: &[u8]) -> Option<Entry> {
    let (header, value) = bytes.split_at_checked(ENTRY_HEADER)?;
    let (numbers, _) = header.as_chunks::<8>();
    let [create, modified, version, lease] = numbers else { return None };
    let lease = u64::from_le_bytes(*lease);
    Some(Entry {
        key: Arc::from(key),
        value: Bytes::copy_from_slice(value),
        create_revision: u64::from_le_bytes(*create),
        mod_revision: u64::from_le_bytes(*modified),
        version: u64::from_le_bytes(*version),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}

/// Renames the file to `<file>.damaged-<unix seconds>`.
fn set_aside(path: &Path) -> Result<PathBuf, OpenError> {
    let secs = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut aside = path.with_file_name(format!("{name}.damaged-{secs}"));
    let mut n = 1;
    while aside.exists() {
        aside = path.with_file_name(format!("{name}.damaged-{secs}-{n}"));
        n += 1;
    }
    let failed = |source| OpenError::Io {
        path: path.to_owned(),
        reason: "is damaged and can't be moved aside",
        source,
    };
    fs::rename(path, &aside).map_err(failed)?;
    Ok(aside)
}

/// A new name is only safe once its directory is.
fn sync_directory(path: &Path) -> Result<(), OpenError> {
    let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let failed = |source| OpenError::Io { path: directory.to_owned(), reason: "can't be synced", source };
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
}

// === impl RedbDisk ===

impl RedbDisk {
    fn begin_file(&mut self) -> Result<(), String> {
        self.write(&|write, _| {
            write.open_table(ENTRIES).map_err(text)?;
            write.open_table(LEASES).map_err(text)?;
            Ok(())
        })
    }

    /// One durable transaction, with the file's own facts in it.
    fn write(
        &mut self,
        fill: &dyn Fn(&WriteTransaction, &Database) -> Result<(), String>,
    ) -> Result<(), String> {
        let database = self.database.as_ref().ok_or("the file is closed after an error")?;
        let write = database.begin_write().map_err(text)?;
        {
            let mut meta = write.open_table(META).map_err(text)?;
            for (key, value) in [("format", FORMAT), ("cluster", self.cluster), ("ceiling", self.ceiling)] {
                meta.insert(key, value).map_err(text)?;
            }
        }
        fill(&write, database)?;
        write.commit().map_err(text)
    }

    /// Opens the file again after an error and makes it equal to `state`: whether the transaction that failed
    /// is in the file is not known, and those who asked for it were told so.
    fn reopen(&mut self, state: &State) -> Result<(), String> {
        let database = open_database(&self.path).map_err(|failure| match failure {
            Failure::Refused(error) => error.to_string(),
            Failure::Damaged(reason) => reason,
        })?;
        self.database = Some(database);
        self.write(&|write, _| {
            write.delete_table(ENTRIES).map_err(text)?;
            write.delete_table(LEASES).map_err(text)?;
            let mut entries = write.open_table(ENTRIES).map_err(text)?;
            for entry in state.entries.values().filter(|entry| state.is_durable(entry)) {
                entries.insert(&*entry.key, encode(entry).as_slice()).map_err(text)?;
            }
            let mut leases = write.open_table(LEASES).map_err(text)?;
            for (id, lease) in durable_leases(state) {
                leases.insert(id, lease).map_err(text)?;
            }
            Ok(())
        })
    }
}

fn durable_leases(state: &State) -> impl Iterator<Item = (u64, u64)> {
    let durable = state.leases.iter().filter(|(_, lease)| lease.purpose == LeasePurpose::Entries);
    durable.map(|(id, lease)| (id.0, lease.ttl.as_secs().max(1)))
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Disk for RedbDisk {
    fn commit(&mut self, old: &State, new: &State, events: &[Event]) -> Result<(), String> {
        let mut touched: Vec<&Arc<str>> = events.iter().map(Event::key).collect();
        touched.sort_unstable();
        touched.dedup();
        let stored =
            |state: &State, key: &Arc<str>| state.entries.get(key).filter(|e| state.is_durable(e)).cloned();
        touched.retain(|key| stored(old, key).is_some() || stored(new, key).is_some());
        let (before, after): (Vec<_>, Vec<_>) =
            (durable_leases(old).collect(), durable_leases(new).collect());
        let grows = new.revision > self.ceiling;
        if touched.is_empty() && before == after && !grows {
            return Ok(());
        }
        if self.database.is_none() {
            self.reopen(old)?;
        }
        if grows {
            self.ceiling = new.revision + CEILING_STEP;
        }
        let outcome = self.write(&|write, _| {
            let mut entries = write.open_table(ENTRIES).map_err(text)?;
            for key in &touched {
                match stored(new, key) {
                    Some(entry) => {
                        entries.insert(&***key, encode(&entry).as_slice()).map_err(text)?.is_some()
                    }
                    None => entries.remove(&***key).map_err(text)?.is_some(),
                };
            }
            let mut leases = write.open_table(LEASES).map_err(text)?;
            for (id, _) in before.iter().filter(|lease| !after.contains(lease)) {
                leases.remove(id).map_err(text)?;
            }
            for (id, ttl) in after.iter().filter(|lease| !before.contains(lease)) {
                leases.insert(id, ttl).map_err(text)?;
            }
            Ok(())
        });
        if outcome.is_err() {
            self.database = None;
        }
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Op, Txn};

    fn put(state: &State, key: &str, value: &str) -> (State, Vec<Event>) {
        let mut next = state.clone();
        let (_, events) = next.apply(&Txn::new().then(Op::put(key, value.to_owned(), None))).unwrap();
        (next, events)
    }

    fn content(path: &Path) -> Vec<(String, Bytes)> {
        let loaded = open(path).unwrap();
        assert!(loaded.damaged.is_none());
        loaded.state.entries.values().map(|entry| (entry.key.to_string(), entry.value.clone())).collect()
    }

    #[test]
    fn after_an_error_the_file_is_opened_again_and_made_equal() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvstore");
        let mut loaded = open(&path).unwrap();
        let (first, events) = put(&loaded.state, "a", "1");
        loaded.disk.commit(&loaded.state, &first, &events).unwrap();
        // This one arrives, although those who asked are told that it is not known.
        let (lost, events) = put(&first, "lost", "x");
        loaded.disk.commit(&first, &lost, &events).unwrap();
        loaded.disk.database = None;
        let (second, events) = put(&first, "b", "2");
        loaded.disk.commit(&first, &second, &events).unwrap();
        drop(loaded);
        assert_eq!(content(&path), [("a".to_owned(), "1".into()), ("b".to_owned(), "2".into())]);
    }

    #[test]
    fn a_later_format_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kvstore");
        let loaded = open(&path).unwrap();
        let database = loaded.disk.database.as_ref().unwrap();
        let write = database.begin_write().unwrap();
        write.open_table(META).unwrap().insert("format", FORMAT + 1).unwrap();
        write.commit().unwrap();
        drop(loaded);
        assert!(matches!(open(&path), Err(OpenError::TooNew { found, .. }) if found == FORMAT + 1));
        assert!(path.exists());
    }

    #[test]
    fn entries_that_are_too_short_are_none() {
        assert!(decode("a", &[0; ENTRY_HEADER - 1]).is_none());
        assert!(decode("a", &[0; ENTRY_HEADER]).is_some_and(|e| e.lease.is_none() && e.value.is_empty()));
    }
}
