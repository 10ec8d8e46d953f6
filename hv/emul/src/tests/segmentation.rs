//! Each row is a case of the manuals.

use crate::Segment;
use crate::segmentation::{DescriptorCache, Kind, Mode, SegmentFault, Segmentation};
use Kind::{Read, Write};
use Mode::{Long, Protected, Real};

const GP: Result<u64, SegmentFault> = Err(SegmentFault::GeneralProtection);
const SS: Result<u64, SegmentFault> = Err(SegmentFault::Stack);
const AC: Result<u64, SegmentFault> = Err(SegmentFault::Alignment);

/// Attributes: accessed, present, of DPL 0. With B or D where it is not said otherwise.
const DATA: u16 = 0x493;
const DATA_16: u16 = 0x093;
const READ_ONLY: u16 = 0x491;
const EXPAND_DOWN: u16 = 0x497;
const EXPAND_DOWN_16: u16 = 0x097;
const EXPAND_DOWN_READ_ONLY: u16 = 0x495;
const CODE: u16 = 0x49b;
const EXECUTE_ONLY: u16 = 0x499;
const CONFORMING: u16 = 0x49f;
const UNUSABLE: u16 = 0;

const BASE: u64 = 0x10_0000;

type Row = (Mode, u16, u32, (u64, u64), Kind, Result<u64, SegmentFault>);

fn checked(segment: Segment, base: u64, row: &Row, checks_alignment: bool) -> Result<u64, SegmentFault> {
    let &(mode, attributes, limit, (offset, bytes), kind, _) = row;
    let cache = DescriptorCache { base, limit, attributes };
    Segmentation { segment, cache, mode, checks_alignment }.check(offset, bytes, kind).map(addr::Gva::raw)
}

#[track_caller]
fn all(segment: Segment, base: u64, checks_alignment: bool, rows: &[Row]) {
    for row in rows {
        assert_eq!(checked(segment, base, row, checks_alignment), row.5, "{segment:?} {row:x?}");
    }
}

#[test]
fn limits() {
    all(
        Segment::Es,
        BASE,
        false,
        &[
            (Protected, DATA, 0xfff, (0, 1), Write, Ok(BASE)),
            (Protected, DATA, 0xfff, (0xfff, 1), Write, Ok(BASE + 0xfff)),
            (Protected, DATA, 0xfff, (0x1000, 1), Write, GP),
            (Protected, DATA, 0xfff, (0xffe, 2), Read, Ok(BASE + 0xffe)),
            (Protected, DATA, 0xfff, (0xfff, 2), Read, GP),
            (Protected, DATA, 0xfff, (0xffc, 4), Read, Ok(BASE + 0xffc)),
            (Protected, DATA, 0xfff, (0xffd, 4), Read, GP),
            (Protected, DATA, 0xfff, (0xff9, 8), Read, GP),
            (Protected, DATA, 0, (0, 1), Read, Ok(BASE)),
            (Protected, DATA, 0, (0, 2), Read, GP),
            // The granularity is in the limit already, and B is for data that grows downwards.
            (Protected, DATA_16, 0xf_ffff, (0xf_ffff, 1), Read, Ok(BASE + 0xf_ffff)),
            (Protected, DATA, u32::MAX, (0xffff_fffc, 4), Read, Ok(BASE - 4)),
            (Protected, DATA, u32::MAX, (0xffff_ffff, 2), Read, GP),
            (Real, DATA_16, 0xffff, (0xffff, 1), Write, Ok(BASE + 0xffff)),
            (Real, DATA_16, 0xffff, (0xffff, 2), Write, GP),
            (Real, DATA_16, 0xffff, (0x1_0000, 1), Write, GP),
        ],
    );
}

#[test]
fn limits_of_data_that_grows_downwards() {
    all(
        Segment::Fs,
        BASE,
        false,
        &[
            (Protected, EXPAND_DOWN, 0xfff, (0xfff, 1), Read, GP),
            (Protected, EXPAND_DOWN, 0xfff, (0x1000, 1), Read, Ok(BASE + 0x1000)),
            (Protected, EXPAND_DOWN, 0xfff, (0xffe, 4), Write, GP),
            (Protected, EXPAND_DOWN, 0xfff, (0xffff_ffff, 1), Write, Ok(BASE - 1)),
            (Protected, EXPAND_DOWN, 0xfff, (0xffff_fffe, 4), Write, GP),
            (Protected, EXPAND_DOWN, u32::MAX, (0xffff_ffff, 1), Read, GP),
            (Protected, EXPAND_DOWN_16, 0xfff, (0xffff, 1), Read, Ok(BASE + 0xffff)),
            (Protected, EXPAND_DOWN_16, 0xfff, (0xffff, 2), Read, GP),
            (Protected, EXPAND_DOWN_16, 0xfff, (0x1_0000, 1), Read, GP),
            // The same bit of code is C.
            (Protected, CONFORMING, 0xfff, (0xfff, 1), Read, Ok(BASE + 0xfff)),
            (Protected, CONFORMING, 0xfff, (0x1000, 1), Read, GP),
        ],
    );
}

