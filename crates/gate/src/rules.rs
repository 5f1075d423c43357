//! Who may start now, and who waits how long.

use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

use crate::{Moment, State, Ticket, Timer, clock::millis};

/// A turn that nobody was there to take is void after this: agents that were stopped while they waited would else all
/// start at the moment in which they come back.
pub const TURN: Duration = Duration::from_secs(60);
/// The longest rest after starts in a row, in windows.
pub const LONGEST_REST: u32 = 4;

/// What the gate says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Start now.
    Start(Reason),
    /// Ask again after this time.
    Wait(Duration),
}

/// Why a start is let through.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The node never started an agent.
    New,
    /// An operator granted one start.
    Granted,
    /// An operator opened the gate.
    Bypassed,
    /// Its turn has come.
    Turn,
}

/// Asks whether this node may start its agent now, and notes the answer in `state`.
///
/// The first start of a node is let through. Every other one draws a moment within the `window` from now on and waits
/// for it; a start that is asked for within a window of the one before rests first: one window, then two, then four,
/// counted from that one. So no node starts twice within a window. A moment that was drawn is kept over restarts of the
/// one who waits, and over boots. Where the calendar jumps, a
/// wait over a boot may become longer, by no more than was drawn.
pub fn ask(state: &mut State, now: &Moment, window: Duration, chance: &mut Rng) -> Verdict {
    state.timers().for_each(|timer| timer.carry_over(now));
    if state.bypass.as_ref().is_some_and(|bypass| !bypass.holds(now)) {
        state.bypass = None;
    }
    if state.grant.as_ref().is_some_and(|grant| grant.timer.left(now).is_zero()) {
        state.grant = None;
    }
    if state.bypass.is_some() {
        return start(state, now, Reason::Bypassed);
    }
    if state.grant.take().is_some() {
        return start(state, now, Reason::Granted);
    }
    if state.is_new() {
        return start(state, now, Reason::New);
    }
    if state.ticket.as_ref().is_some_and(|ticket| ticket.timer.over_for(now) > TURN) {
        state.ticket = None;
    }
    let ticket = match &state.ticket {
        Some(ticket) => ticket,
        None => {
            let ticket = draw(state, now, window, chance);
            state.ticket.insert(ticket)
        }
    };
    let (left, streak) = (ticket.timer.left(now), ticket.streak);
    if left.is_zero() {
        state.streak = streak;
        return start(state, now, Reason::Turn);
    }
    Verdict::Wait(left)
}

fn start(state: &mut State, now: &Moment, reason: Reason) -> Verdict {
    state.started = Some(now.clone());
    state.ticket = None;
    Verdict::Start(reason)
}

fn draw(state: &State, now: &Moment, window: Duration, chance: &mut Rng) -> Ticket {
    let ago = state.started.as_ref().map(|started| now.since(started));
    let (streak, rest) = match ago {
        Some(ago) if ago < window => {
            let streak = state.streak.saturating_add(1);
            let windows = 1u32.checked_shl(streak - 1).unwrap_or(LONGEST_REST).clamp(1, LONGEST_REST);
            (streak, window.saturating_mul(windows).saturating_sub(ago))
        }
        _ => (0, Duration::ZERO),
    };
    let wait = rest.saturating_add(window.mul_f64(chance.f64()));
    Ticket { timer: Timer::new(now, wait), window_ms: millis(window), streak }
}
