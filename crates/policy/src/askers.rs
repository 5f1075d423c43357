//! Who asks for the entries of a compiled policy: four bytes an entry, from which the rules can be told.

use std::{collections::HashMap, sync::Arc};

use villus_abi::PolicyEntry;

use crate::{Origin, Origins};

/// What an entry decides and who asked for it: the number of an asker, or of a set of them, a bit for deny and one for a
/// denial of audit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Decision(u32);

impl Decision {
    const fn new(number: u32, deny: bool, audit: bool) -> Self {
        Self(number << 2 | (audit as u32) << 1 | deny as u32)
    }

    const fn number(self) -> u32 {
        self.0 >> 2
    }

    pub(crate) const fn is_deny(self) -> bool {
        self.0 & 1 != 0
    }

    /// Whether it denies, and only audited policies ask for that.
    pub(crate) const fn is_audit(self) -> bool {
        self.is_deny() && self.0 & 2 != 0
    }

    /// Whether it denies, and not as audit.
    pub(crate) const fn holds(self) -> bool {
        self.is_deny() && !self.is_audit()
    }

    /// The value to write, its counters at zero.
    pub(crate) const fn entry(self) -> PolicyEntry {
        if self.is_audit() {
            PolicyEntry::AUDIT
        } else if self.is_deny() {
            PolicyEntry::DENY
        } else {
            PolicyEntry::ALLOW
        }
    }
}

/// Somebody who asks for entries.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(crate) origin: Origin,
    /// Whether the entries are to deny.
    pub(crate) deny: bool,
    /// Whether its policy is audited.
    pub(crate) audit: bool,
}

/// Those who ask in one compiled policy, by number, and the sets of them who asked for the same entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Askers {
    single: Vec<Asker>,
    /// Their numbers begin behind those of single askers.
    sets: Vec<Set>,
    free: Vec<u32>,
    by_members: HashMap<Arc<[u32]>, u32>,
}

#[derive(Clone, Debug)]
struct Set {
    members: Arc<[u32]>,
    /// Entries that name it.
    users: u32,
}

impl Askers {
    pub(crate) fn new(single: Vec<Asker>) -> Self {
        Self { single, ..Self::default() }
    }

    /// The decision of an entry that nobody is known to have asked for.
    pub(crate) fn nobody(&mut self, entry: &PolicyEntry) -> Decision {
        Decision::new(self.set(&[]), entry.is_deny(), entry.is_audit())
    }

    /// The decision of an entry that these ask for; their numbers are sorted. [`Self::release`] it with the entry.
    pub(crate) fn decide(&mut self, asks: &[u32]) -> Decision {
        let askers = asks.iter().filter_map(|ask| self.single.get(*ask as usize));
        let (deny, holds) = askers
            .filter(|asker| asker.deny)
            .fold((false, false), |(_, holds), asker| (true, holds || !asker.audit));
        let number = match asks {
            [one] => *one,
            several => self.set(several),
        };
        Decision::new(number, deny, deny && !holds)
    }

    fn set(&mut self, members: &[u32]) -> u32 {
        let first = self.first_set();
        if let Some(number) = self.by_members.get(members) {
            if let Some(set) = self.sets.get_mut((number - first) as usize) {
                set.users += 1;
            }
            return *number;
        }
        let set = Set { members: members.into(), users: 1 };
        let members = set.members.clone();
        let at = match self.free.pop() {
            Some(at) => {
                self.sets[at as usize] = set;
                at
            }
            None => {
                self.sets.push(set);
                u32::try_from(self.sets.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.by_members.insert(members, first + at);
        first + at
    }

    fn first_set(&self) -> u32 {
        u32::try_from(self.single.len()).unwrap_or(u32::MAX)
    }

    /// An entry with this decision is gone.
    pub(crate) fn release(&mut self, decision: Decision) {
        let Some(at) = decision.number().checked_sub(self.first_set()) else { return };
        let Some(set) = self.sets.get_mut(at as usize) else { return };
        set.users = set.users.saturating_sub(1);
        if set.users == 0 {
            self.by_members.remove(&set.members);
            self.free.push(at);
        }
    }

    /// Who asked for an entry with this decision, sorted.
    pub(crate) fn origins(&self, decision: Decision) -> Origins {
        let number = decision.number();
        let origin = |ask: &u32| Some(self.single.get(*ask as usize)?.origin.clone());
        match number.checked_sub(self.first_set()) {
            None => origin(&number).into_iter().collect(),
            Some(at) => {
                let members = self.sets.get(at as usize).map_or(&[] as &[u32], |set| &set.members);
                let mut origins: Vec<Origin> = members.iter().filter_map(origin).collect();
                origins.sort_unstable();
                origins.dedup();
                origins.into()
            }
        }
    }
}
