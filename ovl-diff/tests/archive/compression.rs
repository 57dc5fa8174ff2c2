use std::io::Write as _;

use ovl_diff::{ArchiveError, ArchiveReader, BadReason, Compression, ReadLimits};

use super::builder::{Header, archive, blame, blame_with, gzip, read, zstd};

/// Content that neither compresses to nothing nor fits one buffer.
fn sample() -> Vec<u8> {
    let mut state = 1_u32;
    let noise: Vec<u8> = (0..400_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 28) as u8
        })
        .collect();
    archive(&[
        &Header::file("a").holding(&noise),
        &Header::file("b").holding("end"),
    ])
}

/// Reads and checks against the plain archive.
fn assert_same(compressed: &[u8], plain: &[u8], compression: Compression) {
    let (entries, summary) = read(compressed).unwrap();
    let (expected, plain_summary) = read(plain).unwrap();
    assert!(entries == expected);
    assert_eq!(summary.diff_id, plain_summary.diff_id);
    assert_eq!(summary.compression, compression);
    assert_eq!(summary.compressed_bytes, compressed.len() as u64);
    assert_eq!(summary.uncompressed_bytes, plain.len() as u64);
}

fn skippable(kind: u8, data: &[u8]) -> Vec<u8> {
    [
        &[0x50 | kind, 0x2a, 0x4d, 0x18],
        (data.len() as u32).to_le_bytes().as_slice(),
        data,
    ]
    .concat()
}

#[test]
fn row_093_the_first_bytes_tell_the_compression() {
    let plain = sample();
    assert_same(&plain, &plain, Compression::None);
    assert_same(&gzip(&plain), &plain, Compression::Gzip);
    assert_same(&zstd(&plain), &plain, Compression::Zstd);
}

#[test]
fn row_093_other_compressions_are_named() {
    let cases: [(&[u8], &str); 3] = [
        (b"\xfd7zXZ\0\0\x04", "xz"),
        (b"BZh91AY&SY\0\0", "bzip2"),
        (b"\x04\x22\x4d\x18\x64\x40", "lz4"),
    ];
    for (bytes, expected) in cases {
        let bad = blame(bytes);
        assert!(
            matches!(bad.reason, BadReason::UnsupportedCompression { name, .. } if name == expected),
            "{bad}"
        );
    }
    let twice = blame(&gzip(&gzip(&sample())));
    assert!(twice.to_string().contains("compressed twice"), "{twice}");
}

#[test]
fn row_091_all_gzip_members_are_read() {
    let plain = sample();
    let members: Vec<u8> = plain.chunks(10_000).flat_map(gzip).collect();
    assert_same(&members, &plain, Compression::Gzip);
    let with_empty_ones = [gzip(b""), gzip(&plain), gzip(b"")].concat();
    assert_same(&with_empty_ones, &plain, Compression::Gzip);
}

#[test]
fn gzip_headers_with_optional_fields_are_read() {
    let plain = sample();
    let mut encoder = flate2::GzBuilder::new()
        .filename("layer.tar")
        .comment("a comment")
        .extra([7; 5000])
        .write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&plain).unwrap();
    assert_same(&encoder.finish().unwrap(), &plain, Compression::Gzip);
}

#[test]
fn row_092_zeros_after_gzip_are_padding_and_other_bytes_are_refused() {
    let plain = sample();
    let packed = gzip(&plain);
    for zeros in [1, 2, 512, 300_000] {
        assert_same(
            &[packed.as_slice(), &vec![0; zeros]].concat(),
            &plain,
            Compression::Gzip,
        );
    }
    for garbage in [
        b"x".as_slice(),
        b"\x1f",
        b"\x1fx",
        b"\0\0x",
        b"\0\x1f\x8b\x08",
        &plain,
    ] {
        let bad = blame(&[packed.as_slice(), garbage].concat());
        assert!(
            matches!(bad.reason, BadReason::TrailingGarbage { compression: Compression::Gzip, compressed, .. }
                if compressed >= packed.len() as u64),
            "{bad}"
        );
        assert_eq!((bad.index, bad.offset), (2, plain.len() as u64));
    }
}

