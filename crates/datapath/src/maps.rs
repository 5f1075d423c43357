//! All maps of the path, open and typed.

use std::{os::fd::AsFd, sync::Arc};

use villus_abi::{
    Config, Endpoint, Flow, FlowKey4, FlowKey6, FlowRow, FragKey4, FragKey6, FragPorts, IpcacheKey,
    IpcacheValue, Local, Metric, Nat, NatKey4, NatKey6, Node, PolicyEntry, PolicyKey, Uplink,
    flow_v1::FlowV1, metrics, names,
};

use crate::{
    error::{Context, Result},
    map::{Map, PerCpuMap},
    pins::Pins,
    sys::{Kind, MapSpec, NO_PREALLOC, RawMap},
};

/// How many entries the maps have. What is pinned keeps its size; see [`crate::resize()`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Endpoint slots.
    pub endpoints: u32,
    /// TCP flows, of each family.
    pub ct_tcp: u32,
    /// Other flows, of each family.
    pub ct_any: u32,
    /// Fragmented datagrams, of each family.
    pub frags: u32,
    /// Prefixes in the ipcache.
    pub ipcache: u32,
    /// Bytes of the event ring, a power of two of at least a page.
    pub events: u32,
    /// Entries of masqueraded packets, of each family, two for each flow; 0 where our programs masquerade nothing.
    pub nat: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Self {
            endpoints: 4096,
            ct_tcp: 1 << 15,
            ct_any: 1 << 14,
            frags: 8192,
            ipcache: 512_000,
            events: 1 << 20,
            nat: 0,
        }
    }
}

impl Sizes {
    /// Least and most entries of a flow map (`bpf-maps` reference 2.1).
    pub const FLOWS: std::ops::RangeInclusive<u32> = 1 << 10..=1 << 24;

    /// As many entries of masqueraded packets as go with the flow maps: two thirds of both.
    #[must_use]
    pub fn nat_share(&self) -> u32 {
        let share = self.ct_tcp.saturating_add(self.ct_any) / 3 * 2;
        share.clamp(*Self::FLOWS.start(), *Self::FLOWS.end())
    }

    /// Default sizes with flow maps that take `ratio` of `memory` bytes together, TCP twice as many as others
    /// and never fewer than 16Ki and 8Ki.
    #[must_use]
    pub fn for_memory(memory: u64, ratio: f64) -> Self {
        // Bytes of one entry of both families: four cache lines and a bucket each.
        const BOTH: u64 = 2 * (4 * 64 + 16);
        let budget = if ratio.is_finite() && ratio > 0.0 { memory as f64 * ratio } else { 0.0 };
        // A float too large for u64 saturates.
        let entries = budget as u64 / BOTH;
        let clamp = |wanted: u64, least: u32| {
            u32::try_from(wanted).unwrap_or(u32::MAX).clamp(least, *Self::FLOWS.end())
        };
        Self {
            ct_tcp: clamp(entries * 2 / 3, 1 << 14),
            ct_any: clamp(entries / 3, 1 << 13),
            ..Self::default()
        }
    }
}

/// One of the path's maps: its symbol in the kernel object, its pin, its shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub symbol: &'static str,
    pub pin: &'static str,
    pub kind: Kind,
    pub key: usize,
    pub value: usize,
    pub flags: u32,
    pub entries: fn(&Sizes) -> u32,
    /// The option that sets its size.
    pub option: &'static str,
}

impl Known {
    pub(crate) fn spec(&self, sizes: &Sizes) -> MapSpec<'static> {
        MapSpec {
            name: self.pin,
            kind: self.kind,
            key: self.key as u32,
            value: self.value as u32,
            entries: (self.entries)(sizes),
            flags: self.flags,
        }
    }
}

macro_rules! known {
    ($($symbol:ident: $pin:ident $kind:ident $key:ty => $value:ty, $flags:expr, $entries:expr, $option:expr;)+) => {
        [$(Known {
            symbol: stringify!($symbol),
            pin: names::$pin,
            kind: Kind::$kind,
            key: size_of::<$key>(),
            value: size_of::<$value>(),
            flags: $flags,
            entries: $entries,
            option: $option,
        }),+]
    };
}

