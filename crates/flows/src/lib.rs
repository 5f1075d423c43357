//! The kernel's event records as flows.
//!
//! A record of the ring `villus_events_v1` becomes a [`FlowEvent`]; events are kept in a bounded
//! [`History`], handed to observers, counted, filtered, printed as the lines of `villus monitor`, and written to disk
//! and read again as [`hubble`] does.
//!
//! The crate refuses to know how the ring is read (that is `villus-datapath`), what an identity's labels are
//! (callers bring [`Names`] and [`hubble::Workloads`]) and how events travel to another process.
#![forbid(unsafe_code)]

mod counters;
mod error;
mod event;
mod filter;
mod history;
pub mod hubble;
mod json;
mod line;
mod named;
mod packet;
mod why;

pub use counters::{CounterRow, Counters};
pub use error::{DecodeError, FilterError, WhyError};
pub use event::{Action, FlowEvent, Kind, PolicyName};
pub use filter::{EventType, Filter, FilterSpec};
pub use history::{History, LossSource, Observer, Record};
pub use line::{LineFormat, Names, Numeric};
pub use named::{Hook, Match, Point, State};
pub use packet::{Packet, TcpFlags, protocol_name, protocol_number};
pub use villus_abi::{Direction, Reason};
pub use why::{PortProto, WhyQuery};
