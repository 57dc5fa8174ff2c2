//! The names of attributes, as merged views show and store them.

use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use super::inode::Result;
use super::overlay::Private;

/// Under which name a merged view shows a stored attribute.
pub(super) fn shown_name(private: Option<Private>, name: &OsStr) -> Option<OsString> {
    let Some(private) = private else {
        return Some(name.to_owned());
    };
    if private.has(name) {
        return None;
    }
    let prefix = private.prefix;
    let own = name.as_encoded_bytes().strip_prefix(prefix.as_bytes());
    let own = own.and_then(|rest| rest.strip_prefix(b"overlay."));
    Some(match own {
        Some(own) => join(prefix, own),
        None => name.to_owned(),
    })
}

/// Under which name an attribute set through a merged view is stored.
pub(super) fn stored_name(private: Option<Private>, name: &OsStr) -> Result<OsString> {
    let Some(Private { prefix, escapes }) = private else {
        return Ok(name.to_owned());
    };
    match name.as_encoded_bytes().strip_prefix(prefix.as_bytes()) {
        Some(_) if !escapes => Err(Errno::OPNOTSUPP),
        Some(own) => Ok(join(prefix, &[b"overlay.", own].concat())),
        None => Ok(name.to_owned()),
    }
}

fn join(prefix: &str, rest: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStringExt as _;
    OsString::from_vec([prefix.as_bytes(), rest].concat())
}
