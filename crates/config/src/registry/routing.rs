//! Options of packets between nodes.

use crate::kind::{Kind, int_or_zero};
use crate::spec::{Group, OptionSpec};

const fn opt(name: &'static str, kind: Kind, default: &'static str, help: &'static str) -> OptionSpec {
    OptionSpec::new(name, kind, default, help).group(Group::Routing)
}

pub(super) const OPTIONS: &[OptionSpec] = &[
    opt(
        "routing-mode",
        Kind::Choice(&["native", "tunnel"]),
        "native",
        "How packets reach endpoints of other nodes. native: the network routes endpoints' addresses; tunnel: in VXLAN, \
         from node to node over IPv4, with the sender's identity.",
    ),
    opt("tunnel-port", int_or_zero(1, 65_535, "8472"), "0", "UDP port of the tunnel; the same on all nodes."),
    opt(
        "tunnel-past-stack",
        Kind::Bool,
        "true",
        "Wrap what endpoints send to other nodes where it leaves the endpoint, past the host's stack and its rules for output, as \
         long as the host has no IPsec policies for output and spreads nothing over several ways by ports. false: the tunnel's \
         device wraps, and the host's rules see each packet.",
    ),
    opt(
        "auto-direct-node-routes",
        Kind::Bool,
        "false",
        "With native routing, make routes to the prefixes of nodes that are on a network of this node.",
    ),
    opt(
        "direct-routing-skip-unreachable",
        Kind::Bool,
        "false",
        "With auto-direct-node-routes, leave nodes to the network's own routes that are behind a router: without it they \
         are reported.",
    ),
];
