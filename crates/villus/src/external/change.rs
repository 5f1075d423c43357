//! `villus external add`, `import` and `delete`.

use std::{collections::BTreeSet, net::IpAddr};

use clap::Args;
use serde::Serialize;
use serde_json::json;
use villus_external::{Outcome, Problems, Wanted, What, Writing, read_objects, read_spec};

use super::PlaceArgs;
use crate::{
    connect::Host,
    failure::{FAILED, Failure},
    out::{self, OutputArgs},
    policy::files,
};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus external add db-7 --kind vm --address 10.9.0.5 --address fd00:9::5 --label app=db\n  \
                        villus external add gpu-1 --kind baremetal --address 10.9.1.1 --label app=gpu --ttl 1h --dry-run\n\n\
                        Saying the same again changes nothing; with --ttl it begins anew. Labels without a source are k8s."
)]
pub struct AddArgs {
    /// Its name, unique among the resources of the cluster.
    name: String,
    /// What it is: vm, baremetal, pod or other.
    #[arg(long, value_name = "KIND", default_value = "other", value_parser = ["vm", "baremetal", "pod", "other"])]
    kind: String,
    /// An address that it sends from, of either family; repeat it for more.
    #[arg(long, value_name = "ADDRESS", required = true)]
    address: Vec<IpAddr>,
    /// A label, SOURCE:KEY=VALUE; repeat it for more.
    #[arg(long, value_name = "LABEL", required = true)]
    label: Vec<String>,
    /// Name of the node that it lives behind, where nodes tunnel.
    #[arg(long, value_name = "NAME", conflicts_with = "behind")]
    node: Option<String>,
    /// Address of the node that it lives behind, where nodes tunnel.
    #[arg(long, value_name = "ADDRESS")]
    behind: Option<IpAddr>,
    /// How long it stays without being said again; for ever if not given.
    #[arg(long, value_name = "DURATION")]
    ttl: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus external import vms.yaml\n  openstack-export | villus external import - --dry-run\n\n\
                        Everything is checked first; then each resource is written whole or refused with the reason. \
                        Exit code 1 if one is refused."
)]
pub struct ImportArgs {
    /// Files of objects of kind ExternalResource, YAML or JSON, directories of them, - for standard input.
    #[arg(required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus external delete db-7 db-8\n  villus external delete -f vms.yaml --dry-run"
)]
pub struct DeleteArgs {
    /// Names of resources.
    #[arg(required_unless_present = "file")]
    names: Vec<String>,
    /// The resources of this file too; - for standard input.
    #[arg(short, long, value_name = "PATH", value_hint = clap::ValueHint::FilePath)]
    file: Vec<String>,
    #[command(flatten)]
    write: WriteArgs,
}

#[derive(Args, Debug)]
struct WriteArgs {
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: PlaceArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// What became of a resource, for output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    dry_run: bool,
}

pub fn add(host: &Host, args: &AddArgs) -> Result<(), Failure> {
    let mut spec = json!({"kind": args.kind, "addresses": args.address, "labels": args.label});
    if let Some(node) = &args.node {
        spec["node"] = json!(node);
    }
    if let Some(behind) = args.behind {
        spec["host"] = json!(behind);
    }
    if let Some(ttl) = &args.ttl {
        spec["ttl"] = json!(ttl);
    }
    let wanted = read_spec(&args.name, spec.to_string().as_bytes()).map_err(bad)?;
    put(host, vec![wanted], &args.write)
}

pub fn import(host: &Host, args: &ImportArgs) -> Result<(), Failure> {
    put(host, read(&args.files)?, &args.write)
}

/// The resources of all files. What is in two of them is refused with the rest of what is wrong.
fn read(names: &[String]) -> Result<Vec<Wanted>, Failure> {
    let (mut all, mut problems) = (Vec::new(), Vec::new());
    for file in files::read(names)? {
        match read_objects(&file.name, &file.text) {
            Ok(wanted) => all.extend(wanted),
            Err(Problems(more)) => problems.extend(more),
        }
    }
    if problems.is_empty() {
        problems = villus_external::doubles(&all);
    }
    if problems.is_empty() { Ok(all) } else { Err(bad(Problems(problems))) }
}

fn bad(problems: Problems) -> Failure {
    villus_external::ExternalError::Bad(problems).into()
}

fn put(host: &Host, wanted: Vec<Wanted>, args: &WriteArgs) -> Result<(), Failure> {
    let place = &args.place;
    let outcomes =
        place.with(host, async |externals, author| externals.put(wanted, &args.how(author)).await)?;
    args.print(outcomes)
}

pub fn delete(host: &Host, args: &DeleteArgs) -> Result<(), Failure> {
    let mut names: BTreeSet<String> = args.names.iter().cloned().collect();
    if !args.file.is_empty() {
        names.extend(read(&args.file)?.into_iter().map(|wanted| wanted.name));
    }
    let write = &args.write;
    let outcomes = write
        .place
        .with(host, async |externals, author| externals.delete(names, &write.how(author)).await)?;
    write.print(outcomes)
}

// === impl WriteArgs ===

impl WriteArgs {
    fn how(&self, author: String) -> Writing {
        Writing { author, dry_run: self.dry_run }
    }

    fn print(&self, outcomes: Vec<Outcome>) -> Result<(), Failure> {
        let rows: Vec<Row> = outcomes.into_iter().map(|outcome| Row::of(outcome, self.dry_run)).collect();
        let failed = rows.iter().filter(|row| row.error.is_some()).count();
        self.output.print(&rows, || rows.iter().filter_map(Row::line).collect())?;
        if self.output.is_text() && rows.len() > 1 {
            let done = rows.len() - failed;
            let would = if self.dry_run { " would be" } else { "" };
            out::line(&format!("{done} of {} resources{would} as asked for, {failed} refused", rows.len()))?;
        }
        if failed > 0 { Err(Failure::silent(FAILED)) } else { Ok(()) }
    }
}

// === impl Row ===

impl Row {
    fn of(outcome: Outcome, dry_run: bool) -> Self {
        let identity = outcome.record.map(|record| record.identity.0).filter(|number| *number > 0);
        let (result, error) = match outcome.result {
            Ok(what) => (what.name(), None),
            Err(refusal) => ("refused", Some(refusal.to_string())),
        };
        Self { name: outcome.name, result, identity, error, dry_run }
    }

    /// Nothing for what stays as it is.
    fn line(&self) -> Option<String> {
        let would = if self.dry_run { "would be " } else { "" };
        let identity = self.identity.map(|number| format!(", identity {number}")).unwrap_or_default();
        match &self.error {
            Some(error) => Some(format!("{} {would}refused: {error}\n", self.name)),
            None if self.result == What::Unchanged.name() => None,
            None => Some(format!("{} {would}{}{identity}\n", self.name, self.result)),
        }
    }
}