#[test]
fn row_094_wrong_gzip_checksums_and_lengths_are_refused() {
    let packed = gzip(&sample());
    for place in 1..=8 {
        let mut bytes = packed.clone();
        let len = bytes.len();
        bytes[len - place] ^= 1;
        let bad = blame(&bytes);
        assert!(
            matches!(bad.reason, BadReason::CorruptCompression { .. }),
            "{place}: {bad}"
        );
    }
    // The first member's, too.
    let mut bytes = [packed.as_slice(), &gzip(b"")].concat();
    bytes[packed.len() - 5] ^= 1;
    assert!(matches!(
        blame(&bytes).reason,
        BadReason::CorruptCompression { .. }
    ));
}

#[test]
fn corrupt_data_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.write_all(&sample()).unwrap();
    let zstd = encoder.finish().unwrap();
    for (packed, expected) in [
        (gzip(&sample()), Compression::Gzip),
        (zstd, Compression::Zstd),
    ] {
        for place in [packed.len() / 2, packed.len() - 1] {
            let mut bytes = packed.clone();
            bytes[place] ^= 0xff;
            let bad = blame(&bytes);
            assert!(
                matches!(bad.reason, BadReason::CorruptCompression { compression, .. } if compression == expected),
                "{bad}"
            );
        }
    }
}

#[test]
fn truncated_data_is_refused_at_every_byte() {
    let plain = archive(&[&Header::file("a").holding("hello")]);
    for (packed, expected) in [
        (gzip(&plain), Compression::Gzip),
        (zstd(&plain), Compression::Zstd),
    ] {
        for len in 4..packed.len() {
            let bad = blame(&packed[..len]);
            assert!(
                matches!(bad.reason, BadReason::TruncatedCompression { compression, compressed, .. }
                    if compression == expected && compressed == len as u64),
                "{len}: {bad}"
            );
        }
        for len in 0..4 {
            assert!(read(&packed[..len]).unwrap_err().is_bad_input());
        }
    }
}

#[test]
fn row_090_zstd_frames_and_skippable_frames_may_alternate() {
    let plain = sample();
    let mut bytes = skippable(3, b"in front");
    for part in plain.chunks(50_000) {
        bytes.extend(zstd(part));
        bytes.extend(skippable(0, &[9; 200_000]));
        bytes.extend(zstd(b""));
        bytes.extend(skippable(0xf, b""));
    }
    assert_same(&bytes, &plain, Compression::Zstd);
}

#[test]
fn row_090_bytes_after_zstd_are_refused() {
    let packed = zstd(&sample());
    for garbage in [
        b"x".as_slice(),
        &[0; 512],
        b"\x28\xb5\x2f",
        b"\x1f\x8b\x08\0",
    ] {
        let bad = blame(&[packed.as_slice(), garbage].concat());
        assert!(
            matches!(bad.reason, BadReason::TrailingGarbage { compression: Compression::Zstd, compressed, .. }
                if compressed == packed.len() as u64),
            "{bad}"
        );
    }
}

#[test]
fn row_090_zstd_windows_are_capped() {
    let packed = |window_log: u8| {
        // Magic; no single segment, so that a window descriptor follows: 2^(10 + exponent) bytes.
        [
            &[0x28, 0xb5, 0x2f, 0xfd, 0x00, (window_log - 10) << 3],
            [0x01, 0, 0].as_slice(),
        ]
        .concat()
    };
    // An empty last block: fine within the cap, and no archive.
    assert!(matches!(
        blame(&packed(27)).reason,
        BadReason::NotAnArchive { .. }
    ));
    for window_log in [28, 31, 41] {
        let bad = blame(&packed(window_log));
        assert!(
            matches!(bad.reason, BadReason::WindowTooLarge { max_log: 27, .. }),
            "{bad}"
        );
        assert!(bad.to_string().contains("128 MiB"), "{bad}");
    }
}

