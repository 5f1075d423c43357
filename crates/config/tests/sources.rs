//! Flags, environment, directory and file: who has the last word, and what is refused.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{ffi::OsString, fs, os::unix::fs::symlink, path::Path};
use villus_config::{Config, Error, Origin, Report, Severity, Sources, args, config::AttachMode};

fn write(dir: &Path, name: &str, text: &str) {
    fs::write(dir.join(name), text).unwrap();
}

fn env<const N: usize>(pairs: [(&str, &str); N]) -> Vec<(OsString, OsString)> {
    pairs.iter().map(|(n, t)| (n.into(), t.into())).collect()
}

fn only_error(report: &Report) -> String {
    let errors: Vec<_> = report.errors().map(ToString::to_string).collect();
    assert_eq!(errors.len(), 1, "{report}");
    errors[0].clone()
}

#[test]
fn each_rank_overrides_those_below() {
    let dir = tempfile::tempdir().unwrap();
    let options = dir.path().join("options");
    fs::create_dir(&options).unwrap();
    write(dir.path(), "villus.yaml", "mtu: 1301\nipv4-range: 10.1.0.0/16\n");
    let base = || Sources::new().file(dir.path().join("villus.yaml")).dir(&options);
    let mtu = |sources: Sources| {
        let config = Config::load(sources).unwrap();
        (config.node.mtu.unwrap(), config.setting("mtu").unwrap().origin.clone())
    };
    assert_eq!(mtu(base()), (1301, Origin::File { path: dir.path().join("villus.yaml"), line: 1 }));
    write(&options, "mtu", " 1302\n");
    assert_eq!(mtu(base()).0, 1302);
    let base = || base().env(env([("CILIUM_MTU", "1303")]));
    assert_eq!(mtu(base()).0, 1303);
    let base = || base().env(env([("VILLUS_MTU", "1304"), ("VILLUS_DEBUG", ""), ("MTU", "9")]));
    assert_eq!(mtu(base()), (1304, Origin::Env { variable: "VILLUS_MTU".into() }));
    let base = || base().flag("mtu", "1305");
    assert_eq!(mtu(base()), (1305, Origin::Flag { name: "mtu".into() }));
    let config = Config::load(base()).unwrap();
    assert_eq!(config.ipv4.range.unwrap().to_string(), "10.1.0.0/16");
    assert_eq!(config.setting("debug").unwrap().origin, Origin::Default);
}

#[test]
fn directory_and_file_can_be_named_by_flag_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let options = dir.path().join("options");
    fs::create_dir(&options).unwrap();
    write(&options, "mtu", "1400");
    write(dir.path(), "v.yaml", "endpoint-max: 100\n");
    let yaml = dir.path().join("v.yaml");
    let config = Config::load(
        Sources::new()
            .env(env([("VILLUS_CONFIG_DIR", options.to_str().unwrap())]))
            .flag("config", yaml.to_str().unwrap()),
    )
    .unwrap();
    assert_eq!((config.node.mtu, config.datapath.endpoint_max), (Some(1400), 100));
    write(&options, "config", "/etc/other.yaml");
    assert!(only_error(&Config::check_dir(&options)).contains("by a flag or in the environment only"));
}

#[test]
fn an_older_name_yields_to_the_current_one_of_the_same_source_only() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "masquerade", "false");
    write(dir.path(), "enable-ipv4-masquerade", "true");
    write(dir.path(), "enable-tcx", "false");
    let config = Config::load(Sources::new().dir(dir.path())).unwrap();
    assert!(config.ipv4.masquerade);
    assert_eq!(config.datapath.attach_mode, AttachMode::Tc);
    let warning = config.warnings.iter().find(|f| f.severity == Severity::Warning).unwrap();
    assert_eq!(warning.option, "masquerade");
    assert!(warning.reason.starts_with("overridden by enable-ipv4-masquerade"), "{warning}");
    let flags =
        Sources::new().dir(dir.path()).flag("native-routing-cidr", "10.0.0.0/8").flag("masquerade", "0");
    let config = Config::load(flags).unwrap();
    assert!(!config.ipv4.masquerade);
    assert_eq!(config.setting("enable-ipv4-masquerade").unwrap().spelled.as_deref(), Some("masquerade"));
    assert_eq!(config.ipv4.native_routing.unwrap().to_string(), "10.0.0.0/8");
}

