//! [`villus_path::World`] on BPF maps.

use core::{cell::Cell, ffi::c_void, marker::PhantomData};

use aya_ebpf::helpers::generated::{
    bpf_jiffies64, bpf_ktime_get_ns, bpf_map_delete_elem, bpf_map_lookup_elem, bpf_map_update_elem,
    bpf_ringbuf_output,
};
use villus_abi::{
    Config, Endpoint, Event, FlowCell, FlowKey4, FlowKey6, FlowRow, FragKey4, FragKey6, FragPorts,
    IpcacheKey, IpcacheValue, Local, Metric, Nat, NatCell, NatKey4, NatKey6, Node, PolicyCell, PolicyKey,
    Reason, Uplink, endpoint::FLAG_ACTIVE, metrics, time, time::Tick,
};
use villus_path::{Ask, Grant, Neighbour, Net, Outcome, PolicyMap, V4, V6, Verdict, Work, World};

use crate::maps;

/// The maps of this node.
pub struct Kernel;

/// A map that is a static of this object.
#[inline(always)]
fn map<T>(map: &'static T) -> *mut c_void {
    core::ptr::from_ref(map).cast_mut().cast()
}

/// Looks a value up.
///
/// # Safety
/// `map` is a map with keys `K` and values of `V`'s layout.
#[inline(always)]
unsafe fn lookup<'a, K, V>(map: *mut c_void, key: &K) -> Option<&'a V> {
    // SAFETY: the caller's promise. The value stays readable until the program ends (RCU); entries of hash
    // tables may be reused meanwhile, which the path tolerates: every field is plain data, read on its own.
    unsafe { bpf_map_lookup_elem(map.cast(), core::ptr::from_ref(key).cast()).cast::<V>().as_ref() }
}

/// Stores a value; tries once more when another CPU held the bucket.
///
/// # Safety
/// `map` is a map with these keys and values.
#[inline(always)]
unsafe fn update<K, V>(map: *mut c_void, key: &K, value: &V) -> bool {
    let (key, value) = (core::ptr::from_ref(key).cast(), core::ptr::from_ref(value).cast());
    // SAFETY: the caller's promise.
    unsafe { bpf_map_update_elem(map, key, value, 0) == 0 || bpf_map_update_elem(map, key, value, 0) == 0 }
}

/// What a CPU knows from one packet to the next. It lies before its [`Work`] in the same element, in one cache line.
#[repr(C)]
pub struct Cpu {
    /// The last decision, for PROG_TEST_RUN.
    outcome: Cell<u64>,
    /// The kernel's jiffy when `tick` was read.
    jiffy: Cell<u64>,
    tick: Cell<Tick>,
    /// Slots of the endpoints whose devices were seen last, by the low bits of the interface index: guesses.
    slots: [Cell<u32>; SLOTS],
    /// What the routing table said last of packets of each family, by the low bits of the destination.
    pub hops4: [Hop<u32>; HOPS],
    /// See `hops4`.
    pub hops6: [Hop<[u32; 4]>; HOPS],
    /// Number of the next packet that is wrapped, see [`villus_path::Packet::number`]; 0 before the first.
    pub number: Cell<u32>,
    /// What the maps have said of addresses.
    said4: Said<u32>,
    /// See `said4`.
    said6: Said<[u32; 4]>,
    nodes: [Word<[u32; 4], Node>; WORDS],
    /// The row of the ipcache that was asked for last.
    row: Cell<IpcacheValue>,
    /// The stamp when the policy map that is being asked was not yet looked at: what changes meanwhile makes another.
    asked: Cell<u64>,
    /// What policy maps have allowed.
    granted: [Granted; WORDS],
}

/// The entry by which a policy map has allowed something, good as a [`Word`] is.
#[repr(C)]
struct Granted {
    stamp: Cell<u64>,
    rest: Cell<u64>,
    policy: Cell<u32>,
    mask: Cell<u32>,
    identity: Cell<u32>,
    grant: Cell<Grant>,
}

impl Granted {
    /// The place of a question among those that are remembered.
    #[inline(always)]
    fn of<'a>(cpu: &'a Cpu, ask: &Ask) -> &'a Self {
        let hash = ask.identity ^ ask.rest as u32 ^ ask.policy.rotate_left(16);
        &cpu.granted[place(hash)]
    }
}

/// Addresses that a CPU remembers, of each map and family, each at the place that a hash of it gives.
const WORDS: usize = 32;

/// What the maps have said of addresses of one family.
#[repr(C)]
struct Said<A> {
    local: [Word<A, Local>; WORDS],
    remote: [Word<A, IpcacheValue>; WORDS],
}

