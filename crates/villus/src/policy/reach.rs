//! `villus policy who-can` and `villus policy can-reach`: the two views of owners.

use clap::Args;
use serde::Serialize;
use villus_abi::Direction;
use villus_flows::PortProto;
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{EndpointPolicy, Open, Side, open_ports, passes};
use villus_print::Table;

use super::{
    maps::{Group, KernelArgs},
    scene::{SceneArgs, text_of},
};
use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy who-can app=db,io.kubernetes.pod.namespace=shop 5432\n  villus policy who-can 298951 53/udp -o json\n  \
                  villus policy who-can app=db 5432 --policies policies/ --identities identities.json\n  villus policy who-can app=db 5432 --from-kernel\n\n\
                  SERVER is an identity's number, labels, or anything that names an endpoint. A peer is listed if the server's \
                  ingress policy and its own egress policy let it pass, as the policies known here say. With --from-kernel \
                  the policy maps of this node are asked, with or without an agent: SERVER has an endpoint here, and of \
                  peers that have none the egress policy is for their nodes to say. Exit code 3 if the agent wants other \
                  entries in the maps that were asked."
)]
pub struct WhoCanArgs {
    /// Who is reached.
    server: String,
    /// On which port; TCP if no protocol is given.
    #[arg(value_name = "PORT[/PROTO]", value_parser = crate::why::port)]
    port: PortProto,
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy can-reach app=web\n  villus policy can-reach 298951 -o json\n  \
                  villus policy can-reach app=web --policies policies/ --identities identities.json\n  villus policy can-reach app=web --from-kernel\n\n\
                  CLIENT is an identity's number, labels, or anything that names an endpoint. Whom it may reach and on which ports, as \
                  its egress policy and the ingress policy of the others say. With --from-kernel the policy maps of this \
                  node are asked, with or without an agent: CLIENT has an endpoint here, and of peers that have none the \
                  ingress policy is for their nodes to say. Exit code 3 if the agent wants other entries in the maps that \
                  were asked."
)]
pub struct CanReachArgs {
    /// Who sends.
    client: String,
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Somebody on the other side.
#[derive(Serialize)]
struct Peer {
    /// Of the one that was asked about.
    of: NumericIdentity,
    /// Its endpoints whose maps say so, where the kernel was asked.
    #[serde(rename = "of-endpoints", skip_serializing_if = "Vec::is_empty")]
    of_endpoints: Vec<u16>,
    identity: NumericIdentity,
    /// As `of_endpoints`, of the peer; empty if it has none on this node.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    endpoints: Vec<u16>,
    labels: Vec<String>,
    ports: Vec<Open>,
}

pub fn who_can(host: &Host, args: &WhoCanArgs) -> Result<(), Failure> {
    let how = (&args.scene, &args.kernel, &args.output);
    reach(host, how, &args.server, Direction::Ingress, |sides| {
        let audited = passes(sides, args.port.port, args.port.proto)?;
        Some(vec![Open { ports: args.port.to_string(), audited }])
    })
}

pub fn can_reach(host: &Host, args: &CanReachArgs) -> Result<(), Failure> {
    let how = (&args.scene, &args.kernel, &args.output);
    reach(host, how, &args.client, Direction::Egress, |sides| {
        Some(open_ports(sides)).filter(|ports| !ports.is_empty())
    })
}

/// All peers of one end, whose own policy is that of `direction`, and the ports that are open between them.
fn reach(
    host: &Host,
    how: (&SceneArgs, &KernelArgs, &OutputArgs),
    end: &str,
    direction: Direction,
    ports: impl Fn(&[Side<'_>]) -> Option<Vec<Open>>,
) -> Result<(), Failure> {
    let (scene, kernel, output) = how;
    if kernel.from_kernel {
        return by_maps(host, how, end, direction, ports);
    }
    let scene = scene.load(host)?;
    let everybody = scene.repository(&scene.identities);
    let mut rows = Vec::new();
    for this in scene.find(end, host)? {
        let own = scene.compiled(&everybody, &this.1)?;
        let with_this = scene.repository([this]);
        for peer in &scene.identities {
            let theirs = scene.compiled(&with_this, &peer.1)?;
            let sides = match direction {
                Direction::Ingress => between(&theirs, this.0, &own, peer.0),
                Direction::Egress => between(&own, peer.0, &theirs, this.0),
            };
            if let Some(ports) = ports(&sides) {
                rows.push(row(this.0, peer, ports));
            }
        }
    }
    let heading = match direction {
        Direction::Ingress => "SERVER",
        Direction::Egress => "CLIENT",
    };
    output.print(&rows, || table(&rows, &scene.identities, heading))
}

/// The answer of the kernel's maps about one end, whose policy is asked in `direction`.
fn by_maps(
    host: &Host,
    (scene, kernel, output): (&SceneArgs, &KernelArgs, &OutputArgs),
    end: &str,
    direction: Direction,
    ports: impl Fn(&[Side<'_>]) -> Option<Vec<Open>>,
) -> Result<(), Failure> {
    let (opposite, title) = match direction {
        Direction::Ingress => (Direction::Egress, "SERVER"),
        Direction::Egress => (Direction::Ingress, "CLIENT"),
    };
    let scene = kernel.load(scene, host)?;
    let ends = scene.find(end, host)?;
    let mut rows = Vec::new();
    for end in &ends {
        for peer in &scene.identities {
            let here: Vec<&Group> = scene.of(peer.0).collect();
            let elsewhere = here.is_empty().then_some(None);
            for group in here.into_iter().map(Some).chain(elsewhere) {
                let own = Side { policy: &end.policy, direction, identity: peer.0.0 };
                let of_peer = group.map(|group| Side {
                    policy: &group.policy,
                    direction: opposite,
                    identity: end.identity.0,
                });
                let sides: Vec<Side<'_>> = [own].into_iter().chain(of_peer).collect();
                let Some(ports) = ports(&sides) else { continue };
                let endpoints = group.map(|group| group.endpoints.clone()).unwrap_or_default();
                let of_endpoints = end.endpoints.clone();
                rows.push(Peer { of_endpoints, endpoints, ..row(end.identity, peer, ports) });
            }
        }
    }
    output.print(&rows, || table(&rows, &scene.identities, title))?;
    scene.beside_wanted(&ends, host)
}

/// The policies of both ends.
fn between<'a>(
    egress: &'a EndpointPolicy,
    server: NumericIdentity,
    ingress: &'a EndpointPolicy,
    client: NumericIdentity,
) -> [Side<'a>; 2] {
    [
        Side { policy: egress, direction: Direction::Egress, identity: server.0 },
        Side { policy: ingress, direction: Direction::Ingress, identity: client.0 },
    ]
}

fn row(of: NumericIdentity, peer: &(NumericIdentity, Labels), ports: Vec<Open>) -> Peer {
    let mut labels: Vec<String> = peer.1.iter().map(ToString::to_string).collect();
    labels.sort();
    Peer { of, of_endpoints: Vec::new(), identity: peer.0, endpoints: Vec::new(), labels, ports }
}

fn table(rows: &[Peer], identities: &[(NumericIdentity, Labels)], title: &str) -> String {
    if rows.is_empty() {
        return "nobody\n".to_owned();
    }
    let same = |a: &Peer, b: &Peer| a.of == b.of && a.of_endpoints == b.of_endpoints;
    let several = rows.iter().any(|row| rows.first().is_some_and(|first| !same(first, row)));
    let mut text = String::new();
    for rows in rows.chunk_by(same) {
        let Some(first) = rows.first() else { continue };
        if several {
            let labels = identities.iter().find(|(identity, _)| *identity == first.of);
            let labels = labels.map(|(_, labels)| text_of(labels)).unwrap_or_default();
            text.push_str(&format!("{title} {}{} {labels}\n", first.of, here(&first.of_endpoints)));
        }
        let mut table = Table::new(["IDENTITY", "PORTS", "LABELS"]);
        for Peer { identity, endpoints, labels, ports, .. } in rows {
            let audit = |open: &Open| format!("{}{}", open.ports, if open.audited { " (audit)" } else { "" });
            let ports: Vec<String> = ports.iter().map(audit).collect();
            table.row([format!("{identity}{}", here(endpoints)), ports.join(", "), labels.join(" ")]);
        }
        text.push_str(&table.render());
    }
    text
}

/// ` (endpoint 5, 6)`.
fn here(endpoints: &[u16]) -> String {
    let ids: Vec<String> = endpoints.iter().map(ToString::to_string).collect();
    if ids.is_empty() { String::new() } else { format!(" (endpoint {})", ids.join(", ")) }
}
