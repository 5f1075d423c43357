//! Kernel maps with types: keys and values are those of `villus-abi`.

use std::{
    borrow::Cow,
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
};

use villus_abi::{Bytes, bytes_of, from_bytes};

use crate::{
    error::{Context, Error, Result},
    flows::now_ns,
    sys::{Kind, MapInfo, RawMap, Update},
};

/// Elements of a batch: large enough that a bucket of a hash map fits, small enough for a modest buffer.
const BATCH: usize = 1024;
/// `ENOTSUPP`, which the kernel returns for a kind of map without batches.
const ENOTSUPP: i32 = 524;

/// A kernel map from `K` to `V`, whose values may have room behind them, zeros, that nobody reads.
#[derive(Debug)]
pub struct Map<K, V> {
    raw: RawMap,
    name: String,
    epoch: Option<Arc<Map<u32, u64>>>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

impl<K: Bytes, V: Bytes> Map<K, V> {
    /// Gives an open map types. `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Kernel`] when key or value have other sizes.
    pub fn new(raw: RawMap, name: impl Into<String>) -> Result<Self> {
        Self::roomy(raw, name, 0)
    }

    /// As [`Self::new`], of a map whose values are so many bytes longer than `V`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn roomy(raw: RawMap, name: impl Into<String>, room: usize) -> Result<Self> {
        let (name, value) = (name.into(), size_of::<V>() + room);
        if raw.key_len() != size_of::<K>() || raw.value_len() != value {
            let source = io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "keys of {} and values of {} bytes, wanted {} and {value}",
                    raw.key_len(),
                    raw.value_len(),
                    size_of::<K>(),
                ),
            );
            return Err(Error::Kernel { action: "open", what: name, source });
        }
        Ok(Self { raw, name, epoch: None, types: PhantomData })
    }

    /// The bytes of a value with the room behind it.
    fn stored<'a>(&self, value: &'a V) -> Cow<'a, [u8]> {
        let bytes = bytes_of(value);
        let len = self.raw.value_len();
        if bytes.len() == len {
            return Cow::Borrowed(bytes);
        }
        let mut roomy = bytes.to_vec();
        roomy.resize(len, 0);
        Cow::Owned(roomy)
    }

    /// From now on every change through this handle ends with another number in an epoch's map: programs believe what they have
    /// looked up here before no longer.
    #[must_use]
    pub fn counted_by(mut self, epoch: &Arc<Map<u32, u64>>) -> Self {
        self.epoch = Some(Arc::clone(epoch));
        self
    }

    /// After a change, whether it went through or not: a part of it may have.
    fn after<T>(&self, result: Result<T>) -> Result<T> {
        let changed = self.epoch.as_ref().map_or(Ok(()), |epoch| epoch.renew());
        result.and_then(|done| changed.map(|()| done))
    }

    /// What errors call this map.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the kernel says about the map.
    #[must_use]
    pub const fn info(&self) -> &MapInfo {
        self.raw.info()
    }

    /// The map without its types.
    #[must_use]
    pub const fn raw(&self) -> &RawMap {
        &self.raw
    }

    /// Bytes of kernel memory.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn memory(&self) -> Result<u64> {
        self.raw.memory().on("account", &self.name)
    }

    /// The value of a key. Of an LPM trie: the value of the longest prefix that covers the key.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let mut value = vec![0; self.raw.value_len()];
        let found = self.raw.lookup(bytes_of(key), &mut value).on("read", &self.name)?;
        Ok(if found { front(&value) } else { None })
    }

    /// Inserts or replaces.
    ///
    /// # Errors
    /// [`Error::Kernel`], with `E2BIG` when the map is full.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.after(self.put(key, value))
    }

    fn put(&self, key: &K, value: &V) -> Result<()> {
        self.raw.update(bytes_of(key), &self.stored(value), Update::Any).on("write", &self.name)
    }

    /// Inserts unless the key is there; says whether it did.
    ///
    /// # Errors
    /// As [`Self::insert`].
    pub fn insert_new(&self, key: &K, value: &V) -> Result<bool> {
        match self.raw.update(bytes_of(key), &self.stored(value), Update::NoExist) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            result => self.after(result.map(|()| true).on("write", &self.name)),
        }
    }

    /// Replaces if the key is there; says whether it did.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn replace(&self, key: &K, value: &V) -> Result<bool> {
        match self.raw.update(bytes_of(key), &self.stored(value), Update::Exist) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            result => self.after(result.map(|()| true).on("write", &self.name)),
        }
    }

    /// Removes; says whether it was there.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.after(self.take(key))
    }

    fn take(&self, key: &K) -> Result<bool> {
        self.raw.delete(bytes_of(key)).on("remove from", &self.name)
    }

    /// Inserts or replaces many, in batches where the kernel has them.
    ///
    /// # Errors
    /// As [`Self::insert`]; elements before the one that failed are written.
    pub fn insert_all(&self, elements: &[(K, V)]) -> Result<()> {
        if let [(key, value)] = elements {
            return self.insert(key, value);
        }
        self.after(self.insert_chunks(elements))
    }

    fn insert_chunks(&self, elements: &[(K, V)]) -> Result<()> {
        for chunk in elements.chunks(BATCH) {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (key, value) in chunk {
                keys.extend_from_slice(bytes_of(key));
                values.extend_from_slice(&self.stored(value));
            }
            match self.raw.update_batch(&keys, &values) {
                Ok(()) => {}
                Err((e, 0)) if no_batches(&e) => {
                    chunk.iter().try_for_each(|(key, value)| self.put(key, value))?;
                }
                Err((e, _)) => return Err(e).on("write", &self.name),
            }
        }
        Ok(())
    }

    /// Removes many, in batches where the kernel has them; says how many were there.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove_all(&self, keys: &[K]) -> Result<usize> {
        if let [key] = keys {
            return self.remove(key).map(usize::from);
        }
        let mut removed = 0;
        let mut chunks = keys.chunks(BATCH);
        self.after(chunks.try_for_each(|chunk| self.remove_chunk(chunk).map(|gone| removed += gone)))?;
        Ok(removed)
    }

    fn remove_chunk(&self, mut keys: &[K]) -> Result<usize> {
        let mut removed = 0;
        while !keys.is_empty() {
            let bytes: Vec<u8> = keys.iter().flat_map(bytes_of).copied().collect();
            match self.raw.delete_batch(&bytes) {
                Ok(()) => return Ok(removed + keys.len()),
                // The one the batch stopped at was gone already.
                Err((e, done)) if e.kind() == io::ErrorKind::NotFound => {
                    removed += done;
                    keys = &keys[(done + 1).min(keys.len())..];
                }
                Err((e, 0)) if no_batches(&e) => {
                    for key in keys {
                        removed += usize::from(self.take(key)?);
                    }
                    return Ok(removed);
                }
                Err((e, _)) => return Err(e).on("remove from", &self.name),
            }
        }
        Ok(removed)
    }

    /// All elements. An element that is there during the whole reading is in the result exactly once, whatever
    /// else comes and goes; of an array, every index.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.each(|key, value| all.push((key, value)))?;
        Ok(all)
    }

    /// Shows every element once, for who need not have them all together.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn each(&self, mut visit: impl FnMut(K, V)) -> Result<()> {
        scan(&self.raw, |key, value| {
            if let (Some(key), Some(value)) = (from_bytes(key), front(value)) {
                visit(key, value);
            }
        })
        .on("list", &self.name)
    }

    /// Number of elements, by counting them.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn count(&self) -> Result<usize> {
        let mut count = 0;
        scan(&self.raw, |_, _| count += 1).on("list", &self.name)?;
        Ok(count)
    }

    /// Removes every element that `doomed` picks; says how many.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn remove_if(&self, mut doomed: impl FnMut(&K, &V) -> bool) -> Result<usize> {
        let mut keys: Vec<K> = Vec::new();
        scan(&self.raw, |key, value| {
            if let (Some(key), Some(value)) = (from_bytes(key), front(value))
                && doomed(&key, &value)
            {
                keys.push(key);
            }
        })
        .on("list", &self.name)?;
        self.remove_all(&keys)
    }
}

