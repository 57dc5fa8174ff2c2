//! Owners, modes, attributes and times.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::{Applier, Stop};
use crate::archive::{ArchiveEntry, BadReason};
use crate::copy::{clear_attributes, drop_inherited};
use crate::error::{Context as _, TreeError};
use crate::ids::{IdKind, IdPlace, Untranslated, translate_xattr};
use crate::place::set_time;
use crate::tree::{FileKind, Node, Timestamp, TreeBackend};
use crate::xattrs::{StoredName, stored_name};

/// The attributes that a new object gets.
pub(super) struct Dress {
    /// It may have inherited an access control list that nobody asked for.
    inherits: bool,
    /// `None` where it is right already.
    owner: Option<(u32, u32)>,
    /// `None` where there is none to be set.
    mode: Option<u32>,
    xattrs: Vec<(OsString, Vec<u8>)>,
    /// `None` where it is set later.
    mtime: Option<Timestamp>,
}

impl Dress {
    /// In this order: a change of owner clears setuid bits and capabilities. Says whether the file
    /// system can hold the time.
    pub(super) fn put_on(
        &self,
        tree: &dyn TreeBackend,
        node: Node<'_>,
        path: &Path,
    ) -> Result<bool, Stop> {
        if self.inherits {
            drop_inherited(tree, node).on("change", path)?;
        }
        if let Some((uid, gid)) = self.owner {
            tree.set_owner(node, uid, gid)
                .on("set the owner of", path)?;
        }
        if let Some(mode) = self.mode {
            tree.set_mode(node, mode).on("set the mode of", path)?;
        }
        for (name, value) in &self.xattrs {
            tree.set_xattr(node, name, value)
                .map_err(|source| explain_xattr(name, value, source, path))?;
        }
        match self.mtime {
            Some(mtime) => Ok(set_time(tree, node, mtime).on("set the time of", path)?),
            None => Ok(true),
        }
    }
}

impl Applier<'_, '_> {
    /// Gives the current directory the attributes of its entry.
    pub(super) fn dress_directory(
        &mut self,
        entry: &ArchiveEntry,
        existed: bool,
    ) -> Result<(), Stop> {
        let dir = self.position.upper()?;
        let path = self.position.path().to_owned();
        let node = Node::Dir(&dir);
        let owner = match existed {
            true => None,
            false => Some(self.position.owner_of_new_directory(node)?),
        };
        let mut dress = self.dress_of(entry, FileKind::Directory, owner)?;
        // Set when it is left; whatever it has inherited is gone already.
        (dress.mtime, dress.inherits) = (None, false);
        if existed {
            // The later entry replaces the earlier one's attributes, not only adds to them.
            clear_attributes(self.position.view(), node).on("remove attributes of", &path)?;
        }
        dress.put_on(self.tree, node, &path)?;
        let acl_may_differ = existed || !entry.xattrs.is_empty();
        Ok(self.position.dressed(entry.mtime, acl_may_differ)?)
    }

    /// Gives a new object other than a directory or a regular file the attributes of its entry.
    pub(super) fn dress(
        &mut self,
        entry: &ArchiveEntry,
        node: Node<'_>,
        kind: FileKind,
        path: &Path,
    ) -> Result<(), Stop> {
        let dress = self.dress_of_new(entry, node, kind, path)?;
        let kept = dress.put_on(self.tree, node, path)?;
        self.clamped_times += u64::from(!kept);
        Ok(())
    }

    /// The attributes that a new object in the current directory is to get.
    pub(super) fn dress_of_new(
        &mut self,
        entry: &ArchiveEntry,
        node: Node<'_>,
        kind: FileKind,
        path: &Path,
    ) -> Result<Dress, Stop> {
        let owner = self.position.owner_of_new(node, path)?;
        self.dress_of(entry, kind, Some(owner))
    }

    /// An `owner` that is right already is not set.
    fn dress_of(
        &mut self,
        entry: &ArchiveEntry,
        kind: FileKind,
        owner: Option<(u32, u32)>,
    ) -> Result<Dress, Stop> {
        self.squashes = false;
        let wanted = self.owner(entry)?;
        let mut xattrs = Vec::new();
        for (name, value) in &entry.xattrs {
            match stored_name(self.options.xattrs, name) {
                StoredName::Skip => self.skipped_xattrs += 1,
                StoredName::Keep(name) => match self.xattr(kind, &name, value)? {
                    Some(value) => xattrs.push((name, value)),
                    None => self.skipped_xattrs += 1,
                },
            }
        }
        self.squashed += u64::from(self.squashes);
        Ok(Dress {
            inherits: self.position.inherits(),
            owner: (owner != Some(wanted)).then_some(wanted),
            mode: (kind != FileKind::Symlink).then_some(entry.mode),
            xattrs,
            mtime: Some(entry.mtime),
        })
    }

    /// The value that an attribute has here, `None` when the object cannot have it.
    fn xattr(
        &mut self,
        kind: FileKind,
        name: &OsStr,
        value: &[u8],
    ) -> Result<Option<Vec<u8>>, Stop> {
        let user = name.as_bytes().starts_with(b"user.");
        if user && !matches!(kind, FileKind::Directory | FileKind::Regular) {
            return Ok(None);
        }
        // The kernel would store it, and refuse to read it ever after.
        if value.is_empty() && name == "security.capability" {
            return Err(refused_xattr(name));
        }
        self.host_value(name, value)
            .map(|value| Some(value.into_owned()))
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

fn refused_xattr(name: &OsStr) -> Stop {
    let (name, problem) = (name.as_bytes().to_vec(), "the kernel refuses its value");
    Stop::Bad(BadReason::BadXattr { name, problem })
}

/// Why an attribute could not be set.
fn explain_xattr(name: &OsStr, value: &[u8], source: io::Error, path: &Path) -> Stop {
    let refused = |problem| {
        Stop::Bad(BadReason::XattrRefused {
            name: name.as_bytes().to_vec(),
            problem,
        })
    };
    match source.kind() {
        // ext4 keeps all attributes of a file in one block and calls its end "no space".
        io::ErrorKind::StorageFull | io::ErrorKind::ArgumentListTooLong if value.len() > 1024 => {
            Stop::Bad(BadReason::XattrTooLarge {
                name: name.as_bytes().to_vec(),
                len: value.len(),
            })
        }
        // Capabilities and access control lists have a form.
        io::ErrorKind::InvalidInput => refused_xattr(name),
        // The namespace is unknown here, switched off, or not for this user.
        io::ErrorKind::Unsupported => refused("does not support it"),
        io::ErrorKind::PermissionDenied => refused("does not let this user set it"),
        _ => Stop::Tree(TreeError::new("set an attribute of", path, source)),
    }
}

/// An id on disk.
struct HostId {
    id: u32,
    /// Whether it is the one asked for, and can own files here.
    owned: bool,
}
