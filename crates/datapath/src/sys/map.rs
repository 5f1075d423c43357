//! Maps of the kernel: creation, elements, batches.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use super::{
    Cmd, addr, addr_mut, bpf, bpf_fd, expect_kind, fd_by_id, info, invalid, next_id, object_name, raw, text,
};

/// Kinds of map that Villus uses; numbers of `enum bpf_map_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "the kernel's names")]
pub enum Kind {
    Hash = 1,
    Array = 2,
    ProgArray = 3,
    PerCpuHash = 5,
    PerCpuArray = 6,
    LruHash = 9,
    LruPerCpuHash = 10,
    LpmTrie = 11,
    ArrayOfMaps = 12,
    HashOfMaps = 13,
    RingBuf = 27,
}

impl Kind {
    const ALL: [Self; 11] = [
        Self::Hash,
        Self::Array,
        Self::ProgArray,
        Self::PerCpuHash,
        Self::PerCpuArray,
        Self::LruHash,
        Self::LruPerCpuHash,
        Self::LpmTrie,
        Self::ArrayOfMaps,
        Self::HashOfMaps,
        Self::RingBuf,
    ];

    /// The kind of a number of `enum bpf_map_type`, if it is one of ours.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u32 == number)
    }

    /// Whether a lookup yields one value per possible CPU.
    #[must_use]
    pub const fn is_per_cpu(self) -> bool {
        matches!(self, Self::PerCpuHash | Self::PerCpuArray | Self::LruPerCpuHash)
    }
}

/// Map flag: elements are allocated when they are inserted (`BPF_F_NO_PREALLOC`).
pub const NO_PREALLOC: u32 = 1;

/// What a map is to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec<'a> {
    /// Name, cut to the kernel's 15 characters.
    pub name: &'a str,
    /// Kind.
    pub kind: Kind,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value.
    pub value: u32,
    /// Most entries; bytes for a ring buffer.
    pub entries: u32,
    /// `BPF_F_*` of map creation.
    pub flags: u32,
}

/// What the kernel says about a map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapInfo {
    /// The kernel's id, unique while the machine is up.
    pub id: u32,
    /// Number of `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key: u32,
    /// Bytes of a value (of one CPU).
    pub value: u32,
    /// Most entries.
    pub entries: u32,
    /// `BPF_F_*` of map creation.
    pub flags: u32,
    /// Name, at most 15 characters.
    pub name: String,
    /// BTF type of its values, 0 if it has none.
    pub btf_value_type: u32,
}

/// How an element may be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Update {
    /// Insert or replace.
    Any = 0,
    /// Insert only (`BPF_NOEXIST`).
    NoExist = 1,
    /// Replace only (`BPF_EXIST`).
    Exist = 2,
}

#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
struct ElemAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// `struct bpf_map_info`, as far as we read it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_vmlinux_value_type: u32,
    netns_dev: u64,
    netns_ino: u64,
    btf_id: u32,
    btf_key_type: u32,
    btf_value_type: u32,
    btf_vmlinux: u32,
}

/// An open map together with what the kernel says about it, so that lengths can be checked.
#[derive(Debug)]
pub struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    value_len: usize,
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Token of a batch lookup. Hash maps keep a bucket number in it, the generic ones a key.
type Token = Vec<u8>;

impl RawMap {
    /// Creates a map; `inner` is the template of a map of maps.
    ///
    /// # Errors
    /// Whatever the kernel says: `EPERM` without the right, `ENOMEM`, `EINVAL` for a kind it lacks.
    pub fn create(spec: &MapSpec<'_>, inner: Option<&Self>) -> io::Result<Self> {
        let mut attr = CreateAttr {
            map_type: spec.kind as u32,
            key_size: spec.key,
            value_size: spec.value,
            max_entries: spec.entries,
            map_flags: spec.flags,
            inner_map_fd: inner.map_or(0, |map| raw(map.as_fd())),
            numa_node: 0,
            map_name: object_name(spec.name),
        };
        // SAFETY: `CreateAttr` is the beginning of the MAP_CREATE member; no pointers; returns a descriptor.
        Self::from_fd(unsafe { bpf_fd(Cmd::MapCreate, &mut attr)? })
    }

