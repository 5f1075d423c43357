//! What the journal's lines add up to.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use villus_abi::{PolicyEntry, PolicyKey};

use crate::{Allow, Change, Event, Log};

/// How long after its time a deed counts as overdue.
const GRACE: Duration = Duration::from_secs(5);

/// Deeds that are in effect, holds, and what was put back, all of the current boot: entries by hand end with it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Deeds that nobody has undone, by their numbers.
    pub deeds: BTreeMap<u64, Deed>,
    /// Endpoints whose policy map the agent does not touch. These outlive a boot.
    pub holds: BTreeMap<u16, Hold>,
    put_back: BTreeMap<u16, BTreeSet<PolicyKey>>,
    /// Lines of the journal that cannot be understood.
    pub damaged: Vec<usize>,
}

/// A deed that is in effect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Deed {
    /// What it changed.
    pub allow: Allow,
    /// Since when, RFC 3339.
    pub since: String,
    /// The process that waits to undo it.
    pub timer: Option<u32>,
}

/// The agent's hands are off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hold {
    /// Since when, RFC 3339.
    pub since: String,
    /// Why.
    pub reason: String,
}

impl Deed {
    /// Whether its time is up and it is still there: the process that should have undone it is gone.
    #[must_use]
    pub fn is_overdue(&self, now: SystemTime) -> bool {
        let until = self.allow.until.parse::<Timestamp>().map(SystemTime::from);
        until.is_ok_and(|until| now.duration_since(until).is_ok_and(|late| late > GRACE))
    }

    /// What it changed at one endpoint.
    pub fn at(&self, endpoint: u16) -> impl Iterator<Item = &Change> {
        self.allow.changes.iter().filter(move |change| change.endpoint == endpoint)
    }
}

impl State {
    /// What a journal says about the boot of this id.
    #[must_use]
    pub fn of(log: &Log, boot: &str) -> Self {
        let mut state = Self { damaged: log.damaged.clone(), ..Self::default() };
        for record in &log.records {
            let this_boot = record.boot == boot;
            match &record.event {
                Event::Allow(allow) if this_boot => {
                    let deed = Deed { allow: allow.clone(), since: record.time.clone(), timer: None };
                    state.deeds.insert(allow.id, deed);
                }
                Event::Timer { id, pid } => {
                    if let Some(deed) = state.deeds.get_mut(id) {
                        deed.timer = Some(*pid);
                    }
                }
                Event::Undone { id, .. } => {
                    if let Some(deed) = state.deeds.remove(id) {
                        state.remember_put_back(&deed);
                    }
                }
                Event::Hold { endpoint, reason } => {
                    let hold = Hold { since: record.time.clone(), reason: reason.clone() };
                    state.holds.insert(*endpoint, hold);
                }
                Event::Release { endpoint } => {
                    state.holds.remove(endpoint);
                }
                Event::Gone { endpoint } => state.forget(*endpoint),
                Event::Allow(_) | Event::Deleted { .. } => {}
            }
        }
        state
    }

    fn forget(&mut self, endpoint: u16) {
        self.holds.remove(&endpoint);
        self.put_back.remove(&endpoint);
        for deed in self.deeds.values_mut() {
            deed.allow.changes.retain(|change| change.endpoint != endpoint);
        }
        self.deeds.retain(|_, deed| !deed.allow.changes.is_empty());
    }

    fn remember_put_back(&mut self, deed: &Deed) {
        for change in deed.allow.changes.iter().filter(|change| !change.take.is_empty()) {
            let keys = change.take.iter().map(|taken| taken.key);
            self.put_back.entry(change.endpoint).or_default().extend(keys);
        }
    }

    /// Keys of an endpoint's entries that a deed has taken out: the agent does not put them in
    /// again, and does not report them missing.
    #[must_use]
    pub fn overridden(&self, endpoint: u16) -> BTreeSet<PolicyKey> {
        let deeds = self.deeds.values().flat_map(|deed| deed.at(endpoint));
        deeds.flat_map(|change| change.take.iter().map(|taken| taken.key)).collect()
    }

    /// Makes what policy asks for what an endpoint's map should hold while deeds are in effect: without what they
    /// have taken out, and allowing where a deed put its own entry in the place of one that denied.
    pub fn honour(&self, endpoint: u16, wanted: &mut BTreeMap<PolicyKey, PolicyEntry>) {
        for change in self.deeds.values().flat_map(|deed| deed.at(endpoint)) {
            for key in change.take.iter().map(|taken| taken.key) {
                if change.insert.contains(&key) {
                    wanted.insert(key, PolicyEntry::ALLOW);
                } else {
                    wanted.remove(&key);
                }
            }
        }
    }

    /// Whether a deed or a hold is about this endpoint; then its deletion is to be written down ([`Event::Gone`]).
    #[must_use]
    pub fn concerns(&self, endpoint: u16) -> bool {
        let deeds = self.deeds.values().any(|deed| deed.at(endpoint).next().is_some());
        deeds || self.holds.contains_key(&endpoint) || self.put_back.contains_key(&endpoint)
    }

