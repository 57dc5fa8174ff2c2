use ovl_diff::{BadReason, EntryKind, ReadLimits};

use super::builder::{
    Header, archive, blame, blame_with, entries, entry, long, pax, read, record, refused,
};

fn file() -> Vec<u8> {
    Header::file("x").seal()
}

#[test]
fn row_064_pax_size_wins_over_a_header_without_size() {
    let bytes = archive(&[
        &pax(&[("size", b"600")]),
        &Header::file("x").with([7; 600]),
        &Header::file("y").seal(),
    ]);
    let (entries, _) = read(bytes.as_slice()).unwrap();
    assert_eq!(entries[0].0.size, 600);
    assert_eq!(entries[0].1, [7; 600]);
    assert_eq!(entries[1].0.path, b"y");
}

#[test]
fn row_064_two_different_sizes_are_refused() {
    for size in ["0", "511", "513", "1024"] {
        let reason = refused(&[
            &pax(&[("size", size.as_bytes())]),
            &Header::file("x").holding([7; 512]),
        ]);
        assert!(
            matches!(reason, BadReason::SizeConflict { header: 512, .. }),
            "{reason}"
        );
    }
    let same = entry(&[
        &pax(&[("size", b"512")]),
        &Header::file("x").holding([7; 512]),
    ]);
    assert_eq!(same.size, 512);
}

#[test]
fn row_064_pax_size_does_not_apply_to_an_extension_header_between() {
    let bytes = archive(&[
        &pax(&[("size", b"512")]),
        &long(b'L', "name"),
        &Header::file("x").gnu().with([7; 512]),
    ]);
    assert_eq!(entries(&bytes)[0].path, b"name");
}

#[test]
fn row_065_an_archive_in_a_payload_is_not_read() {
    let inner = Header::file("smuggled").holding("evil");
    let size = inner.len().to_string();
    let bytes = archive(&[
        &pax(&[("size", size.as_bytes())]),
        &Header::file("outer").with(&inner),
    ]);
    let (entries, _) = read(bytes.as_slice()).unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].1, inner);
}

#[test]
fn row_066_pax_numbers_are_digits_only() {
    for value in [
        "-1",
        "+5",
        " 5",
        "5 ",
        "0x10",
        "5\n",
        "",
        "9223372036854775808",
        "18446744073709551616",
    ] {
        for key in ["size", "uid", "gid"] {
            let reason = refused(&[&pax(&[(key, value.as_bytes())]), &file()]);
            assert!(
                matches!(&reason, BadReason::BadNumber { field, value: found, .. }
                    if *field == key && found == value.as_bytes()),
                "{reason}"
            );
        }
    }
}

#[test]
fn row_067_sizes_beyond_the_archive_are_refused() {
    let claims = archive(&[&pax(&[("size", b"9223372036854775807")]), &file()]);
    let mut limits = ReadLimits::default();
    assert!(matches!(
        blame(&claims).reason,
        BadReason::OutputLimit {
            max: 0x100_0000_0000,
            ..
        }
    ));
    limits.max_output_bytes = u64::MAX;
    assert!(matches!(
        blame_with(&claims, limits).reason,
        BadReason::Truncated {
            expected: 0x7fff_ffff_ffff_ffff,
            found: 1024,
            ..
        }
    ));
}

#[test]
fn row_068_malformed_records_are_refused() {
    let bad: [&[u8]; 15] = [
        b"9 note=ab",      // no newline
        b"10 note=ab",     // past the end
        b"11 note=ab\n\n", // a length that swallows the next byte
        b"8 note=a",       // no newline where the length ends
        b"0 note=a\n",     // no length
        b"00 note=a\n",
        b"2 note=a\n", // only itself
        b"1 a=b\n",
        b"note=a\n", // none at all
        b"-9 note=a\n",
        b"99999999999999999999999999 note=a\n",
        b"6 abc\n", // no '='
        b"5 =a\n",  // no key
        b"8\tnote=a\n",
        b"6 a=b\n\0", // padding inside
    ];
    for data in bad {
        let reason = refused(&[&Header::new(b'x', "x").holding(data), &file()]);
        assert!(
            matches!(reason, BadReason::BadPax { .. }),
            "{data:?}: {reason}"
        );
        let reason = refused(&[&Header::new(b'g', "g").holding(data), &file()]);
        assert!(
            matches!(reason, BadReason::BadPax { .. }),
            "{data:?}: {reason}"
        );
    }
    let reason = refused(&[&pax(&[("a\0b", b"c")]), &file()]);
    assert!(matches!(reason, BadReason::BadPax { .. }), "{reason}");
}

#[test]
fn row_068_errors_tell_the_record() {
    let data = [record("comment", "fine"), b"12 mtime=12;\n".to_vec()].concat();
    let bad = blame(&archive(&[
        &file(),
        &Header::new(b'x', "x").holding(data),
        &file(),
    ]));
    assert!(
        matches!(bad.reason, BadReason::BadPax { position: 16, .. }),
        "{bad}"
    );
    assert_eq!((bad.index, bad.offset), (1, 512));
}

