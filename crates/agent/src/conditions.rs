//! What is not as it should be, by name, since when, and how often it failed.

use std::collections::BTreeMap;

use crate::state::timestamp;

/// What is said before all else.
const FIRST: [&str; 2] = ["frozen", "store"];

/// Something that is not as it should be.
#[derive(Debug, Clone)]
pub(crate) struct Condition {
    pub message: String,
    pub since: String,
    pub failures: u32,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Conditions(BTreeMap<String, Condition>);

impl Conditions {
    /// Something is wrong, or with `None` not any more.
    pub fn note(&mut self, name: &str, problem: Option<String>) {
        let Some(message) = problem else {
            if self.0.remove(name).is_some() {
                tracing::info!(condition = name, "is as it should be again");
            }
            return;
        };
        match self.0.get_mut(name) {
            Some(condition) => {
                condition.failures = condition.failures.saturating_add(1);
                condition.message = message;
            }
            None => {
                tracing::warn!(condition = name, message, "is not as it should be");
                self.0.insert(name.to_owned(), Condition { message, since: timestamp(), failures: 1 });
            }
        }
    }

    /// As [`Self::note`], with the message made only if needed.
    pub fn set_if(&mut self, name: &str, wrong: bool, message: impl FnOnce() -> String) {
        self.note(name, wrong.then(message));
    }

    /// Makes these all that is said under names that begin so.
    pub fn replace(&mut self, prefix: &str, all: BTreeMap<String, String>) {
        let settled: Vec<String> = self
            .0
            .keys()
            .filter(|name| name.starts_with(prefix) && !all.contains_key(*name))
            .cloned()
            .collect();
        for name in settled {
            self.note(&name, None);
        }
        for (name, message) in all {
            if self.0.get(&name).is_none_or(|known| known.message != message) {
                self.note(&name, Some(message));
            }
        }
    }

    /// What is said about an endpoint that is gone.
    pub fn forget_endpoint(&mut self, id: u16) {
        let end = format!("endpoint {id}");
        self.0.retain(|name, _| !name.ends_with(&end));
    }

    /// All of it, by name; what explains the rest comes first.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Condition)> {
        let first = FIRST.iter().filter_map(|name| self.0.get_key_value(*name));
        first.chain(self.0.iter().filter(|(name, _)| !FIRST.contains(&name.as_str())))
    }
}
