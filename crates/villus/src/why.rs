//! `villus why`.

use std::io::BufRead;

use clap::Args;
use serde::Serialize;
use villus_api::model::{Explanation, Step, WhyReply, WhyRequest};
use villus_api::{ClientError, EndpointRef};
use villus_datapath::Snapshot;
use villus_flows::{FlowEvent, Names, PortProto, Record, State, WhyQuery};
use villus_path::memory::Memory;
use villus_why::{Party, Question, why};

use crate::{
    connect::Host,
    failure::{DIFFERS, Failure},
    identity_names::EventNames,
    kernel::{Kernel, PlaceArgs},
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus why client server 8080/tcp\n  villus why 10.15.0.2 1.1.1.1 53/udp\n  \
                  villus why 794 fd00::7 8/icmp\n  villus monitor -j --type drop | villus why --event\n\n\
                  SRC and DST are addresses or anything that names an endpoint: its id, owner or namespace. For\n\
                  ICMP the port is the message's type. The kernel's maps and the wanted state are both asked; exit\n\
                  code 3 if they come to different verdicts. Without an agent the kernel's maps are asked\n\
                  alone, about addresses and numbers of endpoints."
)]
pub struct WhyArgs {
    /// Who sends.
    #[arg(required_unless_present = "event")]
    src: Option<String>,
    /// Whom to.
    #[arg(required_unless_present = "event")]
    dst: Option<String>,
    /// Destination port; TCP if no protocol is given.
    #[arg(value_name = "PORT[/PROTO]", required_unless_present = "event", value_parser = port)]
    port: Option<PortProto>,
    /// Source port; a free one if not given.
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Explain the first event that standard input has, a line of `villus monitor -j`.
    #[arg(long, conflicts_with_all = ["src", "dst", "port", "source_port"])]
    event: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    places: PlaceArgs,
}

/// `80`, `53/UDP`, `8/icmp`.
pub(crate) fn port(text: &str) -> Result<PortProto, String> {
    text.parse().map_err(|error: villus_flows::WhyError| error.to_string())
}

pub fn run(host: &Host, args: &WhyArgs) -> Result<(), Failure> {
    let request = match (&args.src, &args.dst, args.port) {
        (Some(src), Some(dst), Some(port)) => WhyRequest {
            src: src.clone(),
            dst: dst.clone(),
            port: port.to_string(),
            source_port: args.source_port,
        },
        _ => request_of_event(&mut std::io::stdin().lock())?,
    };
    let reply = match host.client()?.why(&request) {
        // Maps of the kernel are there without an agent.
        Err(
            absent @ (ClientError::NotRunning { .. }
            | ClientError::Timeout { .. }
            | ClientError::Broken { .. }),
        ) => return without_agent(host, args, &request, absent),
        answer => answer?,
    };
    args.output.print(&reply, || text(&reply))?;
    if reply.agree {
        return Ok(());
    }
    out::complain("villus: the kernel's maps and the wanted state come to different verdicts");
    out::complain("  see `villus policy verify`, and `villus emergency list` for what was done by hand");
    Err(Failure::silent(DIFFERS))
}

/// What the kernel's maps say alone.
#[derive(Serialize)]
struct WithoutAgent {
    question: String,
    kernel: Explanation,
    /// Only an agent knows.
    wanted: Option<Explanation>,
    agree: Option<bool>,
}

fn without_agent(
    host: &Host,
    args: &WhyArgs,
    request: &WhyRequest,
    absent: ClientError,
) -> Result<(), Failure> {
    // Without maps there is nobody to be asked.
    let Ok(kernel) = args.places.kernel() else { return Err(absent.into()) };
    let port = port(&request.port).map_err(Failure::usage)?;
    let question = Question {
        src: party(&kernel, &request.src, host)?,
        dst: party(&kernel, &request.dst, host)?,
        port: port.port,
        proto: port.proto,
    };
    let snapshot = Snapshot::without_flows(&kernel.pins, &kernel.maps)?;
    let explanation = why(&Memory::from(&snapshot), &question).map_err(Failure::new)?;
    let names = EventNames::new();
    let reply = WithoutAgent {
        question: explanation.question(),
        kernel: explanation.reply(&|identity| names.identity(identity)),
        wanted: None,
        agree: None,
    };
    args.output.print(&reply, || {
        let mut text = format!("{}\n\n", reply.question);
        explain(&mut text, "Kernel's maps", &reply.kernel);
        text
    })?;
    out::complain(&format!("villus: {absent}"));
    out::complain(
        "  only the kernel's maps were asked: identities are numbers, and which rules ask for an entry is for the agent to say",
    );
    Ok(())
}