/// Every pinned map of the kernel object.
pub(crate) const KNOWN: [Known; 17] = known! {
    ENDPOINTS: ENDPOINTS Array u32 => Endpoint, 0, |s| s.endpoints, "endpoint-max";
    DEVICES: DEVICES Hash u32 => u32, NO_PREALLOC, |s| s.endpoints.saturating_mul(2), "endpoint-max";
    ADDRS4: ADDRS4 Hash u32 => Local, NO_PREALLOC, |s| s.endpoints.saturating_mul(4), "endpoint-max";
    ADDRS6: ADDRS6 Hash [u8; 16] => Local, NO_PREALLOC, |s| s.endpoints.saturating_mul(4), "endpoint-max";
    POLICIES: POLICIES ArrayOfMaps u32 => u32, 0, |s| s.endpoints, "endpoint-max";
    IPCACHE: IPCACHE LpmTrie IpcacheKey => IpcacheValue, NO_PREALLOC, |s| s.ipcache, "its size, which is built in";
    NODES: NODES Hash [u8; 16] => Node, NO_PREALLOC, |_| NODES_MOST, "its size, which is built in";
    CT4_TCP: CT4_TCP LruHash FlowKey4 => FlowRow, 0, |s| s.ct_tcp, "bpf-ct-global-tcp-max";
    CT4_ANY: CT4_ANY LruHash FlowKey4 => FlowRow, 0, |s| s.ct_any, "bpf-ct-global-any-max";
    CT6_TCP: CT6_TCP LruHash FlowKey6 => Flow, 0, |s| s.ct_tcp, "bpf-ct-global-tcp-max";
    CT6_ANY: CT6_ANY LruHash FlowKey6 => Flow, 0, |s| s.ct_any, "bpf-ct-global-any-max";
    FRAGS4: FRAGS4 LruHash FragKey4 => FragPorts, 0, |s| s.frags, "bpf-fragments-map-max";
    FRAGS6: FRAGS6 LruHash FragKey6 => FragPorts, 0, |s| s.frags, "bpf-fragments-map-max";
    METRICS: METRICS PerCpuArray u32 => Metric, 0, |_| metrics::METRICS, "its size, which is built in";
    EVENTS: EVENTS RingBuf () => (), 0, |s| s.events, "its size, which is built in";
    EPOCH: EPOCH Array u32 => u64, 0, |_| 1, "its size, which is built in";
    CONFIG: CONFIG Array u32 => Config, 0, |_| 1, "its size, which is built in";
};

/// The maps of masquerading, which are there only where our programs do it.
pub(crate) const NAT_KNOWN: [Known; 4] = known! {
    NAT4: NAT4 LruHash NatKey4 => Nat, 0, |s| s.nat, "bpf-nat-global-max";
    NAT6: NAT6 LruHash NatKey6 => Nat, 0, |s| s.nat, "bpf-nat-global-max";
    MASQUERADE: MASQUERADE LpmTrie IpcacheKey => u32, NO_PREALLOC, |_| PREFIXES_MOST, "its size, which is built in";
    UPLINKS: UPLINKS Hash u32 => Uplink, NO_PREALLOC, |_| UPLINKS_MOST, "its size, which is built in";
};

/// Prefixes of masquerading: a few of each of ten thousand nodes, where no option covers them, and those of the operator's list.
const PREFIXES_MOST: u32 = 65_536;
/// Devices through which packets leave a node.
const UPLINKS_MOST: u32 = 256;

/// Addresses of nodes: a few each of ten thousand.
const NODES_MOST: u32 = 65_536;

/// Whether flows are in a map of an earlier version: ours is not there, and that one is.
fn are_elsewhere(pins: &Pins, pin: &str) -> bool {
    let retired =
        names::RETIRED.iter().find(|retired| retired.trim_end_matches("_v1") == pin.trim_end_matches("_v2"));
    retired.is_some_and(|retired| !pins.path(pin).exists() && pins.path(retired).exists())
}

/// Puts an empty map in the place of a flow map of an earlier version. Programs that still use that one keep it, and
/// [`crate::OldFlows`] finds it there; what is left of that version's tools, as a timer that is to end what it has opened, finds all
/// the pins it needs.
fn retire(pins: &Pins, pin: &'static str) -> Result<()> {
    let Some(old) = pins.map(pin)? else { return Ok(()) };
    let (key, value) = (old.info().key, size_of::<FlowV1>() as u32);
    let spec = MapSpec { name: pin, kind: Kind::LruHash, key, value, entries: RETIRED_ENTRIES, flags: 0 };
    if old.info().entries <= RETIRED_ENTRIES || pins.map_like(pin, &spec)?.is_none() {
        return Ok(());
    }
    let empty = RawMap::create(&spec, None).on("create map", pin)?;
    pins.replace(pin, empty.as_fd())
}

/// Entries of a map that only stands for one of an earlier version.
const RETIRED_ENTRIES: u32 = 64;
/// Room behind an IPv4 flow.
pub(crate) const FLOW_ROOM: usize = size_of::<FlowRow>() - size_of::<Flow>();

