use ovl_diff::{
    ArchiveError, ArchiveReader, BadArchive, BadReason, DiffId, DiffIdError, ReadLimits,
};
use sha2::Digest as _;

use super::builder::{Header, archive, entry, gzip};

/// A file that does not fit any buffer, between two small ones.
fn sample() -> (Vec<u8>, Vec<u8>) {
    let content: Vec<u8> = (0..1_000_003_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let bytes = archive(&[
        &Header::file("small").holding("hello"),
        &Header::file("large").holding(&content),
        &Header::file("last").holding("bye"),
    ]);
    (bytes, content)
}

#[test]
fn content_is_the_same_whatever_the_buffer() {
    let (bytes, content) = sample();
    for source in [bytes.clone(), gzip(&bytes)] {
        for len in [1000, 65_535, 65_536, 1 << 20, 4 << 20] {
            let mut reader = ArchiveReader::new(source.as_slice(), ReadLimits::default());
            let mut buffer = vec![0; len];
            for expected in [b"hello".as_slice(), &content, b"bye"] {
                let entry = reader.next_entry().unwrap().unwrap();
                assert_eq!(entry.size, expected.len() as u64);
                let mut got = Vec::new();
                while got.len() < expected.len() {
                    let len = reader.read_payload(&mut buffer).unwrap();
                    assert!(len > 0);
                    got.extend_from_slice(&buffer[..len]);
                }
                assert!(got == expected);
                assert_eq!(reader.read_payload(&mut buffer).unwrap(), 0);
            }
            assert_eq!(reader.next_entry().unwrap(), None);
            assert_eq!(reader.next_entry().unwrap(), None);
            assert_eq!(reader.read_payload(&mut buffer).unwrap(), 0);
            let expected: [u8; 32] = sha2::Sha256::digest(&bytes).into();
            assert_eq!(
                reader.finish().unwrap().diff_id,
                DiffId::from_bytes(expected)
            );
        }
    }
}

#[test]
fn content_may_be_left_unread_or_read_in_part() {
    let (bytes, _) = sample();
    for read in [0, 10, 100_000] {
        let mut reader = ArchiveReader::new(bytes.as_slice(), ReadLimits::default());
        let mut names = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            names.push(entry.path);
            reader.read_payload(&mut vec![0; read]).unwrap();
        }
        assert_eq!(names, [b"small".as_slice(), b"large", b"last"]);
        let summary = reader.finish().unwrap();
        assert_eq!(
            (summary.entries, summary.uncompressed_bytes),
            (3, bytes.len() as u64)
        );
    }
}

#[test]
fn finishing_early_reads_and_checks_the_rest() {
    let (mut bytes, _) = sample();
    let mut reader = ArchiveReader::new(bytes.as_slice(), ReadLimits::default());
    reader.next_entry().unwrap();
    assert_eq!(reader.finish().unwrap().entries, 3);
    let last = bytes.len() - 1024 - 1024;
    bytes[last] ^= 1;
    let mut reader = ArchiveReader::new(bytes.as_slice(), ReadLimits::default());
    reader.next_entry().unwrap();
    let ArchiveError::Bad(bad) = reader.finish().unwrap_err() else {
        panic!()
    };
    assert!(matches!(bad.reason, BadReason::BadChecksum { .. }));
    assert_eq!((bad.index, bad.offset), (2, last as u64));
}

#[test]
fn truncated_content_is_reported_by_the_read_that_meets_it() {
    let bytes = Header::file("x").holding([1; 2000]);
    let mut reader = ArchiveReader::new(&bytes[..512 + 700], ReadLimits::default());
    reader.next_entry().unwrap();
    let mut buffer = [0; 4096];
    assert_eq!(reader.read_payload(&mut buffer).unwrap(), 700);
    let error = reader.read_payload(&mut buffer).unwrap_err();
    assert_eq!(
        error.to_string(),
        "archive entry 0 \"x\" at byte 0: the archive is truncated: it ends after 700 of 2000 bytes of the entry's content"
    );
}

#[test]
fn errors_are_final() {
    let bytes = archive(&[&Header::new(b'Z', "x").seal(), &Header::file("y").seal()]);
    let mut reader = ArchiveReader::new(bytes.as_slice(), ReadLimits::default());
    assert!(reader.next_entry().unwrap_err().is_bad_input());
    assert!(matches!(reader.next_entry(), Err(ArchiveError::Io { .. })));
    assert!(matches!(
        reader.read_payload(&mut [0; 8]),
        Err(ArchiveError::Io { .. })
    ));
    assert!(matches!(reader.finish(), Err(ArchiveError::Io { .. })));
}

#[test]
fn entries_can_be_blamed_later() {
    let entry = entry(&[&Header::file("name").seal()]);
    let bad = BadArchive::new(&entry, BadReason::TrailingSlash);
    assert_eq!(
        (bad.index, bad.offset, bad.name.as_slice()),
        (0, 0, b"name".as_slice())
    );
    assert!(ArchiveError::from(bad).is_bad_input());
}

#[test]
fn diff_ids_are_text_and_back() {
    let text = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef";
    let id: DiffId = text.parse().unwrap();
    assert_eq!(id.to_string(), text);
    assert_eq!(id.as_bytes()[..2], [0x5f, 0x70]);
    assert_eq!("sha512:00".parse::<DiffId>(), Err(DiffIdError::NotSha256));
    assert!(matches!(
        "sha256:00".parse::<DiffId>(),
        Err(DiffIdError::Length { len: 2, .. })
    ));
    let upper = text.replace('f', "F");
    assert!(matches!(
        upper.parse::<DiffId>(),
        Err(DiffIdError::Digit { offset: 1, .. })
    ));
}