#[test]
fn row_069_values_may_hold_newlines_equal_signs_and_zeros() {
    let value = b"\n12 uid=77\n\0=\xff\n";
    let got = entry(&[
        &pax(&[("SCHILY.xattr.user.a", value), ("uid", b"5")]),
        &file(),
    ]);
    assert_eq!(got.xattrs, [(b"user.a".to_vec(), value.to_vec())]);
    assert_eq!(got.uid, 5);
}

#[test]
fn row_070_content_of_anything_but_files_is_refused() {
    for typeflag in *b"123456" {
        let special = Header::new(typeflag, "x").link("y");
        let reason = refused(&[&special.clone().holding([0; 512])]);
        assert!(
            matches!(reason, BadReason::PayloadOnSpecial { size: 512, .. }),
            "{reason}"
        );
        let reason = refused(&[&pax(&[("size", b"1")]), &special.with([0; 512])]);
        assert!(
            matches!(reason, BadReason::PayloadOnSpecial { size: 1, .. }),
            "{reason}"
        );
    }
    let old_directory = Header::new(0, "dir/").holding([0; 512]);
    assert!(matches!(
        refused(&[&old_directory]),
        BadReason::PayloadOnSpecial { .. }
    ));
}

#[test]
fn row_071_mixed_extensions_are_refused_in_both_orders() {
    let member = Header::new(b'2', "x").link("y").gnu().seal();
    for (typeflag, key) in [(b'L', "path"), (b'K', "linkpath")] {
        for value in ["other", ""] {
            let (gnu, pax) = (long(typeflag, "name"), pax(&[(key, value.as_bytes())]));
            for pair in [[&gnu, &pax], [&pax, &gnu]] {
                let reason = refused(&[pair[0], pair[1], &member]);
                assert!(
                    matches!(reason, BadReason::AmbiguousExtension { .. }),
                    "{reason}"
                );
            }
        }
    }
}

#[test]
fn row_071_extensions_that_do_not_overlap_are_merged() {
    let got = entry(&[
        &pax(&[("uid", b"3000000"), ("linkpath", b"target")]),
        &long(b'L', "name"),
        &Header::new(b'2', "x").link("y").gnu().seal(),
    ]);
    assert_eq!(
        (got.path.as_slice(), got.uid),
        (b"name".as_slice(), 3_000_000)
    );
    assert_eq!(
        got.kind,
        EntryKind::Symlink {
            target: b"target".to_vec()
        }
    );
    let got = entry(&[
        &long(b'K', "t"),
        &long(b'L', "n"),
        &Header::new(b'1', "x").link("y").gnu().seal(),
    ]);
    assert_eq!(
        (got.path, got.kind),
        (
            b"n".to_vec(),
            EntryKind::HardLink {
                target: b"t".to_vec()
            }
        )
    );
}

#[test]
fn row_072_of_repeated_keys_the_last_counts() {
    let got = entry(&[
        &pax(&[
            ("path", b"first"),
            ("SCHILY.xattr.user.a", b"1"),
            ("SCHILY.xattr.user.b", b"2"),
            ("path", b"second"),
            ("SCHILY.xattr.user.a", b"3"),
            ("mtime", b"1"),
            ("mtime", b"2"),
        ]),
        &file(),
    ]);
    assert_eq!(got.path, b"second");
    assert_eq!(got.mtime.secs, 2);
    assert_eq!(
        got.xattrs,
        [
            (b"user.b".to_vec(), b"2".to_vec()),
            (b"user.a".to_vec(), b"3".to_vec())
        ]
    );
}

#[test]
fn row_073_empty_names_in_records_mean_the_headers() {
    let member = Header::new(b'2', "x").link("y").seal();
    let got = entry(&[
        &pax(&[("path", b"a"), ("path", b""), ("linkpath", b"")]),
        &member,
    ]);
    assert_eq!(
        (got.path, got.kind),
        (
            b"x".to_vec(),
            EntryKind::Symlink {
                target: b"y".to_vec()
            }
        )
    );
    for key in ["size", "uid", "gid", "mtime"] {
        let reason = refused(&[&pax(&[(key, b"")]), &file()]);
        assert!(matches!(reason, BadReason::BadNumber { .. }), "{reason}");
    }
}

#[test]
fn row_073_empty_attribute_values_are_values() {
    let got = entry(&[&pax(&[("SCHILY.xattr.user.a", b"")]), &file()]);
    assert_eq!(got.xattrs, [(b"user.a".to_vec(), Vec::new())]);
}

#[test]
fn row_074_global_headers_may_comment_but_not_rename_or_resize() {
    let global =
        |key, value: &str| Header::new(b'g', "pax_global_header").holding(record(key, value));
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let got = entry(&[
        &global("comment", commit),
        &global("mtime", "5"),
        &global("uid", "9"),
        &file(),
    ]);
    assert_eq!(
        (got.mtime.secs, got.uid, got.index, got.offset),
        (0, 0, 0, 3 * 1024)
    );
    for key in ["path", "linkpath", "size"] {
        let reason = refused(&[&global(key, "5"), &file()]);
        assert!(
            matches!(reason, BadReason::GlobalOverride { key: found, .. } if found == key),
            "{reason}"
        );
    }
    let reason = refused(&[&global("GNU.sparse.major", "1"), &file()]);
    assert!(
        matches!(
            reason,
            BadReason::GlobalOverride {
                key: "GNU.sparse",
                ..
            }
        ),
        "{reason}"
    );
}