#[test]
fn a_mounted_config_map_is_read_through_its_links() {
    let dir = tempfile::tempdir().unwrap();
    let dated = dir.path().join("..2024_05_01_10_00_00.123");
    fs::create_dir(&dated).unwrap();
    write(&dated, "mtu", "1450\n");
    write(&dated, "devices", "");
    symlink("..2024_05_01_10_00_00.123", dir.path().join("..data")).unwrap();
    symlink("..data/mtu", dir.path().join("mtu")).unwrap();
    symlink("..data/devices", dir.path().join("devices")).unwrap();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    write(dir.path(), ".mtu.swp", "junk");
    write(dir.path(), "mtu~", "1500");
    let report = Config::check_dir(dir.path());
    assert!(report.is_ok(), "{report}");
    assert_eq!(report.settings.len(), 2);
    assert_eq!(report.findings.len(), 1);
    assert!(report.findings[0].reason.contains("an editor left behind"));
    symlink("..data/debug", dir.path().join("debug")).unwrap();
    assert!(only_error(&Config::check_dir(dir.path())).contains("cannot be read"));
}

#[test]
fn everything_wrong_is_said_at_once_with_place_and_fix() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "enable-ipv44", "true");
    write(dir.path(), "mtu", "70000");
    write(dir.path(), "enable-ipv4", "");
    write(dir.path(), "tunnel", "geneve");
    write(dir.path(), "kube-proxy-replacement", "strict");
    write(dir.path(), "enable-source-ip-verification", "false");
    write(dir.path(), "bpf-lb-maglev-table-size", "many");
    fs::write(dir.path().join("cluster-name"), [0xff, 0xfe]).unwrap();
    let report = Config::check_dir(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let say = |name: &str| {
        let finding =
            report.errors().find(|f| f.option == name).unwrap_or_else(|| panic!("{name}: {report}"));
        assert_eq!(finding.origin.to_string(), at(name));
        format!("{} | {}", finding.reason, finding.fix)
    };
    let remove = |name: &str| format!("remove the file {}", at(name));
    assert_eq!(
        say("enable-ipv44"),
        format!(
            "no option of this name is known | did you mean enable-ipv4? Otherwise {}",
            remove("enable-ipv44")
        )
    );
    assert!(say("mtu").starts_with("too great; write a number from 1280 to 65535"));
    assert!(say("enable-ipv4").starts_with("the value is empty; write true or false"));
    assert_eq!(
        say("tunnel"),
        format!("not supported yet: Geneve between nodes | {}, or set it to disabled", remove("tunnel"))
    );
    assert!(say("kube-proxy-replacement").ends_with("or set it to false"));
    assert!(say("enable-source-ip-verification").starts_with("not supported: identity rests on it"));
    assert!(say("bpf-lb-maglev-table-size").starts_with("not a whole number"));
    assert!(say("cluster-name").starts_with("not UTF-8 text"));
    assert_eq!(report.errors().count(), 8);
    let Err(Error::Rejected(rejected)) = Config::load(Sources::new().dir(dir.path())) else { panic!() };
    assert_eq!(rejected.findings, report.findings);
    let table = report.table();
    assert!(table.starts_with("LEVEL"), "{table}");
    assert!(table.trim_end().ends_with("an agent refuses to start with it"), "{table}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["findings"][0]["origin"]["kind"], "dir");
}

#[test]
fn yaml_errors_name_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("v.yaml");
    write(dir.path(), "v.yaml", "debug: true\nmonitor-aggregation-interval: 5\n");
    let error = only_error(&Config::check_file(&path));
    let place = format!("{}:2: monitor-aggregation-interval=5:", path.display());
    assert!(error.starts_with(&place), "{error}");
    assert!(error.contains("5s, 5m or 5h"), "{error}");
    write(dir.path(), "v.yaml", "debug: [true\n");
    assert!(only_error(&Config::check_file(&path)).contains("not YAML"));
    assert!(only_error(&Config::check_file(&dir.path().join("none"))).contains("cannot be read"));
    assert!(only_error(&Config::check_dir(&dir.path().join("none"))).contains("cannot be read"));
}

