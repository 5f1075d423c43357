//! Golden lines of `villus monitor`.

mod common;

use common::{drop_of, flow, syn, verdict, words};
use villus_abi::{Event, event as abi};
use villus_flows::{LineFormat, LossSource, Names, Numeric, Record, WhyQuery};

const PLAIN: LineFormat<Numeric> = LineFormat { names: Numeric, verbose: false };

#[test]
fn each_kind_has_the_line_of_the_field() {
    let cases: [(Event, &str); 11] = [
        (
            drop_of(133),
            "xx drop (Policy denied) flow 0x8a2f to endpoint 123, from endpoint 45, ifindex 7, \
             identity 1001->1002: 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { direction: 1, endpoint: 45, peer: 0, ..drop_of(181) },
            "xx drop (Policy denied by denylist) flow 0x8a2f to endpoint 0, from endpoint 45, ifindex 7, \
             identity 1001->1002: 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { peer: 0, flags: 0, ethertype: 0x0806_u16.to_be(), len: 42, ..drop_of(222) },
            "xx drop (Unknown reason 222) flow 0x8a2f to endpoint 123, ifindex 7, identity 1001->1002: \
             arp, 42 bytes",
        ),
        (
            syn(),
            "-> endpoint 123 flow 0x8a2f , identity 1001->1002 state new ifindex 7 orig-ip 0.0.0.0: \
             10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { point: abi::POINT_FROM_ENDPOINT, state: abi::STATE_REPLY, tcp_flags: 0x12, ..syn() },
            "<- endpoint 123 flow 0x8a2f , identity 1001->1002 state reply ifindex 7 orig-ip 0.0.0.0: \
             10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN, ACK",
        ),
        (
            Event {
                point: abi::POINT_TO_STACK,
                ifindex: 0,
                proto: 17,
                flags: abi::FLAG_V6 | abi::FLAG_ADDRS | abi::FLAG_PORTS,
                src: words("fd00::1"),
                dst: words("fd00::2"),
                ..syn()
            },
            "-> stack flow 0x8a2f , identity 1001->1002 state new ifindex 0 orig-ip :::  \
             [fd00::1]:40000 -> [fd00::2]:80 udp",
        ),
        (
            Event { point: abi::POINT_FROM_NETWORK, proto: 1, icmp_type: 8, ..syn() },
            "<- network flow 0x8a2f , identity 1001->1002 state new ifindex 7 orig-ip 0.0.0.0: \
             10.0.0.1 -> 10.0.0.2 EchoRequest",
        ),
        (
            verdict(0, abi::matched::L3_L4),
            "Policy verdict log: flow 0x8a2f local EP ID 123, remote ID 1001, proto 6, ingress, \
             action allow, auth: disabled, match L3-L4, 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { direction: 1, endpoint: 45, ..verdict(-133, abi::matched::NONE) },
            "Policy verdict log: flow 0x8a2f local EP ID 45, remote ID 1002, proto 6, egress, \
             action deny, auth: disabled, match none, 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { flags: syn().flags | abi::FLAG_AUDITED, ..verdict(-133, abi::matched::NONE) },
            "Policy verdict log: flow 0x8a2f local EP ID 123, remote ID 1001, proto 6, ingress, \
             action audit, auth: disabled, match none, 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
        (
            Event { proto: 6, ..verdict(15001, abi::matched::PROTO) },
            "Policy verdict log: flow 0x8a2f local EP ID 123, remote ID 1001, proto 6, ingress, \
             action redirect, auth: disabled, match Proto-Only, 10.0.0.1:40000 -> 10.0.0.2:80 tcp SYN",
        ),
    ];
    for (event, line) in cases {
        assert_eq!(PLAIN.line(&flow(event)), line.replace(":::  ", "::: "));
    }
}

#[test]
fn identities_and_interfaces_are_named_where_they_are_known() {
    struct Known;
    impl Names for Known {
        fn identity(&self, identity: u32) -> Option<String> {
            (identity == 1001).then(|| "k8s:app=client".to_owned())
        }
        fn interface(&self, ifindex: u32) -> Option<String> {
            (ifindex == 7).then(|| "lxc_server".to_owned())
        }
    }
    let line = LineFormat { names: Known, verbose: false }.line(&flow(syn()));
    assert!(line.contains("identity k8s:app=client->1002 state new ifindex lxc_server orig-ip"), "{line}");

    let by_closure = |identity: u32| (identity == 1002).then(|| "server".to_owned());
    let line = LineFormat { names: by_closure, verbose: false }.line(&flow(syn()));
    assert!(line.contains("identity 1001->server"), "{line}");
}

#[test]
fn verbose_tells_the_rest_and_how_to_ask_why() {
    let line = LineFormat { names: Numeric, verbose: true }.line(&flow(drop_of(133)));
    let rest: Vec<_> = line.lines().skip(1).collect();
    assert_eq!(
        rest,
        [
            "    time 1.500000s hook from-endpoint ingress endpoint 123 peer 45 ifindex 7 state new match none \
             74 bytes tcp flags SYN reason 133 (Policy denied)",
            "    explain with: villus why 10.0.0.1 10.0.0.2 80/tcp",
        ]
    );
}

#[test]
fn loss_has_a_line_of_its_own() {
    let lost = Record::Lost { source: LossSource::KernelRing, count: 17 };
    assert_eq!(PLAIN.record(&lost), "!! 17 events lost (the kernel's ring was full)");
}

#[test]
fn why_asks_about_the_flow_that_a_reply_answers() {
    let asked = |event| WhyQuery::of(&flow(event)).map(|why| why.to_string());
    let reply = Event { state: abi::STATE_REPLY, ..syn() };
    assert_eq!(asked(reply), Some("villus why 10.0.0.2 10.0.0.1 40000/tcp".to_owned()));
    let ping = Event { proto: 1, icmp_type: 8, ..drop_of(133) };
    assert_eq!(asked(ping), Some("villus why 10.0.0.1 10.0.0.2 8/icmp".to_owned()));
    let pong = Event { proto: 1, icmp_type: 0, state: abi::STATE_REPLY, ..syn() };
    assert_eq!(asked(pong), Some("villus why 10.0.0.2 10.0.0.1 8/icmp".to_owned()));
    assert_eq!(asked(Event { flags: abi::FLAG_ADDRS, ..syn() }), None);
    assert_eq!(asked(Event { flags: 0, ..syn() }), None);
}

#[test]
fn a_port_with_its_protocol_is_read_and_refused_clearly() {
    use villus_flows::PortProto;
    let read = |text: &str| text.parse::<PortProto>().map(|port| (port.port, port.proto));
    assert_eq!(read("80"), Ok((80, 6)));
    assert_eq!(read("53/UDP"), Ok((53, 17)));
    assert_eq!(read("0/icmp"), Ok((0, 1)));
    assert_eq!("0/icmp".parse::<PortProto>().unwrap().policy_port(), 256);
    for wrong in ["70000", "http", "80/xyz", "-1/tcp", "+80", "300/icmp", ""] {
        let error = read(wrong).unwrap_err().to_string();
        assert!(error.contains("is not"), "{error}");
    }
}
