//! Policies for all nodes: `villus policy apply`, `history`, `rollback`, `restore`, `status`, and `delete --cluster`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use clap::Args;
use serde::Serialize;
use villus_api::model::{PolicyQuery, StalePolicy};
use villus_cluster_policy::{
    Change, ClusterPolicyError, ObjectName, Policies, Realised, Standing, Version, Wanted,
};
use villus_policy::{ParsedFile, parse};
use villus_print::Table;

use super::{files, validate};
use crate::{
    connect::Host,
    failure::{DIFFERS, Failure},
    kvstore::{Shared, StoreArgs},
    out::{self, OutputArgs},
};

/// Between two looks of `--wait`.
const AGAIN: Duration = Duration::from_millis(500);
/// What ends it.
const STALE: &str = "Stale: nodes go on with what the store has lost; `villus policy restore --cluster` on one of them writes it back, \
    `villus policy apply --cluster` and `villus policy delete --cluster` say otherwise\n";

/// Which cluster's policies, in which store.
#[derive(Args, Clone, Debug, Default)]
pub struct ClusterArgs {
    /// Name of the cluster, as given to its agents [default: default].
    #[arg(long, value_name = "TEXT", help_heading = "Store")]
    cluster_name: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy apply --cluster web.yaml db.yaml\n  villus policy apply --cluster --dry-run policies/\n\n\
                  Files are checked first; objects that are as they are in the store get no new version. Up to 32 objects \
                  are one transaction."
)]
pub struct ApplyArgs {
    /// Files of YAML or JSON, directories of them, - for standard input.
    #[arg(required = true, value_hint = clap::ValueHint::AnyPath)]
    files: Vec<String>,
    /// For all nodes of the cluster, through the shared store; `policy import` is for this node.
    #[arg(long, required = true)]
    cluster: bool,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  villus policy history shop/web")]
pub struct HistoryArgs {
    /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME.
    name: String,
    #[command(flatten)]
    place: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy rollback shop/web\n  villus policy rollback shop/web 3 --dry-run\n\n\
                  Going back is a new version with the old content; what was deleted comes back likewise."
)]
pub struct RollbackArgs {
    /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME.
    name: String,
    /// The version to go back to; the one before the current one if not given.
    version: Option<u64>,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  villus policy restore --cluster --dry-run\n  villus policy restore --cluster shop/web\n\n\
                  After the store was wiped or restored from a backup agents go on with what it has lost (stale). This writes \
                  what the agent of this node has, each with the version that it had."
)]
pub struct RestoreArgs {
    /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME; all that the store has lost if not given.
    name: Option<String>,
    /// For all nodes of the cluster, through the shared store.
    #[arg(long, required = true)]
    cluster: bool,
    /// Say what would change, and change nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    place: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus policy status\n  villus policy status shop/web --wait 60\n\n\
                  Exit code 3 if a node has not realised the version that is asked for.")]
pub struct StatusArgs {
    /// NAME, NAMESPACE/NAME or KIND/NAMESPACE/NAME; all policies of the cluster if not given.
    name: Option<String>,
    /// Wait so many seconds for all nodes.
    #[arg(long, value_name = "SECONDS", requires = "name")]
    wait: Option<u64>,
    #[command(flatten)]
    place: ClusterArgs,
    #[command(flatten)]
    output: OutputArgs,
}

impl From<ClusterPolicyError> for Failure {
    fn from(error: ClusterPolicyError) -> Self {
        match error.to_string().split_once("; ") {
            Some((what, fix)) => Self::new(what).fix(fix),
            None => Self::new(error),
        }
    }
}

/// The policies of a cluster, and the store that they lie in.
struct Place {
    shared: Shared,
    cluster: String,
    policies: Policies,
}

// === impl Place ===

impl ClusterArgs {
    fn open(&self, host: &Host) -> Result<Place, Failure> {
        let flags: Vec<(&str, &str)> =
            self.cluster_name.as_deref().map(|name| ("cluster-name", name)).into_iter().collect();
        let shared = self.store.open_with(host, &flags)?;
        let cluster = shared.cluster()?;
        let policies = Policies::new(shared.store.clone(), &cluster);
        Ok(Place { shared, cluster, policies })
    }
}

impl Place {
    fn wait<T>(&self, what: impl Future<Output = Result<T, ClusterPolicyError>>) -> Result<T, Failure> {
        self.shared.run(what).map_err(|error| match error {
            ClusterPolicyError::Store(error) => self.shared.failed(&error),
            other => other.into(),
        })
    }

