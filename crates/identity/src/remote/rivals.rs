//! Several keys that say different things of one address: the last word counts, and that it is not the only one is said.

use std::{collections::BTreeSet, sync::Arc};

use ipnet::IpNet;

use super::{AddressRecord, Layer, Remote};
use crate::ipcache::{Claim, Edit};

// === impl Remote ===

impl Remote {
    /// Says which keys lose a prefix to another that says something else of it, and which do no more. To be called whenever what
    /// keys say of the prefix has changed.
    pub(super) fn settle_rivals(&mut self, edit: &Edit<'_>, prefix: IpNet) {
        let claims = edit.contested(prefix);
        let before = self.rivals.remove(&prefix);
        if claims.is_empty() && before.is_none() {
            return;
        }
        let losers = self.losers(&claims, prefix);
        for key in before.iter().flatten().filter(|key| losers.iter().all(|(loser, _)| loser != *key)) {
            self.refused.accept(key);
        }
        let keys: BTreeSet<_> = losers.iter().map(|(key, _)| Arc::clone(key)).collect();
        for (key, reason) in losers {
            self.refused.refuse(&key, reason);
        }
        if !keys.is_empty() {
            self.rivals.insert(prefix, keys);
        }
    }

    /// Whether a key loses a prefix to another.
    pub(super) fn is_rival(&self, key: &str, prefix: IpNet) -> bool {
        self.rivals.get(&prefix).is_some_and(|keys| keys.contains(key))
    }

    /// Keys that say something else of a prefix than the one that counts, and in which way. The same entry in several layers, and
    /// what nobody stands behind any more, contests nothing.
    fn losers(&self, claims: &[Claim], prefix: IpNet) -> Vec<(Arc<str>, String)> {
        let mut of_keys = claims.iter().filter_map(|claim| {
            let address = self.addresses.get(&claim.owner)?;
            (!self.stale.contains_key(&claim.owner)).then_some((&claim.owner, address))
        });
        let Some((first, winner)) = of_keys.next() else { return Vec::new() };
        let says = |address: &AddressRecord| (address.identity, address.host, address.key);
        let entry = Layer::in_state(first);
        of_keys
            .filter(|(key, address)| says(address) != says(winner) && Layer::in_state(key) != entry)
            .map(|(key, address)| {
                let reason = format!(
                    "of {prefix} it says {}, `{first}` says {}, which counts: delete the one that is wrong",
                    said(address),
                    said(winner)
                );
                (Arc::clone(key), reason)
            })
            .collect()
    }
}

fn said(address: &AddressRecord) -> String {
    let host = address.host.map_or_else(|| "no node".to_owned(), |host| host.to_string());
    format!("identity {} behind {host}", address.identity)
}