/// What a map has said of an address, that it has nothing too. Whoever changes such a map through our tools gives the map EPOCH
/// another number; who changes it by other means is believed a jiffy later.
#[repr(C)]
struct Word<A, T> {
    stamp: Cell<u64>,
    addr: Cell<A>,
    found: Cell<u32>,
    value: Cell<T>,
}

/// A number that is another when the epoch or the jiffy is: both only grow. Never 0 once a map was written to.
#[inline(always)]
fn stamp() -> u64 {
    // SAFETY: EPOCH is an array of one u64.
    let epoch = unsafe { lookup::<_, u64>(map(&maps::EPOCH), &0u32) };
    epoch.copied().unwrap_or_default().wrapping_add(jiffy())
}

/// The place of what has such a hash: multiplied by the golden ratio, whose high bits depend on all of it. Kept from the test for
/// null by an opaque value, as that of the neighbours.
#[inline(always)]
fn place(hash: u32) -> usize {
    core::hint::black_box(hash.wrapping_mul(0x9e37_79b9) >> 27) as usize % WORDS
}

/// Asks what a map has said of an address, or else the map.
#[inline(always)]
fn recall<A: Copy + PartialEq, T: Copy + Default>(
    words: &[Word<A, T>; WORDS],
    hash: u32,
    addr: &A,
    ask: impl FnOnce() -> Option<T>,
) -> Option<T> {
    let word = &words[place(hash)];
    let now = stamp();
    if word.stamp.get() != now || word.addr.get() != *addr {
        let said = ask();
        word.found.set(said.is_some() as u32);
        word.value.set(said.unwrap_or_default());
        word.addr.set(*addr);
        word.stamp.set(now);
    }
    if word.found.get() == 0 { None } else { Some(word.value.get()) }
}

/// An IPv6 address in two registers.
#[inline(always)]
fn halves(addr: &[u32; 4]) -> (u64, u64) {
    (addr[0] as u64 | (addr[1] as u64) << 32, addr[2] as u64 | (addr[3] as u64) << 32)
}

/// The address again, and a hash of it.
#[inline(always)]
fn whole(a: u64, b: u64) -> ([u32; 4], u32) {
    let folded = a.rotate_left(8) ^ b;
    ([a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32], (folded ^ folded >> 32) as u32)
}

/// Bit of an answer in a register: there is one.
const FOUND: u64 = 1 << 63;

/// Whose an address is, in a register.
#[inline(always)]
fn pack(local: Option<Local>) -> u64 {
    match local {
        Some(local) => FOUND | (local.flags as u64) << 32 | local.slot as u64,
        None => 0,
    }
}

#[inline(always)]
fn unpack(bits: u64) -> Option<Local> {
    if bits & FOUND == 0 {
        return None;
    }
    Some(Local { slot: bits as u32, flags: (bits >> 32) as u32 & 0x7fff_ffff })
}

/// Global functions, which the verifier looks at once however often they are called.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn villus_local4(addr: u32) -> u64 {
    let Some(cpu) = cpu() else { return 0 };
    // SAFETY: key and value types of the map.
    pack(recall(&cpu.said4.local, addr, &addr, || unsafe { lookup(map(&maps::ADDRS4), &addr).copied() }))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn villus_local6(a: u64, b: u64) -> u64 {
    let Some(cpu) = cpu() else { return 0 };
    let (addr, hash) = whole(a, b);
    // SAFETY: key and value types of the map.
    pack(recall(&cpu.said6.local, hash, &addr, || unsafe { lookup(map(&maps::ADDRS6), &addr).copied() }))
}

/// Leaves the row in [`Cpu::row`] and says whether there is one.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn villus_remote4(addr: u32) -> u32 {
    let Some(cpu) = cpu() else { return 0 };
    // SAFETY: key and value layouts of the map.
    let row = recall(&cpu.said4.remote, addr, &addr, || unsafe {
        lookup(map(&maps::IPCACHE), &IpcacheKey::v4(addr.to_ne_bytes(), 32)).copied()
    });
    cpu.row.set(row.unwrap_or_default());
    row.is_some() as u32
}

/// See `villus_remote4`.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn villus_remote6(a: u64, b: u64) -> u32 {
    let Some(cpu) = cpu() else { return 0 };
    let (addr, hash) = whole(a, b);
    // SAFETY: key and value layouts of the map.
    let row = recall(&cpu.said6.remote, hash, &addr, || unsafe {
        lookup(map(&maps::IPCACHE), &IpcacheKey::v6(bytes(&addr), 128)).copied()
    });
    cpu.row.set(row.unwrap_or_default());
    row.is_some() as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn villus_node(a: u64, b: u64) -> u64 {
    let Some(cpu) = cpu() else { return 0 };
    let (addr, hash) = whole(a, b);
    // SAFETY: key and value types of the map.
    let node: Option<Node> =
        recall(&cpu.nodes, hash, &addr, || unsafe { lookup(map(&maps::NODES), &addr).copied() });
    match node {
        Some(node) => FOUND | node.tunnel as u64,
        None => 0,
    }
}

