//! What holds for the whole table of options.

use proptest::prelude::*;
use std::path::Path;
use villus_config::{Config, OptionSpec, Origin, Sources, Support, docs, registry};

/// `UPDATE_DOCS=1 cargo test -p villus-config` writes the file anew.
#[test]
fn the_reference_is_up_to_date() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/options.md");
    let text = docs::markdown();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == text, "docs/options.md is stale: UPDATE_DOCS=1 cargo test -p villus-config");
}

/// Names of options that agents of Cilium 1.9 to 1.19 have, or that Helm writes beside them.
#[test]
fn every_option_of_cilium_is_known() {
    let names = include_str!("testdata/cilium-option-names.txt");
    let unknown: Vec<&str> = names.split_whitespace().filter(|n| registry::lookup(n).is_none()).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn without_any_source_nothing_is_wrong_and_nothing_is_set() {
    let report = Config::check(Sources::new());
    assert!(report.findings.is_empty(), "{report}");
    assert!(report.settings.is_empty());
    assert!(Config::default().settings().all(|s| s.origin == Origin::Default));
}

#[test]
fn a_directory_of_all_defaults_starts() {
    let dir = tempfile::tempdir().unwrap();
    for spec in registry::options() {
        if matches!(spec.support, Support::Unneeded(_) | Support::Command) {
            continue;
        }
        std::fs::write(dir.path().join(spec.name), spec.default).unwrap();
    }
    let report = Config::check_dir(dir.path());
    assert!(report.findings.is_empty(), "{report}");
}

#[test]
fn values_read_back_from_their_text() {
    for spec in registry::options() {
        if let Ok(value) = spec.kind.parse(spec.default) {
            assert_eq!(spec.kind.parse(&value.to_string()), Ok(value), "{}", spec.name);
        }
    }
}

fn any_option() -> impl Strategy<Value = &'static OptionSpec> {
    (0..registry::options().len()).prop_map(|i| &registry::options()[i])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 300 / 256))]

    #[test]
    fn no_value_of_any_option_panics(spec in any_option(), text in ".{0,40}") {
        let report = Config::check(Sources::new().flag(spec.name, &text));
        for finding in &report.findings {
            prop_assert!(!finding.reason.is_empty() && !finding.fix.is_empty());
        }
    }

    #[test]
    fn likely_values_never_panic_and_read_back(spec in any_option(), text in "[-0-9a-z.:/,=+! {}\"]{0,30}") {
        if let Ok(value) = spec.kind.parse(&text) {
            prop_assert_eq!(spec.kind.parse(&value.to_string()), Ok(value), "{}", spec.name);
        }
    }

    #[test]
    fn no_bytes_in_files_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        name in "[a-z.~_-]{1,20}",
    ) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(format!("x{name}")), &bytes).unwrap();
        std::fs::write(dir.path().join("mtu"), &bytes).unwrap();
        let _ = Config::check_dir(dir.path()).table();
        let _ = Config::check_file(&dir.path().join("mtu")).table();
    }

    #[test]
    fn the_highest_rank_decides(present in 1u8..32) {
        let dir = tempfile::tempdir().unwrap();
        let (options, yaml) = (dir.path().join("d"), dir.path().join("y"));
        std::fs::create_dir(&options).unwrap();
        let has = |bit: u8| present & 1 << bit != 0;
        let text = |bit: u8| format!("{}", 2000 + u32::from(bit));
        if has(1) { std::fs::write(options.join("mtu"), text(1)).unwrap(); }
        std::fs::write(&yaml, if has(0) { format!("mtu: {}\n", text(0)) } else { String::new() }).unwrap();
        let mut sources = Sources::new().dir(&options).file(&yaml);
        if has(2) { sources = sources.env([("CILIUM_MTU".into(), text(2).into())]); }
        if has(3) { sources = sources.env([("VILLUS_MTU".into(), text(3).into())]); }
        if has(4) { sources = sources.flag("mtu", &text(4)); }
        let top = (0..5).rev().find(|bit| has(*bit)).unwrap();
        prop_assert_eq!(Config::load(sources).unwrap().node.mtu, Some(2000 + u32::from(top)));
    }
}
