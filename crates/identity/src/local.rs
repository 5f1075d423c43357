//! Numbers for prefixes and for nodes, known to this node alone.

use std::{
    collections::{BTreeMap, HashSet},
    fmt, fs, io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use villus_durable::{FileError, set_aside, write_atomic};
use villus_labels::{Labels, NumericIdentity, cidr_labels};

use crate::{error::LocalError, identities::Identities};

/// What [`Checkpoint::version`] says.
const VERSION: u32 = 1;

/// What gets numbers that mean something to this node only.
pub trait Numbered: Clone + Ord + fmt::Display + Serialize + DeserializeOwned {
    /// The numbers that there are.
    const NUMBERS: RangeInclusive<u32>;
    /// What to look for when they are used up.
    const TOO_MANY: &'static str;

    /// The form in which equal ones are equal.
    fn canonical(&self) -> Self;

    /// The labels of its identity.
    fn labels(&self) -> Labels;
}

/// Identities of prefixes ([`IpNet`]), with the labels of every covering prefix, or of nodes ([`Labels`]): reference
/// counted, kept across restarts. A number rests before it stands for something else, so that no flow or map entry of the old
/// one speaks for the new one.
pub struct LocalIdentities<K = IpNet> {
    table: Identities,
    rest: Duration,
    inner: Mutex<Inner<K>>,
}

/// Identities of nodes by what policy knows of them: `(2 << 24) | n`.
pub type NodeIdentities = LocalIdentities<Labels>;

struct Inner<K> {
    used: BTreeMap<K, Used>,
    /// What had a number: it is its again if it comes back before then. `None`: from a checkpoint, until
    /// [`LocalIdentities::end_restore`].
    kept: BTreeMap<K, (NumericIdentity, Option<Instant>)>,
    /// Numbers of `used` and `kept`.
    numbers: HashSet<NumericIdentity>,
    /// Where the search for a free number goes on.
    next: u32,
    /// Counts changes that a checkpoint should hold.
    changes: u64,
    saved: u64,
}

struct Used {
    number: NumericIdentity,
    references: u32,
}

/// All numbers, as kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint<K = IpNet> {
    /// Version of this layout.
    pub version: u32,
    /// What has which number.
    pub identities: Vec<(K, NumericIdentity)>,
}

// === impl Numbered ===

impl Numbered for IpNet {
    const NUMBERS: RangeInclusive<u32> =
        *NumericIdentity::LOCAL_RANGE.start()..=*NumericIdentity::INTERIM_RANGE.start() - 1;
    const TOO_MANY: &'static str = "policies name too many different prefixes";

    fn canonical(&self) -> Self {
        self.trunc()
    }

    fn labels(&self) -> Labels {
        cidr_labels(*self)
    }
}

impl Numbered for Labels {
    const NUMBERS: RangeInclusive<u32> = NumericIdentity::REMOTE_NODE_RANGE;
    const TOO_MANY: &'static str = "nodes have too many different labels and addresses";

    fn canonical(&self) -> Self {
        self.clone()
    }

    fn labels(&self) -> Labels {
        self.clone()
    }
}

// === impl LocalIdentities ===

impl<K: Numbered> LocalIdentities<K> {
    /// Nothing has a number yet. A number rests for `rest` after it was given back.
    pub fn new(table: Identities, rest: Duration) -> Self {
        Self { table, rest, inner: Mutex::default() }
    }

    /// The number of something; each call takes a reference.
    ///
    /// # Errors
    /// When all [`Numbered::NUMBERS`] are taken.
    pub fn acquire(&self, key: K, now: Instant) -> Result<NumericIdentity, LocalError> {
        let key = key.canonical();
        let mut inner = self.inner();
        if let Some(used) = inner.used.get_mut(&key) {
            used.references += 1;
            return Ok(used.number);
        }
        let number = inner.take_number(&key, now)?;
        let labels = key.labels();
        inner.used.insert(key, Used { number, references: 1 });
        inner.changes += 1;
        self.table.put(number, labels);
        Ok(number)
    }

    /// Gives a reference back. Returns whether it was the last one: the identity is then gone from the table,
    /// and its number rests.
    pub fn release(&self, key: K, now: Instant) -> bool {
        let key = key.canonical();
        let mut inner = self.inner();
        let Some(used) = inner.used.get_mut(&key) else { return false };
        used.references -= 1;
        if used.references > 0 {
            return false;
        }
        if let Some(used) = inner.used.remove(&key) {
            inner.kept.insert(key, (used.number, Some(now + self.rest)));
            inner.changes += 1;
            self.table.delete(&used.number);
        }
        true
    }

