//! Owners in archives and on disk, also those inside extended attributes.

use std::borrow::Cow;
use std::fmt;

use ovl_layout::{IdMap, IdMaps};

use crate::xattrs::{ACCESS_ACL, DEFAULT_ACL};

/// What a number is the id of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdKind {
    /// A user.
    User,
    /// A group.
    Group,
}

impl IdKind {
    pub(crate) fn map(self, maps: &IdMaps) -> &IdMap {
        match self {
            Self::User => &maps.uids,
            Self::Group => &maps.gids,
        }
    }
}

/// `uid` or `gid`.
impl fmt::Display for IdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "uid",
            Self::Group => "gid",
        })
    }
}

/// What an object has an id in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IdPlace {
    /// Its owner.
    Owner,
    /// A POSIX access control list.
    AccessControlList,
    /// A capability that counts in one user namespace only.
    Capability,
}

/// `owner`, `access control list` or `capability`.
impl fmt::Display for IdPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Owner => "owner",
            Self::AccessControlList => "access control list",
            Self::Capability => "capability",
        })
    }
}

/// Why the ids in a value were not translated.
#[derive(Debug, PartialEq)]
pub(crate) enum Untranslated<E> {
    /// It has not the form that its name asks for.
    Malformed,
    /// The translation refused an id.
    Id(E),
}

/// The value of an extended attribute with the ids in it translated.
pub(crate) fn translate_xattr<'v, E>(
    name: &[u8],
    value: &'v [u8],
    translate: impl FnMut(IdPlace, IdKind, u32) -> Result<u32, E>,
) -> Result<Cow<'v, [u8]>, Untranslated<E>> {
    if name == ACCESS_ACL.as_bytes() || name == DEFAULT_ACL.as_bytes() {
        return translate_acl(value, translate).map(Cow::Owned);
    }
    if name == CAPABILITY && is_namespaced(value) {
        return translate_capability(value, translate).map(Cow::Owned);
    }
    Ok(Cow::Borrowed(value))
}

/// The form of a capability that the kernel shows to the root that it counts for.
pub(crate) fn plain_capability(name: &[u8], value: Vec<u8>) -> Vec<u8> {
    let of_root = name == CAPABILITY
        && value.len() == CAPABILITY_3_LEN
        && is_namespaced(&value)
        && value.ends_with(&[0; 4]);
    if !of_root {
        return value;
    }
    let mut value = value;
    value[3] = CAPABILITY_2;
    value.truncate(CAPABILITY_3_LEN - 4);
    value
}

// linux/posix_acl_xattr.h
const ACL_VERSION: [u8; 4] = 2_u32.to_le_bytes();
const ACL_ENTRY_LEN: usize = 8;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// After the version, each entry is a tag, permissions and an id, which two tags use.
fn translate_acl<E>(
    value: &[u8],
    mut translate: impl FnMut(IdPlace, IdKind, u32) -> Result<u32, E>,
) -> Result<Vec<u8>, Untranslated<E>> {
    let entries = value.strip_prefix(&ACL_VERSION);
    let entries = entries.ok_or(Untranslated::Malformed)?;
    let (entries, []) = entries.as_chunks::<ACL_ENTRY_LEN>() else {
        return Err(Untranslated::Malformed);
    };
    let mut translated = ACL_VERSION.to_vec();
    for &[tag_low, tag_high, perm_low, perm_high, a, b, c, d] in entries {
        let kind = match u16::from_le_bytes([tag_low, tag_high]) {
            ACL_USER => Some(IdKind::User),
            ACL_GROUP => Some(IdKind::Group),
            _ => None,
        };
        let mut id = u32::from_le_bytes([a, b, c, d]);
        if let Some(kind) = kind {
            id = translate(IdPlace::AccessControlList, kind, id).map_err(Untranslated::Id)?;
        }
        translated.extend_from_slice(&[tag_low, tag_high, perm_low, perm_high]);
        translated.extend_from_slice(&id.to_le_bytes());
    }
    Ok(translated)
}

// linux/capability.h
const CAPABILITY: &[u8] = b"security.capability";
const CAPABILITY_2: u8 = 2;
const CAPABILITY_3: u8 = 3;
const CAPABILITY_3_LEN: usize = 24;

/// The third revision ends with the user id of the root that it counts for.
fn is_namespaced(value: &[u8]) -> bool {
    value.get(3) == Some(&CAPABILITY_3)
}

