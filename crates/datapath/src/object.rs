//! The kernel object: from its bytes to loaded programs.

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use aya::{
    EbpfLoader, VerifierLogLevel,
    programs::{ProgramError, SchedClassifier},
};

use crate::{
    error::{Context, Error, Result},
    links::Hook,
    maps::{KNOWN, Maps, NAT_KNOWN},
    pins::Pins,
    sys::{self, ProgInfo, RawMap, SkbContext, TestRun},
};

/// The object that this crate was built with; aligned as the loader wants it.
static EMBEDDED: &[u8] = aya::include_bytes_aligned!("../bpf/villus.bpf.o");

/// A loaded program. It stays in the kernel while this value, a link or a filter holds it.
#[derive(Debug)]
pub struct Program {
    name: &'static str,
    fd: OwnedFd,
    /// What the kernel says about it.
    pub info: ProgInfo,
    /// How long verifying and compiling it took.
    pub load_time: Duration,
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Program {
    /// Takes a program that is loaded already.
    ///
    /// # Errors
    /// [`Error::Kernel`] when it is not a program.
    pub fn adopt(name: &'static str, fd: OwnedFd) -> Result<Self> {
        let info = sys::prog_info(fd.as_fd()).on("ask about program", name)?;
        Ok(Self { name, fd, info, load_time: Duration::ZERO })
    }

    /// Its name in the object.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Runs it once on a packet, without any device.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn test_run(&self, packet: &[u8], context: &SkbContext) -> Result<TestRun> {
        self.test_runs(packet, context, 1)
    }

    /// Runs it many times on a packet; the duration is the average, packet and context are the last run's.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn test_runs(&self, packet: &[u8], context: &SkbContext, repeat: u32) -> Result<TestRun> {
        sys::test_run(self.as_fd(), packet, context, repeat).on("test-run", self.name)
    }

    /// A map of this program by its symbol (15 characters of it); for those that are pinned nowhere.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn map(&self, symbol: &str) -> Result<Option<RawMap>> {
        for &id in &self.info.maps {
            let map = sys::map_by_id(id).on("open a map of program", self.name)?;
            if map.info().name == symbol.get(..15).unwrap_or(symbol) {
                return Ok(Some(map));
            }
        }
        Ok(None)
    }

    /// Asks the kernel again: run time and number of runs go on.
    ///
    /// # Errors
    /// [`Error::Kernel`].
    pub fn current_info(&self) -> Result<ProgInfo> {
        sys::prog_info(self.as_fd()).on("ask about program", self.name)
    }
}

/// Says when nobody else has a use for a CPU. Until then loading leaves one to others.
#[derive(Debug, Default)]
pub struct AllCpus(OnceLock<()>);

impl AllCpus {
    /// Says it from the beginning.
    #[must_use]
    pub fn now() -> Self {
        let all = Self::default();
        all.say();
        all
    }

    /// Says it.
    pub fn say(&self) {
        // Who said it before said the same.
        let _ = self.0.set(());
    }

    fn wait(&self) {
        self.0.wait();
    }
}

/// Programs of the path, loaded, with the maps of [`Maps`].
#[derive(Debug)]
pub struct Object {
    /// In the order of [`Hook::ALL`]; `None` where it was not asked for.
    programs: [Option<Program>; Hook::ALL.len()],
}

impl Object {
    /// Whether this crate was built with an object at all.
    #[must_use]
    pub fn is_embedded() -> bool {
        !EMBEDDED.is_empty()
    }

    /// Loads the programs of these hooks from the object that is part of this crate, on all CPUs: verifying one takes a
    /// while. Those that take longest come first among [`Hook::ALL`]. The maps must have been opened on the same bpffs.
    ///
    /// # Errors
    /// [`Error::Object`] with the end of the verifier's log.
    pub fn load(pins: &Pins, maps: &Maps, hooks: &[Hook]) -> Result<Self> {
        Self::load_beside(pins, maps, hooks, &AllCpus::now())
    }

    /// As [`Self::load`], beside something else that has a use for a CPU until `all` says otherwise.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_beside(pins: &Pins, maps: &Maps, hooks: &[Hook], all: &AllCpus) -> Result<Self> {
        Self::load_some(EMBEDDED, pins, hooks, maps.nat.is_some(), all)
    }

    /// As [`Self::load`], those that do not masquerade, whatever the maps say.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_without_nat(pins: &Pins, hooks: &[Hook]) -> Result<Self> {
        Self::load_some(EMBEDDED, pins, hooks, false, &AllCpus::now())
    }

    /// Loads from another object with the same maps and programs, 4-byte aligned.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_from(object: &[u8], pins: &Pins, maps: &Maps, hooks: &[Hook]) -> Result<Self> {
        Self::load_some(object, pins, hooks, maps.nat.is_some(), &AllCpus::now())
    }

    fn load_some(object: &[u8], pins: &Pins, hooks: &[Hook], nat: bool, all: &AllCpus) -> Result<Self> {
        if object.is_empty() {
            return Err(Error::Object { what: "it is empty: build it with `./dev bpf`".to_owned() });
        }
        raise_memlock();
        // The verifier gives up when a signal is pending for this thread; and it writes down what it does only when
        // it is asked again, for that takes three times as long.
        let mut quiet = attempt(object, pins, hooks, nat, all, VerifierLogLevel::STATS);
        for _ in 0..INTERRUPTIONS {
            if !matches!(&quiet, Err(failed) if failed.interrupted) {
                break;
            }
            quiet = attempt(object, pins, hooks, nat, all, VerifierLogLevel::STATS);
        }
        quiet
            .or_else(|_| {
                attempt(object, pins, hooks, nat, all, VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)
            })
            .map_err(|failed| failed.error)
    }

    /// The program of a hook.
    ///
    /// # Errors
    /// [`Error::Object`] when it was not among those asked for.
    pub fn program(&self, hook: Hook) -> Result<&Program> {
        self.programs[hook as usize]
            .as_ref()
            .ok_or_else(|| Error::Object { what: format!("program `{}` is not loaded", hook.name()) })
    }

    /// All programs that are loaded.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        self.programs.iter().flatten()
    }
}

