//! Endpoints as the path sees them: what a device and an address belong to.
//!
//! One array indexed by slot holds the records; two kinds of hash maps point into it: interface index to
//! slot, and address to slot. So a record is stored once, and changing it is one write.

use crate::plain;

/// Slot 0 is the node itself. Its record is in use only while a policy selects the node.
pub const SLOT_HOST: u32 = 0;
/// Endpoint id of the node itself; its policy map is pinned as `cilium_policy_00000`.
pub const HOST_ID: u16 = 0;

/// The record is in use.
pub const FLAG_ACTIVE: u16 = 1;
/// The endpoint can be reached by redirecting to the peer of its veth pair.
pub const FLAG_DELIVER_PEER: u16 = 1 << 1;
/// The endpoint can be reached by redirecting to its host-side device.
pub const FLAG_DELIVER_DEVICE: u16 = 1 << 2;
/// Whatever ingress denies passes and is reported as audit.
pub const FLAG_AUDIT_INGRESS: u16 = 1 << 3;
/// The endpoint may send DHCP and receive router advertisements (adopted interfaces, taps).
pub const FLAG_DHCP: u16 = 1 << 4;
/// Some ingress entry of its policy map denies a specific identity, not as audit.
pub const FLAG_DENY_ID_INGRESS: u16 = 1 << 5;
/// Some egress entry of its policy map denies a specific identity, not as audit.
pub const FLAG_DENY_ID_EGRESS: u16 = 1 << 6;
/// Frames must carry the endpoint's MAC as source.
pub const FLAG_CHECK_MAC: u16 = 1 << 7;
/// Whatever egress denies passes and is reported as audit.
pub const FLAG_AUDIT_EGRESS: u16 = 1 << 8;
/// What no ingress entry decides passes and is reported as audit: only audited policies ask for default deny.
pub const FLAG_AUDIT_DEFAULT_INGRESS: u16 = 1 << 9;
/// As [`FLAG_AUDIT_DEFAULT_INGRESS`], for egress.
pub const FLAG_AUDIT_DEFAULT_EGRESS: u16 = 1 << 10;

/// Bit of [`Endpoint::mask`]: keys `{identity, 0, proto}` or `{0, 0, proto}` may exist. Bits 1 to 15: keys
/// of blocks of `1 << bit` ports may exist.
pub const MASK_PROTO: u32 = 1;
/// Every shape of key may exist.
pub const MASK_ALL: u32 = 0xffff;

/// One endpoint. 72 bytes, array element of `villus_endpoints_v1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Endpoint {
    /// Endpoint id, equal to its slot.
    pub id: u16,
    /// `FLAG_*`.
    pub flags: u16,
    /// Numeric identity.
    pub identity: u32,
    /// Host-side interface index.
    pub ifindex: u32,
    /// Largest layer-3 packet the device takes; 0 is not known.
    pub mtu: u32,
    /// Which key shapes the policy map may hold besides the four classic ones: ingress, egress.
    pub mask: [u32; 2],
    /// MAC of the endpoint.
    pub mac: [u8; 6],
    /// MAC of the host side, the endpoint's gateway.
    pub node_mac: [u8; 6],
    /// First IPv4 address, network order; 0 if none. Others are in the address map only.
    pub ipv4: u32,
    /// Index of the policy map in `villus_policies_v1`; equal to the id.
    pub policy: u32,
    /// First IPv6 address, network order; zero if none.
    pub ipv6: [u32; 4],
    /// Reserved, 0.
    pub reserved: [u32; 3],
}

impl Endpoint {
    /// Whether every bit of `flags` is set.
    #[must_use]
    pub const fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// Whose an address is: value of `villus_addrs4_v1` and `villus_addrs6_v1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Local {
    /// Slot of the endpoint; [`SLOT_HOST`] for the node's own addresses.
    pub slot: u32,
    /// `ADDR_*`.
    pub flags: u32,
}

/// The address is a router address of the node: ARP and neighbour solicitations for it are answered.
pub const ADDR_GATEWAY: u32 = 1;

plain!(Endpoint = 72, Local = 8);
