//! The table of masquerading, kept as it was made: others flush rulesets, and then what endpoints send outside would leave
//! with addresses that nobody answers to.

use std::net::IpAddr;

use villus_net::{LeavesWith, Masquerade, NAT_TABLE, NetError, masquerade_rules, nft_generation};

/// Which table it is, as a comparison names it.
pub(crate) fn table_name() -> String {
    format!("nftables inet {NAT_TABLE}")
}

/// The table as it is wanted, and as the kernel had it when it was made.
#[derive(Debug)]
pub(crate) struct Masquerading {
    wanted: Masquerade,
    made: Option<String>,
    /// Of nftables, when the table was seen to be as it was made.
    generation: Option<u32>,
}

/// How the table differs from the one that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NatDrift {
    /// It is not there.
    Missing,
    /// Somebody changed it; what is there.
    Altered(String),
}

impl Masquerading {
    /// The table is made.
    pub fn new(wanted: Masquerade) -> (Self, Result<(), NetError>) {
        let made = wanted.apply().and_then(|()| masquerade_rules());
        let (made, result) = made.map_or_else(|error| (None, Err(error)), |made| (made, Ok(())));
        (Self { wanted, made, generation: None }, result)
    }

    /// Makes it as it was again if somebody has changed it since the last look. Says whether that was so; as long as nobody
    /// touches nftables a look costs one question to the kernel.
    pub fn keep(&mut self) -> Result<bool, NetError> {
        let generation = nft_generation()?;
        if self.made.is_some() && self.generation == Some(generation) {
            return Ok(false);
        }
        if self.drift()?.is_some() {
            self.made = None;
            self.wanted.replace()?;
            self.made = masquerade_rules()?;
            return Ok(true);
        }
        self.generation = Some(generation);
        Ok(false)
    }

    /// With whose address a connection leaves the node.
    pub fn leaves_with(&self, src: IpAddr, dst: IpAddr) -> LeavesWith {
        self.wanted.leaves_with(src, dst)
    }

    /// How it differs from what it should be.
    pub fn drift(&self) -> Result<Option<NatDrift>, NetError> {
        Ok(match masquerade_rules()? {
            None => Some(NatDrift::Missing),
            Some(there) if self.made.as_ref() != Some(&there) => Some(NatDrift::Altered(there)),
            Some(_) => None,
        })
    }
}
