//! The path's world in memory: for tests, and for `villus why`, which fills it from the kernel's maps.
//!
//! Everything the path looks up or changes can be recorded as [`Step`]s.

mod build;
mod frame;
mod prefixes;
mod table;
mod walk;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    rc::Rc,
    vec::Vec,
};

use villus_abi::{
    Config, Endpoint, Event, Flow, FlowCell, FlowKey4, FlowKey6, FlowRow, FragKey4, FragKey6, FragPorts,
    IpcacheValue, Local, Metric, Nat, NatCell, NatKey4, NatKey6, Node, PolicyCell, PolicyEntry, PolicyKey,
    Reason, Uplink, metrics,
};

pub use build::{Build, Transport, arp, checksum, ethernet};
pub use frame::{Frame, NextHop};
pub use prefixes::{Prefixes, prefix};
pub use walk::{FlowKey, FragKey, NatKey, Step};

use crate::{
    family::{V4, V6},
    policy::{Ask, Verdict, verdict},
    world::{Net, PolicyMap, World},
};
use table::Table;

type Walk = Rc<RefCell<Option<Vec<Step>>>>;
type Entries = Rc<HashMap<PolicyKey, PolicyCell>>;

/// A world of plain collections. What packets do not change is public; what they change is read by methods.
#[derive(Default)]
pub struct Memory {
    /// Runtime configuration; `None` before any agent.
    pub config: Option<Config>,
    /// Endpoint records by slot.
    pub endpoints: BTreeMap<u32, Endpoint>,
    /// Interface index to slot.
    pub devices: BTreeMap<u32, u32>,
    /// Addresses of this node and its endpoints.
    pub addrs: HashMap<IpAddr, Local>,
    /// The nodes that a tunnel leads to, by each of their addresses.
    pub nodes: BTreeMap<IpAddr, Node>,
    /// The ipcache.
    pub ipcache: Prefixes,
    /// Devices through which packets leave the node, by interface index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// `MASQUERADE_*` flags of prefixes: address, length, flags. The longest that covers an address counts.
    pub masquerade: Vec<(IpAddr, u8, u32)>,
    policies: BTreeMap<u32, Entries>,
    tcp4: Table<FlowKey4>,
    any4: Table<FlowKey4>,
    tcp6: Table<FlowKey6>,
    any6: Table<FlowKey6>,
    nat4: Table<NatKey4, NatCell>,
    nat6: Table<NatKey6, NatCell>,
    frags4: RefCell<HashMap<FragKey4, FragPorts>>,
    frags6: RefCell<HashMap<FragKey6, FragPorts>>,
    clock: Cell<u64>,
    metrics: RefCell<BTreeMap<u32, Metric>>,
    events: RefCell<Vec<Event>>,
    walk: Walk,
}

impl core::fmt::Debug for Memory {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Memory")
            .field("config", &self.config)
            .field("endpoints", &self.endpoints)
            .field("flows", &self.flows())
            .finish_non_exhaustive()
    }
}

