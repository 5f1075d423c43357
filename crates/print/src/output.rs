//! `-o json|yaml|jsonpath=…`: how a value is printed.

use std::{fmt, str::FromStr};

use serde::Serialize;
use serde_json::Value;
use serde_json_path::JsonPath;

/// How a command prints its result; the value of `-o`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// Indented JSON.
    Json,
    /// YAML.
    Yaml,
    /// Parts of the JSON form, in the notation of `kubectl`: text with expressions in braces.
    JsonPath(Template),
}

/// An output that cannot be understood or made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OutputError {
    /// Not a format.
    #[error("-o {0:?} is none of json, yaml, jsonpath=TEMPLATE")]
    Format(String),
    /// Not a template.
    #[error("-o jsonpath={template}: {problem}")]
    Template {
        /// What was given.
        template: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The value has no such form.
    #[error("cannot print the result: {0}")]
    Value(String),
}

/// A jsonpath template: `{.id}`, `{.status.identity.labels[*]}{"\n"}`, `{[*].id}`.
///
/// `range` and functions of `kubectl` are refused.
#[derive(Clone, Debug)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Literal(String),
    Path(JsonPath),
}

impl Output {
    /// Prints `value`; `text` makes the form for people. The result ends with a newline unless it is empty
    /// or comes from a template.
    ///
    /// # Errors
    /// When the value cannot be expressed as JSON or YAML.
    pub fn render<T: Serialize + ?Sized>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<String, OutputError> {
        match self {
            Self::Text => Ok(text()),
            Self::Json => {
                let mut out = serde_json::to_string_pretty(value).map_err(unprintable)?;
                out.push('\n');
                Ok(out)
            }
            Self::Yaml => {
                let value = serde_json::to_value(value).map_err(unprintable)?;
                let mut out = serde_saphyr::to_string(&value).map_err(unprintable)?;
                if !out.ends_with('\n') {
                    out.push('\n');
                }
                Ok(out)
            }
            Self::JsonPath(template) => {
                Ok(template.apply(&serde_json::to_value(value).map_err(unprintable)?))
            }
        }
    }
}

fn unprintable(error: impl fmt::Display) -> OutputError {
    OutputError::Value(error.to_string())
}

impl FromStr for Output {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        match text {
            "" | "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ => match text.split_once('=') {
                Some(("jsonpath", template)) => template.parse().map(Self::JsonPath),
                _ => Err(OutputError::Format(text.to_owned())),
            },
        }
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Template {}

impl FromStr for Template {
    type Err = OutputError;

    fn from_str(text: &str) -> Result<Self, OutputError> {
        let problem = |problem: String| OutputError::Template { template: text.to_owned(), problem };
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find('{') {
            if start > 0 {
                parts.push(Part::Literal(rest[..start].to_owned()));
            }
            let inner = &rest[start + 1..];
            let end = closing_brace(inner)
                .ok_or_else(|| problem(format!("no closing brace for {:?}", &rest[start..])))?;
            parts.push(expression(inner[..end].trim()).map_err(problem)?);
            rest = &inner[end + 1..];
        }
        if !rest.is_empty() {
            // Without braces the whole text is an expression.
            let part = if parts.is_empty() {
                expression(rest.trim()).map_err(problem)?
            } else {
                Part::Literal(rest.to_owned())
            };
            parts.push(part);
        }
        Ok(Self { text: text.to_owned(), parts })
    }
}

/// Where the expression ends; braces in quotes do not count.
fn closing_brace(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match (quote, c) {
            _ if escaped => escaped = false,
            (Some(_), '\\') => escaped = true,
            (Some(open), c) if c == open => quote = None,
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(c),
            (None, '}') => return Some(index),
            (None, _) => {}
        }
    }
    None
}

