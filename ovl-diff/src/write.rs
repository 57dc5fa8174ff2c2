//! Writes layer archives: POSIX ustar with PAX records, the same bytes for the same input.

use std::io::{self, Read, Write};
use std::ops::Range;

use tar::{EntryType, Header};

use crate::output::{BUFFER_LEN, Output};
use crate::tree::{DeviceNumber, Timestamp};

/// Largest number in an 8-byte octal field: 7 digits.
const MAX_OCTAL_7: u64 = 0o7_777_777;
/// Largest number in a 12-byte octal field: 11 digits.
const MAX_OCTAL_11: u64 = 0o77_777_777_777;
const BLOCK_LEN: usize = 512;
const NAME_LEN: usize = 100;
const PREFIX_LEN: usize = 155;

/// Everything about one member but its contents.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// Relative path, without the slash that ends a directory's name.
    pub(crate) path: &'a [u8],
    pub(crate) kind: MemberKind<'a>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    /// Names and values, sorted by name.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum MemberKind<'a> {
    Directory,
    Regular {
        size: u64,
    },
    /// A file of this size of which only these runs are given, in order.
    Sparse {
        size: u64,
        runs: &'a [Range<u64>],
    },
    Symlink {
        target: &'a [u8],
    },
    HardLink {
        target: &'a [u8],
    },
    CharDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

/// How names and PAX records are written where the format leaves a choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// Names are bytes, records come as the fields do.
    Plain,
    /// As Go's `archive/tar`, which Docker is built with: names that are not ASCII have a record,
    /// a member with any record has one for a long name too, and records are sorted.
    Go,
}

/// Writes members in the order given. Nothing ends the archive but [`finish`](Self::finish).
pub(crate) struct ArchiveWriter<'o, W> {
    output: Output<'o, W>,
    dialect: Dialect,
    buffer: Box<[u8]>,
    /// How much of the buffer waits to be written.
    filled: usize,
    /// A member was begun and not completed.
    partial: bool,
}

impl<'o, W: Write> ArchiveWriter<'o, W> {
    pub(crate) fn new(output: Output<'o, W>, dialect: Dialect) -> Self {
        Self {
            output,
            dialect,
            buffer: vec![0; BUFFER_LEN].into_boxed_slice(),
            filled: 0,
            partial: false,
        }
    }

    /// Writes a member; `contents` must give at least the size that its kind says, or all bytes of
    /// its runs.
    pub(crate) fn append(
        &mut self,
        member: &Member<'_>,
        mut contents: impl Read,
    ) -> io::Result<()> {
        let mut records = Records::default();
        let mut header = Header::new_ustar();
        let mut map = Vec::new();
        let (entry_type, link, size, device) = match member.kind {
            MemberKind::Sparse { size, runs } => {
                map = sparse_map(runs, size);
                let data: u64 = runs.iter().map(|run| run.end - run.start).sum();
                (EntryType::Regular, None, map.len() as u64 + data, None)
            }
            MemberKind::Directory => (EntryType::Directory, None, 0, None),
            MemberKind::Regular { size } => (EntryType::Regular, None, size, None),
            MemberKind::Symlink { target } => (EntryType::Symlink, Some(target), 0, None),
            MemberKind::HardLink { target } => (EntryType::Link, Some(target), 0, None),
            MemberKind::CharDevice(number) => (EntryType::Char, None, 0, Some(number)),
            MemberKind::BlockDevice(number) => (EntryType::Block, None, 0, Some(number)),
            MemberKind::Fifo => (EntryType::Fifo, None, 0, None),
        };
        header.set_entry_type(entry_type);
        header.set_mode(member.mode);
        let device = device.unwrap_or_default();
        header.set_device_major(device.major)?;
        header.set_device_minor(device.minor)?;

        let path: Vec<u8> = match entry_type {
            EntryType::Directory => [member.path, b"/"].concat(),
            _ => member.path.to_vec(),
        };
        if let MemberKind::Sparse { size, .. } = member.kind {
            // As GNU tar does: a reader that knows nothing of it extracts a file that nobody takes
            // for the real one.
            let base = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
            let name = [b"GNUSparseFile.0/", base].concat();
            set_path(&mut header, &name[..name.len().min(NAME_LEN)]);
            records.push("GNU.sparse.major", b"1");
            records.push("GNU.sparse.minor", b"0");
            records.push("GNU.sparse.name", &path);
            records.push("GNU.sparse.realsize", size.to_string().as_bytes());
        } else if self.dialect == Dialect::Plain && !set_path(&mut header, &path) {
            records.push("path", &path);
        }
        if let Some(link) = link
            && !set_link(&mut header, link, self.dialect)
        {
            records.push("linkpath", link);
        }
        let uid = records.number("uid", u64::from(member.uid), MAX_OCTAL_7);
        let gid = records.number("gid", u64::from(member.gid), MAX_OCTAL_7);
        header.set_uid(uid);
        header.set_gid(gid);
        header.set_size(records.number("size", size, MAX_OCTAL_11));
        header.set_mtime(records.time(member.mtime));
        for (name, value) in &member.xattrs {
            records.push_bytes(&[b"SCHILY.xattr.", name.as_slice()].concat(), value);
        }
        if self.dialect == Dialect::Go {
            set_go_path(&mut header, &path, &mut records);
        }
        // An extension header alone makes readers complain too.
        self.partial = true;
        if let Some(records) = records.finish() {
            self.extension(&path, &records)?;
        }
        set_checksum(&mut header);
        self.put(header.as_bytes())?;
        self.put(&map)?;
        let mut left = size - map.len() as u64;
        while left > 0 {
            let room = self.room()?;
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            let len = match contents.read(&mut room[..want]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.filled += len;
            left -= len as u64;
        }
        self.pad(size)?;
        self.partial = false;
        Ok(())
    }

    fn extension(&mut self, path: &[u8], records: &[u8]) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        let cut = path.iter().rposition(|&byte| byte == b'/');
        let (dir, base) = path.split_at(cut.map_or(0, |slash| slash + 1));
        let name = match self.dialect {
            Dialect::Plain => {
                header.set_mode(0o644);
                let path = path.strip_suffix(b"/").unwrap_or(path);
                let base = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
                [b"PaxHeaders.0/", base].concat()
            }
            Dialect::Go => {
                header.set_mode(0);
                header.set_uid(0);
                header.set_gid(0);
                header.set_mtime(0);
                let end: &[u8] = if base.is_empty() { b"" } else { b"/" };
                ascii(&[dir, b"PaxHeaders.0", end, base].concat())
            }
        };
        let name = &name[..name.len().min(NAME_LEN)];
        let kept = name.iter().rposition(|&byte| byte != b'/');
        set_path(&mut header, &name[..kept.map_or(0, |last| last + 1)]);
        set_checksum(&mut header);
        self.put(header.as_bytes())?;
        self.put(records)?;
        self.pad(records.len() as u64)
    }

