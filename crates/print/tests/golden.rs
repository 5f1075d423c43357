//! The tables as people and scripts know them.

use std::net::{IpAddr, Ipv4Addr};

use villus_abi::{
    Direction, Endpoint, Flow, FlowKey4, FlowKey6, IpcacheKey, IpcacheValue, PolicyEntry, PolicyKey, Reason,
    flow, ipcache, time,
};
use villus_print::*;

/// Text without the indentation of the source and its first newline.
fn text(block: &str) -> String {
    block.lines().skip(1).map(|line| format!("{}\n", line.strip_prefix("        ").unwrap_or(line))).collect()
}

#[test]
fn endpoint_list_has_the_headers_of_the_field() {
    let rows = [
        EndpointRow {
            id: 794,
            ingress: Enforcement::Enabled,
            identity: 298_951,
            labels: vec!["k8s:app=web".into(), "k8s:io.kubernetes.pod.namespace=ns1".into()],
            ipv6: vec!["fd00::a".parse().unwrap()],
            ipv4: vec!["10.2.6.113".parse().unwrap()],
            state: "ready".into(),
            ..EndpointRow::default()
        },
        EndpointRow {
            id: 5,
            ingress: Enforcement::Audit,
            ipv4: vec!["10.2.6.7".parse().unwrap(), "10.2.6.8".parse().unwrap()],
            state: "waiting-for-identity".into(),
            ..EndpointRow::default()
        },
    ];
    assert_eq!(
        endpoint_list(&rows),
        text(
            "
        ENDPOINT   POLICY (ingress)   POLICY (egress)   IDENTITY        LABELS (source:key[=value])           IPv6      IPv4         STATUS
                   ENFORCEMENT        ENFORCEMENT
        794        Enabled            Disabled          298951          k8s:app=web                           fd00::a   10.2.6.113   ready
                                                                        k8s:io.kubernetes.pod.namespace=ns1
        5          Disabled (Audit)   Disabled          <no label id>   no labels                                       10.2.6.7     waiting-for-identity
                                                                                                                        10.2.6.8"
        )
    );
}

#[test]
fn identity_list() {
    let mut rows = vec![
        IdentityRow { id: 1, labels: vec!["reserved:host".into()], ..IdentityRow::default() },
        IdentityRow {
            id: 16_777_217,
            labels: vec!["cidr:10.0.0.0/8".into(), "reserved:world".into()],
            ..IdentityRow::default()
        },
        IdentityRow { id: 33_488_897, interim: true, labels: vec!["k8s:app=new".into()], refcount: None },
    ];
    assert_eq!(
        villus_print::identity_list(&rows),
        text(
            "
        ID                   LABELS
        1                    reserved:host
        16777217             cidr:10.0.0.0/8
                             reserved:world
        33488897 (interim)   k8s:app=new"
        )
    );
    rows[0].refcount = Some(2);
    assert!(
        villus_print::identity_list(&rows).starts_with("ID                   LABELS            REFCOUNT\n")
    );
}

#[test]
fn ip_list() {
    let rows = [IpRow {
        cidr: "10.2.6.113/32".into(),
        identity: 298_951,
        labels: vec!["k8s:app=web".into()],
        source: "agent-local".into(),
        host: "192.168.0.1".into(),
        encrypt_key: 0,
    }];
    assert_eq!(
        villus_print::ip_list(&rows, true, false),
        text(
            "
        IP              IDENTITY   SOURCE
        10.2.6.113/32   298951     agent-local"
        )
    );
    assert_eq!(
        villus_print::ip_list(&rows, false, true),
        text(
            "
        IP              IDENTITY      SOURCE        HOST          ENCRYPT_KEY
        10.2.6.113/32   k8s:app=web   agent-local   192.168.0.1   0"
        )
    );
}