const SLOTS: usize = 8;
/// Answers of the routing table that are kept, for each family.
pub const HOPS: usize = 4;

/// What the routing table said of packets from one address to another, good for the jiffy in which it said so.
#[repr(C)]
pub struct Hop<A> {
    jiffy: Cell<u64>,
    ifindex: Cell<u32>,
    mtu: Cell<u32>,
    src: Cell<A>,
    dst: Cell<A>,
    next: Cell<Neighbour>,
}

impl<A: Copy + PartialEq> Hop<A> {
    /// The neighbour of a packet that came in by `ifindex` and is so long.
    #[inline(always)]
    pub fn get(&self, ifindex: u32, (src, dst): (A, A), len: u32) -> Option<Neighbour> {
        let known = self.jiffy.get() == jiffy()
            && self.ifindex.get() == ifindex
            && self.dst.get() == dst
            && self.src.get() == src
            && len <= self.mtu.get();
        if known { Some(self.next.get()) } else { None }
    }

    /// Keeps an answer.
    #[inline(always)]
    pub fn set(&self, ifindex: u32, (src, dst): (A, A), mtu: u32, next: Neighbour) {
        self.jiffy.set(jiffy());
        self.ifindex.set(ifindex);
        self.mtu.set(mtu);
        self.src.set(src);
        self.dst.set(dst);
        self.next.set(next);
    }
}

/// The kernel's jiffy.
#[inline(always)]
fn jiffy() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_jiffies64() }
}

/// A CPU's element of the map SCRATCH.
#[repr(C)]
pub struct Scratch {
    cpu: Cpu,
    work: Work,
}

/// This CPU's element.
#[inline(always)]
fn scratch() -> *mut Scratch {
    // SAFETY: SCRATCH is a per-CPU array of one element.
    unsafe { bpf_map_lookup_elem(map(&maps::SCRATCH), core::ptr::from_ref(&0u32).cast()).cast() }
}

/// What this CPU knows.
#[inline(always)]
pub fn cpu() -> Option<&'static Cpu> {
    let scratch = scratch();
    if scratch.is_null() {
        return None;
    }
    // SAFETY: the element is as large as `Scratch`, aligned to 8, and zeroes are a value of it. This part of it is
    // only ever shared.
    Some(unsafe { &(*scratch).cpu })
}

/// This CPU's room for the packet at hand.
#[inline(always)]
pub fn work() -> Option<&'static mut Work> {
    let scratch = scratch();
    if scratch.is_null() {
        return None;
    }
    // SAFETY: as above; tc programs do not preempt each other on a CPU, so this is the only reference.
    Some(unsafe { &mut (*scratch).work })
}

/// Keeps the decision where PROG_TEST_RUN can read it.
#[inline(always)]
pub fn remember(outcome: Outcome) {
    if let Some(cpu) = cpu() {
        cpu.outcome.set(outcome.to_bits());
    }
}

/// A policy map out of the array of policy maps.
pub struct Policy(*mut c_void, PhantomData<&'static ()>);

impl PolicyMap for Policy {
    #[inline(always)]
    fn entry(&self, key: &PolicyKey) -> Option<&PolicyCell> {
        // SAFETY: the array holds maps of this shape only.
        unsafe { lookup(self.0, key) }
    }
}

/// Asks a policy map: a global function, which the verifier looks at once however often it is called.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn villus_verdict(policy: u32, mask: u32, identity: u32, bytes: u32, rest: u64) -> u32 {
    villus_path::verdict(&Kernel, &Ask { policy, mask, identity, bytes, rest }).to_bits()
}

impl World for Kernel {
    type Policy = Policy;

