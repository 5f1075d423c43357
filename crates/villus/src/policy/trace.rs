//! `villus policy trace`: what rules say to a flow between labels, in the form of Cilium 1.10.

use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;
use villus_abi::Direction;
use villus_flows::{PortProto, protocol_name};
use villus_labels::{Labels, NumericIdentity, source};
use villus_policy::{Bound, Explanation, Nearest, Origin, Peers, Reason, Repository};

use super::scene::{Scene, SceneArgs, identity_of_endpoint};
use crate::{
    connect::Host,
    failure::{FAILED, Failure},
    out::OutputArgs,
};

/// Number of the peer while it is traced: none that anybody has.
const PEER: NumericIdentity = NumericIdentity(u32::MAX);

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy trace --src app=client --dst app=server --dport 80/tcp\n  \
                  villus policy trace --src-endpoint 794 --dst-identity 298951 --dport 443 --dport 53/udp\n  \
                  villus policy trace --src app=a --dst app=b --dport 80 --policies policies/\n\n\
                  With --policies and labels neither an agent nor root is needed. Labels are those that make the identity; \
                  the namespace is `default` if none is given. Exit code 1 if the verdict is DENIED."
)]
pub struct TraceArgs {
    /// Labels of who sends, separated by commas.
    #[arg(short, long, value_name = "LABELS", required_unless_present_any = ["src_identity", "src_endpoint", "src_k8s_pod"])]
    src: Option<String>,
    /// Its identity's number instead.
    #[arg(long, value_name = "IDENTITY", conflicts_with = "src")]
    src_identity: Option<u32>,
    /// An endpoint of this node instead.
    #[arg(long, value_name = "ENDPOINT", conflicts_with_all = ["src", "src_identity"])]
    src_endpoint: Option<String>,
    /// A pod of this node instead.
    #[arg(long, value_name = "NAMESPACE:POD", conflicts_with_all = ["src", "src_identity", "src_endpoint"])]
    src_k8s_pod: Option<String>,
    /// Labels of whom it is for, separated by commas.
    #[arg(short, long, value_name = "LABELS", required_unless_present_any = ["dst_identity", "dst_endpoint", "dst_k8s_pod"])]
    dst: Option<String>,
    /// Its identity's number instead.
    #[arg(long, value_name = "IDENTITY", conflicts_with = "dst")]
    dst_identity: Option<u32>,
    /// An endpoint of this node instead.
    #[arg(long, value_name = "ENDPOINT", conflicts_with_all = ["dst", "dst_identity"])]
    dst_endpoint: Option<String>,
    /// A pod of this node instead.
    #[arg(long, value_name = "NAMESPACE:POD", conflicts_with_all = ["dst", "dst_identity", "dst_endpoint"])]
    dst_k8s_pod: Option<String>,
    /// Destination ports; TCP where no protocol is given.
    #[arg(long, value_name = "PORT[/PROTO]", required = true, value_parser = crate::why::port)]
    dport: Vec<PortProto>,
    #[command(flatten)]
    scene: SceneArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// The answer for one port.
#[derive(Serialize)]
struct Trace {
    port: String,
    ingress: Half,
    egress: Half,
    verdict: &'static str,
}

/// What one side's policy says.
#[derive(Serialize)]
struct Half {
    #[serde(skip)]
    text: String,
    verdict: &'static str,
    because: Vec<Reason>,
    nearest: Vec<Nearest>,
    explanation: Explanation,
}

pub fn run(host: &Host, args: &TraceArgs) -> Result<(), Failure> {
    let scene = args.scene.policies(host)?;
    let src = party(
        host,
        args.src.as_deref(),
        args.src_identity,
        args.src_endpoint.as_deref(),
        args.src_k8s_pod.as_deref(),
    )?;
    let dst = party(
        host,
        args.dst.as_deref(),
        args.dst_identity,
        args.dst_endpoint.as_deref(),
        args.dst_k8s_pod.as_deref(),
    )?;
    let mut traces = Vec::new();
    for port in &args.dport {
        let ingress = half(&scene, &dst, &src, Direction::Ingress, *port)?;
        let egress = half(&scene, &src, &dst, Direction::Egress, *port)?;
        let passes = ingress.explanation.passes() && egress.explanation.passes();
        let verdict = if passes { "ALLOWED" } else { "DENIED" };
        traces.push(Trace { port: port_text(*port), ingress, egress, verdict });
    }
    args.output.print(&traces, || traces.iter().map(|trace| text(trace, &src, &dst)).collect())?;
    let denied = traces.iter().any(|trace| trace.verdict == "DENIED");
    if denied { Err(Failure::silent(FAILED)) } else { Ok(()) }
}

/// The labels of a side.
fn party(
    host: &Host,
    labels: Option<&str>,
    identity: Option<u32>,
    endpoint: Option<&str>,
    pod: Option<&str>,
) -> Result<Labels, Failure> {
    if let Some(text) = labels {
        return read(text);
    }
    let number = match (identity, endpoint, pod) {
        (Some(number), ..) => number,
        (None, Some(endpoint), _) => identity_of_endpoint(endpoint, host)?,
        (None, None, Some(pod)) => identity_of_endpoint(&format!("pod-name:{pod}"), host)?,
        (None, None, None) => return Err(Failure::usage("nobody is named")),
    };
    if let Some(labels) = NumericIdentity(number).reserved_labels() {
        return Ok(labels);
    }
    read(&host.client()?.identity(number)?.labels.join(","))
}

/// Labels as a policy meets them: in namespace `default` if they name none.
fn read(text: &str) -> Result<Labels, Failure> {
    let labels = Labels::parse_list(text, source::K8S)
        .map_err(|error| Failure::usage(format!("labels {text:?}: {error}")))?;
    if labels.is_empty() {
        return Err(Failure::usage("labels are missing").fix("write for example --src app=client"));
    }
    let outside =
        labels.iter().any(|label| label.source() == source::RESERVED || label.source() == source::CIDR);
    if outside || labels.namespace().is_some() {
        return Ok(labels);
    }
    let namespace = villus_labels::Label::new(source::K8S, villus_labels::KEY_NAMESPACE, "default");
    Ok(labels.with(namespace.map_err(Failure::new)?))
}

fn half(
    scene: &Scene,
    subject: &Labels,
    peer: &Labels,
    direction: Direction,
    port: PortProto,
) -> Result<Half, Failure> {
    let repository = scene.repository([&(PEER, peer.clone())]);
    let policy = scene.compiled(&repository, subject)?;
    let subject = &scene.subject(subject);
    let explanation = policy.explain(direction, PEER.0, port.port, port.proto);
    let verdict = match (explanation.verdict.is_allowed(), explanation.audited) {
        (true, _) => "allowed",
        (false, true) => "allowed (audit)",
        (false, false) => "denied",
    };
    Ok(Half {
        text: rules(&repository, subject, peer, direction, &explanation),
        verdict,
        because: repository.because(subject, Some(peer), &explanation),
        nearest: repository.nearest(subject, peer, &explanation),
        explanation,
    })
}

/// The rules that select the subject and what each says to the peer.
fn rules(
    repository: &Repository,
    subject: &Labels,
    peer: &Labels,
    direction: Direction,
    explanation: &Explanation,
) -> String {
    let mut text = String::new();
    let (from, asks) = match direction {
        Direction::Ingress => ("from", "Allows from labels"),
        Direction::Egress => ("to", "Allows to labels"),
    };
    let (mut selected, mut found) = (0, false);
    for rule in repository.rules_of(subject) {
        let clauses: Vec<_> = rule.clauses.iter().filter(|clause| clause.direction == direction).collect();
        if clauses.is_empty() && !rule.default_deny[direction as usize] {
            continue;
        }
        selected += 1;
        // Writing to a string does not fail.
        let _ = writeln!(text, "* Rule {}: selected", json(&rule.subject));
        let _ =
            writeln!(text, "    {}{}", rule.origin, if rule.audit.has(direction) { ", audited" } else { "" });
        for clause in clauses.into_iter().filter(|clause| clause.bound != Bound::Requirement) {
            let asks = if clause.deny { asks.replace("Allows", "Denies") } else { asks.to_owned() };
            let matches = match &clause.peers {
                Peers::Any => {
                    let _ = writeln!(text, "    {} everybody", asks.trim_end_matches(" labels"));
                    true
                }
                Peers::Selected(selectors) => {
                    for selector in selectors {
                        let _ = writeln!(text, "    {asks} {}", json(selector));
                    }
                    selectors.iter().any(|selector| selector.matches(peer))
                }
            };
            let _ = match matches {
                true => writeln!(text, "      Found all required labels"),
                false => writeln!(text, "      No label match for {}", list(peer)),
            };
            let decides = explanation.deciders().contains(&clause.origin);
            if matches && decides {
                found |= !clause.deny;
                let verb = if clause.deny { "Denies" } else { "Allows" };
                let _ = writeln!(text, "      {verb} the port ({from} {})", clause.origin);
            } else if matches {
                let _ = writeln!(text, "      Another port, or another rule decides");
            }
        }
    }
    let all = repository.policies().flat_map(|policy| repository.rules(&policy.key)).count();
    let _ = writeln!(text, "{selected}/{all} rules selected");
    let conclusion = match (found, explanation.deciders().first()) {
        (true, _) => "Found allow rule".to_owned(),
        (false, Some(Origin::Rule(_))) if explanation.verdict.is_allowed() => "Found allow rule".to_owned(),
        (false, Some(origin @ (Origin::NotEnforced | Origin::AllowLocalhost))) => {
            format!("Allowed: {origin}")
        }
        (false, _) if matches!(explanation.verdict, villus_policy::Verdict::Denied(_)) => {
            "Found deny rule".to_owned()
        }
        (false, _) => "Found no allow rule".to_owned(),
    };
    let _ = writeln!(text, "{conclusion}");
    text
}

fn json(selector: &villus_labels::Selector) -> String {
    serde_json::to_string(selector).unwrap_or_else(|_| selector.to_string())
}

fn list(labels: &Labels) -> String {
    format!("[{}]", super::scene::text_of(labels))
}

fn port_text(port: PortProto) -> String {
    let name = protocol_name(port.proto).map_or_else(|| port.proto.to_string(), str::to_uppercase);
    format!("{}/{name}", port.port)
}

fn text(trace: &Trace, src: &Labels, dst: &Labels) -> String {
    let mut text = String::from("----------------------------------------------------------------\n");
    let _ = writeln!(text, "Tracing From: {} => To: {} Ports: [{}]", list(src), list(dst), trace.port);
    for (name, labels, half) in [("ingress", dst, &trace.ingress), ("egress", src, &trace.egress)] {
        let _ = write!(text, "\nResolving {name} policy for {}\n{}", list(labels), half.text);
        for nearest in &half.nearest {
            let _ = writeln!(text, "Nearest: {nearest}");
        }
        let title = if name == "ingress" { "Ingress" } else { "Egress" };
        let _ = writeln!(text, "{title} verdict: {}", half.verdict);
    }
    let _ = writeln!(text, "\nFinal verdict: {}", trace.verdict);
    text
}
