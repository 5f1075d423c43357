//! Masquerading of what workloads send out of the node: an nftables table of our own.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::command;
use crate::error::NetError;

/// Our table, of family `inet`.
pub const NAT_TABLE: &str = "villus";

const FIX: &str = "see `nft list table inet villus`; kernels from 5.2 with nf_tables and NAT can do this";

/// Packets with this mark are left alone: `mark & mask == value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// The bits that must be set so.
    pub value: u32,
    /// The bits that are looked at.
    pub mask: u32,
}

/// What is masqueraded: connections from the pools that leave the node for anywhere but the pools and the native
/// prefixes get the address of the device through which they leave.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Masquerade {
    /// Prefixes of workloads' addresses; leave a family out to not masquerade it.
    pub pools: Vec<IpNet>,
    /// Prefixes that workloads reach with their own addresses.
    pub native: Vec<IpNet>,
    /// More of them, which come and go; with `None` those that the table has stay.
    pub kept: Option<Vec<IpNet>>,
    /// Indices of devices whose own programs masquerade: what leaves by them is left alone. An index follows its device
    /// through every change of name.
    pub left: BTreeSet<u32>,
    /// Packets that are left alone.
    pub skip: Option<Mark>,
    /// Devices through which nothing leaves the node: workloads' own, whatever their addresses. A `*` at the end
    /// stands for any rest.
    pub inner_devices: Vec<String>,
}

/// With whose address a connection leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeavesWith {
    /// That of the device by which it leaves.
    Lent,
    /// Its own, for its destination lies in this prefix.
    OwnTo(IpNet),
    /// Its own, for it comes from nowhere that is masqueraded.
    Own,
}

/// How many connections met a rule. A connection counts once, with the bytes of its first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NatCounters {
    /// IPv4 connections masqueraded.
    pub ipv4: u64,
    /// IPv6 connections masqueraded.
    pub ipv6: u64,
    /// Connections left alone for their mark.
    pub skipped: u64,
}

// === impl Masquerade ===

impl Masquerade {
    /// Makes the table of the calling thread's namespace so, in one transaction. Counters and running connections
    /// go on.
    ///
    /// # Errors
    /// [`NetError::CommandMissing`] without `nft`; [`NetError::Command`] when it fails, with nothing changed.
    pub fn apply(&self) -> Result<(), NetError> {
        self.check()?;
        let nft = nft()?;
        match command::run(&nft, &["-f", "-"], &self.script(), FIX) {
            Ok(_) => Ok(()),
            // A table that cannot be edited into ours, such as another version's, is replaced as a whole.
            Err(_) => self.replace(),
        }
    }

    /// Puts the table in the place of whatever has its name, in one transaction. Running connections go on, counters begin
    /// anew.
    ///
    /// # Errors
    /// As those of [`Self::apply`].
    pub fn replace(&self) -> Result<(), NetError> {
        self.check()?;
        let anew = format!("{}{}", removal(), self.script());
        command::run(&nft()?, &["-f", "-"], &anew, FIX).map(drop)
    }

    /// With whose address a connection leaves that no other rule of the host's translates.
    #[must_use]
    pub fn leaves_with(&self, src: IpAddr, dst: IpAddr) -> LeavesWith {
        if !self.pools.iter().any(|pool| pool.contains(&src)) {
            return LeavesWith::Own;
        }
        match self.inside().find(|net| net.contains(&dst)) {
            Some(net) => LeavesWith::OwnTo(net),
            None => LeavesWith::Lent,
        }
    }

