//! What of a remote is copied, beyond what is its own: by labels, namespaces, prefixes and use.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use villus_labels::{KEY_NAMESPACE, Labels, NumericIdentity, Selector};

use crate::layout::{Kind, Space, number};

/// Addresses that may wait for their identity; those beyond are asked for again when identities have come.
const WAITING: usize = 4096;

/// The rules for one remote. What none of them speaks about passes.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Identities, and the addresses that have them, that one of these selects; empty: all.
    pub selectors: Vec<Selector>,
    /// Namespaces of identities, addresses and services; empty: all. What has no namespace passes.
    pub namespaces: Vec<String>,
    /// Addresses within one of these; empty: all.
    pub prefixes: Vec<IpNet>,
    /// Only identities that an address which is copied has.
    pub in_use: bool,
}

/// Why an entry is not copied although it is the remote's own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Its identity's labels are not selected.
    Labels,
    /// Its namespace is not among those.
    Namespace,
    /// Its address lies in none of the prefixes.
    Cidr,
    /// No address has the identity.
    NotInUse,
    /// Its identity is not known yet.
    IdentityUnknown,
    /// A rule asks for what the value does not say: it does not parse.
    Unreadable,
    /// Its identity is another cluster's.
    ForeignIdentity,
    /// Its key is another cluster's.
    ForeignKey,
    /// Its key has no shape of this kind.
    BadKey,
    /// It is larger than the store takes.
    TooLarge,
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is copied. The number is the identity that it has, where that was looked at.
    Pass(u32),
    /// It is not.
    Drop(Reason),
}

/// What a verdict changes for entries of other kinds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nudge {
    /// An address whose identity has become known; [`Judge::waiting`] has it.
    Address(String),
    /// An identity came into use or went out of it.
    Identity(u32),
    /// All addresses must be judged again.
    Addresses,
    /// All identities must be judged again.
    Identities,
}

/// Judges entries of one remote; knows what the rules make necessary about those it has seen, and no more.
#[derive(Debug)]
pub struct Judge {
    filter: Filter,
    space: Space,
    /// Whether values of addresses are read.
    reads: bool,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Whether labels of an identity pass; only with rules about labels.
    passes: HashMap<u32, bool>,
    /// Addresses that have an identity; only where use matters.
    uses: HashMap<u32, u32>,
    waiting: HashMap<String, (u32, u8, Bytes)>,
    /// Some could not wait.
    overflown: bool,
    /// All addresses have been seen once: an identity without uses is not in use.
    counted: bool,
    nudges: Vec<Nudge>,
}

/// What is read of an address.
#[derive(Deserialize)]
struct Pair {
    #[serde(rename = "ID", default)]
    id: u32,
    #[serde(rename = "K8sNamespace", default)]
    namespace: String,
}

// === impl Filter ===

impl Filter {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        !self.by_labels() && self.prefixes.is_empty() && !self.in_use
    }

    fn by_labels(&self) -> bool {
        !self.selectors.is_empty() || !self.namespaces.is_empty()
    }

    fn labels(&self, labels: &Labels) -> Result<(), Reason> {
        if !self.selectors.is_empty() && !self.selectors.iter().any(|one| one.matches(labels)) {
            return Err(Reason::Labels);
        }
        self.namespace(labels.get(KEY_NAMESPACE).map_or("", |label| label.value()))
    }

    fn namespace(&self, namespace: &str) -> Result<(), Reason> {
        let open = self.namespaces.is_empty() || namespace.is_empty();
        if open || self.namespaces.iter().any(|one| one == namespace) {
            return Ok(());
        }
        Err(Reason::Namespace)
    }
}

impl Reason {
    /// The word for it, as in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Labels => "labels",
            Self::Namespace => "namespace",
            Self::Cidr => "cidr",
            Self::NotInUse => "not-in-use",
            Self::IdentityUnknown => "identity-unknown",
            Self::Unreadable => "unreadable",
            Self::ForeignIdentity => "foreign-identity",
            Self::ForeignKey => "foreign-key",
            Self::BadKey => "bad-key",
            Self::TooLarge => "too-large",
        }
    }

    /// Whether somebody should look at it, rather than a rule that does its work.
    pub fn is_trouble(self) -> bool {
        matches!(self, Self::Unreadable | Self::ForeignIdentity | Self::BadKey | Self::TooLarge)
    }
}

// === impl Judge ===