impl Map<u32, u64> {
    /// Of an epoch's map: says that something has changed. The clock gives the number: two who change maps at a time never write
    /// one that was there before.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn renew(&self) -> Result<()> {
        self.insert(&0, &now_ns())
    }
}

/// The value at the front of what a map holds.
pub(crate) fn front<V: Bytes>(stored: &[u8]) -> Option<V> {
    from_bytes(stored.get(..size_of::<V>())?)
}

/// A per-CPU array or hash: each lookup yields one value per possible CPU.
#[derive(Debug)]
pub struct PerCpuMap<K, V> {
    raw: RawMap,
    name: String,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> AsFd for PerCpuMap<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

impl<K: Bytes, V: Bytes> PerCpuMap<K, V> {
    /// Gives an open per-CPU map types.
    ///
    /// # Errors
    /// [`Error::Kernel`] when key or value have other sizes.
    pub fn new(raw: RawMap, name: impl Into<String>) -> Result<Self> {
        let (name, info) = (name.into(), raw.info());
        let per_cpu = Kind::from_number(info.kind).is_some_and(Kind::is_per_cpu);
        if !per_cpu || info.key as usize != size_of::<K>() || info.value as usize != size_of::<V>() {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not a per-CPU map of these types");
            return Err(Error::Kernel { action: "open", what: name, source });
        }
        Ok(Self { raw, name, types: PhantomData })
    }

    /// What the kernel says about the map.
    #[must_use]
    pub const fn info(&self) -> &MapInfo {
        self.raw.info()
    }

    /// The map without its types.
    #[must_use]
    pub const fn raw(&self) -> &RawMap {
        &self.raw
    }

