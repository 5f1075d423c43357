//! What can be wrong with what comes in.

/// A ring record that is no event.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// The record has another size than `villus_abi::Event`.
    #[error(
        "event record of {got} bytes, {want} expected: the loaded programs are of another version than the agent, restart the agent"
    )]
    Length {
        /// Bytes of the record.
        got: usize,
        /// Bytes of an event.
        want: usize,
    },
    /// The record's kind is none that this version knows.
    #[error("event record of unknown kind {0}")]
    Kind(u8),
}

/// A filter that cannot be understood; `field` is the flag or query parameter.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{field}: {value:?} {problem}")]
pub struct FilterError {
    /// Name of the flag or query parameter, without dashes.
    pub field: &'static str,
    /// What was given.
    pub value: String,
    /// What is wrong with it and what would be right.
    pub problem: String,
}

/// A question to `villus why` that cannot be understood.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum WhyError {
    /// Not a port with an optional protocol.
    #[error("{0:?} is not PORT[/PROTO], for example 80, 80/tcp, 53/udp, or 8/icmp for ICMP type 8")]
    Port(String),
    /// Not a protocol.
    #[error("{0:?} is not a protocol: tcp, udp, sctp, icmp, icmpv6 or a number from 1 to 255")]
    Protocol(String),
}
