//! What the kernel thinks of the object: size, stack and time of every program.
//!
//! The object is loaded with bpftool in a mount namespace of its own with its own bpffs, so that nothing stays
//! behind, whatever happens.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::run::{as_root, line, output, run, say};

/// Loads of which the quickest counts.
const LOADS: usize = 3;

/// What one program came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Program {
    /// Instructions after the verifier's rewriting.
    instructions: u64,
    /// Machine code.
    jited_bytes: u64,
    /// Instructions that the verifier walked, over all paths.
    verified: Option<u64>,
    /// Bytes of each function of the deepest call chain, as the verifier prints them.
    stack: Option<String>,
}

/// Prints the table.
pub fn measure(object: &Path) -> Result<()> {
    let load = (0..LOADS).map(|_| load_time(object)).collect::<Result<Vec<_>>>()?;
    let mut programs = shown(object)?;
    add_verifier_log(&mut programs, &verifier_log(object)?);
    let width = programs.keys().map(String::len).max().unwrap_or(0).max("program".len());
    println!(
        "{:width$} {:>12} {:>11} {:>10} {:>9}",
        "program", "instructions", "jited bytes", "stack", "verified"
    );
    for (name, program) in &programs {
        let verified = program.verified.map_or("-".to_owned(), |count| count.to_string());
        let stack = program.stack.as_deref().unwrap_or("-");
        println!(
            "{name:width$} {:>12} {:>11} {stack:>10} {verified:>9}",
            program.instructions, program.jited_bytes
        );
    }
    let quickest = load.into_iter().min().unwrap_or_default();
    say(format_args!("all programs and maps load in {} ms", quickest.as_millis()));
    Ok(())
}

/// A shell line that runs as root with a bpffs of its own under /sys/fs/bpf; `$0` is the object.
fn in_own_bpffs(object: &Path, script: &str) -> Command {
    let mut command = as_root("unshare");
    let script = format!("mount -t bpf bpf /sys/fs/bpf && {script}");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).arg(object);
    command
}

fn load_time(object: &Path) -> Result<Duration> {
    let mut command = in_own_bpffs(object, "bpftool prog loadall \"$0\" /sys/fs/bpf/villus");
    let started = Instant::now();
    run(&mut command)?;
    Ok(started.elapsed())
}

fn shown(object: &Path) -> Result<BTreeMap<String, Program>> {
    let script = "bpftool prog loadall \"$0\" /sys/fs/bpf/villus && cd /sys/fs/bpf/villus && \
                  for program in *; do printf '%s ' \"$program\"; bpftool -j prog show pinned \"$PWD/$program\"; echo; done";
    let text = output(&mut in_own_bpffs(object, script))?;
    text.lines().filter(|line| !line.is_empty()).map(parse_shown).collect()
}

fn parse_shown(line: &str) -> Result<(String, Program)> {
    let (name, json) = line.split_once(' ').with_context(|| format!("bpftool printed {line:?}"))?;
    let json: Value = serde_json::from_str(json).with_context(|| format!("bpftool printed {json:?}"))?;
    let bytes = |key: &str| json.get(key).and_then(Value::as_u64).unwrap_or(0);
    let program = Program {
        instructions: bytes("bytes_xlated") / 8,
        jited_bytes: bytes("bytes_jited"),
        ..Program::default()
    };
    Ok((name.to_owned(), program))
}

/// The verifier's log. A kernel that cannot keep all of it (before 6.4) gives none, which is no error.
fn verifier_log(object: &Path) -> Result<String> {
    let mut command = in_own_bpffs(object, "bpftool -d prog loadall \"$0\" /sys/fs/bpf/villus 2>&1");
    let output = command.output().with_context(|| line(&command))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn add_verifier_log(programs: &mut BTreeMap<String, Program>, log: &str) {
    let mut current = None;
    for line in log.lines() {
        if line.ends_with("-- BEGIN PROG LOAD LOG --") {
            current = line.split('\'').nth(1).map(str::to_owned);
        }
        let Some(program) = current.as_ref().and_then(|name| programs.get_mut(name)) else { continue };
        if let Some(depth) = line.strip_prefix("stack depth ") {
            program.stack = Some(depth.split_whitespace().next().unwrap_or(depth).to_owned());
        } else if let Some(rest) = line.strip_prefix("processed ") {
            program.verified = rest.split(' ').next().and_then(|count| count.parse().ok());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_each_program_goes_to_it() {
        let mut programs: BTreeMap<String, Program> =
            ["one", "two"].map(|name| (name.to_owned(), Program::default())).into();
        let log = "libbpf: prog 'two': -- BEGIN PROG LOAD LOG --\n0: R1=ctx()\nstack depth 208+32\n\
                   processed 418 insns (limit 1000000) max_states_per_insn 1\n-- END PROG LOAD LOG --\n";
        add_verifier_log(&mut programs, log);
        assert_eq!(programs["one"], Program::default());
        assert_eq!(programs["two"].stack.as_deref(), Some("208+32"));
        assert_eq!(programs["two"].verified, Some(418));
    }

    #[test]
    fn a_shown_program_gives_its_sizes() {
        let (name, program) =
            parse_shown(r#"from_endpoint {"id":3,"bytes_xlated":3352,"bytes_jited":1900}"#).unwrap();
        assert_eq!((name.as_str(), program.instructions, program.jited_bytes), ("from_endpoint", 419, 1900));
    }
}
