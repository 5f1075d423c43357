//! What numbers in events stand for, at one moment.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use villus_flows::hubble::{Origin, Workload, Workloads};
use villus_labels::{Labels, NumericIdentity};
use villus_table::Snapshot;

use crate::node::Node;

/// Labels of identities and names of endpoints.
pub(crate) struct Names {
    origin: Origin,
    identities: Snapshot<NumericIdentity, Labels>,
    workloads: BTreeMap<u16, Workload>,
}

impl Names {
    /// Where and when: this node, and its clock.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl Workloads for Names {
    fn labels(&self, identity: u32) -> Option<Labels> {
        self.identities.get(&NumericIdentity(identity)).cloned()
    }

    fn workload(&self, endpoint: u16) -> Option<&Workload> {
        self.workloads.get(&endpoint)
    }
}

impl Node {
    /// What numbers in events stand for now.
    pub fn names(&self) -> Names {
        let workload = |endpoint: &crate::endpoint::Endpoint| {
            let names = &endpoint.file.names;
            let name = [&names.k8s_pod_name, &names.container_name, &names.owner, &names.netns];
            let pod_name = name.into_iter().flatten().next().cloned().unwrap_or_default();
            (endpoint.id(), Workload { pod_name })
        };
        Names {
            origin: Origin {
                node_name: format!("{}/{}", self.cluster, self.name),
                cluster: self.cluster.clone(),
                boot: boot_time(),
            },
            identities: self.identities.table.snapshot(),
            workloads: self.endpoints.values().map(workload).collect(),
        }
    }
}

/// The moment at which the clock of events stood at 0; it moves when somebody sets the clock of the day.
fn boot_time() -> Timestamp {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let since = SignedDuration::new(at.tv_sec, i32::try_from(at.tv_nsec).unwrap_or(0));
    Timestamp::now().saturating_sub(since).unwrap_or(Timestamp::UNIX_EPOCH)
}
