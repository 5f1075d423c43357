//! The kernel's ipcache as the target of a reconciler.

use std::sync::Arc;

use ipnet::IpNet;
use villus_abi::{IpcacheKey, IpcacheValue};
use villus_datapath::Maps;
use villus_identity::{Claim, from_kernel, to_kernel};
use villus_table::{Op, Pruned, Snapshot, Target};

use super::Wanted;

/// So many rows are written together.
const PART: usize = 4096;

/// The map `cilium_ipcache`.
#[derive(Debug)]
pub(crate) struct IpcacheMap(pub Arc<Maps>);

/// How the map differs from the rows. A large cluster's entries are many: what is as it should be is remembered by its prefix
/// alone.
#[derive(Debug, Default)]
struct Found {
    /// Prefixes that have a row and an entry.
    prefixes: Vec<IpNet>,
    /// What has to be written.
    writes: Vec<(IpcacheKey, IpcacheValue)>,
    /// Keys without a row.
    extra: Vec<IpcacheKey>,
}

impl Found {
    /// Takes in an entry of the map.
    fn take(&mut self, rows: &Snapshot<IpNet, Claim>, key: IpcacheKey, value: IpcacheValue) {
        let prefix = from_kernel(&key, &value).map(|(prefix, _)| prefix.trunc());
        let wanted = prefix.and_then(|prefix| Some((prefix, to_kernel(prefix, &rows.get(&prefix)?.mapping))));
        let Some((prefix, wanted)) = wanted else {
            self.extra.push(key);
            return;
        };
        self.prefixes.push(prefix);
        if wanted != (key, value) {
            self.writes.push(wanted);
        }
    }

    /// After the last entry: rows without one have to be written too.
    fn miss(&mut self, rows: &Snapshot<IpNet, Claim>) {
        self.prefixes.sort_unstable();
        let mut there = self.prefixes.iter().peekable();
        for (prefix, winner) in rows.iter() {
            while there.next_if(|there| *there < prefix).is_some() {}
            if there.peek() != Some(&prefix) {
                self.writes.push(to_kernel(*prefix, &winner.mapping));
            }
        }
    }
}

impl IpcacheMap {
    /// What the map should hold.
    pub fn wanted(rows: &Snapshot<IpNet, Claim>) -> Wanted<IpcacheKey, IpcacheValue> {
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
        let mut found = Found::default();
        self.0.ipcache.each(|key, value| found.take(rows, key, value))?;
        let altered = found.writes.len();
        found.miss(rows);
        if !found.writes.is_empty() {
            self.0.ipcache.insert_all(&found.writes)?;
        }
        if !found.extra.is_empty() {
            self.0.ipcache.remove_all(&found.extra)?;
        }
        Ok(Pruned {
            missing: (found.writes.len() - altered) as u64,
            extra: found.extra.len() as u64,
            altered: altered as u64,
        })
    }

    fn fill(&mut self, rows: &Snapshot<IpNet, Claim>) -> Result<bool, Self::Error> {
        let mut part = Vec::with_capacity(PART);
        let mut rows = rows.iter().map(|(prefix, winner)| to_kernel(*prefix, &winner.mapping));
        loop {
            part.extend(rows.by_ref().take(PART));
            if part.is_empty() {
                return Ok(true);
            }
            self.0.ipcache.insert_all(&part)?;
            part.clear();
        }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use villus_identity::{Ipcache, Mapping, Rank};
    use villus_labels::NumericIdentity;

    use super::*;

    #[test]
    fn what_is_missing_altered_and_extra_is_found_whatever_the_order() {
        let cache = Ipcache::new();
        let mapping = |identity| Mapping::plain(NumericIdentity(identity));
        let prefixes: Vec<IpNet> = ["10.0.0.0/8", "10.0.0.1/32", "10.0.0.2/32", "fd00::/64", "fd00::1/128"]
            .map(|p| p.parse().unwrap())
            .into();
        for (prefix, identity) in prefixes.iter().zip(300..) {
            let claim =
                Claim { rank: Rank::Kvstore, owner: "o".into(), revision: 1, mapping: mapping(identity) };
            cache.upsert(*prefix, claim);
        }
        let rows = cache.snapshot();
        let right: Vec<_> =
            prefixes.iter().zip(300..).map(|(p, identity)| to_kernel(*p, &mapping(identity))).collect();
        let other = to_kernel("10.0.0.3/32".parse().unwrap(), &mapping(300));
        let odd = (IpcacheKey { family: 9, ..right[0].0 }, right[0].1);
        let altered = (right[3].0, right[2].1);
        for there in [
            vec![other, right[4], odd, altered, right[0], right[2]],
            vec![right[2], right[0], altered, right[4], other, odd],
        ] {
            let mut found = Found::default();
            there.iter().for_each(|(key, value)| found.take(&rows, *key, *value));
            assert_eq!(found.writes, [right[3]]);
            found.miss(&rows);
            assert_eq!(found.writes, [right[3], right[1]]);
            found.extra.sort_unstable_by_key(|key| key.family);
            assert_eq!(found.extra, [other.0, odd.0]);
        }
        let mut found = Found::default();
        found.miss(&rows);
        assert_eq!(found.writes, right, "of an empty map all is missing");
    }
}
