use std::fmt;

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use crate::{KNOWN_SOURCES, Label, Labels, text::excerpt};

/// A rule of the filter that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FilterError {
    /// Nothing behind the source or the `!`.
    #[error(
        "label filter rule `{0}` names no key; write `[source:][!]REGEX`, for example `k8s:!io.kubernetes`"
    )]
    Empty(String),
    /// `!` before the source.
    #[error("label filter rule `{0}`: the `!` stands before the source; write `{1}`")]
    Misplaced(String, String),
    /// Not a source.
    #[error("label filter rule `{rule}`: `{source_name}` is not a label source (known: {known})", known = KNOWN_SOURCES.join(", "))]
    Source {
        /// The rule.
        rule: String,
        /// What stands before the `:`.
        source_name: String,
    },
    /// Not a regular expression.
    #[error("label filter rule `{rule}` is not a regular expression: {why}")]
    Regex {
        /// The rule.
        rule: String,
        /// What the expression's parser said.
        why: String,
    },
}

/// One rule of the filter: `[source:][!]REGEX`, matched from the start of a label's key.
#[derive(Clone)]
pub struct FilterRule {
    text: String,
    source: Option<String>,
    ignore: bool,
    regex: Regex,
}

/// Largest compiled expression, in bytes.
const REGEX_SIZE_LIMIT: usize = 256 * 1024;

impl FilterRule {
    /// Reads one rule.
    ///
    /// # Errors
    /// No key, an unknown source, `!` before the source, not a regular expression or too big a one.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let (source, rest) = match text.split_once(':') {
            // `(?:…)` of a rule without source.
            Some((before, _)) if before.contains(['(', '[', '\\']) => (None, text),
            Some((source, rest)) => (Some(source), rest),
            None => (None, text),
        };
        if let Some(bare) = source.and_then(|source| source.strip_prefix('!')) {
            return Err(FilterError::Misplaced(excerpt(text), format!("{bare}:!{rest}")));
        }
        if let Some(source_name) = source
            && !KNOWN_SOURCES.contains(&source_name)
        {
            return Err(FilterError::Source { rule: excerpt(text), source_name: excerpt(source_name) });
        }
        let (ignore, pattern) = match rest.strip_prefix('!') {
            Some(pattern) => (true, pattern),
            None => (false, rest),
        };
        if pattern.is_empty() {
            return Err(FilterError::Empty(excerpt(text)));
        }
        let regex = RegexBuilder::new(&format!("^(?:{pattern})"))
            .size_limit(REGEX_SIZE_LIMIT)
            .build()
            .map_err(|why| FilterError::Regex { rule: excerpt(text), why: why.to_string() })?;
        let source = source.filter(|source| *source != crate::source::ANY).map(str::to_owned);
        Ok(Self { text: text.to_owned(), source, ignore, regex })
    }

    /// How many bytes of the label's key the rule matches, or `None` if it does not match at all.
    fn matched(&self, label: &Label) -> Option<usize> {
        if self.source.as_ref().is_some_and(|source| source != label.source()) {
            return None;
        }
        self.regex.find(label.key()).map(|found| found.end())
    }
}

impl fmt::Debug for FilterRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Rules that are always there (reference `kvstore` 1.10).
const DEFAULTS: [&str; 21] = [
    "reserved:.*",
    r"io\.kubernetes\.pod\.namespace",
    r"io\.cilium\.k8s\.namespace\.labels",
    r"app\.kubernetes\.io",
    r"io\.cilium\.k8s\.policy\.cluster",
    r"io\.cilium\.k8s\.policy\.serviceaccount",
    r"!io\.kubernetes",
    r"!kubernetes\.io",
    r"!statefulset\.kubernetes\.io/pod-name",
    r"!apps\.kubernetes\.io/pod-index",
    r"!batch\.kubernetes\.io/job-completion-index",
    r"!batch\.kubernetes\.io/controller-uid",
    r"!.*beta\.kubernetes\.io",
    r"!k8s\.io",
    "!pod-template-generation",
    "!pod-template-hash",
    "!controller-revision-hash",
    "!controller-uid",
    "!annotation.*",
    "!etcd_node",
    r"!topology\.kubernetes\.io",
];

/// Which labels make up an identity: the option `labels`.
///
/// A label counts if no rule ignores it and no rule of the operator's includes anything; or if a rule includes
/// it with a longer match than the shortest match of those that ignore it. One including rule of the operator's
/// makes the filter a whitelist.
#[derive(Clone, Debug)]
pub struct LabelFilter {
    rules: Vec<FilterRule>,
    whitelist: bool,
}

impl LabelFilter {
    /// The defaults and the rules of an option's text, separated by white space.
    ///
    /// # Errors
    /// The first rule that can't be read.
    pub fn parse(text: &str) -> Result<Self, FilterError> {
        let own = text.split_whitespace().map(FilterRule::parse).collect::<Result<Vec<_>, _>>()?;
        let mut rules = DEFAULTS.iter().map(|rule| FilterRule::parse(rule)).collect::<Result<Vec<_>, _>>()?;
        let whitelist = own.iter().any(|rule| !rule.ignore);
        rules.extend(own);
        Ok(Self { rules, whitelist })
    }

