//! Counting identities, and what each label adds to them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::RangeInclusive,
};

use serde::Serialize;
use villus_labels::{
    FilterError, KEY_CLUSTER, KEY_NAMESPACE, KEY_SERVICE_ACCOUNT, Label, LabelFilter, MaxConnectedClusters,
    source,
};

use super::{Dump, Skipped, Workload};

/// Values of a label that are shown.
const EXAMPLES: usize = 3;
/// Rules that are proposed at most.
const MOST_RULES: usize = 8;
/// What policies of Kubernetes cannot do without: never proposed to be left out.
const NEEDED: [&str; 3] = [KEY_NAMESPACE, KEY_SERVICE_ACCOUNT, KEY_CLUSTER];

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
    /// Identities that there would be fewer without it.
    pub saves: usize,
    /// Some of its values.
    pub examples: Vec<String>,
}

/// Rules that would make identities fewer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// To be added to `labels`, in the order of what they save.
    pub rules: Vec<String>,
    /// Identities with them.
    pub identities: usize,
}

type Key = (String, String);

/// Counts the identities that workloads have under the filter of the option `labels`.
///
/// # Errors
/// The filter cannot be read.
pub fn count(dump: &Dump, filter_text: &str, clusters: MaxConnectedClusters) -> Result<Count, FilterError> {
    let filter = LabelFilter::parse(filter_text)?;
    let sets = distinct(&dump.workloads, &filter);
    let costs = costs(&dump.workloads, &sets, &filter);
    let advice = advise(&dump.workloads, filter_text, &sets, &costs)?;
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

fn key(label: &Label) -> Key {
    (label.source().to_owned(), label.key().to_owned())
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

/// How many different sets are left without some keys.
fn without(sets: &HashSet<Vec<&Label>>, left_out: impl Fn(&Label) -> bool) -> usize {
    let shorter: HashSet<Vec<&Label>> =
        sets.iter().map(|set| set.iter().copied().filter(|label| !left_out(label)).collect()).collect();
    shorter.len()
}

fn costs(workloads: &[Workload], sets: &HashSet<Vec<&Label>>, filter: &LabelFilter) -> Vec<Cost> {
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
        .map(|((source, key), (workloads, values))| Cost {
            saves: sets.len() - without(sets, |label| label.source() == source && label.key() == key),
            label: format!("{source}:{key}"),
            workloads,
            values: values.len(),
            examples: values.keys().take(EXAMPLES).map(ToString::to_string).collect(),
        })
        .collect();
    costs.sort_by(|a, b| b.saves.cmp(&a.saves).then_with(|| a.label.cmp(&b.label)));
    costs
}

/// Leaves out one key after the other, each time the one that saves most, while that is worth a rule: a tenth of what
/// there is, and more than one.
fn advise(
    workloads: &[Workload],
    filter_text: &str,
    sets: &HashSet<Vec<&Label>>,
    costs: &[Cost],
) -> Result<Option<Advice>, FilterError> {
    let mut sets = sets.clone();
    let mut rules = Vec::new();
    let may_go = |cost: &&Cost| !NEEDED.iter().any(|needed| cost.label.ends_with(&format!(":{needed}")));
    let mut candidates: Vec<&Cost> = costs.iter().filter(may_go).collect();
    while rules.len() < MOST_RULES && !candidates.is_empty() {
        let is_of = |label: &Label, cost: &Cost| {
            cost.label.strip_prefix(label.source()).and_then(|rest| rest.strip_prefix(':'))
                == Some(label.key())
        };
        let best = candidates
            .iter()
            .enumerate()
            .map(|(index, cost)| (sets.len() - without(&sets, |label| is_of(label, cost)), index))
            .max_by_key(|(saves, index)| (*saves, usize::MAX - index));
        let Some((saves, index)) = best else { break };
        if saves < 2 || saves * 10 < sets.len() {
            break;
        }
        let cost = candidates.remove(index);
        sets = sets
            .into_iter()
            .map(|set| set.into_iter().filter(|label| !is_of(label, cost)).collect())
            .collect();
        rules.push(rule(&cost.label));
    }
    if rules.is_empty() {
        return Ok(None);
    }
    // What is proposed is counted with the filter itself.
    let filter = LabelFilter::parse(&format!("{filter_text} {}", rules.join(" ")))?;
    Ok(Some(Advice { identities: distinct(workloads, &filter).len(), rules }))
}

/// The rule that leaves out one key and no other.
fn rule(label: &str) -> String {
    let (source, key) = label.split_once(':').unwrap_or((source::ANY, label));
    format!("{source}:!{}$", key.replace('.', "\\."))
}
