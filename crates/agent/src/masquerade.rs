//! The table of masquerading, kept as it was made: others flush rulesets, and then what endpoints send outside would leave
//! with addresses that nobody answers to.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use villus_net::{
    LeavesWith, Masquerade, NAT_TABLE, NetError, astray_packets, device_towards, forget_untranslated,
    masquerade_rules, nft_generation,
};

/// Which table it is, as a comparison names it.
pub(crate) fn table_name() -> String {
    format!("nftables inet {NAT_TABLE}")
}

/// With the addresses of ten thousand nodes in it the table takes most of a second of `nft` to write or to read: however often
/// something changes, it rests for so many times as long, and no longer than this.
const REST: u32 = 20;
const LONGEST_REST: Duration = Duration::from_secs(10);

/// The table as it is wanted, and as the kernel had it when it was made.
#[derive(Debug)]
pub(crate) struct Masquerading {
    wanted: Masquerade,
    made: Option<String>,
    /// Of nftables, when the table was seen to be as it was made.
    generation: Option<u32>,
    /// It is wanted otherwise than it was made.
    stale: bool,
    /// Until when there is no look.
    rests: Option<Instant>,
    /// Packets may take other devices than those that their connections began with.
    astray: bool,
    /// How many such packets it had dropped at the last look.
    dropped: u64,
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
        (
            Self { wanted, made, generation: None, stale: false, rests: None, astray: false, dropped: 0 },
            result,
        )
    }

    /// Leaves what goes out by these devices alone from now on: their own programs masquerade. With `again` the table is made even
    /// if it is as that says, for it names devices.
    pub fn leave(&mut self, left: &BTreeSet<u32>, again: bool) -> Result<(), NetError> {
        if !again && self.wanted.left == *left {
            return Ok(());
        }
        self.astray |= !self.wanted.left.is_subset(left);
        self.wanted.left.clone_from(left);
        self.make()
    }

    /// Endpoints keep their addresses to these prefixes as well, from one of the next looks on.
    pub fn keep_to(&mut self, mut kept: Vec<IpNet>) {
        let always = |net: &IpNet| {
            self.wanted.pools.iter().chain(&self.wanted.native).any(|around| around.contains(net))
        };
        kept.retain(|net| !always(net));
        if self.wanted.kept.as_ref() != Some(&kept) {
            self.wanted.kept = Some(kept);
            self.stale = true;
        }
    }

    /// From the next look on connections are forgotten that leave by other devices than before and would keep their address.
    pub fn look_for_astray(&mut self) {
        self.astray = true;
    }

    /// Has connections forgotten that leave under an endpoint's own address by devices on which the table masquerades: they
    /// began elsewhere, where our programs did. Says how many.
    pub fn forget_astray(&mut self) -> Result<usize, NetError> {
        self.astray = false;
        let mut ways = HashMap::new();
        let is_left_alone = |from: IpAddr, to: IpAddr| match device_towards(from, to) {
            Ok(Some((index, name))) => self.wanted.leaves_alone(index, &name),
            _ => true,
        };
        forget_untranslated(|src, dst| {
            self.wanted.leaves_with(src, dst) == LeavesWith::Lent
                && !*ways.entry((src, dst)).or_insert_with(|| is_left_alone(src, dst))
        })
    }

    fn make(&mut self) -> Result<(), NetError> {
        (self.made, self.generation, self.stale) = (None, None, false);
        self.wanted.apply()?;
        self.made = masquerade_rules()?;
        Ok(())
    }

    /// Whether connections may have to be forgotten, by what the table has dropped or what is known to be different.
    pub fn may_be_astray(&mut self) -> bool {
        let dropped = astray_packets().ok().flatten().unwrap_or_default();
        let more = std::mem::replace(&mut self.dropped, dropped) < dropped;
        self.astray || more
    }

    /// As [`Self::keep`], but not so often that it costs much.
    pub fn look(&mut self) -> Result<bool, NetError> {
        let begin = Instant::now();
        if self.rests.is_some_and(|until| begin < until) {
            return Ok(false);
        }
        let mended = self.keep();
        let took = begin.elapsed();
        self.rests = mended.is_ok().then(|| Instant::now() + took.saturating_mul(REST).min(LONGEST_REST));
        mended
    }

    /// Makes it as it was again if somebody has changed it since the last look. Says whether that was so; as long as nobody
    /// touches nftables that costs one question to the kernel.
    pub fn keep(&mut self) -> Result<bool, NetError> {
        if self.stale {
            self.make()?;
            return Ok(false);
        }
        let generation = nft_generation()?;
        if self.made.is_some() && self.generation == Some(generation) {
            return Ok(false);
        }
        if self.drift()?.is_some() {
            self.made = None;
            self.wanted.replace()?;
            self.made = masquerade_rules()?;
            // What began without it goes on without it.
            self.astray = true;
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