    /// All that are in force; what cannot be read is named.
    fn current(&self) -> Result<Vec<Standing>, Failure> {
        let (current, damaged) = self.shared.wait(self.policies.current())?;
        damaged.iter().for_each(|error| out::complain(&format!("villus: {error}")));
        Ok(current)
    }

    /// Writes changes, or only says what they are.
    fn write(&self, changes: &[Change], dry_run: bool, output: &OutputArgs) -> Result<(), Failure> {
        if !dry_run && !changes.is_empty() {
            let written = self.shared.run(self.policies.write(changes));
            if let Err((done, error)) = written {
                let failure = match error {
                    ClusterPolicyError::Store(error) => self.shared.failed(&error),
                    other => other.into(),
                };
                let all = changes.len();
                let done =
                    if done > 0 { format!("; {done} of {all} objects are written") } else { String::new() };
                return Err(Failure { what: failure.what + &done, ..failure });
            }
        }
        let rows: Vec<Row<'_>> = changes.iter().map(|change| Row::of(change, dry_run)).collect();
        output.print(&rows, || match rows.as_slice() {
            [] => "nothing changes\n".to_owned(),
            rows => rows.iter().map(Row::line).collect(),
        })
    }
}

/// A change, for output.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(flatten)]
    name: &'a ObjectName,
    what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_version: Option<u64>,
    version: u64,
    #[serde(skip_serializing_if = "str::is_empty")]
    note: &'a str,
    dry_run: bool,
}

impl<'a> Row<'a> {
    fn of(change: &'a Change, dry_run: bool) -> Self {
        let old = change.old.as_ref().map(|old| old.version);
        let what = match (old, &change.new.object) {
            (_, None) => "deleted",
            (None, _) => "added",
            (Some(_), _) => "replaced",
        };
        let Version { version, ref note, .. } = change.new;
        Self { name: &change.name, what, old_version: old, version, note, dry_run }
    }

    fn line(&self) -> String {
        let would = if self.dry_run { "would be " } else { "" };
        let was = self.old_version.map(|old| format!(", was {old}")).unwrap_or_default();
        let note = if self.note.is_empty() { String::new() } else { format!(", {}", self.note) };
        format!("{} {would}{}: version {}{was}{note}\n", self.name, self.what, self.version)
    }
}

pub fn apply(host: &Host, args: &ApplyArgs) -> Result<(), Failure> {
    let texts = files::read(&args.files)?;
    // Nothing is applied when any file is wrong.
    validate::refuse(&texts)?;
    let mut parsed = Vec::new();
    let mut holders: BTreeMap<ObjectName, &str> = BTreeMap::new();
    for file in &texts {
        let objects = parse(&file.name, &file.text).map_err(Failure::new)?;
        for name in names(&objects) {
            if let Some(other) = holders.insert(name.clone(), &file.name) {
                return Err(Failure::new(format!("{name} is in {other} and in {}", file.name))
                    .fix("keep one of them; nothing was changed"));
            }
        }
        objects.warnings.iter().for_each(|warning| out::complain(&format!("villus: warning: {warning}")));
        parsed.push(objects);
    }
    let place = args.place.open(host)?;
    let changes = place.wait(place.policies.plan(&parsed, &place.shared.author()))?;
    place.write(&changes, args.dry_run, &args.output)
}

fn names(file: &ParsedFile) -> impl Iterator<Item = ObjectName> {
    let policies = file.policies.iter().map(|policy| &policy.key);
    policies.chain(file.referents.iter().map(|referent| &referent.key)).map(ObjectName::from)
}

