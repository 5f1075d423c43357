//! `./dev fuzz`: every property test with many more cases, for a bounded time.
//!
//! A target is a crate with property tests; it takes part as soon as it depends on proptest, provided that its tests
//! take their number of cases from proptest's default configuration, which `PROPTEST_CASES` raises; `./dev lint` sees
//! to that. Integration tests that can do more are in [`NAMED`]. A failing case is written to `proptest-regressions` beside its test, to be committed with the mending.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use serde_json::Value;

use crate::run::{as_root, cargo, line, output, run, say};
use crate::tree;

/// Cases of one round of each test; rounds repeat with new random seeds until the time is up.
const CASES: u32 = 20_000;
const DEFAULT_SECONDS: u64 = 60;

/// A target that is not "all properties of a crate": one integration test, run as root.
struct Named {
    name: &'static str,
    package: &'static str,
    /// The test's file in `tests`, without its ending.
    test: &'static str,
    /// The variable that says how much it does, and how much a round is: some seconds' worth. A round is not interrupted.
    amount: (&'static str, &'static str),
}

/// Add a line here, and `./dev fuzz --list` shows it.
const NAMED: [Named; 1] = [Named {
    name: "path-agrees",
    package: "villus-datapath",
    test: "path_agrees",
    amount: ("VILLUS_TEST_PAIRS", "250000"),
}];

struct Target {
    name: String,
    package: String,
    named: Option<&'static Named>,
}

/// Runs the named targets, or all, each for `--seconds`.
pub fn run_targets(args: &[String]) -> Result<()> {
    let all = targets()?;
    let mut seconds = DEFAULT_SECONDS;
    let mut wanted = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--list" => {
                all.iter().for_each(|target| println!("{}", target.name));
                return Ok(());
            }
            "--seconds" => {
                let value = args.next().context("--seconds: how many?")?;
                seconds = value.parse().with_context(|| format!("--seconds {value}"))?;
            }
            name => wanted.push(find(&all, name)?),
        }
    }
    if wanted.is_empty() {
        wanted = all.iter().collect();
    }
    for target in wanted {
        fuzz(target, Duration::from_secs(seconds))?;
    }
    Ok(())
}

fn find<'a>(all: &'a [Target], name: &str) -> Result<&'a Target> {
    let found = all.iter().find(|target| target.name == name);
    found.with_context(|| format!("no target {name}: ./dev fuzz --list names them"))
}

fn targets() -> Result<Vec<Target>> {
    let root = tree::root()?;
    let named = NAMED.iter().map(|known| Target {
        name: known.name.to_owned(),
        package: known.package.to_owned(),
        named: Some(known),
    });
    let mut found: Vec<Target> = named.collect();
    for file in tree::files(&root)?.iter().filter(|file| file.ends_with("Cargo.toml")) {
        let manifest = std::fs::read_to_string(root.join(file))?;
        let package = manifest.lines().find_map(|line| line.strip_prefix("name = \"")?.strip_suffix('"'));
        let has_properties =
            manifest.lines().any(|line| line.starts_with("proptest")) && file.starts_with("crates");
        if let (Some(package), true) = (package, has_properties) {
            let name = package.trim_start_matches("villus-").to_owned();
            found.push(Target { name, package: package.to_owned(), named: None });
        }
    }
    Ok(found)
}

/// A test binary and the folder that cargo would run it in.
struct Binary {
    path: PathBuf,
    folder: PathBuf,
}

fn fuzz(target: &Target, time: Duration) -> Result<()> {
    say(format_args!("fuzz {} for {} s", target.name, time.as_secs()));
    let binaries = binaries(target)?;
    let end = Instant::now() + time;
    if let Some(named) = target.named {
        return rounds(named, &binaries, end);
    }
    let mut rounds = 0;
    loop {
        for binary in &binaries {
            if !passes_before(end, target, binary)? {
                say(format_args!("{}: time is up after {rounds} whole rounds of {CASES} cases", target.name));
                return Ok(());
            }
        }
        rounds += 1;
    }
}

/// Whole rounds of an integration test until the time is up. Its cases are random, and it says how to repeat one.
fn rounds(named: &Named, binaries: &[Binary], end: Instant) -> Result<()> {
    let (variable, amount) = named.amount;
    let mut rounds = 0;
    while Instant::now() < end {
        for binary in binaries {
            let mut command = as_root("env");
            command.arg(format!("{variable}={amount}")).arg(&binary.path).arg("--quiet");
            run(command.current_dir(&binary.folder).stdout(Stdio::null()))?;
        }
        rounds += 1;
    }
    say(format_args!("{}: time is up after {rounds} rounds of {amount}", named.name));
    Ok(())
}

/// Runs a binary; false when the time ended before it did.
fn passes_before(end: Instant, target: &Target, binary: &Binary) -> Result<bool> {
    let mut command = Command::new(&binary.path);
    command.arg("--quiet").current_dir(&binary.folder).stdout(Stdio::null());
    let mut child =
        command.env("PROPTEST_CASES", CASES.to_string()).spawn().with_context(|| line(&command))?;
    loop {
        if let Some(status) = child.try_wait()? {
            if !status.success() {
                bail!(
                    "{}: {} failed; its case is kept in a proptest-regressions file",
                    target.name,
                    line(&command)
                );
            }
            return Ok(Instant::now() < end);
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Builds the target's tests and asks cargo where they are.
fn binaries(target: &Target) -> Result<Vec<Binary>> {
    let mut command = cargo("test");
    command.args(["--quiet", "--profile", "fuzz", "--package", &target.package]);
    let messages = output(command.args(["--no-run", "--message-format", "json-render-diagnostics"]))?;
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found: Vec<Binary> = parsed.filter_map(|message| binary(&message, target.named)).collect();
    if found.is_empty() {
        bail!("{} has no tests", target.package);
    }
    Ok(found)
}

fn binary(message: &Value, named: Option<&Named>) -> Option<Binary> {
    let path = PathBuf::from(message.get("executable")?.as_str()?);
    let manifest = PathBuf::from(message.get("manifest_path")?.as_str()?);
    let is_test = message.get("profile")?.get("test")?.as_bool()?;
    let source = message.get("target")?.get("src_path")?.as_str()?;
    let source = Path::new(source);
    let is_meant = match named {
        Some(named) => source.ends_with(Path::new("tests").join(named.test).with_extension("rs")),
        None => may_hold_properties(source),
    };
    (is_test && is_meant)
        .then(|| Binary { path, folder: manifest.parent().map(PathBuf::from).unwrap_or_default() })
}

/// Integration tests without properties are left out: they may work on the machine, and are stopped in the middle.
/// The root of a library says nothing about its modules.
fn may_hold_properties(source: &Path) -> bool {
    let is_integration = source.parent().is_some_and(|dir| dir.ends_with("tests"));
    !is_integration || std::fs::read_to_string(source).is_ok_and(|text| text.contains("proptest!"))
}
