//! What an operator does by hand when policy denies traffic and nobody is there to change it.
//!
//! A deed puts entries that allow everything into the policy maps of endpoints and, if asked to, takes entries
//! that deny out of them. [`Plan`] says what a deed would change and what would still block; [`carry_out`] does
//! it; [`undo`] takes it back. Each deed is first written to a [`Journal`] in the agent's `lib-dir`, so that the
//! agent honours it ([`State::overridden`], [`State::put_back`], [`State::is_held`]) and any later command can
//! undo it. None of this needs an agent.
//!
//! [`Lines`] is the file of a journal, for any kind of record.
//!
//! The crate refuses to know what policy asks for, and decides nothing by itself.
#![forbid(unsafe_code)]

mod boot;
mod deed;
mod error;
mod journal;
mod key;
mod lines;
mod plan;
mod record;
mod state;

pub use boot::boot_id;
pub use deed::{Outcome, Undone, carry_out, remove_hand_made, undo};
pub use error::EmergencyError;
pub use journal::{Journal, Log};
pub use key::{direction_text, hand_id, key_text, parse_hand_id, port_text};
pub use lines::{Lines, Parsed};
pub use plan::{Order, Plan, name};
pub use record::{Allow, Change, Event, Record, Taken, rfc3339};
pub use state::{Deed, Hold, State};
