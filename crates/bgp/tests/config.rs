//! Configurations: what is refused, and that BIRD takes what is rendered.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::process::Command;

use ipnet::IpNet;
use proptest::prelude::*;
use villus_bgp::{ConfigError, Import, Neighbour, Speaker};

fn speaker(neighbours: &[&str], ranges: &[&str]) -> Speaker {
    Speaker {
        router_id: "10.9.0.1".parse().unwrap(),
        local_as: 65_001,
        neighbours: neighbours.iter().map(|text| text.parse().unwrap()).collect(),
        ranges: ranges.iter().map(|text| text.parse().unwrap()).collect(),
        import: Import::None,
        hold: None,
    }
}

const TWO: [&str; 2] = ["10.9.1.2,as=65000", "10.9.2.2,as=65000"];

/// What BIRD says about a configuration; nothing if it takes it.
fn bird_says(text: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bird.conf");
    std::fs::write(&file, text).unwrap();
    let output = Command::new("bird").args(["-p", "-c"]).arg(&file).output().expect("bird (package bird2)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.success(), said.is_empty(), "{said}");
    said
}

#[test]
fn a_node_announces_its_ranges_and_imports_nothing() {
    let text = speaker(&TWO, &["10.0.1.0/25"]).render();
    for part in [
        "router id 10.9.0.1;",
        "  route 10.0.1.0/25 unreachable;",
        "  local as 65001;\n  neighbor 10.9.1.2 as 65000;",
        "  neighbor 10.9.2.2 as 65000;",
        "import none; export where source = RTS_STATIC && net ~ [ 10.0.1.0/25 ];",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    assert!(!text.contains("kernel") && !text.contains("ipv6"), "nothing reaches the kernel:\n{text}");
    assert_eq!(bird_says(&text), "");
}

#[test]
fn the_default_route_alone_is_taken_if_asked_for() {
    let mut speaker = speaker(&TWO, &["10.0.1.0/24"]);
    speaker.import = Import::Default;
    let text = speaker.render();
    assert!(text.contains("import where net = 0.0.0.0/0;") && text.contains("merge paths on;"), "{text}");
    assert_eq!(bird_says(&text), "");
}

#[test]
fn what_would_not_work_is_refused_with_a_way_out() {
    for (speaker, part) in [
        (speaker(&TWO[..1], &["10.0.1.0/24"]), "--single"),
        (speaker(&[TWO[0], TWO[0]], &["10.0.1.0/24"]), "named twice"),
        (speaker(&TWO, &[]), "--range"),
        (speaker(&TWO, &["10.0.1.7/24"]), "write 10.0.1.0/24"),
        (speaker(&TWO, &["0.0.0.0/0"]), "default route"),
        (speaker(&TWO, &["10.0.0.0/16", "10.0.1.0/24"]), "lies in 10.0.0.0/16"),
        (speaker(&TWO, &["fd00:1::/64"]), "IPv6 address"),
        (Speaker { local_as: 0, ..speaker(&TWO, &["10.0.1.0/24"]) }, "autonomous system"),
        (Speaker { hold: Some(2), ..speaker(&TWO, &["10.0.1.0/24"]) }, "hold time"),
    ] {
        let error = speaker.check(false).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(speaker(&TWO[..1], &["10.0.1.0/24"]).check(true), Ok(()));
    for (text, part) in [
        ("10.9.1.2", "system is missing"),
        ("tor1,as=1", "no address"),
        ("10.9.1.2,as=x", "no number"),
        ("10.9.1.2,as=1,port=0", "no number"),
        ("10.9.1.2,as=1,multihop=0", "no number"),
        ("10.9.1.2,as=1,colour=red", "nothing that a neighbour has"),
        ("10.9.1.2,as=1,passive", "KEY=VALUE"),
        ("10.9.1.2,as=1,interface=a\";b", "no name of a device"),
        ("fe80::1,as=1", "needs its interface"),
        ("10.9.1.2,as=1,multihop=2,interface=up0", "several hops away"),
        ("224.0.0.1,as=1", "no neighbour"),
        ("10.9.1.2,as=23456", "autonomous system"),
    ] {
        let error: ConfigError = text.parse::<Neighbour>().unwrap_err();
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
}

fn neighbour() -> impl Strategy<Value = Neighbour> {
    let address = prop_oneof![
        any::<u32>().prop_map(|bits| std::net::IpAddr::V4(bits.into())),
        any::<u64>().prop_map(|bits| std::net::IpAddr::V6((0xfd00_u128 << 112 | u128::from(bits)).into())),
        any::<u64>().prop_map(|bits| std::net::IpAddr::V6((0xfe80_u128 << 112 | u128::from(bits)).into())),
    ];
    let more = (
        1u32..4_000_000_000,
        prop::option::of(1u16..),
        prop::option::of(1u8..),
        prop::option::of("[a-z][a-z0-9._-]{0,14}"),
    );
    (address, more).prop_map(|(address, (remote_as, port, multihop, interface))| Neighbour {
        address,
        remote_as,
        port,
        multihop,
        interface,
    })
}

fn range() -> impl Strategy<Value = IpNet> {
    prop_oneof![
        (any::<u32>(), 8u8..=32)
            .prop_map(|(bits, len)| IpNet::new(std::net::IpAddr::V4(bits.into()), len).unwrap().trunc()),
        (any::<u128>(), 8u8..=128)
            .prop_map(|(bits, len)| IpNet::new(std::net::IpAddr::V6(bits.into()), len).unwrap().trunc()),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 8))]

    #[test]
    fn what_passes_the_check_is_taken_by_bird(
        neighbours in prop::collection::vec(neighbour(), 1..4),
        ranges in prop::collection::vec(range(), 1..4),
        local_as in 1u32..4_000_000_000,
        router in 1u32..,
        default in any::<bool>(),
        hold in prop::option::of(3u16..),
    ) {
        // A text that a neighbour is read from is what keeps neighbours in order.
        let neighbours = neighbours.into_iter().filter(|one| {
            let more = [
                one.port.map(|port| format!(",port={port}")),
                one.multihop.map(|hops| format!(",multihop={hops}")),
                one.interface.as_ref().map(|name| format!(",interface={name}")),
            ];
            let text = format!("{},as={}{}", one.address, one.remote_as, more.into_iter().flatten().collect::<String>());
            text.parse::<Neighbour>().is_ok_and(|read| read == *one)
        });
        let import = if default { Import::Default } else { Import::None };
        let speaker = Speaker {
            router_id: router.into(), local_as, neighbours: neighbours.collect(), ranges, import, hold,
        };
        if speaker.check(true).is_ok() {
            let text = speaker.render();
            prop_assert_eq!(bird_says(&text), "", "{}", text);
        }
    }

    #[test]
    fn no_text_is_too_strange_for_a_neighbour(text in "[0-9a-f.:,=a-z\"]{0,40}") {
        let _ = text.parse::<Neighbour>();
    }
}
