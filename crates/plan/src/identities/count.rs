//! Counting identities, and what each label adds to them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    ops::RangeInclusive,
};

use serde::Serialize;
use villus_labels::{
    FilterError, KEY_CLUSTER, KEY_NAMESPACE, KEY_SERVICE_ACCOUNT, Label, LabelFilter, MaxConnectedClusters,
    source,
};

use super::{Dump, Skipped, Workload, columns::Columns};

/// Values of a label that are shown.
const EXAMPLES: usize = 3;
/// What policies of Kubernetes cannot do without: never proposed to be left out.
const NEEDED: [&str; 3] = [KEY_NAMESPACE, KEY_SERVICE_ACCOUNT, KEY_CLUSTER];
/// What they mostly select by.
const SELECTED: [&str; 4] = ["app", "k8s-app", "app.kubernetes.io/name", "app.kubernetes.io/component"];

/// How many identities there would be, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Count {
    /// Workloads with an identity.
    pub workloads: usize,
    /// Different sets of labels that count.
    pub identities: usize,
    /// Identities that a cluster has.
    pub space: usize,
    /// Share of them, in percent.
    pub percent: f64,
    /// Whether only included labels count.
    pub whitelist: bool,
    /// Labels that count, the most costly first.
    pub labels: Vec<Cost>,
    /// What would make them fewer, if anything would.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<Advice>,
    /// What does not count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
}

/// What a label adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Cost {
    /// Source and key.
    pub label: String,
    /// Workloads that have it.
    pub workloads: usize,
    /// Its different values.
    pub values: usize,
    /// Identities that there would be fewer without it and without those in `alike`.
    pub saves: usize,
    /// Labels whose values it determines and that determine its: as long as one of them counts, the others add nothing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alike: Vec<String>,
    /// Some of its values.
    pub examples: Vec<String>,
}

/// Rules that would make identities fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// To be added to `labels`, all of them, in the order of what their labels add.
    pub rules: Vec<String>,
    /// Identities with them.
    pub identities: usize,
}

pub(super) type Key = (String, String);

/// Counts the identities that workloads have under the filter of the option `labels`.
///
/// # Errors
/// The filter cannot be read.
pub fn count(dump: &Dump, filter_text: &str, clusters: MaxConnectedClusters) -> Result<Count, FilterError> {
    let filter = LabelFilter::parse(filter_text)?;
    let sets = distinct(&dump.workloads, &filter);
    let columns = Columns::of(&sets);
    let costs = costs(&dump.workloads, &sets, &columns, &filter);
    let candidates = candidates(&sets, &filter, &costs);
    let advice = advise(&dump.workloads, filter_text, &columns, candidates, sets.len())?;
    let space = clusters.range(0).map_or(0, size);
    Ok(Count {
        workloads: dump.workloads.len(),
        identities: sets.len(),
        space,
        percent: 100.0 * sets.len() as f64 / space.max(1) as f64,
        whitelist: filter.is_whitelist(),
        labels: costs,
        advice,
        skipped: dump.skipped.clone(),
    })
}

fn size(range: RangeInclusive<u32>) -> usize {
    range.end().saturating_sub(*range.start()) as usize + 1
}

pub(super) fn key(label: &Label) -> Key {
    (label.source().to_owned(), label.key().to_owned())
}

fn name((source, key): &Key) -> String {
    format!("{source}:{key}")
}

/// The different sets of labels that count. A workload without any has the identity `init`, which is nobody's own.
fn distinct<'a>(workloads: &'a [Workload], filter: &LabelFilter) -> HashSet<Vec<&'a Label>> {
    let mut known: HashMap<(&str, &str), bool> = HashMap::new();
    workloads
        .iter()
        .map(|workload| {
            let mut counts = |label: &'a Label| {
                *known.entry((label.source(), label.key())).or_insert_with(|| filter.is_relevant(label))
            };
            workload.labels.iter().filter(|label| counts(label)).collect::<Vec<_>>()
        })
        .filter(|set| !set.is_empty() && set.iter().all(|label| label.source() != source::RESERVED))
        .collect()
}

