//! Reads a snapshot as it is written, part by part: its addresses, which are nearly all of it, without a reader of JSON, and
//! never with the whole of its text in memory.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::Arc;

use memchr::memmem;
use villus_identity::{AddressRecord, read_row};

/// So much is read at once.
const CHUNK: usize = 256 << 10;
/// A row has some hundred bytes. One that is longer is not for this reader.
const ROW: usize = 4096;
/// What the addresses begin with; within a string the quotes would be escaped.
const BEGIN: &[u8] = br#""addresses":["#;
/// What comes after the last of them.
const END: &[u8] = b"]}}";

/// Addresses by their keys.
type Addresses = BTreeMap<Arc<str>, AddressRecord>;

/// The JSON of a snapshot without its addresses, and these. `None` for one that is written in another way than this version does
/// it, be it sound or not.
///
/// # Errors
/// It cannot be read.
pub(super) fn read(from: impl Read) -> io::Result<Option<(Vec<u8>, Addresses)>> {
    let mut text = Text { from, buffer: Vec::new(), at: 0, is_whole: false };
    let Some(mut rest) = text.through(BEGIN)? else { return Ok(None) };
    rest.extend_from_slice(END);
    let (mut rows, mut separator) = (Vec::new(), &b""[..]);
    loop {
        let ahead = text.ahead(ROW)?;
        if ahead == END {
            break;
        }
        let Some((key, address, after)) = ahead.strip_prefix(separator).and_then(read_row) else {
            return Ok(None);
        };
        let read = ahead.len() - after.len();
        rows.push((key, address));
        text.at += read;
        separator = b",";
    }
    Ok(Some((rest, rows.into_iter().collect())))
}

/// A text of which a part is in memory.
struct Text<R> {
    from: R,
    buffer: Vec<u8>,
    /// So much of the buffer was used.
    at: usize,
    /// Nothing comes after the buffer.
    is_whole: bool,
}

impl<R: Read> Text<R> {
    fn more(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let read = self.from.by_ref().take(CHUNK as u64).read_to_end(&mut self.buffer)?;
        self.is_whole = read < CHUNK;
        Ok(())
    }

    /// Uses all up to the end of the first place that says `what`; `None` if there is none.
    fn through(&mut self, what: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            if let Some(found) = memmem::find(&self.buffer[searched..], what) {
                let left = self.buffer.split_off(searched + found + what.len());
                return Ok(Some(std::mem::replace(&mut self.buffer, left)));
            }
            if self.is_whole {
                return Ok(None);
            }
            searched = self.buffer.len().saturating_sub(what.len());
            self.more()?;
        }
    }

    /// What was not used yet: so much of it at least, or all that is left.
    fn ahead(&mut self, least: usize) -> io::Result<&[u8]> {
        if self.buffer.len() - self.at < least && !self.is_whole {
            self.more()?;
        }
        Ok(&self.buffer[self.at..])
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn row(n: usize) -> String {
        format!(
            r#"["key/{n}",{{"prefix":"10.0.{}.{}/32","identity":{n},"host":"10.9.0.1","leased":true}}]"#,
            n >> 8,
            n & 255
        )
    }

    fn text(rows: usize) -> String {
        let rows: Vec<String> = (0..rows).map(row).collect();
        format!(
            r#"{{"identities":[[1,"k8s:a=\"addresses\":[;"]],"remote":{{"nodes":[],"addresses":[{}]}}}}"#,
            rows.join(",")
        )
    }

    #[test]
    fn rows_are_read_over_the_ends_of_chunks() {
        for rows in [0, 1, 2, 2 * CHUNK / 90] {
            let (rest, addresses) = read(text(rows).as_bytes()).unwrap().unwrap();
            assert_eq!(rest, text(0).as_bytes());
            assert_eq!(addresses.len(), rows);
            assert!((0..rows).all(|n| addresses[&*format!("key/{n}")].identity.0 as usize == n));
        }
    }

    #[test]
    fn what_is_written_otherwise_is_left_to_others() {
        let good = text(2);
        for bad in [
            good.replace(",[", ", ["),
            good.replace("]}}", "]} }"),
            format!("{good}\n"),
            good.replace(r#""addresses":[["#, r#""later":[["#),
            good.replace("]}}", r#"],"later":1}}"#),
        ] {
            assert!(read(bad.as_bytes()).unwrap().is_none(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_text_that_is_cut_or_spoiled_is_never_half_read(rows in 0..9usize, at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut text = text(rows).into_bytes();
            let at = at.index(text.len());
            prop_assert!(read(&text[..at]).unwrap().is_none());
            text[at] = byte;
            if let Some((rest, addresses)) = read(&*text).unwrap()
                && let Ok(mut said) = serde_json::from_slice::<serde_json::Value>(&rest)
                && said["remote"].is_object()
            {
                let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
                said["remote"]["addresses"] = all["remote"]["addresses"].clone();
                prop_assert_eq!(&said, &all);
                // A digit of another may have made two keys one.
                let keys = all["remote"]["addresses"].as_array().unwrap().iter().map(|row| row[0].as_str().unwrap());
                prop_assert_eq!(addresses.len(), keys.collect::<std::collections::BTreeSet<_>>().len());
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&*bytes);
            let _ = read(&*[&b"{\"addresses\":["[..], &bytes].concat());
        }
    }
}