    #[inline(always)]
    fn now_ns(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    /// Reading the clock costs more than a look-up; a jiffy is a fraction of a tick, so it is read once in each.
    #[inline(always)]
    fn now(&self) -> Tick {
        let jiffy = jiffy();
        let Some(cpu) = cpu() else { return time::from_ns(self.now_ns()) };
        if cpu.jiffy.get() == jiffy {
            return cpu.tick.get();
        }
        let tick = time::from_ns(self.now_ns());
        cpu.jiffy.set(jiffy);
        cpu.tick.set(tick);
        tick
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        // SAFETY: CONFIG is an array of Config.
        unsafe { lookup(map(&maps::CONFIG), &0u32) }
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<u32> {
        // SAFETY: DEVICES maps u32 to u32.
        unsafe { lookup::<u32, u32>(map(&maps::DEVICES), &ifindex) }.copied()
    }

    /// The endpoint that was there last is a good guess, and its record says whether it is right.
    #[inline(always)]
    fn endpoint_on(&self, ifindex: u32) -> Option<&Endpoint> {
        let guess = &cpu()?.slots[ifindex as usize % SLOTS];
        if let Some(endpoint) = self.endpoint(guess.get())
            && endpoint.ifindex == ifindex
            && endpoint.flags & FLAG_ACTIVE != 0
        {
            return Some(endpoint);
        }
        let slot = self.device(ifindex)?;
        guess.set(slot);
        self.endpoint(slot)
    }

    #[inline(always)]
    fn endpoint(&self, slot: u32) -> Option<&Endpoint> {
        // SAFETY: ENDPOINTS is an array of Endpoint.
        unsafe { lookup(map(&maps::ENDPOINTS), &slot) }
    }

    #[inline(always)]
    fn node(&self, addr: &[u32; 4]) -> Option<Node> {
        let (a, b) = halves(addr);
        let bits = villus_node(a, b);
        if bits & FOUND == 0 { None } else { Some(Node { tunnel: bits as u32, reserved: 0 }) }
    }

    #[inline(always)]
    fn uplink(&self, ifindex: u32) -> Option<Uplink> {
        // SAFETY: UPLINKS maps u32 to Uplink.
        unsafe { lookup::<_, Uplink>(map(&maps::UPLINKS), &ifindex) }.copied()
    }

    #[inline(always)]
    fn policy(&self, slot: u32) -> Option<Policy> {
        // SAFETY: POLICIES is an array of maps.
        let inner = unsafe { bpf_map_lookup_elem(map(&maps::POLICIES), core::ptr::from_ref(&slot).cast()) };
        if inner.is_null() { None } else { Some(Policy(inner, PhantomData)) }
    }

    #[inline(always)]
    fn ask(&self, ask: &Ask) -> Verdict {
        Verdict::from_bits(villus_verdict(ask.policy, ask.mask, ask.identity, ask.bytes, ask.rest))
    }

    #[inline(always)]
    fn granted(&self, ask: &Ask) -> Option<Grant> {
        let cpu = cpu()?;
        let (known, now) = (Granted::of(cpu, ask), stamp());
        cpu.asked.set(now);
        let same = known.stamp.get() == now
            && known.rest.get() == ask.rest
            && known.identity.get() == ask.identity
            && known.policy.get() == ask.policy
            && known.mask.get() == ask.mask;
        if same { Some(known.grant.get()) } else { None }
    }

    #[inline(always)]
    fn grants(&self, ask: &Ask, grant: &Grant) {
        let Some(cpu) = cpu() else { return };
        let known = Granted::of(cpu, ask);
        known.rest.set(ask.rest);
        known.identity.set(ask.identity);
        known.policy.set(ask.policy);
        known.mask.set(ask.mask);
        known.grant.set(*grant);
        known.stamp.set(cpu.asked.get());
    }

    #[inline(always)]
    fn add(&self, counter: &Cell<u64>, amount: u64) {
        // SAFETY: an aligned u64 inside a map value; `lock *(u64 *) +=` is an atomic add.
        unsafe {
            core::arch::asm!(
                "lock *(u64 *)({0} + 0) += {1}",
                in(reg) counter.as_ptr(),
                in(reg) amount,
            );
        }
    }

    #[inline(always)]
    fn count(&self, reason: Reason, direction: u8, bytes: u32) {
        let index = metrics::index(reason.0, direction);
        // SAFETY: METRICS is a per-CPU array of Metric; nobody else writes this CPU's element.
        unsafe {
            let metric = bpf_map_lookup_elem(map(&maps::METRICS), core::ptr::from_ref(&index).cast());
            if let Some(metric) = metric.cast::<Metric>().as_mut() {
                metric.packets += 1;
                metric.bytes += bytes as u64;
            }
        }
    }

    #[inline(always)]
    fn emit(&self, event: &Event) {
        // SAFETY: EVENTS is a ring buffer, `event` is readable for its whole size.
        let lost = unsafe {
            bpf_ringbuf_output(
                map(&maps::EVENTS),
                core::ptr::from_ref(event).cast_mut().cast(),
                size_of::<Event>() as u64,
                0,
            )
        };
        if lost != 0 {
            self.count(Reason::EVENTS_LOST, 0, size_of::<Event>() as u32);
        }
    }
}

/// The bytes of an IPv6 address.
#[inline(always)]
fn bytes(addr: &[u32; 4]) -> [u8; 16] {
    // SAFETY: sixteen bytes either way.
    unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(*addr) }
}

macro_rules! net {
    ($family:ty, $addr:ty, $flow_key:ty, $frag_key:ty, $nat_key:ty, $tcp:ident, $any:ident, $frags:ident, $nat:ident,
     |$a:ident| $ipcache_key:expr, $local:expr, $remote:expr) => {
        impl Net<$family> for Kernel {
            #[inline(always)]
            fn local(&self, addr: &$addr) -> Option<Local> {
                let $a = addr;
                unpack($local)
            }

            #[inline(always)]
            fn remote(&self, addr: &$addr) -> Option<IpcacheValue> {
                let $a = addr;
                if $remote != 0 { cpu().map(|cpu| cpu.row.get()) } else { None }
            }

            #[inline(always)]
            fn flow(&self, key: &$flow_key, tcp: bool) -> Option<&FlowCell> {
                // SAFETY: key and value types of the maps. The empty line of assembly keeps the two calls apart: one
                // call for both maps would be an indirect one.
                unsafe {
                    if tcp {
                        let flow = lookup(map(&maps::$tcp), key);
                        core::arch::asm!("");
                        return flow;
                    }
                    lookup(map(&maps::$any), key)
                }
            }

            #[inline(always)]
            fn create(&self, key: &$flow_key, tcp: bool, row: &FlowRow) -> bool {
                // SAFETY: key types of the maps, and as much as a value of either family takes.
                unsafe { update(if tcp { map(&maps::$tcp) } else { map(&maps::$any) }, key, row) }
            }

            #[inline(always)]
            fn remove(&self, key: &$flow_key, tcp: bool) {
                let key = core::ptr::from_ref(key).cast();
                // SAFETY: key types of the maps; that it may be gone already is no error.
                unsafe {
                    bpf_map_delete_elem(if tcp { map(&maps::$tcp) } else { map(&maps::$any) }, key);
                }
            }

            #[inline(always)]
            fn ports(&self, key: &$frag_key) -> Option<FragPorts> {
                // SAFETY: key and value types of the map.
                unsafe { lookup::<_, FragPorts>(map(&maps::$frags), key) }.copied()
            }

            #[inline(always)]
            fn remember(&self, key: &$frag_key, ports: &FragPorts) -> bool {
                // SAFETY: key and value types of the map.
                unsafe { update(map(&maps::$frags), key, ports) }
            }

            #[inline(always)]
            fn masquerades(&self, $a: &$addr) -> u32 {
                // SAFETY: key layout of the map, whose values are words.
                unsafe { lookup::<_, u32>(map(&maps::MASQUERADE), &$ipcache_key) }
                    .copied()
                    .unwrap_or_default()
            }

            #[inline(always)]
            fn nat(&self, key: &$nat_key) -> Option<&NatCell> {
                // SAFETY: key type and value layout of the map.
                unsafe { lookup(map(&maps::$nat), key) }
            }

            #[inline(always)]
            fn claim(&self, key: &$nat_key, nat: &Nat) -> bool {
                const BPF_NOEXIST: u64 = 1;
                let (key, nat) = (core::ptr::from_ref(key).cast(), core::ptr::from_ref(nat).cast());
                // SAFETY: key and value types of the map.
                unsafe { bpf_map_update_elem(map(&maps::$nat), key, nat, BPF_NOEXIST) == 0 }
            }

            #[inline(always)]
            fn release(&self, key: &$nat_key) {
                // SAFETY: key type of the map; that it may be gone already is no error.
                unsafe { bpf_map_delete_elem(map(&maps::$nat), core::ptr::from_ref(key).cast()) };
            }
        }
    };
}

net!(
    V4,
    u32,
    FlowKey4,
    FragKey4,
    NatKey4,
    CT4_TCP,
    CT4_ANY,
    FRAGS4,
    NAT4,
    |addr| IpcacheKey::v4(addr.to_ne_bytes(), 32),
    villus_local4(*addr),
    villus_remote4(*addr)
);
net!(
    V6,
    [u32; 4],
    FlowKey6,
    FragKey6,
    NatKey6,
    CT6_TCP,
    CT6_ANY,
    FRAGS6,
    NAT6,
    |addr| IpcacheKey::v6(bytes(addr), 128),
    villus_local6(halves(addr).0, halves(addr).1),
    villus_remote6(halves(addr).0, halves(addr).1)
);
