//! `villus policy who-can` and `villus policy can-reach`: the two views of owners.

use clap::Args;
use serde::Serialize;
use villus_abi::Direction;
use villus_flows::PortProto;
use villus_labels::{Labels, NumericIdentity};
use villus_policy::{EndpointPolicy, Open, Side, open_ports, passes};
use villus_print::Table;

use super::scene::{Scene, SceneArgs, compiled, text_of};
use crate::{connect::Host, failure::Failure, out::OutputArgs};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy who-can app=db,io.kubernetes.pod.namespace=shop 5432\n  villus policy who-can 298951 53/udp -o json\n  \
                  villus policy who-can app=db 5432 --policies policies/ --identities identities.json\n\n\
                  SERVER is an identity's number, labels, or anything that names an endpoint. A peer is listed if the server's \
                  ingress policy and its own egress policy let it pass, as the policies known here say."
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
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy can-reach app=web\n  villus policy can-reach 298951 -o json\n  \
                  villus policy can-reach app=web --policies policies/ --identities identities.json\n\n\
                  CLIENT is an identity's number, labels, or anything that names an endpoint. Whom it may reach and on which ports, as \
                  its egress policy and the ingress policy of the others say."
)]
pub struct CanReachArgs {
    /// Who sends.
    client: String,
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Somebody on the other side.
#[derive(Serialize)]
struct Peer {
    /// Of the one that was asked about.
    of: NumericIdentity,
    identity: NumericIdentity,
    labels: Vec<String>,
    ports: Vec<Open>,
}

pub fn who_can(host: &Host, args: &WhoCanArgs) -> Result<(), Failure> {
    let scene = args.scene.load(host)?;
    let everybody = scene.repository(&scene.identities);
    let mut rows = Vec::new();
    for server in scene.find(&args.server, host)? {
        let ingress = compiled(&everybody, &server.1)?;
        let to_server = scene.repository([server]);
        for peer in &scene.identities {
            let egress = compiled(&to_server, &peer.1)?;
            let sides = between(&egress, server.0, &ingress, peer.0);
            if let Some(audited) = passes(&sides, args.port.port, args.port.proto) {
                let ports = vec![Open { ports: args.port.to_string(), audited }];
                rows.push(row(server.0, peer, ports));
            }
        }
    }
    args.output.print(&rows, || table(&rows, &scene, "SERVER"))
}

pub fn can_reach(host: &Host, args: &CanReachArgs) -> Result<(), Failure> {
    let scene = args.scene.load(host)?;
    let everybody = scene.repository(&scene.identities);
    let mut rows = Vec::new();
    for client in scene.find(&args.client, host)? {
        let egress = compiled(&everybody, &client.1)?;
        let from_client = scene.repository([client]);
        for peer in &scene.identities {
            let ingress = compiled(&from_client, &peer.1)?;
            let ports = open_ports(&between(&egress, peer.0, &ingress, client.0));
            if !ports.is_empty() {
                rows.push(row(client.0, peer, ports));
            }
        }
    }
    args.output.print(&rows, || table(&rows, &scene, "CLIENT"))
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
    Peer { of, identity: peer.0, labels, ports }
}

fn table(rows: &[Peer], scene: &Scene, title: &str) -> String {
    if rows.is_empty() {
        return "nobody\n".to_owned();
    }
    let several = rows.iter().any(|row| rows.first().is_some_and(|first| first.of != row.of));
    let mut text = String::new();
    let mut rest = rows;
    while let Some(first) = rest.first() {
        let (same, others) = rest.split_at(rest.iter().take_while(|row| row.of == first.of).count());
        rest = others;
        if several {
            let labels = scene.identities.iter().find(|(identity, _)| *identity == first.of);
            let labels = labels.map(|(_, labels)| text_of(labels)).unwrap_or_default();
            text.push_str(&format!("{title} {} {labels}\n", first.of));
        }
        let mut table = Table::new(["IDENTITY", "PORTS", "LABELS"]);
        for Peer { identity, labels, ports, .. } in same {
            let audit = |open: &Open| format!("{}{}", open.ports, if open.audited { " (audit)" } else { "" });
            let ports: Vec<String> = ports.iter().map(audit).collect();
            table.row([identity.to_string(), ports.join(", "), labels.join(" ")]);
        }
        text.push_str(&table.render());
    }
    text
}