    /// Ends the archive: two blocks of zeros.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.put(&[0; 2 * BLOCK_LEN])?;
        self.drain()?;
        self.output.flush()
    }

    /// Ends the output inside an entry: readers accept missing end blocks, so an archive that just
    /// stops between two entries would look whole.
    pub(crate) fn abort(mut self) {
        let mut header = Header::new_ustar();
        header.set_size(BLOCK_LEN as u64);
        set_path(&mut header, b"incomplete");
        set_checksum(&mut header);
        let begun = if self.partial {
            Ok(())
        } else {
            self.put(header.as_bytes())
        };
        // The archive is lost already; that it is cut short here too is what is wanted.
        let _ = begun
            .and_then(|()| self.drain())
            .and_then(|()| self.output.flush());
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let len = room.len().min(bytes.len());
            room[..len].copy_from_slice(&bytes[..len]);
            self.filled += len;
            bytes = &bytes[len..];
        }
        Ok(())
    }

    /// Fills up the last block of `size` bytes.
    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK_LEN as u64) as usize;
        self.put(&[0; BLOCK_LEN][..(BLOCK_LEN - over) % BLOCK_LEN])
    }

    /// The free part of the buffer, never empty.
    fn room(&mut self) -> io::Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            self.drain()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn drain(&mut self) -> io::Result<()> {
        let result = self.output.put(&mut self.buffer, self.filled);
        self.filled = 0;
        result
    }
}

/// The map that the contents of a sparse file begin with in GNU tar's PAX format 1.0, padded.
fn sparse_map(runs: &[Range<u64>], size: u64) -> Vec<u8> {
    // A hole at the end needs an empty run after it: GNU tar makes the file as long as its runs.
    let end = runs.last().is_none_or(|run| run.end < size);
    let end = end.then_some(size..size);
    let mut map = format!("{}\n", runs.len() + usize::from(end.is_some()));
    for run in runs.iter().chain(&end) {
        map.push_str(&format!("{}\n{}\n", run.start, run.end - run.start));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_LEN), 0);
    map
}

/// Puts a path into the header's name and prefix; false when it does not fit.
fn set_path(header: &mut Header, path: &[u8]) -> bool {
    let Some(ustar) = header.as_ustar_mut() else {
        return false;
    };
    if path.len() <= NAME_LEN {
        ustar.name[..path.len()].copy_from_slice(path);
        return true;
    }
    let split = path[..path.len() - 1]
        .iter()
        .enumerate()
        .rev()
        .find(|&(at, &byte)| {
            byte == b'/' && at > 0 && at <= PREFIX_LEN && path.len() - at - 1 <= NAME_LEN
        });
    if let Some((at, _)) = split {
        ustar.prefix[..at].copy_from_slice(&path[..at]);
        ustar.name[..path.len() - at - 1].copy_from_slice(&path[at + 1..]);
        return true;
    }
    ustar.name.copy_from_slice(&path[..NAME_LEN]);
    false
}

