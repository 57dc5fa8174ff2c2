//! Which extended attributes pass between a layer's tree and its archive, and under which name.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use ovl_layout::XattrNamespace;

/// The kernel's own escape: overlayfs shows `trusted.overlay.overlay.x` as `trusted.overlay.x`.
const ESCAPE: &[u8] = b"overlay.";

/// What becomes of an attribute that an archive brings.
pub(crate) enum StoredName {
    /// Set under this name.
    Keep(OsString),
    /// Left out.
    Skip,
}

/// The name under which an archive's attribute is stored: overlay's private ones are escaped, so
/// that the kernel shows them and does not obey them.
pub(crate) fn stored_name(namespace: XattrNamespace, name: &[u8]) -> StoredName {
    let prefix = namespace.prefix().as_bytes();
    if is_host_only(OsStr::from_bytes(name)) {
        StoredName::Skip
    } else if let Some(rest) = name.strip_prefix(prefix) {
        StoredName::Keep(OsString::from_vec([prefix, ESCAPE, rest].concat()))
    } else {
        StoredName::Keep(OsStr::from_bytes(name).to_owned())
    }
}

/// The name under which a stored attribute is exported, `None` when it is not.
pub(crate) fn exported_name(namespace: XattrNamespace, name: &OsStr) -> Option<Vec<u8>> {
    let bytes = name.as_bytes();
    let prefix = namespace.prefix().as_bytes();
    if let Some(rest) = bytes.strip_prefix(prefix) {
        // An escaped attribute is the user's, everything else is the kernel's.
        return rest.strip_prefix(ESCAPE).map(|own| [prefix, own].concat());
    }
    let known = [&b"user."[..], b"trusted.", b"security."];
    let kept = known.iter().any(|prefix| bytes.starts_with(prefix)) && !is_host_only(name)
        || name == ACCESS_ACL
        || name == DEFAULT_ACL;
    kept.then(|| bytes.to_vec())
}

/// Whether overlayfs keeps this attribute for itself; an escaped one is the user's.
pub(crate) fn is_private(namespace: XattrNamespace, name: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(namespace.prefix().as_bytes());
    rest.is_some_and(|rest| !rest.starts_with(ESCAPE))
}

/// Whether a private attribute says what a layer's object is, not only what the kernel noted about
/// where it came from.
pub(crate) fn is_structural(namespace: XattrNamespace, name: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(namespace.prefix().as_bytes());
    matches!(
        rest,
        Some(b"opaque" | b"redirect" | b"metacopy" | b"whiteout" | b"protattr")
    )
}

/// Whether a private attribute leads to the inode that the object was copied up from.
pub(crate) fn is_origin(namespace: XattrNamespace, name: &OsStr) -> bool {
    let rest = name.as_bytes().strip_prefix(namespace.prefix().as_bytes());
    rest == Some(b"origin")
}

/// What new objects in a directory inherit as their access control list.
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";

/// Who may do what to an object.
pub(crate) const ACCESS_ACL: &str = "system.posix_acl_access";

/// Whether the kernel gives this attribute to new objects in a directory with [`DEFAULT_ACL`].
pub(crate) fn is_inherited(name: &OsStr) -> bool {
    name == DEFAULT_ACL || name == ACCESS_ACL
}

/// Whether the value means something on the machine it comes from only: a label or signature of its
/// security modules, or XFS's own form of access control lists, which it shows beside the common one.
pub(crate) fn is_host_only(name: &OsStr) -> bool {
    match name.as_bytes() {
        b"security.capability" | b"security.ima" => false,
        b"trusted.SGI_ACL_FILE" | b"trusted.SGI_ACL_DEFAULT" => true,
        other => other.starts_with(b"security."),
    }
}
