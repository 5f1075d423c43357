//! Memory that is given back.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt;

/// A part of the program that is only read, as large as to hold whole pages of any size.
static ONLY_READ: [u8; 256 << 10] = [7; 256 << 10];

fn resident_of_files() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Alone in its process, so that nobody else reads the program meanwhile.
#[test]
fn what_the_program_has_read_of_itself_goes_and_comes_back() {
    let text: String = (0..1000).map(|n| format!("{n:?} {:?}", Some(n as f64 / 3.0))).collect();
    let before = resident_of_files();
    villus_datapath::sys::return_memory();
    let after = resident_of_files();
    assert!(after < before, "{after} KB were {before} KB");
    let again: String = (0..1000).map(|n| format!("{n:?} {:?}", Some(n as f64 / 3.0))).collect();
    assert_eq!(again, text);

    // As a debugger sets a breakpoint: by a copy of the page, which is not in the file.
    let place = &raw const ONLY_READ[128 << 10];
    let memory = std::fs::OpenOptions::new().write(true).open("/proc/self/mem").unwrap();
    memory.write_all_at(&[204], place.addr() as u64).unwrap();
    villus_datapath::sys::return_memory();
    // SAFETY: it lies within the array; another has written to it.
    assert_eq!(unsafe { place.read_volatile() }, 204);
}
