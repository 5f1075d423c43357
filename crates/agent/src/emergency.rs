//! What operators did by hand, and where the agent keeps its hands off: the journal beside what is in the maps.

use std::collections::{BTreeMap, BTreeSet};

use villus_abi::PolicyKey;
use villus_api::model::{EmergencyEntry, EmergencyList, Hold, HoldRequest};
use villus_api::{ApiError, ApiResult};
use villus_datapath::Entries;
use villus_emergency::{
    Change, Event, Journal, direction_text, hand_id, key_text, parse_hand_id, remove_hand_made, undo,
};

use crate::node::Node;

impl Node {
    /// The journal of this node.
    pub fn journal(&self) -> Journal {
        Journal::open(&self.config.paths.lib_dir)
    }

    /// Reads the journal again: commands write there without asking.
    pub fn read_journal(&mut self) {
        let seen =
            std::fs::metadata(self.journal().path()).and_then(|file| Ok((file.len(), file.modified()?))).ok();
        if seen.is_some() && seen == self.journal_seen {
            return self.note_overdue();
        }
        self.journal_seen = seen;
        match self.journal().active() {
            Ok(state) => {
                let damaged = state.damaged.len();
                self.conditions.set_if("emergency journal", damaged > 0, || {
                    format!("{damaged} lines of the journal cannot be read and are passed over")
                });
                self.emergency = state;
            }
            // What was known goes on being honoured.
            Err(error) => self.conditions.note("emergency journal", Some(error.to_string())),
        }
        self.note_overdue();
        self.note_deeds();
    }

    fn note_overdue(&mut self) {
        let now = std::time::SystemTime::now();
        let overdue: Vec<String> = self
            .emergency
            .deeds
            .values()
            .filter(|deed| deed.is_overdue(now))
            .map(|deed| deed.allow.id.to_string())
            .collect();
        self.conditions.set_if("overdue deeds", !overdue.is_empty(), || {
            format!("their time is up and nobody undid them: `villus emergency undo {}`", overdue.join(" "))
        });
    }

    fn note_deeds(&mut self) {
        let mut open: BTreeMap<u16, Vec<String>> = BTreeMap::new();
        for deed in self.emergency.deeds.values() {
            for change in &deed.allow.changes {
                open.entry(change.endpoint).or_default().push(deed.allow.id.to_string());
            }
        }
        let known: Vec<u16> = self.endpoints.keys().copied().collect();
        for id in known {
            let deeds = open.get(&id).map(|deeds| deeds.join(", "));
            self.conditions.note(
                &format!("emergency at endpoint {id}"),
                deeds.map(|deeds| {
                    format!("opened by hand (deed {deeds}); `villus emergency undo` takes it back")
                }),
            );
            let hold = self.emergency.holds.get(&id).map(|hold| {
                format!(
                    "its policy map is not touched since {}: {}; `villus policy release {id}` ends that",
                    hold.since, hold.reason
                )
            });
            self.conditions.note(&format!("hold of endpoint {id}"), hold);
        }
    }

    /// The agent's hands are off an endpoint's policy map.
    pub fn is_held(&self, id: u16) -> bool {
        self.emergency.is_held(id)
    }

    /// An operator's deed on an endpoint of this number is in effect.
    pub fn has_deeds(&self, id: u16) -> bool {
        self.emergency.deeds.values().any(|deed| deed.at(id).next().is_some())
    }

    /// What an endpoint's policy map should hold: what policy asks for, as far as no deed says otherwise.
    pub fn wanted_entries(&self, id: u16) -> Option<Entries> {
        let policy = self.policy_of(id)?;
        let mut wanted: Entries = policy.map_entries().collect();
        self.emergency.honour(id, &mut wanted);
        Some(wanted)
    }

    /// Takes over what undoing a deed put back: it is policy's.
    pub fn adopt_put_back(&mut self, id: u16) {
        let keys: BTreeSet<PolicyKey> = self.emergency.put_back(id);
        if keys.is_empty() {
            return;
        }
        if let Err(error) = self.kernel.policies.adopt(id, &keys) {
            tracing::warn!(endpoint = id, %error, "entries that were put back are not taken over yet");
        }
    }

