//! Who wins, what is deleted, and what the kernel's map gets.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proptest::prelude::*;
use villus_identity::{Claim, Ipcache, Mapping, Rank, from_kernel, to_kernel};
use villus_labels::NumericIdentity;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn claim(rank: Rank, owner: &str, revision: u64, identity: u32) -> Claim {
    Claim { rank, owner: Arc::from(owner), revision, mapping: Mapping::plain(NumericIdentity(identity)) }
}

fn winner(cache: &Ipcache, prefix: &str) -> Option<u32> {
    cache.snapshot().get(&net(prefix)).map(|winner| winner.mapping.identity.0)
}

#[test]
fn the_higher_rank_wins_in_either_order_and_the_next_follows() {
    let ranks = [
        Rank::KubeApiserver,
        Rank::Local,
        Rank::Kvstore,
        Rank::CustomResource,
        Rank::ClusterMesh,
        Rank::Directory,
        Rank::Api,
        Rank::Generated,
        Rank::Restored,
    ];
    for order in [ranks.to_vec(), ranks.iter().rev().copied().collect()] {
        let cache = Ipcache::new();
        for rank in order {
            cache.upsert(net("10.0.0.1/32"), claim(rank, "o", 1, 1000 + rank as u32));
        }
        for rank in ranks {
            assert_eq!(winner(&cache, "10.0.0.1/32"), Some(1000 + rank as u32));
            assert!(cache.remove(net("10.0.0.1/32"), rank, "o", 1));
        }
        assert_eq!(winner(&cache, "10.0.0.1/32"), None);
        assert!(cache.list().is_empty() && cache.winners().is_empty());
    }
}

#[test]
fn many_claims_at_once_say_what_the_same_say_one_by_one() {
    let claims = [
        ("10.0.0.1/32", claim(Rank::Kvstore, "a", 1, 300)),
        ("10.0.0.1/24", claim(Rank::Kvstore, "b", 1, 301)),
        ("10.0.0.1/32", claim(Rank::Local, "c", 1, 302)),
        ("fd00::1/128", claim(Rank::Kvstore, "d", 0, 303)),
        ("10.0.0.1/32", claim(Rank::Kvstore, "a", 2, 304)),
        ("10.0.0.9/32", claim(Rank::Kvstore, "e", 1, 305)),
    ];
    let (one_by_one, at_once) = (Ipcache::new(), Ipcache::new());
    for cache in [&one_by_one, &at_once] {
        cache.upsert(net("10.0.0.9/32"), claim(Rank::Local, "known", 1, 400));
    }
    let mut feed = at_once.winners().changes();
    assert_eq!(feed.take().len(), 1);
    for (prefix, claim) in claims.clone() {
        one_by_one.upsert(net(prefix), claim);
    }
    at_once.fill(claims.map(|(prefix, claim)| (net(prefix), claim)));
    assert_eq!(at_once.list(), one_by_one.list());
    assert_eq!(winner(&at_once, "10.0.0.1/32"), Some(302));
    assert_eq!(at_once.lookup(address("10.0.0.2")), one_by_one.lookup(address("10.0.0.2")));
    let mut prefixes: Vec<String> = feed.take().iter().map(|change| change.key.to_string()).collect();
    prefixes.sort();
    assert_eq!(prefixes, ["10.0.0.0/24", "10.0.0.1/32", "fd00::1/128"], "who follows hears of each");
}

#[test]
fn rank_names_are_those_of_the_field() {
    assert_eq!(Rank::KubeApiserver.to_string(), "kube-apiserver");
    for rank in [Rank::Kvstore, Rank::CustomResource, Rank::ClusterMesh, Rank::Restored] {
        assert_eq!(serde_json::to_string(&rank).unwrap(), format!("\"{rank}\""));
    }
}

#[test]
fn deletion_only_by_compare() {
    let cache = Ipcache::new();
    let prefix = net("10.0.0.1/32");
    cache.upsert(prefix, claim(Rank::Kvstore, "node-a", 5, 300));
    assert!(!cache.remove(prefix, Rank::Kvstore, "node-b", 9), "another owner");
    assert!(!cache.remove(prefix, Rank::Local, "node-a", 9), "another source");
    assert!(!cache.remove(prefix, Rank::Kvstore, "node-a", 4), "a deletion that comes late");
    assert_eq!(winner(&cache, "10.0.0.1/32"), Some(300));
    assert!(cache.remove(prefix, Rank::Kvstore, "node-a", 5));
    assert_eq!(cache.lookup(address("10.0.0.1")), None);
}