    /// Bytes of kernel memory.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn memory(&self) -> Result<u64> {
        self.raw.memory().on("account", &self.name)
    }

    /// The values of a key, one per possible CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn get(&self, key: &K) -> Result<Option<Vec<V>>> {
        let mut bytes = vec![0; self.raw.value_len()];
        let found = self.raw.lookup(bytes_of(key), &mut bytes).on("read", &self.name)?;
        Ok(found.then(|| per_cpu_values(&bytes)))
    }

    /// All elements, each with its values, one per possible CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn entries(&self) -> Result<Vec<(K, Vec<V>)>> {
        let mut all = Vec::new();
        scan(&self.raw, |key, value| {
            if let Some(key) = from_bytes(key) {
                all.push((key, per_cpu_values(value)));
            }
        })
        .on("list", &self.name)?;
        Ok(all)
    }

    /// Writes the same value for every CPU.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn fill(&self, key: &K, value: &V) -> Result<()> {
        let mut bytes = vec![0; self.raw.value_len()];
        for slot in bytes.chunks_mut(size_of::<V>().next_multiple_of(8)) {
            slot[..size_of::<V>()].copy_from_slice(bytes_of(value));
        }
        self.raw.update(bytes_of(key), &bytes, Update::Any).on("write", &self.name)
    }
}

fn per_cpu_values<V: Bytes>(bytes: &[u8]) -> Vec<V> {
    bytes
        .chunks(size_of::<V>().next_multiple_of(8))
        .filter_map(|slot| slot.get(..size_of::<V>()).and_then(from_bytes))
        .collect()
}

/// Whether an error says that kernel or kind of map has no batch operations.
pub(crate) fn no_batches(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP))
}

/// Visits every element of a map once, whatever comes and goes meanwhile.
pub(crate) fn scan(raw: &RawMap, mut visit: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    match Kind::from_number(raw.info().kind) {
        Some(Kind::Array | Kind::PerCpuArray | Kind::ArrayOfMaps) => scan_array(raw, &mut visit),
        Some(Kind::Hash | Kind::LruHash | Kind::PerCpuHash | Kind::LruPerCpuHash) => {
            match scan_buckets(raw, &mut visit) {
                Err(e) if no_batches(&e) => scan_keys(raw, &mut visit),
                result => result,
            }
        }
        _ => scan_keys(raw, &mut visit),
    }
}

/// An array: every index; of a map of maps, every slot that holds one.
fn scan_array(raw: &RawMap, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let mut value = vec![0; raw.value_len()];
    for index in 0..raw.info().entries {
        let key = index.to_ne_bytes();
        if raw.lookup(&key, &mut value)? {
            visit(&key, &value);
        }
    }
    Ok(())
}

/// A hash: bucket by bucket. An element never leaves its bucket and a bucket is read under its lock, so each
/// element is seen once.
fn scan_buckets(raw: &RawMap, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    let (key_len, value_len) = (raw.key_len(), raw.value_len());
    let mut room = BATCH.min(raw.info().entries.max(1) as usize);
    let mut token = Vec::new();
    let mut first = true;
    loop {
        let (mut keys, mut values) = (vec![0; room * key_len], vec![0; room * value_len]);
        match raw.lookup_batch(&mut token, &mut keys, &mut values, false) {
            Ok((count, end)) => {
                first = false;
                for (key, value) in keys.chunks(key_len).zip(values.chunks(value_len)).take(count) {
                    visit(key, value);
                }
                if end {
                    return Ok(());
                }
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => room *= 2,
            Err(e) if first || !no_batches(&e) => return Err(e),
            Err(e) => return Err(io::Error::other(e)),
        }
    }
}

/// Any other kind: key by key. When a key vanishes under us the kernel begins again, so what was seen is
/// remembered, and an endless churn ends after a number of such beginnings.
fn scan_keys(raw: &RawMap, visit: &mut impl FnMut(&[u8], &[u8])) -> io::Result<()> {
    // 128 bits of a key tell it from all others, and are less than the key.
    let fingerprints = [RandomState::new(), RandomState::new()];
    let fingerprint = |key: &[u8]| fingerprints.each_ref().map(|of| of.hash_one(key));
    let mut seen: HashSet<[u64; 2]> = HashSet::new();
    let mut value = vec![0; raw.value_len()];
    let mut next = vec![0; raw.key_len()];
    let mut key: Option<Vec<u8>> = None;
    let mut repeats = 0_usize;
    while raw.next_key(key.as_deref(), &mut next)? {
        if !seen.insert(fingerprint(&next)) {
            repeats += 1;
            if repeats > 16 * (seen.len() + BATCH) {
                return Err(io::Error::new(
                    io::ErrorKind::Interrupted,
                    "the map changes too fast to be listed",
                ));
            }
        } else if raw.lookup(&next, &mut value)? {
            visit(&next, &value);
        }
        key.get_or_insert_default().clone_from(&next);
    }
    Ok(())
}
