use std::{collections::BTreeSet, fmt, sync::Arc};

use ipnet::IpNet;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::{
    Label, Labels, cidr_label,
    label::source,
    requirement::{KeySource, Operator, Requirement, SelectorError, SelectorKey},
    text::excerpt,
};

/// Most requirements of one selector.
const MAX_REQUIREMENTS: usize = 256;

/// A conjunction of requirements over labels. The empty selector matches everything. Clones share one
/// allocation; equal selectors compare equal however they were written.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector(Arc<[Requirement]>);

impl Selector {
    /// A selector of these requirements.
    ///
    /// # Errors
    /// Two requirements that ask for one key from two sources, or too many requirements.
    pub fn new(requirements: impl IntoIterator<Item = Requirement>) -> Result<Self, SelectorError> {
        let Self(requirements) = Self::sorted(requirements.into_iter().collect());
        if requirements.len() > MAX_REQUIREMENTS {
            let found = requirements.len();
            return Err(SelectorError::TooBig { what: "requirements", found, max: MAX_REQUIREMENTS });
        }
        for pair in requirements.windows(2) {
            if let [a, b] = pair
                && a.key.key == b.key.key
                && a.key.source != b.key.source
            {
                return Err(SelectorError::KeyOfTwoSources {
                    key: excerpt(&a.key.key),
                    first: a.key.source_name().to_owned(),
                    second: b.key.source_name().to_owned(),
                });
            }
        }
        Ok(Self(requirements))
    }

    /// The selector that matches everything.
    #[must_use]
    pub fn everything() -> Self {
        Self(Arc::from([]))
    }

    /// The selector of exactly one label, its source included.
    #[must_use]
    pub fn label(label: &Label) -> Self {
        let values = BTreeSet::from([Arc::from(label.value())]);
        Self(Arc::from([Requirement { key: SelectorKey::of_label(label), operator: Operator::In(values) }]))
    }

    /// The selector of a reserved label: `reserved:host`, `reserved:world`, …
    #[must_use]
    pub fn reserved(name: &str) -> Self {
        Self(Arc::from([reserved_requirement(name, Operator::Exists)]))
    }

    /// The identities of a prefix and of all prefixes inside it, but for those inside `except`.
    #[must_use]
    pub fn prefix(prefix: IpNet, except: &[IpNet]) -> Self {
        let of = |prefix, operator| Requirement { key: SelectorKey::of_label(&cidr_label(prefix)), operator };
        let mut requirements: Vec<Requirement> =
            except.iter().map(|inner| of(*inner, Operator::DoesNotExist)).collect();
        requirements.push(of(prefix, Operator::Exists));
        Self::sorted(requirements)
    }

    /// This selector, and the label must be there. What it asked of the label's key is replaced.
    #[must_use]
    pub fn requiring(&self, label: &Label) -> Self {
        let values = BTreeSet::from([Arc::from(label.value())]);
        self.replacing(Requirement { key: SelectorKey::of_label(label), operator: Operator::In(values) })
    }

    /// This selector, and a label of this source and key must be there. What it asked of the key is replaced.
    #[must_use]
    pub fn requiring_key(&self, source: &str, key: &str) -> Self {
        let key = SelectorKey { key: key.into(), source: KeySource::Is(source.into()) };
        self.replacing(Requirement { key, operator: Operator::Exists })
    }

    /// This selector, for labels among which `reserved:<name>` is. Labels of other sources under that key don't count.
    #[must_use]
    pub fn with_reserved(&self, name: &str) -> Self {
        self.also(reserved_requirement(name, Operator::Exists))
    }

    /// This selector, for labels among which `reserved:<name>` is not. Labels of other sources under that key don't
    /// count.
    #[must_use]
    pub fn without_reserved(&self, name: &str) -> Self {
        self.also(reserved_requirement(name, Operator::DoesNotExist))
    }

    /// What both ask for. Where they ask for one key from two sources, nothing is selected.
    #[must_use]
    pub fn joined(&self, other: &Self) -> Self {
        Self::sorted(self.0.iter().chain(other.0.iter()).cloned().collect())
    }

    fn also(&self, requirement: Requirement) -> Self {
        Self::sorted(self.0.iter().cloned().chain([requirement]).collect())
    }

    fn replacing(&self, requirement: Requirement) -> Self {
        let others = self.0.iter().filter(|other| other.key.key != requirement.key.key).cloned();
        Self::sorted(others.chain([requirement.clone()]).collect())
    }

