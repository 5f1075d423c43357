//! The ipcache: which identity an address has. Pinned as `cilium_ipcache`, LPM trie, layout of Cilium 1.10
//! (`bpf-maps` reference 2.2).

use crate::plain;

/// [`IpcacheKey::family`] of an IPv4 prefix.
pub const FAMILY_V4: u8 = 1;
/// [`IpcacheKey::family`] of an IPv6 prefix.
pub const FAMILY_V6: u8 = 2;
/// Bits of [`IpcacheKey::prefixlen`] that come before the address bits.
pub const STATIC_BITS: u32 = 32;
/// [`IpcacheValue::flags`]: the prefix is a cluster's range whose addresses have identities of their own;
/// an address that matches only this entry is pending, not world.
pub const FLAG_PENDING: u8 = 1;
/// [`IpcacheValue::flags`]: endpoints of other nodes have these addresses, the network takes packets to them as they are, and
/// nothing of the host translates those: packets of new flows may go past its stack.
pub const FLAG_ROUTED: u8 = 1 << 1;

/// Key of the ipcache. 24 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[repr(C)]
pub struct IpcacheKey {
    /// 32 static bits plus the length of the address prefix.
    pub prefixlen: u32,
    /// Padding of the layout, 0.
    pub pad1: u16,
    /// Padding of the layout, 0.
    pub pad2: u8,
    /// 1 for IPv4, 2 for IPv6.
    pub family: u8,
    /// Address, network order; IPv4 in the first four bytes.
    pub addr: [u8; 16],
}

impl IpcacheKey {
    /// The key of an IPv4 prefix.
    #[must_use]
    pub const fn v4(addr: [u8; 4], len: u8) -> Self {
        let mut bytes = [0; 16];
        bytes[0] = addr[0];
        bytes[1] = addr[1];
        bytes[2] = addr[2];
        bytes[3] = addr[3];
        Self { prefixlen: STATIC_BITS + len as u32, pad1: 0, pad2: 0, family: FAMILY_V4, addr: bytes }
    }

    /// The key of an IPv6 prefix.
    #[must_use]
    pub const fn v6(addr: [u8; 16], len: u8) -> Self {
        Self { prefixlen: STATIC_BITS + len as u32, pad1: 0, pad2: 0, family: FAMILY_V6, addr }
    }
}

/// Value of the ipcache. 12 bytes; the last three are padding in Cilium 1.10, the first of them ours.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct IpcacheValue {
    /// Numeric identity of the address.
    pub identity: u32,
    /// IPv4 address of the node behind which it lives, network order; 0 if none.
    pub tunnel: u32,
    /// Encryption key index, 0 if none.
    pub key: u8,
    /// [`FLAG_PENDING`], [`FLAG_ROUTED`].
    pub flags: u8,
    /// Padding, 0.
    pub pad: [u8; 2],
}

plain!(IpcacheKey = 24, IpcacheValue = 12);
