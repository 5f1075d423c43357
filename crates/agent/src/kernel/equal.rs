//! Making a kernel map equal to what is wanted, and saying what differed.

use std::collections::HashMap;
use std::hash::Hash;

use villus_abi::Bytes;
use villus_datapath::Map;

/// What a map should hold.
pub(crate) type Wanted<K, V> = HashMap<K, V>;

/// How a map differed.
#[derive(Debug, Clone)]
pub(crate) struct Drift<K, V> {
    /// Wanted and not there.
    pub missing: Vec<(K, V)>,
    /// There and not wanted.
    pub extra: Vec<(K, V)>,
    /// There with another value: key, wanted, found.
    pub altered: Vec<(K, V, V)>,
}

impl<K, V> Drift<K, V> {
    /// How many entries differed.
    pub fn total(&self) -> usize {
        self.missing.len() + self.extra.len() + self.altered.len()
    }
}

impl<K: Copy + Eq + Hash, V: Copy + PartialEq> Drift<K, V> {
    /// Compares.
    pub fn between(wanted: &Wanted<K, V>, there: &[(K, V)]) -> Self {
        let mut drift = Self { missing: Vec::new(), extra: Vec::new(), altered: Vec::new() };
        let mut found = std::collections::HashSet::with_capacity(there.len());
        for (key, value) in there {
            found.insert(*key);
            match wanted.get(key) {
                None => drift.extra.push((*key, *value)),
                Some(want) if want != value => drift.altered.push((*key, *want, *value)),
                Some(_) => {}
            }
        }
        drift.missing.extend(wanted.iter().filter(|(key, _)| !found.contains(key)).map(|(k, v)| (*k, *v)));
        drift
    }
}

/// Makes a hash map equal to `wanted`: what is missing and wrong is written first, what is too much goes then.
///
/// # Errors
/// When the kernel refuses; what was done before stays done.
pub(crate) fn make_equal<K, V>(map: &Map<K, V>, wanted: &Wanted<K, V>) -> villus_datapath::Result<Drift<K, V>>
where
    K: Bytes + Eq + Hash,
    V: Bytes + PartialEq,
{
    let drift = Drift::between(wanted, &map.entries()?);
    let writes: Vec<(K, V)> =
        drift.missing.iter().copied().chain(drift.altered.iter().map(|(k, want, _)| (*k, *want))).collect();
    if !writes.is_empty() {
        map.insert_all(&writes)?;
    }
    let gone: Vec<K> = drift.extra.iter().map(|(key, _)| *key).collect();
    if !gone.is_empty() {
        map.remove_all(&gone)?;
    }
    Ok(drift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drift_names_what_is_missing_extra_and_altered() {
        let wanted = Wanted::from([(1, 1), (2, 2), (3, 3)]);
        let drift = Drift::between(&wanted, &[(2, 2), (3, 9), (4, 4)]);
        assert_eq!(drift.missing, [(1, 1)]);
        assert_eq!(drift.extra, [(4, 4)]);
        assert_eq!(drift.altered, [(3, 3, 9)]);
        assert_eq!(drift.total(), 3);
    }
}
