//! Packets between nodes.

use super::reader::Reader;

/// Port of VXLAN where none is given, by long custom of Linux.
const VXLAN_PORT: u16 = 8472;

/// How packets reach endpoints of other nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Routing {
    /// `routing-mode` is `tunnel`; else the network routes endpoints' addresses.
    pub tunnel: bool,
    /// `tunnel-port`.
    pub tunnel_port: u16,
    /// `tunnel-past-stack`.
    pub past_stack: bool,
    /// `auto-direct-node-routes`.
    pub direct_routes: bool,
    /// `direct-routing-skip-unreachable`.
    pub skip_unreachable: bool,
}

impl Routing {
    pub(super) fn read(r: &mut Reader<'_>) -> Self {
        let port = r.u32_unless_zero("tunnel-port").and_then(|port| u16::try_from(port).ok());
        Self {
            tunnel: r.text("routing-mode") == "tunnel",
            tunnel_port: port.unwrap_or(VXLAN_PORT),
            past_stack: r.bool("tunnel-past-stack"),
            direct_routes: r.bool("auto-direct-node-routes"),
            skip_unreachable: r.bool("direct-routing-skip-unreachable"),
        }
    }
}
