//! The programs alone, by PROG_TEST_RUN: nanoseconds per packet between two endpoints of one node.

use anyhow::{Result, ensure};
use villus_abi::{
    Config, Direction, Endpoint, Local, PolicyEntry, PolicyKey,
    endpoint::{FLAG_ACTIVE, FLAG_CHECK_MAC, FLAG_DELIVER_PEER, MASK_ALL},
};
use villus_datapath::{Entries, Hook, Maps, Object, Pins, PolicyMaps, Program, Sizes, SkbContext};

use crate::{cost::PEER, report::Row};

/// Runs of the program per measurement: below the packet's TTL, which each run takes one from.
const REPEAT: u32 = 200;
const ROUNDS: usize = 2000;

const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const MAC_NODE: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn frame(v6: bool, dport: u16) -> Vec<u8> {
    let mut f = Vec::with_capacity(128);
    f.extend(MAC_NODE);
    f.extend(MAC_A);
    if v6 {
        f.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 255]);
        f.extend(addr6(1));
        f.extend(addr6(2));
    } else {
        f.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 255, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    }
    f.extend(40000_u16.to_be_bytes());
    f.extend(dport.to_be_bytes());
    // Sequence, acknowledgement, five words of header, ACK.
    f.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    f
}

fn addr6(last: u8) -> [u8; 16] {
    [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]
}

fn endpoint(id: u16, ifindex: u32, mac: [u8; 6]) -> Endpoint {
    Endpoint {
        id,
        flags: FLAG_ACTIVE | FLAG_DELIVER_PEER | FLAG_CHECK_MAC,
        identity: 1000 + u32::from(id),
        ifindex,
        mtu: 1500,
        mask: [0, 0],
        mac,
        node_mac: MAC_NODE,
        ipv4: u32::from_ne_bytes([10, 0, 0, id as u8]),
        policy: u32::from(id),
        ipv6: words(addr6(id as u8)),
        reserved: [0; 3],
    }
}

fn words(a: [u8; 16]) -> [u32; 4] {
    std::array::from_fn(|i| u32::from_ne_bytes([a[i * 4], a[i * 4 + 1], a[i * 4 + 2], a[i * 4 + 3]]))
}

/// Median nanoseconds per run. `before` is called ahead of each measurement.
fn time(
    program: &Program,
    packet: &[u8],
    repeat: u32,
    rounds: usize,
    mut before: impl FnMut() -> Result<()>,
) -> Result<f64> {
    let context = SkbContext { ifindex: 1, ..SkbContext::default() };
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        before()?;
        times.push(program.test_runs(packet, &context, repeat)?.duration_ns as f64);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}

/// Runs it.
pub fn run() -> Result<Vec<Row>> {
    let pins = std::sync::Arc::new(Pins::detached()?);
    let maps = std::sync::Arc::new(Maps::open(&pins, &Sizes::default())?);
    let object = Object::load(&pins, &maps, &[Hook::FromEndpoint])?;
    let mut policies = PolicyMaps::open(pins.clone(), maps.clone(), 16384)?;
    for id in [1, 2] {
        policies.create(id)?;
    }
    let allow = |identity, port, dir| (PolicyKey::new(identity, port, 6, dir), PolicyEntry::ALLOW);
    policies.apply(1, &Entries::from([allow(1002, 80, Direction::Egress)]), &mut &maps.endpoints)?;
    policies.apply(2, &Entries::from([allow(1001, 80, Direction::Ingress)]), &mut &maps.endpoints)?;
    maps.endpoints.insert(&1, &endpoint(1, 1, MAC_A))?;
    maps.endpoints.insert(&2, &endpoint(2, 2, MAC_B))?;
    maps.devices.insert(&1, &1)?;
    for id in [1_u8, 2] {
        let local = Local { slot: u32::from(id), flags: 0 };
        maps.addrs4.insert(&u32::from_ne_bytes([10, 0, 0, id]), &local)?;
        maps.addrs6.insert(&addr6(id), &local)?;
    }
    maps.config.insert(&0, &Config::default())?;

    let program = object.program(Hook::FromEndpoint)?;
    let mut rows = Vec::new();
    for (v6, name) in [(false, "IPv4"), (true, "IPv6")] {
        let packet = frame(v6, 80);
        let first = program.test_run(&packet, &SkbContext { ifindex: 1, ..SkbContext::default() })?;
        ensure!(first.verdict == 7, "an allowed packet is redirected, not {}", first.verdict);
        let ns = time(program, &packet, REPEAT, ROUNDS, || Ok(()))?;
        rows.push(row(
            format!("{name}, established, both endpoints judged"),
            ns,
            if v6 { 900.0 } else { 450.0 },
        ));
        let ns = time(program, &packet, 1, ROUNDS, || {
            maps.ct4_tcp.entries()?.iter().try_for_each(|(k, _)| maps.ct4_tcp.remove(k).map(|_| ()))?;
            maps.ct6_tcp.entries()?.iter().try_for_each(|(k, _)| maps.ct6_tcp.remove(k).map(|_| ()))?;
            Ok(())
        })?;
        rows.push(row(format!("{name}, first packet of a flow (cold)"), ns, 900.0));
        let denied = frame(v6, 81);
        let ns = time(program, &denied, REPEAT, ROUNDS, || Ok(()))?;
        rows.push(row(format!("{name}, denied, reported"), ns, 900.0));
    }
    for sizes in [0_u32, 1, 6, 16] {
        // The smallest sizes of port blocks; with all sixteen bits also the keys of whole protocols.
        let mask = if sizes == 16 { MASK_ALL } else { ((1 << sizes) - 1) << 1 };
        for (id, mac) in [(1, MAC_A), (2, MAC_B)] {
            let record = Endpoint { mask: [mask; 2], ..endpoint(id, id.into(), mac) };
            maps.endpoints.insert(&id.into(), &record)?;
        }
        let ns = time(program, &frame(false, 80), REPEAT, ROUNDS, || Ok(()))?;
        // Each bit of the mask is two keys, one of the identity and one for all; four are always looked up.
        let keys = 2 * (4 + 2 * mask.count_ones());
        rows.push(row(format!("IPv4, established, {sizes} block sizes ({keys} keys)"), ns, 900.0));
    }
    Ok(rows)
}

fn row(case: String, ns: f64, goal: f64) -> Row {
    Row {
        case,
        ours: ns,
        baseline: PEER,
        baseline_name: "Cilium 1.19.4, established IPv4".into(),
        ratio: ns / PEER,
        unit: "ns".into(),
        goal: format!("<= {goal} ns"),
        holds: ns <= goal,
    }
}
