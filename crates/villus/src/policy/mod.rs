//! `villus policy`.

mod audit;
mod cluster;
mod confirm;
pub mod files;
mod hold;
mod learn;
mod maps;
mod observed;
mod preview;
mod reach;
mod scene;
mod trace;
mod validate;
mod verify;

use clap::{Args, Subcommand};
use villus_api::model::{
    Policy, PolicyChange, PolicyDelete, PolicyImport, PolicyOrigin, PolicyQuery, PolicyWaitQuery, StalePolicy,
};
use villus_print::{SelectorRow, selector_list};

use crate::{
    connect::Host,
    failure::Failure,
    out::{self, OutputArgs},
};

#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// Import the policies of files, all or none.
    Import(ImportArgs),
    /// Delete imported policies, or one of all nodes of the cluster.
    Delete(Box<DeleteArgs>),
    /// Put policies of files in force on all nodes of the cluster, through the shared store.
    Apply(cluster::ApplyArgs),
    /// List the versions of a policy of the cluster.
    History(cluster::HistoryArgs),
    /// Go back to an older version of a policy of the cluster.
    Rollback(cluster::RollbackArgs),
    /// Write back to the shared store what it has lost and this node still has in force.
    Restore(cluster::RestoreArgs),
    /// Show which nodes of the cluster have realised its policies.
    Status(cluster::StatusArgs),
    /// Show the policies in force, groups and services, as JSON.
    Get(GetArgs),
    /// Say what files hold and what is wrong with them; needs no agent.
    Validate(validate::ValidateArgs),
    /// Say what a change of policies would do to maps and to observed flows, before it is made.
    Preview(preview::PreviewArgs),
    /// Draft the least policy that lets observed flows pass.
    Learn(learn::LearnArgs),
    /// Do a change that waits because it touches more than policy-change-limit allows.
    Confirm(confirm::ConfirmArgs),
    /// Drop a change that waits to be confirmed.
    Reject(confirm::RejectArgs),
    /// Show selectors and the identities they select.
    #[command(after_help = "Example:\n  villus policy selectors")]
    Selectors {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Wait until every endpoint's policy is at a revision.
    Wait(WaitArgs),
    /// Say what rules make of a flow between two, rule by rule.
    Trace(trace::TraceArgs),
    /// List who may reach a server on a port.
    WhoCan(reach::WhoCanArgs),
    /// List whom a client may reach, and on which ports.
    CanReach(reach::CanReachArgs),
    /// Let what policy denies to a selector's endpoints pass, and report it.
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// Compare the kernel's maps with what policy asks for.
    Verify(verify::VerifyArgs),
    /// Keep the agent's hands off an endpoint's policy map.
    Hold(hold::HoldArgs),
    /// End a hold: the agent makes the map what policy asks for.
    Release(hold::ReleaseArgs),
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy import web.yaml db.yaml\n  villus policy import --wait policies/\n  \
                  kubectl get cnp -o yaml | villus policy import -"
)]
pub struct ImportArgs {
    /// Files of YAML or JSON, directories of them, - for standard input.
    #[arg(required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Wait until every endpoint's policy is as the files say.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy delete web --namespace shop\n  villus policy delete --all --dry-run\n  \
                  villus policy delete --cluster shop/web"
)]
pub struct DeleteArgs {
    /// Name of the policy.
    #[arg(required_unless_present_any = ["labels", "all"])]
    name: Option<String>,
    /// Its namespace.
    #[arg(long, default_value = "", hide_default_value = true)]
    namespace: String,
    /// Rules with all these labels, separated by commas.
    #[arg(short, long, conflicts_with_all = ["name", "all"])]
    labels: Option<String>,
    /// All that were imported.
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// The policy of all nodes of the cluster, in the shared store.
    #[arg(long, requires = "name", conflicts_with_all = ["labels", "all"])]
    cluster: bool,
    /// Say what would be deleted, and delete nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: cluster::ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus policy get\n  villus policy get web --namespace shop -o yaml")]
pub struct GetArgs {
    /// Only policies of this name.
    #[arg(default_value = "", hide_default_value = true)]
    name: String,
    /// Only policies of this namespace.
    #[arg(long, default_value = "", hide_default_value = true)]
    namespace: String,
    /// Only rules with all these labels, separated by commas.
    #[arg(short, long, default_value = "", hide_default_value = true)]
    labels: String,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus policy wait 12 --timeout 30")]
pub struct WaitArgs {
    /// The revision; the newest if not given.
    #[arg(default_value_t = 0, hide_default_value = true)]
    revision: u64,
    /// Give up after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u32,
    #[command(flatten)]
    output: OutputArgs,
}

pub fn run(host: &Host, command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Import(args) => import(host, &args),
        PolicyCommand::Delete(args) => delete(host, *args),
        PolicyCommand::Apply(args) => cluster::apply(host, &args),
        PolicyCommand::History(args) => cluster::history(host, &args),
        PolicyCommand::Rollback(args) => cluster::rollback(host, &args),
        PolicyCommand::Restore(args) => cluster::restore(host, &args),
        PolicyCommand::Status(args) => cluster::status(host, &args),
        PolicyCommand::Get(args) => get(host, args),
        PolicyCommand::Validate(args) => validate::run(&args),
        PolicyCommand::Preview(args) => preview::run(host, &args),
        PolicyCommand::Learn(args) => learn::run(host, args),
        PolicyCommand::Confirm(args) => confirm::confirm(host, &args),
        PolicyCommand::Reject(args) => confirm::reject(host, &args),
        PolicyCommand::Selectors { output } => {
            let selectors = host.client()?.selectors()?;
            let rows: Vec<SelectorRow> = selectors.iter().map(SelectorRow::from).collect();
            output.print(&selectors, || selector_list(&rows))
        }
        PolicyCommand::Wait(args) => wait(host, args.revision, args.timeout, &args.output),
        PolicyCommand::Trace(args) => trace::run(host, &args),
        PolicyCommand::WhoCan(args) => reach::who_can(host, &args),
        PolicyCommand::CanReach(args) => reach::can_reach(host, &args),
        PolicyCommand::Audit(command) => audit::run(host, command),
        PolicyCommand::Verify(args) => verify::run(host, args),
        PolicyCommand::Hold(args) => hold::hold(host, &args),
        PolicyCommand::Release(args) => hold::release(host, &args),
    }
}

fn import(host: &Host, args: &ImportArgs) -> Result<(), Failure> {
    let files = files::read(&args.files)?;
    // Nothing is imported when any file is wrong.
    validate::refuse(&files)?;
    let client = host.client()?;
    let mut all = PolicyChange { dry_run: args.dry_run, ..PolicyChange::default() };
    for file in files {
        let import = PolicyImport { file: file.name, dry_run: args.dry_run, text: file.text };
        let change = client.import_policy(&import)?;
        all.revision = all.revision.max(change.revision);
        all.added.extend(change.added);
        all.replaced.extend(change.replaced);
        all.deleted.extend(change.deleted);
        all.warnings.extend(change.warnings);
        all.waiting = change.waiting.or(all.waiting);
    }
    args.output.print(&all, || changed(&all))?;
    waits(&all)?;
    if args.wait && !args.dry_run {
        return wait(host, all.revision, 60, &args.output);
    }
    Ok(())
}

fn delete(host: &Host, args: DeleteArgs) -> Result<(), Failure> {
    if args.cluster {
        let name = args.name.unwrap_or_default();
        let name = if args.namespace.is_empty() { name } else { format!("{}/{name}", args.namespace) };
        return cluster::delete(host, &args.place, &name, args.dry_run, &args.output);
    }
    let delete = PolicyDelete {
        name: args.name.unwrap_or_default(),
        namespace: args.namespace,
        labels: args.labels.unwrap_or_default(),
        all: args.all,
        dry_run: args.dry_run,
    };
    let change = host.client()?.delete_policy(&delete)?;
    args.output.print(&change, || changed(&change))?;
    waits(&change)
}

/// What waits has not been done.
fn waits(change: &PolicyChange) -> Result<(), Failure> {
    if change.waiting.is_some() { Err(Failure::silent(confirm::WAITS)) } else { Ok(()) }
}

fn changed(change: &PolicyChange) -> String {
    let would = if change.dry_run { "would be " } else { "" };
    let mut text = String::new();
    for (names, what) in
        [(&change.added, "added"), (&change.replaced, "replaced"), (&change.deleted, "deleted")]
    {
        names.iter().for_each(|name| text.push_str(&format!("{name} {would}{what}\n")));
    }
    change.warnings.iter().for_each(|warning| text.push_str(&format!("Warning: {warning}\n")));
    if let Some(waiting) = &change.waiting {
        text.push_str(&confirm::line(waiting));
    }
    if text.is_empty() {
        text.push_str("nothing changes\n");
    }
    if change.dry_run { text } else { format!("{text}Revision: {}\n", change.revision) }
}

fn get(host: &Host, args: GetArgs) -> Result<(), Failure> {
    let query = PolicyQuery { name: args.name, namespace: args.namespace, labels: args.labels };
    let Policy { policy, revision, waiting, origins, stale, .. } = host.client()?.policy(&query)?;
    let rules: serde_json::Value = serde_json::from_str(&policy)
        .map_err(|error| Failure::new(format!("the agent's rules are no JSON: {error}")))?;
    args.output.print(&rules, || {
        let rules = serde_json::to_string_pretty(&rules).unwrap_or(policy);
        let waiting: String = waiting.iter().map(confirm::line).collect();
        let origins: String = origins.iter().map(origin).collect();
        let stale: String = stale.iter().map(lost).collect();
        format!("{rules}\nRevision: {revision}\n{origins}{stale}{waiting}")
    })?;
    host.say_if_frozen(&args.output);
    Ok(())
}

fn origin(origin: &PolicyOrigin) -> String {
    let version = if origin.version > 0 { format!(", version {}", origin.version) } else { String::new() };
    format!("{} comes from {}{version}\n", origin.policy, origin.origin)
}

fn lost(stale: &StalePolicy) -> String {
    let stored = match stale.stored {
        0 => "has lost it".to_owned(),
        stored => format!("went back to version {stored}"),
    };
    format!("{} is stale: version {} is in force, the store {stored}\n", stale.policy, stale.version)
}

fn wait(host: &Host, revision: u64, timeout: u32, output: &OutputArgs) -> Result<(), Failure> {
    let answer = host.client()?.wait_policy(&PolicyWaitQuery { revision, timeout })?;
    if !output.is_text() {
        output.print(&answer, String::new)?;
    } else if answer.realized {
        out::line(&format!("every endpoint is at revision {}", answer.revision))?;
    }
    if answer.realized {
        return Ok(());
    }
    let waiting: Vec<String> = answer.waiting.iter().map(ToString::to_string).collect();
    let what =
        format!("not yet at revision {} after {timeout} s: endpoint {}", answer.revision, waiting.join(", "));
    Err(Failure::new(what).fix("see `villus endpoint log ID` and `villus status`"))
}
