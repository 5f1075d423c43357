//! `villus bpf policy`.

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use villus_abi::{Direction, PolicyEntry, PolicyKey};
use villus_datapath::{PolicyView, hand_insert, hand_remove, policy_endpoints, view_policy};
use villus_emergency::{Allow, Change, Event, Taken, key_text};
use villus_labels::NumericIdentity;
use villus_print::{PolicyRow, policy_list};

use super::ranges;
use crate::{
    connect::Host,
    emergency::{check_root, who},
    failure::Failure,
    identity_names::IdentityNames,
    kernel::{Kernel, PlaceArgs},
    out::{self, OutputArgs},
    ports::Ports,
};

#[derive(Subcommand, Debug)]
pub enum PolicyCommand {
    /// Print the entries of an endpoint's policy map, with their counters.
    #[command(
        after_help = "Examples:\n  villus bpf policy get 794\n  villus bpf policy get cilium_policy_00794 -n\n  \
                      villus bpf policy get --all -o json"
    )]
    Get {
        /// The endpoint: its id, the name of its map, or one of its addresses.
        #[arg(required_unless_present = "all")]
        endpoint: Option<String>,
        /// The maps of all endpoints.
        #[arg(long, conflicts_with = "endpoint")]
        all: bool,
        /// Numbers of identities instead of their labels.
        #[arg(short, long)]
        numeric: bool,
        /// Each key as the map holds it, the blocks of port ranges apart.
        #[arg(long)]
        keys: bool,
        #[command(flatten)]
        output: OutputArgs,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Put entries into an endpoint's policy map by hand.
    #[command(
        after_help = "Examples:\n  villus bpf policy add 794 ingress 298951 80/tcp\n  villus bpf policy add 794 egress any --dry-run\n\n\
                      The agent keeps such entries and shows them; `villus emergency undo` takes them out again."
    )]
    Add {
        #[command(flatten)]
        entry: EntryArgs,
        /// The entries deny.
        #[arg(long)]
        deny: bool,
        /// Say what would be put in, and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
    /// Take entries out of an endpoint's policy map by hand.
    #[command(after_help = "Example:\n  villus bpf policy delete 794 ingress 298951 80/tcp\n\n\
                      Entries that policy asks for stay out until `villus emergency undo`.")]
    Delete {
        #[command(flatten)]
        entry: EntryArgs,
        /// Say what would be taken out, and do nothing.
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        places: PlaceArgs,
    },
}

#[derive(Args, Debug)]
pub struct EntryArgs {
    /// The endpoint: its id, the name of its map, or one of its addresses.
    endpoint: String,
    /// Packets to the endpoint, or from it.
    direction: Way,
    /// Numeric identity of the other side, the name of a reserved one, or any.
    #[arg(value_parser = identity)]
    identity: u32,
    /// Destination ports and protocol; everything if not given.
    #[arg(value_name = "PORT[-LAST][/PROTO]", default_value = "any", hide_default_value = true)]
    ports: Ports,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Ingress,
    Egress,
}

fn identity(text: &str) -> Result<u32, String> {
    if text.eq_ignore_ascii_case("any") {
        return Ok(0);
    }
    NumericIdentity::parse(text).map(|identity| identity.0).map_err(|error| error.to_string())
}

impl EntryArgs {
    fn keys(&self) -> Vec<PolicyKey> {
        let direction = match self.direction {
            Way::Ingress => Direction::Ingress,
            Way::Egress => Direction::Egress,
        };
        self.ports.keys(self.identity, direction)
    }
}

/// One endpoint's map, for machines.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown {
    endpoint: u16,
    map: String,
    capacity: u32,
    misplaced: bool,
    hand_made: Vec<String>,
    entries: Vec<PolicyRow>,
}

pub fn run(host: &Host, command: PolicyCommand) -> Result<(), Failure> {
    match command {
        PolicyCommand::Get { endpoint: Some(endpoint), numeric, keys, output, places, .. } => {
            let kernel = places.kernel()?;
            let id = kernel.endpoint(&endpoint, host)?;
            let names = if numeric { IdentityNames::none() } else { IdentityNames::ask(host) };
            let shown = show(&kernel, id, keys, &names)?;
            note_misplaced(&shown);
            output.print(&shown.entries, || policy_list(&shown.entries, numeric))
        }
        PolicyCommand::Get { numeric, keys, output, places, .. } => {
            let kernel = places.kernel()?;
            let names = if numeric { IdentityNames::none() } else { IdentityNames::ask(host) };
            let mut all = Vec::new();
            for id in policy_endpoints(&kernel.pins)? {
                all.push(show(&kernel, id, keys, &names)?);
            }
            all.iter().for_each(note_misplaced);
            output.print(&all, || all.iter().map(|shown| titled(shown, numeric)).collect())
        }
        PolicyCommand::Add { entry, deny, dry_run, places } => add(host, &entry, deny, dry_run, &places),
        PolicyCommand::Delete { entry, dry_run, places } => delete(host, &entry, dry_run, &places),
    }
}

