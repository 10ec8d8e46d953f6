//! Calls and results, through registers and back.

use crate::hypercall::{
    AllocationFailures, Arguments, FlushPoint, Mapped, Number, Refused, Statistic, TestCall, decode_result,
    encode_result,
};
use core::num::NonZero;
use proptest::prelude::*;
use proptest::sample::select;

fn failures() -> impl Strategy<Value = AllocationFailures> {
    let nth = (1..u64::MAX).prop_map(|n| AllocationFailures::Nth(NonZero::new(n).unwrap()));
    prop_oneof![Just(AllocationFailures::None), nth, Just(AllocationFailures::All)]
}

fn test_calls() -> impl Strategy<Value = TestCall> {
    prop_oneof![
        any::<(u64, u64)>().prop_map(|(start, bytes)| TestCall::Release { start, bytes }),
        any::<u64>().prop_map(|at| TestCall::Split { at }),
        any::<u64>().prop_map(|at| TestCall::Collapse { at }),
        any::<(u64, u64, u64)>()
            .prop_map(|(start, bytes, bitmap)| { TestCall::LogDirty { start, bytes, bitmap: NonZero::new(bitmap) } }),
        any::<u64>().prop_map(|at| TestCall::Replace { at }),
        Just(TestCall::Report),
        select(Statistic::ALL).prop_map(TestCall::Stat),
        failures().prop_map(TestCall::FailAllocations),
        proptest::option::of(select(FlushPoint::ALL)).prop_map(TestCall::SkipFlush),
        any::<u64>().prop_map(|at| TestCall::Misconfigure { at }),
    ]
}

proptest! {
    #[test]
    fn a_call_is_decoded_as_it_was_encoded(call in test_calls()) {
        let (number, arguments) = call.encode();
        prop_assert_eq!(TestCall::decode(number.into(), arguments), Ok(call));
    }

    /// What the hypervisor makes of any registers is what a guest would have put there, or an error.
    #[test]
    fn any_registers_are_a_call_or_an_error(
        number in prop_oneof![any::<u64>(), select(Number::ALL).prop_map(u64::from)],
        arguments: Arguments,
        small in proptest::option::of(0..9u64),
    ) {
        let arguments = [small.unwrap_or(arguments[0]), arguments[1], arguments[2], arguments[3]];
        match TestCall::decode(number, arguments) {
            Ok(call) => {
                let (encoded, used) = call.encode();
                prop_assert_eq!(u64::from(encoded), number);
                prop_assert!(used.iter().zip(arguments).all(|(used, given)| *used == given || *used == 0));
            }
            Err(Refused::NoSuchCall) => {
                let known = Number::ALL.iter().find(|known| u64::from(**known) == number);
                prop_assert!(matches!(known, None | Some(Number::Nop | Number::Version)));
            }
            Err(refused) => prop_assert_eq!(refused, Refused::Invalid),
        }
    }

    #[test]
    fn a_result_is_decoded_as_it_was_encoded(
        result in prop_oneof![(0..1u64 << 63).prop_map(Ok), select(Refused::ALL).prop_map(Err)],
    ) {
        prop_assert_eq!(decode_result(encode_result(result)), Ok(result));
    }

    #[test]
    fn mapped_pages_are_decoded_as_they_were_encoded(small: u32, large in 0..1u32 << 31) {
        let mapped = Mapped { small, large };
        prop_assert_eq!(Mapped::from(u64::from(mapped)), mapped);
        prop_assert_eq!(encode_result(Ok(mapped.into())), mapped.into());
    }
}

#[test]
fn a_negative_number_without_a_meaning_is_no_result() {
    for number in [-2i64, -999, -1001, i64::MIN] {
        assert_eq!(decode_result(number.cast_unsigned()), Err(crate::Unknown));
    }
}

#[test]
fn what_selects_nothing_is_invalid() {
    for (number, first) in [(Number::Stat, 7), (Number::SkipFlush, 5), (Number::SkipFlush, u64::MAX)] {
        assert_eq!(TestCall::decode(number.into(), [first, 0, 0, 0]), Err(Refused::Invalid), "{number} {first}");
    }
}
