//! The command line: help, completion, checks of files, and what happens with wrong input.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::io::Read;
use std::process::Stdio;

use common::{command, said, villus, villus_with_input};

/// Names of a command's subcommands, from its help.
fn subcommands(path: &[&str]) -> Vec<String> {
    let help = villus(&[path, &["--help"]].concat()).ok();
    assert!(help.contains("Usage: villus"), "{path:?}: {help}");
    let listed =
        |line: &str| line.strip_prefix("  ").and_then(|line| line.split("  ").next()).map(str::to_owned);
    let commands = match path {
        [] => help.split("Options:").next().unwrap(),
        _ => match help.split_once("Commands:\n") {
            Some((_, rest)) => rest.split("\n\n").next().unwrap(),
            None => {
                assert!(help.contains("Example"), "{path:?} has no example:\n{help}");
                return Vec::new();
            }
        },
    };
    commands
        .lines()
        .filter_map(listed)
        .filter(|name| !name.is_empty() && !name.contains(' ') && *name != "help")
        .collect()
}

#[test]
fn every_command_explains_itself() {
    let mut seen = Vec::new();
    let mut paths: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(path) = paths.pop() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        for name in subcommands(&words) {
            paths.push([path.clone(), vec![name]].concat());
        }
        seen.push(words.join(" "));
    }
    for wanted in [
        "agent",
        "status",
        "config check",
        "config get",
        "endpoint add",
        "endpoint list",
        "endpoint get",
        "endpoint labels",
        "endpoint delete",
        "endpoint config",
        "identity list",
        "identity get",
        "ip list",
        "policy import",
        "policy delete",
        "policy apply",
        "policy history",
        "policy rollback",
        "policy status",
        "policy restore",
        "policy get",
        "policy validate",
        "policy selectors",
        "policy wait",
        "policy verify",
        "policy hold",
        "policy release",
        "bpf policy get",
        "bpf policy add",
        "bpf policy delete",
        "bpf ipcache list",
        "bpf ipcache get",
        "bpf endpoint list",
        "bpf ct list",
        "bpf ct flush",
        "bpf metrics list",
        "map list",
        "map get",
        "monitor",
        "why",
        "operator status",
        "external add",
        "external import",
        "external delete",
        "external list",
        "external get",
        "kvstore get",
        "kvstore set",
        "kvstore delete",
        "kvstore journal",
        "kvstore undo",
        "certs init",
        "certs agent",
        "certs server",
        "certs user",
        "certs list",
        "certs renew",
        "certs etcd",
        "certs kubernetes",
        "plan identities",
        "plan kvstore",
        "plan restart",
        "bird-config",
        "bgp status",
        "gate status",
        "gate grant",
        "gate bypass",
        "emergency allow",
        "emergency list",
        "emergency undo",
        "cleanup",
        "version",
        "completion",
        "man",
    ] {
        assert!(seen.iter().any(|path| path == wanted), "{wanted} is missing: {seen:?}");
    }
}

#[test]
fn the_help_is_grouped_and_names_exit_codes() {
    let help = villus(&["--help"]).ok();
    for heading in ["Run:", "Workloads and policies:", "See:", "By hand:", "Shell:", "Exit codes:"] {
        assert!(help.contains(&format!("\n{heading}\n")), "{heading}: {help}");
    }
    assert!(villus(&[]).fails(2).contains("Usage: villus"));
}

#[test]
fn the_agent_has_its_options_under_headings() {
    let help = villus(&["agent", "--help"]).ok();
    for text in ["--config-dir", "--enable-ipv4", "Connection tracking:", "--static-cnp-path"] {
        assert!(help.contains(text), "{text}");
    }
    assert!(!help.contains("--host <"), "{help}");
}

#[test]
fn the_agents_socket_is_an_option_of_commands_that_ask_the_agent() {
    let has = |path: &[&str]| villus(&[path, &["--help"]].concat()).ok().contains("--host <PATH>");
    for path in [&["status"][..], &["policy", "import"], &["bpf", "policy", "get"], &["emergency", "allow"]] {
        // What `emergency allow` itself takes under that name is the node or a path.
        assert!(has(path) || path[0] == "emergency", "{path:?}");
    }
    for path in [
        &["certs", "etcd"][..],
        &["completion"],
        &["config", "check"],
        &["operator", "status"],
        &["plan", "identities"],
        &["policy", "validate"],
        &["bpf", "ipcache", "list"],
        &["gate", "grant"],
        &["emergency", "list"],
    ] {
        assert!(!has(path), "{path:?}");
    }
    // Scripts that name it all the same go on.
    for args in [&["completion", "bash", "-H", "/x"][..], &["-H", "/x", "plan", "restart", "--nodes", "10"]] {
        villus(args).ok();
    }
}

#[test]
fn shells_are_served() {
    for (shell, needle) in
        [("bash", "complete -F _villus"), ("zsh", "#compdef villus"), ("fish", "complete -c villus")]
    {
        let script = villus(&["completion", shell]).ok();
        assert!(script.contains(needle), "{shell}");
        assert!(script.contains("emergency"), "{shell}");
        if shell == "fish" {
            let names = "-n \"__fish_villus_using_subcommand completion\" -f -a \"bash zsh fish\"";
            assert!(script.lines().any(|line| line == format!("complete -c villus {names}")), "{script}");
        }
    }
    assert!(villus(&["completion", "tcsh"]).fails(2).contains("possible values: bash, zsh, fish"));
}

#[test]
fn manual_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("man1");
    villus(&["man", path.to_str().unwrap()]).ok();
    for page in ["villus.1", "villus-agent.1", "villus-emergency-allow.1"] {
        let text = std::fs::read_to_string(path.join(page)).unwrap();
        assert!(text.contains(".TH villus"), "{page}");
    }
    let error = villus(&["man", "/proc/none"]).fails(1);
    assert!(error.contains("cannot write manual pages to /proc/none"), "{error}");
}

