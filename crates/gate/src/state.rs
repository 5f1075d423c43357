//! What a node remembers of its starts.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Moment, clock::millis};

/// Layout of the file.
pub(crate) const FORMAT: u32 = 1;

/// What a node remembers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Layout of the file.
    pub format: u32,
    /// When the agent was last let through.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<Moment>,
    /// Starts in a row that were asked for within a window of the one before.
    #[serde(default)]
    pub streak: u32,
    /// The turn that is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
    /// One start that needs no turn.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// The gate stands open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bypass: Option<Bypass>,
    /// A damaged file was put aside, so a start may have been forgotten.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub past_unknown: bool,
}

/// A time that runs from a moment on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Timer {
    /// When it was set.
    pub set: Moment,
    /// How long it runs, in milliseconds.
    pub lasts_ms: u64,
}

/// A turn in the window, as chance picked it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ticket {
    /// Until the turn comes.
    #[serde(flatten)]
    pub timer: Timer,
    /// The window it was drawn in, in milliseconds.
    pub window_ms: u64,
    /// [`State::streak`] once it is taken.
    pub streak: u32,
}

/// One start that needs no turn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// Who gave it.
    pub by: String,
    /// How long it is worth something.
    #[serde(flatten)]
    pub timer: Timer,
}

/// The gate stands open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Bypass {
    /// Who opened it.
    pub by: String,
    /// Since when.
    pub since: Moment,
    /// How long; until it is closed, if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timer: Option<Timer>,
}

// === impl Timer ===

impl Timer {
    /// A timer that starts now.
    #[must_use]
    pub fn new(now: &Moment, lasts: Duration) -> Self {
        Self { set: now.clone(), lasts_ms: millis(lasts) }
    }

    /// What is left of it; nothing once it is over.
    #[must_use]
    pub fn left(&self, now: &Moment) -> Duration {
        Duration::from_millis(self.lasts_ms).saturating_sub(now.since(&self.set))
    }

    /// In another boot than that in which it was set, what is left of it runs from now on: so the calendar, which may
    /// be wrong, is asked once a boot.
    pub(crate) fn carry_over(&mut self, now: &Moment) {
        if self.set.boot != now.boot && !self.left(now).is_zero() {
            *self = Self::new(now, self.left(now));
        }
    }

    /// For how long it has been over.
    #[must_use]
    pub fn over_for(&self, now: &Moment) -> Duration {
        now.since(&self.set).saturating_sub(Duration::from_millis(self.lasts_ms))
    }
}

// === impl Bypass ===

impl Bypass {
    /// Whether the gate still stands open.
    #[must_use]
    pub fn holds(&self, now: &Moment) -> bool {
        self.timer.as_ref().is_none_or(|timer| !timer.left(now).is_zero())
    }
}

// === impl State ===

impl State {
    /// Of a node that never started an agent.
    #[must_use]
    pub fn new_node() -> Self {
        Self {
            format: FORMAT,
            started: None,
            streak: 0,
            ticket: None,
            grant: None,
            bypass: None,
            past_unknown: false,
        }
    }

    /// Of a node whose past is not known.
    #[must_use]
    pub fn unknown() -> Self {
        Self { past_unknown: true, ..Self::new_node() }
    }

    /// Whether no agent was ever started here.
    #[must_use]
    pub const fn is_new(&self) -> bool {
        self.started.is_none() && !self.past_unknown
    }

    /// All timers that run.
    pub(crate) fn timers(&mut self) -> impl Iterator<Item = &mut Timer> {
        let ticket = self.ticket.as_mut().map(|ticket| &mut ticket.timer);
        let grant = self.grant.as_mut().map(|grant| &mut grant.timer);
        let bypass = self.bypass.as_mut().and_then(|bypass| bypass.timer.as_mut());
        ticket.into_iter().chain(grant).chain(bypass)
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let state: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if state.format != FORMAT {
            return Err(format!("its format is {}, this version reads {FORMAT}", state.format));
        }
        Ok(state)
    }
}
