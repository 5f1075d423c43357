//! [`villus_path::Packet`] on an `__sk_buff`.

use core::mem::MaybeUninit;

use aya_ebpf::{
    bindings::{__sk_buff, bpf_fib_lookup},
    helpers::generated::{
        bpf_fib_lookup as fib_lookup, bpf_get_hash_recalc, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
};
use villus_abi::Reason;
use villus_path::{Neighbour, Net, Packet, Parse, Pick, Room, V4, V6, World};

use crate::world::{self, Kernel};

const BPF_F_RECOMPUTE_CSUM: u64 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

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

    /// What the routing table says, as the device the packet came in by would ask it.
    #[inline(always)]
    fn fib(&mut self, query: &mut bpf_fib_lookup, next: &mut Neighbour) -> bool {
        query.ifindex = self.ifindex();
        // SAFETY: `query` is as large as said.
        let answer = unsafe { fib_lookup(self.0.cast(), query, size_of::<bpf_fib_lookup>() as i32, 0) };
        // 0 is success; everything else is for the stack, which knows how to answer.
        if answer != 0 {
            return false;
        }
        next.ifindex = query.ifindex;
        next.mac = query.dmac;
        next.own_mac = query.smac;
        true
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
        self.copy(offset)
    }

    #[inline(always)]
    fn halves<const N: usize>(&self, offset: u32) -> Option<[u16; N]> {
        self.copy(offset)
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
    fn parse<F: Pick, W: World + Net<F>>(&self, _: &W, _: &mut Room<F>, l3_only: bool) -> Reason {
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

    #[inline(never)]
    fn neighbour4(&mut self, src: u32, dst: u32, l3_len: u32, next: &mut Neighbour) -> bool {
        // SAFETY: all zeros is a valid query.
        let mut query: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        query.family = AF_INET;
        query.__bindgen_anon_1.tot_len = l3_len as u16;
        query.__bindgen_anon_3.ipv4_src = src;
        query.__bindgen_anon_4.ipv4_dst = dst;
        self.fib(&mut query, next)
    }

    #[inline(never)]
    fn neighbour6(&mut self, src: &[u32; 4], dst: &[u32; 4], l3_len: u32, next: &mut Neighbour) -> bool {
        // SAFETY: all zeros is a valid query.
        let mut query: bpf_fib_lookup = unsafe { MaybeUninit::zeroed().assume_init() };
        query.family = AF_INET6;
        query.__bindgen_anon_1.tot_len = l3_len as u16;
        query.__bindgen_anon_3.ipv6_src = *src;
        query.__bindgen_anon_4.ipv6_dst = *dst;
        self.fib(&mut query, next)
    }
}

/// Stages of the path that are global functions: the verifier looks at each once, not at every way to it.
/// They find the packet's room where the program that called them found it.
macro_rules! stages {
    ($family:ty, $parse:ident, $emit:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $parse(skb: *mut __sk_buff, l3_only: u32) -> u32 {
            let Some(work) = world::work() else { return Reason::NOT_READY.0 as u32 };
            let room = <$family>::room(work);
            <$family>::parse(&Kernel, &Skb(skb), room.facts_mut(), l3_only != 0).0 as u32
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $emit(skb: *mut __sk_buff) -> u32 {
            if let Some(work) = world::work() {
                villus_path::emit(&Kernel, &Skb(skb), <$family>::room(work));
            }
            0
        }
    };
}

stages!(V4, villus_parse4, villus_emit4);
stages!(V6, villus_parse6, villus_emit6);
