//! An older kernel: Debian's own, in QEMU. It has to take the kernel object, and it has modules that others lack: there
//! the wire tests run that need them. It runs beside the other tests and takes what they leave of the processors.

mod kernel;
mod system;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};

use crate::run::{cargo, line, output, run, say};
use crate::{object, tree};
use kernel::Kernel;
use system::System;

/// What the first process prints when every program and map was taken.
const LOADED: &str = "OBJECT-LOADED";
/// What it prints at its end.
const END: &str = "END-OF-TESTS";
/// Seconds. QEMU emulates the processor, two and a half minutes of computing, which may have to wait for all other tests.
const LIMIT: &str = "6000";
/// The machine's clock counts instructions, a nanosecond each, and goes on at once where it has nothing to do: its tests
/// do not notice how busy this machine is, and waiting costs them no time.
const CLOCK: &str = "shift=0,sleep=off";
/// Modules that the wire tests need.
const MODULES: &str = "veth tun bridge bonding 8021q dummy vxlan sctp sch_ingress cls_bpf nf_tables nft_chain_nat nft_masq nft_nat nft_ct";
/// Folders of modules among which those are, with all that they need.
const FOLDERS: [&str; 18] = [
    "arch/x86/crypto",
    "crypto",
    "drivers/net/bonding",
    "drivers/net/dummy.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/vxlan",
    "lib",
    "net/802",
    "net/8021q",
    "net/bridge",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
    "net/sched",
    "net/sctp",
    "net/tls",
];
/// The wire tests that run there: what needs modules, and what is written into packets with the help of the kernel.
const TESTS: [&str; 2] = ["modules", "wrapped"];
/// Commands that the wire tests run.
const COMMANDS: [&str; 4] = ["ethtool", "ip", "nft", "tc"];

/// A machine that runs.
pub struct Machine(Option<JoinHandle<Result<String>>>);

/// Builds what runs on the old kernel and boots it: it loads the committed object and runs the wire tests. The machine ends
/// with this process, however that ends.
pub fn start(root: &Path) -> Result<Machine> {
    if std::env::consts::ARCH != "x86_64" {
        say("no old kernel for this processor: not tried");
        return Ok(Machine(None));
    }
    let dir = tree::target_dir(root).join("old-kernel");
    std::fs::create_dir_all(&dir)?;
    let kernel = Kernel::fetch(&dir)?;
    let loader = ["--quiet", "--workspace", "--example", "load"];
    run(cargo("build").current_dir(root).args(loader))?;
    let loader = tree::target_dir(root).join("debug/examples/load");
    let mut system = System::new(dir.join("root"))?;
    system.program("load", &loader)?;
    for name in TESTS {
        system.program(name, &wire_tests(root, name)?)?;
    }
    for name in COMMANDS {
        system.program(name, &command(name)?)?;
    }
    system.file("object.o", &root.join(object::OBJECT))?;
    system.modules(&kernel, &FOLDERS)?;
    let tests = TESTS.map(|name| format!("VILLUS_TEST_MODULES=1 {name} --test-threads=1")).join("\n");
    system.script(&format!(
        "modprobe -a {MODULES}\necho \"kernel $(uname -r)\"\nload /object.o && echo {LOADED}\n\
         {tests}\necho {END}"
    ))?;
    let initramfs = system.pack(&dir.join("initramfs"))?;
    say(format_args!("the old kernel {} runs beside the other tests", kernel.version));
    Ok(Machine(Some(std::thread::spawn(move || boot(&kernel.image, &initramfs)))))
}

// === impl Machine ===

impl Machine {
    /// Waits for its end and shows what it said. Returns the results of the tests, as the test harness prints them.
    pub fn finish(self) -> Result<Vec<String>> {
        let Some(running) = self.0 else { return Ok(Vec::new()) };
        let text =
            running.join().map_err(|_| anyhow!("the thread that waits for the old kernel has ended"))??;
        results(&text)
    }
}

/// Shows what the machine said, and takes the tests' results out of it.
fn results(text: &str) -> Result<Vec<String>> {
    let begin = text.find("kernel 6.").unwrap_or_default();
    let told: Vec<&str> = text[begin..].lines().map(str::trim_end).collect();
    let shown = |line: &&&str| {
        line.contains("verified") || line.starts_with("kernel 6.") || line.starts_with("test ")
    };
    told.iter().filter(shown).for_each(say);
    for (sign, trouble) in
        [(LOADED, "the kernel object does not load"), (END, "the wire tests do not come to their end")]
    {
        if !told.contains(&sign) {
            bail!("{trouble} on the old kernel:\n{}", told.join("\n"));
        }
    }
    let results: Vec<String> =
        told.iter().filter(|line| line.starts_with("test result: ")).map(|&line| line.to_owned()).collect();
    let good = results.iter().filter(|line| line.starts_with("test result: ok. ")).count();
    if good != TESTS.len() {
        bail!("wire tests failed on the old kernel:\n{}", told.join("\n"));
    }
    Ok(results)
}

/// Builds wire tests; where they are.
fn wire_tests(root: &Path, name: &str) -> Result<PathBuf> {
    let mut build = cargo("test");
    build.current_dir(root).args(["--quiet", "--workspace", "--test", name]);
    let text = output(build.args(["--no-run", "--message-format", "json"]))?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| Some(message.get("executable")?.as_str()?.to_owned()));
    Ok(program.with_context(|| format!("`{}` made no program", line(&build)))?.into())
}

/// Where a command of this machine is.
fn command(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.exists())
        .with_context(|| format!("{name} is not installed"))
}

/// Runs the machine until it switches itself off; what it said.
fn boot(image: &Path, initramfs: &Path) -> Result<String> {
    // The signal reaches `timeout` when this process is gone, and QEMU from there.
    let mut qemu = Command::new("setpriv");
    qemu.args([
        "--pdeathsig",
        "TERM",
        "nice",
        "-n",
        "19",
        "timeout",
        LIMIT,
        "qemu-system-x86_64",
        "-icount",
        CLOCK,
        "-M",
        "q35",
        "-m",
        "1024",
        "-nographic",
        "-no-reboot",
        "-nic",
        "none",
    ])
    .arg("-kernel")
    .arg(image)
    .arg("-initrd")
    .arg(initramfs)
    .args(["-append", "console=ttyS0 quiet panic=-1"])
    .stdin(Stdio::null())
    .stderr(Stdio::inherit());
    let output = qemu.output().with_context(|| line(&qemu))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
