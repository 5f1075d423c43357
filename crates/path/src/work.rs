//! Where a packet's facts are kept while it is judged: too much for the kernel's 512 bytes of stack.

use villus_abi::{Event, FlowRow};

use crate::{
    endpoint::Way,
    family::{V4, V6},
    flow::{Key, Relation},
    judge::{Judged, Sender},
    nat::Mapping,
    parse::{Facts, Parse},
    report::Note,
    world::{Neighbour, Tunnel},
    wrap::Headers,
};

/// Room for one packet of one family.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Room<F: Parse> {
    // What every packet touches comes first, side by side.
    pub(crate) facts: Facts<F>,
    pub(crate) key: Key<F>,
    pub(crate) next: Neighbour,
    pub(crate) note: Note,
    pub(crate) known: Relation,
    pub(crate) way: Way,
    pub(crate) judged: Judged,
    /// Who sends a packet from elsewhere.
    pub(crate) sender: Sender,
    /// Of a packet from the tunnel.
    pub(crate) tunnel: Tunnel,
    /// The node to which a packet goes by the tunnel, network order.
    pub(crate) via: u32,
    pub(crate) quoted: Facts<F>,
    pub(crate) row: FlowRow,
    pub(crate) event: Event,
    /// Of a packet that is masqueraded.
    pub(crate) mapping: Mapping<F>,
    /// Of a packet that is wrapped.
    pub(crate) outer: Headers,
}

impl<F: Parse> Room<F> {
    /// What is known about the packet.
    #[inline(always)]
    pub fn facts_mut(&mut self) -> &mut Facts<F> {
        &mut self.facts
    }

    /// What is read from here on is read from memory: the verifier, which follows every constant, then walks what
    /// comes next once, not once for every way that leads to it.
    #[inline(always)]
    pub(crate) fn settle(&mut self) {
        core::hint::black_box(self);
    }
}

/// Room for one packet at a time; each hook clears what it uses. The kernel keeps one per CPU.
#[derive(Clone, Copy, Default)]
pub struct Work {
    v4: Room<V4>,
    v6: Room<V6>,
}

/// Picks a family's room.
pub trait Pick: Parse {
    /// The room of this family.
    fn room(work: &mut Work) -> &mut Room<Self>;
}

impl Pick for V4 {
    #[inline(always)]
    fn room(work: &mut Work) -> &mut Room<Self> {
        &mut work.v4
    }
}

impl Pick for V6 {
    #[inline(always)]
    fn room(work: &mut Work) -> &mut Room<Self> {
        &mut work.v6
    }
}
