//! Programs of the kernel: information, test runs, and loading of hand-made probes.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{
    Cmd, addr, addr_mut, bpf, bpf_fd, expect_kind, fd_by_id, info, invalid, next_id, object_name, raw, text,
};

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;

/// What the kernel says about a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProgInfo {
    /// The kernel's id, unique while the machine is up.
    pub id: u32,
    /// Number of `enum bpf_prog_type`.
    pub kind: u32,
    /// Hash of the instructions, the kernel's tag.
    pub tag: [u8; 8],
    /// Name, at most 15 characters.
    pub name: String,
    /// Instructions after the verifier's rewriting.
    pub instructions: u32,
    /// Instructions the verifier walked through; 0 before Linux 5.16.
    pub verified: u32,
    /// Bytes of machine code.
    pub jited: u32,
    /// Time spent in it and number of runs, while `kernel.bpf_stats_enabled` is 1.
    pub run_time_ns: u64,
    /// See [`Self::run_time_ns`].
    pub runs: u64,
    /// Ids of the maps it uses.
    pub maps: Vec<u32>,
    /// BTF object it was loaded with, 0 if none.
    pub btf: u32,
}

/// `struct bpf_prog_info`, as far as we read it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    load_time: u64,
    uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    name: [u8; 16],
    ifindex: u32,
    gpl: u32,
    netns_dev: u64,
    netns_ino: u64,
    nr_jited_ksyms: u32,
    nr_jited_func_lens: u32,
    jited_ksyms: u64,
    jited_func_lens: u64,
    btf_id: u32,
    func_info_rec_size: u32,
    func_info: u64,
    nr_func_info: u32,
    nr_line_info: u32,
    line_info: u64,
    jited_line_info: u64,
    nr_jited_line_info: u32,
    line_info_rec_size: u32,
    jited_line_info_rec_size: u32,
    nr_prog_tags: u32,
    prog_tags: u64,
    run_time_ns: u64,
    run_cnt: u64,
    recursion_misses: u64,
    verified: u32,
    attach_btf_obj_id: u32,
    attach_btf_id: u32,
    pad: u32,
}

/// Asks the kernel about a program.
///
/// # Errors
/// Whatever the kernel says.
pub fn prog_info(fd: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    expect_kind(fd, "bpf-prog")?;
    let mut maps = vec![0_u32; 64];
    let mut out = RawInfo { nr_map_ids: 64, map_ids: addr_mut(&mut maps), ..RawInfo::default() };
    // SAFETY: `RawInfo` begins like `bpf_prog_info`; its one pointer has room for the 64 ids announced, all
    // other lengths are 0.
    unsafe { info(fd, &mut out)? };
    maps.truncate(out.nr_map_ids as usize);
    Ok(ProgInfo {
        id: out.id,
        kind: out.kind,
        tag: out.tag,
        name: text(&out.name),
        instructions: out.xlated_len / 8,
        verified: out.verified,
        jited: out.jited_len,
        run_time_ns: out.run_time_ns,
        runs: out.run_cnt,
        maps,
        btf: out.btf_id,
    })
}

/// Opens a program by its id.
///
/// # Errors
/// `NotFound` when it is gone.
pub fn prog_fd_by_id(id: u32) -> io::Result<OwnedFd> {
    fd_by_id(Cmd::ProgFdById, id)
}

/// The program id after `after` (0 begins).
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn next_prog_id(after: u32) -> io::Result<Option<u32>> {
    next_id(Cmd::ProgNextId, after)
}

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// Loads a tc classifier from instructions as they are: for feature probes and tests. The real programs are loaded from
/// their object.
///
/// # Errors
/// Whatever the verifier says, as an error number.
pub fn prog_load_tc(name: &str, instructions: &[u64]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: SCHED_CLS,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| invalid("too many instructions"))?,
        insns: addr(instructions),
        license: c"Dual MIT/GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: object_name(name),
    };
    // SAFETY: `LoadAttr` is the beginning of the PROG_LOAD member; instructions and licence live across the
    // call; the log is off; the command returns a descriptor.
    unsafe { bpf_fd(Cmd::ProgLoad, &mut attr) }
}

/// The parts of `__sk_buff` that a test run takes in and gives back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SkbContext {
    /// `mark`.
    pub mark: u32,
    /// `priority`.
    pub priority: u32,
    /// `ingress_ifindex`: where it was received; 0 for packets made here.
    pub ingress_ifindex: u32,
    /// `ifindex`: the device of the hook; must exist in this network namespace; 0 and 1 are the loopback.
    pub ifindex: u32,
    /// `cb`: a program may leave its notes here.
    pub cb: [u32; 5],
    /// `tstamp`.
    pub tstamp: u64,
    /// `wire_len`: 0 means the packet's own length.
    pub wire_len: u32,
    /// `gso_segs`.
    pub gso_segs: u32,
    /// `gso_size`.
    pub gso_size: u32,
    /// Bytes of the packet that are linear, Ethernet header included; 0 is all of it (others need Linux 6.19).
    pub linear: u32,
    /// The packet comes as from a device that hands on the sum of all of it, and must leave with one that is right (Linux 6.16).
    pub whole_sum: bool,
}