fn view(kernel: &Kernel, id: u16) -> Result<PolicyView, Failure> {
    let view = view_policy(&kernel.pins, &kernel.maps, id)?;
    if view.pinned.is_none() && view.in_slot.is_none() {
        return Err(Failure::new(format!("endpoint {id} has no policy map"))
            .fix("see `villus bpf endpoint list` for the endpoints of this node"));
    }
    Ok(view)
}

fn show(kernel: &Kernel, id: u16, keys: bool, names: &IdentityNames) -> Result<Shown, Failure> {
    let view = view(kernel, id)?;
    Ok(Shown {
        endpoint: id,
        map: kernel.pins.path(&villus_datapath::policy_pin(id)).display().to_string(),
        capacity: view.capacity,
        misplaced: view.is_misplaced(),
        hand_made: view.hand_made.iter().map(key_text).collect(),
        entries: ranges::rows(&view.entries, keys, |identity| names.labels(identity)),
    })
}

fn note_misplaced(shown: &Shown) {
    if shown.misplaced {
        let Shown { endpoint, map, .. } = shown;
        out::complain(&format!(
            "villus: endpoint {endpoint}: {map} is not the map that packets are judged by; shown is the one that is"
        ));
    }
}

fn titled(shown: &Shown, numeric: bool) -> String {
    let Shown { endpoint, map, .. } = shown;
    format!("Endpoint ID: {endpoint}\nPath: {map}\n\n{}\n\n", policy_list(&shown.entries, numeric))
}

fn add(host: &Host, args: &EntryArgs, deny: bool, dry_run: bool, places: &PlaceArgs) -> Result<(), Failure> {
    check_root()?;
    let kernel = places.kernel()?;
    let id = kernel.endpoint(&args.endpoint, host)?;
    let view = view(&kernel, id)?;
    let (there, insert): (Vec<_>, Vec<_>) =
        args.keys().into_iter().partition(|key| view.entries.contains_key(key));
    for key in &there {
        let what = if view.entries.get(key).is_some_and(PolicyEntry::is_deny) { "denies" } else { "allows" };
        out::line(&format!("endpoint {id}: there is an entry already that {what} {}", key_text(key)))?;
    }
    let word = if deny { "denied" } else { "allowed" };
    if insert.is_empty() {
        return Ok(());
    }
    if !dry_run {
        let changes = vec![Change { endpoint: id, insert: insert.clone(), take: Vec::new() }];
        let allow = places.journal()?.append_allow(deed("bpf policy add", changes))?;
        let entry = if deny { PolicyEntry::DENY } else { PolicyEntry::ALLOW };
        for key in &insert {
            hand_insert(&kernel.pins, &kernel.maps, id, key, &entry)?;
        }
        out::complain(&format!("take it back with: villus emergency undo {}", allow.id));
    }
    let would = if dry_run { "would be " } else { "" };
    insert.iter().try_for_each(|key| out::line(&format!("endpoint {id}: {would}{word}: {}", key_text(key))))
}

fn delete(host: &Host, args: &EntryArgs, dry_run: bool, places: &PlaceArgs) -> Result<(), Failure> {
    check_root()?;
    let kernel = places.kernel()?;
    let id = kernel.endpoint(&args.endpoint, host)?;
    let view = view(&kernel, id)?;
    let take: Vec<Taken> = args
        .keys()
        .into_iter()
        .filter_map(|key| view.entries.get(&key).map(|entry| Taken { key, entry: *entry }))
        .collect();
    if take.is_empty() {
        return Err(Failure::new(format!("endpoint {id} has no such entry"))
            .fix(format!("see `villus bpf policy get {id} -n --keys` for those it has")));
    }
    if !dry_run {
        write_down(&view, &take, places)?;
        for taken in &take {
            hand_remove(&kernel.pins, &kernel.maps, id, &taken.key)?;
        }
    }
    let would = if dry_run { "would be " } else { "" };
    take.iter().try_for_each(|taken| {
        out::line(&format!("endpoint {id}: {would}taken out: {}", key_text(&taken.key)))
    })
}

/// Entries made by hand are gone for good; those of policy stay out until that is undone.
fn write_down(view: &PolicyView, take: &[Taken], places: &PlaceArgs) -> Result<(), Failure> {
    let journal = places.journal()?;
    let (by_hand, of_policy): (Vec<Taken>, Vec<Taken>) =
        take.iter().copied().partition(|taken| view.hand_made.contains(&taken.key));
    let change = |take: Vec<Taken>| vec![Change { endpoint: view.endpoint, insert: Vec::new(), take }];
    if !by_hand.is_empty() {
        journal.append(Event::Deleted { by: who(), changes: change(by_hand) })?;
    }
    if !of_policy.is_empty() {
        let allow = journal.append_allow(deed("bpf policy delete", change(of_policy)))?;
        out::complain(&format!("take it back with: villus emergency undo {}", allow.id));
    }
    Ok(())
}

fn deed(command: &str, changes: Vec<Change>) -> Allow {
    Allow { by: who(), command: command.to_owned(), changes, ..Allow::default() }
}
