use std::fmt;
use std::str::FromStr;

/// An SELinux context for a whole mount, as `system_u:object_r:container_file_t:s0:c1,c2`.
///
/// A label is a value of its own and never pasted into other options: it holds printable ASCII
/// without quotation mark and backslash, so no label can end its option and begin another.
///
/// ```
/// use ovl_mount::MountLabel;
///
/// assert!("system_u:object_r:container_file_t:s0:c1,c2".parse::<MountLabel>().is_ok());
/// assert!(r#"a",upperdir=/x,"b"#.parse::<MountLabel>().is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MountLabel(Box<str>);

impl MountLabel {
    /// Longest label, in bytes: the longest string value that `fsconfig(2)` takes.
    pub const MAX_LEN: usize = 255;

    /// The label as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MountLabel {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, LabelError> {
        if text.is_empty() {
            return Err(LabelError::Empty);
        }
        if text.len() > Self::MAX_LEN {
            return Err(LabelError::TooLong {
                len: text.len(),
                max: Self::MAX_LEN,
            });
        }
        let refused = |byte: u8| !byte.is_ascii_graphic() || matches!(byte, b'"' | b'\\');
        match text.bytes().enumerate().find(|&(_, byte)| refused(byte)) {
            Some((offset, byte)) => Err(LabelError::ForbiddenByte { byte, offset }),
            None => Ok(Self(text.into())),
        }
    }
}

impl fmt::Display for MountLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is not a mount label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LabelError {
    /// The text is empty; leave the label out instead.
    #[error("a mount label cannot be empty; leave it out")]
    Empty,
    /// Longer than [`MountLabel::MAX_LEN`].
    #[error("a mount label has at most {max} bytes, this one has {len}")]
    #[non_exhaustive]
    TooLong {
        /// Bytes in the text.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
    /// A quotation mark, backslash, space, control byte or a byte that is not ASCII.
    #[error("a mount label cannot hold the byte {byte:#04x} at offset {offset}")]
    #[non_exhaustive]
    ForbiddenByte {
        /// The byte.
        byte: u8,
        /// Its offset in bytes.
        offset: usize,
    },
}
