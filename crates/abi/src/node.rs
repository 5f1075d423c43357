//! The nodes that a tunnel leads to: `villus_nodes_v1`.

use crate::plain;

/// A node, found under each of its addresses (IPv4 as `::ffff:a.b.c.d`). 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Node {
    /// The address that the ipcache gives as the tunnel endpoint of what lives there, network order.
    pub tunnel: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// The key of a node's IPv4 address (network order).
#[must_use]
pub const fn mapped(addr: u32) -> [u32; 4] {
    [0, 0, 0x0000_ffff_u32.to_be(), addr]
}

plain!(Node = 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_is_mapped_as_ipv6_says() {
        let words = mapped(u32::from_ne_bytes([192, 0, 2, 7]));
        let bytes: [u8; 16] = core::array::from_fn(|at| words[at / 4].to_ne_bytes()[at % 4]);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 7]);
    }
}
