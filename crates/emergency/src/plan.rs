//! What a deed would change, and what would block all the same.

use std::collections::BTreeMap;

use villus_abi::{Direction, PolicyKey, endpoint::HOST_ID};
use villus_datapath::PolicyView;

use crate::{
    Change, Taken,
    key::{direction_text, key_text},
};

/// How many entries a warning names before it only counts them.
const NAMED: usize = 3;

/// What an operator asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Endpoints to open.
    pub endpoints: Vec<u16>,
    /// Directions to open.
    pub directions: Vec<Direction>,
    /// Take entries that deny out of these directions.
    pub override_deny: bool,
}

/// What is to be done for an order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Changes, endpoint by endpoint; nothing for those that are open already.
    pub changes: Vec<Change>,
    /// What is open already.
    pub already: Vec<(u16, Direction)>,
    /// What blocks all the same, one sentence each.
    pub warnings: Vec<String>,
}

/// What an endpoint is called: its number, or that it is the node itself.
#[must_use]
pub fn name(endpoint: u16) -> String {
    if endpoint == HOST_ID { "the node itself".to_owned() } else { format!("endpoint {endpoint}") }
}

/// The key of the entry for everything in one direction.
const fn everything(direction: Direction) -> PolicyKey {
    PolicyKey::new(0, 0, 0, direction)
}

impl Plan {
    /// The plan for an order. `views` holds the policy of every endpoint of the node, `identities` the numeric
    /// identity of those that have one.
    #[must_use]
    pub fn new(views: &BTreeMap<u16, PolicyView>, identities: &BTreeMap<u16, u32>, order: &Order) -> Self {
        let mut plan = Self::default();
        for endpoint in &order.endpoints {
            match views.get(endpoint) {
                Some(view) => plan.open(view, order),
                None => plan.warnings.push(format!("{} has no policy map: nothing to open", name(*endpoint))),
            }
        }
        plan.warn_of_peers(views, identities, order);
        plan
    }

    /// Nothing is to be changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn open(&mut self, view: &PolicyView, order: &Order) {
        let mut change = Change { endpoint: view.endpoint, ..Change::default() };
        for direction in order.directions.iter().copied() {
            let denies: Vec<Taken> = view
                .entries
                .iter()
                .filter(|(key, entry)| entry.is_deny() && key.dir() == direction)
                .map(|(key, entry)| Taken { key: *key, entry: *entry })
                .collect();
            match view.entries.get(&everything(direction)) {
                Some(entry) if !entry.is_deny() => self.already.push((view.endpoint, direction)),
                Some(_) if !order.override_deny => {}
                _ => change.insert.push(everything(direction)),
            }
            if order.override_deny {
                change.take.extend(denies);
            } else if !denies.is_empty() {
                self.warnings.push(still_denied(view.endpoint, direction, &denies));
            }
        }
        if view.in_slot.is_none() {
            let text =
                "its map is not in use: its programs have no policy to ask, so its packets stay dropped";
            self.warnings.push(format!("{}: {text}", name(view.endpoint)));
        }
        if !change.insert.is_empty() || !change.take.is_empty() {
            self.changes.push(change);
        }
    }

    /// Packets between two local endpoints pass the egress of one and the ingress of the other.
    fn warn_of_peers(
        &mut self,
        views: &BTreeMap<u16, PolicyView>,
        identities: &BTreeMap<u16, u32>,
        order: &Order,
    ) {
        for direction in order.directions.iter().copied() {
            let other = match direction {
                Direction::Ingress => Direction::Egress,
                Direction::Egress => Direction::Ingress,
            };
            let opened = |id: &u16| order.endpoints.contains(id) && order.directions.contains(&other);
            let workloads = order.endpoints.iter().filter(|id| **id != HOST_ID);
            for endpoint in workloads.filter(|id| views.contains_key(id)) {
                let identity = identities.get(endpoint).copied().unwrap_or_default();
                let blocking: Vec<String> = views
                    .values()
                    .filter(|view| view.endpoint != *endpoint && !opened(&view.endpoint))
                    .filter(|view| !is_open(view, other, identity))
                    .map(|view| view.endpoint.to_string())
                    .collect();
                if !blocking.is_empty() {
                    self.warnings.push(format!(
                        "{}: the {} policy of endpoint {} does not let everything pass {} it; \
                         open that too if traffic between them is still denied",
                        name(*endpoint),
                        direction_text(other),
                        listed(&blocking),
                        if other == Direction::Egress { "to" } else { "from" },
                    ));
                }
            }
        }
    }
}

/// Whether a policy lets everything of one identity pass.
fn is_open(view: &PolicyView, direction: Direction, identity: u32) -> bool {
    let about = |key: &PolicyKey| key.dir() == direction && (key.identity == 0 || key.identity == identity);
    let mut about = view.entries.iter().filter(|(key, _)| about(key));
    let allows = |key: &PolicyKey| view.entries.get(key).is_some_and(|entry| !entry.is_deny());
    about.all(|(_, entry)| !entry.is_deny())
        && (allows(&everything(direction)) || allows(&PolicyKey::new(identity, 0, 0, direction)))
}