#[test]
fn row_074_a_global_header_may_end_an_archive_but_not_split_a_member() {
    let global = Header::new(b'g', "g").holding(record("comment", "x"));
    assert_eq!(entries(&archive(&[&file(), &global])).len(), 1);
    let reason = refused(&[&pax(&[("uid", b"5")]), &global, &file()]);
    assert!(
        matches!(reason, BadReason::AmbiguousExtension { .. }),
        "{reason}"
    );
}

#[test]
fn row_075_extensions_without_an_entry_are_refused() {
    for extension in [pax(&[("uid", b"5")]), long(b'L', "n"), long(b'K', "t")] {
        assert_eq!(
            refused(&[&file(), &extension]),
            BadReason::DanglingExtension
        );
        assert_eq!(
            blame(&[file(), extension.clone()].concat()).reason,
            BadReason::DanglingExtension
        );
        let one_zero_block = [file(), extension, vec![0; 512]].concat();
        assert_eq!(blame(&one_zero_block).reason, BadReason::DanglingExtension);
    }
}

#[test]
fn row_076_extension_headers_are_capped_before_they_are_read() {
    for typeflag in *b"xgLK" {
        // Nothing follows: reading it would be a truncation.
        let huge = Header::new(typeflag, "x")
            .gnu()
            .size(8 * 1024 * 1024 * 1024 - 1)
            .seal();
        let reason = blame(&huge).reason;
        assert!(
            matches!(reason, BadReason::ExtensionTooLarge { max: 0x10_0000, .. }),
            "{reason}"
        );
    }
}

#[test]
fn row_076_the_cap_counts_all_extensions_of_an_entry() {
    let mut limits = ReadLimits::default();
    limits.max_extension_bytes = 600;
    let (name, target) = (long(b'L', [b'n'; 299]), long(b'K', [b't'; 299]));
    let member = Header::new(b'2', "x").link("y").gnu().seal();
    let bytes = archive(&[&name, &target, &member]);
    assert_eq!(
        super::builder::read_with(bytes.as_slice(), limits)
            .unwrap()
            .0
            .len(),
        1
    );
    let bytes = archive(&[&member, &pax(&[("comment", b"")]), &name, &target, &member]);
    let bad = blame_with(&bytes, limits);
    assert!(
        matches!(
            bad.reason,
            BadReason::ExtensionTooLarge {
                size: 612,
                max: 600,
                ..
            }
        ),
        "{bad}"
    );
    let globals = Header::new(b'g', "g").holding(record("comment", [b'c'; 300]));
    let bad = blame_with(&archive(&[&globals, &globals, &member]), limits);
    assert!(
        matches!(bad.reason, BadReason::ExtensionTooLarge { .. }),
        "{bad}"
    );
}

#[test]
fn row_077_extensions_do_not_repeat() {
    let uid = pax(&[("uid", b"5")]);
    for (extension, flag) in [
        (uid, b'x'),
        (long(b'L', "n"), b'L'),
        (long(b'K', "t"), b'K'),
    ] {
        let reason = refused(&[&extension, &extension, &file()]);
        assert!(
            matches!(reason, BadReason::RepeatedExtension { typeflag, .. } if typeflag == flag),
            "{reason}"
        );
        // Each entry may have its own.
        assert_eq!(
            entries(&archive(&[&extension, &file(), &extension, &file()])).len(),
            2
        );
    }
}

#[test]
fn extensions_apply_to_one_entry_only() {
    let bytes = archive(&[
        &pax(&[("uid", b"5"), ("path", b"a"), ("SCHILY.xattr.user.a", b"1")]),
        &file(),
        &file(),
    ]);
    let entries = entries(&bytes);
    assert_eq!(
        (
            entries[0].uid,
            entries[0].path.as_slice(),
            entries[0].xattrs.len()
        ),
        (5, b"a".as_slice(), 1)
    );
    assert_eq!(
        (
            entries[1].uid,
            entries[1].path.as_slice(),
            entries[1].xattrs.len()
        ),
        (0, b"x".as_slice(), 0)
    );
}

#[test]
fn very_many_attributes_take_linear_time() {
    let records: Vec<(String, Vec<u8>)> = (0..30_000_u32)
        .map(|n| {
            (
                format!("SCHILY.xattr.u.{}", n % 20_000),
                n.to_le_bytes().to_vec(),
            )
        })
        .collect();
    let records: Vec<(&str, &[u8])> = records
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_slice()))
        .collect();
    let got = entry(&[&pax(&records), &file()]);
    assert_eq!(got.xattrs.len(), 20_000);
    assert_eq!(
        got.xattrs[0],
        (b"u.10000".to_vec(), 10_000_u32.to_le_bytes().to_vec())
    );
}
