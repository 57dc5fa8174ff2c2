use std::fmt;
use std::str::FromStr;

/// The SHA-256 digest of a layer's uncompressed archive, as in an OCI image's `rootfs.diff_ids`.
///
/// As text: `sha256:` and 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DiffId([u8; 32]);

impl DiffId {
    const PREFIX: &str = "sha256:";

    /// A digest that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// The digest itself.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::PREFIX)?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for DiffId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DiffId({self})")
    }
}

impl FromStr for DiffId {
    type Err = DiffIdError;

    fn from_str(text: &str) -> Result<Self, DiffIdError> {
        let digits = text
            .strip_prefix(Self::PREFIX)
            .ok_or(DiffIdError::NotSha256)?
            .as_bytes();
        let mut digest = [0; 32];
        if digits.len() != 2 * digest.len() {
            return Err(DiffIdError::Length { len: digits.len() });
        }
        for (offset, digit) in digits.iter().enumerate() {
            let nibble = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return Err(DiffIdError::Digit { offset }),
            };
            digest[offset / 2] = digest[offset / 2] << 4 | nibble;
        }
        Ok(Self(digest))
    }
}

/// Why a text is not a diff id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiffIdError {
    /// Another digest algorithm, or none.
    #[error("a diff id starts with \"sha256:\"")]
    NotSha256,
    /// Too short or too long.
    #[error("a diff id has 64 hexadecimal digits, this one has {len} bytes after \"sha256:\"")]
    #[non_exhaustive]
    Length {
        /// Bytes after the prefix.
        len: usize,
    },
    /// A byte other than `0` to `9` and `a` to `f`.
    #[error("byte {offset} after \"sha256:\" is not a lower-case hexadecimal digit")]
    #[non_exhaustive]
    Digit {
        /// Its offset after the prefix.
        offset: usize,
    },
}