#[test]
fn bpf_policy_get() {
    let counted = PolicyEntry { packets: 3, bytes: 222, ..PolicyEntry::ALLOW };
    let labels = vec!["k8s:app=client".into(), "k8s:env=prod".into()];
    let mut rows = vec![
        PolicyRow::new(&PolicyKey::new(298_951, 80, 6, Direction::Ingress), &counted, labels),
        PolicyRow::new(&PolicyKey::block(0, 8000, 6, 6, Direction::Egress), &PolicyEntry::DENY, vec![]),
        PolicyRow::new(&PolicyKey::new(7, 0, 17, Direction::Egress), &PolicyEntry::ALLOW, vec![]),
        PolicyRow::new(&PolicyKey::new(0, 256, 1, Direction::Ingress), &PolicyEntry::ALLOW, vec![]),
        PolicyRow::new(&PolicyKey::new(0, 0, 0, Direction::Ingress), &PolicyEntry::ALLOW, vec![]),
    ];
    (rows[4].bytes, rows[4].packets) = (None, None);
    rows[4].proxy_port = 15_001;
    assert_eq!(
        policy_list(&rows, false),
        text(
            "
        POLICY   DIRECTION   LABELS (source:key[=value])   PORT/PROTO      PROXY PORT   BYTES   PACKETS
        Allow    Ingress     k8s:app=client                80/TCP          NONE         222     3
                             k8s:env=prod
        Deny     Egress      ANY                           8000-8063/TCP   NONE         0       0
        Allow    Egress      7                             ANY/UDP         NONE         0       0
        Allow    Ingress     ANY                           0/ICMP          NONE         0       0
        Allow    Ingress     ANY                           ANY             15001        -       -"
        )
    );
    let numeric = policy_list(&rows[..1], true);
    assert_eq!(
        numeric,
        text(
            "
        POLICY   DIRECTION   IDENTITY   PORT/PROTO   PROXY PORT   BYTES   PACKETS
        Allow    Ingress     298951     80/TCP       NONE         222     3"
        )
    );
    assert_eq!(policy_list(&[], false), "Policy stats empty. Perhaps the policy enforcement is disabled?\n");
}

#[test]
fn a_port_block_that_ends_at_the_last_port_prints_it() {
    let key = PolicyKey::block(0, 0x8000, 15, 6, Direction::Ingress);
    assert_eq!(PolicyRow::new(&key, &PolicyEntry::ALLOW, vec![]).port_proto, "32768-65535/TCP");
    let odd = PolicyKey { identity: 0, dport: u16::MAX, proto: 6, direction: 0xff };
    assert_eq!(PolicyRow::new(&odd, &PolicyEntry::ALLOW, vec![]).port_proto, "65535-65535/TCP");
}

#[test]
fn bpf_ipcache() {
    let row = IpcacheRow::new(
        &IpcacheKey::v4([10, 2, 6, 113], 32),
        &IpcacheValue { identity: 298_951, ..IpcacheValue::default() },
    );
    let address: IpAddr = "10.2.6.113".parse().unwrap();
    assert_eq!(ipcache_get(address, &row), "10.2.6.113 maps to identity 298951 0 0.0.0.0\n");
    assert_eq!(no_identity(address), "10.2.6.113 does not map to any identity\n");
    let pending = IpcacheRow::new(
        &IpcacheKey::v6("fd00::".parse::<std::net::Ipv6Addr>().unwrap().octets(), 64),
        &IpcacheValue {
            identity: 2,
            tunnel: u32::from_ne_bytes([192, 168, 0, 1]),
            key: 3,
            flags: ipcache::FLAG_PENDING,
            pad: [0; 2],
        },
    );
    let routed = IpcacheRow::new(
        &IpcacheKey::v4([10, 2, 7, 9], 32),
        &IpcacheValue { identity: 298_952, flags: ipcache::FLAG_ROUTED, ..IpcacheValue::default() },
    );
    assert_eq!(
        ipcache_list(&[row, pending, routed]),
        text(
            "
        IP PREFIX/ADDRESS   IDENTITY
        10.2.6.113/32       298951 0 0.0.0.0
        fd00::/64           2 3 192.168.0.1 pending
        10.2.7.9/32         298952 0 0.0.0.0 routed"
        )
    );
}

#[test]
fn bpf_endpoints() {
    let endpoint = Endpoint {
        id: 794,
        flags: 3,
        identity: 298_951,
        ifindex: 12,
        mac: [0x0a, 0, 0, 0, 0, 1],
        node_mac: [0x0a, 0, 0, 0, 0, 2],
        ..Endpoint::default()
    };
    let rows = [
        EndpointMapRow::new(Ipv4Addr::new(10, 2, 6, 113).into(), Some(&endpoint)),
        EndpointMapRow::new(Ipv4Addr::new(10, 2, 6, 1).into(), None),
    ];
    assert_eq!(
        bpf_endpoint_list(&rows),
        text(
            "
        IP ADDRESS   LOCAL ENDPOINT INFO
        10.2.6.113   id=794   sec_id=298951 flags=0x0003 ifindex=12  mac=0A:00:00:00:00:01 nodemac=0A:00:00:00:00:02
        10.2.6.1     (localhost)"
        )
    );
}

