//! `./dev test`: everything that runs. First what needs nothing but the code, then, as root, the integration tests
//! of the crates (`crates/*/tests`, `tests/tests`), which make namespaces, load programs and start agents.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::old_kernel::Machine;
use crate::residue::Snapshot;
use crate::run::{as_root, cargo, is_ci, is_root, line, output, run, say};
use crate::{object, old_kernel, tree};

/// In CI a test that hangs must not hang the machine. All tests take most of an hour where there are two processors.
const CI_LIMIT: &str = "90m";
/// Wire tests measure time and share one kernel: more of them at once only disturb each other.
const MAX_THREADS: usize = 4;

/// Tests that ran, over all binaries.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    binaries: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

/// Runs all tests, or what `args` (`-p NAME`, a filter) select.
pub fn run_all(args: &[String]) -> Result<()> {
    let root = tree::root()?;
    let target_dir = tree::target_dir(&root);
    let before = Snapshot::take(&target_dir);
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut sound = true;
    for mut pass in passes(&root, args)? {
        sound &= counted(&mut pass, &mut totals)?;
    }
    if args.is_empty() {
        let beside = old_kernel::start(&root);
        for mut pass in kernel_passes(&root)? {
            sound &= counted(&mut pass, &mut totals)?;
        }
        sound &= on_the_old_kernel(beside, &mut totals);
    }
    println!(
        "total: {} passed, {} failed, {} ignored in {} binaries, {} s",
        totals.passed,
        totals.failed,
        totals.ignored,
        totals.binaries,
        started.elapsed().as_secs()
    );
    before.check(&target_dir)?;
    if !sound || totals.failed > 0 {
        bail!("tests failed");
    }
    Ok(())
}

/// One load of the kernel object on an older kernel, counted as a test, and the wire tests that run there.
fn on_the_old_kernel(beside: Result<Machine>, totals: &mut Totals) -> bool {
    totals.binaries += 1;
    match beside.and_then(Machine::finish) {
        Ok(results) => {
            totals.passed += 1;
            results.iter().for_each(|line| totals.add(line));
        }
        Err(error) => {
            eprintln!("dev: {error:#}");
            totals.failed += 1;
            return false;
        }
    }
    true
}

/// What needs nothing but the code, or all that `args` select.
fn passes(root: &Path, args: &[String]) -> Result<Vec<Command>> {
    if !args.is_empty() {
        let one_crate = args.iter().any(|arg| arg.starts_with("-p") || arg.starts_with("--package"));
        let mut all = privileged(root)?;
        all.args(if one_crate { None } else { Some("--workspace") }).args(args);
        return Ok(vec![all]);
    }
    // Binaries that the integration tests start, where DEV_BIN_DIR says.
    run(cargo("build").current_dir(root).args(["--quiet", "--workspace", "--bins"]))?;
    let mut code = test(root);
    code.args(["--workspace", "--lib", "--bins"]);
    let mut examples = test(root);
    examples.args(["--workspace", "--doc"]);
    Ok(vec![code, examples])
}

/// The integration tests.
fn kernel_passes(root: &Path) -> Result<Vec<Command>> {
    if !has_integration_tests(root)? {
        return Ok(Vec::new());
    }
    let mut kernel = privileged(root)?;
    kernel.args(["--workspace", "--test", "*"]);
    Ok([kernel].into_iter().chain(with_other_object(root)?).collect())
}

/// The integration tests once more with a kernel object built by the tools of this machine, where those are not the
/// ones of the committed object: in a copy of the sources, so that the checkout stays as it is.
fn with_other_object(root: &Path) -> Result<Option<Command>> {
    let Some(object) = object::other_build(root)? else { return Ok(None) };
    say("the tools here are not those of the committed kernel object: testing a build of theirs as well");
    let target_dir = tree::target_dir(root);
    let copy = target_dir.join("other-object");
    if copy.exists() {
        std::fs::remove_dir_all(&copy)?;
    }
    tree::copy(root, &copy)?;
    std::fs::copy(&object, copy.join(object::OBJECT)).context(object::OBJECT)?;
    let mut kernel = privileged(root)?;
    kernel.current_dir(&copy).env("CARGO_TARGET_DIR", &target_dir).args(["--workspace", "--test", "*"]);
    Ok(Some(kernel))
}

fn test(root: &Path) -> Command {
    let inner = cargo("test");
    let mut command = if is_ci() { limited(&inner) } else { inner };
    command.current_dir(root).arg("--no-fail-fast").env("DEV_BIN_DIR", tree::target_dir(root).join("debug"));
    command
}

fn limited(inner: &Command) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10s", CI_LIMIT]).arg(inner.get_program()).args(inner.get_args());
    command
}

/// Tests that run as root, built by whoever called us.
fn privileged(root: &Path) -> Result<Command> {
    let mut command = test(root);
    if !is_root() {
        command.env(format!("CARGO_TARGET_{}_RUNNER", host()?), line(&as_root("env")));
    }
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        command.env("RUST_TEST_THREADS", threads.to_string());
    }
    Ok(command)
}

/// The host's target triple as cargo spells it in variables.
fn host() -> Result<String> {
    let text = output(Command::new("rustc").arg("-vV"))?;
    let host =
        text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    Ok(host.to_uppercase().replace('-', "_"))
}

fn has_integration_tests(root: &Path) -> Result<bool> {
    let is_one = |file: &Path| file.extension().is_some_and(|kind| kind == "rs") && in_tests(file);
    Ok(tree::files(root)?.iter().any(|file| is_one(file)))
}

/// `crates/NAME/tests/FILE` or `tests/tests/FILE`.
fn in_tests(file: &Path) -> bool {
    file.parent().is_some_and(|dir| dir.ends_with("tests") && dir.components().count() > 1)
        && !file.components().any(|part| part.as_os_str() == "src")
}

/// Runs one `cargo test`, shows what it prints and adds up its results. False when it failed.
fn counted(command: &mut Command, totals: &mut Totals) -> Result<bool> {
    say(line(command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| line(command))?;
    let stdout = child.stdout.take().context("a child without stdout")?;
    for text in BufReader::new(stdout).lines() {
        let text = text?;
        totals.add(&text);
        println!("{text}");
    }
    Ok(child.wait()?.success())
}

impl Totals {
    /// Counts a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        let counts = result.split_once(". ").map_or("", |(_, counts)| counts);
        self.binaries += 1;
        for count in counts.split(';') {
            let mut words = count.split_whitespace();
            let number = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
            match words.next() {
                Some("passed") => self.passed += number,
                Some("failed") => self.failed += number,
                Some("ignored") => self.ignored += number,
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_binaries_add_up() {
        let mut totals = Totals::default();
        totals.add(
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        );
        totals.add(
            "test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 7 filtered out; finished in 1s",
        );
        totals.add("test something ... ok");
        assert_eq!(totals, Totals { binaries: 2, passed: 5, failed: 4, ignored: 1 });
    }
}
