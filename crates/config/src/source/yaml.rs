//! Options from a YAML file: one mapping, an entry per option. Values are scalars, sequences of scalars for
//! lists, or mappings of scalars for options of `key=value` pairs.

use super::{Origin, Sources, error, text_of};
use saphyr_parser::{Event, Parser, ScalarStyle};
use std::path::Path;

/// Reads every option of a file into `sources`.
pub(super) fn read(path: &Path, sources: &mut Sources) {
    let at = |line| Origin::File { path: path.into(), line };
    let text = match text_of(path) {
        Ok(text) => text,
        Err((reason, fix)) => return sources.find(error(at(0), "config", reason, fix)),
    };
    match entries(&text) {
        Ok(entries) => {
            for entry in entries {
                sources.push(&entry.name, &entry.text, at(entry.line));
            }
        }
        Err((line, reason)) => {
            let fix = "write one 'option: value' a line; `villus config check` shows the result".into();
            sources.find(error(at(line), "config", reason, fix));
        }
    }
}

#[derive(PartialEq, Debug)]
pub(crate) struct Entry {
    name: String,
    text: String,
    line: usize,
}

type Wrong = (usize, String);

/// The entries of a document, or line and reason of the first thing that is none.
pub(crate) fn entries(text: &str) -> Result<Vec<Entry>, Wrong> {
    let mut events = Events { parser: Parser::new_from_str(text), line: 0 };
    let mut out: Vec<Entry> = Vec::new();
    match events.after_start()? {
        // Nothing but comments, or a lone null.
        Event::StreamEnd => return Ok(out),
        Event::Scalar(v, ScalarStyle::Plain, ..) if is_null(&v) => return Ok(out),
        Event::MappingStart(..) => {}
        _ => return Err((events.line, "the document is not a mapping from options to values".into())),
    }
    loop {
        let name = match events.next()? {
            Event::MappingEnd => break,
            Event::Scalar(name, ..) => name.into_owned(),
            other => return Err((events.line, format!("{} cannot be an option's name", what(&other)))),
        };
        let line = events.line;
        if let Some(earlier) = out.iter().find(|e| e.name == name) {
            return Err((line, format!("{name} is there already, in line {}", earlier.line)));
        }
        let text = value(&mut events, &name)?;
        out.push(Entry { name, text, line });
    }
    match events.after_end()? {
        Event::StreamEnd => Ok(out),
        _ => Err((events.line, "a second document; only one is read".into())),
    }
}

/// One value as the text that a file of the directory would hold.
fn value(events: &mut Events<'_>, name: &str) -> Result<String, Wrong> {
    match events.next()? {
        Event::Scalar(text, style, ..) => Ok(scalar(&text, style)),
        Event::SequenceStart(..) => {
            let mut items = Vec::new();
            loop {
                match events.next()? {
                    Event::SequenceEnd => break,
                    Event::Scalar(text, style, ..) => items.push(scalar(&text, style)),
                    other => return Err((events.line, format!("{} in the list of {name}", what(&other)))),
                }
            }
            // Rules of `labels` may hold commas and are separated by spaces.
            Ok(items.join(if name == "labels" { " " } else { "," }))
        }
        Event::MappingStart(..) => {
            let mut pairs = serde_json::Map::new();
            loop {
                let key = match events.next()? {
                    Event::MappingEnd => break,
                    Event::Scalar(key, ..) => key.into_owned(),
                    other => return Err((events.line, format!("{} as a key below {name}", what(&other)))),
                };
                match events.next()? {
                    Event::Scalar(text, style, ..) => pairs.insert(key, scalar(&text, style).into()),
                    other => return Err((events.line, format!("{} below {name}.{key}", what(&other)))),
                };
            }
            Ok(serde_json::Value::Object(pairs).to_string())
        }
        other => Err((events.line, format!("{} as the value of {name}", what(&other)))),
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

fn scalar(text: &str, style: ScalarStyle) -> String {
    if style == ScalarStyle::Plain && is_null(text) { String::new() } else { text.to_string() }
}

fn what(event: &Event<'_>) -> &'static str {
    match event {
        Event::Alias(_) => "a reference (*name)",
        Event::SequenceStart(..) => "a list",
        Event::MappingStart(..) => "a mapping",
        Event::Scalar(..) => "a text",
        _ => "the end of the document",
    }
}

struct Events<'t> {
    parser: Parser<'t, saphyr_parser::StrInput<'t>>,
    line: usize,
}

impl<'t> Events<'t> {
    fn next(&mut self) -> Result<Event<'t>, Wrong> {
        match self.parser.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line();
                Ok(event)
            }
            Some(Err(e)) => Err((e.marker().line(), format!("not YAML: {}", e.info()))),
            None => Ok(Event::StreamEnd),
        }
    }

    fn after_start(&mut self) -> Result<Event<'t>, Wrong> {
        self.skip(|e| matches!(e, Event::StreamStart | Event::DocumentStart(_) | Event::Nothing))
    }

    fn after_end(&mut self) -> Result<Event<'t>, Wrong> {
        self.skip(|e| matches!(e, Event::DocumentEnd | Event::Nothing))
    }

    fn skip(&mut self, skipped: impl Fn(&Event<'_>) -> bool) -> Result<Event<'t>, Wrong> {
        loop {
            let event = self.next()?;
            if !skipped(&event) {
                return Ok(event);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Result<Vec<(String, String, usize)>, Wrong> {
        entries(text).map(|es| es.into_iter().map(|e| (e.name, e.text, e.line)).collect())
    }

    #[test]
    fn scalars_lists_and_mappings_become_texts_with_their_lines() {
        let text = "# options\nmtu: 1450\n\ndevices:\n  - eth0\n  - bond+\nkvstore-opt:\n  etcd.qps: \"20\"\ndebug:\n";
        let want = [
            ("mtu", "1450", 2),
            ("devices", "eth0,bond+", 4),
            ("kvstore-opt", r#"{"etcd.qps":"20"}"#, 7),
            ("debug", "", 9),
        ];
        assert_eq!(read(text).unwrap(), want.map(|(n, t, l)| (n.to_string(), t.to_string(), l)));
        assert!(read("").unwrap().is_empty());
        assert!(read("# nothing\n").unwrap().is_empty());
        assert!(read("---\n").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_mapping_of_options_is_named_with_its_line() {
        for (text, line, part) in [
            ("- a\n", 1, "not a mapping"),
            ("mtu: 1\nmtu: 2\n", 2, "already, in line 1"),
            ("a: 1\nb: [1, [2]]\n", 2, "a list in the list of b"),
            ("a:\n  b:\n    c: 1\n", 2, "a mapping below a.b"),
            ("a: &x 1\nb: *x\n", 2, "a reference"),
            ("a: 1\n---\nb: 1\n", 2, "second document"),
            ("a: 'x\n", 1, "not YAML"),
        ] {
            let (at, reason) = read(text).unwrap_err();
            assert!(reason.contains(part), "{text:?}: {reason}");
            assert!(at.abs_diff(line) <= 1, "{text:?}: line {at}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[-a-z0-9:{}\\[\\]&*!|>'\"%@`#,? \n\t]{0,120}") { let _ = entries(&text); }

        #[test]
        fn no_unicode_panics(text in ".{0,80}") { let _ = entries(&text); }
    }
}
