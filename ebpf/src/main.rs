//! The kernel part of Villus: tc programs that give the packet path its maps, its packet and its way out.
//!
//! Nothing is decided here. Programs are shared by all endpoints; what differs is in the maps.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod maps;
mod packet;
mod world;

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_OK, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::{bpf_redirect, bpf_redirect_peer, bpf_skb_change_type},
    macros::classifier,
    programs::TcContext,
};
use villus_path::{Action, MARK_JUDGED, MARK_MASK, MARK_OPENED, MARK_OVERLAY, MARK_ROUTED, Outcome};

use crate::{packet::Skb, world::Kernel};

/// Ingress of an endpoint's host-side device.
#[classifier]
pub fn from_endpoint(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let outcome = villus_path::from_endpoint(&Kernel, &mut skb, work);
    act(&mut skb, outcome, TC_ACT_OK)
}

/// Egress of an endpoint's host-side device.
#[classifier]
pub fn to_endpoint(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let outcome = villus_path::to_endpoint(&Kernel, &mut skb, work);
    let mark = skb.mark_bits() & MARK_MASK;
    if outcome.action() as u8 == Action::Pass as u8 && (mark == MARK_JUDGED || mark == MARK_OPENED) {
        // The mark is ours alone; whoever reads the other end of the device must not see it.
        set_mark(ctx.skb.skb, 0);
    }
    act(&mut skb, outcome, TC_ACT_OK)
}

/// Ingress of an uplink. What is not ours goes on to whatever else is attached there.
#[classifier]
pub fn from_network(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let outcome = villus_path::from_network(&Kernel, &mut skb, work);
    act(&mut skb, outcome, TC_ACT_UNSPEC)
}

/// Ingress of an uplink where endpoints are masqueraded here: answers get their endpoint's address back first.
#[classifier]
pub fn from_network_nat(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    villus_path::unmasquerade(&Kernel, &mut skb, work);
    let outcome = villus_path::from_network(&Kernel, &mut skb, work);
    act(&mut skb, outcome, TC_ACT_UNSPEC)
}

/// Egress of an uplink where endpoints are masqueraded here, which comes after policy.
#[classifier]
pub fn to_network_nat(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let mut outcome = villus_path::to_network(&Kernel, &mut skb, work);
    if outcome.action() as u8 == Action::Pass as u8 {
        outcome = villus_path::masquerade(&Kernel, &mut skb, work);
    }
    act(&mut skb, outcome, TC_ACT_UNSPEC)
}

/// Egress of an uplink, attached while policy selects the node.
#[classifier]
pub fn to_network(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_UNSPEC };
    let outcome = villus_path::to_network(&Kernel, &mut skb, work);
    act(&mut skb, outcome, TC_ACT_UNSPEC)
}

/// Ingress of the tunnel's device. What goes up the stack is for this node, whatever Ethernet address it bears.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    const PACKET_HOST: u32 = 0;
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let outcome = villus_path::from_overlay(&Kernel, &mut skb, work);
    if outcome.action() as u8 == Action::Pass as u8 {
        // SAFETY: `skb` is the program's context.
        unsafe { bpf_skb_change_type(ctx.skb.skb, PACKET_HOST) };
    }
    act(&mut skb, outcome, TC_ACT_OK)
}

/// Egress of the tunnel's device.
#[classifier]
pub fn to_overlay(ctx: TcContext) -> i32 {
    let mut skb = Skb::new(ctx.skb.skb);
    let Some(work) = world::work() else { return TC_ACT_SHOT };
    let outcome = villus_path::to_overlay(&Kernel, &mut skb, work);
    if outcome.action() as u8 == Action::Pass as u8 {
        // The packet around it is the node's and has no mark.
        set_mark(ctx.skb.skb, 0);
    }
    act(&mut skb, outcome, TC_ACT_OK)
}

/// Does what was decided.
#[inline(always)]
fn act(skb: &mut Skb, outcome: Outcome, pass: i32) -> i32 {
    world::remember(outcome);
    match outcome.action() {
        Action::Pass => {
            if outcome.is_opened() {
                set_mark(skb.raw(), MARK_OPENED);
            }
            pass
        }
        Action::Drop => TC_ACT_SHOT,
        // SAFETY: plain helper calls with integers.
        Action::Peer => unsafe { bpf_redirect_peer(outcome.ifindex(), 0) as i32 },
        Action::Device => {
            set_mark(skb.raw(), MARK_JUDGED);
            // SAFETY: as above.
            unsafe { bpf_redirect(outcome.ifindex(), 0) as i32 }
        }
        Action::Tunnel => {
            set_mark(skb.raw(), MARK_OVERLAY);
            // SAFETY: as above.
            unsafe { bpf_redirect(outcome.ifindex(), 0) as i32 }
        }
        Action::Neighbour => {
            set_mark(skb.raw(), MARK_ROUTED);
            // SAFETY: as above.
            unsafe { bpf_redirect(outcome.ifindex(), 0) as i32 }
        }
    }
}

#[inline(always)]
fn set_mark(skb: *mut __sk_buff, mark: u32) {
    // SAFETY: `skb` is the program's context; `mark` is writable for tc programs.
    unsafe {
        let old = (*skb).mark;
        (*skb).mark = old & !MARK_MASK | mark;
    }
}

/// Dual licence: the helpers that redirect ask for a GPL-compatible one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