#[test]
fn bpf_ct() {
    let from_peer = Flow {
        fwd_packets: 6,
        fwd_bytes: 500,
        rev_packets: 4,
        rev_bytes: 9000,
        expires: time::from_secs(8100),
        fwd_report: time::from_secs(100),
        rev_report: time::from_secs(101),
        src_identity: 298_951,
        dst_identity: 12,
        flags: flow::FLOW_HI_OPENED
            | flow::FLOW_SEEN_NON_SYN
            | flow::FLOW_FWD_CLOSING
            | flow::FLOW_INGRESS_ADMITTED,
        fwd_tcp_flags: 0x1b,
        rev_tcp_flags: 0x12,
        dst_endpoint: 794,
        ..Flow::default()
    };
    let ip = |a: [u8; 4]| u32::from_ne_bytes(a);
    let key = FlowKey4 {
        lo: ip([10, 0, 0, 1]),
        hi: ip([10, 0, 0, 2]),
        lo_port: 80_u16.to_be(),
        hi_port: 34_567_u16.to_be(),
        proto: 6,
        ..FlowKey4::default()
    };
    let incoming = CtRow::v4(&key, &from_peer);
    let outgoing = CtRow::v6(
        &FlowKey6 { lo_port: 53_u16.to_be(), proto: 17, ..FlowKey6::default() },
        &Flow { src_endpoint: 5, expires: time::from_secs(60), ..Flow::default() },
    );
    assert_eq!(
        ct_list(&[incoming, outgoing], CtOptions { now: Some(100) }),
        text(
            "
        TCP IN 10.0.0.2:34567 -> 10.0.0.1:80 expires=8100 (remaining: 8000 sec(s)) RxPackets=6 RxBytes=500 RxFlagsSeen=0x1b LastRxReport=100 TxPackets=4 TxBytes=9000 TxFlagsSeen=0x12 LastTxReport=101 Flags=0x2011 [ RxClosing SeenNonSyn IngressAdmitted ] RevNAT=0 SourceSecurityID=298951
        UDP OUT [::]:53 -> [::]:0 expires=60 (remaining: -40 sec(s)) RxPackets=0 RxBytes=0 RxFlagsSeen=0x00 LastRxReport=0 TxPackets=0 TxBytes=0 TxFlagsSeen=0x00 LastTxReport=0 Flags=0x0000 [ ] RevNAT=0 SourceSecurityID=0"
        )
    );
}

#[test]
fn bpf_metrics() {
    let rows = [
        MetricsRow::new(Reason::FORWARDED, Direction::Egress, 10, 1000),
        MetricsRow::new(Reason::POLICY, Direction::Ingress, 2, 148),
        MetricsRow::new(Reason::FORWARDED, Direction::Ingress, 9, 900),
        MetricsRow::new(Reason(222), Direction::Ingress, 1, 1),
    ];
    assert_eq!(
        bpf_metrics_list(&rows),
        text(
            "
        REASON               DIRECTION   PACKETS   BYTES
        Policy denied        INGRESS     2         148
        Success              EGRESS      10        1000
        Success              INGRESS     9         900
        Unknown reason 222   INGRESS     1         1"
        )
    );
}

#[test]
fn maps_and_selectors() {
    assert_eq!(
        map_list(&[MapRow { name: "cilium_ipcache".into(), entries: 12, errors: 0, cached: true }]),
        text(
            "
        Name             Num entries   Num errors   Cache enabled
        cilium_ipcache   12            0            true"
        )
    );
    let entry = MapEntryRow {
        key: "10.2.6.113/32".into(),
        value: "298951 0 0.0.0.0".into(),
        state: "sync".into(),
        error: String::new(),
    };
    assert_eq!(
        map_get(&[entry]),
        text(
            "
        Key             Value              State   Error
        10.2.6.113/32   298951 0 0.0.0.0   sync"
        )
    );
    let selector = SelectorRow { selector: "{k8s:app=web}".into(), users: 2, identities: vec![101, 102] };
    assert_eq!(
        selector_list(&[selector]),
        text(
            "
        SELECTOR        USERS   IDENTITIES
        {k8s:app=web}   2       101
                                102"
        )
    );
}

#[test]
fn status_lines() {
    let lines = [
        StatusLine::new("KVStore", "Ok", "embedded"),
        StatusLine::new("Villus", "Ok", "0.1.0"),
        StatusLine::new("Foreign drops", "Warning", "docker drops forwarded packets\nmend with: nft …"),
        StatusLine::new("Encryption", "Disabled", ""),
    ];
    assert_eq!(
        status(&lines),
        text(
            "
        KVStore:         Ok         embedded
        Villus:          Ok         0.1.0
        Foreign drops:   Warning    docker drops forwarded packets
                                    mend with: nft …
        Encryption:      Disabled"
        )
    );
}
