//! Both parsers: no bytes make them panic, and what was generated comes back whichever way it is written.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "reference/policies.rs"]
mod policies;

use proptest::prelude::*;
use serde_json::Value;
use villus_policy::{Policy, Rule, parse};

use policies::any_policies;

/// The value as block-style YAML.
fn yaml(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                text.push_str(&format!("\n{pad}{}:", Value::String(key.clone())));
                yaml(inner, indent + 2, text);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                text.push_str(&format!("\n{pad}-"));
                yaml(item, indent + 2, text);
            }
        }
        other => text.push_str(&format!(" {other}")),
    }
}

fn as_yaml(policies: &[Value]) -> String {
    let mut text = String::new();
    for policy in policies {
        text.push_str("\n---");
        yaml(policy, 0, &mut text);
    }
    text
}

/// A rule without the places where it and its elements stand.
fn without_places(mut rule: Rule) -> Rule {
    rule.position = None;
    for section in [&mut rule.ingress, &mut rule.egress, &mut rule.ingress_deny, &mut rule.egress_deny] {
        section.iter_mut().flatten().for_each(|element| element.position = None);
    }
    rule
}

type Shown = (String, Vec<Rule>, Value);

fn shown(policies: Vec<Policy>) -> Vec<Shown> {
    let show = |policy: Policy| {
        (
            policy.key.to_string(),
            policy.rules.into_iter().map(without_places).collect(),
            policy.object.to_json(),
        )
    };
    policies.into_iter().map(show).collect()
}

/// What a text holds; `None` where it is refused.
fn read(text: &str) -> Option<Vec<Shown>> {
    parse("p", text).ok().map(|parsed| shown(parsed.policies))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases))]

    #[test]
    fn generated_documents_come_back(policies in any_policies()) {
        let list = Value::Array(policies.clone());
        let json = read(&list.to_string());
        prop_assert_eq!(&read(&serde_json::to_string_pretty(&list).unwrap()), &json);
        prop_assert_eq!(&read(&format!("# in flow style\n---\n{list}")), &json);
        prop_assert_eq!(&read(&as_yaml(&policies)), &json);
        let lines: Vec<String> = policies.iter().map(Value::to_string).collect();
        prop_assert_eq!(&read(&lines.join("\n")), &json);
        if let Some(read) = json {
            prop_assert_eq!(read.len(), policies.len());
            for ((_, rules, object), policy) in read.into_iter().zip(&policies) {
                let again = parse("p", &object.to_string()).unwrap().policies;
                prop_assert_eq!(shown(again)[0].1.clone(), rules);
                for field in ["apiVersion", "kind", "spec", "specs"] {
                    prop_assert_eq!(object.get(field), policy.get(field));
                }
            }
        }
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let text = String::from_utf8_lossy(&bytes);
        let _ = parse("random", &text);
        let _ = parse("random", &format!("{{{text}"));
        let _ = parse("random", &format!("---\n{text}"));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,200}", glue in "[-{}\\[\\]:,&*!|> a-z0-9\n\"']{0,120}") {
        let _ = parse("random", &text);
        let _ = parse("random", &glue);
    }

    #[test]
    fn a_file_cut_or_bent_anywhere_never_panics(
        policies in any_policies(),
        at in any::<proptest::sample::Index>(),
        bent in any::<u8>(),
    ) {
        for text in [serde_json::to_string_pretty(&Value::Array(policies.clone())).unwrap(), as_yaml(&policies)] {
            let at = at.index(text.len());
            if text.is_char_boundary(at) {
                let _ = parse("cut", &text[..at]);
                let _ = parse("bent", &format!("{}{}{}", &text[..at], char::from(bent), &text[at..]));
            }
        }
    }
}

#[test]
fn absurd_sizes_are_refused_or_read_in_time() {
    let policy = |body: &str| {
        format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  endpointSelector: {{}}\n  {body}\n"
        )
    };
    let many =
        |count: usize, item: &dyn Fn(usize) -> String| (0..count).map(item).collect::<Vec<_>>().join(", ");
    let expressions = many(10_000, &|i| format!("{{key: k{i}, operator: Exists}}"));
    let values = many(100_000, &|i| format!("v{i}"));
    let long = "x".repeat(1 << 20);
    for (text, part) in [
        (
            policy(&format!("ingress: [{{fromEndpoints: [{{matchExpressions: [{expressions}]}}]}}]")),
            "10000 requirements",
        ),
        (
            policy(&format!(
                "ingress: [{{fromEndpoints: [{{matchExpressions: [{{key: a, operator: In, values: [{values}]}}]}}]}}]"
            )),
            "100000 values",
        ),
        (
            policy(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{{}: a}}}}]}}]", &long[..1000])),
            "at most 63",
        ),
        (policy(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{a: {long}}}}}]}}]")), "at most 63"),
        (
            policy(&format!(
                "ingress: [{{toPorts: [{{ports: [{}]}}]}}]",
                many(1000, &|i| format!("{{port: {}}}", i + 1))
            )),
            "at most 40",
        ),
        (
            policy(&format!("ingress: [{{fromCIDRSet: [{{cidrGroupRef: {long}}}]}}]")),
            "253 lower-case letters",
        ),
        (policy(&format!("ingress: [{{toPorts: [{{ports: [{{port: {long}}}]}}]}}]")), "up to 15 letters"),
    ] {
        let refused = parse("p.yaml", &text).expect_err(part).to_string();
        assert!(refused.contains(part), "{}", &refused[..refused.len().min(400)]);
        assert!(refused.len() < 2000, "{} bytes", refused.len());
    }
    // Ten megabytes of prefixes are a policy like any other.
    let prefixes = many(600_000, &|i| format!("10.{}.{}.{}/32", i >> 16, i >> 8 & 255, i & 255));
    let text = policy(&format!("egress: [{{toCIDR: [{prefixes}]}}]"));
    assert!(text.len() > 9 << 20);
    let parsed = parse("p.yaml", &text).unwrap();
    assert_eq!(
        parsed.policies[0].rules[0].egress.as_ref().unwrap()[0].prefixes.as_ref().unwrap().len(),
        600_000
    );
}
