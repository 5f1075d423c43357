//! `bpf ct list`.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};
use villus_abi::{
    Flow, FlowKey4, FlowKey6,
    flow::{
        FLOW_AUDITED, FLOW_EGRESS_ADMITTED, FLOW_EITHER, FLOW_FWD_CLOSING, FLOW_HI_OPENED,
        FLOW_INGRESS_ADMITTED, FLOW_REV_CLOSING, FLOW_SEEN_NON_SYN, FLOW_VIA_STACK,
    },
    time::{Tick, to_ns},
};

/// A row of `bpf ct list`: one flow, both directions.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CtRow {
    /// IP protocol.
    pub proto: u8,
    /// Whether an endpoint of this node opened it (`OUT`); else it came in (`IN`).
    pub out: bool,
    /// The end that opened it. The port of an ICMP flow is the echo id of the asking end.
    pub src: SocketAddr,
    /// The other end.
    pub dst: SocketAddr,
    /// When it is no longer valid, seconds since boot.
    pub expires: u64,
    /// Packets and bytes from the opener.
    pub fwd: (u64, u64),
    /// Packets and bytes from the other end.
    pub rev: (u64, u64),
    /// TCP flags seen from the opener and from the other end.
    pub tcp_flags: (u8, u8),
    /// Last reports of both directions, seconds since boot.
    pub reports: (u64, u64),
    /// `villus_abi::flow::FLOW_*`.
    pub flags: u32,
    /// Reverse-NAT id.
    pub rev_nat: u16,
    /// Identities of both ends.
    pub identities: (u32, u32),
    /// Endpoints of both ends, 0 if not local.
    pub endpoints: (u16, u16),
}

/// How flows are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CtOptions {
    /// Seconds since boot; if given, expiry times are followed by what remains (`-d`).
    pub now: Option<u64>,
}

impl CtRow {
    /// The row of an IPv4 entry.
    #[must_use]
    pub fn v4(key: &FlowKey4, flow: &Flow) -> Self {
        let ip = |word: u32| IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes()));
        Self::new((ip(key.lo), key.lo_port), (ip(key.hi), key.hi_port), key.proto, flow)
    }

    /// The row of an IPv6 entry.
    #[must_use]
    pub fn v6(key: &FlowKey6, flow: &Flow) -> Self {
        let ip = |words: [u32; 4]| {
            let mut bytes = [0; 16];
            for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
                chunk.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(bytes))
        };
        Self::new((ip(key.lo), key.lo_port), (ip(key.hi), key.hi_port), key.proto, flow)
    }

    fn new(lo: (IpAddr, u16), hi: (IpAddr, u16), proto: u8, flow: &Flow) -> Self {
        let (src, dst) = if flow.flags & FLOW_HI_OPENED == 0 { (lo, hi) } else { (hi, lo) };
        let end = |(ip, port): (IpAddr, u16)| SocketAddr::new(ip, u16::from_be(port));
        Self {
            proto,
            out: flow.src_endpoint != 0,
            src: end(src),
            dst: end(dst),
            expires: seconds(flow.expires),
            fwd: (flow.fwd_packets, flow.fwd_bytes),
            rev: (flow.rev_packets, flow.rev_bytes),
            tcp_flags: (flow.fwd_tcp_flags, flow.rev_tcp_flags),
            reports: (seconds(flow.fwd_report), seconds(flow.rev_report)),
            flags: flow.flags,
            rev_nat: u16::from_be(flow.rev_nat),
            identities: (flow.src_identity, flow.dst_identity),
            endpoints: (flow.src_endpoint, flow.dst_endpoint),
        }
    }

    /// The line of the flow, without a newline. Tx and Rx are those of the endpoint on this node.
    #[must_use]
    pub fn line(&self, options: CtOptions) -> String {
        let (tx, rx) = if self.out { (self.fwd, self.rev) } else { (self.rev, self.fwd) };
        let swap = |(a, b)| if self.out { (a, b) } else { (b, a) };
        let (tx_flags, rx_flags) = swap(self.tcp_flags);
        let (tx_report, rx_report) = if self.out { self.reports } else { (self.reports.1, self.reports.0) };
        let remaining = options.now.map_or_else(String::new, |now| {
            format!(" (remaining: {} sec(s))", i128::from(self.expires) - i128::from(now))
        });
        let mut line = format!(
            "{} {} {} -> {} expires={}{remaining}",
            proto_text(self.proto),
            if self.out { "OUT" } else { "IN" },
            self.src,
            self.dst,
            self.expires,
        );
        // Writing to a string does not fail.
        let _ = write!(
            line,
            " RxPackets={} RxBytes={} RxFlagsSeen={rx_flags:#04x} LastRxReport={rx_report}",
            rx.0, rx.1
        );
        let _ = write!(
            line,
            " TxPackets={} TxBytes={} TxFlagsSeen={tx_flags:#04x} LastTxReport={tx_report}",
            tx.0, tx.1
        );
        let _ = write!(
            line,
            " {} RevNAT={} SourceSecurityID={}",
            self.flags_text(),
            self.rev_nat,
            self.identities.0
        );
        line
    }

    /// `Flags=0x0013 [ RxClosing TxClosing SeenNonSyn ]`: Cilium's bits where it has them, ours from 0x1000.
    fn flags_text(&self) -> String {
        let (tx, rx) = if self.out {
            (FLOW_FWD_CLOSING, FLOW_REV_CLOSING)
        } else {
            (FLOW_REV_CLOSING, FLOW_FWD_CLOSING)
        };
        let known = [
            (rx, 0x0001, "RxClosing"),
            (tx, 0x0002, "TxClosing"),
            (FLOW_SEEN_NON_SYN, 0x0010, "SeenNonSyn"),
            (FLOW_EGRESS_ADMITTED, 0x1000, "EgressAdmitted"),
            (FLOW_INGRESS_ADMITTED, 0x2000, "IngressAdmitted"),
            (FLOW_VIA_STACK, 0x4000, "ViaStack"),
            (FLOW_AUDITED, 0x8000, "Audited"),
            (FLOW_EITHER, 0x0800, "Either"),
        ];
        let (mut bits, mut names) = (0_u16, String::new());
        for (flag, bit, name) in known {
            if self.flags & flag != 0 {
                bits |= bit;
                names.push_str(name);
                names.push(' ');
            }
        }
        format!("Flags=0x{bits:04x} [ {names}]")
    }
}

fn seconds(tick: Tick) -> u64 {
    to_ns(tick) / 1_000_000_000
}

fn proto_text(proto: u8) -> String {
    match proto {
        1 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        58 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

/// The lines of `bpf ct list`.
#[must_use]
pub fn ct_list(rows: &[CtRow], options: CtOptions) -> String {
    rows.iter().fold(String::new(), |mut out, row| {
        out.push_str(&row.line(options));
        out.push('\n');
        out
    })
}
