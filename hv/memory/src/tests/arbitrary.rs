//! The fuzzer's function, on inputs of proptest's.

use crate::fuzz::test_calls;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn arbitrary_test_calls_keep_the_guests_pages(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        test_calls(&data);
    }
}
