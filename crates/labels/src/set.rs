use std::{fmt, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{KEY_NAMESPACE, Label, LabelError, source, text::excerpt};

/// A set of labels, one per key, sorted by key bytewise. Clones share one allocation.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Labels(Arc<[Label]>);

impl Labels {
    /// The set of these labels.
    ///
    /// # Errors
    /// Two different labels with one key; the same label twice is fine.
    pub fn new(labels: impl IntoIterator<Item = Label>) -> Result<Self, LabelError> {
        let mut labels: Vec<Label> = labels.into_iter().collect();
        labels.sort_unstable();
        labels.dedup();
        for pair in labels.windows(2) {
            if let [first, second] = pair
                && first.key() == second.key()
            {
                return Err(LabelError::SameKey { first: first.to_string(), second: second.to_string() });
            }
        }
        Ok(Self(labels.into()))
    }

    /// As [`Labels::new`] for labels known to differ in their keys; the first of two with one key stays.
    pub(crate) fn of_known(labels: impl IntoIterator<Item = Label>) -> Self {
        let mut labels: Vec<Label> = labels.into_iter().collect();
        labels.sort_unstable();
        labels.dedup_by(|b, a| a.key() == b.key());
        Self(labels.into())
    }

    /// Reads what an operator writes: `k8s:app=web,k8s:env=prod`. Labels without a source get
    /// `default_source`; spaces around labels and empty items are ignored.
    ///
    /// # Errors
    /// A label that can't be read or is longer than Kubernetes allows, two labels with one key.
    pub fn parse_list(text: &str, default_source: &str) -> Result<Self, LabelError> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let labels = items
            .map(|item| {
                let label = Label::parse_with_source(item, default_source)?;
                label.check_kubernetes_lengths()?;
                Ok(label)
            })
            .collect::<Result<Vec<_>, LabelError>>()?;
        Self::new(labels)
    }

    /// Reads the label string of the kvstore, `source:key=value;` for each label, the last `;` included
    /// (reference `kvstore` 1.6). Lengths of Kubernetes are not asked for: other tools wrote this.
    ///
    /// # Errors
    /// No `;` at the end, a label without `:` or `=`, two labels with one key. An empty string is the empty set.
    pub fn parse_kvstore(text: &str) -> Result<Self, LabelError> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let body = text.strip_suffix(';').ok_or_else(|| LabelError::Unterminated(excerpt(text)))?;
        let labels = body
            .split(';')
            .map(|item| {
                let not_key_value = || LabelError::NotKeyValue(excerpt(item));
                let (name, value) = item.split_once('=').ok_or_else(not_key_value)?;
                let (source, key) = name.split_once(':').ok_or_else(not_key_value)?;
                Label::new(source, key, value)
            })
            .collect::<Result<Vec<_>, LabelError>>()?;
        Self::new(labels)
    }

    /// The same set, whose labels that `other` has too lie in one memory with them.
    #[must_use]
    pub fn sharing(mut self, other: &Self) -> Self {
        for label in Arc::get_mut(&mut self.0).into_iter().flatten() {
            if let Some(same) = other.get(label.key()).filter(|same| *same == label) {
                *label = same.clone();
            }
        }
        self
    }

    /// The label string of the kvstore: `source:key=value;` for each label, sorted by key, nothing escaped.
    #[must_use]
    pub fn to_kvstore(&self) -> String {
        let mut text = String::with_capacity(self.0.iter().map(|label| label.full_text().len() + 1).sum());
        for label in self {
            text.push_str(label.full_text());
            text.push(';');
        }
        text
    }

    /// The labels, sorted by key.
    pub fn iter(&self) -> std::slice::Iter<'_, Label> {
        self.0.iter()
    }

    /// The labels, sorted by key.
    #[must_use]
    pub fn as_slice(&self) -> &[Label] {
        &self.0
    }

    /// How many labels there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The label with this key, whatever its source.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Label> {
        let at = self.0.binary_search_by(|label| label.key().cmp(key)).ok()?;
        self.0.get(at)
    }

    /// Whether `reserved:<name>` is among the labels.
    #[must_use]
    pub fn has_reserved(&self, name: &str) -> bool {
        self.get(name).is_some_and(|label| label.source() == source::RESERVED)
    }

    /// The pod's namespace, where one of the labels says it.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.get(KEY_NAMESPACE).map(Label::value)
    }

    /// The set with `label` in it, in place of any other with its key.
    #[must_use]
    pub fn with(&self, label: Label) -> Self {
        let mut labels: Vec<Label> = self.0.iter().filter(|old| old.key() != label.key()).cloned().collect();
        let at = labels.partition_point(|old| *old < label);
        labels.insert(at, label);
        Self(labels.into())
    }

    /// The set without the label of this key.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        self.filtered(|label| label.key() != key)
    }

    /// The labels for which `keep` is true.
    #[must_use]
    pub fn filtered(&self, mut keep: impl FnMut(&Label) -> bool) -> Self {
        Self(self.0.iter().filter(|label| keep(label)).cloned().collect())
    }
}

