//! The maps of sparse files: GNU tar's old format and the three of its PAX formats.

use std::ops::Range;

use super::BadReason;
use super::header::{BLOCK, number};
use super::pax::parse_digits;

/// Slots for runs in a header of the old format, and in each block after it.
const OLD_SLOTS: usize = 4;
const OLD_BLOCK_SLOTS: usize = 21;
/// Each has an offset and a length of this many bytes.
const OLD_NUMBER: usize = 12;
/// Digits of a number in a map that is part of the content; 2^63 has 19.
const MAX_DIGITS: usize = 20;

/// The runs of data in a file, in order; the rest are holes.
#[derive(Debug, Default)]
pub(super) struct Runs {
    found: Vec<Range<u64>>,
    /// Runs that the map has, empty ones included.
    count: u64,
    end: u64,
    data: u64,
    size: u64,
}

impl Runs {
    /// No runs yet, of a file of `size` bytes.
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            ..Self::default()
        }
    }

    /// The size of the file.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// The next run must lie after the last one and inside the file.
    fn push(&mut self, offset: u64, len: u64) -> Result<(), BadReason> {
        let bad = |problem| BadReason::BadSparseRun {
            number: self.count,
            offset,
            len,
            problem,
        };
        if offset < self.end {
            return Err(bad("it begins before the end of the one before"));
        }
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| bad("it goes past the end of the file"))?;
        // GNU tar takes each run from a new block, other readers from where the last one ended.
        if len > 0 && !self.data.is_multiple_of(BLOCK as u64) {
            return Err(bad("the runs before it are not whole blocks of 512 bytes"));
        }
        match self.found.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.end == offset => last.end = end,
            _ => self.found.push(offset..end),
        }
        (self.count, self.end, self.data) = (self.count + 1, end, self.data + len);
        Ok(())
    }

    /// The runs, which must be `stored` bytes.
    pub(super) fn finish(self, stored: u64) -> Result<Vec<Range<u64>>, BadReason> {
        if self.data != stored {
            let mapped = self.data;
            return Err(BadReason::SparseMismatch { mapped, stored });
        }
        Ok(self.found)
    }
}

/// The map of the old format, which its own header begins.
#[derive(Debug)]
pub(super) struct OldMap {
    pub(super) runs: Runs,
    /// Another block of the map follows.
    pub(super) extended: bool,
}

impl OldMap {
    /// Takes the beginning of the map from the header.
    pub(super) fn parse(header: &[u8; BLOCK]) -> Result<Self, BadReason> {
        if &header[257..265] != b"ustar  \0" {
            return Err(bad("type 'S' in a header that is not GNU tar's"));
        }
        let mut map = Self {
            runs: Runs::new(old_number("real size", &header[483..495])?),
            extended: false,
        };
        map.slots(&header[386..], OLD_SLOTS)?;
        Ok(map)
    }

    /// Takes one more block.
    pub(super) fn extend(&mut self, block: &[u8; BLOCK]) -> Result<(), BadReason> {
        self.slots(block, OLD_BLOCK_SLOTS)
    }

    /// The slots, and the byte after them that says whether another block follows. Readers differ
    /// on what follows a slot that is not used, so nothing may.
    fn slots(&mut self, bytes: &[u8], count: usize) -> Result<(), BadReason> {
        let (slots, rest) = bytes.split_at(count * 2 * OLD_NUMBER);
        self.extended = rest[0] != 0;
        let mut ended = false;
        for slot in slots.chunks_exact(2 * OLD_NUMBER) {
            if slot.iter().all(|byte| *byte == 0) {
                ended = true;
                continue;
            }
            let (offset, len) = slot.split_at(OLD_NUMBER);
            if ended || offset[0] == 0 || len[0] == 0 {
                return Err(bad("a slot of the map is used only in part"));
            }
            self.runs.push(
                old_number("offset in a sparse map", offset)?,
                old_number("length in a sparse map", len)?,
            )?;
        }
        if ended && self.extended {
            return Err(bad("the map goes on after a slot that is not used"));
        }
        Ok(())
    }
}

fn old_number(name: &'static str, field: &[u8]) -> Result<u64, BadReason> {
    u64::try_from(number(name, field)?).map_err(|_| BadReason::BadNumber {
        field: name,
        value: field.to_vec(),
    })
}

/// The `GNU.sparse.*` records of one PAX header.
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    major: Option<u64>,
    minor: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    real_size: Option<u64>,
    blocks: Option<u64>,
    /// Of the key `map`.
    map: Option<Vec<u64>>,
    /// Of the keys `offset` and `numbytes`, by turns.
    numbers: Vec<u64>,
}

/// What the records describe.
#[derive(Debug)]
pub(super) enum PaxMap {
    /// The map itself: versions 0.0 and 0.1.
    Whole(Runs),
    /// The real size; the map is at the beginning of the content: version 1.0.
    InContent(u64),
}