impl Memory {
    /// An empty world with this configuration, its clock at one hour.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let this = Self { config: Some(config), ..Self::default() };
        this.set_clock(3_600_000_000_000);
        this
    }

    /// Sets the clock, nanoseconds.
    pub fn set_clock(&self, ns: u64) {
        self.clock.set(ns);
    }

    /// The clock, nanoseconds.
    #[must_use]
    pub fn clock(&self) -> u64 {
        self.clock.get()
    }

    /// Lets time pass.
    pub fn pass(&self, seconds: u64) {
        self.clock.set(self.clock.get().saturating_add(seconds.saturating_mul(1_000_000_000)));
    }

    /// Stores an endpoint's record, its interface and its addresses; its policy is empty until it is set.
    pub fn add_endpoint(&mut self, mut endpoint: Endpoint, addresses: &[IpAddr]) {
        let slot = u32::from(endpoint.id);
        for address in addresses {
            self.addrs.insert(*address, Local { slot, flags: 0 });
            match address {
                IpAddr::V4(v4) if endpoint.ipv4 == 0 => endpoint.ipv4 = word4(*v4),
                IpAddr::V6(v6) if endpoint.ipv6 == [0; 4] => endpoint.ipv6 = words6(*v6),
                _ => {}
            }
        }
        self.devices.insert(endpoint.ifindex, slot);
        self.policies.entry(endpoint.policy).or_default();
        self.endpoints.insert(slot, endpoint);
    }

    /// Stores a whole policy map, counters included.
    pub fn set_policy(&mut self, slot: u32, entries: impl IntoIterator<Item = (PolicyKey, PolicyEntry)>) {
        let cells = entries.into_iter().map(|(key, entry)| (key, cell(&entry)));
        self.policies.insert(slot, Rc::new(cells.collect()));
    }

    /// Takes a policy map out of its slot.
    pub fn remove_policy(&mut self, slot: u32) -> bool {
        self.policies.remove(&slot).is_some()
    }

    /// A policy map as it is now, counters included.
    #[must_use]
    pub fn policy_entries(&self, slot: u32) -> Option<BTreeMap<PolicyKey, PolicyEntry>> {
        let entries = self.policies.get(&slot)?;
        Some(entries.iter().map(|(key, cell)| (*key, entry(cell))).collect())
    }

    /// Stores a flow.
    pub fn set_flow(&self, key: &FlowKey, flow: &Flow) {
        match key {
            FlowKey::V4(v4) if key.is_tcp() => self.tcp4.put(v4, (*flow).into()),
            FlowKey::V4(v4) => self.any4.put(v4, (*flow).into()),
            FlowKey::V6(v6) if key.is_tcp() => self.tcp6.put(v6, (*flow).into()),
            FlowKey::V6(v6) => self.any6.put(v6, (*flow).into()),
        };
    }

    /// Forgets a flow; says whether there was one.
    pub fn remove_flow(&self, key: &FlowKey) -> bool {
        match key {
            FlowKey::V4(v4) if key.is_tcp() => self.tcp4.remove(v4),
            FlowKey::V4(v4) => self.any4.remove(v4),
            FlowKey::V6(v6) if key.is_tcp() => self.tcp6.remove(v6),
            FlowKey::V6(v6) => self.any6.remove(v6),
        }
    }

    /// All flows as they are now.
    #[must_use]
    pub fn flows(&self) -> HashMap<FlowKey, Flow> {
        let v4 = self.tcp4.all().into_iter().chain(self.any4.all());
        let v6 = self.tcp6.all().into_iter().chain(self.any6.all());
        v4.map(|(key, flow)| (FlowKey::V4(key), flow.get()))
            .chain(v6.map(|(key, flow)| (FlowKey::V6(key), flow.get())))
            .collect()
    }

    /// All entries of masqueraded packets as they are now.
    #[must_use]
    pub fn mappings(&self) -> HashMap<NatKey, Nat> {
        let (v4, v6) = (self.nat4.all().into_iter(), self.nat6.all().into_iter());
        v4.map(|(key, nat)| (NatKey::V4(key), nat.get()))
            .chain(v6.map(|(key, nat)| (NatKey::V6(key), nat.get())))
            .collect()
    }

    /// Stores an entry of masqueraded packets.
    pub fn set_mapping(&self, key: &NatKey, nat: &Nat) {
        match key {
            NatKey::V4(key) => self.nat4.put(key, (*nat).into()),
            NatKey::V6(key) => self.nat6.put(key, (*nat).into()),
        };
    }

    /// Forgets an entry of masqueraded packets; says whether there was one.
    pub fn remove_mapping(&self, key: &NatKey) -> bool {
        match key {
            NatKey::V4(key) => self.nat4.remove(key),
            NatKey::V6(key) => self.nat6.remove(key),
        }
    }

    /// Makes the tables of masqueraded packets refuse new entries, or take them again.
    pub fn refuse_mappings(&self, refuses: bool) {
        self.nat4.refuse(refuses);
        self.nat6.refuse(refuses);
    }

    /// Forgets all flows and fragments, counters and events.
    pub fn forget(&mut self) {
        self.tcp4.clear();
        self.any4.clear();
        self.tcp6.clear();
        self.any6.clear();
        self.nat4.clear();
        self.nat6.clear();
        self.frags4.borrow_mut().clear();
        self.frags6.borrow_mut().clear();
        self.metrics.borrow_mut().clear();
        self.events.borrow_mut().clear();
    }

    /// Makes the flow tables refuse new flows, or take them again.
    pub fn refuse_flows(&self, refuses: bool) {
        self.tcp4.refuse(refuses);
        self.any4.refuse(refuses);
        self.tcp6.refuse(refuses);
        self.any6.refuse(refuses);
    }

    /// Stores the ports of a fragmented datagram.
    pub fn set_fragment(&self, key: &FragKey, ports: &FragPorts) {
        match key {
            FragKey::V4(key) => self.frags4.borrow_mut().insert(*key, *ports),
            FragKey::V6(key) => self.frags6.borrow_mut().insert(*key, *ports),
        };
    }

    /// The ports of all fragmented datagrams.
    #[must_use]
    pub fn fragments(&self) -> HashMap<FragKey, FragPorts> {
        let (v4, v6) = (self.frags4.borrow(), self.frags6.borrow());
        let v4 = v4.iter().map(|(key, ports)| (FragKey::V4(*key), *ports));
        v4.chain(v6.iter().map(|(key, ports)| (FragKey::V6(*key), *ports))).collect()
    }

    /// Counters that are not zero, by [`metrics::index`].
    #[must_use]
    pub fn metrics(&self) -> BTreeMap<u32, Metric> {
        self.metrics.borrow().clone()
    }

    /// Packets counted under a reason and direction.
    #[must_use]
    pub fn counted(&self, reason: Reason, direction: u8) -> u64 {
        self.metrics.borrow().get(&metrics::index(reason.0, direction)).map_or(0, |metric| metric.packets)
    }

    /// The events since the last call.
    pub fn take_events(&self) -> Vec<Event> {
        self.events.take()
    }

    /// Begins a new record of steps.
    pub fn record(&self) {
        self.walk.replace(Some(Vec::new()));
    }

    /// Ends the record and returns it.
    pub fn take_walk(&self) -> Vec<Step> {
        self.walk.take().unwrap_or_default()
    }

    fn note(&self, step: impl FnOnce() -> Step) {
        note(&self.walk, step);
    }
}

