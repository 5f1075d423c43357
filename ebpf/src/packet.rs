//! [`villus_path::Packet`] on an `__sk_buff`.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup, bpf_sock, bpf_sock_tuple},
    helpers::generated::{
        bpf_fib_lookup as fib_lookup, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_l3_csum_replace,
        bpf_l4_csum_replace, bpf_sk_lookup_udp, bpf_sk_release, bpf_skb_adjust_room, bpf_skb_change_tail,
        bpf_skb_get_tunnel_key, bpf_skb_load_bytes, bpf_skb_set_tunnel_key, bpf_skb_store_bytes,
        bpf_skc_lookup_tcp,
    },
};
use villus_abi::{Config, Reason};
use villus_path::{
    AROUND, ETH_HLEN, HALVES, Headers, Neighbour, Net, Outcome, Packet, Parse, Pick, Room, Tunnel, V4, V6,
    World, Wrapping,
};

use crate::world::{self, HOPS, Kernel};

const BPF_F_RECOMPUTE_CSUM: u64 = 1;
/// The outer UDP header carries no checksum, which IPv4 allows: that of the packet inside protects it.
const BPF_F_ZERO_CSUM_TX: u64 = 1 << 1;
/// The checksum covers the addresses.
const BPF_F_PSEUDO_HDR: u64 = 1 << 4;
/// A checksum of 0 is none, and none becomes it.
const BPF_F_MARK_MANGLED_0: u64 = 1 << 5;
/// The namespace of the packet's device.
const CURRENT_NETNS: u64 = u64::MAX;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// A socket that waits for connections: it has none with the peer that was asked about.
const TCP_LISTEN: u32 = 10;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Offsets up to which the linear part is looked at; the verifier wants a bound.
const LINEAR_MOST: u32 = 512;

/// Reads four bytes of the packet, aligned or not: what Rust's own unaligned read would do byte by byte.
#[inline(always)]
fn read32(at: usize) -> u32 {
    let value: u64;
    // SAFETY: the caller compared `at` with the end of the packet; the verifier proves it again.
    unsafe {
        core::arch::asm!("{0} = *(u32 *)({1} + 0)", out(reg) value, in(reg) at, options(pure, readonly, nostack));
    }
    value as u32
}

/// As [`read32`], two bytes.
#[inline(always)]
fn read16(at: usize) -> u16 {
    let value: u64;
    // SAFETY: see `read32`.
    unsafe {
        core::arch::asm!("{0} = *(u16 *)({1} + 0)", out(reg) value, in(reg) at, options(pure, readonly, nostack));
    }
    value as u16
}

/// `bpf_tunnel_key` as it first was: VNI and IPv4 address of the other side, both in the machine's order.
#[repr(C)]
struct TunnelKey {
    id: u32,
    remote: u32,
}

/// A packet of the kernel.
pub struct Skb(*mut __sk_buff);

