//! Addresses: never two owners, never too soon, the same again, and a clear word when there are no more.
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use villus_identity::{AddressPool, Family, PoolError};

const REST: Duration = Duration::from_secs(30);
const SEC: Duration = Duration::from_secs(1);

fn pool(v4: &str) -> (AddressPool, Instant) {
    (AddressPool::new(Some(v4.parse().unwrap()), None, REST).unwrap(), Instant::now())
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn network_router_and_broadcast_are_never_handed_out() {
    let (mut pool, now) = pool("10.0.0.0/29");
    assert_eq!(pool.router(Family::V4), Some(address("10.0.0.1")));
    let mut all = Vec::new();
    for n in 0..5 {
        all.push(pool.allocate_next(Family::V4, &format!("o{n}"), now).unwrap().to_string());
    }
    assert_eq!(all, ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    let error = pool.allocate_next(Family::V4, "late", now).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pool 10.0.0.0/29 is used up: 5 addresses in use, 0 resting, 3 reserved, of 8; \
         delete endpoints or give the node a wider `ipv4-range`"
    );
    for (text, part) in [
        ("10.0.0.0", "network"),
        ("10.0.0.1", "router"),
        ("10.0.0.7", "broadcast"),
        ("10.0.1.1", "not in the node's pool 10.0.0.0/29"),
        ("10.0.0.2", "in use by `o0`"),
        ("fd00::1", "set `ipv6-range`"),
    ] {
        let error = pool.allocate(address(text), "x", now).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_released_address_rests_and_others_come_first() {
    let (mut pool, now) = pool("10.0.0.0/29");
    let first = pool.allocate_next(Family::V4, "a", now).unwrap();
    assert_eq!(pool.release(first, now).as_deref(), Some("a"));
    assert_eq!(pool.release(first, now), None);
    assert_ne!(pool.allocate_next(Family::V4, "b", now).unwrap(), first);
    let error = pool.allocate(first, "c", now + 10 * SEC).unwrap_err();
    assert_eq!(error, PoolError::Resting { address: first, left: 20 * SEC });
    for n in 0..3 {
        assert_ne!(pool.allocate_next(Family::V4, &format!("d{n}"), now + REST).unwrap(), first);
    }
    assert_eq!(pool.allocate_next(Family::V4, "e", now + REST).unwrap(), first, "the last resort");
}

#[test]
fn resting_addresses_count_when_the_pool_is_used_up() {
    let (mut pool, now) = pool("10.0.0.0/30");
    let only = pool.allocate_next(Family::V4, "a", now).unwrap();
    pool.release(only, now);
    let error = pool.allocate_next(Family::V4, "b", now + 29 * SEC).unwrap_err();
    assert!(
        matches!(error, PoolError::UsedUp { in_use: 0, resting: 1, reserved: 3, total: 4, .. }),
        "{error}"
    );
    assert_eq!(pool.allocate_next(Family::V4, "b", now + REST).unwrap(), only);
}

#[test]
fn an_owner_gets_its_addresses_again_even_while_they_rest() {
    let (mut pool, now) = pool("10.0.0.0/24");
    let one = pool.allocate_next(Family::V4, "a", now).unwrap();
    let two = pool.allocate_next(Family::V4, "a", now).unwrap();
    assert_ne!(one, two, "one owner may have many");
    assert_eq!(pool.release_owner("a", now), [one, two]);
    let other = pool.allocate_next(Family::V4, "b", now).unwrap();
    assert!(other != one && other != two);
    assert_eq!(pool.allocate_next(Family::V4, "a", now + SEC).unwrap(), one);
    assert_eq!(pool.allocate_next(Family::V4, "a", now + SEC).unwrap(), two);
    pool.release_owner("a", now);
    pool.allocate(two, "a", now).unwrap();
    pool.allocate(two, "a", now).unwrap();
    assert_eq!(pool.allocate_next(Family::V4, "a", now + 500 * SEC).unwrap(), one, "long after, too");
}

#[test]
fn whoever_is_given_an_address_is_its_last_owner() {
    let (mut pool, now) = pool("10.0.0.0/30");
    let only = pool.allocate_next(Family::V4, "a", now).unwrap();
    pool.release(only, now);
    let later = now + REST;
    pool.allocate(only, "b", later).unwrap();
    pool.release(only, later);
    assert!(pool.allocate_next(Family::V4, "a", later).is_err(), "it is b's now");
    assert_eq!(pool.allocate_next(Family::V4, "b", later).unwrap(), only);
}

#[test]
fn what_nobody_will_want_again_rests_for_everybody() {
    let (mut pool, now) = pool("10.0.0.0/29");
    let address = pool.allocate_next(Family::V4, "endpoint:1", now).unwrap();
    assert_eq!(pool.retire(address, now).as_deref(), Some("endpoint:1"));
    assert_eq!(pool.retire(address, now), None);
    assert!(matches!(pool.allocate(address, "endpoint:1", now + 29 * SEC), Err(PoolError::Resting { .. })));
    assert_ne!(pool.allocate_next(Family::V4, "endpoint:1", now).unwrap(), address);
    let mut after = AddressPool::new(Some("10.0.0.0/29".parse().unwrap()), None, REST).unwrap();
    after.restore(&pool.state(now), now);
    assert!(matches!(after.allocate(address, "endpoint:1", now + SEC), Err(PoolError::Resting { .. })));
    pool.allocate(address, "anybody", now + REST).unwrap();
}

#[test]
fn an_address_that_was_taken_for_nothing_stands_as_before() {
    let (mut pool, now) = pool("10.0.0.0/29");
    let (fresh, had, held) = (address("10.0.0.2"), address("10.0.0.3"), address("10.0.0.4"));
    pool.allocate(had, "a", now).unwrap();
    pool.release(had, now);
    pool.allocate(held, "b", now).unwrap();
    let before = pool.state(now);
    let standings = [fresh, had, held].map(|address| pool.standing(address).unwrap());
    assert_eq!(standings.clone().map(|standing| standing.is_held()), [false, false, true]);
    pool.allocate(had, "a", now).unwrap();
    pool.retire(held, now);
    pool.allocate(fresh, "c", now).unwrap();
    pool.retire(fresh, now);
    pool.release(had, now + SEC);
    for standing in standings.clone() {
        pool.put_back(standing).unwrap();
    }
    assert_eq!(pool.state(now), before);
    assert!(matches!(pool.allocate(had, "c", now + 29 * SEC), Err(PoolError::Resting { .. })));
    pool.allocate(fresh, "c", now).unwrap();
    assert!(matches!(pool.put_back(standings[0].clone()), Err(PoolError::InUse { .. })), "it is c's now");
    assert!(pool.standing(address("192.0.2.1")).is_none());
}

#[test]
fn more_can_be_reserved() {
    let (mut pool, now) = pool("10.0.0.0/29");
    pool.reserve(address("10.0.0.2"), "the health endpoint").unwrap();
    assert_eq!(pool.allocate_next(Family::V4, "a", now).unwrap(), address("10.0.0.3"));
    assert!(pool.reserve(address("10.0.0.3"), "x").is_err());
    assert_eq!(pool.family(Family::V4).unwrap().usage(now).free(), 3);
}

#[test]
fn prefixes_that_hold_nothing_are_refused() {
    for (v4, v6) in [
        (Some("10.0.0.0/31"), None),
        (Some("10.0.0.1/32"), None),
        (None, Some("fd00::/127")),
        (None, Some("::/0")),
    ] {
        let made = AddressPool::new(v4.map(|p| p.parse().unwrap()), v6.map(|p| p.parse().unwrap()), REST);
        assert!(matches!(made, Err(PoolError::BadPrefix { .. })), "{v4:?} {v6:?}");
    }
    assert!(AddressPool::new(None, Some("::/1".parse().unwrap()), REST).is_ok());
}

#[test]
fn a_pool_of_any_size_costs_only_what_is_in_use() {
    let mut pool = AddressPool::new(None, Some("fd00:1::/16".parse().unwrap()), REST).unwrap();
    let now = Instant::now();
    assert_eq!(pool.families().collect::<Vec<_>>(), [Family::V6]);
    assert_eq!(pool.router(Family::V6), Some(address("fd00::1")));
    for n in 0..5000 {
        let expected = format!("fd00::{:x}", n + 2);
        assert_eq!(pool.allocate_next(Family::V6, &n.to_string(), now).unwrap(), address(&expected));
    }
    let usage = pool.family(Family::V6).unwrap().usage(now);
    assert_eq!((usage.total, usage.in_use), (1 << 112, 5000));
    let last = address("fd00:ffff:ffff:ffff:ffff:ffff:ffff:fffe");
    pool.allocate(last, "far", now).unwrap();
    assert_eq!(pool.owner(last), Some("far"));
    assert_eq!(pool.allocate_next(Family::V6, "wraps", now).unwrap(), address("fd00::138a"));
}

#[test]
fn a_restart_goes_on_where_it_was() {
    let v4 = "10.0.0.0/28".parse().unwrap();
    let v6 = "fd00::/64".parse().unwrap();
    let now = Instant::now();
    let mut before = AddressPool::new(Some(v4), Some(v6), REST).unwrap();
    let kept = before.allocate_next(Family::V4, "kept", now).unwrap();
    let six = before.allocate_next(Family::V6, "kept", now).unwrap();
    let freed = before.allocate_next(Family::V4, "freed", now).unwrap();
    before.release(freed, now);
    let json = serde_json::to_string(&before.state(now)).unwrap();

    let mut after = AddressPool::new(Some(v4), Some(v6), REST).unwrap();
    assert_eq!(after.restore(&serde_json::from_str(&json).unwrap(), now), []);
    assert_eq!(after.state(now), before.state(now));
    assert_eq!((after.owner(kept), after.owner(six)), (Some("kept"), Some("kept")));
    assert!(matches!(after.allocate(freed, "x", now + 29 * SEC), Err(PoolError::Resting { .. })));
    assert_eq!(after.allocate_next(Family::V4, "freed", now).unwrap(), freed);

    // The node's prefix has changed: what does not fit is said.
    let mut moved = AddressPool::new(Some("10.9.0.0/24".parse().unwrap()), None, REST).unwrap();
    let refused = moved.restore(&serde_json::from_str(&json).unwrap(), now);
    assert_eq!(refused.iter().map(|(address, _)| *address).collect::<Vec<_>>(), [kept, six]);
}

/// Whose an address is that was retired.
const NOBODY: &str = "nobody";

#[derive(Clone, Debug)]
enum Action {
    Next(u8),
    Take(u8, u8),
    Release(u8),
    ReleaseOwner(u8),
    Retire(u8),
    /// Somebody takes one, gives it back at once, and that is undone.
    ForNothing(u8, u8),
    Wait(u64),
    Restart,
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        6 => (0u8..8).prop_map(Action::Next),
        2 => (0u8..8, 0u8..16).prop_map(|(owner, at)| Action::Take(owner, at)),
        4 => (0u8..16).prop_map(Action::Release),
        1 => (0u8..8).prop_map(Action::ReleaseOwner),
        2 => (0u8..16).prop_map(Action::Retire),
        2 => (0u8..8, 0u8..16).prop_map(|(owner, at)| Action::ForNothing(owner, at)),
        4 => (0u64..40).prop_map(Action::Wait),
        1 => Just(Action::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256) })]

    #[test]
    fn no_address_has_two_owners_or_comes_back_too_soon(actions in prop::collection::vec(action(), 0..120)) {
        let net: ipnet::Ipv4Net = "10.0.0.0/28".parse().unwrap();
        let mut pool = AddressPool::new(Some(net), None, REST).unwrap();
        let mut now = Instant::now();
        let mut held: BTreeMap<IpAddr, String> = BTreeMap::new();
        let mut freed: HashMap<IpAddr, (String, Instant)> = HashMap::new();
        for action in actions {
            let given = match &action {
                Action::Next(owner) => {
                    let owner = owner.to_string();
                    let had = freed.iter().any(|(at, (last, _))| *last == owner && !held.contains_key(at));
                    match pool.allocate_next(Family::V4, &owner, now) {
                        Ok(given) => {
                            if had {
                                prop_assert_eq!(&freed[&given].0, &owner, "its own address again");
                            }
                            Some((given, owner))
                        }
                        Err(error) => {
                            let resting = freed.iter().filter(|(at, (_, since))| now < *since + REST && !held.contains_key(at)).count();
                            prop_assert_eq!(held.len() + resting, 13, "{}", error);
                            None
                        }
                    }
                }
                Action::Take(owner, at) => {
                    let ip = IpAddr::from([10, 0, 0, *at]);
                    let owner = owner.to_string();
                    match pool.allocate(ip, &owner, now) {
                        Ok(()) if held.get(&ip) == Some(&owner) => None,
                        Ok(()) => Some((ip, owner)),
                        Err(error) => {
                            let mine = freed.get(&ip).is_some_and(|(last, _)| *last == owner) && !held.contains_key(&ip);
                            prop_assert!(!mine, "{error}");
                            None
                        }
                    }
                }
                Action::Release(at) => {
                    let ip = IpAddr::from([10, 0, 0, *at]);
                    let owner = pool.release(ip, now);
                    prop_assert_eq!(&owner, &held.remove(&ip));
                    if let Some(owner) = owner {
                        freed.insert(ip, (owner, now));
                    }
                    None
                }
                Action::ReleaseOwner(owner) => {
                    let owner = owner.to_string();
                    for ip in pool.release_owner(&owner, now) {
                        prop_assert_eq!(held.remove(&ip), Some(owner.clone()));
                        freed.insert(ip, (owner.clone(), now));
                    }
                    prop_assert!(!held.values().any(|holder| *holder == owner));
                    None
                }
                Action::Retire(at) => {
                    let ip = IpAddr::from([10, 0, 0, *at]);
                    let owner = pool.retire(ip, now);
                    prop_assert_eq!(&owner, &held.remove(&ip));
                    if owner.is_some() {
                        freed.insert(ip, (NOBODY.to_owned(), now));
                    }
                    None
                }
                Action::ForNothing(owner, at) => {
                    let ip = IpAddr::from([10, 0, 0, *at]);
                    let (before, standing) = (pool.state(now), pool.standing(ip).unwrap());
                    if !standing.is_held() && pool.allocate(ip, &owner.to_string(), now).is_ok() {
                        pool.release(ip, now);
                        pool.put_back(standing).unwrap();
                    }
                    prop_assert_eq!(pool.state(now), before);
                    None
                }
                Action::Wait(secs) => {
                    now += Duration::from_secs(*secs);
                    None
                }
                Action::Restart => {
                    let state = pool.state(now);
                    pool = AddressPool::new(Some(net), None, REST).unwrap();
                    prop_assert_eq!(pool.restore(&state, now), []);
                    for (_, since) in freed.values_mut() {
                        if now < *since + REST {
                            *since = now;
                        }
                    }
                    None
                }
            };
            if let Some((ip, owner)) = given {
                let IpAddr::V4(v4) = ip else { unreachable!() };
                prop_assert!((2..=14).contains(&v4.octets()[3]));
                prop_assert!(!held.contains_key(&ip), "{ip} has two owners");
                if let Some((last, since)) = freed.remove(&ip) {
                    prop_assert!(last == owner || now >= since + REST, "{ip} did not rest");
                }
                held.insert(ip, owner);
            }
            let now_held: BTreeMap<IpAddr, String> = pool.in_use().map(|(ip, owner)| (ip, owner.to_owned())).collect();
            prop_assert_eq!(&now_held, &held);
        }
    }
}