#[test]
fn row_089_bombs_stop_at_the_ratio() {
    let plain = archive(&[&Header::file("zeros").holding(vec![0; 64 << 20])]);
    let mut limits = ReadLimits::default();
    for packed in [gzip(&plain), zstd(&plain)] {
        (limits.max_ratio, limits.ratio_floor_bytes) = (100, 1 << 20);
        let bad = blame_with(&packed, limits);
        let BadReason::RatioLimit {
            compressed,
            output,
            max: 100,
            ..
        } = bad.reason
        else {
            panic!("{bad}")
        };
        assert!(
            output > 1 << 20 && output < 2 << 20 && output > compressed * 100,
            "{bad}"
        );
        // Below the floor it does not count; nor does it for what is not compressed.
        limits.ratio_floor_bytes = 128 << 20;
        assert_eq!(
            super::builder::read_with(packed.as_slice(), limits)
                .unwrap()
                .0
                .len(),
            1
        );
    }
    (limits.max_ratio, limits.ratio_floor_bytes) = (0, 0);
    assert_eq!(
        super::builder::read_with(plain.as_slice(), limits)
            .unwrap()
            .0
            .len(),
        1
    );
}

#[test]
fn row_089_output_stops_at_the_limit() {
    let plain = archive(&[&Header::file("zeros").holding(vec![0; 1 << 20])]);
    let mut limits = ReadLimits::default();
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        limits.max_output_bytes = plain.len() as u64;
        assert_eq!(
            super::builder::read_with(bytes.as_slice(), limits)
                .unwrap()
                .0
                .len(),
            1
        );
        // One byte less hits the end marker, less than a file hits what its header announces.
        for (max, index) in [(plain.len() as u64 - 1, 1), (1 << 20, 0)] {
            limits.max_output_bytes = max;
            let bad = blame_with(&bytes, limits);
            assert!(
                matches!(bad.reason, BadReason::OutputLimit { max: found, .. } if found == max),
                "{bad}"
            );
            assert!(bad.index <= index, "{bad}");
        }
    }
}

#[test]
fn errors_of_the_source_are_not_blamed_on_the_archive() {
    struct Failing<'a>(&'a [u8]);
    impl std::io::Read for Failing<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(std::io::Error::from_raw_os_error(5)),
                len => Ok(len),
            }
        }
    }
    let plain = sample();
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        for len in [0, 3, bytes.len() / 2, bytes.len()] {
            let error = read(Failing(&bytes[..len])).unwrap_err();
            assert!(!error.is_bad_input());
            let ArchiveError::Io { source, .. } = error else {
                panic!("{error}")
            };
            assert_eq!(source.raw_os_error(), Some(5));
        }
    }
}

#[test]
fn interrupted_and_dripping_sources_are_read() {
    struct Dripping<'a>(&'a [u8], bool);
    impl std::io::Read for Dripping<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            let len = buffer.len().min(7);
            self.0.read(&mut buffer[..len])
        }
    }
    let plain = sample();
    let expected = read(plain.as_slice()).unwrap();
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let (entries, summary) = read(Dripping(&bytes, false)).unwrap();
        assert!(entries == expected.0);
        assert_eq!(summary.diff_id, expected.1.diff_id);
    }
}

#[test]
fn counts_and_digest_do_not_need_the_content_to_be_read() {
    let plain = sample();
    let packed = gzip(&plain);
    let reader = ArchiveReader::new(packed.as_slice(), ReadLimits::default());
    let unread = reader.finish().unwrap();
    assert_eq!(unread, read(packed.as_slice()).unwrap().1);
    assert_eq!(
        (unread.entries, unread.uncompressed_bytes),
        (2, plain.len() as u64)
    );
}
