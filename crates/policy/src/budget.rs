//! What a policy costs in map entries, said before the kernel is touched.

use std::fmt;

use serde::Serialize;
use thiserror::Error;
use villus_labels::Selector;

use crate::Origin;

/// What one element of a rule costs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Cost {
    /// The element.
    pub origin: Origin,
    /// How many entries it asks for.
    pub entries: usize,
    /// How many identities its selectors select, one selected twice counted twice; everybody is one.
    pub identities: usize,
    /// The selector of it that selects most; none where the element means everybody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub costliest: Option<Selector>,
}

/// A policy that does not fit its map. What was in force before should stay in force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Error)]
pub struct Overflow {
    /// How many entries fit.
    pub max_entries: usize,
    /// How many all elements ask for, the same entry counted each time.
    pub asked: usize,
    /// The elements that cost most, the costliest first; at most [`Overflow::NAMED`].
    pub costs: Vec<Cost>,
}

impl Overflow {
    /// How many elements are named.
    pub const NAMED: usize = 10;

    pub(crate) fn new(max_entries: usize, mut costs: Vec<Cost>) -> Self {
        let asked = costs.iter().map(|cost| cost.entries).sum();
        costs.sort_by(|a, b| (b.entries, &a.origin).cmp(&(a.entries, &b.origin)));
        costs.truncate(Self::NAMED);
        Self { max_entries, asked, costs }
    }
}

impl fmt::Display for Overflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the policy asks for {} map entries where {} fit; narrow a selector or raise bpf-policy-map-max. Costliest:",
            self.asked, self.max_entries
        )?;
        for (i, Cost { origin, entries, identities, costliest }) in self.costs.iter().take(3).enumerate() {
            let selector =
                costliest.as_ref().map_or_else(|| "everybody".to_owned(), |s| format!("most of it `{s}`"));
            let comma = if i == 0 { "" } else { ";" };
            write!(f, "{comma} {origin}: {entries} entries, {identities} identities, {selector}")?;
        }
        Ok(())
    }
}