/// How often a load that a signal interrupted is tried again, as libbpf does.
const INTERRUPTIONS: u32 = 5;

/// A load that failed.
struct Failed {
    error: Error,
    /// A signal was pending (EAGAIN): the same again may succeed.
    interrupted: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, interrupted: false }
    }
}

/// Loads programs of an object once.
fn attempt(
    object: &[u8],
    pins: &Pins,
    hooks: &[Hook],
    nat: bool,
    all: &AllCpus,
    level: VerifierLogLevel,
) -> std::result::Result<Object, Failed> {
    let mut loader = EbpfLoader::new();
    loader.btf(None).verifier_log_level(level);
    for known in &KNOWN {
        loader.map_pin_path(known.symbol, pins.path(known.pin));
    }
    for known in &NAT_KNOWN {
        if nat {
            loader.map_pin_path(known.symbol, pins.path(known.pin));
        } else {
            // The loader makes every map of the object; one that no program uses goes at once.
            loader.map_max_entries(known.symbol, 1);
        }
    }
    let mut loaded = loader.load(object).map_err(|e| refused(&e))?;
    let mut found: BTreeMap<String, _> =
        loaded.programs_mut().map(|(name, program)| (name.to_owned(), program)).collect();
    let mut wanted = Vec::new();
    for &hook in hooks {
        let symbol = if nat { with_nat(hook) } else { hook.name() };
        let program = found
            .remove(symbol)
            .ok_or_else(|| Error::Object { what: format!("no program `{symbol}` in it") })?;
        let program: &mut SchedClassifier = program.try_into().map_err(|e| refused(&e))?;
        wanted.push((hook, program));
    }
    let mut object = Object { programs: [const { None }; Hook::ALL.len()] };
    for (hook, program) in all_verified(wanted, all) {
        object.programs[hook as usize] = Some(program?);
    }
    Ok(object)
}

type Verified = std::result::Result<Program, Failed>;

/// Has the kernel verify programs, as many at once as there are CPUs: more would only take the memory out of each other's
/// caches. One CPU is left to others until `all` says otherwise.
fn all_verified(wanted: Vec<(Hook, &mut SchedClassifier)>, all: &AllCpus) -> Vec<(Hook, Verified)> {
    let cpus = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let (threads, at_once) = (cpus.min(wanted.len()), cpus.saturating_sub(1).max(1));
    let wanted = Mutex::new(wanted.into_iter());
    let next = || wanted.lock().unwrap_or_else(PoisonError::into_inner).next();
    let some = |waits: bool| {
        if waits {
            all.wait();
        }
        let programs = std::iter::from_fn(next);
        let some: Vec<_> = programs.map(|(hook, program)| (hook, verified(hook.name(), program))).collect();
        // Nothing is left to wait for.
        all.say();
        some
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|n| scope.spawn(move || some(n >= at_once))).collect();
        let done = threads.into_iter().map(std::thread::ScopedJoinHandle::join);
        done.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    })
}

/// Has the kernel verify and compile a program.
fn verified(name: &'static str, program: &mut SchedClassifier) -> Verified {
    let start = Instant::now();
    program.load().map_err(|e| Failed { interrupted: is_interruption(&e), error: refused(&e) })?;
    let load_time = start.elapsed();
    let fd = program.fd().map_err(|e| refused(&e))?.as_fd().try_clone_to_owned();
    let fd = fd.on("hold program", name)?;
    let info = sys::prog_info(fd.as_fd()).on("ask about program", name)?;
    Ok(Program { name, fd, info, load_time })
}

/// The program of a hook that also masquerades, where there is one.
const fn with_nat(hook: Hook) -> &'static str {
    match hook {
        Hook::FromNetwork => "from_network_nat",
        Hook::ToNetwork => "to_network_nat",
        hook => hook.name(),
    }
}

fn is_interruption(error: &ProgramError) -> bool {
    matches!(error, ProgramError::LoadError { io_error, .. }
        if io_error.kind() == std::io::ErrorKind::WouldBlock)
}

/// The loader's error with its causes; of a verifier's log the end, where it says what is wrong.
fn refused(error: &dyn std::error::Error) -> Error {
    const KEEP: usize = 6000;
    let mut what = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !what.contains(&text) {
            what = format!("{what}: {text}");
        }
        cause = error.source();
    }
    if what.len() > 2 * KEEP {
        let head = what.char_indices().nth(KEEP / 4).map_or(0, |(at, _)| at);
        let tail =
            (what.len() - KEEP..what.len()).find(|&at| what.is_char_boundary(at)).unwrap_or(what.len());
        what = format!("{} [...] {}", &what[..head], &what[tail..]);
    }
    Error::Object { what }
}

/// Before Linux 5.11 maps and programs count as locked memory.
fn raise_memlock() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // Without the right to raise it the kernel says so itself where it matters.
    let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
}
