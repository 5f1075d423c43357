//! What this kernel can do, asked of the kernel itself and not of its version.

use std::{io, os::fd::AsRawFd};

use crate::{
    error::{Error, Result},
    map::no_batches,
    sys::{self, Kind, MapSpec, NO_PREALLOC, RawMap, TcxHook},
};

/// One thing a kernel may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// Its name, for `status`.
    pub name: &'static str,
    /// What Villus uses it for.
    pub purpose: &'static str,
    /// Whether Villus cannot do without it.
    pub needed: bool,
    /// Why it is not used; `None` when it is.
    pub missing: Option<String>,
}

/// What the running kernel can do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Features {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Every feature looked for.
    pub list: Vec<Feature>,
}

type Probe = fn() -> io::Result<()>;

/// Name, purpose, whether needed, what is done without it, probe. Versions are those of the mainline kernel.
const PROBES: [(&str, &str, bool, &str, Probe); 12] = [
    ("hash maps", "policy, addresses", true, "", || create(Kind::Hash, 8, 24, 8, NO_PREALLOC)),
    ("LRU hash maps", "flows", true, "Linux 4.10", || create(Kind::LruHash, 16, 192, 64, 0)),
    ("LPM tries", "the ipcache", true, "Linux 4.11", || create(Kind::LpmTrie, 24, 12, 8, NO_PREALLOC)),
    ("per-CPU arrays", "counters", true, "Linux 4.6", || create(Kind::PerCpuArray, 4, 16, 1, 0)),
    ("arrays of maps", "a policy map per endpoint", true, "Linux 4.12", || slots().map(drop)),
    ("ring buffer", "events", true, "Linux 5.8", || create(Kind::RingBuf, 0, 0, 1 << 16, 0)),
    ("redirect to the peer", "delivery to an endpoint", true, "Linux 5.10", redirect_peer),
    ("compiled programs", "speed", true, "set net.core.bpf_jit_enable=1", jit),
    ("TCX links", "attachment that outlives the agent", false, "clsact filters instead; Linux 6.6", tcx),
    (
        "batches on hash maps",
        "listing flows, filling policy maps",
        false,
        "one by one instead; Linux 5.6",
        hash_batch,
    ),
    (
        "batches on map slots",
        "many policy maps in one grace period",
        false,
        "one by one instead; Linux 5.14",
        slot_batch,
    ),
    ("program statistics", "time per packet in status", false, "set kernel.bpf_stats_enabled=1", statistics),
];

impl Features {
    /// Asks the running kernel. Nothing is attached, pinned or left behind.
    #[must_use]
    pub fn probe() -> Self {
        let list = PROBES.iter().map(|&(name, purpose, needed, without, probe)| {
            let missing = probe()
                .err()
                .map(|e| if without.is_empty() { e.to_string() } else { format!("{e} ({without})") });
            Feature { name, purpose, needed, missing }
        });
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        Self { release, list: list.collect() }
    }

    /// Whether a feature is there.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.list.iter().any(|feature| feature.name == name && feature.missing.is_none())
    }

    /// Whether programs can be attached by TCX.
    #[must_use]
    pub fn has_tcx(&self) -> bool {
        self.has("TCX links")
    }

    /// Refuses a kernel that lacks what Villus needs.
    ///
    /// # Errors
    /// [`Error::Unsupported`] naming everything that is missing.
    pub fn require(&self) -> Result<()> {
        let lacking = self.list.iter().filter(|feature| feature.needed);
        let missing: Vec<String> = lacking
            .filter_map(|f| f.missing.as_ref().map(|why| format!("{} for {}: {why}", f.name, f.purpose)))
            .collect();
        if missing.is_empty() {
            Ok(())
        } else {
            Err(Error::Unsupported { release: self.release.clone(), missing })
        }
    }
}

fn map(
    kind: Kind,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
    inner: Option<&RawMap>,
) -> io::Result<RawMap> {
    RawMap::create(&MapSpec { name: "villus_probe", kind, key, value, entries, flags }, inner)
}

fn create(kind: Kind, key: u32, value: u32, entries: u32, flags: u32) -> io::Result<()> {
    map(kind, key, value, entries, flags, None).map(drop)
}

fn slots() -> io::Result<(RawMap, RawMap)> {
    let inner = map(Kind::Hash, 8, 24, 8, NO_PREALLOC, None)?;
    Ok((map(Kind::ArrayOfMaps, 4, 4, 2, 0, Some(&inner))?, inner))
}

fn jit() -> io::Result<()> {
    match std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable") {
        Ok(text) if text.trim() == "0" => Err(io::Error::other("the compiler is off")),
        // Without the file it is always on or not ours to see.
        _ => Ok(()),
    }
}

fn tcx() -> io::Result<()> {
    // The loopback is there in every namespace; the query changes nothing.
    sys::tcx_programs(1, TcxHook::Ingress).map(drop)
}

fn redirect_peer() -> io::Result<()> {
    // r1 = 1; r2 = 0; call bpf_redirect_peer (155); exit
    const PROGRAM: [u64; 4] = [0x0000_0001_0000_01b7, 0x0000_0000_0000_02b7, 0x0000_009b_0000_0085, 0x95];
    sys::prog_load_tc("villus_probe", &PROGRAM).map(drop)
}

fn hash_batch() -> io::Result<()> {
    let map = map(Kind::Hash, 4, 4, 8, NO_PREALLOC, None)?;
    map.update_batch(&[0; 4], &[0; 4]).map_err(|(e, _)| unbatched(e))?;
    map.lookup_batch(&mut Vec::new(), &mut [0; 32], &mut [0; 32], false).map(drop).map_err(unbatched)
}

fn slot_batch() -> io::Result<()> {
    use std::os::fd::AsFd;
    let (outer, inner) = slots()?;
    let fd = inner.as_fd().as_raw_fd().to_ne_bytes();
    outer.update_batch(&[0; 4], &fd).map_err(|(e, _)| unbatched(e))
}

fn unbatched(error: io::Error) -> io::Error {
    if no_batches(&error) { io::Error::other("not in this kernel") } else { error }
}

fn statistics() -> io::Result<()> {
    match std::fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled")?.trim() {
        "0" => Err(io::Error::other("off")),
        _ => Ok(()),
    }
}
