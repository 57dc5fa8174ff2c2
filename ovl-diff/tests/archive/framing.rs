use ovl_diff::{ArchiveWarning, BadReason, DeviceNumber, EntryKind, ReadLimits};

use super::builder::{END, Header, archive, blame, blame_with, entries, entry, pax, read, refused};

fn two_files() -> Vec<u8> {
    [
        Header::file("a").holding([1; 700]),
        Header::file("b").holding([2; 512]),
    ]
    .concat()
}

#[test]
fn row_067_numbers_in_fields_are_octal_or_base_256() {
    let size = |field: &[u8]| entry(&[&Header::file("x").set(124, field).with([0; 512])]).size;
    assert_eq!(size(b"00000000777\0"), 0o777);
    assert_eq!(size(b"        777\0"), 0o777);
    assert_eq!(size(b"777 \0\0\0\0\0\0\0\0"), 0o777);
    assert_eq!(size(b"000000000777"), 0o777);
    assert_eq!(size(b"\x80\0\0\0\0\0\0\0\0\0\x01\xff"), 0o777);
    assert_eq!(size(&[0; 12]), 0);
    assert_eq!(size(&[b' '; 12]), 0);
}

#[test]
fn row_067_other_numbers_are_refused() {
    let fields: [&[u8; 12]; 9] = [
        b"0000000077 1",
        b"00000000778\0",
        b"-0000000777\0",
        b"+0000000777\0",
        b"0x000000777\0",
        b"\x00000000777\0\0",
        b"777\x00777\0\0\0\0\0",
        b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x80\0\0\0\x80\0\0\0\0\0\0\0",
    ];
    for field in fields {
        let reason = refused(&[&Header::file("x").set(124, field).with([0; 512])]);
        assert!(
            matches!(&reason, BadReason::BadNumber { field: "size", value, .. } if value == field),
            "{field:?}: {reason}"
        );
    }
}

#[test]
fn row_082_truncation_is_an_error_at_every_byte() {
    // A header, 700 bytes in two blocks, a header, one block.
    let whole = two_files();
    for len in 1..whole.len() {
        // Between entries only the end marker is missing.
        if len == 3 * 512 {
            assert_eq!(entries(&whole[..len]).len(), 1);
            continue;
        }
        let bad = blame(&whole[..len]);
        let (part, expected, found) = match len {
            // Without the magic there is nothing that says tar.
            ..262 => {
                assert!(
                    matches!(bad.reason, BadReason::NotAnArchive { .. }),
                    "{len}: {bad}"
                );
                continue;
            }
            262..512 => ("a header", 512, len),
            512..1212 => ("the entry's content", 700, len - 512),
            1212..1536 => ("the padding after the entry's content", 324, len - 1212),
            1536..2048 => ("a header", 512, len - 1536),
            _ => ("the entry's content", 512, len - 2048),
        };
        let BadReason::Truncated {
            part: bad_part,
            expected: bad_expected,
            found: bad_found,
            ..
        } = bad.reason
        else {
            panic!("{len}: {bad}");
        };
        assert_eq!(
            (bad_part, bad_expected, bad_found),
            (part, expected, found as u64),
            "{len}"
        );
        let (index, offset, name) = match len {
            ..512 => (0, 0, b"".as_slice()),
            512..1536 => (0, 0, b"a".as_slice()),
            1536..2048 => (1, 1536, b"".as_slice()),
            _ => (1, 1536, b"b".as_slice()),
        };
        assert_eq!(
            (bad.index, bad.offset, bad.name.as_slice()),
            (index, offset, name),
            "{len}"
        );
    }
}

#[test]
fn row_082_truncated_extension_headers_are_an_error() {
    let whole = [pax(&[("comment", &[b'c'; 600])]), Header::file("x").seal()].concat();
    for len in 513..whole.len() - 512 {
        assert!(
            matches!(blame(&whole[..len]).reason, BadReason::Truncated { .. }),
            "{len}"
        );
    }
}

