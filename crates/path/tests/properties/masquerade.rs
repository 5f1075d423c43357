//! Masquerading against a plain reading of its rules: who has been lent which port towards whom, and until when. What a packet
//! becomes is built anew.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use fastrand::Rng;
use proptest::prelude::*;
use villus_abi::{
    Config, Uplink,
    config::{FLAG_MASQUERADE_V4, FLAG_MASQUERADE_V6},
    nat::{MASQUERADE_FROM, MASQUERADE_NOT_TO, NAT_LEAST},
};
use villus_path::{
    Action, Work, masquerade,
    memory::{Build, Frame, Transport, word4, words6},
    unmasquerade,
};

use crate::lab::{
    ACK, Lab, SYN, UPLINK, addr, ifindex, ip,
    random::{FOREIGN, lent},
};

/// Seconds that a mapping lives without a packet, and one of an open connection.
const LIFE: u64 = 60;
const LONG: u64 = 8000;
const PORTS: [u16; 4] = [40_000, 40_000, 40_001, 5000];

/// Somebody's address and port, or echo id.
type End = (IpAddr, u16);
/// Sender, peer, protocol.
type Key = (End, End, u8);

#[derive(Clone, Copy, Debug)]
struct Lent {
    port: u16,
    until: u64,
    open: bool,
}

struct Model {
    lab: Lab,
    rng: Rng,
    now: u64,
    lent: HashMap<Key, Lent>,
    /// Ports that somebody has ever been lent: from then on the node's own use of them is written down as well.
    ever: HashSet<(End, u8, u16)>,
}

fn packet(proto: u8, from: End, to: End, flags: u8, asks: bool) -> Build {
    match proto {
        6 => Build::tcp(from.0, from.1, to.0, to.1, flags),
        17 => Build::udp(from.0, from.1, to.0, to.1),
        _ if asks => Build::ping(from.0, to.0, from.1),
        _ => Build::pong(from.0, to.0, to.1),
    }
}

impl Model {
    fn new(seed: u64) -> Self {
        let config = Config::default();
        let flags = config.flags | FLAG_MASQUERADE_V4 | FLAG_MASQUERADE_V6;
        let mut rng = Rng::with_seed(seed);
        let mut lab = Lab::with(Config { flags, nat_seed: rng.u32(..), ..config });
        let (IpAddr::V4(v4), IpAddr::V6(v6)) = (lent(false), lent(true)) else { unreachable!() };
        lab.world.uplinks.insert(UPLINK, Uplink { ipv4: word4(v4), ipv6: words6(v6), reserved: 0 });
        let both = MASQUERADE_FROM | MASQUERADE_NOT_TO;
        lab.world.masquerade = vec![(ip("10.0.0.0"), 16, both), (ip("fd00::"), 16, both)];
        Self { lab, rng, now: 0, lent: HashMap::new(), ever: HashSet::new() }
    }

    fn lives(&self, key: &Key) -> Option<Lent> {
        self.lent.get(key).copied().filter(|lent| lent.until > self.now)
    }

    /// Who has been lent a port towards a peer.
    fn owner(&self, peer: End, proto: u8, port: u16) -> Option<Key> {
        let mut all = self
            .lent
            .keys()
            .filter(|(from, to, p)| (*to, *p) == (peer, proto) && from.0.is_ipv4() == peer.0.is_ipv4());
        all.find(|key| self.lives(key).is_some_and(|lent| lent.port == port)).copied()
    }

    fn touch(&mut self, key: Key, opens: bool) {
        let now = self.now;
        let lent = self.lent.get_mut(&key).unwrap();
        lent.open |= key.2 == 6 && !opens;
        lent.until = now + if lent.open { LONG } else { LIFE };
    }

    fn peer(&mut self, v6: bool, proto: u8) -> End {
        let far = if v6 { ["2001:db8::9", "2001:db8::8"] } else { ["192.0.2.9", "192.0.2.8"] };
        let port = match proto {
            6 => 443,
            17 => 53,
            _ => 0,
        };
        (ip(far[self.rng.usize(0..2)]), port)
    }

    fn step(&mut self) -> Result<(), TestCaseError> {
        let v6 = self.rng.bool();
        let proto = [6, 17, if v6 { 58 } else { 1 }][self.rng.usize(0..3)];
        let peer = self.peer(v6, proto);
        match self.rng.u8(0..10) {
            0 => {
                let seconds = [25, 70][self.rng.usize(0..2)];
                self.now += seconds;
                self.lab.world.pass(seconds);
                Ok(())
            }
            1..6 => self.leave(v6, proto, peer),
            _ => self.answer(v6, proto, peer),
        }
    }