    /// Entries that are there by hand, and holds.
    pub fn emergency_list(&mut self) -> ApiResult<EmergencyList> {
        self.read_journal();
        let live: Vec<u16> = self.endpoints.values().filter(|e| e.is_live()).map(|e| e.id()).collect();
        let mut list = EmergencyList::default();
        for id in live {
            let wanted = self.wanted_entries(id).unwrap_or_default();
            let hand_made = self.kernel.policies.compare(id, &wanted).map_err(ApiError::internal)?.hand_made;
            list.entries.extend(hand_made.iter().map(|key| self.emergency_entry(id, key)));
        }
        list.holds = self
            .emergency
            .holds
            .iter()
            .map(|(id, hold)| Hold { endpoint: *id, since: hold.since.clone(), reason: hold.reason.clone() })
            .collect();
        Ok(list)
    }

    fn emergency_entry(&self, endpoint: u16, key: &PolicyKey) -> EmergencyEntry {
        let mut direction = direction_text(key.dir()).to_owned();
        if let Some(first) = direction.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        let deed = self.emergency.deed_of(endpoint, key);
        EmergencyEntry {
            id: deed.map_or_else(|| hand_id(endpoint, key), |deed| deed.allow.id.to_string()),
            endpoint,
            direction,
            key: key_text(key),
            origin: deed
                .map_or_else(|| "by hand".to_owned(), |deed| format!("villus {}", deed.allow.command)),
            since: deed.map(|deed| deed.since.clone()).unwrap_or_default(),
            until: deed.map(|deed| deed.allow.until.clone()).unwrap_or_default(),
            warnings: Vec::new(),
        }
    }

    /// Takes a deed back, or takes an entry out that was put in without the journal.
    pub fn undo_emergency(&mut self, id: &str) -> ApiResult<EmergencyList> {
        self.read_journal();
        let (pins, maps) = (self.kernel.pins.clone(), self.kernel.maps.clone());
        let journal = self.journal();
        let by = "the agent's API".to_owned();
        if let Some(deed) = id.parse().ok().and_then(|id: u64| self.emergency.deeds.get(&id)) {
            let undone = undo(&pins, &maps, deed);
            if let Some((endpoint, error)) = undone.failed.first() {
                return Err(ApiError::internal(format!("deed {id}: endpoint {endpoint}: {error}")));
            }
            let event = Event::Undone { id: deed.allow.id, by, left: undone.left };
            journal.append(event).map_err(ApiError::internal)?;
        } else if let Some((endpoint, key)) = parse_hand_id(id) {
            let there = remove_hand_made(&pins, &maps, endpoint, &key).map_err(ApiError::internal)?;
            if !there {
                return Err(ApiError::not_found(format!("nobody has put {id} in by hand")));
            }
            let changes = vec![Change { endpoint, insert: vec![key], take: Vec::new() }];
            journal.append(Event::Deleted { by, changes }).map_err(ApiError::internal)?;
        } else {
            return Err(ApiError::not_found(format!("there is no deed {id}"))
                .hint("`villus emergency list` shows them"));
        }
        self.read_journal();
        self.reconcile();
        self.rejudge.extend(self.endpoints.keys().copied());
        self.wake.rejudge.notify_one();
        self.emergency_list()
    }

    /// Keeps the agent's hands off an endpoint's policy map.
    pub fn hold(&mut self, id: u16, request: &HoldRequest) -> ApiResult<Hold> {
        if !request.dry_run {
            let event = Event::Hold { endpoint: id, reason: request.reason.clone() };
            self.journal().append(event).map_err(ApiError::internal)?;
            self.read_journal();
        }
        Ok(Hold { endpoint: id, since: crate::state::timestamp(), reason: request.reason.clone() })
    }

    /// The endpoint is deleted: what was done to its map by hand must not be undone in another's.
    pub fn end_deeds(&mut self, id: u16) {
        // A command may have written there since.
        self.read_journal();
        if !self.emergency.concerns(id) {
            return;
        }
        if let Err(error) = self.journal().append(Event::Gone { endpoint: id }) {
            tracing::warn!(endpoint = id, %error, "what was done by hand at a deleted endpoint stays in the journal");
        }
        self.read_journal();
    }

    /// Takes an endpoint's policy map in hand again.
    pub fn release_hold(&mut self, id: u16) -> ApiResult<()> {
        self.read_journal();
        if !self.is_held(id) {
            return Err(ApiError::not_found(format!("the policy map of endpoint {id} is not held")));
        }
        self.journal().append(Event::Release { endpoint: id }).map_err(ApiError::internal)?;
        self.read_journal();
        self.regenerate([id]);
        Ok(())
    }
}
