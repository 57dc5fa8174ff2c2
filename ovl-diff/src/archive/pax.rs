//! The records of PAX extended headers: `LENGTH KEY=VALUE\n`, values of any bytes.

use std::collections::HashSet;

use super::BadReason;
use super::header::id;
use super::sparse::SparseRecords;
use crate::tree::Timestamp;

/// The largest owner; the next one means "leave as it is" to `chown(2)`.
pub(super) const MAX_ID: u32 = u32::MAX - 1;

/// `XATTR_NAME_MAX` of Linux, in bytes.
const MAX_XATTR_NAME: usize = 255;

/// What a local extended header says about the next entry. Of several records with one key, the
/// last counts.
#[derive(Default)]
pub(super) struct Pax {
    /// Empty means: as in the header.
    pub(super) path: Option<Vec<u8>>,
    /// Empty means: as in the header.
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: Option<SparseRecords>,
}

impl Pax {
    pub(super) fn parse(data: &[u8]) -> Result<Self, BadReason> {
        let mut pax = Self::default();
        for record in Records::new(data) {
            let (key, value) = record?;
            match key {
                b"path" => pax.path = Some(name("path", value)?),
                b"linkpath" => pax.link = Some(name("linkpath", value)?),
                b"size" => pax.size = Some(decimal("size", value)?.unsigned_abs()),
                b"uid" => pax.uid = Some(id("uid", decimal("uid", value)?)?),
                b"gid" => pax.gid = Some(id("gid", decimal("gid", value)?)?),
                b"mtime" => pax.mtime = Some(timestamp(value).ok_or_else(|| bad("mtime", value))?),
                _ => {
                    if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                        pax.sparse.get_or_insert_default().record(key, value)?;
                    } else if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        check_xattr(name)?;
                        pax.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        keep_last(&mut pax.xattrs);
        Ok(pax)
    }
}

/// Checks a global header. Docker ignores all of it, GNU tar applies all of it; what both must agree
/// on for the same tree to come out is refused.
pub(super) fn check_global(data: &[u8]) -> Result<(), BadReason> {
    for record in Records::new(data) {
        let (key, _) = record?;
        for critical in ["path", "linkpath", "size"] {
            if key == critical.as_bytes() {
                return Err(BadReason::GlobalOverride { key: critical });
            }
        }
        if key.starts_with(b"GNU.sparse.") {
            return Err(BadReason::GlobalOverride { key: "GNU.sparse" });
        }
    }
    Ok(())
}

struct Records<'a> {
    data: &'a [u8],
    position: usize,
}

impl<'a> Records<'a> {
    fn new(data: &'a [u8]) -> Self {
        Self { data, position: 0 }
    }

    fn record(&mut self) -> Result<(&'a [u8], &'a [u8]), &'static str> {
        let rest = &self.data[self.position..];
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let len = parse_digits(&rest[..digits]).ok_or("its length is not a number")?;
        if rest.get(digits) != Some(&b' ') {
            return Err("its length is not followed by a space");
        }
        let len = usize::try_from(len).ok().filter(|len| *len <= rest.len());
        let record = &rest[..len.ok_or("its length goes past the end of the header")?];
        let record = record.get(digits + 1..).ok_or("its length is too short")?;
        let record = record.strip_suffix(b"\n").ok_or("no newline at its end")?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or("no '=' in it")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() {
            return Err("its key is empty");
        }
        if key.contains(&0) {
            return Err("a zero byte in its key");
        }
        self.position += digits + 1 + record.len() + 1;
        Ok((key, value))
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), BadReason>;

    fn next(&mut self) -> Option<Self::Item> {
        let position = self.position;
        (position < self.data.len()).then(|| {
            self.record()
                .map_err(|problem| BadReason::BadPax { position, problem })
        })
    }
}

fn name(field: &'static str, value: &[u8]) -> Result<Vec<u8>, BadReason> {
    if value.contains(&0) {
        return Err(BadReason::NulInName { field });
    }
    Ok(value.to_vec())
}

fn check_xattr(name: &[u8]) -> Result<(), BadReason> {
    let dot = name.iter().position(|byte| *byte == b'.');
    let problem = match dot {
        _ if name.is_empty() => "it is empty",
        _ if name.len() > MAX_XATTR_NAME => "it has more than 255 bytes",
        None | Some(0) => "it has no namespace, as in user.name",
        Some(dot) if dot + 1 == name.len() => "nothing follows its namespace",
        _ => return Ok(()),
    };
    Err(BadReason::BadXattr {
        name: name.to_vec(),
        problem,
    })
}

/// Drops all attributes but the last of each name.
fn keep_last(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>) {
    if xattrs.len() < 2 {
        return;
    }
    let mut seen = HashSet::with_capacity(xattrs.len());
    let mut keep: Vec<bool> = xattrs
        .iter()
        .rev()
        .map(|(name, _)| seen.insert(name.as_slice()))
        .collect();
    xattrs.retain(|_| keep.pop().unwrap_or(true));
}

/// Decimal digits and nothing else; at most `i64::MAX`.
fn decimal(field: &'static str, value: &[u8]) -> Result<i64, BadReason> {
    parse_digits(value).ok_or_else(|| bad(field, value))
}

fn bad(field: &'static str, value: &[u8]) -> BadReason {
    BadReason::BadNumber {
        field,
        value: value.to_vec(),
    }
}

/// `str::parse` would also take a sign.
pub(super) fn parse_digits(text: &[u8]) -> Option<i64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| i64::from(byte - b'0'));
    let (first, rest) = text.split_first()?;
    rest.iter().try_fold(digit(first)?, |value, byte| {
        value.checked_mul(10)?.checked_add(digit(byte)?)
    })
}

/// `[-]SECONDS[.[FRACTION]]`, rounded down to a nanosecond.
fn timestamp(text: &[u8]) -> Option<Timestamp> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(text) => (true, text),
        None => (false, text),
    };
    let dot = text
        .iter()
        .position(|byte| *byte == b'.')
        .unwrap_or(text.len());
    let fraction = text.get(dot + 1..).unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let secs = parse_digits(&text[..dot])?;
    let place = |place: usize| {
        fraction
            .get(place)
            .map_or(0, |digit| u32::from(digit - b'0'))
    };
    let nanos = (0..9).fold(0, |nanos, digit| nanos * 10 + place(digit));
    if !negative {
        return Some(Timestamp { secs, nanos });
    }
    let more = fraction.iter().skip(9).any(|digit| *digit != b'0');
    match nanos + u32::from(more) {
        0 => Some(Timestamp {
            secs: -secs,
            nanos: 0,
        }),
        nanos => Some(Timestamp {
            secs: (-secs).checked_sub(1)?,
            nanos: 1_000_000_000 - nanos,
        }),
    }
}
