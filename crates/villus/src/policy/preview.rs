//! `villus policy preview`.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use villus_api::model::{Identity, PolicyName, PolicyText, PreviewRequest};
use villus_flows::protocol_name;
use villus_labels::{Label, Labels, NumericIdentity};
use villus_policy::{Audit, NamedPort, ObjectKey, ParsedFile, parse};
use villus_print::Table;
use villus_rollout::{
    EndpointChange, Entry, FlowChange, Numbers, Objects, Outcome, Plan, Preview, Step, preview, subjects_of,
};

use super::{files, observed::FlowArgs, validate};
use crate::{
    connect::Host,
    failure::Failure,
    kernel::{ConfigArgs, policy_settings},
    out::OutputArgs,
};

/// Flows that pass now would be dropped.
const DENIES: u8 = 4;
/// Flows that policy allows now would pass by audit mode only.
const AUDITS: u8 = 5;
/// A policy would not fit its map.
const OVERFLOWS: u8 = 6;
/// Lines of a table for people; `-o json` has them all.
const SHOWN: usize = 40;

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy preview web.yaml\n  villus policy preview web.yaml --enforced -o json\n  \
                  villus policy preview --delete web --namespace shop\n  villus policy preview web.yaml --policies \
                  policies/ --flows node1.log node2.log\n\nNothing is changed. With --policies no agent is asked: endpoints \
                  are those that the flows show, by their labels, and options those of --config-dir or --config.\n\nExit codes: 0 no observed flow would be denied; 4 \
                  some that pass now would be dropped; 5 none would be dropped, but some that policy allows now would \
                  pass by audit mode only; 6 an endpoint's policy would not fit its map; 1 and 2 as always."
)]
pub struct PreviewArgs {
    /// Files of policies that would be imported, directories of them, - for standard input.
    #[arg(required_unless_present = "delete", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// Names of policies that would be deleted.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    delete: Vec<String>,
    /// Namespace of the policies that would be deleted.
    #[arg(long, default_value = "", hide_default_value = true, requires = "delete")]
    namespace: String,
    #[command(flatten)]
    flows: FlowArgs,
    /// Ask no agent: the policies in force are those of these files and directories.
    #[arg(long, value_name = "PATH", num_args = 1.., requires = "flows", value_hint = clap::ValueHint::AnyPath)]
    policies: Option<Vec<String>>,
    /// Identities beside those of the flows: what `villus identity list -o json` printed.
    #[arg(long, value_name = "FILE", requires = "policies", value_hint = clap::ValueHint::FilePath)]
    identities: Option<String>,
    /// Name of the cluster, for entities and selectors of clusters, in place of what the options say.
    #[arg(long, value_name = "NAME", requires = "policies")]
    cluster_name: Option<String>,
    /// Options that change what policies mean, with --policies.
    #[command(flatten)]
    config: ConfigArgs,
    /// Judge as if audit mode were off everywhere.
    #[arg(long)]
    enforced: bool,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, args: &PreviewArgs) -> Result<(), Failure> {
    if args.policies.is_none() && args.config.is_given() {
        return Err(Failure::usage("the agent that is asked has options of its own")
            .fix("leave out --config-dir and --config, or give --policies to ask no agent"));
    }
    let files = files::read(&args.files)?;
    validate::refuse(&files)?;
    let preview = match &args.policies {
        Some(policies) => offline(args, policies, files)?,
        None => {
            let request = PreviewRequest {
                files: files
                    .into_iter()
                    .map(|file| PolicyText { file: file.name, text: file.text })
                    .collect(),
                delete: names(args),
                observations: args.flows.read(&|_| None)?,
                enforced: args.enforced,
            };
            host.client()?.preview_policy(&request)?
        }
    };
    args.output.print(&preview, || text(&preview))?;
    match (preview.overflows(), preview.newly_denied(), preview.newly_audited()) {
        (1.., _, _) => Err(Failure::silent(OVERFLOWS)),
        (_, 1.., _) => Err(Failure::silent(DENIES)),
        (_, _, 1..) => Err(Failure::silent(AUDITS)),
        _ => Ok(()),
    }
}

fn names(args: &PreviewArgs) -> Vec<PolicyName> {
    let name = |name: &String| PolicyName { name: name.clone(), namespace: args.namespace.clone() };
    args.delete.iter().map(name).collect()
}

// === without an agent ===