fn translate_capability<E>(
    value: &[u8],
    mut translate: impl FnMut(IdPlace, IdKind, u32) -> Result<u32, E>,
) -> Result<Vec<u8>, Untranslated<E>> {
    let Some((rest, &root)) = value.split_last_chunk::<4>() else {
        return Err(Untranslated::Malformed);
    };
    if value.len() != CAPABILITY_3_LEN {
        return Err(Untranslated::Malformed);
    }
    let root = translate(IdPlace::Capability, IdKind::User, u32::from_le_bytes(root));
    let root = root.map_err(Untranslated::Id)?;
    Ok([rest, &root.to_le_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shift(_: IdPlace, kind: IdKind, id: u32) -> Result<u32, (IdKind, u32)> {
        match id {
            0..100 => Ok(id + 1000),
            _ => Err((kind, id)),
        }
    }

    fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = ACL_VERSION.to_vec();
        for (tag, perm, id) in entries {
            value.extend_from_slice(&tag.to_le_bytes());
            value.extend_from_slice(&perm.to_le_bytes());
            value.extend_from_slice(&id.to_le_bytes());
        }
        value
    }

    fn capability(revision: u8, root: &[u8]) -> Vec<u8> {
        let mut value = vec![1, 0, 0, revision];
        value.extend_from_slice(&[7; 16]);
        value.extend_from_slice(root);
        value
    }

    #[test]
    fn only_the_ids_of_named_users_and_groups_in_an_acl_change() {
        let none = u32::MAX;
        let entries = |user, group| {
            acl(&[
                (0x01, 6, none),
                (0x02, 4, user),
                (0x04, 4, none),
                (0x08, 5, group),
                (0x10, 7, none),
                (0x20, 0, none),
            ])
        };
        let before = entries(7, 8);
        for name in [ACCESS_ACL, DEFAULT_ACL] {
            let after = translate_xattr(name.as_bytes(), &before, shift).unwrap();
            assert_eq!(*after, entries(1007, 1008));
        }
        let foreign = entries(7, 100);
        let refused = translate_xattr(ACCESS_ACL.as_bytes(), &foreign, shift);
        assert_eq!(refused, Err(Untranslated::Id((IdKind::Group, 100))));
    }

    #[test]
    fn an_acl_that_is_none_is_not_passed_on() {
        let good = acl(&[(0x02, 4, 7)]);
        for len in [0, 3, 5, good.len() - 1] {
            let result = translate_xattr(ACCESS_ACL.as_bytes(), &good[..len], shift);
            assert_eq!(result, Err(Untranslated::Malformed), "{len}");
        }
        let mut version = good;
        version[0] = 1;
        let result = translate_xattr(ACCESS_ACL.as_bytes(), &version, shift);
        assert_eq!(result, Err(Untranslated::Malformed));
    }

    #[test]
    fn only_a_capability_of_the_third_revision_has_an_id() {
        let second = capability(2, &[]);
        assert_eq!(
            translate_xattr(CAPABILITY, &second, shift).unwrap(),
            second.as_slice()
        );
        let third = capability(3, &5_u32.to_le_bytes());
        let after = translate_xattr(CAPABILITY, &third, shift).unwrap();
        assert_eq!(*after, capability(3, &1005_u32.to_le_bytes()));
        for root in [&[][..], &[0; 3], &[0; 8]] {
            let short = capability(3, root);
            let result = translate_xattr(CAPABILITY, &short, shift);
            assert_eq!(result, Err(Untranslated::Malformed));
        }
        let foreign = capability(3, &100_u32.to_le_bytes());
        let refused = translate_xattr(CAPABILITY, &foreign, shift);
        assert_eq!(refused, Err(Untranslated::Id((IdKind::User, 100))));
    }

    #[test]
    fn a_capability_for_root_itself_takes_the_second_revision() {
        let own = capability(3, &[0; 4]);
        assert_eq!(
            plain_capability(CAPABILITY, own.clone()),
            capability(2, &[])
        );
        assert_eq!(plain_capability(b"user.x", own.clone()), own);
        let other = capability(3, &1_u32.to_le_bytes());
        assert_eq!(plain_capability(CAPABILITY, other.clone()), other);
    }

    #[test]
    fn other_attributes_are_left_alone() {
        let value = translate_xattr(b"user.acl", b"x", shift).unwrap();
        assert_eq!(*value, *b"x");
    }
}
