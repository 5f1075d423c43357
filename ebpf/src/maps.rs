//! The maps. Sizes that the node chooses are set by the loader; names and layouts are in `villus-abi`.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf},
    macros::btf_map,
};
use villus_abi::{
    Config, Endpoint, Flow, FlowKey4, FlowKey6, FlowRow, FragKey4, FragKey6, FragPorts, IpcacheValue, Local,
    Metric, Nat, NatKey4, NatKey6, Node, PolicyCell, PolicyKey, Uplink, metrics::METRICS as METRIC_COUNT,
};

const NO_PREALLOC: usize = 1;

/// Shape of a policy map; the ones in use are made at run time, without BTF types.
pub type Policy = HashMap<PolicyKey, PolicyCell, 1024, NO_PREALLOC>;

#[btf_map]
pub static ENDPOINTS: Array<Endpoint, 4096> = Array::new();
#[btf_map]
pub static DEVICES: HashMap<u32, u32, 4096> = HashMap::new();
#[btf_map]
pub static ADDRS4: HashMap<u32, Local, 16384> = HashMap::new();
#[btf_map]
pub static ADDRS6: HashMap<[u32; 4], Local, 16384> = HashMap::new();
#[btf_map]
pub static POLICIES: ArrayOfMaps<Policy, 4096> = ArrayOfMaps::new();
#[btf_map]
pub static IPCACHE: LpmTrie<[u8; 20], IpcacheValue, 512000, NO_PREALLOC> = LpmTrie::new();
#[btf_map]
pub static NODES: HashMap<[u32; 4], Node, 65536, NO_PREALLOC> = HashMap::new();
#[btf_map]
pub static CT4_TCP: LruHashMap<FlowKey4, FlowRow, 65536> = LruHashMap::new();
#[btf_map]
pub static CT4_ANY: LruHashMap<FlowKey4, FlowRow, 32768> = LruHashMap::new();
#[btf_map]
pub static CT6_TCP: LruHashMap<FlowKey6, Flow, 32768> = LruHashMap::new();
#[btf_map]
pub static CT6_ANY: LruHashMap<FlowKey6, Flow, 16384> = LruHashMap::new();
#[btf_map]
pub static FRAGS4: LruHashMap<FragKey4, FragPorts, 8192> = LruHashMap::new();
#[btf_map]
pub static FRAGS6: LruHashMap<FragKey6, FragPorts, 8192> = LruHashMap::new();
#[btf_map]
pub static NAT4: LruHashMap<NatKey4, Nat, 65536> = LruHashMap::new();
#[btf_map]
pub static NAT6: LruHashMap<NatKey6, Nat, 65536> = LruHashMap::new();
#[btf_map]
pub static MASQUERADE: LpmTrie<[u8; 20], u32, 4096, NO_PREALLOC> = LpmTrie::new();
#[btf_map]
pub static UPLINKS: HashMap<u32, Uplink, 256> = HashMap::new();
#[btf_map]
pub static METRICS: PerCpuArray<Metric, { METRIC_COUNT as usize }> = PerCpuArray::new();
#[btf_map]
pub static EVENTS: RingBuf<[u8; 0], { 1 << 20 }> = RingBuf::new();
#[btf_map]
pub static EPOCH: Array<u64, 1> = Array::new();
#[btf_map]
pub static CONFIG: Array<Config, 1> = Array::new();
/// What a CPU knows and its room for the packet at hand, [`crate::world::Scratch`]; private to the programs.
#[btf_map]
pub static SCRATCH: PerCpuArray<[u64; SCRATCH_WORDS], 1> = PerCpuArray::new();

/// [`crate::world::Scratch`] in words of eight bytes: plain for BTF's sake.
pub const SCRATCH_WORDS: usize = size_of::<crate::world::Scratch>().div_ceil(8);
