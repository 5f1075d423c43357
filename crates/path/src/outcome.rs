//! What a hook decided.

use villus_abi::Reason;

/// The bits of a packet's mark that carry a meaning of the datapath (the field's 0x0F00 nibble).
pub const MARK_MASK: u32 = 0x0f00;
/// Mark of a packet that was judged for the endpoint it is being delivered to.
pub const MARK_JUDGED: u32 = 0x0800;
/// Mark of a packet that an endpoint sends up the stack in a flow that it opened: if the stack's NAT lends it an address
/// of the node, answers to that address are the endpoint's.
pub const MARK_OPENED: u32 = 0x0700;
/// Mark of a packet that an endpoint sends past the stack to the network: no NAT is wanted, and its sender is not the node.
pub const MARK_ROUTED: u32 = 0x0300;
/// Mark of a packet that an endpoint sends into the tunnel: the tunnel's device knows already where it goes and who it is
/// from.
pub const MARK_OVERLAY: u32 = 0x0400;

/// What the hook's glue does with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Action {
    /// On to the host's stack, or (to an endpoint) on to the device.
    #[default]
    Pass = 0,
    /// Drop it; the reason says why, or how it ended quietly.
    Drop = 1,
    /// To the peer of the veth with this interface index.
    Peer = 2,
    /// Out through this interface, marked as judged.
    Device = 3,
    /// Out through this interface to a neighbour, marked as needing nothing there.
    Neighbour = 4,
    /// Into the tunnel through this device, marked as such.
    Tunnel = 5,
}

/// The decision about one packet, small enough for a register.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Outcome(u64);

/// The packet goes on with [`MARK_OPENED`].
const OPENED: u64 = 1 << 16;

impl Outcome {
    /// On to the stack or the device.
    pub const PASS: Self = Self(0);

    /// On to the stack, marked with [`MARK_OPENED`] if marks are wanted and its flow's opener sent it.
    #[must_use]
    pub const fn up(marks: bool, by_opener: bool) -> Self {
        Self((marks & by_opener) as u64 * OPENED)
    }

    /// Drop for a reason.
    #[must_use]
    pub const fn drop(reason: Reason) -> Self {
        Self(Action::Drop as u64 | (reason.0 as u64) << 8)
    }

    /// Leave through an interface in a way.
    #[must_use]
    pub const fn leave(action: Action, ifindex: u32) -> Self {
        Self(action as u64 | (ifindex as u64) << 32)
    }

    /// The decision as a register, to hand it from one program part to another.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The decision from a register; an unknown action is a drop.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// What to do.
    #[must_use]
    pub const fn action(self) -> Action {
        match self.0 & 0xff {
            0 => Action::Pass,
            2 => Action::Peer,
            3 => Action::Device,
            4 => Action::Neighbour,
            5 => Action::Tunnel,
            _ => Action::Drop,
        }
    }

    /// Whether the packet goes on with [`MARK_OPENED`].
    #[must_use]
    pub const fn is_opened(self) -> bool {
        self.0 & OPENED != 0
    }

    /// Why it ended, when it did.
    #[must_use]
    pub const fn reason(self) -> Reason {
        Reason((self.0 >> 8) as u8)
    }

    /// Interface it leaves through.
    #[must_use]
    pub const fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl core::fmt::Debug for Outcome {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}(reason {}, ifindex {})", self.action(), self.reason().0, self.ifindex())
    }
}
