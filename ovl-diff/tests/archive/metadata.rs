use ovl_diff::{BadReason, Timestamp};

use super::builder::{Header, entry, pax, refused};

fn file() -> Vec<u8> {
    Header::file("x").seal()
}

fn mtime(text: &str) -> (i64, u32) {
    let Timestamp { secs, nanos } = entry(&[&pax(&[("mtime", text.as_bytes())]), &file()]).mtime;
    (secs, nanos)
}

#[test]
fn row_105_attribute_names_that_linux_cannot_have_are_refused() {
    let long = format!("SCHILY.xattr.user.{}", "a".repeat(251));
    for key in [
        long.as_str(),
        "SCHILY.xattr.",
        "SCHILY.xattr.plain",
        "SCHILY.xattr..a",
        "SCHILY.xattr.user.",
    ] {
        let reason = refused(&[&pax(&[(key, b"1")]), &file()]);
        assert!(matches!(reason, BadReason::BadXattr { .. }), "{reason}");
    }
    let longest = format!("SCHILY.xattr.user.{}", "a".repeat(250));
    assert_eq!(
        entry(&[&pax(&[(&longest, b"1")]), &file()]).xattrs[0]
            .0
            .len(),
        255
    );
}

#[test]
fn row_107_owners_are_checked() {
    for key in ["uid", "gid"] {
        let id = |text: &str| {
            let entry = entry(&[&pax(&[(key, text.as_bytes())]), &file()]);
            if key == "uid" { entry.uid } else { entry.gid }
        };
        assert_eq!(id("2147483648"), 1 << 31);
        assert_eq!(id("4294967294"), u32::MAX - 1);
        for text in ["4294967295", "4294967296", "9223372036854775807"] {
            let reason = refused(&[&pax(&[(key, text.as_bytes())]), &file()]);
            assert!(
                matches!(reason, BadReason::IdOutOfRange { field, .. } if field == key),
                "{reason}"
            );
        }
    }
}

#[test]
fn row_107_owners_in_headers_are_checked() {
    for (at, name) in [(108, "uid"), (116, "gid")] {
        let good = entry(&[&Header::file("x")
            .set(at, b"\x80\0\0\0\xff\xff\xff\xfe")
            .seal()]);
        assert_eq!(if at == 108 { good.uid } else { good.gid }, u32::MAX - 1);
        let fields: [&[u8; 8]; 3] = [
            b"\x80\0\0\0\xff\xff\xff\xff",
            b"\x80\0\0\x01\0\0\0\0",
            &[0xff; 8],
        ];
        for field in fields {
            let reason = refused(&[&Header::file("x").set(at, field).seal()]);
            assert!(
                matches!(reason, BadReason::IdOutOfRange { field, .. } if field == name),
                "{reason}"
            );
            // A record makes the header's irrelevant.
            entry(&[
                &pax(&[(name, b"7")]),
                &Header::file("x").set(at, field).seal(),
            ]);
        }
    }
}

#[test]
fn row_109_names_of_owners_are_ignored() {
    let named = Header::file("x")
        .set(265, b"root\0")
        .set(297, b"\xff\xff")
        .seal();
    let got = entry(&[&pax(&[("uname", b"daemon"), ("gname", b"daemon")]), &named]);
    assert_eq!((got.uid, got.gid), (0, 0));
}

#[test]
fn row_110_modes_are_masked() {
    let mode = |field: &[u8]| entry(&[&Header::file("x").set(100, field).seal()]).mode;
    assert_eq!(mode(b"0007777\0"), 0o7777);
    assert_eq!(mode(b"0004755\0"), 0o4755);
    assert_eq!(mode(b"0100644\0"), 0o644);
    assert_eq!(mode(b"77777777"), 0o7777);
    let reason = refused(&[&Header::file("x").set(100, b"rw-r--r-").seal()]);
    assert!(
        matches!(reason, BadReason::BadNumber { field: "mode", .. }),
        "{reason}"
    );
}

