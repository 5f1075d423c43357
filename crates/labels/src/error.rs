use thiserror::Error;

/// A label, or a list of labels, that can't be taken.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum LabelError {
    /// Nothing where a label should be.
    #[error("empty label; write `source:key=value`, for example `k8s:app=web`")]
    Empty,
    /// A part is longer than any tool of the field takes.
    #[error("label `{label}`: the {part} has {len} characters, at most {max} are allowed; shorten it")]
    TooLong {
        /// Beginning of the label.
        label: String,
        /// `source`, `key`, `key's name`, `key's prefix` or `value`.
        part: &'static str,
        /// Length found, in bytes.
        len: usize,
        /// Length allowed, in bytes.
        max: usize,
    },
    /// A character that can't be stored or printed faithfully.
    #[error("label `{label}`: the {part} contains {character}; remove it")]
    BadCharacter {
        /// Beginning of the label, the character escaped.
        label: String,
        /// `source`, `key` or `value`.
        part: &'static str,
        /// How the character is named.
        character: String,
    },
    /// Two labels of one set with one key.
    #[error("labels `{first}` and `{second}` have the same key; a set of labels holds one label per key")]
    SameKey {
        /// One of them.
        first: String,
        /// The other.
        second: String,
    },
    /// A label string of the kvstore must end in `;`.
    #[error("label string `{0}` does not end in `;`; every label in the kvstore ends in one")]
    Unterminated(String),
    /// A label of the kvstore's label string without its `=`.
    #[error("label string: `{0}` is not of the form `source:key=value`")]
    NotKeyValue(String),
    /// Text that should be an IP prefix and is not.
    #[error("`{text}` is not an IP prefix: {why}")]
    BadPrefix {
        /// What was read.
        text: String,
        /// What is wrong with it and what would be right.
        why: String,
    },
}
