//! The kernel's ipcache as the target of a reconciler.

use std::sync::Arc;

use ipnet::IpNet;
use villus_datapath::Maps;
use villus_identity::{Winner, to_kernel};
use villus_table::{Op, Pruned, Snapshot, Target};

use super::{Wanted, make_equal};

/// The map `cilium_ipcache`.
#[derive(Debug)]
pub(crate) struct IpcacheMap(pub Arc<Maps>);

impl IpcacheMap {
    /// What the map should hold.
    pub fn wanted(
        rows: &Snapshot<IpNet, Winner>,
    ) -> Wanted<villus_abi::IpcacheKey, villus_abi::IpcacheValue> {
        rows.iter().map(|(prefix, winner)| to_kernel(*prefix, &winner.mapping)).collect()
    }
}

impl Target<IpNet, Winner> for IpcacheMap {
    type Error = villus_datapath::Error;

    fn update(&mut self, prefix: &IpNet, winner: &Winner) -> Result<(), Self::Error> {
        let (key, value) = to_kernel(*prefix, &winner.mapping);
        self.0.ipcache.insert(&key, &value)
    }

    fn delete(&mut self, prefix: &IpNet) -> Result<(), Self::Error> {
        let nobody = villus_identity::Mapping::plain(villus_labels::NumericIdentity::UNKNOWN);
        self.0.ipcache.remove(&to_kernel(*prefix, &nobody).0).map(drop)
    }

    fn prune(&mut self, rows: &Snapshot<IpNet, Winner>) -> Result<Pruned, Self::Error> {
        let drift = make_equal(&self.0.ipcache, &Self::wanted(rows))?;
        Ok(Pruned {
            missing: drift.missing.len() as u64,
            extra: drift.extra.len() as u64,
            altered: drift.altered.len() as u64,
        })
    }

    fn apply(&mut self, ops: &[Op<IpNet, Winner>]) -> Vec<Result<(), Self::Error>> {
        // Many at once, where the kernel takes them all.
        let puts = ops.iter().map(|op| Some(to_kernel(op.key, &op.value.as_ref()?.mapping)));
        if let Some(puts) = puts.collect::<Option<Vec<_>>>()
            && self.0.ipcache.insert_all(&puts).is_ok()
        {
            return ops.iter().map(|_| Ok(())).collect();
        }
        ops.iter()
            .map(|op| match &op.value {
                Some(winner) => self.update(&op.key, winner),
                None => self.delete(&op.key),
            })
            .collect()
    }
}
