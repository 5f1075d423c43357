//! The kernel side of a node: loads the path's programs, owns their pins and links, and gives the kernel's
//! maps types.
//!
//! It knows bytes, maps, programs, pins and links, and nothing of what a policy means or why an endpoint exists.
#![deny(unsafe_code)]

mod cilium;
mod cleanup;
mod error;
mod events;
mod features;
mod flows;
mod links;
mod map;
mod maps;
mod nat;
mod object;
mod old_flows;
mod pins;
mod policy;
mod resize;
mod snapshot;
#[allow(unsafe_code, reason = "bpf(2) and memory shared with maps; every block says why it is sound")]
pub mod sys;
pub mod tc;
mod world;

pub use cilium::refuse_cilium;
pub use cleanup::{Cleaned, DatapathCleanup};
pub use error::{Error, Result};
pub use events::EventRing;
pub use features::{Feature, Features};
pub use flows::{Cleared, FlowKey, Flows, is_expired, now};
pub use links::{AttachMode, Attached, Attachment, Hook, Links};
pub use map::{Map, PerCpuMap};
pub use maps::{Maps, NatMaps, Sizes};
pub use nat::{Mappings, NatCleared, NatKey};
pub use object::{AllCpus, Object, Program};
pub use old_flows::OldFlows;
pub use pins::{Origin, Pins, PinsLock};
pub use policy::pin as policy_pin;
pub use policy::{
    Applied, Differences, Edited, Edits, Entries, PolicyMap, PolicyMaps, PolicyView, ROOM, ShapeSink, Shapes,
    Step, hand_insert, hand_remove, policy_endpoints, same_decision, view_entries, view_policy,
};
pub use resize::{Resized, resize};
pub use snapshot::{Snapshot, metrics};
pub use sys::{SkbContext, TestRun};