/// Entries of a policy map that nothing has been written to.
pub(crate) const POLICY_START: u32 = 1024;

/// The shape of a policy map. Without BTF types, so that `bpftool` prints its hex.
pub(crate) const fn policy_spec(name: &str, entries: u32) -> MapSpec<'_> {
    MapSpec {
        name,
        kind: Kind::Hash,
        key: size_of::<PolicyKey>() as u32,
        value: size_of::<PolicyEntry>() as u32,
        entries,
        flags: NO_PREALLOC,
    }
}

/// The path's maps.
#[derive(Debug)]
#[allow(missing_docs, reason = "each is named like its pin, which villus-abi describes")]
pub struct Maps {
    pub endpoints: Map<u32, Endpoint>,
    pub devices: Map<u32, u32>,
    pub addrs4: Map<u32, Local>,
    pub addrs6: Map<[u8; 16], Local>,
    /// Slot to the id of an endpoint's policy map when read, to its descriptor when written.
    pub policies: Map<u32, u32>,
    pub ipcache: Map<IpcacheKey, IpcacheValue>,
    /// By each of their addresses, IPv4 as `::ffff:a.b.c.d`.
    pub nodes: Map<[u8; 16], Node>,
    pub ct4_tcp: Map<FlowKey4, Flow>,
    pub ct4_any: Map<FlowKey4, Flow>,
    pub ct6_tcp: Map<FlowKey6, Flow>,
    pub ct6_any: Map<FlowKey6, Flow>,
    pub frags4: Map<FragKey4, FragPorts>,
    pub frags6: Map<FragKey6, FragPorts>,
    pub metrics: PerCpuMap<u32, Metric>,
    pub events: RawMap,
    /// Another number after each change of `addrs4`, `addrs6`, `ipcache` and `nodes`, which see to that, and of policy maps, whose
    /// writers do.
    pub epoch: Arc<Map<u32, u64>>,
    pub config: Map<u32, Config>,
    /// Where our programs masquerade.
    pub nat: Option<NatMaps>,
}

/// The maps of masquerading.
#[derive(Debug)]
pub struct NatMaps {
    /// Masqueraded packets over IPv4, before they are translated.
    pub nat4: Map<NatKey4, Nat>,
    /// Masqueraded packets over IPv6, before they are translated.
    pub nat6: Map<NatKey6, Nat>,
    /// `MASQUERADE_*` of [`villus_abi::nat`] by prefix; a prefix bears the flags of those around it as well.
    pub prefixes: Map<IpcacheKey, u32>,
    /// By interface index.
    pub uplinks: Map<u32, Uplink>,
}

impl Maps {
    /// Opens every map, making and pinning those that are not there. Nothing is made when a name is taken by
    /// something foreign.
    ///
    /// # Errors
    /// [`crate::Error::Foreign`], [`crate::Error::Kernel`].
    pub fn open(pins: &Pins, sizes: &Sizes) -> Result<Self> {
        let nat = sizes.nat != 0;
        for known in KNOWN.iter().chain(NAT_KNOWN.iter().filter(|_| nat)) {
            pins.map_like(known.pin, &known.spec(sizes))?;
        }
        let template = RawMap::create(&policy_spec(names::POLICY_PREFIX, POLICY_START), None)
            .on("create map", names::POLICIES)?;
        for pin in names::RETIRED {
            retire(pins, pin)?;
        }
        Self::assemble(nat, |known| {
            let inner = (known.kind == Kind::ArrayOfMaps).then_some(&template);
            Ok(pins.open_or_create(known.pin, &known.spec(sizes), inner)?.0)
        })
    }

    /// Opens every map that an agent has made; makes nothing. Of an agent of an earlier version, see [`Self::knows_flows`], the flow
    /// maps are empty ones that nobody else has.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] with `NotFound` naming the pin that is missing.
    pub fn existing(pins: &Pins) -> Result<Self> {
        let least = *Sizes::FLOWS.start();
        let sizes = Sizes { nat: 1, ct_tcp: least, ct_any: least, ..Sizes::default() };
        let nat = pins.path(names::NAT4).exists();
        Self::assemble(nat, |known| {
            let missing = || {
                std::io::Error::new(
                    std::io::ErrorKind::NotFound,
                    "no such pin: is the agent installed, and has this version been started?",
                )
            };
            let pinned = pins.map_like(known.pin, &known.spec(&sizes))?;
            // Programs of an agent that knows of no epoch remember nothing.
            if pinned.is_none() && (known.pin == names::EPOCH || are_elsewhere(pins, known.pin)) {
                return RawMap::create(&known.spec(&sizes), None).on("create map", known.pin);
            }
            pinned.ok_or_else(missing).on("open", pins.path(known.pin).display().to_string())
        })
    }

