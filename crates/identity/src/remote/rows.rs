//! Addresses as they lie on the disk, read far quicker than any JSON: an agent that starts without the store has a second for
//! hundreds of thousands.

use std::{net::IpAddr, str::FromStr, sync::Arc};

use ipnet::IpNet;
use villus_labels::NumericIdentity;

use super::AddressRecord;

/// Reads a key and its address at the beginning of a text, `["<key>",{"prefix":"<prefix>",…}]`, and gives back what comes after
/// it. `None` for one that is written in any other way than this version does it for an address without named ports, be it
/// sound or not: that is for a reader of JSON to say.
#[must_use]
pub fn read_row(text: &[u8]) -> Option<(Arc<str>, AddressRecord, &[u8])> {
    let mut row = Row(text);
    row.skip(b"[")?;
    let key = row.string()?;
    row.skip(br#",{"prefix":"#)?;
    let (address, len) = row.string()?.split_once('/')?;
    let prefix = IpNet::new(parsed::<IpAddr>(address)?, Row(len.as_bytes()).whole_number()?).ok()?;
    row.skip(br#","identity":"#)?;
    let identity = NumericIdentity(row.number()?);
    row.skip(br#","host":"#)?;
    let host = match row.skip(b"null") {
        Some(()) => None,
        None => Some(parsed(row.string()?)?),
    };
    let key_index = match row.skip(br#","key":"#) {
        Some(()) => u8::try_from(row.number()?).ok()?,
        None => 0,
    };
    row.skip(br#","leased":"#)?;
    let leased = row.truth()?;
    let ours = match row.skip(br#","ours":"#) {
        Some(()) => row.truth()?,
        None => false,
    };
    row.skip(b"}]")?;
    let ports = Box::default();
    let address = AddressRecord {
        prefix,
        identity,
        host,
        key: key_index,
        ports,
        leased,
        ours,
        revision: 0,
        waits: false,
    };
    Some((key.into(), address, row.0))
}

/// What is left of a text.
struct Row<'a>(&'a [u8]);

impl<'a> Row<'a> {
    fn skip(&mut self, expected: &[u8]) -> Option<()> {
        self.0 = self.0.strip_prefix(expected)?;
        Some(())
    }

    /// A string in which nothing is escaped.
    fn string(&mut self) -> Option<&'a str> {
        self.skip(b"\"")?;
        let end = self.0.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..b' '))?;
        let (string, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.strip_prefix(b"\"")?;
        std::str::from_utf8(string).ok()
    }

    fn number(&mut self) -> Option<u32> {
        let digits = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (number, rest) = self.0.split_at_checked(digits)?;
        // In JSON no number begins with 0 but that itself.
        if digits == 0 || number.starts_with(b"0") && digits > 1 {
            return None;
        }
        self.0 = rest;
        number.iter().try_fold(0u32, |all, digit| all.checked_mul(10)?.checked_add(u32::from(digit - b'0')))
    }

    fn whole_number(mut self) -> Option<u8> {
        let number = self.number()?;
        self.0.is_empty().then(|| u8::try_from(number).ok())?
    }

    fn truth(&mut self) -> Option<bool> {
        match self.skip(b"true") {
            Some(()) => Some(true),
            None => self.skip(b"false").map(|()| false),
        }
    }
}

fn parsed<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Option<(String, AddressRecord)> {
        let (key, address, rest) = read_row(text.as_bytes())?;
        assert!(rest.is_empty());
        Some((key.to_string(), address))
    }

    #[test]
    fn a_row_is_read_up_to_its_end() {
        let row = r#"["k",{"prefix":"10.0.0.1/32","identity":300,"host":null,"leased":true}]"#;
        let (key, address, rest) = read_row(row.as_bytes()).unwrap();
        assert_eq!((&*key, rest), ("k", &b""[..]));
        assert_eq!(address, serde_json::from_str::<(String, AddressRecord)>(row).unwrap().1);
        let more = format!(r#"{row},["l",{{}}]"#);
        assert_eq!(read_row(more.as_bytes()).unwrap().2, br#",["l",{}]"#);
    }

    #[test]
    fn what_is_written_in_another_way_is_left_to_others() {
        for row in [
            r#"["k",{"prefix":"10.0.0.1/33","identity":300,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/032","identity":300,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1","identity":300,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":0300,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":4294967296,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":3e2,"host":null,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":300,"host":"here","leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":300,"host":null,"key":256,"leased":true}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":300,"host":null,"leased":true,"later":1}]"#,
            r#"["k",{"prefix":"10.0.0.1/32","identity":300,"host":null,"leased":1}]"#,
            r#"["k\n",{"prefix":"10.0.0.1/32","identity":300,"host":null,"leased":true}]"#,
            r#"[ "k",{"prefix":"10.0.0.1/32","identity":300,"host":null,"leased":true}]"#,
        ] {
            assert_eq!(read(row), None, "{row}");
        }
    }

    fn addresses() -> impl Strategy<Value = AddressRecord> {
        let prefix = (any::<IpAddr>(), 0..=128u8).prop_map(|(address, len)| {
            let most = if address.is_ipv4() { 32 } else { 128 };
            IpNet::new(address, len.min(most)).unwrap()
        });
        let rest = (any::<Option<IpAddr>>(), any::<u8>(), any::<bool>(), any::<bool>());
        (prefix, any::<u32>(), rest).prop_map(|(prefix, identity, (host, key, leased, ours))| AddressRecord {
            prefix,
            identity: NumericIdentity(identity),
            host,
            key,
            ports: Box::default(),
            leased,
            ours,
            revision: 0,
            waits: false,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_written_is_read_as_it_was(key in "[a-zé0-9/.:]{0,30}", address in addresses()) {
            let row = serde_json::to_string(&(&key, &address)).unwrap();
            prop_assert_eq!(read(&row), Some((key, address)));
        }

        #[test]
        fn what_is_read_of_a_spoiled_row_is_what_a_reader_of_json_says(
            key in ".{0,9}", address in addresses(), at in any::<prop::sample::Index>(), byte in any::<u8>()
        ) {
            let mut row = serde_json::to_vec(&(&key, &address)).unwrap();
            let at = at.index(row.len());
            row[at] = byte;
            if let Some((key, address, rest)) = read_row(&row) {
                let whole = &row[..row.len() - rest.len()];
                let said: (String, AddressRecord) = serde_json::from_slice(whole).unwrap();
                prop_assert_eq!((key.to_string(), address), said);
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_row(&bytes);
        }
    }
}