    /// The number of something, if it has one.
    pub fn lookup(&self, key: K) -> Option<NumericIdentity> {
        self.inner().used.get(&key.canonical()).map(|used| used.number)
    }

    /// How many numbers are in use.
    pub fn len(&self) -> usize {
        self.inner().used.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What a restart should know: the numbers in use, and those still kept for what had them.
    pub fn checkpoint(&self) -> Checkpoint<K> {
        let inner = self.inner();
        let used = inner.used.iter().map(|(key, used)| (key.clone(), used.number));
        let kept = inner.kept.iter().map(|(key, (number, _))| (key.clone(), *number));
        let identities: BTreeMap<_, _> = kept.chain(used).collect();
        Checkpoint { version: VERSION, identities: identities.into_iter().collect() }
    }

    /// Keeps the numbers of a checkpoint for what had them, until [`LocalIdentities::end_restore`]. Entries that make no
    /// sense, and what is taken, are left out; returns how many.
    pub fn restore(&self, checkpoint: &Checkpoint<K>) -> usize {
        let mut inner = self.inner();
        let mut refused = 0;
        for (key, number) in &checkpoint.identities {
            let key = key.canonical();
            let sound = K::NUMBERS.contains(&number.0);
            let taken = inner.used.contains_key(&key) || inner.kept.contains_key(&key);
            if !sound || taken || !inner.numbers.insert(*number) {
                refused += 1;
                continue;
            }
            inner.kept.insert(key, (*number, None));
        }
        refused
    }

    /// Gives up the numbers of the checkpoint that nobody came back for: they rest, then they are free.
    pub fn end_restore(&self, now: Instant) {
        let rest = self.rest;
        let mut inner = self.inner();
        for (_, until) in inner.kept.values_mut() {
            until.get_or_insert(now + rest);
        }
        inner.changes += 1;
    }

    /// Writes the checkpoint to `path` if something changed since it was last written. Returns whether.
    ///
    /// # Errors
    /// When the file can't be written; the old one is then still there.
    pub fn save(&self, path: &Path) -> Result<bool, FileError> {
        let (changes, saved) = {
            let inner = self.inner();
            (inner.changes, inner.saved)
        };
        if changes == saved {
            return Ok(false);
        }
        let failed = |source: serde_json::Error| FileError {
            path: path.to_owned(),
            what: "can't be written",
            source: source.into(),
        };
        write_atomic(path, &serde_json::to_vec(&self.checkpoint()).map_err(failed)?)?;
        self.inner().saved = changes;
        Ok(true)
    }

    /// Restores the checkpoint at `path`. A missing file is an empty one; a damaged one is moved aside and
    /// returned with the reason.
    ///
    /// # Errors
    /// When the file can't be read or moved aside.
    pub fn load(&self, path: &Path) -> Result<Option<(PathBuf, String)>, FileError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(FileError { path: path.to_owned(), what: "can't be read", source }),
        };
        let reason = match serde_json::from_slice::<Checkpoint<K>>(&bytes) {
            Ok(checkpoint) if checkpoint.version == VERSION => {
                let refused = self.restore(&checkpoint);
                if refused > 0 {
                    tracing::warn!(file = %path.display(), refused, "entries of local identities were left out");
                }
                return Ok(None);
            }
            Ok(checkpoint) => format!("version {} is not {VERSION}", checkpoint.version),
            Err(error) => error.to_string(),
        };
        Ok(Some((set_aside(path)?, reason)))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Inner ===

impl<K> Default for Inner<K> {
    fn default() -> Self {
        Self {
            used: BTreeMap::new(),
            kept: BTreeMap::new(),
            numbers: HashSet::new(),
            next: 0,
            changes: 0,
            saved: 0,
        }
    }
}

impl<K: Numbered> Inner<K> {
    fn take_number(&mut self, key: &K, now: Instant) -> Result<NumericIdentity, LocalError> {
        if let Some((number, _)) = self.kept.remove(key) {
            return Ok(number);
        }
        let (first, last) = (*K::NUMBERS.start(), *K::NUMBERS.end());
        let count = last - first + 1;
        if self.numbers.len() as u32 >= count {
            self.wake(now);
        }
        if self.numbers.len() as u32 >= count {
            let (of, used) = (key.to_string(), self.numbers.len());
            return Err(LocalError::Exhausted { of, used, why: K::TOO_MANY });
        }
        // Numbers that rested long enough are given free from time to time only: nobody waits for them.
        if self.kept.len() > 64 && self.kept.len() > self.used.len() {
            self.wake(now);
        }
        loop {
            let number = NumericIdentity(first + self.next % count);
            self.next = (self.next + 1) % count;
            if self.numbers.insert(number) {
                return Ok(number);
            }
        }
    }

