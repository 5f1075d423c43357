//! A root file system of busybox and a few programs with their libraries.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::kernel::Kernel;
use crate::run::{output, run};

const BUSYBOX: &str = "/bin/busybox";
/// Commands that busybox is.
const APPLETS: [&str; 7] = ["grep", "modprobe", "mount", "poweroff", "rm", "sh", "uname"];

/// A root file system to be packed.
pub struct System {
    root: PathBuf,
}

impl System {
    /// A new one in a folder, which is emptied.
    pub fn new(root: PathBuf) -> Result<Self> {
        let _ = std::fs::remove_dir_all(&root);
        for folder in ["bin", "sbin", "proc", "sys", "tmp", "dev", "run"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        std::fs::copy(BUSYBOX, root.join("bin/busybox")).context("busybox-static is not installed")?;
        for applet in APPLETS {
            symlink("busybox", root.join("bin").join(applet))?;
        }
        // Where the kernel looks for it.
        symlink("../bin/busybox", root.join("sbin/modprobe"))?;
        Ok(Self { root })
    }

    /// Puts a program there, without what is only for debuggers, and the libraries that it needs.
    pub fn program(&mut self, name: &str, file: &Path) -> Result<()> {
        run(Command::new("strip").arg("-o").arg(self.root.join("bin").join(name)).arg(file))?;
        let libraries = output(Command::new("ldd").arg(file))?;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            self.file(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    /// Puts a file there.
    pub fn file(&mut self, place: &str, file: &Path) -> Result<()> {
        let to = self.root.join(place);
        std::fs::create_dir_all(to.parent().with_context(|| place.to_owned())?)?;
        std::fs::copy(file, to).with_context(|| file.display().to_string())?;
        Ok(())
    }

    /// Puts modules of a kernel there: folders or files below its `kernel`.
    pub fn modules(&mut self, kernel: &Kernel, folders: &[&str]) -> Result<()> {
        let place = self.root.join("lib/modules").join(&kernel.version);
        for name in ["modules.builtin", "modules.order"] {
            self.file(&format!("lib/modules/{}/{name}", kernel.version), &kernel.modules.join(name))?;
        }
        for folder in folders {
            let to = place.join("kernel").join(folder);
            std::fs::create_dir_all(to.parent().with_context(|| (*folder).to_owned())?)?;
            run(Command::new("cp").arg("-r").arg(kernel.modules.join("kernel").join(folder)).arg(to))?;
        }
        run(Command::new(BUSYBOX).arg("depmod").arg("-b").arg(&self.root).arg(&kernel.version))
    }

    /// What the system does before it switches itself off: a shell's lines.
    pub fn script(&mut self, lines: &str) -> Result<()> {
        let init = self.root.join("init");
        std::fs::write(
            &init,
            format!(
                "#!/bin/sh\nexport PATH=/bin:/sbin\nmount -t proc proc /proc\nmount -t sysfs sys /sys\n\
                 mount -t tmpfs tmp /tmp\nmount -t tmpfs run /run\nmount -t devtmpfs dev /dev\n{lines}\npoweroff -f\n"
            ),
        )?;
        Ok(std::fs::set_permissions(&init, std::fs::Permissions::from_mode(0o755))?)
    }

    /// Packs it as the kernel reads it.
    pub fn pack(&self, archive: &Path) -> Result<PathBuf> {
        let quoted = format!("'{}'", archive.display().to_string().replace('\'', r"'\''"));
        let script = format!("find . | busybox cpio -o -H newc 2>/dev/null >{quoted}");
        run(Command::new("sh").current_dir(&self.root).args(["-c", &script]))?;
        Ok(archive.to_owned())
    }
}