    /// Keys of an endpoint's entries that undoing put back. They are policy's, not an
    /// operator's: the agent takes them over (`PolicyMaps::adopt`), and so removes them if policy no longer
    /// asks for them.
    #[must_use]
    pub fn put_back(&self, endpoint: u16) -> BTreeSet<PolicyKey> {
        self.put_back.get(&endpoint).cloned().unwrap_or_default()
    }

    /// The deed that put an entry into an endpoint's map.
    #[must_use]
    pub fn deed_of(&self, endpoint: u16, key: &PolicyKey) -> Option<&Deed> {
        self.deeds.values().find(|deed| deed.at(endpoint).any(|change| change.insert.contains(key)))
    }

    /// Whether the agent keeps its hands off an endpoint's map.
    #[must_use]
    pub fn is_held(&self, endpoint: u16) -> bool {
        self.holds.contains_key(&endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Record, Taken};

    fn line(boot: &str, event: Event) -> Record {
        Record { time: "2026-01-01T00:00:00Z".into(), boot: boot.into(), event }
    }

    fn allow(id: u64, until: &str) -> Event {
        let take =
            vec![Taken { key: PolicyKey { identity: 7, ..PolicyKey::default() }, entry: PolicyEntry::DENY }];
        let changes = vec![Change { endpoint: 5, insert: vec![PolicyKey::default()], take }];
        Event::Allow(Allow { id, by: "root".into(), until: until.into(), changes, ..Allow::default() })
    }

    fn undone(id: u64) -> Event {
        Event::Undone { id, by: "root".into(), left: Vec::new() }
    }

    #[test]
    fn deeds_end_when_they_are_undone_or_the_machine_boots() {
        let log = Log {
            records: vec![
                line("a", allow(1, "")),
                line("b", allow(2, "")),
                line("b", allow(3, "")),
                line("b", undone(3)),
            ],
            damaged: vec![7],
        };
        let state = State::of(&log, "b");
        assert_eq!(state.deeds.keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(state.damaged, [7]);
        assert_eq!(state.overridden(5).len(), 1);
        assert_eq!(state.overridden(6).len(), 0);
        assert_eq!(state.put_back(5).len(), 1);
        assert_eq!(state.deed_of(5, &PolicyKey::default()).unwrap().allow.id, 2);
    }

    #[test]
    fn a_deed_does_not_pass_to_the_next_owner_of_an_id() {
        let mut log =
            Log { records: vec![line("a", allow(1, "")), line("a", undone(1))], damaged: Vec::new() };
        log.records.push(line("a", allow(2, "")));
        assert!(State::of(&log, "a").concerns(5));
        log.records.push(line("a", Event::Gone { endpoint: 5 }));
        let state = State::of(&log, "a");
        assert!(!state.concerns(5));
        assert_eq!(state, State::default());
    }

    #[test]
    fn what_is_wanted_honours_deeds() {
        let everything = PolicyKey::default();
        let deny = PolicyKey { identity: 7, ..everything };
        let take = [everything, deny].map(|key| Taken { key, entry: PolicyEntry::DENY }).to_vec();
        let changes = vec![Change { endpoint: 5, insert: vec![everything], take }];
        let deed = Event::Allow(Allow { id: 1, changes, ..Allow::default() });
        let state = State::of(&Log { records: vec![line("a", deed)], damaged: Vec::new() }, "a");
        let policy = BTreeMap::from([(everything, PolicyEntry::DENY), (deny, PolicyEntry::DENY)]);
        let mut wanted = policy.clone();
        state.honour(5, &mut wanted);
        assert_eq!(wanted, BTreeMap::from([(everything, PolicyEntry::ALLOW)]));
        wanted.clone_from(&policy);
        state.honour(6, &mut wanted);
        assert_eq!(wanted, policy);
    }

    #[test]
    fn holds_last_until_they_are_released() {
        let hold = Event::Hold { endpoint: 5, reason: "by hand".into() };
        let mut log = Log { records: vec![line("a", hold)], damaged: Vec::new() };
        assert!(State::of(&log, "b").is_held(5));
        log.records.push(line("b", Event::Release { endpoint: 5 }));
        assert!(!State::of(&log, "b").is_held(5));
    }

    #[test]
    fn a_deed_is_overdue_when_its_time_is_up() {
        let log = |until: &str| Log { records: vec![line("a", allow(1, until))], damaged: Vec::new() };
        let overdue = |until: &str| State::of(&log(until), "a").deeds[&1].is_overdue(SystemTime::now());
        assert!(!overdue(""));
        assert!(!overdue("9999-01-01T00:00:00Z"));
        assert!(overdue("2001-01-01T00:00:00Z"));
        assert!(!overdue("nonsense"));
    }
}