    fn sorted(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_unstable();
        requirements.dedup();
        Self(requirements.into())
    }

    /// Reads `k8s:app=web,env=prod,tier`: equal values, or a key alone that must be there.
    ///
    /// # Errors
    /// As [`Requirement::equals`] and [`Selector::new`].
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
        let requirements = items
            .map(|item| match item.split_once('=') {
                Some((key, value)) => Requirement::equals(key.trim(), value.trim()),
                None => Requirement::expression(item, "Exists", []),
            })
            .collect::<Result<Vec<_>, _>>()?;
        Self::new(requirements)
    }

    /// This selector and one more requirement.
    ///
    /// # Errors
    /// As [`Selector::new`].
    pub fn and(&self, requirement: Requirement) -> Result<Self, SelectorError> {
        Self::new(self.0.iter().cloned().chain([requirement]))
    }

    /// Whether labels meet every requirement.
    #[must_use]
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| requirement.matches(labels))
    }

    /// Whether it matches everything.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements, sorted by key.
    #[must_use]
    pub fn requirements(&self) -> &[Requirement] {
        &self.0
    }

    /// Whether some requirement speaks about a key for which `test` is true.
    pub fn has_key(&self, mut test: impl FnMut(&SelectorKey) -> bool) -> bool {
        self.0.iter().any(|requirement| test(&requirement.key))
    }
}

fn reserved_requirement(name: &str, operator: Operator) -> Requirement {
    let key = SelectorKey { key: name.into(), source: KeySource::Is(source::RESERVED.into()) };
    Requirement { key, operator }
}

impl fmt::Display for Selector {
    /// `k8s:app=web,any:env in (a,b),any:tier`; `{}` for everything.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("{}");
        }
        for (i, Requirement { key, operator }) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            let joined = |values: &BTreeSet<Arc<str>>| {
                values.iter().map(|value| value.as_ref()).collect::<Vec<_>>().join(",")
            };
            match operator {
                Operator::In(values) if values.len() == 1 => write!(f, "{key}={}", joined(values)),
                Operator::In(values) => write!(f, "{key} in ({})", joined(values)),
                Operator::NotIn(values) => write!(f, "{key} notin ({})", joined(values)),
                Operator::Exists => write!(f, "{key}"),
                Operator::DoesNotExist => write!(f, "!{key}"),
            }?;
        }
        Ok(())
    }
}

impl fmt::Debug for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Selector {
    /// `{"matchLabels": {…}, "matchExpressions": […]}`, absent where empty.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut labels = std::collections::BTreeMap::new();
        let mut expressions = Vec::new();
        for Requirement { key, operator } in self.0.iter() {
            match operator {
                Operator::In(values) if values.len() == 1 && !labels.contains_key(&key.to_string()) => {
                    labels.insert(key.to_string(), values.first().map(|v| v.as_ref()).unwrap_or_default());
                }
                _ => expressions.push(Expression {
                    key: key.to_string(),
                    operator: operator.name(),
                    values: operator.values().map(|v| v.iter().map(|v| v.as_ref()).collect()),
                }),
            }
        }
        let mut map = serializer.serialize_map(None)?;
        if !labels.is_empty() {
            map.serialize_entry("matchLabels", &labels)?;
        }
        if !expressions.is_empty() {
            map.serialize_entry("matchExpressions", &expressions)?;
        }
        map.end()
    }
}

