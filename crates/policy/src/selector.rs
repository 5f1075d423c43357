//! Reading selectors of labels.

use villus_labels::{Requirement, Selector, SelectorError};

use crate::{
    ProblemKind,
    read::{At, Reader, Schema},
};

/// A selector as Cilium writes it: keys with a source, or without one for any.
pub(crate) fn read_selector(reader: &mut Reader<'_>, at: &At<'_>) -> Option<Selector> {
    read_with_keys(reader, at, &|key| Ok(key.to_owned()))
}

/// A selector whose keys are made from those written. What `key` says instead of a key is a problem.
pub(crate) fn read_with_keys(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    key: &dyn Fn(&str) -> Result<String, String>,
) -> Option<Selector> {
    const SCHEMA: Schema = Schema {
        known: &["matchLabels", "matchExpressions"],
        refused: &[],
        elsewhere: &[("labels", "write `matchLabels`")],
    };
    let before = reader.problems.len();
    let fields = reader.fields(at, &SCHEMA)?;
    let mut requirements = Vec::new();
    if let Some(labels) = fields.get("matchLabels") {
        for (name, node) in reader.entries(&labels).unwrap_or_default() {
            let item = labels.key(&name.text, node);
            let Some(value) = reader.text(&item) else { continue };
            let requirement = key(&name.text).map(|key| Requirement::equals(&key, value));
            requirements.extend(checked(reader, &item, requirement));
        }
    }
    for item in fields.get("matchExpressions").and_then(|at| reader.items(&at)).unwrap_or_default() {
        let requirement = read_expression(reader, &item, key);
        requirements.extend(requirement);
    }
    if reader.problems.len() > before {
        return None;
    }
    Selector::new(requirements).map_err(|error| reader.invalid(at, error.to_string())).ok()
}

fn checked(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    requirement: Result<Result<Requirement, SelectorError>, String>,
) -> Option<Requirement> {
    requirement
        .and_then(|requirement| requirement.map_err(|error| error.to_string()))
        .map_err(|message| reader.invalid(at, message))
        .ok()
}

fn read_expression(
    reader: &mut Reader<'_>,
    at: &At<'_>,
    key: &dyn Fn(&str) -> Result<String, String>,
) -> Option<Requirement> {
    const SCHEMA: Schema = Schema { known: &["key", "operator", "values"], refused: &[], elsewhere: &[] };
    let fields = reader.fields(at, &SCHEMA)?;
    let mut required = |name: &str| {
        let field = fields.get(name);
        if field.is_none() {
            reader.problem(at, ProblemKind::Missing, format!("`{name}` is missing"));
        }
        field.and_then(|at| reader.text(&at))
    };
    let (name, operator) = (required("key"), required("operator"));
    let mut values = Vec::new();
    for item in fields.get("values").and_then(|at| reader.items(&at)).unwrap_or_default() {
        values.push(reader.text(&item)?);
    }
    let (name, operator) = (name?, operator?);
    checked(reader, at, key(name).map(|key| Requirement::expression(&key, operator, values)))
}