    /// An endpoint sends, or now and then the node itself, or somebody whom the host's NAT has lent the node's address.
    fn leave(&mut self, v6: bool, proto: u8, peer: End) -> Result<(), TestCaseError> {
        let (own, translated) =
            [(true, false), (false, true), (false, false), (false, false)][self.rng.usize(0..4)];
        let bears = own || translated;
        let id = self.rng.u16(1..5);
        let port = PORTS[self.rng.usize(0..PORTS.len())];
        let from = (if bears { lent(v6) } else { addr(v6, id) }, port);
        let key = (from, peer, proto);
        let opens = self.lives(&key).is_none() || self.rng.bool();
        let sent = packet(proto, from, peer, if opens { SYN } else { ACK }, true);
        if !bears {
            self.lab.from(id, &sent);
        }
        let mut frame = Frame::new(sent.frame(), UPLINK).via(match (own, translated) {
            (true, _) => 0,
            (_, true) => FOREIGN,
            _ => ifindex(id),
        });
        let outcome = masquerade(&self.lab.world, &mut frame, &mut Work::default());
        prop_assert_eq!(outcome.action(), Action::Pass);

        let at = 14 + if v6 { 40 } else { 20 } + if proto == 6 || proto == 17 { 0 } else { 4 };
        let got = u16::from_be_bytes([frame.bytes[at], frame.bytes[at + 1]]);
        let mut wanted = Build { src: lent(v6), ..sent };
        match &mut wanted.transport {
            Transport::Tcp { sport, .. } | Transport::Udp { sport, .. } => *sport = got,
            Transport::Icmp { rest, .. } => rest[..2].copy_from_slice(&got.to_be_bytes()),
            Transport::Sctp { .. } | Transport::Other(_) => unreachable!(),
        }
        prop_assert_eq!(&frame.bytes, &wanted.frame());

        let echo = proto != 6 && proto != 17;
        let lendable = echo || port >= NAT_LEAST;
        match self.lives(&key) {
            Some(lent) => prop_assert_eq!(got, lent.port),
            None if translated && !lendable => {
                prop_assert_eq!(got, port);
                return Ok(());
            }
            None if own && (!lendable || self.owner(peer, proto, port).is_none()) => {
                prop_assert_eq!(got, port, "nobody has the node's port");
                if !lendable || !self.ever.contains(&(peer, proto, port)) {
                    return Ok(());
                }
                self.lent.insert(key, Lent { port, until: 0, open: false });
            }
            None => {
                prop_assert_eq!(self.owner(peer, proto, got), None, "it is another's");
                if lendable && self.owner(peer, proto, port).is_none() {
                    prop_assert_eq!(got, port, "it could have been kept");
                } else {
                    prop_assert!(got >= NAT_LEAST && got != port);
                }
                self.lent.insert(key, Lent { port: got, until: 0, open: false });
                self.ever.insert((peer, proto, got));
            }
        }
        self.touch(key, opens);
        Ok(())
    }

    /// Somebody outside answers, or pretends to.
    fn answer(&mut self, v6: bool, proto: u8, peer: End) -> Result<(), TestCaseError> {
        let known: Vec<u16> = self.lent.values().map(|lent| lent.port).collect();
        let port = match known.len() {
            0 => 40_000,
            _ if self.rng.u8(0..4) == 0 => self.rng.u16(..),
            many => known[self.rng.usize(0..many)],
        };
        let packet_to = |to: End| packet(proto, peer, to, SYN | ACK, false);
        let mut frame = Frame::new(packet_to((lent(v6), port)).frame(), UPLINK);
        unmasquerade(&self.lab.world, &mut frame, &mut Work::default());
        let wanted = match self.owner(peer, proto, port) {
            None => packet_to((lent(v6), port)),
            Some(key) => {
                // A SYN with or without ACK opens nothing.
                self.touch(key, true);
                packet_to(key.0)
            }
        };
        prop_assert_eq!(frame.bytes, wanted.frame());
        Ok(())
    }
}

proptest! {
    /// Whatever is sent in whatever order, no two flows share a port towards one peer, each keeps its own as long as it lives, and
    /// answers come to who asked.
    #[test]
    fn ports_are_lent_as_the_rules_say(seed in any::<u64>(), steps in 1..150_usize) {
        let mut model = Model::new(seed);
        for _ in 0..steps {
            model.step()?;
        }
    }
}
