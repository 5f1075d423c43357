//! What BIRD answers, as it really wrote it, and as nobody would.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use villus_bgp::{Reply, ReplyError, Status};

const STATUS: &str = "1000-BIRD 2.0.12\n1011-Router ID is 10.0.0.1\n Hostname is node1\n Current server time is 2026-11-26 15:04:26.429\n\
                      0013 Daemon is up and running\n";
const PROTOCOLS: &str = "2002-Name       Proto      Table      State  Since         Info\n\
1002-device1    Device     ---        up     15:04:24.897  \n1006-\n\
1002-pods4      Static     master4    up     15:04:24.897  \n1006-  Channel ipv4\n     State:          UP\n     Routes:         1 imported, 0 exported, 1 preferred\n \n\
1002-up1        BGP        ---        up     2026-11-20    Established   \n1006-  BGP state:          Established\n     Neighbor address: 10.9.1.2\n     Neighbor AS:      65000\n     Local AS:         65001\n   Channel ipv4\n     State:          UP\n     Routes:         1 imported, 2 exported, 1 preferred\n \n\
1002-up2        BGP        ---        start  15:04:24.897  Active        Socket: Connection refused\n1006-  BGP state:          Active\n     Neighbor address: 10.9.2.2\n     Neighbor AS:      65000\n     Last error:       Socket: Connection refused\n   Channel ipv4\n     State:          DOWN\n \n0000 \n";

fn reply(text: &str) -> Reply {
    let mut reply = Reply::default();
    let ends: Vec<bool> = text.lines().map(|line| reply.push(line).unwrap()).collect();
    assert!(ends.last().unwrap() & !ends[..ends.len() - 1].contains(&true), "{ends:?}");
    reply
}

#[test]
fn sessions_are_read_and_other_protocols_passed_over() {
    let status = Status::read(&reply(STATUS), &reply(PROTOCOLS));
    assert_eq!((status.version.as_str(), status.router_id.as_str()), ("BIRD 2.0.12", "10.0.0.1"));
    let [up1, up2] = status.sessions.as_slice() else { panic!("{status:?}") };
    assert!(up1.is_established() && up1.since == "2026-11-20" && up1.problem.is_empty(), "{up1:?}");
    assert_eq!((up1.neighbour.as_str(), up1.neighbour_as.as_str()), ("10.9.1.2", "65000"));
    assert_eq!((up1.channels[0].imported, up1.channels[0].exported), (1, 2));
    assert_eq!((up2.state.as_str(), up2.problem.as_str()), ("Active", "Socket: Connection refused"));
    assert!(!status.is_whole());
    let text = status.text();
    assert!(text.starts_with("BIRD 2.0.12, router 10.0.0.1: 1 of 2 sessions established\n"), "{text}");
    assert!(!Status::default().is_whole(), "no session is none established");
}

#[test]
fn what_is_no_reply_is_refused() {
    for (line, wanted) in [
        ("hello", None),
        ("12", None),
        ("1002_x", None),
        (" goes on nothing", None),
        ("9001 syntax error", Some(9001)),
        ("8003-No protocols match", Some(8003)),
    ] {
        match (Reply::default().push(line).unwrap_err(), wanted) {
            (ReplyError::Refused { code, .. }, Some(wanted)) => assert_eq!(code, wanted),
            (ReplyError::Line(_), None) => {}
            (other, _) => panic!("{line}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_line_is_too_strange(lines in prop::collection::vec("([0-9]{4}[- ])?[ -~äé]{0,30}", 0..12), at in 0usize..30) {
        let mut strange = Reply::default();
        for line in &lines {
            if strange.push(line).is_err() {
                break;
            }
        }
        let _ = Status::read(&strange, &strange).text();
        // The same in the middle of a real answer.
        let mut real: Vec<&str> = PROTOCOLS.lines().collect();
        let at = at.min(real.len());
        real.splice(at..at, lines.iter().map(String::as_str));
        let mut mixed = Reply::default();
        for line in real {
            if mixed.push(line).is_err() {
                break;
            }
        }
        let _ = Status::read(&mixed, &mixed).text();
    }
}