fn expression(text: &str) -> Result<Part, String> {
    if text.starts_with('"') {
        let literal: String =
            serde_json::from_str(text).map_err(|error| format!("{text} is not a quoted text: {error}"))?;
        return Ok(Part::Literal(literal));
    }
    let word = text.split_whitespace().next().unwrap_or_default();
    if word == "range" || word == "end" {
        return Err("{range} is not supported; use [*], or -o json with jq".to_owned());
    }
    let path = match text.trim_start_matches('@') {
        "" | "." => "$".to_owned(),
        path if path.starts_with('$') => path.to_owned(),
        path if path.starts_with(['.', '[']) => format!("${path}"),
        path => format!("$.{path}"),
    };
    JsonPath::parse(&quote_names(&path)).map(Part::Path).map_err(|error| error.to_string())
}

/// Names with hyphens, which `kubectl` takes as they are, in quotes, which is how the standard (RFC 9535) takes them. What
/// stands in brackets is left alone.
fn quote_names(path: &str) -> String {
    let mut out = String::with_capacity(path.len() + 8);
    let (mut rest, mut brackets) = (path, 0_usize);
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '[' => brackets += 1,
            ']' => brackets = brackets.saturating_sub(1),
            _ => {}
        }
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '-').unwrap_or(rest.len());
        let name = &rest[..end];
        if c == '.' && brackets == 0 && name.contains('-') {
            // Of `..` one dot more than of a plain child.
            if out.ends_with('.') {
                out.push('.');
            }
            out.extend(["['", name, "']"]);
            rest = &rest[end..];
        } else {
            out.push(c);
        }
    }
    out
}

impl Template {
    fn apply(&self, value: &Value) -> String {
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Path(path) => {
                    let found: Vec<String> = path.query(value).all().into_iter().map(plain).collect();
                    out.push_str(&found.join(" "));
                }
            }
        }
        out
    }
}

/// A text without its quotes, nothing for null, anything else as JSON.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn render(output: &str, value: &Value) -> Result<String, OutputError> {
        output.parse::<Output>()?.render(value, || "for people\n".to_owned())
    }

    #[test]
    fn each_format_prints_the_same_value() {
        let value = json!([{"id": 5, "labels": ["k8s:app=web", "k8s:env=prod"]}, {"id": 7, "labels": []}]);
        assert_eq!(render("text", &value).unwrap(), "for people\n");
        assert_eq!(serde_json::from_str::<Value>(&render("json", &value).unwrap()).unwrap(), value);
        let yaml = render("yaml", &value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&yaml).unwrap(), value, "{yaml}");
        assert!(yaml.contains("id: 5"), "{yaml}");
    }

    #[test]
    fn paths_choose_parts() {
        let value =
            json!([{"id": 5, "status": {"labels": ["a", "b"], "up": true}, "k8s-ns": "x"}, {"id": 7}]);
        for (template, expected) in [
            ("{[*].id}", "5 7"),
            ("{$[0].status.labels[*]}", "a b"),
            ("id={[0].id}, up={[0].status.up}{\"\\n\"}", "id=5, up=true\n"),
            ("{[0]['k8s-ns']}", "x"),
            ("{[0].k8s-ns} {[0].k8s-ns}", "x x"),
            ("{..k8s-ns}", "x"),
            ("{[?(@['k8s-ns'] == 'x')].id}", "5"),
            ("[0].id", "5"),
            ("{[9].id}", ""),
        ] {
            let got = render(&format!("jsonpath={template}"), &value);
            assert_eq!(got.as_deref(), Ok(expected), "{template}");
        }
        assert_eq!(render("jsonpath={.id}", &json!({"id": 3})).unwrap(), "3");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (output, needle) in [
            ("xml", "json, yaml"),
            ("jsonpath={.id", "closing brace"),
            ("jsonpath={range .items[*]}{.id}{end}", "not supported"),
            ("jsonpath={.a[}", "jsonpath={.a[}"),
        ] {
            let error = render(output, &json!({})).unwrap_err().to_string();
            assert!(error.contains(needle), "{error}");
        }
    }
}