    /// Whether the flows of this node are in these maps: an agent of an earlier version keeps them in a layout that is not read.
    #[must_use]
    pub fn knows_flows(pins: &Pins) -> bool {
        !are_elsewhere(pins, names::CT4_TCP)
    }

    /// Bytes of kernel memory of each map, by its pin.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`].
    pub fn memory(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut all: Vec<(&'static str, &RawMap)> = vec![
            (names::ENDPOINTS, self.endpoints.raw()),
            (names::DEVICES, self.devices.raw()),
            (names::ADDRS4, self.addrs4.raw()),
            (names::ADDRS6, self.addrs6.raw()),
            (names::POLICIES, self.policies.raw()),
            (names::IPCACHE, self.ipcache.raw()),
            (names::NODES, self.nodes.raw()),
            (names::CT4_TCP, self.ct4_tcp.raw()),
            (names::CT4_ANY, self.ct4_any.raw()),
            (names::CT6_TCP, self.ct6_tcp.raw()),
            (names::CT6_ANY, self.ct6_any.raw()),
            (names::FRAGS4, self.frags4.raw()),
            (names::FRAGS6, self.frags6.raw()),
            (names::METRICS, self.metrics.raw()),
            (names::EVENTS, &self.events),
            (names::EPOCH, self.epoch.raw()),
            (names::CONFIG, self.config.raw()),
        ];
        if let Some(nat) = &self.nat {
            all.extend([
                (names::NAT4, nat.nat4.raw()),
                (names::NAT6, nat.nat6.raw()),
                (names::MASQUERADE, nat.prefixes.raw()),
                (names::UPLINKS, nat.uplinks.raw()),
            ]);
        }
        all.into_iter().map(|(pin, map)| Ok((pin, map.memory().on("account", pin)?))).collect()
    }

    fn assemble(nat: bool, mut open: impl FnMut(&Known) -> Result<RawMap>) -> Result<Self> {
        let mut next = |pin: &'static str| {
            let known = KNOWN.iter().chain(&NAT_KNOWN).find(|known| known.pin == pin);
            known
                .ok_or_else(|| std::io::Error::other("not a map of the path"))
                .on("open", pin)
                .and_then(&mut open)
        };
        let epoch = Arc::new(Map::new(next(names::EPOCH)?, names::EPOCH)?);
        Ok(Self {
            endpoints: Map::new(next(names::ENDPOINTS)?, names::ENDPOINTS)?,
            devices: Map::new(next(names::DEVICES)?, names::DEVICES)?,
            addrs4: Map::new(next(names::ADDRS4)?, names::ADDRS4)?.counted_by(&epoch),
            addrs6: Map::new(next(names::ADDRS6)?, names::ADDRS6)?.counted_by(&epoch),
            policies: Map::new(next(names::POLICIES)?, names::POLICIES)?,
            ipcache: Map::new(next(names::IPCACHE)?, names::IPCACHE)?.counted_by(&epoch),
            nodes: Map::new(next(names::NODES)?, names::NODES)?.counted_by(&epoch),
            ct4_tcp: Map::roomy(next(names::CT4_TCP)?, names::CT4_TCP, FLOW_ROOM)?,
            ct4_any: Map::roomy(next(names::CT4_ANY)?, names::CT4_ANY, FLOW_ROOM)?,
            ct6_tcp: Map::new(next(names::CT6_TCP)?, names::CT6_TCP)?,
            ct6_any: Map::new(next(names::CT6_ANY)?, names::CT6_ANY)?,
            frags4: Map::new(next(names::FRAGS4)?, names::FRAGS4)?,
            frags6: Map::new(next(names::FRAGS6)?, names::FRAGS6)?,
            metrics: PerCpuMap::new(next(names::METRICS)?, names::METRICS)?,
            events: next(names::EVENTS)?,
            epoch,
            config: Map::new(next(names::CONFIG)?, names::CONFIG)?,
            nat: match nat {
                false => None,
                true => Some(NatMaps {
                    nat4: Map::new(next(names::NAT4)?, names::NAT4)?,
                    nat6: Map::new(next(names::NAT6)?, names::NAT6)?,
                    prefixes: Map::new(next(names::MASQUERADE)?, names::MASQUERADE)?,
                    uplinks: Map::new(next(names::UPLINKS)?, names::UPLINKS)?,
                }),
            },
        })
    }
}