#[test]
fn the_published_directory_starts_an_agent() {
    let compose = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/tests/testdata/compose");
    let text = villus(&["config", "check", compose]).ok();
    assert!(text.trim_end().ends_with("0 errors") || text.contains(", 0 errors, "), "{text}");
    assert!(text.contains("an agent starts with it"), "{text}");
    let json = villus(&["config", "check", compose, "-o", "jsonpath={.findings[*].severity}"]).ok();
    assert!(!json.contains("error"), "{json}");
}

#[test]
fn a_wrong_directory_is_refused_option_by_option() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("enable-ipv4"), "perhaps").unwrap();
    std::fs::write(dir.path().join("no-such-option"), "1").unwrap();
    let path = dir.path().to_str().unwrap();
    let said = villus(&["config", "check", path]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.out.contains("perhaps") && said.out.contains("no-such-option"), "{}", said.out);
    assert!(said.out.contains("2 errors"), "{}", said.out);
    let error = villus(&["agent", "--config-dir", path]).fails(1);
    assert!(error.contains("2 settings are wrong") && error.contains("nothing was changed"), "{error}");
    assert!(villus(&["config", "check", "/no/such/dir"]).fails(1).contains("no such directory"));
}

#[test]
fn policies_are_checked_without_an_agent() {
    let good = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: web}\nspec:\n  \
                endpointSelector: {matchLabels: {app: web}}\n  ingress: [{fromEntities: [world]}]\n";
    let text = villus_with_input(&["policy", "validate", "-"], good).ok();
    assert_eq!(text, "standard input: valid: CiliumNetworkPolicy default/web\n");
    let bad = good.replace("ingress:", "ingres:");
    let said = villus_with_input(&["policy", "validate", "-"], &bad);
    assert_eq!(said.code, 1);
    assert!(said.out.contains("standard input: not valid") && said.out.contains("ingres"), "{}", said.out);
    let error = villus_with_input(&["policy", "import", "-"], &bad).fails(1);
    assert!(error.contains("nothing was changed"), "{error}");
    for text in ["{", "kind: [", "\u{0}", "a: &x *x"] {
        villus_with_input(&["policy", "validate", "-"], text).fails(1);
    }
    let dir = tempfile::tempdir().unwrap();
    let error = villus(&["policy", "import", dir.path().to_str().unwrap()]).fails(1);
    assert!(error.contains("holds no *.yaml"), "{error}");
    std::fs::write(dir.path().join("a.yaml"), [0xff, 0xfe]).unwrap();
    let error = villus(&["policy", "validate", dir.path().to_str().unwrap()]).fails(1);
    assert!(error.contains("a.yaml is not UTF-8"), "{error}");
}

#[test]
fn without_an_agent_that_is_said_and_what_works_is_named() {
    let commands: [&[&str]; 13] = [
        &["status"],
        &["status", "--wait=200ms"],
        &["config"],
        &["endpoint", "list"],
        &["endpoint", "add", "--netns", "x"],
        &["identity", "list"],
        &["ip", "list"],
        &["policy", "get"],
        &["policy", "verify"],
        &["policy", "wait"],
        &["monitor"],
        &["why", "a", "b", "80"],
        &["endpoint", "delete", "5"],
    ];
    for args in commands {
        // Whatever the machine has of maps.
        let error =
            said(&command(args).env("VILLUS_BPF_ROOT", "/nonexistent/bpf").output().unwrap()).fails(1);
        let lines: Vec<&str> = error.lines().collect();
        assert_eq!(lines.len(), 2, "{args:?}: {error}");
        assert_eq!(
            lines[0],
            "villus: the agent does not answer on /nonexistent/villus.sock: there is no such socket"
        );
        assert!(lines[1].contains("villus emergency"), "{error}");
    }
    let text = villus(&["version"]).ok();
    assert!(text.contains("Agent:  does not answer"), "{text}");
}

#[test]
fn wrong_arguments_are_usage_errors() {
    let cases: [(&[&str], &str); 14] = [
        (&["nonsense"], "unrecognized subcommand"),
        (&["endpoint", "get", "70000"], "0 to 65535"),
        (&["endpoint", "add"], "--netns"),
        (&["endpoint", "list", "-o", "xml"], "json, yaml"),
        (&["bpf", "policy", "add", "5", "sideways", "any"], "ingress, egress"),
        (&["bpf", "policy", "add", "5", "ingress", "any", "70000/tcp"], "PORT[-LAST]"),
        (&["bpf", "policy", "add", "5", "ingress", "nobody"], "nobody"),
        (&["bpf", "ipcache", "get", "10.0.0.300"], "10.0.0.300"),
        (&["why", "a", "b"], "PORT"),
        (&["why", "a", "b", "70000"], "70000"),
        (&["monitor", "--type", "l7"], "l7"),
        (&["monitor", "--port", "x"], "port"),
        (&["emergency", "allow"], "--endpoint"),
        (&["emergency", "allow", "--all", "--for", "15"], "15"),
    ];
    for (args, needle) in cases {
        let error = villus(args).fails(2);
        assert!(error.contains(needle), "{args:?}: {error}");
    }
}

#[test]
fn events_on_standard_input_must_be_events() {
    for (input, needle) in [("", "no event"), ("{}", "is no event"), ("garbage\n", "is no event")] {
        let error = villus_with_input(&["why", "--event"], input).fails(1);
        assert!(error.contains(needle) && error.contains("monitor -j"), "{error}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_quietly() {
    let mut child =
        command(&["completion", "zsh"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut error = String::new();
    child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(error, "");
}