#[test]
fn types() {
    all(
        Segment::Gs,
        BASE,
        false,
        &[
            (Protected, READ_ONLY, 0xfff, (0, 4), Read, Ok(BASE)),
            (Protected, READ_ONLY, 0xfff, (0, 4), Write, GP),
            (Protected, EXPAND_DOWN_READ_ONLY, 0xfff, (0x1000, 4), Read, Ok(BASE + 0x1000)),
            (Protected, EXPAND_DOWN_READ_ONLY, 0xfff, (0x1000, 4), Write, GP),
            (Protected, CODE, 0xfff, (0, 4), Read, Ok(BASE)),
            (Protected, CODE, 0xfff, (0, 4), Write, GP),
            (Protected, EXECUTE_ONLY, 0xfff, (0, 4), Read, GP),
            (Protected, EXECUTE_ONLY, 0xfff, (0, 4), Write, GP),
            (Real, CODE, 0xfff, (0, 4), Write, Ok(BASE)),
            (Protected, UNUSABLE, u32::MAX, (0, 1), Read, GP),
            (Protected, UNUSABLE, u32::MAX, (0, 1), Write, GP),
            (Protected, DATA & !(1 << 7), u32::MAX, (0, 1), Read, GP),
        ],
    );
}

#[test]
fn the_stack_segment_has_an_exception_of_its_own() {
    all(
        Segment::Ss,
        BASE,
        false,
        &[
            (Protected, DATA, 0xfff, (0xffc, 4), Write, Ok(BASE + 0xffc)),
            (Protected, DATA, 0xfff, (0xffd, 4), Write, SS),
            (Protected, EXPAND_DOWN, 0xfff, (0xfff, 1), Write, SS),
            (Protected, UNUSABLE, u32::MAX, (0, 1), Read, SS),
            (Real, DATA_16, 0xffff, (0xffff, 2), Read, SS),
            (Long(48), DATA, 0, (0x8000_0000_0000, 1), Read, SS),
        ],
    );
}

#[test]
fn in_64_bit_mode_addresses_are_canonical_and_segments_have_no_limits() {
    const HIGH: u64 = 0xffff_8000_0000_0000;
    all(
        Segment::Ds,
        BASE,
        false,
        &[
            (Long(48), UNUSABLE, 0, (0x1_2345_6789, 8), Write, Ok(0x1_2345_6789)),
            (Long(48), UNUSABLE, 0, (0x7fff_ffff_ffff, 1), Read, Ok(0x7fff_ffff_ffff)),
            (Long(48), UNUSABLE, 0, (0x7fff_ffff_ffff, 2), Read, GP),
            (Long(48), UNUSABLE, 0, (0x8000_0000_0000, 1), Read, GP),
            (Long(48), UNUSABLE, 0, (HIGH - 1, 1), Read, GP),
            (Long(48), UNUSABLE, 0, (HIGH - 1, 2), Read, GP),
            (Long(48), UNUSABLE, 0, (HIGH, 1), Read, Ok(HIGH)),
            (Long(57), UNUSABLE, 0, (0x8000_0000_0000, 1), Read, Ok(0x8000_0000_0000)),
            (Long(57), UNUSABLE, 0, (1 << 56, 1), Read, GP),
        ],
    );
    all(
        Segment::Gs,
        0x7fff_ffff_f000,
        false,
        &[
            (Long(48), UNUSABLE, 0, (0xfff, 1), Write, Ok(0x7fff_ffff_ffff)),
            (Long(48), UNUSABLE, 0, (0x1000, 1), Write, GP),
            (Long(48), UNUSABLE, 0, (0x1000_u64.wrapping_neg(), 1), Write, Ok(0x7fff_ffff_e000)),
        ],
    );
}

#[test]
fn alignment_is_the_linear_addresss_and_is_checked_last() {
    all(
        Segment::Ds,
        BASE + 1,
        true,
        &[
            (Protected, DATA, 0xfff, (0, 1), Read, Ok(BASE + 1)),
            (Protected, DATA, 0xfff, (0, 2), Read, AC),
            (Protected, DATA, 0xfff, (1, 2), Read, Ok(BASE + 2)),
            (Protected, DATA, 0xfff, (1, 4), Write, AC),
            (Protected, DATA, 0xfff, (3, 4), Write, Ok(BASE + 4)),
            (Protected, DATA, 0xfff, (3, 8), Write, AC),
            (Protected, DATA, 0xfff, (0xffe, 4), Write, GP),
            (Protected, READ_ONLY, 0xfff, (0, 4), Write, GP),
            (Long(48), UNUSABLE, 0, (2, 4), Write, AC),
            (Long(48), UNUSABLE, 0, (0x7fff_ffff_fffe, 4), Write, GP),
        ],
    );
    all(Segment::Ss, BASE + 1, true, &[(Protected, DATA, 0xfff, (0, 4), Read, AC)]);
    all(Segment::Ds, BASE + 1, false, &[(Protected, DATA, 0xfff, (0, 2), Read, Ok(BASE + 1))]);
}
