//! The fuzz target's property, as a property test.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn walks_of_arbitrary_tables_stay_in_their_frames(data in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzz::arbitrary_tables(&data);
    }
}