    /// Whether the label is part of the identity.
    #[must_use]
    pub fn is_relevant(&self, label: &Label) -> bool {
        let mut included = 0;
        let mut ignored: Option<usize> = None;
        for rule in &self.rules {
            let Some(len) = rule.matched(label) else { continue };
            if rule.ignore {
                ignored = Some(ignored.map_or(len, |shortest| shortest.min(len)));
            } else {
                included = included.max(len);
            }
        }
        match ignored {
            None => !self.whitelist || included > 0,
            Some(ignored) => included > ignored,
        }
    }

    /// Whether a rule of the operator's, none of the defaults, includes the label.
    #[must_use]
    pub fn is_included_by_own_rule(&self, label: &Label) -> bool {
        let own = self.rules.iter().skip(DEFAULTS.len());
        own.filter(|rule| !rule.ignore).any(|rule| rule.matched(label).is_some())
    }

    /// The labels that make up the identity.
    #[must_use]
    pub fn identity_labels(&self, labels: &Labels) -> Labels {
        labels.filtered(|label| self.is_relevant(label))
    }

    /// Whether only included labels count.
    #[must_use]
    pub fn is_whitelist(&self) -> bool {
        self.whitelist
    }

    /// The rules as written, the defaults first.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| rule.text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(text: &str) -> Labels {
        Labels::parse_list(text, "k8s").unwrap()
    }

    #[test]
    fn by_default_what_changes_from_pod_to_pod_is_left_out() {
        let filter = LabelFilter::parse("").unwrap();
        let labels = pod("app=web,pod-template-hash=5d4f,io.kubernetes.pod.namespace=ns1,\
            io.kubernetes.pod.name=web-1,app.kubernetes.io/name=web,topology.kubernetes.io/zone=a,\
            statefulset.kubernetes.io/pod-name=web-1,io.cilium.k8s.policy.cluster=c1,reserved:init,\
            failure-domain.beta.kubernetes.io/zone=a,k8s-app=x");
        assert_eq!(
            filter.identity_labels(&labels).to_string(),
            "k8s:app=web,k8s:app.kubernetes.io/name=web,reserved:init,k8s:io.cilium.k8s.policy.cluster=c1,\
             k8s:io.kubernetes.pod.namespace=ns1,k8s:k8s-app=x"
        );
        assert!(!filter.is_whitelist());
    }

    #[test]
    fn with_the_published_filter_all_pods_of_one_application_get_one_identity() {
        let filter = LabelFilter::parse(
            "reserved:.* k8s:!io.cilium.k8s.namespace.labels.* k8s:io.cilium.k8s.policy k8s:com.trip/appid \
             k8s:com.trip/redis-cluster-name",
        )
        .unwrap();
        assert!(filter.is_whitelist());
        let common = "com.trip/appid=100012,io.kubernetes.pod.namespace=ns1,io.cilium.k8s.policy.cluster=c1,\
            io.cilium.k8s.policy.serviceaccount=default";
        let pods = [
            "app=web,pod-template-hash=1,version=v1,io.cilium.k8s.namespace.labels.team=a",
            "app=web,pod-template-hash=2,version=v2,io.cilium.k8s.namespace.labels.team=b",
            "canary=true",
        ]
        .map(|own| filter.identity_labels(&pod(&format!("{common},{own}"))).to_kvstore());
        assert_eq!(
            pods[0],
            "k8s:com.trip/appid=100012;k8s:io.cilium.k8s.policy.cluster=c1;\
             k8s:io.cilium.k8s.policy.serviceaccount=default;k8s:io.kubernetes.pod.namespace=ns1;"
        );
        assert!(pods.iter().all(|p| *p == pods[0]), "{pods:#?}");
        let other = filter.identity_labels(&pod("com.trip/appid=7,io.kubernetes.pod.namespace=ns1"));
        assert_ne!(other.to_kvstore(), pods[0]);
        assert_eq!(filter.identity_labels(&pod("reserved:host,app=x")).to_string(), "reserved:host");
    }

    #[test]
    fn the_source_of_a_rule_counts_and_the_longer_include_wins() {
        let filter = LabelFilter::parse("k8s:!team container:!team-x").unwrap();
        assert_eq!(filter.identity_labels(&pod("team=a,container:team-x=b,any=c")).to_string(), "k8s:any=c");
        let filter = LabelFilter::parse("!com.example com.example/app").unwrap();
        assert_eq!(
            filter.identity_labels(&pod("com.example/app=1,com.example/pod=2")).to_string(),
            "k8s:com.example/app=1"
        );
    }

    #[test]
    fn rules_that_cannot_be_read_are_named() {
        for (rule, part) in [
            ("k8s:", "names no key"),
            ("k8s:!", "names no key"),
            ("!k8s:app", "write `k8s:!app`"),
            ("kubernetes:app", "is not a label source"),
            ("k8s:(", "not a regular expression"),
            ("k8s:(x{1000}){1000}", "not a regular expression"),
        ] {
            let error = LabelFilter::parse(rule).unwrap_err().to_string();
            assert!(error.contains(part), "{rule}: {error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 64 / 256))]
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = LabelFilter::parse(&text);
        }
    }
}
