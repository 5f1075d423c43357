//! `villus kvstore delete`.

use clap::Args;
use villus_identity::{Meaning, check_entry, users};
use villus_kvstore::{Entry, keys};

use super::{
    WriteArgs,
    change::{Change, Plan, carry_out},
    open::Shared,
};
use crate::{connect::Host, failure::Failure};

/// Prefixes that hold what all nodes live on: nobody deletes them by a slip.
const ROOTS: [&str; 6] =
    [keys::BASE, keys::STATE, keys::IDENTITIES, keys::IDENTITY_IDS, keys::IDENTITY_VALUES, "villus"];

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus kvstore delete cilium/state/ip/v1/cluster1/10.3.192.65\n  \
                  villus kvstore delete --recursive --dry-run cilium/state/nodes/v1/old-cluster/")]
pub struct DeleteArgs {
    /// The key, or how keys begin.
    key: String,
    /// Delete all keys that begin so.
    #[arg(long)]
    recursive: bool,
    /// Delete although nodes use it, or although it is the root of what all nodes live on.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    write: WriteArgs,
}

pub fn run(host: &Host, args: &DeleteArgs) -> Result<(), Failure> {
    let bare = args.key.trim_end_matches('/');
    if args.recursive && !args.force && (bare.is_empty() || ROOTS.contains(&bare)) {
        return Err(Failure::new(format!("below `{}` lies what all nodes live on", args.key))
            .fix("name what is to go more exactly, or use --force"));
    }
    let shared = args.write.store.open(host)?;
    let entries = if args.recursive {
        shared.wait(shared.store.list_prefix(&args.key))?.entries
    } else {
        shared.wait(shared.store.get(&args.key))?.into_iter().collect()
    };
    if entries.is_empty() {
        return Err(Failure::new(format!("key {} is not found", args.key))
            .fix("villus kvstore get --recursive shows what is there"));
    }
    let mut notes = in_use(&shared, &entries)?;
    if let (Some(first), false) = (notes.first(), args.force) {
        return Err(Failure::new(first).fix("agents would write it again at once; or use --force"));
    }
    notes.extend(owned(&entries));
    let changes = entries.iter().map(|entry| Change::of(&entry.key, Some(entry), None)).collect();
    carry_out(&shared, &args.write, Plan { verb: "delete", undoes: None, forced: args.force, changes, notes })
}

/// Keys whose owner's lease has not run out: as far as the store knows, the owner is alive.
fn owned(entries: &[Entry]) -> Option<String> {
    let mut owned = entries.iter().filter(|entry| entry.lease.is_some());
    let (first, more) = (owned.next()?, owned.count());
    Some(match more {
        0 => format!(
            "{} lies under its owner's lease, which has not run out: an owner that is alive writes it again",
            first.key
        ),
        more => format!(
            "{} keys lie under their owners' leases, which have not run out: owners that are alive write them again: \
             {} and {more} more",
            more + 1,
            first.key
        ),
    })
}

/// Identities that nodes use.
fn in_use(shared: &Shared, entries: &[Entry]) -> Result<Vec<String>, Failure> {
    let mut notes = Vec::new();
    for entry in entries {
        let meaning = check_entry(&entry.key, &entry.value, shared.clusters());
        let Ok(Meaning::Identity(number, labels)) = meaning else { continue };
        let nodes = shared.wait(users(&*shared.store, number, &labels.to_kvstore()))?;
        if nodes > 0 {
            notes.push(format!("identity {number} is in use on {nodes} nodes"));
        }
    }
    Ok(notes)
}
