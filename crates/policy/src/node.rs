//! A file's text as trees whose every node knows its line and column.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;
use serde_saphyr::{Location, Spanned};

/// Largest file that is read, in bytes.
pub(crate) const MAX_FILE: usize = 16 << 20;

/// Where something stands in its file; both from 1. JSON has no positions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
pub struct Position {
    /// Line.
    pub line: u32,
    /// Column, in characters.
    pub column: u32,
}

impl Position {
    fn of(location: Location) -> Option<Self> {
        let line = u32::try_from(location.line()).ok().filter(|line| *line > 0)?;
        Some(Self { line, column: u32::try_from(location.column()).unwrap_or(u32::MAX) })
    }
}

/// One node of a document.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) value: Value,
    pub(crate) position: Option<Position>,
}

/// A key of a mapping and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) position: Option<Position>,
}

/// What a node holds. Mappings keep their order, and keys that are there twice.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// Text that is neither YAML nor JSON, or too much of it.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) position: Option<Position>,
    pub(crate) message: String,
}

/// The documents of a text: JSON where it begins with `{` or `[` and reads as JSON, else YAML. Empty documents
/// are left out; the items of a JSON array at the top are documents.
pub(crate) fn read_documents(text: &str) -> Result<Vec<Node>, SyntaxError> {
    if text.len() > MAX_FILE {
        let message = format!("the file has {} bytes, at most {MAX_FILE} are read; split it", text.len());
        return Err(SyntaxError { position: None, message });
    }
    let documents =
        if text.trim_start().starts_with(['{', '[']) { read_json(text)? } else { read_yaml(text)? };
    let mut flat = Vec::with_capacity(documents.len());
    for document in documents {
        match document.value {
            Value::Null => {}
            Value::Sequence(items) => flat.extend(items),
            _ => flat.push(document),
        }
    }
    Ok(flat)
}

fn read_json(text: &str) -> Result<Vec<Node>, SyntaxError> {
    serde_json::Deserializer::from_str(text)
        .into_iter::<JsonNode>()
        .map(|item| item.map(|JsonNode(node)| node))
        .collect::<Result<_, _>>()
        // YAML in flow style also begins with a bracket.
        .or_else(|json| read_yaml(text).map_err(|_| json))
        .map_err(|error| SyntaxError {
            position: u32::try_from(error.line())
                .ok()
                .filter(|line| *line > 0)
                .map(|line| Position { line, column: u32::try_from(error.column()).unwrap_or(u32::MAX) }),
            message: format!("not valid JSON: {error}"),
        })
}

fn read_yaml(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 4_000_000,
            max_nodes: 2_000_000,
            max_documents: 100_000,
            max_aliases: 1_000,
            max_anchors: 1_000,
            max_depth: 48,
            flow_nesting_limit: 48,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 50_000,
            max_replay_stack_depth: 16,
            max_alias_expansions_per_anchor: 1_000,
        },
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
        with_snippet: false,
    };
    serde_saphyr::from_str_multiple_with_options::<YamlNode, Vec<_>>(text, options)
        .map(|nodes| nodes.into_iter().map(|YamlNode(node)| node).collect())
        .map_err(|error| SyntaxError {
            position: error.location().and_then(Position::of),
            message: format!("not valid YAML: {}", error.without_snippet()),
        })
}

struct YamlNode(Node);
struct YamlValue(Value);
struct JsonNode(Node);

impl From<YamlNode> for Node {
    fn from(YamlNode(node): YamlNode) -> Self {
        node
    }
}

impl From<JsonNode> for Node {
    fn from(JsonNode(node): JsonNode) -> Self {
        node
    }
}

impl From<Spanned<String>> for Key {
    fn from(key: Spanned<String>) -> Self {
        Self { text: key.value, position: Position::of(key.referenced) }
    }
}

impl From<String> for Key {
    fn from(text: String) -> Self {
        Self { text, position: None }
    }
}

impl<'de> Deserialize<'de> for YamlNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<YamlValue>::deserialize(deserializer)?;
        Ok(Self(Node { value: spanned.value.0, position: Position::of(spanned.referenced) }))
    }
}

impl<'de> Deserialize<'de> for YamlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor::<YamlNode, Spanned<String>>(PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for JsonNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(ValueVisitor::<JsonNode, String>(PhantomData))?;
        Ok(Self(Node { value, position: None }))
    }
}

/// Builds a [`Value`] whose children are read as `N` and whose keys are read as `K`.
struct ValueVisitor<N, K>(PhantomData<(N, K)>);

impl<'de, N, K> Visitor<'de> for ValueVisitor<N, K>
where
    N: Deserialize<'de> + Into<Node>,
    K: Deserialize<'de> + Into<Key>,
{
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element::<N>()? {
            sequence.push(item.into());
        }
        Ok(Value::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut mapping = Vec::new();
        while let Some((key, value)) = entries.next_entry::<K, N>()? {
            mapping.push((key.into(), value.into()));
        }
        Ok(Value::Mapping(mapping))
    }
}

// === impl Node ===

impl Node {
    /// The value of a key of a mapping.
    pub(crate) fn get(&self, name: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(key, _)| key.text == name).map(|(_, node)| node),
            _ => None,
        }
    }

    /// The text of a string.
    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The same without positions.
    pub(crate) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => (*value).into(),
            Value::Number(number) => serde_json::Value::Number(number.clone()),
            Value::String(text) => text.as_str().into(),
            Value::Sequence(items) => items.iter().map(Self::to_json).collect(),
            Value::Mapping(entries) => {
                entries.iter().map(|(key, node)| (key.text.clone(), node.to_json())).collect()
            }
        }
    }
}

impl Value {
    /// What kind of value it is, for an error message.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::String(_) => "a text",
            Self::Sequence(_) => "a list",
            Self::Mapping(_) => "a mapping",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_knows_its_place() {
        let documents = read_documents("a: 1\nb:\n  - x: \"80\"\n---\n---\nc: {d: e}\n").unwrap();
        assert_eq!(documents.len(), 2);
        let Value::Sequence(items) = &documents[0].get("b").unwrap().value else { panic!("no list") };
        let x = items[0].get("x").unwrap();
        assert_eq!((x.as_str(), x.position), (Some("80"), Some(Position { line: 3, column: 8 })));
        let d = documents[1].get("c").unwrap().get("d").unwrap();
        assert_eq!((d.as_str(), d.position.unwrap().line), (Some("e"), 6));
    }

    #[test]
    fn json_is_read_as_json() {
        let documents = read_documents("[{\"a\": \"\\ud83d\\ude00\"},\n\t{\"a\": 2}]").unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[0].get("a").unwrap().as_str(), Some("😀"));
        let error = read_documents("{\"a\": 1,\n \"b\" 2}").unwrap_err();
        assert_eq!(error.position.unwrap().line, 2);
        assert_eq!(read_documents("{a: b}").unwrap().len(), 1);
    }

    #[test]
    fn anchors_that_explode_and_deep_nesting_are_refused() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..10 {
            let last = i - 1;
            let items = vec![format!("*a{last}"); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{items}]\n"));
        }
        assert!(read_documents(&bomb).is_err());
        assert!(read_documents(&"[".repeat(100_000)).is_err());
        assert!(read_documents(&"- ".repeat(100_000)).is_err());
        assert!(read_documents("a: *nowhere").is_err());
        assert!(read_documents(&" ".repeat(MAX_FILE + 1)).is_err());
    }
}
