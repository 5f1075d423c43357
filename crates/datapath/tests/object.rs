//! The kernel object in the running kernel.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use villus_datapath::{Hook, Maps, Object, Pins, Sizes, SkbContext};

#[test]
fn the_maps_of_a_node_take_less_than_forty_megabytes() {
    // A machine of 8 GB, without and with masquerading by our programs.
    let sizes = Sizes::for_memory(8 << 30, 0.0025);
    for nat in [0, sizes.nat_share()] {
        let pins = Pins::detached().unwrap();
        let maps = Maps::open(&pins, &Sizes { nat, ..sizes }).unwrap();
        let total: u64 = maps.memory().unwrap().iter().map(|(_, bytes)| bytes).sum();
        assert!(total < 40 << 20, "{:?}", maps.memory().unwrap());
    }
}

#[test]
fn sizes_follow_memory_within_bounds() {
    // (memory, ratio, TCP, others)
    for (memory, ratio, tcp, any) in [
        (0, 0.0025, 1 << 14, 1 << 13),
        (1 << 40, f64::NAN, 1 << 14, 1 << 13),
        (u64::MAX, 1e300, 1 << 24, 1 << 24),
        (16 << 30, 0.0025, 52_634, 26_317),
    ] {
        let sizes = Sizes::for_memory(memory, ratio);
        assert_eq!((sizes.ct_tcp, sizes.ct_any), (tcp, any), "{memory} {ratio}");
    }
}

#[test]
fn the_object_is_taken_by_the_verifier_and_answers() {
    if !Object::is_embedded() {
        eprintln!("skipped: built without a kernel object");
        return;
    }
    for nat in [0, 1024] {
        let pins = Pins::detached().unwrap();
        let maps = Maps::open(&pins, &Sizes { nat, ..Sizes::default() }).unwrap();
        let object = Object::load(&pins, &maps, &Hook::ALL).unwrap();
        for program in object.programs() {
            assert!(program.info.instructions > 0 && program.info.btf != 0, "{program:?}");
            // An agent that has configured nothing: nothing may crash, whatever comes.
            for length in 14..200 {
                program.test_run(&vec![0xff; length], &SkbContext::default()).unwrap();
            }
        }
        // The maps of masquerading are there where it is wanted only.
        assert_eq!(pins.list().unwrap().len(), if nat == 0 { 17 } else { 21 });
    }
}

#[test]
fn programs_that_do_not_masquerade_load_beside_the_maps_of_those_that_do() {
    if !Object::is_embedded() {
        eprintln!("skipped: built without a kernel object");
        return;
    }
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &Sizes { nat: 1024, ..Sizes::default() }).unwrap();
    let nat = maps.nat.as_ref().unwrap().uplinks.raw().info().id;
    let uses = |object: &Object| {
        let program = object.program(Hook::ToNetwork).unwrap();
        program.info.maps.contains(&nat)
    };
    assert!(uses(&Object::load(&pins, &maps, &Hook::ALL).unwrap()));
    assert!(!uses(&Object::load_without_nat(&pins, &Hook::ALL).unwrap()));
}

#[test]
fn what_is_no_object_is_refused() {
    let pins = Pins::detached().unwrap();
    let maps = Maps::open(&pins, &Sizes::default()).unwrap();
    for bytes in [&b""[..], b"\x7fELF", &[0; 4096]] {
        let error = Object::load_from(bytes, &pins, &maps, &Hook::ALL).unwrap_err();
        assert!(error.to_string().starts_with("kernel object: "), "{error}");
    }
}
