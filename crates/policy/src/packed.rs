//! Keys of a policy map as numbers: comparing two is one step.

use villus_abi::PolicyKey;

/// A key as a number. Numbers are in the order of their keys.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Packed(u64);

impl From<PolicyKey> for Packed {
    fn from(key: PolicyKey) -> Self {
        let (identity, dport) = (u64::from(key.identity), u64::from(key.dport));
        Self(identity << 32 | dport << 16 | u64::from(key.proto) << 8 | u64::from(key.direction))
    }
}

impl From<Packed> for PolicyKey {
    fn from(Packed(number): Packed) -> Self {
        Self {
            identity: (number >> 32) as u32,
            dport: (number >> 16) as u16,
            proto: (number >> 8) as u8,
            direction: number as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = PolicyKey> {
        (any::<u32>(), any::<u16>(), any::<u8>(), any::<u8>())
            .prop_map(|(identity, dport, proto, direction)| PolicyKey { identity, dport, proto, direction })
    }

    proptest! {
        #[test]
        fn numbers_are_in_the_order_of_their_keys(
            a in any_key(),
            b in any_key(),
            same in any::<[bool; 3]>(),
        ) {
            let b = PolicyKey {
                identity: if same[0] { a.identity } else { b.identity },
                dport: if same[1] { a.dport } else { b.dport },
                proto: if same[2] { a.proto } else { b.proto },
                ..b
            };
            prop_assert_eq!(Packed::from(a).cmp(&Packed::from(b)), a.cmp(&b));
            prop_assert_eq!(PolicyKey::from(Packed::from(a)), a);
        }
    }
}