#[test]
fn an_address_that_moves_survives_the_late_deletion_of_its_old_place() {
    let cache = Ipcache::new();
    let prefix = net("10.0.0.1/32");
    cache.upsert(prefix, claim(Rank::Kvstore, "node-a", 5, 300));
    cache.upsert(prefix, claim(Rank::Kvstore, "node-b", 7, 301));
    assert_eq!(winner(&cache, "10.0.0.1/32"), Some(301), "what was said last");
    assert!(cache.remove(prefix, Rank::Kvstore, "node-a", 8));
    assert_eq!(winner(&cache, "10.0.0.1/32"), Some(301));
}

#[test]
fn an_older_word_of_the_same_owner_changes_nothing() {
    let cache = Ipcache::new();
    let prefix = net("10.0.0.1/32");
    assert!(cache.upsert(prefix, claim(Rank::Kvstore, "a", 5, 300)));
    assert!(!cache.upsert(prefix, claim(Rank::Kvstore, "a", 4, 299)));
    assert!(!cache.upsert(prefix, claim(Rank::Kvstore, "a", 5, 300)));
    assert!(cache.upsert(prefix, claim(Rank::Kvstore, "a", 6, 302)));
    assert_eq!((winner(&cache, "10.0.0.1/32"), cache.claims(prefix).len()), (Some(302), 1));
}

#[test]
fn the_longest_prefix_is_found_in_both_families() {
    let cache = Ipcache::new();
    let all = [
        ("0.0.0.0/0", 2),
        ("10.0.0.0/8", 10),
        ("10.1.0.0/16", 11),
        ("10.1.2.3/32", 12),
        ("fd00::/8", 20),
        ("fd00::1/128", 21),
    ];
    for (prefix, identity) in all {
        cache.upsert(net(prefix), claim(Rank::Generated, "policy", 1, identity));
    }
    for (ip, identity) in [
        ("10.1.2.3", Some(12)),
        ("10.1.2.4", Some(11)),
        ("10.2.0.1", Some(10)),
        ("11.0.0.1", Some(2)),
        ("fd00::1", Some(21)),
        ("fd00::2", Some(20)),
        ("fe80::1", None),
    ] {
        assert_eq!(cache.lookup(address(ip)).map(|(_, w)| w.mapping.identity.0), identity, "{ip}");
    }
}

#[test]
fn a_cluster_range_is_pending_until_the_address_arrives() {
    let cache = Ipcache::new();
    let range = Claim { mapping: Mapping::cluster_range(), ..claim(Rank::Kvstore, "node-b", 1, 0) };
    cache.upsert(net("10.2.0.0/24"), range);
    assert!(cache.lookup(address("10.2.0.7")).unwrap().1.mapping.pending);
    cache.upsert(net("10.2.0.7/32"), claim(Rank::Kvstore, "node-b", 2, 300));
    let (_, found) = cache.lookup(address("10.2.0.7")).unwrap();
    assert!(!found.mapping.pending && found.mapping.identity.0 == 300);
    assert!(cache.lookup(address("10.2.0.8")).unwrap().1.mapping.pending);
    // Of one rank, who knows wins over who waits.
    cache.upsert(net("10.2.0.0/24"), claim(Rank::Kvstore, "someone", 1, 301));
    assert!(!cache.lookup(address("10.2.0.8")).unwrap().1.mapping.pending);
}

#[test]
fn many_claims_show_at_once_and_unchanged_winners_not_at_all() {
    let cache = Ipcache::new();
    let mut feed = cache.winners().changes();
    {
        let mut edit = cache.edit();
        for n in 0..10 {
            edit.upsert(net(&format!("10.0.0.{n}/32")), claim(Rank::Kvstore, "a", 1, 300));
        }
        assert!(!feed.is_behind());
    }
    assert_eq!(feed.take().len(), 10);
    cache.upsert(net("10.0.0.1/32"), claim(Rank::Restored, "old", 1, 9));
    assert!(feed.take().is_empty(), "a lower rank changes no winner");
    let gone = cache.edit().retain(|_, claim| claim.rank != Rank::Kvstore);
    assert_eq!(gone, 10);
    assert_eq!(feed.take().len(), 10);
    assert_eq!(winner(&cache, "10.0.0.1/32"), Some(9));
}