    /// Frees numbers that have rested.
    fn wake(&mut self, now: Instant) {
        let numbers = &mut self.numbers;
        self.kept.retain(|_, (number, until)| {
            let resting = until.is_none_or(|until| now < until);
            if !resting {
                numbers.remove(number);
            }
            resting
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{identities::new_identities, reserved::Reserved};

    const REST: Duration = Duration::from_secs(30);

    fn setup() -> (LocalIdentities, Identities, Instant) {
        let table = new_identities(&Reserved::new());
        (LocalIdentities::new(table.clone(), REST), table, Instant::now())
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_counted_and_carry_their_labels() {
        let (local, table, now) = setup();
        let number = local.acquire(net("10.1.2.3/8"), now).unwrap();
        assert_eq!(number.0, 1 << 24 | 1);
        assert_eq!(
            local.acquire(net("10.0.0.0/8"), now).unwrap(),
            number,
            "bits behind the prefix do not count"
        );
        assert_eq!(table.get(&number).unwrap(), cidr_labels(net("10.0.0.0/8")));
        assert!(table.get(&number).unwrap().has_reserved("world"));
        assert!(!local.release(net("10.0.0.0/8"), now));
        assert!(local.release(net("10.0.0.0/8"), now));
        assert!(!local.release(net("10.0.0.0/8"), now));
        assert_eq!((table.get(&number), local.len()), (None, 0));
    }

    #[test]
    fn a_number_rests_and_is_kept_for_its_prefix() {
        let (local, _, now) = setup();
        let a = local.acquire(net("10.0.0.0/8"), now).unwrap();
        local.release(net("10.0.0.0/8"), now);
        let b = local.acquire(net("11.0.0.0/8"), now).unwrap();
        assert_ne!(a, b);
        assert_eq!(local.acquire(net("10.0.0.0/8"), now + REST * 2).unwrap(), a);
    }

    #[test]
    fn numbers_survive_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("local.json");
        let (before, _, now) = setup();
        let a = before.acquire(net("10.0.0.0/8"), now).unwrap();
        let b = before.acquire(net("fd00::/64"), now).unwrap();
        before.release(net("10.0.0.0/8"), now);
        assert!(before.save(&path).unwrap());
        assert!(!before.save(&path).unwrap(), "nothing changed");

        let (after, table, now) = setup();
        assert_eq!(after.load(&path).unwrap(), None);
        assert_eq!(after.checkpoint(), before.checkpoint());
        let other = after.acquire(net("12.0.0.0/8"), now).unwrap();
        assert!(other != a && other != b);
        assert_eq!(after.acquire(net("fd00::/64"), now).unwrap(), b);
        assert_eq!(after.acquire(net("10.0.0.0/8"), now).unwrap(), a);
        assert_eq!(table.get(&a).unwrap(), cidr_labels(net("10.0.0.0/8")));
    }

    #[test]
    fn thousands_of_prefixes_of_both_families_keep_their_numbers_and_their_covering_prefixes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("local.json");
        let prefixes: Vec<IpNet> = (0..8000u32)
            .map(|i| match i % 4 {
                0 => format!("10.{}.{}.0/24", i >> 8, i & 255),
                1 => format!("10.{}.0.0/{}", i & 255, 12 + i % 12),
                2 => format!("2001:db8:{i:x}::/48"),
                _ => format!("2001:db8:{:x}::/{}", i & 0xfc, 33 + i % 15),
            })
            .map(|text| net(&text).trunc())
            .collect();
        let (before, table, now) = setup();
        let numbers: Vec<NumericIdentity> =
            prefixes.iter().map(|prefix| before.acquire(*prefix, now).unwrap()).collect();
        let distinct: BTreeMap<IpNet, NumericIdentity> =
            prefixes.iter().copied().zip(numbers.iter().copied()).collect();
        assert!(distinct.len() > 4000 && before.len() == distinct.len());
        assert_eq!(distinct.values().collect::<HashSet<_>>().len(), distinct.len());
        for (prefix, number) in &distinct {
            assert!(number.is_local());
            let labels = table.get(number).unwrap();
            assert_eq!(labels, cidr_labels(*prefix));
            // A few others, and whether they cover it.
            for other in distinct.keys().step_by(397) {
                let label = villus_labels::cidr_label(*other);
                assert_eq!(labels.get(label.key()).is_some(), other.contains(prefix), "{other} {prefix}");
            }
        }
        assert!(before.save(&path).unwrap());

        let (after, _, now) = setup();
        assert_eq!(after.load(&path).unwrap(), None);
        // In another order, and some do not come back.
        for (prefix, number) in distinct.iter().rev().step_by(2) {
            assert_eq!(after.acquire(*prefix, now).unwrap(), *number);
        }
        after.end_restore(now);
        let fresh = after.acquire(net("192.0.2.0/24"), now).unwrap();
        assert!(!distinct.values().any(|number| *number == fresh), "numbers that did not come back rest");
        for prefix in &prefixes {
            before.release(*prefix, now);
        }
        assert!(before.is_empty());
        assert!(distinct.values().all(|number| table.get(number).is_none()));
    }

    #[test]
    fn a_missing_checkpoint_is_empty_and_a_damaged_one_is_kept_aside() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("local.json");
        let (local, _, _) = setup();
        assert_eq!(local.load(&path).unwrap(), None);
        for text in ["{", "", r#"{"version":1,"identities":[["x",1]]}"#, r#"{"version":9,"identities":[]}"#] {
            fs::write(&path, text).unwrap();
            let (aside, reason) = local.load(&path).unwrap().unwrap();
            assert_eq!(fs::read_to_string(&aside).unwrap(), text, "{reason}");
            assert!(!path.exists());
            fs::remove_file(aside).unwrap();
        }
        let odd = Checkpoint {
            version: VERSION,
            identities: vec![
                (net("10.0.0.0/8"), NumericIdentity(1 << 24 | 7)),
                (net("11.0.0.0/8"), NumericIdentity(1 << 24 | 7)),
                (net("10.0.0.0/8"), NumericIdentity(1 << 24 | 8)),
                (net("12.0.0.0/8"), NumericIdentity(300)),
                (net("13.0.0.0/8"), NumericIdentity(1 << 24)),
            ],
        };
        assert_eq!(local.restore(&odd), 4);
    }

    #[test]
    fn nodes_that_are_alike_share_a_number_of_their_own_range() {
        let table = new_identities(&Reserved::new());
        let (nodes, now) = (NodeIdentities::new(table.clone(), REST), Instant::now());
        let labels = |text| Labels::parse_list(text, "node").unwrap();
        let east = nodes.acquire(labels("reserved:remote-node,zone=east"), now).unwrap();
        assert_eq!(nodes.acquire(labels("zone=east,reserved:remote-node"), now).unwrap(), east);
        let west = nodes.acquire(labels("reserved:remote-node,zone=west"), now).unwrap();
        assert_eq!((east.0, west.0), (2 << 24 | 1, 2 << 24 | 2));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("nodes.json");
        assert!(nodes.save(&path).unwrap());
        let after = NodeIdentities::new(table, REST);
        assert_eq!(after.load(&path).unwrap(), None);
        assert_eq!(after.acquire(labels("reserved:remote-node,zone=west"), now).unwrap(), west);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(ProptestConfig::default().cases * 200 / 256) })]

