//! Rounding, and what limits can be set.

use ovl_quota::{BasicBlocks, Bytes, Limits, LimitsError, Usage};
use proptest::prelude::*;

#[test]
fn a_part_of_a_block_is_one_block_and_never_none() {
    for bytes in 1..=512 {
        assert_eq!(
            Bytes::new(bytes).to_blocks_ceil(),
            Some(BasicBlocks::new(1)),
            "{bytes}"
        );
    }
    assert_eq!(Bytes::new(513).to_blocks_ceil(), Some(BasicBlocks::new(2)));
    assert_eq!(Bytes::ZERO.to_blocks_ceil(), Some(BasicBlocks::new(0)));
    assert_eq!(Bytes::new(511).to_blocks_floor(), BasicBlocks::new(0));
    assert_eq!(Bytes::new(1023).to_blocks_floor(), BasicBlocks::new(1));
}

#[test]
fn blocks_that_64_bits_of_bytes_do_not_count_are_refused() {
    assert_eq!(Bytes::new(u64::MAX).to_blocks_ceil(), None);
    assert_eq!(Bytes::new(u64::MAX - 510).to_blocks_ceil(), None);
    assert_eq!(
        Bytes::new(u64::MAX - 511).to_blocks_ceil(),
        Some(BasicBlocks::new((1 << 55) - 1))
    );
    assert_eq!(BasicBlocks::new(1 << 55).to_bytes(), None);
}

#[test]
fn limits_that_would_mean_no_limit_are_refused() {
    let bytes = |bytes| Limits::UNLIMITED.bytes(Some(Bytes::new(bytes))).rounded();
    let inodes = |inodes| Limits::UNLIMITED.inodes(Some(inodes)).rounded();
    assert_eq!(bytes(0), Err(LimitsError::ZeroBytes));
    assert_eq!(inodes(0), Err(LimitsError::ZeroInodes));
    assert_eq!(bytes(1).unwrap().bytes, Some(Bytes::new(512)));
    assert_eq!(inodes(1).unwrap().inodes, Some(1));
    assert_eq!(Limits::UNLIMITED.rounded(), Ok(Limits::UNLIMITED));
    assert_eq!(Limits::default(), Limits::UNLIMITED);
}

#[test]
fn limits_beyond_63_bits_are_refused_with_the_number() {
    let bytes = |bytes| Limits::UNLIMITED.bytes(Some(bytes)).rounded();
    assert_eq!(
        bytes(Limits::MAX_BYTES).unwrap().bytes,
        Some(Limits::MAX_BYTES)
    );
    for too_many in [Limits::MAX_BYTES.get() + 1, 1 << 63, u64::MAX] {
        let error = bytes(Bytes::new(too_many)).unwrap_err();
        assert!(
            matches!(error, LimitsError::TooManyBytes { bytes, .. } if bytes.get() == too_many)
        );
    }
    let error = Limits::UNLIMITED
        .inodes(Some(1 << 63))
        .rounded()
        .unwrap_err();
    assert!(matches!(error, LimitsError::TooManyInodes { inodes, .. } if inodes == 1 << 63));
}

#[test]
fn what_is_left_is_never_negative_and_absent_without_a_limit() {
    let limits = Limits::new(Some(Bytes::new(1024)), Some(3));
    let usage = Usage::new(Bytes::new(4096), 2, limits);
    assert_eq!(usage.bytes_left(), Some(Bytes::ZERO));
    assert_eq!(usage.inodes_left(), Some(1));
    let free = Usage::new(Bytes::new(4096), 2, Limits::UNLIMITED);
    assert_eq!((free.bytes_left(), free.inodes_left()), (None, None));
    assert!(!free.is_empty() && Usage::default().is_empty());
}

#[test]
fn values_display_with_their_units() {
    assert_eq!(Bytes::ZERO.to_string(), "0 B");
    assert_eq!(Bytes::new(1 << 60).to_string(), "1024 PiB");
    assert_eq!(BasicBlocks::new(3).to_string(), "3 blocks of 512 bytes");
    let limits = Limits::new(Some(Bytes::new(5 << 20)), Some(100));
    let usage = Usage::new(Bytes::new(4096), 7, limits);
    assert_eq!(
        usage.to_string(),
        "4 KiB and 7 inodes in use, limit: 5 MiB and 100 inodes"
    );
    assert_eq!(Limits::UNLIMITED.to_string(), "no limit");
}

proptest! {
    #[test]
    fn rounding_adds_less_than_a_block(bytes in 1..=Limits::MAX_BYTES.get()) {
        let rounded = Limits::UNLIMITED.bytes(Some(Bytes::new(bytes))).rounded().unwrap();
        let rounded = rounded.bytes.unwrap().get();
        prop_assert_eq!(rounded % BasicBlocks::SIZE, 0);
        prop_assert!(rounded >= bytes && rounded - bytes < BasicBlocks::SIZE);
    }

    #[test]
    fn rounding_twice_changes_nothing(bytes in 1..=u64::MAX, inodes in 1..=u64::MAX) {
        if let Ok(once) = Limits::new(Some(Bytes::new(bytes)), Some(inodes)).rounded() {
            prop_assert_eq!(once.rounded(), Ok(once));
        }
    }

    #[test]
    fn floor_and_ceil_enclose_the_bytes(bytes in 0..=u64::MAX - 511) {
        let size = Bytes::new(bytes);
        let (floor, ceil) = (size.to_blocks_floor(), size.to_blocks_ceil().unwrap());
        prop_assert!(floor.to_bytes().unwrap() <= size && size <= ceil.to_bytes().unwrap());
        prop_assert!(ceil.get() - floor.get() <= 1);
    }
}