pub fn rollback(host: &Host, args: &RollbackArgs) -> Result<(), Failure> {
    let place = args.place.open(host)?;
    let name = place.wait(place.policies.find(&args.name))?;
    let change = place.wait(place.policies.plan_rollback(&name, args.version, &place.shared.author()))?;
    let changes: Vec<Change> = change.into_iter().collect();
    place.write(&changes, args.dry_run, &args.output)
}

pub fn restore(host: &Host, args: &RestoreArgs) -> Result<(), Failure> {
    let stale = host.client()?.policy(&PolicyQuery::default())?.stale;
    let mut wanted: Vec<Wanted> = stale.iter().map(read_stale).collect::<Result<_, _>>()?;
    if let Some(name) = &args.name {
        wanted.retain(|wanted| wanted.name.is_meant_by(name));
        if wanted.is_empty() {
            return Err(Failure::new(format!("no policy {name} is in force here that the store has lost"))
                .fix("see `villus policy get` and `villus policy status`"));
        }
    }
    let place = args.place.open(host)?;
    let changes = place.wait(place.policies.plan_restore(wanted, &place.shared.author()))?;
    place.write(&changes, args.dry_run, &args.output)
}

fn read_stale(stale: &StalePolicy) -> Result<Wanted, Failure> {
    let broken = |reason: String| Failure::new(format!("what the agent says of {}: {reason}", stale.policy));
    let name =
        ObjectName::of_suffix(&stale.key).ok_or_else(|| broken(format!("`{}` is no name", stale.key)))?;
    let object = serde_json::from_str(&stale.object).map_err(|error| broken(error.to_string()))?;
    let note = format!("restored: of {} at {}", stale.author, stale.time);
    Ok(Wanted { name, object: Some(object), note, version: Some(stale.version) })
}

/// `villus policy delete --cluster`.
pub fn delete(
    host: &Host,
    place: &ClusterArgs,
    name: &str,
    dry_run: bool,
    output: &OutputArgs,
) -> Result<(), Failure> {
    let place = place.open(host)?;
    let name = place.wait(place.policies.find(name))?;
    let change = place.wait(place.policies.plan_delete(&name, &place.shared.author()))?;
    let changes: Vec<Change> = change.into_iter().collect();
    place.write(&changes, dry_run, output)
}

pub fn history(host: &Host, args: &HistoryArgs) -> Result<(), Failure> {
    let place = args.place.open(host)?;
    let name = place.wait(place.policies.find(&args.name))?;
    let history = place.wait(place.policies.history(&name))?;
    let versions: Vec<&Version> = history.iter().map(|standing| &standing.version).collect();
    args.output.print(&versions, || {
        let mut table = Table::new(["VERSION", "TIME", "AUTHOR", "WHAT"]);
        for version in &versions {
            let what = match (version.object.is_some(), version.note.as_str()) {
                (false, _) => "deleted",
                (true, "") => "applied",
                (true, note) => note,
            };
            table.row([&version.version.to_string(), &version.time, &version.author, what]);
        }
        format!("{name}\n{}", table.render())
    })
}

/// A policy and who has realised it, for output.
#[derive(Serialize)]
struct Shown {
    #[serde(flatten)]
    name: ObjectName,
    version: u64,
    author: String,
    time: String,
    deleted: bool,
    /// The store has nothing of it: this is the highest version that nodes have in force.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lost: bool,
    realised: Realised,
}

impl Shown {
    fn of(place: &Place, standing: Standing) -> Result<Self, Failure> {
        let realised = place.shared.wait(Realised::of(&place.shared.store, &place.cluster, &standing))?;
        let Standing { name, version, .. } = standing;
        let Version { version, author, time, object, .. } = version;
        Ok(Self { name, version, author, time, deleted: object.is_none(), lost: false, realised })
    }

