//! The kernel object on an older kernel: Debian's own, in QEMU, with the loader's example as the only program.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::run::{cargo, output, run, say};
use crate::{object, tree};

/// Debian 12's kernel for virtual machines, 6.1: small, and what it needs is built in.
const KERNEL: &str = "linux-image-cloud-amd64";
/// What the first process prints when every program and map was taken.
const DONE: &str = "OBJECT-LOADED";
/// QEMU emulates the processor; the whole thing takes seconds, minutes on a busy machine.
const LIMIT: &str = "300";

/// Boots the kernel and loads the committed object there. Says what the verifier made of it.
pub fn check(root: &Path) -> Result<()> {
    if std::env::consts::ARCH != "x86_64" {
        say("no old kernel for this processor: not tried");
        return Ok(());
    }
    let dir = tree::target_dir(root).join("old-kernel");
    std::fs::create_dir_all(&dir)?;
    let kernel = fetch(&dir)?;
    run(cargo("build").current_dir(root).args([
        "--quiet",
        "--package",
        "villus-datapath",
        "--example",
        "load",
    ]))?;
    let loader = tree::target_dir(root).join("debug/examples/load");
    let initramfs = initramfs(&dir, &loader, &root.join(object::OBJECT))?;
    let mut qemu = Command::new("timeout");
    qemu.args([
        LIMIT,
        "qemu-system-x86_64",
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
    .arg(&kernel)
    .arg("-initrd")
    .arg(&initramfs)
    .args(["-append", "console=ttyS0 quiet panic=-1"])
    .stdin(Stdio::null());
    let text = output(&mut qemu)?;
    let told: Vec<&str> = text.lines().skip_while(|line| !line.contains("kernel 6.")).collect();
    told.iter().filter(|line| line.contains("verified") || line.contains("kernel 6.")).for_each(say);
    if !told.iter().any(|line| line.contains(DONE)) {
        bail!("the kernel object does not load on the old kernel:\n{}", told.join("\n"));
    }
    Ok(())
}

/// Debian's kernel image, downloaded once and unpacked, never installed.
fn fetch(dir: &Path) -> Result<PathBuf> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .map(|version| format!("linux-image-{version}"))
        .with_context(|| format!("apt knows no {KERNEL}: apt-get update"))?;
    let version = package.trim_start_matches("linux-image-");
    let image = dir.join(format!("boot/vmlinuz-{version}"));
    if image.exists() {
        return Ok(image);
    }
    say(format_args!("fetching {package}"));
    run(Command::new("apt-get").current_dir(dir).args(["download", "-qq", &package]).stderr(Stdio::null()))?;
    let archive = std::fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
        .context("apt-get downloaded nothing")?;
    run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(dir))?;
    std::fs::remove_file(&archive)?;
    // Modules are not needed and large.
    for rest in ["lib", "usr"] {
        let _ = std::fs::remove_dir_all(dir.join(rest));
    }
    Ok(image)
}

/// A root file system of busybox, the loader with its libraries, and the object.
fn initramfs(dir: &Path, loader: &Path, object: &Path) -> Result<PathBuf> {
    let root = dir.join("root");
    let _ = std::fs::remove_dir_all(&root);
    for folder in ["bin", "proc", "sys", "tmp", "dev"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).context("busybox-static is not installed")?;
    std::fs::copy(loader, root.join("bin/load"))?;
    std::fs::copy(object, root.join("object.o"))?;
    let libraries = output(Command::new("ldd").arg(loader))?;
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(library.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().context(library.to_owned())?)?;
        std::fs::copy(library, to)?;
    }
    let init = root.join("init");
    std::fs::write(
        &init,
        format!(
            "#!/bin/busybox sh\nb=/bin/busybox\n$b mount -t proc proc /proc; $b mount -t sysfs sys /sys; $b mount -t tmpfs tmp /tmp\n\
             echo \"kernel $($b uname -r)\"\n/bin/load /object.o && echo {DONE}\n$b poweroff -f\n"
        ),
    )?;
    std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?;
    let archive = dir.join("initramfs");
    let script = format!("find . | busybox cpio -o -H newc 2>/dev/null >{}", shell(&archive));
    run(Command::new("sh").current_dir(&root).args(["-c", &script]))?;
    Ok(archive)
}

fn shell(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}