fn offline(args: &PreviewArgs, policies: &[String], files: Vec<files::File>) -> Result<Preview, Failure> {
    let Known { identities, ports } = match &args.identities {
        Some(file) => read_identities(file)?,
        None => Known::default(),
    };
    let known = |identity: u32| identities.get(&NumericIdentity(identity)).cloned();
    let observations = args.flows.read(&known)?.unwrap_or_default();
    let before = Objects { ports, ..objects(files::read_any(policies)?)? };
    let mut after = before.clone();
    for PolicyName { name, namespace } in names(args) {
        let gone = after.remove(|key| {
            *key.name == *name
                && (namespace.is_empty() || key.namespace.as_deref() == Some(namespace.as_str()))
        });
        if !gone {
            return Err(Failure::new(format!("no policy {name} is in {}", policies.join(", "))));
        }
    }
    for file in files {
        put(&mut after, parsed(&file)?);
    }
    let config = args.config.load(args.cluster_name.as_deref())?;
    let settings = policy_settings(&config)?;
    let plan = Plan {
        before,
        after,
        subjects: subjects_of(&observations),
        numbers: Numbers::new(identities, []).with_node_prefixes(config.policy.cidr_matches_nodes),
        audit: if args.enforced { Audit::NONE } else { config.policy.audit.into() },
        max_entries: settings.max_entries,
        settings,
    };
    Ok(preview(plan, &observations))
}

fn objects(files: Vec<files::File>) -> Result<Objects, Failure> {
    let mut objects = Objects::default();
    for file in &files {
        put(&mut objects, parsed(file)?);
    }
    Ok(objects)
}

fn parsed(file: &files::File) -> Result<ParsedFile, Failure> {
    parse(&file.name, &file.text).map_err(Failure::new)
}

/// Puts a file's objects in place of those of their names, whichever file had them.
fn put(objects: &mut Objects, file: ParsedFile) {
    let policies = file.policies.iter().map(|policy| &policy.key);
    let keys: Vec<ObjectKey> =
        policies.chain(file.referents.iter().map(|referent| &referent.key)).cloned().collect();
    objects.remove(|old| {
        keys.iter().any(|new| (old.kind, &old.namespace, &old.name) == (new.kind, &new.namespace, &new.name))
    });
    objects.put(file);
}

/// Who there is: labels and named ports.
#[derive(Default)]
struct Known {
    identities: BTreeMap<NumericIdentity, Labels>,
    ports: BTreeMap<NumericIdentity, BTreeSet<NamedPort>>,
}

fn read_identities(file: &str) -> Result<Known, Failure> {
    let failed = |problem: String| {
        Failure::new(format!("{file}: {problem}")).fix("write it with `villus identity list -o json`")
    };
    let text = std::fs::read_to_string(file).map_err(|error| failed(error.to_string()))?;
    let list: Vec<Identity> = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
    let mut known = Known::default();
    for Identity { id, labels, named_ports, .. } in list {
        let parsed: Result<Vec<Label>, _> = labels.iter().map(|text| text.parse::<Label>()).collect();
        let labels =
            parsed.and_then(Labels::new).map_err(|error| failed(format!("identity {id}: {error}")))?;
        let ports: Result<BTreeSet<NamedPort>, _> = named_ports.iter().map(|text| text.parse()).collect();
        let ports = ports.map_err(|error| failed(format!("identity {id}: {error}")))?;
        known.identities.insert(NumericIdentity(id), labels);
        known.ports.insert(NumericIdentity(id), ports);
    }
    Ok(known)
}

// === for people ===

fn text(preview: &Preview) -> String {
    let mut text = String::new();
    if !preview.policies.is_empty() {
        let mut table = Table::new(["POLICY", "CHANGE"]);
        for step in &preview.policies {
            let name = match step.step {
                Step::Added => "added",
                Step::Replaced => "replaced",
                Step::Deleted => "deleted",
            };
            table.row([step.policy.as_str(), name]);
        }
        push(&mut text, &table);
    }
    endpoints(preview, &mut text);
    flows(preview, &mut text);
    text.push_str(&summary(preview));
    text
}

fn push(text: &mut String, table: &Table) {
    text.push_str(&table.render());
    text.push('\n');
}