    /// Takes an open descriptor.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a map's.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        expect_kind(fd.as_fd(), "bpf-map")?;
        let mut out = RawInfo::default();
        // SAFETY: `RawInfo` begins like `bpf_map_info` and holds no pointers.
        unsafe { info(fd.as_fd(), &mut out)? };
        let value = out.value as usize;
        let value_len = match Kind::from_number(out.kind) {
            Some(kind) if kind.is_per_cpu() => value.next_multiple_of(8) * possible_cpus()?,
            Some(Kind::ArrayOfMaps | Kind::HashOfMaps) => 4,
            _ => value,
        };
        let info = MapInfo {
            id: out.id,
            kind: out.kind,
            key: out.key,
            value: out.value,
            entries: out.entries,
            flags: out.flags,
            name: text(&out.name),
            btf_value_type: out.btf_value_type,
        };
        Ok(Self { fd, info, value_len })
    }

    /// Another descriptor of the same map.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()?, info: self.info.clone(), value_len: self.value_len })
    }

    /// What the kernel said when the map was opened.
    #[must_use]
    pub const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// Bytes of what a lookup yields: the value, or all CPUs' values, each rounded up to 8 bytes.
    #[must_use]
    pub const fn value_len(&self) -> usize {
        self.value_len
    }

    /// Bytes of a key.
    #[must_use]
    pub const fn key_len(&self) -> usize {
        self.info.key as usize
    }

    fn elem(&self, key: u64, value: u64, flags: u64) -> ElemAttr {
        ElemAttr { map_fd: raw(self.as_fd()), pad: 0, key, value, flags }
    }

    fn check(&self, key: usize, value: usize) -> io::Result<()> {
        if self.key_len() == key && self.value_len == value {
            return Ok(());
        }
        Err(invalid("key or value of another length than the map's"))
    }

    /// Reads an element into `value`; false if there is none.
    ///
    /// # Errors
    /// Lengths that are not the map's; whatever the kernel says.
    pub fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), value.len())?;
        let mut attr = self.elem(addr(key), addr_mut(value), 0);
        // SAFETY: ELEM member; key and value have the map's lengths (checked) and live across the call.
        found(unsafe { bpf(Cmd::MapLookup, &mut attr) })
    }

    /// Reads and removes an element; false if there is none. Not every kind of map can.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.check(key.len(), value.len())?;
        let mut attr = self.elem(addr(key), addr_mut(value), 0);
        // SAFETY: ELEM member; key and value have the map's lengths (checked) and live across the call.
        found(unsafe { bpf(Cmd::MapLookupAndDelete, &mut attr) })
    }

    /// Writes an element. For maps of maps the value is the inner map's descriptor.
    ///
    /// # Errors
    /// As [`Self::lookup`]; `E2BIG` when the map is full, `EEXIST` and `ENOENT` as `how` says.
    pub fn update(&self, key: &[u8], value: &[u8], how: Update) -> io::Result<()> {
        self.check(key.len(), value.len())?;
        let mut attr = self.elem(addr(key), addr(value), how as u64);
        // SAFETY: ELEM member; key and value have the map's lengths (checked) and are only read.
        unsafe { bpf(Cmd::MapUpdate, &mut attr) }.map(drop)
    }

    /// Removes an element; false if there was none.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), self.value_len)?;
        let mut attr = self.elem(addr(key), 0, 0);
        // SAFETY: ELEM member; the key has the map's length (checked) and is only read.
        found(unsafe { bpf(Cmd::MapDelete, &mut attr) })
    }

    /// The key after `key`, or the first; false at the end. If `key` is gone, the first again.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.check(key.map_or(next.len(), <[u8]>::len), self.value_len)?;
        self.check(next.len(), self.value_len)?;
        let mut attr = self.elem(key.map_or(0, addr), addr_mut(next), 0);
        // SAFETY: ELEM member; both keys have the map's length (checked); a null key asks for the first.
        found(unsafe { bpf(Cmd::MapNextKey, &mut attr) })
    }

    fn batch(&self, cmd: Cmd, keys: u64, values: u64, count: u32) -> (io::Result<()>, u32) {
        let mut attr = BatchAttr {
            in_batch: 0,
            out_batch: 0,
            keys,
            values,
            count,
            map_fd: raw(self.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: BATCH member; both callers have checked that `keys` and `values` point to `count` keys and
        // values of this map, and that `cmd` only reads them.
        let result = unsafe { bpf(cmd, &mut attr) }.map(drop);
        (result, attr.count)
    }

    /// Writes many elements in order; on error says how many were written before it.
    ///
    /// # Errors
    /// As [`Self::update`], with the number of elements written.
    pub fn update_batch(&self, keys: &[u8], values: &[u8]) -> Result<(), (io::Error, usize)> {
        let count = self.count_of(keys).map_err(|e| (e, 0))?;
        if values.len() != count as usize * self.value_len {
            return Err((invalid("values of another number or length than the keys"), 0));
        }
        if count == 0 {
            return Ok(());
        }
        let (result, done) = self.batch(Cmd::MapUpdateBatch, addr(keys), addr(values), count);
        result.map_err(|e| (e, batch_done(done, count)))
    }

    /// Removes many elements in order; stops with `ENOENT` at one that is not there.
    ///
    /// # Errors
    /// As [`Self::delete`], with the number of elements removed.
    pub fn delete_batch(&self, keys: &[u8]) -> Result<(), (io::Error, usize)> {
        let count = self.count_of(keys).map_err(|e| (e, 0))?;
        if count == 0 {
            return Ok(());
        }
        let (result, done) = self.batch(Cmd::MapDeleteBatch, addr(keys), 0, count);
        result.map_err(|e| (e, batch_done(done, count)))
    }

    fn count_of(&self, keys: &[u8]) -> io::Result<u32> {
        if self.key_len() == 0 || !keys.len().is_multiple_of(self.key_len()) {
            return Err(invalid("keys of another length than the map's"));
        }
        u32::try_from(keys.len() / self.key_len()).map_err(|_| invalid("too many keys"))
    }

    /// Reads (and with `delete` removes) the next elements after `token`; an empty token begins.
    ///
    /// `keys` and `values` hold room for the same number of elements; the number read is returned, with whether the end
    /// of the map is reached. `ENOSPC` means the room is too small for one bucket of a hash map.
    ///
    /// # Errors
    /// As [`Self::lookup`]; `EINVAL` or `ENOTSUPP` (524) where kernel or kind has no batches.
    pub fn lookup_batch(
        &self,
        token: &mut Token,
        keys: &mut [u8],
        values: &mut [u8],
        delete: bool,
    ) -> io::Result<(usize, bool)> {
        let count = self.count_of(keys)?;
        if values.len() != count as usize * self.value_len {
            return Err(invalid("room for another number of values than of keys"));
        }
        // The kernel writes a u32 or a key as the token.
        let mut out = vec![0; self.key_len().max(4)];
        if !token.is_empty() && token.len() != out.len() {
            return Err(invalid("the token of another map"));
        }
        let mut attr = BatchAttr {
            in_batch: if token.is_empty() { 0 } else { addr(token) },
            out_batch: addr_mut(&mut out),
            keys: addr_mut(keys),
            values: addr_mut(values),
            count,
            map_fd: raw(self.as_fd()),
            elem_flags: 0,
            flags: 0,
        };
        let cmd = if delete { Cmd::MapLookupAndDeleteBatch } else { Cmd::MapLookupBatch };
        // SAFETY: BATCH member; keys and values have room for `count` elements of this map (checked), the
        // tokens are as long as the longest token the kernel reads or writes.
        let result = unsafe { bpf(cmd, &mut attr) };
        let read = attr.count as usize;
        match result {
            Ok(_) => {
                *token = out;
                Ok((read, false))
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok((read.min(count as usize), true)),
            Err(e) => Err(e),
        }
    }

    /// Bytes of kernel memory this map takes, as the kernel accounts them (`memlock` in fdinfo).
    ///
    /// # Errors
    /// When fdinfo cannot be read.
    pub fn memory(&self) -> io::Result<u64> {
        let fdinfo = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", raw(self.as_fd())))?;
        let line = fdinfo.lines().find_map(|line| line.strip_prefix("memlock:"));
        Ok(line.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
    }
}

/// The kernel leaves `count` alone when it refuses a batch as a whole.
const fn batch_done(done: u32, asked: u32) -> usize {
    if done >= asked { 0 } else { done as usize }
}

fn found(result: io::Result<u32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn possible_cpus() -> io::Result<usize> {
    aya::util::nr_cpus().map_err(|(path, e)| io::Error::new(e.kind(), format!("{path}: {e}")))
}

/// Opens a map by its id.
///
/// # Errors
/// `NotFound` when it is gone.
pub fn map_by_id(id: u32) -> io::Result<RawMap> {
    RawMap::from_fd(fd_by_id(Cmd::MapFdById, id)?)
}

/// The map id after `after` (0 begins).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn next_map_id(after: u32) -> io::Result<Option<u32>> {
    next_id(Cmd::MapNextId, after)
}