fn still_denied(endpoint: u16, direction: Direction, denies: &[Taken]) -> String {
    let keys: Vec<String> = denies.iter().map(|taken| key_text(&taken.key)).collect();
    let verb = if denies.len() == 1 { "entry that denies stays" } else { "entries that deny stay" };
    format!(
        "{}: {} {verb} in force for {} ({}); --override-deny takes them out",
        name(endpoint),
        denies.len(),
        direction_text(direction),
        listed(&keys),
    )
}

fn listed(items: &[String]) -> String {
    let named = items.iter().take(NAMED).cloned().collect::<Vec<_>>().join("; ");
    match items.len().saturating_sub(NAMED) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use villus_abi::PolicyEntry;

    use super::*;

    const IN: Direction = Direction::Ingress;
    const OUT: Direction = Direction::Egress;

    fn view(endpoint: u16, entries: &[(PolicyKey, PolicyEntry)]) -> (u16, PolicyView) {
        let view = PolicyView {
            endpoint,
            entries: entries.iter().copied().collect(),
            hand_made: Default::default(),
            capacity: 128,
            in_slot: Some(1),
            pinned: Some(1),
        };
        (endpoint, view)
    }

    fn order(endpoints: &[u16], override_deny: bool) -> Order {
        Order { endpoints: endpoints.to_vec(), directions: Direction::ALL.to_vec(), override_deny }
    }

    const OPEN: [(PolicyKey, PolicyEntry); 2] =
        [(everything(IN), PolicyEntry::ALLOW), (everything(OUT), PolicyEntry::ALLOW)];

    #[test]
    fn both_directions_are_opened_once() {
        let views = BTreeMap::from([view(5, &[(everything(OUT), PolicyEntry::ALLOW)]), view(6, &OPEN)]);
        let plan = Plan::new(&views, &BTreeMap::new(), &order(&[5], false));
        assert_eq!(plan.changes, [Change { endpoint: 5, insert: vec![everything(IN)], take: vec![] }]);
        assert_eq!(plan.already, [(5, OUT)]);
        assert_eq!(plan.warnings, Vec::<String>::new());
    }

    #[test]
    fn denies_are_named_or_taken_out() {
        let deny = PolicyKey::new(300, 80, 6, IN);
        let views = BTreeMap::from([view(5, &[(deny, PolicyEntry::DENY)])]);
        let plan = Plan::new(&views, &BTreeMap::new(), &order(&[5], false));
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].contains("from identity 300, 80/TCP"), "{:?}", plan.warnings);
        let plan = Plan::new(&views, &BTreeMap::new(), &order(&[5], true));
        assert_eq!(plan.changes[0].take, [Taken { key: deny, entry: PolicyEntry::DENY }]);
        assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
    }

    #[test]
    fn an_entry_that_denies_everything_gives_way_only_when_asked() {
        let views = BTreeMap::from([view(5, &[(everything(IN), PolicyEntry::DENY)])]);
        let plan = Plan::new(&views, &BTreeMap::new(), &order(&[5], false));
        assert_eq!(plan.changes[0].insert, [everything(OUT)]);
        let plan = Plan::new(&views, &BTreeMap::new(), &order(&[5], true));
        assert_eq!(plan.changes[0].insert, [everything(IN), everything(OUT)]);
        assert_eq!(plan.changes[0].take.len(), 1);
    }

    #[test]
    fn a_peer_that_may_not_send_is_named() {
        let lets_five = PolicyKey::new(500, 0, 0, OUT);
        let ingress_of_six = (everything(IN), PolicyEntry::ALLOW);
        let identities = BTreeMap::from([(5, 500)]);
        let closed = BTreeMap::from([view(5, &[]), view(6, &[ingress_of_six])]);
        let plan = Plan::new(&closed, &identities, &order(&[5], false));
        assert_eq!(plan.warnings.len(), 1);
        assert!(plan.warnings[0].contains("the egress policy of endpoint 6"), "{:?}", plan.warnings);
        let open =
            BTreeMap::from([view(5, &[]), view(6, &[ingress_of_six, (lets_five, PolicyEntry::ALLOW)])]);
        assert_eq!(Plan::new(&open, &identities, &order(&[5], false)).warnings, Vec::<String>::new());
        assert_eq!(Plan::new(&closed, &identities, &order(&[5, 6], false)).warnings, Vec::<String>::new());
    }

    #[test]
    fn an_endpoint_without_a_map_is_named() {
        let plan = Plan::new(&BTreeMap::new(), &BTreeMap::new(), &order(&[9], false));
        assert!(plan.is_empty());
        assert!(plan.warnings[0].contains("endpoint 9 has no policy map"));
    }
}
