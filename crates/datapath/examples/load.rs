//! Loads the kernel object into the running kernel, attached to nothing, and says what the verifier made of it.
//!
//! `load [FILE]`; without a file, the object that the crate was built with. Needs root; leaves nothing behind.

use std::{error::Error, process::ExitCode};

use villus_datapath::{Hook, Maps, Object, Pins, Sizes};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    // Without masquerading, and with the uplink programs that masquerade.
    for sizes in [Sizes::default(), Sizes { nat: 1 << 14, ..Sizes::default() }] {
        load(&sizes)?;
    }
    Ok(())
}

fn load(sizes: &Sizes) -> Result<(), Box<dyn Error>> {
    let pins = Pins::detached()?;
    let maps = Maps::open(&pins, sizes)?;
    let object = match std::env::args_os().nth(1) {
        Some(path) => Object::load_from(&std::fs::read(path)?, &pins, &maps, &Hook::ALL)?,
        None => Object::load(&pins, &maps, &Hook::ALL)?,
    };
    for program in object.programs() {
        let info = &program.info;
        println!(
            "{:<14} {:>6} instructions, {:>7} verified, {:>6} bytes of machine code, loaded in {:?}",
            program.name(),
            info.instructions,
            info.verified,
            info.jited,
            program.load_time
        );
    }
    println!("maps take {} KiB", maps.memory()?.iter().map(|(_, bytes)| bytes).sum::<u64>() / 1024);
    Ok(())
}
