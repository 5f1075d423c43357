//! Features of devices, as `ethtool -K` switches them: requests of the generic netlink family `ethtool`.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NlasIterator};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;

use crate::error::NetError;
use crate::netlink::{self, ERROR, HEAD, NESTED, append, messages, receive, verdict};

/// Of linux/genetlink.h: `GENL_ID_CTRL`, and `CTRL_CMD_GETFAMILY` with `CTRL_ATTR_FAMILY_ID` and `CTRL_ATTR_FAMILY_NAME`.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
/// Of linux/ethtool_netlink.h: `ETHTOOL_MSG_FEATURES_SET` with `ETHTOOL_A_FEATURES_HEADER` and `ETHTOOL_A_FEATURES_WANTED`.
const FEATURES_SET: u8 = 12;
const DEVICE: u16 = 1;
const WANTED: u16 = 3;
/// `ETHTOOL_A_HEADER_DEV_INDEX`.
const DEVICE_INDEX: u16 = 1;
/// A set of features is `ETHTOOL_A_BITSET_BITS` with an `ETHTOOL_A_BITSET_BITS_BIT` for each, which has
/// `ETHTOOL_A_BITSET_BIT_NAME`. Without a value it is to be off; features that are not in the set stay.
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
/// Generic receive offload, by the name that the kernel has for it.
const GRO: &str = "rx-gro";

/// Switches generic receive offload of a device of the calling thread's namespace off, if it is not.
///
/// # Errors
/// `EOPNOTSUPP` when the kernel cannot (it is built without `CONFIG_ETHTOOL_NETLINK`, or the device keeps it on), `ENODEV` when
/// there is no such device.
pub(crate) fn switch_gro_off(device: u32) -> Result<(), NetError> {
    switch_off(device, GRO).map_err(|source| NetError::Netlink {
        action: format!("switch generic receive offload of device {device} off"),
        source,
        kernel: None,
    })
}

fn switch_off(device: u32, feature: &str) -> io::Result<()> {
    let socket = netlink::open(NETLINK_GENERIC)?;
    let name = attribute(FAMILY_NAME, b"ethtool\0");
    let family = match ask(&socket, CONTROL, GET_FAMILY, &name) {
        Ok(answer) => number_of_family(&answer),
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => None,
        Err(error) => return Err(error),
    };
    let family = family.ok_or(Errno::OPNOTSUPP)?;

    let feature = attribute(BIT_NAME, format!("{feature}\0").as_bytes());
    let set = attribute(BITS | NESTED, &attribute(BIT | NESTED, &feature));
    let mut request = attribute(DEVICE | NESTED, &attribute(DEVICE_INDEX, &device.to_ne_bytes()));
    append(&mut request, WANTED | NESTED, &set);
    let answer = ask(&socket, family, FEATURES_SET, &request)?;
    if stays_on(&answer) { Err(Errno::OPNOTSUPP.into()) } else { Ok(()) }
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    append(&mut bytes, kind, value);
    bytes
}

/// Asks a generic family; the attributes of its answer, if there is one before the acknowledgement.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    socket.send(&netlink::request(family, NLM_F_ACK, command, attributes), 0)?;
    let (mut buffer, mut answer) = (netlink::buffer(), Vec::new());
    loop {
        receive(socket, &mut buffer)?;
        for (kind, message) in messages(&buffer) {
            if kind == ERROR {
                return verdict(message).map(|()| answer);
            }
            if kind == family {
                answer = message.get(HEAD..).unwrap_or_default().to_vec();
            }
        }
    }
}

fn number_of_family(answer: &[u8]) -> Option<u16> {
    let number = NlasIterator::new(answer).flatten().find(|attribute| attribute.kind() == FAMILY_ID)?;
    Some(u16::from_ne_bytes(number.value().try_into().ok()?))
}

/// Whether the device has not done what was asked: the kernel answers with those of the wanted features that are otherwise.
fn stays_on(answer: &[u8]) -> bool {
    let within = |bytes: &[u8], kind: u16| {
        let mut attributes = NlasIterator::new(bytes).flatten();
        attributes.find(|attribute| attribute.kind() == kind).map(|attribute| attribute.value().to_vec())
    };
    let bits = within(answer, WANTED).and_then(|set| within(&set, BITS));
    bits.is_some_and(|bits| within(&bits, BIT).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use villus_testbed::Host;

    #[test]
    fn what_a_device_keeps_on_is_not_taken_for_off() {
        let host = Host::named("features");
        host.run(|| {
            let number = |result: io::Result<()>| result.map_err(|error| error.raw_os_error().unwrap());
            let lo = 1;
            for _ in 0..2 {
                assert_eq!(number(switch_off(lo, GRO)), Ok(()));
            }
            // Fixed on that device.
            assert_eq!(number(switch_off(lo, "loopback")), Err(Errno::OPNOTSUPP.raw_os_error()));
            assert_eq!(number(switch_off(lo, "no-such-feature")), Err(Errno::OPNOTSUPP.raw_os_error()));
            assert_eq!(number(switch_off(4_000_000, GRO)), Err(Errno::NODEV.raw_os_error()));
        });
        let shown = host.command("ethtool", &["-k", "lo"]);
        assert!(shown.contains("generic-receive-offload: off"), "{shown}");
        assert!(shown.contains("loopback: on [fixed]"), "{shown}");
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80), depth in 0..3) {
            let _ = number_of_family(&bytes);
            let answer = match depth {
                0 => bytes,
                1 => attribute(WANTED, &bytes),
                _ => attribute(WANTED, &attribute(BITS, &bytes)),
            };
            let _ = stays_on(&answer);
        }
    }
}