/// A side of the question as the kernel knows it: an address, or the number of an endpoint.
fn party(kernel: &Kernel, text: &str, host: &Host) -> Result<Party, Failure> {
    match text.parse::<EndpointRef>() {
        Ok(EndpointRef::Ip(address)) => Ok(Party::Address(address)),
        Ok(EndpointRef::Id(_)) => Ok(Party::Endpoint(kernel.endpoint(text, host)?)),
        _ => Err(Failure::new(format!("only the agent knows who {text:?} is, and it does not answer"))
            .fix("give addresses or numbers of endpoints; `villus bpf endpoint list` shows them")),
    }
}

/// The question about the first event of some lines.
fn request_of_event(lines: &mut impl BufRead) -> Result<WhyRequest, Failure> {
    const HOW: &str = "pipe lines of `villus monitor -j` into it";
    for line in lines.lines() {
        let line = line.map_err(|error| Failure::new(format!("cannot read standard input: {error}")))?;
        if line.trim().is_empty() {
            continue;
        }
        let record: Record = serde_json::from_str(&line)
            .map_err(|error| Failure::new(format!("standard input is no event: {error}")).fix(HOW))?;
        let Record::Event(event) = record else { continue };
        let query = WhyQuery::of(&event)
            .ok_or_else(|| Failure::new("the event's packet was not parsed far enough to ask about it"))?;
        return Ok(WhyRequest { source_port: source_port(&event), ..WhyRequest::from(query) });
    }
    Err(Failure::new("standard input has no event").fix(HOW))
}

/// The port of the end that opened the flow.
fn source_port(event: &FlowEvent) -> Option<u16> {
    let (src, dst) = event.packet.ports.filter(|_| !event.packet.is_icmp())?;
    Some(if event.state == State::REPLY { dst } else { src })
}

fn text(reply: &WhyReply) -> String {
    let mut text = format!("{}\n\n", reply.question);
    explain(&mut text, "Kernel's maps", &reply.kernel);
    if reply.agree && reply.kernel.steps == reply.wanted.steps {
        text.push_str(&format!("\nWanted state: {}, by the same steps\n", verdict(&reply.wanted)));
    } else {
        text.push('\n');
        explain(&mut text, "Wanted state", &reply.wanted);
    }
    text
}

fn explain(text: &mut String, title: &str, explanation: &Explanation) {
    text.push_str(&format!("{title}: {}\n", verdict(explanation)));
    let width = explanation.steps.iter().map(|step| step.stage.len()).max().unwrap_or_default();
    for (number, step) in (1..).zip(&explanation.steps) {
        push_step(text, number, width, step);
    }
}

fn push_step(text: &mut String, number: usize, width: usize, step: &Step) {
    let decided = if step.decided { "   <- decided" } else { "" };
    let whose = step.endpoint.map(|id| format!("endpoint {id}: ")).unwrap_or_default();
    text.push_str(&format!("  {number:2}. {:width$}   {whose}{}{decided}\n", step.stage, step.text));
    for line in step.keys.iter().chain(&step.because) {
        text.push_str(&format!("      {:width$}     {line}\n", ""));
    }
}

/// `DROPPED (133 Policy denied)`.
fn verdict(explanation: &Explanation) -> String {
    let verdict = explanation.verdict.to_uppercase();
    match (explanation.reason, explanation.reason_text.as_str()) {
        (Some(reason), text) => format!("{verdict} ({reason} {text})"),
        (None, _) => verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_numbered_and_the_deciding_one_is_marked() {
        let step = |stage: &str, decided| Step {
            stage: stage.into(),
            text: "said so".into(),
            endpoint: Some(7),
            keys: vec!["ingress from identity 3, 80/TCP: not found".into()],
            because: vec!["default deny by CiliumNetworkPolicy default/web spec (web.yaml:4)".into()],
            decided,
        };
        let explanation = Explanation {
            verdict: "dropped".into(),
            reason: Some(133),
            reason_text: "Policy denied".into(),
            leaving: None,
            steps: vec![step("flow", false), step("ingress policy", true)],
        };
        let reply = WhyReply {
            question: "a -> b".into(),
            kernel: explanation.clone(),
            wanted: explanation,
            agree: true,
        };
        let text = text(&reply);
        assert!(text.contains("Kernel's maps: DROPPED (133 Policy denied)"), "{text}");
        assert!(text.contains("2. ingress policy   endpoint 7: said so   <- decided"), "{text}");
        assert!(text.contains("Wanted state: DROPPED (133 Policy denied), by the same steps"), "{text}");
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for (lines, needle) in [("", "no event"), ("{}\n", "is no event"), ("hello\n", "is no event")] {
            let failure = request_of_event(&mut lines.as_bytes()).unwrap_err();
            assert!(failure.what.contains(needle), "{lines:?}: {}", failure.what);
        }
    }
}