fn costs(
    workloads: &[Workload],
    sets: &HashSet<Vec<&Label>>,
    columns: &Columns,
    filter: &LabelFilter,
) -> Vec<Cost> {
    let groups = columns.groups();
    let alike = |of: &Key| groups.iter().find(|group| group.contains(of)).into_iter().flatten();
    let relevant: HashSet<Key> = sets.iter().flatten().map(|label| key(label)).collect();
    let mut seen: BTreeMap<Key, (usize, BTreeMap<&str, usize>)> = BTreeMap::new();
    for label in workloads.iter().flat_map(|workload| workload.labels.iter()) {
        let key = key(label);
        if relevant.contains(&key) && filter.is_relevant(label) {
            let (count, values) = seen.entry(key).or_default();
            *count += 1;
            *values.entry(label.value()).or_default() += 1;
        }
    }
    let mut costs: Vec<Cost> = seen
        .into_iter()
        .map(|(of, (workloads, values))| Cost {
            saves: sets.len() - columns.without(|key| *key == of || alike(&of).any(|one| one == key)).count(),
            alike: alike(&of).filter(|key| **key != of).map(name).collect(),
            label: name(&of),
            workloads,
            values: values.len(),
            examples: values.keys().take(EXAMPLES).map(ToString::to_string).collect(),
        })
        .collect();
    costs.sort_by(|a, b| b.saves.cmp(&a.saves).then_with(|| a.label.cmp(&b.label)));
    costs
}

/// Leaves out all keys that may go, then takes back one after the other, each time the one that adds least, while what it adds
/// is not worth a rule: a tenth of what there is, and more than one. So keys that tell the same go together.
fn advise(
    workloads: &[Workload],
    filter_text: &str,
    columns: &Columns,
    mut candidates: Vec<Key>,
    identities: usize,
) -> Result<Option<Advice>, FilterError> {
    let mut kept = columns.without(|key| candidates.contains(key));
    let mut adding: Vec<(usize, Key)> = Vec::new();
    while !candidates.is_empty() {
        adding = candidates.drain(..).map(|key| (columns.adds(&kept, &key), key)).collect();
        adding.sort_by(|(a, one), (b, other)| b.cmp(a).then_with(|| one.cmp(other)));
        match adding.last() {
            Some((adds, key)) if *adds < 2 || adds * 10 < identities => kept = columns.add(kept, key),
            _ => break,
        }
        adding.pop();
        candidates = std::mem::take(&mut adding).into_iter().map(|(_, key)| key).collect();
    }
    if adding.is_empty() {
        return Ok(None);
    }
    let rules: Vec<String> = adding.iter().map(|(_, key)| rule(key)).collect();
    // What is proposed is counted with the filter itself.
    let filter = LabelFilter::parse(&format!("{filter_text} {}", rules.join(" ")))?;
    let left = distinct(workloads, &filter).len();
    Ok((left < identities).then_some(Advice { identities: left, rules }))
}

/// The keys that may go: not what policies cannot do without, nothing that a rule of the operator's includes, and what policies
/// mostly select by only if nearly every workload has a value of its own.
fn candidates(sets: &HashSet<Vec<&Label>>, filter: &LabelFilter, costs: &[Cost]) -> Vec<Key> {
    let labels = sets.iter().flatten().filter(|label| !filter.is_included_by_own_rule(label));
    let keys: BTreeSet<Key> = labels.map(|label| key(label)).collect();
    let may_go = |(source, key): &Key| {
        let is_own =
            |cost: &Cost| cost.label == format!("{source}:{key}") && cost.values * 2 > cost.workloads;
        !NEEDED.contains(&key.as_str()) && (!SELECTED.contains(&key.as_str()) || costs.iter().any(is_own))
    };
    keys.into_iter().filter(may_go).collect()
}

/// The rule that leaves out one key and no other.
fn rule((source, key): &Key) -> String {
    format!("{source}:!{}$", key.replace('.', "\\."))
}