#[test]
fn row_114_device_numbers_out_of_range_are_refused() {
    let device = |major: &[u8; 8], minor: &[u8; 8]| {
        [b'3', b'4'].map(|flag| {
            Header::new(flag, "x")
                .set(329, major)
                .set(337, minor)
                .seal()
        })
    };
    let cases: [(&[u8; 8], &[u8; 8]); 4] = [
        (b"0010000\0", b"0000000\0"),
        (b"0000000\0", b"4000000\0"),
        (&[0xff; 8], b"0000000\0"),
        (b"0000000\0", b"\x80\0\0\x01\0\0\0\0"),
    ];
    for (major, minor) in cases {
        for bytes in device(major, minor) {
            let reason = refused(&[&bytes]);
            assert!(matches!(reason, BadReason::BadDevice { .. }), "{reason}");
        }
    }
    for bytes in device(b"        ", &[0; 8]) {
        entry(&[&bytes]);
    }
}

#[test]
fn row_117_times_are_exact() {
    assert_eq!(mtime("0"), (0, 0));
    assert_eq!(mtime("-1"), (-1, 0));
    assert_eq!(mtime("-2147483649"), (-2_147_483_649, 0));
    assert_eq!(mtime("4294967296.25"), (1 << 32, 250_000_000));
    assert_eq!(mtime("4611686018427387904"), (1 << 62, 0));
    assert_eq!(
        mtime("9223372036854775807.999999999"),
        (i64::MAX, 999_999_999)
    );
    assert_eq!(mtime("-1.5"), (-2, 500_000_000));
    assert_eq!(mtime("-0.25"), (-1, 750_000_000));
    assert_eq!(mtime("-0"), (0, 0));
    assert_eq!(mtime("1."), (1, 0));
    assert_eq!(mtime("1795457326.58271991"), (1_795_457_326, 582_719_910));
}

#[test]
fn row_117_other_times_are_refused() {
    let bad = [
        "",
        "-",
        ".",
        ".5",
        "+1",
        " 1",
        "1e30",
        "1.5.5",
        "1.-5",
        "--1",
        "0x1",
        "1,5",
        "9223372036854775808",
        "-9223372036854775808",
        "1000000000000000000000000000000",
        "1.5 ",
        "nan",
    ];
    for text in bad {
        let reason = refused(&[&pax(&[("mtime", text.as_bytes())]), &file()]);
        assert!(
            matches!(reason, BadReason::BadNumber { field: "mtime", .. }),
            "{text}: {reason}"
        );
    }
}

#[test]
fn row_117_times_in_headers_may_be_negative() {
    let secs = |field: &[u8; 12]| {
        entry(&[&Header::file("x").set(136, field).seal()])
            .mtime
            .secs
    };
    assert_eq!(secs(&[0xff; 12]), -1);
    assert_eq!(
        secs(b"\xff\xff\xff\xff\xff\xff\xff\xff\x80\0\0\0"),
        -(1 << 31)
    );
    assert_eq!(
        secs(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"),
        i64::MAX
    );
    assert_eq!(secs(b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0"), i64::MIN);
    assert_eq!(secs(b"77777777777\0"), 0o77777777777);
    let reason = refused(&[&Header::file("x")
        .set(136, b"\x80\0\0\0\x80\0\0\0\0\0\0\0")
        .seal()]);
    assert!(
        matches!(reason, BadReason::BadNumber { field: "mtime", .. }),
        "{reason}"
    );
}

#[test]
fn row_118_parts_of_a_nanosecond_are_rounded_down() {
    assert_eq!(mtime("1.9999999999999"), (1, 999_999_999));
    assert_eq!(mtime("1.0000000009"), (1, 0));
    assert_eq!(mtime("-1.0000000000"), (-1, 0));
    assert_eq!(mtime("-1.0000000001"), (-2, 999_999_999));
    assert_eq!(mtime("-1.9999999991"), (-2, 0));
    assert_eq!(mtime("-0.0000000001"), (-1, 999_999_999));
}

#[test]
fn row_119_other_times_and_keys_are_ignored() {
    let got = entry(&[
        &pax(&[
            ("atime", b"nonsense"),
            ("ctime", b"-"),
            ("hdrcharset", b"BINARY"),
            ("LIBARCHIVE.xattr.user.a", b"MQ"),
            ("SCHILY.fflags", b"uchg"),
            ("VENDOR.key", b"\xff\0"),
        ]),
        &file(),
    ]);
    assert_eq!((got.mtime, got.xattrs), (Timestamp::default(), Vec::new()));
}
