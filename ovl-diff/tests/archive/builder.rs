//! Archives made byte by byte, so that they can be wrong.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::mem::discriminant;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use ovl_diff::{
    ApplyError, ApplyOptions, ArchiveEntry, ArchiveError, ArchiveReader, ArchiveSummary,
    BadArchive, BadReason, EntryKind, ReadLimits,
};

use crate::support::each;

/// The end of an archive.
pub(super) const END: [u8; 1024] = [0; 1024];

/// A header under construction; everything has a sane value before it is changed.
#[derive(Clone)]
pub(super) struct Header(pub(super) [u8; 512]);

impl Header {
    pub(super) fn new(typeflag: u8, name: impl AsRef<[u8]>) -> Self {
        let mut header = Self([0; 512]);
        header.0[..name.as_ref().len()].copy_from_slice(name.as_ref());
        header.0[156] = typeflag;
        header
            .set(100, b"0000644\0")
            .set(108, b"0000000\0")
            .set(116, b"0000000\0")
            .set(124, b"00000000000\0")
            .set(136, b"00000000000\0")
            .set(257, b"ustar\x0000")
    }

    pub(super) fn file(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', name)
    }

    pub(super) fn set(mut self, at: usize, bytes: &[u8]) -> Self {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    pub(super) fn size(self, size: u64) -> Self {
        self.set(124, format!("{size:011o}\0").as_bytes())
    }

    pub(super) fn link(self, target: impl AsRef<[u8]>) -> Self {
        self.set(157, target.as_ref())
    }

    pub(super) fn gnu(self) -> Self {
        self.set(257, b"ustar  \0")
    }

    /// The header with the unsigned sum.
    pub(super) fn seal(self) -> Vec<u8> {
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = self.0[148..156].iter().map(|byte| u32::from(*byte)).sum();
        let sum = sum - own + 8 * 32;
        self.set(148, format!("{sum:06o}\0 ").as_bytes()).0.to_vec()
    }

    /// The sealed header, the payload and its padding; the size is whatever was set.
    pub(super) fn with(self, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let mut bytes = self.seal();
        bytes.extend_from_slice(payload.as_ref());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    /// As [`with`](Self::with), with the payload's size.
    pub(super) fn holding(self, payload: impl AsRef<[u8]>) -> Vec<u8> {
        let size = payload.as_ref().len() as u64;
        self.size(size).with(payload)
    }
}

/// One PAX record with the right length.
pub(super) fn record(key: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    let mut bytes = format!("{len} {key}=").into_bytes();
    bytes.extend_from_slice(value);
    bytes.push(b'\n');
    bytes
}

/// A local PAX header with these records.
pub(super) fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let data: Vec<u8> = records
        .iter()
        .flat_map(|(key, value)| record(key, value))
        .collect();
    Header::new(b'x', "PaxHeaders/x").holding(data)
}

/// A GNU long name or long link.
pub(super) fn long(typeflag: u8, text: impl AsRef<[u8]>) -> Vec<u8> {
    let data = [text.as_ref(), b"\0"].concat();
    Header::new(typeflag, "././@LongLink").gnu().holding(data)
}

/// The parts and an end.
pub(super) fn archive(parts: &[&[u8]]) -> Vec<u8> {
    [parts.concat().as_slice(), &END].concat()
}

/// An entry with its content.
pub(super) type Content = (ArchiveEntry, Vec<u8>);

/// Reads everything.
pub(super) fn read_with(
    source: impl Read,
    limits: ReadLimits,
) -> Result<(Vec<Content>, ArchiveSummary), ArchiveError> {
    let mut reader = ArchiveReader::new(source, limits);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut content = Vec::new();
        let mut buffer = [0; 1000];
        loop {
            match reader.read_payload(&mut buffer)? {
                0 => break,
                len => content.extend_from_slice(&buffer[..len]),
            }
        }
        entries.push((entry, content));
    }
    Ok((entries, reader.finish()?))
}

/// Reads everything with the default limits.
pub(super) fn read(source: impl Read) -> Result<(Vec<Content>, ArchiveSummary), ArchiveError> {
    read_with(source, ReadLimits::default())
}

/// The entries of an archive that must be good.
pub(super) fn entries(bytes: &[u8]) -> Vec<ArchiveEntry> {
    read(bytes)
        .unwrap()
        .0
        .into_iter()
        .map(|(entry, _)| entry)
        .collect()
}

/// The only entry of an archive that must be good.
pub(super) fn entry(parts: &[&[u8]]) -> ArchiveEntry {
    let mut entries = entries(&archive(parts));
    assert_eq!(entries.len(), 1, "{entries:?}");
    arrives(&archive(parts), &entries[0]);
    entries.remove(0)
}

/// What the reader says of an entry is what an apply makes on every backend, if it takes it at all.
fn arrives(bytes: &[u8], entry: &ArchiveEntry) {
    if entry.path.len() > 4096 {
        // Too deep for what looks at the result.
        return;
    }
    each(|scene| {
        let options = ApplyOptions::new(scene.xattrs);
        let stack = scene.stack(&[]);
        let applied = match stack.try_apply(bytes, &options) {
            Ok(applied) => applied,
            Err(ApplyError::Archive(ArchiveError::Bad(bad))) => {
                assert_eq!(
                    (bad.index, bad.offset),
                    (entry.index, entry.offset),
                    "{bad}"
                );
                return;
            }
            Err(error) => panic!("on {}: {error:?}", scene.backend),
        };
        assert_eq!(applied.summary.archive.entries, 1);
        let path = Path::new(OsStr::from_bytes(&entry.path)).components();
        let path: PathBuf = path
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let Some(seen) = applied.shown.0.get(&path) else {
            assert!(entry.path.starts_with(b".wh."), "{entry:?}");
            return;
        };
        assert_eq!(seen.owner(), (entry.uid, entry.gid));
        if applied.summary.clamped_times == 0 {
            assert_eq!(seen.mtime, entry.mtime);
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            assert_eq!(seen.mode, entry.mode);
        }
        if applied.summary.skipped_xattrs == 0 {
            let names: Vec<_> = seen.xattrs.keys().collect();
            let mut expected: Vec<_> = entry.xattrs.iter().map(|(name, _)| name).collect();
            expected.sort();
            assert_eq!(names, expected);
        }
    });
}

/// What a bad archive is blamed for.
pub(super) fn blame(bytes: &[u8]) -> BadArchive {
    blame_with(bytes, ReadLimits::default())
}

pub(super) fn blame_with(bytes: &[u8], limits: ReadLimits) -> BadArchive {
    match read_with(bytes, limits) {
        Err(ArchiveError::Bad(bad)) => {
            everywhere(bytes, limits, &bad);
            *bad
        }
        Err(other) => panic!("expected a bad archive, got {other:?}"),
        Ok((_, summary)) => panic!("expected a bad archive, got {summary:?}"),
    }
}

/// An apply on every backend refuses it for the same, or before, and changes nothing outside the
/// layer.
fn everywhere(bytes: &[u8], limits: ReadLimits, expected: &BadArchive) {
    each(|scene| {
        let mut options = ApplyOptions::new(scene.xattrs);
        options.limits = limits;
        let bad = scene.stack(&[]).blame(bytes, &options);
        let same = discriminant(&bad.reason) == discriminant(&expected.reason);
        assert!(same || bad.index < expected.index, "{bad}, not {expected}");
    });
}

/// Why an archive of these parts is refused.
pub(super) fn refused(parts: &[&[u8]]) -> BadReason {
    blame(&archive(parts)).reason
}

pub(crate) fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(data, 1).unwrap()
}