#[test]
fn row_083_missing_end_blocks_are_a_warning() {
    for found in 0..=2 {
        let bytes = [two_files(), vec![0; 512 * found]].concat();
        let (entries, summary) = read(bytes.as_slice()).unwrap();
        assert_eq!((entries.len(), summary.entries), (2, 2));
        assert_eq!(summary.uncompressed_bytes, bytes.len() as u64);
        match summary.warnings.as_slice() {
            [] => assert_eq!(found, 2),
            [
                ArchiveWarning::MissingEndBlocks {
                    found: reported, ..
                },
            ] => {
                assert_eq!(usize::from(*reported), found);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn row_084_bytes_after_the_end_are_counted_and_hashed() {
    let plain = archive(&[&two_files()]);
    let padded = [plain.as_slice(), &[0; 9000]].concat();
    let trailing = [padded.as_slice(), b"x", &Header::file("hidden").seal()].concat();
    let ids: Vec<_> = [&plain, &padded, &trailing]
        .map(|bytes| {
            let (entries, summary) = read(bytes.as_slice()).unwrap();
            assert_eq!(entries.len(), 2);
            assert_eq!(summary.uncompressed_bytes, bytes.len() as u64);
            let warned = matches!(summary.warnings.as_slice(),
                [ArchiveWarning::TrailingData { offset, .. }] if *offset == padded.len() as u64);
            assert_eq!(warned, bytes == &trailing);
            summary.diff_id
        })
        .into();
    assert!(ids[0] != ids[1] && ids[1] != ids[2]);
}

#[test]
fn row_085_a_single_zero_block_before_more_is_refused() {
    let hidden = Header::file("hidden").seal();
    let bytes = archive(&[&two_files(), &[0; 512], &hidden]);
    let bad = blame(&bytes);
    assert_eq!(
        (bad.reason, bad.index, bad.offset),
        (BadReason::BadEof, 2, 2560)
    );
    // Nor is a second block that is cut.
    assert_eq!(
        blame(&[two_files(), vec![0; 700]].concat()).reason,
        BadReason::BadEof
    );
}

#[test]
fn row_086_signed_checksums_are_accepted_and_wrong_ones_are_not() {
    let header = Header::file(b"caf\xc3\xa9");
    let sealed = header.clone().seal();
    let unsigned = u32::from_str_radix(std::str::from_utf8(&sealed[148..154]).unwrap(), 8).unwrap();
    let with_sum = |sum: u32| {
        archive(&[
            &Header::file("a").seal(),
            &header
                .clone()
                .set(148, format!("{sum:06o}\0 ").as_bytes())
                .0,
        ])
    };
    assert_eq!(entries(&with_sum(unsigned))[1].path, b"caf\xc3\xa9");
    assert_eq!(entries(&with_sum(unsigned - 512))[1].path, b"caf\xc3\xa9");
    for wrong in [unsigned + 1, unsigned - 256, unsigned - 513, 0] {
        let bad = blame(&with_sum(wrong));
        assert!(matches!(bad.reason, BadReason::BadChecksum { .. }), "{bad}");
        assert_eq!(
            (bad.index, bad.offset, bad.name.as_slice()),
            (1, 512, b"caf\xc3\xa9".as_slice())
        );
    }
}

#[test]
fn row_087_known_formats_are_read() {
    let magics: [&[u8; 8]; 3] = [b"ustar\x0000", b"ustar\0\0\0", b"ustar  \0"];
    for magic in magics {
        assert_eq!(
            entry(&[&Header::new(b'5', "d").set(257, magic).seal()]).kind,
            EntryKind::Directory
        );
    }
    for typeflag in [0, b'0', b'1', b'2', b'5'] {
        entry(&[&Header::new(typeflag, "x")
            .link("y")
            .set(257, &[0; 8])
            .seal()]);
    }
}

#[test]
fn row_087_unknown_formats_are_refused() {
    let first = Header::file("first").seal();
    let magics: [&[u8; 8]; 5] = [
        b"ustar\x0099",
        b"ustar 00",
        b"USTAR\x0000",
        b"ustar   ",
        b"\0\0\0\0\0\x0000",
    ];
    for magic in magics {
        let reason = refused(&[&first, &Header::file("x").set(257, magic).seal()]);
        assert!(
            matches!(&reason, BadReason::UnknownMagic { magic: found, .. } if found == magic),
            "{reason}"
        );
    }
    for typeflag in *b"xgLK346S7" {
        let reason = refused(&[&first, &Header::new(typeflag, "x").set(257, &[0; 8]).seal()]);
        assert!(matches!(reason, BadReason::UnknownMagic { .. }), "{reason}");
    }
}

#[test]
fn row_088_unknown_types_are_refused() {
    for flag in *b"ADIMNVXYZaz89\x01\xff " {
        let reason = refused(&[&Header::new(flag, "x").gnu().seal()]);
        assert!(
            matches!(reason, BadReason::UnsupportedType { typeflag, .. } if typeflag == flag),
            "{reason}"
        );
    }
}

#[test]
fn every_type_of_a_layer_is_read() {
    let bytes = archive(&[
        &Header::new(b'5', "dir/").seal(),
        &Header::file("file").holding("hello"),
        &Header::new(b'7', "contiguous").holding("hello"),
        &Header::new(b'2', "symlink").link("../x").seal(),
        &Header::new(b'1', "hardlink").link("file").seal(),
        &Header::new(b'3', "char")
            .set(329, b"0000001\0")
            .set(337, b"0000003\0")
            .seal(),
        &Header::new(b'4', "block")
            .set(329, b"0007777\0")
            .set(337, b"3777777\0")
            .seal(),
        &Header::new(b'6', "fifo").seal(),
    ]);
    let kinds: Vec<_> = entries(&bytes)
        .into_iter()
        .map(|entry| entry.kind)
        .collect();
    let device = |major, minor| DeviceNumber { major, minor };
    assert_eq!(
        kinds,
        [
            EntryKind::Directory,
            EntryKind::Regular,
            EntryKind::Regular,
            EntryKind::Symlink {
                target: b"../x".to_vec()
            },
            EntryKind::HardLink {
                target: b"file".to_vec()
            },
            EntryKind::CharDevice(device(1, 3)),
            EntryKind::BlockDevice(device(0xfff, 0xf_ffff)),
            EntryKind::Fifo,
        ]
    );
}

#[test]
fn what_is_no_archive_is_told_apart_from_a_broken_one() {
    let cases: [(&[u8], &str); 9] = [
        (b"", "empty"),
        (b"hello", "shorter"),
        (&[0; 511], "shorter"),
        (&[b'x'; 2000], "does not start"),
        (b"PK\x03\x04....", "zip"),
        (b"\x7fELF....", "ELF"),
        (b"{\"schemaVersion\": 2}", "JSON"),
        (b"<!doctype html>", "HTML"),
        (b"!<arch>\ndebian-binary", "Debian"),
    ];
    for (bytes, word) in cases {
        let bad = blame(bytes);
        assert!(
            matches!(bad.reason, BadReason::NotAnArchive { .. }),
            "{bad}"
        );
        let text = bad.to_string();
        assert!(
            text.starts_with("this is not a layer archive: ") && text.contains(word),
            "{text}"
        );
    }
    let mut broken = archive(&[&Header::file("x").seal()]);
    broken[0] = b'y';
    assert!(matches!(
        blame(&broken).reason,
        BadReason::BadChecksum { .. }
    ));
}

#[test]
fn an_archive_may_be_empty() {
    let (entries, summary) = read(END.as_slice()).unwrap();
    assert!(entries.is_empty() && summary.warnings.is_empty());
    assert_eq!((summary.entries, summary.uncompressed_bytes), (0, 1024));
    assert_eq!(
        summary.diff_id.to_string(),
        "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
    );
}

#[test]
fn row_012_entries_are_limited() {
    let bytes = archive(&[&Header::file("x").seal().repeat(10)]);
    let mut limits = ReadLimits::default();
    limits.max_entries = 10;
    assert_eq!(
        super::builder::read_with(bytes.as_slice(), limits)
            .unwrap()
            .0
            .len(),
        10
    );
    limits.max_entries = 9;
    let bad = blame_with(&bytes, limits);
    assert!(
        matches!(bad.reason, BadReason::EntryLimit { max: 9, .. }),
        "{bad}"
    );
    assert_eq!((bad.index, bad.offset), (9, 9 * 512));
}