    /// Whether the table has nothing to do with what leaves by a device.
    #[must_use]
    pub fn leaves_alone(&self, index: u32, name: &str) -> bool {
        let is_inner = |device: &String| match device.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == device,
        };
        self.left.contains(&index) || self.inner_devices.iter().any(is_inner)
    }

    /// Where nothing is masqueraded to.
    fn inside(&self) -> impl Iterator<Item = IpNet> {
        self.pools.iter().chain(&self.native).chain(self.kept.iter().flatten()).copied()
    }

    fn check(&self) -> Result<(), NetError> {
        for device in &self.inner_devices {
            let name = device.strip_suffix('*').unwrap_or(device);
            let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.@".contains(&b));
            if name.is_empty() || name.len() > 15 || !plain {
                let reason = format!("`{device}` is not a device name or one with `*` at its end");
                return Err(NetError::Invalid { field: "inner devices", reason });
            }
        }
        Ok(())
    }

    fn script(&self) -> String {
        let mut script = format!("add table inet {NAT_TABLE}\n");
        for counter in ["masqueraded_ipv4", "masqueraded_ipv6", "skipped", ASTRAY] {
            let _ = writeln!(script, "add counter inet {NAT_TABLE} {counter}");
        }
        let _ = writeln!(script, "add set inet {NAT_TABLE} {DEVICES} {{ type iface_index; }}");
        fill(&mut script, DEVICES, self.left.iter().map(ToString::to_string).collect());
        for (set, kind, split) in
            [(KEPT_IPV4, "ipv4_addr", v4 as Split), (KEPT_IPV6, "ipv6_addr", v6 as Split)]
        {
            let _ = writeln!(script, "add set inet {NAT_TABLE} {set} {{ type {kind}; flags interval; }}");
            if let Some(kept) = &self.kept {
                fill(&mut script, set, split(kept));
            }
        }
        let _ = writeln!(
            script,
            "add chain inet {NAT_TABLE} postrouting {{ type nat hook postrouting priority srcnat; policy accept; }}\n\
             flush chain inet {NAT_TABLE} postrouting\n\
             add chain inet {NAT_TABLE} forward {{ type filter hook forward priority filter; policy accept; }}\n\
             flush chain inet {NAT_TABLE} forward"
        );
        for (chain, end) in [("postrouting", End::Masquerade), ("forward", End::DropAstray)] {
            for rule in self.rules(end) {
                let _ = writeln!(script, "add rule inet {NAT_TABLE} {chain} {rule}");
            }
        }
        script
    }

    /// The rules of a chain that does something to what leaves under an address that is to be masqueraded.
    fn rules(&self, end: End) -> Vec<String> {
        let mut rules = Vec::new();
        if let Some(Mark { value, mask }) = self.skip {
            let counted = if end == End::Masquerade { "counter name skipped " } else { "" };
            rules.push(format!("meta mark & {mask:#x} == {value:#x} {counted}return"));
        }
        rules.push(format!("oif @{DEVICES} return"));
        for device in &self.inner_devices {
            rules.push(format!("oifname \"{device}\" return"));
        }
        let inside: Vec<IpNet> = self.pools.iter().chain(&self.native).copied().collect();
        for (family, protocol, kept, split) in
            [("ipv4", "ip", KEPT_IPV4, v4 as Split), ("ipv6", "ip6", KEPT_IPV6, v6 as Split)]
        {
            let pools = split(&self.pools);
            if !pools.is_empty() {
                rules.push(format!(
                    "{protocol} saddr {{ {} }} {protocol} daddr != {{ {} }} {protocol} daddr != @{kept} {}",
                    pools.join(", "),
                    split(&inside).join(", "),
                    end.text(family)
                ));
            }
        }
        rules
    }
}

/// Sets of the table: devices that it leaves alone, and prefixes that are reached without masquerade beside those of the rules.
const DEVICES: &str = "uplinks";
const KEPT_IPV4: &str = "kept_ipv4";
const KEPT_IPV6: &str = "kept_ipv6";

/// Counts what is dropped.
pub(crate) const ASTRAY: &str = "astray";

/// What is done with packets that are to be masqueraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Masquerade,
    /// A connection is asked about NAT once. One that began where nothing was to be done, and now leaves by another device,
    /// would keep an address that nobody answers to: what was opened by who sends it, is known already and has been lent
    /// nothing.
    DropAstray,
}

impl End {
    fn text(self, family: &str) -> String {
        match self {
            Self::Masquerade => format!("counter name masqueraded_{family} masquerade"),
            Self::DropAstray => format!(
                "ct direction original ct status & (confirmed | snat) == confirmed counter name {ASTRAY} drop"
            ),
        }
    }
}

/// Makes a set hold these elements and no others.
fn fill(script: &mut String, set: &str, elements: Vec<String>) {
    let _ = writeln!(script, "flush set inet {NAT_TABLE} {set}");
    if !elements.is_empty() {
        let _ = writeln!(script, "add element inet {NAT_TABLE} {set} {{ {} }}", elements.join(", "));
    }
}

type Split = fn(&[IpNet]) -> Vec<String>;

/// The IPv4 prefixes, without those that lie in others, which a set of intervals does not take.
fn v4(prefixes: &[IpNet]) -> Vec<String> {
    let of_family =
        prefixes.iter().filter_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
    Ipv4Net::aggregate(&of_family.collect()).iter().map(ToString::to_string).collect()
}

fn v6(prefixes: &[IpNet]) -> Vec<String> {
    let of_family =
        prefixes.iter().filter_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
    Ipv6Net::aggregate(&of_family.collect()).iter().map(ToString::to_string).collect()
}

/// Removes our table from the calling thread's namespace. That there is none, or no `nft`, is no error.
///
/// # Errors
/// [`NetError::Command`] when `nft` fails.
pub fn remove_masquerade() -> Result<(), NetError> {
    match nft() {
        Ok(nft) => command::run(&nft, &["-f", "-"], &removal(), FIX).map(drop),
        Err(_) => Ok(()),
    }
}

/// Our table as `nft` shows it, without what is counted; `None` when it is not there. The text is the same as long as nobody
/// changes the table.
///
/// # Errors
/// [`NetError::CommandMissing`] without `nft`.
pub fn masquerade_rules() -> Result<Option<String>, NetError> {
    let arguments = ["--stateless", "--numeric", "list", "table", "inet", NAT_TABLE];
    Ok(command::run(&nft()?, &arguments, "", FIX).ok())
}

