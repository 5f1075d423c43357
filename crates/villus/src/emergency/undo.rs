//! `villus emergency undo`.

use clap::Args;
use villus_datapath::{policy_endpoints, view_policy};
use villus_emergency::{Change, Event, Taken, Undone, key_text, parse_hand_id, remove_hand_made, undo};

use super::{check_root, who};
use crate::{failure::Failure, kernel::PlaceArgs, out};

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  villus emergency undo 3\n  villus emergency undo --all\n  \
                  villus emergency undo hand-794-0000000000000000\n\nIDs are those of `villus emergency list`.")]
pub struct UndoArgs {
    /// What to take back.
    #[arg(value_name = "ID", required_unless_present = "all")]
    ids: Vec<String>,
    /// Everything that was done by hand.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Say what would be taken back, and do nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    places: PlaceArgs,
}

pub fn run(args: &UndoArgs) -> Result<(), Failure> {
    check_root()?;
    let ids = if args.all { everything(&args.places)? } else { args.ids.clone() };
    if ids.is_empty() {
        return out::line("nothing was done by hand");
    }
    for id in &ids {
        match (id.parse::<u64>(), parse_hand_id(id)) {
            (Ok(number), _) if args.dry_run => would_undo(&args.places, number)?,
            (Ok(number), _) => report(number, &undo_deed(&args.places, number, &who())?)?,
            (_, Some((endpoint, key))) => {
                let what = format!("endpoint {endpoint}: {}", key_text(&key));
                if args.dry_run {
                    out::line(&format!("{what}: would be taken out"))?;
                } else {
                    undo_hand_made(&args.places, id)?;
                    out::line(&format!("{what}: taken out"))?;
                }
            }
            _ => {
                return Err(Failure::usage(format!("{id:?} is no id of anything done by hand"))
                    .fix("see `villus emergency list`"));
            }
        }
    }
    Ok(())
}

/// Deeds first; what no journal knows after them.
fn everything(places: &PlaceArgs) -> Result<Vec<String>, Failure> {
    let state = places.journal()?.active()?;
    let mut ids: Vec<String> = state.deeds.keys().map(ToString::to_string).collect();
    let kernel = places.kernel()?;
    for endpoint in policy_endpoints(&kernel.pins)? {
        let view = view_policy(&kernel.pins, &kernel.maps, endpoint)?;
        let unknown = view.hand_made.iter().filter(|key| state.deed_of(endpoint, key).is_none());
        ids.extend(unknown.map(|key| villus_emergency::hand_id(endpoint, key)));
    }
    Ok(ids)
}

/// Takes a deed back and writes that down.
pub fn undo_deed(places: &PlaceArgs, id: u64, by: &str) -> Result<Undone, Failure> {
    let journal = places.journal()?;
    let state = journal.active()?;
    let Some(deed) = state.deeds.get(&id) else {
        if by == "timer" {
            return Ok(Undone::default());
        }
        return Err(Failure::new(format!("deed {id} is not in effect"))
            .fix("see `villus emergency list` for what is; a deed ends with the boot it was done in"));
    };
    let kernel = places.kernel()?;
    let undone = undo(&kernel.pins, &kernel.maps, deed);
    if let Some((endpoint, error)) = undone.failed.first() {
        return Err(Failure::new(format!("endpoint {endpoint} could not be made as it was: {error}"))
            .fix("what could be undone is undone; run it again"));
    }
    journal.append(Event::Undone { id, by: by.to_owned(), left: undone.left.clone() })?;
    Ok(undone)
}

fn undo_hand_made(places: &PlaceArgs, id: &str) -> Result<(), Failure> {
    let Some((endpoint, key)) = parse_hand_id(id) else { return Ok(()) };
    let kernel = places.kernel()?;
    let view = view_policy(&kernel.pins, &kernel.maps, endpoint)?;
    let entry = view.entries.get(&key).copied().filter(|_| view.hand_made.contains(&key));
    let Some(entry) = entry else {
        return Err(Failure::new(format!(
            "endpoint {endpoint} has no entry made by hand for {}",
            key_text(&key)
        ))
        .fix("see `villus emergency list`"));
    };
    let change = Change { endpoint, insert: Vec::new(), take: vec![Taken { key, entry }] };
    places.journal()?.append(Event::Deleted { by: who(), changes: vec![change] })?;
    remove_hand_made(&kernel.pins, &kernel.maps, endpoint, &key)?;
    Ok(())
}

fn would_undo(places: &PlaceArgs, id: u64) -> Result<(), Failure> {
    let state = places.journal()?.active()?;
    let Some(deed) = state.deeds.get(&id) else {
        return Err(Failure::new(format!("deed {id} is not in effect")).fix("see `villus emergency list`"));
    };
    for change in &deed.allow.changes {
        let endpoint = change.endpoint;
        for key in &change.insert {
            out::line(&format!("endpoint {endpoint}: would be taken out: {}", key_text(key)))?;
        }
        for taken in &change.take {
            out::line(&format!("endpoint {endpoint}: would be put back: {}", key_text(&taken.key)))?;
        }
    }
    Ok(())
}

fn report(id: u64, undone: &Undone) -> Result<(), Failure> {
    for (endpoint, key) in &undone.removed {
        out::line(&format!("endpoint {endpoint}: taken out: {}", key_text(key)))?;
    }
    for (endpoint, key) in &undone.put_back {
        out::line(&format!("endpoint {endpoint}: put back: {}", key_text(key)))?;
    }
    for left in &undone.left {
        out::line(&format!("left as it is: {left}"))?;
    }
    out::line(&format!("deed {id} is undone"))
}
