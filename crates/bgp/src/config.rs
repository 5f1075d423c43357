//! The configuration of BIRD.

use std::{
    fmt::{self, Write},
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

use ipnet::IpNet;
use thiserror::Error;

/// Longest hold time that BIRD takes, in seconds.
const LONGEST_HOLD: u16 = 65_535;

/// A node that speaks BGP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Its router id: an IPv4 address of the node.
    pub router_id: Ipv4Addr,
    /// Its autonomous system. A neighbour in the same is spoken to as iBGP.
    pub local_as: u32,
    /// Whom it speaks to.
    pub neighbours: Vec<Neighbour>,
    /// What it announces.
    pub ranges: Vec<IpNet>,
    /// What it takes.
    pub import: Import,
    /// Seconds after which a silent neighbour is dead; BIRD's own 240 if not said.
    pub hold: Option<u16>,
}

/// What is taken from neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Import {
    /// Nothing: the kernel's routes stay as they are.
    #[default]
    None,
    /// The default route, from all neighbours that have it, into the kernel.
    Default,
}

/// A neighbour: `ADDRESS,as=NUMBER[,port=NUMBER][,multihop=HOPS][,interface=NAME]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its autonomous system.
    pub remote_as: u32,
    /// Its port, if not 179.
    pub port: Option<u16>,
    /// How many hops away it may be; directly connected if not said.
    pub multihop: Option<u8>,
    /// The device it is behind; needed for a link-local address.
    pub interface: Option<String>,
}

/// What cannot be rendered.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The text of a neighbour.
    #[error(
        "neighbour {text:?}: {problem}; write ADDRESS,as=NUMBER[,port=NUMBER][,multihop=HOPS][,interface=NAME]"
    )]
    Neighbour {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// One neighbour is none.
    #[error(
        "{0} neighbours; with fewer than two the node is gone when one dies; name more with --neighbor, or say --single"
    )]
    TooFew(usize),
    /// Twice the same.
    #[error("neighbour {0} is named twice; name each once")]
    Twice(IpAddr),
    /// Nothing to announce.
    #[error("there is no range to announce; name it with --range")]
    NoRange,
    /// A range that is none.
    #[error("range {range}: {problem}")]
    Range {
        /// The range.
        range: IpNet,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// A number of no system.
    #[error(
        "{0} is no number of an autonomous system of one's own; private ones are 64512 to 65534 and 4200000000 to 4294967294"
    )]
    As(u32),
    /// A hold time that BIRD refuses.
    #[error("a hold time of {0} s; BIRD takes 3 to {LONGEST_HOLD}")]
    Hold(u16),
}

// === impl Speaker ===