/// Reads the counters of our table; `None` when it is not there.
///
/// # Errors
/// [`NetError::CommandMissing`] without `nft`.
pub fn masquerade_counters() -> Result<Option<NatCounters>, NetError> {
    let arguments = ["-j", "list", "counters", "table", "inet", NAT_TABLE];
    let Ok(text) = command::run(&nft()?, &arguments, "", FIX) else { return Ok(None) };
    Ok(parse_counters(&text))
}

/// The `nft` command's version line, such as `nftables v1.0.6 (Lester Gooch #5)`.
///
/// # Errors
/// [`NetError::CommandMissing`] with the package that has it.
pub fn nft_version() -> Result<String, NetError> {
    command::run(&nft()?, &["--version"], "", FIX).map(|text| text.trim().to_owned())
}

pub(crate) fn nft() -> Result<String, NetError> {
    command::find("nft").ok_or(NetError::CommandMissing {
        command: "nft",
        package: "nftables",
        purpose: "masquerading needs it; without, set enable-ipv4-masquerade and enable-ipv6-masquerade to false",
    })
}

/// Adding first makes deleting succeed where there is none.
fn removal() -> String {
    format!("add table inet {NAT_TABLE}\ndelete table inet {NAT_TABLE}\n")
}

fn parse_counters(text: &str) -> Option<NatCounters> {
    let answer: Value = serde_json::from_str(text).ok()?;
    let objects = answer.get("nftables")?.as_array()?;
    let packets = |name: &str| {
        let mut counters = objects.iter().filter_map(|object| object.get("counter"));
        let counter = counters.find(|counter| counter.get("name").and_then(Value::as_str) == Some(name))?;
        counter.get("packets")?.as_u64()
    };
    Some(NatCounters {
        ipv4: packets("masqueraded_ipv4")?,
        ipv6: packets("masqueraded_ipv6")?,
        skipped: packets("skipped")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_rules_say_what_is_masqueraded() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let masquerade = Masquerade {
            pools: nets(&["10.9.0.0/24", "fd09::/64"]),
            native: nets(&["10.9.0.0/16", "10.9.3.0/24", "192.0.2.0/24"]),
            kept: Some(nets(&["198.51.100.0/25", "198.51.100.128/25", "2001:db8:7::/48"])),
            left: [3, 7].into(),
            skip: Some(Mark { value: 0x200, mask: 0xf00 }),
            inner_devices: vec!["lxc*".into()],
        };
        let script = masquerade.script();
        for line in [
            "flush set inet villus uplinks\nadd element inet villus uplinks { 3, 7 }\n",
            "flush set inet villus kept_ipv4\nadd element inet villus kept_ipv4 { 198.51.100.0/24 }\n",
            "flush set inet villus kept_ipv6\nadd element inet villus kept_ipv6 { 2001:db8:7::/48 }\n",
        ] {
            assert!(script.contains(line), "{script}");
        }
        let as_before = Masquerade { kept: None, left: BTreeSet::new(), ..masquerade.clone() };
        assert!(!as_before.script().contains("flush set inet villus kept"), "{}", as_before.script());
        assert!(!as_before.script().contains("add element"), "{}", as_before.script());
        assert!(masquerade.leaves_alone(7, "eth0") && masquerade.leaves_alone(9, "lxc1"));
        assert!(!masquerade.leaves_alone(9, "wg0") && !as_before.leaves_alone(7, "eth0"));
        assert_eq!(
            masquerade.rules(End::Masquerade),
            [
                "meta mark & 0xf00 == 0x200 counter name skipped return",
                "oif @uplinks return",
                "oifname \"lxc*\" return",
                "ip saddr { 10.9.0.0/24 } ip daddr != { 10.9.0.0/16, 192.0.2.0/24 } ip daddr != @kept_ipv4 \
                 counter name masqueraded_ipv4 masquerade",
                "ip6 saddr { fd09::/64 } ip6 daddr != { fd09::/64 } ip6 daddr != @kept_ipv6 \
                 counter name masqueraded_ipv6 masquerade",
            ]
        );
        let dropped = masquerade.rules(End::DropAstray);
        assert_eq!(dropped[1..3], masquerade.rules(End::Masquerade)[1..3]);
        assert!(dropped[3].ends_with("@kept_ipv4 ct direction original ct status & (confirmed | snat) == confirmed counter name astray drop"));
        assert_eq!(Masquerade::default().rules(End::Masquerade), ["oif @uplinks return"]);
    }

    #[test]
    fn a_device_name_cannot_smuggle_rules_in() {
        for device in ["", "*", "lxc\" accept", "a b", "x;flush ruleset", "a*b", "much-too-long-a-name"] {
            let masquerade = Masquerade { inner_devices: vec![device.into()], ..Masquerade::default() };
            assert!(masquerade.check().is_err(), "{device}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(text in ".{0,200}") {
            let _ = parse_counters(&text);
        }
    }
}