fn endpoints(preview: &Preview, text: &mut String) {
    if preview.endpoints.is_empty() {
        return;
    }
    let mut table =
        Table::new(["ENDPOINT", "LABELS", "ENTRIES", "ADDED", "REMOVED", "ALTERED", "INGRESS", "EGRESS"]);
    let mut entries =
        Table::new(["ENDPOINT", "ENTRY", "POLICY", "DIRECTION", "IDENTITY", "LABELS", "PORT/PROTO"]);
    let mut lines = 0;
    for change in &preview.endpoints {
        let [before, after] = change.entries;
        let counts =
            [&change.added, &change.removed, &change.altered].map(|entries| entries.len().to_string());
        let [added, removed, altered] = counts;
        let (ingress, egress) = (enforcement(change, 0), enforcement(change, 1));
        let total = format!("{before} -> {after}");
        table.row([id(change), change.labels.to_string(), total, added, removed, altered, ingress, egress]);
        let kinds = [("added", &change.added), ("removed", &change.removed), ("altered", &change.altered)];
        for (kind, list) in kinds {
            for entry in list {
                lines += 1;
                if lines <= SHOWN {
                    entries.row(entry_row(change, kind, entry));
                }
            }
        }
    }
    push(text, &table);
    if lines > 0 {
        push(text, &entries);
    }
    more(text, lines, "entries");
    for change in preview.endpoints.iter().filter(|change| change.problem.is_some()) {
        let problem = change.problem.as_deref().unwrap_or_default();
        text.push_str(&format!("endpoint {} keeps its entries: {problem}\n\n", id(change)));
    }
}

fn entry_row(change: &EndpointChange, kind: &str, entry: &Entry) -> [String; 7] {
    let action = if entry.deny { "deny" } else { "allow" };
    let identity = match entry.identity {
        Some(0) => "ANY".to_owned(),
        Some(identity) => identity.to_string(),
        None => "-".to_owned(),
    };
    [
        id(change),
        kind.to_owned(),
        action.to_owned(),
        entry.direction.clone(),
        identity,
        entry.labels.clone(),
        port(entry.port, entry.end_port, entry.protocol),
    ]
}

fn id(change: &EndpointChange) -> String {
    if change.id == 0 { "-".to_owned() } else { change.id.to_string() }
}

fn enforcement(change: &EndpointChange, side: usize) -> String {
    let word = |on: bool| if on { "enforced" } else { "free" };
    let (before, after) = (word(change.enforced_before[side]), word(change.enforced_after[side]));
    if before == after { before.to_owned() } else { format!("{before} -> {after}") }
}

fn port(first: u16, last: Option<u16>, protocol: u8) -> String {
    let name = match protocol {
        0 => return "ANY".to_owned(),
        known => protocol_name(known).map_or_else(|| known.to_string(), str::to_uppercase),
    };
    match (first, last) {
        (0, None) => name,
        (first, None) => format!("{first}/{name}"),
        (first, Some(last)) => format!("{first}-{last}/{name}"),
    }
}

fn flows(preview: &Preview, text: &mut String) {
    if preview.flows.is_empty() {
        return;
    }
    let mut table = Table::new([
        "VERDICT",
        "DIRECTION",
        "SOURCE",
        "DESTINATION",
        "PORT/PROTO",
        "SEEN",
        "LAST SEEN",
        "BY",
    ]);
    for change in preview.flows.iter().take(SHOWN) {
        table.row(flow_row(change));
    }
    push(text, &table);
    more(text, preview.flows.len(), "flows");
}

fn flow_row(change: &FlowChange) -> [String; 8] {
    let flow = &change.flow;
    let protocol = protocol_name(flow.protocol).map_or_else(|| flow.protocol.to_string(), str::to_uppercase);
    [
        format!("{} -> {}", change.before.name(), change.after.name()),
        change.direction.clone(),
        flow.source.to_string(),
        flow.destination.to_string(),
        format!("{}/{protocol}", flow.port),
        change.seen.count.to_string(),
        change.seen.last.map(|last| last.to_string()).unwrap_or_default(),
        change.by.join("; "),
    ]
}

fn more(text: &mut String, all: usize, what: &str) {
    if all > SHOWN {
        text.push_str(&format!("… and {} more {what}; -o json shows all\n\n", all - SHOWN));
    }
}

fn summary(preview: &Preview) -> String {
    let allowed = preview.flows.iter().filter(|flow| flow.after == Outcome::Allowed).count();
    format!(
        "{} of {} endpoints would differ; of {} different flows {} would be denied, {} audited, {} newly allowed\n",
        preview.endpoints.len(),
        preview.compared,
        preview.judged,
        preview.newly_denied(),
        preview.newly_audited(),
        allowed
    )
}