#[test]
fn a_later_word_that_says_the_same_is_no_change_and_counts() {
    let cache = Ipcache::new();
    let mut feed = cache.winners().changes();
    let prefix = net("10.0.0.1/32");
    cache.upsert(prefix, claim(Rank::Kvstore, "a", 1, 300));
    cache.upsert(prefix, claim(Rank::Generated, "policy", 1, 9));
    feed.take();
    assert!(cache.upsert(prefix, claim(Rank::Kvstore, "a", 5, 300)));
    assert!(feed.take().is_empty());
    let claims = cache.claims(prefix);
    assert_eq!(
        claims.iter().map(|claim| (claim.rank, claim.revision)).collect::<Vec<_>>(),
        [(Rank::Kvstore, 5), (Rank::Generated, 1)]
    );
    assert_eq!(cache.list(), [(prefix, claims)]);
    assert!(!cache.remove(prefix, Rank::Kvstore, "a", 3), "it has said so since");
    {
        // What is made and taken back within one change, and made again, never shows.
        let mut edit = cache.edit();
        assert!(edit.remove(prefix, Rank::Kvstore, "a", 5));
        assert_eq!(edit.retain(|_, claim| claim.rank != Rank::Generated), 1);
        assert!(edit.upsert(prefix, claim(Rank::Kvstore, "a", 6, 300)));
    }
    assert!(feed.take().is_empty());
    assert_eq!(cache.claims(prefix), [claim(Rank::Kvstore, "a", 6, 300)]);
}

#[test]
fn what_an_owner_claims_is_taken_back_and_what_others_claim_stays() {
    let cache = Ipcache::new();
    let (a, b, c) = (net("10.0.0.1/32"), net("10.0.0.2/32"), net("10.0.0.3/32"));
    for (prefix, rank, owner) in [
        (a, Rank::Local, "mine"),
        (a, Rank::Generated, "mine"),
        (b, Rank::Local, "mine"),
        (c, Rank::Local, "mine"),
        (c, Rank::Local, "theirs"),
        (c, Rank::Kvstore, "mine"),
    ] {
        cache.upsert(prefix, claim(rank, owner, 1, 300));
    }
    assert_eq!(cache.edit().retain_owned("nobody", |_| false), 0);
    assert_eq!(cache.edit().retain_owned("mine", |prefix| prefix == b), 3);
    let left =
        |prefix| cache.claims(prefix).iter().map(|c| (c.rank, c.owner.to_string())).collect::<Vec<_>>();
    assert_eq!(left(a), []);
    assert_eq!(left(b), [(Rank::Local, "mine".into())]);
    assert_eq!(left(c), [(Rank::Local, "theirs".into()), (Rank::Kvstore, "mine".into())]);
    // One of two claims on a prefix goes: the other is found still.
    cache.upsert(b, claim(Rank::Generated, "mine", 1, 300));
    assert!(cache.remove(b, Rank::Local, "mine", 1));
    assert_eq!(cache.edit().retain_owned("mine", |_| false), 1);
    assert!(cache.claims(b).is_empty());
}

#[test]
fn kernel_bytes_are_those_of_the_layout() {
    let mapping = Mapping {
        identity: NumericIdentity(298_951),
        tunnel: Some([10, 3, 9, 10].into()),
        key: 3,
        pending: true,
        routed: false,
    };
    let (key, value) = to_kernel(net("10.2.6.113/32"), &mapping);
    assert_eq!(villus_abi::bytes_of(&key)[..12], [64, 0, 0, 0, 0, 0, 0, 1, 10, 2, 6, 113]);
    assert_eq!(villus_abi::bytes_of(&value), [0xc7, 0x8f, 4, 0, 10, 3, 9, 10, 3, 1, 0, 0]);
    let (key, _) = to_kernel(net("fd00::/64"), &mapping);
    assert_eq!((key.prefixlen, key.family, key.addr[0]), (96, 2, 0xfd));
    assert_eq!(from_kernel(&key, &value), Some((net("fd00::/64"), mapping)));
    let (_, value) = to_kernel(net("10.2.6.113/32"), &Mapping { routed: true, ..mapping });
    assert_eq!(villus_abi::bytes_of(&value)[8..], [3, 3, 0, 0]);
}

