//! Sparse files in the four formats of GNU tar.

use ovl_diff::{ArchiveReader, BadReason, ReadLimits};

use super::builder::{
    Header, archive, blame, blame_with, long, pax, read, read_with, record, refused,
};

/// Offsets and lengths.
pub(super) type Map<'a> = &'a [(u64, u64)];

fn octal(number: u64) -> Vec<u8> {
    format!("{number:011o}\0").into_bytes()
}

fn slots(map: Map<'_>, len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = map
        .iter()
        .flat_map(|(offset, len)| [octal(*offset), octal(*len)].concat())
        .collect();
    bytes.resize(len, 0);
    bytes
}

/// The old format; what does not fit the header follows in blocks of 21.
fn old(map: Map<'_>, real: u64, data: &[u8]) -> Vec<u8> {
    let (first, rest) = map.split_at(map.len().min(4));
    let mut bytes = Header::new(b'S', "sparse")
        .gnu()
        .size(data.len() as u64)
        .set(386, &slots(first, 96))
        .set(482, &[u8::from(!rest.is_empty())])
        .set(483, &octal(real))
        .seal();
    let mut blocks = rest.chunks(21).peekable();
    while let Some(block) = blocks.next() {
        bytes.extend(slots(block, 504));
        bytes.push(u8::from(blocks.peek().is_some()));
        bytes.extend([0; 7]);
    }
    bytes.extend(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn records(records: &[(&str, &str)], header: Header, data: &[u8]) -> Vec<u8> {
    let records: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(&format!("GNU.sparse.{key}"), value))
        .collect();
    let extension = Header::new(b'x', "PaxHeaders/x").holding(records);
    [extension, header.holding(data)].concat()
}

fn pax_0_0(map: Map<'_>, real: u64, data: &[u8]) -> Vec<u8> {
    let (size, count) = (real.to_string(), map.len().to_string());
    let numbers: Vec<_> = map
        .iter()
        .map(|(offset, len)| (offset.to_string(), len.to_string()))
        .collect();
    let mut all = vec![("size", &*size), ("numblocks", &*count)];
    for (offset, len) in &numbers {
        all.extend([("offset", &**offset), ("numbytes", len)]);
    }
    records(&all, Header::file("sparse"), data)
}

fn pax_0_1(map: Map<'_>, real: u64, data: &[u8]) -> Vec<u8> {
    let (size, count) = (real.to_string(), map.len().to_string());
    let numbers: Vec<_> = map
        .iter()
        .flat_map(|(offset, len)| [offset.to_string(), len.to_string()])
        .collect();
    let all = [
        ("size", &*size),
        ("numblocks", &count),
        ("name", "sparse"),
        ("map", &numbers.join(",")),
    ];
    records(&all, Header::file("GNUSparseFile.7/sparse"), data)
}

fn pax_1_0(map: Map<'_>, real: u64, data: &[u8]) -> Vec<u8> {
    let lines: String = map
        .iter()
        .map(|(offset, len)| format!("{offset}\n{len}\n"))
        .collect();
    pax_1_0_with(&format!("{}\n{lines}", map.len()), real, data)
}

fn pax_1_0_with(map: &str, real: u64, data: &[u8]) -> Vec<u8> {
    let mut content = map.as_bytes().to_vec();
    content.resize(content.len().next_multiple_of(512), 0);
    content.extend(data);
    let all = [
        ("major", "1"),
        ("minor", "0"),
        ("name", "sparse"),
        ("realsize", &*real.to_string()),
    ];
    records(&all, Header::file("GNUSparseFile.7/sparse"), &content)
}

pub(super) type Format = fn(Map<'_>, u64, &[u8]) -> Vec<u8>;
pub(super) const FORMATS: [(&str, Format); 4] = [
    ("old", old),
    ("0.0", pax_0_0),
    ("0.1", pax_0_1),
    ("1.0", pax_1_0),
];

/// What a map makes of data.
fn expanded(map: Map<'_>, real: u64, data: &[u8]) -> Vec<u8> {
    let mut content = vec![0; usize::try_from(real).unwrap()];
    let mut at = 0;
    for (offset, len) in map {
        let (offset, len) = (
            usize::try_from(*offset).unwrap(),
            usize::try_from(*len).unwrap(),
        );
        content[offset..offset + len].copy_from_slice(&data[at..at + len]);
        at += len;
    }
    content
}

#[test]
fn row_078_all_four_sparse_formats_read_the_same() {
    let many: Vec<(u64, u64)> = (0..60).map(|run| (run * 3000, 512)).collect();
    let maps: [(Map<'_>, u64); 8] = [
        (&[], 0),
        (&[], 5000),
        (&[(5000, 0)], 5000),
        (&[(0, 1000)], 1000),
        (&[(0, 512), (512, 1024), (2000, 0), (9000, 1)], 9001),
        (&[(1, 512), (4096, 4097), (20_000, 0)], 20_000),
        (
            &[(0, 512), (600, 512), (1200, 512), (2000, 512), (3000, 7)],
            3007,
        ),
        (&many, 200_000),
    ];
    for (format, write) in FORMATS {
        for (map, real) in maps {
            let len: u64 = map.iter().map(|(_, len)| len).sum();
            let data: Vec<u8> = (1..=250).cycle().take(len as usize).collect();
            let bytes = archive(&[&write(map, real, &data), &Header::file("next").holding("n")]);
            let (entries, summary) = read(bytes.as_slice()).unwrap();
            let (entry, content) = &entries[0];
            assert_eq!(entry.path, b"sparse", "{format}");
            assert_eq!((entry.size, entry.stored), (real, len), "{format}");
            assert!(*content == expanded(map, real, &data), "{format} {map:?}");
            assert_eq!(
                (entries[1].0.path.as_slice(), &*entries[1].1),
                (&b"next"[..], &b"n"[..])
            );
            assert_eq!((summary.entries, summary.warnings), (2, vec![]));
        }
    }
}

#[test]
fn a_reader_that_skips_holes_sees_only_data() {
    let map: Map<'_> = &[(10, 512), (1 << 31, 3), (1 << 32, 0)];
    let data = [&[7; 512][..], b"end"].concat();
    for (format, write) in FORMATS {
        let bytes = archive(&[
            &write(map, 1 << 32, &data),
            &Header::file("next").holding("n"),
        ]);
        let mut reader = ArchiveReader::new(bytes.as_slice(), ReadLimits::default());
        let entry = reader.next_entry().unwrap().unwrap();
        let (mut found, mut buffer, mut offset) = (Vec::new(), [0; 500], 0);
        while offset < entry.size {
            offset += reader.skip_hole();
            let len = reader.read_payload(&mut buffer).unwrap();
            found.push((offset, buffer[..len].to_vec()));
            offset += len as u64;
        }
        let expected = [
            (10, vec![7; 500]),
            (510, vec![7; 12]),
            (1 << 31, b"end".to_vec()),
            (1 << 32, vec![]),
        ];
        assert_eq!(found, expected, "{format}");
        assert_eq!(
            (
                reader.skip_hole(),
                reader.read_payload(&mut buffer).unwrap()
            ),
            (0, 0)
        );
        assert_eq!(reader.next_entry().unwrap().unwrap().path, b"next");
        // A file without a map has no hole, and what is skipped is not read.
        assert_eq!(reader.skip_hole(), 0);
        assert!(reader.next_entry().unwrap().is_none());
        assert_eq!(reader.read_payload(&mut buffer).unwrap(), 0);
        reader.finish().unwrap();
    }
}

#[test]
fn row_079_runs_that_overlap_descend_or_leave_the_file_are_refused() {
    let overlap = "it begins before the end of the one before";
    let outside = "it goes past the end of the file";
    let unaligned = "the runs before it are not whole blocks of 512 bytes";
    let maps: [(Map<'_>, u64, &str); 8] = [
        (&[(0, 5), (500, 5)], 1, unaligned),
        (&[(0, 512), (512, 5), (600, 1)], 2, unaligned),
        (&[(0, 5), (4, 5)], 1, overlap),
        (&[(100, 5), (0, 5)], 1, overlap),
        (&[(5, 5), (5, 5)], 1, overlap),
        (&[(0, 5), (996, 5)], 1, outside),
        (&[(0, 5), (1001, 0)], 1, outside),
        (&[(0, 5), (8_589_934_591, 5)], 1, outside),
    ];
    for (format, write) in FORMATS {
        for (map, wrong, expected) in maps {
            let good = Header::file("good").holding("x");
            let bad = write(map, 1000, &[7; 10]);
            let bad = blame(&archive(&[&good, &bad]));
            assert!(
                matches!(bad.reason, BadReason::BadSparseRun { number, problem, .. }
                    if number == wrong && problem == expected),
                "{format}: {bad}"
            );
            assert_eq!((bad.index, &*bad.name), (1, &b"sparse"[..]), "{format}");
            assert!(bad.offset >= 1024, "{bad}");
        }
    }
    let text = blame(&archive(&[&pax_0_1(&[(0, 5), (4, 5)], 9, &[7; 10])])).to_string();
    assert!(
        text.contains("entry 0 \"sparse\" at byte 1024: run 1 of the sparse map, 5 bytes at 4"),
        "{text}"
    );
}

#[test]
fn row_079_a_map_of_more_or_less_than_is_there_is_refused() {
    for (format, write) in FORMATS {
        for (map, stored) in [
            (&[(0, 5)][..], 6),
            (&[(0, 5)], 4),
            (&[], 1),
            (&[(3, 600)], 0),
        ] {
            let mapped = map.iter().map(|(_, len)| len).sum::<u64>();
            assert_eq!(
                refused(&[&write(map, 1000, &vec![7; stored])]),
                reason_mismatch(mapped, stored as u64),
                "{format}"
            );
        }
    }
}

fn reason_mismatch(mapped: u64, stored: u64) -> BadReason {
    let reason = refused(&[&pax_0_1(&[(0, mapped)], 1000, &vec![7; stored as usize])]);
    assert!(
        matches!(reason, BadReason::SparseMismatch { mapped: m, stored: s, .. } if (m, s) == (mapped, stored)),
        "{reason}"
    );
    reason
}

#[test]
fn row_079_slots_used_in_part_or_after_the_end_are_refused() {
    let base = || {
        Header::new(b'S', "sparse")
            .gnu()
            .size(5)
            .set(483, &octal(100))
    };
    let slot = |offset: u64, len: u64| [octal(offset), octal(len)].concat();
    let bad = [
        // Only an offset, only a length.
        base().set(386, &octal(5)).holding("hello"),
        base().set(398, &octal(5)).holding("hello"),
        // A gap in the slots.
        base().set(410, &slot(0, 5)).holding("hello"),
        base()
            .set(386, &slot(0, 5))
            .set(434, &slot(9, 0))
            .holding("hello"),
        // Another block after a slot that is not used.
        base().set(386, &slot(0, 5)).set(482, &[1]).holding("hello"),
    ];
    for bytes in bad {
        let reason = refused(&[&bytes]);
        assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
    }
    let negative = base()
        .set(386, &[0xff; 12])
        .set(398, &octal(5))
        .holding("hello");
    let reason = refused(&[&negative]);
    assert!(matches!(reason, BadReason::BadNumber { .. }), "{reason}");
    // The real size in base 256 is fine.
    let large = base()
        .set(386, &slot(0, 5))
        .set(483, &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        .holding("hello");
    let (entries, _) = read(archive(&[&large]).as_slice()).unwrap();
    assert_eq!(entries[0].0.size, 256);
    // The header must be GNU tar's: star has something else there.
    let foreign = Header::new(b'S', "x").holding("");
    let reason = refused(&[&foreign]);
    assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
}

#[test]
fn row_079_counts_that_lie_are_refused() {
    let file = || Header::file("x");
    let zero = |extra: &[(&str, &str)]| {
        let all = [&[("size", "100"), ("numblocks", "1")], extra].concat();
        refused(&[&records(&all, file(), b"hello")])
    };
    let run = [("offset", "0"), ("numbytes", "5")];
    for extra in [
        &[][..],
        &run[..1],
        &run[1..],
        &[run[1], run[0]],
        &[run[0], run[0]],
        &[run, run].concat(),
        &[("map", "0")],
        &[("map", "0,5,9")],
        &[("map", "0,5,9,0")],
        &[("map", "0,5"), ("map", "0,5")],
        &[("map", "0,5"), run[0], run[1]],
        &[("map", "0,5"), ("size", "100")],
        &[("map", "0,5"), ("realsize", "100")],
        &[("map", "0,5"), ("other", "100")],
        &[("major", "1"), ("minor", "0"), ("map", "0,5")],
        &[("major", "2"), ("minor", "0"), ("map", "0,5")],
        &[("major", "0"), ("minor", "0"), ("map", "0,5")],
        &[("major", "0"), ("map", "0,5")],
    ] {
        let reason = zero(extra);
        assert!(
            matches!(reason, BadReason::BadSparse { .. }),
            "{extra:?}: {reason}"
        );
    }
    for map in [
        "0,",
        ",5",
        "0,+5",
        "0,-5",
        "0, 5",
        "0,0x5",
        "0,99999999999999999999",
    ] {
        let reason = zero(&[("map", map)]);
        assert!(
            matches!(reason, BadReason::BadNumber { .. }),
            "{map}: {reason}"
        );
    }
    let sparse = |map: &str| refused(&[&pax_1_0_with(map, 100, b"hello")]);
    for map in [
        "",
        "1\n0\n5",
        "2\n0\n5\n",
        "9223372036854775807\n",
        "000000000000000000001\n0\n5\n",
    ] {
        let reason = sparse(map);
        assert!(
            matches!(
                reason,
                BadReason::BadSparse { .. } | BadReason::BadNumber { .. }
            ),
            "{map:?}: {reason}"
        );
    }
    for map in ["1\n0\n5 \n", "1\n\n5\n", "+1\n0\n5\n", "-1\n", "1,0,5\n"] {
        let reason = sparse(map);
        assert!(
            matches!(reason, BadReason::BadNumber { .. }),
            "{map:?}: {reason}"
        );
    }
    // The map alone is longer than the content.
    let all = [("major", "1"), ("minor", "0"), ("realsize", "0")];
    for content in [0, 1, 511] {
        let reason = refused(&[&records(&all, file(), &vec![b'0'; content])]);
        assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
    }
    let whole = archive(&[&records(&all, file(), &[b'1'; 512])]);
    let reason = blame(&whole[..whole.len() - 1024 - 100]).reason;
    assert!(
        matches!(reason, BadReason::Truncated { found: 412, .. }),
        "{reason}"
    );
}

#[test]
fn row_080_holes_count_against_the_limit_on_bytes() {
    let mut limits = ReadLimits::default();
    limits.max_output_bytes = 1 << 20;
    for (format, write) in FORMATS {
        let one = write(&[(0, 5)], (1 << 20) - 8192, b"hello");
        let (entries, _) = read_with(archive(&[&one]).as_slice(), limits).unwrap();
        assert_eq!(entries[0].1.len(), (1 << 20) - 8192, "{format}");
        let two = archive(&[&one, &write(&[], 8192, b"")]);
        let large = archive(&[&write(&[], 1 << 30, b"")]);
        for (bytes, index) in [(two, 1), (large, 0)] {
            let bad = blame_with(&bytes, limits);
            assert!(
                matches!(bad.reason, BadReason::OutputLimit { max: 0x10_0000, .. }),
                "{format}: {bad}"
            );
            assert_eq!(bad.index, index);
        }
        // Nobody has exabytes, and the default limit says so.
        let reason = match format {
            "old" => continue,
            _ => blame(&archive(&[&write(&[], 1 << 62, b"")])).reason,
        };
        assert!(
            matches!(reason, BadReason::OutputLimit { .. }),
            "{format}: {reason}"
        );
    }
}

#[test]
fn row_078_a_map_counts_against_the_limit_on_extension_headers() {
    let mut limits = ReadLimits::default();
    limits.max_extension_bytes = 4096;
    let map: Vec<(u64, u64)> = (0..1000).map(|run| (run * 1024, 512)).collect();
    for (format, write) in FORMATS {
        let bytes = archive(&[&write(&map, 1 << 20, &[7; 512_000])]);
        assert_eq!(read(bytes.as_slice()).unwrap().0[0].0.stored, 512_000);
        let reason = blame_with(&bytes, limits).reason;
        assert!(
            matches!(reason, BadReason::ExtensionTooLarge { max: 4096, .. }),
            "{format}: {reason}"
        );
    }
}

#[test]
fn row_081_a_sparse_name_without_a_map_is_refused() {
    let file = || Header::file("x");
    for all in [
        &[("name", "other")][..],
        &[("name", "other"), ("size", "0"), ("numblocks", "0")],
        &[("name", "other"), ("major", "1"), ("minor", "0")],
        &[("realsize", "5")],
        &[("size", "5")],
        &[("major", "1")],
        &[("minor", "0")],
    ] {
        let reason = refused(&[&records(all, file(), b"hello")]);
        assert!(
            matches!(reason, BadReason::BadSparse { .. }),
            "{all:?}: {reason}"
        );
    }
    let reason = refused(&[&records(&[("name", "")], file(), b"")]);
    assert!(matches!(reason, BadReason::EmptyName { .. }), "{reason}");
    let reason = refused(&[&records(&[("name", "a\0b")], file(), b"")]);
    assert!(matches!(reason, BadReason::NulInName { .. }), "{reason}");
}

#[test]
fn row_071_a_sparse_name_and_a_gnu_long_name_are_ambiguous() {
    let sparse = pax_1_0(&[(0, 5)], 100, b"hello");
    let reason = refused(&[&long(b'L', "other"), &sparse]);
    assert!(
        matches!(reason, BadReason::AmbiguousExtension { .. }),
        "{reason}"
    );
    // The PAX path beside it is for readers that know nothing of sparse files.
    let both = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"9"),
        ("GNU.sparse.name", b"real"),
        ("path", b"GNUSparseFile.7/real"),
    ]);
    let mut map = b"1\n4\n5\n".to_vec();
    map.resize(512, 0);
    map.extend(b"hello");
    let bytes = archive(&[&both, &Header::file("cut").holding(map)]);
    let (entries, _) = read(bytes.as_slice()).unwrap();
    assert_eq!(
        (&*entries[0].0.path, &*entries[0].1),
        (&b"real"[..], &b"\0\0\0\0hello"[..])
    );
}

#[test]
fn only_a_regular_file_is_sparse_and_only_in_one_format() {
    let map = [("size", "0"), ("numblocks", "0"), ("map", "")];
    for typeflag in *b"123456" {
        let header = Header::new(typeflag, "x").link("y").set(329, b"0000001\0");
        let reason = refused(&[&records(&map, header, b"")]);
        assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
    }
    let header = || Header::new(b'S', "x").gnu().set(483, &octal(0));
    let reason = refused(&[&records(&map, header(), b"")]);
    assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
    let reason = refused(&[&pax(&[("size", b"0")]), &header().holding("")]);
    assert!(matches!(reason, BadReason::BadSparse { .. }), "{reason}");
    let reason = refused(&[&Header::new(b'S', "x/")
        .gnu()
        .set(483, &octal(0))
        .holding("")]);
    assert_eq!(reason, BadReason::TrailingSlash);
}
