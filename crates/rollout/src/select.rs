//! Selectors for labels that were observed.

use villus_labels::{
    KEY_CLUSTER, KEY_NAMESPACE, KEY_NAMESPACE_LABELS, KNOWN_SOURCES, Label, Labels, Operator, Requirement,
    Selector, source,
};

/// Which labels name a peer. The namespace always does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum PeerKeys {
    /// All of its identity, but for the copies of its namespace's labels.
    #[default]
    All,
    /// Those of these keys, with or without their source.
    Only(Vec<String>),
}

impl PeerKeys {
    fn wants(&self, label: &Label) -> bool {
        match self {
            Self::All => !label.key().starts_with(KEY_NAMESPACE_LABELS),
            Self::Only(keys) => keys.iter().any(|key| {
                label.key() == key
                    || key.strip_prefix(label.source()).and_then(|key| key.strip_prefix(':'))
                        == Some(label.key())
            }),
        }
    }
}

/// What a selector asks of labels: equal values, and keys that must or must not be there; sorted.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Labelled {
    pub equal: Vec<(String, String)>,
    /// Key and operator.
    pub expressions: Vec<(String, &'static str, Vec<String>)>,
    /// It selects somebody in no namespace, which needs an explanation.
    pub without_namespace: bool,
}

impl Labelled {
    /// A selector that selects a peer of these labels from within a policy of `namespace`; `None` if none of the labels can
    /// be written.
    pub fn of_peer(labels: &Labels, keys: &PeerKeys, namespace: Option<&str>) -> Option<Self> {
        let mut selector = Self::default();
        let named = labels.iter().filter(|label| label.key() != KEY_NAMESPACE);
        named.clone().filter(|label| keys.wants(label)).for_each(|label| selector.push(label));
        if selector.is_empty() {
            // None of the chosen keys: all that there are.
            named.for_each(|label| selector.push(label));
        }
        match labels.get(KEY_NAMESPACE) {
            Some(label) if Some(label.value()) == namespace => {}
            Some(label) => selector.push(label),
            None => {
                if selector.is_empty() {
                    return None;
                }
                // A reserved key keeps the selector from being tied to a namespace.
                let free =
                    ["world", "host", "remote-node"].into_iter().find(|key| labels.get(key).is_none())?;
                let key = format!("{}:{free}", source::RESERVED);
                selector.expressions.push((key, "DoesNotExist", Vec::new()));
                selector.without_namespace = true;
            }
        }
        selector.equal.sort();
        selector.expressions.sort();
        Some(selector)
    }

    fn is_empty(&self) -> bool {
        self.equal.is_empty() && self.expressions.is_empty()
    }

    /// Adds a label as far as a selector can say it: its value, its key alone, or nothing.
    fn push(&mut self, label: &Label) {
        let source = if KNOWN_SOURCES.contains(&label.source()) { label.source() } else { source::ANY };
        let key = format!("{source}:{}", label.key());
        if Requirement::equals(&key, label.value()).is_ok() {
            self.equal.push((key, label.value().to_owned()));
        } else if Requirement::expression(&key, "Exists", []).is_ok() {
            self.expressions.push((key, "Exists", Vec::new()));
        }
    }
}

/// The subject of a draft: its labels where they are known, else the selector as it was given. The namespace is the
/// policy's, and whose policy it is says the cluster.
pub(crate) fn subject_labels(labels: Option<&Labels>, selector: &Selector, namespaced: bool) -> Labelled {
    let mut subject = Labelled::default();
    match labels {
        Some(labels) => {
            let implied = |label: &&Label| {
                (label.key() == KEY_NAMESPACE && namespaced)
                    || label.key() == KEY_CLUSTER
                    || label.key().starts_with(KEY_NAMESPACE_LABELS)
            };
            labels.iter().filter(|label| !implied(label)).for_each(|label| subject.push(label));
        }
        None => {
            for Requirement { key, operator } in selector.requirements() {
                if key.key() == KEY_NAMESPACE && namespaced {
                    continue;
                }
                let values: Vec<String> =
                    operator.values().into_iter().flatten().map(|value| value.to_string()).collect();
                match (operator, values.as_slice()) {
                    (Operator::In(_), [value]) => subject.equal.push((key.to_string(), value.clone())),
                    _ => subject.expressions.push((key.to_string(), operator.name(), values)),
                }
            }
        }
    }
    subject.equal.sort();
    subject.expressions.sort();
    subject
}