fn any_net() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u32>(), 0u8..=32)
        .prop_map(|(bits, len)| IpNet::new(std::net::Ipv4Addr::from(bits).into(), len));
    let v6 = (any::<u128>(), 0u8..=128)
        .prop_map(|(bits, len)| IpNet::new(std::net::Ipv6Addr::from(bits).into(), len));
    prop_oneof![v4, v6].prop_map(|net| net.unwrap().trunc())
}

const RANKS: [Rank; 4] = [Rank::Local, Rank::Kvstore, Rank::Generated, Rank::Restored];

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 200 / 256) })]

    #[test]
    fn kernel_rows_read_as_they_were_written(prefix in any_net(), id: u32, tunnel: u32, key: u8, pending: bool, routed: bool) {
        let tunnel = (tunnel != 0).then(|| tunnel.into());
        let mapping = Mapping { identity: NumericIdentity(id), tunnel, key, pending, routed };
        let (key, value) = to_kernel(prefix, &mapping);
        prop_assert_eq!(from_kernel(&key, &value), Some((prefix, mapping)));
    }

    #[test]
    fn no_kernel_row_panics(bytes: [u8; 24], value: [u8; 12]) {
        let key = villus_abi::from_bytes(&bytes).unwrap();
        let value = villus_abi::from_bytes(&value).unwrap();
        let _ = from_kernel(&key, &value);
    }

    /// Against a plain list of claims.
    #[test]
    fn winners_and_lookups_agree_with_a_plain_list(
        steps in prop::collection::vec((0u8..4, 0usize..4, 0u8..3, 0u64..6, 0u8..7, 300u32..310), 0..60),
        probe in 0u8..8,
    ) {
        let prefixes = ["10.0.0.0/8", "10.0.0.0/30", "10.0.0.1/32", "10.0.0.4/30"].map(net);
        let cache = Ipcache::new();
        let mut model: BTreeMap<(IpNet, usize, u8), (u64, u32)> = BTreeMap::new();
        for (prefix, rank, owner, revision, what, id) in steps {
            let prefix = prefixes[prefix as usize];
            let name = owner.to_string();
            let slot = (prefix, rank, owner);
            if what == 0 {
                let goes = |(p, rank, by): &(IpNet, usize, u8)| *p == prefix && *by == owner && RANKS[*rank] != Rank::Kvstore;
                let before = model.len();
                model.retain(|slot, _| !goes(slot));
                prop_assert_eq!(cache.edit().retain_owned(&name, |p| p != prefix), before - model.len());
            } else if what < 4 {
                cache.upsert(prefix, claim(RANKS[rank], &name, revision, id));
                let newer = model.get(&slot).is_none_or(|(old, _)| *old <= revision);
                if newer {
                    model.insert(slot, (revision, id));
                }
            } else {
                let there = model.get(&slot).is_some_and(|(old, _)| *old <= revision);
                prop_assert_eq!(cache.remove(prefix, RANKS[rank], &name, revision), there);
                if there {
                    model.remove(&slot);
                }
            }
        }
        let best = |prefix: IpNet| {
            let claims = model.iter().filter(|((p, _, _), _)| *p == prefix);
            claims.min_by_key(|((_, rank, owner), (revision, _))| (*rank, u64::MAX - revision, *owner)).map(|(_, (_, id))| *id)
        };
        for prefix in prefixes {
            prop_assert_eq!(winner(&cache, &prefix.to_string()), best(prefix));
        }
        let ip = address(&format!("10.0.0.{probe}"));
        let longest = prefixes.iter().filter(|p| p.contains(&ip) && best(**p).is_some()).max_by_key(|p| p.prefix_len());
        prop_assert_eq!(cache.lookup(ip).map(|(prefix, _)| prefix), longest.copied());
    }
}
