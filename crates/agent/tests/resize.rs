//! Flow tables of another size at a restart: open flows go on, under traffic, forth and back.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use common::{TestNode, allow, echoes};
use villus_api::model::EndpointState;
use villus_datapath::{Flows, Maps, Pins};
use villus_testbed::{alone, eventually};

#[test]
fn the_agent() {
    common::be_the_agent();
}

/// What is said when nothing is asked any more.
const END: &[u8] = b"end";

/// Answers to questions that were asked all the time, a thousand a second.
struct Traffic {
    stop: Arc<AtomicBool>,
    asker: JoinHandle<(u32, u32)>,
    answerer: JoinHandle<()>,
}

impl Traffic {
    fn start(asks: UdpSocket, answers: UdpSocket, to: SocketAddr) -> Self {
        asks.connect(to).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let answerer = std::thread::spawn(move || {
            let mut buffer = [0; 16];
            // Until it is told that nothing is asked any more: the last question is answered too.
            while let Ok((length, from)) = answers.recv_from(&mut buffer)
                && buffer[..length] != *END
            {
                answers.send_to(&buffer[..length], from).unwrap();
            }
        });
        let ended = stop.clone();
        let asker = std::thread::spawn(move || {
            let (mut asked, mut answered) = (0_u32, 0);
            let mut buffer = [0; 16];
            while !ended.load(Relaxed) {
                asks.send(&asked.to_le_bytes()).unwrap();
                asked += 1;
                answered += u32::from(asks.recv(&mut buffer).is_ok_and(|length| length == 4));
                std::thread::sleep(Duration::from_millis(1));
            }
            asks.send(END).unwrap();
            (asked, answered)
        });
        Self { stop, asker, answerer }
    }

    fn end(self) {
        self.stop.store(true, Relaxed);
        let (asked, answered) = self.asker.join().unwrap();
        self.answerer.join().unwrap();
        assert!(asked > 200, "{asked}");
        assert_eq!(answered, asked, "each question has its answer");
    }
}

fn sizes() -> [u32; 2] {
    let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
    let maps = Maps::existing(&pins).unwrap();
    [maps.ct4_tcp.info().entries, maps.ct4_any.info().entries]
}

fn set(node: &mut TestNode, entries: u32) {
    for (name, text) in &mut node.options {
        if name.starts_with("bpf-ct-global-") {
            *text = entries.to_string();
        }
    }
}

#[test]
fn another_size_of_the_flow_tables_takes_open_flows_along_and_back() {
    alone!();
    let mut node = TestNode::started(&[]);
    let server = node.workload("server", &["k8s:app=server"]);
    let client = node.workload("client", &["k8s:app=client"]);
    node.import(&allow("web", "server", "client", 80));
    node.import(&allow("dns", "server", "client", 53).replace("TCP", "UDP"));
    // Answers reach the client by the flow alone.
    node.import(&allow("none", "client", "nobody", 1));
    server.serves(server.v4(), 80);
    let mut open: Vec<_> = (0..50).map(|_| client.connects(server.v4(), 80).unwrap()).collect();
    assert!(open.iter_mut().all(echoes));
    let to = SocketAddr::new(server.v4(), 53);
    let traffic = Traffic::start(client.udp(client.v4(), 5000), server.udp(server.v4(), 53), to);
    let taken_over = |node: &TestNode| {
        eventually("all are taken over", || {
            node.client().endpoints(&[]).unwrap().iter().all(|e| e.status.state == EndpointState::Ready)
        });
        // And what comes after that.
        std::thread::sleep(Duration::from_millis(300));
    };
    for entries in [8192, 2048, 4096] {
        node.kill();
        set(&mut node, entries);
        node.start();
        // Opened while programs of before go on with maps of before.
        open.push(client.connects(server.v4(), 80).unwrap());
        taken_over(&node);
        assert_eq!(sizes(), [entries, entries]);
        assert!(open.iter_mut().all(echoes), "open connections go on with {entries}");
    }
    // A start that is cut short after maps have changed and before programs have.
    node.kill();
    set(&mut node, 16384);
    for millis in [30, 60, 120, 250] {
        node.spawn();
        std::thread::sleep(Duration::from_millis(millis));
        node.kill();
        open.push(client.connects(server.v4(), 80).unwrap());
        assert!(open.iter_mut().all(echoes));
    }
    node.start();
    taken_over(&node);
    assert_eq!(sizes(), [16384, 16384]);
    assert!(open.iter_mut().all(echoes), "open connections go on after starts that were cut short");
    traffic.end();
    let pins = Pins::existing("/tmp/node/bpf".as_ref()).unwrap();
    let flows = Flows::new(Arc::new(Maps::existing(&pins).unwrap())).list().unwrap();
    let web = flows.iter().filter(|(key, flow)| key.ends(flow).1.port() == 80).count();
    assert!(web >= open.len(), "{web} flows of {} connections", open.len());
}