fn note(walk: &Walk, step: impl FnOnce() -> Step) {
    if let Some(steps) = walk.borrow_mut().as_mut() {
        steps.push(step());
    }
}

/// An IPv4 address as maps hold it, network order in memory.
#[must_use]
pub fn word4(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

/// An IPv6 address as maps hold it, network order in memory.
#[must_use]
pub fn words6(address: Ipv6Addr) -> [u32; 4] {
    let o = address.octets();
    let word = |at: usize| u32::from_ne_bytes([o[at], o[at + 1], o[at + 2], o[at + 3]]);
    [word(0), word(4), word(8), word(12)]
}

/// The address that a map holds as one word.
#[must_use]
pub fn address4(word: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()))
}

/// The address that a map holds as four words.
#[must_use]
pub fn address6(words: &[u32; 4]) -> IpAddr {
    let mut bytes = [0; 16];
    for (to, word) in bytes.chunks_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    IpAddr::V6(Ipv6Addr::from(bytes))
}

fn cell(entry: &PolicyEntry) -> PolicyCell {
    let PolicyEntry { proxy_port, flags, pad0, pad1, pad2, packets, bytes } = *entry;
    PolicyCell { proxy_port, flags, pad0, pad1, pad2, packets: Cell::new(packets), bytes: Cell::new(bytes) }
}

fn entry(cell: &PolicyCell) -> PolicyEntry {
    let PolicyCell { proxy_port, flags, pad0, pad1, pad2, ref packets, ref bytes } = *cell;
    PolicyEntry { proxy_port, flags, pad0, pad1, pad2, packets: packets.get(), bytes: bytes.get() }
}

/// One endpoint's policy map, fetched.
#[derive(Clone, Debug)]
pub struct Policy {
    slot: u32,
    entries: Entries,
    walk: Walk,
}

impl PolicyMap for Policy {
    fn entry(&self, key: &PolicyKey) -> Option<&PolicyCell> {
        let found = self.entries.get(key);
        note(&self.walk, || Step::Entry { slot: self.slot, key: *key, answer: found.map(entry) });
        found
    }
}

impl World for Memory {
    type Policy = Policy;

    fn now_ns(&self) -> u64 {
        self.clock.get()
    }

    fn config(&self) -> Option<&Config> {
        self.config.as_ref()
    }

    fn device(&self, ifindex: u32) -> Option<u32> {
        let answer = self.devices.get(&ifindex).copied();
        self.note(|| Step::Device { ifindex, answer });
        answer
    }

    fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
        let answer = self.endpoints.get(&slot);
        self.note(|| Step::Endpoint { slot, answer: answer.copied() });
        answer
    }

    fn node(&self, addr: &[u32; 4]) -> Option<Node> {
        let address = address6(addr).to_canonical();
        let answer = self.nodes.get(&address).copied();
        self.note(|| Step::Node { address, answer });
        answer
    }

    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        self.uplinks.get(&ifindex).copied()
    }

    fn policy(&self, slot: u32) -> Option<Policy> {
        let entries = Rc::clone(self.policies.get(&slot)?);
        Some(Policy { slot, entries, walk: Rc::clone(&self.walk) })
    }

    fn ask(&self, ask: &Ask) -> Verdict {
        self.note(|| Step::Ask(*ask));
        let answer = verdict(self, ask);
        self.note(|| Step::Verdict(answer));
        answer
    }

    fn add(&self, counter: &Cell<u64>, amount: u64) {
        counter.set(counter.get().wrapping_add(amount));
    }

    fn count(&self, reason: Reason, direction: u8, bytes: u32) {
        self.note(|| Step::Count { reason, direction, bytes });
        let mut metrics = self.metrics.borrow_mut();
        let metric = metrics.entry(metrics::index(reason.0, direction)).or_default();
        metric.packets += 1;
        metric.bytes += u64::from(bytes);
    }

    fn emit(&self, event: &Event) {
        self.note(|| Step::Emit(*event));
        self.events.borrow_mut().push(*event);
    }
}

/// The longest prefix that covers an address.
fn covering(prefixes: &[(IpAddr, u8, u32)], address: IpAddr) -> Option<(IpAddr, u8, u32)> {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let covers = |of: IpAddr, len: u8| {
        let rest = u128::MAX.checked_shr(len.into()).unwrap_or(0);
        of.is_ipv4() == address.is_ipv4() && bits(of) | rest == bits(address) | rest
    };
    let covering = prefixes.iter().filter(|(of, len, _)| covers(*of, *len));
    covering.max_by_key(|(_, len, _)| *len).copied()
}

macro_rules! net {
    ($family:ident, $addr:ty, $flow_key:ty, $frag_key:ty, $nat_key:ty, $tcp:ident, $any:ident, $frags:ident, $nat:ident,
     |$a:ident| $address:expr) => {
        impl Net<$family> for Memory {
            fn local(&self, $a: &$addr) -> Option<Local> {
                let address = $address;
                let answer = self.addrs.get(&address).copied();
                self.note(|| Step::Local { address, answer });
                answer
            }

            fn remote(&self, $a: &$addr) -> Option<IpcacheValue> {
                let address = $address;
                let answer = self.ipcache.longest(address);
                self.note(|| Step::Remote { address, answer });
                answer.map(|(_, value)| value)
            }

            fn flow(&self, key: &$flow_key, tcp: bool) -> Option<&FlowCell> {
                let answer = if tcp { self.$tcp.get(key) } else { self.$any.get(key) };
                self.note(|| Step::Flow { key: FlowKey::$family(*key), answer: answer.map(FlowCell::get) });
                answer
            }

            fn create(&self, key: &$flow_key, tcp: bool, row: &FlowRow) -> bool {
                let flow = &row.flow;
                let stored =
                    if tcp { self.$tcp.put(key, (*flow).into()) } else { self.$any.put(key, (*flow).into()) };
                self.note(|| Step::Create { key: FlowKey::$family(*key), flow: *flow, stored });
                stored
            }

            fn remove(&self, key: &$flow_key, tcp: bool) {
                if tcp {
                    self.$tcp.remove(key)
                } else {
                    self.$any.remove(key)
                };
                self.note(|| Step::Remove { key: FlowKey::$family(*key) });
            }

            fn ports(&self, key: &$frag_key) -> Option<FragPorts> {
                let answer = self.$frags.borrow().get(key).copied();
                self.note(|| Step::Ports { key: FragKey::$family(*key), answer });
                answer
            }

            fn remember(&self, key: &$frag_key, ports: &FragPorts) -> bool {
                self.$frags.borrow_mut().insert(*key, *ports);
                self.note(|| Step::Remember { key: FragKey::$family(*key), ports: *ports });
                true
            }

            fn masquerades(&self, $a: &$addr) -> u32 {
                let address = $address;
                let answer = covering(&self.masquerade, address);
                self.note(|| Step::Masquerades { address, answer });
                answer.map_or(0, |(.., flags)| flags)
            }

            fn nat(&self, key: &$nat_key) -> Option<&NatCell> {
                self.$nat.get(key)
            }

            fn claim(&self, key: &$nat_key, nat: &Nat) -> bool {
                let stored = self.$nat.get(key).is_none() && self.$nat.put(key, (*nat).into());
                self.note(|| Step::Claim { key: NatKey::$family(*key), nat: *nat, stored });
                stored
            }

            fn release(&self, key: &$nat_key) {
                self.$nat.remove(key);
            }
        }
    };
}

net!(V4, u32, FlowKey4, FragKey4, NatKey4, tcp4, any4, frags4, nat4, |addr| address4(*addr));
net!(V6, [u32; 4], FlowKey6, FragKey6, NatKey6, tcp6, any6, frags6, nat6, |addr| address6(addr));
