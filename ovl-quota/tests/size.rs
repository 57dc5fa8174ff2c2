//! Docker's size syntax.

use ovl_quota::{Bytes, SizeError, parse_size};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
const PIB: u64 = 1 << 50;

#[test]
fn forms_that_docker_accepts_mean_the_same_here() {
    let forms = [
        ("1", 1),
        ("511", 511),
        ("32", 32),
        ("32b", 32),
        ("32 B", 32),
        ("32k", 32 * KIB),
        ("32K", 32 * KIB),
        ("32kb", 32 * KIB),
        ("32Kb", 32 * KIB),
        ("32Kib", 32 * KIB),
        ("32KIB", 32 * KIB),
        ("32Mb", 32 * MIB),
        ("32Gb", 32 * GIB),
        ("32 gib", 32 * GIB),
        ("32Tb", 32 * TIB),
        ("32Pb", 32 * PIB),
        ("32P", 32 * PIB),
        ("32.3", 32),
        ("32.5 B", 32),
        ("32.3 mb", 33_869_004),
        ("0.3MB", 314_572),
        (".5k", 512),
        ("5.k", 5 * KIB),
        ("007", 7),
    ];
    for (text, bytes) in forms {
        assert_eq!(parse_size(text), Ok(Bytes::new(bytes)), "{text:?}");
    }
}

#[test]
fn forms_that_docker_refuses_are_refused() {
    for text in [
        "", " ", ".", " . ", "hello", "b", "k", "-32", "-32 B", " 32 ", " 10G", "32  b",
    ] {
        assert!(parse_size(text).is_err(), "{text:?}");
    }
    for text in [
        "32m b", "32bm", "32bb", "32 b b", "32b.", "32kbi", "32ki", "32i", "32kk", "10GB!", "1.2.3",
    ] {
        assert!(parse_size(text).is_err(), "{text:?}");
    }
    for text in [
        "32e", "32eb", "32EiB", "inf", "nan", "0x10", "1_000", "1,5g", "٣k", "3µ",
    ] {
        assert!(parse_size(text).is_err(), "{text:?}");
    }
}

#[test]
fn forms_that_docker_takes_for_something_else_are_refused() {
    for text in ["1e3", "1e30", "1E3k", "+5", "32 ", "\t5", "5\n"] {
        assert!(parse_size(text).is_err(), "{text:?}");
    }
    // "no limit" for Docker.
    for text in ["0", "0b", "0 GiB", "0.0", "0.9", "0.0009k", "00"] {
        assert!(
            matches!(parse_size(text), Err(SizeError::Zero { .. })),
            "{text:?}"
        );
    }
    assert!(matches!(parse_size("-0"), Err(SizeError::Signed { .. })));
}

#[test]
fn each_mistake_has_its_own_error() {
    assert_eq!(parse_size(""), Err(SizeError::Empty));
    assert!(matches!(parse_size("-1"), Err(SizeError::Signed { input, .. }) if input == "-1"));
    assert!(
        matches!(parse_size(" 10G"), Err(SizeError::NotANumber { input, .. }) if input == " 10G")
    );
    let unit = |text| match parse_size(text) {
        Err(SizeError::UnknownUnit { unit, .. }) => unit,
        other => panic!("{text:?}: {other:?}"),
    };
    assert_eq!(unit("10GB!"), "GB!");
    assert_eq!(unit("1e30"), "e30");
    assert_eq!(unit("32 "), " ");
}

#[test]
fn sizes_beyond_63_bits_are_refused_instead_of_wrapping() {
    let largest = i64::MAX as u64;
    assert_eq!(parse_size(&largest.to_string()), Ok(Bytes::new(largest)));
    for text in [
        "9223372036854775808",
        "18446744073709551616",
        "8192p",
        "99999999999999999999p",
    ] {
        assert!(
            matches!(parse_size(text), Err(SizeError::TooLarge { .. })),
            "{text:?}"
        );
    }
    assert_eq!(
        parse_size("8191.99999p").map(|size| size < Bytes::new(largest)),
        Ok(true)
    );
}

#[test]
fn fractions_are_exact_for_any_number_of_digits() {
    // 2^-50 has 50 decimal places: a part less, and a byte less is left.
    let smallest = "0.00000000000000088817841970012523233890533447265625";
    assert_eq!(parse_size(&format!("{smallest}p")), Ok(Bytes::new(1)));
    let less = smallest.replace("7265625", "7265624");
    assert_ne!(less, smallest);
    assert!(matches!(
        parse_size(&format!("{less}p")),
        Err(SizeError::Zero { .. })
    ));
    let nines = format!("1.{}p", "9".repeat(10_000));
    assert_eq!(parse_size(&nines), Ok(Bytes::new(2 * PIB - 1)));
}

proptest! {
    #[test]
    fn whole_sizes_are_the_number_times_the_unit(
        number in 1_u64..8192,
        (unit, factor) in prop::sample::select(vec![
            ("", 1), ("b", 1), (" b", 1), ("k", KIB), (" kb", KIB), ("KiB", KIB), ("m", MIB),
            ("mB", MIB), (" MIB", MIB), ("G", GIB), ("gb", GIB), (" gib", GIB), ("t", TIB),
            ("Tb", TIB), (" TiB", TIB), ("P", PIB), ("PB", PIB), (" pib", PIB),
        ]),
    ) {
        let expected = number.checked_mul(factor).filter(|&bytes| bytes <= i64::MAX as u64);
        prop_assert_eq!(parse_size(&format!("{number}{unit}")).ok(), expected.map(Bytes::new));
    }

    #[test]
    fn fractions_round_down_to_a_byte(whole in 0_u64..1000, thousandths in 0_u64..1000) {
        let expected = (whole * 1000 + thousandths) * GIB / 1000;
        let parsed = parse_size(&format!("{whole}.{thousandths:03}g"));
        prop_assert_eq!(parsed.ok(), (expected > 0).then_some(Bytes::new(expected)));
    }

    #[test]
    fn what_is_displayed_is_read_back(bytes in 1..=i64::MAX as u64, shift in 0_u32..50) {
        for size in [Bytes::new(bytes), Bytes::new((bytes >> shift << shift).max(1))] {
            prop_assert_eq!(parse_size(&size.to_string()), Ok(size));
        }
    }

    #[test]
    fn no_text_panics_and_none_gives_zero(text in "[ 0-9.kKmgtpbiBe+-]{0,12}|.{0,8}") {
        if let Ok(size) = parse_size(&text) {
            prop_assert!(size > Bytes::ZERO);
        }
    }
}
