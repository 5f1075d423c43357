//! Tests in a mount and a network namespace of their own.

use std::{
    fs::{File, create_dir_all},
    os::fd::AsRawFd,
    path::Path,
    process::{Command, Output},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::host::run;

/// Says that the test runs inside its own namespaces already, and as which of its variants.
const INSIDE: &str = "VILLUS_TEST_INSIDE";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a test may fill as it likes: empty inside, and gone with the test.
const OWN: [&str; 2] = ["/run", "/tmp"];

/// Runs the rest of the calling test in a mount and a network namespace of its own, with empty `/run` and `/tmp` and
/// the loopback device switched on: the test is started again there, and the outer one returns with its outcome.
/// Nothing that it mounts, pins or makes can stay behind.
#[macro_export]
macro_rules! alone {
    () => {
        if !$crate::inside({
            fn here() {}
            std::any::type_name_of_val(&here)
        }) {
            return;
        }
    };
}

/// As [`alone!`], several times at once, each in namespaces of its own: inside it is the name of one of the given variants. For
/// tests that wait more than they work.
#[macro_export]
macro_rules! alone_as {
    ($variants:expr) => {
        match $crate::inside_as(
            {
                fn here() {}
                std::any::type_name_of_val(&here)
            },
            &$variants,
        ) {
            Some(variant) => variant,
            None => return,
        }
    };
}

/// What [`alone!`] does; true inside. `path` is that of a function in the test.
///
/// # Panics
/// When the test fails inside.
#[must_use]
pub fn inside(path: &str) -> bool {
    inside_as(path, &["alone"]).is_some()
}

/// What [`alone_as!`] does: which of the variants this is, inside.
///
/// # Panics
/// When the test fails inside, as any of them; all have ended then.
#[must_use]
pub fn inside_as(path: &str, variants: &[&str]) -> Option<String> {
    if let Ok(variant) = std::env::var(INSIDE) {
        for folder in OWN {
            empty(Path::new(folder));
        }
        run("ip", &["link", "set", "lo", "up"]);
        // A new namespace has IPv4's parameters from the first one, where machines differ.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
        return Some(variant);
    }
    let test = path.trim_end_matches("::here").split_once("::").expect("a path has a crate").1;
    let running: Vec<JoinHandle<Output>> = variants
        .iter()
        .map(|variant| {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "--net", "--propagation", "private"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", test, "--nocapture", "--test-threads=1"])
                .env(INSIDE, variant);
            std::thread::spawn(move || command.output().unwrap())
        })
        .collect();
    let ended: Vec<Output> = running.into_iter().map(|one| one.join().unwrap()).collect();
    for (variant, output) in variants.iter().zip(ended) {
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{test} in its own namespaces ({variant}):\n{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    None
}

/// Hides what a folder holds, but for the branch from which this program was started: it may have to start itself or
/// its neighbours again.
fn empty(folder: &Path) {
    let program = std::env::current_exe().unwrap();
    let branch = program.strip_prefix(folder).ok().and_then(|rest| Some(folder.join(rest.iter().next()?)));
    let kept = branch.map(|branch| (File::open(&branch).unwrap(), branch));
    run("mount", &["-t", "tmpfs", "villus-test", &folder.display().to_string()]);
    if let Some((file, branch)) = kept {
        create_dir_all(&branch).unwrap();
        rustix::mount::mount_bind(format!("/proc/self/fd/{}", file.as_raw_fd()), &branch).unwrap();
    }
}

/// Waits until something is so.
///
/// # Panics
/// When it is not so for a time that is long even for a busy machine.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
