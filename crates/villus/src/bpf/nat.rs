//! `villus bpf nat`.

use std::net::SocketAddr;
use std::sync::Arc;

use clap::Subcommand;
use serde::Serialize;
use villus_abi::{Nat, time::to_ns};
use villus_datapath::{Mappings, NatKey, now};

use crate::{
    failure::Failure,
    kernel::PlaceArgs,
    out::{self, OutputArgs},
};

#[derive(Subcommand, Debug)]
pub enum NatCommand {
    /// List masqueraded packets: for each flow what leaves, and the answer that is expected.
    #[command(after_help = "Examples:\n  villus bpf nat list\n  villus bpf nat list -n -o json")]
    List {
        /// Protocols as numbers.
        #[arg(short, long)]
        numeric: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Forget all mappings: open connections get another, most likely with the same port, with their next packet out.
    #[command(after_help = "Examples:\n  villus bpf nat flush --dry-run\n  villus bpf nat flush")]
    Flush {
        /// Say how many entries would be forgotten, and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

/// One entry of the table.
#[derive(Serialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
struct Row {
    protocol: String,
    direction: &'static str,
    source: SocketAddr,
    destination: SocketAddr,
    becomes: SocketAddr,
    created_secs_ago: u64,
    /// Of what leaves: how long it remains valid without a packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining_secs: Option<i64>,
}

pub fn run(command: NatCommand) -> Result<(), Failure> {
    match command {
        NatCommand::List { numeric, output, places } => {
            let all = Mappings::new(Arc::new(places.kernel()?.maps)).list()?;
            let mut rows: Vec<Row> = all.iter().map(|(key, nat)| row(key, nat, numeric, now())).collect();
            rows.sort_by(|a, b| {
                (a.direction, a.source, a.destination).cmp(&(b.direction, b.source, b.destination)).reverse()
            });
            output.print(&rows, || rows.iter().map(|row| line(row) + "\n").collect())
        }
        NatCommand::Flush { dry_run, places } => {
            let mappings = Mappings::new(Arc::new(places.kernel()?.maps));
            if dry_run {
                return out::line(&format!("would forget {} entries", mappings.list()?.len()));
            }
            out::line(&format!("{} entries forgotten", mappings.flush()?))
        }
    }
}

fn row(key: &NatKey, nat: &Nat, numeric: bool, now: u32) -> Row {
    // A tick is no whole part of a second.
    let secs = |ticks: u32| (to_ns(ticks) + 500_000_000) / 1_000_000_000;
    let left = nat.expires.wrapping_sub(now).cast_signed();
    let remaining =
        || i64::try_from(secs(left.unsigned_abs())).unwrap_or(i64::MAX) * i64::from(left.signum());
    Row {
        protocol: if numeric { key.proto().to_string() } else { name(key.proto()) },
        direction: if key.is_out() { "OUT" } else { "IN" },
        source: key.src(),
        destination: key.dst(),
        becomes: key.becomes(nat),
        created_secs_ago: secs(now.wrapping_sub(nat.created)),
        remaining_secs: key.is_out().then(remaining),
    }
}

fn name(proto: u8) -> String {
    match proto {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        17 => "UDP".into(),
        58 => "ICMPv6".into(),
        132 => "SCTP".into(),
        other => other.to_string(),
    }
}

fn line(row: &Row) -> String {
    let side = if row.direction == "OUT" { "SRC" } else { "DST" };
    let Row { protocol, direction, source, destination, becomes, created_secs_ago, .. } = row;
    let mut text = format!(
        "{protocol} {direction} {source} -> {destination} XLATE_{side} {becomes} Created={created_secs_ago}sec ago"
    );
    if let Some(left) = row.remaining_secs {
        text.push_str(&format!(" (remaining: {left} sec)"));
    }
    text
}

#[cfg(test)]
mod tests {
    use villus_abi::{NatKey4, nat::NAT_IN, time::from_secs};

    use super::*;

    #[test]
    fn both_halves_are_printed_as_the_field_prints_them() {
        let word = |octets: [u8; 4]| u32::from_ne_bytes(octets);
        let out = NatKey4 {
            src: word([10, 0, 0, 1]),
            dst: word([192, 0, 2, 9]),
            sport: 40_000_u16.to_be(),
            dport: 443_u16.to_be(),
            proto: 6,
            ..NatKey4::default()
        };
        let now = from_secs(100);
        let nat = Nat {
            addr: [word([192, 0, 2, 1]), 0, 0, 0],
            port: 50_000_u16.to_be(),
            created: from_secs(40),
            expires: from_secs(160),
            ..Nat::default()
        };
        assert_eq!(
            line(&row(&NatKey::V4(out), &nat, false, now)),
            "TCP OUT 10.0.0.1:40000 -> 192.0.2.9:443 XLATE_SRC 192.0.2.1:50000 Created=60sec ago (remaining: 60 sec)"
        );
        let back = NatKey4 { src: word([192, 0, 2, 9]), dst: word([192, 0, 2, 1]), direction: NAT_IN, ..out };
        assert_eq!(
            line(&row(&NatKey::V4(back), &nat, true, now)),
            "6 IN 192.0.2.9:40000 -> 192.0.2.1:443 XLATE_DST 192.0.2.1:50000 Created=60sec ago"
        );
    }
}
