//! The file of `label-prefix-file`: rules of the label filter as JSON,
//! `{"version": 1, "valid-prefixes": [{"source": "k8s", "prefix": "app", "invert": false}]}`.

use std::path::Path;

use serde::Deserialize;
use villus_labels::FilterRule;

/// The version of the format that there is.
const VERSION: u64 = 1;
/// Largest file that is read, bytes.
const MOST: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    version: u64,
    valid_prefixes: Vec<Prefix>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Prefix {
    #[serde(default)]
    source: String,
    prefix: String,
    /// Labels that match are left out.
    #[serde(default)]
    invert: bool,
}

/// The rules of a file in the words of the option `labels`, separated by spaces.
///
/// # Errors
/// What is wrong, in one sentence.
pub fn read(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > MOST {
        return Err(format!("it has {length} bytes, more than {MOST}"));
    }
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<String, String> {
    let file: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if file.version != VERSION {
        return Err(format!("version: {} is not {VERSION}", file.version));
    }
    let rules: Result<Vec<String>, String> = file
        .valid_prefixes
        .iter()
        .enumerate()
        .map(|(n, prefix)| rule(prefix).map_err(|error| format!("valid-prefixes[{n}]: {error}")))
        .collect();
    Ok(rules?.join(" "))
}

fn rule(prefix: &Prefix) -> Result<String, String> {
    if prefix.prefix.is_empty() {
        return Err("prefix is empty".into());
    }
    if prefix.prefix.starts_with('!') {
        return Err("a prefix that leaves labels out is written with \"invert\": true".into());
    }
    if prefix.prefix.contains(char::is_whitespace) {
        return Err("no key of a label has a space".into());
    }
    // Without a source the text may not look as if it had one.
    let source = if prefix.source.is_empty() { "any" } else { &prefix.source };
    let text = format!("{source}:{}{}", if prefix.invert { "!" } else { "" }, prefix.prefix);
    FilterRule::parse(&text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_in_the_words_of_labels() {
        let text = r#"{"version": 1, "valid-prefixes": [
            {"prefix": "reserved:.*", "source": "any"},
            {"prefix": "com.example/app", "source": "k8s", "invert": false},
            {"prefix": "team", "invert": true}
        ]}"#;
        assert_eq!(parse(text).unwrap(), "any:reserved:.* k8s:com.example/app any:!team");
    }

    #[test]
    fn mistakes_are_named_by_their_place() {
        let of = |rule: &str| format!(r#"{{"version": 1, "valid-prefixes": [{{"prefix": "ok"}}, {rule}]}}"#);
        for (text, part) in [
            (String::new(), "EOF"),
            (r#"{"version": 2, "valid-prefixes": []}"#.into(), "version: 2 is not 1"),
            (r#"{"version": 1}"#.into(), "valid-prefixes"),
            (of(r#"{"prefix": ""}"#), "valid-prefixes[1]: prefix is empty"),
            (of(r#"{"prefix": "!a"}"#), "valid-prefixes[1]: a prefix that leaves"),
            (of(r#"{"prefix": "("}"#), "valid-prefixes[1]"),
            (of(r#"{"prefix": "a", "source": "docker"}"#), "is not a label source"),
            (of(r#"{"prefix": "a", "inverted": true}"#), "unknown field"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