impl SparseRecords {
    /// Takes the record `GNU.sparse.<key>`. The order of some of them counts, so none may come
    /// twice.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), BadReason> {
        let number = || decimal(value);
        match key {
            b"major" => once(&mut self.major, number()?),
            b"minor" => once(&mut self.minor, number()?),
            b"size" => once(&mut self.size, number()?),
            b"realsize" => once(&mut self.real_size, number()?),
            b"numblocks" => once(&mut self.blocks, number()?),
            b"name" if value.is_empty() => Err(BadReason::EmptyName {
                field: "GNU.sparse.name",
            }),
            b"name" if value.contains(&0) => Err(BadReason::NulInName {
                field: "GNU.sparse.name",
            }),
            b"name" => once(&mut self.name, value.to_vec()),
            b"map" if value.is_empty() => once(&mut self.map, Vec::new()),
            b"map" => {
                let numbers = value.split(|byte| *byte == b',').map(decimal);
                once(&mut self.map, numbers.collect::<Result<_, _>>()?)
            }
            b"offset" if self.numbers.len().is_multiple_of(2) => {
                self.numbers.push(number()?);
                Ok(())
            }
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => {
                self.numbers.push(number()?);
                Ok(())
            }
            b"offset" | b"numbytes" => Err(bad("offset and numbytes do not take turns")),
            _ => Err(bad("an unknown GNU.sparse record")),
        }
    }

    /// What all the records together describe: exactly one of the formats.
    pub(super) fn map(self) -> Result<PaxMap, BadReason> {
        let Self {
            major,
            minor,
            name,
            size,
            real_size,
            blocks,
            map,
            numbers,
        } = self;
        let numbers = match (major, minor, map) {
            (Some(1), Some(0), None) if numbers.is_empty() && blocks.is_none() => {
                return match (size, real_size) {
                    (None, Some(real_size)) => Ok(PaxMap::InContent(real_size)),
                    _ => Err(bad("version 1.0 needs realsize and no size")),
                };
            }
            (Some(1), Some(0), _) => return Err(bad("the records of two versions")),
            (None, None, Some(map)) | (Some(0), Some(1), Some(map)) if numbers.is_empty() => map,
            (None, None, None) | (Some(0), Some(0), None) if name.is_none() => numbers,
            (None, None, None) => return Err(bad("a GNU.sparse.name without a map")),
            (None, None, Some(_)) | (Some(0), Some(0 | 1), _) => {
                return Err(bad("the records of two versions"));
            }
            _ => return Err(bad("an unknown version, known are 0.0, 0.1 and 1.0")),
        };
        let (Some(size), Some(blocks), None) = (size, blocks, real_size) else {
            return Err(bad(
                "versions 0.0 and 0.1 need size and numblocks and no realsize",
            ));
        };
        let mut runs = Runs::new(size);
        let (pairs, rest) = numbers.as_chunks();
        if !rest.is_empty() || pairs.len() as u64 != blocks {
            return Err(bad("numblocks is not the number of runs in the map"));
        }
        for [offset, len] in pairs {
            runs.push(*offset, *len)?;
        }
        Ok(PaxMap::Whole(runs))
    }
}

/// The map at the beginning of the content, in version 1.0: numbers, each in a line of its own.
#[derive(Debug)]
pub(super) struct ContentMap {
    pub(super) runs: Runs,
    line: Vec<u8>,
    /// Numbers that are still to come, once the first has told.
    left: Option<u64>,
    offset: Option<u64>,
}

impl ContentMap {
    pub(super) fn new(real_size: u64) -> Self {
        Self {
            runs: Runs::new(real_size),
            line: Vec::new(),
            left: None,
            offset: None,
        }
    }

    /// Takes a block; true when it was the last one.
    pub(super) fn block(&mut self, block: &[u8; BLOCK]) -> Result<bool, BadReason> {
        for byte in block {
            if self.left == Some(0) {
                break;
            }
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > MAX_DIGITS {
                    return Err(bad("a number in it has more than 20 digits"));
                }
                continue;
            }
            let number = decimal(&self.line)?;
            self.line.clear();
            match (self.left, self.offset.take()) {
                (None, _) => {
                    let numbers = number.checked_mul(2);
                    self.left = Some(numbers.ok_or_else(|| bad("it counts too many runs"))?);
                }
                (Some(left), None) => (self.left, self.offset) = (Some(left - 1), Some(number)),
                (Some(left), Some(offset)) => {
                    self.left = Some(left - 1);
                    self.runs.push(offset, number)?;
                }
            }
        }
        Ok(self.left == Some(0))
    }
}

pub(super) fn bad(problem: &'static str) -> BadReason {
    BadReason::BadSparse { problem }
}

fn decimal(value: &[u8]) -> Result<u64, BadReason> {
    let number = parse_digits(value).map(i64::unsigned_abs);
    number.ok_or_else(|| BadReason::BadNumber {
        field: "number in a sparse map",
        value: value.to_vec(),
    })
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), BadReason> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(bad("the same record twice")),
    }
}