        #[test]
        fn no_two_prefixes_ever_share_a_number(
            actions in prop::collection::vec((0u8..12, 0u8..4, 0u64..40), 0..150),
        ) {
            let (local, table, mut now) = setup();
            let mut counts: BTreeMap<IpNet, u32> = BTreeMap::new();
            let mut last: BTreeMap<NumericIdentity, (IpNet, Instant)> = BTreeMap::new();
            for (n, action, secs) in actions {
                now += Duration::from_secs(secs);
                let prefix = net(&format!("10.{n}.0.0/16"));
                match action {
                    0 | 1 => {
                        let number = local.acquire(prefix, now).unwrap();
                        if let Some((old, freed)) = last.insert(number, (prefix, now)) {
                            prop_assert!(old == prefix || now >= freed + REST);
                        }
                        *counts.entry(prefix).or_default() += 1;
                    }
                    2 => {
                        let count = counts.entry(prefix).or_default();
                        let number = local.lookup(prefix);
                        prop_assert_eq!(local.release(prefix, now), *count == 1);
                        *count = count.saturating_sub(1);
                        if let Some(number) = number {
                            last.insert(number, (prefix, now));
                        }
                    }
                    _ => local.end_restore(now),
                }
                for (prefix, count) in &counts {
                    prop_assert_eq!(local.lookup(*prefix).is_some(), *count > 0);
                }
                let rows = table.snapshot().iter().filter(|(number, _)| number.is_local()).count();
                prop_assert_eq!(rows, local.len());
            }
        }
    }
}