#[derive(Serialize)]
struct Expression<'a> {
    key: String,
    operator: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    values: Option<Vec<&'a str>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(text: &str) -> Labels {
        Labels::parse_list(text, "k8s").unwrap()
    }

    #[test]
    fn sources_decide() {
        let web = labels("k8s:app=web,reserved:init");
        for (selector, expected) in [
            ("app=web", true),
            ("any:app=web", true),
            ("k8s:app=web", true),
            ("container:app=web", false),
            ("reserved:init", true),
            ("k8s:init", false),
            ("app=db", false),
            ("", true),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&web), expected, "{selector}");
        }
    }

    #[test]
    fn expressions_follow_kubernetes() {
        let web = labels("app=web");
        for (key, operator, values, expected) in [
            ("app", "In", vec!["web", "db"], true),
            ("app", "In", vec!["db"], false),
            ("env", "In", vec!["prod"], false),
            ("app", "NotIn", vec!["web"], false),
            ("env", "NotIn", vec!["prod"], true),
            ("container:app", "NotIn", vec!["web"], true),
            ("app", "Exists", vec![], true),
            ("env", "Exists", vec![], false),
            ("env", "DoesNotExist", vec![], true),
            ("app", "DoesNotExist", vec![], false),
        ] {
            let requirement = Requirement::expression(key, operator, values).unwrap();
            assert_eq!(requirement.matches(&web), expected, "{requirement:?}");
        }
    }

    #[test]
    fn a_key_of_two_sources_is_refused() {
        let both = Selector::parse("k8s:app=a,container:app=a").unwrap_err().to_string();
        assert!(both.contains("`app` from two sources (container and k8s)"), "{both}");
        let nested = Selector::parse("k8s:any:app=a").unwrap_err().to_string();
        assert!(nested.contains("names two sources"), "{nested}");
        assert!(Selector::parse("app=a,k8s:app=a").is_err());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = "x".repeat(64);
        for (key, operator, values, part) in [
            ("k9s:app", "Exists", vec![], "did you mean `k8s`"),
            ("k8s:", "Exists", vec![], "empty"),
            (long.as_str(), "Exists", vec![], "key's name has 64"),
            ("app", "In", vec![long.as_str()], "value has 64"),
            ("app", "In", vec!["a b"], "not valid"),
            ("app", "In", vec![], "at least one value"),
            ("app", "Exists", vec!["x"], "an empty list"),
            ("app", "in", vec!["x"], "did you mean `In`"),
            ("-app", "Exists", vec![], "not valid"),
        ] {
            let error = Requirement::expression(key, operator, values).unwrap_err().to_string();
            assert!(error.contains(part), "{key} {operator}: {error}");
        }
    }

    #[test]
    fn equal_selectors_are_equal_however_written() {
        let (a, b) = (Selector::parse("a=1,k8s:b=2").unwrap(), Selector::parse("k8s:b=2,any:a=1").unwrap());
        assert_eq!((a.to_string(), &a), ("any:a=1,k8s:b=2".into(), &b));
        assert_eq!(serde_json::to_string(&a).unwrap(), r#"{"matchLabels":{"any:a":"1","k8s:b":"2"}}"#);
        assert_eq!(Selector::everything().to_string(), "{}");
    }

    #[test]
    fn a_prefix_without_some_inside_it() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let selector = Selector::prefix(net("10.0.0.0/8"), &[net("10.96.0.0/12")]);
        for (prefix, expected) in [
            ("10.0.0.0/8", true),
            ("10.1.0.0/16", true),
            ("10.96.0.0/12", false),
            ("10.97.1.1/32", false),
            ("11.0.0.0/8", false),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(selector.matches(&crate::cidr_labels(net(prefix))), expected, "{prefix}");
        }
        let all = Selector::prefix(net("0.0.0.0/0"), &[]);
        assert!(all.matches(&crate::cidr_labels(net("10.0.0.0/8"))));
        assert!(!all.matches(&crate::cidr_labels(net("2001:db8::/32"))));
    }

    #[test]
    fn reserved_labels_are_asked_for_beside_what_the_selector_says() {
        let pods = Selector::parse("any:host=a").unwrap().without_reserved("host");
        assert!(pods.matches(&labels("host=a")) && !pods.matches(&labels("reserved:host")));
        let all = Selector::everything();
        assert!(all.without_reserved("host").matches(&labels("host=a")));
        assert!(!all.without_reserved("host").matches(&labels("reserved:host,app=a")));
        let nodes = Selector::parse("tier=a").unwrap().with_reserved("host");
        assert!(nodes.matches(&labels("reserved:host,tier=a")) && !nodes.matches(&labels("tier=a,host=x")));
        let both = Selector::parse("app=a").unwrap().joined(&Selector::parse("tier=b").unwrap());
        assert_eq!(both, Selector::parse("app=a,tier=b").unwrap());
    }

    #[test]
    fn requiring_replaces_what_was_asked_of_the_key() {
        let selector = Selector::parse("app=web,any:io.kubernetes.pod.namespace=other").unwrap();
        let label = Label::new("k8s", crate::KEY_NAMESPACE, "mine").unwrap();
        assert_eq!(
            selector.requiring(&label).to_string(),
            "any:app=web,k8s:io.kubernetes.pod.namespace=mine"
        );
        assert_eq!(
            selector.requiring_key("k8s", "app").to_string(),
            "k8s:app,any:io.kubernetes.pod.namespace=other"
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,60}") {
            if let Ok(selector) = Selector::parse(&text) {
                let _ = (selector.to_string(), selector.matches(&labels("app=web")));
            }
        }
    }
}
