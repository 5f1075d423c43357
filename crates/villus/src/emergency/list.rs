//! `villus emergency list`.

use std::time::SystemTime;

use clap::Args;
use villus_abi::PolicyKey;
use villus_api::model::{EmergencyEntry, EmergencyList, Hold};
use villus_datapath::{PolicyView, policy_endpoints, view_policy};
use villus_emergency::{Deed, State, hand_id, key_text};
use villus_print::Table;

use crate::{
    failure::Failure,
    kernel::{Kernel, PlaceArgs},
    out::{self, OutputArgs},
};

#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  villus emergency list\n\nShows what the journal knows and entries that somebody put in by \
                  other means, and endpoints whose map the agent does not touch."
)]
pub struct ListArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    places: PlaceArgs,
}

pub fn run(args: &ListArgs) -> Result<(), Failure> {
    let journal = args.places.journal()?;
    let state = journal.active()?;
    let kernel = args.places.kernel()?;
    if !state.damaged.is_empty() {
        let lines: Vec<String> = state.damaged.iter().map(ToString::to_string).collect();
        let path = journal.path().display();
        out::complain(&format!(
            "villus: {path}: passed over what cannot be understood: line {}",
            lines.join(", ")
        ));
    }
    let list = EmergencyList { entries: entries(&state, &kernel)?, holds: holds(&state) };
    args.output.print(&list, || text(&list))
}

fn entries(state: &State, kernel: &Kernel) -> Result<Vec<EmergencyEntry>, Failure> {
    let mut entries = Vec::new();
    for endpoint in policy_endpoints(&kernel.pins)? {
        let view = view_policy(&kernel.pins, &kernel.maps, endpoint)?;
        for key in &view.hand_made {
            entries.push(match state.deed_of(endpoint, key) {
                Some(deed) => of_deed(deed, endpoint, key),
                None => EmergencyEntry {
                    id: hand_id(endpoint, key),
                    origin: "by hand".into(),
                    ..entry(endpoint, key)
                },
            });
        }
        entries.extend(state.deeds.values().flat_map(|deed| beside(deed, &view)));
    }
    Ok(entries)
}

fn entry(endpoint: u16, key: &PolicyKey) -> EmergencyEntry {
    EmergencyEntry {
        endpoint,
        direction: key.dir().name().to_owned(),
        key: key_text(key),
        ..EmergencyEntry::default()
    }
}

fn of_deed(deed: &Deed, endpoint: u16, key: &PolicyKey) -> EmergencyEntry {
    let mut warnings = Vec::new();
    if deed.is_overdue(SystemTime::now()) {
        warnings.push("overdue: the process that should have undone it is gone".to_owned());
    }
    EmergencyEntry {
        id: deed.allow.id.to_string(),
        origin: format!("villus {} by {}", deed.allow.command, deed.allow.by),
        since: deed.since.clone(),
        until: deed.allow.until.clone(),
        warnings,
        ..entry(endpoint, key)
    }
}

/// What a deed did that is no entry made by hand: what it has taken out, and keys that it put in the place of
/// others, or that are not there any more.
fn beside(deed: &Deed, view: &PolicyView) -> Vec<EmergencyEntry> {
    let mut found = Vec::new();
    for change in deed.at(view.endpoint) {
        for key in change.insert.iter().filter(|key| !view.hand_made.contains(key)) {
            let mut entry = of_deed(deed, view.endpoint, key);
            if !view.entries.contains_key(key) {
                entry.warnings.push("not in the map any more".to_owned());
            } else if !change.take.iter().any(|taken| taken.key == *key) {
                entry.warnings.push("policy itself now asks for it".to_owned());
            }
            found.push(entry);
        }
        for taken in change.take.iter().filter(|taken| !change.insert.contains(&taken.key)) {
            let verb = if taken.entry.is_deny() { "no longer denied: " } else { "no longer allowed: " };
            let mut entry = of_deed(deed, view.endpoint, &taken.key);
            entry.key.insert_str(0, verb);
            if view.entries.contains_key(&taken.key) {
                entry.warnings.push("it is in the map again".to_owned());
            }
            found.push(entry);
        }
    }
    found
}

fn holds(state: &State) -> Vec<Hold> {
    let holds = state.holds.iter();
    holds
        .map(|(endpoint, hold)| Hold {
            endpoint: *endpoint,
            since: hold.since.clone(),
            reason: hold.reason.clone(),
        })
        .collect()
}

fn text(list: &EmergencyList) -> String {
    if list.entries.is_empty() && list.holds.is_empty() {
        return "nothing was done by hand\n".to_owned();
    }
    let mut text = String::new();
    if !list.entries.is_empty() {
        let mut table = Table::new(["ID", "ENDPOINT", "WHAT", "SINCE", "UNTIL", "ORIGIN", "NOTE"]);
        for entry in &list.entries {
            let (endpoint, note) = (entry.endpoint.to_string(), entry.warnings.join("; "));
            let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            table.row([
                entry.id.clone(),
                endpoint,
                entry.key.clone(),
                dash(&entry.since),
                dash(&entry.until),
                entry.origin.clone(),
                note,
            ]);
        }
        text.push_str(&table.render());
    }
    if !list.holds.is_empty() {
        let mut table = Table::new(["HELD ENDPOINT", "SINCE", "REASON"]);
        for hold in &list.holds {
            table.row([hold.endpoint.to_string(), hold.since.clone(), hold.reason.clone()]);
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table.render());
    }
    text
}
