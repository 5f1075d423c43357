//! The kernel side of a node: loads the path's programs, owns their pins and links, and gives the kernel's
//! maps types.
//!
//! It knows bytes, maps, programs, pins and links, and nothing of what a policy means or why an endpoint exists.
#![deny(unsafe_code)]

mod error;
mod map;
mod maps;
mod object;
mod pins;
#[allow(unsafe_code, reason = "bpf(2); every block says why it is sound")]
pub mod sys;

pub use error::{Error, Result};
pub use map::{Map, PerCpuMap};
pub use maps::{Maps, Sizes};
pub use object::{Object, Program};
pub use pins::{Origin, Pins};
pub use sys::{SkbContext, TestRun};
