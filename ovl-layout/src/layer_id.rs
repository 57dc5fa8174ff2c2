use std::ffi::OsStr;
use std::fmt;
use std::str::FromStr;

use crate::paths::names;

/// The name of a layer: `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`, and none of the names that the store or
/// Docker's driver keeps for itself.
///
/// A layer id is always one plain path component, so joining it to a home cannot leave the home.
///
/// ```
/// use ovl_layout::{LayerId, LayerIdError};
///
/// assert!("3f9c-init".parse::<LayerId>().is_ok());
/// assert_eq!("".parse::<LayerId>(), Err(LayerIdError::Empty));
/// assert!(matches!("../x".parse::<LayerId>(), Err(LayerIdError::ForbiddenByte { byte: b'.', offset: 0, .. })));
/// assert!(matches!("l".parse::<LayerId>(), Err(LayerIdError::Reserved { .. })));
/// ```
///
/// # Compatibility
///
/// Docker's driver takes any string. Every id that Docker itself makes (64 hexadecimal digits, the
/// same with `-init`, 25 base-36 digits) is accepted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(Box<str>);

impl LayerId {
    /// Longest id, in bytes.
    pub const MAX_LEN: usize = 128;

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads an id from a file name.
    ///
    /// # Errors
    ///
    /// The same as [`LayerId::from_str`].
    pub fn from_file_name(name: &OsStr) -> Result<Self, LayerIdError> {
        let bytes = name.as_encoded_bytes();
        check(bytes)?;
        // `check` leaves ASCII only.
        Ok(Self(String::from_utf8_lossy(bytes).into()))
    }
}

impl FromStr for LayerId {
    type Err = LayerIdError;

    fn from_str(text: &str) -> Result<Self, LayerIdError> {
        check(text.as_bytes())?;
        Ok(Self(text.into()))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for LayerId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl AsRef<OsStr> for LayerId {
    fn as_ref(&self) -> &OsStr {
        OsStr::new(&*self.0)
    }
}

/// Why a text is not a layer id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayerIdError {
    /// The text is empty.
    #[error("a layer id cannot be empty")]
    Empty,
    /// The store or Docker's driver keeps this name for itself.
    #[error("the layer id {id:?} is reserved; choose another name")]
    #[non_exhaustive]
    Reserved {
        /// The refused text.
        id: String,
    },
    /// A byte that no id may hold, or that no id may start with.
    #[error(
        "the layer id {id:?} has the byte {byte:#04x} at offset {offset}; ids are letters, digits, '_', '.' and '-', and start with a letter or digit"
    )]
    #[non_exhaustive]
    ForbiddenByte {
        /// The refused text, shortened and escaped.
        id: String,
        /// The first refused byte.
        byte: u8,
        /// Its offset in bytes.
        offset: usize,
    },
    /// Longer than [`LayerId::MAX_LEN`].
    #[error("a layer id has at most {max} bytes, this one has {len}")]
    #[non_exhaustive]
    TooLong {
        /// Bytes in the text.
        len: usize,
        /// Most bytes allowed.
        max: usize,
    },
}

fn check(bytes: &[u8]) -> Result<(), LayerIdError> {
    if bytes.is_empty() {
        return Err(LayerIdError::Empty);
    }
    if bytes.len() > LayerId::MAX_LEN {
        return Err(LayerIdError::TooLong {
            len: bytes.len(),
            max: LayerId::MAX_LEN,
        });
    }
    let allowed = |(offset, byte): (usize, u8)| {
        byte.is_ascii_alphanumeric() || (offset > 0 && matches!(byte, b'_' | b'.' | b'-'))
    };
    if let Some((offset, byte)) = bytes.iter().copied().enumerate().find(|&at| !allowed(at)) {
        let id = String::from_utf8_lossy(bytes).into_owned();
        return Err(LayerIdError::ForbiddenByte { id, byte, offset });
    }
    let reserved = names::RESERVED.iter().any(|name| name.as_bytes() == bytes)
        || names::PROBE_PREFIXES
            .iter()
            .any(|prefix| bytes.starts_with(prefix.as_bytes()));
    if reserved {
        return Err(LayerIdError::Reserved {
            id: String::from_utf8_lossy(bytes).into_owned(),
        });
    }
    Ok(())
}
