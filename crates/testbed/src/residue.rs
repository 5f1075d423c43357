//! Whether the kernel has forgotten a node.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use villus_datapath::sys::{map_by_id, prog_fd_by_id};

use crate::node::Node;

/// The programs and maps of a node by their ids, which the kernel does not soon give again.
#[derive(Clone, Debug, Default)]
pub struct Residue {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl Residue {
    /// What a node has in the kernel.
    #[must_use]
    pub fn of(node: &Node) -> Self {
        let programs = node.object.programs().collect::<Vec<_>>();
        let maps = programs.iter().flat_map(|program| program.info.maps.iter().copied());
        let policies = node.maps.policies.entries().unwrap().into_iter().map(|(_, id)| id);
        Self {
            programs: programs.iter().map(|program| program.info.id).collect(),
            maps: maps.chain(policies).collect(),
        }
    }

    /// Waits until all of it is gone; the kernel takes its time to free things.
    ///
    /// # Panics
    /// When something stays.
    pub fn check(&self, patience: Duration) {
        let end = Instant::now() + patience;
        loop {
            let programs: Vec<u32> =
                self.programs.iter().copied().filter(|&id| prog_fd_by_id(id).is_ok()).collect();
            let maps: Vec<u32> = self.maps.iter().copied().filter(|&id| map_by_id(id).is_ok()).collect();
            if programs.is_empty() && maps.is_empty() {
                return;
            }
            assert!(Instant::now() < end, "left in the kernel: programs {programs:?}, maps {maps:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