#[test]
fn variables_that_are_no_options() {
    let links = env([
        ("VILLUS_AGENT_SERVICE_HOST", "10.0.0.1"),
        ("VILLUS_AGENT_PORT", "tcp://10.0.0.1:80"),
        ("VILLUS_AGENT_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("VILLUS_SOCK", "/x"),
        ("VILLUS_CLUSTER_SIZE", "5000"),
        ("CILIUM_SOCK", "/x"),
        ("K8S_NODE_NAME", "node-7"),
    ]);
    let config = Config::load(Sources::new().env(links)).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.node.name.as_deref(), Some("node-7"));
    let error = only_error(&Config::check(Sources::new().env(env([("VILLUS_ENABLE_IPV5", "1")]))));
    assert!(error.contains("did you mean VILLUS_ENABLE_IPV4"), "{error}");
    let report = Config::check(Sources::new().env(env([("CILIUM_FOREIGN", "1")])));
    assert!(report.is_ok());
    assert_eq!(report.findings[0].severity, Severity::Warning);
}

#[test]
fn values_that_do_not_fit_together() {
    let check =
        |flags: &[(&str, &str)]| Config::check(flags.iter().fold(Sources::new(), |s, (n, t)| s.flag(n, t)));
    for (flags, part) in [
        (&[("enable-ipv4", "false"), ("enable-ipv6", "false")][..], "no addresses"),
        (&[("cluster-id", "300"), ("cluster-name", "c")], "above max-connected-clusters"),
        (&[("fixed-identity-mapping", "128=kv-store,300=x")], "300 is no number from 128 to 255"),
        (&[("log-opt", "syslog.tga=x"), ("log-driver", "syslog")], "did you mean syslog.tag"),
        (&[("log-opt", "level=loud")], "'loud' is no level"),
        (&[("node-name", "a/b")], "no slash"),
        (&[("state-dir", &format!("/{}", "x".repeat(120)))], "107 bytes"),
    ] {
        assert!(only_error(&check(flags)).contains(part), "{part}");
    }
    assert!(
        check(&[("cluster-id", "300"), ("cluster-name", "c"), ("max-connected-clusters", "511")]).is_ok()
    );
    let warned = check(&[("keep-config", "true"), ("restore", "false"), ("cluster-id", "4")]);
    assert!(warned.is_ok());
    assert_eq!(warned.findings.len(), 2);
}

#[test]
fn the_socket_follows_the_state_directory() {
    let socket = |s: Sources| Config::load(s).unwrap().api.socket;
    assert_eq!(socket(Sources::new()), Path::new("/var/run/villus/villus.sock"));
    assert_eq!(socket(Sources::new().flag("state-dir", "/run/v")), Path::new("/run/v/villus.sock"));
    let both = Sources::new().flag("state-dir", "/run/v").flag("socket-path", "/run/a.sock");
    assert_eq!(socket(both), Path::new("/run/a.sock"));
}

#[test]
fn a_command_line_is_a_source() {
    let line =
        ["agent", "--enable-ipv6=false", "-D", "--devices=eth0", "--devices=bond+", "--labels", "k8s:app"];
    let matches = clap::Command::new("agent").args(args::all()).try_get_matches_from(line).unwrap();
    let config = Config::load(Sources::new().matches(&matches)).unwrap();
    assert!(config.log.debug && !config.ipv6.enabled);
    assert!(config.node.devices.matches("bond0"));
    assert_eq!(config.table(false).lines().count(), 5);
    assert!(config.table(true).lines().count() > 50);
}

#[test]
fn levels_of_cilium_are_mapped_with_a_note() {
    use villus_config::config::Aggregation;
    for (word, level, notes) in [
        ("None", Aggregation::None, 0),
        ("medium", Aggregation::Medium, 0),
        ("low", Aggregation::None, 1),
        ("maximum", Aggregation::Medium, 1),
    ] {
        let config = Config::load(Sources::new().flag("monitor-aggregation", word)).unwrap();
        assert_eq!((config.monitor.aggregation, config.warnings.len()), (level, notes), "{word}");
    }
    let config = Config::load(Sources::new().flag("monitor-aggregation-flags", "all")).unwrap();
    assert_eq!(config.monitor.flags.0, 0x1ff);
    assert_eq!(Config::default().monitor.flags.0, 0x07);
}