impl Skb {
    /// The context of a tc program.
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self(skb)
    }

    /// The context again.
    #[inline(always)]
    pub fn raw(&self) -> *mut __sk_buff {
        self.0
    }

    /// Its mark.
    #[inline(always)]
    pub fn mark_bits(&self) -> u32 {
        // SAFETY: the context of the running program.
        unsafe { (*self.0).mark }
    }

    /// Where `size` bytes from `offset` lie, if they are in the linear part: then they are read without a call.
    #[inline(always)]
    fn linear(&self, offset: u32, size: usize) -> Option<usize> {
        if offset > LINEAR_MOST {
            return None;
        }
        // SAFETY: the context of the running program.
        let (data, end) = unsafe { ((*self.0).data as usize, (*self.0).data_end as usize) };
        let at = data + offset as usize;
        if at + size > end { None } else { Some(at) }
    }

    /// Copies a plain value out of the packet.
    #[inline(always)]
    fn copy<T: Copy>(&self, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: as much room as is asked for; the helper fills all of it or fails. `T` is an array of integers.
        unsafe {
            if bpf_skb_load_bytes(self.0.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32)
                != 0
            {
                return None;
            }
            Some(value.assume_init())
        }
    }

    /// What the routing table says, as the device the packet came in by would ask it, and the MTU of that way.
    #[inline(always)]
    fn fib(&mut self, query: &mut bpf_fib_lookup, next: &mut Neighbour) -> Option<u32> {
        query.ifindex = self.ifindex();
        // SAFETY: `query` is as large as said.
        let answer = unsafe { fib_lookup(self.0.cast(), query, size_of::<bpf_fib_lookup>() as i32, 0) };
        // 0 is success; everything else is for the stack, which knows how to answer.
        if answer != 0 {
            return None;
        }
        next.ifindex = query.ifindex;
        next.mac = query.dmac;
        next.own_mac = query.smac;
        // SAFETY: the answer has written it over the length that was asked about; any bits are a number.
        Some(unsafe { query.__bindgen_anon_1.mtu_result } as u32)
    }

    /// Whether the host has a socket for a packet with these ends. `size` is that of the family's part of them.
    #[inline(always)]
    fn has_socket(&mut self, proto: u8, ends: &mut bpf_sock_tuple, size: usize) -> bool {
        let size = size as u32;
        // SAFETY: `ends` is as large as said; the socket is given back before anything else happens.
        unsafe {
            let socket: *mut bpf_sock = match proto {
                TCP => bpf_skc_lookup_tcp(self.0.cast(), ends, size, CURRENT_NETNS, 0),
                UDP => bpf_sk_lookup_udp(self.0.cast(), ends, size, CURRENT_NETNS, 0),
                _ => return false,
            };
            if socket.is_null() {
                return false;
            }
            let listens = proto == TCP && (*socket).state == TCP_LISTEN;
            bpf_sk_release(socket.cast());
            !listens
        }
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context of the running program; the same for those below.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: see `len`.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn ingress_ifindex(&self) -> u32 {
        // SAFETY: see `len`.
        unsafe { (*self.0).ingress_ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        self.mark_bits()
    }

    #[inline(always)]
    fn gso_size(&self) -> u32 {
        // SAFETY: see `len`.
        unsafe { (*self.0).gso_size }
    }

    #[inline(always)]
    fn vlan(&self) -> bool {
        // SAFETY: see `len`.
        unsafe { (*self.0).vlan_present != 0 }
    }

    #[inline(always)]
    fn hash(&self) -> u32 {
        // SAFETY: see `len`.
        unsafe { bpf_get_hash_recalc(self.0) }
    }

    #[inline(always)]
    fn words<const N: usize>(&self, offset: u32) -> Option<[u32; N]> {
        let Some(at) = self.linear(offset, N * 4) else { return self.copy(offset) };
        let mut words = [0; N];
        let mut i = 0;
        while i < N {
            words[i] = read32(at + i * 4);
            i += 1;
        }
        Some(words)
    }

    #[inline(always)]
    fn halves<const N: usize>(&self, offset: u32) -> Option<[u16; N]> {
        let Some(at) = self.linear(offset, N * 2) else { return self.copy(offset) };
        let mut halves = [0; N];
        let mut i = 0;
        while i < N {
            halves[i] = read16(at + i * 2);
            i += 1;
        }
        Some(halves)
    }

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.copy(offset)
    }

    #[inline(always)]
    fn store<const N: usize>(&mut self, offset: u32, bytes: &[u8; N], sum: bool) -> bool {
        let flags = if sum { BPF_F_RECOMPUTE_CSUM } else { 0 };
        // SAFETY: N readable bytes.
        unsafe { bpf_skb_store_bytes(self.0, offset, bytes.as_ptr().cast(), N as u32, flags) == 0 }
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> bool {
        // SAFETY: no pointers into the packet are held.
        unsafe { bpf_skb_change_tail(self.0, len, 0) == 0 }
    }

    #[inline(always)]
    fn tunnel(&self) -> Option<Tunnel> {
        let mut key = TunnelKey { id: 0, remote: 0 };
        // SAFETY: room for as much as is asked for; the kernel knows this oldest layout, which is of IPv4 only.
        let failed = unsafe {
            bpf_skb_get_tunnel_key(
                self.0,
                core::ptr::from_mut(&mut key).cast(),
                size_of::<TunnelKey>() as u32,
                0,
            )
        };
        if failed != 0 {
            return None;
        }
        Some(Tunnel { from: key.remote.to_be(), identity: key.id })
    }

    #[inline(always)]
    fn encapsulate(&mut self, to: u32, identity: u32) -> bool {
        // What is wider is of this node only; the receiver asks its own ipcache.
        let id = if identity >> 24 == 0 { identity } else { 0 };
        let mut key = TunnelKey { id, remote: u32::from_be(to) };
        // SAFETY: as much as is said is readable.
        unsafe {
            bpf_skb_set_tunnel_key(
                self.0,
                core::ptr::from_mut(&mut key).cast(),
                size_of::<TunnelKey>() as u32,
                BPF_F_ZERO_CSUM_TX,
            ) == 0
        }
    }

    /// Segments are made of the packet inside, so their size stays: what does not fit then was refused before.
    #[inline(always)]
    fn wrap(&mut self, headers: &Headers) -> Wrapping {
        const BEHIND_ETHERNET: u32 = 1;
        const FIXED_GSO: u64 = 1;
        const IPV4: u64 = 1 << 1;
        const UDP: u64 = 1 << 4;
        const ETHERNET: u64 = 1 << 6;
        const INNER_ETHERNET: u64 = (ETH_HLEN as u64) << 56;
        const FLAGS: u64 = FIXED_GSO | IPV4 | UDP | ETHERNET | INNER_ETHERNET;
        const REST: u32 = HALVES as u32 * 2 - ETH_HLEN;

        let bytes: *const u8 = headers.0.as_ptr().cast();
        // SAFETY: no pointers into the packet are held, and as many bytes as are stored are readable. What is new counts towards a
        // sum over the whole packet that a device may have made, but for the Ethernet header.
        unsafe {
            if bpf_skb_adjust_room(self.0, AROUND as i32, BEHIND_ETHERNET, FLAGS) != 0 {
                return Wrapping::Refused;
            }
            let rest = bytes.add(ETH_HLEN as usize).cast();
            if bpf_skb_store_bytes(self.0, 0, bytes.cast(), ETH_HLEN, 0) != 0
                || bpf_skb_store_bytes(self.0, ETH_HLEN, rest, REST, BPF_F_RECOMPUTE_CSUM) != 0
            {
                return Wrapping::Torn;
            }
        }
        Wrapping::Done
    }

    /// Counted on each CPU: receivers put together again what has numbers that follow each other.
    #[inline(always)]
    fn number(&mut self) -> u16 {
        const DRAWN: u32 = 1 << 31;
        let Some(cpu) = world::cpu() else { return 0 };
        // SAFETY: see `len`.
        let segments = unsafe { (*self.0).gso_segs };
        let mut number = cpu.number.get();
        if number == 0 {
            // SAFETY: no arguments.
            number = unsafe { bpf_get_prandom_u32() } | DRAWN;
        }
        cpu.number.set(number.wrapping_add(if segments == 0 { 1 } else { segments }) | DRAWN);
        number as u16
    }

    #[inline(always)]
    fn by_tunnel<F: Pick, W: World + Net<F>>(&mut self, _: &W, _: &mut Room<F>, identity: u32) -> Outcome {
        Outcome::from_bits(if F::V6 {
            villus_tunnel6(self.0, identity)
        } else {
            villus_tunnel4(self.0, identity)
        })
    }

    #[inline(always)]
    fn add_to_ip_sum(&mut self, offset: u32, difference: u32) -> bool {
        // SAFETY: plain helper call with the program's context.
        unsafe { bpf_l3_csum_replace(self.0, offset, 0, difference as u64, 0) == 0 }
    }

    #[inline(always)]
    fn add_to_sum(&mut self, offset: u32, difference: u32, pseudo: bool, optional: bool) -> bool {
        let flags =
            if pseudo { BPF_F_PSEUDO_HDR } else { 0 } | if optional { BPF_F_MARK_MANGLED_0 } else { 0 };
        // SAFETY: as above.
        unsafe { bpf_l4_csum_replace(self.0, offset, 0, difference as u64, flags) == 0 }
    }

    #[inline(always)]
    fn is_hosts4(&mut self, proto: u8, local: (u32, u16), peer: (u32, u16)) -> bool {
        // SAFETY: all zeros is a value.
        let mut ends: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
        ends.__bindgen_anon_1.ipv4.saddr = peer.0;
        ends.__bindgen_anon_1.ipv4.daddr = local.0;
        ends.__bindgen_anon_1.ipv4.sport = peer.1;
        ends.__bindgen_anon_1.ipv4.dport = local.1;
        self.has_socket(proto, &mut ends, 12)
    }

    #[inline(always)]
    fn is_hosts6(&mut self, proto: u8, local: (&[u32; 4], u16), peer: (&[u32; 4], u16)) -> bool {
        // SAFETY: all zeros is a value.
        let mut ends: bpf_sock_tuple = unsafe { MaybeUninit::zeroed().assume_init() };
        ends.__bindgen_anon_1.ipv6.saddr = *peer.0;
        ends.__bindgen_anon_1.ipv6.daddr = *local.0;
        ends.__bindgen_anon_1.ipv6.sport = peer.1;
        ends.__bindgen_anon_1.ipv6.dport = local.1;
        self.has_socket(proto, &mut ends, 36)
    }

    #[inline(always)]
    fn lend<F: Pick, W: World + Net<F>>(&mut self, _: &W, _: &mut Room<F>, port: u16, own: bool) -> bool {
        let lent = if F::V6 {
            villus_lend6(self.0, port as u32, own as u32)
        } else {
            villus_lend4(self.0, port as u32, own as u32)
        };
        lent != 0
    }

    #[inline(always)]
    fn parse<F: Pick>(&self, _: &mut Room<F>, l3_only: bool) -> Reason {
        Reason(if F::V6 {
            villus_parse6(self.0, l3_only as u32)
        } else {
            villus_parse4(self.0, l3_only as u32)
        } as u8)
    }

    #[inline(always)]
    fn emit<F: Pick, W: World>(&self, _: &W, _: &mut Room<F>) {
        if F::V6 {
            villus_emit6(self.0)
        } else {
            villus_emit4(self.0)
        };
    }

    #[inline(always)]
    fn end<F: Pick, W: World>(&self, _: &W, _: &Config, _: &mut Room<F>, reason: Reason) {
        if F::V6 {
            villus_end6(self.0, reason.0 as u32)
        } else {
            villus_end4(self.0, reason.0 as u32)
        };
    }

    #[inline(never)]
    fn neighbour4(&mut self, src: u32, dst: u32, l3_len: u32, next: &mut Neighbour) -> bool {
        let (ifindex, ends) = (self.ifindex(), (src, dst));
        let Some(cpu) = world::cpu() else { return false };
        // Kept from the test for null by an opaque value: arithmetic before it is refused.
        let hop = &cpu.hops4[core::hint::black_box(u32::from_be(dst) as usize) % HOPS];
        if let Some(known) = hop.get(ifindex, ends, l3_len) {
            *next = known;
            return true;
        }
        // SAFETY: all zeros is a valid query.
        let mut query: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        query.family = AF_INET;
        query.__bindgen_anon_1.tot_len = l3_len as u16;
        query.__bindgen_anon_3.ipv4_src = src;
        query.__bindgen_anon_4.ipv4_dst = dst;
        let Some(mtu) = self.fib(&mut query, next) else { return false };
        hop.set(ifindex, ends, mtu, *next);
        true
    }

    #[inline(never)]
    fn neighbour6(&mut self, src: &[u32; 4], dst: &[u32; 4], l3_len: u32, next: &mut Neighbour) -> bool {
        let (ifindex, ends) = (self.ifindex(), (*src, *dst));
        let Some(cpu) = world::cpu() else { return false };
        // Kept from the test for null by an opaque value: arithmetic before it is refused.
        let hop = &cpu.hops6[core::hint::black_box(u32::from_be(dst[3]) as usize) % HOPS];
        if let Some(known) = hop.get(ifindex, ends, l3_len) {
            *next = known;
            return true;
        }
        // SAFETY: all zeros is a valid query.
        let mut query: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        query.family = AF_INET6;
        query.__bindgen_anon_1.tot_len = l3_len as u16;
        query.__bindgen_anon_3.ipv6_src = *src;
        query.__bindgen_anon_4.ipv6_dst = *dst;
        let Some(mtu) = self.fib(&mut query, next) else { return false };
        hop.set(ifindex, ends, mtu, *next);
        true
    }
}

/// Stages of the path that are global functions: the verifier looks at each once, not at every way to it.
/// They find the packet's room where the program that called them found it.
macro_rules! stages {
    ($family:ty, $parse:ident, $emit:ident, $end:ident, $lend:ident, $tunnel:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $parse(skb: *mut __sk_buff, l3_only: u32) -> u32 {
            let Some(work) = world::work() else { return Reason::NOT_READY.0 as u32 };
            let room = <$family>::room(work);
            <$family>::parse(&Skb(skb), room.facts_mut(), l3_only != 0).0 as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[cold]
        #[unsafe(link_section = ".text")]
        extern "C" fn $emit(skb: *mut __sk_buff) -> u32 {
            if let Some(work) = world::work() {
                villus_path::emit(&Kernel, &Skb(skb), <$family>::room(work));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[cold]
        #[unsafe(link_section = ".text")]
        extern "C" fn $end(skb: *mut __sk_buff, reason: u32) -> u32 {
            if let (Some(work), Some(config)) = (world::work(), Kernel.config()) {
                villus_path::end(&Kernel, &Skb(skb), config, <$family>::room(work), Reason(reason as u8));
            }
            0
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        #[cold]
        #[unsafe(link_section = ".text")]
        extern "C" fn $lend(skb: *mut __sk_buff, port: u32, own: u32) -> u32 {
            let Some(work) = world::work() else { return 0 };
            let room = <$family>::room(work);
            villus_path::lend(&Kernel, &mut Skb(skb), room, port as u16, own != 0) as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $tunnel(skb: *mut __sk_buff, identity: u32) -> u64 {
            let Some(work) = world::work() else { return Outcome::drop(Reason::NOT_READY).to_bits() };
            let room = <$family>::room(work);
            villus_path::by_tunnel(&Kernel, &mut Skb(skb), room, identity).to_bits()
        }
    };
}

stages!(V4, villus_parse4, villus_emit4, villus_end4, villus_lend4, villus_tunnel4);
stages!(V6, villus_parse6, villus_emit6, villus_end6, villus_lend6, villus_tunnel6);