// === impl Labels ===

impl Default for Labels {
    fn default() -> Self {
        Self(Arc::from([]))
    }
}

impl<'a> IntoIterator for &'a Labels {
    type Item = &'a Label;
    type IntoIter = std::slice::Iter<'a, Label>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Display for Labels {
    /// `k8s:app=web,k8s:env=prod`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, label) in self.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(label, f)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

impl Serialize for Labels {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self)
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(Vec::<Label>::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "k8s:app=foo;k8s:io.cilium.k8s.policy.cluster=c1;\
        k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns1;";

    #[test]
    fn the_kvstore_string_is_kept_to_the_byte() {
        let labels = Labels::parse_kvstore(EXAMPLE).unwrap();
        assert_eq!(labels.to_kvstore(), EXAMPLE);
        assert_eq!((labels.len(), labels.namespace()), (4, Some("ns1")));
        let odd = "cidr:10.0.0.0/8=;k8s:path=/a/b=c;reserved:world=;";
        assert_eq!(Labels::parse_kvstore(odd).unwrap().to_kvstore(), odd);
    }

    #[test]
    fn a_list_is_sorted_and_takes_a_default_source() {
        let labels = Labels::parse_list("k8s:env=prod, app=web,,reserved:init", "k8s").unwrap();
        assert_eq!(labels.to_string(), "k8s:app=web,k8s:env=prod,reserved:init");
        assert_eq!(labels.to_kvstore(), "k8s:app=web;k8s:env=prod;reserved:init=;");
        assert!(labels.has_reserved("init") && !labels.has_reserved("app"));
    }

    #[test]
    fn what_is_not_a_label_string_is_refused() {
        for (text, part) in [
            ("k8s:app=foo", "does not end in `;`"),
            ("k8s:app;", "not of the form"),
            ("app=foo;", "not of the form"),
            ("k8s:app=foo;;", "not of the form"),
            ("k8s:app=foo;any:app=bar;", "same key"),
        ] {
            let error = Labels::parse_kvstore(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        assert!(Labels::parse_list("k8s:a=1,k8s:a=2", "k8s").is_err());
        assert!(Labels::parse_list(&format!("k8s:a={}", "x".repeat(64)), "k8s").is_err());
    }

    #[test]
    fn with_and_without_keep_the_order() {
        let labels = Labels::parse_list("k8s:a=1,k8s:c=3", "k8s").unwrap();
        let more = labels.with("k8s:b=2".parse().unwrap()).with("k8s:c=4".parse().unwrap());
        assert_eq!(more.to_string(), "k8s:a=1,k8s:b=2,k8s:c=4");
        assert_eq!(more.without("b").to_string(), "k8s:a=1,k8s:c=4");
    }

    #[test]
    fn json_is_a_list_of_texts() {
        let labels = Labels::parse_kvstore("k8s:app=foo;reserved:init=;").unwrap();
        let json = serde_json::to_string(&labels).unwrap();
        assert_eq!(json, r#"["k8s:app=foo","reserved:init"]"#);
        assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}|[a-z:=;/,\n]{0,60}") {
            let _ = Labels::parse_list(&text, "k8s");
            if let Ok(labels) = Labels::parse_kvstore(&text) {
                prop_assert_eq!(Labels::parse_kvstore(&labels.to_kvstore()).unwrap(), labels);
            }
        }

        #[test]
        fn sets_survive_the_kvstore(parts in proptest::collection::btree_map("[a-z./]{1,8}", "[a-z=/:]{0,8}", 0..6)) {
            let labels = Labels::new(parts.iter().map(|(k, v)| Label::new("k8s", k, v).unwrap())).unwrap();
            prop_assert_eq!(Labels::parse_kvstore(&labels.to_kvstore()).unwrap(), labels);
        }
    }
}