    /// What the store has lost and nodes have in force, as far as they name it: all, or one.
    fn lost(place: &Place, wanted: Option<&ObjectName>) -> Result<Vec<Self>, Failure> {
        let lost = place.shared.wait(place.policies.lost())?;
        if lost.is_cut_off() && wanted.is_none() {
            out::complain("villus: nodes have more policies that the store has lost than they name");
        }
        let objects = lost.objects().filter(|(name, _)| wanted.is_none_or(|wanted| wanted == name));
        let all = objects.map(|(name, nodes)| {
            let missing = nodes.iter().map(|(node, version)| (node.clone(), goes_on(*version))).collect();
            let realised = Realised { missing, stale: nodes.clone(), ..Realised::default() };
            let version = nodes.values().max().copied().unwrap_or_default();
            let (author, time) = Default::default();
            Self { name, version, author, time, deleted: false, lost: true, realised }
        });
        Ok(all.collect())
    }

    fn count(&self) -> String {
        let have = self.realised.nodes.len();
        format!("{have}/{}", have + self.realised.missing.len())
    }

    fn text(&self) -> String {
        let deleted = if self.deleted { ", deleted" } else { "" };
        let mut text = match self.lost {
            true => format!("{}: lost by the store\n", self.name),
            false => format!(
                "{}: version {}{deleted}, by {} at {}\nRealised by {} nodes\n",
                self.name,
                self.version,
                self.author,
                self.time,
                self.count()
            ),
        };
        for (node, reason) in &self.realised.missing {
            text.push_str(&format!("Missing: {node}: {reason}\n"));
        }
        let missing = &self.realised.missing;
        for (node, reason) in self.realised.frozen.iter().filter(|(node, _)| !missing.contains_key(*node)) {
            let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
            text.push_str(&format!(
                "Frozen: {node}: it gets no later version until `villus thaw` there{why}\n"
            ));
        }
        if !self.realised.stale.is_empty() {
            text.push_str(STALE);
        }
        text
    }
}

fn goes_on(version: u64) -> String {
    format!("it goes on with version {version}, which the store has lost")
}

pub fn status(host: &Host, args: &StatusArgs) -> Result<(), Failure> {
    let place = args.place.open(host)?;
    let Some(name) = &args.name else { return all(&place, &args.output) };
    let name = place.wait(place.policies.find(name))?;
    let end = Instant::now() + Duration::from_secs(args.wait.unwrap_or_default());
    let shown = loop {
        let shown = match place.wait(place.policies.history(&name))?.pop() {
            Some(standing) => Shown::of(&place, standing)?,
            None => match Shown::lost(&place, Some(&name))?.pop() {
                Some(lost) => lost,
                None => return Err(ClusterPolicyError::Unknown { what: name.to_string() }.into()),
            },
        };
        if shown.realised.missing.is_empty() || Instant::now() >= end {
            break shown;
        }
        std::thread::sleep(AGAIN);
    };
    args.output.print(&shown, || shown.text())?;
    if shown.realised.missing.is_empty() { Ok(()) } else { Err(Failure::silent(DIFFERS)) }
}

fn all(place: &Place, output: &OutputArgs) -> Result<(), Failure> {
    let mut shown: Vec<Shown> =
        place.current()?.into_iter().map(|standing| Shown::of(place, standing)).collect::<Result<_, _>>()?;
    let lost = Shown::lost(place, None)?.into_iter();
    let is_shown = |lost: &Shown| shown.iter().any(|shown| shown.name == lost.name);
    let lost: Vec<Shown> = lost.filter(|lost| !is_shown(lost)).collect();
    shown.extend(lost);
    output.print(&shown, || {
        let mut table = Table::new(["POLICY", "VERSION", "TIME", "AUTHOR", "REALISED"]);
        for policy in &shown {
            let (name, version) = (policy.name.to_string(), policy.version.to_string());
            let count = match policy.realised.stale.len() {
                0 => policy.count(),
                stale => format!("{}, {stale} stale", policy.count()),
            };
            table.row([name, version, policy.time.clone(), policy.author.clone(), count]);
        }
        let is_stale = shown.iter().any(|policy| !policy.realised.stale.is_empty());
        table.render() + if is_stale { STALE } else { "" }
    })
}