impl Speaker {
    /// Checks that it can be rendered; `single` lets one neighbour be enough.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, single: bool) -> Result<(), ConfigError> {
        if self.neighbours.len() < 2 && !(single && self.neighbours.len() == 1) {
            return Err(ConfigError::TooFew(self.neighbours.len()));
        }
        for (n, neighbour) in self.neighbours.iter().enumerate() {
            let earlier = self.neighbours.iter().take(n);
            if earlier.into_iter().any(|one| {
                one.address == neighbour.address
                    && one.port == neighbour.port
                    && one.interface == neighbour.interface
            }) {
                return Err(ConfigError::Twice(neighbour.address));
            }
        }
        check_as(self.local_as)?;
        if self.ranges.is_empty() {
            return Err(ConfigError::NoRange);
        }
        for range in &self.ranges {
            self.check_range(*range)?;
        }
        match self.hold {
            Some(hold) if hold < 3 => Err(ConfigError::Hold(hold)),
            _ => Ok(()),
        }
    }

    fn check_range(&self, range: IpNet) -> Result<(), ConfigError> {
        let wrong = |problem: String| Err(ConfigError::Range { range, problem });
        if range.trunc() != range {
            return wrong(format!("has bits beyond its length; write {}", range.trunc()));
        }
        if range.prefix_len() == 0 {
            return wrong("is the default route; a node announces its own ranges".to_owned());
        }
        if let Some(other) = self.ranges.iter().find(|other| **other != range && other.contains(&range)) {
            return wrong(format!("lies in {other}; announce one of them"));
        }
        let v4 = range.addr().is_ipv4();
        if !self.neighbours.iter().any(|neighbour| neighbour.address.is_ipv4() == v4) {
            let family = if v4 { "IPv4" } else { "IPv6" };
            return wrong(format!(
                "no neighbour has an {family} address to announce it to; name one with --neighbor"
            ));
        }
        Ok(())
    }

    /// The configuration. [`Speaker::check`] says whether BIRD will take it.
    ///
    /// Ranges of each family go to the neighbours of that family, through tables of their own: other routes of the
    /// node never meet them.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = format!(
            "# Made by `villus bird-config`: announces this node's pod ranges{}.\n\
             log syslog all;\nrouter id {};\n{}\nprotocol device {{ }}\n",
            match self.import {
                Import::None => " and imports nothing",
                Import::Default => " and imports the default route",
            },
            self.router_id,
            match self.import {
                Import::None => "",
                // A neighbour that died meanwhile has its routes in the kernel until then.
                Import::Default => "graceful restart wait 30;\n",
            }
        );
        for v4 in [true, false] {
            self.family(&mut text, v4);
        }
        text
    }

    fn family(&self, text: &mut String, v4: bool) {
        let (n, channel, default) = if v4 { (4, "ipv4", "0.0.0.0/0") } else { (6, "ipv6", "::/0") };
        let ranges: Vec<String> = self
            .ranges
            .iter()
            .filter(|range| range.addr().is_ipv4() == v4)
            .map(ToString::to_string)
            .collect();
        let neighbours: Vec<&Neighbour> =
            self.neighbours.iter().filter(|neighbour| neighbour.address.is_ipv4() == v4).collect();
        if neighbours.is_empty() || (ranges.is_empty() && self.import == Import::None) {
            return;
        }
        let mut line = |args: fmt::Arguments<'_>| {
            // Writing to memory does not fail.
            let _ = writeln!(text, "{args}");
        };
        line(format_args!("\n{channel} table villus{n};"));
        if !ranges.is_empty() {
            line(format_args!("protocol static villus_pods{n} {{\n  {channel} {{ table villus{n}; }};"));
            for range in &ranges {
                line(format_args!("  route {range} unreachable;"));
            }
            line(format_args!("}}"));
        }
        let export = match ranges.as_slice() {
            [] => "none".to_owned(),
            ranges => format!("where source = RTS_STATIC && net ~ [ {} ]", ranges.join(", ")),
        };
        let import = match self.import {
            Import::None => "none".to_owned(),
            Import::Default => format!("where net = {default}"),
        };
        if self.import == Import::Default {
            // The kernel keeps the route while BIRD is away, and one that is started with -R leaves it until it knows better.
            line(format_args!(
                "protocol kernel villus_kernel{n} {{\n  merge paths on;\n  persist;\n  graceful restart on;\n  {channel} {{ table villus{n}; import none; \
                 export where source = RTS_BGP && net = {default}; }};\n}}"
            ));
        }
        for (number, neighbour) in (1..).zip(neighbours) {
            line(format_args!("protocol bgp villus{n}_{number} {{"));
            line(format_args!("  local as {};", self.local_as));
            line(format_args!("  neighbor {neighbour};"));
            if let Some(interface) = &neighbour.interface {
                line(format_args!("  interface \"{interface}\";"));
            }
            match neighbour.multihop {
                Some(hops) => line(format_args!("  multihop {hops};")),
                None => line(format_args!("  direct;")),
            }
            if let Some(hold) = self.hold {
                line(format_args!("  hold time {hold};"));
            }
            // The kernel forwards while BIRD restarts: neighbours need not look for another way meanwhile.
            line(format_args!("  graceful restart on;"));
            line(format_args!(
                "  {channel} {{ table villus{n}; next hop self; import {import}; export {export}; }};\n}}"
            ));
        }
    }
}

fn check_as(number: u32) -> Result<(), ConfigError> {
    // 0, 23456, 65535 and the last are reserved (RFC 7607, 6793, 7300).
    if matches!(number, 0 | 23_456 | 65_535 | u32::MAX) { Err(ConfigError::As(number)) } else { Ok(()) }
}

// === impl Neighbour ===

impl FromStr for Neighbour {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |problem: String| ConfigError::Neighbour { text: text.to_owned(), problem };
        let mut parts = text.split(',');
        let address = parts.next().unwrap_or_default();
        let address: IpAddr = address.parse().map_err(|_| wrong(format!("{address:?} is no address")))?;
        let (mut remote_as, mut port, mut multihop, mut interface) = (None, None, None, None);
        for part in parts {
            let (key, value) =
                part.split_once('=').ok_or_else(|| wrong(format!("{part:?} is not KEY=VALUE")))?;
            let no_number = || wrong(format!("{key}={value:?} is no number that fits"));
            match key {
                "as" => remote_as = Some(value.parse().map_err(|_| no_number())?),
                "port" => port = Some(value.parse().ok().filter(|port| *port > 0).ok_or_else(no_number)?),
                "multihop" => {
                    multihop = Some(value.parse().ok().filter(|hops| *hops > 0).ok_or_else(no_number)?);
                }
                "interface" if is_device(value) => interface = Some(value.to_owned()),
                "interface" => return Err(wrong(format!("{value:?} is no name of a device"))),
                _ => return Err(wrong(format!("{key:?} is nothing that a neighbour has"))),
            }
        }
        let remote_as = remote_as.ok_or_else(|| wrong("its autonomous system is missing".to_owned()))?;
        check_as(remote_as)?;
        let needs_interface = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        if needs_interface && interface.is_none() {
            return Err(wrong("a link-local address needs its interface".to_owned()));
        }
        if multihop.is_some() && interface.is_some() {
            return Err(wrong(
                "who is several hops away is behind no interface; leave one of both out".to_owned(),
            ));
        }
        let is_broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast {
            return Err(wrong("no neighbour has that address".to_owned()));
        }
        Ok(Self { address, remote_as, port, multihop, interface })
    }
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address)?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        write!(f, " as {}", self.remote_as)
    }
}

/// What the kernel takes as a name and BIRD as a pattern that is only itself.
fn is_device(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..16).contains(&name.len()) && name.chars().all(plain)
}
