//! The 512-byte headers of v7, ustar, star and GNU tar.

use super::BadReason;
use super::pax::MAX_ID;
use crate::tree::{DeviceNumber, Timestamp};

/// The unit of a tar stream, in bytes.
pub(super) const BLOCK: usize = 512;

const CHECKSUM: std::ops::Range<usize> = 148..156;

/// A header whose checksum and format were checked.
pub(super) struct Header<'a> {
    block: &'a [u8; BLOCK],
    prefix_len: usize,
}

impl<'a> Header<'a> {
    pub(super) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, BadReason> {
        check_sum(block)?;
        let typeflag = block[156];
        let magic: [u8; 8] = std::array::from_fn(|place| block[257 + place]);
        let prefix_len = match &magic {
            b"ustar\x0000" | b"ustar\0\0\0" if &block[508..] == b"tar\0" => 131,
            b"ustar\x0000" | b"ustar\0\0\0" => 155,
            // GNU tar has times and sparse maps there.
            b"ustar  \0" => 0,
            // Version 7 knows no other types, in particular no extension headers.
            [0, 0, 0, 0, 0, 0, 0, 0] if matches!(typeflag, 0 | b'0' | b'1' | b'2' | b'5') => 0,
            _ => return Err(BadReason::UnknownMagic { magic, typeflag }),
        };
        Ok(Self { block, prefix_len })
    }

    /// All of it.
    pub(super) fn block(&self) -> &'a [u8; BLOCK] {
        self.block
    }

    pub(super) fn typeflag(&self) -> u8 {
        self.block[156]
    }

    /// The name, put together.
    pub(super) fn path(&self) -> Vec<u8> {
        let name = raw_name(self.block);
        match until_nul(&self.block[345..345 + self.prefix_len]) {
            [] => name.to_vec(),
            prefix => [prefix, name].join(&b'/'),
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        until_nul(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<u32, BadReason> {
        let field = &self.block[100..108];
        let mode = number("mode", field)?;
        // Some writers put the file type there as well.
        u64::try_from(mode)
            .map(|mode| (mode & 0o7777) as u32)
            .map_err(|_| bad("mode", field))
    }

    pub(super) fn uid(&self) -> Result<u32, BadReason> {
        id("uid", number("uid", &self.block[108..116])?)
    }

    pub(super) fn gid(&self) -> Result<u32, BadReason> {
        id("gid", number("gid", &self.block[116..124])?)
    }

    pub(super) fn size(&self) -> Result<u64, BadReason> {
        let field = &self.block[124..136];
        u64::try_from(number("size", field)?).map_err(|_| bad("size", field))
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, BadReason> {
        Ok(Timestamp {
            secs: number("mtime", &self.block[136..148])?,
            nanos: 0,
        })
    }

    /// The device number; what the kernel's 12 and 20 bits cannot hold would become another one.
    pub(super) fn device(&self) -> Result<DeviceNumber, BadReason> {
        let major = number("device major number", &self.block[329..337])?;
        let minor = number("device minor number", &self.block[337..345])?;
        match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major @ 0..=0xfff), Ok(minor @ 0..=0xf_ffff)) => Ok(DeviceNumber { major, minor }),
            _ => Err(BadReason::BadDevice { major, minor }),
        }
    }
}

/// Checks that an owner is one that the kernel can set.
pub(super) fn id(field: &'static str, value: i64) -> Result<u32, BadReason> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id <= MAX_ID)
        .ok_or(BadReason::IdOutOfRange { field, value })
}

/// The first 100 bytes of the name, of any header.
pub(super) fn raw_name(block: &[u8; BLOCK]) -> &[u8] {
    until_nul(&block[..100])
}

/// Guesses what a stream is that does not start with a tar header.
pub(super) fn guess(start: &[u8]) -> &'static str {
    match start {
        [] => "it is empty",
        [b'P', b'K', 3 | 5 | 7, ..] => "it looks like a zip file",
        [0x7f, b'E', b'L', b'F', ..] => "it looks like an ELF program",
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => "it is compressed twice",
        [b'{' | b'[', ..] => "it looks like JSON, perhaps a manifest or an image's configuration",
        [b'<', ..] => "it looks like HTML or XML, perhaps a server's error page",
        [b'h', b's', b'q', b's', ..] => "it looks like a squashfs image",
        _ if start.starts_with(b"07070") || start.starts_with(b"\xc7\x71") => {
            "it looks like a cpio archive"
        }
        _ if start.starts_with(b"!<arch>\n") => "it looks like an ar archive or a Debian package",
        _ if start.len() < BLOCK => "it is shorter than a tar header, which has 512 bytes",
        _ => "it does not start with a tar header",
    }
}

/// Whether something claims to be a tar header, sound or not.
pub(super) fn claims_to_be_tar(start: &[u8]) -> bool {
    start.get(257..262) == Some(b"ustar".as_slice())
}

fn check_sum(block: &[u8; BLOCK]) -> Result<(), BadReason> {
    let stored = octal("checksum", &block[CHECKSUM])?;
    // In 32 bits, which the compiler turns into vector instructions.
    let sum = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    let high = |bytes: &[u8]| bytes.iter().map(|byte| u32::from(byte >> 7)).sum::<u32>();
    let own = &block[CHECKSUM];
    let computed = i64::from(sum(block) - sum(own)) + 8 * i64::from(b' ');
    // Some old systems added signed bytes.
    if stored == computed || stored == computed - 256 * i64::from(high(block) - high(own)) {
        return Ok(());
    }
    Err(BadReason::BadChecksum { stored, computed })
}

/// A number in octal digits or in base 256.
pub(super) fn number(name: &'static str, field: &[u8]) -> Result<i64, BadReason> {
    if field[0] & 0x80 == 0 {
        octal(name, field)
    } else {
        base256(name, field)
    }
}

/// Octal digits, led by spaces, ended by spaces, NULs or the end of the field. Nothing else may
/// follow: readers disagree on whether it counts. A blank field is 0.
fn octal(name: &'static str, field: &[u8]) -> Result<i64, BadReason> {
    let mut value: i64 = 0;
    let mut bytes = field.iter().skip_while(|byte| **byte == b' ');
    for byte in bytes.by_ref() {
        match byte {
            // At most 12 digits of 3 bits.
            b'0'..=b'7' => value = value << 3 | i64::from(byte - b'0'),
            b' ' | 0 => break,
            _ => return Err(bad(name, field)),
        }
    }
    if bytes.all(|byte| matches!(byte, b' ' | 0)) {
        Ok(value)
    } else {
        Err(bad(name, field))
    }
}

/// GNU's big-endian two's complement, whose first bit only marks it.
fn base256(name: &'static str, field: &[u8]) -> Result<i64, BadReason> {
    let negative = field[0] & 0x40 != 0;
    let mut value: i64 = if negative { -1 } else { 0 };
    for (place, byte) in field.iter().enumerate() {
        let byte = match (place, negative) {
            (0, true) => byte | 0x80,
            (0, false) => byte & 0x7f,
            _ => *byte,
        };
        value = value.checked_mul(256).ok_or_else(|| bad(name, field))? | i64::from(byte);
    }
    Ok(value)
}

fn bad(field: &'static str, value: &[u8]) -> BadReason {
    BadReason::BadNumber {
        field,
        value: value.to_vec(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    let len = field
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(field.len());
    &field[..len]
}
