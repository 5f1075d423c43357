//! The kernel's ipcache as the target of a reconciler.

use std::sync::Arc;

use ipnet::IpNet;
use villus_datapath::Maps;
use villus_identity::{Claim, from_kernel, to_kernel};
use villus_table::{Op, Pruned, Snapshot, Target};

use super::Wanted;

/// The map `cilium_ipcache`.
#[derive(Debug)]
pub(crate) struct IpcacheMap(pub Arc<Maps>);

impl IpcacheMap {
    /// What the map should hold.
    pub fn wanted(rows: &Snapshot<IpNet, Claim>) -> Wanted<villus_abi::IpcacheKey, villus_abi::IpcacheValue> {
        rows.iter().map(|(prefix, winner)| to_kernel(*prefix, &winner.mapping)).collect()
    }
}

impl Target<IpNet, Claim> for IpcacheMap {
    type Error = villus_datapath::Error;

    fn update(&mut self, prefix: &IpNet, winner: &Claim) -> Result<(), Self::Error> {
        let (key, value) = to_kernel(*prefix, &winner.mapping);
        self.0.ipcache.insert(&key, &value)
    }

    fn delete(&mut self, prefix: &IpNet) -> Result<(), Self::Error> {
        let nobody = villus_identity::Mapping::plain(villus_labels::NumericIdentity::UNKNOWN);
        self.0.ipcache.remove(&to_kernel(*prefix, &nobody).0).map(drop)
    }

    fn prune(&mut self, rows: &Snapshot<IpNet, Claim>) -> Result<Pruned, Self::Error> {
        // A large cluster's entries are many: what is as it should be is remembered by its prefix alone.
        let mut right = Vec::with_capacity(rows.len());
        let (mut writes, mut extra) = (Vec::new(), Vec::new());
        self.0.ipcache.each(|key, value| {
            let prefix = from_kernel(&key, &value).map(|(prefix, _)| prefix.trunc());
            let wanted =
                prefix.and_then(|prefix| Some((prefix, to_kernel(prefix, &rows.get(&prefix)?.mapping))));
            match wanted {
                Some((prefix, wanted)) if wanted == (key, value) => right.push(prefix),
                Some((prefix, wanted)) => {
                    right.push(prefix);
                    writes.push(wanted);
                }
                None => extra.push(key),
            }
        })?;
        let altered = writes.len();
        right.sort_unstable();
        let mut right = right.into_iter().peekable();
        for (prefix, winner) in rows.iter() {
            while right.next_if(|there| there < prefix).is_some() {}
            if right.peek() != Some(prefix) {
                writes.push(to_kernel(*prefix, &winner.mapping));
            }
        }
        if !writes.is_empty() {
            self.0.ipcache.insert_all(&writes)?;
        }
        if !extra.is_empty() {
            self.0.ipcache.remove_all(&extra)?;
        }
        Ok(Pruned {
            missing: (writes.len() - altered) as u64,
            extra: extra.len() as u64,
            altered: altered as u64,
        })
    }

    fn apply(&mut self, ops: &[Op<IpNet, Claim>]) -> Vec<Result<(), Self::Error>> {
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
