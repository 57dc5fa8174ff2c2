//! Archives entry by entry, with anything in them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use ovl_diff::{ArchiveEntry, ArchiveReader, ReadLimits, Timestamp};

/// One entry; what its header cannot hold becomes PAX records.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) typeflag: u8,
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Timestamp,
    pub(crate) device: (u32, u32),
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    pub(crate) records: Vec<(String, Vec<u8>)>,
    pub(crate) content: Vec<u8>,
}

impl Entry {
    pub(crate) fn new(typeflag: u8, name: impl AsRef<OsStr>) -> Self {
        Self {
            name: name.as_ref().as_bytes().to_vec(),
            typeflag,
            target: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp {
                secs: 1_000_000_000,
                nanos: 0,
            },
            device: (0, 0),
            xattrs: Vec::new(),
            records: Vec::new(),
            content: Vec::new(),
        }
    }

    pub(crate) fn file(name: impl AsRef<OsStr>, content: impl AsRef<[u8]>) -> Self {
        Self {
            content: content.as_ref().to_vec(),
            ..Self::new(b'0', name)
        }
    }

    pub(crate) fn dir(name: impl AsRef<OsStr>) -> Self {
        Self::new(b'5', name).mode(0o755)
    }

    pub(crate) fn symlink(name: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Self {
        Self::new(b'2', name).mode(0o777).target(target)
    }

    pub(crate) fn hard_link(name: impl AsRef<OsStr>, target: impl AsRef<OsStr>) -> Self {
        Self::new(b'1', name).target(target)
    }

    pub(crate) fn fifo(name: impl AsRef<OsStr>) -> Self {
        Self::new(b'6', name)
    }

    pub(crate) fn char_device(name: impl AsRef<OsStr>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(b'3', name)
        }
    }

    pub(crate) fn block_device(name: impl AsRef<OsStr>, major: u32, minor: u32) -> Self {
        Self {
            device: (major, minor),
            ..Self::new(b'4', name)
        }
    }

    /// An empty file of this name: a whiteout or an opaque marker.
    pub(crate) fn marker(name: impl AsRef<OsStr>) -> Self {
        Self::file(name, b"")
    }

    pub(crate) fn target(mut self, target: impl AsRef<OsStr>) -> Self {
        self.target = target.as_ref().as_bytes().to_vec();
        self
    }

    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, secs: i64, nanos: u32) -> Self {
        self.mtime = Timestamp { secs, nanos };
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// A PAX record, whatever it says.
    pub(crate) fn record(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.records.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    fn write(&self, out: &mut Vec<u8>) {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut record = |key: &str, value: &[u8]| records.push((key.into(), value.to_vec()));
        if self.name.len() > 100 {
            record("path", &self.name);
        }
        if self.target.len() > 100 {
            record("linkpath", &self.target);
        }
        let small = |id: u64| id <= 0o7_777_777;
        for (key, id) in [("uid", self.uid), ("gid", self.gid)] {
            if !small(id) {
                record(key, id.to_string().as_bytes());
            }
        }
        let Timestamp { secs, nanos } = self.mtime;
        let plain_time = secs >= 0 && nanos == 0 && secs <= 0o77_777_777_777;
        if !plain_time {
            let whole = i128::from(secs) * 1_000_000_000 + i128::from(nanos);
            let sign = if whole < 0 { "-" } else { "" };
            let (whole, rest) = (whole.abs() / 1_000_000_000, whole.abs() % 1_000_000_000);
            record("mtime", format!("{sign}{whole}.{rest:09}").as_bytes());
        }
        for (name, value) in &self.xattrs {
            record(&format!("SCHILY.xattr.{name}"), value);
        }
        for (key, value) in &self.records {
            record(key, value);
        }
        if !records.is_empty() {
            let data: Vec<u8> = records
                .iter()
                .flat_map(|(key, value)| pax(key, value))
                .collect();
            let extension = Self {
                content: data,
                ..Self::new(b'x', "PaxHeaders/x")
            };
            extension.write(out);
        }
        let cut = |text: &[u8]| text[..text.len().min(100)].to_vec();
        let mut header = [0; 512];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &cut(&self.name));
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(
            108,
            format!("{:07o}\0", if small(self.uid) { self.uid } else { 0 }).as_bytes(),
        );
        put(
            116,
            format!("{:07o}\0", if small(self.gid) { self.gid } else { 0 }).as_bytes(),
        );
        put(124, format!("{:011o}\0", self.content.len()).as_bytes());
        put(
            136,
            format!("{:011o}\0", if plain_time { secs } else { 0 }).as_bytes(),
        );
        put(156, &[self.typeflag]);
        put(157, &cut(&self.target));
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        put(148, b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&self.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
}

fn pax(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} ").as_bytes(), key, b"=", value, b"\n"].concat()
}

/// The entries and an end.
pub(crate) fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    entries.iter().for_each(|entry| entry.write(&mut bytes));
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// The entries of an archive with their contents.
#[track_caller]
pub(crate) fn members(bytes: &[u8]) -> Vec<(ArchiveEntry, Vec<u8>)> {
    let mut reader = ArchiveReader::new(bytes, ReadLimits::default());
    let mut found = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let (mut content, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            match reader.read_payload(&mut buffer).unwrap() {
                0 => break,
                len => content.extend_from_slice(&buffer[..len]),
            }
        }
        found.push((entry, content));
    }
    reader.finish().unwrap();
    found
}