fn set_link(header: &mut Header, link: &[u8], dialect: Dialect) -> bool {
    let Some(ustar) = header.as_ustar_mut() else {
        return false;
    };
    if dialect == Dialect::Go && !link.is_ascii() {
        put_text(&mut ustar.linkname, &ascii(link));
        return false;
    }
    put_text(&mut ustar.linkname, link);
    link.len() <= NAME_LEN
}

/// Puts a path into the header as Go does, and a record of it beside those that there are.
fn set_go_path(header: &mut Header, path: &[u8], records: &mut Records) {
    let is_sparse = records.0.iter().any(|(key, _)| key == b"GNU.sparse.name");
    if is_sparse {
        return records.sort();
    }
    // Without any other record there is none for what the prefix has room for.
    if path.is_ascii() && records.0.is_empty() && set_path(header, path) {
        return;
    }
    if !path.is_ascii() || path.len() > NAME_LEN {
        records.push("path", path);
    }
    records.sort();
    if let Some(ustar) = header.as_ustar_mut() {
        ustar.name.fill(0);
        put_text(&mut ustar.name, &ascii(path));
    }
}

fn put_text(field: &mut [u8; NAME_LEN], text: &[u8]) {
    let len = text.len().min(NAME_LEN);
    field[..len].copy_from_slice(&text[..len]);
    // Go's remedy for readers that take a name which ends so for a directory's.
    if text.len() > NAME_LEN && field[NAME_LEN - 1] == b'/' {
        let kept = field.iter().rposition(|&byte| byte != b'/');
        field[kept.map_or(0, |last| last + 1)] = 0;
    }
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// Six digits, NUL and a space, as everybody writes it.
fn set_checksum(header: &mut Header) {
    let field = 148..156;
    let bytes = header.as_mut_bytes();
    bytes[field.clone()].fill(b' ');
    let sum: u32 = bytes.iter().map(|&byte| u32::from(byte)).sum();
    bytes[field].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The PAX records of one member: keys and values.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    fn push(&mut self, key: &str, value: &[u8]) {
        self.push_bytes(key.as_bytes(), value);
    }

    fn push_bytes(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), value.to_vec()));
    }

    fn sort(&mut self) {
        self.0.sort();
    }

    /// The number for the header, 0 where it only fits a record.
    fn number(&mut self, key: &str, value: u64, max: u64) -> u64 {
        if value <= max {
            return value;
        }
        self.push(key, value.to_string().as_bytes());
        0
    }

    fn time(&mut self, time: Timestamp) -> u64 {
        let whole = u64::try_from(time.secs)
            .ok()
            .filter(|&secs| secs <= MAX_OCTAL_11);
        if time.nanos != 0 || whole.is_none() {
            self.push("mtime", decimal(time).as_bytes());
        }
        whole.unwrap_or(0)
    }

    fn finish(self) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        let mut all = Vec::new();
        for (key, value) in self.0 {
            // "<length> <key>=<value>\n", where the length counts itself.
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            all.extend_from_slice(format!("{len} ").as_bytes());
            all.extend_from_slice(&key);
            all.push(b'=');
            all.extend_from_slice(&value);
            all.push(b'\n');
        }
        Some(all)
    }
}

/// Seconds with as many decimals as needed: `1.5`, `-0.25`.
fn decimal(time: Timestamp) -> String {
    if time.nanos == 0 {
        return time.secs.to_string();
    }
    let (sign, secs, nanos) = if time.secs < 0 {
        (
            "-",
            (time.secs + 1).unsigned_abs(),
            1_000_000_000 - time.nanos,
        )
    } else {
        ("", time.secs.unsigned_abs(), time.nanos)
    };
    let text = format!("{sign}{secs}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_before_the_epoch_is_written_as_a_negative_decimal() {
        let at = |secs, nanos| decimal(Timestamp { secs, nanos });
        assert_eq!(at(-1, 500_000_000), "-0.5");
        assert_eq!(at(-2, 750_000_000), "-1.25");
        assert_eq!(at(-2, 0), "-2");
        assert_eq!(at(1, 5), "1.000000005");
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        let mut records = Records::default();
        records.push("k", &[b'v'; 4]);
        records.push("k", &[b'v'; 5]);
        records.push("k", &[b'v'; 94]);
        let text = String::from_utf8(records.finish().unwrap()).unwrap();
        let lens: Vec<usize> = text.lines().map(|line| line.len() + 1).collect();
        let written: Vec<usize> = text
            .lines()
            .map(|line| line.split(' ').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(lens, written);
    }
}
