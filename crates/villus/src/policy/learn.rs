//! `villus policy learn`.

use clap::{Args, ValueEnum};
use villus_api::EndpointRef;
use villus_flows::Direction;
use villus_labels::{KEY_CLUSTER, KEY_NAMESPACE, Label, Labels, Operator, Selector};
use villus_rollout::{Choice, LearnError, PeerKeys, World, learn};

use super::observed::FlowArgs;
use crate::{
    connect::{Host, endpoint_ref},
    failure::Failure,
    out::{self, OutputArgs},
};

/// Addresses outside from which on one is asked whether the world was meant.
const MANY: usize = 100;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy learn --endpoint 794 > web.yaml\n  villus policy learn --selector app=web \
                  --namespace shop --flows node1.log node2.log.gz > web.yaml\n  villus policy learn --selector app=web \
                  --audited --name web-more\n\nThe same flows give the same text. It allows what was seen to pass and denies \
                  the rest; a direction in which nothing was seen is denied whole, so observe for long enough."
)]
pub struct LearnArgs {
    /// Draft for this endpoint: for all that have its labels.
    #[arg(long, value_parser = endpoint_ref, conflicts_with = "selector")]
    endpoint: Option<EndpointRef>,
    /// Draft for the endpoints with these labels, such as app=web,tier=front.
    #[arg(long, value_name = "LABELS", required_unless_present = "endpoint")]
    selector: Option<String>,
    #[command(flatten)]
    flows: FlowArgs,
    /// Name of the policy; made from the labels if not given.
    #[arg(long)]
    name: Option<String>,
    /// Namespace of the endpoints and of the policy; that of the flows if not given.
    #[arg(long)]
    namespace: Option<String>,
    /// Only this direction.
    #[arg(long, value_enum)]
    direction: Option<Side>,
    /// Only what audit mode let pass: an addition to the policies in force.
    #[arg(long)]
    audited: bool,
    /// Also what policy denied.
    #[arg(long)]
    denied: bool,
    /// How addresses outside are written: each by itself, or as the entity world.
    #[arg(long, value_enum, default_value = "cidr")]
    world: Outside,
    /// Name peers by these labels only, separated by commas, such as app or k8s:app.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    peer_labels: Vec<String>,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Side {
    Ingress,
    Egress,
}

#[derive(ValueEnum, Clone, Copy, Debug)]
enum Outside {
    Cidr,
    Entity,
}

pub fn run(host: &Host, args: LearnArgs) -> Result<(), Failure> {
    let (subject, subject_labels) = subject(host, &args)?;
    let observations = args.flows.read_or_ask(host)?;
    let choice = Choice {
        name: args.name.unwrap_or_else(|| name_for(subject_labels.as_ref(), &subject)),
        subject,
        subject_labels,
        namespace: args.namespace,
        directions: match args.direction {
            None => Direction::ALL.to_vec(),
            Some(Side::Ingress) => vec![Direction::Ingress],
            Some(Side::Egress) => vec![Direction::Egress],
        },
        audited_only: args.audited,
        denied_too: args.denied,
        world: match args.world {
            Outside::Cidr => World::Addresses,
            Outside::Entity => World::Entity,
        },
        keys: match args.peer_labels.is_empty() {
            true => PeerKeys::All,
            false => PeerKeys::Only(args.peer_labels),
        },
    };
    let draft = learn(&observations, &choice).map_err(failure)?;
    for skipped in &draft.skipped {
        out::complain(&format!("not in the draft: {skipped}"));
    }
    if draft.addresses > MANY {
        let many = draft.addresses;
        out::complain(&format!(
            "{many} addresses outside are named; --world entity allows the world instead"
        ));
    }
    args.output.print(&draft, || draft.text.clone())
}

/// Whom the draft is for: the labels of an endpoint, or a selector.
fn subject(host: &Host, args: &LearnArgs) -> Result<(Selector, Option<Labels>), Failure> {
    let Some(endpoint) = &args.endpoint else {
        let text = args.selector.as_deref().unwrap_or_default();
        let selector =
            Selector::parse(text).map_err(|error| Failure::usage(format!("--selector: {error}")))?;
        return Ok((selector, None));
    };
    let identity = host.client()?.endpoint(endpoint)?.status.identity;
    let texts = identity.map(|identity| identity.labels).unwrap_or_default();
    let parsed: Result<Vec<Label>, _> = texts.iter().map(|text| text.parse::<Label>()).collect();
    let labels = parsed.and_then(Labels::new).map_err(Failure::new)?;
    if labels.is_empty() {
        return Err(Failure::new(format!("endpoint {endpoint} has no labels yet"))
            .fix("wait until `villus endpoint get` shows its identity"));
    }
    let selector = labels.iter().fold(Selector::everything(), |all, label| all.requiring(label));
    Ok((selector, Some(labels)))
}

/// `web-learned` of `k8s:app=web`.
fn name_for(labels: Option<&Labels>, selector: &Selector) -> String {
    let of_labels =
        labels.into_iter().flatten().map(|label| (label.key().to_owned(), label.value().to_owned()));
    let of_selector = selector.requirements().iter().filter_map(|requirement| match &requirement.operator {
        Operator::In(values) => Some((requirement.key.key().to_owned(), values.first()?.to_string())),
        _ => None,
    });
    let named = of_labels.chain(of_selector).find(|(key, value)| {
        !value.is_empty() && !key.starts_with("io.cilium.k8s.") && key != KEY_NAMESPACE && key != KEY_CLUSTER
    });
    let value = named.map(|(_, value)| value.to_ascii_lowercase()).unwrap_or_default();
    let plain: String = value
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' })
        .collect();
    match plain.trim_matches(['-', '.']) {
        "" => "learned".to_owned(),
        name => format!("{name}-learned"),
    }
}

fn failure(error: LearnError) -> Failure {
    match error {
        LearnError::Nothing { .. } => Failure::new(error).fix("see `villus monitor` for what there is"),
        LearnError::Namespaces(_) | LearnError::Name(_) => Failure::usage(error),
    }
}