/// `struct __sk_buff`.
#[repr(C)]
#[derive(Default)]
struct RawSkb {
    len: u32,
    pkt_type: u32,
    mark: u32,
    queue_mapping: u32,
    protocol: u32,
    vlan_present: u32,
    vlan_tci: u32,
    vlan_proto: u32,
    priority: u32,
    ingress_ifindex: u32,
    ifindex: u32,
    tc_index: u32,
    cb: [u32; 5],
    hash: u32,
    tc_classid: u32,
    data: u32,
    data_end: u32,
    napi_id: u32,
    family: u32,
    remote_ip4: u32,
    local_ip4: u32,
    remote_ip6: [u32; 4],
    local_ip6: [u32; 4],
    remote_port: u32,
    local_port: u32,
    data_meta: u32,
    flow_keys: u64,
    tstamp: u64,
    wire_len: u32,
    gso_segs: u32,
    sk: u64,
    gso_size: u32,
    tstamp_type: u32,
    hwtstamp: u64,
}

const _: () = assert!(size_of::<RawSkb>() == 192);

/// What a test run gave.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TestRun {
    /// The program's return value, an action of tc.
    pub verdict: i32,
    /// Nanoseconds of one run, averaged over the repetitions.
    pub duration_ns: u32,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// The context afterwards.
    pub context: SkbContext,
}

/// `BPF_F_TEST_SKB_CHECKSUM_COMPLETE`.
const TEST_CHECKSUM_COMPLETE: u32 = 1 << 2;

#[repr(C)]
struct TestAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// Runs a tc program on a packet without any device (`BPF_PROG_TEST_RUN`), `repeat` times (0 is once).
///
/// With more than one repetition the packet of the next run is what the one before left.
///
/// # Errors
/// `EINVAL` for a packet shorter than an Ethernet header, `ENODEV` for an interface that is not there; with `whole_sum`
/// `EBADMSG` where the sum is wrong afterwards, and `EINVAL` from a kernel that does not know it.
pub fn test_run(fd: BorrowedFd<'_>, packet: &[u8], context: &SkbContext, repeat: u32) -> io::Result<TestRun> {
    let length = u32::try_from(packet.len()).map_err(|_| invalid("packet too large"))?;
    let room = packet.len() + 512;
    loop {
        let mut data_out = vec![0_u8; room];
        let ctx_in = [to_raw(context)];
        let mut ctx_out = [RawSkb::default()];
        let mut attr = TestAttr {
            prog_fd: raw(fd),
            retval: 0,
            data_size_in: length,
            data_size_out: length + 512,
            data_in: addr(packet),
            data_out: addr_mut(&mut data_out),
            repeat,
            duration: 0,
            ctx_size_in: 192,
            ctx_size_out: 192,
            ctx_in: addr(&ctx_in),
            ctx_out: addr_mut(&mut ctx_out),
            flags: if context.whole_sum { TEST_CHECKSUM_COMPLETE } else { 0 },
            cpu: 0,
            batch_size: 0,
            pad: 0,
        };
        // SAFETY: TEST member; data and contexts have the lengths announced and live across the call.
        match unsafe { bpf(Cmd::ProgTestRun, &mut attr) } {
            Ok(_) => {
                data_out.truncate(attr.data_size_out as usize);
                return Ok(TestRun {
                    verdict: attr.retval.cast_signed(),
                    duration_ns: attr.duration,
                    packet: data_out,
                    context: from_raw(&ctx_out[0]),
                });
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn to_raw(context: &SkbContext) -> RawSkb {
    RawSkb {
        mark: context.mark,
        priority: context.priority,
        ingress_ifindex: context.ingress_ifindex,
        ifindex: context.ifindex,
        cb: context.cb,
        tstamp: context.tstamp,
        wire_len: context.wire_len,
        gso_segs: context.gso_segs,
        gso_size: context.gso_size,
        data_end: context.linear,
        ..RawSkb::default()
    }
}

const fn from_raw(raw: &RawSkb) -> SkbContext {
    SkbContext {
        mark: raw.mark,
        priority: raw.priority,
        ingress_ifindex: raw.ingress_ifindex,
        ifindex: raw.ifindex,
        cb: raw.cb,
        tstamp: raw.tstamp,
        wire_len: raw.wire_len,
        gso_segs: raw.gso_segs,
        gso_size: raw.gso_size,
        linear: raw.data_end,
        whole_sum: false,
    }
}
