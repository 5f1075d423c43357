//! A calendar that is wrong, for processes of a test's own; and the clock of what programs remember.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

/// What a process is told that its calendar is; it may be set while the process runs. Clocks that do not jump are right.
/// Of Debian's package faketime.
pub struct Clock(PathBuf);

impl Clock {
    /// Ahead by so many seconds, or behind; written down in this file.
    pub fn new(file: &Path, seconds: i64) -> Self {
        let clock = Self(file.to_owned());
        clock.set(seconds);
        clock
    }

    /// Is now ahead by so many seconds, or behind; a process that has it knows within a second.
    pub fn set(&self, seconds: i64) {
        let next = self.0.with_extension("next");
        fs::write(&next, format!("{seconds:+}\n")).unwrap();
        fs::rename(next, &self.0).unwrap();
    }

    /// Gives it to a process that will be started.
    pub fn give<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command
            .env("LD_PRELOAD", library())
            .env("FAKETIME_TIMESTAMP_FILE", &self.0)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("DONT_FAKE_MONOTONIC", "1")
    }
}

/// Where the library is depends on the machine.
fn library() -> PathBuf {
    let name = "faketime/libfaketimeMT.so.1";
    let places = fs::read_dir("/usr/lib").unwrap().map(|place| place.unwrap().path().join(name));
    places.into_iter().find(|place| place.exists()).expect("libfaketime (package faketime)")
}

/// Waits until a jiffy has begun after this call: until then programs may go by what they have asked of the kernel before. Time
/// alone does not say so, for nobody counts jiffies while the processor that does has to wait.
pub fn a_jiffy_passes() {
    let coarse = || clock_gettime(ClockId::MonotonicCoarse);
    // This clock goes on with each jiffy, a moment later: its next step may be that of one which has begun before.
    for _ in 0..2 {
        let before = coarse();
        while coarse() == before {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
