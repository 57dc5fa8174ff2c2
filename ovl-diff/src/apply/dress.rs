//! Owners, modes, attributes and times.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Applier, Stop};
use crate::archive::{ArchiveEntry, BadReason};
use crate::copy::{clear_attributes, drop_inherited};
use crate::error::{Context as _, TreeError};
use crate::ids::{IdKind, IdPlace, Untranslated, translate_xattr};
use crate::place::set_time;
use crate::tree::{FileKind, Node};
use crate::xattrs::{StoredName, stored_name};

impl Applier<'_> {
    /// Gives the current directory the attributes of its entry.
    pub(super) fn dress_directory(
        &mut self,
        entry: &ArchiveEntry,
        existed: bool,
    ) -> Result<(), Stop> {
        let dir = self.position.upper()?;
        let path = self.position.path().to_owned();
        if existed {
            // The later entry replaces the earlier one's attributes, not only adds to them.
            clear_attributes(self.position.view(), Node::Dir(&dir))
                .on("remove attributes of", &path)?;
        }
        let node = Node::Dir(&dir);
        let owner = match existed {
            true => None,
            false => Some(self.position.owner_of_new_directory(node)?),
        };
        self.owner_mode_xattrs(entry, node, FileKind::Directory, owner, &path)?;
        let acl_may_differ = existed || !entry.xattrs.is_empty();
        Ok(self.position.dressed(entry.mtime, acl_may_differ)?)
    }

    /// Gives a new object other than a directory the attributes of its entry.
    pub(super) fn dress(
        &mut self,
        entry: &ArchiveEntry,
        node: Node<'_>,
        kind: FileKind,
        path: &Path,
    ) -> Result<(), Stop> {
        if self.position.inherits() {
            drop_inherited(self.tree, node).on("change", path)?;
        }
        let owner = Some(self.position.owner_of_new(node, path)?);
        self.owner_mode_xattrs(entry, node, kind, owner, path)?;
        let kept = set_time(self.tree, node, entry.mtime).on("set the time of", path)?;
        self.clamped_times += u64::from(!kept);
        Ok(())
    }

    /// In this order: a change of owner clears setuid bits and capabilities. An `owner` that is
    /// right already needs none.
    fn owner_mode_xattrs(
        &mut self,
        entry: &ArchiveEntry,
        node: Node<'_>,
        kind: FileKind,
        owner: Option<(u32, u32)>,
        path: &Path,
    ) -> Result<(), Stop> {
        self.squashes = false;
        let (uid, gid) = self.owner(entry)?;
        if owner != Some((uid, gid)) {
            self.tree
                .set_owner(node, uid, gid)
                .on("set the owner of", path)?;
        }
        if kind != FileKind::Symlink {
            self.tree
                .set_mode(node, entry.mode)
                .on("set the mode of", path)?;
        }
        for (name, value) in &entry.xattrs {
            match stored_name(self.options.xattrs, name) {
                StoredName::Skip => self.skipped_xattrs += 1,
                StoredName::Keep(name) => self.xattr(node, kind, &name, value, path)?,
            }
        }
        self.squashed += u64::from(self.squashes);
        Ok(())
    }

    fn xattr(
        &mut self,
        node: Node<'_>,
        kind: FileKind,
        name: &OsStr,
        value: &[u8],
        path: &Path,
    ) -> Result<(), Stop> {
        let user = name.as_bytes().starts_with(b"user.");
        if user && !matches!(kind, FileKind::Directory | FileKind::Regular) {
            self.skipped_xattrs += 1;
            return Ok(());
        }
        let refused = || {
            let (name, problem) = (name.as_bytes().to_vec(), "the kernel refuses its value");
            Stop::Bad(BadReason::BadXattr { name, problem })
        };
        // The kernel would store it, and refuse to read it ever after.
        if value.is_empty() && name == "security.capability" {
            return Err(refused());
        }
        let value = &*self.host_value(name, value)?;
        self.tree.set_xattr(node, name, value).map_err(|source| {
            // ext4 keeps all attributes of a file in one block and calls its end "no space".
            let too_large = source.kind() == io::ErrorKind::StorageFull
                || source.kind() == io::ErrorKind::ArgumentListTooLong;
            if too_large && value.len() > 1024 {
                let name = name.as_bytes().to_vec();
                return Stop::Bad(BadReason::XattrTooLarge {
                    name,
                    len: value.len(),
                });
            }
            // Capabilities and access control lists have a form.
            if source.kind() == io::ErrorKind::InvalidInput {
                return refused();
            }
            // The namespace is unknown here, switched off, or not for this user.
            if source.kind() == io::ErrorKind::Unsupported
                || source.kind() == io::ErrorKind::PermissionDenied
            {
                let name = name.as_bytes().to_vec();
                return Stop::Bad(BadReason::XattrRefused {
                    name,
                    problem: match source.kind() {
                        io::ErrorKind::Unsupported => "does not support it",
                        _ => "does not let this user set it",
                    },
                });
            }
            Stop::Tree(TreeError::new("set an attribute of", path, source))
        })
    }

    /// The owner that an entry's object has here.
    fn owner(&mut self, entry: &ArchiveEntry) -> Result<(u32, u32), Stop> {
        let uid = self.host_id(IdPlace::Owner, IdKind::User, entry.uid)?;
        let gid = self.host_id(IdPlace::Owner, IdKind::Group, entry.gid)?;
        let (foreign, uid, gid) = (!uid.owned || !gid.owned, uid.id, gid.id);
        if foreign && !self.options.squash {
            return Err(Stop::Bad(BadReason::UnmappedOwner { uid, gid }));
        }
        self.squashes |= foreign;
        Ok((uid, gid))
    }

    /// The value of an attribute with the ids that stand here for those in it.
    fn host_value<'v>(&mut self, name: &OsStr, value: &'v [u8]) -> Result<Cow<'v, [u8]>, Stop> {
        let options = self.options;
        if options.id_maps.is_identity() && options.uids.is_none() && options.gids.is_none() {
            return Ok(Cow::Borrowed(value));
        }
        let host_id = |place, kind, id| {
            let host = self.host_id(place, kind, id)?;
            if !options.squash && !host.owned {
                let id = host.id;
                return Err(Stop::Bad(BadReason::UnmappedId { place, kind, id }));
            }
            self.squashes |= !host.owned;
            Ok(host.id)
        };
        translate_xattr(name.as_bytes(), value, host_id).map_err(|error| match error {
            Untranslated::Id(stop) => stop,
            Untranslated::Malformed => {
                let (name, problem) = (name.as_bytes().to_vec(), "its value has not the form");
                Stop::Bad(BadReason::BadXattr { name, problem })
            }
        })
    }

    /// The id here of one in the archive; root's where there is none and owners are squashed.
    fn host_id(&self, place: IdPlace, kind: IdKind, id: u32) -> Result<HostId, Stop> {
        let options = self.options;
        let map = kind.map(&options.id_maps);
        let ranges = match kind {
            IdKind::User => &options.uids,
            IdKind::Group => &options.gids,
        };
        let owned = |id: u32| {
            ranges
                .as_ref()
                .is_none_or(|all| all.iter().any(|one| one.contains(&u64::from(id))))
        };
        match map.to_host(id) {
            Some(id) if owned(id) => Ok(HostId { id, owned: true }),
            _ if options.squash => Ok(HostId {
                id: map.root(),
                owned: false,
            }),
            Some(id) => Ok(HostId { id, owned: false }),
            None => Err(Stop::Bad(BadReason::NoHostId {
                place,
                kind,
                id,
                map: map.clone(),
            })),
        }
    }
}

/// An id on disk.
struct HostId {
    id: u32,
    /// Whether it is the one asked for, and can own files here.
    owned: bool,
}