impl Judge {
    /// Nothing was seen yet. With `mixed`, copies lie among entries that readers don't know by cluster, and so the
    /// identity of every address is checked.
    pub fn new(filter: Filter, space: Space, mixed: bool) -> Self {
        let reads = mixed || filter.by_labels() || filter.in_use;
        Self { filter, space, reads, seen: Mutex::default() }
    }

    /// The remote's keys and numbers.
    pub fn space(&self) -> &Space {
        &self.space
    }

    /// Whether addresses can't be judged before all identities have been seen.
    pub fn addresses_wait(&self) -> bool {
        self.filter.by_labels()
    }

    /// What has become necessary for entries of other kinds since this was last asked.
    pub fn nudges(&self) -> Vec<Nudge> {
        std::mem::take(&mut self.seen().nudges)
    }

    /// An address that waits, its source and value. It waits no more.
    pub fn waiting(&self, rest: &str) -> Option<(u8, Bytes)> {
        self.seen().waiting.remove(rest).map(|(_, source, value)| (source, value))
    }

    /// An entry is there, or has another value. `rest` has passed [`Kind::check`]; `before` is the identity that the entry
    /// was passed with before, 0 for none; `held` says that a copy lies in the local store.
    pub fn judge(
        &self,
        kind: Kind,
        rest: &str,
        source: u8,
        value: &Bytes,
        before: u32,
        held: bool,
    ) -> Verdict {
        let verdict = match kind {
            Kind::Nodes => Ok(0),
            Kind::Services | Kind::ServiceExports | Kind::EndpointSlices => {
                self.filter.namespace(rest.split('/').next().unwrap_or_default()).map(|()| 0)
            }
            Kind::Identities => self.identity(rest, value, held),
            Kind::References => self.reference(rest, value),
            Kind::Addresses => self.address(rest, source, value),
        };
        if kind == Kind::Addresses {
            self.count(before, *verdict.as_ref().unwrap_or(&0));
        }
        match verdict {
            Ok(id) => Verdict::Pass(id),
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// An entry is gone; `before` as in [`Judge::judge`].
    pub fn gone(&self, kind: Kind, rest: &str, before: u32) {
        match kind {
            Kind::Addresses => {
                self.seen().waiting.remove(rest);
                self.count(before, 0);
            }
            Kind::Identities if self.filter.by_labels() => {
                if let Some(id) = number(rest) {
                    self.seen().passes.remove(&id);
                }
            }
            _ => {}
        }
    }

    /// All addresses of the remote have been judged once.
    pub fn all_addresses_seen(&self) {
        let mut seen = self.seen();
        if self.filter.in_use && !seen.counted {
            seen.counted = true;
            seen.nudges.push(Nudge::Identities);
        }
    }

    fn identity(&self, rest: &str, value: &[u8], held: bool) -> Result<u32, Reason> {
        let Some(id) = number(rest) else { return Err(Reason::BadKey) };
        if self.filter.by_labels() {
            let verdict = labels(value).and_then(|labels| self.filter.labels(&labels));
            self.know(id, verdict.is_ok());
            verdict?;
        }
        if self.filter.in_use {
            let seen = self.seen();
            // Until all addresses were seen nobody knows, and what is there stays.
            let used = seen.uses.contains_key(&id) || (!seen.counted && held);
            return if used { Ok(id) } else { Err(Reason::NotInUse) };
        }
        Ok(id)
    }

    fn know(&self, id: u32, passes: bool) {
        let mut seen = self.seen();
        let before = seen.passes.insert(id, passes);
        if before.is_some_and(|before| before != passes) {
            seen.nudges.push(Nudge::Addresses);
        }
        if before.is_some() {
            return;
        }
        let ready: Vec<String> =
            seen.waiting.iter().filter(|(_, (of, ..))| *of == id).map(|(rest, _)| rest.clone()).collect();
        seen.nudges.extend(ready.into_iter().map(Nudge::Address));
        if std::mem::take(&mut seen.overflown) {
            seen.nudges.push(Nudge::Addresses);
        }
    }

    fn reference(&self, rest: &str, value: &[u8]) -> Result<u32, Reason> {
        let id = self.space.reference(value).ok_or(Reason::ForeignIdentity)?;
        if self.filter.by_labels() {
            let text = rest.rsplit_once('/').map_or("", |(labels, _)| labels);
            self.filter.labels(&labels(text.as_bytes())?)?;
        }
        Ok(id)
    }

    fn address(&self, rest: &str, source: u8, value: &Bytes) -> Result<u32, Reason> {
        if !self.filter.prefixes.is_empty() {
            let prefix = villus_labels::parse_prefix(rest).map_err(|_| Reason::BadKey)?;
            if !self.filter.prefixes.iter().any(|one| one.contains(&prefix)) {
                return Err(Reason::Cidr);
            }
        }
        if !self.reads {
            return Ok(0);
        }
        let pair: Pair = serde_json::from_slice(value).map_err(|_| Reason::Unreadable)?;
        if !self.space.may_have(pair.id) {
            return Err(Reason::ForeignIdentity);
        }
        self.filter.namespace(&pair.namespace)?;
        if self.filter.by_labels() && !NumericIdentity(pair.id).is_reserved() {
            let mut seen = self.seen();
            seen.waiting.remove(rest);
            match seen.passes.get(&pair.id) {
                Some(true) => {}
                Some(false) => return Err(Reason::Labels),
                None => {
                    if seen.waiting.len() < WAITING {
                        seen.waiting.insert(rest.to_owned(), (pair.id, source, value.clone()));
                    } else {
                        seen.overflown = true;
                    }
                    return Err(Reason::IdentityUnknown);
                }
            }
        }
        Ok(pair.id)
    }

    fn count(&self, before: u32, now: u32) {
        if !self.filter.in_use || before == now {
            return;
        }
        let mut seen = self.seen();
        let counted = seen.counted;
        if now != 0 {
            let uses = seen.uses.entry(now).or_default();
            *uses += 1;
            if *uses == 1 && counted {
                seen.nudges.push(Nudge::Identity(now));
            }
        }
        if let Some(uses) = seen.uses.get_mut(&before) {
            *uses = uses.saturating_sub(1);
            if *uses == 0 {
                seen.uses.remove(&before);
                if counted {
                    seen.nudges.push(Nudge::Identity(before));
                }
            }
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn labels(value: &[u8]) -> Result<Labels, Reason> {
    let text = std::str::from_utf8(value).map_err(|_| Reason::Unreadable)?;
    Labels::parse_kvstore(text).map_err(|_| Reason::Unreadable)
}

/// How many entries were not copied, by reason.
pub type Dropped = BTreeMap<Reason, u64>;

#[cfg(test)]
mod tests {
    use super::*;

    const VALUE: &str = "k8s:app=web;k8s:io.kubernetes.pod.namespace=shop;";

    fn judge(filter: Filter) -> Judge {
        Judge::new(filter, Space { cluster: "c2".into(), range: 131_072..=196_607 }, true)
    }

    fn address(ip: &str, id: u32, namespace: &str) -> Bytes {
        format!(r#"{{"IP":"{ip}","ID":{id},"K8sNamespace":"{namespace}"}}"#).into()
    }

    fn ask(judge: &Judge, kind: Kind, rest: &str, value: &Bytes) -> Verdict {
        judge.judge(kind, rest, 0, value, 0, false)
    }

    #[test]
    fn without_rules_all_that_is_the_clusters_own_passes() {
        let judge = judge(Filter::default());
        assert_eq!(
            ask(&judge, Kind::Addresses, "10.0.0.1", &address("10.0.0.1", 131_080, "")),
            Verdict::Pass(131_080)
        );
        assert_eq!(ask(&judge, Kind::Addresses, "10.0.0.1", &address("10.0.0.1", 4, "")), Verdict::Pass(4));
        for id in [70_000, 196_608, 1 << 24] {
            let verdict = ask(&judge, Kind::Addresses, "10.0.0.1", &address("10.0.0.1", id, ""));
            assert_eq!(verdict, Verdict::Drop(Reason::ForeignIdentity), "{id}");
        }
        assert_eq!(ask(&judge, Kind::Addresses, "10.0.0.1", &"{".into()), Verdict::Drop(Reason::Unreadable));
        assert_eq!(
            ask(&judge, Kind::References, "k8s:a=b;/10.0.0.1", &"131072".into()),
            Verdict::Pass(131_072)
        );
        let foreign = ask(&judge, Kind::References, "k8s:a=b;/10.0.0.1", &"70000".into());
        assert_eq!(foreign, Verdict::Drop(Reason::ForeignIdentity));
    }

    #[test]
    fn labels_namespaces_and_prefixes_select() {
        let filter = Filter {
            selectors: vec![Selector::parse("k8s:app=web").unwrap()],
            namespaces: vec!["shop".into()],
            prefixes: vec!["10.0.0.0/8".parse().unwrap()],
            in_use: false,
        };
        let judge = judge(filter);
        for (id, labels, verdict) in [
            ("131072", VALUE, Verdict::Pass(131_072)),
            ("131073", "k8s:app=db;k8s:io.kubernetes.pod.namespace=shop;", Verdict::Drop(Reason::Labels)),
            (
                "131074",
                "k8s:app=web;k8s:io.kubernetes.pod.namespace=other;",
                Verdict::Drop(Reason::Namespace),
            ),
            ("131075", "k8s:app=web;", Verdict::Pass(131_075)),
            ("131076", "nonsense", Verdict::Drop(Reason::Unreadable)),
        ] {
            assert_eq!(ask(&judge, Kind::Identities, id, &labels.into()), verdict, "{labels}");
        }
        for (ip, id, namespace, verdict) in [
            ("10.1.1.1", 131_072, "shop", Verdict::Pass(131_072)),
            ("10.1.1.1", 131_073, "shop", Verdict::Drop(Reason::Labels)),
            ("10.1.1.1", 131_072, "other", Verdict::Drop(Reason::Namespace)),
            ("11.1.1.1", 131_072, "shop", Verdict::Drop(Reason::Cidr)),
            ("10.1.1.1", 6, "", Verdict::Pass(6)),
        ] {
            assert_eq!(ask(&judge, Kind::Addresses, ip, &address(ip, id, namespace)), verdict, "{ip} {id}");
        }
        assert_eq!(ask(&judge, Kind::Services, "shop/web", &"x".into()), Verdict::Pass(0));
        assert_eq!(ask(&judge, Kind::Services, "other/web", &"x".into()), Verdict::Drop(Reason::Namespace));
        assert_eq!(ask(&judge, Kind::Nodes, "n1", &"x".into()), Verdict::Pass(0));
    }

    #[test]
    fn an_address_waits_for_its_identity() {
        let judge =
            judge(Filter { selectors: vec![Selector::parse("k8s:app=web").unwrap()], ..Filter::default() });
        let value = address("10.1.1.1", 131_072, "shop");
        let unknown = Verdict::Drop(Reason::IdentityUnknown);
        assert_eq!(ask(&judge, Kind::Addresses, "10.1.1.1", &value), unknown);
        assert_eq!(ask(&judge, Kind::Addresses, "10.1.1.2", &value), unknown);
        judge.gone(Kind::Addresses, "10.1.1.2", 0);
        ask(&judge, Kind::Identities, "131072", &VALUE.into());
        assert_eq!(judge.nudges(), [Nudge::Address("10.1.1.1".into())]);
        assert_eq!(judge.waiting("10.1.1.1"), Some((0, value)));
        assert_eq!(judge.waiting("10.1.1.1"), None);
        // Other labels under the same number.
        ask(&judge, Kind::Identities, "131072", &"k8s:app=db;".into());
        assert_eq!(judge.nudges(), [Nudge::Addresses]);
    }

    #[test]
    fn identities_follow_the_addresses_that_have_them() {
        let judge = judge(Filter { in_use: true, ..Filter::default() });
        let value = address("10.1.1.1", 131_072, "");
        // Before the addresses are known what is there stays, and nothing else comes.
        assert_eq!(
            judge.judge(Kind::Identities, "131073", 0, &VALUE.into(), 0, true),
            Verdict::Pass(131_073)
        );
        assert_eq!(ask(&judge, Kind::Identities, "131072", &VALUE.into()), Verdict::Drop(Reason::NotInUse));
        ask(&judge, Kind::Addresses, "10.1.1.1", &value);
        judge.all_addresses_seen();
        assert_eq!(judge.nudges(), [Nudge::Identities]);
        assert_eq!(ask(&judge, Kind::Identities, "131072", &VALUE.into()), Verdict::Pass(131_072));
        let held = judge.judge(Kind::Identities, "131073", 0, &VALUE.into(), 0, true);
        assert_eq!(held, Verdict::Drop(Reason::NotInUse));
        // A second address, then both go.
        ask(&judge, Kind::Addresses, "10.1.1.2", &value);
        judge.gone(Kind::Addresses, "10.1.1.1", 131_072);
        assert_eq!(judge.nudges(), []);
        judge.gone(Kind::Addresses, "10.1.1.2", 131_072);
        assert_eq!(judge.nudges(), [Nudge::Identity(131_072)]);
        assert_eq!(ask(&judge, Kind::Identities, "131072", &VALUE.into()), Verdict::Drop(Reason::NotInUse));
    }
}
