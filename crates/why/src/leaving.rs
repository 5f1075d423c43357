//! With whose address a packet of an endpoint leaves the node.

use std::net::IpAddr;

use villus_abi::{
    config::{FLAG_DIRECT_V4, FLAG_DIRECT_V6, FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6},
    nat::MASQUERADE_NOT_TO,
};
use villus_path::memory::{Memory, Step};

/// Who masquerades.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Masquerader {
    /// Our programs on the uplinks.
    Bpf,
    /// A table of the host's nftables.
    Nftables,
    /// Nobody, in this family.
    Nobody,
}

/// What decides with whose address a packet leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// It leaves the cluster: the node's.
    Masquerade,
    /// It goes to a prefix that endpoints reach under their own addresses.
    Prefix,
    /// It goes to another node's own address: its sender's.
    RemoteNode,
    /// Nothing says that its sender is masqueraded, or towards there: its sender's.
    OwnAddress,
    /// The kernel's maps do not say.
    NotKnown,
}

impl Rule {
    /// Its name, as in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Masquerade => "masquerade",
            Self::Prefix => "prefix",
            Self::RemoteNode => "remote-node",
            Self::OwnAddress => "own-address",
            Self::NotKnown => "not-known",
        }
    }
}

/// With whose address a packet leaves the node, and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Leaving {
    /// Who would lend it an address.
    pub by: Masquerader,
    /// What decided.
    pub rule: Rule,
    /// The prefix that decided, if one did.
    pub prefix: Option<String>,
    /// The addresses that it is lent, one for each uplink that lends another; empty where it keeps its own, or where the
    /// device by which it leaves says.
    pub lent: Vec<IpAddr>,
}

impl Masquerader {
    /// Who does it for a family.
    pub(crate) fn of(world: &Memory, v6: bool) -> Self {
        let flags = world.config.map_or(0, |config| config.flags);
        let (masquerade, direct) =
            if v6 { (FLAG_MASQUERADE_V6, FLAG_DIRECT_V6) } else { (FLAG_MASQUERADE_V4, FLAG_DIRECT_V4) };
        match (flags & masquerade != 0, flags & direct != 0) {
            (true, _) => Self::Bpf,
            (false, true) => Self::Nobody,
            (false, false) => Self::Nftables,
        }
    }

    /// A word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bpf => "bpf",
            Self::Nftables => "nftables",
            Self::Nobody => "nobody",
        }
    }
}

/// What kept the address of a packet to `dst`, by what the path has asked.
pub(crate) fn kept(steps: &[Step], dst: IpAddr) -> (Rule, Option<String>) {
    // Towards a node the path ends as soon as it knows that.
    if let Some(Step::Remote { address, answer: Some(_) }) = steps.last()
        && *address == dst
    {
        return (Rule::RemoteNode, None);
    }
    let prefix = steps.iter().find_map(|step| match step {
        Step::Masquerades { address, answer: Some((of, length, flags)) }
            if *address == dst && flags & MASQUERADE_NOT_TO != 0 =>
        {
            Some(format!("{of}/{length}"))
        }
        _ => None,
    });
    match prefix {
        Some(prefix) => (Rule::Prefix, Some(prefix)),
        None => (Rule::OwnAddress, None),
    }
}

/// The source address of a frame without options around it.
pub(crate) fn source_of(frame: &[u8], v6: bool) -> Option<IpAddr> {
    const ETHERNET: usize = 14;
    if v6 {
        let bytes: [u8; 16] = frame.get(ETHERNET + 8..)?.first_chunk().copied()?;
        return Some(bytes.into());
    }
    let bytes: [u8; 4] = frame.get(ETHERNET + 12..)?.first_chunk().copied()?;
    Some(bytes.into())
}

impl Leaving {
    /// The node's address or the sender's, and why, in a sentence.
    #[must_use]
    pub fn text(&self) -> String {
        let by = match self.by {
            Masquerader::Bpf => "by eBPF",
            Masquerader::Nftables => "by nftables",
            Masquerader::Nobody => return "its own address: this family is not masqueraded".to_owned(),
        };
        match (self.rule, self.prefix.as_deref()) {
            (Rule::Masquerade, _) if self.lent.is_empty() => {
                format!("the node's address on the device by which it leaves, {by}")
            }
            (Rule::Masquerade, _) => {
                let lent: Vec<String> = self.lent.iter().map(ToString::to_string).collect();
                format!("the node's address {}, {by}", lent.join(" or "))
            }
            (Rule::Prefix, Some(prefix)) => {
                format!("its own address: {prefix} is reached without masquerade")
            }
            (Rule::Prefix, None) => "its own address: it goes where nothing is masqueraded".to_owned(),
            (Rule::RemoteNode, _) => "its own address: it goes to another node".to_owned(),
            (Rule::OwnAddress, _) => "its own address: nothing says that it is masqueraded".to_owned(),
            (Rule::NotKnown, _) => "as the table of nftables says (`nft list table inet villus`)".to_owned(),
        }
    }
}
