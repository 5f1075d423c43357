//! The list of prefixes to which nothing is masqueraded: the file of ip-masq-agent, in JSON or YAML.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

/// How often the file is looked at, unless it says otherwise.
const LOOK: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(3600);
/// More than this no such file has.
const MOST_BYTES: u64 = 1 << 20;
const MOST_PREFIXES: usize = 4096;
/// What is not masqueraded where there is no file: private and reserved prefixes (`datapath` reference 4.4).
const DEFAULTS: [&str; 11] = [
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "240.0.0.0/4",
];
const LINK_LOCAL: [&str; 2] = ["169.254.0.0/16", "fe80::/10"];

/// What a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct List {
    pub prefixes: Vec<IpNet>,
    /// How often the file is to be read again.
    pub every: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "nonMasqueradeCIDRs", default)]
    prefixes: Vec<String>,
    #[serde(rename = "masqLinkLocal", default)]
    link_local: bool,
    #[serde(rename = "masqLinkLocalIPv6", default)]
    link_local_v6: bool,
    #[serde(rename = "resyncInterval")]
    every: Option<String>,
}

/// The text of the file; `None` where there is none.
///
/// # Errors
/// With the reason, and what to do.
pub(crate) fn read(path: &Path) -> Result<Option<String>, String> {
    let fail = |error: std::io::Error| format!("{}: {error}", path.display());
    match std::fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
        Ok(found) if found.len() > MOST_BYTES => {
            return Err(format!("{}: {} bytes; at most {MOST_BYTES} are read", path.display(), found.len()));
        }
        Ok(_) => {}
    }
    std::fs::read_to_string(path).map(Some).map_err(fail)
}

// === impl List ===

impl List {
    /// What counts without a file.
    pub fn without_file() -> Self {
        let prefixes = DEFAULTS.iter().chain(&LINK_LOCAL).filter_map(|text| text.parse().ok()).collect();
        Self { prefixes, every: LOOK }
    }

    /// Reads a file's text. One that says nothing counts as none.
    ///
    /// # Errors
    /// The field that is wrong, and what it should be.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Ok(Self::without_file());
        }
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        if file.prefixes.len() > MOST_PREFIXES {
            return Err(format!(
                "nonMasqueradeCIDRs: {} prefixes; at most {MOST_PREFIXES}",
                file.prefixes.len()
            ));
        }
        let mut prefixes = Vec::new();
        for (at, text) in file.prefixes.iter().enumerate() {
            let net: IpNet = text.trim().parse().map_err(|_| {
                format!("nonMasqueradeCIDRs[{at}]: `{text}` is no prefix; write one such as 10.0.0.0/8 or fd00::/8")
            })?;
            prefixes.push(net.trunc());
        }
        let [v4, v6] = LINK_LOCAL;
        for (masquerade, net) in [(file.link_local, v4), (file.link_local_v6, v6)] {
            prefixes.extend(net.parse::<IpNet>().ok().filter(|_| !masquerade));
        }
        let every = match file.every {
            None => LOOK,
            Some(text) => villus_config::duration::parse(text.trim())
                .map_err(|reason| format!("resyncInterval: `{text}`: {reason}; write one such as 60s"))?
                .clamp(LOOK, LONGEST),
        };
        Ok(Self { prefixes, every })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let yaml =
            "nonMasqueradeCIDRs:\n- 10.1.2.3/8\n- fd00::/8\nmasqLinkLocal: true\nresyncInterval: 60s\n";
        let json =
            r#"{"nonMasqueradeCIDRs":["10.0.0.0/8","fd00::/8"],"masqLinkLocal":true,"resyncInterval":"1m"}"#;
        let list = List::parse(yaml).unwrap();
        assert_eq!(List::parse(json).unwrap(), list);
        let nets = ["10.0.0.0/8", "fd00::/8", "fe80::/10"].map(|net| net.parse().unwrap());
        assert_eq!(list, List { prefixes: nets.to_vec(), every: Duration::from_secs(60) });
    }

    #[test]
    fn without_a_word_private_prefixes_keep_their_sources() {
        for text in ["", " \n"] {
            let list = List::parse(text).unwrap();
            assert_eq!(list, List::without_file());
            assert_eq!(list.prefixes.len(), DEFAULTS.len() + 2);
        }
        assert_eq!(List::parse("masqLinkLocal: true\nmasqLinkLocalIPv6: true").unwrap().prefixes, []);
        assert_eq!(read(Path::new("/nonexistent/ip-masq-agent")), Ok(None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, says) in [
            ("nonMasqueradeCIDRs: [10.0.0.0/8, 10.0.0/8]", "nonMasqueradeCIDRs[1]: `10.0.0/8`"),
            ("nonMasqueradeCIDR: []", "nonMasqueradeCIDR"),
            ("resyncInterval: soon", "resyncInterval: `soon`"),
            ("masqLinkLocal: 7", "bool"),
            ("- 10.0.0.0/8", ""),
        ] {
            let error = List::parse(text).unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "(?s).{0,300}") {
            let _ = List::parse(&text);
        }

        #[test]
        fn nearly_right_text_is_read_or_refused(
            key in "nonMasqueradeCIDRs|masqLinkLocal|resyncInterval|[a-zA-Z]{0,12}",
            value in r#"\[[0-9a-f./:, ]{0,40}\]|true|false|[0-9a-z]{0,6}|"[^"]{0,12}""#,
        ) {
            let _ = List::parse(&format!("{key}: {value}"));
        }
    }
}
