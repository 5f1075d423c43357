//! Reading a tree field by field, with the path of every field and every problem collected.

use villus_labels::nearest;

use crate::{
    Position, Problem, ProblemKind,
    node::{Key, Node, Value},
};

/// A node and the path that led to it.
#[derive(Clone)]
pub(crate) struct At<'a> {
    pub(crate) node: &'a Node,
    pub(crate) path: String,
}

/// The fields that a mapping may have.
pub(crate) struct Schema {
    /// Fields that are read.
    pub(crate) known: &'static [&'static str],
    /// Fields that the language has and that are not enforced, with what to do.
    pub(crate) refused: &'static [(&'static str, &'static str)],
    /// Fields that belong elsewhere, with where.
    pub(crate) elsewhere: &'static [(&'static str, &'static str)],
}

/// A mapping whose keys were checked.
pub(crate) struct Fields<'a> {
    at: At<'a>,
    entries: &'a [(Key, Node)],
}

/// Collects what is wrong with one object.
pub(crate) struct Reader<'a> {
    pub(crate) file: &'a str,
    pub(crate) document: usize,
    pub(crate) object: Option<String>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

impl<'a> At<'a> {
    pub(crate) fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    pub(crate) fn position(&self) -> Option<Position> {
        self.node.position
    }

    pub(crate) fn field(&self, name: &str, node: &'a Node) -> Self {
        Self { node, path: self.path_of(name) }
    }

    pub(crate) fn key(&self, name: &str, node: &'a Node) -> Self {
        Self { node, path: format!("{}[{}]", self.path, shortened(name)) }
    }

    /// The path of a field.
    pub(crate) fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        Self { node, path: format!("{}[{index}]", self.path) }
    }
}

impl<'a> Fields<'a> {
    /// A mapping of somebody else's, of which only some fields are read.
    pub(crate) fn unchecked(at: &At<'a>) -> Option<Self> {
        match &at.node.value {
            Value::Mapping(entries) => Some(Self { at: at.clone(), entries }),
            _ => None,
        }
    }

    /// The field, unless it is absent or null.
    pub(crate) fn get(&self, name: &str) -> Option<At<'a>> {
        let (_, node) = self.entries.iter().find(|(key, _)| key.text == name)?;
        (!matches!(node.value, Value::Null)).then(|| self.at.field(name, node))
    }

    /// The field, if it is null.
    pub(crate) fn get_null(&self, name: &str) -> Option<At<'a>> {
        let (_, node) = self.entries.iter().find(|(key, _)| key.text == name)?;
        matches!(node.value, Value::Null).then(|| self.at.field(name, node))
    }

    pub(crate) fn at(&self) -> &At<'a> {
        &self.at
    }
}

impl<'a> Reader<'a> {
    pub(crate) fn problem(&mut self, at: &At<'_>, kind: ProblemKind, message: impl Into<String>) {
        self.push(at.path.clone(), at.position(), kind, message.into());
    }

    pub(crate) fn invalid(&mut self, at: &At<'_>, message: impl Into<String>) {
        self.problem(at, ProblemKind::Invalid, message);
    }

    pub(crate) fn warn(&mut self, at: &At<'_>, message: impl Into<String>) {
        let problem = self.new_problem(at.path.clone(), at.position(), ProblemKind::Warning, message.into());
        self.warnings.push(problem);
    }

    fn push(&mut self, path: String, position: Option<Position>, kind: ProblemKind, message: String) {
        let problem = self.new_problem(path, position, kind, message);
        self.problems.push(problem);
    }

    fn new_problem(
        &self,
        path: String,
        position: Option<Position>,
        kind: ProblemKind,
        message: String,
    ) -> Problem {
        let (file, object) = (self.file.to_owned(), self.object.clone());
        Problem { file, document: self.document, object, path, position, kind, message }
    }

    /// A mapping whose every key is in the schema; the others are problems.
    pub(crate) fn fields<'n>(&mut self, at: &At<'n>, schema: &Schema) -> Option<Fields<'n>> {
        let entries = self.entries(at)?;
        for (key, node) in entries {
            let field = At { node, path: at.field(&shortened(&key.text), node).path };
            let refused = schema.refused.iter().find(|(name, _)| *name == key.text);
            let elsewhere = schema.elsewhere.iter().find(|(name, _)| *name == key.text);
            if schema.known.contains(&key.text.as_str()) {
            } else if let Some((_, advice)) = refused {
                if !matches!(node.value, Value::Null) {
                    self.push(field.path, key.position, ProblemKind::NotEnforced, (*advice).to_owned());
                }
            } else if let Some((_, place)) = elsewhere {
                let message = format!("the field does not belong here; {place}");
                self.push(field.path, key.position, ProblemKind::UnknownField, message);
            } else {
                let names = schema.known.iter().chain(schema.refused.iter().map(|(name, _)| name)).copied();
                let hint = match nearest(&key.text, names) {
                    Some(name) => format!("; did you mean `{name}`?"),
                    None if schema.known.is_empty() => String::new(),
                    None => format!("; known here: {}", schema.known.join(", ")),
                };
                let message = format!("unknown field{hint}");
                self.push(field.path, key.position, ProblemKind::UnknownField, message);
            }
        }
        Some(Fields { at: at.clone(), entries })
    }

    /// A mapping with free keys, none of them twice.
    pub(crate) fn entries<'n>(&mut self, at: &At<'n>) -> Option<&'n [(Key, Node)]> {
        let Value::Mapping(entries) = &at.node.value else {
            self.wrong_kind(at, "a mapping");
            return None;
        };
        let mut seen = std::collections::HashMap::new();
        for (key, node) in entries {
            if let Some(first) = seen.insert(key.text.as_str(), key.position) {
                let line = match first {
                    Some(Position { line, .. }) => format!(" (first in line {line})"),
                    None => String::new(),
                };
                let message = format!("the key is there twice{line}; keep one");
                let path = At { node, path: at.field(&shortened(&key.text), node).path }.path;
                self.push(path, key.position, ProblemKind::Duplicate, message);
            }
        }
        Some(entries)
    }

    /// The items of a list.
    pub(crate) fn items<'n>(&mut self, at: &At<'n>) -> Option<Vec<At<'n>>> {
        match &at.node.value {
            Value::Sequence(items) => Some(items.iter().enumerate().map(|(i, n)| at.item(i, n)).collect()),
            _ => {
                self.wrong_kind(at, "a list");
                None
            }
        }
    }

    pub(crate) fn text<'n>(&mut self, at: &At<'n>) -> Option<&'n str> {
        if let Value::String(text) = &at.node.value {
            return Some(text);
        }
        let advice = match &at.node.value {
            Value::Bool(_) | Value::Number(_) => "; put it in quotes",
            Value::Null => "; write \"\" for an empty text",
            _ => "",
        };
        self.invalid(at, format!("must be a text, but is {}{advice}", at.node.value.kind()));
        None
    }

    pub(crate) fn boolean(&mut self, at: &At<'_>) -> Option<bool> {
        if let Value::Bool(value) = at.node.value {
            return Some(value);
        }
        self.wrong_kind(at, "true or false");
        None
    }

    fn wrong_kind(&mut self, at: &At<'_>, wanted: &str) {
        self.invalid(at, format!("must be {wanted}, but is {}", at.node.value.kind()));
    }
}

/// A name from a file, cut and escaped for a path.
fn shortened(name: &str) -> String {
    const SHOWN: usize = 80;
    let mut text: String = name.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if name.chars().count() > SHOWN {
        text.push('…');
    }
    text
}
